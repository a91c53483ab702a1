"""Flaws are of the size that is asked for, and in the training rows alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.data import Digits, GaussianSource
from selfloop.flawed import Flawed
from selfloop.images import Images
from selfloop.plane import EightGaussians

CIRCLE = EightGaussians()
NORMAL = GaussianSource(mean=(0.0,), cov=((1.0,),))


def rng(seed=0):
    return np.random.default_rng(seed)


def taken(n=200, runs=3, source=CIRCLE, **options):
    return Flawed(source=source, **options).replicated(runs, rng()).take(0, n, rng(1))


@settings(max_examples=30, deadline=None)
@given(st.integers(30, 300), st.floats(0, 0.4), st.floats(0, 0.4), st.integers(1, 5))
def test_there_are_as_many_copies_and_outliers_as_asked_for(n, duplicates, outliers, copied):
    data = taken(n, duplicates=duplicates, copied=copied, outliers=outliers, spread=1e3)
    copies = round(duplicates * n)
    for points, labels in zip(data.points, data.labels, strict=True):
        rows, counts = np.unique(np.column_stack([points, labels]), axis=0, return_counts=True)
        assert len(rows) == n - copies
        assert sorted(counts[counts > 1] - 1) == sorted(np.bincount(np.arange(copies) % copied)[:copies])
        assert (np.hypot(*points.T) > 3).sum() <= round(outliers * n)
    far = (np.hypot(*np.moveaxis(data.points, -1, 0)) > 3).mean(axis=1)
    assert far == pytest.approx(round(outliers * n) / n, abs=1 / n)  # an outlier lies within 3 with probability 5e-6


def test_copies_differ_by_their_jitter_and_keep_the_label():
    """Each of 100 copies is N(x, jitter^2 I): mean square 2 jitter^2, standard error 2 jitter^2 / 100^1/2."""
    jitter = 1e-4
    exact, near = (taken(200, 1, duplicates=0.5, copied=1, jitter=j) for j in (0.0, jitter))
    rows, counts = np.unique(exact.points[0], axis=0, return_counts=True)
    original = rows[counts == 101][0]
    close = np.hypot(*(near.points[0] - original).T) < 10 * jitter
    assert close.sum() == 101
    assert len(np.unique(near.labels[0][close])) == 1
    square = ((near.points[0][close] - original) ** 2).sum() / 100
    assert abs(square - 2 * jitter**2) < 4 * jitter**2 * 2 / 100**0.5


def test_without_flaws_the_rows_are_those_of_the_law_in_another_order():
    clean = CIRCLE.replicated(3, rng()).take(0, 50, rng(1).spawn(2)[0])
    spoiled = taken(50)
    for a, b in zip(clean.points, spoiled.points, strict=True):
        np.testing.assert_array_equal(np.unique(a, axis=0), np.unique(b, axis=0))


def test_what_it_is_compared_with_is_clean():
    source = Flawed(source=CIRCLE, duplicates=0.3, outliers=0.3, spread=100.0).replicated(2, rng())
    assert np.abs(source.sample(1000, rng(2)).points).max() < 3
    np.testing.assert_array_equal(source.model.means, CIRCLE.replicated(2, rng()).model.means)
    assert Flawed(source=NORMAL, outliers=0.1).replicated(2, rng()).law().cov.shape == (2, 1, 1)


def test_it_has_the_size_and_gives_what_its_source_gives_but_no_moments():
    assert Flawed(source=CIRCLE).gives == CIRCLE.gives
    assert Flawed(source=NORMAL).gives == {"law"}
    assert (Flawed(source=CIRCLE).d, Flawed(source=Digits()).rows) == (2, Digits().rows)
    assert not hasattr(Flawed(source=CIRCLE), "rows")
    with pytest.raises(ValueError, match="statistics: false"):
        Flawed(source=NORMAL).replicated(2, rng()).take(0, 20, rng(), statistics=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duplicates": 0.6, "outliers": 0.5}, "leave clean rows"),
        ({"source": Images(path="digits")}, "the source has images"),
    ],
)
def test_what_cannot_be_spoiled_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Flawed(**{"source": CIRCLE} | options)


def test_more_originals_than_clean_rows_are_refused():
    with pytest.raises(ValueError, match="10 rows have copies, and of 12 only 6 are clean"):
        taken(12, duplicates=0.5)


def test_shares_of_the_eight_gaussians_are_those_of_the_samples():
    """At 40,000 points a share p has the standard error (p (1 - p) / 40,000)^1/2; 4 of them."""
    shares = np.array([0.01, 0.29, *(0.1,) * 4, 0.2, 0.1])
    found = EightGaussians(shares=tuple(shares)).replicated(1, rng()).sample(40_000, rng(3))
    seen = np.bincount(found.labels[0], minlength=8) / found.n
    assert (np.abs(seen - shares) < 4 * np.sqrt(shares * (1 - shares) / found.n)).all()
    with pytest.raises(ValueError, match=r"add to one, got a sum of 1\.2"):
        EightGaussians(shares=(0.15,) * 8)
