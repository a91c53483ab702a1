"""Distances of features z from a middle: of a cluster, of a class; and a score that says nothing.

    centre       |z - c|, c the centre of its cluster                                              k-means
    prototypes   1 - cos(z, c), c the centre of its cluster of directions z / |z|                  Sorscher et al. (2022)
    moderate     |z - M|, M the median of its class, coordinate by coordinate                      Xia et al. (2023)
    random       U(0, 1), one draw a row: what any other score has to beat

High is far in the first three, and is called hard, or atypical; `moderate` is made for the middle of all scores (keep: middle),
of all classes together. Rows count alike, whatever their weights. Source: Sorscher et al., arXiv 2206.14486.
"""

from typing import ClassVar

import numpy as np
from numpy.random import Generator

from selfloop.component import Count, Switch, component
from selfloop.curate.cluster import Clusters, needs_faiss
from selfloop.curate.density import ByClass, classes
from selfloop.embed import Embedding, PixelEmbedding, blocks, embedded
from selfloop.measure import Array, Measure
from selfloop.protocols import Work

ROWS = 4096
ENTRIES = 2**25
"""Rows at a time; values of features of a class at a time, in whole columns."""


@component
class CentreScore:
    """`centre`: the distance to the centre of the row's own cluster, in units of the features; 1 - cos for metric cosine.

    clusters: how the rows are clustered.
    """

    clusters: Clusters

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """The distances (n,). Raises what the clusters raise."""
        return self.clusters(data, rng, work).distance.astype(float)


@component
class PrototypeScore:
    """`prototypes`: 1 - cos to the centre of the row's own cluster, by spherical k-means.

    k: clusters; features: of what, the points themselves by default. Raises ModuleNotFoundError without faiss.
    """

    k: Count
    features: Embedding = PixelEmbedding()

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __post_init__(self) -> None:
        needs_faiss()

    @property
    def least_rows(self) -> int:
        """A row for each cluster."""
        return self.k

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """The distances (n,), in [0, 2]. Raises ValueError for k > n, and for a row of features that is zero."""
        return Clusters(k=self.k, features=self.features, metric="cosine")(data, rng, work).distance.astype(float)


@component
class ModerateScore(ByClass):
    """`moderate`: the distance to the median of the row's class, in units of the features.

    features: of what, the points themselves by default; per_class: a median a class, or one of all rows.
    """

    features: Embedding = PixelEmbedding()
    per_class: Switch = True

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """The distances (n,). Raises ValueError if a median a class is asked of data without labels."""
        x, out = embedded(self.features, data, work), np.empty(data.n)
        for _, rows in classes(data, self.per_class, "moderate"):
            columns = blocks(x.shape[1], max(ENTRIES // len(rows), 1))
            middle = np.concatenate([np.median(x[rows, part], axis=0) for part in columns]).astype(float)
            for part in blocks(len(rows), ROWS):
                out[rows[part]] = np.linalg.norm(x[rows[part]] - middle, axis=1)
        return out


@component
class RandomScore:
    """`random`: uniform draws in [0, 1)."""

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """The draws (n,)."""
        return rng.random(data.n)
