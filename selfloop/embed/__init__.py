"""Features of images: what metrics and curators compare instead of pixels.

    phi: images (n, C, H, W) -> R^(n x d)

pixels       x / 127.5 - 1, flattened
classifier   the last layer but one of a small network that was trained to name the classes of the same real data
inception    the 2048 pooled features of Inception-v3 with the weights of 2015: FID and KID as published
dinov2       the class token of a DINOv2 transformer: FD-DINOv2
clip         the projected image embedding of CLIP

An embedding is a component, frozen; `fitted` gives the features themselves: a classifier is trained for them, published
networks are read. Images are uint8; latents, float32, are embedded as they are by pixels and classifier, and must be decoded
for networks that look at images. torch is imported by what needs it alone. In paths $VARIABLE is replaced by its value.
Source: Heusel et al. (2017); Stein et al. (2023), for DINOv2 and CLIP.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from pydantic import Strict

from selfloop import ranks
from selfloop.component import Count, Positive, component
from selfloop.formats import expanded
from selfloop.measure import Ints, Measure
from selfloop.protocols import Work

Floats = NDArray[np.float32]
Device = Literal["auto", "cpu", "cuda"]

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the weights of Inception-v3 of 2015-12-05, converted to PyTorch."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation of colours in [0, 1] that a network expects."""


@runtime_checkable
class Features(Protocol):
    """phi: points (n, C, H, W), an array, memory map or `Rows`, uint8 or float32 -> (n, d) float32, in batches inside."""

    @property
    def name(self) -> str: ...

    def __call__(self, points: Any) -> Floats: ...


@runtime_checkable
class Embedding(Protocol):
    """What gives features. `classifies` (False if not there): they also offer `classify` and `accuracy`."""

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """Features for data like `real`, points (n, C, H, W); work: where what was trained keeps itself."""
        ...


def sound(metric: str, least: int, /, **sets: Any) -> tuple[Any, ...]:
    """The sets of features (n, d) of a metric, as they are, once they are known to be good for it.

    Raises ValueError for fewer than `least` rows, widths that differ, or values that are not finite, with the first bad row.
    """
    for name, features in sets.items():
        if len(features.shape) != 2:
            raise ValueError(f"{name} must be features (n, d), got shape {tuple(features.shape)}; embed or flatten the images")
        if features.shape[0] < least:
            raise ValueError(f"{metric} needs {least} images or more in each set, got {features.shape[0]} {name}; take more")
        for rows in blocks(features.shape[0], 4096):
            bad = ~np.isfinite(features[rows]).all(axis=1)
            if bad.any():
                raise ValueError(f"{name} must be finite, and row {rows.start + int(bad.argmax())} of its features is not")
    if len({features.shape[1] for features in sets.values()}) > 1:
        widths = " and ".join(f"{features.shape[1]} ({name})" for name, features in sets.items())
        raise ValueError(f"{metric} compares features of one width d, got {widths}; embed both sets alike")
    return tuple(sets.values())


def embedded(embedding: Embedding, data: Measure, work: Work | None = None) -> Floats:
    """The features (n, d) of all points of one data set, by an embedding that is fitted to it."""
    features = embedding.fitted(data, work and work.at("fit"))
    return np.concatenate([features(data.points[rows]) for rows in blocks(data.n, 4096)])


def blocks(n: int, size: int) -> Iterator[slice]:
    """0 .. n - 1 in slices of `size`, the last one shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def model_space(points: Any) -> Floats:
    """x / 127.5 - 1 of uint8, float32 as it is."""
    points = np.asarray(points)
    if points.dtype == np.uint8:
        return np.asarray(points / np.float32(127.5) - np.float32(1), dtype=np.float32)
    return np.asarray(points, dtype=np.float32)


@dataclass(frozen=True)
class Pixels:
    """x / 127.5 - 1, flattened: (n, C H W)."""

    name: str = "pixels"

    def __call__(self, points: Any) -> Floats:
        """The features of points (n, *event)."""
        n = points.shape[0]
        parts = [model_space(points[rows]).reshape(rows.stop - rows.start, -1) for rows in blocks(n, 4096)]
        return np.concatenate(parts)


@dataclass(frozen=True)
class Network:
    """Features by a network, `batch` images at a time: of(block of points) -> tensor (n, d)."""

    name: str
    batch: int
    of: Callable[[Any], Any]

    def __call__(self, points: Any) -> Floats:
        """The features of points (n, C, H, W). Raises MemoryError, with a batch to try, if one does not fit on the device."""
        return np.concatenate([block.float().cpu().numpy() for block in _outputs(self.of, points, self.batch)])


def _outputs(of: Callable[[Any], Any], points: Any, batch: int) -> Iterator[Any]:
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


@component
class PixelEmbedding:
    """`pixels`: the images themselves. For tests and for data without labels."""

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """Nothing is fitted."""
        return Pixels()


# A classifier of the data's own ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifierFeatures:
    """Features and classes by a trained network: body (n, C, H, W) -> (n, d), in model space, then head (n, d) -> (n, K)."""

    body: Any
    head: Any
    batch: int
    device: str
    name: str = "classifier"

    def __call__(self, points: Any) -> Floats:
        """The features (n, d) of points (n, C, H, W)."""
        return np.concatenate([block.cpu().numpy() for block in _outputs(self._body, points, self.batch)])

    def classify(self, points: Any) -> Ints:
        """The class (n,) of each of points (n, C, H, W)."""
        logits = (self.head(block) for block in _outputs(self._body, points, self.batch))
        return np.concatenate([block.argmax(dim=1).cpu().numpy() for block in logits]).astype(np.int64)

    def accuracy(self, images: Measure) -> float:
        """The share of labelled images whose class it names. Raises ValueError if they have no labels."""
        if images.labels is None:
            raise ValueError("accuracy needs labelled images, and these have no labels")
        return float((self.classify(images.points) == images.labels).mean())

    def _body(self, block: Any) -> Any:
        import torch

        return self.body(torch.from_numpy(model_space(block)).to(self.device))


@component
class ClassifierEmbedding:
    """`classifier`: the last layer but one, d = width, of a small network trained on the real data by cross entropy.

    Three convolutions with GroupNorm and SiLU, pooled to at most 4 x 4, and a layer of `width`: 73,000 parameters for digits of
    8 x 8, 122,000 for 28 x 28. Adam at `rate`, which falls as a cosine; shifts by a pixel in 14 and noise of std 0.1 as
    augmentation. Ends after `steps`, or earlier after `epochs`. Rows are drawn by their weights. The result depends on the data
    and the seed alone: one thread, and generators of its own. With a `work` it is trained once and found again.
    """

    width: Annotated[int, Strict(), Ge(16)] = 64
    steps: Count = 2500
    epochs: Count = 60
    batch: Count = 128
    rate: Positive = 3e-3
    seed: Annotated[int, Strict(), Ge(0)] = 0
    device: Device = "auto"

    classifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.width % 16:
            raise ValueError(f"width must be a multiple of 16, got {self.width}")

    def fitted(self, real: Measure, work: Work | None = None) -> ClassifierFeatures:
        """The classifier of labelled images (n, C, H, W).

        Raises ValueError for data without labels or of a single class, RuntimeError where there is no such device.
        """
        import torch

        labels = _class_labels(real)
        device = _placed(self.device)
        event, classes = tuple(real.points.shape[1:]), int(labels.max()) + 1
        saved = work.load() if work is not None else None
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            net = _network(event, classes, self.width, torch.Generator().manual_seed(self.seed)).to(device)
            expected = {name: tuple(values.shape) for name, values in net.state_dict().items()}
            if saved is None or {name: values.shape for name, values in saved.items()} != expected:
                self._train(net, real, labels, work)
                mine = ranks.rank() == 0  # processes that compute together have one classifier
                saved = {name: ranks.summed(values.cpu().numpy() * mine) for name, values in net.state_dict().items()}
                if work is not None:
                    work.save(**saved)
        finally:
            torch.set_num_threads(threads)
        net.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in saved.items()})
        net.train(False).requires_grad_(False)
        return ClassifierFeatures(net[:-1], net[-1], max(self.batch, 256), device)

    def _train(self, net: Any, real: Measure, labels: Ints, work: Work | None) -> None:
        import torch
        from torch.nn.functional import cross_entropy

        rng, device = np.random.default_rng(self.seed), _placed(self.device)
        steps = min(self.steps, self.epochs * math.ceil(real.n / self.batch))
        below = np.cumsum(real.weights)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.rate, fused=True)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = np.minimum(np.searchsorted(below, rng.random(self.batch), side="right"), real.n - 1)
            images = torch.from_numpy(_varied(model_space(real.points[rows]), rng)).to(device)
            loss = cross_entropy(net(images), torch.from_numpy(labels[rows]).to(device))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if work is not None and (step + 1) % 100 == 0:
                work.report(step + 1, steps, loss=loss.item())


def _network(event: tuple[int, ...], classes: int, width: int, generator: Any) -> Any:
    """A convolutional network with parameters drawn by `generator`: He's normal law for weights, zero biases."""
    import torch
    from torch import nn

    channels, height, _ = event
    stride = 2 if height >= 16 else 1
    sides = [math.ceil(math.ceil(math.ceil(side / stride) / 2) / 2) for side in event[1:]]
    pooled = [min(side, 4) for side in sides]
    with torch.device("meta"):
        net = nn.Sequential(
            *(nn.Conv2d(channels, width // 2, 3, stride, padding=1), nn.GroupNorm(8, width // 2), nn.SiLU()),
            *(nn.Conv2d(width // 2, width, 3, 2, padding=1), nn.GroupNorm(8, width), nn.SiLU()),
            *(nn.Conv2d(width, width, 3, 2, padding=1), nn.GroupNorm(8, width), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(pooled), nn.Flatten(), nn.Linear(width * math.prod(pooled), width), nn.SiLU()),  # type: ignore[arg-type]
            nn.Linear(width, classes),
        )
    net = net.to_empty(device="cpu")
    for layer in net:
        if isinstance(layer, nn.GroupNorm):
            nn.init.ones_(layer.weight)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.GroupNorm) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return net


def _varied(images: Floats, rng: np.random.Generator) -> Floats:
    """Every image moved by at most one pixel in 14 (one at least), its edge repeated, and noise of std 0.1 added."""
    n, _, height, width = images.shape
    most = max(1, max(height, width) // 14)
    down, right = rng.integers(-most, most + 1, (2, n, 1))
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    moved = images[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    return moved + np.float32(0.1) * rng.standard_normal(moved.shape, dtype=np.float32)


def _class_labels(real: Measure) -> Ints:
    if real.labels is None:
        raise ValueError(
            "a classifier needs labelled images, and these have no labels; use features: pixels, inception or dinov2"
        )
    if real.batch != () or len(real.event) != 3:
        raise ValueError(f"a classifier is trained on one data set of images (n, C, H, W), got {tuple(real.points.shape)}")
    labels = np.asarray(real.labels, dtype=np.int64)
    found = np.unique(labels)
    if found[0] < 0 or len(found) < 2:
        shown = ", ".join(map(str, found[:5]))
        raise ValueError(f"a classifier needs labels from 0 up, of two classes or more, got {shown}; use other features")
    return labels


def _placed(device: str) -> str:
    """cpu or cuda: auto is cuda where torch finds it."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("device: cuda, and torch sees no GPU; set device: cpu, or auto")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


# Networks that others have trained -------------------------------------------------------------------------------------


@component
class Published:
    """A published network: `batch` images at a time on `device`.

    decode: a folder or hub name of a diffusers AutoencoderKL, for data that are its latents: z = x std / scale + mean with the
    latents_mean, latents_std and scaling_factor of its config.json (or x / scale + shift, where it has no mean and std).
    """

    batch: Count = 64
    device: Device = "auto"
    decode: str | None = None

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """The network with its weights. Raises what reading them raises, with the remedy."""
        _placed(self.device)
        prepare = self._images()
        network = self._network()
        return Network(self._name(), self.batch, lambda block: network(prepare(block)))

    def _name(self) -> str:
        raise NotImplementedError

    def _network(self) -> Callable[[Any], Any]:
        """uint8 RGB images (n, 3, H, W) -> (n, d), tensors on the device."""
        raise NotImplementedError

    def _images(self) -> Callable[[Any], Any]:
        """Points, decoded if they are latents, as uint8 RGB tensors on the device."""
        import torch

        device = _placed(self.device)
        decoder = None if self.decode is None else _decoder(expanded("decode", self.decode), device)

        def images(block: Any) -> Any:
            points = torch.from_numpy(np.array(block)).to(device)
            if decoder is not None:
                points = ((decoder(points.float()) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            if points.dtype != torch.uint8 or points.ndim != 4 or points.shape[1] not in (1, 3):
                raise ValueError(
                    f"{self._name()} looks at uint8 images (n, 1 or 3, H, W), got {points.dtype} {tuple(points.shape)}; "
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

    def _name(self) -> str:
        return "inception"

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
        extractor = extractor.to(_placed(self.device)).train(False)
        return lambda images: extractor(images)[0]


@component
class Dinov2(Published):
    """`dinov2`: the class token of DINOv2, 1024 features with ViT-L/14, by the library transformers.

    path: a folder or hub name with safetensors weights; size: images are resized to size x size, bicubic.
    """

    path: str = "facebook/dinov2-large"
    size: Count = 224

    def _name(self) -> str:
        return "dinov2"

    def _network(self) -> Callable[[Any], Any]:
        model = _pretrained("transformers", "Dinov2Model", expanded("path", self.path)).to(_placed(self.device))
        return lambda images: model(pixel_values=_resized(images, self.size, IMAGENET)).last_hidden_state[:, 0]


@component
class Clip(Published):
    """`clip`: the projected image embedding of CLIP, 768 features with ViT-L/14, by the library transformers.

    path: a folder or hub name with safetensors weights; size: images are resized to size x size, bicubic.
    """

    path: str = "openai/clip-vit-large-patch14"
    size: Count = 224

    def _name(self) -> str:
        return "clip"

    def _network(self) -> Callable[[Any], Any]:
        model = _pretrained("transformers", "CLIPVisionModelWithProjection", expanded("path", self.path)).to(
            _placed(self.device)
        )
        return lambda images: model(pixel_values=_resized(images, self.size, CLIP_PIXELS)).image_embeds


def _resized(images: Any, size: int, colours: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    """uint8 images as size x size in the colours a network expects: bicubic with antialiasing, clipped to [0, 1]."""
    import torch

    x = torch.nn.functional.interpolate(images.float() / 255, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in colours)
    return (x - mean) / std


def _decoder(path: str, device: str) -> Callable[[Any], Any]:
    """Latents x -> images in [-1, 1], by an AutoencoderKL."""
    import torch

    vae = _pretrained("diffusers", "AutoencoderKL", path).to(device)
    config = vae.config
    shift, scale = config.get("shift_factor") or 0.0, 1 / config["scaling_factor"]
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (torch.tensor(config[name], device=device).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        shift, scale = mean, std * scale
    return lambda latents: vae.decode(latents * scale + shift).sample


def _pretrained(library: str, name: str, path: str) -> Any:
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
