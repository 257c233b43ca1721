"""The network takes any tile, drops out where it is told to, and normalises what it is given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from glacier_core.model.unet import Architecture, Normalise, UNet, folded


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
)
def test_logits_have_the_size_of_the_tile_whatever_it_is(
    batch: int, height: int, width: int, depth: int, outputs: int, coarsening: int
) -> None:
    net = network(outputs=outputs, depth=depth, base_channels=2, coarsening=coarsening).eval()
    logits = net(pixels(batch, height, width))
    assert logits.shape == (batch, outputs, height, width)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("size", [(32, 32), (31, 45), (3, 5), (1, 1)])
def test_a_tile_in_a_batch_gets_what_it_gets_alone(size: tuple[int, int]) -> None:
    net = network(depth=3).eval()
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


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_is_the_number_of_halvings_and_doublings(depth: int) -> None:
    net = network(depth=depth).eval()
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


def test_dropout_everywhere_follows_each_of_the_two_convolutions_of_every_block() -> None:
    seen = dropouts_by_resolution(network(depth=3, dropout_at="all"))
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


def test_every_weight_gets_a_gradient() -> None:
    net = network(depth=3, dropout=0.0)
    net(pixels(2, 32, 32)).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


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


# --- in use ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout_at", ["all", "deep"])
@pytest.mark.parametrize("spatial_dropout", [False, True])
@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_the_folded_network_is_the_same_function_and_leaves_the_other_alone(
    dropout_at: str, spatial_dropout: bool, normalisation: str
) -> None:
    net = network(
        dropout_at=dropout_at, spatial_dropout=spatial_dropout, normalisation=normalisation
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
