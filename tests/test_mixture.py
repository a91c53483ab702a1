"""The Gaussian mixture against its closed forms, a second implementation, and its own properties."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from selfloop.algorithms import mixture
from selfloop.algorithms.gaussian import GaussianFit, GaussianModel
from selfloop.algorithms.mixture import MixtureFit, MixtureModel
from selfloop.algorithms.neon import Neon
from selfloop.algorithms.sims import Sims
from selfloop.diffusion.sample import Sampler
from selfloop.laws import Gaussian
from selfloop.measure import Measure
from selfloop.protocols import BiasedModel, ScoreModel, Tunable

HEUN = Sampler(kind="heun", steps=40, sigma_max=300.0, sigma_min=0.005)
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def some_mixture(rng, k, d, batch=(), spread=2.0):
    root = rng.standard_normal((*batch, k, d, d)) / math.sqrt(d)
    weights = rng.dirichlet(np.full(k, 3.0), size=batch or None)
    means = spread * rng.standard_normal((*batch, k, d))
    return MixtureModel(weights, means, root @ np.swapaxes(root, -1, -2) + 0.1 * np.eye(d))


def some_data(rng, n, d, batch=()):
    points = rng.standard_normal((*batch, n, d)) * rng.uniform(0.5, 2, (*batch, 1, d)) + rng.choice([-3, 0, 3], (*batch, n, 1))
    weights = rng.dirichlet(np.full(n, 5.0), size=batch or None)
    return Measure(points, weights)


def likelihood(model, data):
    """Mean log-likelihood, shape (*batch,)."""
    return (data.weights * model.log_density(data.points)).sum(axis=-1)


def noised(model, sigma):
    return replace(model, covs=model.covs + sigma**2 * np.eye(model.d))


def equal(a, b):
    return all(np.array_equal(a.state()[name], b.state()[name], equal_nan=True) for name in ("weights", "means", "covs"))


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
def test_one_component_is_the_gaussian_fit_with_its_regularisation(kind, rng):
    data = some_data(rng, 50, 3, (4,))
    plain = GaussianFit().fit(data, rng).fitted
    model = MixtureFit(components=1, covariance=kind, regularisation=1e-3).fit(data, rng)
    mean_variance = np.trace(plain.cov, axis1=-2, axis2=-1)[:, None, None] / 3
    expected = {"full": plain.cov, "diagonal": plain.cov * np.eye(3), "spherical": mean_variance * np.eye(3)}[kind]
    np.testing.assert_allclose(model.weights, 1.0)
    np.testing.assert_allclose(model.means[:, 0], plain.mean, atol=1e-10)
    np.testing.assert_allclose(model.covs[:, 0], expected + 1e-3 * mean_variance * np.eye(3), atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(15, 60), st.integers(1, 3), st.integers(1, 4), st.sampled_from(["full", "diagonal", "spherical"]))
def test_expectation_maximisation_never_lowers_the_likelihood(seed, n, d, k, kind):
    rng = np.random.default_rng(seed)
    data = some_data(rng, n, d, (2,))
    reached = [
        likelihood(
            MixtureFit(components=k, covariance=kind, iterations=t, tolerance=0.0, regularisation=1e-9).fit(
                data, np.random.default_rng(seed)
            ),
            data,
        )
        for t in range(1, 9)
    ]
    assert np.diff(reached, axis=0).min() > -1e-7


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn says that it did not converge: it was told not to
def test_from_the_same_start_it_is_scikit_learn_step_by_step(kind, rng):
    peer = pytest.importorskip("sklearn.mixture")
    points = some_mixture(rng, 3, 4).sample(300, rng).points
    start = some_mixture(rng, 3, 4)
    spherical = np.trace(start.covs, axis1=-2, axis2=-1) / 4
    start = MixtureModel(start.weights, start.means, spherical[:, None, None] * np.eye(4))
    data = Measure.uniform(points)
    ours = MixtureFit(components=3, covariance=kind, iterations=12, tolerance=0.0)
    (model,) = ours.tune(start, data, [1.0], rng)
    name, precisions = {
        "full": ("full", np.linalg.inv(start.covs)),
        "diagonal": ("diag", np.repeat(1 / spherical[:, None], 4, axis=1)),
        "spherical": ("spherical", 1 / spherical),
    }[kind]
    theirs = peer.GaussianMixture(
        3,
        covariance_type=name,
        tol=0.0,
        reg_covar=ours.regularisation * np.trace(data.moments().cov) / 4,
        max_iter=12,
        weights_init=start.weights,
        means_init=start.means,
        precisions_init=precisions,
    ).fit(points)
    np.testing.assert_allclose(model.log_density(points), theirs.score_samples(points), atol=1e-8)
    np.testing.assert_allclose(model.weights, theirs.weights_, atol=1e-9)
    np.testing.assert_allclose(model.means, theirs.means_, atol=1e-8)


def test_separated_components_are_found_within_their_standard_errors(rng):
    """20 replicates of 3 well separated components: 60 weights and 120 coordinates, all within 4.5 SE (false alarms: 0.1 %)."""
    n, covs = 600, np.array([np.eye(2), [[1, 0.8], [0.8, 1]], 0.25 * np.eye(2)])
    truth = MixtureModel(np.array([0.2, 0.3, 0.5]), np.array([[-8.0, 0], [0, 8.0], [8.0, 0]]), covs)
    data = truth.expanded(20).sample(n, rng)
    model = MixtureFit(components=3, restarts=5).fit(data, rng)
    order = np.argsort(model.means[..., 0], axis=-1)
    weights = np.take_along_axis(model.weights, order, axis=-1)
    means = np.take_along_axis(model.means, order[..., None], axis=-2)
    assert (np.abs(weights - truth.weights) < 4.5 * np.sqrt(truth.weights * (1 - truth.weights) / n)).all()
    errors = np.sqrt(np.diagonal(covs, axis1=-2, axis2=-1) / (n * truth.weights[:, None]))
    assert (np.abs(means - truth.means) < 4.6 * errors).all()
    chosen = np.take_along_axis(np.argsort(order, axis=-1), model.assign(data.points), axis=-1)
    assert (chosen == truth.assign(data.points)).mean() > 0.999


@pytest.mark.parametrize("d", [2, 5])
def test_a_batch_is_its_members_fitted_one_after_the_other(d, rng):
    data = some_data(rng, 40, d, (6,))
    algorithm = MixtureFit(components=3, restarts=2)
    together, apart = np.random.default_rng(1), np.random.default_rng(1)
    model = algorithm.fit(data, together)
    singles = [algorithm.fit(Measure(x, w), apart) for x, w in zip(data.points, data.weights, strict=True)]
    for name, values in model.state().items():
        assert np.array_equal(values, np.stack([single.state()[name] for single in singles]))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_member_that_fails_is_nan_and_its_neighbours_do_not_notice(d, rng):
    data = some_data(rng, 40, d, (4,))
    points = data.points.copy()
    points[1, 7] = np.nan
    points[2] = 0.1  # no spread: every covariance is singular
    hurt = Measure(points, data.weights)
    algorithm = MixtureFit(components=2)
    well, ill = algorithm.fit(data, np.random.default_rng(0)), algorithm.fit(hurt, np.random.default_rng(0))
    ((tuned,), (tuned_ill,)) = (algorithm.tune(model, data, [0.5], rng) for model in (well, ill))
    x = rng.standard_normal((4, 5, d))
    for good, bad in ((well, ill), (tuned, tuned_ill)):
        for name, values in good.state().items():
            assert np.array_equal(values[[0, 3]], bad.state()[name][[0, 3]])
            assert np.isnan(bad.state()[name][[1, 2]]).all()
        for values in (bad.denoise(x, 0.3), bad.log_density(x), bad.sample(5, rng).points):
            assert np.isnan(values[[1, 2]]).all()
        assert np.array_equal(good.denoise(x, 0.3)[[0, 3]], bad.denoise(x, 0.3)[[0, 3]])
        draws = [model.sample(5, np.random.default_rng(2)).points for model in (good, bad)]
        assert np.array_equal(draws[0][[0, 3]], draws[1][[0, 3]])


def test_integer_weights_are_repeated_points(rng):
    points = some_mixture(rng, 2, 2).sample(30, rng).points
    counts = rng.integers(0, 4, 30)
    start = some_mixture(rng, 2, 2)
    algorithm = MixtureFit(components=2, iterations=20, tolerance=0.0)
    (weighted,) = algorithm.tune(start, Measure(points, counts / counts.sum()), [1.0], rng)
    (repeated,) = algorithm.tune(start, Measure.uniform(np.repeat(points, counts, axis=0)), [1.0], rng)
    np.testing.assert_allclose(weighted.covs, repeated.covs, atol=1e-10)
    np.testing.assert_allclose(weighted.means, repeated.means, atol=1e-10)
    np.testing.assert_allclose(weighted.weights, repeated.weights, atol=1e-10)


def test_points_without_weight_are_never_seeds(rng):
    points = np.concatenate([rng.standard_normal((20, 2)), 1e3 + rng.standard_normal((20, 2))])
    weights = np.repeat([1 / 20, 0.0], 20)
    model = MixtureFit(components=4, iterations=1).fit(Measure(points, weights), rng)
    assert np.abs(model.means).max() < 10


def test_a_component_without_mass_stays_where_it_was(rng):
    data = some_data(rng, 50, 2)
    start = MixtureModel(np.array([0.5, 0.5]), np.array([[0.0, 0.0], [1e4, 0.0]]), np.stack([np.eye(2)] * 2))
    (model,) = MixtureFit(components=2).tune(start, data, [1.0], rng)
    np.testing.assert_allclose(model.means[1], start.means[1], rtol=1e-12)
    np.testing.assert_allclose(model.covs[1], start.covs[1], rtol=1e-12)
    assert model.weights[1] < 1e-15
    np.testing.assert_allclose(model.means[0], data.moments().mean, atol=1e-9)


def test_fewer_distinct_points_than_components_do_no_harm(rng):
    points = np.repeat(rng.standard_normal((3, 2)), 4, axis=0)
    model = MixtureFit(components=5).fit(Measure.uniform(points), rng)
    assert all(np.isfinite(values).all() for values in model.state().values())


def test_far_from_the_origin_nothing_is_lost(rng):
    data = some_data(rng, 60, 2)
    moved = Measure(data.points + 1e6, data.weights)
    near, far = (MixtureFit(components=2, iterations=10).fit(which, np.random.default_rng(0)) for which in (data, moved))
    np.testing.assert_allclose(far.covs, near.covs, rtol=1e-6)
    np.testing.assert_allclose(far.means - 1e6, near.means, atol=1e-6)


def test_blocks_of_rows_and_groups_of_members_give_the_same_fit(rng, monkeypatch):
    data = some_data(rng, 50, 3, (3,))
    algorithm = MixtureFit(components=2, iterations=10)
    whole = algorithm.fit(data, np.random.default_rng(0))
    for numbers in (600, 100):
        monkeypatch.setattr(mixture, "NUMBERS", numbers)
        parts = algorithm.fit(data, np.random.default_rng(0))
        np.testing.assert_allclose(parts.covs, whole.covs, rtol=1e-9)
        np.testing.assert_allclose(parts.means, whole.means, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_more_restarts_are_never_less_likely(seed, rng):
    """One member draws its restarts in order, so the first of them is the single start."""
    data = some_mixture(rng, 4, 2, spread=3.0).sample(80, rng)
    one, many = (MixtureFit(components=4, restarts=restarts).fit(data, np.random.default_rng(seed)) for restarts in (1, 6))
    assert likelihood(many, data) > likelihood(one, data) - 1e-4  # compared one step before the end


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(1, 3), st.floats(0.1, 5.0))
def test_the_denoiser_is_the_score_of_the_noised_mixture(seed, k, d, sigma):
    """D(x; sigma) = x + sigma^2 grad ln p(x; sigma), the gradient by central differences."""
    rng = np.random.default_rng(seed)
    model = some_mixture(rng, k, d, (2,))
    x = 3 * rng.standard_normal((2, 6, d))
    blurred = noised(model, sigma)
    step = 1e-5
    gradient = np.stack(
        [(blurred.log_density(x + step * e) - blurred.log_density(x - step * e)) / (2 * step) for e in np.eye(d)], axis=-1
    )
    np.testing.assert_allclose(model.denoise(x, sigma), x + sigma**2 * gradient, atol=1e-6 * (1 + sigma**2))


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_one_component_denoises_as_the_gaussian_does(sigma, rng):
    one = some_mixture(rng, 1, 3, (2,))
    x = rng.standard_normal((2, 10, 3))
    gaussian = GaussianModel(Gaussian(one.means[:, 0], one.covs[:, 0]), Sampler())
    np.testing.assert_allclose(one.denoise(x, sigma), gaussian.denoise(x, sigma), atol=1e-12)


def test_far_out_where_every_density_underflows_the_denoiser_is_that_of_the_nearest_component():
    model = MixtureModel(np.array([0.5, 0.5]), np.array([[-1.0], [1.0]]), np.full((2, 1, 1), 1e-4))
    x = np.array([[-300.0], [400.0]])
    np.testing.assert_allclose(model.denoise(x, 0.01), np.array([[-1], [1]]) + (x - np.array([[-1], [1]])) / 2, rtol=1e-12)
    assert np.isfinite(model.log_density(x)).all()


def test_the_density_is_that_of_scipy(rng):
    model = some_mixture(rng, 3, 4)
    x = rng.standard_normal((20, 4))
    terms = [multivariate_normal(m, s).logpdf(x) for m, s in zip(model.means, model.covs, strict=True)]
    np.testing.assert_allclose(model.log_density(x), logsumexp(terms, axis=0, b=model.weights[:, None]), atol=1e-10)
    assert np.array_equal(model.assign(x), np.argmax(np.log(model.weights)[:, None] + terms, axis=0))


@pytest.mark.parametrize("sampler", [Sampler(), HEUN], ids=["exact", "heun"])
def test_samples_have_the_moments_of_the_mixture(sampler, rng):
    """Mean and second moments of 40 000 points within 4.5 SE, and what Heun's steps may add, 1 %."""
    n, plain = 40_000, some_mixture(rng, 3, 2)
    model = replace(plain, sampler=sampler)
    points = model.sample(n, rng).points
    mean = plain.weights @ plain.means
    second = np.einsum("k,kij->ij", plain.weights, plain.covs + plain.means[:, :, None] * plain.means[:, None, :])
    bias = 0.0 if sampler.kind == "exact" else 0.01
    assert (np.abs(points.mean(axis=0) - mean) < 4.5 * points.std(axis=0) / math.sqrt(n) + bias).all()
    products = points[:, :, None] * points[:, None, :]
    allowed = 4.5 * products.std(axis=0) / math.sqrt(n) + bias * second.max()
    assert (np.abs(products.mean(axis=0) - second) < allowed).all()
    assert model.sample(3, rng).labels is None
    assert model.law() is None


def test_samples_visit_components_as_often_as_their_weights_say(rng):
    model = MixtureModel(np.array([0.0, 0.1, 0.9]), np.array([[0.0], [10.0], [20.0]]), np.full((3, 1, 1), 0.01))
    counts = np.bincount(model.assign(model.sample(20_000, rng).points), minlength=3)
    assert counts[0] == 0
    assert abs(counts[1] - 2000) < 4.5 * math.sqrt(1800)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 3), st.integers(1, 3))
def test_interpolation_starts_at_one_model_and_ends_at_the_other(seed, k, d):
    rng = np.random.default_rng(seed)
    a, b = some_mixture(rng, k, d, (2,)), some_mixture(rng, k, d, (2,))
    algorithm = MixtureFit(components=k, sampler=HEUN)
    for t, end in ((0.0, a), (1.0, b)):
        found = algorithm.interpolate(a, b, t)
        for name, values in end.state().items():
            np.testing.assert_allclose(found.state()[name], values, atol=1e-9)
    back = algorithm.interpolate(algorithm.interpolate(a, b, -0.7), b, 0.7 / 1.7)  # out and back along the same line
    np.testing.assert_allclose(back.weights, a.weights, atol=1e-9)
    np.testing.assert_allclose(back.covs, a.covs, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(algorithm.interpolate(a, b, 1.5).weights.sum(axis=-1), 1.0)
    assert found.sampler == HEUN


def test_tuning_goes_the_stated_fraction_of_the_way(rng):
    data = some_data(rng, 60, 2, (3,))
    algorithm = MixtureFit(components=3)
    start = algorithm.fit(some_data(rng, 60, 2, (3,)), rng)
    none, half, whole = algorithm.tune(start, data, [0.0, 0.5, 1.0], rng)
    np.testing.assert_allclose(none.means, start.means, atol=1e-12)
    np.testing.assert_allclose(half.means, (start.means + whole.means) / 2, atol=1e-12)
    (again,) = algorithm.tune(whole, data, [1.0], rng)
    np.testing.assert_allclose(likelihood(again, data), likelihood(whole, data), atol=2e-3)
    assert (likelihood(whole, data) > likelihood(start, data)).all()


def test_sims_guides_a_mixture(rng):
    data = some_mixture(rng, 2, 2).sample(200, rng)
    algorithm = MixtureFit(components=2, sampler=HEUN)
    assert isinstance(algorithm, Tunable)
    model = Sims(algorithm=algorithm, n_synthetic=200, budget=0.5, omega=1.0).fit(data, rng)
    assert isinstance(model.pair.base, ScoreModel)
    assert isinstance(model.pair.base, BiasedModel)
    x = rng.standard_normal((5, 2))
    expected = 2 * model.pair.base.denoise(x, 0.7) - model.pair.auxiliary.denoise(x, 0.7)
    np.testing.assert_allclose(model.denoise(x, 0.7), expected)
    assert model.sample(50, rng).points.shape == (50, 2)


def test_neon_extrapolates_a_mixture(rng):
    data = some_mixture(rng, 2, 2, (3,)).sample(200, rng)
    model = Neon(algorithm=MixtureFit(components=2), n_synthetic=200, budget=1.0, omega=0.5).fit(data, rng)
    base, auxiliary = model.pair.base, model.pair.auxiliary
    np.testing.assert_allclose(model.merged.means, 1.5 * base.means - 0.5 * auxiliary.means, atol=1e-12)
    assert model.sample(50, rng).points.shape == (3, 50, 2)


def test_state_and_restore_bias_and_expansion(rng):
    model = some_mixture(rng, 3, 2)
    algorithm = MixtureFit(components=3, sampler=HEUN)
    restored = algorithm.restore(model.state())
    assert equal(restored, model)
    assert restored.sampler == HEUN
    np.testing.assert_allclose(model.biased(0.5).covs, 0.5 * model.covs)
    assert np.array_equal(model.biased(0.5).means, model.means)
    wide = model.expanded(4)
    assert wide.batch == (4,)
    assert wide.shape(7) == (4, 7, 2) == wide.sample(7, rng).points.shape
    x = rng.standard_normal((5, 2))
    np.testing.assert_allclose(wide.log_density(x), np.broadcast_to(model.log_density(x), (4, 5)))


def test_errors_say_what_to_do(rng):
    data = some_data(rng, 10, 2)
    algorithm = MixtureFit(components=3)
    with pytest.raises(ValueError, match="statistics: false"):
        algorithm.fit(data.moments(), rng)
    with pytest.raises(ValueError, match="got n = 10; use more points or fewer components"):
        MixtureFit(components=11).fit(data, rng)
    with pytest.raises(ValueError, match="flatten"):
        algorithm.fit(Measure.uniform(np.zeros((5, 2, 2)), batch=0), rng)
    with pytest.raises(ValueError, match=r"eta in \[0, 1\]"):
        next(algorithm.tune(algorithm.fit(data, rng), data, [1.5], rng))
    with pytest.raises(ValueError, match="dimension 3"):
        next(algorithm.tune(algorithm.fit(data, rng), some_data(rng, 10, 3), [1.0], rng))
    with pytest.raises(ValueError, match="got shapes"):
        MixtureModel(np.ones(2) / 2, np.zeros((2, 3)), np.zeros((2, 2, 2)))
