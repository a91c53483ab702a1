"""MoSo: how the risk of a training would change if one row had not been there, to first order along its trajectory.

    s_i = mean over t of < h_t - w_i g_ti, g_ti >,        g_ti = grad_theta loss_i(theta_t),    h_t = sum_j w_j g_tj

With equal weights w_i = 1 / N, h - g_i / N = (N - 1) / N times the mean gradient of the other rows: a row scores high whose
gradient points where theirs does, so that training on it lowers their loss. theta_t are checkpoints of a diffusion model on the
data: its fit, and what tuning makes of it. The loss of a row is that of `selfloop.curate.denoising`, mean_l loss_i(sigma_l) /
L_l, with noise that all rows and checkpoints share and L_l at each checkpoint.

Source: Tan et al. (2023), "Data Pruning via Moving-one-Sample-out", NeurIPS. The loss and its levels are choices of ours.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from selfloop import ranks
from selfloop.component import Count, Positive, component
from selfloop.curate.denoising import Probe, by_blocks, check_gives, clean, losses
from selfloop.embed import blocks
from selfloop.measure import Array, Measure
from selfloop.protocols import Tunable, Work


@component
class Moso(Probe):
    """`moso`: the agreement of a row's gradient with that of the other rows, along a training of a surrogate.

    algorithm: the surrogate, a network that can be tuned; budget: from one checkpoint to the next, in million samples seen;
    checkpoints: how many, the first one its fit. A checkpoint costs two backward passes a row over all levels. Raises
    ValueError for a budget of less than one batch, data without spread or a surrogate without parameters.
    """

    algorithm: Tunable
    budget: Positive
    checkpoints: Count = 4

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __post_init__(self) -> None:
        check_gives("algorithm", self.algorithm, "denoise", "parameters")
        if hasattr(self.algorithm, "steps"):
            self.algorithm.steps(self.budget)

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """Scores (n,) of vectors (n, d) or images (n, C, H, W)."""
        fit_rng, tune_rng, noise_rng = rng.spawn(3)
        sigmas, z = self.sigmas(data), self.shared(data.event, noise_rng)
        first = self.algorithm.fit(data, fit_rng, work and work.at("surrogate"))
        budgets = [k * self.budget for k in range(self.checkpoints)]
        saved = work.load() if work is not None else None
        total, done = (np.zeros(data.n), 0) if saved is None else (saved["total"], int(saved["done"]))
        trajectory = self.algorithm.tune(first, data, budgets, tune_rng, work and work.at("trajectory"))
        for k, model in enumerate(trajectory):
            if k < done:
                continue
            total = total + self._at(model, data, sigmas, z)
            if work is not None:
                work.report(k + 1, self.checkpoints)
                if work.due():
                    work.save(total=total, done=np.array(k + 1))
        return np.asarray(total / self.checkpoints)

    def _at(self, model: Any, data: Measure, sigmas: Array, z: Array) -> Array:
        """<h - w_i g_i, g_i> at one checkpoint."""
        from selfloop.diffusion import rowwise

        level = data.weights @ losses(model, data, sigmas, self.draws, lambda level, draw, _: z[level, draw])
        weights = np.divide(1 / self.levels, level, out=np.zeros_like(level), where=level > 0)
        size, none = rowwise.at_once(model), np.zeros(rowwise.count(model))

        def gradients(rows: slice) -> Any:
            labels = None if data.labels is None else data.labels[rows]
            return rowwise.gradients(model, clean(data.points[rows]), labels, sigmas, z, weights)

        mine = list(blocks(data.n, size))[ranks.rank() :: ranks.world()]
        mean = ranks.summed(sum((rowwise.combined(gradients(rows), data.weights[rows]) for rows in mine), none))

        def of(rows: slice) -> Array:
            return agreement(gradients(rows), data.weights[rows], mean)[:, None]

        return by_blocks(data.n, size, 1, of)[:, 0]


def agreement(gradients: Any, weights: Array, mean: Array) -> Array:
    """<h - w_i g_i, g_i> (n,) of gradients g (n, P), tensors, weights w (n,) and the mean gradient h (P,) of all rows."""
    from selfloop.diffusion import rowwise

    return rowwise.products(gradients, mean) - weights * rowwise.squared_norms(gradients)
