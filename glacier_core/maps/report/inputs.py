"""Reading what a report shows: outlines and change, as `glacier outlines` and `change` wrote them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from glacier_core.errors import InputError
from glacier_core.maps.scenemap import SceneMap
from glacier_core.raster.grid import Window

# Rows of the class raster at once: as many as its blocks are high, 32 MB of areas.
_ROWS = 512


@dataclass(frozen=True)
class Outlines:
    """What `glacier outlines` wrote for a map.

    Attributes:
        folder: where it lies.
        summary: content of `outlines.json`.
        glaciers: one row a glacier, largest first.
        hypsometry: elevation_m, class, km2; None where there is no terrain.
    """

    folder: Path
    summary: dict[str, Any]
    glaciers: gpd.GeoDataFrame
    hypsometry: pd.DataFrame | None

    @classmethod
    def read(cls, folder: Path, scene: str) -> Outlines:
        """Read the folder of a scene.

        Raises:
            InputError: a file is missing or damaged, or is about another scene.
        """
        command = "glacier outlines"
        summary = _json(folder / "outlines.json", command, ("scene", "km2", "glaciers"))
        if summary["scene"] != scene:
            raise InputError(
                f"{folder / 'outlines.json'}: is about {summary['scene']}, the map about {scene}; "
                "give the outlines of this map"
            )
        path = folder / f"{scene}_glaciers.parquet"
        glaciers = _shapes(path, command)
        _check_columns(path, glaciers, ("glac_id", "area_km2"), command)
        hypsometry = None
        path = folder / f"{scene}_hypsometry.csv"
        if path.exists():
            hypsometry = _table(path, command)
            _check_columns(path, hypsometry, ("elevation_m", "class", "km2"), command)
            hypsometry = hypsometry if len(hypsometry) else None
        ordered = glaciers.sort_values("area_km2", ascending=False, kind="stable")
        return cls(folder, summary, ordered.reset_index(drop=True), hypsometry)


@dataclass(frozen=True)
class Change:
    """What `glacier change` wrote.

    Attributes:
        folder: where it lies.
        summary: content of `change.json`.
        glaciers: one row a glacier, the largest loss first.
        moves: where ice came, went, or changed its kind.
    """

    folder: Path
    summary: dict[str, Any]
    glaciers: gpd.GeoDataFrame
    moves: gpd.GeoDataFrame

    @classmethod
    def read(cls, folder: Path) -> Change:
        """Read the folder of a comparison.

        Raises:
            InputError: a file is missing or damaged.
        """
        command = "glacier change"
        summary = _json(folder / "change.json", command, ("before", "after", "km2", "total"))
        path = folder / "change.gpkg"
        glaciers = _shapes(path, command, "glaciers")
        _check_columns(path, glaciers, ("glac_id", "change_km2"), command)
        moves = _shapes(path, command, "moves")
        _check_columns(path, moves, ("what",), command)
        ordered = glaciers.sort_values("change_km2", kind="stable").reset_index(drop=True)
        return cls(folder, summary, ordered, moves)


def _missing(path: Path, command: str) -> InputError:
    return InputError(f"{path}: no such file; run `{command}` first")


def _damaged(path: Path, reason: object, command: str) -> InputError:
    return InputError(f"{path}: is damaged ({reason}); run `{command}` again")


def _json(path: Path, command: str, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path, command) from None
    except ValueError as error:
        raise _damaged(path, error, command) from None
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise _damaged(path, f"it lacks {', '.join(absent)}", command)
    return dict(content)


def _shapes(path: Path, command: str, layer: str | None = None) -> gpd.GeoDataFrame:
    if not path.is_file():
        raise _missing(path, command)
    try:
        if layer is None:
            return gpd.read_parquet(path)
        frame = gpd.read_file(path, layer=layer)
    except (ValueError, OSError, RuntimeError) as error:
        raise _damaged(path, str(error).splitlines()[0], command) from None
    # A layer without shapes comes as a plain table.
    return frame if isinstance(frame, gpd.GeoDataFrame) else gpd.GeoDataFrame(frame, geometry=[])


def _table(path: Path, command: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise _damaged(path, error, command) from None


def _check_columns(path: Path, frame: pd.DataFrame, names: tuple[str, ...], command: str) -> None:
    absent = [name for name in names if name not in frame.columns]
    if absent:
        raise _damaged(path, f"it lacks {', '.join(absent)}", command)


def areas_of_classes(scene_map: SceneMap) -> npt.NDArray[np.float64] | None:
    """Area of each class number in the class raster, km²; None without a CRS."""
    grid, classes = scene_map.grid, len(scene_map.about.classes)
    if not grid.located:
        return None
    total = np.zeros(classes)
    for row in range(0, grid.height, _ROWS):
        window = Window(row, 0, min(_ROWS, grid.height - row), grid.width)
        numbers = scene_map.read("classes", window).ravel()
        areas = grid.pixel_areas_km2(window).ravel()
        total += np.bincount(numbers, weights=areas, minlength=256)[:classes]
    return total
