"""Sites, dates and files: the entry to the simulation."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.warp import transform as reproject_points
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from glacier_core.files import whole_file
from glacier_core.raster.bands import ETM_STACK
from glacier_core.simulate import outlines
from glacier_core.simulate.ground import CLEAN_ICE, DEBRIS, MARGIN, PIXEL, Site
from glacier_core.simulate.noise import Field
from glacier_core.simulate.outlines import Outline
from glacier_core.simulate.sensor import expose, sun_position
from glacier_core.simulate.surface import look
from glacier_core.simulate.terrain import slope_degrees

BAND_NAMES = tuple(ETM_STACK)
"""Bands of a scene file, in order."""

EPSG = 32645
"""UTM zone 45 north, 84 to 90 degrees east."""

CLASS_NAMES = {CLEAN_ICE: "clean_ice", DEBRIS: "debris"}

_SMALLEST = 128
Cut = TypeVar("Cut", NDArray[np.float32], NDArray[np.uint8])

_WEST, _SOUTH = 240_000.0, 3_045_000.0


@dataclass(frozen=True)
class SimulatedScene:
    """A scene on disk and the truth about it.

    Attributes:
        id: name of the scene, ``LE07_SIM{site}_{date}``.
        site: number of the site, from 1.
        date: day of the picture.
        img_path: GeoTIFF with the bands of ``BAND_NAMES``.
        truth_path: GeoTIFF, 0 other, 1 clean ice, 2 debris-covered ice.
    """

    id: str
    site: int
    date: date
    img_path: Path
    truth_path: Path


def simulate(
    out_dir: Path,
    *,
    sites: int,
    size: int,
    dates: Sequence[date],
    seed: int,
    progress: Callable[[str], None] | None = None,
) -> list[SimulatedScene]:
    """Write Himalayan Landsat 7 scenes with known truth, and inventories of their glaciers.

    Makes ``scenes/{id}.tif``, whose tags say where the sun stood, ``truth/{id}_truth.tif``, ``truth/areas.csv`` and
    ``outlines/{clean_ice,debris,border}.shp``. The same arguments give the same bytes. A site
    looks the same however many others are made with it. Takes about 4 s and 0.7 GB for a
    scene of 1018 x 1018 pixels, growing in proportion to the pixels.

    Args:
        out_dir: folder to write to; made if missing.
        sites: number of separate places, at least 1.
        size: rows and columns of each scene, at least 128.
        dates: days on which every site is seen; the glaciers shrink from one to the next.
        seed: the same seed gives the same files.
        progress: called with a line of text as each scene is written.

    Returns:
        The scenes, by site and then by date.

    Raises:
        ValueError: if ``sites``, ``size`` or ``dates`` can't be used.
    """
    if sites < 1:
        raise ValueError(f"sites must be at least 1, got {sites}")
    if size < _SMALLEST:
        raise ValueError(f"size must be at least {_SMALLEST} pixels, got {size}")
    if not dates:
        raise ValueError("dates is empty: give at least one day to simulate")
    days = sorted(set(dates))
    out_dir = Path(out_dir)
    for name in ("scenes", "truth", "outlines"):
        (out_dir / name).mkdir(parents=True, exist_ok=True)

    scenes: list[SimulatedScene] = []
    areas: list[tuple[str, str, str, str]] = []
    drawn: dict[int, list[Outline]] = {CLEAN_ICE: [], DEBRIS: []}
    footprints: list[Polygon] = []
    for number in range(1, sites + 1):
        site = Site(np.random.default_rng([seed, number]), size)
        transform = _place(seed, number, size)
        footprints.append(_footprint(transform, size))
        elevation = _cut(site.elevation())
        for day in days:
            scene_id = f"LE07_SIM{number:02d}_{day:%Y%m%d}"
            img_path = out_dir / "scenes" / f"{scene_id}.tif"
            truth_path = out_dir / "truth" / f"{scene_id}_truth.tif"
            truth = _picture(site, day, seed, number, elevation, transform, img_path)
            _write_truth(truth_path, truth, transform)
            for value, name in CLASS_NAMES.items():
                km2 = np.count_nonzero(truth == value) * PIXEL**2 / 1e6
                areas.append((scene_id, day.isoformat(), name, f"{km2:.4f}"))
            _draw(drawn, truth, elevation, transform, day.year, f"S{number:02d}")
            if day == days[0]:
                _draw_outdated(drawn, truth, elevation, transform, f"S{number:02d}")
            scenes.append(SimulatedScene(scene_id, number, day, img_path, truth_path))
            if progress is not None:
                progress(f"{scene_id}: {len(scenes)} of {sites * len(days)} scenes written")

    _write_areas(out_dir / "truth" / "areas.csv", areas)
    for value, name in CLASS_NAMES.items():
        outlines.write(out_dir / "outlines" / f"{name}.shp", drawn[value], EPSG)
    border = gpd.GeoDataFrame(
        {"name": ["study area"]}, geometry=[_border(footprints)], crs=EPSG
    ).to_crs(4326)
    outlines.write_frame(out_dir / "outlines" / "border.shp", border)
    return scenes


def _place(seed: int, number: int, size: int) -> Affine:
    """Where a site lies: on a lattice wider than a scene, off it by some kilometres."""
    rng = np.random.default_rng([seed, number, 77])
    spacing = max(60_000.0, 2 * size * PIXEL)
    columns = max(1, int(360_000 // spacing))
    row, col = divmod(number - 1, columns)
    shift = rng.integers(0, 300, 2) * PIXEL
    west = _WEST + col * spacing + shift[0]
    north = _SOUTH + row * spacing + col % 3 * 9_000 + shift[1] + size * PIXEL
    return Affine(PIXEL, 0, west // PIXEL * PIXEL, 0, -PIXEL, north // PIXEL * PIXEL)


def _footprint(transform: Affine, size: int) -> Polygon:
    west, north = transform @ (0, 0)
    east, south = transform @ (size, size)
    return box(west, south, east, north)


def _border(footprints: list[Polygon]) -> BaseGeometry:
    """Study area round all sites; leaves out the north-west corner of the first."""
    area = shapely.union_all(footprints).convex_hull.buffer(3_000, join_style="mitre")
    west, _, east, north = footprints[0].bounds
    leg = 0.3 * (east - west)
    # Not beyond the margin: other sites lie to the north of it.
    edge = 3_000
    corner = Polygon(
        [
            (west + leg, north),
            (west, north - leg),
            (west - edge, north - leg - edge),
            (west - edge, north + edge),
            (west + leg + edge, north + edge),
        ]
    )
    return area.difference(corner)


def _cut(field: Cut) -> Cut:
    """Cut the margin off."""
    return field[MARGIN:-MARGIN, MARGIN:-MARGIN]


def _picture(
    site: Site,
    day: date,
    seed: int,
    number: int,
    elevation: Field,
    transform: Affine,
    path: Path,
) -> NDArray[np.uint8]:
    """Make and write one scene; returns its truth, uint8 (rows, cols)."""
    rng = np.random.default_rng([seed, number, day.toordinal()])
    longitude_latitude = reproject_points(f"EPSG:{EPSG}", "EPSG:4326", [transform.c], [transform.f])
    sun = sun_position(day, longitude_latitude[1][0])
    cover = site.cover(day.year + day.timetuple().tm_yday / 365.25)
    surface = look(site, cover, sun, rng)
    shot = expose(surface, cover.height, sun, day, rng, MARGIN)
    bands = dict(shot.dn)
    bands["BQA"] = shot.qa
    for name, one, other in (("NDWI", "B2", "B4"), ("NDSI", "B2", "B5"), ("NDVI", "B4", "B3")):
        bands[name] = (bands[one] - bands[other]) / (bands[one] + bands[other])
    bands["elevation"] = elevation
    bands["slope"] = slope_degrees(elevation, PIXEL)

    profile = {
        "driver": "GTiff",
        "width": elevation.shape[1],
        "height": elevation.shape[0],
        "count": len(BAND_NAMES),
        "dtype": "float32",
        "crs": f"EPSG:{EPSG}",
        "transform": transform,
        "nodata": float("nan"),
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "interleave": "band",
        "compress": "deflate",
        "zlevel": 1,
        "predictor": 3,
    }
    with whole_file(path) as beside, rasterio.open(beside, "w", **profile) as target:
        target.update_tags(**sun.tags)
        for index, name in enumerate(BAND_NAMES, start=1):
            target.write(bands[name].astype(np.float32), index)
            target.set_band_description(index, name)
    return _cut(cover.truth)


def _write_truth(path: Path, truth: NDArray[np.uint8], transform: Affine) -> None:
    profile = {
        "driver": "GTiff",
        "width": truth.shape[1],
        "height": truth.shape[0],
        "count": 1,
        "dtype": "uint8",
        "crs": f"EPSG:{EPSG}",
        "transform": transform,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "compress": "deflate",
    }
    with whole_file(path) as beside, rasterio.open(beside, "w", **profile) as target:
        target.write(truth, 1)
        target.set_band_description(1, "class")
        target.write_colormap(
            1, {0: (60, 60, 60, 255), 1: (120, 200, 255, 255), 2: (190, 120, 60, 255)}
        )


def _draw(
    drawn: dict[int, list[Outline]],
    truth: NDArray[np.uint8],
    elevation: Field,
    transform: Affine,
    year: int,
    site: str,
) -> None:
    """Add a date's outlines: flat for clean ice, with heights for debris, a few invalid."""
    glaciers = outlines.number_glaciers(truth > 0)
    for value in CLASS_NAMES:
        found = outlines.trace(truth == value, glaciers, transform, year, site)
        found = outlines.damage(found, 2)
        drawn[value] += outlines.lift(found, elevation, transform) if value == DEBRIS else found


def _draw_outdated(
    drawn: dict[int, list[Outline]],
    truth: NDArray[np.uint8],
    elevation: Field,
    transform: Affine,
    site: str,
) -> None:
    """Add outlines of long ago for the five largest parts of each class."""
    glaciers = outlines.number_glaciers(truth > 0)
    for value in CLASS_NAMES:
        found = outlines.trace(truth == value, glaciers, transform, 0, site)
        found = sorted(found, key=lambda one: one.geometry.area, reverse=True)[:5]
        found = outlines.outdate(found, 4 * PIXEL)
        drawn[value] += outlines.lift(found, elevation, transform) if value == DEBRIS else found


def _write_areas(path: Path, areas: list[tuple[str, str, str, str]]) -> None:
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(("scene", "date", "class", "km2"))
        writer.writerows(areas)
