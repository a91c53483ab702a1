"""Every method of pruning and its inverse where the law is known, from the results of experiments/pruning_2d.yaml."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from figures import ratios
from figures.averages import configuration, only

METRIC, RARE = "w2_empirical", "class_share.0"
PANELS = {
    "Likelihood, neighbours": ["likelihood high", "likelihood low", "neighbour near", "neighbour far"],
    "Distance to a centre": ["clusters near", "clusters far", "moderate"],
    "Quotas of clusters": ["clusters balanced", "clusters by density", "hierarchical"],
    "Cover": ["k-center", "herding", "kernel herding", "stratified", "D2"],
    "Classifiers": ["forgotten", "unforgotten", "EL2N high", "EL2N low"],
    "Surrogates": ["loss high", "loss low", "loss interval", "gradient high", "gradient low", "MoSo high", "MoSo low"],
}


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W2, its floor, the share of the rare mode and the distance of all shares, of every replicate."""
    return only(table, [METRIC, "w2_floor", RARE, "class_tv"])


def draw(results: Path) -> Figure:
    """W2 against the pruning ratio, a line for each method."""
    table, settings = ratios.table_of(results, METRIC), configuration(results)
    floor = table[table["metric"] == "w2_floor"]["value"].mean()
    runs, network = table["replicate"].nunique(), settings["algorithm"]["algorithm"]
    rows, outliers, steps = (
        settings["mix"]["n_real"][-1],
        settings["real"]["outliers"],
        network["budget"] * 1e6 / network["batch"],
    )
    return ratios.draw(
        table,
        METRIC,
        "$W_2$  (units of the points)",
        PANELS,
        f"Curves and bands: mean of {runs} trainings ± 1 standard error. {rows:,} rows: eight Gaussians of uneven shares, "
        f"{outliers:.0%}\noutliers. W2 to the law without outliers; two sets of that law have {floor:.3f}. As many updates "
        f"({steps:,.0f}) whatever is kept.",
    )
