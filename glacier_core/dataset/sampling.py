"""What the network is shown in training: random crops, turned, flipped, jittered."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.params import TrainParams
from glacier_core.raster.grid import Window
from glacier_core.settings import AugmentConf


class Crops:
    """Random crops of the training slices, each a function of (seed, epoch, number) alone.

    So the result depends neither on the number of threads nor on a restart.
    """

    def __init__(
        self, dataset: Dataset, params: TrainParams, augment: AugmentConf, size: int, seed: int
    ) -> None:
        self._dataset, self._augment, self._seed, self._size = dataset, augment, seed, size
        self._samples = dataset.splits["train"]
        self._repeats = params.crops_per_slice
        self._channels = len(dataset.channels)

    def __len__(self) -> int:
        return len(self._samples) * self._repeats

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Raw channels (size, size, channels) float32 and class numbers (size, size) uint8."""
        epoch, number = key
        random = np.random.default_rng([self._seed, epoch, number])
        sample = self._samples[number % len(self._samples)]
        window = self._window(sample, random)
        image = self._dataset.image("train", sample, window)
        label = self._dataset.label("train", sample, window)
        if self._augment.quarter_turns:
            turns = int(random.integers(4))
            image, label = np.rot90(image, turns), np.rot90(label, turns)
        if self._augment.flips and random.random() < 0.5:
            image, label = image[::-1], label[::-1]
        # With quarter turns, one flip reaches all eight symmetries of the square already.
        if self._augment.flips and not self._augment.quarter_turns and random.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        # Copies: what was read may be the file itself.
        return (
            torch.from_numpy(np.array(image, order="C")),
            torch.from_numpy(np.array(label, order="C")),
        )

    def batch(self, crops: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Crops as one: (batch, size, size, channels) and (batch, size, size). There may be none."""
        if not crops:
            shape = (0, self._size, self._size)
            return torch.empty(*shape, self._channels), torch.empty(shape, dtype=torch.uint8)
        image, label = default_collate(crops)
        return image, label

    def _window(self, sample: Sample, random: np.random.Generator) -> Window:
        row, col = (
            int(random.integers(max(length - self._size, 0) + 1))
            for length in (sample.height, sample.width)
        )
        return Window(row, col, self._size, self._size)


class ShuffledBatches:
    """Batches of (epoch, number) of crops: all of the current epoch, in an order of its own.

    Args:
        length: crops of an epoch.
        size: crops of a batch; the last one takes what is left.
        part: for the length of a batch, which of it are wanted here.
        seed: of the order, with the epoch.
    """

    def __init__(self, length: int, size: int, part: Callable[[int], slice], seed: int) -> None:
        self._size, self._part, self._seed, self.epoch = size, part, seed, 0
        self.lengths = [min(size, length - start) for start in range(0, length, size)]

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self._seed, self.epoch]).permutation(sum(self.lengths))
        for number, length in enumerate(self.lengths):
            batch = order[number * self._size :][:length]
            yield [(self.epoch, int(i)) for i in batch[self._part(length)]]


def jittered(
    x: Tensor,
    gain: float,
    offset: float,
    generator: torch.Generator,
    length: int,
    part: slice,
) -> Tensor:
    """Normalised channels (batch, channels, height, width), each times and plus a little.

    Args:
        x: part of a batch.
        gain, offset: largest change of factor and summand.
        generator: what is drawn from, for the whole batch.
        length: of the whole batch.
        part: which of it `x` holds.
    """
    if gain == 0 and offset == 0:
        return x
    shape = (length, x.shape[1], 1, 1)
    times = 1 + gain * (2 * torch.rand(shape, generator=generator)[part] - 1)
    plus = offset * (2 * torch.rand(shape, generator=generator)[part] - 1)
    return x * times.to(x.device) + plus.to(x.device)
