"""Methods of pruning and their inverse on digits and a mixture, from the results of experiments/pruning_digits.yaml."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from figures import ratios
from figures.averages import configuration, only

METRIC, FLOOR = "w2_empirical", "w2_floor"
PANELS = {
    "Likelihood": ["likelihood high", "likelihood low", "PPCA high", "PPCA low"],
    "Neighbours": ["neighbour near", "neighbour far", "moderate"],
    "Distance to a centre": ["clusters near", "clusters far", "prototypes near", "prototypes far"],
    "Quotas of clusters": ["clusters balanced", "clusters by density", "hierarchical"],
    "Cover": ["k-center", "herding", "kernel herding", "stratified", "D2"],
    "Surrogate": ["loss high", "loss low", "loss interval"],
}


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W2 and the Fréchet distance with their floors, and the distance of class shares, of every replicate."""
    return only(table, [METRIC, FLOOR, "frechet", "frechet_floor", "class_tv"])


def draw(results: Path) -> Figure:
    """W2 against the pruning ratio, a line for each method."""
    table, settings = ratios.table_of(results, METRIC), configuration(results)
    floor, runs = table[table["metric"] == FLOOR]["value"].mean(), table["replicate"].nunique()
    components = settings["algorithm"]["algorithm"]["components"]
    return ratios.draw(
        table,
        METRIC,
        "$W_2$  (units of a pixel)",
        PANELS,
        f"Curves and bands: mean of {runs} fits ± 1 standard error. {settings['mix']['n_real'][-1]:,} digits of 8 × 8 pixels, "
        f"{settings['real']['components']} principal components; a mixture of\n{components} Gaussians. W2 of "
        f"{settings['track']['w2_empirical']['n']} samples to held-out digits, which nobody pruned; two sets of digits have "
        f"{floor:.2f}.",
    )
