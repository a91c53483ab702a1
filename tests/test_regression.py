"""The regression loop: its excess risk is known exactly, with points and without them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.algorithms.regression import RegressionFit, RegressionModel
from selfloop.laws import Gaussian
from selfloop.measure import Array, Data, Measure, Moments, concatenate
from selfloop.protocols import Algorithm, Model, MomentModel, Tunable

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
N, D, SIGMA, RUNS = 30, 3, 0.7, 2000
W = np.array([1.0, -2.0, 0.5])


def source() -> Gaussian:
    """x ~ N(0, I), y = x . W + SIGMA eps, for RUNS loops."""
    law = RegressionModel(W, SIGMA).law()
    assert law is not None
    return law.expanded(RUNS)


def excess(generations: int, accumulate: bool, draw: str, design: str, seed: int) -> Array:
    """|w_t - W|^2 of RUNS loops; accumulate: every generation joins the pool, else it replaces it."""
    rng = np.random.default_rng(seed)
    algorithm = RegressionFit(noise=SIGMA, design=design)  # type: ignore[arg-type]
    pool: list[Data] = [source().draw(N, rng) if draw == "draw" else source().sample(N, rng)]
    model = algorithm.fit(pool[0], rng)
    for _ in range(1, generations):
        new: Data = model.draw(N, rng) if draw == "draw" else model.sample(N, rng)
        pool = [*pool, new] if accumulate else [new]
        model = algorithm.fit(concatenate(pool), rng)
    return np.asarray(((model.coefficients - W) ** 2).sum(axis=-1))


@pytest.mark.parametrize("draw", ["sample", "draw"])
def test_replacing_loops_lose_linearly(draw: str) -> None:
    """E |w_t - w|^2 = t sigma^2 d / (n - d - 1), within 4 standard errors."""
    t = 8
    risk = excess(t, False, draw, "fixed", seed=1)
    assert abs(risk.mean() - t * SIGMA**2 * D / (N - D - 1)) < 4 * risk.std() / math.sqrt(RUNS)


@pytest.mark.parametrize("draw", ["sample", "draw"])
def test_accumulating_loops_stay_bounded(draw: str) -> None:
    """E |w_t - w|^2 = sigma^2 d / (n - d - 1) sum_{i <= t} 1 / i^2, within 4 standard errors."""
    t = 8
    risk = excess(t, True, draw, "fixed", seed=2)
    expected = SIGMA**2 * D / (N - D - 1) * sum(1 / i**2 for i in range(1, t + 1))
    assert abs(risk.mean() - expected) < 4 * risk.std() / math.sqrt(RUNS)


@pytest.mark.parametrize("draw", ["sample", "draw"])
def test_fresh_designs_lose_the_same_when_replacing(draw: str) -> None:
    """Each fit adds an independent error of E = sigma^2 d / (n - d - 1): the sum is the same, within 4 standard errors."""
    t = 6
    risk = excess(t, False, draw, "fresh", seed=3)
    assert abs(risk.mean() - t * SIGMA**2 * D / (N - D - 1)) < 4 * risk.std() / math.sqrt(RUNS)


@pytest.mark.parametrize("design", ["fixed", "fresh"])
def test_moments_drawn_have_the_law_of_the_points(design: str) -> None:
    """First and second moments of every entry of mean and cov agree between the paths, each within 4.5 standard errors.

    28 comparisons (d = 2): all of them hold by chance with probability above 0.999.
    """
    rng = np.random.default_rng(4)
    n, runs = 7, 20_000
    w = np.array([0.8, -1.2])
    real = np.random.default_rng(5).standard_normal((n, 3)) + np.array([0.5, 0.0, 1.0])
    data = Measure.uniform(np.broadcast_to(real, (runs, n, 3)))
    fitted = RegressionFit(noise=0.9, design=design).fit(data, rng)  # type: ignore[arg-type]
    model = RegressionModel(np.broadcast_to(w, (runs, 2)), 0.9, fitted.design)

    def entries(moments: Moments) -> Array:
        return np.column_stack([moments.mean, moments.cov[:, *np.triu_indices(3)]])

    drawn, sampled = entries(model.draw(n, rng)), entries(model.sample(n, rng).moments())
    for a, b in ((drawn, sampled), (drawn**2, sampled**2), (drawn * drawn[:, [2]], sampled * sampled[:, [2]])):
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / runs)
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) <= 4.5 * error + 1e-12).all()


@quick
@given(seeds, st.integers(1, 4), st.sampled_from(["fixed", "fresh"]))
def test_moments_drawn_are_those_of_some_points(seed: int, d: int, design: str) -> None:
    """The joint covariance is positive semidefinite, of rank at most n - 1, and a fixed design is kept as it is."""
    rng = np.random.default_rng(seed)
    data = Measure.uniform(rng.standard_normal((2, d + 2, d + 1)))
    model = RegressionFit(noise=1.0, design=design).fit(data, rng)  # type: ignore[arg-type]
    drawn = model.draw(d + 2, rng)
    assert (np.linalg.eigvalsh(drawn.cov) > -1e-9 * np.abs(drawn.cov).max(axis=(-2, -1))[:, None]).all()
    if design == "fixed":
        np.testing.assert_array_equal(drawn.mean[:, :d], data.moments().mean[:, :d])
        np.testing.assert_array_equal(drawn.cov[:, :d, :d], data.moments().cov[:, :d, :d])


@quick
@given(seeds, st.integers(1, 4), st.integers(1, 20))
def test_the_fit_is_least_squares(seed: int, d: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((3, d + more, d + 1)) + rng.standard_normal(d + 1)
    fitted = RegressionFit(noise=1.0).fit(Measure.uniform(points), rng).coefficients
    from_moments = RegressionFit(noise=1.0).fit(Measure.uniform(points).moments(), rng).coefficients
    np.testing.assert_array_equal(fitted, from_moments)
    for member, w in zip(points, fitted, strict=True):
        condition = np.linalg.cond(member[:, :d]) ** 2
        np.testing.assert_allclose(
            w, np.linalg.lstsq(member[:, :d], member[:, d])[0], rtol=1e-12 * condition, atol=1e-12 * condition
        )


def test_weights_count_as_repetitions() -> None:
    rng = np.random.default_rng(6)
    points = rng.standard_normal((6, 3))
    twice = Measure.uniform(points[[0, 0, 1, 2, 3, 4, 5]])
    weighted = Measure(points, np.array([2, 1, 1, 1, 1, 1]) / 7)
    a, b = (RegressionFit(noise=1.0).fit(data, rng).coefficients for data in (twice, weighted))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_without_noise_nothing_is_lost() -> None:
    rng = np.random.default_rng(7)
    algorithm = RegressionFit(noise=0.0)
    model = algorithm.fit(RegressionModel(np.broadcast_to(W, (RUNS, D)), 0.0).sample(N, rng), rng)
    for data in (model.sample(N, rng), model.draw(N, rng)):
        np.testing.assert_allclose(algorithm.fit(data, rng).coefficients, np.broadcast_to(W, (RUNS, D)), atol=1e-10)


def test_a_fixed_design_is_the_first_rows_in_order() -> None:
    rng = np.random.default_rng(8)
    data = Measure.uniform(rng.standard_normal((2, 9, 3)))
    model = RegressionFit(noise=1.0).fit(data, rng)
    np.testing.assert_array_equal(model.sample(5, rng).points[..., :2], data.points[:, :5, :2])
    with pytest.raises(ValueError, match="9 rows cannot give 10 points"):
        model.sample(10, rng)
    with pytest.raises(ValueError, match="use draw, or set design fresh"):
        RegressionFit(noise=1.0).fit(data.moments(), rng).sample(5, rng)
    with pytest.raises(ValueError, match="2 points cannot have x of rank 2"):
        model.draw(2, rng)


def test_the_law_of_a_fresh_design_is_that_of_its_points() -> None:
    """Mean and covariance of 10^5 points, within 4.5 standard errors of the law's (14 comparisons)."""
    rng, n = np.random.default_rng(9), 100_000
    model = RegressionModel(W, SIGMA)
    points = model.sample(n, rng).points
    law = model.law()
    assert law is not None
    products = np.einsum("ni,nj->nij", points, points)
    assert (np.abs(points.mean(axis=0) - law.mean) < 4.5 * points.std(axis=0) / math.sqrt(n)).all()
    assert (np.abs(products.mean(axis=0) - law.cov) < 4.5 * products.std(axis=0) / math.sqrt(n)).all()


def test_singular_members_are_nan_and_alone() -> None:
    rng = np.random.default_rng(10)
    points = rng.standard_normal((4, 8, 4))
    points[1, :, 0] = points[1, :, 1]
    points[2, 3, 3] = np.nan
    data = Measure(points, np.full((4, 8), 1 / 8))
    model = RegressionFit(noise=1.0).fit(data, rng)
    assert np.isnan(model.coefficients).all(axis=-1).tolist() == [False, True, True, False]
    assert np.isnan(model.draw(8, rng).mean[:, 3]).tolist() == [False, True, True, False]
    alone = RegressionFit(noise=1.0).fit(Measure.uniform(points[3]), rng)
    np.testing.assert_allclose(model.coefficients[3], alone.coefficients, rtol=1e-12)


@pytest.mark.parametrize("design", ["fixed", "fresh"])
@pytest.mark.parametrize("points", [True, False])
def test_contracts_and_restoring(design: str, points: bool) -> None:
    rng = np.random.default_rng(11)
    algorithm = RegressionFit(noise=0.5, design=design)  # type: ignore[arg-type]
    assert isinstance(algorithm, Algorithm)
    assert not isinstance(algorithm, Tunable)
    data = Measure.uniform(rng.standard_normal((3, 9, 3)))
    model = algorithm.fit(data if points else data.moments(), rng)
    assert isinstance(model, Model)
    assert isinstance(model, MomentModel)
    assert ("law" in algorithm.gives) == (model.law() is not None)
    again = algorithm.restore(model.state())
    np.testing.assert_array_equal(again.draw(9, np.random.default_rng(0)).cov, model.draw(9, np.random.default_rng(0)).cov)
    if points or design == "fresh":
        np.testing.assert_array_equal(
            again.sample(9, np.random.default_rng(0)).points, model.sample(9, np.random.default_rng(0)).points
        )


def test_errors_name_what_was_got() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="more than 3 points, got n = 3"):
        RegressionFit(noise=1.0).fit(Measure.uniform(rng.standard_normal((3, 4))), rng)
    with pytest.raises(ValueError, match="at least two coordinates, got 1"):
        RegressionFit(noise=1.0).fit(Measure.uniform(rng.standard_normal((3, 1))), rng)
    with pytest.raises(ValueError, match="no fixed design"):
        RegressionFit(noise=1.0).restore({"coefficients": W})
    with pytest.raises(ValueError, match="noise"):
        RegressionFit(noise=-1.0)
    with pytest.raises(ValueError, match="design"):
        RegressionFit(noise=1.0, design="random")  # type: ignore[arg-type]
