"""Neon: negative extrapolation, away from the parameters of a model tuned on its own samples.

    base        = fit(data)
    synthetic   = n_synthetic samples of the base
    auxiliary   = base tuned on `synthetic`, or on data and `synthetic`, for `budget`
    theta       = (1 + omega) theta_base - omega theta_auxiliary

Source: Alemohammad et al. (2025), "Neon: Negative Extrapolation From Self-Training Improves Image Generation",
arXiv:2510.03597. The base and the auxiliary are those of SIMS, which extrapolates scores where Neon extrapolates parameters
and so needs two models at sampling. theta are the algorithm's own coordinates, on which `interpolate` is a line: mean
and log-covariance of a Gaussian, log-probabilities of categories, the weights of a network. Hence, for Gaussians that
commute and share a mean, Neon and SIMS with an exact sampler are the same: S_base^(1 + omega) S_auxiliary^(-omega).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.random import Generator

from selfloop.algorithms.sims import Pair, TuneOn, check_budget
from selfloop.component import Count, NonNegative, Omega, component
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure, Moments
from selfloop.protocols import GIVES, Model, Tunable, Work


@dataclass(frozen=True)
class NeonModel:
    """A base model moved away from its auxiliary. It offers what `merged` offers, and AttributeError on the rest."""

    pair: Pair
    omega: float
    algorithm: Tunable

    @cached_property
    def merged(self) -> Any:
        """The model at (1 + omega) theta_base - omega theta_auxiliary; the base itself at omega = 0, the auxiliary at -1."""
        if self.omega == 0 or self.pair.same:
            return self.pair.base
        if self.omega == -1:
            return self.pair.auxiliary
        return self.algorithm.interpolate(self.pair.base, self.pair.auxiliary, -self.omega)

    def _offered(self, name: str) -> Any:
        if not hasattr(self.merged, name):
            raise AttributeError(f"{type(self.merged).__name__} under Neon gives no {GIVES.get(name, name)}")
        return getattr(self.merged, name)

    @property
    def sampler(self) -> Any:
        """The sampler of the merged model."""
        return self._offered("sampler")

    @property
    def probabilities(self) -> Array:
        """The category probabilities of the merged model."""
        return self._offered("probabilities")  # type: ignore[no-any-return]

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self._offered("batch")  # type: ignore[no-any-return]

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, *event) of n points."""
        return self._offered("shape")(n)  # type: ignore[no-any-return]

    @property
    def failed(self) -> Any:
        """The training step at which a member failed, 0 = never."""
        return self.pair.failed

    def law(self) -> Gaussian | None:
        """Exact law of what the merged model draws, where it is Gaussian."""
        return self.merged.law()  # type: ignore[no-any-return]

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, *event) of the merged model."""
        return self.merged.sample(n, rng, labels, work)  # type: ignore[no-any-return]

    def draw(self, n: int, rng: Generator) -> Moments:
        """The moments of n points of the merged model."""
        return self._offered("draw")(n, rng)  # type: ignore[no-any-return]

    def denoise(self, x: Any, sigma: float, labels: Any = None) -> Any:
        """D(x; sigma) of the merged model."""
        return self._offered("denoise")(x, sigma, labels)

    def biased(self, bias: float) -> Model:
        """The merged model, sampled with a bias."""
        return self._offered("biased")(bias)  # type: ignore[no-any-return]

    def state(self) -> dict[str, Array]:
        """The fits of base and auxiliary; omega is a setting of sampling and not part of it."""
        return self.pair.state()


@component
class Neon:
    """Negative extrapolation of parameters, over any algorithm that can be tuned; omega changes without a new fit.

    algorithm: the one improved; n_synthetic: samples of the base the auxiliary is tuned on; budget: how long, in the
    algorithm's own unit (fraction eta in [0, 1] for closed forms, million samples seen for networks); tune_on: those
    samples alone, or the data and them; omega >= -1: how far beyond the base, 0 = the base alone.
    """

    algorithm: Tunable
    n_synthetic: Count
    budget: NonNegative
    omega: Omega = 1.0
    tune_on: TuneOn = "synthetic"

    def __post_init__(self) -> None:
        check_budget(self.algorithm, self.budget)

    @property
    def gives(self) -> frozenset[str]:
        """What the inner algorithm gives, since the merged model is one of its own, and the pair it was made of."""
        inner: frozenset[str] = getattr(self.algorithm, "gives", frozenset())
        return (inner - {"parameters"}) | {"pair"}

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> NeonModel:
        """Base, synthetic data, auxiliary; the parameters are merged when the model is first used."""
        (pair,) = Pair.fit(self.algorithm, data, self.n_synthetic, [self.budget], self.tune_on, rng, work)
        return NeonModel(pair, self.omega, self.algorithm)

    def restore(self, state: Mapping[str, Array]) -> NeonModel:
        """The pair of a saved fit, at this algorithm's omega."""
        return NeonModel(Pair.restore(self.algorithm, state), self.omega, self.algorithm)
