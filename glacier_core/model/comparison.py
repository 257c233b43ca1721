"""Two models on the same test blocks: every pixel once, a confusion matrix a piece of ground."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import geopandas as gpd
import numpy as np
import shapely
from tqdm import tqdm

from glacier_core.dataset.blocks import footprints_of
from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.errors import InputError
from glacier_core.model.bootstrap import Matrices
from glacier_core.model.metrics import confusion
from glacier_core.model.predictor import ModelDescription, Predictor
from glacier_core.model.scoring import predict_split

# Areas in the equal-area plane in which blocks are named, too (Brodzik et al. 2012).
_EQUAL_AREA = "EPSG:6933"

# Slices that share more than this of the smaller one show the same ground. Neighbours in a scene
# share 1 % (`slice.overlap`); a scene of another date, however its slices lie to those of the
# first, has for each of them one with which it shares a quarter.
_SAME_GROUND = 0.2

# Less of a slice than this is rounding where neighbouring splits touch (postprocess.buffer_m 0).
_TOUCHING = 0.001


@dataclass(frozen=True)
class Units:
    """What the bootstrap draws: pieces of ground.

    Attributes:
        names: unit of each test slice.
        kind: what a unit is, in words.
    """

    names: list[str]
    kind: str

    @property
    def count(self) -> int:
        return len(set(self.names))


def judged_slices(dataset: Dataset) -> list[Sample]:
    """The test split in an order that no other scene changes: by scene and number."""
    return sorted(dataset.splits["test"], key=lambda sample: (sample.scene, sample.k))


def hash_of_test(dataset: Dataset) -> str:
    """SHA-256 of the test split: its classes, its slices and their labels, in order."""
    digest = hashlib.sha256(json.dumps(dataset.class_names).encode())
    for sample in judged_slices(dataset):
        digest.update(json.dumps([sample.scene, sample.k, *_window(sample)]).encode())
        for file in (sample.img, sample.label):
            with (dataset.folder / "test" / file).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _window(sample: Sample) -> tuple[int, int, int, int]:
    return sample.row, sample.col, sample.height, sample.width


def units_of(dataset: Dataset, needed: int) -> Units:
    """Group the test slices into pieces of ground.

    Whole blocks where there are enough of them: beyond a block's edge, snow, haze and the
    analyst's hand differ. Small test sets have one or two, and then the ground of a slice (15 km)
    is the unit: longer than most glaciers, so that most are judged within one unit, but less than
    a scene's weather, so that the interval is rather too short than too long.

    Slices are not units themselves. Those that show the same ground, at another date or by
    overlap, say the same thing twice; each joins the unit of the earlier slice that it shares
    most ground with. (Not a grid of cells: scenes of two dates never quite coincide, and the same
    ground would fall into two cells.)

    Args:
        dataset: with a test split.
        needed: how many blocks are enough.
    """
    samples = judged_slices(dataset)
    blocks = [sample.block for sample in samples]
    if len(set(blocks)) >= needed:
        return Units(blocks, "blocks")
    shapes = footprints_of(dataset)
    degrees = [shapes[sample.scene, sample.k] for sample in samples]
    grounds = list(gpd.GeoSeries(degrees, crs="EPSG:4326").to_crs(_EQUAL_AREA).values)
    firsts: list[int] = []  # the slice that began each unit
    names = []
    for i, ground in enumerate(grounds):
        shared = [
            ground.intersection(grounds[j]).area / min(ground.area, grounds[j].area) for j in firsts
        ]
        best = int(np.argmax(shared)) if shared else 0
        if not shared or shared[best] <= _SAME_GROUND:
            best = len(firsts)
            firsts.append(i)
        first = samples[firsts[best]]
        names.append(f"{first.scene}/{first.k}")
    return Units(names, "pieces of ground as large as a slice")


def seen_in_training(description: ModelDescription, dataset: Dataset) -> list[str] | None:
    """Blocks of the test split's ground that a model was trained or chosen on.

    By their ground, not by name: names of blocks that are not recorded change with the scenes.

    Returns:
        Block names as the model has them, sorted; None where the model does not say.

    Raises:
        InputError: the polygons in the description are damaged.
    """
    if description.blocks is None:
        return None
    shapes = footprints_of(dataset)
    tests = [shapes[sample.scene, sample.k] for sample in dataset.splits["test"]]
    tree = shapely.STRtree(tests)
    found = []
    for name, text in sorted(description.blocks.items()):
        try:
            ground = shapely.from_wkt(text)
        except shapely.errors.ShapelyError as error:
            raise InputError(f"model.json: blocks: {name}: is no polygon ({error})") from error
        near = tree.query(ground, predicate="intersects")
        if any(ground.intersection(tests[i]).area > _TOUCHING * tests[i].area for i in near):
            found.append(name)
    return found


def check_comparable(name: str, description: ModelDescription, dataset: Dataset) -> None:
    """Refuse a model that cannot be judged on the dataset.

    Raises:
        InputError: it tells other classes apart, or the slices lack a band that it needs.
    """
    if description.classes != dataset.class_names:
        raise InputError(
            f"{name}: tells apart {', '.join(description.classes)}, but the test split is labelled "
            f"{', '.join(dataset.class_names)} (conf/postprocess.yaml: classes). Models of other "
            "classes cannot be compared; to change over, move the alias in MLflow by hand."
        )
    for scene in sorted({sample.scene for sample in dataset.splits["test"]}):
        bands = dataset.scenes[scene].bands
        missing = [channel for channel in description.channels if channel not in bands]
        if missing:
            raise InputError(
                f"{name}: needs {', '.join(missing)}, which the slices of scene {scene} lack; "
                f"they have {', '.join(bands)}. Use scenes that hold every band of both models."
            )


def matrices_of(
    predictor: Predictor, dataset: Dataset, units: Sequence[str], label: str
) -> Matrices:
    """Confusion matrices of a model over the test split, by unit.

    The model reads its own channels from the slices, which hold every band of the scene. Where it
    needs a band that was not seen, in a pixel that counts, it finds nothing there: background.

    Args:
        predictor: the model, see `check_comparable`.
        dataset: with a test split.
        units: unit of each of `judged_slices`.
        label: for the progress bar.

    Returns:
        int64 (units, classes, classes), units in sorted order.
    """
    samples = judged_slices(dataset)
    own = replace(
        dataset, channels=predictor.description.channels, splits={**dataset.splits, "test": samples}
    )
    order = {name: place for place, name in enumerate(sorted(set(units)))}
    classes = len(dataset.class_names)
    result = np.zeros((len(order), classes, classes), dtype=np.int64)
    slices = zip(predict_split(predictor, own, "test"), units, strict=True)
    for (_, truth, probability), unit in tqdm(slices, total=len(samples), desc=label, disable=None):
        said = probability.argmax(axis=0).astype(np.uint8)
        result[order[unit]] += confusion(truth, said, classes)
    return result
