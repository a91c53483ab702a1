"""Linear regression through the origin as a generative model of y given x: the loop whose excess risk is known exactly.

Points are (x, y) in R^(d + 1), y last.

fit     w = (X^T X)^-1 X^T y, ordinary least squares (weighted, where points carry weights)
sample  y = x . w + sigma eps, eps ~ N(0, 1), sigma = `noise` known, and x from the `design`:
        fixed   the same x in every generation, those of the data the model was fitted to, in order
        fresh   x ~ N(0, I), new in every generation

With a fixed design of n points x ~ N(0, I), real data of the same noise, and generations of n points, E |w_t - w|^2 is
        sigma^2 d / (n - d - 1) t                      if each sees only its predecessor
        sigma^2 d / (n - d - 1) sum_{i <= t} 1 / i^2   if they accumulate, below pi^2 / 6 times the first
which is the excess squared error at a new x ~ N(0, I). Source: Dohmatob et al. (2024), "Model collapse demystified: the case
of regression"; Gerstgrasser et al. (2024), "Is model collapse inevitable?", section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator

from selfloop import covariance
from selfloop.component import NonNegative, component
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure, Moments
from selfloop.protocols import Work


@dataclass(frozen=True)
class FixedDesign:
    """The x of the training data: mean (*batch, d), cov (*batch, d, d) and, where there were points, rows (*batch, n, d)."""

    mean: Array
    cov: Array
    rows: Array | None = None


@dataclass(frozen=True)
class RegressionModel:
    """y = x . w + sigma eps: coefficients w (*batch, d), noise sigma in units of y; design None: x ~ N(0, I)."""

    coefficients: Array
    noise: float
    design: FixedDesign | None = None

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.coefficients.shape[:-1]

    @property
    def d(self) -> int:
        """Dimension of x; a point (x, y) has one more."""
        return int(self.coefficients.shape[-1])

    def law(self) -> Gaussian | None:
        """N(0, [[I, w], [w^T, w^T w + sigma^2]]), the law of (x, y) where x is fresh; None for a fixed design."""
        if self.design is not None:
            return None
        w = self.coefficients
        return Gaussian(np.zeros((*self.batch, self.d + 1)), _joint(np.eye(self.d), w, (w**2).sum(axis=-1) + self.noise**2))

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, d + 1); a fixed design hands out its first n rows of x, in order.

        Raises ValueError if a fixed design holds fewer than n rows, or none because the fit saw moments.
        """
        if self.design is None:
            x = rng.standard_normal((*self.batch, n, self.d))
        elif self.design.rows is None:
            raise ValueError(
                "a fixed design fitted to moments has no rows of x to draw points at; use draw, or set design fresh"
            )
        elif self.design.rows.shape[-2] < n:
            raise ValueError(
                f"a fixed design of {self.design.rows.shape[-2]} rows cannot give {n} points; ask for fewer or set design fresh"
            )
        else:
            x = self.design.rows[..., :n, :]
        y = np.einsum("...nd,...d->...n", x, self.coefficients) + self.noise * rng.standard_normal((*self.batch, n))
        points = np.concatenate([x, y[..., None]], axis=-1)
        return Measure(points, np.broadcast_to(1.0 / n, points.shape[:-1]))

    def draw(self, n: int, rng: Generator) -> Moments:
        """The moments of n points without the points; those of x are the design's, or drawn where it is fresh.

        With m and C the moments of x, and L L^T = C of rank r, the noise has, independent of one another,
            mean  e = sigma z_0 / n^(1/2),    covariance with x  c = sigma L z / n^(1/2),    z_0, z standard normal,
            variance  v = sigma^2 (|z|^2 + chi^2(n - 1 - r)) / n,    |z|^2 over the r directions of C
        because c = Xc^T eps / n sees eps in the span of the centred columns of X, and what is left of it is chi^2. Then
            mean_y = m . w + e,    cov_xy = C w + c,    var_y = w^T C w + 2 w . c + v.
        Exact in law if n is the number of rows of the fixed design. Raises ValueError if n - 1 < r.
        """
        if self.design is None:
            x = Gaussian(np.zeros((*self.batch, self.d)), np.broadcast_to(np.eye(self.d), (*self.batch, self.d, self.d)))
            drawn = x.draw(n, rng)
            mean, cov = drawn.mean, drawn.cov
        else:
            mean, cov = self.design.mean, self.design.cov
        w = self.coefficients
        values, vectors = covariance.eigh(cov)
        spread = values > self.d * 16 * np.finfo(float).eps * values[..., -1:]
        free = n - 1 - spread.sum(axis=-1)
        if (free < 0).any():
            raise ValueError(
                f"{n} points cannot have x of rank {n - 1 - int(free.min())} about their mean; ask for as many as it has"
            )
        z = np.where(spread, rng.standard_normal((*self.batch, self.d)), 0.0)
        scale = self.noise / np.sqrt(n)
        e = scale * rng.standard_normal(self.batch)
        c = scale * np.einsum("...ij,...j->...i", vectors, np.sqrt(np.where(spread, values, 0.0)) * z)
        v = scale**2 * ((z**2).sum(axis=-1) + np.where(free > 0, rng.chisquare(np.maximum(free, 1)), 0.0))
        with np.errstate(all="ignore"):
            image = np.einsum("...ij,...j->...i", cov, w)
            variance = (w * (image + 2 * c)).sum(axis=-1) + v
            mean_y = (mean * w).sum(axis=-1) + e
        return Moments(float(n), np.concatenate([mean, mean_y[..., None]], axis=-1), _joint(cov, image + c, variance))

    def state(self) -> dict[str, Array]:
        """The coefficients and, of a fixed design, what it needs to be drawn from again."""
        state = {"coefficients": self.coefficients}
        if self.design is not None:
            state |= {"x_mean": self.design.mean, "x_cov": self.design.cov}
            if self.design.rows is not None:
                state["x_rows"] = self.design.rows
        return state


def _joint(cov: Array, cross: Array, variance: Array) -> Array:
    """[[cov, cross], [cross^T, variance]], shape (*batch, d + 1, d + 1)."""
    d = cross.shape[-1]
    joint = np.empty((*cross.shape[:-1], d + 1, d + 1))
    joint[..., :d, :d] = cov
    joint[..., :d, d] = joint[..., d, :d] = cross
    joint[..., d, d] = variance
    return joint


@component
class RegressionFit:
    """Ordinary least squares of y on x through the origin; see the module for the formulas.

    noise: standard deviation sigma >= 0 of the labels each generation makes, known and not fitted, in units of y.
    design: fixed, the x of the training data in every generation, or fresh, x ~ N(0, I).
    """

    noise: NonNegative
    design: Literal["fixed", "fresh"] = "fixed"

    @property
    def gives(self) -> frozenset[str]:
        """Coefficients and moments; a fresh design also has a law."""
        return frozenset({"draw", "coefficients"} | ({"law"} if self.design == "fresh" else set()))

    @property
    def keeps_rows(self) -> bool:
        """Whether every generation gets the rows of x of the first, and so has as many."""
        return self.design == "fixed"

    def least_points(self, d: int) -> int:
        """Points (x, y) in R^d without which a fit is refused: one more than the d - 1 coefficients."""
        return d

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> RegressionModel:
        """w from the second moments E x x^T and E x y; points (x, y) of shape (*batch, n, d + 1), or their moments.

        A member whose E x x^T is singular or not finite has NaN coefficients and leaves the others as they are.
        Raises ValueError if points have fewer than two coordinates or n <= d.
        """
        moments = data.moments()
        n, d = np.asarray(moments.n), moments.mean.shape[-1] - 1
        if d < 1:
            raise ValueError(f"a regression needs points (x, y) with at least two coordinates, got {d + 1}")
        if not (n > d).all():
            raise ValueError(
                f"a regression on d = {d} coordinates of x needs more than {d} points, got n = {float(n.min()):g}; use more"
            )
        mean, cov = moments.mean[..., :d], moments.cov[..., :d, :d]
        second = moments.cov + moments.mean[..., :, None] * moments.mean[..., None, :]
        w = _solve(second[..., :d, :d], second[..., :d, d])
        if self.design == "fresh":
            return RegressionModel(w, self.noise)
        rows = np.asarray(data.points, dtype=float)[..., :d] if isinstance(data, Measure) else None
        return RegressionModel(w, self.noise, FixedDesign(mean, cov, rows))

    def restore(self, state: Mapping[str, Array]) -> RegressionModel:
        """The model of a saved fit, at this algorithm's noise and design.

        Raises ValueError if the design is fixed and the state, of a fresh one, holds none.
        """
        if self.design == "fresh":
            return RegressionModel(state["coefficients"], self.noise)
        if "x_mean" not in state:
            raise ValueError("the saved fit has no fixed design; restore it with design fresh")
        return RegressionModel(
            state["coefficients"], self.noise, FixedDesign(state["x_mean"], state["x_cov"], state.get("x_rows"))
        )


def _solve(matrix: Array, right: Array) -> Array:
    """M^-1 r for symmetric M (*batch, d, d) and r (*batch, d); NaN in a member that is singular."""
    fine = covariance.is_positive(matrix)
    safe = np.where(fine[..., None, None], matrix, np.eye(matrix.shape[-1]))
    return np.where(fine[..., None], np.linalg.solve(safe, right[..., None])[..., 0], np.nan)
