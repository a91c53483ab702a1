"""Sources of real data: laws in closed form and finite data sets, one member per replicate."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from annotated_types import Ge, Gt, Le, Len, Lt
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Strict

from selfloop import covariance
from selfloop.component import Count, Positive, Real, component
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Ints, Measure
from selfloop.protocols import MomentModel, Source

Vector = Annotated[tuple[Real, ...], Len(1)]
Matrix = Annotated[tuple[Vector, ...], Len(1)]
Shares = Annotated[tuple[Annotated[float, Strict(), Ge(0)], ...], Len(1)]


@runtime_checkable
class SourceFactory(Protocol):
    """The `real` section of an experiment: what makes the source of each replicate."""

    def replicated(self, replicates: int, rng: Generator) -> Source: ...


@dataclass(frozen=True)
class Law:
    """An endless source: a model whose samples are the real data. Every row is a new draw."""

    model: Any

    def take(self, start: int, n: int, rng: Generator, statistics: bool = False) -> Data:
        """n new draws, whatever the start. Raises TypeError if moments are asked of a law that draws only points."""
        if not statistics:
            return self.sample(n, rng)
        if isinstance(self.model, MomentModel):
            return self.model.draw(n, rng)
        raise TypeError(f"{type(self.model).__name__} draws points only; set statistics: false")

    def sample(self, n: int, rng: Generator) -> Measure:
        """n new draws (*batch, n, *event)."""
        drawn: Measure = self.model.sample(n, rng)
        return drawn

    def law(self) -> Gaussian | None:
        """The Gaussian it is, or None."""
        gaussian: Gaussian | None = self.model.law()
        return gaussian


@dataclass(frozen=True)
class DataSet:
    """A finite source: rows (N, *event) in an order of its own for every replicate, the last of them held out.

    order (R, N): a permutation a replicate; training rows are its first `rows`, in order, so that no row is used
    twice; the held-out rows are for comparison.
    """

    points: Array
    labels: Ints
    order: Ints
    rows: int

    def take(self, start: int, n: int, rng: Generator, statistics: bool = False) -> Data:
        """Rows start .. start + n - 1 of each replicate's order. Raises ValueError when they run out."""
        if start + n > self.rows:
            raise ValueError(
                f"the data set is exhausted: rows {start} to {start + n - 1} are asked for, of {self.rows} for training; "
                "ask for fewer, run fewer generations or hold out less"
            )
        rows = self._rows(self.order[:, start : start + n])
        return rows.moments() if statistics else rows

    def sample(self, n: int, rng: Generator) -> Measure:
        """n held-out rows a replicate without repetition (all of them in a new order if fewer are held out)."""
        held = self.order[:, self.rows :]
        return self._rows(rng.permuted(held, axis=1)[:, :n])

    def _rows(self, index: NDArray[Any]) -> Measure:
        weights = np.broadcast_to(1.0 / index.shape[1], index.shape)
        return Measure(self.points[index], weights, self.labels[index])

    def law(self) -> None:
        """A data set has no law in closed form."""
        return None


@component
class GaussianSource:
    """p_r = N(mean, cov), cov symmetric positive definite."""

    mean: Vector
    cov: Matrix

    gives: ClassVar[frozenset[str]] = frozenset({"law", "draw"})

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return len(self.mean)

    def __post_init__(self) -> None:
        mean, rows = len(self.mean), [len(row) for row in self.cov]
        if rows != [mean] * mean:
            raise ValueError(f"cov must be {mean} x {mean} to match a mean of {mean} entries, got rows of {rows}")
        cov = np.array(self.cov)
        if not np.allclose(cov, cov.T):
            raise ValueError(f"cov must be symmetric, got {self.cov}")
        least = float(np.linalg.eigvalsh(cov)[0])
        if not covariance.is_positive(cov):
            raise ValueError(f"cov must be positive definite, its least eigenvalue is {least:.3g}; add to its diagonal")

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        return Law(Gaussian(np.array(self.mean), np.array(self.cov)).expanded(replicates))


@component
class MixtureSource:
    """p_r = sum_k weights[k] N(means[k], std^2 I): modes with names of their own, 0 .. K - 1."""

    means: Matrix
    std: Positive
    weights: Shares | None = None

    gives: ClassVar[frozenset[str]] = frozenset({"modes"})

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return len(self.means[0])

    def __post_init__(self) -> None:
        dimensions = {len(mean) for mean in self.means}
        if len(dimensions) != 1:
            raise ValueError(f"means must share one dimension, got {sorted(dimensions)}")
        if self.weights is not None and (len(self.weights) != len(self.means) or abs(sum(self.weights) - 1) > 1e-9):
            raise ValueError(f"weights must be {len(self.means)} numbers that add to one, got {self.weights}")

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same mixture for every replicate."""
        from selfloop.algorithms.mixture import MixtureModel

        means = np.array(self.means)
        k, d = means.shape
        weights = np.full(k, 1 / k) if self.weights is None else np.array(self.weights)
        return Law(MixtureModel(weights, means, np.broadcast_to(self.std**2 * np.eye(d), (k, d, d))).expanded(replicates))


@component
class CategoricalSource:
    """p_r on K categories, one-hot in R^K: `probabilities`, which add to one, or `categories` equal ones."""

    probabilities: Shares | None = None
    categories: Count | None = None

    gives: ClassVar[frozenset[str]] = frozenset({"draw", "categories"})

    def __post_init__(self) -> None:
        if (self.probabilities is None) == (self.categories is None):
            raise ValueError("give either probabilities or categories")
        if self.probabilities is not None and abs(sum(self.probabilities) - 1) > 1e-9:
            raise ValueError(f"probabilities must add to one, got a sum of {sum(self.probabilities)}")

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same shares for every replicate."""
        from selfloop.algorithms.categorical import Categorical

        shares = self.probabilities or (1 / (self.categories or 1),) * (self.categories or 1)
        return Law(Categorical(np.array(shares)).expanded(replicates))


@component
class RegressionSource:
    """x ~ N(0, I_d), y = coefficients . x + noise z: the points (x, y) are Gaussian in R^(d + 1)."""

    coefficients: Vector
    noise: Positive = 1.0

    gives: ClassVar[frozenset[str]] = frozenset({"law", "draw", "regression"})

    @property
    def d(self) -> int:
        """Dimension of a point (x, y)."""
        return len(self.coefficients) + 1

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same regression for every replicate."""
        w = np.array(self.coefficients)
        cov = np.block([[np.eye(len(w)), w[:, None]], [w[None, :], np.array([[w @ w + self.noise**2]])]])
        return Law(Gaussian(np.zeros(len(w) + 1), cov).expanded(replicates))


@component
class Digits:
    """1,797 handwritten digits of 8 x 8 pixels in [0, 1], ten classes, embedded in scikit-learn (no download).

    held_out: the share of rows kept for comparison; components: points are their first principal components, of all digits, in
    units of a pixel, and not pixels. Source: E. Alpaydin and C. Kaynak, UCI repository (1998).
    Raises ModuleNotFoundError, with the remedy, where scikit-learn is not installed.
    """

    held_out: Annotated[float, Strict(), Gt(0), Lt(1)] = 0.25
    components: Annotated[int, Strict(), Ge(1), Le(61)] | None = None

    gives: ClassVar[frozenset[str]] = frozenset({"labels"})

    @property
    def d(self) -> int:
        """Numbers of a point."""
        return self.components or 64

    @property
    def rows(self) -> int:
        """Rows for training."""
        return 1797 - round(1797 * self.held_out)

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """All digits, in an order and with a held-out part of its own for every replicate."""
        try:
            from sklearn.datasets import load_digits
            from sklearn.decomposition import PCA
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("the digits come with scikit-learn; run: pip install scikit-learn") from error
        images, labels = load_digits(return_X_y=True)
        points = images / 16.0
        if self.components is not None:
            points = PCA(self.components, svd_solver="full").fit_transform(points)
        order = rng.permuted(np.tile(np.arange(len(images)), (replicates, 1)), axis=1)
        return DataSet(points, labels.astype(np.int64), order, self.rows)
