"""Pruning before training on handwritten digits, from the results of experiments/digits_pruning.yaml.

FD, precision and recall are of the features of a classifier, to all training images, whatever was kept. Novelty is the mean
distance of a sample to the nearest training image, over that of held-out real images: below 1, samples are copies. Vendi is the
effective number of different samples, over that of as many real images.
"""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from figures.averages import configuration, only, picture, read
from figures.guidance import thousand
from figures.style import COLOURS, WIDTH, note
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error

POINT, ALL, EQUAL = "algorithm", "all data", ", equal epochs"
METRICS = ["fd", "fd_floor", "precision", "recall", "novelty", "novelty_real", "vendi", "vendi_real", "class_tv"]
LOOKS = {".5": (COLOURS[0], "o"), ".9": (COLOURS[3], "s")}
SHOWN = {"all_data": "All data", "near_.9": "Near, .9", "high_loss_.9": "High loss, .9"}
"""Files of pictures, and their titles."""


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics drawn and told, of every replicate."""
    return only(table, METRICS)


def parted(name: str) -> tuple[str, str]:
    """Method and pruning ratio: of `near .9` they are near and .9, of `near .9, equal epochs` near, equal epochs and .9."""
    method, ratio = name.removesuffix(EQUAL).rsplit(" ", 1)
    return method + (EQUAL if name.endswith(EQUAL) else ""), ratio


def values(table: pd.DataFrame, metric: str, point: str) -> Array:
    """A metric of every replicate at one point; novelty and Vendi over those of real images."""
    found = curves(table, metric, {POINT: point})[:, -1]
    return found / curves(table, f"{metric}_real", {POINT: point})[:, -1] if metric in ("novelty", "vendi") else found


def draw(results: Path) -> Figure:
    """A row for each method: FD, precision and recall, novelty, Vendi; below, samples."""
    table = kept(read(results, [POINT], ["fd", "novelty"])).astype({"value": float})
    settings, points = configuration(results), list(table[POINT].unique())
    methods = list(dict.fromkeys(parted(point)[0] for point in points if point != ALL))
    found = {title: picture(results, f"algorithm={point},chunk=0,generation=1") for point, title in SHOWN.items()}
    pictures = {title: seen for title, seen in found.items() if seen is not None}
    rows = 2 if len(pictures) == len(SHOWN) else 1
    figure = Figure(figsize=(WIDTH, 3.2 if rows == 1 else 4.9), layout="constrained")
    upper, *lower = figure.subfigures(rows, 1, height_ratios=[2.4, 1][:rows], squeeze=False)[:, 0]
    panels = upper.subplots(1, 4, sharey=True)
    for axes, metric in zip(panels, ("fd", "precision", "novelty", "vendi"), strict=True):
        whole, error = mean_and_error(values(table, metric, ALL))
        axes.axvspan(whole - error, whole + error, color="0.85", zorder=0)
        axes.axvline(whole, color="0.6", linewidth=0.8, zorder=0)
    panels[1].axvline(mean_and_error(values(table, "recall", ALL))[0], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    for point in (point for point in points if point != ALL):
        method, ratio = parted(point)
        for axes, metric in zip(panels, ("fd", "precision", "novelty", "vendi"), strict=True):
            _point(axes, values(table, metric, point), methods.index(method), ratio)
        _point(panels[1], values(table, "recall", point), methods.index(method), ratio, filled=False)
    panels[0].set(xscale="log", ylabel="rows that stay", xlabel="FD  (squared unit)", title="(a) Distance")
    panels[0].set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    panels[0].xaxis.set_minor_locator(NullLocator())
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    panels[1].set(xlabel="precision, recall (open)", title="(b) Two errors")
    panels[2].set(xlabel="novelty / that of real", title="(c) Novelty")
    panels[3].set(xlabel="Vendi / that of real", title="(d) Diversity")
    upper.legend(
        [Line2D([], [], color=colour, marker=marker, linestyle="", markersize=4) for colour, marker in LOOKS.values()],
        [f"pruning ratio {ratio}" for ratio in LOOKS],
        loc="outside upper right",
        ncols=2,
    )
    for part in lower:
        for letter, axes, (title, seen) in zip("efg", part.subplots(1, 3), pictures.items(), strict=True):
            axes.imshow(seen[: seen.shape[0] // 2 + 1], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"({letter}) {title}")
            axes.axis("off")
    n, runs = settings["track"]["image_quality"]["n"], table["replicate"].nunique()
    images = thousand(settings["algorithm"]["algorithm"]["budget"])
    floor = mean_and_error(curves(table, "fd_floor", {POINT: ALL})[:, -1])[0]
    note(
        figure,
        f"Points: mean of {runs} trainings ± 1 standard error, {n:,} samples each; grey: all data (recall dotted). As many "
        f"updates\nwhatever is kept ({images} thousand images); with equal epochs a half or a tenth. Held-out real images: "
        f"FD {floor:.2f}.",
    )
    return figure


def _point(axes: Axes, found: Array, row: int, ratio: str, filled: bool = True) -> None:
    mean, error = mean_and_error(found)
    colour, marker = LOOKS[ratio]
    face = colour if filled else "white"
    axes.errorbar(mean, row, xerr=error, fmt=marker, color=colour, markerfacecolor=face, markersize=4, capsize=2, linewidth=1)
