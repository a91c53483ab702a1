"""Weights of groups: all rows stay, and group c comes to have the mass alpha_c. Groups are classes, or clusters of features.

    w_i = alpha_c(i) / s_c(i)        s_c = sum of the data's weights in group c; the mean weight, under the data's own, is 1

    inverse_frequency    w_i ~ E(n_c)^-power      E(n) = n, or (1 - beta^n) / (1 - beta)      n_c = n s_c rows
                         power 1: alpha_c = 1 / K;   1/2: alpha_c ~ n_c^1/2;   0: as the data are

E is the effective number of n samples that overlap, from 1 at beta = 0 to n at beta -> 1. Weights can enter a training by the
rows that it draws or by its loss: algorithms see them in the data. Source: Cui et al. (2019), arXiv 1901.05555.
"""

from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Strict

from selfloop.component import component
from selfloop.curate.cluster import Clusters
from selfloop.curate.members import OneByOne
from selfloop.measure import Array, Ints, Measure, Selection
from selfloop.protocols import Work


@component
class Grouped(OneByOne):
    """A curator of groups. clusters: how they are found, in features; the classes of labelled data if not said."""

    clusters: Clusters | None = None

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    @property
    def needs_real(self) -> frozenset[str]:
        """Labels, where groups are classes."""
        return frozenset({"labels"}) if self.clusters is None else frozenset()

    def groups(self, data: Measure, rng: Generator, work: Work | None) -> tuple[Ints, dict[str, NDArray[Any]]]:
        """The group (n,) of each row, and the columns of a table that say so.

        Raises ValueError for data without labels where groups are classes.
        """
        if self.clusters is not None:
            found = self.clusters(data, rng, work and work.at("clusters"))
            return found.labels, {"cluster": found.labels, "distance": found.distance}
        if data.labels is None:
            raise ValueError("classes are weighed, and the data have no labels; give labels, or clusters")
        labels = np.asarray(data.labels, dtype=np.int64)
        if labels.min() < 0:
            raise ValueError(f"labels must be 0 or more, got {labels.min()}; number the classes from 0 up")
        return labels, {"class": labels}


@component
class InverseFrequency(Grouped):
    """`inverse_frequency`: rows of rare groups count more.

    power: 1 = groups of equal mass, 0.5 = mass as the square root of the size; beta: of the effective number, sizes as they are
    if not said.
    """

    power: Annotated[float, Strict(), Gt(0), Le(1)] = 1.0
    beta: Annotated[float, Strict(), Ge(0), Lt(1)] | None = None

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """All rows of one data set, with weights of mean 1; the table has `class`, or `cluster` and `distance`; `weight`."""
        groups, table = self.groups(data, rng, work)
        share = shares(groups, data.weights)
        alpha, there = np.zeros_like(share), share > 0
        alpha[there] = share[there] * effective_number(data.n * share[there], self.beta) ** -self.power
        return weighed(alpha / alpha.sum(), groups, data, table)


def shares(groups: Ints, weights: Array, k: int = 0) -> Array:
    """s (K,), the mass of each group 0 .. max(k, largest + 1) - 1."""
    return np.bincount(groups, weights, minlength=k).astype(np.float64)


def effective_number(n: Array, beta: float | None = None) -> Array:
    """E(n): n, or (1 - beta^n) / (1 - beta)."""
    return n if beta is None else (1 - beta**n) / (1 - beta)


def weighed(alpha: Array, groups: Ints, data: Measure, table: dict[str, NDArray[Any]]) -> Selection:
    """All rows, weighed so that group c has the mass alpha_c, (K,) that adds to one."""
    share = shares(groups, data.weights, len(alpha))
    weights = np.divide(alpha, share, out=np.zeros_like(alpha), where=share > 0)[groups]
    return Selection(np.arange(data.n), weights, table | {"weight": weights})
