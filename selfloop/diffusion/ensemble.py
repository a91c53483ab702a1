"""Training an ensemble of denoisers at once: denoising score matching, one optimiser, every member for itself.

    min over theta   sum_r E |F_r(c_in x, c_noise) - (x_0 - c_skip x) / c_out|^2,   x = x_0 + sigma z,   x_0 ~ data of member r

(see `selfloop.diffusion.precondition` and `selfloop.diffusion.noise`). Data, noise levels, noise, clipping and the best step of
early stopping are a member's own; so is failure: a loss that is not finite spoils no neighbour and is noted with its step.

Random numbers are drawn for blocks of steps, keyed by (seed, block): a training that was saved and continued goes on with
the numbers it would have had, and a shorter training is the beginning of a longer one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfloop.component import Count, Fraction, component
from selfloop.diffusion import mlp
from selfloop.diffusion.average import PowerAverage
from selfloop.diffusion.mlp import Parameters
from selfloop.diffusion.noise import Noise
from selfloop.diffusion.precondition import PredictionName, coefficients
from selfloop.protocols import Work
from selfloop.streams import torch_seed

BLOCK = 16
"""Steps whose random numbers are drawn together, at most: a short training draws few that it does not use."""
NUMBERS = 2**22
"""Random numbers drawn at once, about."""
CACHED = 2**19
"""Activations of a layer that are held at once on a CPU: members go through a step in groups whose arrays stay in the cache."""
HELD_OUT_DRAWS = 8
"""Noise levels at which every held-out point is looked at, the same ones each time."""


@component
class EarlyStopping:
    """Stop a member once its loss on a held-out share of its points has not fallen in `patience` looks, one `every` steps.

    The member's parameters are those of its best look.
    """

    held_out: Fraction = 0.1
    every: Count = 50
    patience: Count = 4

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out:g}")


@dataclass(frozen=True)
class Recipe:
    """How to train: steps and their batch, learning rate and its course, clipping of each member's gradient norm.

    average: std of a power-function average of the parameters, which is then the result (`selfloop.diffusion.average`).
    decay: `cosine` lets the rate fall to 0 over the steps, rate (1 + cos(pi k / steps)) / 2; `none` keeps it.
    """

    steps: int
    batch: int
    rate: float
    decay: Literal["none", "cosine"]
    clip: float | None
    prediction: PredictionName
    noise: Noise
    stopping: EarlyStopping | None = None
    label_dropout: float = 0.0
    average: float | None = None

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.rate * (0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.decay == "cosine" else 1.0)


@dataclass(frozen=True)
class Points:
    """Training data of R members on a device: x (R, n, d), w (R, n) adding to one in float64, one-hot labels (R, n, K).

    scale (R,): the standard deviation the network works in units of.
    """

    x: Tensor
    weights: Tensor
    labels: Tensor | None
    scale: Tensor

    def rows(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Row numbers (steps, R, batch), drawn with the weights."""
        last = self.x.shape[1] - 1
        u = torch.rand(shape, generator=generator, device=self.x.device, dtype=torch.float64)
        rows = (u * (last + 1)).long().clamp(max=last)
        weighted = (self.weights != self.weights[:, :1]).any(dim=1)
        if weighted.any():
            total = self.weights[weighted].cumsum(dim=1)
            wanted = u[:, weighted].movedim(0, 1) * total[:, -1, None, None]
            found = torch.searchsorted(total, wanted.flatten(1), right=True).clamp(max=last)
            rows[:, weighted] = found.reshape(wanted.shape).movedim(0, 1)
        return rows

    def taken(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points (steps, R, batch, d) and labels (steps, R, batch, K) of row numbers."""
        member = torch.arange(self.x.shape[0], device=self.x.device)[:, None]
        return self.x[member, rows], None if self.labels is None else self.labels[member, rows]


@dataclass(frozen=True)
class Trained:
    """Parameters after some steps; Adam's moments with the number of steps they saw; failed (R,): the step at which a
    member's loss stopped being finite, 0 = never, or not before its best look."""

    parameters: Parameters
    moments: Parameters
    failed: NDArray[np.int64]


def inputs(x: Tensor, s: Tensor, labels: Tensor | None, c_in: Tensor) -> Tensor:
    """(c_in x, ln(s) / 4, labels): x (.., d), s and c_in (.., 1) in units of the data."""
    parts = [c_in * x, (s.log() / 4).expand(*x.shape[:-1], 1)]
    return torch.cat(parts if labels is None else [*parts, labels], dim=-1)


def examples(x: Tensor, labels: Tensor | None, u: Tensor, z: Tensor, scale: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the network at points x (.., R, n, d), noise levels at quantiles u (.., R, n, 1) and noise z."""
    s = recipe.noise.quantile(u)
    skip, out, c_in = coefficients(recipe.prediction, s)
    clean = x / scale[:, None, None]
    noised = clean + s * z
    return inputs(noised, s, labels, c_in), (clean - skip * noised) / out


def losses(parameters: Parameters, x: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each member over its points, summed over the coordinates, (R,)."""
    return (mlp.forward(parameters, x) - target).square().sum(dim=-1).mean(dim=-1)


def train(
    start: Parameters,
    points: Points,
    recipe: Recipe,
    seed: int,
    marks: Sequence[int] = (),
    moments: Parameters | None = None,
    work: Work | None = None,
) -> list[Trained]:
    """The ensemble after each of `marks` steps (ascending, the last by default `recipe.steps`), from the parameters `start`.

    moments: Adam's, from an earlier training, to go on with (fresh if None). work: where to save, and continue from.
    """
    course = _Course(start, points, recipe, seed, moments)
    marks = list(marks) or [recipe.steps]
    done: list[Trained] = []
    kept = False
    if work is not None and (saved := work.load()) is not None:
        done = course.resume(saved)
    for mark in marks[len(done) :]:
        for reached in course.until(mark):
            if work is not None:
                finite = course.loss[np.isfinite(course.loss)]
                work.report(reached, marks[-1], loss=float(finite.mean()) if len(finite) else math.nan)
                if work.due():
                    work.save(**course.saved(done))
                    kept = True
        done.append(course.result())
    if work is not None and (kept or work.due()):  # what took long is kept whole, for a kill in what comes after it
        work.save(**course.saved(done))
    return done


@dataclass
class _Course:
    """A training under way."""

    start: Parameters
    points: Points
    recipe: Recipe
    seed: int
    moments: Parameters | None
    step: int = 0
    loss: NDArray[np.float64] = field(init=False)
    failed: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        members, n, d = self.points.x.shape
        self.device = self.points.x.device
        self.parameters = {name: value.detach().clone() for name, value in self.start.items()}
        width = max(value.shape[2] for value in self.parameters.values())
        size = members if self.device.type != "cpu" else max(1, CACHED // (self.recipe.batch * width))
        self.groups = [slice(start, start + size) for start in range(0, members, size)]
        self.leaves = [
            {name: value[group].detach().requires_grad_() for name, value in self.parameters.items()} for group in self.groups
        ]  # views: what the optimiser does to them is done to the parameters
        leaves = [leaf for part in self.leaves for leaf in part.values()]
        self.optimiser = torch.optim.Adam(leaves, lr=self.recipe.rate, fused=True)
        self._set_moments(self.moments)
        self.block = max(1, min(BLOCK, NUMBERS // (members * self.recipe.batch * (d + 2))))
        self.loss, self.failed = np.full(members, np.nan), np.zeros(members, dtype=np.int64)
        self.training = self.points
        self.average = None if self.recipe.average is None else PowerAverage(self.recipe.average)
        if self.recipe.stopping is not None:
            self._hold_out(n, self.recipe.stopping)

    def _set_moments(self, moments: Parameters | None) -> None:
        if moments is None:
            return
        for group, part in zip(self.groups, self.leaves, strict=True):
            for name, leaf in part.items():
                state = {key: moments[f"{key}.{name}"][group].clone() for key in ("exp_avg", "exp_avg_sq")}
                self.optimiser.state[leaf] = {"step": moments["step"].clone(), **state}  # Adam counts in place

    def _moments(self) -> Parameters:
        states = [{name: self.optimiser.state[leaf] for name, leaf in part.items()} for part in self.leaves]
        if not all(state for part in states for state in part.values()):
            return {}
        kept = {
            f"{key}.{name}": torch.cat([part[name][key] for part in states])
            for name in self.parameters
            for key in ("exp_avg", "exp_avg_sq")
        }
        return {"step": next(iter(states[0].values()))["step"], **kept}

    def generator(self, *name: int) -> torch.Generator:
        """The stream of a block of steps, or of another use."""
        return torch.Generator(self.device).manual_seed(torch_seed(self.seed, *name))

    def until(self, mark: int) -> Iterator[int]:
        """Train until a step is reached; yields the number of steps done after each block."""
        while self.step < mark and not self._all_stopped():
            block = self.step // self.block
            x, target = self._drawn(block)
            stop = min((block + 1) * self.block, mark)
            self._advance(x, target, block * self.block, stop)
            yield self.step

    def _drawn(self, block: int) -> tuple[Tensor, Tensor]:
        recipe, generator = self.recipe, self.generator(0, block)
        members, _, d = self.points.x.shape
        shape = (self.block, members, recipe.batch)
        where: Any = {"generator": generator, "device": self.device}
        x, labels = self.training.taken(self.training.rows(shape, generator))
        u = (torch.arange(recipe.batch, device=self.device) + torch.rand(shape, **where)) / recipe.batch
        z = torch.randn((*shape, d), dtype=x.dtype, **where)
        if labels is not None and recipe.label_dropout > 0:
            labels = labels * (torch.rand(shape, **where) >= recipe.label_dropout).to(x)[..., None]
        return examples(x, labels, u.to(x.dtype)[..., None], z, self.points.scale, recipe)

    def _advance(self, x: Tensor, target: Tensor, first: int, stop: int) -> None:
        history = []
        for step in range(self.step, stop):
            for options in self.optimiser.param_groups:
                options["lr"] = self.recipe.rate_at(step)
            self.optimiser.zero_grad()
            loss = []
            for group, part in zip(self.groups, self.leaves, strict=True):
                loss.append(losses(part, x[step - first, group], target[step - first, group]))
                loss[-1].sum().backward()  # type: ignore[no-untyped-call]
                if self.recipe.clip is not None:
                    clip_members(list(part.values()), self.recipe.clip)
            self.optimiser.step()
            if self.average is not None:
                self.average.update(self.parameters)
            history.append(torch.cat(loss).detach())
            self.step = step + 1
            if self.recipe.stopping is not None and self.step % self.recipe.stopping.every == 0:
                self._look(self.recipe.stopping)
        seen = torch.stack(history).double().cpu().numpy()
        odd = ~np.isfinite(seen)
        new = odd.any(axis=0) & (self.failed == 0)
        self.failed[new] = stop - len(seen) + 1 + odd.argmax(axis=0)[new]
        self.loss = seen.mean(axis=0)

    # Early stopping

    def _hold_out(self, n: int, rule: EarlyStopping) -> None:
        members = len(self.points.x)
        generator = self.generator(1)
        weights = self.points.weights
        positive = (weights > 0).sum(dim=1, keepdim=True)
        share = (rule.held_out * positive).round().clamp(min=1).minimum(positive - 1)  # of the points that count
        order = (torch.rand((members, n), generator=generator, device=self.device) + (weights == 0)).argsort(dim=1)
        order = order[:, : max(round(rule.held_out * n), 1)]
        held = weights.gather(1, order) * (torch.arange(order.shape[1], device=self.device) < share)
        left = weights.scatter_add(1, order, -held)
        self.training = Points(self.points.x, left, self.points.labels, self.points.scale)
        rows = order.repeat(1, HELD_OUT_DRAWS)
        x, labels = self.points.taken(rows)
        u = torch.rand((*rows.shape, 1), generator=generator, device=self.device, dtype=x.dtype)
        z = torch.randn(x.shape, generator=generator, device=self.device, dtype=x.dtype)
        self.held_out = examples(x, labels, u, z, self.points.scale, self.recipe)
        self.held_weights = held.repeat(1, HELD_OUT_DRAWS)
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.least = torch.full((members,), math.inf, device=self.device, dtype=torch.float64)
        self.looks_since = torch.zeros(members, device=self.device, dtype=torch.int64)

    @torch.no_grad()
    def _look(self, rule: EarlyStopping) -> None:
        now = self._now()
        error = (mlp.forward(now, self.held_out[0]) - self.held_out[1]).square().sum(dim=-1)
        loss = (self.held_weights * error).double().sum(dim=1) / self.held_weights.double().sum(dim=1)
        better = (loss < self.least) & (self.looks_since < rule.patience)
        self.least = torch.where(better, loss, self.least)
        self.looks_since = torch.where(better, 0, self.looks_since + 1)
        for name, value in now.items():
            self.best[name] = torch.where(better[:, None, None], value, self.best[name])

    def _all_stopped(self) -> bool:
        rule = self.recipe.stopping
        return rule is not None and bool((self.looks_since >= rule.patience).all())

    # Results, saving, continuing

    def _now(self) -> Parameters:
        """The parameters, or their average where one is kept."""
        return self.parameters if self.average is None or self.average.t == 0 else dict(self.average.value)

    def result(self) -> Trained:
        """What has been learned so far, in tensors of its own."""
        found, failed = self._now(), self.failed.copy()
        if self.recipe.stopping is not None:
            seen = torch.isfinite(self.least)
            found = {name: torch.where(seen[:, None, None], self.best[name], value) for name, value in found.items()}
            failed = np.where(seen.cpu().numpy(), 0, failed)
        moments = {name: value.detach().clone() for name, value in self._moments().items()}
        parameters = {name: value.detach().clone() for name, value in found.items()}
        return Trained(parameters, moments, failed)

    def saved(self, done: Sequence[Trained]) -> dict[str, Any]:
        """Plain arrays from which `resume` goes on."""
        parts: dict[str, Any] = {
            "done": np.array(len(done)),
            "at": np.array(self.step),
            "failed": self.failed,
            "loss": self.loss,
        }
        tensors = {f"now.{name}": value for name, value in self.parameters.items()}
        tensors |= {f"moments.{name}": value for name, value in self._moments().items()}
        for number, trained in enumerate(done):
            tensors |= {f"mark.{number}.{name}": value for name, value in trained.parameters.items()}
            tensors |= {f"mark.{number}.moments.{name}": value for name, value in trained.moments.items()}
            parts[f"mark.{number}.failed"] = trained.failed
        if self.recipe.stopping is not None:
            tensors |= {"stop.least": self.least, "stop.looks": self.looks_since}
            tensors |= {f"stop.best.{name}": value for name, value in self.best.items()}
        if self.average is not None:
            parts |= {f"average.{name}": value for name, value in self.average.state().items()}
        return parts | {name: value.detach().cpu().numpy() for name, value in tensors.items()}

    def resume(self, saved: dict[str, Any]) -> list[Trained]:
        """Go on where `saved` stood; the results at the marks passed before."""

        def tensors(prefix: str) -> Parameters:
            return {
                name.removeprefix(prefix): torch.as_tensor(value, device=self.device)
                for name, value in saved.items()
                if name.startswith(prefix)
            }

        with torch.no_grad():
            for name, value in tensors("now.").items():
                self.parameters[name].copy_(value)
        self._set_moments(tensors("moments.") or None)
        if self.average is not None:
            state = {name.removeprefix("average."): value for name, value in saved.items() if name.startswith("average.")}
            self.average = PowerAverage.restore(state, lambda value: torch.as_tensor(value, device=self.device))
        self.step, self.failed, self.loss = int(saved["at"]), np.array(saved["failed"]), np.array(saved["loss"])
        if self.recipe.stopping is not None:
            self.best, self.least = tensors("stop.best."), torch.as_tensor(saved["stop.least"], device=self.device)
            self.looks_since = torch.as_tensor(saved["stop.looks"], device=self.device)
        done = []
        for number in range(int(saved["done"])):
            moments = tensors(f"mark.{number}.moments.")
            parameters = {
                name: value for name, value in tensors(f"mark.{number}.").items() if name.split(".")[0] in ("weight", "bias")
            }
            done.append(Trained(parameters, moments, np.array(saved[f"mark.{number}.failed"])))
        return done


def clip_members(parameters: Sequence[Tensor], most: float) -> None:
    """Scale the gradients of every member so that their norm over all parameters is at most `most`, in place."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients]).sum(dim=0).sqrt()
    factors = (most / norms).clamp(max=1)[:, None, None]
    for gradient in gradients:
        gradient.mul_(factors)
