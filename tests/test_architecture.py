"""The arrows of the house: which part may import which. A new file belongs to a part, or gets a line here."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = {"component", "covariance", "measure", "laws", "protocols", "ranks", "streams", "threads"}
ALLOWED: dict[str, set[str]] = {
    "component": set(),
    "covariance": set(),
    "streams": set(),
    "ranks": set(),
    "threads": set(),
    "theory": set(),
    "measure": set(),
    "laws": {"covariance", "measure"},
    "protocols": {"laws", "measure"},
    "board": CONTRACTS,
    "pictures": set(),
    "diffusion": CONTRACTS | {"work"},
    "algorithms": CONTRACTS | {"board", "curate", "diffusion", "embed", "metrics", "pictures"},
    "mix": CONTRACTS,
    "curate": CONTRACTS | {"diffusion", "embed", "formats", "registry", "work"},
    "curate.report": CONTRACTS | {"curate", "pictures"},
    "curate.tool": CONTRACTS | {"check", "config", "curate", "curate.report", "data", "embed", "reading", "registry", "work"},
    "curate.__main__": {"curate.tool", "run"},
    "embed": CONTRACTS | {"formats", "work"},
    "metrics": CONTRACTS | {"diffusion", "embed", "formats", "pictures"},
    "loop": CONTRACTS | {"mix"},
    "data": CONTRACTS | {"algorithms"},
    "plane": CONTRACTS | {"algorithms", "data"},
    "flawed": CONTRACTS | {"data"},
    "formats": {"measure"},
    "images": CONTRACTS | {"formats", "work"},
    "madness": CONTRACTS,
    "registry": set(),
    "reading": {"registry"},
    "explain": {"reading", "registry"},
    "experiment": CONTRACTS | {"data", "embed", "madness", "metrics", "mix"},
    "check": CONTRACTS | {"experiment", "reading", "registry"},
    "config": CONTRACTS | {"check", "experiment", "explain", "madness", "mix", "reading", "registry"},
    "schema": {"experiment", "registry"},
    "work": {"measure", "ranks"},
    "results": {"config", "measure", "ranks", "reading", "work"},
    "report": {"config", "madness", "measure", "results", "theory"},
    "fanout": CONTRACTS | {"config", "experiment", "loop", "metrics", "reading", "results", "work"},
    "__main__": {"curate.tool", "run"},
    "run": {"check", "config", "fanout", "ranks", "reading", "report", "results", "schema"},
}


def imported(path: Path, package: str) -> set[str]:
    """Parts of `package` that a file imports, at its top or anywhere inside."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        parts |= {part_named(name.split(".")[1:]) for name in names if name.startswith(f"{package}.")}
    return parts


def part_named(words: Sequence[str]) -> str:
    """The part that a dotted name below the package belongs to: a file with a line of its own, or its folder."""
    return ".".join(words[:2]) if ".".join(words[:2]) in ALLOWED else words[0]


FILES = sorted((ROOT / "selfloop").rglob("*.py"))


def part_of(path: Path) -> str:
    return part_named(path.relative_to(ROOT / "selfloop").with_suffix("").parts)


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) != "__init__"], ids=lambda p: p.stem)
def test_imports_point_one_way(path):
    part = part_of(path)
    assert part in ALLOWED, f"{part} has no place in the house; give it a line"
    strangers = imported(path, "selfloop") - ALLOWED[part] - {part}
    assert not strangers, f"{part} must not import {sorted(strangers)}"


def test_the_order_has_no_circle():
    done: set[str] = set()
    while remaining := {part for part in ALLOWED if part not in done}:
        ready = {part for part in remaining if ALLOWED[part] - {part} <= done}
        assert ready, f"a circle among {sorted(remaining)}"
        done |= ready


@pytest.mark.parametrize("path", sorted((ROOT / "figures").glob("*.py")), ids=lambda p: p.stem)
def test_figures_read_results_and_theory_and_run_nothing(path):
    assert imported(path, "selfloop") <= {"results", "report", "madness", "theory", "measure"}


def test_the_loop_knows_no_metric_file_or_figure():
    source = (ROOT / "selfloop" / "loop.py").read_text()
    assert not {"metrics", "results", "config", "report"} & imported(ROOT / "selfloop" / "loop.py", "selfloop")
    assert "open(" not in source


def runs_what_it_reads(node: ast.AST) -> bool:
    """An import, a call or an option by which a file that is read becomes code that is run."""
    match node:
        case ast.Import(names=names):
            return any(alias.name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve") for alias in names)
        case ast.ImportFrom(module=module):
            return (module or "").split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve")
        case ast.Call(func=ast.Name(id="eval" | "exec")):
            return True
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return (module, name) in {("os", "system"), ("torch", "load"), ("torch", "save")}
        case ast.keyword(arg="shell" | "allow_pickle", value=ast.Constant(value=True)):
            return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_that_is_read_is_run(path):
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if runs_what_it_reads(node)]


@pytest.mark.parametrize(
    "code", ["import pickle", "from dill import loads", "eval(x)", "run(x, shell=True)", "os.system(x)", "torch.load(x)"]
)
def test_what_runs_what_it_reads_is_recognised(code):
    assert any(runs_what_it_reads(node) for node in ast.walk(ast.parse(code)))


def test_importing_the_package_is_light():
    code = "import sys, selfloop; print([m for m in ('numpy', 'scipy', 'pandas', 'ot', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
