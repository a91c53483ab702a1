"""Autoguidance: a model guided by a weaker version of itself, trained on the same real data.

    D = D_guide + w (D_main - D_guide),    w = 1 + omega

Source: Karras et al. (2024), "Guiding a Diffusion Model with a Bad Version of Itself", arXiv 2406.02507. The guide is smaller
or trained less, or both. SIMS has the same form; its auxiliary is as large as the base and tuned on the base's own samples.
"""

from collections.abc import Mapping
from typing import Annotated

from numpy.random import Generator

from selfloop.algorithms.sims import Pair, SimsModel, guided_gives
from selfloop.component import AT_SAMPLING, NonNegative, Omega, component
from selfloop.diffusion import guide
from selfloop.measure import Array, Data
from selfloop.protocols import Algorithm, ScoreModel, Work


@component
class Autoguidance:
    """Guide what `algorithm` fits by what `guide` fits to the same data; omega = w - 1 changes without a new fit.

    omega: 0 = the main model alone; interval: noise levels [low, high] at which guidance acts, all if not said.
    Raises ValueError from `fit` if the models have no denoiser.
    """

    algorithm: Algorithm
    guide: Algorithm
    omega: Omega = 1.0
    interval: Annotated[tuple[NonNegative, NonNegative] | None, AT_SAMPLING] = None

    def __post_init__(self) -> None:
        guide.check_interval(self.interval)

    @property
    def gives(self) -> frozenset[str]:
        """What both algorithms give, as far as guidance keeps it."""
        return guided_gives(self.algorithm, self.guide)

    @property
    def needs(self) -> frozenset[str]:
        """What it needs of the inner algorithm's models."""
        return frozenset({"denoise"})

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> SimsModel:
        """Both fits, each on a stream of its own; the guidance happens when the model is sampled."""
        main_rng, guide_rng = rng.spawn(2)
        main = self.algorithm.fit(data, main_rng, work and work.at("main"))
        weak = self.guide.fit(data, guide_rng, work and work.at("guide"))
        for model in (main, weak):
            if not isinstance(model, ScoreModel):
                raise ValueError(f"autoguidance needs denoisers and {type(model).__name__} has none; use another algorithm")
        return SimsModel(Pair(main, weak), self.omega, self.interval)

    def restore(self, state: Mapping[str, Array]) -> SimsModel:
        """The models of a saved fit, at this algorithm's omega and interval."""
        return SimsModel(Pair.restore(self.algorithm, state, other=self.guide), self.omega, self.interval)
