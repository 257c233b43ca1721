"""What a DEM says: slope and aspect."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glacier_core.raster.grid import Grid, Window


def slope_aspect(
    elevation: npt.NDArray[np.floating],
    grid: Grid,
    window: Window,
    where: npt.NDArray[np.bool_] | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Slope and aspect by central differences.

    Args:
        elevation: (height, width) of `window`, metres, NaN where unknown.
        grid: of the raster, located.
        window: its pixels.
        where: bool (height, width), the pixels that are asked for; None for all.

    Returns:
        Slope in degrees from the horizontal; aspect in degrees clockwise from north, the way down;
        float32 (height, width), or (pixels,) in the order of the rows of `where`. NaN where a
        neighbour is unknown, aspect also where it is flat.
    """
    if min(elevation.shape) < 2:
        unknown = np.full(elevation[... if where is None else where].shape, np.nan, np.float32)
        return unknown, unknown.copy()
    metres = elevation.astype(np.float32, copy=False)
    by_row, by_col = np.gradient(metres) if where is None else _gradient_at(metres, where)
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


def _gradient_at(
    values: npt.NDArray[np.float32], where: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What `np.gradient` gives at some pixels, without working out the others."""
    height, width = values.shape
    row, col = np.nonzero(where)
    above, below = np.maximum(row - 1, 0), np.minimum(row + 1, height - 1)
    left, right = np.maximum(col - 1, 0), np.minimum(col + 1, width - 1)
    by_row = (values[below, col] - values[above, col]) / (below - above).astype(np.float32)
    by_col = (values[row, right] - values[row, left]) / (right - left).astype(np.float32)
    return by_row, by_col
