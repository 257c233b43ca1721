"""What an analyst corrected becomes the label: there, then, and nowhere else."""

from __future__ import annotations

import csv
import datetime
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import yaml
from click.testing import CliRunner
from conftest import (
    CORNER,
    REPOSITORY,
    UTM,
    Box,
    copy_settings,
    edit_yaml,
    glacier,
    ground,
    likely_values,
    make_outlines,
    make_project,
    make_scene,
    north_up,
    set_scenes,
)
from dvc.repo import Repo
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.features import rasterize
from shapely.geometry import MultiPolygon, Point, Polygon
from workspace import run, small_workspace

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.labels.burning import Canvas
from glacier_core.labels.masking import mask_scene, strips
from glacier_core.raster.bands import ETM_STACK
from glacier_core.raster.grid import Grid

HERE = north_up()
ICE: Box = (8, 8, 40, 40)
HOLE: Box = (20, 20, 28, 28)
DEBRIS: Box = (44, 8, 60, 56)
"""What the inventories say of every scene here, in every year."""
DAY = "2024-05-01"
IN_2000, IN_2002, IN_2003, UNDATED = "LE07_20001025", "LE07_20020101", "LE07_20031231", "LE07_X"


def pixels(*boxes: Box) -> NDArray[np.bool_]:
    """(64, 64), True in these rectangles."""
    out = np.zeros((64, 64), dtype=bool)
    for top, left, bottom, right in boxes:
        out[int(top) : int(bottom), int(left) : int(right)] = True
    return out


INVENTORY = np.stack([pixels(ICE) & ~pixels(HOLE), pixels(DEBRIS)], axis=-1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One place seen at four dates, one of them not known; the inventories hold for all."""
    copy_settings(tmp_path)
    dates = {IN_2000: "2000-10-25", IN_2002: "2002-01-01", IN_2003: "2003-12-31", UNDATED: None}
    for seed, name in enumerate(dates):
        values = likely_values(ETM_STACK, (64, 64), seed)
        make_scene(tmp_path / f"data/raw/{name}.tif", values=values, nodata=float("nan"))
    folder = tmp_path / "data/raw/outlines"
    make_outlines(folder / "clean_ice.shp", [ground(HERE, ICE, [HOLE])])
    make_outlines(folder / "debris.gpkg", [ground(HERE, DEBRIS)])
    make_outlines(folder / "border.gpkg", [ground(HERE, (0, 0, 64, 60))])
    set_scenes(
        tmp_path,
        {
            name: {"img_path": f"data/raw/{name}.tif", "date": day, "year_field": None}
            for name, day in dates.items()
        },
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(path: Path, said: Sequence[tuple[str | None, Any]], **columns: Any) -> Path:
    """A file with polygons (or boxes of pixels) and their classes."""
    shapes = [ground(HERE, what) if isinstance(what, tuple) else what for _, what in said]
    to = columns.pop("to", None)
    return make_outlines(path, shapes, to=to, **{"class": [name for name, _ in said]}, **columns)


def outlines_of(path: Path, scene: str, day: str) -> Path:
    """Outlines of the inventories' ice, in the layers that `glacier outlines` writes."""
    shapes = [ground(HERE, ICE, [HOLE]), ground(HERE, DEBRIS)]
    about = {"scene": scene, "date": day, "model": "models:/glacier-unet/1"}
    glaciers = gpd.GeoDataFrame(
        {"glac_id": ["G1", "G2"], **about}, geometry=[s.buffer(30) for s in shapes], crs=UTM
    )
    classes = gpd.GeoDataFrame(
        {
            "glac_id": ["G1", "G2"],
            "class": ["clean_ice", "debris"],
            "area_km2": [s.area / 1e6 for s in shapes],
            **about,
            "confidence": [0.9, 0.8],
        },
        geometry=shapes,
        crs=UTM,
    )
    glaciers.to_file(path, layer="glaciers")
    classes.to_file(path, layer="classes")
    styles = pd.DataFrame({"f_table_name": ["classes"], "styleQML": ["<qgis/>"]})
    pyogrio.write_dataframe(styles, path, layer="layer_styles", append=False)
    return path


def said(*words: str | Path, code: int = 0) -> str:
    """What the command line says, after checking its exit code."""
    done = CliRunner().invoke(main, ["-q", *map(str, words)])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


def take(file: Path, *options: str | Path, scene: str = IN_2000, author: str = "A. Sherpa",
         day: str = DAY, code: int = 0) -> str:  # fmt: skip
    """`glacier review import`."""
    return said("review", "import", file, "--scene", scene, "--author", author,
                "--date", day, *options, code=code)  # fmt: skip


def masked(root: Path, scene: str = IN_2000) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A scene's mask and border after `glacier mask`."""
    said("mask", "--scene", scene)
    folder = root / "data/masks" / scene
    return np.load(folder / f"mask_{scene}.npy"), np.load(folder / f"border_{scene}.npy")


def labelled(root: Path, scene: str = IN_2000) -> NDArray[np.uint8]:
    """A scene's labels after `glacier slice`, put together again."""
    said("slice", "--scene", scene)
    folder = root / "data/slices" / scene
    out = np.full((64, 64, 2), 77, dtype=np.uint8)
    for k, row, col in ((k, *divmod(k, 3)) for k in range(9)):
        top, left = (0, 28, 32)[row], (0, 28, 32)[col]
        label = np.load(folder / f"slice_{scene}_label_{k}.npy")
        out[top : top + 32, left : left + 32] = label
    return out


def stored(root: Path) -> list[str]:
    """Names of the stored reviews."""
    return sorted(p.relative_to(root / "data/reviews").as_posix()
                  for p in (root / "data/reviews").rglob("*.gpkg"))  # fmt: skip


def mask_of(**boxes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(64, 64, 2): the inventories' masks where no class is given, overpainted in order."""
    out = INVENTORY.copy()
    for name, where in boxes.items():
        out[where] = False
        if name in ("clean_ice", "debris"):
            out[where, ("clean_ice", "debris").index(name)] = True
    return out


# --- round trip ------------------------------------------------------------------------------


def test_an_outline_corrected_in_qgis_becomes_the_label_exactly_there(root: Path) -> None:
    path = outlines_of(root / "glaciers.gpkg", IN_2000, "2000-10-25")
    before, _ = masked(root)
    np.testing.assert_array_equal(before, INVENTORY)
    # The nunatak filled, the tongue cut off, and part of the debris is nobody knows what.
    frame = gpd.read_file(path, layer="classes")
    frame.loc[frame["class"] == "clean_ice", "geometry"] = ground(HERE, (8, 8, 30, 40))
    frame.loc[frame["class"] == "debris", "geometry"] = ground(HERE, (44, 8, 60, 40))
    unknown = gpd.GeoDataFrame(
        {"class": ["ignore"]}, geometry=[ground(HERE, (44, 40, 60, 56))], crs=UTM
    )
    pd.concat([frame, unknown], ignore_index=True).to_file(path, layer="classes")

    told = take(path, "--whole")
    assert f"data/reviews/{IN_2000}/{DAY}_a-sherpa.gpkg: 3 polygons, clean_ice 0.63" in told
    assert "no DVC repository" in told
    after, border = masked(root)
    expected = np.stack([pixels((8, 8, 30, 40)), pixels((44, 8, 60, 40))], axis=-1)
    np.testing.assert_array_equal(after, expected)
    ignored = pixels((44, 40, 60, 56))
    np.testing.assert_array_equal(border == 0, ignored)
    label = labelled(root)
    np.testing.assert_array_equal(label == 255, np.repeat(ignored[..., None], 2, axis=-1))
    np.testing.assert_array_equal(label[~ignored], expected[~ignored])


def test_a_few_polygons_change_nothing_outside_of_them(root: Path) -> None:
    wrong = [("debris", (10, 10, 20, 20)), ("background", (50, 0, 64, 20)), ("clean_ice", (0, 50, 9, 64))]  # fmt: skip
    take(drawn(root / "wrong.gpkg", wrong))
    mask, border = masked(root)
    expected = mask_of(
        debris=pixels((10, 10, 20, 20)),
        background=pixels((50, 0, 64, 20)),
        clean_ice=pixels((0, 50, 9, 64)),
    )
    np.testing.assert_array_equal(mask, expected)
    assert border.all()
    with (root / f"data/masks/{IN_2000}/mask_metadata.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["reviews"] == "1"
    reviewed = 100 + 14 * 20 + 9 * 14
    assert float(row["reviewed_km2"]) == pytest.approx(reviewed * 9e-4, rel=2e-3)
    assert row["debris_pixels"] == str(expected[..., 1].sum())


def test_without_reviews_the_inventories_stand(root: Path) -> None:
    assert not (root / "data/reviews").exists()
    mask, border = masked(root)
    np.testing.assert_array_equal(mask, INVENTORY)
    assert border.all()
    row = mask_scene(Project(root), IN_2000)
    assert (row["reviews"], row["reviewed_km2"]) == (0, 0.0)


def test_a_review_drawn_in_degrees_lands_on_the_same_pixels(root: Path) -> None:
    shape = ground(HERE, (10.2, 10.2, 20.2, 20.2)).segmentize(60)
    take(drawn(root / "wrong.geojson", [("debris", shape)], to="EPSG:4326"))
    mask, _ = masked(root)
    np.testing.assert_array_equal(mask, mask_of(debris=pixels((10, 10, 20, 20))))


def test_within_says_background_inside_its_polygons_only(root: Path) -> None:
    area = make_outlines(root / "area.gpkg", [ground(HERE, (0, 0, 64, 30))])
    file = drawn(root / "wrong.gpkg", [("clean_ice", (8, 8, 12, 12))])
    assert "all else is background on the 1.7" in take(file, "--within", area)
    mask, _ = masked(root)
    np.testing.assert_array_equal(
        mask, mask_of(background=pixels((0, 0, 64, 30)), clean_ice=pixels((8, 8, 12, 12)))
    )


def test_what_was_reviewed_is_known_outside_of_the_border_too(root: Path) -> None:
    edit_yaml(
        root / "conf/masking_paths.yaml",
        **{f"scenes.{IN_2000}.border_path": "data/raw/outlines/border.gpkg"},
    )
    np.testing.assert_array_equal(masked(root)[1], pixels((0, 0, 64, 60)))
    take(drawn(root / "w.gpkg", [("background", (0, 50, 9, 64)), ("ignore", (20, 50, 30, 64))]))
    expected = (pixels((0, 0, 64, 60)) | pixels((0, 50, 9, 64))) & ~pixels((20, 50, 30, 64))
    np.testing.assert_array_equal(masked(root)[1], expected)


# --- which scenes, which order ---------------------------------------------------------------


def test_a_review_holds_for_scenes_of_its_time_and_no_other(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take(drawn(root / "wrong.gpkg", [("debris", (10, 10, 20, 20))]))
    corrected = mask_of(debris=pixels((10, 10, 20, 20)))
    caplog.set_level("INFO")
    for scene, expected in (
        (IN_2000, corrected), (IN_2002, corrected), (IN_2003, INVENTORY), (UNDATED, INVENTORY),
    ):  # fmt: skip
        row = mask_scene(Project(root), scene)
        mask = np.load(root / f"data/masks/{scene}/mask_{scene}.npy")
        np.testing.assert_array_equal(mask, expected, err_msg=scene)
        told = f"{scene}: corrected by {root}/data/reviews/{IN_2000}/{DAY}_a-sherpa.gpkg"
        assert (row["reviews"] == 1) == (told in caplog.text) == (expected is corrected)


def test_the_years_of_reviews_follow_the_tolerance_of_inventories(root: Path) -> None:
    take(drawn(root / "wrong.gpkg", [("debris", (10, 10, 20, 20))]))
    edit_yaml(root / "params.yaml", **{"mask.year_tolerance": 3})
    assert masked(root, IN_2003)[0][15, 15].tolist() == [0, 1]
    edit_yaml(root / "params.yaml", **{"mask.year_tolerance": 0})
    assert masked(root, IN_2002)[0][15, 15].tolist() == [1, 0]


def test_a_review_of_an_undated_scene_holds_for_that_scene_alone(root: Path) -> None:
    take(drawn(root / "wrong.gpkg", [("debris", (10, 10, 20, 20))]), scene=UNDATED)
    np.testing.assert_array_equal(
        masked(root, UNDATED)[0], mask_of(debris=pixels((10, 10, 20, 20)))
    )
    for scene in (IN_2000, IN_2002):
        np.testing.assert_array_equal(masked(root, scene)[0], INVENTORY)


def test_what_a_whole_review_did_not_see_is_left_to_the_inventories(root: Path) -> None:
    """Under the clouds of one scene, another may have seen the ice that the inventories know."""
    values = likely_values(ETM_STACK, (64, 64), 0)
    values[:, 8:40, 8:24] = np.nan
    make_scene(root / f"data/raw/{IN_2000}.tif", values=values, nodata=float("nan"))
    take(drawn(root / "new.gpkg", [("debris", (44, 8, 60, 30))]), "--whole")
    mask, _ = masked(root, IN_2002)
    expected = mask_of(background=~pixels((8, 8, 40, 24)), debris=pixels((44, 8, 60, 30)))
    np.testing.assert_array_equal(mask, expected)
    masked(root)
    label = labelled(root)
    np.testing.assert_array_equal(label[..., 0] == 255, pixels((8, 8, 40, 24)))
    assert not (label[..., 0] == 1).any()


def test_a_review_elsewhere_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path, places=2)
    monkeypatch.chdir(tmp_path)
    take(drawn(tmp_path / "w.gpkg", [("debris", (10, 10, 20, 20))]), scene="LE07_SITE0_20001025")
    rows = [mask_scene(Project(tmp_path), f"LE07_SITE{k}_20001025") for k in range(2)]
    assert [row["reviews"] for row in rows] == [1, 0]


@pytest.mark.parametrize("first", [0, 1])
def test_the_later_review_wins_whichever_came_in_first(root: Path, first: int) -> None:
    both = [
        (drawn(root / "a.gpkg", [("debris", (0, 0, 20, 20))]), "Z. Early", "2024-05-01"),
        (drawn(root / "b.gpkg", [("clean_ice", (10, 10, 30, 30))]), "A. Late", "2024-05-02"),
    ]
    for file, author, day in (both[first], both[1 - first]):
        take(file, author=author, day=day, scene=IN_2000 if author == "A. Late" else IN_2002)
    mask, _ = masked(root)
    expected = mask_of(debris=pixels((0, 0, 20, 20)), clean_ice=pixels((10, 10, 30, 30)))
    np.testing.assert_array_equal(mask, expected)


def test_of_two_reviews_of_one_day_the_later_name_wins(root: Path) -> None:
    take(drawn(root / "b.gpkg", [("clean_ice", (0, 0, 30, 30))]), author="B")
    take(drawn(root / "a.gpkg", [("debris", (10, 10, 40, 40))]), author="A")
    mask, _ = masked(root)
    np.testing.assert_array_equal(
        mask, mask_of(debris=pixels((10, 10, 40, 40)), clean_ice=pixels((0, 0, 30, 30)))
    )


def test_strips_are_painted_as_one_piece(root: Path) -> None:  # noqa: ARG001
    random = np.random.default_rng(3)
    grid = Grid(1300, 90, HERE, CRS.from_epsg(32645))
    shapes, values = [], random.integers(1, 5, 80).astype(np.uint8)
    for _ in values:
        row, col, *reach = random.uniform(0, [1300, 90, 300, 40])
        shapes.append(ground(HERE, (row, col, row + reach[0], col + reach[1])))
    canvas = Canvas(np.array(shapes, dtype=object), values, grid)
    pieces = np.concatenate([canvas.paint(window) for window in strips(grid)])
    whole = rasterize(zip(shapes, values.tolist(), strict=True), (1300, 90), transform=HERE)
    np.testing.assert_array_equal(pieces, whole)
    assert len(list(strips(grid))) > 2
    assert set(np.unique(pieces)) == {0, 1, 2, 3, 4}


# --- what is stored --------------------------------------------------------------------------


def test_a_stored_review_says_who_when_where_and_what(root: Path) -> None:
    file = drawn(
        root / "w.geojson", [("debris", (10, 10, 20, 20)), ("ignore", (30, 30, 34, 34))],
        to="EPSG:4326", confidence=[1, 2],
    )  # fmt: skip
    take(file, "--note", "lake ice", author="Ünal Öz / Ko.")
    (name,) = stored(root)
    assert name == f"{IN_2000}/{DAY}_unal-oz-ko.gpkg"
    path = root / "data/reviews" / name
    assert pyogrio.list_layers(path).tolist() == [["review", "MultiPolygon"]]
    frame = gpd.read_file(path)
    assert frame.crs == CRS.from_user_input(UTM)
    assert frame.drop(columns="geometry").to_dict("records") == [
        {"order": k, "class": kind, "author": "Ünal Öz / Ko.", "reviewed_on": DAY,
         "scene": IN_2000, "scene_date": "2000-10-25", "note": "lake ice"}
        for k, kind in ((1, "debris"), (2, "ignore"))
    ]  # fmt: skip


@pytest.mark.parametrize(
    "author", ["../../../tmp/x", "/etc/passwd", ".", "-rf *", "a\nb", "x" * 500]
)
def test_no_author_leaves_the_folder_of_reviews(root: Path, author: str) -> None:
    file = drawn(root / "w.gpkg", [("debris", (10, 10, 20, 20))])
    before = {p for p in root.rglob("*") if p.is_file()}
    code = 2 if author == "." else 0
    told = take(file, author=author, code=code)
    new = [p for p in root.rglob("*") if p.is_file() and p not in before]
    if code:
        assert "--author" in told
        assert new == []
    else:
        (path,) = new
        assert path.parent == root / "data/reviews" / IN_2000
        assert re.fullmatch(rf"{DAY}_[a-z0-9][a-z0-9-]*\.gpkg", path.name)
        assert len(path.name) < 100


def test_the_same_review_has_the_same_bytes_in_another_process_later(root: Path) -> None:
    file = drawn(root / "w.gpkg", [("debris", (10, 10, 20, 20))])
    take(file, "--whole")
    path = root / "data/reviews" / stored(root)[0]
    first = path.read_bytes()
    assert pyogrio.get_gdal_config_option("OGR_CURRENT_DATE") is None
    path.unlink()
    done = glacier(root, "review", "import", str(file), "--scene", IN_2000,
                   "--author", "A. Sherpa", "--date", DAY, "--whole")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == first


def test_the_same_review_again_is_there_already_and_another_is_refused(root: Path) -> None:
    file = drawn(root / "w.gpkg", [("debris", (10, 10, 20, 20))])
    take(file)
    path = root / "data/reviews" / stored(root)[0]
    first = path.read_bytes()
    assert "is there already, 1 polygons" in take(file)
    other = drawn(root / "w2.gpkg", [("debris", (10, 10, 21, 20))])
    told = take(other, code=2)
    assert f"{DAY}_a-sherpa.gpkg: is there already, another review of {IN_2000}" in told
    assert "Remove it" in told
    assert "another --date" in told
    assert path.read_bytes() == first
    take(other, day="2024-05-02")
    assert len(stored(root)) == 2


def test_broken_polygons_are_repaired_and_counted(root: Path) -> None:
    corners = [(10, 10), (42, 42), (42, 10), (10, 42)]  # (column, row), crossing in the middle
    bow = Polygon([HERE @ corner for corner in corners])
    assert "2 polygons (1 repaired)" in take(
        drawn(root / "w.gpkg", [("debris", bow), ("ignore", (50, 50, 60, 60))])
    )
    mask, _ = masked(root)
    assert (mask[26, 12, 1], mask[26, 38, 1], mask[12, 26, 1], mask[40, 26, 1]) == (1, 1, 0, 0)


def test_the_layer_is_review_else_classes_else_the_one_that_is_named(root: Path) -> None:
    file = outlines_of(root / "f.gpkg", IN_2000, "2000-10-25")
    assert "clean_ice" in take(file, author="classes")
    gpd.GeoDataFrame({"class": ["ignore"]}, geometry=[ground(HERE, HOLE)], crs=UTM).to_file(
        file, layer="mine"
    )
    assert "1 polygons, ignore" in take(file, "--layer", "mine", author="named")
    gpd.GeoDataFrame({"class": ["background"]}, geometry=[ground(HERE, HOLE)], crs=UTM).to_file(
        file, layer="review"
    )
    assert "1 polygons, background" in take(file, author="review")


@pytest.mark.parametrize("left", ["clean_ice", "debris"])
def test_slivers_between_neighbours_are_let_pass_and_the_later_has_them(
    root: Path, left: str
) -> None:
    # Drawn without snapping: 18 m over 40 pixels of border are 24 pixels' area.
    boxes = ground(HERE, (10, 10, 50, 30.6)), ground(HERE, (10, 30, 50, 50))
    assert boxes[0].intersection(boxes[1]).area > 20 * 900
    right = {"clean_ice": "debris", "debris": "clean_ice"}[left]
    take(drawn(root / "w.gpkg", [(left, boxes[0]), (right, boxes[1])]))
    mask, _ = masked(root)
    np.testing.assert_array_equal(
        mask, mask_of(**{left: pixels((10, 10, 50, 30)), right: pixels((10, 30, 50, 50))})
    )


# --- what is refused -------------------------------------------------------------------------

_BOX = ground(HERE, (10, 10, 20, 20))
_TOMORROW = (datetime.date.today() + datetime.timedelta(days=1)).isoformat()


def _one(root: Path, said: Sequence[tuple[str | None, Any]], **columns: Any) -> Path:
    return drawn(root / "file.gpkg", said, **columns)


def _layers(root: Path) -> Path:
    for name in ("north", "south"):
        gpd.GeoDataFrame({"class": ["debris"]}, geometry=[_BOX], crs=UTM).to_file(
            root / "file.gpkg", layer=name
        )
    return root / "file.gpkg"


def _bytes(root: Path) -> Path:
    (root / "file.gpkg").write_bytes(b"no database")
    return root / "file.gpkg"


def _no_crs(root: Path) -> Path:
    path = drawn(root / "file.shp", [("debris", _BOX)])
    path.with_suffix(".prj").unlink()
    return path


def _empty(root: Path) -> Path:
    frame = gpd.GeoDataFrame({"class": pd.Series([], dtype=str)}, geometry=[], crs=UTM)
    frame.to_file(root / "file.gpkg", geometry_type="Polygon")
    return root / "file.gpkg"


_TWO = [("debris", (10, 10, 30, 30)), ("clean_ice", (29, 0, 40, 64))]
_FAR = ground(north_up(CORNER[0] + 60_000), (10, 10, 20, 20))
_DEBRIS = [("debris", (10, 10, 20, 20))]

REFUSED: dict[str, tuple[Any, list[str], str]] = {
    "not there": (lambda r: r / "file.gpkg", [], r"file\.gpkg: cannot be read.*no such file"),
    "not there, with a layer": (
        lambda r: r / "file.gpkg", ["--layer", "a"], r"file\.gpkg: cannot be read.*no such file",
    ),
    "unreadable": (_bytes, [], r"file\.gpkg: cannot be read as a vector file"),
    "no CRS": (_no_crs, [], r"file\.shp: has no coordinate reference system"),
    "points": (
        lambda r: _one(r, [("debris", Point(HERE @ (5, 5)))]), [],
        r"file\.gpkg: holds Point; expected polygons only",
    ),
    "empty": (_empty, [], r"file\.gpkg: holds no outlines"),
    "no class column": (
        lambda r: make_outlines(r / "file.gpkg", [_BOX], kind=["debris"]), [],
        r"file\.gpkg: has no column 'class' \(it has kind\); expected one that holds clean_ice, "
        r"debris, background, ignore",
    ),
    "unknown class": (
        lambda r: _one(r, [*_DEBRIS, ("rock", (30, 30, 40, 40)), ("Debris", (50, 50, 60, 60))]), [],
        r"file\.gpkg: features 2, 3 have the class 'Debris', 'rock'; the classes are clean_ice, "
        r"debris, background, ignore",
    ),
    "no class": (
        lambda r: _one(r, [*_DEBRIS, (None, (30, 30, 40, 40)), ("", (50, 50, 60, 60))]), [],
        r"file\.gpkg: features 2, 3 have no class",
    ),
    "classes are numbers": (
        lambda r: make_outlines(r / "file.gpkg", [_BOX], **{"class": [1]}), [],
        r"file\.gpkg: features 1 have the class 1; the classes are",
    ),
    "layer not there": (
        _layers, ["--layer", "east"], r"file\.gpkg: has no layer 'east'; it has north, south",
    ),
    "several layers": (
        _layers, [],
        r"file\.gpkg: has the layers north, south, and none is called review or classes; "
        r"choose one with --layer",
    ),
    "elsewhere": (
        lambda r: _one(r, [("debris", _FAR)]), [],
        rf"file\.gpkg: no polygon touches scene {IN_2000}\. Polygons: 87\.6.*scene: 87\.0",
    ),
    "metres taken for degrees": (
        lambda r: make_outlines(r / "file.gpkg", [_BOX], crs="EPSG:4326", **{"class": ["debris"]}),
        [], r"file\.gpkg: no polygon touches scene",
    ),
    "scene unknown": (
        lambda r: _one(r, _DEBRIS), ["--scene", "LE07_Y"],
        r"masking_paths\.yaml: no scene 'LE07_Y'; there are: LE07_20001025",
    ),
    "before the scene": (
        lambda r: _one(r, _DEBRIS), ["--date", "2000-10-24"],
        r"--date: 2000-10-24 is before the scene LE07_20001025 was taken, 2000-10-25",
    ),
    "in the future": (
        lambda r: _one(r, _DEBRIS), ["--date", _TOMORROW], rf"--date: {_TOMORROW} lies in the future",
    ),
    "no date": (
        lambda r: _one(r, _DEBRIS), ["--date", "yesterday"], r"--date: expected YYYY-MM-DD",
    ),
    "two classes on one ground": (
        lambda r: _one(r, [("ignore", (50, 50, 60, 60)), *_TWO]), [],
        r"file\.gpkg: features of different classes lie on one ground: 2 \(debris\) and 3 "
        r"\(clean_ice\)\. Cut one out",
    ),
    "one in another": (
        lambda r: _one(r, [("clean_ice", (0, 0, 40, 40)), ("background", (10, 10, 12, 12))]), [],
        r"file\.gpkg: features of different.*1 \(clean_ice\) and 2 \(background\)",
    ),
    "another date": (
        lambda r: _one(r, _DEBRIS, date=["2002-01-01"]), [],
        r"file\.gpkg: feature 1 was drawn on the date '2002-01-01', by its column 'date', but "
        r"scene LE07_20001025 has 2000-10-25",
    ),
    "another date, as a date": (
        lambda r: _one(r, [*_DEBRIS, ("debris", (0, 0, 4, 4))],
                       date=[None, pd.Timestamp("2002-01-01")]), [],
        r"file\.gpkg: feature 2 was drawn on the date '2002-01-01.*has 2000-10-25",
    ),
    "another scene": (
        lambda r: _one(r, _DEBRIS, scene=["LE07_20020101"]), [],
        r"file\.gpkg: feature 1 was drawn on the scene 'LE07_20020101'.*but scene LE07_20001025",
    ),
    "whole and within": (
        lambda r: _one(r, _DEBRIS), ["--whole", "--within", "area.gpkg"],
        r"--whole and --within area\.gpkg: give one of them",
    ),
    "within not there": (
        lambda r: _one(r, _DEBRIS), ["--within", "area.gpkg"], r"area\.gpkg: cannot be read",
    ),
    "author without letters": (
        lambda r: _one(r, _DEBRIS), ["--author", "शेर्पा"], r"--author: 'शेर्पा' has no Latin letter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_review_is_refused_in_one_line_and_not_stored(
    root: Path, case: str
) -> None:
    make, options, message = REFUSED[case]
    told = take(make(root), *options, code=2)
    assert re.search(message, told), told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not (root / "data/reviews").exists()


def test_within_elsewhere_or_of_several_layers_is_refused(root: Path) -> None:
    file = drawn(root / "w.gpkg", _DEBRIS)
    far = make_outlines(root / "far.gpkg", [_FAR])
    assert "far.gpkg: no polygon touches" in take(file, "--within", far, code=2)
    _layers(root)
    told = take(file, "--within", "file.gpkg", code=2)
    assert "file.gpkg: has the layers north, south; give --within a file of one" in told
    assert not (root / "data/reviews").exists()


def test_dates_that_agree_are_read_as_files_write_them(root: Path) -> None:
    for k, value in enumerate(["2000-10-25", pd.Timestamp("2000-10-25"), "20001025"]):
        file = drawn(root / f"{k}.gpkg", _DEBRIS, date=[value], scene=[IN_2000])
        take(file, author=str(k))
    assert len(stored(root)) == 3


def test_a_damaged_or_missing_review_stops_masking(root: Path) -> None:
    take(drawn(root / "w.gpkg", _DEBRIS))
    path = root / "data/reviews" / stored(root)[0]
    known = path.with_name(f"{path.name}.dvc")
    known.touch()
    content = path.read_bytes()
    path.write_bytes(content[:3000])
    told = said("mask", "--scene", IN_2003, code=2)
    assert f"{path.name}: cannot be read as a review" in told
    path.unlink()
    told = said("mask", "--scene", IN_2003, code=2)
    assert f"{path.name}: no such file, but {known.name} names it; run `dvc pull`" in told
    assert "run `dvc pull`" in take(drawn(root / "w.gpkg", _DEBRIS), code=2)
    assert not (root / "data/masks").exists()


def test_a_review_with_a_class_that_is_gone_stops_masking(root: Path) -> None:
    take(drawn(root / "w.gpkg", _DEBRIS))
    content = yaml.safe_load((root / "conf/masking_paths.yaml").read_text())
    content["classes"] = ["clean_ice"]
    for scene in content["scenes"].values():
        scene["mask_paths"] = {"clean_ice": "data/raw/outlines/clean_ice.shp"}
    (root / "conf/masking_paths.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"a-sherpa\.gpkg: has the class debris, which"):
        mask_scene(Project(root), IN_2000)


def test_a_multipolygon_in_a_parquet_file_is_taken_over(root: Path) -> None:
    parts = MultiPolygon([ground(HERE, (0, 0, 9, 9)), ground(HERE, (50, 50, 60, 64))])
    take(drawn(root / "w.parquet", [("debris", parts)]))
    mask, _ = masked(root)
    np.testing.assert_array_equal(mask, mask_of(debris=pixels((0, 0, 9, 9), (50, 50, 60, 64))))


# --- DVC -------------------------------------------------------------------------------------

RAN = re.compile(r"Running stage '([^']+)'")


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=T", "-c", "user.email=t@example.org",
        "commit", "-qm", message)  # fmt: skip


def test_a_review_burns_masks_again_and_cuts_only_its_scene(tmp_path: Path) -> None:
    work = tmp_path / "work"
    make_project(work, places=2)
    kept = ("data/reviews/README.md", "data/predicted/README.md")
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", *kept):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, work / name)
    run(work, "git", "init", "-q", "-b", "main")
    run(work, "dvc", "add", "data/raw")
    first, second = (f"LE07_SITE{k}_20001025" for k in range(2))
    slices = [f"slice@{first}", f"slice@{second}"]
    stages = [f"mask@{first}", f"mask@{second}", *slices]
    assert set(RAN.findall(run(work, "dvc", "repro", *slices))) == set(stages)
    commit(work, "first")
    drawn(work / "w.gpkg", [("clean_ice", (50, 0, 64, 20))])
    order = ("glacier", "-q", "review", "import", "w.gpkg", "--scene", first,
             "--author", "A. Sherpa", "--date", DAY)  # fmt: skip
    place = f"data/reviews/{first}/{DAY}_a-sherpa.gpkg"
    told = run(work, *order)
    assert told.startswith(f"{place}: 1 polygons, clean_ice 0.25")
    assert f"next: `git add {place}.dvc` and commit, then `dvc repro`" in told
    (work / "w.gpkg").unlink()
    assert run(work, "git", "status", "--porcelain", "-uall").split() == ["??", f"{place}.dvc"]
    assert set(RAN.findall(run(work, "dvc", "repro", *slices))) == set(stages) - {slices[1]}
    mask = np.load(work / f"data/masks/{first}/mask_{first}.npy")
    assert mask[55, 15].tolist() == [1, 0]
    assert "up to date" in run(work, "dvc", "status", *stages)
    assert RAN.findall(run(work, "dvc", "repro", *slices)) == []
    # What may lie beside the reviews burns nothing.
    (work / f"data/reviews/{first}/.w.partial-1.gpkg").touch()
    (work / f"{place}-wal").touch()
    assert "up to date" in run(work, "dvc", "status", *stages)
    # What DVC finds by itself is what `dvc push` and `dvc pull` carry.
    found = {stage.path_in_repo for stage in Repo(str(work)).index.stages}
    assert found >= {"data/raw.dvc", f"{place}.dvc"}


def test_a_review_is_kept_where_dvc_fails_and_taken_up_by_the_next_try(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / ".dvc").mkdir()
    file = drawn(root / "w.gpkg", _DEBRIS)
    told = take(file, code=1)
    place = f"data/reviews/{IN_2000}/{DAY}_a-sherpa.gpkg"
    assert f"{place}: is stored, but DVC does not take it" in told
    assert f"run `dvc add {place}`" in told
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    told = take(file)
    assert "is there already, 1 polygons" in told
    assert (root / f"{place}.dvc").is_file()


@pytest.mark.slow
def test_in_the_whole_pipeline_a_review_reruns_what_it_changes(tmp_path: Path) -> None:
    folder = small_workspace(tmp_path / "work")
    run(folder, "dvc", "repro")
    scene = "LE07_SIM01_20001025"
    before = np.load(folder / f"data/masks/{scene}/mask_{scene}.npy")
    with rasterio.open(folder / f"data/raw/demo/scenes/{scene}.tif") as source:
        wrong = ground(source.transform, (5, 5, 40, 40))
        make_outlines(folder / "data/w.gpkg", [wrong], crs=source.crs, **{"class": ["debris"]})
    run(folder, "glacier", "-q", "review", "import", "data/w.gpkg", "--scene", scene,
        "--author", "A. Sherpa")  # fmt: skip
    ran = RAN.findall(run(folder, "dvc", "repro"))
    masks = {f"mask@{p.name}" for p in (folder / "data/masks").iterdir()}
    assert {stage for stage in ran if stage.startswith("mask@")} == masks
    assert {stage for stage in ran if stage.startswith("slice@")} == {f"slice@{scene}"}
    assert "postprocess" in ran
    after = np.load(folder / f"data/masks/{scene}/mask_{scene}.npy")
    assert (after[5:40, 5:40] == [0, 1]).all()
    changed = (after != before).any(axis=-1)
    assert changed.any()
    assert not changed[40:].any()
    assert "up to date" in run(folder, "dvc", "status")
    place = next((folder / "data/reviews" / scene).glob("*.gpkg"))
    run(folder, "dvc", "remote", "add", "--default", "storage", str(tmp_path / "remote"))
    run(folder, "dvc", "push")
    commit(folder, "a review")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(folder), str(clone))
    run(clone, "dvc", "pull")
    assert (clone / place.relative_to(folder)).read_bytes() == place.read_bytes()
    assert "up to date" in run(clone, "dvc", "status")
    assert RAN.findall(run(clone, "dvc", "repro")) == []
