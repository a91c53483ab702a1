"""The run folder: results that survive a kill, continue, and end as one table.

    config.yaml          the experiment, every default filled in; it can be run again
    environment.json     versions, one entry for each that the run was continued under
    data.json            real data that comes from files: where it was, and what names its content, the SHA-256 among it
    generations.parquet  the finished table: one column a swept path, then replicate, generation, metric, value
    state.json           the commit point: the experiment, and which parts and states count
    state.copy.json      the same, for when state.json is damaged
    parts/ states/       rows as they came, and what the loops need to go on
    work/                what fits that take long save of themselves, until their generation counts; models that pollute
                         the real data, until the run is finished
    snapshots/           what outlasts a fit: <point>-<hash>/<chunk>/generation-G/<part>, snapshots, pictures, logs
    kept/                what trackers make once a run, a trained classifier for example

Every file is written under a temporary name, synced and renamed; state.json after what it names, and what it no longer
names is removed after that. A file that it does not name does not count, so a kill loses what was under way and nothing
else. Files are checked against their hashes when a run continues. What is in the last three folders does not count: a run
that finds them empty makes it again. The table is sorted when it is merged: its bytes do not depend on kills, workers or time.

Of processes that compute together (`selfloop.ranks`) the first one has the folder; the others follow it from commit to commit.
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import io
import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from selfloop import ranks
from selfloop.config import Point, describe, resolved
from selfloop.measure import Array
from selfloop.reading import Source
from selfloop.work import replaced

WATCHED = ("name", "madness", "sweep")
"""Sections that may change at will: they say how results are shown, or are compared point by point."""

GROWING = ("generations", "replicates")
"""What may become more; no fit depends on it."""

STATES = ("state.json", "state.copy.json")
PLACES = ("work", "snapshots", "kept")
"""Folders of what does not count."""

POINTS = "-points.npy"
LARGE = 2**24
"""Bytes from which the points of a saved generation have a file of their own, which is mapped into memory and not read."""


class RunError(Exception):
    """The run folder cannot be used; the message says why and what to do. Nothing in it was lost."""


@dataclass(frozen=True)
class Block:
    """Rows of one metric in one generation: values of the replicates that have one."""

    point: str
    chunk: int
    generation: int
    metric: str
    replicate: Array
    value: Array


@dataclass
class Progress:
    """How far one chunk of one point is: generations done, and the state that goes on from there."""

    done: int = 0
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Places:
    """Where in a run folder a loop keeps what does not count: its fits and the one of its pollution, by all they depend on.

    pollution: a part of `work/` and of `snapshots/` that several loops may share; None where data is not polluted.
    """

    work: str
    shelf: str
    pollution: str | None
    kept: str = "kept"


BLOCKS = pa.schema(
    [
        ("point", pa.string()),
        ("chunk", pa.int32()),
        ("generation", pa.int32()),
        ("metric", pa.string()),
        ("replicate", pa.list_(pa.int32())),
        ("value", pa.list_(pa.float64())),
    ]
)


def short(key: str) -> str:
    """A file name for a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


class RunFolder:
    """One experiment's folder, locked while it is open. Use as a context manager.

    repair: start loops over whose saved files are damaged. Raises RunError if the folder is in use, cannot be written,
    belongs to another configuration or other data, is no run folder, or is damaged, and if the data cannot be read.
    """

    def __init__(self, folder: Path, source: Source, points: Sequence[Point], repair: bool = False):
        self.folder = folder
        self.points = list(points)
        self.repair = repair
        self.notes: list[str] = []
        self._config = yaml.safe_dump(resolved(source, points), sort_keys=False, width=120).encode()
        self._state: dict[str, Any] = {"version": 1, "parts": [], "progress": {}, "first": {}, "hashes": {}}
        self._state |= {"commits": 0, "table": None}
        self._data = fingerprints(points)

    def __enter__(self) -> "RunFolder":
        if ranks.rank() == 0:
            self._open()
        ranks.barrier()
        if ranks.rank() > 0:
            self._follow()
        return self

    def _open(self) -> None:
        with self._explained("open"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._is_new():
                self._check_new()
            self._lock = filelock.FileLock(str(self.folder / "lock"), timeout=0)
            try:
                self._lock.acquire()
            except filelock.Timeout as error:
                raise RunError(
                    f"{self.folder} is in use by another process; wait until it is done, or choose another folder with --out"
                ) from error
        try:
            with self._explained("open"):
                self._continue()
        except BaseException:
            self._lock.release()
            raise

    def _follow(self) -> None:
        """See what the first process has written."""
        with self._explained("open"):
            self._state = _unsealed((self.folder / STATES[0]).read_bytes())
        self._name_fits(described(self.points, self._data), environment())

    def __exit__(self, *_: object) -> None:
        if ranks.rank() == 0:
            self._lock.release()

    # What is there -----------------------------------------------------------------------------------------------------

    def _continue(self) -> None:
        self._read_state()
        now = described(self.points, self._data)
        if "experiment" in self._state:
            try:
                _compare(self.folder, self._state["experiment"], now)
            except RunError:
                if self._state["progress"]:
                    raise
                self._drop("snapshots", "kept")
            self._check_files()
            if self._state["experiment"]["points"] != now["points"]:
                self._state["table"] = None
        else:
            self._drop(*PLACES)
        self._state["experiment"] = now
        for place in ("parts", "states"):
            (self.folder / place).mkdir(exist_ok=True)
        self._commit()
        if not self._is_sound("config.yaml", _digest(self._config)):
            self._write("config.yaml", self._config)
        if self._data:
            distinct = [entry for n, entry in enumerate(self._data.values()) if entry not in list(self._data.values())[:n]]
            self._write("data.json", json.dumps(distinct, indent=2).encode())
        self._name_fits(now, self._note_environment())
        self._sweep_orphans()

    def _name_fits(self, now: Mapping[str, Any], versions: Mapping[str, Any]) -> None:
        self._versions = versions
        self._fits = {row["key"]: _fit_name(now["shared"] | row["own"], versions) for row in now["points"]}

    def _read_state(self) -> None:
        """The last commit; nothing for a new folder. A damaged state.json is replaced by its copy."""
        if self._is_new():
            return
        for name in STATES:
            try:
                self._state = _unsealed((self.folder / name).read_bytes())
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                continue
            if name != STATES[0]:
                self.notes.append(f"{STATES[0]} is missing or damaged; its copy is used, nothing is lost")
            return
        if not self.repair:
            raise RunError(
                f"{' and '.join(STATES)} in {self.folder} are damaged or missing. Restore one of them from a backup, run the "
                "same command with --repair to start the whole run over here, or choose another folder with --out"
            )
        self.notes.append(f"repaired: {' and '.join(STATES)} were damaged, the whole run starts over")

    def _is_new(self) -> bool:
        return not any((self.folder / name).exists() for name in STATES)

    def _check_new(self) -> None:
        """Refuse a folder that holds anything but what a kill can leave before the first commit."""
        ours = {"lock", "parts", "states", f".{STATES[0]}.tmp"}
        foreign = sorted(path.name for path in self.folder.iterdir() if path.name not in ours)
        foreign += [f"{place}/" for place in ("parts", "states") if any((self.folder / place).glob("*"))]
        if foreign:
            held = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise RunError(
                f"{self.folder} holds {held} and no {STATES[0]}: it is no run folder, or a damaged one. Choose another folder "
                f"with --out, or restore {STATES[0]} from a backup"
            )

    def _check_files(self) -> None:
        bad = [name for name, digest in self._state["hashes"].items() if not self._is_sound(name, digest)]
        if bad and not self.repair:
            raise RunError(
                f"damaged or missing in {self.folder}: {', '.join(sorted(bad))}. Restore from a backup, or run the same "
                "command with --repair: the loops that need what is damaged start over, all others are kept"
            )
        if bad:
            self._forget(bad)
        table = self._state["table"]
        if table and not self._is_sound("generations.parquet", table):
            self.notes.append("generations.parquet is missing or damaged; it is merged again from parts/, nothing is lost")
            self._state["table"] = None

    def _is_sound(self, name: str, digest: str) -> bool:
        try:
            with (self.folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest
        except OSError:
            return False

    def _forget(self, bad: Sequence[str]) -> None:
        units = {unit for part in self._state["parts"] if part["file"] in bad for unit in part["units"]}
        units |= {unit for unit, progress in self._state["progress"].items() if set(progress["files"]) & set(bad)}
        self._state["parts"] = [part for part in self._state["parts"] if part["file"] not in bad]
        for unit in units:
            self._state["progress"].pop(unit, None)
            self._drop(f"work/{unit}", *(str(path.relative_to(self.folder)) for path in self.folder.glob(f"snapshots/*{unit}")))
        for key, name in list(self._state["first"].items()):
            if name in bad:
                del self._state["first"][key]
        for name in bad:
            del self._state["hashes"][name]
        self._state["table"] = None
        self.notes.append(f"repaired: what depended on {', '.join(sorted(bad))} starts over")

    def _sweep_orphans(self) -> None:
        for place in ("parts", "states"):
            for path in (self.folder / place).iterdir():
                if path.is_file() and f"{place}/{path.name}" not in self._state["hashes"]:
                    path.unlink()
        for place in PLACES:
            for path in (self.folder / place).rglob(".*.tmp"):  # of a save that was killed
                path.unlink(missing_ok=True)

    def progress(self, point: Point, chunk: int) -> Progress:
        """How far a chunk of replicates of a point is."""
        return Progress(**self._state["progress"].get(_unit(point, chunk), {}))

    def history(self, point: Point, chunk: int) -> list[dict[str, Array]]:
        """The saved generations a loop goes on from, last one last."""
        saved: dict[int, dict[str, Array]] = {}
        for name in self.progress(point, chunk).files:
            for key, values in self._arrays(name).items():
                generation, _, rest = key.partition("/")
                saved.setdefault(int(generation), {})[rest] = values
        return [saved[generation] for generation in sorted(saved)]

    def history_bytes(self, point: Point, chunk: int) -> int:
        """How large that is."""
        return sum((self.folder / name).stat().st_size for name in self.progress(point, chunk).files)

    def first(self, group: str, chunk: int) -> dict[str, Array] | None:
        """The saved first fit that the points of a group share."""
        name = self._state["first"].get(f"{short(group)}/{chunk}")
        return self._arrays(name) if name else None

    def places(self, point: Point, chunk: int) -> Places:
        """Where a loop keeps what it saves on the way."""
        unit, pollution = _unit(point, chunk), self._pollution(point, chunk)
        shelf = "snapshots/" + "-".join(filter(None, (point.label(), unit)))
        return Places(f"work/{unit}/{self._fits[point.key]}", shelf, pollution and f"pollution/{pollution}")

    def _pollution(self, point: Point, chunk: int) -> str | None:
        """A name for all that the fit of a loop's pollution depends on: no setting of the loop, nor how much there is of it."""
        experiment = point.experiment
        if experiment.mix.pollution is None:
            return None
        alike = [describe(part) for part in (experiment.real, experiment.mix.pollution.algorithm, experiment.mix.n_real)]
        stream = [experiment.seed, chunk, point.key if experiment.sweep.independent else "", experiment.statistics]
        size = min(experiment.chunk, experiment.replicates - chunk * experiment.chunk)
        code = {kind: _code(kind) for kind in sorted(_kinds(alike))}
        return short(json.dumps([alike, stream, size, code, self._data.get(point.key), self._versions], sort_keys=True))

    def _drop(self, *places: str) -> None:
        for place in places:
            shutil.rmtree(self.folder / place, ignore_errors=True)

    def _arrays(self, name: str) -> dict[str, Array]:
        if name.endswith(POINTS):
            generation = int(name.removesuffix(POINTS).rpartition("-")[2])
            return {f"{generation}/points": np.load(self.folder / name, mmap_mode="c", allow_pickle=False)}
        with np.load(self.folder / name, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}

    # What is added ----------------------------------------------------------------------------------------------------------

    def commit(
        self,
        blocks: Sequence[Block],
        advances: Mapping[tuple[str, int], tuple[int, list[tuple[int, dict[str, Array]]], int | None]],
        firsts: Mapping[tuple[str, int], dict[str, Array]],
    ) -> None:
        """Make a round of work count: its rows, and where each loop now stands.

        advances: (point key, chunk) -> (generations done, new saved generations, how many the loop looks back, None = all);
        firsts: (group, chunk) -> state of the shared first fit. Raises RunError on a full disk; what was committed
        before stays.
        """
        ranks.barrier()  # nobody needs the files of the last commit any longer
        if ranks.rank() == 0:
            with self._explained("write"):
                self._commit_round(blocks, advances, firsts)
        ranks.barrier()
        if ranks.rank() > 0:
            self._follow()

    def _commit_round(
        self, blocks: Sequence[Block], advances: Mapping[tuple[str, int], Any], firsts: Mapping[tuple[str, int], Any]
    ) -> None:
        old = set(self._state["hashes"])
        state = json.loads(json.dumps(self._state))
        if blocks:
            name = f"parts/{state['commits']:06d}.parquet"
            state["commits"] += 1
            self._add(state, name, partial(_write_parquet, _block_table(blocks)))
            state["parts"].append({"file": name, "units": sorted({f"{short(b.point)}/{b.chunk}" for b in blocks})})
        for (group, chunk), arrays in firsts.items():
            name = f"states/first-{short(group)}-{chunk:04d}.npz"
            self._add(state, name, partial(_write_npz, arrays))
            state["first"][f"{short(group)}/{chunk}"] = name
        for (point, chunk), (done, generations, memory) in advances.items():
            unit = f"{short(point)}/{chunk}"
            files = list(state["progress"].get(unit, {}).get("files", []))
            if generations:
                new = self._add_generations(state, f"states/{short(point)}-{chunk:04d}", generations)
                files = [*files, *new] if memory is None else new
            state["progress"][unit] = {"done": done, "files": files}
        needed = {part["file"] for part in state["parts"]} | set(state["first"].values())
        needed |= {name for progress in state["progress"].values() for name in progress["files"]}
        state["hashes"] = {name: digest for name, digest in state["hashes"].items() if name in needed}
        state["table"] = None if blocks else state["table"]
        before, self._state = self._state, state
        try:
            self._commit()
        except BaseException:
            self._state = before
            raise
        for name in old - needed:  # after the copy of the state too, so that either state finds all it names
            (self.folder / name).unlink(missing_ok=True)
        for point, chunk in advances:
            self._drop(f"work/{short(point)}/{chunk}")

    def _add_generations(self, state: dict[str, Any], prefix: str, generations: Sequence[tuple[int, Any]]) -> list[str]:
        """Write saved generations; the names of the files."""
        names, small = [f"{prefix}-{generations[0][0]:06d}-{generations[-1][0]:06d}.npz"], {}
        for g, saved in generations:
            for key, values in saved.items():
                if key == "points" and values.nbytes >= LARGE:
                    names.append(f"{prefix}-{g:06d}{POINTS}")
                    self._add(state, names[-1], partial(_write_array, values))
                else:
                    small[f"{g}/{key}"] = values
        self._add(state, names[0], partial(_write_npz, small))
        return names

    def _add(self, state: dict[str, Any], name: str, write: Callable[[IO[bytes]], None]) -> None:
        path = self.folder / name
        with replaced(path, path.with_name(f".{path.name}.tmp")) as file:
            write(file)
            file.seek(0)
            state["hashes"][name] = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    def _commit(self) -> None:
        for name in STATES:
            self._write(name, _sealed(self._state))

    def merge(self) -> pd.DataFrame:
        """Write generations.parquet from the parts, sorted by point, generation, metric and replicate; the table it holds.

        The run is finished: what its fits saved of themselves is removed.
        """
        if ranks.rank() == 0:
            with self._explained("write"):
                self._merge()
        ranks.barrier()
        return load_generations(self.folder)

    def _merge(self) -> None:
        if self._state["table"] is None:
            parts = [pq.read_table(self.folder / part["file"], schema=BLOCKS) for part in self._state["parts"]]
            content = _parquet(_merged(parts, self.points))
            self._write("generations.parquet", content)
            self._state["table"] = _digest(content)
            self._commit()
        self._drop("work")

    # Files ----------------------------------------------------------------------------------------------------------------

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with replaced(path, path.with_name(f".{path.name}.tmp")) as file:
            file.write(content)

    @contextlib.contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = {
                errno.ENOSPC: "the disk is full; free some space",
                errno.EDQUOT: "the disk quota is used up; free some space",
                errno.EFBIG: "a file grew beyond the limit set for this process; raise it",
                errno.EROFS: "the file system is read-only; choose another folder with --out",
                errno.EACCES: "permission denied; make it writable or choose another folder with --out",
                errno.EPERM: "permission denied; make it writable or choose another folder with --out",
            }.get(error.errno or 0, f"{error.strerror or error}; choose another folder with --out")
            kept = ". Finished work is kept; the same command continues" if action == "write" else ""
            raise RunError(f"cannot {action} {self.folder}: {remedy}{kept}") from error

    def _note_environment(self) -> dict[str, Any]:
        path = self.folder / "environment.json"
        try:
            entries = json.loads(path.read_text())
        except (OSError, ValueError):
            entries = []
        now = environment()
        if now not in entries:
            if entries:
                self.notes.append("this run continues under other package versions than it began with; see environment.json")
            self._write("environment.json", json.dumps([*entries, now], indent=2).encode())
        return now


def _kinds(tree: Any) -> set[str]:
    """The kinds that are named anywhere in a description, by a path to a class and not by a name of ours."""
    if isinstance(tree, list):
        return set().union(*map(_kinds, tree))
    if not isinstance(tree, dict):
        return set()
    own = {tree["kind"]} if ":" in str(tree.get("kind", "")) else set()
    return own.union(*map(_kinds, tree.values()))


@lru_cache(maxsize=64)
def _code(kind: str) -> str | None:
    """A hash of the source of a class as this process has imported it; None where it has no file."""
    file = getattr(sys.modules.get(kind.partition(":")[0]), "__file__", None)
    return None if file is None else _digest(Path(file).read_bytes())[:12]


def fingerprints(points: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Point key -> what names the content of its real data, if that comes from files. Raises RunError if they are not sound."""
    known: dict[str, Any] = {}
    out = {}
    for point in points:
        taken = getattr(point.experiment.real, "fingerprint", None)
        if taken is not None:
            section = json.dumps(describe(point.experiment.real), sort_keys=True)
            try:
                out[point.key] = known[section] = known.get(section) or describe(taken())
            except (OSError, ValueError, ImportError) as error:
                raise RunError(f"the real data cannot be read: {error}") from error
    return out


def described(points: Sequence[Point], data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What results depend on, as dotted path -> value: what all points share, and what each has of its own.

    The source of a class that is not ours is part of it: results of old code and of new do not mix. So is the content of files
    of real data, but not where they are.
    """
    trees = [{key: value for key, value in describe(point.experiment).items() if key not in WATCHED} for point in points]
    each = [
        flatten(tree)
        | {"sweep.independent": point.experiment.sweep.independent}
        | {f"code of {kind}": _code(kind) for kind in _kinds(tree)}
        | {f"data.{name}": value for name, value in data.get(point.key, {}).items() if name != "path"}
        for tree, point in zip(trees, points, strict=True)
    ]
    shared = {path: value for path, value in each[0].items() if all(path in one and one[path] == value for one in each)}
    own = [{path: value for path, value in one.items() if path not in shared} for one in each]
    rows = [{"key": point.key, "at": point.values, "own": values} for point, values in zip(points, own, strict=True)]
    return {"shared": shared, "points": rows}


def _fit_name(settings: Mapping[str, Any], versions: Mapping[str, Any]) -> str:
    """A name for all that the fits at a point depend on."""
    fixed = {path: value for path, value in settings.items() if path not in GROWING}
    return short(json.dumps([fixed, versions], sort_keys=True))


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """A nested mapping as dotted path -> value; lists are values."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{path}.{key}" if path else str(key))
    return out


def _compare(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RunError, with the differences, unless all that was asked for before is asked for still, and maybe more."""
    old, new = ({row["key"]: {**each["shared"], **row["own"]} for row in each["points"]} for each in (before, now))
    names = {row["key"]: _named(row["at"]) for row in before["points"]}
    changes: dict[str, list[str]] = {}
    for key in old.keys() & new.keys():
        for path in sorted({*old[key], *new[key]}):
            if not _may_become(path, old[key], new[key]):
                change = f"{path}: the folder has {_value(old[key], path)}, now {_value(new[key], path)}"
                changes.setdefault(change, []).append(key)
    lines = [
        change + ("" if len(keys) == len(old.keys() & new.keys()) else f", at {_some(names, keys)}")
        for change, keys in changes.items()
    ]
    lost = [key for key in old if key not in new]
    lines += [f"sweep: the folder has {_some(names, lost)}, now gone"] if lost else []
    if lines:
        raise RunError(
            f"{folder} holds results of another configuration:\n  "
            + "\n  ".join(lines)
            + "\nOnly generations, replicates (from "
            "a whole number of chunks) and the values of a sweep may grow; choose another folder with --out"
        )


def _some(names: Mapping[str, str], keys: Sequence[str]) -> str:
    ordered = [names[key] or "the one point without a sweep" for key in names if key in keys]
    return " and ".join(ordered[:2]) + (f" and {len(ordered) - 2} more points" if len(ordered) > 2 else "")


def _may_become(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if path in old and path in new and old[path] == new[path]:
        return True
    if path == "generations":
        return bool(new[path] > old[path])
    if path == "replicates":
        return bool(new[path] > old[path] and old[path] % old["chunk"] == 0 and old["chunk"] == new["chunk"])
    return False


def _value(flat: Mapping[str, Any], path: str) -> str:
    return repr(flat[path]) if path in flat else "none"


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {value}" for path, value in values.items())


def _sealed(state: dict[str, Any]) -> bytes:
    body = json.dumps(state, indent=0)
    return json.dumps({"sha256": _digest(body.encode())}).encode() + b"\n" + body.encode()


def _unsealed(content: bytes) -> dict[str, Any]:
    head, _, body = content.partition(b"\n")
    if json.loads(head)["sha256"] != _digest(body):
        raise ValueError("the content does not match its hash")
    state: dict[str, Any] = json.loads(body)
    if state["version"] != 1:
        raise ValueError("written by another version")
    return state


def environment() -> dict[str, Any]:
    """What results may depend on: versions of Python and of the packages, processor family."""
    names = ["selfloop", "numpy", "scipy", "POT", "pandas", "pyarrow", "torch", "scikit-learn"]
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": versions,
    }


def load_generations(folder: Path) -> pd.DataFrame:
    """The table of a run folder: a column for each swept path, then replicate, generation, metric, value.

    Raises RunError if the run has not finished or the file cannot be read.
    """
    path = Path(folder) / "generations.parquet"
    try:
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist; run the experiment to its end first") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise RunError(f"{path} is damaged: {error}; the same run command merges it again from parts/") from error


def _unit(point: Point, chunk: int) -> str:
    return f"{short(point.key)}/{chunk}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_npz(arrays: Mapping[str, Array], file: IO[bytes]) -> None:
    np.savez(file, allow_pickle=False, **arrays)


def _write_array(values: Array, file: IO[bytes]) -> None:
    np.lib.format.write_array(file, values, allow_pickle=False)


def _write_parquet(table: pa.Table, file: IO[bytes]) -> None:
    file.write(_parquet(table))


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _block_table(blocks: Sequence[Block]) -> pa.Table:
    columns = {name: [getattr(block, name) for block in blocks] for name in BLOCKS.names}
    columns["point"] = [short(block.point) for block in blocks]
    return pa.table(columns, schema=BLOCKS)


def _merged(parts: Sequence[pa.Table], points: Sequence[Point]) -> pa.Table:
    order = {short(point.key): number for number, point in enumerate(points)}
    table = pa.concat_tables(parts) if parts else BLOCKS.empty_table()
    frame = table.select(["point", "chunk", "generation", "metric"]).to_pandas()
    frame["row"] = np.arange(len(frame))
    frame["number"] = frame["point"].map(order)
    frame = frame.dropna(subset=["number"]).sort_values(["number", "generation", "metric", "chunk"], kind="stable")
    frame = frame.drop_duplicates(["number", "generation", "metric", "chunk"])
    table = table.take(pa.array(frame["row"].to_numpy()))
    lengths = np.asarray(table["value"].combine_chunks().value_lengths(), dtype=np.int64)
    numbers = np.repeat(frame["number"].to_numpy(dtype=np.int64), lengths)
    columns: dict[str, Any] = {}
    for path in points[0].values:
        values = pa.array(_column([point.values[path] for point in points]))
        taken = values.take(pa.array(numbers))
        columns[path] = taken.dictionary_encode() if pa.types.is_string(taken.type) else taken
    columns["replicate"] = pa.array(table["replicate"].combine_chunks().flatten())
    columns["generation"] = pa.array(np.repeat(frame["generation"].to_numpy(dtype=np.int32), lengths))
    columns["metric"] = pa.array(np.repeat(frame["metric"].to_numpy(dtype=object), lengths)).dictionary_encode()
    columns["value"] = table["value"].combine_chunks().flatten()
    return pa.table(columns)


def _column(values: list[Any]) -> list[Any]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return values if numbers else [str(value) for value in values]
