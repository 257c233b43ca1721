"""Outlines of a map: polygons with attributes, in the formats of the field."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Transformer

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.files import whole_folder, write_json
from glacier_core.maps.attributes import (
    METHODS,
    BorderErrors,
    Faces,
    Measures,
    border_errors,
    measure,
)
from glacier_core.maps.coverage import Coverage, trace
from glacier_core.maps.glaciers import (
    Glaciers,
    Inventory,
    as_frame,
    find_glaciers,
)
from glacier_core.maps.scenemap import UNSEEN, About, SceneMap
from glacier_core.maps.specks import without_specks
from glacier_core.maps.styles import class_polygon_style, glacier_style
from glacier_core.maps.vectors import multipolygons, write_also, write_layers
from glacier_core.params import OutlinesParams
from glacier_core.raster.grid import Grid

logger = logging.getLogger(__name__)

SUMMARY = "outlines.json"


@dataclass(frozen=True)
class Outlined:
    """What `outline_map` wrote.

    Attributes:
        folder: where it lies.
        summary: glaciers and areas in a sentence.
    """

    folder: Path
    summary: str


def outline_map(
    project: Project,
    map_folder: Path,
    out: Path,
    *,
    inventory: Path | None,
    inventory_id: str | None,
    also: Sequence[str],
) -> Outlined:
    """Write the outlines of a map into `out/{scene}/`.

    `{scene}_glaciers.gpkg` (layers `glaciers`, one record a glacier, and `classes`, its parts by
    class), both layers as GeoParquet, `{scene}_hypsometry.csv` where the scene has terrain, and
    `outlines.json` with the sums.

    Args:
        project: for `outlines` in params.yaml, and the inventory in conf/maps.yaml.
        map_folder: see `SceneMap`.
        out: folder for the scene's folder.
        inventory: vector file of known glaciers; None for that of conf/maps.yaml, if any.
        inventory_id: its column of ids.
        also: of `geojson` and `shapefile`.

    Raises:
        InputError: no map, a map without CRS, an inventory that cannot be used, or `out` holds
            something else under the scene's name.
        StorageError: no room, or no right to write.
    """
    scene_map = SceneMap(map_folder)
    about, grid = scene_map.about, scene_map.grid
    grid.check_located(scene_map.raster("classes"))
    folder = out / about.scene
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SUMMARY).exists():
        raise InputError(
            f"{folder}: holds files that `glacier outlines` did not make, and would replace. "
            "Name another folder with --out."
        )
    known = read_inventory(project, inventory, inventory_id, grid)
    result = _worked_out(scene_map, project.params.outlines, known)
    styles = {"glaciers": glacier_style(), "classes": class_polygon_style(about.ice)}
    with whole_folder(folder) as beside:
        write_layers(beside / f"{about.scene}_glaciers.gpkg", result.layers, styles, about.date)
        for name, frame in result.layers.items():
            # The same style for the other formats: QGIS looks for it beside a file of this name.
            (beside / f"{about.scene}_{name}.qml").write_text(styles[name], encoding="utf-8")
            frame.to_parquet(beside / f"{about.scene}_{name}.parquet", compression="zstd")
            write_also(frame, beside / f"{about.scene}_{name}", also, about.date)
        if result.hypsometry is not None:
            path = beside / f"{about.scene}_hypsometry.csv"
            _write_hypsometry(path, about.ice, *result.hypsometry)
        write_json(beside / SUMMARY, result.sums)
    sums = result.sums
    sentence = (
        f"{sums['glaciers']} glaciers, {sums['total_km2']:.2f} km² "
        f"(± {sums['total_err_buffer_km2']:.2f} by buffer): "
        + ", ".join(f"{name} {km2:.2f}" for name, km2 in sums["km2"].items())
    )
    logger.info("%s: %s", about.scene, sentence)
    return Outlined(folder, sentence)


@dataclass(frozen=True)
class _Result:
    """What is written of a map.

    Attributes:
        layers: tables by name.
        hypsometry: see `Measures`.
        sums: what outlines.json says.
    """

    layers: dict[str, Any]
    hypsometry: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None
    sums: dict[str, Any]


def _worked_out(scene_map: SceneMap, params: OutlinesParams, known: Inventory | None) -> _Result:
    """All about the glaciers of a map; its rasters take no more room while files are written."""
    about, grid = scene_map.about, scene_map.grid
    classes = without_specks(scene_map.read("classes"), params.min_part_pixels)
    unseen = classes == UNSEEN
    glaciers = find_glaciers((classes > 0) & ~unseen, unseen, grid, params, known)
    del unseen
    faces = Faces(glaciers.numbers, classes, about.ice)
    measured = measure(scene_map, faces, glaciers, correlation_m=params.correlation_m)
    coverage = trace(faces)
    errors = border_errors(coverage, faces, glaciers.count, grid).within(measured.km2)
    parts = _parts(coverage, faces, grid)
    shapes = _dissolved(parts.geometry.values, faces.glacier_of(coverage.labels), glaciers.count)
    table = _glacier_table(about, glaciers, measured, errors, shapes, grid)
    class_table = _class_table(about, parts, table, measured, coverage, faces)
    sums = _sums(about, glaciers, measured, errors, known)
    return _Result({"glaciers": table, "classes": class_table}, measured.hypsometry, sums)


def read_inventory(
    project: Project, path: Path | None, column: str | None, grid: Grid
) -> Inventory | None:
    """The inventory given, or that of conf/maps.yaml, or None.

    Raises:
        InputError: as `Inventory.read`.
    """
    if path is None and project.maps.inventory_path is not None:
        path = project.root / project.maps.inventory_path
        column = column or project.maps.inventory_id
    if path is None:
        if column is not None:
            raise InputError("--inventory-id: names a column, but there is no --inventory")
        return None
    return Inventory.read(path, column, grid)


def _parts(coverage: Coverage, faces: Faces, grid: Grid) -> Any:
    names = np.array(faces.ice)[faces.class_of(coverage.labels)]
    return as_frame({"class": names.astype(object)}, coverage.polygons, grid)


def _dissolved(
    parts: npt.NDArray[np.object_], of: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.object_]:
    """The parts of each glacier as one shape; inner borders fall away exactly."""
    shapes = np.empty(count, dtype=object)
    bounds = np.searchsorted(of, np.arange(count + 1))
    for k, (first, last) in enumerate(pairwise(bounds)):
        own = np.asarray(parts[first:last])
        shapes[k] = own[0] if len(own) == 1 else shapely.coverage_union_all(own)
    return shapes


def glims_ids(lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]) -> list[str]:
    """Ids as GLIMS makes them, `G086438E28278N`: where a glacier is, in thousandths of a degree.

    A second glacier of the same place gets `-2`, and so on.
    """
    ids: list[str] = []
    seen: dict[str, int] = {}
    for x, y in zip(lon % 360, lat, strict=True):
        name = f"G{round(x * 1000) % 360000:06d}E{round(abs(y) * 1000):05d}{'S' if y < 0 else 'N'}"
        seen[name] = seen.get(name, 0) + 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids


def centres(
    shapes: npt.NDArray[np.object_], grid: Grid
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitude and latitude of a point inside each shape."""
    points = shapely.get_coordinates(shapely.point_on_surface(shapes)).reshape(-1, 2)
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(points[:, 0], points[:, 1])
    return np.asarray(lon, dtype=np.float64), np.asarray(lat, dtype=np.float64)


def _glacier_table(
    about: About,
    glaciers: Glaciers,
    measured: Measures,
    errors: BorderErrors,
    shapes: npt.NDArray[np.object_],
    grid: Grid,
) -> Any:
    count = glaciers.count
    lon, lat = centres(shapes, grid)
    ids = np.array(glims_ids(lon, lat), dtype=object)
    total = measured.km2.sum(axis=1)
    # A complex is named after its largest glacier.
    leading: dict[int, int] = {}
    for k, number in enumerate(glaciers.complexes):
        if number not in leading or total[k] > total[leading[number]]:
            leading[int(number)] = k
    records: dict[str, Any] = {
        "glac_id": ids,
        "complex_id": np.array([ids[leading[int(n)]] for n in glaciers.complexes], dtype=object),
        "inv_id": np.array(glaciers.inventory_ids, dtype=object),
        "scene": np.full(count, about.scene, dtype=object),
        "date": np.full(count, about.date, dtype=object),
        "model": np.full(count, " ".join(about.models), dtype=object),
        "cenlon": lon.round(6),
        "cenlat": lat.round(6),
        "area_km2": total.round(6),
    }
    for i, name in enumerate(about.ice):
        records[f"{name}_km2"] = measured.km2[:, i].round(6)
    for i, name in enumerate(about.ice):
        records[f"{name}_share"] = (measured.km2[:, i] / total).round(4)
    records |= {
        "gap_km2": measured.gap_km2.round(6),
        "open_share": errors.open.round(4),
        "err_buffer_km2": errors.glacier.round(6),
        "err_prob_km2": measured.total_error.round(6),
        **{name: values.round(1) for name, values in measured.terrain.items()},
        "confidence": measured.confidence.round(4),
    }
    return multipolygons(gpd.GeoDataFrame(records, geometry=shapes, crs=grid.crs))


def _class_table(
    about: About, parts: Any, table: Any, measured: Measures, coverage: Coverage, faces: Faces
) -> Any:
    of, kind = faces.glacier_of(coverage.labels), faces.class_of(coverage.labels)
    records = {
        "glac_id": table["glac_id"].to_numpy(object)[of],
        "class": parts["class"].to_numpy(object),
        "area_km2": measured.km2[of, kind].round(6),
        "scene": np.full(len(of), about.scene, dtype=object),
        "date": np.full(len(of), about.date, dtype=object),
        "model": np.full(len(of), " ".join(about.models), dtype=object),
        "confidence": measured.class_confidence[of, kind].round(4),
    }
    return multipolygons(gpd.GeoDataFrame(records, geometry=parts.geometry.values, crs=parts.crs))


def _write_hypsometry(
    path: Path,
    ice: Sequence[str],
    edges: npt.NDArray[np.int64],
    km2: npt.NDArray[np.float64],
) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("elevation_m", "class", "km2"))
        for edge, row in zip(edges, km2, strict=True):
            for name, value in zip(ice, row, strict=True):
                writer.writerow((int(edge), name, f"{value:.6f}"))


def _sums(
    about: About,
    glaciers: Glaciers,
    measured: Measures,
    errors: BorderErrors,
    inventory: Inventory | None,
) -> dict[str, Any]:
    def by_class(values: npt.NDArray[np.float64]) -> dict[str, float]:
        return {name: round(float(v), 6) for name, v in zip(about.ice, values, strict=True)}

    return {
        "scene": about.scene,
        "date": about.date,
        "models": about.models,
        "glaciers": glaciers.count,
        "km2": by_class(measured.km2.sum(axis=0)),
        "err_buffer_km2": by_class(errors.by_class.sum(axis=0)),
        "err_prob_km2": by_class(np.sqrt((measured.error**2).sum(axis=0))),
        "total_km2": round(float(measured.km2.sum()), 6),
        "total_err_buffer_km2": round(float(errors.glacier.sum()), 6),
        "total_err_prob_km2": round(float(np.sqrt((measured.total_error**2).sum())), 6),
        "left_out_km2": round(glaciers.left_out_km2, 6),
        "inventory": str(inventory.path) if inventory else None,
        "methods": METHODS,
    }
