"""A new scene is accepted, rejected or put before somebody, for reasons that name the numbers."""

from __future__ import annotations

import csv
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from conftest import edit_yaml, make_scene
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.landsat.quality import (
    ACCEPTED,
    COLUMNS,
    REJECTED,
    REVIEW,
    TABLE,
    Quality,
    check_scene,
    read_table,
    unusable,
    write_table,
)
from glacier_core.landsat.swath import Swath
from glacier_core.raster.bands import ETM_STACK

NAME = "LE07_140041_20051025"
CLEAR, CLOUD = 672, 672 | 1 << 4
"""BQA by the Collection 1 handbook."""
GREEN, SWIR = ETM_STACK.index("B2"), ETM_STACK.index("B5")
BQA = ETM_STACK.index("BQA")


def bare(shape: tuple[int, int] = (64, 64)) -> NDArray[np.float32]:
    """Bare ground, seen everywhere: (bands, height, width)."""
    values = np.full((len(ETM_STACK), *shape), 60, dtype=np.float32)
    values[SWIR], values[BQA] = 120, CLEAR
    return values


def look(project: Project, values: NDArray[Any], name: str = NAME, **more: Any) -> Quality:
    path = make_scene(
        project.root / f"data/raw/landsat/{name}.tif", values=values, nodata=float("nan")
    )
    return check_scene(Project(project.root), path, **more)


def limits(project: Project, **changes: float) -> None:
    """No limit but these."""
    usual: dict[str, float] = {"max_unseen": 1.0, "max_snow": 1.0, "max_saturated": 1.0}
    usual |= {"max_drift": 1e9} | changes
    path = project.root / "params.yaml"
    edit_yaml(path, **{f"landsat.{name}": value for name, value in usual.items()})


def train_on(project: Project, **means: float) -> None:
    """Statistics of a training set whose deviations are all 10."""
    path = project.root / project.postprocess.statistics_path
    path.parent.mkdir(parents=True)
    content = {"bands": list(means), "means": list(means.values())}
    path.write_text(json.dumps(content | {"standard_deviations": [10.0] * len(means)}))


def test_a_clear_scene_of_bare_ground_is_accepted(project: Project) -> None:
    found = look(project, bare(), product="P")
    assert (found.verdict, found.reasons) == (ACCEPTED, [])
    assert (found.covered, found.no_value, found.snow, found.saturated) == (0, 0, 0, 0)
    assert (found.scene, found.product, found.date) == (NAME, "P", "2005-10-25")
    assert found.path == f"data/raw/landsat/{NAME}.tif"


def test_every_share_is_that_of_a_count_by_hand_across_strips(project: Project) -> None:
    shape = (300, 64)
    values, random = bare(shape), np.random.default_rng(5)
    cloud, gap = random.random(shape) < 0.2, random.random(shape) < 0.1
    snow, bright = random.random(shape) < 0.3, random.random(shape) < 0.15
    values[BQA][cloud] = CLOUD
    values[ETM_STACK.index("B3")][gap] = 0
    values[GREEN][snow], values[SWIR][snow] = 200, 20
    values[ETM_STACK.index("B7")][bright] = 255
    found = look(project, values)
    seen = ~cloud & ~gap
    # The inventories of `make_project`, a nunatak in them.
    away = np.ones(shape, dtype=bool)
    away[8:40, 8:40] = away[44:60, 8:56] = False
    away[20:28, 20:28] = True
    assert found.no_value == pytest.approx(gap.mean())
    assert found.covered == pytest.approx((cloud & ~gap).mean())
    assert found.snow == pytest.approx((snow & seen & away).sum() / (seen & away).sum())
    assert found.saturated == pytest.approx((bright & seen).sum() / seen.sum())


def test_snow_on_known_glaciers_does_not_count(project: Project) -> None:
    values = bare()
    for rows, cols in ((slice(8, 40), slice(8, 40)), (slice(44, 60), slice(8, 56))):
        values[GREEN, rows, cols], values[SWIR, rows, cols] = 200, 20
    nunatak = 64  # 8 x 8 pixels that no outline holds
    away = 64 * 64 - (32 * 32 - nunatak) - 16 * 48
    assert look(project, values).snow == pytest.approx(nunatak / away)
    values[GREEN], values[SWIR] = 200, 20
    assert look(project, values).snow == 1.0


def test_with_derived_channels_snow_and_the_swath_are_those_of_the_bands(project: Project) -> None:
    values = bare()
    _snow(values)
    values[GREEN][:16], values[SWIR][:16] = 40, 120
    plain = look(project, values, "LE07_L1TP_140041_20001025_1.tif")
    channels = ["ndsi", "red_swir", "steepness", "position_500m"]
    edit_yaml(project.root / "conf/postprocess.yaml", channels=channels)
    found = look(Project(project.root), values, "LE07_L1TP_140041_20001025_2.tif")
    assert 0 < (plain.snow or 0) < 1
    assert found.snow == pytest.approx(plain.snow, abs=0.02)
    assert (found.covered, found.verdict) == (plain.covered, plain.verdict)


def test_reflectance_above_one_is_saturated(project: Project) -> None:
    edit_yaml(project.root / "conf/postprocess.yaml", channels=["green", "swir16"])
    values = np.full((2, 64, 64), 0.3, dtype=np.float32)
    values[0, :16] = 1.02
    path = make_scene(project.root / f"{NAME}.tif", bands=["green", "swir16"], values=values)
    assert check_scene(Project(project.root), path).saturated == 0.25


def test_without_green_and_swir_nobody_tells_snow(project: Project) -> None:
    edit_yaml(project.root / "conf/postprocess.yaml", channels=["B1", "B3"])
    limits(project, max_snow=0.0)
    found = look(project, bare())
    assert (found.snow, found.verdict, found.row()["snow"]) == (None, ACCEPTED, "")


def _clouds(values: NDArray[np.float32]) -> None:
    values[BQA, :16] = CLOUD
    values[0, 16:24] = 0


def _snow(values: NDArray[np.float32]) -> None:
    values[GREEN], values[SWIR] = 200, 20


def _saturated(values: NDArray[np.float32]) -> None:
    values[0, :16] = 255


def _nothing(values: NDArray[np.float32]) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "limit", "above", "below", "verdict", "reason"),
    [
        (_clouds, "max_unseen", 0.37, 0.38, REJECTED,
         "38 % of the swath not seen (25 % cloud or shadow), more than 37 %"),
        (_snow, "max_snow", 0.98, 1.0, REVIEW,
         "snow on 100 % of the ground away from known glaciers, more than 98 %"),
        (_saturated, "max_saturated", 0.24, 0.25, REVIEW,
         "25 % of the seen pixels saturated, more than 24 %"),
        (_nothing, "max_drift", 3.9, 4.0, REVIEW,
         "far from the training data: B1 by 4.0 deviations, more than 3.9"),
    ],
)  # fmt: skip
def test_each_limit_alone_leads_to_its_verdict_and_says_the_number(
    project: Project, spoil: Any, limit: str, above: float, below: float, verdict: str, reason: str
) -> None:
    train_on(project, B1=20, B2=60)
    values = bare()
    spoil(values)
    limits(project, **{limit: above})
    found = look(project, values)
    assert (found.verdict, found.reasons) == (verdict, [reason])
    limits(project, **{limit: below})
    found = look(project, values)
    assert (found.verdict, found.reasons) == (ACCEPTED, [])


def test_drift_is_the_distance_from_the_training_means_in_deviations(project: Project) -> None:
    train_on(project, B1=45, B5=120, B9=7)
    values = bare()
    values[0, :32] = 0  # a gap: its 0 counts for no mean
    found = look(project, values)
    assert found.drift == pytest.approx({"B1": 1.5, "B5": 0.0})
    assert found.worst_drift == ("B1", pytest.approx(1.5))
    assert found.row()["worst_drift"] == "B1 1.50"
    assert json.loads(found.row()["drift"]) == {"B1": 1.5, "B5": 0.0}


def test_without_a_training_set_there_is_no_drift(project: Project) -> None:
    limits(project, max_drift=1e-9)
    found = look(project, bare())
    assert (found.drift, found.worst_drift, found.verdict) == ({}, None, ACCEPTED)


def test_a_scene_that_was_nowhere_seen_is_rejected_without_drift(project: Project) -> None:
    train_on(project, B1=20)
    values = bare()
    values[BQA] = CLOUD
    found = look(project, values)
    assert found.verdict == REJECTED
    assert "100 % of the swath not seen (100 % cloud or shadow)" in found.reasons[0]
    assert (found.snow, found.saturated, found.drift) == (None, 0.0, {})


def test_a_scene_without_a_date_needs_review(project: Project) -> None:
    found = look(project, bare(), name="LE07_X")
    assert (found.verdict, found.reasons, found.date) == (REVIEW, ["no date in its name"], None)


def test_a_scene_without_the_channels_is_rejected_and_the_reason_names_them(
    project: Project,
) -> None:
    path = make_scene(project.root / f"{NAME}.tif", bands=["red", "green"], values=1.0)
    found = check_scene(project, path, product="P")
    assert found.verdict == REJECTED
    assert "has no band B1, B2" in found.reasons[0]
    assert (found.product, found.path, found.date) == ("P", f"{NAME}.tif", "2005-10-25")


@pytest.mark.parametrize("keep", [0, 0.6])
def test_a_damaged_scene_is_rejected_and_the_reason_says_so(project: Project, keep: float) -> None:
    path = make_scene(project.root / f"{NAME}.tif", values=bare())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    found = check_scene(project, path)
    assert found.verdict == REJECTED
    assert f"{NAME}.tif: " in found.reasons[0]
    assert ("damaged" if keep else "cannot be opened") in found.reasons[0]


def test_inventories_that_cannot_be_read_hinder_no_look(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    (project.root / "data/raw/outlines/debris.gpkg").write_bytes(b"")
    assert look(project, bare()).verdict == ACCEPTED
    assert "debris.gpkg: cannot be read" in caplog.text


# --- the imaged swath -------------------------------------------------------------------------

CHANNELS = ["green", "swir16", "elevation"]


def tilted(shape: tuple[int, int], degrees: float = 12) -> NDArray[np.bool_]:
    """Where a descending orbit's scene lies in its grid: a parallelogram, its corners cut off."""
    rows, cols = np.indices(shape)
    across = (cols - shape[1] / 2) + np.tan(np.radians(degrees)) * (rows - shape[0] / 2)
    down = (rows - shape[0] / 2) - np.tan(np.radians(degrees)) * (cols - shape[1] / 2)
    inside: NDArray[np.bool_] = (abs(across) < 0.38 * shape[1]) & (abs(down) < 0.38 * shape[0])
    return inside


def broken(shape: tuple[int, int], degrees: float = 12) -> NDArray[np.bool_]:
    """Gaps of a scan-line corrector: stripes across the swath, narrow in its middle."""
    rows, cols = np.indices(shape)
    along = rows - np.tan(np.radians(degrees)) * cols
    width = 1 + 13 * abs(cols - shape[1] / 2) / (shape[1] / 2)
    gaps: NDArray[np.bool_] = along % 33 < width
    return gaps


def ingested(
    project: Project, swath: NDArray[np.bool_], gap: NDArray[np.bool_], cloud: NDArray[np.bool_]
) -> Quality:
    """A look at a scene as `glacier ingest` makes it: NaN, and fill in QA_PIXEL, for nothing."""
    edit_yaml(project.root / "conf/postprocess.yaml", channels=CHANNELS)
    values = np.full((4, *swath.shape), 0.3, dtype=np.float32)
    values[2] = 4000  # a DEM reaches everywhere
    values[3] = np.where(cloud, 22280, 21824)
    values[:2, ~swath | gap], values[3, ~swath | gap] = np.nan, 1
    path = make_scene(
        project.root / f"{NAME}.tif", bands=[*CHANNELS, "QA_PIXEL"], values=values, nodata=np.nan
    )
    return check_scene(Project(project.root), path)


def test_corners_outside_the_swath_are_no_gap(project: Project) -> None:
    shape = (600, 540)
    swath, none = tilted(shape), np.zeros(shape, dtype=bool)
    assert 0.3 < 1 - swath.mean() < 0.6
    limits(project, max_unseen=0.0)
    found = ingested(project, swath, none, none)
    assert (found.verdict, found.no_value, found.covered) == (ACCEPTED, 0, 0)


def test_scan_line_gaps_and_clouds_are_shares_of_the_swath(project: Project) -> None:
    shape = (600, 540)
    swath, gap = tilted(shape), broken(shape)
    cloud = np.zeros(shape, dtype=bool)
    cloud[200:330] = True
    limits(project, max_unseen=0.5)
    found = ingested(project, swath, gap, cloud)
    pixels = swath.sum()
    # Where a gap takes a corner of the swath itself, the hull is smaller by a few pixels.
    assert found.no_value == pytest.approx((gap & swath).sum() / pixels, abs=0.004)
    assert found.covered == pytest.approx((cloud & swath & ~gap).sum() / pixels, rel=0.004)
    assert 0.15 < found.no_value < 0.3
    assert (found.verdict, found.reasons) == (ACCEPTED, [])


def test_a_scene_of_nothing_but_fill_is_rejected_whatever_the_limit(project: Project) -> None:
    limits(project, max_unseen=1.0)
    none = np.zeros((40, 40), dtype=bool)
    found = ingested(project, none, none, none)
    assert (found.covered, found.no_value, found.snow) == (0, 1, None)
    assert found.verdict == REJECTED
    assert found.reasons == ["nothing was imaged: no pixel has a value in any channel"]


def test_heights_that_a_dem_lacks_are_not_seen_though_imaged(project: Project) -> None:
    edit_yaml(project.root / "conf/postprocess.yaml", channels=CHANNELS)
    values = np.full((3, 40, 40), 0.3, dtype=np.float32)
    values[2, :10] = np.nan
    path = make_scene(project.root / f"{NAME}.tif", bands=CHANNELS, values=values)
    assert check_scene(Project(project.root), path).no_value == 0.25


def hull_by_geos(imaged: NDArray[np.bool_]) -> int:
    """Pixels in the convex hull, by GEOS and one after the other."""
    points = np.argwhere(imaged)
    shape = shapely.convex_hull(shapely.MultiPoint(points))
    return int(shapely.intersects_xy(shape.buffer(1e-6), *np.indices(imaged.shape)).sum())


masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


@given(imaged=masks, strip=st.integers(1, 12))
def test_the_swath_is_the_convex_hull_of_all_imaged_pixels(
    imaged: NDArray[np.bool_], strip: int
) -> None:
    swath = Swath(len(imaged))
    for row in range(0, len(imaged), strip):
        swath.add(row, imaged[row : row + strip])
    assert swath.pixels == (hull_by_geos(imaged) if imaged.any() else 0)


# --- the table -------------------------------------------------------------------------------


def test_the_table_is_read_back_as_it_was_written(project: Project) -> None:
    train_on(project, B1=20)
    found = look(project, bare(), product="P")
    path = write_table(project, [found])
    assert path == project.root / TABLE
    row = read_table(project)[NAME]
    assert {key: row[key] for key in found.row()} == found.row()
    with path.open(newline="") as file:
        assert next(csv.reader(file)) == COLUMNS
    assert row["verdict"] == REVIEW
    with rasterio.open(project.root / row["path"]) as scene:
        assert scene.count == len(ETM_STACK)


def test_a_scene_that_was_looked_at_again_replaces_its_row_and_no_other(project: Project) -> None:
    other = unusable("LC08_140041_20200101", "Q", "2020-01-01", InputError('a, "b";\nc'))
    write_table(project, [look(project, bare(), product="old"), other])
    write_table(project, [look(project, bare(), product="new")])
    rows = read_table(project)
    assert sorted(rows) == ["LC08_140041_20200101", NAME]
    assert rows[NAME]["product"] == "new"
    assert rows["LC08_140041_20200101"]["reasons"] == 'a, "b";\nc'


def test_there_are_no_rows_before_the_first(project: Project) -> None:
    assert read_table(project) == {}


def test_another_table_in_its_place_is_refused_and_kept(project: Project) -> None:
    path = project.root / TABLE
    path.parent.mkdir(parents=True)
    path.write_text("scene,verdict\nX,accepted\n")
    with pytest.raises(InputError, match=r"quality\.csv: has no column product, date"):
        write_table(project, [look(project, bare())])
    assert path.read_text() == "scene,verdict\nX,accepted\n"


def _write_many(root: Path, which: int) -> None:
    for k in range(30):
        error = InputError("damaged")
        write_table(Project(root), [unusable(f"S{which}_{k}", "", None, error)])


def test_processes_that_write_at_once_lose_no_rows(project: Project) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_many, args=(project.root, k)) for k in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert set(read_table(project)) == {f"S{w}_{k}" for w in range(3) for k in range(30)}
