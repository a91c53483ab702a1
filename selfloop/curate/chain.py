"""Curators one after the other, and the one selection that they come to.

A step is shown what the steps before it left, under the weights that they gave. Of the n rows of the data

    row i stays    if every step keeps it
    weight         w_i = product of the weights that the steps give it, relative; 0 = dropped

Columns of the tables are spread over all n rows, with NaN, -1 or "" where a step was not shown a row. If several steps give a
column, the last one has the name and the others the number of their step before it: `0.score`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop.curate.members import absent
from selfloop.measure import Array, Ints, Measure, Selection
from selfloop.protocols import Curator, Work
from selfloop.registry import kind_of

REASON, WEIGHT = "reason", "weight"
TIMINGS = "timings.json"
"""Where the seconds of the steps are written, beside the selection."""


@dataclass(frozen=True)
class Step:
    """What one curator decided about the rows (m,) of the data that it was shown, in how many seconds; within: what groups."""

    name: str
    rows: Ints
    selection: Selection
    seconds: float
    within: str = "data"


def steps(
    curators: Sequence[Curator],
    data: Measure,
    rng: Generator,
    work: Work | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Step]:
    """The curators in order, each on a stream of its own, so that another one at the end changes none before it.

    work: where a step that took long is kept, and found again when the fit goes on; names: of the steps there, their numbers
    if not said.
    Raises what the curators raise, and ValueError where one keeps nothing.
    """
    rows, seen = np.arange(data.n), data
    parts = names or [str(number) for number in range(len(curators))]
    for name, curator, stream in zip(parts, curators, rng.spawn(len(curators)), strict=True):
        began, keep = time.monotonic(), work and work.at(f"selection {name}")
        found = keep.load() if keep is not None else None
        if found is None:
            chosen = curator(seen, stream, work and work.at(f"curator {name}"))
            seconds = time.monotonic() - began
            if keep is not None and keep.due():
                keep.save(**_packed(chosen, seconds))
        else:
            chosen, seconds = _unpacked(found)
        present = _present(chosen, data.batch)
        yield Step(kind_of(curator), rows, chosen, seconds, str(getattr(curator, "within", "data")))
        seen, rows = present.apply(seen), rows[present.index]


def composed(taken: Sequence[Step], data: Measure) -> Selection:
    """The selection over all rows of the data that the steps come to; in every member of a batch.

    The column `reason` says why a row was dropped, by the words of the step or else by its name, and is "" where it stays.
    """
    shown = np.array(data.weights > 0)
    weights, index = shown.astype(float), np.arange(data.n)
    reason: NDArray[Any] = np.zeros(shown.shape, dtype="<U1")
    table: dict[str, NDArray[Any]] = {}
    owner: dict[str, int] = {}
    for number, step in enumerate(taken):
        factor = np.zeros(shown.shape)
        index = step.rows[step.selection.index]
        factor[..., index] = np.nan_to_num(step.selection.weights)
        columns = {name: _spread(column, step.rows, shown) for name, column in step.selection.table.items()}
        given = columns.pop(REASON, np.zeros(shown.shape, dtype="<U1"))
        columns.pop(WEIGHT, None)
        reason = np.where(shown & (factor <= 0), np.where(given == "", step.name, given), reason)
        weights, shown = weights * factor, shown & (factor > 0)
        for name, column in columns.items():
            if name in table:
                table[f"{owner[name]}.{name}"] = table.pop(name)
            table[name], owner[name] = column, number
    whole = Selection(index, weights[..., index], table | {REASON: reason})
    return _present(whole, data.batch)


def _present(chosen: Selection, batch: tuple[int, ...]) -> Selection:
    """Without the rows of no weight, where there is no batch in which another member may have kept them."""
    if batch:
        return chosen
    stays = np.nan_to_num(chosen.weights) > 0
    if not stays.any():
        raise ValueError("a curator kept none of the rows it was shown; relax its threshold")
    return Selection(chosen.index[stays], chosen.weights[stays], chosen.table)


def _spread(column: NDArray[Any], rows: Ints, shown: NDArray[np.bool_]) -> NDArray[Any]:
    column = np.asarray(column)
    out = np.full(shown.shape, absent(column.dtype), dtype=column.dtype)
    out[..., rows] = np.where(shown[..., rows], column, out[..., rows])
    return out


def _packed(chosen: Selection, seconds: float) -> dict[str, Array]:
    arrays: dict[str, Any] = {"index": chosen.index, "weights": chosen.weights, "seconds": np.array(seconds)}
    return arrays | {f"table.{name}": np.asarray(column) for name, column in chosen.table.items()}


def _unpacked(found: dict[str, Any]) -> tuple[Selection, float]:
    table = {name.removeprefix("table."): column for name, column in found.items() if name.startswith("table.")}
    return Selection(found["index"], found["weights"], table), float(found["seconds"])
