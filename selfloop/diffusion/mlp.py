"""Ensembles of small networks, trained and called as one: every parameter has a leading axis of R members.

    h_0 = x (R, n, in),    h_(i+1) = silu(h_i W_i + b_i),    F(x) = h_L W_L + b_L    with W_i (R, in, out), b_i (R, 1, out)

One `baddbmm` a layer does for all members what a loop over them would do one after the other. Members share nothing: the
gradient of a sum of member losses is, for each member, the gradient of its own, and a NaN stays where it arose.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def initialised(members: int, sizes: Sequence[int], generator: torch.Generator, **where: Any) -> Parameters:
    """Networks of layer sizes (in, hidden .., out): weights N(0, 1 / in), biases 0, and a last layer of 0, so that F = 0."""
    parameters: Parameters = {}
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        drawn = torch.randn((members, n_in, n_out), generator=generator, device=generator.device)
        parameters[f"weight.{i}"] = ((0.0 if last else n_in**-0.5) * drawn).to(**where)
        parameters[f"bias.{i}"] = torch.zeros((members, 1, n_out), **where)
    return parameters


def forward(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """F(x): x (R, n, in) -> (R, n, out)."""
    last = len(parameters) // 2 - 1
    for i in range(last):
        x = torch.nn.functional.silu(torch.baddbmm(parameters[f"bias.{i}"], x, parameters[f"weight.{i}"]))
    narrow = parameters[f"weight.{last}"].mT.contiguous().mT  # columns in a row: several times as fast for few outputs on a CPU
    return torch.baddbmm(parameters[f"bias.{last}"], x, narrow)
