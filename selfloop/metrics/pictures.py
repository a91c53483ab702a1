"""Pictures of samples, for those who look before they measure."""

from collections.abc import Mapping

import numpy as np

from selfloop import pictures, ranks
from selfloop.component import Count, component
from selfloop.measure import Array
from selfloop.metrics.track import Tracker, View


@component
class Pictures(Tracker):
    """A grid of the first n samples as a PNG in kept/pictures of the run folder, named by point, replicate and generation.

    It writes no metric. Points of a sweep draw from the same noise, so their pictures show the same samples, changed. Latents
    and floats have no picture and are left out.
    """

    n: Count = 64
    columns: Count = 8

    needs_source = frozenset({"images"})

    def __call__(self, view: View) -> Mapping[str, Array]:
        points = view.sample(self.n, "pictures").points
        shelf = None if view.keep is None else view.keep.shelf
        if shelf is not None and points.dtype == np.uint8 and ranks.rank() == 0:
            folder = shelf / "pictures"
            folder.mkdir(parents=True, exist_ok=True)
            pictures.save_png(folder / f"{view.name}.png", pictures.grid(points, self.columns))
        return {}
