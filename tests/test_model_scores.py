"""Scores of rows by models: the closed forms of a Gaussian, gradients one by one, leaving rows out for real."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from selfloop.algorithms.categorical import CategoricalFit
from selfloop.algorithms.edm import Edm
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.algorithms.mixture import MixtureFit
from selfloop.algorithms.neon import Neon
from selfloop.algorithms.score_net import ScoreNetFit
from selfloop.curate import denoising, dynamics, moso
from selfloop.curate.denoising import DenoisingGradient, DenoisingLoss
from selfloop.curate.dynamics import El2n, Forgetting, GraNd
from selfloop.curate.moso import Moso
from selfloop.diffusion import rowwise
from selfloop.diffusion.train import LearningRate
from selfloop.diffusion.unet import UNet
from selfloop.embed.classifier import network
from selfloop.measure import Measure, Rows
from selfloop.protocols import Score
from selfloop.work import FolderWork

NET = ScoreNetFit(width=8, layers=1, batch=16, budget=0.00048)
CLASSED = ScoreNetFit(width=8, layers=1, batch=16, budget=0.00048, classes=2)
UNET = UNet(channels=4, multipliers=(1,), blocks=1, attention=(8,))
EDM = Edm(network=UNET, batch=32, budget=0.00032, classes=2, learning_rate=LearningRate(rate=1e-2, warmup=0.0))
EARLY = {"runs": 2, "epochs": 2, "width": 16}
SCORES = [
    DenoisingLoss(algorithm=GaussianFit()),
    DenoisingLoss(algorithm=MixtureFit(components=2)),
    DenoisingLoss(algorithm=CLASSED, levels=3),
    DenoisingGradient(algorithm=CLASSED, levels=2),
    Moso(algorithm=CLASSED, budget=0.00016, checkpoints=2, levels=2, draws=2),
    Forgetting(runs=2, epochs=4, width=16),
    El2n(**EARLY),
    GraNd(**EARLY),
    GraNd(**EARLY, parameters="all"),
]
OF_IMAGES = [
    DenoisingLoss(algorithm=EDM, levels=2, draws=1),
    DenoisingGradient(algorithm=EDM, levels=2, draws=1),
    Moso(algorithm=EDM, budget=0.00032, checkpoints=1, levels=1, draws=1),
    *SCORES[5:],
]
by_name = {"ids": lambda score: type(score).__name__}


def rng(seed=0):
    return np.random.default_rng(seed)


def vectors(n=60, d=2, seed=0):
    """Two classes of vectors, one wider than the other."""
    labels = np.arange(n) % 2
    points = rng(seed).standard_normal((n, d)) * (1 + labels[:, None]) + 3 * labels[:, None]
    return Measure.uniform(points, labels, batch=0)


def images(n=24):
    points = rng(1).integers(0, 256, (n, 1, 8, 8)).astype(np.uint8)
    return Measure.uniform(points, np.arange(n) % 2, batch=0)


@pytest.mark.parametrize("score", SCORES, **by_name)
def test_a_score_is_a_finite_number_a_row_and_the_same_for_the_same_stream(score):
    data = vectors()
    one, two = (score(data, rng(3)) for _ in range(2))
    assert isinstance(score, Score)
    assert (one.shape, one.dtype) == ((60,), np.dtype(np.float64))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, score(data, rng(4)))


@pytest.mark.parametrize("score", OF_IMAGES, **by_name)
def test_images_that_are_read_as_rows_score_as_an_array_does(score):
    data = images()
    lazy = Measure(Rows((data.points[:10], data.points[10:]), np.arange(24)), data.weights, data.labels)
    found = score(data, rng(3))
    np.testing.assert_array_equal(score(lazy, rng(3)), found)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("score", SCORES, **by_name)
def test_equal_rows_score_alike(score):
    data = vectors(40)
    points, labels = np.concatenate([data.points, data.points[:7]]), np.concatenate([data.labels, data.labels[:7]])
    found = score(Measure.uniform(points, labels, batch=0), rng(3))
    np.testing.assert_allclose(found[40:], found[:7], rtol=1e-4, atol=1e-6)  # float32


# The denoising loss


def own(seed, event):
    """Noise of its own for every row."""
    return lambda level, draw, rows: rng([seed, level, draw, rows.start]).standard_normal((rows.stop - rows.start, *event))


def expected(x, sigma):
    """E_z |D(x_i + sigma z) - x_i|^2 / d for the Gaussian of the rows' mean and covariance, (n,)."""
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    along, gain = (x - x.mean(axis=0)) @ vectors, values / (values + sigma**2)
    return (((1 - gain) * along) ** 2 + (gain * sigma) ** 2).mean(axis=1)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 5.0])
def test_the_loss_of_a_gaussian_is_the_closed_form_at_each_row_and_over_the_data(sigma, draws=16):
    """400 rows with independent noise: the mean residual has a standard error, and the bound is 4 of them."""
    data = vectors(400, d=3)
    model = GaussianFit().fit(data, rng())
    found = denoising.losses(model, data, np.array([sigma]), draws, own(5, (3,)))[:, 0]
    residual = found - expected(data.points, sigma)
    assert abs(residual.mean()) < 4 * residual.std() / np.sqrt(data.n)
    values = np.linalg.eigvalsh(model.fitted.cov)
    over_data = np.mean(values * sigma**2 / (values + sigma**2))
    np.testing.assert_allclose(expected(data.points, sigma).mean(), over_data, rtol=1e-9)


def test_noise_that_rows_share_lowers_the_variance_of_the_differences_of_their_losses(repeats=200):
    data = vectors(30, d=4)
    model, sigmas = GaussianFit().fit(data, rng()), np.array([0.5, 2.0])
    shared, apart = [], []
    for seed in range(repeats):
        z = rng([9, seed]).standard_normal((2, 1, 4))
        shared.append(denoising.losses(model, data, sigmas, 1, lambda level, draw, _, z=z: z[level, draw]).sum(axis=1))
        apart.append(denoising.losses(model, data, sigmas, 1, own(seed, (4,))).sum(axis=1))
    spread = [np.var(np.array(found)[:, :, None] - np.array(found)[:, None, :], axis=0).mean() for found in (shared, apart)]
    assert spread[0] < 0.7 * spread[1]


@given(st.permutations(range(40)))
def test_the_order_of_the_rows_does_not_matter(order):
    data = vectors(40)
    score = DenoisingLoss(algorithm=GaussianFit())
    found = score(data, rng(3))
    np.testing.assert_allclose(score(data.subset(np.array(order)), rng(3)), found[order], rtol=1e-9)


@given(hnp.arrays(np.int64, 12, elements=st.integers(1, 4)))
def test_a_row_of_whole_weight_scores_as_its_copies_do(copies):
    data = vectors(12)
    score = DenoisingLoss(algorithm=GaussianFit(), draws=1)
    weighted = score(data.reweighted(copies.astype(float)), rng(3))
    repeated = score(data.subset(np.repeat(np.arange(12), copies)), rng(3))
    np.testing.assert_allclose(repeated, np.repeat(weighted, copies), rtol=1e-9)


@given(hnp.arrays(float, (9, 4), elements=st.just(0.0) | st.floats(1e-6, 1e3)))
def test_relative_losses_have_mean_one_and_count_every_level_alike(found):
    weights = np.arange(1, 10) / 45
    relative = denoising.relative(found, weights)
    np.testing.assert_allclose(weights @ relative, 1)
    np.testing.assert_allclose(
        denoising.relative(found * np.array([1, 7, 0.2, 1e3]), weights), relative, rtol=1e-9, atol=1e-300
    )


def test_outliers_have_high_loss_under_every_surrogate_that_sees_few_of_them():
    data = vectors(100)
    points = data.points.copy()
    points[:3] = [[12, -12], [-12, 12], [14, 14]]
    for algorithm in (GaussianFit(), MixtureFit(components=2)):
        found = DenoisingLoss(algorithm=algorithm)(Measure.uniform(points, data.labels, batch=0), rng(3))
        assert set(np.argsort(found)[-3:]) == {0, 1, 2}


@dataclass
class Listening:
    """A denoiser that answers 0 and remembers the labels it is given."""

    gives = frozenset({"denoise"})

    def __post_init__(self):
        self.heard = []

    def fit(self, data, rng, work=None):
        return self

    def restore(self, state):
        return self

    def denoise(self, x, sigma, labels=None):
        self.heard.append(None if labels is None else list(labels))
        return np.zeros_like(x)


def test_the_labels_of_the_rows_go_to_the_model():
    listening, data = Listening(), vectors(6)
    DenoisingLoss(algorithm=listening, levels=1, draws=1)(data, rng())
    DenoisingLoss(algorithm=listening, levels=1, draws=1)(Measure(data.points, data.weights), rng())
    assert listening.heard == [[0, 1, 0, 1, 0, 1], None]


def test_levels_are_quantiles_of_the_law_of_noise_in_units_of_the_data():
    data = vectors(50)
    sigmas = denoising.Probe(levels=3).sigmas(data)
    scale = np.sqrt(data.points.var(axis=0).mean())
    np.testing.assert_allclose(sigmas, scale * np.exp(-0.5 + 1.2 * np.array([-0.9674216, 0, 0.9674216])), rtol=1e-6)
    bytes_, floats = images(), Measure.uniform(images().points / 127.5 - 1, batch=0)
    np.testing.assert_allclose(denoising.unit(bytes_), denoising.unit(floats), rtol=1e-6)


# Gradients of rows


def losses_one_by_one(model, data, sigmas, z, weights):
    """sum_l v_l loss_i(sigma_l) of every row by a loop, and the parameters that know their gradients."""
    parameters = {name: value.clone().requires_grad_() for name, value in model.tensors.items()}
    out = []
    for i, row in enumerate(denoising.clean(data.points)):
        x, total = model.lift(row), 0
        for sigma, v, noise in zip(sigmas, weights, z, strict=True):
            for one in noise:
                marks = model.marks(data.labels[i : i + 1], 1)
                error = model.denoised(parameters, (x + sigma * model.lift(one))[None], float(sigma), marks)[0] - x
                total = total + v * error.square().mean() / len(noise)
        out.append(total)
    return out, parameters


def gradients_one_by_one(model, data, sigmas, z, weights):
    found, parameters = losses_one_by_one(model, data, sigmas, z, weights)
    values = list(parameters.values())
    rows = (torch.autograd.grad(one, values, allow_unused=True, materialize_grads=True) for one in found)
    return np.stack([torch.cat([part.flatten() for part in row]).numpy() for row in rows])


@pytest.mark.parametrize("style", ["vectors", "ddpmpp", "adm", "edm2"])
def test_gradients_of_rows_at_once_are_those_of_one_row_after_the_other(style):
    unet = UNet(style=style, channels=4, multipliers=(1, 1), blocks=1, attention=(4,)) if style != "vectors" else UNET
    settings = {"batch": 32, "budget": 0.00032, "classes": 2, "learning_rate": EDM.learning_rate}
    algorithm, data = (CLASSED, vectors(5)) if style == "vectors" else (Edm(network=unet, **settings), images(4))
    model = algorithm.fit(data, rng())
    model.denoise(denoising.clean(data.points), 0.3, data.labels)  # which runs without gradients
    sigmas, z, weights = np.array([0.2, 1.0]), rng(4).standard_normal((2, 2, *data.event)), np.array([1.0, 3.0])
    found = rowwise.gradients(model, denoising.clean(data.points), data.labels, sigmas, z, weights)
    brute = gradients_one_by_one(model, data, sigmas, z, weights)
    np.testing.assert_allclose(found.numpy(), brute, rtol=1e-3, atol=2e-6 * np.abs(brute).max() + 1e-7)
    np.testing.assert_allclose(rowwise.squared_norms(found), (brute**2).sum(axis=1), rtol=1e-4)


def test_the_gradient_score_is_its_definition():
    data = vectors(12)
    score = DenoisingGradient(algorithm=CLASSED, levels=3, draws=2)
    fit_rng, noise_rng = rng(3).spawn(2)
    model, sigmas, z = CLASSED.fit(data, fit_rng), score.sigmas(data), noise_rng.standard_normal((3, 2, 2))
    norms = np.zeros((12, 3))
    for k in range(3):
        norms[:, k] = (gradients_one_by_one(model, data, sigmas[k : k + 1], z[k : k + 1], [1.0]) ** 2).sum(axis=1)
    np.testing.assert_allclose(score(data, rng(3)), (norms / norms.mean(axis=0)).mean(axis=1), rtol=1e-4)


# MoSo


@given(hnp.arrays(float, (6, 3), elements=st.floats(-10, 10)))
def test_moso_is_the_product_with_the_mean_gradient_of_the_others(g):
    n, others = len(g), (g.sum(axis=0) - g) / (len(g) - 1)
    found = moso.agreement(torch.tensor(g), np.full(n, 1 / n), g.mean(axis=0))
    np.testing.assert_allclose(found, (n - 1) / n * (others * g).sum(axis=1), atol=1e-9)


def test_moso_ranks_rows_as_leaving_each_of_them_out_does(n=40, steps=8, rate=0.1):
    """Gradient descent on mean_i |A_i (theta - x_i)|^2 / 2, on all rows and without each: the change of the others' risk."""
    x, curvature = rng(1).standard_normal((n, 2)) * 2, rng(2).uniform(0.5, 1.5, (n, 2))

    def trained(rows):
        theta, path = np.array([6.0, -4.0]), []
        for _ in range(steps):
            path.append(theta)
            theta = theta - rate * (curvature[rows] * (theta - x[rows])).mean(axis=0)
        return theta, path

    def risk(theta, rows):
        return (curvature[rows] * (theta - x[rows]) ** 2).sum(axis=1).mean() / 2

    everyone = np.arange(n)
    theta, path = trained(everyone)
    without = [np.delete(everyone, i) for i in everyone]
    true = [risk(trained(rows)[0], rows) - risk(theta, rows) for rows in without]
    gradients = [curvature * (at - x) for at in path]
    found = np.mean([moso.agreement(torch.tensor(g), np.full(n, 1 / n), g.mean(axis=0)) for g in gradients], axis=0)
    assert spearmanr(found, true).statistic > 0.9


def test_moso_of_a_network_is_its_definition():
    data = vectors(10).reweighted(np.arange(1.0, 11))
    score = Moso(algorithm=CLASSED, budget=0.00016, checkpoints=2, levels=2, draws=2)
    fit_rng, tune_rng, noise_rng = rng(3).spawn(3)
    first, z = CLASSED.fit(data, fit_rng), noise_rng.standard_normal((2, 2, 2))
    sigmas, w, total = score.sigmas(data), data.weights, np.zeros(10)
    for model in CLASSED.tune(first, data, [0.0, 0.00016], tune_rng):
        level = [
            w @ [one.item() for one in losses_one_by_one(model, data, [s], z[k : k + 1], [1.0])[0]]
            for k, s in enumerate(sigmas)
        ]
        g = gradients_one_by_one(model, data, sigmas, z, 0.5 / np.array(level)).astype(float)
        total += ((w @ g - w[:, None] * g) * g).sum(axis=1) / 2
    np.testing.assert_allclose(score(data, rng(3)), total, rtol=1e-3, atol=1e-5)


# Classifiers


@given(hnp.arrays(bool, st.tuples(st.integers(2, 6), st.integers(1, 5))))
def test_forgetting_counts_the_falls_from_right_to_wrong(right):
    falls = np.array([sum(a and not b for a, b in itertools.pairwise(row)) for row in right.T.tolist()])
    found = dynamics.forgotten(right)
    np.testing.assert_array_equal(found, np.where(right.any(axis=0), falls, falls.max() + 1))


def test_a_row_that_is_never_learned_has_one_more_than_the_most_forgotten():
    right = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 1]], dtype=bool)
    np.testing.assert_array_equal(dynamics.forgotten(right), [2, 3, 0, 1])


@pytest.mark.parametrize("event", [(3,), (1, 8, 8)])
def test_gradients_of_a_classifier_are_those_of_autograd_and_its_last_layer_has_a_closed_form(event):
    net = network(event, 4, 16, torch.Generator().manual_seed(0))
    x, y = torch.randn((5, *event), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 1, 1, 2])
    brute = {"all": [], "last": []}
    for row, label in zip(x, y, strict=True):
        loss = torch.nn.functional.cross_entropy(net(row[None]), label[None])
        for which, parameters in (("all", net.parameters()), ("last", net[-1].parameters())):
            gradients = torch.autograd.grad(loss, list(parameters), retain_graph=True)
            brute[which].append(float(sum(g.square().sum() for g in gradients).sqrt()))
    np.testing.assert_allclose(dynamics.gradient_norms(net, x, y).detach(), brute["all"], rtol=1e-4)
    np.testing.assert_allclose(dynamics.last_layer_norms(net, x, y).detach(), brute["last"], rtol=1e-4)


def test_rows_with_a_wrong_label_are_far_from_it_and_have_steep_losses():
    labels = np.repeat([0, 1], 60)
    points = 100 + 10 * (rng(5).standard_normal((120, 2)) + 4 * labels[:, None])
    given = labels.copy()
    given[:6] = 1
    data = Measure.uniform(points, given, batch=0)
    scores = [kind(runs=3, epochs=8, batch=20, width=16) for kind in (El2n, GraNd)]
    for score in scores:
        found = score(data, rng(1))
        assert (found[:6, None] > found[None, 6:]).mean() > 0.95
    assert scores[0](data, rng(1)).max() <= np.sqrt(2)


def test_forgetting_is_the_mean_over_runs_of_what_each_network_forgets_from_one_epoch_to_the_next():
    data, score = vectors(40), Forgetting(runs=2, epochs=5, batch=8, width=16, rate=0.03)
    problem, counts = dynamics._Problem.of(data), []
    x, y, _ = problem.taken(np.arange(40), "cpu")
    for stream in rng(3).spawn(2):
        right = [(net(x).argmax(dim=1) == y).numpy() for net in score._epochs(problem, stream)]
        counts.append(dynamics.forgotten(np.stack(right)))
    np.testing.assert_array_equal(score(data, rng(3)), np.mean(counts, axis=0))
    assert np.ptp(counts) > 0


def test_a_row_of_no_weight_does_not_train_the_classifier():
    data = vectors(40)
    points = data.points.copy()
    points[::5] = 0.5
    weights = np.where(np.arange(40) % 5 == 0, 0.0, 1.0) / 32
    unscaled = dynamics._Problem.of(Measure(points, weights, data.labels))
    net = {}
    for name, labels in (("as they are", data.labels), ("turned", np.where(weights == 0, 1 - data.labels, data.labels))):
        problem = dynamics._Problem(unscaled.data, labels, unscaled.shift, unscaled.unit)
        *_, net[name] = El2n(**EARLY)._epochs(problem, rng(2))
    for one, two in zip(*(found.parameters() for found in net.values()), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


# Killed and continued


class Killed(BaseException):
    """The process is dead."""


@pytest.mark.parametrize(
    "score",
    [
        DenoisingLoss(algorithm=CLASSED, levels=2, draws=1),
        DenoisingGradient(algorithm=CLASSED, levels=2, draws=1),
        Moso(algorithm=CLASSED, budget=0.00016, checkpoints=3, levels=1, draws=1),
        El2n(runs=3, epochs=1, width=16),
    ],
    **by_name,
)
def test_a_score_that_was_killed_goes_on_and_ends_where_it_would_have_ended(score, tmp_path, monkeypatch):
    monkeypatch.setattr(denoising, "BLOCK", 16)
    monkeypatch.setattr(rowwise, "ROWS", 16)
    data, told = vectors(), []

    def fatal(names, done, total, **numbers):
        told.append((names, done))
        if names in ((), ("losses",), ("gradients",)) and len(told) > 1 and done > total / 4:
            raise Killed

    with pytest.raises(Killed):
        score(data, rng(3), FolderWork(tmp_path, every=0, tell=fatal))
    before = len(told)
    found = score(data, rng(3), FolderWork(tmp_path, every=0, tell=lambda names, done, total, **_: told.append((names, done))))
    assert told[before:]
    assert told[before:] != told[: len(told) - before]
    blocks = [one for one in told if one[0] in (("losses",), ("gradients",))]
    assert len(blocks) == len(set(blocks))  # none is computed twice
    np.testing.assert_array_equal(found, score(data, rng(3)))


# What cannot be


@pytest.mark.parametrize("score", SCORES[5:], **by_name)
def test_classifiers_ask_for_labels_of_two_classes(score):
    data = vectors(20)
    with pytest.raises(ValueError, match="labelled rows, and these have no labels"):
        score(Measure(data.points, data.weights), rng())
    with pytest.raises(ValueError, match="two classes or more, got 0"):
        score(Measure(data.points, data.weights, np.zeros(20, dtype=int)), rng())


def test_a_surrogate_must_give_what_the_score_is_made_of():
    with pytest.raises(ValueError, match="gives no parameters"):
        DenoisingGradient(algorithm=GaussianFit())
    with pytest.raises(ValueError, match="gives no parameters"):
        DenoisingGradient(algorithm=Neon(algorithm=NET, n_synthetic=10, budget=0.00016))
    with pytest.raises(ValueError, match="gives no denoise and no parameters"):
        DenoisingGradient(algorithm=CategoricalFit())
    with pytest.raises(ValueError, match="at least one batch"):
        Moso(algorithm=NET, budget=1e-9)
    with pytest.raises(ValueError, match="multiple of 16"):
        El2n(width=20)


def test_rows_that_are_all_alike_and_losses_that_are_not_finite_are_errors():
    same = Measure.uniform(np.ones((10, 2)), np.arange(10) % 2, batch=0)
    with pytest.raises(ValueError, match="standard deviation of 0"):
        denoising.unit(same)
    found = np.ones((4, 2))
    found[2, 1] = np.nan
    with pytest.raises(FloatingPointError, match="row 2 is not finite"):
        denoising.relative(found, np.full(4, 0.25))
