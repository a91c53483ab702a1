"""Figure 5 of the SIMS paper in the plane, from the results of experiments/fig5_2d.yaml.

ST is standard training (omega = 0) and SIMS Algorithm 1; P has |D_p| polluting points among the real ones, I has none. Dashed
is the closed form of `figures.guidance` for data that holds a share f = |D_p| / (n_r + |D_p|) of a sampler of log bias b,

    V = 1 - f + f exp(b),

at the means of eta and b that the run measured: omega = 1 / eta takes the sampler's bias away and leaves V, the data's own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.averages import Sweep, averages, configuration, only, ratio, read, swept
from figures.guidance import DISTANCE, OMEGA, closed_form
from figures.style import COLOURS, MARKERS, THEORY, WIDTH, band, note, reference
from selfloop.measure import Array
from selfloop.report import mean_and_error
from selfloop.results import RunError

POLLUTION = "mix.pollution"
METRICS = ["w2_moments", "eta", "log_bias"]


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2, eta and the sampler's bias of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """W_2 of the second generation against the pollution for standard training and SIMS, and what the pollution adds."""
    table = kept(read(results, [POLLUTION, OMEGA], METRICS)).astype({"value": float, POLLUTION: int})
    omegas, sizes = sorted(table[OMEGA].unique()), sorted(table[POLLUTION].unique())
    if 0 not in omegas or 0 not in sizes or len(omegas) != 2:
        raise RunError(f"{results} lacks omega = 0, a second omega or no pollution; draw a run whose sweep has them")
    settings, runs = configuration(results), table["replicate"].nunique()
    mean = averages(table, dict.fromkeys(METRICS, 1))
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    most = []
    for number, omega in enumerate(omegas):
        name = "SIMS" if omega else "ST"
        look = {"color": COLOURS[[3, 0][number]], "marker": MARKERS[number], "markersize": 4}
        at = swept(mean, POLLUTION, "w2_moments", {OMEGA: omega})
        _draw_ideal(left, at, name, look["color"])
        band(left, at, label=f"{name}-P", **look)
        left.plot(at.x, expected(settings, mean, omega), **THEORY, label="closed form" if omega else None)
        rows = table[(table["metric"] == "w2_moments") & (table[OMEGA] == omega)]
        w2 = rows.pivot(index="replicate", columns=POLLUTION, values="value").to_numpy()
        pairs = [mean_and_error(added) for added in (w2 - w2[:, :1]).T]
        band(right, Sweep(at.x, *np.array(pairs).T), label=name, **look)
        times, error = ratio(w2[:, -1:], w2[:, :1])
        most.append(f"{times[0]:.2f} ± {error[0]:.2f} times {name}-I")
    left.set(ylabel=DISTANCE, title="(a) Second generation, polluted and not")
    left.legend(loc="upper left", ncols=3, columnspacing=1.2)
    left.set_ylim(0, 1.3 * left.get_ylim()[1])
    reference(right, 0.0)
    right.set(ylabel=r"$W_2$(P) − $W_2$(I)  (units of the points)", title="(b) What the pollution adds")
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.set(xlabel=rf"polluting points $|D_p|$, beside {settings['mix']['n_real'][-1]:,} real ones")
    note(
        figure,
        f"Curves and bands: mean of {runs} replicates ± 1 standard error. ST: standard training, SIMS: ω = {omegas[1]:g}. "
        "P: polluted by samples of a\nstandard model, I: not. Closed form: n = ∞, the η and the bias of the sampler that the "
        f"run measured.\nAt $|D_p|$ = {sizes[-1]:,} the distance is {' and '.join(most)}.",
    )
    return figure


def expected(settings: dict[str, Any], mean: pd.DataFrame, omega: float) -> Array:
    """W_2 in closed form at every pollution of the sweep; the polluting points come of a model of the unpolluted data."""
    polluted, eta, bias = (swept(mean, POLLUTION, metric, {OMEGA: omega}) for metric in METRICS)
    f = polluted.x / (polluted.x + settings["mix"]["n_real"][-1])
    return closed_form(settings, 1 - f + f * np.exp(bias.mean[0]), eta.mean, bias.mean, omega)


def _draw_ideal(axes: Axes, at: Sweep, name: str, colour: Any) -> None:
    mean, error = at.mean[0], at.error[0]
    axes.axhline(mean, color=colour, linewidth=1, linestyle=(0, (1, 1.5)), label=f"{name}-I", zorder=1)
    axes.axhspan(mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
