"""The Frechet distance between features, as FID and FD-DINOv2 use it: squared, in the squared unit of the features.

    FD = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)),    m the mean of the features, S their unbiased covariance

It is W_2^2 between Gaussians with these moments, and is computed as such, by `eigh` and a singular value decomposition
(`selfloop.metrics.transport.gaussian_wasserstein2`). Moments are gathered over blocks (`selfloop.embed.moments`).

FD is biased upwards by about c / n for n images: compare equal n, and with the FD of n real ones.
Source: Heusel et al. (2017); the bias: Chong & Forsyth (2020).
"""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from selfloop.embed import FeatureMoments
from selfloop.laws import Gaussian
from selfloop.measure import Array
from selfloop.metrics.transport import gaussian_wasserstein2


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
