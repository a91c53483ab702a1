"""Samplers: the way from noise x ~ N(0, sigma_max^2 I) to data at sigma = 0, for any denoiser D(x; sigma).

A sampler is one step, x(s) -> x(s'), s' < s, as the mean and standard deviation of a Gaussian:

    euler       x + (s' - s) d,  d = (x - D(x; s)) / s
    heun        x + (s' - s) (d + d') / 2,  d' the slope at the Euler point; Euler at s' = 0
    dpm         (s' / s) x + (1 - s' / s) D(x'; s''),  s'' = (s s')^1/2,  x' = (s'' / s) x + (1 - s'' / s) D(x; s); D at s' = 0
    ancestral   x + (s_down - s) d + s_up z,  s_up^2 = s'^2 (s^2 - s'^2) / s^2,  s_down = s'^2 / s

The noise levels fall from sigma_max to sigma_min in `steps` values evenly spaced in sigma^(1 / rho), then to 0. Churn raises
a level before a deterministic step: x(s) -> x(s^), s^ = s (1 + gamma), by noise alone, gamma = min(churn / steps, 2^1/2 - 1).
Source: Karras et al. (2022), Algorithms 1 and 2, equation 5; dpm: Lu et al. (2022), DPM-Solver++ 2S with r = 1/2, of order 2
as heun with about half its error on a Gaussian at equal calls; ancestral: the posterior of DDPM in these variables.

A step remembers nothing (so no multistep methods) and is arithmetic alone, for numpy arrays and torch tensors. On points it
is run with noise (`sample`). For a Gaussian D is affine in x, so every step is, and its matrix follows exactly from
d + 1 probes: `law` gives the law of what N steps draw.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from selfloop import ranks
from selfloop.component import Count, NonNegative, Positive, component
from selfloop.covariance import symmetric
from selfloop.laws import Gaussian
from selfloop.measure import Array, Measure
from selfloop.protocols import Work

Denoise = Callable[[Any, float], Any]
BLOCK = 64
"""Points that share a stream of noise."""


@component
class Sampler:
    """How a diffusion model draws. `exact` is the limit of infinitely many steps from sigma_max = infinity.

    churn: S_churn >= 0, for levels from churn_min to churn_max (all if not said), its noise scaled by churn_noise; for euler,
    heun and dpm.
    """

    kind: Literal["exact", "euler", "heun", "dpm", "ancestral"] = "exact"
    steps: Count = 18
    sigma_max: Positive = 80.0
    sigma_min: Positive = 0.002
    rho: Positive = 7.0
    churn: NonNegative = 0.0
    churn_min: NonNegative = 0.0
    churn_max: Positive | None = None
    churn_noise: Positive = 1.0

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min must lie below sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if self.churn > 0 and self.kind in ("exact", "ancestral"):
            raise ValueError(f"churn must be 0 for {self.kind}, which has noise of its own or no steps; got {self.churn:g}")
        if self.churn_max is not None and not self.churn_min < self.churn_max:
            raise ValueError(f"churn_min must lie below churn_max, got {self.churn_min} and {self.churn_max}")

    def levels(self) -> list[float]:
        """The noise levels, `steps` of them from sigma_max down to sigma_min, then 0."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        between = [(high + i / (self.steps - 1) * (low - high)) ** self.rho for i in range(1, self.steps - 1)]
        fall = [self.sigma_max, *between, self.sigma_min]
        return [*fall[: self.steps], 0.0]

    def moves(self) -> Iterator[tuple[float, float]]:
        """The pairs (s, s') of the way down; where churn raises a level, first (s, s^) and then (s^, s')."""
        gamma = min(self.churn / self.steps, 2**0.5 - 1)
        for s, s_next in itertools.pairwise(self.levels()):
            if gamma > 0 and self.churn_min <= s and (self.churn_max is None or s <= self.churn_max):
                raised = s * (1 + gamma)
                yield s, raised
                s = raised
            yield s, s_next

    def step(self, denoise: Denoise, x: Any, s: float, s_next: float) -> tuple[Any, float]:
        """Mean and standard deviation of x(s_next) given x(s) = x; any shape of x, numpy or torch.

        s_next > s adds noise: mean x, std churn_noise (s_next^2 - s^2)^1/2. Raises ValueError for `exact`, which has no steps.
        """
        if self.kind == "exact":
            raise ValueError("sampler 'exact' has no steps; choose euler, heun, dpm or ancestral")
        if s_next > s:
            return x, self.churn_noise * (s_next**2 - s**2) ** 0.5
        denoised = denoise(x, s)
        if self.kind == "dpm":
            if s_next == 0:
                return denoised, 0.0
            middle = (s * s_next) ** 0.5
            inner = middle / s * x + (1 - middle / s) * denoised
            return s_next / s * x + (1 - s_next / s) * denoise(inner, middle), 0.0
        slope = (x - denoised) / s
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
    with np.errstate(all="ignore"):
        for s, s_next in sampler.moves():
            image, std = sampler.step(denoise, probes, s, s_next)
            offset = image[..., 0, :]
            transposed = image[..., 1:, :] - offset[..., None, :]
            mean = (mean[..., None, :] @ transposed)[..., 0, :] + offset
            cov = np.ascontiguousarray(np.swapaxes(transposed, -1, -2)) @ cov @ transposed
            if std > 0:
                cov = cov + std**2 * identity
    return Gaussian(mean, symmetric(cov))


def sample(
    denoise: Denoise,
    sampler: Sampler,
    shape: tuple[int, ...],
    rng: Generator,
    axis: int = 0,
    lift: Callable[[Array], Any] = np.asarray,
    first: int = 0,
) -> Array:
    """Points of shape (*batch, n, *event), drawn by the sampler's steps from N(0, sigma_max^2 I); n is at `axis`.

    Noise belongs to blocks of 64 points: point i is the same, to rounding, whatever n is and however a sample is cut.
    lift: what makes of an array the kind that `denoise` computes with, a tensor on a GPU for example; first: the number of the
    first point, a multiple of 64, in the sample that these n are a piece of.
    """
    noise = BlockNoise(shape, axis, rng, first)
    x = lift(sampler.sigma_max * noise())
    for s, s_next in sampler.moves():
        x, std = sampler.step(denoise, x, s, s_next)
        if std > 0:
            x = x + std * lift(noise())
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x, dtype=float)


def drawn(
    model: Any, n: int, rng: Generator, labels: Any = None, sampler: Sampler | None = None, work: Work | None = None
) -> Measure:
    """n points of a `ScoreModel` by its own sampler or another, with the labels given, or those it draws if it has classes.

    A model may say by `draw_labels(n, rng)` which classes it draws, and by `lift` what kind of array it computes with. One
    whose samples are large, and without batch axes, says by `at_once` how many go through the sampler together, and by `lower`
    and `dtype` what is kept of them. These pieces are dealt to the processes that run together; with `work` they are stored as
    they come and not drawn again.
    """
    label_rng, noise_rng = rng.spawn(2)
    if labels is None and hasattr(model, "draw_labels"):
        labels = model.draw_labels(n, label_rng)
    if getattr(model, "at_once", None) is not None:
        seed = int(noise_rng.integers(2**63))
        points = _in_pieces(model, n, seed, labels, sampler or model.sampler, work)
        return Measure(points, np.broadcast_to(1.0 / n, (n,)), labels)
    points = sample(
        partial(_denoised, model, labels),
        sampler or model.sampler,
        model.shape(n),
        noise_rng,
        len(model.batch),
        getattr(model, "lift", np.asarray),
    )
    return Measure(points, np.broadcast_to(1.0 / n, (*model.batch, n)), labels)


def _denoised(model: Any, labels: Any, x: Any, sigma: float) -> Any:
    return model.denoise(x, sigma, labels)


def _in_pieces(model: Any, n: int, seed: int, labels: Any, sampler: Sampler, work: Work | None) -> Any:
    """Points (n, *event) of a model without batch axes, as `lower` keeps them; see `drawn`."""
    size = -(-model.at_once // BLOCK) * BLOCK
    starts = range(0, n, size)
    shapes = {"points": (model.shape(n), model.dtype), "done": ((len(starts),), np.dtype(np.uint8))}
    made, done = (np.zeros(*kind) if work is None else work.array(name, *kind) for name, kind in shapes.items())
    began, before = time.monotonic(), int(done.sum())
    for number, start in enumerate(starts):
        if done[number] or number % ranks.world() != ranks.rank():
            continue
        rows = slice(start, min(start + size, n))
        given = None if labels is None else labels[rows]
        rng, shape = np.random.default_rng(seed), model.shape(rows.stop - start)
        try:
            made[rows] = model.lower(sample(partial(_denoised, model, given), sampler, shape, rng, 0, model.lift, start))
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            raise MemoryError(
                f"{size} images do not fit together; set machine.sample_batch: {max(size // 2, BLOCK)}"
            ) from error
        if isinstance(made, np.memmap):
            made.flush()  # before it counts
        done[number] = 1
        if work is not None:
            pieces = int(done.sum())
            rate = (pieces - before) * size / (time.monotonic() - began)
            work.report(min(pieces * size, n), n, images_per_second=rate)
    if work is None:
        return ranks.summed(made)
    ranks.barrier()
    return made


class BlockNoise:
    """Standard normal arrays of one shape, one after the other; each block of 64 points along `axis` has its own stream.

    first: the number of the first point, a multiple of 64.
    """

    def __init__(self, shape: tuple[int, ...], axis: int, rng: Generator, first: int = 0):
        key = int(rng.integers(2**63))
        self.shape, self.axis = shape, axis
        self.block = (*shape[:axis], BLOCK, *shape[axis + 1 :])
        blocks = range(first // BLOCK, first // BLOCK + -(-shape[axis] // BLOCK))
        self.streams = [np.random.Generator(np.random.Philox(key=[key, b])) for b in blocks]

    def __call__(self) -> Array:
        """The next array (*batch, n, *event)."""
        whole = np.concatenate([stream.standard_normal(self.block) for stream in self.streams], axis=self.axis)
        return whole[(*(slice(None),) * self.axis, slice(self.shape[self.axis]))]
