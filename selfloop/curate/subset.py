"""The file that a curation leaves: one row for each row of the data, in Parquet, for this package and for anyone's own trainer.

    column    type    what it is
    id        int64   number of the row in the data, 0 .. n - 1, in order
    kept      bool    whether it stays
    weight    float   relative weight, > 0 where it stays and 0 where it was dropped
    score     float   of the last curator that scored it, else null; so for the next three
    cluster   int64   its cluster
    class     int64   its label
    distance  float   to the centre of its cluster
    reason    text    why it was dropped, "" where it stays
    hash      uint64  first 8 bytes of BLAKE2b of the bytes of the point, by which a row is known wherever it stands
    path      text    of data of folders and ZIPs alone: its file, relative to the folder or inside the ZIP, with /

Other columns of the curators follow. The metadata hold `selfloop.sha256`, of the shape, the points and the labels of the data;
`selfloop.config`, the curation as JSON; `selfloop.version`. Equal decisions are equal bytes.
Source: RFC 7693 (BLAKE2).
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

import selfloop
from selfloop.component import component
from selfloop.curate.members import OneByOne
from selfloop.embed.store import contents
from selfloop.formats import expanded
from selfloop.measure import READ, Array, Ints, Measure, Selection
from selfloop.protocols import Work
from selfloop.work import replaced

FILE = "subset.parquet"
COLUMNS: dict[str, type[Any]] = {
    "id": np.int64,
    "kept": np.bool_,
    "weight": np.float64,
    "score": np.float64,
    "cluster": np.int64,
    "class": np.int64,
    "distance": np.float64,
    "reason": np.str_,
    "hash": np.uint64,
}
"""Columns that are always there, and their types."""
PATH = "path"
"""The column of the files of the rows, where they have some."""
META = "selfloop."


@dataclass(frozen=True)
class Subset:
    """What was decided about each of n rows: columns (n,), as in the table above; of which data, by what, under which version.

    An unknown score or distance is NaN, an unknown cluster or class -1.
    """

    columns: Mapping[str, NDArray[Any]]
    sha256: str
    config: Any
    version: str = selfloop.__version__
    steps: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Rows of the data."""
        return len(self.columns["id"])

    @property
    def index(self) -> Ints:
        """Rows that stay (m,), ascending."""
        return np.flatnonzero(self.columns["kept"])

    @property
    def weights(self) -> NDArray[np.float32]:
        """Weights (m,) of the rows that stay, with mean 1, for a loss: L = (1 / m) sum_i w_i l_i."""
        weights = self.columns["weight"][self.index]
        return np.asarray(weights / weights.mean(), dtype=np.float32)

    @property
    def selection(self) -> Selection:
        """Of the data in the order of the file."""
        table = {name: column for name, column in self.columns.items() if name not in ("id", "kept", "weight", "hash", PATH)}
        return Selection(self.index, self.columns["weight"][self.index], table)

    @classmethod
    def made(
        cls,
        data: Measure,
        selection: Selection,
        config: Any,
        known: tuple[str, NDArray[np.uint64]] | None = None,
        paths: Sequence[str] | None = None,
    ) -> "Subset":
        """Of the selection of one data set; its labels are the column `class` where the selection has none.

        known: the digest of the data; paths (n,): the files of its rows. Raises ValueError for a batch of data sets.
        """
        if data.batch:
            raise ValueError(f"a subset file is of one data set, got a batch {data.batch}; take one of its members")
        sha256, hashes = digest(data) if known is None else known
        weight = np.zeros(data.n)
        weight[selection.index] = selection.weights
        table = {name: np.asarray(column) for name, column in selection.table.items()}
        if data.labels is not None:
            named = table.get("class", np.full(data.n, -1))
            table["class"] = np.where(named < 0, data.labels, named)
        given = table | {"id": np.arange(data.n), "kept": weight > 0, "weight": weight, "hash": hashes}
        columns = {name: given.get(name, _unknown(data.n, kind)).astype(kind) for name, kind in COLUMNS.items()}
        columns |= {} if paths is None else {PATH: np.array(paths, dtype=np.str_)}
        return cls(columns | {name: table[name] for name in sorted(table) if name not in columns}, sha256, config)

    @classmethod
    def of(cls, path: Path | str, sha256: str | None = None) -> "Subset":
        """The subset of a file; sha256: of the data that it must belong to.

        Raises FileNotFoundError, and ValueError for what is no subset file, is damaged, or belongs to other data.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        _check(Path(path))
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged: {error}; make it again by selfloop curate") from error
        about = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        found = cls(
            {name: _read(table[name]) for name in table.column_names},
            about[f"{META}sha256"],
            json.loads(about[f"{META}config"]),
            about[f"{META}version"],
            tuple(json.loads(about.get(f"{META}steps", "[]"))),
        )
        if not np.array_equal(found.columns["id"], np.arange(found.n)) or not found.columns["kept"].any():
            raise ValueError(f"{path} is damaged: ids must be 0 .. {found.n - 1}, and a row must stay; make it again")
        if sha256 is not None and sha256 != found.sha256:
            raise ValueError(
                f"{path} belongs to other data: it was made for those with SHA-256 {found.sha256}, and these have {sha256}; "
                "curate these data, or use those"
            )
        return found

    def write(self, path: Path) -> None:
        """Put it at the path, at once: whoever reads meanwhile finds what was there, or this."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"sha256": self.sha256, "config": json.dumps(self.config, sort_keys=True), "version": self.version}
        about |= {"steps": json.dumps(self.steps)} if self.steps else {}
        table = pa.table({name: _written(name, column) for name, column in self.columns.items()})
        table = table.replace_schema_metadata({f"{META}{name}": text for name, text in about.items()})
        with replaced(path, path.with_name(f".{secrets.token_hex(8)}.tmp")) as file:
            pq.write_table(table, file)

    def dataset(self, whole: Any) -> Any:
        """torch.utils.data.Subset of the rows that stay, of any data set with rows in the order of the file.

        Only the length is checked, and ValueError raised if it is another: rows of a data set in another order are not noticed.
        Compare the column `path` with its files first, where there is one.
        """
        from torch.utils.data import Subset as Part

        if len(whole) != self.n:
            raise ValueError(
                f"the subset is of {self.n} rows and this data set has {len(whole)}; give the one it was made for, whole "
                "and in order"
            )
        return Part(whole, self.index.tolist())

    def sampler(self, generator: Any) -> Any:
        """Positions in `dataset`, for a DataLoader; generator: of torch, which may be None for torch's own.

        If all weights are whole numbers each position comes as often as its weight, in a new order every epoch; else m
        positions are drawn with replacement, by their weights (torch.utils.data.WeightedRandomSampler).
        """
        from torch.utils.data import WeightedRandomSampler

        weights = self.columns["weight"][self.index]
        if np.allclose(weights, np.rint(weights), rtol=1e-9, atol=0):
            return Repeated(np.rint(weights).astype(np.int64), generator)
        return WeightedRandomSampler(weights.tolist(), len(weights), replacement=True, generator=generator)

    def of_rows(self, data: Measure) -> Selection:
        """The selection of data (n', *event) whose rows are among these, in any order; known by their hashes.

        Of equal rows the j-th in the data is the j-th in the file. Raises ValueError if a row is not in the file.
        """
        _, hashes = digest(data)
        order, mine = (np.lexsort((np.arange(len(h)), h)) for h in (hashes, self.columns["hash"]))
        asked, known = hashes[order], self.columns["hash"][mine]
        nth = np.arange(data.n) - np.searchsorted(asked, asked, side="left")
        place = np.searchsorted(known, asked, side="left") + nth
        there = (place < self.n) & (known[np.minimum(place, self.n - 1)] == asked)
        if not there.all():
            raise ValueError(
                f"{int((~there).sum())} of {data.n} rows are not in the subset file, the first of them row "
                f"{int(order[~there].min())}: it was made for the data with SHA-256 {self.sha256}; curate the data that is "
                "used here (samples of models are in no file)"
            )
        rows = np.empty(data.n, dtype=np.int64)
        rows[order] = mine[place]
        stays = np.flatnonzero(self.columns["kept"][rows])
        table = {name: column[rows] for name, column in self.selection.table.items()}
        return Selection(stays, self.columns["weight"][rows[stays]], table)


@dataclass(frozen=True)
class Repeated:
    """Position i as often as times[i] says, in a new order every epoch, drawn from a generator of torch."""

    times: Ints
    generator: Any

    def __iter__(self) -> Iterator[int]:
        import torch

        order = torch.randperm(len(self), generator=self.generator).numpy()
        return iter(np.repeat(np.arange(len(self.times)), self.times)[order].tolist())

    def __len__(self) -> int:
        return int(self.times.sum())


@component
class FromFile(OneByOne):
    """`file`: the selection that a subset file holds, of any rows of the data that it was made for, in any order.

    path: of the file; $VARIABLE is replaced by its value. Rows are known by their content, so that the training rows of a data
    set find theirs. Raises ValueError where the file is none, and where a row is not in it.
    """

    path: str

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})

    def __post_init__(self) -> None:
        try:
            _check(Path(expanded("path", self.path)))
        except OSError as error:
            raise ValueError(f"path {error}") from error

    def stamp(self) -> str:
        """SHA-256 of the file."""
        return contents("path", self.path)

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """The rows that the file keeps, with its weights and columns."""
        return Subset.of(expanded("path", self.path)).of_rows(data)


def digest(data: Measure) -> tuple[str, NDArray[np.uint64]]:
    """SHA-256 of the shape, the points and the labels of one data set, that of `ImageSet`; and the hash (n,) of each row.

    Read in blocks: the points may be a memory map or `Rows`.
    """
    points = data.points
    whole, hashes = hashlib.sha256(f"{points.dtype.str} {tuple(points.shape)}".encode()), np.empty(data.n, dtype=np.uint64)
    for start in range(0, data.n, READ):
        block = np.ascontiguousarray(points[start : start + READ])
        whole.update(block.data)
        rows = block.reshape(len(block), -1).view(np.uint8)
        hashes[start : start + len(block)] = [
            int.from_bytes(hashlib.blake2b(row.data, digest_size=8).digest(), "big") for row in rows
        ]
    whole.update(b"" if data.labels is None else np.asarray(data.labels).astype("<i8").tobytes())
    return whole.hexdigest(), hashes


def _check(path: Path) -> None:
    """Raise FileNotFoundError or ValueError if there is no subset file at the path, as far as its header tells."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a subset file, as selfloop curate writes it")
    try:
        schema = pq.read_schema(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not Parquet; give a subset file, as selfloop curate writes it") from error
    lacking = [name for name in COLUMNS if name not in schema.names]
    lacking += [name for name in ("sha256", "config", "version") if f"{META}{name}".encode() not in (schema.metadata or {})]
    if lacking:
        raise ValueError(f"{path} is no subset file, it lacks {', '.join(lacking)}; write one by selfloop curate")


def _unknown(n: int, kind: type[Any]) -> NDArray[Any]:
    return np.full(n, np.nan if kind is np.float64 else -1 if kind is np.int64 else "")


def _written(name: str, column: Array | NDArray[Any]) -> Any:
    """A column of Parquet; what is unknown is null."""
    import pyarrow as pa

    if column.dtype.kind == "f":
        return pa.array(column, mask=np.isnan(column))
    if name in ("cluster", "class"):
        return pa.array(column, mask=column < 0)
    return pa.array(column)


def _read(column: Any) -> NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_integer(column.type) and column.null_count:
        column = column.fill_null(-1)
    found = column.to_numpy()
    return np.asarray(found, dtype=str) if found.dtype == object else found
