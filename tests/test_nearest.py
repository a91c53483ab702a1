"""How near samples come to the rows trained on: the rows are those of the loop, copies are seen."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from selfloop.algorithms.kde import KdeFit
from selfloop.config import load
from selfloop.flawed import Flawed
from selfloop.loop import self_consume
from selfloop.metrics.nearest import Nearest
from selfloop.metrics.track import View
from selfloop.mix import Mix
from selfloop.plane import EightGaussians
from selfloop.reading import ConfigError, read
from selfloop.streams import NamedStreams


def seen(bandwidth, n=100, **flaws):
    source, streams, mix = (
        Flawed(source=EightGaussians(), **flaws).replicated(2, np.random.default_rng(0)),
        NamedStreams(0),
        Mix(n_real=n),
    )
    real = mix.first(source, streams)
    generation = next(iter(self_consume(source, real, KdeFit(bandwidth=bandwidth), mix, 1, streams)))
    return View(generation, source, streams, 2), real


def test_distances_are_those_to_the_rows_of_the_loop():
    view, real = seen(0.1)
    out, drawn = Nearest(n_train=100, n=50)(view), view.sample(50, "nearest")
    expected = [cdist(x, rows).min(axis=1).mean() for x, rows in zip(drawn.points, real.points, strict=True)]
    np.testing.assert_allclose(out["nearest"], expected, rtol=1e-12)


def test_a_model_that_repeats_its_data_is_nearer_than_new_data_and_its_samples_are_copies():
    view, _ = seen(1e-6)
    out = Nearest(n_train=100, radius=1e-4)(view)
    assert (out["nearest"] < 1e-5).all()
    assert (out["copied"] == 1).all()
    assert (out["nearest_real"] > 0.01).all()
    assert (out["copied_real"] < 0.01).all()


def test_rows_that_are_repeated_draw_samples_to_themselves():
    """Two rows make up two fifths of the data: a kernel estimate of small width draws a fifth of its samples at each.

    Standard error of a share of .2 among 2,000 samples .009, and the larger of two is above it by about one.
    """
    clean, repeated = (Nearest(n_train=100, radius=0.01)(seen(1e-3, duplicates=share, copied=2)[0]) for share in (0.0, 0.4))
    assert (np.abs(repeated["most_copied"] - 0.21) < 4 * 0.009).all()
    assert (clean["most_copied"] < 0.05).all()
    assert (repeated["most_copied_real"] < 0.01).all()


def test_another_number_of_rows_than_the_loop_trains_on_is_refused(tmp_path):
    text = """
    replicates: 1
    chunk: 1
    real: {kind: eight_gaussians}
    mix: {n_real: 100}
    algorithm: {kind: kde}
    track: {nearest: {n_train: 200}}
    """
    (tmp_path / "near.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"n_train.*must be mix\.n_real = 100.*got 200"):
        load(read(tmp_path / "near.yaml"))
