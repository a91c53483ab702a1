"""The command line: python -m selfloop.run experiments/gaussian2d.yaml [key.path=value ...].

A thin door: it reads the YAML file, calls the library and shows how far it is. Everything heavy is imported when needed.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from selfloop.config import Point
    from selfloop.reading import Source
    from selfloop.results import RunFolder

LINE_SECONDS = 5.0
"""How often a line is written where there is no terminal."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path | None, typer.Argument(help="The experiment, a YAML file.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.path=value, laid over the file; quick=true: a first look.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/<name>")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
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
    from selfloop import fanout
    from selfloop.config import groups, load
    from selfloop.reading import ConfigError, read
    from selfloop.results import RunError, RunFolder

    folder = out
    try:
        fanout.check_backend(backend, scheduler)
        source = read(config, overrides or [])
        points = load(source)
        folder = out or Path("runs") / points[0].experiment.name
        units = len(fanout.chunks(points[0].experiment)) * len(groups(points))
        with ExitStack() as stack:
            parallel, count = stack.enter_context(fanout.executor(backend, scheduler, workers, units))
            opened = stack.enter_context(RunFolder(folder, source, points, repair))
            _run(source, points, opened, parallel, count, save_every)
    except (ConfigError, fanout.BackendError) as error:
        _fail(str(error))
    except RunError as error:
        _fail(str(error), code=1)
    except fanout.LoopError as error:
        _fail(f"{error}\nfinished work is in {folder}; with the cause removed, the same command continues", code=1)
    except KeyboardInterrupt:
        _fail(f"stopped; finished work is in {folder}, the same command continues", code=130)


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _stop(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _run(source: "Source", points: "list[Point]", folder: "RunFolder", parallel: Any, workers: int, save_every: float) -> None:
    from selfloop import fanout, report

    began = time.monotonic()
    for note in folder.notes:
        typer.echo(f"note: {note}")
    with Course(points, folder, workers) as course:
        fanout.run(source, points, folder, workers, parallel, course, save_every, course.fit)
    report.show(points, folder.merge())
    typer.echo(f"\n{time.monotonic() - began:.1f} s; results: {folder.folder / 'generations.parquet'}")


class Course(AbstractContextManager["Course"]):
    """How far a run is, of all generations of all loops: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, points: "Sequence[Point]", folder: "RunFolder", workers: int):
        from selfloop.fanout import chunks

        count = len(chunks(points[0].experiment))
        self.done = {(point.key, chunk): folder.progress(point, chunk).done for point in points for chunk in range(count)}
        self.names = {
            point.key: ", ".join(f"{path.split('.')[-1]}={value}" for path, value in point.values.items()) for point in points
        }
        self.total = points[0].experiment.generations * len(self.done)
        self.before = self.now = sum(self.done.values())
        self.workers = workers
        self.began = self.last = time.monotonic()
        self.bar = self._bar() if sys.stdout.isatty() else None

    def __enter__(self) -> "Course":
        processes = f"{self.workers} process{'es' if self.workers > 1 else ''}"
        loops = f"{len(self.names)} sweep point{'s' if len(self.names) > 1 else ''}, {self.total} generations in all"
        print(f"{loops}{f', {self.before} done before' if self.before else ''}, {processes}", flush=True)
        if self.bar is not None and self.before < self.total:
            self.task = self.bar.add_task("starting", total=self.total, completed=self.before, rate="")
            self.bar.start()
        return self

    def __call__(self, point: str, chunk: int, generation: int) -> None:
        """A loop has reached a generation."""
        self.now += generation - self.done[point, chunk]
        self.done[point, chunk] = generation
        self._show(f"generation {generation}", point)

    def fit(self, point: str, chunk: int, done: int, total: int, **numbers: float) -> None:
        """A fit has done so many of its steps; numbers: what it says of itself, its loss for example."""
        told = "".join(f", {name} {value:.3g}" for name, value in numbers.items())
        self._show(f"generation {self.done[point, chunk] + 1}, fit {done}/{total}{told}", point)

    def _show(self, at: str, point: str) -> None:
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = (self.now - self.before) / seconds
        name = at + (f", {self.names[point]}" if self.names[point] else "")
        if self.bar is not None:
            self.bar.update(self.task, completed=self.now, description=name, rate=f"{rate:.3g}/s")
        elif time.monotonic() - self.last > LINE_SECONDS or self.now == self.total:
            self.last = time.monotonic()
            ahead = f"{(self.total - self.now) / rate:.0f} s left" if rate else "no generation done yet"
            left = ahead if self.now < self.total else f"done in {seconds:.0f} s"
            print(f"{self.now}/{self.total} generations, at {name}; {rate:.3g}/s, {left}", flush=True)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    @staticmethod
    def _bar() -> Any:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        return Progress(
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total} {task.fields[rate]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            expand=True,
        )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # what a cluster sends before it kills
    app()
