"""Nearest neighbours of features: how good, how varied and how new images are. Shares, without unit.

The support of a law is estimated by a manifold, the union of balls around its images, each as wide as the distance to its k-th
nearest neighbour among them, r_k(x):

    precision  share of fake images inside a ball of a real one                              Kynkaanniemi et al. (2019), eq. 2
    recall     share of real images inside a ball of a fake one                              Kynkaanniemi et al. (2019), eq. 2
    density    real balls that hold a fake image, divided by k, mean over fake images        Naeem et al. (2020), section 3
    coverage   share of real images whose ball holds a fake one                              Naeem et al. (2020), section 3
    novelty    share of fake images with |y - x_1| > r_1(x_1), x_1 the nearest training      Alaa et al. (2022)
               image: farther from it than any training image is ("authenticity")
    memorised  share of fake images with |y - x_1| <= |y - x_2| / 3, x_2 the second nearest  Yoon et al. (2023)

Balls are open. Real and fake are keywords alone, for libraries take them in either order, and precision becomes recall.
Distances are those of a block of rows and columns at a time, in float64 from centred features; the nearest are computed again
as |x - y|, so that the distance to a copy is 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop.embed import blocks, sound
from selfloop.measure import Array, Ints

ROWS = 2048
"""Rows and columns of the matrix of distances that are held at a time: 32 MB."""


@dataclass(frozen=True)
class Manifold:
    """Balls around features: points (n, d), radii (n,) the distances to the k-th nearest other point."""

    points: Any
    radii: Array
    k: int


def manifold(features: Any, k: int = 5) -> Manifold:
    """The manifold of features (n, d). Raises ValueError if there are not more than k of them, or they are not finite."""
    (points,) = sound(f"a manifold of {k} neighbours", k + 1, features=features)
    return Manifold(points, nearest(points, None, k)[0][:, -1], k)


def precision_recall(*, real: Manifold, fake: Manifold) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of manifolds with one k; O(n + m) memory beyond one block.

    Raises ValueError if widths or k differ.
    """
    if real.k != fake.k:
        raise ValueError(f"manifolds must have one number of neighbours k, got {real.k} real and {fake.k} fake")
    sound("precision and recall", 1, real=real.points, fake=fake.points)
    m, n = len(real.points), len(fake.points)
    held, realistic = np.zeros(n), np.zeros(n, dtype=bool)
    covered, recalled = np.zeros(m, dtype=bool), np.zeros(m, dtype=bool)
    for rows, columns, squares in _tiles(fake.points, real.points):
        inside = squares < real.radii[columns] ** 2
        held[rows] += inside.sum(axis=1)
        realistic[rows] |= inside.any(axis=1)
        covered[columns] |= inside.any(axis=0)
        recalled[columns] |= (squares < fake.radii[rows, None] ** 2).any(axis=0)
    return {
        "precision": float(realistic.mean()),
        "recall": float(recalled.mean()),
        "density": float(held.mean() / real.k),
        "coverage": float(covered.mean()),
    }


def novelty(*, train: Any, fake: Any, ratio: float = 1 / 3) -> dict[str, float]:
    """`novelty` and `memorised` of fake features (n, d) against all training ones (m, d), in O(n m) time.

    A copy of a training image that occurs twice is memorised too: 0 <= 0. Raises ValueError for fewer than 2 training images,
    other widths or features that are not finite.
    """
    sound("novelty", 1, fake=fake, train=train)
    distances, index = nearest(fake, train, 2)
    first, second = distances.T
    reached, which = np.unique(index[:, 0], return_inverse=True)
    own = nearest(np.asarray(train[reached]), train, 2)[0][:, 1]  # the nearest of all is the image itself
    return {
        "novelty": float((first > own[which]).mean()),
        "memorised": float((first <= ratio * second).mean()),
    }


def nearest(x: Any, y: Any | None, k: int) -> tuple[Array, Ints]:
    """Distances (n, k), ascending, from each of x (n, d) to the k nearest of y (m, d), and which they are (n, k).

    y None: to the nearest others of x itself. Raises ValueError if there are fewer than k.
    """
    among = x if y is None else y
    if len(among) - (y is None) < k:
        raise ValueError(f"{k} nearest neighbours need {k + (y is None)} images or more, got {len(among)}")
    squares, index = np.full((len(x), k), np.inf), np.zeros((len(x), k), dtype=np.int64)
    for rows, columns, tile in _tiles(x, among):
        if y is None and rows == columns:
            np.fill_diagonal(tile, np.inf)
        nearer = rows.start + np.flatnonzero(tile.min(axis=1) < squares[rows, -1])
        tile = tile[nearer - rows.start]
        some = np.argpartition(tile, min(k, tile.shape[1]) - 1, axis=1)[:, :k]
        found = np.concatenate([squares[nearer], np.take_along_axis(tile, some, axis=1)], axis=1)
        names = np.concatenate([index[nearer], some + columns.start], axis=1)
        best = np.argsort(found, axis=1, kind="stable")[:, :k]
        squares[nearer], index[nearer] = (np.take_along_axis(of, best, axis=1) for of in (found, names))
    distances = np.empty_like(squares)
    for rows in blocks(len(x), max(ROWS // k, 1)):
        gaps = np.asarray(x[rows], dtype=float)[:, None] - np.asarray(among[index[rows].ravel()], dtype=float).reshape(
            -1, k, x.shape[1]
        )
        distances[rows] = np.sqrt((gaps**2).sum(axis=-1))
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(index, order, axis=1)


def _tiles(x: Any, y: Any) -> Iterator[tuple[slice, slice, Array]]:
    """Rows of x, rows of y and their squared distances |x|^2 + |y|^2 - 2 x.y about the mean of y, block by block."""
    centre = sum(np.asarray(y[columns], dtype=float).sum(axis=0) for columns in blocks(len(y), ROWS)) / len(y)
    for rows in blocks(len(x), ROWS):
        a = np.asarray(x[rows], dtype=float) - centre
        for columns in blocks(len(y), ROWS):
            b = np.asarray(y[columns], dtype=float) - centre
            squares = a @ (-2 * b).T
            squares += (a**2).sum(axis=1)[:, None]
            squares += (b**2).sum(axis=1)
            yield rows, columns, np.maximum(squares, 0.0, out=squares)
