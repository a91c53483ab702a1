"""Hierarchical k-means: rows spread evenly over what is in the data, not over how often it is there (Vo et al. 2024).

Level 1 clusters the rows, level 2 the centres of level 1, and so on, each level into fewer clusters. At every level centres are
drawn toward an even density, `resamples` times: k-means on the `closest` points of each cluster gives the next centres.

From the top down quotas are water-filled: m rows over the top clusters, as equally as the rows below them allow, the quota of
each cluster over its children in the same way, to the clusters of rows, which give their nearest rows or random ones.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Len
from numpy.random import Generator
from pydantic import Strict

from selfloop.component import Count, component
from selfloop.curate.budget import Share, balanced, kept
from selfloop.curate.cluster import Clustering, Clusters
from selfloop.curate.direction import chosen_within
from selfloop.curate.groups import decided
from selfloop.curate.members import OneByOne
from selfloop.embed import embedded
from selfloop.measure import Ints, Measure, Selection
from selfloop.protocols import Work


@component
class Hierarchical(OneByOne):
    """`hierarchical`: balanced at every level of a hierarchy of clusters.

    clusters: those of the rows, level 1; levels: numbers of clusters of the levels above, each less than the one before;
    fraction: the share of rows that stays; order: near or random rows of a cluster; resamples: rounds that even out the
    centres of a level; closest: points a cluster that such a round looks at.
    """

    clusters: Clusters
    levels: Annotated[tuple[Count, ...], Len(1)]
    fraction: Share
    order: Literal["near", "random"]
    resamples: Annotated[int, Strict(), Ge(0)] = 10
    closest: Annotated[int, Strict(), Ge(2)] = 5

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __post_init__(self) -> None:
        counts = (self.clusters.k, *self.levels)
        if not all(below > above for below, above in zip(counts, self.levels, strict=False)):
            raise ValueError(
                f"levels must have fewer and fewer clusters, and clusters.k = {counts[0]} is followed by levels = "
                f"{list(self.levels)}; give, say, [{max(counts[0] // 10, 1)}]"
            )

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay; table: cluster and distance, of level 1."""
        found = self._hierarchy(embedded(self.clusters.features, data, work and work.at("clusters")), rng)
        rows, quotas = found[0], np.array([kept(data.n, self.fraction)])
        below = [rows.sizes]  # rows in each cluster of each level
        for level in found[1:]:
            below.append(np.bincount(level.labels, below[-1], level.k).astype(np.int64))
        parents = [*(level.labels for level in found[1:]), np.zeros(found[-1].k, dtype=np.int64)]
        for sizes, parent in zip(reversed(below), reversed(parents), strict=True):
            quotas = _handed_down(sizes, parent, quotas)
        distance = rng.random(data.n) if self.order == "random" else rows.distance
        index = chosen_within(rows.labels, distance, quotas, "low", rng)
        return decided(data, index, f"not {self.order} in its cluster", cluster=rows.labels, distance=rows.distance)

    def _hierarchy(self, features: Any, rng: Generator) -> list[Clustering]:
        """The clusters of the rows, then those of the centres of the level below, to the top."""
        levels: list[Clustering] = []
        for k in (self.clusters.k, *self.levels):
            clusters, points = replace(self.clusters, k=k), levels[-1].centres if levels else features
            found = clusters.of(points, rng)
            for _ in range(self.resamples):
                near = chosen_within(found.labels, found.distance, np.minimum(found.sizes, self.closest), "low", rng)
                if len(near) >= k:
                    found = clusters.around(points, clusters.of(points[near], rng).centres)
            levels.append(found)
        return levels


def _handed_down(sizes: Ints, parent: Ints, quotas: Ints) -> Ints:
    """Quotas (k,) of clusters of sizes (k,), each among the children of one parent: balanced, and adding to its quota."""
    out = np.zeros(len(sizes), dtype=np.int64)
    for which, quota in enumerate(quotas):
        children = np.flatnonzero(parent == which)
        if len(children):
            out[children] = balanced(sizes[children], int(quota))
    return out
