"""Making a scene of a product: one GeoTIFF with named bands, ready to be masked and mapped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from glacier_core.config import Project
from glacier_core.errors import InputError, StorageError
from glacier_core.files import whole_file
from glacier_core.landsat import gaps
from glacier_core.landsat.conf import LandsatConf, landsat_settings
from glacier_core.landsat.dem import Dem, dem_of
from glacier_core.landsat.harmonise import bands_of, harmonisation, spectral_index
from glacier_core.landsat.made import TAG, made_of_archive, stands
from glacier_core.landsat.pixels import FILL, Pixels, Reader
from glacier_core.landsat.product import Product, open_product
from glacier_core.landsat.terrain import elevation_on
from glacier_core.raster.bands import unseen_by_quality
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.terrain import slope_aspect

log = logging.getLogger(__name__)

# Rows read and written at once; also the side of the file's tiles.
_ROWS = 512

# GDAL's own cache would grow with the machine (5 % of its memory).
_GDAL = {"GDAL_CACHEMAX": 128 * 2**20}

# Changes when the same product and settings would give another file.
_FORMAT = 2


def ingest_product(
    project: Project,
    path: Path,
    out: Path,
    *,
    fill_from: Sequence[Path] = (),
    again: bool = False,
) -> Path:
    """Make a scene of a Landsat Collection 2 Level-2 product.

    Writes `out`/SENSOR_PATHROW_DAY.tif: float32, NaN where a band saw nothing, its bands named as
    conf/landsat.yaml chooses them, then indices, elevation and slope (where there is a DEM),
    QA_PIXEL, and `filled` (1 where a scan-line gap was filled) if other dates were given. What was
    made already, of the same version of the product with the same settings, is left as it is.

    Args:
        project: its conf/landsat.yaml says how.
        path: a folder, an archive, or a STAC item beside its assets.
        out: folder to write to.
        fill_from: products of other dates, to fill scan-line gaps from, in this order.
        again: make it in any case.

    Returns:
        The scene's path.

    Raises:
        InputError: the product, the DEM or a setting cannot be used.
        ServiceError: the DEM's tiles cannot be had now; nothing is written.
        StorageError: no room, or no right to write.
    """
    conf = landsat_settings(project)
    dem = dem_of(project, conf)
    method: dict[str, Any] = {
        "format": _FORMAT,
        "settings": {
            "bands": conf.bands,
            "indices": conf.indices,
            "harmonise": conf.harmonise,
            "dem_resampling": conf.dem_resampling if dem else None,
        },
        "dem": dem.identity if dem else None,
    }
    if not again and (there := made_of_archive(path, fill_from, out, method)):
        return there
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**_GDAL))
        product = stack.enter_context(open_product(path, out))
        others = [stack.enter_context(open_product(other, out)) for other in fill_from]
        _check_fill(product, others)
        target = out / f"{product.id.scene}.tif"
        made_of = {
            **method,
            "product": product.metadata.version,
            "generated": product.metadata.generated or product.id.processed.isoformat(),
            "filled_from": [other.metadata.version for other in others],
        }
        if not again and stands(target, made_of):
            return target
        missing = [name for name in conf.bands if name not in product.bands]
        if missing:
            log.warning("%s: has no %s; the scene goes without", path, ", ".join(missing))
        recipe = _Recipe(product, conf, dem, others)
        tags = _tags(product, conf, made_of)
        with recipe.opened() as (grid, strips), whole_file(target) as beside:
            _write(beside, target, grid, recipe.names, strips, tags)
    log.info("%s: from %s", target, product.metadata.version)
    return target


def _check_fill(product: Product, others: Sequence[Product]) -> None:
    for other in others:
        if other.id.scene == product.id.scene:
            raise InputError(
                f"{other.path}: is the scene {product.id.scene} itself; gaps are filled from other "
                "dates"
            )
        lacking = [name for name in product.bands if name not in other.bands]
        if "coastal" in lacking:  # TM and ETM+ may fill gaps of OLI, which has none
            lacking.remove("coastal")
        if lacking:
            raise InputError(
                f"{other.path}: lacks {', '.join(lacking)}, so it fills no gap of {product.path}"
            )


def _tags(product: Product, conf: LandsatConf, made_of: Mapping[str, Any]) -> dict[str, str]:
    metadata = product.metadata
    corrector = {"SCAN_LINE_CORRECTOR": "OFF"} if metadata.slc_off else {}
    sun = metadata.sun.tags if metadata.sun else {}
    return {
        "LANDSAT_PRODUCT_ID": product.id.text,
        "DATE_ACQUIRED": product.id.acquired.isoformat(),
        "DATE_PRODUCT_GENERATED": metadata.generated or product.id.processed.isoformat(),
        "PROCESSING_SOFTWARE_VERSION": metadata.software,
        **corrector,
        **sun,
        "SCALING": json.dumps({name: product.scaling(name) for name in product.bands}),
        "HARMONISED": json.dumps(harmonisation(product.id.sensor, conf.harmonise)),
        TAG: json.dumps(made_of),
    }


Strip = tuple[Window, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Recipe:
    """What a scene is made of.

    Attributes:
        product: the scene's own.
        conf: how.
        dem: where heights come from, or None.
        others: to fill gaps from.
    """

    product: Product
    conf: LandsatConf
    dem: Dem | None
    others: Sequence[Product]

    @property
    def names(self) -> list[str]:
        """Bands of the scene, in order."""
        terrain = ["elevation", "slope"] if self.dem else []
        filled = ["filled"] if self.others else []
        bands = [name for name in self.conf.bands if name in self.product.bands]
        return [*bands, *self.conf.indices, *terrain, "QA_PIXEL", *filled]

    @contextmanager
    def opened(self) -> Iterator[tuple[Grid, Iterator[Strip]]]:
        """The grid, and the scene's rows from top to bottom, (bands, rows, width) each."""
        needed = {*self.names, *(band for index in self.conf.indices for band in bands_of(index))}
        with ExitStack() as stack:
            reader = stack.enter_context(self._reader(self.product, needed))
            others = [
                stack.enter_context(self._reader(other, set(reader.names), reader.grid))
                for other in self.others
            ]
            yield reader.grid, self._strips(reader, others)

    def _reader(self, product: Product, needed: set[str], grid: Grid | None = None) -> Reader:
        names = [name for name in product.id.codes if name in needed]
        return Reader(product, names, harmonisation(product.id.sensor, self.conf.harmonise), grid)

    def _strips(self, reader: Reader, others: Sequence[Reader]) -> Iterator[Strip]:
        grid = reader.grid
        heights = None
        if self.dem is not None:
            files = self.dem.tiles(grid)
            heights = elevation_on(self.dem.name, files, grid, self.conf.dem_resampling)
        seen = unclear = filled_pixels = open_pixels = 0
        for row in range(0, grid.height, _ROWS):
            window = Window(row, 0, min(_ROWS, grid.height - row), grid.width)
            if others:
                pixels, filled, unfilled = _filled(reader, others, window)
                filled_pixels += int(filled.sum())
                open_pixels += unfilled
            else:
                pixels, filled = reader.read(window), np.zeros((window.height, window.width), bool)
            layers: dict[str, npt.NDArray[np.generic]] = {**pixels.bands}
            layers |= {name: spectral_index(name, pixels.bands) for name in self.conf.indices}
            layers |= {"QA_PIXEL": pixels.quality, "filled": filled}
            if heights is not None:
                layers["elevation"] = heights[window.slices]
                layers["slope"] = _slope(heights, grid, window)
            seen += int((pixels.quality & FILL == 0).sum())
            unclear += int(unseen_by_quality("QA_PIXEL", pixels.quality).sum())
            yield window, np.stack([layers[name].astype(np.float32) for name in self.names])
        pixels_all = grid.height * grid.width
        log.info(
            "%s: %.1f %% of the grid was imaged, %.1f %% without cloud and shadow",
            self.product.id.scene,
            100 * seen / pixels_all,
            100 * (1 - unclear / pixels_all),
        )
        if others:
            log.info(
                "%s: %d pixels of scan-line gaps filled, %d could not be",
                self.product.id.scene,
                filled_pixels,
                open_pixels,
            )


def _filled(
    reader: Reader, others: Sequence[Reader], window: Window
) -> tuple[Pixels, npt.NDArray[np.bool_], int]:
    """A window with its gaps filled, where they were, and how many pixels could not be."""
    top = max(window.row - gaps.MARGIN, 0)
    bottom = min(window.row + window.height + gaps.MARGIN, reader.grid.height)
    around = Window(top, 0, bottom - top, window.width)
    own = reader.read(around)
    whole, filled = gaps.fill(own, [other.read(around) for other in others])
    inside = window.within(around).slices
    bands = {name: layer[inside] for name, layer in whole.bands.items()}
    still = int(gaps.gap_pixels(own.quality)[inside].sum() - filled[inside].sum())
    return Pixels(bands, whole.quality[inside]), filled[inside], still


def _slope(heights: npt.NDArray[np.float32], grid: Grid, window: Window) -> npt.NDArray[np.float32]:
    """Slope of a window in degrees, with the rows above and below it, so that strips meet."""
    top = max(window.row - 1, 0)
    bottom = min(window.row + window.height + 1, grid.height)
    around = Window(top, 0, bottom - top, window.width)
    slope, _ = slope_aspect(heights[around.slices], grid, around)
    return slope[window.within(around).slices]


def _write(
    beside: Path,
    target: Path,
    grid: Grid,
    names: Sequence[str],
    strips: Iterator[Strip],
    tags: Mapping[str, str],
) -> None:
    try:
        with rasterio.open(
            beside,
            "w",
            driver="GTiff",
            height=grid.height,
            width=grid.width,
            count=len(names),
            dtype="float32",
            nodata=np.nan,
            crs=grid.crs.to_wkt(),
            transform=grid.transform,
            tiled=True,
            blockxsize=_ROWS,
            blockysize=_ROWS,
            interleave="band",
            compress="deflate",
            predictor=3,
            num_threads=2,
            bigtiff="if_safer",
        ) as dataset:
            dataset.update_tags(**tags)
            for number, name in enumerate(names, start=1):
                dataset.set_band_description(number, name)
            for window, stack in strips:
                place = rasterio.windows.Window(window.col, window.row, window.width, window.height)
                dataset.write(stack, window=place)
        # GDAL only prints what goes wrong while a file is closed.
        with rasterio.open(beside) as dataset:
            for number in range(1, len(names) + 1):
                dataset.checksum(number)
    except (RasterioError, CPLE_BaseError) as error:
        raise StorageError(
            f"{target}: cannot be written ({str(error).splitlines()[0]}). Is there room left on the "
            "disk? Nothing half-written was kept; run the same command again."
        ) from error
