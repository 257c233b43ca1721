"""Losses see the pixels that were seen, weigh classes, and are the sum of their parts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glacier_core.model.losses import LOSSES, Loss
from glacier_core.settings import LOSS_TERMS

SMOOTHED = ["dice", "tversky", "cross_entropy", "dice+cross_entropy"]
NAMES = [*SMOOTHED, "focal", "lovasz", "boundary", "lovasz+0.5*boundary"]
CPU = torch.device("cpu")
IGNORED = 255


def loss_of(name: str, weights: tuple[float, ...] = (1, 1, 1), smoothing: float = 0.0) -> Loss:
    return Loss(name, list(weights), smoothing, CPU)


def batch(seed: int = 0, size: tuple[int, ...] = (2, 6, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size[0], 3, *size[1:], generator=generator)
    target = torch.randint(0, 3, size, generator=generator, dtype=torch.uint8)
    return logits, target


def value_and_gradient(loss: Loss, logits: Tensor, target: Tensor) -> tuple[float, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target)
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad


def perfect(target: Tensor, certainty: float = 30.0) -> Tensor:
    known = torch.where(target == IGNORED, 0, target).long()
    return certainty * torch.nn.functional.one_hot(known, 3).movedim(-1, 1).float()


# --- ignored pixels --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.95), scale=st.floats(0.1, 1000))
def test_what_is_said_of_ignored_pixels_changes_neither_value_nor_gradient(
    name: str, seed: int, share: float, scale: float
) -> None:
    logits, target = batch(seed)
    ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < share
    target[ignored] = IGNORED
    other = torch.where(ignored[:, None], scale * torch.randn_like(logits), logits)
    loss = loss_of(name, (1, 2, 3), 0.1)
    first, gradient = value_and_gradient(loss, logits, target)
    second, other_gradient = value_and_gradient(loss, other, target)
    assert first == pytest.approx(second, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(gradient, other_gradient)
    assert (gradient.movedim(1, -1)[ignored] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_ignored_pixels_count_as_if_they_were_not_there(name: str) -> None:
    logits, target = batch(size=(1, 8, 5))
    target[:, 4:] = IGNORED
    loss = loss_of(name, (1, 1, 3))
    torch.testing.assert_close(loss(logits, target), loss(logits[:, :, :4], target[:, :4]))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_a_valid_pixel_costs_nothing_and_teaches_nothing(name: str) -> None:
    logits, target = batch()
    value, gradient = value_and_gradient(
        loss_of(name, smoothing=0.2), logits, torch.full_like(target, IGNORED)
    )
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_class_of_weight_zero_has_a_finite_loss_and_gradient(
    name: str, smoothing: float
) -> None:
    logits, target = batch()
    loss = loss_of(name, (0, 1, 1), smoothing)
    value, gradient = value_and_gradient(loss, logits, torch.zeros_like(target))
    assert math.isfinite(value)
    assert torch.isfinite(gradient).all()


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_prediction_costs_nearly_nothing_and_a_wrong_one_much(name: str) -> None:
    # Every class with borders of its own, wide enough that they are not near each other's.
    target = torch.zeros((2, 40, 30), dtype=torch.uint8)
    target[0, :, 10:20], target[:, 20:] = 1, 2
    target[0, :2] = IGNORED
    loss = loss_of(name)
    assert loss(perfect(target), target).item() < 1e-5
    wrong = torch.where(target == IGNORED, target, (target.flip(1) + 1) % 3)
    assert loss(perfect(wrong), target).item() > 0.3


def test_cross_entropy_is_the_weighted_mean_over_valid_pixels() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    logits = probabilities.log().T.reshape(1, 3, 1, 3)
    target = torch.tensor([[[0, 1, IGNORED]]], dtype=torch.uint8)
    expected = (1 * -math.log(0.5) + 3 * -math.log(0.8)) / (1 + 3)
    assert loss_of("cross_entropy", (1, 3, 5))(logits, target).item() == pytest.approx(expected)


def test_dice_is_one_less_the_overlap_over_the_batch() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    logits = probabilities.log().T.reshape(1, 3, 1, 3)
    target = torch.tensor([[[0, 1, IGNORED]]], dtype=torch.uint8)
    # Twice the overlap over the sizes, with one pixel's worth added to both.
    background = 1 - (2 * 0.5 + 1) / (0.6 + 1 + 1)
    clean = 1 - (2 * 0.8 + 1) / (1.05 + 1 + 1)
    debris = 1 - (2 * 0.0 + 1) / (0.35 + 0 + 1)
    expected = (background + 2 * clean + 1 * debris) / 4
    assert loss_of("dice", (1, 2, 1))(logits, target).item() == pytest.approx(expected, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0, 50))
def test_dice_lies_between_zero_and_one(seed: int, scale: float) -> None:
    logits, target = batch(seed)
    assert 0 <= loss_of("dice", (1, 2, 3))(scale * logits, target).item() <= 1


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_joint_loss_is_the_sum_of_its_parts(smoothing: float) -> None:
    logits, target = batch()
    target[0] = IGNORED
    parts = [
        value_and_gradient(loss_of(name, (1, 2, 3), smoothing), logits, target)
        for name in ("dice", "cross_entropy")
    ]
    value, gradient = value_and_gradient(
        loss_of("dice+cross_entropy", (1, 2, 3), smoothing), logits, target
    )
    assert value == pytest.approx(parts[0][0] + parts[1][0], rel=1e-6)
    torch.testing.assert_close(gradient, parts[0][1] + parts[1][1])


@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_more_weight_pulls_the_loss_towards_its_own(name: str) -> None:
    """Debris is missed, everything else found: the more debris weighs, the worse."""
    target = torch.zeros((2, 30, 30), dtype=torch.uint8)
    target[:, :8, :8], target[:, 20:, 20:] = 1, 2
    logits = perfect(torch.where(target == 2, 0, target))
    light, heavy = (loss_of(name, (1, 1, w))(logits, target).item() for w in (0.1, 10))
    assert heavy > 1.5 * light


@pytest.mark.parametrize("name", NAMES)
def test_only_the_proportion_of_weights_matters(name: str) -> None:
    logits, target = batch()
    small, large = loss_of(name, (1, 2, 3)), loss_of(name, (10, 20, 30))
    torch.testing.assert_close(small(logits, target), large(logits, target))


@pytest.mark.parametrize("name", SMOOTHED)
def test_label_smoothing_makes_certainty_dearer_than_doubt(name: str) -> None:
    _, target = batch()
    sure, unsure = perfect(target), perfect(target, certainty=4)
    plain, smooth = loss_of(name), loss_of(name, smoothing=0.2)
    assert smooth(sure, target).item() > plain(sure, target).item() + 0.05
    assert plain(sure, target) < plain(unsure, target)
    if "entropy" in name:  # the others' optimum is at certainty, smoothed or not
        assert smooth(sure, target) > smooth(unsure, target)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_logits_are_summed_in_full_precision(name: str) -> None:
    logits, target = batch(size=(2, 128, 128))
    rounded = logits.to(torch.bfloat16)
    loss = loss_of(name)
    assert loss(rounded, target).dtype == torch.float32
    torch.testing.assert_close(loss(rounded, target), loss(rounded.float(), target))


def test_factors_weigh_the_terms_of_a_sum() -> None:
    logits, target = batch()
    dice, boundary = (loss_of(name)(logits, target) for name in ("dice", "boundary"))
    torch.testing.assert_close(
        loss_of("dice + 0.25*boundary")(logits, target), dice + 0.25 * boundary
    )


def test_focal_loss_hardly_counts_what_is_certain() -> None:
    """Of two pixels, one at 0.5 and one at 0.9 of its class."""
    logits = torch.tensor([[0.5, 0.9], [0.25, 0.05], [0.25, 0.05]]).log().reshape(1, 3, 1, 2)
    target = torch.zeros((1, 1, 2), dtype=torch.uint8)
    expected = (0.5**2 * -math.log(0.5) + 0.1**2 * -math.log(0.9)) / 2
    assert loss_of("focal")(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_for_tversky_what_is_missed_costs_more_than_what_is_too_much() -> None:
    target = torch.zeros((1, 20, 20), dtype=torch.uint8)
    target[:, :10] = 2
    less, more = target.clone(), target.clone()
    less[:, 8:10], more[:, 10:12] = 0, 2
    only_debris = loss_of("tversky", (0, 0, 1))
    missed, extra = (only_debris(perfect(said), target).item() for said in (less, more))
    assert missed == pytest.approx(1 - 160 / (160 + 0.7 * 40), abs=2e-3)
    assert extra == pytest.approx(1 - 200 / (200 + 0.3 * 40), abs=2e-3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_lovasz_of_a_certain_prediction_is_what_its_iou_lacks(seed: int) -> None:
    _, target = batch(seed, (2, 9, 7))
    _, said = batch(seed + 1, (2, 9, 7))
    lacking = []
    for truth, found in zip(target, said, strict=True):
        for number in truth.unique():
            union = ((truth == number) | (found == number)).sum()
            lacking.append(1 - ((truth == number) & (found == number)).sum() / union)
    expected = torch.stack(lacking).mean()
    torch.testing.assert_close(loss_of("lovasz")(perfect(said), target), expected)


@pytest.mark.parametrize(("rows", "cost"), [(0, 0.0), (2, 0.0), (6, 0.9)])
def test_a_border_is_found_within_two_pixels_and_not_beyond(rows: int, cost: float) -> None:
    target = torch.zeros((1, 40, 40), dtype=torch.uint8)
    target[:, 20:] = 2
    said = torch.zeros_like(target)
    said[:, 20 + rows :] = 2
    found = loss_of("boundary", (1, 0, 1))(perfect(said), target).item()
    assert found == pytest.approx(cost, abs=1e-3) if cost == 0 else found > cost


def test_where_the_ground_was_not_seen_there_is_no_border() -> None:
    """A scan-line gap through debris, in which the network says something else."""
    target = torch.full((1, 30, 30), 2, dtype=torch.uint8)
    said = target.clone()
    said[:, 10:14] = 0
    target[:, 10:14] = IGNORED
    assert loss_of("boundary")(perfect(said), target).item() == pytest.approx(0, abs=1e-6)


def test_what_settings_allow_is_what_there_is() -> None:
    assert set(LOSS_TERMS) == set(LOSSES)
