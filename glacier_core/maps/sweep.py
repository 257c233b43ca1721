"""A scene from top to bottom: strips of rows read, predicted, blended and written at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glacier_core.maps.blending import Blend, Part, across
from glacier_core.maps.rasters import Layer, MapRasters
from glacier_core.maps.scenemap import ELEVATION_STEP_M, NO_ELEVATION, UNSEEN
from glacier_core.model.ensemble import Ensemble, Probabilities
from glacier_core.params import MapParams
from glacier_core.raster.bands import SNOW_INDEX, find_common
from glacier_core.raster.scene import COVERED, NO_VALUE, Scene
from glacier_core.raster.tiles import pieces

_WRITE_ROWS = 128


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


def _rows_ahead(step: int, block: int) -> int:
    """Rows that are read while the network works: half of what the next strip adds, as all of them
    would be the larger part of the memory; but no block of the file is decoded twice for it."""
    return step // 2 // block * block or step


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
            self.snow_outside += int((green - swir > SNOW_INDEX * np.abs(green + swir)).sum())


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
        self.params = params
        self.rows = Blend(grid.height, params.window, params.overlap, ensemble.multiple)
        self.statistics = Statistics(ensemble.channels)
        # What outlines need of the ground, the network may not.
        height = _elevation_band(scene)
        self.bands = list(ensemble.channels)
        self.height = None
        if height is not None:
            self.bands += [height] if height not in self.bands else []
            self.height = self.bands.index(height)
        size, width = self.rows.parts[0].size, grid.width
        # Rows of a strip, and behind them those that the next one adds: float32 (bands, rows,
        # width), and where nothing was seen, as `Scene.view`.
        self.ahead = _rows_ahead(self.rows.step, scene.block[0])
        room = size + self.ahead
        self.values = np.empty((len(self.bands), room, width), dtype=np.float32)
        self.unseen = np.empty((room, width), dtype=np.uint8)
        parts = 2 if ensemble.members > 1 else 1  # mean, and mean square
        # Of the rows of a strip, from its first one on: sums over windows of weighted predictions.
        self.blended = np.zeros((parts, len(ensemble.classes), size, width), dtype=np.float32)
        self.finished = np.empty_like(self.blended)  # those of them that are being written

    def go(self) -> None:
        height = self.scene.grid.height
        strips = self.rows.parts
        written: Future[None] | None = None
        coming = self.threads.submit(self._read, 0, strips[0].inside(height)[1], 0)
        with tqdm(total=height, desc=f"map {self.name}", unit="row", disable=None) as bar:
            for part, following in zip(strips, [*strips[1:], None], strict=True):
                first, last = part.inside(height)
                coming.result()
                if following is not None:
                    start, until = following.inside(height)
                    middle = min(last + self.ahead, until)
                    coming = self.threads.submit(self._read, last, middle, last - first)
                self._predict(part)
                if written is not None:
                    written.result()
                written = self._emit(part, following)
                if following is not None:
                    coming.result()
                    self._advance(start - first)
                    coming = self.threads.submit(self._read, middle, until, middle - start)
                bar.update(min(part.stop, height) - bar.n)
            assert written is not None
            written.result()

    def _read(self, first: int, last: int, at: int) -> None:
        """Read rows `first` to `last` of the scene to row `at` of the strip."""
        channels = self.ensemble.channels
        also = self.bands[len(channels) :]
        for window in pieces(self.scene, first, last):
            rows, columns = window.slices
            part = slice(rows.start - first + at, rows.stop - first + at), columns
            values = self.values[:, *part]
            self.unseen[part] = self.scene.view_into(values, window, channels, also)
            self.statistics.add(values[: len(channels)], self.unseen[part])

    def _advance(self, rows: int) -> None:
        """Make the strip begin so many rows further down."""
        for layer in [*self.values, self.unseen]:
            layer[: len(layer) - rows] = layer[rows:].copy()

    def _predict(self, row: Part) -> None:
        """Add the windows of a strip to the blend."""
        top, bottom = row.inside(self.scene.grid.height)
        seen = self.unseen[: bottom - top] == 0
        params = self.params
        cols = across(seen, params.window, params.overlap, self.ensemble.multiple)
        if cols is None:
            return
        for col in cols.parts:
            left, right = col.inside(self.scene.grid.width)
            if not seen[:, left:right].any():
                continue
            pixels = self.values[: len(self.ensemble.channels), : bottom - top, left:right]
            beyond = (top - row.start, row.stop - bottom), (left - col.start, col.stop - right)
            if any(map(any, beyond)):
                mode: Literal["reflect", "edge"] = (
                    "reflect" if min(bottom - top, right - left) > 1 else "edge"
                )
                pixels = np.pad(pixels, [(0, 0), *beyond], mode=mode)
            rows = slice(top - row.start, bottom - row.start)
            columns = slice(left - col.start, right - col.start)
            weights = np.outer(self.rows.weights(row)[rows], cols.weights(col)[columns])
            target = self.blended[:, :, : bottom - top, left:right]
            for sums, said in zip(target, self.ensemble.predict(pixels), strict=False):
                sums += said[:, rows, columns] * weights

    def _emit(self, part: Part, following: Part | None) -> Future[None]:
        """Hand over the rows to which no later window adds, and make room for the next ones."""
        rows = self.scene.grid.height
        start, _ = part.inside(rows)
        first = part.start + self.rows.margin if part is not self.rows.parts[0] else 0
        last = rows if following is None else min(rows, following.start + self.rows.margin)
        first = min(max(first, 0), last)
        done = slice(first - start, last - start)
        blended = self.finished[:, :, : last - first]
        blended[:] = self.blended[:, :, done]
        seen = self.unseen[done] == 0
        not_ice = seen & (blended[0, 0] >= blended[0, 1:].max(axis=0))
        self.statistics.add_snow(self.values[:, done], not_ice)
        if following is not None:
            shift = max(following.start, 0) - start
            kept = self.blended.shape[2] - shift
            self.blended[:, :, :kept] = self.blended[:, :, shift:].copy()
            self.blended[:, :, kept:] = 0
        height = None if self.height is None else _stored(self.values[self.height, done])
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
