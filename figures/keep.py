"""python -m figures.keep NAME [--results DIR] [--out DIR]: keep with the project what one figure reads of a finished run.

figures/data/NAME/ then holds config.yaml and environment.json as they were, and a generations.parquet in small form:

    loop_zoo, sampling_bias, fresh_data     averaged over thousands of replicates: metric, power, replicates, mean and error of
                                            metric^power in place of replicate and value (see figures.averages), as float64
    all others                              the metrics that are drawn, every replicate, value as float32

Pictures of samples that the run wrote of its first replicates come along in pictures/, and what a figure reads of the shelves
of fits in a file of JSON, which the function `beside` of its module gives.

Which it is, the function `kept` of the figure's module says; the figure draws from kept(table), and kept(kept(table)) is
kept(table), so nothing a figure needs can be missing. The file is compressed by zstd at level 19 with the bytes of each number
split into streams, which takes a tenth off. `python -m figures` reads these results where there is no runs/NAME.
"""

import argparse
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from figures.__main__ import FIGURES, HERE
from figures.averages import KEPT_PICTURES, PICTURES
from selfloop.results import RunError, load_generations

LIMIT = 4_000_000
"""Bytes in one file, at most."""


def small(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows, curve by curve, a replicate's values as float32."""
    if "value" not in table:
        return table.reset_index(drop=True)
    paths = [name for name in table.columns if name not in ("replicate", "generation", "metric", "value")]
    ordered = table.sort_values([*paths, "metric", "replicate", "generation"], ignore_index=True)
    return ordered.astype({"value": "float32"})


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table of results: zstd, level 19; numbers as split byte streams, the rest as dictionaries."""
    numbers = [name for name in ("value", "mean", "error") if name in table]
    pq.write_table(
        pa.Table.from_pandas(table, preserve_index=False),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=[name for name in table.columns if name not in numbers],
        column_encoding=dict.fromkeys(numbers, "BYTE_STREAM_SPLIT"),
        row_group_size=len(table),
        data_page_size=1 << 23,
    )


def keep(name: str, results: Path, out: Path) -> list[Path]:
    """Copy a run to `out` in small form; the files written. Raises RunError if the run is not finished or too large."""
    module = importlib.import_module(f"figures.{name}")
    table = small(module.kept(load_generations(results)))
    beside: dict[str, Any] = module.beside(results) if hasattr(module, "beside") else {}
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "generations.parquet", out / "config.yaml", out / "environment.json"]
    try:
        for file in files[1:]:
            shutil.copyfile(results / file.name, file)
    except OSError as error:
        raise RunError(f"{results} is not a complete run folder: {error}") from error
    temporary = out / ".generations.parquet.tmp"
    write(table, temporary)
    if temporary.stat().st_size > LIMIT:
        size = temporary.stat().st_size
        temporary.unlink()
        raise RunError(
            f"{name} would take {size:,} bytes and a kept file may take {LIMIT:,}; average over replicates in figures/{name}.py"
        )
    temporary.replace(files[0])
    for read, value in beside.items():
        (out / read).write_text(json.dumps(value, indent=1) + "\n")
        files.append(out / read)
    for folder in (results / PICTURES, results / KEPT_PICTURES):
        for picture in sorted(folder.glob("*chunk=0,*.png")):
            (out / KEPT_PICTURES).mkdir(exist_ok=True)
            files.append(Path(shutil.copyfile(picture, out / KEPT_PICTURES / picture.name)))
    return files


def main() -> int:
    """Keep one run and say how large it is."""
    parser = argparse.ArgumentParser(prog="python -m figures.keep", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("name", choices=FIGURES, help="the figure that is drawn from it")
    parser.add_argument("--results", type=Path, help="a finished run folder (default: runs/NAME)")
    parser.add_argument("--out", type=Path, help="where to keep it (default: figures/data/NAME)")
    given = parser.parse_args()
    try:
        files = keep(given.name, given.results or Path("runs") / given.name, given.out or HERE / "data" / given.name)
    except RunError as error:
        print(f"{given.name}: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file}: {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
