"""What is burned is what GDAL burns, to the pixel, for any polygons on any grid."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from glacier_core.labels.burning import Burner
from glacier_core.raster.grid import Grid, Window

HEIGHT, WIDTH = 60, 75
NORTH_UP = Affine(1, 0, 0, 0, -1, HEIGHT)
GRIDS = [
    NORTH_UP,
    Affine(1, 0, 0, 0, 1, 0),  # south up
    Affine(-1, 0, WIDTH, 0, -1, HEIGHT),  # west on the right
    Affine(0.8, 0.2, 3, 0.1, -0.9, HEIGHT),  # turned
]


@st.composite
def outlines(draw: st.DrawFn, exact: bool) -> list[shapely.Polygon]:
    """Stars with a hole, some beside the grid, overlapping.

    If exact, borders run through pixel centres: corners lie on half pixels. But none on a row of
    centres, since a border along one is for GDAL inside of both neighbours.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    found: list[shapely.Polygon] = []
    for _ in range(draw(st.integers(1, 6))):
        middle = random.uniform(-20, 95, 2)
        corners = random.integers(3, 14)
        angle, radius = (
            np.sort(random.uniform(0, 2 * np.pi, corners)),
            random.uniform(1, 45, corners),
        )
        xy = middle + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        hole = shapely.Point(middle).buffer(random.uniform(0.5, 12), quad_segs=2)
        star = shapely.make_valid(shapely.Polygon(xy), method="structure").difference(hole)
        if exact:
            star = shapely.make_valid(
                shapely.transform(star, lambda xy: np.round(2 * xy) / 2 + [0, 0.25]),
                method="structure",
            )
        found += [p for p in shapely.get_parts(star) if p.geom_type == "Polygon" and p.area > 0]
    return found


def check(polygons: list[shapely.Polygon], transform: Affine) -> None:
    grid = Grid(HEIGHT, WIDTH, transform, CRS.from_epsg(32645))
    burner = Burner(np.array(polygons, dtype=object), grid)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    if polygons:
        expected = rasterio.features.rasterize(
            polygons, out_shape=expected.shape, transform=transform, dtype=np.uint8
        )
    np.testing.assert_array_equal(burner.burn(grid.window), expected)
    part = Window(7, 11, 30, 41)
    np.testing.assert_array_equal(burner.burn(part), expected[part.slices])


@settings(max_examples=80, deadline=None)
@given(outlines(exact=False), st.sampled_from(GRIDS))
def test_outlines_are_burned_as_gdal_burns_them(
    polygons: list[shapely.Polygon], transform: Affine
) -> None:
    check(polygons, transform)


@settings(max_examples=80, deadline=None)
@given(outlines(exact=True), st.sampled_from(GRIDS[:3]))
def test_a_centre_that_lies_on_a_border_goes_where_gdal_puts_it(
    polygons: list[shapely.Polygon], transform: Affine
) -> None:
    check(polygons, transform)


@settings(max_examples=60, deadline=None)
@given(outlines(exact=True), st.sampled_from(GRIDS))
def test_neighbours_leave_no_pixel_between_them_and_share_none(
    polygons: list[shapely.Polygon], transform: Affine
) -> None:
    grid = Grid(HEIGHT, WIDTH, transform, CRS.from_epsg(32645))
    for polygon in polygons:
        whole = Burner(np.array([polygon], dtype=object), grid).burn(grid.window)
        pieces = shapely.get_parts(shapely.constrained_delaunay_triangles(polygon))
        burned = [
            Burner(np.array([piece], dtype=object), grid).burn(grid.window) for piece in pieces
        ]
        np.testing.assert_array_equal(np.sum(burned, axis=0, dtype=np.uint8), whole)


@pytest.mark.parametrize("polygons", [[], [shapely.Polygon()], [shapely.box(-50, -50, -10, -10)]])
def test_nothing_on_the_grid_burns_nothing(polygons: list[shapely.Polygon]) -> None:
    grid = Grid(HEIGHT, WIDTH, NORTH_UP, CRS.from_epsg(32645))
    burner = Burner(np.array(polygons, dtype=object), grid)
    assert not burner.burn(grid.window).any()
