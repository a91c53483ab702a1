"""Which loops keep the modes of a mixture, with SIMS and without, from the results of experiments/mode_loss.yaml."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from figures.averages import averages, configuration, course, only, read
from figures.guidance import OMEGA
from figures.style import COLOURS, MARKERS, WIDTH, band, label_ends, note, reference
from selfloop.results import RunError

KIND = "mix.kind"
METRICS = ["mode_coverage", "w2_empirical", "w2_floor"]
LOOPS = {
    "fully_synthetic": ("fully synthetic", COLOURS[3], MARKERS[0]),
    "accumulate": ("accumulate", COLOURS[2], MARKERS[2]),
    "augment": ("augment", COLOURS[1], MARKERS[3]),
    "fresh": ("fresh", COLOURS[0], MARKERS[4]),
}


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """Coverage and exact W_2 with its floor, of every replicate."""
    return only(table, METRICS)


def draw(results: Path) -> Figure:
    """Share of the modes that is left and exact W_2 over generations, a curve for each loop type; standard left, SIMS right."""
    table = kept(read(results, [KIND, OMEGA], METRICS)).astype({"value": float})
    settings = configuration(results)
    omegas = sorted(table[OMEGA].unique())
    if 0 not in omegas or len(omegas) != 2:
        raise RunError(f"{results} lacks omega = 0 or a second omega; draw a run whose sweep has both")
    mean = averages(table, dict.fromkeys(METRICS, 1))
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row")
    floor = float(mean.loc[mean["metric"] == "w2_floor", "mean"].mean())
    for column, (omega, name) in enumerate(zip(omegas, ("standard loop", rf"SIMS, $\omega$ = {omegas[1]:g}"), strict=True)):
        above, below = panels[:, column]
        above.yaxis.set_major_formatter(PercentFormatter(1))
        above.set(ylabel="modes covered", title=f"({'ab'[column]}) Modes left: {name}")
        below.set(ylabel="exact $W_2$  (units of the points)", title=f"({'cd'[column]}) Distance: {name}")
        reference(below, floor, "floor: real against real", x=0.99, va="top")
        for axes, metric in ((above, "mode_coverage"), (below, "w2_empirical")):
            _draw_loops(axes, mean, metric, omega)
    for row, metric in zip(panels, ("mode_coverage", "w2_empirical"), strict=True):
        row[0].set_ylim(0, 1.04 if metric == "mode_coverage" else None)
        for axes, omega in zip(row, omegas, strict=True):
            _name_loops(axes, mean, metric, omega)
    modes, runs = settings["track"]["modes"], table["replicate"].nunique()
    note(
        figure,
        f"Curves and bands: mean of {runs} loops ± 1 standard error, {settings['mix']['n_real'][-1]:,} real points each. "
        f"A mode is covered if\n{modes['share']:.0%} or more of the samples due to it, of {modes['n']:,} in all, lie within "
        f"{modes['radius']:g} standard deviations.\n$W_2$ and its floor: {settings['track']['w2_empirical']['n']:,} points "
        "against as many real ones.",
    )
    return figure


def _draw_loops(axes: Axes, mean: pd.DataFrame, metric: str, omega: float) -> None:
    for kind, (_, colour, marker) in LOOPS.items():
        if kind in set(mean[KIND]):
            band(axes, course(mean, metric, {KIND: kind, OMEGA: omega}), color=colour, marker=marker, markersize=3.5)
    axes.set(xlabel="generation $t$", xlim=(0.5, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _name_loops(axes: Axes, mean: pd.DataFrame, metric: str, omega: float) -> None:
    shown = [kind for kind in LOOPS if kind in set(mean[KIND])]
    ends = [float(course(mean, metric, {KIND: kind, OMEGA: omega}).mean[-1]) for kind in shown]
    label_ends(axes, ends, [LOOPS[kind][0] for kind in shown], [LOOPS[kind][1] for kind in shown])
