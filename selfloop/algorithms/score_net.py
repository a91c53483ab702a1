"""Score networks: an ensemble of small denoisers, one a replicate, trained at once on points.

    D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma / sigma_data) / 4, label)    (`selfloop.diffusion.precondition`)

F is a multilayer perceptron with SiLU (`selfloop.diffusion.mlp`), trained by Adam on denoising score matching
(`selfloop.diffusion.ensemble`). A budget is counted in million samples seen, steps x batch / 10^6, as in the SIMS paper.

fit     from new random weights, for `budget`
tune    from the weights of a model, on new data, for the budgets asked for: one trajectory, a model at each
sample  through the steps of the sampler, labels drawn with the class shares of the training data if there are classes

Source: Karras et al. (2022); Alemohammad et al. (2024) for tuning on own samples. Runs on CPU and CUDA.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Lt
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Strict
from torch import Tensor

from selfloop.component import AT_SAMPLING, Count, Fraction, Positive, component
from selfloop.diffusion import budget as counted
from selfloop.diffusion import mlp
from selfloop.diffusion import sample as diffusion
from selfloop.diffusion.average import LONGEST
from selfloop.diffusion.ensemble import EarlyStopping, Points, Recipe, Trained, inputs, train
from selfloop.diffusion.noise import Noise
from selfloop.diffusion.precondition import PredictionName, coefficients
from selfloop.diffusion.sample import Sampler
from selfloop.measure import Array, Data, Ints, Measure
from selfloop.protocols import Work

ROWS = 2**13
"""Points that go through the networks at once, over all members."""


@dataclass(frozen=True)
class ScoreNet:
    """An ensemble of trained networks behind a sampler.

    parameters: name -> (R, in, out) or (R, 1, out), plain arrays, R the members of the batch in a row; scale (*batch,) =
    sigma_data; shares (*batch, K) of the classes, if any; moments: Adam's, where they are kept; failed (*batch,): the step at
    which training stopped being finite, 0 = never.
    """

    parameters: Mapping[str, NDArray[Any]]
    scale: Array
    failed: Ints
    sampler: Sampler
    prediction: PredictionName
    device: str = "cpu"
    shares: Array | None = None
    moments: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch axes."""
        return self.scale.shape

    @property
    def d(self) -> int:
        """Dimension of a point."""
        return int(self.parameters[f"bias.{len(self.parameters) // 2 - 1}"].shape[-1])

    def shape(self, n: int) -> tuple[int, ...]:
        """Shape (*batch, n, d) of n points."""
        return (*self.batch, n, self.d)

    def law(self) -> None:
        """None: what a network draws has no closed form."""
        return None

    @cached_property
    def tensors(self) -> mlp.Parameters:
        """The parameters on the device."""
        return on_device(self.parameters, self.device)

    @cached_property
    def _scale(self) -> Tensor:
        return self.lift(self.scale.reshape(-1, 1, 1))

    def lift(self, x: Array) -> Tensor:
        """An array as a tensor of the networks' type, on their device."""
        return torch.as_tensor(np.asarray(x), dtype=self.tensors["bias.0"].dtype, device=self.device)

    @torch.no_grad()
    def denoise(self, x: Any, sigma: float, labels: Any = None) -> Any:
        """D(x; sigma) at x (*batch, n, d), array to array, tensor to tensor; labels (n,) or (*batch, n)."""
        if not isinstance(x, Tensor):
            return self.denoise(self.lift(x), sigma, labels).cpu().numpy().astype(float)
        return x if sigma == 0 else self.denoised(self.tensors, x, sigma, self.marks(labels, x.shape[-2]))

    def denoised(self, parameters: mlp.Parameters, x: Tensor, sigma: float, marks: Tensor | None) -> Tensor:
        """D(x; sigma), sigma > 0, under other parameters, as tensors that know their gradients; marks (*batch, n, K)."""
        clean = x.to(self._scale).reshape(-1, *x.shape[-2:]) / self._scale
        s = (sigma / self._scale).expand(-1, clean.shape[1], 1)
        skip, out, c_in = coefficients(self.prediction, s)
        given = inputs(clean, s, None if marks is None else marks.reshape(-1, *marks.shape[-2:]), c_in)
        size = max(1, ROWS // len(given))
        answer = torch.cat([mlp.forward(parameters, piece) for piece in torch.split(given, size, dim=1)], dim=1)
        denoised: Tensor = (self._scale * (skip * clean + out * answer)).reshape(x.shape).to(x)
        return denoised

    def marks(self, labels: Any, n: int) -> Tensor | None:
        """One-hot labels (*batch, n, K) as the networks see them, zeros where none are given; None without classes."""
        if self.shares is None:
            return None
        classes = self.shares.shape[-1]
        shape = (*self.batch, n)
        return self.lift(np.zeros((*shape, classes)) if labels is None else one_hot(np.broadcast_to(labels, shape), classes))

    def draw_labels(self, n: int, rng: Generator) -> Ints | None:
        """n labels a member (*batch, n), drawn with its class shares; None without classes."""
        if self.shares is None:
            return None
        u = np.moveaxis(rng.random((n, *self.batch)), 0, -1)  # point by point: the first do not depend on n
        drawn = (u[..., None] >= np.cumsum(self.shares, axis=-1)[..., None, :]).sum(axis=-1)
        return np.asarray(np.minimum(drawn, self.shares.shape[-1] - 1))

    def sample(self, n: int, rng: Generator, labels: Any = None, work: Work | None = None) -> Measure:
        """n points (*batch, n, d) by the sampler's steps; with classes they carry the labels given, or drawn."""
        return diffusion.drawn(self, n, rng, labels)

    def state(self) -> dict[str, Array]:
        """Parameters, sigma_data, failures, and what is kept of classes and optimiser."""
        out: dict[str, Any] = {f"parameters.{name}": value for name, value in self.parameters.items()}
        out |= {f"moments.{name}": value for name, value in self.moments.items()}
        out |= {"scale": self.scale, "failed": self.failed}
        return out | ({} if self.shares is None else {"shares": self.shares})


def on_device(arrays: Mapping[str, NDArray[Any]], device: str) -> mlp.Parameters:
    """Arrays as tensors."""
    return {name: torch.as_tensor(np.array(value), device=device) for name, value in arrays.items()}


def as_arrays(tensors: mlp.Parameters) -> dict[str, NDArray[Any]]:
    """Tensors as arrays."""
    return {name: value.cpu().numpy() for name, value in tensors.items()}


def one_hot(labels: Ints, classes: int) -> NDArray[Any]:
    """Labels (..) as rows (.., classes) of 0 and 1. Raises ValueError for a label that no class has."""
    odd = labels[(labels < 0) | (labels >= classes)]
    if odd.size:
        raise ValueError(f"labels must lie in 0 .. classes - 1 = {classes - 1}, got {odd[0]}")
    return np.eye(classes)[labels]


STEPS = Sampler(kind="heun", steps=32, sigma_max=20.0, sigma_min=0.01)


@component
class ScoreNetFit:
    """Train a score network for every replicate, all at once; see the module for the formulas.

    width, layers: of the hidden layers; prediction: what the network is asked for; noise: law of sigma / sigma_data in
    training; sigma_data: the unit of the network, by default the root mean variance of each replicate's data.
    batch: points a step; budget: of a fit, in million samples seen; learning_rate: Adam's, which falls as `decay` says;
    tune_learning_rate: constant, for tuning; clip: largest gradient norm of a member; optimiser: fresh moments for tuning, or
    those kept from the fit; average: std of a power-function average of the parameters of a fit, none if not said;
    early_stopping: in a fit, on held-out points.
    classes: K labels 0 .. K - 1 as a condition, dropped with probability label_dropout (for classifier-free guidance).
    device: cpu or cuda.

    Raises ValueError where the device is not there, data are no vectors or labels are missing, or a budget is negative or less
    than one batch.
    """

    width: Count = 64
    layers: Count = 3
    prediction: PredictionName = "edm"
    noise: Noise = Noise()
    sigma_data: Positive | None = None
    batch: Count = 256
    budget: Positive = 0.256
    learning_rate: Positive = 2e-3
    decay: Literal["none", "cosine"] = "cosine"
    tune_learning_rate: Positive = 5e-4
    clip: Positive | None = 10.0
    optimiser: Literal["fresh", "kept"] = "fresh"
    average: Annotated[float, Strict(), Gt(0), Lt(LONGEST)] | None = None
    early_stopping: EarlyStopping | None = None
    classes: Count | None = None
    label_dropout: Fraction = 0.0
    device: Literal["cpu", "cuda"] = "cpu"
    sampler: Annotated[Sampler, AT_SAMPLING] = STEPS

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda is asked for and torch finds none; set device: cpu, or install a CUDA build of torch")
        if self.sampler.kind == "exact":
            raise ValueError("sampler exact needs a law in closed form; set kind to heun, dpm, euler or ancestral")
        if self.label_dropout > 0 and self.classes is None:
            raise ValueError("label_dropout needs labels to drop; set classes, or label_dropout: 0")
        other = "early_stopping" if self.early_stopping is not None else "average" if self.average is not None else None
        if self.optimiser == "kept" and other is not None:
            raise ValueError(
                f"optimiser: kept needs the last step's parameters, which {other} replaces by others; set it to fresh, or "
                f"remove {other}"
            )
        steps = self.steps(self.budget)
        if self.early_stopping is not None and steps < self.early_stopping.every:
            raise ValueError(
                f"early_stopping looks every {self.early_stopping.every} steps and a fit of this budget has {steps}; lower "
                "every, or raise budget"
            )

    @property
    def gives(self) -> frozenset[str]:
        """A denoiser with parameters; class labels where it has classes."""
        return frozenset({"denoise", "parameters"}) | (frozenset({"labels"}) if self.classes is not None else frozenset())

    @property
    def needs_real(self) -> frozenset[str]:
        """Labels in the data, where there are classes."""
        return frozenset({"labels"}) if self.classes is not None else frozenset()

    def least_points(self, d: int) -> int:
        """Two, and one to hold out."""
        return 2 if self.early_stopping is None else 3

    def steps(self, budget: float) -> int:
        """Steps in a budget of so many million samples seen. Raises ValueError if it is negative or less than one batch."""
        return counted.steps(budget, self.batch)

    def fit(self, data: Data, rng: Generator, work: Work | None = None) -> ScoreNet:
        """Networks with new weights, trained on `data` for the budget; one replicate of the data a member."""
        points, seed = self._points(data, None), _seed(rng)
        sizes = [points.x.shape[2] + 1 + (self.classes or 0), *[self.width] * self.layers, points.x.shape[2]]
        weights = mlp.initialised(len(points.x), sizes, torch.Generator().manual_seed(_seed(rng)), device=self.device)
        recipe = self._recipe(self.steps(self.budget), self.learning_rate, self.decay)
        recipe = dataclasses.replace(recipe, stopping=self.early_stopping, average=self.average)
        (trained,) = train(weights, points, recipe, seed, work=work)
        return self._model(trained, data.batch, points)

    def tune(
        self, model: ScoreNet, data: Data, budgets: Sequence[float], rng: Generator, work: Work | None = None
    ) -> Iterator[ScoreNet]:
        """The models after budgets[0] <= budgets[1] <= ... million samples of `data`; the model itself, bit for bit, at 0.

        sigma_data stays the model's. Raises ValueError if budgets are not ascending, and where `fit` does.
        """
        marks = counted.marks(budgets, self.batch)
        points, seed = self._points(data, model.scale), _seed(rng)
        later = [mark for mark in marks if mark > 0]
        recipe = self._recipe(max(marks, default=0), self.tune_learning_rate, "none")
        moments = on_device(model.moments, self.device) if self.optimiser == "kept" and model.moments else None
        trained = iter(train(model.tensors, points, recipe, seed, later, moments, work) if later else ())
        for mark in marks:
            yield model if mark == 0 else self._model(next(trained), data.batch, points, model)

    def interpolate(self, a: ScoreNet, b: ScoreNet, t: float) -> ScoreNet:
        """Parameters a + t (b - a); all else is a's."""
        mixed = {name: value + np.float32(t) * (b.parameters[name] - value) for name, value in a.parameters.items()}
        return dataclasses.replace(a, parameters=mixed, moments={})

    def restore(self, state: Mapping[str, Array]) -> ScoreNet:
        """The networks of a saved state, behind this algorithm's sampler."""
        parts: dict[str, dict[str, Any]] = {"parameters": {}, "moments": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = value
        failed = np.asarray(state["failed"], dtype=np.int64)
        settings: dict[str, Any] = {**parts, **self._settings}
        return ScoreNet(scale=state["scale"], failed=failed, shares=state.get("shares"), **settings)

    @property
    def _settings(self) -> dict[str, Any]:
        return {"sampler": self.sampler, "prediction": self.prediction, "device": self.device}

    def _recipe(self, steps: int, rate: float, decay: Any) -> Recipe:
        dropout = self.label_dropout
        return Recipe(steps, self.batch, rate, decay, self.clip, self.prediction, self.noise, label_dropout=dropout)

    def _points(self, data: Data, scale: Array | None) -> Points:
        if not isinstance(data, Measure) or len(data.event) != 1:
            raise ValueError(
                "a score network is trained on points that are vectors, event (d,); set statistics: false, or flatten"
            )
        x = np.where(data.weights[..., None] > 0, np.asarray(data.points, dtype=float), 0.0).reshape(
            -1, *data.points.shape[-2:]
        )
        w = np.broadcast_to(data.weights, (*data.batch, data.n)).reshape(-1, data.n)
        if scale is not None:
            unit = np.reshape(scale, -1)
        elif self.sigma_data is not None:
            unit = np.full(len(x), self.sigma_data)
        else:
            with np.errstate(all="ignore"):
                mean = np.einsum("rn,rnd->rd", w, x)
                unit = np.sqrt(np.einsum("rn,rnd->r", w, (x - mean[:, None]) ** 2) / x.shape[2])
        where: Any = {"dtype": torch.float32, "device": self.device}
        return Points(
            torch.as_tensor(x, **where),
            torch.tensor(w, dtype=torch.float64, device=self.device),
            None if self.classes is None else torch.as_tensor(self._marks(data, new=scale is None), **where),
            torch.as_tensor(unit, **where),
        )

    def _marks(self, data: Measure, new: bool) -> NDArray[Any]:
        """One-hot labels (R, n, K). A new fit to real data needs every class; on the way, a loop may lose one."""
        if data.labels is None:
            raise ValueError(f"classes: {self.classes} needs data with class labels and this has none; remove classes")
        labels = np.broadcast_to(data.labels, (*data.batch, data.n)).reshape(-1, data.n)
        marks = one_hot(labels, self.classes or 0)
        empty = np.argwhere((marks * data.weights.reshape(-1, data.n)[..., None]).sum(axis=1) == 0)
        real = data.origin is None or not np.any(data.origin)
        if new and real and len(empty):
            raise ValueError(
                f"class {empty[0, 1]} has no point in replicate {empty[0, 0]}, and every class needs one; "
                "use more points, or fewer classes"
            )
        return marks

    def _model(self, trained: Trained, batch: tuple[int, ...], points: Points, before: ScoreNet | None = None) -> ScoreNet:
        shares = before.shares if before is not None else None
        if before is None and points.labels is not None:
            shares = (points.labels * points.weights[..., None]).sum(dim=1).cpu().numpy().reshape(*batch, -1)
        failed = trained.failed.reshape(batch)
        return ScoreNet(
            as_arrays(trained.parameters),
            points.scale.double().cpu().numpy().reshape(batch),
            failed if before is None else np.where(before.failed > 0, before.failed, failed),
            shares=shares,
            moments=as_arrays(trained.moments) if self.optimiser == "kept" else {},
            **self._settings,
        )


def _seed(rng: Generator) -> int:
    return int(rng.integers(2**63))
