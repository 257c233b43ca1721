"""The plane on which a report shows a map: kilometres, degrees or pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import Transformer

from glacier_core.raster.grid import Grid

LONGEST_EDGE = 1400
"""Pixels of the longer edge of a picture, at most."""

_METRES_PER_DEGREE = 111_320.0  # of longitude on the equator


@dataclass(frozen=True)
class Frame:
    """The plane on which the page shows a grid, x to the right and y upwards.

    Kilometres of the map projection, degrees, or, where the grid is turned or lies nowhere,
    pixels counted from its lower left corner.

    Attributes:
        grid: of the map.
        unit: `km`, `°` or `px`.
        to_page: from the grid's CRS to the plane.
        left, bottom, right, top: where the grid's pixels lie on the plane.
        metres: length of one unit of x on the ground, None where it is not known.
        stretch: height of a unit of y on the screen, in widths of a unit of x.
    """

    grid: Grid
    unit: str
    to_page: Affine
    left: float
    bottom: float
    right: float
    top: float
    metres: float | None
    stretch: float

    @classmethod
    def of(cls, grid: Grid) -> Frame:
        a, b, _, d, e, _ = grid.transform[:6]
        if not grid.located or b != 0 or d != 0 or a <= 0 or e >= 0:
            to_page = Affine(1, 0, 0, 0, -1, grid.height) @ ~grid.transform
            metres = grid.pixel_size_m() if grid.located else None
            return cls(grid, "px", to_page, 0, 0, grid.width, grid.height, metres, 1.0)
        unit = grid.crs.axis_info[0].unit_conversion_factor
        middle = grid.transform @ (grid.width / 2, grid.height / 2)
        if grid.crs.is_geographic:
            scale, name = math.degrees(unit), "°"
            stretch = 1 / max(math.cos(math.radians(middle[1] * scale)), 1e-3)
            metres = _METRES_PER_DEGREE / stretch
        else:
            scale, name, stretch, metres = unit / 1000, "km", 1.0, 1000.0
        to_page = Affine.scale(scale)
        left, top = to_page @ (grid.transform @ (0, 0))
        right, bottom = to_page @ (grid.transform @ (grid.width, grid.height))
        return cls(grid, name, to_page, left, bottom, right, top, metres, stretch)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of its pictures, pixels."""
        grid = self.grid
        scale = min(1.0, LONGEST_EDGE / max(grid.height, grid.width))
        return max(1, round(grid.height * scale)), max(1, round(grid.width * scale))

    @property
    def north(self) -> str:
        """Which way is up."""
        if not self.grid.located:
            return "The map has no coordinate reference system: axes count pixels."
        if self.unit == "px":
            return "The grid of the scene is turned against north: axes count pixels."
        return f"North is up. {self.grid.crs.name}."

    def on_page(self, shapes: gpd.GeoSeries) -> gpd.GeoSeries:
        """Shapes laid on the plane, from their own CRS if they have another than the grid."""
        if shapes.crs is not None and self.grid.located and shapes.crs != self.grid.crs:
            shapes = shapes.to_crs(self.grid.crs)
        a, b, c, d, e, f = self.to_page[:6]
        return gpd.GeoSeries(shapes.affine_transform([a, b, d, e, c, f]), crs=None)

    def degrees(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[npt.ArrayLike, npt.ArrayLike]:
        """Longitude and latitude of points on the plane; the grid must be located."""
        crs_x, crs_y = ~self.to_page @ (np.asarray(x), np.asarray(y))
        to_degrees = Transformer.from_crs(self.grid.crs, "EPSG:4326", always_xy=True)
        lon, lat = to_degrees.transform(crs_x, crs_y)
        return lon, lat
