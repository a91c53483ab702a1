"""K categories: the discrete loop, the Wright-Fisher model of population genetics. Points are one-hot vectors in R^K.

fit     p_k = (n q_k + a) / (n + K a), q the shares in the data, n its size, a = `smoothing` pseudo-counts a category
sample  n draws from p, or only their shares: multinomial counts over n
bias    temperature: p_k^(1 / bias) up to a constant; below 1 the frequent become more frequent
tune    a fraction eta of the way to the new fit, on the geometric line p_a^(1 - t) p_b^t up to a constant

A category that no sample shows is lost for good at smoothing = 0. If every generation of n sees only its predecessor, then
E p_k stays, and the heterozygosity E[1 - sum_k p_k^2] falls by the factor 1 - 1/n a generation.
Source: Ewens (2004), "Mathematical Population Genetics", section 1.4; Shumailov et al. (2024), section 3, of its loop.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop.algorithms.closed_form import LARGEST_BUDGET, along
from selfloop.component import NonNegative, component
from selfloop.measure import Array, Data, Measure, Moments
from selfloop.protocols import Model, Work


@dataclass(frozen=True)
class Categorical:
    """The law sum_k p_k delta(e_k) on the unit vectors e_k of R^K: probabilities (*batch, K), >= 0, that add to one.

    A member of the batch that is not finite draws NaN and leaves the others as they are.
    Raises ValueError if the probabilities of another member are negative or do not add to one.
    """

    probabilities: Array

    def __post_init__(self) -> None:
        p = self.probabilities
        if (p < 0).any() or (np.abs(p.sum(axis=-1) - 1) > 1e-9).any():
            raise ValueError(
                f"probabilities must be >= 0 and add to one over the last axis, got least {np.nanmin(p)} and sums "
                f"{np.ravel(p.sum(axis=-1))[:3]}...; divide by their sum"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.probabilities.shape[:-1]

    @property
    def categories(self) -> int:
        """K, the number of categories."""
        return int(self.probabilities.shape[-1])

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, K) of n points."""
        return (*self.batch, n, self.categories)

    def expanded(self, replicates: int) -> "Categorical":
        """The same law for each of `replicates` loops: batch (replicates,)."""
        return Categorical(np.broadcast_to(self.probabilities, (replicates, self.categories)))

    def law(self) -> None:
        """None: the law is not Gaussian."""
        return None

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n one-hot points (*batch, n, K)."""
        p, fine = self._safe()
        below = np.cumsum(p, axis=-1)
        below /= below[..., -1:]
        drawn = (rng.random((*self.batch, n))[..., None] >= below[..., None, :-1]).sum(axis=-1)
        points = (drawn[..., None] == np.arange(self.categories)).astype(float)
        points = np.where(fine[..., None, None], points, np.nan)
        return Measure(points, np.broadcast_to(1.0 / n, points.shape[:-1]))

    def draw(self, n: int, rng: Generator) -> Moments:
        """The moments of n points without them: mean q = counts / n, counts ~ Multinomial(n, p), cov = diag(q) - q q^T."""
        p, fine = self._safe()
        mean = np.where(fine[..., None], rng.multinomial(n, p) / n, np.nan)
        cov = mean[..., :, None] * (np.eye(self.categories) - mean[..., None, :])
        return Moments(float(n), mean, cov)

    def _safe(self) -> tuple[Array, NDArray[np.bool_]]:
        fine = np.asarray(np.isfinite(self.probabilities).all(axis=-1))
        return np.where(fine[..., None], self.probabilities, 1 / self.categories), fine

    def biased(self, bias: float) -> "Categorical":
        """p_k^(1 / bias) / sum_j p_j^(1 / bias): 1 leaves p as it is, towards 0 only the modes stay; a share of 0 stays 0.

        Raises ValueError unless bias > 0.
        """
        if not bias > 0:
            raise ValueError(f"bias must be positive, got {bias}")
        if bias == 1:
            return self
        with np.errstate(divide="ignore"):
            return Categorical(_normalised(np.log(self.probabilities) / bias))

    def state(self) -> dict[str, Array]:
        """Plain arrays from which the law can be rebuilt."""
        return {"probabilities": self.probabilities}

    @classmethod
    def restore(cls, state: Mapping[str, Array]) -> "Categorical":
        """The law that `state` describes."""
        return cls(state["probabilities"])


def _normalised(logs: Array) -> Array:
    """e^logs / sum e^logs over the last axis; NaN in a member that holds +infinity or NaN, or -infinity throughout."""
    with np.errstate(invalid="ignore"):
        image = np.exp(logs - logs.max(axis=-1, keepdims=True))
        return np.asarray(image / image.sum(axis=-1, keepdims=True))


@component
class CategoricalFit:
    """Fit shares to one-hot data; see the module for the formulas.

    smoothing: pseudo-counts a >= 0 added to every category. n is that of the data's moments: the number of points, or
    Kish's effective number where they carry weights.
    """

    smoothing: NonNegative = 0.0

    gives: ClassVar[frozenset[str]] = frozenset({"draw", "biased", "probabilities"})
    largest_budget: ClassVar[float] = LARGEST_BUDGET

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> Categorical:
        """p_k = (n q_k + a) / (n + K a), q the data's mean; points (*batch, n, K), one-hot, or their moments.

        Raises ValueError if a mean is no distribution: the points are not one-hot.
        """
        moments = data.moments()
        shares, n = moments.mean, np.asarray(moments.n)[..., None]
        if (shares < -1e-9).any() or (np.abs(shares.sum(axis=-1) - 1) > 1e-6).any():
            raise ValueError(
                "categorical data are one-hot vectors, whose mean is >= 0 and adds to one; got a mean with least entry "
                f"{np.nanmin(shares):.3g} and sum {np.ravel(shares.sum(axis=-1))[0]:.3g}"
            )
        counts = n * np.maximum(shares, 0.0) + self.smoothing
        return Categorical(counts / counts.sum(axis=-1, keepdims=True))

    def restore(self, state: Mapping[str, Array]) -> Categorical:
        """The model of a saved fit."""
        return Categorical.restore(state)

    def tune(
        self, model: Categorical, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[Model]:
        """The models a fraction eta = budget of the way from `model` to the fit of `data`.

        On a geometric line a category is lost as soon as the fit of `data` has lost it, at any eta > 0.
        Raises ValueError for a budget outside [0, 1].
        """
        return along(self, model, self.fit(data, rng), budgets)

    def interpolate(self, a: Categorical, b: Categorical, t: float) -> Categorical:
        """p_k proportional to a_k^(1 - t) b_k^t: log-probabilities on a line; a itself at t = 0 and b at t = 1.

        A share of 0 under a positive power, or in both a and b, is 0. Under a negative power (t < 0 and b_k = 0 < a_k, or
        t > 1 and a_k = 0 < b_k) it would be infinite: such a member is NaN, as is one where every share is 0. With
        smoothing > 0 no share is 0 and no such member exists.
        """
        if t == 0 or t == 1:
            return b if t else a
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = (1 - t) * np.log(a.probabilities) + t * np.log(b.probabilities)
        lost = (a.probabilities == 0) & (b.probabilities == 0)
        return Categorical(_normalised(np.where(lost, -np.inf, logs)))
