"""A scene's bands go by name, and what was not seen is known band by band."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import make_scene, north_up, pixels_of
from numpy.typing import NDArray

from glacier_core.errors import InputError
from glacier_core.raster.bands import ETM_STACK, find_common, unseen_by_quality
from glacier_core.raster.grid import Window
from glacier_core.raster.scene import Scene, unseen_values

WHOLE = Window(0, 0, 8, 8)


def stack(**layers: float | NDArray[np.float32]) -> NDArray[np.float32]:
    """(bands, 8, 8) of numbers or arrays."""
    return np.stack([np.broadcast_to(np.float32(layer), (8, 8)) for layer in layers.values()])


def seen(path: Path, channels: list[str], bands: list[str] | None = None) -> NDArray[np.bool_]:
    with Scene(path, bands) as scene:
        return scene.seen(pixels_of(scene, WHOLE), channels)


def spot(row: int, col: int, value: float, rest: float) -> NDArray[np.float32]:
    layer = np.full((8, 8), rest, dtype=np.float32)
    layer[row, col] = value
    return layer


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [["B1", "B2", "slope"], ["slope", "B1", "B2"]])
def test_bands_are_found_by_name_in_any_file_order(tmp_path: Path, order: list[str]) -> None:
    value = {"B1": 10, "B2": 20, "slope": 30}
    layers = stack(**{name: value[name] for name in order})
    path = make_scene(tmp_path / "s.tif", bands=order, values=layers)
    with Scene(path, None) as scene:
        pixels = pixels_of(scene, WHOLE)
        assert scene.bands == order
        assert pixels.shape == (8, 8, 3)
        positions = scene.positions(["B2", "slope"])
        assert pixels[0, 0, positions].tolist() == [20, 30]


def test_unnamed_bands_take_the_configured_names(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=[None] * 15, shape=(8, 8), values=1)
    with Scene(path, ETM_STACK) as scene:
        assert scene.bands == ETM_STACK


def test_unnamed_bands_without_configured_names_are_refused(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=[None, None], shape=(8, 8), values=1)
    with pytest.raises(InputError, match=r"s\.tif: its 2 bands have no names.*--bands"):
        Scene(path, None)


def test_a_wrong_number_of_configured_names_is_refused(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=[None, None], shape=(8, 8), values=1)
    with pytest.raises(InputError, match=r"s\.tif: has 2 bands, but 15 names"):
        Scene(path, ETM_STACK)


def test_names_that_contradict_the_files_are_refused(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["B2", "B1"], shape=(8, 8), values=1)
    with pytest.raises(InputError, match=r"named B2, B1, but B1, B2 are configured"):
        Scene(path, ["B1", "B2"])


@pytest.mark.parametrize("bands", [["B1", None], ["B1", "B1"]])
def test_half_named_or_twice_named_bands_are_refused(
    tmp_path: Path, bands: list[str | None]
) -> None:
    path = make_scene(tmp_path / "s.tif", bands=bands, shape=(8, 8), values=1)
    with pytest.raises(InputError, match=r"s\.tif: band descriptions are incomplete"):
        Scene(path, None)


def test_a_missing_or_renamed_band_is_named_beside_those_that_are_there(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["B1", "SWIR"], shape=(8, 8), values=1)
    with Scene(path, None) as scene, pytest.raises(InputError, match="no band B5; it has B1, SWIR"):
        scene.positions(["B1", "B5"])


def test_common_bands_are_found_under_each_sensors_names() -> None:
    assert ETM_STACK[find_common(ETM_STACK, "swir1") or 0] == "B5"
    assert find_common(["SR_B3", "SR_B4", "SR_B5", "SR_B6"], "green") == 0
    assert find_common(["slope"], "red") is None


# --- files that cannot be used ---------------------------------------------------------------


def test_a_scene_without_crs_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["B1"], shape=(8, 8), values=1, crs=None)
    with pytest.raises(InputError, match=r"s\.tif: has no coordinate reference system.*gdal_edit"):
        Scene(path, None)


def test_a_missing_scene_and_one_that_is_no_image_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.tif: cannot be opened.*no such file"):
        Scene(tmp_path / "none.tif", None)
    (tmp_path / "text.tif").write_text("not an image")
    with pytest.raises(InputError, match=r"text\.tif: cannot be opened as an image"):
        Scene(tmp_path / "text.tif", None)


@pytest.mark.parametrize("options", [{}, {"compress": "deflate", "tiled": True}])
def test_a_truncated_scene_is_refused_and_says_where(
    tmp_path: Path, options: dict[str, object]
) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["B1", "B2"], shape=(256, 256), **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with (
        pytest.raises(InputError, match=r"s\.tif: (damaged|cannot be opened)"),
        Scene(path, None) as scene,
    ):
        pixels_of(scene, Window(0, 0, 256, 256))


def test_complex_bands_are_refused(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["SAR"], shape=(8, 8), values=1, dtype="complex64")
    with pytest.raises(InputError, match="type complex64 cannot be used"):
        Scene(path, None)


# --- what was not seen -----------------------------------------------------------------------


def test_declared_nodata_in_one_used_band_is_unseen_there_alone(tmp_path: Path) -> None:
    layers = stack(red=spot(1, 2, -9999, 5), nir=spot(3, 4, -9999, 5), spare=spot(5, 6, -9999, 5))
    path = make_scene(
        tmp_path / "s.tif", bands=["red", "nir", "spare"], values=layers, nodata=-9999
    )
    expected = np.ones((8, 8), dtype=bool)
    expected[1, 2] = expected[3, 4] = False
    np.testing.assert_array_equal(seen(path, ["red", "nir"]), expected)


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("nodata", [None, -9999.0, np.nan])
def test_what_is_no_number_is_unseen_whatever_nodata_says(
    tmp_path: Path, hole: float, nodata: float | None
) -> None:
    path = make_scene(
        tmp_path / "s.tif", bands=["red"], values=spot(1, 2, hole, 5)[None], nodata=nodata
    )
    found = seen(path, ["red"])
    assert not found[1, 2]
    assert found.sum() == 63


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_zero_is_fill_in_etm_bands_each_by_itself_and_a_value_elsewhere(
    tmp_path: Path, dtype: str
) -> None:
    layers = stack(B1=spot(0, 1, 0, 50), B6_VCID_2=spot(2, 3, 0, 50), slope=spot(4, 5, 0, 9))
    path = make_scene(
        tmp_path / "s.tif", bands=["B1", "B6_VCID_2", "slope"], values=layers, dtype=dtype
    )
    for channels, holes in (
        (["B1"], {(0, 1)}),
        (["B6_VCID_2"], {(2, 3)}),
        (["slope"], set()),
        (["B1", "B6_VCID_2", "slope"], {(0, 1), (2, 3)}),
    ):
        found = seen(path, channels)
        assert {(int(r), int(c)) for r, c in np.argwhere(~found)} == holes


def test_zero_is_fill_in_etm_bands_beside_nan(tmp_path: Path) -> None:
    layer = spot(0, 1, 0, 50)
    layer[2, 3] = np.nan
    path = make_scene(tmp_path / "s.tif", bands=["B1"], values=layer[None], nodata=np.nan)
    assert {tuple(at) for at in np.argwhere(~seen(path, ["B1"])).tolist()} == {(0, 1), (2, 3)}


def test_zero_is_fill_in_etm_bands_beside_another_declared_nodata(tmp_path: Path) -> None:
    # A GeoTIFF declares one nodata for all its bands; the scan-line gaps stay 0.
    layers = stack(B1=spot(0, 1, 0, 50), slope=spot(2, 3, -9999, 9))
    layers[0, 4, 5] = -9999
    path = make_scene(tmp_path / "s.tif", bands=["B1", "slope"], values=layers, nodata=-9999)
    found = seen(path, ["B1", "slope"])
    assert {tuple(at) for at in np.argwhere(~found).tolist()} == {(0, 1), (2, 3), (4, 5)}


def test_the_smallest_double_as_nodata_is_unseen_in_float32(tmp_path: Path) -> None:
    smallest = float(np.finfo(np.float64).min)
    layer = np.full((8, 8), 5.0)
    layer[1, 2] = smallest
    path = make_scene(
        tmp_path / "s.tif", bands=["red"], values=layer[None], dtype="float64", nodata=smallest
    )
    assert {tuple(at) for at in np.argwhere(~seen(path, ["red"])).tolist()} == {(1, 2)}


def test_unused_bands_hide_nothing(tmp_path: Path) -> None:
    path = make_scene(tmp_path / "s.tif", bands=["B1", "B8"], values=stack(B1=9, B8=0))
    assert seen(path, ["B1"]).all()
    assert not seen(path, ["B1", "B8"]).any()


def test_integers_keep_their_dtype_and_doubles_become_float32(tmp_path: Path) -> None:
    for dtype, stored in (("uint8", "uint8"), ("int16", "int16"), ("float64", "float32")):
        path = make_scene(tmp_path / "s.tif", bands=["red"], shape=(8, 8), values=7, dtype=dtype)
        with Scene(path, None) as scene:
            assert pixels_of(scene, WHOLE).dtype == scene.dtype == stored


def test_unseen_values_compare_in_the_bands_own_precision() -> None:
    values = np.array([-3.4028234663852886e38, 0.1, 5.0], dtype=np.float32)
    assert unseen_values(values, -3.4028234663852886e38).tolist() == [True, False, False]
    assert unseen_values(values, 0.1).tolist() == [False, True, False]


# --- quality bands ---------------------------------------------------------------------------

# Values and meanings as the U.S. Geological Survey tabulates them for the Collection 1 Level-1
# quality band (Landsat 4-7, then Landsat 8) and for Collection 2 QA_PIXEL (Landsat 8-9 and 4-7).
COLLECTION_1 = {
    1: "fill",
    674: "dropped pixel",
    672: "",
    676: "",  # saturated in one or two bands, but seen
    684: "",
    704: "",  # medium confidence of cloud
    752: "cloud",
    764: "cloud, saturated",
    928: "cloud shadow",
    1696: "",  # snow or ice
    2720: "",
    2722: "terrain occlusion",
    2800: "cloud",
    2976: "cloud shadow",
    3744: "",  # snow or ice
    6896: "cloud, cirrus",
}
COLLECTION_2 = {
    1: "fill",
    21824: "",
    21826: "dilated cloud",
    21888: "",  # water
    21890: "dilated cloud over water",
    22280: "cloud",
    23888: "cloud shadow",
    23952: "cloud shadow over water",
    30048: "",  # snow or ice
    54596: "cirrus",
    55052: "cirrus and cloud",
    5440: "",
    5442: "dilated cloud",
    5504: "",  # water
    5896: "cloud",
    7440: "cloud shadow",
    13664: "",  # snow or ice
}


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
@pytest.mark.parametrize(("band", "table"), [("BQA", COLLECTION_1), ("QA_PIXEL", COLLECTION_2)])
def test_quality_values_mean_what_the_handbook_says(
    band: str, table: dict[int, str], dtype: str
) -> None:
    values = np.array([list(table)], dtype=dtype)
    found = unseen_by_quality(band, values)[0]
    wrong = {
        value: table[value]
        for value, unseen in zip(table, found, strict=True)
        if unseen != bool(table[value])
    }
    assert wrong == {}


def test_a_quality_band_counts_though_it_is_no_channel(tmp_path: Path) -> None:
    layers = stack(red=5, BQA=spot(1, 2, 752, 672))
    layers[1, 3, 4] = np.nan
    path = make_scene(tmp_path / "s.tif", bands=["red", "BQA"], values=layers)
    found = seen(path, ["red"])
    assert {tuple(at) for at in np.argwhere(~found).tolist()} == {(1, 2), (3, 4)}


def test_nodata_in_a_quality_band_is_fill(tmp_path: Path) -> None:
    # As int16 the declared nodata has no quality bit set at all.
    layers = stack(red=5, BQA=spot(1, 2, -32768, 672))
    path = make_scene(
        tmp_path / "s.tif", bands=["red", "BQA"], values=layers, dtype="int16", nodata=-32768
    )
    assert {tuple(at) for at in np.argwhere(~seen(path, ["red"])).tolist()} == {(1, 2)}


# --- real files ------------------------------------------------------------------------------


def test_a_real_etm_scene_stacked_by_name_keeps_its_values_and_its_validity(
    tmp_path: Path, real_data: Path
) -> None:
    names = ["B3", "B1", "BQA", "B6_VCID_2"]
    files = [
        next((real_data / "landsat_ingest/le07_l1tp_195025_crop").glob(f"*_T1_{name}.TIF"))
        for name in names
    ]
    layers = []
    for file in files:
        with rasterio.open(file) as source:
            layers.append(source.read(1))
            profile = {"transform": source.transform, "crs": source.crs, "nodata": source.nodata}
    path = make_scene(
        tmp_path / "etm.tif", bands=names, values=np.stack(layers), dtype="int16", **profile
    )
    with Scene(path, None) as scene:
        pixels = pixels_of(scene, scene.grid.window)
        assert pixels.dtype == np.int16
        assert pixels.shape == (41, 41, 4)
        np.testing.assert_array_equal(pixels[..., scene.positions(["B1"])[0]], layers[1])
        found = scene.seen(pixels, ["B1", "B3"])
    cloud, shadow = layers[2] & 16 != 0, (layers[2] & 384) == 384
    np.testing.assert_array_equal(found, ~(cloud | shadow))


def test_a_single_real_band_without_a_name_can_be_given_one(real_data: Path) -> None:
    path = next((real_data / "landsat_ingest/le07_l1tp_195025_crop").glob("*_T1_B8.TIF"))
    with Scene(path, ["B8"]) as scene:
        assert scene.seen(pixels_of(scene, scene.grid.window), ["B8"]).all()
        areas = scene.grid.pixel_areas_km2(scene.grid.window)
        np.testing.assert_allclose(areas, 15**2 / 1e6, rtol=2e-3)


def test_real_collection_2_fill_and_cloud_are_unseen(tmp_path: Path, real_data: Path) -> None:
    folder = real_data / "landsat_ingest/l2sr_assets_coarse"
    names = ["SR_B3", "QA_PIXEL"]
    layers = []
    for name in names:
        with rasterio.open(next(folder.glob(f"*_{name}.TIF"))) as source:
            layers.append(source.read(1))
            transform, crs = source.transform, source.crs
    path = make_scene(
        tmp_path / "oli.tif",
        bands=names,
        values=np.stack(layers),
        dtype="uint16",
        transform=transform,
        crs=crs,
    )
    with Scene(path, None) as scene:
        found = scene.seen(pixels_of(scene, scene.grid.window), ["SR_B3"])
    fill, cloud = layers[1] & 1 != 0, layers[1] & 8 != 0
    # Shares as its description states them.
    assert fill.mean() == pytest.approx(0.48, abs=0.01)
    assert cloud.mean() == pytest.approx(0.29, abs=0.01)
    assert not found[fill | cloud].any()
    assert 0 < found.mean() < 1 - (fill | cloud).mean() + 1e-9


def test_real_sentinel_2_tiles_open_by_their_own_names(real_data: Path) -> None:
    for path in sorted((real_data / "himalaya_debris/images").glob("*.tif"))[:2]:
        with Scene(path, None) as scene:
            assert scene.bands[:2] == ["S2_B02_blue", "S2_B03_green"]
            assert scene.seen(pixels_of(scene, scene.grid.window), scene.bands).all()


def test_a_rotated_scene_keeps_its_transform(tmp_path: Path) -> None:
    transform = north_up() @ north_up().rotation(20)
    path = make_scene(
        tmp_path / "s.tif", bands=["red"], shape=(8, 8), values=1, transform=transform
    )
    with Scene(path, None) as scene:
        assert scene.grid.transform.almost_equals(transform)
        assert scene.grid.crs.to_epsg() == 32645
