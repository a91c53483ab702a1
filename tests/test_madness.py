"""Classes of madness on curves whose class is known by construction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.madness import Madness, classify

RULE = Madness(tail=5, resamples=200)


def curve(first: float, last: float, noise: float = 0.0, runs: int = 50, seed: int = 0) -> np.ndarray:
    """A mean that goes from `first` to `last` in ten generations and stays there."""
    mean = np.concatenate([np.linspace(first, last, 10), np.full(10, last)])
    return mean + noise * np.random.default_rng(seed).standard_normal((runs, 20))


STANDARD = curve(1.0, 2.0)


@pytest.mark.parametrize(
    ("guided", "own", "standard"),
    [
        (STANDARD, "none", "none"),
        (curve(0.9, 1.9), "none", "weak"),
        (curve(0.9, 1.2), "weak", "weak"),
        (curve(3.0, 5.9), "weak", "none"),
        (curve(0.5, 0.9), "strong", "prevention"),
        (curve(0.5, 0.5), "prevention", "prevention"),
        (curve(0.5, 0.4), "prevention", "prevention"),
        (curve(1.5, 1.4), "prevention", "weak"),
        (curve(1.5, 0.9), "prevention", "strong"),
    ],
)
def test_curves_are_named_by_both_readings(guided, own, standard):
    verdicts = {verdict.normalisation: verdict for verdict in classify(guided, STANDARD, RULE)}
    assert (verdicts["own"].kind, verdicts["standard"].kind) == (own, standard)
    assert verdicts["own"].ratio == pytest.approx(guided[0, -1] / guided[0, 0])
    assert verdicts["standard"].ratio == pytest.approx(guided[0, -1])
    assert verdicts["own"].support == 1


def test_noise_shows_as_an_interval_and_as_lack_of_support():
    """A flat curve with noise: its sup_t e_t / e_1 exceeds one by chance, and the tolerance decides what counts."""
    flat = curve(0.5, 0.5, noise=0.2)
    strict = classify(flat, curve(1.0, 2.0, noise=0.2, seed=1), RULE)[0]
    lenient = classify(flat, curve(1.0, 2.0, noise=0.2, seed=1), Madness(tail=5, resamples=200, tolerance=0.5))[0]
    assert strict.kind == "strong"
    assert strict.low < 1 < strict.high
    assert lenient.kind == "prevention"


def test_the_interval_has_its_confidence():
    """Coverage over 300 experiments of a 90 % interval for a ratio known to be 1.5: standard error 1.7 %, bound 4 of them + the
    finite-sample loss of a bootstrap of 50 replicates, about 1 %."""
    rule = Madness(tail=5, resamples=300, confidence=0.9)
    hits = 0
    for seed in range(300):
        mine = curve(1.0, 1.5, noise=0.3, seed=2 * seed)
        verdict = classify(mine, curve(1.0, 2.0, noise=0.3, seed=2 * seed + 1), rule)[0]
        hits += verdict.low <= 1.5 <= verdict.high
    assert abs(hits / 300 - 0.9) < 4 * 0.017 + 0.01


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.2, 3), st.floats(0.2, 3))
def test_classes_do_not_depend_on_the_unit_of_length(unit, first, last):
    mine, plain = curve(first, last), STANDARD
    one, two = (classify(scale * mine, scale * plain, RULE) for scale in (1.0, 2.0 ** round(np.log2(unit))))
    assert [v.kind for v in one] == [v.kind for v in two]


def test_a_curve_that_lost_a_replicate_has_no_class_of_its_own():
    broken = STANDARD.copy()
    broken[3, 7:] = np.nan
    for pair in ((broken, STANDARD), (STANDARD, broken)):
        verdicts = classify(*pair, RULE)
        assert {verdict.kind for verdict in verdicts} == {"diverged"}
        assert verdicts[0].diverged == 1
        assert np.isnan(verdicts[0].ratio)


@pytest.mark.parametrize("pair", [(STANDARD, STANDARD[:, :5]), (STANDARD[:1], STANDARD[:1])])
def test_curves_that_cannot_be_compared_are_refused(pair):
    with pytest.raises(ValueError, match="one shape with two or more replicates"):
        classify(*pair, RULE)
