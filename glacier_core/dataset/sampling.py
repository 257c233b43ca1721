"""What the network is shown in training: which crops, where, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from glacier_core.dataset.augmentation import turned, with_gaps, zoomed
from glacier_core.dataset.composition import class_pixels
from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.errors import InputError
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
        self._params = params
        shares = {name: share for name, share in params.focus.items() if share > 0}
        self._focus = Focus(dataset, shares) if shares else None
        self._channels = len(dataset.channels)

    def __len__(self) -> int:
        return len(self._samples) * self._params.crops_per_slice

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Raw channels (size, size, channels) float32 and class numbers (size, size) uint8."""
        epoch, number = key
        random = np.random.default_rng([self._seed, epoch, number])
        sample = self._samples[number % len(self._samples)]
        pixel = None
        if self._focus is not None and (found := self._focus.drawn(random)) is not None:
            sample, pixel = found
        size = self._shown(random)
        window = self._window(sample, size, pixel, random)
        image = self._dataset.image("train", sample, window)
        label = self._dataset.label("train", sample, window)
        image, label = zoomed(image, label, self._size)
        image, label = turned(image, label, self._augment, random)
        # After the turns: sweeps run as they do in use.
        if self._params.gaps and random.random() < self._params.gaps:
            image, label = with_gaps(image, label, self._dataset.channels, random)
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

    def _shown(self, random: np.random.Generator) -> int:
        """Edge of the ground that a crop shows, in pixels of the slice."""
        if not self._params.zoom:
            return self._size
        # As often so much larger as so much smaller.
        enlarged = float((1 + self._params.zoom) ** random.uniform(-1, 1))
        return max(1, round(self._size / enlarged))

    def _window(
        self,
        sample: Sample,
        size: int,
        pixel: tuple[int, int] | None,
        random: np.random.Generator,
    ) -> Window:
        """Any place in the slice, or any at which the crop holds the pixel."""

        def first(axis: int, length: int) -> int:
            least, most = 0, max(length - size, 0)
            if pixel is not None:
                least, most = max(least, pixel[axis] - size + 1), min(most, pixel[axis])
            return int(random.integers(least, most + 1))

        return Window(first(0, sample.height), first(1, sample.width), size, size)


class Focus:
    """Pixels of classes that crops are placed upon, by shares of an epoch's crops.

    A slice is chosen by the square root of how many pixels of the class it has: by the number
    itself, a few large glaciers would be most of what is shown; with none, a slice in which an
    outline's corner lies would be shown as often as one full of ice, and its few pixels each time.
    """

    def __init__(self, dataset: Dataset, shares: Mapping[str, float]) -> None:
        """Count the pixels of each class in each training slice.

        Args:
            dataset: whose training split.
            shares: by class name; 1 together at most.

        Raises:
            InputError: a class has no pixel there.
        """
        self._dataset = dataset
        pixels = dict(zip(dataset.class_names, class_pixels(dataset).T, strict=True))
        self._classes: list[tuple[int, float, npt.NDArray[np.float64]]] = []
        upto = 0.0
        for name, share in shares.items():
            if name not in pixels or not pixels[name].any():
                raise InputError(
                    f"params.yaml: train.focus: no training slice shows a pixel of {name}, so no "
                    "crop can be placed upon one. Leave it out, or choose another seed, block_km "
                    "or split"
                )
            upto += share
            chance = np.sqrt(pixels[name])
            self._classes.append((dataset.class_names.index(name), upto, chance / chance.sum()))

    def drawn(self, random: np.random.Generator) -> tuple[Sample, tuple[int, int]] | None:
        """A slice and a pixel (row, column) of it; None for a crop that lies anywhere."""
        chosen = random.random()
        for number, upto, chances in self._classes:
            if chosen < upto:
                sample = self._dataset.splits["train"][random.choice(len(chances), p=chances)]
                label = self._dataset.label("train", sample)
                places = np.flatnonzero(label == number)
                row, col = divmod(int(places[random.integers(len(places))]), label.shape[1])
                return sample, (row, col)
        return None


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
