"""Losses over the pixels that were seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glacier_core.dataset.slicing import IGNORED
from glacier_core.settings import loss_terms

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes that share a batch: a loss is that of the whole batch.

Each of them calls it equally often, whatever its pixels are.
"""

_MISSED = (
    0.7  # beta of Salehi et al. 2017: what a missed pixel costs, and 0.3 what a false one does
)
_FOCUS = 2.0  # gamma of Lin et al. 2017
_BORDER_PIXELS = 2


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
    probability, truth = _at_valid_pixels(logits, target, smoothing)
    overlap, size = total(
        torch.stack([(probability * truth).sum(dim=0), (probability + truth).sum(dim=0)])
    )
    # One pixel's worth in both terms: a class absent from truth and prediction costs nothing.
    dice = (2 * overlap + 1) / (size + 1)
    loss = ((1 - dice) * weights).sum() / weights.sum()
    seen = size.detach().sum() > 0
    result: Tensor = loss * seen
    return result


def tversky_loss(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, total: Total
) -> Tensor:
    """As `dice_loss`, but what is missed costs more than what is found too much.

    Salehi et al. 2017, with their best beta.
    """
    probability, truth = _at_valid_pixels(logits, target, smoothing)
    overlap, missed, extra = total(
        torch.stack(
            [
                (probability * truth).sum(dim=0),
                ((1 - probability) * truth).sum(dim=0),
                (probability * (1 - truth)).sum(dim=0),
            ]
        )
    )
    index = (overlap + 0.5) / (overlap + _MISSED * missed + (1 - _MISSED) * extra + 0.5)
    seen = (overlap + missed).detach().sum() > 0
    result: Tensor = ((1 - index) * weights).sum() / weights.sum() * seen
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
    return _weighted_mean(here, target, weights, total)


def focal_loss(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, total: Total
) -> Tensor:
    """Cross-entropy that counts pixels the less, the surer they are right.

    Lin et al. 2017, with their gamma. Labels are not smoothed: what is certain does not count.
    """
    del smoothing
    each = F.cross_entropy(
        logits,
        target.long(),
        weights,
        ignore_index=IGNORED,
        reduction="none",
    )
    known = torch.where(target == IGNORED, 0, target).long()
    right = logits.softmax(dim=1).gather(1, known[:, None])[:, 0]
    return _weighted_mean(((1 - right) ** _FOCUS * each).sum(), target, weights, total)


def lovasz_loss(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, total: Total
) -> Tensor:
    """Lovász-softmax (Berman et al. 2018): what IoU itself loses, made continuous.

    By image and class, over the classes that an image holds, weighted; labels are not smoothed.
    """
    del smoothing
    probability = logits.softmax(dim=1)
    lost, weight = logits.sum() * 0, logits.new_zeros(())
    for said, truth in zip(probability, target, strict=True):
        valid = truth != IGNORED
        for number in truth[valid].unique().tolist():
            foreground = (truth[valid] == number).to(said.dtype)
            error, order = (foreground - said[number][valid]).abs().sort(descending=True)
            lost = lost + weights[number] * (error @ _jaccard_steps(foreground[order]))
            weight = weight + weights[number]
    lost, weight = total(torch.stack([lost, weight]))
    mean: Tensor = lost / (weight + (weight == 0))
    return mean


def _jaccard_steps(foreground: Tensor) -> Tensor:
    """How much each further error costs of the IoU, the worst first."""
    count = foreground.sum()
    overlap = count - foreground.cumsum(0)
    union = count + (1 - foreground).cumsum(0)
    cost = 1 - overlap / union
    return torch.cat([cost[:1], cost[1:] - cost[:-1]])


def boundary_loss(
    logits: Tensor, target: Tensor, weights: Tensor, smoothing: float, total: Total
) -> Tensor:
    """One less the F1 score of borders (Bokhovkin and Burnaev 2019), weighted by class.

    A border is found if it lies within `_BORDER_PIXELS` of a true one. Between seen and ignored
    pixels there is no border, and labels are not smoothed.
    """
    del smoothing
    valid = (target != IGNORED)[:, None]
    known = torch.where(target == IGNORED, 0, target).long()
    truth = F.one_hot(known, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    said, truth = _border(logits.softmax(dim=1), valid), _border(truth, valid)
    near_said, near_truth = _widened(said) * valid, _widened(truth) * valid
    axes = (0, 2, 3)
    right, found, said_all, truth_all = total(
        torch.stack(
            [
                (said * near_truth).sum(axes),
                (truth * near_said).sum(axes),
                said.sum(axes),
                truth.sum(axes),
            ]
        )
    )
    # Half a pixel's worth in each: a class without a border costs nothing.
    precision, recall = (right + 0.5) / (said_all + 0.5), (found + 0.5) / (truth_all + 0.5)
    score = 2 * precision * recall / (precision + recall)
    result: Tensor = ((1 - score) * weights).sum() / weights.sum()
    return result


def _border(inside: Tensor, valid: Tensor) -> Tensor:
    """How much each valid pixel belongs to a class and has a neighbour that does not."""
    outside = (1 - inside) * valid
    return (F.max_pool2d(outside, 3, 1, 1) - outside) * valid


def _widened(border: Tensor) -> Tensor:
    return F.max_pool2d(border, 2 * _BORDER_PIXELS + 1, 1, _BORDER_PIXELS)


def _at_valid_pixels(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Probability and truth of the pixels that were seen, both (valid pixels, classes)."""
    classes = logits.shape[1]
    valid = target != IGNORED
    probability = logits.softmax(dim=1).movedim(1, -1)[valid]
    truth = F.one_hot(target[valid].long(), classes).to(probability.dtype)
    return probability, truth * (1 - smoothing) + smoothing / classes


def _weighted_mean(here: Tensor, target: Tensor, weights: Tensor, total: Total) -> Tensor:
    """A sum over this process's valid pixels, by the weight of those of all processes."""
    # Not `weights[...]` of a missing pixel, which has no class.
    weighed = weights[target[target != IGNORED].long()].sum()
    summed, weight = total(torch.stack([here, weighed]))
    # Nothing valid, or only classes of weight 0: no mean over them.
    mean: Tensor = summed * (weight > 0) / (weight + (weight == 0))
    return mean


LOSSES = {
    "dice": dice_loss,
    "tversky": tversky_loss,
    "cross_entropy": cross_entropy_loss,
    "focal": focal_loss,
    "lovasz": lovasz_loss,
    "boundary": boundary_loss,
}


class Loss(nn.Module):
    """The loss of conf/train.yaml, a weighted sum.

    Attributes:
        log_variances: of each term, where its factor is learned.
    """

    def __init__(
        self,
        name: str,
        weights: list[float],
        smoothing: float,
        device: torch.device,
        total: Total = alone,
        *,
        learned: bool = False,
    ) -> None:
        """Begin with the factors that are written.

        Args:
            name: terms of `LOSSES` joined by `+`, each with a factor or without:
                `dice+0.5*boundary`.
            weights: by class number, background first.
            smoothing: see `dice_loss`.
            device: where logits will be.
            total: see `Total`.
            learned: train the factors with the network, after Kendall, Gal and Cipolla (2018): a
                term counts by the inverse of its variance, exp(-s), and costs s, the variance's
                logarithm, in addition; without the paper's halves, as in Gal's example of it
                (multi-task-learning-example). Left to itself, exp(-s) tends to 1 / term, and the
                sum may be negative. Terms are those of the whole batch: all processes learn the
                same.
        """
        super().__init__()
        self._terms = loss_terms(name)
        self._weights = torch.tensor(weights, dtype=torch.float32, device=device)
        self._smoothing, self._total = smoothing, total
        self.log_variances: nn.Parameter | None = None
        if learned:
            start = [-math.log(factor) for factor in self._terms.values()]
            self.log_variances = nn.Parameter(torch.tensor(start, device=device))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """A scalar, from logits (batch, classes, height, width) and class numbers."""
        logits = logits.float()
        each = [
            LOSSES[name](logits, target, self._weights, self._smoothing, self._total)
            for name in self._terms
        ]
        if self.log_variances is not None:
            terms, uncertain = torch.stack(each), self.log_variances
            return ((-uncertain).exp() * terms + uncertain).sum()
        factors = self._terms.values()
        return torch.stack([f * term for f, term in zip(factors, each, strict=True)]).sum()

    def factors(self) -> dict[str, float]:
        """By which each term is multiplied now."""
        if self.log_variances is None:
            return dict(self._terms)
        return dict(zip(self._terms, (-self.log_variances.detach()).exp().tolist(), strict=True))
