"""Reading slices back as what a network takes: raw channels, class numbers, what to ignore."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glacier_core.dataset.slicing import IGNORED
from glacier_core.errors import InputError
from glacier_core.raster.grid import Window, first_cover
from glacier_core.raster.scene import unseen_values
from glacier_core.settings import BACKGROUND


@dataclass(frozen=True)
class Sample:
    """A slice in a split: its files and the scene's pixels that it shows."""

    scene: str
    k: int
    img: str
    label: str
    block: str
    row: int
    col: int
    height: int
    width: int

    @property
    def window(self) -> Window:
        return Window(self.row, self.col, self.height, self.width)


@dataclass(frozen=True)
class SceneBands:
    """How a scene's slices are to be read.

    Attributes:
        bands: names along the last axis of its images.
        nodata: by band, the value that means unseen, or None.
        classes: names along the last axis of its labels.
        predicted: which model labelled it, above which confidence; None where people did.
        units: scale and offset, by band, of those whose numbers are not in their unit.
    """

    bands: list[str]
    nodata: list[float | None]
    classes: list[str]
    predicted: str | None = None
    units: dict[str, list[float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the keys of its JSON; without units where numbers are in them."""
        return {key: value for key, value in asdict(self).items() if key != "units" or value}


@dataclass(frozen=True)
class Dataset:
    """The postprocessed dataset: `dataset.json` and the folders `train`, `dev`, `test`.

    Attributes:
        folder: where they lie.
        channels: what the network sees, in order.
        classes: what it tells apart, the later winning; background is number 0 before them.
        impute: `mean`, or the raw value put where a channel was not seen.
        fingerprint: hash of everything that went into it.
        leaky: whether splits may share ground.
        scenes: how to read each scene's slices.
        splits: samples by split, in shuffled order.
        predicted_share: of the training split's valid pixels, each counted once, the share whose
            label a model made.
    """

    folder: Path
    channels: list[str]
    classes: list[str]
    impute: str | float
    fingerprint: str
    leaky: bool
    scenes: dict[str, SceneBands]
    splits: dict[str, list[Sample]]
    predicted_share: float = 0.0

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Open a postprocessed dataset.

        Raises:
            InputError: `dataset.json` is missing.
        """
        try:
            content = json.loads((folder / "dataset.json").read_text())
        except FileNotFoundError:
            raise InputError(
                f"{folder / 'dataset.json'}: no such file; run `glacier postprocess` first"
            ) from None
        return cls(
            folder=folder,
            channels=content["channels"],
            classes=content["classes"],
            impute=content["impute"],
            fingerprint=content["fingerprint"],
            leaky=content["leaky"],
            scenes={name: SceneBands(**value) for name, value in content["scenes"].items()},
            splits={
                name: [Sample(**value) for value in samples]
                for name, samples in content["splits"].items()
            },
            # One that was written before models could label does not have it.
            predicted_share=content.get("predicted_share", 0.0),
        )

    @cached_property
    def class_names(self) -> list[str]:
        """Names by class number: background first, then the classes."""
        return [BACKGROUND, *self.classes]

    def predicted_by(self) -> dict[str, str]:
        """Of the scenes in the training split that a model labelled: which, above which confidence."""
        used = sorted({sample.scene for sample in self.splits["train"]})
        said = {name: self.scenes[name].predicted for name in used}
        return {name: by for name, by in said.items() if by is not None}

    def common_bands(self) -> list[str]:
        """Bands that every scene's slices hold, among them some that are no channel."""
        first, *others = self.scenes.values()
        return [name for name in first.bands if all(name in scene.bands for scene in others)]

    def image(
        self,
        split: str,
        sample: Sample,
        window: Window | None = None,
        bands: Sequence[str] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Raw channels of a slice, float32 (height, width, channels), NaN where unseen.

        Args:
            split: `train`, `dev` or `test`.
            sample: one of its samples.
            window: pixels of the slice to read; all that show the scene where None. Pixels
                past the scene's edge are NaN.
            bands: stored bands to read instead of the channels.
        """
        scene = self.scenes[sample.scene]
        stored = np.load(self.folder / split / sample.img, mmap_mode="r")
        return read_channels(
            stored[: sample.height, : sample.width], scene, bands or self.channels, window
        )

    def measured(self, split: str, sample: Sample, band: str) -> npt.NDArray[np.float32]:
        """A stored band of a slice in its unit, float32 (height, width), NaN where unseen."""
        values = self.image(split, sample, bands=[band])[..., 0]
        scale, offset = self.scenes[sample.scene].units.get(band, (1.0, 0.0))
        return values * np.float32(scale) + np.float32(offset)

    def label(
        self, split: str, sample: Sample, window: Window | None = None
    ) -> npt.NDArray[np.uint8]:
        """Class numbers of a slice, uint8 (height, width): 0 background, 255 ignored."""
        scene = self.scenes[sample.scene]
        stored = np.load(self.folder / split / sample.label, mmap_mode="r")
        stored = stored[: sample.height, : sample.width]
        if window is None:
            return class_numbers(stored, scene.classes, self.classes)
        out = np.full((window.height, window.width), IGNORED, dtype=np.uint8)
        part = class_numbers(stored[window.slices], scene.classes, self.classes)
        out[: part.shape[0], : part.shape[1]] = part
        return out

    def counted_once(self, split: str) -> Iterator[npt.NDArray[np.bool_]]:
        """For each sample of a split, the pixels that no earlier sample of its scene shows."""
        samples = self.splits[split]
        covers = {
            scene: first_cover([sample.window for sample in samples if sample.scene == scene])
            for scene in {sample.scene for sample in samples}
        }
        for sample in samples:
            yield next(covers[sample.scene])


def read_channels(
    stored: npt.NDArray[np.generic],
    scene: SceneBands,
    channels: Sequence[str],
    window: Window | None = None,
) -> npt.NDArray[np.float32]:
    """Channels by name from stored bands, float32, NaN where unseen; not to be written to.

    Args:
        stored: (height, width, bands).
        scene: names and nodata of the bands.
        channels: names to take, in order.
        window: part to read; NaN where it reaches past `stored`.
    """
    part = stored if window is None else stored[window.slices]
    positions = [scene.bands.index(name) for name in channels]
    first, last = positions[0], positions[-1] + 1
    # In the order of the file, which is the usual one, nothing is copied here.
    beside = positions == list(range(first, last))
    chosen = part[..., slice(first, last) if beside else positions].astype(np.float32, copy=False)
    # Slices of floats hold NaN wherever a band was not seen; see `slice_scene`.
    if part.dtype.kind != "f":
        for i, position in enumerate(positions):
            chosen[..., i][unseen_values(part[..., position], scene.nodata[position])] = np.nan
    if window is None or chosen.shape[:2] == (window.height, window.width):
        return np.ascontiguousarray(chosen)
    out = np.full((window.height, window.width, len(channels)), np.nan, dtype=np.float32)
    out[: chosen.shape[0], : chosen.shape[1]] = chosen
    return out


def class_numbers(
    label: npt.NDArray[np.uint8], burned: Sequence[str], classes: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """One class number a pixel from overlapping label channels.

    Args:
        label: (height, width, burned classes), 1 inside, 0 outside, 255 ignored.
        burned: names along the last axis.
        classes: classes to tell apart; where several are burned, the later wins.

    Returns:
        uint8 (height, width): 0 where none is burned, 1 to len(classes), 255 ignored.
    """
    numbers = np.zeros(label.shape[:2], dtype=np.uint8)
    for number, name in enumerate(classes, start=1):
        numbers[label[..., burned.index(name)] == 1] = number
    numbers[label[..., 0] == IGNORED] = IGNORED
    return numbers
