"""What can be done to a class map after the network, and what each step gives.

A step that sounds right may take away more ice than mistakes: where there are labels, its gain says so.
Slices are looked at one by one, so what touches an edge, or ground that was not seen, is left as it is:
how it goes on is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from glacier_core.dataset.slicing import IGNORED
from glacier_core.model.metrics import UNDEFINED, Score, confusion, scores

Classes = npt.NDArray[np.uint8]
"""Class numbers (height, width), 0 background, `IGNORED` where nothing was seen."""

_CORNERS_TOO = np.ones((3, 3), dtype=bool)


def without_small_glaciers(classes: Classes, pixels: float) -> Classes:
    """Ice in one piece of fewer pixels, corners included, is none."""
    part, cut = connected(_is_ice(classes), classes != IGNORED)
    small = (np.bincount(part.ravel()) < pixels) & ~cut
    return np.where(small[part], np.uint8(0), classes)


def without_holes(classes: Classes, pixels: float) -> Classes:
    """Ground within ice of fewer pixels is the nearest ice."""
    ice = _is_ice(classes)
    part, cut = connected(classes == 0, classes != IGNORED, corners=False)
    hole = ((np.bincount(part.ravel()) < pixels) & ~cut)[part]
    if not hole.any() or not ice.any():
        return classes
    nearest = ndimage.distance_transform_edt(~ice, return_distances=False, return_indices=True)
    return np.where(hole, classes[tuple(nearest)], classes)


def without_loose_debris(classes: Classes, debris: int | None) -> Classes:
    """Debris in one piece with no other ice is none: a tongue hangs on a glacier.

    Args:
        classes: the map.
        debris: number of that class; None where there is none, and nothing to do.
    """
    if debris is None:
        return classes
    part, fed = connected(_is_ice(classes), classes != IGNORED)
    fed[part[_is_ice(classes) & (classes != debris)]] = True
    return np.where((classes == debris) & ~fed[part], np.uint8(0), classes)


STEPS: dict[str, Callable[[Classes, float, int | None], Classes]] = {
    "without small glaciers": lambda classes, pixels, _: without_small_glaciers(classes, pixels),
    "without small holes": lambda classes, pixels, _: without_holes(classes, pixels),
    "without debris that no clean ice feeds": lambda classes, _, debris: without_loose_debris(
        classes, debris
    ),
}
"""By name: what each makes of classes, given the pixels of the smallest glacier and the number of
the class `debris`, None where there is none."""


def _is_ice(classes: Classes) -> npt.NDArray[np.bool_]:
    ice: npt.NDArray[np.bool_] = (classes > 0) & (classes != IGNORED)
    return ice


def connected(
    chosen: npt.NDArray[np.bool_], seen: npt.NDArray[np.bool_], *, corners: bool = True
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Number of the connected part of each chosen pixel (height, width), 0 elsewhere; and by number
    whether it touches an edge of the array or what was not seen. Number 0 does."""
    part, count = ndimage.label(chosen, _CORNERS_TOO if corners else None)
    cut = np.zeros(count + 1, dtype=bool)
    beside_unseen = ndimage.binary_dilation(~seen, _CORNERS_TOO)
    for touching in (part[0], part[-1], part[:, 0], part[:, -1], part[beside_unseen]):
        cut[touching] = True
    cut[0] = True
    return part, cut


class StepGains:
    """Scores of a map as the network says it, and after each step alone."""

    def __init__(self, names: Sequence[str], min_area_km2: float) -> None:
        """
        Args:
            names: class names by number, background first.
            min_area_km2: of the smallest glacier, and hole.
        """
        self._names, self._km2 = list(names), min_area_km2
        self._debris = self._names.index("debris") if "debris" in self._names else None
        self._plain = np.zeros((len(names), len(names)), dtype=np.int64)
        self._after = {name: self._plain.copy() for name in STEPS}

    def add(
        self,
        truth: npt.NDArray[np.uint8],
        probability: npt.NDArray[np.float32],
        pixel_m: float,
    ) -> None:
        """Add a slice.

        Args:
            truth: class numbers (height, width), 255 for what does not count.
            probability: (classes, height, width), 0 where nothing was seen.
            pixel_m: edge of a pixel.
        """
        classes = probability.argmax(axis=0).astype(np.uint8)
        classes[~probability.any(axis=0)] = IGNORED
        pixels = self._km2 * 1e6 / pixel_m**2
        count = len(self._names)
        truth = np.where(classes == IGNORED, np.uint8(IGNORED), truth)
        self._plain += confusion(truth, classes, count)
        for name, step in STEPS.items():
            self._after[name] += confusion(truth, step(classes, pixels, self._debris), count)

    def result(self) -> dict[str, dict[str, dict[str, Score]]]:
        """By step and class `iou` after it, and its `gain` over the map as it was."""
        plain = scores(self._plain, self._names)
        return {
            name: {
                label: _gain(found, plain[label]["iou"])
                for label, found in scores(matrix, self._names).items()
                if label not in ("all", self._names[0])
            }
            for name, matrix in self._after.items()
        }


def _gain(found: dict[str, Any], before: Score) -> dict[str, Score]:
    after: Score = found["iou"]
    if isinstance(after, str) or isinstance(before, str):
        return {"iou": after, "gain": UNDEFINED}
    return {"iou": after, "gain": after - before}
