"""How much of the training split each class is, and the weights that make up for it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.errors import InputError
from glacier_core.threads import in_threads


def class_pixels(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Pixels of each class in each slice of the training split; reads every label once.

    Returns:
        int64 (slices, classes), by class number, background first. Ignored pixels count nowhere,
        others in the first slice that shows them.
    """
    classes = len(dataset.class_names)

    def of_slice(pair: tuple[Sample, npt.NDArray[np.bool_]]) -> npt.NDArray[np.int64]:
        sample, first = pair
        numbers = dataset.label("train", sample)[first]
        return np.bincount(numbers, minlength=classes)[:classes]

    pairs = zip(dataset.splits["train"], dataset.counted_once("train"), strict=True)
    return np.array(list(in_threads(of_slice, pairs)), dtype=np.int64).reshape(-1, classes)


def balanced_weights(dataset: Dataset) -> dict[str, float]:
    """Weights of classes in the loss: the rarer a class is in the training split, the more.

    The inverse square root of a class's share of the pixels, divided so that their mean is 1.
    The inverse itself would let the few pixels of a rare class, and the errors along its outlines,
    outvote everything else.

    Returns:
        By class name, background first.

    Raises:
        InputError: a class has no pixel there.
    """
    pixels = class_pixels(dataset).sum(axis=0)
    absent = [name for name, count in zip(dataset.class_names, pixels, strict=True) if count == 0]
    if absent:
        raise InputError(
            "params.yaml: train.class_weights: balanced weighs each class by its pixels in the "
            f"training split, which has none of {', '.join(absent)}. Give a weight for each class "
            "instead, or choose another seed, block_km or split"
        )
    weights = (pixels / pixels.sum()) ** -0.5
    return dict(zip(dataset.class_names, (weights / weights.mean()).tolist(), strict=True))
