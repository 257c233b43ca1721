"""A model over a whole split, every pixel once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.dataset.slicing import IGNORED


class SaysProbabilities(Protocol):
    """A model, or several as one."""

    def probabilities(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...


def predict_split(
    predictor: SaysProbabilities, dataset: Dataset, split: str, *, first: int = 0, step: int = 1
) -> Iterator[tuple[Sample, npt.NDArray[np.uint8], npt.NDArray[np.float32]]]:
    """Predict each slice of a split, or every `step`-th from `first` on.

    Yields:
        The sample; its true class numbers (height, width), with 255 also where an earlier slice
        of the same scene shows the pixel, so that each counts once; and class probabilities
        (classes, height, width), 0 where nothing was seen.
    """
    samples = dataset.splits[split]
    covered = zip(samples, dataset.counted_once(split), strict=True)
    for sample, once in itertools.islice(covered, first, None, step):
        truth = np.where(once, dataset.label(split, sample), np.uint8(IGNORED))
        image = np.moveaxis(dataset.image(split, sample), -1, 0)
        yield sample, truth, np.nan_to_num(predictor.probabilities(image[None])[0])
