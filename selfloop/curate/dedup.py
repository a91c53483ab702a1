"""SemDeDup: of rows that mean the same, keep one (Abbas et al. 2023, arXiv 2303.09540).

Rows i and j of one cluster are similar if their distance is below epsilon: 1 - cos(i, j), that is cos(i, j) > 1 - epsilon, or
|x_i - x_j| with metric euclidean. In the order of the cluster,

    first     j goes if any row before it is similar, kept or not     the authors' released code
    greedy    j goes if a kept row before it is similar
    group     j goes unless it is the first of its connected component of similar rows

On a chain a ~ b ~ c, where a and c are not similar, first keeps a in the order a b c and a alone with group, greedy a and c;
in the order a c b first and greedy keep a and c, group a alone. All three keep rows that are pairwise not similar. A larger
epsilon drops more rows, those of a smaller one among them, with first and group; not so with greedy.

Duplicates in different clusters are not seen; with k = 1 all rows are compared. Rows are compared block by block, as
differences to the centre of their cluster, so that squared distances of like rows do not cancel. Memory is that of the rows of
a few clusters and a block of distances.
"""

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from selfloop.component import Positive, component
from selfloop.curate.cluster import Clusters, in_order, unit
from selfloop.curate.direction import sane
from selfloop.curate.groups import decided
from selfloop.curate.members import OneByOne
from selfloop.embed import Floats, blocks, embedded
from selfloop.measure import Ints, Measure, Selection
from selfloop.protocols import Score, Work
from selfloop.threads import one_thread

BLOCK = 1024
"""Rows that are compared with as many others at a time: 4 MB of distances."""
ROUNDING = 5e-7
"""Of a squared distance by a product of matrices in float32, a dimension's share of the squared lengths."""


@component
class Dedup(OneByOne):
    """`dedup`: one of rows that are nearly the same.

    clusters: where duplicates are sought; epsilon: the distance below which rows are similar; survivor: first, greedy or group;
    order: who comes first in a cluster: far from or near to its centre, or a high or low score; score: for these two.
    The number of rows that stay follows from epsilon.
    """

    clusters: Clusters
    epsilon: Positive
    survivor: Literal["first", "greedy", "group"]
    order: Literal["far", "near", "high", "low"]
    score: Score | None = None

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __post_init__(self) -> None:
        if (self.order in ("high", "low")) != (self.score is not None):
            remedy = "give a score" if self.score is None else "set order: high or low, or remove the score"
            raise ValueError(f"order: {self.order} is given {'no' if self.score is None else 'a'} score; {remedy}")

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay; table: cluster, distance, and score if it orders them."""
        features = embedded(self.clusters.features, data, work and work.at("clusters"))
        found = self.clusters.of(features, rng)
        columns: dict[str, NDArray[Any]] = {"cluster": found.labels, "distance": found.distance}
        rank = found.distance.astype(np.float64)
        if self.score is not None:
            rank = columns["score"] = sane(self.score(data, rng, work and work.at("score")), data.n)
        order = np.lexsort((rank if self.order in ("near", "low") else -rank, found.labels))
        clusters = [rows for rows in np.split(order, np.cumsum(found.sizes)[:-1]) if len(rows)]
        cosine = self.clusters.metric == "cosine"
        survivors, limit = SURVIVORS[self.survivor], 2 * self.epsilon if cosine else self.epsilon**2

        def kept(rows: Ints) -> Ints:
            x = np.asarray(features[rows], dtype=np.float32)
            stays = survivors((unit(x) if cosine else x) - found.centres[found.labels[rows[0]]], limit)
            return np.asarray(rows[stays])

        with one_thread():
            index = np.sort(np.concatenate(list(in_order(kept, clusters))))
        return decided(data, index, "near duplicate", **columns)


def first(x: Floats, limit: float) -> NDArray[np.bool_]:
    """Which rows (n,) of x (n, d) have none before them at a squared distance below the limit."""
    stays = np.ones(len(x), dtype=bool)
    for rows in blocks(len(x), BLOCK):
        stays[rows] = ~_similar_before(x, np.arange(rows.start), rows, limit) & ~np.tril(
            _similar(x, rows, rows, limit), -1
        ).any(1)
    return stays


def greedy(x: Floats, limit: float) -> NDArray[np.bool_]:
    """Which rows (n,) of x (n, d) have no kept one before them at a squared distance below the limit."""
    stays = np.ones(len(x), dtype=bool)
    for rows in blocks(len(x), BLOCK):
        here = ~_similar_before(x, np.flatnonzero(stays[: rows.start]), rows, limit)
        near = np.triu(_similar(x, rows, rows, limit), 1)
        for j in np.flatnonzero(near.any(axis=1)):
            if here[j]:
                here &= ~near[j]
        stays[rows] = here
    return stays


def group(x: Floats, limit: float) -> NDArray[np.bool_]:
    """Which rows (n,) of x (n, d) are the first of their component, linked by squared distances below the limit."""
    n = len(x)
    component = np.arange(n)
    for rows in blocks(n, BLOCK):
        for others in blocks(rows.stop, BLOCK):
            i, j = np.nonzero(_similar(x, rows, others, limit))
            links = coo_array((np.ones(len(i), dtype=bool), (component[i + rows.start], component[j + others.start])), (n, n))
            component = connected_components(links, directed=False)[1][component]
    stays = np.zeros(n, dtype=bool)
    stays[np.unique(component, return_index=True)[1]] = True
    return stays


SURVIVORS = {"first": first, "greedy": greedy, "group": group}


def _similar(x: Floats, rows: Any, others: Any, limit: float) -> NDArray[np.bool_]:
    """Whether squared distances are below the limit: by a product of matrices, and where it rounds too much by differences."""
    a, b = x[rows], x[others]
    lengths = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    squares = lengths - 2 * (a @ b.T)
    near: NDArray[np.bool_] = squares < limit
    i, j = np.nonzero(np.abs(squares - limit) < ROUNDING * np.sqrt(x.shape[1]) * lengths)
    for part in blocks(len(i), max(2**22 // x.shape[1], 1)):
        gaps = a[i[part]] - b[j[part]]
        near[i[part], j[part]] = np.einsum("pd,pd->p", gaps, gaps, dtype=np.float64) < limit
    return near


def _similar_before(x: Floats, before: Ints, rows: slice, limit: float) -> NDArray[np.bool_]:
    out = np.zeros(rows.stop - rows.start, dtype=bool)
    for part in blocks(len(before), BLOCK):
        out |= _similar(x, rows, before[part], limit).any(axis=1)
    return out
