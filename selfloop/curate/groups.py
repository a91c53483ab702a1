"""What a curator works on one at a time: all rows, a class, or a cluster; and how it writes down what it decided."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop.component import component
from selfloop.curate.cluster import Clusters, rows_of
from selfloop.curate.members import OneByOne
from selfloop.measure import Ints, Measure, Selection
from selfloop.protocols import Work

Within = Literal["data", "class", "cluster"]


@dataclass(frozen=True)
class Groups:
    """labels (n,) in 0 .. k - 1; columns of the table that the grouping adds: cluster and distance."""

    labels: Ints
    k: int
    columns: Mapping[str, NDArray[Any]]

    @property
    def sizes(self) -> Ints:
        """Rows (k,) in each group."""
        return np.bincount(self.labels, minlength=self.k)

    def picked(self, quotas: Ints, pick: Callable[[Ints, int], Ints]) -> Ints:
        """The rows that stay, ascending: of the rows (n_g,) of each group, those at the positions pick(rows, q_g)."""
        groups = zip(rows_of(self.labels, self.sizes), quotas, strict=True)
        parts = [rows[pick(rows, int(quota))] for rows, quota in groups if quota > 0]
        return np.sort(np.concatenate(parts))


@component
class WithinGroups(OneByOne):
    """A curator that works group by group. within: data, or each class or cluster by itself; clusters: these, if so."""

    within: Within = "data"
    clusters: Clusters | None = None

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})
    instead: ClassVar[str] = "set within: data, or cluster"

    @property
    def needs_real(self) -> frozenset[str]:
        """Labels, within classes."""
        return frozenset({"labels"}) if self.within == "class" else frozenset()

    def __post_init__(self) -> None:
        if (self.within == "cluster") != (self.clusters is not None):
            remedy = "give clusters: {k: ...}" if self.clusters is None else "set within: cluster, or remove clusters"
            raise ValueError(f"within: {self.within} is given {'no ' if self.clusters is None else ''}clusters; {remedy}")

    def groups(self, data: Measure, rng: Generator, work: Work | None) -> Groups:
        """The groups of one data set. Raises ValueError for classes of data without labels."""
        return grouped(data, self.within, self.clusters, rng, work)


def grouped(data: Measure, within: Within, clusters: Clusters | None, rng: Generator, work: Work | None) -> Groups:
    """The groups of one data set. Raises ValueError for classes of data without labels."""
    if within == "class":
        if data.labels is None:
            raise ValueError("within: class needs labelled data, and these have no labels; use within: data, or cluster")
        classes, labels = np.unique(data.labels, return_inverse=True)
        return Groups(labels.astype(np.int64), len(classes), {})
    if clusters is None:
        return Groups(np.zeros(data.n, dtype=np.int64), 1, {})
    found = clusters(data, rng, work and work.at("clusters"))
    return Groups(found.labels, found.k, {"cluster": found.labels, "distance": found.distance})


def decided(data: Measure, index: Ints, why: Any, **columns: NDArray[Any]) -> Selection:
    """The selection of the rows `index`, each of weight one, and its table: the columns, the class if known, and `reason`.

    why: the reason of all rows that are dropped, or of each row (n,).
    """
    reason = np.array(np.broadcast_to(why, data.n))
    reason[index] = ""
    known = {} if data.labels is None else {"class": np.asarray(data.labels, dtype=np.int64)}
    return Selection(index, np.ones(len(index)), {**columns, **known, "reason": reason})
