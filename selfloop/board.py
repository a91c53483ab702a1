"""Numbers of a training on a board: TensorBoard or Weights & Biases, by their own libraries."""

from dataclasses import dataclass
from typing import Any, Literal

from selfloop.component import component
from selfloop.protocols import Work


@component
class Board:
    """Where a fit's reports go besides the progress line. kind: tensorboard (files in the shelf of the fit) or wandb."""

    kind: Literal["tensorboard", "wandb"] = "tensorboard"
    project: str = "selfloop"

    def watching(self, work: Work) -> "BoardedWork":
        """The work, whose reports go to the board too. Raises ModuleNotFoundError, with the remedy, without its library."""
        return BoardedWork(work, self._writer(work))

    def _writer(self, work: Work) -> Any:
        try:
            if self.kind == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                writer: Any = SummaryWriter(str(work.shelf / "tensorboard") if work.shelf is not None else None)
                return lambda numbers, step: [writer.add_scalar(name, value, step) for name, value in numbers.items()]
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"board {self.kind} needs its library; run: pip install {self.kind}") from error
        run = wandb.init(project=self.project, dir=str(work.shelf) if work.shelf is not None else None, reinit=True)
        return lambda numbers, step: run.log(numbers, step=step)


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
