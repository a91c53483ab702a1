"""The points themselves as features: x / 127.5 - 1 of bytes, flattened; of vectors and latents, as they are."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from selfloop.component import component
from selfloop.embed.features import Features, Floats, blocks, model_space
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
    """`pixels`: the images themselves. For tests and for data without labels."""

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """Nothing is fitted."""
        return Pixels()
