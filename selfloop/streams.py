"""Named streams of random numbers.

A stream is named by (seed, chunk of replicates, generation, role), never by sweep point, worker or clock. Hence the
points of a sweep share their random numbers and are compared by paired differences, adding a value to a grid changes no
other, and a run that was killed and continued draws what an uninterrupted one draws.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


def number(name: str) -> int:
    """A 64-bit number that stands for a name on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def torch_seed(*name: int) -> int:
    """A seed of 63 bits for a torch generator, from numbers that name it."""
    words = np.random.SeedSequence(name).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


@dataclass(frozen=True)
class NamedStreams:
    """streams(generation, role) -> Generator; `point` is "" unless sweep points are asked to be independent."""

    seed: int
    chunk: int = 0
    point: str = ""

    def __call__(self, generation: int, role: str) -> Generator:
        """The stream of a role in a generation; the same name gives the same numbers, always."""
        name = (self.chunk, generation, number(role), number(self.point) if self.point else 0)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=name))
