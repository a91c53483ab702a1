"""Neon extrapolates parameters where SIMS extrapolates scores: where both are lines of ln S, they are one."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop.algorithms.categorical import Categorical, CategoricalFit
from selfloop.algorithms.gaussian import GaussianFit, GaussianModel
from selfloop.algorithms.neon import Neon, NeonModel
from selfloop.algorithms.sims import Pair, Sims
from selfloop.diffusion.guide import guided_law
from selfloop.diffusion.sample import Sampler
from selfloop.laws import Gaussian
from selfloop.protocols import Algorithm, BiasedModel, Model, MomentModel, ScoreModel

quick = settings(max_examples=25, deadline=None)
omegas = st.floats(-1, 4)
seeds = st.integers(0, 2**32 - 1)


def standard(d: int, replicates: int = 4) -> Gaussian:
    """The standard normal law in R^d."""
    return Gaussian(np.zeros(d), np.eye(d)).expanded(replicates)


def neon(omega: float = 1.0, sampler: Sampler | None = None) -> Neon:
    """Neon over a Gaussian fit."""
    return Neon(algorithm=GaussianFit(sampler=sampler or Sampler()), n_synthetic=40, budget=0.4, omega=omega)


@quick
@given(seeds, omegas, st.integers(1, 3))
def test_on_gaussians_that_commute_neon_is_sims(seed: int, omega: float, d: int) -> None:
    """One eigenbasis, one mean: both laws are N(m, S_r^(1 + omega) S_s^(-omega)), to 1e-8."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    mean, spread = rng.standard_normal(d), rng.uniform(0.5, 2, (2, d))
    base, auxiliary = (Gaussian(mean, (turn * s**2) @ turn.T) for s in spread)
    pair = Pair(GaussianModel(base, Sampler()), GaussianModel(auxiliary, Sampler()))
    law = NeonModel(pair, omega, GaussianFit()).law()
    guided = guided_law(base, auxiliary, omega)
    assert law is not None
    np.testing.assert_allclose(law.mean, guided.mean, atol=1e-8)
    np.testing.assert_allclose(law.cov, guided.cov, rtol=1e-8, atol=1e-8)


@quick
@given(seeds, omegas)
def test_on_the_line_both_wrappers_give_one_variance(seed: int, omega: float) -> None:
    """From one stream they fit one pair, and on the line every two variances commute."""
    data = standard(1).sample(30, np.random.default_rng(seed))
    algorithm = GaussianFit()
    both = [kind(algorithm=algorithm, n_synthetic=50, budget=0.3, omega=omega) for kind in (Neon, Sims)]
    laws = [wrapper.fit(data, np.random.default_rng(seed)).law() for wrapper in both]
    assert laws[0] is not None
    assert laws[1] is not None
    np.testing.assert_allclose(laws[0].cov, laws[1].cov, rtol=1e-8)


@quick
@given(seeds, omegas)
def test_parameters_are_extrapolated_linearly(seed: int, omega: float) -> None:
    """Mean and ln S at (1 + omega) theta_base - omega theta_auxiliary, in the plane, commuting or not."""
    model = neon(omega).fit(standard(2).draw(30, np.random.default_rng(seed)), np.random.default_rng(seed))
    base, auxiliary = model.pair.base.fitted, model.pair.auxiliary.fitted
    law = model.law()
    assert law is not None
    np.testing.assert_allclose(law.mean, (1 + omega) * base.mean - omega * auxiliary.mean, atol=1e-12)
    log_det = (1 + omega) * np.log(np.linalg.det(base.cov)) - omega * np.log(np.linalg.det(auxiliary.cov))
    np.testing.assert_allclose(np.log(np.linalg.det(law.cov)), log_det, atol=1e-9)


@pytest.mark.parametrize("kind", ["exact", "heun"])
def test_the_ends_are_base_and_auxiliary_bit_for_bit(kind: str) -> None:
    sampler = Sampler(kind=kind, steps=6)  # type: ignore[arg-type]
    model = neon(0.0, sampler).fit(standard(2).draw(30, np.random.default_rng(0)), np.random.default_rng(1))
    assert model.merged is model.pair.base
    assert replace(model, omega=-1.0).merged is model.pair.auxiliary
    np.testing.assert_array_equal(
        model.sample(5, np.random.default_rng(2)).points, model.pair.base.sample(5, np.random.default_rng(2)).points
    )


def test_the_sampler_runs_on_the_merged_model() -> None:
    """Neon's law after N steps is that of the merged fit behind the same sampler."""
    sampler = Sampler(kind="ancestral", steps=10, sigma_max=20.0, sigma_min=0.01)
    model = neon(1.5, sampler).fit(standard(2).draw(50, np.random.default_rng(0)), np.random.default_rng(1))
    exact = GaussianModel(model.merged.fitted, sampler)
    assert model.sampler == sampler
    np.testing.assert_array_equal(model.law().cov, exact.law().cov)  # type: ignore[union-attr]
    x = np.random.default_rng(2).standard_normal((4, 3, 2))
    np.testing.assert_array_equal(model.denoise(x, 0.7), exact.denoise(x, 0.7))
    np.testing.assert_array_equal(model.draw(9, np.random.default_rng(3)).cov, exact.draw(9, np.random.default_rng(3)).cov)
    np.testing.assert_array_equal(model.biased(0.5).law().cov, 0.5 * exact.law().cov)  # type: ignore[union-attr]


@pytest.mark.parametrize("omega", [-1.0, 0.0, 2.0])
def test_a_saved_fit_comes_back_at_any_strength(omega: float) -> None:
    """omega is a setting of sampling: the state of one strength restores at another."""
    model = neon(1.0).fit(standard(2).draw(30, np.random.default_rng(0)), np.random.default_rng(1))
    again = neon(omega).restore(model.state())
    np.testing.assert_array_equal(again.law().cov, replace(model, omega=omega).law().cov)  # type: ignore[union-attr]


def test_neon_of_categories_extrapolates_log_probabilities() -> None:
    """Smoothing keeps every share positive, so that the extrapolation exists; p ~ p_base^2 / p_auxiliary at omega = 1."""
    algorithm = Neon(algorithm=CategoricalFit(smoothing=0.5), n_synthetic=20, budget=0.5)
    data = Categorical(np.array([0.7, 0.2, 0.1])).expanded(6).draw(30, np.random.default_rng(0))
    model = algorithm.fit(data, np.random.default_rng(1))
    power = model.pair.base.probabilities**2 / model.pair.auxiliary.probabilities
    np.testing.assert_allclose(model.probabilities, power / power.sum(axis=-1, keepdims=True), rtol=1e-12)
    assert model.law() is None
    assert model.shape(5) == model.sample(5, np.random.default_rng(2)).points.shape == (6, 5, 3)
    assert algorithm.gives == CategoricalFit.gives | {"pair"}


def test_contracts_are_those_of_the_inner_model() -> None:
    assert isinstance(neon(), Algorithm)
    assert neon().gives == GaussianFit.gives | {"pair"}
    model = neon().fit(standard(2).draw(30, np.random.default_rng(0)), np.random.default_rng(1))
    for contract in (Model, MomentModel, BiasedModel, ScoreModel):
        assert isinstance(model, contract)
    with pytest.raises(AttributeError, match="GaussianModel under Neon gives no category probabilities"):
        _ = model.probabilities


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="omega"):
        neon(omega=-1.5)
    with pytest.raises(ValueError, match="algorithm"):
        Neon(algorithm=3, n_synthetic=10, budget=0.1)  # type: ignore[arg-type]
