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
        blocks: `plain`; or `residual`: what a block gets is added to what it makes of it.
        attention: what goes across the U is weighed by what is known below, see `_Gate`.
        heads: `classes`: one answer for background and each class, of which one holds; or `binary`:
            a yes or no for each class of ice, see `class_logits`.
    """

    depth: int
    base_channels: int
    dropout: float
    dropout_at: str
    spatial_dropout: bool
    normalisation: str
    # Of models from before there was a choice:
    coarsening: int = 1
    blocks: str = "plain"
    attention: bool = False
    heads: str = "classes"


def _convolutions(inputs: int, outputs: int, level: int, conf: Architecture) -> list[nn.Module]:
    """Twice: convolution 3 x 3, normalisation, ReLU; with dropout where it is due.

    Args:
        inputs, outputs: channels.
        level: how often the resolution was halved so far.
        conf: of the network.
    """
    layers: list[nn.Module] = []
    kind = nn.Dropout2d if conf.spatial_dropout else nn.Dropout
    for channels in (inputs, outputs):
        layers += [*_convolution(channels, outputs, 3, conf), nn.ReLU(inplace=True)]
        if conf.dropout_at == "all":
            layers.append(kind(conf.dropout))
    if conf.dropout_at == "deep" and 2 * level >= conf.depth:
        layers.append(kind(conf.dropout))
    return layers


def _convolution(inputs: int, outputs: int, size: int, conf: Architecture) -> list[nn.Module]:
    """A convolution that keeps height and width, and its normalisation."""
    batch = conf.normalisation == "batch"
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=not batch)
    return [layer, nn.BatchNorm2d(outputs)] if batch else [layer]


class _Residual(nn.Module):
    """The same convolutions, with what comes in added before the last ReLU (He et al. 2016).

    Where the number of channels changes, it is added through a convolution 1 x 1 with
    normalisation (their option B).
    """

    def __init__(self, inputs: int, outputs: int, level: int, conf: Architecture) -> None:
        super().__init__()
        layers = _convolutions(inputs, outputs, level, conf)
        last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU))
        self.body = nn.Sequential(*layers[:last])
        self.after = nn.Sequential(*layers[last:])
        changed = inputs != outputs
        self.shortcut = nn.Sequential(*(_convolution(inputs, outputs, 1, conf) if changed else []))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to (batch, outputs, height, width)."""
        result: Tensor = self.after(self.body(x) + self.shortcut(x))
        return result


class _Gate(nn.Module):
    """An additive attention gate on what goes across the U (Oktay et al. 2018).

    From that and from what came up from below, which has seen more ground, a weight between 0 and
    1 for each place; as there, worked out at the resolution below and interpolated.
    """

    def __init__(self, across: int, below: int) -> None:
        super().__init__()
        inner = max(across // 2, 1)  # as in their code
        self.across = nn.Conv2d(across, inner, 2, stride=2, bias=False)
        self.below = nn.Conv2d(below, inner, 1)
        self.weight = nn.Conv2d(inner, 1, 1)

    def forward(self, across: Tensor, below: Tensor) -> Tensor:
        """What goes across, weighed.

        Args:
            across: (batch, across, height, width).
            below: (batch, below, height / 2, width / 2).
        """
        weight = torch.sigmoid(self.weight(F.relu(self.across(across) + self.below(below))))
        return across * F.interpolate(weight, scale_factor=2, mode="bilinear")


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
        self.binary = conf.heads == "binary"

        def block(inputs: int, outputs: int, level: int) -> nn.Module:
            if conf.blocks == "residual":
                return _Residual(inputs, outputs, level, conf)
            return nn.Sequential(*_convolutions(inputs, outputs, level, conf))

        self.down = nn.ModuleList(
            block(i, o, level)
            for level, (i, o) in enumerate(zip([inputs, *widths], widths, strict=False))
        )
        rising = range(conf.depth - 1, -1, -1)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2) for level in rising
        )
        self.merge = nn.ModuleList(
            block(2 * widths[level], widths[level], level) for level in rising
        )
        self.gates = nn.ModuleList(
            _Gate(widths[level], widths[level + 1]) for level in rising if conf.attention
        )
        self.head = nn.Conv2d(widths[0], outputs - self.binary, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) to logits (batch, outputs, height, width)."""
        return self.classes(self.features(x), x.shape[-2:])

    def features(self, x: Tensor) -> Tensor:
        """What the head looks at: (batch, base channels) and the height and width that `multiple`
        divides, divided by `coarsening`.
        """
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
        for i, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            across = skips.pop()
            if self.gates:
                across = self.gates[i](across, x)
            x = merge(torch.cat([up(x), across], dim=1))  # doubles them again
        return x

    def classes(self, features: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (batch, outputs, *size) from `features`."""
        logits = self.full_size(self.head(features), size)
        return class_logits(logits) if self.binary else logits

    def full_size(self, said: Tensor, size: Sequence[int]) -> Tensor:
        """What was said of the features' places, of the pixels that the network was given."""
        if self.coarsening > 1:
            said = F.interpolate(said, scale_factor=self.coarsening, mode="bilinear")
        height, width = size
        return said[..., :height, :width]


def class_logits(yes: Tensor) -> Tensor:
    """Logarithms of class probabilities from one answer for each class of ice.

    Where classes overlap, the later one wins, as everywhere: a class has a pixel if its own answer
    is yes and that of no later one is, and background has what is left. In float32 whatever it is
    given, by logarithms throughout: neither 0 nor 1 is ever rounded to.

    Args:
        yes: (batch, classes of ice, height, width), logits of yes against no.

    Returns:
        float32 (batch, 1 + classes of ice, height, width), background first; their exponentials
        sum to 1, so that `softmax` gives back what they are of.
    """
    none_later = torch.zeros((), dtype=torch.float32, device=yes.device)
    found: list[Tensor] = []
    for answer in reversed(yes.float().unbind(dim=1)):
        found.append(F.logsigmoid(answer) + none_later)
        none_later = none_later + F.logsigmoid(-answer)
    return torch.stack([none_later, *reversed(found)], dim=1)


def folded(network: UNet) -> UNet:
    """A copy for use alone: each normalisation put into the convolution before it, no dropout.

    The same function, and a quarter less work; what is rounded is rounded elsewhere.
    """
    network = copy.deepcopy(network).eval()
    for block in list(network.modules()):
        if isinstance(block, nn.Sequential):
            _fold(block)
    return network


def _fold(block: nn.Sequential) -> None:
    layers: list[nn.Module] = []
    for layer in block:
        if isinstance(layer, nn.BatchNorm2d):
            before = layers.pop()
            assert isinstance(before, nn.Conv2d)
            layers.append(fuse_conv_bn_eval(before, layer))
        elif not isinstance(layer, nn.Dropout | nn.Dropout2d):
            layers.append(layer)
    block._modules = {str(i): layer for i, layer in enumerate(layers)}


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

    A constant channel (deviation 0) is centred, not scaled. With a `clip`, values beyond so many
    deviations count as that many: what few saturated pixels say is no stronger than it is sure.
    """

    mean: Tensor
    scale: Tensor
    filled: Tensor

    def __init__(
        self,
        means: Sequence[float],
        deviations: Sequence[float],
        impute: str | float,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        mean = torch.tensor(list(means), dtype=torch.float64)
        deviation = torch.tensor(list(deviations), dtype=torch.float64)
        scale = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-300), torch.ones(()))
        filled = torch.zeros_like(mean) if impute == "mean" else (float(impute) - mean) * scale
        self.fills_with_zero, self.clip = impute == "mean", clip
        # Not part of the weights: model.json holds the statistics, once.
        for name, value in (("mean", mean), ("scale", scale), ("filled", filled)):
            self.register_buffer(name, value.float().view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), raw, NaN where unseen; the same shape back."""
        x = (x - self.mean).mul_(self.scale)
        if self.fills_with_zero:  # the mean, normalised: in place, a third of the time
            x = x.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        else:
            x = torch.where(torch.isfinite(x), x, self.filled)
        return x if self.clip is None else x.clamp_(-self.clip, self.clip)


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
