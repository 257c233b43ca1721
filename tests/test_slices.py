"""Slices show every pixel once, on the ground where they say, and ignore what was not seen."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import (
    Box,
    copy_settings,
    edit_yaml,
    glacier,
    ground,
    make_outlines,
    make_project,
    make_scene,
    north_up,
    set_scenes,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Transformer
from shapely.geometry import Point

from glacier_core.config import Project
from glacier_core.dataset.slicing import IGNORED, SlicedScene, slice_scene
from glacier_core.errors import InputError
from glacier_core.labels.masking import mask_scene

SIZE, OVERLAP = 32, 4


def prepared(
    root: Path,
    layers: Mapping[str, NDArray[Any]],
    *,
    channels: list[str],
    transform: Affine | None = None,
    border: Box | None = None,
    **scene: Any,
) -> Project:
    """A project with one masked scene A of these bands; ice in its upper left quarter."""
    transform = transform or north_up()
    copy_settings(root)
    values = np.stack(list(layers.values()))
    make_scene(
        root / "data/raw/A.tif",
        bands=list(layers),
        values=values,
        transform=transform,
        **{"dtype": str(values.dtype), **scene},
    )
    folder = root / "data/raw/outlines"
    height, width = values.shape[1:]
    ice = ground(transform, (0, 0, height // 2, width // 2))
    crs = scene.get("crs", "EPSG:32645")
    for name in ("clean_ice.shp", "debris.gpkg"):
        make_outlines(folder / name, [ice], crs=crs, year=[2000])
    entry: dict[str, Any] = {"img_path": "data/raw/A.tif"}
    if border is not None:
        make_outlines(folder / "border.gpkg", [ground(transform, border)], crs=crs)
        entry["border_path"] = "data/raw/outlines/border.gpkg"
    set_scenes(root, {"A": entry})
    edit_yaml(root / "conf/postprocess.yaml", channels=channels)
    project = Project(root)
    mask_scene(project, "A")
    return project


def numbered(height: int, width: int) -> NDArray[np.int32]:
    """A layer in which every pixel has a number of its own, from 1."""
    return np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)


def image(project: Project, k: int) -> NDArray[Any]:
    return np.load(project.slice_folder("A") / f"slice_A_img_{k}.npy")


def label(project: Project, k: int) -> NDArray[np.uint8]:
    return np.load(project.slice_folder("A") / f"slice_A_label_{k}.npy")


def put_together(project: Project, sliced: SlicedScene, shape: tuple[int, int]) -> NDArray[Any]:
    """The labels of all slices laid back on the scene; where slices overlap they must agree."""
    whole = np.full((*shape, len(sliced.classes)), 99, dtype=np.uint8)
    for record in sliced.slices:
        part = whole[record.window.slices]
        if record.img is None:
            new = np.full_like(part, IGNORED)
        else:
            new = label(project, record.k)[: record.height, : record.width]
        assert ((part == 99) | (part == new)).all()
        part[:] = new
    return whole


# --- footprints ------------------------------------------------------------------------------

TRANSFORMS = {
    "north up": (north_up(), "EPSG:32645"),
    "south up": (Affine(30, 0, 500_010, 0, 30, 3_100_020), "EPSG:32645"),
    "rotated": (north_up() @ Affine.rotation(25), "EPSG:32645"),
    "rectangular": (Affine(515.1, 0, 500_010, 0, -516.9, 3_100_020), "EPSG:32645"),
    "southern hemisphere": (north_up(500_010, 6_000_000), "EPSG:32719"),
    "degrees": (north_up(80, 35, 0.0003), "EPSG:4326"),
    "polar": (north_up(-200_000, -2_000_000), "EPSG:3413"),
}


@pytest.mark.parametrize("case", TRANSFORMS)
def test_the_slice_with_a_marker_pixel_is_the_one_whose_footprint_holds_its_place(
    tmp_path: Path, case: str
) -> None:
    transform, crs = TRANSFORMS[case]
    project = prepared(
        tmp_path, {"n": numbered(50, 90)}, channels=["n"], transform=transform, crs=crs
    )
    slice_scene(project, "A")
    frame = gpd.read_file(project.slice_folder("A") / "slices.geojson")
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    for row, col in [(0, 0), (0, 89), (49, 0), (49, 89), (10, 60), (30, 30), (25, 45)]:
        place = Point(to_degrees.transform(*(transform @ (col + 0.5, row + 0.5))))
        for k, shape in zip(frame["k"], frame.geometry, strict=True):
            shown = bool((image(project, k) == row * 90 + col + 1).any())
            assert shown == shape.contains(place), (row, col, k)


def test_a_footprint_keeps_to_its_pixels_along_the_whole_edge(tmp_path: Path) -> None:
    # 150 km wide and far from the zone's middle, a straight line in degrees would be off by more
    # than a pixel.
    transform = north_up(700_000, 7_000_000, 1500)
    prepared(tmp_path, {"n": numbered(100, 100)}, channels=["n"], transform=transform)
    edit_yaml(tmp_path / "params.yaml", **{"slice.size": 100})
    (shape,) = slice_scene(Project(tmp_path), "A").footprints
    to_degrees = Transformer.from_crs("EPSG:32645", "EPSG:4326", always_xy=True)
    for along in np.arange(0.5, 100):
        for col, row, inside in [(along, 0.02, True), (along, -0.02, False)]:
            at = Point(to_degrees.transform(*(transform @ (col, row))))
            assert shape.contains(at) == inside


def test_slices_geojson_opens_in_geopandas_and_agrees_with_the_files(tmp_path: Path) -> None:
    layers = {"n": numbered(70, 50)}
    layers["n"][:20, :20] = -1
    project = prepared(tmp_path, layers, channels=["n"], nodata=-1)
    sliced = slice_scene(project, "A")
    path = project.slice_folder("A") / "slices.geojson"
    frame = gpd.read_file(path)
    assert frame.crs.to_epsg() == 4326
    assert frame.geometry.is_valid.all()
    assert frame.geometry.exterior.is_ccw.all()
    assert len(frame) == len(sliced.slices) == 6
    for record in sliced.slices:
        stored = label(project, record.k)
        valid = stored[..., 0] != IGNORED
        assert record.valid_fraction == valid.mean()
        assert record.class_fractions["clean_ice"] == (stored[valid][:, 0] == 1).mean()
        assert record.mean["n"] == pytest.approx(image(project, record.k)[valid].mean())
    content = json.loads(path.read_text())
    assert content["scene"]["source"] == "data/raw/A.tif"
    assert content["scene"]["bands"] == ["n"]
    assert SlicedScene.read(path) == sliced


def test_means_leave_out_what_an_unused_band_did_not_see(tmp_path: Path) -> None:
    spare = np.full((32, 32), 10, dtype=np.float32)
    spare[:16] = -9999
    layers = {"used": np.full((32, 32), 5, dtype=np.float32), "spare": spare}
    project = prepared(tmp_path, layers, channels=["used"], nodata=-9999)
    (record,) = slice_scene(project, "A").slices
    assert record.valid_fraction == 1
    assert record.mean == {"used": 5, "spare": 10}


# --- every pixel -----------------------------------------------------------------------------


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(height=st.integers(1, 80), width=st.integers(1, 80), overlap=st.integers(0, 31))
def test_every_pixel_of_the_scene_is_in_a_slice_with_its_own_value_and_label(
    tmp_path: Path, height: int, width: int, overlap: int
) -> None:
    root = tmp_path / "p"
    shutil.rmtree(root, ignore_errors=True)
    values = numbered(height, width)
    project = prepared(root, {"n": values}, channels=["n"])
    edit_yaml(root / "params.yaml", **{"slice.overlap": overlap})
    project = Project(root)
    sliced = slice_scene(project, "A")
    whole = np.zeros_like(values)
    for record in sliced.slices:
        stored = image(project, record.k)
        assert stored.shape == (SIZE, SIZE, 1)
        whole[record.window.slices] = stored[: record.height, : record.width, 0]
    np.testing.assert_array_equal(whole, values)
    mask = np.load(project.mask_folder("A") / "mask_A.npy")
    np.testing.assert_array_equal(put_together(project, sliced, (height, width)), mask)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_a_scene_smaller_than_a_slice_is_padded_with_ignored_pixels(
    tmp_path: Path, dtype: str
) -> None:
    layers = {name: np.full((20, 11), 7, dtype=dtype) for name in ("red", "nir")}
    project = prepared(tmp_path, layers, channels=["red"], nodata=9)
    (record,) = slice_scene(project, "A").slices
    stored, labels = image(project, 0), label(project, 0)
    assert stored.shape == (SIZE, SIZE, 2)
    assert labels.shape == (SIZE, SIZE, 2)
    assert (record.height, record.width, record.valid_fraction) == (20, 11, 1)
    assert (stored[:20, :11] == 7).all()
    assert (labels[:20, :11] != IGNORED).all()
    labels[:20, :11] = IGNORED
    assert (labels == IGNORED).all()
    padding = np.concatenate([stored[20:].ravel(), stored[:, 11:].ravel()])
    assert np.isnan(padding).all() if stored.dtype.kind == "f" else (padding == 9).all()


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("uint8", "uint8"), ("int16", "int16"), ("uint16", "uint16"), ("float64", "float32")],
)
def test_slices_keep_the_scenes_integers(tmp_path: Path, dtype: str, kept: str) -> None:
    values = np.arange(1, 33 * 33 + 1).reshape(33, 33) % 200 + 1
    project = prepared(tmp_path, {"n": values.astype(dtype)}, channels=["n"])
    slice_scene(project, "A")
    assert image(project, 0).dtype == kept
    np.testing.assert_array_equal(image(project, 0)[..., 0], values[:32, :32])


# --- what is ignored -------------------------------------------------------------------------


def test_255_stands_exactly_where_nothing_is_known(tmp_path: Path) -> None:
    shape = (60, 60)
    random = np.random.default_rng(3)
    layers = {
        "B1": random.integers(1, 255, shape).astype(np.float32),
        "B2": random.integers(1, 255, shape).astype(np.float32),
        "B7": random.integers(1, 255, shape).astype(np.float32),
        "slope": random.integers(0, 60, shape).astype(np.float32),
        "BQA": np.full(shape, 672, dtype=np.float32),
    }
    unknown = np.zeros(shape, dtype=bool)

    def hide(band: str, rows: slice, value: float, *, used: bool = True) -> None:
        layers[band][rows, 3:57] = value
        unknown[rows, 3:57] |= used

    hide("B1", slice(2, 4), 0)  # a scan-line gap in one band
    hide("B2", slice(5, 7), 0)  # and elsewhere in the next
    hide("B2", slice(9, 10), np.nan)
    hide("slope", slice(12, 14), np.inf)
    hide("BQA", slice(16, 18), 752)  # cloud
    hide("BQA", slice(19, 20), 928)  # cloud shadow
    hide("BQA", slice(21, 22), np.nan)
    hide("B7", slice(25, 30), 0, used=False)  # not a channel
    hide("slope", slice(31, 33), 0, used=False)  # flat ground
    hide("BQA", slice(34, 36), 1696, used=False)  # snow
    unknown[50:] = unknown[:, 55:] = True
    project = prepared(
        tmp_path,
        layers,
        channels=["B1", "B2", "slope"],
        border=(0, 0, 50, 55),
        nodata=float("nan"),
    )
    sliced = slice_scene(project, "A")
    labels = put_together(project, sliced, shape)
    mask = np.load(project.mask_folder("A") / "mask_A.npy")
    np.testing.assert_array_equal(labels, np.where(unknown[..., None], IGNORED, mask))


def test_unseen_floats_are_nan_and_unseen_integers_keep_their_nodata(tmp_path: Path) -> None:
    for dtype, expected in (("float32", np.nan), ("int16", -9999)):
        values = np.full((32, 32), 5, dtype=dtype)
        values[3, 4] = -9999
        project = prepared(tmp_path / dtype, {"n": values}, channels=["n"], nodata=-9999)
        assert slice_scene(project, "A").nodata == [-9999]
        assert image(project, 0)[3, 4, 0] == pytest.approx(expected, nan_ok=True)
        assert image(project, 0)[4, 4, 0] == 5


def test_slices_in_which_nothing_was_seen_are_listed_and_not_written(tmp_path: Path) -> None:
    values = np.full((32, 88), np.nan, dtype=np.float32)
    values[:, 60:] = 5
    project = prepared(tmp_path, {"n": values}, channels=["n"])
    sliced = slice_scene(project, "A")
    assert [record.valid_fraction for record in sliced.slices] == [0, 0, 28 / 32]
    assert [record.img for record in sliced.slices][:2] == [None, None]
    files = {path.name for path in project.slice_folder("A").iterdir()}
    assert files == {"slices.geojson", "slice_A_img_2.npy", "slice_A_label_2.npy"}
    assert sliced.slices[0].mean == {"n": None}


# --- errors ----------------------------------------------------------------------------------


def test_a_scene_without_a_channel_is_refused_and_nothing_is_written(project: Project) -> None:
    edit_yaml(project.root / "conf/postprocess.yaml", channels=["B1", "SWIR"])
    mask_scene(project, "LE07_SITE0_20001025")
    with pytest.raises(InputError, match=r"LE07_SITE0_20001025\.tif: has no band SWIR"):
        slice_scene(project, "LE07_SITE0_20001025")
    assert not (project.root / "data/slices").exists()


def test_masks_that_are_missing_or_of_another_grid_are_refused(tmp_path: Path) -> None:
    project = prepared(tmp_path, {"n": numbered(40, 40)}, channels=["n"])
    make_scene(tmp_path / "data/raw/A.tif", bands=["n"], values=numbered(40, 41)[None])
    with pytest.raises(InputError, match=r"40 x 40 pixels, but the scene has 40 x 41.*mask` again"):
        slice_scene(project, "A")
    shutil.rmtree(project.mask_folder("A"))
    with pytest.raises(InputError, match=r"mask_A\.npy: no such file; run `glacier mask` first"):
        slice_scene(project, "A")


def test_a_damaged_scene_leaves_the_old_slices_as_they_were(tmp_path: Path) -> None:
    project = prepared(tmp_path, {"n": numbered(80, 80)}, channels=["n"], compress="deflate")
    slice_scene(project, "A")
    before = content(project.slice_folder("A"))
    path = tmp_path / "data/raw/A.tif"
    with rasterio.open(path) as source:
        block = int(source.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    whole = bytearray(path.read_bytes())
    whole[block : block + 500] = bytes(500)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"A\.tif: damaged or truncated"):
        slice_scene(project, "A")
    assert content(project.slice_folder("A")) == before
    assert [path.name for path in (tmp_path / "data/slices").iterdir()] == ["A"]


# --- stopped and run again -------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def little_room() -> None:
    """No file may grow beyond 20 kB: what the system answers then is what a full disk gives."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_the_real_command_without_room_says_so_in_one_line_and_keeps_the_old_result(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path, places=1)
    name = "LE07_SITE0_20001025"
    assert glacier(tmp_path, "mask").returncode == 0
    assert glacier(tmp_path, "slice").returncode == 0
    old = content(project.slice_folder(name))
    edit_yaml(tmp_path / "params.yaml", **{"slice.overlap": 0})

    failed = glacier(tmp_path, "slice", "--scene", name, limit=little_room)
    assert failed.returncode == 1, failed.stderr
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"data/slices/{name}: no room left to write it" in errors[0]
    assert "Traceback" not in failed.stderr
    assert content(project.slice_folder(name)) == old
    assert [path.name for path in (tmp_path / "data/slices").iterdir()] == [name]

    assert glacier(tmp_path, "slice").returncode == 0
    new = content(project.slice_folder(name))
    assert len(new) == 2 * 4 + 1
    slice_scene(Project(tmp_path), name)
    assert content(project.slice_folder(name)) == new


def test_masking_without_room_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    make_project(tmp_path, places=1)
    edit_yaml(tmp_path / "params.yaml", seed=2)
    make_scene(tmp_path / "data/raw/scenes/LE07_SITE0_20001025.tif", shape=(300, 300))
    failed = glacier(tmp_path, "mask", limit=little_room)
    assert failed.returncode == 1, failed.stderr
    assert "error: data/masks/LE07_SITE0_20001025: no room left" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list((tmp_path / "data/masks").iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    project = prepared(tmp_path, {"n": numbered(40, 40)}, channels=["n"])
    left = tmp_path / "data/slices/.A.partial-4194305"
    left.mkdir(parents=True)
    (left / "slice_A_img_0.npy").write_bytes(b"half")
    slice_scene(project, "A")
    assert [path.name for path in (tmp_path / "data/slices").iterdir()] == ["A"]


def test_slicing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    project = prepared(tmp_path, {"n": numbered(40, 70)}, channels=["n"])
    slice_scene(project, "A")
    first = content(project.slice_folder("A"))
    slice_scene(project, "A")
    assert content(project.slice_folder("A")) == first


# --- memory ----------------------------------------------------------------------------------

_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_megabytes(root: Path, *arguments: str) -> float:
    """Peak memory of the real command."""
    command = str(Path(sys.executable).with_name("glacier"))
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, command, "-q", *arguments],
        cwd=root, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return int(done.stdout) / 1024


def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    project = make_project(tmp_path, places=1)
    name = next(iter(project.masking.scenes))
    edit_yaml(tmp_path / "params.yaml", **{"slice.size": 256})
    peaks = []
    # 98 and 221 MB as float32: both fill the cache of blocks that every scene is read through.
    for size in (1280, 1920):
        make_scene(tmp_path / project.scene(name).img_path, shape=(size, size))
        peaks.append(
            [peak_megabytes(tmp_path, step, "--scene", name) for step in ("mask", "slice")]
        )
    (mask, cut), (large_mask, large_cut) = peaks
    assert large_mask - mask < 20
    assert large_cut - cut < 40


# --- masks of another scene or other classes ---------------------------------------------------


def test_a_scene_that_moved_since_it_was_masked_is_not_sliced(tmp_path: Path) -> None:
    project = make_project(tmp_path, places=1)
    name = next(iter(project.masking.scenes))
    mask_scene(project, name)
    image = tmp_path / project.scene(name).img_path
    make_scene(image, transform=north_up(west=400_300))
    with pytest.raises(InputError, match=r"lies elsewhere .* run `glacier mask` again"):
        slice_scene(project, name)


def test_classes_in_another_order_than_they_were_burned_are_not_sliced(tmp_path: Path) -> None:
    project = make_project(tmp_path, places=1)
    name = next(iter(project.masking.scenes))
    mask_scene(project, name)
    edit_yaml(project.masking_path, classes=["debris", "clean_ice"])
    edit_yaml(tmp_path / "conf/postprocess.yaml", classes=["debris", "clean_ice"])
    with pytest.raises(InputError, match="was burned for classes"):
        slice_scene(Project(tmp_path), name)


def test_each_number_of_a_slice_is_a_column_of_its_own_for_a_gis(tmp_path: Path) -> None:
    project = make_project(tmp_path, places=1)
    name = next(iter(project.masking.scenes))
    mask_scene(project, name)
    record = slice_scene(project, name).slices[0]
    row = gpd.read_file(project.slice_folder(name) / "slices.geojson").iloc[0]
    assert row["source"] == project.scene(name).img_path
    assert row["fraction_clean_ice"] == pytest.approx(record.class_fractions["clean_ice"])
    assert row["mean_B1"] == pytest.approx(record.mean["B1"])
    assert (row["row"], row["col"], row["valid_fraction"]) == (0, 0, record.valid_fraction)
