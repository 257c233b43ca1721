"""Derived channels: worked out from bands and DEM, the same however a scene is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import edit_yaml, glacier, make_project, make_scene, north_up
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.slicing import SlicedScene, slice_scene
from glacier_core.errors import InputError
from glacier_core.labels.masking import mask_scene
from glacier_core.maps.scenemap import SceneMap
from glacier_core.raster.derived import DERIVED, FLOWS_M, SCALES_M
from glacier_core.raster.grid import Window
from glacier_core.raster.scene import NO_VALUE, Scene
from glacier_core.raster.sun import Sun

SHAPE = (90, 110)
BANDS = ["blue", "green", "red", "nir", "swir16", "swir22", "lwir", "elevation"]
SUN = Sun(151.2, 38.4)
Layer = NDArray[np.float32]


def hills(seed: int = 0, shape: tuple[int, int] = SHAPE) -> Layer:
    """Heights with valleys of 1 to 2 km, metres."""
    row, col = np.mgrid[: shape[0], : shape[1]] * 30.0
    a, b = np.random.default_rng(seed).uniform(0, 6, 2)
    return np.float32(4500 + 300 * np.sin(row / 400 + a) + 250 * np.cos(col / 300 + b) + row / 20)


def stacked(
    path: Path, shape: tuple[int, int] = SHAPE, sun: Sun | None = SUN, **layers: Layer | float
) -> Path:
    """A scene of reflective bands, temperatures and heights, some of them given."""
    random = np.random.default_rng(1)
    values = dict.fromkeys(BANDS, 0.0) | {
        name: random.uniform(0.02, 0.8, shape) for name in BANDS[:6]
    }
    values |= {"elevation": hills(shape=shape), "lwir": random.uniform(250, 290, shape)} | layers
    content = np.stack([np.broadcast_to(np.float32(v), shape) for v in values.values()])
    make_scene(path, bands=list(values), values=content, nodata=float("nan"))
    return tagged(path, sun.tags if sun else {})


def tagged(path: Path, tags: dict[str, str]) -> Path:
    with rasterio.open(path, "r+") as file:
        file.update_tags(**tags)
    return path


def channel(path: Path, name: str) -> Layer:
    """A derived channel of a whole scene."""
    with Scene(path, None, [name]) as scene:
        assert name in scene.bands
        return scene.view(scene.grid.window, [name])[0][0]


# --- what they say ---------------------------------------------------------------------------


def test_indices_are_of_the_bands_that_go_by_these_names(tmp_path: Path) -> None:
    path = stacked(tmp_path / "s.tif", green=0.6, swir16=0.2, nir=0.3, red=0.1, blue=0.2)
    expected = {"ndsi": 0.5, "ndvi": 0.5, "ndwi": 1 / 3} | {
        "nir_swir": np.log(1.5), "red_swir": np.log(0.5), "blue_red": np.log(2),
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(channel(path, name), value, rtol=1e-5, err_msg=name)


def test_the_tasselled_cap_stands_on_the_plane_of_soils_and_plants(tmp_path: Path) -> None:
    def at(**bands: float) -> dict[str, float]:
        path = stacked(tmp_path / "s.tif", **bands)
        names = ("cap_brightness", "cap_greenness", "cap_wetness")
        return {name[4:]: float(channel(path, name)[0, 0]) for name in names}

    # Typical reflectance: of blue, green, red, near infrared and both short waves.
    snow = at(blue=0.85, green=0.85, red=0.83, nir=0.75, swir16=0.08, swir22=0.06)
    grass = at(blue=0.03, green=0.06, red=0.03, nir=0.45, swir16=0.18, swir22=0.08)
    rock = at(blue=0.10, green=0.13, red=0.16, nir=0.20, swir16=0.26, swir22=0.24)
    assert snow["brightness"] > 2 * grass["brightness"] > 0
    assert grass["greenness"] > 0.2 > 0 > max(rock["greenness"], snow["greenness"])
    assert snow["wetness"] > 0.4 > 0 > grass["wetness"] > rock["wetness"]
    # The three axes are at right angles, and as long as one.
    whole = [at(**dict.fromkeys(BANDS[:6], 0.0) | {band: 1.0}) for band in BANDS[:6]]
    axes = np.array([list(one.values()) for one in whole])
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=2e-3)


@pytest.mark.parametrize("name", ["ndsi", "red_swir"])
def test_of_darkness_an_index_says_nothing_but_the_ground_was_seen(
    tmp_path: Path, name: str
) -> None:
    path = stacked(tmp_path / "s.tif", green=0.0, swir16=0.0, red=-0.01)
    assert (channel(path, name) == 0).all()


def test_a_ratio_goes_as_far_as_it_can_where_one_band_alone_is_dark(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    short_wave = np.float32(random.uniform(-0.01, 0.02, SHAPE))
    path = stacked(tmp_path / "s.tif", nir=0.7, red=0.6, swir16=short_wave)
    for name, bright in (("nir_swir", 0.7), ("red_swir", 0.6)):
        expected = np.where(short_wave > 0, np.log(bright / np.maximum(short_wave, 1e-9)), 4)
        np.testing.assert_allclose(channel(path, name), np.minimum(expected, 4), rtol=1e-4)
    assert (channel(stacked(tmp_path / "t.tif", blue=-0.01, red=0.2), "blue_red") == -4).all()


def test_a_files_scale_and_offset_are_heeded(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["green", "swir16"], dtype="uint16",
                      values=np.stack([np.full((8, 8), 29_000), np.full((8, 8), 10_000)]))  # fmt: skip
    # Collection 2 surface reflectance: an index of the numbers themselves would be far too small.
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (2.75e-5,) * 2, (-0.2,) * 2
    green, swir = 29_000 * 2.75e-5 - 0.2, 10_000 * 2.75e-5 - 0.2
    np.testing.assert_allclose(channel(path, "ndsi"), (green - swir) / (green + swir), rtol=1e-4)


@pytest.mark.parametrize(
    ("east", "north"), [(0.5, 0.0), (-0.3, 0.0), (0.0, 0.4), (0.0, -0.2), (0.3, 0.4)]
)
def test_a_plane_faces_downhill_and_lies_at_the_height_around_it(
    tmp_path: Path, east: float, north: float
) -> None:
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    # Rows go south: a height that rises to the north falls with the row.
    path = stacked(tmp_path / "s.tif", elevation=np.float32(4000 + east * col - north * row))
    steep = np.hypot(east, north)
    # UTM's north is not the true one, which slopes are told by: half a degree here.
    near = {"rtol": 0, "atol": 0.02}
    np.testing.assert_allclose(channel(path, "steepness"), np.degrees(np.arctan(steep)), rtol=2e-3)
    np.testing.assert_allclose(channel(path, "eastness"), -east / steep, **near)
    np.testing.assert_allclose(channel(path, "northness"), -north / steep, **near)
    inside = slice(20, -20), slice(20, -20)
    for name in ("position_100m", "position_500m", "curvature_plan", "curvature_profile"):
        np.testing.assert_allclose(channel(path, name)[inside], 0, atol=2e-3, err_msg=name)
    assert np.ptp(channel(path, "steepness_100m")[inside]) < 0.01


def test_a_ridge_stands_out_and_a_valley_lies_low_at_their_own_scale(tmp_path: Path) -> None:
    row, _ = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    height = np.float32(4000 - np.abs(row - 45 * 30.0))  # a ridge along the middle row
    ridge, valley = stacked(tmp_path / "r.tif", elevation=height), tmp_path / "v.tif"
    stacked(valley, elevation=8000 - height)
    for metres in SCALES_M[:4]:
        name = f"position_{metres}m"
        # Of a roof with slopes of 1, the mean within `reach` lies half of it below the ridge.
        up, down = channel(ridge, name)[45, 50], channel(valley, name)[45, 50]
        assert up == pytest.approx(0.5, abs=0.12)
        assert down == pytest.approx(-up, abs=1e-4)
    assert channel(ridge, "position_100m")[20, 50] == pytest.approx(0, abs=1e-3)


def test_a_cone_bulges_across_its_slopes_and_a_bowl_hollows_along_them(tmp_path: Path) -> None:
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    away = np.hypot(row - 45 * 30, col - 55 * 30)
    cone = stacked(tmp_path / "c.tif", elevation=np.float32(5000 - 0.5 * away))
    bowl = stacked(tmp_path / "b.tif", elevation=np.float32(4000 + away**2 / 4000))
    at = 45, 75  # 600 m away from the middle
    assert channel(cone, "curvature_plan")[at] == pytest.approx(100 * 0.5 / 600, rel=0.05)
    assert channel(cone, "curvature_profile")[at] == pytest.approx(0, abs=0.01)
    assert channel(bowl, "curvature_profile")[at] == pytest.approx(-100 * 2 / 4000, rel=0.05)


def test_cold_ground_is_told_from_high_ground(tmp_path: Path) -> None:
    height = hills()
    warmth = np.float32(310 - 0.0065 * height)
    cold = np.zeros(SHAPE, dtype=bool)
    cold[40:50, 50:60] = True
    random = np.random.default_rng(0).normal(0, 0.3, SHAPE)
    path = stacked(tmp_path / "s.tif", lwir=np.float32(warmth + random - 3.0 * cold))
    lapse = channel(path, "thermal_lapse")
    assert lapse[cold].mean() < -2
    assert abs(lapse[~cold].mean()) < 0.2
    # The highest ground is the coldest, and no sign of debris.
    highest = height >= np.quantile(height, 0.95)
    assert abs(lapse[highest & ~cold].mean()) < 0.5


def test_smooth_ground_is_less_rough_than_boulders(tmp_path: Path) -> None:
    bumps = np.random.default_rng(0).normal(0, 8, SHAPE).astype(np.float32)
    smooth, rough = stacked(tmp_path / "s.tif"), tmp_path / "r.tif"
    stacked(rough, elevation=hills() + bumps)
    inside = slice(12, -12), slice(12, -12)
    gain = channel(rough, "roughness")[inside] - channel(smooth, "roughness")[inside]
    assert (gain > 0).mean() > 0.95


# --- where water runs ------------------------------------------------------------------------


def paths(metres: float) -> int:
    """Steps of 30 m to the end of a reach."""
    return int(np.ceil(metres / 30))


@pytest.mark.parametrize(("down", "right"), [(0.1, 0.0), (-1.0, 0.0), (0.0, 0.3), (0.2, 0.5)])
def test_on_a_plane_as_much_ground_drains_through_a_pixel_as_the_reach_holds(
    tmp_path: Path, down: float, right: float
) -> None:
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    path = stacked(tmp_path / "s.tif", elevation=np.float32(4000 + down * row + right * col))
    inside = slice(25, -25), slice(25, -25)
    np.testing.assert_allclose(channel(path, "flow_500m")[inside], 0, atol=1e-3)


def test_the_last_metres_of_a_reach_count_in_the_smallest_window_and_in_wide_scenes(
    tmp_path: Path,
) -> None:
    shape = 80, 640  # more than a square that flow is worked out in
    _, col = np.mgrid[: shape[0], : shape[1]] * 30.0
    for name, down in (("east", 0.5), ("west", -0.5)):
        path = stacked(tmp_path / f"{name}.tif", shape, elevation=np.float32(9000 - down * col))
        found = channel(path, "flow_500m")
        np.testing.assert_allclose(found[25:-25, 25:-25], 0, atol=1e-3)
        with Scene(path, None, ["flow_500m"]) as scene:
            for place in (300, 511, 512):
                alone, _ = scene.view(Window(40, place, 1, 1), ["flow_500m"])
                np.testing.assert_allclose(alone, 0, atol=1e-3)


def test_from_a_ridge_on_each_row_down_adds_its_own_until_the_reach_ends(tmp_path: Path) -> None:
    shape = 120, 200
    row, _ = np.mgrid[: shape[0], : shape[1]] * 30.0
    path = stacked(tmp_path / "s.tif", shape, elevation=np.float32(6000 - 0.5 * row))
    for metres in FLOWS_M:
        found = channel(path, f"flow_{metres}m")[:, 100]
        rows = np.minimum(np.arange(1, shape[0] + 1), paths(metres) + 1)
        np.testing.assert_allclose(found, np.log(rows / (paths(metres) + 1)), atol=1e-3)


def test_a_valley_gathers_both_its_sides_and_a_crest_has_itself_alone(tmp_path: Path) -> None:
    _, col = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    sides = np.float32(0.4 * np.abs(col - 55 * 30))
    valley, crest = stacked(tmp_path / "v.tif", elevation=4000 + sides), tmp_path / "c.tif"
    stacked(crest, elevation=6000 - sides)
    steps = paths(500)
    inside = slice(25, -25)
    lowest = channel(valley, "flow_500m")[inside]
    np.testing.assert_allclose(lowest[:, 55], np.log((2 * steps + 1) / (steps + 1)), atol=1e-3)
    np.testing.assert_allclose(lowest[:, [56 + steps, 54 - steps]], 0, atol=1e-3)
    highest = channel(crest, "flow_500m")[inside, 55]
    np.testing.assert_allclose(highest, np.log(1 / (steps + 1)), atol=1e-3)


@pytest.mark.parametrize("pixel", [10.0, 30.0])
def test_a_bowl_gathers_and_a_cone_scatters_as_their_circles_say_at_any_resolution(
    tmp_path: Path, pixel: float
) -> None:
    half = int(1800 / pixel)
    row, col = (np.mgrid[: 2 * half + 1, : 2 * half + 1] - half) * pixel
    away = np.hypot(row, col)
    for name, height, bend in (("bowl", 0.5 * away, 1), ("cone", 2000 - 0.5 * away, -1)):
        values = np.stack([np.float32(4000 + height)])
        path = make_scene(tmp_path / f"{name}.tif", bands=["elevation"], values=values,
                          transform=north_up(pixel=pixel))  # fmt: skip
        # Of the ring between the circles at 800 m and 500 m further up, by that of a strip.
        expected = np.log(1 + bend * 500 / (2 * 800))
        ring = np.abs(away - 800) < pixel
        found = channel(path, "flow_500m")[ring]
        # Steps are of a pixel or of its diagonal, so that paths reach further in some directions.
        assert found.mean() == pytest.approx(expected, abs=0.04)
        assert np.ptp(found) < 0.09


def test_nothing_flows_out_of_what_was_not_seen(tmp_path: Path) -> None:
    row, _ = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    height = np.float32(6000 - 0.5 * row)
    height[40:42] = np.nan
    found = channel(stacked(tmp_path / "s.tif", elevation=height), "flow_500m")
    assert np.isnan(found[40:42]).all()
    steps = paths(500)
    middle = found[:, 40:-40]
    np.testing.assert_allclose(middle[30:40], 0, atol=1e-3)  # what flowed in above stays there
    below = np.log(np.arange(1, steps + 2) / (steps + 1))
    np.testing.assert_allclose(
        middle[42 : 42 + steps + 1], below[:, None] + 0 * middle[:1], atol=1e-3
    )


def test_a_lake_drains_nowhere_and_keeps_what_runs_into_it(tmp_path: Path) -> None:
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    height = np.float32(np.maximum(5000 - 0.5 * row, 4500))
    lake = slice(50, -25), slice(30, -30)
    found = channel(stacked(tmp_path / "s.tif", elevation=height), "flow_500m")
    np.testing.assert_allclose(found[lake], np.log(1 / (paths(500) + 1)), atol=1e-3)
    # The smallest step that float32 has is noise there, which nothing may follow.
    stepped = np.where(col > 55 * 30, height, np.nextafter(height, np.float32(0)))
    noisy = channel(stacked(tmp_path / "r.tif", elevation=stepped), "flow_500m")
    np.testing.assert_allclose(noisy[lake], found[lake], atol=0.05)


# --- where the sun stands --------------------------------------------------------------------


def test_ground_that_faces_the_sun_is_brightest_and_flat_ground_has_the_suns_height(
    tmp_path: Path,
) -> None:
    row, col = np.mgrid[: SHAPE[0], : SHAPE[1]] * 30.0
    azimuth, elevation = np.radians([SUN.azimuth, SUN.elevation])
    # Metres towards the sun; rows go south.
    towards = col * np.sin(azimuth) - row * np.cos(azimuth)
    steep = np.float32(towards / np.tan(elevation))
    for height, cosine in (
        (9000 - steep, 1.0),
        (0 * steep, np.sin(elevation)),
        (4000 + steep, -np.cos(2 * elevation)),
    ):
        path = stacked(tmp_path / "s.tif", elevation=np.float32(height))
        np.testing.assert_allclose(channel(path, "hillshade"), cosine, atol=2e-3)


@pytest.mark.parametrize(
    ("azimuth", "down", "right"), [(90, 0, -1), (270, 0, 1), (180, -1, 0), (0, 1, 0), (135, -1, -1)]
)
def test_a_wall_throws_a_shadow_as_long_as_its_height_and_the_sun_say(
    tmp_path: Path, azimuth: float, down: int, right: int
) -> None:
    height = np.full(SHAPE, 4000, np.float32)
    middle = 45, 55
    if down:
        height[middle[0]] = 4300
    if right:
        height[:, middle[1]] = 4300
    path = stacked(tmp_path / "s.tif", sun=Sun(azimuth, 30), elevation=height)
    found = channel(path, "cast_shadow")
    step = 30 * np.hypot(down, right)
    # The ray to the sun rises over ground that lies 300 m lower; less than 10 m is not certain.
    k = np.arange(1, 26)
    expected = np.clip((300 - k * step * np.tan(np.radians(30))) / 10, 0, 1)
    away = middle[0] + k * down, middle[1] + k * right
    np.testing.assert_allclose(found[away], expected, atol=0.05)
    assert expected[int(515 / step) - 1] > 0
    assert expected[int(520 / step)] == 0
    assert (found[middle[0] - k * down, middle[1] - k * right] == 0).all()


def test_a_shadow_ends_where_it_is_looked_no_further(tmp_path: Path) -> None:
    height = np.full(SHAPE, 3000, np.float32)
    height[:, 105] = 8000
    path = stacked(tmp_path / "s.tif", sun=Sun(90, 30), elevation=height)
    found = channel(path, "cast_shadow")[40]
    # 3000 m, where UTM's pixels are a little over 30 m; of such a wall it would be 8660 m long.
    assert (found[6:105] == 1).all()
    assert (found[:5] == 0).all()


def test_what_was_not_seen_throws_no_shadow(tmp_path: Path) -> None:
    height = np.full(SHAPE, 4000, np.float32)
    height[:, 50] = 4300
    height[20:30, 50] = np.nan
    found = channel(stacked(tmp_path / "s.tif", sun=Sun(90, 30), elevation=height), "cast_shadow")
    # Between a known and an unknown pixel, too, nothing is known of the ray's way.
    assert (found[1:19, 40:50] == 1).all()
    assert (found[31:-1, 40:50] == 1).all()
    assert (found[20:30, 40:50] == 0).all()
    assert np.isnan(found[20:30, 50]).all()
    assert np.isfinite(found).sum() == found.size - 10


@pytest.mark.parametrize("azimuth", [-151.2, 208.8])
def test_an_azimuth_may_be_counted_as_in_the_mtl_of_landsat(tmp_path: Path, azimuth: float) -> None:
    path = stacked(tmp_path / "s.tif", sun=Sun(208.8, 38.4))
    expected = channel(path, "hillshade")
    tagged(path, {"SUN_AZIMUTH": f"{azimuth}"})
    np.testing.assert_allclose(channel(path, "hillshade"), expected, atol=1e-6)


def test_without_the_suns_place_its_channels_are_refused_and_the_message_says_how_to_tell_it(
    tmp_path: Path,
) -> None:
    path = stacked(tmp_path / "s.tif", sun=None)
    wanted = ["hillshade", "steepness", "cast_shadow"]
    with Scene(path, None, wanted) as scene:
        assert scene.bands[len(BANDS) :] == ["steepness"]
        with pytest.raises(InputError) as refused:
            scene.positions(wanted)
    said = str(refused.value)
    assert "has no band hillshade, cast_shadow" in said
    assert "sun's place, which its tags do not tell, would be hillshade, cast_shadow" in said
    assert f"`gdal_edit.py -mo SUN_AZIMUTH=151.2 -mo SUN_ELEVATION=38.4 {path}`" in said
    tagged(path, {"SUN_AZIMUTH": "151.2", "SUN_ELEVATION": "38.4"})
    assert channel(path, "hillshade").shape == SHAPE


@pytest.mark.parametrize(
    "tags",
    [
        {"SUN_AZIMUTH": "151.2"},
        {"SUN_ELEVATION": "38.4"},
        {"SUN_AZIMUTH": "361", "SUN_ELEVATION": "38.4"},
        {"SUN_AZIMUTH": "151.2", "SUN_ELEVATION": "0"},
        {"SUN_AZIMUTH": "151.2", "SUN_ELEVATION": "91"},
        {"SUN_AZIMUTH": "south", "SUN_ELEVATION": "38.4"},
        {"SUN_AZIMUTH": "nan", "SUN_ELEVATION": "38.4"},
    ],
)
def test_an_impossible_place_of_the_sun_is_refused_where_it_is_needed(
    tmp_path: Path, tags: dict[str, str]
) -> None:
    path = tagged(stacked(tmp_path / "s.tif", sun=None), tags)
    with pytest.raises(InputError, match=r"s\.tif: its tags SUN_AZIMUTH = .*gdal_edit\.py"):
        Scene(path, None, ["hillshade"])
    assert np.isfinite(channel(path, "steepness")).all()


# --- how they are read -----------------------------------------------------------------------


@pytest.mark.parametrize("name", DERIVED)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_pixel_is_the_same_whatever_window_it_is_read_by(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "windows"
    path = folder / "s.tif"
    # Wider than any reach but that of temperature, and with a sun that throws shadows of 3 km.
    shape = 230, 250
    if not path.exists():
        height = hills(shape=shape)
        height[130:140, 70:90] = np.nan  # a gap of the DEM
        height[90:120, 100:140] = 4400  # a lake
        stacked(path, shape, Sun(151.2, 6), elevation=height)
    top, left = (data.draw(st.integers(0, length - 2)) for length in shape)
    window = Window(
        top,
        left,
        data.draw(st.integers(1, min(60, shape[0] - top))),
        data.draw(st.integers(1, min(60, shape[1] - left))),
    )
    with Scene(path, None, [name]) as scene:
        whole, _ = scene.view(scene.grid.window, [name, "elevation"])
        part, unseen = scene.view(window, [name, "elevation"])
    np.testing.assert_allclose(part, whole[:, *window.slices], rtol=1e-3, atol=1e-3)
    assert ((unseen == NO_VALUE) == ~np.isfinite(part).all(axis=0)).all()


@pytest.mark.parametrize("name", ["flow_2000m", "cast_shadow", "position_2000m"])
@pytest.mark.parametrize("azimuth", [90.0, 250.0, 350.0])
def test_so_it_is_where_pixels_are_far_from_square(
    tmp_path: Path, name: str, azimuth: float
) -> None:
    height = hills(shape=(240, 720)) / 8  # low, so that the sun comes in between
    height[:, 700] = 9000  # a wall whose shadow would reach further than a window sees
    # At 70 degrees north a degree of longitude is a third of one of latitude.
    degrees = Affine(30 / 111_000, 0, 87.0, 0, -30 / 111_000, 70.0)
    path = make_scene(tmp_path / "s.tif", bands=["elevation"], values=height[None],
                      crs="EPSG:4326", transform=degrees)  # fmt: skip
    tagged(path, Sun(azimuth, 6).tags)
    window = Window(115, 506, 10, 12)  # across the border of two squares that flow is worked out in
    with Scene(path, None, [name]) as scene:
        whole = scene.view(scene.grid.window, [name])[0][0]
        part = scene.view(window, [name])[0][0]
    np.testing.assert_allclose(part, whole[window.slices], atol=1e-4)


@pytest.mark.parametrize("name", DERIVED)
def test_what_lacks_a_band_lacks_the_channel_and_no_more(tmp_path: Path, name: str) -> None:
    needs = {"swir1": "swir16", "swir2": "swir22", "thermal": "lwir"}
    bands = [needs.get(need, need) for need in DERIVED[name].needs]
    gap = np.zeros(SHAPE, dtype=bool)
    gap[30:40, 50:70] = True
    path = stacked(tmp_path / "s.tif")
    with rasterio.open(path, "r+") as file:
        number = BANDS.index(bands[0]) + 1
        file.write(np.where(gap, np.nan, file.read(number)), number)
    unseen = ~np.isfinite(channel(path, name))
    assert unseen[gap].all()
    around = np.zeros(SHAPE, dtype=bool)
    around[28:42, 48:72] = True  # a gradient needs its neighbours, and one of it theirs
    assert not (unseen & ~around).any()


def test_a_band_of_the_file_goes_before_a_channel_of_that_name(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["green", "swir16", "ndsi"], values=0.25)
    with Scene(path, None, ["ndsi", "green"]) as scene:
        assert scene.bands == ["green", "swir16", "ndsi"]
        assert (scene.view(scene.grid.window, ["ndsi"])[0] == 0.25).all()


def test_without_what_it_needs_a_channel_is_refused_and_the_message_says_what(
    tmp_path: Path,
) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["green", "red"], values=0.25)
    wanted = ["ndsi", "thermal_lapse"]
    with Scene(path, None, wanted) as scene, pytest.raises(InputError) as refused:
        scene.positions(wanted)
    said = str(refused.value)
    assert "Worked out from swir1, which it lacks, would be ndsi." in said
    assert "Worked out from thermal and elevation, which it lacks, would be thermal_lapse." in said


@pytest.mark.parametrize(
    ("name", "meant"), [("steepnes", "steepness"), ("NDSI", "ndsi"), ("SWIR", None), ("B7", None)]
)
def test_a_misspelt_channel_is_told_what_was_meant(
    tmp_path: Path, name: str, meant: str | None
) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["green", "elevation"], values=0.25)
    with Scene(path, None, [name]) as scene, pytest.raises(InputError) as refused:
        scene.positions([name])
    said = str(refused.value)
    assert f"did you mean {meant}?" in said if meant else "did you mean" not in said


def test_degrees_and_metres_give_the_same_terrain(tmp_path: Path) -> None:
    def at(path: Path, name: str) -> Layer:
        return channel(path, name)[20:-20, 20:-20]

    height = hills()
    there = stacked(tmp_path / "utm.tif")
    # Pixels of 30 m at 28 degrees north, where a degree of longitude is 98.4 km.
    degrees = Affine(30 / 98_364, 0, 87.0, 0, -30 / 110_812, 28.0)
    layers = np.stack([height, height])
    made = make_scene(tmp_path / "wgs.tif", bands=["elevation", "green"], values=layers,
                      crs="EPSG:4326", transform=degrees)  # fmt: skip
    for name in ("steepness", "position_500m", "roughness"):
        np.testing.assert_allclose(at(made, name), at(there, name), rtol=0.02, atol=0.02)


def test_a_raster_without_a_place_has_indices_and_no_terrain(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["green", "swir16", "elevation"], crs=None,
                      values=1.0, transform=north_up())  # fmt: skip
    with Scene(path, None, ["ndsi", "steepness"], must_be_located=False) as scene:
        assert scene.bands[3:] == ["ndsi"]


# --- through the pipeline --------------------------------------------------------------------


@pytest.mark.slow
def test_derived_channels_go_from_slices_to_the_map(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    channels = ["B2", "ndsi", "steepness", "position_500m"]
    edit_yaml(tmp_path / "conf/postprocess.yaml", channels=channels)
    project = Project(tmp_path)
    for scene in project.masking.scenes:
        mask_scene(project, scene)
        slice_scene(project, scene)
    for step in ("postprocess", "train"):
        done = glacier(tmp_path, step)
        assert done.returncode == 0, done.stderr
    name = next(iter(project.masking.scenes))
    path = tmp_path / project.scene(name).img_path
    dataset = Dataset.open(project.dataset_folder)
    assert dataset.channels == channels
    split, sample = next(
        (split, sample)
        for split, samples in dataset.splits.items()
        for sample in samples
        if sample.scene == name
    )
    with Scene(path, None, channels) as scene:
        expected, unseen = scene.view(sample.window, channels)
    stored = np.moveaxis(dataset.image(split, sample), -1, 0)
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-3)
    sliced = SlicedScene.read(project.slice_folder(name) / "slices.geojson")
    assert sliced.bands[-3:] == channels[1:]
    done = glacier(tmp_path, "map", str(path), "--model", "data/runs/unet/models", "--out", "maps")
    assert done.returncode == 0, done.stderr
    found = SceneMap(tmp_path / "maps" / name)
    assert list(found.about.channels) == channels
    assert found.about.seen == pytest.approx((unseen == 0).mean(), abs=0.02)
    # Of bands alone that cannot give it: one message, before anything is computed.
    few = tmp_path / "few.tif"
    with rasterio.open(path) as whole:
        make_scene(few, bands=["B2", "B5"], values=whole.read([2, 5]))
    shutil.rmtree(tmp_path / "maps")
    done = glacier(tmp_path, "map", str(few), "--model", "data/runs/unet/models", "--out", "maps")
    assert done.returncode != 0
    assert (
        "Worked out from elevation, which it lacks, would be steepness, position_500m"
        in done.stderr
    )
