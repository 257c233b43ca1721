"""Overlapping windows along an axis, and the weights that blend them without a seam.

The network sees past a window's edge only what it was padded with, and that shows up to some
distance from the edge: for the U-Net of depth 4, probabilities within 48 pixels of it differ by up
to 0.1 from what a larger window gives, beyond 64 pixels by less than 0.004, beyond 96 by nothing.
So of the pixels that two windows share, each gives its outer two fifths to the other, and only the
middle fifth is blended.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Part:
    """A window along one axis: pixels `start` to `stop`, which may lie outside of the scene."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def inside(self, length: int) -> tuple[int, int]:
        """Its pixels that the scene has."""
        return max(self.start, 0), min(self.stop, length)


@dataclass(frozen=True)
class Blend:
    """Windows along one axis of a scene.

    Attributes:
        length: pixels to be covered along the axis.
        window: pixels that the network sees at once, where there are as many.
        overlap: pixels that neighbouring windows share at least.
        multiple: all windows start and end at multiples of this, counted from the scene's first
            pixel, so that the network halves the same pixels in each of them.
        first: pixel of the scene that is covered first, a multiple of `multiple`.
    """

    length: int
    window: int
    overlap: int
    multiple: int
    first: int = 0

    @cached_property
    def step(self) -> int:
        """Pixels from one window's start to the next's."""
        return max(self.multiple, (self._size - self.overlap) // self.multiple * self.multiple)

    @cached_property
    def _size(self) -> int:
        # Room for a step beside the overlap, also where the window is no larger than `multiple`.
        size = max(self.window, self.overlap + self.multiple)
        return -(-size // self.multiple) * self.multiple

    @property
    def shared(self) -> int:
        """Pixels that neighbouring windows share."""
        return self._size - self.step

    @property
    def margin(self) -> int:
        """Outermost pixels of a window that have no weight."""
        return 2 * self.shared // 5

    @property
    def _ramp(self) -> int:
        return self.shared - 2 * self.margin

    @property
    def padding(self) -> int:
        """Pixels before the first one that is covered; outside of the scene they are reflected.

        With no fewer than margin and ramp, those to be covered have full weight; with just as many
        as windows share, these end at multiples of `step`, where the tiles of the file end too.
        """
        return self.shared

    @cached_property
    def parts(self) -> list[Part]:
        """The windows, from the first pixel to the last."""
        # So far that the last pixel has full weight.
        end = self.first + self.length + self.margin + self._ramp
        end = -(-end // self.multiple) * self.multiple
        start = self.first - self.padding
        parts = [Part(start, min(start + self._size, end))]
        while parts[-1].stop < end:
            start = parts[-1].start + self.step
            parts.append(Part(start, min(start + self._size, end)))
        return parts

    def weights(self, part: Part) -> npt.NDArray[np.float32]:
        """Weight of each pixel of a window, float32 (size,); over all windows they sum to 1.

        Raised cosines. A window's last pixels, where it ends beyond the scene, count fully.
        """
        ramp = (1 - np.cos(np.pi * (np.arange(self._ramp) + 0.5) / max(self._ramp, 1))) / 2
        weights = np.ones(part.size)
        rising = slice(self.margin, self.margin + self._ramp)
        weights[: self.margin] = 0
        weights[rising] = ramp[: weights[rising].size]
        if part.size == self._size and part is not self.parts[-1]:
            weights[part.size - self.margin :] = 0
            weights[part.size - self.margin - self._ramp : part.size - self.margin] = ramp[::-1]
        return weights.astype(np.float32)


def across(seen: npt.NDArray[np.bool_], window: int, overlap: int, multiple: int) -> Blend | None:
    """Windows from left to right over those columns of a strip in which something was seen.

    A satellite's scene lies tilted in its grid: what lies beside it is not worth a window.

    Args:
        seen: (rows, width) of the strip.
        window, overlap, multiple: see `Blend`.

    Returns:
        None where nothing was seen.
    """
    columns = np.flatnonzero(seen.any(axis=0))
    if columns.size == 0:
        return None
    first = int(columns[0]) // multiple * multiple
    return Blend(int(columns[-1]) + 1 - first, window, overlap, multiple, first)
