"""The closing table: what a run found, value and standard error, and how the curves are classified."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from selfloop.config import Point
from selfloop.madness import Madness, Verdict, classify
from selfloop.measure import Array


def curves(table: pd.DataFrame, metric: str, values: dict[str, Any]) -> Array:
    """One metric at one point as an array (replicates, generations); NaN where a replicate has no value."""
    rows = table[table["metric"] == metric]
    for path, value in values.items():
        column = rows[path]
        rows = rows[column == (value if pd.api.types.is_numeric_dtype(column) else str(value))]
    wide = rows.pivot(index="replicate", columns="generation", values="value")
    return wide.to_numpy()


def mean_and_error(values: Array) -> tuple[float, float]:
    """Mean over replicates and its standard error std / sqrt(R) (NaN for one replicate)."""
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(np.mean(values)), error


def verdicts(table: pd.DataFrame, points: Sequence[Point], rule: Madness) -> list[tuple[Point, list[Verdict]]]:
    """The classification of every point against the standard point that differs from it in the guidance alone."""
    cache: dict[str, Array] = {}

    def curve(values: dict[str, Any]) -> Array:
        key = repr(sorted(values.items()))
        if key not in cache:
            cache[key] = curves(table, rule.metric, values)
        return cache[key]

    return [
        (point, classify(curve(point.values), curve({**point.values, rule.guidance: rule.standard}), rule)) for point in points
    ]


def headline(table: pd.DataFrame, points: Sequence[Point]) -> pd.DataFrame:
    """One row a point: every metric at the first and at the last generation it was looked at, mean and standard error."""
    numeric = table[table["metric"] != "diverged"]
    paths = list(points[0].values)
    rows = []
    keys = [*paths, "metric"]
    for key, group in numeric.groupby(keys, sort=False, observed=True):
        generations = group["generation"].to_numpy()
        value = group["value"].to_numpy()
        ends = {name: mean_and_error(value[generations == t]) for name, t in (("first", generations.min()), ("last", generations.max()))}
        rows.append(
            dict(zip(keys, key, strict=True))
            | {"generation": int(generations.max())}
            | {f"{name}{suffix}": part for name, pair in ends.items() for suffix, part in zip(("", "_se"), pair, strict=True)}
        )
    return pd.DataFrame(rows)


def show(points: Sequence[Point], table: pd.DataFrame, limit: int = 40) -> None:
    """Print the headline figures, a row for each point and metric, and the classes of madness where they are asked for."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    frame = headline(table, points)
    main = next(iter(points[0].experiment.track))
    wanted = frame[frame["metric"] == main] if len(frame) > limit and (frame["metric"] == main).any() else frame
    paths = list(points[0].values)
    out = Table(title=f"{points[0].experiment.name}: mean over replicates ± standard error", title_justify="left")
    for path in paths:
        out.add_column(path, justify="right")
    for name in ("metric", "generation 1", "last generation", "value there"):
        out.add_column(name, justify="left" if name == "metric" else "right")
    for row in wanted.head(limit).to_dict("records"):
        out.add_row(
            *[str(row[path]) for path in paths],
            str(row["metric"]),
            figure(row["first"], row["first_se"]),
            str(row["generation"]),
            figure(row["last"], row["last_se"]),
        )
    console.print(out)
    if len(wanted) > limit:
        console.print(f"{len(wanted) - limit} more rows are in the results")
    lost = table[table["metric"] == "diverged"]
    if len(lost):
        firsts = ", ".join(f"replicate {r} at generation {g}" for r, g in zip(lost["replicate"][:3], lost["generation"][:3], strict=True))
        console.print(f"[bold]{len(lost)} replicates diverged[/] ({firsts}{', ...' if len(lost) > 3 else ''}); means above are of the others")
    rule = points[0].experiment.madness
    if rule is not None:
        _show_madness(console, verdicts(table, points, rule), rule)


def _show_madness(console: Any, found: Sequence[tuple[Point, list[Verdict]]], rule: Madness) -> None:
    from rich.table import Table

    out = Table(title=f"madness by {rule.metric}: end / generation 1 ({rule.confidence:.0%} interval), class (support)", title_justify="left")
    for path in found[0][0].values:
        out.add_column(path, justify="right")
    for name in ("over its own start", "class", "over the standard start", "class"):
        out.add_column(name, justify="left")
    for point, pair in found:
        cells = []
        for verdict in pair:
            ratio = f"{verdict.ratio:.3f} ({verdict.low:.3f} to {verdict.high:.3f})" if verdict.kind != "diverged" else "-"
            share = f"{verdict.kind} ({verdict.support:.0%})" if verdict.kind != "diverged" else f"diverged ({verdict.diverged})"
            cells += [ratio, share]
        out.add_row(*[str(value) for value in point.values.values()], *cells)
    console.print(out)


def figure(value: float, error: float) -> str:
    """A value with two digits of its standard error: 0.0683 ± 0.0015."""
    if not math.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    digits = max(1 - math.floor(math.log10(error)), 0)
    return f"{value:.{digits}f} ± {error:.{digits}f}"
