"""Class weights by distributionally robust optimisation: more mass for the classes on which a small model has most to gain.

    min over theta   max over alpha in simplex_K   sum_c alpha_c [L_c(theta) - L_c(reference)]

L_c is the denoising loss, averaged over the rows of class c. theta is a small diffusion model, the proxy; the reference is a
model that was fitted to the data as they are. In round t = 1 .. T, from alpha_c = 1 / K,

    theta       tuned for `budget` on the data with mass alpha_c in class c
    s_c         = max(0, mean_l [L_c(sigma_l; theta) - L_c(sigma_l; reference)] / L(sigma_l; reference))      dro
                = mean_l L_c(sigma_l; theta) / L(sigma_l; first theta) + C / n_c^1/2                          group_dro
    alpha_c     <- alpha_c exp(eta s_c) / sum_c
    alpha_c     <- (1 - smoothing) alpha_c + smoothing / K
    result      mean over t of alpha_t; weight of a row: alpha_c / (share of class c)

L(sigma) is the mean over classes of L_c(sigma), so that eta is counted per unit of relative loss whatever the scale of the
data. Both models and all rounds see the same rows, levels and noise: a proxy that equals the reference has s = 0 to the bit,
whereas the clipped difference of two losses under noise of their own is above 0 for equal models too. Clipping comes after the
mean over a class for the same reason. Where no class has excess loss left, alpha stays.

Steps that are too long take alpha to a corner: with a constant gap d between the first and the second class their ratio is
exp(eta d t). How far it went is told by the effective number of classes, 1 / sum_c alpha_c^2, from K down to 1.

Source: Li et al. (2024), "Pruning then Reweighting", arXiv 2409.19128, for DRO over classes with a reference and a proxy
diffusion model; Xie et al. (2023), "DoReMi", for update, smoothing and mean; Sagawa et al. (2020), for group_dro. The first has
published no code, and its step size, clipping, smoothing, averaging and noise levels are not known to us: those here are
choices of ours.
"""

import json
import warnings
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt, Le
from numpy.random import Generator
from pydantic import Strict

from selfloop import ranks
from selfloop.component import Count, Fraction, NonNegative, Positive, component
from selfloop.curate.denoising import Probe, check_gives, losses
from selfloop.curate.weigh import Grouped, shares, weighed
from selfloop.measure import Array, Ints, Measure, Selection
from selfloop.protocols import Algorithm, Tunable, Work

TRAJECTORY = "class_weights.json"
"""The file in the shelf with alpha and s of all rounds."""
PROXY = "proxy."


def ascended(alpha: Array, scores: Array, eta: float, smoothing: float) -> Array:
    """One step of alpha (K,) on the simplex: alpha_c exp(eta s_c), normalised, then mixed with the uniform law.

    Where smoothing is 0, alpha_i / alpha_j is multiplied by exp(eta (s_i - s_j)); else alpha_c >= smoothing / K.
    """
    risen = alpha * np.exp(eta * (scores - scores.max()))
    return np.asarray((1 - smoothing) * risen / risen.sum() + smoothing / len(alpha))


def effective_classes(alpha: Array) -> float:
    """1 / sum_c alpha_c^2: K for equal weights, 1 for one class alone."""
    return float(1 / np.sum(alpha**2))


@component
class _Ascent(Grouped, Probe):
    """What both kinds share.

    proxy: a small diffusion model; its own budget is that of its first fit, under equal masses; rounds: T; budget: of a round,
    in the proxy's unit; eta: step size; smoothing: share of the uniform law; rows: of each class that losses are taken over,
    drawn once, at most; least_effective: share of K; fewer effective classes raise a warning.
    """

    proxy: Tunable
    budget: Positive
    rounds: Count = 20
    eta: Positive = 1.0
    smoothing: Fraction = 0.01
    rows: Count = 512
    least_effective: Annotated[float, Strict(), Gt(0), Le(1)] = 0.5

    def __post_init__(self) -> None:
        check_gives("proxy", self.proxy, "denoise")
        if hasattr(self.proxy, "steps"):
            self.proxy.steps(self.budget)

    def select(self, data: Measure, rng: Generator, work: Work | None = None) -> Selection:
        """All rows of one data set, weighed; the table has `class` or `cluster`, `weight`, and the mean of s_c as `score`."""
        group_rng, judge_rng, fit_rng, tune_rng = rng.spawn(4)
        named, table = self.groups(data, group_rng, work)
        names, groups = self._numbered(named)
        judge = _Judge.of(self, data, groups, judge_rng)
        course, model = self._begun(data, groups, judge, fit_rng, work)
        for t, stream in enumerate(tune_rng.spawn(self.rounds)):
            if t < len(course.scores):
                continue
            seen = weighed(course.alphas[-1], groups, data, {}).apply(data)
            (model,) = self.proxy.tune(model, seen, [self.budget], stream)
            score = self._scores(judge.means(model), course.base, np.bincount(groups))
            course.step(score, ascended(course.alphas[-1], score, self.eta, self.smoothing))
            if work is not None:
                work.report(t + 1, self.rounds, effective=effective_classes(course.alphas[-1]), score=float(score.max()))
                if work.due():
                    work.save(**course.saved(model))
        if work is not None:
            work.save(**course.saved())
            self._record(course, names, work)
        self._guard(course)
        table = table | {"score": np.mean(course.scores, axis=0)[groups]}
        return weighed(course.mean, groups, data, table)

    def notes(self, data: Measure, selection: Selection) -> dict[str, float]:
        """The effective number of classes, and how many there are."""
        groups = np.unique(selection.table["class" if self.clusters is None else "cluster"], return_inverse=True)[1]
        alpha = shares(groups, data.weights * selection.table["weight"])
        return {"effective number of classes": effective_classes(alpha), "classes": float(len(alpha))}

    def _begin(self, data: Measure, equal: Measure, judge: "_Judge", rng: Generator, work: Work | None) -> tuple[Any, Array]:
        """The proxy before the first round, and the losses (K, L) that it is compared with; equal: data under equal masses."""
        raise NotImplementedError

    def _scores(self, found: Array, base: Array, sizes: Ints) -> Array:
        """s (K,) of losses (K, L), those compared with, and the rows of each class (K,)."""
        raise NotImplementedError

    def _begun(self, data: Measure, groups: Ints, judge: "_Judge", rng: Generator, work: Work | None) -> tuple["_Course", Any]:
        saved = work.load() if work is not None else None
        if saved is not None:
            state = {name.removeprefix(PROXY): value for name, value in saved.items() if name.startswith(PROXY)}
            course = _Course(list(saved["alphas"]), list(saved["scores"]), saved["base"])
            return course, self.proxy.restore(state) if state else None
        alpha = np.full(judge.k, 1 / judge.k)
        model, base = self._begin(data, weighed(alpha, groups, data, {}).apply(data), judge, rng, work)
        return _Course([alpha], [], base), model

    def _numbered(self, named: Ints) -> tuple[Ints, Ints]:
        """The names (K,) of groups that have rows, and the place (n,) of each row's among them."""
        names, groups = np.unique(named, return_inverse=True)
        if self.clusters is None:
            k = max(int(named.max()) + 1, getattr(self.proxy, "classes", None) or 0)
            if missing := sorted(set(range(k)) - set(names.tolist())):
                raise ValueError(
                    f"class {missing[0]} of 0 .. {k - 1} has no rows, and every class is weighed; number the classes without "
                    "gaps, or set the models' classes to their number"
                )
        return names, np.asarray(groups, dtype=np.int64)

    def _record(self, course: "_Course", names: Ints, work: Work) -> None:
        if work.shelf is None or ranks.rank() > 0:
            return
        work.shelf.mkdir(parents=True, exist_ok=True)
        found = {
            "groups": "class" if self.clusters is None else "cluster",
            "names": names.tolist(),
            "alpha": [alpha.tolist() for alpha in course.alphas],
            "score": [score.tolist() for score in course.scores],
            "effective": [effective_classes(alpha) for alpha in course.alphas],
            "mean": course.mean.tolist(),
        }
        written = work.shelf / f".{TRAJECTORY}.tmp"
        written.write_text(json.dumps(found, indent=1))
        written.replace(work.shelf / TRAJECTORY)

    def _guard(self, course: "_Course") -> None:
        effective, k = effective_classes(course.mean), len(course.mean)
        if effective < self.least_effective * k:
            warnings.warn(
                f"the class weights are near one-hot: {effective:.3g} effective classes of {k}, below {self.least_effective:g} "
                f"of them; lower eta (it is {self.eta:g}) or raise smoothing (it is {self.smoothing:g})",
                stacklevel=2,
            )


@component
class Dro(_Ascent):
    """`dro`: mass by excess loss of a proxy over a reference.

    reference: fitted to the data as they are; start: of the proxy, `new`, its own fit, or `reference`, that model, of the same
    kind. Raises ValueError for data without labels (or `clusters`), and for a class without rows.
    """

    reference: Algorithm
    start: Literal["new", "reference"] = "new"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gives("reference", self.reference, "denoise")
        if self.start == "reference" and type(self.reference) is not type(self.proxy):
            kinds = f"{type(self.proxy).__name__} and {type(self.reference).__name__}"
            raise ValueError(f"start: reference needs a proxy and a reference of one kind, got {kinds}; set start: new")

    def _begin(self, data: Measure, equal: Measure, judge: "_Judge", rng: Generator, work: Work | None) -> tuple[Any, Array]:
        reference_rng, proxy_rng = rng.spawn(2)
        reference = self.reference.fit(data, reference_rng, work and work.at("reference"))
        base = judge.means(reference)
        if self.start == "reference":
            return reference, base
        return self.proxy.fit(equal, proxy_rng, work and work.at("proxy")), base

    def _scores(self, found: Array, base: Array, sizes: Ints) -> Array:
        return np.maximum(in_units(found - base, base), 0)


@component
class GroupDro(_Ascent):
    """`group_dro`: mass by the loss of a proxy, in units of its first: hard classes rise, whether they can be learned or not.

    adjustment: C, more for classes of few rows, on which a loss is fitted more easily than it generalises. Raises ValueError as
    `dro` does.
    """

    adjustment: NonNegative = 0.0

    def _begin(self, data: Measure, equal: Measure, judge: "_Judge", rng: Generator, work: Work | None) -> tuple[Any, Array]:
        model = self.proxy.fit(equal, rng, work and work.at("proxy"))
        return model, judge.means(model)

    def _scores(self, found: Array, base: Array, sizes: Ints) -> Array:
        return in_units(found, base) + self.adjustment / np.sqrt(sizes)


def in_units(found: Array, base: Array) -> Array:
    """mean_l found_cl / (mean_c base_cl), (K,) of values (K, L); a level without loss counts 0."""
    level = base.mean(axis=0)
    relative: Array = np.divide(found, level, out=np.zeros_like(found), where=level > 0).mean(axis=1)
    return relative


@dataclass(frozen=True)
class _Judge:
    """The rows, levels and noise at which all models are compared."""

    data: Measure
    groups: Ints
    sigmas: Array
    draws: int
    seed: int

    @classmethod
    def of(cls, probe: _Ascent, data: Measure, groups: Ints, rng: Generator) -> "_Judge":
        """At most `rows` random rows of each group."""
        shuffled = rng.permutation(data.n)
        order = shuffled[np.argsort(groups[shuffled], kind="stable")]
        sizes = np.bincount(groups)
        rank = np.arange(data.n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        index = np.sort(order[rank < probe.rows])
        return cls(data.subset(index), groups[index], probe.sigmas(data), probe.draws, int(rng.integers(2**63)))

    @property
    def k(self) -> int:
        """The number K of groups."""
        return int(self.groups.max()) + 1

    def means(self, model: Any) -> Array:
        """L_c(sigma_l) (K, L) of a model. Raises FloatingPointError if one is not finite."""

        def noise(level: int, draw: int, rows: slice) -> Array:
            stream = np.random.default_rng([self.seed, level, draw, rows.start])
            return stream.standard_normal((rows.stop - rows.start, *self.data.event))

        found = losses(model, self.data, self.sigmas, self.draws, noise)
        weights = self.data.weights / shares(self.groups, self.data.weights)[self.groups]
        means = np.stack([shares(self.groups, weights * column) for column in found.T], axis=1)
        if not np.isfinite(means).all():
            raise FloatingPointError(
                "a class loss is not finite: the training of the proxy or the reference went wrong; lower its learning rate"
            )
        return means


@dataclass
class _Course:
    """The rounds so far: alpha_0 .. alpha_t, s_1 .. s_t, and the losses (K, L) that the proxy's are compared with."""

    alphas: list[Array]
    scores: list[Array]
    base: Array

    @property
    def mean(self) -> Array:
        """The mean of alpha_1 .. alpha_t."""
        return np.asarray(np.mean(self.alphas[1:], axis=0))

    def step(self, score: Array, alpha: Array) -> None:
        """One more round."""
        self.scores.append(score)
        self.alphas.append(alpha)

    def saved(self, model: Any = None) -> dict[str, Array]:
        """Plain arrays to go on from, with the proxy while it is needed."""
        state = {} if model is None else {f"{PROXY}{name}": value for name, value in model.state().items()}
        k = len(self.base)
        kept = {"alphas": np.array(self.alphas), "scores": np.reshape(self.scores, (-1, k)), "base": self.base}
        return kept | state
