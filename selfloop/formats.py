"""Forms of images on the disk: what their headers tell, and their pixels in pieces.

    path          what is there                                                     labels
    digits        1,797 digits of 1 x 8 x 8, embedded in scikit-learn               0 .. 9
    FILE.npz      uint8 (N, H, W), (N, H, W, C) or (N, C, H, W)                     an array of integers (N,)
    FILE.npy      the same; or float32 (N, C, h, w): latents, read where they are   another .npy, named by `labels`
    FOLDER        PNG and JPEG files                                                sub-folders: in alphabetical order, or in
                                                                                    that of numbers if all are; none if flat
    FILE.zip      PNG and JPEG files; a folder with dataset.json is read alike      dataset.json: {"labels": null} or
                                                                                    {"labels": [["00/img0.png", 6], ...]}
    hf:NAME       a data set of Hugging Face, on the hub                            a column of ClassLabel, or named label
    hf:FOLDER     one that save_to_disk wrote                                       likewise

C is 1 (grey), 3 (RGB) or 4 (RGBA), 8 bits each; all images of a place have one size and one C. What can run code is not read.
Source: Karras et al. (2022), arXiv 2206.00364 (the zip with dataset.json).
"""

import hashlib
import io
import json
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from selfloop.measure import Ints

FORMS = "digits, a folder, FILE.npz, FILE.npy, FILE.zip, hf:NAME or hf:FOLDER"
PAIRS = {"images": "labels", "x_train": "y_train", "x": "y", "data": "labels"}
"""Names that arrays of images and of their labels go by."""
MODES = {"L": 1, "RGB": 3, "RGBA": 4}
"""Channels of the modes of Pillow."""
SUFFIXES = (".png", ".jpg", ".jpeg")
PIECE = 1 << 24
"""Bytes that are decoded at a time."""

Event = tuple[int, ...]
Piece = NDArray[Any]
Opener = Callable[[], AbstractContextManager[IO[bytes]]]
Picture = tuple[str, Callable[[], IO[bytes] | Path]]
"""What messages call it, and what Pillow opens."""


@dataclass(frozen=True)
class Asked:
    """A place as the configuration names it, variables expanded; same: the test part of the place of training."""

    field: str
    where: str
    images: str | None
    labels: str | None
    split: str | None
    same: bool = False

    def fault(self, text: str) -> ValueError:
        """What is wrong with it; begins with the field, so that a configuration finds the line."""
        return ValueError(f"{self.field} {self.where} {text}")


@dataclass(frozen=True, eq=False)
class Place:
    """What headers tell of the images of a place.

    labels (N,) or None; names of the classes, if they have any; stamp(): changes when the images do; read(index): the rows of
    an ascending index, in pieces (n, C, H, W); latents (N, C, h, w): the memory map of images that are not decoded; files: that
    of each image in a folder or a ZIP, relative to it, else none.
    """

    asked: Asked
    n: int
    event: Event
    labels: Ints | None
    names: tuple[str, ...]
    stamp: Callable[[], Any]
    read: Callable[[Ints], Iterator[Piece]]
    latents: Any = None
    files: tuple[str, ...] = ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Bytes, or float32 of latents."""
        return np.dtype(np.uint8 if self.latents is None else np.float32)

    @property
    def form(self) -> str:
        """What its images are, in words; those of equal form go together."""
        size = " x ".join(map(str, self.event))
        return f"{size} {'bytes' if self.latents is None else 'latents'} {'without' if self.labels is None else 'with'} labels"


def listed(things: Iterable[Any]) -> str:
    """The first twenty, for a message."""
    shown = [str(thing) for thing in things]
    return ", ".join(shown[:20]) + (f", ... ({len(shown)} in all)" if len(shown) > 20 else "")


def expanded(field: str, path: str) -> str:
    """The path with its variables in place. Raises ValueError for one that is not set."""
    for name in re.findall(r"\$\{?(\w+)", path):
        if not os.environ.get(name):
            raise ValueError(
                f"{field} {path} needs the environment variable {name}, which is not set; run: export {name}=..., or write the "
                "path itself"
            )
    prefix, rest = re.fullmatch(r"(hf:)?(.*)", path, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return prefix + os.path.expanduser(os.path.expandvars(rest))


def glance(asked: Asked) -> Any:
    """What tells cheaply that something was changed there since it was last looked at."""
    path = Path(asked.where.removeprefix("hf:"))
    inside = [Path(entry) for entry in os.scandir(path) if entry.is_dir()] if path.is_dir() else []
    return _stamps(one for one in [path, *inside, _beside(asked)] if one is not None and one.exists())


def _stamps(paths: Iterable[Path]) -> Any:
    """Path, size and time of the last change."""
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats))


@lru_cache(maxsize=8)
def locate(asked: Asked, seen: Any) -> Place:
    """What is at a place, by headers alone; looked at again when `seen`, what `glance` sees there, has changed.

    Raises ValueError for what cannot be read, ModuleNotFoundError where the library that reads it is not installed.
    """
    path = Path(asked.where)
    kind = "hf" if asked.where.startswith("hf:") else "folder" if path.is_dir() else path.suffix.lower()
    if asked.where == "digits":
        kind = "digits"
    elif kind in (".pkl", ".pt", ".pth"):
        raise asked.fault(f"is refused: pickle files are refused, for they can run code; give one of {FORMS}")
    elif kind != "hf" and not path.exists():
        raise asked.fault(f"is not there; give one of {FORMS}")
    elif kind not in READERS:
        raise asked.fault(f"is none of the forms that are read; give one of {FORMS}")
    for field, kinds in USES.items():
        if getattr(asked, field) and asked.field == "path" and kind not in kinds:
            raise ValueError(f"{field} is of use with {' and '.join(kinds)} alone, and path is {asked.where}; remove it")
    if asked.same and kind not in (".npz", "hf"):
        raise ValueError(
            f"test same is for a .npz and for hf: alone, and path is {asked.where}; give the path of the test images"
        )
    place = READERS[kind](asked)
    labels = place.labels
    if labels is None:
        return place
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (place.n,):
        raise asked.fault(
            f"has labels {labels.dtype} of shape {labels.shape}; they must be {place.n} integers, one for each image"
        )
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise asked.fault(f"has labels out of range: image {np.argmin(labels)} has {labels.min()}; they must be 0 .. K - 1")
    return replace(place, labels=labels)


def _digits(asked: Asked) -> Place:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with scikit-learn; run: pip install scikit-learn") from error
    found = load_digits()
    bytes_ = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None]
    return Place(asked, len(bytes_), (1, 8, 8), found.target, (), lambda: None, lambda index: iter([bytes_[index]]))


# Arrays


def _npz(asked: Asked) -> Place:
    path = Path(asked.where)
    with _zip(asked, path) as file:
        there = [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]
    images, labels = _names(asked, there)

    @contextmanager
    def member(name: str) -> Iterator[IO[bytes]]:
        with _zip(asked, path) as file, file.open(f"{name}.npy") as inside:
            yield inside

    given = None if labels is None else _labels(asked, labels, partial(member, labels))
    return _arrays(asked, images, partial(member, images), given, lambda: _stamps([path]))


def _names(asked: Asked, there: Sequence[str]) -> tuple[str, str | None]:
    """The names of the array of images and of that of their labels, if there is one."""
    pairs: dict[str, str | None] = {asked.images: PAIRS.get(asked.images)} if asked.images else dict(PAIRS)
    if asked.labels:
        pairs = dict.fromkeys(pairs, asked.labels)
    tries = [pairs]
    if asked.field == "test":
        tests = {_test(images): labels and _test(labels) for images, labels in pairs.items() if _test(images) != images}
        tries = [tests] if asked.same else [tests, pairs]
    choices = next((found for names in tries if (found := {name: names[name] for name in names if name in there})), {})
    if len(choices) != 1:
        looked = listed(name for names in tries for name in names)
        raise asked.fault(
            f"has {'more than one array' if choices else 'no array'} that may hold the images: there are {listed(there)}, and "
            f"looked for were {looked}; name the array by images and that of its labels by labels"
        )
    ((images, labels),) = choices.items()
    if asked.labels and labels not in there:
        raise asked.fault(f"has no array {labels} of labels: there are {listed(there)}; name one of them by labels")
    return images, labels if labels in there else None


def _test(name: str) -> str:
    return name.replace("train", "test")


def _npy(asked: Asked) -> Place:
    path = Path(asked.where)
    beside = _beside(asked)
    if beside is not None and not beside.is_file():
        raise ValueError(f"labels {beside} is not there; give the path of a .npy with the labels of {asked.where}")
    labels = None if beside is None else _labels(asked, str(beside), lambda: beside.open("rb"))
    stamped = [path] if beside is None else [path, beside]
    return _arrays(asked, path.name, lambda: path.open("rb"), labels, lambda: _stamps(stamped))


def _beside(asked: Asked) -> Path | None:
    """Where the labels of a .npy are; those of a test set, where the name of the others says so with test for train."""
    if not asked.labels or not asked.where.lower().endswith(".npy"):
        return None
    return Path(asked.labels if asked.field == "path" else _test(asked.labels))


def _arrays(asked: Asked, name: str, opened: Opener, labels: Any, stamp: Callable[[], Any]) -> Place:
    """Images in an array of which only the header is read."""
    shape, fortran, dtype = _header(asked, name, opened)
    if 0 in shape:
        raise asked.fault(f"holds no image in {name}, of shape {shape}; add some")
    if dtype == np.float32 and asked.where.lower().endswith(".npy"):
        return _latents(asked, shape, labels, stamp)
    if dtype != np.uint8:
        remedy = "cast it, if its values are 0 .. 255: images.astype('uint8')"
        if np.issubdtype(dtype, np.floating):
            remedy = "if its values are in 0 .. 1, multiply by 255 and cast: (255 * images).round().astype('uint8')"
        raise asked.fault(f"has {dtype} in {name}, and images must be uint8 (latents float32, in a .npy); {remedy}")
    orders = {"NHWC": shape[3:], "NCHW": shape[1:2]} if len(shape) == 4 else {"NHW": (1,)} if len(shape) == 3 else {}
    fitting = [order for order, channels in orders.items() if channels[0] in MODES.values()]
    if len(fitting) > 1:
        text = "may be (N, H, W, C) and (N, C, H, W); leave out the axis of a single channel, or save PNG files"
        raise asked.fault(f"has {name} of shape {shape}, which {text}")
    if not fitting:
        text = "must be (N, H, W), (N, H, W, C) or (N, C, H, W), with C = 1, 3 or 4 channels; move the axes or drop channels"
        raise asked.fault(f"has {name} of shape {shape}, which {text}")
    event = {"NHW": (1, *shape[1:]), "NHWC": (shape[-1], *shape[1:-1]), "NCHW": shape[1:]}[fitting[0]]

    def read(index: Ints) -> Iterator[Piece]:
        for start, block in _blocks(asked, name, opened, shape, fortran):
            first, last = np.searchsorted(index, [start, start + len(block)])
            rows = block[index[first:last] - start]
            if len(rows):
                yield np.moveaxis(rows, -1, 1) if fitting == ["NHWC"] else rows.reshape(-1, *event)

    return Place(asked, shape[0], event, labels, (), stamp, read)


def _latents(asked: Asked, shape: tuple[int, ...], labels: Any, stamp: Callable[[], Any]) -> Place:
    if len(shape) != 4:
        raise asked.fault(f"has latents of shape {shape}; they must be (N, C, h, w)")
    with _undamaged(asked, asked.where):
        points = np.load(asked.where, mmap_mode="r", allow_pickle=False)

    def read(index: Ints) -> Iterator[Piece]:
        for rows in _runs(index, prod(shape[1:]) * 4):
            piece = np.ascontiguousarray(points[rows])
            if (bad := ~np.isfinite(piece).all(axis=(1, 2, 3))).any():
                raise asked.fault(f"holds NaN or infinity in row {rows[np.argmax(bad)]}; drop or repair it")
            yield piece

    return Place(asked, shape[0], shape[1:], labels, (), stamp, read, points)


def _header(asked: Asked, name: str, opened: Opener) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis runs fastest, and dtype."""
    with _undamaged(asked, name), opened() as file:
        shape, fortran, dtype = _read_header(file)
    if dtype.hasobject:
        raise asked.fault(f"holds Python objects in {name}: pickle files are refused, for they can run code; save plain arrays")
    return shape, fortran, dtype


def _labels(asked: Asked, name: str, opened: Opener) -> Any:
    _header(asked, name, opened)
    with _undamaged(asked, name), opened() as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _blocks(asked: Asked, name: str, opened: Opener, shape: tuple[int, ...], fortran: bool) -> Iterator[tuple[int, Piece]]:
    """The rows of an array of bytes in blocks, each with the number of its first row."""
    step, row = max(PIECE // prod(shape[1:]), 1), prod(shape[1:])
    with opened() as file:
        if fortran:
            with _undamaged(asked, name):
                whole = np.lib.format.read_array(file, allow_pickle=False)
            yield 0, whole
            return
        with _undamaged(asked, name):
            _read_header(file)
        for start in range(0, shape[0], step):
            size = min(step, shape[0] - start) * row
            with _undamaged(asked, name):
                data = file.read(size)
                if len(data) < size:
                    raise EOFError(f"it ends after {start + len(data) // row} of {shape[0]} images")
            yield start, np.frombuffer(data, dtype=np.uint8).reshape(-1, *shape[1:])


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    first = np.lib.format.read_magic(file) == (1, 0)
    return (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(file)


def _runs(index: Ints, row: int) -> Iterator[Ints]:
    """An index in parts of about a piece each, for rows of so many bytes."""
    step = max(PIECE // row, 1)
    return (index[start : start + step] for start in range(0, len(index), step))


@contextmanager
def _undamaged(asked: Asked, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise asked.fault(f"is damaged in {name}: {error or type(error).__name__}; make or fetch it again") from error


def _zip(asked: Asked, path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise asked.fault(f"is damaged, or no zip file: {error}; make or fetch it again") from error


# Pictures


def _folder(asked: Asked) -> Place:
    root = asked.where.rstrip(os.sep)
    inside = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    below = [(at, files) for name in inside for at, _, files in os.walk(os.path.join(root, name))]
    found = [*os.listdir(root), *(f"{at[len(root) + 1 :]}/{file}" for at, files in below for file in files)]
    names = sorted(name.replace(os.sep, "/") for name in found if _is_picture(name))
    classes: tuple[str, ...] = ()
    labels = None
    if "dataset.json" in found:
        labels = _listed_labels(asked, Path(root, "dataset.json").read_bytes(), names)
    elif inside:
        numbers = all(name.isdecimal() for name in inside)
        classes = tuple(sorted(inside, key=int)) if numbers else tuple(inside)
        place = {name: number for number, name in enumerate(classes)}
        if flat := [name for name in names if "/" not in name]:
            raise asked.fault(f"has images beside its sub-folders, {listed(flat)}; move them into the folders of their classes")
        if empty := set(classes) - {name.split("/")[0] for name in names}:
            raise asked.fault(f"has no PNG or JPEG in its sub-folders {listed(sorted(empty))}; fill or remove them")
        names.sort(key=lambda name: place[name.split("/")[0]])
        labels = np.array([place[name.split("/")[0]] for name in names])

    def pictures(index: Ints) -> Iterator[Picture]:
        return ((f"{root}/{names[i]}", partial(Path, root, names[i])) for i in index)

    def stamp() -> Any:
        stats = [(name, os.stat(os.path.join(root, name))) for name in [*names, *({"dataset.json"} & set(found))]]
        listing = repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        return os.path.realpath(root), hashlib.sha256(listing.encode()).hexdigest()

    return replace(_pictures(asked, len(names), labels, classes, stamp, pictures), files=tuple(names))


def _zipped(asked: Asked) -> Place:
    path = Path(asked.where)
    with _zip(asked, path) as file:
        names = sorted(name for name in file.namelist() if _is_picture(name))
        with _undamaged(asked, "dataset.json"):
            text = file.read("dataset.json") if "dataset.json" in file.namelist() else None
    labels = None if text is None else _listed_labels(asked, text, names)

    def pictures(index: Ints) -> Iterator[Picture]:
        with _zip(asked, path) as file:
            for i in index:
                yield f"{path}:{names[i]}", partial(_unzipped, file, names[i])

    place = _pictures(asked, len(names), labels, (), lambda: _stamps([path]), pictures)
    return replace(place, files=tuple(names))


def _unzipped(file: zipfile.ZipFile, name: str) -> IO[bytes]:
    return io.BytesIO(file.read(name))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and "/." not in f"/{name}"


def _listed_labels(asked: Asked, text: bytes, names: Sequence[str]) -> Any:
    """The labels that dataset.json has for the images."""
    try:
        pairs = json.loads(text)["labels"]
        labels = None if pairs is None else dict(pairs)
    except (ValueError, KeyError, TypeError) as error:
        form = '{"labels": [["00000/img00000000.png", 6], ...]} or {"labels": null}'
        raise asked.fault(f"has a dataset.json that is not of the form {form}: {error}; write it so") from error
    if labels is None:
        return None
    faults = {
        "names images that are missing:": sorted(labels.keys() - set(names), key=str),
        "lacks labels for": [name for name in names if name not in labels],
        "has labels that are no integers, for": [name for name, label in labels.items() if type(label) is not int],
    }
    for fault, found in faults.items():
        if found:
            raise asked.fault(f"has a dataset.json that {fault} {listed(found)}; correct it")
    if len(labels) < len(pairs):
        raise asked.fault(f"has a dataset.json with {len(pairs)} labels for {len(labels)} images; name each image once")
    return np.array([labels[name] for name in names])


def _hugging_face(asked: Asked) -> Place:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{asked.where} needs datasets; run: pip install datasets") from error
    name = asked.where.removeprefix("hf:")
    try:
        found: Any = datasets.load_from_disk(name) if os.path.isdir(name) else datasets.load_dataset(name)
    except Exception as error:  # whatever the network or the folder brings
        what = f"{type(error).__name__}: {error}"
        raise asked.fault(f"cannot be loaded: {what}; name a data set on the hub, or a folder saved by save_to_disk") from error
    if isinstance(found, dict):
        tests = ["test", "validation"] if asked.same else ["test", "validation", "train"]
        splits = [asked.split or "train"] if asked.field == "path" else tests
        chosen = [split for split in splits if split in found]
        if not chosen:
            raise asked.fault(f"has no split {' or '.join(splits)}: there are {listed(found)}; name one of them by split")
        found = found[chosen[0]]
    elif asked.same or asked.split:
        raise asked.fault("is a single data set without splits; remove split, and give test a path of its own")
    features = found.features
    images = _column(asked, "images", [column for column in features if isinstance(features[column], datasets.Image)])
    classed = [column for column in features if isinstance(features[column], datasets.ClassLabel)]
    labels = _column(asked, "labels", classed or [column for column in features if column == "label"])
    if images is None or not isinstance(features.get(images), datasets.Image) or (labels or images) not in features:
        raise asked.fault(f"has no such column of {'labels' if images in features else 'images'}: {listed(features)}; name one")
    encoded = found.select_columns([images]).cast_column(images, datasets.Image(decode=False))
    values = None if labels is None else np.asarray(found.with_format("numpy")[labels][:])
    names = tuple(features[labels].names) if labels in classed else ()

    def pictures(index: Ints) -> Iterator[Picture]:
        for i, row in zip(index, encoded.select(index), strict=True):
            yield f"{asked.where}: row {i}", partial(_encoded, row[images])

    files = [Path(file["filename"]) for file in found.cache_files]
    return _pictures(asked, len(found), values, names, lambda: [images, labels, _stamps(files)], pictures)


def _column(asked: Asked, field: str, columns: Sequence[str]) -> str | None:
    given: str | None = getattr(asked, field)
    if given or not columns:
        return given
    if len(columns) > 1:
        raise asked.fault(f"has more than one column that may hold the {field}: {listed(columns)}; name it by {field}")
    return columns[0]


def _encoded(value: Any) -> IO[bytes] | Path:
    return Path(value["path"]) if value["bytes"] is None else io.BytesIO(value["bytes"])


def _pictures(
    asked: Asked,
    n: int,
    labels: Any,
    names: tuple[str, ...],
    stamp: Callable[[], Any],
    pictures: Callable[[Ints], Iterator[Picture]],
) -> Place:
    """Encoded images, all like the first of them."""
    if n == 0:
        raise asked.fault("holds no PNG or JPEG; add some, or write hf: before a folder that save_to_disk wrote")
    (event,) = [_pixels(name, opened).shape for name, opened in pictures(np.arange(1))]

    def read(index: Ints) -> Iterator[Piece]:
        given = pictures(index)
        for rows in _runs(index, prod(event)):
            piece = np.empty((len(rows), *event), dtype=np.uint8)
            for place, (name, opened) in zip(piece, given, strict=False):
                pixels = _pixels(name, opened)
                if pixels.shape != event:
                    raise ValueError(
                        f"{name} is {' x '.join(map(str, pixels.shape))} (channels, height, width) and the first image "
                        f"{' x '.join(map(str, event))}; all must have one size and one kind of colour: resize or convert it"
                    )
                place[...] = pixels
            yield piece

    return Place(asked, n, event, labels, names, stamp, read)


def _pixels(name: str, opened: Callable[[], IO[bytes] | Path]) -> Piece:
    """Pixels (C, H, W) of a picture."""
    from PIL import Image

    try:
        with Image.open(opened()) as image:
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # a broken file may fail in any way
        raise ValueError(f"{name} is missing or damaged: {error}; restore or remove it") from error
    if mode not in MODES:
        raise ValueError(f"{name} has mode {mode}; it must be one of {listed(MODES)} with 8 bits a channel: convert it")
    return pixels[None] if mode == "L" else np.moveaxis(pixels, -1, 0)


READERS: dict[str, Callable[[Asked], Place]] = {
    "digits": _digits,
    "folder": _folder,
    ".npz": _npz,
    ".npy": _npy,
    ".zip": _zipped,
    "hf": _hugging_face,
}
USES = {"images": (".npz", "hf"), "labels": (".npz", ".npy", "hf"), "split": ("hf",)}
"""Fields and the forms that they say something of."""
