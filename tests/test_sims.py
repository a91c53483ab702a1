"""SIMS as a recipe: what the auxiliary is tuned on, omega chosen on points held out, an interval, the stable range."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from selfloop import report, theory
from selfloop.algorithms.choose import Choose
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.algorithms.mixture import MixtureFit
from selfloop.algorithms.neon import Neon
from selfloop.algorithms.sims import Pair, Sims, SimsModel
from selfloop.config import groups, load
from selfloop.data import GaussianSource
from selfloop.diffusion.guide import measured_eta
from selfloop.diffusion.sample import Sampler
from selfloop.loop import self_consume
from selfloop.measure import Measure, concatenate
from selfloop.mix import Mix
from selfloop.reading import ConfigError, Source
from selfloop.streams import NamedStreams

STEPS = Sampler(kind="ancestral", steps=20, sigma_max=20.0, sigma_min=0.01)
FIT = GaussianFit(sampler=STEPS)
R = 40


def data(n: int = 4000, seed: int = 0) -> Measure:
    source = GaussianSource(mean=(0.0, 0.0), cov=((1.0, 0.0), (0.0, 1.0))).replicated(R, np.random.default_rng(0))
    return source.take(0, n, np.random.default_rng(seed)).stamped(0)


def sims(**options) -> Sims:
    return Sims(**{"algorithm": FIT, "n_synthetic": 4000, "budget": 0.3, **options})


def distance(model: SimsModel) -> np.ndarray:
    law = model.law()
    values = np.linalg.eigvalsh(law.cov)
    return np.sqrt((law.mean**2).sum(axis=-1) + ((np.sqrt(values) - 1) ** 2).sum(axis=-1))


def test_the_auxiliary_can_be_tuned_on_real_and_synthetic_data_together():
    x = data(500)
    for tune_on in ("synthetic", "real_and_synthetic"):
        model = sims(tune_on=tune_on, budget=1.0, n_synthetic=1000).fit(x, np.random.default_rng(1))
        rngs = np.random.default_rng(1).spawn(3)
        synthetic = FIT.fit(x, rngs[0]).sample(1000, rngs[1])
        seen = synthetic if tune_on == "synthetic" else concatenate([x, synthetic])
        expected = FIT.fit(seen, rngs[2])
        np.testing.assert_allclose(model.pair.auxiliary.fitted.cov, expected.fitted.cov, rtol=1e-10)


def test_omega_auto_comes_near_the_omega_that_theory_predicts():
    """Mean over 40 replicates of the choice within 4 of its standard errors, plus half a cell of the grid, of theory's."""
    grid = tuple(np.arange(0.0, 6.1, 0.5).tolist())
    model = sims(omega="auto", choose=Choose(grid=grid, held_out=0.5)).fit(data(), np.random.default_rng(1))
    assert model.omega.shape == (R,)
    assert set(model.omega) <= set(grid)
    best = theory.best_omega(0.3, theory.Steps("ancestral", 20, 20.0, 0.01))
    error = model.omega.std(ddof=1) / np.sqrt(R)
    assert abs(model.omega.mean() - best) < 4 * error + 0.25
    assert distance(model).mean() < 0.5 * distance(SimsModel(model.pair, 0.0)).mean()


@pytest.mark.parametrize("by", ["w2_moments", "w2_empirical"])
def test_omega_auto_is_the_nearest_of_its_grid_to_the_points_held_out(by):
    choose = Choose(by=by, grid=(0.0, 3.0), held_out=0.1, n=10_000)
    kept, held_out = choose.split(data(), np.random.default_rng(2))
    assert (kept.n, held_out.n) == (3600, 400)
    rows = {tuple(row) for part in (kept, held_out) for row in part.points[0]}
    assert rows == {tuple(row) for row in data().points[0]}
    pair = sims().fit(kept, np.random.default_rng(3)).pair
    chosen = choose.best(lambda omega: SimsModel(pair, omega), held_out, np.random.default_rng(4))
    assert (chosen == 3.0).mean() > 0.9


def test_omega_auto_holds_out_real_points_alone():
    mixed = concatenate([data(100), data(300, seed=1).stamped(1)])
    kept, held_out = Choose(held_out=0.5).split(mixed, np.random.default_rng(0))
    assert set(held_out.origin) == {0}
    assert (held_out.n, kept.n) == (50, 350)


def test_omega_auto_comes_back_from_its_state_and_shares_no_fit_with_a_number():
    algorithm = sims(omega="auto", choose=Choose(grid=(0.0, 2.0, 4.0)))
    model = algorithm.fit(data(), np.random.default_rng(1))
    back = algorithm.restore(model.state())
    np.testing.assert_array_equal(*(m.sample(50, np.random.default_rng(2)).points for m in (model, back)))
    tree = {
        "real": {"kind": "gaussian", "mean": [0.0], "cov": [[1.0]]},
        "mix": {"n_real": 100},
        "algorithm": {"kind": "sims", "algorithm": {"kind": "gaussian"}, "n_synthetic": 100, "budget": 0.3},
        "track": {"w2_moments": None},
        "sweep": {"grid": {"algorithm.omega": [0, 1, "auto"]}},
    }
    assert [len(group) for group in groups(load(Source("x", tree, {})))] == [2, 1]
    steps = {"kind": "gaussian", "sampler": {"kind": "heun"}}
    auto = {**tree["algorithm"], "omega": "auto", "algorithm": steps}
    alone = tree | {"algorithm": auto, "sweep": {"grid": {"algorithm.interval": [None, [0.5, 20.0]]}}}
    assert [len(group) for group in groups(load(Source("x", alone, {})))] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"), [({"held_out": 0.0}, "between 0 and 1"), ({"held_out": 0.001}, "too few|use more")]
)
def test_omega_auto_says_what_it_lacks(options, message):
    with pytest.raises(ValueError, match=message):
        sims(omega="auto", choose=Choose(**options)).fit(data(100), np.random.default_rng(0))


def test_omega_auto_needs_points():
    with pytest.raises(ValueError, match="statistics: false"):
        sims(omega="auto").fit(data(100).moments(), np.random.default_rng(0))


def test_members_with_one_omega_each_are_what_they_are_alone():
    pair = sims().fit(data(200), np.random.default_rng(1)).pair
    omegas = np.linspace(0, 3, R)
    together = SimsModel(pair, omegas).law()
    for member in (0, 7, R - 1):
        alone = SimsModel(pair, float(omegas[member])).law()
        np.testing.assert_allclose(together.cov[member], alone.cov[member], rtol=1e-9)
    exact = Sims(algorithm=GaussianFit(), n_synthetic=100, budget=0.3).fit(data(200), np.random.default_rng(1)).pair
    many = SimsModel(exact, np.where(np.arange(R) % 2, 1.0, 2.0)).law()
    np.testing.assert_array_equal(many.cov[1], SimsModel(exact, 1.0).law().cov[1])
    np.testing.assert_array_equal(many.cov[2], SimsModel(exact, 2.0).law().cov[2])


def test_guidance_in_an_interval_lies_between_none_and_all():
    pair = sims().fit(data(400), np.random.default_rng(1)).pair
    spread = [np.linalg.det(SimsModel(pair, 2.0, interval).law().cov).mean() for interval in (None, (0.5, 3.0), (30.0, 40.0))]
    assert spread[0] > spread[1] > spread[2]
    np.testing.assert_allclose(SimsModel(pair, 2.0, (30.0, 40.0)).law().cov, pair.base.law().cov, rtol=1e-9)
    assert not np.allclose(SimsModel(pair, -1.0, (0.5, 3.0)).law().cov, pair.auxiliary.law().cov, rtol=1e-3)


@pytest.mark.parametrize("algorithm", [FIT, GaussianFit(), MixtureFit(components=2, sampler=STEPS)])
def test_a_budget_of_zero_gives_the_base_bit_for_bit_at_every_omega(algorithm):
    for kind in (Sims, Neon):
        recipe = kind(algorithm=algorithm, n_synthetic=50, budget=0.0, omega=3.0)
        model = recipe.fit(data(60), np.random.default_rng(1))
        for one in (model, recipe.restore(model.state())):
            drawn = [m.sample(50, np.random.default_rng(2)).points for m in (one, one.pair.base)]
            np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": (2.0, 1.0)}, "low < high"),
        ({"interval": (100.0, 200.0)}, "must hold a noise level"),
        ({"interval": (0.1, 1.0), "algorithm": GaussianFit()}, "sampler with steps"),
    ],
)
def test_an_interval_that_acts_nowhere_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sims(**options)


@pytest.mark.parametrize(("steps", "error"), [(48, 0.02), (192, 0.006)])
def test_eta_is_measured_without_noise_where_laws_are_gaussian(steps, error):
    """ln v of a Gaussian fit moves by eta b; what is left is the error of the fine steps, which start at sigma_max."""
    for eta in (0.1, 0.3, 1.0):
        model = sims(budget=eta, n_synthetic=10**9).fit(data().moments(), np.random.default_rng(1))
        found, bias = measured_eta(model.pair.base, model.pair.auxiliary, 1000, np.random.default_rng(2), steps)
        np.testing.assert_allclose(found, eta, rtol=error)
        true = theory.sampler_log_bias(1.0, theory.Steps("ancestral", 20, 20.0, 0.01))
        np.testing.assert_allclose(bias, true, rtol=0.05)


def test_eta_measured_by_points_agrees_with_the_exact_one():
    """A mixture of one component is a Gaussian that has no law: 40 replicates, 4 standard errors."""
    exact = sims(n_synthetic=10**5).fit(data(), np.random.default_rng(1)).pair
    one = MixtureFit(components=1, sampler=STEPS)
    base = one.fit(Measure.uniform(np.zeros((R, 3, 2)) + np.eye(3, 2)), np.random.default_rng(0))

    def as_mixture(law):
        return replace(base, weights=np.ones((R, 1)), means=law.mean[:, None], covs=law.cov[:, None])

    pair = Pair(as_mixture(exact.base.fitted), as_mixture(exact.auxiliary.fitted))
    (true, bias), (found, seen) = (measured_eta(p.base, p.auxiliary, 4000, np.random.default_rng(2)) for p in (exact, pair))
    for a, b in ((true, found), (bias, seen)):
        assert abs((b - a).mean()) < 4 * (b - a).std(ddof=1) / np.sqrt(R)


def test_an_exact_sampler_has_no_bias_to_learn():
    pair = Sims(algorithm=GaussianFit(), n_synthetic=100, budget=0.3).fit(data(200), np.random.default_rng(1)).pair
    eta, bias = measured_eta(pair.base, pair.auxiliary, 100, np.random.default_rng(0))
    assert np.isnan(eta).all()
    assert (bias == 0).all()


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(("part", "grows"), [(0.9, False), (1.1, True)])
def test_a_guided_loop_settles_inside_the_stable_range_and_runs_away_outside(steps, part, grows):
    """Population sizes; from generation 30 to 60 the variance stands still, or has grown by more than a third."""
    eta = 0.4
    bias = theory.sampler_log_bias(1.0, theory.Steps("ancestral", steps, 20.0, 0.01))
    _, high = theory.stable_omega(eta, bias, 0.5)
    fit = GaussianFit(sampler=Sampler(kind="ancestral", steps=steps, sigma_max=20.0, sigma_min=0.01))
    algorithm = Sims(algorithm=fit, n_synthetic=10**8, budget=eta, omega=part * high)
    source, mix, streams = (
        GaussianSource(mean=(0.0,), cov=((1.0,),)).replicated(1, np.random.default_rng(0)),
        Mix(n_real=10**7),
        NamedStreams(0),
    )
    loop = self_consume(source, mix.first(source, streams, True), algorithm, mix, 60, streams)
    variance = [generation.drawn.cov[0, 0, 0] for generation in loop]
    growth = variance[-1] / variance[29]
    assert growth > 4 / 3 if grows else growth < 1.05


def test_the_limit_of_a_guided_loop_is_a_fixed_point_of_its_recursion():
    eta, bias, f = 0.3, -0.37, 0.5
    for omega in (0.0, 2.0, 1 / eta, 6.0):
        v = 1.0
        for _ in range(400):
            v = (1 - f) + f * v * np.exp(bias * (1 - omega * eta))
        assert theory.guided_variance(eta, bias, omega, f) == pytest.approx(v, rel=1e-9)
    _, high = theory.stable_omega(eta, bias, f)
    assert theory.guided_variance(eta, bias, high * 1.0001, f) == np.inf
    low, high = theory.stable_omega(eta, 1.0, f)
    assert high == np.inf
    assert theory.guided_variance(eta, 1.0, low * 0.9999, f) == np.inf
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\]"):
        theory.stable_omega(eta, bias, 1.5)


def test_a_run_that_leaves_the_stable_range_is_told_so():
    tree = {
        "generations": 2,
        "replicates": 2,
        "real": {"kind": "gaussian", "mean": [0.0], "cov": [[1.0]]},
        "mix": {"n_real": 100},
        "algorithm": {"kind": "sims", "algorithm": {"kind": "gaussian"}, "n_synthetic": 100, "budget": 0.3},
        "track": {"w2": None},
        "sweep": {"grid": {"algorithm.omega": [0, 4]}},
    }
    points = load(Source("x", tree, {}))
    eta = {0: 0.3, 1: 0.9}
    rows = [
        (float(omega), r, 1, name, value)
        for omega in (0, 4)
        for r in (0, 1)
        for name, value in (("omega", omega), ("eta", eta[r]), ("log_bias", -0.37))
    ]
    table = pd.DataFrame(rows, columns=["algorithm.omega", "replicate", "generation", "metric", "value"])
    (line,) = report.unstable(points, table)
    high = float(theory.stable_omega(0.9, -0.37, 0.5)[1])
    assert "1 of 2 replicates" in line
    assert line.startswith("warning: omega = 4, ")
    assert f"stable is below {high:.3g}" in line
    assert report.unstable(points, table[table["algorithm.omega"] == 0]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 2}, "needs real data with class labels, and gaussian has none"),
        ({"batch": 2000}, "budget: is counted in million samples seen: 0, or at least one batch, 0.002"),
        ({"device": "cuda"}, "torch finds none; set device: cpu"),
    ],
)
def test_what_a_network_would_find_out_late_is_found_when_the_file_is_read(options, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    inner = {"kind": "score_net", "budget": 0.01, **options}
    tree = {
        "real": {"kind": "gaussian", "mean": [0.0], "cov": [[1.0]]},
        "mix": {"n_real": 100},
        "algorithm": {"kind": "sims", "algorithm": inner, "n_synthetic": 100, "budget": 0.0005},
        "track": {"w2_moments": None},
    }
    with pytest.raises(ConfigError, match=message):
        load(Source("x", tree, {}))
