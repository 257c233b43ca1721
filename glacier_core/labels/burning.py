"""Burning polygons onto a grid, window by window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely

from glacier_core.raster.grid import Grid, Window

# So many at a time, as their corners are some ten times as large as what is kept of them.
_POLYGONS = 2000


class Canvas:
    """Polygons with values, the later painted over the earlier, window by window.

    Speed is linear in polygons and pixels: each window burns only the polygons that touch it.
    A pixel belongs to a polygon when its centre lies inside; holes stay holes.
    """

    def __init__(
        self, polygons: npt.NDArray[np.object_], values: npt.NDArray[np.uint8], grid: Grid
    ) -> None:
        self._polygons, self._values, self._grid = polygons, values, grid
        self._index = shapely.STRtree(polygons)

    def paint(self, window: Window) -> npt.NDArray[np.uint8]:
        """uint8 (height, width): the value of the last polygon there, 0 where there is none."""
        # In their order, which the index does not keep.
        touching = np.sort(self._index.query(self._grid.footprint(window)))
        if touching.size == 0:
            return np.zeros((window.height, window.width), dtype=np.uint8)
        painted: npt.NDArray[np.uint8] = rasterio.features.rasterize(
            zip(self._polygons[touching], self._values[touching].tolist(), strict=True),
            out_shape=(window.height, window.width),
            transform=self._grid.window_transform(window),
            dtype=np.uint8,
        )
        return painted


class Burner:
    """Polygons of one class, burned window by window.

    A pixel belongs to a polygon when its centre lies inside; holes stay holes. Of a centre on a
    border, the polygon to its left has it, as with GDAL; and of one on a border along its row, the
    polygon below alone, where GDAL gives it to both.

    What is kept of the polygons are those crossings, one where a border passes from one row of
    centres to the next: all windows together cost no more than one.
    """

    def __init__(self, polygons: npt.NDArray[np.object_], grid: Grid) -> None:
        """
        Args:
            polygons: valid Polygons or MultiPolygons, in the CRS of the grid; they may overlap.
            grid: to burn onto.
        """
        parts = shapely.get_parts(polygons)
        found = [
            _crossings(parts[first : first + _POLYGONS], grid)
            for first in range(0, len(parts), _POLYGONS)
        ]
        rows, columns, turns = (
            np.concatenate([piece[i] for piece in found]) if found else np.zeros(0, dtype=np.int32)
            for i in range(3)
        )
        order = np.argsort(rows, kind="stable")
        self._rows, self._columns, self._turns = rows[order], columns[order], turns[order]

    def burn(self, window: Window) -> npt.NDArray[np.uint8]:
        """uint8 (height, width): 1 inside a polygon, 0 outside."""
        bounds = np.searchsorted(self._rows, (window.row, window.row + window.height))
        those = slice(*bounds)
        columns = np.clip(self._columns[those] - window.col, 0, window.width)
        # By how much more or fewer polygons a pixel lies in than the one to its left.
        change = np.zeros((window.height, window.width + 1), dtype=np.int16)
        np.add.at(change, (self._rows[those] - window.row, columns), self._turns[those])
        inside = np.cumsum(change[:, :-1], axis=1, dtype=np.int16)
        return (inside > 0).view(np.uint8)


def _crossings(
    polygons: npt.NDArray[np.object_], grid: Grid
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int16]]:
    """Where borders cross the rows of pixel centres.

    Args:
        polygons: valid Polygons.
        grid: to burn onto.

    Returns:
        For each crossing the row, the first column whose centre lies to its right (0 to width), and
        1 where the polygon begins there, -1 where it ends.
    """
    # Shells one way round and holes the other: along a row of centres, what begins ends.
    rings = shapely.get_rings(shapely.orient_polygons(polygons))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    a, b, c, d, e, f = (~grid.transform)[:6]
    x = a * points[:, 0] + b * points[:, 1] + c
    y = d * points[:, 0] + e * points[:, 1] + f
    # Row r is crossed from y <= r + 1/2 to y > r + 1/2, so that a corner on it counts once.
    row = np.clip(np.ceil(y - 0.5), 0, grid.height).astype(np.int32)
    edge = np.flatnonzero((ring[1:] == ring[:-1]) & (row[1:] != row[:-1]))
    falls = row[edge + 1] > row[edge]
    upper, lower = np.where(falls, edge, edge + 1), np.where(falls, edge + 1, edge)
    count = row[lower] - row[upper]
    upper, lower = np.repeat(upper, count), np.repeat(lower, count)
    within = np.arange(len(upper)) - np.repeat(np.cumsum(count) - count, count)
    rows = (row[upper] + within).astype(np.int32)
    # From the upper end, whichever way the border runs: neighbours leave no pixel between them.
    down, across = y[lower] - y[upper], x[lower] - x[upper]
    crossing = (rows + 0.5 - y[upper]) * across / down + x[upper]
    columns = np.clip(np.floor(crossing + 0.5), 0, grid.width).astype(np.int32)
    # Counter-clockwise shells fall on their left side, seen on a screen; a grid with south or
    # west up is seen in a mirror.
    mirrored = grid.transform.determinant > 0
    turns = np.where(np.repeat(falls, count) != mirrored, 1, -1).astype(np.int16)
    return rows, columns, turns
