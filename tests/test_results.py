"""The run folder: whatever happens to a run, the same command ends with the same bytes, and nothing finished is lost."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pixels
import pytest

from selfloop import fanout, results
from selfloop.algorithms.gaussian import GaussianFit, GaussianModel
from selfloop.config import load
from selfloop.laws import Gaussian
from selfloop.reading import read
from selfloop.results import RunError, RunFolder, load_generations

BASE = """\
generations: 4
replicates: 4
chunk: 2
statistics: true
real: {kind: gaussian, mean: [0], cov: [[1]]}
mix: {kind: augment, n_real: 20}
algorithm:
  kind: sims
  n_synthetic: 20
  budget: 0.5
  algorithm: {kind: gaussian, sampler: {kind: ancestral, steps: 3}}
track: {w2: }
sweep:
  grid:
    mix.n_synthetic: [10, 20]
    algorithm.omega: [0, 1]
"""
ONE = ("sweep=", "replicates=2")
GENERATIONS = 4 * 2 * 4  # points, chunks, generations


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "experiment.yaml"
    file.write_text(BASE)
    return file


@dataclass
class Run:
    """An experiment that is run in this process into a folder; `made` is what was computed, loop by loop."""

    config: Path
    folder: Path
    made: list[tuple[str, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(self, *overrides, seconds=60.0, repair=False):
        self.made.clear()
        source = read(self.config, overrides)
        points = load(source)
        with RunFolder(self.folder, source, points, repair) as folder:
            self.notes = folder.notes
            fanout.run(source, points, folder, seconds=seconds, report=lambda *made: self.made.append(made))
            folder.merge()
        return self.bytes

    def refused(self, *overrides, **options):
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        with pytest.raises(RunError) as caught:
            self(*overrides, **options)
        after = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        assert after == before, "nothing is lost, nothing is written"
        assert self.made == []
        return str(caught.value)

    @property
    def bytes(self):
        return (self.folder / "generations.parquet").read_bytes()

    @property
    def table(self):
        return load_generations(self.folder)


@pytest.fixture
def run(config, tmp_path):
    return Run(config, tmp_path / "run")


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The bytes of an uninterrupted run, by its overrides."""
    done = {}

    def bytes_of(*overrides):
        if overrides not in done:
            done[overrides] = Run(config, tmp_path_factory.mktemp("whole") / "run")(*overrides)
        return done[overrides]

    return bytes_of


def command(run, *options, save_every=0):
    return [sys.executable, "-m", "selfloop.run", run.config, *options, "--out", run.folder, "--save-every", str(save_every)]


def commits(folder):
    return len(list((folder / "parts").glob("*.parquet"))) if (folder / "parts").exists() else 0


# Kills -----------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is dead: from here on nothing it does reaches the disk."""


@pytest.fixture
def kill(monkeypatch):
    """kill(n): die before the n-th time the disk is told to sync, to rename or to remove; calls counted."""

    def at(n):
        count = itertools.count(1)
        dead = []

        def deadly(call):
            def wrapped(*args, **options):
                if dead or next(count) >= n:
                    dead.append(True)
                    raise Killed
                return call(*args, **options)

            return wrapped

        for name in ("fsync", "replace", "unlink"):
            monkeypatch.setattr(os, name, deadly(originals[name]))
        return dead

    originals = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
    return at


def test_a_run_that_dies_at_any_touch_of_the_disk_continues_to_the_same_bytes(run, kill, whole, monkeypatch):
    expected = whole("generations=2", *ONE)
    for n in itertools.count(1):
        shutil.rmtree(run.folder, ignore_errors=True)
        with monkeypatch.context():
            dead = kill(n)
            try:
                run("generations=2", *ONE, seconds=0.0)
            except Killed:
                made = list(run.made)
            monkeypatch.undo()
        if not dead:
            break
        assert run("generations=2", *ONE) == expected, f"killed at touch {n}"
        assert len(run.made) + len(made) <= 2 + 1, "a kill loses the generation under way and no more"
    assert n > 40


@pytest.mark.parametrize(("after", "workers"), [(1, 1), (9, 1), (20, 1), (6, 2)])
def test_kill_minus_nine_of_the_process_group_loses_nothing_that_was_committed(run, whole, after, workers):
    long = "generations=12"
    process = subprocess.Popen(
        command(run, long, "--workers", str(workers)), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 60
    while commits(run.folder) < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "killed before its end"
    had = commits(run.folder)
    assert had >= after
    assert not (run.folder / "generations.parquet").exists()
    assert run(long) == whole(long)
    assert len(run.made) <= 12 * 8 - (after - 1), "what was committed is not computed again"


def test_a_continued_run_of_a_loop_that_remembers_all_its_past_ends_with_the_same_bytes(run, whole, kill, monkeypatch):
    for overrides in (
        ["mix.kind=accumulate"],
        ["statistics=false", "mix.kind=accumulate_subsample"],
        ["algorithm=gaussian", "mix.warm=0.5"],
    ):
        shutil.rmtree(run.folder, ignore_errors=True)
        options = (*overrides, "sweep=", "sweep.grid.mix.n_synthetic=[10]")
        kill(60)
        with pytest.raises(Killed):
            run(*options, seconds=0.0)
        monkeypatch.undo()
        assert 0 < len(run.made) < 8
        assert run(*options) == whole(*options)


def test_rounds_of_any_length_and_histories_of_any_size_give_the_same_bytes(run, whole, monkeypatch):
    monkeypatch.setattr(fanout, "HISTORY_BYTES", 1)
    monkeypatch.setattr(fanout, "UNITS_A_ROUND", 1)
    assert run(seconds=0.0) == whole()
    assert len(run.made) == GENERATIONS


# Growth ----------------------------------------------------------------------------------------------------------------


def kept(before, after):
    """Whether every row of one table is a row of the other."""
    keys = [name for name in before.columns if name != "value"]
    both = before.merge(after, on=keys, how="left", suffixes=("", "_after"))
    return len(both) == len(before) and bool((both["value"] == both["value_after"]).all())


@pytest.mark.parametrize(
    ("grown", "computed"),
    [
        (["generations=6"], 4 * 2 * 2),
        (["replicates=6"], 4 * 4),
        (["replicates=7"], 2 * 4 * 4),
        (["sweep.grid.algorithm.omega=[0, 1, 2]"], 2 * 2 * 4),
        (["sweep.grid.mix.n_synthetic=[5, 10, 20]"], 2 * 2 * 4),
        (["sweep.grid.algorithm.omega=[1, 0]"], 0),
        (["generations=5", "replicates=6", "sweep.grid.algorithm.omega=[0, 1, 2]"], 6 * 3 * 5 - GENERATIONS),
        (["name=other", "madness={metric: w2, tail: 2}"], 0),
    ],
)
def test_what_may_grow_grows_and_finished_rows_are_kept(run, whole, grown, computed):
    run()
    before = run.table
    assert run(*grown) == whole(*grown)
    assert len(run.made) == computed
    assert kept(before, run.table)


def test_zipped_values_grow_too(run, whole):
    axes = "sweep={{zip: [{{algorithm.omega: {}, algorithm.budget: {}}}]}}"
    run(axes.format([0, 1], [0.1, 0.2]))
    grown = axes.format([0, 1, 2], [0.1, 0.2, 0.3])
    assert run(grown) == whole(grown)
    assert len(run.made) == 2 * 4


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        (["generations=3"], "generations: the folder has 4, now 3"),
        (["replicates=3"], "replicates: the folder has 4, now 3"),
        (["chunk=4"], "chunk: the folder has 2, now 4"),
        (["chunk=4", "replicates=8"], "replicates: the folder has 4, now 8"),
        (["seed=1"], "seed: the folder has 0, now 1"),
        (["algorithm.budget=0.25"], "algorithm.budget: the folder has 0.5, now 0.25"),
        (["algorithm.algorithm.shrinkage=0.1"], "algorithm.algorithm.shrinkage: the folder has 0.0, now 0.1"),
        (["mix.n_real=30"], "mix.n_real: the folder has [20], now [30]"),
        (["track.mean_norm="], "track.mean_norm.every: the folder has none, now 1"),
        (["sweep.independent=true"], "sweep.independent: the folder has False, now True"),
        (["sweep.grid.algorithm.omega=[0, 2]"], "sweep: the folder has mix.n_synthetic = 10, algorithm.omega = 1 and"),
        (["sweep="], "and 2 more points, now gone"),
    ],
)
def test_any_other_change_is_refused_with_the_difference(run, changed, shown):
    run()
    told = run.refused(*changed)
    assert shown in told
    assert f"{run.folder} holds results of another configuration" in told
    assert told.endswith("choose another folder with --out")


def test_replicates_that_ended_amid_a_chunk_cannot_grow(run):
    run("replicates=3")
    assert "replicates: the folder has 3, now 5" in run.refused("replicates=5")


def test_a_label_whose_override_changed_is_refused(run):
    label = "sweep={{grid: {{algorithm.algorithm: {{a: {{shrinkage: {}}}, b: {{shrinkage: 0}}}}}}}}"
    run(label.format(0.1))
    told = run.refused(label.format(0.2))
    assert "algorithm.algorithm.shrinkage: the folder has 0.1, now 0.2, at algorithm.algorithm = a" in told


# Damage ----------------------------------------------------------------------------------------------------------------


def broken(path, how):
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "flipped": flipped(content)}[how])


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture
def two_parts(run):
    """A finished run of two parts: the second holds the last generation."""
    run("generations=3")
    run()
    return run


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "flipped"])
@pytest.mark.parametrize("name", ["state.json", "state.copy.json", "generations.parquet", "config.yaml", "environment.json"])
def test_what_can_be_made_again_is_made_again(two_parts, whole, name, how):
    config = (two_parts.folder / "config.yaml").read_bytes()
    broken(two_parts.folder / name, how)
    assert two_parts() == whole()
    assert two_parts.made == []
    assert (two_parts.folder / "config.yaml").read_bytes() == config
    told = {
        "state.json": "its copy is used, nothing is lost",
        "generations.parquet": "merged again from parts/, nothing is lost",
    }
    assert [told.get(name, "") in note for note in two_parts.notes] == [True] * (name in told)


@pytest.mark.parametrize("how", ["gone", "cut", "empty", "flipped"])
@pytest.mark.parametrize(
    ("name", "redone"), [("parts/000000.parquet", GENERATIONS), ("states/*-0001-000004*.npz", 16), ("states/first*", 0)]
)
def test_what_cannot_is_told_and_repair_redoes_that_and_no_more(two_parts, whole, name, redone, how):
    damaged = sorted((two_parts.folder).glob(name))
    assert damaged
    for path in damaged:
        broken(path, how)
    told = two_parts.refused()
    assert all(f"{path.relative_to(two_parts.folder)}" in told for path in damaged)
    assert "--repair" in told
    assert two_parts(repair=True) == whole()
    assert len(two_parts.made) == redone
    assert two_parts() == whole()


def test_one_damaged_part_of_many_costs_the_loops_in_it(run, whole):
    run(seconds=0.0)
    broken(sorted((run.folder / "parts").glob("*"))[5], "cut")
    assert "parts/000005.parquet" in run.refused()
    assert run(repair=True) == whole()
    assert len(run.made) == 4
    assert run("generations=5") == whole("generations=5")


def test_both_states_damaged_is_told_and_repair_starts_over(two_parts, whole):
    for name in ("state.json", "state.copy.json"):
        broken(two_parts.folder / name, "cut")
    told = two_parts.refused()
    assert "state.json and state.copy.json" in told
    assert "--repair to start the whole run over" in told
    assert two_parts(repair=True) == whole()
    assert len(two_parts.made) == GENERATIONS


def test_a_folder_without_its_states_or_of_something_else_is_left_alone(two_parts, config, tmp_path):
    for name in ("state.json", "state.copy.json"):
        (two_parts.folder / name).unlink()
    assert "no state.json: it is no run folder, or a damaged one" in two_parts.refused()
    other = tmp_path / "thesis"
    (other / "parts").mkdir(parents=True)
    (other / "parts" / "chapter").write_text("precious")
    assert f"{other} holds parts/ and no state.json" in Run(config, other).refused()
    assert sorted(path.name for path in other.rglob("*")) == ["chapter", "parts"]


def test_results_that_are_not_there_or_damaged_are_told(run):
    with pytest.raises(RunError, match="does not exist; run the experiment to its end first"):
        load_generations(run.folder)
    run(*ONE)
    broken(run.folder / "generations.parquet", "cut")
    with pytest.raises(RunError, match="is damaged"):
        load_generations(run.folder)


# Disks -----------------------------------------------------------------------------------------------------------------

REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another folder with --out",
    errno.EACCES: "permission denied; make it writable or choose another folder with --out",
    errno.EIO: "Input/output error; choose another folder with --out",
}


@pytest.mark.parametrize("code", REMEDIES)
@pytest.mark.parametrize("nth", [1, 12, 40])
def test_a_disk_that_fails_is_told_with_its_remedy_and_the_same_command_continues(run, whole, monkeypatch, code, nth):
    fsync, count = os.fsync, itertools.count(1)

    def failing(handle):
        if next(count) >= nth:
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RunError) as caught:
        run(seconds=0.0)
    monkeypatch.undo()
    assert REMEDIES[code] in str(caught.value)
    assert ("the same command continues" in str(caught.value)) == (nth > 1)
    before = len(run.made)
    assert run() == whole()
    assert before + len(run.made) <= GENERATIONS + 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_made_is_told(run, monkeypatch, code):
    def failing(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", failing)
    with pytest.raises(RunError) as caught:
        run()
    assert str(caught.value) == f"cannot open {run.folder}: {REMEDIES[code]}"


def test_a_file_in_the_place_of_the_folder_is_told(run):
    run.folder.write_text("precious")
    with pytest.raises(RunError, match=r"cannot open .*: File exists; choose another folder with --out"):
        run()
    assert run.folder.read_text() == "precious"


def test_a_limit_on_the_size_of_files_is_told_and_the_same_command_continues(run, whole):
    limit = 6_000

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(command(run, "--workers", "1"), preexec_fn=limited, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "a file grew beyond the limit set for this process; raise it. Finished work is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert commits(run.folder) > 0
    assert run() == whole()
    assert len(run.made) < GENERATIONS


def test_a_disk_that_is_really_full_is_told_and_the_same_command_continues(run, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tiny disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        run.folder = disk / "run"
        with pytest.raises(RunError, match="the disk is full; free some space"):
            run(seconds=0.0)
        done = len(run.made)
        assert done > 2
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        assert run() == whole()
        assert done + len(run.made) <= GENERATIONS + 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_second_process_in_the_folder_is_turned_away_and_the_first_one_goes_on(run, whole):
    first = subprocess.Popen(command(run, "generations=12"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while commits(run.folder) < 3:
        assert first.poll() is None
        time.sleep(0.01)
    with pytest.raises(
        RunError, match="is in use by another process; wait until it is done, or choose another folder with --out"
    ):
        run("generations=12")
    told, _ = first.communicate(timeout=60)
    assert first.returncode == 0, told
    assert run.bytes == whole("generations=12")


# Random numbers --------------------------------------------------------------------------------------------------------


def rows(table, **values):
    for path, value in values.items():
        table = table[table[path.replace("__", ".")] == value]
    return table.sort_values(["replicate", "generation", "metric"])["value"].to_numpy()


def test_points_share_random_numbers_unless_they_are_to_be_independent(run):
    run()
    shared = run.table
    first = {n: rows(shared[shared["generation"] == 1], mix__n_synthetic=n, algorithm__omega=0) for n in (10, 20)}
    np.testing.assert_array_equal(first[10], first[20])
    run.folder = run.folder.with_name("independent")
    run("sweep.independent=true")
    apart = run.table
    first = {n: rows(apart[apart["generation"] == 1], mix__n_synthetic=n, algorithm__omega=0) for n in (10, 20)}
    assert (first[10] != first[20]).all()
    grown = Run(run.config, run.folder.with_name("grown"))
    grown("sweep.independent=true", "sweep.grid.mix.n_synthetic=[5, 10, 20]")
    assert kept(apart, grown.table), "a point's numbers are its own, whatever else is swept"


def test_chunks_are_independent(run):
    run(*ONE, "replicates=4")
    table = run.table
    assert len(set(table[table["generation"] == 1]["value"])) == 4


@pytest.fixture
def fits(monkeypatch):
    calls = []
    fit = GaussianFit.fit
    monkeypatch.setattr(GaussianFit, "fit", lambda self, data, rng, work=None: calls.append(data) or fit(self, data, rng, work))
    return calls


def test_points_that_differ_in_omega_alone_share_their_first_fit_bit_for_bit(run, fits, monkeypatch):
    run("generations=1")
    assert len(fits) == 2 * 2 * 2, "chunks, values of n_synthetic, base and auxiliary"
    shared = run.table
    fits.clear()
    monkeypatch.setattr(fanout, "Shared", lambda algorithm, data, state: Unshared(algorithm))
    alone = Run(run.config, run.folder.with_name("alone"))
    alone("generations=1")
    assert len(fits) == 2 * 2 * 2 * 2, "and of omega"
    pd.testing.assert_frame_equal(alone.table, shared)


class Unshared:
    """An algorithm that makes every fit anew."""

    state = None

    def __init__(self, algorithm):
        self.algorithm = algorithm

    def __getattr__(self, name):
        return getattr(self.algorithm, name)


def test_a_value_added_later_uses_the_fits_that_are_there(run, fits, whole):
    run("generations=1")
    fits.clear()
    run("generations=1", "sweep.grid.algorithm.omega=[0, 1, 2]")
    assert len(fits) == 0
    assert run.bytes == whole("generations=1", "sweep.grid.algorithm.omega=[0, 1, 2]")


# Divergence ------------------------------------------------------------------------------------------------------------


class Exploding:
    """A Gaussian fit; the covariance of one replicate grows by a factor in every fit."""

    gives = frozenset({"law", "draw"})

    def __init__(self, member, factor=1e100):
        self.member, self.factor = member, factor

    def fit(self, data, rng, work=None):
        law = GaussianFit().fit(data, rng).law()
        factor = np.where(np.arange(law.cov.shape[0]) == self.member, self.factor, 1.0)
        return GaussianModel(Gaussian(law.mean, law.cov * factor[:, None, None]), GaussianFit().sampler)

    def restore(self, state):
        return GaussianFit().restore(state)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_replicate_that_diverges_is_recorded_and_its_neighbours_never_notice(run):
    options = ("sweep=", "mix.kind=fully_synthetic", "generations=6", "replicates=3", "chunk=3")
    run(*options, f"algorithm={{kind: '{__name__}:Exploding', member: 1}}")
    wild = run.table
    calm = Run(run.config, run.folder.with_name("calm"))
    calm(*options, f"algorithm={{kind: '{__name__}:Exploding', member: 9}}")
    lost = wild[wild["metric"] == "diverged"]
    assert lost[["replicate", "value"]].to_numpy().tolist() == [[1, 1.0]]
    generation = int(lost["generation"].iloc[0])
    assert 1 < generation < 6
    of_it = wild[(wild["metric"] == "w2") & (wild["replicate"] == 1)]
    assert of_it["generation"].max() == generation - 1, "no value after it has diverged, neither NaN nor another's"
    for replicate in (0, 2):
        np.testing.assert_array_equal(
            rows(wild, metric="w2", replicate=replicate), rows(calm.table, metric="w2", replicate=replicate)
        )


# What is written -------------------------------------------------------------------------------------------------------


def test_the_table_has_a_column_for_each_swept_path_and_is_sorted(run):
    run("sweep.grid.algorithm.omega={low: 0, high: 1}")
    table = run.table
    assert list(table.columns) == ["mix.n_synthetic", "algorithm.omega", "replicate", "generation", "metric", "value"]
    assert table["mix.n_synthetic"].unique().tolist() == [10, 20]
    assert [str(label) for label in table["algorithm.omega"].unique()] == ["low", "high"]
    order = table[["mix.n_synthetic", "generation", "replicate"]].to_numpy()[table["algorithm.omega"] == "low"].tolist()
    assert order == sorted(order)
    assert len(table) == 4 * 4 * 4


def test_the_resolved_configuration_runs_to_the_same_rows(run, tmp_path):
    run()
    again = Run(run.folder / "config.yaml", tmp_path / "again")
    assert again() == run.bytes


def test_the_environment_is_written_down_and_a_change_of_it_noted(run):
    run(*ONE)
    path = run.folder / "environment.json"
    entries = json.loads(path.read_text())
    assert entries[0]["packages"]["numpy"] == np.__version__
    entries[0]["packages"]["numpy"] = "1.0"
    path.write_text(json.dumps(entries))
    run(*ONE)
    assert ["other package versions" in note for note in run.notes] == [True]
    run(*ONE)
    assert run.notes == []
    assert len(json.loads(path.read_text())) == 2


def test_a_folder_without_finished_work_binds_nobody(tmp_path, config):
    """A configuration that fails in its first fit can be corrected and run again in the same folder."""
    run = Run(config, tmp_path / "run")
    source = read(config, ONE)
    with RunFolder(run.folder, source, load(source)):
        pass
    run(*ONE, "mix.n_real=30")
    run.refused(*ONE, "mix.n_real=40")


# Images ----------------------------------------------------------------------------------------------------------------

PIXELS = """\
generations: 3
replicates: 2
chunk: 1
real: {kind: 'pixels:Pixels', path: %s}
mix: {kind: accumulate, n_real: 40, n_synthetic: 20}
algorithm: {kind: 'pixels:Counting'}
track: {grey: {kind: 'pixels:Brightness'}}
"""


@pytest.fixture
def seen(tmp_path):
    """A run on images; images.npy holds them."""
    pixels.MADE.clear()
    file = tmp_path / "images.yaml"
    file.write_text(PIXELS % (tmp_path / "images.npy"))
    return Run(file, tmp_path / "run")


def test_values_of_unbatched_data_are_those_of_the_one_replicate_of_a_chunk(seen):
    seen()
    grey = seen.table[seen.table["metric"] == "grey"]
    assert grey[["generation", "replicate"]].to_numpy().tolist() == [[g, r] for g in (1, 2, 3) for r in (0, 1)]
    assert grey["value"].nunique() == 6
    assert (
        seen.table[seen.table["metric"] == "grey_real"]["value"] == np.load(seen.config.with_name("images.npy")).mean()
    ).all()


def test_samples_of_gigabytes_have_files_of_their_own_that_are_mapped_and_end_with_the_same_bytes(seen, monkeypatch):
    expected = seen()
    monkeypatch.setattr(results, "LARGE", 1)
    large = Run(seen.config, seen.folder.with_name("large"))
    large("generations=2")
    assert len(list((large.folder / "states").glob("*-points.npy"))) == 2 * 2
    source = read(seen.config, ["generations=2"])
    points = load(source)
    with RunFolder(large.folder, source, points) as folder:
        history = folder.history(points[0], 1)
        assert [int(saved["index"]) for saved in history] == [1, 2]
        assert all(isinstance(saved["points"], np.memmap) for saved in history)
        assert folder.history_bytes(points[0], 1) > 2 * 20 * 16
    assert large() == expected
    path = next((large.folder / "states").glob("*-points.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert path.name in large.refused()
    assert large(repair=True) == expected
    assert len(large.made) == 3


@pytest.mark.parametrize("large", [1, 2**24])
def test_a_run_on_images_that_dies_at_any_step_of_a_fit_a_sample_or_a_metric_ends_with_the_same_bytes(seen, monkeypatch, large):
    """Steps are repeated only where they were not stored: each row of a sample is made once, all of a fit that is cut again."""
    one = ("replicates=1", "generations=2")
    expected = seen(*one)
    total = len(pixels.MADE)
    monkeypatch.setattr(results, "LARGE", large)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    for n in range(1, total, 13):
        shutil.rmtree(seen.folder)
        pixels.MADE.clear()
        monkeypatch.setattr(pixels, "FATAL", [n])
        with pytest.raises(pixels.Killed):
            seen(*one, seconds=0.0)
        monkeypatch.setattr(pixels, "FATAL", [])
        assert len(pixels.MADE) == n
        assert seen(*one) == expected
        assert total <= len(pixels.MADE) < total + pixels.STEPS, f"killed at step {n}"
        assert not (seen.folder / "work").exists()


def test_a_run_on_images_that_dies_at_any_touch_of_the_disk_continues_to_the_same_bytes(seen, kill, monkeypatch):
    one = ("replicates=1", "generations=1")
    expected = seen(*one)
    monkeypatch.setattr(results, "LARGE", 1)
    for n in itertools.count(1, 7):
        shutil.rmtree(seen.folder, ignore_errors=True)
        with monkeypatch.context():
            dead = kill(n)
            with contextlib.suppress(Killed):
                seen(*one)
            monkeypatch.undo()
        monkeypatch.setattr(results, "LARGE", 1)
        if not dead:
            break
        assert seen(*one) == expected, f"killed at touch {n}"
        assert not list(seen.folder.rglob(".*.tmp"))
    assert n > 30


def test_snapshots_and_what_trackers_keep_outlast_the_run_and_its_growth(seen):
    seen("generations=1")
    pictures = sorted((seen.folder / "snapshots").rglob("picture.txt"))
    assert [path.parts[-3:-1] for path in pictures] == [("0", "generation-1"), ("1", "generation-1")]
    kept = seen.folder / "kept" / "brightness" / "saved.npz"
    before = kept.stat().st_mtime_ns
    seen("generations=2")
    assert sorted((seen.folder / "snapshots").rglob("picture.txt"))[::2] == pictures
    assert kept.stat().st_mtime_ns == before, "made once a run"
    shutil.rmtree(seen.folder / "kept")
    shutil.rmtree(seen.folder / "snapshots")
    seen()
    assert kept.exists(), "and made again where it is lost"


@pytest.mark.parametrize(("override", "found"), [("generations=4", True), ("mix.n_real=30", False)])
def test_a_configuration_that_is_corrected_before_anything_counts_finds_nothing_that_another_kept(
    seen, monkeypatch, override, found
):
    monkeypatch.setattr(pixels, "FATAL", [40])  # while generation 1 is looked at
    with pytest.raises(pixels.Killed):
        seen()
    monkeypatch.setattr(pixels, "FATAL", [])
    marks = [seen.folder / place / "mark" for place in ("kept", "snapshots")]
    for mark in marks:
        mark.write_text("")
    seen(override)
    assert [mark.exists() for mark in marks] == [found, found]


def test_a_loop_that_starts_over_drops_its_snapshots_and_no_others(seen):
    seen()
    pictures = sorted((seen.folder / "snapshots").rglob("picture.txt"))
    marks = [path.with_name("mark") for path in pictures if path.parts[-2] == "generation-1"]
    for mark in marks:
        mark.write_text("")
    broken(sorted((seen.folder / "states").glob("*-0001-*"))[0], "cut")
    seen(repair=True)
    assert [mark.exists() for mark in marks] == [True, False]
    assert sorted((seen.folder / "snapshots").rglob("picture.txt")) == pictures


def test_real_data_from_files_is_named_and_a_change_of_it_refused(seen, tmp_path):
    seen()
    (entry,) = json.loads((seen.folder / "data.json").read_text())
    images = tmp_path / "images.npy"
    assert entry["path"] == str(images)
    assert (entry["images"], entry["classes"]) == (80, 2)
    content = images.read_bytes()
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = hashlib.sha256(images.read_bytes()).hexdigest()
    assert f"data.sha256: the folder has '{entry['sha256']}', now '{changed}'" in seen.refused()
    images.write_bytes(content)
    seen("generations=4")
    assert len(seen.made) == 2


def test_data_of_several_points_are_named_once_each(seen, tmp_path):
    seen(
        "replicates=1",
        "generations=1",
        f"sweep={{grid: {{real: {{a: {{seed: 0}}, b: {{seed: 1, path: {tmp_path / 'other.npy'}}}}}, mix.n_real: [40, 50]}}}}",
    )
    entries = json.loads((seen.folder / "data.json").read_text())
    assert [Path(entry["path"]).name for entry in entries] == ["images.npy", "other.npy"]


def test_data_that_cannot_be_read_are_an_error_and_the_folder_stays_as_it_is(seen):
    seen("generations=1")
    seen.config.write_text(PIXELS % (seen.config.parent / "gone" / "images.npy"))
    told = seen.refused("generations=1")
    assert told.startswith("the real data cannot be read: ")
    assert "No such file or directory" in told


def test_laws_have_no_file_of_data(run):
    run(*ONE)
    assert not (run.folder / "data.json").exists()


def test_what_a_killed_save_left_is_swept_when_the_run_goes_on(seen):
    seen("generations=1")
    left = [seen.folder / place / ".ab.tmp" for place in ("kept/brightness", "snapshots")]
    for path in left:
        path.write_text("")
    seen()
    assert not any(path.exists() for path in left)
