"""A distance against the pruning ratio, method by method, beside random rows.

The pruning ratio is the share of the rows that goes, 1 - fraction. At ratio 0 all methods are one: the same rows, and the same
random numbers in the fit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.averages import Sweep, read
from figures.style import COLOURS, DASHES, MARKERS, WIDTH, band, note
from selfloop.report import curves, mean_and_error

CURATORS, FRACTION = "algorithm.curators", "algorithm.curators.0.fraction"
RANDOM = "random"
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0)


def table_of(results: Path, metric: str) -> pd.DataFrame:
    """The table of a run that sweeps curators and the share that they keep."""
    return read(results, [CURATORS, FRACTION], [metric]).astype({"value": float})


def along(table: pd.DataFrame, metric: str, method: str) -> Sweep:
    """The metric of one method against the pruning ratio."""
    kept = sorted(table[FRACTION].unique(), reverse=True)
    found = [mean_and_error(curves(table, metric, {CURATORS: method, FRACTION: part})[:, -1]) for part in kept]
    return Sweep(1 - np.array(kept), *(np.array(column) for column in zip(*found, strict=True)))


def draw(table: pd.DataFrame, metric: str, label: str, panels: Mapping[str, Sequence[str]], text: str) -> Figure:
    """Two rows of panels, title -> methods; methods that the results do not hold are left out. text: the note."""
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    held, plain = set(table[CURATORS].unique()), along(table, metric, RANDOM)
    grid = figure.subplots(2, -(-len(panels) // 2), sharex=True, sharey=True)
    for number, (axes, (title, methods)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        band(axes, plain, color="0.6", linewidth=2.5, label=RANDOM, zorder=1)
        for place, method in enumerate([method for method in methods if method in held]):
            look: dict[str, Any] = {"color": COLOURS[place % 10], "marker": MARKERS[place % 6], "markersize": 3.5}
            band(axes, along(table, metric, method), label=method, linestyle=DASHES[place % 5], **look)
        axes.set(yscale="log", title=f"({'abcdef'[number]}) {title}")
        axes.legend(loc="upper left", handlelength=2.2, borderaxespad=0.1, labelspacing=0.25, fontsize=7)
    lowest, highest = grid[0, 0].get_ylim()
    ticks = [tick for tick in TICKS if lowest <= tick <= highest]
    grid[0, 0].set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    grid[0, 0].yaxis.set_minor_locator(NullLocator())
    grid[0, 0].set_ylim(lowest, highest * (highest / lowest) ** 0.65)  # room for the legends
    for axes in grid.flat:
        axes.set_xlabel("pruning ratio")
        axes.set_xticks(plain.x, [f"{ratio:.2g}" for ratio in plain.x])
    for axes in grid[:, 0]:
        axes.set_ylabel(label)
    note(figure, text)
    return figure
