"""Curate, then fit: what the inner algorithm sees, what it does not, and how curators compose."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from selfloop.algorithms.curated import Curated
from selfloop.algorithms.gaussian import GaussianFit
from selfloop.algorithms.regression import RegressionFit
from selfloop.algorithms.sims import Sims
from selfloop.component import component
from selfloop.config import load
from selfloop.curate import chain
from selfloop.curate.balance import Balance
from selfloop.curate.reweight import Reward
from selfloop.curate.select import Truncate
from selfloop.curate.subset import FILE, Subset
from selfloop.loop import self_consume
from selfloop.measure import Measure, Moments, Selection
from selfloop.mix import Mix
from selfloop.protocols import Algorithm
from selfloop.reading import ConfigError, read
from selfloop.streams import NamedStreams
from selfloop.theory import truncation_factor
from selfloop.work import FolderWork


def cloud(*shape, seed=0):
    return Measure.uniform(np.random.default_rng(seed).standard_normal(shape))


def stream(seed=1):
    return np.random.default_rng(seed)


@dataclasses.dataclass
class Drop:
    """Drop the rows that `rows` says, of those that are shown, and weigh the others."""

    rows: tuple
    weight: float = 1.0
    score: float = 0.0

    def __call__(self, data, rng, work=None):
        index = np.setdiff1d(np.arange(data.n), self.rows)
        weights = np.full((*data.batch, len(index)), self.weight)
        table = {"score": self.score + np.broadcast_to(np.arange(data.n, dtype=float), data.weights.shape)}
        return Selection(index, weights, table)


@dataclasses.dataclass
class Seen:
    """An algorithm that remembers what it was fitted to, and with what budget."""

    budget: float = 1.0
    seen: list = dataclasses.field(default_factory=list)

    def steps(self, budget):
        return round(budget * 100)

    def fit(self, data, rng, work=None):
        self.seen.append((data, self.budget, rng.random()))
        return SimpleNamespace(data=data)

    def restore(self, state):
        return SimpleNamespace(data=None)


# Curators one after the other ------------------------------------------------------------------------------------------


def composed(curators, data, work=None):
    return chain.composed(list(chain.steps(curators, data, stream(), work)), data)


@given(st.data())
def test_the_composed_selection_does_what_the_curators_do_one_after_the_other(drawn):
    """Any chain of random selections, of one data set and of two members."""
    n, batch = drawn.draw(st.integers(2, 12)), drawn.draw(st.sampled_from([(), (2,)]))
    rng = np.random.default_rng(drawn.draw(st.integers(0, 2**32 - 1)))
    data = Measure.uniform(rng.standard_normal((*batch, n, 2)), batch=len(batch)).reweighted(rng.random((*batch, n)))

    def curator(shown, rng, work=None):
        index = np.flatnonzero(rng.random(shown.n) < 0.8)
        index = index if len(index) else np.array([0])
        weights = rng.random((*shown.batch, len(index))) * (rng.random((*shown.batch, len(index))) < 0.9) + 1e-3
        return Selection(index, weights, {"score": rng.random(shown.weights.shape)})

    curators = [curator] * drawn.draw(st.integers(0, 3))
    seen = data
    for one, own in zip(curators, stream().spawn(len(curators)), strict=True):
        seen = one(seen, own).apply(seen)
    whole = composed(curators, data).apply(data)
    np.testing.assert_array_equal(whole.points, seen.points)
    np.testing.assert_allclose(whole.weights, seen.weights, rtol=1e-12)


def test_every_row_has_its_reason_and_the_score_of_the_last_step_that_saw_it():
    data = Measure.uniform(np.arange(12.0).reshape(6, 2), batch=0)
    selection = composed([Drop((1,)), Drop((0, 2), 2.0, 100.0)], data)
    np.testing.assert_array_equal(selection.index, [2, 4, 5])
    np.testing.assert_array_equal(selection.weights, [2, 2, 2])
    np.testing.assert_array_equal(selection.table["reason"], ["Drop", "Drop", "", "Drop", "", ""])
    np.testing.assert_array_equal(selection.table["score"], [100, np.nan, 101, 102, 103, 104])
    np.testing.assert_array_equal(selection.table["0.score"], np.arange(6))


def test_rows_that_are_dropped_by_weight_are_gone_from_one_data_set_and_stay_in_a_batch():
    one = composed([Truncate(radius=0.9)], cloud(40, 2))
    assert 0 < len(one.index) < 40
    assert (one.weights > 0).all()
    batch = composed([Truncate(radius=0.9)], cloud(3, 40, 2))
    assert len(batch.index) == 40
    assert set(np.unique(batch.table["reason"])) == {"", "truncate"}
    np.testing.assert_array_equal(batch.table["reason"] == "", batch.weights > 0)


def test_a_further_curator_changes_no_stream_before_it():
    data = cloud(50, 2)
    random = Balance(clusters={"k": 3}, fraction=0.5)
    one, two = composed([random], data), composed([random, Truncate(radius=3.0)], data)
    np.testing.assert_array_equal(one.table["cluster"], two.table["cluster"])
    assert set(two.index) <= set(one.index)


def test_a_step_that_was_saved_is_found_again_with_its_table(tmp_path):
    class Counting(Drop):
        calls = 0

        def __call__(self, data, rng, work=None):
            type(self).calls += 1
            return super().__call__(data, rng, work)

    data = cloud(30, 2)
    first, second = (composed([Counting((3,))], data, FolderWork(tmp_path, every=0.0)) for _ in range(2))
    assert Counting.calls == 1
    np.testing.assert_array_equal(first.index, second.index)
    np.testing.assert_array_equal(first.table["reason"], second.table["reason"])


def test_a_step_that_took_no_time_writes_nothing(tmp_path):
    composed([Drop((3,))], cloud(30, 2), FolderWork(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_curator_that_keeps_nothing_is_an_error():
    with pytest.raises(ValueError, match="kept none of the rows"):
        composed([Truncate(radius=1e-9)], cloud(30, 2))


# The algorithm ---------------------------------------------------------------------------------------------------------


def test_it_is_the_fit_of_what_the_curators_leave():
    data, curators = cloud(4, 50, 2), (Truncate(radius=1.2), Reward(strength=0.3, target=(1.0, 0.0)))
    model = Curated(algorithm=GaussianFit(), curators=curators).fit(data, stream())
    seen = data
    for curator in curators:
        seen = curator(seen, stream()).apply(seen)
    expected = GaussianFit().fit(seen, stream())
    for name, values in expected.state().items():
        np.testing.assert_allclose(model.state()[name], values, rtol=1e-12, atol=1e-15)


def test_the_stream_of_the_fit_does_not_depend_on_the_curators():
    inner = Seen()
    for curators in ((), (Drop((0,)),), (Drop((0,)), Drop((1, 2)))):
        Curated(algorithm=inner, curators=curators).fit(cloud(20, 2), stream())
    assert [data.n for data, _, _ in inner.seen] == [20, 19, 17]
    assert len({number for _, _, number in inner.seen}) == 1


def test_a_loop_over_it_narrows_as_theory_says():
    """Truncation at every fit of a fully synthetic loop multiplies the variance by a known factor a generation.

    40 replicates of 20,000 points, 4 standard errors; the curators of a mix would leave generation 1 as it is.
    """
    mix, T = Mix(kind="fully_synthetic", n_real=20_000), 4
    source = SimpleNamespace(take=lambda start, n, rng, statistics: Measure.uniform(rng.standard_normal((40, n, 1))))
    algorithm = Curated(algorithm=GaussianFit(), curators=(Truncate(radius=1.5),))
    real = mix.first(source, NamedStreams(0))
    for number, generation in enumerate(self_consume(source, real, algorithm, mix, T, NamedStreams(0)), 1):
        variance = generation.model.law().cov[:, 0, 0]
        assert abs(variance.mean() - truncation_factor(1.5) ** number) < 4 * variance.std(ddof=1) / np.sqrt(40)


def test_tuning_is_not_curated_so_that_sims_tunes_on_the_samples_of_its_base():
    data, inner = cloud(3, 60, 2), GaussianFit()
    curated = Curated(algorithm=inner, curators=(Truncate(radius=0.8),))
    pair = Sims(algorithm=curated, n_synthetic=40, budget=0.5).fit(data, stream()).pair
    fit_rng, draw_rng, tune_rng = stream().spawn(3)
    base = curated.fit(data, fit_rng)
    auxiliary = next(iter(inner.tune(base, base.sample(40, draw_rng), [0.5], tune_rng)))
    for model, expected in ((pair.base, base), (pair.auxiliary, auxiliary)):
        for name, values in expected.state().items():
            np.testing.assert_array_equal(model.state()[name], values)


def test_it_offers_what_the_inner_algorithm_offers_and_no_more():
    curated, plain = Curated(algorithm=GaussianFit()), Curated(algorithm=Seen())
    assert curated.largest_budget == 1
    assert curated.sampler == GaussianFit().sampler
    assert curated.gives == GaussianFit.gives - {"draw"}
    assert curated.tunable
    assert plain.steps(0.5) == 50
    assert not plain.tunable
    for name in ("largest_budget", "sampler"):
        assert not hasattr(plain, name)
    assert not hasattr(curated, "steps")


def test_equal_epochs_scale_the_budget_of_the_fit_by_the_rows_that_stay():
    told = []

    class Told(Seen):
        def fit(self, data, rng, work=None):
            told.append((data.n, self.budget))
            return super().fit(data, rng, work)

    for epochs, dropped in (("more", 15), ("equal", 15), ("equal", 0), ("equal", 1999)):
        Curated(algorithm=Told(), curators=(Drop(tuple(range(dropped))),), epochs=epochs).fit(cloud(2000, 2), stream())
    assert told == [(1985, 1.0), (1985, 0.9925), (2000, 1.0), (1, 0.01)]


def test_the_selection_of_one_data_set_is_in_the_shelf_and_that_of_a_batch_is_not(tmp_path):
    algorithm = Curated(algorithm=GaussianFit(), curators=(Truncate(radius=1.2), Drop((0,))))
    data = cloud(50, 2)
    algorithm.fit(data, stream(), FolderWork(tmp_path / "work", shelf=tmp_path / "shelf"))
    algorithm.fit(cloud(3, 50, 2), stream(), FolderWork(tmp_path / "work", shelf=tmp_path / "batch"))
    subset = Subset.of(tmp_path / "shelf" / FILE)
    expected = composed(algorithm.curators, data)
    np.testing.assert_array_equal(subset.index, expected.index)
    assert subset.config == {"curators": ["truncate", "Drop"]}
    assert list(json.loads((tmp_path / "shelf" / "timings.json").read_text())) == ["0 truncate", "1 Drop", "fit"]
    assert not (tmp_path / "batch").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"algorithm": GaussianFit(), "epochs": "equal"}, "epochs equal scales a budget"),
        ({"algorithm": Curated(algorithm=Seen()), "epochs": "equal"}, "epochs equal scales a budget"),
        ({"algorithm": RegressionFit(noise=0.5, design="fixed")}, "keeps the rows of a fixed design"),
    ],
)
def test_what_does_not_fit_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Curated(**options)


def test_moments_are_refused():
    with pytest.raises(ValueError, match=r"curators look at points.*set statistics: false"):
        Curated(algorithm=GaussianFit()).fit(Moments(10, np.zeros(2), np.eye(2)), stream())


# In the configuration --------------------------------------------------------------------------------------------------

BASE = {
    "generations": 2,
    "replicates": 1,
    "chunk": 1,
    "real": {"kind": "eight_gaussians"},
    "mix": {"n_real": 100},
    "algorithm": {"kind": "curated", "algorithm": "gaussian", "curators": [{"kind": "truncate", "radius": 2.0}]},
    "track": {"mean_norm": {}},
}
IMAGES = {
    "real": {"kind": "images"},
    "algorithm": {
        "kind": "curated",
        "algorithm": {"kind": "edm", "budget": 0.001, "batch": 500},
        "curators": [{"kind": "balance", "clusters": {"k": 3}}],
    },
    "track": {"pictures": {}},
}


def loaded(tmp_path: Path, **changes):
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(BASE | changes))
    return load(read(file))


@pytest.mark.parametrize("changes", [{}, IMAGES])
def test_it_is_read_from_a_file_with_its_curators(tmp_path, changes):
    (point,) = loaded(tmp_path, **changes)
    assert isinstance(point.experiment.algorithm, Curated)
    assert len(point.experiment.algorithm.curators) == 1


def curated(algorithm="gaussian", *curators, **options):
    return {"kind": "curated", "algorithm": algorithm, "curators": list(curators), **options}


UNTUNABLE = {"kind": "autoguidance", "algorithm": "kde", "guide": "kde"}


@component
class ByModel:
    """Keeps all; it would judge by a model."""

    algorithm: Algorithm

    def __call__(self, data, rng, work=None):
        return Selection(np.arange(data.n), np.ones(data.weights.shape), {})


SURROGATE = {"kind": f"{__name__}:ByModel", "algorithm": {"kind": "edm", "budget": 0.001, "batch": 500}}


@pytest.mark.parametrize(
    ("changes", "path", "match"),
    [
        (IMAGES | {"algorithm": curated(IMAGES["algorithm"]["algorithm"], {"kind": "truncate", "radius": 1.0})},
         "algorithm.curators[0]", "truncate is for vectors, and the real data (images) is images; remove it"),
        ({"algorithm": curated("gaussian", {"kind": "reward", "strength": 1.0, "target": [0]})},
         "algorithm.curators[0]", "judges points of dimension 1, and the real data (eight_gaussians) has dimension 2"),
        ({"real": {"kind": "gaussian", "mean": [0], "cov": [[1]]}, "generations": 1,
          "algorithm": curated("gaussian", {"kind": "balance", "by": "class"})},
         "algorithm.curators[0]", "needs real data with class labels, and gaussian has none"),
        ({"algorithm": curated("gaussian", {"kind": "balance", "by": "class"})},
         "algorithm.curators[0]", "needs class labels, and samples of curated have none"),
        ({"mix": {"n_real": 100, "curators": [{"kind": "balance", "by": "class"}]}, "algorithm": "gaussian"},
         "mix.curators[0]", "needs class labels, and samples of gaussian have none"),
        ({"algorithm": {"kind": "neon", "n_synthetic": 10, "budget": 0.5, "algorithm": curated(UNTUNABLE)}},
         "algorithm.algorithm.algorithm", "neon tunes what it is given, and what curated holds cannot be tuned"),
        ({"algorithm": curated("gaussian", SURROGATE)},
         "algorithm.curators[0].algorithm", "needs real data with images, and eight_gaussians has none"),
        ({"mix": {"n_real": 100, "curators": [SURROGATE]}, "algorithm": "gaussian"},
         "mix.curators[0].algorithm", "needs real data with images, and eight_gaussians has none"),
        ({"mix": {"n_real": 100, "warm": 0.5}}, "mix.warm", "tunes on data that curated leaves as they are"),
        ({"real": {"kind": "gaussian", "mean": [0], "cov": [[1]]}, "statistics": True},
         "statistics", "true needs moments drawn without points, and curated gives none"),
        ({"algorithm": curated("gaussian", {"kind": "truncate", "radius": -1.0})},
         "algorithm.curators[0].radius", "must be > 0"),
        ({"algorithm": curated("gaussian", {"kind": "trunkate", "radius": 1.0})},
         "algorithm.curators[0].kind", "did you mean 'truncate'?"),
        ({"algorithm": curated("gaussian", epochs="equal")}, "algorithm.epochs", "equal scales a budget of samples seen"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_found_when_the_file_is_read(tmp_path, changes, path, match):
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, **changes)
    assert any(f"{path}: " in line and match in line for line in str(error.value).splitlines()), error.value
