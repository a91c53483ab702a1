"""Where a long fit keeps itself, so that a kill costs seconds of it and not the whole.

    begin          saved = work.load(); from step saved["step"] if there is one
    every block    work.report(step, steps); if work.due(): work.save(step=step, theta=theta)
    a part of it   work.at("auxiliary"), which saves apart from all others
    large samples  points = work.array("points", (n, *event), np.uint8), written in place

One file a part: the SHA-256 of what follows, then a zip of .npy files of plain arrays. It is written under a temporary name,
synced and renamed; a file that does not match its hash counts as none. An array is a .npy file, mapped into memory: what is
written there survives the process, and is on the disk when a save of the same part has returned. All of its room is taken at
once, for a full disk must be an error, and no write to memory can tell one. Nothing is on the disk before the first of either.
"""

import hashlib
import json
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from selfloop import ranks
from selfloop.measure import Array

DIGEST = hashlib.sha256().digest_size
SHARE = 0.05
"""Of its time that a fit may spend on saving itself, at most."""

Tell = Callable[..., None]
"""tell(names, done, total, **numbers): who hears how far a part of a fit is, by the names on the way to it."""


@dataclass
class FolderWork:
    """The work of a fit in a folder of its own, the parts of it in folders below; see `selfloop.protocols.Work`.

    every: seconds from one save to the next, at least, and more where a save takes long (SHARE); 0 = always; tell: who hears
    the reports; shelf: the folder that outlasts the fit; names: of the parts on the way here.
    """

    folder: Path
    every: float = 10.0
    tell: Tell | None = None
    shelf: Path | None = None
    names: tuple[str, ...] = ()
    _last: float = field(init=False, repr=False, compare=False)
    _pause: float = field(init=False, repr=False, compare=False)
    _arrays: dict[str, "np.memmap[Any, Any]"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._last, self._pause = time.monotonic(), self.every

    def at(self, name: str) -> "FolderWork":
        """The work of a named part. Raises ValueError if the name is empty."""
        if not name:
            raise ValueError("a part of a fit needs a name; got ''")
        part = _file_name(name)
        shelf = None if self.shelf is None else self.shelf / part
        return FolderWork(self.folder / part, self.every, self.tell, shelf, (*self.names, name))

    def load(self) -> dict[str, Array] | None:
        """What was last saved; None if that is nothing or damaged."""
        ranks.barrier()  # the first process has saved what it had to save
        found = self._saved()
        ranks.barrier()  # and saves again when all have read
        return found

    def _saved(self) -> dict[str, Array] | None:
        with suppress(OSError), self._file.open("rb") as file:
            if file.read(DIGEST) == _digest(file):
                with zipfile.ZipFile(file) as zipped:
                    return {name: np.lib.format.read_array(zipped.open(name), allow_pickle=False) for name in zipped.namelist()}
        return None

    def save(self, /, **arrays: Array) -> None:
        """Put these arrays in the place of what was saved.

        Raises ValueError for an array of Python objects, OSError if the disk is full.
        """
        if ranks.rank() > 0:
            return
        began = time.monotonic()
        for array in self._arrays.values():
            array.flush()
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(self._file, self._temporary) as file:
            file.write(bytes(DIGEST))
            with zipfile.ZipFile(file, "w") as zipped:
                for name, values in arrays.items():
                    with zipped.open(name, "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)
            digest = _digest(file)
            file.seek(0)
            file.write(digest)
        self._last = time.monotonic()
        self._pause = max(self.every, (self._last - began) / SHARE) if self.every > 0 else 0.0

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The array of this name, shape and type in the folder, as it was left; if there is none, a new one of zeros.

        Raises OSError if the disk is full, ValueError for Python objects.
        """
        path = self.folder / f"{_file_name(name)}.npy"
        if ranks.rank() == 0 and not _holds(path, shape, np.dtype(dtype)):
            self._make(path, shape, np.dtype(dtype))
        ranks.barrier()
        self._arrays[name] = np.lib.format.open_memmap(path, mode="r+")
        return self._arrays[name]

    def _make(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(path, self._temporary) as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            if dtype.hasobject:
                raise ValueError(f"an array of Python objects cannot be kept in a file, got dtype {dtype}")
            np.lib.format.write_array_header_2_0(file, header)
            file.flush()
            size = file.tell() + int(np.prod(shape)) * dtype.itemsize
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)

    def due(self) -> bool:
        """Whether it is long enough since the last save, or since the beginning."""
        return ranks.agreed(time.monotonic() - self._last >= self._pause)

    def report(self, done: int, total: int, **numbers: float) -> None:
        """Say how far the fit is: steps, images or whatever it counts; numbers: its loss, for example."""
        if self.tell is not None:
            self.tell(self.names, done, total, **numbers)

    @property
    def _file(self) -> Path:
        return self.folder / "saved.npz"  # the name of a part has no dot

    @property
    def _temporary(self) -> Path:
        return self.folder / f".{secrets.token_hex(8)}.tmp"


@dataclass
class Notice:
    """A file that says how far a fit is, for a process that cannot hear it: written at most every so many seconds."""

    path: Path
    every: float = 1.0
    _last: float = field(default=-float("inf"), init=False, repr=False, compare=False)

    def __call__(self, names: tuple[str, ...], done: int, total: int, /, **numbers: float) -> None:
        """Put this in the place of what it said before; a disk that is full silences it and nothing else."""
        if time.monotonic() - self._last < self.every:
            return
        self._last = time.monotonic()
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps([names, done, total, {name: float(value) for name, value in numbers.items()}]))
            temporary.replace(self.path)

    def read(self) -> tuple[tuple[str, ...], int, int, dict[str, float]] | None:
        """(names, done, total, numbers); None if nothing is said."""
        with suppress(OSError, ValueError):
            names, done, total, numbers = json.loads(self.path.read_text())
            return tuple(names), done, total, numbers
        return None


def _file_name(name: str) -> str:
    return quote(name, safe="").replace(".", "%2E")


def _holds(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether a file is an array of this shape and type."""
    with suppress(OSError, ValueError):
        there = np.lib.format.open_memmap(path, mode="r")
        return there.shape == shape and there.dtype == dtype
    return False


def _digest(file: IO[bytes]) -> bytes:
    """Of all that follows the place of the digest itself; the file then stands there."""
    file.seek(DIGEST)
    digest = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
    file.seek(DIGEST)
    return digest


@contextmanager
def replaced(path: Path, temporary: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` at the end of the block, once all of it is on the disk.

    Until then, and if anything goes wrong, `path` is what it was. temporary: its name meanwhile, in the same folder.
    """
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
