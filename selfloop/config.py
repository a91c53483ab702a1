"""One YAML file is one experiment. Read, checked, spread over its sweep.

The file's sections are components (`selfloop.component`): their fields are the keys, their types the rules. A wrong key, type or value
is reported with its file and line, its path, what was given, what is allowed and the nearest valid name; all faults at once.
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
from pydantic import Strict, ValidationError
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


@component
class Sweep:
    """The points of an experiment: the product of the axes of `grid`, and of each group of paths in `zip`, which move together.

    A value replaces what stands at its dotted path. A mapping label -> override sweeps over objects: its override is merged into
    the section (replacing it where it names another kind), and results carry the label. independent: every point draws
    random numbers of its own; by default points share them, and are compared by paired differences.
    """

    grid: dict[str, Any] = dataclasses.field(default_factory=dict)
    zip: tuple[dict[str, Any], ...] = ()
    independent: Switch = False


@component
class Experiment:
    """A self-consuming loop and what is written down of it.

    seed: of all random numbers; generations: fits, the first on real data alone; replicates: independent loops, in batches of `chunk`
    that are one unit of work; statistics: carry moments instead of points; real: p_r; track: metric -> how.
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
    name: str = ""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a configuration: where (path) and what (got, allowed, remedy)."""

    path: Path_
    text: str


class ConfigError(Exception):
    """All faults of a configuration; str() names file, line and path of each."""

    def __init__(self, faults: Sequence[Fault], source: "Source | None" = None):
        self.faults = list(faults)
        self.source = source
        super().__init__("\n".join(self._line(fault) for fault in self.faults))

    def _line(self, fault: Fault) -> str:
        where = self.source.where(fault.path) if self.source else ""
        return f"{where}{dotted(fault.path)}: {fault.text}" if fault.path else f"{where}{fault.text}"


@dataclass(frozen=True)
class Source:
    """A configuration as it was written: its tree, and the line of every path (None for a command-line override)."""

    file: str
    tree: dict[str, Any]
    lines: Mapping[Path_, int | None]

    def where(self, path: Path_) -> str:
        """`file:line: ` of a path or of its nearest section."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                line = self.lines[path[:end]]
                return "command line: " if line is None else f"{self.file}:{line}: "
        return f"{self.file}: "


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its swept values by dotted path (a label for an override), and the experiment there."""

    values: dict[str, Any]
    experiment: Experiment

    @property
    def key(self) -> str:
        """A name that does not depend on the other points."""
        return json.dumps(self.values, sort_keys=True)


def dotted(path: Path_) -> str:
    """a.b[0].c"""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


# Reading -----------------------------------------------------------------------------------------------------------------


def read(file: Path, overrides: Sequence[str] = ()) -> Source:
    """A YAML file with `key.path=value` overrides laid over it. Raises ConfigError on what is not YAML or not an override."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Fault((), f"cannot read {file}: {error.strerror}; give the path of a YAML file")]) from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506, a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{file}:{mark.line + 1}: " if mark else f"{file}: "
        raise ConfigError([Fault((), f"{line}not YAML: {getattr(error, 'problem', error)}")]) from error
    if not isinstance(tree, dict):
        raise ConfigError([Fault((), f"{file} must hold a mapping of sections, got {type(tree).__name__}")])
    lines: dict[Path_, int | None] = {}
    twice = list(_lines(node, (), lines))
    source = Source(str(file), tree, lines)
    if twice:
        raise ConfigError([Fault(path, "is given twice; keep one") for path in twice], source)
    for override in overrides:
        path, value = _override(override)
        try:
            _put(tree, path, value)
        except KeyError as error:
            raise ConfigError([Fault(path, f"override {override!r}: {error.args[0]}")]) from error
        lines[path] = None
    return source


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _lines(node: Any, path: Path_, lines: dict[Path_, int | None]) -> Iterator[Path_]:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            step = (*path, str(key.value))
            if step in lines:
                yield step
            lines[step] = key.start_mark.line + 1
            yield from _lines(value, step, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            lines[(*path, number)] = value.start_mark.line + 1
            yield from _lines(value, (*path, number), lines)


def _override(text: str) -> tuple[Path_, Any]:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise ConfigError([Fault((), f"command line: an override is key.path=value, got {text!r}")])
    try:
        return tuple(path.strip().split(".")), yaml.load(value, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError([Fault((), f"the value of override {text!r} is not YAML; quote it")]) from error


def _put(tree: dict[str, Any], path: Path_, value: Any, merge: bool = False) -> None:
    here: Any = tree
    if path[:2] == ("sweep", "grid") and len(path) > 2:  # the keys of a grid are dotted paths themselves
        path = ("sweep", "grid", ".".join(map(str, path[2:])))
    for number, step in enumerate(path[:-1]):
        if isinstance(here, dict) and (here.get(str(step)) is None or isinstance(here.get(str(step)), str)):
            kind = here.get(str(step))
            here[str(step)] = {} if kind is None else {"kind": kind}
        try:
            here = here[int(step)] if isinstance(here, list) else here[str(step)]
        except (ValueError, IndexError, TypeError) as error:
            raise KeyError(f"{dotted(path[: number + 1])} is not a section") from error
    last = path[-1]
    if isinstance(here, list):
        here[int(last)] = value
    elif not isinstance(here, dict):
        raise KeyError(f"{dotted(path[:-1])} is not a section, it is {here!r}")
    elif merge and isinstance(value, dict) and isinstance(here.get(str(last)), dict) and _same_kind(value, here[str(last)]):
        for key, inner in value.items():
            _put(here[str(last)], (key,), inner, merge=True)
    else:
        here[str(last)] = value


def _same_kind(new: dict[str, Any], old: dict[str, Any]) -> bool:
    return "kind" not in new or new["kind"] == old.get("kind")


# Building ----------------------------------------------------------------------------------------------------------------


def load(source: Source) -> list[Point]:
    """The checked points of an experiment, in the order of its sweep. Raises ConfigError with every fault."""
    faults: list[Fault] = []
    tree = {"name": Path(source.file).stem, **source.tree}
    sweep = _build(Sweep, tree.get("sweep") or {}, ("sweep",), faults)
    if faults:
        raise ConfigError(faults, source)
    swept = {tuple(path.split(".")) for group in ({**sweep.grid}, *sweep.zip) for path in group}
    for path in [path for path, line in source.lines.items() if line is None and path in swept]:
        name = dotted(path)
        faults.append(Fault(path, f"is swept, and the sweep would win; override sweep.grid.{name}=[...] instead"))
    points = []
    for values, point_tree, axes in _spread(tree, sweep, faults):
        found: list[Fault] = []
        experiment = _build(Experiment, point_tree, (), found)
        if experiment is not None:
            found += check(experiment)
        faults += [_blame_sweep(fault, axes) for fault in found]
        if experiment is not None:
            points.append(Point(values, experiment))
    if not faults and len({point.key for point in points}) < len(points):
        faults.append(Fault(("sweep",), "names a point twice; every combination of values must differ"))
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)), source)
    _check_madness(points, source)
    return points


def _spread(
    tree: dict[str, Any], sweep: Sweep, faults: list[Fault]
) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[Path_, Path_]]]:
    axes: list[list[list[tuple[str, Any, Any, Path_]]]] = []
    groups = [({path: values}, ("sweep", "grid")) for path, values in sweep.grid.items()]
    groups += [(group, ("sweep", "zip", number)) for number, group in enumerate(sweep.zip)]
    for group, where in groups:
        choices = {path: _choices(values, (*where, path), faults) for path, values in group.items()}
        if len({len(options) for options in choices.values()}) > 1:
            sizes = {path: len(options) for path, options in choices.items()}
            faults.append(Fault(where, f"paths that move together need equally many values, got {sizes}"))
            return
        axes.append([list(step) for step in zip(*choices.values(), strict=True)])
    if any(not axis for axis in axes):
        return
    for combination in itertools.product(*axes):
        point = copy.deepcopy({key: value for key, value in tree.items() if key != "sweep"})
        point["sweep"] = tree.get("sweep") or {}
        values, blame = {}, {}
        for path, label, value, where in itertools.chain.from_iterable(combination):
            steps: Path_ = tuple(path.split("."))
            if steps[0] in ("sweep", "generations", "replicates", "chunk", "seed", "name", "madness"):
                faults.append(Fault(where, f"{steps[0]} belongs to the whole experiment and cannot be swept"))
                return
            try:
                _put(point, steps, copy.deepcopy(value), merge=True)
            except KeyError as error:
                faults.append(Fault(where, str(error.args[0])))
                return
            values[path] = label
            blame[steps] = where
        yield values, point, blame


def _choices(values: Any, where: Path_, faults: list[Fault]) -> list[tuple[str, Any, Any, Path_]]:
    path = str(where[-1])
    if isinstance(values, dict) and values:
        return [(path, str(label), override, (*where, str(label))) for label, override in values.items()]
    if isinstance(values, list) and values:
        return [(path, json.dumps(v) if isinstance(v, list | dict) else v, v, (*where, i)) for i, v in enumerate(values)]
    faults.append(Fault(where, f"an axis is a list of values or a mapping label -> override, and not empty; got {values!r}"))
    return []


def _blame_sweep(fault: Fault, axes: Mapping[Path_, Path_]) -> Fault:
    for steps, where in axes.items():
        if fault.path[: len(steps)] == steps:
            return Fault(where, f"{dotted(fault.path)} {fault.text}")
    return fault


def _build(cls: Any, options: Any, path: Path_, faults: list[Fault]) -> Any:
    """An instance of a component or of a user's class from a mapping; None, with faults, if it cannot be made."""
    options = {} if options is None else {"kind": options} if isinstance(options, str) and _has_kind(cls) else options
    if not isinstance(options, dict):
        faults.append(Fault(path, f"must be a section of {', '.join(_fields(cls)) or 'options'}; got {options!r}"))
        return None
    hints = _fields(cls)
    before = len(faults)
    ready: dict[str, Any] = {}
    for key, value in options.items():
        if key not in hints:
            faults.append(Fault((*path, key), registry.unknown(key, list(hints))))
        else:
            ready[key] = _fill(hints[key], value, (*path, key), faults)
    failed = {fault.path[len(path)] for fault in faults[before:] if len(fault.path) > len(path)}
    try:
        made = cls(**{key: value for key, value in ready.items() if key not in failed})
    except ValidationError as error:
        for item in error.errors():
            if not item["loc"] or item["loc"][0] not in failed:
                faults.append(_explain(item, path, hints))
        return None
    except (TypeError, ValueError) as error:
        if not failed:
            faults.append(Fault(path, f"{error}"))
        return None
    return made if len(faults) == before else None


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
        if not isinstance(value, dict) or not value:
            faults.append(Fault(path, f"must be a section name -> options and not empty; got {value!r}"))
            return None
        named = {key: item if isinstance(item, dict) and "kind" in item else {"kind": key, **(item or {})} for key, item in value.items()}
        return {key: _fill(inner[1], item, (*path, key), faults) for key, item in named.items()}
    return value


def _member(slot: Any, value: Any, path: Path_, faults: list[Fault]) -> Any:
    group = SLOTS[slot]
    value = {"kind": value} if isinstance(value, str) else value
    names = ", ".join(registry.KINDS[group])
    if not isinstance(value, dict) or "kind" not in value:
        faults.append(Fault(path, f"needs a kind, one of {names}; got {value!r}"))
        return None
    try:
        cls = registry.resolve(group, str(value["kind"]))
    except (LookupError, ImportError) as error:
        here = path if group == "trackers" and path[-1] == value["kind"] else (*path, "kind")
        faults.append(Fault(here, str(error.args[0])))
        return None
    made = _build(cls, {key: item for key, item in value.items() if key != "kind"}, path, faults)
    if made is None:
        return None
    missing = [name for name in _methods(slot) if not hasattr(made, name)]
    if missing:
        faults.append(Fault(path, f"must offer {' and '.join(missing)}, and {value['kind']} does not"))
        return None
    return made


def _methods(slot: Any) -> list[str]:
    return sorted(get_protocol_members(slot)) if is_protocol(slot) else ["due"]


def _has_kind(cls: Any) -> bool:
    return "kind" in _fields(cls)


@lru_cache(maxsize=256)
def _fields(cls: Any) -> dict[str, Any]:
    """Field names and their types: of a dataclass, or of the constructor of any other class."""
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    parameters = list(inspect.signature(cls).parameters.values())
    return {parameter.name: parameter.annotation for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD}


def _plain(hint: Any) -> Any:
    """A type without Annotated and `| None`."""
    if typing.get_origin(hint) is Annotated:
        return _plain(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        some = [part for part in typing.get_args(hint) if part is not type(None)]
        return _plain(some[0]) if len(some) == 1 else hint
    return hint


def _explain(item: Any, path: Path_, hints: Mapping[str, Any]) -> Fault:
    """A fault in our words from one of pydantic's."""
    loc = tuple(step for step in item["loc"] if isinstance(step, int) or step in hints or not item["loc"].index(step))
    given = item.get("input")
    kind = item["type"]
    if kind == "missing":
        return Fault((*path, *loc), "is missing; it has no default")
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        return Fault((*path, *loc), registry.unknown(str(given), names))
    if kind in ("value_error", "assertion_error"):
        return Fault((*path, *loc), str(item["ctx"]["error"]))
    text = re.sub(r"^(Input|Value) should (be )?", "must be ", str(item["msg"]))
    text = re.sub(r"^must be a valid ", "must be a ", text).replace("greater than or equal to", ">=").replace("less than or equal to", "<=")
    text = text.replace("greater than", ">").replace("less than", "<")
    return Fault((*path, *loc), f"{text}; got {given!r}")


# Checking what single fields cannot know -----------------------------------------------------------------------------------


def check(experiment: Experiment) -> list[Fault]:
    """Parts that do not fit one another, found before anything runs."""
    faults: list[Fault] = []
    algorithm, mix = experiment.algorithm, experiment.mix
    gives = getattr(algorithm, "gives", None)

    def lacks(what: frozenset[str], path: Path_, who: str, remedy: str) -> None:
        for name in sorted(what - (gives if gives is not None else what)):
            faults.append(Fault(path, f"{who} needs {GIVES[name]}, and {_kind_of(algorithm)} gives none; {remedy}"))

    inner = getattr(algorithm, "algorithm", None)
    if inner is not None and hasattr(inner, "gives"):
        for name in sorted(getattr(algorithm, "needs", frozenset()) - inner.gives):
            faults.append(Fault(("algorithm", "algorithm"), f"{_kind_of(algorithm)} needs {GIVES[name]}, and {_kind_of(inner)} gives none"))
    for name, tracker in experiment.track.items():
        lacks(getattr(tracker, "needs", frozenset()), ("track", name), name, "remove this tracker")
        for need in sorted(getattr(tracker, "needs_source", frozenset()) - getattr(experiment.real, "gives", frozenset())):
            faults.append(
                Fault(("track", name), f"needs real data with {GIVES[need]}, and {_kind_of(experiment.real)} has none; remove it")
            )
    if experiment.statistics:
        lacks(frozenset({"draw"}), ("statistics",), "statistics: true", "set statistics: false")
        if mix.curators:
            faults.append(Fault(("mix", "curators"), "curators look at points, and statistics: true has none; set statistics: false"))
        if mix.type.subsample:
            faults.append(Fault(("mix", "kind"), "accumulate_subsample draws from a pool of points; set statistics: false"))
        if "draw" not in getattr(experiment.real, "gives", frozenset({"draw"})):
            faults.append(Fault(("statistics",), f"{_kind_of(experiment.real)} gives points; set statistics: false"))
    if mix.bias != 1:
        lacks(frozenset({"biased"}), ("mix", "bias"), "mix.bias", "set it to 1")
    if mix.warm is not None and not isinstance(algorithm, Tunable):
        faults.append(Fault(("mix", "warm"), f"fine-tunes the last model, and {_kind_of(algorithm)} cannot be tuned; remove it"))
    rows = getattr(experiment.real, "rows", None)
    needed = mix.real_rows(experiment.generations)
    if rows is not None and needed > rows:
        faults.append(
            Fault(("mix", "n_real"), f"{experiment.generations} generations of this loop use {needed} real rows, and the data set has {rows} for training; use fewer")
        )
    least = getattr(algorithm, "least_points", None)
    if least is not None:
        d = getattr(experiment.real, "d", None)
        sizes = {"n_real": min(mix.n_real)}
        if mix.type.real == "none":
            sizes["n_synthetic"] = min(mix.synthetic_size(g) for g in range(2, experiment.generations + 1)) if experiment.generations > 1 else sizes["n_real"]
        for field, n in sizes.items():
            if d is not None and n < least(d):
                faults.append(Fault(("mix", field), f"must be at least {least(d)} to fit {_kind_of(algorithm)} in d = {d} dimensions; got {n}"))
    return faults


def _check_madness(points: Sequence[Point], source: Source) -> None:
    rule = points[0].experiment.madness
    if rule is None:
        return
    faults = []
    if rule.metric not in points[0].experiment.track:
        faults.append(Fault(("madness", "metric"), registry.unknown(rule.metric, list(points[0].experiment.track))))
    elif points[0].experiment.track[rule.metric].every != 1:
        faults.append(Fault(("madness", "metric"), f"needs every generation; set track.{rule.metric}.every to 1"))
    if rule.guidance not in points[0].values:
        faults.append(Fault(("madness", "guidance"), registry.unknown(rule.guidance, list(points[0].values), "(the swept paths)")))
    elif all(point.values[rule.guidance] != rule.standard for point in points):
        faults.append(Fault(("madness", "standard"), f"the sweep of {rule.guidance} must hold the standard value {rule.standard}"))
    if points[0].experiment.replicates < 2:
        faults.append(Fault(("replicates",), "intervals over replicates need at least two; got 1"))
    if faults:
        raise ConfigError(faults, source)


def _kind_of(thing: Any) -> str:
    target = f"{type(thing).__module__}:{type(thing).__name__}"
    names = {value: name for group in registry.KINDS.values() for name, value in group.items()}
    return names.get(target, type(thing).__name__)


# Describing ---------------------------------------------------------------------------------------------------------------


def describe(thing: Any, without_sampling: bool = False) -> Any:
    """Plain data that `load` would read back to the same thing, defaults filled in.

    without_sampling: leave out the fields of `thing` itself that act only when its models are sampled.
    """
    if isinstance(thing, Mapping):
        return {str(key): describe(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [describe(value) for value in thing]
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return thing if isinstance(thing, str | int | float | bool | None) else {"kind": _path_of(thing)}
    hints = _fields(type(thing))
    out: dict[str, Any] = {} if "kind" in hints or type(thing) in _SECTIONS else {"kind": _path_of(thing)}
    for name, hint in hints.items():
        if not (without_sampling and AT_SAMPLING in typing.get_args(hint)):
            out[name] = describe(getattr(thing, name))
    return out


_SECTIONS = (Experiment, Sweep, Mix, Madness)


def _path_of(thing: Any) -> str:
    name = _kind_of(thing)
    return name if any(name in group for group in registry.KINDS.values()) else f"{type(thing).__module__}:{type(thing).__name__}"


def fit_key(point: Point) -> str:
    """Points with one key share the fit of generation 1: all that shapes it, and nothing that acts at sampling."""
    experiment = point.experiment
    shared = point.key if experiment.sweep.independent else ""
    parts = [describe(experiment.real), describe(experiment.mix), describe(experiment.algorithm, without_sampling=True), experiment.statistics]
    return json.dumps([shared, parts], sort_keys=True)


def groups(points: Sequence[Point]) -> list[list[Point]]:
    """The points, gathered by `fit_key`, in order of first appearance."""
    out: dict[str, list[Point]] = {}
    for point in points:
        out.setdefault(fit_key(point), []).append(point)
    return list(out.values())
