"""Weighted points and moments: the algebra that mixes rest on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from selfloop.measure import Measure, Moments, Rows, Selection, concatenate, finite, with_members_of

numbers = st.floats(-1e3, 1e3, allow_subnormal=False)


@st.composite
def measures(draw, least=1, batch=None, d=None):
    shape = (batch or draw(st.integers(1, 3)), draw(st.integers(least, 6)), d or draw(st.integers(1, 3)))
    weights = draw(npst.arrays(float, shape[:2], elements=st.floats(0.1, 1)))
    return Measure(draw(npst.arrays(float, shape, elements=numbers)), weights / weights.sum(axis=-1, keepdims=True))


@settings(max_examples=60, deadline=None)
@given(measures())
def test_moments_are_numpy_averages_under_the_weights(x):
    moments = x.moments()
    for r in range(x.batch[0]):
        mean = np.average(x.points[r], axis=0, weights=x.weights[r])
        cov = np.cov(x.points[r].T, aweights=x.weights[r], bias=True).reshape(mean.size, mean.size)
        np.testing.assert_allclose(moments.mean[r], mean, atol=1e-9)
        np.testing.assert_allclose(moments.cov[r], cov, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.floats(0.01, 5), min_size=2, max_size=3))
def test_moments_of_a_mixture_are_the_mixture_of_moments(data, masses):
    """concatenate(moments) = moments(concatenate): means, covariances and effective sizes alike."""
    d = data.draw(st.integers(1, 3))
    parts = [data.draw(measures(batch=2, d=d)) for _ in masses]
    points, moments = concatenate(parts, masses).moments(), concatenate([part.moments() for part in parts], masses)
    np.testing.assert_allclose(points.mean, moments.mean, atol=1e-8)
    np.testing.assert_allclose(points.cov, moments.cov, atol=1e-5)
    np.testing.assert_allclose(points.n, moments.n, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(measures(least=2), st.data())
def test_a_subset_keeps_rows_and_relative_weights(x, data):
    index = np.array(sorted(data.draw(st.sets(st.integers(0, x.n - 1), min_size=1))))
    kept = x.subset(index)
    np.testing.assert_array_equal(kept.points, x.points[:, index])
    np.testing.assert_allclose(kept.weights / kept.weights[:, :1], x.weights[:, index] / x.weights[:, index[:1]])


def test_integer_weights_are_repeated_points():
    points, counts = np.array([[[0.0], [1.0], [5.0]]]), np.array([1, 2, 3])
    weighted = Measure(points, counts[None] / 6).moments()
    repeated = Measure.uniform(np.repeat(points, counts, axis=1)).moments()
    np.testing.assert_allclose(weighted.cov, repeated.cov)


def test_default_masses_are_sizes_so_that_sizes_add():
    a, b = Moments(10.0, np.zeros((1, 1)), np.ones((1, 1, 1))), Moments(30.0, np.ones((1, 1)), np.ones((1, 1, 1)))
    together = concatenate([a, b])
    assert together.n == pytest.approx(40)
    assert together.mean[0, 0] == pytest.approx(0.75)
    assert together.cov[0, 0, 0] == pytest.approx(1 + 0.75 * 0.25)


def test_rows_read_through_a_memory_map_without_copying_it(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.arange(40, dtype=np.uint8).reshape(10, 2, 2))
    mapped = np.load(path, mmap_mode="r")
    data = Measure.uniform(mapped, batch=0)
    kept = concatenate([data.subset(np.array([7, 1])), data.subset(np.array([3]))])
    assert isinstance(kept.points, Rows)
    assert all(part is mapped for part in kept.points.parts)
    np.testing.assert_array_equal(np.asarray(kept.points), mapped[[7, 1, 3]])
    np.testing.assert_array_equal(kept.subset(np.array([2, 0])).points[:], mapped[[3, 7]])
    np.testing.assert_array_equal(kept.points[1], mapped[1])
    assert (kept.event, kept.n, kept.points.dtype) == ((2, 2), 3, np.uint8)


ROWS = Rows((np.arange(12.0).reshape(4, 3), np.arange(12.0, 18.0).reshape(2, 3)), np.array([5, 0, 3, 4]))


@pytest.mark.parametrize(
    "index",
    [2, -1, np.int64(1), slice(1, None, 2), [], [3, 0], np.array([1, 1]), np.array([], dtype=int), np.arange(4) > 1],
    ids=repr,
)
def test_rows_are_indexed_as_an_array_of_them_is(index):
    np.testing.assert_array_equal(ROWS[index], np.asarray(ROWS)[index])


@pytest.mark.parametrize(
    "index",
    [(..., 0), (slice(None), 0), (0,), ..., None, True, 1.0, np.array([0.0]), np.array([[0, 1]]), np.ones((4, 3), bool)],
    ids=repr,
)
def test_an_index_that_looks_into_rows_is_refused(index):
    """Read as rows, [..., 0] would be row 0 and not column 0."""
    with pytest.raises(TypeError, match=r"read them first, all by np.asarray\(points\) or blocks"):
        ROWS[index]


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(IndexError, match="boolean"):
        ROWS[np.ones(5, dtype=bool)]


def test_rows_of_parts_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="share one event shape"):
        Rows((np.zeros((2, 3)), np.zeros((2, 4))), np.arange(4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Measure.uniform(np.array([[0.0], [np.nan]])), "row 1 of 2 holds NaN"),
        (lambda: Measure.uniform(np.array([[[0.0]], [[np.inf]]])), "row 0 of 1 holds NaN or infinity"),
        (lambda: Measure(np.zeros((2, 1)), np.array([0.5, 0.6])), "add to one"),
        (lambda: Measure(np.zeros((2, 1)), np.array([-0.5, 1.5])), ">= 0"),
        (lambda: Measure(np.zeros((3, 1)), np.array([0.5, 0.5])), "must match the first axes"),
        (lambda: Measure(np.zeros((0, 1)), np.zeros(0)), "at least one point"),
        (lambda: Measure.uniform(np.zeros((2, 1)), labels=np.zeros(3, dtype=int)), "labels has 3 entries for 2 points"),
        (lambda: concatenate([Measure.uniform(np.zeros((2, 1)))] * 2, [0, 0]), "not all zero"),
        (lambda: concatenate([Measure.uniform(np.zeros((2, 1)))] * 2, [1, -1]), ">= 0"),
        (lambda: Measure.uniform(np.zeros((2, 4, 4)), batch=0).moments(), "flatten"),
        (lambda: Measure(np.zeros((2, 1)), np.array([1.0, 0.0])).subset(np.array([1])), "carry no weight"),
    ],
)
def test_bad_data_is_an_error_that_says_what_and_where(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_points_and_moments_do_not_mix():
    x = Measure.uniform(np.zeros((1, 2, 1)))
    with pytest.raises(TypeError, match="all measures or all moments"):
        concatenate([x, x.moments()])


def test_a_selection_multiplies_weights_and_an_empty_one_is_an_error():
    x = Measure(np.arange(3.0)[:, None], np.array([0.2, 0.3, 0.5]))
    kept = Selection(np.array([0, 2]), np.array([1.0, 2.0]), {}).apply(x)
    np.testing.assert_allclose(kept.weights, np.array([0.2, 1.0]) / 1.2)
    with pytest.raises(ValueError, match="kept none"):
        Selection(np.array([0]), np.array([0.0]), {}).apply(x)


def test_marks_follow_their_points():
    x = Measure.uniform(np.zeros((2, 3, 1)), labels=np.array([0, 1, 2])).stamped(0)
    y = Measure(np.ones((2, 2, 1)), np.full((2, 2), 0.5), np.array([[3, 4], [5, 6]])).stamped(4)
    both = concatenate([x, y])
    assert both.origin.tolist() == [0, 0, 0, 4, 4]
    assert both.labels.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]]


def test_members_that_are_not_finite_are_found_and_replaced():
    x, real = np.zeros((2, 3, 1)), Measure.uniform(np.ones((2, 2, 1)))
    x[1, 0] = np.nan
    broken = Measure(x, np.full((2, 3), 1 / 3))
    assert finite(broken).tolist() == [True, False]
    mended = with_members_of(broken, ~finite(broken), real)
    assert mended.points[1].tolist() == [[1.0]] * 3
    assert mended.points[0].tolist() == [[0.0]] * 3
