"""What is known about each glacier of a map: areas and their uncertainty, heights, confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt
import shapely

from glacier_core.maps.coverage import Coverage
from glacier_core.maps.glaciers import STRIP_ROWS, Glaciers, nearest_fringe
from glacier_core.maps.heights import (
    HeightSums,
    Pixels,
    Stored,
    height_sums,
    strips_with_heights,
    terrain,
)
from glacier_core.maps.scenemap import UNSEEN, SceneMap
from glacier_core.raster.grid import Grid, Window
from glacier_core.threads import in_threads

Floats = npt.NDArray[np.float64]

# How far off an outline is taken to be, in pixels: Paul et al. 2017 (Remote Sensing of Environment
# 203, section 3.1) take half a pixel for clean ice and a pixel for debris, which is harder to see.
BORDER_ERROR_PIXELS = {"debris": 1.0}
_CLEAN_BORDER_ERROR = 0.5
# Beyond this distance from mapped ice, what the network thinks of a pixel adds nothing to the
# uncertainty of a glacier.
_FRINGE_PIXELS = 2
_LEVELS = np.arange(256) / 255
# Standard deviation of whether a pixel is ice, by its stored probability.
_DEVIATION = np.sqrt(_LEVELS * (1 - _LEVELS))

METHODS = {
    "area": "Pixels of each class, each with its area on the ellipsoid of the CRS.",
    "err_buffer": "Length of the outline times how far off it may be: half a pixel at clean ice, a "
    "pixel at debris (buffer method: Granshaw and Fountain 2006; widths: Paul et al. 2017). "
    "Outlines along ice divides, the scene's edge and unseen ground are not counted; those of "
    "several glaciers are added up, as if all were off the same way.",
    "err_prob": "One standard deviation by the network's own probabilities: p (1 - p) of each "
    "pixel of the glacier and of two pixels around it, errors being alike within the range "
    "outlines.correlation_m (Rolstad et al. 2009). It knows nothing of what the network does not "
    "know. Glaciers are taken to be independent.",
    "confidence": "Mean probability of the mapped class over the glacier's pixels.",
    "elevation": "Of the scene's elevation band; slope and aspect by central differences.",
}


@dataclass(frozen=True)
class Faces:
    """Pixels by glacier and class: what polygons are traced of, row by row as `trace` asks for them.

    Attributes:
        glaciers: int32 (height, width), from 1, 0 elsewhere.
        classes: uint8 (height, width), class numbers; `UNSEEN` only outside of glaciers.
        ice: names of the classes of ice, number 1 first.
    """

    glaciers: npt.NDArray[np.int32]
    classes: npt.NDArray[np.uint8]
    ice: list[str]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.glaciers.shape

    def __getitem__(self, rows: slice) -> npt.NDArray[np.int32]:
        """Face numbers: from 1 where there is ice, 0 where there is none, -1 where unseen."""
        glaciers, classes = self.glaciers[rows], self.classes[rows]
        numbers = (glaciers - np.int32(1)) * np.int32(len(self.ice)) + classes
        numbers[glaciers == 0] = 0
        numbers[classes == UNSEEN] = -1
        return numbers

    def glacier_of(self, face: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Index of a face's glacier, from 0."""
        return (np.asarray(face, dtype=np.int64) - 1) // len(self.ice)

    def class_of(self, face: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Index of a face's class in `ice`, from 0."""
        return (np.asarray(face, dtype=np.int64) - 1) % len(self.ice)


@dataclass(frozen=True)
class BorderErrors:
    """What the buffer method says, km², and how much of an outline is no outline.

    Attributes:
        glacier: (glaciers,).
        by_class: (glaciers, classes).
        open: (glaciers,): share of the outline along unseen ground or the scene's edge, where the
            glacier may go on.
    """

    glacier: Floats
    by_class: Floats
    open: Floats

    def within(self, km2: Floats) -> BorderErrors:
        """No more than the areas themselves, (glaciers, classes)."""
        return BorderErrors(
            np.minimum(self.glacier, km2.sum(axis=1)), np.minimum(self.by_class, km2), self.open
        )


def border_errors(coverage: Coverage, faces: Faces, count: int, grid: Grid) -> BorderErrors:
    """The buffer method, from the lengths of borders.

    Args:
        coverage: of `faces`.
        faces: see there.
        count: glaciers.
        grid: located.
    """
    (a, d), (b, e) = grid.steps_m(grid.height // 2, grid.width // 2)
    xy, border = shapely.get_coordinates(coverage.borders, return_index=True)
    (x, y), within = np.diff(xy, axis=0).T, border[1:] == border[:-1]
    metres = np.hypot(a * x + b * y, d * x + e * y)[within]
    km = _summed(border[1:][within], metres / 1000, len(coverage.borders))
    half = np.array([BORDER_ERROR_PIXELS.get(name, _CLEAN_BORDER_ERROR) for name in faces.ice])
    width = half * grid.pixel_size_m() / 1000
    by_class = np.zeros((count, len(faces.ice)))
    glacier, outline, beyond = np.zeros(count), np.zeros(count), np.zeros(count)
    low, high = coverage.sides[:, 0], coverage.sides[:, 1]
    for own, other in ((high, low), (low, high)):
        ours = own > 0
        of, kind = faces.glacier_of(own[ours]), faces.class_of(own[ours])
        facing, length = other[ours], km[ours]
        against_rock, unknown = facing == 0, facing < 0
        inner = (facing > 0) & (faces.glacier_of(np.maximum(facing, 1)) == of)
        counted = against_rock | inner  # not the divides
        # Between two classes, the one that is harder to see decides.
        error = np.where(
            inner, np.maximum(width[kind], width[faces.class_of(np.maximum(facing, 1))]),
            width[kind],
        ) * length  # fmt: skip
        np.add.at(by_class, (of[counted], kind[counted]), error[counted])
        np.add.at(glacier, of[against_rock], error[against_rock])
        np.add.at(outline, of[~inner], length[~inner])
        np.add.at(beyond, of[unknown], length[unknown])
    return BorderErrors(glacier, by_class, beyond / np.maximum(outline, 1e-12))


@dataclass(frozen=True)
class Measures:
    """Glacier by glacier, what rasters say.

    Attributes:
        km2: (glaciers, classes).
        gap_km2: (glaciers,), unseen ground between ice of it.
        error: (glaciers, classes), one standard deviation by the probabilities, km².
        total_error: (glaciers,), of all ice together.
        confidence: (glaciers,), and by class (glaciers, classes); 0 to 1, NaN for no pixel.
        terrain: by attribute (glaciers,), NaN where it is not known.
        hypsometry: lower edges of the steps in m (steps,), and km² (steps, classes).
    """

    km2: Floats
    gap_km2: Floats
    error: Floats
    total_error: Floats
    confidence: Floats
    class_confidence: Floats
    terrain: Mapping[str, Floats]
    hypsometry: tuple[npt.NDArray[np.int64], Floats] | None


@dataclass(frozen=True)
class _Sums:
    """What a strip of a map adds to its measures.

    Attributes:
        km2: (glaciers, classes).
        gap_km2: (glaciers,).
        sure: (glaciers, classes), areas times confidence, km².
        deviations: (classes + 1, 2, glaciers), by each class and by all ice together: of pixels,
            times their areas, and of the squares of that.
        heights: None for a map without.
    """

    km2: Floats
    gap_km2: Floats
    sure: Floats
    deviations: Floats
    heights: HeightSums | None

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.km2 + other.km2,
            self.gap_km2 + other.gap_km2,
            self.sure + other.sure,
            self.deviations + other.deviations,
            self.heights + other.heights if self.heights and other.heights else None,
        )


def measure(
    scene_map: SceneMap, faces: Faces, glaciers: Glaciers, *, correlation_m: float
) -> Measures:
    """Measure every glacier of a map, strip by strip.

    Args:
        scene_map: the map.
        faces: its pixels by glacier and class.
        glaciers: those of `faces`.
        correlation_m: range within which errors of the map are alike.
    """

    def measured(part: tuple[Window, Stored | None]) -> _Sums:
        return _measure_strip(scene_map, faces, glaciers, *part)

    sums = reduce(add, in_threads(measured, strips_with_heights(scene_map, STRIP_ROWS)))
    with np.errstate(invalid="ignore"):
        class_confidence = sums.sure / sums.km2
        confidence = sums.sure.sum(axis=1) / sums.km2.sum(axis=1)
    # So many pixels err as one: a fifth of the circle of the correlation's range, for a spherical
    # variogram (Rolstad et al. 2009, Journal of Glaciology 55, equation 8).
    alike = max(1.0, np.pi * correlation_m**2 / 5 / scene_map.grid.pixel_size_m() ** 2)
    together, squares = sums.deviations[:, 0], sums.deviations[:, 1]
    # At worst all pixels of a glacier err as one.
    *error, total_error = np.minimum(np.sqrt(squares * alike), together)
    heights, hypsometry = terrain(sums.heights, glaciers.count)
    return Measures(
        km2=sums.km2,
        gap_km2=sums.gap_km2,
        error=np.stack(error, axis=1),
        total_error=total_error,
        confidence=confidence,
        class_confidence=class_confidence,
        terrain=heights,
        hypsometry=hypsometry,
    )


def _measure_strip(
    scene_map: SceneMap, faces: Faces, glaciers: Glaciers, strip: Window, stored: Stored | None
) -> _Sums:
    count, kinds = glaciers.count, len(faces.ice)
    pixels, gap_km2 = _pixels(scene_map.grid, faces, glaciers, strip)
    cell = pixels.of * kinds + pixels.kind

    def by_class(weights: Floats) -> Floats:
        return _summed(cell, weights, count * kinds).reshape(count, kinds)

    confidence = scene_map.read("confidence", strip)[pixels.inside] / 255
    return _Sums(
        by_class(pixels.km2),
        gap_km2,
        by_class(confidence * pixels.km2),
        _deviations(scene_map, faces, strip, pixels, count),
        None if stored is None else height_sums(
            scene_map.grid, strip, stored, pixels, (count, kinds)
        ),
    )  # fmt: skip


def _pixels(grid: Grid, faces: Faces, glaciers: Glaciers, strip: Window) -> tuple[Pixels, Floats]:
    """The pixels of glaciers in a strip; and km² of their gaps there, (glaciers,)."""
    numbers = faces.glaciers[strip.slices]
    inside = numbers > 0
    at = glaciers.gaps - strip.row * strip.width
    own = slice(*np.searchsorted(at, (0, inside.size)))
    either = inside.copy()
    either.reshape(-1)[at[own]] = True
    areas, is_ice = grid.pixel_areas_km2(strip, either), inside[either]
    gap_km2 = _summed(glaciers.gap_numbers[own] - 1, areas[~is_ice], glaciers.count)
    pixels = Pixels(
        inside=inside,
        of=numbers[inside].astype(np.int64) - 1,
        kind=faces.classes[strip.slices][inside].astype(np.int64) - 1,
        km2=areas[is_ice],
    )
    return pixels, gap_km2


def _summed(of: npt.NDArray[np.integer], values: Floats, count: int) -> Floats:
    # Of no value at all, NumPy's sums are integers.
    sums: Floats = np.bincount(of, weights=values, minlength=count).astype(np.float64)
    return sums


def _deviations(
    scene_map: SceneMap, faces: Faces, strip: Window, pixels: Pixels, count: int
) -> Floats:
    """What a strip adds to `_Sums.deviations`, also by the pixels around glaciers."""
    around, beside = _fringe(faces, strip)
    of = np.append(pixels.of, beside)
    km2 = np.append(pixels.km2, np.full(around.size, scene_map.grid.pixel_size_m() ** 2 / 1e6))
    layers = scene_map.read("probabilities", strip)
    stored = [np.append(layer[pixels.inside], layer.ravel()[around]) for layer in layers]
    stored.append(np.minimum(np.sum(stored, axis=0, dtype=np.uint16), 255))
    sums = np.empty((len(stored), 2, count))
    for levels, (together, squares) in zip(stored, sums, strict=True):
        own = _DEVIATION[levels] * km2
        together[:] = np.bincount(of, weights=own, minlength=count)
        squares[:] = np.bincount(of, weights=own**2, minlength=count)
    return sums


def _fringe(faces: Faces, strip: Window) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions in a strip of the pixels around glaciers that were seen, and which glacier each
    is next to, from 0."""
    top = max(strip.row - _FRINGE_PIXELS, 0)
    # So far, glaciers of other strips reach into this one.
    reach = slice(top, strip.row + strip.height + _FRINGE_PIXELS)
    at, number = nearest_fringe(faces.glaciers[reach], _FRINGE_PIXELS)
    at -= (strip.row - top) * strip.width
    own = (at >= 0) & (at < strip.height * strip.width)
    own[own] = faces.classes[strip.slices].ravel()[at[own]] != UNSEEN
    return at[own], number[own].astype(np.int64) - 1
