"""Images small enough for tests of the driver: a source of random ones, and an algorithm that counts their grey levels.

The algorithm goes over its rows in steps, deals each step to the processes that compute together, and says and saves how far it
is; all it adds up are whole numbers, so that any number of processes finds the same ones.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfloop import ranks
from selfloop.measure import Measure, Rows
from selfloop.metrics.track import Tracker
from selfloop.protocols import Model

EVENT = (1, 4, 4)
STEPS = 8
FATAL: list[int] = []
"""How many more steps are made before the process dies; empty: it lives."""
MADE: list[int] = []
"""Every step that a fit in this process made."""


class Killed(BaseException):
    """The process is dead."""


@dataclass
class Set:
    points: np.ndarray
    order: np.ndarray

    def take(self, start, n, rng, statistics=False):
        return self._at(self.order[start : start + n])

    def sample(self, n, rng):
        return self._at(rng.permutation(len(self.points))[:n])

    def _at(self, index):
        return Measure.uniform(Rows((self.points,), index), index % 2, batch=0)

    def law(self):
        return None


@dataclass
class Pixels:
    """80 images in a file that is made from a seed, if it is not there."""

    path: str
    seed: int = 0

    gives = frozenset({"images", "labels"})
    rows = 80

    def replicated(self, replicates, rng):
        return Set(np.load(self._file(), mmap_mode="r"), rng.permutation(80))

    def fingerprint(self):
        return {
            "path": str(Path(self.path).resolve()),
            "sha256": hashlib.sha256(self._file().read_bytes()).hexdigest(),
            "images": np.int64(80),
            "classes": 2,
        }

    def _file(self):
        file = Path(self.path)
        if file.parent.name == "gone":
            raise FileNotFoundError(2, "No such file or directory", str(file))
        if not file.exists():
            np.save(file, np.random.default_rng(self.seed).integers(256, size=(80, *EVENT), dtype=np.uint8))
        return file


@dataclass
class Levels:
    """Every pixel is drawn from the grey levels that it had; samples are stored image by image where there is a work."""

    counts: np.ndarray

    def sample(self, n, rng, labels=None, work=None):
        share, seed = np.cumsum(self.counts, axis=0) / self.counts.sum(axis=0), int(rng.integers(2**63))
        made = np.zeros((n, *EVENT), np.uint8) if work is None else work.array("points", (n, *EVENT), np.uint8)
        done = np.zeros(n, np.uint8) if work is None else work.array("done", (n,), np.uint8)
        for row in range(ranks.rank(), n, ranks.world()):
            if not done[row]:
                _step(work, row + 1, n)
                made[row] = (np.random.default_rng([seed, row]).random(EVENT) >= share).sum(axis=0)
                done[row] = 1
        if work is None:
            return Measure.uniform(ranks.summed(made.astype(np.int64)).astype(np.uint8), batch=0)
        ranks.barrier()
        return Measure.uniform(made, batch=0)

    def law(self):
        return None

    def state(self):
        return {"counts": self.counts}


@dataclass
class Counting:
    """pause: seconds a step takes; fails: the rank that fails in its third step."""

    pause: float = 0.0
    fails: int = -1

    gives = frozenset({"images"})
    needs_real = frozenset({"images"})

    def fit(self, data, rng, work=None) -> Model:
        saved = (work.load() if work is not None else None) or {"step": 0, "counts": np.zeros((256, *EVENT), np.int64)}
        counts = saved["counts"]
        for step in range(int(saved["step"]), STEPS):
            rows = np.arange(data.n)[step::STEPS][ranks.rank() :: ranks.world()]
            here = np.stack([(data.points[rows] == level).sum(axis=0) for level in range(256)])
            counts = counts + ranks.summed(here.astype(np.int64))
            if self.fails == ranks.rank() and step == 2:
                raise ValueError("this rank has a fault")
            time.sleep(self.pause)
            _step(work, step + 1, STEPS)
            if work is not None and work.due():
                work.save(step=np.array(step + 1), counts=counts)
        if work is not None:
            work.save(step=np.array(STEPS), counts=counts)
            if work.shelf is not None and ranks.rank() == 0:
                work.shelf.mkdir(parents=True, exist_ok=True)
                (work.shelf / "picture.txt").write_text("a cat")
        return Levels(counts)

    def restore(self, state):
        return Levels(state["counts"])


def _step(work, done, total):
    if FATAL:
        FATAL[0] -= 1
        if FATAL[0] < 0:
            raise Killed
    MADE.append(done)
    if work is not None:
        work.report(done, total, loss=0.5, images_per_second=64.0)


class Brightness(Tracker):
    """The mean grey level of 20 samples, beside that of the real images, which is found once a run."""

    needs_source = frozenset({"images"})

    def __call__(self, view):
        saved = view.keep.at("brightness").load() if view.keep is not None else None
        if saved is None:
            saved = {"mean": np.asarray(np.asarray(view.source.take(0, 80, view.stream("all")).points).mean())}
            if view.keep is not None:
                view.keep.at("brightness").save(**saved)
        return {"grey": np.asarray(view.sample(20, "grey").points).mean(), "grey_real": saved["mean"]}
