"""Windows cover every pixel, and lie on the ground where they say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import north_up
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely.geometry import Point

from glacier_core.errors import InputError
from glacier_core.raster.grid import (
    UNLOCATED,
    Grid,
    Window,
    first_cover,
    tile_starts,
    tile_windows,
)

lengths = st.integers(1, 70)
sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))


@st.composite
def windows(draw: st.DrawFn) -> Window:
    row, col = draw(st.integers(0, 15)), draw(st.integers(0, 15))
    return Window(row, col, draw(st.integers(1, 10)), draw(st.integers(1, 10)))


@given(height=lengths, width=lengths, tiling=sizes)
def test_tiles_cover_every_pixel_to_the_last_row_and_column(
    height: int, width: int, tiling: tuple[int, int]
) -> None:
    size, overlap = tiling
    covered = np.zeros((height, width), dtype=int)
    for window in tile_windows(height, width, size, overlap):
        part = covered[window.slices]
        # Not clipped by the array: the window lies inside the grid as it says.
        assert part.shape == (window.height, window.width) == (min(size, height), min(size, width))
        part += 1
    assert covered.min() == 1


@given(length=lengths, tiling=sizes)
def test_neighbouring_tiles_overlap_at_least_as_asked_and_never_repeat(
    length: int, tiling: tuple[int, int]
) -> None:
    size, overlap = tiling
    starts = tile_starts(length, size, overlap)
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= size - overlap for step in steps)
    # Only the last tile is moved back.
    assert all(step == size - overlap for step in steps[:-1])


def test_the_reference_tiling_is_exact() -> None:
    assert tile_starts(1018, 512, 6) == [0, 506]
    assert tile_starts(1019, 512, 6) == [0, 506, 507]
    assert tile_starts(512, 512, 6) == [0]


@pytest.mark.parametrize(("size", "overlap"), [(8, 8), (8, 9), (8, -1)])
def test_an_overlap_that_never_ends_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        tile_starts(100, size, overlap)


@given(st.lists(windows(), max_size=12))
def test_first_cover_counts_each_pixel_of_the_union_exactly_once(some: list[Window]) -> None:
    union, counted = np.zeros((30, 30), dtype=bool), np.zeros((30, 30), dtype=int)
    for window, first in zip(some, first_cover(some), strict=True):
        assert first.shape == (window.height, window.width)
        union[window.slices] = True
        counted[window.slices] += first
    np.testing.assert_array_equal(counted, union)


@given(windows(), windows())
def test_intersection_is_the_pixels_in_both(one: Window, other: Window) -> None:
    first, second = np.zeros((30, 30), dtype=bool), np.zeros((30, 30), dtype=bool)
    first[one.slices], second[other.slices] = True, True
    both = np.zeros((30, 30), dtype=bool)
    shared = one.intersection(other)
    if shared is not None:
        both[shared.slices] = True
        inside = np.zeros((one.height, one.width), dtype=bool)
        inside[shared.within(one).slices] = True
        np.testing.assert_array_equal(first[one.slices] & second[one.slices], inside)
    np.testing.assert_array_equal(both, first & second)


@given(
    window=windows(),
    angle=st.floats(-180, 180),
    across=st.floats(0.5, 60),
    down=st.floats(0.5, 60),
)
def test_a_footprint_holds_the_centres_of_its_pixels_and_of_no_others(
    window: Window, angle: float, across: float, down: float
) -> None:
    turned = Affine.rotation(angle) @ Affine.scale(across, -down)
    transform = Affine.translation(4e5, 3e6) @ turned
    grid = Grid(26, 26, transform, CRS.from_epsg(32645))
    shape = grid.footprint(window)
    inside = np.zeros((26, 26), dtype=bool)
    inside[window.slices] = True
    for row in range(window.row - 1, window.row + window.height + 1):
        for col in (window.col - 1, window.col, window.col + window.width):
            if 0 <= row < 26 and 0 <= col < 26:
                centre = Point(transform @ (col + 0.5, row + 0.5))
                assert shape.contains(centre) == inside[row, col]


@given(st.integers(1, 30), st.integers(1, 40))
def test_strips_hold_every_row_once_from_top_to_bottom(height: int, rows: int) -> None:
    grid = Grid(height, 3, Affine.identity(), CRS.from_epsg(32645))
    strips = list(grid.strips(rows))
    assert [row for w in strips for row in range(w.row, w.row + w.height)] == list(range(height))
    assert {w.height for w in strips[:-1]} <= {rows}
    assert {(w.col, w.width) for w in strips} == {(0, 3)}


def test_rows_count_from_the_north() -> None:
    grid = Grid(100, 50, north_up(500_000, 3_000_000), CRS.from_epsg(32645))
    assert grid.footprint(Window(0, 0, 10, 10)).bounds == (500_000, 2_999_700, 500_300, 3_000_000)
    assert grid.footprint(Window(90, 40, 10, 10)).bounds == (501_200, 2_997_000, 501_500, 2_997_300)


def test_a_windows_transform_starts_at_its_corner() -> None:
    grid = Grid(100, 50, north_up(500_000, 3_000_000), CRS.from_epsg(32645))
    assert grid.window_transform(Window(3, 5, 2, 2)) @ (0, 0) == (500_150, 2_999_910)


def on_the_ellipsoid(grid: Grid, row: int, col: int) -> float:
    """Area of one pixel in km², from its corners on the CRS's ellipsoid."""
    assert grid.crs.geodetic_crs is not None
    to_degrees = Transformer.from_crs(grid.crs, grid.crs.geodetic_crs, always_xy=True)
    x, y = grid.footprint(Window(row, col, 1, 1)).exterior.coords.xy
    geod = grid.crs.get_geod()
    assert geod is not None
    return abs(geod.polygon_area_perimeter(*to_degrees.transform(x, y))[0]) / 1e6


def areas_of(grid: Grid) -> NDArray[np.float64]:
    return grid.pixel_areas_km2(grid.window)


@pytest.mark.parametrize(
    "grid",
    [
        # Across a UTM zone, where the plane is wrong by -0.08 % in the middle, +0.1 % at the edge.
        Grid(700, 7800, north_up(500_010, 3_100_020), CRS.from_epsg(32645)),
        Grid(40, 30, Affine.rotation(33) @ Affine.scale(515.1, -516.9), CRS.from_epsg(32624)),
        # International feet.
        Grid(30, 20, north_up(7_600_000, 680_000, 100), CRS.from_epsg(2269)),
        # Areas twice too large on the plane; the sphere of this projection costs the last digits.
        Grid(300, 20, north_up(8_500_000, 5_600_000, 30), CRS.from_epsg(3857)),
        Grid(50, 40, north_up(80, 35, 0.001), CRS.from_epsg(4326)),
    ],
    ids=["UTM", "rotated", "feet", "Mercator", "degrees"],
)
def test_pixel_areas_are_those_of_the_ellipsoid(grid: Grid) -> None:
    window = Window(5, 3, grid.height - 5, grid.width - 3)
    areas = grid.pixel_areas_km2(window)
    assert areas.shape == (window.height, window.width)
    for row, col in [(0, 0), (areas.shape[0] // 3, areas.shape[1] // 2), (-1, -1)]:
        at = range(window.row, grid.height)[row], range(window.col, grid.width)[col]
        assert areas[row, col] == pytest.approx(
            on_the_ellipsoid(grid, *at), rel=1e-4 if grid.crs.to_epsg() == 3857 else 2e-6
        )


@pytest.mark.parametrize("crs", [32645, 4326])
@pytest.mark.parametrize("shape", [(1, 1), (70, 1), (150, 700)])
def test_areas_of_some_pixels_are_those_of_all(shape: tuple[int, int], crs: int) -> None:
    transform = north_up(200_010, 3_100_020) if crs == 32645 else north_up(80, 35, 0.001)
    grid = Grid(200, 900, transform, CRS.from_epsg(crs))
    window = Window(30, 100, *shape)
    everywhere = grid.pixel_areas_km2(window)
    random = np.random.default_rng(2)
    for share in (0, 0.4, 1):
        where = random.random(shape) < share
        some = grid.pixel_areas_km2(window, where)
        assert some.shape == (where.sum(),)
        np.testing.assert_allclose(some, everywhere[where], rtol=1e-14)


def test_a_window_has_the_areas_of_its_place() -> None:
    grid = Grid(600, 900, north_up(200_010, 3_100_020), CRS.from_epsg(32645))
    part = Window(100, 700, 50, 60)
    np.testing.assert_allclose(grid.pixel_areas_km2(part), areas_of(grid)[part.slices], rtol=1e-6)


def test_the_size_of_a_pixel_is_that_on_the_ground() -> None:
    grid = Grid(100, 100, north_up(500_010, 3_100_020), CRS.from_epsg(32645))
    assert grid.pixel_size_m() == pytest.approx(30 / 0.9996, rel=1e-4)


@pytest.mark.parametrize("north", [0.5, 35.0, 79.0])
def test_pixel_area_in_degrees_follows_the_latitude(north: float) -> None:
    grid = Grid(4, 3, north_up(80, north, 0.001), CRS.from_epsg(4326))
    # 111 km a degree along the meridian, the cosine of the latitude across.
    expected = 0.1113**2 * np.cos(np.radians(north))
    assert areas_of(grid)[0, 0] == pytest.approx(expected, rel=0.02)


def test_pixels_of_a_geographic_grid_shrink_towards_the_pole() -> None:
    areas = areas_of(Grid(50, 1, north_up(80, 60, 0.1), CRS.from_epsg(4326)))
    assert (np.diff(areas[:, 0]) > 0).all()


def test_a_grid_without_crs_has_no_areas() -> None:
    grid = Grid(3, 3, north_up(), UNLOCATED)
    assert not grid.located
    with pytest.raises(ValueError, match="without CRS"):
        areas_of(grid)
    with pytest.raises(InputError, match=r"map\.tif.*gdal_edit"):
        grid.check_located(Path("map.tif"))
