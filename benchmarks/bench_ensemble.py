"""Speed of ensembles of score networks, as ratios measured in one run: `make bench`.

What is compared takes turns, and the least time of each counts. On one thread that is processor time, which a busy neighbour
hardly moves; on two it is wall time, and where two cores are not free it is skipped. Arithmetic is counted as 2 for a
multiply and add, and 3 matrix products a layer and step, forward and back for inputs and for weights:

    6 R batch sum over layers (in out)

pytest benchmarks/bench_ensemble.py -s
"""

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_transport import free_cores
from torch import Tensor

from selfloop import fanout
from selfloop.algorithms.score_net import ScoreNet, ScoreNetFit
from selfloop.config import groups, load
from selfloop.data import Law
from selfloop.diffusion import mlp
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.ensemble import Points, Recipe, Trained, examples, losses, train
from selfloop.diffusion.noise import Noise
from selfloop.diffusion.precondition import PredictionName
from selfloop.diffusion.sample import Sampler
from selfloop.diffusion.score import gaussian_denoiser
from selfloop.laws import Gaussian
from selfloop.loop import self_consume
from selfloop.metrics.transport import gaussian_wasserstein2
from selfloop.mix import Mix
from selfloop.reading import read
from selfloop.results import RunFolder
from selfloop.streams import NamedStreams

R, N, D = 64, 1000, 2
STEPS = 64
"""Steps that are timed: one block of random numbers."""
MATMUL = 1024
EXPERIMENT = Path("experiments/fig4_score_net.yaml")
STANDARD = Gaussian(np.zeros(D), np.eye(D))
ANCESTRAL = Sampler(kind="ancestral", steps=20, sigma_max=20, sigma_min=0.01)


def sizes(width: int, layers: int) -> list[int]:
    """Layer sizes of a network of x and the noise level."""
    return [D + 1, *[width] * layers, D]


def arithmetic(members: int, width: int, batch: int) -> int:
    """Operations of a step with 3 hidden layers; see the module."""
    return 6 * members * batch * sum(n_in * n_out for n_in, n_out in itertools.pairwise(sizes(width, 3)))


def recipe(batch: int, steps: int = STEPS, prediction: PredictionName = "edm") -> Recipe:
    """Adam at a constant rate, without clipping."""
    return Recipe(steps, batch, 1e-3, "none", None, prediction, Noise())


def uniform(data: Tensor) -> Points:
    """Data (R, n, d) with equal weights, in units of 1."""
    where: Any = {"device": data.device}
    weights = torch.full(data.shape[:2], 1 / data.shape[1], dtype=torch.float64, **where)
    return Points(data, weights, None, torch.ones(len(data), **where))


def ours(data: Tensor, width: int, layers: int, batch: int, steps: int = STEPS) -> list[Trained]:
    """The networks of all members of data (R, n, d), trained at once."""
    start = mlp.initialised(len(data), sizes(width, layers), torch.Generator().manual_seed(0), device=data.device)
    return train(start, uniform(data), recipe(batch, steps), seed=0)


def by_hand(data: Tensor, width: int, layers: int, batch: int, steps: int = STEPS) -> None:
    """The same training as one would write it first: one `Sequential` after the other, torch's default Adam."""
    noise = Noise()
    for x in data:
        where: Any = {"device": x.device}
        modules: list[torch.nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes(width, layers)):
            modules += [torch.nn.Linear(n_in, n_out, **where), torch.nn.SiLU()]
        net = torch.nn.Sequential(*modules[:-1])
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(steps):
            clean = x[torch.randint(len(x), (batch,), **where)]
            s = (noise.mean + noise.std * torch.randn(batch, 1, **where)).exp()
            noised = clean + s * torch.randn(batch, D, **where)
            norm = (1 + s**2) ** -0.5
            answer = net(torch.cat([norm * noised, s.log() / 4], dim=1))
            loss = (answer - (clean - norm**2 * noised) / (s * norm)).square().sum(dim=1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def alternating(
    benchmark: Any, rounds: int, functions: Sequence[Callable[[], Any]], clock: Callable[[], float] = time.thread_time
) -> list[float]:
    """The least seconds of a call of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]

    def one_round() -> None:
        for function, seen in zip(functions, times, strict=True):
            start = clock()
            function()
            seen.append(clock() - start)

    benchmark.pedantic(one_round, rounds=rounds)
    while len(times[0]) < rounds:  # --benchmark-disable runs one
        one_round()
    return [min(seen) for seen in times]


def compared(
    benchmark: Any, where: str, shape: tuple[int, int, int], one: float, mine: float, peak: float
) -> tuple[float, float]:
    """(times as fast, share of the rate `peak`), written down: of networks (R, width, batch), STEPS of one by hand taking `one`
    seconds and of all at once `mine`."""
    members, width, batch = shape
    ratio, share = members * one / mine, arithmetic(*shape) * STEPS / mine / peak
    benchmark.extra_info.update(by_hand=members * one / STEPS, ours=mine / STEPS, ratio=ratio, share=share)
    print(
        f"\n{where}, {members} networks of width {width}, batch {batch}: by hand {members * one / STEPS * 1e3:.1f} ms a step,"
    )
    print(f"at once {mine / STEPS * 1e3:.2f} ms: {ratio:.1f} times; {share:.2f} of {peak / 1e9:.0f} Gflop/s")
    return ratio, share


def cloud(members: int, seed: int = 0, device: str = "cpu") -> Tensor:
    """N standard normal points for each member, (R, n, d)."""
    return torch.randn((members, N, D), generator=torch.Generator().manual_seed(seed)).to(device)


# An ensemble against a loop over networks ------------------------------------------------------------------------------


@pytest.mark.benchmark(group="ensemble")
@pytest.mark.parametrize(
    ("width", "batch", "threads", "least", "rate"),
    [(128, 256, 2, 2.2, 0.4), (64, 64, 2, 5.0, 0.2), (128, 256, 1, 1.25, 0.4), (64, 64, 1, 5.0, 0.2)],
)
def test_an_ensemble_beats_a_loop_over_networks(
    benchmark: Any, width: int, batch: int, threads: int, least: float, rate: float
) -> None:
    """64 networks of 3 hidden layers at once, against one after the other: at least `least` times as fast, and at least
    the share `rate` of the rate at which torch multiplies matrices of 1024 x 1024. The loop is timed on 2 networks."""
    if threads > 1 and (cores := max(free_cores() for _ in range(3))) < 1.8:
        pytest.skip(f"two threads get {cores:.2f} cores here, and a loop of small steps suffers more; free the machine")
    some, data = 2, cloud(R)
    a, b = torch.randn((2, MATMUL, MATMUL))
    clock = time.thread_time if threads == 1 else time.perf_counter
    with torch_threads(threads):
        hand, mine, product = alternating(
            benchmark,
            4,
            [lambda: by_hand(data[:some], width, 3, batch), lambda: ours(data, width, 3, batch), lambda: a @ b],
            clock,
        )
    ratio, share = compared(benchmark, f"{threads} threads", (R, width, batch), hand / some, mine, 2 * MATMUL**3 / product)
    assert ratio >= least
    assert share >= rate


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.benchmark(group="ensemble")
@pytest.mark.parametrize(("members", "least"), [(64, 5.0), (1024, 100.0), (4096, 100.0)])
def test_an_ensemble_beats_a_loop_over_networks_on_a_gpu(benchmark: Any, members: int, least: float) -> None:
    """Width 128, 3 hidden layers, batch 256, on one GPU: at 1024 networks at least 100 times as fast as one after the other."""
    some, data = 2, cloud(members, device="cuda")
    a, b = torch.randn((2, 8 * MATMUL, 8 * MATMUL), device="cuda")

    def finished(function: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            function()
            torch.cuda.synchronize()

        return run

    functions = [
        finished(lambda: by_hand(data[:some], 128, 3, 256)),
        finished(lambda: ours(data, 128, 3, 256)),
        finished(lambda: a @ b),
    ]
    for function in functions:
        function()
    hand, mine, product = alternating(benchmark, 4, functions, time.perf_counter)
    peak = 2 * (8 * MATMUL) ** 3 / product
    ratio, _ = compared(benchmark, torch.cuda.get_device_name(), (members, 128, 256), hand / some, mine, peak)
    assert ratio >= least


# How cost grows --------------------------------------------------------------------------------------------------------


def test_cost_grows_in_proportion_to_the_members(benchmark: Any) -> None:
    """log(seconds a step) against log R for R = 4 .. 64, width 64, 3 hidden layers, batch 256: slope at most 1.1."""
    members = [4, 8, 16, 32, 64]
    with torch_threads(1):
        times = alternating(benchmark, 3, [lambda r=r: ours(cloud(r), 64, 3, 256) for r in members])
    slope = float(np.polyfit(np.log(members), np.log(times), 1)[0])
    benchmark.extra_info.update(slope=slope, ms={r: t / STEPS * 1e3 for r, t in zip(members, times, strict=True)})
    steps = ", ".join(f"{r}: {t / STEPS * 1e3:.2f}" for r, t in zip(members, times, strict=True))
    print(f"\nms a step by members: {steps}; slope of the logarithms {slope:.2f}")
    assert slope <= 1.1


def test_a_generation_costs_what_the_one_before_it_did(benchmark: Any) -> None:
    """An augmentation loop of 8 small networks, 100 steps a fit: seconds against generation from the second, over their mean;
    slope less than 1 % a generation, or 4 standard errors."""
    generations, rounds = 10, 4
    source, streams = Law(STANDARD.expanded(8)), NamedStreams(0)
    mix = Mix(kind="augment", n_real=N)
    fit = ScoreNetFit(width=64, layers=1, budget=0.0256, sampler=ANCESTRAL)
    times: list[list[float]] = []

    def one_round() -> None:
        real = mix.first(source, streams, statistics=False)
        marks = [time.thread_time()]
        marks += [time.thread_time() for _ in self_consume(source, real, fit, mix, generations, streams)]
        times.append(list(np.diff(marks)))

    with torch_threads(1):
        benchmark.pedantic(one_round, rounds=rounds)
    least = np.min(times, axis=0)[1:]
    (slope, _), cov = np.polyfit(np.arange(len(least)), least / least.mean(), 1, cov=True)
    error = math.sqrt(cov[0, 0])
    benchmark.extra_info.update(seconds=least.mean(), slope=slope, slope_error=error)
    print(f"\n{least.mean() * 1e3:.0f} ms a generation; slope {slope:+.2%} +- {error:.2%} of that from one to the next")
    assert abs(slope) < max(0.01, 4 * error)


PEAK = """
import re, sys, torch
from pathlib import Path
sys.path.insert(0, "benchmarks")
from bench_ensemble import cloud, ours
torch.set_num_threads(1)
def peak(members):
    data = cloud(members)
    ours(data, 128, 3, 256, 2)
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
small = peak(1)
print(peak(64) - small)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_of_an_ensemble(benchmark: Any) -> None:
    """64 networks of width 128, 3 hidden layers, batch 256: at most
    300 MiB more than the peak of a process that trained one."""
    found = benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-c", PEAK], check=True, capture_output=True, text=True), rounds=1
    )
    added = int(found.stdout) / 2**10
    benchmark.extra_info.update(mib=added)
    print(f"\nR = {R}: {added:.0f} MiB more than one network")
    assert added < 300


# What need not be computed ---------------------------------------------------------------------------------------------


def swept(folder: Path, overrides: Sequence[str]) -> None:
    """One generation of the experiment, in this process."""
    source = read(EXPERIMENT, ["generations=1", "track={w2_moments: null}", "madness=null", *overrides])
    points = load(source)
    with RunFolder(folder, source, points) as opened:
        fanout.run(source, points, opened)


def test_omegas_share_the_first_generation(benchmark: Any, tmp_path: Path) -> None:
    """Generation 1 of a sweep over 5 strengths of guidance, one pair of fits, against 5 runs of one strength each: at least 1.5
    times as fast (samples and W_2 are made for each of them). Then what the pair is made of."""
    omegas = [0, 1, 2, 3, 4]
    number = itertools.count()

    def shared() -> None:
        swept(tmp_path / str(next(number)), [f"sweep={json.dumps({'grid': {'algorithm.omega': omegas}})}"])

    def apart() -> None:
        for omega in omegas:
            swept(tmp_path / str(next(number)), ["sweep=null", f"algorithm.omega={omega}"])

    sims: Any = groups(load(read(EXPERIMENT, ["sweep=null", "madness=null"])))[0][0].experiment.algorithm
    rng = np.random.default_rng(0)
    data = Law(STANDARD.expanded(8)).take(0, N, rng)
    base = sims.algorithm.fit(data, rng)
    drawn = base.sample(sims.n_synthetic, rng)
    parts = [
        lambda: sims.algorithm.fit(data, rng),
        lambda: base.sample(sims.n_synthetic, rng),
        lambda: list(sims.algorithm.tune(base, drawn, [sims.budget], rng)),
    ]
    with torch_threads(1):
        together, single, fit, draw, tune = alternating(benchmark, 2, [shared, apart, *parts])
    ratio, whole = single / together, fit + draw + tune
    benchmark.extra_info.update(ratio=ratio, base=fit, synthetic=draw, auxiliary=tune)
    print(
        f"\ngeneration 1 at 5 omegas: apart {single:.2f} s, shared {together:.2f} s, {ratio:.1f} times; a pair {whole:.2f} s: "
        f"base {fit / whole:.0%}, its samples {draw / whole:.0%}, auxiliary {tune / whole:.0%}"
    )
    assert ratio >= 1.5


@pytest.mark.parametrize(("prediction", "gain"), [("edm", 0.9), ("sample", 1.1)])
def test_stratified_noise_levels_do_not_raise_the_variance_of_a_batch(
    benchmark: Any, prediction: PredictionName, gain: float
) -> None:
    """Batches of 256 at a trained network, variance with independent noise levels over that with stratified ones: of the loss
    at least `gain`, of its gradient (trace of the covariance) at least 0.95. Errors are by 16 groups of 256 batches."""
    groups_, batches, batch = 16, 256, 256
    asked = recipe(batch, 300, prediction)
    start = mlp.initialised(1, sizes(64, 1), torch.Generator().manual_seed(0))
    (trained,) = train(start, uniform(cloud(1)), asked, seed=0)
    leaves = {name: value.repeat(batches, 1, 1).requires_grad_() for name, value in trained.parameters.items()}
    generator = torch.Generator().manual_seed(1)
    points, shape = uniform(cloud(1).expand(batches, -1, -1)), (1, batches, batch)

    def variances(stratified: bool) -> list[float]:
        """Variance of the loss and of the gradient over a group of batches."""
        x, _ = points.taken(points.rows(shape, generator))
        u = torch.rand(shape, generator=generator)
        u = (torch.arange(batch) + u) / batch if stratified else u
        given, target = examples(x, None, u[..., None], torch.randn(x.shape, generator=generator), points.scale, asked)
        loss = losses(leaves, given[0], target[0])
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
        return [loss.detach().var().item(), sum(gradient.var(dim=0).sum().item() for gradient in gradients)]

    def measured() -> list[list[list[float]]]:
        return [[variances(False), variances(True)] for _ in range(groups_)]

    with torch_threads(1):
        seen = np.array(benchmark.pedantic(measured, rounds=1))
    ratio = np.divide(*seen.mean(axis=0))
    error = ratio * np.sqrt(np.sum((seen.std(axis=0, ddof=1) / seen.mean(axis=0)) ** 2, axis=0) / groups_)
    benchmark.extra_info.update(loss=ratio[0], gradient=ratio[1])
    print(
        f"\n{prediction}, variance with independent levels over stratified ones: loss {ratio[0]:.2f} +- {error[0]:.2f}, "
        f"gradient {ratio[1]:.3f} +- {error[1]:.3f}"
    )
    assert ratio[0] >= gain
    assert ratio[1] >= 0.95


def test_a_small_network_is_as_good_as_a_large_one_and_cheaper(benchmark: Any) -> None:
    """8 replicates of 1000 standard normal points: 1 hidden layer and 300 steps against 3 hidden layers and 1000 steps. At
    least 4 times as fast, and W_2 no larger than by 4 standard errors: of the moments of 10 000 samples, to N(0, I) and to what
    the sampler draws from its exact score."""
    rng = np.random.default_rng(0)
    data = Law(STANDARD.expanded(8)).take(0, N, rng)
    fits = {
        "small": ScoreNetFit(width=64, layers=1, batch=256, budget=0.0768, learning_rate=3e-3, sampler=ANCESTRAL),
        "large": ScoreNetFit(width=64, layers=3, batch=256, budget=0.256, learning_rate=2e-3, sampler=ANCESTRAL),
    }
    models: dict[str, ScoreNet] = {}

    def fitted(name: str) -> None:
        models[name] = fits[name].fit(data, np.random.default_rng(1))

    with torch_threads(1):
        small, large = alternating(benchmark, 2, [lambda: fitted("small"), lambda: fitted("large")])
        moments = [models[name].sample(10_000, np.random.default_rng(2)).moments() for name in fits]
    exact = diffusion.law(gaussian_denoiser(STANDARD), ANCESTRAL, (), D)
    laws = Gaussian(np.stack([m.mean for m in moments]), np.stack([m.cov for m in moments]))
    w2 = np.stack([gaussian_wasserstein2(laws, STANDARD), gaussian_wasserstein2(laws, exact)])
    benchmark.extra_info.update(ratio=large / small)
    bias = float(gaussian_wasserstein2(exact, STANDARD))
    print(f"\nsmall {small:.2f} s, large {large:.2f} s: {large / small:.1f} times; W2 of the sampler alone {bias:.4f}")
    for values, name in zip(w2, ("N(0, I)", "the sampler's own law"), strict=True):
        mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / math.sqrt(8)
        print(f"W2 to {name}: small {mean[0]:.4f} +- {error[0]:.4f}, large {mean[1]:.4f} +- {error[1]:.4f}")
    assert large / small >= 4
    more = w2[:, 0] - w2[:, 1]
    assert (more.mean(axis=1) <= 4 * more.std(axis=1, ddof=1) / math.sqrt(8)).all()
