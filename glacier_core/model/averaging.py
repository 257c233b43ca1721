"""An average of the weights over the steps of a training, to judge and to keep instead of them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from glacier_core.model.unet import GlacierModel


class AveragedWeights:
    """An exponential moving average of a model's weights and running statistics.

    The last step's weights depend on its batch; an average over many steps does not (Polyak and
    Juditsky 1992). Statistics of batch normalisation are averaged alike: they belong to the
    weights that made them.

    Attributes:
        model: the average, in evaluation mode, with the names that the weights have.
    """

    def __init__(self, model: GlacierModel, decay: float) -> None:
        """Begin with the weights that a model has.

        Args:
            model: before anything is wrapped round its layers.
            decay: share of the average that each step keeps, in the long run.
        """
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after a step into the average.

        Args:
            model: the one that is trained.
            step: how many steps were made before it, in all epochs. While they are few, less is
                kept: the average is to forget the weights that training began with (the rule of
                TensorFlow's ExponentialMovingAverage, `num_updates`).
        """
        kept = min(self._decay, (step + 1) / (step + 10))
        now = model.state_dict()
        pairs = [(mean, now[name]) for name, mean in self.model.state_dict().items()]
        means = [mean for mean, _ in pairs if mean.is_floating_point()]
        values = [value for mean, value in pairs if mean.is_floating_point()]
        # All in one go: on a GPU, a call for each tensor would cost more than the sums.
        torch._foreach_lerp_(means, values, 1 - kept)
        for mean, value in pairs:
            if not mean.is_floating_point():  # how many batches were seen
                mean.copy_(value)
