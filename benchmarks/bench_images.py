"""Speed of image models, as ratios measured in one run; on a GPU where there is one.

    digits preset           a step of training beside diffusers' UNet2DModel, by forward FLOPs                         >= 1.0
    CIFAR-10 preset, GPU    images per second beside the same network run the plain way: fp32, eager, NCHW, unfused
                            Adam, a loop over the parameters for their average                                         >= 3
    guided sampling, GPU    time of a guided sample by that of an unguided one                                         <= 1.9
    Frechet distance        50,000 features of 2048 numbers, statistics included, on two cores                         < 20 s

python -m pytest benchmarks/bench_images.py --benchmark-only -s
"""

import copy
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from selfloop.algorithms.edm import Edm, EdmModel
from selfloop.config import load
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion import train as training
from selfloop.diffusion.guide import negative_guidance
from selfloop.embed import FeatureMoments
from selfloop.laws import Gaussian
from selfloop.measure import Measure
from selfloop.metrics.frechet import frechet
from selfloop.reading import read

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
LEAST_OVER_DIFFUSERS, LEAST_OVER_PLAIN, MOST_GUIDED, MOST_SECONDS = 1.0, 3.0, 1.9, 20.0


def preset(name: str, *overrides: str) -> Edm:
    """The network of an experiment."""
    return load(read(EXPERIMENTS / f"{name}.yaml", list(overrides)))[0].experiment.algorithm.algorithm


def noise(n: int, event: tuple[int, ...]) -> Measure:
    return Measure.uniform(np.random.default_rng(0).integers(0, 256, (n, *event), dtype=np.uint8), batch=0)


def course(algorithm: Edm, event: tuple[int, ...], n: int = 2048) -> training._Course:
    images, _, _ = algorithm._images(noise(n, event))
    recipe = algorithm._recipe(algorithm.learning_rate, algorithm.tracked or (algorithm.average,), algorithm.augment)
    return training._Course(algorithm.built(event, torch.Generator().manual_seed(0)), images, recipe, 0)


def seconds(step, repeats: int, warm: int = 3) -> float:
    """The median time of a step."""
    times = []
    for number in range(warm + repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times += [time.perf_counter() - began] if number >= warm else []
    return statistics.median(times)


def parameters(network: torch.nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.benchmark(group="images")
def test_the_digits_preset_trains_as_fast_as_a_unet_of_diffusers(benchmark):
    from diffusers import UNet2DModel

    torch.set_num_threads(1)
    algorithm = preset("digits_sims")
    ours = course(algorithm, (1, 8, 8))
    x, level = torch.randn(algorithm.batch, 1, 8, 8), torch.rand(algorithm.batch)
    # as many levels and blocks; the width that comes nearest to our parameters
    theirs = min(
        (
            UNet2DModel(
                sample_size=8, in_channels=1, out_channels=1, layers_per_block=algorithm.network.blocks,
                block_out_channels=(width, width * algorithm.network.multipliers[-1]), norm_num_groups=8,
                down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
                dropout=algorithm.network.dropout,
            )
            for width in range(16, 65, 8)
        ),
        key=lambda network: abs(np.log(parameters(network) / parameters(ours.network))),
    )  # fmt: skip
    optimiser = torch.optim.Adam(theirs.parameters())

    def their_step() -> None:
        optimiser.zero_grad()
        (theirs(x, level * 1000).sample - x).square().mean().backward()
        optimiser.step()

    steps = iter(range(10_000))
    mine, other = [], []
    for _ in range(5):  # in turns, so that a busy neighbour slows both
        mine.append(seconds(lambda: ours._step(next(steps)), 5, 1))
        other.append(seconds(their_step, 5, 1))
    ratio = statistics.median(np.array(other) / np.array(mine))
    size = [parameters(network) / 1e3 for network in (ours.network, theirs)]
    work = [flops(lambda: ours.network(x, level, None, None)) / 1e9, flops(lambda: theirs(x, level)) / 1e9]
    print(
        f"\ndigits preset {size[0]:.0f} k parameters, {work[0]:.2f} GFLOP for {len(x)} images: {1e3 * min(mine):.0f} ms a "
        f"step; UNet2DModel {size[1]:.0f} k, {work[1]:.2f} GFLOP: {1e3 * min(other):.0f} ms; {ratio:.2f} times as fast "
        f"({ratio * work[0] / work[1]:.2f} at equal FLOPs)"
    )
    benchmark.pedantic(lambda: ours._step(next(steps)), rounds=3)
    assert ratio * work[0] / work[1] >= LEAST_OVER_DIFFUSERS


@pytest.mark.benchmark(group="images")
def test_the_frechet_distance_of_50000_features_takes_seconds(benchmark, tmp_path):
    torch.set_num_threads(2)
    n, d = 50_000, 2048
    features = np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, (n, d))
    rng = np.random.default_rng(0)
    for start in range(0, n, 5000):
        features[start : start + 5000] = rng.standard_normal((5000, d), dtype=np.float32)
    reference = rng.standard_normal((d, 3 * d))
    cov = reference @ reference.T / (3 * d)

    def distance() -> float:
        moments = FeatureMoments()
        for start in range(0, n, 5000):
            moments.update(features[start : start + 5000])
        return frechet(moments.law(), Gaussian(np.zeros(d), cov))

    taken = seconds(distance, 1, 0)
    print(f"\nFrechet distance of {n} x {d} features, statistics included: {taken:.1f} s")
    benchmark.pedantic(lambda: None, rounds=1)
    assert taken < MOST_SECONDS


@pytest.mark.gpu
@pytest.mark.benchmark(group="images")
def test_training_on_a_gpu_is_several_times_as_fast_as_the_plain_way(benchmark):
    fast = course(preset("cifar10_sims", "real.path=digits", "real.test=null", "mix.n_real=64"), (3, 32, 32))
    batch, steps = fast.recipe.batch, iter(range(10_000))
    ours = batch / seconds(lambda: fast._step(next(steps)), 20, 5)
    peak = torch.cuda.max_memory_allocated() / 2**30
    forward = flops(lambda: fast.network(*_example(fast)))
    rate = 3 * forward * ours / batch
    most = _matmul_rate()

    network = copy.deepcopy(fast.network).to(memory_format=torch.contiguous_format).float()
    average = copy.deepcopy(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=False, foreach=False)

    def plain() -> None:
        part = fast._batch(next(steps))
        optimiser.zero_grad()
        for some in part.parts(128):
            answer = network(some.x.contiguous(), some.noise, some.labels, some.condition)
            ((answer - some.target).square().mean(dim=(1, 2, 3)) * some.weights).sum().div(batch).backward()
        optimiser.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.copy_(0.999 * mean + 0.001 * value)

    theirs = batch / seconds(plain, 5, 2)
    print(
        f"\nCIFAR-10 preset, {parameters(network) / 1e6:.1f} M parameters, batch {batch}: {ours:.0f} images/s, {peak:.1f} GiB; "
        f"plain {theirs:.0f} images/s: {ours / theirs:.2f} times; {rate / 1e12:.0f} of "
        f"{most / 1e12:.0f} TFLOP/s of a bf16 product"
    )
    benchmark.pedantic(lambda: fast._step(next(steps)), rounds=3)
    assert ours / theirs >= LEAST_OVER_PLAIN


def _example(of: training._Course) -> tuple:
    part = of._batch(0)
    return part.x, part.noise, part.labels, part.condition


def _matmul_rate(n: int = 8192) -> float:
    """FLOP a second of a product of bf16 matrices."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, 20, 5)


@pytest.mark.gpu
@pytest.mark.benchmark(group="images")
def test_guided_sampling_costs_less_than_two_unguided_ones(benchmark):
    algorithm = preset("cifar10_sims", "real.path=digits", "real.test=null", "mix.n_real=64")
    network = algorithm.built((3, 32, 32), torch.Generator().manual_seed(0))
    models = [EdmModel(algorithm, training.as_arrays(network.state_dict()), (3, 32, 32), np.dtype(np.uint8)) for _ in range(2)]
    base, auxiliary = (model.denoise for model in models)

    def drawn(denoise) -> None:
        shape = (algorithm.machine.sample_batch, 3, 32, 32)
        diffusion.sample(denoise, algorithm.sampler, shape, np.random.default_rng(0), 0, models[0].lift)

    alone = seconds(lambda: drawn(base), 2, 1)
    guided = seconds(lambda: drawn(negative_guidance(base, auxiliary, 1.0)), 2, 1)
    n = algorithm.machine.sample_batch
    print(f"\nsampling {n} images: {alone:.2f} s, guided {guided:.2f} s, {guided / alone:.2f} times")
    benchmark.pedantic(lambda: None, rounds=1)
    assert guided / alone <= MOST_GUIDED
