"""Laws in the plane against quadrature of what lies under their noise, Tweedie's formula and their exact moments.

Where samples are compared with exact values the bound is 4 standard errors (false alarms: 6e-5 a comparison; seeds are fixed).
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from selfloop.data import SourceFactory
from selfloop.measure import Moments
from selfloop.metrics.track import Modes, View
from selfloop.plane import Checkerboard, EightGaussians, Grid, Moons, Rings, Spiral, TwoClasses
from selfloop.protocols import Generation, Source
from selfloop.registry import KINDS, resolve
from selfloop.streams import NamedStreams

DEFAULT = [EightGaussians(), Grid(), Rings(), Moons(), Checkerboard(), Spiral(), TwoClasses()]
OTHER = [
    EightGaussians(radius=2.0, std=0.5),
    Grid(side=2, spacing=1.0, std=0.4),
    Rings(radii=(1.5, 0.5), std=0.3),
    Moons(std=0.6),
    Checkerboard(cells=2),
    Spiral(turns=0.75, arms=3, std=0.3),
    TwoClasses(shares=(0.3, 0.7), std=0.8),
]
ALL = pytest.mark.parametrize("kind", [*DEFAULT, *OTHER], ids=lambda kind: f"{type(kind).__name__}-{kind in DEFAULT}")
LEVELS = (0.05, 0.4, 3.0, 50.0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def law_of(kind, replicates=1):
    return kind.replicated(replicates, np.random.default_rng(0)).model


def circle(angle):
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def skeleton(kind, panels=200):
    """What lies under the noise of a law: for each class its points (M, 2) and weights (M,); and the std of the noise."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    t = ((np.arange(panels)[:, None] + (nodes + 1) / 2) / panels).ravel()
    uniform = np.tile(weights / 2 / panels, panels)
    match kind:
        case EightGaussians():
            return [(kind.radius * circle(np.array([angle])), [1 / 8]) for angle in np.pi * np.arange(8) / 4], kind.std
        case Grid():
            first = -kind.spacing * (kind.side - 1) / 2
            corners = [(i, j) for i in range(kind.side) for j in range(kind.side)]
            return [(first + kind.spacing * np.array([corner]), [kind.side**-2.0]) for corner in corners], kind.std
        case Rings():
            return [(r * circle(2 * np.pi * t), uniform / len(kind.radii)) for r in kind.radii], kind.std
        case Moons():
            moon = np.sqrt(2) * np.stack([np.cos(np.pi * t) - 0.5, np.sin(np.pi * t) - 0.25], axis=-1)
            return [(moon, uniform / 2), (-moon, uniform / 2)], kind.std
        case Spiral():
            angles = 2 * np.pi * np.arange(kind.arms) / kind.arms
            arms = [2 * t[:, None] * circle(2 * np.pi * kind.turns * t + angle) for angle in angles]
            return [(arm, 2 * t * uniform / kind.arms) for arm in arms], kind.std
        case TwoClasses():
            corners = 0.9 * np.array([[1, 1], [-1, -1]]), 0.9 * np.array([[1, -1], [-1, 1]])
            return [(m, np.full(2, share / 2)) for m, share in zip(corners, kind.shares, strict=True)], kind.std
        case Checkerboard():
            nodes, weights = np.polynomial.legendre.leggauss(64)
            edges = np.linspace(-np.sqrt(3), np.sqrt(3), kind.cells + 1)
            lines = [(a + b) / 2 + (b - a) / 2 * nodes for a, b in pairwise(edges)]
            filled = [(i, j) for i in range(kind.cells) for j in range(kind.cells) if (i + j) % 2 == 0]
            squares = [np.stack(np.meshgrid(lines[i], lines[j], indexing="ij"), -1).reshape(-1, 2) for i, j in filled]
            return [(square, np.outer(weights, weights).ravel() / 4 / len(filled)) for square in squares], 0.0


def by_quadrature(kind, x, sigma, panels=200):
    """ln w_c p_c(x; sigma) (n, C) and D(x; sigma) (n, 2) at x (n, 2), by sums over the skeleton."""
    classes, std = skeleton(kind, panels)
    s2 = std**2 + sigma**2
    logs = [np.log(w) - ((x[:, None] - points) ** 2).sum(axis=-1) / (2 * s2) - np.log(2 * np.pi * s2) for points, w in classes]
    joint = np.stack([logsumexp(part, axis=1) for part in logs], axis=1)
    total = logsumexp(joint, axis=1)[:, None]
    under = sum(np.exp(part - total) @ points for part, (points, _) in zip(logs, classes, strict=True))
    return joint, (std**2 * x + sigma**2 * under) / s2


def exact_moments(kind):
    """Mean and covariance, from the formulas in the documentation."""
    match kind:
        case EightGaussians():
            variance = kind.radius**2 / 2 + kind.std**2
        case Grid():
            variance = kind.spacing**2 * (kind.side**2 - 1) / 12 + kind.std**2
        case Rings():
            variance = np.mean(np.square(kind.radii)) / 2 + kind.std**2
        case Moons():
            across = 1 / 8 - 1 / np.pi
            return 2 * np.array([[3 / 4, across], [across, 9 / 16 - 1 / np.pi]]) + kind.std**2 * np.eye(2)
        case Checkerboard():
            return np.array([[1, 3 / kind.cells**2], [3 / kind.cells**2, 1]])
        case Spiral():
            if kind.arms < 3:
                return None
            variance = 1 + kind.std**2
        case TwoClasses():
            across = 0.81 * (kind.shares[0] - kind.shares[1])
            return np.array([[0, across], [across, 0]]) + (0.81 + kind.std**2) * np.eye(2)
    return variance * np.eye(2)


def around(kind, n, sigma, rng):
    """n points that are likely under p( . ; sigma), and as many that are not."""
    x = law_of(kind).sample(n, rng).points[0] + sigma * rng.standard_normal((n, 2))
    return np.concatenate([x, rng.uniform(-4, 4, (n, 2))])


def test_every_law_here_is_registered_and_makes_sources():
    places = [f"selfloop.plane:{type(kind).__name__}" for kind in DEFAULT]
    assert set(places) == {place for place in KINDS["sources"].values() if "plane" in place}
    for name, place in KINDS["sources"].items():
        if place in places:
            factory = resolve("sources", name)()
            assert isinstance(factory, SourceFactory)
            assert isinstance(factory.replicated(2, np.random.default_rng(0)), Source)
            assert (factory.d, "labels" in factory.gives) == (2, True)
            assert ("modes" in factory.gives) == (isinstance(factory, EightGaussians | Grid | TwoClasses))


@ALL
def test_samples_have_the_exact_mean_and_covariance(kind, rng):
    x = law_of(kind).sample(100_000, rng).points[0]
    cov = exact_moments(kind)
    if isinstance(kind, Spiral):
        square = (x**2).sum(axis=1) / 2
        assert abs(square.mean() - 1 - kind.std**2) < 4 * square.std() / np.sqrt(len(x))
    assert (np.abs(x.mean(axis=0)) < 4 * x.std(axis=0) / np.sqrt(len(x))).all()
    if cov is not None:
        products = x[:, :, None] * x[:, None, :]
        assert (np.abs(products.mean(axis=0) - cov) < 4 * products.std(axis=0) / np.sqrt(len(x))).all()


@pytest.mark.parametrize("kind", DEFAULT, ids=lambda kind: type(kind).__name__)
def test_by_default_a_coordinate_has_a_mean_variance_of_one_within_three_percent(kind):
    cov = exact_moments(kind)
    variance = 1 + kind.std**2 if cov is None else np.trace(cov) / 2
    assert abs(variance - 1) < 0.03


@ALL
def test_labels_have_the_shares_of_the_classes(kind, rng):
    n = 50_000
    shares = np.array([np.sum(weights) for _, weights in skeleton(kind)[0]])
    counts = np.bincount(law_of(kind).sample(n, rng).labels[0], minlength=len(shares))
    assert len(counts) == len(shares)
    assert (np.abs(counts / n - shares) < 4 * np.sqrt(shares * (1 - shares) / n)).all()


@ALL
def test_points_of_a_class_have_the_mean_of_that_class(kind, rng):
    drawn = law_of(kind).sample(50_000, rng)
    for c, (points, weights) in enumerate(skeleton(kind)[0]):
        x = drawn.points[0][drawn.labels[0] == c]
        mean = np.asarray(weights) @ points / np.sum(weights)
        assert (np.abs(x.mean(axis=0) - mean) < 4 * x.std(axis=0) / np.sqrt(len(x))).all()


@ALL
@pytest.mark.parametrize("sigma", LEVELS)
def test_density_and_denoiser_are_those_of_quadrature(kind, sigma, rng):
    x = around(kind, 15, sigma, rng)
    joint, mean = by_quadrature(kind, x, sigma)
    law = law_of(kind)
    density = logsumexp(joint, axis=1)
    np.testing.assert_allclose(np.exp(law.log_density(x, sigma)), np.exp(density), atol=1e-6 * np.exp(density.max()))
    near = density > (-12 if isinstance(kind, Checkerboard) else -np.inf)  # 64 nodes cannot follow the tail of a sharp edge
    assert near.sum() >= 10
    np.testing.assert_allclose(law.denoise(x, sigma)[near], mean[near], atol=1e-6)


@ALL
@pytest.mark.parametrize("sigma", LEVELS)
def test_the_score_is_the_gradient_of_the_log_density(kind, sigma, rng):
    """Tweedie's formula, D = x + sigma^2 grad ln p(x; sigma); central differences, error O(h^2)."""
    x, law = around(kind, 15, sigma, rng), law_of(kind)
    h = 1e-4 * np.hypot(getattr(kind, "std", 0.0), sigma)
    gradient = [(law.log_density(x + step, sigma) - law.log_density(x - step, sigma)) / (2 * h) for step in h * np.eye(2)]
    expected = x + sigma**2 * np.stack(gradient, axis=-1)
    np.testing.assert_allclose(law.denoise(x, sigma), expected, atol=2e-6 * max(1, sigma**2))


@ALL
def test_what_the_denoiser_misses_is_uncorrelated_with_what_it_sees(kind, rng):
    """E[(x_0 - D(x)) f(x)] = 0 for x = x_0 + sigma z and any f: sampler and denoiser are of one law."""
    law, sigma = law_of(kind), 0.3
    clean = law.sample(6_000, rng).points[0]
    x = clean + sigma * rng.standard_normal(clean.shape)
    seen = np.concatenate([np.ones((len(x), 1)), x, np.sin(3 * x), np.cos(2 * np.hypot(*x.T))[:, None]], axis=1)
    products = (clean - law.denoise(x, sigma))[:, :, None] * seen[:, None, :]
    assert (np.abs(products.mean(axis=0)) < 4 * products.std(axis=0) / np.sqrt(len(x))).all()


def nearest_square(kind, x):
    """Minus the distances (n, C) to the squares of a board."""
    nodes = [points for points, _ in skeleton(kind)[0]]
    low, high = (np.array([corner(points, axis=0) for points in nodes]) for corner in (np.min, np.max))
    w = np.sqrt(3) / kind.cells
    middle = (low + high) / 2
    return -np.sqrt((np.maximum(np.abs(x[:, None] - middle) - w, 0) ** 2).sum(axis=-1))


@ALL
def test_the_class_named_is_the_most_probable_one(kind, rng):
    """Where a board has no density its nearest square, the limit sigma -> 0."""
    x = around(kind, 40, 0.2, rng)
    joint = nearest_square(kind, x) if isinstance(kind, Checkerboard) else by_quadrature(kind, x, 0.0)[0]
    least, most = np.sort(joint, axis=1)[:, -2:].T
    clear = most - least > 1e-6
    assert clear.sum() > 40
    np.testing.assert_array_equal(law_of(kind).classify(x)[clear], joint.argmax(axis=1)[clear])


@pytest.mark.parametrize("kind", [kind for kind in OTHER if not isinstance(kind, Checkerboard)], ids=lambda k: type(k).__name__)
def test_the_error_rate_is_that_of_bayes_rule(kind, rng):
    """P(error) = 1 - E max_c P(c | x), the probabilities of the classes by quadrature."""
    law = law_of(kind)
    drawn, other = law.sample(20_000, rng), law.sample(1_000, rng)
    wrong = law.classify(drawn.points[0]) != drawn.labels[0]
    joint, _ = by_quadrature(kind, other.points[0], 0.0, panels=10)
    risk = 1 - np.exp(joint.max(axis=1) - logsumexp(joint, axis=1))
    error = np.hypot(wrong.std() / np.sqrt(len(wrong)), risk.std() / np.sqrt(len(risk)))
    assert abs(wrong.mean() - risk.mean()) < 4 * error
    assert risk.mean() > 0.01


def test_no_point_of_a_board_is_confused(rng):
    law = law_of(Checkerboard())
    drawn = law.sample(10_000, rng)
    np.testing.assert_array_equal(law.classify(drawn.points), drawn.labels)


def test_two_classes_are_confused_as_often_as_the_documentation_says():
    line = (np.arange(1000) + 0.5) / 1000 * 8 - 4
    x = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    corners = 0.9 * np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]])
    parts = [w * multivariate_normal(m, 0.45**2).pdf(x) for m, w in zip(corners, (0.4, 0.4, 0.1, 0.1), strict=True)]
    risk = 1 - np.maximum(parts[0] + parts[1], parts[2] + parts[3]).sum() * (8 / 1000) ** 2
    assert round(100 * risk, 2) == 3.35


@pytest.mark.parametrize("std", [0.02, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("kind", [Moons, Spiral])
def test_a_curve_is_a_mixture_to_the_digits_it_claims(kind, std, rng):
    curve = kind(std=std) if kind is Moons else kind(std=std, turns=1.5)
    x = np.concatenate([points[::200] for points, _ in skeleton(curve)[0]])
    x = np.concatenate([x, x + std * rng.standard_normal(x.shape)])
    exact = np.exp(logsumexp(by_quadrature(curve, x, 0.0)[0], axis=1))
    np.testing.assert_allclose(np.exp(law_of(curve).log_density(x)), exact, atol=1e-8 * exact.max(), rtol=0)


@ALL
def test_without_noise_the_denoiser_changes_nothing(kind, rng):
    x = law_of(kind).sample(50, rng).points
    np.testing.assert_allclose(law_of(kind).denoise(x, 0.0), x, atol=1e-12)


def test_the_density_of_a_board_is_uniform_on_its_squares_and_zero_elsewhere(rng):
    kind = Checkerboard()
    law, x = law_of(kind), rng.uniform(-2, 2, (1000, 2))
    inside = nearest_square(kind, x).max(axis=1) == 0
    assert 0.2 < inside.mean() < 0.6
    np.testing.assert_array_equal(law.log_density(x) > -np.inf, inside)
    np.testing.assert_allclose(np.exp(law.log_density(x)[inside]), 1 / 6)
    edges = np.array([[-np.sqrt(3), -np.sqrt(3)], [0.0, 0.0]])
    assert np.isfinite(law.log_density(edges)).all()
    assert np.isfinite(law.denoise(edges, 0.0)).all()


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1e-3, 1e-2])
def test_far_from_a_board_the_denoiser_is_just_inside_its_nearest_edge(sigma):
    """At t >> sigma from the edge x_0 is exponential behind it, of mean sigma^2 / t to a relative (sigma / t)^2."""
    law, edge = law_of(Checkerboard()), np.sqrt(3)
    t = np.array([0.3, 1.0, 30.0])
    x = np.stack([edge + t, np.full(3, edge - 0.4)], axis=-1)
    x = np.concatenate([x, -x, x[:, ::-1]])
    behind = edge - np.abs(law.denoise(x, sigma)).max(axis=1)
    assert (behind >= -1e-13 * 32).all()
    np.testing.assert_allclose(behind, np.tile(sigma**2 / t, 3), rtol=3 * (sigma / 0.3) ** 2, atol=1e-14 * 32)


def test_in_far_noise_every_law_is_a_point(rng):
    """D(x; sigma) -> m + (S / sigma^2) x, up to sigma^-3: nothing overflows or loses its digits."""
    for kind in (*DEFAULT, *OTHER):
        law = law_of(kind)
        x = 1e4 * rng.standard_normal((20, 2))
        drawn = law.denoise(x, 1e4)
        assert np.isfinite(law.log_density(x, 1e4)).all()
        classes, std = skeleton(kind)
        points, weights = (np.concatenate([part[i] for part in classes]) for i in (0, 1))
        cov = (points * weights[:, None]).T @ points + std**2 * np.eye(2)
        np.testing.assert_allclose(drawn, x @ cov / 1e8, atol=1e-7)


@settings(max_examples=40)
@given(st.sampled_from([*DEFAULT, *OTHER]), st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_every_replicate_gets_labelled_points_and_any_batch_is_judged(kind, replicates, n, seed):
    source = kind.replicated(replicates, np.random.default_rng(0))
    drawn = source.take(0, n, np.random.default_rng(seed))
    again = source.sample(n, np.random.default_rng(seed))
    classes = len(skeleton(kind)[0])
    assert (drawn.batch, drawn.n, drawn.event) == ((replicates,), n, (2,))
    assert drawn.labels.shape == (replicates, n)
    assert np.issubdtype(drawn.labels.dtype, np.integer)
    assert ((drawn.labels >= 0) & (drawn.labels < classes)).all()
    np.testing.assert_array_equal(drawn.points, again.points)
    np.testing.assert_array_equal(drawn.labels, again.labels)
    assert source.law() is None
    x = drawn.points
    for part in (x, x[:1], x[0]):
        named = source.model.classify(part)
        assert named.shape == part.shape[:-1]
        assert ((named >= 0) & (named < classes)).all()
        assert source.model.denoise(part, 0.5).shape == part.shape
        assert source.model.log_density(part, 0.5).shape == part.shape[:-1]


@ALL
def test_a_point_is_judged_alone(kind, rng):
    """What is said of a member does not depend on the others, NaN among them or not, to the bit."""
    law = law_of(kind)
    x = rng.uniform(-2, 2, (3, 8, 2))
    spoilt = x.copy()
    spoilt[1] = np.nan
    with np.errstate(all="ignore"):
        for judge in (law.classify, law.log_density, lambda x: law.log_density(x, 0.4), lambda x: law.denoise(x, 0.4)):
            whole = judge(x)
            np.testing.assert_array_equal(judge(spoilt)[[0, 2]], whole[[0, 2]])
            np.testing.assert_array_equal(judge(x[2:])[0], whole[2])


@ALL
def test_moments_are_not_drawn_without_points(kind, rng):
    source = kind.replicated(2, rng)
    with pytest.raises(TypeError, match="set statistics: false"):
        source.take(0, 10, rng, statistics=True)
    assert isinstance(source.take(0, 10, rng).moments(), Moments)


@pytest.mark.parametrize("kind", [EightGaussians(), Grid(), TwoClasses()], ids=lambda kind: type(kind).__name__)
def test_the_law_itself_covers_its_modes(kind):
    """And the entropy of K equal modes, far apart, is ln K - chi^2 / 2 n of n counted points, chi^2 with K - 1 degrees."""
    source, streams = kind.replicated(3, np.random.default_rng(0)), NamedStreams(0)
    generation = Generation(1, source.model, source.sample(5, streams(0, "drawn")), np.zeros(3, dtype=int))
    tracked = Modes(n=2_000)(View(generation, source, streams, 2))
    k = source.model.weights.shape[1]
    assert source.model.means.shape == (3, k, 2)
    assert source.model.covs.shape == (3, k, 2, 2)
    np.testing.assert_array_equal(tracked["mode_coverage"], 1.0)
    if not isinstance(kind, TwoClasses):
        counted = 2_000 * (1 - np.exp(-4.5))  # within three standard deviations
        square = 2 * counted * (np.log(k) - tracked["mode_entropy"])
        assert (np.abs(square - (k - 1)) < 4 * np.sqrt(2 * (k - 1))).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EightGaussians, {"radius": 0.0}, "radius.*greater than 0"),
        (Grid, {"side": 2.5}, "side.*valid integer"),
        (Rings, {"radii": ()}, "radii.*at least 1 item"),
        (Rings, {"radii": (1.0, -1.0)}, "greater than 0"),
        (Moons, {"std": 0.01}, "std.*greater than or equal to 0.02"),
        (Checkerboard, {"cells": 3}, "cells.*multiple of 2"),
        (Checkerboard, {"cells": 0}, "cells.*greater than or equal to 2"),
        (Spiral, {"arms": 0}, "arms.*greater than or equal to 1"),
        (Spiral, {"twists": 2}, "twists.*nexpected keyword"),
        (TwoClasses, {"shares": (0.5, 0.3, 0.2)}, "shares.*at most 2 items"),
        (TwoClasses, {"shares": (1.0, 0.0)}, "less than 1"),
        (TwoClasses, {"shares": (0.5, 0.4)}, r"shares must be two numbers that add to one, got \(0.5, 0.4\)"),
    ],
)
def test_options_out_of_range_are_refused_by_name(kind, options, message):
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        kind(**options)
