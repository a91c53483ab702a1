"""Figure 4 of the SIMS paper, from the results of experiments/gaussian2d.yaml."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.style import CLASS_COLOURS, COLOURS, reference
from selfloop.madness import Madness, classify
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error
from selfloop.results import load_generations

SIZE, OMEGA = "mix.n_synthetic", "algorithm.omega"
RULE = Madness()
DASHES = ["-", "--", "-.", ":", (0, (1, 2, 5, 2))]
Curves = dict[tuple[int, float], Array]


def draw(results: Path) -> Figure:
    """Self-improvement at generation 1, distance at convergence, and the course of the loop for three synthetic sizes."""
    table = load_generations(results)
    sizes, omegas = sorted(table[SIZE].unique()), sorted(table[OMEGA].unique())
    w2 = {(n, omega): curves(table, "w2", {SIZE: n, OMEGA: omega}) for n in sizes for omega in omegas}
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    panels = figure.subplot_mosaic("AAABBB;CCDDEE")
    _draw_first(panels["A"], w2, sizes[0], omegas)
    _draw_end(panels["B"], w2, sizes, omegas)
    shown = [sizes[1], sizes[0], sizes[-1]] if len(sizes) > 1 else [sizes[0]] * 3
    for panel, n in zip("CDE", shown, strict=True):
        _draw_course(panels[panel], w2, n, omegas)
    panels["C"].set_ylabel(r"$E[W_2(\mathcal{G}^t)]\,/\,E[W_2(\mathcal{G}^1)]$")
    handles = [Line2D([], [], color="0.3", linestyle=DASHES[i % 5], label=rf"$\omega = {omega:g}$") for i, omega in enumerate(omegas)]
    handles += [Line2D([], [], color=CLASS_COLOURS[kind], linewidth=4, label=kind) for kind in ("none", "weak", "strong", "prevention")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.0, handlelength=1.8)
    runs = next(iter(w2.values())).shape[0]
    figure.suptitle(f"Bars and bands: ± 1 standard error over {runs} replicates. Colour: class of the curve over its own start.", fontsize=7.5)
    return figure


def _draw_first(axes: Axes, w2: Curves, n: int, omegas: list[float]) -> None:
    pairs = [mean_and_error(w2[n, omega][:, 0]) for omega in omegas]
    axes.errorbar(omegas, [mean for mean, _ in pairs], [error for _, error in pairs], color=COLOURS[0], marker="o", markersize=4, capsize=2)
    reference(axes, pairs[0][0], "standard training")
    axes.set(xlabel=r"guidance $\omega$", ylabel=r"$E[W_2(\mathcal{G}^1, p_r)]$", ylim=(0, None), xticks=omegas)
    axes.set_title("Self-improvement: generation 1")


def _draw_end(axes: Axes, w2: Curves, sizes: list[int], omegas: list[float]) -> None:
    for number, n in enumerate(sizes):
        verdicts = [classify(w2[n, omega], w2[n, omegas[0]], RULE)[0] for omega in omegas]
        ratios = np.array([verdict.ratio for verdict in verdicts])
        bars = [ratios - [v.low for v in verdicts], [v.high for v in verdicts] - ratios]
        shift = 0.03 * (number - (len(sizes) - 1) / 2)
        axes.errorbar(
            np.array(omegas) + shift, ratios, bars, color=COLOURS[number], marker="osD^v"[number % 5], markersize=4, capsize=2,
            label=f"{n}",
        )  # fmt: skip
    reference(axes, 1.0)
    axes.set(xlabel=r"guidance $\omega$", ylabel=r"$E[W_2]$ at convergence / generation 1", xticks=omegas)
    axes.set_title("At convergence (95 % bootstrap intervals)")
    axes.legend(title=r"synthetic points $|\mathcal{D}_s^t|$", ncols=2)


def _draw_course(axes: Axes, w2: Curves, n: int, omegas: list[float]) -> None:
    for number, omega in enumerate(omegas):
        ratio = w2[n, omega] / w2[n, omega][:, 0].mean()
        mean, error = ratio.mean(axis=0), ratio.std(axis=0, ddof=1) / np.sqrt(len(ratio))
        generation = np.arange(1, len(mean) + 1)
        colour = CLASS_COLOURS[classify(w2[n, omega], w2[n, omegas[0]], RULE)[0].kind]
        axes.plot(generation, mean, color=colour, linestyle=DASHES[number % 5], linewidth=1.1)
        axes.fill_between(generation, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    reference(axes, 1.0)
    axes.set(xlabel="generation $t$")
    axes.set_title(rf"$|\mathcal{{D}}_s^t| = {n}$")
