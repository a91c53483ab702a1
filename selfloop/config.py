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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError
from typing_extensions import get_protocol_members, is_protocol

from selfloop import registry
from selfloop.check import check
from selfloop.component import AT_SAMPLING
from selfloop.experiment import SLOTS, Experiment, Sweep
from selfloop.explain import explained, owned
from selfloop.madness import Madness
from selfloop.mix import Mix
from selfloop.protocols import Tunable
from selfloop.reading import ConfigError, Fault, Path_, Source, at_path, dotted, put, section, shown

T = typing.TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One point of a sweep: its swept values by dotted path (a label for an override), and the experiment there."""

    values: dict[str, Any]
    experiment: Experiment

    @property
    def key(self) -> str:
        """A name that does not depend on the other points, nor on whether a 1 was written as 1.0."""
        return json.dumps(self._plain, sort_keys=True)

    def label(self, **more: int) -> str:
        """A name for a file: the last word of each swept path with its value, then what else is given."""
        words = [f"{path.split('.')[-1]}={value}" for path, value in [*self._plain.items(), *more.items()]]
        return re.sub(r"[^\w.=,+-]+", "_", ",".join(words))

    @property
    def _plain(self) -> dict[str, Any]:
        return {path: int(v) if isinstance(v, float) and v.is_integer() else v for path, v in self.values.items()}


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


WHOLE = ("sweep", "generations", "replicates", "chunk", "seed", "name", "madness", "quick")
"""What belongs to a whole experiment and cannot be swept."""


def load(source: Source) -> list[Point]:
    """The checked points of an experiment, in the order of its sweep. Raises ConfigError with every fault."""
    points, faults = _spread(source)
    if source.quick is not None:
        faults += _check_quick(*source.quick)
    if faults:
        raise ConfigError(faults, source)
    return points


def loaded(cls: type[T], source: Source, check: Callable[[T], Iterable[Fault]]) -> T:
    """A component whose fields are the sections of a file, checked as a whole. Raises ConfigError with every fault."""
    faults = list(source.faults)
    made = _build(cls, source.tree, (), faults, also=("quick",))
    faults += check(made) if made is not None else ()
    if faults:
        raise ConfigError(faults, source)
    return typing.cast(T, made)


def _spread(source: Source) -> tuple[list[Point], list[Fault]]:
    """The points of an experiment that could be made, and all its faults."""
    faults = list(source.faults)
    tree = {"name": Path(source.file).stem, **source.tree}
    if tree.get("sweep") is None:
        tree["sweep"] = {}
    elif isinstance(tree["sweep"], dict) and not (tree["sweep"].get("grid") or tree["sweep"].get("zip")):
        faults.append(Fault(("sweep",), "names no axis; give it a grid or a zip, or remove it"))
    sweep = _build(Sweep, tree["sweep"], ("sweep",), faults)
    axes = _axes(sweep, faults) if sweep else None
    if axes is None:  # check the rest of the file all the same; a sweep may hold what it lacks
        faults += [fault for fault in _examined(tree | {"sweep": {}})[1] if not fault.text.startswith(MISSING)]
        return [], faults
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
    return points, _gathered(faults)


def _check_quick(alone: Source, quick: Source) -> Iterator[Fault]:
    """What the section `quick` would bring into a file that is not wrong in the file alone."""
    if found := _spread(quick)[1]:
        before = _spread(alone)[1]
        for fault in found:
            if fault not in before:
                yield Fault(fault.path if fault.path[:1] == ("quick",) else ("quick", *fault.path), fault.text)


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
    faults.append(Fault(where, f"{allowed}; got {shown(values)}"))
    return []


def _set(tree: dict[str, Any], settings: Sequence[Setting]) -> dict[str, Any]:
    """The tree at a point of the sweep; sections are set before what is inside them."""
    point = {key: value if key == "sweep" else copy.deepcopy(value) for key, value in tree.items()}
    for setting in sorted(settings, key=lambda setting: len(setting.steps)):
        put(point, setting.steps, copy.deepcopy(setting.value), merge=True)
    return point


def _examined(tree: dict[str, Any]) -> tuple[Experiment | None, list[Fault]]:
    """The experiment of a tree without a sweep, if it is sound, and all its faults."""
    faults: list[Fault] = []
    experiment = whole = _build(Experiment, tree, (), faults, also=("quick",))
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
    """What was laid over the file and the sweep would undo."""
    swept = {setting.steps: setting.where[:-1] for axis in axes for setting in axis[0]}
    for path in [path for path in source.lines if path in source.laid and path[0] != "sweep"]:
        if path in swept:
            yield Fault(path, f"is swept, and the sweep would win; override {'.'.join(map(str, swept[path]))}=[...] instead")
        elif trees and not any(_holds(tree, path, at_path(source.tree, path)) for tree in trees):
            yield Fault(path, "is undone by the sweep, which replaces its section at every point; override the sweep instead")


def _holds(tree: dict[str, Any], path: Path_, value: Any) -> bool:
    try:
        there = at_path(tree, path)
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
    elif registry.registered().get(registry.target(experiment.track[rule.metric]), rule.metric) != rule.metric:
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
    options = {} if options is None else section(options) if "kind" in hints else options
    if not isinstance(options, dict):
        faults.append(Fault(path, f"must be a section of {', '.join(hints) or 'options'}; got {shown(options)}"))
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
    faults += [Fault((*path, name), _missing(hints.get(name))) for name in sorted(required - meant)]
    made = None if required else _made(cls, {k: v for k, v in ready.items() if k not in failed}, path, failed, faults)
    return made if len(faults) == before else None


def _missing(hint: Any) -> str:
    """What to say of a field that is needed: the values that it may have, where its type names them."""
    hint = _plain(hint)
    named = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return f"{MISSING}; give one of {', '.join(map(str, named))}" if named else MISSING


def _made(cls: Any, options: dict[str, Any], path: Path_, failed: set[Any], faults: list[Fault]) -> Any:
    try:
        made = cls(**options)
    except ValidationError as error:
        faults += explained(error, path, options, failed)
    except (TypeError, ValueError) as error:
        faults += [] if failed else [owned(str(error), path, options)]
    except ImportError as error:  # a package that it needs
        faults.append(Fault(path, str(error)))
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
        faults.append(Fault(path, f"must be a section of name: options, with one name at least; got {shown(value)}"))
        return None
    out = {}
    for name, options in value.items():
        options = section(options)
        if isinstance(options, dict):
            out[name] = _member(slot, {"kind": name, **options}, (*path, name), faults)
        else:
            faults.append(
                Fault((*path, name), f"must be a section of options, empty, or false to leave it out; got {shown(options)}")
            )
    return out


def _member(slot: Any, value: Any, path: Path_, faults: list[Fault]) -> Any:
    group, value = SLOTS[slot], section(value)
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
        return Fault(path, f"{text} {shown(value)}")
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
    out: dict[str, Any] = {} if "kind" in hints or type(thing) in _SECTIONS else {"kind": registry.path_of(thing)}
    marked = {name for name, hint in hints.items() if AT_SAMPLING in typing.get_args(hint)}
    sampling = getattr(thing, "sampling_fields", marked) if without_sampling else set()
    for name, hint in hints.items():
        if name not in sampling:
            out[name] = describe(getattr(thing, name))
            if isinstance(out[name], dict) and _takes_one_class(hint):
                out[name].pop("kind", None)
    return out


def _takes_one_class(hint: Any) -> bool:
    """Whether a field takes components of one class, so that their section says no kind."""
    cls = _plain(hint)
    single = dataclasses.is_dataclass(cls) and cls not in SLOTS
    return single and "kind" not in _fields(cls)


_SECTIONS = (Experiment, Sweep, Mix, Madness)


def resolved(source: Source, points: Sequence[Point]) -> dict[str, Any]:
    """The experiment with every default filled in, to be read back by `load`; what the sweep sets stays as it was written."""
    tree: dict[str, Any] = describe(points[0].experiment)
    if not points[0].values:
        del tree["sweep"]
    swept = points[0].values
    for path in [path for path in swept if not any(path.startswith(f"{outer}.") for outer in swept)]:
        steps: Path_ = tuple(path.split("."))
        if steps[-1] == "kind" and "kind" not in _fields(_at(points[0].experiment, steps[:-1]).__class__):
            steps = steps[:-1]  # the options of one member of a slot are not those of another
        try:
            put(tree, steps, copy.deepcopy(at_path(source.tree, steps)))
        except LookupError:
            at_path(tree, steps[:-1]).pop(steps[-1], None)
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
