"""The law omega * eta = 1, from the results of experiments/omega_eta.yaml.

How the best guidance is read off saved distances. With mean m and standard deviation s of the guided law, in one dimension,

    W_2(x)^2 = m^2 + (s(x) - s_0)^2,      x = omega * eta,

and s is smooth in x, nearly a quadratic. So W_2^2, not W_2 with its kink, is fitted by a polynomial of degree four over
|x - x_min| <= .3, x_min the best point of the grid, by least squares, one fit a replicate; the best x is where it is least. A
parabola leans to one side: it has no room for the cubic term that the curvature of s brings. The replicates' best x give mean
and standard error. Replicates share their random numbers across the sweep: the points of one N move up and down together.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from figures.averages import configuration, only, read
from figures.style import COLOURS, MARKERS, ORDERED, THEORY, WIDTH, note, reference
from selfloop import theory
from selfloop.measure import Array
from selfloop.report import mean_and_error

STEPS, ETA, OMEGA = "algorithm.algorithm.sampler.steps", "algorithm.budget", "algorithm.omega"


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2 of every replicate."""
    return only(table, ["w2"])


def best(x: Array, w2: Array, reach: float = 0.3) -> float:
    """The x at which W_2 is least: the minimum of a polynomial of degree four in x, fitted to W_2^2 within `reach` of it.

    Shapes: x, w2 (k,), x increasing. Raises ValueError for fewer than five points within reach.
    """
    centre = x[np.argmin(w2)]
    near = np.abs(x - centre) <= reach + 1e-9
    if near.sum() < 5:
        raise ValueError(f"a polynomial of degree four needs five points, got {near.sum()} within {reach} of {centre}")
    fit = np.polynomial.Polynomial.fit(x[near], w2[near] ** 2, 4)
    turns = fit.deriv().roots()
    turns = turns[np.abs(turns.imag) < 1e-9].real
    least = turns[fit.deriv(2)(turns) > 0]
    return float(least[np.argmin(np.abs(least - centre))])


def draw(results: Path) -> Figure:
    """W_2 against omega * eta for one number of steps, and the best omega * eta against eta for all of them."""
    table = kept(read(results, [STEPS, ETA, OMEGA], ["w2"])).astype({"value": float})
    settings = configuration(results)
    sampler = settings["algorithm"]["algorithm"]["sampler"]
    numbers, etas = sorted(table[STEPS].unique()), sorted(table[ETA].unique(), reverse=True)
    steps = {
        number: theory.Steps(sampler["kind"], int(number), sampler["sigma_max"], sampler["sigma_min"], sampler["rho"])
        for number in numbers
    }
    middle = 20 if 20 in numbers else numbers[0]
    runs = table["replicate"].nunique()
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_distance(left, table, etas, steps[middle])
    _draw_best(right, table, numbers, etas, steps)
    note(
        figure,
        f"Points: mean of {runs} replicates of {settings['mix']['n_real'][0]:,} points; "
        "bars ± 1 standard error (points of one N share their random numbers,\n"
        "and so their error). Lines: closed form for N steps. "
        "$\\eta$: how far the auxiliary went from the base to the fit of its samples.",
    )
    return figure


def _draw_distance(axes: Axes, table: pd.DataFrame, etas: list[float], steps: theory.Steps) -> None:
    for number, eta in enumerate(etas):
        x, w2 = _swept(table, steps.steps, eta)
        look = {"color": ORDERED[number % 5], "marker": MARKERS[number % 6], "markersize": 4, "linestyle": ""}
        axes.plot(x, w2.mean(axis=0), label=rf"$\eta$ = {eta:g}", **look)
        grid = np.linspace(0, x[-1], 200)
        axes.plot(grid, [_distance(eta, c / eta, steps) for c in grid], color=ORDERED[number % 5], linewidth=0.9)
    axes.axvline(1, color="0.6", linewidth=0.8, zorder=0)
    axes.annotate(r"$\omega\,\eta = 1$", (1, 0.99), (-3, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                  ha="right", va="top", fontsize=7.5, color="0.35")  # fmt: skip
    axes.set(
        xlabel=r"$\omega\,\eta$  (guidance × fraction tuned)",
        ylabel=r"$W_2$ at generation 1  (units of the points)",
        ylim=(-0.003, None),
        xlim=(-0.04, None),
    )
    axes.set_title(rf"(a) One curve for every $\eta$ (N = {steps.steps})")
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1))


def _draw_best(axes: Axes, table: pd.DataFrame, numbers: list[int], etas: list[float], steps: dict[int, theory.Steps]) -> None:
    grid = np.geomspace(0.9 * min(etas), 1, 60)
    for number, n in enumerate(numbers):
        found = []
        for eta in etas:
            x, w2 = _swept(table, n, eta)
            found.append(mean_and_error(np.array([best(x, row) for row in w2])))
        axes.plot(grid, [eta * theory.best_omega(eta, steps[n]) for eta in grid], **THEORY)
        axes.errorbar(
            np.array(etas) * 1.03 ** (number - 1), [mean for mean, _ in found], [error for _, error in found],
            color=COLOURS[number], linestyle="", marker=MARKERS[number], markersize=4.5, capsize=2, label=f"N = {n}",
        )  # fmt: skip
    reference(axes, 1.0, r"$\omega\,\eta = 1$")
    axes.set(xlabel=r"$\eta$  (fraction tuned)", ylabel=r"best $\omega\,\eta$", xscale="log", ylim=(0.9, 1.01))
    axes.xaxis.set_major_locator(FixedLocator(etas))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(r"(b) The best guidance is a little below 1/$\eta$")
    axes.legend(loc="lower left", title="ancestral steps")


def _swept(table: pd.DataFrame, n: int, eta: float) -> tuple[Array, Array]:
    rows = table[(table[STEPS] == n) & (table[ETA] == eta)]
    wide = rows.pivot(index="replicate", columns=OMEGA, values="value")
    return wide.columns.to_numpy(dtype=float) * eta, wide.to_numpy()


def _distance(eta: float, omega: float, steps: theory.Steps) -> float:
    auxiliary = theory.MeanVariance(0.0, np.exp(eta * theory.sampler_log_bias(1.0, steps)))
    law = theory.sampler_law(theory.MeanVariance(0.0, 1.0), auxiliary, omega, steps)
    return float(abs(np.sqrt(law.variance) - 1))
