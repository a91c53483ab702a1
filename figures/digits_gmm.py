"""Gaussian mixtures trained on their own handwritten digits, from the results of experiments/digits_gmm.yaml."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.averages import averages, configuration, course, only, read
from figures.style import COLOURS, MARKERS, WIDTH, band, label_ends, note, reference

KIND = "mix.kind"
LOOPS = {"fully_synthetic": "fully synthetic", "augment": "augment"}
DIGITS = [f"class_share.{digit}" for digit in range(10)]
METRICS = ["frechet", "frechet_floor", "class_tv", *DIGITS]
SHADES = sns.color_palette("colorblind", 10)


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """Distances and class shares of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """Frechet distance and total variation of the classes over generations; their shares in one loop of each type."""
    table = kept(read(results, [KIND], METRICS)).astype({"value": float})
    settings: dict[str, Any] = configuration(results)
    mean = averages(table, {name: 1 for name in METRICS})
    drawn = settings["track"]["class_shares"]["n"]
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    panels = figure.subplot_mosaic("AB;CD")
    for name, metric in (("A", "frechet"), ("B", "class_tv")):
        ends = []
        for number, kind in enumerate(LOOPS):
            at = course(mean, metric, {KIND: kind})
            band(panels[name], at, color=COLOURS[[3, 0][number]], marker=MARKERS[number], markersize=3.5)
            ends.append(float(at.mean[-1]))
        panels[name].set(xlabel="generation $t$", ylim=(0, None), xlim=(0.5, None), xticks=_ticks(at.generation))
        label_ends(panels[name], ends, list(LOOPS.values()), [COLOURS[3], COLOURS[0]])
    floor = float(course(mean, "frechet_floor", {KIND: "augment"}).mean.mean())
    reference(panels["A"], floor, "floor: real against other real digits", va="top")
    panels["A"].set(ylabel="Fréchet distance  (squared pixel units)", title="(a) Synthetic data alone: the distance grows")
    chance = 10 * 0.5 * np.sqrt(2 / np.pi * 0.1 * 0.9 / drawn)
    reference(panels["B"], chance, f"chance: {drawn} fair draws", va="top")
    panels["B"].set(ylabel="total variation of class shares", title="(b) ... and the classes drift")
    for name, kind in (("C", "augment"), ("D", "fully_synthetic")):
        _draw_shares(panels[name], table[table[KIND] == kind])
    panels["C"].set_title("(c) Augment: the classes keep their shares")
    panels["D"].set_title("(d) Fully synthetic: the shares wander")
    runs = table["replicate"].nunique()
    note(
        figure,
        f"Curves and bands in (a), (b): mean of {runs} loops ± 1 standard error; "
        f"{settings['track']['frechet']['n']} digits a side in (a), {drawn} in (b).\n"
        f"(c), (d): the first of the {runs} loops, the digits named at the right.",
    )
    return figure


def _ticks(generation: Any) -> list[int]:
    last = int(generation[-1])
    return [1, *range(5, last + 1, 5)] if last >= 5 else list(range(1, last + 1))


def _draw_shares(axes: Axes, table: pd.DataFrame) -> None:
    rows = table[(table["replicate"] == table["replicate"].min()) & table["metric"].isin(DIGITS)]
    wide = rows.assign(metric=rows["metric"].astype(str)).pivot(index="generation", columns="metric", values="value")[DIGITS]
    t, shares = wide.index.to_numpy(), wide.to_numpy().T
    axes.stackplot(t, shares, colors=SHADES, edgecolor="white", linewidth=0.8, alpha=0.85)
    tops = np.cumsum(shares[:, -1])
    axes.set(xlabel="generation $t$", ylabel="share of each class", xlim=(t[0], t[-1]), ylim=(0, 1), xticks=_ticks(t))
    for digit, height in enumerate(tops - shares[:, -1] / 2):
        axes.annotate(
            f"{digit}", (1.0, height), (4, 0), xycoords="axes fraction", textcoords="offset points", va="center", fontsize=8
        )
