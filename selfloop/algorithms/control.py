"""Distribution control: guidance away from an auxiliary that was tuned on the base's own samples with other class shares.

    base       = fit(data),     pool = n_synthetic samples of the base, of which a judge tells the class;  pi = their shares
    auxiliary  = base tuned for `budget` on the pool, weighted so that the classes have shares sigma
    score      = (1 + omega) score_base - omega score_auxiliary,       sigma such that this has the shares tau asked for:

    shares     sigma = pi + (pi - tau) / (omega eta)                   guidance extrapolates the shares
    odds       sigma prop. to pi (pi / tau)^(1 / (omega eta))          ... or their ratios, as p_r (p_r / p_s)^omega would

At tau = pi it is SIMS. Of what the target wants less of, the auxiliary sees more, and guidance moves away from it. eta is the
fraction of the way from pi to sigma that the auxiliary went. The second rule is exact for the density p_r (p_r / p_s)^omega of
classes that do not overlap, the first where noise hides the class, and it is there that a sampler decides: see
`selfloop.theory.control_shares` and `guided_class_flow`. Both agree to first order in tau - pi.

An error in pi is passed on 1 + omega eta times: a share has the standard error (1 + omega eta) (pi (1 - pi) / n_synthetic)^1/2
by the pool alone. Source: Alemohammad et al. (2024), "Self-Improving Diffusion Models with Synthetic Data", names the
algorithm (Algorithm 2) and its aim, a distribution that matches any target within the domain; the rules are derived here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Len
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Strict
from scipy.spatial import cKDTree  # type: ignore[import-untyped, unused-ignore]

from selfloop.algorithms.mixture import MixtureFit
from selfloop.algorithms.sims import Pair, Sims, SimsModel
from selfloop.component import AT_SAMPLING, Count, NonNegative, Real, component
from selfloop.embed import Embedding
from selfloop.measure import Array, Data, Ints, Measure, finite
from selfloop.protocols import ScoreModel, Tunable, Work

Mask = NDArray[np.bool_]
Target = Annotated[tuple[Annotated[float, Strict(), Gt(0)], ...], Len(2)] | Literal["uniform"]


@component
class Control:
    """Move the class shares of an algorithm's samples to a target, by guidance; see the module for the formulas.

    algorithm: the one controlled; n_synthetic: samples of the base, which are judged and on which the auxiliary is tuned;
    budget: how long, in the algorithm's own unit; target: shares of the classes 0, 1, ..., which add to one, or `uniform`;
    omega > 0: strength of guidance, on which the auxiliary depends: another omega is another fit.
    eta: the fraction of the way that tuning for `budget` goes; by default the budget where that is a fraction, else 1.
    A run shows it: (share reached - pi) / (tau - pi) times the eta that was set.
    extrapolate: `shares` or `odds`. `shares` reaches tau_c <= (1 + omega eta) pi_c: a replicate that would need more gives its
    auxiliary none of the class, and it is an error if all do. interval: noise levels [low, high] at which guidance acts, all
    if not said; classes are decided at the high ones, and keep their shapes better without the low ones.
    The classes are the labels of the training data, and a sample has that of most of its `neighbours` nearest training points,
    by weight; or the one that `judge` names, a classifier trained on this data; or, if `clusters` says how many, groups found
    in the data by a mixture of round Gaussians, the largest first.

    The pool is weighted by sigma_c / pi_c and not drawn from again: the same law, every sample used, and no noise of a second
    draw, which guidance would multiply by omega. If the base draws labels, it draws them as the pool has them under weights
    tau_c / pi_c. Raises ValueError from `fit` for moments, for labels that are missing or beyond the target, for a class
    without a training point or a sample, and for a target out of reach everywhere.
    """

    algorithm: Tunable
    n_synthetic: Count
    budget: NonNegative
    target: Target = "uniform"
    omega: Real = 2.0
    eta: Annotated[float, Strict(), Gt(0)] | None = None
    extrapolate: Literal["shares", "odds"] = "shares"
    clusters: Annotated[Count, Gt(1)] | None = None
    neighbours: Count = 5
    judge: Embedding | None = None
    interval: Annotated[tuple[NonNegative, NonNegative] | None, AT_SAMPLING] = None

    def __post_init__(self) -> None:
        if not self.omega > 0:
            raise ValueError(f"omega must be > 0, there is no control without guidance; got {self.omega:g}")
        if self.eta is not None and self.eta > 1:
            raise ValueError(f"eta must be at most 1, the whole way to the fit of the weighted samples; got {self.eta:g}")
        if self.target != "uniform":
            if abs(sum(self.target) - 1) > 1e-9:
                raise ValueError(f"target must be shares that add to one, got a sum of {sum(self.target):g}")
            if self.clusters is not None and len(self.target) != self.clusters:
                raise ValueError(f"target must hold a share for each of {self.clusters} clusters, got {len(self.target)}")
        if self.judge is not None and not getattr(self.judge, "classifies", False):
            raise ValueError("judge must name classes; use kind classifier")
        if self.judge is not None and self.clusters is not None:
            raise ValueError("classes are named by a judge or found as clusters; give one of judge and clusters")
        _ = self.sims  # refuses a budget, a sampler and an interval that do not fit

    @property
    def sims(self) -> Sims:
        """SIMS with the same base: what the two have in common."""
        return Sims(
            algorithm=self.algorithm,
            n_synthetic=self.n_synthetic,
            budget=self.budget,
            omega=self.omega,
            interval=self.interval,
        )

    @property
    def gives(self) -> frozenset[str]:
        """What SIMS gives, but no moments without points."""
        return self.sims.gives - {"draw"}

    @property
    def needs(self) -> frozenset[str]:
        """What it needs of the inner algorithm's models."""
        return self.sims.needs

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> SimsModel:
        """Base, judged samples, auxiliary; the guidance happens when the model is sampled."""
        if not isinstance(data, Measure):
            raise ValueError("control judges points and the data are moments; set statistics: false")
        fit_rng, draw_rng, judge_rng, tune_rng = rng.spawn(4)
        base = self.algorithm.fit(data, fit_rng, work and work.at("base"))
        if not isinstance(base, ScoreModel):
            raise ValueError(f"control guides a denoiser and {type(base).__name__} has none; use another algorithm")
        pool = base.sample(self.n_synthetic, draw_rng, work=work and work.at("synthetic"))
        sound = finite(data) & finite(pool)
        judged, classes = self._judged(data, pool, sound, judge_rng, work)
        pi = _shares(judged, classes, pool.weights)
        _refuse(pi, sound, f"is named by none of {pool.n} samples of the base", "use a larger n_synthetic")
        tau = np.full(classes, 1 / classes) if self.target == "uniform" else np.array(self.target)
        seen = pool.reweighted(pool.weights * self._factors(self._sigma(pi, tau, sound), pi, judged, sound))
        auxiliary = next(iter(self.algorithm.tune(base, seen, [self.budget], tune_rng, work and work.at("auxiliary"))))
        aimed = pool.reweighted(pool.weights * self._factors(tau, pi, judged, sound))
        pair = Pair(*(_drawing_labels_of(aimed, model) for model in (base, auxiliary)))
        return SimsModel(pair, self.omega, self.interval)

    def restore(self, state: Mapping[str, Array]) -> SimsModel:
        """The pair of a saved fit, at this algorithm's omega and interval."""
        return self.sims.restore(state)

    @property
    def _strength(self) -> float:
        """omega eta."""
        partial = getattr(self.algorithm, "largest_budget", None) is not None
        return self.omega * (self.eta if self.eta is not None else self.budget if partial else 1.0)

    def _sigma(self, pi: Array, tau: Array, sound: Mask) -> Array:
        """sigma (*batch, C) of pi (*batch, C)."""
        w = self._strength
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(pi) + (np.log(pi) - np.log(tau)) / w
            sigma = np.exp(logs - logs.max(axis=-1, keepdims=True)) if self.extrapolate == "odds" else pi + (pi - tau) / w
        short = (sigma < -1e-12).any(axis=-1) & sound
        if short.any() and (short == sound).all():
            *where, c = np.argwhere((sigma < -1e-12) & sound[..., None])[0]
            least = (np.max(tau / pi, axis=-1)[sound] - 1).min()
            raise ValueError(
                f"target gives class {c} a share of {tau[c]:.3g}, and among the samples of the base it has "
                f"{pi[(*where, c)]:.3g}{_at(where)}; omega * eta = {w:.3g} reaches {1 + w:.3g} times that, and it takes "
                f"{least:.3g} or more; raise omega, or set extrapolate: odds"
            )
        sigma = np.maximum(sigma, 0.0)
        return np.asarray(sigma / sigma.sum(axis=-1, keepdims=True))

    @staticmethod
    def _factors(wanted: Array, pi: Array, judged: Ints, sound: Mask) -> Array:
        """wanted_c / pi_c of the class of each sample, (*batch, n); 1 in members that are not finite."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.broadcast_to(wanted / pi, pi.shape)
        return np.where(sound[..., None], np.take_along_axis(ratio, judged, axis=-1), 1.0)

    def _judged(self, data: Measure, pool: Measure, sound: Mask, rng: Generator, work: Work | None) -> tuple[Ints, int]:
        """The class of every sample (*batch, n), 0 in members that are not finite, and the number of classes."""
        if self.clusters is not None:
            groups = MixtureFit(components=self.clusters, covariance="spherical", restarts=10).fit(data, rng)
            rank = np.argsort(np.argsort(-groups.weights, axis=-1, kind="stable"), axis=-1)
            return np.take_along_axis(rank, groups.assign(np.asarray(pool.points)), axis=-1), self.clusters
        if data.labels is None:
            raise ValueError("control takes its classes from labels and the data has none; set clusters: the number to find")
        labels = np.broadcast_to(data.labels, (*data.batch, data.n))
        classes = int(labels.max()) + 1 if self.target == "uniform" else len(self.target)
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"target holds shares of classes 0 .. {classes - 1}, and the labels go from {labels.min()} to {labels.max()}; "
                "give every class a share"
            )
        _refuse(_shares(labels, classes, data.weights), sound, "has no training point", "use more points")
        if self.judge is not None:
            judge: Any = self.judge.fitted(data, work and work.at("judge"))
            return judge.classify(pool.points), classes
        return nearest_class(data, labels, pool, sound, classes, self.neighbours), classes


def nearest_class(data: Measure, labels: Ints, pool: Measure, sound: Mask, classes: int, neighbours: int) -> Ints:
    """The class of most of the nearest points of `data`, by weight, of every point of `pool`: (*batch, n).

    A tree for each member `sound`: searches in one tree do not help in another. Points of no weight have no say.
    """
    x, points = (np.asarray(m.points, dtype=float).reshape(-1, m.n, int(np.prod(m.event))) for m in (data, pool))
    weights, marks = data.weights.reshape(-1, data.n), labels.reshape(-1, data.n)
    out = np.zeros(points.shape[:2], dtype=np.int64)
    for member in np.flatnonzero(sound.reshape(-1)):
        rows = np.flatnonzero(weights[member] > 0)
        _, near = cKDTree(x[member, rows]).query(points[member], k=np.arange(1, min(neighbours, len(rows)) + 1))
        votes = weights[member, rows[near]][..., None] * np.eye(classes)[marks[member, rows[near]]]
        out[member] = votes.sum(axis=1).argmax(axis=-1)
    return out.reshape(*pool.batch, pool.n)


def _shares(labels: Ints, classes: int, weights: Array) -> Array:
    """Shares (*batch, C) of labels (*batch, n) under weights (*batch, n)."""
    return np.stack([(weights * (labels == c)).sum(axis=-1) for c in range(classes)], axis=-1)


def _refuse(shares: Array, sound: Mask, what: str, remedy: str) -> None:
    """Raise ValueError at the first class without a share in a member that is finite."""
    empty = np.argwhere((shares == 0) & sound[..., None])
    if len(empty):
        *where, c = empty[0]
        raise ValueError(f"class {c} {what}{_at(where)}; {remedy}, or fewer classes")


def _at(where: Any) -> str:
    return f" in replicate {', '.join(map(str, where))}" if len(where) else ""


def _drawing_labels_of(pool: Measure, model: Any) -> Any:
    """The model, which now draws its labels, if it draws any, as often as they weigh in the pool."""
    if pool.labels is None or getattr(model, "shares", None) is None:
        return model
    return replace(model, shares=_shares(pool.labels, model.shares.shape[-1], pool.weights))
