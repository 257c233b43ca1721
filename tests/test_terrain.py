"""Slope and aspect of planes are those of the planes, whatever grid they lie on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from affine import Affine
from conftest import CORNER, north_up
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.terrain import slope_aspect

HEIGHT, WIDTH = 14, 11

GRIDS = {
    "utm": Grid(HEIGHT, WIDTH, north_up(), CRS.from_epsg(32645)),
    # Grid north is 1.4 degrees off true north there.
    "edge of a utm zone": Grid(HEIGHT, WIDTH, north_up(235_000), CRS.from_epsg(32645)),
    "southern": Grid(HEIGHT, WIDTH, north_up(640_000, 4_600_000), CRS.from_epsg(32718)),
    "south up": Grid(HEIGHT, WIDTH, Affine(30, 0, *CORNER[:1], 0, 30, CORNER[1]),
                     CRS.from_epsg(32645)),
    "not square": Grid(HEIGHT, WIDTH, Affine(15, 0, CORNER[0], 0, -90, CORNER[1]),
                       CRS.from_epsg(32645)),
    "rotated": Grid(HEIGHT, WIDTH, north_up() @ Affine.rotation(33), CRS.from_epsg(32645)),
    "sheared": Grid(HEIGHT, WIDTH, north_up() @ Affine.shear(20, 0), CRS.from_epsg(32645)),
    "mirrored": Grid(HEIGHT, WIDTH, north_up() @ Affine.scale(-1, 1), CRS.from_epsg(32645)),
    "degrees": Grid(HEIGHT, WIDTH, north_up(86.5, 28.1, 3e-4), CRS.from_epsg(4326)),
    "degrees, far north": Grid(HEIGHT, WIDTH, north_up(-40, 72, 3e-4), CRS.from_epsg(4326)),
    "feet": Grid(HEIGHT, WIDTH, north_up(7_600_000, 680_000, 100), CRS.from_epsg(2269)),
    # Grid north has nothing to do with true north, nor plane metres with those on the ground.
    "polar": Grid(HEIGHT, WIDTH, north_up(-1_000_000, -2_000_000), CRS.from_epsg(3995)),
    "mercator": Grid(HEIGHT, WIDTH, north_up(8_500_000, 5_600_000), CRS.from_epsg(3857)),
}  # fmt: skip


def on_the_ground(grid: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metres to the true east and north of each pixel's centre from the middle one, by geodesics."""
    col, row = np.meshgrid(np.arange(grid.width) + 0.5, np.arange(grid.height) + 0.5)
    x, y = grid.transform @ (col, row)
    assert grid.crs.geodetic_crs is not None
    to_degrees = Transformer.from_crs(grid.crs, grid.crs.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform(x, y)
    middle = grid.height // 2, grid.width // 2
    geod = grid.crs.get_geod() or Geod(ellps="WGS84")
    there = np.full(lon.shape, lon[middle]), np.full(lat.shape, lat[middle])
    azimuth, _, metres = geod.inv(*there, lon, lat)
    return np.sin(np.radians(azimuth)) * metres, np.cos(np.radians(azimuth)) * metres


def plane(grid: Grid, slope: float, aspect: float) -> NDArray[np.float64]:
    """Heights of a plane that falls by `slope` degrees towards `aspect`."""
    east, north = on_the_ground(grid)
    along = east * np.sin(np.radians(aspect)) + north * np.cos(np.radians(aspect))
    return 5000 - np.tan(np.radians(slope)) * along


def turned(aspect: NDArray[np.float32], from_: float) -> float:
    """The largest angle between directions."""
    return float(np.abs((aspect - from_ + 180) % 360 - 180).max())


@pytest.mark.parametrize("aspect", [0, 45, 90, 135, 180, 225, 270, 315, 359.5])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_plane_has_its_slope_and_aspect_on_any_grid(grid: Grid, aspect: float) -> None:
    slope, towards = slope_aspect(plane(grid, 24.0, aspect), grid, grid.window)
    assert slope.shape == towards.shape == (HEIGHT, WIDTH)
    assert slope.dtype == towards.dtype == np.float32
    np.testing.assert_allclose(slope, 24, atol=0.05)
    assert turned(towards, aspect) < 0.1
    assert towards.min() >= 0
    assert towards.max() < 360


@pytest.mark.parametrize(
    ("falls", "expected"), [("north", 0), ("east", 90), ("south", 180), ("west", 270)]
)
def test_north_facing_is_0_and_east_facing_90(falls: str, expected: float) -> None:
    """By hand: rows run south, columns east, 30 m each; 30 m down on 30 m is 45 degrees."""
    row, col = np.mgrid[:5, :6] * 30.0
    heights = {"north": row, "east": -col, "south": -row, "west": col}[falls]
    grid = Grid(5, 6, north_up(), CRS.from_epsg(32645))
    slope, aspect = slope_aspect(heights, grid, grid.window)
    # On the ground, pixels in the middle of a zone are larger than on the plane, by 1 / 0.9996.
    np.testing.assert_allclose(slope, np.degrees(np.arctan(0.9996)), atol=2e-3)
    assert turned(aspect, expected) < 0.01


@pytest.mark.parametrize("slope", [0.1, 5, 45, 70, 85])
def test_gentle_and_steep_slopes(slope: float) -> None:
    grid = GRIDS["utm"]
    found, _ = slope_aspect(plane(grid, slope, 200), grid, grid.window)
    np.testing.assert_allclose(found, slope, atol=0.02)


def test_degrees_are_as_long_as_at_the_windows_latitude() -> None:
    """A plane in degrees: by the radii of the ellipsoid, at either end of a tall grid."""
    grid = Grid(60_000, 4, north_up(80, 72, 1e-3), CRS.from_epsg(4326))
    for row in (10, 59_000):
        window = Window(row, 0, 6, 4)
        lat = np.radians(72 - (row + 3) * 1e-3)
        a, e2 = 6378137.0, 0.00669437999014
        normal = a / np.sqrt(1 - e2 * np.sin(lat) ** 2)
        meridian = a * (1 - e2) / (1 - e2 * np.sin(lat) ** 2) ** 1.5
        col_m = np.radians(1e-3) * normal * np.cos(lat)
        row_m = np.radians(1e-3) * meridian
        down_east, down_south = 20.0, 35.0  # metres down a column and a row
        at_row, at_col = np.mgrid[:6, :4]
        heights = 4000 - down_east * at_col - down_south * at_row
        slope, aspect = slope_aspect(heights, grid, window)
        east, south = down_east / col_m, down_south / row_m
        np.testing.assert_allclose(slope, np.degrees(np.arctan(np.hypot(east, south))), rtol=1e-3)
        assert turned(aspect, float(np.degrees(np.arctan2(east, -south)))) < 0.05


def test_flat_ground_has_no_aspect() -> None:
    grid = GRIDS["utm"]
    slope, aspect = slope_aspect(np.full((HEIGHT, WIDTH), 5000.0), grid, grid.window)
    np.testing.assert_array_equal(slope, 0)
    assert np.isnan(aspect).all()


def test_next_to_the_unknown_nothing_is_known_and_elsewhere_all() -> None:
    grid = GRIDS["utm"]
    heights = plane(grid, 24, 100)
    heights[6, 5] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slope, aspect = slope_aspect(heights, grid, grid.window)
    for row, col in [(5, 5), (7, 5), (6, 4), (6, 6)]:
        assert np.isnan(slope[row, col])
        assert np.isnan(aspect[row, col])
    known = np.ones((HEIGHT, WIDTH), dtype=bool)
    known[5:8, 4:7] = False
    np.testing.assert_allclose(slope[known], 24, atol=0.05)


@pytest.mark.parametrize("shape", [(9, 7), (2, 2), (1, 9)])
def test_asked_for_some_pixels_it_gives_just_these(shape: tuple[int, int]) -> None:
    grid = Grid(*shape, north_up(), CRS.from_epsg(32645))
    random = np.random.default_rng(1)
    heights = random.normal(5000, 50, shape)
    where = random.random(shape) < 0.5
    everywhere = slope_aspect(heights, grid, grid.window)
    for one, all_ in zip(slope_aspect(heights, grid, grid.window, where), everywhere, strict=True):
        assert one.shape == (where.sum(),)
        np.testing.assert_array_equal(one, all_[where])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_a_line_of_pixels_has_neither(shape: tuple[int, int]) -> None:
    grid = Grid(*shape, north_up(), CRS.from_epsg(32645))
    for found in slope_aspect(np.ones(shape), grid, grid.window):
        assert found.shape == shape
        assert np.isnan(found).all()


def test_two_pixels_each_way_are_enough() -> None:
    grid = Grid(2, 2, north_up(), CRS.from_epsg(32645))
    slope, aspect = slope_aspect(plane(grid, 30, 60), grid, grid.window)
    np.testing.assert_allclose(slope, 30, atol=0.05)
    assert turned(aspect, 60) < 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_heights_are_not_changed(dtype: str) -> None:
    grid = GRIDS["utm"]
    heights = plane(grid, 24, 100).astype(dtype)
    before = heights.copy()
    slope_aspect(heights, grid, grid.window)
    np.testing.assert_array_equal(heights, before)
