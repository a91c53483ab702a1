"""Churn, DPM-Solver steps, block-keyed noise and guidance by several: exact recursions, identities and counted calls."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.guide import autoguidance, guided, negative_guidance
from selfloop.diffusion.sample import BLOCK, Sampler
from selfloop.diffusion.score import gaussian_denoiser
from selfloop.laws import Gaussian

DETERMINISTIC = ["euler", "heun", "dpm"]
KINDS = [*DETERMINISTIC, "ancestral"]
variances = st.floats(0.05, 20)
omegas = st.floats(-1, 3)


def normal(variance, mean=0.0):
    return Gaussian(np.array([mean]), np.array([[variance]]))


def curved(x, sigma, mean=(1.0, -0.5), variance=(0.6, 2.0)):
    """The denoiser of N(mean, diag variance) and a term that is not linear, for arrays and tensors (..., 2)."""
    kind = torch.as_tensor if isinstance(x, torch.Tensor) else np.asarray
    m, v = kind(np.array(mean)), kind(np.array(variance))
    gain = v / (v + sigma**2)
    return m + gain * (x - m) + 0.1 * x / (1 + x**2)


class Counted:
    """A denoiser that notes the levels it is asked for."""

    def __init__(self, denoise):
        self.denoise, self.levels = denoise, []

    def __call__(self, x, sigma):
        self.levels.append(sigma)
        return self.denoise(x, sigma)


# --- churn


def affine_recursion(kind, a, b, omega, levels, gamma, low, high, scale, start):
    """V <- (V + (s_hat^2 - s^2) S_noise^2) factor^2, factor the slope of the step; centred Gaussians of variances a and b."""

    def gain(s):
        return (1 + omega) * a / (a + s**2) - omega * b / (b + s**2)

    variance = start
    for s, s_next in itertools.pairwise(levels):
        s_hat = s * (1 + gamma) if low <= s <= high else s
        ratio = s_next / s_hat
        euler = ratio + (1 - ratio) * gain(s_hat)
        factor = euler
        if kind == "heun" and s_next > 0:
            factor = 1 + (s_next - s_hat) / 2 * ((1 - gain(s_hat)) / s_hat + (1 - gain(s_next)) / s_next * euler)
        if kind == "dpm" and s_next > 0:
            middle, root = math.sqrt(s_hat * s_next), math.sqrt(ratio)
            factor = ratio + (1 - ratio) * gain(middle) * (root + (1 - root) * gain(s_hat))
        variance = (variance + (s_hat**2 - s**2) * scale**2) * factor**2
    return variance


@given(
    kind=st.sampled_from(DETERMINISTIC),
    steps=st.integers(1, 40),
    churn=st.floats(0, 60),
    bounds=st.tuples(st.floats(0, 10), st.none() | st.floats(10.5, 50)),
    scale=st.floats(0.5, 1.5),
    a=variances,
    b=variances,
    omega=omegas,
)
def test_churn_is_the_affine_recursion(kind, steps, churn, bounds, scale, a, b, omega):
    low, high = bounds
    ends = {"steps": steps, "sigma_max": 40.0, "sigma_min": 0.01}
    sampler = Sampler(kind=kind, churn=churn, churn_min=low, churn_max=high, churn_noise=scale, **ends)
    denoise = negative_guidance(gaussian_denoiser(normal(a)), gaussian_denoiser(normal(b)), omega)
    gamma = min(churn / steps, math.sqrt(2) - 1)
    bound = math.inf if high is None else high
    exact = affine_recursion(kind, a, b, omega, sampler.levels(), gamma, low, bound, scale, 40.0**2)
    assert diffusion.law(denoise, sampler, (), 1).cov[0, 0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(("churn", "std"), [(0.0, 1.1110), (10.0, 1.1186), (40.0, 1.1279), (100.0, 1.1340)])
def test_churn_in_many_steps_has_the_known_standard_deviations(churn, std):
    """Base of standard deviation 1, auxiliary .9, omega 1: from the flow of the ODE toward the noisy limit."""
    denoise = negative_guidance(gaussian_denoiser(normal(1.0)), gaussian_denoiser(normal(0.81)), 1.0)
    law = diffusion.law(denoise, Sampler(kind="heun", steps=4096, churn=churn), (), 1)
    assert math.sqrt(law.cov[0, 0]) == pytest.approx(std, abs=6e-5)


def test_in_18_steps_any_churn_from_10_on_is_the_same():
    denoise = negative_guidance(gaussian_denoiser(normal(1.0)), gaussian_denoiser(normal(0.81)), 1.0)
    stds = [math.sqrt(diffusion.law(denoise, Sampler(kind="heun", churn=c), (), 1).cov[0, 0]) for c in (7.0, 10.0, 40.0, 1e9)]
    assert stds[1:] == pytest.approx([1.2327] * 3, abs=5e-5)
    assert stds[1] == stds[2] == stds[3] != stds[0]


def test_churn_raises_the_levels_of_its_interval_alone_and_ends_are_in_it():
    sampler = Sampler(kind="euler", steps=3, sigma_max=4.0, sigma_min=1.0, rho=1.0, churn=0.75, churn_min=1.0, churn_max=2.5)
    assert list(sampler.moves()) == [(4.0, 2.5), (2.5, 3.125), (3.125, 1.0), (1.0, 1.25), (1.25, 0.0)]
    without = Sampler(kind="euler", steps=3, sigma_max=4.0, sigma_min=1.0, rho=1.0)
    assert list(without.moves()) == [(4.0, 2.5), (2.5, 1.0), (1.0, 0.0)]


@given(low=st.floats(0.001, 1), high=st.floats(1.5, 1000), rho=st.floats(1, 20), steps=st.integers(1, 50))
def test_levels_fall_from_sigma_max_to_sigma_min_exactly_so_that_an_interval_up_to_them_holds_all(low, high, rho, steps):
    levels = Sampler(kind="heun", steps=steps, sigma_min=low, sigma_max=high, rho=rho).levels()
    assert len(levels) == steps + 1
    assert (levels[0], levels[-1]) == (high, 0)
    assert steps == 1 or levels[-2] == low
    assert np.all(np.diff(levels) < 0)


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_points_under_churn_have_the_law_that_was_computed(kind, n=100_000):
    """Mean and variance of 100,000 points within 4 standard errors."""
    denoise = negative_guidance(gaussian_denoiser(normal(1.0, 0.5)), gaussian_denoiser(normal(0.7, 0.2)), 1.0)
    sampler = Sampler(kind=kind, steps=6, sigma_max=10.0, sigma_min=0.1, churn=2.0, churn_min=0.3, churn_noise=1.1)
    law = diffusion.law(denoise, sampler, (), 1)
    x = diffusion.sample(denoise, sampler, (n, 1), np.random.default_rng(0))[:, 0]
    assert abs(x.mean() - law.mean[0]) < 4 * x.std() / math.sqrt(n)
    assert abs(x.var() - law.cov[0, 0]) < 4 * law.cov[0, 0] * math.sqrt(2 / n)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ancestral", "churn": 1.0}, "churn must be 0 for ancestral"),
        ({"kind": "exact", "churn": 1.0}, "churn must be 0 for exact"),
        ({"kind": "heun", "churn_min": 2.0, "churn_max": 1.0}, "churn_min must lie below churn_max"),
        ({"kind": "heun", "churn": -1.0}, "greater than or equal to 0"),
        ({"kind": "heun", "churn_noise": 0.0}, "greater than 0"),
    ],
)
def test_churn_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


# --- dpm


@pytest.mark.parametrize("variance", [0.25, 1.0, 4.0])
def test_dpm_is_of_second_order_and_nearer_than_heun_at_equal_calls(variance):
    """Against the exact flow, x (v / (v + sigma_max^2))^(1/2); sigma_min so small that the last step does not count."""
    exact = variance * 20.0**2 / (variance + 20.0**2)
    errors, calls = {}, {}
    for kind in ("heun", "dpm"):
        for steps in (40, 80, 160):
            counted = Counted(gaussian_denoiser(normal(variance)))
            sampler = Sampler(kind=kind, steps=steps, sigma_max=20.0, sigma_min=1e-6)
            errors[kind, steps] = abs(diffusion.law(counted, sampler, (), 1).cov[0, 0] - exact)
            calls[kind, steps] = len(counted.levels)
    for steps in (40, 80, 160):
        assert calls["dpm", steps] == calls["heun", steps] == 2 * steps - 1
        assert errors["dpm", steps] < 0.6 * errors["heun", steps]
    for steps in (40, 80):
        assert math.log2(errors["dpm", steps] / errors["dpm", 2 * steps]) == pytest.approx(2, abs=0.15)


# --- noise of blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(kind, n):
    sampler = Sampler(kind=kind, steps=4, churn=0.0 if kind == "ancestral" else 3.0)
    for batch, axis in (((), 0), ((3,), 1)):
        larger = diffusion.sample(curved, sampler, (*batch, 300, 2), np.random.default_rng(5), axis)
        smaller = diffusion.sample(curved, sampler, (*batch, n, 2), np.random.default_rng(5), axis)
        assert smaller.shape == (*batch, n, 2)
        np.testing.assert_array_equal(smaller, larger[..., :n, :])


def test_every_point_of_every_member_has_noise_of_its_own():
    """No two numbers of 3 x 130 points are alike: blocks, members, rows, draws in a row, generators."""
    noise = diffusion.BlockNoise((3, 2 * BLOCK + 2, 2), 1, np.random.default_rng(0))
    first, second = noise(), noise()
    other = diffusion.BlockNoise((3, 2 * BLOCK + 2, 2), 1, np.random.default_rng(1))()
    values = np.concatenate([x.ravel() for x in (first, second, other)])
    assert len(np.unique(values)) == len(values)


def test_noise_of_blocks_is_standard_normal_and_independent_between_them(blocks=2000):
    """Mean, variance and correlation of neighbouring blocks over 128,000 numbers, within 4 standard errors of 0, 1 and 0."""
    z = diffusion.BlockNoise((blocks * BLOCK, 1), 0, np.random.default_rng(0))().reshape(blocks, BLOCK)
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(n - BLOCK)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_and_arrays_draw_the_same_points(kind):
    sampler = Sampler(kind=kind, steps=9, churn=0.0 if kind == "ancestral" else 4.0)
    arrays = diffusion.sample(curved, sampler, (2, 70, 2), np.random.default_rng(3), 1)
    tensors = diffusion.sample(curved, sampler, (2, 70, 2), np.random.default_rng(3), 1, lift=torch.as_tensor)
    assert isinstance(tensors, np.ndarray)
    np.testing.assert_allclose(tensors, arrays, rtol=1e-12, atol=1e-12)


# --- guidance


def pulled(m, v):
    return gaussian_denoiser(normal(v, m))


@given(first=omegas, second=omegas, a=variances, b=variances, c=variances, sigma=st.floats(0.01, 50))
def test_two_auxiliaries_are_two_extrapolations_one_inside_the_other(first, second, a, b, c, sigma):
    """(1 + w) [(1 + u) D - u D_1] - w D_2: weights (1 + w) u and w."""
    base, one, two = pulled(0.0, a), pulled(0.5, b), pulled(-0.3, c)
    nested = negative_guidance(negative_guidance(base, one, first), two, second)
    flat = guided(base, [one, two], [(1 + second) * first, second])
    x = np.array([[-2.0], [0.3], [1.7]])
    np.testing.assert_allclose(flat(x, sigma), nested(x, sigma), rtol=1e-12, atol=1e-12 * (1 + abs(first)) * (1 + abs(second)))


def test_the_order_of_auxiliaries_does_not_matter_and_none_is_the_base():
    base, one, two = pulled(0.0, 1.0), pulled(0.5, 0.7), pulled(-0.3, 2.0)
    x = np.array([[-2.0], [0.3], [1.7]])
    one_first, two_first = guided(base, [one, two], [0.4, 1.1]), guided(base, [two, one], [1.1, 0.4])
    np.testing.assert_allclose(one_first(x, 0.8), two_first(x, 0.8), rtol=1e-13)
    np.testing.assert_array_equal(guided(base, [], [])(x, 0.8), base(x, 0.8))


def test_omega_0_is_the_base_bit_for_bit_and_minus_1_the_auxiliary():
    base, auxiliary = pulled(0.0, 1.0), pulled(0.5, 0.7)
    x = np.random.default_rng(0).standard_normal((20, 1))
    for sigma in (0.01, 0.9, 30.0):
        np.testing.assert_array_equal(negative_guidance(base, auxiliary, 0.0)(x, sigma), base(x, sigma))
        np.testing.assert_array_equal(negative_guidance(base, auxiliary, -1.0)(x, sigma), auxiliary(x, sigma))


@given(weight=st.floats(0, 4), a=variances, b=variances, sigma=st.floats(0.01, 50))
def test_autoguidance_of_weight_w_is_negative_guidance_of_w_minus_1(weight, a, b, sigma):
    main, guide = pulled(0.2, a), pulled(-0.4, b)
    x = np.array([[-2.0], [0.3], [1.7]])
    found = autoguidance(main, guide, weight)(x, sigma)
    np.testing.assert_array_equal(found, negative_guidance(main, guide, weight - 1)(x, sigma))
    stated = guide(x, sigma) + weight * (main(x, sigma) - guide(x, sigma))
    np.testing.assert_allclose(found, stated, rtol=1e-12, atol=1e-12)


@given(omega=omegas, scale=st.floats(0.1, 10), shift=st.floats(-5, 5), angle=st.floats(0, 6), sigma=st.floats(0.05, 20))
def test_guidance_commutes_with_a_change_of_coordinates_that_all_models_share(omega, scale, shift, angle, sigma):
    """y = scale U x + shift, noise scale sigma, D_y(y; scale sigma) = scale U D_x(x; sigma) + shift."""
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    def moved(denoise):
        return lambda y, s: denoise((y - shift) @ np.linalg.inv(turn).T, s / scale) @ turn.T + shift

    def auxiliary(x, s):
        return curved(x, s, mean=(0.7, 0.0), variance=(0.5, 1.5))

    x = np.array([[0.3, -1.0], [2.0, 0.5], [-1.0, 1.0]])
    y = x @ turn.T + shift
    one = negative_guidance(moved(curved), moved(auxiliary), omega)(y, scale * sigma)
    other = moved(negative_guidance(curved, auxiliary, omega))(y, scale * sigma)
    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_acts_in_its_interval_and_outside_no_auxiliary_is_asked(kind):
    """Ends included; the base answers at every level, bit for bit as it does alone."""
    low, high = 0.3, 5.0
    base, one, two = (Counted(pulled(m, v)) for m, v in ((0.0, 1.0), (0.5, 0.7), (-0.3, 2.0)))
    sampler = Sampler(kind=kind, steps=12, sigma_max=20.0, sigma_min=0.05)
    diffusion.sample(guided(base, [one, two], [1.0, 0.5], (low, high)), sampler, (3, 1), np.random.default_rng(0))
    inside = [s for s in base.levels if low <= s <= high]
    assert one.levels == two.levels == inside
    assert 0 < len(inside) < len(base.levels)
    plain, whole = guided(pulled(0.0, 1.0), [one], [1.0], (low, high)), guided(pulled(0.0, 1.0), [one], [1.0])
    x = np.array([[-2.0], [0.3]])
    for sigma in (0.1, 0.2999, 5.0001, 20.0):
        np.testing.assert_array_equal(plain(x, sigma), pulled(0.0, 1.0)(x, sigma))
        assert np.abs(plain(x, sigma) - whole(x, sigma)).max() > 1e-3
    for sigma in (low, 1.0, high):
        np.testing.assert_array_equal(plain(x, sigma), whole(x, sigma))


def test_an_interval_of_all_levels_is_no_interval():
    base, auxiliary = pulled(0.0, 1.0), pulled(0.5, 0.7)
    sampler = Sampler(kind="heun", steps=7)
    for make in (negative_guidance, autoguidance):
        law, everywhere = (diffusion.law(make(base, auxiliary, 2.0, i), sampler, (), 1) for i in (None, (0.0, 80.0)))
        np.testing.assert_array_equal(law.cov, everywhere.cov)


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)])
def test_an_interval_without_levels_is_refused(interval):
    for make in (negative_guidance, autoguidance):
        with pytest.raises(ValueError, match="it holds no level"):
            make(pulled(0.0, 1.0), pulled(0.5, 0.7), 1.0, interval)


@pytest.mark.parametrize(("k", "omegas_given"), [(2, [1.0]), (1, [1.0, 2.0]), (0, [1.0])])
def test_every_auxiliary_needs_its_omega(k, omegas_given):
    with pytest.raises(ValueError, match=f"got {k} auxiliaries and {len(omegas_given)} omegas"):
        guided(pulled(0.0, 1.0), [pulled(0.5, 0.7)] * k, omegas_given)


def test_each_member_of_a_batch_may_have_its_omega():
    laws = [Gaussian(np.zeros((3, 1)), np.full((3, 1, 1), v)) for v in (1.0, 0.7)]
    base, auxiliary = (gaussian_denoiser(law) for law in laws)
    values = np.array([0.0, 1.0, 2.5])
    sampler = Sampler(kind="dpm", steps=8)
    together = diffusion.law(negative_guidance(base, auxiliary, values[:, None, None]), sampler, (3,), 1)
    for r, omega in enumerate(values):
        alone = diffusion.law(negative_guidance(base, auxiliary, float(omega)), sampler, (3,), 1)
        np.testing.assert_array_equal(together.cov[r], alone.cov[r])
