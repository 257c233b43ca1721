"""A map as files: class, probability and confidence rasters, and what is known about them."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from rasterio.errors import RasterioError

from glacier_core.errors import InputError
from glacier_core.raster.grid import Grid, Window

ABOUT = "map.json"
UNSEEN = 255
"""Class number of pixels about which the map says nothing."""

ELEVATION_STEP_M = 0.5
"""Metres that a stored 1 stands for: finer than any DEM of mountains is exact."""
NO_ELEVATION = -32768


@dataclass(frozen=True)
class ChannelCheck:
    """How a channel of the scene lies against the training split, raw units.

    Attributes:
        mean: over the scene's seen pixels.
        training_mean, training_deviation: of the training split.
    """

    mean: float
    training_mean: float
    training_deviation: float

    @property
    def drift(self) -> float:
        """Distance of the means in standard deviations of the training split."""
        return abs(self.mean - self.training_mean) / max(self.training_deviation, 1e-12)


@dataclass(frozen=True)
class About:
    """What `map.json` says.

    Attributes:
        scene: its name, the stem of its file.
        source: path of the scene, as it was given.
        bands: names given to the scene's bands, None where the file names them.
        date: ISO, None where it is not known.
        classes: names by class number, background first.
        models: what made it, as `models:/name/version` or the folder; several for an ensemble.
        trainings: fingerprint of the training of each.
        symmetries: whether turns and mirror images were averaged.
        seen: share of pixels that were seen.
        no_value: share without a value: fill, scan-line gaps.
        covered: share under cloud or shadow by a quality band.
        snow_outside: share of the seen pixels that look like snow (NDSI above 0.4) and are not
            mapped as ice; None where the model does not see green and SWIR.
        channels: how each channel lies against the training split.
        key: fingerprint of scene, models and options together.
    """

    scene: str
    source: str
    bands: list[str] | None
    date: str | None
    classes: list[str]
    models: list[str]
    trainings: list[str]
    symmetries: bool
    seen: float
    no_value: float
    covered: float
    snow_outside: float | None
    channels: dict[str, ChannelCheck]
    key: str

    @property
    def day(self) -> datetime.date | None:
        return datetime.date.fromisoformat(self.date) if self.date else None

    @property
    def ice(self) -> list[str]:
        """Names of the classes that are ice: all but the background."""
        return self.classes[1:]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> About:
        channels = {name: ChannelCheck(**value) for name, value in content["channels"].items()}
        about = cls(**{**content, "channels": channels})
        if not all(isinstance(names, list) and names for names in (about.classes, about.models)):
            raise ValueError("classes and models must be lists of names")
        _ = about.day  # a date that is none is found here
        return about


@dataclass(frozen=True)
class SceneMap:
    """The folder that `glacier map` writes for a scene.

    `{scene}_classes.tif`: uint8, class numbers, 255 where nothing was seen.
    `{scene}_probabilities.tif`: uint8, one band a class of ice, v / 255; masked where unseen.
    `{scene}_confidence.tif`: uint8, probability of the mapped class, v / 255; masked.
    `{scene}_uncertainty.tif`: uint8, only where several predictions were averaged: standard
    deviation between them of the probability of the mapped class, v / 255; masked.
    `{scene}_elevation.tif`: int16, v x `ELEVATION_STEP_M`; only where the scene has an elevation.
    `map.json`: `About`.
    """

    folder: Path

    @cached_property
    def about(self) -> About:
        path = self.folder / ABOUT
        try:
            return About.from_json(json.loads(path.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: no such file; run `glacier map` first") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: is damaged ({error}); run `glacier map --again`") from None

    def raster(self, kind: str) -> Path:
        """Path of `classes`, `probabilities`, `confidence` or `uncertainty`."""
        return self.folder / f"{self.about.scene}_{kind}.tif"

    @cached_property
    def grid(self) -> Grid:
        with self._opened("classes") as dataset:
            return Grid.of(dataset)

    @property
    def has_elevation(self) -> bool:
        return self.raster("elevation").exists()

    def _opened(self, kind: str) -> Any:
        path = self.raster(kind)
        try:
            return rasterio.open(path)
        except RasterioError as error:
            raise InputError(
                f"{path}: cannot be opened ({error}); run `glacier map --again`"
            ) from None

    def elevation(self, window: Window) -> npt.NDArray[np.float32]:
        """Metres (height, width), NaN where unknown; all of it where the scene had no elevation."""
        if not self.has_elevation:
            return np.full((window.height, window.width), np.nan, dtype=np.float32)
        return metres(self.read("elevation", window))

    def read(self, kind: str, window: Window | None = None) -> npt.NDArray[Any]:
        """A raster as stored: (height, width), or (bands, height, width) for probabilities.

        Raises:
            InputError: missing or damaged.
        """
        part = None
        if window is not None:
            part = rasterio.windows.Window(window.col, window.row, window.width, window.height)
        grid = self.grid
        with self._opened(kind) as dataset:
            if dataset.shape != (grid.height, grid.width):
                raise InputError(
                    f"{self.raster(kind)}: has not the {grid.height} x {grid.width} pixels of the "
                    "class raster; run `glacier map --again`"
                )
            try:
                stack: npt.NDArray[Any] = dataset.read(window=part)
            except RasterioError as error:
                raise InputError(
                    f"{self.raster(kind)}: damaged ({error}); run `glacier map --again`"
                ) from None
        if kind == "classes" and ((stack >= len(self.about.classes)) & (stack != UNSEEN)).any():
            raise InputError(
                f"{self.raster(kind)}: holds class {stack[stack != UNSEEN].max()}, but {ABOUT} "
                f"names {len(self.about.classes)} classes; run `glacier map --again`"
            )
        return stack if kind == "probabilities" else stack[0]


def metres(stored: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Elevations of a map as metres, NaN where unknown."""
    values = stored.astype(np.float32)
    values *= np.float32(ELEVATION_STEP_M)
    values[stored == NO_ELEVATION] = np.nan
    return values
