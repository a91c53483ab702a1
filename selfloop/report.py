"""The closing table: what a run found, value and standard error, and how the curves are classified."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from selfloop.config import Point
from selfloop.madness import Madness, Verdict, classify
from selfloop.measure import Array
from selfloop.theory import stable_omega

MARKS = ("diverged", "diverged_step")
"""Metrics that mark a replicate and have no mean."""


def curves(table: pd.DataFrame, metric: str, values: dict[str, Any]) -> Array:
    """One metric at one point as an array (replicates, generations); NaN where a replicate has no finite value.

    values: swept path -> value, of the point. Raises KeyError for a path that is not swept, ValueError where there are no rows.
    """
    rows = table[table["metric"] == metric]
    for path, value in values.items():
        if path not in table:
            raise KeyError(f"{path!r} is no swept path of this table; its columns are {', '.join(table.columns)}")
        column = rows[path]
        rows = rows[column == (value if pd.api.types.is_numeric_dtype(column) else str(value))]
    if rows.empty:
        known = ", ".join(table["metric"].unique())
        raise ValueError(f"the table has no rows of {metric!r} at {values}; its metrics are {known}")
    wide = rows.pivot(index="replicate", columns="generation", values="value")
    found = wide.to_numpy()
    return np.where(np.isfinite(found), found, np.nan)


def mean_and_error(values: Array) -> tuple[float, float]:
    """Mean over replicates and its standard error std / sqrt(R) (NaN for one replicate, and both NaN for none)."""
    if len(values) == 0:
        return math.nan, math.nan
    with np.errstate(over="ignore", invalid="ignore"):
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
    """One row a point and metric: mean, standard error and number of values at the first and the last generation looked at.

    Values that are not finite are left out of the means and of the number of values.
    """
    paths = list(points[0].values)
    rows = []
    for key, group in table[~table["metric"].isin(MARKS)].groupby([*paths, "metric"], sort=False, observed=True):
        row = dict(zip([*paths, "metric"], key, strict=True))
        for name, t in (("first", group["generation"].min()), ("last", group["generation"].max())):
            value = group["value"].to_numpy()[group["generation"].to_numpy() == t]
            value = value[np.isfinite(value)]
            row[name], row[f"{name}_se"] = mean_and_error(value)
            row[f"{name}_generation"], row[f"{name}_n"] = int(t), len(value)
        rows.append(row)
    return pd.DataFrame(rows)


def show(points: Sequence[Point], table: pd.DataFrame, limit: int = 40) -> None:
    """Print the headline figures, a row for each point and metric, and the classes of madness where they are asked for.

    Metrics with a dot in their name (shares of single classes) are left to the results. Of more than `limit` rows only those of
    one metric are shown: of the name of the first tracker, or what that calls its `headline`.
    """
    from rich.console import Console

    console = Console()
    frame = headline(table, points)
    if frame.empty:
        console.print("no metrics were tracked")
        return
    frame = frame[~frame["metric"].astype(str).str.contains(".", regex=False)]
    names = frame["metric"].astype(str)
    wished = [getattr(tracker, "headline", name) for name, tracker in points[0].experiment.track.items()]
    main = next((name for name in wished if (names == name).any()), next(iter(names), ""))
    wanted = frame[names == main] if len(frame) > limit else frame
    title = f"{points[0].experiment.name}: mean over replicates ± standard error"
    out = _table(title, points, ["metric", "generation 1", "at the end", "t"])
    for row in wanted.head(limit).to_dict("records"):
        start = figure(row["first"], row["first_se"])
        out.add_row(*_labels(points, row), str(row["metric"]), start, _end(row), str(row["last_generation"]))
    console.print(out)
    if len(wanted) < len(frame) or len(wanted) > limit:
        console.print(f"{len(frame) - min(len(wanted), limit)} more rows, of all metrics, are in the results")
    _show_lost(console, points, table)
    for line in [*chosen(points, frame), *unstable(points, table)]:
        console.print(line)
    rule = points[0].experiment.madness
    if rule is not None:
        _show_madness(console, points, verdicts(table, points, rule), rule)


def chosen(points: Sequence[Point], frame: pd.DataFrame) -> list[str]:
    """For each tracker that `chooses`: the point with the least mean of the metric to choose by, and there the one to report.

    frame: of `headline`. The second is of other samples than the choice, and so has no bias from it. Points that lost a
    replicate are not chosen.
    """
    pairs = [getattr(tracker, "chooses", None) for tracker in points[0].experiment.track.values()]
    lines = []
    for search, told in [pair for pair in pairs if pair is not None and len(points) > 1]:
        rows = frame[(frame["metric"] == search) & (frame["last_n"] == points[0].experiment.replicates)]
        if rows.empty:
            continue
        best = rows.loc[rows["last"].idxmin(), list(points[0].values)]
        there = frame[(frame["metric"] == told) & (frame[list(best.index)] == best).all(axis=1)].iloc[0]
        at = ", ".join(f"{path.split('.')[-1]} = {value}" for path, value in best.items())
        lines.append(f"least {search}: {at}; {told} there: {figure(there['last'], there['last_se'])}")
    return lines


def _end(row: dict[Any, Any]) -> str:
    left = f" ({row['last_n']} of {row['first_n']} left)" if row["last_n"] < row["first_n"] else ""
    return figure(row["last"], row["last_se"]) + left


def _show_lost(console: Any, points: Sequence[Point], table: pd.DataFrame) -> None:
    """Replicates that diverged and values that are not finite: how many, the first of them, and what the means are of."""
    lost = table[table["metric"] == "diverged"]
    if len(lost):
        keys = [*points[0].values, "replicate", "generation"]
        steps = table.loc[table["metric"] == "diverged_step", [*keys, "value"]]
        lost = lost.merge(steps, on=keys, how="left", suffixes=("", "_step"))
        row = lost.sort_values(["generation", "replicate"]).iloc[0]
        at = "".join(f", {path.split('.')[-1]} = {row[path]}" for path in points[0].values)
        at += "" if math.isnan(row["value_step"]) else f", its training at step {row['value_step']:.0f}"
        loops = len(points) * points[0].experiment.replicates
        first = f"replicate {row['replicate']} at generation {row['generation']}{at}"
        console.print(f"{len(lost)} of {loops} loops diverged, the first {first}; the means are of those still left")
    odd = int((~np.isfinite(table["value"])).sum())
    if odd:
        console.print(f"{odd} values are not finite; the results hold them, the means do not")


def unstable(points: Sequence[Point], table: pd.DataFrame) -> list[str]:
    """A warning for each point whose omega left the range in which its loop is stable, as far as `guidance` was tracked.

    The range is `theory.stable_omega` at the eta and the sampler's bias measured in each replicate and generation.
    """
    names = ["omega", "eta", "log_bias"]
    if not set(names) <= set(table["metric"]):
        return []
    keys = [*points[0].values, "replicate", "generation"]
    seen = table[table["metric"].isin(names)].astype({"metric": str})
    wide = seen.pivot(index=keys, columns="metric", values="value").reset_index()
    lines = []
    for point in points:
        share = point.experiment.mix.last_share(2) if point.experiment.generations > 1 else None
        if share is None:
            continue
        rows = wide
        for path, value in point.values.items():
            rows = rows[rows[path] == (value if pd.api.types.is_numeric_dtype(rows[path]) else str(value))]
        low, high = (np.asarray(edge) for edge in stable_omega(rows["eta"].to_numpy(), rows["log_bias"].to_numpy(), share))
        omega = rows["omega"].to_numpy()
        outside = (rows["eta"].to_numpy() > 0) & ((omega >= high) | (omega <= low) & (omega > 0))
        if outside.any():
            edges = rows.assign(edge=np.where(omega >= high, high, low))[outside]
            first = edges.sort_values(["generation", "replicate"]).iloc[0]
            at = "".join(f"{path.split('.')[-1]} = {value}, " for path, value in point.values.items())
            count = f"{edges['replicate'].nunique()} of {rows['replicate'].nunique()} replicates"
            side = "below" if first["log_bias"] < 0 else "above"
            lines.append(
                f"warning: {at}{count} left the stable range of omega, replicate {first['replicate']:.0f} first, at generation "
                f"{first['generation']:.0f}, where omega = {first['omega']:.3g} and, at its eta = {first['eta']:.2g}, stable "
                f"is {side} {first['edge']:.3g}; use omega near 1 / eta = {1 / first['eta']:.2g} (docs/theory.md)"
            )
    return lines


def _table(title: str, points: Sequence[Point], columns: Sequence[str]) -> Any:
    from rich import box
    from rich.table import Table

    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for path in points[0].values:
        out.add_column(path.split(".")[-1], justify="right", overflow="ellipsis")
    for name in columns:
        out.add_column(name, justify="left", no_wrap=True)
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
    console.print("strong: degrades, but ends below the first generation of the standard loop; docs/madness.md has all classes")
    console.print(f"a class in doubt shows the share of bootstrap resamples that agree with it, if below {rule.confidence:.0%}")


def figure(value: float, error: float) -> str:
    """A value with two digits of its standard error, 0.0683 ± 0.0015; "-" for no value."""
    if math.isnan(value):
        return "-"
    if not math.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    digits = 1 - math.floor(math.log10(error))
    if not -4 <= digits <= 8:
        return f"{value:.2e} ± {error:.1e}"
    return f"{value:.{max(digits, 0)}f} ± {error:.{max(digits, 0)}f}"
