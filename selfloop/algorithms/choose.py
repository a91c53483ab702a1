"""omega: auto. The guidance with the least distance to real points that were held out of the training."""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from annotated_types import Len
from numpy.random import Generator

from selfloop.component import Count, Fraction, Omega, component
from selfloop.measure import Array, Data, Measure
from selfloop.metrics import transport
from selfloop.protocols import Model


@component
class Choose:
    """How `omega: auto` is chosen, for every replicate by itself.

    held_out: share of the real points kept from base and auxiliary; by: distance of n samples of the guided model to them, as
    the tracker of this name measures it (w2_empirical: of as many samples as there are points held out); grid: what is tried,
    all on the same noise. The trackers then judge the chosen omega on fresh draws.
    """

    by: Literal["w2_moments", "w2_empirical"] = "w2_moments"
    grid: Annotated[tuple[Omega, ...], Len(1)] = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
    held_out: Fraction = 0.2
    n: Count = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out:g}")

    def split(self, data: Data, rng: Generator) -> tuple[Measure, Measure]:
        """(training, held out): rows of the real part, origin 0, or of all data if it carries no origin, leave at random.

        Raises ValueError for moments, and where fewer than two points would be held out or trained on.
        """
        if not isinstance(data, Measure):
            raise ValueError("omega: auto holds points out and the data are moments; set statistics: false or give a number")
        origin = data.origin if data.origin is not None and data.origin.ndim == 1 else np.zeros(data.n, dtype=np.int64)
        real = np.flatnonzero(origin == 0)
        count = round(self.held_out * len(real))
        if min(count, data.n - count) < 2:
            raise ValueError(
                f"omega: auto needs two real points to hold out and two to train on, and has {len(real)} in all; use more"
            )
        out = np.sort(rng.permutation(real)[:count])
        return data.subset(np.setdiff1d(np.arange(data.n), out)), data.subset(out)

    def best(self, model_at: Callable[[float], Model], held_out: Measure, rng: Generator) -> Array:
        """The omega of `grid` whose model is nearest to the points held out, (*batch,); the smallest where none is finite."""
        seed = int(rng.integers(2**63))
        empirical = self.by == "w2_empirical"
        distances = []
        for omega in self.grid:
            drawn = model_at(omega).sample(held_out.n if empirical else self.n, np.random.default_rng(seed))
            with np.errstate(all="ignore"):
                found = (
                    transport.wasserstein2(drawn, held_out)
                    if empirical
                    else transport.moment_wasserstein2(drawn, held_out.moments())
                )
            distances.append(np.where(np.isfinite(found), found, np.inf))
        return np.asarray(np.array(self.grid)[np.argmin(distances, axis=0)])
