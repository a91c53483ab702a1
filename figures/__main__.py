"""python -m figures [NAME] [--results DIR] [--out DIR]: redraw figures from saved results, as PDF and PNG."""

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
FIGURES = [
    "gaussian2d",
    "loop_zoo",
    "sampling_bias",
    "fresh_data",
    "omega_eta",
    "digits_gmm",
    "fig3_2d",
    "fig4_score_net",
    "fig5_2d",
    "sims_vs_neon",
    "mode_loss",
    "runaway",
    "control_2d",
    "digits_sims",
    "digits_pollution",
    "digits_control",
    "digits_loop",
    "curation_2d",
    "pruning_2d",
    "pruning_digits",
    "digits_pruning",
    "digits_reweighting",
    "digits_skewed",
]


def results_of(name: str) -> Path:
    """The newest results of an experiment: its run folder, or else the ones kept with the figures."""
    run = Path("runs") / name
    return run if (run / "generations.parquet").exists() else HERE / "data" / name


def main() -> int:
    """Draw what is asked for; says which results each figure comes from."""
    parser = argparse.ArgumentParser(prog="python -m figures", description=__doc__)
    parser.add_argument("name", nargs="?", choices=FIGURES, help="one figure; all if not given")
    parser.add_argument("--results", type=Path, help="a run folder (default: runs/NAME, else figures/data/NAME)")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where to write (default: figures/out)")
    given = parser.parse_args()
    if given.results and not given.name:
        parser.error("--results needs the NAME of a figure")

    from selfloop.results import RunError

    given.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in [given.name] if given.name else FIGURES:
        results = given.results or results_of(name)
        try:
            figure = importlib.import_module(f"figures.{name}").draw(results)
        except RunError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
            continue
        for kind in ("pdf", "png"):
            figure.savefig(given.out / f"{name}.{kind}", dpi=160)
        print(f"{name}: {given.out / name}.png and .pdf, from {results}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
