"""Which ice belongs together: complexes, scan-line gaps bridged, ice divides of an inventory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio.features
import shapely
from rasterio.warp import transform_bounds
from scipy import ndimage

from glacier_core.errors import InputError
from glacier_core.labels.inventory import read_vector, repaired
from glacier_core.maps.specks import beside
from glacier_core.params import OutlinesParams
from glacier_core.raster.grid import Grid, Window
from glacier_core.threads import in_threads

logger = logging.getLogger(__name__)

# Ice that touches only at a corner belongs together all the same.
_EIGHT = np.ones((3, 3), dtype=bool)
STRIP_ROWS = 512
"""Rows of a scene that are worked on at once."""


@dataclass(frozen=True)
class Inventory:
    """Known glaciers near a scene.

    Attributes:
        path: of their file.
        polygons: in the scene's CRS.
        ids: one each, None where the file has none.
    """

    path: Path
    polygons: npt.NDArray[np.object_]
    ids: list[str | None]

    @classmethod
    def read(cls, path: Path, column: str | None, grid: Grid) -> Inventory:
        """Read an inventory's glaciers near a scene.

        Args:
            path: vector file.
            column: of ids; None for `rgi_id`, `RGIId` or `glac_id`, whichever is there.
            grid: the scene's.

        Raises:
            InputError: as `read_vector`, or there is no such column, or an id stands twice near
                the scene.
        """
        frame = read_vector(path)
        columns = [str(name) for name in frame.columns if name != frame.geometry.name]
        known = [name for name in ("rgi_id", "RGIId", "glac_id") if name in columns]
        column = column or (known[0] if known else None)
        if column is None or column not in columns:
            raise InputError(
                f"{path}: has no column '{column or 'rgi_id'}' of glacier ids; it has "
                f"{', '.join(columns)}. Name it with --inventory-id."
            )
        # Where the scene lies in the file's CRS: the whole world does not fit into a UTM zone.
        bounds = grid.footprint(grid.window).bounds
        try:
            near = shapely.box(
                *transform_bounds(grid.crs.to_wkt(), frame.crs.to_wkt(), *bounds, densify_pts=21)
            )
        except Exception as error:  # GDAL raises its own unexported classes here
            raise InputError(
                f"{path}: its CRS cannot be reached from the scene's ({error})"
            ) from error
        frame = frame[shapely.intersects(shapely.envelope(frame.geometry.values), near)]
        shapes = repaired(shapely.force_2d(np.asarray(frame.geometry.values, dtype=object)))
        parts, of = shapely.get_parts(shapes, return_index=True)
        close = shapely.intersects(shapely.envelope(parts), near)
        chosen, of = np.unique(of[close], return_inverse=True)
        located = gpd.GeoSeries(parts[close], crs=frame.crs).to_crs(grid.crs)
        polygons = repaired(shapely.multipolygons(np.asarray(located.values, object), indices=of))
        # Numbers among which some are missing come as 12.0.
        values = frame[column].iloc[chosen].convert_dtypes()
        ids = [None if pd.isna(value) else str(value) for value in values]
        known_ids = pd.Series([name for name in ids if name is not None], dtype=object)
        twice = sorted(set(known_ids[known_ids.duplicated()]))
        if twice:
            raise InputError(
                f"{path}: {column} {', '.join(twice[:5])} stands more than once near the scene. "
                "Keep one outline of each glacier."
            )
        if not ids:
            logger.warning("%s: no glacier of it lies on the scene; outlines get no ids", path)
        return cls(path, polygons, ids)

    def burn(self, grid: Grid) -> npt.NDArray[np.integer[Any]]:
        """Number of the glacier whose outline holds a pixel's centre, from 1; 0 for none."""
        shape = (grid.height, grid.width)
        dtype = np.uint16 if len(self.ids) <= np.iinfo(np.uint16).max else np.int32
        if not self.ids:
            return np.zeros(shape, dtype=dtype)
        shapes = zip(self.polygons, range(1, len(self.ids) + 1), strict=True)
        burned: npt.NDArray[np.integer[Any]] = rasterio.features.rasterize(
            shapes, out_shape=shape, transform=grid.transform, dtype=dtype
        )
        return burned


@dataclass(frozen=True)
class Glaciers:
    """Ice pixels by glacier.

    Attributes:
        numbers: int32 (height, width): glaciers from 1, 0 elsewhere.
        gaps: (pixels,) flat positions, ascending, of unseen pixels with a glacier on both sides.
        gap_numbers: (pixels,) int32, the glacier of each.
        complexes: (glaciers,) int, number of the connected ice that each belongs to.
        inventory_ids: (glaciers,), None where no inventory knows it.
        left_out_km2: ice too small to be a glacier.
    """

    numbers: npt.NDArray[np.int32]
    gaps: npt.NDArray[np.int64]
    gap_numbers: npt.NDArray[np.int32]
    complexes: npt.NDArray[np.int64]
    inventory_ids: list[str | None]
    left_out_km2: float

    @property
    def count(self) -> int:
        return len(self.inventory_ids)


def bridges(
    ice: npt.NDArray[np.bool_], unseen: npt.NDArray[np.bool_], widest: int
) -> npt.NDArray[np.bool_]:
    """Unseen pixels with ice next above and below, in gaps no wider than `widest` pixels.

    Scan-line gaps run across the scene, so that columns cross them by the shortest way (up to 14
    pixels wide, Landsat 7 Data Users Handbook, section 5).
    """
    found = np.zeros(ice.shape, dtype=bool)
    filled, hidden, own = found.reshape(-1), unseen.reshape(-1), ice.reshape(-1)
    width = ice.shape[1]
    # Down every gap from the ice above it, all at once, a pixel a step.
    first = np.flatnonzero(ice[:-1] & unseen[1:]) + width
    for length in range(1, widest + 1):
        after = first + length * width
        first, after = first[after < own.size], after[after < own.size]
        across = first[own[after]]
        filled[(across[:, None] + width * np.arange(length)).ravel()] = True
        first = first[hidden[after]]
    return found


def find_glaciers(
    ice: npt.NDArray[np.bool_],
    unseen: npt.NDArray[np.bool_],
    grid: Grid,
    params: OutlinesParams,
    inventory: Inventory | None,
) -> Glaciers:
    """Number the glaciers of a map.

    Connected ice is one complex, also across gaps in what was seen. Where an inventory names
    several glaciers in it, their ice divides split it: a pixel outside of all of them goes to the
    nearest.

    Args:
        ice: bool (height, width).
        unseen: bool (height, width), not overlapping `ice`.
        grid: located.
        params: smallest area, widest gap.
        inventory: glaciers with ids, or None.
    """
    bridge = bridges(ice, unseen, params.gap_pixels)
    numbers, count = ndimage.label(ice | bridge, structure=_EIGHT, output=np.int32)
    km2 = _areas(numbers, ice, count, grid)
    kept = km2 >= params.min_area_km2
    kept[0] = False
    _renumber(numbers, kept)
    complexes = np.arange(1, kept.sum() + 1, dtype=np.int64)
    ids: list[str | None] = [None] * complexes.size
    if inventory is not None and inventory.ids:
        ids, complexes = _divide(numbers, ice, grid, inventory, params.min_area_km2)
    gap_numbers = numbers[bridge]
    numbers[bridge] = 0
    return Glaciers(
        numbers=numbers,
        gaps=np.flatnonzero(bridge)[gap_numbers > 0],
        gap_numbers=gap_numbers[gap_numbers > 0],
        complexes=complexes,
        inventory_ids=ids,
        left_out_km2=float(km2[~kept].sum()),
    )


def _areas(
    numbers: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], count: int, grid: Grid
) -> npt.NDArray[np.float64]:
    """Area in km² of each number in a mask (height, width), from 0 to `count`."""

    def within(strip: Window) -> npt.NDArray[np.float64]:
        chosen = mask[strip.slices]
        areas = grid.pixel_areas_km2(strip, chosen)
        km2 = np.bincount(numbers[strip.slices][chosen], weights=areas, minlength=count + 1)
        return km2.astype(np.float64)  # of no pixel at all, integers

    return reduce(add, in_threads(within, grid.strips(STRIP_ROWS)))


def _renumber(numbers: npt.NDArray[np.int32], kept: npt.NDArray[np.bool_]) -> None:
    """Count those that are kept from 1, in place; the others become 0."""
    numbering = np.zeros(kept.size, dtype=np.int32)
    numbering[kept] = np.arange(1, kept.sum() + 1)

    def renumber(row: int) -> None:
        rows = slice(row, row + STRIP_ROWS)
        numbers[rows] = numbering[numbers[rows]]

    list(in_threads(renumber, range(0, len(numbers), STRIP_ROWS)))


def pixel_areas_at(grid: Grid, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Areas in km² of the pixels of a mask (height, width), in the order of its rows."""
    strips = grid.strips(STRIP_ROWS)
    return np.concatenate([grid.pixel_areas_km2(strip, mask[strip.slices]) for strip in strips])


def _divide(
    numbers: npt.NDArray[np.int32],
    ice: npt.NDArray[np.bool_],
    grid: Grid,
    inventory: Inventory,
    smallest_km2: float,
) -> tuple[list[str | None], npt.NDArray[np.int64]]:
    """Split complexes along the divides of an inventory.

    Args:
        numbers: of complexes (height, width) from 1, bridges included; then those of glaciers.
        ice: see `find_glaciers`.
        grid: likewise.
        inventory: of at least one glacier.
        smallest_km2: of a known glacier on a complex.

    Returns:
        Id and complex of each glacier.
    """
    known = inventory.burn(grid)
    pixel_km2 = grid.pixel_size_m() ** 2 / 1e6
    ids: list[str | None] = []
    complexes: list[int] = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        inside = numbers[box] == number
        owner = np.where(inside, known[box], 0)
        counted = np.bincount(owner[inside & ice[box]], minlength=1)
        # Of a glacier that is itself hardly larger, more than half.
        present = np.flatnonzero(
            (counted * pixel_km2 >= smallest_km2) | (2 * counted > counted.sum())
        )
        present = present[present > 0]
        if present.size > 1:
            owner[~np.isin(owner, present)] = 0
            nearest = ndimage.distance_transform_edt(
                owner == 0, return_distances=False, return_indices=True
            )
            owner = owner[tuple(nearest)]
        elif present.size == 1:
            owner[:] = present[0]
        else:
            present = np.array([0])
            owner[:] = 0
        numbers[box][inside] = 0
        for one in present:
            chosen = inside & (owner == one)
            if not (chosen & ice[box]).any():
                continue
            ids.append(inventory.ids[one - 1] if one else None)
            complexes.append(number)
            # Below 0, no complex that is still to come has the same.
            numbers[box][chosen] = -len(ids)
    np.negative(numbers, out=numbers)
    return ids, np.asarray(complexes, dtype=np.int64)


def nearest_fringe(
    numbers: npt.NDArray[np.int32], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Pixels outside of all glaciers, up to `width` pixels away, and the glacier each is next to.

    Args:
        numbers: (height, width), 0 outside.
        width: pixels.

    Returns:
        Flat positions, the nearer first, and a glacier's number for each.
    """
    taken = numbers > 0
    near = taken.copy()
    near[1:] |= taken[:-1]
    near[:-1] |= taken[1:]
    near[:, 1:] |= taken[:, :-1]
    near[:, :-1] |= taken[:, 1:]
    at = np.flatnonzero(near > taken)
    border = numbers.flatten()
    found: list[npt.NDArray[np.int64]] = []
    owners: list[npt.NDArray[np.int32]] = []
    for _ in range(width):
        owner = np.zeros(at.size, dtype=np.int32)
        sides = beside(at, numbers.shape)
        for side in sides:
            owner = np.where(owner == 0, border[side], owner)
        border[at] = owner
        found.append(at)
        owners.append(owner)
        reached = np.zeros(border.size, dtype=bool)
        reached[sides[border[sides] == 0]] = True
        at = np.flatnonzero(reached)
    return np.concatenate(found), np.concatenate(owners)


def as_frame(records: dict[str, Any], polygons: npt.NDArray[np.object_], grid: Grid) -> Any:
    """A table with polygons of pixel coordinates (x = column, y = row) laid on the ground."""
    a, b, c, d, e, f = grid.transform[:6]

    def placed(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = xy[:, 0], xy[:, 1]
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    return gpd.GeoDataFrame(records, geometry=shapely.transform(polygons, placed), crs=grid.crs)
