"""Figure 5 of the SIMS paper on handwritten digits, from the results of experiments/digits_pollution.yaml.

ST is standard training (omega = 0), SIMS Algorithm 1; P has |D_p| samples of a first model among the real images, I has none.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.averages import Sweep, configuration, only, read
from figures.guidance import OMEGA
from figures.style import COLOURS, MARKERS, WIDTH, band, note, reference
from selfloop.report import curves, mean_and_error
from selfloop.results import RunError

POLLUTION = "mix.pollution"
METRICS = ["fd", "kid", "recall", "precision"]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics drawn and told, of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """FD of the second generation against the pollution for every omega, and what the pollution adds, paired by replicate."""
    table = kept(read(results, [POLLUTION, OMEGA], ["fd"])).astype({"value": float, POLLUTION: int})
    settings = configuration(results)
    omegas, sizes = sorted(table[OMEGA].unique()), sorted(table[POLLUTION].unique())
    if 0 not in omegas or 0 not in sizes or len(omegas) < 2:
        raise RunError(f"{results} lacks omega = 0, a second omega or no pollution; draw a run whose sweep has them")
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    told = []
    for number, omega in enumerate(omegas):
        fd = np.column_stack([curves(table, "fd", {POLLUTION: size, OMEGA: omega})[:, -1] for size in sizes])
        name = "ST (ω = 0)" if omega == 0 else f"SIMS, ω = {omega:g}"
        look = {"color": COLOURS[[3, 0, 2, 4][number % 4]], "marker": MARKERS[number], "markersize": 4, "label": name}
        for axes, values in ((left, fd), (right, fd - fd[:, :1])):
            mean, error = np.array([mean_and_error(column) for column in values.T]).T
            band(axes, Sweep(np.array(sizes, dtype=float), mean, error), **look)
        told.append(f"{name} {mean[-1]:+.2f} ± {error[-1]:.2f}")
    reference(right, 0.0)
    left.set(ylabel="FD  (squared unit of the features)", title="(a) Second generation")
    right.set(ylabel="FD(P) − FD(I)", title="(b) What the pollution adds")
    for axes in (left, right):
        axes.set_xlabel(f"polluting images $|D_p|$, beside {settings['mix']['n_real'][-1]:,} real ones")
        axes.legend(loc="upper left")
    runs, n = table["replicate"].nunique(), settings["track"]["image_quality"]["n"]
    note(
        figure,
        f"Curves and bands: mean of {runs} trainings ± 1 standard error; FD of {n:,} samples to the real training images, by "
        f"a classifier.\nAt |D_p| = {sizes[-1]:,} the pollution adds: {', '.join(told)}.",
    )
    return figure
