"""A tiny real dataset for the tests of the model: four scenes, masked, sliced, postprocessed.

The scenes are 76 x 60 pixels with two kinds of ice that differ in their bands and overlap in
noise, so that a network learns something in a second, but not everything. One scene is for
training, one for dev, two for the test; their slices overlap by 4 and, at the lower edge, 16
rows, so that whoever counts pixels twice gets other numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import copy_settings, ground, make_outlines, make_scene, north_up, set_scenes
from numpy.typing import NDArray
from workspace import merge_yaml

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.postprocessing import postprocess
from glacier_core.dataset.slicing import slice_scene
from glacier_core.labels.masking import mask_scene
from glacier_core.model.checkpoints import Row
from glacier_core.model.predictor import ModelDescription, Predictor

CHANNELS = ["B2", "B3", "B5", "elevation"]
BANDS = ["B2", "B3", "B4", "B5", "elevation"]
SPLIT_OF = {
    "LE07_P_20001025": "train",
    "LE07_Q_20001025": "dev",
    "LE07_R_20001025": "test",
    "LE07_S_20001025": "test",
}
HEIGHT, WIDTH = 76, 60

# Means by class (background, clean ice, debris) of each band.
_MEANS = {
    "B2": (70, 160, 95),
    "B3": (75, 150, 100),
    "B4": (80, 120, 90),
    "B5": (110, 40, 85),
    "elevation": (4600, 5400, 4900),
}
_NOISE = {"B2": 25, "B3": 25, "B4": 25, "B5": 20, "elevation": 250}

PARAMS: dict[str, Any] = {
    "slice": {"size": 32, "overlap": 4},
    "postprocess": {
        "min_class_fraction": {"clean_ice": 0.0, "debris": 0.0},
        "min_valid_fraction": 0.1,
        "buffer_m": 100,
    },
    "train": {
        "epochs": 1,
        "batch_size": 2,
        "crops_per_slice": 1,
        "crop_size": 24,
        "learning_rate": 0.01,
        "warmup_epochs": 0,
        "depth": 2,
        "base_channels": 4,
        "dropout": 0.2,
        "patience": 50,
        "loader_threads": 0,
    },
    "evaluate": {"examples": 2, "forest": {"trees": 4, "depth": 5, "sample_pixels": 600}},
}

# With these, a second's training finds nearly all of the ice.
LEARNING: dict[str, Any] = {
    "epochs": 6,
    "batch_size": 4,
    "crops_per_slice": 4,
    "learning_rate": 0.02,
    "dropout": 0.0,
}


def truth_of(place: int) -> NDArray[np.uint8]:
    """Class numbers (height, width) of a scene as its outlines say."""
    truth = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for number, (top, left, bottom, right) in enumerate(_boxes(place), start=1):
        truth[top:bottom, left:right] = number
    return truth


def _boxes(place: int) -> list[tuple[int, int, int, int]]:
    return [(6 + place, 5, 44, 30 + 3 * place), (48, 10 + place, 70, 52)]


def _values(place: int) -> NDArray[np.float32]:
    random = np.random.default_rng(place)
    truth = truth_of(place)
    values = np.empty((len(BANDS), HEIGHT, WIDTH), dtype=np.float32)
    for i, name in enumerate(BANDS):
        layer = np.array(_MEANS[name], dtype=np.float32)[truth]
        values[i] = np.clip(layer + random.normal(0, _NOISE[name], layer.shape), 1, None)
    # Scan-line gaps, not the same ones in every band.
    values[BANDS.index("B5"), 20:22, :35] = np.nan
    values[BANDS.index("B2"), 50:52, 30:] = np.nan
    return values


def build(
    root: Path,
    *,
    scenes: Mapping[str, str] = SPLIT_OF,
    without_debris: Sequence[str] = (),
    split: str = "scenes",
) -> Project:
    """Write scenes, outlines and settings into a folder, and run the steps up to the dataset.

    Args:
        root: an empty folder.
        scenes: split by scene; what stands in a scene depends on its place in this order.
        without_debris: scenes over which no debris is outlined.
        split: the method in conf/postprocess.yaml.
    """
    copy_settings(root)
    outlines: dict[str, list[Any]] = {"clean_ice": [], "debris": []}
    confs: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(scenes):
        transform = north_up(500_010.0 + 60_000 * place)
        path = f"data/raw/scenes/{name}.tif"
        make_scene(root / path, bands=BANDS, values=_values(place), transform=transform,
                   nodata=float("nan"))  # fmt: skip
        clean, debris = _boxes(place)
        outlines["clean_ice"].append(ground(transform, clean))
        if name not in without_debris:
            outlines["debris"].append(ground(transform, debris))
        confs[name] = {"img_path": path}
    for kind, suffix in (("clean_ice", "shp"), ("debris", "gpkg")):
        shapes = outlines[kind]
        make_outlines(root / f"data/raw/outlines/{kind}.{suffix}", shapes, to="EPSG:4326",
                      year=[2000] * len(shapes))  # fmt: skip
    set_scenes(root, confs)
    merge_yaml(
        root / "conf/postprocess.yaml",
        {"channels": CHANNELS, "split": split, "assign": None, "filter": {"splits": []}},
    )
    merge_yaml(root / "conf/postprocess.yaml", {"assign": dict(scenes)})
    # So that results do not depend on what the machine multiplies fast.
    merge_yaml(root / "conf/train.yaml", {"device": "cpu", "precision": "float32"})
    merge_yaml(root / "params.yaml", PARAMS)
    project = Project(root)
    for name in scenes:
        mask_scene(project, name)
        slice_scene(project, name)
    postprocess(project)
    return project


def _built_once(factory: pytest.TempPathFactory) -> Path:
    root = factory.getbasetemp() / "small_dataset"
    if not root.exists():
        build(root)
    return root


def small_project(
    factory: pytest.TempPathFactory, root: Path, train: Mapping[str, Any] | None = None
) -> Project:
    """A copy of the dataset in a folder of the test's own, with changed `train` parameters."""
    shutil.copytree(_built_once(factory), root, dirs_exist_ok=True)
    return with_params(Project(root), **(train or {}))


def with_params(project: Project, **train: Any) -> Project:
    """The project after changing `train` in its params.yaml."""
    merge_yaml(project.root / "params.yaml", {"train": train})
    return Project(project.root)


def with_conf(project: Project, **changes: Any) -> Project:
    """The project after changing its conf/train.yaml."""
    merge_yaml(project.root / "conf/train.yaml", changes)
    return Project(project.root)


def rewrite_labels(dataset: Dataset, split: str, value: int) -> None:
    """Set every seen pixel of a split's labels to `value`: 0 outside, 1 inside the outlines."""
    for sample in dataset.splits[split]:
        path = dataset.folder / split / sample.label
        label = np.load(path)
        label[label != 255] = value
        path.unlink()  # it may share its content with the slice that it was linked from
        np.save(path, label)


def pixels_once(
    project: Project, split: str
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8]]]:
    """Whole scenes put together from a split's slices: name, raw channels (channels, height,
    width) and class numbers (height, width), 255 where no slice shows the pixel.

    Independent of `glacier_core`: from dataset.json and the files that it names.
    """
    folder = project.root / "data/dataset"
    content = json.loads((folder / "dataset.json").read_text())
    scenes: dict[str, tuple[NDArray[np.float32], NDArray[np.uint8]]] = {}
    for sample in content["splits"][split]:
        image, truth = scenes.setdefault(
            sample["scene"],
            (
                np.full((len(CHANNELS), HEIGHT, WIDTH), np.nan, np.float32),
                np.full((HEIGHT, WIDTH), 255, np.uint8),
            ),
        )
        at = (
            slice(sample["row"], sample["row"] + sample["height"]),
            slice(sample["col"], sample["col"] + sample["width"]),
        )
        stored = np.load(folder / split / sample["img"])
        label = np.load(folder / split / sample["label"])
        image[(slice(None), *at)] = stored[..., [BANDS.index(c) for c in CHANNELS]].transpose(
            2, 0, 1
        )
        numbers = np.where(label[..., 1] == 1, 2, np.where(label[..., 0] == 1, 1, 0))
        numbers = np.where(label[..., 0] == 255, 255, numbers)
        truth[at] = numbers[: sample["height"], : sample["width"]]
    for name, (image, truth) in scenes.items():
        yield name, image, truth


def said_once(project: Project, predictor: Predictor, split: str) -> dict[str, NDArray[np.uint8]]:
    """Predicted class numbers (height, width) by scene, 255 where no slice shows the pixel.

    Slice by slice, since a network sees no further than its tile; where slices overlap, the first
    one in the dataset's order speaks.
    """
    folder = project.root / "data/dataset"
    content = json.loads((folder / "dataset.json").read_text())
    scenes: dict[str, NDArray[np.uint8]] = {}
    for sample in content["splits"][split]:
        said = scenes.setdefault(sample["scene"], np.full((HEIGHT, WIDTH), 255, np.uint8))
        stored = np.load(folder / split / sample["img"])[: sample["height"], : sample["width"]]
        pixels = stored[..., [BANDS.index(c) for c in CHANNELS]].transpose(2, 0, 1)[None]
        numbers = np.nan_to_num(predictor.probabilities(pixels)[0]).argmax(axis=0)
        part = said[
            sample["row"] : sample["row"] + sample["height"],
            sample["col"] : sample["col"] + sample["width"],
        ]
        part[part == 255] = numbers[part == 255]
    return scenes


class After:
    """An observer that calls a function after each epoch."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def begin(self, description: ModelDescription, past: list[Row]) -> None: ...

    def epoch(self, row: Row) -> None:
        self.call(int(row["epoch"]))

    def end(self, error: BaseException | None) -> None: ...


class Stopped(BaseException):
    """As abrupt as an exception can be."""


def models(project: Project) -> Path:
    return project.run_folder / "models"
