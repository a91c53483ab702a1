"""SIMS: self-improvement by negative guidance from a model tuned on one's own samples.

    base        = fit(data)
    synthetic   = n_synthetic samples of the base
    auxiliary   = base tuned on `synthetic`, or on data and `synthetic`, for `budget`
    score       = (1 + omega) score_base - omega score_auxiliary

Source: Alemohammad et al. (2024), "Self-Improving Diffusion Models with Synthetic Data", Algorithm 1.
The auxiliary shows in which direction training on samples moves the model; guidance steps the other way. If it moved a
fraction eta toward the fit of the base's own samples, the best guidance is omega = 1 / eta, about (see `selfloop.theory`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, cast

import numpy as np
from annotated_types import Len
from numpy.random import Generator

from selfloop.algorithms.choose import Choose
from selfloop.component import AT_SAMPLING, Count, NonNegative, Omega, component
from selfloop.diffusion import guide
from selfloop.diffusion import sample as diffusion
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure, Moments, concatenate
from selfloop.protocols import Algorithm, Model, ScoreModel, Tunable, Work, drawn_like

TuneOn = Literal["synthetic", "real_and_synthetic"]


@dataclass(frozen=True)
class Pair:
    """A base model and the auxiliary that was tuned on the base's own samples."""

    base: Any
    auxiliary: Any

    @classmethod
    def fit(
        cls,
        algorithm: Tunable,
        data: Data,
        n_synthetic: int,
        budgets: Sequence[float],
        tune_on: TuneOn,
        rng: Generator,
        work: Work | None = None,
    ) -> list["Pair"]:
        """Fit the base to `data`, draw n_synthetic samples of it, tune it on them, or data and them: a pair at each budget.

        Moments in, moments drawn: no points are made when the data has none. Each part draws from a stream of its own.
        """
        fit_rng, draw_rng, tune_rng = rng.spawn(3)
        base = algorithm.fit(data, fit_rng, work and work.at("base"))
        synthetic = drawn_like(data, base, n_synthetic, draw_rng, work and work.at("synthetic"))
        seen = synthetic if tune_on == "synthetic" else concatenate([data, synthetic])
        return [
            cls(base, auxiliary) for auxiliary in algorithm.tune(base, seen, budgets, tune_rng, work and work.at("auxiliary"))
        ]

    @cached_property
    def same(self) -> bool:
        """Whether the auxiliary is the base, bit for bit, as after a budget of 0: then guidance does nothing."""
        if self.auxiliary is self.base:
            return True
        base, auxiliary = self.base.state(), self.auxiliary.state()
        return base.keys() == auxiliary.keys() and all(np.array_equal(base[name], auxiliary[name]) for name in base)

    @property
    def failed(self) -> Any:
        """The training step at which the base's loss stopped being finite, or else the auxiliary's; 0 = neither."""
        base, auxiliary = (np.asarray(getattr(model, "failed", 0)) for model in (self.base, self.auxiliary))
        return np.where(base > 0, base, auxiliary)

    def state(self, name: str = "auxiliary") -> dict[str, Array]:
        """Arrays of both, under the prefixes `base.` and, if it is given no other name, `auxiliary.`."""
        parts = {"base": self.base.state(), name: self.auxiliary.state()}
        return {f"{part}.{name}": values for part, state in parts.items() for name, values in state.items()}

    @classmethod
    def restore(
        cls, algorithm: Algorithm, state: Mapping[str, Array], name: str = "auxiliary", other: Algorithm | None = None
    ) -> "Pair":
        """The pair of a saved state, with the auxiliary of this name; other: what fitted that, if it was another algorithm."""
        base, auxiliary = (
            fitted.restore({key.removeprefix(part): values for key, values in state.items() if key.startswith(part)})
            for fitted, part in ((algorithm, "base."), (other or algorithm, f"{name}."))
        )
        return cls(base, auxiliary)


def guided_gives(*algorithms: Algorithm) -> frozenset[str]:
    """What models of all these algorithms give and guidance between them keeps."""
    gives = frozenset[str].intersection(*(getattr(algorithm, "gives", frozenset[str]()) for algorithm in algorithms))
    return gives & ({"law", "denoise", "draw", "biased"} if "law" in gives else {"denoise", "labels", "images"})


def check_budget(algorithm: Tunable, budget: float) -> None:
    """Raise ValueError if a budget is none the algorithm can use: above 1 for closed forms, part of a step for networks."""
    if hasattr(algorithm, "steps"):
        algorithm.steps(budget)
    largest = getattr(algorithm, "largest_budget", None)
    if largest is not None and budget > largest:
        raise ValueError(
            f"budget must be at most {largest:g}, the whole way (fraction eta) to the fit of the synthetic data; got {budget:g}"
        )


@dataclass(frozen=True)
class SimsModel:
    """A base model guided away from its auxiliary, in an interval of noise levels if one is given.

    omega: a number, or one for each member (*batch,); trajectory: the pairs at all budgets, if they are kept.
    """

    pair: Pair
    omega: float | Array
    interval: guide.Interval | None = None
    trajectory: tuple[Pair, ...] = ()

    @property
    def sampler(self) -> Any:
        """The sampler of the base."""
        return self.pair.base.sampler

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.pair.base.batch  # type: ignore[no-any-return]

    @property
    def failed(self) -> Any:
        """The training step at which a member failed, 0 = never."""
        return np.broadcast_to(self.pair.failed, self.batch)

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, *event) of n points."""
        return self.pair.base.shape(n)  # type: ignore[no-any-return]

    def denoise(self, x: Any, sigma: float, labels: Any = None) -> Any:
        """(1 + omega) D_base(x; sigma) - omega D_auxiliary(x; sigma)."""
        omega: Any = self.omega
        if isinstance(omega, np.ndarray):
            omega = omega.reshape(*self.batch, *(1,) * (len(x.shape) - len(self.batch)))
            omega = omega if isinstance(x, np.ndarray) else self.lift(omega)
        guided = guide.negative_guidance(
            lambda y, s: self.pair.base.denoise(y, s, labels),
            lambda y, s: self.pair.auxiliary.denoise(y, s, labels),
            omega,
            self.interval,
        )
        return guided(x, sigma)

    @cached_property
    def _law(self) -> Gaussian | None:
        base, auxiliary = self.pair.base, self.pair.auxiliary
        plain: Gaussian | None = base.law()
        if plain is None or self._alone is base:
            return plain
        if self._alone is auxiliary:
            return auxiliary.law()  # type: ignore[no-any-return]
        if self.sampler.kind == "exact":
            return self._flow(plain, auxiliary.law())
        return diffusion.law(self.denoise, self.sampler, plain.batch, plain.d)

    @property
    def _alone(self) -> Any:
        """The model that guidance leaves as it is: the base at omega = 0 or without a difference, the auxiliary at -1."""
        if self.pair.same:
            return self.pair.base
        if isinstance(self.omega, np.ndarray):
            return None
        return self.pair.base if self.omega == 0 else self.pair.auxiliary if (self.omega, self.interval) == (-1, None) else None

    def _flow(self, base: Gaussian, auxiliary: Gaussian) -> Gaussian:
        omegas = np.broadcast_to(np.asarray(self.omega, dtype=float), base.batch)
        mean, cov = np.array(base.mean), np.array(base.cov)
        for omega in np.unique(omegas):
            law, here = guide.guided_law(base, auxiliary, float(omega)), omegas == omega
            mean[here], cov[here] = law.mean[here], law.cov[here]
        return Gaussian(mean, cov)

    def law(self) -> Gaussian | None:
        """Exact law after the sampler's steps, if base and auxiliary are Gaussian; at omega = 0 the base's, bit for bit."""
        return self._law

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, *event), by the base's sampler on the guided denoiser."""
        if self._law is not None:
            return self._law.sample(n, rng)
        if self._alone is not None:
            return self._alone.sample(n, rng, labels, work)  # type: ignore[no-any-return]
        return diffusion.drawn(self, n, rng, labels, work=work)

    @property
    def at_once(self) -> int | None:
        """How many points go through the sampler together, None = all."""
        return getattr(self.pair.base, "at_once", None)

    @property
    def dtype(self) -> Any:
        """What points are kept as, by a base whose samples are large."""
        return self.pair.base.dtype

    def lower(self, x: Array) -> Any:
        """What the base keeps of points."""
        return self.pair.base.lower(x)

    def draw_labels(self, n: int, rng: Generator) -> Any:
        """The labels that the base would draw; None if it has no classes."""
        return self.pair.base.draw_labels(n, rng) if hasattr(self.pair.base, "draw_labels") else None

    def lift(self, x: Array) -> Any:
        """An array as the base computes with it."""
        return self.pair.base.lift(x) if hasattr(self.pair.base, "lift") else x

    def draw(self, n: int, rng: Generator) -> Moments:
        """The moments of n points, where the law is Gaussian. Raises TypeError where it is not."""
        if self._law is None:
            raise TypeError("only a Gaussian law draws moments; set statistics: false")
        return self._law.draw(n, rng)

    def biased(self, bias: float) -> Model:
        """N(mean, bias * cov) of the guided law, where it is Gaussian. Raises TypeError where it is not."""
        if self._law is None:
            raise TypeError("sampling bias after guidance needs a Gaussian law")
        return self._law.biased(bias)

    def state(self) -> dict[str, Array]:
        """The fits of base and auxiliaries, and omega where every member has its own; else it is a setting of sampling."""
        out = {} if self.trajectory else self.pair.state()
        for number, pair in enumerate(self.trajectory):
            out |= pair.state(f"auxiliary-{number}")
        return out | ({"omega": self.omega} if isinstance(self.omega, np.ndarray) else {})


@component
class Sims:
    """Self-improving by negative guidance, over any algorithm that can be tuned; omega changes without a new fit.

    algorithm: the one improved; n_synthetic: samples of the base the auxiliary is tuned on; budget: how long, in the
    algorithm's own unit (fraction eta in [0, 1] for closed forms, million samples seen for networks); budgets: those of one
    trajectory, of which `budget` is one: another one of them, in a sweep for example, needs no new fit; tune_on: those samples
    alone, or the data and them; omega >= -1: guidance strength, 0 = the base alone, or `auto`, which `choose` finds for every
    replicate on points held out; interval: noise levels [low, high] at which guidance acts, all if not said.
    Raises ValueError from `fit` if the models have no denoiser.
    """

    algorithm: Tunable
    n_synthetic: Count
    budget: NonNegative
    budgets: Annotated[tuple[NonNegative, ...], Len(1)] | None = None
    omega: Annotated[Omega | Literal["auto"], AT_SAMPLING] = 1.0
    tune_on: TuneOn = "synthetic"
    choose: Choose = Choose()
    interval: Annotated[tuple[NonNegative, NonNegative] | None, AT_SAMPLING] = None

    def __post_init__(self) -> None:
        for budget in self.trajectory:
            check_budget(self.algorithm, budget)
        if list(self.trajectory) != sorted(set(self.trajectory)) or self.budget not in self.trajectory:
            raise ValueError(
                f"budgets must ascend and hold the budget {self.budget:g}; got {list(self.trajectory)}: add it, or sort them"
            )
        guide.check_interval(self.interval)
        sampler, gives = getattr(self.algorithm, "sampler", None), getattr(self.algorithm, "gives", ())
        if getattr(sampler, "kind", None) == "exact" and "law" not in gives:
            raise ValueError(
                "guidance between laws that are not Gaussian has no exact sampler; set the inner algorithm's sampler to "
                "heun, dpm, euler or ancestral with its steps"
            )
        if self.interval is not None and sampler is not None:
            if sampler.kind == "exact":
                raise ValueError("interval needs a sampler with steps; set the inner algorithm's sampler, or remove interval")
            low, high = self.interval
            if not any(low <= level <= high for level in sampler.levels()[:-1]):
                raise ValueError(
                    f"interval must hold a noise level of the sampler, which goes from {sampler.sigma_max:g} to "
                    f"{sampler.sigma_min:g} in {sampler.steps} steps; got {list(self.interval)}"
                )

    @property
    def trajectory(self) -> tuple[float, ...]:
        """The budgets at which there is an auxiliary."""
        return (self.budget,) if self.budgets is None else self.budgets

    @property
    def sampling_fields(self) -> frozenset[str]:
        """The fields that need no new fit: omega and interval, unless omega is chosen in the fit; budget on a trajectory."""
        if self.omega == "auto":
            return frozenset()
        return frozenset({"omega", "interval"}) | (frozenset() if self.budgets is None else frozenset({"budget"}))

    @property
    def gives(self) -> frozenset[str]:
        """What the inner algorithm gives, as far as guidance keeps it."""
        return guided_gives(self.algorithm) | {"pair"}

    @property
    def needs(self) -> frozenset[str]:
        """What it needs of the inner algorithm's models."""
        return frozenset({"denoise"})

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> SimsModel:
        """Algorithm 1: base, synthetic data, auxiliary; the guidance happens when the model is sampled."""
        choose_rng = rng.spawn(1)[0] if self.omega == "auto" else rng
        held_out = None
        if self.omega == "auto":
            data, held_out = self.choose.split(data, choose_rng)
        pairs = Pair.fit(self.algorithm, data, self.n_synthetic, self.trajectory, self.tune_on, rng, work)
        pair = pairs[self.trajectory.index(self.budget)]
        if not isinstance(pair.base, ScoreModel):
            raise ValueError(f"SIMS guides a denoiser and {type(pair.base).__name__} has none; use neon")
        kept = () if self.budgets is None else tuple(pairs)
        if held_out is None:
            return SimsModel(pair, cast(float, self.omega), self.interval, kept)
        omega = self.choose.best(lambda omega: SimsModel(pair, omega, self.interval), held_out, choose_rng)
        return SimsModel(pair, omega, self.interval, kept)

    def restore(self, state: Mapping[str, Array]) -> SimsModel:
        """The pair of a saved fit, at this algorithm's omega."""
        omega = np.asarray(state["omega"]) if self.omega == "auto" else self.omega
        if self.budgets is None:
            return SimsModel(Pair.restore(self.algorithm, state), omega, self.interval)
        pairs = tuple(Pair.restore(self.algorithm, state, f"auxiliary-{number}") for number in range(len(self.budgets)))
        return SimsModel(pairs[self.budgets.index(self.budget)], omega, self.interval, pairs)
