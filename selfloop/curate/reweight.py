"""Curators that keep every point and change its weight."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Len
from numpy.random import Generator

from selfloop.component import NonNegative, Real, component
from selfloop.measure import Measure, Selection


@component
class Reward:
    """Human preference in the limit of many candidates: p <- p e^r / Z with reward r(x) = -strength |x - target|^2 / 2.

    On a Gaussian each generation adds `strength` to the precision and moves the mean toward `target`.
    Source: Ferbach et al. (2024), arXiv 2407.09499.
    """

    strength: NonNegative
    target: Annotated[tuple[Real, ...], Len(1)]

    @property
    def d(self) -> int:
        """Dimension of the points it can judge."""
        return len(self.target)

    def __call__(self, data: Measure, rng: Generator, work: Any = None) -> Selection:
        """Points (*batch, n, d), d = len(target); weights e^r up to a factor, taken at the largest reward for stability.

        Raises ValueError if the dimensions differ.
        """
        target = np.asarray(self.target)
        if data.event != target.shape:
            raise ValueError(f"target has {len(target)} coordinates for points of event {data.event}; give one a dimension")
        reward = -0.5 * self.strength * ((np.asarray(data.points) - target) ** 2).sum(axis=-1)
        weights = np.exp(reward - reward.max(axis=-1, keepdims=True))
        return Selection(np.arange(data.n), weights, {"reward": reward})
