"""Where a scene's heights come from: files that are here, or a STAC collection of tiles, each of
which is fetched once.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from shapely.geometry import box

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.landsat.apis import ApisConf
from glacier_core.landsat.asking import ask, exists
from glacier_core.landsat.conf import DemCollectionConf, LandsatConf
from glacier_core.landsat.download import fetch_assets, whole_files
from glacier_core.landsat.items import Asset, Item, footprint
from glacier_core.landsat.requesting import Service
from glacier_core.landsat.search import service_of
from glacier_core.landsat.terrain import DemError, dem_files, dem_identity
from glacier_core.landsat.transfer import WrongFileError
from glacier_core.raster.grid import Grid

log = logging.getLogger(__name__)

FOLDER = "data/raw/dem"

# Pixels of the scene by which tiles may lie outside it and still be wanted, for the resampling at
# its edge: 300 m are three pixels of a DEM of 90 m.
_MARGIN = 10

_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Dem:
    """Where a project's heights come from.

    Attributes:
        name: for messages.
        identity: what changes when scenes have to be made anew.
        tiles: the files that reach a grid. May ask and fetch; raises DemError where there are none.
    """

    name: str
    identity: str
    tiles: Callable[[Grid], list[Path]]


def dem_of(project: Project, conf: LandsatConf) -> Dem | None:
    """The DEM that conf/landsat.yaml names; None for none.

    A collection's identity is its name, not its tiles: what is made already needs no service.

    Raises:
        DemError: the file or folder is not there.
    """
    if conf.dem_path is not None:
        path = project.root / conf.dem_path
        return Dem(str(path), dem_identity(path), lambda _: dem_files(path))
    if conf.dem_collection is not None:
        known, apis = conf.dem_collection, conf.apis
        folder = project.root / FOLDER / known.collection
        return Dem(
            f"{known.collection} of {known.api}",
            f"{known.collection} {known.asset}",
            lambda grid: _fetched(apis, known, folder, grid),
        )
    return None


def _fetched(apis: ApisConf, dem: DemCollectionConf, folder: Path, grid: Grid) -> list[Path]:
    """The tiles of a collection that reach a grid; those that are not here yet are fetched.

    Written is `folder/ITEM/` for each: its file and `item.json`. What is there stays, whatever the
    API says of it by now: to have a tile fetched anew, remove its folder.

    Raises:
        DemError: no such collection, no tile there, or one that cannot be used.
        ServiceError: the API or its files are away, or another process fetches a tile for too long.
        StorageError: no room.
    """
    service = service_of(apis, dem.api)
    found = _search(service, apis.known[dem.api].url, dem, grid)
    return [_tile(service, item, dem, folder) for item in found]


def _search(service: Service, url: str, dem: DemCollectionConf, grid: Grid) -> list[Item]:
    bounds = _bounds(grid)
    if bounds[0] > bounds[2]:
        raise DemError(
            f"{dem.collection}: the scene crosses 180° of longitude, where tiles cannot be joined; "
            "give a DEM in the scene's own projection (dem_path in conf/landsat.yaml)"
        )
    ground = box(*bounds)
    found = [
        item
        for item in ask(service, url, [dem.collection], ground)
        # A server that does not tell the ground has compared it itself.
        if (place := footprint(item)) is None or place.intersects(ground)
    ]
    if found:
        return sorted(found, key=lambda item: str(item["id"]))
    if not exists(service, f"{url}/collections/{dem.collection}"):
        raise DemError(
            f"conf/landsat.yaml: dem_collection: {service.name} has no collection "
            f"'{dem.collection}' ({url}/collections lists those that it has)"
        )
    area = ",".join(f"{value:.3f}" for value in bounds)
    raise DemError(
        f"{service.name}: {dem.collection} has no tile in {area} (west,south,east,north), where the "
        "scene lies. Take another dem_collection in conf/landsat.yaml, a DEM of your own "
        "(dem_path), or none"
    )


def _bounds(grid: Grid) -> tuple[float, float, float, float]:
    """West, south, east and north of a grid and a margin, in degrees; west > east where it crosses
    180°.
    """
    west, south, east, north = grid.footprint(grid.window).bounds
    across = _MARGIN * (east - west) / grid.width
    down = _MARGIN * (north - south) / grid.height
    found: tuple[float, float, float, float] = transform_bounds(
        grid.crs.to_wkt(),
        "EPSG:4326",
        west - across,
        south - down,
        east + across,
        north + down,
        densify_pts=51,
    )
    return found


def _tile(service: Service, item: Item, dem: DemCollectionConf, folder: Path) -> Path:
    """A tile's file, fetched where it is not here yet."""
    named = f"item {item['id']} of {dem.collection}"
    if dem.asset not in item["assets"]:
        raise DemError(
            f"{service.name}: {named} has no asset '{dem.asset}'; it has "
            f"{', '.join(item['assets']) or 'none'}. Name one of them in conf/landsat.yaml "
            "(dem_collection.asset)"
        )
    asset = Asset("elevation", dem.asset, item["assets"][dem.asset])
    if not asset.name.lower().endswith(_SUFFIXES):
        raise DemError(
            f"{service.name}: {named}: its asset '{dem.asset}' is {asset.name!r}; expected a "
            "GeoTIFF (.tif)"
        )
    place = folder / str(item["id"])
    there = whole_files(place)
    if there is None or asset.name not in there[1]:
        log.info("%s: fetching %s", dem.collection, asset.name)
        try:
            # Scenes side by side share tiles, and so may those who make them.
            fetch_assets(item, [asset], folder, service, wait_s=service.patience.longest_wait_s)
        except WrongFileError as error:
            raise DemError(f"{place / asset.name}: {named} cannot be used: {error}") from error
        except InputError as error:
            raise DemError(str(error)) from error
    _check(place / asset.name, named)
    return place / asset.name


def _check(file: Path, named: str) -> None:
    """Refuse what is no GeoTIFF, and remove it: a checksum says nothing about that."""
    try:
        # By the driver's name: others would open further files, of its choice.
        rasterio.open(file, driver="GTiff").close()
    except RasterioError as error:
        shutil.rmtree(file.parent)
        raise DemError(
            f"{file}: is no GeoTIFF, as {named} has it. It was removed; take another "
            "dem_collection in conf/landsat.yaml, or try again when those who run it have mended it"
        ) from error
