"""Exact laws: the Gaussian in every dimension, with the sampling law of its own moments."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from selfloop import covariance
from selfloop.measure import Array, Measure, Moments


@dataclass(frozen=True)
class Gaussian:
    """The law N(mean, cov): mean (*batch, d), cov (*batch, d, d) symmetric positive definite."""

    mean: Array
    cov: Array

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.mean.shape[:-1]

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return int(self.mean.shape[-1])

    def law(self) -> "Gaussian":
        """Itself: a law is a model of itself."""
        return self

    def state(self) -> dict[str, Array]:
        """Plain arrays from which the law can be rebuilt."""
        return {"mean": self.mean, "cov": self.cov}

    @classmethod
    def restore(cls, state: Mapping[str, Array]) -> "Gaussian":
        """The law that `state` describes."""
        return cls(state["mean"], state["cov"])

    def expanded(self, replicates: int) -> "Gaussian":
        """The same law for each of `replicates` loops: batch (replicates,)."""
        return Gaussian(
            np.broadcast_to(self.mean, (replicates, self.d)), np.broadcast_to(self.cov, (replicates, self.d, self.d))
        )

    def biased(self, bias: float) -> "Gaussian":
        """N(mean, bias * cov), bias > 0: the sampling bias lambda of Alemohammad et al. (2023)."""
        if not bias > 0:
            raise ValueError(f"bias must be above 0, got {bias}")
        return Gaussian(self.mean, bias * self.cov)

    def is_finite(self) -> np.ndarray:
        """Which members are laws float64 can hold: finite, positive definite; shape (*batch,)."""
        return np.isfinite(self.mean).all(axis=-1) & covariance.is_positive(self.cov)

    def sample(self, n: int, rng: Generator, labels: None = None, work: object = None) -> Measure:
        """n independent points in every member of the batch: points (*batch, n, d)."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        z = rng.standard_normal((*self.batch, n, self.d))
        points = self.mean[..., None, :] + z @ np.swapaxes(covariance.root(self.cov), -1, -2)
        return Measure(points, np.broadcast_to(1.0 / n, points.shape[:-1]))

    def draw(self, n: int, rng: Generator) -> Moments:
        """The moments of n independent points, without the points: mean ~ N(mean, cov / n), n S ~ Wishart(cov, n - 1).

        Bartlett: n S = (L A)(L A)^T with L L^T = cov and A lower triangular, A_ii^2 ~ chi^2(n - i) for i = 1..d,
        A_ij ~ N(0, 1) below. For n <= d the rank falls to n - 1 and A is d x (n - 1) standard normal.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        factor = covariance.root(self.cov)
        z = rng.standard_normal((*self.batch, self.d))
        if self.d == 1:
            mean = self.mean + factor[..., 0] * z / np.sqrt(n)
            chi2 = rng.chisquare(n - 1, self.batch) if n > 1 else np.zeros(self.batch)
            return Moments(float(n), mean, self.cov * (chi2 / n)[..., None, None])
        mean = self.mean + covariance.product(factor, z[..., None])[..., 0] / np.sqrt(n)
        root = covariance.product(factor, _bartlett(n, self.d, self.batch, rng))
        return Moments(float(n), mean, covariance.product(root, np.swapaxes(root, -1, -2)) / n)


def _bartlett(n: int, d: int, batch: tuple[int, ...], rng: Generator) -> Array:
    if n <= d:
        return rng.standard_normal((*batch, d, n - 1))
    lower = np.zeros((*batch, d, d))
    diagonal = np.arange(d)
    lower[..., diagonal, diagonal] = np.sqrt(rng.chisquare(n - 1 - diagonal, (*batch, d)))
    rows, columns = np.tril_indices(d, -1)
    lower[..., rows, columns] = rng.standard_normal((*batch, len(rows)))
    return lower
