"""Which rows a score keeps. The direction is always said: what helps a classifier can hurt a generative model.

Rows stand in ascending order of (score, row number); m of n are kept:

    low          the first m
    high         the last m: what `low` drops at n - m
    middle       the m in the middle, floor((n - m) / 2) dropped below them
    interval     the rows floor(j n / m), j = 0 .. m - 1: every k-th where m = n / k     Chen et al. (2025), D2C
    stratified   of bins of equal width in the score, as equally as they are filled, random rows     Zheng et al. (2023), CCS
"""

from typing import Literal

import numpy as np
from numpy.random import Generator

from selfloop.curate.budget import balanced
from selfloop.measure import Array, Ints

Keep = Literal["high", "low", "middle", "interval", "stratified"]
STRATA = 50


def chosen(scores: Array, m: int, keep: Keep, rng: Generator, strata: int = STRATA) -> Ints:
    """The m rows that stay, ascending, of scores (n,). rng: for `stratified` alone. Raises ValueError for NaN."""
    if np.isnan(scores).any():
        raise ValueError(f"scores must be numbers, and row {int(np.argmax(np.isnan(scores)))} has none; look at its features")
    n, order = len(scores), np.argsort(scores, kind="stable")
    if keep == "stratified":
        return _stratified(scores, m, rng, strata)
    start = {"low": 0, "high": n - m, "middle": (n - m) // 2, "interval": 0}[keep]
    picked = np.arange(m) * n // m if keep == "interval" else np.arange(start, start + m)
    return np.sort(order[picked])


def _stratified(scores: Array, m: int, rng: Generator, strata: int) -> Ints:
    low, high = scores.min(), scores.max()
    width = (high - low) / strata if high > low else 1.0
    bins = np.minimum((scores - low) // width, strata - 1).astype(np.int64)
    quotas = balanced(np.bincount(bins, minlength=strata), m)
    shuffled = rng.permutation(len(scores))
    grouped = shuffled[np.argsort(bins[shuffled], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=strata))[:-1]])
    picked = [grouped[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
    return np.sort(np.concatenate(picked))
