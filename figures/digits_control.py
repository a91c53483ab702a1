"""Class shares of digits moved to a target by guidance, from the results of experiments/digits_control.yaml."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.averages import configuration, only, read
from figures.style import COLOURS, WIDTH, note
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

RUN, BASE = "algorithm", "base"


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """Shares, their distance to the target, and FD to the real images weighted to it, of every replicate."""
    shares = [metric for metric in table["metric"].unique() if str(metric).startswith("class_share.")]
    return only(table, [*shares, "class_tv", "fd"])


def draw(results: Path) -> Figure:
    """Shares of the classes beside the target; total variation and FD to the re-weighted real images, before and after."""
    table = kept(read(results, [RUN], ["class_tv", "fd"])).astype({"value": float})
    settings, runs = configuration(results), list(table[RUN].unique())
    if BASE not in runs:
        raise RunError(f"{results} has no run named {BASE!r}, the network without control; draw a run whose sweep holds it")
    target = np.array(settings["track"]["image_quality"]["target"])
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    shares, distance, quality = figure.subplots(1, 3, width_ratios=[2.2, 1, 1])
    classes = np.arange(len(target))
    width = 0.8 / len(runs)
    for number, name in enumerate(runs):
        seen = np.array([mean_and_error(curves(table, f"class_share.{c}", {RUN: name})[:, -1]) for c in classes])
        colour = "0.6" if name == BASE else COLOURS[number - 1]
        place = classes + (number - (len(runs) - 1) / 2) * width
        shares.bar(place, seen[:, 0], width, yerr=seen[:, 1], color=colour, error_kw={"linewidth": 0.8}, label=label(name))
        for axes, metric in ((distance, "class_tv"), (quality, "fd")):
            mean, error = mean_and_error(curves(table, metric, {RUN: name})[:, -1])
            axes.bar(number, mean, 0.7, yerr=error, color=colour, error_kw={"linewidth": 0.8})
    shares.hlines(target, classes - 0.45, classes + 0.45, color="black", linewidth=1.4, label="target")
    shares.set(xlabel="class", ylabel="share", title="(a) Shares", xticks=classes)
    shares.set_ylim(0, 1.35 * shares.get_ylim()[1])
    shares.legend(loc="upper right", ncols=2)
    distance.set(ylabel="total variation to the target", title="(b) Distance")
    quality.set(ylabel="FD to the re-weighted real images", title="(c) Quality")
    for axes in (distance, quality):
        axes.set_xticks(range(len(runs)), [label(name) for name in runs], rotation=20)
        axes.set_xlabel("training")
    count, n = table["replicate"].nunique(), settings["track"]["image_quality"]["n"]
    note(
        figure,
        f"Bars: mean of {count} trainings ± 1 standard error; {n:,} samples each, named by a classifier of the real images.\n"
        "The network knows no labels; the auxiliary was tuned on its own samples, weighted by their classes.",
    )
    return figure


def label(name: str) -> str:
    """A run's name with its symbol."""
    return str(name).replace("omega ", "ω = ")
