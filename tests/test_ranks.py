"""Processes that compute together end with the bytes of one alone, and the first of them alone writes.

In most of these tests they are threads with ranks of their own, which meet at a barrier.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pixels
import pytest
from typer.testing import CliRunner

from selfloop import fanout, ranks
from selfloop import run as command
from selfloop.config import load
from selfloop.reading import read
from selfloop.results import RunFolder
from selfloop.work import FolderWork

RUN = """\
generations: 2
replicates: 2
chunk: 1
real: {kind: 'pixels:Pixels', path: images.npy}
mix: {kind: augment, n_real: 40, n_synthetic: 20}
algorithm: {kind: 'pixels:Counting'}
track:
  grey: {kind: 'pixels:Brightness'}
"""


class Together:
    """Threads of which each is a rank."""

    def __init__(self, world, monkeypatch):
        self.world, self.local, self.wait = world, threading.local(), threading.Barrier(world)
        self.given = {}
        monkeypatch.setattr(ranks, "rank", lambda: self.local.rank)
        monkeypatch.setattr(ranks, "world", lambda: world)
        monkeypatch.setattr(ranks, "summed", self.summed)

    def summed(self, array):
        self.given[self.local.rank] = array.copy()
        self.meet()
        array[...] = sum(self.given.values())
        self.meet()
        return array

    def meet(self):
        try:
            self.wait.wait(timeout=30)
        except threading.BrokenBarrierError as error:
            raise ranks.RankError("another has ended") from error

    def __call__(self, call):
        """call(rank) in each of them; what they return, or raise."""
        out = {}

        def process(rank):
            self.local.rank = rank
            try:
                out[rank] = call(rank)
            except BaseException as error:
                out[rank] = error
                self.wait.abort()

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [out[rank] for rank in range(self.world)]


@pytest.fixture
def together(monkeypatch):
    return Together(2, monkeypatch)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pixels.yaml").write_text(RUN)
    pixels.MADE.clear()
    pixels.FATAL.clear()
    pixels.Pixels("images.npy").replicated(1, np.random.default_rng(0))
    return Path("pixels.yaml")


@pytest.fixture
def alone(config):
    """The bytes of the run of one process."""
    found = run(config, Path("alone"))
    pixels.MADE.clear()
    return found


def run(config, folder, *overrides):
    source = read(config, overrides)
    points = load(source)
    with RunFolder(folder, source, points) as opened:
        fanout.run(source, points, opened)
        opened.merge()
    return (folder / "generations.parquet").read_bytes()


# One alone -------------------------------------------------------------------------------------------------------------


def test_a_process_without_others_is_the_first_of_one_and_imports_no_torch():
    code = (
        "import sys, numpy as np; from selfloop import ranks\n"
        "with ranks.joined(): ranks.barrier(); print(ranks.rank(), ranks.world(), ranks.agreed(True), ranks.agreed(False))\n"
        "print(ranks.summed(np.arange(3)).tolist(), 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "0 1 True False\n[0, 1, 2] False\n"


# Together ---------------------------------------------------------------------------------------------------------------


def test_the_first_one_decides_for_all(together):
    assert together(lambda rank: ranks.agreed(rank == 0)) == [True, True]
    assert together(lambda rank: ranks.agreed(rank == 1)) == [False, False]


def test_together_they_end_with_the_bytes_of_one_alone(alone, config, together):
    assert together(lambda rank: run(config, Path("run"))) == [alone, alone]
    assert not list(Path("run").rglob(".*.tmp"))
    assert not Path("run/work").exists()
    assert {path.name for path in Path("run").iterdir()} == {path.name for path in Path("alone").iterdir()}
    assert len(list(Path("run/snapshots").rglob("picture.txt"))) == 2 * 2


def test_a_run_that_grows_is_continued_together(alone, config, together):
    together(lambda rank: run(config, Path("run"), "generations=1"))
    assert together(lambda rank: run(config, Path("run"))) == [alone, alone]


def test_only_the_first_one_writes(together, tmp_path):
    work = FolderWork(tmp_path / "work", every=0)
    assert together(lambda rank: work.save(rank=np.array(rank))) == [None, None]
    assert [path.name for path in work.folder.iterdir()] == ["saved.npz"]
    assert [int(saved["rank"]) for saved in together(lambda rank: work.load())] == [0, 0]


def test_an_array_is_made_once_and_every_one_writes_its_rows(together, tmp_path):
    def share(rank):
        array = FolderWork(tmp_path / "work").array("points", (6, 2), np.uint8)
        array[rank::2] = rank + 1
        ranks.barrier()
        return np.array(array)

    for found in together(share):
        np.testing.assert_array_equal(found[:, 0], [1, 2] * 3)


@pytest.mark.parametrize("steps", [3, 25, 40, 61])
def test_killed_at_any_step_they_go_on_to_the_same_bytes(alone, config, together, monkeypatch, steps):
    """One dies at a step, and the others with it, wherever they are."""
    monkeypatch.setattr(pixels, "FATAL", [steps])
    dead = together(lambda rank: run(config, Path("run")))
    assert any(isinstance(error, pixels.Killed) for error in dead)
    assert all(isinstance(error, pixels.Killed | ranks.RankError | fanout.LoopError) for error in dead)
    pixels.FATAL.clear()
    together.wait.reset()
    assert together(lambda rank: run(config, Path("run"))) == [alone, alone]


def test_a_fault_of_one_ends_the_others(config, together):
    algorithm = "algorithm={kind: 'pixels:Counting', fails: 1}"
    other, own = together(lambda rank: run(config, Path("run"), algorithm))
    assert "ValueError: this rank has a fault" in str(own)
    assert "RankError" in f"{type(other).__name__} {other}"


@pytest.mark.parametrize("arguments", [("--workers", "2"), ("--backend", "dask")])
def test_workers_of_processes_that_compute_together_are_refused(config, monkeypatch, arguments):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = CliRunner().invoke(command.app, [str(config), *arguments])
    assert done.exit_code == 2
    told = (
        f"under torchrun 2 processes compute one loop together and have no workers; got {' '.join(arguments)}: say --workers 1"
    )
    assert told in done.stderr
    monkeypatch.setenv("RANK", "1")
    assert CliRunner().invoke(command.app, [str(config), *arguments]).stderr == "", "it is told once"


# Real processes ----------------------------------------------------------------------------------------------------------


def torchrun(*arguments):
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "selfloop.run"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*line, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.slow
def test_two_processes_of_torchrun_end_with_the_bytes_of_one_alone(alone, config):
    done = torchrun(config, "--workers", 1, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 generations in all, 2 processes") == 1, "one of them speaks"
    assert Path("run/generations.parquet").read_bytes() == alone


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_fault_of_one_process_of_torchrun_ends_the_run_and_is_told(config, rank):
    began = time.monotonic()
    done = torchrun(config, "--out", "run", f"algorithm={{kind: 'pixels:Counting', fails: {rank}}}")
    assert done.returncode == 1
    assert f"rank {rank}: ValueError: this rank has a fault" in done.stderr
    assert time.monotonic() - began < 60
