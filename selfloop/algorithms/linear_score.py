"""The linear score model: a denoiser linear in its parameters, so that its training, stopped at any time, is a closed form.

    D(x; sigma) = m + sigma_data (c_skip y + c_out F),    y = (x - m) / sigma_data,    s = sigma / sigma_data,
    F = phi(c_in y, t) theta,    t = ln(s) / 4,    c_skip, c_out, c_in of the prediction `edm`

m and sigma_data = (tr S / d)^(1/2) are mean and spread of the data of `fit`; theta = 0 is the exact denoiser of
N(m, sigma_data^2 I). The features phi, the same for all members and generations, say how a score may depart from that:

    affine    cos(pi j (t - t_0) / (t_1 - t_0)) (1, c_in y),    j = 0 .. levels - 1
    rbf       M^(-1/2) (1 + 4 f^2)^(d/4) exp(-|W (u - u_k)|^2 / 2),    u = (c_in y, t),    W = diag(f, .., f, f_t)
    fourier   (2 / M)^(1/2) cos(w_k . W u + b_k)

t_0 and t_1 are the ends of the levels of training, and t beyond them counts as the nearest. f and f_t are `frequency` and
`frequency_noise`: as M grows, both random kinds span the functions that vary over 1 / f in c_in y and 1 / f_t in t.
u_k is drawn as u is where the data are N(m, sigma_data^2 I); w_k ~ N(0, I), b_k uniform on a circle. sum_k phi_k^2 is 1 or so.

fit     the minimum theta* = H^-1 q of the denoising loss of the weighted points, E over x_0, the levels of `noise` and z:
            L(theta) = 1/2 E |phi theta - F*|^2 + ridge/2 |theta|^2,    F* = ((x_0 - m) / sigma_data - c_skip y) / c_out
            H = E phi^T phi + ridge I,    q = E phi^T F*
tune    the gradient flow d theta / d tau = -grad L on the new data, from the model, for a time tau = budget:
            theta(tau) = theta* + e^(-H tau) (theta(0) - theta*)
        The eigenvector i of H has gone the fraction eta_i = 1 - e^(-lambda_i tau) of its way, the slow ones next to nothing: a
        model stopped early. Gradient descent in k steps at learning rate r is at tau = r k, up to terms of order r.

D is affine in theta, so scores extrapolate as parameters do, and SIMS (without an interval) and Neon are one model:
    (1 + omega) D_base - omega D_auxiliary = D at (1 + omega) theta_base - omega theta_auxiliary,    any x, sigma, tau, omega
For lambda_i tau << 1 it depends on omega tau alone, the length of one step back along the gradient.

Source: Vincent (2011), denoising score matching; Karras et al. (2022), Table 1; Rahimi & Recht (2007), random features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.random import Generator
from pydantic import Strict

from selfloop import covariance
from selfloop.component import AT_SAMPLING, Count, Positive, component
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.noise import Noise
from selfloop.diffusion.precondition import coefficients
from selfloop.diffusion.sample import Sampler
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure
from selfloop.protocols import Model, Work

ROWS = 256
"""Noised points of a member that are looked at together."""
NUMBERS = 2**17
"""Most features held at a time, over the members: 1 MB, which a cache holds."""


@dataclass(frozen=True)
class Features:
    """phi: `levels` cosines in t on [low, high] times (1, c_in y), and M random features, weights (M, 1 + d), offsets (M,).

    rbf exp(weights . W u + offsets - |W u|^2 / 2), fourier cos(weights . W u + offsets), each times `size`; W (1 + d,).
    """

    levels: int
    low: float
    high: float
    fourier: bool
    scales: Array
    weights: Array
    offsets: Array
    size: float

    @property
    def m(self) -> int:
        """Number of features."""
        return self.levels * len(self.scales) + len(self.offsets)

    def __call__(self, y: Array, s: Array) -> Array:
        """phi (..., n, m) at c_in y (..., n, d) and sigma / sigma_data (..., n or 1, 1)."""
        t = np.clip(np.log(np.maximum(s, np.finfo(float).tiny)) / 4, self.low, self.high)
        waves = np.cos(np.pi / (self.high - self.low) * np.arange(self.levels) * (t - self.low))
        affine = np.concatenate([np.ones_like(y[..., :1]), y], axis=-1)[..., None] * waves[..., None, :]
        u = self.scales * np.concatenate([y, np.broadcast_to(t, (*y.shape[:-1], 1))], axis=-1)
        phases = u @ self.weights.T
        phases += self.offsets
        if self.fourier:
            random = np.cos(phases, out=phases)
        else:
            phases -= 0.5 * (u**2).sum(axis=-1, keepdims=True)
            random = np.exp(phases, out=phases)
        random *= self.size
        return np.concatenate([affine.reshape(*y.shape[:-1], -1), random], axis=-1)


@dataclass(frozen=True)
class LinearScore:
    """D(x; sigma) behind a sampler: theta (*batch, m, d), centre m (*batch, d) and scale sigma_data (*batch,) of the data.

    A member of the batch that holds NaN gives NaN and leaves the others as they are.
    """

    theta: Array
    centre: Array
    scale: Array
    features: Features
    sampler: Sampler

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.scale.shape

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return int(self.centre.shape[-1])

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, d) of n points."""
        return (*self.batch, n, self.d)

    def denoise(self, x: Array, sigma: float, labels: Any = None) -> Array:
        """D(x; sigma) at x (*batch, n, d), a block of members and points at a time."""
        n, d, phi = x.shape[-2], self.d, self.features
        points = np.broadcast_to(x, self.shape(n)).reshape(-1, n, d)
        theta, centre, scale = self.theta.reshape(-1, phi.m, d), self.centre.reshape(-1, 1, d), self.scale.reshape(-1, 1, 1)
        out = np.empty(points.shape)
        with np.errstate(all="ignore"):
            c_skip, c_out, c_in = coefficients("edm", sigma / scale)
            for members in _groups(len(points), phi.m):
                for start in range(0, n, ROWS):
                    rows = members, slice(start, start + ROWS)
                    y = (points[rows] - centre[members]) / scale[members]
                    f = phi(c_in[members] * y, sigma / scale[members]) @ theta[members]
                    out[rows] = centre[members] + scale[members] * (c_skip[members] * y + c_out[members] * f)
        return out.reshape(self.shape(n))

    @cached_property
    def _law(self) -> Gaussian | None:
        return None if len(self.features.offsets) else diffusion.law(self.denoise, self.sampler, self.batch, self.d)

    def law(self) -> Gaussian | None:
        """Exact law after the sampler's steps where all features are affine; else None, for it is not Gaussian."""
        return self._law

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, d): of the law where that is known, else what the sampler's steps make of noise."""
        if self._law is not None:
            return self._law.sample(n, rng)
        return diffusion.drawn(self, n, rng)

    def state(self) -> dict[str, Array]:
        """The fit: theta, centre and scale. The features are the algorithm's own."""
        return {"theta": self.theta, "centre": self.centre, "scale": self.scale}


@component
class LinearScoreFit:
    """Fit a score that is linear in its parameters; see the module for the formulas.

    features: M >= 0, the number of random features; at 0 the denoiser is affine at every level, the law Gaussian and exact;
    basis: their kind; frequency, frequency_noise: how fast they vary in c_in y and in t; seed: of their draw, apart from all
    streams; levels: cosines in t of the affine features; ridge: on |theta|^2; draws: levels that a point is noised to;
    noise: the law of these levels, in units of sigma_data; sampler: all but `exact`, its levels in the units of the points.

    The budget of `tune` is the time tau >= 0 of the gradient flow, learning rate times steps. Its time scales 1 / lambda_i go
    from about 1, for the affine features, to 1 / ridge. A fit costs 2 draws n m^2 + 10 m^3 operations a member, or so, with
    m = levels (1 + d) + M features. In more than a few dimensions bumps of `rbf` meet no points; take `fourier`.
    A replicate whose data are not finite or have no spread comes back as NaN; the others do not notice.
    Raises ValueError for the sampler `exact`: the law of a learned score has no closed form.
    """

    features: Annotated[int, Strict(), Ge(0)] = 128
    basis: Literal["rbf", "fourier"] = "rbf"
    frequency: Positive = 3.0
    frequency_noise: Positive = 3.0
    levels: Count = 8
    ridge: Positive = 1e-5
    draws: Count = 8
    noise: Noise = Noise()
    seed: Annotated[int, Strict(), Ge(0)] = 0
    sampler: Annotated[Sampler, AT_SAMPLING] = Sampler(kind="heun", steps=32, sigma_max=20.0, sigma_min=0.01)

    def __post_init__(self) -> None:
        if self.sampler.kind == "exact":
            raise ValueError(
                "a learned score has no exact sampler; set sampler to euler, heun, dpm or ancestral with its steps, "
                "for example {kind: heun, steps: 32, sigma_max: 20, sigma_min: 0.01}"
            )

    @property
    def gives(self) -> frozenset[str]:
        """A denoiser, and the law where it is affine."""
        return frozenset({"denoise"}) if self.features else frozenset({"denoise", "law"})

    def least_points(self, d: int) -> int:
        """Points without which a fit is refused: two, for a spread."""
        return 2

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> LinearScore:
        """The minimum of the denoising loss on the data: points (*batch, n, d), their weights honoured.

        Raises ValueError for moments, for points that are no vectors, and for n < 2.
        """
        x, v = self._checked(data)
        phi = self._phi(x.shape[-1])
        with np.errstate(all="ignore"):
            centre = (v[:, None, :] @ x)[:, 0]
            scale = np.sqrt((v[:, None, :] @ (x - centre[:, None]) ** 2)[:, 0].mean(axis=-1))
            lost = data.n * np.finfo(float).eps * np.abs(centre).max(axis=-1)  # what rounding alone would spread
            scale = np.where(scale > lost, scale, np.nan)
            y = (x - centre[:, None]) / scale[:, None, None]
            (theta,) = self._flowed(np.zeros((len(x), phi.m, x.shape[-1])), y, v, phi, [np.inf], rng)
        shape = (*data.batch, *theta.shape[1:])
        return LinearScore(theta.reshape(shape), centre.reshape(*data.batch, -1), scale.reshape(data.batch), phi, self.sampler)

    def tune(
        self, model: LinearScore, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[Model]:
        """The models at times tau = budget of one gradient flow, from `model` at 0; they keep its centre and scale.

        Raises ValueError for a time below 0, for a model that does not belong to the data or to these features, and where
        `fit` does.
        """
        for tau in budgets:
            if not tau >= 0:
                raise ValueError(f"a budget is a time tau >= 0 of the gradient flow, learning rate times steps; got {tau}")
        y, v, theta, phi = self._in_units_of(model, data)
        with np.errstate(all="ignore"):
            thetas = self._flowed(theta, y, v, phi, budgets, rng)
        for theta in thetas:
            yield replace(model, theta=theta.reshape(model.theta.shape), sampler=self.sampler)

    def loss(self, model: LinearScore, data: Data, rng: Generator) -> Array:
        """L(theta) of a model on data, shape (*batch,), by the levels and noise of `rng`. `fit` minimises it for its own.

        Raises ValueError where `tune` does.
        """
        y, v, theta, phi = self._in_units_of(model, data)
        with np.errstate(all="ignore"):
            total = 0.5 * self.ridge * (theta**2).sum(axis=(-2, -1))
            for members in _groups(len(y), phi.m):
                for rows, targets in self._noised(y[members], v[members], phi, rng):
                    total[members] += 0.5 * ((rows @ theta[members] - targets) ** 2).sum(axis=(-2, -1))
        return np.asarray(total.reshape(model.batch))

    def interpolate(self, a: LinearScore, b: LinearScore, t: float) -> LinearScore:
        """theta_a + t (theta_b - theta_a), in the units of both: tuning keeps them.

        Raises ValueError if centre or scale differ, where no theta gives the line between the denoisers.
        """
        if not all(np.array_equal(*pair, equal_nan=True) for pair in ((a.centre, b.centre), (a.scale, b.scale))):
            raise ValueError(
                "models interpolate where they share centre and scale, and these were fitted to different data; "
                "tune one from the other"
            )
        return replace(a, theta=a.theta + t * (b.theta - a.theta), sampler=self.sampler)

    def restore(self, state: Mapping[str, Array]) -> LinearScore:
        """The model of a saved fit, on this algorithm's features and behind its sampler.

        Raises ValueError if theta has another number of features.
        """
        theta = state["theta"]
        return LinearScore(theta, state["centre"], state["scale"], self._phi_of(theta), self.sampler)

    def _checked(self, data: Data) -> tuple[Array, Array]:
        if not isinstance(data, Measure):
            raise ValueError("a score is fitted to points and the data are moments; set statistics: false")
        if len(data.event) != 1:
            raise ValueError(f"a score needs points that are vectors, event (d,), got event {data.event}; flatten them first")
        if data.n < 2:
            raise ValueError("a score needs the spread of two points or more, got n = 1; use more points")
        points = np.where(data.weights[..., None] > 0, np.asarray(data.points, dtype=float), 0.0)
        return points.reshape(-1, data.n, *data.event), data.weights.reshape(-1, data.n)

    def _in_units_of(self, model: LinearScore, data: Data) -> tuple[Array, Array, Array, Features]:
        """(x - m) / sigma_data (R, n, d) and weights (R, n) of the data, theta (R, m, d) and phi of the model."""
        x, v = self._checked(data)
        if (*model.batch, model.d) != (*data.batch, x.shape[-1]):
            raise ValueError(
                f"the model has batch {model.batch} and dimension {model.d}, the data {data.batch} and {x.shape[-1]}; "
                "tune on data of the kind it was fitted to"
            )
        phi, theta = self._phi_of(model.theta), model.theta.reshape(len(x), *model.theta.shape[-2:])
        with np.errstate(all="ignore"):
            return (x - model.centre.reshape(-1, 1, model.d)) / model.scale.reshape(-1, 1, 1), v, theta, phi

    def _phi_of(self, theta: Array) -> Features:
        phi = self._phi(theta.shape[-1])
        if theta.shape[-2] != phi.m:
            raise ValueError(
                f"the model has {theta.shape[-2]} features and these settings make {phi.m}; "
                "use the features and levels it was fitted with"
            )
        return phi

    def _phi(self, d: int) -> Features:
        """The features of points of dimension d; `seed` alone says which."""
        rng, count = np.random.default_rng(self.seed), self.features
        low, high = np.log(self.noise.quantile(np.array([0.0, 1.0]))) / 4
        scales = np.append(np.full(d, self.frequency), self.frequency_noise)
        weights, u = rng.standard_normal((count, 1 + d)), rng.random(count)
        if self.basis == "fourier":
            offsets, size = 2 * np.pi * u, (2 / max(count, 1)) ** 0.5
        else:
            weights[:, d] = np.log(self.noise.quantile(u)) / 4
            weights *= scales
            offsets, size = -0.5 * (weights**2).sum(axis=-1), (1 + 4 * self.frequency**2) ** (d / 4) / max(count, 1) ** 0.5
        return Features(self.levels, float(low), float(high), self.basis == "fourier", scales, weights, offsets, size)

    def _flowed(self, theta: Array, y: Array, v: Array, phi: Features, times: Sequence[float], rng: Generator) -> list[Array]:
        """theta - U [(1 - e^(-lambda tau)) / lambda] U^T (H theta - q) at each time tau, with H = U diag(lambda) U^T."""
        ends = [np.empty_like(theta) for _ in times]
        for members in _groups(len(y), phi.m):
            h, q = self.ridge * np.eye(phi.m), np.zeros(())
            for rows, targets in self._noised(y[members], v[members], phi, rng):
                across = np.swapaxes(rows, -1, -2)
                h, q = h + across @ rows, q + across @ targets
            values, vectors = covariance.eigh(h)
            values = np.maximum(values, self.ridge)  # below it by rounding alone
            slope = np.swapaxes(vectors, -1, -2) @ (h @ theta[members] - q)
            for end, tau in zip(ends, times, strict=True):
                end[members] = theta[members] - vectors @ ((-np.expm1(-values * tau) / values)[..., None] * slope)
        return ends

    def _noised(self, y: Array, v: Array, phi: Features, rng: Generator) -> Iterator[tuple[Array, Array]]:
        """w^(1/2) phi (G, rows, m) and w^(1/2) F* (G, rows, d), w = v_i / (2 draws), at points y (G, n, d), a block at a time.

        The levels of a point lie at the quantiles (k + U) / draws, each with +z and -z, so that what is linear in z cancels.
        """
        members, n, d = y.shape
        size = max(1, ROWS // (2 * self.draws))
        for start in range(0, n, size):
            x_0, w = y[:, start : start + size, None, None], v[:, start : start + size, None, None] / (2 * self.draws)
            shape = (members, x_0.shape[1], self.draws, 1)
            s = self.noise.quantile((np.arange(self.draws)[:, None] + rng.random(shape)) / self.draws)[..., None]
            z = rng.standard_normal((*shape[:3], 1, d)) * np.array([[1.0], [-1.0]])
            c_skip, c_out, c_in = coefficients("edm", s)
            x = x_0 + s * z
            root = np.sqrt(np.broadcast_to(w, x.shape[:-1])).reshape(members, -1, 1)
            levels = np.broadcast_to(s, (*x.shape[:-1], 1)).reshape(members, -1, 1)
            rows = phi((c_in * x).reshape(members, -1, d), levels)
            rows *= root
            yield rows, root * ((x_0 - c_skip * x) / c_out).reshape(members, -1, d)


def _groups(members: int, m: int) -> Iterator[slice]:
    """Members whose features, and matrices H, are held together; none depends on the others in its group."""
    size = max(1, NUMBERS // (m * max(m, ROWS)))
    return (slice(start, start + size) for start in range(0, members, size))
