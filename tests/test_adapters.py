"""Networks of others, here the best ones for Gaussian data, in their own variables; the oracle is our Gaussian denoiser."""

import math

import numpy as np
import pytest
import torch

from selfloop.diffusion.adapters import Ddpm, Flow, adapted, cosine_abar, linear_abar, scaled_linear_abar
from selfloop.diffusion.sample import Sampler, sample
from selfloop.diffusion.score import gaussian_denoiser
from selfloop.laws import Gaussian

TABLES = {"linear": linear_abar(), "scaled_linear": scaled_linear_abar(), "cosine": cosine_abar()}
SCHEDULES = {**{name: Ddpm(abar) for name, abar in TABLES.items()}, "flow": Flow()}
PREDICTIONS = ["epsilon", "v", "sample", "velocity"]
LAW = Gaussian(np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]]))
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def best_network(prediction, schedule, lift=np.asarray):
    """E[target | x_t] for x_0 ~ LAW, x_t = a x_0 + b z: linear regression on x_t, from the covariances of the two."""
    mean, cov = LAW.mean, LAW.cov

    def network(x_t, t):
        if isinstance(schedule, Flow):
            a, b = 1 - t, t
        else:
            steps = np.arange(len(schedule.abar))
            log_ratio = np.interp(t, steps, np.log((1 - schedule.abar) / schedule.abar))
            a, b = (1 / (1 + math.exp(log_ratio))) ** 0.5, (1 / (1 + math.exp(-log_ratio))) ** 0.5
        v = (-b / math.hypot(a, b), a / math.hypot(a, b))
        data, noise = {"epsilon": (0, 1), "v": v, "sample": (1, 0), "velocity": (-1, 1)}[prediction]  # in the target
        gain = (data * a * cov + noise * b * np.eye(2)) @ np.linalg.inv(a**2 * cov + b**2 * np.eye(2))
        return lift(data * mean) + (x_t - lift(a * mean)) @ lift(np.ascontiguousarray(gain.T))

    return network


def within(schedule):
    """Levels between those of the table, from its first to its last."""
    low, high = (0.001, 500.0) if isinstance(schedule, Flow) else (schedule.sigma(0), schedule.sigma(len(schedule.abar) - 1))
    return [low, *np.geomspace(low, high, 23)[1:-1].tolist(), high]


@by_schedule
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_best_network_for_a_gaussian_becomes_its_denoiser(prediction, schedule):
    """To 1e-10, at both ends of the schedule and at levels between those of its table."""
    denoise, exact = adapted(best_network(prediction, schedule), prediction, schedule), gaussian_denoiser(LAW)
    z = np.random.default_rng(0).standard_normal((7, 2))
    for sigma in within(schedule):
        x = LAW.mean + sigma * z
        np.testing.assert_allclose(denoise(x, sigma), exact(x, sigma), rtol=1e-10, atol=1e-10)


@by_schedule
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_tensors_give_the_numbers_of_arrays(prediction, schedule):
    arrays = adapted(best_network(prediction, schedule), prediction, schedule)
    tensors = adapted(best_network(prediction, schedule, torch.as_tensor), prediction, schedule)
    x = np.random.default_rng(0).standard_normal((7, 2))
    for sigma in (0.5, 10.0):
        found = tensors(torch.as_tensor(x), sigma)
        assert isinstance(found, torch.Tensor)
        np.testing.assert_allclose(found.numpy(), arrays(x, sigma), rtol=1e-12, atol=1e-12)


@by_schedule
def test_time_is_the_inverse_of_sigma_for_numbers_and_arrays(schedule):
    levels = np.array(within(schedule))
    times = schedule.time(levels)
    assert np.all(np.diff(times) > 0)
    np.testing.assert_allclose(schedule.sigma(times), levels, rtol=1e-12)
    one = schedule.time(float(levels[3]))
    assert isinstance(one, float)
    assert (one, schedule.sigma(one)) == (pytest.approx(times[3]), pytest.approx(levels[3]))


@pytest.mark.parametrize("schedule", [Ddpm(abar) for abar in TABLES.values()], ids=TABLES)
def test_at_whole_times_the_table_is_met(schedule):
    t = np.arange(len(schedule.abar))
    sigma = ((1 - schedule.abar) / schedule.abar) ** 0.5
    np.testing.assert_allclose(schedule.sigma(t), sigma, rtol=1e-12)
    np.testing.assert_allclose(schedule.time(sigma), t, atol=1e-9)
    np.testing.assert_allclose(schedule.scale(sigma), schedule.abar**0.5, rtol=1e-12)
    assert schedule.sigma(2.5) == pytest.approx((sigma[2] * sigma[3]) ** 0.5)


def test_the_makers_give_the_tables_of_their_papers():
    """beta of Ho et al. and of latent diffusion runs between the ends stated; Nichol and Dhariwal's is cut at .999."""
    for abar, low, high in ((linear_abar(), 1e-4, 0.02), (scaled_linear_abar(), 0.00085, 0.012)):
        beta = 1 - abar[1:] / abar[:-1]
        assert (1 - abar[0], beta[-1]) == (pytest.approx(low), pytest.approx(high))
        assert len(abar) == 1000
    beta = 1 - linear_abar()[1:] / linear_abar()[:-1]
    assert np.ptp(np.diff(beta)) < 1e-12
    root = np.sqrt(1 - scaled_linear_abar()[1:] / scaled_linear_abar()[:-1])
    assert np.ptp(np.diff(root)) < 1e-10
    abar = cosine_abar()
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(abar[:-1], f[1:-1] / f[0], rtol=1e-9)
    assert abar[-1] == pytest.approx(abar[-2] * 1e-3)


@pytest.mark.parametrize("sigma", [0.009, 158.0, math.nan])
def test_a_level_outside_the_table_is_refused_with_its_range(sigma):
    denoise = adapted(lambda x, t: x, "epsilon", SCHEDULES["linear"])
    with pytest.raises(ValueError, match=r"sigma must lie in \[0.0100005, 157.407\].*set sigma_min and sigma_max"):
        denoise(np.zeros(2), sigma)


def test_training_outside_the_table_is_refused():
    for t in (-0.1, 999.1, np.array([3.0, 1000.0])):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 999\]"):
            SCHEDULES["linear"].sigma(t)


def test_a_sampler_may_start_and_end_at_the_ends_of_the_table():
    schedule = SCHEDULES["linear"]
    for rho in (1.0, 3.0, 7.0):
        ends = {"sigma_min": schedule.sigma(0), "sigma_max": schedule.sigma(999)}
        sampler = Sampler(kind="heun", steps=5, rho=rho, **ends)
        denoise = adapted(best_network("v", schedule), "v", schedule)
        assert np.isfinite(sample(denoise, sampler, (3, 2), np.random.default_rng(0))).all()


@pytest.mark.parametrize("abar", [[0.5], [0.5, 0.9], [1.0, 0.5], [0.5, 0.0], [[0.9, 0.5]], [0.9, math.nan]])
def test_a_table_that_makes_no_sense_is_refused(abar):
    with pytest.raises(ValueError, match=r"abar must be a vector .* that falls within \(0, 1\)"):
        Ddpm(np.array(abar))


def test_an_unknown_prediction_is_refused_at_once():
    with pytest.raises(ValueError, match="prediction must be one of edm, v, epsilon, sample, velocity; got 'score'"):
        adapted(lambda x, t: x, "score", Flow())


# --- samplers of others, in their own variables


@pytest.mark.parametrize("name", TABLES)
def test_a_step_of_ddpm_is_an_ancestral_step(name):
    """Ho et al. (2020), equations 6, 7 and 15: q(x_(t-1) | x_t, x_0) at x_0 = (x_t - (1 - abar)^(1/2) epsilon) / abar^(1/2)."""
    schedule, abar = SCHEDULES[name], TABLES[name]
    network = best_network("epsilon", schedule)
    denoise = adapted(network, "epsilon", schedule)
    rng = np.random.default_rng(0)
    for t in (1, 2, 100, 500, 900, 998):
        before, alpha = abar[t - 1], abar[t] / abar[t - 1]
        x_t = abar[t] ** 0.5 * LAW.mean + (1 - abar[t]) ** 0.5 * rng.standard_normal((5, 2))
        x_0 = (x_t - (1 - abar[t]) ** 0.5 * network(x_t, t)) / abar[t] ** 0.5
        mean = (before**0.5 * (1 - alpha) * x_0 + alpha**0.5 * (1 - before) * x_t) / (1 - abar[t])
        variance = (1 - before) / (1 - abar[t]) * (1 - alpha)
        ours, std = Sampler(kind="ancestral").step(denoise, x_t / abar[t] ** 0.5, schedule.sigma(t), schedule.sigma(t - 1))
        np.testing.assert_allclose(before**0.5 * ours, mean, rtol=1e-10, atol=1e-10)
        assert before**0.5 * std == pytest.approx(variance**0.5, rel=1e-10)


@pytest.mark.parametrize("name", TABLES)
def test_a_step_of_ddim_is_an_euler_step(name):
    """Song et al. (2021), equation 12 without noise, over 100 steps of the table at once."""
    schedule, abar = SCHEDULES[name], TABLES[name]
    network = best_network("epsilon", schedule)
    denoise = adapted(network, "epsilon", schedule)
    for t in (100, 500, 900):
        x_t = np.random.default_rng(t).standard_normal((5, 2))
        epsilon = network(x_t, t)
        x_0 = (x_t - (1 - abar[t]) ** 0.5 * epsilon) / abar[t] ** 0.5
        step = abar[t - 100] ** 0.5 * x_0 + (1 - abar[t - 100]) ** 0.5 * epsilon
        ours, std = Sampler(kind="euler").step(denoise, x_t / abar[t] ** 0.5, schedule.sigma(t), schedule.sigma(t - 100))
        np.testing.assert_allclose(abar[t - 100] ** 0.5 * ours, step, rtol=1e-10, atol=1e-10)
        assert std == 0


def test_an_euler_step_in_the_time_of_flow_matching_is_an_euler_step_and_a_heun_step_is_not():
    """x_t + (t' - t) u(x_t, t), u the velocity: both hold D fixed and go along the line from x to it; mean slopes differ."""
    schedule = Flow()
    u = best_network("velocity", schedule)
    denoise = adapted(u, "velocity", schedule)
    for t, t_next in ((0.99, 0.8), (0.5, 0.4), (0.1, 0.0)):
        x_t = np.random.default_rng(0).standard_normal((5, 2))
        euler = x_t + (t_next - t) * u(x_t, t)
        x, s, s_next = x_t / (1 - t), schedule.sigma(t), schedule.sigma(t_next)
        ours, _ = Sampler(kind="euler").step(denoise, x, s, s_next)
        np.testing.assert_allclose((1 - t_next) * ours, euler, rtol=1e-10, atol=1e-10)
        if t_next > 0:
            heun = x_t + (t_next - t) * (u(x_t, t) + u(euler, t_next)) / 2
            ours, _ = Sampler(kind="heun").step(denoise, x, s, s_next)
            assert np.abs((1 - t_next) * ours - heun).max() > 1e-3


def test_labels_and_a_time_that_runs_the_other_way_pass_through_a_closure():
    """A network of Lipman et al.'s time, x_t = t x_0 + (1 - t) z, and its labels."""
    ours = best_network("velocity", Flow())
    asked = []

    def theirs(x_t, t, labels):
        asked.append(labels)
        return -ours(x_t, 1 - t)

    denoise = adapted(lambda x, t: -theirs(x, 1 - t, "cat"), "velocity", Flow())
    x = np.random.default_rng(0).standard_normal((4, 2))
    np.testing.assert_allclose(denoise(x, 0.7), gaussian_denoiser(LAW)(x, 0.7), rtol=1e-10)
    assert asked == ["cat"]
