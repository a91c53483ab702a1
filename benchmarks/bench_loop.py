"""Speed of the Gaussian loop, as ratios measured in one run: `make bench`.

Times are the best of several rounds, on one core (one BLAS thread). What is asserted is what the documentation claims.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from selfloop.algorithms.gaussian import GaussianFit
from selfloop.data import Law
from selfloop.laws import Gaussian
from selfloop.loop import self_consume
from selfloop.metrics.transport import gaussian_wasserstein2
from selfloop.mix import Mix
from selfloop.streams import NamedStreams

N = 1000


def best(function: Callable[[], object], rounds: int = 5) -> float:
    """Least wall time of a call, in seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def ours(d: int, replicates: int, generations: int) -> float:
    """An augmentation loop by sufficient statistics, with W_2 of every generation and replicate; the last mean W_2."""
    law = Gaussian(np.zeros(d), np.eye(d))
    source, streams, mix = Law(law.expanded(replicates)), NamedStreams(0), Mix(kind="augment", n_real=N)
    real = mix.first(source, streams, statistics=True)
    w2 = np.zeros(1)
    for generation in self_consume(source, real, GaussianFit(), mix, generations, streams):
        w2 = gaussian_wasserstein2(generation.model.law(), law)
    return float(w2.mean())


def by_hand(d: int, generations: int) -> float:
    """The same loop as one would write it first: one replicate, points, np.cov, and W_2 by matrix square roots of 2 x 2."""
    rng = np.random.default_rng(0)
    real = rng.standard_normal((N, d))
    data, w2 = real, 0.0
    for _ in range(generations):
        mean, cov = data.mean(axis=0), np.cov(data.T, bias=True).reshape(d, d)
        values = np.linalg.eigvalsh(cov)
        w2 = float(np.sqrt(mean @ mean + np.sum((np.sqrt(values) - 1) ** 2)))
        synthetic = mean + rng.standard_normal((N, d)) @ np.linalg.cholesky(cov).T
        data = np.concatenate([real, synthetic])
    return w2


@pytest.mark.parametrize("d", [1, 2])
def test_sufficient_statistics_beat_the_loop_by_hand(benchmark, d):
    """At least 300 times a replicate-generation."""
    with threadpool_limits(1):
        replicates, generations = 2000, 100
        mine = best(lambda: ours(d, replicates, generations), 3) / (replicates * generations)
        hand = best(lambda: by_hand(d, generations)) / generations
        benchmark.pedantic(lambda: ours(d, replicates, 10), rounds=3)
    ratio = hand / mine
    benchmark.extra_info.update(by_hand_us=hand * 1e6, ours_us=mine * 1e6, ratio=ratio)
    print(f"\nd = {d}: by hand {hand * 1e6:.0f} us, ours {mine * 1e6:.3f} us a replicate-generation: {ratio:.0f} times")
    assert ratio >= 300


def test_a_hundred_thousand_replicates_take_less_than_a_second(benchmark):
    """10^5 replicates x 100 generations in one dimension, W_2 of each included, on one core."""
    with threadpool_limits(1):
        seconds = best(lambda: [ours(1, 10_000, 100) for _ in range(10)], 3)
        benchmark.pedantic(lambda: ours(1, 10_000, 100), rounds=3)
    print(f"\n10^5 replicates x 100 generations: {seconds:.2f} s")
    assert seconds < 1.0


def test_the_main_experiment_takes_less_than_a_minute(benchmark, tmp_path):
    """experiments/gaussian2d.yaml in full, cold start included, on all cores."""
    command = [sys.executable, "-m", "selfloop.run", "experiments/gaussian2d.yaml", "--out", str(tmp_path / "run")]
    start = time.perf_counter()
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=1)
    seconds = time.perf_counter() - start
    print(f"\ngaussian2d: {seconds:.1f} s")
    assert seconds < 60


def test_help_comes_at_once(benchmark):
    """python -m selfloop.run --help, as a share of the half second that is allowed."""
    command = [sys.executable, "-m", "selfloop.run", "--help"]
    seconds = best(lambda: subprocess.run(command, check=True, capture_output=True))
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=2)
    print(f"\n--help: {seconds:.2f} s")
    assert seconds < 0.5
