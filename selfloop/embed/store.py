"""The features of all rows of a data set: a block at a time, in a file where they are large."""

from collections.abc import Callable
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from selfloop.embed.features import Embedding, Features, Floats, blocks
from selfloop.measure import Measure
from selfloop.protocols import Work

ROWS = 4096
"""Points that are embedded at a time."""
IN_MEMORY = 2**28
"""Bytes of features; more are kept in a file."""


def embedded(embedding: Embedding, data: Measure, work: Work | None = None) -> Floats:
    """The features (n, d) of all points of one data set, by an embedding that is fitted to it."""
    return embedded_by(embedding.fitted(data, work and work.at("fit")), data)


def embedded_by(features: Features, data: Measure) -> Floats:
    """The features (n, d) of all points, in a temporary file if they are many."""
    return _gathered(lambda rows: features(data.points[rows]), data.n)


def _gathered(of: Callable[[slice], Floats], n: int) -> Floats:
    out: Any = None
    for rows in blocks(n, ROWS):
        block = of(rows)
        if out is None:
            shape = (n, block.shape[1])
            out = _filed(shape) if 4 * shape[0] * shape[1] > IN_MEMORY else np.empty(shape, np.float32)
        out[rows] = block
    return np.asanyarray(out)


def _filed(shape: tuple[int, int]) -> Floats:
    """An array in a file that has no name, and goes when it goes."""
    with TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)
