"""SIMS and Neon with the same base and auxiliary, from the results of experiments/sims_vs_neon.yaml."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.averages import Sweep, averages, only, ratio, read
from figures.guidance import BUDGET, DISTANCE, OMEGA, POWERS, draw_distance, mark_predicted, thousand
from figures.style import COLOURS, MARKERS, WIDTH, band, decades, note, reference
from selfloop.results import RunError

KIND = "algorithm.kind"
KINDS: dict[str, tuple[str, Any]] = {
    "sims": ("SIMS: scores, two networks", "-"),
    "neon": ("Neon: parameters, one network", (0, (3, 1.5))),
}
SHADES = [COLOURS[0], COLOURS[2], COLOURS[1]]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2 and eta of every replicate."""
    return only(table, list(POWERS))


def draw(results: Path) -> Figure:
    """W_2 of both against omega for each budget, and the ratio of the two."""
    table = kept(read(results, [KIND, BUDGET, OMEGA], list(POWERS))).astype({"value": float})
    missing = set(KINDS) - set(table[KIND])
    if missing:
        raise RunError(f"{results} has no {KIND} = {', '.join(sorted(missing))}; draw a run whose sweep holds both")
    mean = averages(table, POWERS)
    budgets = sorted(table[BUDGET].unique())[:3]
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, budget in enumerate(budgets):
        for kind, (_, dash) in KINDS.items():
            look = {"color": SHADES[number], "marker": MARKERS[number], "linestyle": dash}
            draw_distance(left, mean, {KIND: kind, BUDGET: budget}, **look)
        mark_predicted(left, mean, {KIND: "sims", BUDGET: budget}, SHADES[number], r"$1/\eta$")
        band(
            right, relative(table, budget), color=SHADES[number], marker=MARKERS[number], markersize=3.5, label=thousand(budget)
        )
    _finish(left, right, mean)
    runs = table["replicate"].nunique()
    note(
        figure,
        f"Curves and bands: mean of {runs} replicates ± 1 standard error; both share base and auxiliary in each replicate, and "
        "the error in (b)\ntakes them in pairs. Ticks at the foot of (a): ω = 1/η, η measured, ± 1 standard error. "
        "Budget: samples seen in tuning.",
    )
    return figure


def relative(table: pd.DataFrame, budget: float) -> Sweep:
    """Mean W_2 of Neon over mean W_2 of SIMS, against omega."""
    rows = table[(table["metric"] == "w2_moments") & (table[BUDGET] == budget)]
    neon, sims = (rows[rows[KIND] == kind].pivot(index="replicate", columns=OMEGA, values="value") for kind in ("neon", "sims"))
    return Sweep(sims.columns.to_numpy(dtype=float), *ratio(neon.to_numpy(), sims.to_numpy()))


def _finish(left: Axes, right: Axes, mean: pd.DataFrame) -> None:
    decades(left)
    left.set_ylim(0.6 * mean.loc[mean["metric"] == "w2_moments", "mean"].min(), None)
    left.set(xlabel=r"guidance $\omega$", ylabel=DISTANCE)
    left.set_title("(a) Nearly one curve for both")
    left.legend(
        handles=[Line2D([], [], color="0.3", linestyle=dash, label=name) for name, dash in KINDS.values()], loc="upper left"
    )
    reference(right, 1.0)
    right.set(xlabel=r"guidance $\omega$", ylabel=r"$E[W_2]$ of Neon / $E[W_2]$ of SIMS")
    right.set_title(r"(b) At the same $\omega$ Neon moves a little less")
    right.legend(title="thousand samples", loc="lower left", alignment="left")
