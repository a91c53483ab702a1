"""EDM on images: the training does not depend on how it is cut, and the model on how it is sampled.

Networks are tiny (8 x 8 pixels, some thousand parameters): what is tested is true of any network."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from selfloop.algorithms.autoguidance import Autoguidance
from selfloop.algorithms.edm import Edm
from selfloop.algorithms.neon import Neon
from selfloop.algorithms.sims import Sims
from selfloop.config import load
from selfloop.diffusion import snapshot
from selfloop.diffusion import train as training
from selfloop.diffusion.noise import Noise
from selfloop.diffusion.sample import Sampler
from selfloop.diffusion.train import LearningRate, Machine
from selfloop.diffusion.unet import UNet
from selfloop.measure import Measure
from selfloop.reading import read
from selfloop.work import FolderWork

BATCH = 16
STEP = BATCH / 1e6
NETWORK = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=())
STEPS = Sampler(kind="heun", steps=3, sigma_max=10.0, sigma_min=0.1)


def rng(seed=0):
    return np.random.default_rng(seed)


def digits(n=100, weights=None):
    images, labels = load_digits(return_X_y=True)
    points = np.rint(images[:n] * (255 / 16)).astype(np.uint8).reshape(n, 1, 8, 8)
    data = Measure.uniform(points, labels[:n].astype(np.int64), batch=0)
    return data if weights is None else data.reweighted(weights)


def edm(steps=6, **options):
    given = {"network": NETWORK, "batch": BATCH, "budget": steps * STEP, "sampler": STEPS, "average": 0.1}
    rate = LearningRate(rate=1e-2, warmup=0.0)
    return Edm(**given | {"learning_rate": rate, "tune_learning_rate": rate} | options)


def same(a, b):
    return a.parameters.keys() == b.parameters.keys() and all(
        np.array_equal(value, b.parameters[name]) for name, value in a.parameters.items()
    )


def close(a, b, tolerance):
    return max(np.abs(a.parameters[k] - b.parameters[k]).max() for k in a.parameters) < tolerance


class Cut(Exception):
    """A kill."""


class CutWork(FolderWork):
    """A work that saves at every look and is cut at the first after `stop` images."""

    stop = 0

    def at(self, name):
        part = super().at(name)
        cut = CutWork(part.folder, part.every, part.tell)
        cut.stop = self.stop
        return cut

    def due(self):
        return True

    def save(self, **arrays):
        super().save(**arrays)
        if 0 < self.stop <= int(arrays["seen"]):
            raise Cut


# --- the training


def test_a_fit_that_was_cut_ends_where_it_would_have_ended(tmp_path):
    whole = edm(40).fit(digits(), rng())
    work = CutWork(tmp_path)
    work.stop = 16 * BATCH
    with pytest.raises(Cut):
        edm(40).fit(digits(), rng(), work)
    assert same(edm(40).fit(digits(), rng(), FolderWork(tmp_path)), whole)


def test_a_batch_that_is_cut_gives_the_same_gradients():
    """To rounding: 6 steps of at most 1e-2 each make some 1e-4 of an error of 1e-7 in a gradient, where Adam divides by it."""
    whole = edm(3).fit(digits(), rng())
    parts = edm(3, machine=Machine(micro_batch=5)).fit(digits(), rng())
    assert close(whole, parts, 1e-3)
    assert not close(whole, edm(3).fit(digits(), rng(1)), 1e-3)


def test_data_that_stay_on_the_disk_are_the_same_data(monkeypatch):
    near = edm(20).fit(digits(), rng())
    monkeypatch.setattr(training, "ON_DEVICE", 0)
    assert same(edm(20).fit(digits(), rng()), near)


SCRIPT = """
import sys, json
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_edm import Machine, digits, edm, rng
from selfloop import ranks
from selfloop.diffusion.train import train
with ranks.joined():
    algorithm = edm(8, batch=128, budget=8 * 128 / 1e6, classes=10, loss_weight="learned", machine=Machine(micro_batch=48))
    images, event, _ = algorithm._images(digits())
    network = algorithm.built(event, torch.Generator().manual_seed(0))
    losses = []
    class Heard:
        shelf = None
        def load(self): return None
        def due(self): return False
        def save(self, **arrays): pass
        def report(self, done, total, loss, images_per_second): losses.append(loss)
    recipe = algorithm._recipe(algorithm.learning_rate, (0.1,), None)
    import selfloop.diffusion.train as training
    training.LOOK = 1
    (trained,) = train(network, images, recipe, 5, [8 * 128], Heard())
    if ranks.rank() == 0:
        np.savez({out!r}, losses=losses, **trained.averages[0.1])
"""


def trained_by(processes, folder):
    """Loss curve, of rank 0's part if there are several, and averages."""
    out, script = folder / f"{processes}.npz", folder / f"{processes}.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(processes)
    ]
    assert [process.wait(120) for process in started] == [0] * processes
    with np.load(out) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    one, two = (trained_by(processes, tmp_path) for processes in (1, 2))
    np.testing.assert_allclose(two.pop("losses"), one.pop("losses"), rtol=1e-4)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=2e-3, err_msg=name)


def test_weights_mean_the_same_in_the_sampler_and_in_the_loss():
    """The mean image that a step sees, over 400 steps of 16, along 8 directions: each way within 4 standard errors of
    sum_i w_i x_i."""
    w = rng(1).random(100) ** 4
    data = digits(weights=w / w.sum())
    along = rng(2).standard_normal((64, 8))
    x = (data.points.reshape(100, -1) / 127.5 - 1) @ along / 0.5
    exact = data.weights @ x
    for place in ("sampler", "loss"):
        algorithm = edm(weights=place, noise=Noise(mean=-20.0, std=0.1), prediction="sample")
        images, event, _ = algorithm._images(data)
        course = training._Course(
            algorithm.built(event, torch.Generator()), images, algorithm._recipe(LearningRate(), (0.1,), None), 0
        )
        seen = []
        for step in range(400):
            batch = course._batch(step)
            seen.append((batch.weights[:, None] * batch.target.flatten(1)).mean(dim=0).numpy() @ along)
        error = np.std(seen, axis=0) / 400**0.5
        assert (np.abs(np.mean(seen, axis=0) - exact) <= 4 * error).all(), place
        assert (np.abs(x.mean(axis=0) - exact) > 4 * error).any(), "weights matter"


def test_a_rate_rises_to_its_value_and_falls_with_the_root():
    rate = LearningRate(kind="inverse_sqrt", rate=1.0, warmup=2.0, reference=8.0)
    assert [rate.at(m) for m in (1.0, 2.0, 8.0, 32.0)] == [0.5, 1.0, 1.0, 0.5]
    assert LearningRate(rate=1.0, warmup=2.0).at(32.0) == 1.0


def test_a_length_that_was_not_tracked_is_made_from_snapshots(tmp_path):
    """Two lengths tracked and 10 snapshots: the average of the length between is that which tracking gives, to the error that
    `posthoc` allows, a tenth of the profile, of what parameters move."""
    tracked = edm(80, average=0.1).fit(digits(), rng())
    untracked = edm(80, average=0.1, tracked=(0.08, 0.15), snapshot=8 * STEP)
    made = untracked.fit(digits(), rng(), FolderWork(tmp_path / "w", shelf=tmp_path))
    other = edm(80, average=0.15).fit(digits(), rng())
    moved = max(np.abs(tracked.parameters[k] - other.parameters[k]).max() for k in tracked.parameters)
    assert close(tracked, made, 0.1 * moved)
    assert len(list(tmp_path.glob("network-*.safetensors"))) > 0
    assert same(untracked.fit(digits(), rng()), made), "without a shelf too"


def test_a_tuning_has_an_average_of_its_own_length():
    base = edm(4).fit(digits(), rng())
    long, short, same_length = (next(edm(4, tune_average=a).tune(base, digits(), [8 * STEP], rng(1))) for a in (0.2, 0.05, 0.1))
    assert same(same_length, next(edm(4).tune(base, digits(), [8 * STEP], rng(1))))
    assert not same(long, short)
    assert same(edm(4, tune_average=0.2).fit(digits(), rng()), base)


def test_snapshots_come_with_a_picture_and_start_another_training(tmp_path):
    settings = {"snapshot": 4 * STEP, "average": 0.1}
    model = edm(8, **settings).fit(digits(), rng(), FolderWork(tmp_path / "work", shelf=tmp_path / "shelf"))
    assert len(list((tmp_path / "shelf").glob("*.png"))) > 0
    (*_, last) = sorted((tmp_path / "shelf").glob("*.safetensors"))
    assert same(edm(budget=0.0, start=str(last)).fit(digits(), rng(5)), model)
    assert snapshot.about(last)["images"] == 8 * BATCH
    with pytest.raises(ValueError, match=r"other settings.*network"):
        edm(budget=0.0, start=str(last), network=UNet(channels=4, multipliers=(1,), blocks=1, attention=()))


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(ValueError, match="pickle files"):
        edm(start=str(tmp_path / name))


def test_a_snapshot_that_is_missing_or_damaged_says_so(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        edm(start=str(tmp_path / "network-000000.safetensors"))
    work = FolderWork(tmp_path / "work", shelf=tmp_path)
    edm(4, snapshot=4 * STEP).fit(digits(), rng(), work)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        edm(start=str(path), budget=0.0).fit(digits(), rng())


def test_a_batch_that_does_not_fit_names_one_that_does(monkeypatch):
    whole = training._Course._loss

    def loss(self, batch, network=None):
        if len(batch.x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, batch, network)

    monkeypatch.setattr(training._Course, "_loss", loss)
    with pytest.raises(MemoryError, match=r"16 images at once.*set micro_batch: 4"):
        edm().fit(digits(), rng())


def test_a_loss_that_stays_infinite_ends_the_training(monkeypatch):
    def loss(self, batch, network=None):
        return self.network(batch.x, batch.noise, None, None).sum() * np.nan

    monkeypatch.setattr(training._Course, "_loss", loss)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        edm(100).fit(digits(), rng())


@pytest.mark.parametrize(("scale", "moves"), [(1.0, True), (2.0**127, False)])
def test_a_step_whose_scaled_gradients_overflow_is_left_out(monkeypatch, scale, moves):
    """The overflow is looked for before gradients that are not finite are mended; fp16 scales losses, here float32 does."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, init_scale=scale))
    network = NETWORK.build(1, 8, None, 0, torch.Generator().manual_seed(0))
    before = training.as_arrays(dict(network.named_parameters()))
    data = digits(16)
    images = training.Images(data.points, data.weights, None, None)
    next(
        training.train(
            network, images, edm(sigma_data=0.01)._recipe(LearningRate(rate=1e-2, warmup=0.0), (0.1,), None), 0, [BATCH]
        )
    )
    after = training.as_arrays(dict(network.named_parameters()))
    assert all(np.isfinite(value).all() for value in after.values())
    assert any(not np.array_equal(value, after[name]) for name, value in before.items()) == moves


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (Measure.uniform(np.zeros((2, 5, 2))), {}, "real kind images"),
        (Measure.uniform(np.zeros((5, 1, 8, 6), np.uint8), batch=0), {}, "square"),
        (Measure.uniform(np.zeros((5, 1, 8, 8), np.uint8), batch=0), {"classes": 3}, "has none"),
        (digits(), {"classes": 3}, "0 to 9"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        edm(**options).fit(data, rng())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "trains nothing"),
        ({"budget": STEP / 2}, "at least one batch"),
        ({"tracked": (0.2,)}, "snapshot"),
        ({"label_dropout": 0.1}, "set classes"),
        ({"sampler": Sampler()}, "exact"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        edm(**options)


def test_learned_weights_of_the_noise_levels_are_learned():
    plain, weighed = (edm(6, loss_weight=kind).fit(digits(), rng()) for kind in ("fixed", "learned"))
    assert not same(plain, weighed)
    assert plain.parameters.keys() == weighed.parameters.keys(), "they are no part of the model"


@pytest.mark.parametrize(
    ("name", "event", "parameters"),
    [
        ("digits_sims", (1, 8, 8), 309_345),
        ("cifar10_sims", (3, 32, 32), 55_733_891),
        ("cifar10_pruning", (3, 32, 32), 55_733_891),
        ("ffhq64_sims", (3, 64, 64), 61_805_571),
        ("imagenet64_sims", (3, 64, 64), 280.2e6),
        ("imagenet512_sims", (4, 64, 64), 280.2e6),
    ],
)
def test_presets_have_the_parameters_of_the_networks_they_name(name, event, parameters, presets):
    """Published: EDM's for CIFAR-10 and FFHQ-64, EDM2-S for ImageNet; within 2 %."""
    experiment = Path(__file__).parents[1] / "experiments" / f"{name}.yaml"
    algorithm = load(read(experiment, presets.get(name, [])))[0].experiment.algorithm.algorithm
    with torch.device("meta"):
        network = algorithm.built(event, torch.Generator())
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(parameters, rel=0.02)


# --- the model


def test_an_untrained_network_answers_with_its_skip():
    """F = 0 at first, so D(x; sigma) = x sigma_data^2 / (sigma^2 + sigma_data^2)."""
    model = edm(1, learning_rate=LearningRate(rate=1e-12, warmup=0.0)).fit(digits(), rng())
    x = rng(1).standard_normal((5, 1, 8, 8))
    for sigma in (0.01, 0.5, 20.0):
        np.testing.assert_allclose(model.denoise(x, sigma), x * 0.25 / (sigma**2 + 0.25), atol=1e-5)
    np.testing.assert_array_equal(model.denoise(x.astype(np.float32), 0.0), x.astype(np.float32))


def test_samples_do_not_depend_on_how_many_are_drawn_together():
    model = edm().fit(digits(), rng())
    whole = model.sample(150, rng(3)).points
    assert whole.dtype == np.uint8
    assert whole.shape == (150, 1, 8, 8)
    pieces = replace(model, algorithm=replace(model.algorithm, machine=Machine(sample_batch=64)))
    levels = np.abs(pieces.sample(150, rng(3)).points.astype(int) - whole)
    assert levels.max() <= 1
    assert (levels > 0).mean() <= 1e-3
    np.testing.assert_array_equal(model.sample(70, rng(3)).points[:64], whole[:64])


def test_samples_that_are_not_finite_are_no_black_images():
    model = edm().fit(digits(), rng())
    with pytest.raises(FloatingPointError, match="lower omega"):
        model.lower(np.full((1, 1, 8, 8), np.nan))


def test_samples_that_do_not_fit_name_fewer(monkeypatch):
    model = edm(machine=Machine(sample_batch=256)).fit(digits(), rng())

    def denoise(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "denoise", denoise)
    with pytest.raises(MemoryError, match=r"set machine\.sample_batch: 128"):
        model.sample(300, rng())


def test_stored_samples_are_not_drawn_again(tmp_path, monkeypatch):
    model = edm(machine=Machine(sample_batch=64)).fit(digits(), rng())
    whole = model.sample(150, rng(3)).points
    calls = []
    lower = type(model).lower

    def counted(self, x):
        calls.append(len(x))
        if len(calls) == 2:
            raise Cut
        return lower(self, x)

    monkeypatch.setattr(type(model), "lower", counted)
    with pytest.raises(Cut):
        model.sample(150, rng(3), work=FolderWork(tmp_path))
    stored = model.sample(150, rng(3), work=FolderWork(tmp_path)).points
    assert calls == [64, 64, 64, 22], "the first piece is there"
    assert isinstance(stored, np.memmap)
    np.testing.assert_array_equal(stored, whole)


def test_labels_are_drawn_as_often_as_they_were_in_the_data():
    """Shares of 20,000 labels within 4 standard errors, sqrt(p (1 - p) / n)."""
    data = digits(100)
    model = edm(2, classes=10).fit(data, rng())
    p = np.bincount(data.labels, minlength=10) / 100
    drawn = np.bincount(model.draw_labels(20_000, rng(1)), minlength=10) / 20_000
    assert (np.abs(drawn - p) <= 4 * np.sqrt(p * (1 - p) / 20_000)).all()
    np.testing.assert_array_equal(model.sample(70, rng(2)).labels, model.draw_labels(70, rng(2).spawn(2)[0]))
    x = rng(1).standard_normal((4, 1, 8, 8))
    trained = edm(20, classes=10).fit(data, rng())
    assert not np.allclose(trained.denoise(x, 1.0, np.zeros(4, int)), trained.denoise(x, 1.0, np.ones(4, int)))


def test_latents_are_neither_scaled_nor_rounded():
    latents = rng(1).standard_normal((50, 4, 8, 8)).astype(np.float32)
    model = edm(2).fit(Measure.uniform(latents, batch=0), rng())
    drawn = model.sample(64, rng(1)).points
    assert drawn.dtype == np.float32
    assert np.abs(drawn - np.rint(drawn)).max() > 0.1


# --- wrappers


def test_an_auxiliary_on_a_trajectory_is_the_one_that_a_shorter_tuning_ends_with():
    settings = {"algorithm": edm(), "n_synthetic": 70, "omega": 1.0}
    alone = Sims(**settings, budget=2 * STEP).fit(digits(), rng())
    long = Sims(**settings, budget=5 * STEP, budgets=(2 * STEP, 5 * STEP)).fit(digits(), rng())
    restored = Sims(**settings, budget=2 * STEP, budgets=(2 * STEP, 5 * STEP)).restore(long.state())
    assert same(restored.pair.auxiliary, alone.pair.auxiliary)
    assert not same(long.pair.auxiliary, alone.pair.auxiliary)
    np.testing.assert_array_equal(restored.sample(70, rng(4)).points, alone.sample(70, rng(4)).points)


def test_guidance_of_strength_minus_one_is_the_auxiliary_and_zero_the_base():
    model = Sims(algorithm=edm(), n_synthetic=70, budget=4 * STEP, omega=0.0).fit(digits(), rng())
    base = model.pair.base.sample(70, rng(4)).points
    np.testing.assert_array_equal(model.sample(70, rng(4)).points, base)
    guided = replace(model, omega=0.5).sample(70, rng(4)).points
    assert (guided != base).mean() > 0.1
    auxiliary = replace(model, omega=-1.0).sample(70, rng(4)).points
    np.testing.assert_array_equal(auxiliary, model.pair.auxiliary.sample(70, rng(4)).points)


def test_neon_moves_the_parameters():
    model = Neon(algorithm=edm(), n_synthetic=70, budget=4 * STEP, omega=0.5).fit(digits(), rng())
    base, auxiliary = model.pair.base, model.pair.auxiliary
    for name, value in model.merged.parameters.items():
        np.testing.assert_allclose(value, 1.5 * base.parameters[name] - 0.5 * auxiliary.parameters[name], atol=1e-6)


def test_autoguidance_guides_by_a_model_of_its_own_data():
    weak = edm(2, network=UNet(channels=4, multipliers=(1,), blocks=1, attention=()))
    algorithm = Autoguidance(algorithm=edm(), guide=weak, omega=1.0)
    model = algorithm.fit(digits(), rng())
    x = rng(1).standard_normal((3, 1, 8, 8))
    main, guide = model.pair.base.denoise(x, 1.0), model.pair.auxiliary.denoise(x, 1.0)
    np.testing.assert_allclose(model.denoise(x, 1.0), guide + 2 * (main - guide), atol=1e-5)
    np.testing.assert_array_equal(algorithm.restore(model.state()).sample(5, rng(2)).points, model.sample(5, rng(2)).points)


# --- on a GPU

CUDA = {"device": "cuda"}


@pytest.mark.gpu
def test_a_network_answers_alike_on_a_gpu_and_on_a_cpu():
    state = edm(20, machine=Machine(device="cpu")).fit(digits(), rng()).state()
    x = rng(1).standard_normal((5, 1, 8, 8))
    answers = [edm(machine=Machine(device=device)).restore(state).denoise(x, 0.7) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(*answers, atol=1e-4)


@pytest.mark.gpu
def test_a_fit_on_a_gpu_that_was_cut_ends_where_it_would_have_ended(tmp_path):
    algorithm = edm(40, machine=Machine(**CUDA))
    whole = algorithm.fit(digits(), rng())
    work = CutWork(tmp_path)
    work.stop = 16 * BATCH
    with pytest.raises(Cut):
        algorithm.fit(digits(), rng(), work)
    assert close(algorithm.fit(digits(), rng(), FolderWork(tmp_path)), whole, 1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("machine", [{"precision": "bf16"}, {"precision": "fp16"}, {"tf32": True}, {"compile": True}], ids=str)
def test_faster_numbers_learn_the_same(machine):
    """Relative to what is learned at all: D of a trained network differs from x / (1 + s^2), the untrained one's."""
    x = rng(1).standard_normal((64, 1, 8, 8))
    exact, fast = (edm(60, machine=Machine(**CUDA, **how)).fit(digits(), rng()).denoise(x, 0.7) for how in ({}, machine))
    learned = exact - x * 0.25 / (0.7**2 + 0.25)
    assert np.abs(fast - exact).mean() < 0.1 * np.abs(learned).mean()


@pytest.mark.gpu
def test_a_batch_that_is_too_large_for_a_gpu_names_one_that_fits():
    network = UNet(channels=128, multipliers=(1, 2), blocks=2, attention=())
    big = edm(1, batch=2**18, budget=2**18 / 1e6, network=network, machine=Machine(**CUDA))
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(MemoryError, match=r"set micro_batch: \d+"):
            big.fit(digits(), rng())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
