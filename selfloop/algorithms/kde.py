"""The Gaussian kernel density estimate: a component at every point, and nothing learned but the width.

    p(x) = sum_i w_i N(x; c_i, H)

fit     H = h^2 I for a bandwidth that is a number, in the units of the points; H = f^2 S for a rule, S the unbiased weighted
        covariance and n = 1 / sum_i w_i^2 Kish's effective number of points:
        scott f = n^(-1 / (d + 4)),    silverman f = (n (d + 2) / 4)^(-1 / (d + 4))
sample  a data point and kernel noise, or through the steps of a sampler on the exact score
denoise D(x; sigma) = c + H (H + sigma^2)^-1 (x - c),    c = sum_i r_i c_i,    r_i ~ w_i N(x; c_i, H + sigma^2 I)

Each fit to its own samples adds H to the covariance and loses a part 1/n of it: with H = h^2 I the variance of a loop that sees
only its last generation goes to (n - 1) h^2, whatever it was at first.
There is no path from one estimate to another, so it cannot be tuned, and neither SIMS nor Neon takes it.

Source: Silverman (1986), "Density Estimation for Statistics and Data Analysis"; Scott (1992), "Multivariate Density
Estimation".
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator

from selfloop import covariance
from selfloop.component import AT_SAMPLING, Positive, component
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.sample import Sampler
from selfloop.measure import Array, Data, Ints, Measure
from selfloop.protocols import Work

EXACT = Sampler()
"""Draws from the estimate itself."""
PAIRS = 2**21
"""Most pairs (point, centre) held at once, over the whole batch: 16 MB an array, and few arrays."""


@dataclass(frozen=True)
class KdeModel:
    """sum_i w_i N(c_i, H) behind a sampler: centres (*batch, n, d), weights (*batch, n), kernel H (*batch, d, d).

    H may be singular: its null directions then hold only the centres, and `log_density` is NaN.
    Distances are accurate to rounding at the spread of the centres: bandwidths below 10^-7 of it are not resolved.
    Raises ValueError if the three shapes do not fit together.
    """

    centres: Array
    weights: Array
    kernel: Array
    sampler: Sampler = EXACT

    def __post_init__(self) -> None:
        if self.weights.shape != self.centres.shape[:-1] or self.kernel.shape != (*self.batch, self.d, self.d):
            raise ValueError(
                "a kernel density estimate needs centres (*batch, n, d), weights (*batch, n) and kernel (*batch, d, d), "
                f"got shapes {self.centres.shape}, {self.weights.shape} and {self.kernel.shape}"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.weights.shape[:-1]

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return int(self.centres.shape[-1])

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, d) of n points."""
        return (*self.batch, n, self.d)

    @cached_property
    def _spectrum(self) -> tuple[Array, Array]:
        values, vectors = covariance.eigh(self.kernel)
        least = self.d * np.finfo(float).eps * values[..., -1:]
        return np.where(values < least, 0.0, values), vectors

    @cached_property
    def _origin(self) -> Array:
        return self.weights[..., None, :] @ self.centres  # (*batch, 1, d)

    def law(self) -> None:
        """None: the law is not Gaussian."""
        return None

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, d) of the estimate, or what the sampler's steps make of noise on its score."""
        if self.sampler.kind == "exact":
            u = rng.random((*self.batch, n))
            z = rng.standard_normal(self.shape(n))
            chosen = np.take_along_axis(self.centres, _inverse(self.weights, u)[..., None], axis=-2)
            with np.errstate(all="ignore"):
                points = chosen + z @ covariance.sqrt(self.kernel)
        else:
            points = diffusion.sample(self.denoise, self.sampler, self.shape(n), rng)
        return Measure(points, np.broadcast_to(1.0 / n, points.shape[:-1]))

    def denoise(self, x: Array, sigma: float, labels: Any = None) -> Array:
        """D(x; sigma) = c + H (H + sigma^2)^-1 (x - c), c the mean of the centres under r_i; x (*batch, m, d).

        Time O(m n d) for each member of the batch; memory is bounded, see `PAIRS`.
        """
        values, vectors = self._spectrum
        with np.errstate(all="ignore"):
            mean = self._pulled(x, sigma)[1]
            gain = (vectors * (values / (values + sigma**2))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
            return np.asarray(mean + (x - mean) @ gain)

    def log_density(self, x: Array) -> Array:
        """ln p(x), shape (*batch, m), at x (*batch, m, d); NaN where the kernel is singular."""
        with np.errstate(all="ignore"):
            return self._pulled(x, 0.0)[0]

    def _pulled(self, x: Array, sigma: float) -> tuple[Array, Array]:
        """ln p(x; sigma), shape (*batch, m), and sum_i r_i c_i, shape (*batch, m, d), centres a block at a time.

        Sums are carried relative to the largest exponent so far: with top the old one and new the next,
        total <- total e^(top - new) + sum_i e^(l_i - new), the same for the mean.
        """
        values, vectors = self._spectrum
        noised = values + sigma**2
        whitener = vectors / np.sqrt(noised)[..., None, :]
        centres = self.centres - self._origin
        images = centres @ whitener
        log_weights = np.log(self.weights) - 0.5 * (images**2).sum(axis=-1)
        constant = -0.5 * (np.log(noised).sum(axis=-1) + self.d * math.log(2 * math.pi))
        batch = np.broadcast_shapes(x.shape[:-2], self.batch)
        log_density = np.empty((*batch, x.shape[-2]))
        means = np.empty((*batch, x.shape[-2], self.d))
        across = min(self.weights.shape[-1], 4096, max(1, PAIRS // math.prod(batch)))
        for rows in _blocks(x.shape[-2], max(1, PAIRS // (across * math.prod(batch)))):
            y = (x[..., rows, :] - self._origin) @ whitener
            top = np.full((*batch, y.shape[-2]), np.finfo(float).min)
            total = np.zeros_like(top)
            mean = np.zeros((*top.shape, self.d))
            for columns in _blocks(self.weights.shape[-1], across):
                exponents = y @ np.swapaxes(images[..., columns, :], -1, -2)
                exponents += log_weights[..., None, columns]
                new = np.maximum(top, exponents.max(axis=-1))
                exponents -= new[..., None]
                shares = np.exp(exponents, out=exponents)
                fade = np.exp(top - new)
                total = total * fade + shares.sum(axis=-1)
                mean = mean * fade[..., None] + shares @ centres[..., columns, :]
                top = new
            log_density[..., rows] = constant[..., None] + top + np.log(total) - 0.5 * (y**2).sum(axis=-1)
            means[..., rows, :] = self._origin + mean / total[..., None]
        return log_density, means

    def biased(self, bias: float) -> "KdeModel":
        """sum_i w_i N(c_i, bias * H) behind the same sampler, as for a mixture with a component at every point.

        The kernel narrows and the centres stay, so towards 0 it resamples the data.
        """
        return replace(self, kernel=bias * self.kernel)

    def state(self) -> dict[str, Array]:
        """The fit: centres, weights and kernel."""
        return {"centres": self.centres, "weights": self.weights, "kernel": self.kernel}

    @classmethod
    def restore(cls, state: Mapping[str, Array], sampler: Sampler = EXACT) -> "KdeModel":
        """The estimate that `state` describes, behind `sampler`."""
        return cls(state["centres"], state["weights"], state["kernel"], sampler)


@component
class KdeFit:
    """Put a Gaussian kernel on every point; see the module for the formulas.

    bandwidth: the kernel's standard deviation in the units of the points, or a rule: "scott" or "silverman".
    A replicate whose data are not finite comes back as NaN, and under a rule one whose weight is all on one point;
    the others do not notice.
    """

    bandwidth: Positive | Literal["scott", "silverman"] = "scott"
    sampler: Annotated[Sampler, AT_SAMPLING] = Sampler()

    gives: ClassVar[frozenset[str]] = frozenset({"denoise", "biased"})

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> KdeModel:
        """The estimate on the data: points (*batch, n, d), their weights honoured.

        Raises ValueError for moments, for points that are no vectors, and for a rule on a single point.
        """
        if not isinstance(data, Measure):
            raise ValueError("a kernel density estimate is made of points and the data are moments; set statistics: false")
        if len(data.event) != 1:
            raise ValueError(
                f"a kernel density estimate needs points that are vectors, event (d,), got event {data.event}; "
                "flatten them first"
            )
        points = np.asarray(data.points, dtype=float)
        live = np.isfinite(points).all(axis=(-2, -1))[..., None, None]
        points = np.where(live, points, np.nan)
        return KdeModel(points, data.weights, np.where(live, self._kernel(data), np.nan), self.sampler)

    def _kernel(self, data: Measure) -> Array:
        d = data.event[0]
        if not isinstance(self.bandwidth, str):
            return np.broadcast_to(self.bandwidth**2 * np.eye(d), (*data.batch, d, d))
        if data.n < 2:
            raise ValueError(
                f"the rule {self.bandwidth!r} needs the spread of two points or more, got n = 1; set bandwidth to a number"
            )
        n = np.asarray(1.0 / (data.weights**2).sum(axis=-1))
        with np.errstate(all="ignore"):
            unbiased = np.where(n > 1 + 1e-9, n / (n - 1), np.nan)
            cov = data.moments().cov * unbiased[..., None, None]
        factor = (n if self.bandwidth == "scott" else n * (d + 2) / 4) ** (-1 / (d + 4))
        return np.asarray(cov * factor[..., None, None] ** 2)

    def restore(self, state: Mapping[str, Array]) -> KdeModel:
        """The model of a saved fit, behind this algorithm's sampler."""
        return KdeModel.restore(state, self.sampler)


def _inverse(weights: Array, u: Array) -> Ints:
    """The index i with sum_(j < i) w_j <= u < sum_(j <= i) w_j: weights (*batch, n), u (*batch, m) in [0, 1) -> (*batch, m).

    One search for the whole batch: member b looks in [b, b + 1).
    """
    n = weights.shape[-1]
    sums = np.cumsum(weights.reshape(-1, n), axis=-1)
    member = np.arange(len(sums))[:, None]
    flat = np.searchsorted((sums / sums[:, -1:] + member).ravel(), u.reshape(len(sums), -1) + member, side="right")
    return np.asarray(np.clip(flat - n * member, 0, n - 1).reshape(u.shape))


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
