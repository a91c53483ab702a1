"""A configuration as it was written: the tree of a YAML file, the line of every key, overrides laid over it, and its faults."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a configuration: where and what (got, allowed, remedy). unknown: it is the name, not the value."""

    path: Path_
    text: str
    unknown: bool = False


class ConfigError(Exception):
    """All faults of a configuration, in the order of the file; str() names file, line and path of each."""

    def __init__(self, faults: Sequence[Fault], source: "Source | None" = None):
        self.faults = sorted(faults, key=source.place) if source else list(faults)
        self.source = source
        super().__init__("\n".join(self._line(fault) for fault in self.faults))

    def _line(self, fault: Fault) -> str:
        where = self.source.where(fault.path) if self.source else ""
        return f"{where}{dotted(fault.path)}: {fault.text}" if fault.path else fault.text


@dataclass(frozen=True)
class Source:
    """A configuration as it was written.

    tree: sections and values; lines: the line of every path (None for a command-line override); faults: what is wrong with the
    writing itself (a key given twice, an override of something that is not there); laid: the paths that were laid over the
    file; quick: where its section `quick` is not in use, the file without and with it, both without the command line.
    """

    file: str
    tree: dict[str, Any]
    lines: Mapping[Path_, int | None]
    faults: tuple[Fault, ...] = ()
    laid: frozenset[Path_] = frozenset()
    quick: "tuple[Source, Source] | None" = None

    def line(self, path: Path_) -> int | None:
        """The line of a path or of its nearest section; None on the command line, 0 if neither is known."""
        return next((self.lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.lines), 0)

    def where(self, path: Path_) -> str:
        """`file:line: ` of a path or of its nearest section."""
        line = self.line(path)
        return "command line: " if line is None else f"{self.file}:{line}: " if line else f"{self.file}: "

    def place(self, fault: Fault) -> float:
        """What faults are sorted by: the line, the command line last."""
        line = self.line(fault.path)
        return float("inf") if line is None else line


def dotted(path: Path_) -> str:
    """a.b[0].c"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def read(file: Path, overrides: Sequence[str] = ()) -> Source:
    """A YAML file with `key.path=value` overrides laid over it.

    Its section `quick` maps dotted paths to values: with `quick=true` among the overrides these are laid over the file before
    the others, and the name then ends in -quick. Raises ConfigError on what is not YAML or not a mapping.
    """
    tree, node = _parsed(file)
    if not isinstance(tree, dict):
        given = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(
            [Fault((), f"{file}: an experiment is a mapping of sections (real:, mix:, algorithm:, ...); got {given}")]
        )
    lines: dict[Path_, int | None] = {}
    faults = [Fault(path, f"is given twice, first in line {line}; keep one") for path, line in _lines(node, (), lines)]
    alone = Source(str(file), {key: value for key, value in tree.items() if key != "quick"}, lines, tuple(faults))
    quick = _with_quick(alone, tree["quick"]) if "quick" in tree else None
    usual = alone
    if quick:
        inside = {("quick", *path): line for path, line in quick.lines.items()}
        usual = replace(alone, lines=inside | lines, quick=(alone, quick))
    source, faults = usual, []
    for override in sorted(overrides, key=lambda override: not re.match(r"\s*quick\s*=", override)):
        path, sign, value = override.partition("=")
        steps = tuple(path.strip().split("."))
        try:
            if not sign or not all(steps):
                raise KeyError("an override is key.path=value")
            if steps == ("quick",):
                source = _chosen(_value(value), usual, quick)
            else:
                source = _over(source, steps, _value(value), {(): None})
        except KeyError as error:
            faults.append(Fault((), f"command line: {override!r}: {error.args[0]}"))
    name = source.tree.get("name", file.stem)
    if quick and not source.quick and isinstance(name, str):
        source = replace(source, tree=source.tree | {"name": f"{name}-quick"})
    return replace(source, faults=(*source.faults, *faults))


def _chosen(value: Any, usual: Source, quick: Source | None) -> Source:
    """What `quick=...` asks for. Raises KeyError if the file has no section `quick`, or the value is not true or false."""
    if not isinstance(value, bool):
        raise KeyError(f"must be true or false; got {shown(value)}")
    if value and quick is None:
        remedy = "add one, quick: {generations: 10, replicates: 2} for example, or set generations and replicates yourself"
        raise KeyError(f"the file has no section quick; {remedy}")
    return quick if value and quick else usual


def _with_quick(source: Source, quick: Any) -> Source:
    """The file with its section `quick` laid over it, each value at its line there."""
    if not isinstance(quick, dict) or not quick:
        text = f"must be a section of key.path: value, with one at least; got {shown(quick)}"
        return replace(source, faults=(*source.faults, Fault(("quick",), text)))
    for key, value in quick.items():
        where, steps = ("quick", key), tuple(key.split("."))
        written = {path[2:]: line for path, line in source.lines.items() if path[:2] == where}
        try:
            if not all(steps):
                raise KeyError("a key of this section is a path, key.path")
            source = _over(source, steps, value, {(): source.line(where), **written})
        except KeyError as error:
            source = replace(source, faults=(*source.faults, Fault(where, str(error.args[0]))))
    return source


def _over(source: Source, steps: tuple[str, ...], value: Any, written: Mapping[Path_, int | None]) -> Source:
    """The source with a value laid over it; written: the lines of the value, by path within it. Raises KeyError."""
    if steps[0] == "quick":
        raise KeyError(f"quick is laid over the other sections; set {'.'.join(steps[1:]) or 'those'} itself")
    tree, lines = copy.deepcopy(source.tree), dict(source.lines)
    path = _lay(tree, lines, steps, copy.deepcopy(value), written)
    return replace(source, tree=tree, lines=lines, laid=source.laid | {path})


def _parsed(file: Path) -> tuple[Any, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        return yaml.load(text, Loader=_Loader), yaml.compose(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError([Fault((), f"cannot read {file}: {error.strerror}; give the path of a YAML file")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Fault((), f"{file}: not a text in UTF-8 ({error.reason} at byte {error.start})")]) from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{file}:{mark.line + 1}: " if mark else f"{file}: "
        raise ConfigError([Fault((), f"{line}not YAML: {getattr(error, 'problem', None) or error}")]) from error


class _Loader(yaml.SafeLoader):
    """Keys are texts as they are written (`off`, `1`), 1e-3 is a number, a date is a text, and no alias holds itself."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        alias: Any = self.peek_event() if self.check_event(yaml.AliasEvent) else None  # type: ignore[no-untyped-call]
        node: Any = super().compose_node(parent, index)
        if alias is not None and node.end_mark is None:
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{alias.anchor} is inside what it names", problem_mark=alias.start_mark
            )
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _lines(node: Any, path: Path_, lines: dict[Path_, int | None]) -> Iterator[tuple[Path_, int]]:
    """Note the line of every path; yield the paths given twice, with the line of the first time."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            step = (*path, str(key.value))
            if step in lines:
                yield step, lines[step] or 0
            lines[step] = key.start_mark.line + 1
            yield from _lines(value, step, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[(*path, number)] = value.start_mark.line + 1
            yield from _lines(value, (*path, number), lines)


def _value(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise KeyError("the value is not YAML; quote it") from error


def _lay(
    tree: dict[str, Any], lines: dict[Path_, int | None], steps: Path_, value: Any, written: Mapping[Path_, int | None]
) -> Path_:
    """Lay a value over the tree; from then on its path, and all below it, stands where the value was written."""
    whole = 2 if steps[:2] == ("sweep", "grid") else 3 if steps[:2] == ("sweep", "zip") else len(steps)
    if len(steps) > whole:  # the keys of a sweep are dotted paths themselves
        steps = (*steps[:whole], ".".join(map(str, steps[whole:])))
    path = put(tree, steps, value)
    for known in [known for known in lines if known[: len(path)] == path]:
        del lines[known]
    for end in range(1, len(path)):
        lines.setdefault(path[:end], written[()])
    lines.update({(*path, *inside): line for inside, line in written.items()})
    return path


def put(tree: dict[str, Any], path: Path_, value: Any, merge: bool = False) -> Path_:
    """Set what stands at a path; the path, with numbers for places in lists. Raises KeyError with what is in the way."""
    here: Any = tree
    walked: Path_ = ()
    for step in path[:-1]:
        key = _step(here, step, walked)
        if isinstance(here, dict):
            here[key] = section(here.get(key))
        here, walked = here[key], (*walked, key)
    last = _step(here, path[-1], walked)
    old = section(here.get(last)) if isinstance(here, dict) and merge else None
    if isinstance(value, dict) and isinstance(old, dict) and value.get("kind") in (None, old.get("kind", value.get("kind"))):
        here[last] = old
        for key, inner in value.items():
            put(old, (key,), inner, merge=True)
    else:
        here[last] = value
    return (*walked, last)


def section(value: Any) -> Any:
    """A section whose short form was written: nothing, or its kind alone."""
    return {} if value is None else {"kind": value} if isinstance(value, str) else value


def _step(here: Any, step: str | int, walked: Path_) -> Any:
    if isinstance(here, dict):
        return step
    if isinstance(here, list) and str(step).isdecimal() and int(step) < len(here):
        return int(step)
    what = f"a list of {len(here)}, counted from 0," if isinstance(here, list) else f"{shown(here)}, not a section,"
    raise KeyError(f"{dotted(walked)} is {what} and holds no {str(step)!r}")


def at_path(tree: Any, path: Path_) -> Any:
    """What stands at a path, with numbers for places in lists; raises LookupError or TypeError where there is nothing."""
    for step in path:
        tree = tree[int(step) if isinstance(tree, list) and str(step).isdecimal() else step]
    return tree


def shown(value: Any) -> str:
    """A value as it would be written."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
