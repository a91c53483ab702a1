"""Figure 4 of the SIMS paper, from the results of experiments/gaussian2d.yaml."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from figures.averages import only
from figures.mitigation import START, convergence, draw_course, draw_end, draw_first, legend, loops
from figures.style import WIDTH, note, reference


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """W_2 of every replicate, which the bootstrap of the classes needs."""
    return only(table, ["w2"])


def draw(results: Path) -> Figure:
    """Self-improvement at generation 1; distance at convergence and in its course, over both readings of generation 1."""
    seen = loops(results, ["w2"])
    figure = Figure(figsize=(WIDTH, 7.4), layout="constrained")
    panels = figure.subplots(3, 3)
    means = draw_first(panels[0, 0], seen, color="0.2")
    reference(panels[0, 0], means[seen.omegas.index(seen.rule.standard)], "standard training")
    panels[0, 0].set(ylabel=r"$E[W_2(\mathcal{G}^1_\omega, p_r)]$", ylim=(0, 1.12 * max(means)))
    panels[0, 0].set_title("(a) SIMS improves itself")
    for axes, which, letter in ((panels[0, 1], "own", "b"), (panels[0, 2], "standard", "c")):
        draw_end(axes, seen, which, letter)
    shown = [*seen.sizes[:2], *seen.sizes[-1:]][: len(seen.sizes)]
    letters = iter("defghi")
    for row, which in enumerate(START, start=1):
        for column, axes in enumerate(panels[row]):
            if column >= len(shown):
                axes.set_axis_off()
                continue
            draw_course(axes, seen, shown[column], which, next(letters))
    legend(figure, seen.omegas)
    note(
        figure,
        f"Mean of {seen.runs} replicates. (a) and bands: ± 1 standard error. (b), (c): {convergence(seen)}\n"
        "intervals; at the right $n_s$, synthetic points a generation. "
        r"Colour: mitigation over the start, $\mathcal{G}^1_\omega$ own, $\mathcal{G}^1_0$ standard.",
    )
    return figure
