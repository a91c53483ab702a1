"""Guidance: a denoiser made of denoisers. Samplers cannot tell the difference.

SIMS extrapolates from the score of an auxiliary model, trained on the base model's own samples, through the base score:

    s = (1 + omega) s_base - omega s_auxiliary,     D = (1 + omega) D_base - omega D_auxiliary

Source: Alemohammad et al. (2024), Algorithm 1. omega = 0 is the base, omega = -1 the auxiliary;
autoguidance (Karras et al., 2024) has the same form with weight w = 1 + omega and another auxiliary.
"""

from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from selfloop import covariance
from selfloop.diffusion.sample import Denoise
from selfloop.laws import Gaussian
from selfloop.measure import Array


def negative_guidance(base: Denoise, auxiliary: Denoise, omega: float) -> Denoise:
    """D(x; sigma) = (1 + omega) D_base(x; sigma) - omega D_auxiliary(x; sigma)."""

    def denoise(x: Any, sigma: float) -> Any:
        return (1 + omega) * base(x, sigma) - omega * auxiliary(x, sigma)

    return denoise


def guided_law(base: Gaussian, auxiliary: Gaussian, omega: float) -> Gaussian:
    """Law of the guided probability-flow ODE between two Gaussian scores, sigma from infinity to 0, without a step error.

        dx/dp = 1/2 [(1 + omega) (S_r + p)^-1 (x - m_r) - omega (S_s + p)^-1 (x - m_s)],     p = sigma^2

    is linear in x; its fundamental matrix is integrated to 1e-10, so covariances need not commute. Where they do,
    the covariance is S_r^(1 + omega) S_s^(-omega). (This is not the tilted density p_r^(1 + omega) p_s^(-omega).)
    batch and d are those of `base`. Members that are not positive definite come back as NaN.

    With theta = (c / (c + p))^(1/2) and y = theta x / c^(1/2) the equation is smooth on theta in [0, 1], noise to data:
        dy/dtheta = sum_k a_k [H_k y + K_k m_k],  a = (1 + omega, -omega),  g = c + (Lambda_k - c) theta^2,
        H_k = theta (Lambda_k - c) / g,  K_k = c^(1/2) / g  in the eigenbasis of S_k;  y(0) ~ N(0, I).
    """
    if omega == 0:
        return base
    if omega == -1:
        return auxiliary
    d, batch = base.d, base.batch
    fine = base.is_finite() & auxiliary.is_finite()
    identity = np.eye(d)
    spectra = [covariance.eigh(np.where(fine[..., None, None], law.cov, identity)) for law in (base, auxiliary)]
    shift = np.where(fine[..., None], auxiliary.mean - base.mean, 0.0)
    scale = np.exp(np.log(spectra[0][0]).mean(axis=-1))[..., None]
    weights = (1 + omega, -omega)

    def slope(theta: float, flat: Array) -> Array:
        y = flat.reshape(*batch, d, d + 1)
        total = np.zeros_like(y)
        for weight, (values, vectors) in zip(weights, spectra, strict=True):
            gap = values - scale
            rate = weight * theta * gap / (scale + gap * theta**2)
            total += np.einsum("...ij,...j,...kj,...kl->...il", vectors, rate, vectors, y, optimize=True)
        values, vectors = spectra[1]
        pull = -omega * np.sqrt(scale) / (scale + (values - scale) * theta**2)
        total[..., d] += np.einsum("...ij,...j,...kj,...k->...i", vectors, pull, vectors, shift, optimize=True)
        return np.asarray(total.ravel())

    start = np.broadcast_to(np.hstack([identity, np.zeros((d, 1))]), (*batch, d, d + 1))
    end = solve_ivp(slope, (0.0, 1.0), start.ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    if not end.success:
        raise ArithmeticError(f"the guided flow at omega = {omega} could not be integrated: {end.message}")
    y = end.y[:, -1].reshape(*batch, d, d + 1)
    matrix = np.sqrt(scale)[..., None] * y[..., :d]
    mean = base.mean + np.sqrt(scale) * y[..., d]
    cov = covariance.symmetric(matrix @ np.swapaxes(matrix, -1, -2))
    return Gaussian(np.where(fine[..., None], mean, np.nan), np.where(fine[..., None, None], cov, np.nan))
