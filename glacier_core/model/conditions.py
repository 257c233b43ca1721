"""The same scores by what makes ground hard: steep, dark, snowy, beside what was not seen, small."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.dataset.slicing import IGNORED
from glacier_core.files import whole_file
from glacier_core.model.metrics import Score, confusion, scores
from glacier_core.model.steps import connected
from glacier_core.raster.bands import SNOW_INDEX, find_common

BY_CONDITION = "by_condition.csv"
"""The table of scores, beside what they are of."""

Scores = dict[str, dict[str, Score]]
"""By class name; of a group without a class's mapped pixels, its recall alone."""

Groups = dict[tuple[str, str], npt.NDArray[np.bool_]]
"""By condition and group, the pixels of a slice that belong to it (height, width)."""

_STEEP = 30.0  # degrees
_DARK = 0.1  # share of a scene's valid pixels
_NEAR = 5  # pixels
_SMALL_KM2, _LARGE_KM2 = 0.1, 1.0
_EVERY = 16  # of a scene's valid pixels looked at for how dark the darkest tenth is

STEEPNESS, BRIGHTNESS, SNOW = "steepness", "brightness", "snow"
EDGE, SIZE = "edge of what was seen", "part size"


class Conditions:
    """Which test pixels are of which group, by each condition that the stored bands can tell.

    - `steepness`: slope from the elevation, or from a slope band in degrees where there is none.
    - `brightness`: the darkest tenth of each scene's valid test pixels, in green or else red: most
      of it shadow and water.
    - `snow`: snow index of green and short-wave infrared, above `SNOW_INDEX` or not. Where it is above, background
      is snow that could be taken for ice, and debris lies under snow.
    - `edge of what was seen`: within 5 pixels of one that is ignored, such as beside cloud, gaps and
      fill. A scene without fill has no such edge at its border.
    - `part size`: of the true ice connected in a slice, by edges and corners, all classes together.
      A part that the slice's edge or unseen ground cuts off has no size unless what is seen of it
      is large.
    """

    def __init__(self, dataset: Dataset) -> None:
        bands = dataset.common_bands()

        def named(common: str) -> str | None:
            at = find_common(bands, common)
            return None if at is None else bands[at]

        self._dataset = dataset
        self._height = named("elevation")
        self._slope = next((name for name in ("slope", "slope_deg") if name in bands), None)
        self._green = named("green")
        self._visible = self._green or named("red")
        self._infrared = named("swir1")
        self._dark = {} if self._visible is None else _darkest(dataset, self._visible)

    def groups(self, sample: Sample, pixel_m: float) -> Groups:
        """The groups of a test slice, of pixels with an edge of so many metres."""
        return {
            (condition, group): where for condition, group, where in self._found(sample, pixel_m)
        }

    def _found(
        self, sample: Sample, pixel_m: float
    ) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
        slope = self._slope_of(sample, pixel_m)
        if slope is not None:
            yield STEEPNESS, f"{_STEEP:.0f} degrees or more", slope >= _STEEP
            yield STEEPNESS, f"below {_STEEP:.0f} degrees", slope < _STEEP
        if self._visible is not None:
            values, dark = self._band(sample, self._visible), self._dark[sample.scene]
            yield BRIGHTNESS, "darkest tenth", values <= dark
            yield BRIGHTNESS, "brighter", values > dark
        if self._green is not None and self._infrared is not None:
            # Without the division, which 0 / 0 would spoil.
            visible, infrared = (self._band(sample, name) for name in (self._green, self._infrared))
            snow = visible - infrared > SNOW_INDEX * np.abs(visible + infrared)
            yield SNOW, "snow or clean ice", snow
            yield SNOW, "neither", ~snow & np.isfinite(visible + infrared)
        numbers = self._dataset.label("test", sample)
        seen = numbers != IGNORED
        near = np.zeros_like(seen) if seen.all() else distance_transform_edt(seen) <= _NEAR
        yield EDGE, f"within {_NEAR} pixels", near
        yield EDGE, "further away", ~near
        areas = _part_areas(seen & (numbers > 0), seen, pixel_m)
        yield SIZE, f"below {_SMALL_KM2} km2", areas < _SMALL_KM2
        middle = (areas >= _SMALL_KM2) & (areas < _LARGE_KM2)
        yield SIZE, f"{_SMALL_KM2} to {_LARGE_KM2:.0f} km2", middle
        yield SIZE, f"{_LARGE_KM2:.0f} km2 or more", areas >= _LARGE_KM2

    def _band(self, sample: Sample, name: str) -> npt.NDArray[np.float32]:
        return self._dataset.measured("test", sample, name)

    def _slope_of(self, sample: Sample, pixel_m: float) -> npt.NDArray[np.float32] | None:
        """Degrees (height, width), NaN where unknown; None where no band tells."""
        if self._height is not None and min(sample.height, sample.width) > 1:
            by_row, by_col = np.gradient(self._band(sample, self._height), pixel_m)
            slope: npt.NDArray[np.float32] = np.degrees(np.arctan(np.hypot(by_row, by_col)))
            return slope
        return None if self._slope is None else self._band(sample, self._slope)


class ByCondition:
    """Pixels by true and mapped class, in each group of each condition."""

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: class names by number, background first.
        """
        self._names = list(names)
        self._counted: dict[tuple[str, str], npt.NDArray[np.int64]] = {}

    def add(
        self, groups: Groups, truth: npt.NDArray[np.uint8], said: npt.NDArray[np.uint8]
    ) -> None:
        """Add a slice.

        Args:
            groups: of its pixels.
            truth: class numbers (height, width), 255 where ignored or counted before.
            said: mapped class numbers (height, width).
        """
        for key, where in groups.items():
            counted = confusion(np.where(where, truth, np.uint8(IGNORED)), said, len(self._names))
            self._counted[key] = self._counted.get(key, 0) + counted

    def scores(self) -> dict[str, dict[str, Scores]]:
        """Scores by condition, group and class name, as `metrics.scores` gives them.

        Of `part size`, which the truth alone has, recall and pixels of the ice classes.
        """
        result: dict[str, dict[str, Scores]] = {}
        for (condition, group), matrix in self._counted.items():
            found = scores(matrix, self._names)
            del found["all"]
            if condition == SIZE:
                found = {
                    name: {key: found[name][key] for key in ("recall", "pixels")}
                    for name in self._names[1:]
                }
            result.setdefault(condition, {})[group] = found
        return result


def write_table(path: Path, conditions: Mapping[str, Mapping[str, Scores]]) -> None:
    """Write scores by condition as CSV: a row for each group and class."""
    keys = "iou precision recall dice pixels".split()
    with whole_file(path) as beside, beside.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["condition", "group", "class", *keys])
        for condition, groups in conditions.items():
            for group, found in groups.items():
                for name, values in found.items():
                    writer.writerow([condition, group, name, *(values.get(k, "") for k in keys)])


def as_rows(
    conditions: Mapping[str, Mapping[str, Scores]], classes: Sequence[str]
) -> list[list[str]]:
    """Scores by condition for people: the head, and a row for each group.

    A cell has the class's IoU, or recall where that is all there is, and how much of the class lies
    in the group: a low score of a thousandth of the ice is no news.
    """
    rows = [["condition", "group", *(f"{name}: IoU (share of it)" for name in classes)]]
    for condition, groups in conditions.items():
        for group, found in groups.items():
            cells = [
                _cell(found[name], [of.get(name, {}) for of in groups.values()])
                if name in found
                else ""
                for name in classes
            ]
            rows.append([condition, group, *cells])
    return rows


def _cell(values: Mapping[str, Score], of_all: Sequence[Mapping[str, Score]]) -> str:
    kind = "iou" if "iou" in values else "recall"
    score = values[kind]
    shown = score if isinstance(score, str) else f"{score:.3f}"
    total = sum(float(of["pixels"]) for of in of_all if "pixels" in of)
    share = f"{float(values['pixels']) / total:.1%}" if total else "none"
    return f"{'recall ' if kind == 'recall' else ''}{shown} ({share})"


def _darkest(dataset: Dataset, band: str) -> dict[str, float]:
    """By scene, the value of a band that the darkest tenth of its valid test pixels do not exceed."""
    found: dict[str, list[npt.NDArray[np.float32]]] = defaultdict(list)
    covers = dataset.counted_once("test")
    for sample, once in zip(dataset.splits["test"], covers, strict=True):
        valid = once & (dataset.label("test", sample) != IGNORED)
        values = dataset.measured("test", sample, band)[valid]
        found[sample.scene].append(values[np.isfinite(values)][::_EVERY])
    values_of = {scene: np.concatenate(parts) for scene, parts in found.items()}
    return {
        scene: float(np.quantile(values, _DARK)) if values.size else -np.inf
        for scene, values in values_of.items()
    }


def _part_areas(
    ice: npt.NDArray[np.bool_], seen: npt.NDArray[np.bool_], pixel_m: float
) -> npt.NDArray[np.float64]:
    """Square kilometres of the connected part that each pixel of ice belongs to (height, width).

    NaN away from ice, and in parts cut off by the array's edge or by unseen ground of which less
    than `_LARGE_KM2` is here: nobody knows how large they are.
    """
    numbers, cut = connected(ice, seen)
    areas = np.bincount(numbers.ravel(), minlength=cut.size) * np.float64((pixel_m / 1000) ** 2)
    areas[cut & (areas < _LARGE_KM2)] = np.nan
    areas[0] = np.nan
    result: npt.NDArray[np.float64] = areas[numbers]
    return result
