"""Real images as a source: files of any form of `selfloop.formats` become one array of bytes (N, C, H, W) on the disk.

A byte u stands for u / 127.5 - 1 in [-1, 1]; images are square, once padded.

Held out, where there is no test set: of N images, in the order of their classes and then of their files, the round(N s), s the
share, of least {i phi}, i = 0 .. N - 1, where phi = (sqrt(5) - 1) / 2 and { } is the fractional part. That depends on nothing
but the labels, so that all replicates share it, and is spread evenly over any stretch, so that each class keeps its share.

Images are decoded once, in pieces, into an uncompressed .npy file, which is memory-mapped from then on; with its SHA-256 beside
it in a .json. Both are in the folder $SELFLOOP_CACHE (by default $XDG_CACHE_HOME/selfloop or ~/.cache/selfloop), named by what
they were made from: path, size, time of change, options. An entry that is damaged is made again; any may be deleted.
Source: Sos (1958) and Swierczkowski (1958), the theorem of three gaps ({i phi}).
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Le, Len, Lt
from numpy.random import Generator
from pydantic import Strict

from selfloop.component import Count, component
from selfloop.formats import Asked, Event, Piece, Place, expanded, glance, listed, locate
from selfloop.measure import Ints, Measure, Rows
from selfloop.work import replaced

SHARE = 0.25
ClassName = Annotated[int, Strict(), Ge(0)] | Annotated[str, Strict()]


@dataclass(frozen=True)
class ImageSet:
    """A finite source without batch: images, some for training, in an order of this replicate, the others held out.

    points (N, C, H, W): bytes, or float32 of latents, mapped from the disk; labels (N,), 0 .. classes - 1, or None; order:
    rows for training; held: the others, ascending; sha256: of all points and labels; classes: their number, or None.
    """

    points: Any
    labels: Ints | None
    order: Ints
    held: Ints
    sha256: str
    classes: int | None

    @property
    def rows(self) -> int:
        """Rows for training."""
        return len(self.order)

    def take(self, start: int, n: int, rng: Generator, statistics: bool = False) -> Measure:
        """Rows start .. start + n - 1 for training. Raises ValueError when they run out, TypeError if `statistics`."""
        if statistics:
            raise TypeError("images have no moments that stand for them; set statistics: false")
        if start + n > self.rows:
            raise ValueError(
                f"the images are exhausted: rows {start} to {start + n - 1} are asked for, of {self.rows} for training; "
                "ask for fewer, run fewer generations or hold out less"
            )
        return self._at(self.order[start : start + n])

    def sample(self, n: int, rng: Generator) -> Measure:
        """n held-out rows without repetition (all of them in a new order if fewer are held out)."""
        return self._at(rng.permutation(self.held)[:n])

    def law(self) -> None:
        """Images have no law in closed form."""
        return None

    def train(self) -> Measure:
        """All rows for training, in the order of the files."""
        return self._at(np.sort(self.order))

    def held_out(self) -> Measure:
        """All held-out rows, in the order of the files."""
        return self._at(self.held)

    def _at(self, index: Ints) -> Measure:
        points = self.points if isinstance(self.points, Rows) else Rows((self.points,), np.arange(len(self.points)))
        labels = None if self.labels is None else self.labels[index]
        return Measure.uniform(Rows(points.parts, points.index[index]), labels, batch=0)


@component
class Images:
    """Real images, or latents of images, from a file, a folder or a data set of Hugging Face.

    path        one of the forms of `selfloop.formats`; $VARIABLE is replaced by its value
    test        the images to compare with: a path likewise; or `same`: arrays of the .npz with test in the place of train in
                their names, or the split test (else validation) of the data set of Hugging Face
    held_out    without `test`, the share of images kept to compare with; a quarter if nothing is said
    images      the array of a .npz or the column of a data set of Hugging Face that holds them, where it cannot be guessed
    labels      likewise their labels; of a .npy, the path of another
    split       the split of a data set of Hugging Face; train if nothing is said
    classes     those to use, by number or by name: they become 0, 1, ... in the order given
    per_class   the most images of each class, the first ones, before any are held out; a test set keeps all of its own
    pad         side to pad to, evenly on all sides, with the value `background`

    What is at the path is looked at when the component is made, by headers alone, and decoded by `replicated`.
    Raises ValueError for what cannot be used, with the file, what was found, what is allowed and the remedy.
    """

    path: str = "digits"
    test: str | None = None
    held_out: Annotated[float, Strict(), Gt(0), Lt(1)] | None = None
    images: str | None = None
    labels: str | None = None
    split: str | None = None
    classes: Annotated[tuple[ClassName, ...], Len(1)] | None = None
    per_class: Count | None = None
    pad: Count | None = None
    background: Annotated[int, Strict(), Ge(0), Le(255)] = 0

    def __post_init__(self) -> None:
        if self.test is not None and self.held_out is not None:
            raise ValueError("held_out has nothing to hold out where a test set is given; remove one of them")
        try:
            self._plan()
        except (OSError, ModuleNotFoundError) as error:
            raise ValueError(f"path {self.path}: {error}") from error

    @property
    def rows(self) -> int:
        """Rows for training."""
        return len(self._plan().train)

    @property
    def event(self) -> Event:
        """Shape (C, H, W) of an image."""
        return self._plan().event

    @property
    def d(self) -> int:
        """Dimension C H W of an image."""
        return prod(self.event)

    @property
    def n_classes(self) -> int | None:
        """The number of classes; None without labels."""
        return self._plan().classes

    @property
    def gives(self) -> frozenset[str]:
        """Images; labels, where there are any."""
        return frozenset({"images"}) | (frozenset({"labels"}) if self.n_classes is not None else frozenset())

    @property
    def row_paths(self) -> tuple[str, ...] | None:
        """The file of each row, relative to its folder or inside its ZIP, with /; None if rows have none of their own."""
        parts = self._plan().parts
        if not all(place.files for place, _ in parts):
            return None
        found = (place.files[i] for place, index in parts for i in index)
        return tuple(os.fsencode(name).decode(errors="replace") for name in found)  # a name may be no text

    def replicated(self, replicates: int, rng: Generator) -> ImageSet:
        """The images, in a training order drawn from rng; they are decoded here, if they have not been before.

        Raises ValueError for more than one replicate and for images that are damaged or differ in form, OSError if the cache
        cannot be written.
        """
        if replicates != 1:
            raise ValueError(f"images are trained on one replicate at a time, got a chunk of {replicates}; set chunk: 1")
        plan = self._plan()
        points, sha256 = _opened(plan)
        return ImageSet(points, plan.labels, rng.permutation(plan.train), plan.held, sha256, plan.classes)

    def fingerprint(self) -> dict[str, Any]:
        """path, sha256 of all points and labels, which are decoded for it, numbers of images and of classes."""
        plan = self._plan()
        return {
            "path": expanded("path", self.path),
            "sha256": _opened(plan)[1],
            "images": len(plan.train) + len(plan.held),
            "classes": plan.classes,
        }

    def _plan(self) -> "Plan":
        labels = self.labels and expanded("labels", self.labels)
        asked = [Asked("path", expanded("path", self.path), self.images, labels, self.split)]
        if self.test is not None:
            same = self.test == "same"
            where = asked[0].where if same else expanded("test", self.test)
            asked.append(Asked("test", where, self.images, labels, None, same))
        return _planned(self, tuple((one, glance(one)) for one in asked))


# The plan: which rows of which places, before anything is decoded ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows `index` of each of the places, one place after the other, padded; labels (N,); train and held: rows of all these."""

    parts: tuple[tuple[Place, Ints], ...]
    labels: Ints | None
    event: Event
    background: int
    train: Ints
    held: Ints

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (sum(len(index) for _, index in self.parts), *self.event)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Bytes, or float32 of latents."""
        return self.parts[0][0].dtype

    @property
    def classes(self) -> int | None:
        """The number of classes, if any."""
        return None if self.labels is None else int(self.labels.max()) + 1

    def pieces(self) -> Iterator[Piece]:
        """All rows, decoded and padded, in pieces."""
        done = 0
        for place, index in self.parts:
            for piece in place.read(index):
                done += len(piece)
                yield _padded(piece, self.event[1], self.background)
        if done != self.shape[0]:
            raise self.parts[0][0].asked.fault(
                f"held {self.shape[0]} images and gave {done}; did it change meanwhile? try again"
            )

    def key(self) -> str:
        """A name for all that the decoded images depend on."""
        made = hashlib.sha256(f"{self.event} {self.background}".encode())
        for place, index in self.parts:
            made.update(json.dumps([*vars(place.asked).values(), place.stamp()]).encode())
            made.update(index.tobytes())
        made.update(b"" if self.labels is None else self.labels.tobytes())
        return made.hexdigest()[:32]

    def digest(self) -> Any:
        """SHA-256 of the shape, to go on with the points."""
        return hashlib.sha256(f"{self.dtype.str} {self.shape}".encode())

    def sealed(self, digest: Any) -> str:
        """The SHA-256 of shape, points and labels, of that of the first two."""
        digest.update(b"" if self.labels is None else self.labels.astype("<i8").tobytes())
        return str(digest.hexdigest())


@lru_cache(maxsize=8)
def _planned(images: Images, asked: tuple[tuple[Asked, Any], ...]) -> Plan:
    first, *tests = [locate(one, seen) for one, seen in asked]
    event, wanted = _squared(first, images.pad), _wanted(first, images)
    chosen = [_chosen(first.labels, first.n, wanted, images.per_class)]
    for test in tests:
        if test.form != first.form:
            raise test.asked.fault(f"holds {test.form}, and {first.asked.where} {first.form}; both must be alike")
        labels = _like(first, test)
        if labels is not None and images.classes is None and (strange := np.setdiff1d(labels, wanted)).size:
            raise test.asked.fault(
                f"has labels {listed(strange)}, and {first.asked.where} {listed(wanted)}; drop or rename them"
            )
        chosen.append(_chosen(labels, test.n, wanted, None))
        if not chosen[1][0].size:
            raise test.asked.fault(f"has no image of the classes {listed(wanted)}; add some, or choose other classes")
    n = len(chosen[0][0])
    share = images.held_out or SHARE
    train, held = (np.arange(n), n + np.arange(len(chosen[1][0]))) if tests else split(chosen[0][1], share)
    if not len(train) or not len(held):
        raise ValueError(
            f"held_out {share:g} of {n} images leaves {len(train)} for training and {len(held)} to compare "
            "with, and each must be at least one; use more images, another share or a test set"
        )
    parts = tuple((place, index) for place, (index, _) in zip((first, *tests), chosen, strict=True))
    labels = None if first.labels is None else np.concatenate([labels for _, labels in chosen])
    return Plan(parts, labels, event, images.background, train, held)


def split(labels: Ints, share: float) -> tuple[Ints, Ints]:
    """Of rows with these labels (N,) those for training and the round(N share) held out; both ascending."""
    n, k = len(labels), round(len(labels) * share)
    of_class = np.argsort(labels, kind="stable")
    order = of_class[np.argsort(np.arange(n) * ((np.sqrt(5) - 1) / 2) % 1, kind="stable")]
    return np.sort(order[k:]), np.sort(order[:k])


def _squared(place: Place, pad: int | None) -> Event:
    c, h, w = place.event
    if pad is not None and (pad < max(h, w) or place.latents is not None):
        raise ValueError(
            f"pad must be >= {max(h, w)}, the side of the images, and is for bytes alone; got {pad} for {place.form} in "
            f"{place.asked.where}; change or remove it"
        )
    if pad is None and h != w:
        raise place.asked.fault(f"holds {place.form}, and images must be square; crop them, or set pad: {max(h, w)}")
    return (c, pad or h, pad or w)


def _wanted(place: Place, images: Images) -> Ints:
    """The classes to use, by the numbers they have in the files, in the order of their new ones."""
    if place.labels is None:
        for field in ("classes", "per_class"):
            if getattr(images, field) is not None:
                raise ValueError(f"{field} needs labels, and {place.asked.where} has none; remove it or add labels")
        return np.arange(0)
    there = np.unique(place.labels)
    if images.classes is None:
        if there[-1] != len(there) - 1:
            absent = np.flatnonzero(there != np.arange(len(there)))[0]
            raise place.asked.fault(
                f"has labels out of range: they must be 0 .. K - 1, each of an image, and go to {there[-1]} with no image of "
                f"{absent}; rename them, or choose by classes: [{listed(there)}]"
            )
        return there
    numbers = [place.names.index(name) if name in place.names else name for name in images.classes]
    if strange := [name for name, number in zip(images.classes, numbers, strict=True) if number not in there.tolist()]:
        names = f" by the names {listed(place.names)}" if place.names else ""
        raise ValueError(f"classes {listed(strange)} are not in {place.asked.where}, which has {listed(there)}{names}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"classes must name each class once, got {listed(images.classes)}")
    return np.array(numbers, dtype=np.int64)


def _like(first: Place, test: Place) -> Ints | None:
    """The labels of a test set as the place of training numbers its classes: by their names, where both have names."""
    if test.labels is None or not first.names or not test.names:
        return test.labels
    if strange := [name for name in test.names if name not in first.names]:
        raise test.asked.fault(f"has classes {listed(strange)}, and {first.asked.where} {listed(first.names)}; remove them")
    return np.array([first.names.index(name) for name in test.names])[test.labels]


def _chosen(labels: Ints | None, n: int, wanted: Ints, per_class: int | None) -> tuple[Ints, Ints]:
    """The rows of wanted classes, ascending, at most so many of each, and their new labels; without labels all n rows."""
    if labels is None:
        return np.arange(n), np.zeros(n, dtype=np.int64)
    order = np.argsort(wanted)
    new = order[np.searchsorted(wanted, labels, sorter=order).clip(max=len(wanted) - 1)]
    index = np.flatnonzero(wanted[new] == labels)
    new = new[index]
    kept = np.flatnonzero(_rank(new) < (per_class or n))
    return index[kept], new[kept]


def _rank(labels: Ints) -> Ints:
    """How many of its class come before each row."""
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank


# The cache ------------------------------------------------------------------------------------------------------------------


def _opened(plan: Plan) -> tuple[Any, str]:
    """Points (N, C, H, W) and the SHA-256 of them and their labels; decoded where that is not done yet."""
    if plan.parts[0][0].asked.where == "digits" and len(plan.parts) == 1:
        points = np.concatenate(list(plan.pieces()))
        return points, _sha256(plan, [points])
    folder, key = cache(), plan.key()
    try:
        if plan.dtype == np.float32:
            return _inplace(plan), _noted(plan, folder / f"{key}.json")
        return _stored(plan, folder, key)
    except OSError as error:
        raise OSError(f"cannot use the cache {folder}: {error}; set SELFLOOP_CACHE to a folder to write to") from error


def cache() -> Path:
    """Where decoded images are kept: $SELFLOOP_CACHE, else the folder selfloop in the user's cache."""
    if own := os.environ.get("SELFLOOP_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfloop"


def _stored(plan: Plan, folder: Path, key: str) -> tuple[Any, str]:
    from filelock import FileLock

    entry, note = folder / f"{key}.npy", folder / f"{key}.json"
    sha256 = _known(plan, entry, note)
    if sha256 is None:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):  # of several processes one decodes
            sha256 = _known(plan, entry, note) or _written(plan, entry, note)
    return np.load(entry, mmap_mode="r", allow_pickle=False), sha256


def _known(plan: Plan, entry: Path, note: Path) -> str | None:
    """The SHA-256 of a sound entry; it is reckoned again only where the file was touched since it was written."""
    try:
        noted, stat = json.loads(note.read_bytes()), entry.stat()
        if [stat.st_size, stat.st_mtime_ns] != noted["file"]:
            points = np.load(entry, mmap_mode="r", allow_pickle=False)
            if points.shape != plan.shape or _sha256(plan, [points]) != noted["sha256"]:
                return None
        return str(noted["sha256"])
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _written(plan: Plan, entry: Path, note: Path) -> str:
    for left in entry.parent.glob(f".{entry.stem}.*.tmp"):  # by a process that was killed
        left.unlink(missing_ok=True)
    needed, free = prod(plan.shape), shutil.disk_usage(entry.parent).free
    if free < needed:
        raise OSError(f"{plan.shape[0]} images take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free")
    digest = plan.digest()
    with replaced(entry, _temporary(entry)) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": plan.shape})
        for piece in plan.pieces():
            data = np.ascontiguousarray(piece).data
            digest.update(data)
            file.write(data)
    stat = entry.stat()
    return _note(plan, note, plan.sealed(digest), [stat.st_size, stat.st_mtime_ns])


def _inplace(plan: Plan) -> Any:
    """Latents where they are: the memory map itself if all its rows are used, else rows of it."""
    if len(plan.parts) == 1 and len(plan.parts[0][1]) == plan.parts[0][0].n:
        return plan.parts[0][0].latents
    starts = np.cumsum([0] + [place.n for place, _ in plan.parts])
    index = np.concatenate([start + index for start, (_, index) in zip(starts, plan.parts, strict=False)])
    return Rows(tuple(place.latents for place, _ in plan.parts), index)


def _noted(plan: Plan, note: Path) -> str:
    """The SHA-256 of latents, reckoned once."""
    try:
        return str(json.loads(note.read_bytes())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        note.parent.mkdir(parents=True, exist_ok=True)
        return _note(plan, note, _sha256(plan, plan.pieces()), None)


def _note(plan: Plan, note: Path, sha256: str, file: list[int] | None) -> str:
    of = [place.asked.where for place, _ in plan.parts]
    with replaced(note, _temporary(note)) as out:
        out.write(json.dumps({"of": of, "shape": plan.shape, "sha256": sha256, "file": file}, indent=2).encode())
    return sha256


def _sha256(plan: Plan, pieces: Iterable[Piece]) -> str:
    digest = plan.digest()
    for piece in pieces:
        digest.update(np.ascontiguousarray(piece).data)
    return plan.sealed(digest)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp")


def _padded(piece: Piece, side: int, value: int) -> Piece:
    """Pixels (n, C, H, W) in the middle of a square of that side."""
    if piece.shape[2:] == (side, side):
        return piece
    before = [(side - size) // 2 for size in piece.shape[2:]]
    around = [(b, side - size - b) for b, size in zip(before, piece.shape[2:], strict=True)]
    return np.pad(piece, ((0, 0), (0, 0), *around), constant_values=value)
