"""Small real files for the tests: scenes, outlines, and a project's folder around them.

The functions can be imported (`from conftest import make_scene`) or, where a test has no other
use for this module, taken as fixtures of the same name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from numpy.typing import NDArray
from shapely.geometry import Polygon

from glacier_core.config import Project
from glacier_core.raster.bands import ETM_STACK
from glacier_core.raster.grid import Window
from glacier_core.raster.scene import Scene

# As the command line does, before torch is imported anywhere.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPOSITORY = Path(__file__).resolve().parents[1]
UTM = "EPSG:32645"
PIXEL = 30.0
CORNER = (500_010.0, 3_100_020.0)
"""Upper left corner of the first scene, west of Sikkim, in UTM zone 45 north."""


class _Removed:
    def __repr__(self) -> str:  # in the names of parametrised tests, the same in every process
        return "removed"


REMOVED = _Removed()
"""Value for `edit_yaml` that takes a key out."""


# --- scenes ----------------------------------------------------------------------------------


def north_up(west: float = CORNER[0], north: float = CORNER[1], pixel: float = PIXEL) -> Affine:
    """The transform of an ordinary scene: square pixels, rows from north to south."""
    return Affine(pixel, 0.0, west, 0.0, -pixel, north)


def likely_values(
    bands: Sequence[str], shape: tuple[int, int], seed: int = 0
) -> NDArray[np.float32]:
    """Values that each band of the ETM+ stack could have, (bands, height, width)."""
    random = np.random.default_rng(seed)
    ranges = {
        "BQA": (672, 673),  # clear ground by the Collection 1 handbook
        "NDWI": (-1, 1),
        "NDSI": (-1, 1),
        "NDVI": (-1, 1),
        "elevation": (3000, 6000),
        "slope": (1, 60),
    }
    values = np.empty((len(bands), *shape), dtype=np.float32)
    for i, name in enumerate(bands):
        low, high = ranges.get(name, (1, 255))
        layer = random.uniform(low, high, shape)
        values[i] = layer if high <= 1 else np.floor(layer)
    return values


def pixels_of(scene: Scene, window: Window) -> NDArray[Any]:
    """Every band of a window as stored: (height, width, bands)."""
    pixels = np.empty((window.height, window.width, len(scene.bands)), dtype=scene.dtype)
    scene.read_into(pixels, window)
    return pixels


def make_scene(
    path: Path,
    *,
    bands: Sequence[str | None] = tuple(ETM_STACK),
    shape: tuple[int, int] = (64, 64),
    values: NDArray[Any] | float | None = None,
    dtype: str = "float32",
    nodata: float | None = None,
    transform: Affine | None = None,
    crs: str | None = UTM,
    **profile: Any,
) -> Path:
    """Write a GeoTIFF with band descriptions.

    Args:
        path: where; its folder is made.
        bands: descriptions in file order; None leaves a band without.
        shape: height and width, where `values` does not say.
        values: (bands, height, width), one number for all, or None for `likely_values`.
        dtype: of the file.
        nodata: declared for all bands (a GeoTIFF has one).
        transform: pixel corner to CRS; `north_up()` where None.
        crs: None for a file without.
        profile: more of GDAL's creation options.
    """
    if values is None:
        values = likely_values([name or "" for name in bands], shape)
    elif np.isscalar(values):
        values = np.full((len(bands), *shape), values)
    stack = np.asarray(values).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=stack.shape[1],
        width=stack.shape[2],
        dtype=dtype,
        nodata=nodata,
        crs=crs,
        transform=transform or north_up(),
        **profile,
    ) as file:
        file.write(stack)
        for number, name in enumerate(bands, start=1):
            if name is not None:
                file.set_band_description(number, name)
    return path


# --- outlines --------------------------------------------------------------------------------

Box = tuple[float, float, float, float]
"""Top row, left column, bottom row, right column, in pixels from the scene's corner."""


def ground(transform: Affine, box: Box, holes: Iterable[Box] = ()) -> Polygon:
    """The ground under a rectangle of pixels, in the scene's CRS, less that under `holes`."""

    def ring(box: Box) -> list[tuple[float, float]]:
        top, left, bottom, right = box
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return [transform @ corner for corner in corners]

    return Polygon(ring(box), [ring(hole) for hole in holes])


def make_outlines(
    path: Path,
    shapes: Sequence[Any],
    *,
    crs: str | None = UTM,
    to: str | None = None,
    **columns: Sequence[Any],
) -> Path:
    """Write a vector file in the format of its suffix.

    Args:
        path: `.shp`, `.gpkg`, `.geojson` or `.parquet`; its folder is made.
        shapes: geometries in `crs`.
        crs: None for a file without.
        to: CRS of the file, where it is another one.
        columns: attributes, one value a shape.
    """
    frame = gpd.GeoDataFrame(dict(columns), geometry=list(shapes), crs=crs)
    if to is not None:
        frame = frame.to_crs(to)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return path


# --- projects --------------------------------------------------------------------------------


def edit_yaml(path: Path, **changes: Any) -> None:
    """Change values of a YAML file; a dotted key reaches into a mapping.

    `edit_yaml(path, seed=3, **{"slice.size": 32, "slice.overlap": REMOVED})`
    """
    content = yaml.safe_load(path.read_text())
    for dotted, value in changes.items():
        *above, key = dotted.split(".")
        place = content
        for name in above:
            place = place[name]
        if value is REMOVED:
            del place[key]
        else:
            place[key] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def copy_settings(root: Path) -> None:
    """Give a folder the repository's own params.yaml and conf/, with numbers for tiny scenes."""
    (root / "conf").mkdir(parents=True)
    for name in ("params.yaml", "conf/masking_paths.yaml", "conf/postprocess.yaml"):
        shutil.copyfile(REPOSITORY / name, root / name)
    for name in ("conf/train.yaml", "conf/maps.yaml"):
        shutil.copyfile(REPOSITORY / name, root / name)
    edit_yaml(root / "conf/maps.yaml", maps={}, changes={})
    edit_yaml(
        root / "params.yaml",
        **{
            "slice.size": 32,
            "slice.overlap": 4,
            "postprocess.min_class_fraction": {"clean_ice": 0.0, "debris": 0.0},
            "postprocess.min_valid_fraction": 0.1,
            "postprocess.split": {"train": 0.5, "dev": 0.25, "test": 0.25},
            "postprocess.block_km": 20,
            "postprocess.buffer_m": 300,
            "train.epochs": 2,
            "train.batch_size": 2,
            "train.crops_per_slice": 1,
            "train.crop_size": 16,
            "train.depth": 2,
            "train.base_channels": 4,
            "train.loader_threads": 0,
            "evaluate.forest": {"trees": 3, "depth": 4, "sample_pixels": 500},
        },
    )


def set_scenes(root: Path, scenes: Mapping[str, Mapping[str, Any]], **changes: Any) -> None:
    """Write which scenes a project has: `img_path` (and what else is not as usual) by id."""
    usual = {
        "mask_paths": {
            "clean_ice": "data/raw/outlines/clean_ice.shp",
            "debris": "data/raw/outlines/debris.gpkg",
        },
        "border_path": None,
        "year_field": "year",
        "date": "2000-10-25",
    }
    edit_yaml(
        root / "conf/masking_paths.yaml",
        simulated={},
        outlines_dir="data/raw/outlines",
        scenes={name: usual | dict(scene) for name, scene in scenes.items()},
        **changes,
    )


def make_project(root: Path, places: int = 3) -> Project:
    """A small project: `places` scenes of 64 x 64 pixels with both classes, 60 km apart.

    The settings are the repository's own with smaller numbers. Each scene has clean ice in rows
    8 to 40 and columns 8 to 40, with a nunatak of 8 x 8 pixels in it, and debris in rows 44 to 60
    and columns 8 to 56. Nothing is masked or sliced yet.
    """
    copy_settings(root)
    scenes, clean, debris = {}, [], []
    for place in range(places):
        transform = north_up(CORNER[0] + 60_000 * place)
        name = f"LE07_SITE{place}_20001025"
        values = likely_values(ETM_STACK, (64, 64), seed=place)
        path = f"data/raw/scenes/{name}.tif"
        make_scene(root / path, values=values, transform=transform, nodata=float("nan"))
        scenes[name] = {"img_path": path}
        clean.append(ground(transform, (8, 8, 40, 40), holes=[(20, 20, 28, 28)]))
        debris.append(ground(transform, (44, 8, 60, 56)))
    folder, years = root / "data/raw/outlines", [2000] * places
    make_outlines(folder / "clean_ice.shp", clean, to="EPSG:4326", year=years)
    make_outlines(folder / "debris.gpkg", debris, to="EPSG:4326", year=years)
    set_scenes(root, scenes)
    return Project(root)


def glacier(
    root: Path, *arguments: str, limit: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a project's folder.

    Args:
        root: the project.
        arguments: as typed after `glacier`.
        limit: called in the new process before the command starts, to set its limits.
    """
    return subprocess.run(
        [Path(sys.executable).with_name("glacier"), *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
        check=False,
    )


@pytest.fixture(name="make_scene")
def _make_scene() -> Callable[..., Path]:
    return make_scene


@pytest.fixture(name="edit_yaml")
def _edit_yaml() -> Callable[..., None]:
    return edit_yaml


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """See `make_project`; in a folder of the test's own."""
    return make_project(tmp_path)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real Landsat and Sentinel-2 files, by GLACIER_DATA."""
    place = os.environ.get("GLACIER_DATA")
    if not place:
        pytest.skip("needs real data: set GLACIER_DATA to the folder that holds it")
    return Path(place)
