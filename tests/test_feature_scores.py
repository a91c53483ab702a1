"""Scores from features: likelihoods and distances against independent libraries, and what they do not depend on."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal, ortho_group
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from selfloop.algorithms.gaussian import GaussianFit
from selfloop.curate.cluster import Clusters
from selfloop.curate.density import GaussianScore, KnnScore, PpcaScore
from selfloop.curate.distance import CentreScore, ModerateScore, PrototypeScore, RandomScore
from selfloop.embed import FileEmbedding, PcaEmbedding
from selfloop.measure import Measure
from selfloop.protocols import Score

quick = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def cloud(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated float32 vectors off the origin; standard deviations from .5 to 2 along turned axes."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    x = (rng.standard_normal((n, d)) * np.geomspace(2, 0.5, d)) @ turn + 3 * rng.standard_normal(d)
    return x.astype(np.float32)


def scores(score: Any, x: np.ndarray, labels: Any = None, weights: Any = None, seed: int = 0) -> np.ndarray:
    data = Measure.uniform(x, labels, batch=0)
    found = score(data if weights is None else data.reweighted(weights), np.random.default_rng(seed))
    assert isinstance(score, Score)
    assert (found.shape, found.dtype) == ((len(x),), np.float64)
    return np.asarray(found)


ALL = GaussianScore(per_class=False), PpcaScore(per_class=False), KnnScore(k=3), ModerateScore(per_class=False)
SHRUNK = tuple(GaussianScore(per_class=False, shrinkage=a) for a in (0.3, "ledoit_wolf", "oas"))
ids = lambda score: f"{type(score).__name__}-{getattr(score, 'shrinkage', '')}"  # noqa: E731


# Gaussian


def test_gaussian_scores_are_the_log_densities_of_scipy_and_sklearn() -> None:
    x = cloud(200, 4).astype(float)
    found = scores(GaussianScore(per_class=False), cloud(200, 4))
    np.testing.assert_allclose(found, multivariate_normal(x.mean(axis=0), np.cov(x.T, bias=True)).logpdf(x), rtol=1e-9)
    peer = GaussianMixture(1, reg_covar=0.0).fit(x)
    np.testing.assert_allclose(found, peer.score_samples(x), rtol=1e-9)


@quick
@given(seed=seeds, n=st.integers(12, 60), d=st.integers(1, 8))
def test_mahalanobis_distances_add_to_n_d(seed: int, n: int, d: int) -> None:
    """-2 H - ln det S - d ln 2 pi."""
    x = cloud(n, d, seed)
    _, log_det = np.linalg.slogdet(np.atleast_2d(np.cov(x.T.astype(float), bias=True)))
    squares = -2 * scores(GaussianScore(per_class=False), x) - log_det - d * np.log(2 * np.pi)
    assert squares.sum() == pytest.approx(n * d, rel=1e-9)


def test_each_class_has_a_gaussian_of_its_own_and_a_class_may_be_missing() -> None:
    x, labels = cloud(90, 3), np.arange(90) % 3 * 2
    found = scores(GaussianScore(), x, labels)
    for label in (0, 2, 4):
        alone = scores(GaussianScore(per_class=False), x[labels == label])
        np.testing.assert_allclose(found[labels == label], alone, rtol=1e-12)


def test_whole_weights_are_repeated_rows() -> None:
    x, w = cloud(40, 3), np.random.default_rng(1).integers(1, 4, 40)
    repeated = scores(GaussianScore(per_class=False), np.repeat(x, w, axis=0))[np.cumsum(w) - 1]
    np.testing.assert_allclose(scores(GaussianScore(per_class=False), x, weights=w.astype(float)), repeated, rtol=1e-9)


def test_shrinkage_by_ledoit_and_wolf_is_that_of_sklearn() -> None:
    for n in (8, 30):
        x = cloud(n, 12).astype(float)
        cov, _ = ledoit_wolf(x)
        found = scores(GaussianScore(per_class=False, shrinkage="ledoit_wolf"), cloud(n, 12))
        np.testing.assert_allclose(found, multivariate_normal(x.mean(axis=0), cov).logpdf(x), rtol=1e-9)


@pytest.mark.parametrize("shrinkage", [0.3, "oas"])
def test_shrinkage_is_that_of_the_gaussian_fit(shrinkage: Any) -> None:
    x = cloud(10, 12).astype(float)
    law = GaussianFit(shrinkage=shrinkage).fit(Measure.uniform(x), np.random.default_rng(0)).law()
    found = scores(GaussianScore(per_class=False, shrinkage=shrinkage), cloud(10, 12))
    np.testing.assert_allclose(found, multivariate_normal(law.mean, law.cov).logpdf(x), rtol=1e-9)


def test_in_a_class_of_as_few_rows_as_dimensions_all_are_alike_and_it_warns() -> None:
    """Mahalanobis distances under the pseudo-inverse are n - 1."""
    x = np.concatenate([cloud(10, 12), cloud(40, 12, 2)])
    with pytest.warns(UserWarning, match=r"class 0 has 10 rows in 12 dimensions: .* set shrinkage: oas, or features"):
        found = scores(GaussianScore(), x, np.repeat([0, 1], [10, 40]))[:10]
    assert np.ptp(found) < 1e-8 * np.abs(found).max()
    values = np.linalg.eigvalsh(np.cov(x[:10].T.astype(float), bias=True))[-9:]
    np.testing.assert_allclose(found, -0.5 * (9 + np.log(2 * np.pi * values).sum()), rtol=1e-8)
    with pytest.warns(UserWarning, match=r"class 1 has 9 rows in 12 dimensions \(and 1 more classes are alike\)"):
        scores(GaussianScore(), np.concatenate([x[:10], cloud(9, 12, 1), x[10:]]), np.repeat([0, 1, 2], [10, 9, 40]))


def test_classes_that_all_have_as_few_rows_as_dimensions_are_refused_unless_shrunk() -> None:
    x, labels = cloud(22, 12), np.repeat([4, 7], [12, 10])
    remedy = r"ranking is rounding; set shrinkage: oas, or features: \{kind: pca\}"
    with pytest.raises(ValueError, match=rf"class 4 has 12 rows, and no class more, in 12 dimensions: .*{remedy}"):
        scores(GaussianScore(), x, labels)
    with pytest.raises(ValueError, match=rf"the data has 12 rows in 12 dimensions: .*{remedy}"):
        scores(GaussianScore(per_class=False), x[:12])
    assert np.ptp(scores(GaussianScore(shrinkage="oas"), x, labels)) > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.ptp(scores(GaussianScore(per_class=False), cloud(14, 12))) > 1e-3


def test_a_direction_without_variance_is_left_out_and_it_warns() -> None:
    x = np.insert(cloud(50, 3), 1, 7.0, axis=1)
    with pytest.warns(UserWarning, match="the data varies in 3 of 4 dimensions: densities are those on these alone"):
        found = scores(GaussianScore(per_class=False), x)
    np.testing.assert_allclose(found, scores(GaussianScore(per_class=False), np.delete(x, 1, axis=1)), rtol=1e-9)


def test_shrinkage_and_few_components_tell_few_rows_apart_without_a_warning() -> None:
    x = cloud(10, 12)
    for score in (
        *SHRUNK,
        PpcaScore(per_class=False, components=3),
        GaussianScore(per_class=False, features=PcaEmbedding(components=3)),
    ):
        assert np.ptp(scores(score, x)) > 0.1


# Probabilistic principal components


@pytest.mark.parametrize(("options", "n_components"), [({"components": 2}, 2), ({"explained": 0.7}, 0.7), ({}, 0.95)])
def test_ppca_scores_are_those_of_sklearn(options: dict[str, Any], n_components: Any) -> None:
    x = cloud(100, 6)
    peer = PCA(n_components, svd_solver="full").fit(x.astype(float))
    assert peer.n_components_ < 6
    np.testing.assert_allclose(scores(PpcaScore(per_class=False, **options), x), peer.score_samples(x.astype(float)), rtol=1e-9)


def test_ppca_with_all_components_is_the_unbiased_gaussian() -> None:
    x = cloud(100, 5)
    law = multivariate_normal(x.astype(float).mean(axis=0), np.cov(x.T.astype(float)))
    np.testing.assert_allclose(scores(PpcaScore(per_class=False, components=5), x), law.logpdf(x.astype(float)), rtol=1e-9)


def test_ppca_of_weighted_rows_has_their_weighted_covariance() -> None:
    x, w = cloud(40, 3).astype(float), np.random.default_rng(1).integers(1, 4, 40)
    values, vectors = np.linalg.eigh(np.cov(x.T, aweights=w))
    values[:2] = values[:2].mean()
    law = multivariate_normal(np.average(x, axis=0, weights=w), vectors * values @ vectors.T)
    found = scores(PpcaScore(per_class=False, components=1), cloud(40, 3), weights=w.astype(float))
    np.testing.assert_allclose(found, law.logpdf(x), rtol=1e-9)


# Neighbours


@quick
@given(seed=seeds, n=st.integers(5, 200), d=st.integers(1, 20), k=st.integers(1, 4), copies=st.integers(0, 8))
def test_neighbours_are_those_of_all_pairs_with_copies_at_distance_zero(seed: int, n: int, d: int, k: int, copies: int) -> None:
    x = cloud(n, d, seed)
    x = np.concatenate([x, np.repeat(x[:1], copies, axis=0)])
    pairs = cdist(x.astype(float), x.astype(float))
    np.fill_diagonal(pairs, np.inf)
    found = scores(KnnScore(k=k), x)
    np.testing.assert_allclose(found, np.sort(pairs, axis=1)[:, k - 1], rtol=1e-12, atol=0)
    assert (found[0] == 0) == (copies >= k)


def test_neighbours_are_exact_far_from_the_origin_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of 1e4 in float32 have errors of 10, and the gaps are of 1."""
    x = (cloud(300, 5) + np.float32(1e4)).astype(np.float32)
    pairs = np.sort(cdist(x.astype(float), x.astype(float)), axis=1)
    np.testing.assert_allclose(scores(KnnScore(k=4), x), pairs[:, 4], rtol=1e-12)
    for name, value in (("QUERIES", 37), ("BYTES", 4 * 5 * 50)):
        monkeypatch.setattr(f"selfloop.curate.density.{name}", value)
    np.testing.assert_allclose(scores(KnnScore(k=4), x), pairs[:, 4], rtol=1e-12)


def test_neighbours_do_not_depend_on_the_number_of_threads() -> None:
    x, threads = cloud(3000, 16), faiss.omp_get_max_threads()
    found = []
    for number in (1, 2):
        faiss.omp_set_num_threads(number)
        found += [scores(KnnScore(), x), scores(KnnScore(cells=20, probes=3), x)]
    faiss.omp_set_num_threads(threads)
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])


def test_neighbours_in_near_cells_are_never_too_near_and_mostly_exact_and_those_in_all_cells_are() -> None:
    """In the plane a row of 8 cells of 60 has its fifth neighbour in its own cell or one beside it."""
    x, labels = cloud(500, 2), np.arange(500) % 2
    exact = scores(KnnScore(), x)
    near = scores(KnnScore(cells=8, probes=4), x)
    assert (near >= exact).all()
    assert (near == exact).mean() > 0.9
    np.testing.assert_array_equal(scores(KnnScore(cells=8, probes=8), x), exact)
    np.testing.assert_array_equal(scores(KnnScore(cells=250, probes=250), x), exact)
    assert np.isfinite(scores(KnnScore(cells=250, probes=1), x)).all()
    within = KnnScore(cells=4, probes=4, per_class=True)
    np.testing.assert_array_equal(scores(within, x, labels), scores(KnnScore(per_class=True), x, labels))


def test_neighbours_in_a_class_are_those_of_its_rows_alone() -> None:
    x, labels = cloud(60, 3), np.arange(60) % 2
    found = scores(KnnScore(per_class=True), x, labels)
    np.testing.assert_array_equal(found[labels == 1], scores(KnnScore(), x[labels == 1]))


# Distances


def test_the_middle_of_moderate_is_the_median_of_the_class() -> None:
    x, labels = cloud(31, 3), np.arange(31) % 2
    found = scores(ModerateScore(), x, labels)
    for label in (0, 1):
        own = x[labels == label].astype(float)
        np.testing.assert_allclose(found[labels == label], np.linalg.norm(own - np.median(own, axis=0), axis=1), rtol=1e-6)


def test_medians_in_blocks_of_columns_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = cloud(31, 7)
    found = scores(ModerateScore(per_class=False), x)
    monkeypatch.setattr("selfloop.curate.distance.ENTRIES", 62)
    monkeypatch.setattr("selfloop.curate.distance.ROWS", 5)
    np.testing.assert_array_equal(scores(ModerateScore(per_class=False), x), found)


def test_distances_to_centres_are_those_of_the_clusters() -> None:
    """Three groups, 20 standard deviations apart: their centres are the means of their rows."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 20)
    x = (rng.standard_normal((60, 2)) + 20 * np.array([[1, 0], [0, 1], [-1, -1]])[group]).astype(np.float32)
    means = np.stack([x[group == g].astype(float).mean(axis=0) for g in range(3)])
    found = scores(CentreScore(clusters=Clusters(k=3)), x)
    np.testing.assert_allclose(found, np.linalg.norm(x - means[group], axis=1), rtol=1e-4, atol=1e-4)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    sums = np.stack([unit[group == g].sum(axis=0) for g in range(3)])
    cosines = (unit * (sums / np.linalg.norm(sums, axis=1, keepdims=True))[group]).sum(axis=1)
    for score in (PrototypeScore(k=3), CentreScore(clusters=Clusters(k=3, metric="cosine"))):
        np.testing.assert_allclose(scores(score, x), 1 - cosines, rtol=1e-3, atol=1e-6)


def test_random_scores_are_the_stream_alone() -> None:
    np.testing.assert_array_equal(scores(RandomScore(), cloud(9, 2)), np.random.default_rng(0).random(9))
    assert not np.array_equal(scores(RandomScore(), cloud(9, 2), seed=1), scores(RandomScore(), cloud(9, 2)))


# What scores do not depend on


@pytest.mark.parametrize("score", [*ALL, *SHRUNK], ids=ids)
@quick
@given(seed=seeds)
def test_rows_in_another_order_keep_their_scores_and_copies_are_equal(score: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = cloud(40, 3, seed)
    x[30:] = x[:10]
    found, order = scores(score, x), rng.permutation(40)
    np.testing.assert_array_equal(found[30:], found[:10])
    np.testing.assert_allclose(scores(score, x[order]), found[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", [*ALL[:3], *SHRUNK], ids=ids)
@quick
@given(seed=seeds)
def test_turned_and_moved_features_keep_their_scores(score: Any, seed: int) -> None:
    """Features of about 10 in float32 have errors of 1e-6."""
    x = cloud(40, 3, seed)
    turn = ortho_group.rvs(3, random_state=seed % 2**31)
    moved = (x.astype(float) @ turn + [4.0, -7.0, 1.0]).astype(np.float32)
    np.testing.assert_allclose(scores(score, moved), scores(score, x), rtol=1e-4, atol=1e-4)


@quick
@given(seed=seeds)
def test_the_ranking_by_a_gaussian_without_shrinkage_is_that_of_any_affine_image(seed: int) -> None:
    x, rng = cloud(40, 3, seed), np.random.default_rng(seed)
    image = (x.astype(float) @ (np.eye(3) + 0.3 * rng.standard_normal((3, 3)))).astype(np.float32)
    before, after = scores(GaussianScore(per_class=False), x), scores(GaussianScore(per_class=False), image)
    assert np.corrcoef(before, after)[0, 1] > 1 - 1e-6


def test_images_are_scored_as_their_pixels_in_model_space() -> None:
    bytes_ = np.random.default_rng(0).integers(256, size=(60, 1, 2, 2), dtype=np.uint8)
    vectors = (bytes_.reshape(60, 4) / 127.5 - 1).astype(np.float32)
    for score in ALL:
        np.testing.assert_allclose(scores(score, bytes_), scores(score, vectors), rtol=1e-4, atol=1e-5)


# Bad input


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (GaussianScore(), "gaussian looks at each class by itself, and the data have no labels; set per_class: false"),
        (PpcaScore(), "ppca looks at each class by itself"),
        (ModerateScore(), "moderate looks at each class by itself"),
        (KnnScore(k=20), "neighbour 20 of a row needs 21 rows, and the data has 20; lower k, or set per_class: false"),
        (PpcaScore(per_class=False, components=4), "4 components are asked of 3 features; ask for 3 or fewer"),
        (PrototypeScore(k=21), "21 clusters need as many rows"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_that_cannot_be_scored_are_refused(score: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores(score, cloud(20, 3))


def test_a_class_of_few_rows_and_features_of_other_rows_are_refused(tmp_path: Path) -> None:
    labels = np.array([0] * 19 + [7])
    with pytest.raises(ValueError, match="class 7 has a single row, and a covariance needs two"):
        scores(PpcaScore(), cloud(20, 3), labels)
    with pytest.raises(ValueError, match="class 7 has a single row, and a covariance needs two"):
        scores(GaussianScore(shrinkage="oas"), cloud(20, 3), labels)
    with pytest.raises(ValueError, match="neighbour 1 of a row needs 2 rows, and class 7 has 1"):
        scores(KnnScore(k=1, per_class=True), cloud(20, 3), labels)
    np.save(tmp_path / "x.npy", cloud(19, 3))
    with pytest.raises(ValueError, match="features of 19 rows and the data have 20"):
        scores(KnnScore(features=FileEmbedding(path=str(tmp_path / "x.npy"))), cloud(20, 3))
    with pytest.raises(ValueError, match="give one of them"):
        PpcaScore(components=2, explained=0.5)
    for shrinkage in (0.0, 1.0, "lw"):
        with pytest.raises(ValueError, match="shrinkage"):
            GaussianScore(shrinkage=shrinkage)


def test_rows_that_are_all_the_same_have_equal_scores() -> None:
    x = np.ones((6, 2), dtype=np.float32)
    for score in (*ALL, *SHRUNK):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = scores(score, x)
        assert np.isfinite(found).all()
        assert np.ptp(found) == 0


def test_scores_and_components_are_the_same_bits_on_any_number_of_cores(tmp_path: Path) -> None:
    """Matrix products of one and of two threads differ in their last bits, and duplicates then in their order."""
    program = """
import hashlib, numpy as np
from selfloop.curate.density import GaussianScore, PpcaScore
from selfloop.embed import PcaEmbedding, embedded
from selfloop.measure import Measure
rng = np.random.default_rng(0)
data = Measure.uniform(rng.standard_normal((3000, 200)) @ rng.standard_normal((200, 200)))
found = [GaussianScore(per_class=False)(data, rng), PpcaScore(per_class=False, components=9)(data, rng)]
found.append(embedded(PcaEmbedding(components=9), data))
print([hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest() for one in found])
"""
    said = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
        said.add(done.stdout)
    assert len(said) == 1
