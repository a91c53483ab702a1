"""Score networks as an algorithm: what they learn, what they are conditioned on, and what moves a member of the ensemble.

A statistical test allows 4 standard errors (false alarms: 6e-5 a comparison; seeds are fixed)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from selfloop.algorithms.neon import Neon
from selfloop.algorithms.score_net import ScoreNet, ScoreNetFit
from selfloop.algorithms.sims import Sims
from selfloop.diffusion import ensemble as training
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.ensemble import EarlyStopping
from selfloop.diffusion.guide import autoguidance
from selfloop.diffusion.precondition import coefficients
from selfloop.diffusion.sample import Sampler
from selfloop.diffusion.score import gaussian_denoiser
from selfloop.laws import Gaussian
from selfloop.loop import self_consume
from selfloop.measure import Measure, Moments
from selfloop.metrics import transport
from selfloop.mix import Mix
from selfloop.plane import EightGaussians, TwoClasses
from selfloop.streams import NamedStreams
from selfloop.work import FolderWork

R = 3
STEPS = Sampler(kind="ancestral", steps=20, sigma_max=20.0, sigma_min=0.01)
HEUN = Sampler(kind="heun", steps=8, sigma_max=10.0, sigma_min=0.05)


def rng(seed=0):
    return np.random.default_rng(seed)


def million(steps, batch=16):
    return steps * batch / 1e6


def net(steps=40, **options):
    return ScoreNetFit(**{"width": 8, "layers": 1, "batch": 16, "budget": million(steps), "sampler": HEUN} | options)


def data(n=50, seed=0, batch=(R,), classes=0):
    points = rng(seed).standard_normal((*batch, n, 2)) * [2.0, 0.5] + [1.0, -3.0]
    return Measure.uniform(points, rng(seed + 1).integers(classes, size=(*batch, n)) if classes else None)


def tuned(algorithm, model, points, *steps, seed=5, work=None):
    return list(algorithm.tune(model, points, [million(k) for k in steps], rng(seed), work))


def same(a: ScoreNet, b: ScoreNet, members=slice(None)) -> bool:
    """Two models agree in every bit of all that they carry for these members."""
    one, two = a.state(), b.state()
    assert one.keys() == two.keys()
    return all(
        np.array_equal(one[name][members] if one[name].ndim else one[name], two[name][members] if two[name].ndim else two[name])
        for name in one
    )


# --- the denoiser


@pytest.mark.parametrize("prediction", ["edm", "v", "epsilon", "sample", "velocity"])
def test_the_denoiser_is_its_network_behind_the_coefficients(prediction):
    """c_skip x + c_out F(c_in x, ln(s) / 4), by hand, in float64 to what float32 holds."""
    model = net(prediction=prediction, layers=2).fit(data(), rng(1))
    x, sigma = 3 * rng(2).standard_normal((R, 7, 2)), 0.8
    theta = {name: value.astype(float) for name, value in model.parameters.items()}
    for r, scale in enumerate(model.scale):
        s = sigma / scale
        skip, out, c_in = coefficients(prediction, s)
        h = np.column_stack([c_in * x[r] / scale, np.full(7, np.log(s) / 4)])
        for i in range(3):
            h = h @ theta[f"weight.{i}"][r] + theta[f"bias.{i}"][r]
            h = h / (1 + np.exp(-h)) if i < 2 else h
        np.testing.assert_allclose(model.denoise(x, sigma)[r], skip * x[r] + out * scale * h, rtol=0, atol=2e-5)


def test_the_unit_of_a_network_is_the_root_mean_variance_of_its_weighted_points():
    points = data()
    weights = rng(3).random((R, 50))
    points = replace(points, weights=weights / weights.sum(axis=1, keepdims=True))
    expected = np.sqrt(np.trace(points.moments().cov, axis1=1, axis2=2) / 2)
    model = net().fit(points, rng(1))
    np.testing.assert_allclose(model.scale, expected, rtol=1e-6)
    assert set(net(sigma_data=0.7).fit(points, rng(1)).scale) == {np.float32(0.7)}
    shifted = replace(points, points=3 * np.asarray(points.points))
    np.testing.assert_array_equal(tuned(net(), model, shifted, 10)[0].scale, model.scale)


def test_a_network_in_units_of_its_data_learns_the_same_at_any_scale():
    """Points, levels and answers 8 times as large: a power of 2, so that float32 rounds alike."""
    points = data()
    large = replace(points, points=8 * np.asarray(points.points))
    one, two = (net().fit(d, rng(1)) for d in (points, large))
    x = rng(2).standard_normal((R, 5, 2))
    np.testing.assert_allclose(two.denoise(8 * x, 8 * 0.6), 8 * one.denoise(x, 0.6), rtol=1e-5, atol=1e-5)


def test_arrays_give_arrays_of_float64_and_tensors_tensors_of_their_type():
    model = net().fit(data(), rng(1))
    x = rng(2).standard_normal((R, 5, 2))
    out = model.denoise(x, 0.5)
    assert (type(out), out.dtype, out.shape) == (np.ndarray, np.float64, (R, 5, 2))
    for dtype in (torch.float32, torch.float64):
        answer = model.denoise(torch.as_tensor(x, dtype=dtype), 0.5)
        assert (type(answer), answer.dtype, answer.requires_grad) == (torch.Tensor, dtype, False)
        np.testing.assert_allclose(answer.numpy(), out, rtol=1e-6, atol=1e-6)


def test_a_point_is_denoised_alike_however_many_there_are(monkeypatch):
    model = net(classes=2).fit(data(classes=2), rng(1))
    x, labels = rng(2).standard_normal((R, 100, 2)), rng(3).integers(2, size=(R, 100))
    whole = model.denoise(x, 0.5, labels)
    monkeypatch.setattr("selfloop.algorithms.score_net.ROWS", 7 * R)
    np.testing.assert_allclose(model.denoise(x, 0.5, labels), whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.denoise(x[:, 40:41], 0.5, labels[:, 40:41]), whole[:, 40:41], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_batch_axes_are_kept(batch):
    points = data(batch=batch, classes=2)
    model = net(classes=2).fit(points, rng(1))
    (other,) = tuned(net(classes=2), model, points, 5)
    for m in (model, other, net(classes=2).restore(other.state())):
        drawn = m.sample(9, rng(2))
        assert m.batch == m.scale.shape == m.failed.shape == m.shares.shape[:-1] == batch
        assert drawn.points.shape == m.shape(9) == (*batch, 9, 2)
        assert drawn.labels.shape == (*batch, 9)


# --- what is learned


def test_a_full_gaussian_is_learned_as_its_sampler_would_draw_it():
    """W_2 between moments of 20,000 samples and the law of the same steps under the exact score of the data's moments.

    The bound is .12, where the points spread by 1.2; without the correlation W_2 is above .3."""
    cov = np.array([[2.0, 1.1], [1.1, 1.0]])
    points = Gaussian(np.array([1.0, -2.0]), cov).expanded(2).sample(4000, rng(1))
    fit = ScoreNetFit(width=32, layers=1, batch=256, budget=million(400, 256), learning_rate=5e-3, sampler=STEPS)
    model = fit.fit(points, rng(2))
    found = points.moments()
    exact = diffusion.law(gaussian_denoiser(Gaussian(found.mean, found.cov)), STEPS, (2,), 2)
    drawn = model.sample(20_000, rng(3)).moments()
    w2 = transport.gaussian_wasserstein2(Gaussian(drawn.mean, drawn.cov), exact)
    assert not model.failed.any()
    assert (w2 < 0.12).all()
    plain = Gaussian(exact.mean, np.trace(exact.cov, axis1=1, axis2=2)[:, None, None] / 2 * np.eye(2))
    assert (transport.gaussian_wasserstein2(plain, exact) > 0.3).all()


def test_eight_gaussians_are_denoised_better_than_any_gaussian_could_and_no_better_than_can_be():
    """Mean |D - x_0|^2 at 4000 fresh points and three levels: below the best Gaussian's by 4 paired errors, not below p_r's."""
    source = EightGaussians().replicated(1, rng(0))
    fit = ScoreNetFit(width=64, layers=2, batch=256, budget=million(1000, 256), learning_rate=5e-3)
    model = fit.fit(source.take(0, 4000, rng(1)), rng(2))
    fresh = source.sample(4000, rng(3))
    moments = source.sample(50_000, rng(4)).moments()
    single = gaussian_denoiser(Gaussian(moments.mean, moments.cov))
    x_0 = np.asarray(fresh.points)
    for level in (0.2, 0.4, 0.6):
        sigma = level * float(model.scale[0])
        x = x_0 + sigma * rng(5).standard_normal(x_0.shape)
        error = {
            name: ((d(x, sigma) - x_0) ** 2).sum(axis=-1)[0]
            for name, d in (("net", model.denoise), ("gaussian", single), ("exact", source.model.denoise))
        }
        gain, loss = error["gaussian"] - error["net"], error["net"] - error["exact"]
        assert gain.mean() > 4 * gain.std() / np.sqrt(4000)
        assert loss.mean() > -4 * loss.std() / np.sqrt(4000)
        assert loss.mean() < gain.mean()


# --- classes


CLASSES = TwoClasses(shares=(0.7, 0.3), std=0.25)


@pytest.fixture(scope="module")
def conditional():
    """A network with two classes, unconditional where the label is dropped, and p_r."""
    source = CLASSES.replicated(2, rng(0))
    fit = ScoreNetFit(
        width=64, layers=2, batch=256, budget=million(800, 256), learning_rate=5e-3, classes=2, label_dropout=0.2, sampler=HEUN
    )
    points = source.take(0, 3000, rng(1))
    return fit, points, fit.fit(points, rng(2)), source.model


def test_samples_with_a_label_lie_in_the_region_of_their_class(conditional):
    """More than 95 % of 1000 of each class, by Bayes' rule, which errs in .03 % of p_r."""
    _, _, model, law = conditional
    for given in (0, 1):
        drawn = model.sample(1000, rng(3), labels=np.full(1000, given))
        assert (law.classify(drawn.points) == given).mean(axis=-1).min() > 0.95
        assert np.array_equal(np.unique(drawn.labels), [given])


def test_labels_are_drawn_with_the_shares_of_the_weighted_data_and_the_points_are_theirs(conditional):
    fit, points, model, law = conditional
    np.testing.assert_allclose(model.shares[:, 1], (points.labels == 1).mean(axis=-1), atol=1e-9)
    drawn = model.sample(4000, rng(3))
    share = (drawn.labels == 1).mean(axis=-1)
    assert (np.abs(share - model.shares[:, 1]) < 4 * np.sqrt(model.shares[:, 1] * model.shares[:, 0] / 4000)).all()
    assert (law.classify(drawn.points) == drawn.labels).mean() > 0.95
    weights = np.where(points.labels == 1, 3.0, 1.0)
    reweighted = replace(fit, budget=million(1, 256)).fit(points.reweighted(weights), rng(2))
    expected = (weights * (points.labels == 1)).sum(axis=-1) / weights.sum(axis=-1)
    np.testing.assert_allclose(reweighted.shares[:, 1], expected, rtol=1e-9)


def test_without_a_label_it_denoises_both_classes_at_once(conditional):
    """Nearer to E[x_0 | x] of p_r than either conditional denoiser is, at a level where classes overlap."""
    _, _, model, law = conditional
    x_0 = np.asarray(law.sample(2000, rng(4)).points)
    x = x_0 + 0.6 * rng(5).standard_normal(x_0.shape)

    def error(labels):
        return ((model.denoise(x, 0.6, labels) - law.denoise(x, 0.6)) ** 2).sum(axis=-1).mean()

    assert 3 * error(None) < min(error(np.full(2000, given)) for given in (0, 1))


def test_classifier_free_guidance_is_autoguidance_by_the_same_network_without_its_label(conditional):
    """Weight 1 is the conditional model, 0 the unconditional, and 2 leaves no more points on the wrong side."""
    _, _, model, law = conditional
    labels = np.full(500, 1)

    def drawn(weight):
        guided = autoguidance(lambda x, s: model.denoise(x, s, labels), model.denoise, weight)
        return diffusion.sample(guided, HEUN, model.shape(500), rng(6), axis=1, lift=model.lift)

    plain = diffusion.drawn(model, 500, rng(6), labels).points
    assert np.abs(drawn(1.0)).max() < 3
    assert (law.classify(drawn(1.0)) == 1).mean() == pytest.approx((law.classify(plain) == 1).mean(), abs=0.02)
    assert (law.classify(drawn(2.0)) == 1).mean() > 0.97
    assert (law.classify(drawn(0.0)) == 1).mean() < 0.5


# --- tuning


@pytest.mark.parametrize("optimiser", ["fresh", "kept"])
def test_a_trajectory_has_one_model_at_each_budget_however_many_are_asked_for(optimiser):
    algorithm = net(optimiser=optimiser)
    model, points = algorithm.fit(data(), rng(1)), data(seed=9)
    start, a, b, again = tuned(algorithm, model, points, 0, 7, 90, 90)
    assert start is model
    assert same(a, tuned(algorithm, model, points, 7)[0])
    assert same(b, tuned(algorithm, model, points, 90)[0])
    assert same(b, again)
    assert not same(a, b)
    assert tuned(algorithm, model, points, 0) == [model]


def test_kept_moments_are_part_of_the_model_and_change_what_tuning_does():
    kept, fresh = net(optimiser="kept"), net()
    model = kept.fit(data(), rng(1))
    assert {name for name in model.state() if name.startswith("moments.")} >= {"moments.step", "moments.exp_avg.weight.0"}
    assert model.moments["step"] == 40
    back = kept.restore({name: np.array(value) for name, value in model.state().items()})
    assert same(model, back)
    points = data(seed=9)
    (one,), (two,), (other,) = (tuned(a, m, points, 20) for a, m in ((kept, model), (kept, back), (fresh, model)))
    assert same(one, two)
    assert one.moments["step"] == 60
    assert not np.array_equal(one.parameters["weight.0"], other.parameters["weight.0"])
    plain = fresh.fit(data(), rng(1))
    assert not any(name.startswith("moments.") for name in plain.state())
    assert all(np.array_equal(plain.parameters[name], model.parameters[name]) for name in plain.parameters)


class Killed(BaseException):
    """The process is dead."""


@pytest.mark.parametrize("algorithm", [Sims, Neon])
def test_a_pair_that_was_killed_in_fit_or_tuning_ends_with_the_bits_it_would_have_had(algorithm, tmp_path, monkeypatch):
    """Through files; killed after the third save of the base, after its last, or after the second of the auxiliary."""
    monkeypatch.setattr(training, "NUMBERS", 10 * R * 16 * 4)
    monkeypatch.setattr("selfloop.work.os.fsync", lambda _: None)
    wrapped = algorithm(algorithm=net(optimiser="kept"), n_synthetic=30, budget=million(40), omega=1.0)
    expected = wrapped.fit(data(), rng(1))
    left, save = [0], FolderWork.save

    def deadly(self, /, **arrays):
        save(self, **arrays)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(FolderWork, "save", deadly)
    for number in (3, 5, 7):
        work = FolderWork(tmp_path / str(number), every=0.0)
        left[0] = number
        with pytest.raises(Killed):
            wrapped.fit(data(), rng(1), work)
        assert (work.at("auxiliary").load() is not None) == (number == 7)
        found = wrapped.fit(data(), rng(1), work)
        assert same(found.pair.base, expected.pair.base)
        assert same(found.pair.auxiliary, expected.pair.auxiliary)


# --- members


def test_members_learn_from_their_own_data_alone():
    points = data()
    x, w = np.array(points.points), np.array(points.weights)
    x[1] = 5 * x[1] + 1
    w[1, :25], w[1, 25:] = 0.04, 0
    model = net().fit(points, rng(1))
    for other in (Measure(x, points.weights), Measure(x, w), Measure(np.where(x == x[1], np.nan, x), w)):
        changed = net().fit(other, rng(1))
        assert same(model, changed, [0, 2])
        assert not same(model, changed, [1])
        assert same(*(tuned(net(), model, d, 20)[0] for d in (points, other)), [0, 2])


@pytest.mark.parametrize("early_stopping", [None, EarlyStopping(held_out=0.2, every=5, patience=2)])
def test_members_stop_for_themselves_and_all_that_they_carry_is_their_own(early_stopping):
    points = data(n=12)
    x = np.array(points.points)
    x[1] *= 1e-3
    algorithm = net(400, learning_rate=0.05, decay="none", early_stopping=early_stopping)
    assert same(*(algorithm.fit(d, rng(1)) for d in (points, replace(points, points=x))), [0, 2])


def test_a_member_that_fails_says_at_which_step_and_goes_on_failing():
    """A fit whose unit is NaN fails at once; tuning at the first step that draws the row, which is where it is by then."""
    x = np.array(data(n=300).points)
    x[1, 17] = np.inf
    spoilt = Measure(x, data(n=300).weights)
    assert list(net().fit(spoilt, rng(1)).failed) == [0, 1, 0]
    model = net().fit(data(n=300), rng(1))
    steps = [m.failed[1] for m in tuned(net(), model, spoilt, 1, 3, 10, 100)]
    last = tuned(net(), model, spoilt, 100)[0]
    assert last.failed[0] == last.failed[2] == 0
    assert 1 < last.failed[1] <= 100
    assert steps == [last.failed[1] if mark >= last.failed[1] else 0 for mark in (1, 3, 10, 100)]
    after = tuned(net(), last, data(n=300), 5)[0]
    assert list(after.failed) == list(last.failed)
    assert np.isnan(after.sample(3, rng(0)).points[1]).all()
    assert np.isfinite(after.sample(3, rng(0)).points[[0, 2]]).all()


# --- guidance


def test_sims_of_networks_at_no_strength_is_the_base_and_at_minus_one_the_auxiliary_bit_for_bit():
    algorithm = Sims(algorithm=net(), n_synthetic=40, budget=million(60), omega=0.0)
    model = algorithm.fit(data(), rng(1))
    base, auxiliary = model.pair.base, model.pair.auxiliary
    assert same(base, net().fit(data(), rng(1).spawn(3)[0]))
    drawn = {omega: replace(model, omega=omega).sample(70, rng(2)).points for omega in (0.0, -1.0, 1e-9, -1 + 1e-9, 2.0)}
    np.testing.assert_array_equal(drawn[0.0], base.sample(70, rng(2)).points)
    np.testing.assert_array_equal(drawn[-1.0], auxiliary.sample(70, rng(2)).points)
    np.testing.assert_allclose(drawn[1e-9], drawn[0.0], atol=1e-4)
    np.testing.assert_allclose(drawn[-1 + 1e-9], drawn[-1.0], atol=1e-4)
    assert np.abs(drawn[2.0] - drawn[0.0]).max() > 0.01


def test_scores_of_networks_are_extrapolated_inside_the_interval_alone():
    model = Sims(algorithm=net(), n_synthetic=40, budget=million(60), omega=1.5).fit(data(), rng(1))
    x = rng(2).standard_normal((R, 6, 2))
    inside = replace(model, interval=(0.5, 2.0))
    for sigma in (0.1, 0.5, 1.0, 2.0, 4.0):
        base, auxiliary = model.pair.base.denoise(x, sigma), model.pair.auxiliary.denoise(x, sigma)
        expected = 2.5 * base - 1.5 * auxiliary
        assert np.abs(expected - base).max() > 1e-3
        np.testing.assert_allclose(model.denoise(x, sigma), expected, atol=1e-5)
        np.testing.assert_allclose(inside.denoise(x, sigma), expected if 0.5 <= sigma <= 2 else base, atol=1e-5)
    each = replace(model, omega=np.array([0.0, 1.5, -1.0]))
    tensor = each.denoise(model.lift(x), 1.0)
    np.testing.assert_allclose(tensor.numpy(), each.denoise(x, 1.0), atol=1e-5)
    np.testing.assert_allclose(each.denoise(x, 1.0)[1], model.denoise(x, 1.0)[1], atol=1e-5)


@pytest.mark.parametrize("omega", [0.7, 3.0])
def test_neon_of_networks_extrapolates_their_parameters(omega):
    algorithm = net(optimiser="kept")
    model = Neon(algorithm=algorithm, n_synthetic=40, budget=million(60), omega=omega).fit(data(), rng(1))
    base, auxiliary = model.pair.base, model.pair.auxiliary
    for name, value in model.merged.parameters.items():
        assert value.dtype == np.float32
        expected = (1 + omega) * base.parameters[name].astype(float) - omega * auxiliary.parameters[name]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(model.merged.scale, base.scale)
    assert base.moments
    assert not model.merged.moments  # they belong to neither


# --- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": million(0.4)}, "at least one batch, 1.6e-05; got 6.4e-06"),
        ({"budget": million(0.6)}, "at least one batch, 1.6e-05; got 9.6e-06"),
        ({"budget": -1.0}, "greater than 0"),
        ({"sampler": Sampler()}, "set kind to heun, dpm, euler or ancestral"),
        ({"label_dropout": 0.1}, "set classes, or label_dropout: 0"),
        ({"optimiser": "kept", "early_stopping": EarlyStopping()}, "set it to fresh, or remove early_stopping"),
        ({"average": 0.3}, "average"),
        ({"prediction": "score"}, "prediction"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_a_remedy(options, message):
    with pytest.raises(ValueError, match=message):
        net(**options)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="set device: cpu, or install a CUDA build of torch"):
        net(device="cuda")


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([-1e-9], "0, or at least one batch, 1.6e-05; got -1e-09"),
        ([million(0.9)], "0, or at least one batch"),
        ([million(20), million(10)], "budgets must ascend, got"),
    ],
)
def test_budgets_that_are_no_trajectory_are_refused(budgets, message):
    model = net().fit(data(), rng(1))
    with pytest.raises(ValueError, match=message):
        list(net().tune(model, data(), budgets, rng(2)))


@pytest.mark.parametrize("batch", [1, 3, 7, 96, 100, 256, 1000])
def test_a_budget_of_whole_batches_is_that_many_steps(batch):
    for steps in (1, 2, 99, 1001):
        assert net(batch=batch, budget=1.0).steps(steps * batch / 1e6) == steps


def one_label(label):
    labels = rng(1).integers(2, size=(R, 50))
    labels[1, 3] = label
    return replace(data(), labels=labels)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (data(), "has none; remove classes"),
        (one_label(2), "labels must lie in 0 .. classes - 1 = 1, got 2"),
        (one_label(-1), "labels must lie in 0 .. classes - 1 = 1, got -1"),
        (replace(data(), labels=np.zeros(50, dtype=int)), "class 1 has no point in replicate 0, .* fewer classes"),
        (Moments(50, np.zeros((R, 2)), np.tile(np.eye(2), (R, 1, 1))), "set statistics: false"),
        (Measure.uniform(rng().random((R, 20, 4, 4)), batch=1), "flatten"),
    ],
    ids=["no labels", "too large", "negative", "empty class", "moments", "images"],
)
def test_data_that_cannot_be_learned_is_refused_with_a_remedy(points, message):
    with pytest.raises(ValueError, match=message):
        net(classes=2).fit(points, rng(1))


def test_a_class_whose_points_have_no_weight_is_empty():
    points = data(classes=2)
    with pytest.raises(ValueError, match="class 1 has no point in replicate 0"):
        net(classes=2).fit(points.reweighted(points.labels == 0), rng(1))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_no_class_has_is_refused_when_sampling(label):
    model = net(classes=2).fit(data(classes=2), rng(1))
    with pytest.raises(ValueError, match=f"labels must lie in 0 .. classes - 1 = 1, got {label}"):
        model.sample(5, rng(2), labels=np.array([0, 1, label, 0, 0]))


def test_a_class_may_die_on_the_way_and_not_in_the_real_data():
    """A loop of few points loses its rare class, in one replicate and then in others; none of them ends."""
    source = TwoClasses(shares=(0.9, 0.1)).replicated(4, rng(0))
    algorithm, mix, streams = net(classes=2, budget=0.0016), Mix(kind="fully_synthetic", n_real=12), NamedStreams(0)
    real = mix.first(source, streams)
    with pytest.raises(ValueError, match="has no point in replicate"):
        algorithm.fit(replace(real, labels=np.zeros((4, 12), dtype=np.int64)), rng(1))
    known = replace(real, labels=np.where(np.arange(12) < 2, 1, 0) * np.ones((4, 1), dtype=np.int64))
    generations = list(self_consume(source, known, algorithm, mix, 8, streams))
    assert (generations[-1].model.shares == 0).any()
    assert not generations[-1].diverged.any()


def test_no_noise_leaves_points_where_they_are():
    model, x = net().fit(data(), rng(1)), np.ones((3, 5, 2))
    np.testing.assert_array_equal(model.denoise(x, 0.0), x)


def test_labels_drawn_first_do_not_depend_on_how_many_are_drawn():
    source = TwoClasses(shares=(0.5, 0.5)).replicated(3, rng(0))
    model = net(classes=2).fit(source.take(0, 60, rng(1)), rng(2))
    few, many = model.sample(20, rng(3)), model.sample(100, rng(3))
    np.testing.assert_array_equal(few.labels, many.labels[:, :20])
    np.testing.assert_allclose(few.points, many.points[:, :20], atol=1e-5)
