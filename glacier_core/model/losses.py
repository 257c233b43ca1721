"""Losses over the pixels that were seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from glacier_core.dataset.slicing import IGNORED

Loss = Callable[[Tensor, Tensor], Tensor]
Total = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share a batch: a loss is that of the whole batch.

Each of them calls it equally often, whatever its pixels are.
"""


def alone(x: Tensor) -> Tensor:
    """The sum over one process."""
    return x


def dice_loss(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, total: Total
) -> Tensor:
    """Weighted soft Dice loss (Milletari et al. 2016) over all valid pixels of the batch.

    Args:
        logits: (batch, classes, height, width).
        target: (batch, height, width) class numbers, 255 ignored.
        weights: (classes,); normalised to sum to 1 here.
        smoothing: share of a label spread evenly over all classes.
        total: see `Total`. Sizes and overlaps are summed before they are divided.

    Returns:
        A scalar in [0, 1]; 0 (with gradient 0) where no pixel is valid.
    """
    classes = logits.shape[1]
    valid = target != IGNORED
    probability = logits.softmax(dim=1).movedim(1, -1)[valid]  # (valid pixels, classes)
    truth = F.one_hot(target[valid].long(), classes).to(probability.dtype)
    truth = truth * (1 - smoothing) + smoothing / classes
    overlap, size = total(
        torch.stack([(probability * truth).sum(dim=0), (probability + truth).sum(dim=0)])
    )
    # One pixel's worth in both terms: a class absent from truth and prediction costs nothing.
    dice = (2 * overlap + 1) / (size + 1)
    loss = ((1 - dice) * weights).sum() / weights.sum()
    seen = size.detach().sum() > 0
    result: Tensor = loss * seen
    return result


def cross_entropy_loss(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, total: Total
) -> Tensor:
    """Weighted cross-entropy, the mean over valid pixels; arguments as `dice_loss`."""
    here = F.cross_entropy(
        logits,
        target.long(),
        weights,
        ignore_index=IGNORED,
        label_smoothing=smoothing,
        reduction="sum",
    )
    # Not `weights[...]` of a missing pixel, which has no class.
    weighed = weights[target[target != IGNORED].long()].sum()
    summed, weight = total(torch.stack([here, weighed]))
    # Nothing valid, or only classes of weight 0: no mean over them.
    mean: Tensor = summed * (weight > 0) / (weight + (weight == 0))
    return mean


LOSSES = {"dice": dice_loss, "cross_entropy": cross_entropy_loss}


def make_loss(
    name: str,
    weights: list[float],
    smoothing: float,
    device: torch.device,
    total: Total = alone,
) -> Loss:
    """The loss of conf/train.yaml: one of `LOSSES`, or several joined by `+` (their sum).

    Args:
        name: for example `dice` or `dice+cross_entropy`.
        weights: by class number, background first.
        smoothing: see `dice_loss`.
        device: where logits will be.
        total: see `Total`.
    """
    parts = [LOSSES[part] for part in name.split("+")]
    weight = torch.tensor(weights, dtype=torch.float32, device=device)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        each = [part(logits, target, weight, smoothing, total) for part in parts]
        return torch.stack(each).sum()

    return loss
