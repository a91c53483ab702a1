"""Augmentation: what was done is what the network is told, and where nothing was done nothing changes."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from selfloop.diffusion.augment import Augment

OFF = {"xflip": False, "yflip": False, "scale": 0.0, "rotate": 0.0, "anisotropy": 0.0, "translate": 0.0}
ENTRIES = {"xflip": [0], "yflip": [1], "scale": [2], "rotate": [3, 4], "anisotropy": [5, 6], "translate": [7, 8]}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=64, channels=2, side=6):
    return torch.randn(n, channels, side, side, generator=seeded(9))


def only(**fields):
    return Augment(**{**OFF, **fields})


def test_probability_zero_changes_nothing():
    images, condition = Augment(probability=0.0)(pictures(), seeded())
    assert torch.equal(images, pictures())
    assert not condition.any()


def test_the_condition_is_zero_exactly_where_images_are_untouched():
    images, condition = Augment(probability=0.2)(pictures(400), seeded())
    untouched = (images == pictures(400)).all(dim=(1, 2, 3))
    assert condition.shape == (400, Augment().dimension)
    assert torch.equal(untouched, (condition == 0).all(dim=1))
    assert 0 < untouched.sum() < 400


def test_images_that_are_only_flipped_are_flipped_bit_for_bit():
    images, condition = Augment(probability=0.2)(pictures(400), seeded())
    seen = set()
    for image, given, moved in zip(pictures(400), condition, images, strict=True):
        if not given[2:].any():
            x, y = bool(given[0]), bool(given[1])
            seen.add((x, y))
            assert torch.equal(moved, image.flip([axis for axis, on in ((2, x), (1, y)) if on]))
    assert seen == {(False, False), (True, False), (False, True), (True, True)}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_transform_has_its_entries_to_itself(name):
    """The others are off, so their entries are 0; and off, its own are."""
    full = {"xflip": True, "yflip": True, "scale": 0.2, "rotate": 1.0, "anisotropy": 0.2, "translate": 0.125}
    condition = only(probability=1.0, **{name: full[name]})(pictures(), seeded())[1]
    assert condition.any(dim=0).nonzero().flatten().tolist() == ENTRIES[name]
    without = Augment(probability=1.0, **{name: OFF[name]})(pictures(), seeded())[1]
    assert (~without.any(dim=0)).nonzero().flatten().tolist() == ENTRIES[name]


@pytest.mark.parametrize(
    "fields",
    [*({name: value} for name, value in {"scale": 0.5, "rotate": 1.0, "anisotropy": 0.5, "translate": 0.2}.items()), {}],
)
def test_images_are_moved_as_the_condition_says(fields):
    """Against scipy's bilinear interpolation of the reflected image at the points of the condition; one transform, or all."""
    augment = only(probability=1.0, **fields) if fields else Augment(probability=1.0)
    given = pictures(16)
    images, condition = augment(given, seeded(1))
    side = given.shape[-1]
    centre = (side - 1) / 2
    row, column = np.meshgrid(np.arange(side) - centre, np.arange(side) - centre, indexing="ij")
    for image, told, moved in zip(given.numpy().astype(float), condition.numpy().astype(float), images.numpy(), strict=True):
        if told[0]:
            image = image[:, :, ::-1]
        if told[1]:
            image = image[:, ::-1]
        cos, sin = told[3] + 1, told[4]
        ratio, b = np.hypot(told[5], told[6]), np.arctan2(told[6], told[5]) / 2
        along = np.array([np.cos(b), np.sin(b)])
        squeeze = 2**ratio * np.eye(2) + (2**-ratio - 2**ratio) * np.outer(along, along)
        x, y = column - side * told[7], row - side * told[8]
        x, y = np.tensordot(np.array([[cos, sin], [-sin, cos]]) @ squeeze / 2 ** told[2], np.stack([x, y]), axes=1)
        expected = [map_coordinates(channel, [y + centre, x + centre], order=1, mode="reflect") for channel in image]
        np.testing.assert_allclose(moved, expected, atol=2e-5)


def test_transforms_act_as_often_as_they_should():
    """Shares of 20 000 images within 4 standard errors: p, yflip p / 2, xflip 1/2, nothing (1 - p)^4 (1 - p / 2) / 2."""
    n, p = 20_000, 0.12
    condition = Augment(probability=p)(torch.zeros(n, 1, 1, 1), seeded())[1]
    on = {name: condition[:, entries].any(dim=1) for name, entries in ENTRIES.items()}
    expected = {"xflip": 0.5, "yflip": p / 2, "scale": p, "rotate": p, "anisotropy": p, "translate": p}
    shares = {name: (float(on[name].float().mean()), share) for name, share in expected.items()}
    shares["nothing"] = (float((~condition.any(dim=1)).float().mean()), 0.5 * (1 - p / 2) * (1 - p) ** 4)
    for name, (found, share) in shares.items():
        assert abs(found - share) < 4 * math.sqrt(share * (1 - share) / n), name
    together = float((on["yflip"] & on["rotate"]).float().mean())
    assert abs(together - p * p / 2) < 4 * math.sqrt(p * p / 2 / n)


def test_strengths_are_standard_deviations():
    """Of 20 000 images within 4 standard errors, s / (2 n)^1/2 for s; angles are uniform, so that E cos^2 a = 1/2."""
    n = 20_000
    condition = Augment(probability=1.0)(torch.zeros(n, 1, 1, 1), seeded())[1].double()
    for entry, s in ((2, 0.2), (7, 0.125), (8, 0.125)):
        assert abs(float(condition[:, entry].std()) - s) < 4 * s / math.sqrt(2 * n)
    log_ratio = condition[:, 5:7].norm(dim=1)
    assert abs(float(log_ratio.square().mean().sqrt()) - 0.2) < 4 * 0.2 / math.sqrt(2 * n)
    cos, sin = condition[:, 3] + 1, condition[:, 4]
    torch.testing.assert_close(cos**2 + sin**2, torch.ones(n).double(), atol=1e-6, rtol=0)
    for mean in (cos.mean(), sin.mean()):
        assert abs(float(mean)) < 4 * math.sqrt(0.5 / n)
    assert abs(float((cos**2).mean()) - 0.5) < 4 * math.sqrt(0.125 / n)


def test_rotate_is_the_share_of_the_circle():
    condition = only(probability=1.0, rotate=0.25)(pictures(2000), seeded())[1]
    angles = torch.atan2(condition[:, 4], condition[:, 3] + 1).abs()
    assert 0.24 * math.pi < float(angles.max()) <= 0.25 * math.pi + 1e-6


def test_the_generator_alone_rules_and_a_strength_moves_no_other_draw():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = Augment(probability=0.5)(pictures(), seeded(3))
    again = Augment(probability=0.5)(pictures(), seeded(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[1], Augment(probability=0.5)(pictures(), seeded(4))[1])
    other = Augment(probability=0.5, scale=0.0, yflip=False)(pictures(), seeded(3))[1]
    assert torch.equal(other[:, [0, 3, 4, 5, 6, 7, 8]], one[1][:, [0, 3, 4, 5, 6, 7, 8]])


def test_images_are_not_written_to():
    images = pictures()
    Augment(probability=1.0)(images, seeded())
    assert torch.equal(images, pictures())
