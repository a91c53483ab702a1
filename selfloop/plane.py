"""Laws of real data in the plane of which everything is known: sampler, classes, density and denoiser at every noise level.

    p(x; sigma) = sum_c w_c p_c(x; sigma)         the law of x_0 + sigma z;  x_0 ~ p = p( . ; 0),  z ~ N(0, I);  c the class
    D(x; sigma) = E[x_0 | x_0 + sigma z = x] = sum_c r_c D_c(x; sigma),    r_c = w_c p_c(x; sigma) / p(x; sigma)
    classify(x) = argmax_c w_c p_c(x)             Bayes' rule: no classifier errs less often

mixture of Gaussians, one or more to a class: see `selfloop.algorithms.mixture`.
circle  x_0 = R u + std e, u uniform on the unit circle, e ~ N(0, I).  With s^2 = std^2 + sigma^2, r = |x|, k = r R / s^2,
        p_c = exp(-(r^2 + R^2) / 2 s^2) I_0(k) / (2 pi s^2),    D_c = (std^2 / s^2) x + (sigma^2 / s^2) R I_1(k) / I_0(k) x / r
square  uniform, so each coordinate is uniform on an interval m - w .. m + w.  With u = |x - m|, a = (u - w) / sigma,
        b = (u + w) / sigma, phi and Phi the standard normal density and distribution function,
        its factor of p_c is (Phi(b) - Phi(a)) / 2 w,   |D_c - m| = u - sigma (phi(a) - phi(b)) / (Phi(b) - Phi(a)) towards x
curve   x_0 = c(t) + std e. The integral over t is a sum over the nodes of a Gauss-Legendre rule, closer than std along the
        curve: a mixture of Gaussians, whose density is that of the curve to 10^-8 of its maximum.

A member of the batch is a replicate; all have the same law, so density, denoiser and classes take points x (..., n, 2).
Source: Metz et al. (2016), arXiv 1611.02163 (eight Gaussians); Dumoulin et al. (2016), arXiv 1606.00704 (grid); Grathwohl et
al. (2018), arXiv 1810.01367 (rings, checkerboard, spiral); Mardia & Jupp (2000), "Directional Statistics" (I_1 / I_0).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
from annotated_types import Ge, Gt, Len, Lt, MultipleOf
from numpy.random import Generator
from pydantic import Strict
from scipy.special import erfcx, i0e, i1e, log_ndtr, logsumexp, roots_legendre, softmax

from selfloop import covariance
from selfloop.algorithms.mixture import MixtureModel
from selfloop.component import Count, Positive, component
from selfloop.data import Law
from selfloop.measure import Array, Ints, Measure
from selfloop.protocols import Source, Work

LIMIT = 1e-100
"""sigma -> 0, where the limit is wanted: outside the support it is the nearest class and its nearest point."""

Radii = Annotated[tuple[Positive, ...], Len(1)]
Pair = Annotated[tuple[Annotated[float, Strict(), Gt(0), Lt(1)], ...], Len(2, 2)]
Thick = Annotated[float, Strict(), Ge(0.02)]
"""The least a curve may spread: it takes about two Gaussians for each std of its length."""


@dataclass(frozen=True)
class LabelledMixture:
    """A mixture without batch whose components have classes 0 .. C - 1, classes (K,), in each of so many replicates."""

    mixture: MixtureModel
    classes: Ints
    replicates: int

    @property
    def weights(self) -> Array:
        """Weights of the components, shape (R, K)."""
        return self.mixture.expanded(self.replicates).weights

    @property
    def means(self) -> Array:
        """Means of the components, shape (R, K, 2)."""
        return self.mixture.expanded(self.replicates).means

    @property
    def covs(self) -> Array:
        """Covariances of the components, shape (R, K, 2, 2)."""
        return self.mixture.expanded(self.replicates).covs

    def law(self) -> None:
        """None: the law is not Gaussian."""
        return None

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (R, n, 2) with their classes (R, n)."""
        chosen = rng.choice(self.mixture.components, (self.replicates, n), p=self.mixture.weights)
        z = rng.standard_normal((*chosen.shape, self.mixture.d))
        spread = np.einsum("...ij,...j->...i", covariance.factor(self.mixture.covs)[chosen], z)
        return Measure.uniform(self.mixture.means[chosen] + spread, self.classes[chosen])

    def log_density(self, x: Array, sigma: float = 0.0) -> Array:
        """ln p(x; sigma), shape (...), at x (..., n, 2)."""
        return replace(self.mixture, covs=self.mixture.covs + sigma**2 * np.eye(self.mixture.d)).log_density(x)

    def denoise(self, x: Array, sigma: float) -> Array:
        """D(x; sigma) at x (..., n, 2)."""
        return self.mixture.denoise(x, sigma)

    def classify(self, x: Array) -> Ints:
        """The most probable class, shape (..., n), at x (..., n, 2)."""
        m, of = self.mixture, [self.classes == c for c in range(self.classes.max() + 1)]
        joint = [MixtureModel(m.weights[k], m.means[k], m.covs[k]).log_density(x) for k in of]  # ln w_c p_c(x)
        return np.asarray(np.argmax(joint, axis=0))


class Classes(Protocol):
    """C equally likely laws in the plane, one a class."""

    @property
    def count(self) -> int:
        """The number C of classes."""
        ...

    def draw(self, labels: Ints, rng: Generator) -> Array:
        """A point of each class named, shape (*labels.shape, 2)."""
        ...

    def log_density(self, x: Array, sigma: float) -> Array:
        """ln p_c(x; sigma), shape (..., C), at x (..., 2)."""
        ...

    def denoise(self, x: Array, sigma: float) -> Array:
        """D_c(x; sigma), shape (..., C, 2), at x (..., 2), sigma > 0."""
        ...


@dataclass(frozen=True)
class LabelledLaw:
    """p = sum_c p_c / C in each of so many replicates."""

    classes: Classes
    replicates: int

    def law(self) -> None:
        """None: the law is not Gaussian."""
        return None

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (R, n, 2) with their classes (R, n)."""
        drawn = rng.integers(self.classes.count, size=(self.replicates, n))
        return Measure.uniform(self.classes.draw(drawn, rng), drawn)

    def log_density(self, x: Array, sigma: float = 0.0) -> Array:
        """ln p(x; sigma), shape (...), at x (..., 2)."""
        return np.asarray(logsumexp(self.classes.log_density(x, sigma), axis=-1) - np.log(self.classes.count))

    def denoise(self, x: Array, sigma: float) -> Array:
        """D(x; sigma) at x (..., 2)."""
        level = max(sigma, LIMIT)
        r = softmax(self.classes.log_density(x, level), axis=-1)
        return np.asarray((r[..., None] * self.classes.denoise(x, level)).sum(axis=-2))

    def classify(self, x: Array) -> Ints:
        """The most probable class, shape (...), at x (..., 2); where no class has density the nearest one."""
        return np.asarray(self.classes.log_density(x, LIMIT).argmax(axis=-1))


@dataclass(frozen=True)
class Circles:
    """Circles around the origin with noise: R u + std e, one R of radii (C,) for each class."""

    radii: Array
    std: float

    @property
    def count(self) -> int:
        """The number C of circles."""
        return len(self.radii)

    def draw(self, labels: Ints, rng: Generator) -> Array:
        """R (cos t, sin t) + std e, t uniform."""
        on = self.radii[labels][..., None] * _direction(rng.uniform(0, 2 * np.pi, labels.shape))
        return np.asarray(on + self.std * rng.standard_normal(on.shape))

    def log_density(self, x: Array, sigma: float) -> Array:
        """-(r - R)^2 / 2 s^2 + ln(e^-k I_0(k)) - ln(2 pi s^2), k = r R / s^2."""
        r, s2 = np.hypot(x[..., 0], x[..., 1])[..., None], self.std**2 + sigma**2
        return np.asarray(-((r - self.radii) ** 2) / (2 * s2) + np.log(i0e(r * self.radii / s2)) - np.log(2 * np.pi * s2))

    def denoise(self, x: Array, sigma: float) -> Array:
        """(std^2 / s^2) x + (sigma^2 / s^2) R I_1(k) / I_0(k) x / r."""
        r, s2 = np.hypot(x[..., 0], x[..., 1])[..., None], self.std**2 + sigma**2
        k = r * self.radii / s2
        pull = self.radii * i1e(k) / i0e(k) / np.maximum(r, np.finfo(float).tiny)
        return np.asarray((self.std**2 + sigma**2 * pull)[..., None] * x[..., None, :] / s2)


@dataclass(frozen=True)
class Squares:
    """Uniform laws on squares of side 2 w: class c has its centre at (m_i, m_j), (i, j) = places[c], m = middles."""

    middles: Array
    w: float
    places: Ints

    @property
    def count(self) -> int:
        """The number C of squares."""
        return len(self.places)

    def draw(self, labels: Ints, rng: Generator) -> Array:
        """Uniform on the square."""
        middle = self.middles[self.places[labels]]
        return np.asarray(middle + rng.uniform(-self.w, self.w, middle.shape))

    def log_density(self, x: Array, sigma: float) -> Array:
        """The sum over coordinates of ln(Phi(-a) - Phi(-b)) - ln 2 w; the uniform density at sigma = 0."""
        u = np.abs(x[..., None] - self.middles)
        if sigma == 0:
            logs = np.where(u <= self.w, 0.0, -np.inf)
        else:
            near, far = log_ndtr((self.w - u) / sigma), log_ndtr(-(self.w + u) / sigma)
            logs = near + np.log(-np.expm1(far - near))
        return np.asarray(self._placed(logs).sum(axis=-1) - 2 * np.log(2 * self.w))

    def denoise(self, x: Array, sigma: float) -> Array:
        """By Mills' ratio M(t) = Phi(-t) / phi(t), which no tail underflows: u + sigma (q - 1) / (M(a) - q M(b)), where

        q = phi(b) / phi(a) = exp(-2 u w / sigma^2).
        """
        offset = x[..., None] - self.middles
        u = np.abs(offset)
        power = -2 * u * self.w / sigma**2
        pull = np.expm1(power) / (_mills((u - self.w) / sigma) - np.exp(power) * _mills((u + self.w) / sigma))
        return self._placed(self.middles + np.sign(offset) * (u + sigma * pull))

    def _placed(self, values: Array) -> Array:
        """Of (..., 2, intervals) what each square needs: (..., C, 2)."""
        return np.stack([values[..., axis, self.places[:, axis]] for axis in (0, 1)], axis=-1)


@component
class EightGaussians:
    """Eight Gaussians N(m_k, std^2 I) on a circle, each a class; equally likely, with covariance (radius^2 / 2 + std^2) I.

    shares: eight numbers that add to one, for classes that are not equally likely; the first is at (radius, 0).
    """

    radius: Positive = 1.4
    std: Positive = 0.1
    shares: Annotated[tuple[Annotated[float, Strict(), Gt(0)], ...], Len(8, 8)] | None = None

    gives: ClassVar[frozenset[str]] = frozenset({"modes", "labels"})
    d: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.shares is not None and abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"shares must be eight numbers that add to one, got a sum of {sum(self.shares):g}")

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        means = self.radius * _direction(np.arange(8) * np.pi / 4)
        return _gaussians(means, self.std, np.arange(8), replicates, None if self.shares is None else np.array(self.shares))


@component
class Grid:
    """side^2 equally likely Gaussians N(m_k, std^2 I) on a square grid around the origin, each a class.

    Covariance (spacing^2 (side^2 - 1) / 12 + std^2) I.
    """

    side: Count = 5
    spacing: Positive = 0.7
    std: Positive = 0.05

    gives: ClassVar[frozenset[str]] = frozenset({"modes", "labels"})
    d: ClassVar[int] = 2

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        axis = self.spacing * (np.arange(self.side) - (self.side - 1) / 2)
        means = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        return _gaussians(means, self.std, np.arange(len(means)), replicates)


@component
class Rings:
    """Equally likely circles around the origin plus N(0, std^2 I), each a class; covariance (mean of R^2 / 2 + std^2) I."""

    radii: Radii = (0.65, 1.3, 1.95)
    std: Positive = 0.08

    gives: ClassVar[frozenset[str]] = frozenset({"labels"})
    d: ClassVar[int] = 2

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        return Law(LabelledLaw(Circles(np.array(self.radii), self.std), replicates))


@component
class Moons:
    """Two half circles of radius a = sqrt(2), one reaching into the other, plus N(0, std^2 I): two equally likely classes.

        a (cos t - 1/2, sin t - 1/4)  and  a (1/2 - cos t, 1/4 - sin t),   t uniform on 0 .. pi

    Mean 0, covariance a^2 [[3/4, 1/8 - 1/pi], [1/8 - 1/pi, 9/16 - 1/pi]] + std^2 I: standard deviations 1.22 and 0.70.
    """

    std: Thick = 0.1

    gives: ClassVar[frozenset[str]] = frozenset({"labels"})
    d: ClassVar[int] = 2

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        t, weights = _nodes(np.pi * np.sqrt(2), self.std)
        moon = np.sqrt(2) * (_direction(np.pi * t) - [0.5, 0.25])
        return _curves([moon, -moon], weights, self.std, replicates)


@component
class Checkerboard:
    """Uniform on every other square of a board with `cells` squares along a side 2 sqrt(3), each a class.

    cells is even, so that each coordinate is uniform: variances 1, covariance 3 / cells^2. The squares are 0, 1, ... row by
    row along the second coordinate, the first of them in the corner where both are least.
    """

    cells: Annotated[int, Strict(), Ge(2), MultipleOf(2)] = 4

    gives: ClassVar[frozenset[str]] = frozenset({"labels"})
    d: ClassVar[int] = 2

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        w = np.sqrt(3) / self.cells
        places = np.argwhere(np.indices((self.cells, self.cells)).sum(axis=0) % 2 == 0)
        middles = w * (2 * np.arange(self.cells) + 1 - self.cells)
        return Law(LabelledLaw(Squares(middles, w, places), replicates))


@component
class Spiral:
    """Spiral arms 2 t (cos(2 pi turns t + c), sin(2 pi turns t + c)) plus N(0, std^2 I), each a class: equally likely.

    c = 2 pi k / arms; t in 0 .. 1 has density 2 t, as many points in every ring of equal area: E |x|^2 / 2 = 1 + std^2. Mean 0
    for two arms or more, covariance (1 + std^2) I for three or more. Neighbouring arms are 2 / (turns arms) apart.
    """

    turns: Positive = 1.0
    arms: Count = 2
    std: Thick = 0.1

    gives: ClassVar[frozenset[str]] = frozenset({"labels"})
    d: ClassVar[int] = 2

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        end = 2 * np.pi * self.turns
        t, weights = _nodes(np.hypot(1, end) + np.arcsinh(end) / end, self.std)
        angles = 2 * np.pi * np.arange(self.arms) / self.arms
        arms = [2 * t[:, None] * _direction(end * t + angle) for angle in angles]
        return _curves(arms, 2 * t * weights, self.std, replicates)


@component
class TwoClasses:
    """Two classes of unequal shares, each of two Gaussians at opposite corners of the square of side 1.8: no line parts them.

    Class 0 is at (.9, .9) and (-.9, -.9), class 1 at (.9, -.9) and (-.9, .9), all N( . , std^2 I). Mean 0, variances
    .81 + std^2, covariance .81 (shares[0] - shares[1]). Bayes' rule errs in 3.35 % of the points by default.
    """

    shares: Pair = (0.8, 0.2)
    std: Positive = 0.45

    gives: ClassVar[frozenset[str]] = frozenset({"modes", "labels"})
    d: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"shares must be two numbers that add to one, got {self.shares}")

    def replicated(self, replicates: int, rng: Generator) -> Source:
        """The same law for every replicate."""
        means = 0.9 * np.array([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        return _gaussians(means, self.std, np.array([0, 0, 1, 1]), replicates, np.repeat(self.shares, 2) / 2)


def _gaussians(means: Array, std: float, classes: Ints, replicates: int, weights: Array | None = None) -> Law:
    k, d = means.shape
    given = np.full(k, 1 / k) if weights is None else weights
    return Law(LabelledMixture(MixtureModel(given, means, np.tile(std**2 * np.eye(d), (k, 1, 1))), classes, replicates))


def _curves(curves: list[Array], weights: Array, std: float, replicates: int) -> Law:
    """Equally likely curves (K, 2) at the nodes of one rule, weights (K,), which add to one."""
    classes = np.repeat(np.arange(len(curves)), len(weights))
    return _gaussians(np.concatenate(curves), std, classes, replicates, np.tile(weights, len(curves)) / len(curves))


def _nodes(length: float, std: float) -> tuple[Array, Array]:
    """Nodes in 0 .. 1 and weights of the Gauss-Legendre rule for a curve of this length: two for each std, and 32 more."""
    t, weights = roots_legendre(int(np.ceil(2 * length / std)) + 32)
    return (t + 1) / 2, weights / 2


def _direction(angle: Array) -> Array:
    """(cos, sin), shape (..., 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _mills(t: Array) -> Array:
    """Phi(-t) / phi(t) of the standard normal law."""
    return np.asarray(np.sqrt(np.pi / 2) * erfcx(t / np.sqrt(2)))
