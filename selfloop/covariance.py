"""Algebra of symmetric positive definite matrices in batches, shape (*batch, d, d).

Every function treats the members of a batch apart: a member that is not finite or not positive definite comes
back as NaN and leaves its neighbours as they are, where LAPACK would stop the whole batch. d = 1 and d = 2, the
sizes of the loops that run a million times, use closed forms.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROUNDING = float(np.finfo(np.float32).eps) ** 2
"""Variance, as a share of the largest and for each dimension, that float32 points have by rounding alone."""


def symmetric(matrix: Array) -> Array:
    """The symmetric part (M + M^T) / 2; shape (*batch, d, d)."""
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))


def eigh(cov: Array) -> tuple[Array, Array]:
    """Eigenvalues (*batch, d), ascending, and eigenvectors (*batch, d, d) of symmetric matrices; NaN where not finite."""
    if cov.shape[-1] == 1:
        return cov[..., 0], np.ones_like(cov)
    finite = np.asarray(np.isfinite(cov).all(axis=(-2, -1)))
    if finite.all():
        values, vectors = np.linalg.eigh(cov)
        return values, vectors
    safe = np.where(finite[..., None, None], cov, np.eye(cov.shape[-1]))
    values, vectors = np.linalg.eigh(safe)
    return np.where(finite[..., None], values, np.nan), np.where(finite[..., None, None], vectors, np.nan)


def apply(cov: Array, function: Callable[[Array], Array]) -> Array:
    """The matrix function U f(Lambda) U^T of symmetric matrices U Lambda U^T; shape (*batch, d, d)."""
    values, vectors = eigh(cov)
    with np.errstate(all="ignore"):
        image = function(values)
    return symmetric(np.einsum("...ij,...j,...kj->...ik", vectors, image, vectors))


def sqrt(cov: Array) -> Array:
    """The symmetric square root; rounding below zero counts as zero."""
    return apply(cov, lambda values: np.sqrt(np.maximum(values, 0.0)))


def log(cov: Array) -> Array:
    """The matrix logarithm; NaN for a member that is not positive definite."""
    return apply(cov, lambda values: np.log(np.where(values > 0, values, np.nan)))


def exp(matrix: Array) -> Array:
    """The matrix exponential of symmetric matrices."""
    return apply(matrix, np.exp)


def log_det(cov: Array) -> Array:
    """ln det, shape (*batch,); -inf where singular, NaN where not finite or not positive semidefinite."""
    with np.errstate(all="ignore"):
        if cov.shape[-1] == 1:
            return np.asarray(np.log(cov[..., 0, 0]))
        values, _ = eigh(cov)
        return np.asarray(np.log(values).sum(axis=-1))


def factor(cov: Array) -> Array:
    """The lower Cholesky factor L, L L^T = cov; NaN for a member that is not positive definite."""
    d = cov.shape[-1]
    with np.errstate(all="ignore"):
        if d == 1:
            return np.sqrt(np.where(cov > 0, cov, np.nan))
        if d == 2:
            first = np.sqrt(np.where(cov[..., 0, 0] > 0, cov[..., 0, 0], np.nan))
            below = cov[..., 1, 0] / first
            rest = cov[..., 1, 1] - below**2
            lower = np.zeros_like(cov)
            lower[..., 0, 0], lower[..., 1, 0] = first, below
            lower[..., 1, 1] = np.sqrt(np.where(rest > 0, rest, np.nan))
            return np.where(np.isnan(lower).any(axis=(-2, -1), keepdims=True), np.nan, lower)
    try:
        return np.asarray(np.linalg.cholesky(cov))
    except np.linalg.LinAlgError:
        positive = is_positive(cov)
    safe = np.where(positive[..., None, None], cov, np.eye(d))
    return np.where(positive[..., None, None], np.linalg.cholesky(safe), np.nan)


def root(cov: Array) -> Array:
    """A matrix R with R R^T = cov: the Cholesky factor, or the symmetric root of a member that is singular.

    So a law that has collapsed onto a line can still be drawn from. NaN for a member that is not finite or has an eigenvalue
    below zero beyond rounding.
    """
    lower = factor(cov)
    flat = np.isnan(lower).any(axis=(-2, -1)) & np.isfinite(cov).all(axis=(-2, -1))
    if not flat.any():
        return lower
    values, _ = eigh(cov)
    flat &= values[..., 0] >= -16 * np.finfo(float).eps * np.abs(values[..., -1])
    return np.where(flat[..., None, None], sqrt(cov), lower)


def product(a: Array, b: Array) -> Array:
    """The matrix product a @ b of shapes (*batch, k, l) and (*batch, l, m); for l <= 3 as l outer products over the batch."""
    if a.shape[-1] > 3:
        return np.asarray(a @ b)
    return np.asarray(sum(a[..., :, j, None] * b[..., None, j, :] for j in range(a.shape[-1])))


def is_positive(cov: Array) -> NDArray[np.bool_]:
    """Which members are finite and positive definite beyond rounding; shape (*batch,)."""
    with np.errstate(all="ignore"):
        if cov.shape[-1] == 1:
            return np.isfinite(cov[..., 0, 0]) & (cov[..., 0, 0] > 0)
        if cov.shape[-1] == 2:
            det = cov[..., 0, 0] * cov[..., 1, 1] - cov[..., 0, 1] * cov[..., 1, 0]
            scale = cov[..., 0, 0] * cov[..., 1, 1]
            return np.isfinite(det) & (cov[..., 0, 0] > 0) & (det > 4 * np.finfo(float).eps * scale)
        values, _ = eigh(cov)
        least = values.shape[-1] * np.finfo(float).eps * values[..., -1]
        return np.asarray(np.isfinite(values).all(axis=-1) & (values[..., 0] > least))


def interpolate(a: Array, b: Array, t: float) -> Array:
    """The log-Euclidean line exp((1 - t) log a + t log b): a at t = 0, b at t = 1; t outside [0, 1] extrapolates."""
    if a.shape[-1] == 1:
        with np.errstate(all="ignore"):
            positive = (a > 0) & (b > 0)
            return np.where(positive, a * np.exp(t * (np.log(b) - np.log(a))), np.nan)
    return exp((1 - t) * log(a) + t * log(b))


def toward_sphere(cov: Array, intensity: Array) -> Array:
    """(1 - a) S + a (tr S / d) I, for a (*batch,) or one a for all."""
    a, d = np.asarray(intensity)[..., None, None], cov.shape[-1]
    trace = np.trace(cov, axis1=-2, axis2=-1)[..., None, None]
    return np.asarray((1 - a) * cov + a * (trace / d) * np.eye(d))


def oas(cov: Array, n: Array) -> Array:
    """The oracle-approximating intensity a (*batch,) of shrinkage toward the sphere, for the covariance of n points.

        a = min(1, ((1 - 2/d) |S|^2 + (tr S)^2) / ((n + 1 - 2/d) (|S|^2 - (tr S)^2 / d)))

    Source: Chen et al. (2010), eq. 23.
    """
    d, trace = cov.shape[-1], np.trace(cov, axis1=-2, axis2=-1)
    square = (cov**2).sum(axis=(-2, -1))
    top = (1 - 2 / d) * square + trace**2
    bottom = (n + 1 - 2 / d) * (square - trace**2 / d)
    return np.where(bottom > 0, np.minimum(top / np.where(bottom > 0, bottom, 1.0), 1.0), 1.0)
