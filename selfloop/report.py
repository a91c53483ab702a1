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
    """Print the headline figures, a row for each point and metric, and the classes of madness where they are asked for.

    Metrics with a dot in their name (shares of single classes) are left to the results, and so is what goes beyond `limit` rows.
    """
    from rich.console import Console

    console = Console()
    frame = headline(table, points)
    frame = frame[~frame["metric"].astype(str).str.contains(".", regex=False)]
    names = frame["metric"].astype(str)
    main = next((name for name in points[0].experiment.track if (names == name).any()), names.iloc[0])
    wanted = frame[names == main] if len(frame) > limit else frame
    out = _table(f"{points[0].experiment.name}: mean over replicates ± standard error", points, ["metric", "generation 1", "at the end"])
    for row in wanted.head(limit).to_dict("records"):
        end = f"{figure(row['last'], row['last_se'])}" + (f" (t = {row['generation']})" if row["generation"] > 1 else "")
        out.add_row(*_labels(points, row), str(row["metric"]), figure(row["first"], row["first_se"]), end)
    console.print(out)
    if len(wanted) < len(frame) or len(wanted) > limit:
        console.print(f"{len(frame) - min(len(wanted), limit)} more rows, of all metrics, are in the results")
    lost = table[table["metric"] == "diverged"]
    if len(lost):
        some = list(zip(lost["replicate"], lost["generation"], strict=True))[:3]
        named = ", ".join(f"replicate {replicate} at generation {generation}" for replicate, generation in some)
        console.print(f"{len(lost)} replicates diverged ({named}{', ...' if len(lost) > 3 else ''}); the means are of the others")
    rule = points[0].experiment.madness
    if rule is not None:
        _show_madness(console, points, verdicts(table, points, rule), rule)


def _table(title: str, points: Sequence[Point], columns: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for path in points[0].values:
        out.add_column(path.split(".")[-1], justify="right")
    for name in columns:
        out.add_column(name, justify="left")
    return out


def _labels(points: Sequence[Point], row: dict[Any, Any]) -> list[str]:
    return [f"{row[path]:g}" if isinstance(row[path], float) else str(row[path]) for path in points[0].values]


def _show_madness(console: Any, points: Sequence[Point], found: Sequence[tuple[Point, list[Verdict]]], rule: Madness) -> None:
    title = f"madness by {rule.metric}: end / generation 1 ± half its {rule.confidence:.0%} interval"
    out = _table(title, points, ["of its own", "class", "of the standard", "class"])
    for point, pair in found:
        cells = []
        for verdict in pair:
            if verdict.kind == "diverged":
                cells += ["-", f"diverged ({verdict.diverged})"]
            else:
                doubt = f" ({verdict.support:.0%})" if verdict.support < rule.confidence else ""
                cells += [f"{verdict.ratio:.3f} ± {(verdict.high - verdict.low) / 2:.3f}", verdict.kind + doubt]
        out.add_row(*_labels(points, point.values), *cells)
    console.print(out)
    console.print(f"a class in doubt shows the share of bootstrap resamples that agree with it, if below {rule.confidence:.0%}")


def figure(value: float, error: float) -> str:
    """A value with two digits of its standard error: 0.0683 ± 0.0015."""
    if not math.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    digits = max(1 - math.floor(math.log10(error)), 0)
    return f"{value:.{digits}f} ± {error:.{digits}f}"
