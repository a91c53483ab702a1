"""Features that were computed before, in a file: row i is that of point i."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from selfloop.component import component
from selfloop.embed.features import Features, Floats
from selfloop.embed.store import contents, fingerprint, gathered
from selfloop.formats import expanded
from selfloop.measure import Measure
from selfloop.protocols import Work

ROWS = 4096


@component
class FileEmbedding:
    """`file`: the rows of a .npy file, float32 or float16 (n, d), mapped into memory; for one data set, in its order.

    path: of the file ($VARIABLE is replaced). If NAME.json lies beside NAME.npy and has `sha256`, it must be that of the points
    (`selfloop.embed.fingerprint`). Files of Python objects are refused: reading them can run code.
    """

    path: str

    learns: ClassVar[frozenset[str]] = frozenset()

    def stamp(self) -> str:
        """SHA-256 of the file."""
        return contents("path", self.path)

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """Raises ValueError: a file has no features of other points."""
        raise ValueError(
            f"features of the file {self.path} are those of its own rows, and features of other points are asked for, as of a "
            "model's samples; use pixels, classifier, inception, dinov2, clip, vae or module"
        )

    def of(self, data: Measure, work: Work | None = None) -> Floats:
        """The features (n, d) of the points. Raises ValueError for a file of other rows or of another kind."""
        path = Path(expanded("path", self.path))
        features = _mapped(path)
        if len(features) != data.n:
            raise ValueError(
                f"{path} holds features of {len(features)} rows and the data have {data.n}; embed these data, and have "
                "curators that drop rows come after"
            )
        _check_note(path.with_suffix(".json"), data)
        if features.dtype == np.float32 and features.flags.c_contiguous:
            return np.asanyarray(features)
        return gathered(lambda rows: features[rows], data.n, ROWS, work)


def _mapped(path: Path) -> Any:
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no sound .npy file of plain numbers ({error}); write it by numpy.save") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype not in (np.float32, np.float16):
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "an archive"
        raise ValueError(f"{path} must hold float32 or float16 features (n, d), got {what}; save them so by numpy.save")
    return found


def _check_note(note: Path, data: Measure) -> None:
    if not note.exists():
        return
    try:
        noted = json.loads(note.read_bytes())["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{note} must be of the form {{"sha256": "..."}}: {error}; correct or remove it') from error
    if noted != (found := fingerprint(data)):
        raise ValueError(f"{note} says features of data {noted}, and these data are {found}; embed these, or name their file")
