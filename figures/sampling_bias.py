"""Sampling bias lambda in three loops and its closed forms, from the results of experiments/sampling_bias.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.averages import averages, check_equal_sizes, configuration, course, read, replicates
from figures.style import COLOURS, MARKERS, ORDERED, THEORY, WIDTH, band, label_ends, note
from selfloop import theory
from selfloop.measure import Array

KIND, BIAS = "mix.kind", "mix.bias"
POWERS = {"variance": 1}
TITLES = {
    "fully_synthetic": "(a) Synthetic data alone: geometric collapse",
    "augment": "(b) Augment: fixed real data stop it",
    "fresh": "(c) Fresh: new real data stop it",
}


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """E[variance] with its standard error."""
    return averages(table, POWERS)


def variance(kind: str, n: int, t: Array, bias: float) -> theory.Real:
    """E V_t of a loop type with n points of each sort and sampling bias lambda, for V_0 = 1."""
    times = t.astype(np.int64)
    if kind == "fully_synthetic":
        return theory.fully_synthetic_variance(n, times, bias)
    form = theory.augment_moments if kind == "augment" else theory.fresh_moments
    return form(n, n, times, bias).variance


def draw(results: Path) -> Figure:
    """Variance against generation for three loops, a curve for each lambda; the limit of the fresh loop against lambda."""
    table = kept(read(results, [KIND, BIAS], list(POWERS)))
    settings = configuration(results)
    check_equal_sizes(results, settings)
    n, v0 = settings["mix"]["n_real"][-1], settings["real"]["cov"][0][0]
    biases = sorted(table[BIAS].unique(), reverse=True)
    figure = Figure(figsize=(WIDTH, 5.3), layout="constrained")
    panels = figure.subplot_mosaic("AB;CD")
    for name, kind in zip("ABC", TITLES, strict=True):
        axes = panels[name]
        ends = []
        for number, bias in enumerate(biases):
            at = course(table, "variance", {KIND: kind, BIAS: bias})
            band(
                axes, at._replace(mean=at.mean / v0, error=at.error / v0), color=ORDERED[number % 5],
                marker=MARKERS[number % 6], markersize=3.5, markevery=(number, 8),
            )  # fmt: skip
            expected = np.asarray(variance(kind, n, at.generation, bias))
            axes.plot(at.generation, expected, **THEORY)
            ends.append(float(expected[-1]))
        axes.set(xlabel="generation $t$", ylabel=r"$E[V_t]$  (units of $V_0$)", xlim=(0, None), title=TITLES[kind])
        axes.set(**({"yscale": "log", "ylim": (None, 3)} if kind == "fully_synthetic" else {"ylim": (0.6, 1.03)}))
        texts = [rf"$\lambda$ = {bias:g}" for bias in biases]
        label_ends(axes, ends, texts, [ORDERED[number % 5] for number in range(len(biases))])
    _draw_limit(panels["D"], table, biases, n, v0)
    note(
        figure,
        f"Curves and bands: mean of {replicates(table)} loops ± 1 standard error; dashed: closed form. "
        f"{n} real points, {n} synthetic ones\n"
        r"drawn from $\mathcal{N}(\mu_t, \lambda V_t)$. In (d) the simulation is the last generation of (c); "
        "its bars are smaller than the markers.",
    )
    return figure


def _draw_limit(axes: Axes, table: pd.DataFrame, biases: list[float], n: int, v0: float) -> None:
    ends = [course(table, "variance", {KIND: "fresh", BIAS: bias}) for bias in biases]
    grid = np.linspace(min(min(biases), 0.5) - 0.1, 1.0, 100)
    axes.plot(
        grid, [float(theory.fresh_fixed_point(n, n, bias).variance) for bias in grid], **THEORY, label=f"closed form, $n$ = {n}"
    )
    limit = theory.fresh_variance_limit(0.5, grid)
    axes.plot(grid, limit, color="0.6", linewidth=1.1, label=r"$n = \infty$: $(1 - f)/(1 - f\lambda)$, $f = 1/2$", zorder=1)
    look = {"color": COLOURS[0], "linestyle": "", "marker": "o", "markersize": 5, "capsize": 2}
    mean, error = [at.mean[-1] / v0 for at in ends], [at.error[-1] / v0 for at in ends]
    axes.errorbar(biases, mean, error, label=f"simulation, $t$ = {ends[0].generation[-1]:g}", **look)
    axes.set(xlabel=r"sampling bias $\lambda$", ylabel=r"$E[V_\infty]$  (units of $V_0$)", ylim=(0.6, 1.03))
    axes.set_title(r"(d) Fresh: what is kept in the end")
    axes.legend(loc="upper left")
