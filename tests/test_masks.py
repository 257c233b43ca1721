"""Outlines become masks without losing holes, years, or ground."""

from __future__ import annotations

import csv
import logging
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from conftest import (
    Box,
    copy_settings,
    edit_yaml,
    ground,
    make_outlines,
    make_scene,
    north_up,
    set_scenes,
)
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.features import rasterize
from shapely import force_3d
from shapely.geometry import LineString, MultiPolygon, Point, Polygon

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.labels.burning import Burner
from glacier_core.labels.inventory import outlines_for, read_vector, years_of
from glacier_core.labels.masking import mask_scene, strips
from glacier_core.raster.grid import Grid

HERE = north_up()
GRID = Grid(64, 64, HERE, CRS.from_epsg(32645))


def pixels(*boxes: Box) -> NDArray[np.bool_]:
    """(64, 64), True in these rectangles."""
    out = np.zeros((64, 64), dtype=bool)
    for top, left, bottom, right in boxes:
        out[int(top) : int(bottom), int(left) : int(right)] = True
    return out


def burned(
    path: Path,
    *,
    year_field: str | None = None,
    scene_year: int | None = None,
    tolerance: float = 2,
    grid: Grid = GRID,
) -> NDArray[np.bool_]:
    """The mask of one vector file, in one piece."""
    outlines = outlines_for(
        path, grid, year_field=year_field, scene_year=scene_year, tolerance=tolerance
    )
    return Burner(outlines.polygons, grid).burn(grid.window) == 1


def one_scene(root: Path, **scene: object) -> Project:
    """A project with one scene of 64 x 64 pixels called A, and whatever outlines lie there."""
    copy_settings(root)
    make_scene(root / "data/raw/A.tif")
    set_scenes(root, {"A": {"img_path": "data/raw/A.tif", **scene}})
    return Project(root)


# --- shapes ----------------------------------------------------------------------------------


def test_a_nunatak_stays_rock(tmp_path: Path) -> None:
    path = make_outlines(tmp_path / "ice.shp", [ground(HERE, (8, 8, 40, 40), [(20, 20, 28, 28)])])
    expected = pixels((8, 8, 40, 40)) & ~pixels((20, 20, 28, 28))
    np.testing.assert_array_equal(burned(path), expected)


def test_every_part_of_a_multipolygon_is_burned_with_its_holes(tmp_path: Path) -> None:
    parts = MultiPolygon(
        [ground(HERE, (0, 0, 20, 20), [(5, 5, 10, 10)]), ground(HERE, (40, 40, 64, 64))]
    )
    path = make_outlines(tmp_path / "ice.gpkg", [parts])
    expected = pixels((0, 0, 20, 20), (40, 40, 64, 64)) & ~pixels((5, 5, 10, 10))
    np.testing.assert_array_equal(burned(path), expected)
    found = outlines_for(path, GRID, year_field=None, scene_year=None, tolerance=0)
    assert (found.read, found.burned, len(found.polygons)) == (1, 1, 2)


@pytest.mark.parametrize("suffix", [".shp", ".gpkg"])
def test_outlines_with_heights_are_burned_as_without(tmp_path: Path, suffix: str) -> None:
    shape = force_3d(ground(HERE, (8, 8, 40, 40), [(20, 20, 28, 28)]), 4500.0)
    path = make_outlines(tmp_path / f"ice{suffix}", [shape])
    assert read_vector(path).geometry.has_z.all()
    expected = pixels((8, 8, 40, 40)) & ~pixels((20, 20, 28, 28))
    np.testing.assert_array_equal(burned(path), expected)


@pytest.mark.parametrize("suffix", [".shp", ".gpkg", ".geojson", ".parquet"])
def test_every_vector_format_gives_the_same_mask(tmp_path: Path, suffix: str) -> None:
    shapes = [
        ground(HERE, (8.4, 8.3, 40.2, 40.7), [(20, 20, 28, 28)]),
        ground(HERE, (50, 2, 60, 9)),
    ]
    path = make_outlines(tmp_path / f"ice{suffix}", shapes, to="EPSG:4326", year=[2000, 2010])
    expected = rasterize(shapes, (64, 64), transform=HERE) == 1
    np.testing.assert_array_equal(burned(path), expected)
    kept = burned(path, year_field="year", scene_year=2000)
    assert kept[10, 10]
    assert not kept[55, 5]


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32644", "EPSG:3857", "EPSG:6933"])
def test_outlines_in_another_crs_land_on_the_same_pixels(tmp_path: Path, crs: str) -> None:
    # Vertices off the pixel centres, so that millimetres of reprojection decide nothing.
    shape = ground(HERE, (8.2, 8.2, 40.2, 40.2), [(20.2, 20.2, 28.2, 28.2)])
    path = make_outlines(tmp_path / "ice.gpkg", [shape.segmentize(60)], to=crs)
    expected = pixels((8, 8, 40, 40)) & ~pixels((20, 20, 28, 28))
    np.testing.assert_array_equal(burned(path), expected)


# --- broken shapes ---------------------------------------------------------------------------


def test_a_bow_tie_is_repaired_and_counted(tmp_path: Path) -> None:
    corners = [(10, 10), (42, 42), (42, 10), (10, 42)]  # (column, row), crossing in the middle
    bow = Polygon([HERE @ corner for corner in corners])
    whole = ground(HERE, (50, 50, 60, 60))
    path = make_outlines(tmp_path / "ice.shp", [bow, whole])
    found = outlines_for(path, GRID, year_field=None, scene_year=None, tolerance=0)
    assert (found.read, found.repaired, found.burned) == (2, 1, 2)
    area = sum(shape.area for shape in found.polygons) / 30**2
    # Both triangles, neither lost nor filled up to a square.
    assert area == pytest.approx(2 * 32 * 16 / 2 + 100)
    mask = Burner(found.polygons, GRID).burn(GRID.window)
    assert (mask[26, 12], mask[26, 38], mask[12, 26], mask[40, 26]) == (1, 1, 0, 0)


def test_ice_drawn_twice_stays_ice(tmp_path: Path) -> None:
    parts = MultiPolygon([ground(HERE, (8, 8, 30, 30)), ground(HERE, (20, 20, 50, 50))])
    assert not parts.is_valid
    path = make_outlines(tmp_path / "ice.gpkg", [parts])
    np.testing.assert_array_equal(burned(path), pixels((8, 8, 30, 30), (20, 20, 50, 50)))


def test_a_hole_that_reaches_out_of_its_glacier_makes_no_ice_there(tmp_path: Path) -> None:
    shape = ground(HERE, (8, 8, 40, 40), [(20, 30, 28, 50)])
    assert not shape.is_valid
    path = make_outlines(tmp_path / "ice.gpkg", [shape])
    expected = pixels((8, 8, 40, 40)) & ~pixels((20, 30, 28, 50))
    np.testing.assert_array_equal(burned(path), expected)


def test_outlines_with_null_geometry_are_passed_over(tmp_path: Path) -> None:
    path = make_outlines(tmp_path / "ice.gpkg", [ground(HERE, (8, 8, 40, 40)), None])
    np.testing.assert_array_equal(burned(path), pixels((8, 8, 40, 40)))


# --- files that cannot be used ---------------------------------------------------------------


def test_a_vector_file_without_crs_is_refused(tmp_path: Path) -> None:
    path = make_outlines(tmp_path / "ice.shp", [ground(HERE, (8, 8, 40, 40))])
    path.with_suffix(".prj").unlink()
    with pytest.raises(InputError, match=r"ice\.shp: has no coordinate reference system"):
        read_vector(path)


def test_an_empty_vector_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ice.gpkg"
    gpd.GeoDataFrame({"year": []}, geometry=[], crs="EPSG:32645").to_file(
        path, geometry_type="Polygon"
    )
    with pytest.raises(InputError, match=r"ice\.gpkg: holds no outlines"):
        read_vector(path)


@pytest.mark.parametrize(
    ("shape", "kind"), [(Point(0, 0), "Point"), (LineString([(0, 0), (1, 1)]), "LineString")]
)
def test_other_kinds_of_geometry_are_refused_by_name(
    tmp_path: Path, shape: Point | LineString, kind: str
) -> None:
    path = make_outlines(tmp_path / "ice.geojson", [shape], crs="EPSG:4326")
    with pytest.raises(InputError, match=rf"ice\.geojson: holds {kind}; expected polygons"):
        read_vector(path)


def test_a_table_without_geometry_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"year": [2000]}).to_parquet(tmp_path / "ice.parquet")
    (tmp_path / "ice.csv").write_text("year,area\n2000,1\n")
    for name in ("ice.parquet", "ice.csv"):
        with pytest.raises(InputError, match=name):
            read_vector(tmp_path / name)


def test_a_missing_and_a_broken_vector_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.shp: cannot be read.*no such file"):
        read_vector(tmp_path / "none.shp")
    (tmp_path / "ice.gpkg").write_bytes(b"no database")
    with pytest.raises(InputError, match=r"ice\.gpkg: cannot be read as a vector file"):
        read_vector(tmp_path / "ice.gpkg")


def test_a_missing_year_column_is_named_beside_those_there(tmp_path: Path) -> None:
    path = make_outlines(tmp_path / "ice.gpkg", [ground(HERE, (8, 8, 40, 40))], when=[2000])
    with pytest.raises(InputError, match=r"no column 'year' for the year; it has when"):
        burned(path, year_field="year", scene_year=2000)


# --- years -----------------------------------------------------------------------------------


def test_exactly_two_years_off_is_kept_and_three_is_not(tmp_path: Path) -> None:
    boxes: list[Box] = [(0, 0, 9, 9), (10, 0, 19, 9), (20, 0, 29, 9), (30, 0, 39, 9)]
    path = make_outlines(
        tmp_path / "ice.shp",
        [ground(HERE, box) for box in boxes],
        year=[1997, 1998, 2002, 2003],
    )
    found = outlines_for(path, GRID, year_field="year", scene_year=2000, tolerance=2)
    assert (found.read, found.left_out, found.burned) == (4, 2, 2)
    np.testing.assert_array_equal(
        burned(path, year_field="year", scene_year=2000), pixels(boxes[1], boxes[2])
    )


def test_outlines_of_unknown_year_are_kept_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_outlines(
        tmp_path / "ice.gpkg",
        [ground(HERE, (0, 0, 9, 9)), ground(HERE, (10, 0, 19, 9)), ground(HERE, (20, 0, 29, 9))],
        year=["unknown", None, "1975"],
    )
    mask = burned(path, year_field="year", scene_year=2000)
    np.testing.assert_array_equal(mask, pixels((0, 0, 9, 9), (10, 0, 19, 9)))
    assert "2 polygons have no readable year; kept" in caplog.text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([2000, 1998]), [2000, 1998]),
        (pd.Series([2000.0, np.nan]), [2000, np.nan]),
        (pd.Series([20001025, 19980101]), [2000, 1998]),
        (pd.Series(["2000-10-25", "Landsat 7, 1998"]), [2000, 1998]),
        (pd.Series(["20001025", "n/a"]), [2000, np.nan]),
        (pd.Series(pd.to_datetime(["2000-10-25", None])), [2000, np.nan]),
        (pd.Series(pd.to_datetime(["2000-10-25"], utc=True)), [2000]),
        (pd.Series(["1234567", "LE07140041"]), [np.nan, np.nan]),
        # The Randolph Glacier Inventory 6 writes 9999 for an unknown day, and for an unknown
        # date -9999999.
        (pd.Series(["20009999", "-9999999"]), [2000, np.nan]),
        (pd.Series([20009999, -9999999]), [2000, np.nan]),
    ],
)
def test_years_are_read_as_inventories_write_them(values: pd.Series, expected: list[float]) -> None:
    np.testing.assert_array_equal(years_of(values), expected)


@pytest.mark.parametrize("case", ["no year field", "no date"])
def test_without_year_field_or_date_every_outline_is_kept_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    project = one_scene(tmp_path, date=None if case == "no date" else "2000-10-25")
    if case == "no year field":
        edit_yaml(project.masking_path, **{"scenes.A.year_field": None})
    for name in ("clean_ice.shp", "debris.gpkg"):
        make_outlines(
            tmp_path / "data/raw/outlines" / name,
            [ground(HERE, (8, 8, 40, 40)), ground(HERE, (50, 50, 60, 60))],
            year=[1900, 2000],
        )
    row = mask_scene(project, "A")
    assert row["clean_ice_burned"] == 2
    assert row["clean_ice_left_out"] == 0
    assert "polygons of every year are kept" in caplog.text
    assert {"no year field": "no year field is set", "no date": "date is not known"}[
        case
    ] in caplog.text


def test_a_border_has_no_year_and_nobody_is_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = one_scene(tmp_path, border_path="data/raw/outlines/border.geojson")
    for name in ("clean_ice.shp", "debris.gpkg", "border.geojson"):
        make_outlines(
            tmp_path / "data/raw/outlines" / name,
            [ground(HERE, (8, 8, 40, 40))],
            to="EPSG:4326",
            year=[2000],
        )
    mask_scene(project, "A")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


# --- nothing there ---------------------------------------------------------------------------


def test_outlines_elsewhere_warn_with_both_extents_and_leave_the_mask_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_outlines(
        tmp_path / "ice.gpkg", [Polygon([(7, 45), (8, 45), (8, 46), (7, 46)])], crs="EPSG:4326"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert not burned(path).any()
    assert "no outline touches the scene" in caplog.text
    assert "7.0000 45.0000 to 8.0000 46.0000" in caplog.text
    assert "87.0001 28.0" in caplog.text


def test_metres_taken_for_degrees_warn_instead_of_failing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_outlines(tmp_path / "ice.gpkg", [ground(HERE, (8, 8, 40, 40))], crs="EPSG:4326")
    assert not burned(path).any()
    assert "no outline touches the scene" in caplog.text


# --- burning ---------------------------------------------------------------------------------


def test_strips_burn_the_same_as_one_piece(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    grid = Grid(1300, 90, HERE, CRS.from_epsg(32645))
    shapes = []
    for _ in range(60):
        row, col = random.uniform(0, 1300), random.uniform(0, 90)
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        reach = random.uniform(2, 400, 9)
        ring = [
            HERE @ (col + r * np.cos(a) / 8, row + r * np.sin(a))
            for a, r in zip(angles, reach, strict=True)
        ]
        shapes.append(Polygon(ring).buffer(0))
    path = make_outlines(tmp_path / "ice.gpkg", [shape for shape in shapes if shape.area])
    outlines = outlines_for(path, grid, year_field=None, scene_year=None, tolerance=0)
    whole = rasterize(outlines.polygons, (1300, 90), transform=HERE)
    burner = Burner(outlines.polygons, grid)
    pieces = [burner.burn(window) for window in strips(grid)]
    assert len(pieces) > 2
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert 0 < whole.mean() < 1


def test_masks_hold_a_channel_a_class_which_may_overlap(tmp_path: Path) -> None:
    project = one_scene(tmp_path)
    folder = tmp_path / "data/raw/outlines"
    make_outlines(folder / "clean_ice.shp", [ground(HERE, (0, 0, 40, 64))], year=[2000])
    make_outlines(folder / "debris.gpkg", [ground(HERE, (30, 0, 64, 64))], year=[2000])
    mask_scene(project, "A")
    mask = np.load(tmp_path / "data/masks/A/mask_A.npy")
    assert mask.dtype == np.uint8
    assert mask.shape == (64, 64, 2)
    np.testing.assert_array_equal(mask[..., 0], pixels((0, 0, 40, 64)))
    np.testing.assert_array_equal(mask[..., 1], pixels((30, 0, 64, 64)))


def test_the_border_is_one_inside_and_everywhere_where_there_is_none(tmp_path: Path) -> None:
    for name, border in (("with", "data/raw/outlines/border.geojson"), ("without", None)):
        root = tmp_path / name
        project = one_scene(root, border_path=border)
        folder = root / "data/raw/outlines"
        for file in ("clean_ice.shp", "debris.gpkg"):
            make_outlines(folder / file, [ground(HERE, (8, 8, 40, 40))], year=[2000])
        make_outlines(
            folder / "border.geojson",
            [ground(HERE, (0.2, 0.2, 64, 50.2)).segmentize(60)],
            to="EPSG:4326",
        )
        mask_scene(project, "A")
        found = np.load(root / "data/masks/A/border_A.npy")
        assert found.shape == (64, 64)
        assert found.dtype == np.uint8
        expected = pixels((0, 0, 64, 50)) if border else pixels((0, 0, 64, 64))
        np.testing.assert_array_equal(found, expected)


def test_the_metadata_name_files_sizes_and_counts(project: Project) -> None:
    name = "LE07_SITE0_20001025"
    row = mask_scene(project, name)
    with (project.mask_folder(name) / "mask_metadata.csv").open(newline="") as file:
        (written,) = csv.DictReader(file)
    assert written == {key: str(value) for key, value in row.items()}
    assert list(written)[:8] == [
        "id", "img", "mask", "border", "img_width", "img_height", "mask_width", "mask_height",
    ]  # fmt: skip
    for key in ("img", "mask", "border"):
        assert (project.root / written[key]).is_file()
    ice = 32 * 32 - 8 * 8
    assert written["clean_ice_pixels"] == str(ice)
    assert float(written["clean_ice_km2"]) == pytest.approx(ice * 9e-4, rel=2e-3)
    assert (written["clean_ice_polygons"], written["clean_ice_burned"]) == ("3", "1")


def test_masking_again_replaces_the_old_result_with_the_same_bytes(project: Project) -> None:
    name = "LE07_SITE0_20001025"
    folder = project.mask_folder(name)

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    mask_scene(project, name)
    first = content()
    (folder / "stale.npy").write_bytes(b"of an older run")
    mask_scene(project, name)
    assert content() == first
    assert len(first) == 3


def test_a_class_that_cannot_be_read_leaves_nothing_behind(project: Project) -> None:
    (project.root / "data/raw/outlines/debris.gpkg").unlink()
    with pytest.raises(InputError, match=r"debris\.gpkg"):
        mask_scene(project, "LE07_SITE0_20001025")
    assert not (project.root / "data/masks").exists()


def test_rotated_and_south_up_scenes_are_burned_where_they_lie(tmp_path: Path) -> None:
    for transform in (
        HERE @ Affine.rotation(30) @ Affine.scale(0.5, 1.5),
        Affine(30, 0, HERE.c, 0, 30, HERE.f),
    ):
        grid = Grid(64, 64, transform, CRS.from_epsg(32645))
        shape = ground(transform, (8, 8, 40, 40), [(20, 20, 28, 28)])
        path = make_outlines(tmp_path / "ice.gpkg", [shape])
        expected = pixels((8, 8, 40, 40)) & ~pixels((20, 20, 28, 28))
        np.testing.assert_array_equal(burned(path, grid=grid), expected)


# --- real data -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:More than one layer")
def test_real_debris_outlines_give_back_the_experts_labels_exactly(real_data: Path) -> None:
    folder = real_data / "himalaya_debris"
    labels = sorted((folder / "labels").glob("debris_tile*.tif"))
    assert labels
    for label in labels:
        with rasterio.open(label) as source:
            expected, grid = source.read(1), Grid.of(source)
        found = burned(folder / "outlines/debris.gpkg", grid=grid)
        np.testing.assert_array_equal(found, expected == 1, err_msg=label.name)


def test_a_dissolved_inventory_on_both_sides_of_a_scene_does_not_touch_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sides = MultiPolygon([ground(HERE, (0, -90, 64, -70)), ground(HERE, (0, 90, 64, 120))])
    path = make_outlines(tmp_path / "ice.gpkg", [sides])
    assert not burned(path).any()
    assert "no outline touches the scene" in caplog.text


def test_a_scene_whose_outlines_are_all_of_another_time_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_outlines(tmp_path / "ice.shp", [ground(HERE, (8, 8, 40, 40))], year=[1990])
    assert not burned(path, year_field="year", scene_year=2000).any()
    assert "all 1 outlines near the scene are of other years than 2000" in caplog.text
