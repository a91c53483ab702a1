"""Class weights: steps on the simplex, toys whose minimax is known, and what a run leaves behind."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from selfloop.algorithms.categorical import CategoricalFit
from selfloop.algorithms.edm import Edm
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.algorithms.score_net import ScoreNetFit
from selfloop.component import component
from selfloop.curate import dro, weigh
from selfloop.curate.cluster import Clusters
from selfloop.curate.dro import Dro, GroupDro, ascended, effective_classes
from selfloop.curate.weigh import InverseFrequency
from selfloop.diffusion import rowwise
from selfloop.diffusion.ensemble import Points
from selfloop.diffusion.train import LearningRate
from selfloop.diffusion.unet import UNet
from selfloop.measure import Measure, Rows
from selfloop.protocols import Curator, Tunable
from selfloop.work import FolderWork

NET = ScoreNetFit(width=8, layers=1, batch=16, budget=0.00032, tune_learning_rate=2e-3)


def rng(seed=0):
    return np.random.default_rng(seed)


@dataclass(frozen=True)
class PointModel:
    """It answers theta whatever it is asked: its loss at a row is |theta - x_i|^2 / d at every noise level."""

    theta: np.ndarray
    sampler = None
    batch = ()

    def shape(self, n):
        return (n, len(self.theta))

    def denoise(self, x, sigma, labels=None):
        return np.broadcast_to(self.theta, x.shape)

    def sample(self, n, rng, labels=None, work=None):
        return Measure.uniform(np.broadcast_to(self.theta, self.shape(n)), batch=0)

    def law(self):
        return None

    def state(self):
        return {"theta": self.theta}


@component
class PointFit:
    """theta, the mean of the data: what minimises the loss under their weights. Tuning goes a fraction of the way."""

    gives = frozenset({"denoise"})

    def fit(self, data, rng, work=None):
        return PointModel(data.weights @ data.points)

    def tune(self, model, data, budgets, rng, work=None) -> Iterator[PointModel]:
        yield from (PointModel(model.theta + b * (data.weights @ data.points - model.theta)) for b in budgets)

    def interpolate(self, a, b, t):
        return PointModel(a.theta + t * (b.theta - a.theta))

    def restore(self, state):
        return PointModel(state["theta"])


def two_groups(a, b, spread_a, spread_b, share=0.8, n=200):
    """Points on a line: a share of them with mean a and variance spread_a^2, exactly, the others with b."""
    n_a = round(share * n)
    sides = [
        centre + spread * np.resize([-1.0, 1.0], size) for centre, spread, size in ((a, spread_a, n_a), (b, spread_b, n - n_a))
    ]
    return Measure.uniform(np.concatenate(sides)[:, None], np.repeat([0, 1], [n_a, n - n_a]), batch=0)


def mass(selection, data):
    """The mass of every class after the selection."""
    return np.bincount(data.labels, selection.apply(data).weights)


def classes(n=60, k=3):
    labels = np.arange(n) % k
    return Measure.uniform(rng(7).standard_normal((n, 2)) * (0.5 + labels[:, None]) + 2 * labels[:, None], labels, batch=0)


# One step

alphas = hnp.arrays(float, 5, elements=st.floats(0.01, 1)).map(lambda a: a / a.sum())
scores = hnp.arrays(float, 5, elements=st.floats(0, 20))


@given(alphas, scores, st.floats(0, 10), st.floats(0, 1))
def test_a_step_stays_on_the_simplex_and_above_the_floor_of_smoothing(alpha, s, eta, smoothing):
    found = ascended(alpha, s, eta, smoothing)
    assert found.sum() == pytest.approx(1)
    assert (found >= smoothing / 5 * (1 - 1e-12)).all()
    assert 1 - 1e-9 <= effective_classes(found) <= 5 + 1e-9


@given(alphas, st.floats(0, 1e3), st.floats(0, 10))
def test_equal_scores_move_nothing(alpha, s, eta):
    np.testing.assert_allclose(ascended(alpha, np.full(5, s), eta, 0.0), alpha, rtol=1e-12)


@given(st.lists(scores, min_size=1, max_size=4), st.floats(0, 0.5))
def test_ratios_are_the_exponential_of_the_summed_differences(several, eta):
    alpha = np.full(5, 0.2)
    for s in several:
        alpha = ascended(alpha, s, eta, 0.0)
    total = eta * np.sum(several, axis=0)
    np.testing.assert_allclose(np.log(alpha / alpha[0]), total - total[0], atol=1e-9)


def test_under_a_constant_gap_the_worst_class_takes_all_that_smoothing_leaves():
    alpha, s = np.full(3, 1 / 3), np.array([0.1, 0.2, 0.3])
    smoothed = alpha
    for _ in range(400):
        alpha, smoothed = ascended(alpha, s, 1.0, 0.0), ascended(smoothed, s, 1.0, 1e-3)
    np.testing.assert_allclose(alpha, [0, 0, 1], atol=1e-9)
    assert 0.99 < smoothed[2] < 1 - 2e-3 / 3
    assert effective_classes(smoothed) < 1.02


# Toys


def final(curator, data, tmp_path):
    """The trajectory that a run leaves in its shelf, and its selection."""
    selection = curator(data, rng(1), FolderWork(tmp_path / "work", shelf=tmp_path / "shelf"))
    return json.loads((tmp_path / "shelf" / dro.TRAJECTORY).read_text()), selection


def test_of_two_groups_of_one_spread_each_has_half_the_mass_whatever_its_share():
    """argmin max |theta - c|^2 + v is (a + b) / 2, the mean under alpha = 1/2."""
    data = two_groups(-1.0, 2.0, 0.5, 0.5)
    selection = GroupDro(proxy=PointFit(), budget=1.0, rounds=10, levels=1, draws=1)(data, rng(1))
    np.testing.assert_allclose(mass(selection, data), 0.5)
    np.testing.assert_allclose(selection.apply(data).weights @ data.points, 0.5)


def test_group_dro_equalises_the_losses_of_groups_of_unequal_spread(tmp_path):
    """(theta - a)^2 + u = (theta - b)^2 + v at theta = (a + b) / 2 + (v - u) / (2 (b - a)); theta = a + alpha_b (b - a)."""
    a, b, u, v = -1.0, 2.0, 0.25, 2.25
    data = two_groups(a, b, u**0.5, v**0.5)
    curator = GroupDro(proxy=PointFit(), budget=1.0, rounds=200, eta=0.2, smoothing=0.0, levels=1, draws=1)
    trajectory, selection = final(curator, data, tmp_path)
    centres, spreads, alpha = np.array([a, b]), np.array([u, v]), np.array(trajectory["alpha"])
    losses = (alpha[:-1] @ centres)[:, None] - centres  # of the proxy in each round, and in the first for the unit
    losses = losses**2 + spreads
    np.testing.assert_allclose(trajectory["score"], losses / losses[0].mean(), rtol=1e-9)
    theta = (a + b) / 2 + (v - u) / (2 * (b - a))
    assert trajectory["alpha"][-1][1] == pytest.approx((theta - a) / (b - a), abs=1e-3)
    np.testing.assert_allclose(*trajectory["score"][-1], atol=1e-3)
    np.testing.assert_allclose(mass(selection, data), np.mean(trajectory["alpha"][1:], axis=0), rtol=1e-9)
    assert abs(mass(selection, data)[1] - (theta - a) / (b - a)) < 0.02  # the mean over rounds holds the way there


def test_a_proxy_of_the_kind_of_its_reference_ends_at_the_shares_of_the_data(tmp_path):
    """Excess is 0 in both groups at the reference alone, the mean under the shares; there alpha stays."""
    data = two_groups(-1.0, 2.0, 0.5, 0.5, share=0.8)
    curator = Dro(reference=PointFit(), proxy=PointFit(), budget=1.0, rounds=150, eta=0.2, smoothing=0.0, levels=1, draws=1)
    trajectory, _ = final(curator, data, tmp_path)
    centres = np.array([-1.0, 2.0])
    base, first = (np.array(shares) @ centres - centres for shares in ((0.8, 0.2), (0.5, 0.5)))
    excess = (first**2 - base**2) / (base**2 + 0.25).mean()
    assert excess[1] < 0
    np.testing.assert_allclose(trajectory["score"][0], [excess[0], 0], rtol=1e-9)
    np.testing.assert_allclose(trajectory["alpha"][-1], [0.8, 0.2], atol=5e-3)
    assert np.max(trajectory["score"][-1]) < 0.02


@component
class Still(GaussianFit):
    """A Gaussian that does not learn."""

    def tune(self, model, data, budgets, rng, work=None):
        yield from [model] * len(budgets)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_proxy_that_equals_the_reference_leaves_the_weights_uniform_to_the_bit(smoothing, tmp_path):
    """Because both see the same noise: the excess is 0, not the mean of what is left of a clipped difference."""
    data = classes()
    curator = Dro(reference=Still(), proxy=Still(), start="reference", budget=0.5, rounds=3, smoothing=smoothing)
    trajectory, _ = final(curator, data, tmp_path)
    assert (np.array(trajectory["score"]) == 0).all()
    assert (np.ptp(trajectory["alpha"], axis=1) == 0).all()


def test_under_noise_of_their_own_equal_models_would_have_excess_loss(judges=20):
    """Means of 20 pairs of judges, clipped: above 0 by more than 4 standard errors, which is what shared noise is for."""
    data, probe = classes(), Dro(reference=NET, proxy=NET, budget=0.00016, levels=2, draws=1)
    model = GaussianFit().fit(data, rng())
    pairs = [[dro._Judge.of(probe, data, data.labels, rng([k, seed])).means(model) for k in range(2)] for seed in range(judges)]
    excess = np.array([np.maximum(dro.in_units(one - two, two), 0).mean() for one, two in pairs])
    assert excess.mean() > 4 * excess.std() / np.sqrt(judges)


def test_losses_are_the_same_for_every_round_and_their_class_means_those_of_the_rows():
    """The judge takes at most `rows` of a class, under the weights of the data."""
    data = classes(90).reweighted(rng(2).random(90) + 0.1)
    probe = Dro(reference=NET, proxy=NET, budget=0.00016, rows=10, levels=2, draws=1)
    judge = dro._Judge.of(probe, data, data.labels, rng(5))
    assert (np.bincount(judge.groups) == 10).all()
    model = PointModel(np.array([0.5, 1.0]))
    np.testing.assert_array_equal(judge.means(model), judge.means(model))
    rows = ((judge.data.points - model.theta) ** 2).mean(axis=1)
    for c in range(3):
        here = judge.groups == c
        np.testing.assert_allclose(judge.means(model)[c], np.average(rows[here], weights=judge.data.weights[here]))
    whole = dro._Judge.of(probe, classes(12), classes(12).labels, rng(5))
    np.testing.assert_array_equal(whole.data.points, classes(12).points)


def test_the_adjustment_lifts_small_groups_by_one_over_the_root_of_their_size(tmp_path):
    """The still model of groups that are alike: losses agree, and ln alpha_1 / alpha_0 = rounds eta C (n_1^-1/2 - n_0^-1/2)."""
    data = two_groups(-1.0, 1.0, 0.5, 0.5, share=0.5)
    half = Measure.uniform(
        np.concatenate([data.points, data.points[:100]]), np.concatenate([data.labels, np.zeros(100, int)]), batch=0
    )
    curator = GroupDro(proxy=PointFit(), budget=1e-12, rounds=4, eta=0.5, smoothing=0.0, adjustment=2.0, levels=1, draws=1)
    trajectory, _ = final(curator, half, tmp_path)
    odds = np.log(trajectory["alpha"][-1][1] / trajectory["alpha"][-1][0])
    assert odds == pytest.approx(4 * 0.5 * 2.0 * (100**-0.5 - 200**-0.5), rel=1e-6)


# Results


@pytest.mark.parametrize(
    "curator",
    [
        Dro(reference=NET, proxy=NET, budget=0.00016, rounds=3, levels=2, draws=1),
        GroupDro(proxy=NET, budget=0.00016, rounds=3, levels=2, draws=1, eta=0.1),
        InverseFrequency(power=0.5),
    ],
    ids=lambda curator: type(curator).__name__,
)
def test_all_rows_stay_and_their_mean_weight_is_one(curator):
    data = classes().reweighted(rng(3).random(60) + 0.1)
    selection = curator(data, rng(1))
    assert isinstance(curator, Curator)
    np.testing.assert_array_equal(selection.index, np.arange(60))
    assert data.weights @ selection.weights == pytest.approx(1)
    assert {"class", "weight"} <= set(selection.table)
    np.testing.assert_array_equal(selection.table["weight"], selection.weights)
    for c in range(3):
        assert np.ptp(selection.weights[data.labels == c]) == 0
    np.testing.assert_array_equal(curator(data, rng(1)).weights, selection.weights)


def test_the_result_is_the_mean_of_the_iterates_and_the_shelf_has_all_of_them(tmp_path):
    data = classes()
    curator = Dro(reference=NET, proxy=NET, budget=0.00016, rounds=4, levels=2, draws=1)
    trajectory, selection = final(curator, data, tmp_path)
    alpha = np.array(trajectory["alpha"])
    assert alpha.shape == (5, 3)
    np.testing.assert_allclose(alpha[0], 1 / 3)
    for before, after, s in zip(alpha, alpha[1:], trajectory["score"], strict=False):
        np.testing.assert_allclose(after, ascended(before, np.array(s), 1.0, 0.01), rtol=1e-12)
    np.testing.assert_allclose(mass(selection, data), alpha[1:].mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(trajectory["mean"], alpha[1:].mean(axis=0))
    np.testing.assert_allclose(trajectory["effective"], 1 / (alpha**2).sum(axis=1))
    assert (trajectory["groups"], trajectory["names"]) == ("class", [0, 1, 2])
    notes = curator.notes(data, selection)
    assert notes["effective number of classes"] == pytest.approx(effective_classes(alpha[1:].mean(axis=0)))


def test_clusters_stand_in_for_classes():
    points = np.concatenate([rng(0).standard_normal((30, 2)), 20 + rng(1).standard_normal((10, 2))])
    data, found = Measure.uniform(points, batch=0), Clusters(k=2)
    curator = Dro(reference=NET, proxy=NET, clusters=found, budget=0.00016, rounds=2, levels=2, draws=1)
    selection = curator(data, rng(1))
    assert {"cluster", "distance", "weight", "score"} == set(selection.table)
    assert len(np.unique(selection.table["cluster"][:30])) == 1
    assert np.unique(selection.weights).size == 2
    weighed = InverseFrequency(clusters=found)(data, rng(1)).apply(data).weights
    np.testing.assert_allclose([weighed[:30].sum(), weighed[30:].sum()], 0.5)


def test_members_of_a_batch_are_weighed_one_by_one():
    data = classes(30)
    batch = Measure(np.stack([data.points, 3 * data.points]), np.full((2, 30), 1 / 30), data.labels)
    selection = Dro(reference=NET, proxy=NET, budget=0.00016, rounds=2, levels=2, draws=1)(batch, rng(1))
    assert selection.weights.shape == selection.table["weight"].shape == (2, 30)
    np.testing.assert_allclose(selection.weights.mean(axis=-1), 1)


@pytest.mark.parametrize("weights", ["sampler", "loss"])
def test_images_are_weighed_by_unets_that_see_the_weights_in_the_sampler_or_the_loss(weights):
    points = rng(1).integers(0, 256, (24, 1, 8, 8)).astype(np.uint8)
    points[::2] //= 8
    data = Measure.uniform(Rows((points,), np.arange(24)), np.arange(24) % 2, batch=0)
    unet, rate = UNet(channels=4, multipliers=(1,), blocks=1, attention=()), LearningRate(rate=1e-2, warmup=0.0)
    edm = Edm(network=unet, batch=16, budget=0.00016, weights=weights, learning_rate=rate, tune_learning_rate=rate)
    selection = Dro(reference=edm, proxy=edm, budget=0.000032, rounds=2, levels=2, draws=1)(data, rng(1))
    assert selection.weights.mean() == pytest.approx(1)
    assert np.ptp(selection.weights) > 0


class Killed(BaseException):
    """The process is dead."""


@pytest.mark.parametrize("start", ["new", "reference"])
def test_a_run_that_was_killed_goes_on_and_ends_where_it_would_have_ended(start, tmp_path):
    data = classes()
    curator = Dro(reference=NET, proxy=NET, start=start, budget=0.00016, rounds=5, levels=2, draws=1)

    def fatal(names, done, total, **numbers):
        if names == () and done == 4:
            raise Killed

    with pytest.raises(Killed):
        curator(data, rng(3), FolderWork(tmp_path, every=0, tell=fatal))
    rounds = []
    found = curator(data, rng(3), FolderWork(tmp_path, every=0, tell=lambda names, done, total, **_: rounds.append(done)))
    assert rounds == [4, 5]
    np.testing.assert_array_equal(found.weights, curator(data, rng(3)).weights)
    again = curator(data, rng(3), FolderWork(tmp_path, every=0, tell=fatal))  # done: nothing is trained any more
    np.testing.assert_array_equal(again.weights, found.weights)


# Weights in a training


def test_a_weighted_loss_has_the_gradient_of_rows_that_are_repeated_as_often():
    data = classes(12)
    model, copies = NET.fit(data, rng()), np.array([3, 1, 2] * 4)
    sigmas, z = np.array([0.3, 1.0]), rng(2).standard_normal((2, 2, 2))

    def gradient(measure):
        rows = rowwise.gradients(model, measure.points, None, sigmas, z, np.ones(2))
        return rowwise.combined(rows, measure.weights)

    np.testing.assert_allclose(
        gradient(data.reweighted(copies.astype(float))),
        gradient(data.subset(np.repeat(np.arange(12), copies))),
        rtol=1e-5,
        atol=1e-9,
    )


def test_rows_drawn_by_their_weights_have_the_weighted_gradient_in_expectation(batches=400):
    """The mean over 400 batches of 16, each component within 4 of its standard errors."""
    data = classes(12).reweighted(np.array([3.0, 1, 2] * 4))
    model, z = NET.fit(data, rng()), rng(2).standard_normal((1, 1, 2))
    rows = rowwise.gradients(model, data.points, None, np.array([0.5]), z, np.ones(1)).double()
    points = Points(torch.zeros((1, 12, 2)), torch.tensor(data.weights[None]), None, torch.ones(1))
    drawn = points.rows((batches, 1, 16), torch.Generator().manual_seed(0))[:, 0]
    found = rows[drawn].mean(dim=1)
    error = found.std(dim=0) / np.sqrt(batches)
    assert ((found.mean(dim=0) - torch.tensor(rowwise.combined(rows, data.weights))).abs() <= 4 * error + 1e-9).all()


# Inverse frequency


@given(hnp.arrays(np.int64, 40, elements=st.integers(0, 4)), st.floats(0.1, 1))
def test_inverse_frequency_gives_mass_as_a_power_of_the_size(labels, power):
    data = Measure.uniform(np.zeros((40, 1)), labels, batch=0)
    sizes = np.bincount(labels)
    expected = np.where(sizes > 0, np.maximum(sizes, 1) ** (1 - power), 0)
    found = InverseFrequency(power=power)(data, rng())
    np.testing.assert_allclose(mass(found, data), expected / expected.sum(), rtol=1e-9)


def test_the_effective_number_goes_from_one_to_the_size():
    n = np.array([1.0, 10.0, 500.0])
    np.testing.assert_allclose(weigh.effective_number(n, 0.0), 1)
    np.testing.assert_allclose(weigh.effective_number(n, 1 - 1e-9), n, rtol=1e-5)
    data = Measure.uniform(np.zeros((110, 1)), np.repeat([0, 1], [10, 100]), batch=0)
    even, natural = (mass(InverseFrequency(beta=beta)(data, rng()), data) for beta in (1 - 1e-9, 0.0))
    np.testing.assert_allclose(even, 0.5, rtol=1e-5)
    np.testing.assert_allclose(natural, [10 / 110, 100 / 110])


# What cannot be, and what should not


def test_weights_that_collapse_are_warned_of_with_the_options_that_prevent_it():
    data = two_groups(-1.0, 2.0, 0.1, 3.0, share=0.5)
    with pytest.warns(UserWarning, match=r"1\.0\d effective classes of 2.*eta \(it is 50\).*smoothing \(it is 0\.01\)"):
        GroupDro(proxy=PointFit(), budget=0.1, eta=50.0, least_effective=0.6, levels=1, draws=1)(data, rng())


def test_a_class_without_rows_and_data_without_labels_are_errors():
    data, curator = classes(), GroupDro(proxy=NET, budget=0.00016, rounds=1)
    gap = Measure(data.points, data.weights, np.where(data.labels == 1, 3, data.labels))
    with pytest.raises(ValueError, match=r"class 1 of 0 \.\. 3 has no rows"):
        curator(gap, rng())
    dropped = data.reweighted((data.labels != 2).astype(float))
    fewer = GroupDro(proxy=ScoreNetFit(width=8, layers=1, batch=16, budget=0.00032, classes=3), budget=0.00016)
    with pytest.raises(ValueError, match=r"class 2 of 0 \.\. 2 has no rows"):
        fewer(dropped, rng())
    for one in (curator, InverseFrequency()):
        with pytest.raises(ValueError, match="have no labels; give labels, or clusters"):
            one(Measure(data.points, data.weights), rng())
        with pytest.raises(ValueError, match="0 or more, got -1"):
            one(Measure(data.points, data.weights, data.labels - 1), rng())
        assert one.needs_real == {"labels"}
    assert GroupDro(proxy=NET, budget=0.00016, clusters=Clusters(k=2)).needs_real == frozenset()


def test_models_that_do_not_fit_and_budgets_of_less_than_a_batch_are_refused():
    assert isinstance(PointFit(), Tunable)
    with pytest.raises(ValueError, match=r"reference must be .* gives no denoise"):
        Dro(reference=CategoricalFit(), proxy=NET, budget=0.00016)
    with pytest.raises(ValueError, match="of one kind, got ScoreNetFit and GaussianFit"):
        Dro(reference=GaussianFit(), proxy=NET, start="reference", budget=0.00016)
    with pytest.raises(ValueError, match="at least one batch"):
        Dro(reference=NET, proxy=NET, budget=1e-9)


def test_a_loss_that_is_not_finite_is_an_error():
    judge = dro._Judge.of(Dro(reference=NET, proxy=NET, budget=0.00016), classes(), classes().labels, rng())
    with pytest.raises(FloatingPointError, match="lower its learning rate"):
        judge.means(PointModel(np.array([np.nan, 0.0])))
