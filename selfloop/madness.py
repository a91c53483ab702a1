"""Madness: does a loop degrade, and does guidance slow, stop or prevent it? A class for every curve, with its error.

e_t(omega) is the mean over replicates of the distance to p_r at generation t, omega = 0 the standard loop, and e_inf the mean
of e_t over the last `tail` generations. In the words of Alemohammad et al. (2024), Figure 4:

    prevention  it never degrades: e_t <= (1 + tolerance) e_1 in every generation
    strong      it degrades, and ends no worse than the standard first generation: e_inf(omega) <= e_1(0)
    weak        it degrades less than the standard loop, e_inf(omega) / e_1 < e_inf(0) / e_1(0), and ends worse
    none        it degrades no less than the standard loop, and ends worse than its first generation

The first that holds is the class. The paper's formulas are not public beyond the caption; these definitions are ours. It is
open what G^1 in its denominator is, so both readings are reported: `own` takes e_1(omega), the guided model's first
generation, as the e_1 of ratios, prevention and weak; `standard` takes e_1(0), so that the first generation's gain counts.

A mean over replicates has an error: every ratio comes with a bootstrap interval over replicates, and every class with its
`support`, the share of bootstrap resamples that agree. A curve with a replicate that diverged has no mean, and its class is
`diverged`.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt
from pydantic import Strict

from selfloop.component import Count, NonNegative, Real, component
from selfloop.measure import Array

CLASSES = ("none", "weak", "strong", "prevention")
NORMALISATIONS = ("own", "standard")


@component
class Madness:
    """How curves are classified: which metric, which swept path is the guidance and which value of it is the standard."""

    metric: str = "w2"
    guidance: str = "algorithm.omega"
    standard: Real = 0.0
    tail: Count = 20
    tolerance: NonNegative = 0.0
    confidence: Annotated[float, Strict(), Gt(0), Lt(1)] = 0.95
    resamples: Count = 1000


@dataclass(frozen=True)
class Verdict:
    """One normalisation of one curve: ratio e_inf / e_1 with its interval, largest e_t / e_1, class and its support."""

    normalisation: str
    ratio: float
    low: float
    high: float
    peak: float
    kind: str
    support: float
    diverged: int


def classify(curve: Array, standard: Array, rule: Madness) -> list[Verdict]:
    """The verdicts on a curve (replicates, generations) against the standard one of the same shape, one a normalisation.

    The two share their replicates (common random numbers), so the bootstrap resamples them in pairs. NaN marks what a
    diverged replicate left out. Raises ValueError if the shapes differ or a curve has fewer than two replicates.
    """
    if curve.shape != standard.shape or curve.shape[0] < 2:
        raise ValueError(f"both curves need one shape with two or more replicates, got {curve.shape} and {standard.shape}")
    lost = int(np.isnan(curve).any(axis=1).sum() + np.isnan(standard).any(axis=1).sum())
    if lost:
        nan = float("nan")
        return [Verdict(which, nan, nan, nan, nan, "diverged", nan, lost) for which in NORMALISATIONS]
    n = len(curve)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=rule.resamples) / n
    weights = np.vstack([np.full(n, 1 / n), draws])
    mine, plain = weights @ curve, weights @ standard
    tail = slice(-min(rule.tail, curve.shape[1]), None)
    end, plain_ratio = mine[:, tail].mean(axis=1), plain[:, tail].mean(axis=1) / plain[:, 0]
    verdicts = []
    for which, first in zip(NORMALISATIONS, (mine[:, 0], plain[:, 0]), strict=True):
        peak = mine.max(axis=1) / first
        code = np.where(
            peak <= 1 + rule.tolerance,
            3,
            np.where(end <= plain[:, 0], 2, np.where(end / first < plain_ratio, 1, 0)),
        )
        ratio = end / first
        low, high = np.quantile(ratio[1:], [(1 - rule.confidence) / 2, (1 + rule.confidence) / 2])
        support = float((code[1:] == code[0]).mean())
        verdicts.append(Verdict(which, float(ratio[0]), float(low), float(high), float(peak[0]), CLASSES[code[0]], support, 0))
    return verdicts
