"""Skewed digits, balanced without labels and with them, from the results of experiments/digits_skewed.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import entropy

from figures.averages import configuration, only, picture, read
from figures.style import COLOURS, MARKERS, WIDTH, note
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error

CURATORS, SKEWED, LABELLED = "algorithm.curators", "skewed", "class weights"
CLASSES = 10


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """FD, precision, recall and class shares, of every replicate."""
    return only(table, ["fd", "fd_floor", "precision", "recall", *(f"class_share.{c}" for c in range(CLASSES))])


def shares(table: pd.DataFrame, point: str) -> Array:
    """Shares (R, K) of the classes in the samples of every replicate."""
    return np.stack([curves(table, f"class_share.{c}", {CURATORS: point})[:, -1] for c in range(CLASSES)], axis=1)


def to_uniform(found: Array) -> Array:
    """KL (R,) of shares (R, K) to uniform, in nats."""
    return np.asarray(entropy(found, np.ones_like(found), axis=1))


def draw(results: Path) -> Figure:
    """Class shares of samples, their KL to uniform beside FD, and samples."""
    table = kept(read(results, [CURATORS], ["fd", "class_share.0"])).astype({"value": float})
    settings, points = configuration(results), list(table[CURATORS].unique())
    target = settings["sweep"]["grid"][CURATORS][SKEWED][0]["target"]
    files = {point: f"curators={point},chunk=0,generation=1".replace(" ", "_") for point in (SKEWED, LABELLED)}
    shown = {point: picture(results, file) for point, file in files.items()}
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    panels = figure.subplot_mosaic(
        [["shares", "kl", "fd"], ["shares", "first", "last"]], width_ratios=[1.25, 1, 1], height_ratios=[1.5, 1]
    )
    axes = panels["shares"]
    axes.plot(range(CLASSES), target, color="0.6", linestyle=":", label="training rows, skewed")
    axes.axhline(1 / CLASSES, color="0.6", linewidth=0.8)
    for number, point in enumerate(points):
        mean = shares(table, point).mean(axis=0)
        error = shares(table, point).std(axis=0, ddof=1) / np.sqrt(len(shares(table, point)))
        place = np.arange(CLASSES) + 0.08 * (number - len(points) / 2)
        axes.errorbar(
            place, mean, error, color=COLOURS[number], marker=MARKERS[number], markersize=3, linewidth=0.8, label=point
        )
        _point(panels["kl"], to_uniform(shares(table, point)), number)
        _point(panels["fd"], curves(table, "fd", {CURATORS: point})[:, -1], number)
    axes.set(xlabel="digit", ylabel="share of samples", title="(a) Classes", xticks=range(CLASSES), ylim=(0, 0.45))
    axes.legend(loc="upper right", borderaxespad=0)
    axes.set_xlim(-0.5, CLASSES - 0.5)
    panels["fd"].sharey(panels["kl"])
    panels["kl"].set(ylabel="training rows", xlabel="KL to uniform  (nats)", title="(b) Balance", xlim=(0, None))
    panels["fd"].set(xlabel="FD to balanced digits", title="(c) Distance")
    panels["kl"].set_yticks(range(len(points)), points)
    panels["kl"].set_ylim(len(points) - 0.5, -0.5)
    panels["fd"].tick_params(labelleft=False)
    for letter, name, (point, seen) in zip("de", ("first", "last"), shown.items(), strict=True):
        if seen is not None:
            panels[name].imshow(seen[: seen.shape[0] // 2 + 1], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            panels[name].set_title(f"({letter}) {point.capitalize()}")
        panels[name].axis("off")
    n, runs = settings["track"]["image_quality"]["n"], table["replicate"].nunique()
    (before,) = to_uniform(np.array([target]))
    note(
        figure,
        f"Points: mean of {runs} trainings ± 1 standard error; {n:,} samples each, named by a classifier of all real images. "
        f"As many\nupdates whatever is kept. KL of the training rows as they are {before:.2f}. Only class weights know labels.",
    )
    return figure


def _point(axes: Axes, values: Array, row: int) -> None:
    mean, error = mean_and_error(values)
    axes.errorbar(mean, row, xerr=error, fmt=MARKERS[row], color=COLOURS[row], markersize=4, capsize=2, linewidth=1)
