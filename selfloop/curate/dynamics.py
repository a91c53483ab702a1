"""Scores by classifiers under training: rows that they forget, or that they get wrong, or that still move them.

    p = softmax(f(x_i)), y_i one-hot, h the last layer but one; means are over runs, which differ in weights and order of rows

    forgetting    number of epochs t at which row i is wrong and was right at t - 1; never right: the largest number + 1
    el2n          mean of |p - y_i|_2 after `epochs`, early in training
    grand         mean of |grad_theta CE(f(x_i), y_i)|_2 after `epochs`; theta the last layer, where its square is
                  |p - y_i|^2 (|h|^2 + 1), or all parameters

The classifiers are those of the embedding `classifier`, or two hidden layers on vectors, trained by Adam on the data under
their weights, one pass over the rows an epoch. Epochs are looked at when they end, on all rows, so that equal rows score alike.
These scores were made for pruning the data of classifiers. For a diffusion model they say which rows are unlike their class.

Source: Toneva et al. (2019), who count when a row is drawn and let rows that are never learned count as infinity; Paul et al.
(2021). Kirsch (2023) found that GraNd before any training does not work as published: here `epochs` is at least 1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Strict

from selfloop import ranks
from selfloop.component import Count, Positive, component
from selfloop.curate.denoising import clean, flat, unit
from selfloop.embed import Device, blocks, model_space
from selfloop.measure import Array, Ints, Measure
from selfloop.protocols import Work


@component
class _Classifiers:
    """What the scores share.

    runs: classifiers; epochs: passes over the rows of each; width: of their layers; batch: rows a step; rate: of Adam; device:
    auto is cuda where torch finds it and else cpu.
    """

    runs: Count = 10
    epochs: Count = 5
    width: Annotated[int, Strict(), Ge(16)] = 64
    batch: Count = 128
    rate: Positive = 1e-3
    device: Device = "auto"

    takes: ClassVar[frozenset[str]] = frozenset({"points", "images"})
    needs_real: ClassVar[frozenset[str]] = frozenset({"labels"})

    def __post_init__(self) -> None:
        if self.width % 16:
            raise ValueError(f"width must be a multiple of 16, got {self.width}")

    def __call__(self, data: Measure, rng: Generator, work: Work | None = None) -> Array:
        """Scores (n,) of vectors (n, d) or images (n, C, H, W). Raises ValueError for data without labels of two classes."""
        import torch

        problem = _Problem.of(data)
        saved = work.load() if work is not None else None
        total, done = (np.zeros(data.n), 0) if saved is None else (saved["total"], int(saved["done"]))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for run, stream in enumerate(rng.spawn(self.runs)):
                if run < done:
                    continue
                total = total + self._scored(problem, self._epochs(problem, stream))
                if work is not None:
                    work.report(run + 1, self.runs)
                    if work.due():
                        work.save(total=total, done=np.array(run + 1))
        finally:
            torch.set_num_threads(threads)
        return np.asarray(ranks.summed(total * (ranks.rank() == 0)) / self.runs)

    def _scored(self, problem: "_Problem", epochs: Iterator[Any]) -> Array:
        """Scores (n,) of one run, from its network at the end of every epoch."""
        raise NotImplementedError

    def _epochs(self, problem: "_Problem", rng: Generator) -> Iterator[Any]:
        """One network under training, at the end of every epoch."""
        import torch
        from torch.nn.functional import cross_entropy

        from selfloop.embed.classifier import network
        from selfloop.embed.network import placed

        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        net = network(problem.data.event, problem.classes, self.width, generator).to(placed(self.device))
        optimiser = torch.optim.Adam(net.parameters(), lr=self.rate, fused=True)
        for _ in range(self.epochs):
            order = rng.permutation(problem.data.n)
            for rows in (order[part] for part in blocks(problem.data.n, self.batch)):
                x, y, weights = problem.taken(rows, placed(self.device))
                loss = (weights * cross_entropy(net(x), y, reduction="none")).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            yield net


@component
class Forgetting(_Classifiers):
    """`forgetting`: how often a row that was named right is named wrong at the next epoch; never right counts most."""

    runs: Count = 3
    epochs: Count = 20

    def _scored(self, problem: "_Problem", epochs: Iterator[Any]) -> Array:
        return forgotten(np.stack([problem.each(net, lambda net, x, y: net(x).argmax(dim=1) == y) for net in epochs]))


@component
class El2n(_Classifiers):
    """`el2n`: the distance of the class probabilities from the label, early in training."""

    def _scored(self, problem: "_Problem", epochs: Iterator[Any]) -> Array:
        *_, net = epochs
        return problem.each(net, lambda net, x, y: error(net(x), y).norm(dim=1))


@component
class GraNd(_Classifiers):
    """`grand`: the norm of the gradient of a row's cross entropy, early in training.

    parameters: of the `last` layer, or `all`.
    """

    parameters: Literal["last", "all"] = "last"

    def _scored(self, problem: "_Problem", epochs: Iterator[Any]) -> Array:
        *_, net = epochs
        return problem.each(net, last_layer_norms if self.parameters == "last" else gradient_norms)


def forgotten(right: Any) -> Array:
    """Flips from right to wrong (n,) of right (T, n), booleans; a row that was never right has the largest number + 1."""
    flips = (right[:-1] & ~right[1:]).sum(axis=0)
    return np.asarray(np.where(right.any(axis=0), flips, flips.max() + 1), dtype=np.float64)


def error(logits: Any, labels: Any) -> Any:
    """softmax(f) - y (n, K), tensors."""
    from torch.nn.functional import one_hot, softmax

    return softmax(logits, dim=1) - one_hot(labels, logits.shape[1])


def last_layer_norms(net: Any, x: Any, labels: Any) -> Any:
    """|grad CE| (n,) by weight and bias of the last layer: |p - y| (|h|^2 + 1)^1/2."""
    h = net[:-1](x)
    return error(net[-1](h), labels).norm(dim=1) * (h.square().sum(dim=1) + 1).sqrt()


def gradient_norms(net: Any, x: Any, labels: Any) -> Any:
    """|grad CE| (n,) by all parameters."""
    from torch.func import functional_call, grad, vmap
    from torch.nn.functional import cross_entropy

    def loss(parameters: Any, row: Any, label: Any) -> Any:
        return cross_entropy(functional_call(net, parameters, (row[None],)), label[None])

    found = vmap(grad(loss), in_dims=(None, 0, 0))({name: value.detach() for name, value in net.named_parameters()}, x, labels)
    return sum(value.flatten(1).square().sum(dim=1) for value in found.values()).sqrt()


@dataclass(frozen=True)
class _Problem:
    """Labelled rows as a classifier sees them: images in model space, vectors less their mean and in units of their spread."""

    data: Measure
    labels: Ints
    shift: Any
    unit: float

    @classmethod
    def of(cls, data: Measure) -> "_Problem":
        if data.labels is None:
            raise ValueError("classifiers need labelled rows, and these have no labels; use another score")
        labels = np.asarray(data.labels, dtype=np.int64)
        if labels.min() < 0 or labels.min() == labels.max():
            shown = ", ".join(map(str, np.unique(labels)[:5]))
            raise ValueError(f"classifiers need labels from 0 up, of two classes or more, got {shown}; use another score")
        if len(data.event) == 3:
            return cls(data, labels, np.float32(0), 1.0)
        mean = sum(data.weights[rows] @ flat(data.points[rows]) for rows in blocks(data.n, 4096))
        return cls(data, labels, mean, unit(data))

    @property
    def classes(self) -> int:
        """The number K of classes."""
        return int(self.labels.max()) + 1

    def taken(self, rows: Any, device: str) -> tuple[Any, Any, Any]:
        """x (m, *event), y (m,) and weights (m,) of mean 1 over all rows, as tensors."""
        import torch

        x = model_space((clean(self.data.points[rows]) - self.shift) / self.unit)
        weights = (self.data.n * self.data.weights[rows]).astype(np.float32)
        return tuple(torch.from_numpy(part).to(device) for part in (x, self.labels[rows], weights))  # type: ignore[return-value]

    def each(self, net: Any, of: Callable[[Any, Any, Any], Any]) -> NDArray[Any]:
        """of(net, x, y) of all rows, block by block."""
        import torch

        device = next(net.parameters()).device
        with torch.no_grad():
            parts = (self.taken(rows, device) for rows in blocks(self.data.n, 256))
            return np.concatenate([of(net, x, y).cpu().numpy() for x, y, _ in parts])
