"""How high, how steep and towards where the glaciers of a map lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from glacier_core.maps.scenemap import ELEVATION_STEP_M, SceneMap, metres
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.terrain import slope_aspect

Floats = npt.NDArray[np.float64]
Stored = npt.NDArray[np.int16]

BIN_M = 100
"""Height of the steps of the hypsometry, metres."""
_STORED = 1 << 16
"""So many heights an int16 tells apart."""
_LOWEST_STEP = int(-_STORED / 2 * ELEVATION_STEP_M // BIN_M)
_ATTRIBUTES = ("zmin_m", "zmax_m", "zmean_m", "zmed_m", "slope_deg", "aspect_deg")


@dataclass(frozen=True)
class Pixels:
    """The pixels of glaciers in a strip of a map, in the order of its rows.

    Attributes:
        inside: bool (height, width), where they are.
        of: (pixels,) int64, index of the glacier.
        kind: (pixels,) int64, index of the class of ice.
        km2: (pixels,).
    """

    inside: npt.NDArray[np.bool_]
    of: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int64]
    km2: Floats


@dataclass(frozen=True)
class HeightSums:
    """What a strip adds to what is known of heights.

    Attributes:
        sums: (4, 2, glaciers), of heights, slopes, and the aspect's part to the east and to the
            north: their sum, and of how many pixels.
        steps: (steps, classes), km² by step of the hypsometry, from `_LOWEST_STEP`.
        heights: of all pixels whose height is known, to be ranked: `_STORED` times the index of
            the glacier, plus the stored height from the lowest.
    """

    sums: Floats
    steps: Floats
    heights: list[npt.NDArray[np.unsignedinteger[Any]]]

    def __add__(self, other: HeightSums) -> HeightSums:
        heights = [*self.heights, *other.heights]
        return HeightSums(self.sums + other.sums, self.steps + other.steps, heights)


def strips_with_heights(scene_map: SceneMap, rows: int) -> Iterator[tuple[Window, Stored | None]]:
    """Strips of a map from top to bottom, with their elevation as it is stored.

    A row more of it on either side, where there is one, for differences between rows; None where
    the map has no elevation. Each row is read once.
    """
    strips = list(scene_map.grid.strips(rows))
    if not scene_map.has_elevation:
        yield from ((strip, None) for strip in strips)
        return
    none: Stored = np.empty((0, scene_map.grid.width), dtype=np.int16)
    above, own = none, scene_map.read("elevation", strips[0])
    for strip, following in zip_longest(strips, strips[1:]):
        below = none if following is None else scene_map.read("elevation", following)
        yield strip, np.concatenate([above[-1:], own, below[:1]])
        above, own = own, below


def height_sums(
    grid: Grid, strip: Window, stored: Stored, pixels: Pixels, shape: tuple[int, int]
) -> HeightSums:
    """What a strip adds.

    Args:
        grid: of the map.
        strip: of it.
        stored: see `strips_with_heights`.
        pixels: of the strip.
        shape: number of glaciers, and of classes of ice.
    """
    count, kinds = shape
    around = Window(max(strip.row - 1, 0), 0, *stored.shape)
    inside = np.zeros(stored.shape, dtype=bool)
    inside[strip.within(around).slices] = pixels.inside
    elevation = metres(stored)
    slope, aspect = slope_aspect(elevation, grid, around, inside)
    height, towards = elevation[inside], np.radians(aspect)
    sums = np.empty((4, 2, count))
    known, sloping, facing = (np.isfinite(values) for values in (height, slope, aspect))
    for (total, number), values, good in zip(
        sums,
        (height, slope, np.sin(towards), np.cos(towards)),
        (known, sloping, facing, facing),
        strict=True,
    ):
        total[:] = np.bincount(pixels.of[good], weights=values[good], minlength=count)
        number[:] = np.bincount(pixels.of[good], minlength=count)
    height, of = height[known], pixels.of[known]
    step = np.floor(height / BIN_M).astype(np.int64) - _LOWEST_STEP
    steps = np.bincount(
        step * kinds + pixels.kind[known], weights=pixels.km2[known],
        minlength=-2 * _LOWEST_STEP * kinds,
    )  # fmt: skip
    level = (height / ELEVATION_STEP_M).astype(np.int64) + _STORED // 2
    heights = (of * _STORED + level).astype(np.min_scalar_type(count * _STORED))
    return HeightSums(sums, steps.astype(np.float64).reshape(-1, kinds), [heights])


def terrain(
    found: HeightSums | None, count: int
) -> tuple[dict[str, Floats], tuple[npt.NDArray[np.int64], Floats] | None]:
    """Attributes of glaciers and the hypsometry, from the sums of all strips.

    Args:
        found: None for a map without elevation.
        count: glaciers.

    Returns:
        By attribute (glaciers,), NaN where it is not known; and the lower edges of the steps in m
        (steps,) and km² (steps, classes), None where no height is known.
    """
    attributes = {name: np.full(count, np.nan) for name in _ATTRIBUTES}
    if found is None or not found.steps.any():
        return attributes, None
    ranked = np.concatenate(found.heights)
    ranked.sort()
    bounds = np.searchsorted(ranked, (np.arange(count + 1) * _STORED).astype(ranked.dtype))
    present = np.diff(bounds) > 0
    first, last = bounds[:-1][present], bounds[1:][present] - 1

    def height(rank: npt.NDArray[np.int64]) -> Floats:
        level = ranked[rank].astype(np.float64) % _STORED
        return (level - _STORED / 2) * ELEVATION_STEP_M

    attributes["zmin_m"][present], attributes["zmax_m"][present] = height(first), height(last)
    middle = height((first + last) // 2) + height((first + last + 1) // 2)
    attributes["zmed_m"][present] = middle / 2
    with np.errstate(invalid="ignore"):
        mean, slope, east, north = found.sums[:, 0] / found.sums[:, 1]
    attributes["zmean_m"], attributes["slope_deg"] = mean, slope
    # Rounded first: 359.97 is north, not 360.
    attributes["aspect_deg"] = np.degrees(np.arctan2(east, north)).round(1) % 360
    steps = np.flatnonzero(found.steps.any(axis=1))
    lowest, stop = int(steps[0]), int(steps[-1]) + 1
    edges = (np.arange(lowest, stop, dtype=np.int64) + _LOWEST_STEP) * BIN_M
    return attributes, (edges, found.steps[lowest:stop])
