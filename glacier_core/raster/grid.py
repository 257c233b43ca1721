"""Windows on a pixel grid, and where they lie on the ground."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import CRS, Geod, Proj, Transformer
from shapely.geometry import Polygon

from glacier_core.errors import InputError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

_NODE_PIXELS = 256
# Rows whose areas are worked out at once where only some are wanted: few enough for a CPU's cache.
_SOME_ROWS = 64

# Of a raster without CRS: rows and columns, and no ground.
UNLOCATED = CRS.from_wkt(
    'ENGCRS["unknown",EDATUM["unknown"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],'
    'LENGTHUNIT["metre",1]]'
)


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
        """The grid of an open raster; its CRS is `UNLOCATED` where the file has none."""
        crs = CRS.from_wkt(dataset.crs.to_wkt()) if dataset.crs else UNLOCATED
        return cls(dataset.height, dataset.width, dataset.transform, crs)

    @property
    def window(self) -> Window:
        return Window(0, 0, self.height, self.width)

    def strips(self, rows: int) -> Iterator[Window]:
        """Windows of so many whole rows, from top to bottom; the last may have fewer."""
        for row in range(0, self.height, rows):
            yield Window(row, 0, min(rows, self.height - row), self.width)

    def footprint(self, window: Window) -> Polygon:
        """The ground that a window's pixels show, in the grid's CRS: its outer pixel corners."""
        top, left = window.row, window.col
        bottom, right = top + window.height, left + window.width
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return Polygon([self.transform @ corner for corner in corners])

    def window_transform(self, window: Window) -> Affine:
        return self.transform @ Affine.translation(window.col, window.row)

    @property
    def located(self) -> bool:
        """Whether the ground under its pixels is known: not so without a geographic or projected
        CRS."""
        return bool(self.crs.is_projected or self.crs.is_geographic)

    def check_located(self, path: Path) -> None:
        """Refuse a raster whose ground is not known.

        Raises:
            InputError: naming `path`.
        """
        if not self.located:
            raise InputError(
                f"{path}: has no coordinate reference system, so nothing can be laid over it and "
                "no area in km² be told. Assign one, for example with `gdal_edit.py -a_srs "
                "EPSG:32645 FILE`."
            )

    def pixel_size_m(self) -> float:
        """Edge of a square as large as the middle pixel, metres."""
        middle = Window(self.height // 2, self.width // 2, 1, 1)
        return float(np.sqrt(self.pixel_areas_km2(middle)[0, 0]) * 1000)

    def steps_m(self, row: int, col: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Metres to the east and to the north that one column, and one row, leads from a pixel.

        Towards true north, whatever the CRS's own. The grid must be `located`.
        """
        geodetic = self.crs.geodetic_crs or self.crs
        to_degrees = Transformer.from_crs(self.crs, geodetic, always_xy=True)
        corners = [(col, row), (col + 1, row), (col, row + 1)]
        x, y = np.array([self.transform @ corner for corner in corners]).T
        lon, lat = to_degrees.transform(x, y)
        geod = self.crs.get_geod() or Geod(ellps="WGS84")
        azimuths, _, metres = geod.inv([lon[0]] * 2, [lat[0]] * 2, lon[1:], lat[1:])
        east = np.sin(np.radians(azimuths)) * metres
        north = np.cos(np.radians(azimuths)) * metres
        return (float(east[0]), float(north[0])), (float(east[1]), float(north[1]))

    def pixel_areas_km2(
        self, window: Window, where: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float64]:
        """Area of each pixel on the CRS's ellipsoid, km², shape (height, width) of the window.

        With `where`, bool (height, width), only of its pixels: (pixels,) in the order of its rows.

        On the plane of a map projection areas are not true: in a UTM zone they are too small by
        0.08 % in its middle and too large at its edges. The projection's own areal scale sets
        that right.

        Raises:
            ValueError: the grid is not `located`.
        """
        if self.crs.is_projected:
            return self._projected_areas(window, where)
        if not self.crs.is_geographic:
            raise ValueError("a grid without CRS has no areas")
        geod = self.crs.get_geod() or Geod(ellps="WGS84")
        rows = []
        for row in range(window.row, window.row + window.height):
            lon, lat = self.footprint(Window(row, 0, 1, 1)).exterior.coords.xy
            rows.append(abs(geod.polygon_area_perimeter(lon, lat)[0]) / 1e6)
        if where is not None:
            return np.repeat(np.asarray(rows), np.count_nonzero(where, axis=1))
        return np.repeat(np.asarray(rows)[:, None], window.width, axis=1)

    def _projected_areas(
        self, window: Window, where: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.float64]:
        unit = self.crs.axis_info[0].unit_conversion_factor
        plane = abs(self.transform.determinant) * unit**2 / 1e6
        rows, to_rows = _nodes(window.height)
        cols, to_cols = _nodes(window.width)
        col, row = np.meshgrid(window.col + cols, window.row + rows)
        a, b, c, d, e, f = self.transform[:6]
        x, y = a * col + b * row + c, d * col + e * row + f
        assert self.crs.geodetic_crs is not None
        to_degrees = Transformer.from_crs(self.crs, self.crs.geodetic_crs, always_xy=True)
        scale = Proj(self.crs).get_factors(*to_degrees.transform(x, y)).areal_scale
        if not np.isfinite(scale).all():  # outside of where the projection is defined
            raise ValueError(f"{self.crs.name} does not reach the pixels of {window}")
        areas: npt.NDArray[np.float64] = to_rows @ (plane / scale)
        if where is None:
            return areas @ to_cols.T
        # Between the nodes to its left and right lies each column. No product of matrices here:
        # NumPy's has threads of its own, in each other's way where strips go to threads.
        left = np.minimum(np.argmax(to_cols > 0, axis=1), len(cols) - 2)
        to_left, to_right = to_cols[np.arange(window.width), [left, left + 1]]
        some = (slice(row, row + _SOME_ROWS) for row in range(0, window.height, _SOME_ROWS))
        return np.concatenate(
            [
                (areas[part][:, left] * to_left + areas[part][:, left + 1] * to_right)[where[part]]
                for part in some
            ]
        )


def _nodes(length: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Positions along an axis, some hundred pixels apart, and the weights (length, nodes) that
    interpolate from them to each pixel's centre. Between them, the areal scale bends by less than 1e-6.
    """
    nodes = np.linspace(0, length, max(2, length // _NODE_PIXELS + 2))
    centres = np.arange(length) + 0.5
    weights = 1 - np.abs(centres[:, None] - nodes[None, :]) / (nodes[1] - nodes[0])
    return nodes, np.clip(weights, 0, None)
