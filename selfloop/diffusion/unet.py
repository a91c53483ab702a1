"""U-Nets for images, F(x, c_noise, label, augmentation), in three styles that share one skeleton.

    x -> conv -> [down] blocks .. -> two middle blocks -> [up] blocks + 1 .. -> conv -> F

Level i has the side size / 2^i and multipliers[i] x channels channels. Every output on the way down is kept and put beside the
input of a block on the way up. A block is a residual branch that sees e, the embedding of noise level, label and augmentation,
and self-attention A where asked for; one that resamples takes means of 2 x 2 pixels or repeats them. Where shapes differ the
skip s is a 1 x 1 convolution of x; W, W' are matrices:

    ddpmpp  y = (s + conv(silu(norm(h + W e)))) / 2^1/2,        h = conv(silu(norm(x))), then (y + A(norm(y))) / 2^1/2
    adm     y = s + conv(silu(norm(h) (1 + W e) + W' e)),       h = conv(silu(norm(x))), then y + A(norm(y))
    edm2    y = sum(s, conv(silu(h (1 + g W e)))),              h = conv(silu(x)),       then sum(y, A(y))

ddpmpp and adm normalise groups of channels and begin at F = 0: the last layer of every branch and of the network is 0. edm2
has no biases and no group norms, preserves the magnitude E[x^2] = 1 and begins at F = 0 by the gain g of its last layer:

    W x        W = V / |V| for each output: only the direction of V is learned; gains g, of e and of the output, begin at 0
    silu(x)    x sigmoid(x) / .596
    sum(a, b)  ((1 - t) a + t b) / ((1 - t)^2 + t^2)^1/2,   t = .3 in blocks, .5 in the embedding
    put beside (N_a^-1/2 a, N_b^-1/2 b) ((N_a + N_b) / 2)^1/2 for N_a, N_b channels
    A          of queries, keys and values of unit magnitude: the logits are d^1/2 times cosines
    x          on the way down divided by its root mean square over the channels; the input has a channel of ones more

V is kept at unit entries, |V|^2 = its length, as EDM2's learning rates assume: whoever trains calls `normalise()` after each
step of the optimiser. That lies outside the forward, so it is safe under torch.compile, CUDA graphs and accumulated gradients,
and under DDP every process does the same to the same weights. F does not depend on |V|: averaged weights need no such call.

Sources: Song et al. (2021) and Karras et al. (2022), ddpmpp; Dhariwal & Nichol (2021), adm; Karras et al. (2024), edm2.
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from pydantic import Strict
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, dropout, group_norm, interpolate, linear, scaled_dot_product_attention, silu

from selfloop.component import Count, Counts, component

Style = Literal["ddpmpp", "adm", "edm2"]
Resample = Literal["", "down", "up"]
EPS = {"ddpmpp": 1e-6, "adm": 1e-5, "edm2": 1e-4}
HEAD = 64
"""Channels of an attention head in adm and edm2; ddpmpp has one head."""
SILU = 1 / 0.596
"""E[silu(x)^2]^-1/2 for x ~ N(0, 1); a gain of the layer that follows."""
BALANCE = 0.3
CLIP = 256.0
"""What a block of edm2 returns lies in [-CLIP, CLIP]."""


@component
class UNet:
    """The shape of a U-Net; `build` makes it.

    channels: of the first convolution; multipliers: of `channels`, one a level; blocks: a level, on the way down; attention:
    sides of the levels whose blocks have self-attention (in ddpmpp only the last of a level on the way up), () for none; with
    any, the first middle block has it too. dropout: between the convolutions of a block; its masks come from torch's own
    generator, which whoever trains has to seed.
    """

    style: Style = "ddpmpp"
    channels: Count = 128
    multipliers: Counts = (2, 2, 2)
    blocks: Count = 4
    attention: tuple[Count, ...] = (16,)
    dropout: Annotated[float, Strict(), Ge(0), Lt(1)] = 0.0

    def build(self, channels: int, size: int, classes: int | None, augment: int, generator: torch.Generator) -> "Network":
        """A network for images (channels, size, size), labels of `classes` classes if any, augmentations of `augment` entries.

        Initial weights are drawn from the generator, of the CPU, alone and in the order of the modules; they lie on the CPU, or
        under `torch.device("meta")` nowhere. Raises ValueError for a side that cannot be halved as often as there are levels,
        and for attention on a side that no level has.
        """
        levels = len(self.multipliers)
        factor = 2 ** (levels - 1)
        if size % factor:
            raise ValueError(
                f"size must be a multiple of {factor} for the {levels} levels of multipliers {self.multipliers}, got {size}; "
                f"use at most {(size & -size).bit_length()} multipliers, or pad the images to {size + -size % factor}"
            )
        sides = [size >> i for i in range(levels)]
        if missing := sorted(set(self.attention) - set(sides)):
            raise ValueError(f"attention must be on sides that a level has, {sides}, or (), got {missing}; take some of these")
        network = Network(self, channels, sides, classes or 0, augment)
        for module in network.modules():
            if isinstance(module, Layer | Norm | Fourier):
                module.draw(generator)
        return network


class Layer(nn.Module):
    """W x + b: on the last axis (kernel 0), or a convolution (odd kernel) that keeps the side.

    At first b = 0 and W is uniform with `scale` times the standard deviation (2 / (fan in + fan out))^1/2 (ddpmpp) or
    (3 fan in)^-1/2 (adm). edm2: W = gain V / |V|, no b, V standard normal.
    """

    def __init__(self, style: Style, n_in: int, n_out: int, kernel: int = 0, bias: bool = True, scale: float = 1.0):
        super().__init__()
        area = max(kernel, 1) ** 2
        self.unit, self.padding, self.fan_in = style == "edm2", kernel // 2 if kernel else None, n_in * area
        self.bound = scale * (6 / (area * (n_in + n_out)) if style == "ddpmpp" else 1 / self.fan_in) ** 0.5
        self.weight = nn.Parameter(torch.empty(n_out, n_in, kernel, kernel) if kernel else torch.empty(n_out, n_in))
        self.inner = tuple(range(1, self.weight.ndim))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias and not self.unit else None

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Initial weights."""
        if self.unit:
            self.weight.normal_(generator=generator)
            self.normalise()
        else:
            self.weight.uniform_(-self.bound, self.bound, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def normalise(self) -> None:
        """V to unit entries, |V|^2 = fan in for each output."""
        self.weight.mul_(inverse_rms(self.weight, self.inner))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """x (n, C, H, W), or (.., C) without a kernel; gain is of edm2."""
        weight = self.weight
        if self.unit:
            weight = weight * (gain * self.fan_in**-0.5 * inverse_rms(weight, self.inner))
        return linear(x, weight, self.bias) if self.padding is None else conv2d(x, weight, self.bias, padding=self.padding)


class Norm(nn.Module):
    """Group norm: at most 32 groups, of at least four channels."""

    def __init__(self, style: Style, n: int):
        super().__init__()
        self.groups, self.eps = divisor(n, min(32, n // 4)), EPS[style]
        self.weight, self.bias = nn.Parameter(torch.empty(n)), nn.Parameter(torch.empty(n))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Weights 1, biases 0."""
        self.weight.fill_(1.0)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x (n, C, H, W), each group to mean 0 and variance 1."""
        return group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Fourier(nn.Module):
    """2^1/2 cos(2 pi (f c + p)), f ~ N(0, 1) and p ~ U(0, 1) fixed: c (n,) -> (n, N) of unit magnitude, in float32."""

    def __init__(self, n: int):
        super().__init__()
        self.frequency, self.phase = nn.Buffer(torch.empty(n)), nn.Buffer(torch.empty(n))

    def draw(self, generator: torch.Generator) -> None:
        """f and p."""
        self.frequency.normal_(generator=generator)
        self.phase.uniform_(generator=generator)

    def forward(self, c: Tensor) -> Tensor:
        """c (n,) -> (n, N)."""
        turns = c.float()[:, None] * self.frequency.float() + self.phase.float()
        return 2**0.5 * torch.cos(2 * math.pi * turns)


class Uncertainty(nn.Module):
    """u(c_noise) of the loss exp(-u) err + u: it is least at u = ln E[err | sigma], so that every noise level counts alike.

    u = w . f / N^1/2 with N = 128 Fourier features f; w = 0 at first. Source: Karras et al. (2024), equations 21 and 22.
    """

    def __init__(self, generator: torch.Generator, features: int = 128):
        super().__init__()
        self.fourier = Fourier(features)
        self.fourier.draw(generator)
        self.weight = nn.Parameter(torch.zeros(features))

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise (n,) -> u (n,), in float32 under autocast too."""
        u: Tensor = (self.fourier(c_noise) * self.weight * len(self.weight) ** -0.5).sum(dim=1)
        return u


class Embedding(nn.Module):
    """e (n, E) of noise level c (n,), label (n, K) and augmentation a (n, A); those not given are zeros.

    ddpmpp  silu(W_2 silu(W_1 (p(c) + W_l K^1/2 label + W_a a)))     p(c) = cos, sin of c w, w from 1 down to 10^-4
    adm     silu(W_2 silu(W_1 (p(c) + W_a a)) + W_l label)
    edm2    silu(sum(W_1 f(c), W_l K^1/2 label) + g W_a a)           f: Fourier features
    """

    def __init__(self, config: UNet, n: int, classes: int, augment: int):
        super().__init__()
        style, width = config.style, 2 * max(config.channels // 2, 1)
        self.style = style
        self.fourier = Fourier(width) if style == "edm2" else None
        self.first = Layer(style, width, n)
        self.second = nn.Identity() if style == "edm2" else Layer(style, n, n)
        self.of_label = Layer(style, classes, width if style == "ddpmpp" else n, bias=style == "ddpmpp") if classes else None
        self.of_augment = Layer(style, augment, n if style == "edm2" else width, bias=False) if augment else None
        self.gain = nn.Parameter(torch.zeros(())) if style == "edm2" and augment else None

    def forward(self, c: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Raises ValueError for labels or augmentations of another shape than the network was built for."""
        label = self.part("labels", self.of_label, labels, len(c), scaled=self.style != "adm")
        turn = self.part("augment", self.of_augment, augment, len(c))
        if self.fourier is not None:
            e = self.first(self.fourier(c).to(self.first.weight.dtype))
            e = e if self.of_label is None else (e + label) * 0.5**0.5
            e = e if self.gain is None else e + self.gain * turn
            return SILU * silu(e)
        w = torch.logspace(0, -4, self.first.weight.shape[1] // 2, device=c.device, dtype=torch.float32)
        angles = c.float()[:, None] * w
        p = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.first.weight.dtype)
        if self.style == "ddpmpp":
            return silu(self.second(silu(self.first(p + label + turn))))
        return silu(self.second(silu(self.first(p + turn))) + label)

    def part(self, name: str, layer: Layer | None, given: Tensor | None, n: int, scaled: bool = False) -> Tensor | float:
        """W given, or what zeros give; 0 for a network without."""
        width = 0 if layer is None else layer.weight.shape[1]
        if given is not None and given.shape != (n, width):
            raise ValueError(f"{name} must be of shape {(n, width)}, as told to `build`, got {tuple(given.shape)}")
        if layer is None:
            return 0.0
        given = layer.weight.new_zeros(n, width) if given is None else given
        out: Tensor = layer(given * width**0.5 if scaled else given)
        return out


class Attention(nn.Module):
    """W' softmax(Q K^T / d^1/2) V with (Q, K, V) = W x, over the positions of x (n, C, H, W)."""

    def __init__(self, style: Style, n: int):
        super().__init__()
        self.unit, self.heads = style == "edm2", 1 if style == "ddpmpp" else divisor(n, n // HEAD)
        self.qkv = Layer(style, n, 3 * n, scale=0.2**0.5 if style == "ddpmpp" else 1.0)
        self.project = Layer(style, n, n, scale=0.0)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """x (n, C, H, W) -> the same shape; gain is of edm2."""
        n, c, height, width = x.shape
        heads = self.qkv(x.flatten(2).mT).view(n, height * width, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        heads = heads * inverse_rms(heads, -1).to(heads.dtype) if self.unit else heads
        if x.device.type == "cpu":  # there the backward pass of bfloat16 attention takes some 20 times as long
            heads = heads.to(torch.promote_types(heads.dtype, torch.float32))
        with torch.autocast("cpu", enabled=False):
            mixed = scaled_dot_product_attention(*heads)
        out: Tensor = self.project(mixed.transpose(1, 2).flatten(2), gain).mT.view(x.shape)
        return out


class Block(nn.Module):
    """A block of ddpmpp or adm: x (n, C_in, H, W), e (n, E) -> (n, C_out, H', W')."""

    def __init__(self, config: UNet, n_in: int, n_out: int, n_e: int, attention: bool, resample: Resample, upward: bool):
        super().__init__()
        style = config.style
        self.n_in, self.dropout, self.resample, self.additive = n_in, config.dropout, resample, style == "ddpmpp"
        self.factor = 0.5**0.5 if self.additive else 1.0
        self.norm_0, self.conv_0 = Norm(style, n_in), Layer(style, n_in, n_out, 3)
        self.affine = Layer(style, n_e, n_out if self.additive else 2 * n_out)
        self.norm_1, self.conv_1 = Norm(style, n_out), Layer(style, n_out, n_out, 3, scale=0.0)
        shaped = n_in != n_out or (self.additive and resample != "")
        self.skip = Layer(style, n_in, n_out, 1) if shaped else nn.Identity()
        self.attention = nn.Sequential(Norm(style, n_out), Attention(style, n_out)) if attention else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (n, C_in, H, W), e (n, E) -> (n, C_out, H', W')."""
        h = self.conv_0(resampled(silu(self.norm_0(x)), self.resample))
        w = self.affine(e)[:, :, None, None]
        if self.additive:
            h = self.norm_1(h + w)
        else:
            scale, shift = w.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm_1(h), 1 + scale)
        h = self.conv_1(dropout(silu(h), self.dropout, self.training))
        up = self.resample == "up"  # the skip of repeated pixels is the skip repeated, for a quarter of the work
        s = resampled(self.skip(x), "up") if up else self.skip(resampled(x, self.resample))
        y: Tensor = (s + h) * self.factor
        return y if self.attention is None else (y + self.attention(y)) * self.factor


class UnitBlock(nn.Module):
    """A block of edm2: x (n, C_in, H, W), e (n, E) -> (n, C_out, H', W')."""

    def __init__(self, config: UNet, n_in: int, n_out: int, n_e: int, attention: bool, resample: Resample, upward: bool):
        super().__init__()
        self.n_in, self.dropout, self.resample, self.upward = n_in, config.dropout, resample, upward
        self.skip = Layer("edm2", n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.conv_0, self.conv_1 = Layer("edm2", n_in if upward else n_out, n_out, 3), Layer("edm2", n_out, n_out, 3)
        self.affine, self.gain = Layer("edm2", n_e, n_out), nn.Parameter(torch.zeros(()))
        self.attention = Attention("edm2", n_out) if attention else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (n, C_in, H, W), e (n, E) -> (n, C_out, H', W')."""
        norm = ((1 - BALANCE) ** 2 + BALANCE**2) ** 0.5
        keep, add = (1 - BALANCE) / norm, BALANCE / norm
        x = resampled(x, self.resample)
        if not self.upward:
            x = self.skip(x)
            x = x * inverse_rms(x, 1).to(x.dtype)
        h = self.conv_0(silu(x), SILU) * (1 + self.affine(e, self.gain))[:, :, None, None]
        h = self.conv_1(dropout(silu(h), self.dropout, self.training), SILU * add)
        y = torch.add(h, self.skip(x) if self.upward else x, alpha=keep)
        y = y if self.attention is None else torch.add(self.attention(y, add), y, alpha=keep)
        return y.clamp(-CLIP, CLIP)


class Network(nn.Module):
    """The skeleton: x (n, C, H, W), c_noise = ln(sigma) / 4 (n,), labels (n, K), augment (n, A) -> F (n, C, H, W)."""

    def __init__(self, config: UNet, channels: int, sides: list[int], classes: int, augment: int):
        super().__init__()
        style, unit, n = config.style, config.style == "edm2", config.channels
        widths = [n * multiplier for multiplier in config.multipliers]
        attends = [side in config.attention for side in sides]
        n_e = max(widths) if unit else 4 * n
        block = UnitBlock if unit else Block
        self.embedding = Embedding(config, n_e, classes, augment)
        self.first = Layer(style, channels + unit, n, 3)
        self.down, self.up, kept = nn.ModuleList(), nn.ModuleList(), [n]
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(block(config, n, n, n_e, False, "down", False))
                kept.append(n)
            for _ in range(config.blocks):
                self.down.append(block(config, n, width, n_e, attends[level], "", False))
                n = width
                kept.append(n)
        for attention in (any(attends), False):
            self.up.append(block(config, n, n, n_e, attention, "", True))
        for level in reversed(range(len(widths))):
            if level < len(widths) - 1:
                self.up.append(block(config, n, n, n_e, False, "up", True))
            for left in reversed(range(config.blocks + 1)):
                attention = attends[level] and (style != "ddpmpp" or left == 0)
                self.up.append(block(config, n + kept.pop(), widths[level], n_e, attention, "", True))
                n = widths[level]
        self.norm = None if unit else Norm(style, n)
        self.last = Layer(style, n, channels, 3, scale=0.0)
        self.gain = nn.Parameter(torch.zeros(())) if unit else None

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """F. Raises ValueError for labels or augmentations of another shape than the network was built for."""
        with torch.autocast(x.device.type, enabled=False):
            e = self.embedding(c_noise, labels, augment)
        x = self.first(x if self.gain is None else torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        kept = [x]
        for block in self.down:
            x = block(x, e)
            kept.append(x)
        for block in self.up:
            x = block(x if x.shape[1] == block.n_in else beside(x, kept.pop(), self.gain is not None), e)
        out: Tensor = self.last(silu(self.norm(x))) if self.norm is not None else self.last(x, self.gain)
        return out

    def normalise(self) -> None:
        """V of every layer of edm2 to unit entries; to be called after each step of the optimiser. Other styles: nothing."""
        for module in self.modules():
            if isinstance(module, Layer) and module.unit:
                module.normalise()


def resampled(x: Tensor, how: Resample) -> Tensor:
    """Means of 2 x 2 pixels (down), each pixel 2 x 2 times (up), or x."""
    if how == "down":
        return avg_pool2d(x, 2)
    return interpolate(x, scale_factor=2.0, mode="nearest") if how == "up" else x


def inverse_rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """(mean of x^2 over dim)^-1/2 in float32 at least, the axes kept; finite at 0."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x.square().mean(dim, keepdim=True) + EPS["edm2"] ** 2).rsqrt()


def beside(a: Tensor, b: Tensor, unit: bool) -> Tensor:
    """Channels of a, then of b; unit: with equal energy, that of the whole kept."""
    if unit:
        half = 0.5 * (a.shape[1] + b.shape[1])
        a, b = a * (half / a.shape[1]) ** 0.5, b * (half / b.shape[1]) ** 0.5
    return torch.cat([a, b], dim=1)


def divisor(n: int, most: int) -> int:
    """The greatest divisor of n up to `most`; 1 if most is less."""
    return next((k for k in range(most, 1, -1) if n % k == 0), 1)
