"""What curators do to a model of data whose flaws are known, from the results of experiments/curation_2d.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.averages import configuration, only, read
from figures.style import COLOURS, WIDTH, note
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

CURATORS = "algorithm.curators"
RARE = 0
SHARE, ERROR, COPIED = "class_share", "class_w2_moments", "most_copied"


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """Share of the rare mode, W_2 within each mode, distance of all shares and the most copied row, of every replicate."""
    errors = [metric for metric in table["metric"].unique() if str(metric).startswith(f"{ERROR}.")]
    return only(table, [f"{SHARE}.{RARE}", *errors, "class_tv", COPIED, f"{COPIED}_real"])


def draw(results: Path) -> Figure:
    """A row for each choice of curators: the share of the rare mode, errors within modes, copies of one row."""
    table = kept(read(results, [CURATORS], [f"{SHARE}.{RARE}", COPIED])).astype({"value": float})
    settings, names = configuration(results), list(table[CURATORS].unique())
    shares = settings["real"]["source"]["shares"]
    if shares is None:
        raise RunError(f"{results} has no rare mode: its eight Gaussians have equal shares; draw a run that gives shares")
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)

    def of(metric: str, name: str) -> Array:
        return curves(table, metric, {CURATORS: name})[:, -1]

    others = [c for c in range(len(shares)) if c != RARE]
    for row, name in enumerate(names):
        _point(panels[0], of(f"{SHARE}.{RARE}", name), row, COLOURS[0])
        _point(panels[1], of(f"{ERROR}.{RARE}", name), row, COLOURS[3], "rare mode", "s")
        _point(panels[1], np.mean([of(f"{ERROR}.{c}", name) for c in others], axis=0), row, COLOURS[0], "mean of the others")
        _point(panels[2], of(COPIED, name) / of(f"{COPIED}_real", name), row, COLOURS[0])
    for axes, value in ((panels[0], shares[RARE]), (panels[0], 1 / len(shares)), (panels[2], 1.0)):
        axes.axvline(value, color="0.6", linewidth=0.8, zorder=0)
    panels[0].set(xscale="log", xlabel="share of samples", ylabel="curators", title="(a) Rare mode")
    panels[1].set(xscale="log", xlabel="$W_2$ within a mode", title="(b) Errors")
    panels[2].set(xlabel="most copied row", title="(c) Copies")
    for axes, ticks in ((panels[0], (0.01, 0.03, 0.1)), (panels[1], (0.03, 0.1, 0.3))):
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -2)
    handles, labels = panels[1].get_legend_handles_labels()
    panels[1].legend(handles[:2], labels[:2], loc="upper left")
    flaws, runs = settings["real"], table["replicate"].nunique()
    note(
        figure,
        f"Points: mean of {runs} trainings ± 1 standard error. {settings['mix']['n_real'][-1]:,} rows: eight Gaussians, one "
        f"with a share of {shares[RARE]:g}; {flaws['duplicates']:.0%} of the rows\nare copies of {flaws['copied']}, "
        f"{flaws['outliers']:.0%} outliers. As many updates whatever is kept. (a) Lines: the share in the law, and an eighth. "
        "(b) Units of the points.\n(c) Largest share of samples near one training row, over that of fresh draws.",
    )
    return figure


def _point(axes: Axes, values: Array, row: int, colour: object, label: str = "", marker: str = "o") -> None:
    mean, error = mean_and_error(values)
    axes.errorbar(mean, row, xerr=error, fmt=marker, color=colour, markersize=4, capsize=2, linewidth=1, label=label or None)
