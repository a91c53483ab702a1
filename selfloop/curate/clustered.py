"""Pruning clusters: so many rows of each, those nearest to its centre, farthest from it, in between, or any.

    m = kept(n, fraction)
    proportional   q_k = m n_k / n                                                    Briq et al. (2024), PR = 1 - fraction
    balanced       q_k = min(n_k, c), as equal as the sizes allow                     Vo et al. (2024), one level
    density        q = argmin |x - m P|^2 / 2,  sum x = m,  l_k <= x_k <= n_k         Abbas et al. (2024)
                   P = softmax(d_inter d_intra / tau):  d_intra(k) = mean distance of its rows to c_k,
                   d_inter(k) = mean distance of c_k to the 20 nearest other centres;  l_k = floor min(n_k, m / k)

Distances are those of the metric of the clusters, so tau has the unit of their square: none for cosine. Rows of a cluster stand
in order of (distance, row number); `near` keeps the first, `far` the last: with proportional quotas near at a fraction and far
at one minus it part every cluster, unless the fraction of the rows is an exact half.
"""

from typing import ClassVar, Literal

import numpy as np
from numpy.random import Generator
from scipy.special import softmax

from selfloop.component import Fraction, Positive, component
from selfloop.curate.budget import Share, balanced, kept, opposite, projected, proportional, rounded
from selfloop.curate.cluster import Clustering, Clusters
from selfloop.curate.direction import Keep, chosen_within
from selfloop.curate.groups import decided
from selfloop.curate.members import OneByOne
from selfloop.measure import Array, Ints, Measure, Selection
from selfloop.protocols import Work

KEEP: dict[str, Keep] = {"near": "low", "far": "high", "middle": "middle", "random": "low"}
"""Order in a cluster -> direction in the distance to its centre, or in a random number."""
NEIGHBOURS = 20
"""Nearest other centres that say how far a cluster is from others."""


@component
class ClusterPruning(OneByOne):
    """`clusters`: rows of each cluster.

    clusters: how they are made; fraction: the share of rows that stays; order: near, far, middle or random rows of a cluster;
    quota: proportional, balanced or density; floor: with density, the least share of an even quota that a cluster gets;
    temperature: with density, tau.
    """

    clusters: Clusters
    fraction: Share
    order: Literal["near", "far", "middle", "random"]
    quota: Literal["proportional", "balanced", "density"] = "proportional"
    floor: Fraction = 0.0
    temperature: Positive = 0.5

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay; table: cluster, distance."""
        found, m = self.clusters(data, rng, work and work.at("clusters")), kept(data.n, self.fraction)
        quotas = self._quotas(found, m)
        distance = rng.random(data.n) if self.order == "random" else found.distance
        index = chosen_within(found.labels, distance, quotas, KEEP[self.order], rng)
        return decided(data, index, f"not {self.order} in its cluster", cluster=found.labels, distance=found.distance)

    def _quotas(self, found: Clustering, m: int) -> Ints:
        if self.quota == "balanced":
            return balanced(found.sizes, m)
        if self.quota == "density":
            shares = density(found, self.clusters.metric == "cosine", self.temperature)
            least = self.floor * np.minimum(found.sizes, m / found.k)
            return rounded(projected(shares * m, least, found.sizes, m), found.sizes, m)
        return (opposite if self.order == "far" else proportional)(found.sizes, m)


def density(found: Clustering, cosine: bool, temperature: float) -> Array:
    """P (k,) = softmax(d_inter d_intra / temperature), 0 for an empty cluster; one cluster alone has d_inter = 0."""
    sizes, k = found.sizes, found.k
    intra = np.bincount(found.labels, found.distance, k) / np.maximum(sizes, 1)
    inter, others = np.zeros(k), min(NEIGHBOURS, k - 1)
    centres = found.centres.astype(np.float64)
    for j in range(k if others else 0):
        squares = ((centres - centres[j]) ** 2).sum(axis=1)
        away = squares / 2 if cosine else np.sqrt(squares)
        away[j] = np.inf
        inter[j] = np.partition(away, others - 1)[:others].mean()
    return np.asarray(softmax(np.where(sizes > 0, inter * intra / temperature, -np.inf)))
