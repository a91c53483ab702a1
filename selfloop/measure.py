"""What a generative algorithm is trained on: weighted points, or the moments that stand for them.

A measure is mu = sum_i w_i delta(x_i) with weights that add to one. `batch` axes come first and hold replicates, as
in torch.distributions; `event` axes come last and hold one point: (R, n, 2) is R clouds of n points in the plane.

A Gaussian fit sees its data only through n, the mean and the covariance. `Moments` carries just these, so that
a loop over 10^5 replicates needs no points at all. `concatenate` and `Measure.reweighted` exist for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

READ = 1024
"""Rows of unbatched data that are read at once to be looked at."""


@dataclass(frozen=True)
class Rows:
    """Rows picked from several sources in order, without copying them: `Rows(parts, index)[i]` reads row index[i].

    parts: arrays or memory maps of shape (n_k, *event) that share event and dtype; index: (n,) into their
    concatenation. Reading a slice, or an array of row numbers or of n booleans, gathers only those rows; np.asarray all of
    them. Unbatched data only. Raises TypeError for any other index: axes of the event are not looked into.
    """

    parts: tuple[Any, ...]
    index: Ints

    def __post_init__(self) -> None:
        kinds = {(part.shape[1:], part.dtype) for part in self.parts}
        if len(kinds) != 1:
            raise ValueError(f"parts must share one event shape and dtype, got {sorted(map(str, kinds))}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.parts[0].dtype
        return dtype

    def __getitem__(self, index: Any, /) -> Any:
        rows = np.asarray(self.index[_of_rows(index)])
        starts = np.cumsum([0] + [part.shape[0] for part in self.parts])
        if rows.ndim == 0:
            part = int(np.searchsorted(starts, rows, side="right")) - 1
            return self.parts[part][int(rows) - starts[part]]
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        for part, start, stop in zip(self.parts, starts[:-1], starts[1:], strict=True):
            here = (rows >= start) & (rows < stop)
            out[here] = part[rows[here] - start]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


def _of_rows(index: Any) -> Any:
    """An index of rows alone: an int, a slice, or a vector of ints or booleans. Raises TypeError for any other."""
    if isinstance(index, slice) or (isinstance(index, list) and not index):
        return index
    given = None if index is None or index is ... or isinstance(index, tuple) else np.asarray(index)
    if given is not None and ((given.dtype.kind in "iu" and given.ndim < 2) or (given.dtype.kind == "b" and given.ndim == 1)):
        return given
    raise TypeError(
        f"rows that are read when asked for take an int, a slice, or a vector of row numbers or booleans; got {index!r}; read "
        "them first, all by np.asarray(points) or blocks of them by points[start:stop]"
    )


@dataclass(frozen=True)
class Measure:
    """Weighted points, sum_i weights[i] * delta(points[i]); the weights add to one over n.

    points (*batch, n, *event), any dtype: an array, or for unbatched data a memory map or lazy `Rows`; weights (*batch, n),
    >= 0; labels (n,) or (*batch, n), the class of a point; origin (n,) or (*batch, n), the generation that drew it, 0 = real.
    `Measure.uniform` checks and fills in.
    Raises ValueError on weights that are negative or do not add to one, or on lengths that differ.
    """

    points: Any
    weights: Array
    labels: Ints | None = None
    origin: Ints | None = None

    def __post_init__(self) -> None:
        if self.n == 0:
            raise ValueError("a measure needs at least one point, got n = 0")
        if tuple(self.points.shape[: self.weights.ndim]) != self.weights.shape:
            raise ValueError(
                f"weights of shape {self.weights.shape} must match the first axes of points, got {tuple(self.points.shape)}"
            )
        if not (self.weights >= 0).all() or not np.allclose(self.weights.sum(axis=-1), 1.0, rtol=0, atol=1e-9):
            raise ValueError(
                "weights must be >= 0 and add to one over the last axis, got sums "
                f"{np.ravel(self.weights.sum(axis=-1))[:3]}... and least {self.weights.min()}; divide by their sum"
            )
        for name, values in (("labels", self.labels), ("origin", self.origin)):
            if values is not None and values.shape[-1] != self.n:
                raise ValueError(f"{name} has {values.shape[-1]} entries for {self.n} points")

    @classmethod
    def uniform(cls, points: Any, labels: Ints | None = None, origin: int | None = None, batch: int | None = None) -> "Measure":
        """Equal weights 1/n on finite points; `batch` is the number of batch axes (all but the last two if None).

        Raises ValueError, with the first bad row, if a floating point value is NaN or infinite.
        """
        if batch is None:
            batch = max(len(points.shape) - 2, 0)
        n = points.shape[batch]
        if isinstance(points, np.ndarray) and np.issubdtype(points.dtype, np.floating) and not np.isfinite(points).all():
            row = int(np.argwhere(~np.isfinite(points))[0][batch])
            raise ValueError(f"points must be finite; row {row} of {n} holds NaN or infinity; drop or repair it first")
        weights = np.broadcast_to(1.0 / max(n, 1), points.shape[: batch + 1])
        return cls(points, weights, labels, None if origin is None else np.broadcast_to(origin, (n,)))

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes; () for a single data set."""
        return self.weights.shape[:-1]

    @property
    def n(self) -> int:
        """Number of points in each member of the batch."""
        return int(self.weights.shape[-1])

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one point."""
        return tuple(self.points.shape[self.weights.ndim :])

    def subset(self, index: Ints) -> "Measure":
        """The rows `index` (m,), the same in every member of the batch; their weights are rescaled to add to one.

        Raises ValueError if the weights kept are all zero.
        """
        weights = self.weights[..., index]
        total = weights.sum(axis=-1, keepdims=True)
        if not (total > 0).all():
            raise ValueError(f"the {len(index)} rows kept carry no weight; keep at least one row of positive weight")
        return Measure(
            _take(self.points, index, axis=self.weights.ndim - 1),
            weights / total,
            None if self.labels is None else self.labels[..., index],
            None if self.origin is None else self.origin[..., index],
        )

    def reweighted(self, weights: Array) -> "Measure":
        """The same points under other weights (*batch, n), >= 0, rescaled to add to one."""
        return replace(self, weights=_rescaled(np.broadcast_to(np.asarray(weights, dtype=float), self.weights.shape)))

    def stamped(self, origin: int) -> "Measure":
        """The same points, marked as drawn by generation `origin` (0 = real)."""
        return replace(self, origin=np.broadcast_to(np.int64(origin), (self.n,)))

    def moments(self) -> "Moments":
        """Mean and covariance under the weights, and Kish's effective size n = 1 / sum_i w_i^2 (n if uniform).

        Points must be vectors, event (d,). The covariance divides by n: cov = sum_i w_i (x_i - m)(x_i - m)^T.
        """
        if len(self.event) != 1:
            raise ValueError(f"moments need points that are vectors, event (d,), got event {self.event}; flatten them first")
        points = np.asarray(self.points, dtype=float)
        mean = np.einsum("...n,...nd->...d", self.weights, points)
        centred = points - mean[..., None, :]
        cov = np.einsum("...nd,...ne->...de", centred * self.weights[..., None], centred)
        n = 1.0 / (self.weights**2).sum(axis=-1)
        return Moments(float(np.ravel(n)[0]) if np.ptp(n) <= 1e-12 * np.max(n) else n, mean, cov)


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of a Gaussian fit: n, mean (*batch, d) and cov (*batch, d, d), which divides by n.

    n is the number of points behind them or, where points carry weights, Kish's effective number 1 / sum_i w_i^2,
    so that cov * n / (n - 1) is unbiased in both cases; a number or one per member (*batch,).
    """

    n: float | Array
    mean: Array
    cov: Array

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.mean.shape[:-1]

    def stamped(self, origin: int) -> "Moments":
        """Moments have no points to mark; themselves."""
        return self

    def moments(self) -> "Moments":
        """Themselves: what `Measure.moments` gives for points."""
        return self


Data = Measure | Moments


@dataclass(frozen=True)
class Selection:
    """What a curator decided: the rows that stay, their weights, and a table over all rows it was shown.

    index (m,): rows kept, ascending; weights (*batch, m), relative, 0 = dropped in that member of the batch alone;
    table: columns over all input rows (score, cluster, class, reason), each (*batch, n), for files and reports.
    """

    index: Ints
    weights: Array
    table: Mapping[str, NDArray[Any]]

    def apply(self, data: Measure) -> Measure:
        """The data that stays, its own weights multiplied by the selection's and rescaled to add to one.

        A member of a batch that is left without data, or had none that is finite, comes back as NaN and leaves the others
        as they are. Raises ValueError if nothing is kept in any member.
        """
        kept = data.subset(self.index)
        weights = np.nan_to_num(kept.weights * self.weights)
        empty = ~(weights.sum(axis=-1) > 0)
        if empty.all():
            raise ValueError(f"a curator kept none of {data.n} points; relax its threshold")
        if not empty.any():
            return kept.reweighted(weights)
        lost = Measure(np.full_like(kept.points, np.nan, dtype=float), kept.weights)
        weights = _rescaled(np.where(empty[..., None], kept.weights, weights))
        return cast(Measure, with_members_of(replace(kept, weights=weights), empty, lost))


@overload
def concatenate(parts: Sequence[Measure], masses: Sequence[float] | None = None) -> Measure: ...
@overload
def concatenate(parts: Sequence[Moments], masses: Sequence[float] | None = None) -> Moments: ...
@overload
def concatenate(parts: Sequence[Data], masses: Sequence[float] | None = None) -> Data: ...
def concatenate(parts: Sequence[Data], masses: Sequence[float] | None = None) -> Data:
    """The mixture sum_k p_k mu_k of data sets mu_k, with masses p_k proportional to their sizes n_k by default.

    Measures: points one after the other, weights p_k w_k. Moments, with m = sum_k p_k m_k:
        cov = sum_k p_k (cov_k + (m_k - m)(m_k - m)^T),    1/n = sum_k p_k^2 / n_k   (so n = sum_k n_k by default)
    Raises ValueError if the masses are negative or all zero, TypeError if measures and moments are mixed.
    """
    if len({type(part) for part in parts}) != 1:
        raise TypeError(f"parts must be all measures or all moments, got {[type(part).__name__ for part in parts]}")
    sizes = [part.n for part in parts]
    given = np.asarray(sizes if masses is None else masses, dtype=float)
    if not (given >= 0).all() or not given.sum() > 0:
        raise ValueError(f"masses must be >= 0 and not all zero, got {given.tolist()}")
    p = [mass / sum(given) for mass in given]
    if isinstance(parts[0], Moments):
        moments = [part for part in parts if isinstance(part, Moments)]
        mean = sum(q * part.mean for q, part in zip(p, moments, strict=True))
        cov = sum(q * part.cov for q, part in zip(p, moments, strict=True))
        for q, part in zip(p, moments, strict=True):
            shift = part.mean - mean
            cov = cov + q * shift[..., :, None] * shift[..., None, :]
        n = 1.0 / sum(q**2 / part.n for q, part in zip(p, moments, strict=True))
        return Moments(n, np.asarray(mean), np.asarray(cov))
    measures = [part for part in parts if isinstance(part, Measure)]
    batch = measures[0].batch
    return Measure(
        _join([part.points for part in measures], axis=len(batch)),
        np.concatenate([q * part.weights for q, part in zip(p, measures, strict=True)], axis=-1),
        _join_marks([part.labels for part in measures], measures),
        _join_marks([part.origin for part in measures], measures),
    )


def _rescaled(weights: Array) -> Array:
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _take(points: Any, index: Ints, axis: int) -> Any:
    if isinstance(points, Rows):
        return Rows(points.parts, points.index[index])
    if isinstance(points, np.memmap) and axis == 0:
        return Rows((points,), np.asarray(index, dtype=np.int64))
    return np.take(points, index, axis=axis)


def _join(points: list[Any], axis: int) -> Any:
    if axis > 0 or not any(isinstance(part, np.memmap | Rows) for part in points):
        return np.concatenate(points, axis=axis)
    parts: list[Any] = []
    index: list[Ints] = []
    offset = 0
    for part in points:
        rows = part if isinstance(part, Rows) else Rows((part,), np.arange(part.shape[0]))
        parts += rows.parts
        index.append(rows.index + offset)
        offset += sum(source.shape[0] for source in rows.parts)
    return Rows(tuple(parts), np.concatenate(index))


def _join_marks(marks: list[Ints | None], measures: list[Measure]) -> Ints | None:
    present = [mark for mark in marks if mark is not None]
    if len(present) != len(marks):
        return None
    if all(mark.ndim == 1 for mark in present):
        return np.concatenate(present)
    full = [np.broadcast_to(mark, (*part.batch, part.n)) for mark, part in zip(present, measures, strict=True)]
    return np.concatenate(full, axis=-1)


def finite(data: Data) -> NDArray[np.bool_]:
    """Which members of the batch are finite throughout; shape (*batch,)."""
    if isinstance(data, Moments):
        return np.asarray(np.isfinite(data.mean).all(axis=-1) & np.isfinite(data.cov).all(axis=(-2, -1)))
    if not np.issubdtype(data.points.dtype, np.floating):
        return np.ones(data.batch, dtype=bool)
    if not data.batch:  # may be lazy, and larger than the memory
        pieces = (data.points[start : start + READ] for start in range(0, data.n, READ))
        return np.asarray(all(bool(np.isfinite(piece).all()) for piece in pieces))
    points = np.asarray(data.points)
    return np.asarray(np.isfinite(points).all(axis=tuple(range(len(data.batch), points.ndim))))


def with_members_of(data: Data, members: NDArray[np.bool_], other: Data) -> Data:
    """`data`, but with the members (*batch,) marked True taken from `other`, whose points are repeated or cut to fit."""
    if isinstance(data, Moments) and isinstance(other, Moments):
        return Moments(
            data.n,
            np.where(members[..., None], other.mean, data.mean),
            np.where(members[..., None, None], other.cov, data.cov),
        )
    if not isinstance(data, Measure) or not isinstance(other, Measure):
        raise TypeError("members are exchanged between two measures or two moments")
    if not data.batch:
        return replace(data, points=_take(other.points, np.arange(data.n) % other.n, 0)) if members else data
    axis = len(data.batch)
    rows = np.take(np.asarray(other.points), np.arange(data.n) % other.n, axis=axis)
    mask = members.reshape(*members.shape, *(1 for _ in range(1 + len(data.event))))
    return replace(data, points=np.where(mask, rows, data.points))
