"""A small map with its outlines and change, written by hand as the commands write them.

A ridge with four glaciers, clean ice above and debris below, in 180 x 200 pixels; a cloud, and a
scan-line gap through two of the glaciers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import rasterio.features
from affine import Affine
from conftest import UTM, make_scene, north_up
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import shape

SCENE = "LE07_SMALL_20001025"
CLASSES = ["background", "clean_ice", "debris"]
BANDS = ["B2", "B3", "B4", "B5", "elevation"]
HEIGHT, WIDTH = 180, 200
UNSEEN = 255
PIXEL_KM2 = 9e-4


@dataclass(frozen=True)
class Ground:
    """The truth of the small scene, each (height, width).

    Attributes:
        elevation: metres, float64.
        classes: 0 other, 1 clean ice, 2 debris, 255 unseen.
        labels: number of the glacier, 0 outside, unseen ground inside of it included.
    """

    elevation: NDArray[np.float64]
    classes: NDArray[np.uint8]
    labels: NDArray[np.int64]


def small_ground(*, glaciers: bool = True, shrunk: float = 0.0) -> Ground:
    """See `Ground`.

    Args:
        glaciers: whether there are any.
        shrunk: by how many pixels the glaciers are narrower.
    """
    row, col = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(HEIGHT, WIDTH)), 5)
    elevation = 6400 - 14 * row + 250 * np.cos(col / 14) + 900 * noise
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    tongues = [(30, 14, 105), (78, 20, 150), (125, 9, 80), (168, 16, 128)]
    for number, (middle, half, lowest) in enumerate(tongues, start=1):
        bend = middle + 8 * np.sin(row / 25 + number) + 30 * noise
        wide = half * np.clip((lowest - row) / lowest, 0, 1) ** 0.5 - shrunk
        labels[(np.abs(col - bend) < wide) & (row > 8) & glaciers] = number
    classes = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    classes[labels > 0] = 1
    classes[(labels > 0) & (elevation < 5350) & (labels != 3)] = 2
    unseen = (np.hypot(row - 150, col - 30) < 14 + 60 * noise) | (np.abs(row - 60 - col / 8) < 1.5)
    classes[unseen] = UNSEEN
    return Ground(elevation, classes, labels)


def make_map(
    root: Path,
    *,
    ground: Ground | None = None,
    crs: str | None = UTM,
    transform: Affine | None = None,
    uncertainty: bool = True,
    **about: Any,
) -> Path:
    """Write the scene below `root` and the map's folder, and return the folder.

    Args:
        root: of the project.
        ground: what is mapped; `small_ground()` where None.
        crs: None for a map that lies nowhere.
        transform: `north_up()` where None.
        uncertainty: whether there is such a raster.
        about: other values for keys of map.json.
    """
    ground = ground or small_ground()
    random = np.random.default_rng(1)
    values = np.empty((len(BANDS), HEIGHT, WIDTH), dtype=np.float32)
    looks = {0: (70, 80, 115, 105), 1: (215, 210, 190, 25), 2: (85, 90, 95, 80)}
    light = np.gradient(ground.elevation)[1]
    for number, look in looks.items():
        there = np.where(ground.classes == UNSEEN, ground.labels > 0, ground.classes) == number
        for band, level in enumerate(look):
            values[band][there] = (level + 0.9 * light + random.normal(0, 4, light.shape))[there]
    values[:4] = np.clip(values[:4], 1, 255)
    values[4] = ground.elevation
    values[:4, ground.classes == UNSEEN] = 0
    source = f"data/raw/{SCENE}.tif"
    transform = transform or north_up()
    make_scene(root / source, bands=BANDS, values=values, crs=crs, transform=transform)

    folder = root / "data/maps" / SCENE
    folder.mkdir(parents=True)
    unseen = ground.classes == UNSEEN
    likely = [ndimage.gaussian_filter((ground.classes == k).astype(float), 1.5) for k in (1, 2)]
    odds = np.stack([1 - likely[0] - likely[1], *likely])
    sure = odds.max(axis=0)
    rasters = {
        "classes": ground.classes[None],
        "probabilities": np.round(odds[1:] * 255),
        "confidence": np.round(sure * 255)[None],
    }
    if uncertainty:
        rasters["uncertainty"] = np.round(0.4 * (1 - sure) * 255)[None]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        for kind, layers in rasters.items():
            with rasterio.open(
                folder / f"{SCENE}_{kind}.tif", "w", driver="GTiff", count=len(layers),
                height=HEIGHT, width=WIDTH, dtype="uint8", crs=crs, transform=transform,
                nodata=UNSEEN if kind == "classes" else None,
            ) as file:  # fmt: skip
                file.write(layers.astype(np.uint8))
                if kind != "classes":
                    file.write_mask(~unseen)
    described = {
        "scene": SCENE,
        "source": source,
        "bands": None,
        "date": "2000-10-25",
        "classes": CLASSES,
        "models": ["models:/glacier-unet/3"],
        "trainings": ["0123"],
        "symmetries": uncertainty,
        "seen": float(1 - unseen.mean()),
        "no_value": 0.012,
        "covered": float(unseen.mean()) - 0.012,
        "snow_outside": 0.02,
        "channels": {
            name: {"mean": 100.0, "training_mean": 95.0, "training_deviation": 30.0}
            for name in BANDS
        },
        "key": "0123",
    }
    (folder / "map.json").write_text(json.dumps(described | about))
    return folder


def make_map_outlines(
    root: Path,
    *,
    ground: Ground | None = None,
    crs: str = UTM,
    transform: Affine | None = None,
    inventory_ids: Sequence[str | None] = ("RGI60-15.03733", None, None, "RGI60-15.03735"),
    terrain: bool = True,
) -> Path:
    """Write the folder of outlines of the small map, and return it."""
    ground = ground or small_ground()
    folder = root / "data/outlines" / SCENE
    folder.mkdir(parents=True)
    transform = transform or north_up()
    shapes = _shapes(ground.labels, transform)
    rows: list[dict[str, Any]] = []
    for number, polygon in shapes.items():
        inside = ground.labels == number
        height = ground.elevation[inside] if terrain else np.array([np.nan])
        by_class = {name: int((inside & (ground.classes == k)).sum()) * PIXEL_KM2
                    for k, name in enumerate(CLASSES[1:], start=1)}  # fmt: skip
        area = sum(by_class.values())
        rows.append(
            {
                "glac_id": f"G08{number:04d}E27{number:03d}N",
                "complex_id": f"C{number}",
                "inv_id": inventory_ids[number - 1],
                "scene": SCENE,
                "date": "2000-10-25",
                "model": "models:/glacier-unet/3",
                "cenlon": 87.0,
                "cenlat": 28.0,
                "area_km2": area,
                **{f"{name}_km2": value for name, value in by_class.items()},
                **{f"{name}_share": value / area for name, value in by_class.items()},
                "gap_km2": int((inside & (ground.classes == UNSEEN)).sum()) * PIXEL_KM2,
                "open_share": 0.02 if number < 4 else 0.0,
                "err_buffer_km2": polygon.length * 15 / 1e6,
                "err_prob_km2": 0.04 * area,
                "zmin_m": height.min(),
                "zmax_m": height.max(),
                "zmean_m": height.mean(),
                "zmed_m": float(np.median(height)),
                "slope_deg": 24.5 if terrain else np.nan,
                "aspect_deg": 170.0 if terrain else np.nan,
                "confidence": 0.93,
                "geometry": polygon,
            }
        )
    columns = "glac_id inv_id area_km2 clean_ice_km2 debris_km2 geometry".split()
    frame = gpd.GeoDataFrame(rows, columns=None if rows else columns, geometry="geometry", crs=crs)
    frame.to_parquet(folder / f"{SCENE}_glaciers.parquet")
    if terrain:
        table = [
            {"elevation_m": low, "class": name, "km2": float(there.sum()) * PIXEL_KM2}
            for low in range(3500, 6900, 100)
            for k, name in enumerate(CLASSES[1:], start=1)
            if (there := (ground.classes == k) & (ground.elevation // 100 * 100 == low)).any()
        ]
        names = ["elevation_m", "class", "km2"]
        pd.DataFrame(table, columns=names).to_csv(folder / f"{SCENE}_hypsometry.csv", index=False)
    km2 = {name: float(frame[f"{name}_km2"].sum()) for name in CLASSES[1:]}
    summary = {
        "scene": SCENE,
        "date": "2000-10-25",
        "glaciers": len(frame),
        "km2": km2,
        "err_buffer_km2": {name: 0.06 * value for name, value in km2.items()},
        "err_prob_km2": {name: 0.03 * value for name, value in km2.items()},
        "total_km2": sum(km2.values()),
        "total_err_buffer_km2": 0.05 * sum(km2.values()),
        "total_err_prob_km2": 0.03 * sum(km2.values()),
        "left_out_km2": 0.02,
        "inventory": "data/raw/outlines/rgi.gpkg",
        "methods": {
            "area_km2": "Area of the mapped pixels on the ellipsoid.",
            "err_buffer_km2": "Length of the outline times half a pixel.",
        },
    }
    (folder / "outlines.json").write_text(json.dumps(summary))
    return folder


def make_change(root: Path, *, before: Ground | None = None, after: Ground | None = None) -> Path:
    """Write the folder of a comparison of the small map with a later one, and return it."""
    before, after = before or small_ground(), after or small_ground(shrunk=1.6)
    folder = root / "data/change/SMALL"
    folder.mkdir(parents=True)
    was, now = (np.isin(ground.classes, (1, 2)) for ground in (before, after))
    rows = []
    for number, polygon in _shapes(before.labels, north_up()).items():
        inside = before.labels == number
        first, second = (float((inside & ice).sum()) * PIXEL_KM2 for ice in (was, now))
        rows.append(
            {
                "glac_id": f"G08{number:04d}E27{number:03d}N",
                "inv_id": None,
                "km2_before": first,
                "km2_after": second,
                "change_km2": second - first,
                "err_km2": 0.05 * first,
                "rate_km2_yr": (second - first) / 10,
                "gain_km2": 0.0,
                "loss_km2": first - second,
                "seen_share": 0.97,
                "geometry": polygon,
            }
        )
    frame = gpd.GeoDataFrame(rows, geometry="geometry", crs=UTM)
    frame.to_file(folder / "change.gpkg", layer="glaciers")
    frame.drop(columns="geometry").to_csv(folder / "change.csv", index=False)
    kinds = {
        "loss": was & ~now,
        "clean_ice_to_debris": (before.classes == 1) & (before.elevation < 5420) & now,
    }
    moves = [
        {"what": what, "km2": part.area / 1e6, "geometry": part}
        for what, there in kinds.items()
        for part in _pieces(there, north_up())
    ]
    gpd.GeoDataFrame(moves, geometry="geometry", crs=UTM).to_file(
        folder / "change.gpkg", layer="moves"
    )
    total = {
        "before": float(was.sum()) * PIXEL_KM2,
        "after": float(now.sum()) * PIXEL_KM2,
        "change": float(now.sum() - was.sum()) * PIXEL_KM2,
        "err": 0.4,
    }
    by_class: Mapping[str, Any] = {
        name: {
            "before": float((before.classes == k).sum()) * PIXEL_KM2,
            "after": float((after.classes == k).sum()) * PIXEL_KM2,
            "change": float((after.classes == k).sum() - (before.classes == k).sum()) * PIXEL_KM2,
            "err": 0.3,
        }
        for k, name in enumerate(CLASSES[1:], start=1)
    }
    summary = {
        "before": SCENE,
        "after": "LE07_SMALL_20101106",
        "years": 10.03,
        "seen_share": 0.93,
        "km2": by_class,
        "total": total,
    }
    (folder / "change.json").write_text(json.dumps(summary))
    return folder


def _shapes(labels: NDArray[np.int64], transform: Affine) -> dict[int, Any]:
    """The largest piece of each label, with what is unseen inside."""
    found: dict[int, Any] = {}
    for piece, number in rasterio.features.shapes(
        labels.astype(np.int16), mask=labels > 0, transform=transform
    ):
        polygon = shape(piece)
        if int(number) not in found or polygon.area > found[int(number)].area:
            found[int(number)] = polygon
    return dict(sorted(found.items()))


def _pieces(there: NDArray[np.bool_], transform: Affine) -> list[Any]:
    pieces = rasterio.features.shapes(there.astype(np.uint8), mask=there, transform=transform)
    return [shape(piece) for piece, _ in pieces]
