"""Class weights and speed-up at a tenth of handwritten digits, from the results of experiments/digits_reweighting.yaml.

Seconds are those of the curators, measured in every fit, and of the training at the rate of all fits of the run together: the
cost of an image is the same whatever was kept. The speed-up of a method to an FD that all data reach is the ratio of the two
times, with the curve of each replicate interpolated in the logarithms; a method that does not come so far has none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from figures.averages import configuration, only, read
from figures.style import COLOURS, MARKERS, WIDTH, note
from selfloop.measure import Array
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

CURATORS, BUDGET = "algorithm.curators", "algorithm.algorithm.budget"
ALL, BEFORE, AFTER, FIRST = "all data", "a tenth", "a tenth, weights after", "a tenth, weights before"
CLASSES = 10
BESIDE = "curation.json"


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """FD of all classes and of each, precision, recall and novelty, of every replicate."""
    names = ["fd", "fd_floor", "precision", "recall", "novelty", "novelty_real", *(f"fd_class.{c}" for c in range(CLASSES))]
    return only(table, names)


def beside(results: Path) -> dict[str, Any]:
    """File -> what the shelves of the fits hold: seconds of curators and fit, class weights of every round if there are any.

    Raises RunError where the run keeps none of it.
    """
    if (results / BESIDE).exists():
        return {BESIDE: json.loads((results / BESIDE).read_text())}
    table = read(results, [CURATORS, BUDGET], ["fd"])
    found: list[dict[str, Any]] = []
    for name, budget in table[[CURATORS, BUDGET]].drop_duplicates().itertuples(index=False):
        pattern = f"snapshots/curators={name.replace(' ', '_')},budget={budget:g}-*/*/generation-1/timings.json"
        for timings in sorted(results.glob(pattern)):
            weights = [json.loads(file.read_text()) for file in sorted(timings.parent.rglob("class_weights.json"))]
            fit = {"curators": name, "budget": budget, "seconds": json.loads(timings.read_text())}
            found.append(fit | ({"weights": weights[0]} if weights else {}))
    if not found:
        raise RunError(f"{results} keeps no timings of its fits under snapshots/; run the experiment anew")
    return {BESIDE: found}


def seconds(fits: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Seconds a million images of training, the median of all fits; and those of the curators, by name, their median."""
    rate = float(np.median([fit["seconds"]["fit"] / fit["budget"] for fit in fits]))
    names = dict.fromkeys(fit["curators"] for fit in fits)
    spent = {
        name: [sum(fit["seconds"].values()) - fit["seconds"]["fit"] for fit in fits if fit["curators"] == name]
        for name in names
    }
    return rate, {name: float(np.median(of)) for name, of in spent.items()}


def speed_up(table: pd.DataFrame, fits: list[dict[str, Any]], name: str, budget: float) -> Array:
    """Of every replicate: seconds of all data at a budget over those to the same FD, nan where it is not reached."""
    rate, spent = seconds(fits)
    budgets = np.array(sorted(table[BUDGET].unique()))
    goal = curves(table, "fd", {CURATORS: ALL, BUDGET: budget})[:, -1]
    found = np.stack([curves(table, "fd", {CURATORS: name, BUDGET: b})[:, -1] for b in budgets], axis=1)
    times = [_first(np.log(budgets), np.log(one), np.log(aim)) for one, aim in zip(found, goal, strict=True)]
    return rate * budget / (rate * np.exp(times) + spent[name])


def _first(x: Array, y: Array, goal: float) -> float:
    """Where a line through points first comes down to the goal; nan if nowhere, the first point if it is there already."""
    if y[0] <= goal:
        return float(x[0])
    for left, right in zip(range(len(x) - 1), range(1, len(x)), strict=True):
        if y[right] <= goal:
            return float(x[left] + (x[right] - x[left]) * (y[left] - goal) / (y[left] - y[right]))
    return float("nan")


def draw(results: Path) -> Figure:
    """FD class by class, the class weights and their course, FD against the seconds of curation and training."""
    table = kept(read(results, [CURATORS, BUDGET], ["fd", "fd_class.0"])).astype({"value": float})
    settings, fits = configuration(results), beside(results)[BESIDE]
    longest, names = table[BUDGET].max(), list(table[CURATORS].unique())
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, 2)
    for place, name in enumerate((ALL, BEFORE, AFTER, FIRST)):
        found = [curves(table, f"fd_class.{c}", {CURATORS: name, BUDGET: longest})[:, -1] for c in range(CLASSES)]
        _by_class(panels[0, 0], found, names.index(name), place, name)
    weighed = [fit for fit in fits if "weights" in fit and fit["budget"] == longest]
    for place, name in enumerate((AFTER, FIRST)):
        means = CLASSES * np.array([fit["weights"]["mean"] for fit in weighed if fit["curators"] == name])
        _by_class(panels[0, 1], list(means.T), names.index(name), place, name)
    panels[0, 1].axhline(1, color="0.6", linewidth=0.8)
    course = next(fit["weights"] for fit in weighed if fit["curators"] == AFTER)
    for c, alpha in enumerate(CLASSES * np.array(course["alpha"]).T):
        panels[1, 0].plot(alpha, color=COLOURS[c], linewidth=1)
        panels[1, 0].annotate(
            str(c), (len(alpha) - 1, alpha[-1]), (3, 0), textcoords="offset points", color=COLOURS[c], va="center"
        )
    _seconds(panels[1, 1], table, fits, names)
    panels[0, 0].set(
        xlabel="digit", ylabel="FD of the class  (squared unit)", title="(a) Class by class", xticks=range(CLASSES)
    )
    panels[0, 1].set(xlabel="digit", ylabel="weight, mean of the rounds", title="(b) Class weights", xticks=range(CLASSES))
    panels[1, 0].set(xlabel="round", ylabel="weight", title="(c) Their course")
    panels[1, 1].set(xlabel="curation and training  (s)", ylabel="FD  (squared unit)", title="(d) What it costs")
    panels[0, 0].legend(loc="upper right")
    panels[1, 1].legend(loc="lower left", borderaxespad=0)
    n, runs = settings["track"]["image_quality"]["n"], table["replicate"].nunique()
    effective = np.mean([fit["weights"]["effective"][-1] for fit in weighed if fit["curators"] == AFTER])
    note(
        figure,
        f"Points: mean of {runs} trainings ± 1 standard error; {n:,} samples each. (a), (b) The longest training. (c) "
        f"One training,\nweights after pruning; {effective:.1f} effective classes at the end. (d) Seconds of curators, and of "
        "training at the rate of all fits.",
    )
    return figure


def _by_class(axes: Axes, found: list[Array], colour: int, place: int, name: str) -> None:
    means, errors = zip(*map(mean_and_error, found), strict=True)
    look: Mapping[str, Any] = {"color": COLOURS[colour], "marker": MARKERS[colour], "markersize": 3.5, "linestyle": ""}
    axes.errorbar(np.arange(len(found)) + 0.15 * (place - 1.5), means, errors, linewidth=1, label=name, **look)


def _seconds(axes: Axes, table: pd.DataFrame, fits: list[dict[str, Any]], names: list[str]) -> None:
    rate, spent = seconds(fits)
    budgets = np.array(sorted(table[BUDGET].unique()))
    for number, name in enumerate(names):
        found = [mean_and_error(curves(table, "fd", {CURATORS: name, BUDGET: budget})[:, -1]) for budget in budgets]
        means, errors = zip(*found, strict=True)
        look: Mapping[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3.5}
        axes.errorbar(rate * budgets + spent[name], means, errors, linewidth=1, label=name, **look)
    axes.set(xscale="log", yscale="log")
    for axis, ticks in ((axes.xaxis, (20, 50, 100, 200, 500)), (axes.yaxis, (1, 2, 5, 10, 20, 50))):
        low, high = axis.get_view_interval()
        shown = [tick for tick in ticks if low <= tick <= high]
        axis.set_ticks(shown, [str(tick) for tick in shown])
        axis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** 0.7, high)
