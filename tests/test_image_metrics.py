"""Metrics of images: features compared with scipy, torchmetrics and prdc, and the tracker with what it is made of."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from selfloop.config import load
from selfloop.embed import ClassifierEmbedding, FeatureMoments, PixelEmbedding, Pixels
from selfloop.images import Images
from selfloop.laws import Gaussian
from selfloop.measure import Measure
from selfloop.metrics import images, transport
from selfloop.metrics.diversity import vendi
from selfloop.metrics.frechet import frechet, load_reference, moments
from selfloop.metrics.images import ImageQuality
from selfloop.metrics.kernel import kid, kid_error
from selfloop.metrics.neighbours import manifold, nearest, novelty, precision_recall
from selfloop.metrics.track import View, entropy
from selfloop.protocols import Generation
from selfloop.reading import ConfigError, read
from selfloop.streams import NamedStreams
from selfloop.work import FolderWork

quick = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def cloud(seed: int, n: int, d: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features, of unequal variance and with a mean, in float32 as networks give them."""
    rng = np.random.default_rng(seed)
    turn = np.random.default_rng(d).standard_normal((d, d)) * 10.0 ** np.linspace(0, -2, d)
    return (np.maximum(rng.standard_normal((n, d)) @ turn, 0) + shift).astype(np.float32)


# Frechet distance


@pytest.mark.parametrize("large", [1, 256])
@pytest.mark.parametrize(("n", "m"), [(400, 300), (40, 50), (400, 50)])
def test_the_frechet_distance_is_that_of_sqrtm_and_of_torchmetrics_singular_or_not(
    n: int, m: int, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d = 64, so that 40 images have a singular covariance; both ways of W_2^2, that of few dimensions and that of many."""
    monkeypatch.setattr(transport, "LARGE", large)
    x, y = cloud(0, n, 64).astype(float), cloud(1, m, 64, 0.1).astype(float)
    (a, s), (b, t) = ((z.mean(axis=0), np.cov(z.T)) for z in (x, y))
    ours = frechet(moments(x), moments(y))
    theirs = ((a - b) ** 2).sum() + np.trace(s + t) - 2 * np.trace(sqrtm(s @ t)).real
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours == pytest.approx(float(_compute_fid(*map(torch.from_numpy, (a, s, b, t)))), rel=1e-6)


def test_in_many_dimensions_close_covariances_keep_their_digits_and_a_bad_one_is_nan() -> None:
    """W_2 of N(0, I) and N(0, (1 + e)^2 I) is e d^(1/2), at e = 1e-9 as at e = .1; one eigenvalue of the third is -1."""
    one = Gaussian(np.zeros(300), np.eye(300))
    for e in (0.1, 1e-9):
        other = Gaussian(np.zeros(300), (1 + e) ** 2 * np.eye(300))
        assert transport.gaussian_wasserstein2(one, other) == pytest.approx(e * np.sqrt(300), rel=1e-5)
    bad = np.eye(300)
    bad[0, 0] = -1
    both = Gaussian(np.zeros((2, 300)), np.stack([bad, 4 * np.eye(300)]))
    np.testing.assert_allclose(transport.gaussian_wasserstein2(both, one), [np.nan, np.sqrt(300)], rtol=1e-9)


@quick
@given(seed=seeds, n=st.integers(2, 60), cuts=st.lists(st.integers(0, 60), max_size=4), shift=st.sampled_from([0.0, 1e4]))
def test_moments_of_blocks_are_those_of_numpy_wherever_the_cuts(seed: int, n: int, cuts: list[int], shift: float) -> None:
    x = cloud(seed, n, 5).astype(float) + shift
    gathered = FeatureMoments()
    for part in np.split(x, sorted(min(cut, n) for cut in cuts)):
        if len(part):
            gathered.update(part)
    law = gathered.law()
    np.testing.assert_allclose(law.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(law.cov, np.cov(x.T), rtol=1e-9, atol=1e-9 * np.abs(np.cov(x.T)).max() + 1e-24 * shift**2)


def test_blocks_inside_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(0, 100, 8, 0.1), cloud(1, 90, 8, 0.2)
    values = [frechet(moments(x), moments(y)), kid(real=x, fake=y), vendi(x)]
    found = precision_recall(real=manifold(x), fake=manifold(y)) | novelty(train=x, fake=y)
    for module in ("embed.moments", "metrics.kernel", "metrics.neighbours", "metrics.diversity"):
        monkeypatch.setattr(f"selfloop.{module}.ROWS", 7)
    np.testing.assert_allclose([frechet(moments(x), moments(y)), kid(real=x, fake=y), vendi(x)], values, rtol=1e-9)
    assert precision_recall(real=manifold(x), fake=manifold(y)) | novelty(train=x, fake=y) == found


@quick
@given(seed=seeds, n=st.integers(3, 20))
def test_whole_weights_are_repeated_rows_but_for_the_unbiased_factor(seed: int, n: int) -> None:
    """Covariances divide by W - sum w^2 / W and by W - 1."""
    x, w = cloud(seed, n, 3), np.random.default_rng(seed).integers(1, 4, n)
    weighted, repeated = moments(x, w), moments(np.repeat(x, w, axis=0))
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-12)
    factor = (w.sum() - 1) / (w.sum() - (w**2).sum() / w.sum())
    np.testing.assert_allclose(weighted.cov, factor * repeated.cov, rtol=1e-9, atol=1e-12)
    scaled = moments(x, 7.5 * w)
    np.testing.assert_allclose(scaled.cov, weighted.cov, rtol=1e-9, atol=1e-12)


@quick
@given(seed=seeds, n=st.integers(2, 30), d=st.integers(1, 12))
def test_the_frechet_distance_is_symmetric_zero_to_itself_and_the_square_of_a_translation(seed: int, n: int, d: int) -> None:
    x, y = cloud(seed, n, d), cloud(seed + 1, n + 3, d)
    scale = np.trace(moments(x).cov + moments(y).cov)
    assert frechet(moments(x), moments(y)) == pytest.approx(frechet(moments(y), moments(x)), rel=1e-6, abs=1e-12 * scale)
    assert frechet(moments(x), moments(x)) <= 1e-12 * scale
    shift = np.random.default_rng(seed).standard_normal(d)
    moved = frechet(moments(x.astype(float)), moments(x + shift))
    assert moved == pytest.approx((shift**2).sum(), rel=1e-9)


def test_a_reference_in_edms_form_is_read_and_another_refused(tmp_path: Any) -> None:
    law = moments(cloud(0, 50, 6))
    np.savez(tmp_path / "edm.npz", mu=law.mean, sigma=law.cov)
    found = load_reference(tmp_path / "edm.npz")
    np.testing.assert_array_equal(found.mean, law.mean)
    assert frechet(found, law) < 1e-20
    np.savez(tmp_path / "other.npz", mean=law.mean)
    with pytest.raises(ValueError, match="must hold mu and sigma, and holds mean"):
        load_reference(tmp_path / "other.npz")
    np.savez(tmp_path / "shape.npz", mu=law.mean, sigma=law.mean)
    with pytest.raises(ValueError, match=r"sigma \(d, d\), got shapes \(6,\) and \(6,\)"):
        load_reference(tmp_path / "shape.npz")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    np.savez(tmp_path / "objects.npz", mu=np.array([None], dtype=object), sigma=law.cov)
    for name in ("torn", "objects"):
        with pytest.raises(ValueError, match=rf"{name}.npz is no sound .npz file"):
            load_reference(tmp_path / f"{name}.npz")


# KID


@pytest.mark.parametrize("n", [30, 200])
def test_kid_is_the_polynomial_mmd_of_torchmetrics(n: int) -> None:
    x, y = cloud(0, n, 16).astype(float), cloud(1, n, 16, 0.05).astype(float)
    assert kid(real=x, fake=y) == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-10)
    subsets = [float(poly_mmd(*(torch.from_numpy(z[i : i + 10]) for z in (x, y)))) for i in range(0, n, 10)]
    expected = np.std(subsets, ddof=1) / np.sqrt(len(subsets))
    assert kid_error(real=x, fake=y, subset=10) == pytest.approx(expected, rel=1e-9)


def test_kid_of_one_law_is_zero_on_average_and_its_error_no_smaller_than_its_spread() -> None:
    """200 pairs of 40 images: the mean is 0 within 4 standard errors (false alarms 6e-5); subsets vary more than all pairs."""
    rng = np.random.default_rng(0)
    pairs = rng.standard_normal((200, 2, 40, 4))
    values = np.array([kid(real=x, fake=y) for x, y in pairs])
    assert abs(values.mean()) < 4 * values.std(ddof=1) / np.sqrt(200)
    assert np.mean([kid_error(real=x, fake=y) for x, y in pairs]) > values.std(ddof=1)
    assert np.isnan(kid_error(real=pairs[0, 0][:15], fake=pairs[0, 1]))


# Neighbours


def by_prdc(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real, fake, k)


@quick
@given(seed=seeds, n=st.integers(8, 60), m=st.integers(8, 60), d=st.integers(1, 8), k=st.integers(1, 6))
def test_precision_recall_density_and_coverage_are_those_of_prdc(seed: int, n: int, m: int, d: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    real, fake = rng.standard_normal((n, d)), 0.3 + 0.8 * rng.standard_normal((m, d))
    ours = precision_recall(real=manifold(real, k), fake=manifold(fake, k))
    assert ours == pytest.approx(by_prdc(real, fake, k), abs=1e-12)


@quick
@given(seed=seeds, shift=st.floats(0, 3), k=st.integers(1, 5))
def test_precision_is_recall_with_the_sets_exchanged(seed: int, shift: float, k: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = manifold(rng.standard_normal((30, 3)), k), manifold(shift + rng.standard_normal((40, 3)), k)
    one, two = precision_recall(real=a, fake=b), precision_recall(real=b, fake=a)
    assert (one["precision"], one["recall"]) == (two["recall"], two["precision"])


@quick
@given(seed=seeds, n=st.integers(7, 50))
def test_the_order_of_images_changes_no_metric(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n, 4))

    def all_of(x: np.ndarray, y: np.ndarray) -> list[float]:
        found = precision_recall(real=manifold(x), fake=manifold(y)) | novelty(train=x, fake=y)
        return [frechet(moments(x), moments(y)), kid(real=x, fake=y), vendi(y), *found.values()]

    np.testing.assert_allclose(all_of(rng.permutation(x), rng.permutation(y)), all_of(x, y), rtol=1e-6, atol=1e-9)


@quick
@given(seed=seeds, n=st.integers(2, 40), m=st.integers(6, 40), k=st.integers(1, 5))
def test_the_nearest_are_those_of_all_distances_sorted(seed: int, n: int, m: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))
    distances, index = nearest(x, y, k)
    full = cdist(x, y)
    np.testing.assert_array_equal(index, np.argsort(full, axis=1)[:, :k])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :k], rtol=1e-12)
    np.testing.assert_allclose(nearest(y, None, k)[0], np.sort(cdist(y, y), axis=1)[:, 1 : k + 1], rtol=1e-12)


def test_copies_are_memorised_and_not_new_and_strangers_are_neither() -> None:
    """Far features 1e4 from the origin: a copy is at distance 0 all the same. One training image occurs twice."""
    rng = np.random.default_rng(0)
    train = (1e4 + rng.standard_normal((50, 8))).astype(np.float32)
    train[1] = train[0]
    assert novelty(train=train, fake=train[:20]) == {"novelty": 0.0, "memorised": 1.0}
    assert novelty(train=train, fake=train[:20] + np.float32(500)) == {"novelty": 1.0, "memorised": 0.0}


def test_novelty_of_points_on_a_line_is_as_counted_by_hand() -> None:
    """Training at 0, 3 and 4: the radii are 3, 1 and 1. Fakes at -4 (4 > 3: new), .5 (.5 <= 2.5 / 3: memorised), 2 (neither),
    6 (2 > 1: new)."""
    train, fake = np.array([[0.0], [3.0], [4.0]]), np.array([[-4.0], [0.5], [2.0], [6.0]])
    assert novelty(train=train, fake=fake) == {"novelty": 0.5, "memorised": 0.25}


# Diversity


@quick
@given(seed=seeds, n=st.integers(1, 30), d=st.integers(1, 30))
def test_vendi_is_the_entropy_of_the_whole_kernel_matrix_and_lies_between_1_and_n(seed: int, n: int, d: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, d))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / n)
    assert vendi(x) == pytest.approx(np.exp(entropy(np.maximum(shares, 0))), rel=1e-9)
    assert 1 - 1e-9 <= vendi(x) <= min(n, d) + 1e-9


@pytest.mark.parametrize("repeats", [1, 9])
def test_vendi_counts_the_images_that_are_unlike(repeats: int) -> None:
    assert vendi(np.repeat(np.eye(7), repeats, axis=0)) == pytest.approx(7)
    assert vendi(np.ones((9 * repeats, 7))) == pytest.approx(1)


# What cannot be measured


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (lambda x: kid(real=x, fake=x[:1]), "KID needs 2 images or more in each set, got 1 fake"),
        (lambda x: kid(real=x, fake=x[:, :2]), r"one width d, got 3 \(real\) and 2 \(fake\)"),
        (lambda x: manifold(x[:5], 5), "a manifold of 5 neighbours needs 6 images or more in each set, got 5 features"),
        (lambda x: precision_recall(real=manifold(x, 2), fake=manifold(x, 3)), "got 2 real and 3 fake"),
        (lambda x: novelty(train=x[:1], fake=x), "2 nearest neighbours need 2 images or more, got 1"),
        (lambda x: moments(x[:1]), "needs 2 images or more"),
        (lambda x: moments(x).cov + FeatureMoments().update(x).update(x[:, :2]), "one width, got 3 and then 2"),
        (lambda x: frechet(moments(x), Gaussian(np.zeros(3), np.diag([1.0, 1, -1]))), "eigenvalue below zero"),
        (lambda x: vendi(x * 0), "a feature vector is zero"),
        (lambda x: vendi(np.where(x == x[4, 1], np.nan, x)), "features must be finite, and row 4"),
        (lambda x: kid(real=x, fake=x[:, 0]), r"fake must be features \(n, d\), got shape \(9,\)"),
    ],
)
def test_what_cannot_be_measured_is_an_error_that_says_why(measured: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured(np.random.default_rng(0).standard_normal((9, 3)))


# The tracker


@dataclass
class Noisy:
    """A model that draws training images with noise of a standard deviation in levels; it counts its samples."""

    source: Any
    noise: float
    rows: Any = None
    drawn: int = 0

    def sample(self, n: int, rng: np.random.Generator, labels: Any = None, work: Any = None) -> Measure:
        train = self.source.train()
        rows = np.arange(train.n) if self.rows is None else self.rows
        x = train.points[rng.choice(rows, n)] + self.noise * rng.standard_normal((n, *train.event))
        self.drawn += 1
        return Measure.uniform(np.clip(np.rint(x), 0, 255).astype(np.uint8), batch=0)


DIGITS = Images().replicated(1, np.random.default_rng(0))
PIXELS, CLASSIFIER = PixelEmbedding(), ClassifierEmbedding(steps=60)


def view(noise: float, rows: Any = None, **options: Any) -> View:
    model: Any = Noisy(DIGITS, noise, rows)
    generation = Generation(1, model, DIGITS.held_out(), np.array(options.pop("diverged", 0)))
    return View(generation, DIGITS, NamedStreams(0), 1, **options)


def embedded(data: Measure) -> np.ndarray:
    return Pixels()(data.points)


def test_all_values_are_those_of_the_metrics_on_one_sample_of_the_model() -> None:
    tracker, shown = ImageQuality(n=300, features=PIXELS), view(20)
    out = tracker(shown)
    assert shown.generation.model.drawn == 1  # type: ignore[attr-defined]
    fake, train = embedded(shown.sample(300, "image_quality 0")), embedded(DIGITS.train())
    some = images._Real.of(tracker, shown.source, shown.keep).some
    assert len({tuple(row) for row in some}) == 300
    assert {tuple(row) for row in some} < {tuple(row) for row in train}
    expected = {"fd": frechet(moments(fake), moments(train)), "kid": kid(real=some, fake=fake)}
    expected |= precision_recall(real=manifold(some), fake=manifold(fake)) | novelty(train=train, fake=fake)
    expected |= {"vendi": vendi(fake), "vendi_real": vendi(some), "kid_se": kid_error(real=some, fake=fake)}
    assert {name: float(out[name]) for name in expected} == pytest.approx(expected, rel=1e-6)
    assert set(out) - set(expected) == {"fd_floor", "kid_floor", "novelty_real", "memorised_real"}
    assert all(value.shape == () and np.isfinite(value) for value in out.values())


def test_copies_score_best_and_are_memorised_and_noise_scores_worse_the_more_of_it() -> None:
    tracker = ImageQuality(n=400, features=PIXELS)
    copies, some, much = (tracker(view(noise)) for noise in (0, 30, 90))
    for name in ("fd", "kid"):
        assert copies[name] < some[name] < much[name]
    for name in ("precision", "density", "coverage"):
        assert copies[name] > some[name] > much[name]
    assert (copies["memorised"], copies["novelty"]) == (1, 0)
    assert some["memorised"] < 0.1
    assert much["novelty"] > 0.9
    assert 0.3 < copies["novelty_real"] < 0.7


def test_a_floor_of_fewer_images_comes_with_the_distance_of_as_many() -> None:
    """449 digits are held out, and 900 are drawn."""
    tracker, shown = ImageQuality(n=900, features=PIXELS, metrics=("fd",)), view(20)
    out = tracker(shown)
    assert set(out) == {"fd", "fd_floor", "fd_equal"}
    fake, train = embedded(shown.sample(900, "image_quality 0")), moments(embedded(DIGITS.train()))
    assert out["fd_equal"] == pytest.approx(frechet(moments(fake[:449]), train), rel=1e-6)
    assert out["fd_floor"] == pytest.approx(frechet(moments(embedded(DIGITS.held_out())), train), rel=1e-6)
    turned = replace(tracker, reference="held_out")(shown)
    held = moments(embedded(DIGITS.held_out()))
    assert turned["fd"] == pytest.approx(frechet(moments(fake), held), rel=1e-6)


def test_protocols_name_the_sets_that_their_distances_are_of() -> None:
    shown, train = view(20), moments(embedded(DIGITS.train()))
    sets = [embedded(shown.sample(100, f"image_quality {number}")) for number in range(3)]
    one, two, three = (frechet(moments(fake), train) for fake in sets)
    assert len({one, two, three}) == 3
    both = ImageQuality(n=100, features=PIXELS, metrics=("fd", "vendi"), protocol="honest")(shown)
    found = [float(both[name]) for name in ("fd_search", "fd_report", "vendi")]
    assert found == pytest.approx([one, two, vendi(sets[1])], rel=1e-6)
    least = ImageQuality(n=100, features=PIXELS, metrics=("fd", "vendi"), protocol="edm")(shown)
    found = [float(least[name]) for name in ("fd", "fd_min3", "vendi")]
    assert found == pytest.approx([one, min(one, two, three), vendi(sets[0])], rel=1e-6)
    assert ("fd" in both, "fd_min3" in both, "fd_search" in least) == (False, False, False)


def test_published_statistics_take_the_place_of_the_training_images(tmp_path: Any, monkeypatch: Any) -> None:
    law = moments(embedded(DIGITS.held_out()))
    np.savez(tmp_path / "stats.npz", mu=law.mean, sigma=law.cov)
    monkeypatch.setenv("STATISTICS", str(tmp_path / "stats.npz"))
    tracker = ImageQuality(n=100, features=PIXELS, metrics=("fd", "vendi"), reference="$STATISTICS")
    fake = embedded(view(20).sample(100, "image_quality 0"))
    assert float(tracker(view(20))["fd"]) == pytest.approx(frechet(moments(fake), law), rel=1e-6)


def test_the_distance_of_a_class_is_that_of_its_images_alone() -> None:
    """Named by the classifier, n / (2 K) = 15 of each class; a class that the model does not draw has no distance."""
    few = np.flatnonzero(DIGITS.train().labels != 7)
    tracker = ImageQuality(n=300, features=ClassifierEmbedding(steps=60, width=16), metrics=("class_fd",))
    shown = view(5, few)
    out, real = tracker(shown), images._Real.of(tracker, DIGITS, None)
    features: Any = real.features
    drawn, train = shown.sample(300, "image_quality 0").points, DIGITS.train()
    named = features.classify(drawn)
    for c in range(10):
        fake, true = features(drawn[named == c][:15]), features(train.points[train.labels == c])
        expected = frechet(moments(fake), moments(true)) if (named == c).sum() > 1 else np.nan
        assert out[f"fd_class.{c}"] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert set(out) == {f"fd_class{part}.{c}" for part in ("", "_floor") for c in range(10)} | {
        "fd_class_mean",
        "fd_class_worst",
    }
    found = [out[f"fd_class.{c}"] for c in range(10) if np.isfinite(out[f"fd_class.{c}"])]
    assert (out["fd_class_mean"], out["fd_class_worst"]) == pytest.approx((np.mean(found), np.max(found)))
    held = DIGITS.held_out()
    floor = frechet(moments(features(held.points[held.labels == 3])), moments(features(train.points[train.labels == 3])))
    assert out["fd_class_floor.3"] == pytest.approx(floor, rel=1e-5)
    more = replace(tracker, per_class=300)(shown)
    assert more["fd_class.3"] == pytest.approx(frechet(moments(features(drawn[named == 3])), real.class_laws[3]), rel=1e-5)


def test_statistics_of_the_reference_are_made_once_a_run(tmp_path: Any, monkeypatch: Any) -> None:
    """What is kept in the folder of a run is taken by its other processes; another reference or target has its own."""
    trackers = [ImageQuality(n=50, features=PIXELS, metrics=("fd",), reference=part) for part in ("train", "held_out")]
    trackers.append(replace(trackers[0], target=(0.28, *(0.08,) * 9)))
    shown = replace(view(20), keep=FolderWork(tmp_path))
    first = []
    for tracker in trackers:
        images._once.cache_clear()
        first.append(float(tracker(shown)["fd"]))
    assert len(set(first)) == 3
    monkeypatch.setattr(images._Real, "_gathered", lambda _: pytest.fail("made a second time"))
    for tracker, before in zip(trackers, first, strict=True):
        images._once.cache_clear()
        assert float(tracker(shown)["fd"]) == before
    images._once.cache_clear()


def test_a_target_weighs_the_real_images_of_each_class() -> None:
    """The floor of a target is that of held-out images in its shares; a target of the real shares is none at all."""
    train, target = DIGITS.train(), (0.28, *(0.08,) * 9)
    tracker = ImageQuality(n=400, features=PIXELS, metrics=("fd", "kid"), target=target)
    real = images._Real.of(tracker, view(0).source, view(0).keep)
    weights = np.zeros(train.n)
    for c, share in enumerate(target):
        weights[train.labels == c] = share / (train.labels == c).sum()
    expected = moments(embedded(train), weights)
    np.testing.assert_allclose(real.law.mean, expected.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(real.law.cov, expected.cov, rtol=1e-9, atol=1e-12)
    rows = images._rows(train, 400, target, np.random.default_rng(0))
    assert len(set(rows)) == 400
    np.testing.assert_allclose(np.bincount(train.labels[rows]) / 400, target, atol=1 / 400)
    aimed, fair = rows, np.arange(train.n)
    assert tracker(view(0, aimed))["fd"] < tracker(view(0, fair))["fd"]
    shares = tuple((np.bincount(train.labels) / train.n).tolist())
    same = images._Real.of(replace(tracker, target=shares), view(0).source, view(0).keep)
    np.testing.assert_allclose(same.law.cov, moments(embedded(train)).cov, rtol=1e-9, atol=1e-12)


def test_class_shares_are_those_of_the_samples_and_their_distance_is_to_the_real_ones_or_the_target(tmp_path: Any) -> None:
    """60 steps of training name nine digits in ten; a model that draws threes alone is far from the shares of a tenth each."""
    train = DIGITS.train()
    threes = np.flatnonzero(train.labels == 3)
    tracker = ImageQuality(n=200, features=CLASSIFIER, metrics=("classes",))
    out = tracker(view(0, threes, keep=FolderWork(tmp_path)))
    shares = np.array([out[f"class_share.{c}"] for c in range(10)])
    assert shares.sum() == pytest.approx(1)
    assert shares[3] > 0.8
    assert out["class_accuracy"] > 0.8
    real = np.bincount(train.labels) / train.n
    assert out["class_tv"] == pytest.approx(0.5 * np.abs(shares - real).sum())
    assert out["class_entropy"] == pytest.approx(entropy(shares))
    aim = np.eye(10)[3]
    aimed = replace(tracker, target=tuple(aim.tolist()))(view(0, threes))
    assert aimed["class_tv"] == pytest.approx(1 - shares[3])


def test_a_classifier_is_trained_once_a_run_and_found_by_the_next_process(tmp_path: Any, monkeypatch: Any) -> None:
    tracker, keep = ImageQuality(n=50, features=ClassifierEmbedding(steps=5), metrics=("fd",)), FolderWork(tmp_path)
    first = tracker(view(20, keep=keep))
    monkeypatch.setattr(ClassifierEmbedding, "_train", None)
    assert tracker(view(20)) == first
    images._once.cache_clear()
    assert tracker(view(20, keep=keep)) == first


def test_a_diverged_replicate_is_not_sampled_and_a_batch_is_refused() -> None:
    lost = view(0, diverged=1)
    assert ImageQuality(n=50, features=PIXELS)(lost) == {}
    assert lost.generation.model.drawn == 0  # type: ignore[attr-defined]
    other = replace(view(0), source=object())
    with pytest.raises(TypeError, match="needs a source of images, with train"):
        ImageQuality(n=50, features=PIXELS)(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": PIXELS, "metrics": ("classes",)}, "use features: classifier"),
        ({"protocol": "edm", "metrics": ("kid",)}, "compares FD: add fd to metrics"),
        ({"reference": "test"}, "must be train, held_out or an .npz file with mu and sigma, got 'test'"),
        ({"reference": "a.npz", "target": (0.5, 0.5)}, "cannot be re-weighted to a target"),
        ({"target": (0.5, 0.6)}, "add to one, got a sum of 1.1"),
        ({"n": 1}, "greater than or equal to 2"),
        ({"metrics": ("fid",)}, "fid"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageQuality(**options)


def test_a_target_that_the_data_cannot_give_is_an_error() -> None:
    for target, message in (((0.5, 0.5), "each of 10 classes, got 2"), ((0.1,) * 10, None)):
        tracker = ImageQuality(n=50, features=PIXELS, metrics=("fd",), target=target)
        if message is None:
            images._Real.of(tracker, view(0).source, view(0).keep).law  # noqa: B018
        else:
            with pytest.raises(ValueError, match=message):
                images._Real.of(tracker, view(0).source, view(0).keep).law  # noqa: B018
    labels = np.where(DIGITS.train().labels == 4, 5, DIGITS.train().labels)
    with pytest.raises(ValueError, match="target wants images of class 4, and among 1348 real ones there is none"):
        images._counts(replace(DIGITS.train(), labels=labels), (0.1,) * 10)


YAML = """
generations: 1
replicates: 1
chunk: 1
real: {kind: images, path: digits}
mix: {n_real: 100}
algorithm: edm
track:
  image_quality: QUALITY
"""


def test_a_file_names_features_by_their_kind(tmp_path: Any) -> None:
    file = tmp_path / "e.yaml"
    for text, features in (
        ("{n: 100}", ClassifierEmbedding()),
        ("{features: pixels}", PIXELS),
        ("{features: {kind: classifier, steps: 60}}", CLASSIFIER),
    ):
        file.write_text(YAML.replace("QUALITY", text))
        (point,) = load(read(file))
        assert point.experiment.track["image_quality"].features == features  # type: ignore[attr-defined]
    file.write_text(YAML.replace("QUALITY", "{features: inceptoin}"))
    with pytest.raises(ConfigError, match=r"must be one of cached, classifier, clip, .*did you mean 'inception'"):
        load(read(file))
    np.save(tmp_path / "grey.npy", np.zeros((20, 8, 8), dtype=np.uint8))
    file.write_text(YAML.replace("QUALITY", "{n: 10}").replace("digits", str(tmp_path / "grey.npy")))
    with pytest.raises(ConfigError, match="needs real data with class labels, and images has none"):
        load(read(file))
