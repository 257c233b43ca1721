"""Cutting a scene and its mask into square slices whose footprints are true."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyproj import Transformer
from shapely.geometry import Polygon, mapping
from tqdm import tqdm

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.files import save_array, whole_folder
from glacier_core.labels.metadata import read_metadata
from glacier_core.raster.grid import Grid, Window, tile_windows
from glacier_core.raster.scene import Scene
from glacier_core.raster.tiles import read_tiles
from glacier_core.threads import in_threads

logger = logging.getLogger(__name__)

IGNORED = 255
"""Label of pixels about which nothing is known: not seen, outside the border, under cloud."""

# A straight edge of 15 km in a UTM zone departs from the straight line between its reprojected
# ends by metres; with a vertex every sixteenth of the edge, by centimetres.
_EDGE_VERTICES = 16
# Coordinates to the millimetre: a pixel's corner is found again by who reads the file.
_DEGREE_DIGITS = 8


_FRACTION, _MEAN = "fraction_", "mean_"


@dataclass(frozen=True)
class SliceRecord:
    """One slice as `slices.geojson` describes it.

    Attributes:
        scene: scene id.
        k: number of the slice in its scene, row by row.
        img, label: file names in the scene's slice folder; None where nothing was seen, as
            such slices are not written.
        row, col, height, width: the pixels of the scene that it shows.
        valid_fraction: share of those pixels that are not ignored.
        class_fractions: by class, the share of valid pixels inside its outlines.
        mean: by band, over valid pixels; None where there are none.
    """

    scene: str
    k: int
    img: str | None
    label: str | None
    row: int
    col: int
    height: int
    width: int
    valid_fraction: float
    class_fractions: dict[str, float]
    mean: dict[str, float | None]

    @property
    def window(self) -> Window:
        return Window(self.row, self.col, self.height, self.width)

    def to_properties(self, source: str) -> dict[str, Any]:
        """GeoJSON properties without nesting, so that QGIS can filter and colour by each."""
        flat = asdict(self)
        fractions, means = flat.pop("class_fractions"), flat.pop("mean")
        return {
            **flat,
            "source": source,
            **{f"{_FRACTION}{name}": value for name, value in fractions.items()},
            **{f"{_MEAN}{name}": value for name, value in means.items()},
        }

    @classmethod
    def from_properties(cls, properties: dict[str, Any]) -> SliceRecord:
        def named(prefix: str) -> dict[str, Any]:
            return {
                key.removeprefix(prefix): value
                for key, value in properties.items()
                if key.startswith(prefix)
            }

        values: dict[str, Any] = {field.name: properties.get(field.name) for field in fields(cls)}
        values |= {"class_fractions": named(_FRACTION), "mean": named(_MEAN)}
        return cls(**values)


@dataclass(frozen=True)
class SlicedScene:
    """The content of a scene's `slices.geojson`.

    Attributes:
        id, source, date: the scene, its file, its date (ISO, or None).
        bands: band names, the last axis of the slices.
        nodata: one value or None a band; a pixel holding it was not seen in that band.
        classes: class names, the last axis of the labels.
        used: channels in which a pixel must be seen not to be ignored.
        slices: one record a slice.
        footprints: their polygons (longitude, latitude).
        units: scale and offset, by band, of those whose numbers are not in their unit.
    """

    id: str
    source: str
    date: str | None
    bands: list[str]
    nodata: list[float | None]
    classes: list[str]
    used: list[str]
    slices: list[SliceRecord]
    footprints: list[Polygon]
    units: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> SlicedScene:
        """Read `slices.geojson` of a scene.

        Raises:
            InputError: missing, because the scene was not sliced yet.
        """
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; run `glacier slice` first") from None
        head = content["scene"]
        return cls(
            **head,
            slices=[SliceRecord.from_properties(f["properties"]) for f in content["features"]],
            footprints=[
                Polygon(feature["geometry"]["coordinates"][0]) for feature in content["features"]
            ],
        )

    def to_geojson(self) -> dict[str, Any]:
        head = {
            key: getattr(self, key)
            for key in ("id", "source", "date", "bands", "nodata", "classes", "used")
        }
        if self.units:
            head["units"] = self.units
        return {
            "type": "FeatureCollection",
            "name": "slices",
            "scene": head,
            "features": [
                {
                    "type": "Feature",
                    "geometry": mapping(shape),
                    "properties": record.to_properties(self.source),
                }
                for record, shape in zip(self.slices, self.footprints, strict=True)
            ],
        }


def footprint(grid: Grid, window: Window) -> Polygon:
    """The ground that a window shows as (longitude, latitude), WGS 84, counter-clockwise."""
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    shape = grid.footprint(window)
    shape = shape.segmentize(shape.length / 4 / _EDGE_VERTICES)
    lon, lat = to_degrees.transform(*shape.exterior.coords.xy)
    ring = [
        (round(x, _DEGREE_DIGITS), round(y, _DEGREE_DIGITS)) for x, y in zip(lon, lat, strict=True)
    ]
    return Polygon(ring if Polygon(ring).exterior.is_ccw else ring[::-1])


def label_of(mask: npt.NDArray[np.uint8], seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Label (height, width, classes): the mask where seen, `IGNORED` elsewhere."""
    return np.where(seen[..., None], mask, np.uint8(IGNORED))


def slice_scene(project: Project, scene_id: str) -> SlicedScene:
    """Write a scene's `slice_{id}_img_{k}.npy`, `slice_{id}_label_{k}.npy`, `slices.geojson`.

    Images are (size, size, bands) in the scene's own dtype (floats as float32, unseen values
    as NaN or the band's nodata value); labels uint8 (size, size, classes): 1 inside an
    outline, 0 outside, 255 ignored. A scene smaller than a slice is padded on the right and
    below with unseen, ignored pixels. Memory is a few slices, whatever the scene's size.

    Raises:
        InputError: the scene is damaged, lacks a channel, or its mask is missing or of
            another shape; nothing is written.
    """
    conf, scene_conf, params = project.masking, project.scene(scene_id), project.params.slice
    used = project.postprocess.channels
    mask_folder = project.mask_folder(scene_id)
    with Scene(project.root / scene_conf.img_path, conf.bands, used) as scene:
        scene.positions(used)
        grid = scene.grid
        mask, border = (mask_folder / f"{kind}_{scene_id}.npy" for kind in ("mask", "border"))
        for path in (mask, border):
            _check_size(path, grid)
        made = read_metadata(mask_folder)
        if (made["crs"], made["transform"]) != (
            grid.crs.to_string(),
            " ".join(map(repr, grid.transform[:6])),
        ):
            raise InputError(
                f"{mask_folder}: was burned for a scene that lies elsewhere than "
                f"{scene_conf.img_path} does now; run `glacier mask` again"
            )
        burned = made["classes"].split(" ")
        if burned != conf.classes:
            raise InputError(
                f"{mask_folder}: was burned for classes {burned}, conf/masking_paths.yaml names "
                f"{conf.classes}; run `glacier mask` again"
            )
        if min(grid.height, grid.width) < params.size:
            logger.info(
                "%s: %d x %d pixels, smaller than a slice of %d: padded with ignored pixels",
                scene_id,
                grid.height,
                grid.width,
                params.size,
            )
        windows = tile_windows(grid.height, grid.width, params.size, params.overlap)
        with whole_folder(project.slice_folder(scene_id)) as folder:
            cutter = _Cutter(scene_id, scene, used, params.size, conf.classes, mask, border, folder)
            cut = in_threads(
                lambda tile: cutter.write(tile[0], windows[tile[0]], tile[1]),
                read_tiles(scene, windows),
            )
            bar = tqdm(cut, total=len(windows), desc=f"slice {scene_id}", disable=None)
            records = sorted(bar, key=lambda record: record.k)
            result = SlicedScene(
                id=scene_id,
                source=scene_conf.img_path,
                date=scene_conf.date,
                bands=scene.bands,
                nodata=scene.nodata,
                classes=conf.classes,
                used=used,
                slices=records,
                footprints=[footprint(grid, window) for window in windows],
                units=scene.units,
            )
            (folder / "slices.geojson").write_text(json.dumps(result.to_geojson()))
    unseen = sum(record.img is None for record in records)
    logger.info(
        "%s: %d slices, %d of them without a valid pixel and not written",
        scene_id,
        len(records),
        unseen,
    )
    return result


def _check_size(path: Path, grid: Grid) -> None:
    try:
        height, width = np.load(path, mmap_mode="r").shape[:2]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run `glacier mask` first") from None
    if (height, width) != (grid.height, grid.width):
        raise InputError(
            f"{path}: {height} x {width} pixels, but the scene has "
            f"{grid.height} x {grid.width}: they are of different grids; run `glacier mask` again"
        )


def _part(path: Path, window: Window) -> npt.NDArray[np.uint8]:
    """A window of an array on disk, mapped for this once: all that was ever read through a mapping
    stays in memory until it ends."""
    part: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")[window.slices]
    return part


@dataclass(frozen=True)
class _Cutter:
    """Writes slices of one scene; threads may share it.

    Attributes:
        id: of the scene.
        scene: its bands.
        used: channels in which a pixel must be seen.
        size: of a slice, pixels.
        classes: names of the mask's channels.
        mask, border: files of the whole scene.
        folder: where slices go.
    """

    id: str
    scene: Scene
    used: Sequence[str]
    size: int
    classes: Sequence[str]
    mask: Path
    border: Path
    folder: Path

    def write(self, k: int, window: Window, pixels: npt.NDArray[np.generic]) -> SliceRecord:
        """Write slice `k`, unless nothing is known of it; `pixels` become what is stored."""
        absent = self.scene.absent(pixels)
        seen = self.scene.seen(pixels, self.used, absent)
        seen &= _part(self.border, window) == 1
        label = label_of(_part(self.mask, window), seen)
        record = self._described(k, window, pixels, absent, seen, label)
        if record.img is not None and record.label is not None:
            nodata = self.scene.nodata
            _blank(pixels, absent, nodata)
            save_array(self.folder / record.img, _padded(pixels, self.size, nodata))
            save_array(self.folder / record.label, _padded(label, self.size, [IGNORED]))
        return record

    def _described(
        self,
        k: int,
        window: Window,
        pixels: npt.NDArray[np.generic],
        absent: npt.NDArray[np.bool_],
        valid: npt.NDArray[np.bool_],
        label: npt.NDArray[np.uint8],
    ) -> SliceRecord:
        count = int(valid.sum())
        fractions = {
            name: int((label[..., i] == 1).sum()) / count if count else 0.0
            for i, name in enumerate(self.classes)
        }
        known = valid[..., None] & ~absent
        sums = _by_band(np.where(known, pixels, 0), np.float64)
        means = zip(self.scene.bands, sums, _by_band(known, np.int64), strict=True)
        mean = {name: float(total / seen) if seen else None for name, total, seen in means}
        return SliceRecord(
            scene=self.id,
            k=k,
            img=f"slice_{self.id}_img_{k}.npy" if count else None,
            label=f"slice_{self.id}_label_{k}.npy" if count else None,
            row=window.row,
            col=window.col,
            height=window.height,
            width=window.width,
            valid_fraction=count / valid.size,
            class_fractions=fractions,
            mean=mean,
        )


def _by_band(values: npt.NDArray[np.generic], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Sums over the pixels of (height, width, bands): whole rows first, since NumPy is slow where
    a short axis is the last one."""
    height, width, bands = values.shape
    rows: npt.NDArray[Any] = values.reshape(height, width * bands).sum(axis=0, dtype=dtype)
    sums: npt.NDArray[Any] = rows.reshape(width, bands).sum(axis=0)
    return sums


def _blank(
    pixels: npt.NDArray[np.generic],
    absent: npt.NDArray[np.bool_],
    nodata: Sequence[float | None],
) -> None:
    """NaN in floats wherever a band was not seen; in integers, its nodata value."""
    if pixels.dtype.kind == "f":
        np.copyto(pixels, np.nan, where=absent)
        return
    for i, value in enumerate(nodata):
        if value is not None:
            pixels[..., i][absent[..., i]] = value


def _padded(
    array: npt.NDArray[np.generic], size: int, fill: Sequence[float | None]
) -> npt.NDArray[np.generic]:
    """Extended to (size, size, ...) on the right and below with values that mean unseen."""
    height, width, depth = array.shape
    if (height, width) == (size, size):
        return array
    out = np.zeros((size, size, depth), dtype=array.dtype)
    if array.dtype.kind == "f":
        out[:] = np.nan
    else:
        for i in range(depth):
            out[..., i] = (fill[i] if len(fill) > 1 else fill[0]) or 0
    out[:height, :width] = array
    return out
