"""Noise levels in training: the law of sigma, in units of the standard deviation of the data, by its quantile function.

    kind        sigma / sigma_data at u in (0, 1)
    lognormal   exp(mean + std Phi^-1(u))    Karras et al. (2022), equation 6; also flow matching with logit-normal t
    logistic    u / (1 - u)                  flow matching with t uniform: sigma = t / (1 - t)
    cosine      tan(pi u / 2)                DDPM with the cosine schedule (Nichol & Dhariwal, 2021) and t uniform

With u_i = (i + U_i) / B, U_i uniform, a batch of B levels is stratified: every level has the same law. It lowers the variance
of a batch's loss where that depends on the level, and that of its gradient by a few per cent at most.
"""

from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from selfloop.component import Positive, Real, component

EDGE = 1e-4
"""Quantiles are taken in [EDGE, 1 - EDGE], so that no level is 0 or infinite."""


@component
class Noise:
    """The law of the noise levels a network is trained on. EDM's mean -1.2 is for sigma_data = 0.5: here it is -0.5."""

    kind: Literal["lognormal", "logistic", "cosine"] = "lognormal"
    mean: Real = -0.5
    std: Positive = 1.2

    def quantile(self, u: Any) -> Any:
        """sigma / sigma_data at u in (0, 1), elementwise: array to array, tensor to tensor."""
        u = u.clip(EDGE, 1 - EDGE)
        if self.kind == "logistic":
            return u / (1 - u)
        if isinstance(u, np.ndarray):
            return np.exp(self.mean + self.std * ndtri(u)) if self.kind == "lognormal" else np.tan(np.pi / 2 * u)
        import torch

        return (self.mean + self.std * torch.special.ndtri(u)).exp() if self.kind == "lognormal" else (torch.pi / 2 * u).tan()
