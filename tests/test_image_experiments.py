"""The experiment on digits, made small, as a user runs it: killed in the middle of things, it ends with the same bytes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfloop.results import load_generations

ROOT = Path(__file__).parents[1]
SMALL = [
    "replicates=1",
    "algorithm.n_synthetic=256",
    "algorithm.algorithm.batch=32",
    "algorithm.algorithm.budget=0.0048",
    "algorithm.budgets=[0.0016, 0.0032]",
    "sweep.grid.algorithm.budget=[0.0016, 0.0032]",
    "sweep.grid.algorithm.omega=[-1, 0, 0.5]",
    "track.image_quality={n: 200, features: pixels}",
]


def started(out):
    words = [sys.executable, "-m", "selfloop.run", "experiments/digits_sims.yaml", *SMALL, "--out", str(out), "--workers", "1"]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_run_on_images_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    with started(tmp_path / "whole") as whole:
        assert whole.wait(300) == 0, whole.stdout.read()
    table = load_generations(tmp_path / "whole")
    assert {"fd", "fd_floor", "kid", "precision", "recall"} <= set(table["metric"])
    kills = 0
    for number in range(100):
        with started(tmp_path / "cut") as run:
            try:
                assert run.wait(16 + 3 * (number % 4)) == 0, run.stdout.read()
                break
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGKILL)
                kills += 1
        time.sleep(0.1)
    assert kills >= 2
    one, two = ((tmp_path / name / "generations.parquet").read_bytes() for name in ("whole", "cut"))
    assert one == two
    assert {path.name for path in (tmp_path / "cut" / "kept" / "pictures").glob("*.png")} == {
        f"budget={budget},omega={omega},chunk=0,generation=1.png" for budget in (0.0016, 0.0032) for omega in (-1, 0, 0.5)
    }
