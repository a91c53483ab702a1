"""One look for all figures: colours that colour-blind readers can tell apart, labels with units, bands explained."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from figures.averages import Course, Sweep
from selfloop.measure import Ints

matplotlib.use("Agg")
WIDTH = 7.2
"""Inches: two columns of a page."""
COLOURS = sns.color_palette("colorblind")
ORDERED = sns.color_palette("viridis", 6)[:5]
"""Five steps from dark to light for an ordered quantity."""
MARKERS = "osD^vP"
DASHES: list[Any] = ["-", (0, (6, 2)), (0, (4, 1.5, 1, 1.5)), (0, (1.2, 1.2)), (0, (7, 1.5, 1, 1.5, 1, 1.5))]
THEORY: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 2.5)), "linewidth": 0.9, "zorder": 4}
CLASS_COLOURS = {
    "none": "0.45",
    "weak": COLOURS[2],
    "strong": COLOURS[1],
    "prevention": COLOURS[4],
    "diverged": "black",
}
"""Green, orange and purple for weak, strong mitigation and prevention, as in the SIMS paper; grey for none."""

sns.set_theme(
    context="paper",
    style="ticks",
    palette="colorblind",
    rc={
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8.5,
        "axes.linewidth": 0.8,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "xtick.major.size": 3.5,
        "ytick.major.size": 3.5,
        "xtick.minor.size": 2,
        "ytick.minor.size": 2,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.title_fontsize": 8,
        "lines.linewidth": 1.4,
        "pdf.fonttype": 42,
        "figure.constrained_layout.w_pad": 0.06,
        "figure.constrained_layout.h_pad": 0.06,
    },
)


def reference(axes: Axes, y: float, text: str = "", x: float = 1.0, va: str = "bottom") -> None:
    """A thin grey line at y, with a word on it that ends at the fraction x of the axes."""
    axes.axhline(y, color="0.6", linewidth=0.8, zorder=0)
    if text:
        axes.annotate(
            text, (x, y), (0, 1.5 if va == "bottom" else -2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va=va, fontsize=7.5, color="0.35",
        )  # fmt: skip


def band(axes: Axes, at: Course | Sweep, **line: Any) -> None:
    """A curve, and a band of one standard error to each side."""
    x, mean, error = at
    (drawn,) = axes.plot(x, mean, **line)
    axes.fill_between(x, mean - error, mean + error, color=drawn.get_color(), alpha=0.25, linewidth=0)


def decades(axes: Axes) -> None:
    """A logarithmic y axis of about one decade: 1, 2 and 5 times a power of ten are named, as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def label_ends(axes: Axes, heights: Sequence[float], texts: Sequence[str], colours: Sequence[Any], gap: float = 0.075) -> None:
    """Names of the curves at the right edge, moved apart until `gap` of the height of the axes lies between them.

    To be called when the limits and scale of the axes are set.
    """
    axes.get_ylim()  # settles limits that are due
    place = (axes.transData + axes.transAxes.inverted()).transform
    wanted = np.array([place((1.0, height))[1] for height in heights])
    order = np.argsort(wanted)
    moved = wanted[order]
    for _ in range(200):
        near = np.flatnonzero(np.diff(moved) < gap - 1e-9)
        for i in near:
            push = (gap - (moved[i + 1] - moved[i])) / 2
            moved[i] -= push
            moved[i + 1] += push
    for i, y in zip(order, moved, strict=True):
        axes.annotate(
            texts[i], (1.0, y), (4, 0), xycoords="axes fraction", textcoords="offset points",
            ha="left", va="center", fontsize=8, color=colours[i], annotation_clip=False,
        )  # fmt: skip


def spaced(last: int, count: int) -> Ints:
    """About `count` generations from 1 to `last`, evenly spaced on a logarithmic axis."""
    return np.unique(np.geomspace(1, last, count).round().astype(np.int64))


def note(figure: Figure, text: str) -> None:
    """A line under the panels: what bands, bars and lines mean."""
    figure.supxlabel(text, fontsize=7.5, color="0.25", x=0.01, ha="left")
