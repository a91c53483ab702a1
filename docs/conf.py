"""Sphinx: Markdown pages by myst-parser, the reference by autodoc."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "selfloop"
author = "The selfloop developers"
copyright = "The selfloop developers"
release = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "self-consuming generative loops", "page_width": "1100px", "fixed_sidebar": True}
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines without a blank one, cut again where the indentation begins or ends."""
    run: list[str] = []
    for line in [*lines, ""]:
        bullet = bool(run) and run[0].startswith("- ")
        if run and (not line.strip() or (not bullet and line.startswith(" ") != run[-1].startswith(" "))):
            yield run
            run = []
        if line.strip():
            run.append(line)


def as_rest(run: list[str]) -> list[str]:
    """A paragraph of a docstring, which is plain text: formulas and tables stay as they are, prose is escaped."""
    run = [line for line in run if not re.fullmatch(r"-{3,}", line)]
    if any(line.startswith(" ") for line in run[:1]) or any(re.search(r"\S {3,}\S", line) for line in run):
        return ["::", "", *[f"    {line}" for line in run], ""]
    parts = re.split(r"`([^`]+)`", "\n".join(run))  # prose and literals in turn
    parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", prose) for prose in parts[::2]]
    parts[1::2] = [f"``{literal.strip()}``" for literal in parts[1::2]]
    return [*"".join(parts).split("\n"), ""]


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read in the source; here they become reStructuredText."""
    lines[:] = [line for run in paragraphs(list(lines)) for line in as_rest(run)]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain)
