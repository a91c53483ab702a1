"""Distribution control: its closed forms, that its parts follow them, and what class_shares says of the outcome.

Statistical tests state the standard error and allow 4 of them (false alarms: 6e-5 a comparison; seeds are fixed)."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri

from selfloop import theory
from selfloop.algorithms.control import Control
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.algorithms.mixture import MixtureFit, MixtureModel
from selfloop.algorithms.sims import Pair, SimsModel
from selfloop.config import describe
from selfloop.diffusion.sample import Sampler
from selfloop.measure import Measure
from selfloop.metrics.track import ClassShares, View
from selfloop.plane import TwoClasses
from selfloop.protocols import Generation
from selfloop.streams import NamedStreams

RULES = ("shares", "odds")
STEPS = Sampler(kind="dpm", steps=24, sigma_max=150.0, sigma_min=0.02)
"""Starting from a finite sigma_max draws a share of .2 as .2007 (from 20: .207), and control takes that 1 + omega times."""
TWO = MixtureFit(components=2, covariance="diagonal", sampler=STEPS)


def two(runs: int, n: int, share: float = 0.2, seed: int = 0) -> Measure:
    """Classes 0 and 1 at -1 and 1 on a line, standard deviation .1."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((runs, n)) < share).astype(np.int64)
    return Measure.uniform((2.0 * labels - 1 + 0.1 * rng.standard_normal((runs, n)))[..., None], labels)


def controlled(**options) -> Control:
    return Control(**{"algorithm": TWO, "n_synthetic": 200, "budget": 1.0, "target": (0.5, 0.5), "omega": 3.0} | options)


def shares_of(model, n: int = 500, seed: int = 5):
    """The share of class 1 among n samples of each member."""
    return (model.sample(n, np.random.default_rng(seed)).points[..., 0] > 0).mean(axis=-1)


def within(values, expected, errors: float = 4.0) -> bool:
    """Whether the mean over replicates is the expected one, to so many standard errors."""
    return abs(np.mean(values) - expected) < errors * np.std(values, ddof=1) / np.sqrt(len(values))


# Closed forms ----------------------------------------------------------------------------------------------------------


def test_the_shares_of_the_auxiliary_are_those_worked_out_by_hand():
    sigma = theory.control_shares((0.6, 0.4), (0.3, 0.7), 3, extrapolate="odds")
    np.testing.assert_allclose(sigma, (0.695, 0.305), atol=5e-4)
    np.testing.assert_allclose(theory.control_shares((0.6, 0.4), (0.3, 0.7), 3), (0.7, 0.3))


SHARES = st.lists(st.floats(0.05, 1.0), min_size=3, max_size=3).map(lambda p: np.array(p) / sum(p))


@given(SHARES, SHARES, st.floats(0.5, 5.0), st.floats(0.1, 1.0), st.sampled_from(RULES))
def test_the_two_closed_forms_of_control_are_inverse(pi, tau, omega, eta, rule):
    if rule == "shares":
        tau = pi + 0.9 * (tau - pi) * min(1.0, omega * eta / max((tau / pi - 1).max(), 1e-9))
    sigma = theory.control_shares(pi, tau, omega, eta, rule)
    np.testing.assert_allclose(sigma.sum(), 1)
    np.testing.assert_allclose(theory.controlled_shares(pi, sigma, omega, eta, rule), tau, rtol=1e-6)


@given(SHARES, SHARES, st.floats(1.0, 5.0), st.floats(0.1, 1.0))
def test_an_auxiliary_that_went_part_of_the_way_is_one_of_other_shares_that_went_all_of_it(pi, tau, omega, eta):
    odds = theory.control_shares(pi, tau, omega, eta, "odds")
    part = pi ** (1 - eta) * odds**eta
    np.testing.assert_allclose(theory.controlled_shares(pi, part / part.sum(), omega, 1.0, "odds"), tau, rtol=1e-6)
    near = pi + 0.9 * (tau - pi) * min(1.0, omega * eta / max((tau / pi - 1).max(), 1e-9))
    shares = theory.control_shares(pi, near, omega, eta)
    np.testing.assert_allclose(theory.controlled_shares(pi, pi + eta * (shares - pi), omega), near, rtol=1e-6)


def test_both_rules_agree_to_first_order_in_the_shift():
    pi, shift = np.array([0.5, 0.3, 0.2]), np.array([-0.3, 0.1, 0.2])
    gaps = [
        np.abs(np.subtract(*(theory.control_shares(pi, pi + h * shift, 2.0, 0.5, rule) for rule in RULES))).max()
        for h in (1e-2, 1e-3)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_the_tilted_density_of_classes_that_do_not_overlap_has_the_target_shares(eta):
    """p_r^(1 + w) p_s^(-w) by quadrature: two Gaussians 10 standard deviations apart overlap by 3e-7."""
    pi, tau, omega = np.array([0.6, 0.4]), np.array([0.3, 0.7]), 3.0
    part = pi ** (1 - eta) * theory.control_shares(pi, tau, omega, eta, "odds") ** eta
    x = np.linspace(-9, 9, 20_001)[:, None]
    log_r, log_s = (
        MixtureModel(w, np.array([[-5.0], [5.0]]), np.ones((2, 1, 1))).log_density(x) for w in (pi, part / part.sum())
    )
    tilted = np.exp((1 + omega) * log_r - omega * log_s)
    assert tilted[x[:, 0] > 0].sum() / tilted.sum() == pytest.approx(tau[1], abs=1e-5)


@pytest.mark.parametrize(("pi", "omega", "sigma"), [(0.2, 3.0, 0.1), (0.2, 3.0, 0.03), (0.4, 1.0, 0.6), (0.3, 5.0, 0.32)])
def test_the_shares_after_the_guided_flow_are_those_of_a_sampler_of_many_steps(pi, omega, sigma):
    """Deterministic: 4000 quantiles of the noise through 200 steps from 400; what steps and quantiles leave is below .001."""
    base, auxiliary = (
        MixtureModel(np.array([1 - p, p]), np.array([[-1.0], [1.0]]), np.full((2, 1, 1), 0.05**2)) for p in (pi, sigma)
    )
    guided = SimsModel(Pair(base, auxiliary), omega)
    sampler = Sampler(kind="dpm", steps=200, sigma_max=400.0, sigma_min=0.01)
    x = sampler.sigma_max * ndtri((np.arange(4000) + 0.5) / 4000)[:, None]
    for s, s_next in sampler.moves():
        x, _ = sampler.step(guided.denoise, x, s, s_next)
    expected = theory.guided_class_flow((1 - pi, pi), (1 - sigma, sigma), omega)
    assert (x > 0).mean() == pytest.approx(expected[1], abs=1e-3)


@pytest.mark.parametrize("omega", [0.5, 2.0, 20.0])
def test_extrapolated_shares_are_exact_for_the_flow_at_one_half_and_to_first_order(omega):
    for pi in (0.4, 0.45, 0.6):
        sigma = theory.control_shares((1 - pi, pi), (0.5, 0.5), omega)
        assert theory.guided_class_flow((1 - pi, pi), sigma, omega)[1] == pytest.approx(0.5, abs=1e-8)
    slopes = [
        (theory.guided_class_flow((0.8, 0.2), (0.8 + h / omega, 0.2 - h / omega), omega)[1] - 0.2) / h for h in (1e-3, -1e-3)
    ]
    assert slopes == pytest.approx([1, 1], abs=0.01)


def test_closed_forms_of_control_refuse_what_they_cannot_give():
    with pytest.raises(ValueError, match=r"out of reach of omega = 1; omega must be at least 1\.5"):
        theory.control_shares((0.8, 0.2), (0.5, 0.5), 1)
    with pytest.raises(ValueError, match="not all positive"):
        theory.controlled_shares((0.8, 0.2), (0.5, 0.5), 1)
    with pytest.raises(ValueError, match="omega must be positive"):
        theory.control_shares((0.8, 0.2), (0.5, 0.5), 0)
    with pytest.raises(ValueError, match="known for two classes, got 3"):
        theory.guided_class_flow((0.5, 0.3, 0.2), (0.5, 0.3, 0.2), 1)
    with pytest.raises(ValueError, match="'shares' or 'odds'"):
        theory.control_shares((0.8, 0.2), (0.7, 0.3), 1, extrapolate="ratios")


# The algorithm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_auxiliary_is_tuned_on_exactly_the_shares_of_the_formula(rule):
    """Its fit of classes far apart has these shares, so the pi they came from is a number of samples over n_synthetic."""
    model = controlled(target=(0.7, 0.3), extrapolate=rule).fit(two(20, 400), np.random.default_rng(1))
    order = np.argsort(model.pair.auxiliary.means[..., 0], axis=-1)
    found = np.take_along_axis(model.pair.auxiliary.weights, order, axis=-1)
    shares = np.arange(16, 100) / 200
    table = [theory.control_shares((1 - pi, pi), (0.7, 0.3), 3.0, 1.0, rule)[1] for pi in shares]
    assert np.abs(found[:, 1, None] - np.array(table)).min(axis=1).max() < 1e-6


@pytest.mark.parametrize(("target", "rule"), [(0.5, "shares"), (0.7, "shares"), (0.1, "shares"), (0.5, "odds")])
def test_the_share_reached_is_that_of_the_guided_flow(target, rule):
    """So it is the target itself at one half, and else no further from it than theory says: .062, .016, .098."""
    model = controlled(target=(1 - target, target), extrapolate=rule, n_synthetic=500).fit(
        two(64, 500), np.random.default_rng(1)
    )
    sigma = theory.control_shares((0.8, 0.2), (1 - target, target), 3.0, extrapolate=rule)
    expected = theory.guided_class_flow((0.8, 0.2), sigma, 3.0)[1]
    assert abs(expected - target) < {0.5: 1e-6 if rule == "shares" else 0.1, 0.7: 0.063, 0.1: 0.017}[target]
    assert within(shares_of(model), expected)


def test_with_a_budget_of_part_of_the_way_the_tilted_odds_are_those_of_the_target():
    """A mixture is tuned along log weights: w_r (w_r / w_s)^omega at eta = budget, unless eta says otherwise."""
    for eta, expected in ((None, 0.3), (0.8, theory.controlled_shares((0.8, 0.2), sigma_of(0.8), 3.0, 0.4, "odds")[1])):
        control = controlled(budget=0.4, target=(0.7, 0.3), extrapolate="odds", n_synthetic=1000, eta=eta)
        pair = control.fit(two(40, 1000), np.random.default_rng(1)).pair
        base, auxiliary = (
            np.take_along_axis(m.weights, np.argsort(m.means[..., 0], axis=-1), axis=-1) for m in (pair.base, pair.auxiliary)
        )
        tilted = base * (base / auxiliary) ** 3
        assert within(tilted[:, 1] / tilted.sum(axis=-1), expected)


def sigma_of(eta: float):
    return theory.control_shares((0.8, 0.2), (0.7, 0.3), 3.0, eta, "odds")


def test_at_the_shares_of_the_base_control_is_sims():
    data, rng = two(1, 300), np.random.default_rng
    model = controlled().fit(data, rng(1))
    pool = model.pair.base.sample(200, rng(1).spawn(4)[1])
    share = float((pool.points > 0).mean())
    control = controlled(target=(1 - share, share)).fit(data, rng(1))
    (plain,) = TWO.tune(model.pair.base, pool, [1.0], rng(0))
    for name, values in plain.state().items():
        np.testing.assert_allclose(control.pair.auxiliary.state()[name], values, rtol=1e-9, atol=1e-12)


def test_clusters_are_ordered_by_size_and_stand_in_for_labels():
    data = two(20, 400)
    by_label = controlled().fit(data, np.random.default_rng(1))
    found = controlled(clusters=2).fit(replace(data, labels=None), np.random.default_rng(1))
    for name, values in by_label.state().items():
        np.testing.assert_array_equal(found.state()[name], values)
    swapped = replace(data, points=-np.asarray(data.points))
    other = controlled(clusters=2, target=(0.6, 0.4)).fit(replace(swapped, labels=None), np.random.default_rng(1))
    assert within(
        shares_of(other), theory.guided_class_flow((0.2, 0.8), theory.control_shares((0.2, 0.8), (0.4, 0.6), 3.0), 3.0)[1]
    )


@dataclass(frozen=True)
class Labelled:
    """A class-conditional model whose class is its label: a point at -1 or 1 with a little noise."""

    shares: np.ndarray
    sampler: Sampler = STEPS

    @property
    def batch(self):
        return self.shares.shape[:-1]

    def shape(self, n):
        return (*self.batch, n, 1)

    def law(self):
        return None

    def denoise(self, x, sigma, labels=None):
        centre = 2.0 * np.asarray(labels)[..., None] - 1
        return centre + (x - centre) * 0.01 / (0.01 + sigma**2)

    def draw_labels(self, n, rng):
        return (rng.random((*self.batch, n)) < self.shares[..., 1:]).astype(np.int64)

    def sample(self, n, rng, labels=None, work=None):
        labels = self.draw_labels(n, rng)
        return Measure.uniform((2.0 * labels - 1 + 0.1 * rng.standard_normal(labels.shape))[..., None], labels)

    def state(self):
        return {"shares": self.shares}


@dataclass(frozen=True)
class LabelledFit:
    def fit(self, data, rng, work=None):
        return Labelled(np.stack([(data.labels == c).mean(axis=-1) for c in (0, 1)], axis=-1))

    def tune(self, model, data, budgets, rng, work=None):
        yield from [model for _ in budgets]

    def interpolate(self, a, b, t):
        return a

    def restore(self, state):
        return Labelled(state["shares"])


def test_a_base_that_draws_labels_draws_them_with_the_target_shares():
    model = controlled(algorithm=LabelledFit(), target=(0.4, 0.6)).fit(two(3, 300), np.random.default_rng(1))
    np.testing.assert_allclose(model.pair.base.shares, np.broadcast_to((0.4, 0.6), (3, 2)))
    drawn = model.sample(4000, np.random.default_rng(2))
    error = np.sqrt(0.6 * 0.4 / 4000)
    assert (np.abs((drawn.labels == 1).mean(axis=-1) - 0.6) < 4 * error).all()
    np.testing.assert_array_equal(drawn.points[..., 0] > 0, drawn.labels == 1)


def test_a_target_that_one_replicate_cannot_reach_leaves_the_others_as_they_are():
    data = two(3, 400)
    rare = np.array(data.labels)
    rare[1] = 0
    rare[1, :20] = 1
    points = np.where(rare[1] == 1, 1.0, -1.0) + 0.1 * np.random.default_rng(3).standard_normal(400)
    mixed = np.array(data.points)
    mixed[1, :, 0] = points
    plain, other = (
        controlled().fit(Measure.uniform(x, labels), np.random.default_rng(1))
        for x, labels in ((np.array(data.points), data.labels), (mixed, rare))
    )
    for name, values in plain.state().items():
        np.testing.assert_array_equal(other.state()[name][[0, 2]], values[[0, 2]])
    assert other.pair.auxiliary.weights[1].min() < 1e-6


def test_a_replicate_that_is_not_finite_leaves_the_others_as_they_are():
    data = two(3, 100)
    points = np.array(data.points)
    points[0, 0] = np.nan
    with np.errstate(all="ignore"):
        spoilt = controlled().fit(Measure(points, data.weights, data.labels), np.random.default_rng(1))
    plain = controlled().fit(data, np.random.default_rng(1))
    for name, values in plain.state().items():
        np.testing.assert_array_equal(spoilt.state()[name][1:], values[1:])
        assert np.isnan(spoilt.state()[name][0]).all()


def test_a_training_point_of_no_weight_has_no_say_in_the_classes():
    data = two(2, 200)
    weights = np.array(np.broadcast_to(data.weights, (2, 200)))
    weights[:, ::3] = 0
    weights /= weights.sum(axis=-1, keepdims=True)
    wrong = np.array(data.labels)
    wrong[:, ::3] = 1 - wrong[:, ::3]
    one, two_ = (
        controlled().fit(Measure(data.points, weights, marks), np.random.default_rng(1)) for marks in (data.labels, wrong)
    )
    for name, values in one.state().items():
        np.testing.assert_array_equal(two_.state()[name], values)


def test_omega_and_the_target_belong_to_the_fit_and_the_interval_to_sampling():
    kept = describe(controlled(), without_sampling=True)
    assert {"omega", "target", "eta", "extrapolate"} <= set(kept)
    assert "interval" not in kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"omega": 0.0}, "omega must be > 0, there is no control without guidance; got 0"),
        ({"omega": -1.0}, "omega must be > 0"),
        ({"eta": 1.5}, "eta must be at most 1"),
        ({"target": (0.5, 0.6)}, r"add to one, got a sum of 1\.1"),
        ({"target": (0.5, 0.5), "clusters": 3}, "a share for each of 3 clusters, got 2"),
        ({"budget": 2.0}, "budget must be at most 1"),
        ({"algorithm": MixtureFit(components=2)}, "no exact sampler"),
        ({"interval": (1.0, 0.5)}, "interval must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        controlled(**options)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, lambda data: replace(data, labels=None), "the data has none; set clusters"),
        ({}, lambda data: data.moments(), "set statistics: false"),
        ({}, lambda data: replace(data, labels=data.labels + 1), "classes 0 .. 1, and the labels go from 1 to 2"),
        ({"target": (0.3, 0.3, 0.4)}, lambda data: data, "class 2 has no training point in replicate 0; use more points"),
        (
            {},
            lambda data: replace(data, labels=np.where(np.arange(2)[:, None] == 1, 0, data.labels)),
            "class 1 has no training point in replicate 1",
        ),
        (
            {"n_synthetic": 1},
            lambda data: data,
            r"class \d is named by none of 1 samples of the base in replicate 0; use a larger n_synthetic",
        ),
        ({"omega": 0.5}, lambda data: data, r"class 1 a share of 0\.5, .* it takes 1\.\d+ or more; raise omega"),
    ],
)
def test_data_that_cannot_be_controlled_are_refused(options, change, message):
    with pytest.raises(ValueError, match=message):
        controlled(**options).fit(change(two(2, 200)), np.random.default_rng(1))


def test_control_of_a_gaussian_keeps_its_law():
    """One cluster of points split at its middle: guidance moves the mean, and the law of what is drawn stays exact."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2000, 1))
    control = controlled(algorithm=GaussianFit(), target=(0.4, 0.6), omega=1.0, n_synthetic=2000)
    model = control.fit(Measure.uniform(x, (x[..., 0] > 0).astype(np.int64)), rng)
    assert {"law", "denoise"} <= control.gives
    assert "draw" not in control.gives
    assert (model.law().mean > 0.1).all()


# The metric ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moved:
    """The law of `source`, class 1 moved by `shift` and with a share of its own."""

    source: object
    shift: float = 0.0

    def sample(self, n, rng, labels=None, work=None):
        drawn = self.source.sample(n, rng)
        return replace(drawn, points=drawn.points + self.shift * (drawn.labels == 1)[..., None])

    def law(self):
        return None

    def state(self):
        return {}


def tracked(model, shares=(0.8, 0.2), runs: int = 40, **options):
    source = TwoClasses(shares=shares, std=0.1).replicated(runs, np.random.default_rng(0))
    generation = Generation(1, model(source), source.sample(10, np.random.default_rng(0)), np.zeros(runs, dtype=np.int64))
    return ClassShares(**{"n": 400, "n_train": 400} | options)(View(generation, source, NamedStreams(0), runs))


def test_the_judge_of_a_law_in_the_plane_is_bayes_rule_and_a_perfect_model_has_the_shares_of_the_target():
    values = tracked(lambda source: Moved(source.model), target=(0.8, 0.2))
    assert within(values["class_share.1"], 0.2)
    assert values["class_tv"] == pytest.approx(np.abs(values["class_share.1"] - 0.2))
    other = TwoClasses(shares=(0.5, 0.5), std=0.1).replicated(40, np.random.default_rng(0))
    moved = tracked(lambda source: Moved(other.model), target=(0.5, 0.5))
    assert within(moved["class_share.1"], 0.5)
    assert (moved["class_tv"] < 0.11).all()  # 4 standard errors of a share of 400


def test_quality_by_class_is_the_distance_of_the_class_that_moved_and_of_no_other():
    """A shift by d in both coordinates is W_2 = d 2^1/2; of 80 points of class 1 the means alone err by .18 a replicate."""
    still, moved = (tracked(lambda source, d=d: Moved(source.model, d), n=8000, runs=10) for d in (0.0, 0.2))
    assert (still["class_w2_moments.1"] < 0.15).all()
    np.testing.assert_array_equal(still["class_w2_moments.0"], moved["class_w2_moments.0"])
    assert moved["class_w2_moments.1"].mean() == pytest.approx(0.2 * np.sqrt(2), abs=0.03)


def test_the_quality_of_a_class_with_fewer_than_three_samples_is_nan():
    values = tracked(lambda source: Moved(source.model), n=12, runs=40)
    few = np.round(12 * values["class_share.1"]) < 3
    assert 5 < few.sum() < 40
    assert np.isnan(values["class_w2_moments.1"][few]).all()
    assert np.isfinite(values["class_w2_moments.0"]).all()


def test_a_target_of_the_metric_has_a_share_for_every_class():
    with pytest.raises(ValueError, match="each of 2 classes, got 3"):
        tracked(lambda source: Moved(source.model), target=(0.5, 0.3, 0.2))
    with pytest.raises(ValueError, match="add to one"):
        ClassShares(target=(0.5, 0.6))
