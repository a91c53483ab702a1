"""Figure 4 of the SIMS paper, from the results of experiments/gaussian2d.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from figures.averages import Course, configuration, only, read
from figures.style import CLASS_COLOURS, DASHES, MARKERS, WIDTH, band, label_ends, note, reference, spaced
from selfloop.madness import CLASSES, Madness, Verdict, classify
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

SIZE, OMEGA = "mix.n_synthetic", "algorithm.omega"
Point = tuple[int, float]
START = {"own": r"E[W_2(\mathcal{G}^1_\omega)]", "standard": r"E[W_2(\mathcal{G}^1_0)]"}
"""What a curve is divided by: its own first generation, or the first one of the standard loop. The paper does not say which."""


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2 of every replicate, which the bootstrap of the classes needs."""
    return only(table, ["w2"])


def draw(results: Path) -> Figure:
    """Self-improvement at generation 1; distance at convergence and in its course, over both readings of generation 1."""
    table = kept(read(results, [SIZE, OMEGA], ["w2"])).astype({"value": float})
    sizes, omegas = sorted(table[SIZE].unique()), sorted(table[OMEGA].unique())
    w2: dict[Point, Array] = {}
    for n, rows in table.groupby(SIZE):
        w2 |= {(int(str(n)), omega): curves(rows, "w2", {OMEGA: omega}) for omega in omegas}
    runs, generations = next(iter(w2.values())).shape
    if runs < 2:
        raise RunError(f"{results} holds one replicate; classes of madness need two or more")
    rule = Madness(**(configuration(results)["madness"] or {}))
    standard = rule.standard
    if standard not in omegas:
        raise RunError(f"{results} has no loop at the standard guidance {standard:g}; draw a run whose sweep holds it")
    found = {(n, omega): dict(zip(START, classify(w2[n, omega], w2[n, standard], rule), strict=True)) for n, omega in w2}
    figure = Figure(figsize=(WIDTH, 7.4), layout="constrained")
    panels = figure.subplots(3, 3)
    _draw_first(panels[0, 0], w2, sizes[0], omegas, standard)
    for axes, which, title in ((panels[0, 1], "own", "(b) Degrades least"), (panels[0, 2], "standard", "(c) Ends best")):
        _draw_end(axes, found, sizes, omegas, which)
        least = min(omegas, key=lambda omega: sum(found[n, omega][which].ratio for n in sizes))
        axes.set_title(rf"{title} at $\omega$ = {least:g}")
    shown = [*sizes[:2], *sizes[-1:]][: len(sizes)]
    letters = iter("defghi")
    for row, which in enumerate(START, start=1):
        for column, axes in enumerate(panels[row]):
            if column >= len(shown):
                axes.set_axis_off()
                continue
            _draw_course(axes, w2, found, shown[column], omegas, which, standard)
            axes.set_title(rf"({next(letters)}) {which.capitalize()} start, $n_s$ = {shown[column]}", fontsize=8)
            axes.set_ylabel(rf"$E[W_2(\mathcal{{G}}^t_\omega)]\,/\,{START[which]}$")
    guidance = [
        Line2D(
            [], [], color="0.3", linestyle=DASHES[i % 5], marker=MARKERS[i % 6], markersize=4, label=rf"$\omega$ = {omega:g}"
        )
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
    note(
        figure,
        f"Mean of {runs} replicates. (a) and bands: ± 1 standard error. (b), (c): mean of the last "
        f"{min(rule.tail, generations)} of {generations} generations, {rule.confidence:.0%} bootstrap\nintervals; "
        "at the right $n_s$, synthetic points a generation. "
        r"Colour: mitigation over the start, $\mathcal{G}^1_\omega$ own, $\mathcal{G}^1_0$ standard.",
    )
    return figure


def _draw_first(axes: Axes, w2: dict[Point, Array], n: int, omegas: list[float], standard: float) -> None:
    pairs = [mean_and_error(w2[n, omega][:, 0]) for omega in omegas]
    axes.errorbar(
        omegas, [mean for mean, _ in pairs], [error for _, error in pairs], color="0.2", marker="o", markersize=4, capsize=2
    )
    reference(axes, pairs[omegas.index(standard)][0], "standard training")
    top = 1.12 * max(mean for mean, _ in pairs)
    axes.set(xlabel=r"guidance $\omega$", ylabel=r"$E[W_2(\mathcal{G}^1_\omega, p_r)]$", ylim=(0, top), xticks=omegas)
    axes.set_title("(a) SIMS improves itself")


def _draw_end(axes: Axes, found: dict[Point, dict[str, Verdict]], sizes: list[int], omegas: list[float], which: str) -> None:
    for n in sizes:
        verdicts = [found[n, omega][which] for omega in omegas]
        axes.plot(omegas, [v.ratio for v in verdicts], color="0.75", linewidth=1, zorder=1)
        for omega, v in zip(omegas, verdicts, strict=True):
            bars = [[v.ratio - v.low], [v.high - v.ratio]]
            axes.errorbar(omega, v.ratio, bars, color=CLASS_COLOURS[v.kind], marker="o", markersize=4, capsize=2)
    reference(axes, 1.0)
    axes.set(xlabel=r"guidance $\omega$", ylabel=rf"$E[W_2(\mathcal{{G}}^\infty_\omega)]\,/\,{START[which]}$", xticks=omegas)
    axes.margins(y=0.08)
    label_ends(axes, [found[n, omegas[-1]][which].ratio for n in sizes], [f"{n}" for n in sizes], ["0.2"] * len(sizes))


def _ratio(values: Array, starts: Array) -> tuple[Array, Array]:
    """Mean of values (R, T) over mean of starts (R, 1), and its standard error; the two are of the same replicates.

    To first order the error of r = a / b is that of the mean of (a_i - r b_i) / b.
    """
    mean = values.mean(axis=0) / starts.mean()
    return mean, (values - mean * starts).std(axis=0, ddof=1) / starts.mean() / np.sqrt(len(values))


def _draw_course(
    axes: Axes, w2: dict[Point, Array], found: dict[Point, dict[str, Verdict]], n: int, omegas: list[float], which: str,
    standard: float,
) -> None:  # fmt: skip
    for number, omega in enumerate(omegas):
        t = spaced(w2[n, omega].shape[1], 14)
        mean, error = _ratio(w2[n, omega][:, t - 1], w2[n, omega if which == "own" else standard][:, :1])
        at = Course(t.astype(float), mean, error)
        colour = CLASS_COLOURS[found[n, omega][which].kind]
        look = {
            "linestyle": DASHES[number % 5],
            "marker": MARKERS[number % 6],
            "markeredgecolor": "white",
            "markeredgewidth": 0.4,
        }
        band(axes, at, color=colour, linewidth=1.1, markersize=4.5, **look)
    reference(axes, 1.0)
    axes.set(xlabel="generation $t$", xscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
