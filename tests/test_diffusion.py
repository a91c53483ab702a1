"""Samplers and guidance against exact affine recursions and continuum limits (theory's own, scalar implementation)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop import covariance, theory
from selfloop.algorithms.gaussian import GaussianFit, GaussianModel
from selfloop.algorithms.sims import Pair, SimsModel
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.guide import guided_law, negative_guidance
from selfloop.diffusion.sample import Sampler
from selfloop.diffusion.score import gaussian_denoiser
from selfloop.laws import Gaussian
from selfloop.theory import MeanVariance, Steps

KINDS = ["euler", "heun", "dpm", "ancestral"]
variances = st.floats(0.05, 20)
means = st.floats(-3, 3)
omegas = st.floats(-1, 3)


def line(mean: float, variance: float) -> Gaussian:
    return Gaussian(np.array([mean]), np.array([[variance]]))


def rotated(angle: float, a: float, b: float) -> np.ndarray:
    u = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return u @ np.diag([a, b]) @ u.T


@settings(max_examples=80, deadline=None)
@given(kind=st.sampled_from(KINDS), steps=st.integers(1, 30), a=variances, b=variances, m=means, k=means, omega=omegas)
def test_the_law_of_n_steps_is_the_affine_recursion(kind, steps, a, b, m, k, omega):
    sampler = Sampler(kind=kind, steps=steps, sigma_max=40.0, sigma_min=0.01)
    denoise = negative_guidance(gaussian_denoiser(line(m, a)), gaussian_denoiser(line(k, b)), omega)
    law = diffusion.law(denoise, sampler, (), 1)
    steps_ = Steps(kind, steps, 40.0, 0.01)
    exact = theory.sampler_law(MeanVariance(m, a), MeanVariance(k, b), omega, steps_)
    scale = 1 + abs(exact.variance)
    assert law.cov[0, 0] == pytest.approx(exact.variance, rel=1e-6, abs=1e-9 * scale)
    assert law.mean[0] == pytest.approx(exact.mean, rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_plane_the_law_of_n_steps_is_what_points_do(kind):
    """200,000 points through the steps themselves: mean and covariance within 4 standard errors."""
    sampler = Sampler(kind=kind, steps=12, sigma_max=20.0, sigma_min=0.05)
    base = Gaussian(np.array([1.0, -0.5]), rotated(0.4, 2.0, 0.5))
    worse = Gaussian(np.array([0.8, -0.4]), rotated(1.0, 1.2, 0.4))
    denoise = negative_guidance(gaussian_denoiser(base), gaussian_denoiser(worse), 1.5)
    law = diffusion.law(denoise, sampler, (), 2)
    x = diffusion.sample(denoise, sampler, (200_000, 2), np.random.default_rng(0))
    assert np.all(np.abs(x.mean(axis=0) - law.mean) < 4 * x.std(axis=0) / np.sqrt(len(x)))
    products = (x - law.mean)[:, :, None] * (x - law.mean)[:, None, :]
    assert np.all(np.abs(products.mean(axis=0) - law.cov) < 4 * products.std(axis=0) / np.sqrt(len(x)))


@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2), ("dpm", 2)])
def test_deterministic_samplers_converge_at_their_order(kind, order):
    """log2 of the error ratio when the number of steps doubles; sigma_min so small that the last step does not count."""
    target = theory.guided_ode(MeanVariance(0.0, 1.0), MeanVariance(0.0, 0.8), 1.0, sigma_max=20.0).variance
    denoise = negative_guidance(gaussian_denoiser(line(0, 1.0)), gaussian_denoiser(line(0, 0.8)), 1.0)
    errors = []
    for steps in (80, 160, 320):
        sampler = Sampler(kind=kind, steps=steps, sigma_max=20.0, sigma_min=1e-6)
        errors.append(abs(diffusion.law(denoise, sampler, (), 1).cov[0, 0] - target))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(rates - order) < 0.15)


def test_ancestral_steps_converge_to_the_reverse_sde_and_not_to_the_flow():
    base, worse = MeanVariance(0.0, 1.0), MeanVariance(0.0, 0.5)
    denoise = negative_guidance(gaussian_denoiser(line(0, 1.0)), gaussian_denoiser(line(0, 0.5)), 1.0)
    law = diffusion.law(denoise, Sampler(kind="ancestral", steps=8000, sigma_max=200.0, sigma_min=1e-4), (), 1)
    assert law.cov[0, 0] == pytest.approx(theory.guided_sde(base, worse, 1.0).variance, rel=0.01)
    assert abs(law.cov[0, 0] / theory.guided_ode(base, worse, 1.0).variance - 1) > 0.1


@pytest.mark.parametrize(("steps", "variance"), [(10, 0.491), (20, 0.691), (50, 0.859)])
def test_twenty_ancestral_steps_shrink_a_variance_as_stated_in_the_experiment(steps, variance):
    law = diffusion.law(
        gaussian_denoiser(line(0, 1.0)), Sampler(kind="ancestral", steps=steps, sigma_max=20.0, sigma_min=0.01), (), 1
    )
    assert law.cov[0, 0] == pytest.approx(variance, abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(a=variances, b=variances, m=means, k=means, omega=omegas)
def test_the_exact_flow_is_the_closed_form_on_the_line(a, b, m, k, omega):
    law = guided_law(line(m, a), line(k, b), omega)
    exact = theory.guided_ode(MeanVariance(m, a), MeanVariance(k, b), omega)
    assert law.cov[0, 0] == pytest.approx(exact.variance, rel=1e-7)
    assert law.mean[0] == pytest.approx(exact.mean, rel=1e-6, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(0, 3), p=variances, q=variances, r=variances, s=variances, omega=omegas)
def test_the_exact_flow_keeps_the_determinant_law_where_covariances_do_not_commute(angle, p, q, r, s, omega):
    base, worse = Gaussian(np.zeros(2), np.diag([p, q])), Gaussian(np.zeros(2), rotated(angle, r, s))
    law = guided_law(base, worse, omega)
    expected = (1 + omega) * np.log(p * q) - omega * np.log(r * s)
    lost = 16 * np.finfo(float).eps * np.linalg.cond(law.cov)  # digits that no covariance in float64 can hold
    assert np.linalg.slogdet(law.cov)[1] == pytest.approx(expected, abs=1e-6 + lost)


def test_the_exact_flow_is_not_the_log_euclidean_line():
    base, worse = np.array([[2.0, 1.0], [1.0, 2.0]]), np.diag([1.2, 2.0])
    law = guided_law(Gaussian(np.zeros(2), base), Gaussian(np.zeros(2), worse), 1.0)
    np.testing.assert_allclose(law.cov, [[3.9165, 2.6069], [2.6069, 2.6926]], atol=1e-4)
    line_ = covariance.interpolate(base, worse, -1.0)
    np.testing.assert_allclose(line_, [[3.911, 2.608], [2.608, 2.698]], atol=1e-3)


def test_many_heun_steps_reach_the_exact_flow_where_covariances_do_not_commute():
    base, worse = Gaussian(np.array([0.3, 0.1]), rotated(0.5, 2.0, 0.7)), Gaussian(np.array([0.1, 0.4]), np.diag([1.2, 1.0]))
    denoise = negative_guidance(gaussian_denoiser(base), gaussian_denoiser(worse), 2.0)
    steps = diffusion.law(denoise, Sampler(kind="heun", steps=3000, sigma_max=5000.0, sigma_min=1e-5), (), 2)
    exact = guided_law(base, worse, 2.0)
    np.testing.assert_allclose(steps.cov, exact.cov, rtol=2e-4)
    np.testing.assert_allclose(steps.mean, exact.mean, atol=2e-3)


def test_a_member_of_the_exact_flow_does_not_depend_on_the_others():
    rng = np.random.default_rng(0)
    laws = [Gaussian(m.mean, m.cov) for m in (Gaussian(np.zeros(3), np.eye(3)).expanded(5).draw(9, rng) for _ in range(2))]
    whole = guided_law(*laws, 1.3)
    alone = guided_law(*(Gaussian(law.mean[2:3], law.cov[2:3]) for law in laws), 1.3)
    np.testing.assert_array_equal(whole.cov[2:3], alone.cov)
    bad = laws[0].cov.copy()
    bad[0] = np.nan
    spoilt = guided_law(Gaussian(laws[0].mean, bad), laws[1], 1.3)
    assert np.isnan(spoilt.cov[0]).all()
    np.testing.assert_array_equal(spoilt.cov[1:], whole.cov[1:])


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(kind="heun", steps=10), Sampler(kind="ancestral", steps=10)])
def test_no_guidance_is_the_base_bit_for_bit_and_minus_one_the_auxiliary(sampler):
    rng = np.random.default_rng(0)
    data = [Gaussian(np.zeros(2), np.eye(2)).expanded(4).draw(30, rng) for _ in range(2)]
    base, auxiliary = (GaussianFit(sampler=sampler).fit(moments, rng) for moments in data)
    for omega, model in ((0.0, base), (-1.0, auxiliary)):
        guided = SimsModel(Pair(base, auxiliary), omega)
        np.testing.assert_array_equal(guided.law().cov, model.law().cov)
        np.testing.assert_array_equal(guided.law().mean, model.law().mean)
    same = SimsModel(Pair(base, base), 2.5)
    np.testing.assert_allclose(same.law().cov, base.law().cov, rtol=1e-8)


def test_denoisers_of_gaussians_are_posterior_means():
    law = Gaussian(np.array([1.0, 2.0]), rotated(0.3, 2.0, 0.5))
    x = np.random.default_rng(0).standard_normal((7, 2))
    model = GaussianModel(law, Sampler())
    gain = law.cov @ np.linalg.inv(law.cov + 0.49 * np.eye(2))
    np.testing.assert_allclose(model.denoise(x, 0.7), law.mean + (x - law.mean) @ gain.T, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "euler", "sigma_min": 5.0, "sigma_max": 1.0}, "sigma_min must lie below sigma_max"),
        ({"kind": "rk4"}, "'exact', 'euler', 'heun', 'dpm' or 'ancestral'"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"rho": -1.0}, "greater than 0"),
        ({"sigma_max": float("nan")}, "finite"),
    ],
)
def test_a_sampler_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_the_exact_sampler_has_no_steps_to_run():
    with pytest.raises(ValueError, match="has no steps"):
        diffusion.sample(gaussian_denoiser(line(0, 1)), Sampler(), (3, 1), np.random.default_rng(0))
