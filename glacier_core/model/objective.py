"""What training makes small: the loss, missed borders, and what large weights cost.

Some of it is learned with the network, and is no part of the model that is kept: a head that says
where borders lie, and the factors of the loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glacier_core.dataset.slicing import IGNORED
from glacier_core.model.losses import Loss, Total
from glacier_core.model.unet import UNet
from glacier_core.params import TrainParams
from glacier_core.settings import TrainConf

# Pixels of the network's grid: inventories lie within half a pixel to a pixel of what they draw
# (Paul et al. 2017).
_REACH = 1


class Objective(nn.Module):
    """What a training step makes smaller.

    Attributes:
        loss: of the classes.
        border: says of the network's features where borders lie; None without `border_weight`.
    """

    def __init__(
        self,
        conf: TrainConf,
        params: TrainParams,
        network: UNet,
        weights: list[float],
        device: torch.device,
        total: Total,
    ) -> None:
        """Set it up, after the network's weights were drawn.

        Args:
            conf, params: `loss`, `loss_weights`; `label_smoothing`, `border_weight`, `l1`, `l2`.
            network: the one that is trained.
            weights: of the classes, by number.
            device: of the network.
            total: see `losses.Total`.
        """
        super().__init__()
        learned = conf.loss_weights == "learned"
        self.loss = Loss(conf.loss, weights, params.label_smoothing, device, total, learned=learned)
        self._params, self._total, self._reach = params, total, _REACH * network.coarsening
        self.border: nn.Conv2d | None = None
        if params.border_weight > 0:
            self.border = nn.Conv2d(network.head.in_channels, 1, 1).to(device)

    def asked(self, network: UNet) -> nn.Module:
        """What is called in training: the network, and the head for borders if there is one."""
        return network if self.border is None else _WithBorders(network, self.border)

    def forward(
        self, said: Tensor | tuple[Tensor, Tensor], target: Tensor, model: nn.Module
    ) -> Tensor:
        """A scalar.

        Args:
            said: by what `asked` gave.
            target: (batch, height, width) class numbers, 255 ignored.
            model: whose weights may cost something.
        """
        logits, borders = said if isinstance(said, tuple) else (said, None)
        result: Tensor = self.loss(logits, target) + self._penalty(model)
        if borders is not None:
            missed = border_loss(borders, target, self._reach, self._total)
            result = result + self._params.border_weight * missed
        return result

    def _penalty(self, model: nn.Module) -> Tensor:
        weights = [p for p in model.parameters() if p.ndim > 1]
        penalty = torch.zeros((), device=weights[0].device)
        if self._params.l1 > 0:
            size = torch.stack([w.abs().sum() for w in weights]).sum()
            penalty = penalty + self._params.l1 * size
        if self._params.l2 > 0:
            penalty = penalty + self._params.l2 * torch.stack([(w**2).sum() for w in weights]).sum()
        return penalty

    def layers(self, model: nn.Module) -> list[nn.Parameter]:
        """The weights whose gradients are clipped: the model's, and of the head for borders.

        Not the factors': theirs are of another size, and would take a share of the norm.
        """
        return [*model.parameters(), *(self.border.parameters() if self.border is not None else ())]

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """All that is trained, for the optimiser."""
        groups: list[dict[str, Any]] = [{"params": self.layers(model)}]
        if self.loss.log_variances is not None:
            # Decay would pull every factor towards 1, whatever was written.
            groups.append({"params": [self.loss.log_variances], "weight_decay": 0.0})
        return groups

    def learned(self) -> dict[str, float]:
        """What of it was learned, as columns of `history.csv`."""
        if self.loss.log_variances is None:
            return {}
        return {f"factor_{name}": factor for name, factor in self.loss.factors().items()}


class _WithBorders(nn.Module):
    """The network with a second head, one convolution 1 x 1 on the same features."""

    def __init__(self, network: UNet, border: nn.Conv2d) -> None:
        super().__init__()
        self.network, self.border = network, border

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes, and (batch, height, width) of lying on a border."""
        features, size = self.network.features(x), x.shape[-2:]
        border = self.network.full_size(self.border(features), size)
        return self.network.classes(features, size), border[:, 0]


def on_border(target: Tensor, reach: int) -> Tensor:
    """Where another class is near.

    Args:
        target: (batch, height, width) class numbers, 255 ignored.
        reach: how many pixels away, diagonally too, is near.

    Returns:
        bool, the same shape: True for seen pixels with a seen pixel of another class within
        `reach`. Between what was seen and what was not there is no border.
    """
    numbers, edge = target.float()[:, None], 2 * reach + 1
    seen = numbers != IGNORED
    most = F.max_pool2d(torch.where(seen, numbers, -1), edge, 1, reach)
    least = -F.max_pool2d(-numbers, edge, 1, reach)  # no class has so large a number as 255
    return (seen & (most > least))[:, 0]


def border_loss(logits: Tensor, target: Tensor, reach: int, total: Total) -> Tensor:
    """Cross-entropy of lying on a border or not, both kinds of pixels weighing the same together.

    Args:
        logits: (batch, height, width).
        target, reach: see `on_border`.
        total: see `losses.Total`.

    Returns:
        A scalar: ln 2 for who does not know, 0 where no pixel is valid.
    """
    border = on_border(target, reach)
    inside = (target != IGNORED) & ~border
    each = F.binary_cross_entropy_with_logits(logits.float(), border.float(), reduction="none")
    kinds = torch.stack([border, inside]).to(each.dtype)
    cost, count = total(torch.stack([(each * kinds).sum((1, 2, 3)), kinds.sum((1, 2, 3))]))
    # A kind that does not occur costs nothing.
    mean: Tensor = (cost / count.clamp_min(1)).mean()
    return mean
