"""EDM: a diffusion model of images, a U-Net trained by denoising score matching and sampled by the steps of an ODE.

    D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4, label)    (`selfloop.diffusion.precondition`)

F is a U-Net (`selfloop.diffusion.unet`), trained by Adam (`selfloop.diffusion.train`); the model is a power-function average of
its parameters (`selfloop.diffusion.average`). uint8 images are x / 127.5 - 1 in the space of the model; latents, float32, are
taken as they are. A budget is counted in million images seen, the papers' Mi.

fit     from new random weights, or from those of a snapshot, for `budget`
tune    from the weights of a model, on new data, for the budgets asked for: one trajectory, a model at each
sample  through the steps of the sampler, in pieces of blocks of 64 images with noise of their own; uint8 again

Source: Karras et al. (2022), arXiv 2206.00364; Karras et al. (2024), arXiv 2312.02696, for magnitude-preserving networks. One
replicate at a time. Runs on CPU and CUDA, and on several of them under torchrun.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Lt
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Strict
from torch import Tensor, nn
from torch.func import functional_call

from selfloop import pictures, ranks
from selfloop.board import Board
from selfloop.component import AT_SAMPLING, Count, Fraction, Positive, component
from selfloop.diffusion import budget as counted
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion import snapshot
from selfloop.diffusion.augment import Augment
from selfloop.diffusion.budget import MILLION
from selfloop.diffusion.noise import Noise
from selfloop.diffusion.precondition import PredictionName, coefficients
from selfloop.diffusion.sample import Sampler
from selfloop.diffusion.snapshot import Snapshot
from selfloop.diffusion.train import Images, LearningRate, Length, Machine, Recipe, Trained, as_arrays, train
from selfloop.diffusion.unet import UNet
from selfloop.measure import Array, Data, Ints, Measure
from selfloop.protocols import Work

Beta = Annotated[float, Strict(), Ge(0), Lt(1)]
PICTURED = 64
"""Samples in the picture of a snapshot."""


@dataclass(frozen=True)
class EdmModel:
    """A trained network behind a sampler.

    parameters: name -> array; event (C, H, W); shares (K,) of the classes, if any; dtype: uint8 of images, float32 of latents.
    """

    algorithm: "Edm"
    parameters: Mapping[str, NDArray[Any]]
    event: tuple[int, ...]
    dtype: np.dtype[Any]
    shares: Array | None = None

    batch = ()

    @property
    def sampler(self) -> Sampler:
        """How it draws."""
        return self.algorithm.sampler

    @property
    def at_once(self) -> int:
        """Images that go through the sampler together."""
        return self.algorithm.machine.sample_batch

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (n, C, H, W) of n images."""
        return (n, *self.event)

    @cached_property
    def network(self) -> Any:
        """The network, ready to be called."""
        return self.algorithm.machine.compiled(self._module)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters on the device, without what is fixed."""
        return dict(self._module.named_parameters())

    @cached_property
    def _module(self) -> nn.Module:
        machine = self.algorithm.machine
        with torch.inference_mode(False):  # for gradients by the parameters, whoever asks for it first
            network = self.algorithm.built(self.event, torch.Generator())
            network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.parameters.items()})
            network.to(machine.place, memory_format=machine.layout).train(False).requires_grad_(False)  # type: ignore[call-overload]
        return network

    def law(self) -> None:
        """It is not known in closed form."""
        return None

    def lift(self, x: Array) -> Tensor:
        """An array as a tensor on the device."""
        machine = self.algorithm.machine
        return torch.as_tensor(x, dtype=torch.float32).to(machine.place, memory_format=machine.layout)

    def lower(self, x: Array) -> NDArray[Any]:
        """What is kept of images in model space: uint8, rounded and cut at 0 and 255; of latents, float32.

        Raises FloatingPointError where they are not finite.
        """
        if not np.isfinite(x).all():
            raise FloatingPointError(
                "samples are not finite: the guidance is too strong, or the training went wrong; lower omega, or the rate"
            )
        return (np.rint((x + 1) * 127.5).clip(0, 255) if self.dtype == np.uint8 else x).astype(self.dtype)

    @torch.inference_mode()
    def denoise(self, x: Any, sigma: float, labels: Any = None) -> Any:
        """D(x; sigma) at x (n, C, H, W) in model space, array or tensor; labels (n,), none: without a condition."""
        if not isinstance(x, Tensor):
            return self.denoise(self.lift(x), sigma, labels).double().cpu().numpy()
        return x if sigma == 0 else self._answered(self.network, x, sigma, self.marks(labels, len(x)))

    def denoised(self, parameters: Mapping[str, Tensor], x: Tensor, sigma: float, marks: Tensor | None) -> Tensor:
        """D(x; sigma), sigma > 0, under other parameters, as tensors that know their gradients; marks (n, K): `marks`."""
        return self._answered(lambda *given: functional_call(self._module, dict(parameters), given), x, sigma, marks)

    def _answered(self, network: Any, x: Tensor, sigma: float, marks: Tensor | None) -> Tensor:
        unit = self.algorithm.sigma_data
        skip, out, c_in = coefficients(self.algorithm.prediction, sigma / unit)
        level = torch.full((len(x),), float(np.log(sigma) / 4), device=x.device)
        with self.algorithm.machine.products(), self.algorithm.machine.numbers():
            answer = network((c_in / unit) * x, level, marks, None)
        denoised: Tensor = skip * x + (out * unit) * answer.float()
        return denoised

    def marks(self, labels: Any, n: int) -> Tensor | None:
        """One-hot labels (n, K) on the device; None without classes, or labels."""
        if self.shares is None or labels is None:
            return None
        where = self.algorithm.machine.place
        return torch.nn.functional.one_hot(torch.as_tensor(labels, device=where), len(self.shares)).float()

    def draw_labels(self, n: int, rng: Generator) -> Ints | None:
        """n labels, drawn with the class shares; None without classes."""
        return None if self.shares is None else np.searchsorted(np.cumsum(self.shares)[:-1], rng.random(n), side="right")

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n images (n, C, H, W), uint8 where the training data were; with `work` stored as they are drawn."""
        return diffusion.drawn(self, n, rng, labels, work=work)

    def state(self) -> dict[str, Array]:
        """Parameters, the shape of an image, what it is stored as, and class shares."""
        out: dict[str, Any] = {f"parameters.{name}": value for name, value in self.parameters.items()}
        out |= {"event": np.array(self.event), "latent": np.array(self.dtype != np.uint8)}
        return out | ({} if self.shares is None else {"shares": self.shares})


@component
class Edm:
    """Train a U-Net on images; see the module for the formulas, `network` and `machine` for their own fields.

    budget: of a fit, in million images seen; batch: images a step, over all processes; learning_rate, tune_learning_rate: their
    course; betas: Adam's; noise: law of sigma / sigma_data in training; sigma_data: standard deviation of a pixel in the model.
    average: length (std, relative) of the power-function average that is the model; tune_average: of a tuning, the same if not
    said; tracked: the lengths kept in training, by default that one; another one is made afterwards from snapshots.
    loss_weight: of the noise levels, fixed or learned;
    weights: where those of the data enter, its sampler or the loss; augment: none if not said.
    classes: K labels as a condition, dropped with probability label_dropout. start: a snapshot (.safetensors) to start from, to
    be used as it is with budget 0. snapshot: million images between two snapshots with a picture of samples; board: numbers of
    the training go there too.

    Raises ValueError where data are no images of the network's size, labels are missing, or a budget is negative or less than
    one batch; FloatingPointError where the loss stays infinite; MemoryError where a batch does not fit.
    """

    network: UNet = UNet()
    prediction: PredictionName = "edm"
    noise: Noise = Noise()
    sigma_data: Positive = 0.5
    batch: Count = 512
    budget: Annotated[float, Strict(), Ge(0)] = 200.0
    learning_rate: LearningRate = LearningRate()
    tune_learning_rate: LearningRate = LearningRate(rate=1e-4)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    average: Length = 0.05
    tune_average: Length | None = None
    tracked: tuple[Length, ...] | None = None
    loss_weight: Literal["fixed", "learned"] = "fixed"
    weights: Literal["sampler", "loss"] = "sampler"
    augment: Augment | None = None
    classes: Count | None = None
    label_dropout: Fraction = 0.0
    start: str | None = None
    snapshot: Positive | None = None
    board: Board | None = None
    machine: Machine = Machine()
    sampler: Annotated[Sampler, AT_SAMPLING] = Sampler(kind="heun")

    def __post_init__(self) -> None:
        if self.sampler.kind == "exact":
            raise ValueError("sampler exact needs a law in closed form; set kind to heun, dpm, euler or ancestral")
        if self.label_dropout > 0 and self.classes is None:
            raise ValueError("label_dropout needs labels to drop; set classes, or label_dropout: 0")
        if self.tracked is not None and self.average not in self.tracked and self.snapshot is None:
            raise ValueError(
                f"average {self.average:g} is none of the lengths tracked, {list(self.tracked)}, and is made from snapshots; "
                "set snapshot, or track it"
            )
        if self.budget == 0 and self.start is None:
            raise ValueError("budget 0 trains nothing; give a start, or a budget in million images seen")
        self.steps(self.budget)
        if self.start is not None:
            self._check_start(snapshot.about(Path(self.start)))

    @property
    def alone(self) -> bool:
        """Whether a fit has the machine to itself: on a GPU, others would take its memory."""
        return self.machine.kind == "cuda"

    @property
    def gives(self) -> frozenset[str]:
        """A denoiser of images, with parameters; class labels where it has classes."""
        return frozenset({"denoise", "parameters", "images", *(() if self.classes is None else ("labels",))})

    @property
    def needs_real(self) -> frozenset[str]:
        """Images; with labels, where there are classes."""
        return frozenset({"images"}) | (frozenset({"labels"}) if self.classes is not None else frozenset())

    def steps(self, budget: float) -> int:
        """Steps in a budget of so many million images seen. Raises ValueError if it is negative or less than one batch."""
        return counted.steps(budget, self.batch)

    def built(self, event: tuple[int, ...], generator: torch.Generator) -> nn.Module:
        """A network for images (C, H, W) with weights drawn from the generator. Raises ValueError if they do not fit it."""
        channels, height, width = event
        if height != width:
            raise ValueError(f"images must be square, got {height} x {width}; pad or crop them")
        augment = 0 if self.augment is None else self.augment.dimension
        built: nn.Module = self.network.build(channels, height, self.classes, augment, generator)
        return built

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> EdmModel:
        """A network with new weights, or those of `start`, trained on `data` for the budget."""
        images, event, shares = self._images(data)
        seed = int(rng.integers(2**63))
        network = self.built(event, torch.Generator().manual_seed(int(rng.integers(2**63))))
        begun = {} if self.start is None else snapshot.averaged([snapshot.load(Path(self.start))], self.average)
        first = EdmModel(self, as_arrays(network.state_dict()) | begun, event, np.dtype(images.points.dtype), shares)
        recipe = self._recipe(self.learning_rate, self.tracked or (self.average,), self.augment)
        steps = [self.steps(self.budget)] if self.budget > 0 else []
        return next(self._trained(first, images, recipe, self.average, seed, steps, work), first)

    def tune(
        self, model: EdmModel, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[EdmModel]:
        """The models after budgets[0] <= budgets[1] <= ... million images of `data`; the model itself, bit for bit, at 0.

        Raises ValueError if budgets are not ascending, and where `fit` does.
        """
        marks = counted.marks(budgets, self.batch)
        images, _, _ = self._images(data)
        yield from [model] * marks.count(0)
        recipe = self._recipe(self.tune_learning_rate, (self.tune_average or self.average,), self.augment)
        later = [mark for mark in marks if mark > 0]
        if later:
            yield from self._trained(model, images, recipe, recipe.lengths[0], int(rng.integers(2**63)), later, work)

    def interpolate(self, a: EdmModel, b: EdmModel, t: float) -> EdmModel:
        """Parameters a + t (b - a); all else is a's."""
        mixed = {name: value + np.float32(t) * (b.parameters[name] - value) for name, value in a.parameters.items()}
        return dataclasses.replace(a, parameters=mixed)

    def restore(self, state: Mapping[str, Array]) -> EdmModel:
        """The network of a saved state, behind this algorithm's sampler."""
        prefix = "parameters."
        parameters = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        event = tuple(int(size) for size in state["event"])
        dtype = np.dtype(np.float32 if state["latent"] else np.uint8)
        return EdmModel(self, parameters, event, dtype, state.get("shares"))

    def _trained(
        self,
        model: EdmModel,
        images: Images,
        recipe: Recipe,
        length: float,
        seed: int,
        steps: Sequence[int],
        work: Work | None,
    ) -> Iterator[EdmModel]:
        """The models that `model` becomes after so many steps: averages of a length, tracked by the recipe or not."""
        if not steps:
            return
        if work is not None and self.board is not None and ranks.rank() == 0:
            with self.board.watching(work) as watched:
                yield from dataclasses.replace(self, board=None)._trained(model, images, recipe, length, seed, steps, watched)
            return
        shelf = None if work is None else work.shelf
        taken: list[Snapshot] = []

        def keep(trained: Trained) -> None:
            if shelf is None:
                taken.append(trained.snapshot(self.batch))
            elif ranks.rank() == 0:
                snapshot.save(shelf, trained.seen, self.batch, trained.averages, self._described(model.event))
            now = dataclasses.replace(model, parameters=next(iter(trained.averages.values())))
            drawn = now.sample(PICTURED, np.random.default_rng(0)).points
            if shelf is not None and ranks.rank() == 0 and drawn.dtype == np.uint8:
                pictures.save_png(shelf / f"samples-{trained.seen:012d}.png", pictures.grid(drawn, 8))

        begun = {name: torch.from_numpy(np.array(value)) for name, value in model.parameters.items()}
        network = self.built(model.event, torch.Generator())
        network.load_state_dict(begun)
        for trained in train(network, images, recipe, seed, [step * self.batch for step in steps], work, keep):
            found = trained.averages.get(length)
            if found is None:
                before = taken if shelf is None else snapshot.taken(shelf)
                found = snapshot.averaged([*before, trained.snapshot(self.batch)], length)
            yield dataclasses.replace(model, parameters=found)

    def _recipe(self, rate: LearningRate, lengths: tuple[float, ...], augment: Augment | None) -> Recipe:
        return Recipe(
            batch=self.batch,
            rate=rate,
            betas=self.betas,
            lengths=lengths,
            prediction=self.prediction,
            noise=self.noise,
            sigma_data=self.sigma_data,
            machine=self.machine,
            augment=augment,
            label_dropout=self.label_dropout,
            weights=self.weights,
            loss_weight=self.loss_weight,
            snapshot=None if self.snapshot is None else max(round(self.snapshot * MILLION / self.batch), 1) * self.batch,
        )

    def _images(self, data: Data) -> tuple[Images, tuple[int, ...], Array | None]:
        """The data as a training sees it, the shape of an image, and the shares of the classes."""
        if not isinstance(data, Measure) or data.batch != () or len(data.event) != 3:
            got = f"{data.batch} replicates of points {data.event}" if isinstance(data, Measure) else "moments"
            raise ValueError(f"edm is trained on images (n, C, H, W), one replicate at a time; got {got}: use real kind images")
        shares = labels = None
        if self.classes is not None:
            if data.labels is None:
                raise ValueError(f"classes: {self.classes} needs data with class labels and this has none; remove classes")
            labels = np.asarray(data.labels)
            if labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(
                    f"labels must lie in 0 .. classes - 1 = {self.classes - 1}, got {labels.min()} to {labels.max()}; "
                    "set classes to their number"
                )
            shares = np.bincount(labels, data.weights, minlength=self.classes).astype(float)
        return Images(data.points, data.weights, labels, self.classes), tuple(data.event), shares

    def _described(self, event: tuple[int, ...]) -> dict[str, Any]:
        """What a snapshot says of its network."""
        network = dataclasses.asdict(self.network)
        augment = 0 if self.augment is None else self.augment.dimension
        said = {"classes": self.classes, "prediction": self.prediction, "sigma_data": self.sigma_data, "augment": augment}
        return {"event": list(event), "network": network, **said}

    def _check_start(self, about: Mapping[str, Any]) -> None:
        mine = json.loads(json.dumps(self._described(())))
        other = {key: value for key, value in mine.items() if key != "event" and about.get(key) != value}
        if other:
            differ = "; ".join(f"{key}: the snapshot has {about.get(key)}, here {value}" for key, value in other.items())
            raise ValueError(f"start was trained with other settings, {differ}; take over those of the snapshot")
