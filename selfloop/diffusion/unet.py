"""U-Nets for images, F(x, c_noise, label, augmentation), in three styles that share one skeleton.

    x -> conv -> [down] blocks .. -> two middle blocks -> blocks + 1 .. [up] -> conv -> F

Level i has the side size / 2^i and multipliers[i] x channels channels. Every output on the way down is kept and joined, by
concatenation, to the input of a block on the way up. A block is a residual branch with an embedding e of noise level, label
and augmentation, and where it says so self-attention on its result; a branch that resamples takes means of 2 x 2 pixels or
repeats them. With h = conv_0(silu(norm_0(x))), s the skip (a 1 x 1 convolution where shapes differ) and A = attention:

    ddpmpp  y = (s + conv_1(silu(norm_1(h + W e)))) / 2^1/2        then (y + A(norm y)) / 2^1/2        one head
    adm     y = s + conv_1(silu(norm_1(h) (1 + W e) + W' e))       then y + A(norm y)                  64 channels a head
    edm2    y = sum(s, conv_1(silu(conv_0(silu(s)) (1 + g W e))))  then sum(y, A(y))                   64 channels a head

ddpmpp and adm normalise groups of channels and start at F = 0: the last convolution of every branch and of the network is 0.
edm2 preserves magnitude E[x^2] = 1 instead: no biases, no group norm, and

    W x        W = V / |V| for each output: only the direction of V is learned; a gain g starts at 0 (embeddings, output)
    silu(x)    x sigmoid(x) / .596
    sum(a, b)  ((1 - t) a + t b) / ((1 - t)^2 + t^2)^1/2           t = .3 for residuals and attention, .5 for the embedding
    cat(a, b)  (c / N_a^1/2 a, c / N_b^1/2 b),  c^2 = (N_a + N_b) / 2
    A          queries, keys and values of unit magnitude, so that the logits are cosines x d^1/2
    s          divided by its root mean square over the channels, on the way down; the input has a channel of ones

V is kept at |V|^2 = its length (unit entries, for which EDM2's learning rates are given): the training calls `normalise()`
after each step of the optimiser. That is one pass outside the forward, so it is safe under torch.compile, gradient
accumulation and DDP, where every process does the same to the same weights. F depends on no |V|, so averages need no such call.

Sources: Song et al. (2021) and Karras et al. (2022), ddpmpp; Dhariwal & Nichol (2021), adm; Karras et al. (2024), edm2.
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Lt
from pydantic import Strict
from torch import Tensor, nn
from torch.nn import functional

from selfloop.component import Count, Counts, component

Style = Literal["ddpmpp", "adm", "edm2"]
Resample = Literal["", "down", "up"]
EPS = {"ddpmpp": 1e-6, "adm": 1e-5, "edm2": 1e-4}
HEAD = 64
"""Channels of an attention head in adm and edm2."""
BALANCE = 0.3
CLIP = 256.0
"""edm2: activations are held in [-CLIP, CLIP]."""


@component
class UNet:
    """Shape of a U-Net; `build` makes it.

    channels: of the first convolution; multipliers: of `channels`, one a level; blocks: a level, on the way down; attention:
    sides of the levels whose blocks have self-attention (ddpmpp: on the way up only the last block of the level), () for none;
    with any, the first middle block has it too. dropout: between the convolutions of a block; its masks come from torch's
    global generator, which the training has to seed.
    """

    style: Style = "ddpmpp"
    channels: Count = 128
    multipliers: Counts = (2, 2, 2)
    blocks: Count = 4
    attention: tuple[Count, ...] = (16,)
    dropout: Annotated[float, Strict(), Ge(0), Lt(1)] = 0.0

    def build(self, channels: int, size: int, classes: int | None, augment: int, generator: torch.Generator) -> "Network":
        """A network for images (channels, size, size), with `classes` labels, None for none, and augmentations (n, augment).

        Initial weights come from the generator alone (a CPU one), in the order of the modules, and lie on the CPU.
        Raises ValueError if the side cannot be halved at every level, or for attention on a side that no level has.
        """
        factor = 2 ** (len(self.multipliers) - 1)
        if size % factor:
            most = (size & -size).bit_length()
            raise ValueError(
                f"size must be a multiple of {factor} to be halved between {len(self.multipliers)} levels, got {size}; "
                f"give at most {most} multipliers, or pad the images to {size + -size % factor}"
            )
        sides = [size >> i for i in range(len(self.multipliers))]
        if strange := sorted(set(self.attention) - set(sides)):
            raise ValueError(
                f"attention must be on sides of the levels, {sides}, got {strange}; change it to some of them or ()"
            )
        network = Network(self, channels, sides, classes or 0, augment)
        for module in network.modules():
            if isinstance(module, Layer | Norm | Fourier):
                module.draw(generator)
        return network


class Layer(nn.Module):
    """W x + b: a matrix on the last axis (kernel 0), or a convolution (odd kernel) that keeps the side.

    Initial b = 0; W uniform, with variance 2 / (fan in + fan out) (ddpmpp) or 1 / (3 fan in) (adm), times scale^2;
    edm2: no b, V standard normal.
    """

    def __init__(self, style: Style, n_in: int, n_out: int, kernel: int = 0, bias: bool = True, scale: float = 1.0):
        super().__init__()
        self.unit, self.kernel = style == "edm2", kernel
        self.fan_in, fan_out = n_in * max(kernel, 1) ** 2, n_out * max(kernel, 1) ** 2
        self.bound = scale * (6 / (self.fan_in + fan_out) if style == "ddpmpp" else 1 / self.fan_in) ** 0.5
        self.weight = nn.Parameter(torch.empty(n_out, n_in, *[kernel, kernel][: 2 * bool(kernel)]))
        self.inner = tuple(range(1, self.weight.ndim))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias and not self.unit else None

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        if self.unit:
            self.weight.normal_(generator=generator)
            self.normalise()
        else:
            self.weight.uniform_(-self.bound, self.bound, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    @torch.no_grad()
    def normalise(self) -> None:
        """Unit entries: |V|^2 = fan in for each output."""
        self.weight.copy_(normalised(self.weight, self.inner))

    def forward(self, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
        """x (n, C, H, W), or (.., C) for a matrix; edm2: W = gain V / |V|."""
        weight = self.weight
        if self.unit:
            weight = weight * (gain * self.fan_in**-0.5 * inverse_rms(weight, self.inner))
        if self.kernel:
            return functional.conv2d(x, weight, self.bias, padding=self.kernel // 2)
        return functional.linear(x, weight, self.bias)


class Norm(nn.Module):
    """Group norm: groups of at least four channels, at most 32 groups."""

    def __init__(self, style: Style, n: int):
        super().__init__()
        self.groups, self.eps = divisor(n, min(32, n // 4)), EPS[style]
        self.weight, self.bias = nn.Parameter(torch.empty(n)), nn.Parameter(torch.empty(n))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        self.weight.fill_(1.0)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class Fourier(nn.Module):
    """2^1/2 cos(2 pi (f c + p)) with f ~ N(0, 1) and p ~ U(0, 1) fixed: c (n,) -> (n, N), of unit magnitude."""

    def __init__(self, n: int):
        super().__init__()
        self.register_buffer("frequency", torch.empty(n))
        self.register_buffer("phase", torch.empty(n))
        self.frequency: Tensor
        self.phase: Tensor

    def draw(self, generator: torch.Generator) -> None:
        self.frequency.normal_(generator=generator)
        self.phase.uniform_(generator=generator)

    def forward(self, c: Tensor) -> Tensor:
        turns = c.float()[:, None] * self.frequency.float() + self.phase.float()
        return 2**0.5 * torch.cos(2 * math.pi * turns)


class Uncertainty(nn.Module):
    """u(sigma) of a loss weight exp(-u) err + u, smallest at u = ln E[weight err | sigma]: a learned loss weight, u = 0 at first.

    u = w . f / N^1/2 with f the N = 128 Fourier features of c_noise. Source: Karras et al. (2024), equation 21.
    """

    def __init__(self, generator: torch.Generator, features: int = 128):
        super().__init__()
        self.fourier = Fourier(features)
        self.fourier.draw(generator)
        self.weight = nn.Parameter(torch.zeros(features))

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise (n,) -> u (n,), in float32 also under autocast."""
        return (self.fourier(c_noise) * (self.weight / len(self.weight) ** 0.5)).sum(dim=1)


class Embedding(nn.Module):
    """e (n, E) of noise level, label and augmentation. What is not given counts as zeros.

    ddpmpp  silu(W_2 silu(W_1 (p(c) + W_l K^1/2 label + W_a a)))     p(c) = (cos, sin)(c w), w from 1 to 1e-4
    adm     silu(W_2 silu(W_1 (p(c) + W_a a)) + W_l label)
    edm2    silu(sum(W f(c), W_l K^1/2 label) + g W_a a)             f Fourier features
    """

    def __init__(self, config: UNet, n: int, classes: int, augment: int):
        super().__init__()
        style, base = config.style, config.channels
        self.style, self.classes, self.augment, self.base = style, classes, augment, base
        early = base if style == "ddpmpp" else n
        if style == "edm2":
            self.fourier = Fourier(base)
            self.noise = Layer(style, base, n)
            self.gain = nn.Parameter(torch.zeros(()))
        else:
            self.first, self.second = Layer(style, base, n), Layer(style, n, n)
        self.of_label = Layer(style, classes, early, bias=style == "ddpmpp") if classes else None
        self.of_augment = Layer(style, augment, n if style == "edm2" else base, bias=False) if augment else None

    def forward(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        given = (("labels", labels, self.classes), ("augment", augment, self.augment))
        for name, value, n in given:
            if value is not None and value.shape != (len(c_noise), n):
                raise ValueError(
                    f"{name} must have shape {(len(c_noise), n)}, got {tuple(value.shape)}; build has set its width"
                )
        zeros = c_noise.new_zeros(())
        label = zeros
        if self.of_label is not None:
            marks = c_noise.new_zeros(len(c_noise), self.classes) if labels is None else labels
            label = self.of_label(marks * (1.0 if self.style == "adm" else self.classes**0.5))
        turned = zeros if self.of_augment is None or augment is None else self.of_augment(augment)
        if self.style == "edm2":
            e = self.noise(self.fourier(c_noise))
            e = e if self.of_label is None else unit_sum(e, label, 0.5)
            return unit_silu(e + self.gain * turned)
        half = torch.arange(self.base // 2, device=c_noise.device, dtype=torch.float32)
        angles = c_noise.float()[:, None] * 1e-4 ** (half / max(self.base // 2 - 1, 1))
        e = torch.cat([angles.cos(), angles.sin()], dim=1) + turned
        if self.style == "ddpmpp":
            return functional.silu(self.second(functional.silu(self.first(e + label))))
        return functional.silu(self.second(functional.silu(self.first(e))) + label)


class Attention(nn.Module):
    """Self-attention over the H W positions: P V' with V' = softmax(Q K^T / d^1/2) V; x (n, C, H, W) -> the same shape."""

    def __init__(self, style: Style, n: int):
        super().__init__()
        self.heads = 1 if style == "ddpmpp" else divisor(n, n // HEAD)
        self.unit = style == "edm2"
        self.qkv = Layer(style, n, 3 * n, scale=0.2**0.5 if style == "ddpmpp" else 1.0)
        self.project = Layer(style, n, n, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(x.flatten(2).mT)
        heads = rows.view(*rows.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = normalised(heads, -1) if self.unit else heads
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.project(mixed).mT.reshape(x.shape)


class Block(nn.Module):
    """A residual block of ddpmpp or adm: x (n, C_in, H, W), e (n, E) -> (n, C_out, H', W')."""

    def __init__(self, config: UNet, n_in: int, n_out: int, n_embedding: int, attention: bool, resample: Resample, upward: bool, joins: bool = False):
        super().__init__()
        style = config.style
        self.additive, self.dropout, self.resample, self.joins = style == "ddpmpp", config.dropout, resample, joins
        self.factor = 0.5**0.5 if self.additive else 1.0
        self.norm_0, self.conv_0 = Norm(style, n_in), Layer(style, n_in, n_out, 3)
        self.affine = Layer(style, n_embedding, n_out if self.additive else 2 * n_out)
        self.norm_1, self.conv_1 = Norm(style, n_out), Layer(style, n_out, n_out, 3, scale=0.0)
        changed = n_in != n_out or (self.additive and resample != "")
        self.skip = Layer(style, n_in, n_out, 1) if changed else nn.Identity()
        self.attention = nn.Sequential(Norm(style, n_out), Attention(style, n_out)) if attention else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv_0(resampled(functional.silu(self.norm_0(x)), self.resample))
        w = self.affine(e)[:, :, None, None]
        if self.additive:
            h = self.norm_1(h + w)
        else:
            scale, shift = w.chunk(2, dim=1)
            h = self.norm_1(h) * (1 + scale) + shift
        h = self.conv_1(functional.dropout(functional.silu(h), self.dropout, self.training))
        if self.resample == "up":
            x = resampled(self.skip(x), "up")  # a 1 x 1 convolution and repetition commute
        else:
            x = self.skip(resampled(x, self.resample))
        y = self.factor * (x + h)
        return y if self.attention is None else self.factor * (y + self.attention(y))


class UnitBlock(nn.Module):
    """A block of edm2: x (n, C_in, H, W), e (n, E) -> (n, C_out, H', W')."""

    def __init__(self, config: UNet, n_in: int, n_out: int, n_embedding: int, attention: bool, resample: Resample, upward: bool, joins: bool = False):
        super().__init__()
        self.dropout, self.resample, self.upward, self.joins = config.dropout, resample, upward, joins
        self.skip = Layer("edm2", n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.conv_0, self.conv_1 = Layer("edm2", n_in if upward else n_out, n_out, 3), Layer("edm2", n_out, n_out, 3)
        self.affine, self.gain = Layer("edm2", n_embedding, n_out), nn.Parameter(torch.zeros(()))
        self.attention = Attention("edm2", n_out) if attention else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = resampled(x, self.resample)
        x = x if self.upward else normalised(self.skip(x), 1)
        h = self.conv_0(unit_silu(x))
        h = unit_silu(h * (1 + self.affine(e, self.gain))[:, :, None, None])
        h = self.conv_1(functional.dropout(h, self.dropout, self.training))
        y = unit_sum(self.skip(x) if self.upward else x, h, BALANCE)
        y = y if self.attention is None else unit_sum(y, self.attention(y), BALANCE)
        return y.clamp(-CLIP, CLIP)


class Network(nn.Module):
    """The skeleton: x (n, C, H, W), c_noise = ln(sigma) / 4 (n,), labels (n, K), augmentations (n, A) -> F (n, C, H, W)."""

    def __init__(self, config: UNet, channels: int, sides: list[int], classes: int, augment: int):
        super().__init__()
        style, self.unit = config.style, config.style == "edm2"
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        n_embedding = max(widths) if self.unit else 4 * config.channels
        block = UnitBlock if self.unit else Block
        self.embedding = Embedding(config, n_embedding, classes, augment)
        self.first = Layer(style, channels + self.unit, config.channels, 3)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        n, kept = config.channels, [config.channels]
        for side, width in zip(sides, widths, strict=True):
            attention = side in config.attention
            if side != sides[0]:
                self.down.append(block(config, n, n, n_embedding, False, "down", False))
                kept.append(n)
            for _ in range(config.blocks):
                self.down.append(block(config, n, width, n_embedding, attention, "", False))
                n = width
                kept.append(n)
        for i, (side, width) in enumerate(reversed(list(zip(sides, widths, strict=True)))):
            attention = side in config.attention
            if i == 0:
                self.up.append(block(config, n, n, n_embedding, bool(config.attention), "", True))
                self.up.append(block(config, n, n, n_embedding, False, "", True))
            else:
                self.up.append(block(config, n, n, n_embedding, False, "up", True))
            for j in range(config.blocks + 1):
                here = attention and (style != "ddpmpp" or j == config.blocks)
                self.up.append(block(config, n + kept.pop(), width, n_embedding, here, "", True, True))
                n = width
        self.norm = None if self.unit else Norm(style, n)
        self.last = Layer(style, n, channels, 3, scale=0.0)
        self.gain = nn.Parameter(torch.zeros(())) if self.unit else None

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        e = self.embedding(c_noise, labels, augment)
        if self.unit:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = self.first(x)
        kept = [x]
        for block in self.down:
            x = block(x, e)
            kept.append(x)
        for block in self.up:
            if block.joins:
                x = unit_cat(x, kept.pop()) if self.unit else torch.cat([x, kept.pop()], dim=1)
            x = block(x, e)
        return self.last(x, self.gain) if self.norm is None else self.last(functional.silu(self.norm(x)))

    def normalise(self) -> None:
        """After each step of the optimiser: the weights of edm2 back to unit entries; nothing in the other styles."""
        for module in self.modules():
            if isinstance(module, Layer) and module.unit:
                module.normalise()


def resampled(x: Tensor, how: Resample) -> Tensor:
    """Means of 2 x 2 pixels (down), each pixel 2 x 2 times (up), or x."""
    if how == "down":
        return functional.avg_pool2d(x, 2)
    return functional.interpolate(x, scale_factor=2, mode="nearest") if how == "up" else x


def normalised(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x / (mean of x^2 over dim)^1/2, the mean in float32."""
    return x * inverse_rms(x, dim).to(x.dtype)


def inverse_rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """(mean of x^2 over dim)^-1/2, the axis kept; in float32."""
    return (x.float().square().mean(dim, keepdim=True) + EPS["edm2"] ** 2).rsqrt()


def unit_silu(x: Tensor) -> Tensor:
    """silu(x) / .596: E[y^2] = 1 for x ~ N(0, 1)."""
    return functional.silu(x) / 0.596


def unit_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / ((1 - t)^2 + t^2)^1/2."""
    return torch.lerp(a, b, t) / ((1 - t) ** 2 + t**2) ** 0.5


def unit_cat(a: Tensor, b: Tensor) -> Tensor:
    """a and b beside each other, each with half of the energy, whatever their numbers of channels."""
    half = (a.shape[1] + b.shape[1]) / 2
    return torch.cat([a * (half / a.shape[1]) ** 0.5, b * (half / b.shape[1]) ** 0.5], dim=1)


def divisor(n: int, most: int) -> int:
    """The greatest divisor of n that is at most `most`, or 1."""
    return next((k for k in range(most, 1, -1) if n % k == 0), 1)
