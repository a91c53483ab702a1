"""Wasserstein distances: a metric, exact, and the same by every route."""

import math
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from selfloop import covariance
from selfloop.laws import Gaussian
from selfloop.measure import Array, Measure, Moments
from selfloop.metrics import transport
from selfloop.metrics.transport import (
    gaussian_wasserstein2,
    moment_wasserstein2,
    sliced_wasserstein2,
    wasserstein2,
    wasserstein2_1d,
)

quick = settings(max_examples=40, deadline=None)
coordinates = st.floats(-5, 5, allow_subnormal=False)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def clouds(draw: Any, d: int | None = None, n: int | None = None) -> Measure:
    """A weighted cloud of 1 to 12 points in 1 to 3 dimensions; some weights are zero, some points coincide."""
    d = draw(st.integers(1, 3)) if d is None else d
    n = draw(st.integers(1, 12)) if n is None else n
    points = draw(hnp.arrays(float, (n, d), elements=coordinates))
    weights = draw(hnp.arrays(float, (n,), elements=st.sampled_from([0.0, 0.5, 1.0, 3.0])))
    assume(weights.sum() > 0)
    return Measure(points, weights / weights.sum())


@st.composite
def gaussians(draw: Any, d: int) -> Gaussian:
    """Laws of any orientation whose standard deviations span three decades."""
    rng = np.random.default_rng(draw(seeds))
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    spread = 10.0 ** rng.uniform(-2, 1, d)
    return Gaussian(rng.uniform(-3, 3, d), covariance.symmetric((turn * spread**2) @ turn.T))


def by_pot(x: Measure, y: Measure) -> float:
    """What POT says, with enough iterations."""
    a, b = np.array(x.weights), np.array(y.weights)
    cost = transport._pot().emd2(a, b, cdist(x.points, y.points, "sqeuclidean"), numItermax=10**7)
    return math.sqrt(max(cost, 0.0))


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The textbook formula, symbol by symbol."""
    root = sqrtm(a.cov)
    trace = np.trace(a.cov + b.cov - 2 * sqrtm(root @ b.cov @ root).real)
    return math.sqrt(((a.mean - b.mean) ** 2).sum() + max(trace, 0.0))


# Between Gaussian laws


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@quick
@given(data=st.data())
def test_gaussian_distance_is_a_metric(d: int, data: st.DataObject) -> None:
    a, b, c = (data.draw(gaussians(d)) for _ in range(3))
    ab, bc, ac = gaussian_wasserstein2(a, b), gaussian_wasserstein2(b, c), gaussian_wasserstein2(a, c)
    assert ab == pytest.approx(gaussian_wasserstein2(b, a), rel=1e-9, abs=1e-12)
    assert ac <= ab + bc + 1e-9
    assert gaussian_wasserstein2(a, a) < 1e-12 * (1 + math.sqrt(np.trace(a.cov)))


@pytest.mark.parametrize("d", [1, 2, 4])
@quick
@given(data=st.data(), scale=st.sampled_from([1e-6, 0.3, 1e5]))
def test_gaussian_distance_scales_with_the_points(d: int, data: st.DataObject, scale: float) -> None:
    a, b = data.draw(gaussians(d)), data.draw(gaussians(d))
    larger = [Gaussian(scale * law.mean, scale**2 * law.cov) for law in (a, b)]
    assert gaussian_wasserstein2(*larger) == pytest.approx(scale * gaussian_wasserstein2(a, b), rel=1e-6, abs=1e-9 * scale)


@pytest.mark.parametrize("d", [1, 2, 4])
@quick
@given(data=st.data())
def test_moving_a_gaussian_costs_the_length_of_the_move(d: int, data: st.DataObject) -> None:
    a = data.draw(gaussians(d))
    shift = data.draw(hnp.arrays(float, (d,), elements=coordinates))
    assert gaussian_wasserstein2(a, Gaussian(a.mean + shift, a.cov)) == pytest.approx(np.linalg.norm(shift), abs=1e-11)


@pytest.mark.parametrize("d", [1, 2, 5])
@quick
@given(data=st.data())
def test_gaussian_distance_is_the_textbook_formula_and_that_of_pot(d: int, data: st.DataObject) -> None:
    """Compared squared, within 1e-7 of the traces: both lose half of their digits where the laws are close."""
    a, b = data.draw(gaussians(d)), data.draw(gaussians(d))
    square, rounding = gaussian_wasserstein2(a, b) ** 2, 1e-7 * np.trace(a.cov + b.cov)
    assert square == pytest.approx(by_sqrtm(a, b) ** 2, rel=1e-6, abs=rounding)
    pots = transport._pot().gaussian.bures_wasserstein_distance(a.mean, b.mean, a.cov, b.cov)
    assert square == pytest.approx(pots**2, rel=1e-6, abs=rounding)


@quick
@given(gaussians(2), gaussians(2))
def test_the_closed_form_of_the_plane_is_the_general_one(a: Gaussian, b: Gaussian) -> None:
    general = transport._bures2(a.cov, b.cov)
    assert transport._bures2_plane(a.cov, b.cov) == pytest.approx(general, rel=1e-8, abs=1e-14)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_close_gaussians_keep_their_digits(d: int) -> None:
    """s_a - s_b = 1e-9 in every direction: the distance is 1e-9 d^(1/2), where the textbook formula says 0 or 1e-8."""
    a = Gaussian(np.zeros(d), np.eye(d))
    b = Gaussian(np.zeros(d), (1 + 1e-9) ** 2 * np.eye(d))
    assert gaussian_wasserstein2(a, b) == pytest.approx(1e-9 * math.sqrt(d), rel=1e-5)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_members_that_are_not_laws_are_nan_and_alone(d: int) -> None:
    rng = np.random.default_rng(0)
    cov = np.stack([np.eye(d) * (1 + r) for r in range(5)])
    mean = rng.standard_normal((5, d))
    cov[1, 0, 0], cov[3, 0, 0], mean[4, 0] = np.nan, -1.0, np.inf
    one = Gaussian(np.zeros(d), np.eye(d))
    values = gaussian_wasserstein2(Gaussian(mean, cov), one)
    assert np.isnan(values).tolist() == [False, True, False, True, True]
    for r in (0, 2):
        assert values[r] == pytest.approx(gaussian_wasserstein2(Gaussian(mean[r], cov[r]), one), rel=1e-14)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_point_mass_is_a_gaussian_too(d: int) -> None:
    """W_2(N(0, S), delta_0)^2 = tr S."""
    zero = Gaussian(np.zeros(d), np.zeros((d, d)))
    assert gaussian_wasserstein2(Gaussian(np.zeros(d), 4 * np.eye(d)), zero) == pytest.approx(2 * math.sqrt(d))
    assert gaussian_wasserstein2(zero, zero) == 0


@quick
@given(clouds(d=2), clouds(d=2))
def test_moments_bound_the_distance_from_below(x: Measure, y: Measure) -> None:
    bound = moment_wasserstein2(x, y)
    assert bound == moment_wasserstein2(x.moments(), Gaussian(y.moments().mean, y.moments().cov))
    assert bound <= wasserstein2(x, y) + 1e-7


def test_moment_distance_of_an_affine_image_is_exact() -> None:
    """y = A x + b with A symmetric positive: the map is optimal, so the bound is the distance."""
    x = np.random.default_rng(1).standard_normal((60, 2))
    matrix = np.array([[1.5, 0.4], [0.4, 0.7]])
    y = Measure.uniform(x @ matrix + 1.0)
    assert moment_wasserstein2(Measure.uniform(x), y) == pytest.approx(wasserstein2(Measure.uniform(x), y), rel=1e-9)


# Between clouds


@quick
@given(clouds(d=2), clouds(d=2), clouds(d=2))
def test_distance_between_clouds_is_a_metric(x: Measure, y: Measure, z: Measure) -> None:
    assert wasserstein2(x, x) == pytest.approx(0, abs=1e-7)
    assert wasserstein2(x, y) == pytest.approx(wasserstein2(y, x), rel=1e-9, abs=1e-7)
    assert wasserstein2(x, z) <= wasserstein2(x, y) + wasserstein2(y, z) + 1e-7


@quick
@given(clouds(), st.data())
def test_translating_a_cloud_costs_the_length_of_the_translation(x: Measure, data: st.DataObject) -> None:
    shift = data.draw(hnp.arrays(float, x.event, elements=coordinates))
    assert wasserstein2(x, Measure(x.points + shift, x.weights)) == pytest.approx(np.linalg.norm(shift), abs=1e-7)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e6])
@quick
@given(seed=seeds, d=st.integers(1, 3))
def test_distance_scales_with_the_points_however_small(scale: float, seed: int, d: int) -> None:
    """The simplex alone is wrong by a factor of several for clouds of size 1e-8: its tolerance is absolute."""
    rng = np.random.default_rng(seed)
    x, y = (Measure(rng.standard_normal((40, d)), rng.dirichlet(np.ones(40))) for _ in range(2))
    moved_x, moved_y = (Measure(scale * cloud.points + 3, cloud.weights) for cloud in (x, y))
    assert wasserstein2(moved_x, moved_y) == pytest.approx(scale * wasserstein2(x, y), rel=1e-5)


@quick
@given(clouds(), st.data())
def test_every_route_gives_what_pot_gives(x: Measure, data: st.DataObject) -> None:
    y = data.draw(clouds(d=x.event[0]))
    assert wasserstein2(x, y) == pytest.approx(by_pot(x, y), rel=1e-7, abs=1e-6)


@quick
@given(seeds, st.integers(1, 3), st.integers(1, 40))
def test_equal_sizes_are_an_assignment(seed: int, d: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    cost = cdist(x, y, "sqeuclidean")
    best = math.sqrt(cost[linear_sum_assignment(cost)].mean())
    assert wasserstein2(Measure.uniform(x), Measure.uniform(y)) == pytest.approx(best, rel=1e-10)


@quick
@given(clouds(d=1), clouds(d=1))
def test_sorting_on_the_line_is_exact(x: Measure, y: Measure) -> None:
    assert wasserstein2_1d(x, y) == pytest.approx(by_pot(x, y), rel=1e-7, abs=1e-6)


@quick
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_batches_on_the_line_are_their_members(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x = Measure(rng.standard_normal((4, n, 1)), rng.dirichlet(np.ones(n), 4))
    y = Measure.uniform(rng.standard_normal((m, 1)), batch=0)
    values = wasserstein2_1d(x, y)
    assert values.shape == (4,)
    for r in range(4):
        assert values[r] == pytest.approx(by_pot(Measure(x.points[r], x.weights[r]), y), rel=1e-7, abs=1e-6)


def test_weights_matter() -> None:
    """Moving mass 1/4 over the distance 1 costs 1/4: W_2 = 1/2."""
    points = np.array([[0.0, 0.0], [1.0, 0.0]])
    x, y = Measure(points, np.array([0.5, 0.5])), Measure(points, np.array([0.75, 0.25]))
    assert wasserstein2(x, y) == pytest.approx(0.5)
    line = [Measure(cloud.points[:, :1], cloud.weights) for cloud in (x, y)]
    assert wasserstein2_1d(*line) == pytest.approx(0.5)


def test_high_dimensions_agree_with_low_ones() -> None:
    """Coordinates that are zero change the route of the costs, not the distance."""
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 50, 3))
    wide_x, wide_y = (Measure.uniform(np.pad(points, ((0, 0), (0, transport.DIRECT_COORDINATES)))) for points in (x, y))
    assert wasserstein2(wide_x, wide_y) == pytest.approx(wasserstein2(Measure.uniform(x), Measure.uniform(y)), rel=1e-12)


def test_workers_change_nothing_and_a_bad_member_stays_alone() -> None:
    rng = np.random.default_rng(3)
    points = rng.standard_normal((2, 3, 60, 2))
    points[1, 0, 5, 1] = np.nan
    x = Measure(points, np.full((2, 3, 60), 1 / 60))
    y = Measure.uniform(rng.standard_normal((3, 50, 2)))
    one, two = wasserstein2(x, y), wasserstein2(x, y, workers=2)
    assert one.shape == (2, 3)
    np.testing.assert_array_equal(one, two)
    assert np.argwhere(np.isnan(one)).tolist() == [[1, 0]]
    assert one[1, 2] == wasserstein2(Measure.uniform(points[1, 2]), Measure.uniform(y.points[2]))


def test_too_few_iterations_are_an_error_and_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    x, y = (Measure.uniform(rng.standard_normal((40, 2))) for _ in range(2))
    monkeypatch.setattr(transport, "MAX_ITERATIONS", 3)
    for dense in (4000, 10):
        monkeypatch.setattr(transport, "DENSE_POINTS", dense)
        with (
            pytest.warns(UserWarning, match="numItermax"),
            pytest.raises(ArithmeticError, match="40 to 40 points did not converge"),
        ):
            wasserstein2(x, y)
        with warnings.catch_warnings(action="error"), pytest.raises(ArithmeticError, match="40 to 40 points failed"):
            wasserstein2(x, y)


@quick
@given(clouds(d=2), clouds(d=2))
def test_costs_made_on_the_fly_give_the_stored_ones(x: Measure, y: Measure) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "DENSE_POINTS", 0)
        lazy = wasserstein2(x, y)
    assert lazy == pytest.approx(wasserstein2(x, y), rel=1e-7, abs=1e-6)


@pytest.mark.slow
def test_above_4000_points_the_distance_is_still_exact() -> None:
    rng = np.random.default_rng(5)
    x, y = (Measure.uniform(rng.standard_normal((4100, 2))) for _ in range(2))
    assert wasserstein2(x, y) == pytest.approx(by_pot(x, y), rel=1e-9)


# Sliced


def test_sliced_distance_of_a_translation_is_its_length_over_root_d() -> None:
    """E (u.v)^2 = |v|^2 / d; the mean of (u.v)^2 over directions has standard error (2 / L)^(1/2) / d for |v| = 1, d = 2."""
    x = np.random.default_rng(6).standard_normal((3, 30, 2))
    moved = Measure.uniform(x + np.array([0.6, 0.8]))
    square = sliced_wasserstein2(Measure.uniform(x), moved, 2000, np.random.default_rng(0)) ** 2
    assert square.shape == (3,)
    assert np.abs(square - 0.5) == pytest.approx(0, abs=4 * math.sqrt(1 / 8 / 2000))


@quick
@given(clouds(), st.data(), seeds)
def test_sliced_distance_is_a_lower_bound_in_blocks_or_not(x: Measure, data: st.DataObject, seed: int) -> None:
    y = data.draw(clouds(d=x.event[0]))
    value = sliced_wasserstein2(x, y, 7, np.random.default_rng(seed))
    assert value <= wasserstein2(x, y) + 1e-6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "SLICE_NUMBERS", 20)
        assert sliced_wasserstein2(x, y, 7, np.random.default_rng(seed)) == pytest.approx(value, rel=1e-12, abs=1e-15)


# Errors and imports


def cloud(*shape: int) -> Measure:
    """Ones of a shape."""
    return Measure.uniform(np.ones(shape))


def test_errors_name_what_was_got() -> None:
    with pytest.raises(ValueError, match="one dimension d, got 2 and 3"):
        wasserstein2(cloud(4, 2), cloud(4, 3))
    with pytest.raises(ValueError, match="one dimension d, got 2 and 3"):
        gaussian_wasserstein2(cloud_law(2), cloud_law(3))
    with pytest.raises(ValueError, match="one dimension d, got 2 and 3"):
        moment_wasserstein2(Moments(4.0, np.zeros(2), np.eye(2)), cloud_law(3))
    with pytest.raises(ValueError, match="vectors"):
        wasserstein2(Measure.uniform(np.ones((4, 1, 2, 2)), batch=0), cloud(4, 2))
    with pytest.raises(ValueError, match="at least one point"):
        wasserstein2(cloud(0, 2), cloud(4, 2))
    with pytest.raises(ValueError, match="got d = 2"):
        wasserstein2_1d(cloud(4, 2), cloud(4, 2))
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        wasserstein2(cloud(4, 2), cloud(4, 2), workers=0)
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        sliced_wasserstein2(cloud(4, 2), cloud(4, 2), 0, np.random.default_rng(0))


def cloud_law(d: int) -> Gaussian:
    """The standard normal law."""
    return Gaussian(np.zeros(d), np.eye(d))


def test_transport_imports_no_framework_and_leaves_the_environment() -> None:
    code = (
        "import sys, os; before = dict(os.environ); from selfloop.metrics import transport; late = 'ot' not in sys.modules;"
        "transport._pot(); heavy = {'torch', 'jax', 'cupy', 'tensorflow'} & set(sys.modules);"
        "print(late, sorted(heavy), dict(os.environ) == before)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["True", "[]", "True"]


def test_points_of_any_kind_are_taken_as_numbers() -> None:
    """Images' uint8 must not wrap round: 0 - 255 is -255."""
    x: Array = np.array([[0.0, 0.0], [10.0, 0.0]])
    y: Array = np.array([[255.0, 0.0], [245.0, 0.0]])
    bytes_x, bytes_y = (Measure.uniform(points.astype(np.uint8)) for points in (x, y))
    assert wasserstein2(bytes_x, bytes_y) == pytest.approx(wasserstein2(Measure.uniform(x), Measure.uniform(y)))
