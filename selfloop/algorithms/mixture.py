"""The Gaussian mixture: the smallest family with modes to lose, and still an exact score at every noise level.

    p(x) = sum_k w_k N(x; m_k, S_k)

fit     expectation maximisation on weighted points, started by k-means++ seeding (Arthur & Vassilvitskii, 2007)
        r_ik = w_k N(x_i; m_k, S_k) / p(x_i),    w_k = sum_i v_i r_ik  with the data's weights v_i,
        m_k = sum_i v_i r_ik x_i / w_k,          S_k = sum_i v_i r_ik (x_i - m_k)(x_i - m_k)^T / w_k + a V I,
        V = tr(S) / d of the data, so that the regularisation a is free of units
sample  from the mixture, or through the steps of a sampler on its exact score
denoise D(x; sigma) = sum_k r_k(x; sigma) D_k(x; sigma),    D_k = m_k + S_k (S_k + sigma^2)^-1 (x - m_k),
        with responsibilities r_k under the noised mixture sum_k w_k N(m_k, S_k + sigma^2 I)
tune    a fraction eta of the way to the fit that starts at the model's own parameters, so that components stay matched

Source: Dempster, Laird & Rubin (1977); Bishop (2006), "Pattern Recognition and Machine Learning", section 9.2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from selfloop import covariance
from selfloop.algorithms.closed_form import LARGEST_BUDGET, along, check_fractions
from selfloop.component import AT_SAMPLING, Count, NonNegative, Positive, component
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.sample import Sampler
from selfloop.measure import Array, Data, Ints, Measure
from selfloop.protocols import Model, Work

Mask = NDArray[np.bool_]
EXACT = Sampler()
"""Draws from the mixture itself."""
NUMBERS = 2**24
"""Most numbers kept of what EM needs of the points: 128 MB."""


@dataclass(frozen=True)
class MixtureModel:
    """sum_k w_k N(m_k, S_k) behind a sampler: weights (*batch, K), means (*batch, K, d), covs (*batch, K, d, d).

    A member of the batch that holds NaN gives NaN and leaves the others as they are.
    Raises ValueError if the three shapes do not fit together.
    """

    weights: Array
    means: Array
    covs: Array
    sampler: Sampler = EXACT

    def __post_init__(self) -> None:
        if self.weights.shape != self.means.shape[:-1] or self.covs.shape != (*self.means.shape, self.d):
            raise ValueError(
                "a mixture needs weights (*batch, K), means (*batch, K, d) and covs (*batch, K, d, d), got shapes "
                f"{self.weights.shape}, {self.means.shape} and {self.covs.shape}"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.weights.shape[:-1]

    @property
    def components(self) -> int:
        """The number K of components."""
        return int(self.weights.shape[-1])

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return int(self.means.shape[-1])

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, d) of n points."""
        return (*self.batch, n, self.d)

    @cached_property
    def _spectra(self) -> tuple[Array, Array]:
        return covariance.eigh(self.covs)

    @cached_property
    def _factors(self) -> Array:
        return covariance.factor(self.covs)

    def law(self) -> None:
        """None: the law is not Gaussian."""
        return None

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, d) of the mixture, or what the sampler's steps make of noise on its score.

        Components are no classes: the points carry no labels.
        """
        if self.sampler.kind != "exact":
            return diffusion.drawn(self, n, rng)
        return Measure(self._exact(n, rng), np.broadcast_to(1.0 / n, (*self.batch, n)))

    def _exact(self, n: int, rng: Generator) -> Array:
        u = rng.random((*self.batch, n))
        z = rng.standard_normal(self.shape(n))
        chosen = (u[..., None] >= np.cumsum(self.weights, axis=-1)[..., None, :]).sum(axis=-1)
        chosen = np.minimum(chosen, self.components - 1)  # round-off can leave the last sum below u
        points = np.full(self.shape(n), np.nan)
        for k in range(self.components):  # Cholesky factors, not eigenvectors: continuous in S_k, so common draws stay coupled
            drawn = self.means[..., k, None, :] + z @ np.swapaxes(self._factors[..., k, :, :], -1, -2)
            points = np.where((chosen == k)[..., None], drawn, points)
        return points

    def denoise(self, x: Array, sigma: float, labels: Any = None) -> Array:
        """D(x; sigma) = sum_k r_k(x; sigma) [m_k + S_k (S_k + sigma^2)^-1 (x - m_k)]; x (*batch, n, d)."""
        values, vectors = self._spectra
        with np.errstate(all="ignore"):
            r = _softmax(self._log_joint(x, sigma))
            gains = (vectors * (values / (values + sigma**2))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
            total = np.zeros(())
            for k in range(self.components):
                mean = self.means[..., k, None, :]
                total = total + r[..., k, :, None] * (mean + (x - mean) @ gains[..., k, :, :])
        return total

    def log_density(self, x: Array) -> Array:
        """ln p(x), shape (*batch, n), at x (*batch, n, d)."""
        with np.errstate(all="ignore"):
            log_joint = self._log_joint(x, 0.0)
            top = log_joint.max(axis=-2)
            return np.asarray(top + np.log(np.exp(log_joint - top[..., None, :]).sum(axis=-2)))

    def assign(self, x: Array) -> Ints:
        """The component most responsible for each point, shape (*batch, n); 0 in a member that is NaN."""
        with np.errstate(all="ignore"):
            return np.asarray(np.argmax(self._log_joint(x, 0.0), axis=-2))

    def _log_joint(self, x: Array, sigma: float) -> Array:
        """ln w_k + ln N(x; m_k, S_k + sigma^2 I), shape (*batch, K, n)."""
        values, vectors = self._spectra
        noised = values + sigma**2
        whiteners = vectors / np.sqrt(noised)[..., None, :]
        constants = np.log(self.weights) - 0.5 * (np.log(noised).sum(axis=-1) + self.d * np.log(2 * np.pi))
        terms = []
        for k in range(self.components):  # one at a time: memory for a few copies of x, not K
            z = (x - self.means[..., k, None, :]) @ whiteners[..., k, :, :]
            terms.append(constants[..., k, None] - 0.5 * np.einsum("...nd,...nd->...n", z, z))
        return np.stack(terms, axis=-2)

    def biased(self, bias: float) -> "MixtureModel":
        """sum_k w_k N(m_k, bias * S_k) behind the same sampler: every component is narrowed, the modes stay where they are."""
        return replace(self, covs=bias * self.covs)

    def expanded(self, replicates: int) -> "MixtureModel":
        """The same mixture for each of `replicates` loops: batch (replicates,)."""
        k, d = self.components, self.d
        return replace(
            self,
            weights=np.broadcast_to(self.weights, (replicates, k)),
            means=np.broadcast_to(self.means, (replicates, k, d)),
            covs=np.broadcast_to(self.covs, (replicates, k, d, d)),
        )

    def state(self) -> dict[str, Array]:
        """The fit: weights, means and covs."""
        return {"weights": self.weights, "means": self.means, "covs": self.covs}

    @classmethod
    def restore(cls, state: Mapping[str, Array], sampler: Sampler = EXACT) -> "MixtureModel":
        """The mixture that `state` describes, behind `sampler`."""
        return cls(state["weights"], state["means"], state["covs"], sampler)


@component
class MixtureFit:
    """Fit a mixture of Gaussians by expectation maximisation; see the module for the formulas.

    components: K; iterations: at most so many; tolerance: a replicate stops, whatever the others do, once its mean
    log-likelihood moves by less, in nats a point; regularisation: added to every variance, in units of the data's mean
    variance tr(S) / d; covariance: full, diagonal or a multiple of the identity, for each component; restarts: seedings,
    of which the most likely end is kept.

    Seeding. The first centre is a data point drawn with the data's weights, each later one with weight v_i D_i^2, D_i its
    distance to the nearest centre so far. Points go to their nearest centre; components start at the centroids of these
    clusters, with equal weights and, lest a cluster of one point become a spike, all with the pooled covariance within
    clusters. `fit` draws K numbers for each restart of each replicate, one replicate after the other: R single fits in a
    row from one generator are the fit of a batch of R.

    A component that loses its mass (below 10 machine epsilons) keeps its mean and covariance and may come back. A replicate
    whose data are not finite or have no spread, or whose likelihood stops being finite, comes back as NaN; the others do
    not notice.
    """

    components: Count
    iterations: Count = 100
    tolerance: NonNegative = 1e-4
    regularisation: Positive = 1e-6
    covariance: Literal["full", "diagonal", "spherical"] = "full"
    restarts: Count = 1
    sampler: Annotated[Sampler, AT_SAMPLING] = Sampler()

    gives: ClassVar[frozenset[str]] = frozenset({"denoise", "biased"})
    largest_budget: ClassVar[float] = LARGEST_BUDGET

    def least_points(self, d: int) -> int:
        """Points without which a fit is refused."""
        return self.components

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> MixtureModel:
        """The mixture of the data: points (*batch, n, d), their weights honoured.

        Raises ValueError for moments, for points that are no vectors, and for n < components.
        """
        x, v = self._checked(data)
        u = rng.random((len(x), self.restarts, self.components))
        live = _finite(x)
        with np.errstate(all="ignore"):  # a runaway replicate overflows to NaN
            seeded = [self._seeded(x[live], v[live], u[live, restart]) for restart in range(self.restarts)]
            return self._model(data, live, self._climbed(x[live], v[live], seeded))

    def tune(
        self, model: MixtureModel, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[Model]:
        """The models a fraction eta = budget of the way from `model` to the fit of `data` that starts at `model`.

        Warm starts keep components matched, draw nothing from `rng` and know no restarts.
        Raises ValueError for a budget outside [0, 1], and where `fit` does.
        """
        check_fractions(budgets)
        x, v = self._checked(data)
        k, d = model.components, x.shape[-1]
        if d != model.d:
            raise ValueError(
                f"the model has points of dimension {model.d} and the data of dimension {d}; tune on data of one kind"
            )
        shapes = ((k,), (k, d), (k, d, d))
        given = [
            np.broadcast_to(part, (*data.batch, *shape)).reshape(-1, *shape)
            for part, shape in zip((model.weights, model.means, model.covs), shapes, strict=True)
        ]
        start = _Parameters(*given)
        live = _finite(x) & start.finite()
        with np.errstate(all="ignore"):
            fitted = self._model(data, live, self._climbed(x[live], v[live], [start.members(live)]))
        yield from along(self, model, fitted, budgets)

    def interpolate(self, a: MixtureModel, b: MixtureModel, t: float) -> MixtureModel:
        """Weights w_a^(1 - t) w_b^t, rescaled to add to one; means on the line; covariances exp((1 - t) log S_a + t log S_b).

        Past t = 0 or 1 a component that nearly died on one side grows like a power of its lost weight.
        """
        log_a, log_b = (np.log(np.maximum(model.weights, np.finfo(float).tiny)) for model in (a, b))
        return MixtureModel(
            _softmax(log_a + t * (log_b - log_a), axis=-1),
            a.means + t * (b.means - a.means),
            covariance.interpolate(a.covs, b.covs, t),
            self.sampler,
        )

    def restore(self, state: Mapping[str, Array]) -> MixtureModel:
        """The model of a saved fit, behind this algorithm's sampler."""
        return MixtureModel.restore(state, self.sampler)

    def _checked(self, data: Data) -> tuple[Array, Array]:
        if not isinstance(data, Measure):
            raise ValueError("a mixture is fitted to points and the data are moments; set statistics: false")
        if len(data.event) != 1:
            raise ValueError(f"a mixture needs points that are vectors, event (d,), got event {data.event}; flatten them first")
        if data.n < self.components:
            raise ValueError(
                f"{self.components} components need at least as many points, got n = {data.n}; "
                "use more points or fewer components"
            )
        points = np.asarray(data.points, dtype=float).reshape(-1, data.n, *data.event)
        return points, data.weights.reshape(-1, data.n)

    @property
    def _diagonal(self) -> bool:
        return self.covariance != "full"

    def _model(self, data: Data, live: Mask, fitted: "_Parameters") -> MixtureModel:
        weights, means, covs = (np.full((len(live), *part.shape[1:]), np.nan) for part in fitted)
        for whole, part in zip((weights, means, covs), fitted, strict=True):
            whole[live] = part
        d, shape = means.shape[-1], (*data.batch, weights.shape[-1])
        return MixtureModel(weights.reshape(shape), means.reshape(*shape, d), covs.reshape(*shape, d, d), self.sampler)

    def _climbed(self, x: Array, v: Array, starts: "Sequence[_Parameters]") -> "_Parameters":
        """The most likely end of EM from any of the starts: x (R, n, d) finite, weights v (R, n).

        Replicates are taken in groups whose statistics fit in memory; none depends on the others in its group.
        """
        n, d = x.shape[1:]
        size = max(1, NUMBERS // (n * (1 + d + len(_entries(d, self._diagonal)[0]))))
        groups = [slice(start, start + size) for start in range(0, max(len(x), 1), size)]
        ends = [self._best(x[group], v[group], [start.members(group) for start in starts]) for group in groups]
        return _Parameters(*(np.concatenate(parts) for parts in zip(*ends, strict=True)))

    def _best(self, x: Array, v: Array, starts: "Sequence[_Parameters]") -> "_Parameters":
        centre = v[:, None, :] @ x
        statistics = _Statistics(x - centre, self._diagonal)
        ridge = self._ridge(x, v)
        lost = self.regularisation * (x.shape[1] * np.finfo(float).eps * centre) ** 2  # what rounding alone would spread
        ridge = np.where(ridge > lost.mean(axis=(-2, -1)), ridge, np.nan)
        best, top = _Parameters(*(np.full_like(part, np.nan) for part in starts[0])), np.full(len(x), -np.inf)
        for start in starts:
            end, score = self._maximised(statistics, v, start._replace(means=start.means - centre), ridge)
            better = score > top  # never for a start that failed
            top = np.where(better, score, top)
            end = end._replace(means=end.means + centre)
            best = _Parameters(*(_where(better, new, old) for new, old in zip(end, best, strict=True)))
        return best

    def _maximised(
        self, statistics: "_Statistics", v: Array, start: "_Parameters", ridge: Array
    ) -> "tuple[_Parameters, Array]":
        """Parameters after the last step of each member, and the mean log-likelihood before that step, (R,)."""
        now = _Parameters(*(np.array(part, dtype=float) for part in start))
        score = np.full(len(v), -np.inf)
        held = np.arange(len(v))  # members still in the computation; among them, those that still climb
        climbing = np.ones(len(v), dtype=bool)
        for _ in range(self.iterations):
            current = now.members(held)
            expected, reached = statistics.expected(current, v[held])
            moving = held[climbing]
            for part, new in zip(now, self._stepped(expected, current, ridge[held]), strict=True):
                part[moving] = new[climbing]
            gain = reached - score[held]
            score[moving] = reached[climbing]
            climbing &= np.abs(gain) >= self.tolerance  # False for NaN
            if not climbing.any():
                break
            if 2 * climbing.sum() <= len(held) or np.isnan(reached).any():
                held, statistics = held[climbing], statistics.members(climbing)
                climbing = np.ones(len(held), dtype=bool)
        failed = ~(now.finite() & np.isfinite(score))
        return _Parameters(*(_where(failed, np.full((), np.nan), part) for part in now)), np.where(failed, np.nan, score)

    def _stepped(self, expected: Array, old: "_Parameters", ridge: Array) -> "_Parameters":
        """The maximisation step from the expected statistics (R, K, f); ridge (R,) is added to every variance."""
        d = old.means.shape[-1]
        mass = expected[..., 0]
        means = expected[..., 1 : d + 1] / mass[..., None]
        rows, columns = _entries(d, self._diagonal)
        covs = np.zeros((*mass.shape, d, d))
        covs[..., rows, columns] = expected[..., d + 1 :] / mass[..., None] - means[..., rows] * means[..., columns]
        covs[..., columns, rows] = covs[..., rows, columns]
        if self.covariance == "spherical":
            covs = np.trace(covs, axis1=-2, axis2=-1)[..., None, None] / d * np.eye(d)
        covs = covs + ridge[:, None, None, None] * np.eye(d)
        empty = mass <= 10 * np.finfo(float).eps
        shares = mass / mass.sum(axis=-1, keepdims=True)
        return _Parameters(shares, _where(empty, old.means, means), _where(empty, old.covs, covs))

    def _seeded(self, x: Array, v: Array, u: Array) -> "_Parameters":
        """Where EM starts: x (R, n, d), weights v (R, n), uniform numbers u (R, K)."""
        k, d = u.shape[-1], x.shape[-1]
        nearest, centres = _plus_plus(x, v, u)
        clusters = v[:, None, :] * (nearest[:, None, :] == np.arange(k)[:, None])
        mass = clusters.sum(axis=-1)
        centres = _where(mass > 0, (clusters @ x) / mass[..., None], centres)
        within = x - np.take_along_axis(centres, nearest[..., None], axis=1)
        pooled = np.swapaxes(v[..., None] * within, -1, -2) @ within + self._ridge(x, v)[:, None, None] * np.eye(d)
        return _Parameters(np.full_like(mass, 1.0 / k), centres, np.broadcast_to(pooled[:, None], (len(x), k, d, d)))

    def _ridge(self, x: Array, v: Array) -> Array:
        variance = (v[:, None, :] @ (x - v[:, None, :] @ x) ** 2)[:, 0].mean(axis=-1)
        return np.asarray(self.regularisation * variance)


class _Parameters(NamedTuple):
    """weights (R, K), means (R, K, d), covs (R, K, d, d) of R members."""

    weights: Array
    means: Array
    covs: Array

    def members(self, index: Mask | Ints | slice) -> "_Parameters":
        return _Parameters(self.weights[index], self.means[index], self.covs[index])

    def finite(self) -> Mask:
        whole = [_finite(part) for part in self]
        return np.asarray(whole[0] & whole[1] & whole[2])


@dataclass(frozen=True)
class _Statistics:
    """Both steps of EM see a point x only through T(x) = (1, x_i, x_i x_j), i <= j, shape (f,); i = j alone if diagonal:

        ln w_k + ln N(x; m_k, S_k) = theta_k . T(x),    theta_k = (constant, P m, -P_ii / 2 and -P_ij),  P = S_k^-1
        expected statistics of component k = sum_i v_i r_ik T(x_i)

    Two matrix products are thus the whole of a step. Squares cost digits: ln N is exact to about eps |x|^2 / (least variance),
    so x must be centred, and the regularisation keeps what is lost near 10^-8.
    points (R, n, d). T is kept if it is at most `NUMBERS` numbers, else made again at every step, a block of rows at a time.
    """

    points: Array
    diagonal: bool

    def _of(self, x: Array) -> Array:
        d = x.shape[-1]
        statistics = np.empty((*x.shape[:-1], self._f))
        statistics[..., 0] = 1.0
        statistics[..., 1 : d + 1] = x
        if self.diagonal:
            np.multiply(x, x, out=statistics[..., d + 1 :])
        else:
            stop = d + 1
            for i in range(d):
                start, stop = stop, stop + d - i
                np.multiply(x[..., i, None], x[..., i:], out=statistics[..., start:stop])
        return statistics

    @property
    def _f(self) -> int:
        d = self.points.shape[-1]
        return int(1 + d + len(_entries(d, self.diagonal)[0]))

    @cached_property
    def _whole(self) -> Array:
        return self._of(self.points)

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        members, n, _ = self.points.shape
        if members * n * self._f <= NUMBERS:
            yield slice(None), self._whole
        else:
            size = max(1, NUMBERS // (8 * members * self._f))
            for start in range(0, n, size):
                rows = slice(start, start + size)
                yield rows, self._of(self.points[:, rows])

    def members(self, index: Mask) -> "_Statistics":
        return _Statistics(self.points[index], self.diagonal)

    def expected(self, now: _Parameters, v: Array) -> tuple[Array, Array]:
        """sum_i v_i r_ik T(x_i), shape (R, K, f), and sum_i v_i ln p(x_i), shape (R,)."""
        theta = _natural(now, self.diagonal)
        expected, reached = np.zeros_like(theta), np.zeros(len(theta))
        for rows, statistics in self._blocks():
            r = theta @ np.swapaxes(statistics, -1, -2)
            top = r.max(axis=-2, keepdims=True)
            r -= top
            np.exp(r, out=r)
            total = r.sum(axis=-2, keepdims=True)
            r *= v[:, None, rows] / total
            expected += r @ statistics
            reached += (v[:, rows] * (top + np.log(total))[:, 0]).sum(axis=-1)
        return expected, reached


def _entries(d: int, diagonal: bool) -> tuple[Ints, Ints]:
    """Rows and columns of the entries of a covariance that are kept."""
    return (np.arange(d), np.arange(d)) if diagonal else np.triu_indices(d)


def _natural(now: _Parameters, diagonal: bool) -> Array:
    """theta (R, K, f), theta_k . T(x) = ln w_k + ln N(x; m_k, S_k), S_k without what lies off the diagonal if `diagonal`."""
    d = now.means.shape[-1]
    if diagonal:
        variances = np.diagonal(now.covs, axis1=-2, axis2=-1)
        linear, squares, log_det = now.means / variances, -0.5 / variances, np.log(variances).sum(axis=-1)
    else:
        factors = covariance.factor(now.covs)
        inverse = np.linalg.inv(factors)
        precision = np.swapaxes(inverse, -1, -2) @ inverse
        rows, columns = _entries(d, diagonal)
        linear = (precision @ now.means[..., None])[..., 0]
        squares = -np.where(rows == columns, 0.5, 1.0) * precision[..., rows, columns]
        log_det = 2 * np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(axis=-1)
    constant = np.log(now.weights) - 0.5 * ((linear * now.means).sum(axis=-1) + log_det + d * np.log(2 * np.pi))
    return np.concatenate([constant[..., None], linear, squares], axis=-1)


def _softmax(logits: Array, axis: int = -2) -> Array:
    shares = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return np.asarray(shares / shares.sum(axis=axis, keepdims=True))


def _finite(part: Array) -> Mask:
    """Which members, along the first axis, are finite throughout."""
    return np.asarray(np.isfinite(part).all(axis=tuple(range(1, part.ndim))))


def _where(members: Mask, new: Array, old: Array) -> Array:
    """new where `members`, whose axes are the first of old, else old."""
    return np.where(members.reshape(*members.shape, *(1,) * (old.ndim - members.ndim)), new, old)


def _plus_plus(x: Array, v: Array, u: Array) -> tuple[Ints, Array]:
    """k-means++: the nearest centre of every point (R, n) and the centres (R, K, d), by uniform numbers u (R, K).

    The law of the next centre, v_i D_i^2 up to a factor, is held as a logarithm, so its scale does not matter.
    Where there are fewer distinct points than centres, those that find nothing new are drawn with weight v_i.
    """
    replicate = np.arange(len(x))
    centres = np.empty((len(x), u.shape[-1], x.shape[-1]))
    closest = np.full(v.shape, np.inf)  # ln D_i^2
    nearest = np.zeros(v.shape, dtype=np.int64)
    log_v = np.log(v)
    log_law = log_v
    for k in range(u.shape[-1]):
        top = log_law.max(axis=-1, keepdims=True)
        sums = np.cumsum(np.exp(np.where(np.isfinite(top), log_law - top, log_v)), axis=-1)
        index = (sums <= u[:, k, None] * sums[:, -1:]).sum(axis=-1)
        centres[:, k] = x[replicate, np.minimum(index, x.shape[1] - 1)]
        gap = x - centres[:, k, None]
        log_square = np.log(np.einsum("...nd,...nd->...n", gap, gap))
        nearest = np.where(log_square < closest, k, nearest)
        closest = np.minimum(closest, log_square)
        log_law = log_v + closest
    return nearest, centres
