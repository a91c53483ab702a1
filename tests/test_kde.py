"""The kernel density estimate against SciPy, against the mixture it is, and against the known variance of its loop."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import gaussian_kde

from selfloop.algorithms import kde
from selfloop.algorithms.kde import KdeFit, KdeModel
from selfloop.algorithms.mixture import MixtureModel
from selfloop.algorithms.sims import Sims
from selfloop.diffusion.sample import Sampler
from selfloop.measure import Measure
from selfloop.protocols import BiasedModel, ScoreModel, Tunable

HEUN = Sampler(kind="heun", steps=40, sigma_max=300.0, sigma_min=0.005)
SEEDS = st.integers(0, 2**32 - 1)
RULES = st.sampled_from(["scott", "silverman"])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def some_data(rng, n, d, batch=()):
    points = rng.standard_normal((*batch, n, d)) @ rng.standard_normal((d, d)) + rng.choice([-2, 2], (*batch, n, 1))
    return Measure(points, rng.dirichlet(np.full(n, 2.0), size=batch or None))


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(12, 40), st.integers(1, 4), RULES)
def test_the_density_is_that_of_scipy(seed, n, d, rule):
    rng = np.random.default_rng(seed)
    data = some_data(rng, n, d)
    model = KdeFit(bandwidth=rule).fit(data, rng)
    peer = gaussian_kde(data.points.T, rule, data.weights)
    x = 2 * rng.standard_normal((7, d))
    np.testing.assert_allclose(model.kernel, peer.covariance, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(model.log_density(x), peer.logpdf(x.T), rtol=1e-7, atol=1e-7)


def test_a_number_is_the_standard_deviation_of_the_kernel(rng):
    data = some_data(rng, 10, 1)
    x = np.linspace(-3, 3, 5)[:, None]
    terms = np.exp(-0.5 * ((x - data.points.T) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(np.exp(KdeFit(bandwidth=0.3).fit(data, rng).log_density(x)), terms @ data.weights, rtol=1e-12)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 3), st.floats(0.1, 5.0), st.one_of(RULES, st.floats(0.2, 2.0)))
def test_the_denoiser_is_the_score_of_the_noised_estimate(seed, d, sigma, bandwidth):
    """D(x; sigma) = x + sigma^2 grad ln p(x; sigma), the gradient by central differences."""
    rng = np.random.default_rng(seed)
    model = KdeFit(bandwidth=bandwidth).fit(some_data(rng, 12, d, (2,)), rng)
    blurred = replace(model, kernel=model.kernel + sigma**2 * np.eye(d))
    x = 3 * rng.standard_normal((2, 6, d))
    step = 1e-5
    gradient = np.stack(
        [(blurred.log_density(x + step * e) - blurred.log_density(x - step * e)) / (2 * step) for e in np.eye(d)], axis=-1
    )
    np.testing.assert_allclose(model.denoise(x, sigma), x + sigma**2 * gradient, atol=1e-5 * (1 + sigma**2))


@pytest.mark.parametrize("sigma", [0.01, 1.0, 80.0])
def test_it_is_a_mixture_with_a_component_at_every_point(sigma, rng):
    data = some_data(rng, 15, 3, (2,))
    model = KdeFit().fit(data, rng)
    mixture = MixtureModel(data.weights, data.points, np.broadcast_to(model.kernel[:, None], (2, 15, 3, 3)))
    x = 2 * rng.standard_normal((2, 8, 3))
    np.testing.assert_allclose(model.denoise(x, sigma), mixture.denoise(x, sigma), atol=1e-10)
    np.testing.assert_allclose(model.log_density(x), mixture.log_density(x), atol=1e-10)


@pytest.mark.parametrize("pairs", [1, 7, 50])
def test_blocks_change_nothing(pairs, rng, monkeypatch):
    model = KdeFit().fit(some_data(rng, 15, 2, (2,)), rng)
    x = rng.standard_normal((2, 9, 2))
    whole = model.denoise(x, 0.2), model.log_density(x)
    monkeypatch.setattr(kde, "PAIRS", pairs)
    np.testing.assert_allclose(model.denoise(x, 0.2), whole[0], atol=1e-13)
    np.testing.assert_allclose(model.log_density(x), whole[1], atol=1e-12)


@pytest.mark.parametrize("sigma", [1e-3, 1.0])
def test_where_every_kernel_underflows_the_nearest_centre_decides(sigma):
    model = KdeModel(np.array([[-1.0], [1.0]]), np.array([0.5, 0.5]), np.array([[1e-6]]))
    expected = 1 + (500.0 - 1) * 1e-6 / (1e-6 + sigma**2)
    np.testing.assert_allclose(model.denoise(np.array([[500.0]]), sigma), [[expected]], rtol=1e-12)


@pytest.mark.parametrize("sampler", [Sampler(), HEUN], ids=["exact", "heun"])
def test_samples_have_the_moments_of_data_and_kernel(sampler, rng):
    """Mean m and covariance S + H of 40 000 points within 4.5 SE, and what Heun's steps may add, 1 %."""
    n, data = 40_000, some_data(rng, 20, 2)
    model = KdeFit(sampler=sampler).fit(data, rng)
    centred = model.sample(n, rng).points - data.moments().mean
    bias = 0.0 if sampler.kind == "exact" else 0.01
    cov = data.moments().cov + model.kernel
    assert (np.abs(centred.mean(axis=0)) < 4.5 * centred.std(axis=0) / math.sqrt(n) + bias).all()
    products = centred[:, :, None] * centred[:, None, :]
    assert (np.abs(products.mean(axis=0) - cov) < 4.5 * products.std(axis=0) / math.sqrt(n) + bias * cov.max()).all()
    assert model.sample(3, rng).labels is None
    assert model.law() is None


def test_centres_are_drawn_by_their_weights(rng):
    weights = np.array([[0.0, 0.2, 0.8], [0.5, 0.5, 0.0]])
    model = KdeModel(np.broadcast_to(np.array([[0.0], [1.0], [2.0]]), (2, 3, 1)), weights, np.full((2, 1, 1), 1e-12))
    drawn = np.rint(model.sample(10_000, rng).points[..., 0])
    counts = np.stack([(drawn == value).sum(axis=-1) for value in range(3)], axis=-1)
    assert (counts[weights == 0] == 0).all()
    assert (np.abs(counts - 1e4 * weights) <= 4.5 * np.sqrt(1e4 * weights * (1 - weights))).all()


@pytest.mark.parametrize("h", [0.1, 0.5])
def test_the_loop_replaces_the_variance_of_the_data_by_that_of_the_kernel(h):
    """E var_t = (1 - 1/n)^t V_0 + h^2 (n - 1) [1 - (1 - 1/n)^(t - 1)], var_t of the data of fit t, those of fit 1 real.

    Each fit is to n points of the one before. Within 4 SE at three generations (false alarms: 0.02 %).
    """
    n, replicates, rng = 20, 4000, np.random.default_rng(5)
    data = Measure.uniform(rng.standard_normal((replicates, n, 1)))
    keep = 1 - 1 / n
    for t in range(1, 61):
        if t in (2, 10, 60):
            variance = data.moments().cov[:, 0, 0]
            expected = keep**t + h**2 * (n - 1) * (1 - keep ** (t - 1))
            assert abs(variance.mean() - expected) < 4 * variance.std() / math.sqrt(replicates)
        data = KdeFit(bandwidth=h).fit(data, rng).sample(n, rng)


@pytest.mark.parametrize("bandwidth", ["scott", 0.4])
def test_a_member_with_nan_is_nan_and_its_neighbours_do_not_notice(bandwidth, rng):
    data = some_data(rng, 12, 2, (3,))
    points = data.points.copy()
    points[1, 4, 0] = np.nan
    algorithm = KdeFit(bandwidth=bandwidth)
    well, ill = algorithm.fit(data, rng), algorithm.fit(Measure(points, data.weights), rng)
    x = rng.standard_normal((3, 5, 2))
    pairs = [
        (model.denoise(x, 0.3), model.log_density(x), model.sample(6, np.random.default_rng(1)).points) for model in (well, ill)
    ]
    for good, bad in zip(*pairs, strict=True):
        assert np.isnan(bad[1]).all()
        assert np.array_equal(good[[0, 2]], bad[[0, 2]])


def test_a_flat_direction_stays_flat(rng):
    points = np.stack([rng.standard_normal(30), np.full(30, 2.0)], axis=-1)
    model = KdeFit().fit(Measure.uniform(points), rng)
    np.testing.assert_allclose(model.sample(50, rng).points[:, 1], 2.0, atol=1e-6)
    np.testing.assert_allclose(model.denoise(np.array([[0.0, 3.0]]), 0.5)[0, 1], 2.0, atol=1e-10)
    assert np.isnan(model.log_density(points)).all()


def test_bias_narrows_the_kernel_and_leaves_the_centres(rng):
    model = KdeFit(bandwidth=0.5).fit(some_data(rng, 10, 2), rng)
    np.testing.assert_allclose(model.biased(0.25).kernel, 0.25**2 * np.eye(2))
    drawn = model.biased(1e-20).sample(20, rng).points
    assert np.abs(drawn[:, None] - model.centres).max(axis=-1).min(axis=-1).max() < 1e-8


def test_state_and_restore(rng):
    algorithm = KdeFit(sampler=HEUN)
    model = algorithm.fit(some_data(rng, 10, 2, (3,)), rng)
    again = algorithm.restore(model.state())
    assert again.sampler == HEUN
    assert again.shape(4) == (3, 4, 2)
    assert all(np.array_equal(again.state()[name], values) for name, values in model.state().items())
    assert isinstance(model, ScoreModel)
    assert isinstance(model, BiasedModel)


def test_it_cannot_be_tuned_and_sims_says_so():
    assert not isinstance(KdeFit(), Tunable)
    with pytest.raises(ValidationError, match="Tunable"):
        Sims(algorithm=KdeFit(), n_synthetic=10, budget=0.5)


def test_errors_say_what_to_do(rng):
    data = some_data(rng, 10, 2)
    with pytest.raises(ValueError, match="statistics: false"):
        KdeFit().fit(data.moments(), rng)
    with pytest.raises(ValueError, match="flatten"):
        KdeFit().fit(Measure.uniform(np.zeros((5, 2, 2)), batch=0), rng)
    with pytest.raises(ValueError, match="set bandwidth to a number"):
        KdeFit().fit(Measure.uniform(np.zeros((1, 2))), rng)
    with pytest.raises(ValueError, match="got shapes"):
        KdeModel(np.zeros((5, 2)), np.full(5, 0.2), np.zeros((5, 2, 2)))
    with pytest.raises(ValidationError):
        KdeFit(bandwidth=0.0)
    with pytest.raises(ValidationError):
        KdeFit(bandwidth="scot")
