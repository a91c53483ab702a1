"""The Frechet distance between features, as FID and FD-DINOv2 use it: squared, in the squared unit of the features.

    FD = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)),    m the mean of the features, S their unbiased covariance

It is W_2^2 between Gaussians with these moments, and is computed as such, by `eigh` and a singular value decomposition
(`selfloop.metrics.transport.gaussian_wasserstein2`). Moments are gathered over blocks, in float64 and O(d^2) memory.

FD is biased upwards by about c / n for n images: compare equal n, and with the FD of n real ones.
Source: Heusel et al. (2017); the bias: Chong & Forsyth (2020).
"""

from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np

from selfloop.embed import blocks, sound
from selfloop.laws import Gaussian
from selfloop.measure import Array
from selfloop.metrics.transport import gaussian_wasserstein2

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
        (features,) = sound("the Frechet distance", 1, features=features)
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

    def law(self) -> Gaussian:
        """N(m, S). Raises ValueError for fewer than two features of positive weight, which have no covariance."""
        left = self.weight - self.squares / self.weight if self.weight else 0.0
        if left <= 1e-12 * self.weight:
            raise ValueError("the Frechet distance needs 2 images or more on each side; draw more")
        return Gaussian(np.asarray(self.mean), np.asarray(self.scatter / left))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """FD = W_2(a, b)^2 of laws with mean (d,) and cov (d, d), singular or not, in the squared unit of the features.

    About 3 s at d = 2048 on two cores. Raises ValueError if the dimensions differ or a covariance has an eigenvalue below zero.
    """
    value = float(gaussian_wasserstein2(a, b)) ** 2
    if not np.isfinite(value):
        raise ValueError("a covariance is not finite or has an eigenvalue below zero; compute the statistics anew, in float64")
    return value


def moments(features: Any, weights: Array | None = None) -> Gaussian:
    """N(m, S) of features (n, d) under weights (n,), by `FeatureMoments`."""
    return FeatureMoments().update(features, weights).law()


def load_reference(path: str | Path) -> Gaussian:
    """The statistics of an .npz file with `mu` (d,) and `sigma` (d, d), as EDM publishes them for its data sets.

    Raises ValueError, with what the file holds, if it is another kind of file or its arrays do not fit.
    """
    try:
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is no sound .npz file of plain arrays ({error}); give one with mu and sigma") from error
    if not {"mu", "sigma"} <= set(found):
        raise ValueError(f"{path} must hold mu and sigma, and holds {', '.join(found) or 'nothing'}")
    mean, cov = (np.asarray(found[name], dtype=float) for name in ("mu", "sigma"))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise ValueError(f"{path} must hold finite mu (d,) and sigma (d, d), got shapes {mean.shape} and {cov.shape}")
    return Gaussian(mean, 0.5 * (cov + cov.T))
