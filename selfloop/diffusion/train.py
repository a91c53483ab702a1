"""Training one denoiser on images: denoising score matching, on one process or on many, cut and continued.

    min over theta   E_(i ~ w) E_(sigma, z)  exp(-u) l + u,    l = |F(c_in x, ln(sigma) / 4) - (x_0 - c_skip x) / c_out|^2 / D

with x = x_0 + sigma z, D the numbers in an image, c_skip, c_out, c_in those of data of unit variance, sigma in units of
sigma_data (`selfloop.diffusion.precondition`): the error of D(x; sigma) is weighed by (sigma^2 + sigma_data^2) /
(sigma sigma_data)^2. u(sigma) = 0, or learned beside theta (Karras et al., 2024, section 2.2). The weights w_i of the data are
met in expectation by drawing rows with them, or by drawing rows alike and multiplying their losses by n w_i.

What is random in a step belongs to its number and to blocks of 64 images of its batch: a training that was saved and continued,
one cut into smaller batches whose gradients are added, and one on several processes see the same images, noise and levels.
(Dropout is drawn where it is used, and does depend on how a batch is cut.)

    rate         constant      r min(1, m / warmup)                       m million images seen; Karras et al. (2022)
                 inverse_sqrt  that, divided by max(m / reference, 1)^1/2                    Karras et al. (2024), equation 67
"""

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Lt
from numpy.typing import NDArray
from pydantic import Strict
from torch import Tensor, nn

from selfloop import ranks
from selfloop.component import Count, NonNegative, Positive, Switch, component
from selfloop.diffusion.augment import Augment
from selfloop.diffusion.average import LONGEST, PowerAverage
from selfloop.diffusion.budget import MILLION
from selfloop.diffusion.noise import Noise
from selfloop.diffusion.precondition import PredictionName, coefficients
from selfloop.diffusion.snapshot import Snapshot
from selfloop.diffusion.unet import Uncertainty
from selfloop.protocols import Work
from selfloop.streams import torch_seed

BLOCK = 64
"""Images of a batch that share a stream of random numbers."""
LARGEST_GRADIENT = 1e5
LOOK = 16
"""Steps between two looks at the loss."""
LOST_STEPS = 3 * LOOK
"""Steps in a row without a finite loss after which a training gives up."""
ON_DEVICE = 2**33
"""Bytes of data that are kept in the memory of the device; more are read as they are needed."""

Length = Annotated[float, Strict(), Gt(0), Lt(LONGEST)]


@component
class LearningRate:
    """Adam's rate at m million images seen: `rate`, reached on a line at `warmup`; inverse_sqrt: falling after `reference`."""

    kind: Literal["constant", "inverse_sqrt"] = "constant"
    rate: Positive = 1e-3
    warmup: NonNegative = 10.0
    reference: Positive = 143.36

    def at(self, seen: float) -> float:
        """The rate of a step that ends with so many million images seen."""
        rate = self.rate * (min(1.0, seen / self.warmup) if self.warmup > 0 else 1.0)
        return rate / math.sqrt(max(seen / self.reference, 1.0)) if self.kind == "inverse_sqrt" else rate


@component
class Machine:
    """What a network runs on, and in which numbers; the results agree to rounding.

    device: auto is cuda where torch finds it and else cpu; under torchrun one GPU a process; precision: of the products inside
    the network, whose parameters stay float32. Of a GPU alone, where they pay: tf32, float32 products with 10 bits;
    channels_last, images as (n, H, W, C) in memory; compile, by torch.compile. micro_batch: images of a batch on a device at
    once, the gradients of the parts are added; sample_batch: images that are sampled together.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: Switch = False
    channels_last: Switch = True
    compile: Switch = False
    micro_batch: Count | None = None
    sample_batch: Count = 512

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda is asked for and torch finds none; set device: cpu, or install a CUDA build of torch")
        if self.kind == "cpu" and self.precision == "fp16":
            raise ValueError("precision fp16 needs a GPU; on a CPU set it to fp32, or bf16")

    @property
    def kind(self) -> str:
        """cpu or cuda."""
        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def place(self) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", torch.cuda.current_device()) if self.kind == "cuda" else torch.device("cpu")

    def compiled(self, network: nn.Module) -> Any:
        """The network, compiled if it is to be."""
        return torch.compile(network) if self.compile and self.kind == "cuda" else network

    @property
    def layout(self) -> torch.memory_format:
        """The order of images in memory."""
        return torch.channels_last if self.channels_last and self.kind == "cuda" else torch.contiguous_format

    @contextlib.contextmanager
    def products(self) -> Iterator[None]:
        """How a GPU multiplies float32, forward and backward."""
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def numbers(self) -> Any:
        """The precision inside a network, forward."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(self.kind, kind) if kind is not None else contextlib.nullcontext()


@dataclass(frozen=True)
class Recipe:
    """How to train; counts are of images, over all processes.

    lengths: std of the power-function averages that are kept; weights: where those of the data enter; loss_weight: u(sigma) = 0
    or learned; snapshot: images between two snapshots, None = none.
    """

    batch: int
    rate: LearningRate
    betas: tuple[float, float]
    lengths: tuple[float, ...]
    prediction: PredictionName
    noise: Noise
    sigma_data: float
    machine: Machine
    augment: Augment | None = None
    label_dropout: float = 0.0
    weights: Literal["sampler", "loss"] = "sampler"
    loss_weight: Literal["fixed", "learned"] = "fixed"
    snapshot: int | None = None


@dataclass(frozen=True)
class Images:
    """Training data: points (n, C, H, W), uint8 or float32 latents, anything with rows; weights (n,); labels (n,) or None."""

    points: Any
    weights: NDArray[np.float64]
    labels: NDArray[np.int64] | None
    classes: int | None

    def rows(self, index: NDArray[np.int64]) -> Tensor:
        """Rows in memory, as they are stored."""
        return torch.from_numpy(np.ascontiguousarray(self.points[index]))


def model_space(x: Tensor) -> Tensor:
    """uint8 as x / 127.5 - 1 in float32; latents as they are."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


@dataclass(frozen=True)
class Trained:
    """What a training has come to: averages of the parameters, one for each length, as plain arrays, after so many images."""

    seen: int
    averages: Mapping[float, Mapping[str, NDArray[Any]]]

    def snapshot(self, batch: int) -> Snapshot:
        """The same as a snapshot."""
        return Snapshot(tuple(PowerAverage(length, self.seen // batch, dict(a)) for length, a in self.averages.items()))


def train(
    network: nn.Module,
    data: Images,
    recipe: Recipe,
    seed: int,
    marks: Sequence[int],
    work: Work | None = None,
    snapshot: Callable[[Trained], None] | None = None,
) -> Iterator[Trained]:
    """The network after each of `marks` images seen (ascending, whole batches); it is trained in place.

    work: where to save, and continue from; snapshot: called at every multiple of `recipe.snapshot` images.
    Raises FloatingPointError when the loss stays infinite, MemoryError where a batch does not fit, with one that would.
    """
    course = _Course(network, data, recipe, seed)
    passed = course.resume(work.load() if work is not None else None)
    yield from passed[: len(marks)]
    for mark in marks[len(passed) :]:
        for loss, rate in course.until(mark):
            if snapshot is not None and recipe.snapshot is not None and course.seen % recipe.snapshot < recipe.batch:
                snapshot(course.trained())
            if work is not None:
                work.report(course.seen, marks[-1], loss=loss, images_per_second=rate)
                if work.due() and ranks.rank() == 0:
                    work.save(**course.saved(passed))
        passed.append(course.trained())
        if work is not None and ranks.rank() == 0:  # for a kill in what comes after
            work.save(**course.saved(passed))
        yield passed[-1]


@dataclass
class _Course:
    """A training under way."""

    network: nn.Module
    data: Images
    recipe: Recipe
    seed: int
    seen: int = 0
    lost: int = 0

    def __post_init__(self) -> None:
        recipe, machine, points = self.recipe, self.recipe.machine, self.data.points
        self.place = machine.place
        self.network.to(self.place, memory_format=machine.layout).train()  # type: ignore[call-overload]
        self.averaged: dict[str, Tensor] = dict(self.network.named_parameters())
        self.trainable = dict(self.averaged)
        self.uncertainty = (
            Uncertainty(_generator(torch.device("cpu"), self.seed, 2)) if recipe.loss_weight == "learned" else None
        )
        if self.uncertainty is not None:
            self.trainable |= {
                f"uncertainty.{name}": value for name, value in self.uncertainty.to(self.place).named_parameters()
            }
        self.optimiser = torch.optim.Adam(self.trainable.values(), betas=recipe.betas, fused=True)
        self.scaler = torch.amp.GradScaler(self.place.type, enabled=machine.precision == "fp16")
        self.called: Any = machine.compiled(self.network)
        if ranks.world() > 1:
            self.called = nn.parallel.DistributedDataParallel(self.called)
        self.averages = [PowerAverage(length) for length in recipe.lengths]
        equal = recipe.weights == "loss" or bool((self.data.weights == self.data.weights[0]).all())
        self.cumulative = None if equal else np.cumsum(self.data.weights)
        small = int(np.prod(points.shape)) * points.dtype.itemsize <= ON_DEVICE
        self.near = self.data.rows(np.arange(points.shape[0])).to(self.place) if small else None
        self.reader = ThreadPoolExecutor(1)
        self.ahead: dict[int, Future[Tensor]] = {}

    # What a step sees

    def _span(self) -> tuple[int, int, int]:
        """(start, first, last): this process has the images first .. last - 1 of a batch, in blocks that begin at start."""
        rank, world, batch = ranks.rank(), ranks.world(), self.recipe.batch
        first, last = rank * batch // world, (rank + 1) * batch // world
        return first // BLOCK * BLOCK, first, last

    def _rows(self, step: int) -> NDArray[np.int64]:
        """Rows of the blocks that this process needs of the batch of a step."""
        start, _, last = self._span()
        u = np.random.default_rng([self.seed, 0, step]).random(self.recipe.batch)
        u = u[start : -(-last // BLOCK) * BLOCK]
        n = int(self.data.points.shape[0])
        if self.cumulative is None:
            return np.minimum((u * n).astype(np.int64), n - 1)
        return np.asarray(np.minimum(np.searchsorted(self.cumulative, u * self.cumulative[-1], side="right"), n - 1))

    def _stored(self, step: int, rows: NDArray[np.int64]) -> Tensor:
        """The images of rows on the device, as they are stored; what is too large for it is read one step ahead."""
        if self.near is not None:
            return self.near[torch.from_numpy(rows).to(self.place)]
        coming = self.ahead.pop(step, None)
        self.ahead = {step + 1: self.reader.submit(lambda: self.data.rows(self._rows(step + 1)))}
        return (coming.result() if coming is not None else self.data.rows(rows)).to(self.place, non_blocking=True)

    def _batch(self, step: int) -> "_Batch":
        """This process's part of the batch of a step."""
        recipe, (start, first, last), rows = self.recipe, self._span(), self._rows(step)
        blocks = []
        for number, stored in enumerate(torch.split(self._stored(step, rows), BLOCK), start // BLOCK):
            generator, m = _generator(self.place, self.seed, 1, step, number), len(stored)
            where: Any = {"generator": generator, "device": self.place}
            clean, condition = model_space(stored) / recipe.sigma_data, torch.zeros((m, 0), device=self.place)
            u = (number * BLOCK + torch.arange(m, device=self.place) + torch.rand(m, **where)) / recipe.batch
            kept = torch.rand(m, **where) >= recipe.label_dropout
            z = torch.randn(clean.shape, **where)
            if recipe.augment is not None:
                clean, condition = recipe.augment(clean, generator)
            blocks.append((clean, condition, u, kept, z))
        mine = slice(first - start, last - start)
        clean, condition, u, kept, z = (torch.cat(part)[mine] for part in zip(*blocks, strict=True))
        s = recipe.noise.quantile(u)[:, None, None, None]
        skip, out, c_in = coefficients(recipe.prediction, s)
        noised = clean + s * z
        labels = None
        if self.data.classes is not None and self.data.labels is not None:
            named = torch.from_numpy(np.asarray(self.data.labels[rows[mine]], dtype=np.int64)).to(self.place)
            labels = torch.nn.functional.one_hot(named, self.data.classes) * kept[:, None].float()
        weights = np.ones(last - first)
        if recipe.weights == "loss":
            weights = self.data.weights[rows[mine]] * len(self.data.weights)
        return _Batch(
            (c_in * noised).to(memory_format=recipe.machine.layout),
            ((s * recipe.sigma_data).log() / 4).flatten(),
            labels,
            condition if recipe.augment is not None else None,
            (clean - skip * noised) / out,
            torch.from_numpy(weights).to(self.place, torch.float32),
        )

    # A step

    def until(self, mark: int) -> Iterator[tuple[float, float]]:
        """Train until so many images are seen; yields (mean loss, images a second) every LOOK steps, and where it must stop."""
        recipe = self.recipe
        while self.seen < mark:
            began, before = time.monotonic(), self.seen
            stops = [mark, (before // (recipe.batch * LOOK) + 1) * recipe.batch * LOOK]
            stops += [] if recipe.snapshot is None else [(before // recipe.snapshot + 1) * recipe.snapshot]
            losses = []
            while self.seen < min(stops):
                losses.append(self._step(self.seen // recipe.batch))
                self.seen += recipe.batch
            loss = float(ranks.summed(torch.stack(losses).mean().double().cpu().numpy().reshape(1))[0]) / ranks.world()
            self.lost = 0 if math.isfinite(loss) else self.lost + len(losses)
            if self.lost >= LOST_STEPS:
                raise FloatingPointError(
                    f"the loss has not been finite for {self.lost} steps, after {self.seen / MILLION:g} million images; lower "
                    f"the learning rate ({recipe.rate.rate:g}), or set precision to fp32 (it is {recipe.machine.precision})"
                )
            yield loss, (self.seen - before) / (time.monotonic() - began)

    def _step(self, step: int) -> Tensor:
        recipe = self.recipe
        batch = self._batch(step)
        size = recipe.machine.micro_batch or len(batch.x)
        try:
            loss = self._gradients(batch, step, size)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what did not fit
            fits = self._fitting(batch, size)
            remedy = f"{fits} fit: set micro_batch: {fits}" if fits else "not even one fits: use a smaller network or image"
            raise MemoryError(f"{size} images at once do not fit into the memory of {self.place}; {remedy}") from error
        self.scaler.unscale_(self.optimiser)  # looks for overflows, which the next lines would hide
        for value in self.trainable.values():
            if value.grad is not None:
                torch.nan_to_num(value.grad, nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT, out=value.grad)
        for options in self.optimiser.param_groups:
            options["lr"] = recipe.rate.at((self.seen + recipe.batch) / MILLION)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        with torch.no_grad():
            self.network.normalise()  # type: ignore[operator]
        for average in self.averages:
            average.update(self.averaged)
        return loss

    def _gradients(self, batch: "_Batch", step: int, size: int) -> Tensor:
        """The gradient of the loss of a batch, in parts of `size` images; the loss."""
        self.optimiser.zero_grad()
        total = torch.zeros((), device=self.place)
        parts = batch.parts(size)
        share = ranks.world() / self.recipe.batch  # of a batch's mean, before the mean over processes
        with self._dropout(step), self.recipe.machine.products():
            for number, part in enumerate(parts):
                last = number == len(parts) - 1
                with contextlib.nullcontext() if last or ranks.world() == 1 else self.called.no_sync():
                    loss = self._loss(part) * share
                    self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        if self.uncertainty is not None and ranks.world() > 1:  # which DDP, around the network, does not see
            for gradient in [value.grad for value in self.uncertainty.parameters() if value.grad is not None]:
                torch.distributed.all_reduce(gradient)
                gradient /= ranks.world()
        return total

    def _loss(self, batch: "_Batch", network: Any = None) -> Tensor:
        """The sum of the losses of a batch; network: without what stands around it, where other processes do not take part."""
        with self.recipe.machine.numbers():
            answer = (network or self.called)(batch.x, batch.noise, batch.labels, batch.condition)
        loss = (answer.float() - batch.target).square().mean(dim=(1, 2, 3))
        if self.uncertainty is not None:
            u = self.uncertainty(batch.noise)
            loss = loss * (-u).exp() + u
        total: Tensor = (loss * batch.weights).sum()
        return total

    @contextlib.contextmanager
    def _dropout(self, step: int) -> Iterator[None]:
        """The stream of dropout in a step, which torch has no other place for."""
        with torch.random.fork_rng([self.place.index] if self.place.type == "cuda" else []):
            torch.manual_seed(torch_seed(self.seed, 3, step, ranks.rank()))
            yield

    def _fitting(self, batch: "_Batch", size: int) -> int:
        """The most images, halving `size`, of which a gradient fits into the memory; 0 if not one does."""
        while size > 1:
            size //= 2
            self.optimiser.zero_grad()
            if self.place.type == "cuda":
                torch.cuda.empty_cache()
            try:
                self._loss(batch.parts(size)[0], self.network).backward()  # type: ignore[no-untyped-call]
                return size
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_lack_of_memory(error):
                    raise
        return 0

    # Results, saving, continuing

    def trained(self) -> Trained:
        """What has been learned so far, in arrays of its own."""
        fixed = as_arrays(dict(self.network.named_buffers()))
        return Trained(self.seen, {average.std: as_arrays(average.value) | fixed for average in self.averages})

    def saved(self, passed: Sequence[Trained]) -> dict[str, Any]:
        """Plain arrays from which `resume` goes on."""
        out: dict[str, Any] = {"seen": np.array(self.seen), "lost": np.array(self.lost), "passed": np.array(len(passed))}
        out |= {f"now.{name}": value for name, value in as_arrays(self.trainable).items()}
        for name, value in self.trainable.items():
            out |= {f"{key}.{name}": kept.cpu().numpy().copy() for key, kept in self.optimiser.state[value].items()}
        for number, average in enumerate(self.averages):
            out |= {f"average.{number}.{name}": value for name, value in average.state().items()}
        for number, trained in enumerate(passed):
            out[f"passed.{number}.seen"] = np.array(trained.seen)
            for k, average_of in enumerate(trained.averages.values()):
                out |= {f"passed.{number}.{k}.{name}": value for name, value in average_of.items()}
        out |= {f"scaler.{name}": np.array(value) for name, value in self.scaler.state_dict().items()}
        return out

    def resume(self, saved: Mapping[str, Any] | None) -> list[Trained]:
        """Go on where `saved` stood; the results at the marks passed before."""
        if saved is None:
            return []
        self.seen, self.lost = int(saved["seen"]), int(saved["lost"])
        with torch.no_grad():
            for name, value in self.trainable.items():
                value.copy_(torch.from_numpy(saved[f"now.{name}"]))
                if f"step.{name}" in saved:  # what the data has no use for has no moments
                    moments = {key: _like(value, saved[f"{key}.{name}"]) for key in ("exp_avg", "exp_avg_sq")}
                    self.optimiser.state[value] = {"step": torch.from_numpy(saved[f"step.{name}"]).to(self.place)} | moments
        for number in range(len(self.averages)):
            average = PowerAverage.restore(_under(saved, f"average.{number}."))
            average.value = {name: _like(value, average.value[name]) for name, value in self.averaged.items() if average.t > 0}
            self.averages[number] = average
        if scaler := _under(saved, "scaler."):
            self.scaler.load_state_dict({name: value.item() for name, value in scaler.items()})
        lengths = self.recipe.lengths
        return [
            Trained(
                int(saved[f"passed.{number}.seen"]),
                {length: _under(saved, f"passed.{number}.{k}.") for k, length in enumerate(lengths)},
            )
            for number in range(int(saved["passed"]))
        ]


@dataclass(frozen=True)
class _Batch:
    """What the network is shown, and asked for: inputs (m, C, H, W), ln(sigma) / 4 (m,), conditions, targets, weights (m,)."""

    x: Tensor
    noise: Tensor
    labels: Tensor | None
    condition: Tensor | None
    target: Tensor
    weights: Tensor

    def parts(self, size: int) -> list["_Batch"]:
        """The batch, cut."""
        columns: list[Any] = [getattr(self, column.name) for column in fields(self)]
        cuts = range(0, len(self.x), size)
        parts: list[list[Any]] = [[c if c is None else c[cut : cut + size] for c in columns] for cut in cuts]
        return [_Batch(*part) for part in parts]


def _generator(place: torch.device, *name: int) -> torch.Generator:
    return torch.Generator(place).manual_seed(torch_seed(*name))


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Tensors as arrays of their own."""
    return {name: value.detach().cpu().numpy().copy() for name, value in tensors.items()}


def _like(tensor: Tensor, array: NDArray[Any]) -> Tensor:
    """An array as a tensor in the order of memory of another: fused Adam walks along all of them at once."""
    return torch.empty_like(tensor, requires_grad=False).copy_(torch.from_numpy(np.array(array)))


def _under(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _is_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
