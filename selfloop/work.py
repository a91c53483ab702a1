"""Where a long fit keeps itself, so that a kill costs seconds of it and not the whole.

    begin          saved = work.load(); from step saved["step"] if there is one
    every block    work.report(step, steps); if work.due(): work.save(step=step, theta=theta)
    a part of it   work.at("auxiliary"), which saves apart from all others

One file a part: the SHA-256 of what follows, then a zip of .npy files of plain arrays. It is written under a temporary name,
synced and renamed; a file that does not match its hash counts as none. Nothing is on the disk before the first save.
"""

import hashlib
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import quote

import numpy as np

from selfloop.measure import Array

DIGEST = hashlib.sha256().digest_size


@dataclass
class FolderWork:
    """The work of a fit in a folder of its own, the parts of it in folders below; see `selfloop.protocols.Work`.

    every: seconds from one save to the next; tell(done, total, **numbers): who hears the reports.
    """

    folder: Path
    every: float = 10.0
    tell: Callable[..., None] | None = None
    _last: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    def at(self, name: str) -> "FolderWork":
        """The work of a named part. Raises ValueError if the name is empty."""
        if not name:
            raise ValueError("a part of a fit needs a name; got ''")
        return FolderWork(self.folder / quote(name, safe="").replace(".", "%2E"), self.every, self.tell)

    def load(self) -> dict[str, Array] | None:
        """What was last saved; None if that is nothing or damaged."""
        with suppress(OSError), self._file.open("rb") as file:
            if file.read(DIGEST) == _digest(file):
                with zipfile.ZipFile(file) as zipped:
                    return {name: np.lib.format.read_array(zipped.open(name), allow_pickle=False) for name in zipped.namelist()}
        return None

    def save(self, /, **arrays: Array) -> None:
        """Put these arrays in the place of what was saved.

        Raises ValueError for an array of Python objects, OSError if the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(self._file, self.folder / f".{secrets.token_hex(8)}.tmp") as file:
            file.write(bytes(DIGEST))
            with zipfile.ZipFile(file, "w") as zipped:
                for name, values in arrays.items():
                    with zipped.open(name, "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)
            digest = _digest(file)
            file.seek(0)
            file.write(digest)
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether `every` seconds have passed since the last save, or since the beginning."""
        return time.monotonic() - self._last >= self.every

    def report(self, done: int, total: int, **numbers: float) -> None:
        """Say how far the fit is: steps, images or whatever it counts; numbers: its loss, for example."""
        if self.tell is not None:
            self.tell(done, total, **numbers)

    @property
    def _file(self) -> Path:
        return self.folder / "saved.npz"  # the name of a part has no dot


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
