"""How many rows to keep, of all and of each group: whole numbers that add up exactly.

    kept           m = floor(fraction n + 1/2), at least 1
    proportional   q_k = m n_k / n, rounded by largest remainders:  |q_k - m n_k / n| < 1
    opposite       n_k - (proportional quotas of n - m): what the other end of a group gives, so that both ends fill it
    balanced       q_k = min(n_k, c),  c such that sum_k q_k = m (water-filling), up to one row; what is left over goes to the
                   first groups that have room. No q_k can rise by one without another falling that is not larger then
    projected      argmin_x |x - w|^2 / 2  with  sum_k x_k = m,  l_k <= x_k <= n_k:  x_k = clip(w_k + nu, l_k, n_k)

Ties go to earlier groups, and with `opposite` to later ones.
"""

from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from pydantic import Strict

from selfloop.measure import Array, Ints

Share = Annotated[float, Strict(), Gt(0), Le(1)]
"""The share of rows that stays: 0.1 keeps one row in ten."""


def kept(n: int, fraction: float) -> int:
    """Rows that a fraction of n keeps. Raises ValueError for a fraction outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of rows that stay must lie in (0, 1], got {fraction:g}; 0.1 keeps one row in ten")
    return max(int(np.floor(fraction * n + 0.5 + 1e-9)), 1)


def proportional(sizes: Ints, m: int) -> Ints:
    """Quotas (k,) in proportion to the sizes (k,) of groups. Raises ValueError unless 0 <= m <= sum of sizes."""
    _check(sizes, m)
    quotas, remainder = np.divmod(m * sizes, max(int(sizes.sum()), 1))
    quotas[np.argsort(-remainder, kind="stable")[: m - quotas.sum()]] += 1
    return np.asarray(quotas)


def opposite(sizes: Ints, m: int) -> Ints:
    """Quotas (k,) that fill every group together with `proportional` ones of all other rows, and are proportional too."""
    _check(sizes, m)
    return sizes - proportional(sizes, int(sizes.sum()) - m)


def balanced(sizes: Ints, m: int) -> Ints:
    """Quotas (k,), as equal as the sizes (k,) allow. Raises ValueError unless 0 <= m <= sum of sizes."""
    _check(sizes, m)
    ascending = np.sort(sizes)
    below = np.concatenate([[0], np.cumsum(ascending)[:-1]])  # rows in smaller groups
    left = np.arange(len(sizes), 0, -1)
    first = int(np.argmax(m - below <= ascending * left))  # the smallest group that is cut
    quotas = np.minimum(sizes, (m - below[first]) // left[first])
    room = np.flatnonzero(sizes > quotas)[: m - quotas.sum()]
    quotas[room] += 1
    return np.asarray(quotas)


def projected(wish: Array, least: Array, sizes: Ints, m: int) -> Array:
    """The point (k,) nearest to `wish` (k,) of those that add to m and lie between `least` (k,) and the sizes (k,).

    sum_k clip(w_k + nu, l_k, n_k) grows with nu, in straight pieces between the values of nu at which a coordinate starts or
    stops to move; nu lies in the piece that holds m. Raises ValueError unless sum of least <= m <= sum of sizes.
    """
    if not least.sum() <= m * (1 + 1e-12) or not m <= sizes.sum() or not (least <= sizes).all():
        raise ValueError(f"{m} rows cannot be had from {int(sizes.sum())} with at least {least.sum():g}; ask for fewer or more")
    bends, slopes = np.concatenate([least - wish, sizes - wish]), np.repeat([1, -1], len(sizes))
    order = np.argsort(bends)
    bends, slopes = bends[order], np.cumsum(slopes[order])
    totals = least.sum() + np.concatenate([[0], np.cumsum(slopes[:-1] * np.diff(bends))])
    return np.asarray(np.clip(wish + np.interp(m, totals, bends), least, sizes))


def rounded(wish: Array, sizes: Ints, m: int) -> Ints:
    """Whole numbers below `wish` plus one for the largest remainders, that add to m; wish (k,) adds to m and wish <= sizes."""
    quotas = np.minimum(np.floor(wish + 1e-9), sizes).astype(np.int64)
    order = np.argsort(-(wish - quotas), kind="stable")
    room = order[sizes[order] > quotas[order]][: m - quotas.sum()]
    quotas[room] += 1
    return quotas


def _check(sizes: Ints, m: int) -> None:
    if not 0 <= m <= sizes.sum():
        raise ValueError(f"{m} rows are to be kept of {int(sizes.sum())}; keep at most as many as there are")
