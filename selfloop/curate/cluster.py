"""k-means over features: groups of like rows, found without labels.

    euclidean   min sum_i |x_i - c_l(i)|^2              c_k the mean of its rows                        Lloyd (1982)
    cosine      max sum_i <u_i, c_l(i)>, u = x / |x|    c_k the mean of its u, brought to length one    Dhillon & Modha (2001)

Centres start by k-means++ (Arthur & Vassilvitskii 2007): each new one is a row drawn with probability proportional to its
squared distance to those before, the best of 2 + ln k such draws. A centre that loses its rows moves to the row farthest from
its own. Centres are trained on a sample of rows; then every row goes to its nearest centre, which is found by faiss.

Rows are read and assigned a block at a time, each block by one thread, and added up in the order of the blocks: memory is that
of a few blocks and the centres, features may be a memory map, and the result is the same to the bit for any number of threads.
"""

import importlib.util
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.random import Generator

from selfloop.component import Count, component
from selfloop.embed import Embedding, Floats, PixelEmbedding, blocks, embedded, sound
from selfloop.measure import Array, Ints, Measure
from selfloop.protocols import Work
from selfloop.threads import one_thread

S = TypeVar("S")
T = TypeVar("T")
Metric = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Clustering:
    """Groups of rows: labels (n,) in 0 .. k - 1, centres (k, d), distance (n,) of each row to its centre.

    The distance is |x - c|, in units of the features; for metric cosine 1 - cos(x, c), and centres have length one.
    """

    labels: Ints
    centres: Floats
    distance: Floats

    @property
    def k(self) -> int:
        """Number of clusters, empty ones included."""
        return len(self.centres)

    @property
    def sizes(self) -> Ints:
        """Rows (k,) in each cluster."""
        return np.bincount(self.labels, minlength=self.k)

    def members(self) -> list[Ints]:
        """The rows of each cluster, ascending."""
        return rows_of(self.labels, self.sizes)


def rows_of(labels: Ints, sizes: Ints) -> list[Ints]:
    """The rows of each of k groups, ascending, from labels (n,) and sizes (k,)."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])


@component
class Clusters:
    """k-means with k clusters.

    features: what is compared, the points themselves by default; metric: euclidean, or cosine for spherical k-means;
    iterations: of Lloyd's, at most; restarts: runs, of which the one of least cost stays; sample: rows a cluster that centres
    are trained on.
    Source: Lloyd (1982); Arthur & Vassilvitskii (2007); Johnson et al. (2019) for faiss.
    Raises ModuleNotFoundError without faiss.
    """

    k: Count
    features: Embedding = PixelEmbedding()
    metric: Metric = "euclidean"
    iterations: Count = 25
    restarts: Count = 1
    sample: Count = 256

    def __post_init__(self) -> None:
        needs_faiss()

    @property
    def least_rows(self) -> int:
        """A row for each cluster."""
        return self.k

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Clustering:
        """The clusters of one data set. Raises what embedding it and `of` raise."""
        return self.of(embedded(self.features, data, work), rng)

    def of(self, features: Any, rng: Generator) -> Clustering:
        """The clusters of features (n, d), an array or a memory map; warns if some are empty.

        Raises ValueError for k > n, features that are not finite, or a row of zeros with metric cosine.
        """
        n = features.shape[0]
        if self.k > n:
            raise ValueError(f"{self.k} clusters need as many rows, and there are {n}; set clusters.k to {n} or less")
        sound("k-means", 1, features=features)
        space = _Space(features, self.metric == "cosine", _mean(features))
        rows = np.sort(rng.choice(n, min(n, self.sample * self.k), replace=False))
        with one_thread():
            runs = [self._trained(space, rows, rng) for _ in range(self.restarts)]
        found = space.around(min(runs, key=lambda run: run[1])[0])
        if empty := int((found.sizes == 0).sum()):
            text = f"{empty} of {self.k} clusters are empty: there are fewer groups of different rows; set clusters.k lower"
            warnings.warn(text, stacklevel=2)
        return found

    def around(self, features: Any, centres: Floats) -> Clustering:
        """The clusters of features (n, d) around given centres (k, d): every row goes to the nearest."""
        space = _Space(features, self.metric == "cosine", _mean(features))
        return space.around(unit(centres) if space.cosine else centres - space.mean)

    def _trained(self, space: "_Space", rows: Ints, rng: Generator) -> tuple[Floats, float]:
        """Centres (k, d) by Lloyd's iteration on the rows (m,), and their cost."""
        centres, labels, cost = self._seeds(space, rows, rng), np.full(len(rows), -1), np.inf
        for _ in range(self.iterations):
            sums, counts, distance = np.zeros(centres.shape), np.zeros(self.k), np.empty(len(rows), dtype=np.float32)
            before, parts = labels.copy(), [rows[part] for part in blocks(len(rows), space.block)]
            for part, found in zip(blocks(len(rows), space.block), in_order(space.summed(centres), parts), strict=True):
                labels[part], distance[part], present, total, count = found
                sums[present] += total
                counts[present] += count
            cost = float(distance.sum(dtype=np.float64))
            if np.array_equal(labels, before):
                break
            centres = _moved(centres, sums, counts, space, rows, distance)
        return centres, cost

    def _seeds(self, space: "_Space", rows: Ints, rng: Generator) -> Floats:
        """k rows far apart, by greedy k-means++ on at most 4 k + 8192 of the rows."""
        x = space.read(np.sort(rng.choice(rows, min(len(rows), 4 * self.k + 8192), replace=False)))
        squares, picked = (x * x).sum(axis=1), [int(rng.integers(len(x)))]

        def to(candidates: Ints) -> Array:
            gaps: Array = squares[candidates, None] + squares - 2 * (x[candidates] @ x.T)
            return np.maximum(gaps, 0).astype(np.float64)

        nearest = to(np.array(picked))[0]
        while len(picked) < self.k:
            below = np.cumsum(nearest)
            draws = np.searchsorted(below, rng.random(2 + int(np.log(self.k))) * below[-1], side="right")
            candidates = np.minimum(draws, len(x) - 1)
            after = np.minimum(nearest, to(candidates))
            best = int(after.sum(axis=1).argmin())
            picked.append(int(candidates[best]))
            nearest = after[best]
        return x[picked]


@dataclass(frozen=True)
class _Space:
    """Features as they are compared: brought to length one for cosine; else less their mean, so that squares do not cancel."""

    features: Any
    cosine: bool
    mean: Floats

    @property
    def block(self) -> int:
        """Rows of a block: 16 MB of features, at most 4096."""
        return max(min(4096, 2**22 // int(self.features.shape[1])), 1)

    def read(self, rows: Any) -> Floats:
        """The rows, a slice or an index. Raises ValueError for one that is zero and has no direction."""
        x = np.asarray(self.features[rows], dtype=np.float32)
        return unit(x) if self.cosine else x - self.mean

    def around(self, centres: Floats) -> Clustering:
        """Every row with the nearest of the centres, and the distance to it, computed from the difference."""
        search = self._search(centres)

        def of(rows: Any) -> tuple[Ints, Floats]:
            x = self.read(rows)
            _, labels = search(x)
            squares = ((x - centres[labels]) ** 2).sum(axis=1)
            return labels, squares / 2 if self.cosine else np.sqrt(squares)

        parts = list(in_order(of, blocks(self.features.shape[0], self.block)))
        labels, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Clustering(labels, centres if self.cosine else centres + self.mean, distance)

    def summed(self, centres: Floats) -> Callable[[Any], tuple[Ints, Floats, Ints, Array, Ints]]:
        """rows -> labels, squared distances, the labels present, and the sum and the number of rows of each."""
        search = self._search(centres)

        def of(rows: Any) -> tuple[Ints, Floats, Ints, Array, Ints]:
            x = self.read(rows)
            squares, labels = search(x)
            present, starts, count = np.unique(np.sort(labels), return_index=True, return_counts=True)
            total = np.add.reduceat(x[np.argsort(labels, kind="stable")], starts, axis=0, dtype=np.float64)
            return labels, squares, present, total, count

        return of

    def _search(self, centres: Floats) -> Callable[[Floats], tuple[Floats, Ints]]:
        """x (m, d) -> squared distances to the nearest centres, and which these are."""
        index = faiss().IndexFlatL2(centres.shape[1])
        index.add(centres)

        def search(x: Floats) -> tuple[Floats, Ints]:
            squares, labels = index.search(x, 1)
            return np.maximum(squares[:, 0], 0), labels[:, 0]

        return search


def unit(x: Floats) -> Floats:
    """x / |x| for each row of x (n, d). Raises ValueError for a row of zeros."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not (length > 0).all():
        raise ValueError("a row of features is zero and has no direction; drop it, or set metric: euclidean")
    return np.asarray(x / length, dtype=np.float32)


def in_order(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """function of each item, in their order, by threads that use one core each and run at most two items ahead.

    As many threads as faiss has: OMP_NUM_THREADS, or one a core. What an item gives does not depend on their number.
    """
    library = faiss()
    threads = library.omp_get_max_threads()
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, initializer=library.omp_set_num_threads, initargs=(1,)) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def faiss() -> Any:
    """The library. Raises ModuleNotFoundError with what installs it."""
    needs_faiss()
    import faiss as library

    return library


def needs_faiss() -> None:
    """Raises ModuleNotFoundError, with what installs it, where faiss is not installed; it is looked for, not imported."""
    if importlib.util.find_spec("faiss") is None:
        raise ModuleNotFoundError("clusters and nearest neighbours need faiss; run: pip install faiss-cpu")


def _mean(features: Any) -> Floats:
    n, d = features.shape
    total = np.zeros(d)
    for rows in blocks(n, 4096):
        total += np.asarray(features[rows]).sum(axis=0, dtype=np.float64)
    return np.asarray(total / n, dtype=np.float32)


def _moved(centres: Floats, sums: Array, counts: Array, space: _Space, rows: Ints, distance: Floats) -> Floats:
    """Each centre at the mean of its rows; one without rows at the row that is farthest from its own, or the next farthest."""
    moved, full = centres.astype(np.float64), counts > 0
    moved[full] = sums[full] / counts[full, None]
    if not full.all():
        far = np.argsort(-distance, kind="stable")[: int((~full).sum())]
        moved[~full] = space.read(rows[far])
    if space.cosine:
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        moved = np.where(length > 0, moved / np.where(length > 0, length, 1), centres)
    return np.asarray(moved, dtype=np.float32)
