"""Averages of parameters: a trajectory of unit vectors, theta(s) = e_s, makes an average the vector of its own weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfloop.diffusion.average import PowerAverage, gamma_of, posthoc, weights

stds = st.floats(0.005, 0.288)


def tracked(trajectory, lengths, times=()):
    """Averages after the whole trajectory, and their snapshots at `times`."""
    averages, snapshots = [PowerAverage(std) for std in lengths], []
    for t, theta in enumerate(trajectory, 1):
        for average in averages:
            average.update({"theta": theta})
            if t in times:
                snapshots.append(average.snapshot())
    return averages, snapshots


def profile(std, t):
    """Weights of theta(1), ..., theta(t) by the recursion, from the last to the first."""
    out, left = np.zeros(t), 1.0
    for s in range(t, 0, -1):
        beta = (1 - 1 / s) ** (gamma_of(std) + 1)
        out[s - 1], left = left * (1 - beta), left * beta
    return out


@given(std=stds)
def test_gamma_gives_back_the_length(std):
    g = gamma_of(std)
    assert g > 0
    assert math.sqrt((g + 1) / (g + 3)) / (g + 2) == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("std", [1e-6, 0.05, 0.288675])
def test_gamma_gives_back_the_length_at_the_ends(std):
    g = gamma_of(std)
    assert math.sqrt((g + 1) / (g + 3)) / (g + 2) == pytest.approx(std, rel=1e-12)


@pytest.mark.parametrize("std", [0.0, -0.1, 12**-0.5, 0.3, math.nan])
def test_a_length_that_no_power_has_is_refused(std):
    for call in (gamma_of, PowerAverage, lambda s: weights([PowerAverage(0.1, 5)], s, 5)):
        with pytest.raises(ValueError, match=r"std must lie in \(0, 0.28868\)"):
            call(std)


@pytest.mark.parametrize("std", [0.03, 0.1, 0.25])
def test_the_weights_are_those_of_the_recursion_and_the_masses_of_the_profile(std, t=40):
    (average,), _ = tracked(np.eye(t), [std])
    edges = (np.arange(t + 1) / t) ** (gamma_of(std) + 1)
    np.testing.assert_allclose(average.value["theta"], profile(std, t), atol=1e-14)
    np.testing.assert_allclose(average.value["theta"], np.diff(edges), atol=1e-14)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_standard_deviation_of_the_weights_tends_to_the_length_as_the_square_of_one_over_t(std):
    """std_t^2 = std^2 - (1/12 - 1/(6 (gamma + 2))) / t^2 + ...: rounding tau up to a whole step adds less than it removes."""
    errors = []
    for t in (200, 400):
        s, w = np.arange(1, t + 1), profile(std, t)
        errors.append((w @ s**2 - (w @ s) ** 2) / t**2 - std**2)
        constant = 1 / 12 - 1 / (6 * (gamma_of(std) + 2))
        assert errors[-1] * t**2 == pytest.approx(-constant, rel=0.1)
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_a_length_that_was_tracked_comes_back_exactly_at_the_times_of_snapshots(std, t=60):
    times = (20, 40, 60)
    _, snapshots = tracked(np.eye(t), [0.05, 0.1, 0.2], times)
    for kept in snapshots:
        w, error = weights(snapshots, kept.std, kept.t)
        np.testing.assert_allclose(w, [other is kept for other in snapshots], atol=1e-11)
        assert error < 1e-7
    for time in times:
        found = posthoc(snapshots, std, time)["theta"]
        np.testing.assert_allclose(found[:time], profile(std, time), atol=1e-11)
        np.testing.assert_allclose(found[time:], 0, atol=1e-11)


@pytest.mark.parametrize(("std", "stated"), [(0.07, [0.013, 0.0038, 0.00098]), (0.15, [0.033, 0.0090, 0.0023])])
def test_the_error_of_another_length_is_as_stated_and_that_of_the_weights(std, stated, t=1024):
    """Two lengths stored 8, 16, 32 times: the error in the module, and the one of the weights themselves, to some 1 / t."""
    for k, expected in zip((8, 16, 32), stated, strict=True):
        snapshots = [PowerAverage(s, time) for s in (0.05, 0.1) for time in range(t // k, t + 1, t // k)]
        w, error = weights(snapshots, std, t)
        assert error == pytest.approx(expected, rel=0.04)
        rows = [np.pad(profile(s.std, s.t), (0, t - s.t)) for s in snapshots]
        wanted = profile(std, t)
        assert np.linalg.norm(w @ rows - wanted) / np.linalg.norm(wanted) == pytest.approx(error, rel=0.05)


def test_no_other_combination_that_keeps_constants_has_a_nearer_profile(t=600):
    """Moving along the constraint raises the distance between step functions of 600 steps, up to their distance from powers."""
    snapshots = [PowerAverage(s, time) for s in (0.05, 0.12) for time in (200, 400, 600)]
    w, _ = weights(snapshots, 0.08, t)
    rows = np.stack([np.pad(profile(s.std, s.t), (0, t - s.t)) for s in snapshots])
    best = np.linalg.norm(w @ rows - profile(0.08, t))
    rng = np.random.default_rng(0)
    for _ in range(50):
        move = rng.standard_normal(6)
        assert np.linalg.norm((w + 0.05 * (move - move.mean())) @ rows - profile(0.08, t)) > best


@pytest.mark.parametrize(("std", "stated"), [(0.07, [0.0229, 0.00393, 0.000499]), (0.15, [0.0256, 0.00379, 0.000484])])
def test_on_random_walks_the_error_of_another_length_is_as_stated_and_falls_with_snapshots(std, stated, t=512, walks=2000):
    """4, 8, 16 snapshots of two lengths; root mean square of the error over that of the lag, theta(t) - theta^.

    The numbers are exact, from the sums of weights from s on, which is what step s of a walk is worth. The standard error of
    a root mean square is (2 walks)^(-1/2) = 1.6 % of it, so 2.2 % of a ratio; 4 of them, 9 %, are allowed.
    """
    walk = np.cumsum(np.random.default_rng(0).standard_normal((t, walks)), axis=0)
    (exact,), _ = tracked(walk, [std])
    lag = np.linalg.norm(walk[-1] - exact.value["theta"])
    for k, expected in zip((4, 8, 16), stated, strict=True):
        _, snapshots = tracked(walk, [0.05, 0.1], range(t // k, t + 1, t // k))
        found = posthoc(snapshots, std, t, tolerance=0.2)["theta"]
        assert np.linalg.norm(found - exact.value["theta"]) / lag == pytest.approx(expected, rel=0.09)


@given(std=st.floats(0.04, 0.25), k=st.integers(2, 12), c=st.floats(-1e3, 1e3))
def test_what_does_not_move_is_kept(std, k, c):
    _, snapshots = tracked(np.full((k, 3), c), [0.05, 0.1], range(1, k + 1))
    for snapshot in snapshots:
        np.testing.assert_array_equal(snapshot.value["theta"], c)
    w, _ = weights(snapshots, std, k)
    assert w.sum() == pytest.approx(1, abs=1e-10)
    np.testing.assert_allclose(posthoc(snapshots, std, k, tolerance=9)["theta"], c, rtol=1e-9)


def test_a_snapshot_stored_twice_changes_nothing():
    _, snapshots = tracked(np.eye(24), [0.05, 0.1], (8, 16, 24))
    once = posthoc(snapshots, 0.08, 24)["theta"]
    np.testing.assert_allclose(posthoc([*snapshots, *snapshots[:2]], 0.08, 24)["theta"], once, atol=1e-10)


@pytest.mark.parametrize(("std", "t"), [(0.02, 24), (0.08, 30), (0.28, 24)])
def test_an_average_that_the_snapshots_do_not_hold_is_refused(std, t):
    _, snapshots = tracked(np.eye(24), [0.05, 0.1], (8, 16, 24))
    with pytest.raises(ValueError, match=r"with a relative error of .* store more of them"):
        posthoc(snapshots, std, t)


def test_there_is_no_average_of_nothing():
    for snapshots, t in (([], 10), ([PowerAverage(0.1, 5)], 0), ([PowerAverage(0.1)], 10)):
        with pytest.raises(ValueError, match="at times > 0"):
            posthoc(snapshots, 0.1, t)


def test_every_update_takes_the_same_parameters():
    average = PowerAverage(0.1)
    average.update({"a": np.zeros(2)})
    with pytest.raises(ValueError, match=r"not in both: \['a', 'b'\]"):
        average.update({"b": np.zeros(2)})
    assert average.t == 1


def test_tensors_and_arrays_have_the_same_averages():
    trajectory = np.random.default_rng(0).standard_normal((30, 4, 5))
    arrays, array_snapshots = tracked(trajectory, [0.05, 0.1], (15, 30))
    lifted = [torch.tensor(theta, requires_grad=True) for theta in trajectory]
    tensors, tensor_snapshots = tracked(lifted, [0.05, 0.1], (15, 30))
    for a, b in zip(arrays, tensors, strict=True):
        assert not b.value["theta"].requires_grad
        np.testing.assert_allclose(b.value["theta"].numpy(), a.value["theta"], atol=1e-14)
    found = posthoc(tensor_snapshots, 0.08, 30)["theta"]
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), posthoc(array_snapshots, 0.08, 30)["theta"], atol=1e-13)


@pytest.mark.parametrize("lift", [np.asarray, torch.as_tensor])
def test_an_average_shares_no_memory_with_parameters_snapshots_and_states(lift):
    theta = lift(np.array([1.0, 2.0]))
    average = PowerAverage(0.1)
    average.update({"theta": theta})
    theta *= 3
    assert list(average.value["theta"]) == [1.0, 2.0]
    snapshot, state = average.snapshot(), average.state()
    restored = PowerAverage.restore(state, lift)
    for _ in range(3):
        average.update({"theta": theta})
        restored.update({"theta": theta})
    assert list(snapshot.value["theta"]) == [1.0, 2.0]
    assert list(state["value.theta"]) == [1.0, 2.0]


@pytest.mark.parametrize("lift", [np.asarray, torch.as_tensor])
def test_an_average_goes_on_from_its_state_bit_for_bit(lift, tmp_path):
    trajectory = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    (whole,), _ = tracked([lift(theta) for theta in trajectory], [0.07])
    (half,), _ = tracked([lift(theta) for theta in trajectory[:10]], [0.07])
    np.savez(tmp_path / "average.npz", **half.state())
    with np.load(tmp_path / "average.npz", allow_pickle=False) as state:
        rest = PowerAverage.restore(state, lift)
    for theta in trajectory[10:]:
        rest.update({"theta": lift(theta)})
    assert (rest.std, rest.t) == (whole.std, whole.t)
    assert rest.value["theta"].dtype == lift(trajectory).dtype
    np.testing.assert_array_equal(np.asarray(rest.value["theta"]), np.asarray(whole.value["theta"]))


def test_members_of_an_ensemble_are_averaged_one_by_one():
    trajectory = np.random.default_rng(0).standard_normal((12, 3, 4))
    spoilt = trajectory.copy()
    spoilt[5:, 0] = np.nan
    (whole,), snapshots = tracked(spoilt, [0.1], (6, 12))
    (alone,), snapshots_alone = tracked(trajectory[:, 1:2], [0.1], (6, 12))
    assert np.isnan(whole.value["theta"][0]).all()
    np.testing.assert_array_equal(whole.value["theta"][1:2], alone.value["theta"])
    found, found_alone = (posthoc(s, 0.09, 12)["theta"] for s in (snapshots, snapshots_alone))
    np.testing.assert_array_equal(found[1:2], found_alone)
