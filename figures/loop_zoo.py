"""Five loop types on one Gaussian and their closed forms, from the results of experiments/loop_zoo.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures.averages import averages, check_equal_sizes, configuration, course, read, replicates
from figures.style import COLOURS, MARKERS, THEORY, WIDTH, band, label_ends, note
from selfloop import theory
from selfloop.measure import Array

KIND = "mix.kind"
POWERS = {"variance": 1, "mean_norm": 2}
LOOPS = {
    "fully_synthetic": "fully synthetic",
    "accumulate_subsample": "accumulate,\nsubsampled",
    "accumulate": "accumulate",
    "augment": "augment",
    "fresh": "fresh",
}


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """E[variance] and E[|mean error|^2] with their standard errors."""
    return averages(table, POWERS)


def moments(kind: str, n: int, t: Array) -> theory.LoopMoments:
    """E mu^2 and E V of a loop type with n points of each sort, for V_0 = 1."""
    times = t.astype(np.int64)
    match kind:
        case "fully_synthetic":
            return theory.LoopMoments(theory.fully_synthetic_mean_error(n, times), theory.fully_synthetic_variance(n, times))
        case "accumulate":
            return theory.LoopMoments(theory.accumulate_mean_error(n, times), theory.accumulate_variance(n, times))
        case "accumulate_subsample":
            return theory.accumulate_subsample_moments(n, times)
        case "augment":
            return theory.augment_moments(n, n, times)
        case "fresh":
            return theory.fresh_moments(n, n, times)
    raise ValueError(f"mix.kind must be one of {', '.join(map(repr, LOOPS))}; got {kind!r}")


def draw(results: Path) -> Figure:
    """Variance above, squared error of the mean below; all loops on the left, those that keep real data again on the right."""
    table = kept(read(results, [KIND], list(POWERS)))
    settings = configuration(results)
    check_equal_sizes(results, settings)
    n, v0 = settings["mix"]["n_real"][-1], settings["real"]["cov"][0][0]
    kinds = [kind for kind in LOOPS if kind in set(table[KIND])]
    figure = Figure(figsize=(WIDTH, 5.3), layout="constrained")
    panels = figure.subplot_mosaic("AB;CD", width_ratios=[1, 1.05])
    for name, metric in (("A", "variance"), ("B", "variance"), ("C", "mean_norm"), ("D", "mean_norm")):
        shown = kinds if name in "AC" else [kind for kind in kinds if kind != "fully_synthetic"]
        _draw(panels[name], table, metric, shown, n, v0)
    variance, error = r"$E[V_t]$  (units of $V_0$)", r"$E[\mu_t^2]$  (units of $V_0$)"
    panels["A"].set(ylabel=variance, ylim=(0, 1.02), title="(a) Synthetic data alone: the variance dies")
    panels["B"].set(ylabel=variance, ylim=(0.83, 1.0), title="(b) With real data it levels off")
    panels["C"].set(ylabel=error, ylim=(0, 1.02), title="(c) Synthetic data alone: the mean drifts")
    panels["D"].set(ylabel=error, ylim=(0, 0.16), title="(d) With real data its error levels off")
    for name, metric, row in (("B", "variance", 1), ("D", "mean_norm", 0)):
        shown = [kind for kind in kinds if kind != "fully_synthetic"]
        ends = [course(table, metric, {KIND: kind}).generation[-1:] for kind in shown]
        heights = [float(np.asarray(moments(kind, n, end)[row])[0]) for kind, end in zip(shown, ends, strict=True)]
        label_ends(panels[name], heights, [LOOPS[kind] for kind in shown], [_look(kind)[0] for kind in shown])
    handles = [
        Line2D([], [], color=c, marker=m, markersize=3.5, label=LOOPS[k].replace("\n", " "))
        for k in reversed(kinds)
        for c, m in [_look(k)]
    ]
    handles.append(Line2D([], [], **THEORY, label="closed form"))
    panels["A"].legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1.1, 0.84), labelspacing=0.25, handlelength=1.6, fontsize=7.5
    )
    note(
        figure,
        f"Curves and bands: mean of {replicates(table)} loops ± 1 standard error, {n} points of each sort (real, synthetic).\n"
        "All loop types start from the same real samples, so their errors are related.",
    )
    return figure


def _look(kind: str) -> tuple[tuple[float, float, float], str]:
    number = list(LOOPS).index(kind)
    return COLOURS[[3, 4, 2, 1, 0][number]], MARKERS[number]


def _draw(axes: Axes, table: pd.DataFrame, metric: str, kinds: list[str], n: int, v0: float) -> None:
    for number, kind in enumerate(kinds):
        at = course(table, metric, {KIND: kind})
        colour, marker = _look(kind)
        band(
            axes,
            at._replace(mean=at.mean / v0, error=at.error / v0),
            color=colour,
            marker=marker,
            markersize=3.5,
            markevery=(2 * number, 10),
        )
        expected = moments(kind, n, at.generation)
        axes.plot(at.generation, expected.variance if metric == "variance" else expected.mean_error, **THEORY)
    axes.set(xlabel="generation $t$", xlim=(0, None))
