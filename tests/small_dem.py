"""Tiles of a DEM for the STAC server of the tests: a plane, so that every pixel's height is known."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from conftest import CORNER, UTM, make_scene, north_up
from pyproj import Transformer
from small_catalog import ground_of
from stac_server import Item, StacServer

TO_DEGREES = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
SECOND = 1 / 3600

EAST, SOUTH = 0.1, 0.2
"""Rise of the tests' plane, metres a metre: 12.6 degrees."""

WEST_TILE, EAST_TILE = "DEM_N28_E087_00", "DEM_N28_E087_30"
"""Two tiles of 108 x 108 pixels; the scene of `make_product` lies on both."""


def plane(x: Any, y: Any, corner: tuple[float, float] = CORNER) -> Any:
    return 4000 + EAST * (x - corner[0]) - SOUTH * (y - corner[1])


def expected(transform: Affine | None = None, shape: tuple[int, int] = (48, 40)) -> Any:
    """Heights of the plane at a scene's pixels, 0 m from the first scene's corner or its own."""
    transform = transform or north_up()
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    return plane(*(transform @ (cols, rows)), corner=(transform.c, transform.f))


def write_tile(
    path: Path,
    west: float,
    north: float,
    *,
    shape: tuple[int, int] = (108, 108),
    across: float = SECOND,
    corner: tuple[float, float] = CORNER,
    **more: Any,
) -> Path:
    """A tile of the plane in degrees, 1 second of arc high and `across` degrees wide a pixel."""
    transform = Affine(across, 0, west, 0, -SECOND, north)
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = TO_DEGREES.transform(*(transform @ (cols, rows)), direction="INVERSE")
    heights = plane(np.asarray(x), np.asarray(y), corner)[None]
    return make_scene(
        path, bands=[None], values=heights, transform=transform, crs="EPSG:4326", **more
    )


def item_of(server: StacServer, path: Path, *, checksum: bool = False) -> Item:
    """The item of a tile that lies among the server's files."""
    place = path.relative_to(server.folder)
    asset: dict[str, Any] = {"href": f"{{base}}/{place}"}
    if checksum:
        asset["file:checksum"] = "1220" + hashlib.sha256(path.read_bytes()).hexdigest()
    with rasterio.open(path) as tile:
        bounds = tile.bounds
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": path.stem,
        "collection": "heights",
        "geometry": ground_of(*bounds),
        "bbox": list(bounds),
        "properties": {"datetime": "2021-04-22T00:00:00Z"},
        "links": [],
        "assets": {"data": asset, "preview": {"href": "{base}/files/preview.png"}},
    }


def offer_tiles(server: StacServer, place: str = "files/dem", **more: Any) -> list[Item]:
    """Put two tiles beside each other on the server; their edge crosses the scene."""
    lon, lat = TO_DEGREES.transform(CORNER[0] + 600, CORNER[1] - 700)
    edge, north = round(lon * 3600) * SECOND, round(lat * 3600) * SECOND + 54 * SECOND
    folder = server.folder / place
    items = [
        item_of(server, write_tile(folder / f"{name}.tif", west, north, **more))
        for name, west in ((WEST_TILE, edge - 108 * SECOND), (EAST_TILE, edge))
    ]
    server.set_items(items)
    return items
