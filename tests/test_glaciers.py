"""Which ice is one glacier: specks, scan-line gaps, and the ice divides of an inventory."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Any
from unittest.mock import patch

import geopandas as gpd
import numpy as np
import pytest
import rasterio.features
import shapely
from conftest import edit_yaml, ground, make_outlines, north_up
from handmade import Classes, Workplace, blank, drawn, grid_of, ice_of, write_map
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import MultiPolygon, Polygon, box

from glacier_core.maps import specks
from glacier_core.maps.glaciers import (
    Glaciers,
    Inventory,
    bridges,
    find_glaciers,
    nearest_fringe,
)
from glacier_core.maps.scenemap import UNSEEN
from glacier_core.maps.specks import without_specks
from glacier_core.params import OutlinesParams

HERE = north_up()
PIXEL_KM2 = 9.007e-4
"""Of a pixel of 30 m in the middle of a UTM zone, on the ground."""

many = settings(max_examples=150, deadline=None)
rasters = nps.arrays(
    np.uint8,
    st.tuples(st.integers(1, 12), st.integers(1, 10)),
    elements=st.sampled_from([0, 0, 1, 1, 2, UNSEEN]),
)
Bools = NDArray[np.bool_]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path)


def found_in(
    classes: Classes,
    *,
    smallest_pixels: float = 0,
    gap_pixels: int = 0,
    inventory: Inventory | None = None,
) -> Glaciers:
    """Glaciers of a hand-made map; the smallest area in pixels."""
    params = OutlinesParams(
        min_area_km2=smallest_pixels * PIXEL_KM2,
        min_part_pixels=0,
        gap_pixels=gap_pixels,
        correlation_m=300.0,
    )
    grid = grid_of(classes)
    return find_glaciers(ice_of(classes), classes == UNSEEN, grid, params, inventory)


def bridged(found: Glaciers) -> NDArray[np.int32]:
    """Numbers of glaciers in their gaps (height, width), 0 elsewhere."""
    numbers = np.zeros_like(found.numbers)
    numbers.flat[found.gaps] = found.gap_numbers
    return numbers


def numbers_in(*rows: str) -> NDArray[np.int32]:
    return drawn(*rows).astype(np.int32)


# --- specks ----------------------------------------------------------------------------------


def parts_of(classes: Classes) -> list[tuple[int, Bools]]:
    """Class and pixels of each part, four neighbours, without the unseen."""
    found = []
    for number in np.unique(classes[classes != UNSEEN]):
        labels, count = ndimage.label(classes == number)
        found += [(int(number), labels == i) for i in range(1, count + 1)]
    return found


@many
@given(rasters, st.integers(2, 6))
def test_no_speck_stays_beside_a_larger_part(classes: Classes, smallest: int) -> None:
    cleaned = without_specks(classes, smallest)
    large = np.zeros(classes.shape, dtype=bool)
    specks = []
    for _, part in parts_of(cleaned):
        if part.sum() < smallest:
            specks.append(part)
        else:
            large |= part
    for speck in specks:
        assert not (ndimage.binary_dilation(speck) & large).any()


@many
@given(rasters, st.integers(2, 6))
def test_parts_that_are_large_enough_lose_no_pixel(classes: Classes, smallest: int) -> None:
    cleaned = without_specks(classes, smallest)
    for number, part in parts_of(classes):
        if part.sum() >= smallest:
            assert (cleaned[part] == number).all()
    assert cleaned.dtype == np.uint8


@many
@given(rasters, st.integers(0, 6))
def test_unseen_pixels_become_neither_ice_nor_rock(classes: Classes, smallest: int) -> None:
    before = classes.copy()
    cleaned = without_specks(classes, smallest)
    np.testing.assert_array_equal(cleaned == UNSEEN, before == UNSEEN)
    np.testing.assert_array_equal(classes, before)


def sieved_until_nothing_changes(classes: Classes, smallest: int) -> Classes:
    seen = classes != UNSEEN
    while smallest < classes.size:
        cleaned = rasterio.features.sieve(classes, smallest, mask=seen, connectivity=4)
        cleaned[~seen] = UNSEEN
        if np.array_equal(cleaned, classes):
            break
        classes = cleaned
    return classes


@settings(max_examples=400, deadline=None)
@given(rasters, st.integers(2, 6))
@example(drawn(".1.11"), 2)  # the second pixel grows, and so the first is a speck beside a part
@example(drawn("?.1.11", "?????1"), 2)
def test_looking_around_what_changed_tells_whether_to_sieve_again(
    classes: Classes, smallest: int
) -> None:
    expected = sieved_until_nothing_changes(classes, smallest)
    for share in (0, 1):  # never look, always look
        with patch.object(specks, "_FEW", share):
            np.testing.assert_array_equal(without_specks(classes, smallest), expected)


def test_a_map_without_more_to_clean_is_sieved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = blank(clean=[(10, 10, 30, 50), (40, 20, 41, 22)])
    sieve, calls = rasterio.features.sieve, []

    def counted(*args: Any, **kwargs: Any) -> Classes:
        calls.append(args)
        return np.asarray(sieve(*args, **kwargs))

    monkeypatch.setattr(rasterio.features, "sieve", counted)
    assert without_specks(classes, 4).sum() == 800
    assert len(calls) == 1


def test_a_speck_takes_the_class_of_the_largest_part_beside_it() -> None:
    classes = drawn("111222", "111222", "111022", "111222", "111222")
    cleaned = without_specks(classes, 4)
    assert cleaned[2].tolist() == [1, 1, 1, 1, 2, 2]


def test_specks_among_specks_vanish_too() -> None:
    noise = np.zeros((40, 40), dtype=np.uint8)
    noise[10:30, 10:30] = np.indices((20, 20)).sum(axis=0) % 2  # a chessboard in rock
    assert not without_specks(noise, 4).any()


def test_a_limit_of_one_pixel_leaves_all_as_it_is() -> None:
    classes = drawn("1.2", ".1.", "2.1")
    for smallest in (0, 1):
        np.testing.assert_array_equal(without_specks(classes, smallest), classes)


# --- gaps ------------------------------------------------------------------------------------


def naive_bridges(ice: Bools, unseen: Bools, widest: int) -> Bools:
    found = np.zeros(ice.shape, dtype=bool)
    height, width = ice.shape
    for row in range(height):
        for col in range(width):
            if not unseen[row, col]:
                continue
            above, below = row, row
            while above >= 0 and unseen[above, col]:
                above -= 1
            while below < height and unseen[below, col]:
                below += 1
            if above >= 0 and below < height and below - above - 1 <= widest:
                found[row, col] = ice[above, col] and ice[below, col]
    return found


@many
@given(rasters, st.integers(0, 5))
def test_bridges_are_what_walking_up_and_down_finds(classes: Classes, widest: int) -> None:
    ice, unseen = ice_of(classes), classes == UNSEEN
    np.testing.assert_array_equal(bridges(ice, unseen, widest), naive_bridges(ice, unseen, widest))


@pytest.mark.parametrize(("gap", "glaciers"), [(1, 1), (16, 1), (17, 2)])
def test_ice_on_both_sides_of_a_scan_line_gap_is_one_glacier(
    place: Workplace, gap: int, glaciers: int
) -> None:
    edge = 20 + gap
    classes = blank(clean=[(10, 10, 20, 30), (edge, 10, edge + 10, 30)], unseen=[(20, 0, edge, 60)])
    table = place.outlined(classes).glaciers
    assert len(table) == glaciers
    assert sum(len(shape.geoms) for shape in table.geometry) == 2
    bridged = gap * 20 * PIXEL_KM2 if glaciers == 1 else 0
    assert table.gap_km2.sum() == pytest.approx(bridged, rel=1e-3)
    assert table.area_km2.sum() == pytest.approx(400 * PIXEL_KM2, rel=1e-3)


def test_the_widest_gap_is_a_parameter(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 20, 30), (25, 10, 35, 30)], unseen=[(20, 0, 25, 60)])
    folder = write_map(place.root, classes)
    counts = []
    for widest in (0, 4, 5):
        place.set(gap_pixels=widest)
        counts.append(len(place.outline(folder).glaciers))
    assert counts == [2, 2, 1]


def test_a_slanted_gap_is_bridged(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 40, 50)])
    row, col = np.indices(classes.shape)
    classes[np.abs(row - 25 - 0.15 * (col - 30)) < 6] = UNSEEN
    record = place.outlined(classes).only
    assert len(record.geometry.geoms) == 2
    assert record.gap_km2 == pytest.approx(40 * 12 * PIXEL_KM2, rel=0.1)


def test_what_is_unseen_at_the_edge_of_the_scene_is_no_gap(place: Workplace) -> None:
    classes = blank(clean=[(5, 10, 20, 30)], unseen=[(0, 0, 5, 60), (20, 12, 60, 28)])
    record = place.outlined(classes).only
    assert record.gap_km2 == 0
    assert record.area_km2 == pytest.approx(300 * PIXEL_KM2, rel=1e-3)


def test_a_gap_between_ice_and_rock_is_no_gap_of_a_glacier(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 20, 30)], unseen=[(20, 0, 25, 60)])
    assert place.outlined(classes).only.gap_km2 == 0


def test_halves_count_together_against_the_smallest_area(place: Workplace) -> None:
    place.set(min_area_km2=0.02)
    classes = blank(clean=[(10, 10, 14, 14), (18, 10, 22, 14)], unseen=[(14, 0, 18, 60)])
    assert place.outlined(classes).only.area_km2 == pytest.approx(32 * PIXEL_KM2, rel=1e-3)


# --- complexes -------------------------------------------------------------------------------


def naive_complexes(ice: Bools, bridge: Bools) -> list[set[tuple[int, int]]]:
    """Pixels of each connected part, eight neighbours, in the order of their first pixel."""
    left = {(int(r), int(c)) for r, c in np.argwhere(ice | bridge)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        part, queue = {start}, deque([start])
        while queue:
            row, col = queue.popleft()
            for near in ((row + i, col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
                if near in left:
                    left.discard(near)
                    part.add(near)
                    queue.append(near)
        found.append(part)
    return found


@many
@given(rasters, st.integers(0, 4), st.integers(0, 6))
def test_glaciers_are_what_a_flood_fill_finds(classes: Classes, gap: int, smallest: int) -> None:
    limit = max(smallest - 0.5, 0)
    found = found_in(classes, smallest_pixels=limit, gap_pixels=gap)
    ice, bridge = ice_of(classes), naive_bridges(ice_of(classes), classes == UNSEEN, gap)
    parts = naive_complexes(ice, bridge)
    kept = [part for part in parts if sum(ice[at] for at in part) >= limit]
    expected = np.zeros(classes.shape, dtype=np.int32)
    for number, part in enumerate(kept, start=1):
        for at in part:
            expected[at] = number
    np.testing.assert_array_equal(found.numbers, np.where(ice, expected, 0))
    np.testing.assert_array_equal(bridged(found), np.where(bridge, expected, 0))
    assert (np.diff(found.gaps) > 0).all()
    assert found.count == len(kept)
    assert found.complexes.tolist() == list(range(1, len(kept) + 1))
    assert found.inventory_ids == [None] * len(kept)
    lost = (ice & (expected == 0)).sum() * PIXEL_KM2
    assert found.left_out_km2 == pytest.approx(lost, rel=1e-3)


def test_ice_that_touches_in_a_corner_is_one_glacier(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 20, 20), (20, 20, 30, 30)])
    record = place.outlined(classes).only
    assert len(record.geometry.geoms) == 2
    assert record.geometry.is_valid


def test_a_glacier_of_exactly_the_smallest_area_is_kept(place: Workplace) -> None:
    classes = blank(8, 8, clean=[(3, 4, 4, 5)])
    [area] = grid_of(classes).pixel_areas_km2(grid_of(classes).window)[classes == 1].tolist()
    folder = write_map(place.root, classes)
    place.set(min_area_km2=area)
    kept = place.outline(folder)
    assert (len(kept.glaciers), kept.sums["left_out_km2"]) == (1, 0)
    place.set(min_area_km2=float(np.nextafter(area, 1)))
    lost = place.outline(folder)
    assert (len(lost.glaciers), lost.sums["left_out_km2"]) == (0, pytest.approx(area, abs=1e-6))


def test_the_smallest_area_is_a_hundredth_of_a_square_kilometre(place: Workplace) -> None:
    edit_yaml(place.root / "params.yaml", **place.usual)
    classes = blank(clean=[(10, 10, 13, 13), (20, 20, 23, 24)])
    assert place.outlined(classes).only.area_km2 == pytest.approx(12 * PIXEL_KM2, rel=1e-3)


# --- inventories -----------------------------------------------------------------------------

WIDE = blank(clean=[(10, 10, 30, 50)])
WEST, EAST = ground(HERE, (5, 5, 35, 30)), ground(HERE, (5, 30, 35, 55))


@st.composite
def inventories(draw: st.DrawFn) -> tuple[Classes, list[tuple[int, int, int, int]]]:
    """A map, and boxes of pixels that stand for known glaciers."""
    classes = draw(nps.arrays(np.uint8, (12, 10), elements=st.sampled_from([0, 1, 1, 1, UNSEEN])))
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        top, left = draw(st.integers(0, 10)), draw(st.integers(0, 8))
        bottom, right = draw(st.integers(top + 1, 12)), draw(st.integers(left + 1, 10))
        boxes.append((top, left, bottom, right))
    return classes, boxes


@many
@given(inventories(), st.integers(0, 2), st.integers(0, 5))
def test_divides_give_every_pixel_to_its_own_or_the_nearest_glacier(
    case: tuple[Classes, list[tuple[int, int, int, int]]], gap: int, smallest: int
) -> None:
    classes, boxes = case
    limit = max(smallest - 0.5, 0)
    polygons = np.array([ground(HERE, box) for box in boxes], dtype=object)
    ids: list[str | None] = [f"R{i}" for i in range(len(boxes))]
    inventory = Inventory(Path("rgi.gpkg"), polygons, ids)
    found = found_in(classes, smallest_pixels=limit, gap_pixels=gap, inventory=inventory)
    undivided = found_in(classes, smallest_pixels=limit, gap_pixels=gap)
    owner = np.full(classes.shape, -1)
    for i, (top, left, bottom, right) in enumerate(boxes):
        owner[top:bottom, left:right] = i  # the later one lies on top

    # Divides move no ice into or out of a complex.
    np.testing.assert_array_equal(found.numbers > 0, undivided.numbers > 0)
    joined = undivided.numbers + bridged(undivided)
    for number in range(1, undivided.count + 1):
        ice = undivided.numbers == number
        counted = {i: int((owner[ice] == i).sum()) for i in range(len(boxes))}
        known = {i for i, n in counted.items() if n and (n >= limit or 2 * n > ice.sum())}
        places = {i: np.argwhere((joined == number) & (owner == i)) for i in known}
        for at in np.argwhere(ice):
            mine = found.numbers[tuple(at)] - 1
            assert found.complexes[mine] == number
            given_to = found.inventory_ids[mine]
            if not known:
                assert given_to is None
                continue
            apart = {f"R{i}": np.hypot(*(places[i] - at).T).min() for i in known}
            assert given_to is not None
            assert apart[given_to] == min(apart.values())
        inside = found.inventory_ids
        assert {inside[k] for k in np.unique(found.numbers[ice]) - 1} == (
            {f"R{i}" for i in known} if known else {None}
        )


def test_ids_are_joined_and_the_divide_splits_connected_ice(place: Workplace) -> None:
    path = make_outlines(place.root / "rgi.gpkg", [WEST, EAST], rgi_id=["RGI-1", "RGI-2"])
    found = place.outlined(WIDE, "--inventory", path)
    table = found.glaciers
    assert table.inv_id.tolist() == ["RGI-1", "RGI-2"]
    assert table.complex_id.nunique() == 1
    assert table.glac_id.nunique() == 2
    np.testing.assert_allclose(table.area_km2, 400 * PIXEL_KM2, rtol=1e-3)
    divide = HERE @ (30, 10), HERE @ (30, 30)
    shared = table.geometry[0].intersection(table.geometry[1])
    assert shared.equals(shapely.LineString(divide))
    assert found.sums["inventory"] == str(path)


@pytest.mark.parametrize("column", ["rgi_id", "RGIId", "glac_id"])
def test_the_id_columns_of_known_inventories_are_found(place: Workplace, column: str) -> None:
    columns: dict[str, Any] = {"x": [1, 2], column: ["a", "b"]}
    path = make_outlines(place.root / "rgi.gpkg", [WEST, EAST], **columns)
    assert place.outlined(WIDE, "--inventory", path).glaciers.inv_id.tolist() == ["a", "b"]


def test_another_id_column_can_be_named(place: Workplace) -> None:
    path = make_outlines(
        place.root / "rgi.gpkg", [WEST, EAST], rgi_id=["a", "b"], name=["Zemu", "Talung"]
    )
    table = place.outlined(WIDE, "--inventory", path, "--inventory-id", "name").glaciers
    assert table.inv_id.tolist() == ["Zemu", "Talung"]


@pytest.mark.parametrize(
    ("crs", "suffix"),
    [
        ("EPSG:4326", ".gpkg"),
        ("EPSG:4326", ".geojson"),
        ("EPSG:32644", ".shp"),
        ("EPSG:3857", ".parquet"),
    ],
)
def test_an_inventory_in_another_crs_or_format_splits_the_same(
    place: Workplace, crs: str, suffix: str
) -> None:
    # Off the pixel centres, so that millimetres of reprojection decide nothing.
    shapes = [shape.segmentize(60) for shape in (WEST, EAST)]
    path = make_outlines(place.root / f"rgi{suffix}", shapes, to=crs, rgi_id=["a", "b"])
    table = place.outlined(WIDE, "--inventory", path).glaciers
    assert table.inv_id.tolist() == ["a", "b"]
    np.testing.assert_allclose(table.area_km2, 400 * PIXEL_KM2, rtol=1e-3)


def test_a_glacier_of_several_parts_gets_its_id_once(place: Workplace) -> None:
    sides = MultiPolygon([ground(HERE, (5, 5, 35, 20)), ground(HERE, (5, 40, 35, 55))])
    middle = ground(HERE, (5, 20, 35, 40))
    path = make_outlines(place.root / "rgi.gpkg", [sides, middle], rgi_id=["sides", "middle"])
    table = place.outlined(WIDE, "--inventory", path).glaciers
    assert table.inv_id.tolist() == ["sides", "middle"]
    assert [len(shape.geoms) for shape in table.geometry] == [2, 1]


def test_ice_outside_of_every_known_glacier_goes_to_the_nearest_of_its_complex(
    place: Workplace,
) -> None:
    # B is nearer to the right end of the ice than A is, C is nearest but lies on other ice.
    classes = blank(clean=[(10, 5, 20, 55), (24, 5, 34, 55)])
    shapes = [ground(HERE, (5, 5, 22, 15)), ground(HERE, (5, 25, 22, 35)),
              ground(HERE, (22, 5, 40, 55))]  # fmt: skip
    path = make_outlines(place.root / "rgi.gpkg", shapes, rgi_id=["A", "B", "C"])
    table = place.outlined(classes, "--inventory", path).glaciers.set_index("inv_id")
    np.testing.assert_allclose(
        table.area_km2[["A", "B", "C"]] / PIXEL_KM2 / 10, [15, 35, 50], rtol=1e-3
    )


def test_broken_outlines_of_an_inventory_divide_as_what_they_show(place: Workplace) -> None:
    twice = MultiPolygon([WEST, ground(HERE, (5, 20, 35, 30))])  # ice drawn twice
    crossed = Polygon([HERE @ corner for corner in [(30, 0), (55, 60), (55, 0), (30, 60)]])
    assert not twice.is_valid
    assert not crossed.is_valid
    path = make_outlines(place.root / "rgi.gpkg", [twice, crossed], rgi_id=["a", "b"])
    table = place.outlined(WIDE, "--inventory", path).glaciers
    assert table.inv_id.tolist() == ["a", "b"]
    np.testing.assert_allclose(table.area_km2, 400 * PIXEL_KM2, rtol=1e-3)


def test_an_inventory_of_the_whole_world_is_used(place: Workplace) -> None:
    """Most of it lies where the scene's projection has no coordinates."""
    world = [box(x, y, x + 1, y + 1) for x in range(-180, 180, 20) for y in range(-85, 86, 10)]
    world.append(box(-180, -90, 180, -70))
    here = make_outlines(place.root / "here.gpkg", [WEST, EAST], to="EPSG:4326", rgi_id=["a", "b"])
    shapes = [*world, *gpd.read_file(here).geometry]
    path = make_outlines(
        place.root / "rgi.gpkg",
        shapes,
        crs="EPSG:4326",
        rgi_id=[str(i) for i in range(len(shapes))],
    )
    table = place.outlined(WIDE, "--inventory", path).glaciers
    assert table.inv_id.tolist() == [str(len(world)), str(len(world) + 1)]


def test_a_dissolved_inventory_of_the_whole_world_is_used(place: Workplace) -> None:
    here = make_outlines(place.root / "here.gpkg", [WEST], to="EPSG:4326", rgi_id=["a"])
    parts = [*gpd.read_file(here).geometry, box(-100, 60, -99, 61), box(-70, -50, -69, -49)]
    path = make_outlines(
        place.root / "rgi.gpkg", [MultiPolygon(parts)], crs="EPSG:4326", rgi_id=["all"]
    )
    assert place.outlined(WIDE, "--inventory", path).only.inv_id == "all"


def test_outlines_with_heights_divide_as_without(place: Workplace) -> None:
    shapes = [shapely.force_3d(shape, 5000.0) for shape in (WEST, EAST)]
    path = make_outlines(place.root / "rgi.gpkg", shapes, rgi_id=["a", "b"])
    table = place.outlined(WIDE, "--inventory", path).glaciers
    assert table.inv_id.tolist() == ["a", "b"]
    assert not table.has_z.any()


def test_a_tiny_overlap_makes_no_tiny_glacier(place: Workplace) -> None:
    place.set(min_area_km2=0.01)
    corner = ground(HERE, (9, 9, 13, 13))  # 9 pixels of it are ice
    rest = ground(HERE, (5, 13, 35, 55))
    path = make_outlines(place.root / "rgi.gpkg", [corner, rest], rgi_id=["corner", "rest"])
    record = place.outlined(WIDE, "--inventory", path).only
    assert record.inv_id == "rest"
    assert record.area_km2 == pytest.approx(800 * PIXEL_KM2, rel=1e-3)


def test_a_glacier_hardly_touched_by_a_known_one_gets_no_id(place: Workplace) -> None:
    place.set(min_area_km2=0.01)
    path = make_outlines(place.root / "rgi.gpkg", [ground(HERE, (9, 9, 13, 13))], rgi_id=["a"])
    assert place.outlined(WIDE, "--inventory", path).only.inv_id is None


def test_a_small_glacier_gets_the_id_of_the_one_that_holds_most_of_it(place: Workplace) -> None:
    place.set(min_area_km2=0.01)
    classes = blank(clean=[(10, 10, 14, 14)])  # 16 pixels, of which 9 lie in the known one
    path = make_outlines(place.root / "rgi.gpkg", [ground(HERE, (11, 11, 20, 20))], rgi_id=["a"])
    assert place.outlined(classes, "--inventory", path).only.inv_id == "a"


def test_known_glaciers_without_an_id_divide_and_stay_without(place: Workplace) -> None:
    shapes = [ground(HERE, (5, left, 35, left + 20)) for left in (0, 20, 40)]
    path = make_outlines(place.root / "rgi.gpkg", shapes, rgi_id=["a", None, None])
    table = place.outlined(WIDE, "--inventory", path).glaciers
    assert [None if not isinstance(one, str) else one for one in table.inv_id] == ["a", None, None]


def test_numbers_as_ids_stay_whole_numbers(place: Workplace) -> None:
    path = make_outlines(
        place.root / "n.gpkg", [WEST, EAST, ground(HERE, (40, 5, 50, 9))], number=[12, 13, None]
    )
    table = place.outlined(WIDE, "--inventory", path, "--inventory-id", "number").glaciers
    assert table.inv_id.tolist() == ["12", "13"]


def test_an_inventory_of_elsewhere_leaves_outlines_without_ids_and_warns(
    place: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_outlines(
        place.root / "alps.gpkg", [box(7, 45, 8, 46)], crs="EPSG:4326", rgi_id=["a"]
    )
    with caplog.at_level(logging.WARNING):
        record = place.outlined(WIDE, "--inventory", path).only
    assert record.inv_id is None
    assert "alps.gpkg: no glacier of it lies on the scene" in caplog.text


def test_the_inventory_of_the_project_is_used_without_being_named(place: Workplace) -> None:
    inside = "data/raw/demo/outlines/rgi.gpkg"
    make_outlines(place.root / inside, [WEST, EAST], rgi_id=["a", "b"], name=["c", "d"])
    edit_yaml(place.root / "conf/maps.yaml", inventory_path=inside, inventory_id="name")
    folder = write_map(place.root, WIDE)
    assert place.outline(folder).glaciers.inv_id.tolist() == ["c", "d"]
    named = place.outline(folder, "--inventory-id", "rgi_id")
    assert named.glaciers.inv_id.tolist() == ["a", "b"]
    other = make_outlines(place.root / "other.gpkg", [WEST.union(EAST)], rgi_id=["whole"])
    assert place.outline(folder, "--inventory", other).only.inv_id == "whole"


def test_an_id_that_stands_twice_is_refused(place: Workplace) -> None:
    path = make_outlines(place.root / "rgi.gpkg", [WEST, EAST], rgi_id=["RGI-1", "RGI-1"])
    said = place.refused(write_map(place.root, WIDE), "--out", "o", "--inventory", path)
    assert f"{path}: rgi_id RGI-1 stands more than once near the scene. Keep one outline" in said


def test_an_id_that_stands_twice_elsewhere_is_no_matter(place: Workplace) -> None:
    far = [ground(north_up(800_000), (0, 0, 9, 9)), ground(north_up(810_000), (0, 0, 9, 9))]
    path = make_outlines(place.root / "rgi.gpkg", [WEST, EAST, *far], rgi_id=["a", "b", "c", "c"])
    assert place.outlined(WIDE, "--inventory", path).glaciers.inv_id.tolist() == ["a", "b"]


def test_a_missing_id_column_is_named_beside_those_there(place: Workplace) -> None:
    path = make_outlines(place.root / "x.gpkg", [WEST, EAST], nom=["a", "b"], when=[1, 2])
    folder = write_map(place.root, WIDE)
    said = place.refused(folder, "--out", "o", "--inventory", path)
    assert "x.gpkg: has no column 'rgi_id' of glacier ids; it has nom, when" in said
    said = place.refused(folder, "--out", "o", "--inventory", path, "--inventory-id", "id")
    assert "x.gpkg: has no column 'id' of glacier ids" in said


def test_inventories_that_cannot_be_read_are_refused(place: Workplace) -> None:
    folder = write_map(place.root, WIDE)
    (place.root / "broken.gpkg").write_bytes(b"no database")
    assert "none.shp: cannot be read as a vector file (no such file)" in place.refused(
        folder, "--out", "o", "--inventory", "none.shp"
    )
    assert "broken.gpkg: cannot be read as a vector file" in place.refused(
        folder, "--out", "o", "--inventory", "broken.gpkg"
    )
    path = make_outlines(place.root / "nowhere.shp", [WEST], rgi_id=["a"])
    path.with_suffix(".prj").unlink()
    assert "nowhere.shp: has no coordinate reference system" in place.refused(
        folder, "--out", "o", "--inventory", path
    )


def test_an_id_column_without_an_inventory_is_refused(place: Workplace) -> None:
    said = place.refused(write_map(place.root, WIDE), "--out", "o", "--inventory-id", "rgi_id")
    assert "--inventory-id: names a column, but there is no --inventory" in said


# --- the surroundings ------------------------------------------------------------------------


@many
@given(
    nps.arrays(
        np.int32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 0, 0, 0, 1, 2, 5]),
    ),
    st.integers(1, 3),
)
def test_the_fringe_is_all_within_reach_and_belongs_to_the_nearest(
    numbers: NDArray[np.int32], width: int
) -> None:
    at, owner = nearest_fringe(numbers, width)
    reach = {
        number: ndimage.distance_transform_cdt(numbers != number, metric="taxicab")
        for number in np.unique(numbers[numbers > 0])
    }
    nearest = np.min(list(reach.values()), axis=0) if reach else np.full(numbers.shape, width + 1)
    expected = np.flatnonzero((nearest >= 1) & (nearest <= width))
    assert sorted(at.tolist()) == expected.tolist()
    for where, number in zip(at, owner, strict=True):
        assert reach[number].flat[where] == nearest.flat[where]


def test_the_fringe_of_a_square_is_a_diamond_around_it() -> None:
    numbers = numbers_in(".....", "..3..", ".....")
    at, owner = nearest_fringe(numbers, 2)
    found = np.zeros(numbers.shape, dtype=int)
    found.flat[at] = owner
    assert found.tolist() == [[0, 3, 3, 3, 0], [3, 3, 0, 3, 3], [0, 3, 3, 3, 0]]
