"""Tuning for algorithms whose fit is a closed form: their budget is the fraction eta of the way to the new fit."""

from collections.abc import Iterator, Sequence
from typing import Any

from selfloop.protocols import Model, Tunable

LARGEST_BUDGET = 1.0


def check_fractions(budgets: Sequence[float]) -> None:
    """Raise ValueError for a budget outside [0, 1]."""
    for eta in budgets:
        if not 0 <= eta <= LARGEST_BUDGET:
            raise ValueError(f"the budget of a closed form is the fraction eta in [0, 1] of the way to the new fit, got {eta}")


def along(algorithm: Tunable, model: Any, fitted: Any, budgets: Sequence[float]) -> Iterator[Model]:
    """The models a fraction eta = budget of the way from `model` to `fitted`, on the algorithm's own line between the two."""
    check_fractions(budgets)
    for eta in budgets:
        yield model if eta == 0 else algorithm.interpolate(model, fitted, eta)
