"""Every figure is drawn from saved results alone; those kept with the project are enough, small, and give the same numbers."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfloop import loop
from selfloop.results import RunError, load_generations

sys.path.insert(0, str(Path(__file__).parents[1]))  # figures/ stands beside the package and is not installed with it
command = import_module("figures.__main__")
keep = import_module("figures.keep")
averages, course = import_module("figures.averages").averages, import_module("figures.averages").course
best = import_module("figures.omega_eta").best

DATA = Path(command.HERE) / "data"
KEPT = ["config.yaml", "environment.json", "generations.parquet"]


@pytest.fixture
def no_model(monkeypatch):
    """A loop that is started, by whatever name, is an error."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a figure ran a model")

    monkeypatch.setattr(loop, "self_consume", refuse)


def arguments(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["python -m figures", *map(str, words)])


@pytest.mark.parametrize("name", command.FIGURES)
def test_a_figure_is_drawn_from_the_results_that_are_kept_with_the_project(name, tmp_path, monkeypatch, no_model):
    drawn = []
    module = import_module(f"figures.{name}")
    draw = module.draw
    monkeypatch.setattr(module, "draw", lambda results: drawn.append(draw(results)) or drawn[-1])
    arguments(monkeypatch, name, "--results", DATA / name, "--out", tmp_path)
    assert command.main() == 0
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert all((tmp_path / f"{name}.{kind}").stat().st_size > 10_000 for kind in ("pdf", "png"))
    panels = [axes for axes in drawn[0].axes if axes.axison]
    assert panels
    for axes in panels:
        assert axes.get_xlabel(), f"a panel of {name} has no label on x: {axes.get_title('left')!r}"
        assert axes.get_ylabel(), f"a panel of {name} has no label on y: {axes.get_title('left')!r}"
        assert axes.get_title("left")
    box, (width, height) = drawn[0].get_tightbbox(), drawn[0].get_size_inches()
    assert min(box.x0, box.y0) > -0.02, f"{name} is cut off at its left or lower edge"
    assert max(box.x1 - width, box.y1 - height) < 0.02, f"{name} is cut off at its right or upper edge"


def test_the_figures_import_no_algorithm_and_no_loop():
    program = (
        "import sys, importlib\n"
        f"for name in {command.FIGURES!r}: importlib.import_module('figures.' + name)\n"
        "print(*[m for m in sys.modules if m.startswith(('selfloop.algorithms', 'selfloop.loop', 'selfloop.fanout', 'torch'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=DATA.parents[1])
    assert done.stdout.split() == []


def test_missing_results_are_one_clear_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    arguments(monkeypatch, "loop_zoo", "--results", tmp_path / "nowhere", "--out", tmp_path)
    assert command.main() == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "nowhere" in message
    assert "does not exist" in message


def test_results_of_another_experiment_are_refused_by_what_they_lack(tmp_path, monkeypatch, capsys):
    arguments(monkeypatch, "gaussian2d", "--results", DATA / "digits_gmm", "--out", tmp_path)
    assert command.main() == 1
    assert "mix.n_synthetic, algorithm.omega, w2" in capsys.readouterr().err


def test_an_unknown_figure_is_exit_code_2_with_the_names_there_are(monkeypatch, capsys):
    arguments(monkeypatch, "gaussian3d")
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "gaussian2d" in capsys.readouterr().err


def test_without_a_run_the_kept_results_are_read_and_a_run_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.results_of("loop_zoo") == DATA / "loop_zoo"
    run = Path("runs") / "loop_zoo"
    run.mkdir(parents=True)
    (run / "generations.parquet").touch()
    assert command.results_of("loop_zoo") == run


def test_what_is_kept_is_small_and_complete():
    assert sorted(path.name for path in DATA.iterdir() if path.is_dir()) == sorted(command.FIGURES)
    for name in command.FIGURES:
        assert sorted(path.name for path in (DATA / name).iterdir()) == KEPT
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert max(sizes) < 4_000_000
    assert sum(sizes) < 8_000_000


@pytest.mark.parametrize("name", ["loop_zoo", "fresh_data", "omega_eta", "digits_gmm"])
def test_keeping_what_is_kept_changes_nothing(name, tmp_path):
    keep.keep(name, DATA / name, tmp_path)
    pd.testing.assert_frame_equal(load_generations(tmp_path), load_generations(DATA / name))


def test_a_run_is_kept_only_when_it_is_whole(tmp_path):
    with pytest.raises(RunError, match="run the experiment to its end"):
        keep.keep("loop_zoo", tmp_path, tmp_path / "out")


def test_averages_are_the_mean_and_its_standard_error_over_replicates():
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product(
        [["a", "b"], range(7), range(1, 4), ["m", "v"]], names=["path", "replicate", "generation", "metric"]
    )
    table = pd.DataFrame({"value": rng.standard_normal(len(index))}, index=index).reset_index()
    found = course(averages(table, {"m": 2, "v": 1}), "m", {"path": "b"})
    rows = table[(table["metric"] == "m") & (table["path"] == "b")]
    squares = rows.pivot(index="replicate", columns="generation", values="value").to_numpy() ** 2
    np.testing.assert_allclose(found.generation, [1, 2, 3])
    np.testing.assert_allclose(found.mean, squares.mean(axis=0))
    np.testing.assert_allclose(found.error, squares.std(axis=0, ddof=1) / np.sqrt(7))


@pytest.mark.parametrize("centre", [0.92, 0.95, 1.03])
def test_the_best_guidance_is_found_between_the_points_of_a_coarse_grid(centre):
    x = np.linspace(0, 1.4, 16)
    s = 1 + 0.4 * (x - centre) + 0.15 * (x - centre) ** 2
    assert best(x, np.sqrt(0.001**2 + (s - 1) ** 2)) == pytest.approx(centre, abs=1e-6)
