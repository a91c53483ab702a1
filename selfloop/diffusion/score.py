"""Denoisers known in closed form."""

from typing import Any

import numpy as np

from selfloop import covariance
from selfloop.diffusion.sample import Denoise
from selfloop.laws import Gaussian


def gaussian_denoiser(law: Gaussian) -> Denoise:
    """D(x; sigma) = m + S (S + sigma^2 I)^-1 (x - m) for x (*batch, k, d) and N(m, S) of the same batch."""
    values, vectors = covariance.eigh(law.cov)
    back = np.ascontiguousarray(np.swapaxes(vectors, -1, -2))
    mean = law.mean[..., None, :]

    def denoise(x: Any, sigma: float) -> Any:
        gain = values / (values + sigma**2)
        if law.d == 1:
            return mean + gain[..., None] * (x - mean)
        return mean + (((x - mean) @ vectors) * gain[..., None, :]) @ back

    return denoise
