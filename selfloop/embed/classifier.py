"""Features of a small network that was trained to name the classes of the same real data: its last layer but one."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge
from pydantic import Strict

from selfloop import ranks
from selfloop.component import Count, Positive, component
from selfloop.embed.features import Floats, model_space
from selfloop.embed.network import Device, outputs, placed
from selfloop.measure import Ints, Measure
from selfloop.protocols import Work


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
        return np.concatenate([block.cpu().numpy() for block in outputs(self._body, points, self.batch)])

    def classify(self, points: Any) -> Ints:
        """The class (n,) of each of points (n, C, H, W)."""
        logits = (self.head(block) for block in outputs(self._body, points, self.batch))
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
        device = placed(self.device)
        event, classes = tuple(real.points.shape[1:]), int(labels.max()) + 1
        saved = work.load() if work is not None else None
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            net = network(event, classes, self.width, torch.Generator().manual_seed(self.seed)).to(device)
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

        rng, device = np.random.default_rng(self.seed), placed(self.device)
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


def network(event: tuple[int, ...], classes: int, width: int, generator: Any) -> Any:
    """A classifier of images, convolutional, or of vectors, two hidden layers: features (n, width) are its last layer but one.

    Parameters are drawn by `generator`: He's normal law for weights, zero biases.
    """
    import torch
    from torch import nn

    with torch.device("meta"):
        net = nn.Sequential(
            *(_convolutions(event, width) if len(event) == 3 else _layers(event, width)), nn.Linear(width, classes)
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


def _convolutions(event: tuple[int, ...], width: int) -> tuple[Any, ...]:
    from torch import nn

    channels, height, _ = event
    stride = 2 if height >= 16 else 1
    sides = [math.ceil(math.ceil(math.ceil(side / stride) / 2) / 2) for side in event[1:]]
    pooled = [min(side, 4) for side in sides]
    return (
        *(nn.Conv2d(channels, width // 2, 3, stride, padding=1), nn.GroupNorm(8, width // 2), nn.SiLU()),
        *(nn.Conv2d(width // 2, width, 3, 2, padding=1), nn.GroupNorm(8, width), nn.SiLU()),
        *(nn.Conv2d(width, width, 3, 2, padding=1), nn.GroupNorm(8, width), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(pooled), nn.Flatten(), nn.Linear(width * math.prod(pooled), width), nn.SiLU()),  # type: ignore[arg-type]
    )


def _layers(event: tuple[int, ...], width: int) -> tuple[Any, ...]:
    from torch import nn

    return nn.Flatten(), nn.Linear(math.prod(event), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()


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
