"""What a curator works on one at a time: all rows, a class, or a cluster; and how it writes down what it decided."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop.curate.cluster import Clusters
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
        groups = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(self.sizes)[:-1])
        parts = [rows[pick(rows, int(quota))] for rows, quota in zip(groups, quotas, strict=True) if quota > 0]
        return np.sort(np.concatenate(parts))


def check_within(within: Within, clusters: Clusters | None) -> None:
    """Raises ValueError unless clusters are given where, and only where, they are used."""
    if (within == "cluster") != (clusters is not None):
        remedy = "give clusters: {k: ...}" if clusters is None else "set within: cluster, or remove clusters"
        raise ValueError(f"within: {within} is given {'no ' if clusters is None else ''}clusters; {remedy}")


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
