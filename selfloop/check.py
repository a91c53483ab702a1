"""What single fields of a configuration cannot know: parts that do not fit one another, found before anything runs."""

from collections.abc import Iterator
from typing import Any

from selfloop.experiment import Experiment
from selfloop.protocols import GIVES, Tunable
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


def _algorithms(experiment: Experiment) -> Iterator[tuple[Any, Path_]]:
    """Every algorithm that is fitted to real data, inner ones too, from the outside in."""
    pollution = experiment.mix.pollution
    yield from _inside(experiment.algorithm, ("algorithm",))
    yield from _inside(pollution and pollution.algorithm, ("mix", "pollution", "algorithm"))


def _inside(thing: Any, path: Path_) -> Iterator[tuple[Any, Path_]]:
    """An algorithm and those that it wraps."""
    if thing is not None:
        yield thing, path
        for name in WRAPPED:
            yield from _inside(getattr(thing, name, None), (*path, name))


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
    parts: list[tuple[Any, Path_]] = [(tracker, ("track", name)) for name, tracker in experiment.track.items()]
    parts += [(curator, ("mix", "curators", number)) for number, curator in enumerate(experiment.mix.curators)]
    for thing, path in parts:
        if target(thing) in registered() and "images" not in getattr(thing, "needs_source", frozenset()):
            yield Fault(path, f"{kind_of(thing)} {instead}; remove it")


def _check_trackers(experiment: Experiment) -> Iterator[Fault]:
    seen: dict[type[Any], str] = {}
    for name, tracker in experiment.track.items():
        if type(tracker) in seen:
            yield Fault(("track", name), f"writes the same metrics as {seen[type(tracker)]}; keep one {kind_of(tracker)}")
        seen.setdefault(type(tracker), name)
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
    for number, curator in enumerate(mix.curators):
        judged = getattr(curator, "d", d)
        if d is not None and judged != d:
            text = f"judges points of dimension {judged}, and the real data ({kind_of(experiment.real)}) has dimension {d}"
            yield Fault(("mix", "curators", number), f"{text}; change one of them")
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
