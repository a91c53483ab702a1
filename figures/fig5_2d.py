"""Figure 5 of the SIMS paper in the plane, from the results of experiments/fig5_2d.yaml.

ST is standard training (omega = 0) and SIMS Algorithm 1; P has |D_p| polluting points among the real ones, I has none. Dashed
is the closed form of `figures.guidance` for data that holds a share f = |D_p| / (n_r + |D_p|) of a sampler of log bias b,

    V = 1 - f + f exp(b),

at the means of eta and b that the run measured. omega = 1 / eta takes the sampler's bias away and leaves V, the data's own.
What takes both away is

    omega_P = (1 + ln V / b) / eta,

of which the nearest omega of the sweep is the third curve: it knows the size of the pollution, and no distance.
"""

from collections.abc import Sequence
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
    if 0 not in omegas or 0 not in sizes or len(omegas) < 2:
        raise RunError(f"{results} lacks omega = 0, a second omega or no pollution; draw a run whose sweep has them")
    settings, runs = configuration(results), table["replicate"].nunique()
    mean = averages(table, dict.fromkeys(METRICS, 1))
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ours = adapted(settings, mean, omegas[1:])
    chosen, most = ", ".join(f"{omega:g}" for omega in ours), []
    for number, (name, of) in enumerate(
        [("ST", [0.0] * len(sizes)), (f"SIMS, ω = {omegas[1]:g}", [omegas[1]] * len(sizes)), ("SIMS, ω for $D_p$", ours)]
    ):
        look = {"color": COLOURS[[3, 0, 2][number]], "marker": MARKERS[number], "markersize": 4}
        rows = table[table["metric"] == "w2_moments"]
        w2 = np.column_stack(
            [
                rows[(rows[POLLUTION] == size) & (rows[OMEGA] == omega)].sort_values("replicate")["value"]
                for size, omega in zip(sizes, of, strict=True)
            ]
        )
        at = Sweep(np.array(sizes, dtype=float), *np.array([mean_and_error(column) for column in w2.T]).T)
        if number < 2:
            _draw_ideal(left, at, look["color"])
        band(left, at, label=name, **look)
        left.plot(at.x, expected(settings, mean, of), **THEORY, label="closed form" if number == 2 else None)
        band(right, Sweep(at.x, *np.array([mean_and_error(added) for added in (w2 - w2[:, :1]).T]).T), label=name, **look)
        times, error = ratio(w2[:, -1:], w2[:, :1])
        most.append(f"{times[0]:.2f} ± {error[0]:.2f}")
    left.set(ylabel=DISTANCE, title="(a) Second generation, polluted and not")
    left.legend(loc="upper left", ncols=2, columnspacing=1.2)
    left.set_ylim(0, 1.3 * left.get_ylim()[1])
    reference(right, 0.0)
    right.set(ylabel=r"$W_2$(P) − $W_2$(I)  (units of the points)", title="(b) What the pollution adds")
    right.legend(loc="upper left")
    for axes in (left, right):
        axes.set(xlabel=rf"polluting points $|D_p|$, beside {settings['mix']['n_real'][-1]:,} real ones")
    note(
        figure,
        f"Curves and bands: mean of {runs} replicates ± 1 standard error. ST: standard training, ω = 0. Dotted: without "
        f"pollution (I).\nω for $D_p$: of the sweep, the nearest to what the closed form asks for ({chosen}). "
        "Closed form: n = ∞, η and bias\nof the sampler as measured. "
        f"At $|D_p|$ = {sizes[-1]:,} the distance is {most[0]}, {most[1]} and {most[2]} times\nthat without pollution.",
    )
    return figure


def adapted(settings: dict[str, Any], mean: pd.DataFrame, omegas: Sequence[float]) -> list[float]:
    """The omega of the sweep nearest to omega_P at every pollution."""
    polluted, eta, bias = (swept(mean, POLLUTION, metric, {OMEGA: omegas[0]}) for metric in METRICS)
    wanted = (1 + np.log(_fitted(settings, polluted.x, bias.mean[0])) / bias.mean[0]) / eta.mean[0]
    return [float(min(omegas, key=lambda omega: abs(omega - want))) for want in wanted]


def expected(settings: dict[str, Any], mean: pd.DataFrame, omegas: Sequence[float]) -> Array:
    """W_2 in closed form at every pollution of the sweep; the polluting points come of a model of the unpolluted data."""
    polluted, eta, bias = (swept(mean, POLLUTION, metric, {OMEGA: 0.0}) for metric in METRICS)
    return closed_form(settings, _fitted(settings, polluted.x, bias.mean[0]), eta.mean, bias.mean, np.array(omegas))


def _fitted(settings: dict[str, Any], sizes: Array, bias: float) -> Array:
    f = sizes / (sizes + settings["mix"]["n_real"][-1])
    return np.asarray(1 - f + f * np.exp(bias))


def _draw_ideal(axes: Axes, at: Sweep, colour: Any) -> None:
    mean, error = at.mean[0], at.error[0]
    axes.axhline(mean, color=colour, linewidth=1, linestyle=(0, (1, 1.5)), zorder=1)
    axes.axhspan(mean - error, mean + error, color=colour, alpha=0.12, linewidth=0)
