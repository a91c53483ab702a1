"""The documentation is true: its Python runs, its YAML loads, its commands exist, its tables are those of the code."""

import dataclasses
import importlib
import inspect
import itertools
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer.main
import yaml
from matplotlib.figure import Figure
from typer.testing import CliRunner

from figures import digits_pruning, digits_skewed, pruning_2d, pruning_digits, ratios
from figures import digits_reweighting as reweighting
from selfloop import theory
from selfloop.config import load
from selfloop.curate import tool
from selfloop.curate.subset import Subset
from selfloop.diffusion.sample import Sampler
from selfloop.experiment import Experiment, Sweep
from selfloop.madness import NORMALISATIONS, Madness
from selfloop.metrics import images, nearest, track
from selfloop.mix import LOOP_TYPES, Mix
from selfloop.reading import read
from selfloop.registry import KINDS, resolve
from selfloop.report import curves
from selfloop.results import load_generations
from selfloop.run import app

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "paper_repro.md", *DOCS]
TEXT = "\n".join(page.read_text() for page in DOCS)
BASE = """
real: {kind: gaussian, mean: [0, 0], cov: [[1, 0], [0, 1]]}
mix: {n_real: 200}
algorithm: gaussian
track: {w2: }
"""
"""What a section of a file is laid over to make it an experiment."""

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page):
    """(language, text) of every fenced block; directives, whose language is in braces, are left out."""
    found = re.findall(r"^```(\S*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if not language.startswith("{")]


def commands(text):
    """The words of every line after a `$` prompt, without what goes into a file."""
    lines = [shlex.split(line[2:]) for line in text.splitlines() if line.startswith("$ ")]
    return [line[: line.index(">")] if ">" in line else line for line in lines]


def title(text, ending):
    """The file name in the comment that a block begins with, if it does."""
    found = re.match(rf"# (\S+\.{ending})\n", text)
    return found and found[1]


def options(words):
    """Options of the command line and the rest of its words: name -> value, [file, override, ...]."""
    known = {name: parameter for parameter in typer.main.get_command(app).params for name in parameter.opts}
    given, rest = {}, []
    words = iter(words)
    for word in words:
        if word.startswith("-"):
            given[word] = True if known[word].is_flag else next(words)
        else:
            rest.append(word)
    return given, rest


def shrunk(file, overrides):
    """Overrides that make an experiment take a moment and leave its shape; more generations stay more."""
    tree = yaml.safe_load(Path(file).read_text()) | {
        key: int(value) for key, value in (item.split("=", 1) for item in overrides) if value.isdecimal()
    }
    generations = tree.get("generations", 100)
    small = [*overrides, f"generations={4 if generations > 100 else min(generations, 2)}", "replicates=4", "chunk=2"]
    if "w2_empirical" in tree["track"] and not any(item.startswith("track") for item in overrides):
        small.append("track.w2_empirical.n=20")
    return small


def run(words):
    """Run a documented command for real, shrunk, in this process and the current folder; what needs a cluster is read only."""
    given, rest = options(words)
    if "--schema" in given:
        assert CliRunner().invoke(app, ["--schema"]).exit_code == 0
        return
    file, overrides = rest[0], rest[1:]
    of_images = yaml.safe_load(Path(file).read_text())["real"]["kind"] == "images"  # minutes: see test_image_experiments
    if given.get("--backend", "loky") != "loky" or of_images:
        load(read(Path(file), overrides))
        return
    arguments = [file, *shrunk(file, overrides), "--workers", "1", "--save-every", "60"]
    arguments += ["--out", given["--out"]] if "--out" in given else []
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output


def draw(words, monkeypatch):
    """Draw a figure from the results here, but for the file; that and all of them at once are left to `test_figures`."""
    module = importlib.import_module("figures.__main__")
    names = [word for word in words if word in module.FIGURES]
    assert all(word in names or word.startswith(("--", "runs/", "figures/")) for word in words)
    if names:
        arguments = words if "--out" in words else [*words, "--out", "drawn"]
        monkeypatch.setattr(sys, "argv", ["figures", *arguments])
        monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
        assert module.main() == 0


def check(words, monkeypatch):
    """A command of the documentation works, or at least exists."""
    match words:
        case ["python", "-m", "selfloop.run", *rest]:
            run(rest)
        case ["selfloop", "curate", *rest] | ["python", "-m", "selfloop.curate", *rest]:
            done = CliRunner().invoke(tool.app, rest)
            assert done.exit_code == 0, done.output
        case ["python", "-m", "figures", *rest]:
            draw(rest, monkeypatch)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", "-e", what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert what == "." or what.removeprefix(".[").removesuffix("]") in extras
        case _:
            raise AssertionError(f"a command that this test does not know: {words}")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own with the experiments, as a newcomer's checkout; modules made there are forgotten afterwards."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT))
    before, handler = set(sys.modules), signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@by_name
def test_what_a_page_says_to_do_can_be_done_from_top_to_bottom(page, here, monkeypatch):
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for language, text in blocks(page):
        if language == "python":
            if title(text, "py"):
                Path(title(text, "py")).write_text(text)
                importlib.invalidate_caches()
            exec(compile(text, page.name, "exec"), module.__dict__)
        elif language == "yaml":
            if title(text, "yaml"):
                Path(title(text, "yaml")).write_text(text)
            tree, of_data = yaml.safe_load(text), "data" in yaml.safe_load(text)
            Path("whole.yaml").write_text(yaml.safe_dump(tree if of_data else {**yaml.safe_load(BASE), **tree}))
            assert (tool.load if of_data else load)(read(Path("whole.yaml")))
        elif language == "console":
            for words in commands(text):
                check(words, monkeypatch)
        else:
            assert language == "text"


def test_the_curator_and_the_score_of_ones_own_keep_the_upper_half_of_a_data_set(here):
    for language, text in blocks(ROOT / "docs/extend.md"):
        name = title(text, {"python": "py", "yaml": "yaml"}.get(language, "none"))
        if name:
            Path(name).write_text(text)
    importlib.invalidate_caches()
    for name, column in (("upper", "x"), ("bright", "score")):
        done = CliRunner().invoke(tool.app, [f"{name}.yaml"])
        assert done.exit_code == 0, done.output
        found, data = Subset.of(f"curated/{name}/subset.parquet").columns, tool.load(read(Path(f"{name}.yaml"))).measure()
        points, kept = np.asarray(data.points), found["kept"]
        np.testing.assert_allclose(found[column], points[:, 0] if column == "x" else points.mean(axis=1))
        groups = [np.full(data.n, True)] if column == "x" else [data.labels == label for label in range(10)]
        for group in groups:
            assert abs(2 * kept[group].sum() - group.sum()) < 2
            assert found[column][group & kept].min() >= found[column][group & ~kept].max()


@by_name
def test_an_error_message_that_is_shown_is_the_one_given(page, here):
    for language, text in blocks(page):
        if language == "text" and text.startswith("$ python -m selfloop.run"):
            line, _, message = text.partition("\n")
            done = CliRunner().invoke(app, shlex.split(line)[4:])
            assert done.exit_code == 2
            assert " ".join(done.output.split()) == " ".join(message.split())


@by_name
def test_commands_in_running_text_name_experiments_and_settings_that_exist(page, here):
    for line in re.findall(r"`python -m selfloop\.run ([^`]+)`", page.read_text()):
        given, rest = options(shlex.split(line))
        assert load(read(Path(rest[0]), rest[1:])) if rest else "--schema" in given


@by_name
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def table_of_metrics(module):
    """[metric, what it is, unit] of each row of the table in a module's docstring; a row may go on in a line without a name."""
    lines = inspect.getdoc(module).splitlines()
    start, head = next((number, line) for number, line in enumerate(lines) if line.split()[:1] == ["metric"])
    cuts = [*(head.index(word) for word in ("metric", "what it is", "unit")), None]
    rows = []
    for line in lines[start + 1 : lines.index("", start)]:
        cells = [line[a:b].strip() for a, b in itertools.pairwise(cuts)]
        if cells[0]:
            rows.append(cells)
        else:
            rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
    return rows


def test_the_tables_of_metrics_are_those_of_the_code():
    code = table_of_metrics(track) + table_of_metrics(nearest) + table_of_metrics(images)
    page = re.findall(r"^\| `(\S+)` \| (.*) \| (.*) \|$", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert [[re.sub(r"\\([|*])", r"\1", cell) for cell in row] for row in page] == code


def test_every_registered_name_is_documented():
    names = [*LOOP_TYPES, *(kind for kinds in KINDS.values() for kind in kinds)]
    assert [name for name in names if f"`{name}`" not in TEXT] == []


def test_every_option_is_documented():
    kinds = [resolve(group, kind) for group, members in KINDS.items() for kind in members]
    classes = [Experiment, Sweep, Mix, Madness, Sampler, *kinds]
    fields = {(cls.__name__, field.name) for cls in classes for field in dataclasses.fields(cls)}
    assert sorted((cls, name) for cls, name in fields if not re.search(rf"\b{name}\b[`:]", TEXT)) == []


def test_every_option_of_the_command_line_is_documented():
    parameters = [parameter for one in (app, tool.app) for parameter in typer.main.get_command(one).params]
    names = {name for parameter in parameters for name in parameter.opts if name.startswith("--")}
    assert [name for name in sorted(names - {"--help"}) if name not in TEXT] == []


def test_every_closed_form_is_in_the_page_on_theory():
    page = (ROOT / "docs" / "theory.md").read_text()
    public = [name for name, thing in vars(theory).items() if getattr(thing, "__module__", "") == theory.__name__]
    assert [name for name in public if not name.startswith("_") and f"`{name}`" not in page] == []


def test_every_module_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text()
    files = [path for path in (ROOT / "selfloop").rglob("*.py") if path.name != "__init__.py"]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    assert [name for name in sorted(names) if f"automodule:: {name}\n" not in page] == []


@pytest.mark.parametrize(
    ("paper", "figures", "tables", "algorithms"),
    [("Self-Improving", 13, 1, 2), ("Pruning then", 2, 5, 0), ("Data Pruning", 8, 2, 0)],
)
def test_every_figure_and_table_of_the_papers_has_a_row(paper, figures, tables, algorithms):
    sections = re.split(r"^## ", (ROOT / "paper_repro.md").read_text(), flags=re.MULTILINE)
    (section,) = [text for text in sections if text.startswith(paper)]
    rows = re.findall(r"^\| ((?:Figure|Table|Algorithm) \d+) \|", section, re.MULTILINE)
    counts = {"Figure": figures, "Table": tables, "Algorithm": algorithms}
    assert rows == [f"{name} {number}" for name, count in counts.items() for number in range(1, count + 1)]


def ends(name, metric):
    """Means over replicates at generation 1, and of the last 20 generations, by (n_s, omega), of a kept Figure 4."""
    table = load_generations(ROOT / "figures" / "data" / name)
    points = {(n, omega): {"mix.n_synthetic": n, "algorithm.omega": omega} for n in SIZES for omega in OMEGAS}
    found = {point: curves(table, metric, values) for point, values in points.items()}
    return {point: c[:, 0].mean() for point, c in found.items()}, {point: c[:, -20:].mean() for point, c in found.items()}


def written(section, numbers):
    """The rows of a section of paper_repro.md that hold so many numbers with a standard error."""
    text = (ROOT / "paper_repro.md").read_text().partition(f"### {section}\n")[2].partition("\n### ")[0]
    rows = [re.findall(r"(\d*\.\d+) ±", line) for line in text.splitlines() if line.startswith("|")]
    return np.array([[float(value) for value in row] for row in rows if len(row) == numbers])


SIZES, OMEGAS = (125, 250, 500, 1000), (0, 1, 2, 3, 4)


def test_the_numbers_of_figure_4_are_those_of_the_results_kept_with_the_figures():
    first, end = ends("gaussian2d", "w2")
    expected = [[first[125, omega] for omega in OMEGAS]]
    expected += [[end[n, omega] for omega in OMEGAS] for n in SIZES]
    for which in NORMALISATIONS:
        expected += [[end[n, omega] / first[n, omega if which == "own" else 0] for omega in OMEGAS] for n in SIZES]
    np.testing.assert_allclose(written("Figure 4", 5), expected, atol=6e-4)


def test_the_numbers_of_figure_4_with_score_networks_are_those_kept_too():
    first, end = ends("fig4_score_net", "w2_moments")
    expected = [[first[125, omega] for omega in OMEGAS]] + [[end[n, omega] for omega in OMEGAS] for n in SIZES]
    np.testing.assert_allclose(written("Figure 4 with score networks", 5), expected, atol=6e-4)
    ratios = [[*(end[n, omega] / first[n, omega] for omega in OMEGAS), end[n, 3] / first[n, 0]] for n in SIZES]
    np.testing.assert_allclose(written("Figure 4 with score networks", 6), ratios, atol=6e-3)


def test_the_numbers_of_the_digits_are_those_kept():
    table = load_generations(ROOT / "figures" / "data" / "digits_sims")
    budgets, omegas = (0.00512, 0.01536, 0.03072), (-1, 0.25, 0.5, 1, 2)

    def fd(budget, omega):
        return curves(table, "fd", {"algorithm.budget": budget, "algorithm.omega": omega})[:, 0]

    expected = []
    for budget in budgets:
        expected.append([fd(budget, omega).mean() for omega in omegas])
        expected.append([abs((fd(budget, omega) - fd(budget, 0)).mean()) for omega in omegas])
    np.testing.assert_allclose(written("Figures 1 and 3 on handwritten digits", 5), expected, atol=6e-3)


def test_the_numbers_of_polluted_digits_are_those_kept():
    table = load_generations(ROOT / "figures" / "data" / "digits_pollution").astype({"mix.pollution": int})

    def fd(size, omega):
        return curves(table, "fd", {"mix.pollution": size, "algorithm.omega": omega})[:, 0]

    none, *rest = ((fd(size, 0), fd(size, 0.5)) for size in (0, 1348, 2696))
    title = "Figure 5 on handwritten digits"
    np.testing.assert_allclose(written(title, 3), [means(none)], atol=6e-3)
    expected = [[*means(pair), *(float((b - a).mean()) for a, b in zip(none, pair, strict=True))] for pair in rest]
    np.testing.assert_allclose(written(title, 5), expected, atol=6e-3)


def test_the_numbers_of_controlled_digits_are_those_kept():
    table = load_generations(ROOT / "figures" / "data" / "digits_control")

    def mean(name, metrics):
        return sum(curves(table, metric, {"algorithm": name})[:, 0] for metric in metrics).mean()

    metrics = ([f"class_share.{c}" for c in range(5)], ["class_tv"], ["fd"])
    expected = [[mean(name, of) for of in metrics] for name in ("base", "omega 1.5", "omega 3")]
    np.testing.assert_allclose(written("Distribution control on handwritten digits", 3), expected, atol=6e-3)


def test_the_numbers_of_the_loop_on_digits_are_those_kept():
    table = load_generations(ROOT / "figures" / "data" / "digits_loop")
    standard, sims = (curves(table, "fd", {"algorithm": name}) for name in ("standard", "SIMS"))
    expected = np.stack([standard.mean(axis=0), sims.mean(axis=0), (standard - sims).mean(axis=0)], axis=1)
    np.testing.assert_allclose(written("A loop on handwritten digits", 3), expected, atol=6e-3)


def kept_table(name):
    return load_generations(ROOT / "figures" / "data" / name).astype({"value": float})


def test_the_numbers_of_pruning_of_digits_are_those_kept():
    table, methods = kept_table("digits_pruning"), ("random", "near", "far", "balanced", "low loss", "high loss")
    names = ["all data", *(f"{method} {ratio}" for ratio in (".5", ".9") for method in methods)]
    names += [f"{method} {ratio}, equal epochs" for ratio in (".5", ".9") for method in ("random", "balanced")]
    metrics = ("fd", "precision", "recall", "novelty", "vendi")
    expected = [[digits_pruning.values(table, metric, name).mean() for metric in (*metrics, "class_tv")] for name in names]
    np.testing.assert_allclose(written("Pruning of handwritten digits", 6), expected, atol=6e-3)


@pytest.mark.parametrize(
    ("section", "figure"),
    [("Pruning ratios in the plane", pruning_2d), ("Pruning ratios on digits, with a mixture", pruning_digits)],
)
def test_the_numbers_of_pruning_ratios_are_those_kept(section, figure):
    table = kept_table(figure.__name__.removeprefix("figures."))
    expected = [ratios.along(table, figure.METRIC, method).mean[1:] for method in table[ratios.CURATORS].unique()]
    np.testing.assert_allclose(written(section, 4), expected, atol=6e-4)


def test_the_numbers_of_class_weights_are_those_kept():
    """FD and the mean over classes of every choice of rows; FD of each class and its weights."""
    table, section = kept_table("digits_reweighting"), "Class weights at a tenth of the digits"
    fits = reweighting.beside(ROOT / "figures" / "data" / "digits_reweighting")[reweighting.BESIDE]
    budgets, classes = (0.016, 0.032, 0.064), range(reweighting.CLASSES)
    names = [reweighting.ALL, reweighting.BEFORE, "a tenth at random", reweighting.AFTER, reweighting.FIRST]

    def mean(metric, name, budget=0.064):
        return curves(table, metric, {reweighting.CURATORS: name, reweighting.BUDGET: budget}).mean()

    def weights(name):
        found = [fit["weights"]["mean"] for fit in fits if (fit["curators"], fit["budget"]) == (name, 0.064)]
        return len(classes) * np.mean(found, axis=0)

    of_class = np.array([[mean(f"fd_class.{c}", name) for c in classes] for name in names])
    first = [[*(mean("fd", n, b) for b in budgets), mean("precision", n), mean("recall", n)] for n in names]
    second = np.stack([*of_class[[0, 1, 3, 4]], weights(reweighting.AFTER), weights(reweighting.FIRST)], axis=1)
    expected = np.concatenate([np.column_stack([first, of_class.mean(axis=1)]), second])
    np.testing.assert_allclose(written(section, 6), expected, atol=6e-3)


def test_the_numbers_of_skewed_digits_are_those_kept():
    table, axis = kept_table("digits_skewed"), "algorithm.curators"
    expected = []
    for name in table[axis].unique():
        found = [curves(table, metric, {axis: name}).mean() for metric in ("fd", "precision", "recall")]
        expected.append([digits_skewed.to_uniform(digits_skewed.shares(table, name)).mean(), *found])
    np.testing.assert_allclose(written("Skewed handwritten digits", 4), expected, atol=6e-3)


def test_the_numbers_of_curation_in_the_plane_are_those_kept():
    table = load_generations(ROOT / "figures" / "data" / "curation_2d").astype({"value": float})
    names = ["all data", "random", "balanced", "class weights", "dedup", "inliers"]
    names += [f"dedup, inliers{then}" for then in ("", ", balanced", ", class weights")]
    expected = [of_curators(table, name) for name in names]
    np.testing.assert_allclose(written("Curation in the plane", 5), expected, atol=6e-3)


def of_curators(table, name):
    """The five columns of the table for a choice of curators."""
    metrics = ["class_share.0", *(f"class_w2_moments.{c}" for c in range(8)), "class_tv", "most_copied", "most_copied_real"]
    share, rare, *others, tv, copied, fresh = (curves(table, metric, {"algorithm.curators": name})[:, 0] for metric in metrics)
    return [share.mean(), rare.mean(), np.mean(others), tv.mean(), (copied / fresh).mean()]


def means(pair):
    """Of the standard training, of SIMS, and how much less the second is."""
    return [float(pair[0].mean()), float(pair[1].mean()), float((pair[0] - pair[1]).mean())]


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    built = subprocess.run(words, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
