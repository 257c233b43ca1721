"""Predicted labels: what a model alone says of a scene, stored to train on, and marked as that.

A raster a scene, `data/predicted/{scene}.tif`: uint8 on the scene's grid; 0 background, k the k-th of
`classes` in conf/masking_paths.yaml, 255 where the model was not sure or saw nothing. Its tags say
which model, above which confidence, and when. Everything that people say comes before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from glacier_core.config import Project
from glacier_core.errors import InputError, StorageError
from glacier_core.files import whole_file
from glacier_core.raster.grid import Grid, Window

UNSURE = 255
"""Value of a pixel about which the model was not sure enough, or which it did not see."""

# Edge of a tile, and rows that are read and written at once.
_ROWS = 512
_MODEL, _CONFIDENCE, _DAY, _CLASSES = (
    "GLACIER_MODEL",
    "GLACIER_CONFIDENCE",
    "GLACIER_DAY",
    "GLACIER_CLASSES",
)


@dataclass(frozen=True)
class Labeller:
    """Who made predicted labels, as their file says it.

    Attributes:
        model: `models:/name/version`.
        confidence: probability of the mapped class from which on a pixel is a label.
        day: ISO date on which they were made.
    """

    model: str
    confidence: float
    day: str

    def __str__(self) -> str:
        return f"{self.model} >= {self.confidence:g}"

    @property
    def in_words(self) -> str:
        name, _, version = self.model.removeprefix("models:/").rpartition("/")
        model = f"{name} version {version}" if name else self.model
        return f"{model} at confidence >= {self.confidence:g}"


@dataclass(frozen=True)
class PredictedLabels:
    """The predicted labels of a scene, to be laid under its reviews.

    Attributes:
        path: the file.
        by: who made them.
    """

    path: Path
    by: Labeller

    def lay(
        self, window: Window, mask: npt.NDArray[np.uint8], border: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.bool_]:
        """Write a window's labels into mask and border, in place.

        Args:
            window: its pixels.
            mask: uint8 (height, width, classes), in which no inventory burned anything.
            border: uint8 (height, width); becomes 0 where the model was not sure.

        Returns:
            bool (height, width): where the label is now the model's.
        """
        with _reading(self.path), rasterio.open(self.path) as dataset:
            said = _read(dataset, window)
        mask[:] = said[..., None] == 1 + np.arange(mask.shape[-1])
        border[said == UNSURE] = 0
        laid: npt.NDArray[np.bool_] = border == 1
        return laid


def predicted_path(project: Project, scene_id: str) -> Path:
    return project.root / "data/predicted" / f"{scene_id}.tif"


def predicted_for(project: Project, scene_id: str, grid: Grid) -> PredictedLabels | None:
    """The predicted labels of a scene; None where it has none.

    Raises:
        InputError: the file is damaged, of another grid or of other classes, or not there although
            DVC knows it.
    """
    by = labeller_of(project, scene_id)
    if by is None:
        return None
    path = predicted_path(project, scene_id)
    with _reading(path), rasterio.open(path) as dataset:
        own, kind = Grid.of(dataset), (dataset.count, dataset.dtypes[0])
        classes = dataset.tags()[_CLASSES].split(" ")
        highest = max(_highest(dataset, window) for window in _strips(own))
    if kind != (1, "uint8") or highest > len(classes):
        raise InputError(
            f"{path}: expected one band of uint8 up to {len(classes)}, found {kind[0]} of {kind[1]} "
            f"up to {highest}; {how_to_remove(path)}"
        )
    check_same_grid(path, own, grid, how_to_remove(path))
    if classes != project.masking.classes:
        raise InputError(
            f"{path}: labels of the classes {', '.join(classes)}, but {project.masking_path} has "
            f"{', '.join(project.masking.classes)}; {how_to_remove(path)}"
        )
    return PredictedLabels(path, by)


def labeller_of(project: Project, scene_id: str) -> Labeller | None:
    """Who made a scene's predicted labels; None where it has none.

    Raises:
        InputError: the file is damaged, or not there although DVC knows it.
    """
    path = predicted_path(project, scene_id)
    if not path.exists():
        known = path.with_name(f"{path.name}.dvc")
        if known.exists():
            raise InputError(f"{path}: no such file, but {known.name} names it; run `dvc pull`")
        return None
    with _reading(path), rasterio.open(path) as dataset:
        tags = dataset.tags()
        return Labeller(tags[_MODEL], float(tags[_CONFIDENCE]), tags[_DAY])


def write_predicted(
    path: Path,
    grid: Grid,
    classes: Sequence[str],
    by: Labeller,
    said: Callable[[Window], npt.NDArray[np.uint8]],
) -> None:
    """Write predicted labels, whole or not at all. Memory is a strip of rows.

    Args:
        path: of the file.
        grid: of the scene.
        classes: of conf/masking_paths.yaml, in order.
        by: who says so.
        said: of a window, uint8 (height, width) as the file is to hold it.

    Raises:
        StorageError: it cannot be written.
    """
    tags = {
        _MODEL: by.model,
        _CONFIDENCE: f"{by.confidence:g}",
        _DAY: by.day,
        _CLASSES: " ".join(classes),
    }
    with whole_file(path) as beside:
        try:
            with rasterio.open(
                beside, "w", driver="GTiff", count=1, dtype="uint8", height=grid.height,
                width=grid.width, crs=grid.crs.to_wkt(), transform=grid.transform, nodata=UNSURE,
                tiled=True, blockxsize=_ROWS, blockysize=_ROWS, compress="deflate",
            ) as dataset:  # fmt: skip
                dataset.update_tags(**tags)
                written = 0
                for window in _strips(grid):
                    values = said(window)
                    written = zlib.crc32(np.ascontiguousarray(values).data, written)
                    dataset.write(values, 1, window=_part(window))
            # GDAL only prints what goes wrong while a file is closed, as when a disk fills up.
            found = 0
            with rasterio.open(beside) as dataset:
                for window in _strips(grid):
                    found = zlib.crc32(np.ascontiguousarray(_read(dataset, window)).data, found)
            if found != written:
                raise RasterioError("the file does not hold what was written to it")
        except (RasterioError, CPLE_BaseError) as error:
            raise StorageError(
                f"{path}: cannot be written ({str(error).splitlines()[0]}). Is there room left on "
                "the disk? Nothing half-written was kept."
            ) from error


def remove_predicted(project: Project, scene_id: str) -> bool:
    """Remove a scene's predicted labels and what DVC says of them; whether there were any."""
    path = predicted_path(project, scene_id)
    known = [path.with_name(f"{path.name}.dvc"), path]
    there = [file for file in known if file.exists()]
    for file in there:
        file.unlink()
    return bool(there)


def how_to_remove(path: Path) -> str:
    """What to do about labels that cannot stay, for an error's last words."""
    return (
        f"remove it (`dvc remove --outs data/predicted/{path.name}.dvc`), and take the scene out of "
        "conf/masking_paths.yaml, or all of it would be background; `glacier/retrain` brings it in "
        "again"
    )


def check_same_grid(path: Path, own: Grid, grid: Grid, remedy: str) -> None:
    """Refuse a raster whose pixels are not those of the scene.

    Raises:
        InputError: naming `path`, and what to do.
    """
    if (own.height, own.width, own.crs) != (grid.height, grid.width, grid.crs) or not (
        own.transform.almost_equals(grid.transform, precision=1e-6)
    ):
        raise InputError(
            f"{path}: {own.height} x {own.width} pixels of {own.crs.name} from "
            f"{tuple(own.transform)[:6]}, but the scene has {grid.height} x {grid.width} of "
            f"{grid.crs.name} from {tuple(grid.transform)[:6]}: made of another version of it; "
            f"{remedy}"
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What GDAL raises of a damaged file, and the tags that it lacks, as what users are told."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as predicted labels ({str(error).splitlines()[0]}); "
            "`dvc checkout` restores it"
        ) from error


def _strips(grid: Grid) -> list[Window]:
    return [
        Window(row, 0, min(_ROWS, grid.height - row), grid.width)
        for row in range(0, grid.height, _ROWS)
    ]


def _part(window: Window) -> rasterio.windows.Window:
    return rasterio.windows.Window(window.col, window.row, window.width, window.height)


def _read(dataset: rasterio.io.DatasetReader, window: Window) -> npt.NDArray[np.uint8]:
    values: npt.NDArray[np.uint8] = dataset.read(1, window=_part(window))
    return values


def _highest(dataset: rasterio.io.DatasetReader, window: Window) -> int:
    values = _read(dataset, window)
    return int(values[values != UNSURE].max(initial=0))
