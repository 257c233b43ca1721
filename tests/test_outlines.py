"""Outlines of a map: areas that add up, errors that can be worked out, files that others read."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import sqlite3
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from affine import Affine
from conftest import CORNER, glacier, ground, make_outlines, north_up
from handmade import (
    MODEL,
    SCENE,
    Classes,
    Outlines,
    Workplace,
    blank,
    columns_of,
    grid_of,
    ground_km2,
    ice_of,
    on_ellipsoid,
    rewrite,
    write_map,
)
from numpy.typing import NDArray
from pandas.testing import assert_frame_equal
from scipy import ndimage
from shapely.geometry import Polygon

from glacier_core.maps import attributes, coverage, glaciers
from glacier_core.maps.rasters import CLASS_COLOURS
from glacier_core.maps.scenemap import UNSEEN
from glacier_core.maps.specks import without_specks
from glacier_core.maps.styles import write_class_style

HERE = north_up()
PIXEL = 30.011
"""Edge of a pixel of 30 m in the middle of a UTM zone, on the ground."""
PIXEL_KM2 = PIXEL**2 / 1e6
CUT = 1 - 0.5**0.5
"""How much shorter, in pixels, a corner is when it is cut off between midpoints."""

ROTATED = north_up() @ Affine.rotation(20) @ Affine.scale(1, 1.3)
PLACES: dict[str, dict[str, Any]] = {
    "north up": {},
    "rotated": {"transform": ROTATED},
    "south up": {"transform": Affine(30, 0, CORNER[0], 0, 30, CORNER[1])},
    "degrees": {"transform": Affine(3e-4, 0, 86.5, 0, -3e-4, 28.1), "crs": "EPSG:4326"},
    "polar": {"transform": north_up(-1_000_000, -2_000_000), "crs": "EPSG:3995"},
    "southern": {"transform": north_up(640_000, 4_600_000), "crs": "EPSG:32718"},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path)


def natural(seed: int = 0, size: int = 90) -> Classes:
    """Ice as it lies: smooth borders, specks, holes, and ground that was not seen."""
    random = np.random.default_rng(seed)
    surface = ndimage.gaussian_filter(random.standard_normal((size, size)), 4)
    surface += 0.25 * surface.std() * random.standard_normal((size, size))
    classes: Classes = np.digitize(surface, np.quantile(surface, [0.55, 0.85])).astype(np.uint8)
    cloud = ndimage.gaussian_filter(random.standard_normal((size, size)), 6)
    classes[cloud > np.quantile(cloud, 0.9)] = UNSEEN
    return classes


def centres_in(shape: shapely.Geometry, transform: Affine, like: Classes) -> NDArray[np.bool_]:
    """Pixels whose centre lies in a shape."""
    rows, cols = np.indices(like.shape)
    x, y = transform @ (cols + 0.5, rows + 0.5)
    return np.asarray(shapely.contains_xy(shape, x, y))


def outline_length(n: int, open_sides: int = 0) -> float:
    """Pixels around a square of n pixels, less the sides that are no outline."""
    return (4 - open_sides) * n - (4 - 2 * open_sides + max(open_sides - 1, 0)) * CUT


# --- areas -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", PLACES)
def test_glaciers_and_what_is_left_out_add_up_to_the_ice_of_the_map(
    place: Workplace, where: str
) -> None:
    place.set(min_area_km2=0.02, min_part_pixels=0)
    classes = natural()
    found = place.outlined(classes, **PLACES[where])
    total = ground_km2(grid_of(classes, **PLACES[where]), ice_of(classes))
    assert found.sums["left_out_km2"] > 0
    assert found.glaciers.area_km2.sum() + found.sums["left_out_km2"] == pytest.approx(
        total, rel=2e-6, abs=1e-4
    )
    assert found.sums["total_km2"] == pytest.approx(found.glaciers.area_km2.sum(), abs=1e-4)


def test_specks_alone_tell_the_outlines_from_the_map(place: Workplace) -> None:
    place.set(min_area_km2=0.02, min_part_pixels=6)
    classes = natural()
    found = place.outlined(classes)
    grid, cleaned = grid_of(classes), without_specks(classes, 6)
    for number, name in enumerate(["clean_ice", "debris"], start=1):
        there = cleaned == number
        assert (there != (classes == number)).any()
        held = found.glaciers[f"{name}_km2"].sum()
        assert held <= ground_km2(grid, there) + 1e-4
    specks = ground_km2(grid, ice_of(cleaned)) - ground_km2(grid, ice_of(classes))
    assert found.glaciers.area_km2.sum() + found.sums["left_out_km2"] - specks == pytest.approx(
        ground_km2(grid, ice_of(classes)), abs=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
def test_parts_and_shares_add_up_to_their_glacier(place: Workplace, seed: int) -> None:
    found = place.outlined(natural(seed))
    table = found.glaciers.set_index("glac_id")
    parts = found.classes
    sums = parts.groupby("glac_id").area_km2.sum()
    np.testing.assert_allclose(sums[table.index], table.area_km2, atol=2e-6)
    np.testing.assert_allclose(table.clean_ice_km2 + table.debris_km2, table.area_km2, atol=2e-6)
    np.testing.assert_allclose(table.clean_ice_share + table.debris_share, 1, atol=2e-4)
    np.testing.assert_allclose(table.debris_share, table.debris_km2 / table.area_km2, atol=1e-3)
    by_class = parts.groupby("class").area_km2.sum().to_dict()
    assert by_class == pytest.approx(found.sums["km2"], abs=1e-4)
    assert len(table) == found.sums["glaciers"] > 5
    assert f"{len(table)} glaciers, {table.area_km2.sum():.2f} km²" in found.said


@pytest.mark.parametrize("where", PLACES)
def test_the_area_of_a_polygon_is_that_of_its_pixels_within_half_a_pixel_of_its_rings(
    place: Workplace, where: str
) -> None:
    classes = natural(1)
    found = place.outlined(classes, **PLACES[where])
    grid = grid_of(classes, **PLACES[where])
    pixel = grid.pixel_size_m()
    for layer in ("glaciers", "classes"):
        frame = found.layer(layer)
        metres = gpd.GeoSeries(frame.geometry, crs=frame.crs).to_crs(frame.estimate_utm_crs())
        rings = metres.length * 1.2 * 0.15 * pixel / 1e6  # simplified by 0.147 of a pixel
        corners = shapely.get_num_interior_rings(shapely.get_parts(frame.geometry.values)).sum() + 5
        apart = np.abs(on_ellipsoid(frame.geometry) - frame.area_km2)
        assert (apart <= rings + corners * pixel**2 / 1e6).all()
        assert on_ellipsoid(frame.geometry).sum() == pytest.approx(frame.area_km2.sum(), rel=0.02)


# --- geometry --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", PLACES)
def test_polygons_lie_on_the_ground_of_their_pixels(place: Workplace, where: str) -> None:
    classes = natural(2, size=60)
    found = place.outlined(classes, **PLACES[where])
    transform = PLACES[where].get("transform", HERE)
    parts = found.classes
    for number, name in enumerate(["clean_ice", "debris"], start=1):
        held = np.zeros(classes.shape, dtype=int)
        for shape in parts[parts["class"] == name].geometry:
            held += centres_in(shape, transform, classes)
        np.testing.assert_array_equal(held, classes == number)
    held = np.sum([centres_in(one, transform, classes) for one in found.glaciers.geometry], axis=0)
    np.testing.assert_array_equal(held, ice_of(classes))


@pytest.mark.parametrize("seed", range(3))
def test_polygons_are_valid_and_share_their_borders(place: Workplace, seed: int) -> None:
    found = place.outlined(natural(seed))
    table, parts = found.glaciers, found.classes
    assert table.is_valid.all()
    assert parts.is_valid.all()
    assert set(table.geom_type) == set(parts.geom_type) == {"MultiPolygon"}
    assert shapely.coverage_is_valid(table.geometry.values)
    assert shapely.coverage_is_valid(parts.geometry.values)
    dissolved = parts.dissolve("glac_id").geometry
    for name, shape in zip(table.glac_id, table.geometry, strict=True):
        assert shape.symmetric_difference(dissolved[name]).area < 1e-6


def test_a_nunatak_stays_a_hole(place: Workplace) -> None:
    record = place.outlined(blank(clean=[(10, 10, 40, 40)], rock=[(20, 20, 28, 28)])).only
    [part] = record.geometry.geoms
    [hole] = part.interiors
    assert Polygon(hole).area == pytest.approx(64 * 900, rel=0.01)
    assert Polygon(hole).centroid.distance(ground(HERE, (20, 20, 28, 28)).centroid) < 1
    assert record.area_km2 == pytest.approx((900 - 64) * PIXEL_KM2, rel=1e-3)


@pytest.mark.parametrize("pixels", [3, 4])
@pytest.mark.parametrize(
    ("around", "inside"), [("rock", "clean"), ("clean", "rock"), ("clean", "debris")]
)
def test_parts_of_fewer_than_four_pixels_take_the_class_around(
    place: Workplace, around: str, inside: str, pixels: int
) -> None:
    place.set(min_part_pixels=4)
    speck = (30, 30, 31, 30 + pixels)
    boxes: dict[str, Any] = {
        around: [(10, 10, 50, 50)],
        inside: [speck],
    }
    found = place.outlined(blank(**boxes))
    kept = pixels == 4
    if around == "rock":
        assert len(found.glaciers) == (1 if kept else 0)
    elif inside == "rock":
        [part] = found.only.geometry.geoms
        assert len(part.interiors) == (1 if kept else 0)
        assert found.only.area_km2 == pytest.approx((1600 - 4 * kept) * PIXEL_KM2, rel=1e-3)
    else:
        assert set(found.classes["class"]) == ({"clean_ice", "debris"} if kept else {"clean_ice"})
        assert found.only.debris_km2 == pytest.approx(4 * kept * PIXEL_KM2, abs=1e-5)


def test_an_unseen_pixel_inside_a_glacier_is_neither_filled_nor_counted(place: Workplace) -> None:
    place.set(min_part_pixels=4)
    classes = blank(clean=[(10, 10, 40, 40)], unseen=[(20, 20, 21, 21)])
    place.set(gap_pixels=0)
    record = place.outlined(classes).only
    [part] = record.geometry.geoms
    assert len(part.interiors) == 1
    assert record.area_km2 == pytest.approx(899 * PIXEL_KM2, rel=1e-3)


# --- what is known of a glacier --------------------------------------------------------------


def test_a_glacier_has_all_its_attributes(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 20, 30)], debris=[(20, 10, 30, 30)])
    record = place.outlined(classes).only
    assert list(record.index) == [
        "glac_id", "complex_id", "inv_id", "scene", "date", "model", "cenlon", "cenlat",
        "area_km2", "clean_ice_km2", "debris_km2", "clean_ice_share", "debris_share", "gap_km2",
        "open_share", "err_buffer_km2", "err_prob_km2", "zmin_m", "zmax_m", "zmean_m", "zmed_m",
        "slope_deg", "aspect_deg", "confidence", "geometry",
    ]  # fmt: skip
    assert record[["scene", "date", "model"]].tolist() == [SCENE, "2000-10-25", MODEL]
    assert record[["clean_ice_share", "debris_share"]].tolist() == [0.5, 0.5]


def test_an_ensemble_names_all_its_models_and_an_unknown_date_is_left_empty(
    place: Workplace,
) -> None:
    models = ["models:/glacier-unet/3", "data/models/b"]
    found = place.outlined(blank(clean=[(10, 10, 20, 30)]), models=models, date=None)
    assert found.only.model == "models:/glacier-unet/3 data/models/b"
    assert found.only.date is None
    assert found.sums["date"] is None


def test_confidence_is_the_mean_of_the_mapped_class_by_pixel(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 20, 30)], debris=[(20, 10, 30, 20)])
    confidence = np.where(classes == 1, 0.6, 0.8)
    found = place.outlined(classes, confidence=confidence)
    parts = found.classes.set_index("class").confidence
    assert parts.to_dict() == pytest.approx({"clean_ice": 0.6, "debris": 0.8}, abs=1e-4)
    assert found.only.confidence == pytest.approx((0.6 * 200 + 0.8 * 100) / 300, abs=1e-4)


def test_other_classes_of_ice_have_their_own_columns(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 20, 30)], debris=[(20, 10, 30, 20)])
    classes[30:35, 10:20] = 3
    names = ["background", "firn", "bare", "dead_ice"]
    record = place.outlined(classes, names=names).only
    pixels = record[["firn_km2", "bare_km2", "dead_ice_km2"]].to_numpy(float) / PIXEL_KM2
    np.testing.assert_allclose(pixels, [200, 100, 50], rtol=1e-3)


# --- how far off the outline may be ----------------------------------------------------------


@pytest.mark.parametrize(("kind", "width"), [("clean", 0.5), ("debris", 1.0)])
def test_the_buffer_of_a_square_is_its_outline_times_the_error_of_its_class(
    place: Workplace, kind: str, width: float
) -> None:
    boxes: dict[str, Any] = {kind: [(10, 10, 30, 30)]}
    record = place.outlined(blank(**boxes)).only
    assert record.err_buffer_km2 == pytest.approx(outline_length(20) * width * PIXEL_KM2, rel=1e-3)
    assert record.open_share == 0


@pytest.mark.parametrize("where", PLACES)
def test_the_buffer_is_measured_on_the_ground_in_every_grid(place: Workplace, where: str) -> None:
    classes = blank(clean=[(10, 10, 30, 30)])
    record = place.outlined(classes, **PLACES[where]).only
    (a, b), (c, d) = grid_of(classes, **PLACES[where]).steps_m(20, 20)
    across, along = np.hypot(a, b), np.hypot(c, d)
    around = 38 * (across + along) + 2 * np.hypot(across, along)
    pixel = grid_of(classes, **PLACES[where]).pixel_size_m()
    assert record.err_buffer_km2 == pytest.approx(around * pixel / 2 / 1e6, rel=5e-3)


def test_a_hole_has_an_outline_that_may_be_off_too(place: Workplace) -> None:
    record = place.outlined(blank(clean=[(10, 10, 40, 40)], rock=[(20, 20, 30, 30)])).only
    around = outline_length(30) + outline_length(10)
    assert record.err_buffer_km2 == pytest.approx(around * 0.5 * PIXEL_KM2, rel=1e-3)


def test_between_two_classes_only_these_are_unsure_and_the_glacier_is_not(
    place: Workplace,
) -> None:
    found = place.outlined(blank(clean=[(10, 10, 20, 30)], debris=[(20, 10, 30, 30)]))
    clean = debris = 40 - 2 * CUT
    assert found.only.err_buffer_km2 == pytest.approx((0.5 * clean + debris) * PIXEL_KM2, rel=1e-3)
    assert found.sums["err_buffer_km2"] == pytest.approx(
        {"clean_ice": (0.5 * clean + 20) * PIXEL_KM2, "debris": (debris + 20) * PIXEL_KM2}, rel=1e-3
    )


def test_an_ice_divide_is_no_outline(place: Workplace) -> None:
    path = make_outlines(
        place.root / "rgi.gpkg",
        [ground(HERE, (5, 5, 35, 30)), ground(HERE, (5, 30, 35, 55))],
        rgi_id=["a", "b"],
    )
    found = place.outlined(blank(clean=[(10, 10, 30, 50)]), "--inventory", path)
    expected = outline_length(20, open_sides=1) * 0.5 * PIXEL_KM2
    np.testing.assert_allclose(found.glaciers.err_buffer_km2, expected, rtol=1e-3)
    assert (found.glaciers.open_share == 0).all()
    assert found.sums["err_buffer_km2"]["clean_ice"] == pytest.approx(2 * expected, rel=1e-3)


@pytest.mark.parametrize(
    ("box", "unseen", "sides"),
    [
        ((10, 10, 30, 30), (10, 30, 30, 60), 1),
        ((10, 0, 30, 20), (0, 0, 0, 0), 1),
        ((0, 0, 20, 20), (0, 0, 0, 0), 2),
        ((40, 40, 60, 60), (0, 0, 0, 0), 2),
        ((0, 0, 20, 20), (20, 0, 60, 60), 3),
    ],
)
def test_unseen_ground_and_the_edge_of_the_scene_are_no_outline(
    place: Workplace,
    box: tuple[int, int, int, int],
    unseen: tuple[int, int, int, int],
    sides: int,
) -> None:
    found = place.outlined(blank(clean=[box], unseen=[unseen]))
    expected = outline_length(20, open_sides=sides) * 0.5 * PIXEL_KM2
    assert found.only.err_buffer_km2 == pytest.approx(expected, rel=1e-3)
    assert found.sums["err_buffer_km2"]["clean_ice"] == pytest.approx(expected, rel=1e-3)
    assert found.only.open_share == pytest.approx(sides / 4, abs=0.02)


def test_no_glacier_is_more_unsure_than_large_by_its_outline(place: Workplace) -> None:
    single = [(i, i, i + 1, i + 1) for i in range(5, 50, 5)]
    found = place.outlined(blank(debris=single))
    table = found.glaciers
    np.testing.assert_array_equal(table.err_buffer_km2, table.area_km2)
    assert found.sums["total_err_buffer_km2"] == pytest.approx(table.area_km2.sum(), abs=1e-5)
    assert found.sums["err_buffer_km2"]["debris"] == pytest.approx(table.area_km2.sum(), abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_the_errors_of_all_glaciers_are_summed_up(place: Workplace, seed: int) -> None:
    classes = natural(seed)
    odds = np.stack([np.full(classes.shape, 0.3), np.full(classes.shape, 0.4)])
    found = place.outlined(classes, odds=odds)
    table, sums = found.glaciers, found.sums
    assert (table.err_buffer_km2 <= table.area_km2).all()
    assert sums["total_err_buffer_km2"] == pytest.approx(table.err_buffer_km2.sum(), abs=1e-4)
    assert sums["total_err_prob_km2"] == pytest.approx(
        np.sqrt((table.err_prob_km2**2).sum()), abs=1e-4
    )
    for name, km2 in sums["km2"].items():
        assert 0 < sums["err_buffer_km2"][name] <= km2
        assert sums["err_prob_km2"][name] > 0


# --- what the network itself is unsure of ----------------------------------------------------

SQUARE = blank(clean=[(20, 20, 40, 40)])
FRINGE = 4 * 20 * 2 + 4
"""Pixels within two of a square of 20, in steps along rows and columns."""


def unsure(p: float, where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Probabilities of clean ice, p there and none elsewhere; none of debris."""
    return np.stack([np.where(where, p, 0), np.zeros(where.shape)])


def err_prob(place: Workplace, odds: NDArray[np.float64], metres: float = 100.0) -> float:
    place.set(correlation_m=metres)
    folder = place.root / "data/maps" / SCENE
    if not folder.exists():
        write_map(place.root, SQUARE, odds=odds)
    else:
        levels = np.rint(odds * 255).astype(np.uint8)
        rewrite(folder / f"{SCENE}_probabilities.tif", levels)
    return float(place.outline(folder).only.err_prob_km2)


@pytest.mark.parametrize("around", [False, True])
def test_the_error_by_probabilities_is_that_of_as_many_coins_as_are_independent(
    place: Workplace, around: bool
) -> None:
    pixels = 400 + FRINGE if around else 400
    odds = unsure(0.5, np.ones(SQUARE.shape, bool) if around else SQUARE == 1)
    alike = np.pi * 100**2 / 5 / PIXEL**2
    expected = np.sqrt(pixels * alike * 0.25) * PIXEL_KM2
    assert err_prob(place, odds) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_network_that_is_sure_leaves_no_error(place: Workplace, p: float) -> None:
    assert err_prob(place, unsure(p, SQUARE == 1)) == 0


def test_ice_of_either_class_for_sure_is_sure_ice(place: Workplace) -> None:
    levels = np.where(SQUARE == 1, 0.6, 0), np.where(SQUARE == 1, 0.4, 0)
    found = place.outlined(SQUARE, odds=np.stack(levels))
    assert found.only.err_prob_km2 == 0
    assert min(found.sums["err_prob_km2"].values()) > 0


def test_the_error_grows_with_the_range_until_all_pixels_err_as_one(place: Workplace) -> None:
    odds = unsure(0.5, SQUARE == 1)
    errors = [err_prob(place, odds, metres) for metres in (1, 60, 200, 400, 2e3, 1e7)]
    assert errors == sorted(errors)
    assert errors[0] < errors[2] < errors[3] < errors[4]
    independent, all_as_one = np.sqrt(400) * 0.5 * PIXEL_KM2, 400 * 0.5 * PIXEL_KM2
    assert errors[0] == pytest.approx(independent, rel=2e-3)
    assert errors[4] == errors[5] == pytest.approx(all_as_one, rel=2e-3)


def test_pixels_that_are_sure_add_no_error_to_those_that_are_not(place: Workplace) -> None:
    rim = (SQUARE == 1) & ~ndimage.binary_erosion(SQUARE == 1)
    odds = unsure(1, SQUARE == 1)
    odds[0][rim] = 0.5
    assert err_prob(place, odds, 1e7) == pytest.approx(rim.sum() * 0.5 * PIXEL_KM2, rel=2e-3)


def test_what_was_not_seen_around_a_glacier_adds_no_error(place: Workplace) -> None:
    classes = blank(clean=[(20, 20, 40, 40)], unseen=[(0, 40, 60, 60)])
    folder = write_map(place.root, classes)
    # Also where the raster holds something under its mask.
    everywhere = np.full((2, *classes.shape), 128, dtype=np.uint8)
    everywhere[1] = 0
    rewrite(folder / f"{SCENE}_probabilities.tif", everywhere)
    place.set(correlation_m=1.0)
    pixels = 400 + FRINGE - 40 - 2
    assert place.outline(folder).only.err_prob_km2 == pytest.approx(
        np.sqrt(pixels) * 0.5 * PIXEL_KM2, rel=2e-3
    )


# --- terrain ---------------------------------------------------------------------------------


def plane(shape: tuple[int, int], east: float, north: float, at: float = 5000.0) -> Any:
    """Metres; what a pixel eastward and a pixel northward adds."""
    row, col = np.indices(shape)
    return at + east * col - north * row


@pytest.mark.parametrize(
    ("east", "north", "aspect"),
    [(0, 15, 180), (15, 0, 270), (-15, 0, 90), (15, 15, 225), (-15, 15, 135), (-15, -15, 45)],
)
def test_slope_and_aspect_of_a_plane(
    place: Workplace, east: float, north: float, aspect: float
) -> None:
    classes = blank(clean=[(10, 10, 30, 50)])
    record = place.outlined(classes, elevation=plane(classes.shape, east, north)).only
    steep = np.degrees(np.arctan(np.hypot(east, north) / 30))
    assert record.slope_deg == pytest.approx(steep, abs=0.1)
    assert record.aspect_deg == pytest.approx(aspect, abs=0.2)


@pytest.mark.parametrize("west", [-6_300, 0, 6_300])
def test_a_slope_that_looks_north_has_an_aspect_of_nought_on_either_side_of_the_meridian(
    place: Workplace, west: float
) -> None:
    classes = blank(clean=[(10, 10, 30, 50)])
    record = place.outlined(
        classes,
        elevation=plane(classes.shape, 0, -15),
        transform=north_up(500_000 + west, 3_100_020),
    ).only
    assert record.aspect_deg == 0


def test_flat_ice_has_no_aspect(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 30, 50)])
    record = place.outlined(classes, elevation=np.full(classes.shape, 4321.5)).only
    assert record.slope_deg == 0
    assert np.isnan(record.aspect_deg)
    assert (record[["zmin_m", "zmean_m", "zmed_m", "zmax_m"]] == 4321.5).all()


def test_heights_are_those_of_the_glacier_alone(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 20, 20), (30, 30, 45, 41)])
    random = np.random.default_rng(4)
    heights = np.rint(random.gamma(2, 300, classes.shape) * 2) / 2 - 100
    table = place.outlined(classes, elevation=heights).glaciers
    for record, part in zip(
        table.itertuples(), [heights[10:20, 10:20], heights[30:45, 30:41]], strict=True
    ):
        assert (record.zmin_m, record.zmax_m) == (part.min(), part.max())
        assert record.zmean_m == pytest.approx(part.mean(), abs=0.06)
        assert record.zmed_m == pytest.approx(np.median(part), abs=0.06)


def test_slopes_have_no_seam_between_working_steps(place: Workplace) -> None:
    """Terrain is read in strips of 512 rows; a valley floor lies where two of them meet."""
    classes = blank(600, 12, clean=[(509, 2, 515, 10)])
    row = np.indices(classes.shape)[0]
    heights = 3000 + 30.0 * np.abs(row - 511.5)
    record = place.outlined(classes, elevation=heights).only
    steep = np.degrees(np.arctan(np.abs(np.gradient(heights[:, 5]))[509:515] / 30))
    assert steep.min() < steep.max()
    assert record.slope_deg == pytest.approx(steep.mean(), abs=0.1)
    assert (record.zmin_m, record.zmax_m) == (3015, 3075)


def test_a_map_in_many_strips_gives_what_it_gives_in_one(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Glaciers, gaps, fringes and slopes across them; pixel areas alone are interpolated anew."""
    classes = natural(3)
    classes[30:33] = UNSEEN
    random = np.random.default_rng(3)
    heights = np.rint(random.normal(5000, 200, classes.shape))
    odds = random.uniform(0, 0.5, (2, *classes.shape))
    folder = write_map(place.root, classes, elevation=heights, odds=odds)
    place.set(gap_pixels=4, min_area_km2=0.01)
    whole = place.outline(folder)
    assert whole.glaciers.gap_km2.sum() > 0
    for rows in (1, 2, 7):
        monkeypatch.setattr(glaciers, "STRIP_ROWS", rows)
        monkeypatch.setattr(attributes, "STRIP_ROWS", rows)
        monkeypatch.setattr(coverage, "_STRIP_ROWS", rows)
        parts = place.outline(folder, out=f"strips of {rows}")
        for layer in ("glaciers", "classes"):
            here, there = whole.layer(layer), parts.layer(layer)
            assert here.geometry.geom_equals_exact(there.geometry, 0).all()
            assert_frame_equal(
                here.drop(columns="geometry"), there.drop(columns="geometry"), atol=1e-5
            )
        assert_frame_equal(hypsometry(whole), hypsometry(parts), atol=1e-5)


def hypsometry(found: Outlines) -> pd.DataFrame:
    return pd.read_csv(found.folder / f"{SCENE}_hypsometry.csv")


def test_the_hypsometry_adds_up_to_the_areas_of_the_classes(place: Workplace) -> None:
    classes = natural()
    heights = plane(classes.shape, 7.5, 11, at=350.0)
    found = place.outlined(classes, elevation=heights)
    table = hypsometry(found)
    assert table.columns.tolist() == ["elevation_m", "class", "km2"]
    assert table.elevation_m.min() < 0 < table.elevation_m.max()
    sums = table.groupby("class").km2.sum().to_dict()
    assert sums == pytest.approx(found.sums["km2"], abs=1e-4)
    for number, name in enumerate(["clean_ice", "debris"], start=1):
        own = table[table["class"] == name]
        assert (np.diff(own.elevation_m) == 100).all()
        counted = [
            ((heights >= low) & (heights < low + 100) & (classes == number)).sum()
            for low in own.elevation_m
        ]
        np.testing.assert_allclose(own.km2 / PIXEL_KM2, counted, rtol=1e-3)


def test_a_map_without_elevation_has_no_hypsometry_and_empty_heights(place: Workplace) -> None:
    found = place.outlined(blank(clean=[(10, 10, 30, 50)]))
    heights = ["zmin_m", "zmax_m", "zmean_m", "zmed_m", "slope_deg", "aspect_deg"]
    assert found.glaciers[heights].isna().all(axis=None)
    assert not list(found.folder.glob("*hypsometry*"))


def test_heights_unknown_on_all_ice_are_none(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 30, 50)])
    found = place.outlined(classes, elevation=np.where(classes == 1, np.nan, 5000.0))
    assert np.isnan(found.only.zmean_m)
    assert not list(found.folder.glob("*hypsometry*"))


def test_heights_unknown_in_part_are_those_that_are_known(place: Workplace) -> None:
    classes = blank(clean=[(10, 10, 30, 50), (40, 10, 50, 30)])
    heights = plane(classes.shape, 0, 10)
    heights[10:20] = np.nan
    heights[40:50, 10:30] = np.nan
    found = place.outlined(classes, elevation=heights)
    known, unknown = found.glaciers.itertuples()
    assert (known.zmin_m, known.zmax_m) == (heights[29, 10], heights[20, 10])
    assert known.slope_deg == pytest.approx(np.degrees(np.arctan(1 / 3)), abs=0.1)
    assert np.isnan([unknown.zmin_m, unknown.zmed_m, unknown.slope_deg, unknown.aspect_deg]).all()
    assert hypsometry(found).km2.sum() == pytest.approx(400 * PIXEL_KM2, rel=1e-3)


# --- names -----------------------------------------------------------------------------------

GLIMS = re.compile(r"G(\d{6})E(\d{5})([NS])(-\d+)?")


@pytest.mark.parametrize(
    ("crs", "corner", "letter"),
    [
        ("EPSG:32645", CORNER, "N"),
        ("EPSG:32718", (640_000, 4_600_000), "S"),
        ("EPSG:32606", (500_000, 7_000_000), "N"),
        ("EPSG:32735", (450_000, 9_650_000), "S"),
    ],
)
def test_ids_say_where_a_glacier_is_as_glims_does(
    place: Workplace, crs: str, corner: tuple[float, float], letter: str
) -> None:
    table = place.outlined(natural(), crs=crs, transform=north_up(*corner)).glaciers
    degrees = table.to_crs(4326)
    for record in degrees.itertuples():
        found = GLIMS.fullmatch(record.glac_id)
        assert found is not None
        lon, lat = int(found[1]) / 1000, int(found[2]) / 1000
        assert 0 <= lon < 360
        assert found[3] == letter
        lat = -lat if letter == "S" else lat
        assert lon == pytest.approx(record.cenlon % 360, abs=5.1e-4)
        assert lat == pytest.approx(record.cenlat, abs=5.1e-4)
        assert record.geometry.buffer(1e-6).contains(shapely.Point(record.cenlon, record.cenlat))
    assert table.glac_id.is_unique


def test_glaciers_of_one_place_are_told_apart(place: Workplace) -> None:
    boxes = [(5, left, 9, left + 4) for left in (5, 12, 19)]
    table = place.outlined(blank(clean=boxes), transform=north_up(pixel=1.0)).glaciers
    first = table.glac_id[0]
    assert table.glac_id.tolist() == [first, f"{first}-2", f"{first}-3"]
    assert table.complex_id.tolist() == table.glac_id.tolist()


def test_a_complex_is_named_after_its_largest_glacier(place: Workplace) -> None:
    shapes = [ground(HERE, (5, left, 35, right)) for left, right in ((5, 20), (20, 40), (40, 55))]
    path = make_outlines(place.root / "rgi.gpkg", shapes, rgi_id=["a", "b", "c"])
    classes = blank(clean=[(10, 10, 30, 50), (45, 10, 50, 20)])
    table = place.outlined(classes, "--inventory", path).glaciers
    split = table.set_index("inv_id")
    assert set(split.complex_id[["a", "b", "c"]]) == {split.glac_id["b"]}
    alone = table[table.inv_id.isna()]
    assert alone.complex_id.tolist() == alone.glac_id.tolist()


# --- files -----------------------------------------------------------------------------------


def values_of(frame: gpd.GeoDataFrame) -> pd.DataFrame:
    """The attributes, None where there is none, whichever way a reader says so."""
    plain = pd.DataFrame(frame.drop(columns="geometry")).astype(object)
    return plain.where(plain.notna(), None)


def test_geopackage_and_geoparquet_have_the_same_rows(place: Workplace) -> None:
    classes = natural()
    found = place.outlined(classes, elevation=plane(classes.shape, 7, 5))
    for layer in ("glaciers", "classes"):
        package, parquet = found.layer(layer), found.parquet(layer)
        assert package.crs == parquet.crs == "EPSG:32645"
        assert list(package.columns) == list(parquet.columns)
        assert_frame_equal(values_of(package), values_of(parquet), check_exact=True)
        for a, b in zip(package.geometry, parquet.geometry, strict=True):
            assert a.equals_exact(b, 0)
    assert set(found.layers) == {"glaciers", "classes", "layer_styles"}


def test_further_formats_are_written_on_request_alone(place: Workplace) -> None:
    folder = write_map(place.root, natural())
    few = {path.name for path in place.outline(folder).folder.iterdir()}
    names = [f"{SCENE}_{layer}" for layer in ("glaciers", "classes")]
    usual = {f"{n}.{suffix}" for n in names for suffix in ("parquet", "qml")}
    assert few == {f"{SCENE}_glaciers.gpkg", *usual, "outlines.json"}
    more = place.outline(folder, "--also", "geojson", "--also", "shapefile")
    suffixes = ("geojson", "shp", "shx", "dbf", "prj", "cpg")
    added = {f"{n}.{suffix}" for n in names for suffix in suffixes}
    assert {path.name for path in more.folder.iterdir()} == few | added
    # A folder of outlines is replaced, not merged with.
    assert {path.name for path in place.outline(folder).folder.iterdir()} == few


def test_geojson_is_in_degrees_and_says_the_same(place: Workplace) -> None:
    found = place.outlined(natural(), "--also", "geojson")
    for layer in ("glaciers", "classes"):
        path = found.folder / f"{SCENE}_{layer}.geojson"
        content = json.loads(path.read_text())
        assert "crs" not in content  # RFC 7946 knows but one
        back, table = gpd.read_file(path), found.layer(layer)
        assert back.crs == "EPSG:4326"
        back["date"] = back["date"].astype(str)  # told from text, here
        assert_frame_equal(values_of(back), values_of(table))
        pairs = back.geometry.values, table.to_crs(4326).geometry.values
        assert max(shapely.hausdorff_distance(a, b) for a, b in zip(*pairs, strict=True)) < 2e-7
        assert all(part.exterior.is_ccw for shape in back.geometry for part in shape.geoms)


@pytest.mark.parametrize(
    "names",
    [
        ["background", "clean_ice", "debris"],
        ["background", "debris_covered", "debris_covered_moraine"],
        ["background", "debris", "debris_on_ice"],
    ],
)
def test_shapefiles_lose_no_column_to_their_ten_letters(
    place: Workplace, names: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    found = place.outlined(natural(), "--also", "shapefile", names=names)
    table = found.glaciers
    short = gpd.read_file(found.folder / f"{SCENE}_glaciers.shp")
    assert not [str(one.message) for one in recwarn if "field name" in str(one.message)]
    assert all(len(name) <= 10 for name in short.columns)
    assert len({name.lower() for name in short.columns}) == len(table.columns)
    for column, same in zip(table.columns, short.columns, strict=True):
        assert same.rpartition("_")[2] in {column.rpartition("_")[2], "shr", "buffer", "prob"}
    assert_frame_equal(values_of(short), values_of(table).set_axis(short.columns[:-1], axis=1))
    assert short.crs == table.crs
    assert short.is_valid.all()
    assert short.geom_equals(table.geometry).all()


def test_shapefiles_keep_short_names_that_can_be_read(place: Workplace) -> None:
    found = place.outlined(natural(), "--also", "shapefile")
    columns = set(columns_of(found.folder / f"{SCENE}_glaciers.shp"))
    assert {"clean_km2", "debris_km2", "clean_shr", "debris_shr", "err_buffer", "err_prob",
            "complex_id", "confidence"} <= columns  # fmt: skip


def test_a_long_list_of_models_is_cut_in_shapefiles_alone(
    place: Workplace, recwarn: pytest.WarningsRecorder
) -> None:
    models = [f"data/models/{i:02d}_{'m' * 20}" for i in range(12)]
    found = place.outlined(natural(), "--also", "shapefile", models=models)
    assert found.glaciers.model[0] == " ".join(models)
    short = gpd.read_file(found.folder / f"{SCENE}_glaciers.shp")
    assert short.model[0] == " ".join(models)[:254]
    assert not [str(one.message) for one in recwarn if "truncated" in str(one.message)]


EVERY = ("--also", "geojson", "--also", "shapefile")


@pytest.mark.parametrize("nothing", [0, UNSEEN])
def test_a_map_without_glaciers_gives_empty_layers_with_all_columns(
    place: Workplace, nothing: int
) -> None:
    full = place.outlined(natural(), *EVERY, scene="LE07_FULL")
    classes = np.full((40, 40), nothing, dtype=np.uint8)
    empty = place.outlined(classes, *EVERY, elevation=np.full((40, 40), 5000.0))
    for layer in ("glaciers", "classes"):
        assert columns_of(empty.package, layer) == columns_of(full.package, layer)
        info = pyogrio.read_info(empty.package, layer=layer)
        assert (info["features"], info["geometry_type"]) == (0, "MultiPolygon")
        assert info["crs"] == "EPSG:32645"
        schemas = [
            pq.read_schema(one.folder / f"{one.scene}_{layer}.parquet") for one in (empty, full)
        ]
        assert schemas[0].names == schemas[1].names
        assert schemas[0].types == schemas[1].types
        assert empty.parquet(layer).crs == full.parquet(layer).crs
        shapefiles = [one.folder / f"{one.scene}_{layer}.shp" for one in (empty, full)]
        assert columns_of(shapefiles[0]) == columns_of(shapefiles[1])
        assert len(gpd.read_file(shapefiles[0])) == 0
        content = json.loads((empty.folder / f"{SCENE}_{layer}.geojson").read_text())
        assert (content["type"], content["features"]) == ("FeatureCollection", [])
    assert empty.sums["glaciers"] == empty.sums["total_km2"] == 0
    assert "layer_styles" in empty.layers


def test_columns_have_the_same_types_whatever_is_known(place: Workplace) -> None:
    """So that the tables of many scenes can be put together."""
    bare = place.outlined(blank(clean=[(10, 10, 30, 30)]), scene="LE07_A", date=None)
    gap = blank(clean=[(10, 10, 20, 30), (25, 10, 35, 30)], unseen=[(20, 0, 25, 60)])
    path = make_outlines(place.root / "rgi.gpkg", [ground(HERE, (0, 0, 60, 60))], rgi_id=["a"])
    known = place.outlined(gap, "--inventory", path, elevation=plane(gap.shape, 3, 3))
    kinds = [
        pq.read_schema(one.folder / f"{one.scene}_glaciers.parquet").types for one in (bare, known)
    ]
    assert kinds[0] == kinds[1]
    assert columns_of(bare.package, "glaciers") == columns_of(known.package, "glaciers")


def test_the_same_map_gives_the_same_bytes(
    place: Workplace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = natural()
    first = place.outlined(classes, *EVERY, elevation=plane(classes.shape, 7, 5))
    other = tmp_path_factory.mktemp("other")
    monkeypatch.chdir(other)
    # Another folder, and an empty map before, in the same process.
    elsewhere = Workplace(other)
    elsewhere.outlined(blank(), scene="LE07_EMPTY")
    second = elsewhere.outlined(classes, *EVERY, elevation=plane(classes.shape, 7, 5))
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == sorted(path.name for path in second.folder.iterdir())
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes(), name


@pytest.mark.parametrize(("day", "stamp"), [("2000-10-25", "2000-10-25"), (None, "2000-01-01")])
def test_no_file_holds_the_hour_at_which_it_was_written(
    place: Workplace, day: str | None, stamp: str
) -> None:
    found = place.outlined(natural(), "--also", "shapefile", date=day)
    with sqlite3.connect(found.package) as database:
        changed = database.execute("SELECT last_change FROM gpkg_contents").fetchall()
        styled = database.execute("SELECT update_time FROM layer_styles").fetchall()
    database.close()
    assert set(changed + styled) == {(f"{stamp}T00:00:00.000Z",)}
    year, month, date = (int(part) for part in stamp.split("-"))
    for layer in ("glaciers", "classes"):
        header = (found.folder / f"{SCENE}_{layer}.dbf").read_bytes()[1:4]
        assert tuple(header) == (year - 1900, month, date)


def test_several_maps_are_outlined_in_one_go(place: Workplace) -> None:
    folders = [
        write_map(place.root, blank(clean=[(10, 10, 30, n)]), scene=f"LE07_{n}") for n in (30, 50)
    ]
    done = place.ask(*folders, "--out", "o")
    assert done.exit_code == 0
    assert [line.partition(":")[0] for line in done.output.splitlines()] == [
        "o/LE07_30",
        "o/LE07_50",
    ]
    sizes = [
        Outlines(place.root / "o" / one.name, one.name, "").only.area_km2 / PIXEL_KM2
        for one in folders
    ]
    np.testing.assert_allclose(sizes, [400, 800], rtol=1e-3)


# --- styles ----------------------------------------------------------------------------------


def test_every_layer_has_a_style_that_a_gis_takes_up(place: Workplace) -> None:
    found = place.outlined(natural())
    with sqlite3.connect(found.package) as database:
        geometry = dict(
            database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns")
        )
        styles = database.execute(
            "SELECT f_table_catalog, f_table_schema, f_table_name, f_geometry_column, useAsDefault, "
            "styleQML FROM layer_styles"
        ).fetchall()
        kinds = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents"))
        problems = database.execute("PRAGMA integrity_check").fetchall()
    database.close()
    assert kinds == {"glaciers": "features", "classes": "features", "layer_styles": "attributes"}
    assert problems == [("ok",)]
    assert {table: column for _, _, table, column, _, _ in styles} == geometry
    for catalog, schema, _, _, default, qml in styles:
        assert (catalog, schema, default) == ("", "", 1)
        assert ET.fromstring(qml.partition("\n")[2]).tag == "qgis"


def test_polygons_have_the_colours_of_the_class_raster(place: Workplace, tmp_path: Path) -> None:
    found = place.outlined(natural())
    with sqlite3.connect(found.package) as database:
        [[qml]] = database.execute("SELECT styleQML FROM layer_styles WHERE f_table_name='classes'")
    database.close()
    root = ET.fromstring(qml.partition("\n")[2])
    renderer = root.find("renderer-v2")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class")
    by_value = {one.get("value"): one.get("symbol") for one in root.iter("category")}
    assert set(by_value) == set(found.classes["class"]) == {"clean_ice", "debris"}
    write_class_style(tmp_path / "classes.qml", ["background", "clean_ice", "debris"])
    palette = ET.parse(tmp_path / "classes.qml").getroot()
    entries = {one.get("value"): one for one in palette.iter("paletteEntry")}
    assert entries["0"].get("alpha") == "0"
    for number, name in enumerate(["clean_ice", "debris"], start=1):
        colour = CLASS_COLOURS[number]
        assert entries[str(number)].get("color") == colour
        assert entries[str(number)].get("label") == name.replace("_", " ")
        [symbol] = [one for one in root.iter("symbol") if one.get("name") == by_value[name]]
        fill = {one.get("name"): one.get("value") for one in symbol.iter("Option")}["color"]
        assert fill is not None
        assert tuple(map(int, fill.split(",")[:3])) == tuple(bytes.fromhex(colour[1:]))


# --- maps that cannot be outlined, places that cannot be written -----------------------------


def test_a_map_that_lies_nowhere_is_refused(place: Workplace) -> None:
    folder = write_map(place.root, natural(), crs=None)
    said = place.refused(folder, "--out", "o")
    assert f"{folder / f'{SCENE}_classes.tif'}: has no coordinate reference system" in said
    assert not (place.root / "o").exists()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (kind, how)
        for kind in ("classes", "probabilities", "confidence", "elevation")
        for how in ("missing", "empty", "garbage", "cut off")
        if (kind, how) != ("elevation", "missing")  # a scene may have none
    ],
)
def test_a_damaged_raster_is_refused_by_name(place: Workplace, kind: str, how: str) -> None:
    folder = write_map(place.root, natural(size=200), elevation=np.full((200, 200), 5000.0))
    path = folder / f"{SCENE}_{kind}.tif"
    whole = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(
            {"empty": b"", "garbage": b"no raster" * 99, "cut off": whole[: len(whole) // 2]}[how]
        )
    done = place.ask(folder, "--out", "o")
    assert done.exit_code == 2, repr(done.exception)
    assert f"error: {path}: " in done.output
    assert not (place.root / "o").exists()


@pytest.mark.parametrize("kind", ["probabilities", "confidence", "elevation"])
@pytest.mark.parametrize("size", [199, 201])
def test_a_raster_of_another_size_is_refused(place: Workplace, kind: str, size: int) -> None:
    classes = natural(size=200)
    folder = write_map(place.root, classes, elevation=np.full((200, 200), 5000.0))
    path = folder / f"{SCENE}_{kind}.tif"
    dtype = "int16" if kind == "elevation" else "uint8"
    bands = 2 if kind == "probabilities" else 1
    rewrite(path, np.ones((bands, size, 200), dtype=dtype))
    said = place.refused(folder, "--out", "o")
    assert f"{path}: has not the 200 x 200 pixels of the class raster" in said


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"scene": "A"}', "\xff\x00"])
def test_a_damaged_map_json_is_refused(place: Workplace, text: str) -> None:
    folder = write_map(place.root, natural())
    (folder / "map.json").write_text(text, encoding="latin-1")
    assert f"{folder / 'map.json'}: is damaged" in place.refused(folder, "--out", "o")


def test_a_folder_without_a_map_is_refused(place: Workplace) -> None:
    (place.root / "empty").mkdir()
    (place.root / "file").write_text("")
    for name in ("empty", "none"):
        said = place.refused(name, "--out", "o")
        assert f"{name}/map.json: no such file; run `glacier map` first" in said


def test_outlines_do_not_replace_the_map_they_are_drawn_of(place: Workplace) -> None:
    folder = write_map(place.root, natural())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    said = place.refused(folder, "--out", folder.parent)
    assert f"{folder}: holds files that `glacier outlines` did not make" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_outlines_replace_no_files_of_others(place: Workplace) -> None:
    folder = write_map(place.root, natural())
    (place.root / "o" / SCENE).mkdir(parents=True)
    place.outline(folder, out="o")  # an empty folder is nobody's
    (place.root / "mine" / SCENE).mkdir(parents=True)
    notes = place.root / "mine" / SCENE / "notes.txt"
    notes.write_text("a week of work")
    assert "Name another folder with --out" in place.refused(folder, "--out", "mine")
    assert notes.read_text() == "a week of work"


def test_a_place_that_cannot_be_written_is_named(place: Workplace) -> None:
    folder = write_map(place.root, natural())
    (place.root / "file").write_text("")
    done = place.ask(folder, "--out", "file/outlines")
    assert done.exit_code == 1
    assert done.output.startswith(f"error: file/outlines/{SCENE}: cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_named(place: Workplace) -> None:
    folder = write_map(place.root, natural())
    (place.root / "o").mkdir(mode=0o500)
    done = place.ask(folder, "--out", "o")
    assert done.exit_code == 1
    assert "cannot be written (Permission denied)" in done.output


def kept_whole(old: Outlines, before: dict[str, bytes]) -> bool:
    """Whether a folder holds the old outlines, and beside it there is nothing else."""
    alone = [path.name for path in old.folder.parent.iterdir()] == [SCENE]
    return alone and {path.name: path.read_bytes() for path in old.folder.iterdir()} == before


def test_no_room_left_is_said_and_the_old_outlines_stay(place: Workplace) -> None:
    folder = write_map(place.root, natural())
    old = place.outline(folder, out="o")
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    size = old.package.stat().st_size // 2

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    failed = glacier(place.root, "outlines", str(folder), "--out", "o", limit=little_room)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert f"{SCENE}_glaciers.gpkg: cannot be written" in failed.stderr
    assert "Is there room left on the disk?" in failed.stderr
    assert kept_whole(old, before)


def test_a_shapefile_whose_last_bytes_found_no_room_is_not_kept(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL says nothing of what goes wrong while it closes a file."""
    folder = write_map(place.root, natural())
    old = place.outline(folder, out="o")
    before = {path.name: path.read_bytes() for path in old.folder.iterdir()}
    write = pyogrio.write_dataframe

    def lose_the_end(frame: Any, path: Path, **options: Any) -> None:
        write(frame, path, **options)
        if path.suffix == ".shp":
            path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(pyogrio, "write_dataframe", lose_the_end)
    failed = place.ask(folder, "--out", "o", "--also", "shapefile")
    assert failed.exit_code == 1
    assert f"{SCENE}_glaciers.shp: cannot be written" in failed.output
    assert kept_whole(old, before)


def test_the_summary_says_how_its_numbers_were_made(place: Workplace) -> None:
    sums = place.outlined(natural()).sums
    assert {"area", "err_buffer", "err_prob", "confidence", "elevation"} == set(sums["methods"])
    assert sums["models"] == [MODEL]
    assert sums["inventory"] is None


def test_the_hypsometry_is_a_plain_table(place: Workplace) -> None:
    classes = natural()
    found = place.outlined(classes, elevation=plane(classes.shape, 7, 5))
    with (found.folder / f"{SCENE}_hypsometry.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(re.fullmatch(r"-?\d+", row["elevation_m"]) for row in rows)
    assert {row["class"] for row in rows} == {"clean_ice", "debris"}
    assert b"\r" not in (found.folder / f"{SCENE}_hypsometry.csv").read_bytes()
