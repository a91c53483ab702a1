"""W_2 of one generation against omega, for several budgets of the auxiliary, and where 1 / eta says that it is least.

eta, how far the auxiliary went from the base toward the base's own samples, is measured in every replicate and is the same
for all omega: the auxiliary is tuned before it is used. The prediction is 1 / mean(eta), with error(eta) / mean(eta)^2.

The closed form of what a sampler of bias b and a guidance omega make of a law N(0, V S) fitted to data of N(0, S), n infinite:

    V <- V exp(b (1 - omega eta)),      W_2 = |V^(1/2) - 1| tr(S)^(1/2)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from figures.averages import swept
from figures.style import band
from selfloop.measure import Array
from selfloop.theory import Real

OMEGA, BUDGET = "algorithm.omega", "algorithm.budget"
POWERS = {"w2_moments": 1, "eta": 1}
DISTANCE = r"$W_2$ of the moments  (units of the points)"


def thousand(budget: float) -> str:
    """A budget in million samples seen, as thousands."""
    return f"{round(1000 * budget, 1):g}"


def closed_form(settings: Mapping[str, Any], fitted: Real, eta: Real, log_bias: Real, omega: Real) -> Array:
    """W_2 of what is sampled: the formulas of this module, V = fitted and S the covariance of the run's real data."""
    sampled = np.asarray(fitted * np.exp(log_bias * (1 - omega * eta)))
    return np.asarray(np.abs(np.sqrt(sampled) - 1) * np.sqrt(np.trace(settings["real"]["cov"])))


def predicted(mean: pd.DataFrame, values: Mapping[str, Any]) -> tuple[float, float]:
    """1 / mean(eta) at one budget, and its standard error."""
    eta = swept(mean, OMEGA, "eta", values)
    return 1 / float(eta.mean[0]), float(eta.error[0] / eta.mean[0] ** 2)


def draw_distance(axes: Axes, mean: pd.DataFrame, values: Mapping[str, Any], **look: Any) -> None:
    """W_2 against omega at one budget, with a band of one standard error."""
    at = swept(mean, OMEGA, "w2_moments", values)
    band(axes, at, markersize=3.5, markeredgecolor="white", markeredgewidth=0.4, **look)


def mark_predicted(axes: Axes, mean: pd.DataFrame, values: Mapping[str, Any], colour: Any, name: str = "") -> None:
    """A tick on the lower edge at omega = 1 / eta, its standard error across."""
    omega, error = predicted(mean, values)
    place = {"transform": axes.get_xaxis_transform(), "color": colour, "clip_on": False, "solid_capstyle": "butt"}
    axes.plot([omega, omega], [0, 0.09], linewidth=2, **place)
    axes.plot([omega - error, omega + error], [0.045, 0.045], linewidth=1, **place)
    if name:
        axes.annotate(
            name, (omega + error, 0.045), (3, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points", va="center",
            fontsize=7.5, color=colour,
        )  # fmt: skip
