"""Numbers of a training on a board: TensorBoard or Weights & Biases, by their own libraries."""

import importlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from selfloop.component import component
from selfloop.protocols import Work


@component
class Board:
    """Where a fit's reports go besides the progress line. kind: tensorboard (files in the shelf of the fit) or wandb."""

    kind: Literal["tensorboard", "wandb"] = "tensorboard"
    project: str = "selfloop"

    @contextmanager
    def watching(self, work: Work) -> Iterator["BoardedWork"]:
        """The work, whose reports go to the board too until the end of the block, which finishes the board's run.

        Raises ModuleNotFoundError, with the remedy, without its library.
        """
        library, folder = self._library(), work.shelf
        if self.kind == "tensorboard":
            with closing(library.SummaryWriter(None if folder is None else str(folder / "tensorboard"))) as writer:
                yield BoardedWork(work, lambda numbers, step: [writer.add_scalar(*item, step) for item in numbers.items()])
        else:
            with library.init(project=self.project, dir=None if folder is None else str(folder), reinit=True) as run:
                yield BoardedWork(work, lambda numbers, step: run.log(numbers, step=step))

    def _library(self) -> Any:
        try:
            return importlib.import_module("torch.utils.tensorboard" if self.kind == "tensorboard" else "wandb")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"board {self.kind} needs its library; run: pip install {self.kind}") from error


@dataclass
class BoardedWork:
    """A `Work` whose reports are also written elsewhere; parts of it are those of the work."""

    work: Work
    write: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.work, name)

    def report(self, done: int, total: int, **numbers: float) -> None:
        """Say how far the fit is, and write its numbers at `done`."""
        self.work.report(done, total, **numbers)
        self.write(numbers, done)
