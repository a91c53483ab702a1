"""The Gaussian fit: the algorithm whose loops are understood in closed form.

fit     mean m, covariance S (maximum likelihood divides by n, unbiased by n - 1), optionally shrunk to the sphere:
        S <- (1 - a) S + a (tr S / d) I,  a given, or the oracle-approximating value of Chen et al. (2010)
sample  from N(m, S) exactly, or as a diffusion model would: through N steps of a sampler on the exact score
        -(S + sigma^2 I)^-1 (x - m). The moments of these steps are propagated exactly, so `law` is what is drawn.
tune    a fraction eta of the way to the new fit, on the line of m and log S
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Lt
from numpy.random import Generator

from selfloop import covariance
from selfloop.algorithms.closed_form import LARGEST_BUDGET, along
from selfloop.component import AT_SAMPLING, component
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.sample import Denoise, Sampler
from selfloop.diffusion.score import gaussian_denoiser
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure, Moments
from selfloop.protocols import Model, Work


@dataclass(frozen=True)
class GaussianModel:
    """N(m, S) behind a sampler. `fitted` is what the data said; `law()` is what the sampler draws."""

    fitted: Gaussian
    sampler: Sampler

    @cached_property
    def _law(self) -> Gaussian:
        if self.sampler.kind == "exact":
            return self.fitted
        return diffusion.law(self.denoise, self.sampler, self.fitted.batch, self.fitted.d)

    @cached_property
    def _denoiser(self) -> Denoise:
        return gaussian_denoiser(self.fitted)

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.fitted.batch

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, d) of n points."""
        return (*self.fitted.batch, n, self.fitted.d)

    def law(self) -> Gaussian:
        """The law of the points drawn, after the sampler's steps."""
        return self._law

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, d) of `law()`."""
        return self._law.sample(n, rng)

    def draw(self, n: int, rng: Generator) -> Moments:
        """The moments of n points of `law()`."""
        return self._law.draw(n, rng)

    def biased(self, bias: float) -> Gaussian:
        """N(mean, bias * cov) of what the sampler draws."""
        return self._law.biased(bias)

    def denoise(self, x: Array, sigma: float, labels: Any = None) -> Array:
        """D(x; sigma) = m + S (S + sigma^2)^-1 (x - m); x (*batch, k, d)."""
        return np.asarray(self._denoiser(x, sigma))

    def state(self) -> dict[str, Array]:
        """The fit: mean and cov."""
        return self.fitted.state()


@component
class GaussianFit:
    """Fit N(m, S) to the mean and covariance of the data; see the module for the formulas.

    Raises ValueError if n <= d with neither shrinkage nor a larger sample: the covariance would be singular.
    """

    estimator: Literal["maximum_likelihood", "unbiased"] = "maximum_likelihood"
    shrinkage: Annotated[float, Ge(0), Lt(1)] | Literal["oas"] = 0.0
    sampler: Annotated[Sampler, AT_SAMPLING] = Sampler()

    gives: ClassVar[frozenset[str]] = frozenset({"law", "draw", "denoise", "biased"})
    largest_budget: ClassVar[float] = LARGEST_BUDGET

    def least_points(self, d: int) -> int:
        """Points without which a fit in d dimensions is refused."""
        return d + 1 if self.shrinkage == 0 else 2

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> GaussianModel:
        """The Gaussian of the data's weighted moments; data of points (*batch, n, d) or moments."""
        moments = data.moments()
        n, d = np.asarray(moments.n), moments.mean.shape[-1]
        if not (n > self.least_points(d) - 1).all():
            raise ValueError(
                f"a covariance in d = {d} dimensions needs at least {self.least_points(d)} points, got n = {float(n.min()):g}; "
                "use more points or set shrinkage above 0"
            )
        cov = moments.cov
        if self.estimator == "unbiased":
            cov = cov * (n / (n - 1))[..., None, None]
        return GaussianModel(Gaussian(moments.mean, self._shrunk(cov, n)), self.sampler)

    def _shrunk(self, cov: Array, n: Array) -> Array:
        if self.shrinkage == 0:
            return cov
        intensity = covariance.oas(cov, n) if self.shrinkage == "oas" else np.asarray(self.shrinkage)
        return covariance.toward_sphere(cov, intensity)

    def restore(self, state: Mapping[str, Array]) -> GaussianModel:
        """The model of a saved fit, behind this algorithm's sampler."""
        return GaussianModel(Gaussian.restore(state), self.sampler)

    def tune(
        self, model: GaussianModel, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[Model]:
        """The models a fraction eta = budget of the way from `model` to the fit of `data`.

        Raises ValueError for a budget outside [0, 1].
        """
        return along(self, model, self.fit(data, rng), budgets)

    def interpolate(self, a: GaussianModel, b: GaussianModel, t: float) -> GaussianModel:
        """Mean m_a + t (m_b - m_a) and covariance exp(log S_a + t (log S_b - log S_a))."""
        mean = a.fitted.mean + t * (b.fitted.mean - a.fitted.mean)
        return GaussianModel(Gaussian(mean, covariance.interpolate(a.fitted.cov, b.fitted.cov, t)), self.sampler)
