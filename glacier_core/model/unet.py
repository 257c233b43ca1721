"""The U-Net with dropout, and the normalisation that it carries."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from glacier_core.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """What decides the shape of the network's weights and its behaviour in training.

    Attributes:
        depth: number of halvings of the resolution.
        base_channels: channels at full resolution, doubled at each halving.
        dropout: rate.
        dropout_at: `all`, after every convolution as in the reference; or `deep`, after the
            blocks at or below half the depth. Dropout before a batch normalisation shifts the
            variances that it learns (Li et al. 2019); in the deep, that harms least.
        spatial_dropout: drop whole channels instead of single values.
        normalisation: `batch`, or `none` as in the reference.
        coarsening: what the network looks at are means of so many by so many pixels, and what it
            says is interpolated between them: of fine pixels it sees more ground for less work.
    """

    depth: int
    base_channels: int
    dropout: float
    dropout_at: str
    spatial_dropout: bool
    normalisation: str
    coarsening: int = 1  # of models from before there was one


class _Convolutions(nn.Sequential):
    """Twice: convolution 3 x 3, normalisation, ReLU; with dropout where it is due.

    Args:
        inputs, outputs: channels.
        level: how often the resolution was halved so far.
        conf: of the network.
    """

    def __init__(self, inputs: int, outputs: int, level: int, conf: Architecture) -> None:
        layers: list[nn.Module] = []
        batch = conf.normalisation == "batch"
        kind = nn.Dropout2d if conf.spatial_dropout else nn.Dropout
        for channels in (inputs, outputs):
            layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=not batch))
            if batch:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU(inplace=True))
            if conf.dropout_at == "all":
                layers.append(kind(conf.dropout))
        if conf.dropout_at == "deep" and 2 * level >= conf.depth:
            layers.append(kind(conf.dropout))
        super().__init__(*layers)

    def fold(self) -> None:
        """Put batch normalisation into the convolutions, and leave dropout out: for use alone."""
        layers: list[nn.Module] = []
        for layer in self:
            if isinstance(layer, nn.BatchNorm2d):
                before = layers.pop()
                assert isinstance(before, nn.Conv2d)
                layers.append(fuse_conv_bn_eval(before, layer))
            elif not isinstance(layer, nn.Dropout | nn.Dropout2d):
                layers.append(layer)
        self._modules = {str(i): layer for i, layer in enumerate(layers)}


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) for any height and width.

    Sizes that `multiple` does not divide are padded by repeating the edge, and cropped.

    Attributes:
        multiple: `coarsening` times `2 ** depth`.
    """

    def __init__(self, inputs: int, outputs: int, conf: Architecture) -> None:
        super().__init__()
        widths = [conf.base_channels * 2**i for i in range(conf.depth + 1)]
        self.coarsening = conf.coarsening
        self.multiple = conf.coarsening * 2**conf.depth
        self.down = nn.ModuleList(
            _Convolutions(i, o, level, conf)
            for level, (i, o) in enumerate(zip([inputs, *widths], widths, strict=False))
        )
        rising = range(conf.depth - 1, -1, -1)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2) for level in rising
        )
        self.merge = nn.ModuleList(
            _Convolutions(2 * widths[level], widths[level], level, conf) for level in rising
        )
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to logits (batch, outputs, height, width)."""
        height, width = x.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        if self.coarsening > 1:
            x = F.avg_pool2d(x, self.coarsening)
        skips: list[Tensor] = []
        for i, block in enumerate(self.down):
            if i > 0:
                skips.append(x)
                x = F.max_pool2d(x, 2)  # halves height and width
            x = block(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))  # doubles them again
        logits: Tensor = self.head(x)
        if self.coarsening > 1:
            logits = F.interpolate(logits, scale_factor=self.coarsening, mode="bilinear")
        return logits[..., :height, :width]


def folded(network: UNet) -> UNet:
    """A copy for use alone: each normalisation put into the convolution before it, no dropout.

    The same function, and a quarter less work; what is rounded is rounded elsewhere.
    """
    network = copy.deepcopy(network).eval()
    for block in [*network.down, *network.merge]:
        assert isinstance(block, _Convolutions)
        block.fold()
    return network


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """The network compiled by `torch.compile`, when it is first called; it shares its weights.

    Raises:
        InputError: there is no C++ compiler for it.
    """
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise InputError(
            "conf/train.yaml: compile: true needs a C++ compiler, and there is no "
            f"{' and no '.join(compilers)}; install one, or set compile: false"
        )
    return cast(nn.Module, torch.compile(network))


class Normalise(nn.Module):
    """Raw band values to zero mean and unit deviation; unseen values (NaN) imputed.

    A constant channel (deviation 0) is centred, not scaled.
    """

    mean: Tensor
    scale: Tensor
    filled: Tensor

    def __init__(
        self, means: Sequence[float], deviations: Sequence[float], impute: str | float
    ) -> None:
        super().__init__()
        mean = torch.tensor(list(means), dtype=torch.float64)
        deviation = torch.tensor(list(deviations), dtype=torch.float64)
        scale = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-300), torch.ones(()))
        filled = torch.zeros_like(mean) if impute == "mean" else (float(impute) - mean) * scale
        self.fills_with_zero = impute == "mean"
        # Not part of the weights: model.json holds the statistics, once.
        for name, value in (("mean", mean), ("scale", scale), ("filled", filled)):
            self.register_buffer(name, value.float().view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), raw, NaN where unseen; the same shape back."""
        x = (x - self.mean).mul_(self.scale)
        if self.fills_with_zero:  # the mean, normalised: in place, a third of the time
            return x.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        return torch.where(torch.isfinite(x), x, self.filled)


class GlacierModel(nn.Module):
    """Raw bands in, class logits out: normalisation and network as one."""

    def __init__(self, normalise: Normalise, network: UNet) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) raw to logits (batch, classes, height, width)."""
        logits: Tensor = self.network(self.normalise(x))
        return logits
