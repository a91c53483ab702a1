"""Rows that stand for all: every row near to one of them, or their mean near to the mean of all.

k-center, farthest first (Gonzalez 1985; Sener & Savarese 2018):
    s_1 the row nearest to the mean,   s_(t+1) = argmax_i min_(j <= t) |x_i - x_(s_j)|
    The largest distance of a row to the nearest of m is at most twice the least that any m rows reach. It keeps outliers.

Herding (Welling 2009; Chen, Welling & Smola 2010):
    s_(t+1) = argmin_i |(t + 1) mu - sum_(j <= t) phi(x_(s_j)) - phi(x_i)|,   mu = mean phi(x_i),   each row once
    The mean of the first m differs from mu by O(1/m), while m is well below n; at random it is O(1/sqrt m).
    linear   phi(x) = x
    rbf      phi(x)_r = sqrt(2 / D) cos(<w_r, x> + b_r), r = 1 .. D, w_r ~ N(0, I / sigma^2), b_r uniform on [0, 2 pi]:
             <phi(x), phi(y)> is exp(-|x - y|^2 / (2 sigma^2)) in the mean over these draws (Rahimi & Recht 2007). sigma^2 is
             half the median of |x_i - x_j|^2 over pairs of different rows, or given

Ties go to the first row. Groups are covered one at a time, their quotas proportional.
"""

from typing import Literal

import numpy as np
from numpy.random import Generator

from selfloop.component import Count, Positive, component
from selfloop.curate.budget import Share, kept, proportional
from selfloop.curate.groups import WithinGroups, decided
from selfloop.embed import Embedding, Floats, PixelEmbedding, blocks, embedded, sound
from selfloop.measure import Array, Ints, Measure, Selection
from selfloop.protocols import Work
from selfloop.threads import one_thread

TOGETHER = 2**17
"""Values, of rows times d, that are looked at together for the farthest row."""
PAIRS = 4096
"""Pairs of rows of which the median distance is taken."""


@component
class KCenter(WithinGroups):
    """`k_center`: farthest first.

    features: what is compared; fraction: the share of rows that stays; within: data, or each class or cluster by itself.
    """

    fraction: Share
    features: Embedding = PixelEmbedding()

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay. Raises ValueError for features that are not finite."""
        (features,) = sound("k-center", 1, features=embedded(self.features, data, work and work.at("features")))
        groups = self.groups(data, rng, work)
        with one_thread():
            index = groups.picked(
                proportional(groups.sizes, kept(data.n, self.fraction)), lambda rows, m: farthest_first(features[rows], m)
            )
        return decided(data, index, "near a row that stays", **groups.columns)


def farthest_first(x: Floats, m: int, together: int = TOGETHER) -> Ints:
    """m rows of x (n, d), in the order in which they are picked.

    The distance of a row to those picked only falls, so that what it once was bounds it. Only the rows of the largest bounds
    are looked at, and rows are picked from them as long as theirs are above all other bounds. In float64.
    """
    n, lengths = len(x), np.einsum("nd,nd->n", x, x, dtype=np.float64)
    mean, seen, picked = x.mean(axis=0, dtype=np.float64), np.ones(n, dtype=np.int64), np.empty(m, dtype=np.int64)
    picked[0] = np.argmin(np.concatenate([((x[rows] - mean) ** 2).sum(axis=1) for rows in blocks(n, 4096)]))
    bound = _gaps(x, lengths, x[picked[:1]]).min(axis=1)  # to the first seen[i] picked rows; -1 for these themselves
    bound[picked[0]] = -1

    def look_at(rows: Ints, t: int) -> None:
        late = rows[seen[rows] < t]
        for part in np.array_split(late[np.argsort(seen[late], kind="stable")], 8):
            for some in np.array_split(part, 1 + len(part) * t // 2**20):
                old = int(seen[some].min(initial=t - 1))
                bound[some] = np.minimum(bound[some], _gaps(x[some], lengths[some], x[picked[old:t]]).min(axis=1))
        seen[late] = t

    t, size = 1, min(max(together // x.shape[1], 16), n)
    while t < m:
        top = np.argpartition(-bound, size - 1)[:size]
        look_at(top, t)
        rows = np.union1d(top, np.flatnonzero(bound >= bound[top].max()))
        look_at(rows, t)
        others = bound.copy()
        others[rows] = -1
        near, own, nearest = x[rows].astype(np.float64), lengths[rows], bound[rows]
        least, above = -1.0, others.max()  # the first of `rows` is the farthest of all, the next while above the others
        while t < m and nearest.max() > least:
            best = int(nearest.argmax())
            nearest = np.minimum(nearest, np.maximum(own + own[best] - 2 * (near @ near[best]), 0))
            nearest[best], picked[t], t, least = -1, rows[best], t + 1, above
        bound[rows], seen[rows] = nearest, t
    return picked


def _gaps(x: Floats, lengths: Array, centres: Floats) -> Array:
    """|x_i - c_j|^2 (n, k) for x (n, d) of squared lengths (n,) and centres (k, d), in float64."""
    c = centres.astype(np.float64)
    products = [x[rows].astype(np.float64) @ c.T for rows in blocks(len(x), 4096)] or [np.empty((0, len(c)))]
    return np.asarray(np.maximum(lengths[:, None] + (c * c).sum(axis=1) - 2 * np.concatenate(products), 0))


@component
class Herding(WithinGroups):
    """`herding`: rows whose mean stays near the mean of all.

    fraction: the share of rows that stays; kernel: linear for the mean of the features, rbf for that of a kernel; frequencies:
    D, random features of rbf; bandwidth: sigma of rbf, `median` or a distance; features: what is compared; within: data, or
    each class or cluster by itself.
    """

    fraction: Share
    kernel: Literal["linear", "rbf"] = "linear"
    frequencies: Count = 512
    bandwidth: Literal["median"] | Positive = "median"
    features: Embedding = PixelEmbedding()

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay. Raises ValueError for features that are not finite."""
        (features,) = sound("herding", 1, features=embedded(self.features, data, work and work.at("features")))
        groups = self.groups(data, rng, work)

        def pick(rows: Ints, m: int) -> Ints:
            x = np.asarray(features[rows], dtype=np.float32)
            return herded(x if self.kernel == "linear" else self._waves(x, rng), m)

        with one_thread():
            index = groups.picked(proportional(groups.sizes, kept(data.n, self.fraction)), pick)
        return decided(data, index, "not needed for the mean", **groups.columns)

    def _waves(self, x: Floats, rng: Generator) -> Floats:
        """phi(x) (n, D)."""
        sigma = median_distance(x, rng) / np.sqrt(2) if self.bandwidth == "median" else self.bandwidth
        frequency = (rng.standard_normal((x.shape[1], self.frequencies)) / sigma).astype(np.float32)
        phase = rng.uniform(0, 2 * np.pi, self.frequencies).astype(np.float32)
        out = np.empty((len(x), self.frequencies), dtype=np.float32)
        for rows in blocks(len(x), 4096):
            out[rows] = np.sqrt(2 / self.frequencies) * np.cos((x[rows] - x[0]) @ frequency + phase)
        return out


def median_distance(x: Floats, rng: Generator) -> float:
    """The median of |x_i - x_j| over random pairs of rows that are not equal; 1 if all are."""
    i, j = rng.integers(0, len(x), (2, PAIRS))
    squares = ((x[i] - x[j]).astype(np.float64) ** 2).sum(axis=1)
    return float(np.sqrt(np.median(squares[squares > 0]))) if (squares > 0).any() else 1.0


def herded(phi: Floats, m: int) -> Ints:
    """m rows of phi (n, D), in the order in which they are picked; O(n m D).

    With z = phi - mu the row is argmin |w - z_i|^2 = argmin |z_i|^2 / 2 - <w, z_i>, where w = -sum of the z picked.
    """
    z = np.asarray(phi - phi.mean(axis=0, dtype=np.float64), dtype=np.float32, order="F")  # faster by columns
    half = 0.5 * np.einsum("nd,nd->n", z, z, dtype=np.float64)
    w, picked = np.zeros(z.shape[1]), np.empty(m, dtype=np.int64)
    for t in range(m):
        picked[t] = best = int(np.argmin(half - z @ w.astype(np.float32)))
        w -= z[best]
        half[best] = np.inf
    return picked
