"""Scores by class from one confusion matrix; undefined where a class never occurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glacier_core.dataset.slicing import IGNORED

UNDEFINED = "undefined"
Score = float | str


def confusion(
    truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], classes: int
) -> npt.NDArray[np.int64]:
    """Count pixels by true (rows) and predicted (columns) class, ignored ones left out.

    Args:
        truth: class numbers, any shape, 255 ignored.
        predicted: class numbers, the same shape, each below `classes` where truth is valid.
        classes: number of classes, background included.
    """
    valid = truth != IGNORED
    pairs = truth[valid].astype(np.int64) * classes + predicted[valid]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def _ratio(part: float, whole: float) -> Score:
    return part / whole if whole > 0 else UNDEFINED


def scores(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> dict[str, dict[str, Score]]:
    """IoU, precision, recall and Dice by class, pixel accuracy and mean IoU of the ice.

    A ratio over nothing is `undefined`: recall of a class that does not occur, precision of one
    never predicted, IoU and Dice of one that is neither.

    Args:
        matrix: from `confusion`, background at 0.
        names: class names by number.

    Returns:
        By class name, and under `all`: `pixel_accuracy`, `mean_ice_iou` (over classes other
        than background whose IoU is defined) and `pixels`.
    """
    result: dict[str, dict[str, Score]] = {}
    ious = []
    for i, name in enumerate(names):
        hit = float(matrix[i, i])
        true, said = float(matrix[i].sum()), float(matrix[:, i].sum())
        iou = _ratio(hit, true + said - hit)
        if i > 0 and isinstance(iou, float):
            ious.append(iou)
        result[name] = {
            "iou": iou,
            "precision": _ratio(hit, said),
            "recall": _ratio(hit, true),
            "dice": _ratio(2 * hit, true + said),
            "pixels": int(true),
        }
    total = float(matrix.sum())
    result["all"] = {
        "pixel_accuracy": _ratio(float(np.trace(matrix)), total),
        "mean_ice_iou": sum(ious) / len(ious) if ious else UNDEFINED,
        "pixels": int(total),
    }
    return result


class PrecisionRecall:
    """Precision and recall of one class at every threshold, from histograms of probability.

    256 steps of 1/255, the resolution in which probability maps are stored.
    """

    STEPS = 256

    def __init__(self) -> None:
        self._positive = np.zeros(self.STEPS, dtype=np.int64)
        self._negative = np.zeros(self.STEPS, dtype=np.int64)

    def add(self, probability: npt.NDArray[np.float32], is_class: npt.NDArray[np.bool_]) -> None:
        """Add valid pixels: probabilities in [0, 1] and whether each is of the class; (pixels,)."""
        step = np.rint(probability * (self.STEPS - 1)).astype(np.int64)
        self._positive += np.bincount(step[is_class], minlength=self.STEPS)
        self._negative += np.bincount(step[~is_class], minlength=self.STEPS)

    def curve(self) -> list[tuple[float, float, float]]:
        """(threshold, recall, precision) from high to low threshold; empty if undefined."""
        hits = self._positive[::-1].cumsum()
        said = hits + self._negative[::-1].cumsum()
        if hits[-1] == 0:
            return []
        thresholds = np.linspace(1, 0, self.STEPS)
        return [
            (float(t), float(h / hits[-1]), float(h / s))
            for t, h, s in zip(thresholds, hits, said, strict=True)
            if s > 0
        ]

    def average_precision(self) -> Score:
        """Area under the curve as a step function."""
        curve = self.curve()
        if not curve:
            return UNDEFINED
        area, last = 0.0, 0.0
        for _, recall, precision in curve:
            area += (recall - last) * precision
            last = recall
        return area
