"""Features by any network of torch that a function of one's own makes."""

import hashlib
import importlib
from typing import Any, ClassVar

import numpy as np

from selfloop.component import Count, component
from selfloop.embed.features import Features, model_space
from selfloop.embed.network import Device, Network, placed
from selfloop.measure import Measure
from selfloop.protocols import Work


@component
class ModuleEmbedding:
    """`module`: a torch.nn.Module of one's own, points (n, *event) in model space -> (n, d).

    target: `package.module:function`, where Python finds it; the function takes nothing and returns the module, with its
    weights. Bytes come as x / 127.5 - 1, anything else as it is, float32; `batch` points at a time on `device`, in evaluation
    mode. Raises ImportError if there is no such function, TypeError if it makes something else.
    """

    target: str
    batch: Count = 64
    device: Device = "auto"

    learns: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        module, colon, name = self.target.partition(":")
        if not (module and colon and name):
            raise ValueError(f"target must be package.module:function, got {self.target!r}")

    def stamp(self) -> str:
        """SHA-256 of the parameters and buffers."""
        digest = hashlib.sha256()
        for name, values in self._made().state_dict().items():
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(np.ascontiguousarray(values.detach().cpu().float().numpy()).data)
        return digest.hexdigest()

    def fitted(self, real: Measure, work: Work | None = None) -> Features:
        """The module on its device; nothing is trained."""
        import torch

        device = placed(self.device)
        net = self._made().to(device).train(False).requires_grad_(False)

        def of(block: Any) -> Any:
            out = net(torch.from_numpy(np.array(model_space(block))).to(device))
            if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != len(block):
                given = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
                raise ValueError(f"{self.target} must map {len(block)} points to features (n, d), got {given}; flatten each")
            return out

        return Network("module", self.batch, of)

    def _made(self) -> Any:
        import torch

        module, _, name = self.target.partition(":")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"cannot import {self.target!r}: {error}; is its folder the current one, or installed?"
            ) from error
        made = function()
        if not isinstance(made, torch.nn.Module):
            raise TypeError(f"{self.target} must return a torch.nn.Module, got {type(made).__name__}")
        return made
