"""The self-consuming loop. It knows no metric, no file and no figure; it yields, and others look.

generation 1      model = A(D_r)
generation t > 1  model = A(mix(real, what generations 1 .. t - 1 handed on))
"""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from selfloop import covariance
from selfloop.measure import Data, finite, with_members_of
from selfloop.mix import Mix
from selfloop.protocols import Algorithm, Generation, Model, Source, Streams, Tunable, Work


def self_consume(
    source: Source,
    real: Data,
    algorithm: Algorithm,
    mix: Mix,
    generations: int,
    streams: Streams,
    history: Sequence[Generation] = (),
    work: Work | None = None,
) -> Iterator[Generation]:
    """Fit, sample, mix, again; yield every generation up to `generations`, the first one fitted to `real` alone.

    history: the generations of an earlier, interrupted call, as far back as `mix.memory` reaches; the loop goes on after the
    last of them and yields what the uninterrupted call would have. work: where what was cut goes on, one part a generation; in
    it `hand on` is what is drawn, the rest the fit. A replicate whose law is no longer finite is marked as diverged and from
    then on fed the real data, so that its neighbours in the batch never notice; do not read its models.
    Raises ValueError if the first generation is singular, or finite in no replicate: there is no law for the real data.
    """
    past = list(history)
    for index in range(past[-1].index + 1 if past else 1, generations + 1):
        data = real if not past else mix(mix.real(source, real, index, streams), past, streams(index, "mix"))
        part = work and work.at(f"generation-{index}")
        if past and mix.warm is not None:
            tuned = cast(Tunable, algorithm).tune(past[-1].model, data, [mix.warm], streams(index, "fit"), part)
            model: Model = next(iter(tuned))
        else:
            model = algorithm.fit(data, streams(index, "fit"), part)  # named streams: a longer fit cannot move the draws
        drawn = mix.hand_on(model, source, real, index, streams, part and part.at("hand on"))
        lost = ~finite(drawn)
        if index == 1:
            _check_first(model, lost)
        diverged = past[-1].diverged if past else np.zeros(lost.shape, dtype=np.int64)
        diverged = np.where((diverged == 0) & lost, index, diverged)
        if lost.any():
            drawn = with_members_of(drawn, lost, real)
        past = [*past, Generation(index, model, drawn, diverged)]
        past = past[-mix.memory :] if mix.memory else past
        yield past[-1]


def _steps(model: Model) -> str:
    failed = np.asarray(getattr(model, "failed", 0))
    return f" at step {failed.max()}: lower the learning rate" if failed.max() > 0 else ""


def _check_first(model: Model, lost: NDArray[np.bool_]) -> None:
    """What is wrong with the real data, or with an extrapolation from it, shows in the first generation."""
    law = model.law()
    singular = law is not None and np.isfinite(law.cov).all() and not covariance.is_positive(law.cov).any()
    if singular:
        raise ValueError(
            "the first generation has a singular covariance: the real data has constant or duplicated columns, or fewer "
            "distinct points than dimensions; drop such columns, add points, or use shrinkage"
        )
    if lost.all():
        raise ValueError(
            "the first generation is finite in no replicate: the algorithm finds no law for the real data (too few distinct "
            "points?), extrapolates beyond every law (omega too large; a category lost without smoothing), or its training "
            f"diverged{_steps(model)}"
        )
