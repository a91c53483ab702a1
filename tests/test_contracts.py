"""What every registered member must do, whoever wrote it. A new algorithm, source, curator or tracker adds a line to a table.

Where two ways of drawing are compared, 2000 replicates give standard errors and the bound is 4 of them (false alarms: 6e-5 a
comparison; seeds are fixed)."""

import io

import numpy as np
import pytest

from selfloop import registry
from selfloop.curate.subset import Subset
from selfloop.diffusion.sample import Sampler
from selfloop.diffusion.train import LearningRate
from selfloop.diffusion.unet import UNet
from selfloop.embed import Embedding, embedded
from selfloop.loop import self_consume
from selfloop.measure import Measure, Moments, Selection
from selfloop.metrics.track import View
from selfloop.mix import LOOP_TYPES, Mix
from selfloop.protocols import Algorithm, BiasedModel, Curator, Model, MomentModel, Score, ScoreModel, Tunable
from selfloop.streams import NamedStreams

STEPS = Sampler(kind="heun", steps=12, sigma_max=20.0, sigma_min=0.02)


def make(group: str, kind: str, **options):
    return registry.resolve(group, kind)(**options)


PLANE = {"kind": "gaussian", "mean": (0.5, -1.0), "cov": ((1.0, 0.3), (0.3, 2.0))}
SOURCES = {
    "gaussian": PLANE,
    "mixture": {"means": ((-2.0, 0.0), (2.0, 1.0)), "std": 0.5, "weights": (0.3, 0.7)},
    "categorical": {"probabilities": (0.5, 0.3, 0.15, 0.05)},
    "regression": {"coefficients": (1.0, -2.0), "noise": 0.5},
    "digits": {"held_out": 0.5},
    "images": {"held_out": 0.5},
    "eight_gaussians": {"radius": 1.0},
    "grid": {"side": 3},
    "rings": {"radii": (0.5, 1.5)},
    "moons": {"std": 0.2},
    "checkerboard": {"cells": 2},
    "spiral": {"arms": 3},
    "two_classes": {"shares": (0.7, 0.3)},
    "flawed": {"duplicates": 0.2, "copied": 5, "outliers": 0.1},
}


def source_of(kind: str, runs: int):
    """Images have one replicate, without a batch axis."""
    options = {key: value for key, value in SOURCES[kind].items() if key != "kind"}
    if kind == "flawed":
        options["source"] = make("sources", "eight_gaussians")
    return make("sources", kind, **options).replicated(1 if kind == "images" else runs, np.random.default_rng(0))


def gaussian(**options):
    return make("algorithms", "gaussian", **options)


def linear_score(**options):
    return make("algorithms", "linear_score", draws=4, sampler=STEPS, **options)


def edm(**options):
    given = {"network": UNet(channels=4, multipliers=(1,), blocks=1, attention=()), "batch": 512, "budget": 0.001024}
    rate = LearningRate(rate=1e-2, warmup=0.0)
    return make(
        "algorithms", "edm", **given, sampler=STEPS, learning_rate=rate, tune_learning_rate=rate, sigma_data=0.75, **options
    )


def score_net(**options):
    return make("algorithms", "score_net", width=8, layers=1, batch=16, budget=0.0008, sampler=STEPS, **options)


BALANCED = make(
    "curators", "balance", clusters=make("curators", "selfloop.curate.cluster:Clusters", k=3), fraction=0.5, how="undersample"
)
ALGORITHMS = {
    "gaussian": [(gaussian(), "gaussian"), (gaussian(sampler=STEPS, estimator="unbiased", shrinkage="oas"), "gaussian")],
    "mixture": [(make("algorithms", "mixture", components=2, sampler=s), "mixture") for s in (Sampler(), STEPS)],
    "kde": [(make("algorithms", "kde", bandwidth=b), "mixture") for b in ("silverman", 0.3)],
    "linear_score": [
        (linear_score(features=0), "gaussian"),
        *((linear_score(features=16, basis=basis), "mixture") for basis in ("rbf", "fourier")),
    ],
    "score_net": [
        (score_net(**o), k) for o, k in (({}, "gaussian"), ({"optimiser": "kept"}, "mixture"), ({"average": 0.1}, "mixture"))
    ],
    "categorical": [(make("algorithms", "categorical"), "categorical")],
    "regression": [(make("algorithms", "regression", noise=0.5, design=d), "regression") for d in ("fixed", "fresh")],
    "edm": [(edm(**o), "images") for o in ({}, {"classes": 10}, {"weights": "loss", "loss_weight": "learned"})],
    "sims": [
        (make("algorithms", "sims", algorithm=gaussian(sampler=s), n_synthetic=50, budget=0.5, omega=1.5), "gaussian")
        for s in (Sampler(), STEPS)
    ]
    + [
        (
            make(
                "algorithms",
                "sims",
                algorithm=make("algorithms", "mixture", components=2, sampler=STEPS),
                n_synthetic=50,
                budget=0.5,
                omega=0.5,
            ),
            "mixture",
        )
    ]
    + [
        (make("algorithms", "sims", algorithm=linear_score(features=m), n_synthetic=50, budget=2.0, omega=0.5), source)
        for m, source in ((0, "gaussian"), (16, "mixture"))
    ]
    + [(make("algorithms", "sims", algorithm=score_net(), n_synthetic=50, budget=0.0008, omega=0.5), "mixture")]
    + [(make("algorithms", "sims", algorithm=edm(), n_synthetic=50, budget=0.000512, budgets=(0.000512, 0.001024)), "images")],
    "neon": [
        (make("algorithms", "neon", algorithm=gaussian(), n_synthetic=50, budget=0.5, omega=1.5), "gaussian"),
        (
            make(
                "algorithms",
                "neon",
                algorithm=make("algorithms", "mixture", components=2),
                n_synthetic=50,
                budget=0.2,
                omega=0.5,
            ),
            "mixture",
        ),
        (make("algorithms", "neon", algorithm=score_net(), n_synthetic=50, budget=0.0008, omega=0.5), "mixture"),
        (make("algorithms", "neon", algorithm=edm(), n_synthetic=50, budget=0.000512, omega=0.5), "images"),
    ],
    "autoguidance": [
        (make("algorithms", "autoguidance", algorithm=good, guide=weak, omega=0.5), source)
        for good, weak, source in (
            (gaussian(sampler=STEPS), gaussian(sampler=STEPS, estimator="unbiased"), "gaussian"),
            (edm(), edm(average=0.2), "images"),
        )
    ],
    "curated": [
        (
            make(
                "algorithms",
                "curated",
                algorithm=gaussian(sampler=STEPS),
                curators=(
                    make("curators", "truncate", radius=1.2),
                    make("curators", "reward", strength=0.1, target=(0.0, 0.0)),
                ),
            ),
            "gaussian",
        ),
        (make("algorithms", "curated", algorithm=score_net(), curators=(BALANCED,), epochs="equal"), "mixture"),
        (make("algorithms", "curated", algorithm=edm(), curators=(BALANCED,)), "images"),
    ],
    "control": [
        (
            make(
                "algorithms",
                "control",
                algorithm=make("algorithms", "mixture", components=2, sampler=STEPS),
                n_synthetic=50,
                budget=0.5,
                target=(0.6, 0.4),
                omega=2.0,
                extrapolate="odds",
                clusters=2,
            ),
            "mixture",
        )
    ],
}
CASES = [
    pytest.param(algorithm, source, id=f"{kind}-{i}")
    for kind, cases in ALGORITHMS.items()
    for i, (algorithm, source) in enumerate(cases)
]


def test_every_registered_algorithm_and_source_is_under_contract():
    assert set(ALGORITHMS) == set(registry.KINDS["algorithms"])
    assert set(SOURCES) == set(registry.KINDS["sources"])


def fitted(algorithm: Algorithm, source: str, runs: int = 3, n: int = 60, seed: int = 1) -> tuple[Measure, Model]:
    data = source_of(source, runs).take(0, n, np.random.default_rng(seed))
    return data, algorithm.fit(data, np.random.default_rng(seed + 1))


@pytest.mark.parametrize(("algorithm", "source"), CASES)
def test_samples_are_measures_of_the_batch_and_event_of_the_data(algorithm, source):
    data, model = fitted(algorithm, source)
    drawn = model.sample(40, np.random.default_rng(3))
    assert isinstance(model, Model)
    assert (drawn.batch, drawn.n, drawn.event) == (data.batch, 40, data.event)
    assert np.isfinite(drawn.points).all()
    np.testing.assert_allclose(drawn.weights.sum(axis=-1), 1)


@pytest.mark.parametrize(("algorithm", "source"), CASES)
def test_the_same_streams_give_the_same_bits(algorithm, source):
    (_, one), (_, two) = fitted(algorithm, source), fitted(algorithm, source)
    np.testing.assert_array_equal(*(m.sample(20, np.random.default_rng(3)).points for m in (one, two)))


@pytest.mark.parametrize(("algorithm", "source"), CASES)
def test_a_model_comes_back_from_its_state_through_plain_arrays(algorithm, source):
    _, model = fitted(algorithm, source)
    buffer = io.BytesIO()
    np.savez(buffer, **model.state())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as file:
        back = algorithm.restore(dict(file))
    np.testing.assert_array_equal(*(m.sample(20, np.random.default_rng(3)).points for m in (model, back)))
    if model.law() is not None:
        np.testing.assert_array_equal(model.law().cov, back.law().cov)


@pytest.mark.parametrize(("algorithm", "source"), CASES)
def test_what_an_algorithm_says_it_gives_is_there(algorithm, source):
    _, model = fitted(algorithm, source)
    gives = algorithm.gives
    assert ("law" in gives) == (model.law() is not None)
    assert "draw" not in gives or isinstance(model, MomentModel)
    assert "denoise" not in gives or isinstance(model, ScoreModel)
    assert "biased" not in gives or isinstance(model, BiasedModel)
    assert ("images" in gives) == (source == "images") or "pair" in gives
    for name in ("probabilities", "coefficients"):
        assert name not in gives or hasattr(model, name)


@pytest.mark.parametrize(("algorithm", "source"), [case for case in CASES if case.values[1] != "images"])
def test_a_member_that_is_not_finite_leaves_its_neighbours_bit_identical(algorithm, source):
    data, model = fitted(algorithm, source)
    points = np.array(data.points, dtype=float)
    points[0, 0] = np.nan
    with np.errstate(all="ignore"):
        spoilt = algorithm.fit(Measure(points, data.weights), np.random.default_rng(2))
        drawn = [m.sample(20, np.random.default_rng(3)).points for m in (model, spoilt)]
    np.testing.assert_array_equal(drawn[0][1:], drawn[1][1:])


@pytest.mark.parametrize(("algorithm", "source"), CASES)
def test_a_point_of_no_weight_has_no_say(algorithm, source):
    """So curators, which drop points by weight 0, act on every algorithm. (A fixed design keeps all its rows.)"""
    if getattr(algorithm, "design", "fresh") == "fixed":
        algorithm = type(algorithm)(noise=algorithm.noise, design="fresh")
    data, _ = fitted(algorithm, source)
    weights = np.ones(data.weights.shape)
    weights[..., ::7] = 0
    points, every = np.array(data.points), (slice(None),) * len(data.batch)
    points[(*every, slice(None, None, 7))] = points[:, 1:2] if source == "categorical" else 9
    one, two = (
        algorithm.fit(Measure(x, weights / weights.sum(axis=-1, keepdims=True), data.labels), np.random.default_rng(2))
        for x in (np.array(data.points), points)
    )
    drawn = [model.sample(20, np.random.default_rng(3)).points for model in (one, two)]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("algorithm", "source"), [case for case in CASES if "law" in case.values[0].gives])
def test_samples_follow_the_law_that_is_claimed(algorithm, source):
    _, model = fitted(algorithm, source, runs=1)
    law, x = model.law(), np.asarray(model.sample(40_000, np.random.default_rng(5)).points[0])
    error = np.sqrt(np.diag(law.cov[0]) / len(x))
    assert np.all(np.abs(x.mean(axis=0) - law.mean[0]) < 4 * error)
    centred = x - law.mean[0]
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(axis=0) / np.sqrt(len(x))
    assert np.all(np.abs(products.mean(axis=0) - law.cov[0]) < 4 * error)


@pytest.mark.parametrize(("algorithm", "source"), [case for case in CASES if "draw" in case.values[0].gives])
def test_moments_drawn_without_points_have_the_law_of_moments_of_points(algorithm, source):
    """Mean and variance, over 2000 replicates of one model, of every entry of mean and covariance."""
    data, _ = fitted(algorithm, source, runs=1)
    many = Measure(np.repeat(data.points, 2000, axis=0), np.repeat(data.weights, 2000, axis=0))
    model = algorithm.fit(many, np.random.default_rng(2))
    drawn, made = model.draw(60, np.random.default_rng(3)), model.sample(60, np.random.default_rng(4)).moments()
    for a, b in ((drawn.mean, made.mean), (drawn.cov, made.cov)):
        a, b = a.reshape(2000, -1), b.reshape(2000, -1)
        for x, y in ((a, b), ((a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2)):
            error = np.sqrt((x.var(axis=0) + y.var(axis=0)) / 2000) + 1e-12
            assert np.all(np.abs(x.mean(axis=0) - y.mean(axis=0)) < 4 * error)


TUNED = [case for case in CASES if isinstance(case.values[0], Tunable)]


@pytest.mark.parametrize(("algorithm", "source"), [case for case in TUNED if hasattr(case.values[0], "largest_budget")])
def test_tuning_starts_at_the_model_and_ends_at_the_fit(algorithm, source):
    _, model = fitted(algorithm, source)
    other, _ = fitted(algorithm, source, seed=7)
    start, half, end = algorithm.tune(model, other, [0.0, 0.5, 1.0], np.random.default_rng(2))
    for name, values in model.state().items():
        np.testing.assert_allclose(start.state()[name], values, rtol=1e-9, atol=1e-12)
    assert any(not np.allclose(half.state()[name], values) for name, values in model.state().items())
    back = algorithm.interpolate(end, model, 1.0)
    for name, values in model.state().items():
        np.testing.assert_allclose(back.state()[name], values, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"fraction eta in \[0, 1\]"):
        list(algorithm.tune(model, other, [1.5], np.random.default_rng(2)))


@pytest.mark.parametrize(("algorithm", "source"), [case for case in TUNED if not hasattr(case.values[0], "largest_budget")])
def test_tuning_in_steps_starts_at_the_model_and_goes_on_as_long_as_it_is_told(algorithm, source):
    """Budgets have units of their own and no largest; `interpolate` is the line between two models of one trajectory."""
    _, model = fitted(algorithm, source)
    other, _ = fitted(algorithm, source, seed=7)
    start, *path = algorithm.tune(model, other, [0.0, 0.002, 0.004], np.random.default_rng(2))
    for name, values in model.state().items():
        np.testing.assert_array_equal(start.state()[name], values)
    for before, after in zip([start, *path], path, strict=False):
        assert any(not np.array_equal(after.state()[name], values) for name, values in before.state().items())
    back, there = algorithm.interpolate(path[-1], model, 1.0), model.state()
    for name, values in back.state().items():
        np.testing.assert_allclose(values, there[name], rtol=1e-6, atol=1e-7 if values.dtype == np.float32 else 1e-12)
    with pytest.raises(ValueError, match="budget"):
        list(algorithm.tune(model, other, [-1.0], np.random.default_rng(2)))


@pytest.mark.parametrize("kind", LOOP_TYPES)
@pytest.mark.parametrize(("algorithm", "source"), CASES)
def test_every_algorithm_runs_in_every_loop_type(algorithm, source, kind):
    runs, mix, streams = 2, Mix(kind=kind, n_real=60), NamedStreams(0)
    supply = source_of(source, runs)
    for statistics in {False, "draw" in algorithm.gives and not mix.type.subsample}:
        real = mix.first(supply, streams, statistics)
        generations = list(self_consume(supply, real, algorithm, mix, 3, streams))
        assert len(generations) == 3
        assert not generations[-1].diverged.any()
        assert isinstance(generations[-1].drawn, Moments if statistics else Measure)


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "images"])  # without batch: see test_images
def test_sources_hand_out_rows_without_using_one_twice(kind):
    supply = source_of(kind, 2)
    first, second = (supply.take(start, 30, np.random.default_rng(start)) for start in (0, 30))
    assert first.n == second.n == 30
    assert first.batch == (2,)
    if kind == "digits":
        together = {tuple(row) for data in (first, second) for row in data.points[0]}
        assert len(together) == 60
        with pytest.raises(ValueError, match="exhausted"):
            supply.take(880, 30, np.random.default_rng(0))
    assert not np.array_equal(first.points[0], first.points[1])


TRACKERS = {
    "w2": ("gaussian", {"w2"}),
    "w2_moments": ("gaussian", {"w2_moments"}),
    "w2_empirical": ("gaussian", {"w2_empirical", "w2_floor"}),
    "frechet": ("gaussian", {"frechet", "frechet_floor"}),
    "sampler_w2": ("gaussian", {"sampler_w2"}),
    "guidance": ("gaussian", {"omega", "eta", "omega_predicted", "log_bias"}),
    "mean_norm": ("gaussian", {"mean_norm"}),
    "variance": ("gaussian", {"variance", "log_variance"}),
    "log_det": ("gaussian", {"log_det"}),
    "modes": ("mixture", {"mode_coverage", "mode_entropy"}),
    "categories": ("categorical", {"entropy", "heterozygosity", "support"}),
    "excess_risk": ("regression", {"excess_risk"}),
    "class_shares": (
        "digits",
        {"class_tv", "class_entropy", *(f"class_{name}.{c}" for name in ("share", "w2_moments") for c in range(10))},
    ),
    "nearest": ("gaussian", {f"{name}{of}" for name in ("nearest", "copied", "most_copied") for of in ("", "_real")}),
}
FITTED_BY = {
    "gaussian": gaussian(sampler=STEPS),
    "mixture": ALGORITHMS["mixture"][0][0],
    "categorical": ALGORITHMS["categorical"][0][0],
    "regression": ALGORITHMS["regression"][0][0],
    "digits": make("algorithms", "kde", bandwidth=0.05),
    "guidance": ALGORITHMS["sims"][1][0],
}


@pytest.mark.parametrize("kind", TRACKERS)
def test_trackers_give_a_finite_value_a_replicate_and_touch_no_other_stream(kind):
    assert {*TRACKERS, "image_quality", "pictures"} == set(registry.KINDS["trackers"])  # without batch: test_image_metrics
    source, names = TRACKERS[kind]
    supply, streams = source_of(source, 3), NamedStreams(0)
    mix = Mix(kind="augment", n_real=200)
    real = mix.first(supply, streams)
    generation = next(iter(self_consume(supply, real, FITTED_BY.get(kind, FITTED_BY[source]), mix, 1, streams)))
    tracker = make("trackers", kind, **{"class_shares": {"n_train": 500}, "nearest": {"n_train": 200}}.get(kind, {}))
    values = tracker(View(generation, supply, streams, 2))
    assert set(values) == names
    assert all(np.shape(value) == (2,) and np.isfinite(value).all() for value in values.values())
    again = tracker(View(generation, supply, streams, 3))
    assert all(np.array_equal(values[name], again[name][:2]) for name in names)


def clusters(k: int):
    return make("curators", "selfloop.curate.cluster:Clusters", k=k)


DENSITY = make("scores", "gaussian", per_class=False)
CURATORS = {
    "truncate": {"radius": 1.0},
    "reward": {"strength": 0.5, "target": (0.0, 0.0)},
    "balance": {"clusters": clusters(1), "how": "weights"},
    "file": {},
    "prune": {"score": DENSITY, "fraction": 0.3, "keep": "low"},
    "clusters": {"clusters": clusters(1), "fraction": 0.3, "order": "near"},
    "hierarchical": {"clusters": clusters(4), "levels": (2,), "fraction": 0.3, "order": "near"},
    "dedup": {"clusters": clusters(1), "epsilon": 0.3, "survivor": "greedy", "order": "far"},
    "k_center": {"fraction": 0.3},
    "herding": {"fraction": 0.3},
    "d2": {"score": DENSITY, "fraction": 0.3, "keep": "high"},
    "dro": {"reference": gaussian(), "proxy": gaussian(), "clusters": clusters(1), "budget": 0.5, "rounds": 2},
    "group_dro": {"proxy": gaussian(), "clusters": clusters(1), "budget": 0.5, "rounds": 2},
    "inverse_frequency": {"clusters": clusters(1)},
}


def subset_file(folder, data: Measure) -> str:
    """A file that keeps two rows in three of all members."""
    rows = Measure.uniform(np.concatenate(list(data.points)), batch=0)
    index = np.flatnonzero(np.arange(rows.n) % 3)
    Subset.made(rows, Selection(index, 1.0 + index, {}), {}).write(folder / "subset.parquet")
    return str(folder / "subset.parquet")


BY_ROW_NUMBER = {"hierarchical"}
"""Those whose random numbers depend on the order of the rows."""


@pytest.mark.parametrize("kind", CURATORS)
def test_curators_select_rows_in_order_with_weights_and_a_table_over_all_rows(kind, tmp_path):
    assert set(CURATORS) == set(registry.KINDS["curators"])
    data = source_of("gaussian", 3).take(0, 50, np.random.default_rng(0))
    options = CURATORS[kind] if kind != "file" else {"path": subset_file(tmp_path, data)}
    curator = make("curators", kind, **options)
    assert isinstance(curator, Curator)
    selection = curator(data, np.random.default_rng(1))
    assert np.array_equal(selection.index, np.unique(selection.index))
    assert all(column.shape == (3, 50) for column in selection.table.values())
    kept = selection.apply(data)
    np.testing.assert_allclose(kept.weights.sum(axis=-1), 1)
    if kind in BY_ROW_NUMBER:
        return
    shuffled = np.random.default_rng(2).permutation(50)
    other = curator(data.subset(shuffled), np.random.default_rng(1)).apply(data.subset(shuffled))
    np.testing.assert_allclose(other.weights, kept.weights[:, shuffled], rtol=1e-9)


SCORES = {
    "gaussian": {"per_class": False},
    "ppca": {"per_class": False},
    "knn": {"k": 3},
    "centre": {"clusters": make("curators", "selfloop.curate.cluster:Clusters", k=3)},
    "prototypes": {"k": 3},
    "moderate": {"per_class": False},
    "random": {},
    "denoising_loss": {"algorithm": gaussian()},
    "denoising_gradient": {"algorithm": score_net(), "levels": 2},
    "moso": {"algorithm": score_net(), "budget": 0.0008, "checkpoints": 2, "levels": 2},
    "forgetting": {"runs": 1, "epochs": 3},
    "el2n": {"runs": 1, "epochs": 1},
    "grand": {"runs": 1, "epochs": 1},
}


def test_every_registered_score_is_under_contract():
    assert set(SCORES) == set(registry.KINDS["scores"])


@pytest.mark.parametrize("kind", SCORES)
def test_scores_are_finite_numbers_one_a_row_and_follow_the_stream_alone(kind):
    data = source_of("two_classes", 1).take(0, 60, np.random.default_rng(0))
    data = Measure.uniform(data.points[0], data.labels[0])
    score = make("scores", kind, **SCORES[kind])
    assert isinstance(score, Score)
    one, two = (score(data, np.random.default_rng(1)) for _ in range(2))
    assert (one.shape, one.dtype) == ((60,), np.float64)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)
    assert {"points"} <= score.takes


EMBEDDINGS = {"pixels": {}, "classifier": {"steps": 2}, "pca": {"components": 3}}
OF_FILES = {"inception", "dinov2", "clip", "vae", "module", "file", "cached"}


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_features_of_all_rows_are_those_of_the_fitted_embedding(kind):
    """Those that need files are in test_embed."""
    assert {*EMBEDDINGS, *OF_FILES} == set(registry.KINDS["embeddings"])
    data = source_of("images", 1).train().subset(np.arange(100))
    embedding = make("embeddings", kind, **EMBEDDINGS[kind])
    assert isinstance(embedding, Embedding)
    found = embedded(embedding, data)
    assert (len(found), found.dtype) == (100, np.float32)
    np.testing.assert_allclose(embedding.fitted(data)(data.points), found, rtol=1e-4, atol=1e-5)
