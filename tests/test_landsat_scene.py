"""What `glacier ingest` writes: physical values by name, NaN where nothing was seen, once."""

from __future__ import annotations

import json
import logging
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import (
    CORNER,
    REPOSITORY,
    UTM,
    copy_settings,
    edit_yaml,
    glacier,
    ground,
    likely_values,
    make_outlines,
    make_scene,
    north_up,
    pixels_of,
)
from numpy.typing import NDArray
from pyproj import Transformer
from small_landsat import (
    CLEAR,
    CLOUD,
    FILL,
    KELVIN,
    SHADOW,
    codes,
    counts,
    landsat_project,
    make_archive,
    make_item,
    make_product,
    product_id,
    scaling,
)

from glacier_core.errors import InputError
from glacier_core.landsat.scene import ingest_product
from glacier_core.raster.bands import find_common
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.scene import Scene, date_in

Layers = dict[str, NDArray[np.float32]]

OPTICAL = ["blue", "green", "red", "nir08", "swir16", "swir22"]
ALL = [*OPTICAL, "lwir", "NDSI", "NDVI", "NDWI"]


def as_written(path: Path) -> tuple[int, int, int]:
    """Which file it is, when it was written, and its size; reading changes none of them."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def layers(path: Path) -> Layers:
    with rasterio.open(path) as dataset:
        return dict(zip(dataset.descriptions, dataset.read(), strict=True))


def made(
    root: Path,
    path: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    fill_from: tuple[Path, ...] = (),
) -> Layers:
    project = landsat_project(root / "project", **(settings or {}))
    return layers(ingest_product(project, path, root / "out", fill_from=fill_from))


def physical(sensor: str, band: str, numbers: Any) -> Any:
    factor, summand = scaling(codes(sensor)[band])
    return np.asarray(numbers, dtype=np.float64) * factor + summand


def but(row: int, col: int, value: int, rest: Any) -> NDArray[np.uint16]:
    layer = np.broadcast_to(rest, (48, 40)).astype(np.uint16).copy()
    layer[row, col] = value
    return layer


# --- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", ["LT04", "LT05", "LE07", "LC08", "LC09"])
def test_every_sensor_gives_the_same_bands_in_physical_units(tmp_path: Path, sensor: str) -> None:
    numbers = {band: counts(seed=seed) for seed, band in enumerate([*OPTICAL, "lwir"])}
    folder = make_product(tmp_path / "p", identity=product_id(sensor), layers=numbers)
    found = made(tmp_path, folder)
    assert list(found) == [*ALL, "QA_PIXEL"]
    for band in OPTICAL:
        expected = physical(sensor, band, numbers[band])
        np.testing.assert_allclose(found[band], expected, rtol=2e-7, atol=1e-8)
    kelvin = numbers["lwir"] * KELVIN[0] + KELVIN[1]
    np.testing.assert_allclose(found["lwir"], kelvin, rtol=2e-7)


def test_a_scene_opens_with_known_bands_date_and_grid(tmp_path: Path) -> None:
    project = landsat_project(tmp_path / "project")
    folder = make_product(tmp_path / "p")
    done = glacier(project.root, "ingest", str(folder), "--out", "data/raw/landsat")
    assert done.returncode == 0, done.stderr
    path = project.root / "data/raw/landsat/LC08_140041_20150710.tif"
    assert date_in(path.name) == "2015-07-10"
    with Scene(path, None) as scene:
        common = ("green", "red", "nir", "swir1")
        names = [scene.bands[find_common(scene.bands, name)] for name in common]  # type: ignore[index]
        assert names == ["green", "red", "nir08", "swir16"]
        assert scene.grid.transform == north_up()
        assert scene.dtype == np.float32
    with rasterio.open(path) as dataset:
        assert dataset.profile["tiled"]
        assert dataset.compression.value == "DEFLATE"
        assert np.isnan(dataset.nodata)
        tags = dataset.tags()
    assert tags["LANDSAT_PRODUCT_ID"] == product_id()
    assert tags["DATE_PRODUCT_GENERATED"] == "2020-09-08T21:42:54Z"
    assert tags["PROCESSING_SOFTWARE_VERSION"] == "LPGS_15.3.1c"
    assert json.loads(tags["SCALING"])["red"] == pytest.approx(scaling("SR_B4"), rel=1e-12)
    assert float(tags["SUN_AZIMUTH"]) == pytest.approx(360 - 151.2, abs=1e-6)
    assert float(tags["SUN_ELEVATION"]) == pytest.approx(38.4, abs=1e-6)


@pytest.mark.parametrize(("elevation", "told"), [("38.4", True), ("-21.5", False), ("", False)])
def test_a_scene_has_light_and_shadow_if_the_product_says_where_the_sun_stood_by_day(
    tmp_path: Path, elevation: str, told: bool
) -> None:
    folder = make_product(tmp_path / "p", sun=("151.2", elevation))
    make_scene(tmp_path / "dem.tif", bands=[None], values=4000.0, shape=(48, 40))
    project = landsat_project(tmp_path / "project", dem_path=str(tmp_path / "dem.tif"))
    path = ingest_product(project, folder, tmp_path / "out")
    wanted = ["hillshade", "cast_shadow"]
    with Scene(path, None, wanted) as scene:
        if told:
            light, shadow = scene.view(Window(10, 10, 20, 20), wanted)[0]
            np.testing.assert_allclose(light, np.sin(np.radians(38.4)), atol=1e-4)
            assert (shadow == 0).all()
        else:
            with pytest.raises(InputError, match="sun's place, which its tags do not tell"):
                scene.positions(wanted)


def test_a_scene_is_ready_to_be_configured_and_masked(tmp_path: Path) -> None:
    copy_settings(tmp_path)
    shutil.copyfile(REPOSITORY / "conf/landsat.yaml", tmp_path / "conf/landsat.yaml")
    folder = make_product(tmp_path / "p", layers={"QA_PIXEL": but(10, 10, CLOUD, CLEAR)})
    outlines = tmp_path / "data/raw/outlines"
    for name, box in (("clean_ice", (4, 4, 20, 20)), ("debris", (24, 4, 40, 20))):
        make_outlines(outlines / f"{name}.gpkg", [ground(north_up(), box)], year=[2015])
    for words in (
        ["ingest", str(folder), "--out", "data/raw/landsat"],
        ["configure", "data/raw/landsat", "--year-field", "year"]
        + [f"--outlines={name}=data/raw/outlines/{name}.gpkg" for name in ("clean_ice", "debris")],
        ["mask"],
    ):
        done = glacier(tmp_path, *words)
        assert done.returncode == 0, done.stderr
    mask = np.load(tmp_path / "data/masks/LC08_140041_20150710/mask_LC08_140041_20150710.npy")
    assert mask.shape == (48, 40, 2)
    assert mask[4:20, 4:20, 0].all()
    assert mask[..., 1].sum() == 16 * 16


def test_fill_is_nan_in_its_band_and_where_quality_says_fill_in_all(tmp_path: Path) -> None:
    numbers = {"green": but(3, 4, 0, counts()), "QA_PIXEL": but(5, 6, FILL, CLEAR)}
    found = made(tmp_path, make_product(tmp_path / "p", layers=numbers))
    for name in [*OPTICAL, "lwir"]:
        expected = np.zeros((48, 40), dtype=bool)
        expected[5, 6] = True
        expected[3, 4] = name == "green"
        np.testing.assert_array_equal(np.isnan(found[name]), expected)
    assert np.isnan(found["NDSI"][3, 4])
    assert np.isfinite(found["NDVI"][3, 4])
    assert found["QA_PIXEL"][5, 6] == FILL


def test_clouds_keep_their_values_and_are_not_seen(tmp_path: Path) -> None:
    quality = but(2, 2, SHADOW, but(1, 1, CLOUD, CLEAR))
    project = landsat_project(tmp_path / "project")
    folder = make_product(tmp_path / "p", layers={"QA_PIXEL": quality})
    with Scene(ingest_product(project, folder, tmp_path / "out"), None) as scene:
        pixels = pixels_of(scene, scene.grid.window)
        seen = scene.seen(pixels, ["green", "swir16"])
        assert np.isfinite(pixels[1, 1, scene.positions(["green"])])
    assert not seen[1, 1]
    assert not seen[2, 2]
    assert seen.sum() == 48 * 40 - 2


@pytest.mark.parametrize(
    ("sensor", "bit", "blinded"),
    [
        ("LC08", 0, []),  # coastal, which is not written
        ("LC08", 1, ["blue"]),
        ("LC08", 2, ["green"]),
        ("LC08", 3, ["red"]),
        ("LC08", 4, ["nir08"]),
        ("LC08", 5, ["swir16"]),
        ("LC09", 6, ["swir22"]),
        ("LC08", 8, []),  # cirrus
        ("LC08", 11, [*OPTICAL, "lwir"]),  # hidden by terrain
        ("LE07", 0, ["blue"]),
        ("LE07", 1, ["green"]),
        ("LT05", 2, ["red"]),
        ("LT05", 3, ["nir08"]),
        ("LE07", 4, ["swir16"]),
        ("LT05", 5, ["lwir"]),
        ("LE07", 5, ["lwir"]),  # low gain
        ("LE07", 8, ["lwir"]),  # high gain
        ("LT05", 8, []),
        ("LE07", 6, ["swir22"]),
        ("LE07", 9, [*OPTICAL, "lwir"]),  # dropped
    ],
)
def test_a_saturation_bit_blinds_the_band_that_it_means(
    tmp_path: Path, sensor: str, bit: int, blinded: list[str]
) -> None:
    numbers = {"QA_RADSAT": but(7, 8, 1 << bit, 0)}
    found = made(
        tmp_path, make_product(tmp_path / "p", identity=product_id(sensor), layers=numbers)
    )
    assert [name for name in [*OPTICAL, "lwir"] if np.isnan(found[name][7, 8])] == blinded
    assert all(np.isnan(found[name]).sum() <= 1 for name in OPTICAL)


def test_snow_brighter_than_one_is_kept(tmp_path: Path) -> None:
    found = made(tmp_path, make_product(tmp_path / "p", layers={"green": 60_000}))
    assert found["green"] == pytest.approx(physical("LC08", "green", 60_000))
    assert found["green"].min() > 1.3


def test_indices_are_those_of_the_field_and_stay_within_one(tmp_path: Path) -> None:
    low = np.full((48, 40), 7000)  # below 0, as over shadow
    numbers = {"green": 20_000, "swir16": low, "nir08": 15_000, "red": 12_000}
    found = made(tmp_path, make_product(tmp_path / "p", layers=numbers))
    green, nir, red = (physical("LC08", band, numbers[band]) for band in ("green", "nir08", "red"))
    assert found["swir16"].max() < 0
    assert found["NDSI"] == pytest.approx(1.0)
    assert found["NDVI"] == pytest.approx((nir - red) / (nir + red), rel=1e-6)
    assert found["NDWI"] == pytest.approx((green - nir) / (green + nir), rel=1e-6)


def test_reflectance_of_oli_is_made_like_that_of_etm_only_when_asked(tmp_path: Path) -> None:
    # Roy et al. 2016, Table 2: ETM+ = a + b OLI, ordinary least squares.
    table = {
        "blue": (0.0183, 0.8850),
        "green": (0.0123, 0.9317),
        "red": (0.0123, 0.9372),
        "nir08": (0.0448, 0.8339),
        "swir16": (0.0306, 0.8639),
        "swir22": (0.0116, 0.9165),
    }
    numbers = {band: counts(seed=9) for band in [*OPTICAL, "lwir"]}
    oli = make_product(tmp_path / "p", layers=numbers)
    tm = make_product(tmp_path / "q", identity=product_id("LE07"), layers=numbers)
    with_it = made(tmp_path / "a", oli, settings={"harmonise": "roy2016"})
    for band, (a, b) in table.items():
        expected = a + b * physical("LC08", band, numbers[band])
        np.testing.assert_allclose(with_it[band], expected, rtol=1e-6, atol=1e-7)
    green, swir = with_it["green"], with_it["swir16"]
    np.testing.assert_allclose(with_it["NDSI"], (green - swir) / (green + swir), atol=1e-6)
    without = made(tmp_path / "b", oli)
    np.testing.assert_array_equal(with_it["lwir"], without["lwir"])
    assert without["blue"] == pytest.approx(physical("LC08", "blue", numbers["blue"]), rel=1e-6)
    etm = made(tmp_path / "c", tm, settings={"harmonise": "roy2016"})
    assert etm["blue"] == pytest.approx(physical("LE07", "blue", numbers["blue"]), rel=1e-6)


def test_a_product_without_temperature_gives_a_scene_without_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_product(tmp_path / "p", identity=product_id("LT05", level="L2SR"))
    found = made(tmp_path, folder)
    assert list(found) == [*OPTICAL, "NDSI", "NDVI", "NDWI", "QA_PIXEL"]
    assert "has no lwir; the scene goes without" in caplog.text


def test_bands_and_indices_are_chosen_in_conf(tmp_path: Path) -> None:
    settings = {"bands": ["coastal", "red"], "indices": ["NDSI"]}
    found = made(tmp_path, make_product(tmp_path / "p"), settings=settings)
    assert list(found) == ["coastal", "red", "NDSI", "QA_PIXEL"]


@pytest.mark.parametrize(
    "change",
    [{"harmonise": "roy"}, {"bands": []}, {"bands": ["red", "red"]}, {"indices": ["EVI"]}],
)
def test_a_wrong_setting_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"landsat\.yaml: {next(iter(change))}"):
        made(tmp_path, make_product(tmp_path / "p"), settings=change)


def test_folder_archive_and_item_give_the_same_scene(tmp_path: Path) -> None:
    folder = make_product(tmp_path / "p", spelling="json")
    archive = make_archive(tmp_path / "a.tar.gz", folder, mode="w:gz")
    item = make_item(folder)
    scenes = [
        made(tmp_path / name, path) for name, path in (("1", folder), ("2", archive), ("3", item))
    ]
    for other in scenes[1:]:
        for name, layer in scenes[0].items():
            np.testing.assert_array_equal(other[name], layer)


# --- terrain ---------------------------------------------------------------------------------

EAST, SOUTH = 0.1, 0.2
"""Rise of the tests' plane, metres a metre: 12.6 degrees."""


def plane(x: Any, y: Any) -> Any:
    return 4000 + EAST * (x - CORNER[0]) - SOUTH * (y - CORNER[1])


def make_dem(
    path: Path, *, west: float = -600, east: float = 2000, crs: str | None = UTM, pixel: float = 90
) -> Path:
    """A plane in UTM coordinates, `west` to `east` metres from the scene's corner."""
    width, height = round((east - west) / pixel), round(2700 / pixel)
    transform = north_up(CORNER[0] + west, CORNER[1] + 600, pixel)
    rows, cols = np.mgrid[:height, :width] + 0.5
    x, y = transform @ (cols, rows)
    return make_scene(path, bands=[None], values=plane(x, y)[None], transform=transform, crs=crs)


def expected_heights() -> Any:
    rows, cols = np.mgrid[:48, :40] + 0.5
    return plane(*(north_up() @ (cols, rows)))


@pytest.mark.parametrize("resampling", ["bilinear", "cubic"])
@pytest.mark.parametrize("pixel", [2, 7, 10, 25, 90])
def test_elevation_and_slope_of_a_plane_are_right_at_every_pixel(
    tmp_path: Path, resampling: str, pixel: float
) -> None:
    dem = make_dem(tmp_path / "dem.tif", pixel=pixel)
    settings = {"dem_path": str(dem), "dem_resampling": resampling}
    found = made(tmp_path, make_product(tmp_path / "p"), settings=settings)
    assert list(found) == [*ALL, "elevation", "slope", "QA_PIXEL"]
    np.testing.assert_allclose(found["elevation"], expected_heights(), atol=0.02)
    # Slope is that on the ellipsoid, where metres differ by 4e-4 from the map's.
    degrees = np.degrees(np.arctan(np.hypot(EAST, SOUTH)))
    np.testing.assert_allclose(found["slope"], degrees, atol=0.05)


def test_tiles_of_a_folder_join_without_a_seam(tmp_path: Path) -> None:
    make_dem(tmp_path / "dem/west.tif", east=480)
    make_dem(tmp_path / "dem/deeper/east.tif", west=480)
    make_dem(tmp_path / "dem/far.tif", west=90_000, east=93_000)
    settings = {"dem_path": str(tmp_path / "dem")}
    found = made(tmp_path, make_product(tmp_path / "p"), settings=settings)
    np.testing.assert_allclose(found["elevation"], expected_heights(), atol=0.02)


def test_a_dem_in_degrees_is_warped_to_the_scene(tmp_path: Path) -> None:
    to_degrees = Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    west, north = to_degrees.transform(CORNER[0] - 600, CORNER[1] + 600)
    transform = Affine(1 / 3600, 0, west, 0, -1 / 3600, north)
    rows, cols = np.mgrid[:100, :100] + 0.5
    lon, lat = transform @ (cols, rows)
    x, y = to_degrees.transform(lon, lat, direction="INVERSE")
    values = plane(np.asarray(x), np.asarray(y))[None]
    dem = make_scene(
        tmp_path / "d.tif", bands=[None], values=values, transform=transform, crs="EPSG:4326"
    )
    found = made(tmp_path, make_product(tmp_path / "p"), settings={"dem_path": str(dem)})
    np.testing.assert_allclose(found["elevation"], expected_heights(), atol=0.02)


def test_a_dem_that_covers_half_leaves_the_rest_unknown_and_says_how_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dem = make_dem(tmp_path / "dem.tif", east=600, pixel=30)
    found = made(tmp_path, make_product(tmp_path / "p"), settings={"dem_path": str(dem)})
    known = np.isfinite(found["elevation"])
    assert known[:, :20].all()
    assert not known[:, 20:].any()
    assert not np.isfinite(found["slope"][:, 20:]).any()
    assert "no height for 50.0 % of the scene" in caplog.text
    assert np.isfinite(found["red"]).all()


def test_a_void_without_a_tag_is_no_height(tmp_path: Path) -> None:
    dem = make_dem(tmp_path / "dem.tif", pixel=30)
    with rasterio.open(dem, "r+") as dataset:
        values = dataset.read(1)
        values[30, 30] = -32767  # row 10, column 10 of the scene
        dataset.write(values, 1)
    found = made(tmp_path, make_product(tmp_path / "p"), settings={"dem_path": str(dem)})
    assert np.nanmin(found["elevation"]) > 3900
    assert np.isfinite(found["elevation"]).sum() >= 48 * 40 - 4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda place: make_dem(place, crs=None), "the DEM has no coordinate reference system"),
        (lambda place: make_dem(place, west=90_000, east=93_000), "does not reach the scene"),
        (lambda place: place.with_name("other.tif").touch(), "no such DEM"),
        (lambda place: place.mkdir(), "the DEM folder holds no raster"),
        (lambda place: place.write_bytes(b"x" * 100), "cannot be opened as a DEM"),
    ],
)
def test_a_dem_at_fault_is_named_and_no_scene_is_written(
    tmp_path: Path, make: Any, words: str
) -> None:
    make(tmp_path / "dem.tif")
    project = landsat_project(tmp_path / "project", dem_path=str(tmp_path / "dem.tif"))
    folder = make_product(tmp_path / "p")
    with pytest.raises(InputError, match=words):
        ingest_product(project, folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


# --- scan-line gaps --------------------------------------------------------------------------

TALL = (120, 60)
GAIN, BIAS = 0.7, 0.06


def striped(tall: tuple[int, int] = TALL) -> NDArray[np.bool_]:
    """Slanting gaps of 10 rows, some 30 rows apart, as of a broken scan-line corrector; and fill
    outside of the swath, at the top."""
    rows, cols = np.mgrid[: tall[0], : tall[1]]
    gaps: NDArray[np.bool_] = ((rows + cols // 8) % 30 < 10) & (rows > 40) & (rows < 110)
    return gaps | (rows < 12)


def gappy(folder: Path, *, day: str, layers: Mapping[str, Any], gaps: NDArray[np.bool_]) -> Path:
    quality = np.where(gaps, FILL, layers.get("QA_PIXEL", 5440))
    return make_product(
        folder,
        identity=product_id("LE07", day),
        layers={**layers, "QA_PIXEL": quality},
        shape=gaps.shape,
        slc="OFF",
    )


def related(truth: Mapping[str, Any]) -> dict[str, NDArray[np.uint16]]:
    """Another date, of which `truth` is GAIN x + BIAS in reflectance."""
    other = {}
    for band, numbers in truth.items():
        if band == "lwir":
            other[band] = numbers
            continue
        factor, summand = scaling(codes("LE07")[band])
        reflectance = (numbers * factor + summand - BIAS) / GAIN
        other[band] = np.rint((reflectance - summand) / factor).astype(np.uint16)
    return other


def truth_of(shape: tuple[int, int] = TALL) -> dict[str, NDArray[np.uint16]]:
    random = np.random.default_rng(4)
    return {
        band: random.integers(11_000, 25_000, shape).astype(np.uint16)
        for band in [*OPTICAL, "lwir"]
    }


def test_scan_line_gaps_stay_gaps_by_default(tmp_path: Path) -> None:
    gaps = striped()
    folder = gappy(tmp_path / "p", day="20100109", layers=truth_of(), gaps=gaps)
    found = made(tmp_path, folder)
    assert "filled" not in found
    for band in [*OPTICAL, "lwir", "NDSI"]:
        np.testing.assert_array_equal(np.isnan(found[band]), gaps)


def test_gaps_filled_from_another_date_recover_a_linear_relation_and_are_marked(
    tmp_path: Path,
) -> None:
    truth, gaps = truth_of(), striped()
    scene = gappy(tmp_path / "p", day="20100109", layers=truth, gaps=gaps)
    other = gappy(tmp_path / "q", day="20100125", layers=related(truth), gaps=np.zeros_like(gaps))
    found = made(tmp_path, scene, fill_from=(other,))
    inside = gaps & (np.arange(TALL[0]) >= 12)[:, None]
    assert inside.sum() > 1000
    np.testing.assert_array_equal(found["filled"], inside)
    for band in OPTICAL:
        expected = physical("LE07", band, truth[band])
        # Digital numbers of the other date were rounded: 2e-5.
        np.testing.assert_allclose(found[band][inside], expected[inside], atol=3e-5)
        np.testing.assert_allclose(found[band][~gaps], expected[~gaps], rtol=1e-6)
        assert np.isnan(found[band][:12]).all()
    assert np.isfinite(found["NDSI"][inside]).all()
    assert (found["QA_PIXEL"][inside] == 5440).all()


def test_a_second_date_fills_what_clouds_and_gaps_hid_on_the_first(tmp_path: Path) -> None:
    truth, gaps = truth_of(), striped()
    clouds = np.where(np.arange(TALL[1]) < 30, 5896, 5440)  # cloud, by TM's own value
    layers = related(truth) | {"QA_PIXEL": np.broadcast_to(clouds, TALL)}
    nowhere = np.zeros_like(gaps)
    scene = gappy(tmp_path / "p", day="20100109", layers=truth, gaps=gaps)
    cloudy = gappy(tmp_path / "q", day="20100125", layers=layers, gaps=nowhere)
    clear = gappy(tmp_path / "r", day="20100210", layers=related(truth), gaps=nowhere)
    inside = gaps & (np.arange(TALL[0]) >= 12)[:, None]
    one = made(tmp_path / "1", scene, fill_from=(cloudy,))
    assert not one["filled"][:, :30].any()
    assert one["filled"][:, 45:].sum() == inside[:, 45:].sum()
    assert np.isnan(one["red"][inside][one["filled"][inside] == 0]).all()
    two = made(tmp_path / "2", scene, fill_from=(cloudy, clear))
    np.testing.assert_array_equal(two["filled"], inside)


def test_a_date_on_a_shifted_grid_fills_the_right_pixels(tmp_path: Path) -> None:
    truth, gaps = truth_of(), striped()
    scene = gappy(tmp_path / "p", day="20100109", layers=truth, gaps=gaps)
    shifted = {
        band: np.pad(numbers, ((5, 0), (3, 0)), mode="edge")
        for band, numbers in related(truth).items()
    }
    other = make_product(
        tmp_path / "q",
        identity=product_id("LE07", "20100125"),
        layers=shifted,
        shape=(TALL[0] + 5, TALL[1] + 3),
        transform=north_up(CORNER[0] - 3 * 30, CORNER[1] + 5 * 30),
    )
    found = made(tmp_path, scene, fill_from=(other,))
    here = found["filled"] == 1
    assert here.sum() > 1000
    expected = physical("LE07", "red", truth["red"])
    np.testing.assert_allclose(found["red"][here], expected[here], atol=3e-5)


def test_too_few_shared_pixels_fill_nothing(tmp_path: Path) -> None:
    gaps = striped()
    small = np.zeros_like(gaps)
    small[55:67, 20:31] = True  # at most 132 of them, less than the 144 that are needed
    truth = truth_of()
    scene = gappy(tmp_path / "p", day="20100109", layers=truth, gaps=gaps)
    other = gappy(tmp_path / "q", day="20100125", layers=related(truth), gaps=~small)
    found = made(tmp_path, scene, fill_from=(other,))
    assert (gaps & small).any()
    assert not found["filled"].any()


def test_gaps_are_not_filled_from_the_scene_itself(tmp_path: Path) -> None:
    project = landsat_project(tmp_path / "project")
    scene = gappy(tmp_path / "p", day="20100109", layers=truth_of(), gaps=striped())
    done = glacier(project.root, "ingest", str(scene), "--fill-from", str(scene), "--out", "out")
    assert done.returncode == 2
    assert "gaps are filled from other dates" in done.stderr


def test_strips_of_a_large_scene_meet_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, gaps = truth_of(), striped()
    scene = gappy(tmp_path / "p", day="20100109", layers=truth, gaps=gaps)
    other = gappy(
        tmp_path / "q", day="20100125", layers=truth_of() | {"red": truth["nir08"]},
        gaps=np.zeros_like(gaps),
    )  # fmt: skip
    values = likely_values(["elevation"], (200, 120), seed=3)
    dem = make_scene(tmp_path / "dem.tif", bands=[None], values=values)
    settings = {"dem_path": str(dem)}
    at_once = made(tmp_path / "1", scene, fill_from=(other,), settings=settings)
    monkeypatch.setattr("glacier_core.landsat.scene._ROWS", 16)
    in_strips = made(tmp_path / "2", scene, fill_from=(other,), settings=settings)
    for name, layer in at_once.items():
        np.testing.assert_allclose(in_strips[name], layer, rtol=1e-4, atol=1e-5, err_msg=name)


# --- once, and whole -------------------------------------------------------------------------


def test_what_is_made_already_is_left_and_a_setting_makes_it_anew(tmp_path: Path) -> None:
    project = landsat_project(tmp_path / "project")
    folder = make_product(tmp_path / "p")
    path = ingest_product(project, folder, tmp_path / "out")
    first = as_written(path)
    ingest_product(project, folder, tmp_path / "out")
    assert as_written(path) == first
    ingest_product(project, folder, tmp_path / "out", again=True)
    second = as_written(path)
    assert second[0] != first[0]
    edit_yaml(project.root / "conf/landsat.yaml", harmonise="roy2016")
    ingest_product(project, folder, tmp_path / "out")
    assert as_written(path)[0] != second[0]
    assert layers(path)["blue"].mean() != pytest.approx(0)


def test_an_archive_whose_name_says_its_product_is_not_read_again_once_its_scene_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    project, out = landsat_project(tmp_path / "project"), tmp_path / "out"
    folder = make_product(tmp_path / "p")
    archive = make_archive(tmp_path / f"{product_id()}.tar.gz", folder, mode="w:gz")
    renamed = Path(shutil.copy(archive, tmp_path / f"my {product_id()}.tar.gz"))
    path = ingest_product(project, archive, out)
    first = as_written(path)
    for unreadable in (archive, renamed):
        unreadable.write_bytes(b"not read, or this would be told")
    assert ingest_product(project, archive, out) == path
    assert as_written(path) == first
    assert f"{path}: made already" in caplog.text
    # It is read where it may be another: under another name, with other settings, or when asked to.
    with pytest.raises(InputError, match="is damaged or cut off"):
        ingest_product(project, renamed, out)
    with pytest.raises(InputError, match="is damaged or cut off"):
        ingest_product(project, archive, out, again=True)
    with pytest.raises(InputError, match="is damaged or cut off"):
        ingest_product(project, archive, out, fill_from=(folder,))
    newer = archive.rename(tmp_path / f"{product_id(processed='20230401')}.tar.gz")
    with pytest.raises(InputError, match="is damaged or cut off"):
        ingest_product(project, newer, out)
    edit_yaml(project.root / "conf/landsat.yaml", indices=["NDSI"])
    with pytest.raises(InputError, match="is damaged or cut off"):
        ingest_product(project, newer.rename(archive), out)
    with pytest.raises(InputError, match="no such file"):
        ingest_product(project, newer, out)


def test_a_scene_filled_from_an_archive_is_made_already_with_the_same_archive_alone(
    tmp_path: Path,
) -> None:
    project, out = landsat_project(tmp_path / "project"), tmp_path / "out"
    days = ("20150710", "20150726", "20150811")
    first, second, third = (
        make_archive(
            tmp_path / f"{product_id('LE07', day)}.tar",
            make_product(tmp_path / day, identity=product_id("LE07", day)),
        )
        for day in days
    )
    path = ingest_product(project, first, out, fill_from=(second,))
    before = as_written(path)
    for archive in (first, second, third):
        archive.write_bytes(b"not read, or this would be told")
    assert ingest_product(project, first, out, fill_from=(second,)) == path
    assert as_written(path) == before
    for others in ((), (third,), (second, third)):
        with pytest.raises(InputError, match="is damaged or cut off"):
            ingest_product(project, first, out, fill_from=others)


def test_another_dem_makes_a_scene_anew(tmp_path: Path) -> None:
    dem = make_dem(tmp_path / "dem.tif")
    project = landsat_project(tmp_path / "project", dem_path=str(dem))
    folder = make_product(tmp_path / "p")
    path = ingest_product(project, folder, tmp_path / "out")
    with rasterio.open(dem, "r+") as dataset:
        dataset.write(dataset.read(1) + 500, 1)
    ingest_product(project, folder, tmp_path / "out")
    np.testing.assert_allclose(layers(path)["elevation"], expected_heights() + 500, atol=0.02)


def test_a_later_processing_replaces_the_scene_and_an_earlier_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    project = landsat_project(tmp_path / "project")
    old = make_product(tmp_path / "p")
    new = make_product(
        tmp_path / "q",
        identity=product_id(processed="20230401"),
        generated="2023-04-01T00:00:00Z",
        layers={"red": 20_000},
    )
    ingest_product(project, old, tmp_path / "out")
    path = ingest_product(project, new, tmp_path / "out")
    assert f"replaced, USGS processed it anew: {product_id(processed='20230401')}" in caplog.text
    assert [file.name for file in (tmp_path / "out").iterdir()] == [path.name]
    assert layers(path)["red"] == pytest.approx(physical("LC08", "red", 20_000))
    ingest_product(project, old, tmp_path / "out")
    assert "comes from a later processing" in caplog.text
    assert layers(path)["red"] == pytest.approx(physical("LC08", "red", 20_000))


def test_a_file_of_other_origin_is_not_overwritten(tmp_path: Path) -> None:
    project = landsat_project(tmp_path / "project")
    mine = make_scene(tmp_path / "out/LC08_140041_20150710.tif", bands=["a"], values=1)
    before = mine.read_bytes()
    with pytest.raises(InputError, match="was not written by `glacier ingest`"):
        ingest_product(project, make_product(tmp_path / "p"), tmp_path / "out")
    assert mine.read_bytes() == before


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    project = landsat_project(tmp_path / "project")
    folder = make_product(tmp_path / "p", shape=(400, 400), layers={"red": counts((400, 400))})

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = glacier(project.root, "ingest", str(folder), "--out", "out", limit=limit)
    assert done.returncode == 1
    assert "room left" in done.stderr
    assert not list((project.root / "out").glob("*"))


# --- real files ------------------------------------------------------------------------------


def test_a_real_product_becomes_a_scene(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "landsat_ingest"
    name = "LC08_L2SP_005009_20150710_20200908_02_T2"
    folder = tmp_path / "product"
    folder.mkdir()
    for file in (source / "l2sr_assets_coarse").glob(f"{name}*"):
        (folder / file.name).symlink_to(file)
    shutil.copyfile(source / f"mtl/{name}_MTL.txt", folder / f"{name}_MTL.txt")
    project = landsat_project(tmp_path / "project")
    done = glacier(project.root, "ingest", str(folder), "--out", "data/raw/landsat")
    assert done.returncode == 0, done.stderr
    assert "has no QA_RADSAT" in done.stderr
    assert "has no lwir" in done.stderr
    with Scene(project.root / "data/raw/landsat/LC08_005009_20150710.tif", None) as scene:
        assert scene.bands == [*OPTICAL, "NDSI", "NDVI", "NDWI", "QA_PIXEL"]
        with rasterio.open(next(folder.glob("*_SR_B3.TIF"))) as dataset:
            numbers, grid = dataset.read(1), Grid.of(dataset)
        with rasterio.open(next(folder.glob("*_QA_PIXEL.TIF"))) as dataset:
            fill = dataset.read(1) & 1 == 1
        assert (scene.grid.transform, scene.grid.crs) == (grid.transform, grid.crs)
        pixels = pixels_of(scene, scene.grid.window)
        green = pixels[..., 1]
        ndsi = pixels[..., scene.bands.index("NDSI")]
        seen = scene.seen(pixels, OPTICAL)
    # What README.md of the data says: fill 48 %; in 0.4 % fill where a band has a value.
    assert fill.mean() == pytest.approx(0.48, abs=0.005)
    np.testing.assert_array_equal(np.isnan(green), fill | (numbers == 0))
    assert ((numbers > 0) & np.isnan(green)).any()
    known = np.isfinite(green)
    np.testing.assert_allclose(green[known], numbers[known] * 2.75e-5 - 0.2, atol=1e-6)
    assert green[known].max() > 1
    assert (ndsi[np.isfinite(ndsi)] > 0.4).mean() == pytest.approx(0.87, abs=0.01)
    assert 0 < seen.mean() < known.mean()
