"""The network takes any tile, drops out where it is told to, and normalises what it is given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glacier_core.model.unet import Architecture, Normalise, UNet, class_logits, folded

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"blocks": "residual"},
    "attention": {"attention": True},
    "binary": {"heads": "binary"},
    "all": {"blocks": "residual", "attention": True, "heads": "binary"},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def architecture(**changes: Any) -> Architecture:
    usual = {
        "depth": 2,
        "base_channels": 4,
        "dropout": 0.5,
        "dropout_at": "deep",
        "spatial_dropout": False,
        "normalisation": "batch",
    }
    return Architecture(**(usual | changes))


def network(inputs: int = 3, outputs: int = 3, **changes: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(inputs, outputs, architecture(**changes))


def pixels(batch: int, height: int, width: int, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(
        batch, channels, height, width, generator=torch.Generator().manual_seed(seed)
    )


# --- sizes -----------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 37),
    width=st.integers(1, 37),
    depth=st.integers(1, 4),
    outputs=st.integers(2, 4),
    coarsening=st.integers(1, 3),
    base=st.integers(1, 3),
    variant=st.sampled_from(list(VARIANTS.values())),
)
def test_logits_have_the_size_of_the_tile_whatever_it_is(
    batch: int,
    height: int,
    width: int,
    depth: int,
    outputs: int,
    coarsening: int,
    base: int,
    variant: dict[str, Any],
) -> None:
    shape = {"depth": depth, "base_channels": base, "coarsening": coarsening}
    net = network(outputs=outputs, **shape, **variant).eval()
    logits = net(pixels(batch, height, width))
    assert logits.shape == (batch, outputs, height, width)
    assert torch.isfinite(logits).all()


@each_variant
@pytest.mark.parametrize("size", [(32, 32), (31, 45), (3, 5), (1, 1)])
def test_a_tile_in_a_batch_gets_what_it_gets_alone(
    size: tuple[int, int], variant: dict[str, Any]
) -> None:
    net = network(depth=3, **variant).eval()
    x = pixels(3, *size)
    together = net(x)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], net(x[i : i + 1]), atol=1e-5, rtol=1e-5)


def test_a_size_that_needs_padding_repeats_the_edge_and_is_cropped() -> None:
    net = network(depth=3).eval()
    x = pixels(1, 13, 22)
    padded = nn.functional.pad(x, (0, 2, 0, 3), mode="replicate")
    torch.testing.assert_close(net(x), net(padded)[..., :13, :22])


def test_output_stays_where_the_input_is() -> None:
    """A change of one pixel changes logits around it, and none far from it."""
    net = network(depth=2, dropout=0.0, normalisation="none").eval()
    x = pixels(1, 96, 160)
    changed = x.clone()
    changed[..., 20, 130] += 5
    difference = (net(changed) - net(x)).abs().sum(dim=(0, 1))
    rows, cols = torch.nonzero(difference > 1e-6, as_tuple=True)
    assert 20 in rows
    assert 130 in cols
    assert rows.max() < 20 + 40
    assert cols.min() > 130 - 40


# --- the numbers of params.yaml --------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_is_the_number_of_halvings_and_doublings(depth: int, variant: dict[str, Any]) -> None:
    net = network(depth=depth, **variant).eval()
    seen: list[tuple[int, int]] = []
    for block in [*net.down, *net.merge]:
        block.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[-2:])))
    net(pixels(1, 64, 48))
    down = [(64 // 2**i, 48 // 2**i) for i in range(depth + 1)]
    assert seen == [*down, *reversed(down[:-1])]


@pytest.mark.parametrize("coarsening", [2, 3])
def test_a_coarse_network_looks_at_means_and_says_what_lies_between(coarsening: int) -> None:
    fine, net = network(), network(coarsening=coarsening)
    net.load_state_dict(fine.state_dict())  # the same weights whatever the resolution
    fine.eval(), net.eval()
    assert net.multiple == coarsening * fine.multiple
    small = pixels(1, 16, 24)
    large = small.repeat_interleave(coarsening, -1).repeat_interleave(coarsening, -2)
    said = fine(small)
    between = nn.functional.interpolate(said, scale_factor=coarsening, mode="bilinear")
    torch.testing.assert_close(net(large), between, atol=1e-5, rtol=1e-5)
    # Where it stands is where it stood: the middle of a coarse pixel is that pixel's answer.
    if coarsening == 3:
        torch.testing.assert_close(net(large)[..., 1::3, 1::3], said, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", [3, 8])
def test_channels_start_at_base_and_double_at_each_halving(base: int) -> None:
    net = network(depth=3, base_channels=base).eval()
    seen: list[int] = []
    for block in net.down:
        block.register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    net(pixels(1, 16, 16))
    assert seen == [base, 2 * base, 4 * base, 8 * base]


def dropouts_by_resolution(net: UNet, size: int = 64) -> list[tuple[str, int]]:
    """Kind of every dropout layer that runs, and how often the resolution was halved there."""
    seen: list[tuple[str, int]] = []
    for layer in net.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
            layer.register_forward_hook(
                lambda layer, _, out: seen.append(
                    (type(layer).__name__, round(math.log2(size / out.shape[-1])))
                )
            )
    net(pixels(2, size, size))
    return seen


@each_variant
def test_dropout_everywhere_follows_each_of_the_two_convolutions_of_every_block(
    variant: dict[str, Any],
) -> None:
    seen = dropouts_by_resolution(network(depth=3, dropout_at="all", **variant))
    levels = [0, 1, 2, 3, 2, 1, 0]
    assert seen == [("Dropout", level) for level in levels for _ in range(2)]


@pytest.mark.parametrize(("depth", "levels"), [(4, [2, 3, 4, 3, 2]), (3, [2, 3, 2]), (1, [1])])
def test_deep_dropout_is_in_the_lower_half_only(depth: int, levels: list[int]) -> None:
    seen = dropouts_by_resolution(network(depth=depth, dropout_at="deep"))
    assert seen == [("Dropout", level) for level in levels]


@pytest.mark.parametrize("rate", [0.2, 0.7])
@pytest.mark.parametrize("at", ["deep", "all"])
def test_dropout_drops_at_its_rate_single_values(at: str, rate: float) -> None:
    net = network(dropout=rate, dropout_at=at).train()
    x = torch.ones(4, 16, 32, 32)
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            dropped = layer(x) == 0
            assert dropped.float().mean().item() == pytest.approx(rate, abs=0.02)
            by_channel = dropped.float().mean(dim=(2, 3))
            assert ((by_channel > 0) & (by_channel < 1)).all()


def test_spatial_dropout_drops_whole_channels() -> None:
    net = network(spatial_dropout=True, dropout=0.5).train()
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Dropout2d)]
    assert layers
    assert not any(type(layer) is nn.Dropout for layer in net.modules())
    share = (layers[0](torch.ones(8, 64, 8, 8)) == 0).float().mean(dim=(2, 3))
    assert set(share.unique().tolist()) == {0.0, 1.0}
    assert share.mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("spatial", [False, True])
def test_dropout_is_random_in_training_and_off_in_use(spatial: bool) -> None:
    net = network(spatial_dropout=spatial, dropout_at="all", normalisation="none")
    x = pixels(1, 32, 32)
    net.train()
    assert not torch.equal(net(x), net(x))
    net.eval()
    torch.testing.assert_close(net(x), net(x), atol=0, rtol=0)


def test_dropout_rate_does_not_matter_in_use() -> None:
    x = pixels(1, 16, 16)
    outputs = [network(dropout=rate, dropout_at="all").eval()(x) for rate in (0.0, 0.9)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=0, rtol=0)


def test_dropout_of_zero_changes_nothing_in_training() -> None:
    net = network(dropout=0.0, dropout_at="all", normalisation="none").train()
    x = pixels(1, 16, 16)
    torch.testing.assert_close(net(x), net(x), atol=0, rtol=0)


@pytest.mark.parametrize(("name", "expected"), [("batch", True), ("none", False)])
def test_batch_normalisation_is_there_when_chosen(name: str, expected: bool) -> None:
    net = network(normalisation=name)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert bool(layers) is expected
    x = pixels(2, 16, 16)
    net = net.train()
    torch.manual_seed(1)
    small = net(x).std().item()
    torch.manual_seed(1)
    unmoved = net(1000 * x).std().item() < 2 * small
    assert unmoved is expected


@each_variant
def test_every_weight_gets_a_gradient(variant: dict[str, Any]) -> None:
    net = network(depth=3, dropout=0.0, **variant)
    net(pixels(2, 32, 32)).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


# --- variants --------------------------------------------------------------------------------


def test_the_plain_network_has_the_weights_that_models_of_before_have() -> None:
    names = set(network(depth=1, normalisation="none").state_dict())
    blocks = [f"{block}.{layer}" for block in ("down.0", "down.1", "merge.0") for layer in (0, 2)]
    # After the second ReLU of the lower blocks stands their dropout, which has no weights.
    layers = [*blocks, "up.0", "head"]
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_a_residual_block_adds_what_it_gets(normalisation: str) -> None:
    """With nothing made of it, what it gets goes through: as it is, or by its convolution 1 x 1."""
    net = network(3, base_channels=3, blocks="residual", normalisation=normalisation).eval()
    same, wider = net.down[0], net.down[1]
    for block in (same, wider):
        last = [layer for layer in block.body if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d))]
        for weight in last[-1].parameters():
            nn.init.zeros_(weight)
    x = pixels(2, 8, 6)
    torch.testing.assert_close(same(x), x.relu())
    torch.testing.assert_close(wider(x), wider.shortcut(x).relu())
    assert wider.shortcut[0].kernel_size == (1, 1)
    assert wider(x).std() > 0.01


def test_residual_blocks_are_not_the_plain_ones() -> None:
    plain, residual = network().eval(), network(blocks="residual").eval()
    x = pixels(1, 16, 16)
    assert not torch.allclose(plain(x), residual(x), atol=1e-3)


def test_an_open_gate_lets_all_across_and_a_closed_one_nothing() -> None:
    plain, gated = network(depth=2).eval(), network(depth=2, attention=True).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert {name for name in gated.state_dict() if name not in plain.state_dict()} == {
        f"gates.{i}.{name}" for i in (0, 1)
        for name in ("across.weight", "below.weight", "below.bias", "weight.weight", "weight.bias")
    }  # fmt: skip
    x = pixels(1, 19, 16)
    half_open = gated(x)
    for gate in gated.gates:
        nn.init.constant_(gate.weight.bias, 100.0)
    torch.testing.assert_close(gated(x), plain(x))
    assert not torch.allclose(half_open, plain(x), atol=1e-3)
    passed: list[Tensor] = []
    for gate in gated.gates:
        nn.init.constant_(gate.weight.bias, -200.0)
        gate.register_forward_hook(lambda _, __, out: passed.append(out))
    gated(x)
    assert [out.abs().max().item() for out in passed] == [0.0, 0.0]


def test_a_gate_weighs_by_what_goes_across_and_by_what_is_below() -> None:
    gate = network(attention=True).gates[1]
    across, below = pixels(1, 8, 8, 4), pixels(1, 4, 4, 8, seed=2)
    weight = gate(across, below) / across
    assert ((weight > 0) & (weight < 1)).all()
    torch.testing.assert_close(weight, weight[:, :1].expand_as(weight))  # one for all channels
    shared = across.clone()
    shared[:, 0] = across[:, 0] + 1
    assert not torch.allclose(gate(shared, below)[:, 1:], gate(across, below)[:, 1:])
    assert not torch.allclose(gate(across, below + 1), gate(across, below))


def test_binary_answers_become_probabilities_in_which_a_later_class_wins() -> None:
    yes = torch.tensor([0.9, 0.6, 0.2])
    said = class_logits(yes.logit().view(1, 3, 1, 1)).exp().flatten()
    expected = [0.1 * 0.4 * 0.8, 0.9 * 0.4 * 0.8, 0.6 * 0.8, 0.2]
    assert said.tolist() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0, 1e4), classes=st.integers(1, 4))
def test_binary_answers_sum_to_one_however_sure_they_are(
    seed: int, scale: float, classes: int
) -> None:
    leaf = (scale * pixels(2, 5, 4, classes, seed)).requires_grad_()
    said = class_logits(leaf)
    assert said.shape == (2, 1 + classes, 5, 4)
    torch.testing.assert_close(said.exp().sum(dim=1), torch.ones(2, 5, 4))
    torch.testing.assert_close(said.softmax(dim=1), said.exp())
    nn.functional.cross_entropy(said, torch.zeros(2, 5, 4).long()).backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()


def test_binary_answers_in_half_precision_are_put_together_in_full() -> None:
    """A hundred thousand to one stays so, which bfloat16 rounds to a certainty."""
    yes = torch.tensor([[-12.0, 7.0], [3.0, -11.5]]).view(1, 2, 1, 2)
    said = class_logits(yes.to(torch.bfloat16))
    assert said.dtype == torch.float32
    assert torch.equal(said, class_logits(yes))
    assert said.exp()[0, 2, 0, 1].item() == pytest.approx(1 / (1 + math.exp(11.5)), rel=1e-5)


# --- normalisation ---------------------------------------------------------------------------


def test_raw_values_get_zero_mean_and_unit_deviation() -> None:
    normalise = Normalise([100.0, -3.0], [10.0, 0.5], "mean")
    x = torch.tensor([[120.0, 100.0, 90.0], [-3.0, -2.5, -4.0]]).view(1, 2, 1, 3)
    expected = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, -2.0]]).view(1, 2, 1, 3)
    torch.testing.assert_close(normalise(x), expected)


@pytest.mark.parametrize("unseen", [math.nan, math.inf, -math.inf])
def test_unseen_values_become_the_mean(unseen: float) -> None:
    normalise = Normalise([100.0, 50.0], [10.0, 5.0], "mean")
    x = torch.tensor([unseen, 55.0]).view(1, 2, 1, 1)
    assert normalise(x).flatten().tolist() == [0.0, 1.0]


def test_unseen_values_become_the_number_given_in_raw_units() -> None:
    normalise = Normalise([100.0, 50.0], [10.0, 5.0], 80.0)
    nan = torch.full((1, 2, 2, 2), math.nan)
    seen = torch.full((1, 2, 2, 2), 80.0)
    torch.testing.assert_close(normalise(nan), normalise(seen))
    assert normalise(nan)[0, :, 0, 0].tolist() == [-2.0, 6.0]


@pytest.mark.parametrize("impute", ["mean", 3.0])
def test_a_constant_channel_is_centred_not_exploded(impute: str | float) -> None:
    normalise = Normalise([7.0], [0.0], impute)
    x = torch.tensor([7.0, 9.0, math.nan]).view(1, 1, 1, 3)
    filled = 0.0 if impute == "mean" else -4.0
    assert normalise(x).flatten().tolist() == [0.0, 2.0, filled]


def test_statistics_are_not_among_the_weights() -> None:
    """So that they stand once, in model.json, and no file of weights contradicts it."""
    assert Normalise([1.0], [2.0], "mean").state_dict() == {}


@pytest.mark.parametrize("impute", ["mean", 5.0])
def test_values_far_out_count_as_the_clip_and_unseen_ones_stay_imputed(impute: str | float) -> None:
    x = torch.tensor([-1000.0, 3.0, 5.5, 9.0, math.nan, math.inf]).view(1, 1, 1, 6)
    plain = Normalise([5.0], [2.0], impute)(x.clone())
    clipped = Normalise([5.0], [2.0], impute, 1.5)(x.clone())
    assert clipped.flatten().tolist() == [-1.5, -1.0, 0.25, 1.5, 0.0, 0.0]
    assert (clipped[..., 4:] == plain[..., 4:]).all()


# --- in use ----------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("dropout_at", ["all", "deep"])
@pytest.mark.parametrize("spatial_dropout", [False, True])
@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_the_folded_network_is_the_same_function_and_leaves_the_other_alone(
    dropout_at: str, spatial_dropout: bool, normalisation: str, variant: dict[str, Any]
) -> None:
    net = network(
        dropout_at=dropout_at,
        spatial_dropout=spatial_dropout,
        normalisation=normalisation,
        **variant,
    )
    x = pixels(2, 24, 20)
    for _ in range(5):  # statistics of their own for every batch normalisation
        net(3 * x + 1)
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        quick = folded(net)
        torch.testing.assert_close(quick(x), net(x), rtol=1e-4, atol=1e-5)
    kinds = {type(layer) for layer in quick.modules()}
    assert not kinds & {nn.BatchNorm2d, nn.Dropout, nn.Dropout2d}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_mean_stands_in_for_what_is_no_number() -> None:
    normalise = Normalise([5.0, 1.0], [2.0, 0.0], "mean")
    x = torch.tensor([7.0, math.nan, math.inf, -math.inf]).view(1, 1, 2, 2).repeat(1, 2, 1, 1)
    kept = x.clone()
    assert normalise(x)[0].flatten(1).tolist() == [[1.0, 0.0, 0.0, 0.0], [6.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(x, kept, equal_nan=True)  # what is given stays as it is
