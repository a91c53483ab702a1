"""A loop that runs away from over-guidance, from the results of experiments/runaway.yaml.

A loop with a share f of its last samples multiplies a variance that is too large by f exp(b (1 - omega eta)) a generation, with
the log bias b of the sampler and the eta measured in each replicate (`selfloop.theory.stable_omega`). At 1 and above, real data
cannot pull it back.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from figures.averages import averages, configuration, course, only, read
from figures.guidance import DISTANCE, OMEGA
from figures.style import COLOURS, MARKERS, WIDTH, band, decades, note, reference
from selfloop.measure import Array
from selfloop.report import curves

METRICS = ["w2_moments", "omega", "eta", "log_bias"]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2 and what was measured of the guidance, of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """W_2 of every replicate at the largest omega beside the means of the others, and the growth factor of every replicate."""
    table = kept(read(results, [OMEGA], METRICS)).astype({"value": float})
    settings = configuration(results)
    omegas = sorted(table[OMEGA].unique())
    most = omegas[-1]
    n_real = settings["mix"]["n_real"][-1]
    n_synthetic = (settings["mix"]["n_synthetic"] or [n_real])[-1]
    found = {name: curves(table, name, {OMEGA: most}) for name in METRICS}
    share = n_synthetic / (n_real + n_synthetic)
    gain = growth(found, share)
    lost = np.nanmax(gain, axis=1) >= 1
    mean = averages(table, dict.fromkeys(METRICS, 1))
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, omega in enumerate(omegas[:-1]):
        look = {"color": ["0.45", COLOURS[0]][number % 2], "marker": MARKERS[number], "markersize": 3.5}
        band(left, course(mean, "w2_moments", {OMEGA: omega}), label=rf"$\omega$ = {omega:g}, mean", **look)
    for axes, values in ((left, found["w2_moments"]), (right, gain)):
        _draw_replicates(axes, values, gain, lost, rf"$\omega$ = {most:g}")
        decades(axes)
        axes.set(xlabel="generation $t$", xlim=(0.5, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    left.set(ylabel=DISTANCE, title=rf"(a) Runaway loops at $\omega$ = {most:g}: {lost.sum()} of {len(lost)}")
    left.legend(loc="upper left")
    reference(right, 1.0, "above 1 real data cannot hold it", x=0.57)
    right.set_ylabel(r"growth factor $f\;\exp(b\,(1 - \omega\eta))$")
    right.set_title(r"(b) Far out $\eta$ grows, and the factor with it")
    note(
        figure,
        f"Means of {len(gain)} replicates, bands ± 1 standard error; without markers: single replicates. Star: the factor of "
        f"(b) first reaches 1.\n$f$ = {share:g}: share of the last samples in the data; $b$: what the sampler adds to the log "
        "variance, $\\eta$: how far the auxiliary went,\nboth measured in each replicate and generation.",
    )
    return figure


def _draw_replicates(axes: Axes, values: Array, gain: Array, lost: NDArray[np.bool_], name: str) -> None:
    t = np.arange(1, values.shape[1] + 1)
    words = {False: f"{name}, held", True: f"{name}, runs away"}
    for curve, factor, away in zip(values, gain, lost, strict=True):
        look = {"color": COLOURS[3] if away else COLOURS[1], "linewidth": 1.6 if away else 0.8, "alpha": 1 if away else 0.75}
        axes.plot(t, curve, label=words.pop(bool(away), None), zorder=3 if away else 1, **look)
        if away:
            first = np.flatnonzero(factor >= 1)[0]
            axes.plot(t[first], curve[first], color=COLOURS[3], marker="*", markersize=9, markeredgecolor="white", zorder=4)


def growth(found: dict[str, Array], share: float) -> Array:
    """f exp(b (1 - omega eta)) of every replicate and generation (R, T)."""
    return np.asarray(share * np.exp(found["log_bias"] * (1 - found["omega"] * found["eta"])))
