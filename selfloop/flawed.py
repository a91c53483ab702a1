"""Training data with flaws of known size: what curation is to mend, and what it is measured against.

Of n rows, in an order of their own for every replicate,

    round(outliers n)      outliers  c + spread z, z ~ N(0, I), c the mean of the rows, with a label drawn from the rows'
    round(duplicates n)    copies    of `copied` rows, x + jitter z, with their labels
    the others             rows of the law

`sample`, `law` and what metrics ask of the source are those of the law: the flaws are in the training rows alone.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from selfloop.component import Count, Fraction, NonNegative, Positive, component
from selfloop.data import SourceFactory
from selfloop.laws import Gaussian
from selfloop.measure import Data, Measure, Moments
from selfloop.protocols import Source


@dataclass(frozen=True)
class FlawedRows:
    """A source whose training rows have flaws; everything else is the clean source's."""

    clean: Source
    flaws: "Flawed"

    @property
    def model(self) -> Any:
        """The law itself, where the clean source has one."""
        clean: Any = self.clean
        return clean.model

    def take(self, start: int, n: int, rng: Generator, statistics: bool = False) -> Data:
        """Rows start .. start + n - 1 of the clean source, of which the last were given flaws.

        Raises ValueError for statistics, where there are no rows to spoil, and where fewer than `copied` rows stay clean.
        """
        law_rng, flaw_rng = rng.spawn(2)
        rows = self.clean.take(start, n, law_rng, statistics)
        if isinstance(rows, Moments):
            raise ValueError("flaws are of points, and moments have none; set statistics: false")
        return self.flaws.spoiled(rows, flaw_rng)

    def sample(self, n: int, rng: Generator) -> Measure:
        """n points of the law, without flaws."""
        return self.clean.sample(n, rng)

    def law(self) -> Gaussian | None:
        """The law without flaws."""
        return self.clean.law()


@component
class Flawed:
    """Rows of `source`, a law of vectors, with flaws; see the module. copied: how many rows have copies, all equally many.

    Raises ValueError for shares that leave no clean row, and for images.
    """

    source: SourceFactory
    duplicates: Fraction = 0.0
    copied: Count = 10
    jitter: NonNegative = 0.0
    outliers: Fraction = 0.0
    spread: Positive = 3.0

    def __post_init__(self) -> None:
        if self.duplicates + self.outliers >= 1:
            raise ValueError(
                f"duplicates and outliers must leave clean rows, got shares {self.duplicates:g} + {self.outliers:g}"
            )
        if "images" in self.gives:
            raise ValueError("flaws are added to vectors, and the source has images; use another source")

    @property
    def gives(self) -> frozenset[str]:
        """What the source gives, but no moments."""
        return frozenset(getattr(self.source, "gives", frozenset())) - {"draw"}

    @property
    def d(self) -> int:
        """Dimension of a point, where the source says it."""
        source: Any = self.source
        return int(source.d)

    @property
    def rows(self) -> int:
        """Rows for training, where they are finite."""
        source: Any = self.source
        return int(source.rows)

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The source of each replicate, its training rows with flaws."""
        return FlawedRows(self.source.replicated(replicates, rng), self)

    def spoiled(self, rows: Measure, rng: Generator) -> Measure:
        """Rows (*batch, n, d) with flaws in place of the last ones, in another order."""
        wild, again = round(self.outliers * rows.n), round(self.duplicates * rows.n)
        clean = rows.n - wild - again
        if again and clean < self.copied:
            raise ValueError(f"{self.copied} rows have copies, and of {rows.n} only {clean} are clean; use fewer, or more rows")
        x = np.array(rows.points, dtype=float)
        labels = None if rows.labels is None else np.array(np.broadcast_to(rows.labels, rows.weights.shape))
        middle = x.mean(axis=-2, keepdims=True)
        original = np.arange(again) % self.copied
        copies, strangers = np.arange(clean, clean + again), np.arange(clean + again, rows.n)
        x[..., copies, :] = x[..., original, :] + self.jitter * rng.standard_normal(x[..., copies, :].shape)
        x[..., strangers, :] = middle + self.spread * rng.standard_normal(x[..., strangers, :].shape)
        if labels is not None:
            labels[..., copies] = labels[..., original]
            labels[..., strangers] = labels[..., rng.integers(clean, size=wild)]
        order = rng.permuted(np.broadcast_to(np.arange(rows.n), rows.weights.shape), axis=-1)
        return replace(
            rows,
            points=np.take_along_axis(x, order[..., None], axis=-2),
            weights=np.take_along_axis(rows.weights, order, axis=-1),
            labels=None if labels is None else np.take_along_axis(labels, order, axis=-1),
        )
