"""Fits that take long: whatever kills them, the same call ends with the same bits and repeats only what was not saved."""

import contextlib
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from selfloop import fanout, report, results
from selfloop import run as command
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.algorithms.sims import Sims
from selfloop.config import load
from selfloop.data import GaussianSource
from selfloop.loop import self_consume
from selfloop.measure import Measure
from selfloop.mix import Mix
from selfloop.protocols import Work
from selfloop.reading import read
from selfloop.results import RunFolder, load_generations
from selfloop.streams import NamedStreams
from selfloop.work import FolderWork, Notice

STEPS = 60


class Killed(BaseException):
    """The process is dead: from here on nothing it does reaches the disk."""


MADE: list[tuple[str, int]] = []
"""(data, step) of every step that any fit made."""
FATAL: list[int] = []
"""How many more steps are made before the process dies; empty: it lives."""


@dataclass(frozen=True)
class Cloud:
    """N(theta, I), with what a network would tell of itself: its steps that failed, a denoiser, its sampler."""

    theta: np.ndarray
    failed: np.ndarray

    sampler = GaussianFit().sampler
    batch = property(lambda self: self.theta.shape[:-1])

    def shape(self, n):
        return (*self.batch, n, self.theta.shape[-1])

    def sample(self, n, rng, labels=None, work=None):
        points = self.theta[..., None, :] + rng.standard_normal(self.shape(n))
        return Measure(points, np.broadcast_to(1 / n, points.shape[:-1]))

    def denoise(self, x, sigma, labels=None):
        return (x + sigma**2 * self.theta[..., None, :]) / (1 + sigma**2)

    def law(self):
        return None

    def state(self):
        return {"theta": self.theta, "failed": self.failed}


@dataclass
class Walk:
    """Noisy steps toward the mean of the data, one a moment; noise keyed by step, saves between blocks of steps.

    blocks: steps between two questions whether to save; always: save without asking; member, at: who fails, at what step.
    """

    blocks: int = 1
    always: bool = False
    member: int = -1
    at: int = 0

    def fit(self, data, rng, work=None):
        return self._walk(np.zeros((*data.batch, 1)), data, rng, work)

    def tune(self, model, data, budgets, rng, work=None):
        yield self._walk(model.theta, data, rng, work)

    def interpolate(self, a, b, t):
        return Cloud(a.theta + t * (b.theta - a.theta), a.failed)

    def restore(self, state):
        return Cloud(state["theta"], state["failed"])

    def _walk(self, theta, data, rng, work):
        seed, step, target = int(rng.integers(2**32)), 0, data.points.mean(axis=-2)
        if work is not None and (saved := work.load()) is not None:
            theta, step = saved["theta"], int(saved["step"])
        while step < STEPS:
            if FATAL:
                FATAL[0] -= 1
                if FATAL[0] < 0:
                    raise Killed
            noise = np.random.default_rng([seed, step]).standard_normal(theta.shape)
            theta = theta + 0.05 * (target - theta + noise)
            step += 1
            MADE.append((f"{float(target.sum()):.9f}", step))
            if step == self.at:
                theta = np.where(np.arange(theta.shape[0])[:, None] == self.member, np.nan, theta)
            if work is not None and step % self.blocks == 0:
                work.report(step, STEPS, loss=0.5)
                if self.always or work.due():
                    work.save(theta=theta, step=np.array(step))
        return Cloud(theta, np.where(np.isnan(theta[..., 0]), self.at, 0))


@pytest.fixture(autouse=True)
def alive(monkeypatch):
    """A living process on a disk that never loses power: what these tests kill is the process alone."""
    MADE.clear()
    FATAL.clear()
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def work(tmp_path):
    return FolderWork(tmp_path / "work", every=0)


# The file --------------------------------------------------------------------------------------------------------------

ARRAYS = {
    "theta": np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32),
    "now.0/weight": np.array([[np.nan, -0.0], [np.inf, 5e-324]]),
    "step": np.array(7),
    "none": np.zeros((0, 2), dtype=np.int8),
    "self": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "file": np.array([True, False]),
    "name": np.array("text"),
}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape)
        assert found[name].tobytes() == values.tobytes()


def test_arrays_of_any_type_and_name_come_back_bit_for_bit(work):
    work.save(**ARRAYS)
    assert_same(FolderWork(work.folder).load(), ARRAYS)
    work.save(step=np.array(8))
    assert_same(work.load(), {"step": np.array(8)})


def test_nothing_is_on_the_disk_before_the_first_save(work, tmp_path):
    part = work.at("base").at("ema")
    assert isinstance(part, Work)
    assert part.load() is None
    assert part.due()
    part.report(1, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_damaged_anywhere_counts_as_none(work):
    work.save(theta=np.array([1.5]))
    (path,) = work.folder.iterdir()
    content = path.read_bytes()
    assert len(content) < 500
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert work.load() is None, f"byte {at} flipped"
    for size in range(0, len(content), 9):
        path.write_bytes(content[:size])
        assert work.load() is None, f"cut to {size} bytes"
    path.write_bytes(content + b"\0")
    assert work.load() is None
    path.unlink()
    path.mkdir()
    assert work.load() is None, "no file at all"
    path.rmdir()
    path.write_bytes(content)
    assert_same(work.load(), {"theta": np.array([1.5])})


def test_python_objects_are_refused_and_what_was_saved_stays(work):
    work.save(step=np.array(1))
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        work.save(step=np.array(2), other=np.array([{}]))
    assert_same(work.load(), {"step": np.array(1)})
    assert len(list(work.folder.iterdir())) == 1, "the temporary file is gone"


def test_a_death_at_any_touch_of_the_disk_leaves_the_old_save_or_the_new_one(work, monkeypatch):
    originals = {name: getattr(os, name) for name in ("mkdir", "open", "fsync", "replace", "unlink")}
    seen = set()
    for n in itertools.count(1):
        work.save(step=np.array(1))
        count, dead = itertools.count(1), []

        def deadly(call, n=n, count=count, dead=dead):
            def wrapped(*args, **options):
                if dead or next(count) >= n:
                    dead.append(True)
                    raise Killed
                return call(*args, **options)

            return wrapped

        with monkeypatch.context() as patch:
            for name, call in originals.items():
                patch.setattr(os, name, deadly(call))
            with contextlib.suppress(Killed):
                work.save(step=np.array(2))
        seen.add(int(work.load()["step"]))
        if not dead:
            break
    assert n > 4
    assert seen == {1, 2}


def test_a_save_that_fails_is_an_error_and_leaves_the_old_one(work, monkeypatch):
    work.save(step=np.array(1))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        work.save(step=np.array(2))
    assert_same(work.load(), {"step": np.array(1)})
    assert len(list(work.folder.iterdir())) == 1


def test_parts_have_files_of_their_own_below_the_whole_whatever_their_names(work):
    names = ["a", "b", "a/b", "a b", "a.b", "a%2Eb", ".", "..", "../a", "/a", "saved.npz", "saved", "ω", "%"]
    parts = [work, work.at("a").at("b"), *map(work.at, names)]
    for number, part in enumerate(parts):
        part.save(number=np.array(number))
    assert [int(part.load()["number"]) for part in parts] == list(range(len(parts)))
    assert [path.name for path in work.folder.parent.iterdir()] == ["work"]
    with pytest.raises(ValueError, match="needs a name; got ''"):
        work.at("")


@pytest.mark.parametrize(("took", "pause"), [(0.25, 10.0), (0.5, 10.0), (60.0, 1200.0)])
def test_a_save_is_due_ten_seconds_after_the_last_one_or_twenty_times_as_long_as_that_took(tmp_path, monkeypatch, took, pause):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    work = FolderWork(tmp_path)
    assert [work.due() for now[0] in (0.0, 9.9, 10.0, 11.0)] == [False, False, True, True]
    monkeypatch.setattr(os, "replace", lambda *_: now.__setitem__(0, 11.0 + took))
    work.save(step=np.array(1))
    end = now[0]
    assert [work.due() for now[0] in (end + pause - 0.1, end + pause)] == [False, True]


def test_whoever_listens_hears_how_far_every_part_is(tmp_path):
    heard = []
    work = FolderWork(tmp_path, tell=lambda *told, **numbers: heard.append((*told, numbers)))
    work.report(1, 3)
    work.at("base").at("e.m/a").report(2, 3, loss=0.5)
    assert heard == [((), 1, 3, {}), (("base", "e.m/a"), 2, 3, {"loss": 0.5})]


def test_the_shelf_of_a_part_lies_in_the_shelf_of_the_whole_and_is_made_by_whoever_uses_it(tmp_path):
    work = FolderWork(tmp_path / "work", shelf=tmp_path / "shelf")
    assert work.at("generation-1").at("base").shelf == tmp_path / "shelf" / "generation-1" / "base"
    assert work.at("../a").shelf.parent == work.shelf
    assert FolderWork(tmp_path / "work").at("base").shelf is None
    assert list(tmp_path.iterdir()) == []


def test_a_notice_is_written_once_in_a_while_and_read_whole_or_not_at_all(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    notice = Notice(tmp_path / "deep" / "notice.json", every=1.0)
    assert notice.read() is None
    for now[0] in (0.0, 0.9, 1.0, 1.5):
        notice(("generation-1", "base"), int(10 * now[0]), 20, loss=np.float32(0.5))
    assert notice.read() == (("generation-1", "base"), 10, 20, {"loss": 0.5})
    assert [path.name for path in notice.path.parent.iterdir()] == ["notice.json"]
    for damaged in ("", "[1", '[["a"], 1]'):
        notice.path.write_text(damaged)
        assert notice.read() is None


def test_a_full_disk_silences_a_notice_and_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    Notice(tmp_path / "notice.json")((), 1, 2)


# Arrays ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.dtype(">i8"), bool])
@pytest.mark.parametrize("shape", [(5, 3, 2, 2), (1,), ()])
def test_an_array_is_zero_at_first_and_found_again_as_it_was_left(work, shape, dtype):
    array = work.array("points", shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert not np.any(array)
    array[...] = 1
    del array
    again = FolderWork(work.folder).array("points", shape, dtype)
    assert np.all(np.asarray(again) == 1)
    assert isinstance(again, np.memmap)


@pytest.mark.parametrize("other", [((4, 2), np.uint8), ((5, 2), np.int8), ((5,), np.uint8)])
def test_an_array_of_another_shape_or_type_begins_anew(work, other):
    work.array("points", (5, 2), np.uint8)[:] = 7
    assert not np.any(work.array("points", *other))
    assert not np.any(work.array("points", (5, 2), np.uint8))


def test_arrays_of_any_name_in_any_part_are_apart_from_each_other_and_from_what_is_saved(work):
    names = ["points", "done", "saved", "a/b", "..", "points.npy", "ω"]
    arrays = [part.array(name, (2,), np.uint8) for part in (work, work.at("points")) for name in names]
    for number, array in enumerate(arrays):
        array[:] = number
    work.save(points=np.array(99))
    assert [int(array[0]) for array in arrays] == list(range(14))
    assert int(work.load()["points"]) == 99


def test_a_damaged_array_begins_anew(work):
    work.array("points", (5, 2), np.uint8)[:] = 7
    path = work.folder / "points.npy"
    for content in (b"", path.read_bytes()[:20], b"x" * 200):
        path.write_bytes(content)
        array = work.array("points", (5, 2), np.uint8)
        assert not np.any(array)
        array[:] = 7


def test_a_death_at_any_touch_of_the_disk_leaves_no_array_or_one_of_zeros(tmp_path, monkeypatch):
    originals = {name: getattr(os, name) for name in ("mkdir", "open", "fsync", "replace", "unlink", "posix_fallocate")}
    for n in itertools.count(1):
        work = FolderWork(tmp_path / str(n))
        count, dead = itertools.count(1), []

        def deadly(call, n=n, count=count, dead=dead):
            def wrapped(*args, **options):
                if dead or next(count) >= n:
                    dead.append(True)
                    raise Killed
                return call(*args, **options)

            return wrapped

        with monkeypatch.context() as patch:
            for name, call in originals.items():
                patch.setattr(os, name, deadly(call))
            with contextlib.suppress(Killed):
                work.array("points", (5, 2), np.uint8)
        array = work.array("points", (5, 2), np.uint8)
        assert array.shape == (5, 2)
        assert not np.any(array)
        if not dead:
            break
    assert n > 4


def test_an_array_that_the_disk_has_no_room_for_is_an_error_at_once_and_leaves_nothing(tmp_path):
    """Not a bus error when its rows are written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tiny disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        work = FolderWork(disk / "work")
        with pytest.raises(OSError, match="No space left on device"):
            work.array("points", (1000, 1000), np.uint8)
        assert list(work.folder.iterdir()) == []
        work.array("points", (100, 100), np.uint8)[:] = 1
        del work  # which holds the disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_python_objects_are_no_array(work):
    with pytest.raises(ValueError, match="Python objects"):
        work.array("points", (2,), object)
    assert not list(work.folder.glob("*"))


def test_a_save_has_what_was_written_into_arrays_before_it_on_the_disk(work, monkeypatch):
    told = []
    array = work.array("points", (5,), np.uint8)
    monkeypatch.setattr(type(array), "flush", lambda self: told.append("flush"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: told.append("replace") or replace(*paths))
    work.save(step=np.array(1))
    assert told == ["flush", "replace"]


# A fit ----------------------------------------------------------------------------------------------------------------

DATA = Measure.uniform(np.random.default_rng(1).standard_normal((3, 20, 1)))


def killed_after(steps, call):
    """Die after so many steps."""
    FATAL[:] = [steps]
    with pytest.raises(Killed):
        call()
    FATAL.clear()


def test_a_fit_that_is_killed_after_any_step_ends_with_the_same_bits_and_repeats_only_what_was_not_saved(tmp_path):
    whole = Walk().fit(DATA, np.random.default_rng(0)).theta
    for blocks, cut in [(1, 1), (1, 30), (1, STEPS - 1), (7, 3), (7, 28), (7, 34)]:
        MADE.clear()
        work = FolderWork(tmp_path / f"{blocks}-{cut}", every=0)

        def fit(blocks=blocks, work=work):
            return Walk(blocks).fit(DATA, np.random.default_rng(0), work)

        killed_after(cut, fit)
        assert fit().theta.tobytes() == whole.tobytes()
        made = [step for _, step in MADE]
        assert made == [*range(1, cut + 1), *range(cut // blocks * blocks + 1, STEPS + 1)]
        MADE.clear()
        assert fit().theta.tobytes() == whole.tobytes()
        assert len(MADE) == STEPS % blocks, "after its end it is there"


def test_a_fit_whose_save_is_damaged_begins_anew(work):
    whole = Walk().fit(DATA, np.random.default_rng(0), work).theta
    (path,) = work.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    MADE.clear()
    assert Walk().fit(DATA, np.random.default_rng(0), work).theta.tobytes() == whole.tobytes()
    assert len(MADE) == STEPS


def loop(mix, algorithm, work=None, history=(), generations=3):
    source = GaussianSource(mean=[0.0], cov=[[1.0]]).replicated(3, np.random.default_rng(0))
    streams = NamedStreams(0)
    real = mix.first(source, streams)
    return self_consume(source, real, algorithm, mix, generations, streams, history, work)


@pytest.mark.parametrize("warm", [None, 1.0])
def test_a_loop_goes_on_in_the_middle_of_the_fit_that_was_killed(work, warm):
    """Anew and tuned alike; the generations before come from the history."""
    mix = Mix(kind="augment", n_real=10, warm=warm)
    whole = list(loop(mix, Walk()))
    MADE.clear()
    past = list(loop(mix, Walk(), work, generations=1))
    killed_after(50, lambda: list(loop(mix, Walk(), work, past)))
    rest = list(loop(mix, Walk(), work, past))
    assert [step for _, step in MADE] == [*range(1, STEPS + 1)] * 3
    for mine, theirs in zip([*past, *rest], whole, strict=True):
        assert mine.model.theta.tobytes() == theirs.model.theta.tobytes()
        assert mine.drawn.points.tobytes() == theirs.drawn.points.tobytes()
    assert sorted(path.name for path in work.folder.iterdir()) == ["generation-1", "generation-2", "generation-3"]


@pytest.mark.parametrize("cut", [40, STEPS + 40])
def test_base_and_auxiliary_of_sims_save_themselves_apart(work, cut):
    sims = Sims(algorithm=Walk(), n_synthetic=10, budget=1.0, omega=1.0)
    whole = sims.fit(DATA, np.random.default_rng(0)).pair
    MADE.clear()
    killed_after(cut, lambda: sims.fit(DATA, np.random.default_rng(0), work))
    pair = sims.fit(DATA, np.random.default_rng(0), work).pair
    assert len(MADE) == len(set(MADE)) == 2 * STEPS, "no step of either is made twice"
    assert pair.base.theta.tobytes() == whole.base.theta.tobytes()
    assert pair.auxiliary.theta.tobytes() == whole.auxiliary.theta.tobytes()
    assert sorted(path.name for path in work.folder.iterdir()) == ["auxiliary", "base"]


# A run ----------------------------------------------------------------------------------------------------------------

BASE = f"""\
generations: 3
replicates: 4
chunk: 2
real: {{kind: gaussian, mean: [0], cov: [[1]]}}
mix: {{kind: augment, n_real: 10}}
algorithm: {{kind: '{__name__}:Walk', always: true, blocks: 10}}
track: {{mean_norm: }}
sweep:
  grid:
    mix.n_synthetic: [10, 20]
"""
ONE = ("sweep=", "replicates=2")


@dataclass
class Run:
    """An experiment that is run in this process, a commit a generation."""

    config: Path
    folder: Path

    def __call__(self, *overrides, repair=False, report=None):
        MADE.clear()
        source = read(self.config, overrides)
        points = load(source)
        with RunFolder(self.folder, source, points, repair) as folder:
            fanout.run(source, points, folder, seconds=0.0, report=report)
            folder.merge()
        return (self.folder / "generations.parquet").read_bytes()

    def killed_after(self, steps, *overrides):
        killed_after(steps, lambda: self(*overrides))

    @property
    def starts(self):
        """The first step of every fit since the last call, in order."""
        before = [("", STEPS), *MADE]
        return [step for (_, last), (_, step) in itertools.pairwise(before) if step != last + 1]

    @property
    def saved(self):
        """Loops and parts that have something saved: (point/chunk, generation)."""
        found = (self.folder / "work").glob("*/*/*/**/saved.npz")
        parts = [path.relative_to(self.folder / "work").parts for path in found]
        return sorted(("/".join(part[:2]), part[3]) for part in parts)


@pytest.fixture
def run(tmp_path):
    config = tmp_path / "experiment.yaml"
    config.write_text(BASE)
    return Run(config, tmp_path / "run")


@pytest.fixture
def whole(run, tmp_path):
    """The bytes of a run that nothing interrupted."""
    return lambda *overrides: Run(run.config, tmp_path / "whole")(*overrides)


@pytest.mark.parametrize("overrides", [ONE, ("generations=2",), (*ONE, "mix.warm=0.5")])
def test_a_run_that_is_killed_in_a_fit_goes_on_in_it_to_the_same_bytes(run, whole, overrides):
    expected = whole(*overrides)
    run.killed_after(STEPS + 50, *overrides)
    made = len(MADE)
    assert run(*overrides) == expected
    assert run.starts[0] == 51
    assert made + len(MADE) == len(fits(run, overrides)) * STEPS, "no step is made twice"
    assert run(*overrides) == expected
    assert MADE == []


def fits(run, overrides):
    """(point, chunk, generation) of everything that is fitted."""
    points = load(read(run.config, overrides))
    experiment = points[0].experiment
    return list(itertools.product(points, fanout.chunks(experiment), range(experiment.generations)))


def test_what_a_fit_saved_is_removed_when_its_generation_is_committed_and_all_of_it_at_the_end(run):
    seen = []
    run(report=lambda *_: seen.append(run.saved))  # a loop reports before its generation is committed
    assert len(seen) == 2 * 2 * 3
    assert all(len(parts) == 1 for parts in seen)
    assert [parts[0][1] for parts in seen] == [f"generation-{g}" for g in (1, 2, 3)] * 4
    assert not (run.folder / "work").exists()


def test_closed_forms_have_no_folder_of_work(run):
    made = []
    run("algorithm=gaussian", report=lambda *_: made.append((run.folder / "work").exists()))
    assert made == [False] * 12


def test_a_machine_without_the_run_folder_saves_nothing(run, whole, monkeypatch):
    expected = whole(*ONE)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    seen = []
    assert run(*ONE, report=lambda *_: seen.append((run.folder / "work").exists())) == expected
    assert seen == [False] * 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ONE, (*ONE, "generations=4")),
        (ONE, ("sweep=", "replicates=4", "generations=3")),
        (("replicates=2",), ("replicates=2", "sweep.grid.mix.n_synthetic=[10, 20, 5]")),
    ],
)
def test_what_is_under_way_is_kept_when_the_rest_grows(run, whole, before, after):
    expected = whole(*after)
    run.killed_after(50, *before)
    assert run(*after) == expected
    assert run.starts[0] == 51
    assert len(MADE) == len(fits(run, after)) * STEPS - 50


def test_no_other_fit_finds_what_one_saved(run, tmp_path):
    """Its place is named by point, chunk and every setting but those that may grow."""

    def places(*overrides):
        source = read(run.config, overrides)
        points = load(source)
        chunks = range(len(fanout.chunks(points[0].experiment)))
        with RunFolder(tmp_path / "-".join(["at", *overrides]), source, points) as folder:
            return [folder.places(point, chunk).work for point in points for chunk in chunks]

    here = places()
    assert len(set(here)) == 4
    assert places("generations=5", "name=other") == here
    assert set(here) < set(places("replicates=6"))
    for other in ("seed=1", "chunk=4", "mix.n_real=11", "algorithm.blocks=5", "sweep.independent=true"):
        assert set(places(other)).isdisjoint(here)


def test_a_fit_that_other_versions_began_begins_anew(run, whole, monkeypatch):
    expected = whole(*ONE)
    run.killed_after(50, *ONE)
    environment = results.environment()
    monkeypatch.setattr(results, "environment", lambda: environment | {"python": "4.0"})
    assert run(*ONE) == expected
    assert run.starts == [1, 1, 1]
    assert not (run.folder / "work").exists()


def test_a_loop_that_is_started_over_loads_nothing(run, whole):
    expected = whole(*ONE)
    run.killed_after(STEPS + 50, *ONE)
    assert [generation for _, generation in run.saved] == ["generation-2"]
    leftover = run.folder / "work" / run.saved[0][0] / "leftover"
    leftover.mkdir()
    (run.folder / "parts" / "000000.parquet").write_bytes(b"")
    seen = []
    assert run(*ONE, repair=True, report=lambda *_: seen.append(leftover.exists())) == expected
    assert seen == [False] * 3
    assert len(MADE) == 3 * STEPS


def test_a_repair_leaves_the_fits_of_sound_loops_alone(run, whole):
    """Two points; the first one finished, damaged; the second one in its fit of generation 2."""
    options = ("replicates=2",)
    expected = whole(*options)
    run.killed_after(4 * STEPS + 50, *options)
    assert [generation for _, generation in run.saved] == ["generation-2"]
    damaged = (run.folder / "parts" / "000001.parquet").read_bytes()
    (run.folder / "parts" / "000001.parquet").write_bytes(damaged[:-1])
    assert run(*options, repair=True) == expected
    assert run.starts == [1, 1, 1, 51, 1]


def test_a_whole_run_that_starts_over_loads_nothing_either(run, whole):
    expected = whole(*ONE)
    run.killed_after(50, *ONE)
    for name in results.STATES:
        (run.folder / name).write_bytes(b"")
    assert run(*ONE, repair=True) == expected
    assert len(MADE) == 3 * STEPS


def test_a_disk_that_is_full_ends_the_run_with_the_place_and_the_same_command_continues(run, whole, monkeypatch):
    save = FolderWork.save

    def full(self, **arrays):
        if arrays["step"] > 30:
            raise OSError(28, "No space left on device")
        save(self, **arrays)

    monkeypatch.setattr(FolderWork, "save", full)
    with pytest.raises(fanout.LoopError, match=r"No space left on device\n  at replicates 0 to 1, generation 1\n"):
        run(*ONE)
    monkeypatch.undo()
    assert run(*ONE) == whole(*ONE)


# What several loops share -----------------------------------------------------------------------------------------------

POLLUTED = (
    f"mix.pollution={{n: 5, algorithm: {{kind: '{__name__}:Walk', always: true, blocks: 10}}}}",
    "sweep={grid: {mix.pollution.n: [5, 8], algorithm.blocks: [10, 20]}}",
    "generations=1",
)


def test_the_model_that_pollutes_is_fitted_once_a_chunk_and_goes_on_where_it_was_killed(run, whole):
    """4 points, 2 chunks: 2 fits that pollute, whatever is polluted with how much of them, and 8 that are polluted."""
    expected = whole(*POLLUTED)
    fanout._start.cache_clear()
    run.killed_after(50, *POLLUTED)
    assert run(*POLLUTED) == expected
    assert run.starts[0] == 51
    assert len(MADE) == (2 + 8) * STEPS - 50
    assert not (run.folder / "work").exists()


def test_pollution_is_found_again_by_what_it_depends_on_alone(run, tmp_path):
    def places(*overrides):
        source = read(run.config, (POLLUTED[0], "sweep=", *overrides))
        points = load(source)
        with RunFolder(tmp_path / "-".join(["at", *overrides]).replace("/", "_"), source, points) as folder:
            return [folder.places(points[0], chunk).pollution for chunk in (0, 1)]

    here = places()
    assert len(set(here)) == 2
    for same in ("mix.pollution.n=9", "generations=5", "algorithm.blocks=7", "mix.n_synthetic=3"):
        assert places(same) == here
    for other in ("seed=1", "mix.n_real=11", "real.mean=[1]", "mix.pollution.algorithm.blocks=5"):
        assert set(places(other)).isdisjoint(here)
    source = read(run.config, ())
    with RunFolder(tmp_path / "clean", source, load(source)) as folder:
        assert folder.places(load(source)[0], 0).pollution is None


# Workers -----------------------------------------------------------------------------------------------------------------


def test_what_fits_in_workers_write_is_told_while_they_are_busy_and_no_older_word(run, monkeypatch):
    monkeypatch.setattr(fanout, "NOTICE_SECONDS", 0.005)
    source = read(run.config, ())
    points = load(source)
    told = []
    with RunFolder(run.folder, source, points) as folder:
        hand = [(0, 0), (0, 1)]
        deals = [fanout._deal(source, [points[:1]], hand, folder)]
        key = points[0].key
        old, new = (fanout._notice(task, key) for task in deals[0])
        old(("generation-1",), 1, 60)
        with fanout._heard(deals, lambda *words, **numbers: told.append((*words, numbers))):
            new(("generation-1", "base"), 7, 60, loss=0.5)
            deadline = time.monotonic() + 10
            while not told and time.monotonic() < deadline:
                time.sleep(0.005)
        new.every = 0.0
        new(("generation-1", "base"), 8, 60, loss=0.5)
        time.sleep(0.05)
    assert told == [(key, 1, ("generation-1", "base"), 7, 60, {"loss": 0.5})]


def test_a_worker_writes_down_how_far_its_fit_is(run):
    source = read(run.config, ONE)
    points = load(source)
    with RunFolder(run.folder, source, points) as folder:
        (task,) = fanout._deal(source, [points], [(0, 0)], folder)
        fanout.advance([task], 0.0, written=True)
        names, _, total, numbers = fanout._notice(task, points[0].key).read()
    assert (names, total, numbers) == (("generation-1",), STEPS, {"loss": 0.5})


# Kill -9 ---------------------------------------------------------------------------------------------------------------

SLOW = """
import os, time
import numpy as np
from dataclasses import dataclass
from selfloop.measure import Measure

@dataclass
class Cloud:
    theta: np.ndarray

    def sample(self, n, rng, labels=None, work=None):
        return Measure.uniform(self.theta[..., None, :] + rng.standard_normal((*self.theta.shape[:-1], n, 1)))

    def law(self):
        return None

    def state(self):
        return {"theta": self.theta}

class Slow:
    def fit(self, data, rng, work=None):
        saved = work.load() or {"theta": np.zeros((*data.batch, 1)), "step": 0}
        theta, seed = saved["theta"], int(rng.integers(2**32))
        for step in range(int(saved["step"]), 100):
            with open("steps", "a") as log:
                log.write(f"{seed} {step}\\n")
            noise = np.random.default_rng([seed, step]).standard_normal(theta.shape)
            theta = theta + 0.05 * (data.points.mean(axis=-2) - theta + noise)
            time.sleep(0.002)
            if step % 10 == 9:
                work.save(theta=theta, step=step + 1)
                work.report(step + 1, 100, loss=0.5)
        return Cloud(theta)

    def restore(self, state):
        return Cloud(state["theta"])
"""
SLOW_RUN = """\
generations: 2
replicates: 1
real: {kind: gaussian, mean: [0], cov: [[1]]}
mix: {kind: augment, n_real: 10}
algorithm: slow_walk:Slow
track: {mean_norm: }
"""


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """An empty folder with the experiment `slow.yaml` and its algorithm; (fit, step) of all steps made there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "slow_walk", raising=False)
    Path("slow_walk.py").write_text(SLOW)
    Path("slow.yaml").write_text(SLOW_RUN)
    importlib.invalidate_caches()
    yield lambda: [tuple(map(int, line.split())) for line in Path("steps").read_text().splitlines()]
    sys.modules.pop("slow_walk", None)


def invoke(*arguments):
    done = CliRunner().invoke(command.app, ["slow.yaml", "--workers", "1", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_kill_minus_nine_amid_a_fit_costs_the_steps_since_its_last_save(slow):
    line = [sys.executable, "-m", "selfloop.run", "slow.yaml", "--workers", "1"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not Path("steps").exists() or len(slow()) < 100 + 35:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = slow()
    fit, reached = before[-1]
    assert 30 <= reached < 99, "killed in the fit of generation 2"
    assert len(list(Path("runs/slow/work").glob("*/*/*/generation-2/saved.npz"))) == 1
    invoke()
    after = slow()[len(before) :]
    assert {name for name, _ in after} == {fit}, "generation 1 is not fitted again"
    assert [step for _, step in after] == list(range(after[0][1], 100))
    assert after[0][1] in (reached // 10 * 10, reached + 1)
    assert not Path("runs/slow/work").exists()
    invoke("--out", "whole")
    assert Path("runs/slow/generations.parquet").read_bytes() == Path("whole/generations.parquet").read_bytes()


def test_where_there_is_no_terminal_a_line_says_how_far_a_fit_is(slow, monkeypatch):
    monkeypatch.setattr(command, "LINE_SECONDS", -1.0)
    lines = invoke("sweep.grid={mix.n_synthetic: [10]}").splitlines()
    assert lines[1] == "0/2 generations, at generation 1, n_synthetic=10, fit 10/100, loss 0.5"
    assert re.fullmatch(r"0/2 generations, at generation 1, n_synthetic=10, fit 50/100, loss 0.5; 0:0\d left", lines[5])
    assert lines[21] == "1/2 generations, at generation 2, n_synthetic=10, fit 100/100, loss 0.5; 0:00 left"
    assert re.fullmatch(r"2/2 generations, at generation 2, n_synthetic=10; \S+/s, done in 0:0\d", lines[22])


# Divergence ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", ["sweep=", "sweep.grid.mix.n_synthetic={few: 10, many: 20}"])
def test_a_replicate_whose_training_diverged_is_reported_with_the_step(run, sweep, capsys):
    options = (sweep, "replicates=4", f"algorithm={{kind: '{__name__}:Walk', member: 1, at: 42}}")
    run(*options)
    table = load_generations(run.folder)
    marks = table[table["metric"].isin(["diverged", "diverged_step"])]
    loops = [] if sweep == "sweep=" else ["few", "many"]
    expected = [
        [1, 1, "diverged", 1.0],
        [3, 1, "diverged", 1.0],
        [1, 1, "diverged_step", 42.0],
        [3, 1, "diverged_step", 42.0],
    ]
    assert marks[["replicate", "generation", "metric", "value"]].to_numpy().tolist() == expected * max(len(loops), 1)
    others = table[~table["replicate"].isin([1, 3])]
    calm = Run(run.config, run.folder.with_name("calm"))
    calm(sweep, "replicates=4", f"algorithm={{kind: '{__name__}:Walk', member: 9, at: 42}}")
    there = load_generations(calm.folder)
    there = there[~there["replicate"].isin([1, 3])]
    assert others["value"].to_numpy().tobytes() == there["value"].to_numpy().tobytes(), "neighbours never notice"
    points = load(read(run.config, options))
    assert set(report.headline(table, points)["metric"]) == {"mean_norm"}
    report.show(points, table)
    told = " ".join(capsys.readouterr().out.split())
    where = "replicate 1 at generation 1" + (", n_synthetic = few" if loops else "") + ", its training at step 42"
    assert f"{2 * max(len(loops), 1)} of {4 * max(len(loops), 1)} loops diverged, the first {where}; the means are" in told
    assert "diverged_step" not in told


def test_a_replicate_that_diverges_without_a_failed_step_has_no_row_of_one(run):
    """`failed` of a model may be 0 for a replicate that is lost, and other models have none."""
    run("sweep=", "replicates=4", f"algorithm={{kind: '{__name__}:Silent', member: 1, at: 42}}")
    table = load_generations(run.folder)
    assert table[table["metric"] == "diverged"]["replicate"].tolist() == [1, 3]
    assert "diverged_step" not in set(table["metric"])


@dataclass
class Silent(Walk):
    """A walk whose models notice nothing."""

    def fit(self, data, rng, work=None):
        return Cloud(super().fit(data, rng, work).theta, np.zeros(data.batch, dtype=np.int64))
