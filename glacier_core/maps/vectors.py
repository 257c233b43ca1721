"""Writing polygons: GeoPackage with its styles, and what else people ask for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from glacier_core.errors import StorageError
from glacier_core.maps.styles import embed_styles

_NO_DATE = "2000-01-01"
# Of names and of texts, shapefiles keep so many letters.
_NAME_LETTERS, _TEXT_LETTERS = 10, 254
_SHORT = {"err_buffer_km2": "err_buffer", "err_prob_km2": "err_prob"}


def multipolygons(frame: Any) -> Any:
    """One kind of geometry, and texts that are known as such where there are none: as every format
    and every reader wants it."""
    shapes = np.asarray(frame.geometry.values, dtype=object)
    single = shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON
    shapes[single] = [shapely.MultiPolygon([one]) for one in shapes[single]]
    texts = frame.columns[frame.dtypes == np.dtype(object)]
    return frame.set_geometry(gpd.GeoSeries(shapes, crs=frame.crs)).astype(
        dict.fromkeys(texts, "string")
    )


@contextmanager
def _dated(stamp: str) -> Iterator[None]:
    # A GeoPackage holds the time when it was written; the same map is to give the same bytes.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": stamp})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (DataSourceError, DataLayerError, sqlite3.Error) as error:
        raise StorageError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}). Is there room left on the "
            "disk? Nothing half-written was kept; run the same command again."
        ) from error


def write_layers(
    path: Path, layers: Mapping[str, Any], styles: Mapping[str, str], date: str | None
) -> None:
    """Write a GeoPackage with the styles that QGIS takes up, also of tables without a row.

    Args:
        path: to write.
        layers: multipolygons by name.
        styles: QML by layer.
        date: ISO date that the file says it is of.

    Raises:
        StorageError: it cannot be written.
    """
    stamp = f"{date or _NO_DATE}T00:00:00.000Z"
    with _explained(path), _dated(stamp):
        for name, frame in layers.items():
            pyogrio.write_dataframe(
                frame, path, layer=name, driver="GPKG", geometry_type="MultiPolygon",
                layer_options={"GEOMETRY_NAME": "geom"},
            )  # fmt: skip
        embed_styles(path, styles, stamp)


def write_also(frame: Any, path: Path, formats: Sequence[str], date: str | None) -> None:
    """Write further formats of a table, `geojson` and `shapefile`, beside `path`.

    Raises:
        StorageError: one cannot be written.
    """
    if "geojson" in formats:
        # Longitude and latitude, as RFC 7946 wants it.
        _write_checked(
            frame.to_crs(4326), path.with_suffix(".geojson"), driver="GeoJSON",
            geometry_type="MultiPolygon", layer_options={"RFC7946": "YES"},
        )  # fmt: skip
    if "shapefile" in formats:
        _write_checked(
            _shortened(frame), path.with_suffix(".shp"), driver="ESRI Shapefile",
            geometry_type="Polygon", layer_options={"DBF_DATE_LAST_UPDATE": date or _NO_DATE},
        )  # fmt: skip


def _write_checked(frame: Any, path: Path, **options: Any) -> None:
    with _explained(path):
        pyogrio.write_dataframe(frame, path, **options)
        # GDAL says nothing of what goes wrong while a file is closed.
        back = pyogrio.read_dataframe(path, columns=[])
        if len(back) < len(frame) or back.geometry.isna().any():
            raise DataSourceError("the file is shorter than what was written to it")


def _shortened(frame: Any) -> Any:
    """A table with names and texts that a shapefile keeps whole."""
    frame = frame.rename(columns=_SHORT)
    names = {name: name for name in frame.columns if len(name) <= _NAME_LETTERS}
    for column in frame.columns.drop(list(names)):
        # The class loses letters, but not what is said of it.
        head, _, tail = column.replace("share", "shr").rpartition("_")
        name, number = "", 1
        while not name or name in names.values():
            stem = head[: _NAME_LETTERS - len(f"_{tail}")]
            if number > 1:
                stem = f"{stem[: -len(str(number))]}{number}"
            name, number = f"{stem.rstrip('_')}_{tail}", number + 1
        names[column] = name
    short = frame.rename(columns=names)
    for column in short.columns[short.dtypes == "string"]:
        short[column] = short[column].str.slice(0, _TEXT_LETTERS)
    return short
