"""One look for all figures: colours that colour-blind readers can tell apart, labels with units, bands explained."""

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes

matplotlib.use("Agg")
COLOURS = sns.color_palette("colorblind")
CLASS_COLOURS = {
    "none": "0.45",
    "weak": COLOURS[2],
    "strong": COLOURS[1],
    "prevention": COLOURS[4],
    "diverged": "black",
}
"""Green, orange and purple for weak, strong mitigation and prevention, as in the SIMS paper; grey for none."""

sns.set_theme(
    context="paper",
    style="ticks",
    palette="colorblind",
    rc={
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.title_fontsize": 8,
        "lines.linewidth": 1.4,
        "pdf.fonttype": 42,
    },
)


def reference(axes: Axes, y: float, text: str = "") -> None:
    """A thin grey line at y, with a word on it."""
    axes.axhline(y, color="0.6", linewidth=0.8, zorder=0)
    if text:
        axes.annotate(text, (1.0, y), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7, color="0.4")
