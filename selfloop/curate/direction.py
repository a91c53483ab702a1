"""Which rows a score keeps. The direction is always said: what helps a classifier can hurt a generative model.

The rows of a group stand in ascending order of (score, row number), with rank 0 .. n - 1; m of n are kept:

    low          the first m
    high         the last m: what `low` drops at n - m
    middle       the m in the middle, floor((n - m) / 2) dropped below them
    interval     the ranks floor(j n / m), j = 0 .. m - 1: every k-th where m = n / k     Huang et al. (2025), D2C
    stratified   of bins of equal width in the score, as equally as they are filled, random rows     Zheng et al. (2023), CCS
"""

from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop.curate.budget import balanced
from selfloop.measure import Array, Ints

Keep = Literal["high", "low", "middle", "interval", "stratified"]
STRATA = 50
Numbers = NDArray[np.floating[Any]]


def chosen(scores: Array, m: int, keep: Keep, rng: Generator, strata: int = STRATA) -> Ints:
    """The m rows that stay, ascending, of scores (n,). rng: for `stratified` alone. Raises ValueError for NaN or infinity."""
    return chosen_within(np.zeros(len(scores), dtype=np.int64), sane(scores, len(scores)), np.array([m]), keep, rng, strata)


def sane(scores: Array, n: int) -> Array:
    """The scores as float64. Raises ValueError unless there is a finite one for each of n rows."""
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (n,):
        raise ValueError(f"a score must give a number for each of {n} rows, and gave shape {scores.shape}")
    if not np.isfinite(scores).all():
        row = int(np.argmin(np.isfinite(scores)))
        raise ValueError(f"scores must be finite, and that of row {row} is {scores[row]}; look at its features")
    return scores


def chosen_within(groups: Ints, scores: Numbers, quotas: Ints, keep: Keep, rng: Generator, strata: int = STRATA) -> Ints:
    """The rows that stay, ascending: quotas[g] of each group g; groups (n,) in 0 .. k - 1, scores (n,), quotas (k,)."""
    order, rank, sizes = ranked(groups, scores, len(quotas))
    n, m = sizes[groups[order]], quotas[groups[order]]
    if keep == "stratified":
        ends = np.cumsum(sizes)
        parts = (order[end - size : end] for end, size in zip(ends, sizes, strict=True))
        picked = [_stratified(rows, scores[rows], int(m), rng, strata) for rows, m in zip(parts, quotas, strict=True)]
        return np.sort(np.concatenate(picked))
    if keep == "interval":
        stays = (-(-rank * m // n) * n // np.maximum(m, 1) == rank) & (m > 0)  # rank = floor(j n / m) for j = ceil(rank m / n)
    else:
        start = {"low": 0 * n, "high": n - m, "middle": (n - m) // 2}[keep]
        stays = (rank >= start) & (rank < start + m)
    return np.sort(order[stays])


def ranked(groups: Ints, scores: Numbers, k: int) -> tuple[Ints, Ints, Ints]:
    """The rows (n,) group by group in ascending order of (score, row), the rank (n,) of each in its group, sizes (k,)."""
    order, sizes = np.lexsort((scores, groups)), np.bincount(groups, minlength=k)
    rank = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order, rank, sizes


def _stratified(rows: Ints, scores: Numbers, m: int, rng: Generator, strata: int) -> Ints:
    if m == 0:
        return rows[:0]
    low, high = scores.min(), scores.max()
    height = (scores - low) / (high - low) if high > low else np.zeros(len(rows))
    bins = np.minimum(strata * height, strata - 1).astype(np.int64)
    quotas = balanced(np.bincount(bins, minlength=strata), m)
    return rows[chosen_within(bins, rng.random(len(rows)), quotas, "low", rng)]
