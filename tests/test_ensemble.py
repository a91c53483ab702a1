"""Ensembles of networks and their training: a loop over ordinary torch modules is the oracle, in float64 where it is exact.

A statistical test allows 4 standard errors, taken from its own draws (false alarms: 6e-5 a comparison; seeds are fixed)."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import ndtri
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from selfloop.diffusion import ensemble as training
from selfloop.diffusion import mlp
from selfloop.diffusion.average import PowerAverage
from selfloop.diffusion.ensemble import EarlyStopping, Points, Recipe, clip_members, examples, losses, train
from selfloop.diffusion.noise import EDGE, Noise
from selfloop.diffusion.precondition import coefficients

PREDICTIONS = ["edm", "v", "epsilon", "sample", "velocity"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ensemble(members=3, sizes=(3, 8, 8, 2), seed=0, dtype=torch.float64):
    """Networks with all parameters random, the last layer and the biases too."""
    zero = mlp.initialised(members, sizes, seeded(seed), dtype=dtype)
    return {
        name: 0.4 * torch.randn(value.shape, generator=seeded(seed + i), dtype=dtype)
        for i, (name, value) in enumerate(zero.items())
    }


def module(parameters, member):
    """One member as torch has it."""
    layers = []
    for i in range(len(parameters) // 2):
        weight, bias = parameters[f"weight.{i}"][member], parameters[f"bias.{i}"][member, 0]
        linear = nn.Linear(*weight.shape, dtype=weight.dtype)
        linear.weight.data, linear.bias.data = weight.T.clone(), bias.clone()
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def stacked(net, what=lambda p: p):
    """The parameters of one network under the names and in the axes of an ensemble of one."""
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    return {f"weight.{i}": what(layer.weight).T[None] for i, layer in enumerate(linears)} | {
        f"bias.{i}": what(layer.bias)[None, None] for i, layer in enumerate(linears)
    }


def cloud(members=3, n=40, seed=0, dtype=torch.float64, weights=None, classes=0):
    x = torch.randn((members, n, 2), generator=seeded(seed), dtype=dtype)
    labels = None
    if classes:
        labels = torch.eye(classes, dtype=dtype)[torch.randint(classes, (members, n), generator=seeded(seed + 1))]
    weights = torch.full((members, n), 1 / n, dtype=torch.float64) if weights is None else weights
    return Points(x, weights, labels, torch.ones(members, dtype=dtype))


def recipe(steps=40, **options):
    plain = {"batch": 8, "rate": 1e-2, "decay": "none", "clip": None, "prediction": "edm", "noise": Noise()}
    return Recipe(steps=steps, **(plain | options))


@pytest.fixture
def groups_of_two(monkeypatch):
    """Members go through a step two at a time, and the third alone, where batches and layers are 8 wide."""
    monkeypatch.setattr(training, "CACHED", 2 * 8 * 8)


@pytest.fixture
def blocks_of_seven(monkeypatch, groups_of_two):
    """Random numbers for 7 steps at a time, of 3 members in the plane with batches of 8; in groups of two."""
    monkeypatch.setattr(training, "NUMBERS", 7 * 3 * 8 * 4)


@pytest.fixture
def batches(monkeypatch):
    """(inputs, targets) of every step of every training."""
    seen = []

    def watched(parameters, x, target):
        seen.append((x, target))
        return losses(parameters, x, target)

    monkeypatch.setattr(training, "losses", watched)
    return seen


def same(a, b, members=slice(None)):
    """Two sets of parameters, or of what was trained, agree in every bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return all(torch.equal(a[name][members], b[name][members]) for name in a)
    return same(a.parameters, b.parameters, members) and np.array_equal(a.failed[members], b.failed[members])


# --- the ensemble


def test_an_ensemble_is_a_loop_over_ordinary_networks_and_their_vmap():
    parameters, x = ensemble(), torch.randn((3, 5, 3), generator=seeded(9), dtype=torch.float64)
    nets = [module(parameters, r) for r in range(3)]
    loop = torch.stack([net(points) for net, points in zip(nets, x, strict=True)])
    skeleton = module(parameters, 0).to("meta")
    mapped = vmap(lambda p, y: functional_call(skeleton, p, (y,)))(stack_module_state(nets)[0], x)
    answer = mlp.forward(parameters, x)
    assert loop.std() > 0.1
    for other in (loop, mapped):
        torch.testing.assert_close(answer, other, rtol=0, atol=1e-12)


def test_the_gradient_of_the_sum_of_losses_is_every_members_own():
    start = ensemble()
    parameters = {name: value.requires_grad_() for name, value in start.items()}
    x, target = (torch.randn((3, 6, k), generator=seeded(k), dtype=torch.float64) for k in (3, 2))
    found = losses(parameters, x, target)
    found.sum().backward()
    for r in range(3):
        net = module({name: value.detach() for name, value in parameters.items()}, r)
        loss = ((net(x[r]) - target[r]) ** 2).sum(dim=-1).mean()
        loss.backward()
        torch.testing.assert_close(found[r], loss, rtol=0, atol=1e-12)
        for name, gradient in stacked(net, lambda p: p.grad).items():
            torch.testing.assert_close(parameters[name].grad[r], gradient[0], rtol=0, atol=1e-12)


def test_new_networks_answer_zero_and_have_weights_of_variance_one_over_the_inputs():
    """Second moments of 200 members x 16 x 32 weights within 4 standard errors, 2^1/2 / count^1/2 of themselves."""
    parameters = mlp.initialised(200, (16, 32, 4), seeded(0), dtype=torch.float64)
    assert [tuple(value.shape) for value in parameters.values()] == [(200, 16, 32), (200, 1, 32), (200, 32, 4), (200, 1, 4)]
    weights = parameters["weight.0"]
    assert abs(16 * (weights**2).mean() - 1) < 4 * math.sqrt(2 / weights.numel())
    assert abs(weights.mean()) < 4 * math.sqrt(1 / 16 / weights.numel())
    assert len(torch.unique(weights[:, 0, 0])) == 200
    x = torch.randn((200, 3, 16), generator=seeded(1), dtype=torch.float64)
    assert not mlp.forward(parameters, x).any()


# --- training is Adam on each member alone


@pytest.mark.parametrize(("decay", "clip"), [("none", None), ("cosine", 0.5)])
def test_training_together_is_training_each_member_alone_with_adam(decay, clip, batches):
    """80 steps, more than one block of random numbers; the clip bites in most of them."""
    start, plan = ensemble(), recipe(80, decay=decay, clip=clip)
    (trained,) = train(start, cloud(), plan, seed=3)
    bitten = 0
    for r in range(3):
        net = module(start, r)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        for step, (x, target) in enumerate(batches):
            if decay == "cosine":
                optimiser.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 80)) / 2
            optimiser.zero_grad()
            ((net(x[r]) - target[r]) ** 2).sum(dim=-1).mean().backward()
            if clip is not None:
                norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
                bitten += int(norm > clip)
                for p in net.parameters():
                    p.grad *= min(1.0, clip / norm)
            optimiser.step()
        for name, value in stacked(net, lambda p: p.detach()).items():
            torch.testing.assert_close(trained.parameters[name][r], value[0], rtol=0, atol=1e-10)
            assert (trained.parameters[name] - start[name]).abs().max() > 0.01
        for key in ("exp_avg", "exp_avg_sq"):
            for name, value in stacked(net, lambda p, o=optimiser, k=key: o.state[p][k]).items():
                torch.testing.assert_close(trained.moments[f"{key}.{name}"][r], value[0], rtol=0, atol=1e-10)
    assert trained.moments["step"] == len(batches) == 80
    assert clip is None or 80 < bitten < 240


@pytest.mark.parametrize("stopping", [None, EarlyStopping(held_out=0.3, every=10, patience=2)])
def test_members_that_go_through_a_step_in_groups_learn_what_they_learn_at_once(stopping, monkeypatch):
    plan = recipe(80, clip=0.5, stopping=stopping, average=0.1, rate=0.05)
    (one,) = train(ensemble(), cloud(), plan, 3)
    monkeypatch.setattr(training, "CACHED", 2 * 8 * 8)
    (two,) = train(ensemble(), cloud(), plan, 3)
    for name, value in (one.parameters | one.moments).items():
        torch.testing.assert_close((two.parameters | two.moments)[name], value, rtol=0, atol=1e-10)


def test_gradients_are_clipped_to_the_norm_of_a_member_over_all_its_parameters():
    parameters = [value.requires_grad_() for value in ensemble(4).values()]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=seeded(1), dtype=torch.float64)
        parameter.grad[0], parameter.grad[1], parameter.grad[3] = 1e-3 * parameter.grad[0], 0.0, math.nan
    before = [parameter.grad.clone() for parameter in parameters]
    clip_members(parameters, 2.0)
    norms = sum((p.grad**2).flatten(1).sum(dim=1) for p in parameters).sqrt()
    assert norms[2] == pytest.approx(2.0, rel=1e-12)
    assert norms[1] == 0
    for old, parameter in zip(before, parameters, strict=True):
        assert torch.equal(parameter.grad[0], old[0])


@pytest.mark.parametrize("huge", [1e6, math.nan, math.inf])
def test_what_one_member_is_trained_on_changes_no_bit_of_the_others(huge):
    data = cloud(dtype=torch.float32)
    x = data.x.clone()
    x[1] *= huge
    start, plan = ensemble(dtype=torch.float32), recipe(clip=1.0)
    one, two = (train(start, points, plan, 0)[0] for points in (data, replace(data, x=x)))
    assert same(one, two, [0, 2])
    assert not same(one, two, [1])
    assert list(two.failed) == [0, 0 if huge == 1e6 else 1, 0]


def test_parameters_that_are_not_finite_stay_with_their_member():
    start, data = ensemble(dtype=torch.float32), cloud(dtype=torch.float32)
    spoilt = {name: value.clone() for name, value in start.items()}
    spoilt["weight.1"][2, 0, 0] = math.nan
    one, two = (train(parameters, data, recipe(clip=1.0), 0)[0] for parameters in (start, spoilt))
    assert same(one, two, [0, 1])
    assert list(two.failed) == [0, 0, 1]


def test_the_weights_of_one_member_do_not_change_the_others():
    data, weights = cloud(dtype=torch.float32), torch.full((3, 40), 1 / 40, dtype=torch.float64)
    weights[0, :20], weights[0, 20:] = 1 / 20, 0
    one, two = (
        train(ensemble(dtype=torch.float32), points, recipe(), 0)[0] for points in (data, replace(data, weights=weights))
    )
    assert same(one, two, [1, 2])
    assert not same(one, two, [0])


def test_failed_is_the_first_step_whose_batch_held_what_is_not_finite(blocks_of_seven, batches):
    data = cloud(n=400)
    data.x[1, 7] = math.nan
    (trained,) = train(ensemble(), data, recipe(90), 0)
    bad = [number for number, (x, _) in enumerate(batches[::2], 1) if x[1].isnan().any()]  # of the first two members
    assert bad[0] > 7  # in a later block than the first
    assert list(trained.failed) == [0, bad[0], 0]


# --- marks, saving, continuing


def test_a_shorter_training_is_the_beginning_of_a_longer_one(blocks_of_seven):
    start, data = ensemble(), cloud()
    longer = train(start, data, recipe(60), 5, marks=[1, 20, 21, 60])
    for mark, trained in zip([1, 20, 21, 60], longer, strict=True):
        (alone,) = train(start, data, recipe(mark), 5)
        assert same(trained, alone)
        assert same(trained.moments, alone.moments, ...)
    assert not same(longer[1], longer[2])


def test_the_parameters_a_training_starts_from_are_left_alone():
    start, data = ensemble(), cloud()
    before = {name: value.clone() for name, value in start.items()}
    (first,) = train(start, data, recipe(10), 0)
    kept = {name: value.clone() for name, value in first.moments.items()}
    train(first.parameters, data, recipe(10), 1, moments=first.moments)
    assert same(start, before)
    assert same(first.moments, kept, ...)


def test_moments_that_are_kept_make_two_trainings_one(monkeypatch):
    """Adam goes on as if it had not been interrupted: 30 steps and 30 more are 60 on the same batches, its clock included."""
    start, data = ensemble(dtype=torch.float32), cloud(dtype=torch.float32)
    x, target = (torch.randn((64, 3, 8, k), generator=seeded(k)) for k in (3, 2))
    monkeypatch.setattr(training, "BLOCK", 64)
    monkeypatch.setattr(training._Course, "_drawn", lambda self, block: (x, target))
    (whole,) = train(start, data, recipe(60), 0)
    (first,) = train(start, data, recipe(30), 0)
    x, target = x[30:], target[30:]
    (second,) = train(first.parameters, data, recipe(30), 0, moments=first.moments)
    (fresh,) = train(first.parameters, data, recipe(30), 0)
    assert second.moments["step"] == 60
    assert same(whole, second)
    assert same(whole.moments, second.moments, ...)
    assert not same(whole, fresh)


class Killed(BaseException):
    """The process is dead."""


class Disk:
    """Work that keeps copies; its process dies at a report, or before or after something was saved, of a given number."""

    def __init__(self, where, number, due_every):
        self.kept, self.where, self.left, self.due_every, self.asked = None, where, number, due_every, 0

    def _reached(self, where):
        if where == self.where:
            self.left -= 1
            if self.left == 0:
                raise Killed

    def load(self):
        return None if self.kept is None else {name: value.copy() for name, value in self.kept.items()}

    def save(self, **arrays):
        self._reached("before a save")
        assert all(type(value) is np.ndarray for value in arrays.values())
        self.kept = {name: value.copy() for name, value in arrays.items()}
        self._reached("after a save")

    def due(self):
        self.asked += 1
        return self.asked % self.due_every == 0

    def report(self, done, total, **numbers):
        self._reached("a report")


STOPPING = {"stopping": EarlyStopping(held_out=0.3, every=4, patience=4), "rate": 0.05}
SAVED = {
    "plain": {},
    "several marks": {"marks": [3, 20, 21, 60]},
    "cosine": {"decay": "cosine", "clip": 1.0},
    "stopping": STOPPING,
    "averaged": {"average": 0.1, "marks": [20, 60]},
    "averaged and stopping": {"average": 0.1, **STOPPING},
    "moments": {"moments": True, "marks": [20, 60]},
}


@pytest.mark.parametrize("where", ["a report", "before a save", "after a save"])
@pytest.mark.parametrize("setting", SAVED)
def test_a_training_that_was_killed_anywhere_ends_with_the_bits_it_would_have_had(setting, where, blocks_of_seven):
    """Killed once, early or late, with every second block saved; and with every block saved, at every second of them."""
    options = dict(SAVED[setting])
    marks, kept = options.pop("marks", ()), options.pop("moments", False)
    start, data, plan = ensemble(), cloud(), recipe(60, **options)
    moments = train(start, data, recipe(10), 1)[0].moments if kept else None
    expected, deaths = train(start, data, plan, 7, marks, moments), []
    for number, due_every, again in ((1, 2, 0), (3, 2, 0), (2, 1, 2)):
        disk, found = Disk(where, number, due_every), None
        while found is None:
            try:
                found = train(start, data, plan, 7, marks, moments, disk)
            except Killed:
                deaths.append(disk.kept is not None)
                disk.left = again
        for one, two in zip(expected, found, strict=True):
            assert same(one, two)
            assert same(one.moments, two.moments, ...)

    assert sum(deaths) > 2


def test_a_training_that_was_saved_once_is_saved_whole_at_its_end(blocks_of_seven):
    """So that a kill in what comes after it, sampling say, costs none of it; one that took no time leaves nothing."""
    saves = {}
    for due_every in (5, 100):
        disk = Disk("never", 0, due_every)
        (trained,) = train(ensemble(), cloud(), recipe(60), 7, work=disk)
        saves[due_every] = disk.kept
    assert saves[100] is None
    assert (saves[5]["done"], saves[5]["at"]) == (1, 60)
    np.testing.assert_array_equal(saves[5]["mark.0.weight.0"], trained.parameters["weight.0"].numpy())


# --- what is drawn


def test_points_are_drawn_with_their_weights_and_a_point_of_no_weight_never():
    """Frequencies of 120,000 draws a member, in 4 standard errors of a binomial."""
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.2, 0.3, 0.0], [0.25, 0.25, 0.1, 0.0, 0.0, 0.4], [1 / 6] * 6], dtype=torch.float64)
    points = cloud(n=6, weights=weights)
    rows = points.rows((300, 3, 400), seeded(0))
    counts = torch.stack([torch.bincount(rows[:, r].flatten(), minlength=6) for r in range(3)]).double()
    assert (counts[weights == 0] == 0).all()
    total = 120_000
    assert ((counts / total - weights).abs() <= 4 * (weights * (1 - weights) / total).sqrt()).all()


def test_a_draw_between_two_points_is_of_the_next_that_has_weight(monkeypatch):
    """At u = 0 and at the boundaries of the cumulated weights, which are exact here; the last u is the largest there is."""
    u = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: u.reshape(4, 1, 1))
    points = cloud(members=1, n=6, weights=torch.tensor([[0.0, 0.25, 0.25, 0.0, 0.5, 0.0]], dtype=torch.float64))
    assert points.rows((4, 1, 1), seeded(0)).flatten().tolist() == [1, 2, 4, 4]


def test_a_batch_takes_every_stratum_of_noise_levels_once(batches):
    """ln s is the last input, 4 times: its place among the quantiles is that of its row."""
    train(ensemble(), cloud(), recipe(30, noise=Noise(mean=-0.3, std=1.4)), 0)
    log_s = torch.stack([4 * x[..., 2] for x, _ in batches])
    u = torch.special.ndtr((log_s + 0.3) / 1.4)
    edges = torch.arange(8) / 8
    assert ((u > edges.clip(EDGE) - 1e-6) & (u < edges + 1 / 8 + 1e-6)).all()


def test_the_mean_level_of_a_batch_has_the_variance_of_strata(batches):
    """(1/B^2) sum_i Var(ln s | stratum i), by quadrature, against 3 x 1000 batches of 8; iid levels are far above."""
    train(ensemble(sizes=(3, 2, 2)), cloud(), recipe(1000), 0)
    means = torch.stack([4 * x[..., 2] for x, _ in batches]).mean(dim=-1).flatten().numpy()

    def moment(k, i):
        return quad(lambda u: (-0.5 + 1.2 * ndtri(np.clip(u, EDGE, 1 - EDGE))) ** k, i / 8, (i + 1) / 8)[0] * 8

    expected = sum(moment(2, i) - moment(1, i) ** 2 for i in range(8)) / 64
    squares = (means + 0.5) ** 2
    error = squares.std() / math.sqrt(len(squares))
    assert abs(squares.mean() - expected) < 4 * error
    assert squares.mean() + 4 * error < 0.2 * 1.44 / 8


def test_labels_are_dropped_with_their_probability(batches):
    """A dropped label is all zeros; the share of the kept within 4 standard errors of 0.7, the marks those of the points."""
    data = cloud(classes=2)
    data.x[:] = 10.0 * (2 * data.labels[..., :1] - 1)
    train(ensemble(sizes=(5, 4, 2)), data, recipe(200, label_dropout=0.3), 0)
    marks = torch.stack([x[..., 3:] for x, _ in batches])
    kept = marks.sum(dim=-1)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(kept.mean() - 0.7) < 4 * math.sqrt(0.21 / kept.numel())
    clean = torch.stack([x[..., :2] / coefficients("edm", (4 * x[..., 2:3]).exp())[2] for x, _ in batches])
    low = 4 * torch.stack([x[..., 2] for x, _ in batches]) < 0
    assert ((clean[..., 0] > 0) == (marks[..., 0] == 1))[low & (kept == 1)].all()


# --- what is asked of a network


def exact_answer(x, s, prediction, mean, cov):
    """F* of N(mean, cov) in units of its scale, from the posterior mean D = m + S (S + s^2)^-1 (x - m)."""
    skip, out, _ = coefficients(prediction, s)
    values, vectors = torch.linalg.eigh(cov)
    turned = (x - mean) @ vectors
    denoised = mean + (turned * values / (values + s**2)) @ vectors.T
    return (denoised - skip * x) / out


@pytest.mark.parametrize("kind", ["lognormal", "logistic", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_exact_denoiser_of_a_gaussian_is_where_the_gradient_vanishes(prediction, kind):
    """E[(F* - target) f(input)] = 0 for f = 1, the inputs and their products, for data of scale 3.

    150,000 draws, 4 standard errors. A denoiser 3 % off is told apart."""
    scale, n = 3.0, 150_000
    mean, cov = torch.tensor([1.0, -0.4], dtype=torch.float64), torch.tensor([[1.2, 0.5], [0.5, 0.8]], dtype=torch.float64)
    x, z = (torch.randn((1, n, 2), generator=seeded(k), dtype=torch.float64) for k in (0, 1))
    data = scale * (mean + x @ torch.linalg.cholesky(cov).T)
    u = torch.rand((1, n, 1), generator=seeded(2), dtype=torch.float64)
    plan = recipe(prediction=prediction, noise=Noise(kind=kind))
    given, target = examples(data, None, u, z, torch.full((1,), scale, dtype=torch.float64), plan)
    s = (4 * given[..., 2:]).exp()
    c_in = coefficients(prediction, s)[2]
    noised = given[..., :2] / c_in
    f = torch.cat([torch.ones_like(s), given, given[..., :1] * given[..., 1:2], given[..., :2] ** 2], dim=-1)

    def z_score(answer):
        products = ((answer - target)[..., :, None] * f[..., None, :]).flatten(2)[0]
        return (products.mean(dim=0) / (products.std(dim=0) / math.sqrt(n))).abs().max()

    assert z_score(exact_answer(noised, s, prediction, mean, cov)) < 4
    assert z_score(exact_answer(noised, s, prediction, 1.03 * mean, 1.03**2 * cov)) > 6


# --- early stopping and averages


@pytest.fixture
def looks(monkeypatch):
    """(training, its step, parameters it looked at) of every look."""
    seen = []
    look = training._Course._look

    def watched(self, rule):
        look(self, rule)
        seen.append((self, self.step, {name: value.detach().clone() for name, value in self._now().items()}))

    monkeypatch.setattr(training._Course, "_look", watched)
    return seen


def held_out_loss(course, parameters):
    error = (mlp.forward(parameters, course.held_out[0]) - course.held_out[1]).square().sum(dim=-1)
    return (course.held_weights * error).sum(dim=1) / course.held_weights.sum(dim=1)


@pytest.mark.parametrize("average", [None, 0.05])
def test_the_parameters_kept_are_those_of_the_least_loss_on_points_held_out(average, looks):
    """6 points and a patience without end: the loss on the points held out falls and rises again."""
    rule = EarlyStopping(held_out=0.3, every=10, patience=1000)
    plan = recipe(600, rate=0.03, stopping=rule, average=average)
    (trained,) = train(mlp.initialised(3, (3, 32, 2), seeded(0), dtype=torch.float64), cloud(n=6), plan, 0)
    course = looks[0][0]
    losses_seen = torch.stack([held_out_loss(course, parameters) for _, _, parameters in looks])
    assert torch.equal(held_out_loss(course, trained.parameters), losses_seen.min(dim=0).values)
    assert (losses_seen.min(dim=0).values < 0.95 * losses_seen[-1]).all()


def test_no_point_held_out_is_trained_on_and_their_share_is_the_one_asked_for(looks, batches):
    """Coordinates tell the points apart: no noise to speak of."""
    noise = Noise(mean=-12.0, std=1e-3)
    train(ensemble(), cloud(), recipe(60, noise=noise, stopping=EarlyStopping(held_out=0.3, every=60, patience=1)), 0)
    course = looks[0][0]
    trained = torch.stack([x[..., :2] for x, _ in batches])
    for r in range(3):
        held = course.held_out[0][r, :, :2]
        rows = torch.cdist(held, cloud().x[r]).argmin(dim=1)
        assert len(rows.unique()) == 12
        drawn = torch.cdist(trained[:, r].reshape(-1, 2), cloud().x[r]).argmin(dim=1)
        assert not set(rows.tolist()) & set(drawn.tolist())
        assert len(drawn.unique()) == 28


@pytest.mark.parametrize("other", [0.01, 50.0, math.nan])
def test_every_member_stops_for_itself(other, looks):
    """What another learns, and how long, changes neither the parameters of a member nor the step at which it failed."""
    plan = recipe(2000, rate=0.03, stopping=EarlyStopping(held_out=0.3, every=5, patience=2))
    data = cloud(n=12, dtype=torch.float32)
    x = data.x.clone()
    x[1] *= other
    start = ensemble(dtype=torch.float32)
    one, two = (train(start, points, plan, 0)[0] for points in (data, replace(data, x=x)))
    assert same(one, two, [0, 2])
    assert max(step for _, step, _ in looks) < 2000


def test_a_failure_after_a_member_has_stopped_is_none(monkeypatch):
    """Member 0 stops at its third look; the others go on, and it is not asked how it fares."""
    calls = []

    def failing(parameters, x, target):
        calls.append(None)
        factor = torch.ones(3, dtype=torch.float64)
        factor[0] = math.nan if len(calls) > 30 else 1.0
        return factor * losses(parameters, x, target)

    monkeypatch.setattr(training, "losses", failing)
    plan = recipe(100, rate=0.1, stopping=EarlyStopping(held_out=0.3, every=5, patience=1))
    data = cloud(n=12)
    data.x[1] *= 0  # learns for long
    (trained,) = train(ensemble(), data, plan, 0)
    assert len(calls) > 30
    assert all(value[0].isfinite().all() for value in trained.parameters.values())
    assert trained.failed[0] == 0


def test_points_of_no_weight_are_neither_held_out_nor_trained_on(looks, batches):
    """A member whose weight lies on two of 40 points holds out one of them and learns the other."""
    weights = torch.zeros((3, 40), dtype=torch.float64)
    weights[:, 5] = weights[:, 30] = 0.5
    data = cloud(weights=weights)
    data.x[:, :5] = data.x[:, 6:30] = data.x[:, 31:] = 1e9
    plan = recipe(60, stopping=EarlyStopping(held_out=0.5, every=5, patience=100))
    (trained,) = train(ensemble(), data, plan, 0)
    assert all((x[..., :2] * (4 * x[..., 2:]).exp()).abs().max() < 1e6 for x, _ in batches)
    assert (looks[-1][0].least < 1e6).all()
    assert same(trained, train(ensemble(), replace(data, x=data.x.clamp(max=50)), plan, 0)[0])


def test_without_a_look_the_last_parameters_are_kept():
    start, data, rule = ensemble(), cloud(), EarlyStopping(held_out=0.3, every=1000, patience=1)
    one, two = (train(start, data, recipe(steps, stopping=rule), 0)[0] for steps in (20, 21))
    assert not same(one, two)
    assert not same(one.parameters, start)


@pytest.mark.parametrize("held_out", [0.0, 1.0])
def test_all_points_or_none_cannot_be_held_out(held_out):
    with pytest.raises(ValueError, match="held_out must lie between 0 and 1"):
        EarlyStopping(held_out=held_out)


def test_an_average_is_that_of_the_parameters_after_every_step():
    start, data = ensemble(), cloud()
    average = PowerAverage(0.1)
    for trained in train(start, data, recipe(25), 4, marks=range(1, 26)):
        average.update(trained.parameters)
    (found,) = train(start, data, recipe(25, average=0.1), 4)
    for name, value in found.parameters.items():
        torch.testing.assert_close(value, average.value[name], rtol=0, atol=1e-14)
