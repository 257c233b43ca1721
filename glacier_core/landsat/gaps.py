"""Filling scan-line gaps with pixels of other dates: local linear histogram matching.

The scan-line corrector of Landsat 7 failed on 31 May 2003; since then wedges of up to 14 pixels
without data cross its scenes. The method is that of USGS's gap-filled products (Scaramuzza,
Micijevic, Chander 2004, "SLC Gap-Filled Products: Phase One Methodology", and "Landsat 7 SLC-off
Gap-Filled Products: Phase Two Methodology", which takes several scenes in turn): around each gap
pixel, in a window that grows until both scenes share enough seen pixels, mean and standard
deviation of the other scene are made those of this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_closing

from glacier_core.landsat.pixels import FILL, Pixels

_Layer = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]

# Sides of the window in turn, pixels, and shared pixels that it needs.
_WINDOWS = range(17, 32, 2)
_SHARED = 144

# Ratios of the standard deviations beyond which only the means are matched.
_MOST_GAIN = 3.0

# Rows of fill that count as a gap if there are seen pixels above and below: 14 pixels across the
# gap, more along a column where the orbit is steep to the grid. Wider ones are the scene's edge.
_GAP_ROWS = 20

MARGIN = _WINDOWS[-1] // 2 + _GAP_ROWS + 2
"""Rows above and below a window without which its gaps cannot be filled."""


def gap_pixels(quality: npt.NDArray[np.uint16]) -> _Mask:
    """Where QA_PIXEL says fill between seen pixels of the same column.

    Args:
        quality: (height, width).

    Returns:
        bool (height, width); right only `MARGIN` rows away from where the array was cut off.
    """
    seen = quality & FILL == 0
    column = np.ones((_GAP_ROWS + 1, 1), dtype=bool)
    gaps: _Mask = binary_closing(seen, column) & ~seen
    return gaps


def matched(scene: _Layer, other: _Layer, shared: _Mask, wanted: _Mask) -> _Layer:
    """Values of another date as this scene would have had them.

    Args:
        scene: one band, (height, width).
        other: the same band of another date, on the same grid.
        shared: where both were seen, without clouds.
        wanted: where `scene` is to be filled and `other` was seen.

    Returns:
        float32 (height, width); NaN where not wanted, or where no window held enough shared pixels.
    """
    found = np.full(scene.shape, np.nan, dtype=np.float32)
    if not wanted.any() or not shared.any():
        return found
    # Around the mean, so that differences of squares lose no digits.
    level, other_level = (float(layer[shared].mean(dtype=np.float64)) for layer in (scene, other))
    here = np.where(shared, scene - np.float64(level), 0)
    there = np.where(shared, other - np.float64(other_level), 0)
    sums = [_summed(layer) for layer in (shared, here, there, here**2, there**2)]
    rows, cols = np.nonzero(wanted)
    for side in _WINDOWS:
        pixels = _around(sums[0], rows, cols, side)
        enough = pixels >= _SHARED
        if enough.any():
            row, col, n = rows[enough], cols[enough], pixels[enough]
            mean, other_mean, square, other_square = (
                _around(layer, row, col, side) / n for layer in sums[1:]
            )
            with np.errstate(divide="ignore", invalid="ignore"):
                gain = np.sqrt((square - mean**2) / (other_square - other_mean**2))
            gain[~((gain >= 1 / _MOST_GAIN) & (gain <= _MOST_GAIN))] = 1
            found[row, col] = (other[row, col] - other_level - other_mean) * gain + mean + level
            rows, cols = rows[~enough], cols[~enough]
        if not rows.size:
            break
    return found


def _summed(layer: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Sums over all pixels above and left of each corner, (height + 1, width + 1)."""
    sums = np.zeros((layer.shape[0] + 1, layer.shape[1] + 1))
    np.cumsum(layer, axis=0, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    return sums


def _around(
    sums: npt.NDArray[np.float64],
    rows: npt.NDArray[np.intp],
    cols: npt.NDArray[np.intp],
    side: int,
) -> npt.NDArray[np.float64]:
    """Sums over the windows around some pixels, as far as there are pixels."""
    half, (height, width) = side // 2, sums.shape
    top, bottom = np.maximum(rows - half, 0), np.minimum(rows + half + 1, height - 1)
    left, right = np.maximum(cols - half, 0), np.minimum(cols + half + 1, width - 1)
    inside: npt.NDArray[np.float64] = sums[bottom, right] - sums[top, right]
    inside += sums[top, left] - sums[bottom, left]
    return inside


def fill(scene: Pixels, others: Sequence[Pixels]) -> tuple[Pixels, _Mask]:
    """Fill gaps from other dates, each in turn where those before it could not.

    A pixel is filled in every band or in none. It takes QA_PIXEL of the date that it comes from,
    whose clouds and shadows fill nothing.

    Args:
        scene: with gaps.
        others: the same bands of other dates on the same grid.

    Returns:
        The scene, and where it was filled, bool (height, width).
    """
    wanted = gap_pixels(scene.quality)
    filled = np.zeros_like(wanted)
    if not wanted.any():
        return scene, filled
    bands = {name: layer.copy() for name, layer in scene.bands.items()}
    quality = scene.quality.copy()
    for other in others:
        usable = other.clear & np.all([np.isfinite(v) for v in other.bands.values()], axis=0)
        here = wanted & usable
        both = scene.clear & usable
        values = {
            name: matched(layer, other.bands[name], both & np.isfinite(layer), here)
            for name, layer in scene.bands.items()
        }
        done = here & np.all([np.isfinite(v) for v in values.values()], axis=0)
        for name, layer in values.items():
            bands[name][done] = layer[done]
        quality[done] = other.quality[done]
        filled |= done
        wanted &= ~done
    return Pixels(bands, quality), filled
