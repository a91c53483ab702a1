"""The contracts. An algorithm turns data into a model; a loop trains it on its own samples; nothing else is assumed.

Everything the loop drives, from a Gaussian fit to a network, satisfies these protocols structurally: no base class, no
registration. `gives` lets an algorithm state what its models can do, so that a pair that does not fit is refused when the
configuration is read and not after an hour; an algorithm without it is asked at run time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure, Moments, Selection

Streams = Callable[[int, str], Generator]
"""(generation, role) -> random generator: a stream has a name, so that drawing more in one role moves no other."""

GIVES = {
    "law": "an exact Gaussian law",
    "draw": "moments drawn without points",
    "denoise": "a denoiser D(x; sigma)",
    "parameters": "parameters to take gradients by",
    "biased": "sampling bias",
    "probabilities": "category probabilities",
    "coefficients": "regression coefficients",
    "modes": "modes",
    "pair": "a base and its auxiliary",
    "labels": "class labels",
    "categories": "categories",
    "regression": "a regression of its last coordinate",
    "images": "images",
}
"""What a model or a source of real data may offer beyond its samples, in the words of messages."""


@runtime_checkable
class Work(Protocol):
    """Where a long fit keeps itself and says how far it is; closed forms ignore it.

    A fit that was cut is called again with the same data and the same random stream: it loads what it last saved and ends where
    it would have ended. It asks whether a save is due between blocks of steps, and may save once more when it is done.

    shelf: a folder that outlasts the fit, for snapshots, pictures and logs, or None where there is no such place; whoever
    writes there makes it first. Processes that compute together (`selfloop.ranks`) call the same methods in the same order, and
    the first one writes: by itself, but for the shelf and the rows of an array.
    """

    @property
    def shelf(self) -> Path | None: ...

    def at(self, name: str) -> "Work":
        """The work of a part of the fit, by a name that no other part has."""
        ...

    def load(self) -> dict[str, Array] | None:
        """What was last saved here; None if there is nothing, or nothing sound."""
        ...

    def save(self, **arrays: Array) -> None:
        """Put these arrays in the place of what was saved: all of them, or after a kill none."""
        ...

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array in a file, zeros at first, that is written in place and found again, as it was left, when the fit goes on.

        For what is too large to be saved as a whole: samples. Another shape or type under the same name begins anew.
        """
        ...

    def due(self) -> bool:
        """Whether it is time to save again."""
        ...

    def report(self, done: int, total: int, **numbers: float) -> None:
        """Say how far the fit is."""
        ...


@runtime_checkable
class Model(Protocol):
    """What a fit gives: something to draw points from.

    A model that was trained may carry `failed` (*batch,), integers: the step of the training at which a member's loss stopped
    being finite, 0 = never. It is written down for replicates that diverge.
    """

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points in every member of the batch: points (*batch, n, *event)."""
        ...

    def law(self) -> Gaussian | None:
        """The exact law of what `sample` draws, its sampler included, where that law is Gaussian; else None."""
        ...

    def state(self) -> dict[str, Array]:
        """Plain arrays from which `Algorithm.restore` gives the model back."""
        ...


@runtime_checkable
class MomentModel(Model, Protocol):
    """A model whose samples can be replaced by their moments (`statistics: true`)."""

    def draw(self, n: int, rng: Generator) -> Moments:
        """The moments of n points, with the law they would have had, without the points."""
        ...


@runtime_checkable
class ScoreModel(Model, Protocol):
    """A diffusion-like model. sigma is the noise level; sigma = 0 is data; score = (D(x; sigma) - x) / sigma^2."""

    @property
    def sampler(self) -> Any: ...

    @property
    def batch(self) -> tuple[int, ...]: ...

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, *event) of n points."""
        ...

    def denoise(self, x: Any, sigma: float, labels: Any = None) -> Any:
        """D(x; sigma) = E[x_0 | x_0 + sigma z = x]; x (*batch, n, *event)."""
        ...


@dataclass(frozen=True)
class Generation:
    """One turn of a loop.

    index: counted from 1, the number of fits so far; model: what was fitted; drawn: what it hands on;
    diverged (*batch,): the generation at which a replicate left the range of float64, 0 = it has not.
    """

    index: int
    model: Model
    drawn: Data
    diverged: NDArray[np.int64]


@runtime_checkable
class BiasedModel(Model, Protocol):
    """A model that can be sampled with a bias."""

    def biased(self, bias: float) -> Model:
        """The model sampled with bias lambda > 0; 1 is unbiased, below 1 trades diversity for quality."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """A recipe from data to model; it remembers nothing between two fits."""

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> Model: ...

    def restore(self, state: Mapping[str, Array]) -> Model:
        """The model of `state`, under this algorithm's own settings of sampling (its guidance, its sampler)."""
        ...


@runtime_checkable
class Tunable(Algorithm, Protocol):
    """An algorithm that can move a model toward new data: what SIMS and Neon need of it."""

    def tune(
        self, model: Any, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[Model]:
        """One trajectory that starts at `model`; yields the model at each budget, in ascending order.

        The unit of a budget is the algorithm's own: million images seen for networks; for closed forms the
        fraction eta in [0, 1] of the way from `model` to the new fit.
        """
        ...

    def interpolate(self, a: Any, b: Any, t: float) -> Model:
        """The model with parameters a + t (b - a); t outside [0, 1] extrapolates."""
        ...


@runtime_checkable
class Curator(Protocol):
    """A map from data to data: which rows stay, and with what weight."""

    def __call__(self, data: Any, rng: Generator, work: Work | None = None) -> Selection: ...


@runtime_checkable
class Score(Protocol):
    """A number for each row of a data set, of which a curator keeps high ones, low ones or others; not itself a direction."""

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """Values (n,), finite, of one data set without batch axes; the same for equal rows where nothing is random."""
        ...


@runtime_checkable
class Source(Protocol):
    """p_r, the law of real data: one member per replicate, endless (a law) or finite (a data set)."""

    def take(self, start: int, n: int, rng: Generator, statistics: bool = False) -> Data:
        """Training rows start .. start + n - 1: new draws of a law, disjoint rows of a data set; moments if `statistics`.

        Raises ValueError when a data set holds fewer than start + n rows.
        """
        ...

    def sample(self, n: int, rng: Generator) -> Measure:
        """n points to compare with: new draws of a law, held-out rows of a data set."""
        ...

    def law(self) -> Gaussian | None:
        """p_r itself where it is Gaussian, else None."""
        ...


def drawn_like(data: Data, model: Model, n: int, rng: Generator, work: Work | None = None) -> Data:
    """n draws of the model in the form of `data`: moments if it is moments, else points.

    Raises TypeError if moments are asked of a model that draws only points.
    """
    if isinstance(data, Moments):
        if not isinstance(model, MomentModel):
            raise TypeError(f"{type(model).__name__} cannot draw moments; set statistics: false")
        return model.draw(n, rng)
    return model.sample(n, rng, work=work)
