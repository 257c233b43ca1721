"""What is known about each glacier of a map: areas and their uncertainty, heights, confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from glacier_core.maps.coverage import Coverage
from glacier_core.maps.glaciers import nearest_fringe, pixel_areas_at
from glacier_core.maps.scenemap import SceneMap
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.terrain import slope_aspect

Floats = npt.NDArray[np.float64]

# How far off an outline is taken to be, in pixels: Paul et al. 2017 (Remote Sensing of Environment
# 203, section 3.1) take half a pixel for clean ice and a pixel for debris, which is harder to see.
BORDER_ERROR_PIXELS = {"debris": 1.0}
_CLEAN_BORDER_ERROR = 0.5
# Beyond this distance from mapped ice, what the network thinks of a pixel adds nothing to the
# uncertainty of a glacier.
_FRINGE_PIXELS = 2
_STRIP_ROWS = 512
BIN_M = 100
"""Height of the steps of the hypsometry, metres."""

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
    """Pixels by glacier and class: what polygons are traced of.

    Attributes:
        glaciers: int32 (height, width), from 1, 0 elsewhere.
        classes: uint8 (height, width), class numbers.
        ice: names of the classes of ice, number 1 first.
    """

    glaciers: npt.NDArray[np.int32]
    classes: npt.NDArray[np.uint8]
    ice: list[str]

    def raster(self, unseen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """Face numbers: from 1 where there is ice, 0 where there is none, -1 where unseen."""
        count = len(self.ice)
        faces = (self.glaciers - 1) * count + self.classes
        faces[self.glaciers == 0] = 0
        faces[unseen] = -1
        return faces.astype(np.int32)

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
    metres = shapely.transform(coverage.borders, lambda xy: xy @ np.array([[a, d], [b, e]]))
    km = shapely.length(metres) / 1000
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
        error: (glaciers, classes), one standard deviation by the probabilities, km².
        total_error: (glaciers,), of all ice together.
        confidence: (glaciers,), and by class (glaciers, classes); 0 to 1, NaN for no pixel.
        terrain: by attribute (glaciers,), NaN where it is not known.
        hypsometry: lower edges of the steps in m (steps,), and km² (steps, classes).
    """

    km2: Floats
    error: Floats
    total_error: Floats
    confidence: Floats
    class_confidence: Floats
    terrain: Mapping[str, Floats]
    hypsometry: tuple[npt.NDArray[np.int64], Floats] | None


def measure(scene_map: SceneMap, faces: Faces, count: int, *, correlation_m: float) -> Measures:
    """Measure every glacier of a map.

    Args:
        scene_map: the map.
        faces: its pixels by glacier and class.
        count: glaciers.
        correlation_m: range within which errors of the map are alike.
    """
    grid, kinds = scene_map.grid, len(faces.ice)
    inside = faces.glaciers > 0
    at = np.flatnonzero(inside)
    of = faces.glaciers.ravel()[at].astype(np.int64) - 1
    kind = faces.classes.ravel()[at].astype(np.int64) - 1
    areas = pixel_areas_at(grid, inside)
    both, cells = of * kinds + kind, count * kinds

    def by_class(weights: Floats) -> Floats:
        sums: Floats = np.bincount(both, weights=weights, minlength=cells).astype(np.float64)
        return sums.reshape(count, kinds)

    km2 = by_class(areas)
    confidence = scene_map.read("confidence").ravel()[at] / 255
    sure = by_class(confidence * areas)
    with np.errstate(invalid="ignore"):
        class_confidence, mean_confidence = sure / km2, sure.sum(axis=1) / km2.sum(axis=1)
    error, total_error = _probable_errors(scene_map, faces, at, of, areas, count, correlation_m)
    terrain, hypsometry = _terrain(scene_map, inside, of, both, areas, count, kinds)
    return Measures(km2, error, total_error, mean_confidence, class_confidence, terrain, hypsometry)


def _probable_errors(
    scene_map: SceneMap,
    faces: Faces,
    at: npt.NDArray[np.int64],
    of: npt.NDArray[np.int64],
    areas: Floats,
    count: int,
    correlation_m: float,
) -> tuple[Floats, Floats]:
    around, owner = nearest_fringe(faces.glaciers, _FRINGE_PIXELS)
    seen = scene_map.read("classes").ravel()[around] != 255
    around, owner = around[seen], owner[seen]
    pixel_km2 = scene_map.grid.pixel_size_m() ** 2 / 1e6
    where = np.concatenate([at, around])
    glacier = np.concatenate([of, owner - 1])
    area = np.concatenate([areas, np.full(around.size, pixel_km2)])
    # So many pixels err as one: a fifth of the circle of the correlation's range, for a spherical
    # variogram (Rolstad et al. 2009, Journal of Glaciology 55, equation 8).
    alike = max(1.0, np.pi * correlation_m**2 / 5 / (pixel_km2 * 1e6))

    def deviation(p: Floats) -> Floats:
        own = np.sqrt(p * (1 - p)) * area
        # At worst all pixels of a glacier err as one.
        together: Floats = np.bincount(glacier, weights=own, minlength=count).astype(np.float64)
        alone = np.sqrt(np.bincount(glacier, weights=own**2, minlength=count) * alike)
        smaller: Floats = np.minimum(alone, together)
        return smaller

    stored = scene_map.read("probabilities")
    by_class = [layer.ravel()[where] / 255 for layer in stored]
    errors = np.stack([deviation(p) for p in by_class], axis=1)
    return errors, deviation(np.clip(np.sum(by_class, axis=0), 0, 1))


_TERRAIN = ("zmin_m", "zmax_m", "zmean_m", "zmed_m", "slope_deg", "aspect_deg")


def _terrain(
    scene_map: SceneMap,
    inside: npt.NDArray[np.bool_],
    of: npt.NDArray[np.int64],
    both: npt.NDArray[np.int64],
    areas: Floats,
    count: int,
    kinds: int,
) -> tuple[dict[str, Floats], tuple[npt.NDArray[np.int64], Floats] | None]:
    height, slope, aspect = _heights(scene_map, inside)
    known = np.isfinite(height)
    found = {name: np.full(count, np.nan) for name in _TERRAIN}
    if not known.any():
        return found, None
    z, owner = height[known].astype(np.float64), of[known]
    order = np.lexsort((z, owner))
    z, owner = z[order], owner[order]
    present, first, pixels = np.unique(owner, return_index=True, return_counts=True)
    last = first + pixels - 1
    found["zmin_m"][present], found["zmax_m"][present] = z[first], z[last]
    found["zmed_m"][present] = (z[first + (pixels - 1) // 2] + z[first + pixels // 2]) / 2

    def mean(values: npt.NDArray[np.float32]) -> Floats:
        good = np.isfinite(values)
        total = np.bincount(of[good], weights=values[good], minlength=count)
        with np.errstate(invalid="ignore"):
            result: Floats = total / np.bincount(of[good], minlength=count)
        return result

    found["zmean_m"], found["slope_deg"] = mean(height), mean(slope)
    east, north = mean(np.sin(np.radians(aspect))), mean(np.cos(np.radians(aspect)))
    # Rounded first: 359.97 is north, not 360.
    found["aspect_deg"] = np.degrees(np.arctan2(east, north)).round(1) % 360
    step = np.floor(height[known] / BIN_M).astype(np.int64)
    lowest = int(step.min())
    steps = int(step.max()) - lowest + 1
    kind = both[known] % kinds
    cell = (step - lowest) * kinds + kind
    km2: Floats = np.bincount(cell, weights=areas[known], minlength=steps * kinds).astype(
        np.float64
    )
    edges = np.arange(lowest, lowest + steps, dtype=np.int64) * BIN_M
    return found, (edges, km2.reshape(steps, kinds))


def _heights(
    scene_map: SceneMap, inside: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Elevation, slope and aspect of the pixels of a mask, in the order of its rows."""
    grid = scene_map.grid
    parts: list[list[npt.NDArray[np.float32]]] = [[], [], []]
    for row in range(0, grid.height, _STRIP_ROWS):
        rows = min(_STRIP_ROWS, grid.height - row)
        chosen = inside[row : row + rows]
        if not chosen.any():
            continue
        # A row more on either side, for the differences.
        top, bottom = max(row - 1, 0), min(row + rows + 1, grid.height)
        window = Window(top, 0, bottom - top, grid.width)
        height = scene_map.elevation(window)
        slope, aspect = slope_aspect(height, grid, window)
        for part, layer in zip(parts, (height, slope, aspect), strict=True):
            part.append(layer[row - top : row - top + rows][chosen])
    height, slope, aspect = (
        np.concatenate(part) if part else np.zeros(0, dtype=np.float32) for part in parts
    )
    return height, slope, aspect
