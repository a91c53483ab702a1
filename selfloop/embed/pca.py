"""Principal components: the directions of largest variance of features, and the features in them.

    C u_j = lambda_j u_j,  lambda_1 >= lambda_2 >= ...          C the covariance of the features under the weights of the data
    phi_j(x) = u_j^T (x - m),  j = 1 .. q                       whitened:  u_j^T (x - m) / lambda_j^(1/2)

q is given, or the least for which lambda_1 + ... + lambda_q >= explained tr C. The entry of u_j of largest absolute value is
positive. C is gathered over blocks in float64: O(n d^2) time, O(d^2) memory, and O(d^3) time for its eigenvectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Le
from pydantic import Strict

from selfloop import covariance
from selfloop.component import Count, Switch, component
from selfloop.embed.features import Embedding, Features, Floats, blocks
from selfloop.embed.moments import FeatureMoments
from selfloop.embed.pixels import PixelEmbedding
from selfloop.embed.store import embedded, gathered, learns, stamp
from selfloop.measure import Array, Measure
from selfloop.protocols import Work
from selfloop.threads import one_thread

Share = Annotated[float, Strict(), Gt(0), Le(1)]
EXPLAINED = 0.95
ROWS = 1024
WIDEST = 2**14
"""Width of features up to which their covariance is made: 2 GB."""


@dataclass(frozen=True)
class PcaFeatures:
    """W^T (phi(x) - m): mean (d,), axes W (d, q) of other features phi."""

    features: Features
    mean: Array
    axes: Array
    name: str = "pca"

    def __call__(self, points: Any) -> Floats:
        """The features (n, q) of points (n, *event)."""
        return _projected(self.features(points), self.mean, self.axes)


@component
class PcaEmbedding:
    """`pca`: the principal components of other features.

    features: the others, the points themselves by default; components: how many; explained: or the least number that has this
    share of the variance (.95 if neither is said); whiten: each component brought to variance one.
    Raises ValueError for more components than the features vary in, and for more than 16,384 features.
    """

    features: Embedding = PixelEmbedding()
    components: Count | None = None
    explained: Share | None = None
    whiten: Switch = False

    def __post_init__(self) -> None:
        if self.components is not None and self.explained is not None:
            raise ValueError("the number of components is given, or follows from the share explained; give one of them")

    @property
    def learns(self) -> frozenset[str]:
        """The weights, and what the other features learn from."""
        return frozenset({"weights"}) | learns(self.features)

    def stamp(self) -> str:
        """As the other features."""
        return stamp(self.features)

    def fitted(self, real: Measure, work: Work | None = None) -> PcaFeatures:
        """The components of the features of `real`; with a work they are found once."""
        features = self.features.fitted(real, work and work.at("features"))
        found = self._found(lambda rows: features(real.points[rows]), real, work and work.at("axes"))
        return PcaFeatures(features, *found)

    def of(self, data: Measure, work: Work | None = None) -> Floats:
        """The features (n, q) of all points; the others are computed once."""
        x = embedded(self.features, data, work and work.at("features"))
        mean, axes = self._found(lambda rows: x[rows], data, work and work.at("axes"))
        with one_thread():
            return gathered(lambda rows: _projected(x[rows], mean, axes), data.n, ROWS, work)

    def _found(self, of: Callable[[slice], Floats], data: Measure, work: Work | None) -> tuple[Array, Array]:
        """Mean (d,) and axes (d, q)."""
        saved = work.load() if work is not None else None
        if saved is None:
            with one_thread():
                saved = dict(zip(("mean", "axes"), self._axes(of, data), strict=True))
            if work is not None:
                work.save(**saved)
        return saved["mean"], saved["axes"]

    def _axes(self, of: Callable[[slice], Floats], data: Measure) -> tuple[Array, Array]:
        moments = FeatureMoments()
        for rows in blocks(data.n, ROWS):
            block = of(rows)
            if block.shape[1] > WIDEST:
                raise ValueError(
                    f"principal components are those of {WIDEST} features or fewer, for their covariance is held in memory, "
                    f"and these are {block.shape[1]}; set features.features to a network"
                )
            moments.update(block, data.weights[rows])
        law = moments.law()
        values, vectors = (part[..., ::-1] for part in covariance.eigh(law.cov))
        q = self._count(values)
        axes = vectors[:, :q]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(q)])
        return law.mean, axes / np.sqrt(values[:q]) if self.whiten else axes

    def _count(self, values: Array) -> int:
        rank = int((values > covariance.ROUNDING * len(values) * values[0]).sum())
        if rank == 0:
            raise ValueError("features are the same in all rows and have no principal components; look at the data")
        if self.components is None:
            return min(least_that_explain(values, self.explained or EXPLAINED), rank)
        if self.components > rank:
            raise ValueError(f"{self.components} components are asked of features that vary in {rank}; ask for {rank} or fewer")
        return self.components


def least_that_explain(values: Array, share: float) -> int:
    """The least q for which the first q of variances (d,), descending, are at least this share of all."""
    return int(np.searchsorted(np.cumsum(values), (share - 1e-12) * values.sum())) + 1


def _projected(x: Any, mean: Array, axes: Array) -> Floats:
    """W^T (x - m) of rows x (n, d)."""
    return np.asarray((np.asarray(x, dtype=float) - mean) @ axes, dtype=np.float32)
