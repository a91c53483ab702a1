"""Wasserstein distances. Everything here returns W_2 itself, in the units of the points, never its square.

    W_2(mu, nu)^2 = min_P  sum_ij P_ij |x_i - y_j|^2,     P 1 = weights of mu,  P^T 1 = weights of nu

gaussian_wasserstein2   closed form between two Gaussian laws
moment_wasserstein2     the same between the moments of anything: a lower bound of W_2, tight for Gaussians
wasserstein2            between clouds: by sorting on the line, else exactly by POT's network simplex
wasserstein2_1d         between clouds on the line, whole batches at once
sliced_wasserstein2     another, weaker distance for clouds too large for the above

Two clouds of n points of one law are not at distance zero (about 0.2 at n = 1000 in the plane): compare with that floor.
Batches come first, as everywhere; a member that is not finite gives NaN and leaves the others as they are.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import current_process
from typing import Any

import numpy as np
from numpy.random import Generator

from selfloop import covariance
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure

DENSE_POINTS = 4000
"""Above this many points the costs are computed as they are needed and not stored: as exact, and in O(n + m) memory."""
MAX_ITERATIONS = 10_000_000
"""Of the network simplex. POT's own default of 10^5 stops too early from some thousand points on."""
DIRECT_COORDINATES = 32
"""Up to this dimension |x - y|^2 is summed coordinate by coordinate; above, |x|^2 + |y|^2 - 2 x.y is faster."""
LARGE = 256
"""From this dimension on, that of features of images, W_2^2 is a difference of traces, unless that loses digits: see CLOSE."""
CLOSE = 1e-6
"""W_2^2 below this share of the traces is computed as a sum of squares: their difference would have less than nine digits."""
SLICE_NUMBERS = 2**22
"""Projected coordinates held at a time by the sliced distance: 32 MB."""


def gaussian_wasserstein2(a: Gaussian, b: Gaussian) -> Array:
    """W_2 between Gaussian laws, in the units of the points (not squared); shape (*batch,), batches broadcast.

        W_2^2 = |m_a - m_b|^2 + tr A + tr B - 2 tr (A^(1/2) B A^(1/2))^(1/2)

    The trace terms cancel where A is close to B, so they are written as sums of squares:
        d = 1   (s_a - s_b)^2, of the standard deviations
        d = 2   (tr A + tr B)^2 - 4 t^2 = (D_11 - D_22)^2 + 4 D_12^2 + 4 (det A^(1/2) - det B^(1/2))^2,  D = A - B,
                over tr A + tr B + 2 t,  t = tr (A^(1/2) B A^(1/2))^(1/2) = (tr AB + 2 (det A det B)^(1/2))^(1/2)
        d > 2   min_U |F_a - F_b U|^2 = |F_a - F_b U*|^2 over orthogonal U, F F^T the covariances (by `eigh`), U* = P Q^T
                of the singular value decomposition F_b^T F_a = P S Q^T
                in many dimensions tr A + tr B - 2 tr S, without U*, unless A is close to B: half the time
    Singular covariances are allowed; one with an entry that is not finite or an eigenvalue below zero gives NaN.
    Raises ValueError if the dimensions differ. Source: Dowson & Landau (1982); Peyre & Cuturi (2019), remark 2.31.
    """
    if a.d != b.d:
        raise ValueError(f"laws must share one dimension d, got {a.d} and {b.d}")
    with np.errstate(all="ignore"):
        shift = ((a.mean - b.mean) ** 2).sum(axis=-1)
        if a.d == 1:
            spread = (np.sqrt(a.cov[..., 0, 0]) - np.sqrt(b.cov[..., 0, 0])) ** 2
        elif a.d == 2:
            spread = _bures2_plane(a.cov, b.cov)
        else:
            spread = _bures2(a.cov, b.cov)
        value = np.sqrt(shift + spread)
        return np.asarray(np.where(np.isfinite(value), value, np.nan))


def _bures2_plane(a: Array, b: Array) -> Array:
    root_a, root_b = _root_det(a), _root_det(b)
    traces = np.trace(a, axis1=-2, axis2=-1) + np.trace(b, axis1=-2, axis2=-1)
    fidelity = np.sqrt(np.maximum((a * b).sum(axis=(-2, -1)) + 2 * root_a * root_b, 0.0))
    gap = a - b
    top = (gap[..., 0, 0] - gap[..., 1, 1]) ** 2 + (gap[..., 0, 1] + gap[..., 1, 0]) ** 2 + 4 * (root_a - root_b) ** 2
    bottom = traces + 2 * fidelity
    return np.where(bottom == 0, 0.0 * top, top / np.where(bottom == 0, 1.0, bottom))


def _root_det(cov: Array) -> Array:
    first, second = cov[..., 0, 0], cov[..., 1, 1]
    det = first * second - cov[..., 0, 1] * cov[..., 1, 0]
    rounding = 16 * np.finfo(float).eps * first * second
    positive = (first >= 0) & (second >= 0) & (det >= -rounding)
    return np.where(positive, np.sqrt(np.maximum(det, 0.0)), np.nan)


def _bures2(a: Array, b: Array) -> Array:
    a, b = np.broadcast_arrays(a, b)
    factor_a, factor_b = _factor(a), _factor(b)
    cross = np.swapaxes(factor_b, -1, -2) @ factor_a
    finite = np.asarray(np.isfinite(cross).all(axis=(-2, -1)))
    cross = np.where(finite[..., None, None], cross, np.eye(a.shape[-1]))
    if a.shape[-1] >= LARGE:
        traces = np.trace(a, axis1=-2, axis2=-1) + np.trace(b, axis1=-2, axis2=-1)
        difference = traces - 2 * np.linalg.svd(cross, compute_uv=False).sum(axis=-1)
        if (difference > CLOSE * traces)[finite].all():
            return np.where(finite, difference, np.nan)
    left, _, right = np.linalg.svd(cross)
    return np.where(finite, ((factor_a - factor_b @ (left @ right)) ** 2).sum(axis=(-2, -1)), np.nan)


def _factor(cov: Array) -> Array:
    if cov.shape[-1] >= LARGE:
        lower = covariance.factor(cov)  # a fifth of the time of `eigh`
        if np.isfinite(lower).all():
            return lower
    values, vectors = covariance.eigh(cov)
    rounding = 16 * values.shape[-1] * np.finfo(float).eps * values[..., -1:]
    values = np.where(values >= -rounding, np.maximum(values, 0.0), np.nan)
    return np.asarray(vectors * np.sqrt(values)[..., None, :])


def moment_wasserstein2(x: Data | Gaussian, y: Data | Gaussian) -> Array:
    """W_2 between the Gaussians that share the moments of x and y, in the units of the points; shape (*batch,).

    A lower bound of W_2(x, y), equal to it where both are Gaussian (in general, where one is an affine image of the
    other by a symmetric positive matrix). Each of x, y: points (*batch, n, d), moments or a Gaussian; batches broadcast.
    Raises ValueError if the dimensions differ or the points are not vectors. Source: Gelbrich (1990), theorem 2.1.
    """
    return gaussian_wasserstein2(_gaussian(x), _gaussian(y))


def _gaussian(data: Data | Gaussian) -> Gaussian:
    if isinstance(data, Gaussian):
        return data
    moments = data.moments()
    return Gaussian(moments.mean, moments.cov)


def wasserstein2(x: Measure, y: Measure, workers: int | None = None) -> Array:
    """Exact W_2 between clouds, in the units of the points (not squared); shape (*batch,), batches broadcast.

        W_2^2 = |m_x - m_y|^2 + min_P sum_ij P_ij |(x_i - m_x) - (y_j - m_y)|^2,   m the means under the weights

    Shapes: x.points (*batch, n, d), y.points (*batch, m, d). On the line by sorting; else by POT's network simplex, `emd2`
    with its O(n m) memory (about 36 n m bytes for each worker) or, above 4000 points, `emd2_lazy`, which is as exact.
    About 0.1 s for n = m = 1000 in the plane and 3 s for 4000; the time grows a little faster than n m.
    The simplex compares costs to an absolute tolerance: hence centred points, divided by the largest distance.
    workers: threads that share the clouds of a batch; one a core if not said, but one in a worker process, whose neighbours
    have the other cores. The solver runs without the interpreter's lock; the results are those of one thread, bit for bit.
    Raises ValueError if the dimensions differ, the points are not vectors or workers < 1; ArithmeticError if the simplex
    does not converge. Source: Peyre & Cuturi (2019), sections 2.3 and 3.5; Bonneel et al. (2011).
    """
    if workers is None:
        from joblib import cpu_count

        workers = cpu_count() if current_process().name == "MainProcess" else 1
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    px, wx, py, wy = _paired(x, y)
    if px.shape[-1] == 1:
        return _line(px[..., 0], wx, py[..., 0], wy)
    batch = np.broadcast_shapes(wx.shape[:-1], wy.shape[:-1])
    px, py = (np.broadcast_to(points, (*batch, *points.shape[-2:])) for points in (px, py))
    wx, wy = (np.broadcast_to(weights, (*batch, weights.shape[-1])) for weights in (wx, wy))
    ot = _pot()
    members = list(np.ndindex(*batch))

    def solve(member: tuple[int, ...]) -> float:
        return _exact(ot, px[member], wx[member], py[member], wy[member])

    if workers == 1 or len(members) < 2:
        values = [solve(member) for member in members]
    else:
        with ThreadPoolExecutor(min(workers, len(members))) as pool:
            values = list(pool.map(solve, members))
    return np.array(values, dtype=float).reshape(batch)


def _exact(ot: Any, x: Array, a: Array, y: Array, b: Array) -> float:
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    x, a, y, b = x[a > 0], a[a > 0], y[b > 0], b[b > 0]
    mean_x, mean_y = a @ x / a.sum(), b @ y / b.sum()
    x, y = x - mean_x, y - mean_y
    radius = math.sqrt((x**2).sum(axis=1).max()) + math.sqrt((y**2).sum(axis=1).max())
    shift = math.sqrt(((mean_x - mean_y) ** 2).sum())
    if radius == 0:
        return shift
    return math.hypot(shift, radius * math.sqrt(max(_cost(ot, x / radius, a, y / radius, b), 0.0)))


def _cost(ot: Any, x: Array, a: Array, y: Array, b: Array) -> float:
    from scipy.spatial.distance import cdist  # as late as POT, which imports it too

    options = {"numItermax": MAX_ITERATIONS, "log": True, "return_matrix": False, "center_dual": False}
    try:
        if max(len(x), len(y)) > DENSE_POINTS:
            cost, log = ot.emd2_lazy(x, y, a, b, **options)
        else:
            direct = x.shape[1] <= DIRECT_COORDINATES
            distances = cdist(x, y, "sqeuclidean") if direct else ot.dist(x, y, metric="sqeuclidean")
            cost, log = ot.emd2(a, b, distances, **options)
    except UserWarning as warning:  # where the caller made warnings errors
        raise ArithmeticError(f"exact transport of {len(x)} to {len(y)} points failed: {warning}") from warning
    if log["result_code"] != _OPTIMAL:
        raise ArithmeticError(
            f"exact transport of {len(x)} to {len(y)} points did not converge in {MAX_ITERATIONS} iterations "
            f"({log['warning']}); use fewer points or sliced_wasserstein2"
        )
    return float(cost)


_OPTIMAL = 1


def wasserstein2_1d(x: Measure, y: Measure) -> Array:
    """Exact W_2 between clouds on the line, in the units of the points (not squared); shape (*batch,), batches broadcast.

        W_2^2 = int_0^1 (F_x^-1(q) - F_y^-1(q))^2 dq,    F^-1 the quantile functions

    Shapes: x.points (*batch, n, 1), y.points (*batch, m, 1), any weights; O(n log n) for each member, without a loop.
    Raises ValueError if the points are not on the line. Source: Peyre & Cuturi (2019), remark 2.30.
    """
    px, wx, py, wy = _paired(x, y)
    if px.shape[-1] != 1:
        raise ValueError(f"points must lie on the line, d = 1, got d = {px.shape[-1]}; use wasserstein2")
    return _line(px[..., 0], wx, py[..., 0], wy)


def _line(x: Array, a: Array, y: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        if x.shape[-1] == y.shape[-1] and _uniform(a) and _uniform(b):
            squares = (np.sort(x, axis=-1) - np.sort(y, axis=-1)) ** 2
            return np.asarray(np.sqrt(squares.mean(axis=-1)))
        batch = np.broadcast_shapes(x.shape[:-1], a.shape[:-1], y.shape[:-1], b.shape[:-1])
        (x, below_x), (y, below_y) = _sorted(x, a, batch), _sorted(y, b, batch)
        level = np.concatenate([below_x, below_y], axis=-1)
        order = np.argsort(level, axis=-1, kind="stable")
        level = np.take_along_axis(level, order, axis=-1)
        mass = np.diff(level, axis=-1, prepend=0.0)
        of_x = order < x.shape[-1]
        passed_x = np.cumsum(of_x, axis=-1) - of_x  # atoms of x wholly below the level: the quantile is the next one
        passed_y = np.cumsum(~of_x, axis=-1) - ~of_x
        quantile_x = np.take_along_axis(x, np.minimum(passed_x, x.shape[-1] - 1), axis=-1)
        quantile_y = np.take_along_axis(y, np.minimum(passed_y, y.shape[-1] - 1), axis=-1)
        value = np.sqrt((mass * (quantile_x - quantile_y) ** 2).sum(axis=-1))
        finite = np.isfinite(x).all(axis=-1) & np.isfinite(y).all(axis=-1)
        return np.asarray(np.where(finite, value, np.nan))


def _uniform(weights: Array) -> bool:
    return bool(np.ptp(weights) == 0)


def _sorted(points: Array, weights: Array, batch: tuple[int, ...]) -> tuple[Array, Array]:
    points, weights = (np.broadcast_to(part, (*batch, part.shape[-1])) for part in (points, weights))
    order = np.argsort(points, axis=-1, kind="stable")
    below = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)
    return np.take_along_axis(points, order, axis=-1), below / below[..., -1:]


def sliced_wasserstein2(x: Measure, y: Measure, projections: int, rng: Generator) -> Array:
    """Sliced W_2 by Monte Carlo, in the units of the points (not squared); shape (*batch,), batches broadcast.

        SW_2^2 = mean over directions u of W_2(u.x, u.y)^2,    u uniform on the unit sphere of R^d

    projections: how many directions, shared by the batch; the standard error falls as their inverse square root.
    SW_2 <= W_2, and where the clouds differ by a translation it is its length over d^(1/2): not comparable with W_2.
    O(projections n log n). Raises ValueError if the dimensions differ or projections < 1.
    Source: Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures".
    """
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    px, wx, py, wy = _paired(x, y)
    directions = rng.standard_normal((projections, px.shape[-1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    block = max(SLICE_NUMBERS // max(px[..., 0].size, py[..., 0].size, 1), 1)
    total = np.zeros(np.broadcast_shapes(wx.shape[:-1], wy.shape[:-1]))
    for start in range(0, projections, block):
        u = directions[start : start + block]
        on_x, on_y = (np.moveaxis(points @ u.T, -1, 0) for points in (px, py))
        total += (_line(on_x, wx, on_y, wy) ** 2).sum(axis=0)
    return np.asarray(np.sqrt(total / projections))


def _paired(x: Measure, y: Measure) -> tuple[Array, Array, Array, Array]:
    for data in (x, y):
        if len(data.event) != 1:
            raise ValueError(
                f"transport needs points that are vectors, event (d,), got event {data.event}; flatten or embed them"
            )
    if x.event != y.event:
        raise ValueError(f"points must share one dimension d, got {x.event[0]} and {y.event[0]}")
    px, py = np.asarray(x.points, dtype=float), np.asarray(y.points, dtype=float)
    return px, np.asarray(x.weights, dtype=float), py, np.asarray(y.weights, dtype=float)


def _pot() -> Any:
    """POT, imported at the first use and for numpy alone: by itself it imports every one of torch, jax, tensorflow and cupy.

    That holds for the process: who wants POT's torch backend as well imports `ot` before.
    """
    with _numpy_alone():
        import ot
    return ot


@contextmanager
def _numpy_alone() -> Iterator[None]:
    names = [f"POT_BACKEND_DISABLE_{name}" for name in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW")]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
