"""Collection 2 products of several sensors go the whole road, from `glacier ingest` to a report."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from conftest import (
    REPOSITORY,
    copy_settings,
    edit_yaml,
    glacier,
    ground,
    make_outlines,
    make_scene,
    north_up,
)
from numpy.typing import NDArray
from small_landsat import CLEAR, CLOUD, KELVIN, SHADOW, codes, make_archive, make_product, scaling
from test_mapping import described
from workspace import SMALL, merge_yaml, run, small_workspace

from glacier_core.config import Project
from glacier_core.landsat.harmonise import ROY_2016
from glacier_core.landsat.quality import check_scene
from glacier_core.model.predictor import save_model
from glacier_core.raster.grid import Grid
from glacier_core.raster.scene import COVERED, NO_VALUE, Scene
from glacier_core.simulate.sensor import HIGHEST, K1, K2, LOWEST, SOLAR, THERMAL, sun_position

EXAMPLE = "conf/examples/landsat_c2"
CHANNELS: list[str] = yaml.safe_load((REPOSITORY / EXAMPLE / "postprocess.yaml").read_text())[
    "channels"
]
ETM = {"blue": "B1", "green": "B2", "red": "B3", "nir08": "B4", "swir16": "B5", "swir22": "B7"}
STORED = "blue green red nir08 swir16 swir22 NDSI NDVI NDWI elevation slope".split()
LATITUDE = 28.0

Layers = dict[str, NDArray[np.float32]]


def layers(path: Path) -> Layers:
    with rasterio.open(path) as dataset:
        return dict(zip(dataset.descriptions, dataset.read(), strict=True))


# --- products of simulated scenes --------------------------------------------------------------


def physical(simulated: Layers, day: date) -> Layers:
    """Reflectance and kelvin by common name of a simulated scene's digital numbers, NaN in gaps."""
    sun = np.sin(np.radians(sun_position(day, LATITUDE).elevation))

    def radiance(name: str, low: float, high: float) -> NDArray[np.float32]:
        return (simulated[name] - 1) * ((high - low) / 254) + low

    found = {}
    for k, (name, band) in enumerate(ETM.items()):
        found[name] = radiance(band, LOWEST[k], HIGHEST[k]) * (np.pi / (SOLAR[k] * sun))
    found["lwir"] = K2 / np.log(K1 / radiance("B6_VCID_1", *THERMAL["B6_VCID_1"]) + 1)
    return found


def product_of(simulated: Path, folder: Path, identity: str) -> Path:
    """A Collection 2 product of the sensor in `identity`, of the ground of a simulated scene.

    What a sensor of Landsat 8 or 9 sees differs from ETM+ as Roy et al. (2016) say.
    """
    known, day = layers(simulated), date.fromisoformat(f"{identity.split('_')[3]}")
    oli = identity[2:4] in ("08", "09")
    counted: dict[str, Any] = {}
    for name, values in physical(known, day).items():
        factor, summand = KELVIN if name == "lwir" else scaling(codes(identity[:4])[name])
        if oli and name in ROY_2016:
            gain, offset = ROY_2016[name]
            values = (values - offset) / gain
        numbers = np.clip(np.rint((values - summand) / factor), 1, 65_455)
        counted[name] = np.where(np.isnan(values), 0, numbers).astype(np.uint16)
    if oli:
        counted["coastal"] = counted["blue"]
    old = np.nan_to_num(known["BQA"], nan=1).astype(np.int64)
    quality = np.where(old >> 7 & 3 == 3, SHADOW, np.where(old >> 4 & 1, CLOUD, CLEAR))
    with rasterio.open(simulated) as dataset:
        grid = Grid.of(dataset)
    return make_product(
        folder,
        identity=identity,
        layers=counted | {"QA_PIXEL": np.where(old & 1 == 1, 1, quality)},
        slc="OFF" if identity.startswith("LE07") and day > date(2003, 5, 31) else None,
        transform=grid.transform,
        shape=(grid.height, grid.width),
        crs=grid.crs.to_string(),
    )


PRODUCTS = {
    "LT05_L2SP_139041_20001025_20200906_02_T1": "LE07_SIM01_20001025",
    "LT05_L2SP_140041_20001025_20200906_02_T1": "LE07_SIM02_20001025",
    "LT05_L2SP_141041_20001025_20200906_02_T1": "LE07_SIM03_20001025",
    "LE07_L2SP_139041_20101106_20200910_02_T1": "LE07_SIM01_20101106",
    "LE07_L2SP_140041_20101106_20200910_02_T1": "LE07_SIM02_20101106",
}
NEW = "LC08_L2SP_141041_20101106_20200910_02_T1"
"""Of a sensor that training never saw, and with a date that it never had."""


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `dvc repro` on scenes of TM and ETM+."""
    folder = small_workspace(tmp_path_factory.mktemp("road") / "work")
    run(folder, "glacier", "simulate", "--out", "data/raw/simulated")
    simulated, products = folder / "data/raw/simulated/scenes", folder / "data/raw/products"
    for identity, scene in PRODUCTS.items():
        product_of(simulated / f"{scene}.tif", products / identity, identity)
    # One comes as USGS's archive.
    first = next(iter(PRODUCTS))
    make_archive(products / f"{first}.tar", products / first)
    shutil.rmtree(products / first)
    for scene in {name[5:10]: name for name in PRODUCTS.values()}.values():
        with rasterio.open(simulated / f"{scene}.tif") as dataset:
            height, grid = dataset.read(dataset.descriptions.index("elevation") + 1), dataset
            make_scene(
                folder / f"data/raw/dem/{scene}.tif",
                bands=[None],
                values=height[None],
                transform=grid.transform,
                crs=grid.crs,
            )
    edit_yaml(folder / "conf/landsat.yaml", dem_path="data/raw/dem")
    places = sorted(str(place.relative_to(folder)) for place in products.iterdir())
    run(folder, "glacier", "ingest", *places, "--out", "data/raw/landsat")
    (folder / "data/raw/outlines").mkdir()
    for file in (folder / "data/raw/simulated/outlines").iterdir():
        shutil.copy(file, folder / "data/raw/outlines")
    run(folder, "glacier", "configure", "data/raw/landsat", "--year-field", "year",
        "--outlines", "clean_ice=data/raw/outlines/clean_ice.shp",
        "--outlines", "debris=data/raw/outlines/debris.shp",
        "--border", "data/raw/outlines/border.shp", "--like", EXAMPLE)  # fmt: skip
    merge_yaml(folder / "params.yaml", {key: SMALL[key] for key in SMALL if key != "simulate"})
    maps = yaml.safe_load((folder / "conf/maps.yaml").read_text())
    edit_yaml(
        folder / "conf/maps.yaml",
        maps={"LE07_140041_20101106": maps["maps"]["LE07_140041_20101106"]},
    )
    run(folder, "dvc", "repro")
    return folder


@pytest.mark.slow
def test_scenes_of_two_sensors_become_a_registered_model(road: Path) -> None:
    names = [f"{word[:4]}_{word[10:16]}_{word[17:25]}" for word in PRODUCTS]
    assert sorted(Project(road).masking.scenes) == sorted(names)
    statistics = json.loads((road / "data/dataset/statistics.json").read_text())
    assert statistics["bands"] == CHANNELS
    means = dict(zip(CHANNELS, statistics["means"], strict=True))
    assert all(-1 < means[name] < 1 for name in ("ndsi", "ndvi", "ndwi")), means
    assert 5 < means["steepness"] < 50
    assert all(abs(means[name]) < 0.2 for name in CHANNELS if name.startswith("position"))
    splits = json.loads((road / "data/dataset/dataset.json").read_text())["splits"]
    held = {name: {place["scene"][5:11] for place in slices} for name, slices in splits.items()}
    # A place lies in one split, whichever sensor saw it.
    assert held["train"]
    assert not held["train"] & held["test"]
    metrics = json.loads((road / "data/evaluation/metrics.json").read_text())
    assert set(metrics["unet"]) >= {"clean_ice", "debris"}
    said = run(road, "glacier", "-q", "summary")
    assert "glacier-unet version 1 (champion)" in said
    assert (road / "data/reports/LE07_140041_20101106.html").is_file()


@pytest.mark.slow
def test_clouds_and_gaps_of_ingested_scenes_are_ignored_in_labels(road: Path) -> None:
    name = "LE07_140041_20101106"
    with Scene(road / f"data/raw/landsat/{name}.tif", None, CHANNELS) as scene:
        _, unseen = scene.view(scene.grid.window, CHANNELS)
    assert (unseen == COVERED).any()
    assert (unseen == NO_VALUE).any()
    about = json.loads((road / f"data/slices/{name}/slices.geojson").read_text())["features"]
    ignored = 0
    for one in about:
        properties = one["properties"]
        label = np.load(road / f"data/slices/{name}/{properties['label']}")
        rows = slice(properties["row"], properties["row"] + len(label))
        cols = slice(properties["col"], properties["col"] + label.shape[1])
        here = unseen[rows, cols] > 0
        assert (label[: here.shape[0], : here.shape[1]][here] == 255).all()
        ignored += int(here.sum())
    assert ignored > 0


@pytest.mark.slow
def test_a_third_sensor_is_mapped_with_the_champion_outlined_and_reported(road: Path) -> None:
    simulated = road / "data/raw/simulated/scenes/LE07_SIM03_20101106.tif"
    product_of(simulated, road / "data/raw/late" / NEW, NEW)
    run(road, "glacier", "ingest", f"data/raw/late/{NEW}", "--out", "data/raw/new")
    name = "LC08_141041_20101106"
    scene, out = road / f"data/raw/new/{name}.tif", road / "data/mapped"
    found, truth = layers(scene), physical(layers(simulated), date(2010, 11, 6))
    imaged = found["QA_PIXEL"] != 1
    for band in ETM:
        # Made like ETM+ again, but for the steps of the digital numbers.
        np.testing.assert_allclose(found[band][imaged], truth[band][imaged], atol=6e-5)
    np.testing.assert_allclose(found["elevation"], layers(simulated)["elevation"], atol=0.01)
    assert check_scene(Project(road), scene).worst_drift is not None

    run(road, "glacier", "map", str(scene), "--out", str(out / "maps"))
    run(road, "glacier", "outlines", str(out / "maps" / name), "--out", str(out / "outlines"))
    page = out / f"{name}.html"
    run(road, "glacier", "report", str(out / "maps" / name), "--outlines",
        str(out / "outlines" / name), "--out", str(page))  # fmt: skip
    about = json.loads((out / f"maps/{name}/map.json").read_text())
    assert about["models"] == ["models:/glacier-unet/1"]
    assert about["date"] == "2010-11-06"
    with (
        Scene(scene, None, CHANNELS) as opened,
        rasterio.open(out / f"maps/{name}/{name}_classes.tif") as classes,
    ):
        assert Grid.of(classes) == opened.grid
        _, unseen = opened.view(opened.grid.window, CHANNELS)
        np.testing.assert_array_equal(classes.read(1) == 255, unseen > 0)
    assert (out / f"outlines/{name}/{name}_glaciers.gpkg").is_file()
    assert name in page.read_text()


# --- what is said early --------------------------------------------------------------------------


def test_scenes_without_a_dem_are_refused_when_configured_like_the_example(tmp_path: Path) -> None:
    copy_settings(tmp_path)
    for name in ("conf/landsat.yaml", *(f"{EXAMPLE}/{one}.yaml" for one in (
        "params", "postprocess", "train"))):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, tmp_path / name)
    before = (tmp_path / "conf/masking_paths.yaml").read_text()
    make_product(tmp_path / "p")
    outlines = make_outlines(tmp_path / "outlines/ice.gpkg", [ground(north_up(), (4, 4, 20, 20))])
    assert glacier(tmp_path, "ingest", "p", "--out", "data/raw/landsat").returncode == 0
    words = ["configure", "data/raw/landsat", "--outlines", f"clean_ice={outlines}"]
    done = glacier(tmp_path, *words, "--like", EXAMPLE)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "LC08_140041_20150710.tif: has no band steepness, steepness_100m, position_100m" in line
    assert "Worked out from elevation, which it lacks, would be steepness, steepness_100m" in line
    assert (
        "name it in conf/landsat.yaml (dem_path), then `glacier ingest` the product again" in line
    )
    assert (tmp_path / "conf/masking_paths.yaml").read_text() == before


# --- real products -------------------------------------------------------------------------------


def model_of(folder: Path, channels: list[str]) -> Path:
    """A model of random weights for channels in their units."""
    units = {"lwir": (260.0, 15.0), "elevation": (1500.0, 800.0), "slope": (10.0, 8.0)}
    means, deviations = zip(*(units.get(name, (0.4, 0.3)) for name in channels), strict=True)
    description = described(
        channels=channels, means=list(means), standard_deviations=list(deviations)
    )
    folder.mkdir(parents=True)
    save_model(folder, description, description.build())
    return folder


def test_a_real_product_is_ingested_judged_and_mapped_with_the_example_s_channels(
    tmp_path: Path, real_data: Path
) -> None:
    source, name = real_data / "landsat_ingest", "LC08_L2SP_005009_20150710_20200908_02_T2"
    copy_settings(tmp_path)
    shutil.copyfile(REPOSITORY / "conf/landsat.yaml", tmp_path / "conf/landsat.yaml")
    shutil.copytree(source / "l2sr_assets_coarse", tmp_path / "product")
    shutil.copy(source / f"mtl/{name}_MTL.txt", tmp_path / "product")
    with rasterio.open(tmp_path / f"product/{name}_QA_PIXEL.TIF") as dataset:
        grid, quality = Grid.of(dataset), dataset.read(1)
    x, y = np.meshgrid(np.arange(grid.width + 40) - 20, np.arange(grid.height + 40) - 20)
    # It rises by 2 m a column and falls by 1 m a row, below the scene and around it.
    make_scene(
        tmp_path / "dem.tif",
        bands=[None],
        values=(1000 + 2.0 * x - 1.0 * y)[None],
        transform=grid.transform @ grid.transform.translation(-20, -20),
        crs=grid.crs.to_string(),
    )
    edit_yaml(tmp_path / "conf/landsat.yaml", dem_path="dem.tif")
    assert glacier(tmp_path, "ingest", "product", "--out", "scenes").returncode == 0
    scene = tmp_path / "scenes/LC08_005009_20150710.tif"
    # This product was delivered without surface temperature.
    channels = CHANNELS
    found = layers(scene)
    assert list(found) == [*STORED, "QA_PIXEL"]
    for band in STORED[:6]:
        assert 0 < np.nanmin(found[band]) < np.nanmax(found[band]) < 1.6
    for index in ("NDSI", "NDVI", "NDWI"):
        assert -1 <= np.nanmin(found[index]) < np.nanmax(found[index]) <= 1
    np.testing.assert_allclose(
        found["elevation"], (1000 + 2.0 * x - 1.0 * y)[20:-20, 20:-20], atol=0.05
    )
    # Fill is 48 % of the grid, and nothing of the swath.
    edit_yaml(tmp_path / "conf/postprocess.yaml", channels=channels)
    looked = check_scene(Project(tmp_path), scene)
    assert (quality & 1).mean() == pytest.approx(0.48, abs=0.005)
    assert looked.no_value < 0.006
    assert looked.covered == pytest.approx(0.606, abs=0.002)
    assert "61 % of the swath not seen (61 % cloud or shadow)" in looked.reasons[0]

    refused = glacier(tmp_path, "map", str(scene), "--out", "maps", "--model",
                      str(model_of(tmp_path / "warm", [*CHANNELS, "lwir"])))  # fmt: skip
    assert refused.returncode == 2
    assert "has no band lwir, which" in refused.stderr
    assert "surface temperature (L2SP)" in refused.stderr
    done = glacier(tmp_path, "map", str(scene), "--out", "maps", "--model",
                   str(model_of(tmp_path / "model", channels)))  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Scene(scene, None, channels) as opened:
        assert (opened.grid.transform, opened.grid.crs) == (grid.transform, grid.crs)
        _, unseen = opened.view(grid.window, channels)
    with rasterio.open(tmp_path / f"maps/{scene.stem}/{scene.stem}_classes.tif") as classes:
        assert Grid.of(classes) == grid
        assert classes.nodata == 255
        np.testing.assert_array_equal(classes.read(1) == 255, unseen > 0)
    assert 0.15 < (unseen == 0).mean() < 0.25
