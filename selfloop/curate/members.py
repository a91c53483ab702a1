"""Curators that decide about one data set, on a batch of them: member by member, each with a stream of its own.

A row of weight 0 is not there: an earlier curator dropped it. A member that is not finite is left as it is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop.measure import Measure, Selection, finite
from selfloop.protocols import Work


class OneByOne:
    """What gives a curator its `__call__`; it has `select`, for data without batch axes whose rows all have weight."""

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows of one data set that stay: index ascending and unique, weights (m,), table of columns (n,)."""
        raise NotImplementedError

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The selection in every member; of a batch index is all rows, and a row that a member drops has weight 0 there."""
        if not data.batch:
            return self._of_present(data, rng, work)
        sound, streams = finite(data).ravel(), rng.spawn(int(np.prod(data.batch)))
        weights, tables = np.ones((len(sound), data.n)), []
        for k, (where, stream) in enumerate(zip(np.ndindex(*data.batch), streams, strict=True)):
            if sound[k]:
                chosen = self._of_present(_member(data, where), stream, work and work.at(f"member {k}"))
                weights[k] = 0.0
                weights[k, chosen.index] = chosen.weights
                tables.append((k, chosen.table))
        return Selection(np.arange(data.n), weights.reshape(*data.batch, data.n), _gathered(tables, len(sound), data))

    def _of_present(self, data: Measure, rng: Generator, work: Work | None) -> Selection:
        present = np.flatnonzero(data.weights > 0)
        if len(present) == data.n:
            return self.select(data, rng, work)
        chosen = self.select(data.subset(present), rng, work)
        table = {name: _spread(column, present, data.n) for name, column in chosen.table.items()}
        return Selection(present[chosen.index], chosen.weights, table)


def _member(data: Measure, where: tuple[int, ...]) -> Measure:
    labels, origin = (
        None if marks is None else np.broadcast_to(marks, data.weights.shape)[where] for marks in (data.labels, data.origin)
    )
    return Measure(data.points[where], data.weights[where], labels, origin)


def absent(dtype: np.dtype[Any]) -> Any:
    """What stands in a table for a row that was not there."""
    return {"f": np.nan, "i": -1, "b": False}.get(dtype.kind, "")


def _spread(column: NDArray[Any], rows: NDArray[np.int64], n: int) -> NDArray[Any]:
    out = np.full(n, absent(column.dtype), dtype=column.dtype)
    out[rows] = column
    return out


def _gathered(tables: list[tuple[int, Mapping[str, NDArray[Any]]]], members: int, data: Measure) -> dict[str, NDArray[Any]]:
    out: dict[str, NDArray[Any]] = {}
    for name, column in (tables[0][1] if tables else {}).items():
        whole = np.full((members, data.n), absent(column.dtype), dtype=column.dtype)
        for k, table in tables:
            whole[k] = table[name]
        out[name] = whole.reshape(*data.batch, data.n)
    return out
