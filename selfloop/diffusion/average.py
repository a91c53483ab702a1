"""Averages of parameters over training, of any length, chosen afterwards.

The average at time t gives theta(tau), tau in [0, t], a weight that is a power of tau:

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),    std = (gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2)

Its length is stated as `std`, the standard deviation of p in units of t, in (0, 12^(-1/2)): .1 averages over about the last
tenth of training, whenever that ends. Source: Karras et al. (2024), arXiv 2312.02696, section 3; the solutions derived here.

Update. theta^(t) = beta theta^(t - 1) + (1 - beta) theta(t), beta = (1 - 1/t)^(gamma + 1), gives theta(s) the weight
(s^(gamma + 1) - (s - 1)^(gamma + 1)) / t^(gamma + 1), the mass of p over (s - 1, s]. So the update is the integral of p theta
itself, theta constant between two steps, without an error, and every linear relation between profiles is one of averages.

Length. With u = gamma + 2 the relation of gamma and std is the cubic u^3 + u^2 - (u - 1) / std^2 = 0. It has three real roots
and gamma + 2 is the largest, by Viete: u = 2 (k/3)^(1/2) cos(arccos(-(q/2) (3/k)^(3/2)) / 3) - 1/3, k = 1/3 + std^-2,
q = 2/27 + (4/3) std^-2.

Afterwards. Let averages i of profiles p_i be stored at times t_i. The average of another profile p is sum_i w_i theta^_i with

    w = argmin |sum_i w_i p_i - p|,  sum_i w_i = 1,     |f|^2 = int f^2,

    <p_i, p_j> / (|p_i| |p_j|) = ((2 a + 1) (2 b + 1))^(1/2) / (a + b + 1) (t_i / t_j)^(b + 1/2),

    |p_i|^2 = (a + 1)^2 / ((2 a + 1) t_i),     t_i <= t_j, a and b the gammas of i and j.

The weights add to one, so what does not move is kept. The error |sum_i w_i p_i - p| / |p| is the standard deviation of what is
missed, in units of that of the average itself, if the parameters fluctuate independently about a mean. Two lengths, .05 and
.10, stored k times at equal intervals, give the average of length .07 (.15) at the end with an error of .013 (.033) for k = 8,
.0038 (.0090) for k = 16 and .00098 (.0023) for k = 32. Where parameters wander instead (a random walk), the error is .004 of
the lag theta(t) - theta^ for k = 8 and .0005 for k = 16.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfloop.measure import Array

LONGEST = 12**-0.5
"""std of the uniform average, gamma = 0."""


def gamma_of(std: float) -> float:
    """The exponent gamma > 0 of the profile whose standard deviation is `std` times its time.

    Raises ValueError unless 0 < std < 12^(-1/2) = 0.28868, the length of the uniform average.
    """
    if not 0 < std < LONGEST:
        raise ValueError(f"std must lie in (0, {LONGEST:.5f}), from no averaging to the uniform average; got {std:g}")
    k, half_q = 1 / 3 + std**-2, 1 / 27 + 2 / 3 * std**-2
    angle = math.acos(-half_q * (3 / k) ** 1.5) / 3
    return 2 * math.sqrt(k / 3) * math.cos(angle) - 7 / 3


@dataclass
class PowerAverage:
    """The average of length `std` after t updates; value: name -> array or tensor, of any shape, members of an ensemble first.

    `update` changes it in place. What is stored is a `snapshot`, an average that is updated no more.
    Raises ValueError for a std that `gamma_of` refuses.
    """

    std: float
    t: int = 0
    value: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        gamma_of(self.std)

    def update(self, parameters: Mapping[str, Any]) -> None:
        """Take in theta(t + 1), arrays or tensors of floats; the average has their dtype and device, and none of their memory.

        Raises ValueError if their names are not those of the first update.
        """
        if self.t > 0 and parameters.keys() != self.value.keys():
            odd = sorted(parameters.keys() ^ self.value.keys())
            raise ValueError(f"every update takes the same parameters; not in both: {odd}; start another average for others")
        self.t += 1
        if self.t == 1:
            self.value = {name: _copy(theta) for name, theta in parameters.items()}
            return
        step = -math.expm1((gamma_of(self.std) + 1) * math.log1p(-1 / self.t))  # 1 - beta
        arrays = {name: theta for name, theta in parameters.items() if isinstance(theta, np.ndarray)}
        for name, theta in arrays.items():
            self.value[name].__iadd__(step * (theta - self.value[name]))
        if tensors := [name for name in parameters if name not in arrays]:
            import torch

            torch._foreach_lerp_([self.value[name] for name in tensors], [parameters[name].detach() for name in tensors], step)

    def snapshot(self) -> "PowerAverage":
        """A copy with memory of its own."""
        return PowerAverage(self.std, self.t, {name: _copy(average) for name, average in self.value.items()})

    def state(self) -> dict[str, Array]:
        """Plain arrays, copies, from which the average can be rebuilt: std, t and value.<name>."""
        arrays = {f"value.{name}": _copy(a if isinstance(a, np.ndarray) else a.cpu().numpy()) for name, a in self.value.items()}
        return {"std": np.array(self.std), "t": np.array(self.t), **arrays}

    @classmethod
    def restore(cls, state: Mapping[str, Array], lift: Callable[[Array], Any] = np.asarray) -> "PowerAverage":
        """The average that `state` describes; lift: what makes of an array the kind that training uses, a tensor say."""
        value = {name.removeprefix("value."): lift(_copy(a)) for name, a in state.items() if name.startswith("value.")}
        return cls(float(state["std"]), int(state["t"]), value)


def weights(snapshots: Sequence[PowerAverage], std: float, t: float) -> tuple[Array, float]:
    """(w (k,), error): the weights of k snapshots in the average of length `std` at time t, and |sum_i w_i p_i - p| / |p|.

    error is good to some 1e-8. Raises ValueError without snapshots, for times that are not positive, and for a std that
    `gamma_of` refuses.
    """
    times = [s.t for s in snapshots]
    if not times or not min(times) > 0 or not t > 0:
        raise ValueError(f"an average at t > 0 is made of snapshots at times > 0, got t = {t:g} and snapshots at {times}")
    gamma = np.array([gamma_of(s.std) for s in snapshots] + [gamma_of(std)])
    time = np.array([*times, t], dtype=float)
    norm = (gamma + 1) / np.sqrt((2 * gamma + 1) * time)
    gram = _cosines(gamma, time)
    sums = norm[-1] / norm[:-1]  # w in terms of weights of unit profiles
    system = np.block([[gram[:-1, :-1], sums[:, None]], [sums[None, :], np.zeros((1, 1))]])
    unit = np.linalg.lstsq(system, np.append(gram[:-1, -1], 1.0))[0][:-1]
    residual = np.append(unit, -1.0)
    return unit * sums, math.sqrt(max(residual @ gram @ residual, 0.0))


def posthoc(snapshots: Sequence[PowerAverage], std: float, t: float, tolerance: float = 0.1) -> dict[str, Any]:
    """The average of length `std` at time t as a combination of snapshots, best at a time when some were stored.

    Exact where that length was tracked and stored. Names are read one by one, so `value` may be an open npz file of its arrays.
    Raises ValueError if the relative error of the profile exceeds `tolerance`, as for a time after the last snapshot.
    """
    w, error = weights(snapshots, std, t)
    if not error <= tolerance:
        raise ValueError(
            f"these {len(w)} snapshots give the average of std = {std:g} at t = {t:g} with a relative error of {error:.2g}, "
            f"above {tolerance:g}; choose a time when averages were stored, a std near theirs, or store more of them"
        )
    names = snapshots[0].value.keys()
    return {name: sum(float(v) * s.value[name] for v, s in zip(w, snapshots, strict=True)) for name in names}


def _cosines(gamma: Array, time: Array) -> Array:
    a, b = gamma[:, None], gamma[None, :]
    s, t = time[:, None], time[None, :]
    ratio = (np.minimum(s, t) / np.maximum(s, t)) ** (np.where(s <= t, b, a) + 0.5)
    return np.asarray(np.sqrt((2 * a + 1) * (2 * b + 1)) / (a + b + 1) * ratio)


def _copy(theta: Any) -> Any:
    return np.array(theta) if isinstance(theta, np.ndarray) else theta.detach().clone()
