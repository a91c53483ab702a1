"""The Gaussian fit, its estimators, and Sims over it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop import covariance, theory
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.algorithms.sims import Sims
from selfloop.diffusion.sample import Sampler
from selfloop.laws import Gaussian
from selfloop.measure import Measure, Moments
from selfloop.metrics.transport import gaussian_wasserstein2

ANCESTRAL = Sampler(kind="ancestral", steps=20, sigma_max=20.0, sigma_min=0.01)


def cloud(n=15, d=3, runs=4, seed=0) -> Measure:
    return Gaussian(np.zeros(d), np.eye(d)).expanded(runs).sample(n, np.random.default_rng(seed))


def test_estimators_are_numpy_covariances():
    data, rng = cloud(), np.random.default_rng(0)
    for estimator, ddof in (("maximum_likelihood", 0), ("unbiased", 1)):
        fitted = GaussianFit(estimator=estimator).fit(data, rng).fitted
        expected = np.array([np.cov(x.T, ddof=ddof) for x in data.points])
        np.testing.assert_allclose(fitted.cov, expected, atol=1e-12)


def test_the_unbiased_estimator_is_unbiased_under_weights():
    """Kish's factor: the mean over 20,000 replicates of n = 6 weighted points is the identity, within 4 standard errors."""
    weights = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    points = cloud(6, 2, 20_000).points
    cov = (
        GaussianFit(estimator="unbiased")
        .fit(Measure(points, np.broadcast_to(weights, points.shape[:-1])), np.random.default_rng(0))
        .fitted.cov
    )
    error = cov.std(axis=0) / np.sqrt(len(cov))
    assert np.all(np.abs(cov.mean(axis=0) - np.eye(2)) < 4 * error)


def test_oas_shrinkage_is_equation_23_of_its_paper_and_tends_to_scikit_learns():
    """Chen et al. (2010), equation 23, from the eigenvalues; scikit-learn drops its terms 2 / d, which fade for large d."""
    from sklearn.covariance import OAS

    n, d = 8, 5
    data = cloud(n, d)
    fitted = GaussianFit(shrinkage="oas").fit(data, np.random.default_rng(0)).fitted.cov
    values = np.linalg.eigvalsh([np.cov(x.T, ddof=0) for x in data.points])
    square, trace = (values**2).sum(axis=1), values.sum(axis=1)
    rho = ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d))
    rho = np.minimum(rho, 1)[:, None]
    assert (rho < 1).any()
    np.testing.assert_allclose(np.linalg.eigvalsh(fitted), (1 - rho) * values + rho * trace[:, None] / d, rtol=1e-10)
    wide = cloud(300, 200, 1)
    mine = GaussianFit(shrinkage="oas").fit(wide, np.random.default_rng(0)).fitted.cov[0]
    np.testing.assert_allclose(mine, OAS().fit(wide.points[0]).covariance_, atol=0.01)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 0.99), st.integers(2, 4))
def test_shrinkage_keeps_the_trace_and_moves_eigenvalues_to_their_mean(intensity, d):
    data, rng = cloud(12, d), np.random.default_rng(0)
    plain, shrunk = (GaussianFit(shrinkage=a).fit(data, rng).fitted.cov for a in (0.0, intensity))
    values, moved = np.linalg.eigvalsh(plain), np.linalg.eigvalsh(shrunk)
    mean = values.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(moved, (1 - intensity) * values + intensity * mean, atol=1e-10)


def test_too_few_points_are_refused_and_shrinkage_is_the_remedy():
    with pytest.raises(ValueError, match=r"d = 3 dimensions needs at least 4 points, got n = 3; .*shrinkage"):
        GaussianFit().fit(cloud(3, 3), np.random.default_rng(0))
    assert GaussianFit(shrinkage=0.1).fit(cloud(3, 3), np.random.default_rng(0)).fitted.is_finite().all()


def test_interpolation_is_straight_in_the_mean_and_in_the_logarithm_of_the_covariance():
    rng, fit = np.random.default_rng(0), GaussianFit()
    a, b = fit.fit(cloud(seed=1), rng), fit.fit(cloud(seed=2), rng)
    third = fit.interpolate(a, b, 1 / 3)
    logs = [covariance.log(model.fitted.cov) for model in (a, third, b)]
    np.testing.assert_allclose(logs[1], logs[0] * 2 / 3 + logs[2] / 3, atol=1e-10)
    np.testing.assert_allclose(third.fitted.mean, a.fitted.mean * 2 / 3 + b.fitted.mean / 3)


@pytest.mark.parametrize(
    ("options", "message"), [({"shrinkage": 1.5}, "less than 1"), ({"estimator": "mle"}, "maximum_likelihood")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianFit(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"omega": -2.0}, "greater than or equal to -1"),
        ({"omega": float("inf")}, "finite"),
        ({"budget": -0.1}, "greater than or equal to 0"),
        ({"budget": 1.2}, "budget must be at most 1"),
        ({"n_synthetic": 0}, "greater than or equal to 1"),
        ({"algorithm": "gaussian"}, "instance of Tunable"),
    ],
)
def test_sims_refuses_what_it_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        Sims(**{"algorithm": GaussianFit(), "n_synthetic": 10, "budget": 0.5, **options})


def test_omega_changes_without_a_new_fit():
    """restore at another omega gives bit for bit what a fit at that omega gives."""
    data = cloud(30, 2).moments()
    one, two = (Sims(algorithm=GaussianFit(sampler=ANCESTRAL), n_synthetic=50, budget=0.3, omega=omega) for omega in (1.0, 3.0))
    fitted = two.fit(data, np.random.default_rng(5))
    restored = two.restore(one.fit(data, np.random.default_rng(5)).state())
    np.testing.assert_array_equal(fitted.law().cov, restored.law().cov)


@pytest.mark.parametrize(("omega", "expected"), [(0, 0.246), (1, 0.178), (2, 0.110), (3, 0.068), (4, 0.110)])
def test_guidance_lowers_the_distance_of_the_first_generation(omega, expected):
    """The independently simulated figures of the experiment, n_r = 1000, 20 ancestral steps, eta = .3: each is +- .001, ours is
    +- its own standard error over 400 replicates; the bound is 4 standard errors of the difference."""
    rng = np.random.default_rng(omega)
    data = Gaussian(np.zeros(2), np.eye(2)).expanded(400).draw(1000, rng)
    model = Sims(algorithm=GaussianFit(sampler=ANCESTRAL), n_synthetic=2000, budget=0.3, omega=float(omega)).fit(data, rng)
    w2 = gaussian_wasserstein2(model.law(), Gaussian(np.zeros(2), np.eye(2)))
    error = np.hypot(w2.std(ddof=1) / 20, 0.001)
    assert abs(w2.mean() - expected) < 4 * error


def test_an_unbiased_recipe_is_not_helped_by_guidance():
    """Exact sampler, n = n_s = 50: omega eta = 1 cancels E ln s, and E (s - 1)^2 rises from .0102 to .0216, as theory says."""
    rng = np.random.default_rng(0)
    real = Gaussian(np.zeros(1), np.eye(1)).expanded(40_000).draw(50, rng)
    for omega in (0.0, 1.0):
        law = Sims(algorithm=GaussianFit(), n_synthetic=50, budget=1.0, omega=omega).fit(real, np.random.default_rng(1)).law()
        log_std = 0.5 * np.log(law.cov[:, 0, 0])
        exact = theory.sims_log_std(50, 50, omega)
        assert abs(log_std.mean() - exact.mean) < 4 * log_std.std() / 200
        squares = (np.exp(log_std) - 1) ** 2
        assert abs(squares.mean() - theory.sims_std_error(50, 50, omega)) < 4 * squares.std() / 200


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("eta", [1.0, 0.3, 0.1])
def test_the_best_omega_of_theory_undoes_the_bias_of_the_sampler(steps, eta):
    """A million points: what is left of the variance is within 4 of its standard errors, sqrt(2 / n) (1 + omega eta)."""
    sampler = Sampler(kind="ancestral", steps=steps, sigma_max=20.0, sigma_min=0.01)
    omega = theory.best_omega(eta, theory.Steps("ancestral", steps, 20.0, 0.01))
    real = Moments(1e6, np.zeros((1, 1)), np.ones((1, 1, 1)))
    sims = Sims(algorithm=GaussianFit(sampler=sampler), n_synthetic=10**6, budget=eta, omega=omega)
    law = sims.fit(real, np.random.default_rng(0)).law()
    assert abs(law.cov[0, 0, 0] - 1) < 4 * np.sqrt(2e-6) * (1 + omega * eta)
