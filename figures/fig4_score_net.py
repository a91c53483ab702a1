"""Figure 4 of the SIMS paper with networks, from the results of experiments/fig4_score_net.yaml.

Dashed is the closed form of `figures.guidance` at V = 1 in generation 1, V = (1 - f) / (1 - f exp(b (1 - omega eta))) at
convergence (`selfloop.theory.guided_variance`), f = n_s / (n_r + n_s), with the means of the eta and b that the run measured:
no constant is fitted, and n is infinite.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.averages import only
from figures.guidance import closed_form
from figures.mitigation import SIZE, Loops, convergence, draw_course, draw_end, draw_first, legend, loops
from figures.style import ORDERED, THEORY, WIDTH, label_ends, note
from selfloop.measure import Array
from selfloop.report import mean_and_error
from selfloop.theory import guided_variance

METRICS = ["w2_moments", "eta", "log_bias"]
COURSES = [250, 1000]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2, eta and the sampler's bias of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """W_2 at generation 1 and at convergence with the closed form, both over generation 1, and courses of two sizes."""
    seen = loops(results, METRICS)
    figure = Figure(figsize=(WIDTH, 7.4), layout="constrained")
    panels = figure.subplot_mosaic("AA;BC;DE", height_ratios=[1.2, 1, 1])
    _draw_distances(panels["A"], seen)
    draw_end(panels["B"], seen, "own", "b", apart=0.07)
    draw_end(panels["C"], seen, "standard", "c", apart=0.07)
    shown = [n for n in COURSES if n in seen.sizes] or seen.sizes[-2:]
    for name, n in zip("DE", shown, strict=False):
        draw_course(panels[name], seen, n, "standard", name.lower())
    for name in "DE"[len(shown) :]:
        panels[name].set_axis_off()
    legend(figure, seen.omegas)
    note(
        figure,
        f"Mean of {seen.runs} replicates. (a) and bands: ± 1 standard error. (b), (c): {convergence(seen)}\n"
        "intervals, at the right $n_s$; $n_s$: synthetic points a generation. Colour: mitigation over the start, "
        "$\\mathcal{G}^1_\\omega$ own, $\\mathcal{G}^1_0$ standard.\nDashed in (a): closed form for $n = \\infty$ at the η and "
        "the bias of the sampler that the run measured; nothing is fitted.",
    )
    return figure


def expected(seen: Loops, n: int, first: bool, omega: Array) -> Array:
    """W_2 at generation 1, or at convergence, at the eta and log bias measured in the run's loops of n synthetic points."""
    t = seen.table["generation"]
    rows = seen.table[(seen.table[SIZE] == n) & (t == 1 if first else t > seen.generations - seen.rule.tail)]
    eta, bias = (float(rows.loc[rows["metric"] == name, "value"].mean()) for name in ("eta", "log_bias"))
    share = n / (n + seen.settings["mix"]["n_real"][-1])
    return closed_form(seen.settings, 1.0 if first else guided_variance(eta, bias, omega, share), eta, bias, omega)


def _draw_distances(axes: Axes, seen: Loops) -> None:
    grid = np.linspace(min(seen.omegas), max(seen.omegas), 200)
    tail = slice(-min(seen.rule.tail, seen.generations), None)
    ends = draw_first(axes, seen, color="0.2", linewidth=1)[-1:]
    axes.plot(grid, expected(seen, seen.sizes[0], True, grid), **THEORY)
    for number, n in enumerate(seen.sizes):
        pairs = [mean_and_error(seen.w2[n, omega][:, tail].mean(axis=1)) for omega in seen.omegas]
        look = {"color": ORDERED[number % 5], "marker": "s", "markersize": 3.5, "capsize": 2, "linewidth": 1}
        axes.errorbar(seen.omegas, [mean for mean, _ in pairs], [error for _, error in pairs], **look)
        axes.plot(grid, expected(seen, n, False, grid), **{**THEORY, "color": ORDERED[number % 5]})
        ends.append(pairs[-1][0])
    axes.set(ylabel=r"$E[W_2]$  (units of the points)", ylim=(0, None), title="(a) Generation 1 and convergence")
    label_ends(axes, ends, ["$t$ = 1", *(f"$n_s$ = {n}" for n in seen.sizes)], ["0.2", *ORDERED][: len(ends)])
