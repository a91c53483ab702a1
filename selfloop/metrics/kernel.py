"""KID: the squared maximum mean discrepancy of features under a cubic kernel, unbiased, without unit.

    KID = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x.y / d + 1)^3,    x, x' real and y, y' fake, independent

Means run over all pairs of different images. Being unbiased it has mean 0 for equal laws at every n, and may fall below 0.
Source: Binkowski et al. (2018), section 4.
"""

from typing import Any

import numpy as np

from selfloop.embed import blocks, sound

ROWS = 2048
"""Rows and columns of the kernel matrix that are held at a time: 32 MB."""


def kid(*, real: Any, fake: Any) -> float:
    """KID between features (n, d) and (m, d): all pairs, in float64, O(d) memory beyond one block.

    Raises ValueError for fewer than 2 images on a side, other widths or features that are not finite.
    """
    x, y = sound("KID", 2, real=real, fake=fake)
    return _within(x) + _within(y) - 2 * _sum(x, y) / (len(x) * len(y))


def kid_error(*, real: Any, fake: Any, subset: int | None = None) -> float:
    """Standard error of KID from disjoint subsets of `subset` real and `subset` fake images: std / sqrt(subsets).

    subset: ten of them at least and 1000 images at most, if not said. All pairs vary less than subsets of them do, so this
    bounds the error of `kid` from above. NaN for fewer than two subsets of two images.
    """
    x, y = sound("KID", 2, real=real, fake=fake)
    n = min(len(x), len(y))
    size = min(1000, n // 10) if subset is None else subset
    if size < 2 or n // size < 2:
        return float("nan")
    values = [kid(real=x[rows], fake=y[rows]) for rows in blocks(n // size * size, size)]
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _within(x: Any) -> float:
    diagonal = sum(
        float(((np.einsum("nd,nd->n", rows, rows) / rows.shape[1] + 1) ** 3).sum())
        for rows in (np.asarray(x[block], dtype=float) for block in blocks(len(x), ROWS))
    )
    return (_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _sum(x: Any, y: Any) -> float:
    """sum_ij k(x_i, y_j)."""
    total = 0.0
    for rows in blocks(len(x), ROWS):
        a = np.asarray(x[rows], dtype=float) / x.shape[1]
        for columns in blocks(len(y), ROWS):
            gram = a @ np.asarray(y[columns], dtype=float).T + 1
            total += float((gram * gram * gram).sum())
    return total
