"""Losses over the pixels that were seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from glacier_core.dataset.slicing import IGNORED

Loss = Callable[[Tensor, Tensor], Tensor]


def dice_loss(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Weighted soft Dice loss (Milletari et al. 2016) over all valid pixels of the batch.

    Args:
        logits: (batch, classes, height, width).
        target: (batch, height, width) class numbers, 255 ignored.
        weights: (classes,); normalised to sum to 1 here.
        smoothing: share of a label spread evenly over all classes.

    Returns:
        A scalar in [0, 1]; 0 (with gradient 0) where no pixel is valid.
    """
    classes = logits.shape[1]
    valid = target != IGNORED
    probability = logits.softmax(dim=1).movedim(1, -1)[valid]  # (valid pixels, classes)
    truth = F.one_hot(target[valid].long(), classes).to(probability.dtype)
    truth = truth * (1 - smoothing) + smoothing / classes
    overlap = (probability * truth).sum(dim=0)
    size = (probability + truth).sum(dim=0)
    # One pixel's worth in both terms: a class absent from truth and prediction costs nothing.
    dice = (2 * overlap + 1) / (size + 1)
    loss = ((1 - dice) * weights).sum() / weights.sum()
    return loss * bool(valid.any())


def cross_entropy_loss(logits: Tensor, target: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Weighted cross-entropy, the mean over valid pixels; arguments as `dice_loss`."""
    weighed = weights[target[target != IGNORED].long()]
    if not bool(weighed.any()):  # nothing valid, or only classes of weight 0: no mean over them
        return logits.sum() * 0
    return F.cross_entropy(
        logits, target.long(), weights, ignore_index=IGNORED, label_smoothing=smoothing
    )


LOSSES = {"dice": dice_loss, "cross_entropy": cross_entropy_loss}


def make_loss(name: str, weights: list[float], smoothing: float, device: torch.device) -> Loss:
    """The loss of conf/train.yaml: one of `LOSSES`, or several joined by `+` (their sum).

    Args:
        name: for example `dice` or `dice+cross_entropy`.
        weights: by class number, background first.
        smoothing: see `dice_loss`.
        device: where logits will be.
    """
    parts = [LOSSES[part] for part in name.split("+")]
    weight = torch.tensor(weights, dtype=torch.float32, device=device)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        logits = logits.float()
        return torch.stack([part(logits, target, weight, smoothing) for part in parts]).sum()

    return loss
