"""`glacier change`: what came, what went, on ground that was seen at both dates."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from affine import Affine
from click.testing import CliRunner, Result
from conftest import PIXEL, ground, make_outlines, north_up
from handmade import Classes, Workplace, blank, grid_of, ground_km2, write_map

from glacier_core.cli import main
from glacier_core.maps.scenemap import UNSEEN

BEFORE, AFTER = "LE07_HAND_20001025", "LE07_HAND_20101025"
YEARS = 3652 / 365.2425


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path)


def ask(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["-q", "change", *map(str, words)])


def refused(*words: str | Path) -> str:
    """What `glacier change` says of input it cannot use: one line, exit code 2, nothing written."""
    done = ask(*words, "--out", "data/change/x")
    assert done.exit_code == 2, done.output + repr(done.exception)
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1, done.output
    assert not Path("data/change").exists() or not list(Path("data/change").iterdir())
    return done.output


class Change:
    """What `glacier change` wrote."""

    def __init__(self, folder: Path, said: str) -> None:
        self.folder, self.said = folder, said
        self.sums: dict[str, Any] = json.loads((folder / "change.json").read_text())
        self.table: gpd.GeoDataFrame = gpd.read_file(folder / "change.gpkg", layer="glaciers")
        self.moves: gpd.GeoDataFrame = gpd.read_file(folder / "change.gpkg", layer="moves")


def change(*words: str | Path, out: str = "data/change/x") -> Change:
    done = ask(*words, "--out", out)
    assert done.exit_code == 0, done.output + repr(done.exception)
    return Change(Path(out), done.output)


def pair(place: Workplace, before: Classes, after: Classes, **made: Any) -> tuple[Path, Path]:
    first = write_map(place.root, before, scene=BEFORE, **made)
    return first, write_map(place.root, after, scene=AFTER, date="2010-10-25", **made)


def km2(mask: np.ndarray[Any, Any]) -> float:
    return ground_km2(grid_of(np.zeros(mask.shape, np.uint8)), mask)


# A glacier whose debris tongue lost its lowest rows, and whose ice became debris above it.
SHRUNK = (
    blank(clean=[(5, 10, 25, 30)], debris=[(25, 10, 45, 30)]),
    blank(clean=[(5, 10, 21, 30)], debris=[(21, 10, 39, 30)]),
)


def test_areas_gains_and_losses_are_those_of_the_pixels(place: Workplace) -> None:
    found = change(*pair(place, *SHRUNK))
    before, after = SHRUNK
    row = found.table.iloc[0]
    assert len(found.table) == 1
    assert row.km2_before == pytest.approx(km2(before > 0), abs=1e-6)
    assert row.km2_after == pytest.approx(km2(after > 0), abs=1e-6)
    assert row.loss_km2 == pytest.approx(km2((before > 0) & (after == 0)), abs=1e-6)
    assert row.gain_km2 == 0
    assert row.clean_ice_to_debris_km2 == pytest.approx(km2((before == 1) & (after == 2)), abs=1e-6)
    assert row.debris_to_clean_ice_km2 == 0
    assert row.clean_ice_before_km2 == pytest.approx(km2(before == 1), abs=1e-6)
    assert row.debris_after_km2 == pytest.approx(km2(after == 2), abs=1e-6)
    assert row.change_km2 == pytest.approx(row.gain_km2 - row.loss_km2, abs=2e-6)
    assert row.change_share == pytest.approx(row.change_km2 / row.km2_before, abs=1e-4)
    assert row.seen_share == 1


def test_the_rate_is_change_by_years(place: Workplace) -> None:
    found = change(*pair(place, *SHRUNK))
    assert found.sums["years"] == pytest.approx(YEARS, abs=1e-3)
    row = found.table.iloc[0]
    assert row.rate_km2_yr == pytest.approx(row.change_km2 / YEARS, abs=1e-6)
    assert "km² a year" in found.said


def test_without_dates_there_is_no_rate(place: Workplace) -> None:
    found = change(*_undated(place))
    assert found.sums["years"] is None
    assert found.table["rate_km2_yr"].isna().all()
    assert "a year" not in found.said


def _undated(place: Workplace) -> tuple[Path, Path]:
    first = write_map(place.root, SHRUNK[0], scene="one", date=None)
    return first, write_map(place.root, SHRUNK[1], scene="two", date=None)


def test_sums_are_those_of_the_glaciers_and_the_csv_is_the_same_table(place: Workplace) -> None:
    before = blank(clean=[(5, 5, 15, 15), (30, 30, 45, 50)], debris=[(15, 5, 20, 15)])
    after = blank(clean=[(5, 5, 12, 15), (28, 30, 45, 50)], debris=[(12, 5, 19, 15)])
    found = change(*pair(place, before, after))
    csv = pd.read_csv(found.folder / "change.csv")
    assert len(csv) == len(found.table) == 2
    for key, column in (("before", "km2_before"), ("after", "km2_after"), ("change", "change_km2")):
        assert found.sums["total"][key] == pytest.approx(csv[column].sum(), abs=5e-6)
        np.testing.assert_allclose(csv[column], found.table[column])
    for name in ("clean_ice", "debris"):
        assert found.sums["km2"][name]["before"] == pytest.approx(
            csv[f"{name}_before_km2"].sum(), abs=5e-6
        )


def test_ground_unseen_at_either_date_does_not_count(place: Workplace) -> None:
    before, after = (classes.copy() for classes in SHRUNK)
    before[:, :15] = UNSEEN
    after[40:, :] = UNSEEN
    found = change(*pair(place, before, after))
    both = (before != UNSEEN) & (after != UNSEEN)
    row = found.table.iloc[0]
    assert row.km2_before == pytest.approx(km2(both & (before > 0)), abs=1e-6)
    assert row.km2_after == pytest.approx(km2(both & (after > 0)), abs=1e-6)
    ice = ((before > 0) & (before != UNSEEN)) | ((after > 0) & (after != UNSEEN))
    assert row.seen_share == pytest.approx(km2(both & ice) / km2(ice), abs=1e-3)
    either = (before != UNSEEN) | (after != UNSEEN)
    assert found.sums["seen_share"] == pytest.approx(both.sum() / either.sum(), abs=1e-6)


def test_a_cloud_over_a_glacier_is_no_loss(place: Workplace) -> None:
    after = SHRUNK[0].copy()
    after[10:40, 5:35] = UNSEEN
    found = change(*pair(place, SHRUNK[0], after))
    assert found.sums["total"]["change"] == 0
    assert found.sums["moves_km2"]["loss"] == 0
    assert len(found.moves) == 0


def test_the_error_is_that_of_both_outlines_together(place: Workplace) -> None:
    size = 20
    box = blank(clean=[(5, 10, 5 + size, 10 + size)])
    found = change(*pair(place, box, box))
    # Half a pixel along each outline; its corners are cut off by less than a pixel each.
    one = 4 * size * PIXEL * PIXEL / 2 / 1e6
    assert found.table.iloc[0].err_km2 == pytest.approx(np.hypot(one, one), rel=0.05)
    assert found.sums["total"]["change"] == 0
    assert found.sums["total"]["err"] == pytest.approx(np.hypot(one, one), rel=0.05)


def test_moves_lie_where_the_class_changed(place: Workplace) -> None:
    found = change(*pair(place, *SHRUNK))
    before, after = SHRUNK
    assert set(found.moves["what"]) == {"loss", "clean_ice_to_debris"}
    for what, mask in (
        ("loss", (before > 0) & (after == 0)),
        ("clean_ice_to_debris", (before == 1) & (after == 2)),
    ):
        shape = found.moves.set_index("what").geometry[what]
        rows, cols = np.nonzero(mask)
        x, y = north_up() @ (cols + 0.5, rows + 0.5)
        assert all(shape.buffer(1).contains(p) for p in gpd.points_from_xy(x, y))
        assert shape.area / PIXEL**2 == pytest.approx(mask.sum(), abs=1)
    assert set(found.moves["glac_id"]) == set(found.table["glac_id"])


def test_a_glacier_that_vanished_and_one_that_came_are_both_told(place: Workplace) -> None:
    before = blank(clean=[(5, 5, 15, 15)])
    after = blank(clean=[(30, 30, 45, 50)])
    table = change(*pair(place, before, after)).table.sort_values("change_km2")
    assert table.iloc[0].km2_after == 0
    assert table.iloc[1].km2_before == 0
    assert np.isnan(table.iloc[1].change_share)
    assert table.iloc[0].change_share == -1


@pytest.mark.parametrize(
    ("transform", "crs"),
    [
        (north_up(500_010.0 - 5 * PIXEL, 3_100_020.0 + 3 * PIXEL), "EPSG:32645"),
        (north_up(500_010.0 + 7, 3_100_020.0 - 11, 29.0), "EPSG:32645"),
        (Affine(0.00031, 0, 87.0, 0, -0.00027, 28.025), "EPSG:4326"),
    ],
    ids=["shifted", "other pixels", "degrees"],
)
def test_maps_on_other_grids_are_laid_over_each_other(
    place: Workplace, transform: Affine, crs: str
) -> None:
    """The same glacier drawn on two grids has not changed, but for the pixels at its border."""
    later = blank(80, 80, clean=[(25, 25, 50, 55)])
    second = write_map(place.root, later, scene=AFTER, date="2010-10-25")
    outline = gpd.GeoSeries([ground(north_up(), (25, 25, 50, 55))], crs="EPSG:32645").to_crs(crs)
    earlier = np.zeros((110, 110), dtype=np.uint8)
    rows, cols = np.indices(earlier.shape)
    x, y = transform @ (cols.ravel() + 0.5, rows.ravel() + 0.5)
    inside = gpd.GeoSeries(gpd.points_from_xy(x, y), crs=crs).within(outline[0]).to_numpy()
    earlier.ravel()[inside] = 1
    first = write_map(place.root, earlier, scene=BEFORE, transform=transform, crs=crs)
    found = change(first, second)
    assert found.sums["total"]["after"] == pytest.approx(km2(later > 0), rel=0.01)
    # A pixel's width along two of the sides, at most.
    assert abs(found.sums["total"]["change"]) < 60 * PIXEL**2 / 1e6
    assert abs(found.sums["total"]["change"]) <= found.sums["total"]["err"]


def test_an_inventory_can_stand_for_one_date(place: Workplace) -> None:
    folder = write_map(place.root, SHRUNK[1], scene=AFTER, date="2010-10-25")
    clean = make_outlines(
        Path("inv/clean.shp"), [ground(north_up(), (5, 10, 25, 30))], to="EPSG:4326"
    )
    debris = make_outlines(Path("inv/debris.gpkg"), [ground(north_up(), (25, 10, 45, 30))])
    found = change(
        folder, "--against", f"clean_ice={clean}", "--against", f"debris={debris}",
        "--date", "2000-10-25",
    )  # fmt: skip
    assert found.sums["before"] == "clean.shp + debris.gpkg"
    assert found.sums["after"] == AFTER
    assert found.sums["total"]["before"] == pytest.approx(km2(SHRUNK[0] > 0), abs=1e-5)
    assert found.sums["km2"]["debris"]["after"] == pytest.approx(km2(SHRUNK[1] == 2), abs=1e-5)
    later = change(
        folder, "--against", f"clean_ice={clean}", "--against", f"debris={debris}",
        "--date", "2020-01-01", out="data/change/later",
    )  # fmt: skip
    assert later.sums["before"] == AFTER
    assert later.sums["total"]["change"] == pytest.approx(-found.sums["total"]["change"])


def test_divides_of_an_inventory_split_the_change(place: Workplace) -> None:
    halves = [ground(north_up(), (0, 0, 60, 20)), ground(north_up(), (0, 20, 60, 60))]
    known = make_outlines(Path("inv/rgi.gpkg"), halves, rgi_id=["west", "east"])
    before = blank(clean=[(5, 10, 25, 30)])
    after = blank(clean=[(5, 10, 25, 26)])
    found = change(*pair(place, before, after), "--inventory", known)
    table = found.table.set_index("inv_id")
    assert table.loc["west", "change_km2"] == 0
    assert table.loc["east", "change_km2"] == pytest.approx(-km2(before - after > 0), abs=1e-6)


def test_heights_of_both_dates_add_up(place: Workplace) -> None:
    elevation = np.repeat(np.linspace(6000, 4000, 60)[:, None], 60, axis=1)
    found = change(*pair(place, *SHRUNK, elevation=elevation))
    heights = pd.read_csv(found.folder / "hypsometry.csv")
    for key in ("before", "after"):
        total = heights[f"{key}_km2"].sum()
        assert total == pytest.approx(found.sums["total"][key], abs=1e-4)
    # What melted lay lowest.
    lost = heights.groupby("elevation_m")[["before_km2", "after_km2"]].sum()
    assert (lost["after_km2"] - lost["before_km2"]).idxmin() < 4800
    assert (found.folder / "figures/hypsometry.png").stat().st_size > 5000


def test_figures_are_drawn(place: Workplace) -> None:
    found = change(*pair(place, *SHRUNK))
    names = {path.name for path in (found.folder / "figures").iterdir()}
    assert names == {"moves.png", "areas.png", "glaciers.png"}


def test_no_glacier_at_either_date_gives_empty_tables(place: Workplace) -> None:
    found = change(*pair(place, blank(), blank()))
    assert len(found.table) == len(found.moves) == 0
    assert {"glac_id", "change_km2", "err_km2"} <= set(found.table.columns)
    assert found.sums["total"] == {"before": 0, "after": 0, "change": 0, "err": 0}


def test_the_same_maps_give_the_same_bytes(place: Workplace) -> None:
    maps = pair(place, *SHRUNK)

    def hashes(out: str) -> dict[str, str]:
        folder = change(*maps, out=out).folder
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    assert hashes("data/change/a") == hashes("data/change/b")


def test_a_second_run_replaces_the_first(place: Workplace) -> None:
    maps = pair(place, *SHRUNK)
    change(*maps)
    (Path("data/change/x") / "left.txt").write_text("from an earlier run")
    change(*maps)
    assert not (Path("data/change/x") / "left.txt").exists()


def test_maps_of_other_classes_are_refused(place: Workplace) -> None:
    first = write_map(place.root, blank(clean=[(5, 5, 9, 9)]), scene=BEFORE,
                      names=["background", "glacier"])  # fmt: skip
    second = write_map(place.root, SHRUNK[1], scene=AFTER)
    said = refused(first, second)
    assert "glacier" in said
    assert "clean_ice, debris" in said


def test_the_later_map_first_is_refused(place: Workplace) -> None:
    first, second = pair(place, *SHRUNK)
    said = refused(second, first)
    assert "give the earlier first" in said
    assert "2010-10-25" in said


def test_maps_without_common_ground_are_refused(place: Workplace) -> None:
    first = write_map(place.root, SHRUNK[0], scene=BEFORE)
    far = write_map(place.root, SHRUNK[1], scene=AFTER, transform=north_up(700_000.0))
    assert "no ground in common" in refused(first, far)


def test_maps_without_crs_are_refused(place: Workplace) -> None:
    maps = pair(place, *SHRUNK, crs=None)
    said = refused(*maps)
    assert "coordinate reference system" in said
    assert "_classes.tif" in said


def test_neither_and_both_of_map_and_inventory_are_refused(place: Workplace) -> None:
    first, second = pair(place, *SHRUNK)
    assert "second map, or --against" in refused(first)
    assert "second map, or --against" in refused(first, second, "--against", "clean_ice=x.shp")


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("clean_ice", "expected CLASS=FILE"),
        ("snow=inv/clean.shp", "no class of the map"),
        ("clean_ice=inv/none.shp", "no such file"),
        ("clean_ice=inv/far.shp", "no outline lies on"),
    ],
)
def test_an_inventory_that_cannot_be_used_is_refused(
    place: Workplace, against: str, message: str
) -> None:
    folder = write_map(place.root, SHRUNK[1], scene=AFTER)
    make_outlines(Path("inv/clean.shp"), [ground(north_up(), (5, 10, 25, 30))])
    make_outlines(Path("inv/far.shp"), [ground(north_up(700_000.0), (5, 10, 25, 30))])
    assert message in refused(folder, "--against", against)


def test_a_folder_that_is_no_map_is_refused(place: Workplace) -> None:
    second = write_map(place.root, SHRUNK[1], scene=AFTER)
    (place.root / "empty").mkdir()
    assert "run `glacier map` first" in refused("empty", second)
