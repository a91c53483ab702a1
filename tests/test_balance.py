"""Balance: exact quotas, the target met, and the KL that tells how far shares are from it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import entropy

from selfloop.curate.balance import Balance, divergence, filled, picked, repeats
from selfloop.curate.budget import balanced, kept
from selfloop.curate.cluster import Clusters
from selfloop.curate.weigh import InverseFrequency
from selfloop.measure import Measure

SIZES = (300, 120, 60, 20)
MEANS = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def mixture(std, seed=0, sizes=SIZES):
    """Rows of groups of these sizes around four corners, in random order, with their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return Measure.uniform(MEANS[labels] + std * rng.standard_normal((len(labels), 2)), labels, batch=0)


def shares(data, selection, k=4):
    weights = np.zeros(data.n)
    weights[selection.index] = selection.weights * data.weights[selection.index]
    found = np.bincount(data.labels, weights, minlength=k)
    return found / found.sum()


def by_class(**options):
    return Balance(by="class", **options)


def by_clusters(k=4, **options):
    return Balance(clusters=Clusters(k=k, restarts=5), **options)


def run(curator, data, seed=1):
    return curator(data, np.random.default_rng(seed))


sizes_and_m = st.lists(st.integers(0, 12), min_size=1, max_size=5).flatmap(
    lambda sizes: st.tuples(st.just(np.array(sizes)), st.integers(0, sum(sizes)))
)
simplex = st.lists(st.integers(1, 20), min_size=5, max_size=5).map(np.array)


@given(sizes_and_m)
def test_quotas_of_equal_shares_are_those_of_water_filling(given_sizes):
    sizes, m = given_sizes
    np.testing.assert_array_equal(filled(sizes, np.full(len(sizes), 1 / len(sizes)), m), balanced(sizes, m))


@given(sizes_and_m, simplex)
def test_quotas_of_a_target_are_its_level_cut_at_the_sizes_and_add_up(given_sizes, parts):
    """min(n_k, c t_k) up to one row, with c found by another root finder."""
    sizes, m = given_sizes
    target = parts[: len(sizes)] / parts[: len(sizes)].sum()
    quotas = filled(sizes, target, m)
    assert quotas.sum() == m
    assert ((quotas >= 0) & (quotas <= sizes)).all()
    top = float((sizes / target).max()) + 1
    level = brentq(lambda c: np.minimum(sizes, c * target).sum() - m, 0, top) if m < sizes.sum() else top
    assert (np.abs(quotas - np.minimum(sizes, level * target)) < 1 + 1e-6).all()


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4).map(np.array), st.data())
def test_no_quotas_of_the_same_budget_are_nearer_to_equal_shares(sizes, data):
    if sizes.sum() == 0:
        return
    m, k = data.draw(st.integers(1, int(sizes.sum()))), len(sizes)
    uniform = np.full(k, 1 / k)
    best = min(divergence(np.array(q) / m, uniform) for q in itertools.product(*(range(n + 1) for n in sizes)) if sum(q) == m)
    assert divergence(filled(sizes, uniform, m) / m, uniform) == pytest.approx(best, abs=1e-9)


@given(simplex, simplex)
def test_the_divergence_is_the_relative_entropy(a, b):
    s, t = a / a.sum(), b / b.sum()
    assert divergence(s, t) == pytest.approx(entropy(s, t), abs=1e-12)
    assert divergence(s, s) == 0


def test_the_divergence_counts_nothing_for_empty_groups_and_is_infinite_where_the_target_is():
    assert divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))
    assert divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf


@pytest.mark.parametrize("wrong", [[0.5, 0.6], [-0.5, 1.5]])
def test_the_divergence_is_of_shares(wrong):
    with pytest.raises(ValueError, match="add to one"):
        divergence(np.array(wrong), np.array([0.5, 0.5]))
    with pytest.raises(ValueError, match="add to one"):
        divergence(np.array([0.5, 0.5]), np.array(wrong))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(np.array), st.integers(0, 2**32 - 1))
def test_so_many_random_rows_of_each_group_are_picked(sizes, seed):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    quotas = rng.integers(0, sizes + 1)
    rows = picked(groups, quotas, rng)
    np.testing.assert_array_equal(rows, np.unique(rows))
    np.testing.assert_array_equal(np.bincount(groups[rows], minlength=len(sizes)), quotas)


def test_every_row_of_a_group_is_as_likely_to_be_picked():
    """4000 draws of 1 row in 4: each has a share of 1/4, with a standard error of (3/16/4000)^(1/2) = .0068."""
    rng = np.random.default_rng(0)
    groups = np.array([0, 1, 0, 0, 0])
    counts = sum(np.isin(np.arange(5), picked(groups, np.array([1, 0]), rng)) for _ in range(4000))
    assert counts[1] == 0
    assert (np.abs(counts[[0, 2, 3, 4]] / 4000 - 0.25) < 4 * 0.0068).all()


@pytest.mark.parametrize("how", ["undersample", "oversample", "weights"])
def test_classes_are_balanced_exactly(how):
    data = mixture(1.0)
    selection = run(by_class(how=how), data)
    np.testing.assert_allclose(shares(data, selection), 0.25, rtol=1e-12)
    np.testing.assert_array_equal(selection.index, np.unique(selection.index))
    notes = by_class(how=how).notes(data, selection)
    assert notes["KL of the classes to uniform, before"] == pytest.approx(entropy(np.array(SIZES) / 500, np.full(4, 0.25)))
    assert notes["KL of the classes to uniform, after"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("how", ["undersample", "oversample", "weights"])
def test_with_perfect_clusters_no_divergence_is_left(how):
    data = mixture(0.1)
    selection = run(by_clusters(how=how), data)
    assert divergence(shares(data, selection), np.full(4, 0.25)) == pytest.approx(0, abs=1e-9)
    assert set(selection.table) >= {"cluster", "distance", "reason"}


@pytest.mark.parametrize("how", ["undersample", "oversample", "weights"])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_that_know_no_labels_bring_the_classes_nearer_to_equal_shares(how, seed):
    data = mixture(3.0, seed)
    selection = run(by_clusters(k=8, how=how, **({"fraction": 0.3} if how == "undersample" else {})), data, seed)
    before = np.bincount(data.labels) / data.n
    assert divergence(shares(data, selection), np.full(4, 0.25)) < divergence(before, np.full(4, 0.25))


def test_undersampling_keeps_the_most_rows_that_have_the_shares_of_the_target():
    data = mixture(1.0)
    assert len(run(by_class(), data).index) == 4 * 20
    selection = run(by_class(target=(0.4, 0.3, 0.2, 0.1)), data)
    np.testing.assert_array_equal(np.bincount(data.labels[selection.index]), [80, 60, 40, 20])
    assert np.isin(selection.weights, 1).all()
    none = run(by_class(target=(0.5, 0.5, 0.0, 0.0)), data)
    np.testing.assert_array_equal(np.bincount(data.labels[none.index]), [120, 120])


@given(st.floats(0.005, 1), st.sampled_from([None, (0.1, 0.2, 0.3, 0.4)]))
def test_budgets_are_exact(fraction, target):
    data = mixture(1.0)
    selection = run(by_class(fraction=fraction, target=target), data)
    assert len(selection.index) == kept(data.n, fraction)


def test_a_tiny_group_is_kept_whole_where_there_is_a_budget():
    data = mixture(1.0, sizes=(400, 90, 9, 1))
    assert len(run(by_class(), data).index) == 4
    selection = run(by_class(fraction=0.2), data)
    np.testing.assert_array_equal(np.bincount(data.labels[selection.index]), [45, 45, 9, 1])


def test_oversampling_repeats_by_whole_weights_that_add_to_the_largest_group():
    data = mixture(1.0, sizes=(100, 70, 30, 7))
    selection = run(by_class(how="oversample"), data)
    assert len(selection.index) == data.n
    np.testing.assert_array_equal(selection.weights, np.rint(selection.weights))
    np.testing.assert_array_equal(np.bincount(data.labels, selection.weights), [100, 100, 100, 100])
    assert np.ptp(selection.weights[data.labels == 3]) == 1
    np.testing.assert_array_equal(repeats(np.array([100, 70]), np.array([0.25, 0.75])), [100, 300])


def test_weights_have_mean_one_under_those_of_the_data_and_meet_a_target():
    data = mixture(1.0)
    data = data.reweighted(np.random.default_rng(3).random(data.n))
    selection = run(by_class(how="weights", target=(0.7, 0.1, 0.1, 0.1)), data)
    np.testing.assert_allclose(shares(data, selection), [0.7, 0.1, 0.1, 0.1], rtol=1e-12)
    assert (data.weights * selection.weights).sum() == pytest.approx(1)


def test_the_target_of_clusters_is_of_the_largest_first():
    data = mixture(0.1)
    selection = run(by_clusters(how="weights", target=(0.1, 0.2, 0.3, 0.4)), data)
    np.testing.assert_allclose(shares(data, selection), [0.1, 0.2, 0.3, 0.4], rtol=1e-9)


def test_the_same_stream_gives_the_same_rows_and_another_one_others():
    data = mixture(1.0)
    one, same, other = (run(by_clusters(fraction=0.3), data, seed).index for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_replicates_are_balanced_one_by_one():
    parts = [mixture(1.0, seed) for seed in range(2)]
    data = Measure.uniform(np.stack([p.points for p in parts]), np.stack([p.labels for p in parts]))
    selection = run(by_class(fraction=0.2), data)
    for member in range(2):
        counts = np.bincount(data.labels[member], selection.weights[member])
        np.testing.assert_array_equal(counts, balanced(np.array(SIZES), 100))


def test_rows_of_no_weight_are_not_there():
    data = mixture(1.0)
    gone = data.labels != 0
    half = data.reweighted(np.where(gone | (np.arange(data.n) % 2 == 0), 1.0, 0.0))
    selection = run(by_class(fraction=0.2), half)
    assert (half.weights[selection.index] > 0).all()
    assert len(selection.index) == kept(int((half.weights > 0).sum()), 0.2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "clusters says how groups are found"),
        ({"by": "class", "clusters": Clusters(k=2)}, "clusters says how groups are found"),
        ({"by": "class", "how": "oversample", "fraction": 0.5}, "fraction drops rows"),
        ({"by": "class", "target": (0.5, 0.6)}, "add to one"),
        ({"clusters": Clusters(k=3), "target": (0.5, 0.5)}, "a share for each of 3 clusters"),
        ({"by": "class", "fraction": 0.0}, "greater than 0"),
        ({"by": "class", "fraction": 1.5}, "less than or equal to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Balance(**options)


@pytest.mark.parametrize(
    ("curator", "data", "match"),
    [
        (by_class(), Measure.uniform(np.zeros((4, 2)), batch=0), "no labels"),
        (by_class(), Measure.uniform(np.zeros((4, 2)), np.array([0, 0, 2, 2]), batch=0), "class 1 has no row.*without gaps"),
        (by_class(), Measure.uniform(np.zeros((4, 2)), np.array([0, 0, -1, 2]), batch=0), "labels must be 0"),
        (by_class(target=(1.0,)), mixture(1.0), "shares of 1 groups, and there is a row of group 3"),
        (by_class(target=(0.0, 0.0, 0.0, 1.0), fraction=0.5), mixture(1.0), "keeps 250 rows.*hold 20; lower it"),
        (by_clusters(k=9), Measure.uniform(np.random.default_rng(0).normal(size=(5, 2)), batch=0), "9 clusters need as many"),
    ],
)
def test_data_that_cannot_be_balanced_so_are_refused(curator, data, match):
    with pytest.raises(ValueError, match=match):
        run(curator, data)


@pytest.mark.parametrize("how", ["undersample", "oversample", "weights"])
def test_copies_and_empty_clusters_count_for_nothing(how):
    """Three different rows, of 40, 9 and 1 copies, and five clusters: the two that stay empty have no share."""
    points = np.repeat([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]], [40, 9, 1], axis=0)
    data = Measure.uniform(points, np.repeat([0, 1, 2], [40, 9, 1]), batch=0)
    with pytest.warns(UserWarning, match="2 of 5 clusters are empty"):
        selection = run(by_clusters(k=5, how=how), data)
    np.testing.assert_allclose(shares(data, selection, 3), 1 / 3, rtol=1e-12)


@pytest.mark.parametrize("how", ["undersample", "oversample"])
def test_rows_that_have_weights_are_not_counted(how):
    """An earlier curator's weights would be multiplied in, and the classes would not be balanced at all."""
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    points = Measure.uniform(np.zeros((100, 1)), labels)
    data = InverseFrequency()(points, np.random.default_rng(0)).apply(points)
    with pytest.raises(ValueError, match=f"how: {how} counts rows, and these have weights between .*; set how to weights"):
        Balance(by="class", how=how)(data, np.random.default_rng(0))
    even = Balance(by="class", how="weights")(data, np.random.default_rng(0)).apply(data)
    np.testing.assert_allclose(np.bincount(labels, even.weights), 1 / 3)
