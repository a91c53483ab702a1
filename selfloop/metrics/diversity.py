"""Diversity of images by themselves: the Vendi score, an effective number of different ones.

    VS = exp(-sum_i l_i ln l_i),    l the eigenvalues of K / n,    K_ij = x_i.x_j / (|x_i| |x_j|)

It is 1 for copies of one image and n for n images without any likeness; it grows with n, so compare equal n.
Source: Friedman & Dieng (2023).
"""

from typing import Any

import numpy as np

from selfloop.embed import blocks, sound

ROWS = 2048
"""Features that are taken in at a time."""


def vendi(features: Any) -> float:
    """The Vendi score of features (n, d), between 1 and n, without unit.

    X^T X and X X^T share their eigenvalues other than 0: with unit rows the smaller of the two is decomposed, the d x d one in
    O(d^2) memory. Raises ValueError if features are not finite or one is zero and so has no cosine.
    """
    (x,) = sound("the Vendi score", 1, features=features)
    n, d = x.shape
    if n <= d:
        unit = _unit(x)
        matrix = unit @ unit.T
    else:
        matrix = np.zeros((d, d))
        for rows in blocks(n, ROWS):
            unit = _unit(x[rows])
            matrix += unit.T @ unit
    shares = np.linalg.eigvalsh(matrix / n)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _unit(x: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    x = np.asarray(x, dtype=float)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not length.all():
        raise ValueError("a feature vector is zero and has no cosine with others; use other features or drop that image")
    return np.asarray(x / length)
