"""One YAML file is one experiment. Read, checked, spread over its sweep.

The file's sections are components (`selfloop.component`): their fields are the keys, their types the rules. A wrong key, type
or value is reported with its file and line, its path, what was given, what is allowed and the nearest valid name; all faults
at once.
"""

import copy
import dataclasses
import inspect
import itertools
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge
from pydantic import Field, Strict, ValidationError, WithJsonSchema
from typing_extensions import get_protocol_members, is_protocol

from selfloop import registry
from selfloop.component import AT_SAMPLING, Count, Switch, component
from selfloop.data import SourceFactory
from selfloop.madness import Madness
from selfloop.metrics.track import Tracker
from selfloop.mix import Mix
from selfloop.protocols import GIVES, Algorithm, Curator, Tunable

SLOTS: dict[Any, str] = {
    Algorithm: "algorithms",
    Tunable: "algorithms",
    SourceFactory: "sources",
    Tracker: "trackers",
    Curator: "curators",
}
"""Fields that take any member of a group of the registry, by `kind`."""

Path_ = tuple[str | int, ...]
Axis = Annotated[
    Any,
    WithJsonSchema({"anyOf": [{"type": "array", "minItems": 1}, {"type": "object", "minProperties": 1}]}),
]
"""Values, or label -> override."""


@component
class Sweep:
    """The points of an experiment: the product of the axes of `grid`, and of each group of paths in `zip`, which move together.

    A value replaces what stands at its dotted path. A mapping label -> override sweeps over objects: its override is merged
    into the section (replacing it where it names another kind), and results carry the label. independent: every point draws
    random numbers of its own; by default points share them, and are compared by paired differences.
    """

    grid: dict[str, Axis] = dataclasses.field(default_factory=dict)
    zip: tuple[dict[str, Axis], ...] = ()
    independent: Switch = False


@component
class Experiment:
    """A self-consuming loop and what is written down of it.

    seed: of all random numbers; generations: fits, the first on real data alone; replicates: independent loops, in batches of
    `chunk` that are one unit of work; statistics: carry moments instead of points; real: p_r; track: metric -> how.
    """

    real: SourceFactory
    mix: Mix
    algorithm: Algorithm
    track: dict[str, Tracker]
    seed: Annotated[int, Strict(), Ge(0)] = 0
    generations: Count = 100
    replicates: Count = 100
    chunk: Count = 100
    statistics: Switch = False
    madness: Madness | None = None
    sweep: Sweep = Sweep()
    name: Annotated[str, Field(pattern=r"^[\w][\w .-]*$|^$")] = ""


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
    writing itself (a key given twice, an override of something that is not there).
    """

    file: str
    tree: dict[str, Any]
    lines: Mapping[Path_, int | None]
    faults: tuple[Fault, ...] = ()

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


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its swept values by dotted path (a label for an override), and the experiment there."""

    values: dict[str, Any]
    experiment: Experiment

    @property
    def key(self) -> str:
        """A name that does not depend on the other points, nor on whether a 1 was written as 1.0."""
        plain = {path: int(v) if isinstance(v, float) and v.is_integer() else v for path, v in self.values.items()}
        return json.dumps(plain, sort_keys=True)


def dotted(path: Path_) -> str:
    """a.b[0].c"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


# Reading ---------------------------------------------------------------------------------------------------------------


def read(file: Path, overrides: Sequence[str] = ()) -> Source:
    """A YAML file with `key.path=value` overrides laid over it. Raises ConfigError on what is not YAML or not a mapping."""
    tree, node = _parsed(file)
    if not isinstance(tree, dict):
        given = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(
            [Fault((), f"{file}: an experiment is a mapping of sections (real:, mix:, algorithm:, ...); got {given}")]
        )
    lines: dict[Path_, int | None] = {}
    faults = [Fault(path, f"is given twice, first in line {line}; keep one") for path, line in _lines(node, (), lines)]
    for override in overrides:
        path, sign, value = override.partition("=")
        steps = tuple(path.strip().split("."))
        try:
            if not sign or not all(steps):
                raise KeyError("an override is key.path=value")
            _lay(tree, lines, steps, _value(value))
        except KeyError as error:
            faults.append(Fault((), f"command line: {override!r}: {error.args[0]}"))
    return Source(str(file), tree, lines, tuple(faults))


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


def _lay(tree: dict[str, Any], lines: dict[Path_, int | None], steps: tuple[str, ...], value: Any) -> None:
    """Lay an override over the tree; from then on its path, and all below it, stands on the command line."""
    whole = 2 if steps[:2] == ("sweep", "grid") else 3 if steps[:2] == ("sweep", "zip") else len(steps)
    if len(steps) > whole:  # the keys of a sweep are dotted paths themselves
        steps = (*steps[:whole], ".".join(steps[whole:]))
    path = _put(tree, steps, value)
    for known in [known for known in lines if known[: len(path)] == path]:
        del lines[known]
    for end in range(1, len(path)):
        lines.setdefault(path[:end], None)
    lines[path] = None


def _put(tree: dict[str, Any], path: Path_, value: Any, merge: bool = False) -> Path_:
    """Set what stands at a path; the path, with numbers for places in lists. Raises KeyError with what is in the way."""
    here: Any = tree
    walked: Path_ = ()
    for step in path[:-1]:
        key = _step(here, step, walked)
        if isinstance(here, dict):
            here[key] = _section(here.get(key))
        here, walked = here[key], (*walked, key)
    last = _step(here, path[-1], walked)
    old = _section(here.get(last)) if isinstance(here, dict) and merge else None
    if isinstance(value, dict) and isinstance(old, dict) and value.get("kind") in (None, old.get("kind", value.get("kind"))):
        here[last] = old
        for key, inner in value.items():
            _put(old, (key,), inner, merge=True)
    else:
        here[last] = value
    return (*walked, last)


def _section(value: Any) -> Any:
    """A section whose short form was written: nothing, or its kind alone."""
    return {} if value is None else {"kind": value} if isinstance(value, str) else value


def _step(here: Any, step: str | int, walked: Path_) -> Any:
    if isinstance(here, dict):
        return step
    if isinstance(here, list) and str(step).isdecimal() and int(step) < len(here):
        return int(step)
    what = f"a list of {len(here)}, counted from 0," if isinstance(here, list) else f"{_shown(here)}, not a section,"
    raise KeyError(f"{dotted(walked)} is {what} and holds no {str(step)!r}")


def _get(tree: Any, path: Path_) -> Any:
    """What stands at a path; raises LookupError or TypeError where there is nothing."""
    for step in path:
        tree = tree[step]
    return tree


# Spreading -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A value that a sweep sets: its dotted path, the label that results carry, and where it was written."""

    path: str
    label: Any
    value: Any
    where: Path_

    @property
    def steps(self) -> Path_:
        """The path, step by step."""
        return tuple(self.path.split("."))


WHOLE = ("sweep", "generations", "replicates", "chunk", "seed", "name", "madness")
"""What belongs to a whole experiment and cannot be swept."""


def load(source: Source) -> list[Point]:
    """The checked points of an experiment, in the order of its sweep. Raises ConfigError with every fault."""
    faults = list(source.faults)
    tree = {"name": Path(source.file).stem, **source.tree}
    if tree.get("sweep") is None:
        tree["sweep"] = {}
    elif isinstance(tree["sweep"], dict) and not (tree["sweep"].get("grid") or tree["sweep"].get("zip")):
        faults.append(Fault(("sweep",), "names no axis; give it a grid or a zip, or remove it"))
    sweep = _build(Sweep, tree["sweep"], ("sweep",), faults)
    axes = _axes(sweep, faults) if sweep else None
    if axes is None:  # check the rest of the file all the same; a sweep may hold what it lacks
        faults += [fault for fault in _examined(tree | {"sweep": {}})[1] if fault.text != MISSING]
        raise ConfigError(faults, source)
    points, rows, trees = [], [], []
    for settings in itertools.product(*axes):
        chosen = [setting for step in settings for setting in step]
        rows.append({setting.path: setting.label for setting in chosen})
        try:
            trees.append(_set(tree, chosen))
        except KeyError as error:
            faults.append(Fault(chosen[0].where[:-1], str(error.args[0])))
            continue
        experiment, found = _examined(trees[-1])
        faults += [_blamed(fault, chosen, source) for fault in found]
        points += [Point(rows[-1], experiment)] if experiment else []
    faults += [*_check_overrides(source, axes, trees), *_check_rows(rows)]
    if points and points[0].experiment.madness is not None:
        faults += _check_madness(points[0].experiment, points[0].experiment.madness, rows)
    if faults:
        raise ConfigError(_gathered(faults), source)
    return points


def _axes(sweep: Sweep, faults: list[Fault]) -> list[list[list[Setting]]] | None:
    """Axes of steps of settings that are made together; None, with faults, if the sweep is not well formed."""
    before = len(faults)
    groups: list[tuple[dict[str, Any], Path_]] = [({path: values}, ("sweep", "grid")) for path, values in sweep.grid.items()]
    groups += [(group, ("sweep", "zip", number)) for number, group in enumerate(sweep.zip)]
    axes, seen = [], set[str]()
    for group, where in groups:
        choices = {path: _choices(path, values, (*where, path), faults) for path, values in group.items()}
        sizes = {path: len(options) for path, options in choices.items()}
        if not group:
            faults.append(Fault(where, "names no path; give key.path: [values] or remove it"))
        elif all(sizes.values()) and len(set(sizes.values())) > 1:
            faults.append(Fault(where, f"paths that move together need equally many values; got {_listed(sizes)}"))
        else:
            axes.append([list(step) for step in zip(*choices.values(), strict=False)])
        faults += [Fault((*where, path), "is swept twice; keep one") for path in group if path in seen]
        seen |= set(group)
    return axes if len(faults) == before else None


def _choices(path: str, values: Any, where: Path_, faults: list[Fault]) -> list[Setting]:
    first = path.split(".")[0]
    if first in WHOLE:
        faults.append(Fault(where, f"{first} belongs to the whole experiment and cannot be swept"))
    if isinstance(values, dict) and values:
        return [Setting(path, label, override, (*where, label)) for label, override in values.items()]
    if isinstance(values, list) and values:
        labels = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
        return [Setting(path, label, value, (*where, i)) for i, (label, value) in enumerate(zip(labels, values, strict=True))]
    allowed = "an axis is a list of values or a mapping label -> override, with one value at least"
    faults.append(Fault(where, f"{allowed}; got {_shown(values)}"))
    return []


def _set(tree: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    """The tree at a point of the sweep; sections are set before what is inside them."""
    point = {key: value if key == "sweep" else copy.deepcopy(value) for key, value in tree.items()}
    for setting in sorted(settings, key=lambda setting: len(setting.steps)):
        _put(point, setting.steps, copy.deepcopy(setting.value), merge=True)
    return point


def _examined(tree: dict[str, Any]) -> tuple[Experiment | None, list[Fault]]:
    """The experiment of a tree without a sweep, if it is sound, and all its faults."""
    faults: list[Fault] = []
    experiment = whole = _build(Experiment, tree, (), faults)
    if experiment is None:  # parts that are sound by themselves may still not fit one another
        broken = {fault.path[0] for fault in faults if fault.path}
        rest = {key: value for key, value in tree.items() if key not in broken}
        whole = _build(Experiment, rest | ({"generations": 1} if "generations" in broken else {}), (), [])
    return experiment, faults + (check(whole) if whole else [])


def _blamed(fault: Fault, settings: Sequence[Setting], source: Source) -> Fault:
    """The fault at the place of the sweep where it was written; a fault of the unswept experiment as it is."""
    for setting in settings:
        n = len(setting.steps)
        if fault.unknown and fault.path == setting.steps[: len(fault.path)] and fault.path not in source.lines:
            return Fault(setting.where[:-1], f"{dotted(fault.path)}: {fault.text}")
        if fault.path[:n] != setting.steps:
            continue
        text = f"{dotted(fault.path)}: {fault.text}"
        if fault.unknown and len(fault.path) == n:
            return Fault(setting.where[:-1], text)
        written = (*setting.where, *fault.path[n:])
        return (
            fault
            if written not in source.lines and len(fault.path) > n and fault.path in source.lines
            else Fault(written, text)
        )
    return fault


def _gathered(faults: Sequence[Fault]) -> list[Fault]:
    """Each fault once; one that several values of an axis share, at the axis."""
    alike: dict[tuple[Path_, str], set[Path_]] = {}
    for fault in faults:
        alike.setdefault((fault.path[:-1], fault.text), set()).add(fault.path)
    shared = [key for key, paths in alike.items() if len(paths) > 1 and key[0][:1] == ("sweep",)]
    return list(dict.fromkeys(Fault(f.path[:-1] if (f.path[:-1], f.text) in shared else f.path, f.text) for f in faults))


def _check_overrides(
    source: Source, axes: Sequence[Sequence[Sequence[Setting]]], trees: Sequence[dict[str, Any]]
) -> Iterator[Fault]:
    """Overrides on the command line that the sweep would undo."""
    swept = {setting.steps: setting.where[:-1] for axis in axes for setting in axis[0]}
    for path in [path for path, line in source.lines.items() if line is None and path[0] != "sweep"]:
        if path in swept:
            yield Fault(path, f"is swept, and the sweep would win; override {'.'.join(map(str, swept[path]))}=[...] instead")
        elif trees and not any(_holds(tree, path, _get(source.tree, path)) for tree in trees):
            yield Fault(path, "is undone by the sweep, which replaces its section at every point; override the sweep instead")


def _holds(tree: dict[str, Any], path: Path_, value: Any) -> bool:
    try:
        there = _get(tree, path)
    except (LookupError, TypeError):
        return False
    return bool(there == value) or isinstance(value, str | dict)  # a section may have been merged into


def _check_rows(rows: Sequence[dict[str, Any]]) -> Iterator[Fault]:
    seen = set[Any]()
    for row in rows:
        key = tuple(row.items())
        if key in seen:
            yield Fault(("sweep",), f"names the point {_listed(row)} twice; keep one")
        seen.add(key)


def _check_madness(experiment: Experiment, rule: Madness, rows: Sequence[dict[str, Any]]) -> Iterator[Fault]:
    if rule.metric not in experiment.track:
        yield Fault(("madness", "metric"), registry.unknown(rule.metric, list(experiment.track)))
    elif experiment.track[rule.metric].every != 1:
        yield Fault(("madness", "metric"), f"needs every generation; set track.{rule.metric}.every to 1")
    elif (experiment.track[rule.metric].replicates or experiment.replicates) < 2:
        yield Fault(("madness", "metric"), f"needs two replicates or more; set track.{rule.metric}.replicates to 2")
    elif _registered().get(_target(experiment.track[rule.metric]), rule.metric) != rule.metric:
        yield Fault(("madness", "metric"), f"is the name of a metric, and {rule.metric} here names a tracker of another kind")
    if not rows[0]:
        yield Fault(
            ("madness",), "compares the points of a sweep over the guidance, and there is no sweep; remove it or add one"
        )
    elif rule.guidance not in rows[0]:
        yield Fault(("madness", "guidance"), registry.unknown(rule.guidance, list(rows[0]), "(the swept paths)"))
    elif all(row[rule.guidance] != rule.standard for row in rows):
        yield Fault(
            ("madness", "standard"), f"the sweep of {rule.guidance} must hold the standard value; got {rule.standard:g}"
        )
    elif lonely := [row for row in rows if {**row, rule.guidance: rule.standard} not in rows]:
        where = _listed(lonely[0])
        yield Fault(("madness", "guidance"), f"needs a standard point beside every point, and {where} has none; use grid axes")
    if experiment.replicates < 2:
        yield Fault(("replicates",), "must be >= 2 for intervals over replicates (madness); got 1")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}: {value}" for path, value in values.items())


# Building --------------------------------------------------------------------------------------------------------------

MISSING = "is missing; it has no default"


def _build(cls: Any, options: Any, path: Path_, faults: list[Fault], also: tuple[str, ...] = ()) -> Any:
    """An instance of a component or of a user's class from a mapping; None, with faults, if it cannot be made.

    also: keys that might have been meant besides the fields.
    """
    hints = _fields(cls)
    options = {} if options is None else _section(options) if "kind" in hints else options
    if not isinstance(options, dict):
        faults.append(Fault(path, f"must be a section of {', '.join(hints) or 'options'}; got {_shown(options)}"))
        return None
    before = len(faults)
    ready: dict[str, Any] = {}
    for key, value in options.items():
        if key in hints:
            ready[key] = _fill(hints[key], value, (*path, key), faults)
        else:
            faults.append(Fault((*path, key), registry.unknown(key, [*hints, *also]), unknown=True))
    failed = {fault.path[len(path)] for fault in faults[before:] if len(fault.path) > len(path)}
    meant = {name for key in options if key not in hints for name in registry.nearest(key, list(hints))}
    required = _required(cls) - set(options)
    faults += [Fault((*path, name), MISSING) for name in sorted(required - meant)]
    made = None if required else _made(cls, {k: v for k, v in ready.items() if k not in failed}, path, failed, faults)
    return made if len(faults) == before else None


def _made(cls: Any, options: dict[str, Any], path: Path_, failed: set[Any], faults: list[Fault]) -> Any:
    try:
        made = cls(**options)
    except ValidationError as error:
        faults += _explained(error, path, options, failed)
    except (TypeError, ValueError) as error:
        faults += [] if failed else [_owned(str(error), path, options)]
    else:
        lost = [name for name in _fields(cls) if not hasattr(made, name)]
        faults += [
            Fault(path, f"{cls.__name__} must keep {name} as an attribute, so that results can name it") for name in lost
        ]
        return made
    return None


def _fill(hint: Any, value: Any, path: Path_, faults: list[Fault]) -> Any:
    """The value of a field: members of slots and nested components are built, anything else is left to validation."""
    hint = _plain(hint)
    if value is None:
        return None
    if hint in SLOTS:
        return _member(hint, value, path, faults)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path, faults)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list) and _plain(inner[0]) in SLOTS:
        return tuple(_fill(inner[0], item, (*path, number), faults) for number, item in enumerate(value))
    if origin is dict and _plain(inner[1]) in SLOTS:
        return _named_members(_plain(inner[1]), value, path, faults)
    return value


def _named_members(slot: Any, value: Any, path: Path_, faults: list[Fault]) -> dict[str, Any] | None:
    """name -> member; the name is the kind where no other is given. A name that is `false` is left out."""
    value = {name: options for name, options in value.items() if options is not False} if isinstance(value, dict) else value
    if not isinstance(value, dict) or not value:
        faults.append(Fault(path, f"must be a section of name: options, with one name at least; got {_shown(value)}"))
        return None
    out = {}
    for name, options in value.items():
        options = _section(options)
        if isinstance(options, dict):
            out[name] = _member(slot, {"kind": name, **options}, (*path, name), faults)
        else:
            faults.append(
                Fault((*path, name), f"must be a section of options, empty, or false to leave it out; got {_shown(options)}")
            )
    return out


def _member(slot: Any, value: Any, path: Path_, faults: list[Fault]) -> Any:
    group, value = SLOTS[slot], _section(value)
    if not isinstance(value, dict) or value.get("kind") is None:
        faults.append(_without_kind(value, path, sorted(registry.KINDS[group])))
        return None
    kind = str(value["kind"])
    try:
        cls = registry.resolve(group, kind)
    except (LookupError, ImportError) as error:
        named = group == "trackers" and path[-1] == kind
        faults.append(Fault(path if named else (*path, "kind"), str(error.args[0]), unknown=named))
        return None
    missing = [name for name in _methods(slot) if not _offers(cls, name)]  # asked of the class: nothing foreign is called
    if missing:
        faults.append(Fault(path, f"must offer {' and '.join(missing)}, and {kind} does not{_fitting(slot)}"))
        return None
    return _build(cls, {key: item for key, item in value.items() if key != "kind"}, path, faults, also=("kind",))


def _without_kind(value: Any, path: Path_, kinds: Sequence[str]) -> Fault:
    text = f"a section needs a kind, one of {', '.join(kinds)}; got"
    if not isinstance(value, dict):
        return Fault(path, f"{text} {_shown(value)}")
    meant = [key for key in value if registry.nearest(key, ["kind"])]
    if "kind" in value:
        return Fault((*path, "kind"), f"{text} nothing")
    if meant:
        return Fault((*path, meant[0]), f"{text} {meant[0]!r}; did you mean 'kind'?")
    return Fault(path, f"{text} {', '.join(value) or 'an empty one'}")


def _fitting(slot: Any) -> str:
    if slot is not Tunable:
        return ""
    classes = {kind: registry.resolve("algorithms", kind) for kind in registry.KINDS["algorithms"]}
    return f"; {', '.join(kind for kind, cls in classes.items() if all(_offers(cls, name) for name in _methods(slot)))} do"


def _methods(slot: Any) -> list[str]:
    return sorted(get_protocol_members(slot)) if is_protocol(slot) else ["__call__", "due", "every", "replicates"]


def _offers(cls: type[Any], name: str) -> bool:
    return any(name in vars(base) for base in cls.__mro__)


@lru_cache(maxsize=256)
def _fields(cls: Any) -> dict[str, Any]:
    """Field names and their types: of a dataclass, or of the constructor of any other class."""
    if dataclasses.is_dataclass(cls):
        hints = _hints(cls)
        return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(cls) if field.init}
    hints = _hints(cls.__init__)
    return {name: hints.get(name, Any) for name in _parameters(cls)}


def _required(cls: Any) -> set[str]:
    """Fields without a default."""
    return {name for name, parameter in _parameters(cls).items() if parameter.default is inspect.Parameter.empty}


def _parameters(cls: Any) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in inspect.signature(cls).parameters.items() if parameter.kind in named}


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of, include_extras=True)
    except NameError:  # a user's annotations that exist for the type checker alone
        return {}


def _plain(hint: Any) -> Any:
    """A type without Annotated and `| None`."""
    if typing.get_origin(hint) is Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        some = [part for part in typing.get_args(hint) if part is not type(None)]
        return _plain(some[0]) if len(some) == 1 else hint
    return hint


# Explaining ------------------------------------------------------------------------------------------------------------

ALLOWED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text (quote it)",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a section key: value",
    "greater_than": "> {gt:g}",
    "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt:g}",
    "less_than_equal": "<= {le:g}",
}
"""The faults that pydantic finds, in our words."""


def _explained(error: ValidationError, path: Path_, options: Mapping[str, Any], failed: set[Any]) -> list[Fault]:
    """pydantic's faults in our words; the branches of a union become one fault."""
    found: dict[Path_, list[Any]] = {}
    for item in error.errors():
        loc: Path_ = tuple(step for step in item["loc"] if isinstance(step, int) or step == item["loc"][0])
        if not loc or loc[0] not in failed:
            found.setdefault(loc, []).append(item)
    out = []
    for loc, items in found.items():
        context, given = items[0].get("ctx", {}), items[0]["input"]
        if items[0]["type"] in ("value_error", "assertion_error"):
            out.append(_owned(str(context["error"]), (*path, *loc), {} if loc else options))
        elif items[0]["type"] != "too_short":
            out.append(Fault((*path, *loc), f"must be {' or '.join(map(_allowed, items))}; got {_shown(given)}{_hint(items)}"))
        elif len(given) < context["min_length"]:  # else some of its items failed, of which pydantic tells too
            out.append(Fault((*path, *loc), f"must hold {context['min_length']} or more values; got {_shown(given)}"))
    return out


def _allowed(item: Any) -> str:
    if item["type"] == "literal_error":
        names = _literals(item)
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    return ALLOWED.get(item["type"], f"such that: {item['msg']}").format(**item.get("ctx", {}))


def _hint(items: Sequence[Any]) -> str:
    names = [name for item in items if item["type"] == "literal_error" for name in _literals(item)]
    near = registry.nearest(items[0]["input"], names) if isinstance(items[0]["input"], str) else []
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def _literals(item: Any) -> list[str]:
    return re.findall(r"'([^']*)'", item["ctx"]["expected"])


def _owned(text: str, path: Path_, options: Mapping[str, Any]) -> Fault:
    """A fault at the first of the options that its text speaks of."""
    named = [name for name in re.findall(r"\w+", text) if name in options]
    return Fault((*path, named[0]), text.removeprefix(f"{named[0]} ")) if named else Fault(path, text)


def _shown(value: Any) -> str:
    """A value as it would be written."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Checking what single fields cannot know ---------------------------------------------------------------------------------


def check(experiment: Experiment) -> list[Fault]:
    """Parts that do not fit one another, found before anything runs."""
    return [
        *_check_nesting(experiment.algorithm, ("algorithm",)),
        *_check_trackers(experiment),
        *(_check_statistics(experiment) if experiment.statistics else ()),
        *_check_mix(experiment),
        *_check_sizes(experiment),
    ]


def _lacks(thing: Any, what: frozenset[str]) -> list[str]:
    """What it does not give, as far as it says what it gives."""
    gives = getattr(thing, "gives", None)
    return sorted(what - gives) if gives is not None else []


def _check_nesting(algorithm: Any, path: Path_) -> Iterator[Fault]:
    inner = getattr(algorithm, "algorithm", None)
    if inner is None:
        return
    for name in _lacks(inner, getattr(algorithm, "needs", frozenset())):
        text = f"{_kind_of(algorithm)} needs {GIVES[name]}, and {_kind_of(inner)} gives none; use another kind"
        yield Fault((*path, "algorithm"), text)
    yield from _check_nesting(inner, (*path, "algorithm"))


def _check_trackers(experiment: Experiment) -> Iterator[Fault]:
    seen: dict[type[Any], str] = {}
    for name, tracker in experiment.track.items():
        if type(tracker) in seen:
            yield Fault(("track", name), f"writes the same metrics as {seen[type(tracker)]}; keep one {_kind_of(tracker)}")
        seen.setdefault(type(tracker), name)
        for need in _lacks(experiment.algorithm, getattr(tracker, "needs", frozenset())):
            yield Fault(
                ("track", name), f"needs {GIVES[need]}, and {_kind_of(experiment.algorithm)} gives none; remove this tracker"
            )
        for need in sorted(getattr(tracker, "needs_source", frozenset()) - getattr(experiment.real, "gives", frozenset())):
            text = f"needs real data with {GIVES[need]}, and {_kind_of(experiment.real)} has none; remove this tracker"
            yield Fault(("track", name), text)


def _check_statistics(experiment: Experiment) -> Iterator[Fault]:
    points = "set statistics: false"
    for _ in _lacks(experiment.algorithm, frozenset({"draw"})):
        yield Fault(("statistics",), f"true needs {GIVES['draw']}, and {_kind_of(experiment.algorithm)} gives none; {points}")
    for _ in _lacks(experiment.real, frozenset({"draw"})):
        yield Fault(
            ("statistics",), f"true needs {GIVES['draw']}, and the real data ({_kind_of(experiment.real)}) has none; {points}"
        )
    if experiment.mix.curators:
        yield Fault(("mix", "curators"), f"look at points, and statistics: true has none; {points}")
    if experiment.mix.type.subsample:
        yield Fault(
            ("mix", "kind"), f"accumulate_subsample draws from a pool of points, and statistics: true has none; {points}"
        )


def _check_mix(experiment: Experiment) -> Iterator[Fault]:
    algorithm, mix = experiment.algorithm, experiment.mix
    if mix.bias != 1:
        for _ in _lacks(algorithm, frozenset({"biased"})):
            yield Fault(("mix", "bias"), f"{_kind_of(algorithm)} has no sampling bias; set it to 1")
    if mix.warm is not None and not isinstance(algorithm, Tunable):
        yield Fault(("mix", "warm"), f"fine-tunes the last model, and {_kind_of(algorithm)} cannot be tuned; remove it")
    largest = getattr(algorithm, "largest_budget", None)
    if mix.warm is not None and largest is not None and mix.warm > largest:
        yield Fault(("mix", "warm"), f"must be <= {largest:g}, the whole way to the new fit; got {mix.warm:g}")
    rows, needed = getattr(experiment.real, "rows", None), mix.real_rows(experiment.generations)
    if rows is not None and needed > rows:
        uses = f"{experiment.generations} generations of this {mix.kind} loop use {needed} real rows"
        yield Fault(("mix", "n_real"), f"{uses}, and {_kind_of(experiment.real)} has {rows} for training; use fewer")


def _check_sizes(experiment: Experiment) -> Iterator[Fault]:
    """Fits of too few points, or of another number than the rows of a fixed design; targets of another dimension."""
    mix, d = experiment.mix, getattr(experiment.real, "d", None)
    sizes_later = {mix.synthetic_size(g) for g in range(2, experiment.generations + 2)}
    if getattr(experiment.algorithm, "design", None) == "fixed" and sizes_later != {mix.real_size(1)}:
        given = "n_synthetic" if mix.n_synthetic else "ratio" if mix.ratio else "fraction"
        text = f"must be n_real = {mix.real_size(1)}: a fixed design gives every generation the rows of the first; got"
        yield Fault(("mix", given), f"{text} {sorted(sizes_later)}, or set algorithm.design to fresh")
    for number, curator in enumerate(mix.curators):
        target = getattr(curator, "target", None)
        if target is not None and d is not None and len(target) != d:
            yield Fault(("mix", "curators", number, "target"), f"must have {d} coordinates, one a dimension; got {len(target)}")
    least = _least_points(experiment.algorithm)
    if least is None or d is None:
        return
    sizes: dict[Path_, int] = {("mix", "n_real"): mix.real_size(1)}
    later = [
        mix.synthetic_size(g) + (0 if mix.type.real == "none" else mix.real_size(g))
        for g in range(2, experiment.generations + 1)
    ]
    if later:
        sizes[("mix", "n_synthetic")] = min(later)
    thing: Any = experiment.algorithm
    path: Path_ = ("algorithm",)
    while thing is not None:  # the auxiliary of a wrapper is fitted too
        if hasattr(thing, "algorithm") and hasattr(thing, "n_synthetic"):
            sizes[(*path, "n_synthetic")] = thing.n_synthetic
        thing, path = getattr(thing, "algorithm", None), (*path, "algorithm")
    for field, n in sizes.items():
        if n < least(d):
            who = f"{_kind_of(experiment.algorithm)} in d = {d} dimension{'s' if d > 1 else ''}"
            yield Fault(field, f"must be >= {least(d)} points for a fit of {who}; got {n}")


def _least_points(algorithm: Any) -> Any:
    if algorithm is None or hasattr(algorithm, "least_points"):
        return getattr(algorithm, "least_points", None)
    return _least_points(getattr(algorithm, "algorithm", None))


def _kind_of(thing: Any) -> str:
    """The registered name of its class, or the name of the class."""
    return _registered().get(_target(thing), type(thing).__name__)


def _target(thing: Any) -> str:
    return f"{type(thing).__module__}:{type(thing).__name__}"


@lru_cache(maxsize=1)
def _registered() -> dict[str, str]:
    return {target: name for group in registry.KINDS.values() for name, target in group.items()}


# Describing ------------------------------------------------------------------------------------------------------------


def describe(thing: Any, without_sampling: bool = False) -> Any:
    """Plain data that `load` would read back to the same thing, defaults filled in.

    without_sampling: leave out the fields of `thing` itself that act only when its models are sampled.
    """
    if hasattr(thing, "tolist"):
        return thing.tolist()
    if isinstance(thing, Mapping):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [describe(value) for value in thing]
    if isinstance(thing, str | int | float | bool | None):
        return thing
    hints = _fields(thing.__class__)
    out = {} if "kind" in hints or type(thing) in _SECTIONS else {"kind": _registered().get(_target(thing), _target(thing))}
    for name, hint in hints.items():
        if not (without_sampling and AT_SAMPLING in typing.get_args(hint)):
            out[name] = describe(getattr(thing, name))
    return out


_SECTIONS = (Experiment, Sweep, Mix, Madness)


def resolved(source: Source, points: Sequence[Point]) -> dict[str, Any]:
    """The experiment with every default filled in, to be read back by `load`; what the sweep sets stays as it was written."""
    tree: dict[str, Any] = describe(points[0].experiment)
    if not points[0].values:
        del tree["sweep"]
    for path in sorted(points[0].values, key=len):
        steps: Path_ = tuple(path.split("."))
        if steps[-1] == "kind" and "kind" not in _fields(_at(points[0].experiment, steps[:-1]).__class__):
            steps = steps[:-1]  # the options of one member of a slot are not those of another
        try:
            _put(tree, steps, copy.deepcopy(_get(source.tree, steps)))
        except LookupError:
            _get(tree, steps[:-1]).pop(steps[-1], None)
    return tree


def _at(thing: Any, steps: Path_) -> Any:
    for step in steps:
        thing = (
            thing[step]
            if isinstance(thing, Mapping)
            else thing[int(step)]
            if isinstance(thing, tuple)
            else getattr(thing, str(step))
        )
    return thing


def fit_key(point: Point) -> str:
    """Points with one key share the fit of generation 1: all that shapes it, and nothing that acts at sampling."""
    experiment = point.experiment
    shared = point.key if experiment.sweep.independent else ""
    algorithm = describe(experiment.algorithm, without_sampling=True)
    return json.dumps(
        [shared, describe(experiment.real), describe(experiment.mix), algorithm, experiment.statistics], sort_keys=True
    )


def groups(points: Sequence[Point]) -> list[list[Point]]:
    """The points, gathered by `fit_key`, in order of first appearance."""
    out: dict[str, list[Point]] = {}
    for point in points:
        out.setdefault(fit_key(point), []).append(point)
    return list(out.values())
