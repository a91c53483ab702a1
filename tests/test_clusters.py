"""k-means: against the definition of a fixed point, against scikit-learn, and the same for any number of threads."""

import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.cluster import KMeans

from selfloop.curate.cluster import Clusters, faiss, in_order
from selfloop.curate.density import KnnScore
from selfloop.curate.distance import PrototypeScore, RandomScore
from selfloop.curate.graph import D2
from selfloop.measure import Measure

METRICS = ("euclidean", "cosine")


def blobs(sizes, d=8, spread=0.1, seed=0):
    """Rows around corners of a simplex, and the corner of each."""
    rng, truth = np.random.default_rng(seed), np.repeat(np.arange(len(sizes)), sizes)
    return (5 * np.eye(max(d, len(sizes)))[truth] + spread * rng.standard_normal((len(truth), max(d, len(sizes))))).astype(
        np.float32
    ), truth


def distances(x, centres, metric):
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return 1 - x @ centres.T
    return np.linalg.norm(x[:, None].astype(float) - centres, axis=2)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [60, 9000])  # less and more than a block
def test_every_row_is_with_its_nearest_centre_at_its_distance(metric, n):
    x = np.random.default_rng(0).standard_normal((n, 5)).astype(np.float32) + 1
    found = Clusters(k=7, metric=metric).of(x, np.random.default_rng(1))
    to = distances(x, found.centres, metric)
    np.testing.assert_allclose(found.distance, to.min(axis=1), atol=2e-6)
    np.testing.assert_allclose(to[np.arange(n), found.labels], to.min(axis=1), atol=2e-6)
    assert found.sizes.sum() == n


@pytest.mark.parametrize("metric", METRICS)
def test_a_centre_is_the_mean_of_its_rows(metric):
    x = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32) + 0.5
    found = Clusters(k=5, metric=metric, iterations=200).of(x, np.random.default_rng(1))
    for rows, centre in zip(found.members(), found.centres, strict=True):
        mean = x[rows].mean(axis=0)
        if metric == "cosine":
            mean = (x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True)).mean(axis=0)
            mean /= np.linalg.norm(mean)
        np.testing.assert_allclose(centre, mean, atol=1e-5)


@pytest.mark.parametrize("seed", range(10))
def test_groups_far_apart_are_found_a_rare_one_among_them(seed):
    x, truth = blobs([400, 300, 200, 90, 10])
    found = Clusters(k=5).of(x, np.random.default_rng(seed))
    assert len(np.unique(found.labels * 10 + truth)) == 5


def test_the_cost_is_that_of_scikit_learn():
    """Mean costs of 24 runs from random starts on one data set differ by less than 4 standard errors."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((600, 4)) + 3 * rng.standard_normal((12, 4))[rng.integers(0, 12, 600)]).astype(np.float32)
    ours = [(Clusters(k=12, iterations=100).of(x, rng).distance.astype(float) ** 2).sum() for _ in range(24)]
    theirs = [KMeans(12, n_init=1, random_state=seed).fit(x).inertia_ for seed in range(24)]
    error = np.sqrt((np.var(ours) + np.var(theirs)) / 24)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error
    assert error < 0.03 * np.mean(theirs)


@pytest.mark.parametrize("metric", METRICS)
def test_the_bits_do_not_depend_on_the_number_of_threads(metric):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((9363, 64)) + 3 * rng.standard_normal((10, 64))[rng.integers(0, 10, 9363)]).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        faiss().omp_set_num_threads(threads)
        try:
            found.append(Clusters(k=40, sample=100, iterations=3, metric=metric).of(x, np.random.default_rng(1)))
        finally:
            faiss().omp_set_num_threads(1)
    for other in found[1:]:
        for name in ("labels", "centres", "distance"):
            np.testing.assert_array_equal(getattr(found[0], name), getattr(other, name))


def test_a_memory_map_gives_what_the_array_gives(tmp_path):
    x = np.random.default_rng(0).standard_normal((5000, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    one, two = (
        Clusters(k=6, sample=50).of(features, np.random.default_rng(1))
        for features in (x, np.load(tmp_path / "x.npy", mmap_mode="r"))
    )
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.distance, two.distance)


def test_the_embedding_of_a_data_set_is_what_is_clustered():
    x, truth = blobs([30, 20])
    found = Clusters(k=2)(Measure.uniform(x), np.random.default_rng(0))
    assert len(np.unique(found.labels * 2 + truth)) == 2


def test_a_shift_far_beyond_the_spread_moves_the_centres_and_nothing_else():
    x = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.float32) / 64
    one, two = (Clusters(k=6).of(x + shift, np.random.default_rng(1)) for shift in (0, 16384))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.distance, two.distance, rtol=0.01, atol=2e-3)  # a row is known to 1/512 there


def test_more_runs_cost_no_more():
    x = np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)
    costs = [
        (Clusters(k=12, restarts=restarts, iterations=200).of(x, np.random.default_rng(3)).distance.astype(float) ** 2).sum()
        for restarts in (1, 4)
    ]
    assert costs[1] <= costs[0] * (1 + 1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.sampled_from(METRICS), st.integers(0, 2**32 - 1))
def test_fewer_different_rows_than_clusters_leave_empty_ones_and_finite_centres(different, copies, more, metric, seed):
    rng = np.random.default_rng(seed)
    corners = np.eye(6, dtype=np.float32)[:different] + 1
    x = corners[np.r_[np.arange(different), rng.integers(0, different, different * copies)]]
    k = min(different + more, len(x))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Clusters(k=k, metric=metric).of(x, rng)
    assert np.isfinite(found.centres).all()
    assert np.isfinite(found.distance).all()
    assert found.sizes.sum() == len(x)
    assert (found.sizes == 0).sum() >= k - different
    assert bool(caught) == (found.sizes == 0).any()
    np.testing.assert_allclose(found.distance, 0, atol=1e-3)


def test_one_cluster_is_about_the_mean_and_as_many_as_rows_are_the_rows():
    x = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    np.testing.assert_allclose(Clusters(k=1).of(x, np.random.default_rng(1)).centres[0], x.mean(axis=0), atol=1e-6)
    single = Clusters(k=40).of(x, np.random.default_rng(1))
    assert (single.sizes == 1).all()
    np.testing.assert_allclose(single.distance, 0, atol=1e-6)


def test_members_are_the_rows_of_each_label_in_order():
    x = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    found = Clusters(k=4).of(x, np.random.default_rng(1))
    for label, rows in enumerate(found.members()):
        np.testing.assert_array_equal(rows, np.flatnonzero(found.labels == label))


def test_results_of_threads_come_in_order_and_errors_come_through():
    assert list(in_order(lambda i: i * i, range(50))) == [i * i for i in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda i: 1 // i, [1, 0]))


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(ValueError, match=r"5 clusters need as many rows, and there are 3; set clusters\.k to 3"):
        Clusters(k=5).of(np.ones((3, 2), dtype=np.float32), np.random.default_rng(0))


def test_features_that_are_not_numbers_are_refused_with_their_row():
    x = np.ones((9, 2), dtype=np.float32)
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        Clusters(k=2).of(x, np.random.default_rng(0))


def test_a_row_without_direction_is_refused_by_the_cosine():
    x = np.ones((9, 2), dtype=np.float32)
    x[7] = 0
    with pytest.raises(ValueError, match="no direction; drop it, or set metric: euclidean"):
        Clusters(k=2, metric="cosine").of(x, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 2, "metric": "manhattan"}, {"k": 2, "restarts": 0}])
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        Clusters(**wrong)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Clusters(k=2),
        KnnScore,
        lambda: PrototypeScore(k=2),
        lambda: D2(score=RandomScore(), fraction=0.5, keep="high"),
    ],
)
def test_without_faiss_what_needs_it_is_not_made_and_the_error_says_what_installs_it(monkeypatch, made):
    made()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "faiss" else find(name))
    with pytest.raises(ModuleNotFoundError, match="need faiss; run: pip install faiss-cpu"):
        made()


def test_faiss_is_looked_for_and_not_imported_when_clusters_are_made():
    code = "import sys; from selfloop.curate.cluster import Clusters; Clusters(k=2); sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
