"""Figure 3 of the SIMS paper in the plane, from the results of experiments/fig3_2d.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.averages import averages, configuration, only, read, swept
from figures.guidance import BUDGET, DISTANCE, OMEGA, POWERS, draw_distance, mark_predicted, thousand
from figures.style import COLOURS, MARKERS, ORDERED, WIDTH, band, decades, note, reference
from selfloop.results import RunError

BUDGETS = [0.0128, 0.0256, 0.0512]
OMEGAS = [1, 3, 6]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2 and eta of every replicate."""
    return only(table, list(POWERS))


def draw(results: Path) -> Figure:
    """W_2 against omega at three budgets of the auxiliary; against the budget at three omega and for the auxiliary alone."""
    table = kept(read(results, [BUDGET, OMEGA], list(POWERS))).astype({"value": float})
    settings = configuration(results)
    mean = averages(table, POWERS)
    budgets, omegas = sorted(table[BUDGET].unique()), sorted(table[OMEGA].unique())
    if 0 not in omegas or not set(BUDGETS) & set(budgets):
        raise RunError(f"{results} lacks omega = 0 or a budget of {BUDGETS}; draw a run whose sweep holds them")
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    base = float(swept(mean, OMEGA, "w2_moments", {BUDGET: budgets[-1]}).mean[omegas.index(0)])
    for axes, x in ((left, 0.13), (right, 1.0)):
        reference(axes, base, "base", x, va="top")
    _draw_omega(left, mean, [budget for budget in BUDGETS if budget in budgets])
    _draw_budget(right, mean, [omega for omega in OMEGAS if omega in omegas], -1 in omegas)
    decades(left)
    left.set_ylim(0.65 * mean.loc[mean["metric"] == "w2_moments", "mean"].min(), None)
    runs = table["replicate"].nunique()
    fit = settings["algorithm"]["algorithm"]["budget"]
    note(
        figure,
        f"Curves and bands: mean of {runs} replicates ± 1 standard error. Ticks at the foot of (a): ω = 1/η, η measured, "
        f"± 1 standard error.\nBudget: samples seen in tuning the auxiliary; the base's fit saw {thousand(fit)} thousand. "
        "In (b) 0 stands at the left edge of a logarithmic axis.",
    )
    return figure


def _draw_omega(axes: Axes, mean: pd.DataFrame, budgets: list[float]) -> None:
    for number, budget in enumerate(budgets):
        look = {"color": COLOURS[[0, 2, 1][number % 3]], "marker": MARKERS[number % 6]}
        draw_distance(axes, mean, {BUDGET: budget}, label=thousand(budget), **look)
        mark_predicted(axes, mean, {BUDGET: budget}, look["color"], r"$1/\eta$")
    axes.set(xlabel=r"guidance $\omega$", ylabel=DISTANCE)
    axes.set_title(r"(a) The best guidance is about 1/$\eta$")
    axes.legend(title="budget (thousand samples)", loc="upper left", alignment="left")


def _draw_budget(axes: Axes, mean: pd.DataFrame, omegas: list[float], alone: bool) -> None:
    shown = [(omega, rf"$\omega$ = {omega:g}", ORDERED[2 * number], MARKERS[number]) for number, omega in enumerate(omegas)]
    if alone:
        shown.append((-1, r"auxiliary alone ($\omega = -1$)", "0.5", MARKERS[3]))
    for omega, name, colour, marker in shown:
        at = swept(mean, BUDGET, "w2_moments", {OMEGA: omega})
        least = at.x[at.x > 0].min()
        x = np.where(at.x > 0, at.x, least / 2)
        band(axes, at._replace(x=x), color=colour, marker=marker, markersize=3.5, label=name)
    axes.set(xlabel="budget of the auxiliary  (thousand samples seen)", ylabel=DISTANCE, xscale="log")
    doubled = np.isclose(np.log2(x / least) % 1, 0)
    axes.set_xticks(x[doubled], [thousand(budget) for budget in at.x[doubled]])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(r"(b) A larger budget wants a smaller $\omega$")
    axes.legend(loc="upper left")
