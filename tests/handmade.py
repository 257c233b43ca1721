"""Maps of a few pixels drawn as text, and `glacier outlines` on them, in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
import yaml
from affine import Affine
from click.testing import CliRunner, Result
from conftest import UTM, copy_settings, edit_yaml, north_up
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from glacier_core.cli import main
from glacier_core.maps.rasters import Layer, MapRasters
from glacier_core.maps.scenemap import ELEVATION_STEP_M, NO_ELEVATION, UNSEEN
from glacier_core.raster.grid import UNLOCATED, Grid

SCENE = "LE07_HAND_20001025"
CLASSES = ["background", "clean_ice", "debris"]
MODEL = "models:/glacier-unet/7"

Classes = NDArray[np.uint8]


def drawn(*rows: str) -> Classes:
    """Class numbers from text: `.` for 0, digits, `?` for what was not seen."""
    numbers = [[UNSEEN if c == "?" else 0 if c == "." else int(c) for c in row] for row in rows]
    return np.array(numbers, dtype=np.uint8)


def blank(
    height: int = 60, width: int = 60, **boxes: Sequence[tuple[int, int, int, int]]
) -> Classes:
    """Rock, with boxes (top, left, bottom, right) of `clean`, `debris`, `rock` and `unseen`."""
    classes = np.zeros((height, width), dtype=np.uint8)
    for kind, places in boxes.items():
        number = {"clean": 1, "debris": 2, "rock": 0, "unseen": UNSEEN}[kind]
        for top, left, bottom, right in places:
            classes[top:bottom, left:right] = number
    return classes


def ice_of(classes: Classes) -> NDArray[np.bool_]:
    there: NDArray[np.bool_] = (classes > 0) & (classes != UNSEEN)
    return there


def grid_of(classes: Classes, *, transform: Affine | None = None, crs: str | None = UTM) -> Grid:
    located = CRS.from_user_input(crs) if crs else UNLOCATED
    height, width = classes.shape
    return Grid(height, width, transform or north_up(), located)


def write_map(
    root: Path,
    classes: Classes,
    *,
    scene: str = SCENE,
    names: Sequence[str] = CLASSES,
    odds: NDArray[np.floating] | None = None,
    confidence: NDArray[np.floating] | float = 0.8,
    elevation: NDArray[np.floating] | None = None,
    transform: Affine | None = None,
    crs: str | None = UTM,
    **about: Any,
) -> Path:
    """Write a map's folder as `glacier map` does, below `root`, and return it.

    Args:
        root: of the project.
        classes: class numbers, 255 where unseen.
        scene: its name.
        names: of the classes, background first.
        odds: probability of each class of ice (classes, height, width); 1 for the mapped class
            where None.
        confidence: of the mapped class.
        elevation: metres, NaN where unknown; None for a scene without.
        transform, crs: where it lies; None for a map that lies nowhere.
        about: other values for keys of map.json.
    """
    grid = grid_of(classes, transform=transform, crs=crs)
    seen = classes != UNSEEN
    if odds is None:
        odds = np.stack([classes == number for number in range(1, len(names))]).astype(float)
    values: dict[str, NDArray[Any]] = {
        "classes": classes[None],
        "probabilities": np.rint(np.where(seen, odds, 0) * 255).astype(np.uint8),
        "confidence": np.rint(np.where(seen, confidence, 0) * 255).astype(np.uint8)[None],
    }
    layers = [
        Layer(f"{scene}_classes", ["class"], "uint8", UNSEEN, None),
        Layer(f"{scene}_probabilities", names[1:], "uint8", None, 1 / 255),
        Layer(f"{scene}_confidence", ["confidence"], "uint8", None, 1 / 255),
    ]
    if elevation is not None:
        known = np.isfinite(elevation)
        stored = np.rint(np.where(known, elevation, 0) / ELEVATION_STEP_M)
        values["elevation"] = np.where(known, stored, NO_ELEVATION).astype(np.int16)[None]
        layers.append(
            Layer(f"{scene}_elevation", ["elevation"], "int16", NO_ELEVATION, ELEVATION_STEP_M)
        )
    folder = root / "data/maps" / scene
    folder.mkdir(parents=True)
    with MapRasters(folder, grid, layers, {}) as rasters:
        rasters.write(0, {f"{scene}_{kind}": stack for kind, stack in values.items()}, seen)
        rasters.finish()
    described: dict[str, Any] = {
        "scene": scene,
        "source": f"data/raw/{scene}.tif",
        "bands": None,
        "date": "2000-10-25",
        "classes": list(names),
        "models": [MODEL],
        "trainings": ["0123"],
        "symmetries": False,
        "seen": float(seen.mean()),
        "no_value": 0.0,
        "covered": float(1 - seen.mean()),
        "snow_outside": None,
        "channels": {},
        "key": "0123",
    }
    (folder / "map.json").write_text(json.dumps(described | about))
    return folder


@dataclass(frozen=True)
class Outlines:
    """What `glacier outlines` wrote for a scene.

    Attributes:
        folder: where.
        scene: its name.
        said: by the command line.
    """

    folder: Path
    scene: str
    said: str

    @property
    def package(self) -> Path:
        return self.folder / f"{self.scene}_glaciers.gpkg"

    def layer(self, name: str = "glaciers") -> gpd.GeoDataFrame:
        return gpd.read_file(self.package, layer=name)

    def parquet(self, name: str = "glaciers") -> gpd.GeoDataFrame:
        return gpd.read_parquet(self.folder / f"{self.scene}_{name}.parquet")

    @property
    def glaciers(self) -> gpd.GeoDataFrame:
        return self.layer()

    @property
    def classes(self) -> gpd.GeoDataFrame:
        return self.layer("classes")

    @property
    def only(self) -> Any:
        """The record of the only glacier."""
        table = self.glaciers
        assert len(table) == 1
        return table.iloc[0]

    @property
    def sums(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "outlines.json").read_text())
        return content

    @property
    def layers(self) -> list[str]:
        return sorted(pyogrio.list_layers(self.package)[:, 0])


class Workplace:
    """A project's folder in which this process stands.

    Attributes:
        root: the folder, with conf/ and params.yaml of the repository.
        usual: keys and values of `outlines` in params.yaml as they are in the repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        copy_settings(root)
        usual = yaml.safe_load((root / "params.yaml").read_text())["outlines"]
        self.usual = {f"outlines.{key}": value for key, value in usual.items()}
        # Every pixel of 30 m counts: a test that is about small glaciers says so.
        self.set(min_area_km2=0.0, min_part_pixels=0)

    def set(self, **outlines: float) -> None:
        """Change keys of `outlines` in params.yaml."""
        keys = {f"outlines.{key}": value for key, value in outlines.items()}
        edit_yaml(self.root / "params.yaml", **keys)

    def ask(self, *words: str | Path) -> Result:
        """Run `glacier outlines` and look at nothing."""
        return CliRunner().invoke(main, ["-q", "outlines", *map(str, words)])

    def outline(self, folder: Path, *options: str | Path, out: str = "data/outlines") -> Outlines:
        """Run `glacier outlines` on a map's folder."""
        done = self.ask(folder, "--out", out, *options)
        assert done.exit_code == 0, done.output + repr(done.exception)
        return Outlines(self.root / out / folder.name, folder.name, done.output)

    def outlined(self, classes: Classes, *options: str | Path, **made: Any) -> Outlines:
        """Write a map by `write_map`, and outline it."""
        return self.outline(write_map(self.root, classes, **made), *options)

    def refused(self, *words: str | Path) -> str:
        """What `glacier outlines` says of input it cannot use: one line, and exit code 2."""
        done = self.ask(*words)
        assert done.exit_code == 2, done.output + repr(done.exception)
        assert done.output.startswith("error: "), done.output
        assert done.output.count("\n") == 1, done.output
        assert not list((self.root / "data").rglob(".*partial*"))
        return done.output


def pixel_polygons(grid: Grid, rows: NDArray[np.integer], cols: NDArray[np.integer]) -> Any:
    """Longitude and latitude of the corners of pixels, (pixels, 4) each."""
    assert grid.crs.geodetic_crs is not None
    corners_row = rows[:, None] + np.array([0, 0, 1, 1])
    corners_col = cols[:, None] + np.array([0, 1, 1, 0])
    x, y = grid.transform @ (corners_col, corners_row)
    to_degrees = Transformer.from_crs(grid.crs, grid.crs.geodetic_crs, always_xy=True)
    return to_degrees.transform(x, y)


def ground_km2(grid: Grid, mask: NDArray[np.bool_]) -> float:
    """Area of pixels on the ellipsoid, each measured as a polygon of geodesics."""
    geod = grid.crs.get_geod()
    assert geod is not None
    lon, lat = pixel_polygons(grid, *np.nonzero(mask))
    areas = [abs(geod.polygon_area_perimeter(x, y)[0]) for x, y in zip(lon, lat, strict=True)]
    return float(np.sum(areas) / 1e6)


def on_ellipsoid(shapes: gpd.GeoSeries) -> NDArray[np.float64]:
    """Areas of polygons, km², along geodesics."""
    degrees = shapes.to_crs(shapes.crs.geodetic_crs or shapes.crs)
    geod = shapes.crs.get_geod()
    return np.array([abs(geod.geometry_area_perimeter(shape)[0]) for shape in degrees]) / 1e6


def rewrite(path: Path, values: NDArray[Any] | None = None, **changes: Any) -> None:
    """Write a raster anew, with other values or another profile."""
    with rasterio.open(path) as file:
        stack, profile = file.read(), file.profile
    stack = stack if values is None else values
    profile = {key: profile[key] for key in ("dtype", "nodata", "crs", "transform", "count")} | {
        "height": stack.shape[1],
        "width": stack.shape[2],
        "driver": "GTiff",
    }
    path.unlink()
    with rasterio.open(path, "w", **{**profile, **changes}) as file:
        file.write(stack)


def columns_of(path: Path, layer: str | None = None) -> Mapping[str, str]:
    """Names and types of a vector file's fields."""
    info = pyogrio.read_info(path, layer=layer)
    return dict(zip(info["fields"].tolist(), info["dtypes"].tolist(), strict=True))
