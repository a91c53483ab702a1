"""A self-consuming loop on handwritten digits, from the results of experiments/digits_loop.yaml."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.averages import averages, configuration, course, only, read
from figures.style import COLOURS, MARKERS, WIDTH, band, note

TRAINING = "algorithm"
METRICS = {"fd": "FD  (squared unit of the features)", "recall": "recall", "precision": "precision"}


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """The metrics drawn, of every replicate."""
    return only(table, list(METRICS))


def draw(results: Path) -> Figure:
    """FD, recall and precision against the generation, standard training and SIMS."""
    table = kept(read(results, [TRAINING], list(METRICS))).astype({"value": float})
    settings, mean = configuration(results), averages(table, dict.fromkeys(METRICS, 1))
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    for letter, axes, (metric, unit) in zip("abc", figure.subplots(1, 3), METRICS.items(), strict=True):
        for number, name in enumerate(table[TRAINING].unique()):
            look = {"color": COLOURS[[3, 0][number % 2]], "marker": MARKERS[number % 6], "markersize": 4}
            band(axes, course(mean, metric, {TRAINING: name}), label=str(name), **look)
        axes.set(
            xlabel="generation", ylabel=unit, title=f"({letter}) {'Fréchet distance' if metric == 'fd' else metric.title()}"
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
    runs, mix = table["replicate"].nunique(), settings["mix"]
    note(
        figure,
        f"Curves and bands: mean of {runs} loops ± 1 standard error. Synthetic augmentation: each generation has the "
        f"same {mix['n_real'][-1]:,} real images\nand {mix['n_synthetic'][-1]:,} samples of the last one. FD to the real "
        "training images, features of a classifier.",
    )
    return figure
