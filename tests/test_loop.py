"""Loops against theory. Simulated means must lie within 4 standard errors of the closed form, the standard error being that
of the replicates; the chance of a false alarm is 6e-5 a comparison, and seeds are fixed."""

from dataclasses import replace

import numpy as np
import pixels
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop import theory
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.config import load
from selfloop.curate.reweight import Reward
from selfloop.curate.select import Truncate
from selfloop.data import Law
from selfloop.laws import Gaussian
from selfloop.loop import self_consume
from selfloop.measure import Measure, Moments, Rows, finite, with_members_of
from selfloop.metrics.track import View
from selfloop.mix import LOOP_TYPES, Mix, Pollution, subsampled
from selfloop.protocols import Generation, Model
from selfloop.reading import ConfigError, read
from selfloop.streams import NamedStreams
from selfloop.work import FolderWork

RUNS = 4000


def standard_normal(runs: int, d: int = 1) -> Law:
    return Law(Gaussian(np.zeros(d), np.eye(d)).expanded(runs))


def loop(mix, generations, algorithm=None, runs=RUNS, statistics=True, seed=0, history=(), d=1) -> list[Generation]:
    streams, source = NamedStreams(seed), standard_normal(runs, d)
    real = mix.first(source, streams, statistics)
    return list(self_consume(source, real, algorithm or GaussianFit(), mix, generations, streams, history))


def fits(generations: list[Generation]) -> tuple[np.ndarray, np.ndarray]:
    """mu_t^2 and V_t, each (T, R)."""
    laws = [generation.model.law() for generation in generations]
    return np.array([law.mean[:, 0] ** 2 for law in laws]), np.array([law.cov[:, 0, 0] for law in laws])


def assert_mean(samples: np.ndarray, expected: np.ndarray | float) -> None:
    """Along the last axis, the replicates."""
    error = samples.std(axis=-1, ddof=1) / np.sqrt(samples.shape[-1])
    z = np.abs(samples.mean(axis=-1) - expected) / error
    assert np.all(z < 4), f"off by {np.max(z):.1f} standard errors"


T = np.arange(1, 13)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("estimator", ["maximum_likelihood", "unbiased"])
@pytest.mark.parametrize("bias", [1.0, 0.8])
def test_a_fully_synthetic_loop_loses_variance_at_the_known_rate(statistics, estimator, bias):
    mix = Mix(kind="fully_synthetic", n_real=20, bias=bias)
    mean_error, variance = fits(loop(mix, 12, GaussianFit(estimator=estimator), statistics=statistics))
    log_std = theory.fully_synthetic_log_std(20, T, bias, estimator)
    assert_mean(0.5 * np.log(variance), log_std.mean)
    assert_mean(variance, theory.fully_synthetic_variance(20, T, bias, estimator))
    assert_mean(mean_error, theory.fully_synthetic_mean_error(20, T, bias, estimator))


def test_a_fully_synthetic_loop_follows_a_schedule_of_sizes():
    sizes = [20, 30, 60, 120]
    mean_error, variance = fits(loop(Mix(kind="fully_synthetic", n_real=20, n_synthetic=sizes[1:]), 6))
    assert_mean(variance, theory.fully_synthetic_variance([*sizes, 120, 120], T[:6]))
    assert_mean(mean_error, theory.fully_synthetic_mean_error([*sizes, 120, 120], T[:6]))


def test_a_determinant_shrinks_as_a_product_of_chi_squares():
    generations = loop(Mix(kind="fully_synthetic", n_real=12), 6, d=3)
    log_det = np.array([np.linalg.slogdet(g.model.law().cov)[1] for g in generations])
    expected = theory.fully_synthetic_log_det(12, T[:6], 3)
    assert_mean(log_det, getattr(expected, "mean", expected))


@pytest.mark.parametrize("statistics", [True, False])
def test_an_accumulating_loop_levels_off(statistics):
    mean_error, variance = fits(loop(Mix(kind="accumulate", n_real=10), 12, statistics=statistics))
    assert_mean(variance, theory.accumulate_variance(10, T))
    assert_mean(mean_error, theory.accumulate_mean_error(10, T))


def test_an_accumulating_loop_with_subsampling_follows_its_recursion():
    mean_error, variance = fits(loop(Mix(kind="accumulate_subsample", n_real=10), 12, statistics=False))
    expected = theory.accumulate_subsample_moments(10, T)
    assert_mean(variance, expected.variance)
    assert_mean(mean_error, expected.mean_error)


@pytest.mark.parametrize(("kind", "oracle"), [("fresh", theory.fresh_moments), ("augment", theory.augment_moments)])
@pytest.mark.parametrize(
    ("options", "n_synthetic"),
    [({}, 30), ({"n_synthetic": 90}, 90), ({"ratio": 0.5}, 15), ({"fraction": 0.75}, 90), ({"bias": 0.7}, 30)],
)
def test_loops_with_real_data_follow_their_linear_recursion(kind, oracle, options, n_synthetic):
    mean_error, variance = fits(loop(Mix(kind=kind, n_real=30, **options), 12))
    expected = oracle(30, n_synthetic, T, options.get("bias", 1.0))
    assert_mean(variance, expected.variance)
    assert_mean(mean_error, expected.mean_error)


@pytest.mark.parametrize(("kind", "oracle"), [("fresh", theory.fresh_moments), ("augment", theory.augment_moments)])
@pytest.mark.parametrize("statistics", [True, False])
def test_a_weight_on_the_real_part_enters_mean_and_variance(kind, oracle, statistics):
    mean_error, variance = fits(loop(Mix(kind=kind, n_real=30, weight_real=0.8), 8, statistics=statistics))
    expected = oracle(30, 30, T[:8], real_weight=0.8)
    assert_mean(variance, expected.variance)
    assert_mean(mean_error, expected.mean_error)


def test_the_golden_ratio_is_the_best_weight_on_real_data_at_equal_sizes():
    """At w = 1 / golden ratio the error is lower than at w = .4 and w = .9, by more than 4 standard errors."""
    best = float(theory.optimal_real_weight(1.0))
    errors = {w: fits(loop(Mix(kind="fresh", n_real=100, weight_real=w), 12))[0][-1] for w in (0.4, best, 0.9)}
    for other in (0.4, 0.9):
        gap = errors[other] - errors[best]
        assert gap.mean() > 4 * gap.std(ddof=1) / np.sqrt(len(gap))


def test_the_first_size_of_a_fresh_loop_is_forgotten():
    small, large = (fits(loop(Mix(kind="fresh", n_real=[first, 50]), 30))[0][-1] for first in (5, 500))
    assert_mean(np.array([small, large]), theory.fresh_fixed_point(50, 50).mean_error)


def test_a_corrected_loop_contracts_by_f_over_one_plus_gamma():
    """Started 5 off, the mean of an augmentation loop returns at the rate f / (1 + gamma) (n so large that noise is .001)."""
    gamma, n, runs = 1.0, 10**6, 50
    mix = Mix(kind="fresh", n_real=n, ratio=3.0, correction=gamma)
    streams, source = NamedStreams(0), standard_normal(runs)
    away = Moments(3.0 * n, np.full((runs, 1), 5.0), np.ones((runs, 1, 1)))
    start = Generation(1, None, away, np.zeros(runs, dtype=int))
    real = mix.first(source, streams, True)
    # what generation 1 handed on was not corrected, so the first step contracts by f alone
    means = [g.model.law().mean[:, 0] for g in self_consume(source, real, GaussianFit(), mix, 5, streams, [start])]
    f = 0.75
    contraction = theory.moment_contraction(3.0, gamma)
    assert contraction == pytest.approx(f / (1 + gamma))
    assert_mean(np.array(means), 5 * f * contraction ** np.arange(4))


def test_a_curated_loop_adds_precision_every_generation():
    """Large n: V_t = V_0 / (1 + gamma (t - 1) V_0) after t - 1 rewards -gamma (x - c)^2 / 2, and the mean moves to c."""
    mix = Mix(kind="fully_synthetic", n_real=20_000, curators=(Reward(strength=0.5, target=(1.0,)),))
    generations = loop(mix, 4, runs=60, statistics=False)
    expected = theory.curated_gaussian(0.0, 1.0, np.arange(1, 4), curvature=0.5, centre=1.0)
    laws = [g.model.law() for g in generations[1:]]
    assert_mean(np.array([law.mean[:, 0] for law in laws]), expected.mean)
    # a finite sample loses about 1 / n_eff of its variance a round: 2e-4 here, half a standard error
    assert_mean(np.array([law.cov[:, 0, 0] for law in laws]), expected.variance)


def test_a_truncated_loop_loses_variance_by_the_factor_of_a_truncated_normal():
    mix = Mix(kind="fully_synthetic", n_real=20_000, curators=(Truncate(radius=1.5),))
    _, variance = fits(loop(mix, 4, runs=60, statistics=False))
    assert_mean(variance, theory.truncation_factor(1.5) ** np.arange(4))


def test_the_augmentation_loop_converges_to_the_ratio_of_its_sizes():
    mean_error, _ = fits(loop(Mix(kind="augment", n_real=500, n_synthetic=1000), 30, runs=20_000))
    ratio = mean_error[-1].mean() / mean_error[0].mean()
    # ratio of two means over 20,000 replicates: standard error 1.2 %; the closed form is to leading order in 1 / n, 0.2 % here
    assert ratio == pytest.approx(theory.augment_ratio_limit(500, 1000), rel=0.05)


def test_warm_starts_move_a_fraction_of_the_way():
    """With budget 1 a warm loop is the cold one; with budget 0 it never leaves generation 1."""
    cold, warm, frozen = (fits(loop(Mix(kind="augment", n_real=30, warm=warm), 5, runs=10))[1] for warm in (None, 1.0, 0.0))
    np.testing.assert_allclose(cold, warm, rtol=1e-12)
    np.testing.assert_array_equal(frozen, np.broadcast_to(frozen[0], frozen.shape))


@pytest.mark.parametrize(
    ("kind", "statistics"), [(k, s) for k in LOOP_TYPES for s in (True, False) if not (s and LOOP_TYPES[k].subsample)]
)
@pytest.mark.parametrize("cut", [1, 3])
def test_a_loop_goes_on_where_it_was_cut(kind, statistics, cut):
    """Bit for bit, from the generations a mix says it remembers."""
    mix = Mix(kind=kind, n_real=12)
    whole = loop(mix, 6, runs=5, statistics=statistics)
    kept = whole[:cut][-mix.memory :] if mix.memory else whole[:cut]
    rest = loop(mix, 6, runs=5, statistics=statistics, history=kept)
    assert [g.index for g in rest] == list(range(cut + 1, 7))
    for mine, theirs in zip(rest, whole[cut:], strict=True):
        np.testing.assert_array_equal(mine.model.law().cov, theirs.model.law().cov)
        np.testing.assert_array_equal(mine.model.law().mean, theirs.model.law().mean)


@pytest.mark.parametrize("kind", LOOP_TYPES)
def test_training_sets_hold_the_points_their_loop_type_promises(kind):
    seen: list[Measure] = []

    class Watching(GaussianFit):
        def fit(self, data, rng, work=None) -> Model:
            seen.append(data)
            return super().fit(data, rng, work)

    loop(Mix(kind=kind, n_real=10, n_synthetic=[7, 8, 9, 10]), 5, Watching(), runs=3, statistics=False)
    assert (seen[0].origin == 0).all()
    assert seen[0].n == 10
    for t, data in enumerate(seen[1:], start=2):
        np.testing.assert_allclose(data.weights.sum(axis=-1), 1)
        origins = np.broadcast_to(data.origin, (*data.batch, data.n))[0]
        counts = {int(o): int((origins == o).sum()) for o in np.unique(origins)}
        last = {t - 1: [7, 8, 9, 10][t - 2]}
        if kind == "fully_synthetic":
            assert counts == last
        elif kind in ("augment", "fresh"):
            assert counts == {0: 10} | last
        elif kind == "accumulate":
            assert counts == {0: 10} | {g: [7, 8, 9, 10][g - 1] for g in range(1, t)}
        else:
            assert data.n == 10
            assert set(counts) <= set(range(t))
    if kind == "fresh":
        assert not np.array_equal(seen[1].points[:, :10], seen[2].points[:, :10])
    if kind in ("augment", "accumulate"):
        np.testing.assert_array_equal(seen[1].points[:, :10], seen[3].points[:, :10])


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from([kind for kind in LOOP_TYPES if kind != "accumulate_subsample"]),
    n=st.integers(3, 40),
    ratio=st.floats(0.8, 4.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_replicate_does_not_depend_on_how_many_generations_follow(kind, n, ratio, seed):
    mix = Mix(kind=kind, n_real=n, ratio=ratio)
    short, long = loop(mix, 2, runs=2, seed=seed), loop(mix, 4, runs=2, seed=seed)
    np.testing.assert_array_equal(short[1].model.law().cov, long[1].model.law().cov)


@pytest.mark.parametrize("statistics", [True, False])
def test_polluted_data_make_the_first_fit_a_second_generation(statistics):
    """D_r and n_p samples of its fit, taken for real: the second generation of an augmentation loop with n_s = n_p."""
    mix = Mix(kind="augment", n_real=30, pollution=Pollution(n=45, algorithm=GaussianFit()))
    mean_error, variance = fits(loop(mix, 1, statistics=statistics))
    expected = theory.augment_moments(30, 45, 2)
    assert_mean(variance[0], expected.variance)
    assert_mean(mean_error[0], expected.mean_error)
    first = mix.first(standard_normal(2), NamedStreams(0))
    assert isinstance(first, Measure)
    assert np.bincount(first.origin).tolist() == [30, 45]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_synthetic": 10, "ratio": 1.0}, "said once"),
        ({"kind": "fully_synthetic", "weight_real": 0.5}, "needs a real part"),
        ({"kind": "accumulate_subsample", "weight_real": 0.5}, "exclude each other"),
        ({"kind": "fresh", "pollution": Pollution(n=5, algorithm=GaussianFit())}, "use augment or accumulate"),
        ({"kind": "agument"}, "'fully_synthetic', 'augment'"),
        ({"n_real": 0}, "greater than or equal to 1"),
        ({"n_real": []}, "at least 1 item"),
        ({"n_real": [10, 20]}, "only in a fresh loop"),
        ({"n_synthetic": [10, -1]}, "greater than or equal to 1"),
        ({"fraction": 1.0}, "less than 1"),
        ({"weight_real": 1.2}, "less than or equal to 1"),
        ({"bias": 0.0}, "greater than 0"),
        ({"correction": -1.0}, "greater than or equal to 0"),
        ({"memory": 3}, "[Uu]nexpected keyword argument"),
    ],
)
def test_mixes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mix(**{"n_real": 10, **options})


class Runaway(GaussianFit):
    """A Gaussian fit that multiplies the variance of its first replicate until it overflows."""

    def fit(self, data, rng, work=None):
        model = super().fit(data, rng, work)
        cov = model.fitted.cov.copy()
        with np.errstate(over="ignore"):
            cov[0] *= 1e120
        return type(model)(Gaussian(model.fitted.mean, cov), model.sampler)


def test_a_replicate_that_diverges_is_marked_and_leaves_its_neighbours_alone():
    mix = Mix(kind="fully_synthetic", n_real=30)
    calm, wild = loop(mix, 6, runs=4), loop(mix, 6, Runaway(), runs=4)
    assert [int(g.diverged[0]) for g in wild] == [0, 0, 3, 3, 3, 3]
    for mine, theirs in zip(wild, calm, strict=True):
        assert not mine.diverged[1:].any()
        np.testing.assert_array_equal(mine.model.law().cov[1:], theirs.model.law().cov[1:])


def test_a_degenerate_first_generation_is_an_error():
    mix = Mix(kind="augment", n_real=10)
    flat = Moments(10.0, np.zeros((3, 2)), np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match=r"the first generation has a singular covariance.*shrinkage"):
        list(self_consume(standard_normal(3, 2), flat, GaussianFit(), mix, 3, NamedStreams(0)))
    lost = Moments(10.0, np.full((3, 2), np.nan), np.broadcast_to(np.eye(2), (3, 2, 2)))
    with pytest.raises(ValueError, match="finite in no replicate"):
        list(self_consume(standard_normal(3, 2), lost, GaussianFit(), mix, 3, NamedStreams(0)))


def test_a_replicate_that_collapses_is_kept_and_not_taken_for_one_that_diverged():
    """n = 3 in the plane: covariances become numerically singular within some ten generations; the loop goes on with a line."""
    generations = loop(Mix(kind="fully_synthetic", n_real=3), 60, runs=200, d=2)
    assert not generations[-1].diverged.any()
    log_trace = np.log(np.trace(generations[-1].model.law().cov, axis1=-2, axis2=-1))
    assert np.isfinite(log_trace).all()
    assert log_trace.mean() < -20


def test_a_curator_that_leaves_a_replicate_without_data_ends_that_replicate_alone():
    """Truncation at half a standard deviation may keep none of 3 points; such a replicate is marked, the run goes on."""
    mix = Mix(kind="augment", n_real=3, curators=(Truncate(radius=0.5),))
    generations = loop(mix, 4, runs=300, statistics=False)
    marked = generations[-1].diverged
    assert 0 < (marked > 0).sum() < 300
    assert np.isfinite(generations[-1].model.law().cov[marked == 0]).all()


def test_corrections_enter_a_subsampled_pool_with_their_weight():
    """correction -> 0 is the loop without correction: E V at gamma = 1e-6 within 4 standard errors of the closed form."""
    mix = Mix(kind="accumulate_subsample", n_real=10, correction=1e-6)
    _, variance = fits(loop(mix, 6, statistics=False))
    assert_mean(variance, theory.accumulate_subsample_moments(10, T[:6]).variance)


# Unbatched data: images -----------------------------------------------------------------------------------------------


class Unread:
    """Whole numbers that must not be read."""

    shape, dtype = (6, 1, 4, 4), np.dtype(np.uint8)


def images(n=6, dtype=np.uint8):
    return Measure.uniform(np.arange(n * 16, dtype=dtype).reshape(n, 1, 4, 4), np.arange(n) % 2, batch=0)


def test_whole_numbers_are_finite_without_a_look():
    found = finite(replace(images(), points=Unread()))
    assert found.shape == ()
    assert found


@pytest.mark.parametrize("row", [None, 0, 1500, 2999])
def test_latents_are_looked_at_piece_by_piece(row):
    points = np.zeros((3000, 1, 2, 2), dtype=np.float32)
    if row is not None:
        points[row, 0, 1, 1] = np.nan
    lazy = Measure(Rows((points,), np.arange(3000)), np.full(3000, 1 / 3000))
    assert finite(lazy) == (row is None)


def test_the_one_member_of_unbatched_data_is_replaced_whole_or_not_at_all():
    data, other = images(6), images(4)
    np.testing.assert_array_equal(with_members_of(data, np.array(True), other).points, other.points[[0, 1, 2, 3, 0, 1]])
    assert with_members_of(data, np.array(False), other) is data


@pytest.mark.parametrize("kind", LOOP_TYPES)
@pytest.mark.parametrize("stored", [False, True])
def test_images_go_round_every_loop_without_a_batch_and_as_bytes(kind, stored, tmp_path, monkeypatch):
    """Stored or not the same ones; stored, no set of them is read as a whole but to be fitted."""
    monkeypatch.chdir(tmp_path)
    source = pixels.Pixels("images.npy").replicated(1, np.random.default_rng(0))
    streams, mix = NamedStreams(0), Mix(kind=kind, n_real=20, n_synthetic=[8, 9])
    work = FolderWork(tmp_path / "work") if stored else None
    found = list(self_consume(source, mix.first(source, streams), pixels.Counting(), mix, 3, streams, (), work))
    for generation, n in zip(found, (8, 9, 9), strict=True):
        assert (generation.drawn.batch, generation.drawn.n, generation.drawn.event) == ((), n, (1, 4, 4))
        assert generation.drawn.points.dtype == np.uint8
        assert generation.diverged.shape == ()
        assert (generation.drawn.origin == generation.index).all()
        assert isinstance(generation.drawn.points, np.memmap) == stored
    pooled = mix(mix.real(source, mix.first(source, streams), 3, streams), found[:2], np.random.default_rng(0))
    assert isinstance(pooled.points, Rows) or (kind == "fully_synthetic" and not stored)
    sizes = {"fully_synthetic": 9, "augment": 29, "fresh": 29, "accumulate": 37, "accumulate_subsample": 20}
    assert pooled.n == sizes[kind]
    plain = list(self_consume(source, mix.first(source, streams), pixels.Counting(), mix, 3, streams))
    np.testing.assert_array_equal(found[-1].drawn.points, plain[-1].drawn.points)


def test_a_subsample_of_images_has_the_rows_that_a_batch_of_one_would_have():
    """The same random numbers; rows of weight 0 come last and keep it."""
    weights = np.array([0.0, 0.5, 0.25, 0.0, 0.25, 0.0])
    one = Measure(np.arange(6.0)[:, None], weights, np.arange(6))
    many = Measure(np.arange(6.0)[None, :, None], weights[None], np.arange(6))
    for n in (2, 3, 5):
        mine, theirs = (subsampled(data, n, np.random.default_rng(4)) for data in (one, many))
        np.testing.assert_array_equal(mine.points, theirs.points[0])
        np.testing.assert_array_equal(mine.labels, theirs.labels[0])
        np.testing.assert_allclose(mine.weights, theirs.weights[0], rtol=1e-15)


def test_a_view_shows_all_of_unbatched_data_and_stores_what_it_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = pixels.Pixels("images.npy").replicated(1, np.random.default_rng(0))
    model = pixels.Counting().fit(source.take(0, 20, np.random.default_rng(0)), np.random.default_rng(1))
    work = FolderWork(tmp_path / "work")
    view = View(Generation(1, model, images(), np.array(0)), source, NamedStreams(0), 1, work)
    assert view.sample(7, "grey").points.shape == (7, 1, 4, 4)
    pixels.MADE.clear()
    again = View(view.generation, source, view.streams, 1, work).sample(7, "grey")
    assert pixels.MADE == [], "they are found again"
    bare = View(view.generation, source, view.streams, 1).sample(7, "grey")
    np.testing.assert_array_equal(again.points, bare.points)
    assert [part.n for part in view.real_pair(5, "grey")] == [5, 5]


IMAGES = """\
chunk: 1
real: {kind: 'pixels:Pixels', path: images.npy}
mix: {n_real: 20}
algorithm: {kind: 'pixels:Counting'}
track: {grey: {kind: 'pixels:Brightness'}}
"""


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("chunk=100", "chunk: images are trained one replicate at a time; set chunk: 1; got 100"),
        ("statistics=true", "statistics: true needs moments drawn without points, and the real data (Pixels) has none"),
        ("algorithm=gaussian", "algorithm: gaussian is for vectors, and the real data (Pixels) is images; use edm"),
        (
            "algorithm={kind: sims, n_synthetic: 9, budget: 0.5, algorithm: {kind: gaussian, sampler: {kind: heun, steps: 9}}}",
            "algorithm.algorithm: gaussian is for vectors",
        ),
        ("mix.pollution={n: 5, algorithm: gaussian}", "mix.pollution.algorithm: gaussian is for vectors"),
        ("mix.curators=[{kind: truncate, radius: 1.0}]", "mix.curators[0]: truncate is for vectors"),
        ("track.frechet=", "track.frechet: frechet is for vectors, and the real data (Pixels) is images; remove it"),
        ("track.class_shares=", "track.class_shares: class_shares is for vectors"),
        ("track.w2=", "track.w2: needs real data with an exact Gaussian law, and Pixels has none"),
        ("real={kind: gaussian, mean: [0], cov: [[1]]}", "algorithm: needs real data with images, and gaussian has none"),
    ],
)
def test_what_does_not_fit_images_is_refused_when_it_is_read(tmp_path, override, told):
    config = tmp_path / "images.yaml"
    config.write_text(IMAGES)
    assert load(read(config, ()))
    with pytest.raises(ConfigError) as caught:
        load(read(config, [override]))
    assert told in str(caught.value)
