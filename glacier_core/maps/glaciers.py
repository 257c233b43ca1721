"""Which ice belongs together: complexes, scan-line gaps bridged, ice divides of an inventory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
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
from glacier_core.maps.scenemap import UNSEEN
from glacier_core.raster.grid import Grid, Window
from glacier_core.settings import OutlinesParams

logger = logging.getLogger(__name__)

# Ice that touches only at a corner belongs together all the same.
_EIGHT = np.ones((3, 3), dtype=bool)
_COLUMNS = 1024


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

    def burn(self, grid: Grid) -> npt.NDArray[np.int32]:
        """Number of the glacier whose outline holds a pixel's centre, from 1; 0 for none."""
        shape = (grid.height, grid.width)
        if not self.ids:
            return np.zeros(shape, dtype=np.int32)
        shapes = zip(self.polygons, range(1, len(self.ids) + 1), strict=True)
        burned: npt.NDArray[np.int32] = rasterio.features.rasterize(
            shapes, out_shape=shape, transform=grid.transform, dtype=np.int32
        )
        return burned


@dataclass(frozen=True)
class Glaciers:
    """Ice pixels by glacier.

    Attributes:
        numbers: int32 (height, width): glaciers from 1, 0 elsewhere.
        bridged: int32 (height, width): likewise, of unseen pixels with a glacier on both sides.
        complexes: (glaciers,) int, number of the connected ice that each belongs to.
        inventory_ids: (glaciers,), None where no inventory knows it.
        left_out_km2: ice too small to be a glacier.
    """

    numbers: npt.NDArray[np.int32]
    bridged: npt.NDArray[np.int32]
    complexes: npt.NDArray[np.int64]
    inventory_ids: list[str | None]
    left_out_km2: float

    @property
    def count(self) -> int:
        return len(self.inventory_ids)


def without_specks(classes: npt.NDArray[np.uint8], smallest: int) -> npt.NDArray[np.uint8]:
    """The class map without specks: parts of fewer pixels take the class of the largest beside.

    Specks with nothing but specks or unseen ground around them stay.

    Args:
        classes: class numbers (height, width), `UNSEEN` where nothing was seen; that stays.
        smallest: pixels of the smallest part that is kept.
    """
    if smallest < 2 or smallest >= classes.size:
        return classes
    seen = classes != UNSEEN
    # A speck among specks has a larger part beside it only once these are gone.
    while True:
        cleaned: npt.NDArray[np.uint8] = rasterio.features.sieve(
            classes, smallest, mask=seen, connectivity=4
        )
        cleaned[~seen] = UNSEEN
        if np.array_equal(cleaned, classes):
            return cleaned
        classes = cleaned


def bridges(
    ice: npt.NDArray[np.bool_], unseen: npt.NDArray[np.bool_], widest: int
) -> npt.NDArray[np.bool_]:
    """Unseen pixels with ice next above and below, in gaps no wider than `widest` pixels.

    Scan-line gaps run across the scene, so that columns cross them by the shortest way (up to 14
    pixels wide, Landsat 7 Data Users Handbook, section 5).
    """
    height, width = ice.shape
    found = np.zeros(ice.shape, dtype=bool)
    if widest == 0 or not unseen.any():
        return found
    rows = np.arange(height, dtype=np.int32)[:, None]
    for left in range(0, width, _COLUMNS):
        part = slice(left, min(left + _COLUMNS, width))
        hidden = unseen[:, part]
        above = np.maximum.accumulate(np.where(hidden, -1, rows), axis=0)
        below = np.minimum.accumulate(np.where(hidden, height, rows)[::-1], axis=0)[::-1]
        row, col = np.nonzero(hidden & (below - above <= widest + 1) & (above >= 0) & (
            below < height))  # fmt: skip
        own = ice[:, part]
        joined = own[above[row, col], col] & own[below[row, col], col]
        found[row[joined], left + col[joined]] = True
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
    joined, count = ndimage.label(ice | bridge, structure=_EIGHT, output=np.int32)
    at = np.flatnonzero(ice)
    areas = pixel_areas_at(grid, ice)
    km2 = np.bincount(joined.ravel()[at], weights=areas, minlength=count + 1)
    kept = km2 >= params.min_area_km2
    kept[0] = False
    left_out = float(km2[~kept].sum())
    numbering = np.zeros(count + 1, dtype=np.int32)
    numbering[kept] = np.arange(1, kept.sum() + 1)
    joined = numbering[joined]
    numbers, complexes = joined, np.arange(1, kept.sum() + 1)
    ids: list[str | None] = [None] * complexes.size
    if inventory is not None and inventory.ids:
        numbers, ids, complexes = _divided(joined, ice, grid, inventory, params.min_area_km2)
    return Glaciers(
        numbers=np.where(ice, numbers, 0).astype(np.int32),
        bridged=np.where(bridge, numbers, 0).astype(np.int32),
        complexes=complexes.astype(np.int64),
        inventory_ids=ids,
        left_out_km2=left_out,
    )


def pixel_areas_at(grid: Grid, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Areas in km² of the pixels of a mask (height, width), in the order of its rows."""
    parts = []
    for row in range(0, grid.height, 512):
        window = Window(row, 0, min(512, grid.height - row), grid.width)
        chosen = mask[window.slices]
        if chosen.any():
            parts.append(grid.pixel_areas_km2(window)[chosen])
    return np.concatenate(parts) if parts else np.zeros(0)


def _divided(
    joined: npt.NDArray[np.int32],
    ice: npt.NDArray[np.bool_],
    grid: Grid,
    inventory: Inventory,
    smallest_km2: float,
) -> tuple[npt.NDArray[np.int32], list[str | None], npt.NDArray[np.int64]]:
    """Split complexes (numbers from 1, bridges included) along the divides of an inventory."""
    known = inventory.burn(grid)
    known[joined == 0] = 0
    pixel_km2 = grid.pixel_size_m() ** 2 / 1e6
    numbers = np.zeros(joined.shape, dtype=np.int32)
    ids: list[str | None] = []
    complexes: list[int] = []
    for number, box in enumerate(ndimage.find_objects(joined), start=1):
        inside = joined[box] == number
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
        for one in present:
            chosen = inside & (owner == one)
            if not (chosen & ice[box]).any():
                continue
            ids.append(inventory.ids[one - 1] if one else None)
            complexes.append(number)
            numbers[box][chosen] = len(ids)
    return numbers, ids, np.asarray(complexes, dtype=np.int64)


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
    rows, cols = numbers.shape
    found: list[npt.NDArray[np.int64]] = []
    owners: list[npt.NDArray[np.int32]] = []
    taken = numbers > 0
    border = numbers.copy()
    for _ in range(width):
        at = np.flatnonzero(ndimage.binary_dilation(taken) & ~taken)
        row, col = np.divmod(at, cols)
        owner = np.zeros(at.size, dtype=np.int32)
        for down, right in ((-1, 0), (0, -1), (0, 1), (1, 0)):
            near = border[np.clip(row + down, 0, rows - 1), np.clip(col + right, 0, cols - 1)]
            owner = np.where(owner == 0, near, owner)
        border[row, col] = owner
        taken[row, col] = True
        found.append(at)
        owners.append(owner)
    return np.concatenate(found), np.concatenate(owners)


def as_frame(records: dict[str, Any], polygons: npt.NDArray[np.object_], grid: Grid) -> Any:
    """A table with polygons of pixel coordinates (x = column, y = row) laid on the ground."""
    a, b, c, d, e, f = grid.transform[:6]

    def placed(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = xy[:, 0], xy[:, 1]
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    return gpd.GeoDataFrame(records, geometry=shapely.transform(polygons, placed), crs=grid.crs)
