"""Stand-ins for the files that presets name: of the same form, with as few pixels as their headers allow."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = 1000
"""In the archives that stand for millions."""
SMALLER = {
    "ffhq64_sims": ["mix.n_real=900"],
    "imagenet64_sims": ["mix.n_real=900"],
    "imagenet512_sims": ["mix.n_real=900"],
    "imagenet256_pruning": ["mix.n_real=1100"],
    "celebahq_pruning": ["mix.n_real=1000"],
}


def stand_ins(folder: Path) -> dict[str, str]:
    """Write them; the variables that name them."""
    _npz(folder / "fashion_mnist.npz", train=(60_000, 28, 28))
    _npz(folder / "fashion_mnist_test.npz", test=(10_000, 28, 28))
    _npz(folder / "cifar10.npz", train=(50_000, 32, 32, 3), test=(10_000, 32, 32, 3))
    _zip(folder / "images.zip")
    np.save(folder / "latents.npy", np.zeros((IMAGES, 4, 64, 64), np.float32)[:, :, :1].repeat(64, axis=2))
    np.save(folder / "labels.npy", np.arange(IMAGES))
    for channels in (4, 8):
        shape = (IMAGES + 200, channels, 32, 32)
        np.lib.format.open_memmap(folder / f"latents{channels}.npy", "w+", np.dtype(np.float32), shape)  # a sparse file
    np.save(folder / "labels8.npy", np.arange(IMAGES + 200) % IMAGES)
    return {
        "FASHION_MNIST": str(folder),
        "CIFAR10": str(folder / "cifar10.npz"),
        "FFHQ64": str(folder / "images.zip"),
        "IMAGENET64": str(folder / "images.zip"),
        "IMAGENET512_LATENTS": str(folder / "latents.npy"),
        "IMAGENET512_LABELS": str(folder / "labels.npy"),
        "AUTOENCODER": str(folder),
        "IMAGENET512_REFERENCE": str(folder / "reference.npz"),
        "IMAGENET256_LATENTS": str(folder / "latents8.npy"),
        "IMAGENET256_LABELS": str(folder / "labels8.npy"),
        "CELEBAHQ_LATENTS": str(folder / "latents4.npy"),
        "FEATURES": str(folder / "features"),
    }


def _npz(path: Path, **shapes: tuple[int, ...]) -> None:
    """Labels, and images that end after their header: nobody reads further before a run begins."""
    with zipfile.ZipFile(path, "w") as file:
        for part, shape in shapes.items():
            head, labels = io.BytesIO(), io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
            np.lib.format.write_array(labels, np.arange(shape[0]) % 10)
            file.writestr(f"x_{part}.npy", head.getvalue())
            file.writestr(f"y_{part}.npy", labels.getvalue())


def _zip(path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    names = [f"{number // 1000:05d}/img{number:08d}.png" for number in range(IMAGES)]
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, picture.getvalue())
        file.writestr("dataset.json", json.dumps({"labels": [[name, number] for number, name in enumerate(names)]}))
