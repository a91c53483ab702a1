"""How far samples are from the rows that a model was trained on: copies are near, inventions far.

    metric           what it is                                                                  unit
    nearest          mean distance of samples to the nearest real row of generation 1            of the points
    nearest_real     the same of fresh draws of p_r                                              of the points
    copied           share of samples within `radius` of one of these rows                       -
    copied_real      the same of fresh draws                                                     -
    most_copied      largest share of samples that one row has within `radius`                   -
    most_copied_real the same of fresh draws                                                     -

The rows are those that were trained on, flaws and duplicates included. A row that was repeated draws samples to itself:
`nearest` falls below `nearest_real`, and `most_copied` rises above that of fresh draws.
Source: Briq et al. (2024), arXiv 2411.12523, for the mean distance to the nearest training sample as novelty.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np
from scipy.spatial import cKDTree  # type: ignore[import-untyped, unused-ignore]

from selfloop.component import Count, Positive, component
from selfloop.measure import Array, Measure
from selfloop.metrics.track import Tracker, View, first

METRICS = ("nearest", "copied", "most_copied")


@component
class Nearest(Tracker):
    """`nearest`, `copied` and `most_copied` of n samples, and of as many fresh draws; see the module.

    n_train: real rows of generation 1, as many as mix.n_real says; radius: within which a sample is a copy.
    """

    n_train: Count
    n: Count = 2_000
    radius: Positive = 0.01

    sees_training: ClassVar[bool] = True

    def __call__(self, view: View) -> Mapping[str, Array]:
        rows = first(cast(Measure, view.source.take(0, self.n_train, view.streams(1, "real"))), view.members)
        trees = [cKDTree(np.unique(points, axis=0)) for points in np.asarray(rows.points, dtype=float)]
        out: dict[str, Array] = {}
        for name, data in (("", view.sample(self.n, "nearest")), ("_real", view.real(self.n, "nearest"))):
            pairs = zip(trees, np.asarray(data.points, dtype=float), strict=True)
            found = np.array([self._of_member(tree, points) for tree, points in pairs]).T
            out |= {f"{metric}{name}": values for metric, values in zip(METRICS, found, strict=True)}
        return out

    def _of_member(self, tree: "cKDTree", points: Array) -> tuple[float, ...]:
        """METRICS of one replicate, NaN where its samples are not finite."""
        if not np.isfinite(points).all():
            return (np.nan,) * len(METRICS)
        away, row = tree.query(points)
        near = away <= self.radius
        return float(away.mean()), float(near.mean()), float(np.bincount(row[near], minlength=1).max() / len(points))
