"""Every closed form against numbers known beforehand and against a loop written out by hand.

A Monte-Carlo comparison asks that the sample mean lie within 4 standard errors of the formula: false-alarm rate 6e-5 each, so
below 1 % for the some 150 of this file together; seeds are fixed. `close_on_average` also asks that the standard error be small
enough to tell the formula from its neighbours, 1 % of it unless said otherwise: no comparison passes for want of runs.
"""

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import minimize_scalar

from selfloop import theory
from selfloop.theory import MeanVariance, Steps

ESTIMATORS = ("maximum_likelihood", "unbiased")


def close_on_average(samples, expected, resolution=0.01):
    error = samples.std(ddof=1) / math.sqrt(samples.size)
    assert error < resolution * abs(expected), f"standard error {error:.3g} is too large to test {expected:.5g}"
    assert abs(samples.mean() - expected) < 4 * error, f"{samples.mean():.5g} +- {error:.2g} against {expected:.5g}"


def fit(x, estimator="maximum_likelihood", weights=None):
    """Mean and variance along the last axis; weights add to one."""
    weights = np.full(x.shape[-1], 1 / x.shape[-1]) if weights is None else weights
    mean = x @ weights
    variance = (x - mean[..., None]) ** 2 @ weights
    return mean, variance if estimator == "maximum_likelihood" else variance / (1 - (weights**2).sum())


def draw(mean, variance, n, rng):
    return mean[:, None] + np.sqrt(variance)[:, None] * rng.standard_normal((len(mean), n))


# --- distance


def test_w2_between_commuting_gaussians_is_that_of_their_standard_deviations():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    a, b = np.array([1.0, 4.0, 0.25]), np.array([2.0, 1.0, 0.5])
    value = theory.gaussian_w2_squared([0, 0, 1], turn @ np.diag(a) @ turn.T, [0, 2, 0], turn @ np.diag(b) @ turn.T)
    assert value == pytest.approx(5 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_w2_in_the_plane_matches_the_determinant_formula():
    s, r = np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[1.2, -0.3], [-0.3, 0.7]])
    trace_of_root = math.sqrt(np.trace(s @ r) + 2 * math.sqrt(np.linalg.det(s @ r)))
    value = theory.gaussian_w2_squared([0, 0], s, [0, 0], r)
    assert value == pytest.approx(np.trace(s) + np.trace(r) - 2 * trace_of_root)


# --- fully synthetic


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("sizes", "bias", "t"), [([10], 1.0, 1), ([10], 1.0, 6), ([7, 12, 30], 1.0, 4), ([12], 0.8, 5)])
def test_fully_synthetic_loop(sizes, bias, t, estimator, runs=40_000):
    rng = np.random.default_rng(1)
    n = [sizes[min(k, len(sizes) - 1)] for k in range(t)]
    mean, variance = fit(rng.standard_normal((runs, n[0])), estimator)
    for size in n[1:]:
        mean, variance = fit(draw(mean, bias * variance, size, rng), estimator)
    args = (sizes, t, bias, estimator)
    log_std, law = 0.5 * np.log(variance), theory.fully_synthetic_log_std(*args)
    close_on_average(variance, theory.fully_synthetic_variance(*args))
    close_on_average(np.sqrt(variance), theory.fully_synthetic_std(*args))
    close_on_average(log_std, law.mean, 0.025)
    close_on_average((log_std - law.mean) ** 2, law.variance)
    close_on_average(mean**2, theory.fully_synthetic_mean_error(*args))
    close_on_average(mean**2 + (np.sqrt(variance) - 1) ** 2, theory.fully_synthetic_w2_squared(*args))


def test_fully_synthetic_log_std_of_a_long_loop(n=10, t=100, runs=40_000):
    """Where averages of V_t have long become useless, ln s_t is as tame as ever: here from chi^2 draws."""
    chi2 = np.random.default_rng(2).chisquare(n - 1, (runs, t))
    log_std = 0.5 * np.log(chi2 / (n - 1)).sum(axis=1)
    law = theory.fully_synthetic_log_std(n, t, estimator="unbiased")
    close_on_average(log_std, law.mean)
    close_on_average((log_std - law.mean) ** 2, law.variance)
    assert law.mean == pytest.approx(-5.760, abs=2e-3)
    assert np.exp(2 * log_std).mean() < 0.8, "E V = 1, but no sample average shows it"


def test_fully_synthetic_known_values():
    assert theory.fully_synthetic_w2_squared(50, 100) == pytest.approx(1.5627, abs=5e-5)
    assert theory.fully_synthetic_w2_squared(50, [10, 100], estimator="unbiased") == pytest.approx([0.2995, 2.7992], abs=5e-5)
    assert theory.fully_synthetic_std([10, 100], 1, estimator="unbiased") == pytest.approx(0.9727, abs=5e-5)
    assert theory.fully_synthetic_std(100, 1, estimator="unbiased") == pytest.approx(0.9975, abs=5e-5)
    assert 2 * theory.fully_synthetic_log_std(10, 1, estimator="unbiased").mean == pytest.approx(-0.1152, abs=5e-5)
    assert 2 * theory.fully_synthetic_log_std(100, 1, estimator="unbiased").mean == pytest.approx(-0.0101, abs=5e-5)


def test_fully_synthetic_w2_saturates_at_twice_the_variance_for_maximum_likelihood_only():
    t = np.array([10, 100, 10_000])
    assert theory.fully_synthetic_w2_squared(20, t) == pytest.approx(2 * (1 - theory.fully_synthetic_std(20, t)))
    assert theory.fully_synthetic_w2_squared(20, 10_000) == pytest.approx(2)
    assert theory.fully_synthetic_w2_squared(20, 10_000, estimator="unbiased") == pytest.approx(10_000 / 20 + 2)
    assert theory.fully_synthetic_w2_squared(100_000, 3) == pytest.approx(1.5 * 3 / 100_000, rel=1e-4)


def test_unbiased_w2_stays_bounded_when_sizes_grow_fast_enough():
    slow, fast = ([10 * k**power for k in range(1, 4001)] for power in (1, 2))
    late = {
        name: theory.fully_synthetic_w2_squared(n, [2000, 4000], estimator="unbiased")
        for name, n in (("k", slow), ("k2", fast))
    }
    assert np.ptp(late["k2"]) < 1e-4
    assert np.ptp(late["k"]) > 0.05


def test_bias_drives_the_mean_no_further_than_the_sum_of_its_powers():
    t = np.arange(1, 9)
    powers = np.cumsum(0.7 ** np.arange(8.0))
    assert theory.fully_synthetic_mean_error(25, t, 0.7, "unbiased") == pytest.approx(powers / 25)
    assert theory.fully_synthetic_variance(25, t, 0.7, "unbiased") == pytest.approx(0.7 ** (t - 1.0))


def test_collapse_bound_holds_and_implies_the_exponential_one(n=8, runs=20_000):
    rng = np.random.default_rng(3)
    t = np.array([1, 10, 40, 80])
    log_std = np.cumsum(0.5 * np.log(rng.chisquare(n - 1, (runs, 80)) / (n - 1)), axis=1)[:, t - 1]
    for epsilon in (0.1, 0.5):
        bound = theory.collapse_bound(n, t, epsilon, "unbiased")
        assert (np.mean(log_std > math.log(epsilon), axis=0) <= bound).all()
        assert (bound <= np.exp(-t / (4 * n)) / epsilon).all()
        assert bound[-1] < 0.2 / epsilon, "a bound that says nothing"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_determinant_of_a_fully_synthetic_loop(estimator, n=12, d=3, t=3, bias=0.9, runs=30_000):
    rng = np.random.default_rng(4)
    root = np.broadcast_to(np.eye(d), (runs, d, d))
    for k in range(t):
        x = (1 if k == 0 else math.sqrt(bias)) * rng.standard_normal((runs, n, d)) @ np.swapaxes(root, 1, 2)
        x = x - x.mean(axis=1, keepdims=True)
        cov = np.swapaxes(x, 1, 2) @ x / (n if estimator == "maximum_likelihood" else n - 1)
        root = np.linalg.cholesky(cov)
    det = np.linalg.det(cov)
    law = theory.fully_synthetic_log_det(n, t, d, bias, estimator)
    close_on_average(det, theory.fully_synthetic_det(n, t, d, bias, estimator), 0.02)
    close_on_average(np.log(det), law.mean)
    close_on_average((np.log(det) - law.mean) ** 2, law.variance)


def test_determinant_in_one_dimension_is_the_variance():
    t = np.arange(1, 6)
    assert theory.fully_synthetic_det(12, 1, 3) == pytest.approx(0.5729, abs=5e-5)
    for estimator in ESTIMATORS:
        args = (9, t, 1, 0.8, estimator)
        assert theory.fully_synthetic_det(*args) == pytest.approx(theory.fully_synthetic_variance(9, t, 0.8, estimator))
        assert theory.fully_synthetic_log_det(*args).mean == pytest.approx(
            2 * theory.fully_synthetic_log_std(9, t, 0.8, estimator).mean
        )


# --- accumulate


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sizes", [[4] * 8, [3, 9, 2, 5]])
def test_accumulate_loop(sizes, estimator, runs=100_000):
    rng = np.random.default_rng(5)
    pool = rng.standard_normal((runs, sizes[0]))
    for size in sizes[1:]:
        pool = np.hstack([pool, draw(*fit(pool, estimator), size, rng)])
    mean, variance = fit(pool, estimator)
    close_on_average(variance, theory.accumulate_variance(sizes, len(sizes), estimator))
    close_on_average(mean**2, theory.accumulate_mean_error(sizes, len(sizes), estimator))


@pytest.mark.parametrize(("n", "at_100", "limit"), [(4, 0.6382, 0.6366), (10, 0.8443, 0.8434), (50, 0.9676, 0.9674)])
def test_accumulate_known_values(n, at_100, limit):
    assert theory.accumulate_variance(n, 100) == pytest.approx(at_100, abs=6e-5)
    assert theory.accumulate_variance_limit(n) == pytest.approx(limit, abs=5e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [2, 4, 10])
def test_accumulate_approaches_its_limit_like_one_over_n_t(n, estimator):
    limit = theory.accumulate_variance_limit(n, estimator)
    gaps = theory.accumulate_variance(n, [1000, 100_000], estimator) / limit - 1
    assert gaps * n * [1000, 100_000] == pytest.approx(1, rel=0.01)


def test_accumulate_costs_at_most_pi_squared_over_six():
    assert theory.accumulate_mean_error(1000, 100_000) * 1000 == pytest.approx(math.pi**2 / 6, rel=1e-3)
    assert theory.accumulate_variance(10, 100, "unbiased") == pytest.approx(0.9361, abs=6e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_accumulate_subsample_loop(estimator, n=5, t=6, runs=100_000):
    rng = np.random.default_rng(6)
    pool = rng.standard_normal((runs, n))
    for _ in range(t - 1):
        pool = np.hstack([pool, draw(*fit(rng.permuted(pool, axis=1)[:, :n], estimator), n, rng)])
    mean, variance = fit(rng.permuted(pool, axis=1)[:, :n], estimator)
    moments = theory.accumulate_subsample_moments(n, t, estimator)
    close_on_average(variance, moments.variance)
    close_on_average(mean**2, moments.mean_error)


@pytest.mark.parametrize(("n", "plateau"), [(5, 0.5347), (20, 0.8617)])
def test_accumulate_subsample_levels_off(n, plateau):
    variance = theory.accumulate_subsample_moments(n, [20_000, 40_000]).variance
    assert variance == pytest.approx(plateau, abs=1e-4)
    assert theory.accumulate_variance_limit(n) > variance[-1] > 0.5, "forgetting costs more than keeping"


# --- fresh and augment


def mixing_loop(kind, n_real, n_synthetic, t, bias, estimator, weight, runs, rng):
    total = n_real + n_synthetic
    w = n_real / total if weight is None else weight
    weights = np.repeat([w / n_real, (1 - w) / n_synthetic], [n_real, n_synthetic])
    real = rng.standard_normal((runs, n_real))
    mean, variance = fit(real, estimator)
    for _ in range(t - 1):
        real = rng.standard_normal((runs, n_real)) if kind == "fresh" else real
        mean, variance = fit(np.hstack([real, draw(mean, bias * variance, n_synthetic, rng)]), estimator, weights)
    return mean, variance


@pytest.mark.parametrize("kind", ["fresh", "augment"])
@pytest.mark.parametrize(
    ("n_real", "n_synthetic", "bias", "estimator", "weight"),
    [
        (5, 15, 1.0, "maximum_likelihood", None),
        (10, 10, 0.5, "maximum_likelihood", None),
        (4, 8, 1.2, "unbiased", None),
        (8, 12, 0.9, "maximum_likelihood", 0.6),
        (6, 3, 0.9, "unbiased", 0.3),
    ],
)
def test_fresh_and_augmentation_loops(kind, n_real, n_synthetic, bias, estimator, weight, runs=100_000):
    formula = {"fresh": theory.fresh_moments, "augment": theory.augment_moments}[kind]
    for t in (2, 5):
        args = (n_real, n_synthetic, t, bias, estimator, weight)
        mean, variance = mixing_loop(kind, *args, runs, np.random.default_rng(t))
        close_on_average(mean**2, formula(*args).mean_error)
        close_on_average(variance, formula(*args).variance)


def test_fresh_and_augmentation_limits_known_values():
    assert theory.fresh_fixed_point(50, 450).mean_error == pytest.approx(0.01043, abs=5e-6)
    assert theory.fresh_fixed_point(10, 10, 0.5).variance == pytest.approx(0.63736, abs=5e-6)
    assert theory.fresh_fixed_point(50, 450, 0.9).variance == pytest.approx(0.52341, abs=5e-6)
    assert theory.augment_limit(50, 450).mean_error == pytest.approx(0.02920, abs=5e-6)
    assert theory.augment_limit(50, 450).variance == pytest.approx(0.9708, abs=5e-5)
    assert [theory.augment_ratio_limit(500, n) for n in (125, 250, 500, 1000)] == pytest.approx([7 / 6, 1.25, 4 / 3, 1.4])


@pytest.mark.parametrize(("n_real", "n_synthetic"), [(50, 450), (20, 20), (7, 1)])
def test_fresh_and_augmentation_limits_in_closed_form(n_real, n_synthetic):
    total = n_real + n_synthetic
    f = n_synthetic / total
    fresh, augment = theory.fresh_fixed_point(n_real, n_synthetic), theory.augment_limit(n_real, n_synthetic)
    assert fresh.mean_error == pytest.approx(1 / (total * (1 - f**2) + f))
    assert theory.effective_sample_size(n_real, n_synthetic) == pytest.approx(total * (1 - f**2) + f)
    below, kept = 1 - f**2 + f / total, 1 - 1 / n_real
    assert augment.mean_error == pytest.approx(1 / n_real + kept * f / total / below)
    assert augment.variance == pytest.approx(kept * (1 - f**2) / below)
    assert fresh.mean_error < 1 / n_real < augment.mean_error


def test_limits_are_where_trajectories_end():
    for bias, estimator, weight in [(1.0, "maximum_likelihood", None), (0.7, "unbiased", 0.4), (1.3, "unbiased", None)]:
        args = (10, 14, bias, estimator, weight)
        late = (10, 14, 400, bias, estimator, weight)
        assert theory.fresh_moments(*late) == pytest.approx(theory.fresh_fixed_point(*args), rel=1e-10)
        assert theory.augment_moments(*late) == pytest.approx(theory.augment_limit(*args), rel=1e-10)
        assert theory.fresh_moments(*late, n_initial=1000) == pytest.approx(theory.fresh_fixed_point(*args), rel=1e-10)
    assert theory.fresh_moments(10, 14, 1, n_initial=1000).mean_error == pytest.approx(1e-3)


def test_large_samples_leave_the_bias_alone():
    for fraction, bias in [(0.5, 0.5), (0.9, 0.9), (0.25, 1.5)]:
        limit = theory.fresh_variance_limit(fraction, bias)
        for formula in (theory.fresh_fixed_point, theory.augment_limit):
            gaps = [formula(int(n * (1 - fraction)), int(n * fraction), bias).variance / limit - 1 for n in (10_000, 20_000)]
            assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)
            assert abs(gaps[1]) < 2e-3


def test_effective_sample_size_lies_between_one_and_two_real_sets():
    for n_real, n_synthetic in [(10_000, 5_000), (10_000, 90_000)]:
        ratio = theory.effective_sample_size(n_real, n_synthetic) / n_real
        assert ratio == pytest.approx((n_real + 2 * n_synthetic) / (n_real + n_synthetic), rel=1e-4)
    assert theory.effective_sample_size(100, 900, bias=0.5) > theory.effective_sample_size(100, 900)
    assert theory.fresh_fixed_point(20, 20).mean_error == pytest.approx(1 / 30, rel=0.02)


def test_augmentation_error_to_leading_order():
    t = np.array([1, 2, 5, 50])
    gaps = []
    for scale in (1, 2):
        n_real, n_synthetic = 500 * scale, 1000 * scale
        error = theory.augment_mean_error(n_real, n_synthetic, t)
        gaps.append(theory.augment_moments(n_real, n_synthetic, t).mean_error / error - 1)
        assert error[-1] / error[0] == pytest.approx(theory.augment_ratio_limit(n_real, n_synthetic))
    assert gaps[0][1:] / gaps[1][1:] == pytest.approx(2, rel=0.01)


def test_the_best_weight_of_real_data():
    for ratio, weight in [(0.25, 0.8284), (1.0, 0.6180), (4.0, 0.3904)]:
        found = minimize_scalar(
            lambda w, k=ratio: theory.weighted_mean_error(w, k), bounds=(0.01, 0.99), options={"xatol": 1e-10}
        )
        assert theory.optimal_real_weight(ratio) == pytest.approx(weight, abs=5e-5)
        assert found.x == pytest.approx(theory.optimal_real_weight(ratio), abs=1e-6)
        assert found.fun == pytest.approx(theory.optimal_real_weight(ratio), abs=1e-12)
        for n_real in (1000, 2000):
            exact = theory.fresh_fixed_point(n_real, int(ratio * n_real), real_weight=weight).mean_error * n_real
            assert exact == pytest.approx(theory.weighted_mean_error(weight, ratio), rel=3 / n_real)
    assert theory.optimal_real_weight(1.0) == pytest.approx(2 / (1 + math.sqrt(5)))


# --- kernel density estimates


@pytest.mark.parametrize("h", [0.5, 0.1])
def test_kde_loop(h, n=6, runs=60_000):
    rng = np.random.default_rng(8)
    rows = np.arange(runs)[:, None]
    data = rng.standard_normal((runs, n))
    for t in range(1, 8):
        if t in (1, 2, 7):
            mean, variance = fit(data)
            close_on_average(variance, theory.kde_variance(n, t, h))
            close_on_average(mean**2, theory.kde_mean_error(n, t, h))
        data = data[rows, rng.integers(0, n, (runs, n))] + h * rng.standard_normal((runs, n))


def test_kde_known_values_and_limit():
    assert theory.kde_variance(20, 10, 0.5) == pytest.approx(2.355, abs=5e-4)
    assert theory.kde_variance(20, 200, 0.5) == pytest.approx(4.750, abs=5e-4)
    assert theory.kde_variance_limit(20, 0.1) == pytest.approx(0.190)
    assert theory.kde_variance(20, 2000, 0.1) == pytest.approx(theory.kde_variance_limit(20, 0.1))
    assert np.diff(theory.kde_mean_error(20, [2000, 2001], 0.1)) == pytest.approx(0.01), "h^2 a generation"


@pytest.mark.parametrize("h", [0.5, [0.8, 0.4, 0.2]])
def test_accumulate_kde_loop(h, n=5, t=5, runs=60_000):
    rng = np.random.default_rng(9)
    rows = np.arange(runs)[:, None]
    pool = rng.standard_normal((runs, n))
    for k in range(t - 1):
        width = np.atleast_1d(h)[min(k, np.size(h) - 1)]
        pool = np.hstack([pool, pool[rows, rng.integers(0, pool.shape[1], (runs, n))] + width * rng.standard_normal((runs, n))])
    mean, variance = fit(pool)
    moments = theory.accumulate_kde_moments(n, t, h)
    close_on_average(variance, moments.variance)
    close_on_average(mean**2, moments.mean_error)


def test_accumulate_kde_grows_like_a_logarithm_unless_the_bandwidth_shrinks():
    t = np.array([100, 10_000])
    fixed = theory.accumulate_kde_moments(10, t, 0.3)
    harmonic = [sum(1 / k for k in range(1, last + 1)) for last in t]
    assert fixed.variance + fixed.mean_error == pytest.approx(1 + 0.09 * (np.array(harmonic) - 1))
    shrinking = theory.accumulate_kde_moments(10, t, [0.3 * k**-0.2 for k in range(1, 10_001)])
    assert np.diff(shrinking.variance) < np.diff(fixed.variance) / 5


# --- categories


def test_categories_drift(n=20, t=8, runs=60_000):
    rng = np.random.default_rng(10)
    p0 = np.array([0.5, 0.3, 0.15, 0.05])
    p = np.broadcast_to(p0, (runs, 4))
    for _ in range(t):
        p = rng.multinomial(n, p) / n
    close_on_average(1 - (p**2).sum(axis=1), theory.discrete_heterozygosity(1 - (p0**2).sum(), n, t))
    for k in range(4):
        close_on_average((p[:, k] - p0[k]) ** 2, theory.discrete_variance(p0[k], n, t), 0.03)


def test_heterozygosity_is_what_the_variances_leave():
    p, t, n = np.array([0.6, 0.3, 0.1]), 7, [30, 5]
    lost = sum(theory.discrete_variance(q, n, t) for q in p)
    assert theory.discrete_heterozygosity(1 - (p**2).sum(), n, t) == pytest.approx(1 - (p**2).sum() - lost)
    assert theory.discrete_heterozygosity(0.9, 100, 100) == pytest.approx(0.3294, abs=5e-5)


def binomial_chain(n):
    """Transition matrix of the number of copies of one category among n."""
    k = np.arange(n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) for j in k])
    p = (k / n)[1:-1, None]
    inside = np.exp(log_choose + k * np.log(p) + (n - k) * np.log1p(-p))
    return np.vstack([np.eye(n + 1)[:1], inside, np.eye(n + 1)[-1:]])


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_fixation_time_exceeds_that_of_the_exact_chain_by_a_third_of_ln_n(p):
    late = []
    for n in (100, 400):
        inner = binomial_chain(n)[1:-1, 1:-1]
        time = np.linalg.solve(np.eye(n - 1) - inner, np.ones(n - 1))[round(p * n) - 1]
        late.append(theory.discrete_fixation_time([p, 1 - p], n) - time)
    assert 0 < late[0] < 0.02 * time
    assert late[1] - late[0] == pytest.approx(math.log(4) / 3, abs=2e-3)
    assert theory.discrete_fixation_time([0.1] * 10, 100) == pytest.approx(189.6, abs=0.05)


def test_fixation_time_of_several_categories(n=300, runs=3000):
    """At this n the few generations that the diffusion limit adds are below the standard error."""
    rng = np.random.default_rng(11)
    p0 = np.array([0.5, 0.3, 0.2])
    p, time = np.broadcast_to(p0, (runs, 3)), np.zeros(runs)
    while (alive := p.max(axis=1) < 1).any():
        time += alive
        p = rng.multinomial(n, p) / n
    close_on_average(time, theory.discrete_fixation_time(p0, n), 0.015)


@pytest.mark.parametrize("copies", [1.0, 4.0])
def test_rare_categories_are_lost_like_branching_lineages(copies):
    t = np.arange(1, 13)
    lost, survives = theory.discrete_loss_probability(copies, t), theory.discrete_survival_bound(copies, t)
    errors = []
    for n in (200, 800):
        chain = binomial_chain(n)
        first = round(copies)
        law, exact = chain[first], []
        for _ in t:
            exact.append(law[0])
            law = law @ chain
        assert (1 - np.array(exact) > survives).all()
        errors.append(np.abs(np.array(exact) - lost).max())
    assert errors[1] < 2e-3
    assert errors[1] < errors[0] / 3
    assert (1 - lost >= survives).all()
    assert lost[0] == pytest.approx(math.exp(-copies))
    assert -np.log(theory.discrete_loss_probability(1.0, 5000)) * 5000 == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("composition", ["fixed", "random"])
def test_fresh_draws_keep_categories_alive(composition, n_real=8, n_synthetic=32, runs=40_000):
    rng = np.random.default_rng(12)
    p0 = np.full(5, 0.2)
    p = np.broadcast_to(p0, (runs, 5))
    total = n_real + n_synthetic
    for _ in range(40):
        if composition == "fixed":
            p = (rng.multinomial(n_real, p0, runs) + rng.multinomial(n_synthetic, p)) / total
        else:
            p = rng.multinomial(total, (n_real * p0 + n_synthetic * p) / total) / total
    close_on_average(1 - (p**2).sum(axis=1), theory.discrete_fresh_limit(0.8, n_real, n_synthetic, composition), 5e-4)


def test_fresh_category_limits():
    assert 1 - theory.discrete_fresh_limit(0.9, 40, 160, "random") == pytest.approx(0.11239, abs=5e-6)
    fixed = theory.discrete_fresh_limit(1.0, 50, 450)
    assert fixed == pytest.approx(theory.fresh_fixed_point(50, 450).variance), "a category's indicator is a law like any other"


def test_temperature_tilts_categories():
    p = np.array([0.5, 0.3, 0.2, 0.0])
    by_hand = p
    for _ in range(3):
        by_hand = np.where(by_hand > 0, by_hand ** (1 / 0.8), 0)
        by_hand = by_hand / by_hand.sum()
    assert theory.tempered_probabilities(p, 0.8, 3) == pytest.approx(by_hand)
    assert theory.tempered_probabilities(p, 0.5, 40) == pytest.approx([1, 0, 0, 0])
    assert theory.tempered_probabilities(p, 2.0, 40) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


# --- regression


@pytest.mark.parametrize("same_design", [True, False])
def test_regression_loop(same_design, n=20, d=3, t=5, runs=20_000):
    rng = np.random.default_rng(13)
    x = rng.standard_normal((runs, n, d))
    w = np.zeros((runs, d))
    for _ in range(t):
        x = x if same_design else rng.standard_normal((runs, n, d))
        y = np.einsum("rnd,rd->rn", x, w) + rng.standard_normal((runs, n))
        w = np.linalg.solve(np.swapaxes(x, 1, 2) @ x, np.einsum("rnd,rn->rd", x, y)[..., None])[..., 0]
    close_on_average((w**2).sum(axis=1), theory.regression_fully_synthetic_error(n, d, t))


def test_regression_accumulates_on_one_design(n=20, d=3, t=5, runs=20_000):
    rng = np.random.default_rng(14)
    x = rng.standard_normal((runs, n, d))
    inverse = np.linalg.inv(np.swapaxes(x, 1, 2) @ x)
    w, labels = np.zeros((runs, d)), np.zeros((runs, n))
    for k in range(1, t + 1):
        labels += np.einsum("rnd,rd->rn", x, w) + rng.standard_normal((runs, n))
        w = np.einsum("rde,rne,rn->rd", inverse, x, labels / k, optimize=True)
    close_on_average((w**2).sum(axis=1), theory.regression_accumulate_error(n, d, t), 0.02)


def test_regression_known_values():
    assert theory.regression_fully_synthetic_error(30, 5, 20) == pytest.approx(4.167, abs=5e-4)
    assert theory.regression_accumulate_error(30, 5, 20) == pytest.approx(0.3325, abs=5e-5)
    first, last = theory.regression_accumulate_error(30, 5, [1, 10_000])
    assert last / first == pytest.approx(math.pi**2 / 6, rel=1e-4)


# --- stability, correction, curation


def test_correction_relaxes_the_sufficient_condition_from_a_half_to_one():
    def largest(gamma):
        return max(r for r in np.arange(0.0005, 1.2, 0.001) if theory.is_sufficiently_stable(r, 3.0, 0.0, 1.0, gamma))

    assert largest(0.0) == pytest.approx(0.5, abs=1e-3)
    assert largest(1.0) == pytest.approx(2 / 3, abs=1e-3)
    assert largest(1e6) == pytest.approx(1.0, abs=1e-3)
    assert theory.is_sufficiently_stable(0.24, 1.0, 1.0, 1.0)
    assert not theory.is_sufficiently_stable(0.26, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("ratio", [0.2, 3.0])
def test_moments_of_a_corrected_loop_contract_far_above_the_sufficient_condition(ratio, gamma):
    x = np.linspace(-12, 12, 4001)
    real, law = (np.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v) for m, v in ((0.0, 1.0), (0.8, 1.7)))
    moments = []
    for _ in range(3):
        moments.append([np.trapezoid(x**power * (law - real), x) for power in (1, 2)])
        law = (real + ratio * (law + gamma * real) / (1 + gamma)) / (1 + ratio)
    factor = theory.moment_contraction(ratio, gamma)
    assert factor < 1
    for before, after in itertools.pairwise(moments):
        assert after == pytest.approx(factor * np.array(before), rel=1e-6)


def test_curation_of_a_gaussian_and_of_categories_is_exponential_tilting():
    x = np.linspace(-15, 15, 30_001)
    slope, curvature, centre, rounds = 0.3, 0.6, 1.5, 4
    p = np.exp(-((x - 0.5) ** 2) / (2 * 1.3))
    p = p / p.sum()
    reward = slope * x - curvature * (x - centre) ** 2 / 2
    tilted = theory.curated_probabilities(p, reward, rounds)
    by_hand = p
    for _ in range(rounds):
        by_hand = by_hand * np.exp(reward)
        by_hand = by_hand / by_hand.sum()
    assert tilted == pytest.approx(by_hand, abs=1e-12)
    mean = (x * tilted).sum()
    law = theory.curated_gaussian(0.5, 1.3, rounds, slope, curvature, centre)
    assert law == pytest.approx((mean, ((x - mean) ** 2 * tilted).sum()), rel=1e-6)
    steady = theory.curated_gaussian(0.0, 2.0, [1, 2, 3], slope=0.5)
    assert steady.mean == pytest.approx([1.0, 2.0, 3.0])
    assert steady.variance == pytest.approx([2.0, 2.0, 2.0])
    assert theory.curated_gaussian(0.0, 2.0, 3, curvature=0.5).variance == pytest.approx(2 / (1 + 0.5 * 2 * 3))


def test_truncation_factor_is_the_variance_of_the_truncated_normal():
    assert theory.truncation_factor(1.5) == pytest.approx(0.5515, abs=5e-5)
    for c in (0.3, 1.0, 2.5):
        top, bottom = (quad(lambda z, k=k: z**k * math.exp(-(z**2) / 2), -c, c)[0] for k in (2, 0))
        assert theory.truncation_factor(c) == pytest.approx(top / bottom)
    assert theory.truncation_factor(40.0) == pytest.approx(1.0)


# --- guidance in continuous time

PAIRS = [  # s_r, s_s, omega, mu_r, mu_s | ODE std, mean | SDE std, mean
    ((1.0, 0.9, 1.0, 0.2, 0.5), (1.11111, -0.14491), (1.11933, -0.17037)),
    ((1.0, 0.5, 1.0, 0.0, 0.3), (2.00000, -0.72552), (2.64575, -1.20000)),
    ((0.5, 0.4, 1.5, 0.1, -0.2), (0.69877, 0.75095), (0.74240, 0.89427)),
]
OTHERS = [(0.8, 1.3, 2.0, 0.5, -1.0), (1.0, 0.7, -0.6, 0.0, 1.0), (2.0, 0.1, 0.5, 1.0, 0.0), (1.0, 1.0, 3.0, 0.2, 0.3)]


def pair(s_r, s_s, omega, mu_r, mu_s):
    return MeanVariance(mu_r, s_r**2), MeanVariance(mu_s, s_s**2), omega


@pytest.mark.parametrize(("case", "ode", "sde"), PAIRS)
def test_guided_laws_known_values(case, ode, sde):
    base, auxiliary, omega = pair(*case)
    for law, (std, mean) in (
        (theory.guided_ode(base, auxiliary, omega), ode),
        (theory.guided_sde(base, auxiliary, omega), sde),
    ):
        assert math.sqrt(law.variance) == pytest.approx(std, abs=6e-6)
        assert law.mean == pytest.approx(mean, abs=6e-6)


def test_guided_ode_known_values_at_finite_noise():
    for case, std, mean in ((PAIRS[0][0], 1.11101, -0.14352), (PAIRS[2][0], 0.69875, 0.74615)):
        law = theory.guided_ode(*pair(*case), sigma_max=80)
        assert math.sqrt(law.variance) == pytest.approx(std, abs=6e-6)
        assert law.mean == pytest.approx(mean, abs=6e-6)
    assert math.sqrt(theory.guided_ode(*pair(1, 0.9**0.5, 3, 0, 0)).variance) == pytest.approx(1.1712, abs=5e-5)


def integrated(base, auxiliary, omega, beta, sigma_max):
    """Mean and variance by integrating their equations in x = ln(1 + sigma^2) from N(0, sigma_max^2)."""

    def slope(x, state):
        u = math.expm1(x)
        p, q = (1 + omega) / (base.variance + u), omega / (auxiliary.variance + u)
        mean = 0.5 * (1 + beta) * ((p - q) * state[0] - p * base.mean + q * auxiliary.mean)
        return [(1 + u) * mean, (1 + u) * ((1 + beta) * (p - q) * state[1] - beta)]

    span = (math.log1p(sigma_max**2), 0.0)
    return solve_ivp(slope, span, [0.0, sigma_max**2], method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]


@pytest.mark.parametrize("case", [case for case, _, _ in PAIRS] + OTHERS)
def test_guided_ode_is_its_moment_equations_integrated(case):
    for sigma_max in (2.0, 80.0):
        law = theory.guided_ode(*pair(*case), sigma_max=sigma_max)
        assert law == pytest.approx(integrated(*pair(*case), 0.0, sigma_max), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("case", [case for case, _, _ in PAIRS] + OTHERS)
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_guided_sde_is_its_moment_equations_integrated(case, beta):
    law = theory.guided_sde(*pair(*case), beta)
    assert law == pytest.approx(integrated(*pair(*case), beta, 3e4), rel=1e-6, abs=1e-7)


def test_reverse_sde_in_elementary_functions():
    for s_r, s_s, w, mu_r, mu_s in [case for case, _, _ in PAIRS] + OTHERS[:3]:
        law, rho = theory.guided_sde(*pair(s_r, s_s, w, mu_r, mu_s)), (s_r / s_s) ** 2
        assert law.variance == pytest.approx(s_r**2 * (rho ** (2 * w + 1) - 1) / ((2 * w + 1) * (rho - 1)))
        assert law.mean == pytest.approx(mu_r - (mu_s - mu_r) * rho * (rho**w - 1) / (rho - 1))
        assert law.variance >= theory.guided_ode(*pair(s_r, s_s, w, mu_r, mu_s)).variance or -1 < w < 0


def test_beta_family_leads_from_the_ode_to_the_product_of_experts():
    case = pair(1, 0.9, 1, 0.2, 0.5)
    stds = [math.sqrt(theory.guided_sde(*case, beta).variance) for beta in (0, 0.25, 1, 4, 16, 64)]
    assert stds == pytest.approx([1.1111, 1.1137, 1.1193, 1.1292, 1.1377, 1.1414], abs=5e-5)
    experts = theory.product_of_experts(*case)
    assert math.sqrt(experts.variance) == pytest.approx(1.1430, abs=5e-5)
    assert theory.guided_sde(*case, 0.0) == pytest.approx(theory.guided_ode(*case))
    gaps = np.array([theory.guided_sde(*case, beta) for beta in (1e3, 2e3)]) - experts
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.01)
    without_limit = [theory.guided_sde(*pair(1, 0.5, 1, 0, 0), beta).variance for beta in (0, 1, 4, 16, 64)]
    assert (np.diff(np.log(without_limit)) > 0.1).all()
    assert without_limit[-1] > 1e6


def test_beta_family_is_its_integral():
    base, auxiliary, w = pair(0.8, 0.6, 0.7, 0, 0)
    for beta in (0.5, 3.0):
        p, q = (1 + beta) * (1 + w), (1 + beta) * w
        ratio = quad(lambda u, p=p, q=q: (1 + u / 0.64) ** -p * (1 + u / 0.36) ** q, 0, math.inf, epsabs=1e-12, epsrel=1e-10)[0]
        assert theory.guided_sde(base, auxiliary, w, beta).variance == pytest.approx(beta * ratio, rel=1e-7)


def test_product_of_experts_is_the_normalised_product_and_may_not_exist():
    base, auxiliary, omega = pair(1, 0.9, 2, 0.2, 0.5)
    x = np.linspace(-40, 40, 40_001)
    log_p = [-((x - law.mean) ** 2) / (2 * law.variance) for law in (base, auxiliary)]
    p = np.exp((1 + omega) * log_p[0] - omega * log_p[1])
    mean = (x * p).sum() / p.sum()
    assert theory.product_of_experts(base, auxiliary, omega) == pytest.approx((mean, ((x - mean) ** 2 * p).sum() / p.sum()))
    edge = base.variance * omega / (1 + omega)
    assert theory.product_of_experts(base, MeanVariance(0, edge * 1.01), omega).variance > 30
    with pytest.raises(ValueError, match="is not a law"):
        theory.product_of_experts(base, MeanVariance(0, edge * 0.99), omega)
    assert math.isfinite(theory.guided_ode(base, MeanVariance(0, edge * 0.99), omega).variance)


@pytest.mark.parametrize("law", [theory.guided_ode, theory.guided_sde, theory.product_of_experts])
def test_no_guidance_is_the_base_and_minus_one_the_auxiliary(law):
    base, auxiliary = MeanVariance(0.3, 1.4), MeanVariance(-0.2, 0.5)
    assert law(base, auxiliary, 0.0) == pytest.approx(base)
    assert law(base, auxiliary, -1.0) == pytest.approx(auxiliary)
    for omega in (0.5, 3.0):
        assert law(base, base, omega) == pytest.approx(base)


def test_equal_variances_extrapolate_the_mean_linearly():
    base, auxiliary = MeanVariance(1.0, 0.7), MeanVariance(1.5, 0.7)
    for law in (theory.guided_ode, theory.guided_sde, theory.product_of_experts):
        assert law(base, auxiliary, 2.0) == pytest.approx((0.0, 0.7), abs=1e-12)


def test_guided_laws_are_equivariant_under_affine_maps_and_take_arrays():
    omega = np.array([0.5, 2.0])
    base, auxiliary = MeanVariance(0.3, 1.4), MeanVariance(-0.2, 0.9)
    for law in (theory.guided_ode, theory.guided_sde):
        plain = law(base, auxiliary, omega)
        moved = law(MeanVariance(3 * 0.3 + 2, 9 * 1.4), MeanVariance(3 * -0.2 + 2, 9 * 0.9), omega)
        assert moved.mean == pytest.approx(3 * plain.mean + 2)
        assert moved.variance == pytest.approx(9 * plain.variance)


def test_determinant_formula_holds_where_covariances_do_not_commute():
    s_r, s_s, omega = np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.2, 2.0]), 1.0
    eye = np.eye(2)

    def slope(x, flat):
        u = math.expm1(x)
        drift = (1 + omega) * np.linalg.inv(s_r + u * eye) - omega * np.linalg.inv(s_s + u * eye)
        return ((1 + u) * 0.5 * drift @ flat.reshape(2, 2)).ravel()

    sigma_max = 1e4
    end = solve_ivp(slope, (math.log1p(sigma_max**2), 0), (sigma_max * eye).ravel(), method="DOP853", rtol=1e-10, atol=1e-12)
    root = end.y[:, -1].reshape(2, 2)
    cov = root @ root.T
    assert np.linalg.det(cov) == pytest.approx(np.linalg.det(s_r) ** 2 / np.linalg.det(s_s), rel=1e-6)
    assert cov == pytest.approx(np.array([[3.9165, 2.6069], [2.6069, 2.6926]]), abs=1e-4)


# --- guidance in N steps


def particles(base, auxiliary, omega, steps, runs, rng):
    """The sampler on points, from its description: slope d = (x - D) / s with D the guided denoiser."""

    def slope(x, s):
        scores = [(law.mean - x) / (law.variance + s**2) for law in (base, auxiliary)]
        return -s * ((1 + omega) * scores[0] - omega * scores[1])

    root = np.linspace(steps.sigma_max ** (1 / steps.rho), steps.sigma_min ** (1 / steps.rho), steps.steps)
    levels = np.append(root**steps.rho, 0.0)
    x = steps.sigma_max * rng.standard_normal(runs)
    gamma = min(steps.churn / steps.steps, math.sqrt(2) - 1)
    for s, s_next in itertools.pairwise(levels):
        if gamma > 0:
            s_hat = s * (1 + gamma)
            x = x + math.sqrt(s_hat**2 - s**2) * steps.churn_noise * rng.standard_normal(runs)
            s = s_hat
        d = slope(x, s)
        if steps.kind == "ancestral":
            down, up = s_next**2 / s, s_next * math.sqrt(s**2 - s_next**2) / s
            x = x + (down - s) * d + up * rng.standard_normal(runs)
        elif steps.kind == "heun" and s_next > 0:
            euler = x + (s_next - s) * d
            x = x + (s_next - s) * (d + slope(euler, s_next)) / 2
        elif steps.kind == "dpm" and s_next > 0:
            middle = math.sqrt(s * s_next)
            inner = x + (middle - s) * d
            x = s_next / s * x + (1 - s_next / s) * (inner - middle * slope(inner, middle))
        else:
            x = x + (s_next - s) * d
    return x


@pytest.mark.parametrize(
    "steps",
    [
        Steps("euler", 12, 10, 0.02),
        Steps("heun", 8, 20, 0.05, rho=5.0),
        Steps("ancestral", 10, 20, 0.01),
        Steps("heun", 9, 15, 0.02, churn=2.0, churn_noise=1.1),
        Steps("euler", 6, 15, 0.02, churn=100.0),
        Steps("heun", 1, 3.0),
        Steps("dpm", 8, 20, 0.05),
        Steps("dpm", 7, 15, 0.02, churn=2.0, churn_noise=0.9),
    ],
)
def test_sampler_law_is_the_law_of_sampled_points(steps, runs=200_000):
    base, auxiliary, omega = MeanVariance(1.0, 0.8), MeanVariance(1.6, 0.6), 1.5
    x = particles(base, auxiliary, omega, steps, runs, np.random.default_rng(15))
    law = theory.sampler_law(base, auxiliary, omega, steps)
    close_on_average(x, law.mean, 0.02)
    close_on_average((x - law.mean) ** 2, law.variance)


def test_sampler_law_ignores_the_unused_model_and_a_model_repeated():
    base, auxiliary, other = MeanVariance(1.0, 0.8), MeanVariance(1.6, 0.6), MeanVariance(-3.0, 2.0)
    for kind in ("euler", "heun", "dpm", "ancestral"):
        steps = Steps(kind, 12)
        alone = theory.sampler_law(base, base, 0.0, steps)
        assert theory.sampler_law(base, auxiliary, 0.0, steps) == alone, "bit for bit"
        assert theory.sampler_law(other, base, -1.0, steps) == alone, "bit for bit"
        assert theory.sampler_law(base, base, 2.5, steps) == pytest.approx(alone)


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2), ("dpm", 2)])
def test_steps_converge_to_the_guided_ode_at_their_order(kind, order):
    base, auxiliary, omega = pair(1, 0.9, 1, 0.2, 0.5)
    sigma_min = 1e-4
    exact = np.array(theory.guided_ode(base, auxiliary, omega, sigma_max=80))
    errors = [np.array(theory.sampler_law(base, auxiliary, omega, Steps(kind, n, 80, sigma_min))) - exact for n in (800, 1600)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)
    heun = theory.sampler_law(base, auxiliary, omega, Steps("heun", 4000))
    assert (math.sqrt(heun.variance), heun.mean) == pytest.approx((1.1110069, -0.1435202), abs=1e-7)


def test_ancestral_steps_converge_to_the_reverse_sde():
    base, auxiliary, omega = pair(1, 0.9, 1, 0.2, 0.5)
    exact = np.array(theory.guided_sde(base, auxiliary, omega))
    errors = [
        np.array(theory.sampler_law(base, auxiliary, omega, Steps("ancestral", n, 1e5, 1e-4))) - exact for n in (2000, 4000)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("variance", "n", "inflation", "digits"),
    [
        (0.25, 18, 0.055, 3), (0.25, 32, 0.016, 3), (0.25, 40, 0.0098, 4), (0.25, 64, 0.0036, 4), (0.25, 128, 0.0009, 4),
        (0.25, 256, 0.0002, 4), (1.0, 18, 0.045, 3), (1.0, 32, 0.013, 3), (1.0, 40, 0.0079, 4), (1.0, 256, 0.0001, 4),
    ],
)  # fmt: skip
def test_heun_inflates_a_gaussian(variance, n, inflation, digits):
    assert math.expm1(theory.sampler_log_bias(variance, Steps("heun", n)) / 2) == pytest.approx(
        inflation, abs=0.51 * 10**-digits
    )


def test_guided_heun_known_values():
    base, auxiliary = MeanVariance(0, 1.0), MeanVariance(0, 0.9)
    stds = [math.sqrt(theory.sampler_law(base, auxiliary, 3.0, Steps("heun", n)).variance) for n in (18, 40, 400)]
    assert stds == pytest.approx([1.2220, 1.1802, 1.1712], abs=5e-5)


def test_sampler_error_compounds_in_a_loop():
    for n, std in ((18, 10.4), (40, 1.17), (100, 0.576), (256, 0.510)):
        value = math.sqrt(theory.sampler_loop_variance(0.25, Steps("heun", n), 100))
        assert value == pytest.approx(std, rel=6e-3)
    steps = Steps("heun", 18)
    twice = theory.sampler_loop_variance(0.25, steps, [1, 2])
    assert math.log(twice[1] / twice[0]) == pytest.approx(theory.sampler_log_bias(twice[0], steps))


def test_churn_leads_from_the_ode_to_the_product_of_experts():
    base, auxiliary, omega = pair(1, 0.9, 1, 0, 0)
    law = [theory.sampler_law(base, auxiliary, omega, Steps("heun", 4096, churn=c)) for c in (0, 10, 40, 100, math.inf)]
    assert [math.sqrt(v) for _, v in law] == pytest.approx([1.1110, 1.1186, 1.1279, 1.1340, 1.1422], abs=6e-5)
    few = [math.sqrt(theory.sampler_law(base, auxiliary, omega, Steps("heun", 18, churn=c)).variance) for c in (10, 1e9)]
    assert few == pytest.approx([1.2327, 1.2327], abs=5e-5)
    assert law[-1].variance < theory.product_of_experts(base, auxiliary, omega).variance


# --- SIMS and Neon on a Gaussian

ANCESTRAL = [Steps("ancestral", n, 20, 0.01) for n in (10, 20, 50)]


def test_ancestral_steps_shrink_a_unit_variance():
    assert [math.exp(theory.sampler_log_bias(1.0, steps)) for steps in ANCESTRAL] == pytest.approx(
        [0.491, 0.691, 0.859], abs=5e-4
    )


@pytest.mark.parametrize("steps", ANCESTRAL)
def test_best_omega_times_eta_is_nearly_one(steps):
    products = [eta * theory.best_omega(eta, steps) for eta in (1.0, 0.5, 0.3, 0.2, 0.1)]
    assert 0.915 < min(products) <= max(products) < 0.975


@pytest.mark.parametrize("steps", [*ANCESTRAL, Steps("heun", 18), Steps("euler", 30)])
@pytest.mark.parametrize("variance", [1.0, 0.3])
def test_best_omega_gives_the_true_variance_back(steps, variance):
    for eta in (1.0, 0.3):
        omega = theory.best_omega(eta, steps, variance)
        drawn = theory.sampler_law(MeanVariance(0, variance), MeanVariance(0, variance), 0.0, steps).variance
        auxiliary = MeanVariance(0, variance * (drawn / variance) ** eta)
        assert theory.sampler_law(MeanVariance(0, variance), auxiliary, omega, steps).variance == pytest.approx(
            variance, rel=1e-10
        )
        assert abs(math.log(drawn / variance)) > 0.01, "nothing to correct"


@pytest.mark.parametrize(("kind", "beta"), [("euler", 0.0), ("heun", 0.0), ("ancestral", 1.0)])
@pytest.mark.parametrize("eta", [1.0, 0.4, 0.05])
def test_omega_eta_leaves_one_by_the_stated_correction(kind, beta, eta):
    """What the correction leaves is of second order in the bias, while the correction itself is of first."""
    rest, size = [], []
    for n in (100, 400) if kind == "euler" else (400, 1600) if kind == "ancestral" else (20, 40):
        steps = Steps(kind, n, 40, 0.005)
        bias = theory.sampler_log_bias(1.0, steps)
        slope = (theory.sampler_log_bias(math.exp(1e-3), steps) - theory.sampler_log_bias(math.exp(-1e-3), steps)) / 2e-3
        exact = eta * theory.best_omega(eta, steps)
        rest.append(abs(exact - eta * theory.expected_omega(eta, bias, slope, beta)) / bias**2)
        size.append(abs(exact - 1) / abs(bias))
    assert rest == pytest.approx([rest[1]] * 2, abs=0.3)
    assert max(rest) < 1.0
    assert min(size) > 0.01


def test_the_same_bias_at_every_variance_wants_exactly_one_over_eta(bias=0.7, v=1.3):
    """Samples drawn from N(mu, bias * V): guide, then draw with the same bias."""
    for eta in (1.0, 0.5, 0.1):
        auxiliary = MeanVariance(0, v * bias**eta)
        guided = theory.guided_ode(MeanVariance(0, v), auxiliary, theory.expected_omega(eta)).variance
        assert bias * guided == pytest.approx(v)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("n", "n_s", "omega", "eta"), [(12, 12, 1.0, 1.0), (10, 25, 2.0, 0.6)])
def test_sims_between_exact_gaussian_fits(n, n_s, omega, eta, estimator, runs=100_000):
    rng = np.random.default_rng(16)
    _, base = fit(rng.standard_normal((runs, n)), estimator)
    _, refit = fit(np.sqrt(base)[:, None] * rng.standard_normal((runs, n_s)), estimator)
    auxiliary = base * (refit / base) ** eta
    std = np.sqrt(base * (base / auxiliary) ** omega)
    law = theory.sims_log_std(n, n_s, omega, eta, estimator)
    error = np.log(std)
    assert abs(error.mean() - law.mean) < 4 * error.std() / math.sqrt(runs)
    close_on_average((error - law.mean) ** 2, law.variance)
    close_on_average((std - 1) ** 2, theory.sims_std_error(n, n_s, omega, eta, estimator), 0.02)


def test_sims_removes_the_log_bias_and_yet_does_not_help_an_unbiased_recipe():
    assert theory.sims_log_std(50, 50, 1.0).mean == pytest.approx(0, abs=1e-15)
    assert theory.sims_log_std(50, 50, 2.0, eta=0.5).mean == pytest.approx(0, abs=1e-15)
    assert theory.sims_unbiased_omega(50, 500) == pytest.approx(10.2, abs=0.05)
    assert theory.sims_log_std(50, 500, theory.sims_unbiased_omega(50, 500, 0.3), 0.3).mean == pytest.approx(0, abs=1e-12)
    best = minimize_scalar(lambda w: theory.sims_std_error(50, 50, w), bounds=(-1, 1), options={"xatol": 1e-8})
    assert best.x == pytest.approx(0.009, abs=5e-4)
    errors = [theory.sims_std_error(50, 50, w) for w in (best.x, 0.0, 1.0)]
    assert errors == pytest.approx([0.010175, 0.010176, 0.0216], abs=5e-5)
    assert errors[0] < errors[1]


def test_neon_by_parametrisation():
    base, auxiliary, omega = MeanVariance(0.3, 1.2), MeanVariance(0.5, 0.9), 1.4
    assert theory.neon_gaussian(base, auxiliary, omega, "log_std").variance == pytest.approx(
        theory.guided_ode(base, auxiliary, omega).variance
    )
    assert theory.neon_gaussian(base, auxiliary, omega, "precision").variance == pytest.approx(
        theory.product_of_experts(base, auxiliary, omega).variance
    )
    std = (1 + omega) * math.sqrt(1.2) - omega * math.sqrt(0.9)
    assert theory.neon_gaussian(base, auxiliary, omega, "std") == pytest.approx((0.3 - omega * 0.2, std**2))
    for name in ("std", "log_std", "precision"):
        assert theory.neon_gaussian(base, auxiliary, 0.0, name) == pytest.approx(base)
        assert theory.neon_gaussian(base, auxiliary, -1.0, name) == pytest.approx(auxiliary)
    with pytest.raises(ValueError, match="not positive"):
        theory.neon_gaussian(MeanVariance(0, 1.0), MeanVariance(0, 9.0), 1.0, "std")


@pytest.mark.parametrize(("n", "d"), [(14, 1), (14, 2), (20, 3)])
def test_gradient_of_the_population_loss_at_the_maximum_likelihood_fit(n, d, runs=150_000):
    x = np.random.default_rng(17).standard_normal((runs, n, d))
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    precision = np.linalg.inv(np.swapaxes(centred, 1, 2) @ centred / n)
    pulled = np.einsum("rij,rj->ri", precision, mean)
    gradient = 0.5 * (np.einsum("rii->r", precision) - np.einsum("rij,rij->r", precision, precision) - (pulled**2).sum(axis=1))
    close_on_average(-gradient / d, theory.neon_covariance_gradient(n, d))


def test_gradient_in_one_dimension_has_the_published_form():
    for n in (10, 50):
        assert theory.neon_covariance_gradient(n, 1) == pytest.approx(n * 6 / (2 * (n - 3) * (n - 5)))
        assert theory.neon_covariance_gradient(n, 3) > n * 8 / (2 * (n - 5) * (n - 7))


# --- identities and arguments


def test_maximum_likelihood_conserves_the_second_moment():
    t = np.array([1, 2, 7, 40])
    pairs = {
        "fully synthetic": (theory.fully_synthetic_mean_error([9, 4, 30], t), theory.fully_synthetic_variance([9, 4, 30], t)),
        "accumulate": (theory.accumulate_mean_error([9, 4, 30], t), theory.accumulate_variance([9, 4, 30], t)),
        "accumulate-subsample": theory.accumulate_subsample_moments(6, t),
        "fresh": theory.fresh_moments(6, 11, t, real_weight=0.3),
        "augment": theory.augment_moments(6, 11, t),
        "augment, weighted": theory.augment_moments(6, 11, t, real_weight=0.8),
    }
    for name, (error, variance) in pairs.items():
        assert error + variance == pytest.approx(np.ones(4), abs=1e-12), name
        assert np.ptp(variance) > 1e-3, name


def test_scalars_give_floats_and_arrays_give_arrays():
    assert isinstance(theory.fully_synthetic_variance(10, 3), float)
    assert theory.fully_synthetic_variance(10, [[1, 2], [3, 4]]).shape == (2, 2)
    assert isinstance(theory.guided_ode(MeanVariance(0, 1.0), MeanVariance(0, 0.9), 1.0).variance, float)
    assert theory.fresh_moments(5, 5, [3, 1, 2]).variance == pytest.approx(
        [theory.fresh_moments(5, 5, k).variance for k in (3, 1, 2)]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.fully_synthetic_variance(1, 3), "n must be at least 2 and an integer, got 1"),
        (lambda: theory.fully_synthetic_variance(2.5, 3), "n must be at least 2 and an integer, got 2.5"),
        (lambda: theory.fully_synthetic_variance([], 3), "n must be at least 2"),
        (lambda: theory.augment_moments(1, 5, 3), "n must be at least 2 and an integer, got 1"),
        (lambda: theory.augment_mean_error(0, 5, 1), "n_real must be an integer of at least 1, got 0"),
        (lambda: theory.augment_ratio_limit(5, 0), "n_synthetic must be an integer of at least 1, got 0"),
        (lambda: theory.fully_synthetic_variance(5, 0), "t counts fits and must be an integer of at least 1, got 0"),
        (lambda: theory.fully_synthetic_std(5, 2, bias=0.0), "bias must be positive, got 0.0"),
        (
            lambda: theory.fully_synthetic_std(5, 2, estimator="mle"),
            "estimator must be 'maximum_likelihood' or 'unbiased', got 'mle'",
        ),
        (lambda: theory.fully_synthetic_log_det(3, 1, 3), "n must be at least 4 and an integer, got 3"),
        (lambda: theory.fresh_fixed_point(10, 90, bias=1.2), "the loop has no limit at bias = 1.2"),
        (lambda: theory.fresh_moments(10, 10, 3, real_weight=1.0), "real_weight must lie strictly between 0 and 1, got 1.0"),
        (lambda: theory.fresh_variance_limit(0.9, 1.2), "must be below 1 for a limit"),
        (lambda: theory.kde_variance(10, 3, -0.1), "bandwidth must be at least 0, got -0.1"),
        (lambda: theory.discrete_fixation_time([0.5, 0.6], 10), "probabilities must be a vector >= 0 that adds to one"),
        (lambda: theory.discrete_fresh_limit(0.5, 5, 5, "other"), "composition must be 'fixed' or 'random', got 'other'"),
        (lambda: theory.regression_accumulate_error(4, 3, 1), "n must exceed d \\+ 1 = 4 for a finite error, got 4"),
        (lambda: theory.curated_gaussian(0, 1.0, 3, curvature=-0.5), "leaves no Gaussian"),
        (lambda: theory.guided_ode(MeanVariance(0, 1.0), MeanVariance(0, 0.0), 1.0), "auxiliary_variance must be positive"),
        (lambda: Steps("exact"), "kind must be 'euler', 'heun', 'dpm' or 'ancestral', got 'exact'"),
        (lambda: Steps(sigma_max=0.001), "need 0 < sigma_min < sigma_max < inf"),
        (lambda: Steps("ancestral", churn=1.0), "churn is for euler, heun and dpm"),
        (lambda: theory.best_omega(1.5, ANCESTRAL[0]), r"eta must lie in \(0, 1\], got 1.5"),
        (lambda: theory.sims_std_error(10, 5, 2.0), "n_synthetic - 1 must exceed 2 omega eta = 4, got n_synthetic = 5"),
        (lambda: theory.neon_gaussian(MeanVariance(0, 1.0), MeanVariance(0, 1.0), 1.0, "mean"), "parametrisation must be"),
        (lambda: theory.neon_covariance_gradient(7, 3), "n must be at least 8 and an integer, got 7"),
        (lambda: theory.gaussian_w2_squared([0], [[1.0]], [0, 0], np.eye(2)), "means must be"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_sampler_without_a_workable_correction_is_refused():
    with pytest.raises(ArithmeticError, match="no omega in"):
        theory.best_omega(1.0, Steps("euler", 1, 80), variance=1.0)
