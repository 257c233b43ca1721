"""The pictures of a report: scene and rasters at the size of a screen, as data in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import matplotlib
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import rasterio.windows
from affine import Affine
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from glacier_core.errors import InputError
from glacier_core.maps.report.frame import Frame
from glacier_core.maps.scenemap import UNSEEN, SceneMap
from glacier_core.maps.styles import colour_of, in_words
from glacier_core.model.figures import composite
from glacier_core.raster.bands import find_common
from glacier_core.raster.scene import Scene, unseen_values

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

# Rows of a scene read at once, or a row of its blocks.
_ROWS = 256
# Bytes, as rasterio counts them. GDAL's own default grows with the machine.
_GDAL = {"GDAL_CACHEMAX": 32 * 2**20}
# Steps of a continuous layer: finer ones are noise to the eye and bytes to the file.
_STEPS = 20
_UNSEEN_COLOUR = "#7d8694"
# What moved between two dates, in this order; other kinds come after, in the colours in reserve.
_MOVES = {
    "gain": ("#12a594", "gain of ice"),
    "loss": ("#e5484d", "loss of ice"),
    "clean_ice_to_debris": ("#8a4a12", "clean ice to debris"),
    "debris_to_clean_ice": ("#1d4ed8", "debris to clean ice"),
}


@dataclass(frozen=True)
class Layer:
    """One layer of the map that can be switched on and off.

    Attributes:
        key: of the layer in the page.
        label: what people read.
        uri: the picture as a data URI, None where the layer is drawn from shapes.
        shown: whether it is switched on at first.
        swatches: colour and meaning, where the layer has a few; the label is the meaning of one
            without.
        ramp: colours from low to high, where it is continuous.
        ends: meaning of the ramp's two ends.
        overlay: whether the opacity slider works on it.
    """

    key: str
    label: str
    uri: str | None
    shown: bool
    swatches: Sequence[tuple[str, str]] = ()
    ramp: Sequence[str] = ()
    ends: tuple[str, str] = ("", "")
    overlay: bool = True


# --- encoding --------------------------------------------------------------------------------


def _data_uri(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _rgba(colour: str, alpha: float = 1.0) -> tuple[int, int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue, round(255 * alpha)


def _png(numbers: npt.NDArray[np.uint8], palette: Sequence[tuple[int, int, int, int]]) -> str:
    """Numbers (height, width) with a colour each, as a PNG; numbers beyond are transparent."""
    image = Image.fromarray(np.minimum(numbers, len(palette)).astype(np.uint8))
    colours = np.array([*palette, (0, 0, 0, 0)], dtype=np.uint8)
    image.putpalette(colours[:, :3].tobytes())
    return _data_uri(image, "png", transparency=colours[:, 3].tobytes())


# --- what is shown ---------------------------------------------------------------------------


def _read(scene_map: SceneMap, kind: str, frame: Frame, how: Resampling) -> np.ma.MaskedArray:
    """A raster of the map at the size of the pictures, (bands, height, width), masked."""
    path = scene_map.raster(kind)
    try:
        with rasterio.Env(**_GDAL), rasterio.open(path) as dataset:
            shape = (dataset.count, *frame.shape)
            layers: np.ma.MaskedArray = dataset.read(out_shape=shape, resampling=how, masked=True)
    except RasterioError as error:
        reason = str(error) if path.exists() else "no such file"
        raise InputError(
            f"{path}: cannot be opened ({reason}); run `glacier map` first (with --again)"
        ) from None
    return layers


def quick_look(
    scene_map: SceneMap, frame: Frame, root: Path
) -> tuple[Layer | None, str | None, str | None]:
    """The scene in false colours.

    Three bands at about the size of the screen, from overviews where the file has them; never the
    whole scene at once.

    Args:
        scene_map: says where the scene lies.
        frame: of the map.
        root: folder that a relative path starts from.

    Returns:
        The layer and what its colours are; or None and why there is none.
    """
    about = scene_map.about
    path = root / about.source
    if not path.exists():
        return None, None, f"The scene {about.source} is not there any more: the map has no image."
    try:
        with Scene(path, about.bands, must_be_located=False) as scene:
            names, nodata, grid = scene.bands, scene.nodata, scene.grid
        if (grid.height, grid.width) != (frame.grid.height, frame.grid.width):
            reason = "has another size than the map"
            return None, None, f"The scene {about.source} {reason}: the map has no image."
        found = [find_common(names, name) for name in ("swir1", "nir", "red")]
        last = len(names) - 1
        chosen = [i if i is not None else min(k, last) for k, i in enumerate(found)]
        pixels = _decimated(path, chosen, [nodata[i] for i in chosen], frame.shape)
    except (InputError, RasterioError) as error:
        return None, None, f"The scene cannot be read ({error}): the map has no image."
    shown = [names[i] for i in chosen]
    rgb = np.round(composite(pixels, shown) * 255).astype(np.uint8)
    uri = _data_uri(Image.fromarray(rgb), "jpeg", quality=86, optimize=True)
    bands = ", ".join(shown)
    words = f"SWIR, near infrared and red as red, green and blue ({bands})"
    if None in found:
        words = f"bands {bands} as red, green and blue"
    return Layer("image", "Image", uri, True, overlay=False), words, None


def _decimated(
    path: Path, chosen: Sequence[int], nodata: Sequence[float | None], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Bands at a smaller size, (height, width, bands), NaN where unseen.

    Each pixel is the mean of up to four samples. GDAL's own mean would mix in fill values that
    the file does not declare.
    """
    height, width = shape
    pixels = np.empty((height, width, len(chosen)), dtype=np.float32)
    with rasterio.Env(**_GDAL), rasterio.open(path) as dataset:
        finer = 1 if (dataset.height, dataset.width) == shape else 2
        stored = _samples(dataset, [i + 1 for i in chosen], (finer * height, finer * width))
    for k, (layer, absent) in enumerate(zip(stored, nodata, strict=True)):
        unseen = unseen_values(layer, absent)
        layer[unseen] = 0
        count = (~unseen).reshape(height, finer, width, finer).sum(axis=(1, 3))
        parts = layer.reshape(height, finer, width, finer)
        pixels[..., k] = parts.sum(axis=(1, 3), dtype=np.float64) / np.maximum(count, 1)
        pixels[count == 0, k] = np.nan
    return pixels


def _samples(
    dataset: DatasetReader, numbers: Sequence[int], shape: tuple[int, int]
) -> npt.NDArray[np.generic]:
    """The nearest pixels of bands on a smaller or larger grid, (bands, height, width).

    From overviews where there are any. Otherwise by whole rows of blocks: GDAL would go line by
    line, and unpack a row of blocks that its cache cannot hold once a line.
    """
    if all(dataset.overviews(number) for number in numbers):
        small: npt.NDArray[np.generic] = dataset.read(numbers, out_shape=(len(numbers), *shape))
        return small
    rows, cols = (
        ((np.arange(count) + 0.5) * full / count).astype(int)
        for count, full in zip(shape, (dataset.height, dataset.width), strict=True)
    )
    block = min(dataset.block_shapes[0][0], dataset.height)
    step = max(block, _ROWS // block * block)
    taken = np.empty((len(numbers), *shape), dtype=np.result_type(*dataset.dtypes))
    for top in range(0, dataset.height, step):
        inside = np.flatnonzero((rows >= top) & (rows < top + step))
        part = rasterio.windows.Window(0, top, dataset.width, min(step, dataset.height - top))
        if inside.size:
            strip = dataset.read(numbers, window=part)
            taken[:, inside] = strip[:, rows[inside] - top][:, :, cols]
    return taken


def map_layers(scene_map: SceneMap, frame: Frame) -> list[Layer]:
    """Classes, probabilities, confidence, uncertainty and unseen ground."""
    ice = scene_map.about.ice
    numbers = np.ma.filled(_read(scene_map, "classes", frame, Resampling.nearest), UNSEEN)[0]
    palette = [(0, 0, 0, 0), *(_rgba(colour_of(k), 0.8) for k in range(1, len(ice) + 1))]
    swatches = [(colour_of(k), in_words(name)) for k, name in enumerate(ice, start=1)]
    layers = [Layer("classes", "Classes", _png(numbers, palette), True, swatches)]

    probabilities = _read(scene_map, "probabilities", frame, Resampling.average)
    ramp = _ramp("magma", 0.12, 1.0)
    fading = [(*colour, min(1.0, 3 * k / _STEPS)) for k, colour in enumerate(ramp)]
    for k, (name, layer) in enumerate(zip(ice, probabilities, strict=True), start=1):
        layers.append(
            _continuous(
                f"probability_{k}", f"Probability of {in_words(name)}", layer, fading, ("0", "1")
            )
        )
    # Transparent where the map is sure, so that the eye goes where it is not.
    sure = _ramp("YlOrRd_r", 0.15, 0.95)
    doubt = [(*colour, min(1.0, 1.2 * (1 - k / _STEPS) ** 0.5)) for k, colour in enumerate(sure)]
    confidence = _read(scene_map, "confidence", frame, Resampling.average)[0]
    layers.append(_continuous("confidence", "Low confidence", confidence, doubt, ("0", "1")))
    if scene_map.raster("uncertainty").exists():
        # A spread of probabilities is 0.5 at most, and rarely half of that.
        spread = _read(scene_map, "uncertainty", frame, Resampling.average)[0]
        green = _ramp("summer", 0.0, 1.0)
        rising = [(*colour, min(1.0, 2.5 * k / _STEPS)) for k, colour in enumerate(green)]
        label, ends = "Uncertainty (spread)", ("0", "0.25")
        quarters = np.ma.minimum(spread, 63) * 4
        layers.append(_continuous("uncertainty", label, quarters, rising, ends))
    unseen = (numbers != UNSEEN).astype(np.uint8)
    layers.append(
        Layer(
            "unseen",
            "Not seen",
            _png(unseen, [_rgba(_UNSEEN_COLOUR)]),
            True,
            [(_UNSEEN_COLOUR, "")],
        )
    )
    return layers


def _ramp(name: str, low: float, high: float) -> list[tuple[float, float, float]]:
    colours = matplotlib.colormaps[name](np.linspace(low, high, _STEPS + 1))
    return [(float(r), float(g), float(b)) for r, g, b, _ in colours]


def _continuous(
    key: str,
    label: str,
    values: np.ma.MaskedArray,
    colours: Sequence[tuple[float, float, float, float]],
    ends: tuple[str, str],
) -> Layer:
    """A layer of v / 255, in `_STEPS` + 1 colours; what is masked is transparent."""
    steps = np.round(np.ma.filled(values, 0).astype(np.float32) * (_STEPS / 255)).astype(np.uint8)
    steps[np.ma.getmaskarray(values)] = UNSEEN
    palette = [tuple(round(255 * part) for part in colour) for colour in colours]
    css = ["rgba({}, {}, {}, {:.2f})".format(*entry[:3], entry[3] / 255) for entry in palette]
    shown = [(r, g, b, alpha) for r, g, b, alpha in palette]
    return Layer(key, label, _png(steps, shown), False, ramp=css[::4], ends=ends)


def move_layers(moves: gpd.GeoDataFrame, frame: Frame) -> list[Layer]:
    """What came, went and changed between two dates, one layer a kind.

    Pictures rather than shapes: there may be ten thousands of them, most of one pixel.
    """
    height, width = frame.shape
    grid = frame.grid
    transform = grid.transform @ Affine.scale(grid.width / width, grid.height / height)
    shapes = moves.geometry
    if shapes.crs is not None and grid.located and shapes.crs != grid.crs:
        shapes = shapes.to_crs(grid.crs)
    usable = shapes.notna() & ~shapes.is_empty
    layers = []
    kinds = sorted(
        {str(what) for what in moves["what"]}, key=lambda what: [*_MOVES, what].index(what)
    )
    for k, what in enumerate(kinds):
        colour, label = _MOVES.get(what, (colour_of(3 + k % 3), in_words(what)))
        chosen = shapes[usable & (moves["what"] == what)]
        if chosen.empty:
            continue
        there = rasterio.features.rasterize(
            chosen, out_shape=(height, width), transform=transform, fill=1, default_value=0,
            dtype="uint8",
        )  # fmt: skip
        layers.append(
            Layer(
                f"move_{k}",
                label[:1].upper() + label[1:],
                _png(there, [_rgba(colour)]),
                what in ("gain", "loss"),
                [(colour, "")],
            )
        )
    return layers
