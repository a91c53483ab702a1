"""Fan-out: the same work on one core, on all of them, or on a cluster.

A unit is a chunk of replicates of a group of sweep points that share their first fit. Work goes in rounds of a few seconds:
each worker is dealt units, advances them until the round is over, and returns rows and states, which the parent alone writes.
So a kill loses one round at most, no worker needs the folder, and the backend is whatever joblib offers. A fit that takes
longer than a round saves itself in the run folder, if that is on the worker's machine too, and says there how far it is.

Processes that compute together (`selfloop.ranks`) go through the same rounds in step, one generation of one loop each.
"""

import importlib.util
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from threadpoolctl import threadpool_limits

from selfloop import ranks
from selfloop.config import Point, fit_key, groups, load
from selfloop.experiment import Experiment
from selfloop.loop import self_consume
from selfloop.measure import Array, Data, Measure, Moments
from selfloop.metrics.track import Tracker, View
from selfloop.protocols import Algorithm, Generation, Model
from selfloop.reading import Source
from selfloop.results import Block, Places, RunFolder
from selfloop.streams import NamedStreams
from selfloop.work import FolderWork, Notice

ROUND_SECONDS = 2.0
UNITS_A_ROUND = 16
HISTORY_BYTES = 256 * 2**20
"""Saved generations that a worker is sent in one round; a single loop may have more."""

Saved = dict[str, Array]
Report = Callable[[str, int, int], None]
"""(point key, chunk, generation reached)"""
Tell = Callable[..., None]
"""(point key, chunk, names of the part, done, total, **numbers): how far a fit is."""
NOTICE_SECONDS = 1.0
"""How often the parent looks for what the fits in workers say of themselves."""


class LoopError(Exception):
    """A loop that could not go on; the message says which, where in the code, and why."""


class BackendError(Exception):
    """A backend that cannot be used as asked; the message ends with the remedy."""


@dataclass(frozen=True)
class Task:
    """What a worker is given: a unit, and where the points of it stand that are to be advanced.

    folder: the run folder, as the parent sees it; places: point key -> where in it a loop keeps what it saves on the way.
    """

    source: Source
    group: int
    chunk: int
    done: dict[str, int]
    history: dict[str, list[Saved]]
    first: Saved | None
    folder: str
    places: dict[str, Places]


@dataclass
class Outcome:
    """What a worker gives back: rows, new states, and the first fit if it was made."""

    group: int
    chunk: int
    first: Saved | None
    blocks: list[Block] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)
    saved: dict[str, list[tuple[int, Saved]]] = field(default_factory=dict)


def chunks(experiment: Experiment) -> list[tuple[int, int]]:
    """(first replicate, replicates) of every chunk."""
    starts = range(0, experiment.replicates, experiment.chunk)
    return [(start, min(experiment.chunk, experiment.replicates - start)) for start in starts]


# In a worker -----------------------------------------------------------------------------------------------------------


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


@lru_cache(maxsize=4)
def _loaded(file: str, tree: str) -> list[list[Point]]:
    return groups(load(Source(file, json.loads(tree), {})))


def _loaded_groups(task: Task) -> list[list[Point]]:
    return _loaded(task.source.file, json.dumps(task.source.tree))


def advance(
    tasks: Sequence[Task], seconds: float, report: Report | None = None, tell: Tell | None = None, written: bool = False
) -> list[Outcome]:
    """Advance units one after the other until the time is up; the first of them by one generation at least.

    written: put what the fits say of themselves into files, for a parent in another process. Raises LoopError if a loop fails.
    """
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for task in tasks:  # imports what the tasks name, torch for example, so that its threads are limited too
        _loaded_groups(task)
    with threadpool_limits(1):  # results must not depend on how many threads a library happens to use
        for task in tasks:
            if outcomes and time.monotonic() >= deadline:
                break
            outcomes.append(_advance_unit(task, deadline, report, tell, written))
    return outcomes


def _advance_unit(task: Task, deadline: float, report: Report | None, tell: Tell | None, written: bool) -> Outcome:
    points = _loaded_groups(task)[task.group]
    outcome = Outcome(task.group, task.chunk, task.first)
    for point in points:
        if task.done.get(point.key, point.experiment.generations) < point.experiment.generations:
            heard = _notice(task, point.key) if written else tell and partial(tell, point.key, task.chunk)
            with _located(task, point, outcome):
                _advance_loop(task, point, outcome, deadline, report, _Desk.of(task, point, heard))
            if time.monotonic() >= deadline:
                break
    return outcome


def _notice(task: Task, key: str) -> Notice:
    return Notice(Path(task.folder, task.places[key].work, "notice.json"), NOTICE_SECONDS)


@dataclass(frozen=True)
class _Desk:
    """Where a loop keeps what it saves on the way; nothing on a machine that has no such folder or may not write to it."""

    work: FolderWork | None = None
    pollution: FolderWork | None = None
    keep: FolderWork | None = None

    @classmethod
    def of(cls, task: Task, point: Point, tell: Tell | None) -> "_Desk":
        if not os.access(task.folder, os.W_OK):
            return cls()
        folder, places = Path(task.folder), task.places[point.key]
        pollution = None
        if places.pollution is not None:
            shelf = folder / "snapshots" / places.pollution
            pollution = FolderWork(folder / "work" / places.pollution, tell=tell, shelf=shelf, names=("pollution",))
        return cls(
            FolderWork(folder / places.work, tell=tell, shelf=folder / places.shelf),
            pollution,
            FolderWork(folder / places.kept, tell=tell, shelf=folder / places.kept, names=("kept",)),
        )


@dataclass(frozen=True)
class _Beginning:
    """The loop of a point and a chunk, for which some things are made once; the desk makes no difference to them."""

    file: str
    tree: str
    group: int
    chunk: int
    key: str
    desk: _Desk = field(compare=False)


@lru_cache(maxsize=8)
def _start(loop: _Beginning) -> tuple[NamedStreams, Any, Data]:
    """Streams, p_r and the real data of a loop: kept from round to round, for a model that pollutes them takes a fit."""
    (experiment,) = (point.experiment for point in _loaded(loop.file, loop.tree)[loop.group] if point.key == loop.key)
    streams = NamedStreams(experiment.seed, loop.chunk, loop.key if experiment.sweep.independent else "")
    source = experiment.real.replicated(chunks(experiment)[loop.chunk][1], streams(0, "source"))
    for tracker in experiment.track.values():
        if isinstance(tracker, Tracker):  # a stranger's may not be one
            tracker.prepare(source, loop.desk.keep)
    with ExitStack() as stack:
        work = loop.desk.pollution
        if work is not None and ranks.world() == 1:  # points that share this fit wait for it, and find it made
            work.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(filelock.FileLock(str(work.folder / "lock")))
        return streams, source, experiment.mix.first(source, streams, experiment.statistics, work)


def _advance_loop(task: Task, point: Point, outcome: Outcome, deadline: float, report: Report | None, desk: _Desk) -> None:
    experiment, mix = point.experiment, point.experiment.mix
    offset, replicates = chunks(experiment)[task.chunk]
    tree = json.dumps(task.source.tree)
    streams, source, real = _start(_Beginning(task.source.file, tree, task.group, task.chunk, point.key, desk))
    algorithm = Shared(experiment.algorithm, real, outcome.first)
    history = [unpack(saved, experiment.algorithm) for saved in task.history.get(point.key, [])]
    saved = outcome.saved.setdefault(point.key, [])
    for generation in self_consume(source, real, algorithm, mix, experiment.generations, streams, history, desk.work):
        work = desk.work and desk.work.at(f"generation-{generation.index}").at("track")
        name = point.label(chunk=task.chunk, generation=generation.index)
        view = View(generation, source, streams, replicates, work, desk.keep, name)
        outcome.blocks += _blocks(point, task.chunk, offset, view)
        saved.append((generation.index, pack(generation, mix.warm is not None)))
        if mix.memory is not None:
            del saved[: -mix.memory]
        outcome.done[point.key], outcome.first = generation.index, algorithm.state
        if report:
            report(point.key, task.chunk, generation.index)
        if time.monotonic() >= deadline:
            break


def _blocks(point: Point, chunk: int, offset: int, view: View) -> list[Block]:
    """The rows of a generation: values of the replicates that have not diverged, and marks for those that just did."""
    generation = view.generation
    diverged = np.atleast_1d(generation.diverged)  # unbatched data is one replicate
    alive, lost_now = diverged == 0, diverged == generation.index
    ids = offset + np.arange(len(alive), dtype=np.int32)
    blocks = []
    if lost_now.any():
        marks = np.ones(int(lost_now.sum()))
        blocks.append(Block(point.key, chunk, generation.index, "diverged", ids[lost_now], marks))
        step = np.broadcast_to(getattr(generation.model, "failed", 0), alive.shape)
        known = lost_now & (step > 0)
        if known.any():
            blocks.append(Block(point.key, chunk, generation.index, "diverged_step", ids[known], step[known].astype(float)))
    for tracker in point.experiment.track.values():
        most = len(alive) if tracker.replicates is None else tracker.replicates - offset
        members = min(max(most, 0), len(alive))
        if members == 0 or not tracker.due(generation.index):
            continue
        seen = alive[:members]
        for metric, values in tracker(replace(view, members=members)).items():
            row = (ids[:members][seen], np.atleast_1d(np.asarray(values, dtype=np.float64))[seen])
            blocks.append(Block(point.key, chunk, generation.index, metric, *row))
    return blocks


@contextmanager
def _located(task: Task, point: Point, outcome: Outcome) -> Iterator[None]:
    """Whatever goes wrong in a loop, with the place where it did."""
    try:
        yield
    except Exception as error:
        start, count = chunks(point.experiment)[task.chunk]
        done = outcome.done.get(point.key, task.done[point.key])
        where = [f"{path} = {value}" for path, value in point.values.items()]
        where += [
            f"replicates {start} to {start + count - 1}",
            f"generation {done + 1}",
        ]
        own = Path(__file__).parent
        frames = [f for f in traceback.extract_tb(error.__traceback__) if own not in Path(f.filename).parents]
        foreign = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith("<")]
        code = f"\n  in {foreign[-1].filename}:{foreign[-1].lineno}, {foreign[-1].name}" if foreign else ""
        raise LoopError(f"{type(error).__name__}: {error}\n  at {', '.join(where)}{code}") from error


def pack(generation: Generation, keep_model: bool) -> Saved:
    """What a loop needs of a generation to go on, as plain arrays; samples that are mapped into memory stay there."""
    drawn = generation.drawn
    out: dict[str, Any] = {"index": np.array(generation.index), "diverged": generation.diverged}
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


# In the parent ---------------------------------------------------------------------------------------------------------


def run(
    source: Source,
    points: Sequence[Point],
    folder: RunFolder,
    workers: int = 1,
    parallel: Any = None,
    report: Report | None = None,
    seconds: float = ROUND_SECONDS,
    tell: Tell | None = None,
) -> None:
    """Advance every unit of an experiment to its end, committing each round of so many seconds to the folder.

    parallel: a joblib.Parallel to deal the rounds to (None: here, in this process); report(point, chunk, generation) is called
    when a loop has moved on, tell(point, chunk, names, done, total, **numbers) when a fit has, from a thread if that is in a
    worker. Raises LoopError if a loop fails or a worker is lost.
    """
    from joblib import delayed

    source = Source(source.file, source.tree, {})
    seconds = seconds if ranks.world() == 1 else 0.0  # the clocks of several processes would not agree
    grouped = groups(points)
    pending = [(group, chunk) for group in range(len(grouped)) for chunk in range(len(chunks(points[0].experiment)))]
    while pending := [(group, chunk) for group, chunk in pending if _open(grouped[group], chunk, folder)]:
        hands = [pending[worker::workers][:UNITS_A_ROUND] for worker in range(min(workers, len(pending)))]
        deals = [_deal(source, grouped, hand, folder) for hand in hands]
        if parallel is None:
            results = [advance(deal, seconds, report, tell) for deal in deals]
        else:
            with _kept_workers(), _heard(deals, tell):
                results = parallel(delayed(advance)(deal, seconds, written=tell is not None) for deal in deals)
        outcomes = [outcome for result in results for outcome in result]
        _commit_round(outcomes, grouped, folder)
        if parallel is not None and report:
            for outcome in outcomes:
                for key, done in outcome.done.items():
                    report(key, outcome.chunk, done)


def _open(group: Sequence[Point], chunk: int, folder: RunFolder) -> list[Point]:
    return [point for point in group if folder.progress(point, chunk).done < point.experiment.generations]


def _deal(source: Source, grouped: Sequence[Sequence[Point]], hand: Sequence[tuple[int, int]], folder: RunFolder) -> list[Task]:
    """Tasks for one worker and one round: loops in order, until what they must be sent of their past is enough."""
    tasks: list[Task] = []
    place = str(folder.folder.resolve())
    room = HISTORY_BYTES
    for group, chunk in hand:
        done: dict[str, int] = {}
        history: dict[str, list[Saved]] = {}
        places: dict[str, Places] = {}
        for point in _open(grouped[group], chunk, folder):
            size = folder.history_bytes(point, chunk)
            if size > room and (tasks or done):
                continue
            room -= size
            done[point.key], history[point.key] = folder.progress(point, chunk).done, folder.history(point, chunk)
            places[point.key] = folder.places(point, chunk)
        if done:
            first = folder.first(fit_key(grouped[group][0]), chunk)
            tasks.append(Task(source, group, chunk, done, history, first, place, places))
    return tasks


@contextmanager
def _heard(deals: Sequence[Sequence[Task]], tell: Tell | None) -> Iterator[None]:
    """While workers are busy, tell what they write of how far their fits are."""
    if tell is None:
        yield
        return
    notices = [(key, task.chunk, _notice(task, key)) for deal in deals for task in deal for key in task.done]
    for _, _, notice in notices:  # of a run that was killed
        notice.path.unlink(missing_ok=True)
    over = threading.Event()

    def listen() -> None:
        last: dict[tuple[str, int], Any] = {}
        while not over.wait(NOTICE_SECONDS):
            for key, chunk, notice in notices:
                told = notice.read()
                if told is not None and told != last.get((key, chunk)):
                    last[key, chunk] = told
                    names, done, total, numbers = told
                    tell(key, chunk, names, done, total, **numbers)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()


def _commit_round(outcomes: Sequence[Outcome], grouped: Sequence[Sequence[Point]], folder: RunFolder) -> None:
    advances: dict[tuple[str, int], Any] = {}
    firsts: dict[tuple[str, int], Saved] = {}
    for outcome in outcomes:
        group = grouped[outcome.group]
        key = fit_key(group[0])
        if len(group) > 1 and outcome.first is not None and folder.first(key, outcome.chunk) is None:
            firsts[key, outcome.chunk] = outcome.first
        memory = group[0].experiment.mix.memory
        advances |= {(point, outcome.chunk): (done, outcome.saved[point], memory) for point, done in outcome.done.items()}
    folder.commit([block for outcome in outcomes for block in outcome.blocks], advances, firsts)


# Backends --------------------------------------------------------------------------------------------------------------

BACKENDS = {
    "loky": None,
    "dask": ("distributed", "pip install 'dask[distributed]'"),
    "ray": ("ray", "pip install 'ray[default]'"),
}


@contextmanager
def executor(backend: str, scheduler: str | None, workers: int | None, units: int) -> Iterator[tuple[Any, int]]:
    """A joblib.Parallel on this machine, on a dask cluster or on a ray cluster, and how many workers it deals to.

    workers: as many as the machine or the cluster has cores if not said, and never more than units of work; None instead of the
    Parallel where one process of this machine is enough. Raises BackendError, with the remedy.
    """
    check_backend(backend, scheduler)
    if backend == "loky":
        from joblib import cpu_count

        count = min(workers or cpu_count(), units)
        if count == 1:
            yield None, 1
            return
        with _parallel(backend, count, initializer=_leave_with, initargs=(os.getpid(),)) as parallel:
            yield parallel, count
    elif backend == "dask":
        with _dask_client(scheduler) as client:
            count = min(workers or sum(client.nthreads().values()) or 1, units)
            with _parallel(backend, count) as parallel:
                yield parallel, count
    else:
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        try:
            ray.init(address=scheduler, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BackendError(
                f"no ray cluster answers at {scheduler!r} ({error}); start one with: ray start --head"
            ) from error
        count = min(workers or int(ray.cluster_resources().get("CPU", 1)), units)
        with _parallel(backend, count) as parallel:
            yield parallel, count


def check_backend(backend: str, scheduler: str | None, workers: int | None = None) -> int | None:
    """How many workers there are to be, None = as many as there is room for.

    Raises BackendError for a name that is not known, a scheduler where none belongs, a package that is not installed, and for
    workers of processes that compute together.
    """
    if backend not in BACKENDS:
        raise BackendError(f"--backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    needed = BACKENDS[backend]
    if needed is None and scheduler is not None:
        raise BackendError(f"--scheduler belongs to --backend dask or ray, and the backend is {backend}; got {scheduler!r}")
    if needed is not None and importlib.util.find_spec(needed[0]) is None:
        raise BackendError(f"--backend {backend} needs the package {needed[0]}, which is not installed; run: {needed[1]}")
    if ranks.world() == 1:
        return workers
    if needed is not None or workers not in (None, 1):
        asked = f"--backend {backend}" if needed is not None else f"--workers {workers}"
        raise BackendError(
            f"under torchrun {ranks.world()} processes compute one loop together and have no workers; got {asked}: say "
            "--workers 1 and no --backend"
        )
    return 1


@contextmanager
def _parallel(backend: str, count: int, **options: Any) -> Iterator[Any]:
    from joblib import Parallel, parallel_config

    with parallel_config(backend=backend, n_jobs=count, **options), Parallel(batch_size=1, pre_dispatch="all") as parallel:
        yield parallel


def _leave_with(parent: int) -> None:
    """Let a worker end when its parent does: Ctrl-C is for the parent, and without one it would wait for work for minutes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _dask_client(scheduler: str | None) -> Iterator[Any]:
    from distributed import Client

    try:
        client: Any = Client(scheduler, set_as_default=True, timeout=10)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise BackendError(f"no dask scheduler answers at {scheduler!r} ({error}); start one with: dask scheduler") from error
    with client:
        yield client


@contextmanager
def _kept_workers() -> Iterator[None]:
    """A worker that is killed, by a lack of memory for example, ends the run with a message; finished rounds are kept."""
    try:
        yield
    except (LoopError, KeyboardInterrupt):
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise LoopError(
            f"a worker was lost, out of memory perhaps; try fewer with --workers ({type(error).__name__}: {first})"
        ) from error
