"""Every figure is drawn from saved results alone; those kept with the project are enough, small, and give the same numbers."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from selfloop import loop, theory
from selfloop.results import RunError, load_generations

sys.path.insert(0, str(Path(__file__).parents[1]))  # figures/ stands beside the package and is not installed with it
command = import_module("figures.__main__")
keep = import_module("figures.keep")
averages, course = import_module("figures.averages").averages, import_module("figures.averages").course
ratio, swept = import_module("figures.averages").ratio, import_module("figures.averages").swept
guidance, mitigation = import_module("figures.guidance"), import_module("figures.mitigation")
fig4_score_net, fig5_2d = import_module("figures.fig4_score_net"), import_module("figures.fig5_2d")
mode_loss, runaway = import_module("figures.mode_loss"), import_module("figures.runaway")
control_2d, sims_vs_neon = import_module("figures.control_2d"), import_module("figures.sims_vs_neon")
best = import_module("figures.omega_eta").best
reweighting = import_module("figures.digits_reweighting")

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
        sharing = axes.get_shared_y_axes().get_siblings(axes)
        assert any(other.get_ylabel() for other in sharing), f"a panel of {name} has no label on y: {axes.get_title('left')!r}"
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
        beside = {import_module(f"figures.{name}").BESIDE} if hasattr(import_module(f"figures.{name}"), "BESIDE") else set()
        assert {path.name for path in (DATA / name).iterdir()} - {"pictures"} == set(KEPT) | beside
    sizes = [path.stat().st_size for path in DATA.rglob("*") if path.is_file()]
    assert max(sizes) < 4_000_000
    assert sum(sizes) < 8_000_000


@pytest.mark.parametrize("name", [name for name in command.FIGURES if name != "gaussian2d"])
def test_keeping_what_is_kept_changes_nothing(name, tmp_path):
    keep.keep(name, DATA / name, tmp_path)
    assert {path.name for path in tmp_path.rglob("*.png")} == {path.name for path in (DATA / name).rglob("*.png")}
    pd.testing.assert_frame_equal(load_generations(tmp_path), load_generations(DATA / name))
    for file in DATA.joinpath(name).glob("*.json"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


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


def grid(paths, metrics, generations=1, replicates=2, value=0.3):
    """A table of results with the same value everywhere."""
    index = pd.MultiIndex.from_product(
        [*paths.values(), range(replicates), range(1, generations + 1), metrics],
        names=[*paths, "replicate", "generation", "metric"],
    )
    return pd.DataFrame({"value": np.full(len(index), value)}, index=index).reset_index()


def stored(folder, table, **settings):
    table.to_parquet(folder / "generations.parquet")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_a_sweep_is_read_in_the_order_of_its_path_at_the_last_generation():
    table = grid({"path": [3.0, 1.0, 2.0], "other": ["a", "b"]}, ["m"], generations=3, replicates=4)
    table["value"] = 10 * table["path"] + table["generation"] + (table["other"] == "b") * (table["replicate"] - 1.5)
    found = swept(averages(table, {"m": 1}), "path", "m", {"other": "b"})
    np.testing.assert_allclose(found.x, [1, 2, 3])
    np.testing.assert_allclose(found.mean, [13, 23, 33])
    np.testing.assert_allclose(found.error, np.std([0, 1, 2, 3], ddof=1) / 2)
    with pytest.raises(RunError, match="other = c"):
        swept(averages(table, {"m": 1}), "path", "m", {"other": "c"})


def test_a_ratio_of_what_is_proportional_has_no_error_and_else_the_one_of_the_jackknife():
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 2, (400, 1))
    mean, error = ratio(1.1 * below, below)
    np.testing.assert_allclose(mean, 1.1)
    np.testing.assert_allclose(error, 0, atol=1e-15)
    above = below + rng.uniform(0, 1, (400, 3))
    left_out = np.array([np.delete(above, i, 0).mean(axis=0) / np.delete(below, i, 0).mean(axis=0) for i in range(400)])
    np.testing.assert_allclose(ratio(above, below)[1], np.sqrt(399 * left_out.var(axis=0)), rtol=0.01)


def test_sims_and_neon_are_compared_within_replicates():
    table = grid({"algorithm.kind": ["sims", "neon"], "algorithm.budget": [0.1], "algorithm.omega": [0.0, 1.0]}, ["w2_moments"])
    table["value"] = (1 + table["replicate"]) * np.where(table["algorithm.kind"] == "neon", 1 + table["algorithm.omega"], 1)
    found = sims_vs_neon.relative(table.sample(frac=1, random_state=0), 0.1)
    np.testing.assert_allclose(found, [[0, 1], [1, 2], [0, 0]], atol=1e-15)


def test_the_closed_form_of_the_distance_is_w2_between_the_two_gaussians():
    cov = np.array([[2.0, 0.5], [0.5, 1.0]])
    w2 = guidance.closed_form({"real": {"cov": cov.tolist()}}, 1.3, 0.4, -0.5, np.array([0.0, 2.0, 4.0]))
    for omega, distance in zip((0, 2, 4), w2, strict=True):
        sampled = 1.3 * np.exp(-0.5 * (1 - 0.4 * omega)) * cov
        assert distance**2 == pytest.approx(theory.gaussian_w2_squared([0, 0], sampled, [0, 0], cov))


def test_the_prediction_is_one_over_the_mean_eta():
    table = grid({"algorithm.budget": [0.1], "algorithm.omega": [0.0, 1.0]}, ["eta"])
    table["value"] = 0.2 + 0.1 * table["replicate"]
    omega, error = guidance.predicted(averages(table, {"eta": 1}), {"algorithm.budget": 0.1})
    assert omega == pytest.approx(4)
    assert error == pytest.approx(0.05 * 16)


@pytest.mark.parametrize("omega", [0.0, 2.0, 4.0])
def test_a_loop_of_networks_is_expected_where_the_recursion_of_its_variance_ends(omega):
    table = pd.concat(
        [grid({"mix.n_synthetic": [500]}, [name], generations=30, value=v) for name, v in (("eta", 0.35), ("log_bias", -0.4))]
    )
    table.loc[table["generation"] == 10, "value"] = 7.0  # neither the first generation nor one of the last
    settings = {"mix": {"n_real": [1000]}, "real": {"cov": [[1.0, 0.0], [0.0, 1.0]]}}
    w2 = {(500, omega): np.ones((2, 30))}
    seen = mitigation.Loops(table, settings, mitigation.Madness(tail=20), [500], [omega], w2, {})
    gain, v = np.exp(-0.4 * (1 - 0.35 * omega)), 1.0
    first = np.sqrt(2) * abs(np.sqrt(gain) - 1)
    for _ in range(200):
        v = 2 / 3 + v * gain / 3
    end = np.sqrt(2) * abs(np.sqrt(v * gain) - 1)
    found = [fig4_score_net.expected(seen, 500, start, np.array([omega])) for start in (True, False)]
    np.testing.assert_allclose(np.ravel(found), [first, end], rtol=1e-9)


def test_guidance_at_one_over_eta_leaves_the_pollution_and_no_bias_of_its_own():
    paths = {"mix.pollution": [0, 1000, 3000], "algorithm.omega": [0, 4]}
    table = pd.concat(
        [grid(paths, [name], value=v) for name, v in (("w2_moments", 1.0), ("eta", 0.25), ("log_bias", np.log(0.64)))]
    )
    mean = averages(table, dict.fromkeys(fig5_2d.METRICS, 1))
    settings = {"mix": {"n_real": [1000]}, "real": {"cov": [[1.0]]}}
    v = np.array([1, 0.82, 0.73])  # 1 - f + .64 f at f = 0, 1/2, 3/4
    np.testing.assert_allclose(fig5_2d.expected(settings, mean, 4), 1 - np.sqrt(v))
    np.testing.assert_allclose(fig5_2d.expected(settings, mean, 0), 1 - 0.8 * np.sqrt(v))


@pytest.mark.parametrize(("beyond", "lost"), [(0.99, 0), (1.01, 1)])
def test_a_loop_is_called_runaway_where_its_omega_leaves_the_stable_range(beyond, lost, tmp_path):
    table = grid({"algorithm.omega": [0.0, 2.0, 4.0]}, runaway.METRICS, generations=4)
    table.loc[table["metric"] == "omega", "value"] = table["algorithm.omega"]
    table.loc[table["metric"] == "log_bias", "value"] = -0.4
    (_, edge) = theory.stable_omega(0.25, -0.4, 0.5)
    here = (table["metric"] == "eta") & (table["replicate"] == 1) & (table["generation"] == 3)
    table.loc[here, "value"] = 0.25 * edge / 4 * beyond  # the edge is inversely proportional to eta
    figure = runaway.draw(stored(tmp_path, table, mix={"n_real": [100], "n_synthetic": [100]}))
    assert figure.axes[0].get_title("left").endswith(f": {lost} of 2")
    assert sum(line.get_marker() == "*" for line in figure.axes[0].lines) == lost


def test_control_is_compared_with_the_total_variation_of_the_base_to_the_target():
    base = {"class_share.0": np.array([0.8, 0.4]), "class_share.1": np.array([0.2, 0.6])}
    np.testing.assert_allclose(control_2d.before(base, np.array([0.5, 0.5])), [0.3, 0.1])


@pytest.mark.parametrize(
    ("name", "paths", "metrics", "missing"),
    [
        ("fig3_2d", {"algorithm.budget": [0.0128], "algorithm.omega": [1.0]}, guidance.POWERS, "omega = 0"),
        ("fig5_2d", {"mix.pollution": ["100"], "algorithm.omega": [0, 3]}, fig5_2d.METRICS, "no pollution"),
        ("mode_loss", {"mix.kind": ["fresh"], "algorithm.omega": [2]}, mode_loss.METRICS, "omega = 0"),
        ("control_2d", {control_2d.RUN: ["to .5"], control_2d.TARGET: ["[0.5, 0.5]"]}, control_2d.METRICS, "'base'"),
        ("sims_vs_neon", {sims_vs_neon.KIND: ["sims"], "algorithm.budget": [0.0128], "algorithm.omega": [0.0]}, guidance.POWERS,
         "neon"),
    ],
)  # fmt: skip
def test_a_sweep_without_what_the_figure_compares_is_refused(name, paths, metrics, missing, tmp_path):
    with pytest.raises(RunError, match=missing):
        import_module(f"figures.{name}").draw(stored(tmp_path, grid(paths, metrics)))


def test_the_speed_up_counts_curation_and_is_nothing_where_the_distance_is_not_reached():
    """FD = c / budget: half the c comes to the same FD in half the time, 60 s a million images, and 30 s of curators."""
    rows = [
        {
            reweighting.CURATORS: name,
            reweighting.BUDGET: budget,
            "replicate": r,
            "generation": 1,
            "metric": "fd",
            "value": c * (1 + r) / budget,
        }
        for name, c in ((reweighting.ALL, 1.0), ("better", 0.5), ("worse", 4.0))
        for budget in (1.0, 2.0, 4.0)
        for r in range(3)
    ]
    fits = [
        {"curators": name, "budget": budget, "seconds": {"0 prune": spent, "fit": 60 * budget}}
        for name, spent in ((reweighting.ALL, 0.0), ("better", 30.0), ("worse", 30.0))
        for budget in (1.0, 2.0, 4.0)
    ]
    table = pd.DataFrame(rows)
    assert reweighting.speed_up(table, fits, reweighting.ALL, 2.0) == pytest.approx([1, 1, 1])
    assert reweighting.speed_up(table, fits, "better", 4.0) == pytest.approx(np.full(3, 240 / (120 + 30)))
    assert reweighting.speed_up(table, fits, "better", 2.0) == pytest.approx(np.full(3, 120 / (60 + 30)))
    assert np.isnan(reweighting.speed_up(table, fits, "worse", 2.0)).all()
