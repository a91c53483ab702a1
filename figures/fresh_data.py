"""The fixed point of the fresh-data loop, from the results of experiments/fresh_data.yaml."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from figures.averages import Course, averages, configuration, course, read, replicates
from figures.style import COLOURS, MARKERS, THEORY, WIDTH, band, note, reference, spaced
from selfloop import theory

FRACTION, REAL = "mix.fraction", "mix.n_real"
POWERS = {"mean_norm": 2}


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """E[|mean error|^2] with its standard error."""
    return averages(table, POWERS)


def synthetic_size(fraction: float, n_real: int) -> int:
    """Synthetic points beside n_real real ones, as `mix` rounds them: f / (1 - f) n_real."""
    return max(round(fraction / (1 - fraction) * n_real), 1)


def draw(results: Path) -> Figure:
    """Squared error of the mean against generation from three starts at two fractions, the fixed point against f."""
    table = kept(read(results, [FRACTION, REAL], list(POWERS)))
    settings = configuration(results)
    v0 = settings["real"]["cov"][0][0]
    starts = settings["sweep"]["grid"][REAL]
    fractions = sorted(table[FRACTION].unique())
    shown = sorted({fractions[len(fractions) // 2], fractions[-1]})
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    for axes, letter, fraction in zip(panels, "ab", shown, strict=False):
        _draw_course(axes, table, fraction, starts, v0)
        axes.set_title(f"({letter}) One end for all, $f$ = {fraction:g}")
    panels[1].sharey(panels[0])
    panels[0].legend(title="real points", loc="upper right")
    _draw_fixed_point(panels[2], table, fractions, starts, v0)
    note(
        figure,
        f"Curves, bands and bars: mean of {replicates(table)} loops ± 1 standard error; dashed: closed form; "
        "in (c) the three starts stand side by side.\n"
        r"Dotted: the fixed point $V_0\,/\,(N(1-f^2)+f)$, $N = n_r + n_s$, $f = n_s/N$.",
    )
    return figure


def _ratio(at: Course, v0: float) -> Course:
    return at._replace(mean=at.mean / v0, error=at.error / v0)


def _draw_course(axes: Axes, table: pd.DataFrame, fraction: float, starts: dict[str, Any], v0: float) -> None:
    for number, (name, sizes) in enumerate(starts.items()):
        at = _ratio(course(table, "mean_norm", {FRACTION: fraction, REAL: name}), v0)
        n_real, n_synthetic = sizes[-1], synthetic_size(fraction, sizes[-1])
        every = list(spaced(len(at.mean), 8) - 1)
        band(axes, at, color=COLOURS[number], marker=MARKERS[number], markersize=3.5, markevery=every, label=name)
        expected = theory.fresh_moments(n_real, n_synthetic, at.generation.astype(np.int64), n_initial=sizes[0])
        axes.plot(at.generation, expected.mean_error, **THEORY)
        limit = float(theory.fresh_fixed_point(n_real, n_synthetic).mean_error)
        axes.axhline(limit, color="0.4", linestyle=":", linewidth=0.9, zorder=0)
    axes.set(xlabel="generation $t$", ylabel=r"$E[\mu_t^2]$  (units of $V_0$)", xscale="log", yscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _draw_fixed_point(axes: Axes, table: pd.DataFrame, fractions: list[float], starts: dict[str, Any], v0: float) -> None:
    n_real = next(iter(starts.values()))[-1]
    f = np.linspace(0, 1, 200)
    axes.plot(f, 1 / (n_real * (1 + f) + f), **THEORY)
    sizes = np.array([synthetic_size(fraction, n_real) for fraction in fractions])
    for number, name in enumerate(starts):
        ends = [_ratio(course(table, "mean_norm", {FRACTION: fraction, REAL: name}), v0) for fraction in fractions]
        x = sizes / (sizes + n_real) + 0.025 * (number - 1)
        look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5, "capsize": 1.5, "linestyle": ""}
        axes.errorbar(x, [at.mean[-1] for at in ends], [at.error[-1] for at in ends], **look)
    reference(axes, 1 / n_real, rf"real data alone: $V_0/n_r$, $n_r$ = {n_real}")
    axes.set(xlabel="fraction $f$ of synthetic data", ylabel=r"$E[\mu_\infty^2]$  (units of $V_0$)")
    axes.set(xlim=(0, 1), ylim=(0.4 / n_real, 1.1 / n_real))
    axes.set_title("(c) Synthetic data lower it")
