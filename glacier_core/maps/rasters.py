"""Writing the rasters of a map: rows as they come, Cloud-Optimised GeoTIFFs in the end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from glacier_core.errors import StorageError
from glacier_core.raster.grid import UNLOCATED, Grid
from glacier_core.threads import in_threads

_BLOCK = 512
# A third less time than GDAL's 6, and files larger by a twentieth.
_LEVEL = 4

_COPYING = """
import json, sys
import rasterio.shutil
rasterio.shutil.copy(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
"""

# Background transparent; then ice blue, debris ochre, and some in reserve, as in the figures.
CLASS_COLOURS = ["#00000000", "#2b7bba", "#b5651d", "#7a3e9d", "#3a8f5c", "#c2b280"]


@dataclass(frozen=True)
class Layer:
    """One raster of a map.

    Attributes:
        name: of the file, without folder and suffix.
        bands: description of each band.
        dtype: as stored.
        nodata: value that means unseen; None where a mask says it.
        scale: what a stored 1 stands for; None for numbers of classes.
    """

    name: str
    bands: Sequence[str]
    dtype: str
    nodata: int | None
    scale: float | None

    @property
    def pixel_bytes(self) -> int:
        return len(self.bands) * np.dtype(self.dtype).itemsize


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (RasterioError, CPLE_BaseError) as error:
        raise StorageError(
            f"{path}: cannot be written ({str(error).splitlines()[0]}). Is there room left on the "
            "disk? Nothing half-written was kept; run the same command again."
        ) from error


@dataclass
class MapRasters:
    """Rasters of one grid, written from top to bottom; a context manager.

    Rows go to plain tiled files first: the Cloud-Optimised GeoTIFF, with its overviews in front,
    can be laid out only when all is known.

    Attributes:
        folder: where they lie.
        grid: of all of them.
        layers: what to write.
        tags: for every file.
    """

    folder: Path
    grid: Grid
    layers: Sequence[Layer]
    tags: Mapping[str, str]
    _open: dict[str, Any] = field(default_factory=dict)
    _sums: dict[str, list[int]] = field(default_factory=dict)

    def _plain(self, layer: Layer) -> Path:
        return self.folder / f"{layer.name}.plain.tif"

    def __enter__(self) -> MapRasters:
        # Estimated high: half of what the plain files take, for the compressed ones.
        pixels = self.grid.height * self.grid.width
        needed = sum(layer.pixel_bytes + (layer.nodata is None) for layer in self.layers)
        free = shutil.disk_usage(self.folder).free
        if free < 1.5 * needed * pixels:
            raise StorageError(
                f"{self.folder.parent}: the map needs up to {1.5 * needed * pixels / 1e9:.2f} GB "
                f"there, {free / 1e9:.2f} GB are free. Free some space and run the command again."
            )
        for layer in self.layers:
            with _explained(self._plain(layer)):
                self._open[layer.name] = self._created(layer)
        return self

    def _created(self, layer: Layer) -> Any:
        crs = None if self.grid.crs == UNLOCATED else self.grid.crs.to_wkt()
        dataset = rasterio.open(
            self._plain(layer),
            "w",
            driver="GTiff",
            height=self.grid.height,
            width=self.grid.width,
            count=len(layer.bands),
            dtype=layer.dtype,
            nodata=layer.nodata,
            crs=crs,
            transform=self.grid.transform,
            tiled=True,
            blockxsize=_BLOCK,
            blockysize=_BLOCK,
            bigtiff="if_safer",
        )
        dataset.update_tags(**self.tags)
        for number, name in enumerate(layer.bands, start=1):
            dataset.set_band_description(number, name)
        if layer.scale is not None:
            dataset.scales = [layer.scale] * len(layer.bands)
        else:
            table = {i: _rgba(colour) for i, colour in enumerate(CLASS_COLOURS)}
            dataset.write_colormap(1, table)
        return dataset

    def write(
        self,
        row: int,
        values: Mapping[str, npt.NDArray[np.generic]],
        seen: npt.NDArray[np.bool_],
    ) -> None:
        """Write rows of every layer.

        Args:
            row: the first one; that after the last one of the call before.
            values: by layer, (bands, rows, width).
            seen: (rows, width).
        """
        height, width = seen.shape
        window = rasterio.windows.Window(0, row, width, height)
        for layer in self.layers:
            dataset = self._open[layer.name]
            # Masks in files of their own: where there is no room for one inside, GDAL crashes.
            with _explained(self._plain(layer)), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
                dataset.write(values[layer.name], window=window)
                if layer.nodata is None:
                    dataset.write_mask(seen, window=window)
            mask = None if layer.nodata is not None else seen.astype(np.uint8) * 255
            self._sums[layer.name] = _sums(values[layer.name], mask, self._sums.get(layer.name))

    def finish(self) -> None:
        """Close the plain files and lay out the final ones."""
        for _ in in_threads(self._lay_out, self.layers):
            pass

    def _lay_out(self, layer: Layer) -> None:
        plain, final = self._plain(layer), self.folder / f"{layer.name}.tif"
        with _explained(final):
            self._open.pop(layer.name).close()
            _copy(
                plain,
                final,
                driver="COG",
                compress="DEFLATE",
                level=_LEVEL,
                blocksize=_BLOCK,
                predictor="NO" if layer.dtype == "uint8" else "YES",
                overview_resampling="MODE" if layer.scale is None else "AVERAGE",
            )
            self._check(layer, final)
        plain.unlink()
        plain.with_name(f"{plain.name}.msk").unlink(missing_ok=True)

    def _check(self, layer: Layer, path: Path) -> None:
        # GDAL only prints what goes wrong while a file is closed: a disk that fills up then would
        # leave a map without its last tiles.
        sums: list[int] | None = None
        with rasterio.open(path) as dataset:
            for row in range(0, self.grid.height, _BLOCK):
                height = min(_BLOCK, self.grid.height - row)
                window = rasterio.windows.Window(0, row, self.grid.width, height)
                mask = None if layer.nodata is not None else dataset.read_masks(1, window=window)
                sums = _sums(dataset.read(window=window), mask, sums)
        if sums != self._sums[layer.name]:
            raise RasterioError("the file does not hold what was written to it")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _copy(source: Path, target: Path, **options: object) -> None:
    """Copy a raster into another format, in a process of its own.

    In this one no thread could do anything else meanwhile: `rasterio.shutil.copy` keeps Python's
    lock, and GDAL computes overviews in one thread.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", _COPYING, source, target, json.dumps(options)],
        env=os.environ | {"GDAL_CACHEMAX": "64"},  # MB
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RasterioError(
            (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        )


def _sums(
    values: npt.NDArray[np.generic],
    mask: npt.NDArray[np.uint8] | None,
    before: Sequence[int] | None,
) -> list[int]:
    """CRC of each band and of the mask, going on from those of the rows before."""
    layers = [*values] if mask is None else [*values, mask]
    return [
        zlib.crc32(np.ascontiguousarray(layer).data, start)
        for layer, start in zip(layers, before or [0] * len(layers), strict=True)
    ]


def _rgba(colour: str) -> tuple[int, int, int, int]:
    values = bytes.fromhex(colour[1:].ljust(8, "f"))
    return values[0], values[1], values[2], values[3]
