"""Reading a scene part by part, each block of its file decoded about once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from glacier_core.raster.grid import Window
from glacier_core.raster.scene import Scene

# What a strip may take of the memory, beside the tiles that are cut from it: with 15 bands of
# float32, seven tiles of 512 pixels side by side.
_STRIP_BYTES = 180 * 2**20
# Arrays as small as this are used again from memory that is at hand; larger ones come from the
# system, which takes as long as to copy them.
_PIECE_BYTES = 16 * 2**20


def pieces(scene: Scene, first: int, last: int) -> Iterator[Window]:
    """Rows `first` to `last` of a scene in windows of whole blocks of its file, of some 16 MB.

    Args:
        scene: an open one.
        first, last: rows of the scene, `last` not included.
    """
    block_height, block_width = scene.block
    height, width = scene.grid.height, scene.grid.width
    if block_height >= height:  # compressed as a whole: no rows are better than others
        block_height = 1
    row_bytes = len(scene.bands) * scene.dtype.itemsize * block_height
    columns = max(1, _PIECE_BYTES // (row_bytes * block_width)) * block_width
    rows = block_height
    if columns >= width:
        rows *= max(1, _PIECE_BYTES // (row_bytes * width))
    row = first
    while row < last:
        until = min((row // rows + 1) * rows, last)
        for col in range(0, width, columns):
            yield Window(row, col, until - row, min(columns, width - col))
        row = until


def read_tiles(
    scene: Scene, windows: Sequence[Window]
) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
    """Every band of many windows, as stored.

    Windows share blocks of the file with their neighbours; read one by one, these would be decoded
    again for each. So the scene is read in strips as high as a window and as wide as memory allows,
    in whole blocks, and what two strips share is kept.

    Args:
        scene: an open one.
        windows: of one size, in columns: those with one `col` lie below each other.

    Yields:
        Position in `windows` and pixels (height, width, bands) of `scene.dtype`, swath by swath and
        from top to bottom in each.

    Raises:
        InputError: the file is truncated or damaged.
    """
    for swath in _swaths(scene, windows):
        yield from _from_top_to_bottom(scene, windows, swath)


def _swaths(scene: Scene, windows: Sequence[Window]) -> list[list[int]]:
    """Positions of the windows, in groups that are narrow enough to be read side by side."""
    block_height, block_width = scene.block
    pixel_bytes = len(scene.bands) * scene.dtype.itemsize
    most = _STRIP_BYTES // (pixel_bytes * (windows[0].height + block_height))
    if block_width >= scene.grid.width:
        most = scene.grid.width  # rows are compressed whole, and would be decoded for each swath
    swaths: list[list[int]] = []
    start = None
    for k in sorted(range(len(windows)), key=lambda k: (windows[k].col, windows[k].row)):
        stop = windows[k].col + windows[k].width
        if start is None or stop - start > max(most, windows[k].width):
            swaths.append([])
            start = windows[k].col
        swaths[-1].append(k)
    return swaths


def _from_top_to_bottom(
    scene: Scene, windows: Sequence[Window], swath: Sequence[int]
) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
    block_height, block_width = scene.block
    height, width = windows[0].height, windows[0].width
    left = min(windows[k].col for k in swath) // block_width * block_width
    right = max(windows[k].col for k in swath) + width
    right = min(-(-right // block_width) * block_width, scene.grid.width)
    if block_height > height:  # the whole file, or nearly: no strip holds a row of blocks
        block_height = 1
    shape = (height + block_height, right - left, len(scene.bands))
    strip: npt.NDArray[np.generic] = np.empty(shape, dtype=scene.dtype)
    top = bottom = 0  # rows of the scene that the strip holds
    for k in sorted(swath, key=lambda k: (windows[k].row, windows[k].col)):
        window = windows[k]
        if window.row > top:
            kept = strip[window.row - top : bottom - top]
            strip[: len(kept)] = kept.copy()
            top, bottom = window.row, max(bottom, window.row)
        if bottom < window.row + height:
            until = -(-(window.row + height) // block_height) * block_height
            until = min(until, scene.grid.height)
            rows = Window(bottom, left, until - bottom, right - left)
            scene.read_into(strip[bottom - top : until - top], rows)
            bottom = until
        column = window.col - left
        part = strip[window.row - top : window.row - top + height, column : column + width]
        yield k, part.copy()
