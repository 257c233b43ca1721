"""Windows on a pixel grid, and where they lie on the ground."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import CRS, Geod
from shapely.geometry import Polygon

if TYPE_CHECKING:
    from rasterio.io import DatasetReader


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels. Rows count from the top, columns from the left."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array of shape (height, width, ...)."""
        return (
            slice(self.row, self.row + self.height),
            slice(self.col, self.col + self.width),
        )

    def intersection(self, other: Window) -> Window | None:
        """The pixels in both, or None."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        bottom = min(self.row + self.height, other.row + other.height)
        right = min(self.col + self.width, other.col + other.width)
        if bottom <= row or right <= col:
            return None
        return Window(row, col, bottom - row, right - col)

    def within(self, other: Window) -> Window:
        """The same pixels, counted from the corner of `other`."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)


def tile_starts(length: int, size: int, overlap: int) -> list[int]:
    """First pixel of each tile along one axis, the last tile ending at the last pixel.

    Tiles step by `size - overlap`; the last one is moved back to end at `length`, so it may
    overlap its neighbour more. One tile starting at 0 where `length <= size`.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap {overlap} must lie in [0, size {size})")
    if length <= size:
        return [0]
    return [*range(0, length - size, size - overlap), length - size]


def tile_windows(height: int, width: int, size: int, overlap: int) -> list[Window]:
    """Square windows covering every pixel, row by row; clipped where the grid is smaller."""
    return [
        Window(row, col, min(size, height), min(size, width))
        for row in tile_starts(height, size, overlap)
        for col in tile_starts(width, size, overlap)
    ]


def first_cover(windows: Sequence[Window]) -> Iterator[npt.NDArray[np.bool_]]:
    """For each window of one grid, the pixels that no earlier window covers.

    Counting only these counts every covered pixel exactly once, however windows overlap.

    Yields:
        One bool array (height, width) a window, True where the pixel is counted there.
    """
    for i, window in enumerate(windows):
        mask = np.ones((window.height, window.width), dtype=bool)
        for earlier in windows[:i]:
            shared = window.intersection(earlier)
            if shared is not None:
                mask[shared.within(window).slices] = False
        yield mask


@dataclass(frozen=True)
class Grid:
    """Shape, affine transform (pixel corner to CRS) and CRS of a raster."""

    height: int
    width: int
    transform: Affine
    crs: CRS

    @classmethod
    def of(cls, dataset: DatasetReader) -> Grid:
        return cls(
            dataset.height, dataset.width, dataset.transform, CRS.from_wkt(dataset.crs.to_wkt())
        )

    @property
    def window(self) -> Window:
        return Window(0, 0, self.height, self.width)

    def footprint(self, window: Window) -> Polygon:
        """The ground that a window's pixels show, in the grid's CRS: its outer pixel corners."""
        top, left = window.row, window.col
        bottom, right = top + window.height, left + window.width
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return Polygon([self.transform @ corner for corner in corners])

    def window_transform(self, window: Window) -> Affine:
        return self.transform @ Affine.translation(window.col, window.row)

    def row_areas_km2(self) -> npt.NDArray[np.float64]:
        """Area of one pixel of each row, km², shape (height,).

        On the plane of the CRS where it is projected, on the CRS's ellipsoid where it is
        geographic (there the area shrinks towards the poles).
        """
        if self.crs.is_projected:
            unit = self.crs.axis_info[0].unit_conversion_factor
            area = abs(self.transform.determinant) * unit**2 / 1e6
            return np.full(self.height, area)
        geod = self.crs.get_geod() or Geod(ellps="WGS84")
        rows = []
        for row in range(self.height):
            lon, lat = self.footprint(Window(row, 0, 1, 1)).exterior.coords.xy
            rows.append(abs(geod.polygon_area_perimeter(lon, lat)[0]) / 1e6)
        return np.asarray(rows)
