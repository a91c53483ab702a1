"""D2 pruning: scores that neighbours share, so that what is kept is both hard and spread out (Maharana, Yadav & Bansal 2024).

N(i) are the `neighbours` nearest other rows of row i, d_ij = |x_i - x_j| their distances, s_i in [0, 1] the score as its
direction wants it: (s - min) / (max - min) for high, (max - s) / (max - min) for low, 1 if all are equal.

    forward    s_i <- s_i + sum_(j in N(i)) exp(-d_ij) s_j                       rows in dense and high regions gain
    reverse    pick i = argmax s_i of those left; then, for j in N(i),  s_j <- s_j - exp(-gamma d_ij) s_i

until the budget is full; ties go to the first row. Scaling scores to [0, 1] is our choice: messages make sense for scores of
one sign, and the result then depends neither on the unit nor on the zero of the score.
"""

import heapq
from typing import Literal

import numpy as np
from numpy.random import Generator

from selfloop.component import Count, NonNegative, component
from selfloop.curate.budget import Share, kept, proportional
from selfloop.curate.cluster import faiss, in_order, needs_faiss
from selfloop.curate.direction import sane
from selfloop.curate.groups import WithinGroups, decided
from selfloop.embed import Embedding, Floats, PixelEmbedding, blocks, embedded, sound
from selfloop.measure import Array, Ints, Measure, Selection
from selfloop.protocols import Score, Work

QUERIES = 1024
"""Rows whose neighbours are sought at a time."""


@component
class D2(WithinGroups):
    """`d2`: the highest scores, after messages between neighbours.

    score: what is computed of each row; fraction: the share of rows that stays; keep: high or low scores; features: in which
    neighbours are near; neighbours: k; gamma: how fast reverse messages fall, in one over the unit of the features; within:
    data, or each class or cluster by itself, which then bounds the graph and its cost, O(n_g^2 d) for a group of n_g rows.
    Raises ModuleNotFoundError without faiss.
    """

    score: Score
    fraction: Share
    keep: Literal["high", "low"]
    features: Embedding = PixelEmbedding()
    neighbours: Count = 10
    gamma: NonNegative = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        needs_faiss()

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay; table: score as it was given, and cluster and distance if there are clusters.

        Raises ValueError for scores or features that are not finite.
        """
        scores = sane(self.score(data, rng, work and work.at("score")), data.n)
        (features,) = sound("d2", 1, features=embedded(self.features, data, work and work.at("features")))
        groups = self.groups(data, rng, work)
        span = float(np.ptp(scores)) or 1.0
        wish = (scores - scores.min() if self.keep == "high" else scores.max() - scores) / span
        if not np.ptp(scores):
            wish = np.ones(data.n)

        def pick(rows: Ints, m: int) -> Ints:
            return passed(wish[rows], *nearest(np.asarray(features[rows], dtype=np.float32), self.neighbours), m, self.gamma)

        index = groups.picked(proportional(groups.sizes, kept(data.n, self.fraction)), pick)
        return decided(data, index, f"not {self.keep} beside its neighbours", score=scores, **groups.columns)


def nearest(x: Floats, k: int) -> tuple[Ints, Array]:
    """The k nearest other rows (n, k) of each row of x (n, d), all others if they are fewer, and their distances (n, k).

    Found in float32 about the mean, distances from the differences: exactly 0 to copies.
    """
    z, n = x - x.mean(axis=0, dtype=np.float64).astype(np.float32), len(x)
    k = min(k, n - 1)

    def of(rows: slice) -> tuple[Ints, Array]:
        found = faiss().knn(z[rows], z, k + 1)[1].astype(np.int64)
        own = found == np.arange(rows.start, rows.stop)[:, None]
        own[~own.any(axis=1), -1] = True  # behind more than k copies of it
        others = found[~own].reshape(len(own), k)
        gaps = x[others] - x[rows][:, None]
        return others, np.sqrt(np.einsum("nkd,nkd->nk", gaps, gaps, dtype=np.float64))

    index, distance = zip(*in_order(of, blocks(n, QUERIES)), strict=True)
    return np.concatenate(index), np.concatenate(distance)


def passed(scores: Array, neighbours: Ints, distance: Array, m: int, gamma: float) -> Ints:
    """m rows by forward messages and a greedy choice with reverse ones; scores (n,), neighbours and distance (n, k).

    The largest score is on top of a heap, which also holds what scores were before messages: those are passed over.
    """
    s = (scores + (np.exp(-distance) * scores[neighbours]).sum(axis=1)).tolist()
    messages = np.exp(-gamma * distance)
    heap = [(-value, i) for i, value in enumerate(s)]
    heapq.heapify(heap)
    left = [True] * len(s)
    picked: list[int] = []
    while len(picked) < m:
        value, i = heapq.heappop(heap)
        if not left[i] or -value != s[i]:
            continue
        left[i] = False
        picked.append(i)
        for j, message in zip(neighbours[i].tolist(), messages[i].tolist(), strict=True):
            if left[j]:
                s[j] -= message * s[i]
                heapq.heappush(heap, (-s[j], j))
    return np.array(picked, dtype=np.int64)
