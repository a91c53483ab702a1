"""Figures 1 and 3 of the SIMS paper on handwritten digits, from the results of experiments/digits_sims.yaml.

FD is of the features of a classifier trained on the same real images, between n samples and the real training images. The curve
of every replicate is drawn from the same noise at all omega; bands are of independent trainings.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.averages import averages, configuration, only, picture, read, swept
from figures.guidance import BUDGET, OMEGA, thousand
from figures.style import COLOURS, MARKERS, ORDERED, WIDTH, band, decades, note, reference
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

METRICS = ["fd", "fd_floor", "fd_equal", "kid", "kid_floor", "precision", "recall"]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics drawn and told, of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """FD and KID against omega at every budget of the auxiliary; FD against the budget; samples of base, auxiliary and SIMS."""
    table = kept(read(results, [BUDGET, OMEGA], ["fd", "kid"])).astype({"value": float})
    settings, mean = configuration(results), averages(table, dict.fromkeys(METRICS, 1))
    budgets, omegas = sorted(table[BUDGET].unique()), sorted(table[OMEGA].unique())
    if not {-1, 0} <= set(omegas) or len(omegas) < 3:
        raise RunError(f"{results} lacks omega = 0, omega = -1 or any other; draw a run whose sweep holds them")
    best = gain(table, budgets, omegas)
    shown = {"base": 0.0, "auxiliary alone": -1.0, f"SIMS, ω = {best[1]:g}": best[1]}
    pictures = {
        name: picture(results, f"budget={best[0]:g},omega={omega:g},chunk=0,generation=1") for name, omega in shown.items()
    }
    rows = 1 if any(seen is None for seen in pictures.values()) else 2
    figure = Figure(figsize=(WIDTH, 3.4 if rows == 1 else 4.9), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False, height_ratios=[2.3, 1][:rows])[0]
    for letter, axes, (name, seen) in zip("def", figure.axes[3:], pictures.items(), strict=False):
        _draw_samples(axes, seen, f"({letter}) {name[0].upper()}{name[1:]}")
    for axes, metric in zip(panels, ("fd", "kid", "fd"), strict=True):
        base = swept(mean, OMEGA, metric, {BUDGET: budgets[0]}).mean[omegas.index(0)]
        reference(axes, float(base), "base", 1.0)
    for axes, metric in ((panels[0], "fd"), (panels[1], "kid")):
        _draw_omega(axes, mean, metric, budgets)
    _draw_budget(panels[2], mean, [omega for omega in omegas if omega != 0])
    decades(panels[0])
    panels[0].set_ylim(None, 1.6 * panels[0].get_ylim()[1])
    panels[0].set(ylabel="FD  (squared unit of the features)", title="(a) Fréchet distance")
    panels[1].set(ylabel="KID", title="(b) Kernel distance")
    runs, network = table["replicate"].nunique(), settings["algorithm"]["algorithm"]
    n = settings["track"]["image_quality"]["n"]
    floor, equal = (told(table, metric, budgets[0]) for metric in ("fd_floor", "fd_equal"))
    note(
        figure,
        f"Curves and bands: mean of {runs} trainings ± 1 standard error; {n:,} samples each, the same noise at all ω. ω = −1: "
        f"the auxiliary\nalone. The base saw {thousand(network['budget'])} thousand images. Least FD: ω = {best[1]:g}, budget "
        f"{thousand(best[0])} thousand, {best[2]:.2f} ± {best[3]:.2f} below the base (paired).\n"
        f"Held-out real images have FD {floor}, as many of the base's {equal}. Samples: from the same noise.",
    )
    return figure


def gain(table: pd.DataFrame, budgets: list[float], omegas: list[float]) -> tuple[float, float, float, float]:
    """(budget, omega, mean, error): where the mean FD is least, and by how much less than the base's, paired by replicate."""
    values = {(b, w): curves(table, "fd", {BUDGET: b, OMEGA: w})[:, -1] for b in budgets for w in omegas}
    at = min(values, key=lambda point: values[point].mean())
    return *at, *mean_and_error(values[at[0], 0] - values[at])


def told(table: pd.DataFrame, metric: str, budget: float) -> str:
    """The mean of a metric of the base; where there are as many real images as samples, FD stands for FD of equal size."""
    name = metric if (table["metric"] == metric).any() else "fd"
    return f"{mean_and_error(curves(table, name, {BUDGET: budget, OMEGA: 0})[:, -1])[0]:.2f}"


def _draw_omega(axes: Axes, mean: pd.DataFrame, metric: str, budgets: list[float]) -> None:
    for number, budget in enumerate(budgets):
        at = swept(mean, OMEGA, metric, {BUDGET: budget})
        band(axes, at, color=COLOURS[[0, 2, 1][number % 3]], marker=MARKERS[number], markersize=3.5, label=thousand(budget))
    axes.set(xlabel=r"guidance $\omega$")
    axes.legend(title="budget (thousand images)", loc="upper center", alignment="left")


def _draw_samples(axes: Axes, seen: Any, title: str) -> None:
    half = seen.shape[0] // 2 + 1
    axes.imshow(seen[:half], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.axis("off")


def _draw_budget(axes: Axes, mean: pd.DataFrame, omegas: list[float]) -> None:
    for number, omega in enumerate(omegas):
        at = swept(mean, BUDGET, "fd", {OMEGA: omega})
        alone = omega == -1
        look = {"color": "0.5" if alone else ORDERED[min(number, 4)], "marker": MARKERS[number % 6], "markersize": 3.5}
        band(axes, at, label="auxiliary alone" if alone else f"ω = {omega:g}", **look)
    axes.set(xlabel="budget  (thousand images)", ylabel="FD  (squared unit of the features)", xscale="log")
    axes.set_title("(c) Longer tuning")
    axes.set_xticks(at.x, [thousand(budget) for budget in np.unique(at.x)])
    axes.xaxis.set_minor_locator(NullLocator())
    decades(axes)
    axes.set_ylim(None, 2.2 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=2, columnspacing=0.8, handlelength=1.4)
