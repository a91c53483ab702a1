"""How good, varied and new a model's images are, by features of them (`selfloop.embed`), against real images.

    metric           what it is                                                                  unit
    fd               Frechet distance of n images to the reference                               squared, of the features
    fd_floor         the same of at most n real images that are not in the reference             squared, of the features
    fd_equal         fd of as many images as fd_floor has, where those are fewer than n          squared, of the features
    fd_min3          protocol edm: the least of three sets of n images                           squared, of the features
    fd_search        protocol honest: of the first set; choose omega by it                       squared, of the features
    fd_report        protocol honest: of the second set; report it                               squared, of the features
    kid              squared maximum mean discrepancy, cubic kernel, unbiased                    -
    kid_se           its standard error, from disjoint subsets, an upper bound; NaN below 20     -
    kid_floor        kid of real images that are not in the reference                            -
    precision        share of images among real ones                                             -
    recall           share of real images among the model's                                      -
    density          how densely real images lie around the model's                              1 for equal laws
    coverage         share of real images with one of the model's nearby                         -
    novelty          share of images farther from the nearest training image than that is from   -
                     its own nearest
    memorised        share of images three times nearer to one training image than to the next   -
    novelty_real     novelty of real images that were held out                                   -
    memorised_real   memorised of them                                                           -
    vendi            effective number of different images                                        count
    vendi_real       the same of as many real ones                                               count
    class_share.c    share of class c among images, as the classifier names them                 -
    class_tv         total variation of these shares to the real ones, or to a target            -
    class_entropy    their entropy                                                               nats
    class_accuracy   share of held-out images whose class the classifier names                   -
    fd_class.c       fd of per_class images named c to the real ones; NaN for fewer than 2       squared, of the features
    fd_class_floor.c fd of held-out images of class c to these                                   squared, of the features
    fd_class_mean    mean of fd_class.c over the classes that have one                           squared, of the features
    fd_class_worst   the largest of them                                                         squared, of the features

FD grows as n falls, by about c / n: fd_floor has as many images as there are real ones left, at most n; compare it with fd if
these are n, else with fd_equal. KID has no such bias. Precision, recall, density, coverage and vendi take as many of the
model's images, the first ones, as there are real ones. All metrics of a set share one sample of the model.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, get_args

import numpy as np
from annotated_types import Ge, Len
from pydantic import Strict

from selfloop.component import Count, NonNegative, component
from selfloop.embed import ClassifierEmbedding, Embedding, FeatureMoments, Features, Floats, blocks, embedded_by
from selfloop.formats import expanded
from selfloop.laws import Gaussian
from selfloop.measure import Array, Ints, Measure
from selfloop.metrics.diversity import vendi
from selfloop.metrics.frechet import frechet, load_reference, moments
from selfloop.metrics.kernel import kid, kid_error
from selfloop.metrics.neighbours import Manifold, manifold, novelty, precision_recall
from selfloop.metrics.track import Tracker, View, entropy
from selfloop.protocols import Work

MetricName = Literal["fd", "kid", "precision", "recall", "density", "coverage", "novelty", "vendi", "classes", "class_fd"]
NEIGHBOURS = ("precision", "recall", "density", "coverage")
PARTS = ("train", "held_out")
SETS = {"single": 1, "edm": 3, "honest": 2}

ROWS = 4096
"""Images that are embedded at a time."""
PAIRS = 10**10
"""Pairs of an image and a training image up to which `novelty` is measured if not asked for: some minutes."""


@component
class ImageQuality(Tracker):
    """The metrics of the table, of n images of the model.

    metrics     which; all that apply if not said, but class_fd: `classes` if the features classify, `novelty` up to 10^10
                pairs of images
    k           neighbours that make a manifold, for precision, recall, density and coverage
    reference   `train` or `held_out` real images; or an .npz with mu and sigma ($VARIABLE is replaced), for fd alone (the
                others take `train`)
    target      shares of the classes, which add to one: real images are weighted by them for fd, and drawn by them for others
    per_class   images of a class that class_fd takes, the first ones: n / (2 K) of K classes if not said. FD is the larger the
                fewer images it is of, so models are compared at one number; a class of fewer samples has what there are
    protocol    `single`: one set of n images; `edm`: three, fd of the first and fd_min3 the least; `honest`: two, fd_search and
                fd_report. Other metrics are of the first set, or of the one that is reported
    """

    n: Annotated[int, Strict(), Ge(2)] = 10_000
    features: Embedding = ClassifierEmbedding()
    metrics: Annotated[tuple[MetricName, ...], Len(1)] | None = None
    k: Count = 5
    reference: str = "train"
    target: Annotated[tuple[NonNegative, ...], Len(2)] | None = None
    per_class: Annotated[int, Strict(), Ge(2)] | None = None
    protocol: Literal["single", "edm", "honest"] = "single"

    def __post_init__(self) -> None:
        asked, file = self.metrics or (), self.reference not in PARTS
        if file and not self.reference.startswith("$") and not self.reference.endswith(".npz"):
            raise ValueError(f"reference must be train, held_out or an .npz file with mu and sigma, got {self.reference!r}")
        if set(asked) & {"classes", "class_fd"} and not _classifies(self.features):
            raise ValueError(
                "classes and class_fd need features that name a class: use features: classifier, or leave them out of metrics"
            )
        if self.protocol != "single" and asked and "fd" not in asked:
            raise ValueError(f"protocol {self.protocol} compares FD: add fd to metrics, or set protocol: single")
        if self.target is not None and file:
            raise ValueError("statistics in a file cannot be re-weighted to a target; set reference: train or held_out")
        if self.target is not None and abs(sum(self.target) - 1) > 1e-9:
            raise ValueError(f"target must be shares that add to one, got a sum of {sum(self.target):g}")

    @property
    def headline(self) -> str:
        """The metric that stands for all."""
        if self.metrics is not None and "fd" not in self.metrics:
            return {"classes": "class_tv", "class_fd": "fd_class_mean"}.get(self.metrics[0], self.metrics[0])
        return {"single": "fd", "edm": "fd_min3", "honest": "fd_report"}[self.protocol]

    @property
    def chooses(self) -> tuple[str, str] | None:
        """(metric to choose a point by, metric of it to report), of samples apart; None where one set of them serves both."""
        return ("fd_search", "fd_report") if self.protocol == "honest" else None

    @property
    def needs_source(self) -> frozenset[str]:  # type: ignore[override]
        """Images, with labels where a classifier learns them or a target names them."""
        return frozenset({"images", "labels"} if _classifies(self.features) or self.target is not None else {"images"})

    def prepare(self, source: Any, keep: Work | None) -> None:
        """Fit the features, or read their weights, and look at the reference: what is wrong shows before a training."""
        real = _Real.of(self, source, keep)
        _ = real.features if self.reference in PARTS else (real.features, real.law)

    def __call__(self, view: View) -> Mapping[str, Array]:
        if np.any(view.generation.diverged):
            return {}
        real = _Real.of(self, view.source, view.keep)
        wanted = self._wanted(real)
        sets = [self._features(view, real, number, wanted) for number in range(SETS[self.protocol])]
        fake, classes = sets[self._reported]
        out: dict[str, Any] = {}
        if "fd" in wanted:
            out |= self._frechet(real, [moments(features) for features, _ in sets], fake)
        out |= self._others(real, fake, wanted)
        if classes is not None and "classes" in wanted:
            out |= self._classes(real, classes)
        if classes is not None and "class_fd" in wanted:
            m = self.per_class or max(self.n // (2 * real.source.classes), 2)
            found = [_frechet_or_nan(fake[np.flatnonzero(classes == c)[:m]], law) for c, law in enumerate(real.class_laws)]
            out |= {f"fd_class.{c}": value for c, value in enumerate(found)} | real.fd_class_floors
            out |= {"fd_class_mean": np.nanmean(found), "fd_class_worst": np.nanmax(found)}
        return {name: np.asarray(value, dtype=float) for name, value in out.items()}

    @property
    def _reported(self) -> int:
        """The set that metrics other than FD are of."""
        return 1 if self.protocol == "honest" else 0

    def _wanted(self, real: "_Real") -> set[str]:
        if self.metrics is not None:
            return set(self.metrics)
        left_out = {"class_fd"} if _classifies(self.features) else {"classes", "class_fd"}
        return set(get_args(MetricName)) - left_out - ({"novelty"} if self.n * real.source.rows > PAIRS else set())

    def _features(self, view: View, real: "_Real", number: int, wanted: set[str]) -> tuple[Floats, Ints | None]:
        """Features of one set of n images and, if they are wanted of it, their classes."""
        drawn = view.sample(self.n, f"image_quality {number}")
        if drawn.batch:
            raise ValueError(f"image_quality takes one replicate at a time, got a batch {drawn.batch}; set chunk: 1")
        features: Any = real.features
        classes = None
        if wanted & {"classes", "class_fd"} and number == self._reported:
            classes = np.concatenate([features.classify(drawn.points[rows]) for rows in blocks(drawn.n, ROWS)])
        return embedded_by(features, drawn), classes

    def _frechet(self, real: "_Real", laws: list[Gaussian], fake: Floats) -> dict[str, float]:
        values = [frechet(law, real.law) for law in laws]
        named = {
            "single": {"fd": values[0]},
            "edm": {"fd": values[0], "fd_min3": min(values)},
            "honest": dict(zip(("fd_search", "fd_report"), values, strict=False)),
        }[self.protocol]
        out = named | {"fd_floor": real.fd_floor}
        if len(real.other) < self.n:
            out["fd_equal"] = frechet(moments(fake[: len(real.other)]), real.law)
        return out

    def _others(self, real: "_Real", fake: Floats, wanted: set[str]) -> dict[str, float]:
        out: dict[str, float] = {}
        if "kid" in wanted:
            error = kid_error(real=real.some, fake=fake)
            out |= {"kid": kid(real=real.some, fake=fake), "kid_se": error, "kid_floor": real.kid_floor}
        if wanted & set(NEIGHBOURS):
            found = precision_recall(real=real.manifold, fake=manifold(fake[: len(real.some)], self.k))
            out |= {name: value for name, value in found.items() if name in wanted}
        if "novelty" in wanted:
            out |= novelty(train=real.train, fake=fake) | {f"{name}_real": value for name, value in real.novelty.items()}
        if "vendi" in wanted:
            out |= {"vendi": vendi(fake[: len(real.some)]), "vendi_real": real.vendi}
        return out

    def _classes(self, real: "_Real", classes: Ints) -> dict[str, Any]:
        aim = real.shares
        shares = np.bincount(classes, minlength=len(aim)) / len(classes)
        return {f"class_share.{c}": share for c, share in enumerate(shares)} | {
            "class_tv": 0.5 * np.abs(shares - aim).sum(),
            "class_entropy": entropy(shares),
            "class_accuracy": real.accuracy,
        }


def _classifies(embedding: Embedding) -> bool:
    return bool(getattr(embedding, "classifies", False))


# The real images -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fitted:
    """Features that were fitted to the training images."""

    key: str
    embedding: str
    given: Embedding = field(compare=False)
    source: Any = field(compare=False)
    keep: Work | None = field(compare=False)

    @cached_property
    def features(self) -> Features:
        return self.given.fitted(self.source.train(), self.place("features"))

    def place(self, what: str, *more: object) -> Work | None:
        """Where to keep something that is made once a run of these images and features, if there is such a place."""
        name = hashlib.sha256(" ".join([self.key, self.embedding, *map(repr, more)]).encode()).hexdigest()[:16]
        return self.keep and self.keep.at(f"{what}-{name}")


@dataclass(frozen=True)
class _Real:
    """What a tracker needs of the real images: each thing is made when it is first asked for, and once a process.

    Which of them are drawn, where not all are taken, depends on the data alone, so that all loops of a run have the same.
    """

    fitted: _Fitted
    n: int
    k: int
    reference: str
    target: tuple[float, ...] | None

    @classmethod
    def of(cls, tracker: ImageQuality, source: Any, keep: Work | None) -> "_Real":
        """What is there for a tracker and a source, in this process."""
        if not (hasattr(source, "train") and hasattr(source, "held_out")):
            raise TypeError(
                f"image_quality needs a source of images, with train() and held_out(); {type(source).__name__} has none"
            )
        key = hashlib.sha256(source.sha256.encode() + np.asarray(source.held, dtype="<i8").tobytes()).hexdigest()
        fitted = _once(_Fitted(key, repr(tracker.features), tracker.features, source, keep))
        real: _Real = _once(cls(fitted, tracker.n, tracker.k, tracker.reference, tracker.target))
        return real

    @property
    def source(self) -> Any:
        return self.fitted.source

    @property
    def features(self) -> Features:
        return self.fitted.features

    @property
    def parts(self) -> tuple[Measure, Measure]:
        """The reference, and the real images that are not in it."""
        train, held = self.source.train(), self.source.held_out()
        return (held, train) if self.reference == "held_out" else (train, held)

    @cached_property
    def law(self) -> Gaussian:
        """Mean and covariance of the features of the reference, re-weighted to the target."""
        if self.reference not in PARTS:
            return load_reference(expanded("reference", self.reference))
        kept = self.fitted.place("reference", self.reference, self.target)
        saved = kept.load() if kept is not None else None
        if saved is not None:
            return Gaussian.restore(saved)
        found = self._gathered()
        if kept is not None:
            kept.save(**found.state())
        return found

    def _gathered(self) -> Gaussian:
        reference, gathered = self.parts[0], FeatureMoments()
        weights = None if self.target is None else _weights(reference, self.target)
        for rows in blocks(reference.n, ROWS):
            gathered.update(self.features(reference.points[rows]), None if weights is None else weights[rows])
        return gathered.law()

    @cached_property
    def some(self) -> Floats:
        """Features of at most n images of the reference."""
        return self._drawn(self.parts[0])

    @cached_property
    def other(self) -> Floats:
        """Features of at most n real images that are not in the reference."""
        return self._drawn(self.parts[1])

    def _drawn(self, images: Measure) -> Floats:
        rng = np.random.default_rng(int(self.fitted.key[:16], 16))
        return embedded_by(self.features, images.subset(_rows(images, self.n, self.target, rng)))

    @cached_property
    def fd_floor(self) -> float:
        return frechet(moments(self.other), self.law)

    @cached_property
    def kid_floor(self) -> float:
        return kid(real=self.some, fake=self.other)

    @cached_property
    def manifold(self) -> Manifold:
        return manifold(self.some, self.k)

    @cached_property
    def vendi(self) -> float:
        return vendi(self.some[: self.n])

    @cached_property
    def train(self) -> Floats:
        """Features of all training images."""
        return embedded_by(self.features, self.source.train())

    @cached_property
    def novelty(self) -> dict[str, float]:
        held = self.other if self.reference != "held_out" else self.some
        return novelty(train=self.train, fake=held)

    @cached_property
    def class_laws(self) -> list[Gaussian]:
        """Mean and covariance of the features of each class of the reference, by its labels."""
        of_class = self._by_class(self.parts[0])
        if few := [c for c, features in enumerate(of_class) if len(features) < 2]:
            raise ValueError(f"class_fd needs 2 images or more of each class, and class {few[0]} has fewer; leave it out")
        return [moments(features) for features in of_class]

    @cached_property
    def fd_class_floors(self) -> dict[str, float]:
        pairs = zip(self._by_class(self.parts[1]), self.class_laws, strict=True)
        return {f"fd_class_floor.{c}": _frechet_or_nan(features, law) for c, (features, law) in enumerate(pairs)}

    def _by_class(self, images: Measure) -> list[Floats]:
        if images.labels is None:
            raise ValueError("class_fd needs labelled images, and these have no labels; leave it out of metrics")
        features = embedded_by(self.features, images)
        return [features[images.labels == c] for c in range(self.source.classes)]

    @cached_property
    def shares(self) -> Array:
        """The target, or the shares of the classes in the reference."""
        labels = self.parts[0].labels
        if labels is None:
            raise ValueError("classes need labelled images, and these have no labels; leave classes out of metrics")
        count = self.source.classes
        if self.target is None:
            return np.asarray(np.bincount(labels, minlength=count) / len(labels))
        _check_target(self.target, count)
        return np.array(self.target)

    @cached_property
    def accuracy(self) -> float:
        features: Any = self.features
        return float(features.accuracy(self.source.held_out()))


@lru_cache(maxsize=8)
def _once(thing: Any) -> Any:
    """The first of equal things, with all that it has made."""
    return thing


def _frechet_or_nan(features: Floats, law: Gaussian) -> float:
    """FD to a law; NaN for fewer than 2 images, which have no covariance."""
    return frechet(moments(features), law) if len(features) > 1 else np.nan


def _check_target(target: tuple[float, ...], classes: int) -> None:
    if len(target) != classes:
        raise ValueError(f"target must hold a share for each of {classes} classes, got {len(target)}")


def _counts(images: Measure, target: tuple[float, ...]) -> Ints:
    if images.labels is None:
        raise ValueError("a target needs labelled images, and these have no labels; remove it")
    classes = int(np.max(images.labels)) + 1
    _check_target(target, classes)
    counts = np.bincount(images.labels, minlength=classes)
    if missing := [c for c in range(classes) if target[c] > 0 and counts[c] == 0]:
        raise ValueError(f"target wants images of class {missing[0]}, and among {images.n} real ones there is none")
    return counts


def _weights(images: Measure, target: tuple[float, ...]) -> Array:
    """target_c / n_c for each image of class c."""
    counts = _counts(images, target)
    return np.asarray((np.array(target) / np.maximum(counts, 1))[images.labels])


def _rows(images: Measure, n: int, target: tuple[float, ...] | None, rng: np.random.Generator) -> Ints:
    """At most n rows, ascending: any, or of each class its share of as many as there are enough images for."""
    if target is None:
        return np.sort(rng.permutation(images.n)[:n])
    counts, shares = _counts(images, target), np.array(target)
    most = int(min(n, np.min(counts[shares > 0] / shares[shares > 0])))
    quota = np.diff(np.rint(np.concatenate([[0.0], np.cumsum(shares)]) * most)).astype(int)
    of_class = [np.flatnonzero(images.labels == c) for c in range(len(counts))]
    picked = [rng.permutation(rows)[: quota[c]] for c, rows in enumerate(of_class)]
    return np.sort(np.concatenate(picked))
