"""Pictures of samples: grids of small images in one PNG."""

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

BACKGROUND = 255


def grid(points: Any, columns: int, gap: int = 1) -> NDArray[np.uint8]:
    """Images (n, C, H, W) uint8 in rows of `columns`, `gap` pixels apart: (rows (H + gap) + gap, columns (W + gap) + gap, C).

    Raises ValueError for what is no stack of uint8 images with 1 or 3 channels.
    """
    images = np.asarray(points)
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3):
        raise ValueError(f"a grid is made of uint8 images (n, 1 or 3, H, W), got {images.dtype} {images.shape}")
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    out = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), BACKGROUND, np.uint8)
    for number, image in enumerate(images.transpose(0, 2, 3, 1)):
        top, left = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        out[top : top + height, left : left + width] = image
    return out


def save_png(path: Path | IO[bytes], picture: NDArray[np.uint8], enlarged: int = 1) -> None:
    """A picture (H, W, 1 or 3) as a PNG, each pixel a square of `enlarged` pixels. Needs Pillow."""
    from PIL import Image

    big = picture.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
    Image.fromarray(big[..., 0] if big.shape[-1] == 1 else big).save(path, format="PNG")
