"""How many rows to keep, of all and of each group: whole numbers that add up exactly.

    kept           m = floor(fraction n + 1/2), at least 1
    proportional   q_k = m n_k / n, rounded by largest remainders:  |q_k - m n_k / n| < 1
    balanced       q_k = min(n_k, c),  c such that sum_k q_k = m (water-filling), up to one row; what is left over goes to the
                   first groups that have room. No q_k can rise without a smaller one falling

All rules say what they do with ties: earlier groups come first.
"""

import numpy as np

from selfloop.measure import Array, Ints


def kept(n: int, fraction: float) -> int:
    """Rows that a fraction of n keeps. Raises ValueError for a fraction outside (0, 1]."""
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of rows that stay must lie in (0, 1], got {fraction:g}; 0.1 keeps one row in ten")
    return max(int(np.floor(fraction * n + 0.5)), 1)


def proportional(sizes: Ints, m: int) -> Ints:
    """Quotas (k,) in proportion to the sizes (k,) of groups. Raises ValueError unless 0 <= m <= sum of sizes."""
    _check(sizes, m)
    return rounded(m * sizes / max(sizes.sum(), 1), sizes, m)


def balanced(sizes: Ints, m: int) -> Ints:
    """Quotas (k,), as equal as the sizes (k,) allow. Raises ValueError unless 0 <= m <= sum of sizes."""
    _check(sizes, m)
    ascending = np.sort(sizes)
    below = np.concatenate([[0], np.cumsum(ascending)[:-1]])  # rows in smaller groups
    caps = (m - below) / np.arange(len(sizes), 0, -1)
    level = int(np.floor(caps[np.argmax(caps <= ascending)]))
    quotas = np.minimum(sizes, level)
    room = np.flatnonzero(sizes > quotas)[: m - quotas.sum()]
    quotas[room] += 1
    return quotas


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
