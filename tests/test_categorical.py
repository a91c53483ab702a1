"""The categorical loop is the Wright-Fisher model: its drift is known exactly."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.algorithms.categorical import Categorical, CategoricalFit
from selfloop.measure import Array, Data, Measure, Moments, concatenate
from selfloop.protocols import Algorithm, BiasedModel, Model, MomentModel, Tunable

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def shares(draw: Any, k: int | None = None, zeros: bool = True) -> Array:
    """Probabilities (3, K), 2 to 6 categories, some of them zero."""
    k = draw(st.integers(2, 6)) if k is None else k
    rng = np.random.default_rng(draw(seeds))
    p = rng.dirichlet(np.ones(k), 3)
    if zeros and draw(st.booleans()):
        p[0, draw(st.integers(0, k - 1))] = 0
    return np.asarray(p / p.sum(axis=-1, keepdims=True))


def loop(p: Array, n: int, generations: int, replicates: int, draw: str, seed: int) -> Array:
    """Probabilities (replicates, K) after `generations` fits, each to n draws of the one before, the first to p's."""
    rng = np.random.default_rng(seed)
    model = Categorical(p).expanded(replicates)
    for _ in range(generations):
        data: Data = model.draw(n, rng) if draw == "draw" else model.sample(n, rng)
        model = CategoricalFit().fit(data, rng)
    return model.probabilities


@pytest.mark.parametrize("draw", ["sample", "draw"])
def test_the_loop_drifts_like_wright_and_fisher(draw: str) -> None:
    """E p = p_0, Var p = p_0 (1 - p_0) (1 - (1 - 1/n)^t), E[1 - sum p^2] = H_0 (1 - 1/n)^t; all within 4 standard errors."""
    p0, n, t, runs = np.array([0.6, 0.3, 0.1]), 20, 8, 3000
    p = loop(p0, n, t, runs, draw, seed=1)
    kept = (1 - 1 / n) ** t
    heterozygosity = 1 - (p**2).sum(axis=-1)
    assert abs(heterozygosity.mean() - (1 - (p0**2).sum()) * kept) < 4 * heterozygosity.std() / math.sqrt(runs)
    assert (np.abs(p.mean(axis=0) - p0) < 4 * p.std(axis=0) / math.sqrt(runs)).all()
    square = (p - p0) ** 2
    assert (np.abs(square.mean(axis=0) - p0 * (1 - p0) * (1 - kept)) < 4 * square.std(axis=0) / math.sqrt(runs)).all()


def test_both_paths_lose_categories_at_one_rate() -> None:
    """P(a category of p = 0.1 is lost after 8 generations of 20): points and moments agree within 4 standard errors."""
    p0, runs = np.array([0.6, 0.3, 0.1]), 3000
    rates = [(loop(p0, 20, 8, runs, draw, seed=2)[:, 2] == 0).mean() for draw in ("sample", "draw")]
    assert abs(rates[0] - rates[1]) < 4 * math.sqrt(2 * rates[0] * (1 - rates[0]) / runs)
    assert 0.2 < rates[0] < 0.8


@quick
@given(shares(), seeds, st.integers(1, 30))
def test_samples_are_one_hot_and_never_of_an_impossible_category(p: Array, seed: int, n: int) -> None:
    points = Categorical(p).sample(n, np.random.default_rng(seed)).points
    assert points.shape == Categorical(p).shape(n)
    assert set(np.unique(points)) <= {0.0, 1.0}
    assert (points.sum(axis=-1) == 1).all()
    assert not points.any(axis=-2)[p == 0].any()


@quick
@given(shares(), seeds, st.integers(1, 30))
def test_moments_drawn_are_those_of_some_points(p: Array, seed: int, n: int) -> None:
    drawn = Categorical(p).draw(n, np.random.default_rng(seed))
    counts = drawn.mean * n
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)
    for member in range(3):
        rows = np.repeat(np.eye(p.shape[1]), np.round(counts[member]).astype(int), axis=0)
        of_points = Measure.uniform(rows).moments()
        np.testing.assert_allclose(drawn.mean[member], of_points.mean, atol=1e-12)
        np.testing.assert_allclose(drawn.cov[member], of_points.cov, atol=1e-12)


@quick
@given(shares(), st.floats(0.01, 5), st.floats(0, 3))
def test_smoothing_adds_pseudo_counts(p: Array, weight: float, smoothing: float) -> None:
    """p_k = (n q_k + a) / (n + K a), also where n is the effective number of weighted points."""
    n, k = 10 * weight, p.shape[1]
    cov = p[..., :, None] * (np.eye(k) - p[..., None, :])
    fitted = CategoricalFit(smoothing=smoothing).fit(Moments(n, p, cov), np.random.default_rng(0))
    np.testing.assert_allclose(fitted.probabilities, (n * p + smoothing) / (n + k * smoothing), atol=1e-12)


def test_the_fit_sees_weights_and_mixtures() -> None:
    rng = np.random.default_rng(3)
    points = np.eye(3)[[0, 1, 1, 2]]
    weighted = Measure(points, np.array([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_allclose(CategoricalFit().fit(weighted, rng).probabilities, [0.1, 0.5, 0.4])
    both = concatenate([Measure.uniform(points), Measure.uniform(np.eye(3)[[0] * 4])])
    np.testing.assert_allclose(CategoricalFit().fit(both, rng).probabilities, [0.625, 0.25, 0.125])


@quick
@given(shares(), st.floats(0.2, 4))
def test_bias_is_a_temperature(p: Array, bias: float) -> None:
    model = Categorical(p)
    assert model.biased(1.0) is model
    biased = model.biased(bias).probabilities
    np.testing.assert_allclose(biased, p ** (1 / bias) / (p ** (1 / bias)).sum(axis=-1, keepdims=True), rtol=1e-9)
    assert (biased[p == 0] == 0).all()
    np.testing.assert_allclose(Categorical(biased).biased(1 / bias).probabilities, p, atol=1e-9)


def test_a_cold_bias_keeps_the_mode_alone() -> None:
    np.testing.assert_array_equal(Categorical(np.array([0.2, 0.5, 0.3])).biased(1e-4).probabilities, [0, 1, 0])


@quick
@given(st.data(), st.floats(-2, 3))
def test_interpolation_is_a_line_of_log_probabilities(data: st.DataObject, t: float) -> None:
    a, b = data.draw(shares(k=4, zeros=False)), data.draw(shares(k=4, zeros=False))
    line = CategoricalFit().interpolate(Categorical(a), Categorical(b), t).probabilities
    power = a ** (1 - t) * b**t
    np.testing.assert_allclose(line, power / power.sum(axis=-1, keepdims=True), rtol=1e-9)


@quick
@given(shares(k=4), shares(k=4))
def test_interpolation_ends_at_its_ends_bit_for_bit(a: Array, b: Array) -> None:
    start, end = Categorical(a), Categorical(b)
    assert CategoricalFit().interpolate(start, end, 0.0) is start
    assert CategoricalFit().interpolate(start, end, 1.0) is end


def test_lost_categories_stay_lost_and_infinite_ones_make_their_member_nan() -> None:
    """Members: 0 in both, 0 in a, 0 in b, disjoint supports. Inside the segment, and beyond either end."""
    a = Categorical(np.array([[0.5, 0.5, 0], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5], [1.0, 0, 0]]))
    b = Categorical(np.array([[0.2, 0.8, 0], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [0.0, 1, 0]]))
    between, before, beyond = (CategoricalFit().interpolate(a, b, t).probabilities for t in (0.5, -1.0, 2.0))
    assert (between[:3] == 0).tolist() == [[False, False, True], [True, False, False], [True, False, False]]
    assert np.isnan(between).all(axis=-1).tolist() == [False, False, False, True]
    assert np.isnan(before).all(axis=-1).tolist() == [False, False, True, True]
    assert np.isnan(beyond).all(axis=-1).tolist() == [False, True, False, True]
    assert before[0, 2] == beyond[0, 2] == before[1, 0] == beyond[2, 0] == 0
    np.testing.assert_allclose(before[0], [0.25 / 0.2 / (0.25 / 0.2 + 0.25 / 0.8), 0.25 / 0.8 / (0.25 / 0.2 + 0.25 / 0.8), 0])


def test_members_that_are_nan_stay_alone() -> None:
    p = np.array([[0.5, 0.5], [np.nan, np.nan], [0.1, 0.9]])
    rng = np.random.default_rng(4)
    model = Categorical(p)
    points, drawn, biased = model.sample(5, rng), model.draw(5, rng), model.biased(0.5)
    for values in (
        points.points.sum(axis=(1, 2)),
        drawn.mean.sum(axis=1),
        drawn.cov.sum(axis=(1, 2)),
        biased.probabilities[:, 0],
    ):
        assert np.isnan(values).tolist() == [False, True, False]
    refitted = CategoricalFit(smoothing=1.0).fit(points, rng).probabilities
    assert np.isnan(refitted[:, 0]).tolist() == [False, True, False]


def test_tuning_goes_all_the_way_and_no_further() -> None:
    rng = np.random.default_rng(5)
    fit = CategoricalFit(smoothing=0.5)
    model, data = Categorical(np.full((4, 3), 1 / 3)), Categorical(np.full((4, 3), 1 / 3)).draw(10, rng)
    start, middle, end = fit.tune(model, data, [0.0, 0.5, 1.0], rng)
    assert start is model
    np.testing.assert_array_equal(end.probabilities, fit.fit(data, rng).probabilities)
    np.testing.assert_allclose(middle.probabilities, fit.interpolate(model, end, 0.5).probabilities)
    with pytest.raises(ValueError, match=r"eta in \[0, 1\].*got 1.5"):
        next(fit.tune(model, data, [1.5], rng))


def test_contracts_and_restoring() -> None:
    fit, rng = CategoricalFit(), np.random.default_rng(6)
    assert isinstance(fit, Algorithm)
    assert isinstance(fit, Tunable)
    model = fit.fit(Categorical(np.array([0.3, 0.7])).expanded(5).draw(9, rng), rng)
    assert isinstance(model, Model)
    assert isinstance(model, MomentModel)
    assert isinstance(model, BiasedModel)
    again = fit.restore(model.state())
    np.testing.assert_array_equal(
        again.sample(7, np.random.default_rng(0)).points, model.sample(7, np.random.default_rng(0)).points
    )
    assert all(hasattr(model, name) for name in fit.gives)


def test_errors_name_what_was_got() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="one-hot vectors"):
        CategoricalFit().fit(Measure.uniform(rng.standard_normal((20, 3))), rng)
    with pytest.raises(ValueError, match="add to one"):
        Categorical(np.array([0.5, 0.6]))
    with pytest.raises(ValueError, match="bias must be positive, got 0"):
        Categorical(np.array([0.5, 0.5])).biased(0)
    with pytest.raises(ValueError, match="smoothing"):
        CategoricalFit(smoothing=-1.0)
