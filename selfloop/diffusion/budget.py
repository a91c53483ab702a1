"""Budgets of training, in million samples seen: s = round(10^6 budget / batch) steps."""

from collections.abc import Sequence

MILLION = 1e6


def steps(budget: float, batch: int) -> int:
    """Steps of a batch in a budget. Raises ValueError if it is negative or less than one batch."""
    least = batch / MILLION
    if budget < 0 or 0 < budget < least:
        raise ValueError(f"budget is counted in million samples seen: 0, or at least one batch, {least:g}; got {budget:g}")
    return round(budget / least)


def marks(budgets: Sequence[float], batch: int) -> list[int]:
    """Steps in each of some budgets. Raises ValueError where `steps` does, and if they do not ascend."""
    found = [steps(budget, batch) for budget in budgets]
    if found != sorted(found):
        raise ValueError(f"budgets must ascend, got {list(budgets)}")
    return found
