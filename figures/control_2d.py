"""Class shares moved to a target by guidance, from the results of experiments/control_2d.yaml."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.averages import configuration, only, read
from figures.style import COLOURS, WIDTH, note
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

RUN, TARGET = "algorithm", "track.class_shares.target"
METRICS = ["class_share.0", "class_share.1", "class_tv", "class_w2_moments.0", "class_w2_moments.1"]
BASE = "base"
SHADES = [COLOURS[0], COLOURS[1]]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """Shares, their distance to the target and the quality of each class, of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """A row a run: the share of class 1 and its target, total variation before and after, and W_2 within each class."""
    table = kept(read(results, [RUN, TARGET], METRICS)).astype({"value": float, RUN: "category"})
    settings, names = configuration(results), list(table[RUN].cat.categories)
    if BASE not in names:
        raise RunError(f"{results} has no run named {BASE!r}, the network without control; draw a run whose sweep holds it")
    runs = [BASE, *(name for name in names if name != BASE)]
    seen = {name: {metric: curves(table, metric, {RUN: name})[:, -1] for metric in METRICS} for name in runs}
    target = {name: np.array(yaml.safe_load(table.loc[table[RUN] == name, TARGET].iloc[0])) for name in runs}
    figure = Figure(figsize=(WIDTH, 1.6 + 0.2 * len(runs)), layout="constrained")
    shares, distance, quality = panels = figure.subplots(1, 3, sharey=True)
    for row, name in enumerate(runs):
        here = seen[name]
        _point(shares, row, here["class_share.1"], SHADES[0], "o", "reached")
        for c, (colour, marker) in enumerate(zip(SHADES, "os", strict=True)):
            _point(quality, row, here[f"class_w2_moments.{c}"], colour, marker, f"class {c}")
        if name != BASE:
            shares.plot(target[name][1], row, color="black", marker="|", markersize=11, markeredgewidth=1.6, linestyle="")
            _point(distance, row, before(seen[BASE], target[name]), "0.6", "D", "base")
            _point(distance, row, here["class_tv"], SHADES[0], "o", "controlled")
    _finish(panels, runs, seen[BASE], settings)
    note(
        figure,
        f"Points: mean of {len(seen[BASE][METRICS[0]])} replicates ± 1 standard error; the base was trained on shares of "
        f"{' and '.join(f'{share:g}' for share in settings['real']['shares'])}. Lines in (c): the base.\n$W_2$ of the moments: "
        f"samples named as a class against real points of it, whose standard deviation is {settings['real']['std']:g}.",
    )
    return figure


def before(base: dict[str, Array], target: Array) -> Array:
    """Total variation 1/2 sum_c |share_c - target_c| of the base, a value a replicate."""
    return np.asarray(sum(abs(base[f"class_share.{c}"] - share) for c, share in enumerate(target)) / 2)


def _point(axes: Axes, row: int, values: Array, colour: Any, marker: str, name: str) -> None:
    mean, error = mean_and_error(values)
    look = {"color": colour, "marker": marker, "markersize": 4, "linestyle": "", "capsize": 2}
    axes.errorbar(mean, row, xerr=error, label=name if name not in axes.get_legend_handles_labels()[1] else None, **look)


def _finish(panels: Any, runs: list[str], base: dict[str, Array], settings: dict[str, Any]) -> None:
    shares, distance, quality = panels
    shares.plot([], [], color="black", marker="|", markersize=8, markeredgewidth=1.6, linestyle="", label="target")
    shares.axvline(settings["real"]["shares"][1], color="0.6", linewidth=0.8, zorder=0, label="real data")
    for c, colour in enumerate(SHADES):
        quality.axvline(mean_and_error(base[f"class_w2_moments.{c}"])[0], color=colour, linewidth=0.8, alpha=0.7, zorder=0)
    shares.set_yticks(range(len(runs)), [name.replace("omega ", "ω = ") for name in runs])
    shares.set(xlabel="share of class 1", xlim=(0, 1), ylim=(len(runs) - 0.5, -0.5), title="(a) Shares")
    distance.set(xlabel="total variation to the target", xlim=(0, None), title="(b) Before and after")
    quality.set(xlabel="$W_2$ within a class\n(units of the points)", xlim=(0, None), title="(c) Quality")
    for axes in panels:
        axes.set_ylabel("target share of class 1, settings")
        axes.yaxis.label.set_visible(axes is shares)
        axes.grid(axis="y", color="0.92", linewidth=0.7)
        axes.set_axisbelow(True)
        place = "lower left" if axes is shares else "upper right"
        axes.legend(loc=place, frameon=True, framealpha=1, edgecolor="none", borderpad=0.2)
