"""Which part of a scene's grid the satellite imaged: the convex hull of its pixels with a value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Columns by which an edge may be off after an interpolation in float64: far less than pixels are
# wide, far more than rounding takes away in a grid of 10,000 columns.
_ROUNDING = 1e-6


class Swath:
    """The imaged part of a grid, found in one pass over its rows.

    A Landsat scene is a tilted parallelogram in a grid that runs from north to south: about a third
    of the grid is corners that no satellite looked at. Neither fill nor QA_PIXEL tells these from the
    gaps of a broken scan-line corrector, which are fill too and cross the scene from edge to edge.
    But the parallelogram is convex, and gaps leave pixels on both of its long sides: the hull of all
    pixels with a value is the swath, gaps and clouds lie inside it, corners outside. Where a scene
    was cut to another shape, or a stray pixel lies apart, the hull is too large, and what is counted
    as not seen too much, never too little. A side that has no value at all is not found missing.

    Of each row only the first and the last pixel can be corners of the hull, and only they are kept.
    """

    def __init__(self, height: int) -> None:
        """For a grid of so many rows."""
        self._first = np.zeros(height, dtype=np.int64)
        self._last = np.full(height, -1, dtype=np.int64)

    def add(self, row: int, imaged: npt.NDArray[np.bool_]) -> None:
        """Take in whole rows.

        Args:
            row: of the grid, the first of them.
            imaged: (rows, width), where a band has a value.
        """
        rows = slice(row, row + len(imaged))
        some = imaged.any(axis=1)
        self._first[rows] = imaged.argmax(axis=1)
        self._last[rows] = np.where(some, imaged.shape[1] - 1 - imaged[:, ::-1].argmax(axis=1), -1)

    @property
    def pixels(self) -> int:
        """Pixels whose centres lie in the hull; 0 where nothing was imaged."""
        rows = np.flatnonzero(self._last >= 0)
        if not rows.size:
            return 0
        between = np.arange(rows[0], rows[-1] + 1)
        left = _lower_hull(rows, self._first[rows], between)
        right = -_lower_hull(rows, -self._last[rows], between)
        width = np.floor(right + _ROUNDING) - np.ceil(left - _ROUNDING) + 1
        # Between two slanted edges a row may hold no centre.
        return int(np.maximum(width, 0).sum())


def _lower_hull(
    x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], at: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The lower convex hull of points with rising x (Andrew's monotone chain), at places `at`."""
    corners: list[tuple[int, int]] = []
    for one in zip(x.tolist(), y.tolist(), strict=True):
        while len(corners) > 1 and _turns_down(corners[-2], corners[-1], one):
            corners.pop()
        corners.append(one)
    chain = np.array(corners)
    found: npt.NDArray[np.float64] = np.interp(at, chain[:, 0], chain[:, 1])
    return found


def _turns_down(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])
