"""What single fields of a configuration cannot know: parts that do not fit one another, found before anything runs."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from selfloop.experiment import Experiment
from selfloop.protocols import GIVES, Algorithm, Tunable
from selfloop.reading import Fault, Path_
from selfloop.registry import kind_of, registered, target

WRAPPED = ("algorithm", "guide")
"""Where an algorithm holds others."""


def check(experiment: Experiment) -> list[Fault]:
    """Parts that do not fit one another, found before anything runs."""
    return [
        *_check_nesting(experiment),
        *_check_real(experiment),
        *_check_images(experiment),
        *check_curators(experiment.real, _curators(experiment)),
        *_check_rows(experiment),
        *_check_labels(experiment),
        *_check_trackers(experiment),
        *(_check_statistics(experiment) if experiment.statistics else ()),
        *_check_mix(experiment),
        *_check_sizes(experiment),
    ]


def alone(experiment: Experiment) -> bool:
    """Whether a fit of it has the machine to itself, so that there is one process if no other number is asked for."""
    return any(getattr(thing, "alone", False) for thing, _ in _algorithms(experiment))


def _lacks(thing: Any, what: frozenset[str]) -> list[str]:
    """What it does not give, as far as it says what it gives."""
    gives = getattr(thing, "gives", None)
    return sorted(what - gives) if gives is not None else []


def _check_nesting(experiment: Experiment) -> Iterator[Fault]:
    for thing, path in _algorithms(experiment):
        for place in WRAPPED:
            inner = getattr(thing, place, None)
            for name in _lacks(inner, getattr(thing, "needs", frozenset())):
                text = f"{kind_of(thing)} needs {GIVES[name]}, and {kind_of(inner)} gives none; use another kind"
                yield Fault((*path, place), text)
            if _tunes(thing, place) and not getattr(inner, "tunable", True):
                text = f"{kind_of(thing)} tunes what it is given, and what {kind_of(inner)} holds cannot be tuned"
                yield Fault((*path, place, "algorithm"), f"{text}; use another kind")


def _tunes(thing: Any, place: str) -> bool:
    """Whether a field says that it takes what can be tuned."""
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    return any(field.name == place and field.type is Tunable for field in fields)


def _algorithms(experiment: Experiment) -> Iterator[tuple[Any, Path_]]:
    """Every algorithm that is fitted, inner ones and those of curators too, from the outside in."""
    pollution = experiment.mix.pollution
    yield from _inside(experiment.algorithm, ("algorithm",))
    yield from _inside(pollution and pollution.algorithm, ("mix", "pollution", "algorithm"))
    for number, curator in enumerate(experiment.mix.curators):
        yield from _surrogates(curator, ("mix", "curators", number))


def _inside(thing: Any, path: Path_) -> Iterator[tuple[Any, Path_]]:
    """An algorithm, those that it wraps, and those by which its curators judge."""
    if thing is not None:
        yield thing, path
        for name in WRAPPED:
            yield from _inside(getattr(thing, name, None), (*path, name))
        for number, curator in enumerate(getattr(thing, "curators", ())):
            yield from _surrogates(curator, (*path, "curators", number))


def _surrogates(curator: Any, path: Path_) -> Iterator[tuple[Any, Path_]]:
    for part, place in parts(curator, path):
        if isinstance(part, Algorithm):
            yield from _inside(part, place)


def parts(thing: Any, path: Path_) -> Iterator[tuple[Any, Path_]]:
    """A component and those in its fields, from the outside in; an algorithm is not looked into."""
    yield thing, path
    if dataclasses.is_dataclass(thing) and not isinstance(thing, Algorithm):
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name, None)
            several = isinstance(value, tuple)
            for number, part in enumerate(value if isinstance(value, tuple) else (value,)):
                if dataclasses.is_dataclass(part) or isinstance(part, Algorithm):
                    yield from parts(part, (*path, field.name, *((number,) if several else ())))


def _curators(experiment: Experiment) -> Iterator[tuple[Any, Path_]]:
    """Every curator, of what a generation hands on and of what an algorithm is fitted to."""
    places = [(experiment.mix, ("mix",)), *_algorithms(experiment)]
    for thing, path in places:
        for number, curator in enumerate(getattr(thing, "curators", ())):
            yield curator, (*path, "curators", number)


def _check_real(experiment: Experiment) -> Iterator[Fault]:
    """What algorithms, inner ones too, need of the real data."""
    for thing, path in _algorithms(experiment):
        for need in sorted(getattr(thing, "needs_real", frozenset()) - getattr(experiment.real, "gives", frozenset())):
            text = f"needs real data with {GIVES[need]}, and {kind_of(experiment.real)} has none; use another source"
            yield Fault(path, text)


def _check_images(experiment: Experiment) -> Iterator[Fault]:
    """Images are trained on one replicate at a time, by what is made for them; of a stranger's class that is not known."""
    if "images" not in getattr(experiment.real, "gives", frozenset()):
        return
    if experiment.chunk != 1:
        yield Fault(("chunk",), f"images are trained one replicate at a time; set chunk: 1; got {experiment.chunk}")
    instead = f"is for vectors, and the real data ({kind_of(experiment.real)}) is images"
    for thing, path in _algorithms(experiment):
        if not hasattr(thing, "algorithm") and _lacks(thing, frozenset({"images"})):
            yield Fault(path, f"{kind_of(thing)} {instead}; use edm")
    for name, tracker in experiment.track.items():
        if target(tracker) in registered() and "images" not in getattr(tracker, "needs_source", frozenset()):
            yield Fault(("track", name), f"{kind_of(tracker)} {instead}; remove it")


def check_curators(real: Any, curators: Iterable[tuple[Any, Path_]]) -> Iterator[Fault]:
    """Curators, and what is in them, that do not fit the data; of a stranger's class that is not known.

    A class variable `takes` says what data it takes, points, images or both; points if nothing is said. `needs_real` says what
    of `GIVES` it cannot do without as it is set, and `instead` what else could be set.
    """
    gives: frozenset[str] = getattr(real, "gives", frozenset())
    d = getattr(real, "d", None)
    what = "images" if "images" in gives else "points"
    for curator, path in curators:
        for thing, place in parts(curator, path):
            known = target(thing) in registered() and (thing is curator or hasattr(thing, "takes"))
            if known and what not in getattr(thing, "takes", frozenset({"points"})):
                fault = "is for vectors" if what == "images" else "looks at images"
                data = f"the real data ({kind_of(real)}) is {'images' if what == 'images' else 'vectors'}"
                yield Fault(place, f"{kind_of(thing)} {fault}, and {data}; remove it")
            for need in sorted(getattr(thing, "needs_real", frozenset()) - gives) if not isinstance(thing, Algorithm) else ():
                text = f"needs real data with {GIVES[need]}, and {kind_of(real)} has none; use another source, or"
                yield Fault(place, f"{text} {getattr(thing, 'instead', 'curator')}")
        judged = getattr(curator, "d", d)
        if d is not None and judged != d:
            text = f"judges points of dimension {judged}, and the real data ({kind_of(real)}) has dimension {d}"
            yield Fault(path, f"{text}; change one of them")


def _check_rows(experiment: Experiment) -> Iterator[Fault]:
    """Curators of more rows than the smallest generation has for them; those before them may leave fewer still."""
    mix = experiment.mix
    later = range(2, experiment.generations + 2)
    handed_on = [mix.synthetic_size(g) * (2 if mix.correction > 0 else 1) for g in later]
    first = mix.real_size(1) + (mix.pollution.n if mix.pollution else 0)
    fitted_to = min([first, *(handed_on[:-1] if mix.type.real == "none" else [])])
    for curator, path in _curators(experiment):
        yield from check_rows([(curator, path)], min(handed_on) if path[:2] == ("mix", "curators") else fitted_to)


def check_rows(curators: Iterable[tuple[Any, Path_]], n: int) -> Iterator[Fault]:
    """Curators, and what is in them, that need more than n rows: `least_rows`, if it says so."""
    for curator, path in curators:
        for thing, place in parts(curator, path):
            least = getattr(thing, "least_rows", 0)
            if least > n:
                yield Fault(
                    place, f"needs {least} rows or more, and there are {n}; ask for less, k for example, or give more rows"
                )


def _check_labels(experiment: Experiment) -> Iterator[Fault]:
    """Curators by class see samples too: those that a generation hands on, and all later training data."""
    for curator, path in _curators(experiment):
        shown = path[:2] == ("mix", "curators") or (path[0] == "algorithm" and experiment.generations > 1)
        for thing, place in parts(curator, path) if shown and _lacks(experiment.algorithm, frozenset({"labels"})) else ():
            if "labels" in getattr(thing, "needs_real", frozenset()) and not isinstance(thing, Algorithm):
                text = f"needs class labels, and samples of {kind_of(experiment.algorithm)} have none"
                yield Fault(place, f"{text}; use another algorithm, or {getattr(thing, 'instead', 'another curator')}")


def _check_trackers(experiment: Experiment) -> Iterator[Fault]:
    seen: dict[type[Any], str] = {}
    for name, tracker in experiment.track.items():
        if type(tracker) in seen:
            yield Fault(("track", name), f"writes the same metrics as {seen[type(tracker)]}; keep one {kind_of(tracker)}")
        seen.setdefault(type(tracker), name)
        rows, real = getattr(tracker, "n_train", None), experiment.mix.real_size(1)
        if getattr(tracker, "sees_training", False) and rows != real:
            yield Fault(("track", name, "n_train"), f"must be mix.n_real = {real}, to see the rows trained on; got {rows}")
        for need in _lacks(experiment.algorithm, getattr(tracker, "needs", frozenset())):
            yield Fault(
                ("track", name),
                f"needs {GIVES[need]}, and {kind_of(experiment.algorithm)} gives none; remove this tracker",
            )
        for need in sorted(getattr(tracker, "needs_source", frozenset()) - getattr(experiment.real, "gives", frozenset())):
            text = f"needs real data with {GIVES[need]}, and {kind_of(experiment.real)} has none; remove this tracker"
            yield Fault(("track", name), text)


def _check_statistics(experiment: Experiment) -> Iterator[Fault]:
    points = "set statistics: false"
    for _ in _lacks(experiment.algorithm, frozenset({"draw"})):
        yield Fault(("statistics",), f"true needs {GIVES['draw']}, and {kind_of(experiment.algorithm)} gives none; {points}")
    for _ in _lacks(experiment.real, frozenset({"draw"})):
        yield Fault(
            ("statistics",),
            f"true needs {GIVES['draw']}, and the real data ({kind_of(experiment.real)}) has none; {points}",
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
            yield Fault(("mix", "bias"), f"{kind_of(algorithm)} has no sampling bias; set it to 1")
    if getattr(algorithm, "omega", None) == "auto" and mix.type.real == "none" and experiment.generations > 1:
        text = f"auto needs real points to hold out, and a {mix.kind} loop has none after generation 1; give a number"
        yield Fault(("algorithm", "omega"), text)
    if mix.warm is not None and not isinstance(algorithm, Tunable):
        yield Fault(("mix", "warm"), f"fine-tunes the last model, and {kind_of(algorithm)} cannot be tuned; remove it")
    elif mix.warm is not None and hasattr(algorithm, "curators"):
        yield Fault(("mix", "warm"), f"tunes on data that {kind_of(algorithm)} leaves as they are; remove it, or curate by mix")
    largest = getattr(algorithm, "largest_budget", None)
    if mix.warm is not None and largest is not None and mix.warm > largest:
        yield Fault(("mix", "warm"), f"must be <= {largest:g}, the whole way to the new fit; got {mix.warm:g}")
    rows, needed = getattr(experiment.real, "rows", None), mix.real_rows(experiment.generations)
    if rows is not None and needed > rows:
        uses = f"{experiment.generations} generations of this {mix.kind} loop use {needed} real rows"
        yield Fault(("mix", "n_real"), f"{uses}, and {kind_of(experiment.real)} has {rows} for training; use fewer")


def _check_sizes(experiment: Experiment) -> Iterator[Fault]:
    """Fits of too few points, or of another number than the rows of a fixed design; targets of another dimension."""
    mix, d = experiment.mix, getattr(experiment.real, "d", None)
    sizes_later = {mix.synthetic_size(g) for g in range(2, experiment.generations + 2)}
    if getattr(experiment.algorithm, "keeps_rows", False) and sizes_later != {mix.real_size(1)}:
        given = "n_synthetic" if mix.n_synthetic else "ratio" if mix.ratio else "fraction"
        text = f"must be n_real = {mix.real_size(1)}: a fixed design gives every generation the rows of the first; got"
        yield Fault(("mix", given), f"{text} {sorted(sizes_later)}, or set algorithm.design to fresh")
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
    for thing, path in _inside(experiment.algorithm, ("algorithm",)):  # the auxiliary of a wrapper is fitted too
        if hasattr(thing, "algorithm") and hasattr(thing, "n_synthetic"):
            sizes[(*path, "n_synthetic")] = thing.n_synthetic
    for field, n in sizes.items():
        if n < least(d):
            who = f"{kind_of(experiment.algorithm)} in d = {d} dimension{'s' if d > 1 else ''}"
            yield Fault(field, f"must be >= {least(d)} points for a fit of {who}; got {n}")


def _least_points(algorithm: Any) -> Any:
    found = (thing.least_points for thing, _ in _inside(algorithm, ()) if hasattr(thing, "least_points"))
    return next(found, None)
