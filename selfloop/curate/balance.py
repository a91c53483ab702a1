"""Balance: as many rows of one group as of another, or as a target says; groups are clusters, or as the upper bound classes.

Groups k = 1 .. K of n_k rows, of mass s_k; target shares t_k, 1 / K if none are given:

    undersample   q_k = m t_k random rows, m = min_k n_k / t_k: the most rows that have the target's shares;
                  with a budget of m rows  q_k = min(n_k, c t_k), c such that sum_k q_k = m (water-filling):
                  of all q <= n the one with the least KL(q / m || t)
    oversample    a row stands for w_i copies, whole numbers that add to M t_k in group k, M = max_k n_k / t_k
    weights       w_i = t_k / s_k

Whole numbers by largest remainders. How far shares s are from the target is told before and after, in nats:

    KL(s || t) = sum_k s_k ln(s_k / t_k),    0 ln 0 = 0

An undersampling without a budget keeps K times the smallest group: one tiny group, and little is left. With a budget that
group is kept whole and the others share the rest.
"""

from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Len
from numpy.random import Generator
from pydantic import Strict

from selfloop.component import component
from selfloop.curate.budget import kept, rounded
from selfloop.curate.weigh import Grouped, shares
from selfloop.measure import Array, Ints, Measure, Selection
from selfloop.protocols import Work

Shares = Annotated[tuple[Annotated[float, Strict(), Ge(0)], ...], Len(1)]


@component
class Balance(Grouped):
    """`balance`: rows dropped, repeated or weighed so that all groups count alike, or as `target` says.

    by: the groups, clusters found in features by `clusters`, or the class of a label; how: undersample, oversample or weights;
    target: shares (K,) that add to one, by class 0, 1, ..., or of clusters the largest first; uniform if not said; fraction:
    the share of rows that stays, exactly, where rows are undersampled.
    Raises ValueError for data without labels, rows that are to be counted and have weights, a class without a row that has a
    share in the target, and a budget that the groups of the target do not hold; and what `clusters` raises.
    """

    by: Literal["clusters", "class"] = "clusters"
    how: Literal["undersample", "oversample", "weights"] = "undersample"
    target: Shares | None = None
    fraction: Annotated[float, Strict(), Gt(0), Le(1)] | None = None

    def __post_init__(self) -> None:
        if (self.by == "clusters") != (self.clusters is not None):
            raise ValueError("clusters says how groups are found; give it with by: clusters, and with nothing else")
        if self.fraction is not None and self.how != "undersample":
            raise ValueError(f"fraction drops rows, and {self.how} keeps them all; remove it, or set how to undersample")
        if self.target is not None and abs(sum(self.target) - 1) > 1e-9:
            raise ValueError(f"target must be shares that add to one, got a sum of {sum(self.target):g}")
        if self.target is not None and self.clusters is not None and len(self.target) != self.clusters.k:
            raise ValueError(f"target must hold a share for each of {self.clusters.k} clusters, got {len(self.target)}")

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay, with weights; the table has `cluster` and `distance`, or `class`."""
        group_rng, row_rng = rng.spawn(2)
        groups, table = self.groups(data, group_rng, work)
        target = self._target(groups)
        sizes = np.bincount(groups, minlength=len(target))
        if self.how != "weights" and np.ptp(data.weights) > 1e-9 * data.weights.max():
            raise ValueError(
                f"how: {self.how} counts rows, and these have weights between {data.weights.min():.3g} and "
                f"{data.weights.max():.3g}; set how to weights, or let this curator come before what weighs rows"
            )
        if self.how == "undersample":
            weights = np.zeros(data.n)
            weights[picked(groups, self._quotas(sizes, target), row_rng)] = 1.0
        elif self.how == "oversample":
            copies, rest = np.divmod(repeats(sizes, target), np.maximum(sizes, 1))
            weights = copies[groups].astype(float)
            weights[picked(groups, rest, row_rng)] += 1
        else:
            weights = (target / np.maximum(shares(groups, data.weights, len(target)), np.finfo(float).tiny))[groups]
        table |= {"reason": np.where(weights > 0, "", "more than the share of its group")}
        table |= {} if self.how == "undersample" else {"weight": weights}
        index = np.flatnonzero(weights)
        return Selection(index, weights[index], table)

    def notes(self, data: Measure, selection: Selection) -> dict[str, float]:
        """KL of the shares of the groups to the target, in nats, before and after the selection of one data set."""
        groups = selection.table["class" if self.by == "class" else "cluster"]
        target, after = self._target(groups), np.zeros(data.n)
        after[selection.index] = data.weights[selection.index] * selection.weights
        found = (shares(groups, weights, len(target)) for weights in (data.weights, after / after.sum()))
        what = f"KL of the {'classes' if self.by == 'class' else 'clusters'} to {'the target' if self.target else 'uniform'}"
        names = (f"{what}, {when}" for when in ("before", "after"))
        return {name: divergence(share, target) for name, share in zip(names, found, strict=True)}

    def _target(self, groups: Ints) -> Array:
        """Shares (K,) by the number of the group; uniform over clusters that have a row, over all classes up to the last."""
        sizes = np.bincount(groups, minlength=len(self.target or ()))
        if self.target is not None and len(sizes) > len(self.target):
            raise ValueError(f"target holds shares of {len(self.target)} groups, and there is a row of group {len(sizes) - 1}")
        if self.target is None:
            target = np.ones(len(sizes)) if self.by == "class" else (sizes > 0).astype(float)
        elif self.by == "class":
            target = np.array(self.target)
        else:
            target = np.array(self.target)[np.argsort(np.argsort(-sizes, kind="stable"))]
        absent = np.flatnonzero((sizes == 0) & (target > 0))
        if len(absent) and self.by == "class":
            raise ValueError(
                f"class {absent[0]} has no row, and is to have a share of {(target / target.sum())[absent[0]]:.3g}; number the "
                "classes without gaps, or give a target with 0 there"
            )
        if len(absent):
            raise ValueError(f"cluster {absent[0]} has no row, and is to have a share; set clusters.k lower")
        return np.asarray(target / target.sum())

    def _quotas(self, sizes: Ints, target: Array) -> Ints:
        if self.fraction is not None:
            return filled(sizes, target, kept(int(sizes.sum()), self.fraction))
        wanted = target > 0
        m = int(np.floor((sizes[wanted] / target[wanted]).min() + 1e-9))
        return rounded(m * target, sizes, m)


def divergence(share: Array, target: Array) -> float:
    """KL(share || target) = sum_k s_k ln(s_k / t_k) in nats, 0 where they are equal, inf where t_k = 0 < s_k.

    Shapes (K,). Raises ValueError unless both are >= 0 and add to one. Source: Kullback & Leibler (1951).
    """
    s, t = np.asarray(share, dtype=float), np.asarray(target, dtype=float)
    for name, values in (("share", s), ("target", t)):
        if not (values >= 0).all() or abs(values.sum() - 1) > 1e-6 or s.shape != t.shape:
            raise ValueError(f"{name} must be (K,), >= 0 and add to one, got {values}; divide by their sum")
    some = s > 0
    with np.errstate(divide="ignore"):
        return max(float(np.sum(s[some] * (np.log(s[some]) - np.log(t[some])))), 0.0)


def filled(sizes: Ints, target: Array, m: int) -> Ints:
    """Quotas (K,) that add to m: min(n_k, c t_k) up to one row, of sizes (K,) and target (K,).

    Raises ValueError if the groups with a share hold fewer than m rows.
    """
    wanted = np.flatnonzero(target > 0)
    if m > sizes[wanted].sum():
        raise ValueError(
            f"fraction keeps {m} rows, and the groups with a share in the target hold {sizes[wanted].sum()}; lower it"
        )
    order = wanted[np.argsort(sizes[wanted] / target[wanted], kind="stable")]
    below = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    levels = (m - below) / np.cumsum(target[order][::-1])[::-1]
    level = levels[np.argmax(levels <= sizes[order] / target[order] + 1e-9)]
    return rounded(np.minimum(sizes, level * target), np.where(target > 0, sizes, 0), m)


def repeats(sizes: Ints, target: Array) -> Ints:
    """Copies (K,) of all rows of a group together: M t_k, rounded, M = max_k n_k / t_k over the groups with a share."""
    wanted = target > 0
    return np.asarray(np.rint(target * (sizes[wanted] / target[wanted]).max()), dtype=np.int64)


def picked(groups: Ints, quotas: Ints, rng: Generator) -> Ints:
    """quotas[k] random rows of each group k, ascending, of groups (n,)."""
    shuffled = rng.permutation(len(groups))
    order = shuffled[np.argsort(groups[shuffled], kind="stable")]
    sizes = np.bincount(groups, minlength=len(quotas))
    nth = np.arange(len(groups)) - (np.cumsum(sizes) - sizes)[groups[order]]
    return np.sort(order[nth < quotas[groups[order]]])
