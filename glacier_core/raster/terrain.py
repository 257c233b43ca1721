"""What a DEM says: slope and aspect."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glacier_core.raster.grid import Grid, Window


def slope_aspect(
    elevation: npt.NDArray[np.floating], grid: Grid, window: Window
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Slope and aspect by central differences.

    Args:
        elevation: (height, width) of `window`, metres, NaN where unknown.
        grid: of the raster, located.
        window: its pixels.

    Returns:
        Slope in degrees from the horizontal; aspect in degrees clockwise from north, the way down;
        float32 (height, width), NaN where a neighbour is unknown, aspect also where it is flat.
    """
    if min(elevation.shape) < 2:
        unknown = np.full(elevation.shape, np.nan, dtype=np.float32)
        return unknown, unknown.copy()
    by_row, by_col = np.gradient(elevation.astype(np.float32))
    (col_east, col_north), (row_east, row_north) = grid.steps_m(
        window.row + window.height // 2, window.col + window.width // 2
    )
    determinant = col_east * row_north - col_north * row_east
    east = (row_north * by_col - col_north * by_row) / determinant
    north = (col_east * by_row - row_east * by_col) / determinant
    steepness = np.hypot(east, north)
    aspect = np.degrees(np.arctan2(-east, -north)) % 360
    aspect[steepness == 0] = np.nan
    return np.degrees(np.arctan(steepness)).astype(np.float32), aspect.astype(np.float32)
