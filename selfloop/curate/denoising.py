"""Scores by a surrogate: how hard a diffusion model that was fitted to the data finds each row.

    loss_i(sigma) = mean over z of |D(x_i + sigma z; sigma) - x_i|^2 / D        x_i in model space, D numbers, z ~ N(0, I)

    denoising_loss        s_i = mean_l  loss_i(sigma_l) / L_l                   L_l = sum_i w_i loss_i(sigma_l)
    denoising_gradient    s_i = mean_l  G_i(sigma_l) / G_l                      G_i = |grad_theta loss_i(sigma)|^2, G_l alike

Every level counts alike, whatever its share of the loss: a first pass over the rows gives L_l, a second one divides by it, so
the order of the rows does not matter. The mean score is 1. Levels are quantiles of a law of noise, sigma_l = unit q((l + 1/2) /
L), unit^2 the mean variance of the data's coordinates. All rows see the same z, by which two rows are compared with less noise
than with a z each. For a fitted Gaussian the mean loss is known, sum_j lambda_j sigma^2 / (lambda_j + sigma^2) / D with the
eigenvalues lambda_j of its covariance.

Source: Briq et al. (2024), arXiv 2411.12523, with one level and one z a row, and the gradient as a kind of GraNd; Huang et al.
(2025), arXiv 2507.05914, for the loss as difficulty. Levels, shared z and both means are choices of ours.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from selfloop import ranks
from selfloop.component import Count, component
from selfloop.diffusion.noise import Noise
from selfloop.embed import blocks, model_space
from selfloop.measure import Array, Measure
from selfloop.protocols import Algorithm, Work

BLOCK = 256
"""Rows that are scored at once, at most, and that share a stream of noise where every row has its own."""

Draws = Callable[[int, int, slice], Array]
"""(level, draw, block of rows) -> noise (*event) for all of them, or (n, *event) for each of them."""


@component
class Probe:
    """Noise levels and draws at which denoising is looked at.

    levels: of noise; draws: of z at each; noise: the law of sigma / unit that the levels are quantiles of.
    """

    levels: Count = 8
    draws: Count = 4
    noise: Noise = Noise()

    def sigmas(self, data: Measure) -> Array:
        """The levels (L,), ascending, in the units of the data's model space. Raises ValueError for data without spread."""
        return unit(data) * np.asarray(self.noise.quantile((np.arange(self.levels) + 0.5) / self.levels))

    def shared(self, event: tuple[int, ...], rng: Generator) -> Array:
        """Noise (L, draws, *event) that all rows see."""
        return rng.standard_normal((self.levels, self.draws, *event))


@component
class _Surrogate(Probe):
    """A probe with the model that it looks at."""

    algorithm: Algorithm

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})
    needs: ClassVar[frozenset[str]] = frozenset({"denoise"})

    def __post_init__(self) -> None:
        check_gives("algorithm", self.algorithm, *self.needs)


@component
class DenoisingLoss(_Surrogate):
    """`denoising_loss`: the loss of a surrogate at each row, relative to the mean over rows at every level.

    algorithm: the surrogate, whatever gives a denoiser; it is fitted to the data (or is a network as it is: `edm` with `start`
    and budget 0), sees their labels if it has classes, and is worth less than the model that is trained in the end. Raises
    ValueError for data without spread, FloatingPointError if a loss is not finite.
    """

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """Scores (n,) of vectors (n, d) or images (n, C, H, W); mean 1 under the weights."""
        fit_rng, noise_rng = rng.spawn(2)
        model = self.algorithm.fit(data, fit_rng, work and work.at("surrogate"))
        sigmas, z = self.sigmas(data), self.shared(data.event, noise_rng)
        found = losses(model, data, sigmas, self.draws, lambda level, draw, _: z[level, draw], work and work.at("losses"))
        return relative(found, data.weights)


@component
class DenoisingGradient(_Surrogate):
    """`denoising_gradient`: the squared norm of the gradient of a row's loss by all parameters of the surrogate.

    algorithm: the surrogate, a network; otherwise as `denoising_loss`. A row costs a backward pass a level, and as many
    numbers as the network has parameters, some rows at a time.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"denoise", "parameters"})

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """Scores (n,) of vectors (n, d) or images (n, C, H, W); mean 1 under the weights."""
        from selfloop.diffusion import rowwise

        fit_rng, noise_rng = rng.spawn(2)
        model: Any = self.algorithm.fit(data, fit_rng, work and work.at("surrogate"))
        sigmas, z, one = self.sigmas(data), self.shared(data.event, noise_rng), np.ones(1)

        def of(rows: slice) -> Array:
            x, labels = clean(data.points[rows]), None if data.labels is None else data.labels[rows]
            levels = ((sigmas[k : k + 1], z[k : k + 1]) for k in range(self.levels))
            parts = (rowwise.gradients(model, x, labels, sigma, noise, one) for sigma, noise in levels)
            return np.stack([rowwise.squared_norms(part) for part in parts], axis=1)

        found = by_blocks(data.n, rowwise.at_once(model), self.levels, of, work and work.at("gradients"))
        return relative(found, data.weights)


def check_gives(field: str, algorithm: Algorithm, *needs: str) -> None:
    """Raise ValueError if an algorithm says what it gives and this is not among it: denoise, parameters."""
    missing = set(needs) - getattr(algorithm, "gives", frozenset(needs))
    if missing:
        network = "score_net or edm, a network"
        kinds = network if "parameters" in missing else "gaussian, mixture, score_net or edm, which denoise"
        raise ValueError(f"{field} must be {kinds}; {type(algorithm).__name__} gives no {' and no '.join(sorted(missing))}")


def unit(data: Measure) -> float:
    """The root mean variance of the coordinates of one data set, in model space.

    Raises ValueError if it is 0 or not finite.
    """
    parts, first = list(blocks(data.n, BLOCK)), flat(data.points[:1])  # rows less the first: equal rows have no spread at all
    mean = sum(data.weights[rows] @ (flat(data.points[rows]) - first) for rows in parts)
    variance = sum(data.weights[rows] @ (flat(data.points[rows]) - first - mean) ** 2 for rows in parts)
    found = float(np.sqrt(np.mean(variance)))
    if not 0 < found < np.inf:
        raise ValueError(f"the rows have a standard deviation of {found:g}, the unit of the noise; use rows that differ")
    return found


def clean(points: Any) -> Array:
    """Points in model space: x / 127.5 - 1 of uint8, others as they are."""
    points = np.asarray(points)
    return np.asarray(model_space(points) if points.dtype == np.uint8 else points, dtype=np.float64)


def flat(points: Any) -> Array:
    """Points in model space as vectors (n, D)."""
    return clean(points).reshape(len(points), -1)


def losses(model: Any, data: Measure, sigmas: Array, draws: int, noise: Draws, work: Work | None = None) -> Array:
    """loss_i(sigma_l) as (n, L) of one data set under a `ScoreModel`; labels are given to a model that has classes."""

    def of(rows: slice) -> Array:
        x, labels = clean(data.points[rows]), None if data.labels is None else data.labels[rows]
        out = np.zeros((len(x), len(sigmas)))
        for level, sigma in enumerate(sigmas):
            for draw in range(draws):
                error = _denoised(model, x + sigma * noise(level, draw, rows), float(sigma), labels) - x
                out[:, level] += np.square(error).reshape(len(x), -1).mean(axis=1) / draws
        return out

    return by_blocks(data.n, BLOCK, len(sigmas), of, work)


def _denoised(model: Any, x: Array, sigma: float, labels: Any) -> Array:
    """D(x; sigma), no more rows together than the model takes."""
    parts = blocks(len(x), getattr(model, "at_once", len(x)))
    return np.concatenate([model.denoise(x[part], sigma, None if labels is None else labels[part]) for part in parts])


def relative(found: Array, weights: Array) -> Array:
    """mean_l found_il / (sum_i w_i found_il), (n,) of values (n, L) >= 0; a level where all values are 0 counts 1 for each row.

    Raises FloatingPointError if a value is not finite.
    """
    if not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0, 0])
        raise FloatingPointError(
            f"the surrogate's loss at row {row} is not finite: its training went wrong; lower its learning rate"
        )
    mean = weights @ found
    ratio = np.divide(found, mean, out=np.ones_like(found), where=mean > 0)
    scores: Array = ratio.mean(axis=1)
    return scores


def by_blocks(n: int, size: int, columns: int, of: Callable[[slice], Array], work: Work | None = None) -> Array:
    """Values (n, columns) of rows, `size` at a time, dealt to the processes that run together and kept as they come."""
    parts = list(blocks(n, size))
    kinds = {"values": ((n, columns), np.dtype(np.float64)), "done": ((len(parts),), np.dtype(np.uint8))}
    values, done = (np.zeros(*kind) if work is None else work.array(name, *kind) for name, kind in kinds.items())
    for number, rows in enumerate(parts):
        if done[number] or number % ranks.world() != ranks.rank():
            continue
        values[rows] = of(rows)
        if isinstance(values, np.memmap):
            values.flush()  # before it counts
        done[number] = 1
        if work is not None:
            work.report(min(int(done.sum()) * size, n), n)
    if work is None:
        return np.asarray(ranks.summed(values))
    ranks.barrier()
    return np.array(values)
