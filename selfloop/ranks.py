"""Processes that compute together, as torchrun starts them: RANK and WORLD_SIZE name each of them; one without them is alone.

All of them run the same loop, on the same data and from the same streams, in step; an algorithm that knows of them deals its
steps and samples out to them. The first one, rank 0, writes what is written. What the clock decides, it decides for all.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np

PATIENCE = timedelta(hours=2)
"""How long the others are waited for: one may write a large file meanwhile."""


class RankError(Exception):
    """Another of the processes has ended before its time, and this one cannot go on."""


def rank() -> int:
    """The number of this process, 0 for one alone."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes compute together, 1 for one alone."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined() -> Iterator[None]:
    """Meet the others, by gloo and, where every process has a GPU of its own, by NCCL too; this one takes its GPU.

    Who leaves by an error does so without a farewell: the others notice by the next thing that they do together.
    """
    if world() == 1:
        yield
        return
    import torch
    from torch import distributed

    cuda = torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", world()))
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank())))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    yield
    barrier()
    distributed.destroy_process_group()


def barrier() -> None:
    """Wait for all of them. Raises RankError if one has ended."""
    summed(np.zeros(1))


def agreed(decision: bool) -> bool:
    """What rank 0 decides, for all; the decision itself for one alone. Raises RankError if one has ended."""
    return bool(summed(np.array([decision and rank() == 0], dtype=np.int64))[0])


def summed(array: Any) -> Any:
    """The sum of the arrays of all processes, in place; the array itself for one alone. Raises RankError if one has ended."""
    if world() > 1:
        import torch

        try:
            torch.distributed.all_reduce(torch.from_numpy(array))
        except RuntimeError as error:
            raise RankError(f"another of the {world()} processes has ended, and this one with it; see what it says") from error
    return array
