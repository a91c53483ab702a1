"""Features of networks that others have trained, on images in the form that each of them expects.

inception    the 2048 pooled features of Inception-v3 with the weights of 2015: FID and KID as published
dinov2       the class token of a DINOv2 transformer: FD-DINOv2
clip         the projected image embedding of CLIP

They look at uint8 images; latents must be decoded. In paths $VARIABLE is replaced by its value.
Source: Heusel et al. (2017); Stein et al. (2023), for DINOv2 and CLIP.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from selfloop.component import Count, component
from selfloop.embed.features import Features
from selfloop.embed.network import Device, Network, placed, pretrained
from selfloop.embed.store import contents
from selfloop.formats import expanded
from selfloop.measure import Measure
from selfloop.protocols import Work

Colours = tuple[tuple[float, ...], tuple[float, ...]]

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the weights of Inception-v3 of 2015-12-05, converted to PyTorch."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of colours in [0, 1] that a network expects."""


@component
class Published:
    """A published network: `batch` images at a time on `device`.

    decode: a folder or hub name of a diffusers AutoencoderKL, for data that are its latents: z = x std / scale + mean with the
    latents_mean, latents_std and scaling_factor of its config.json (or x / scale + shift, where it has no mean and std).
    """

    batch: Count = 64
    device: Device = "auto"
    decode: str | None = None

    called: ClassVar[str]
    learns: ClassVar[frozenset[str]] = frozenset()

    def stamp(self) -> str:
        """SHA-256 of the autoencoder, if it is a folder; the weights of Inception are always the same."""
        return "" if self.decode is None else contents("decode", self.decode)

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """The network with its weights. Raises what reading them raises, with the remedy."""
        placed(self.device)
        prepare = self._images()
        network = self._network()
        return Network(self.called, self.batch, lambda block: network(prepare(block)))

    def _network(self) -> Callable[[Any], Any]:
        """uint8 RGB images (n, 3, H, W) -> (n, d), tensors on the device."""
        raise NotImplementedError

    def _images(self) -> Callable[[Any], Any]:
        """Points, decoded if they are latents, as uint8 RGB tensors on the device."""
        import torch

        device = placed(self.device)
        decoder = None if self.decode is None else _decoder(expanded("decode", self.decode), device)

        def images(block: Any) -> Any:
            points = torch.from_numpy(np.array(block)).to(device)
            if decoder is not None:
                points = ((decoder(points.float()) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            if points.dtype != torch.uint8 or points.ndim != 4 or points.shape[1] not in (1, 3):
                raise ValueError(
                    f"{self.called} looks at uint8 images (n, 1 or 3, H, W), got {points.dtype} {tuple(points.shape)}; "
                    "for latents set features.decode to their autoencoder, or use features: classifier"
                )
            return points.expand(-1, 3, -1, -1)

        return images


@component
class Inception(Published):
    """`inception`: 2048 features of the Inception-v3 of 2015, by the library torch-fidelity.

    weights: a local file; torch-fidelity's own download, once, if not said. Grey images are repeated in three channels.
    Raises ModuleNotFoundError without torch-fidelity, FileNotFoundError without the file, ValueError if its SHA-256 is not
    that of the published weights: with others the numbers are not FID.
    """

    weights: str | None = None

    called: ClassVar[str] = "inception"

    def _network(self) -> Callable[[Any], Any]:
        import torch

        try:
            from torch_fidelity import feature_extractor_inceptionv3 as library
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("features: inception needs torch-fidelity; run: pip install torch-fidelity") from error
        if self.weights is None:
            path = Path(torch.hub.get_dir(), "checkpoints", library.URL_INCEPTION_V3.rsplit("/", 1)[1])
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(
                    library.URL_INCEPTION_V3, str(path), hash_prefix=INCEPTION_SHA256, progress=False
                )
        else:
            path = Path(expanded("weights", self.weights))
        if not path.exists():
            raise FileNotFoundError(
                f"no weights of Inception-v3 at {path}; give features.weights, or leave it out to download them"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != INCEPTION_SHA256:
            raise ValueError(
                f"{path} is not the Inception-v3 of 2015: its SHA-256 is {digest}, not {INCEPTION_SHA256}; "
                f"get it from {library.URL_INCEPTION_V3}"
            )
        extractor = library.FeatureExtractorInceptionV3("inception-v3", ["2048"], feature_extractor_weights_path=str(path))
        extractor = extractor.to(placed(self.device)).train(False)
        return lambda images: extractor(images)[0]


@component
class Transformer(Published):
    """A vision transformer of the library transformers.

    path: a folder or hub name with safetensors weights; size: images are resized to size x size, bicubic.
    """

    path: str
    size: Count = 224

    model: ClassVar[str]
    colours: ClassVar[Colours]

    def stamp(self) -> str:
        """SHA-256 of the weights and of the autoencoder, where they are folders."""
        return contents("path", self.path) + super().stamp()

    def _network(self) -> Callable[[Any], Any]:
        model = pretrained("transformers", self.model, expanded("path", self.path)).to(placed(self.device))
        return lambda images: self._features(model(pixel_values=_resized(images, self.size, self.colours)))

    def _features(self, output: Any) -> Any:
        """(n, d) of what the transformer gives."""
        raise NotImplementedError


@component
class Dinov2(Transformer):
    """`dinov2`: the class token of DINOv2, 1024 features with ViT-L/14, by the library transformers.

    path: a folder or hub name with safetensors weights; size: images are resized to size x size, bicubic.
    """

    path: str = "facebook/dinov2-large"

    called: ClassVar[str] = "dinov2"
    model: ClassVar[str] = "Dinov2Model"
    colours: ClassVar[Colours] = IMAGENET

    def _features(self, output: Any) -> Any:
        return output.last_hidden_state[:, 0]


@component
class Clip(Transformer):
    """`clip`: the projected image embedding of CLIP, 768 features with ViT-L/14, by the library transformers.

    path: a folder or hub name with safetensors weights; size: images are resized to size x size, bicubic.
    """

    path: str = "openai/clip-vit-large-patch14"

    called: ClassVar[str] = "clip"
    model: ClassVar[str] = "CLIPVisionModelWithProjection"
    colours: ClassVar[Colours] = CLIP_PIXELS

    def _features(self, output: Any) -> Any:
        return output.image_embeds


def _resized(images: Any, size: int, colours: Colours) -> Any:
    """uint8 images as size x size in the colours a network expects: bicubic with antialiasing, clipped to [0, 1]."""
    import torch

    x = torch.nn.functional.interpolate(images.float() / 255, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in colours)
    return (x - mean) / std


def _decoder(path: str, device: str) -> Callable[[Any], Any]:
    """Latents x -> images in [-1, 1], by an AutoencoderKL."""
    import torch

    vae = pretrained("diffusers", "AutoencoderKL", path).to(device)
    config = vae.config
    shift, scale = config.get("shift_factor") or 0.0, 1 / config["scaling_factor"]
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (torch.tensor(config[name], device=device).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        shift, scale = mean, std * scale
    return lambda latents: vae.decode(latents * scale + shift).sample
