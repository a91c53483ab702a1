"""How densely the features z of other rows lie around a row: likelihoods, and the distance to a near neighbour.

    gaussian   ln N(z; m, S) = -1/2 [d ln 2 pi + ln det S + (z - m)^T S^-1 (z - m)]             high where dense
    ppca       the same with all but q variances of S made equal to their mean, s^2             high where dense
    knn        |z - z_(k)|, z_(k) the k-th nearest other row                                    high where sparse

m and S are those of all rows, or of the rows of one class, under the weights of the data. S divides by n in `gaussian`, by
n - 1 in `ppca`. With n <= d + 1 rows and no shrinkage every row has the same Mahalanobis distance and the ranking is rounding:
there is a warning, and in `gaussian` an error if it is so in every class; the density is that on the directions in which the
features vary.

Shrinkage:  S <- (1 - a) S + a (tr S / d) I, a given, or that of Ledoit & Wolf,
    a = min(1, (sum_i w_i |z_i - m|^4 - |S|^2) / (n (|S|^2 - (tr S)^2 / d))),  or the oracle-approximating one of Chen et al.

Source: DeVries et al. (2020), arXiv 2007.15255, for the three as scores of images; Ledoit & Wolf (2004); Chen et al. (2010);
Tipping & Bishop (1999) for probabilistic principal components.
"""

import warnings
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Gt, Lt
from numpy.random import Generator
from pydantic import Strict

from selfloop import covariance
from selfloop.component import Count, Switch, component
from selfloop.curate.cluster import Clusters, faiss, in_order, needs_faiss
from selfloop.embed import Embedding, FeatureMoments, PixelEmbedding, blocks, embedded
from selfloop.embed.pca import EXPLAINED, Share, least_that_explain
from selfloop.laws import Gaussian
from selfloop.measure import Array, Ints, Measure
from selfloop.protocols import Work
from selfloop.threads import one_thread

ROWS = 1024
QUERIES = 4096
BYTES = 2**26
"""Rows whose density is found at a time; rows whose neighbours are, and bytes of the features that these are sought in."""
SPARE = 8
"""Candidates beyond the k nearest in float32, among which the k-th is found in float64."""

Shrinkage = Literal["none", "ledoit_wolf", "oas"] | Annotated[float, Strict(), Gt(0), Lt(1)]


class ByClass:
    """What looks at each class by itself if its field `per_class` is true."""

    per_class: Switch

    instead: ClassVar[str] = "set per_class: false"

    @property
    def needs_real(self) -> frozenset[str]:
        """Labels, if each class is looked at by itself."""
        return frozenset({"labels"}) if self.per_class else frozenset()


@component
class GaussianScore(ByClass):
    """`gaussian`: the log density of a Gaussian that is fitted to the rows, or to those of each class.

    features: of what, the points themselves by default; per_class: a Gaussian a class; shrinkage: of the covariance toward the
    sphere, `none`, an intensity in (0, 1), `ledoit_wolf` or `oas`.
    """

    features: Embedding = PixelEmbedding()
    per_class: Switch = True
    shrinkage: Shrinkage = "none"

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """The log density (n,), in nats.

        Raises ValueError if a Gaussian a class is asked of data without labels, for a class of one row, and
        without shrinkage if no class has more rows than d + 1.
        """
        x, out = embedded(self.features, data, work), np.empty(data.n)
        flat: list[tuple[str, int, int]] = []
        groups, d = classes(data, self.per_class, "gaussian", 2), x.shape[1]
        alike = {name for name, rows in groups if self.shrinkage == "none" and len(rows) <= d + 1}
        if len(alike) == len(groups):
            name, most = max(((name, len(rows)) for name, rows in groups), key=lambda one: one[1])
            who = f"{name} has {most} rows" + (", and no class more," if groups[1:] else "")
            raise ValueError(
                f"{who} in {d} dimensions: without shrinkage all rows of a Gaussian have one Mahalanobis distance, and their "
                "ranking is rounding; set shrinkage: oas, or features: {kind: pca}"
            )
        for name, rows in groups:
            with one_thread():
                gathered = _gathered(x, rows, data.weights)
                law = gathered.likeliest()
                intensity = self._intensity(x, rows, data.weights, law, gathered.n)
                values, vectors = covariance.eigh(covariance.toward_sphere(law.cov, intensity))
                out[rows], rank = _log_density(x, rows, law.mean, values, vectors)
            flat += [(name, len(rows), rank)] if name in alike or rank < d else []
        _warn(flat, d, "set shrinkage: oas")
        return out

    def _intensity(self, x: Any, rows: Ints, weights: Array, law: Gaussian, n: float) -> Any:
        if not isinstance(self.shrinkage, str):
            return self.shrinkage
        if self.shrinkage == "none":
            return 0.0
        if self.shrinkage == "oas":
            return covariance.oas(law.cov, np.asarray(n))
        parts = [rows[part] for part in blocks(len(rows), ROWS)]
        fourth = sum(weights[part] @ _squares(x[part] - law.mean) ** 2 for part in parts) / weights[rows].sum()
        square, sphere = (law.cov**2).sum(), np.trace(law.cov) ** 2 / len(law.cov)
        return min((fourth - square) / (n * (square - sphere)), 1.0) if square > sphere else 1.0


@component
class PpcaScore(ByClass):
    """`ppca`: the log density of probabilistic principal components of the rows, or of those of each class.

    features: of what, the points themselves by default; components: q; explained: or the least q that has this share of the
    variance (.95 if neither is said); per_class: a model a class. Source: Tipping & Bishop (1999).
    """

    features: Embedding = PixelEmbedding()
    components: Count | None = None
    explained: Share | None = None
    per_class: Switch = True

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __post_init__(self) -> None:
        if self.components is not None and self.explained is not None:
            raise ValueError("the number of components is given, or follows from the share explained; give one of them")

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """The log density (n,), in nats. Raises ValueError for more components than features, and for a class of one row."""
        x, out = embedded(self.features, data, work), np.empty(data.n)
        flat: list[tuple[str, int, int]] = []
        d = x.shape[1]
        if self.components is not None and self.components > d:
            raise ValueError(f"{self.components} components are asked of {d} features; ask for {d} or fewer")
        for name, rows in classes(data, self.per_class, "ppca", 2):
            with one_thread():
                law = _gathered(x, rows, data.weights).law()
                values, vectors = covariance.eigh(law.cov)
                q = self.components or least_that_explain(values[::-1], self.explained or EXPLAINED)
                values[: d - q] = values[: d - q].mean() if q < d else 0.0
                out[rows], rank = _log_density(x, rows, law.mean, values, vectors)
            flat += [(name, len(rows), rank)] if rank < d else []
        _warn(flat, d, "ask for fewer components")
        return out


@component
class KnnScore(ByClass):
    """`knn`: the distance to the k-th nearest other row; 0 for a row with k copies.

    k: which; features: of what, the points themselves by default; per_class: among the rows of the same class. cells: rows are
    put into so many cells by k-means, and neighbours sought in the `probes` nearest ones: time in proportion to the rows of a
    cell and not to all, and distances that may be too large, never too small. Without it all rows are looked at.
    Raises ModuleNotFoundError without faiss.
    """

    k: Count = 5
    features: Embedding = PixelEmbedding()
    per_class: Switch = False
    cells: Count | None = None
    probes: Count = 8

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __post_init__(self) -> None:
        needs_faiss()

    @property
    def least_rows(self) -> int:
        """A row and its k neighbours."""
        return self.k + 1

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """The distances (n,), in units of the features, in O(n^2 d) time without cells and the memory of a few blocks.

        Raises ValueError if a class has k rows or fewer.
        """
        x, out = embedded(self.features, data, work), np.empty(data.n)
        middle = np.asarray(x[:: max(data.n // QUERIES, 1)]).mean(axis=0)
        for name, rows in classes(data, self.per_class, "knn"):
            if len(rows) <= self.k:
                raise ValueError(
                    f"neighbour {self.k} of a row needs {self.k + 1} rows, and {name} has {len(rows)}; lower k, or set "
                    "per_class: false"
                )
            tasks = _everywhere(rows) if self.cells is None else self._nearby(x, rows, rng)
            for queries, distances in in_order(lambda task: (task[0], _kth(x, middle, *task, self.k)), tasks):
                out[queries] = distances
        return out

    def _nearby(self, x: Any, rows: Ints, rng: Generator) -> Iterator[tuple[Ints, Ints]]:
        """Rows of one cell, and the rows of the cells near it, more than k."""
        found = Clusters(k=min(self.cells or 1, len(rows))).of(x if len(rows) == len(x) else x[rows], rng)
        members = [rows[own] for own in found.members()]
        for cell in np.flatnonzero(found.sizes):
            order = np.argsort(_squares(found.centres - found.centres[cell]), kind="stable")
            enough = int(np.searchsorted(np.cumsum(found.sizes[order]), self.k, side="right")) + 1
            among = np.sort(np.concatenate([members[near] for near in order[: max(self.probes, enough)]]))
            for part in blocks(len(members[cell]), QUERIES):
                yield members[cell][part], among


def classes(data: Measure, per_class: bool, kind: str, least: int = 1) -> list[tuple[str, Ints]]:
    """What messages call it, and the rows of each class; or of all.

    Raises ValueError for classes of data without labels, and for fewer rows than `least`, which is 1 or 2.
    """
    if not per_class:
        found = [("the data", np.arange(data.n))]
    elif data.labels is None:
        raise ValueError(f"{kind} looks at each class by itself, and the data have no labels; set per_class: false")
    else:
        found = [(f"class {label}", np.flatnonzero(data.labels == label)) for label in np.unique(data.labels)]
    for name, rows in found:
        if len(rows) < least:
            raise ValueError(f"{name} has a single row, and a covariance needs two; drop it, or set per_class: false")
    return found


# Likelihoods -----------------------------------------------------------------------------------------------------------


def _gathered(x: Any, rows: Ints, weights: Array) -> FeatureMoments:
    gathered = FeatureMoments()
    for part in blocks(len(rows), ROWS):
        gathered.update(x[rows[part]], weights[rows[part]])
    return gathered


def _log_density(x: Any, rows: Ints, mean: Array, values: Array, vectors: Array) -> tuple[Array, int]:
    """ln N (m,) of the rows, on the eigenvectors whose variance is above rounding, and their number."""
    present = values > covariance.ROUNDING * len(values) * max(values[-1], (mean**2).max())
    variances, axes = values[present], vectors[:, present]
    constant, out = np.log(2 * np.pi * variances).sum(), np.empty(len(rows))
    for part in blocks(len(rows), ROWS):
        z = (np.asarray(x[rows[part]], dtype=float) - mean) @ axes
        out[part] = -0.5 * (constant + (z**2 / variances).sum(axis=1))
    return out, len(variances)


def _warn(flat: list[tuple[str, int, int]], d: int, remedy: str) -> None:
    """Of classes whose rows do not span all d dimensions: name, number of rows, dimension."""
    if not flat:
        return
    name, n, rank = min(flat, key=lambda one: one[1])
    many = f" (and {len(flat) - 1} more classes are alike)" if flat[1:] else ""
    if n <= d + 1:
        why = f"{name} has {n} rows in {d} dimensions{many}: without shrinkage all its rows have one Mahalanobis distance"
        text = f"{why}, and their ranking is rounding"
    else:
        text = f"{name} varies in {rank} of {d} dimensions{many}: densities are those on these alone"
    warnings.warn(f"{text}; {remedy}, or features: {{kind: pca}}", stacklevel=3)


def _squares(x: Any) -> Array:
    return np.asarray((np.asarray(x, dtype=float) ** 2).sum(axis=1))


# Neighbours ------------------------------------------------------------------------------------------------------------


def _everywhere(rows: Ints) -> Iterator[tuple[Ints, Ints]]:
    return ((rows[part], rows) for part in blocks(len(rows), QUERIES))


def _kth(x: Any, middle: Any, queries: Ints, among: Ints, k: int) -> Array:
    """Distances (m,) of the rows `queries` to their k-th nearest other row in `among`.

    Candidates are found in float32, about the middle so that squares do not cancel; their distances in float64, from the
    differences, so that those to copies are 0.
    """
    own = np.asarray(x[queries], dtype=np.float32) - middle
    squares: Any = np.empty((len(queries), 0), dtype=np.float32)
    index: Any = np.empty((len(queries), 0), dtype=np.int64)
    for part in blocks(len(among), max(BYTES // (4 * x.shape[1]), 1)):
        others = np.asarray(x[among[part]], dtype=np.float32) - middle
        near, which = faiss().knn(own, others, min(k + 1 + SPARE, len(others)))
        squares, index = np.hstack([squares, near]), np.hstack([index, among[part][which]])
        best = np.argsort(squares, axis=1, kind="stable")[:, : k + 1 + SPARE]
        squares, index = (np.take_along_axis(of, best, axis=1) for of in (squares, index))
    out = np.empty(len(queries))
    for part in blocks(len(queries), max(BYTES // (8 * index.shape[1] * x.shape[1]), 1)):
        gaps = np.asarray(x[index[part].ravel()], dtype=float).reshape(-1, index.shape[1], x.shape[1])
        gaps -= np.asarray(x[queries[part]], dtype=float)[:, None]
        exact = np.where(index[part] == queries[part, None], np.inf, np.einsum("mkd,mkd->mk", gaps, gaps))
        out[part] = np.sqrt(np.partition(exact, k - 1, axis=1)[:, k - 1])
    return out
