"""Guidance: a denoiser made of denoisers. Samplers cannot tell the difference.

SIMS extrapolates from the score of an auxiliary model, trained on the base model's own samples, through the base score:

    s = (1 + omega) s_base - omega s_auxiliary,     D = (1 + omega) D_base - omega D_auxiliary

Source: Alemohammad et al. (2024), Algorithm 1. omega = 0 is the base, omega = -1 the auxiliary. Autoguidance (Karras
et al., 2024) and classifier-free guidance (Ho & Salimans, 2022) have the same form, with weight w = 1 + omega: the auxiliary
is a weaker model, or the model without its condition. In an interval of noise levels: Kynkaanniemi et al. (2024).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.integrate import DOP853

from selfloop import covariance
from selfloop.diffusion.sample import Denoise, Sampler, drawn, law
from selfloop.laws import Gaussian
from selfloop.measure import Array

Interval = tuple[float, float]
LEAST_BIAS = 0.05
"""The least |b| at which eta is measured: a ratio of log variances of which n samples leave an error of (2 / (d n))^(1/2)."""


def guided(base: Denoise, auxiliaries: Sequence[Denoise], omegas: Sequence[Any], interval: Interval | None = None) -> Denoise:
    """D(x; sigma) = (1 + sum_k omega_k) D_base(x; sigma) - sum_k omega_k D_k(x; sigma) for sigma in `interval`, else D_base.

    omegas: a number for each auxiliary, or an array that broadcasts with x (one value a replicate).
    Raises ValueError if there are not as many omegas as auxiliaries, or the interval is empty.
    """
    if len(auxiliaries) != len(omegas):
        raise ValueError(f"every auxiliary needs an omega, got {len(auxiliaries)} auxiliaries and {len(omegas)} omegas")
    check_interval(interval)
    whole = 1 + sum(omegas)

    def denoise(x: Any, sigma: float) -> Any:
        if interval is not None and not interval[0] <= sigma <= interval[1]:
            return base(x, sigma)
        out = whole * base(x, sigma)
        for auxiliary, omega in zip(auxiliaries, omegas, strict=True):
            out = out - omega * auxiliary(x, sigma)
        return out

    return denoise


def negative_guidance(base: Denoise, auxiliary: Denoise, omega: Any, interval: Interval | None = None) -> Denoise:
    """SIMS, (1 + omega) D_base - omega D_auxiliary: `guided` with one auxiliary."""
    return guided(base, [auxiliary], [omega], interval)


def autoguidance(main: Denoise, guide: Denoise, weight: Any, interval: Interval | None = None) -> Denoise:
    """D_guide + weight (D_main - D_guide); with the model without its condition as `guide`, classifier-free guidance."""
    return guided(main, [guide], [weight - 1], interval)


def check_interval(interval: Interval | None) -> None:
    """Raise ValueError if an interval of noise levels is empty."""
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise ValueError(f"interval must be [low, high] with 0 <= low < high in sigma, got {list(interval)}; it holds no level")


def measured_eta(base: Any, auxiliary: Any, n: int, rng: Generator, steps: int = 48) -> tuple[Array, Array]:
    """(eta, b) of two score models: how far the auxiliary went, and the bias it was to learn; each (*batch,).

        b = ln v_b - ln v_r,    eta = (ln v_s - ln v_r) / b,    ln v = ln det cov / d

    v_r, v_s: of what base and auxiliary draw through `steps` fine steps; v_b: of what the base draws by its own sampler, and so
    of the points that a full fit (eta = 1) would reproduce. Guidance moves ln v by -omega eta b, the base's sampler by b: the
    best omega is about 1 / eta. Covariances are exact where D is affine, else of n points made of the same noise.
    NaN where the sampler's bias is too small to be told from the noise of the samples the auxiliary saw, |b| < 0.05, and for
    `exact`, which has none. Derived here.
    """
    own = base.sampler
    if own.kind == "exact":
        return np.full(base.batch, np.nan), np.zeros(base.batch)
    fine = Sampler(kind="dpm", steps=max(steps, 4 * own.steps), sigma_max=own.sigma_max, sigma_min=own.sigma_min, rho=own.rho)
    seed = int(rng.integers(2**63))

    def log_volume(model: Any, sampler: Sampler) -> Array:
        gaussian = model.law()
        if gaussian is not None:
            cov = law(model.denoise, sampler, gaussian.batch, gaussian.d).cov
        else:
            cov = drawn(model, n, np.random.default_rng(seed), sampler=sampler).moments().cov
        return np.asarray(covariance.log_det(cov) / cov.shape[-1])

    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = log_volume(base, fine)
        bias = log_volume(base, own) - fitted
        eta = np.where(np.abs(bias) >= LEAST_BIAS, (log_volume(auxiliary, fine) - fitted) / bias, np.nan)
        return eta + 0.0, bias  # 0 and not -0 where the auxiliary is the base


def guided_law(base: Gaussian, auxiliary: Gaussian, omega: float) -> Gaussian:
    """Law of the guided probability-flow ODE between two Gaussian scores, sigma from infinity to 0, without a step error.

        dx/dp = 1/2 [(1 + omega) (S_r + p)^-1 (x - m_r) - omega (S_s + p)^-1 (x - m_s)],     p = sigma^2

    is linear in x; its fundamental matrix is integrated to 1e-12 a step, so covariances need not commute. Where they do,
    the covariance is S_r^(1 + omega) S_s^(-omega). (This is not the tilted density p_r^(1 + omega) p_s^(-omega).)
    batch and d are those of `base`; every member is integrated with steps of its own. Members that are not positive
    definite come back as NaN. Derived here.

    With theta = (c / (c + p))^(1/2), c the geometric mean of the eigenvalues of S_r, and y = theta (x - m_r) / c^(1/2), the
    equation is smooth on theta in [0, 1], from noise to data:

        dy/dtheta = (1 + omega) H_r y - omega (H_s y + K_s (m_s - m_r)),     y(0) ~ N(0, I),
        H = theta (Lambda - c) / g,   K = c^(1/2) / g,   g = c + (Lambda - c) theta^2   in the eigenbasis of S_r or S_s
    """
    if omega == 0:
        return base
    if omega == -1:
        return auxiliary
    d, batch = base.d, base.batch
    fine = base.is_finite() & auxiliary.is_finite()
    covs = [law.cov[fine].reshape(-1, d, d) for law in (base, auxiliary)]
    shift = (auxiliary.mean - base.mean)[fine].reshape(-1, d)
    (values_r, u_r), (values_s, u_s) = (covariance.eigh(cov) for cov in covs)
    scale = np.exp(np.log(values_r).mean(axis=-1, keepdims=True))
    back_r, back_s = (np.ascontiguousarray(np.swapaxes(u, -1, -2)) for u in (u_r, u_s))

    def slope(theta: Array, y: Array, active: NDArray[np.intp]) -> Array:
        t, c = theta[:, None], scale[active]
        gap_r, gap_s = values_r[active] - c, values_s[active] - c
        h_r = (1 + omega) * t * gap_r / (c + gap_r * t**2)
        g_s = c + gap_s * t**2
        turned = back_s[active] @ y
        turned *= (-omega * t * gap_s / g_s)[..., None]
        turned[..., d] -= omega * np.sqrt(c) / g_s * (back_s[active] @ shift[active][..., None])[..., 0]
        return np.asarray(u_r[active] @ (h_r[..., None] * (back_r[active] @ y)) + u_s[active] @ turned)

    start = np.broadcast_to(np.hstack([np.eye(d), np.zeros((d, 1))]), (len(shift), d, d + 1))
    y = integrated(slope, start)
    matrix = np.sqrt(scale)[..., None] * y[..., :d]
    mean, cov = np.full((*batch, d), np.nan), np.full((*batch, d, d), np.nan)
    mean[fine] = base.mean[fine] + (np.sqrt(scale) * y[..., d]).reshape(base.mean[fine].shape)
    cov[fine] = covariance.symmetric(matrix @ np.swapaxes(matrix, -1, -2)).reshape(base.cov[fine].shape)
    return Gaussian(mean, cov)


def integrated(slope: Callable[[Array, Array, NDArray[np.intp]], Array], start: Array, tolerance: float = 1e-12) -> Array:
    """y(1) of dy/dtheta = slope(theta, y) from y(0) = start (members, ...), each member with steps of its own.

    slope(theta (m,), y (m, ...), active (m,)) is asked for the members `active`. A member's result does not depend on the
    others, which an integrator of the whole batch could not promise. Dormand and Prince's method of order 8 (Hairer, Norsett
    and Wanner, 1993, section II.5, the coefficients as in scipy.integrate.DOP853), local error below `tolerance` relative to y.
    A member whose step becomes too small comes back as NaN.
    """
    y, theta = np.array(start, dtype=float), np.zeros(len(start))
    h = np.full(len(start), 0.05)
    stages = DOP853.n_stages
    while (active := np.flatnonzero(theta < 1)).size:
        t, x, step = theta[active], y[active], np.minimum(h[active], 1 - theta[active])
        wide = (-1, *(1 for _ in x.shape[1:]))
        k = [slope(t, x, active)]
        for row, node in zip(DOP853.A[1:stages], DOP853.C[1:stages], strict=True):
            increment = sum(a * slope_j for a, slope_j in zip(row, k, strict=False) if a != 0)
            k.append(slope(t + node * step, x + step.reshape(wide) * increment, active))
        new = x + step.reshape(wide) * sum(b * slope_j for b, slope_j in zip(DOP853.B, k, strict=True) if b != 0)
        k.append(slope(t + step, new, active))
        size = tolerance * (1e-2 + np.maximum(np.abs(x), np.abs(new)))
        e5, e3 = (
            (np.abs(sum(e * slope_j for e, slope_j in zip(weights, k, strict=True) if e != 0) / size) ** 2)
            .reshape(len(t), -1)
            .sum(axis=1)
            for weights in (DOP853.E5, DOP853.E3)
        )
        error = step * e5 / np.sqrt(np.maximum((e5 + 0.01 * e3) * size[0].size, np.finfo(float).tiny))
        good = error < 1
        theta[active[good]] = np.where(step == 1 - t, 1.0, t + step)[good]
        y[active[good]] = new[good]
        h[active] = step * np.clip(0.9 * np.maximum(error, 1e-14) ** -0.125, 0.2, 10.0)
        failed = active[~(h[active] > 1e-12)]
        theta[failed], y[failed] = 1.0, np.nan
    return y
