"""Opening a scene: its bands by name, its pixels by window, and which of them were seen."""

from __future__ import annotations

import datetime
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from rasterio.errors import RasterioError

from glacier_core.errors import InputError
from glacier_core.raster.bands import (
    QUALITY_BANDS,
    ZERO_IS_FILL,
    how_to_get,
    unseen_by_quality,
)
from glacier_core.raster.derived import Derived, misspelt
from glacier_core.raster.grid import Grid, Window
from glacier_core.threads import thread_count

# GDAL's own default is 5 % of the machine's memory, which would grow with the machine. In bytes:
# Rasterio does not take small numbers for megabytes, as GDAL does.
_CACHE = 32 * 2**20

# Why a pixel was not seen, in `Scene.view`.
NO_VALUE, COVERED = 1, 2

_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")


IMAGE_SUFFIXES = {".tif", ".tiff", ".vrt", ".img", ".jp2"}


def find_scenes(places: Sequence[str]) -> list[Path]:
    """Image files from folders, globs and file names, sorted.

    Raises:
        InputError: a place holds no image.
    """
    found: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            images = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        else:
            images = [Path(name) for name in glob.glob(place, recursive=True)]  # noqa: PTH207
        if not images:
            raise InputError(
                f"{place}: no scene found; expected a folder of {'/'.join(sorted(IMAGE_SUFFIXES))} "
                "files, a glob in quotes, or a file"
            )
        found.extend(images)
    return sorted(set(found))


def date_in(name: str) -> str | None:
    """The first calendar date (YYYYMMDD or YYYY-MM-DD) in a file name, ISO, or None."""
    for year, month, day in _DAY.findall(name):
        try:
            return datetime.date(int(year), int(month), int(day)).isoformat()
        except ValueError:
            continue
    return None


class Scene:
    """A raster with named bands. A context manager; reads windows, never the whole.

    Attributes:
        grid: where its pixels lie.
        bands: names of its bands in file order, then of the channels that are derived from them.
        dtype: in which slices store it: integers as they are, any float as float32.
        nodata: the value that means "not seen", one a band, None where a band has none.
            NaN always means it.
        units: scale and offset, by band, of those whose numbers are not in their unit.
    """

    def __init__(
        self,
        path: Path,
        bands: Sequence[str] | None,
        wanted: Sequence[str] = (),
        *,
        must_be_located: bool = True,
    ) -> None:
        """Open and check a scene.

        Args:
            path: any raster GDAL reads.
            bands: names in file order for files whose bands have no descriptions; None to
                take the file's own.
            wanted: channels that will be asked for: what is no band is derived, where it can be
                (`derived.DERIVED`), and counts as a band from here on.
            must_be_located: refuse a file without CRS.

        Raises:
            InputError: missing, unreadable or truncated file, no CRS, unnamed bands, or names
                that contradict the file's; pixels without an area; an impossible place of the sun
                where a wanted channel needs it.
        """
        self.path = path
        self._must_be_located = must_be_located
        self._environment = rasterio.Env(GDAL_CACHEMAX=_CACHE, GDAL_NUM_THREADS=str(thread_count()))
        self._environment.__enter__()
        try:
            self._dataset = rasterio.open(path)
        except RasterioError as error:
            self._environment.__exit__(None, None, None)
            reason = "no such file" if not path.exists() else str(error)
            raise InputError(f"{path}: cannot be opened as an image ({reason})") from error
        try:
            self._describe(bands, wanted)
        except BaseException:
            self.close()
            raise

    def _describe(self, bands: Sequence[str] | None, wanted: Sequence[str]) -> None:
        dataset = self._dataset
        self.grid = Grid.of(dataset)
        if self._must_be_located:
            self.grid.check_located(self.path)
        pixel = self.grid.transform.determinant
        if not np.isfinite(pixel) or pixel == 0:
            raise InputError(
                f"{self.path}: its pixels have no area (transform "
                f"{tuple(self.grid.transform)[:6]}); georeference it anew"
            )
        described = list(dataset.descriptions)
        if bands is not None and len(bands) != dataset.count:
            raise InputError(
                f"{self.path}: has {dataset.count} bands, but {len(bands)} names are configured "
                f"(bands: {', '.join(bands)}). `--bands etm15` is for the 15-band ETM+ stack alone"
            )
        if any(described):
            if not all(described) or len(set(described)) != len(described):
                raise InputError(f"{self.path}: band descriptions are incomplete: {described}")
            if bands is not None and list(bands) != described:
                raise InputError(
                    f"{self.path}: its bands are named {', '.join(described)}, but "
                    f"{', '.join(bands)} are configured. Set `bands: null`, or leave out --bands, to take the file's."
                )
            self.bands = described
        elif bands is not None:
            self.bands = list(bands)
        else:
            raise InputError(
                f"{self.path}: its {dataset.count} bands have no names. Name them in file order "
                "with `glacier configure --bands B1,B2,...`, or `--bands etm15` for the 15-band "
                "ETM+ stack."
            )
        kinds = {np.dtype(kind) for kind in dataset.dtypes}
        self.dtype = np.result_type(*kinds) if len(kinds) > 1 else kinds.pop()
        if self.dtype.kind not in "uif":
            raise InputError(f"{self.path}: bands of type {self.dtype} cannot be used")
        if self.dtype.kind == "f":
            self.dtype = np.dtype(np.float32)
        limits = np.finfo(self.dtype) if self.dtype.kind == "f" else np.iinfo(self.dtype)
        low, high = float(limits.min), float(limits.max)
        self.nodata: list[float | None] = []
        for name, value in zip(self.bands, dataset.nodatavals, strict=True):
            # NaN is never seen anyway, and no pixel holds what the type cannot.
            declared = float(value) if value is not None and low <= value <= high else None
            if declared is None and name in ZERO_IS_FILL:
                declared = 0.0
            self.nodata.append(declared)
        # A GeoTIFF declares one nodata for all bands, and may have gaps of 0 all the same.
        self._fills = [
            {0.0, value} if name in ZERO_IS_FILL and value is not None else {value} - {None}
            for name, value in zip(self.bands, self.nodata, strict=True)
        ]
        self._scaling = list(zip(dataset.scales, dataset.offsets, strict=True))
        named = zip(self.bands, self._scaling, strict=True)
        self.units = {name: list(pair) for name, pair in named if pair != (1, 0)}
        self._derived = Derived(wanted, self.bands, self.grid, dataset.tags(), self.path)
        if self._derived.names:
            self.bands = [*self.bands, *self._derived.names]
            self.nodata += [None] * len(self._derived.names)
            self._fills += [set() for _ in self._derived.names]
            self.dtype = np.dtype(np.float32)

    def positions(self, names: Sequence[str]) -> list[int]:
        """Positions of bands by name, counted from 0.

        Raises:
            InputError: naming the bands that the scene lacks and those it has.
        """
        missing = [name for name in names if name not in self.bands]
        if missing:
            raise InputError(
                f"{self.path}: has no band {', '.join(missing)}; it has {', '.join(self.bands)}. "
                f"Channels are chosen in conf/postprocess.yaml.{self.how_to_get(missing)}"
            )
        return [self.bands.index(name) for name in names]

    def how_to_get(self, missing: Sequence[str]) -> str:
        """What to do about channels that it lacks; sentences for the end of a message, or none."""
        needed, words = self._derived.lacking(missing)
        return misspelt(missing) + words + how_to_get([*missing, *needed], self.bands)

    def read_into(self, pixels: npt.NDArray[np.generic], window: Window) -> None:
        """Every band of a window, exactly as stored.

        Args:
            pixels: (height, width, bands) of `dtype`, to be filled.
            window: of that height and width.

        Raises:
            InputError: the file is truncated or damaged there.
        """
        # GDAL puts each value where it belongs: turning the axes afterwards would take as long
        # as decoding a third of the file.
        self._load_into(np.moveaxis(pixels, -1, 0), window, range(len(self.bands)))

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of the pieces that the file is compressed in."""
        height, width = self._dataset.block_shapes[0]
        return int(height), int(width)

    def view(
        self, window: Window, channels: Sequence[str], also: Sequence[str] = ()
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """What a network takes of a window, and where the ground was not seen.

        Args:
            window: its pixels.
            channels: names of bands, in order.
            also: bands that follow them, without which the ground counts as seen all the same.

        Returns:
            Values float32 (channels, height, width), NaN where that band was not seen; and uint8
            (height, width): 0 where every channel was seen, `NO_VALUE` where one was not (fill,
            scan-line gap), `COVERED` where a quality band objects (cloud, shadow).

        Raises:
            InputError: the scene lacks a channel, or is damaged there.
        """
        shape = (len(channels) + len(also), window.height, window.width)
        values = np.empty(shape, dtype=np.float32)
        return values, self.view_into(values, window, channels, also)

    def view_into(
        self,
        values: npt.NDArray[np.float32],
        window: Window,
        channels: Sequence[str],
        also: Sequence[str] = (),
    ) -> npt.NDArray[np.uint8]:
        """As `view`, into an array that is there already; returns where nothing was seen."""
        positions = self.positions([*channels, *also])
        quality = [self.bands.index(name) for name in QUALITY_BANDS if name in self.bands]
        order = sorted({*positions, *quality})
        stack: npt.NDArray[np.generic] = np.empty(
            (len(order), window.height, window.width), dtype=self.dtype
        )
        self._load_into(stack, window, order)
        unseen = np.zeros(stack.shape[1:], dtype=np.uint8)
        for position in quality:
            layer = stack[order.index(position)]
            unseen[unseen_by_quality(self.bands[position], layer)] = COVERED
            unseen[self._absent_in(layer, position)] = NO_VALUE
        for i, position in enumerate(positions):
            values[i] = layer = stack[order.index(position)]
            absent = self._absent_in(layer, position)
            np.copyto(values[i], np.nan, where=absent)
            if i < len(channels):
                np.copyto(unseen, NO_VALUE, where=absent)
        return unseen

    def _load_into(
        self, stack: npt.NDArray[np.generic], window: Window, positions: Sequence[int]
    ) -> None:
        """Bands and derived channels (bands, height, width), these last."""
        held = [position for position in positions if position < self._dataset.count]
        derived = [self.bands[position] for position in positions[len(held) :]]
        if held:
            self._decode_into(stack[: len(held)], window, held)
        if derived:
            found = self._derived.work_out(derived, window, self._in_units)
            for layer, values in zip(stack[len(held) :], found, strict=True):
                layer[...] = values

    def _in_units(self, window: Window, positions: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Bands in the units that the file declares (GDAL's scale and offset), NaN where unseen."""
        order = sorted(positions)
        stack = np.empty((len(order), window.height, window.width), dtype=np.float32)
        self._decode_into(stack, window, order)
        found = []
        for position in positions:
            layer = stack[order.index(position)]
            absent = self._absent_in(layer, position)
            scale, offset = self._scaling[position]
            if (scale, offset) != (1, 0):
                layer = layer * np.float32(scale) + np.float32(offset)
            layer[absent] = np.nan
            found.append(layer)
        return found

    def _decode_into(
        self, stack: npt.NDArray[np.generic], window: Window, positions: Sequence[int]
    ) -> None:
        target = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        numbers = [position + 1 for position in positions]
        try:
            self._dataset.read(numbers, window=target, out=stack)
        except RasterioError as error:
            cause = error.__cause__ or error
            raise InputError(
                f"{self.path}: damaged or truncated: rows {window.row} to "
                f"{window.row + window.height} cannot be read ({cause})"
            ) from error

    def _absent_in(self, layer: npt.NDArray[np.generic], position: int) -> npt.NDArray[np.bool_]:
        """As `absent`, of one band: (height, width)."""
        absent = unseen_values(layer, None)
        for value in self._fills[position]:
            absent |= layer == value
        return absent

    def absent(self, pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
        """Where each band holds no observation: nodata, NaN, infinity, a 0 that means fill.

        Args:
            pixels: (height, width, bands), from `read_into`.

        Returns:
            bool (height, width, bands).
        """
        absent = unseen_values(pixels, None)
        for value in set[float | None]().union(*self._fills):
            holders = [value in fill for fill in self._fills]
            same = pixels == value
            if not all(holders):
                same &= holders
            absent |= same
        return absent

    def seen(
        self,
        pixels: npt.NDArray[np.generic],
        channels: Sequence[str],
        absent: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Where the ground was seen in every one of `channels`, and no quality band objects.

        Args:
            pixels: (height, width, bands), from `read_into`.
            channels: names of the bands in use. Quality bands count whether named or not.
            absent: of `pixels`, where it is known already.

        Returns:
            bool (height, width).
        """
        absent = self.absent(pixels) if absent is None else absent
        quality = [name for name in QUALITY_BANDS if name in self.bands]
        seen = np.ones(pixels.shape[:2], dtype=bool)
        for position in self.positions([*channels, *quality]):
            seen &= ~absent[..., position]
        for name in quality:
            seen &= ~unseen_by_quality(name, pixels[..., self.bands.index(name)])
        return seen

    def close(self) -> None:
        self._dataset.close()
        self._environment.__exit__(None, None, None)

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def unseen_values(values: npt.NDArray[np.generic], nodata: float | None) -> npt.NDArray[np.bool_]:
    """Where one band holds no observation: its nodata value, NaN or infinity.

    Args:
        values: any shape, any dtype.
        nodata: the band's nodata value, None where it has none.
    """
    unseen: npt.NDArray[np.bool_] = (
        np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, dtype=bool)
    )
    np.logical_not(unseen, out=unseen)
    if nodata is not None:
        unseen |= values == nodata
    return unseen
