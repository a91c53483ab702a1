"""Images as a source: the same bits from every form, one split, a cache that can be trusted, and clear refusals."""

import io
import json
import os
import pickle
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from sklearn.datasets import load_digits

from selfloop import formats, images
from selfloop.config import load
from selfloop.data import SourceFactory
from selfloop.images import Images, split
from selfloop.measure import Measure, Rows
from selfloop.protocols import Source
from selfloop.reading import ConfigError, read

N, SIDE, CLASSES = 30, 8, 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SELFLOOP_CACHE", str(folder))
    return folder


def rng(seed=0):
    return np.random.default_rng(seed)


def pixels(channels=1, n=N, side=SIDE):
    return rng(1).integers(0, 256, (n, channels, side, side), dtype=np.uint8)


LABELS = np.repeat(np.arange(CLASSES), N // CLASSES)


def picture(pixel) -> Image.Image:
    return Image.fromarray(pixel[0] if len(pixel) == 1 else np.moveaxis(pixel, 0, -1))


def png(pixel) -> bytes:
    out = io.BytesIO()
    picture(pixel).save(out, "PNG")
    return out.getvalue()


def as_npz(folder, x, y, order="NCHW", **options):
    x = {"NCHW": x, "NHWC": np.moveaxis(x, 1, -1), "NHW": x[:, 0], "F": np.asfortranarray(x)}[order]
    np.savez_compressed(folder / "images.npz", images=x, **({} if y is None else {"labels": y.astype(np.uint8)}))
    return {"path": str(folder / "images.npz"), **options}


def as_lzma(folder, x, y):
    """As numpy.load reads it: LZMA inside the zip."""
    with zipfile.ZipFile(folder / "lzma.npz", "w", zipfile.ZIP_LZMA) as file:
        for name, values in {"x_train": x, "y_train": y, "x_test": x[:5], "y_test": y if y is None else y[:5]}.items():
            if values is not None:
                with file.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, values)
    return {"path": str(folder / "lzma.npz")}


def as_npy(folder, x, y):
    np.save(folder / "all.npy", np.moveaxis(x, 1, -1))
    if y is None:
        return {"path": str(folder / "all.npy")}
    np.save(folder / "all_labels.npy", y)
    return {"path": str(folder / "all.npy"), "labels": str(folder / "all_labels.npy")}


def as_folder(folder, x, y):
    root = folder / "folder"
    for i, pixel in enumerate(x):
        place = root if y is None else root / "abc"[y[i]]
        place.mkdir(parents=True, exist_ok=True)
        picture(pixel).save(place / f"{i:03}.png")
    (root / "notes.txt").write_text("no picture")
    return {"path": str(root)}


def as_zip(folder, x, y):
    """As EDM writes it: PNG files in sub-folders that are no classes, and dataset.json."""
    names = [f"{i // 7:05}/img{i:08}.png" for i in range(len(x))]
    with zipfile.ZipFile(folder / "edm.zip", "w") as file:
        for name, pixel in zip(names, x, strict=True):
            file.writestr(name, png(pixel))
        labels = None if y is None else [[name, int(label)] for name, label in zip(names, y, strict=True)][::-1]
        file.writestr("dataset.json", json.dumps({"labels": labels}))
    return {"path": str(folder / "edm.zip")}


def as_unpacked(folder, x, y):
    with zipfile.ZipFile(as_zip(folder, x, y)["path"]) as file:
        file.extractall(folder / "unpacked")
    return {"path": str(folder / "unpacked")}


def as_hugging_face(folder, x, y):
    datasets = pytest.importorskip("datasets")
    columns = {"picture": [{"bytes": png(pixel), "path": None} for pixel in x]}
    features = {"picture": datasets.Image()}
    if y is not None:
        columns["kind"], features["kind"] = y.tolist(), datasets.ClassLabel(names=["a", "b", "c"])
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.disable_progress_bars()
    datasets.DatasetDict(train=whole, test=whole.select(range(5))).save_to_disk(folder / "hugging")
    return {"path": f"hf:{folder / 'hugging'}"}


FORMS = {
    "npz": as_npz,
    "npz NHWC": lambda *a: as_npz(*a, order="NHWC"),
    "npz NHW": lambda *a: as_npz(*a, order="NHW"),
    "npz fortran": lambda *a: as_npz(*a, order="F"),
    "npz lzma": as_lzma,
    "npy": as_npy,
    "folder": as_folder,
    "zip": as_zip,
    "unpacked zip": as_unpacked,
    "hf": as_hugging_face,
}


def same(a: Measure, b: Measure):
    assert_array_equal(np.asarray(a.points), np.asarray(b.points))
    assert_array_equal(a.weights, b.weights)
    assert_array_equal(a.labels, b.labels)


# What comes out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_bits(tmp_path, monkeypatch, form, labelled, channels):
    """In pieces of two images, so that pieces are put together."""
    if form == "npz NHW" and channels > 1:
        return
    monkeypatch.setattr(formats, "PIECE", 2 * channels * SIDE**2 + 1)
    x, y = pixels(channels), LABELS if labelled else None
    component = Images(**FORMS[form](tmp_path, x, y))
    found = component.replicated(1, rng())
    assert (component.event, component.d) == ((channels, SIDE, SIDE), channels * SIDE**2)
    assert component.gives == ({"images", "labels"} if labelled else {"images"})
    assert component.n_classes == found.classes == (CLASSES if labelled else None)
    assert component.rows == found.rows == N - round(N / 4)
    assert isinstance(found.points, np.memmap)
    assert found.points.dtype == np.uint8
    assert_array_equal(found.points, x)
    assert_array_equal(found.labels, y)
    train, held = split(np.zeros(N) if y is None else y, 0.25)
    same(found.train(), Measure.uniform(x[train], None if y is None else y[train], batch=0))
    same(found.held_out(), Measure.uniform(x[held], None if y is None else y[held], batch=0))
    reference = Images(**as_npz(tmp_path, x, y)).replicated(1, rng())
    assert found.sha256 == reference.sha256
    same(found.take(3, 10, rng()), reference.take(3, 10, rng()))
    same(found.sample(4, rng(5)), reference.sample(4, rng(5)))


def test_the_digits_of_scikit_learn_need_no_file(cache):
    found, component = Images().replicated(1, rng()), Images()
    assert isinstance(component, SourceFactory)
    assert isinstance(found, Source)
    assert (component.event, component.rows, component.n_classes) == ((1, 8, 8), 1797 - 449, 10)
    assert_array_equal(found.points[:, 0], np.rint(load_digits().images * (255 / 16)))
    assert_array_equal(found.labels, load_digits().target)
    assert found.law() is None
    assert not cache.exists()


def test_training_rows_are_lazy_unbatched_uniform_and_used_once(tmp_path):
    x = pixels()
    found = Images(**as_npz(tmp_path, x, LABELS)).replicated(1, rng())
    one, two = found.take(0, 10, rng()), found.take(10, 12, rng())
    assert isinstance(one.points, Rows)
    assert (one.batch, one.event, one.n) == ((), (1, SIDE, SIDE), 10)
    assert_array_equal(one.weights, 0.1)
    together = np.concatenate([one.points, two.points])
    assert {row.tobytes() for row in together} == {row.tobytes() for row in np.asarray(found.train().points)}
    assert len({row.tobytes() for row in together}) == 22
    assert not np.array_equal(together, np.asarray(found.train().points))
    for data in (one, two):  # labels go with their images
        assert all(
            y == LABELS[np.flatnonzero((x == row).all(axis=(1, 2, 3)))[0]]
            for row, y in zip(np.asarray(data.points), data.labels, strict=True)
        )


def test_replicates_share_the_split_and_differ_in_their_order(tmp_path):
    component = Images(**as_npz(tmp_path, pixels(), LABELS))
    one, two, again = (component.replicated(1, rng(seed)) for seed in (1, 2, 1))
    same(one.held_out(), two.held_out())
    same(one.train(), two.train())
    same(one.take(0, 22, rng()), again.take(0, 22, rng()))
    assert not np.array_equal(one.order, two.order)


def test_held_out_rows_come_without_repetition_all_of_them_if_more_are_asked_for():
    found = Images(held_out=0.02).replicated(1, rng())
    drawn, all_of_them = found.sample(10, rng(1)), found.sample(500, rng(2))
    assert (drawn.n, all_of_them.n) == (10, 36)
    rows = [{row.tobytes() for row in np.asarray(data.points)} for data in (drawn, all_of_them, found.held_out())]
    assert rows[0] < rows[1] == rows[2]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_split_keeps_the_share_of_every_class_to_three_rows(share):
    """Of m points {i phi} in a row an interval of length s holds m s to O(ln m); a random split misses by sqrt(m s (1 - s))."""
    labels = rng(3).choice(7, 5000, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.015, 0.005])
    train, held = split(labels, share)
    assert len(held) == round(5000 * share)
    assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(5000))
    counts = np.bincount(labels)
    assert np.all(np.abs(np.bincount(labels[held]) - counts * share) < 3)


def test_classes_are_renamed_in_the_order_given_and_the_first_of_each_are_kept(tmp_path):
    x = pixels()
    component = Images(**as_folder(tmp_path, x, LABELS), classes=["c", 0], per_class=4)
    found = component.replicated(1, rng())
    assert (component.rows, component.n_classes) == (6, 2)
    assert_array_equal(found.points, np.concatenate([x[:4], x[20:24]]))
    assert_array_equal(found.labels, [1] * 4 + [0] * 4)


def test_folders_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    for i, name in enumerate(["0", "1", "10", "2"]):
        for j in range(2):
            (tmp_path / "x" / name).mkdir(parents=True, exist_ok=True)
            picture(pixels()[i]).save(tmp_path / "x" / name / f"{j}.png")
    found = Images(path=str(tmp_path / "x")).replicated(1, rng())
    assert_array_equal(found.points[::2], pixels()[[0, 1, 3, 2]])
    assert_array_equal(found.labels, [0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("form", ["folder", "zip", "unpacked zip"])
def test_the_path_of_a_row_leads_to_its_pixels(tmp_path, form):
    """Of all rows, and of chosen classes in another order."""
    given = FORMS[form](tmp_path, pixels(), LABELS)
    for source in (Images(**given), Images(**given, classes=[2, 0], per_class=3)):
        points, paths = source.replicated(1, rng()).points, source.row_paths
        assert len(paths) == len(points)
        root = zipfile.Path(given["path"]) if form == "zip" else Path(given["path"])
        for point, path in zip(points, paths, strict=True):
            with (root / path).open("rb") as file:
                assert_array_equal(np.asarray(Image.open(file)), point[0])


def test_rows_that_are_no_files_have_no_paths(tmp_path):
    for given in (as_npz(tmp_path, pixels(), LABELS), as_npy(tmp_path, pixels(), LABELS), {"path": "digits"}):
        assert Images(**given).row_paths is None


def test_a_name_that_is_no_text_has_a_path_all_the_same(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png(pixels()[0]))
    except OSError:
        pytest.skip("this file system takes text alone")
    picture(pixels()[1]).save(tmp_path / "a.png")
    assert Images(path=str(tmp_path), held_out=0.5).row_paths == ("a.png", "\ufffd.png")


def test_padding_puts_the_image_in_the_middle_and_makes_it_square(tmp_path):
    x = pixels(3)[:, :, :, :5]
    found = Images(**as_npz(tmp_path, x, LABELS), pad=10, background=7).replicated(1, rng())
    assert found.points.shape == (N, 3, 10, 10)
    assert_array_equal(found.points[:, :, 1:9, 2:7], x)
    frame = np.ones((10, 10), dtype=bool)
    frame[1:9, 2:7] = False
    assert (found.points[:, :, frame] == 7).all()
    assert found.sha256 != Images(**as_npz(tmp_path, x, LABELS), pad=10).replicated(1, rng()).sha256


def test_a_test_set_is_held_out_and_nothing_else(tmp_path):
    x, y = pixels(), LABELS
    for given in ({**as_lzma(tmp_path, x, y), "test": "same"}, {**as_hugging_face(tmp_path, x, y), "test": "same"}):
        component = Images(**given)
        found = component.replicated(1, rng())
        assert component.rows == N
        same(found.train(), Measure.uniform(x, y, batch=0))
        same(found.held_out(), Measure.uniform(x[:5], y[:5], batch=0))
    as_npz(tmp_path, x[::-1], y[::-1])
    other = Images(path=str(tmp_path / "lzma.npz"), test=str(tmp_path / "images.npz"), classes=[2, 1], per_class=3)
    held = other.replicated(1, rng()).held_out()
    assert (other.rows, held.n) == (6, 20)
    assert_array_equal(held.labels, [0] * 10 + [1] * 10)


def test_a_test_folder_without_some_class_numbers_the_others_by_name(tmp_path):
    as_folder(tmp_path, pixels(), LABELS)
    (tmp_path / "b").mkdir()
    as_folder(tmp_path / "b", pixels()[:4], np.array([1, 1, 2, 2]))
    held = Images(path=str(tmp_path / "folder"), test=str(tmp_path / "b" / "folder")).replicated(1, rng()).held_out()
    assert_array_equal(held.labels, [1, 1, 2, 2])


def test_variables_are_replaced_in_paths(tmp_path, monkeypatch):
    as_npz(tmp_path, pixels(), LABELS)
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert Images(path="$PLACE/images.npz").rows == Images(path="${PLACE}/images.npz").rows == 22
    monkeypatch.delenv("PLACE")
    with pytest.raises(ValueError, match="needs the environment variable PLACE, which is not set; run: export PLACE="):
        Images(path="$PLACE/images.npz")


def test_latents_are_read_where_they_are(tmp_path, cache):
    z = rng().standard_normal((N, 4, 8, 8), dtype=np.float32)
    np.save(tmp_path / "train.npy", z)
    np.save(tmp_path / "train_labels.npy", LABELS)
    np.save(tmp_path / "test.npy", z[:6])
    np.save(tmp_path / "test_labels.npy", LABELS[:6])
    given = {"path": str(tmp_path / "train.npy"), "labels": str(tmp_path / "train_labels.npy")}
    found = Images(**given).replicated(1, rng())
    assert isinstance(found.points, np.memmap)
    assert Path(found.points.filename) == tmp_path / "train.npy"
    train, _ = split(LABELS, 0.25)
    same(found.train(), Measure.uniform(z[train], LABELS[train], batch=0))
    assert not list(cache.glob("*.npy"))
    tested = Images(**given, test=str(tmp_path / "test.npy"), classes=[1, 0]).replicated(1, rng())
    same(tested.train(), Measure.uniform(z[:20], np.repeat([1, 0], 10), batch=0))
    same(tested.held_out(), Measure.uniform(z[:6], np.ones(6, dtype=int), batch=0))
    z[7, 0, 0, 0] = np.nan
    np.save(tmp_path / "train.npy", z)
    with pytest.raises(ValueError, match="NaN or infinity in row 7"):
        Images(**given).replicated(1, rng())


def test_the_checksum_sees_every_pixel_and_label(tmp_path):
    x, sums = pixels(), set()
    for pixel, label in ((0, 0), (1, 0), (0, 1)):
        x[4, 0, 3, 3] = pixel
        y = LABELS.copy()
        y[5] = label
        sums.add(Images(**as_npz(tmp_path, x, y)).replicated(1, rng()).sha256)
    assert len(sums) == 3


# The cache ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch):
    """How often the places were read."""
    pieces, times = images.Plan.pieces, []
    monkeypatch.setattr(images.Plan, "pieces", lambda plan: times.append(1) or pieces(plan))
    return times


@pytest.mark.parametrize("form", ["npz", "folder", "zip", "hf"])
def test_images_are_decoded_once(tmp_path, decoded, form):
    given = FORMS[form](tmp_path, pixels(), LABELS)
    one, two = (Images(**given).replicated(1, rng()) for _ in range(2))
    assert len(decoded) == 1
    assert one.sha256 == two.sha256
    assert_array_equal(two.points, pixels())


def test_what_changed_is_decoded_again(tmp_path, decoded):
    x = pixels()
    given = as_folder(tmp_path, x, LABELS)
    old = Images(**given).replicated(1, rng())
    picture(255 - x[4]).save(tmp_path / "folder" / "a" / "004.png")
    new = Images(**given).replicated(1, rng())
    assert len(decoded) == 2
    assert_array_equal(new.points[4], 255 - x[4])
    assert_array_equal(old.points, x)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "no entry", "no note", "bad note", "other note"])
def test_a_damaged_entry_is_made_again(tmp_path, cache, decoded, harm):
    given = as_npz(tmp_path, pixels(), LABELS)
    sound = Images(**given).replicated(1, rng()).sha256
    (entry,), (note,) = cache.glob("*.npy"), cache.glob("*.json")
    data = bytearray(entry.read_bytes())
    data[-100] ^= 1
    harms = {
        "flip": lambda: entry.write_bytes(data),
        "cut": lambda: entry.write_bytes(data[:-300]),
        "empty": lambda: entry.write_bytes(b""),
        "no entry": entry.unlink,
        "no note": note.unlink,
        "bad note": lambda: note.write_bytes(note.read_bytes()[:30]),
        "other note": lambda: note.write_text("[]"),
    }
    time.sleep(0.01)  # clocks of files tick every few milliseconds
    harms[harm]()
    found = Images(**given).replicated(1, rng())
    assert len(decoded) == 2
    assert found.sha256 == sound
    assert_array_equal(found.points, pixels())


def test_an_entry_that_was_only_touched_is_kept(tmp_path, cache, decoded):
    given = as_npz(tmp_path, pixels(), LABELS)
    Images(**given).replicated(1, rng())
    os.utime(next(cache.glob("*.npy")), (1, 1))
    Images(**given).replicated(1, rng())
    assert len(decoded) == 1


def test_of_many_at_once_one_decodes(tmp_path, decoded):
    component = Images(**as_folder(tmp_path, pixels(), LABELS))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: component.replicated(1, rng()).sha256, range(16)))
    assert len(decoded) == 1
    assert len(set(found)) == 1


def test_a_decoding_that_fails_or_is_killed_leaves_no_entry(tmp_path, cache, monkeypatch, decoded):
    given = as_npz(tmp_path, pixels(), LABELS)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_padded", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            Images(**given).replicated(1, rng())
    assert {path.suffix for path in cache.iterdir()} <= {".lock"}
    (lock,) = cache.iterdir()
    (cache / f".{lock.stem}.0123456789abcdef.tmp").write_bytes(b"half")  # as kill -9 leaves it
    assert_array_equal(Images(**given).replicated(1, rng()).points, pixels())
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".lock", ".npy"]


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(tmp_path, monkeypatch):
    component = Images(**as_npz(tmp_path, pixels(), LABELS))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SELFLOOP_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot use the cache .*set SELFLOOP_CACHE"):
        component.replicated(1, rng())
    monkeypatch.setenv("SELFLOOP_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match=r"30 images take .* GB and .* GB are free; set SELFLOOP_CACHE"):
        component.replicated(1, rng())


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"SELFLOOP_CACHE": "/own"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/selfloop"),
        ({"HOME": "/home/me"}, "/home/me/.cache/selfloop"),
    ],
)
def test_where_the_cache_is(monkeypatch, variables, folder):
    for name in ("SELFLOOP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert images.cache() == Path(folder)


# What is refused ------------------------------------------------------------------------------------------------------------


def test_what_a_data_set_cannot_do_is_said(tmp_path):
    found = Images(**as_npz(tmp_path, pixels(), LABELS)).replicated(1, rng())
    with pytest.raises(ValueError, match="exhausted: rows 20 to 24 are asked for, of 22 for training"):
        found.take(20, 5, rng())
    with pytest.raises(TypeError, match="set statistics: false"):
        found.take(0, 5, rng(), statistics=True)
    with pytest.raises(ValueError, match="got a chunk of 3; set chunk: 1"):
        Images(**as_npz(tmp_path, pixels(), LABELS)).replicated(3, rng())


def npz(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)
    return {"path": str(folder / "x.npz")}


def npy(folder, values, **options):
    np.save(folder / "x.npy", values)
    return {"path": str(folder / "x.npy"), **options}


def file(folder, name, data=b"data"):
    (folder / name).write_bytes(data)
    return {"path": str(folder / name)}


def damaged(given, at=0.5, size=40):
    path = Path(given["path"])
    data = bytearray(path.read_bytes())
    start = int(len(data) * at)
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    return given


def changed_folder(folder, name, pixel=None, data=b"", x=None):
    given = as_folder(folder, pixels() if x is None else x, LABELS)
    place = Path(given["path"]) / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data if pixel is None else png(pixel))
    return given


def edm(folder, text, names=("a.png", "b.png", "c.png", "d.png")):
    with zipfile.ZipFile(folder / "x.zip", "w") as file:
        for name in names:
            file.writestr(name, png(pixels()[0]))
        file.writestr("dataset.json", text if isinstance(text, str) else json.dumps({"labels": text}))
    return {"path": str(folder / "x.zip")}


def saved(folder, mode):
    (folder / "x").mkdir()
    Image.new(mode, (8, 8)).save(folder / "x" / "only.png")
    return {"path": str(folder / "x")}


def grey(n=4, *size, dtype=np.uint8):
    return np.zeros((n, *(size or (8, 8))), dtype=dtype)


def two_columns(folder):
    datasets = pytest.importorskip("datasets")
    classes = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(image=datasets.Image(), fine=classes, coarse=classes)
    columns = {"image": [{"bytes": png(pixels()[0]), "path": None}] * 4, "fine": [0, 1, 0, 1], "coarse": [0, 0, 1, 1]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "two")
    return {"path": f"hf:{folder / 'two'}"}


# fmt: off
REFUSED = {
    "missing path": (lambda t: {"path": str(t / "no.npz")}, r"path .*no\.npz is not there; give one of digits, a folder, FILE"),
    "missing folder": (lambda t: {"path": str(t / "no")}, "no is not there; give one of digits, a folder"),
    "unknown form": (lambda t: file(t, "x.csv"), r"x\.csv is none of the forms that are read"),
    "pkl": (lambda t: file(t, "x.pkl", pickle.dumps([1])), "pickle files are refused"),
    "pt": (lambda t: file(t, "x.pt"), "pickle files are refused"),
    "object array": (lambda t: npz(t, images=np.array([{}, 1])), "Python objects in images: pickle files are refused"),
    "object labels": (lambda t: npz(t, images=grey(2), labels=np.array([{}, 1])), "objects in labels: pickle files are"),
    "no zip": (lambda t: file(t, "x.npz"), "is damaged, or no zip file"),
    "no npy": (lambda t: file(t, "x.npy"), "is damaged in x.npy: .*make or fetch it again"),
    "npz damaged": (lambda t: damaged(as_npz(t, pixels(), None)), "is damaged in images"),
    "npy cut": (lambda t: file(t, "y.npy", Path(npy(t, grey(9))["path"]).read_bytes()[:-65]), r"ends after 7 of 9 images"),
    "no array": (lambda t: npz(t, arr_0=grey()), "no array that may hold the images: there are arr_0, .* name the array by"),
    "two arrays": (lambda t: npz(t, x=grey(), data=grey()), "more than one array .* there are x, data"),
    "no such array": (lambda t: {**npz(t, x=grey()), "images": "z"}, "there are x, and looked for were z"),
    "no such labels": (lambda t: {**npz(t, x=grey()), "labels": "z"}, "no array z of labels: there are x"),
    "no test arrays": (lambda t: {**npz(t, x_train=grey()), "test": "same"}, "looked for were x_test"),
    "floats": (lambda t: npz(t, images=grey(dtype=np.float32)), r"has float32 .* must be uint8 .* multiply by 255 and cast"),
    "int64": (lambda t: npz(t, images=grey(dtype=np.int64)), r"has int64 .* cast it, if its values are 0 \.\. 255"),
    "double latents": (lambda t: npy(t, np.zeros((4, 4, 8, 8))), "latents float32"),
    "flat latents": (lambda t: npy(t, grey(4, 64, dtype=np.float32)), r"latents of shape \(4, 64\); they must be"),
    "two channels": (lambda t: npz(t, images=grey(4, 8, 8, 2)), "with C = 1, 3 or 4 channels; move the axes"),
    "vectors": (lambda t: npz(t, images=grey(4, 64)), r"shape \(4, 64\), which must be \(N, H, W\)"),
    "ambiguous order": (lambda t: npz(t, images=grey(4, 3, 4, 3)), r"may be \(N, H, W, C\) and \(N, C, H, W\)"),
    "no rows": (lambda t: npz(t, images=grey(0)), r"no image in images, of shape \(0, 8, 8\)"),
    "not square": (lambda t: npz(t, images=grey(4, 8, 6)), "must be square; crop them, or set pad: 8"),
    "pad too small": (lambda t: {**npz(t, images=grey()), "pad": 7}, "pad must be >= 8, the side of the images"),
    "pad latents": (lambda t: npy(t, np.zeros((4, 4, 8, 8), np.float32), pad=9), "pad must be .* for bytes alone"),
    "labels too few": (lambda t: npz(t, images=grey(), labels=np.arange(3)), r"shape \(3,\); they must be 4 integers"),
    "labels 2-D": (lambda t: npz(t, images=grey(), labels=grey(4, 1)), r"shape \(4, 1\); they must be 4 integers"),
    "labels floats": (lambda t: npz(t, images=grey(), labels=np.zeros(4)), r"labels float64 .* must be 4 integers"),
    "labels negative": (lambda t: npz(t, images=grey(), labels=np.array([0, -1, 0, 0])), "out of range: image 1 has -1"),
    "labels with a gap": (lambda t: npz(t, images=grey(), labels=np.array([0, 2, 4, 4])), r"no image of 1; .*\[0, 2, 4\]"),
    "labels far out": (lambda t: npz(t, images=grey(), labels=np.array([0, 1, 2, 10**12])), "go to 1000000000000"),
    "labels absent": (lambda t: npy(t, grey(), labels=str(t / "no.npy")), r"labels .*no\.npy is not there"),
    "class absent": (lambda t: {**as_npz(t, pixels(), LABELS), "classes": [0, 7]}, "classes 7 are not in .* has 0, 1, 2"),
    "name absent": (lambda t: {**as_folder(t, pixels(), LABELS), "classes": ["z"]}, "classes z are not .* names a, b, c"),
    "class twice": (lambda t: {**as_folder(t, pixels(), LABELS), "classes": ["a", 0]}, "must name each class once"),
    "classes unlabelled": (lambda t: {**as_npz(t, pixels(), None), "classes": [0]}, "classes needs labels, and .* has none"),
    "per class unlabelled": (lambda t: {**as_npz(t, pixels(), None), "per_class": 2}, "per_class needs labels"),
    "too few to hold out": (lambda t: npz(t, images=grey(1)), "held_out 0.25 of 1 images leaves 1 for training and 0"),
    "nothing to train on": (lambda t: {**npz(t, images=grey(2)), "held_out": 0.9}, "leaves 0 for training and 2"),
    "both ways": (lambda t: {**npz(t, images=grey()), "held_out": 0.5, "test": "digits"}, "held_out has nothing to hold out"),
    "other test": (lambda t: {**npz(t, images=grey()), "test": "digits"}, "test digits holds 1 x 8 x 8 bytes with labels, and"),
    "test classes": (lambda t: {**npz(t, x_train=grey(), y_train=grey(4, 1)[:, 0], x_test=grey(), y_test=np.arange(4)),
                                "test": "same"}, "has labels 1, 2, 3, and .*npz 0; drop or rename"),
    "test folder same": (lambda t: {**as_folder(t, pixels(), LABELS), "test": "same"}, "test same is for a .npz and for hf:"),
    "split of a file": (lambda t: {**npz(t, images=grey()), "split": "train"}, "split is of use with hf alone"),
    "empty folder": (lambda t: {"path": str(t)}, "holds no PNG or JPEG; add some"),
    "empty class": (lambda t: changed_folder(t, "d/x.txt"), "no PNG or JPEG in its sub-folders d; fill or remove"),
    "flat and classes": (lambda t: changed_folder(t, "e.png", pixels()[0]), r"beside its sub-folders, e\.png; move"),
    "sixteen bits": (lambda t: saved(t, "I;16"), r"only\.png has mode I;16; it must be one of L, RGB, RGBA"),
    "palette": (lambda t: saved(t, "P"), r"only\.png has mode P"),
    "first image broken": (lambda t: changed_folder(t, "a/000.png", data=b"no"), r"a/000\.png is missing or damaged"),
    "json broken": (lambda t: edm(t, "{"), r"dataset\.json that is not of the form \{\"labels\": \[\["),
    "json a list": (lambda t: edm(t, "[1]"), "not of the form"),
    "json lacks one": (lambda t: edm(t, [["a.png", 0], ["b.png", 0], ["d.png", 0]]), r"lacks labels for c\.png"),
    "json names others": (lambda t: edm(t, [[f"{c}.png", 0] for c in "abcdz"]), r"images that are missing: z\.png"),
    "json floats": (lambda t: edm(t, [[f"{c}.png", 0.5] for c in "abcd"]), r"no integers, for a\.png, b\.png"),
    "json twice": (lambda t: edm(t, [[f"{c}.png", 0] for c in "abcda"]), "5 labels for 4 images; name each image once"),
    "hf absent": (lambda t: {"path": f"hf:{t}"}, "cannot be loaded: .*save_to_disk"),
    "hf split": (lambda t: {**as_hugging_face(t, pixels(), None), "split": "dev"}, "no split dev: there are train, test"),
    "hf no splits": (lambda t: {**two_columns(t), "split": "train", "labels": "fine"}, "single data set without splits"),
    "hf two labels": (two_columns, "more than one column that may hold the labels: fine, coarse; name it by labels"),
    "hf no column": (lambda t: {**two_columns(t), "images": "fine", "labels": "fine"}, "no such column"),
}
# fmt: on


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_with_what_was_found_and_the_remedy(tmp_path, case):
    given, message = REFUSED[case]
    options = given(tmp_path)
    with pytest.raises(ValueError, match=message):
        Images(**options).replicated(1, rng())


LATE = {
    "cut": (
        lambda t: changed_folder(t, "b/012.png", data=png(pixels()[0])[:-30]),
        "is missing or damaged: .*restore or remove",
    ),
    "flipped": (
        lambda t: damaged({"path": changed_folder(t, "b/012.png", pixels()[12])["path"] + "/b/012.png"}, size=1),
        "dama",
    ),
    "size": (lambda t: changed_folder(t, "b/012.png", pixels(side=9)[0]), "is 1 x 9 x 9 .*the first image 1 x 8 x 8; all must"),
    "colour": (lambda t: changed_folder(t, "b/012.png", pixels(3)[0]), "is 3 x 8 x 8 .*one kind of colour: resize or convert"),
}


@pytest.mark.parametrize("case", LATE)
def test_one_bad_image_among_many_is_named(tmp_path, cache, case):
    change, message = LATE[case]
    change(tmp_path)
    component = Images(path=str(tmp_path / "folder"))
    with pytest.raises(ValueError, match=rf"b/012\.png .*{message}"):
        component.replicated(1, rng())
    assert not list(cache.glob("*.npy"))


def test_an_image_that_goes_missing_is_named(tmp_path):
    plan = Images(**as_folder(tmp_path, pixels(), LABELS))._plan()
    (tmp_path / "folder" / "b" / "012.png").unlink()
    with pytest.raises(ValueError, match=r"b/012\.png is missing or damaged: .*No such file"):
        list(plan.pieces())


@pytest.mark.parametrize(("package", "path"), [("datasets", "hf:mnist"), ("sklearn.datasets", "digits")])
def test_a_library_that_is_not_installed_is_named_with_its_remedy(monkeypatch, package, path):
    formats.locate.cache_clear()
    images._planned.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match="run: pip install"):
        Images(path=path)


YAML = """
real: {{kind: images, path: {path}, classes: [0, 1]}}
algorithm: gaussian
mix: {{n_real: 5}}
chunk: 1
replicates: 1
generations: 1
track: {{w2:}}
"""


def test_a_configuration_is_told_the_line_and_nothing_is_decoded(tmp_path, decoded):
    source = tmp_path / "experiment.yaml"
    source.write_text(YAML.format(path=tmp_path / "no.npz"))
    with pytest.raises(ConfigError, match=r"experiment\.yaml:2: real\.path: .*no\.npz is not there"):
        load(read(source))
    source.write_text(YAML.format(path=as_npz(tmp_path, pixels(), None)["path"]))
    with pytest.raises(ConfigError, match=r"experiment\.yaml:2: real\.classes: needs labels"):
        load(read(source))
    source.write_text(YAML.format(path=as_npz(tmp_path, pixels(), LABELS)["path"]).replace("n_real: 5", "n_real: 16"))
    with pytest.raises(ConfigError, match="images has 15 for training; use fewer"):
        load(read(source))
    assert not decoded
