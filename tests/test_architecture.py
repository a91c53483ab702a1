"""The arrows of the house: which part may import which. A new file belongs to a part, or gets a line here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = {"component", "covariance", "measure", "laws", "protocols", "streams"}
ALLOWED: dict[str, set[str]] = {
    "component": set(),
    "covariance": set(),
    "streams": set(),
    "theory": set(),
    "measure": set(),
    "laws": {"covariance", "measure"},
    "protocols": {"laws", "measure"},
    "diffusion": CONTRACTS,
    "algorithms": CONTRACTS | {"diffusion", "metrics"},
    "mix": CONTRACTS,
    "curate": CONTRACTS,
    "metrics": CONTRACTS | {"diffusion"},
    "loop": CONTRACTS | {"mix"},
    "data": CONTRACTS | {"algorithms"},
    "plane": CONTRACTS | {"algorithms", "data"},
    "madness": CONTRACTS,
    "registry": set(),
    "reading": {"registry"},
    "explain": {"reading", "registry"},
    "experiment": CONTRACTS | {"data", "madness", "metrics", "mix"},
    "check": CONTRACTS | {"experiment", "reading", "registry"},
    "config": CONTRACTS | {"check", "experiment", "explain", "madness", "mix", "reading", "registry"},
    "schema": {"experiment", "registry"},
    "work": {"measure"},
    "results": {"config", "measure", "reading", "work"},
    "report": {"config", "madness", "measure", "results", "theory"},
    "fanout": CONTRACTS | {"config", "experiment", "loop", "metrics", "reading", "results", "work"},
    "run": {"config", "fanout", "reading", "report", "results", "schema"},
}


def imported(path: Path, package: str) -> set[str]:
    """Parts of `package` that a file imports, at its top or anywhere inside."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            direct = node.module == package
            names = [f"{package}.{alias.name}" for alias in node.names] if direct else [node.module]
        parts |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return parts


FILES = sorted((ROOT / "selfloop").rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT / "selfloop")
    return relative.parts[0].removesuffix(".py")


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


@pytest.mark.parametrize("word", ["pickle", "eval(", "shell=True", "os.system"])
def test_nothing_that_runs_what_it_reads(word):
    for path in FILES:
        code = ast.unparse(ast.parse(path.read_text()))
        assert word not in code.replace("allow_pickle=False", ""), f"{word} in {path}"


def test_importing_the_package_is_light():
    code = "import sys, selfloop; print([m for m in ('numpy', 'scipy', 'pandas', 'ot', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
