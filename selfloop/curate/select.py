"""Curators that keep some points and drop the others."""

from typing import Any

import numpy as np
from numpy.random import Generator

from selfloop.component import Positive, component
from selfloop.measure import Measure, Selection


@component
class Truncate:
    """Keep the points within `radius` standard deviations of their own mean: |x - m| <= radius * (tr S / d)^(1/2) d^(1/2).

    In one dimension |z| <= c, which takes a Gaussian's variance to 1 - 2 c phi(c) / (2 Phi(c) - 1) of itself (`theory`).
    A quality filter that trusts what is typical; m and S are the data's own weighted moments.
    """

    radius: Positive

    def __call__(self, data: Measure, rng: Generator, work: Any = None) -> Selection:
        """Points (*batch, n, d); a dropped point has weight 0 in its member of the batch."""
        moments = data.moments()
        spread = np.trace(moments.cov, axis1=-2, axis2=-1)
        distance = ((np.asarray(data.points) - moments.mean[..., None, :]) ** 2).sum(axis=-1)
        score = np.sqrt(distance / spread[..., None])
        return Selection(np.arange(data.n), (score <= self.radius).astype(float), {"score": score})
