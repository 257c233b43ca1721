"""A plain U-Net: float32, eager, channels first, dropout after every convolution, no normalisation."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.reference import IGNORED
from benchmarks.sizes import SEED
from glacier_core.model.unet import UNet


class PlainBlock(nn.Module):
    """Twice: convolution 3 x 3, ReLU, dropout."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.first(x)))
        result: Tensor = self.dropout(F.relu(self.second(x)))
        return result


class PlainUNet(nn.Module):
    """(batch, inputs, height, width) to logits; sizes must be multiples of `2 ** depth`."""

    def __init__(self, inputs: int, outputs: int, depth: int, base: int, dropout: float) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            PlainBlock(i, o, dropout) for i, o in zip([inputs, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2)
            for level in reversed(range(depth))
        )
        self.merge = nn.ModuleList(
            PlainBlock(2 * widths[level], widths[level], dropout)
            for level in reversed(range(depth))
        )
        self.head = nn.Conv2d(base, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[-1](x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            x = merge(torch.cat([up(x), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits


@torch.no_grad()
def like_ours(ours: UNet) -> PlainUNet:
    """A plain network that computes what ours does: each normalisation folded into its convolution."""
    layers: list[tuple[Tensor, Tensor]] = []
    for module in ours.modules():  # in the order of their making: down, up, merge, head
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            weight = module.weight.clone()
            bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.clone()
            layers.append((weight, bias))
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            scale = module.weight / (module.running_var + module.eps).sqrt()
            weight, bias = layers[-1]
            layers[-1] = (
                weight * scale[:, None, None, None],
                (bias - module.running_mean) * scale + module.bias,
            )
    inputs, outputs = layers[0][0].shape[1], layers[-1][0].shape[0]
    depth, base = len(ours.up), layers[0][0].shape[0]
    plain = PlainUNet(inputs, outputs, depth, base, dropout=0.0).eval()
    convolutions = [m for m in plain.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    for convolution, (weight, bias) in zip(convolutions, layers, strict=True):
        assert convolution.bias is not None
        convolution.weight.copy_(weight)
        convolution.bias.copy_(bias)
    return plain


class _Slices(Dataset[tuple[Tensor, Tensor]]):
    """The normalised copies of the reference, and class numbers of their masks."""

    def __init__(self, folder: Path) -> None:
        self.images = sorted(folder.glob("img_*.npy"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        path = self.images[number]
        image = np.load(path)
        label = np.load(path.with_name(path.name.replace("img", "mask")))
        classes = np.zeros(label.shape[:2], dtype=np.int64)
        for k in range(label.shape[2]):
            classes[label[..., k] == 1] = k + 1
        classes[label[..., 0] == IGNORED] = IGNORED
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(classes)


def train(
    dataset: str, depth: int, base: int, batch: int, dropout: float, warm: int, steps: int
) -> dict[str, Any]:
    """Train for some steps of a plain loop with a plain loader; images a second after warm-up.

    The loss is read after every step, so that on a GPU too the time is that of the work.
    """
    torch.manual_seed(SEED)
    slices = _Slices(Path(dataset) / "train")
    channels, classes = slices[0][0].shape[0], np.load(
        slices.images[0].with_name(slices.images[0].name.replace("img", "mask")), mmap_mode="r"
    ).shape[2]  # fmt: skip
    loader = DataLoader(slices, batch_size=batch, shuffle=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = PlainUNet(channels, classes + 1, depth, base, dropout).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    loss_of = nn.CrossEntropyLoss(ignore_index=IGNORED)
    done = images = 0
    losses: list[float] = []
    started = time.perf_counter()
    while done < warm + steps:
        for image, label in loader:
            optimizer.zero_grad()
            loss = loss_of(network(image.to(device)), label.to(device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            images += len(image)
            done += 1
            if done == warm:
                images, started = 0, time.perf_counter()
            if done == warm + steps:
                break
    speed = images / (time.perf_counter() - started)
    return {"images_per_second": speed, "images": images, "losses": losses}
