"""Samplers: the way from noise x ~ N(0, sigma_max^2 I) to data at sigma = 0, for any denoiser D(x; sigma).

A sampler is one step, x(s) -> x(s'), s' < s, as the mean and standard deviation of a Gaussian:

    euler       x + (s' - s) d,  d = (x - D(x; s)) / s
    heun        x + (s' - s) (d + d') / 2,  d' the slope at the Euler point; Euler at s' = 0
    ancestral   x + (s_down - s) d + s_up z,  s_up^2 = s'^2 (s^2 - s'^2) / s^2,  s_down = s'^2 / s

The noise levels fall from sigma_max to sigma_min in `steps` values evenly spaced in sigma^(1 / rho), then to 0.
Source: Karras et al. (2022), Algorithm 1 and equation 5; ancestral: the posterior of DDPM in these variables.

A step is arithmetic alone, so it takes numpy arrays and torch tensors. On points it is run with noise (`sample`). For a
Gaussian D is affine in x, so every step is, and its matrix follows exactly from d + 1 probes: `law` gives the law of what N
steps draw.
"""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from selfloop.component import Count, Positive, component
from selfloop.covariance import symmetric
from selfloop.laws import Gaussian
from selfloop.measure import Array

Denoise = Callable[[Any, float], Any]


@component
class Sampler:
    """How a diffusion model draws. `exact` is the limit of infinitely many steps from sigma_max = infinity."""

    kind: Literal["exact", "euler", "heun", "ancestral"] = "exact"
    steps: Count = 18
    sigma_max: Positive = 80.0
    sigma_min: Positive = 0.002
    rho: Positive = 7.0

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must lie below sigma_max, got {self.sigma_min} and {self.sigma_max}")

    def levels(self) -> list[float]:
        """The noise levels, `steps` of them from sigma_max down to sigma_min, then 0."""
        last = max(self.steps - 1, 1)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [(high + i / last * (low - high)) ** self.rho for i in range(self.steps)] + [0.0]

    def step(self, denoise: Denoise, x: Any, s: float, s_next: float) -> tuple[Any, float]:
        """Mean and standard deviation of x(s_next) given x(s) = x; any shape of x, numpy or torch.

        Raises ValueError for `exact`, which has no steps.
        """
        if self.kind == "exact":
            raise ValueError("sampler 'exact' has no steps; choose euler, heun or ancestral")
        slope = (x - denoise(x, s)) / s
        if self.kind == "ancestral":
            up = s_next * (max(s**2 - s_next**2, 0.0)) ** 0.5 / s
            return x + (s_next**2 / s - s) * slope, up
        euler = x + (s_next - s) * slope
        if self.kind == "euler" or s_next == 0:
            return euler, 0.0
        return x + (s_next - s) * 0.5 * (slope + (euler - denoise(euler, s_next)) / s_next), 0.0


def law(denoise: Denoise, sampler: Sampler, batch: tuple[int, ...], d: int) -> Gaussian:
    """Exact law of the sampler's output when D is affine in x: x(s') = A x(s) + b + std z propagates mean and covariance.

    A and b come from d + 1 probes, the origin and the unit vectors; covariances need not commute.
    denoise takes (*batch, d + 1, d). Cost: one or two denoiser calls on d + 1 points a step.
    """
    identity = np.eye(d)
    probes = np.broadcast_to(np.vstack([np.zeros(d), identity]), (*batch, d + 1, d))
    mean = np.zeros((*batch, d))
    cov = np.broadcast_to(sampler.sigma_max**2 * identity, (*batch, d, d))
    levels = sampler.levels()
    with np.errstate(all="ignore"):
        for s, s_next in itertools.pairwise(levels):
            image, std = sampler.step(denoise, probes, s, s_next)
            offset = image[..., 0, :]
            transposed = image[..., 1:, :] - offset[..., None, :]
            mean = (mean[..., None, :] @ transposed)[..., 0, :] + offset
            cov = np.ascontiguousarray(np.swapaxes(transposed, -1, -2)) @ cov @ transposed
            if std > 0:
                cov = cov + std**2 * identity
    return Gaussian(mean, symmetric(cov))


def sample(denoise: Denoise, sampler: Sampler, shape: tuple[int, ...], rng: Generator) -> Array:
    """Points of shape (*batch, n, *event), drawn by the sampler's steps from N(0, sigma_max^2 I)."""
    levels = sampler.levels()
    x = sampler.sigma_max * rng.standard_normal(shape)
    for s, s_next in itertools.pairwise(levels):
        x, std = sampler.step(denoise, x, s, s_next)
        if std > 0:
            x = x + std * rng.standard_normal(shape)
    return np.asarray(x)
