"""The command line of curation: `selfloop curate CONFIG.yaml [key.path=value ...] --out DIR`, or `python -m selfloop.curate`.

    config.yaml      the curation, every default filled in; it can be run again
    subset.parquet   what was decided about every row (`selfloop.curate.subset`)
    report.html      the same in pictures (`selfloop.curate.report`)
    timings.json     seconds of each step
    curators/        what curators leave beside their decisions: the course of class weights
    work/            what steps that take long save of themselves, until the curation is finished

Every file is written under a temporary name, synced and renamed, `timings.json` last. The same command continues a curation
that was stopped, and `subset.parquet` has the bytes that it would have had. A step that was saved counts as long as the data,
the seed, the curators up to it and the files that they read are the same, so that a later one can be corrected.
"""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import filelock
import numpy as np
import typer
import yaml
from annotated_types import Ge, Len
from pydantic import Field, Strict

from selfloop.check import check_curators, check_rows, parts
from selfloop.component import Count, component
from selfloop.config import describe, loaded
from selfloop.curate import chain
from selfloop.curate.subset import FILE, PATH, Subset, digest
from selfloop.data import SourceFactory
from selfloop.embed.store import stamp
from selfloop.measure import READ, Measure, Rows
from selfloop.protocols import Curator
from selfloop.reading import ConfigError, Fault, Source, dotted, read
from selfloop.registry import kind_of
from selfloop.work import FolderWork, replaced

LINE_SECONDS = 5.0
"""How often a line is written of a step under way."""
CONFIG, REPORT, WORK, SHELF = "config.yaml", "report.html", "work", "curators"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class CurateError(Exception):
    """What was asked for cannot be done; the message says why and what to do."""


@component
class Curation:
    """The sections of a curation's YAML file.

    data: a source as in the section `real` of an experiment; curators: applied in order; seed: of all random numbers; n: rows
    to draw, where the data is a law; name: the title, and the folder under `curated/`.
    """

    data: SourceFactory
    curators: Annotated[tuple[Curator, ...], Len(1)]
    seed: Annotated[int, Strict(), Ge(0)] = 0
    n: Count | None = None
    name: Annotated[str, Field(pattern=r"^[\w][\w .-]*$|^$")] = ""

    @property
    def placed(self) -> list[tuple[Curator, tuple[str, int]]]:
        """The curators, each with its place in the file."""
        return [(one, ("curators", k)) for k, one in enumerate(self.curators)]

    @property
    def resolved(self) -> dict[str, Any]:
        """Plain data that would be read back to the same curation."""
        return {one.name: describe(getattr(self, one.name)) for one in dataclasses.fields(self)}

    def measure(self) -> Measure:
        """All rows of the data, in the order of its files; n draws of a law."""
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(0,)))
        rows, source = getattr(self.data, "rows", None), self.data.replicated(1, rng)
        points, labels = getattr(source, "points", None), getattr(source, "labels", None)
        if points is None:
            taken: Any = source.take(0, self.n or rows or 1, rng)
            points, labels = taken.points, taken.labels
            if taken.batch:
                points, labels = points[0], labels if labels is None else np.broadcast_to(labels, taken.weights.shape)[0]
        if not isinstance(points, Rows):
            points = Rows((points,), np.arange(points.shape[0]))
        _check_finite(points)
        return Measure.uniform(points, labels, batch=0)


def load(source: Source) -> Curation:
    """The checked curation of a file. Raises ConfigError with every fault."""
    found = loaded(Curation, source, _faults)
    return found if found.name else dataclasses.replace(found, name=Path(source.file).stem)


def _faults(curation: Curation) -> Iterator[Fault]:
    yield from check_curators(curation.data, curation.placed)
    rows, kind = getattr(curation.data, "rows", None), kind_of(curation.data)
    if rows is None and curation.n is None:
        yield Fault(("n",), f"is missing: {kind} is a law, of which any number of rows can be drawn; say how many")
    if rows is not None and curation.n is not None:
        yield Fault(("n",), f"is for laws, and {kind} has rows of its own, which are all looked at; remove it")
    if getattr(curation.data, "test", None) is not None:
        yield Fault(("data", "test"), "is never looked at by a curation; remove it, or curate it by itself as data.path")


def _check_finite(points: Rows) -> None:
    if np.issubdtype(points.dtype, np.floating):
        for start in range(0, points.shape[0], READ):
            sound = np.isfinite(points[start : start + READ]).reshape(-1, int(np.prod(points.shape[1:]))).all(axis=1)
            if not sound.all():
                raise ValueError(f"data holds NaN or infinity in row {start + int((~sound).argmax())}; drop or repair it first")


# The folder ------------------------------------------------------------------------------------------------------------


@dataclass
class Curating:
    """A curation in its folder, locked while it is worked on. cache: where features are kept; every: seconds between saves."""

    curation: Curation
    folder: Path
    cache: Path | None = None
    every: float = 2.0
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def saved(self) -> bool:
        """Whether the steps of this curation, or one under way, have saved work in the folder that is not finished."""
        work = FolderWork(self.folder / WORK)
        folders = [work.at(f"{part} {name}").folder for part in ("selection", "curator") for name in self.names]
        return any(path.is_file() for folder in folders for path in folder.rglob("*"))

    def __call__(self) -> Subset:
        """The subset, which is in the folder then, with its report.

        Raises CurateError for a folder that cannot be used, and for what the data or the curators refuse.
        """
        with ExitStack() as stack:
            stack.enter_context(self._opened())
            before = self._finished()
            began = time.monotonic()
            with self._explained("data"):
                data = self.curation.measure()
                known = digest(data)
                self.names = self._names(known[0])
                paths = getattr(self.curation.data, "row_paths", None)
            self.seconds["data"] = time.monotonic() - began
            if before is not None:
                return self._again(before, known[0], paths)
            self._check_rows(data.n)
            self._write(CONFIG, self._config)
            taken = self._steps(data)
            made = Subset.made(data, chain.composed(taken, data), self.curation.resolved, known, paths)
            subset = dataclasses.replace(made, steps=self.names)
            subset.write(self.folder / FILE)
            began = time.monotonic()
            with self._explained("report"):
                self._report(subset, taken, data)
            self.seconds["report"] = time.monotonic() - began
            self._write(chain.TIMINGS, json.dumps({name: round(s, 3) for name, s in self.seconds.items()}, indent=2))
            shutil.rmtree(self.folder / WORK, ignore_errors=True)
            return subset

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(str(self.folder / "lock"), timeout=0):
                yield
        except filelock.Timeout as error:
            raise CurateError(f"{self.folder} is in use by another process; wait, or name another folder with --out") from error
        except OSError as error:
            raise CurateError(f"{self.folder}: {error}; make room or name another folder with --out") from error

    def _finished(self) -> Subset | None:
        """What the folder holds of this curation, finished. Raises CurateError if it holds anything else."""
        there = {path.name for path in self.folder.iterdir()} - {"lock", WORK, SHELF}
        strange = sorted(name for name in there - {CONFIG, FILE, REPORT, chain.TIMINGS} if not name.endswith(".tmp"))
        if strange:
            raise CurateError(f"{self.folder} holds {strange[0]} and is no folder of a curation; name another with --out")
        if chain.TIMINGS not in there:
            return None
        with self._explained("the folder"):
            if (self.folder / CONFIG).read_text(encoding="utf-8") != self._config:
                raise ValueError(f"{self.folder} holds another curation, see its {CONFIG}; name another folder with --out")
            return Subset.of(self.folder / FILE)

    def _again(self, before: Subset, sha256: str, paths: Sequence[str] | None) -> Subset:
        if before.sha256 != sha256:
            raise CurateError(
                f"{self.folder} was made of other data, with SHA-256 {before.sha256}, and these have {sha256}; name another "
                "folder with --out"
            )
        if changed := [number for number, (old, new) in enumerate(zip(before.steps, self.names, strict=False)) if old != new]:
            raise CurateError(
                f"{self.folder} was made when files that curators[{changed[0]}] reads held something else; name another folder "
                "with --out"
            )
        if paths is not None and PATH in before.columns and not np.array_equal(before.columns[PATH], paths):
            raise CurateError(
                f"{self.folder} was made when the files of its rows had other names than now; name another folder with --out"
            )
        self.notes.append("this was finished before; nothing was done")
        self.seconds = json.loads((self.folder / chain.TIMINGS).read_text())
        return before

    def _check_rows(self, n: int) -> None:
        faults = list(check_rows(self.curation.placed, n))
        if faults:
            raise CurateError("\n".join(f"{dotted(fault.path)}: {fault.text}" for fault in faults))

    def _steps(self, data: Measure) -> list[chain.Step]:
        curators = [kept_features(one, self.cache) if self.cache else one for one in self.curation.curators]
        work = FolderWork(self.folder / WORK, self.every, Told(), self.folder / SHELF)
        rng = np.random.default_rng(np.random.SeedSequence(self.curation.seed, spawn_key=(1,)))
        taken: list[chain.Step] = []
        steps = chain.steps(curators, data, rng, work, self.names)
        for number, (curator, name) in enumerate(zip(self.curation.curators, self.names, strict=True)):
            where = f"curators[{number}] ({kind_of(curator)})"
            with self._explained(where), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                taken.append(next(steps))
            self._note(where, [str(one.message) for one in caught], work.at(f"notes {name}"))
            self.seconds[f"{number} {kind_of(curator)}"] = taken[-1].seconds
        return taken

    def _names(self, sha256: str) -> tuple[str, ...]:
        """A name for each step, by all that it depends on: what is in the files that it reads, too."""
        made, names = hashlib.sha256(f"{sha256} {self.curation.seed}".encode()), []
        for number, curator in enumerate(self.curation.curators):
            made.update(json.dumps(describe(curator), sort_keys=True).encode())
            made.update("".join(stamp(part) for part, _ in parts(curator, ())).encode())
            names.append(f"{number}-{made.hexdigest()[:12]}")
        return tuple(names)

    def _note(self, where: str, told: list[str], work: FolderWork) -> None:
        """Keep what a step warned of, as the step itself is kept."""
        before = work.load()
        if told:
            work.save(text=np.array(told))
        self.notes += [f"{where}: {text}" for text in told or ([] if before is None else before["text"].tolist())]

    def _report(self, subset: Subset, taken: Sequence[chain.Step], data: Measure) -> None:
        from selfloop.curate.dro import TRAJECTORY
        from selfloop.curate.report import page

        for curator, step in zip(self.curation.curators, taken, strict=True):
            say: Any = getattr(curator, "notes", None)
            said = say(data.subset(step.rows), step.selection) if say is not None else {}
            self.notes += [f"{step.name}: {name} {value:.4g}" for name, value in said.items()]
        shelf = FolderWork(self.folder / WORK, shelf=self.folder / SHELF)
        found = [(shelf.at(f"curator {name}").shelf or self.folder) / TRAJECTORY for name in self.names]
        courses = [json.loads(path.read_bytes()) if path.exists() else None for path in found]
        self._write(REPORT, page(self.curation.name, subset, taken, data, self.seconds, self.notes, courses))

    @property
    def _config(self) -> str:
        return yaml.safe_dump(self.curation.resolved, sort_keys=False, width=120, allow_unicode=True)

    def _write(self, name: str, text: str) -> None:
        with replaced(self.folder / name, self.folder / f".{secrets.token_hex(8)}.tmp") as file:
            file.write(text.encode())

    @contextlib.contextmanager
    def _explained(self, where: str) -> Iterator[None]:
        """What goes wrong in a part, as an error that names it."""
        try:
            yield
        except (ValueError, TypeError, OSError, ImportError, MemoryError, RuntimeError, ArithmeticError, LookupError) as error:
            text = str(error) or type(error).__name__
            raise CurateError(f"{where}: {text}") from error


@dataclass
class Told:
    """Lines of how far a step is, every few seconds."""

    last: float = field(default_factory=time.monotonic)

    def __call__(self, names: tuple[str, ...], done: int, total: int, **numbers: float) -> None:
        """A part of a step has done so much of its work."""
        if time.monotonic() - self.last >= LINE_SECONDS:
            self.last = time.monotonic()
            more = "".join(f", {name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())
            typer.echo(f"{' '.join(names)} {done}/{total}{more}")


def kept_features(thing: Any, folder: Path) -> Any:
    """A component whose embeddings, and those of its parts, keep their features in a folder; but for what is there already."""
    from selfloop.embed import Embedding
    from selfloop.embed.cached import CachedEmbedding

    if isinstance(thing, tuple):
        several = tuple(kept_features(one, folder) for one in thing)
        return thing if all(new is old for new, old in zip(several, thing, strict=True)) else several
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return thing
    if isinstance(thing, Embedding) and not isinstance(getattr(thing, "features", None), Embedding):
        there = hasattr(thing, "of") or kind_of(thing) == "pixels"
        return thing if there else CachedEmbedding(features=thing, folder=str(folder))
    if kind_of(thing) == "cached":
        return thing
    fields = {one.name: getattr(thing, one.name) for one in dataclasses.fields(thing) if one.init}
    kept = {name: kept_features(part, folder) for name, part in fields.items()}
    changed = {name: part for name, part in kept.items() if part is not fields[name]}
    return dataclasses.replace(thing, **changed) if changed else thing


# The command line ------------------------------------------------------------------------------------------------------


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="The curation, a YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, laid over the file.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of results.", show_default="curated/<name>")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="A folder in which features of the data are found again.", show_default="none")
    ] = None,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds of work between saves.")] = 2.0,
) -> None:
    """Prune, reweight or balance a data set; the same command continues a curation that was stopped."""
    try:
        curation = load(read(config, overrides or []))
    except ConfigError as error:
        _fail(str(error))
    run = Curating(curation, out or Path("curated") / curation.name, cache, save_every)
    try:
        began = time.monotonic()
        subset = run()
    except CurateError as error:
        kept = f"\nfinished work is in {run.folder}; with the cause removed, the same command continues" if run.saved else ""
        _fail(f"{error}{kept}")
    except KeyboardInterrupt:
        kept = f"finished work is in {run.folder}, the same command continues" if run.saved else "nothing was saved yet"
        _fail(f"stopped; {kept}", code=130)
    _show(run, subset, time.monotonic() - began)


def _show(run: Curating, subset: Subset, seconds: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from selfloop.curate.report import classes, summary

    console = Console()
    for title, head, rows in (
        (run.curation.name, ("", ""), [*summary(subset).items()]),
        (
            "classes",
            ("class", "rows", "kept", "share before", "share after"),
            [[str(c) for c in row] for row in classes(subset)],
        ),
        ("seconds", ("", ""), [(name, f"{s:.2f}") for name, s in run.seconds.items()]),
    ):
        if rows:
            table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(head))
            for number, name in enumerate(head):
                table.add_column(name, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    for note in run.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{seconds:.1f} s; results: {run.folder / FILE}, {run.folder / REPORT}")


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code)
