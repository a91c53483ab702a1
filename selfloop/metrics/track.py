"""Trackers: what is written down of a generation, by the name of the metric. One table says it all:

    metric             what it is                                                        unit
    w2                 W_2 between the law that is sampled and p_r, both Gaussian        of the points
    w2_moments         W_2 between Gaussians with the moments of n samples and of p_r    of the points; a lower bound of W_2
    w2_empirical       exact W_2 between n samples of the model and n of p_r (POT)       of the points; biased upwards
    w2_floor           the same between two samples of p_r: what a perfect model scores  of the points
    frechet            Frechet distance between the moments of n samples and of p_r      squared unit (W_2^2, not W_2)
    frechet_floor      the same between two samples of p_r                               squared unit
    sampler_w2         W_2 between p_r and what the sampler draws from p_r's exact score of the points
    omega              the strength of guidance in use                                   -
    eta                how far the auxiliary went toward the base's own samples          -
    omega_predicted    1 / eta, the best omega by theory                                 -
    log_bias           ln of the factor by which the base's sampler changes a variance   -
    mean_norm          |mean - mean of p_r|                                              of the points
    variance           tr(cov) / d                                                       squared unit
    log_variance       ln of it                                                          -
    log_det            ln det cov - ln det cov of p_r                                    -
    mode_coverage      share of the modes of p_r that samples reach                      -
    mode_entropy       entropy of the shares of the modes                                nats
    entropy            entropy of the category probabilities                             nats
    heterozygosity     1 - sum_k p_k^2                                                   -
    support            categories of positive probability                                count
    excess_risk        |w - w*|^2, the excess squared error at x ~ N(0, I)               squared unit of y
    class_tv           total variation of class shares: of samples to p_r's or a target's -
    class_entropy      entropy of the class shares                                       nats
    class_share.c      share of class c among samples                                    -
    class_w2_moments.c w2_moments, of the samples named c and of the real points named c  of the points; NaN below 3 points
    diverged           1 at the generation at which a replicate left float64             -
    diverged_step      training step at which its loss stopped being finite              count

The metrics of images have a table of their own, in `selfloop.metrics.images`.

A tracker sees a generation and the source, draws what it needs from streams of its own, and returns an array over
the replicates for each metric. It keeps no state, so that a run can be cut anywhere. `every` and `replicates` say how often
and for how many replicates it is worth its price.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, cast

import numpy as np
from annotated_types import Ge, Len
from numpy.typing import NDArray
from pydantic import Strict

from selfloop import covariance
from selfloop.component import Count, NonNegative, Positive, component
from selfloop.diffusion import guide
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.score import gaussian_denoiser
from selfloop.laws import Gaussian
from selfloop.measure import Array, Measure, Moments
from selfloop.metrics import transport
from selfloop.protocols import Generation, Model, MomentModel, Source, Streams, Work


@dataclass(frozen=True)
class View:
    """What a tracker is shown: a generation, p_r, the streams of the loop, and how many replicates count.

    work: where what takes long of this generation is kept, samples for example, until it is finished; keep: where a tracker
    keeps what it makes once a run, for all loops of it, a trained classifier for example; name: of the point, the chunk and the
    generation, fit for a file. Unbatched data has one replicate, and its metrics have no axis.
    """

    generation: Generation
    source: Source
    streams: Streams
    members: int
    work: Work | None = None
    keep: Work | None = None
    name: str = ""

    def stream(self, role: str) -> np.random.Generator:
        """A stream of this generation, named apart from the loop's own."""
        return self.streams(self.generation.index, f"track {role}")

    def sample(self, n: int, role: str) -> Measure:
        """n points of the model for the replicates that count."""
        work = self.work and self.work.at(role)
        return first(self.generation.model.sample(n, self.stream(role), work=work), self.members)

    def real(self, n: int, role: str) -> Measure:
        """n points of p_r for the replicates that count; a data set gives at most what it holds out."""
        return first(self.source.sample(n, self.stream(f"{role} real")), self.members)

    def real_pair(self, n: int, role: str) -> tuple[Measure, Measure]:
        """Two sets of at most n points of p_r, of equal size and without a common row."""
        real = self.real(min(n, getattr(self.source, "rows", n)), role)
        other = self.source.take(0, real.n, self.stream(f"{role} floor"))
        return real, first(cast(Measure, other), self.members)

    def real_moments(self, n: int, role: str) -> Gaussian:
        """Mean and covariance of p_r: exact where it is Gaussian, else of n samples."""
        law = self.source.law()
        return _member(law, self.members) if law is not None else _as_gaussian(self.real(n, role).moments())

    def gaussian(self) -> Gaussian:
        """The exact law of the model. Raises TypeError if it is not Gaussian."""
        return _member(_law_of(self.generation.model, "w2_empirical or w2_moments"), self.members)

    def gaussian_source(self) -> Gaussian:
        """p_r. Raises TypeError if it is not Gaussian."""
        law = self.source.law()
        if law is None:
            raise TypeError("this metric needs a Gaussian p_r; use w2_empirical")
        return _member(law, self.members)

    def moments(self, n: int, role: str) -> Gaussian:
        """Mean and covariance of what the model draws: exact where its law is Gaussian, else of n samples."""
        law = self.generation.model.law()
        if law is not None:
            return _member(law, self.members)
        drawn = self.sample(n, role).moments()
        return Gaussian(drawn.mean, drawn.cov)


def first(data: Measure, members: int) -> Measure:
    """The first `members` replicates of a batch; unbatched data as it is."""
    if not data.batch:
        return data
    marks = [None if mark is None or mark.ndim == 1 else mark[:members] for mark in (data.labels, data.origin)]
    return Measure(data.points[:members], data.weights[:members], *marks)


def _member(law: Gaussian, members: int) -> Gaussian:
    return law if law.mean.ndim == 1 else Gaussian(law.mean[:members], law.cov[:members])


def _law_of(model: Model, instead: str) -> Gaussian:
    law = model.law()
    if law is None:
        raise TypeError(f"{type(model).__name__} has no Gaussian law; track {instead}")
    return law


@component
class Tracker:
    """How often (every k-th generation, and the first) and for how many replicates (the first ones; all if not said)."""

    every: Count = 1
    replicates: Count | None = None

    needs: ClassVar[frozenset[str]] = frozenset()
    needs_source: ClassVar[frozenset[str]] = frozenset()

    def due(self, generation: int) -> bool:
        """Whether a generation is looked at: 1 and the multiples of `every`."""
        return generation == 1 or generation % self.every == 0

    def prepare(self, source: Any, keep: Work | None) -> None:
        """What can be done, or can go wrong, before anything is fitted; keep: see `View`."""

    def __call__(self, view: View) -> Mapping[str, Array]:
        """Metric name -> values (members,)."""
        raise NotImplementedError


@component
class W2(Tracker):
    """`w2`: closed form, for Gaussian laws; every replicate, no sampling error."""

    needs: ClassVar[frozenset[str]] = frozenset({"law"})
    needs_source: ClassVar[frozenset[str]] = frozenset({"law"})

    def __call__(self, view: View) -> Mapping[str, Array]:
        return {"w2": transport.gaussian_wasserstein2(view.gaussian(), view.gaussian_source())}


@component
class W2Moments(Tracker):
    """`w2_moments`: from n samples of the model, at least 10,000; a Gaussian p_r enters exactly, another by n samples."""

    n: Annotated[int, Strict(), Ge(10_000)] = 10_000

    def __call__(self, view: View) -> Mapping[str, Array]:
        model = view.generation.model
        real = view.real_moments(self.n, "w2_moments")
        if model.law() is not None and isinstance(model, MomentModel):
            drawn = model.draw(self.n, view.stream("w2_moments"))
            mine = Gaussian(drawn.mean[: view.members], drawn.cov[: view.members])
        else:
            mine = _as_gaussian(view.sample(self.n, "w2_moments").moments())
        return {"w2_moments": transport.gaussian_wasserstein2(mine, real)}


def _as_gaussian(moments: Moments) -> Gaussian:
    return Gaussian(moments.mean, moments.cov)


@component
class W2Empirical(Tracker):
    """`w2_empirical` between n samples of the model and n of p_r, and `w2_floor` between those and n other rows of p_r."""

    n: Count = 500

    def __call__(self, view: View) -> Mapping[str, Array]:
        real, other = view.real_pair(self.n, "w2_empirical")
        model = view.sample(real.n, "w2_empirical")
        return {"w2_empirical": transport.wasserstein2(model, real), "w2_floor": _floor(_Pair(real, other))}


@dataclass(frozen=True)
class _Pair:
    """Two samples of p_r, the same for all points of a sweep, so that their distance is computed once a process."""

    real: Measure
    other: Measure

    def __hash__(self) -> int:
        return hash(np.asarray(self.real.points).tobytes())

    def __eq__(self, them: object) -> bool:
        return isinstance(them, _Pair) and all(
            np.array_equal(mine.points, yours.points) for mine, yours in ((self.real, them.real), (self.other, them.other))
        )


@lru_cache(maxsize=256)
def _floor(pair: _Pair) -> Array:
    return transport.wasserstein2(pair.real, pair.other)


@component
class Frechet(Tracker):
    """`frechet` between the moments of n samples of the model and of n of p_r, and `frechet_floor` between two sets of p_r.

    Biased upwards by the finite n: compare equal n, and with the floor. A data set gives at most its held-out rows.
    """

    n: Count = 10_000

    def __call__(self, view: View) -> Mapping[str, Array]:
        real, other = view.real_pair(self.n, "frechet")
        model = view.sample(real.n, "frechet")
        return {
            "frechet": transport.moment_wasserstein2(model, real.moments()) ** 2,
            "frechet_floor": transport.moment_wasserstein2(other, real.moments()) ** 2,
        }


@component
class SamplerW2(Tracker):
    """`sampler_w2`: the bias of the sampler alone, W_2 between p_r and what its steps draw from the exact score of p_r."""

    needs: ClassVar[frozenset[str]] = frozenset({"denoise"})
    needs_source: ClassVar[frozenset[str]] = frozenset({"law"})

    def __call__(self, view: View) -> Mapping[str, Array]:
        real, sampler = view.gaussian_source(), cast(Any, view.generation.model).sampler
        if sampler.kind == "exact":
            return {"sampler_w2": np.zeros(view.members)}
        drawn = diffusion.law(gaussian_denoiser(real), sampler, real.batch, real.d)
        return {"sampler_w2": transport.gaussian_wasserstein2(drawn, real)}


@component
class Guidance(Tracker):
    """`omega` of SIMS or Neon, and what it should be: `eta` and `log_bias` measured by n samples, `omega_predicted` = 1 / eta.

    See `selfloop.diffusion.guide.measured_eta`. The report warns where omega leaves the range in which a loop is stable.
    """

    n: Count = 4_000

    needs: ClassVar[frozenset[str]] = frozenset({"pair", "denoise"})

    def __call__(self, view: View) -> Mapping[str, Array]:
        model: Any = view.generation.model
        eta, bias = guide.measured_eta(model.pair.base, model.pair.auxiliary, self.n, view.stream("guidance"))
        omega = np.broadcast_to(np.asarray(model.omega, dtype=float), eta.shape)
        with np.errstate(divide="ignore"):
            out = {"omega": omega, "eta": eta, "omega_predicted": 1 / eta, "log_bias": bias}
        return {name: values[: view.members] for name, values in out.items()}


@component
class MeanNorm(Tracker):
    """`mean_norm`: |m - m_r|, of the exact law or of n samples."""

    n: Count = 10_000

    def __call__(self, view: View) -> Mapping[str, Array]:
        shift = view.moments(self.n, "mean_norm").mean - view.real_moments(self.n, "mean_norm").mean
        return {"mean_norm": np.sqrt((shift**2).sum(axis=-1))}


@component
class Variance(Tracker):
    """`variance`: tr(cov) / d and its logarithm `log_variance`, of the exact law or of n samples."""

    n: Count = 10_000

    def __call__(self, view: View) -> Mapping[str, Array]:
        law = view.moments(self.n, "variance")
        variance = np.trace(law.cov, axis1=-2, axis2=-1) / law.d
        with np.errstate(divide="ignore"):
            return {"variance": variance, "log_variance": np.log(variance)}


@component
class LogDet(Tracker):
    """`log_det`: ln det cov - ln det cov_r, of the exact law or of n samples; negative where the volume shrank."""

    n: Count = 10_000

    def __call__(self, view: View) -> Mapping[str, Array]:
        mine, real = view.moments(self.n, "log_det"), view.real_moments(self.n, "log_det")
        return {"log_det": covariance.log_det(mine.cov) - covariance.log_det(real.cov)}


@component
class Modes(Tracker):
    """`mode_coverage` and `mode_entropy` of n samples against a mixture p_r.

    A sample belongs to its most responsible mode if it lies within `radius` standard deviations of it; a mode is covered if
    it holds at least `share` of its own weight. Entropy in nats of the shares of the modes, samples outside all left out.
    """

    n: Count = 2_000
    radius: Positive = 3.0
    share: Positive = 0.1

    needs_source: ClassVar[frozenset[str]] = frozenset({"modes"})

    def __call__(self, view: View) -> Mapping[str, Array]:
        mixture = cast(Any, view.source).model
        x = np.asarray(view.sample(self.n, "modes").points)
        means, weights = mixture.means[: view.members], mixture.weights[: view.members]
        std = np.sqrt(mixture.covs[: view.members, :, 0, 0])
        gap = np.sqrt(((x[:, :, None, :] - means[:, None]) ** 2).sum(axis=-1)) / std[:, None]
        near = gap.argmin(axis=-1)
        counted = np.eye(means.shape[1])[near] * (gap.min(axis=-1) <= self.radius)[..., None]
        shares = counted.mean(axis=1)
        total = np.maximum(shares.sum(axis=-1, keepdims=True), np.finfo(float).tiny)
        return {
            "mode_coverage": (shares >= self.share * weights).mean(axis=-1),
            "mode_entropy": entropy(shares / total),
        }


@component
class Categories(Tracker):
    """`entropy` (nats), `heterozygosity` 1 - sum p^2 and `support` of a categorical model's probabilities."""

    needs: ClassVar[frozenset[str]] = frozenset({"probabilities"})

    def __call__(self, view: View) -> Mapping[str, Array]:
        p = cast(Any, view.generation.model).probabilities[: view.members]
        return {"entropy": entropy(p), "heterozygosity": 1 - (p**2).sum(axis=-1), "support": (p > 0).sum(axis=-1) * 1.0}


@component
class ExcessRisk(Tracker):
    """`excess_risk`: |w - w*|^2, the mean squared error above the noise at x ~ N(0, I), of a regression."""

    needs: ClassVar[frozenset[str]] = frozenset({"coefficients"})
    needs_source: ClassVar[frozenset[str]] = frozenset({"regression"})

    def __call__(self, view: View) -> Mapping[str, Array]:
        w = cast(Any, view.generation.model).coefficients[: view.members]
        cov = view.gaussian_source().cov
        true = np.linalg.solve(cov[..., :-1, :-1], cov[..., :-1, -1:])[..., 0]
        return {"excess_risk": ((w - true) ** 2).sum(axis=-1)}


@component
class ClassShares(Tracker):
    """`class_share.c`, `class_tv`, `class_entropy` and `class_w2_moments.c` of n samples, named by a judge.

    The judge is Bayes' rule where the law of the real data has one (`selfloop.plane`), which errs least. Else it is the
    k nearest of n_train training rows of p_r (of all if there are fewer), by scikit-learn, the same in every generation.
    class_tv is the distance to the shares of these rows, or to `target`, shares which add to one. class_w2_moments.c compares
    the samples named c with n real points named c: NaN where there are fewer than 3 of either.
    """

    n: Count = 1_000
    n_train: Count = 1_000
    neighbours: Count = 5
    target: Annotated[tuple[NonNegative, ...], Len(2)] | None = None

    needs_source: ClassVar[frozenset[str]] = frozenset({"labels"})

    def __post_init__(self) -> None:
        if self.target is not None and abs(sum(self.target) - 1) > 1e-9:
            raise ValueError(f"target must be shares that add to one, got a sum of {sum(self.target):g}")

    def __call__(self, view: View) -> Mapping[str, Array]:
        rows = min(self.n_train, getattr(view.source, "rows", self.n_train))
        train = first(cast(Measure, view.source.take(0, rows, view.streams(0, "track classes"))), view.members)
        classes = np.unique(np.asarray(train.labels))
        drawn, real = view.sample(self.n, "classes"), view.real(self.n, "classes")
        named, truly = self._named(view, train, drawn), self._named(view, train, real)
        shares = np.stack([(named == c).mean(axis=-1) for c in classes], axis=-1)
        aim = np.stack([(np.asarray(train.labels) == c).mean(axis=-1) for c in classes], axis=-1)
        if self.target is not None:
            if len(self.target) != len(classes):
                raise ValueError(f"target must hold a share for each of {len(classes)} classes, got {len(self.target)}")
            aim = np.array(self.target)
        out = {f"class_share.{c}": shares[:, number] for number, c in enumerate(classes)}
        out |= {"class_tv": 0.5 * np.abs(shares - aim).sum(axis=-1), "class_entropy": entropy(shares)}
        for c in classes:
            laws = _law_of_some(drawn, named == c), _law_of_some(real, truly == c)
            out[f"class_w2_moments.{c}"] = transport.gaussian_wasserstein2(*laws)
        return out

    def _named(self, view: View, train: Measure, data: Measure) -> Array:
        x, rule = np.asarray(data.points), getattr(getattr(view.source, "model", None), "classify", None)
        if rule is not None:
            return np.asarray(rule(x))
        from sklearn.neighbors import KNeighborsClassifier

        rows = zip(np.asarray(train.points), np.asarray(train.labels), x, strict=True)
        named = [KNeighborsClassifier(self.neighbours).fit(points, labels).predict(member) for points, labels, member in rows]
        return np.stack(named)


def _law_of_some(data: Measure, chosen: NDArray[np.bool_]) -> Gaussian:
    """Mean and covariance of the points chosen (*batch, n); NaN in members with fewer than 3."""
    few = chosen.sum(axis=-1) < 3
    moments = data.reweighted(np.where(few[..., None], 1.0, chosen)).moments()
    return Gaussian(np.where(few[..., None], np.nan, moments.mean), np.where(few[..., None, None], np.nan, moments.cov))


def entropy(p: Array) -> Array:
    """-sum_k p_k ln p_k over the last axis, in nats; 0 ln 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(-np.where(p > 0, p * np.log(p), 0.0).sum(axis=-1))
