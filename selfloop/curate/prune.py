"""Pruning by a score: the rows that its direction keeps, in proportion from every group.

    m = kept(n, fraction);   q_g = m n_g / n by largest remainders;   of group g the q_g rows that `keep` says

Coverage-centric selection (Zheng et al. 2023) is keep: stratified with `drop`: of each group the share `drop` with the highest
scores goes first, the hard rows where high is hard; the rest is kept evenly over the range of its scores. Source: Sorscher et
al. (2022), for high and low.
"""

from typing import Annotated

import numpy as np
from annotated_types import Ge, Lt
from numpy.random import Generator
from pydantic import Strict

from selfloop.component import Count, component
from selfloop.curate.budget import Share, kept, opposite, proportional
from selfloop.curate.direction import STRATA, Keep, chosen_within, ranked, sane
from selfloop.curate.groups import WithinGroups, decided
from selfloop.measure import Measure, Selection
from selfloop.protocols import Score, Work


@component
class Prune(WithinGroups):
    """`prune`: rows by a score.

    score: what is computed of each row; fraction: the share of rows that stays; keep: high, low, middle, interval or stratified
    scores; within: data, or each class or cluster by itself; drop: the share of each group that goes before, those of highest
    score; strata: bins of keep: stratified.
    """

    score: Score
    fraction: Share
    keep: Keep
    drop: Annotated[float, Strict(), Ge(0), Lt(1)] = 0.0
    strata: Count = STRATA

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fraction + self.drop > 1 + 1e-9:
            raise ValueError(
                f"drop: {self.drop:g} leaves {1 - self.drop:.3g} of the rows, and "
                f"fraction: {self.fraction:g} keeps more; lower one of them"
            )

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay; table: score, and cluster and distance if there are clusters.

        Raises ValueError for scores that are not finite, and if `drop` leaves fewer rows than are to be kept.
        """
        scores = sane(self.score(data, rng, work and work.at("score")), data.n)
        groups, m = self.groups(data, rng, work), kept(data.n, self.fraction)
        order, rank, sizes = ranked(groups.labels, scores, groups.k)
        left = np.sort(order[rank < (sizes - np.floor(sizes * self.drop + 0.5))[groups.labels[order]]])
        if m > len(left):
            text = f"drop: {self.drop:g} leaves {len(left)} of {data.n} rows, and fraction: {self.fraction:g} keeps {m}"
            raise ValueError(f"{text}; lower one of them")
        labels = groups.labels[left]
        quotas = (opposite if self.keep == "high" else proportional)(np.bincount(labels, minlength=groups.k), m)
        index = left[chosen_within(labels, scores[left], quotas, self.keep, rng, self.strata)]
        why = np.full(data.n, "among the highest scores")
        why[left] = f"not {self.keep}"
        return decided(data, index, why, score=scores, **groups.columns)
