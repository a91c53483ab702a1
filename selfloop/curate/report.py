"""The report of a curation: one HTML page that holds its pictures.

    effective number    (sum_i w_i)^2 / sum_i w_i^2 rows: as many of equal weight have the same variance of a mean
    share               of a class: its rows before, the weight of its rows after
    KL                  of the shares of the classes that have a row to equal shares, in nats

Charts are drawn by matplotlib and examples are the data's own pixels, both as PNG inside the page: it asks for nothing else.
Source: Kish (1965), for the effective number.
"""

import base64
import importlib.resources
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from selfloop import pictures
from selfloop.curate import chain
from selfloop.curate.balance import divergence
from selfloop.curate.subset import Subset
from selfloop.measure import Array, Ints, Measure

KEPT, DROPPED, BEFORE = "#0173b2", "#de8f05", "#949494"
"""Colours that colour-blind readers can tell apart."""
STYLE: dict[str, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}
MOST_CLASSES = 20
"""Classes or clusters that get a row or a bar with their name."""
COLUMNS = 10
"""Examples in a row."""
SIDE = 40
"""Height of an example in the page, in pixels."""


@dataclass(frozen=True)
class Chart:
    """A picture with what it shows; source: a data URL."""

    title: str
    source: str
    text: str


def summary(subset: Subset) -> dict[str, str]:
    """The headline numbers, by what they are."""
    weights = subset.columns["weight"][subset.index]
    effective = weights.sum() ** 2 / (weights**2).sum()
    out = {
        "rows": f"{subset.n}",
        "kept": f"{len(weights)} ({len(weights) / subset.n:.1%})",
        "effective number": f"{effective:.1f}" if np.ptp(weights) else f"{len(weights)}",
    }
    if (shares := _shares(subset, "class")) is not None:
        for when, kl in zip(("before", "after"), _to_equal(*shares), strict=True):
            out[f"KL of the classes to uniform, {when}"] = f"{kl:.4f}"
    return out


def classes(subset: Subset) -> list[tuple[str, int, int, str, str]]:
    """(class, rows, rows kept, share before, share after) of every class; none without labels."""
    found = _shares(subset, "class")
    if found is None:
        return []
    labels, kept = subset.columns["class"], subset.columns["kept"]
    before, after = found
    return [
        (str(c), int((labels == c).sum()), int((kept & (labels == c)).sum()), f"{before[c]:.4f}", f"{after[c]:.4f}")
        for c in np.flatnonzero(before)
    ]


def page(
    name: str,
    subset: Subset,
    steps: Sequence[chain.Step],
    data: Measure,
    seconds: Mapping[str, float],
    notes: Sequence[str],
    courses: Sequence[Mapping[str, Any] | None] = (),
) -> str:
    """The page of a curation of these data; courses: of the class weights of each step, if it has one (`selfloop.curate.dro`).

    Raises ModuleNotFoundError without jinja2.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the report needs jinja2; run: pip install 'selfloop[curate]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(importlib.resources.files("selfloop.curate").joinpath("report.html").read_text("utf-8"))
    scored = bool(np.isfinite(subset.columns["score"]).any())
    return template.render(
        name=name,
        side=SIDE,
        steps=[step.name for step in steps],
        sha256=subset.sha256,
        version=subset.version,
        summary=summary(subset),
        classes=classes(subset),
        examples=examples(subset, data),
        grouped="cluster" if _group(subset) == "cluster" else "class",
        order="From the least score to the greatest, evenly spaced." if scored else "Evenly spaced over the rows.",
        charts=[*charts(subset, steps, data), *(_course(course) for course in courses if course is not None)],
        seconds=seconds,
        notes=notes,
        config=yaml.safe_dump(subset.config, sort_keys=False, width=110, allow_unicode=True),
    )


def charts(subset: Subset, steps: Sequence[chain.Step], data: Measure) -> list[Chart]:
    """What there is to show of a curation, in order: points of the plane, scores, classes, clusters, weights."""
    found: list[Chart | None] = [_plane(subset, data)] if data.event == (2,) else []
    for number, step in enumerate(steps):
        if "score" in step.selection.table and np.isfinite(step.selection.table["score"]).any():
            found.append(_scores(f"Scores of {step.name}" + (f" (step {number})" if len(steps) > 1 else ""), step))
    found += [_groups(subset, column, title) for column, title in (("class", "classes"), ("cluster", "clusters"))]
    found += [_weights(subset)] if np.ptp(subset.columns["weight"][subset.index]) else []
    return [chart for chart in found if chart is not None]


def examples(subset: Subset, data: Measure) -> list[dict[str, Any]]:
    """Kept and dropped images of each class, or cluster without classes: name and two data URLs; none of what is no image."""
    if len(data.event) != 3 or data.points.dtype != np.uint8 or data.event[0] not in (1, 3):
        return []
    column = _group(subset)
    groups = subset.columns[column] if column else np.zeros(subset.n, dtype=np.int64)
    out = []
    for c in np.unique(groups[groups >= 0])[:MOST_CLASSES]:
        here = {
            side: np.flatnonzero((groups == c) & (subset.columns["kept"] == (side == "kept"))) for side in ("kept", "dropped")
        }
        shown = {side: _strip(data, _spaced(rows, subset.columns["score"])) if len(rows) else "" for side, rows in here.items()}
        out.append({"name": str(c) if column else "all", **shown})
    return out


def _group(subset: Subset) -> str:
    return next((name for name in ("class", "cluster") if (subset.columns[name] >= 0).any()), "")


def _spaced(rows: Ints, scores: Array) -> Ints:
    order = rows[np.argsort(scores[rows], kind="stable")]
    return order[np.unique(np.linspace(0, len(rows) - 1, min(COLUMNS, len(rows))).round().astype(np.int64))]


def _strip(data: Measure, rows: Ints) -> str:
    buffer = io.BytesIO()
    pictures.save_png(buffer, pictures.grid(np.asarray(data.points[rows]), COLUMNS))
    return _url(buffer)


def _url(buffer: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shares(subset: Subset, column: str) -> tuple[Array, Array] | None:
    """Shares (K,) of the groups, before and after, of all rows that have one; None where none has."""
    groups, weight = subset.columns[column], subset.columns["weight"]
    some = groups >= 0
    if not some.any() or not weight[some].any():
        return None
    before = np.bincount(groups[some]).astype(float)
    after = np.bincount(groups[some], weight[some])
    return before / before.sum(), after / after.sum()


def _to_equal(before: Array, after: Array) -> tuple[float, float]:
    """KL to equal shares of the groups that had a row."""
    equal = (before > 0) / (before > 0).sum()
    return divergence(before, equal), divergence(after, equal)


def _drawn(draw: Any, width: float = 7.2, height: float = 2.6) -> str:
    """What draw(axes) draws, as a data URL."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=110)
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return _url(buffer)


def _plane(subset: Subset, data: Measure) -> Chart:
    points, kept = np.asarray(data.points[np.arange(min(data.n, 20_000))], dtype=float), subset.columns["kept"][:20_000]

    def draw(axes: Any) -> None:
        for rows, colour, label in ((~kept, DROPPED, "dropped"), (kept, KEPT, "kept")):
            axes.scatter(*points[rows].T, s=4, color=colour, linewidths=0, label=label)
        axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        axes.legend(markerscale=3, loc="upper left", bbox_to_anchor=(1, 1))

    return Chart("Rows", _drawn(draw, 5.5, 4.2), "Of more than 20,000 rows the first are shown." if data.n > 20_000 else "")


def _scores(title: str, step: chain.Step) -> Chart:
    scores = np.asarray(step.selection.table["score"], dtype=float)
    kept = np.zeros(len(scores), dtype=bool)
    kept[step.selection.index[np.asarray(step.selection.weights) > 0]] = True
    sound = np.isfinite(scores)
    low, high = scores[kept & sound].min(initial=np.inf), scores[kept & sound].max(initial=-np.inf)
    dropped = scores[~kept & sound]
    threshold = not ((dropped > low) & (dropped < high)).any()
    cuts = [cut for cut, beyond in ((low, (dropped <= low).any()), (high, (dropped >= high).any())) if beyond and threshold]

    def draw(axes: Any) -> None:
        bins = np.histogram_bin_edges(scores[sound], min(60, max(10, int(np.sqrt(sound.sum())))))
        axes.hist([scores[kept & sound], dropped], bins, stacked=True, color=[KEPT, DROPPED], label=["kept", "dropped"])
        for cut in cuts:
            axes.axvline(cut, color="black", linewidth=1, linestyle=(0, (4, 2.5)))
        axes.set(xlabel="score", ylabel="rows")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    none = f"Each {step.within} is cut by itself." if step.within in ("class", "cluster") else "There is no single cut."
    where = f"The cut is at {' and '.join(f'{cut:.4g}' for cut in cuts)} (dashed)." if cuts else none
    return Chart(title, _drawn(draw), where)


def _groups(subset: Subset, column: str, title: str) -> Chart | None:
    found = _shares(subset, column)
    if found is None:
        return None
    before, after = found
    order = np.arange(len(before)) if column == "class" else np.argsort(-before, kind="stable")
    before, after = before[order], after[order]
    k = len(order)

    def draw(axes: Any) -> None:
        at: NDArray[Any] = np.arange(k)
        if k <= MOST_CLASSES:
            axes.bar(at - 0.2, before, 0.4, color=BEFORE, label="before")
            axes.bar(at + 0.2, after, 0.4, color=KEPT, label="after")
            axes.set_xticks(at, [str(group) for group in order])
        else:
            axes.plot(at, before, color=BEFORE, label="before")
            axes.plot(at, after, color=KEPT, linewidth=0.9, label="after")
        axes.axhline(1 / k, color="0.4", linewidth=0.8, linestyle=(0, (4, 2.5)), label="equal")
        axes.set(xlabel=column if column == "class" or k <= MOST_CLASSES else "cluster, the largest first", ylabel="share")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    ahead, left = _to_equal(before, after)
    return Chart(f"Shares of the {title}", _drawn(draw), f"KL to equal shares: {ahead:.4f} nats before, {left:.4f} after.")


def _weights(subset: Subset) -> Chart:
    weights = np.asarray(subset.weights, dtype=float)
    effective = weights.sum() ** 2 / (weights**2).sum()

    def draw(axes: Any) -> None:
        axes.plot(np.linspace(0, 1, len(weights)), np.sort(weights)[::-1], color=KEPT)
        axes.axhline(1, color="0.4", linewidth=0.8, linestyle=(0, (4, 2.5)))
        axes.set(xlabel="share of the rows that stay, the heaviest first", ylabel="weight (mean 1)", xlim=(0, 1))
        if weights.max() > 5 * weights.min():
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)

    return Chart("Weights", _drawn(draw), f"{len(weights)} rows count as {effective:.1f} of equal weight do.")


def _course(course: Mapping[str, Any]) -> Chart:
    """Class weights from round to round."""
    alpha, names = np.array(course["alpha"]), course["names"]

    def draw(axes: Any) -> None:
        for weights, mean, name in zip(alpha.T, course["mean"], names, strict=True):
            (line,) = axes.plot(weights, linewidth=1.2, label=str(name))
            axes.plot(len(alpha), mean, "o", markersize=4, color=line.get_color(), clip_on=False)
        axes.axhline(1 / len(names), color="0.4", linewidth=0.8, linestyle=(0, (4, 2.5)))
        axes.set(xlabel="round", ylabel="class weight", ylim=(0, None))
        if len(names) <= MOST_CLASSES:
            axes.legend(title=course["groups"], loc="upper left", bbox_to_anchor=(1.02, 1), ncols=1 + (len(names) > 8))

    effective = course["effective"][-1]
    text = (
        f"Their means, the result, are the dots. In the last round {effective:.3g} of {len(names)} classes count, effectively."
    )
    return Chart("Course of the class weights", _drawn(draw), text)
