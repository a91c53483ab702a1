"""What figures read: a table of saved results, checked, and the means over replicates of it with their standard errors.

    mean = 1/R sum_r x_r^p,      error = std_r(x_r^p) / sqrt(R),      std with R - 1

for a metric x, its power p and R replicates, in the units of x^p. A band of half-width `error` holds the true mean in
two of three generations. Replicates are independent, generations of one curve are not: neighbours err to the same side.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml
from matplotlib.image import imread

from selfloop.measure import Array
from selfloop.results import RunError, load_generations

PICTURES, KEPT_PICTURES = Path("kept") / "pictures", Path("pictures")
"""Where pictures of samples are in a run folder, and in what is kept of it with the project."""
AVERAGED = ["generation", "metric", "power", "replicates", "mean", "error"]


class Course(NamedTuple):
    """Mean over replicates and its standard error, generation by generation: three arrays (T,)."""

    generation: Array
    mean: Array
    error: Array


class Sweep(NamedTuple):
    """Mean over replicates and its standard error along a swept path, x its values: three arrays (k,)."""

    x: Array
    mean: Array
    error: Array


def read(results: Path, paths: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """The table of a run folder, or of the part of it that is kept in figures/data.

    Raises RunError if it does not exist, is damaged, or is of another experiment: without these swept paths or metrics.
    """
    table = load_generations(results)
    absent = [path for path in paths if path not in table] + sorted(set(metrics) - set(table.get("metric", [])))
    if absent:
        raise RunError(
            f"{results} holds no {', '.join(absent)}; give the results of the experiment that the figure is named after"
        )
    return table


def configuration(results: Path) -> dict[str, Any]:
    """config.yaml of a run folder: every field, with its default. Raises RunError if there is none."""
    path = Path(results) / "config.yaml"
    try:
        loaded = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read: {error}; the run command writes it again") from error
    return dict(loaded)


def picture(results: Path, name: str) -> Array | None:
    """A picture of samples in a run folder, or of those kept with the project, values in [0, 1]; None if there is none."""
    for folder in (results / PICTURES, results / KEPT_PICTURES):
        if (folder / f"{name}.png").exists():
            return np.asarray(imread(folder / f"{name}.png"), dtype=float)
    return None


def check_equal_sizes(results: Path, settings: Mapping[str, Any]) -> None:
    """Raises RunError unless a run has as many synthetic as real points and no weights, as the closed forms drawn suppose."""
    mix = settings["mix"]
    sizes = [mix["n_synthetic"] or mix["n_real"], mix["n_real"]]
    if (
        sizes[0] != sizes[1]
        or len(sizes[1]) > 1
        or any(mix[name] for name in ("fraction", "weight_real", "correction", "pollution"))
    ):
        raise RunError(
            f"{results} was run with other sizes, weights or corrections than the closed forms of this figure have; "
            "draw a run with n_synthetic = n_real"
        )


def only(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The rows of these metrics."""
    rows = table[table["metric"].isin(metrics)]
    return rows.assign(metric=rows["metric"].astype(str).astype("category"))


def averages(table: pd.DataFrame, powers: Mapping[str, int]) -> pd.DataFrame:
    """Swept paths and generation, then metric, power, replicates, mean and error; metric -> power says of what.

    A table that is averaged already comes back as it is. A replicate that diverged has no value from there on and is left
    out, which `replicates` shows.
    """
    if list(table.columns[-len(AVERAGED) :]) == AVERAGED:
        return table
    paths = [name for name in table.columns if name not in ("replicate", "generation", "metric", "value")]
    parts = []
    for metric, power in powers.items():
        rows = only(table, [metric])
        rows = rows.assign(value=rows["value"].to_numpy(dtype=float) ** power)
        found = (
            rows.groupby([*paths, "generation"], observed=True, sort=False)["value"].agg(["count", "mean", "std"]).reset_index()
        )
        found = found.assign(metric=metric, power=power, error=found["std"] / np.sqrt(found["count"]))
        parts.append(found.rename(columns={"count": "replicates"})[[*paths, *AVERAGED]])
    return pd.concat(parts, ignore_index=True)


def course(averaged: pd.DataFrame, metric: str, values: Mapping[str, Any]) -> Course:
    """The curve of one metric at one point of the sweep. Raises RunError if the results do not hold that point."""
    return Course(*_along(averaged, "generation", metric, values))


def swept(averaged: pd.DataFrame, path: str, metric: str, values: Mapping[str, Any]) -> Sweep:
    """One metric along a swept path of numbers, the other paths at `values`, at the last generation.

    Raises RunError if the results do not hold such points.
    """
    return Sweep(*_along(averaged[averaged["generation"] == averaged["generation"].max()], path, metric, values))


def _along(averaged: pd.DataFrame, x: str, metric: str, values: Mapping[str, Any]) -> tuple[Array, ...]:
    rows = averaged[averaged["metric"] == metric]
    for path, value in values.items():
        rows = rows[rows[path] == value]
    if rows.empty:
        raise RunError(f"the results hold no {metric} at {', '.join(f'{path} = {value}' for path, value in values.items())}")
    rows = rows.sort_values(x)
    return tuple(rows[name].to_numpy(dtype=float) for name in (x, "mean", "error"))


def ratio(values: Array, others: Array) -> tuple[Array, Array]:
    """Mean of values (R, k) over mean of others (R, k) or (R, 1), and its standard error; both of the same replicates.

    To first order the error of r = a / b is that of the mean of (a_i - r b_i) / b.
    """
    below = others.mean(axis=0)
    mean = values.mean(axis=0) / below
    return mean, (values - mean * others).std(axis=0, ddof=1) / below / np.sqrt(len(values))


def replicates(averaged: pd.DataFrame) -> str:
    """How many replicates the means are over, as a figure's note says it."""
    low, high = int(averaged["replicates"].min()), int(averaged["replicates"].max())
    return f"{low}" if low == high else f"{low} to {high}"
