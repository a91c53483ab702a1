"""Gradients of the denoising loss of single rows with respect to the parameters of a network.

    loss_i(sigma; theta) = mean over z of |D_theta(x_i + sigma z; sigma) - x_i|^2 / D
    g_i                  = sum_l v_l  grad_theta loss_i(sigma_l; theta)             at levels sigma_l with weights v_l

All rows see the same noise z: what differs between two gradients is the rows. They are taken by `torch.func.vmap` of
`torch.func.grad`, for as many rows at once as NUMBERS allows: a row has as many numbers as the network has parameters.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from selfloop.measure import Array

NUMBERS = 2**25
"""Numbers of gradients that are held at once, about."""
ROWS = 64
"""Rows whose gradients are held at once, at most."""


class Differentiable(Protocol):
    """A denoiser of one data set that is a function of named parameters."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters, on the device."""
        ...

    def lift(self, x: Any) -> Tensor:
        """An array as a tensor of the network's type, on its device."""
        ...

    def marks(self, labels: Any, n: int) -> Tensor | None:
        """One-hot labels (n, K) as the network sees them; None without classes."""
        ...

    def denoised(self, parameters: Any, x: Tensor, sigma: float, marks: Tensor | None) -> Tensor:
        """D(x; sigma) under these parameters, x (n, *event)."""
        ...


def count(model: Differentiable) -> int:
    """The number P of parameters."""
    return sum(value.numel() for value in model.tensors.values())


def at_once(model: Differentiable) -> int:
    """Rows whose gradients are taken together."""
    return max(1, min(ROWS, NUMBERS // count(model)))


def gradients(model: Differentiable, x: Array, labels: Any, sigmas: Array, z: Array, weights: Array) -> Tensor:
    """g_i of rows x (n, *event) with labels (n,) or None, as rows (n, P), in the order of `model.tensors`.

    sigmas, weights (L,): levels, all above 0, and v_l; z (L, draws, *event): noise.
    """
    levels = [(float(sigma), float(v), model.lift(noise)) for sigma, v, noise in zip(sigmas, weights, z, strict=True)]

    def loss(parameters: Mapping[str, Tensor], row: Tensor, mark: Tensor | None) -> Tensor:
        total = row.new_zeros(())
        for sigma, v, noise in levels:
            given = None if mark is None else mark.expand(len(noise), -1)
            total = total + v * (model.denoised(parameters, row + sigma * noise, sigma, given) - row).square().mean()
        return total

    marks = model.marks(labels, len(x))
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None if marks is None else 0))
    with sdpa_kernel(SDPBackend.MATH):  # attention that vmap knows
        found = each(dict(model.tensors), model.lift(x), marks)
    return torch.cat([found[name].reshape(len(x), -1) for name in model.tensors], dim=1)


def squared_norms(gradient: Tensor) -> Array:
    """|g_i|^2 (n,) of rows (n, P)."""
    norms: Array = gradient.double().square().sum(dim=1).cpu().numpy()
    return norms


def products(gradient: Tensor, direction: Array) -> Array:
    """<g_i, h> (n,) of rows (n, P) and a direction h (P,)."""
    found: Array = (gradient.double() @ torch.from_numpy(direction).to(gradient.device)).cpu().numpy()
    return found


def combined(gradient: Tensor, weights: Array) -> Array:
    """sum_i w_i g_i (P,) of rows (n, P) and weights (n,)."""
    found: Array = (torch.tensor(weights, device=gradient.device) @ gradient.double()).cpu().numpy()
    return found
