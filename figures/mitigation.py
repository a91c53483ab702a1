"""Figure 4 of the SIMS paper: a loop at several omega and synthetic sizes, each curve in the colour of its class of madness.

A curve is divided by its own first generation or by the first one of the standard loop. The paper does not say which; both are
drawn. Classes and their intervals are those of `selfloop.madness`, under the rule the run was configured with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from figures.averages import Course, configuration, ratio, read
from figures.style import CLASS_COLOURS, DASHES, MARKERS, band, label_ends, reference, spaced
from selfloop.madness import CLASSES, Madness, Verdict, classify
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

SIZE, OMEGA = "mix.n_synthetic", "algorithm.omega"
Point = tuple[int, float]
START = {"own": r"E[W_2(\mathcal{G}^1_\omega)]", "standard": r"E[W_2(\mathcal{G}^1_0)]"}
"""What a curve is divided by, in words and in symbols."""


@dataclass(frozen=True)
class Loops:
    """W_2 (R, T) at every point (n_s, omega) of a sweep, and its verdicts by what it is divided by."""

    table: pd.DataFrame
    settings: dict[str, Any]
    rule: Madness
    sizes: list[int]
    omegas: list[float]
    w2: dict[Point, Array]
    found: dict[Point, dict[str, Verdict]]

    @property
    def runs(self) -> int:
        """Replicates of a point."""
        return len(next(iter(self.w2.values())))

    @property
    def generations(self) -> int:
        """Generations of a loop."""
        return int(next(iter(self.w2.values())).shape[1])


def loops(results: Path, metrics: Sequence[str]) -> Loops:
    """The curves of the first of these metrics and their classes. Raises RunError if the results cannot be classified."""
    table = read(results, [SIZE, OMEGA], metrics)
    table = table[table["metric"].isin(metrics)].astype({"value": float, "metric": str})
    sizes, omegas = sorted(table[SIZE].unique()), sorted(table[OMEGA].unique())
    w2: dict[Point, Array] = {}
    for n, rows in table.groupby(SIZE):
        w2 |= {(int(str(n)), omega): curves(rows, metrics[0], {OMEGA: omega}) for omega in omegas}
    if len(next(iter(w2.values()))) < 2:
        raise RunError(f"{results} holds one replicate; classes of madness need two or more")
    settings = configuration(results)
    rule = Madness(**(settings["madness"] or {}))
    if rule.standard not in omegas:
        raise RunError(f"{results} has no loop at the standard guidance {rule.standard:g}; draw a run whose sweep holds it")
    found = {(n, omega): dict(zip(START, classify(w2[n, omega], w2[n, rule.standard], rule), strict=True)) for n, omega in w2}
    return Loops(table, settings, rule, sizes, omegas, w2, found)


def draw_first(axes: Axes, seen: Loops, **look: Any) -> list[float]:
    """W_2 at generation 1 against omega, which no synthetic size has reached yet; returns the means."""
    pairs = [mean_and_error(seen.w2[seen.sizes[0], omega][:, 0]) for omega in seen.omegas]
    means = [mean for mean, _ in pairs]
    axes.errorbar(seen.omegas, means, [error for _, error in pairs], marker="o", markersize=4, capsize=2, **look)
    axes.set(xlabel=r"guidance $\omega$", xticks=seen.omegas)
    return means


def draw_end(axes: Axes, seen: Loops, which: str, letter: str, apart: float = 0.0) -> None:
    """Distance at convergence over generation 1 against omega, a curve a synthetic size, `apart` to the right of the last."""
    for number, n in enumerate(seen.sizes):
        verdicts = [seen.found[n, omega][which] for omega in seen.omegas]
        x = np.array(seen.omegas) + apart * (number - (len(seen.sizes) - 1) / 2)
        axes.plot(x, [v.ratio for v in verdicts], color="0.75", linewidth=1, zorder=1)
        for place, v in zip(x, verdicts, strict=True):
            bars = [[v.ratio - v.low], [v.high - v.ratio]]
            axes.errorbar(place, v.ratio, bars, color=CLASS_COLOURS[v.kind], marker="o", markersize=4, capsize=2)
    reference(axes, 1.0)
    axes.set(xlabel=r"guidance $\omega$", xticks=seen.omegas)
    axes.set_ylabel(rf"$E[W_2(\mathcal{{G}}^\infty_\omega)]\,/\,{START[which]}$")
    axes.margins(y=0.08)
    ends = [seen.found[n, seen.omegas[-1]][which].ratio for n in seen.sizes]
    label_ends(axes, ends, [f"{n}" for n in seen.sizes], ["0.2"] * len(seen.sizes))
    least = min(seen.omegas, key=lambda omega: sum(seen.found[n, omega][which].ratio for n in seen.sizes))
    axes.set_title(rf"({letter}) {dict(own='Degrades least', standard='Ends best')[which]} at $\omega$ = {least:g}")


def draw_course(axes: Axes, seen: Loops, n: int, which: str, letter: str) -> None:
    """Distance over generation 1 in its course, a curve for each omega."""
    for number, omega in enumerate(seen.omegas):
        curve, start = seen.w2[n, omega], seen.w2[n, omega if which == "own" else seen.rule.standard][:, :1]
        t = spaced(curve.shape[1], 14)
        look = {
            "linestyle": DASHES[number % 5],
            "marker": MARKERS[number % 6],
            "markeredgecolor": "white",
            "markeredgewidth": 0.4,
        }
        colour = CLASS_COLOURS[seen.found[n, omega][which].kind]
        band(axes, Course(t.astype(float), *ratio(curve[:, t - 1], start)), color=colour, linewidth=1.1, markersize=4.5, **look)
    reference(axes, 1.0)
    axes.set(xlabel="generation $t$", xscale="log", ylabel=rf"$E[W_2(\mathcal{{G}}^t_\omega)]\,/\,{START[which]}$")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_title(rf"({letter}) {which.capitalize()} start, $n_s$ = {n}", fontsize=8)


def legend(figure: Figure, omegas: Sequence[float]) -> None:
    """One line above the panels: markers of omega, colours of the classes."""
    look: dict[str, Any] = {"color": "0.3", "markersize": 4}
    guidance = [
        Line2D([], [], linestyle=DASHES[i % 5], marker=MARKERS[i % 6], label=rf"$\omega$ = {omega:g}", **look)
        for i, omega in enumerate(omegas)
    ]
    classes = [Line2D([], [], color=CLASS_COLOURS[kind], linewidth=4, label=kind) for kind in CLASSES]
    figure.legend(
        handles=guidance + classes,
        loc="outside upper center",
        ncols=len(guidance) + len(classes),
        columnspacing=1.2,
        handlelength=2.4,
        handletextpad=0.4,
        fontsize=7.5,
    )


def convergence(seen: Loops) -> str:
    """What is meant by convergence, as a figure's note says it."""
    return (
        f"mean of the last {min(seen.rule.tail, seen.generations)} of {seen.generations} generations, "
        f"{seen.rule.confidence:.0%} bootstrap"
    )
