"""The points themselves as features: x / 127.5 - 1 of bytes, flattened; of vectors and latents, as they are."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from selfloop.component import component
from selfloop.embed.features import Features, Floats, blocks, model_space
from selfloop.embed.store import embedded_by
from selfloop.measure import Measure
from selfloop.protocols import Work


@dataclass(frozen=True)
class Pixels:
    """x / 127.5 - 1, flattened: (n, C H W)."""

    name: str = "pixels"

    def __call__(self, points: Any) -> Floats:
        """The features of points (n, *event)."""
        n = points.shape[0]
        parts = [model_space(points[rows]).reshape(rows.stop - rows.start, -1) for rows in blocks(n, 4096)]
        return np.concatenate(parts)


@component
class PixelEmbedding:
    """`pixels`: the points themselves. For vectors, for tests and for data without labels."""

    learns: ClassVar[frozenset[str]] = frozenset()

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """Nothing is fitted."""
        return Pixels()

    def of(self, data: Measure, work: Work | None = None) -> Floats:
        """The features (n, d) of all points; vectors of float32 are not copied."""
        points = data.points
        if isinstance(points, np.ndarray) and points.ndim == 2 and points.dtype == np.float32:
            return points
        return embedded_by(Pixels(), data, work)
