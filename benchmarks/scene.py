"""The scene, its outlines and the tiny scenes: made once, the same bytes wherever they are made."""

from __future__ import annotations

import math
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window
from shapely.geometry import Polygon, box

from benchmarks.sizes import CLASSES, SCENE, SEED, YEAR
from glacier_core.files import whole_folder
from glacier_core.simulate import simulate

# One day with the scan-line corrector and one without, as in the demo.
_DAYS = [date(2000, 10, 25), date(2010, 11, 6)]
# A Landsat swath lies askew in its file: at 9.2 degrees, 76 % of 7,000 x 7,800 pixels are seen.
_TILT = math.radians(9.2)
# As inventories drawn on Landsat have: about one a pixel of 30 m.
_VERTEX_M, _VERTICES = 30, (24, 400)
_OUTDATED = 1990


def make_tiles(out: str, tile: int) -> dict[str, Any]:
    """Simulate the pictures that scenes are pieced together from, with their truth."""
    if not Path(out).exists():
        with whole_folder(Path(out)) as folder:
            simulate(folder, sites=2, size=tile, dates=_DAYS, seed=SEED)
    return {}


def make_scene(out: str, tiles: str, height: int, width: int) -> dict[str, Any]:
    """Write a scene of real texture: float32, LZW, 256 x 256 tiles, 15 named bands, a slanted swath.

    Simulated pictures side by side: a real scene's digital numbers, noise, clouds and gaps
    decide how well it compresses, and so how long it takes to decode. Memory is a strip of rows.
    """
    sources = sorted((Path(tiles) / "scenes").glob("*.tif"))
    pictures, names = [], []
    for source in sources:
        with rasterio.open(source) as dataset:
            pictures.append(dataset.read())
            names, profile = dataset.descriptions, dataset.profile
    edge = pictures[0].shape[1]
    with (
        whole_folder(Path(out)) as folder,
        rasterio.open(
            folder / f"{SCENE}.tif", "w", driver="GTiff", height=height, width=width,
            count=len(names), dtype="float32", nodata=math.nan, crs=profile["crs"],
            transform=profile["transform"], tiled=True, blockxsize=256, blockysize=256,
            interleave="pixel", compress="lzw", bigtiff="if_safer", num_threads="all_cpus",
        ) as scene,
    ):  # fmt: skip
        scene.descriptions = names
        for number, row in enumerate(range(0, height, edge)):
            rows = min(edge, height - row)
            chosen = [pictures[(number + k) % len(pictures)] for k in range(-(-width // edge))]
            strip = np.concatenate(chosen, axis=2)[:, :rows, :width]
            strip[:, ~in_swath(row, rows, height, width)] = np.nan
            scene.write(strip, window=Window(0, row, width, rows))
    return {}


def in_swath(row: int, rows: int, height: int, width: int) -> npt.NDArray[np.bool_]:
    """bool (rows, width): inside the largest rectangle, tilted, that fits into the file."""
    sin, cos = math.sin(_TILT), math.cos(_TILT)
    half_across = (width * cos - height * sin) / math.cos(2 * _TILT) / 2
    half_along = (height * cos - width * sin) / math.cos(2 * _TILT) / 2
    y = (np.arange(row, row + rows) + 0.5 - height / 2)[:, None]
    x = (np.arange(width) + 0.5 - width / 2)[None]
    inside: npt.NDArray[np.bool_] = (np.abs(x * cos + y * sin) <= half_across) & (
        np.abs(y * cos - x * sin) <= half_along
    )
    return inside


def make_outlines(out: str, scene: str, count: int, median_km2: float) -> dict[str, Any]:
    """Write `clean_ice.gpkg`, `debris.gpkg` and `border.gpkg` in the scene's CRS.

    Lobed outlines with the sizes of an inventory (log-normal), a vertex about every pixel,
    some with a hole, some of a year that does not count. Two thirds are clean ice.
    """
    with rasterio.open(scene) as dataset:
        bounds, crs = dataset.bounds, dataset.crs
    random = np.random.default_rng([SEED, count])
    frame = _outlines(random, count, bounds, median_km2)
    third = np.arange(count) % 3 == 0
    area = box(*bounds)
    corner = Polygon(
        [
            (bounds.left, bounds.bottom),
            (bounds.left + 0.3 * (bounds.right - bounds.left), bounds.bottom),
            (bounds.left, bounds.bottom + 0.3 * (bounds.top - bounds.bottom)),
        ]
    )
    with whole_folder(Path(out)) as folder:
        for name, chosen in zip(CLASSES, (~third, third), strict=True):
            frame[chosen].set_crs(crs).to_file(folder / f"{name}.gpkg", layer=name)
        border = gpd.GeoDataFrame({"name": ["study area"]}, geometry=[area.difference(corner)])
        border.set_crs(crs).to_file(folder / "border.gpkg", layer="border")
    return {}


def _outlines(
    random: np.random.Generator, count: int, bounds: Any, median_km2: float
) -> gpd.GeoDataFrame:
    shapes = []
    for _ in range(count):
        km2 = min(median_km2 * math.exp(random.normal(0, 1.1)), 40)
        x, y = random.uniform(bounds.left, bounds.right), random.uniform(bounds.bottom, bounds.top)
        shapes.append(shapely.affinity.translate(_lobed(random, km2), x, y))
    years = np.where(random.random(count) < 0.03, _OUTDATED, YEAR)
    return gpd.GeoDataFrame({"year": years}, geometry=shapes)


def _lobed(random: np.random.Generator, km2: float) -> Polygon:
    """A lobed, long shape round (0, 0); star-shaped, and so valid."""
    radius = math.sqrt(km2 / math.pi) * 1000
    vertices = int(np.clip(2 * math.pi * radius / _VERTEX_M, *_VERTICES))
    angle = np.linspace(0, 2 * math.pi, vertices, endpoint=False)
    wave = sum(
        random.normal(0, 0.22 / k) * np.cos(k * angle + random.uniform(0, 2 * math.pi))
        for k in range(2, 9)
    )
    length = radius * np.clip(1 + wave, 0.3, None)
    stretch, turn = random.uniform(1, 2), random.uniform(0, math.pi)

    def ring(share: float) -> npt.NDArray[np.float64]:
        along, across = length * np.cos(angle) * stretch, length * np.sin(angle) / stretch
        x = along * math.cos(turn) - across * math.sin(turn)
        y = along * math.sin(turn) + across * math.cos(turn)
        return share * np.stack([x, y], axis=1)

    return Polygon(ring(1), [ring(0.3)] if random.random() < 0.08 and km2 > 0.2 else [])


def make_tiny_scenes(out: str, count: int) -> dict[str, Any]:
    """Write many scenes of 128 x 128 pixels, each 60 km from the next, and outlines of all."""
    with whole_folder(Path(out)) as folder:
        simulate(folder / "one", sites=1, size=128, dates=_DAYS[-1:], seed=SEED)
        [source] = (folder / "one/scenes").glob("*.tif")
        drawn: dict[str, list[Polygon]] = {name: [] for name in CLASSES}
        (folder / "scenes").mkdir()
        (folder / "outlines").mkdir()
        with rasterio.open(source) as dataset:
            values, profile, names = dataset.read(), dataset.profile, dataset.descriptions
        random = np.random.default_rng(SEED)
        for number in range(count):
            row, col = divmod(number, 6)
            moved = Affine.translation(60_000 * col, 60_000 * row) @ profile["transform"]
            path = folder / f"scenes/LE07_TINY{number:02d}_20101106.tif"
            with rasterio.open(path, "w", **{**profile, "transform": moved}) as scene:
                scene.write(values)
                scene.descriptions = names
            for name in CLASSES:
                x, y = moved @ tuple(random.uniform(32, 96, 2))
                drawn[name].append(shapely.affinity.translate(_lobed(random, 0.8), x, y))
        for name, shapes in drawn.items():
            frame = gpd.GeoDataFrame({"year": YEAR}, geometry=shapes, index=range(len(shapes)))
            frame.set_crs(profile["crs"]).to_file(folder / f"outlines/{name}.gpkg", layer=name)
        shutil.rmtree(folder / "one")
    return {}
