"""Mean and covariance of features that come in blocks, in float64 and O(d^2) memory."""

from typing import Any, Self

import numpy as np

from selfloop.embed.features import blocks, sound
from selfloop.laws import Gaussian
from selfloop.measure import Array

ROWS = 2048
"""Features that are taken in at a time."""


class FeatureMoments:
    """Mean and unbiased covariance of features (n, d) that come in blocks, with weights w_i if they have any:

        m = sum_i w_i x_i / W,    S = sum_i w_i (x_i - m)(x_i - m)^T / (W - sum_i w_i^2 / W),    W = sum_i w_i

    Equal weights divide by n - 1. A block is centred before it is squared and then added by
        C <- C + C_block + (m_block - m)(m_block - m)^T W W_block / (W + W_block),
    so that the relative error of S stays near 10^-15 sqrt(n), whatever the mean; the order of blocks changes no more than that.
    Source: Chan, Golub & LeVeque (1983).
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.squares = 0.0
        self.mean: Any = 0.0
        self.scatter: Any = 0.0

    def update(self, features: Any, weights: Array | None = None) -> Self:
        """Take in features (n, d) with weights (n,) >= 0, 1 each if not said; itself.

        Raises ValueError if they are not finite or of another width than those before.
        """
        (features,) = sound("a covariance", 1, features=features)
        if np.ndim(self.mean) and features.shape[1] != self.mean.shape[0]:
            raise ValueError(f"features must keep one width, got {self.mean.shape[0]} and then {features.shape[1]}")
        for rows in blocks(len(features), ROWS):
            x = np.asarray(features[rows], dtype=float)
            w = np.ones(len(x)) if weights is None else np.asarray(weights[rows], dtype=float)
            if w.sum() > 0:
                self._add(x, w, weights is None)
        return self

    def _add(self, x: Array, w: Array, equal: bool) -> None:
        block = float(w.sum())
        mean: Array = w @ x / block
        centred = x - mean
        if not equal:
            centred *= np.sqrt(w)[:, None]
        gap, total = mean - self.mean, self.weight + block
        self.scatter = self.scatter + centred.T @ centred + np.outer(gap, gap) * (self.weight * block / total)
        self.mean = self.mean + gap * (block / total)
        self.weight, self.squares = total, self.squares + float(w @ w)

    @property
    def n(self) -> float:
        """Kish's effective number of features, W^2 / sum_i w_i^2: how many there are, if weights are equal."""
        return self.weight**2 / self.squares

    def likeliest(self) -> Gaussian:
        """N(m, (n - 1) S / n), of maximum likelihood. Raises ValueError without a feature of positive weight."""
        if not self.weight:
            raise ValueError("a covariance needs features of positive weight, and these have none; leave them out")
        return Gaussian(np.asarray(self.mean), np.asarray(self.scatter / self.weight))

    def law(self) -> Gaussian:
        """N(m, S). Raises ValueError for fewer than two features of positive weight, which have no covariance."""
        left = self.weight - self.squares / self.weight if self.weight else 0.0
        if left <= 1e-12 * self.weight:
            raise ValueError("a covariance needs 2 images or more of positive weight; draw more")
        return Gaussian(np.asarray(self.mean), np.asarray(self.scatter / left))
