"""Fan-out: the same work on one core, on all of them, or on a cluster.

A unit is a chunk of replicates of a group of sweep points that share their first fit. Work goes in rounds of a few seconds: each
worker is dealt units, advances them until the round is over, and returns rows and states, which the parent alone writes. So a
kill loses one round at most, no worker needs the folder, and the backend is whatever joblib offers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from selfloop.config import Experiment, Point, Source, fit_key, groups, load
from selfloop.loop import self_consume
from selfloop.measure import Array, Data, Measure, Moments
from selfloop.metrics.track import View
from selfloop.protocols import Algorithm, Generation, Model
from selfloop.results import Block, RunFolder
from selfloop.streams import NamedStreams

ROUND_SECONDS = 2.0

Saved = dict[str, Array]


@dataclass(frozen=True)
class Task:
    """What a worker is given: a unit, and where each of its points stands."""

    source: Source
    group: int
    chunk: int
    done: dict[str, int]
    history: dict[str, list[Saved]]
    first: Saved | None


@dataclass
class Outcome:
    """What a worker gives back: rows, new states, and the first fit if it was made."""

    group: int
    chunk: int
    blocks: list[Block] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    saved: dict[str, list[tuple[int, Saved]]] = field(default_factory=dict)
    first: Saved | None = None
    generations: int = 0


@lru_cache(maxsize=4)
def _loaded(file: str, tree: str) -> list[list[Point]]:
    import json

    return groups(load(Source(file, json.loads(tree), {})))


def chunks(experiment: Experiment) -> list[tuple[int, int]]:
    """(first replicate, replicates) of every chunk."""
    starts = range(0, experiment.replicates, experiment.chunk)
    return [(start, min(experiment.chunk, experiment.replicates - start)) for start in starts]


class Shared:
    """An algorithm that fits one data set once: later fits to it restore the first state under their own sampling settings."""

    def __init__(self, algorithm: Algorithm, data: Data, state: Saved | None):
        self.algorithm = algorithm
        self.data = data
        self.state = state

    def fit(self, data: Data, rng: np.random.Generator, work: Any = None) -> Model:
        """The algorithm's fit; of `data` itself, the shared one."""
        if data is not self.data:
            return self.algorithm.fit(data, rng, work)
        if self.state is None:
            model = self.algorithm.fit(data, rng, work)
            self.state = model.state()
            return model
        return self.algorithm.restore(self.state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)


def advance(tasks: Sequence[Task], seconds: float, report: Callable[[str, int, int], None] | None = None) -> list[Outcome]:
    """Advance units one after the other until the time is up; the first of them by one generation at least."""
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    with threadpool_limits(1):  # results must not depend on how many threads a library happens to use
        for task in tasks:
            if outcomes and time.monotonic() > deadline:
                break
            outcomes.append(_advance_unit(task, deadline, report))
    return outcomes


def _advance_unit(task: Task, deadline: float, report: Callable[[str, int, int], None] | None) -> Outcome:
    import json

    points = _loaded(task.source.file, json.dumps(task.source.tree))[task.group]
    outcome = Outcome(task.group, task.chunk, first=task.first)
    for point in points:
        experiment = point.experiment
        start = task.done.get(point.key, 0)
        if start >= experiment.generations:
            continue
        offset, replicates = chunks(experiment)[task.chunk]
        streams = NamedStreams(experiment.seed, task.chunk, point.key if experiment.sweep.independent else "")
        source = experiment.real.replicated(replicates, streams(0, "source"))
        real = experiment.mix.first(source, streams, experiment.statistics)
        algorithm = Shared(experiment.algorithm, real, outcome.first)
        keep_model = experiment.mix.warm is not None
        history = [unpack(saved, experiment.algorithm) for saved in task.history.get(point.key, [])]
        saved: list[tuple[int, Saved]] = []
        for generation in self_consume(
            source, real, algorithm, experiment.mix, experiment.generations, streams, history
        ):
            outcome.blocks += _blocks(point, task.chunk, offset, generation, source, streams)
            saved.append((generation.index, pack(generation, keep_model)))
            if experiment.mix.memory:
                saved = saved[-experiment.mix.memory :]
            outcome.done[point.key] = generation.index
            outcome.generations += 1
            outcome.first = algorithm.state
            if report:
                report(point.key, task.chunk, generation.index)
            if time.monotonic() > deadline:
                break
        outcome.saved[point.key] = saved
        if time.monotonic() > deadline:
            break
    return outcome


def _blocks(
    point: Point, chunk: int, offset: int, generation: Generation, source: Any, streams: NamedStreams
) -> list[Block]:
    alive = generation.diverged == 0
    ids = offset + np.arange(len(alive), dtype=np.int32)
    now = generation.diverged == generation.index
    blocks = []
    if now.any():
        blocks.append(Block(point.key, chunk, generation.index, "diverged", ids[now], np.ones(int(now.sum()))))
    for tracker in point.experiment.track.values():
        members = len(alive) if tracker.replicates is None else min(max(tracker.replicates - offset, 0), len(alive))
        if members == 0 or not tracker.due(generation.index):
            continue
        for metric, values in tracker(View(generation, source, streams, members)).items():
            counted = alive[:members]
            blocks.append(
                Block(point.key, chunk, generation.index, metric, ids[:members][counted], np.asarray(values)[counted])
            )
    return blocks


def pack(generation: Generation, keep_model: bool) -> Saved:
    """What a loop needs of a generation to go on, as plain arrays."""
    drawn = generation.drawn
    out: Saved = {"index": np.array(generation.index), "diverged": generation.diverged}
    if isinstance(drawn, Moments):
        out |= {"n": np.asarray(drawn.n), "mean": drawn.mean, "cov": drawn.cov}
    else:
        out |= {"points": np.asarray(drawn.points), "weights": np.array(drawn.weights)}
        out |= {k: np.array(v) for k, v in (("labels", drawn.labels), ("origin", drawn.origin)) if v is not None}
    if keep_model:
        out |= {f"model.{name}": values for name, values in generation.model.state().items()}
    return out


def unpack(saved: Mapping[str, Array], algorithm: Algorithm) -> Generation:
    """The generation that `pack` packed; its model only if it was kept."""
    if "mean" in saved:
        n = saved["n"]
        drawn: Data = Moments(float(n) if n.ndim == 0 else n, saved["mean"], saved["cov"])
    else:
        drawn = Measure(saved["points"], saved["weights"], saved.get("labels"), saved.get("origin"))  # type: ignore[arg-type]
    state = {name.removeprefix("model."): values for name, values in saved.items() if name.startswith("model.")}
    model = algorithm.restore(state) if state else None
    return Generation(int(saved["index"]), model, drawn, saved["diverged"].astype(np.int64))  # type: ignore[arg-type]


def run(
    source: Source,
    points: Sequence[Point],
    folder: RunFolder,
    workers: int = 1,
    parallel: Any = None,
    report: Callable[[str, int, int], None] | None = None,
) -> None:
    """Advance every unit of an experiment to its end, committing each round to the folder.

    parallel: a joblib.Parallel to deal the rounds to (None: here, in this process); report(point, chunk, generation) is called
    when a loop has moved on.
    """
    from joblib import delayed

    grouped = groups(points)
    count = len(chunks(points[0].experiment))
    pending = [(g, c) for g in range(len(grouped)) for c in range(count)]
    while pending := [unit for unit in pending if _task_done(grouped[unit[0]], folder, unit[1]) is False]:
        hands = [pending[worker::workers] for worker in range(workers)]
        deals = [[_task(source, grouped, folder, g, c) for g, c in hand[: _enough(hand)]] for hand in hands if hand]
        if parallel is None:
            results = [advance(deal, ROUND_SECONDS, report) for deal in deals]
        else:
            results = parallel(delayed(advance)(deal, ROUND_SECONDS) for deal in deals)
        _commit_round([outcome for result in results for outcome in result], grouped, folder)
        if parallel is not None and report:
            for outcome in (outcome for result in results for outcome in result):
                for key, done in outcome.done.items():
                    report(key, outcome.chunk, done)


def _enough(hand: Sequence[Any]) -> int:
    return min(len(hand), 16)


def _task_done(group: Sequence[Point], folder: RunFolder, chunk: int) -> bool:
    return all(folder.progress(point, chunk).done >= point.experiment.generations for point in group)


def _task(source: Source, grouped: Sequence[Sequence[Point]], folder: RunFolder, group: int, chunk: int) -> Task:
    points = grouped[group]
    done = {point.key: folder.progress(point, chunk).done for point in points}
    open_points = [point for point in points if 0 < done[point.key] < point.experiment.generations]
    return Task(
        Source(source.file, source.tree, {}),
        group,
        chunk,
        done,
        {point.key: folder.history(point, chunk) for point in open_points},
        folder.first(fit_key(points[0]), chunk),
    )


def _commit_round(outcomes: Sequence[Outcome], grouped: Sequence[Sequence[Point]], folder: RunFolder) -> None:
    advances: dict[tuple[str, int], Any] = {}
    firsts: dict[tuple[str, int], Saved] = {}
    for outcome in outcomes:
        points = {point.key: point for point in grouped[outcome.group]}
        key = fit_key(grouped[outcome.group][0])
        if len(points) > 1 and outcome.first is not None and folder.first(key, outcome.chunk) is None:
            firsts[key, outcome.chunk] = outcome.first
        for point, done in outcome.done.items():
            memory = points[point].experiment.mix.memory
            advances[point, outcome.chunk] = (done, outcome.saved[point], memory)
    folder.commit([block for outcome in outcomes for block in outcome.blocks], advances, firsts)
