"""Truth as experts deliver it: outlines with years, holes, and the usual flaws."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine
from scipy import ndimage
from shapely.geometry import Polygon, shape
from shapely.geometry.base import BaseGeometry

from glacier_core.simulate.noise import Field, Mask

WRONG_YEAR = 1990
"""Year of the outdated outlines."""


@dataclass(frozen=True)
class Outline:
    """One polygon of an inventory, in the coordinates of its scene."""

    geometry: BaseGeometry
    year: int
    glacier_id: str


def trace(
    mask: Mask, glaciers: NDArray[np.int32], transform: Affine, year: int, site: str
) -> list[Outline]:
    """Outline a class along pixel edges, with holes, one polygon a connected part.

    Args:
        mask: (rows, cols) the class.
        glaciers: (rows, cols) number of the glacier that each pixel belongs to.
        transform: pixel to map coordinates.
        year: year to write.
        site: prefix of the glacier ids.
    """
    found = []
    numbered = np.where(mask, np.maximum(glaciers, 1), 0).astype(np.int32)
    for outline, number in shapes(numbered, mask=mask, connectivity=4, transform=transform):
        found.append(Outline(shape(outline), year, f"{site}-G{int(number):04d}"))
    return found


def number_glaciers(ice: Mask) -> NDArray[np.int32]:
    """Number the connected parts of an ice cover from 1; 0 is no ice."""
    label, _ = ndimage.label(ice, structure=np.ones((3, 3)))
    return np.asarray(label, dtype=np.int32)


def outdate(outlines: Iterable[Outline], widen: float) -> list[Outline]:
    """Make outlines of long ago: too large, and of a year that fits no scene."""
    return [
        Outline(one.geometry.buffer(widen, join_style="mitre"), WRONG_YEAR, one.glacier_id)
        for one in outlines
    ]


def _tie_bow(polygon: Polygon, out: float = 25.0) -> Polygon:
    """Cross the ring over itself in the middle of its longest edge, by about 100 m2."""
    ring = shapely.get_coordinates(polygon.exterior)
    edges = np.diff(ring, axis=0)
    lengths = np.hypot(edges[:, 0], edges[:, 1])
    k = int(np.argmax(lengths))
    along = edges[k] / lengths[k]
    outward = np.array([along[1], -along[0]]) * (1 if polygon.exterior.is_ccw else -1)
    middle = ring[k] + edges[k] / 2
    near, far = middle - along * 4, middle + along * 4
    knot = np.array([near, far + outward * out, near + outward * out, far])
    return Polygon(np.vstack([ring[: k + 1], knot, ring[k + 1 :]]))


def damage(outlines: list[Outline], count: int) -> list[Outline]:
    """Make the first ``count`` sizeable polygons without holes invalid.

    Repaired with ``make_valid``, each keeps its area to within some 100 m2.
    """
    damaged = []
    for one in outlines:
        polygon = one.geometry
        if (
            count > 0
            and isinstance(polygon, Polygon)
            and not polygon.interiors
            and polygon.area > 40_000
        ):
            tied = _tie_bow(polygon)
            if not tied.is_valid:
                one = Outline(tied, one.year, one.glacier_id)
                count -= 1
        damaged.append(one)
    return damaged


def lift(outlines: list[Outline], height: Field, transform: Affine) -> list[Outline]:
    """Give outlines the heights of the ground below them, as 3-D inventories have.

    Args:
        outlines: 2-D outlines.
        height: (rows, cols) in m.
        transform: pixel to map coordinates of ``height``.
    """
    back = ~transform

    def with_height(points: NDArray[np.float64]) -> NDArray[np.float64]:
        cols, rows = back @ (points[:, 0], points[:, 1])
        row = np.clip(np.floor(rows).astype(int), 0, height.shape[0] - 1)
        col = np.clip(np.floor(cols).astype(int), 0, height.shape[1] - 1)
        return np.column_stack([points[:, 0], points[:, 1], height[row, col]])

    return [
        Outline(
            shapely.transform(shapely.force_3d(one.geometry), with_height, include_z=True),
            one.year,
            one.glacier_id,
        )
        for one in outlines
    ]


def write(path: Path, outlines: list[Outline], crs: int) -> None:
    """Write outlines as a shapefile in longitude and latitude.

    All parts of the file are written beside it and then moved into place.

    Args:
        path: the ``.shp`` file.
        outlines: what to write, in the coordinates of ``crs``.
        crs: EPSG code of the outlines.
    """
    frame = gpd.GeoDataFrame(
        {
            "year": np.array([one.year for one in outlines], dtype=np.int32),
            "glacier_id": [one.glacier_id for one in outlines],
        },
        geometry=[one.geometry for one in outlines],
        crs=crs,
    ).to_crs(4326)
    write_frame(path, frame)


def write_frame(path: Path, frame: gpd.GeoDataFrame) -> None:
    """Write a frame as a shapefile, beside its place and then into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"part_{path.name}")
    with warnings.catch_warnings():
        # The crossed rings are there on purpose.
        warnings.filterwarnings("ignore", message=".*(winding order|self-intersection).*")
        frame.to_file(beside, driver="ESRI Shapefile", engine="pyogrio", encoding="utf-8")
    # The .shp last: without it, readers see no file.
    for part in sorted(beside.parent.glob(f"{beside.stem}.*"), key=lambda p: p.suffix == ".shp"):
        part.replace(path.with_suffix(part.suffix))
