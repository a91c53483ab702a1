"""Predictions: what a network is asked for, and the denoiser that is made of its answer.

    D(x; sigma) = c_skip x + c_out F(c_in x; time),    s = sigma / sigma_data, c_out carries sigma_data, c_in divides by it

    prediction   F is asked for          c_skip        c_out               c_in
    edm          unit variance at all s  1 / (1 + s^2)  s / (1 + s^2)^1/2   (1 + s^2)^-1/2   Karras et al. (2022), Table 1
    v            z cos - x_0 sin         1 / (1 + s^2) -s / (1 + s^2)^1/2   (1 + s^2)^-1/2   Salimans & Ho (2022); tan = s
    epsilon      the noise z             1             -s                   (1 + s^2)^-1/2   Ho et al. (2020), DDPM
    sample       the data x_0            0              1                   (1 + s^2)^-1/2
    velocity     z - x_0                 1 / (1 + s)   -s / (1 + s)         1 / (1 + s)      Lipman et al. (2023), flow matching

One noise level sigma has three names. DDPM: x_t = abar^1/2 x_0 + (1 - abar)^1/2 z, so x = x_t / abar^1/2 and
sigma = ((1 - abar) / abar)^1/2. Flow matching: x_t = (1 - t) x_0 + t z, so x = x_t / (1 - t) and sigma = t / (1 - t).
A network is trained on |F - (x_0 - c_skip x) / c_out|^2, which weighs the denoising error |D - x_0|^2 by 1 / c_out^2.
"""

from typing import Any, Literal

PredictionName = Literal["edm", "v", "epsilon", "sample", "velocity"]


def coefficients(prediction: PredictionName, s: Any) -> tuple[Any, Any, Any]:
    """(c_skip, c_out, c_in) of a prediction for data of unit variance at s = sigma / sigma_data: a number, array or tensor.

    For other data multiply c_out by sigma_data and divide c_in by it. Raises ValueError for a prediction without a row above.
    """
    if prediction == "velocity":
        c = 1 / (1 + s)
        return c, -s * c, c
    norm = (1 + s**2) ** -0.5
    if prediction == "edm":
        return norm**2, s * norm, norm
    if prediction == "v":
        return norm**2, -s * norm, norm
    if prediction == "epsilon":
        return 1.0 + 0 * s, -s, norm
    if prediction == "sample":
        return 0.0 * s, 1.0 + 0 * s, norm
    raise ValueError(f"prediction must be one of edm, v, epsilon, sample, velocity; got {prediction!r}")
