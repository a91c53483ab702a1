"""What features are, what gives them, and when they are sound.

    phi: points (n, *event) -> R^(n x d),  float32

Points are images (n, C, H, W), uint8 or float32 latents, or vectors (n, d); an array, a memory map or `Rows`.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from selfloop.measure import Measure
from selfloop.protocols import Work

Floats = NDArray[np.float32]


@runtime_checkable
class Features(Protocol):
    """phi: points (n, C, H, W), an array, memory map or `Rows`, uint8 or float32 -> (n, d) float32, in batches inside."""

    @property
    def name(self) -> str: ...

    def __call__(self, points: Any) -> Floats: ...


@runtime_checkable
class Embedding(Protocol):
    """What gives features. `classifies` (False if not there): they also offer `classify` and `accuracy`.

    It may say more, for `selfloop.embed.embedded`: `of(data, work)`, the features (n, d) of all rows of one data set, where
    that is less work, or all it can do; `learns`, which of `labels` and `weights` it uses of the data beside the points (both
    if not there); `stamp()`, what its features depend on beside its own fields: the contents of files.
    """

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """Features for data like `real`, points (n, C, H, W); work: where what was trained keeps itself."""
        ...


def sound(metric: str, least: int, /, **sets: Any) -> tuple[Any, ...]:
    """The sets of features (n, d) of a metric, as they are, once they are known to be good for it.

    Raises ValueError for fewer than `least` rows, widths that differ, or values that are not finite, with the first bad row.
    """
    for name, features in sets.items():
        if len(features.shape) != 2:
            raise ValueError(f"{name} must be features (n, d), got shape {tuple(features.shape)}; embed or flatten the images")
        if features.shape[0] < least:
            raise ValueError(f"{metric} needs {least} images or more in each set, got {features.shape[0]} {name}; take more")
        for rows in blocks(features.shape[0], 4096):
            finite(name, features[rows], rows.start)
    if len({features.shape[1] for features in sets.values()}) > 1:
        widths = " and ".join(f"{features.shape[1]} ({name})" for name, features in sets.items())
        raise ValueError(f"{metric} compares features of one width d, got {widths}; embed both sets alike")
    return tuple(sets.values())


def finite(name: str, block: Any, start: int = 0) -> None:
    """Raises ValueError, with its number, for the first row of features (m, d) that is not; they begin at row `start`."""
    bad = ~np.isfinite(block).all(axis=1)
    if bad.any():
        raise ValueError(f"{name} must be finite, and row {start + int(bad.argmax())} of its features is not")


def blocks(n: int, size: int) -> Iterator[slice]:
    """0 .. n - 1 in slices of `size`, the last one shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def model_space(points: Any) -> Floats:
    """x / 127.5 - 1 of uint8, float32 as it is."""
    points = np.asarray(points)
    if points.dtype == np.uint8:
        return np.asarray(points / np.float32(127.5) - np.float32(1), dtype=np.float32)
    return np.asarray(points, dtype=np.float32)
