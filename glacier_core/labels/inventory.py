"""Glacier inventories: reading outlines, choosing years, repairing geometry."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio
import shapely
from pyproj import CRS
from rasterio.warp import transform_bounds

from glacier_core.errors import InputError
from glacier_core.raster.grid import Grid

logger = logging.getLogger(__name__)

_YEAR_IN_TEXT = re.compile(r"(?<!\d)((?:18|19|20)\d\d)(?!\d)")
# The Randolph Glacier Inventory writes an unknown month and day as 9999.
_DATE_DIGITS = re.compile(r"^((?:18|19|20)\d\d)(?:(?:0\d|1[0-2])(?:[0-2]\d|3[01])|9999)$")


@dataclass(frozen=True)
class Outlines:
    """Polygons of one class, single-part, valid, 2-D, in the scene's CRS, within its extent.

    Attributes:
        polygons: array of shapely Polygons, holes kept.
        read: polygons in the file.
        left_out: of those near the scene, how many are of another time.
        repaired: of those kept, how many were invalid.
        burned: how many were kept, counted as in the file (a multipolygon is one).
    """

    polygons: npt.NDArray[np.object_]
    read: int
    left_out: int
    repaired: int
    burned: int


def read_vector(path: Path) -> gpd.GeoDataFrame:
    """Read a vector file of polygons in any format geopandas reads, numbered from 0.

    Raises:
        InputError: unreadable, empty, without CRS, or of another kind of geometry.
    """
    return read_features(path).reset_index(drop=True)


def read_features(path: Path, layer: str | None = None) -> gpd.GeoDataFrame:
    """As `read_vector`, of a layer, and numbered by the file's own feature ids, as QGIS shows them."""
    try:
        if is_parquet(path):
            frame = gpd.read_parquet(path)
        else:
            frame = gpd.read_file(path, layer=layer, fid_as_index=True)
    except (pyogrio.errors.DataSourceError, OSError, ValueError) as error:
        reason = "no such file" if not path.exists() else str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read as a vector file ({reason})") from error
    if not isinstance(frame, gpd.GeoDataFrame):
        raise InputError(f"{path}: is a table without geometry; expected polygons")
    frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
    if frame.empty:
        raise InputError(f"{path}: holds no outlines. Give a file with at least one polygon.")
    kinds = set(frame.geom_type) - {"Polygon", "MultiPolygon"}
    if kinds:
        raise InputError(f"{path}: holds {', '.join(sorted(kinds))}; expected polygons only")
    if frame.crs is None:
        raise InputError(
            f"{path}: has no coordinate reference system (a .prj file missing beside a .shp?). "
            "Assign the one that it was drawn in."
        )
    return frame


def is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".geoparquet")


def years_of(values: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Years from a year or date column, NaN where none can be told.

    Understands numbers (2000, 20001025), dates, and text that holds a year
    ("2000", "2000-10-25", "Landsat 2000").
    """
    if pd.api.types.is_datetime64_any_dtype(values):
        dated: npt.NDArray[np.float64] = values.dt.year.to_numpy(dtype=np.float64, na_value=np.nan)
        return dated

    def one(value: Any) -> float:
        if value is None or value is pd.NaT or (isinstance(value, float) and not isfinite(value)):
            return np.nan
        if hasattr(value, "year"):
            return float(value.year)
        text = str(int(value)) if isinstance(value, (int, float, np.number)) else str(value)
        found = _DATE_DIGITS.match(text.strip()) or _YEAR_IN_TEXT.search(text)
        return float(found.group(1)) if found else np.nan

    return np.array([one(value) for value in values], dtype=np.float64)


def _parts(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Single polygons with an area; what a repair left of lines and points is dropped."""
    parts = shapely.get_parts(shapely.get_parts(polygons))
    parts = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    return np.asarray(parts[shapely.area(parts) > 0], dtype=object)


def repaired(polygons: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Valid shapes of the same ground: ice drawn twice stays ice, and a hole never becomes any.

    Shapely's default method counts how often rings are crossed, and gets both wrong.
    """
    return np.asarray(
        shapely.make_valid(polygons, method="structure", keep_collapsed=False), dtype=object
    )


def extent_text(bounds: npt.NDArray[np.float64] | tuple[float, ...]) -> str:
    west, south, east, north = bounds
    return f"{west:.4f} {south:.4f} to {east:.4f} {north:.4f}"


def outlines_for(
    path: Path, grid: Grid, *, year_field: str | None, scene_year: int | None, tolerance: float
) -> Outlines:
    """Outlines of one file that lie near a scene and are of its time.

    Args:
        path: vector file, any CRS.
        grid: the scene's grid.
        year_field: column with a year or date; None keeps all polygons.
        scene_year: year of the scene; None keeps all polygons.
        tolerance: years. A polygon further off than this is left out. A polygon whose own
            year cannot be told is kept.

    Raises:
        InputError: as `read_vector`, or the year field is not a column.
    """
    frame = read_vector(path)
    read = len(frame)
    wgs84 = CRS.from_epsg(4326)
    source = CRS.from_user_input(frame.crs)
    bounds = grid.footprint(grid.window).bounds
    try:
        near = transform_bounds(grid.crs.to_wkt(), source.to_wkt(), *bounds, densify_pts=21)
    except Exception as error:  # GDAL raises its own unexported classes here
        raise InputError(f"{path}: its CRS cannot be reached from the scene's ({error})") from error
    geometry = np.asarray(frame.geometry.values, dtype=object)
    # By part: the envelope of a dissolved inventory holds every scene.
    parts, owner = shapely.get_parts(geometry, return_index=True)
    touching = np.zeros(read, dtype=bool)
    touching[owner[shapely.intersects(shapely.envelope(parts), shapely.box(*near))]] = True
    if not touching.any():
        theirs = transform_bounds(source.to_wkt(), wgs84.to_wkt(), *frame.total_bounds)
        ours = transform_bounds(grid.crs.to_wkt(), wgs84.to_wkt(), *bounds)
        logger.warning(
            "%s: no outline touches the scene: no pixel of it lies inside. "
            "Outlines: %s, scene: %s (west south to east north, degrees)",
            path,
            extent_text(theirs),
            extent_text(ours),
        )
    keep = touching.copy()
    if year_field is not None and year_field not in frame.columns:
        columns = [str(name) for name in frame.columns if name != frame.geometry.name]
        raise InputError(
            f"{path}: has no column '{year_field}' for the year; it has {', '.join(columns)}. "
            "Set year_field in conf/masking_paths.yaml, or null to keep every polygon."
        )
    if year_field is not None and scene_year is not None:
        years = years_of(frame[year_field])
        keep &= ~(np.abs(years - scene_year) > tolerance)
        if touching.any() and not keep.any():
            logger.warning(
                "%s: all %d outlines near the scene are of other years than %d",
                path,
                touching.sum(),
                scene_year,
            )
        unknown = int((touching & np.isnan(years)).sum())
        if unknown:
            logger.warning("%s: %d polygons have no readable year; kept", path, unknown)

    chosen = shapely.force_2d(geometry[keep])
    broken = ~shapely.is_valid(chosen)
    chosen[broken] = repaired(chosen[broken])
    series = gpd.GeoSeries(_parts(chosen), crs=source).to_crs(grid.crs)
    polygons = np.asarray(series.values, dtype=object)
    # Reprojection of a valid sliver can fold it over itself.
    folded = ~shapely.is_valid(polygons)
    polygons[folded] = repaired(polygons[folded])
    return Outlines(
        polygons=_parts(polygons),
        read=read,
        left_out=int((touching & ~keep).sum()),
        repaired=int(broken.sum()),
        burned=int(keep.sum()),
    )
