"""Loop types: which data a generation is trained on, (real, history) -> training data.

A loop type answers three questions, and the literature's loops are the answers:

    type                  real part        synthetic part           pool subsampled
    fully_synthetic       none             last generation          no      Shumailov et al. (2023): replace
    augment               the same D_r     last generation          no      Alemohammad et al. (2023): synthetic augmentation
    fresh                 new real draws   last generation          no      Alemohammad et al. (2023): fresh data
    accumulate            the same D_r     every generation so far  no      Gerstgrasser et al. (2024)
    accumulate_subsample  the same D_r     every generation so far  yes     Kazdan et al. (2024)

Sizes may change from generation to generation. The published symbol lambda means three things, which have three names here:
`ratio` = n_s / n_r (Bertrand et al.), `fraction` = n_s / (n_r + n_s), and `bias`, the covariance factor of the sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.random import Generator

from selfloop.component import Count, Counts, Fraction, Fractions, NonNegative, Positive, Ratios, component, scheduled
from selfloop.measure import Array, Data, Ints, Measure, Moments, concatenate
from selfloop.protocols import Algorithm, BiasedModel, Curator, Generation, Model, Source, Streams, Work, drawn_like


@dataclass(frozen=True)
class LoopType:
    """The three answers: real part none, fixed or fresh; how many generations back; whether the pool is subsampled."""

    real: Literal["none", "fixed", "fresh"]
    memory: int | None = 1
    subsample: bool = False


LOOP_TYPES: dict[str, LoopType] = {
    "fully_synthetic": LoopType(real="none"),
    "augment": LoopType(real="fixed"),
    "fresh": LoopType(real="fresh"),
    "accumulate": LoopType(real="fixed", memory=None),
    "accumulate_subsample": LoopType(real="fixed", memory=None, subsample=True),
}


@component
class Pollution:
    """n samples of a model of the real data that join the real data and are taken for it."""

    n: Count
    algorithm: Algorithm

    def __call__(self, real: Data, streams: Streams, work: Work | None = None) -> Data:
        """D_r + D_p: `algorithm` is fitted to D_r, and n of its samples, marked as drawn by generation 1, are added.

        The fit does not depend on n, nor do the first samples: others that are polluted by it may have the same `work`.
        """
        model = self.algorithm.fit(real, streams(0, "pollution fit"), work and work.at("fit"))
        drawn = drawn_like(real, model, self.n, streams(0, "pollution"), work and work.at(f"{self.n} samples"))
        return concatenate([real, drawn.stamped(1)])


LoopName = Literal["fully_synthetic", "augment", "fresh", "accumulate", "accumulate_subsample"]


@component
class Mix:
    """A loop type with its sizes and modifiers.

    n_real        real points: a number; in a fresh loop also one for each generation, of which the last goes on
    n_synthetic   synthetic points that a generation hands on, likewise; or instead of it their `ratio` to the real points, or
                  their `fraction` of both together; none of the three: as many as real points
    weight_real   mass of the real part in [0, 1]; by default its share of the points
    bias          lambda > 0: synthetic data is sampled with it, N(mu, lambda S) for a Gaussian
    correction    gamma >= 0: what a generation hands on is (p_t + gamma p_r) / (1 + gamma), by as many new real points of
                  mass gamma (Gillman et al., 2024)
    pollution     samples of a first model that are taken for real data from the start (Alemohammad et al., 2024)
    curators      applied in order to what a generation hands on
    warm          tune the last model for this budget instead of fitting anew (Bertrand et al., 2023: iterative retraining)

    Raises ValueError if sizes are said twice, or a modifier has nothing to act on.
    """

    kind: LoopName = "augment"
    n_real: Counts
    n_synthetic: Counts | None = None
    ratio: Ratios | None = None
    fraction: Fractions | None = None
    weight_real: Fraction | None = None
    bias: Positive = 1.0
    correction: NonNegative = 0.0
    pollution: Pollution | None = None
    curators: tuple[Curator, ...] = ()
    warm: NonNegative | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("n_synthetic", "ratio", "fraction") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"the synthetic size is said once: give one of n_synthetic, ratio, fraction; got {given}")
        if len(self.n_real) > 1 and self.type.real != "fresh":
            raise ValueError(
                f"n_real changes from generation to generation only in a fresh loop, and {self.kind} draws real data once; "
                f"got {list(self.n_real)}, give one number"
            )
        if self.weight_real is not None and self.type.real == "none":
            raise ValueError("weight_real needs a real part; a fully_synthetic loop has none")
        if self.weight_real is not None and self.type.subsample:
            raise ValueError("weight_real and the subsampled pool of accumulate_subsample exclude each other; drop weight_real")
        if self.pollution is not None and self.type.real != "fixed":
            raise ValueError(f"pollution joins a fixed real set and a {self.kind} loop has none; use augment or accumulate")

    @property
    def type(self) -> LoopType:
        """The loop type by its name."""
        return LOOP_TYPES[self.kind]

    @property
    def memory(self) -> int | None:
        """How many generations back a training set reaches; None = all."""
        return self.type.memory

    def real_size(self, generation: int) -> int:
        """Real points that enter a generation (counted from 1)."""
        return scheduled(self.n_real, generation)

    def synthetic_size(self, generation: int) -> int:
        """Synthetic points that enter a generation >= 2, drawn from the generation before."""
        n_real = self.real_size(generation)
        if self.n_synthetic is not None:
            return scheduled(self.n_synthetic, generation - 1)
        if self.ratio is not None:
            return max(round(scheduled(self.ratio, generation - 1) * n_real), 1)
        if self.fraction is not None:
            f = scheduled(self.fraction, generation - 1)
            return max(round(f / (1 - f) * n_real), 1)
        return n_real

    def last_share(self, generation: int) -> float | None:
        """Share of the last model's samples in the training data of a generation >= 2; None where earlier ones are kept too."""
        if self.memory != 1:
            return None
        if self.type.real == "none":
            return 1.0
        if self.weight_real is not None:
            return 1 - self.weight_real
        n_synthetic = self.synthetic_size(generation)
        return n_synthetic / (n_synthetic + self.real_size(generation))

    def real_rows(self, generations: int) -> int:
        """Rows of real data that generations 1 .. `generations` use up; a data set must hold as many."""
        return sum(self._new_real(g) + self._corrections(g) for g in range(1, generations + 1))

    def _new_real(self, generation: int) -> int:
        return self.real_size(generation) if generation == 1 or self.type.real == "fresh" else 0

    def _corrections(self, generation: int) -> int:
        return self.synthetic_size(generation + 1) if self.correction > 0 else 0

    def first(self, source: Source, streams: Streams, statistics: bool = False, work: Work | None = None) -> Data:
        """The real data of generation 1, pollution included; work: of the fit that pollutes."""
        real = source.take(0, self.real_size(1), streams(1, "real"), statistics).stamped(0)
        return real if self.pollution is None else self.pollution(real, streams, work)

    def real(self, source: Source, first: Data, generation: int, streams: Streams) -> Data:
        """The real part of a generation: `first`, or new rows where the loop is fresh."""
        if self.type.real != "fresh" or generation == 1:
            return first
        start, n = self.real_rows(generation - 1), self.real_size(generation)
        return source.take(start, n, streams(generation, "real"), isinstance(first, Moments)).stamped(0)

    def __call__(self, real: Data, history: Sequence[Generation], rng: Generator) -> Data:
        """The training data of a generation >= 2 from the real part and the generations before it, the last one last.

        Every part enters with the mass of its scheduled size, whatever corrections and curators made of its points.
        """
        past = list(history[-self.memory :] if self.memory else history)
        parts = [generation.drawn for generation in past]
        masses = [float(self.synthetic_size(generation.index + 1)) for generation in past]
        if self.type.real == "none":
            return concatenate(parts, masses)
        w = self.weight_real
        mass_real = float(np.mean(real.n)) if w is None else w
        total = sum(masses)
        pool = concatenate([real, *parts], [mass_real, *(mass if w is None else (1 - w) * mass / total for mass in masses)])
        if not self.type.subsample:
            return pool
        if not isinstance(pool, Measure) or not isinstance(real, Measure):
            raise TypeError("accumulate_subsample draws points from its pool and moments have none; set statistics: false")
        return subsampled(pool, min(real.n, pool.n), rng)

    def hand_on(
        self, model: Model, source: Source, real: Data, generation: int, streams: Streams, work: Work | None = None
    ) -> Data:
        """What a generation gives the next: samples of its model, biased, corrected and curated as this mix says."""
        n = self.synthetic_size(generation + 1)
        if self.bias != 1:
            if not isinstance(model, BiasedModel):
                raise TypeError(f"{type(model).__name__} has no sampling bias; remove mix.bias")
            model = model.biased(self.bias)
        drawn = drawn_like(real, model, n, streams(generation, "draw"), work and work.at("draw")).stamped(generation)
        if self.correction > 0:
            start = self.real_rows(generation - 1) + self._new_real(generation)
            fresh = source.take(start, n, streams(generation, "correction"), isinstance(drawn, Moments)).stamped(0)
            drawn = concatenate([drawn, fresh], [1.0, self.correction])
        for number, curator in enumerate(self.curators):
            part = work and work.at(f"curator {number}")
            drawn = curator(drawn, streams(generation, f"curator {number}"), part).apply(cast(Measure, drawn))
        return drawn


def subsampled(data: Measure, n: int, rng: Generator) -> Measure:
    """n rows without replacement, drawn with their weights and anew in every member of the batch; equal weights after that.

    By an exponential race: the rows of the n least -ln(1 - u_i) / w_i. Rows of weight 0 come last and keep weight 0.
    Needs n <= data.n.
    """
    with np.errstate(divide="ignore"):
        order = np.argsort(-np.log1p(-rng.random((*data.batch, data.n))) / data.weights, axis=-1)[..., :n]

    if not data.batch:
        return data.subset(order).reweighted((data.weights[order] > 0).astype(float))

    def pick(values: Ints | Array) -> Any:
        return np.take_along_axis(np.broadcast_to(values, (*data.batch, data.n)), order, axis=-1)

    rows = order.reshape(*order.shape, *(1 for _ in data.event))
    kept = (pick(data.weights) > 0).astype(float)
    return Measure(
        np.take_along_axis(np.asarray(data.points), rows, axis=len(data.batch)),
        kept / kept.sum(axis=-1, keepdims=True),
        None if data.labels is None else pick(data.labels),
        None if data.origin is None else pick(data.origin),
    )
