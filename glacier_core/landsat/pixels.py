"""Reading a product's pixels: scaled by its own coefficients, NaN where a band saw nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from glacier_core.errors import InputError
from glacier_core.landsat.product import Product
from glacier_core.raster.bands import unseen_by_quality
from glacier_core.raster.grid import Grid, Window

# QA_PIXEL of Collection 2 has no nodata tag: fill is bit 0 (LSDS-1618, table "QA_PIXEL").
FILL = 1

# 0 in SR_B* and ST_B*: nothing there (the same guides).
_NO_DATA = 0

# QA_RADSAT: bit n - 1 says that band n was saturated, of the ETM+'s thermal band bit 5 in low gain
# and bit 8 in high gain; of every band, bit 9 of TM and ETM+ says that the pixel was dropped in
# transmission, bit 11 of OLI that terrain hid it. TIRS has no bit (the same guides; STAC items of
# Landsat carry the list too).
_HIGH_GAIN, _DROPPED, _HIDDEN = 8, 9, 11


def _saturation_bits(product: Product, band: str) -> int:
    """Bits of QA_RADSAT that say of a band that its value is no observation."""
    code = product.id.codes[band]
    number = int(code.partition("_B")[2])
    if product.id.sensor[2:] in ("08", "09"):
        return (1 << number - 1 if number <= 7 else 0) | 1 << _HIDDEN
    bits = 1 << number - 1 | 1 << _DROPPED
    # Which gain the temperature came from is not told; above 320 K or below 240 K there is no ice.
    return bits | 1 << _HIGH_GAIN if code == "ST_B6" and product.id.sensor == "LE07" else bits


@dataclass(frozen=True)
class Pixels:
    """A window of a product.

    Attributes:
        bands: float32 (height, width) by common name: reflectance, of `lwir` kelvin; NaN where the
            band saw nothing: fill, saturation. Not clipped: bright snow lies above 1.
        quality: QA_PIXEL, uint16 (height, width), as it came.
    """

    bands: dict[str, npt.NDArray[np.float32]]
    quality: npt.NDArray[np.uint16]

    @property
    def clear(self) -> npt.NDArray[np.bool_]:
        """Where there is neither fill nor cloud nor cloud shadow."""
        return ~unseen_by_quality("QA_PIXEL", self.quality)


class Reader:
    """Reads windows of a product; a context manager.

    Attributes:
        grid: of what it reads.
        names: bands that it reads, by common name.
    """

    def __init__(
        self,
        product: Product,
        names: Sequence[str],
        harmonise: Mapping[str, tuple[float, float]],
        grid: Grid | None = None,
    ) -> None:
        """Open the rasters and check that they belong together.

        Args:
            product: to read.
            names: bands by common name; those that the product lacks are left out.
            harmonise: (factor, summand) for reflectances of a band, after scaling.
            grid: to read on, pixels by nearest neighbour; None for the product's own.

        Raises:
            InputError: a raster cannot be opened, is no GeoTIFF of whole numbers, has no CRS, or
                lies on another grid than the others.
        """
        self.product = product
        self.names = [name for name in names if name in product.bands]
        self._harmonise = harmonise
        self._files: dict[str, Any] = {}
        files = {name: product.bands[name] for name in self.names} | {"QA_PIXEL": product.qa_pixel}
        if product.qa_radsat is not None:
            files["QA_RADSAT"] = product.qa_radsat
        with ExitStack() as stack:
            first: tuple[Path, Grid] | None = None
            for name, file in files.items():
                dataset = stack.enter_context(_opened(file))
                own = Grid.of(dataset)
                own.check_located(file)
                first = first or (file, own)
                _check_same(*first, file, own)
                if grid is not None:
                    dataset = stack.enter_context(_moved(dataset, grid, fill=name == "QA_PIXEL"))
                self._files[name] = dataset
            self._stack = stack.pop_all()
        assert first is not None
        self.grid = grid or first[1]

    def read(self, window: Window) -> Pixels:
        """The pixels of a window.

        Raises:
            InputError: a raster is damaged or cut off there.
        """
        quality = self._read("QA_PIXEL", window)
        fill = quality & FILL != 0
        saturated = self._read("QA_RADSAT", window) if "QA_RADSAT" in self._files else None
        bands = {}
        for name in self.names:
            counts = self._read(name, window)
            factor, summand = self.product.scaling(name)
            further, more = self._harmonise.get(name, (1.0, 0.0))
            # In one step, as float64: the coefficients have five digits.
            values = (counts * (factor * further) + (summand * further + more)).astype(np.float32)
            # QA_PIXEL can say fill where a band has a value, at the edges of the swath.
            unseen = (counts == _NO_DATA) | fill
            if saturated is not None:
                unseen |= saturated & _saturation_bits(self.product, name) != 0
            values[unseen] = np.nan
            bands[name] = values
        return Pixels(bands, quality)

    def _read(self, name: str, window: Window) -> npt.NDArray[np.uint16]:
        target = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        try:
            values: npt.NDArray[np.uint16] = self._files[name].read(1, window=target)
        except RasterioError as error:
            cause = error.__cause__ or error
            file = self.product.bands.get(name) or self.product.path
            raise InputError(
                f"{file}: {name} is damaged or cut off: rows {window.row} to "
                f"{window.row + window.height} cannot be read ({cause}); download it anew"
            ) from error
        return values

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


def _opened(file: Path) -> Any:
    try:
        # GeoTIFF alone: a VRT in its place could name any file.
        dataset = rasterio.open(file, driver="GTiff")
    except RasterioError as error:
        raise InputError(
            f"{file}: cannot be opened as a GeoTIFF ({error}); download it anew"
        ) from error
    if dataset.count != 1 or dataset.dtypes[0] != "uint16":
        kind = f"{dataset.count} bands of {dataset.dtypes[0]}"
        dataset.close()
        raise InputError(f"{file}: expected one band of uint16, as USGS delivers, found {kind}")
    return dataset


def _moved(dataset: Any, grid: Grid, *, fill: bool) -> Any:
    return WarpedVRT(
        dataset,
        crs=grid.crs.to_wkt(),
        transform=grid.transform,
        height=grid.height,
        width=grid.width,
        resampling=Resampling.nearest,
        src_nodata=None,
        nodata=FILL if fill else _NO_DATA,
        init_dest_nodata=True,
    )


def _check_same(first: Path, grid: Grid, file: Path, own: Grid) -> None:
    if (own.height, own.width, own.crs) != (grid.height, grid.width, grid.crs) or not (
        own.transform.almost_equals(grid.transform, precision=1e-6)
    ):
        raise InputError(
            f"{file}: its pixels lie otherwise than those of {first.name}: {own.height} x "
            f"{own.width} pixels of {own.crs.name} from {tuple(own.transform)[:6]}, there "
            f"{grid.height} x {grid.width} of {grid.crs.name} from {tuple(grid.transform)[:6]}. Are "
            "they of one product?"
        )
