"""Digits as pixels and as principal components."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from selfloop.data import Digits


def rows(**options):
    return Digits(held_out=0.5, **options).replicated(1, np.random.default_rng(0)).take(0, 800, np.random.default_rng(1))


def test_all_components_keep_every_distance_between_pixels():
    pixels, components = rows(), rows(components=61)
    assert components.event == (Digits(components=61).d,)
    assert np.array_equal(pixels.labels, components.labels)
    assert pdist(components.points[0]) == pytest.approx(pdist(pixels.points[0]), rel=1e-9)


def test_components_are_centred_uncorrelated_and_the_largest_first():
    """Over all digits: those for training and those held out together."""
    supply = Digits(held_out=0.5, components=5).replicated(1, np.random.default_rng(0))
    halves = supply.take(0, Digits(held_out=0.5).rows, np.random.default_rng(1)), supply.sample(10**4, np.random.default_rng(2))
    points = np.concatenate([half.points[0] for half in halves])
    cov = np.cov(points.T)
    assert points.shape == (1797, 5)
    assert points.mean(axis=0) == pytest.approx(np.zeros(5), abs=1e-9)
    assert cov - np.diag(np.diag(cov)) == pytest.approx(np.zeros((5, 5)), abs=1e-9)
    assert list(np.diag(cov)) == sorted(np.diag(cov), reverse=True)
