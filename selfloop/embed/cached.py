"""Features that are kept in a folder and found again by every later process."""

from typing import Any

from selfloop.component import component
from selfloop.embed.features import Embedding, Features, Floats
from selfloop.embed.store import embedded, learns, stamp
from selfloop.formats import expanded
from selfloop.measure import Measure
from selfloop.protocols import Work


@component
class CachedEmbedding:
    """`cached`: another embedding, whose features of a whole data set are kept; see `selfloop.embed.store` for their names.

    features: the other; folder: where they are kept ($VARIABLE is replaced). Any file there may be deleted.
    """

    features: Embedding
    folder: str

    @property
    def classifies(self) -> bool:
        """As the other."""
        return bool(getattr(self.features, "classifies", False))

    @property
    def learns(self) -> frozenset[str]:
        """As the other."""
        return learns(self.features)

    def stamp(self) -> str:
        """As of the other."""
        return stamp(self.features)

    def fitted(self, real: Measure, work: Work | None = None) -> Any:
        """The features of the other, for points that are not known yet; they are not kept."""
        fitted: Features = self.features.fitted(real, work)
        return fitted

    def of(self, data: Measure, work: Work | None = None) -> Floats:
        """The features (n, d) of all points, from the folder if they are there."""
        return embedded(self.features, data, work, cache=expanded("folder", self.folder))
