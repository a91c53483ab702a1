"""Adapters: a network trained elsewhere, by its own conventions, as a denoiser D(x; sigma).

    D(x; sigma) = c_skip x + c_out network(x_t, t),    x_t = scale(sigma) x,  t = time(sigma)

What the network predicts rules c_skip and c_out (`selfloop.diffusion.precondition`, sigma_data = 1); the schedule it was
trained with rules the rest:

    schedule    x_t                                   sigma(t)                    scale              time(sigma)
    Ddpm        abar^(1/2) x_0 + (1 - abar)^(1/2) z   ((1 - abar) / abar)^(1/2)   (1 + sigma^2)^-1/2   inverse of sigma(t)
    Flow        (1 - t) x_0 + t z                     t / (1 - t)                 1 / (1 + sigma)    sigma / (1 + sigma)

    z the noise, x = x_0 + sigma z = x_t / scale. Predictions of z (epsilon), of x_0 (sample), of (z - sigma x_0) / (1 +
    sigma^2)^(1/2) (v) and of z - x_0 (velocity) mean the same with either schedule.

Ddpm counts t = 0 .. T - 1, as its table `abar` does. Between two entries log sigma is linear in t, so that a sampler may stop
at any level; a network that knows whole t only rounds it in a closure. Outside the table there is nothing the network was
trained on, and time(sigma) refuses: sigma_min and sigma_max of the sampler, churn included, must lie within sigma(0) and
sigma(T - 1).

Samplers in these variables are samplers in ours: a DDPM step from t to t - 1 is an `ancestral` step, a DDIM step and an Euler
step in the time of flow matching are `euler` steps, exactly. Labels, and time that runs the other way, pass through a closure:

    adapted(lambda x, t: -network(x, 1 - t, labels), "velocity", Flow())       x_t = t x_0 + (1 - t) z, predicts x_0 - z
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from selfloop.diffusion.precondition import PredictionName, coefficients
from selfloop.diffusion.sample import Denoise
from selfloop.measure import Array


class Schedule(Protocol):
    """How a network's own variables x_t and t follow from x and sigma; all take a number or an array."""

    def sigma(self, t: Any) -> Any:
        """Noise level of time t, as training draws it."""
        ...

    def time(self, sigma: Any) -> Any:
        """Time of a noise level."""
        ...

    def scale(self, sigma: Any) -> Any:
        """x_t / x."""
        ...


@dataclass(frozen=True)
class Ddpm:
    """The variance-preserving schedule of a table abar (T,), T >= 2, falling within (0, 1); Ho et al. (2020).

    Raises ValueError for another table.
    """

    abar: Array

    def __post_init__(self) -> None:
        a = np.asarray(self.abar, dtype=float)
        if a.ndim != 1 or len(a) < 2 or not (np.diff(a) < 0).all() or not (a[0] < 1 and a[-1] > 0):
            raise ValueError(f"abar must be a vector (T,), T >= 2, that falls within (0, 1), got shape {a.shape}: {a}")
        object.__setattr__(self, "abar", a)

    @cached_property
    def _log_sigmas(self) -> Array:
        return np.asarray(0.5 * (np.log1p(-self.abar) - np.log(self.abar)))

    def sigma(self, t: Any) -> Any:
        """exp of log sigma, linear between whole t. Raises ValueError outside [0, T - 1]."""
        index = np.arange(len(self.abar))
        return _plain(np.exp(np.interp(_inside(t, 0.0, float(index[-1]), "t"), index, self._log_sigmas)))

    def time(self, sigma: Any) -> Any:
        """t in [0, T - 1], a real number. Raises ValueError outside [sigma(0), sigma(T - 1)]."""
        logs = self._log_sigmas
        within = _inside(sigma, float(np.exp(logs[0])), float(np.exp(logs[-1])), "sigma")
        return _plain(np.interp(np.log(within), logs, np.arange(len(logs))))

    def scale(self, sigma: Any) -> Any:
        """(1 + sigma^2)^(-1/2) = abar^(1/2)."""
        return (1 + sigma**2) ** -0.5


@dataclass(frozen=True)
class Flow:
    """The schedule of flow matching, t from 0 (data) to 1 (noise), a time for every sigma; Lipman et al. (2023)."""

    def sigma(self, t: Any) -> Any:
        """t / (1 - t)."""
        return t / (1 - t)

    def time(self, sigma: Any) -> Any:
        """sigma / (1 + sigma)."""
        return sigma / (1 + sigma)

    def scale(self, sigma: Any) -> Any:
        """1 / (1 + sigma) = 1 - t."""
        return 1 / (1 + sigma)


def linear_abar(steps: int = 1000, low: float = 1e-4, high: float = 0.02) -> Array:
    """abar_t = prod_(s <= t) (1 - beta_s), beta from low to high in equal steps. Source: Ho et al. (2020), section 4."""
    return np.asarray(np.cumprod(1 - np.linspace(low, high, steps)))


def scaled_linear_abar(steps: int = 1000, low: float = 0.00085, high: float = 0.012) -> Array:
    """The same with beta^(1/2) in equal steps. Source: Rombach et al. (2022), latent diffusion."""
    return np.asarray(np.cumprod(1 - np.linspace(low**0.5, high**0.5, steps) ** 2))


def cosine_abar(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> Array:
    """beta_t = 1 - f(t + 1) / f(t), at most `largest`, f(t) = cos^2((t / T + offset) / (1 + offset) pi / 2).

    So abar_t = f(t + 1) / f(0) but for the last few. Source: Nichol & Dhariwal (2021), equation 17.
    """
    f = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.asarray(np.cumprod(np.maximum(f[1:] / f[:-1], 1 - largest)))


def adapted(network: Callable[[Any, Any], Any], prediction: PredictionName, schedule: Schedule) -> Denoise:
    """D(x; sigma) of network(x_t, t), which takes and gives arrays or tensors of the shape of x and a number t.

    Raises ValueError for an unknown prediction here, and from D for a level outside the schedule.
    """
    coefficients(prediction, 1.0)

    def denoise(x: Any, sigma: float) -> Any:
        c_skip, c_out, _ = coefficients(prediction, sigma)
        return c_skip * x + c_out * network(schedule.scale(sigma) * x, schedule.time(sigma))

    return denoise


def _inside(value: Any, low: float, high: float, name: str) -> Array:
    """value, moved onto an end of [low, high] from which only rounding parts it."""
    given = np.asarray(value, dtype=float)
    held = np.clip(given, low, high)
    outside = ~(np.abs(given - held) <= 1e-9 * held)
    if outside.any():
        raise ValueError(
            f"{name} must lie in [{low:.6g}, {high:.6g}], the range of the schedule, got {given[outside].flat[0]:.6g}; "
            "set sigma_min and sigma_max of the sampler, churn included, inside the schedule"
        )
    return np.asarray(held)


def _plain(value: Array) -> Any:
    return float(value) if value.ndim == 0 else value
