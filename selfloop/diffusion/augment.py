"""Non-leaking augmentation: images are moved, the network is told how, and asked at sampling for images that are not moved.

    transform      condition (entries)                  drawn as
    xflip, yflip   s in {0, 1}                          half of the images where it acts
    scale          log2 of the factor (1)               N(0, 1) times `scale`
    rotate         cos a - 1, sin a (2)                 a uniform on the circle times `rotate`
    anisotropy     log2 r (cos 2b, sin 2b) (2)          log2 r ~ N(0, 1) times `anisotropy`, b uniform on the circle
    translate      shift / side (2)                     N(0, 1)^2 times `translate`

Each acts on an image with `probability`, by itself, but xflip, which acts on all unless that is 0; a strength of 0 leaves its
transform out. After the flips the others are one affine map about the centre, with R the rotation by a, S the map that
stretches by r along the direction b and by 1 / r across it, and f the factor:

    y(p) = x(R^-1 S^-1 (p - shift) / f)

read by bilinear interpolation, reflected at the edges. There is no other filter: images shrink by tenths of an octave, which
aliases little, and the network is told. The condition determines the map; with b in the place of 2b it would not, as stretching
along b is shrinking along b + pi / 2. It is exactly 0 where nothing was done. Such images come back bit for bit, and so do
those that are only flipped.

Source: Karras et al. (2020), "Training Generative Adversarial Networks with Limited Data", for the transforms; Karras et al.
(2022), appendix F.2, for diffusion models and the strengths.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from selfloop.component import Fraction, NonNegative, Switch, component


@component
class Augment:
    """How images are augmented in training; see the module for the transforms.

    probability: of each transform but xflip, which half of the images get; xflip, yflip: whether images may be flipped (digits
    and letters may not); scale, anisotropy: standard deviation of log2 of a factor; rotate: share of the full circle;
    translate: standard deviation of the shift, in sides of the image.
    """

    probability: Fraction = 0.12
    xflip: Switch = True
    yflip: Switch = True
    scale: NonNegative = 0.2
    rotate: Fraction = 1.0
    anisotropy: NonNegative = 0.2
    translate: NonNegative = 0.125

    @property
    def dimension(self) -> int:
        """Entries of the condition."""
        return 9

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(images, condition): images (n, C, H, W) of floats -> the same, moved, and (n, 9), what was done to each."""
        where: Any = {"generator": generator, "device": images.device}
        n = len(images)
        chance, normal, uniform = torch.rand((6, n), **where), torch.randn((4, n), **where), torch.rand((3, n), **where)
        acts = (chance < self.probability).float()
        xflip = (chance[0] < (0.5 if self.probability > 0 else 0.0)).float() * self.xflip
        yflip = acts[1] * (uniform[0] < 0.5) * self.yflip
        log_scale = acts[2] * normal[0] * self.scale
        angle = acts[3] * (2 * uniform[1] - 1) * math.pi * self.rotate
        log_ratio, axis = acts[4] * normal[1] * self.anisotropy, 2 * math.pi * uniform[2]
        shift = acts[5] * normal[2:] * self.translate
        turn = [angle.cos() - 1, angle.sin(), log_ratio * (2 * axis).cos(), log_ratio * (2 * axis).sin()]
        condition = torch.stack([xflip, yflip, log_scale, *turn, *shift], dim=1)
        flipped = torch.where(xflip.bool()[:, None, None, None], images.flip(3), images)
        flipped = torch.where(yflip.bool()[:, None, None, None], flipped.flip(2), flipped)
        inverse = _rotation(-angle) @ _stretched(-log_ratio, axis) * (2.0**-log_scale)[:, None, None]
        theta = torch.cat([inverse, -2 * inverse @ shift.T[:, :, None]], dim=2).to(images.dtype)
        grid = affine_grid(theta, list(images.shape), align_corners=False)
        moved = grid_sample(flipped, grid, "bilinear", "reflection", align_corners=False)
        still = (condition[:, 2:] == 0).all(dim=1)
        return torch.where(still[:, None, None, None], flipped, moved), condition


def _rotation(angle: Tensor) -> Tensor:
    """Rotations (n, 2, 2)."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], dim=-1), torch.stack([s, c], dim=-1)], dim=-2)


def _stretched(log_ratio: Tensor, axis: Tensor) -> Tensor:
    """Maps (n, 2, 2) that stretch by 2^log_ratio along an axis and by 2^-log_ratio across it."""
    turn = _rotation(axis)
    return turn @ torch.diag_embed(2.0 ** torch.stack([log_ratio, -log_ratio], dim=-1)) @ turn.mT
