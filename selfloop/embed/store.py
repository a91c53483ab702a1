"""The features of all rows of a data set: a block at a time, in a file where they are large, kept where a folder is given.

    block     4096 rows, or as many as are 128 MB of points
    file      of more than 256 MB of features: work.array, which goes on after a kill where the last save was; without a work, a
              file that has no name and goes when the array goes
    cache     NAME.npy and NAME.json in a folder. NAME is made from the SHA-256 of the points (and of labels and weights, where
              the embedding learns from them), from all fields of the embedding, and from the files that it reads

Features are finite: a row that is not is an error, at the block where it is met.
"""

import hashlib
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from math import prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from selfloop.embed.features import Embedding, Features, Floats, blocks, finite, sound
from selfloop.formats import expanded
from selfloop.measure import Measure
from selfloop.protocols import Work
from selfloop.work import replaced

ROWS = 4096
BYTES = 2**27
IN_MEMORY = 2**28
"""Rows and bytes of points that are read at a time; bytes of features that are kept in memory."""


def embedded(embedding: Embedding, data: Measure, work: Work | None = None, cache: str | Path | None = None) -> Floats:
    """The features (n, d), float32, of all points of one data set, by an embedding that is fitted to it.

    work: where what is trained, and features of more than 256 MB, keep themselves; cache: a folder in which features are found
    again by every later process. Raises ValueError for features that are not finite, with the first such row, for others than
    n, and for a batch of data sets.
    """
    if data.batch:
        raise ValueError(f"features are those of one data set, got a batch {data.batch}; give its members one by one")
    return _computed(embedding, data, work) if cache is None else _kept(embedding, data, work, Path(cache))


def embedded_by(features: Features, data: Measure, work: Work | None = None) -> Floats:
    """The features (n, d) of all points."""
    size = max(min(ROWS, BYTES // (prod(data.event) * data.points.dtype.itemsize)), 1)
    return gathered(lambda rows: features(data.points[rows]), data.n, size, work)


def gathered(of: Callable[[slice], Any], n: int, size: int, work: Work | None = None) -> Floats:
    """of(rows) for all n rows, `size` at a time: (n, d) float32. Raises ValueError for what is not finite."""
    saved = work.load() if work is not None else None
    done = 0 if saved is None else int(saved["done"])
    out: Any = None
    if work is not None and saved is not None:
        out = work.array("features", (n, int(saved["d"])), np.float32)
    for rows in blocks(n - done, size):
        rows = slice(done + rows.start, done + rows.stop)
        block = np.asarray(of(rows))
        if block.ndim != 2 or len(block) != rows.stop - rows.start:
            raise ValueError(f"features of {rows.stop - rows.start} points must be (n, d), got {block.shape}; flatten each")
        finite("an embedding", block, rows.start)
        large = 4 * n * block.shape[1] > IN_MEMORY
        if out is None:
            out = _empty((n, block.shape[1]), work if large else None, large)
        out[rows] = block
        if work is not None and large:
            work.report(rows.stop, n)
            if rows.stop == n or work.due():
                work.save(done=np.array(rows.stop), d=np.array(block.shape[1]))
    return np.asanyarray(out)


def _empty(shape: tuple[int, int], work: Work | None, large: bool) -> Any:
    if work is not None:
        return work.array("features", shape, np.float32)
    if not large:
        return np.empty(shape, np.float32)
    with TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def fingerprint(data: Measure) -> str:
    """SHA-256 of type, shape and values of the points, in hexadecimal: what names a data set, whatever its labels."""
    digest = hashlib.sha256(f"{data.points.dtype.str} {tuple(data.points.shape)}".encode())
    for rows in blocks(data.n, max(BYTES // (prod(data.event) * data.points.dtype.itemsize), 1)):
        digest.update(np.ascontiguousarray(data.points[rows]).data)
    return digest.hexdigest()


def contents(field: str, path: str) -> str:
    """SHA-256 of the file, or of the files in the folder, that a field of the configuration names.

    The path itself if nothing is there: a name on a hub.
    """
    place = Path(expanded(field, path))
    digest = hashlib.sha256()
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    for file in (file for file in files if file.is_file()):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest() if place.exists() else str(place)


def learns(embedding: Any) -> frozenset[str]:
    """What it uses of the data beside the points: all there is, if it does not say."""
    return frozenset(getattr(embedding, "learns", ("labels", "weights")))


def stamp(embedding: Any) -> str:
    """What its features depend on beside its fields, if it says."""
    return str(getattr(embedding, "stamp", str)())


def _computed(embedding: Embedding, data: Measure, work: Work | None) -> Floats:
    of: Any = getattr(embedding, "of", None)
    if of is None:
        return embedded_by(embedding.fitted(data, work and work.at("fit")), data, work)
    (features,) = sound("an embedding", 1, features=of(data, work))
    if len(features) != data.n:
        raise ValueError(f"an embedding gave features of {len(features)} rows for {data.n} points; it must give one of each")
    return np.asanyarray(features)


def _kept(embedding: Embedding, data: Measure, work: Work | None, folder: Path) -> Floats:
    made = _made_of(embedding, data)
    name = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]
    entry, note = folder / f"{name}.npy", folder / f"{name}.json"
    if not _is_entry(entry, note, made, data.n):
        features = _computed(embedding, data, work)
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(entry, _temporary(entry)) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": features.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in blocks(len(features), ROWS):
                file.write(np.ascontiguousarray(features[rows], dtype="<f4").data)
        with replaced(note, _temporary(note)) as file:
            file.write(json.dumps(made, indent=2).encode())
    kept: Floats = np.load(entry, mmap_mode="r", allow_pickle=False)
    return kept


def _made_of(embedding: Embedding, data: Measure) -> dict[str, str]:
    """All that features depend on, `sha256` being that of the points."""
    beside = {name: getattr(data, name) for name in sorted(learns(embedding))}
    return {
        "sha256": fingerprint(data),
        "embedding": repr(embedding),
        "stamp": stamp(embedding),
        **{name: "" if values is None else _digest(values) for name, values in beside.items()},
    }


def _digest(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def _is_entry(entry: Path, note: Path, made: dict[str, str], n: int) -> bool:
    with suppress(OSError, EOFError, ValueError):
        there = np.load(entry, mmap_mode="r", allow_pickle=False)
        return bool(there.shape[0] == n and there.dtype == np.float32 and json.loads(note.read_bytes()) == made)
    return False


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp")
