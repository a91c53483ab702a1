"""Features that were computed before, in a file: row i is that of row i of the data set, in whatever order that is read."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from selfloop.component import component
from selfloop.embed.features import Features, Floats
from selfloop.embed.store import contents, fingerprint, gathered
from selfloop.formats import expanded
from selfloop.measure import Ints, Measure, Rows
from selfloop.protocols import Work

ROWS = 4096


@component
class FileEmbedding:
    """`file`: the rows of a .npy file, float32 or float16 (n, d), mapped into memory; for one data set, in its order.

    path: of the file ($VARIABLE is replaced). Images of a data set are found at their places in its files, however they were
    shuffled or pruned. If NAME.json lies beside NAME.npy, its `sha256` must be that of the points, or of the whole data set
    (`selfloop.embed.fingerprint`); points that are an array in memory need it. Files of Python objects are refused: reading
    them can run code. Raises ValueError if no file is there.
    """

    path: str

    learns: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check_there(Path(expanded("path", self.path)))

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
        places = _places(path, len(features), data)
        if places is None and features.dtype == np.float32 and features.flags.c_contiguous:
            return np.asanyarray(features)
        return gathered(lambda rows: features[rows if places is None else places[rows]], data.n, ROWS, work)


def _places(path: Path, n: int, data: Measure) -> Ints | None:
    """The places (data.n,) of the points among the n rows of the file; None where row i is that of point i."""
    note, stored = path.with_suffix(".json"), _stored(data, n)
    if note.exists():
        noted, here = _noted(note), fingerprint(data)
        if noted == here:
            stored = None
        elif stored is None or noted != (here := fingerprint(stored)):
            raise ValueError(
                f"{note} says features of data {noted}, and these data are {here}; embed these, or name their file"
            )
    elif stored is None and isinstance(data.points, Rows):
        raise ValueError(
            f"{path} holds features of {n} rows, and the points are {data.n} of a data set of {_sizes(data.points).sum()}; "
            "embed the whole data set in the order of its files, or say of which points they are by a note"
        )
    if stored is not None:
        return np.asarray(data.points.index)
    if n != data.n:
        raise ValueError(
            f"{path} holds features of {n} rows and the data have {data.n}; embed these data, and have curators that drop "
            "rows come after"
        )
    if not note.exists():
        mark = json.dumps({"sha256": fingerprint(data)})
        raise ValueError(
            f"{path} does not say whose features it holds, and these points are an array in memory; write {mark} to {note}"
        )
    return None


def _stored(data: Measure, n: int) -> Measure | None:
    """The first n rows of the files that lazy points are read from, in their order, where no point lies beyond them."""
    points = data.points
    if not isinstance(points, Rows) or points.index.max() >= n or n not in np.cumsum(_sizes(points)):
        return None
    return Measure.uniform(Rows(points.parts, np.arange(n)), batch=0)


def _sizes(points: Rows) -> Ints:
    return np.array([part.shape[0] for part in points.parts])


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"path {path} is not there; give a .npy of float32 or float16 (n, d)")


def _mapped(path: Path) -> Any:
    _check_there(path)
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no sound .npy file of plain numbers ({error}); write it by numpy.save") from error
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype not in (np.float32, np.float16):
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "an archive"
        raise ValueError(f"{path} must hold float32 or float16 features (n, d), got {what}; save them so by numpy.save")
    return found


def _noted(note: Path) -> str:
    try:
        return str(json.loads(note.read_bytes())["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{note} must be of the form {{"sha256": "..."}}: {error}; correct or remove it') from error
