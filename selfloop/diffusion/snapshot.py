"""Snapshots of a training: a safetensors file of plain arrays and a JSON file beside it that says what they are.

    network-000000256000.safetensors  average.<number>.<parameter> for each length that is tracked, after 256,000 images
    network-000000256000.json         {"images": .., "batch": .., "lengths": [..], "network": {..}, "event": [C, H, W], ..}

Nothing is pickled, so that opening a stranger's file runs no code. Parameters are read one at a time, where they are used: an
average over many snapshots of a large network takes the memory of one.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfloop.diffusion.average import PowerAverage, posthoc
from selfloop.work import replaced


@dataclass(frozen=True)
class Snapshot:
    """Averages of the parameters of a network; what was written beside them, `about` reads."""

    averages: tuple[PowerAverage, ...]


@dataclass(frozen=True)
class _Stored(Mapping[str, NDArray[Any]]):
    """Parameters in an open file, read when they are asked for."""

    file: Any
    prefix: str

    def __getitem__(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = self.file.get_tensor(self.prefix + name)
        return array

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self.prefix) for key in self.file.keys() if key.startswith(self.prefix))  # noqa: SIM118

    def __len__(self) -> int:
        return sum(1 for _ in self)


def save(folder: Path, images: int, batch: int, averages: Mapping[float, Mapping[str, NDArray[Any]]], beside: Any) -> Path:
    """Write a snapshot after so many images into a folder; its file."""
    from safetensors.numpy import save as packed

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"network-{images:012d}.safetensors"
    arrays = {f"average.{k}.{name}": value for k, part in enumerate(averages.values()) for name, value in part.items()}
    described = {"images": images, "batch": batch, "lengths": list(averages), **beside}
    for file, content in ((path.with_suffix(".json"), json.dumps(described, indent=2).encode()), (path, packed(arrays))):
        with replaced(file, file.with_name(f".{file.name}.tmp")) as written:
            written.write(content)
    return path


def about(path: Path) -> dict[str, Any]:
    """What was written beside a snapshot. Raises ValueError, with the remedy, if there is none, or the file is a pickle."""
    if path.suffix != ".safetensors":
        raise ValueError(
            f"snapshots are .safetensors files with a .json beside them, got {path.name}; pickle files (.pkl, .pt, .pth) run "
            "code when they are opened and are refused: save the arrays of a model you trust as safetensors first"
        )
    try:
        path.stat()
        found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} does not exist; a snapshot is a .safetensors file and a .json beside it") from error
    except ValueError as error:
        raise ValueError(f"{path.with_suffix('.json')} is damaged ({error}); use another snapshot") from error
    return found


def load(path: Path) -> Snapshot:
    """The snapshot in a file. Raises ValueError, with the remedy, if there is none, or it is a pickle or damaged."""
    from safetensors import SafetensorError, safe_open

    described = about(path)
    try:
        file = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); use another snapshot") from error
    steps = described["images"] // described["batch"]
    return Snapshot(
        tuple(PowerAverage(length, steps, _Stored(file, f"average.{k}.")) for k, length in enumerate(described["lengths"]))
    )


def averaged(snapshots: Sequence[Snapshot], length: float) -> dict[str, NDArray[np.float32]]:
    """Parameters of an average of any length at the last of some snapshots, see `selfloop.diffusion.average.posthoc`."""
    averages = [average for snapshot in snapshots for average in snapshot.averages]
    found = posthoc(averages, length, max(average.t for average in averages))
    return {name: np.asarray(value, dtype=np.float32) for name, value in found.items()}


def taken(folder: Path) -> list[Snapshot]:
    """All snapshots of a folder, the earliest first."""
    return [load(path) for path in sorted(folder.glob("network-*.safetensors"))]
