"""How far samples are from the rows that a model was trained on: copies are near, inventions far.

    metric           what it is                                                                  unit
    nearest          mean distance of samples to the nearest real row of generation 1            of the points
    nearest_real     the same of fresh draws of p_r                                              of the points
    copied           share of samples within `radius` of one of these rows                       -
    copied_real      the same of fresh draws                                                     -

The rows are those that were trained on, flaws and duplicates included. A row that was repeated draws samples to itself:
`nearest` falls below `nearest_real`, and `copied` rises above `copied_real`.
Source: Briq et al. (2024), arXiv 2411.12523, for the mean distance to the nearest training sample as novelty.
"""

from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np
from scipy.spatial import cKDTree  # type: ignore[import-untyped, unused-ignore]

from selfloop.component import Count, Positive, component
from selfloop.measure import Array, Measure
from selfloop.metrics.track import Tracker, View, first


@component
class Nearest(Tracker):
    """`nearest`, `nearest_real`, `copied` and `copied_real` of n samples; see the module.

    n_train: real rows of generation 1, as many as mix.n_real says; radius: within which a sample is a copy.
    """

    n_train: Count
    n: Count = 2_000
    radius: Positive = 0.01

    sees_training: ClassVar[bool] = True

    def __call__(self, view: View) -> Mapping[str, Array]:
        rows = first(cast(Measure, view.source.take(0, self.n_train, view.streams(1, "real"))), view.members)
        trees = [cKDTree(points) for points in np.asarray(rows.points, dtype=float)]
        out: dict[str, Array] = {}
        for name, data in (("", view.sample(self.n, "nearest")), ("_real", view.real(self.n, "nearest"))):
            pairs = zip(trees, np.asarray(data.points, dtype=float), strict=True)
            away = np.stack([_distances(tree, points) for tree, points in pairs])
            out |= {f"nearest{name}": away.mean(axis=-1), f"copied{name}": (away <= self.radius).mean(axis=-1)}
        return out


def _distances(tree: "cKDTree", points: Array) -> Array:
    """To the nearest row, NaN of a member that is not finite."""
    if not np.isfinite(points).all():
        return np.full(len(points), np.nan)
    return np.asarray(tree.query(points)[0])
