"""Features by a network: where it runs, where its weights come from, and a batch at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from selfloop.embed.features import Floats, blocks

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Network:
    """Features by a network, `batch` images at a time: of(block of points) -> tensor (n, d)."""

    name: str
    batch: int
    of: Callable[[Any], Any]

    def __call__(self, points: Any) -> Floats:
        """The features of points (n, C, H, W). Raises MemoryError, with a batch to try, if one does not fit on the device."""
        return np.concatenate([block.float().cpu().numpy() for block in outputs(self.of, points, self.batch)])


def outputs(of: Callable[[Any], Any], points: Any, batch: int) -> Iterator[Any]:
    import torch

    for rows in blocks(points.shape[0], batch):
        try:
            with torch.inference_mode():
                out = of(points[rows])
        except torch.OutOfMemoryError as error:
            n = rows.stop - rows.start
            raise MemoryError(
                f"{n} images at a time do not fit on the device; set features.batch to {max(n // 2, 1)}"
            ) from error
        yield out


def placed(device: str) -> str:
    """cpu or cuda: auto is cuda where torch finds it."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: cuda, and torch sees no GPU; set device: cpu, or auto")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def pretrained(library: str, name: str, path: str) -> Any:
    """A network of transformers or diffusers in evaluation mode, from a folder or the hub; safetensors alone."""
    import importlib

    try:
        cls = getattr(importlib.import_module(library), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs {library}; run: pip install {library}") from error
    try:
        model = cls.from_pretrained(path, use_safetensors=True)
    except OSError as error:
        raise OSError(
            f"cannot read {name} from {path!r}: {error}\nGive a folder or hub name with config.json and safetensors weights; "
            "other weights (.bin, .pt) can run code when they are read, and are refused"
        ) from error
    return model.train(False).requires_grad_(False)
