"""What a glaciologist would try first: an index threshold, and a random forest by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier

from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.dataset.slicing import IGNORED
from glacier_core.params import ForestParams
from glacier_core.raster.bands import find_common

# Tried on the training split, so that each rule meets the test at its best. NDSI > 0.4 is the
# classic (Hall et al. 1995), red / SWIR > 2 that of the inventories (Paul et al. 2002).
_NDSI_THRESHOLDS = np.linspace(0.0, 0.9, 19)
_RATIO_THRESHOLDS = np.linspace(1.0, 5.0, 17)


def sample_pixels(
    dataset: Dataset, count: int, seed: int, bands: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Valid training pixels drawn evenly over slices.

    Args:
        dataset: its training split is drawn from.
        count: about how many pixels.
        seed: of the draw.
        bands: names of stored bands; the dataset's channels where None.

    Returns:
        values (pixels, channels), NaN where a band is unseen; class numbers (pixels,).
    """
    samples = dataset.splits["train"]
    random = np.random.default_rng(seed)
    values, numbers = [], []
    for sample in samples:
        label = dataset.label("train", sample)
        rows, cols = np.nonzero(label != IGNORED)
        chosen = random.permutation(rows.size)[: max(count // len(samples), 1)]
        rows, cols = rows[chosen], cols[chosen]
        values.append(dataset.image("train", sample, bands=bands)[rows, cols])
        numbers.append(label[rows, cols])
    return np.concatenate(values), np.concatenate(numbers)


class IndexThreshold:
    """One class where NDSI, or else the ratio red / SWIR, exceeds a threshold; never another.

    Attributes:
        rule: the rule in words, with the threshold chosen on the training split.
    """

    def __init__(self, dataset: Dataset, target: int, count: int, seed: int) -> None:
        """Choose the threshold with the best IoU of class number `target` on training pixels.

        Raises:
            LookupError: the scenes have neither green and SWIR nor red and SWIR.
        """
        bands = dataset.common_bands()
        swir = find_common(bands, "swir1")
        green, red = find_common(bands, "green"), find_common(bands, "red")
        if swir is None or (green is None and red is None):
            raise LookupError("the scenes share no green or red band with a SWIR band by name")
        first = green if green is not None else red
        assert first is not None
        self._bands, self._target = [bands[first], bands[swir]], target
        self._ndsi = green is not None
        values, numbers = sample_pixels(dataset, count, seed, self._bands)
        index, truth = self._index(values), numbers == target
        best = -1.0
        for threshold in _NDSI_THRESHOLDS if self._ndsi else _RATIO_THRESHOLDS:
            said = index > threshold
            union = int((said | truth).sum())
            iou = int((said & truth).sum()) / union if union else 0.0
            if iou > best:
                best, self._threshold = iou, float(threshold)
        kind = "NDSI" if self._ndsi else "ratio"
        self.rule = (
            f"{dataset.class_names[target]} where {kind} of {self._bands[0]} and {self._bands[1]} "
            f"> {self._threshold:.2f}"
        )

    def _index(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        first, swir = values[..., 0], values[..., 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            index = (first - swir) / (first + swir) if self._ndsi else first / swir
        result: npt.NDArray[np.float32] = np.nan_to_num(index, nan=-np.inf)
        return result

    def predict(self, dataset: Dataset, split: str, sample: Sample) -> npt.NDArray[np.uint8]:
        """Class numbers (height, width)."""
        index = self._index(dataset.image(split, sample, bands=self._bands))
        return np.where(index > self._threshold, self._target, 0).astype(np.uint8)


class PixelForest:
    """A random forest on the network's channels, pixel by pixel, classes balanced."""

    def __init__(self, dataset: Dataset, params: ForestParams, seed: int) -> None:
        values, numbers = sample_pixels(dataset, params.sample_pixels, seed)
        self._fill = np.nan_to_num(np.nanmean(values, axis=0))
        self._forest = RandomForestClassifier(
            n_estimators=params.trees,
            max_depth=params.depth,
            class_weight="balanced_subsample",
            n_jobs=-1,
            random_state=seed,
        ).fit(self._imputed(values), numbers)

    def _imputed(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.where(np.isfinite(values), values, self._fill).astype(np.float32)

    def predict(self, dataset: Dataset, split: str, sample: Sample) -> npt.NDArray[np.uint8]:
        """Class numbers (height, width); background where the truth is ignored anyway."""
        label = dataset.label(split, sample)
        valid = label != IGNORED
        numbers = np.zeros(label.shape, dtype=np.uint8)
        if valid.any():
            pixels = self._imputed(dataset.image(split, sample)[valid])
            numbers[valid] = self._forest.predict(pixels)
        return numbers
