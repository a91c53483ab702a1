"""Curate, then fit: an algorithm that sees what curators leave of its data, under the weights that they give.

    curated.fit(data) = algorithm.fit(c_k(... c_1(data)))
    curated.tune      = algorithm.tune, on all that it is given

Tuning is not curated, so that SIMS and Neon over `curated` tune on the base's own samples as they are drawn (with `tune_on:
real_and_synthetic` also on the data, whole). What is drawn can be curated by `mix.curators`, before the loop hands it on.

A budget that counts samples seen does not know how many different ones there are: m of n rows get as many updates as n would,
and each is seen n / m times as often. With `epochs: equal` the budget of the fit becomes m / n of itself, to a whole step and
at least one, so that each row is seen as often as without curators.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from selfloop import ranks
from selfloop.component import component
from selfloop.curate import chain
from selfloop.curate.subset import FILE, Subset
from selfloop.measure import Array, Data, Measure, finite
from selfloop.protocols import Algorithm, Curator, Model, Tunable, Work


@component
class Curated:
    """Fit `algorithm` to what `curators` leave, applied in order; none: to all data, a baseline under the same streams.

    epochs: `more`, the budget as it is, or `equal`. One data set's selection is written into the shelf of the fit as a subset
    file (`selfloop.curate.subset`), and beside it the seconds of each curator and of the fit since it was last begun or gone on
    with; that of a batch of replicates is not.
    Raises ValueError from `fit` for moments, and what the curators raise.
    """

    algorithm: Algorithm
    curators: tuple[Curator, ...] = ()
    epochs: Literal["more", "equal"] = "more"

    def __post_init__(self) -> None:
        if getattr(self.algorithm, "keeps_rows", False):
            raise ValueError("algorithm keeps the rows of a fixed design, and curators drop rows; set its design to fresh")
        fields: Sequence[Any] = dataclasses.fields(self.algorithm) if dataclasses.is_dataclass(self.algorithm) else ()
        scales = hasattr(self.algorithm, "steps") and any(field.name == "budget" for field in fields)
        if self.epochs == "equal" and not scales:
            what = type(self.algorithm).__name__
            raise ValueError(f"epochs equal scales a budget of samples seen, and {what} has none; remove it")

    @property
    def gives(self) -> frozenset[str]:
        """What the inner algorithm gives; but it has no moments without points, for curators look at points."""
        inner: frozenset[str] = getattr(self.algorithm, "gives", frozenset())
        return inner - {"draw"}

    @property
    def tunable(self) -> bool:
        """Whether the inner algorithm can be tuned."""
        return isinstance(self.algorithm, Tunable) and getattr(self.algorithm, "tunable", True)

    @property
    def sampler(self) -> Any:
        """That of the inner algorithm, if it has one, as are the budgets below."""
        return self._inner.sampler

    @property
    def largest_budget(self) -> float:
        """Of tuning."""
        return self._inner.largest_budget  # type: ignore[no-any-return]

    @property
    def budget(self) -> float:
        """Of a fit to all data."""
        return self._inner.budget  # type: ignore[no-any-return]

    @property
    def steps(self) -> Any:
        """Steps in a budget."""
        return self._inner.steps

    @property
    def _inner(self) -> Any:
        return self.algorithm

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> Model:
        """The curators, then the fit, each on a stream of its own."""
        if not isinstance(data, Measure):
            raise ValueError("curators look at points and the data are moments; set statistics: false")
        curate_rng, fit_rng = rng.spawn(2)
        taken = list(chain.steps(self.curators, data, curate_rng, work))
        selection = chain.composed(taken, data)
        shelf = work.shelf if work is not None and not data.batch and ranks.rank() == 0 else None
        if shelf is not None:
            shelf.mkdir(parents=True, exist_ok=True)
            Subset.made(data, selection, {"curators": [step.name for step in taken]}).write(shelf / FILE)
        kept, began = selection.apply(data), time.monotonic()
        model = self._spending(kept, data).fit(kept, fit_rng, work and work.at("fit"))
        if shelf is not None:
            seconds = {f"{number} {step.name}": round(step.seconds, 3) for number, step in enumerate(taken)}
            seconds["fit"] = round(time.monotonic() - began, 3)
            (shelf / chain.TIMINGS).write_text(json.dumps(seconds, indent=2))
        return model

    def restore(self, state: Mapping[str, Array]) -> Model:
        """The inner algorithm's model."""
        return self.algorithm.restore(state)

    def tune(
        self, model: Any, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[Model]:
        """The inner algorithm's, on all of `data`."""
        return self._inner.tune(model, data, budgets, rng, work)  # type: ignore[no-any-return]

    def interpolate(self, a: Any, b: Any, t: float) -> Model:
        """The inner algorithm's."""
        return self._inner.interpolate(a, b, t)  # type: ignore[no-any-return]

    def _spending(self, kept: Measure, data: Measure) -> Algorithm:
        """The inner algorithm, with the budget that `epochs` says; of a batch by the mean share of finite members."""
        sound = finite(data)
        if self.epochs == "more" or not sound.any():
            return self.algorithm
        share = float(np.mean((np.sum(kept.weights > 0, axis=-1) / np.sum(data.weights > 0, axis=-1))[sound]))
        spent = self._inner.budget * max(share, 1 / self._inner.steps(self._inner.budget))
        return dataclasses.replace(self._inner, budget=spent)  # type: ignore[no-any-return]
