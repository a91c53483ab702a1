"""The command line: python -m selfloop.run experiments/gaussian2d.yaml [key.path=value ...].

A thin door: it reads the YAML file, calls the library and shows how far it is. Everything heavy is imported when needed.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from selfloop.config import Point
    from selfloop.reading import Source
    from selfloop.results import RunFolder

LINE_SECONDS = 5.0
"""How often a line is written where there is no terminal."""

RATE = "images_per_second"
"""What a fit calls its own speed."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path | None, typer.Argument(help="The experiment, a YAML file.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value, laid over the file; quick=true: a first look.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/<name>")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core, one on a GPU")] = None,
    backend: Annotated[str, typer.Option(help="loky (this machine), dask or ray.")] = "loky",
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler or a ray cluster.")] = None,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds of work between saves.")] = 2.0,
    repair: Annotated[
        bool, typer.Option("--repair", help="Start loops over whose saved files are damaged; keep all others.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the YAML file, and stop.")] = False,
) -> None:
    """Run a self-consuming loop from a YAML file; the same command continues a run that was stopped."""
    if schema:
        from selfloop.schema import json_schema

        print(json.dumps(json_schema(), indent=2))
        return
    if config is None:
        _fail("name an experiment: python -m selfloop.run experiments/gaussian2d.yaml")
    from selfloop import fanout, ranks
    from selfloop.check import alone
    from selfloop.config import groups, load
    from selfloop.reading import ConfigError, read
    from selfloop.results import RunError, RunFolder

    folder = out
    try:
        workers = fanout.check_backend(backend, scheduler, workers)
        source = read(config, overrides or [])
        points = load(source)
        folder = out or Path("runs") / points[0].experiment.name
        units = len(fanout.chunks(points[0].experiment)) * len(groups(points))
        workers = 1 if workers is None and any(alone(point.experiment) for point in points) else workers
        with ExitStack() as stack:
            stack.enter_context(ranks.joined())
            parallel, count = stack.enter_context(fanout.executor(backend, scheduler, workers, units))
            opened = stack.enter_context(RunFolder(folder, source, points, repair))
            _run(source, points, opened, parallel, count, save_every)
    except (ConfigError, fanout.BackendError) as error:
        _fail(str(error))
    except (RunError, ranks.RankError) as error:
        _fail(str(error), code=1)
    except fanout.LoopError as error:
        _fail(f"{error}\nfinished work is in {folder}; with the cause removed, the same command continues", code=1)
    except KeyboardInterrupt:
        _fail(f"stopped; finished work is in {folder}, the same command continues", code=130)


def _fail(message: str, code: int = 2) -> NoReturn:
    from selfloop import ranks

    if ranks.rank() == 0 or code == 1:  # other codes are those of all
        typer.echo(f"rank {ranks.rank()}: {message}" if ranks.world() > 1 else message, err=True)
    raise typer.Exit(code)


def stop(*_: Any) -> NoReturn:
    """What a signal to end does: as Ctrl-C."""
    raise KeyboardInterrupt


def _run(source: "Source", points: "list[Point]", folder: "RunFolder", parallel: Any, workers: int, save_every: float) -> None:
    from selfloop import fanout, ranks, report

    if ranks.rank() > 0:
        fanout.run(source, points, folder)
        folder.merge()
        return
    began = time.monotonic()
    for note in folder.notes:
        typer.echo(f"note: {note}")
    with Course(points, folder, workers * ranks.world()) as course:
        fanout.run(source, points, folder, workers, parallel, course, save_every, course.fit)
    report.show(points, folder.merge())
    typer.echo(f"\n{time.monotonic() - began:.1f} s; results: {folder.folder / 'generations.parquet'}")


@dataclass
class Part:
    """A part of a fit under way: what it is, when it was first heard of and where it then was; its line of the bar."""

    names: tuple[str, ...]
    began: float
    before: int
    line: Any = None


class Course(AbstractContextManager["Course"]):
    """How far a run is: of all generations of all loops, and of the fits under way.

    A bar for each on a terminal, a line of each every few seconds elsewhere.
    """

    def __init__(self, points: "Sequence[Point]", folder: "RunFolder", workers: int):
        from selfloop.fanout import chunks

        self.chunks = chunks(points[0].experiment)
        numbers = range(len(self.chunks))
        self.done = {(point.key, chunk): folder.progress(point, chunk).done for point in points for chunk in numbers}
        self.names = {
            point.key: ", ".join(f"{path.split('.')[-1]}={value}" for path, value in point.values.items()) for point in points
        }
        self.total = points[0].experiment.generations * len(self.done)
        self.before = self.now = sum(self.done.values())
        self.workers = workers
        self.began = self.last = time.monotonic()
        self.fits: dict[tuple[str, int], Part] = {}
        self.told: dict[tuple[str, int], float] = {}
        self.bar = self._bar() if sys.stdout.isatty() else None

    def __enter__(self) -> "Course":
        processes = f"{self.workers} process{'es' if self.workers > 1 else ''}"
        loops = f"{len(self.names)} sweep point{'s' if len(self.names) > 1 else ''}, {self.total} generations in all"
        print(f"{loops}{f', {self.before} done before' if self.before else ''}, {processes}", flush=True)
        if self.bar is not None and self.before < self.total:
            self.task = self.bar.add_task("starting", total=self.total, completed=self.before, rate="", left="")
            self.bar.start()
        return self

    def __call__(self, point: str, chunk: int, generation: int) -> None:
        """A loop has reached a generation."""
        self.now += generation - self.done[point, chunk]
        self.done[point, chunk] = generation
        part = self.fits.pop((point, chunk), None)
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = (self.now - self.before) / seconds
        name = f"generation {generation}" + (f", {self.names[point]}" if self.names[point] else "")
        left = (self.total - self.now) / rate if rate else None
        if self.bar is not None:
            if part is not None and part.line is not None:
                self.bar.remove_task(part.line)
            self.bar.update(
                self.task, completed=self.now, description=name, rate=f"{rate:.3g}/s", left=f"{duration(left)} left"
            )
        elif time.monotonic() - self.last > LINE_SECONDS or self.now == self.total:
            self.last = time.monotonic()
            ahead = f"{duration(left)} left" if self.now < self.total else f"done in {duration(seconds)}"
            print(f"{self.now}/{self.total} generations, at {name}; {rate:.3g}/s, {ahead}", flush=True)

    def fit(self, point: str, chunk: int, names: tuple[str, ...], done: int, total: int, **numbers: float) -> None:
        """A part of a fit has done so many of its steps or images; numbers: what it says of itself, its loss for example."""
        now, loop = time.monotonic(), (point, chunk)
        part = self.fits.get(loop)
        if part is None or part.names != names or done < part.before:
            part = self.fits[loop] = Part(names, now, done, None if part is None else part.line)
        rate = (done - part.before) / max(now - part.began, 1e-9)
        left = (total - done) / rate if rate else None
        told = [f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items() if name != RATE]
        told += [f"{float(f'{numbers[RATE]:.3g}'):g} images/s"] if RATE in numbers else []
        where = ", ".join(filter(None, [f"generation {self.done[loop] + 1}", self.names[point], self._replicates(chunk)]))
        what = " ".join(name for name in names if not name.startswith("generation-")) or "fit"
        if self.bar is not None:
            shown = {"completed": done, "total": total, "rate": ", ".join(told), "left": f"{duration(left)} left"}
            if part.line is None:
                part.line = self.bar.add_task("", **shown)
            self.bar.update(part.line, description=f"  {what}, {where}", **shown)
        elif now - self.told.get(loop, self.began) > LINE_SECONDS:
            self.told[loop] = now
            ahead = "" if left is None else f"; {duration(left)} left"
            reached = ", ".join([f"{what} {done}/{total}", *told])
            print(f"{self.now}/{self.total} generations, at {where}, {reached}{ahead}", flush=True)

    def _replicates(self, chunk: int) -> str:
        first, count = self.chunks[chunk]
        if len(self.chunks) == 1:
            return ""
        return f"replicate {first}" if count == 1 else f"replicates {first} to {first + count - 1}"

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    @staticmethod
    def _bar() -> Any:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        return Progress(
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total} {task.fields[rate]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            expand=True,
        )


def duration(seconds: float | None) -> str:
    """Seconds as h:mm:ss or m:ss; ?:?? where they are not known."""
    if seconds is None:
        return "?:??"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # what a cluster sends before it kills
    app()
