"""A scene from top to bottom: strips of rows read, predicted, blended and written at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glacier_core.maps.blending import Blend, Part
from glacier_core.maps.ensemble import Ensemble, Probabilities
from glacier_core.maps.rasters import Layer, MapRasters
from glacier_core.maps.scenemap import ELEVATION_STEP_M, NO_ELEVATION, UNSEEN
from glacier_core.raster.bands import find_common
from glacier_core.raster.grid import Window
from glacier_core.raster.scene import COVERED, NO_VALUE, Scene
from glacier_core.settings import MapParams

# A row of tiles of most files, so that each is decoded once.
_READ_ROWS = 256
_WRITE_ROWS = 128
# Snow and ice have a normalised difference snow index above this (Dozier 1989; Hall et al. 1995).
_SNOW_INDEX = 0.4


def layers(name: str, ensemble: Ensemble, scene: Scene) -> list[Layer]:
    """The rasters of a map of `scene`, see `SceneMap`."""
    found = [
        Layer(f"{name}_classes", ["class"], "uint8", UNSEEN, None),
        Layer(f"{name}_probabilities", ensemble.classes[1:], "uint8", None, 1 / 255),
        Layer(f"{name}_confidence", ["confidence"], "uint8", None, 1 / 255),
    ]
    if ensemble.members > 1:
        found.append(Layer(f"{name}_uncertainty", ["uncertainty"], "uint8", None, 1 / 255))
    if _elevation_band(scene) is not None:
        found.append(
            Layer(f"{name}_elevation", ["elevation"], "int16", NO_ELEVATION, ELEVATION_STEP_M)
        )
    return found


def _elevation_band(scene: Scene) -> str | None:
    position = find_common(scene.bands, "elevation")
    return None if position is None else scene.bands[position]


@dataclass
class _Strip:
    """Rows of the scene in memory, from `start` on.

    Attributes:
        values: float32 (channels, rows, width).
        unseen: uint8 (rows, width), as `Scene.view`.
    """

    start: int
    values: npt.NDArray[np.float32]
    unseen: npt.NDArray[np.uint8]


class Statistics:
    """Of the whole scene, strip by strip."""

    def __init__(self, channels: Sequence[str]) -> None:
        names = list(channels)
        self.sums = np.zeros(len(names))
        self.seen = self.no_value = self.covered = self.snow_outside = 0
        self.green, self.swir = find_common(names, "green"), find_common(names, "swir1")

    def add(self, values: npt.NDArray[np.float32], unseen: npt.NDArray[np.uint8]) -> None:
        seen = unseen == 0
        self.seen += int(seen.sum())
        self.no_value += int((unseen == NO_VALUE).sum())
        self.covered += int((unseen == COVERED).sum())
        for i, layer in enumerate(values):
            self.sums[i] += layer[seen].sum(dtype=np.float64)

    def add_snow(self, values: npt.NDArray[np.float32], not_ice: npt.NDArray[np.bool_]) -> None:
        if self.green is not None and self.swir is not None:
            green, swir = values[self.green][not_ice], values[self.swir][not_ice]
            # Without the division, which 0 / 0 would spoil.
            self.snow_outside += int((green - swir > _SNOW_INDEX * np.abs(green + swir)).sum())


class Sweep:
    """One scene on its way: the next strip is read and the last one written while the network
    works on this one.
    """

    def __init__(
        self,
        params: MapParams,
        scene: Scene,
        ensemble: Ensemble,
        rasters: MapRasters,
        name: str,
        threads: ThreadPoolExecutor,
    ) -> None:
        grid = scene.grid
        self.scene, self.ensemble, self.rasters, self.name = scene, ensemble, rasters, name
        self.threads = threads
        self.rows = Blend(grid.height, params.window, params.overlap, ensemble.multiple)
        self.cols = Blend(grid.width, params.window, params.overlap, ensemble.multiple)
        self.statistics = Statistics(ensemble.channels)
        # What outlines need of the ground, the network may not.
        height = _elevation_band(scene)
        self.bands = list(ensemble.channels)
        self.height = None
        if height is not None:
            self.bands += [height] if height not in self.bands else []
            self.height = self.bands.index(height)
        parts = 2 if ensemble.members > 1 else 1  # mean, and mean square
        # Of the rows of a strip, from its first one on: sums over windows of weighted predictions.
        self.blended = np.zeros(
            (parts, len(ensemble.classes), self.rows.parts[0].size, grid.width), dtype=np.float32
        )

    def go(self) -> None:
        height = self.scene.grid.height
        strips = self.rows.parts
        total = len(strips) * len(self.cols.parts)
        written: Future[None] | None = None
        coming = self.threads.submit(self._read, *strips[0].inside(height))
        strip: _Strip | None = None
        with tqdm(total=total, desc=f"map {self.name}", unit="window", disable=None) as bar:
            for k, part in enumerate(strips):
                strip = self._joined(strip, coming.result(), part)
                if k + 1 < len(strips):
                    _, read_to = part.inside(height)
                    first, last = strips[k + 1].inside(height)
                    coming = self.threads.submit(self._read, max(first, read_to), last)
                for col in self.cols.parts:
                    self._predict(strip, part, col)
                    bar.update()
                if written is not None:
                    written.result()
                written = self._emit(strip, part, strips[k + 1] if k + 1 < len(strips) else None)
            assert written is not None
            written.result()

    def _read(self, first: int, last: int) -> _Strip:
        width = self.scene.grid.width
        channels = self.ensemble.channels
        values = np.empty((len(self.bands), last - first, width), dtype=np.float32)
        unseen = np.empty(values.shape[1:], dtype=np.uint8)
        for row in range(first, last, _READ_ROWS):
            count = min(_READ_ROWS, last - row)
            part = slice(row - first, row - first + count)
            window = Window(row, 0, count, width)
            also = self.bands[len(channels) :]
            unseen[part] = self.scene.view_into(values[:, part], window, channels, also)
            self.statistics.add(values[: len(channels), part], unseen[part])
        return _Strip(first, values, unseen)

    def _joined(self, old: _Strip | None, new: _Strip, part: Part) -> _Strip:
        """The rows of `part`: what is left of the last strip, then what was read."""
        if old is None:
            return new
        first, last = part.inside(self.scene.grid.height)
        kept = slice(first - old.start, new.start - old.start)
        count = kept.stop - kept.start
        # In place where there is room: two strips in memory would be the largest part of it.
        if last - first > old.values.shape[1]:
            values = np.concatenate([old.values[:, kept], new.values], axis=1)
            unseen = np.concatenate([old.unseen[kept], new.unseen])
            return _Strip(first, values, unseen)
        for rows, more in zip([*old.values, old.unseen], [*new.values, new.unseen], strict=True):
            rows[:count] = rows[kept].copy()
            rows[count : last - first] = more
        return _Strip(first, old.values[:, : last - first], old.unseen[: last - first])

    def _predict(self, strip: _Strip, row: Part, col: Part) -> None:
        """Add one window to the blend; one in which nothing was seen adds nothing."""
        height, width = self.scene.grid.height, self.scene.grid.width
        (top, bottom), (left, right) = row.inside(height), col.inside(width)
        at = slice(top - strip.start, bottom - strip.start), slice(left, right)
        if strip.unseen[at].all():
            return
        pixels = np.pad(
            strip.values[(slice(len(self.ensemble.channels)), *at)],
            [(0, 0), (top - row.start, row.stop - bottom), (left - col.start, col.stop - right)],
            mode="reflect" if min(bottom - top, right - left) > 1 else "edge",
        )
        inner = slice(top - row.start, bottom - row.start), slice(left - col.start,
                                                                  right - col.start)  # fmt: skip
        weights = np.outer(self.rows.weights(row)[inner[0]], self.cols.weights(col)[inner[1]])
        target = self.blended[:, :, top - strip.start : bottom - strip.start, left:right]
        for sums, said in zip(target, self.ensemble.predict(pixels), strict=False):
            sums += said[(slice(None), *inner)] * weights

    def _emit(self, strip: _Strip, part: Part, following: Part | None) -> Future[None]:
        """Hand over the rows to which no later window adds, and make room for the next ones."""
        rows = self.scene.grid.height
        first = part.start + self.rows.margin if part is not self.rows.parts[0] else 0
        last = rows if following is None else min(rows, following.start + self.rows.margin)
        first = min(max(first, 0), last)
        done = slice(first - strip.start, last - strip.start)
        blended = self.blended[:, :, done].copy()
        seen = strip.unseen[done] == 0
        not_ice = seen & (blended[0, 0] >= blended[0, 1:].max(axis=0))
        self.statistics.add_snow(strip.values[:, done], not_ice)
        if following is not None:
            shift = max(following.start, 0) - strip.start
            kept = self.blended.shape[2] - shift
            self.blended[:, :, :kept] = self.blended[:, :, shift:].copy()
            self.blended[:, :, kept:] = 0
        height = None if self.height is None else _stored(strip.values[self.height, done])
        return self.threads.submit(self._write, first, blended, seen, height)

    def _write(
        self,
        row: int,
        blended: Probabilities,
        seen: npt.NDArray[np.bool_],
        height: npt.NDArray[np.int16] | None,
    ) -> None:
        # Few rows at a time: what is computed on the way takes memory too.
        for start in range(0, len(seen), _WRITE_ROWS):
            part = slice(start, start + _WRITE_ROWS)
            rows = None if height is None else height[part]
            self._write_rows(row + start, blended[:, :, part], seen[part], rows)

    def _write_rows(
        self,
        row: int,
        blended: Probabilities,
        seen: npt.NDArray[np.bool_],
        height: npt.NDArray[np.int16] | None,
    ) -> None:
        mean = blended[0]
        classes = mean.argmax(axis=0).astype(np.uint8)
        values: dict[str, npt.NDArray[Any]] = {
            "classes": np.where(seen, classes, UNSEEN).astype(np.uint8)[None],
            "probabilities": _quantised(mean[1:], seen),
            "confidence": _quantised(mean.max(axis=0, keepdims=True), seen),
        }
        if len(blended) > 1:
            at = classes[None, None].astype(np.int64)
            of_class = np.take_along_axis(blended, at, axis=1)[:, 0]
            spread = np.sqrt(np.clip(of_class[1] - of_class[0] ** 2, 0, None))
            values["uncertainty"] = _quantised(spread[None], seen)
        if height is not None:
            values["elevation"] = height[None]
        named = {f"{self.name}_{kind}": layer for kind, layer in values.items()}
        self.rasters.write(row, named, seen)


def _stored(metres: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    known = np.isfinite(metres)
    steps = np.rint(np.where(known, metres, 0) / ELEVATION_STEP_M)
    stored: npt.NDArray[np.int16] = np.clip(steps, NO_ELEVATION + 1, 32767).astype(np.int16)
    stored[~known] = NO_ELEVATION
    return stored


def _quantised(values: Probabilities, seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """0 to 1 as 0 to 255, rounded; 0 where unseen."""
    levels: npt.NDArray[np.uint8] = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    levels[:, ~seen] = 0
    return levels
