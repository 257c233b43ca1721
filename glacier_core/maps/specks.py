"""Specks of a class map: parts too small to be taken at their word."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import rasterio.features

from glacier_core.maps.scenemap import UNSEEN

# Share of a map's pixels up to which looking around each takes less than to sieve once more.
_FEW = 0.005


def without_specks(classes: npt.NDArray[np.uint8], smallest: int) -> npt.NDArray[np.uint8]:
    """The class map without specks: parts of fewer pixels take the class of the largest beside.

    Specks with nothing but specks or unseen ground around them stay.

    Args:
        classes: class numbers (height, width), `UNSEEN` where nothing was seen; that stays.
        smallest: pixels of the smallest part that is kept.
    """
    if smallest < 2 or smallest >= classes.size:
        return classes
    seen = classes != UNSEEN
    # A speck among specks has a larger part beside it only once these are gone.
    while True:
        cleaned: npt.NDArray[np.uint8] = rasterio.features.sieve(
            classes, smallest, mask=seen, connectivity=4
        )
        cleaned[~seen] = UNSEEN
        changed = np.flatnonzero(cleaned != classes)
        if changed.size <= classes.size * _FEW:
            # Specks also grew where what changed next to them has their class now.
            grown = np.append(changed, _specks_beside(changed, classes, smallest))
            if not _specks_beside(grown, cleaned, smallest).size:
                return cleaned
        classes = cleaned


def _specks_beside(
    at: npt.NDArray[np.int64], classes: npt.NDArray[np.uint8], smallest: int
) -> npt.NDArray[np.int64]:
    """Flat positions of all parts of fewer than `smallest` pixels that hold one next to `at`.

    Every part grows from one of its pixels, until it is that large or whole.
    """
    flat = classes.reshape(-1)
    pixel = _distinct(beside(at, classes.shape).ravel())
    pixel = pixel[flat[pixel] != UNSEEN]
    part = np.arange(pixel.size)
    for _ in range(smallest - 1):
        near = beside(pixel, classes.shape)
        side, of = np.nonzero(flat[near] == flat[pixel])
        grown = np.append(part * flat.size + pixel, part[of] * flat.size + near[side, of])
        part, pixel = np.divmod(_distinct(grown), flat.size)
        small = np.bincount(part)[part] < smallest
        part, pixel = part[small], pixel[small]
    return _distinct(pixel)


def _distinct(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each value once, ascending; for millions of them in a tenth of NumPy's time."""
    values = np.sort(values)
    return np.append(values[:1], values[1:][values[1:] != values[:-1]])


def beside(at: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Flat positions above, to the left, to the right and below (4, pixels); at the raster's edge,
    the pixel itself."""
    row, col = np.divmod(at, shape[1])
    above, below = np.maximum(row - 1, 0), np.minimum(row + 1, shape[0] - 1)
    left, right = np.maximum(col - 1, 0), np.minimum(col + 1, shape[1] - 1)
    rows, cols = np.stack([above, row, row, below]), np.stack([col, left, right, col])
    found: npt.NDArray[np.int64] = rows * shape[1] + cols
    return found
