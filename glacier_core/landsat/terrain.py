"""Elevation on a scene's grid, from the tiles of a DEM."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.merge import merge
from rasterio.warp import reproject, transform_bounds

from glacier_core.errors import InputError
from glacier_core.raster.grid import Grid
from glacier_core.raster.scene import IMAGE_SUFFIXES

log = logging.getLogger(__name__)


class DemError(InputError):
    """The DEM cannot be used, which is not the fault of the scene that it is for."""


# Beyond these a height is a void without its tag: the Dead Sea's shore lies 430 m below the sea,
# Mount Everest's top 8,849 m above; further for errors of both DEM and ellipsoid.
_LOWEST, _HIGHEST = -1000, 9500

_SUFFIXES = IMAGE_SUFFIXES | {".hgt", ".dem", ".asc", ".dt2"}

# Pixels by which the warp may err: with GDAL's own 0.125, heights on a steep face err by 3 m.
_TOLERANCE = 0.01

# Pixels read beyond the scene's edge, for the resampling there: of the DEM, or of its averages.
_MARGIN = 4


def dem_files(path: Path) -> list[Path]:
    """The rasters of a DEM: the file itself, or those in a folder, sorted.

    Raises:
        DemError: nothing there.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DemError(
            f"{path}: no such DEM; dem_path in conf/landsat.yaml names a file or a folder of tiles"
        )
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DemError(f"{path}: the DEM folder holds no raster ({', '.join(sorted(_SUFFIXES))})")
    return files


def dem_identity(path: Path) -> str:
    """What changes when a DEM changes: its files with their sizes and times, as one hash."""
    lines = []
    for file in dem_files(path):
        about = file.stat()
        lines.append(f"{file.name} {about.st_size} {about.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def elevation_on(
    name: str, files: Sequence[Path], grid: Grid, resampling: str
) -> npt.NDArray[np.float32]:
    """Heights of a DEM at a grid's pixels.

    A DEM of much smaller pixels is averaged to about the grid's first, so that none is left out.
    Tiles of one raster are joined before they are resampled: no seams.

    Args:
        name: of the DEM, for messages.
        files: its rasters.
        grid: to warp to.
        resampling: `bilinear` or `cubic`.

    Returns:
        Metres, float32 (height, width); NaN where the DEM has a void or does not reach.

    Raises:
        DemError: no DEM, one without CRS or damaged, or none that touches the grid.
    """
    heights = np.full((grid.height, grid.width), np.nan, dtype=np.float32)
    touching: dict[Hashable, list[Path]] = {}
    for file in files:
        with _opened(file) as dataset:
            if _touches(dataset, grid):
                touching.setdefault(_raster_of(dataset), []).append(file)
    if not touching:
        raise DemError(
            f"{name}: the DEM does not reach the scene; give the tiles of its ground (dem_path in "
            "conf/landsat.yaml), or none"
        )
    for tiles in touching.values():
        part = _warped(tiles, grid, Resampling[resampling])
        heights = np.where(np.isnan(heights), part, heights)
    unknown = float(np.isnan(heights).mean())
    if unknown == 1:
        raise DemError(f"{name}: the DEM holds no height of the scene's ground")
    if unknown > 0:
        log.warning(
            "%s: the DEM has no height for %.1f %% of the scene; elevation and slope are unknown "
            "there",
            name,
            100 * unknown,
        )
    return heights


def _opened(file: Path) -> Any:
    try:
        dataset = rasterio.open(file)
    except RasterioError as error:
        raise DemError(f"{file}: cannot be opened as a DEM ({error})") from error
    if not dataset.crs:
        dataset.close()
        raise DemError(
            f"{file}: the DEM has no coordinate reference system. Assign one, for example with "
            "`gdal_edit.py -a_srs EPSG:4326 FILE`."
        )
    return dataset


def _raster_of(dataset: Any) -> Hashable:
    """What tiles share if the pixels of one go on in the other: CRS, pixel size, and their phase."""
    across, down = dataset.res
    phase = (dataset.bounds.left / across, dataset.bounds.top / down)
    return (
        dataset.crs.to_wkt(),
        *(round(step, 9) for step in (across, down)),
        *(round(part % 1, 2) % 1 for part in phase),
    )


def _bounds_in(dataset: Any, grid: Grid) -> tuple[float, float, float, float]:
    """West, south, east and north of a grid in a DEM's CRS."""
    west, south, east, north = grid.footprint(grid.window).bounds
    found: tuple[float, float, float, float] = transform_bounds(
        grid.crs.to_wkt(), dataset.crs, west, south, east, north, densify_pts=51
    )
    return found


def _touches(dataset: Any, grid: Grid) -> bool:
    west, south, east, north = _bounds_in(dataset, grid)
    own = dataset.bounds
    return bool(own.left < east and own.right > west and own.bottom < north and own.top > south)


def _warped(files: Sequence[Path], grid: Grid, resampling: Resampling) -> npt.NDArray[np.float32]:
    """Tiles of one raster, joined and warped."""
    nodata = -32768.0
    target = np.full((grid.height, grid.width), np.nan, dtype=np.float32)
    try:
        with ExitStack() as stack:
            datasets = [stack.enter_context(_opened(file)) for file in files]
            first = datasets[0]
            west, south, east, north = _bounds_in(first, grid)
            across, down = first.res
            finer = (
                max(int((east - west) / across / grid.width), 1),
                max(int((north - south) / down / grid.height), 1),
            )
            reach = [dataset.bounds for dataset in datasets]
            joined, transform = merge(
                datasets,
                # On edges of pixels: between them, tiles would be moved by up to half a pixel.
                bounds=_snapped(
                    first,
                    finer,
                    max(west, min(one.left for one in reach)),
                    max(south, min(one.bottom for one in reach)),
                    min(east, max(one.right for one in reach)),
                    min(north, max(one.top for one in reach)),
                ),
                nodata=nodata,
                dtype="float32",
                indexes=[1],
            )
            source = joined[0]
            source[~((source > _LOWEST) & (source < _HIGHEST))] = np.nan
            source, transform = _coarsened(source, transform, *finer)
            reproject(
                source,
                target,
                src_transform=transform,
                src_crs=first.crs,
                src_nodata=np.nan,
                dst_transform=grid.transform,
                dst_crs=grid.crs.to_wkt(),
                dst_nodata=np.nan,
                resampling=resampling,
                tolerance=_TOLERANCE,
                XSCALE=1,
                YSCALE=1,
                num_threads=2,
                warp_mem_limit=256,
            )
    except (RasterioError, CPLE_BaseError) as error:
        raise DemError(
            f"{os.path.commonpath(files)}: the DEM cannot be read ({error.__cause__ or error})"
        ) from error
    return target


def _coarsened(
    heights: npt.NDArray[np.float32], transform: Affine, across: int, down: int
) -> tuple[npt.NDArray[np.float32], Affine]:
    """Means of blocks of `down` x `across` pixels, of those that are known.

    Not GDAL's own way, kernels that grow with the target's pixels: where the ratio is no whole
    number they leave waves of 0.5 m on an even slope (measured on a DEM of 25 m and a grid of 30 m).
    """
    if across == down == 1:
        return heights, transform
    height, width = (
        size // step * step for size, step in zip(heights.shape, (down, across), strict=True)
    )
    blocks = heights[:height, :width].reshape(height // down, down, width // across, across)
    known = np.isfinite(blocks)
    count = known.sum(axis=(1, 3))
    with np.errstate(invalid="ignore"):  # a block of voids: 0 / 0
        means = np.where(known, blocks, 0).sum(axis=(1, 3), dtype=np.float64) / count
    return means.astype(np.float32), transform @ Affine.scale(across, down)


def _snapped(
    dataset: Any, finer: tuple[int, int], west: float, south: float, east: float, north: float
) -> tuple[float, float, float, float]:
    """Bounds moved outwards to edges of a raster's pixels, and some averages of them further."""
    across, down = dataset.res
    left, top = dataset.bounds.left, dataset.bounds.top
    sideways, upwards = (_MARGIN * number for number in finer)
    return (
        left + (np.floor((west - left) / across) - sideways) * across,
        top - (np.ceil((top - south) / down) + upwards) * down,
        left + (np.ceil((east - left) / across) + sideways) * across,
        top - (np.floor((top - north) / down) - upwards) * down,
    )
