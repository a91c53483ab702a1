"""Closed forms of self-consuming loops: what a simulation must give, within its own standard error.

Notation, the same everywhere
-----------------------------
t           number of fits done; t = 1 is the fit to real data, so t - 1 fits saw synthetic data
n           points per fit: one number, or one for each fit, the last of which goes on
d           dimension of a point
V, s, mu    variance, standard deviation and mean of the fitted Gaussian; s = sqrt(V)
V_0         variance of the real law N(0, V_0). Loops are stated in units of V_0 = 1: multiply variances and squared
            errors by V_0. Guidance takes variances as they are
estimator   of the variance: "maximum_likelihood" divides by n, "unbiased" by n - 1
N           n_r + n_s, real plus synthetic points of one fit
f           fraction n_s / N of synthetic points, in (0, 1)
ratio       n_s / n_r = f / (1 - f), which may exceed one. Papers write lambda for ratio, for f and for bias
bias        factor lambda on the covariance when samples are drawn, N(mu, bias * V); 1 = no bias
omega       strength of negative guidance, score = (1 + omega) s_base - omega s_auxiliary; 0 = base, -1 = auxiliary
A, B, rho   variances of base and auxiliary; rho = A / B
eta         fraction of the way, in mean and ln V, that the auxiliary has moved from the base to the fit of the base's samples
mean error  E mu^2, a squared distance; in d dimensions E |mu|^2 is tr Sigma_0 times it

The law omega * eta = 1, about
------------------------------
With infinitely many points a recipe errs only by what one pass through its sampler does to the log-variance,

    ln v  ->  ln v + b(ln v).

The base is fitted to real data of variance v; write b for b(ln v) and b' for its slope there. The base's samples have
ln v_1 = ln v + b, and the auxiliary, a fraction eta of the way to their fit, has ln v_s = ln v + eta b. Guidance without step
error extrapolates the log-variance, ln v_g = ln v + omega (ln v - ln v_s) = ln v - omega eta b (see `guided_ode`). The pass
adds its bias:

    ln v_out = ln v - omega eta b + b(ln v - omega eta b).

Set ln v_out = ln v. To first order the last term is b, hence omega = 1 / eta: the auxiliary shows a part eta of the bias,
and omega times that part must repay the whole. If b is the same for every v, as in sampling with a covariance factor,
b = ln bias, this is exact. To the next order, with beta = 0 for deterministic steps and beta = 1 for ancestral ones,

    omega eta = 1 - b' + (1 + eta) b beta / (2 (2 + beta)) + O(b^2).

The term -b': the pass meets a moved variance. (For small eta the guided score is s - omega eta b ds/dln v, so its first
response is that of a moved variance, step errors included.) The last term: a sampler with noise does not follow the ODE. With
x = ln rho `guided_sde` has ln V = ln A + omega x + omega (1 + omega) x^2 beta / (2 (2 + beta)) + O(x^3), and here x = -eta b.
Both terms are of the order of b, so omega eta leaves 1 only by the bias itself; `best_omega` solves the N steps exactly.
Ancestral steps from 20 to 0.01, rho = 7, take v = 1 to .491, .691, .859 for N = 10, 20, 50, and the best omega eta is .92 to
.97 for eta from 1 to 1/10. Derived here.

Traps
-----
- In a fully synthetic loop V_t is log-normal-like: for t beyond about 2 n its sample average hangs on runs that are never drawn
  (n = 10, t = 100, unbiased: E V = 1, yet 200 000 runs average .41). Assert on ln s, whose mean and variance are given.
- Fully synthetic W_2^2 grows without bound for the unbiased estimator only; maximum likelihood saturates at 2 V_0.
- The stability theorems are sufficient conditions. The moments of a Gaussian contract at every ratio.
- Guidance samples p_r^(1 + omega) p_s^(-omega) only in the limit beta -> infinity, and N steps do not sample their own limit.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp  # type: ignore[import-untyped, unused-ignore]
from scipy.optimize import brentq  # type: ignore[import-untyped, unused-ignore]
from scipy.special import digamma, erf, gammaln, hyp2f1, ndtr, polygamma  # type: ignore[import-untyped, unused-ignore]

Array = NDArray[np.float64]
Real = float | Array
Sizes = int | Sequence[int]
Times = int | Sequence[int] | NDArray[np.int64]
Estimator = Literal["maximum_likelihood", "unbiased"]
Extrapolate = Literal["shares", "odds"]
TINY = 1e-300


class MeanVariance(NamedTuple):
    """Mean and variance of a real random variable; where the variable is Gaussian, its law."""

    mean: Real
    variance: Real


class LoopMoments(NamedTuple):
    """E mu_t^2 and E V_t of a fit, in units of V_0."""

    mean_error: Real
    variance: Real


# ---------------------------------------------------------------------------------------------------------------------
# Distance
# ---------------------------------------------------------------------------------------------------------------------


def gaussian_w2_squared(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """W_2^2 between two Gaussians, in squared units of the points.

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^(1/2) S_b S_a^(1/2))^(1/2))

    Shapes: means (d,), covariances (d, d), positive semidefinite.
    Raises ValueError if shapes differ.
    Source: Givens & Shortt (1984); Dowson & Landau (1982).
    """
    m_a, m_b, s_a, s_b = (np.asarray(value, dtype=float) for value in (mean_a, mean_b, cov_a, cov_b))
    if m_a.shape != m_b.shape or s_a.shape != s_b.shape or s_a.shape != m_a.shape * 2:
        raise ValueError(f"means must be (d,) and covariances (d, d), got {m_a.shape}, {m_b.shape}, {s_a.shape}, {s_b.shape}")
    values, vectors = np.linalg.eigh(s_a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s_b @ root), 0.0)).sum()
    return float(((m_a - m_b) ** 2).sum() + np.trace(s_a) + np.trace(s_b) - 2 * cross)


# ---------------------------------------------------------------------------------------------------------------------
# Fully synthetic: each fit sees n_k points of its predecessor alone
#
#     V_k = bias * V_(k-1) * chi^2_(n_k - 1) / D_k,   mu_k = mu_(k-1) + sqrt(bias * V_(k-1) / n_k) * z,   D_k = n_k or n_k - 1
#
# with V_0 = 1 and no bias in the first draw, which is real data. All is a product of independent factors.
# ---------------------------------------------------------------------------------------------------------------------


def fully_synthetic_variance(n: Sizes, t: Times, bias: float = 1.0, estimator: Estimator = "maximum_likelihood") -> Real:
    """E V_t / V_0 of a fully synthetic loop.

        bias^(t-1) * prod_(k<=t) (1 - 1/n_k)   maximum likelihood;       bias^(t-1)   unbiased

    Exact for any real law of finite variance, since only second moments enter; in d dimensions E Sigma_t = Sigma_0 times
    it. A loop started from a known law instead of real data draws once more under the bias: multiply by it.
    Raises ValueError for n < 2, t < 1, bias <= 0.
    Source: Alemohammad et al. (2023), arXiv 2307.01850; sizes derived here.
    """
    sizes = _sizes(n, t, least=2)
    return _at(np.cumprod(_kept(sizes, estimator)) * _bias_powers(sizes, bias), t)


def fully_synthetic_std(n: Sizes, t: Times, bias: float = 1.0, estimator: Estimator = "maximum_likelihood") -> Real:
    """E s_t / s_0 of a fully synthetic loop of Gaussian fits.

        bias^((t-1)/2) * prod_k kappa(n_k),   kappa = sqrt(2/D) Gamma(n/2) / Gamma((n-1)/2),   D = n or n - 1

    kappa is about 1 - 3/(4n) for maximum likelihood and c4 = 1 - 1/(4n) unbiased.
    Raises as `fully_synthetic_variance`.
    Source: Alemohammad et al. (2023), arXiv 2307.01850 (setting); derived here.
    """
    sizes = _sizes(n, t, least=2)
    log_kappa = 0.5 * np.log(2 / _divisor(sizes, estimator)) + gammaln(sizes / 2) - gammaln((sizes - 1) / 2)
    return _at(np.exp(np.cumsum(log_kappa)) * np.sqrt(_bias_powers(sizes, bias)), t)


def fully_synthetic_log_std(n: Sizes, t: Times, bias: float = 1.0, estimator: Estimator = "maximum_likelihood") -> MeanVariance:
    """Mean and variance of ln(s_t / s_0) in a fully synthetic loop of Gaussian fits: the oracle to assert on.

        E   = (t-1)/2 ln bias + 1/2 sum_k [psi((n_k - 1)/2) + ln(2 / D_k)],      Var = 1/4 sum_k psi_1((n_k - 1)/2)

    With one size E is about -t/n (maximum likelihood) or -t/(2(n-1)) (unbiased), Var about t/(2(n-1)): by the law of large
    numbers s_t -> 0 almost surely for every bias <= 1.
    Raises as `fully_synthetic_variance`. Derived here.
    """
    sizes = _sizes(n, t, least=2)
    drift = 0.5 * (digamma((sizes - 1) / 2) + np.log(2 / _divisor(sizes, estimator)))
    mean = np.cumsum(drift) + 0.5 * np.log(_bias_powers(sizes, bias))
    return MeanVariance(_at(mean, t), _at(np.cumsum(0.25 * polygamma(1, (sizes - 1) / 2)), t))


def fully_synthetic_mean_error(n: Sizes, t: Times, bias: float = 1.0, estimator: Estimator = "maximum_likelihood") -> Real:
    """E mu_t^2 / V_0 of a fully synthetic loop, a squared distance; in d dimensions E |mu_t|^2 = tr Sigma_0 times it.

        sum_(k<=t) v_(k-1) / n_k,   v_0 = 1,   v_k = bias * E V_k

    Without bias and with one size: 1 - (1 - 1/n)^t (maximum likelihood, where E V_t + E mu_t^2 = V_0 is conserved) or t/n
    (unbiased). Any law of finite variance.
    Raises as `fully_synthetic_variance`.
    Source: as there; sizes derived here.
    """
    sizes = _sizes(n, t, least=2)
    drawn = np.cumprod(_kept(sizes, estimator)) * _bias_powers(sizes, bias) * bias
    return _at(np.cumsum(np.append(1.0, drawn[:-1]) / sizes), t)


def fully_synthetic_w2_squared(n: Sizes, t: Times, bias: float = 1.0, estimator: Estimator = "maximum_likelihood") -> Real:
    """E W_2^2(fit_t, real) / V_0 of a fully synthetic loop of Gaussian fits in one dimension.

        E mu_t^2 + E (s_t - s_0)^2 = E mu_t^2 + E V_t + 1 - 2 E s_t

    One size, no bias: 2 (1 - kappa^t) <= 2 (maximum likelihood), t/n + 2 (1 - c4^t), unbounded (unbiased). The unbiased one
    stays bounded only if sum 1/n_k converges. Small t: about 3t/(2n).
    Raises as `fully_synthetic_variance`. Derived here.
    """
    args = (n, t, bias, estimator)
    return fully_synthetic_mean_error(*args) + fully_synthetic_variance(*args) + 1 - 2 * fully_synthetic_std(*args)


def collapse_bound(n: Sizes, t: Times, epsilon: float, estimator: Estimator = "maximum_likelihood") -> Real:
    """Upper bound on P(s_t > epsilon s_0) in a fully synthetic loop: min(1, E s_t / (epsilon s_0)), Markov's inequality.

    Implies (1/epsilon) e^(-t/(4n)), as stated by Suresh et al. (2024), arXiv 2412.17646.
    Raises ValueError for epsilon <= 0.
    """
    _positive(epsilon=epsilon)
    return _real(np.minimum(1.0, np.asarray(fully_synthetic_std(n, t, estimator=estimator)) / epsilon))


def fully_synthetic_det(n: Sizes, t: Times, d: int, bias: float = 1.0, estimator: Estimator = "maximum_likelihood") -> Real:
    """E det Sigma_t / det Sigma_0 of a fully synthetic loop of Gaussian fits in d dimensions.

        bias^(d (t-1)) * prod_k prod_(i=1..d) (n_k - i) / D_k

    Raises ValueError for n <= d, where the covariance is singular (test its trace instead), t < 1, d < 1, bias <= 0.
    Derived here, from det Wishart = a product of independent chi^2(n - i).
    """
    sizes = _sizes(n, t, least=_dimension(d) + 1)
    ranks = np.arange(1, d + 1)
    factor = np.prod((sizes[:, None] - ranks) / _divisor(sizes, estimator)[:, None], axis=1)
    return _at(np.cumprod(factor) * _bias_powers(sizes, bias) ** d, t)


def fully_synthetic_log_det(
    n: Sizes, t: Times, d: int, bias: float = 1.0, estimator: Estimator = "maximum_likelihood"
) -> MeanVariance:
    """Mean and variance of ln(det Sigma_t / det Sigma_0) in a fully synthetic loop of Gaussian fits.

        E   = (t-1) d ln bias + sum_k [sum_(i=1..d) psi((n_k - i)/2) + d ln(2 / D_k)],    Var = sum_k sum_i psi_1((n_k - i)/2)

    Raises ValueError for n <= d, t < 1, d < 1, bias <= 0. Derived here, as `fully_synthetic_det`.
    """
    sizes = _sizes(n, t, least=_dimension(d) + 1)
    halves = (sizes[:, None] - np.arange(1, d + 1)) / 2
    drift = digamma(halves).sum(axis=1) + d * np.log(2 / _divisor(sizes, estimator))
    mean = np.cumsum(drift) + d * np.log(_bias_powers(sizes, bias))
    return MeanVariance(_at(mean, t), _at(np.cumsum(polygamma(1, halves).sum(axis=1)), t))


# ---------------------------------------------------------------------------------------------------------------------
# Accumulate: fit k sees all N_k = m_1 + ... + m_k points so far, m_1 real and m_k drawn from fit k - 1
# ---------------------------------------------------------------------------------------------------------------------


def accumulate_variance(n: Sizes, t: Times, estimator: Estimator = "maximum_likelihood") -> Real:
    """E V_t / V_0 when synthetic data accumulate; n is m_k, the points that generation k adds.

        prod_(k<=t) (1 - m_k / N_k^2)   maximum likelihood;    prod_(2<=k<=t) (1 - m_k / (N_k (N_k - 1)))   unbiased

    With one size these are prod (1 - 1/(n k^2)) and prod (1 - 1/(k (n k - 1))). Any law of finite variance.
    Raises ValueError for n < 2 or t < 1.
    Source: Kazdan et al. (2024), arXiv 2410.16713 (setting); derived here.
    """
    return _at(_accumulated(_sizes(n, t, least=2), estimator), t)


def accumulate_mean_error(n: Sizes, t: Times, estimator: Estimator = "maximum_likelihood") -> Real:
    """E mu_t^2 / V_0 when synthetic data accumulate: sum_(k<=t) m_k E V_(k-1) / N_k^2, with E V_0 = 1.

    Maximum likelihood conserves E V_t + E mu_t^2 = V_0, so the limit for one size is 1 - sin(pi/sqrt n)/(pi/sqrt n), about
    pi^2/(6n): the factor pi^2/6 over real data alone of Dey & Donoho (2024), arXiv 2410.22812.
    Raises as `accumulate_variance`.
    """
    sizes = _sizes(n, t, least=2)
    before = np.append(1.0, _accumulated(sizes, estimator)[:-1])
    return _at(np.cumsum(sizes * before / np.cumsum(sizes) ** 2), t)


def accumulate_variance_limit(n: int, estimator: Estimator = "maximum_likelihood") -> float:
    """lim E V_t / V_0 when every generation adds n points.

        sin(pi/sqrt n) / (pi/sqrt n)   maximum likelihood;      Gamma(2 - 1/n) / (Gamma(2 - r) Gamma(2 - q))   unbiased,

    r, q = (1 +- sqrt(1 + 4n)) / (2n) the roots of n k^2 - k - 1.
    Raises ValueError for n < 2. Derived here (Euler's product).
    """
    size = float(_sizes(n, 1, least=2)[0])
    if _is_maximum_likelihood(estimator):
        return float(np.sinc(1 / math.sqrt(size)))
    r, q = ((1 + sign * math.sqrt(1 + 4 * size)) / (2 * size) for sign in (1, -1))
    return math.exp(math.lgamma(2 - 1 / size) - math.lgamma(2 - r) - math.lgamma(2 - q))


def accumulate_subsample_moments(n: int, t: Times, estimator: Estimator = "maximum_likelihood") -> LoopMoments:
    """E mu_t^2 and E V_t, over V_0, when n of the n k points so far are drawn without replacement for fit k.

    With P, e the expected variance (dividing by n k) and squared mean of the pool, S = P n k / (n k - 1), q = (1 - 1/k) S /
    n the variance of the subsample's mean within the pool, V = S (n-1)/n or S the fit, and D = V/n + q:

        P <- (k P + V (1 - 1/n)) / (k + 1) + k D / (k + 1)^2,    e <- e + D / (k + 1)^2;      E mu_k^2 = e + q

    The variance levels off above zero; maximum likelihood conserves E V_t + E mu_t^2 = V_0. Any law of finite variance.
    Raises ValueError for n < 2 or t < 1.
    Source: Kazdan et al. (2024), arXiv 2410.16713 (setting); derived here.
    """
    size = float(_sizes(n, 1, least=2)[0])
    kept = float(_kept(np.array([size]), estimator)[0])
    pool, drift = 1 - 1 / size, 1 / size
    errors, variances = [], []
    for k in range(1, _last(t) + 1):
        unbiased = pool * size * k / (size * k - 1)
        fitted, within = unbiased * kept, (1 - 1 / k) * unbiased / size
        errors.append(drift + within)
        variances.append(fitted)
        step = fitted / size + within
        pool = (k * pool + fitted * (1 - 1 / size)) / (k + 1) + k * step / (k + 1) ** 2
        drift += step / (k + 1) ** 2
    return LoopMoments(_at(np.array(errors), t), _at(np.array(variances), t))


# ---------------------------------------------------------------------------------------------------------------------
# Real data in every fit: n_r real points with total weight w and n_s of the last generation with weight u = 1 - w
#
#     (e, V) -> (u^2 e + u^2 bias V / n_s,  c (u - u^2) e + c (u - u^2 / n_s) bias V) + what the real data bring
#
# is linear, so trajectories and fixed points are exact for any law of finite variance. Without weights w = n_r / N.
# ---------------------------------------------------------------------------------------------------------------------


def fresh_moments(
    n_real: int,
    n_synthetic: int,
    t: Times,
    bias: float = 1.0,
    estimator: Estimator = "maximum_likelihood",
    real_weight: float | None = None,
    n_initial: int | None = None,
) -> LoopMoments:
    """E mu_t^2 and E V_t, over V_0, of the fresh data loop: n_real new real points in every fit, n_initial in the first.

        e <- w^2 / n_r + u^2 (e + bias V / n_s),     V <- c (w + u (bias V + e) - e_new)

    w = real_weight, by default n_r / N, u = 1 - w; c = 1, or 1 / (1 - 1/n_eff) if unbiased, with 1/n_eff = w^2/n_r +
    u^2/n_s. n_initial is n_real by default.
    Raises ValueError for sizes < 1 (n_initial, n_real < 2), t < 1, bias <= 0, weight outside (0, 1).
    Source: Alemohammad et al. (2023), arXiv 2307.01850 (setting); derived here.
    """
    matrix, w, c = _mixture(n_real, n_synthetic, bias, estimator, real_weight)
    first = _sizes(n_real if n_initial is None else n_initial, 1, least=2)
    start = np.array([1 / first[0], _kept(first, estimator)[0]])
    return _linear(matrix, np.array([w**2 / n_real, c * (w - w**2 / n_real)]), start, t)


def fresh_fixed_point(
    n_real: int,
    n_synthetic: int,
    bias: float = 1.0,
    estimator: Estimator = "maximum_likelihood",
    real_weight: float | None = None,
) -> LoopMoments:
    """Limit of `fresh_moments`; it does not depend on the first fit.

    Maximum likelihood without bias or weights: e = V_0 / (N (1 - f^2) + f) and E V = V_0 - e. This e is below V_0 / n_r,
    since the synthetic data remember earlier real data.
    Raises ValueError as `fresh_moments`, and if the loop diverges (bias too far above 1).
    """
    matrix, w, c = _mixture(n_real, n_synthetic, bias, estimator, real_weight)
    return _fixed_point(matrix, np.array([w**2 / n_real, c * (w - w**2 / n_real)]), bias)


def fresh_variance_limit(fraction: Real, bias: Real) -> Real:
    """lim V_t / V_0 of the fresh or augmentation loop with infinitely many points: (1 - f) / (1 - f * bias).

    Raises ValueError unless 0 <= fraction < 1, bias > 0 and fraction * bias < 1 (else the variance grows for ever). Derived
    here.
    """
    f, b = np.asarray(fraction, dtype=float), np.asarray(bias, dtype=float)
    _positive(bias=bias)
    if not (np.all(f >= 0) and np.all(f < 1)):
        raise ValueError(f"fraction must lie in [0, 1), got {fraction}")
    if not np.all(f * b < 1):
        raise ValueError(f"fraction * bias must be below 1 for a limit to exist, got {fraction} * {bias}")
    return _real((1 - f) / (1 - f * b))


def effective_sample_size(n_real: int, n_synthetic: int, bias: float = 1.0) -> float:
    """n_e: how many real points alone would give the fresh loop's limiting mean error, V_0 / n_e = e.

    Without bias n_e = N (1 - f^2) + f, and n_e / n_r -> (n_r + 2 n_s) / (n_r + n_s) in [1, 2) for large n. This is
    the mean's part alone: the n_e of Alemohammad et al. (2023), arXiv 2307.01850, compares whole distances, in which the
    variance counts as well, and with bias < 1 is systematically off.
    Raises as `fresh_fixed_point`. Derived here.
    """
    return 1 / float(fresh_fixed_point(n_real, n_synthetic, bias).mean_error)


def augment_moments(
    n_real: int,
    n_synthetic: int,
    t: Times,
    bias: float = 1.0,
    estimator: Estimator = "maximum_likelihood",
    real_weight: float | None = None,
) -> LoopMoments:
    """E mu_t^2 and E V_t, over V_0, of the synthetic augmentation loop: the same n_real real points in every fit.

    With V_r = 1 - 1/n_r the expected variance and x_r the mean of the real points, g = E (mu - x_r)^2 obeys

        g <- u^2 (g + bias V / n_s),     V <- c (w V_r + u (bias V + g) - g_new),     E mu^2 = 1 / n_r + g

    from g = 0; w, u, c and errors as in `fresh_moments`.
    Source: Alemohammad et al. (2023) (setting); derived here.
    """
    matrix, w, c = _mixture(n_real, n_synthetic, bias, estimator, real_weight)
    first = _sizes(n_real, 1, least=2)
    start = np.array([0.0, _kept(first, estimator)[0]])
    around = _linear(matrix, np.array([0.0, c * w * (1 - 1 / n_real)]), start, t)
    return LoopMoments(around.mean_error + 1 / n_real, around.variance)


def augment_limit(
    n_real: int,
    n_synthetic: int,
    bias: float = 1.0,
    estimator: Estimator = "maximum_likelihood",
    real_weight: float | None = None,
) -> LoopMoments:
    """Limit of `augment_moments`.

    Maximum likelihood without bias or weights, with a = 1 - f^2: g = V_r (f/N) / (a + f/N), E V = V_r a / (a + f/N). Finite
    for every f < 1, never better than real data alone.
    Raises ValueError as `fresh_fixed_point`. Derived here.
    """
    matrix, w, c = _mixture(n_real, n_synthetic, bias, estimator, real_weight)
    around = _fixed_point(matrix, np.array([0.0, c * w * (1 - 1 / n_real)]), bias)
    return LoopMoments(around.mean_error + 1 / n_real, around.variance)


def augment_mean_error(n_real: int, n_synthetic: int, t: Times) -> Real:
    """E mu_t^2 / V_0 of the augmentation loop to leading order, the variance held at V_0.

        1/n_r + (f^2 / n_s) (1 - f^(2 (t-1))) / (1 - f^2)

    Relative error O(1 / N); exact: `augment_moments`.
    Raises ValueError for sizes or t < 1. Derived here.
    """
    _count(n_real=n_real, n_synthetic=n_synthetic)
    f = n_synthetic / (n_real + n_synthetic)
    return _real(1 / n_real + f**2 / n_synthetic * (1 - f ** (2 * (_times(t) - 1.0))) / (1 - f**2))


def augment_ratio_limit(n_real: int, n_synthetic: int) -> float:
    """lim E mu_t^2 / E mu_1^2 of the augmentation loop for large samples: 1 + n_s / (n_r + 2 n_s), below 1.5.

    Of the squared error; the distance grows by its square root.
    Raises ValueError for sizes < 1. Derived here.
    """
    _count(n_real=n_real, n_synthetic=n_synthetic)
    return 1 + n_synthetic / (n_real + 2 * n_synthetic)


def weighted_mean_error(real_weight: Real, ratio: Real) -> Real:
    """Limiting mean error of the fresh loop with total weight w on real data, over V_0 / n_r, to leading order.

        (w^2 + (1 - w)^2 / ratio) / (w (2 - w))

    Relative error O(1 / N); exact: `fresh_fixed_point`.
    Raises ValueError unless 0 < w <= 1 and ratio > 0. Derived here.
    """
    w, k = np.asarray(real_weight, dtype=float), np.asarray(ratio, dtype=float)
    _positive(ratio=ratio)
    if not (np.all(w > 0) and np.all(w <= 1)):
        raise ValueError(f"real_weight must lie in (0, 1], got {real_weight}")
    return _real((w**2 + (1 - w) ** 2 / k) / (w * (2 - w)))


def optimal_real_weight(ratio: Real) -> Real:
    """The weight on real data that minimises `weighted_mean_error`, and the minimum itself (they are equal).

        w = (sqrt(1 + 4 ratio) - 1) / (2 ratio),   the root of ratio w^2 = 1 - w

    ratio = 1 gives 1 / golden ratio = 0.618.
    Raises ValueError for ratio <= 0. Derived here; the golden ratio in this role: arXiv 2502.18049.
    """
    _positive(ratio=ratio)
    return _real(2 / (np.sqrt(1 + 4 * np.asarray(ratio, dtype=float)) + 1))


# ---------------------------------------------------------------------------------------------------------------------
# Kernel density estimates of fixed bandwidth h, in units of s_0
# ---------------------------------------------------------------------------------------------------------------------


def kde_variance(n: int, t: Times, bandwidth: float) -> Real:
    """E of the variance (dividing by n) of the data that fit t sees, over V_0, fully synthetic; the fitted law has h^2 more.

        (1 - 1/n)^t + h^2 (n - 1) (1 - (1 - 1/n)^(t-1))  ->  (n - 1) h^2

    With a bandwidth proportional to the data, h = a s, use `fully_synthetic_variance` with bias = 1 + a^2 instead. Any real
    law and kernel of finite variance.
    Raises ValueError for n < 2, t < 1, bandwidth < 0. Derived here.
    """
    size = _sizes(n, 1, least=2)[0]
    _non_negative(bandwidth=bandwidth)
    kept = 1 - 1 / size
    times = _times(t)
    return _real(kept**times + bandwidth**2 * (size - 1) * (1 - kept ** (times - 1)))


def kde_mean_error(n: int, t: Times, bandwidth: float) -> Real:
    """E mu_t^2 / V_0 of a fully synthetic loop of kernel density estimates: 1 + h^2 (t - 1) - `kde_variance`.

    The second moment grows by h^2 a generation; once the variance has settled, so does the mean error.
    Raises as there. Derived here.
    """
    return _real(1 + bandwidth**2 * (_times(t) - 1.0) - np.asarray(kde_variance(n, t, bandwidth)))


def kde_variance_limit(n: int, bandwidth: float) -> float:
    """lim of `kde_variance`: (n - 1) h^2, over V_0. It is V_0 only by accident of h. Raises as there. Derived here."""
    _non_negative(bandwidth=bandwidth)
    return float((_sizes(n, 1, least=2)[0] - 1) * bandwidth**2)


def accumulate_kde_moments(n: int, t: Times, bandwidth: float | Sequence[float]) -> LoopMoments:
    """E of the squared mean and of the variance (dividing by n t) of the pool that fit t sees, over V_0, when data accumulate.

        Q_t = 1 + sum_(k<t) h_k^2 / (k + 1),    e_(k+1) = e_k + (Q_k - e_k + h_k^2) / (n (k + 1)^2),    e_1 = 1/n,    V = Q - e

    bandwidth: one, or one for each fit, the last of which goes on. A fixed one gives Q_t = 1 + h^2 (H_t - 1), growing like
    ln t; h_k ~ k^(-1/5) converges.
    Raises ValueError for n < 2, t < 1, a bandwidth < 0. Derived here.
    """
    size = float(_sizes(n, 1, least=2)[0])
    given = np.atleast_1d(np.asarray(bandwidth, dtype=float))
    _non_negative(bandwidth=given)
    second, drift = 1.0, 1 / size
    errors, variances = [], []
    for k in range(1, _last(t) + 1):
        errors.append(drift)
        variances.append(second - drift)
        square = float(given[min(k, len(given)) - 1]) ** 2
        drift += (second - drift + square) / (size * (k + 1) ** 2)
        second += square / (k + 1)
    return LoopMoments(_at(np.array(errors), t), _at(np.array(variances), t))


# ---------------------------------------------------------------------------------------------------------------------
# Categories: fitting frequencies to n draws is the haploid Wright-Fisher model of genetics
# ---------------------------------------------------------------------------------------------------------------------


def discrete_heterozygosity(initial: float, n: Sizes, t: Times) -> Real:
    """E [1 - sum_i p_i^2] at fit t, fully synthetic: initial * prod_(k<=t) (1 - 1/n_k); a probability.

    initial is 1 - sum p_i^2 of the real law. E p_i does not change.
    Raises ValueError for n < 1, t < 1, initial outside [0, 1].
    Source: Wright (1931).
    """
    _probability(initial=initial)
    return _real(initial * np.asarray(_at(np.cumprod(1 - 1 / _sizes(n, t, least=1)), t)))


def discrete_variance(probability: float, n: Sizes, t: Times) -> Real:
    """Var p_i at fit t, fully synthetic: p (1 - p) (1 - prod_(k<=t) (1 - 1/n_k)).

    Raises as `discrete_heterozygosity`.
    Source: Wright (1931).
    """
    _probability(probability=probability)
    return _real(probability * (1 - probability) * (1 - np.asarray(_at(np.cumprod(1 - 1 / _sizes(n, t, least=1)), t))))


def discrete_fixation_time(probabilities: Sequence[float] | Array, n: int) -> float:
    """Expected number of fits until one category is left, fully synthetic: -2n sum_i (1 - p_i) ln(1 - p_i).

    The diffusion limit: this u solves sum_ij p_i (delta_ij - p_j) u_ij / (2n) = -1 and vanishes where one category is left.
    With two categories it exceeds the time of the chain itself by about ln(n) / 3 generations.
    Raises ValueError unless p >= 0 adds to one, n >= 1. Derived here; for two categories as commonly stated after Kimura &
    Ohta (1969).
    """
    p = _law("probabilities", probabilities)
    _count(n=n)
    rest = 1 - p[(p > 0) & (p < 1)]
    return float(-2 * n * (rest * np.log(rest)).sum())


def discrete_loss_probability(copies: float, t: Times) -> Real:
    """Probability that a category of n p = copies expected draws is lost at fit t, fully synthetic, by branching.

        exp(-copies (1 - phi_(t-1))),    phi_0 = 0,   phi_(k+1) = e^(phi_k - 1)   (lineages with Poisson(1) offspring)

    Limit of rare categories, n -> infinity at fixed copies; 1 - phi_t is about 2/t.
    Raises ValueError for copies < 0, t < 1.
    Source: Galton-Watson generating function; derived here.
    """
    _non_negative(copies=copies)
    phi = [0.0]
    for _ in range(_last(t) - 1):
        phi.append(math.exp(phi[-1] - 1))
    return _at(np.exp(-copies * (1 - np.array(phi))), t)


def discrete_survival_bound(copies: float, t: Times) -> Real:
    """Lower bound 1 - e^(-copies / t) on the probability that a category is still there at fit t.

    As commonly stated, after Suresh et al. (2024), arXiv 2412.17646. Follows from `discrete_loss_probability`, since 1 -
    phi_(t-1) >= 1/t; so proved here in that limit only.
    Raises as there.
    """
    _non_negative(copies=copies)
    return _real(-np.expm1(-copies / _times(t)))


def discrete_fresh_limit(
    initial: float, n_real: int, n_synthetic: int, composition: Literal["fixed", "random"] = "fixed"
) -> float:
    """lim E [1 - sum p_i^2] when every fit sees a fraction f of synthetic draws and new real ones.

        fixed    H_0 (1 - f^2 - (1 - f)/N) / (1 - f^2 + f/N)          exactly n_r real and n_s synthetic draws
        random   H_0 (1 - 1/N) (1 - f^2) / (1 - (1 - 1/N) f^2)        N draws, each synthetic with probability f

    Raises ValueError for sizes < 1, initial outside [0, 1], another composition. Derived here.
    """
    _probability(initial=initial)
    _count(n_real=n_real, n_synthetic=n_synthetic)
    total = n_real + n_synthetic
    f = n_synthetic / total
    if composition == "fixed":
        return initial * (1 - f**2 - (1 - f) / total) / (1 - f**2 + f / total)
    if composition == "random":
        return initial * (1 - 1 / total) * (1 - f**2) / (1 - (1 - 1 / total) * f**2)
    raise ValueError(f"composition must be 'fixed' or 'random', got {composition!r}")


def tempered_probabilities(probabilities: Sequence[float] | Array, temperature: float, rounds: int) -> Array:
    """Categories after `rounds` samplings at a temperature T, no sampling noise: p_i^(1/T^rounds), normalised; shape (K,).

    T < 1 ends in the likeliest categories, T > 1 in the uniform law on the support. For a Gaussian T is
    the bias.
    Raises ValueError unless p >= 0 adds to one, T > 0, rounds >= 0. Derived here.
    """
    p = _law("probabilities", probabilities)
    _positive(temperature=temperature)
    _non_negative(rounds=rounds)
    tilted = np.where(p > 0, (p / p.max()) ** (temperature ** -float(rounds)), 0.0)
    return np.asarray(tilted / tilted.sum())


# ---------------------------------------------------------------------------------------------------------------------
# Linear regression: labels y = X w + noise, rows of X standard normal in d dimensions, each fit labels with the last w
# ---------------------------------------------------------------------------------------------------------------------


def regression_fully_synthetic_error(n: int, d: int, t: Times) -> Real:
    """E |w_t - w_0|^2 over the noise variance, when each fit sees n labels of its predecessor: t d / (n - d - 1).

    Least squares, the same X in every fit or a new one.
    Raises ValueError for n <= d + 1 or t < 1.
    Source: Dohmatob et al. (2024), arXiv 2402.07712 (setting); derived here.
    """
    return _real(_regression_error(n, d) * _times(t))


def regression_accumulate_error(n: int, d: int, t: Times) -> Real:
    """E |w_t - w_0|^2 over the noise variance, when labels accumulate on the same X: d / (n - d - 1) sum_(k<=t) 1/k^2.

    Below pi^2/6 times the first fit's. With a new X in each generation the sum changes.
    Raises as `regression_fully_synthetic_error`.
    Source: Gerstgrasser et al. (2024), arXiv 2404.01413.
    """
    return _real(_regression_error(n, d) * np.asarray(_at(np.cumsum(1 / np.arange(1.0, _last(t) + 1) ** 2), t)))


# ---------------------------------------------------------------------------------------------------------------------
# Stability, correction, curation; infinitely many points, so no sampling noise
# ---------------------------------------------------------------------------------------------------------------------


def is_sufficiently_stable(ratio: float, lipschitz: float, epsilon: float, alpha: float, correction: float = 0.0) -> bool:
    """Whether the known sufficient condition for local stability of iterative retraining holds.

        ratio (1 + L epsilon / alpha) < (1 + gamma) / (2 + gamma)

    L: Lipschitz constant of the log-likelihood's Hessian, alpha: its strong concavity, epsilon: distance of the best model
    from p_r, gamma = correction. As commonly stated; sufficient only: False says nothing.
    Raises ValueError for ratio, L, epsilon or gamma < 0, alpha <= 0.
    Source: Bertrand et al. (2023), arXiv 2310.00429 (gamma = 0: below 1/2); Gillman et al. (2024), arXiv 2402.07087.
    """
    _non_negative(ratio=ratio, lipschitz=lipschitz, epsilon=epsilon, correction=correction)
    _positive(alpha=alpha)
    return bool(ratio * (1 + lipschitz * epsilon / alpha) < (1 + correction) / (2 + correction))


def moment_contraction(ratio: float, correction: float = 0.0) -> float:
    """Factor on the error of the moments in one generation: f / (1 + gamma), f = ratio / (1 + ratio); always below one.

    Real and synthetic data mixed, synthetic ones corrected to (p + gamma p_r) / (1 + gamma). Mean and second moment alike;
    any law.
    Raises ValueError for arguments < 0.
    Source: Gillman et al. (2024), arXiv 2402.07087 (the correction); derived here.
    """
    _non_negative(ratio=ratio, correction=correction)
    return ratio / (1 + ratio) / (1 + correction)


def curated_gaussian(
    mean: float, variance: float, rounds: Times, slope: float = 0.0, curvature: float = 0.0, centre: float = 0.0
) -> MeanVariance:
    """A Gaussian after p <- p e^r / Z, `rounds` times, for the reward r(x) = slope x - curvature (x - centre)^2 / 2.

        1/V_t = 1/V + t curvature,     mu_t / V_t = mu / V + t (slope + curvature centre)

    A linear reward moves the mean by slope V each time and leaves V.
    Raises ValueError for variance <= 0, rounds < 1, or where a negative curvature leaves no precision.
    Source: Ferbach et al. (2024), arXiv 2407.09499 (best of infinitely many); derived here.
    """
    _positive(variance=variance)
    times = _times(rounds)
    precision = 1 / variance + times * curvature
    if not np.all(precision > 0):
        raise ValueError(f"curvature {curvature} leaves no Gaussian after {rounds} rounds: precision {precision}")
    return MeanVariance(_real((mean / variance + times * (slope + curvature * centre)) / precision), _real(1 / precision))


def curated_probabilities(probabilities: Sequence[float] | Array, reward: Sequence[float] | Array, rounds: int) -> Array:
    """Categories after p_i <- p_i e^(r_i) / Z, `rounds` times: p_i e^(rounds r_i), normalised; shape (K,).

    Raises ValueError unless p >= 0 adds to one and rounds >= 0.
    Source: Ferbach et al. (2024), arXiv 2407.09499.
    """
    p, r = _law("probabilities", probabilities), np.asarray(reward, dtype=float)
    _non_negative(rounds=rounds)
    tilted = p * np.exp(rounds * (r - r.max()))
    return np.asarray(tilted / tilted.sum())


def truncation_factor(c: Real) -> Real:
    """Factor on V when only points with |x - mu| <= c s are kept: 1 - 2 c phi(c) / (2 Phi(c) - 1).

    A Gaussian refitted to infinitely many filtered points is multiplied by it every generation.
    Raises ValueError for c <= 0.
    """
    _positive(c=c)
    z = np.asarray(c, dtype=float)
    return _real(1 - z * np.exp(-(z**2) / 2) * math.sqrt(2 / math.pi) / erf(z / math.sqrt(2)))


# ---------------------------------------------------------------------------------------------------------------------
# Guidance between two Gaussian scores, in continuous time
#
#     score_i(x; sigma) = -(x - mu_i) / (V_i + sigma^2),     score = (1 + omega) score_base - omega score_auxiliary
#     d x = -(1 + beta) sigma score d sigma + sqrt(2 beta sigma) dW,     sigma from sigma_max to 0,    x_max ~ N(0, sigma_max^2)
#
# One dimension, or commuting covariances eigenvalue by eigenvalue. With rho = A / B. Derived here.
# ---------------------------------------------------------------------------------------------------------------------


def guided_ode(base: MeanVariance, auxiliary: MeanVariance, omega: Real, sigma_max: float = math.inf) -> MeanVariance:
    """Law of the guided probability-flow ODE's output: beta = 0. From x_max ~ N(0, sigma_max^2):

        V  = sigma_max^2 R^2,     R = A^((1+w)/2) B^(-w/2) / [(A + sigma_max^2)^((1+w)/2) (B + sigma_max^2)^(-w/2)]
        mu = mu_r (1 - R) - w (mu_s - mu_r) [K(1) - K(A / (A + sigma_max^2))],   w = omega,
        K(x) = rho^(w/2) x^(1/2) 2F1(1 - w/2, 1/2; 3/2; (1 - 1/rho) x)

    As sigma_max -> inf V = A rho^w, so ln V extrapolates linearly, and mu = mu_r - w (mu_s - mu_r) K(1), with K(1) = 1 if
    the variances are equal. Where covariances do not commute det V = det A^(1+w) / det B^w still holds. This is not the law
    p_r^(1+w) p_s^(-w).
    Raises ValueError for variances or sigma_max <= 0.
    Source: Alemohammad et al. (2024), arXiv 2408.16333 (guidance); derived here.
    """
    a, b, rho, shift, w = _guided(base, auxiliary, omega)
    _positive(sigma_max=sigma_max)

    def k(x: Any) -> Any:
        return rho ** (w / 2) * np.sqrt(x) * hyp2f1(1 - w / 2, 0.5, 1.5, (1 - 1 / rho) * x)

    if math.isinf(sigma_max):
        return MeanVariance(_real(base.mean - w * shift * k(1.0)), _real(a * rho**w))
    noise = sigma_max**2
    gain = np.exp(0.5 * ((1 + w) * np.log(a / (a + noise)) - w * np.log(b / (b + noise))))
    mean = base.mean * (1 - gain) - w * shift * (k(1.0) - k(a / (a + noise)))
    return MeanVariance(_real(mean), _real(noise * gain**2))


def guided_sde(base: MeanVariance, auxiliary: MeanVariance, omega: Real, beta: float = 1.0) -> MeanVariance:
    """Law of the guided sampler with noise beta, from sigma_max = inf; beta = 1 is the reverse SDE, beta = 0 the ODE.

        V  = A 2F1(1, -(1+beta) w; 1+beta; 1-rho)
        mu = mu_r - w (mu_s - mu_r) rho 2F1(1, 1 - (1+beta) w/2; (3+beta)/2; 1-rho)

    with w = omega; at beta = 1

        V = A (rho^(2w+1) - 1) / ((2w+1) (rho - 1)),     mu = mu_r - (mu_s - mu_r) rho (rho^w - 1) / (rho - 1).

    V is finite for every omega; for omega > 0 it grows with beta, to `product_of_experts` if that is a law, else to infinity.
    Raises ValueError for variances <= 0 or beta < 0. Derived here.
    """
    a, _, rho, shift, w = _guided(base, auxiliary, omega)
    _non_negative(beta=beta)
    variance = a * hyp2f1(1.0, -(1 + beta) * w, 1 + beta, 1 - rho)
    pull = rho * hyp2f1(1 - (1 + beta) * w / 2, 1.0, (3 + beta) / 2, 1 - rho)
    return MeanVariance(_real(base.mean - w * shift * pull), _real(variance))


def product_of_experts(base: MeanVariance, auxiliary: MeanVariance, omega: Real) -> MeanVariance:
    """The law p_r^(1+w) p_s^(-w) / Z, w = omega, which Langevin steps at each noise level (beta -> inf) draw from.

        1/V = (1+w)/A - w/B,      mu / V = (1+w) mu_r / A - w mu_s / B

    For w > 0 it exists only if B > A w / (1+w).
    Raises ValueError where it does not, and for variances <= 0.
    """
    a, b, _, _, w = _guided(base, auxiliary, omega)
    precision = (1 + w) / a - w / b
    if not np.all(precision > 0):
        raise ValueError(
            f"p_r^(1 + omega) p_s^(-omega) is not a law: precision {precision} <= 0; "
            f"the auxiliary variance {auxiliary.variance} must exceed A omega / (1 + omega) = {a * w / (1 + w)}"
        )
    return MeanVariance(_real(((1 + w) * base.mean / a - w * auxiliary.mean / b) / precision), _real(1 / precision))


# ---------------------------------------------------------------------------------------------------------------------
# Guidance in N steps: every step is affine in x, so the law of the output is exact
#
#     dx / dsigma = r x - c,    r = sigma [(1+w)/(A + sigma^2) - w/(B + sigma^2)],    c likewise with mu_r and mu_s above
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """N noise levels from sigma_max to sigma_min, evenly spaced in sigma^(1/rho), then 0; and what is done between two of them.

    churn, churn_noise: S_churn and S_noise of Karras et al. (2022), Algorithm 2, at every level: before a step, noise of
    variance S_noise^2 (s_hat^2 - s^2) takes s to s_hat = s (1 + min(S_churn / N, sqrt 2 - 1)).
    Raises ValueError for levels out of order, fewer than one step, rho <= 0, churn < 0, churn with ancestral steps, which
    have noise.
    """

    kind: Literal["euler", "heun", "dpm", "ancestral"] = "heun"
    steps: int = 18
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0
    churn: float = 0.0
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("euler", "heun", "dpm", "ancestral"):
            raise ValueError(f"kind must be 'euler', 'heun', 'dpm' or 'ancestral', got {self.kind!r}")
        _count(steps=self.steps)
        _positive(rho=self.rho)
        _non_negative(churn=self.churn, churn_noise=self.churn_noise)
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"need 0 < sigma_min < sigma_max < inf, got {self.sigma_min} and {self.sigma_max}")
        if self.kind == "ancestral" and self.churn > 0:
            raise ValueError(f"churn is for euler, heun and dpm; ancestral steps add their own noise, got churn = {self.churn}")

    def levels(self) -> list[float]:
        """The N noise levels and 0."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        last = max(self.steps - 1, 1)
        return [(high + i / last * (low - high)) ** self.rho for i in range(self.steps)] + [0.0]


class Affine(NamedTuple):
    """The map x -> gain x + offset + sqrt(noise) z, z standard normal."""

    gain: float
    offset: float
    noise: float

    def law(self, x: MeanVariance) -> MeanVariance:
        """Law of the image of a Gaussian x."""
        return MeanVariance(self.gain * x.mean + self.offset, self.gain**2 * x.variance + self.noise)


def sampler_map(base: MeanVariance, auxiliary: MeanVariance, omega: float, steps: Steps) -> Affine:
    """What N guided steps do to x_max, exactly; from s to s', h = s' - s, churn before the step:

        euler       x + h (r x - c);      every kind steps so to s' = 0
        heun        x + h/2 [r x - c + r' x_e - c'],   x_e the Euler point
        dpm         (s'/s) x + (1 - s'/s) [x_m - s_m (r_m x_m - c_m)],   x_m the Euler point at s_m = (s s')^(1/2)
        ancestral   x + (s'^2/s - s) (r x - c) + s_up z,   s_up^2 = s'^2 (s^2 - s'^2) / s^2

    One dimension, any omega.
    Raises ValueError for variances <= 0.
    Source: Karras et al. (2022), arXiv 2206.00364, Algorithms 1 and 2; dpm: Lu et al. (2022), arXiv 2211.01095, 2S, r = 1/2;
    ancestral: the DDPM posterior of Ho et al. (2020).
    """
    _guided(base, auxiliary, omega)
    a, b = float(base.variance), float(auxiliary.variance)
    m_a, m_b = float(base.mean), float(auxiliary.mean)

    def slope(s: float) -> tuple[float, float]:
        p, q = s * (1 + omega) / (a + s**2), s * omega / (b + s**2)
        return p - q, p * m_a - q * m_b

    gain, offset, noise = 1.0, 0.0, 0.0
    stretch = 1 + min(steps.churn / steps.steps, math.sqrt(2) - 1)
    for level, s_next in itertools.pairwise(steps.levels()):
        s = level * stretch
        noise += (s**2 - level**2) * steps.churn_noise**2
        rate, constant = slope(s)
        added = 0.0
        if steps.kind == "ancestral":
            h = s_next**2 / s - s
            added = s_next**2 * (s**2 - s_next**2) / s**2
            factor, shift = 1 + h * rate, -h * constant
        else:
            h = s_next - s
            factor, shift = 1 + h * rate, -h * constant
            if steps.kind == "heun" and s_next > 0:
                rate_next, constant_next = slope(s_next)
                factor, shift = (
                    1 + h / 2 * (rate + rate_next * factor),
                    h / 2 * (rate_next * shift - constant - constant_next),
                )
            elif steps.kind == "dpm" and s_next > 0:
                middle, kept = math.sqrt(s * s_next), s_next / s
                rate_m, constant_m = slope(middle)
                denoised = 1 - middle * rate_m
                factor, shift = (
                    kept + (1 - kept) * denoised * (1 + (middle - s) * rate),
                    (1 - kept) * (middle * constant_m - denoised * (middle - s) * constant),
                )
        gain, offset, noise = factor * gain, factor * offset + shift, factor**2 * noise + added
    return Affine(gain, offset, noise)


def sampler_law(base: MeanVariance, auxiliary: MeanVariance, omega: float, steps: Steps) -> MeanVariance:
    """Law of the output of N guided steps from x_max ~ N(0, sigma_max^2): exact; see `sampler_map`.

    At omega = 0 the auxiliary has no part, at omega = -1 the base has none.
    """
    return sampler_map(base, auxiliary, omega, steps).law(MeanVariance(0.0, steps.sigma_max**2))


def sampler_log_bias(variance: float, steps: Steps) -> float:
    """b: what one unguided pass through N steps adds to ln V of a Gaussian; the standard deviation grows by e^(b/2).

    18 Heun steps (80 to .002): std + 4.5 % at V = 1, + 5.5 % at V = 1/4.
    Raises ValueError for variance <= 0. Derived here.
    """
    model = MeanVariance(0.0, variance)
    return math.log(float(sampler_law(model, model, 0.0, steps).variance) / variance)


def sampler_loop_variance(variance: float, steps: Steps, t: Times) -> Real:
    """Variance of the points drawn by generation t of a fully synthetic loop whose only error is its sampler (n infinite).

        v_0 = variance,    ln v_k = ln v_(k-1) + b(v_(k-1)),    t passes

    Compounds: 18 Heun steps take a standard deviation of .5 to 10 in 100 generations.
    Raises as `sampler_log_bias`. Derived here.
    """
    drawn = [variance]
    for _ in range(_last(t)):
        drawn.append(drawn[-1] * math.exp(sampler_log_bias(drawn[-1], steps)))
    return _at(np.array(drawn[1:]), t)


# ---------------------------------------------------------------------------------------------------------------------
# SIMS and Neon on a Gaussian
# ---------------------------------------------------------------------------------------------------------------------


def expected_omega(eta: Real, log_bias: float = 0.0, slope: float = 0.0, beta: float = 0.0) -> Real:
    """The best guidance for a recipe of systematic bias, n infinite; the law omega = 1 / eta with its first correction.

        omega = (1 - b' + (1 + eta) b beta / (2 (2 + beta))) / eta + O(b^2)

    eta: fraction the auxiliary moved, in (0, 1]; log_bias b: what one pass adds to ln V; slope b' = db / d ln V; beta = 0
    for deterministic steps, 1 for ancestral ones. Derivation in the module docstring.
    Raises ValueError for eta outside (0, 1], beta < 0.
    """
    e = _moved(eta)
    _non_negative(beta=beta)
    return _real((1 - slope + (1 + e) * log_bias * beta / (2 * (2 + beta))) / e)


def best_omega(eta: float, steps: Steps, variance: float = 1.0) -> float:
    """The guidance at which N steps give back the true variance, exactly; n infinite.

    Solves sampler_law(base, auxiliary, omega).variance = variance, where ln V_auxiliary = ln variance + eta b. About 1 /
    eta: see `expected_omega`.
    Raises ValueError for eta outside (0, 1] or variance <= 0, ArithmeticError if the sampler has no bias to correct or no
    omega up to 4 / eta corrects it. Derived here.
    """
    e = float(_moved(eta))
    bias = sampler_log_bias(variance, steps)
    base, auxiliary = MeanVariance(0.0, variance), MeanVariance(0.0, variance * math.exp(e * bias))

    def error(omega: float) -> float:
        return math.log(float(sampler_law(base, auxiliary, omega, steps).variance) / variance)

    for upper in (1.25 / e, 2 / e, 4 / e):
        if bias * error(upper) < 0:
            return float(brentq(error, 0.0, upper, xtol=1e-13, rtol=1e-13))
    raise ArithmeticError(f"no omega in [0, {4 / e:g}] corrects a log bias of {bias:g} per pass at eta = {eta}")


def guided_variance(eta: Real, log_bias: Real, omega: Real, fraction: Real) -> Real:
    """Where a guided loop's training variance settles, over V_0: n infinite, a share `fraction` f of it the last samples.

        V <- (1 - f) V_0 + f V exp(b (1 - omega eta)),     V = (1 - f) V_0 / (1 - f exp(b (1 - omega eta)))

    b = log_bias: what the sampler adds to ln V; eta: how much of it the auxiliary has learned, so that guidance takes
    omega eta b away. inf where the loop has no limit (`stable_omega`).
    Raises ValueError for a fraction outside [0, 1]. Derived here.
    """
    f = _share(fraction)
    gain = f * np.exp(np.asarray(log_bias, dtype=float) * (1 - np.asarray(omega, dtype=float) * np.asarray(eta, dtype=float)))
    with np.errstate(divide="ignore"):
        return _real(np.where(gain < 1, (1 - f) / np.abs(1 - gain), np.inf))


def stable_omega(eta: Real, log_bias: Real, fraction: Real) -> tuple[Real, Real]:
    """The open range of omega in which `guided_variance` has a limit: f exp(b (1 - omega eta)) < 1.

        b < 0, a sampler that shrinks:   omega < (1 + ln(1 / f) / |b|) / eta
        b > 0, one that spreads:         omega > (1 - ln(1 / f) / b) / eta

    Beyond it each generation spreads (or b > 0: fails to be held) by more than real data pull back. It shrinks as eta or |b|
    grow, and both do when a replicate spreads: points far out lengthen the way through the sampler, and a larger bias is a
    clearer signal to tune on. So a loop above omega = 1 / eta can run away long before its measured eta leaves the range.
    eta and b may be those that `selfloop.diffusion.guide.measured_eta` gives.
    Raises ValueError for a fraction outside [0, 1]. Derived here.
    """
    f, b = _share(fraction), np.asarray(log_bias, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        edge = (1 + np.log(1 / f) / -b) / np.asarray(eta, dtype=float)
        low, high = np.where(b > 0, edge, -np.inf), np.where(b < 0, edge, np.inf)
    return _real(low), _real(high)


def sims_log_std(
    n: int, n_synthetic: int, omega: Real, eta: float = 1.0, estimator: Estimator = "maximum_likelihood"
) -> MeanVariance:
    """Mean and variance of ln(s_0 / s*) for SIMS on an exact Gaussian fit to n real points, exact ODE, s* the true value.

        E = b(n) - omega eta b(n_s),   Var = psi_1((n-1)/2) / 4 + (omega eta)^2 psi_1((n_s-1)/2) / 4,
        b(m) = [psi((m-1)/2) + ln(2/D)] / 2,   about -1/m (maximum likelihood)

    The auxiliary moved a fraction eta toward the fit to n_s samples of the base. For n_s = n, omega eta = 1 removes E
    exactly, yet Var, of order 1/n against E^2 of 1/n^2, doubles: without a systematic bias guidance does not help.
    Raises ValueError for sizes < 2 or eta outside (0, 1]. Derived here.
    """
    moved = np.asarray(omega, dtype=float) * float(_moved(eta))
    first, second = (fully_synthetic_log_std(size, 1, estimator=estimator) for size in (n, n_synthetic))
    return MeanVariance(_real(first.mean - moved * second.mean), _real(first.variance + moved**2 * second.variance))


def sims_unbiased_omega(n: int, n_synthetic: int, eta: float = 1.0, estimator: Estimator = "maximum_likelihood") -> float:
    """The omega at which E ln(s_0 / s*) = 0 in `sims_log_std`: b(n) / (eta b(n_s)), about n_s / (eta n). Raises as there."""
    first, second = (fully_synthetic_log_std(size, 1, estimator=estimator).mean for size in (n, n_synthetic))
    return float(first) / (float(second) * float(_moved(eta)))


def sims_std_error(
    n: int, n_synthetic: int, omega: float, eta: float = 1.0, estimator: Estimator = "maximum_likelihood"
) -> float:
    """E (s_0 / s* - 1)^2, the part of E W_2^2 / V_0 that the spread contributes, for SIMS as in `sims_log_std`.

        E (s_0/s*)^p = g(n, p) g(n_s, -p omega eta),     g(m, p) = (2/D)^(p/2) Gamma((m-1+p)/2) / Gamma((m-1)/2)

    Raises ValueError for sizes < 2, eta outside (0, 1], or n_s - 1 <= 2 omega eta, where the moment is infinite. Derived
    here.
    """
    moved = omega * float(_moved(eta))
    sizes = np.array([_sizes(size, 1, least=2)[0] for size in (n, n_synthetic)])
    if not sizes[1] - 1 > 2 * moved:
        raise ValueError(f"n_synthetic - 1 must exceed 2 omega eta = {2 * moved:g}, got n_synthetic = {n_synthetic}")

    def moment(p: float) -> float:
        powers = np.array([p, -p * moved])
        half = (sizes - 1) / 2
        return math.exp(
            np.sum(powers / 2 * np.log(2 / _divisor(sizes, estimator)) + gammaln(half + powers / 2) - gammaln(half))
        )

    return moment(2.0) - 2 * moment(1.0) + 1


def neon_gaussian(
    base: MeanVariance, auxiliary: MeanVariance, omega: float, parametrisation: Literal["std", "log_std", "precision"]
) -> MeanVariance:
    """Neon, theta = (1 + omega) theta_base - omega theta_auxiliary, for a Gaussian with parameters mu and the named one.

        std         s = (1+w) s_r - w s_s          log_std     V = A (A/B)^w, the guided ODE's
        precision   1/V = (1+w)/A - w/B, that of the product of experts

    The mean is linear in all three, (1+w) mu_r - w mu_s. So Neon has the variance of SIMS in ln s alone.
    Raises ValueError where the spread would not be positive, for variances <= 0 and for another parametrisation.
    Source: Alemohammad et al. (2025), arXiv 2510.03597 (the merge); derived here.
    """
    a, b, rho, shift, w = _guided(base, auxiliary, omega)
    mean = _real(base.mean - w * shift)
    if parametrisation == "log_std":
        return MeanVariance(mean, _real(a * rho**w))
    power = {"std": 0.5, "precision": -1.0}.get(parametrisation)
    if power is None:
        raise ValueError(f"parametrisation must be 'std', 'log_std' or 'precision', got {parametrisation!r}")
    theta = (1 + w) * a**power - w * b**power
    if not np.all(theta > 0):
        raise ValueError(f"omega = {omega} extrapolates the {parametrisation} to {theta}, which is not positive")
    return MeanVariance(mean, _real(theta ** (1 / power)))


def neon_covariance_gradient(n: int, d: int) -> float:
    """gamma > 0 in E grad_Sigma L = -gamma Sigma*^(-1): more variance than maximum likelihood lowers the population loss.

        gamma = n (d + 2) (2n - d - 3) / (2 (n - d - 1) (n - d - 2) (n - d - 4))

    L(mu, Sigma) = E -ln p under the true law, at the maximum-likelihood fit of n points in d dimensions.
    Raises ValueError for n <= d + 4. Derived here, from E W^(-2) = (v-1) / ((v-d)(v-d-1)(v-d-3)), W ~ Wishart(I, v = n-1).
    At d = 1 it equals n (d + 5) / (2 (n-d-2) (n-d-4)), the form in Alemohammad et al. (2025), arXiv 2510.03597; for d > 1
    it is larger.
    """
    size = float(_sizes(n, 1, least=_dimension(d) + 5)[0])
    return size * (d + 2) * (2 * size - d - 3) / (2 * (size - d - 1) * (size - d - 2) * (size - d - 4))


# ---------------------------------------------------------------------------------------------------------------------
# Distribution control: guidance away from an auxiliary that was tuned on the base's samples with other shares of the classes
#
#     pi, sigma, tau   shares of the classes: of the base's samples, of what the auxiliary is tuned on, and wanted
#     odds             p_r^(1+w) p_s^(-w) of classes that do not overlap has shares prop. to pi (pi / s)^w, s the auxiliary's.
#                      A fraction eta of the way in log odds, s prop. to pi^(1-eta) sigma^eta, makes it pi (pi / sigma)^(w eta)
#     shares           Where noise hides the class, D = (1+w) sum_c pi_c m_c - w sum_c s_c m_c, m_c the class means: that of
#                      shares (1+w) pi - w s, and there the class is decided. s = pi + eta (sigma - pi) makes it
#                      pi + w eta (pi - sigma)
#
# Samplers go through all levels of noise and follow `shares`: see `guided_class_flow`. To first order in sigma - pi both agree.
# ---------------------------------------------------------------------------------------------------------------------


def control_shares(
    pi: Sequence[float] | Array,
    tau: Sequence[float] | Array,
    omega: float,
    eta: float = 1.0,
    extrapolate: Extrapolate = "shares",
) -> Array:
    """sigma, the shares on which to tune the auxiliary so that guidance of strength omega turns shares pi into tau.

        shares   sigma = pi + (pi - tau) / (omega eta)
        odds     sigma prop. to pi (pi / tau)^(1 / (omega eta))

    Raises ValueError for shares that are not positive or do not add to one, omega <= 0, eta outside (0, 1], and where tau is
    out of reach: `shares` has tau_c <= (1 + omega eta) pi_c. Derived here.
    """
    p, t, w = _control(pi, tau, omega, eta, extrapolate)
    if extrapolate == "odds":
        logs = np.log(p) + (np.log(p) - np.log(t)) / w
        sigma = np.exp(logs - logs.max())
        return np.asarray(sigma / sigma.sum())
    sigma = p + (p - t) / w
    if sigma.min() < -1e-12:
        least = (t / p - 1).max() / eta
        raise ValueError(f"tau = {tau} is out of reach of omega = {omega}; omega must be at least {least:.3g}")
    return np.maximum(sigma, 0.0)


def controlled_shares(
    pi: Sequence[float] | Array,
    sigma: Sequence[float] | Array,
    omega: float,
    eta: float = 1.0,
    extrapolate: Extrapolate = "shares",
) -> Array:
    """tau, the shares that guidance away from an auxiliary tuned on shares sigma gives: the inverse of `control_shares`.

        shares   tau = pi + omega eta (pi - sigma)              odds     tau prop. to pi (pi / sigma)^(omega eta)

    Raises ValueError as there, and where `shares` would make a share negative. Derived here.
    """
    p, s, w = _control(pi, sigma, omega, eta, extrapolate)
    if extrapolate == "odds":
        logs = np.log(p) + w * (np.log(p) - np.log(s))
        tau = np.exp(logs - logs.max())
        return np.asarray(tau / tau.sum())
    tau = p + w * (p - s)
    if tau.min() < -1e-12:
        raise ValueError(f"omega = {omega} extrapolates the shares to {tau}, which are not all positive")
    return np.maximum(tau, 0.0)


def guided_class_flow(pi: Sequence[float] | Array, sigma: Sequence[float] | Array, omega: float) -> Array:
    """Shares of two classes, each a point, after the guided probability-flow ODE; base and auxiliary have shares pi and sigma.

    With y = x / noise level on the line through both points, t = half their distance / noise level, y(0) ~ N(0, 1),

        dy/dt = (1 + w) tanh(t y + a / 2) - w tanh(t y + b / 2),     a = ln(pi_1 / pi_0),  b = ln(sigma_1 / sigma_0)

    and y -> inf is class 1. On the trajectory between the classes t y -> u where the right side is 0; there is one such u: with
    k = tanh((a - b) / 2), tanh(u + b / 2) = -2 (1 + w) k / (1 + (1 + 4 w (1 + w) k^2)^1/2). It is integrated back to t = 0, and
    the share of class 1 is Phi(-y(0)). If (1 + w) pi - w sigma is 1/2 this is y = 0, and `controlled_shares` is exact. Else the
    shares are nearer to 1/2: with pi_1 = .2, w = 3 a tau_1 of .3, .5, .7 becomes .307, .5, .638 (by `odds` .287, .402, .485).
    Raises ValueError for other than two classes and as `controlled_shares`. Derived here.
    """
    p, s, w = _control(pi, sigma, omega, 1.0, "shares")
    if len(p) != 2:
        raise ValueError(f"the flow is known for two classes, got {len(p)}")
    a, b = (math.log(q[1]) - math.log(max(q[0], TINY)) if q[1] > 0 else math.log(TINY) for q in (p, s))
    k = math.tanh((a - b) / 2)
    tanh_b = -2 * (1 + w) * k / (1 + math.sqrt(1 + 4 * w * (1 + w) * k**2))
    end = math.atanh(w * tanh_b / (1 + w)) - a / 2

    def slope(t: float, y: Array) -> Array:
        return np.asarray((1 + w) * np.tanh(t * y + a / 2) - w * np.tanh(t * y + b / 2))

    last = 100.0
    found = solve_ivp(slope, (last, 0.0), [end / last], method="DOP853", rtol=1e-10, atol=1e-12)
    share = float(ndtr(-found.y[0, -1]))
    return np.array([1 - share, share])


# ---------------------------------------------------------------------------------------------------------------------
# Arguments and recursions
# ---------------------------------------------------------------------------------------------------------------------


def _real(value: ArrayLike) -> Real:
    array = np.asarray(value, dtype=float)
    return float(array) if array.ndim == 0 else array


def _times(t: Times) -> NDArray[np.int64]:
    times = np.asarray(t)
    if times.size == 0 or not np.issubdtype(times.dtype, np.integer) or times.min() < 1:
        raise ValueError(f"t counts fits and must be an integer of at least 1, got {t}")
    return times.astype(np.int64)


def _last(t: Times) -> int:
    return int(_times(t).max())


def _at(series: NDArray[np.floating[Any]], t: Times) -> Real:
    return _real(series[_times(t) - 1])


def _sizes(n: Sizes, t: Times, least: int) -> Array:
    """One size for each fit up to the last of t; the last size given goes on."""
    given = np.atleast_1d(np.asarray(n))
    if given.size == 0 or not np.issubdtype(given.dtype, np.integer) or given.min() < least:
        raise ValueError(f"n must be at least {least} and an integer, got {n}")
    return np.asarray(given[np.minimum(np.arange(_last(t)), given.size - 1)], dtype=float)


def _is_maximum_likelihood(estimator: Estimator) -> bool:
    if estimator not in ("maximum_likelihood", "unbiased"):
        raise ValueError(f"estimator must be 'maximum_likelihood' or 'unbiased', got {estimator!r}")
    return estimator == "maximum_likelihood"


def _divisor(sizes: Array, estimator: Estimator) -> Array:
    return sizes if _is_maximum_likelihood(estimator) else sizes - 1


def _kept(sizes: Array, estimator: Estimator) -> Array:
    return (sizes - 1) / _divisor(sizes, estimator)


def _bias_powers(sizes: Array, bias: float) -> Array:
    _positive(bias=bias)
    return np.asarray(bias ** np.arange(float(len(sizes))))


def _positive(**values: Real) -> None:
    for name, value in values.items():
        if not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name} must be positive, got {value}")


def _non_negative(**values: Real) -> None:
    for name, value in values.items():
        if not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name} must be at least 0, got {value}")


def _probability(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")


def _count(**values: int) -> None:
    for name, value in values.items():
        if not (isinstance(value, int | np.integer) and value >= 1):
            raise ValueError(f"{name} must be an integer of at least 1, got {value}")


def _dimension(d: int) -> int:
    _count(d=d)
    return d


def _share(fraction: Real) -> Array:
    f = np.asarray(fraction, dtype=float)
    if not ((f >= 0) & (f <= 1)).all():
        raise ValueError(f"fraction must lie in [0, 1], got {fraction}")
    return f


def _moved(eta: Real) -> Array:
    e = np.asarray(eta, dtype=float)
    if not (np.all(e > 0) and np.all(e <= 1)):
        raise ValueError(f"eta must lie in (0, 1], got {eta}")
    return e


def _law(name: str, values: Sequence[float] | Array) -> Array:
    p = np.asarray(values, dtype=float)
    if p.ndim != 1 or not (p >= 0).all() or not math.isclose(p.sum(), 1.0, abs_tol=1e-9):
        raise ValueError(f"{name} must be a vector >= 0 that adds to one, got {values}")
    return p


def _control(
    pi: Sequence[float] | Array, other: Sequence[float] | Array, omega: float, eta: float, extrapolate: Extrapolate
) -> tuple[Array, Array, float]:
    """Both shares, positive (the second may be 0 for `shares`), and omega eta."""
    p, q = _law("pi", pi), _law("shares", other)
    if extrapolate not in ("shares", "odds"):
        raise ValueError(f"extrapolate must be 'shares' or 'odds', got {extrapolate!r}")
    if len(p) != len(q):
        raise ValueError(f"shares must be of the same classes, got {len(p)} and {len(q)}")
    _positive(pi=p, omega=omega)
    if extrapolate == "odds":
        _positive(shares=q)
    return p, q, omega * float(_moved(eta))


def _accumulated(sizes: Array, estimator: Estimator) -> Array:
    pool = np.cumsum(sizes)
    if _is_maximum_likelihood(estimator):
        return np.asarray(np.cumprod(1 - sizes / pool**2))
    return np.asarray(np.cumprod(np.append(1.0, 1 - sizes[1:] / (pool[1:] * (pool[1:] - 1)))))


def _mixture(
    n_real: int, n_synthetic: int, bias: float, estimator: Estimator, real_weight: float | None
) -> tuple[Array, float, float]:
    """Matrix of (squared mean, variance) from one generation to the next, the real weight w and the estimator's factor c."""
    _sizes(n_real, 1, least=2)
    _count(n_synthetic=n_synthetic)
    _positive(bias=bias)
    w = n_real / (n_real + n_synthetic) if real_weight is None else real_weight
    if not 0 < w < 1:
        raise ValueError(f"real_weight must lie strictly between 0 and 1, got {real_weight}")
    u = 1 - w
    c = 1.0 if _is_maximum_likelihood(estimator) else 1 / (1 - w**2 / n_real - u**2 / n_synthetic)
    matrix = [[u**2, u**2 * bias / n_synthetic], [c * (u - u**2), c * bias * (u - u**2 / n_synthetic)]]
    return np.array(matrix), w, c


def _linear(matrix: Array, offset: Array, start: Array, t: Times) -> LoopMoments:
    states = [start]
    for _ in range(_last(t) - 1):
        states.append(matrix @ states[-1] + offset)
    series = np.array(states)
    return LoopMoments(_at(series[:, 0], t), _at(series[:, 1], t))


def _fixed_point(matrix: Array, offset: Array, bias: float) -> LoopMoments:
    radius = float(np.abs(np.linalg.eigvals(matrix)).max())
    if not radius < 1:
        raise ValueError(f"the loop has no limit at bias = {bias}: its moments grow by {radius:g} a generation")
    error, variance = np.linalg.solve(np.eye(2) - matrix, offset)
    return LoopMoments(float(error), float(variance))


def _regression_error(n: int, d: int) -> float:
    if not n > _dimension(d) + 1:
        raise ValueError(f"n must exceed d + 1 = {d + 1} for a finite error, got {n}")
    return d / (n - d - 1)


def _guided(base: MeanVariance, auxiliary: MeanVariance, omega: Real) -> tuple[Array, Array, Array, Array, Array]:
    """A, B, rho = A / B, mu_s - mu_r and omega as arrays."""
    _positive(variance=base.variance)
    _positive(auxiliary_variance=auxiliary.variance)
    a, b = np.asarray(base.variance, dtype=float), np.asarray(auxiliary.variance, dtype=float)
    return a, b, a / b, np.asarray(auxiliary.mean, dtype=float) - base.mean, np.asarray(omega, dtype=float)
