"""The command line: what it prints, what it imports, how it stops, and that a cluster gives the same bytes as one core."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from selfloop import fanout, report
from selfloop import run as command
from selfloop.config import load
from selfloop.reading import read
from selfloop.results import load_generations
from selfloop.run import app

BASE = """\
generations: 3
replicates: 4
chunk: 2
real: {kind: gaussian, mean: [0, 0], cov: [[1, 0], [0, 1]]}
mix: {kind: augment, n_real: 20}
algorithm: gaussian
track:
  w2:
  w2_empirical: {n: 20, every: 3}
sweep:
  grid:
    mix.n_synthetic: [10, 20]
"""
LIGHT = "track={w2: }"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "tiny.yaml"
    file.write_text(BASE)
    return file


def invoke(*arguments):
    """The command in this process; its output and its exit code."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def execute(*arguments, python=(), **options):
    """The command in a process of its own."""
    line = [sys.executable, *python, "-m", "selfloop.run", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)


def start(*arguments):
    line = [sys.executable, "-m", "selfloop.run", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def wait_for_commits(folder, n, process):
    deadline = time.monotonic() + 60
    while len(list((folder / "parts").glob("*.parquet"))) < n:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


# What it prints --------------------------------------------------------------------------------------------------------


def test_a_run_says_what_it_does_what_it_found_and_where_the_results_are(config):
    done = invoke(config, "--workers", 1)
    assert done.exit_code == 0, done.output
    lines = done.stdout.split("\n")
    assert lines[0] == "2 sweep points, 12 generations in all, 1 process"
    assert re.match(r"12/12 generations, at generation 3, n_synthetic=20; \S+/s, done in 0:\d\d", lines[1])
    assert "tiny: mean over replicates ± standard error" in done.stdout
    rows = re.findall(r"^ +(10|20) +(\S+) +(\S+ ± \S+) +(\S+ ± \S+) +3 *$", done.stdout, re.MULTILINE)
    assert [row[:2] for row in rows] == [(n, metric) for n in ("10", "20") for metric in ("w2", "w2_empirical", "w2_floor")]
    table = load_generations(Path("runs/tiny"))
    last = table[(table["mix.n_synthetic"] == 20) & (table["metric"] == "w2") & (table["generation"] == 3)]["value"]
    assert rows[3][3] == report.figure(last.mean(), last.std() / 2)
    assert re.search(r"\d\.\d s; results: runs/tiny/generations.parquet$", done.stdout.strip())


def test_a_finished_run_is_shown_again_and_not_made_again(config):
    first = invoke(config, "--workers", 1)
    again = invoke(config, "--workers", 1)
    assert "12 generations in all, 12 done before, 1 process" in again.stdout
    table = first.stdout[first.stdout.index("tiny:") : first.stdout.index("results")]
    assert table.split("\n")[:-1] == again.stdout[again.stdout.index("tiny:") : again.stdout.index("results")].split("\n")[:-1]


def test_a_run_that_grows_counts_what_was_there(config):
    invoke(config, "--workers", 1)
    grown = invoke(config, "generations=5", "--workers", 1)
    assert "20 generations in all, 12 done before" in grown.stdout
    assert "20/20 generations" in grown.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["seeed=1"], "command line: seeed: must be one of"),
        (["generations=0"], "command line: generations: must be >= 1; got 0"),
        (["--backend", "spark"], "--backend must be one of loky, dask, ray; got 'spark'"),
        (
            ["--scheduler", "tcp://here:1"],
            "--scheduler belongs to --backend dask or ray, and the backend is loky; got 'tcp://here:1'",
        ),
        (["--backend", "dask", "--scheduler", "here"], "no dask scheduler answers at 'here' (missing port"),
        (["--workers", "0"], "Invalid value for '--workers'"),
        (["--nonsense"], "No such option"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(config, arguments, told):
    done = invoke(config, *arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.output
    assert [path.name for path in config.parent.iterdir()] == ["tiny.yaml"]


def test_a_command_without_an_experiment_names_one():
    done = invoke()
    assert done.exit_code == 2
    assert done.stderr == "name an experiment: python -m selfloop.run experiments/gaussian2d.yaml\n"


@pytest.mark.parametrize(
    ("backend", "package", "installed"), [("dask", "distributed", "dask[distributed]"), ("ray", "ray", "ray[default]")]
)
def test_a_backend_whose_package_is_missing_is_told_with_the_command_that_installs_it(
    config, monkeypatch, backend, package, installed
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    done = invoke(config, "--backend", backend)
    assert done.exit_code == 2
    assert done.stderr == (
        f"--backend {backend} needs the package {package}, which is not installed; run: pip install '{installed}'\n"
    )
    assert not Path("runs").exists()


def test_a_folder_of_another_configuration_is_an_error_of_its_own(config):
    invoke(config, "--workers", 1)
    done = invoke(config, "seed=1", "--workers", 1)
    assert done.exit_code == 1
    assert "  seed: the folder has 0, now 1\n" in done.stderr


def test_notes_of_the_run_folder_are_printed(config):
    invoke(config, "--workers", 1)
    Path("runs/tiny/generations.parquet").unlink()
    done = invoke(config, "--workers", 1)
    assert done.stdout.startswith("note: generations.parquet is missing or damaged; it is merged again from parts/")


# Terminals -------------------------------------------------------------------------------------------------------------


def test_on_a_terminal_a_bar_of_eighty_columns_shows_generation_point_rate_and_time_left(config):
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    line = [sys.executable, "-m", "selfloop.run", config, "generations=9", LIGHT, "--workers", "1", "--save-every", "0"]
    process = subprocess.Popen(line, stdout=child, stderr=child, env=environment)
    os.close(child)
    output = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    assert process.wait(timeout=60) == 0
    os.close(parent)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode())
    frames = [frame for frame in re.split(r"[\r\n]+", plain) if "left" in frame and "/36" in frame]
    assert len(frames) > 1
    assert all(len(frame) <= 80 for frame in frames)
    assert re.match(r"generation 9, n_synthetic=20 +━+ 36/36 \S+/s \S+ left$", frames[-1])


@pytest.fixture
def course(config, tmp_path, monkeypatch):
    """The course of 2 points, 2 chunks of one replicate, 3 generations; its clock; what it prints line by line."""
    points = load(read(config, ["replicates=2", "chunk=1"]))
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    folder = SimpleNamespace(progress=lambda point, chunk: SimpleNamespace(done=0))
    return command.Course(points, folder, 1), [point.key for point in points], now


def test_a_line_in_five_seconds_says_of_every_fit_its_point_replicate_generation_part_and_time_left(course, capsys):
    course, (first, second), now = course
    for now[0] in range(0, 121, 2):
        course.fit(first, 0, ("generation-1", "base"), 100 * int(now[0]), 50_000, loss=0.5, images_per_second=512.4)
        course.fit(second, 1, ("pollution", "fit"), int(now[0]), 120)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * 20
    assert lines[0] == (
        "0/12 generations, at generation 1, n_synthetic=10, replicate 0, base 600/50000, loss 0.5, 512 images/s; 8:14 left"
    )
    assert lines[-1] == "0/12 generations, at generation 1, n_synthetic=20, replicate 1, pollution fit 120/120; 0:00 left"


def test_the_time_left_of_a_part_is_counted_from_where_this_run_found_it_and_anew_for_the_next(course, capsys):
    course, (first, _), now = course
    told = [(10, ("a",), 900), (20, ("a",), 910), (30, ("b",), 1), (40, ("b",), 11), (50, ("b",), 0), (60, ("b",), 2)]
    for now[0], names, done in told:
        course.fit(first, 0, names, done, 1000)
    left = [line.partition("; ")[2] for line in capsys.readouterr().out.splitlines()]
    assert left == ["", "1:30 left", "", "16:29 left", "", "1:23:10 left"]


def test_a_generation_that_is_done_ends_its_fit(course, capsys):
    course, (first, _), now = course
    course.fit(first, 0, ("generation-1",), 5, 10)
    now[0] = 10.0
    course(first, 0, 1)
    now[0] = 20.0
    course.fit(first, 0, ("generation-2",), 5, 10)
    assert capsys.readouterr().out.splitlines() == [
        "1/12 generations, at generation 1, n_synthetic=10; 0.1/s, 1:50 left",
        "1/12 generations, at generation 2, n_synthetic=10, replicate 0, fit 5/10",
    ]


def test_on_a_terminal_every_fit_under_way_has_a_bar_of_its_own(course, monkeypatch):
    course, (first, second), now = course
    course.bar = course._bar()
    course.bar.disable = True
    with course:
        course.fit(first, 0, ("generation-1", "base"), 10, 50, loss=0.25)
        course.fit(second, 1, ("generation-1",), 1, 8)
        now[0] = 5.0
        course.fit(first, 0, ("generation-1", "auxiliary"), 3, 5)
        shown = [(task.description, task.completed, task.total) for task in course.bar.tasks]
        assert shown == [
            ("starting", 0, 12),
            ("  auxiliary, generation 1, n_synthetic=10, replicate 0", 3, 5),
            ("  fit, generation 1, n_synthetic=20, replicate 1", 1, 8),
        ]
        course(first, 0, 1)
        assert course.bar.tasks[0].description == "generation 1, n_synthetic=10"
        assert len(course.bar.tasks) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (100_000, "27:46:40"), (None, "?:??")],
)
def test_a_duration_has_hours_where_it_lasts_hours(seconds, text):
    assert command.duration(seconds) == text


# What it imports -------------------------------------------------------------------------------------------------------


def imported(done):
    return {line.split("|")[-1].strip() for line in done.stderr.split("\n") if line.startswith("import time:")}


def test_help_imports_nothing_heavy():
    done = execute("--help", python=["-X", "importtime"])
    assert done.returncode == 0
    assert "--workers" in done.stdout
    heavy = {"numpy", "pandas", "pydantic", "pyarrow", "scipy", "yaml", "selfloop.config"}
    assert imported(done) & heavy == set()


def test_a_gaussian_experiment_with_exact_transport_imports_no_array_library_but_numpy(config, tmp_path):
    for name in ("torch", "jax", "tensorflow", "cupy"):
        (tmp_path / "fake" / name).mkdir(parents=True)
        (tmp_path / "fake" / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "fake")}
    done = execute(config, "--workers", 1, env=environment)
    assert done.returncode == 0, done.stderr
    assert "w2_empirical" in done.stdout


# Classes of one's own --------------------------------------------------------------------------------------------------

MINE = '''
from dataclasses import dataclass
import numpy as np
from selfloop.measure import Measure

class Bootstrap:
    """The data itself, drawn with replacement, with a little noise: the whole of an algorithm."""

    def __init__(self, noise=0.1):
        self.noise = noise

    def fit(self, data, rng, work=None):
        return Cloud(np.asarray(data.points), self.noise)

    def restore(self, state):
        return Cloud(state["points"], self.noise)

@dataclass
class Jitter(Bootstrap):
    noise: float = 0.1

@dataclass
class Cloud:
    points: np.ndarray
    noise: float

    def sample(self, n, rng, labels=None, work=None):
        batch, m, d = self.points.shape
        rows = rng.integers(m, size=(batch, n, 1))
        drawn = np.take_along_axis(self.points, rows, axis=1) + self.noise * rng.standard_normal((batch, n, d))
        return Measure(drawn, np.full((batch, n), 1 / n))

    def law(self):
        return None

    def state(self):
        return {"points": self.points}

class Failing(Bootstrap):
    def fit(self, data, rng, work=None):
        raise KeyError("no such thing")
'''


@pytest.mark.parametrize("name", ["Bootstrap", "Jitter"])
def test_an_algorithm_of_ones_own_in_the_current_folder_runs_under_the_same_driver(config, name):
    Path("my_module.py").write_text(MINE)
    config.write_text(
        BASE.replace("algorithm: gaussian", f"algorithm:\n  kind: my_module:{name}\n  noise: 0.2").replace("  w2:\n", "")
    )
    done = execute(config, "sweep.grid={algorithm.noise: [0.1, 0.2]}", "--workers", 1 if name == "Jitter" else 2)
    assert done.returncode == 0, done.stderr
    table = load_generations(Path("runs/tiny"))
    last = table[(table["generation"] == 3) & (table["metric"] == "w2_empirical")].groupby("algorithm.noise")["value"].mean()
    assert last.notna().all()
    assert last[0.1] != last[0.2]


def test_results_of_old_code_and_of_new_do_not_mix(config):
    """A class of one's own is part of the configuration: its source may not change under a run folder."""
    Path("my_module.py").write_text(MINE)
    config.write_text(
        BASE.replace("algorithm: gaussian", "algorithm:\n  kind: my_module:Jitter\n  noise: 0.2").replace("  w2:\n", "")
    )
    assert execute(config, "--workers", 1).returncode == 0
    Path("my_module.py").write_text(MINE + "\n# another line\n")
    done = execute(config, "--workers", 1)
    assert done.returncode == 1
    assert "code of my_module:Jitter: the folder has" in done.stderr


def test_the_code_of_a_curator_in_a_list_counts_too(config):
    """It stands in a list of the configuration and not at a key of its own."""
    judge = "from selfloop.curate.select import Truncate\n\nclass Judge(Truncate):\n    pass\n"
    Path("my_module.py").write_text(judge)
    curated = ("mix.curators=[{kind: 'my_module:Judge', radius: 3.0}]", "statistics=false")
    assert execute(config, *curated, "--workers", 1).returncode == 0
    Path("my_module.py").write_text(judge + "\n# another line\n")
    done = execute(config, *curated, "--workers", 1)
    assert done.returncode == 1
    assert "code of my_module:Judge: the folder has" in done.stderr


def test_an_algorithm_that_fails_is_told_with_the_loop_and_the_line_and_without_a_traceback(config):
    Path("my_module.py").write_text(MINE)
    config.write_text(BASE.replace("algorithm: gaussian", "algorithm: my_module:Failing").replace("  w2:\n", ""))
    line = MINE.split("\n").index('        raise KeyError("no such thing")') + 1
    done = execute(config, "--workers", 1)
    assert done.returncode == 1
    assert done.stderr == textwrap.dedent(f"""\
        KeyError: 'no such thing'
          at mix.n_synthetic = 10, replicates 0 to 1, generation 1
          in {config.parent}/my_module.py:{line}, fit
        finished work is in runs/tiny; with the cause removed, the same command continues
    """)


# Stopping --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_run_that_is_told_to_stop_says_so_and_the_same_command_continues(config, sent, workers):
    arguments = (config, "generations=30", LIGHT, "--save-every", 0, "--workers", workers)
    process = start(*arguments)
    wait_for_commits(Path("runs/tiny"), 4, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, sent)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130, told
    assert told.endswith("stopped; finished work is in runs/tiny, the same command continues\n")
    assert "Traceback" not in told
    assert_gone(family)
    assert not Path("runs/tiny/generations.parquet").exists()
    assert invoke(config, "generations=30", LIGHT, "--workers", 1).exit_code == 0
    assert invoke(config, "generations=30", LIGHT, "--workers", 1, "--out", "whole").exit_code == 0
    assert Path("runs/tiny/generations.parquet").read_bytes() == Path("whole/generations.parquet").read_bytes()


def assert_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=15)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert alive == [], "no process is left behind"


def test_a_killed_worker_ends_the_run_with_a_message(config):
    process = start(config, "generations=400", LIGHT, "--save-every", 0, "--workers", 2)
    wait_for_commits(Path("runs/tiny"), 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    worker = next(one for one in family if "popen_loky" in " ".join(one.cmdline()))
    worker.kill()
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert "a worker was lost, out of memory perhaps; try fewer with --workers" in told
    assert "Traceback" not in told
    assert_gone(family)


def test_a_killed_parent_leaves_no_workers_behind(config):
    process = start(config, "generations=400", LIGHT, "--save-every", 0, "--workers", 2)
    wait_for_commits(Path("runs/tiny"), 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert_gone(family)
    process.communicate()


# Quick -----------------------------------------------------------------------------------------------------------------

QUICK = "quick: {generations: 2, replicates: 2, sweep.grid.mix.n_synthetic: [10]}\n"


def test_a_quick_run_is_the_run_of_its_settings_in_a_folder_of_its_own(config):
    config.write_text(BASE + QUICK)
    done = invoke(config, "quick=true", "chunk=1", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert [path.name for path in Path("runs").iterdir()] == ["tiny-quick"]
    assert "tiny-quick: mean over replicates" in done.stdout
    assert done.stdout.strip().endswith("results: runs/tiny-quick/generations.parquet")
    settings = yaml.safe_load(Path("runs/tiny-quick/config.yaml").read_text())
    assert "quick" not in settings
    assert (settings["name"], settings["generations"], settings["replicates"]) == ("tiny-quick", 2, 2)
    written = ["generations=2", "replicates=2", "sweep.grid.mix.n_synthetic=[10]", "chunk=1"]
    assert invoke(config, *written, "--workers", 1, "--out", "same").exit_code == 0
    pd.testing.assert_frame_equal(load_generations(Path("runs/tiny-quick")), load_generations(Path("same")))


def test_a_quick_run_and_the_whole_one_do_not_touch_each_other(config):
    config.write_text(BASE + QUICK)
    invoke(config, "--workers", 1)
    before = Path("runs/tiny/generations.parquet").read_bytes()
    assert invoke(config, "quick=true", "--workers", 1).exit_code == 0
    assert "2 generations in all, 2 done before" in invoke(config, "quick=true", "--workers", 1).stdout
    assert Path("runs/tiny/generations.parquet").read_bytes() == before
    assert invoke(Path("runs/tiny-quick/config.yaml"), "--workers", 1).exit_code == 0, "what is resolved runs in its own folder"


def test_quick_without_a_section_writes_nothing(config):
    done = invoke(config, "quick=true")
    assert done.exit_code == 2
    assert "the file has no section quick; add one" in done.stderr
    assert not Path("runs").exists()


# Fan-out ---------------------------------------------------------------------------------------------------------------


def test_two_processes_give_the_bytes_of_one(config):
    assert invoke(config, "--workers", 1, "--out", "one").exit_code == 0
    done = invoke(config, "--workers", 2, "--out", "two")
    assert done.exit_code == 0, done.output
    assert "2 processes" in done.stdout
    assert Path("one/generations.parquet").read_bytes() == Path("two/generations.parquet").read_bytes()


@pytest.fixture
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as one:
        yield one


def test_a_dask_cluster_gives_the_bytes_of_one_process(config, cluster):
    done = execute(config, "--backend", "dask", "--scheduler", cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout, "as many as the cluster has"
    assert invoke(config, "--workers", 1, "--out", "one").exit_code == 0
    assert Path("one/generations.parquet").read_bytes() == Path("runs/tiny/generations.parquet").read_bytes()


def test_nobody_deals_to_more_workers_than_there_are_units():
    with fanout.executor("loky", None, 8, 1) as (parallel, count):
        assert (parallel, count) == (None, 1)


# The closing table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.06832, 0.00152, "0.0683 ± 0.0015"),
        (12.34, 0.5, "12.34 ± 0.50"),
        (1234.5, 20.0, "1234 ± 20"),
        (3.66e12, 1.96e12, "3.66e+12 ± 2.0e+12"),
        (1e-12, 2e-13, "1.00e-12 ± 2.0e-13"),
        (0.5, 0.0, "0.5"),
        (0.5, float("nan"), "0.5"),
        (1e200, float("inf"), "1e+200"),
        (float("nan"), float("nan"), "-"),
    ],
)
def test_a_figure_has_two_digits_of_its_error(value, error, text):
    assert report.figure(value, error) == text


def test_values_that_are_missing_or_not_finite_are_left_out_of_the_means_and_counted(config, capsys):
    points = load(read(config, ["sweep=", "replicates=3"]))
    rows = [
        (0, 1, "w2", 1.0),
        (1, 1, "w2", 2.0),
        (2, 1, "w2", 3.0),
        (0, 3, "w2", 4.0),
        (1, 3, "w2", np.inf),
        (2, 3, "diverged", 1.0),
    ]
    table = pd.DataFrame(rows, columns=["replicate", "generation", "metric", "value"])
    (row,) = report.headline(table, points).to_dict("records")
    assert (row["first"], row["first_n"], row["last"], row["last_n"]) == (2.0, 3, 4.0, 1)
    np.testing.assert_array_equal(report.curves(table, "w2", {}), [[1, 4], [2, np.nan], [3, np.nan]])
    report.show(points, table)
    printed = " ".join(capsys.readouterr().out.split())
    assert "4 (1 of 3 left) 3" in printed
    assert "1 of 3 loops diverged, the first replicate 2 at generation 3; the means are of those still left" in printed
    assert "1 values are not finite; the results hold them, the means do not" in printed


def test_a_point_chosen_on_some_samples_is_reported_on_others(tmp_path, capsys):
    text = """
    generations: 1
    replicates: 2
    chunk: 1
    real: {kind: images, path: digits}
    mix: {n_real: 100}
    algorithm: {kind: edm, budget: 0.001024}
    track: {image_quality: {n: 50, protocol: honest}}
    sweep: {grid: {algorithm.batch: [128, 256, 512]}}
    """
    (tmp_path / "honest.yaml").write_text(textwrap.dedent(text))
    points = load(read(tmp_path / "honest.yaml"))
    found = {128: ([2.0, 4.0], [1.0, 2.0]), 256: ([1.0, 2.0], [5.0, 6.0]), 512: ([np.nan, 0.0], [0.0, 0.0])}
    rows = [
        (batch, replicate, 1, metric, value)
        for batch, pair in found.items()
        for metric, values in zip(("fd_search", "fd_report"), pair, strict=True)
        for replicate, value in enumerate(values)
    ]
    table = pd.DataFrame(rows, columns=["algorithm.batch", "replicate", "generation", "metric", "value"])
    report.show(points, table)  # 512 lost a replicate
    assert "least fd_search: batch = 256; fd_report there: 5.50 ± 0.50" in capsys.readouterr().out


def test_a_run_that_only_makes_pictures_ends_without_a_table(tmp_path):
    algorithm = "{kind: edm, network: {channels: 4, multipliers: [1], blocks: 1, attention: []}, batch: 64, budget: 0.000064}"
    text = f"""
    generations: 1
    replicates: 1
    chunk: 1
    real: {{kind: images, path: digits}}
    mix: {{n_real: 100}}
    algorithm: {algorithm}
    track: {{pictures: {{n: 4}}}}
    """
    (tmp_path / "pictures.yaml").write_text(textwrap.dedent(text))
    done = invoke(str(tmp_path / "pictures.yaml"), "--out", str(tmp_path / "run"), "--workers", "1")
    assert done.exit_code == 0, done.output
    assert "no metrics were tracked" in done.stdout
    assert len(list((tmp_path / "run" / "kept" / "pictures").glob("*.png"))) == 1


def test_the_schema_is_printed():
    done = invoke("--schema")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["title"] == "selfloop experiment"
