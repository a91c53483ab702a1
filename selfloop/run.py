"""The command line: python -m selfloop.run experiments/gaussian2d.yaml [key.path=value ...].

A thin door: it reads the YAML file, calls the library and shows how far it is. Everything heavy is imported when needed.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from selfloop.config import Point

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path | None, typer.Argument(help="The experiment, a YAML file.", show_default=False)] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, laid over the file.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/<name>")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
    backend: Annotated[str, typer.Option(help="loky (this machine), dask or ray.")] = "loky",
    scheduler: Annotated[str | None, typer.Option(help="Address of a dask scheduler or a ray cluster.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Start loops over whose saved files are damaged; keep all others.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the YAML file, and stop.")] = False,
) -> None:
    """Run a self-consuming loop from a YAML file; the same command continues a run that was stopped."""
    if schema:
        from selfloop.schema import json_schema

        print(json.dumps(json_schema(), indent=2))
        return
    if config is None:
        _fail("name an experiment: python -m selfloop.run experiments/gaussian2d.yaml")
    from selfloop.config import ConfigError, load, read
    from selfloop.results import RunError, RunFolder

    try:
        source = read(config, overrides or [])
        points = load(source)
    except ConfigError as error:
        _fail(str(error))
    folder = out or Path("runs") / points[0].experiment.name
    try:
        with RunFolder(folder, points, repair) as opened:
            _run(source, points, opened, folder, workers, backend, scheduler)
    except RunError as error:
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail(f"stopped; finished work is in {folder}, the same command continues", code=130)


def _fail(message: str, code: int = 2) -> Any:
    typer.echo(message, err=True)
    raise typer.Exit(code)


def _run(
    source: Any, points: "list[Point]", opened: Any, folder: Path, workers: int | None, backend: str, scheduler: str | None
) -> None:
    from selfloop import fanout, report

    began = time.monotonic()
    units = len(fanout.chunks(points[0].experiment)) * len(fanout.groups(points))
    count = min(workers or cores(), units)
    for note in opened.notes:
        typer.echo(f"note: {note}")
    with ExitStack() as stack:
        show = stack.enter_context(Shown(points, opened, count))
        parallel = stack.enter_context(executor(backend, scheduler, count)) if count > 1 or backend != "loky" else None
        try:
            fanout.run(source, points, opened, count, parallel, show)
        except (ValueError, TypeError, ArithmeticError, ModuleNotFoundError) as error:
            show.__exit__(None, None, None)
            _fail(f"{type(error).__name__}: {error}\nfinished work is in {folder}; the same command continues", code=1)
    table = opened.merge()
    report.show(points, table)
    typer.echo(f"\n{time.monotonic() - began:.1f} s; results: {folder / 'generations.parquet'}")


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def executor(backend: str, scheduler: str | None, workers: int) -> AbstractContextManager[Any]:
    """A joblib.Parallel on this machine, on a dask cluster or on a ray cluster.

    Raises ValueError for an unknown backend or a scheduler where none belongs, ModuleNotFoundError, with the remedy, where
    the package is not installed.
    """
    from joblib import Parallel, parallel_config

    stack = ExitStack()
    if backend not in ("loky", "dask", "ray"):
        raise ValueError(f"--backend must be loky, dask or ray; got {backend!r}")
    if backend == "loky" and scheduler:
        raise ValueError("--scheduler belongs to --backend dask or ray")
    try:
        if backend == "dask":
            from distributed import Client

            stack.enter_context(Client(scheduler, set_as_default=True))
        if backend == "ray":
            import ray
            from ray.util.joblib import register_ray

            register_ray()
            ray.init(address=scheduler, ignore_reinit_error=True)
    except ModuleNotFoundError as error:
        remedy = {"dask": "pip install 'selfloop[scale]'", "ray": "pip install 'selfloop[ray]'"}[backend]
        raise ModuleNotFoundError(f"--backend {backend} needs {error.name}; run: {remedy}") from error
    stack.enter_context(parallel_config(backend=backend, n_jobs=workers))
    parallel = stack.enter_context(Parallel(batch_size=1, pre_dispatch="all"))
    kept: AbstractContextManager[Any] = _Keep(parallel, stack)
    return kept


class _Keep(AbstractContextManager[Any]):
    def __init__(self, value: Any, stack: ExitStack):
        self.value, self.stack = value, stack

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *error: Any) -> None:
        self.stack.close()


class Shown(AbstractContextManager[Callable[[str, int, int], None]]):
    """How far a run is: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, points: "list[Point]", folder: Any, workers: int):
        from selfloop.fanout import chunks

        self.names = {point.key: ", ".join(f"{path.split('.')[-1]}={value}" for path, value in point.values.items()) for point in points}
        count = len(chunks(points[0].experiment))
        self.done = {(point.key, chunk): folder.progress(point, chunk).done for point in points for chunk in range(count)}
        self.generations = points[0].experiment.generations
        self.total = self.generations * len(self.done)
        self.before = sum(self.done.values())
        self.workers = workers
        self.last = 0.0
        self.bar: Any = None

    def __enter__(self) -> Callable[[str, int, int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.began = time.monotonic()
        process = f"{self.workers} process{'es' if self.workers > 1 else ''}"
        if sys.stdout.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("generations, {task.fields[rate]}/s, left"),
                TimeRemainingColumn(),
                console=Console(),
            )
            self.bar.start()
            self.task = self.bar.add_task("starting", total=self.total, completed=self.before, rate="-")
        else:
            print(f"{len(self.names)} sweep points, {self.total} generations in all, {self.before} done, {process}", flush=True)
        return self

    def __call__(self, point: str, chunk: int, generation: int) -> None:
        """A loop has reached a generation."""
        self.done[point, chunk] = generation
        done, now = sum(self.done.values()), time.monotonic()
        rate = (done - self.before) / max(now - self.began, 1e-9)
        name = f"generation {generation}/{self.generations}" + (f" at {self.names[point]}" if self.names[point] else "")
        if self.bar:
            self.bar.update(self.task, completed=done, description=name, rate=f"{rate:.0f}")
        elif now - self.last > 5 or done == self.total:
            self.last = now
            left = (self.total - done) / rate if rate else float("nan")
            print(f"{done}/{self.total} generations, {name}, {rate:.0f}/s, {left:.0f} s left", flush=True)

    def __exit__(self, *error: Any) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None


if __name__ == "__main__":
    app()
