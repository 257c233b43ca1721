"""Burning polygons onto a grid, window by window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely

from glacier_core.raster.grid import Grid, Window


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

    A pixel belongs to a polygon when its centre lies inside; holes stay holes.
    """

    def __init__(self, polygons: npt.NDArray[np.object_], grid: Grid) -> None:
        self._canvas = Canvas(polygons, np.ones(len(polygons), dtype=np.uint8), grid)

    def burn(self, window: Window) -> npt.NDArray[np.uint8]:
        """uint8 (height, width): 1 inside a polygon, 0 outside."""
        return self._canvas.paint(window)
