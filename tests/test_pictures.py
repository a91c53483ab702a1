"""Pictures of samples and boards of numbers: what is written is what was there."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from selfloop import pictures
from selfloop.board import Board
from selfloop.measure import Measure
from selfloop.metrics.pictures import Pictures
from selfloop.metrics.track import View
from selfloop.protocols import Generation
from selfloop.streams import NamedStreams
from selfloop.work import FolderWork


def images(n, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, channels, 4, 6), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_image_in_its_place(channels):
    given = images(5, channels)
    made = pictures.grid(given, 3, gap=2)
    assert made.shape == (2 * (4 + 2) + 2, 3 * (6 + 2) + 2, channels)
    for number, image in enumerate(given):
        top, left = 2 + number // 3 * 6, 2 + number % 3 * 8
        np.testing.assert_array_equal(made[top : top + 4, left : left + 6].transpose(2, 0, 1), image)
    assert (made[:2] == pictures.BACKGROUND).all()


@pytest.mark.parametrize("odd", [np.zeros((3, 1, 4, 4)), np.zeros((3, 2, 4, 4), np.uint8), np.zeros((4, 4), np.uint8)])
def test_what_is_no_stack_of_images_has_no_picture(odd):
    with pytest.raises(ValueError, match="uint8 images"):
        pictures.grid(odd, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_the_picture_back(tmp_path, channels):
    made = pictures.grid(images(4, channels), 2)
    pictures.save_png(tmp_path / "a.png", made, enlarged=3)
    back = np.asarray(Image.open(tmp_path / "a.png")).reshape(made.shape[0] * 3, made.shape[1] * 3, channels)
    np.testing.assert_array_equal(back[::3, ::3], made)


class Fixed:
    def __init__(self, points):
        self.points = points

    def sample(self, n, rng, labels=None, work=None):
        return Measure.uniform(self.points[:n], batch=0)


@pytest.mark.parametrize(("points", "written"), [(images(9), 1), (images(9).astype(np.float32), 0)])
def test_samples_are_pictured_under_the_name_of_the_point_and_latents_are_not(tmp_path, points, written):
    generation = Generation(1, Fixed(points), Measure.uniform(points, batch=0), np.zeros((), np.int64))
    keep = FolderWork(tmp_path / "kept", shelf=tmp_path / "kept")
    view = View(generation, None, NamedStreams(0), 1, None, keep, "omega=0.5,chunk=0,generation=1")
    assert Pictures(n=9, columns=3)(view) == {}
    assert [path.name for path in tmp_path.rglob("*.png")] == ["omega=0.5,chunk=0,generation=1.png"] * written
    assert Pictures(n=9)(View(generation, None, NamedStreams(0), 1)) == {}, "without a folder nothing is written"


class Run:
    """Stands for a run of wandb."""

    def __init__(self, heard):
        self.heard = heard

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.heard.append("finished")

    def log(self, numbers, step):
        self.heard.append((numbers, step))


def test_a_board_hears_every_report_and_the_end_and_the_work_stays_what_it_is(tmp_path, monkeypatch):
    heard, told = [], []
    stub = types.SimpleNamespace(init=lambda project, dir, reinit: heard.append((project, dir)) or Run(heard))
    monkeypatch.setitem(sys.modules, "wandb", stub)
    work = FolderWork(tmp_path / "work", tell=lambda *a, **k: told.append((a, k)), shelf=tmp_path / "shelf")
    with Board(kind="wandb", project="mine").watching(work) as watched:
        watched.report(10, 20, loss=0.5)
        watched.save(x=np.ones(2))
    np.testing.assert_array_equal(work.load()["x"], np.ones(2))
    assert heard == [("mine", str(tmp_path / "shelf")), ({"loss": 0.5}, 10), "finished"]
    assert len(told) == 1


def test_tensorboard_gets_a_file_of_events(tmp_path):
    pytest.importorskip("tensorboard")
    with Board().watching(FolderWork(tmp_path / "work", shelf=tmp_path / "shelf")) as watched:
        watched.report(10, 20, loss=0.5)
    assert list((tmp_path / "shelf" / "tensorboard").glob("events*"))


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_board_without_its_library_says_what_to_install(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}[kind], None)
    with pytest.raises(ModuleNotFoundError, match=f"pip install {kind}"), Board(kind=kind).watching(FolderWork(tmp_path)):
        pass
