"""U-Nets: published sizes, the formulas of their blocks, and what training relies on."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, group_norm, interpolate, linear, silu

from selfloop.diffusion.unet import CLIP, Attention, Layer, Uncertainty, UNet, beside, divisor

STYLES = ["ddpmpp", "adm", "edm2"]
by_style = pytest.mark.parametrize("style", STYLES)
IMAGENET = {"multipliers": (1, 2, 3, 4), "blocks": 3}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(style, seed=0, classes=3, augment=2, channels=2, size=8, **fields):
    fields = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,), **fields}
    return UNet(style=style, **fields).build(channels, size, classes, augment, seeded(seed))


def shaken(network, amount=0.3, seed=1):
    """The network with noise on every parameter, so that nothing is 0."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))
    return network


def given(n=5, classes=3, augment=2, channels=2, size=8, dtype=torch.float32, seed=2):
    """x, c_noise, labels, augmentations."""
    draw = seeded(seed)
    x, c = torch.randn(n, channels, size, size, generator=draw), torch.randn(n, generator=draw)
    labels, turns = torch.eye(classes)[torch.arange(n) % classes], torch.randn(n, augment, generator=draw)
    return tuple(value.to(dtype) for value in (x, c, labels, turns))


@pytest.mark.parametrize(
    ("count", "within", "config", "images"),
    [
        (55_733_891, 0, {}, (3, 32, None, 9)),
        (55_735_299, 0, {}, (3, 32, 10, 9)),
        (61_805_571, 0, {"multipliers": (1, 2, 2, 2)}, (3, 64, None, 9)),
        (295_899_267, 0, {"style": "adm", "channels": 192, "attention": (32, 16, 8), **IMAGENET}, (3, 64, 1000, 0)),
        (31.3e6, 0.002, {"style": "edm2", "channels": 64, "attention": (16, 8), **IMAGENET}, (4, 64, 1000, 0)),
        (124.7e6, 0.002, {"style": "edm2", "channels": 128, "attention": (16, 8), **IMAGENET}, (4, 64, 1000, 0)),
        (280.2e6, 0.002, {"style": "edm2", "channels": 192, "attention": (16, 8), **IMAGENET}, (4, 64, 1000, 0)),
    ],
    ids=["cifar10", "cifar10_classes", "ffhq64", "imagenet64_adm", "edm2_xxs", "edm2_xs", "edm2_s"],
)
def test_parameters_are_as_many_as_published(count, within, config, images):
    """Exactly where all digits are published; EDM2's sizes are rounded there."""
    with torch.device("meta"):
        network = UNet(**config).build(*images, seeded())
    found = sum(parameter.numel() for parameter in network.parameters())
    assert abs(found - count) <= within * count


@by_style
def test_a_new_network_answers_zero(style):
    assert torch.equal(small(style)(*given()), torch.zeros(5, 2, 8, 8))


@by_style
def test_the_generator_alone_rules_initial_weights_and_nothing_else_is_drawn(style):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = small(style, seed=7).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    again, other = small(style, seed=7).state_dict(), small(style, seed=8).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not torch.equal(one["first.weight"], other["first.weight"])


@by_style
def test_a_state_makes_the_same_network_of_any_other(style):
    network, other = shaken(small(style)).eval(), small(style, seed=9).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(*given()), other(*given()))


@by_style
def test_the_order_of_memory_does_not_matter(style):
    network = shaken(small(style)).eval()
    x, *conditions = given()
    plain = network(x, *conditions)
    last = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), *conditions)
    assert plain.abs().mean() > 0.05
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-4)


@by_style
def test_labels_and_augmentations_not_given_are_zeros_and_others_matter(style):
    network = shaken(small(style))
    x, c, labels, turns = given()
    nothing = network(x, c)
    torch.testing.assert_close(network(x, c, torch.zeros_like(labels), torch.zeros_like(turns)), nothing)
    assert (network(x, c, labels) - nothing).abs().mean() > 1e-4
    assert (network(x, c, None, turns) - nothing).abs().mean() > 1e-4
    assert (network(x, c + 1) - nothing).abs().mean() > 1e-4


@by_style
def test_labels_are_learned_in_a_few_steps(style):
    """Five steps from F = 0 towards the pattern of each class: last layer, last convolutions, embedding, label."""
    network = small(style)
    x, c, labels, turns = given(n=12)
    target = labels @ torch.randn(3, 64, generator=seeded(5))
    target = target.view(12, 1, 8, 8).expand(-1, 2, -1, -1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = (network(x, c, labels, turns) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        network.normalise()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    moved = network(x, c, labels, turns) - network(x, c, labels.roll(1, dims=1), turns)
    assert moved.abs().mean() > 0.01


@by_style
@pytest.mark.parametrize("augment", [0, 2])
def test_every_parameter_has_a_gradient_whatever_is_given(style, augment):
    """As DDP asks."""
    network = shaken(small(style, augment=augment))
    network(*given()[:2]).square().sum().backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


@by_style
def test_gradients_are_those_of_finite_differences(style):
    network = shaken(small(style, channels=1, size=4, multipliers=(1, 2), attention=(2,)), 0.2).double()
    x, *conditions = given(n=2, channels=1, size=4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: network(x, *conditions), x.requires_grad_(), fast_mode=True)
    names = ["first.weight", "up.0.conv_1.weight", "embedding.of_label.weight"]
    values = [dict(network.named_parameters())[name].detach().clone().requires_grad_() for name in names]

    def answer(*values):
        return torch.func.functional_call(network, dict(zip(names, values, strict=True)), (x.detach(), *conditions))

    assert torch.autograd.gradcheck(answer, values, fast_mode=True)


@by_style
def test_bfloat16_differs_by_its_rounding(style):
    """2^-8 for a number: relative error of the whole, root mean square, below 5 %; gradients are float32."""
    network = shaken(small(style), 0.1)
    exact = network(*given())
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(*given())
    assert 0 < (rough.float() - exact).square().mean() < 0.05**2 * exact.square().mean()
    rough.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())


@by_style
def test_noise_levels_are_embedded_in_float32_under_autocast(style):
    """Levels that bfloat16 cannot tell apart have embeddings that differ before the first matrix."""
    network, seen = small(style), []
    network.embedding.first.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        network(given(n=2)[0], torch.tensor([1.0, 1.001]))
    assert seen[0].dtype == torch.float32
    assert (seen[0][0] - seen[0][1]).abs().max() > 1e-4


@by_style
def test_dropout_acts_in_training_only(style):
    network, plain = shaken(small(style, dropout=0.5)), shaken(small(style))
    torch.manual_seed(0)
    assert not torch.equal(network(*given()), network(*given()))
    assert torch.equal(network.eval()(*given()), plain.eval()(*given()))


@by_style
def test_the_embedding_is_its_formula(style):
    embedding = shaken(small(style).embedding)
    _, c, labels, turns = given()

    def by(layer, x):
        weight = layer.weight / layer.weight.norm(dim=1, keepdim=True) if style == "edm2" else layer.weight
        return linear(x, weight, layer.bias)

    label, turn = by(embedding.of_label, labels * (1 if style == "adm" else 3**0.5)), by(embedding.of_augment, turns)
    if style == "edm2":
        fourier = embedding.fourier
        waves = 2**0.5 * (2 * math.pi * (c[:, None] * fourier.frequency + fourier.phase)).cos()
        expected = silu((by(embedding.first, waves) + label) / 2**0.5 + embedding.gain * turn) / 0.596
    else:
        angles = c[:, None] * 1e-4 ** (torch.arange(8) / 7)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        early, late = (label, 0) if style == "ddpmpp" else (0, label)
        expected = silu(by(embedding.second, silu(by(embedding.first, waves + early + turn))) + late)
    torch.testing.assert_close(embedding(c, labels, turns), expected, rtol=1e-4, atol=1e-4)


def repeated(x):
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def halved(x):
    return interpolate(x, scale_factor=0.5, mode="area")


@pytest.mark.parametrize(
    ("part", "index", "resample"), [("down", 0, "same"), ("down", 1, "down"), ("up", 4, "up"), ("up", 5, "same")]
)
@pytest.mark.parametrize("style", ["ddpmpp", "adm"])
def test_a_block_is_its_formula(style, part, index, resample):
    block = shaken(small(style, attention=()))
    block = getattr(block, part)[index]
    how = {"same": lambda x: x, "down": halved, "up": repeated}[resample]
    x, e = torch.randn(3, block.n_in, 4, 4, generator=seeded()), torch.randn(3, 64, generator=seeded(1))
    eps = 1e-6 if style == "ddpmpp" else 1e-5

    def norm(layer, x):
        return group_norm(x, x.shape[1] // 4, layer.weight, layer.bias, eps)

    def conv(layer, x):
        return conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    h = conv(block.conv_0, how(silu(norm(block.norm_0, x))))
    w = linear(e, block.affine.weight, block.affine.bias)[:, :, None, None]
    skip = how(x) if isinstance(block.skip, nn.Identity) else conv(block.skip, how(x))
    if style == "ddpmpp":
        expected = (skip + conv(block.conv_1, silu(norm(block.norm_1, h + w)))) / 2**0.5
    else:
        n = h.shape[1]
        expected = skip + conv(block.conv_1, silu(norm(block.norm_1, h) * (1 + w[:, :n]) + w[:, n:]))
    assert (resample == "same") == (h.shape[-1] == 4)
    torch.testing.assert_close(block(x, e), expected, rtol=1e-4, atol=1e-4)


def mixed(a, b, t=0.3):
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


@pytest.mark.parametrize(("part", "index"), [("down", 1), ("down", 2), ("up", 4), ("up", 5)])
def test_a_block_of_edm2_is_its_formula(part, index):
    network = shaken(small("edm2", attention=()))
    block = getattr(network, part)[index]
    how = {"": lambda x: x, "down": halved, "up": repeated}[block.resample]
    x, e = torch.randn(3, block.n_in, 4, 4, generator=seeded()), torch.randn(3, 32, generator=seeded(1))

    def unit(layer):
        return layer.weight / layer.weight.flatten(1).norm(dim=1).view(-1, *[1] * (layer.weight.ndim - 1))

    def conv(layer, x):
        return x if isinstance(layer, nn.Identity) else conv2d(x, unit(layer), padding=layer.weight.shape[-1] // 2)

    s = how(x)
    if part == "down":
        s = conv(block.skip, s)
        s = s / s.square().mean(dim=1, keepdim=True).sqrt()
    h = conv(block.conv_0, silu(s) / 0.596) * (1 + block.gain * linear(e, unit(block.affine)))[:, :, None, None]
    h = conv(block.conv_1, silu(h) / 0.596)
    torch.testing.assert_close(block(x, e), mixed(s if part == "down" else conv(block.skip, s), h), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("style", "heads"), [("ddpmpp", 1), ("adm", 2), ("edm2", 2)])
def test_attention_is_its_formula(style, heads):
    layer = Attention(style, 128)
    for part in (layer.qkv, layer.project):
        part.draw(seeded(3))
    shaken(layer)
    x = torch.randn(2, 128, 3, 3, generator=seeded())

    def weight(part):
        return part.weight / part.weight.norm(dim=1, keepdim=True) if style == "edm2" else part.weight

    rows = linear(x.flatten(2).mT, weight(layer.qkv), layer.qkv.bias).view(2, 9, 3, heads, 128 // heads)
    q, k, v = rows / rows.square().mean(dim=-1, keepdim=True).sqrt() if style == "edm2" else rows, None, None
    q, k, v = q.unbind(dim=2)
    shares = torch.einsum("nqhd,nkhd->nhqk", q, k).div((128 // heads) ** 0.5).softmax(dim=-1)
    out = linear(torch.einsum("nhqk,nkhd->nqhd", shares, v).flatten(2), weight(layer.project), layer.project.bias)
    torch.testing.assert_close(layer(x), out.mT.reshape(x.shape), rtol=1e-4, atol=1e-4)


def test_attention_is_where_it_is_asked_for():
    """ddpmpp: all blocks of the level on the way down, the last on the way up; adm and edm2: all; and one middle block."""
    for style, up in (("ddpmpp", [0, 4]), ("adm", [0, 2, 3, 4]), ("edm2", [0, 2, 3, 4])):
        network = small(style, blocks=2)
        assert [i for i, block in enumerate(network.down) if block.attention is not None] == [3, 4]
        assert [i for i, block in enumerate(network.up) if block.attention is not None] == up
        assert not [block for block in small(style, attention=()).up if block.attention is not None]


def test_normalising_gives_unit_entries_and_changes_no_answer():
    network = shaken(small("edm2"), 0.5)
    before = network(*given())
    network.normalise()
    layers = [module for module in network.modules() if isinstance(module, Layer)]
    assert len(layers) > 20
    for layer in layers:
        rows = layer.weight.flatten(1)
        torch.testing.assert_close(rows.norm(dim=1), torch.full((len(rows),), layer.fan_in**0.5), rtol=1e-6, atol=0)
    torch.testing.assert_close(network(*given()), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("style", ["ddpmpp", "adm"])
def test_normalising_changes_nothing_in_the_other_styles(style):
    network = small(style)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.normalise()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_edm2_preserves_magnitude():
    """Root mean squares of the embedding and of all blocks of a new network are 1 to 25 %; the zeros at edges take some."""
    network = UNet(style="edm2", channels=64, multipliers=(1, 2), blocks=2, attention=(8, 4)).build(1, 8, 3, 0, seeded(1))
    sizes = []
    for part in [network.embedding, *network.down, *network.up]:
        part.register_forward_hook(lambda part, args, out: sizes.append(float(out.detach().square().mean().sqrt())))
    network(*given(n=64, channels=1)[:3])
    assert len(sizes) == 1 + 5 + 9
    assert 0.75 < min(sizes) <= max(sizes) < 1.25


def test_edm2_holds_activations_within_its_clip():
    network = small("edm2")
    large = network.up[1](1e4 * torch.randn(2, 32, 4, 4, generator=seeded()), torch.zeros(2, 32))
    assert float(large.detach().abs().max()) == CLIP


def test_what_is_put_beside_each_other_has_equal_energy_in_edm2():
    """For parts of unit magnitude with 3 and 5 channels, constant so that nothing is random."""
    both = beside(torch.ones(1, 3, 2, 2), torch.ones(1, 5, 2, 2), unit=True)
    energy = both.square().sum(dim=(0, 2, 3))
    assert float(energy[:3].sum()) == pytest.approx(float(energy[3:].sum()))
    assert float(both.square().mean()) == pytest.approx(1.0)
    assert torch.equal(
        beside(torch.ones(1, 3, 2, 2), torch.zeros(1, 5, 2, 2), unit=False).mean(dim=(0, 2, 3)), torch.eye(8)[:3].sum(0)
    )


@pytest.mark.parametrize(("n", "most", "expected"), [(128, 32, 32), (36, 9, 9), (33, 8, 3), (7, 1, 1), (7, 0, 1), (130, 2, 2)])
def test_divisor_is_the_greatest_allowed(n, most, expected):
    assert divisor(n, most) == expected


@by_style
def test_widths_that_are_not_round_build_and_answer(style):
    network = shaken(small(style, channels=3, **{"multipliers": (1, 3)}), 0.1)
    odd = shaken(UNet(style=style, channels=9, multipliers=(1, 3), blocks=1, attention=(4, 8)).build(3, 8, None, 0, seeded()))
    for net in (network, odd):
        assert torch.isfinite(net(*given(channels=3)[:2])).all()


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"multipliers": (1, 1, 1)}, 14, r"multiple of 4 .* got 14; use at most 2 multipliers, or pad the images to 16"),
        ({"attention": (16, 4)}, 8, r"\[8, 4\], or \(\), got \[16\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(fields, size, message):
    with pytest.raises(ValueError, match=message):
        small("ddpmpp", size=size, **fields)


@by_style
def test_conditions_of_another_shape_are_refused(style):
    x, c, labels, turns = given()
    network = small(style)
    for name, conditions in (("labels", (labels[:, :2], turns)), ("augment", (labels, turns[:3]))):
        with pytest.raises(ValueError, match=f"{name} must be of shape"):
            network(x, c, *conditions)
    with pytest.raises(ValueError, match=r"labels must be of shape \(5, 0\)"):
        small(style, classes=None)(x, c, labels)


def test_uncertainty_learns_the_logarithm_of_the_loss():
    """exp(-u) err + u is least at u = ln err; err = exp(sin 3c) at 64 levels, full batches, to .02; u = 0 at first."""
    torch.manual_seed(0)
    uncertainty = Uncertainty(seeded())
    c = torch.linspace(-1.5, 1.1, 64)
    assert torch.equal(uncertainty(c), torch.zeros(64))
    error = (3 * c).sin().exp()
    optimiser = torch.optim.LBFGS(uncertainty.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        u = uncertainty(c)
        total = ((-u).exp() * error + u).mean()
        total.backward()
        return total

    optimiser.step(loss)
    torch.testing.assert_close(uncertainty(c), error.log(), rtol=0, atol=0.02)
