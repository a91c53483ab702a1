"""The sections of an experiment: what a YAML file may hold, as components whose fields are its keys."""

import dataclasses
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import Field, Strict, WithJsonSchema

from selfloop.component import Count, Switch, component
from selfloop.data import SourceFactory
from selfloop.embed import Embedding
from selfloop.madness import Madness
from selfloop.metrics.track import Tracker
from selfloop.mix import Mix
from selfloop.protocols import Algorithm, Curator, Score, Tunable

SLOTS: dict[Any, str] = {
    Algorithm: "algorithms",
    Tunable: "algorithms",
    SourceFactory: "sources",
    Tracker: "trackers",
    Curator: "curators",
    Embedding: "embeddings",
    Score: "scores",
}
"""Fields that take any member of a group of the registry, by `kind`."""

Axis = Annotated[
    Any,
    WithJsonSchema({"anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}]}),
]
"""Values, or label -> override."""


@component
class Sweep:
    """The points of an experiment: the product of the axes of `grid`, and of each group of paths in `zip`, which move together.

    A value replaces what stands at its dotted path. A mapping label -> override sweeps over objects: its override is merged
    into the section (replacing it where it names another kind), and results carry the label. independent: every point draws
    random numbers of its own; by default points share them, and are compared by paired differences.
    """

    grid: dict[str, Axis] = dataclasses.field(default_factory=dict)
    zip: tuple[dict[str, Axis], ...] = ()
    independent: Switch = False


@component
class Experiment:
    """A self-consuming loop and what is written down of it.

    seed: of all random numbers; generations: fits, the first on real data alone; replicates: independent loops, in batches of
    `chunk` that are one unit of work; statistics: carry moments instead of points; real: p_r; track: metric -> how.
    """

    real: SourceFactory
    mix: Mix
    algorithm: Algorithm
    track: dict[str, Tracker]
    seed: Annotated[int, Strict(), Ge(0)] = 0
    generations: Count = 100
    replicates: Count = 100
    chunk: Count = 100
    statistics: Switch = False
    madness: Madness | None = None
    sweep: Sweep = Sweep()
    name: Annotated[str, Field(pattern=r"^[\w][\w .-]*$|^$")] = ""
