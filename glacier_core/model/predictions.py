"""What the model of a fold says of its test ground, kept as files beside what is true there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glacier_core.dataset.blocks import footprints_of, pixel_m
from glacier_core.dataset.loading import Dataset
from glacier_core.files import whole_folder, write_json
from glacier_core.model.conditions import Conditions, Groups
from glacier_core.model.ensemble import Ensemble
from glacier_core.model.scoring import predict_split
from glacier_core.settings import SPLITS

MADE = "made.json"
"""Beside the predictions of a fold and seed: what they follow from, and where each slice lies."""

FORMAT = 3
"""Of the files; other numbers are predicted anew."""

# Probabilities are stored as v / 255, as in the maps.
_STEPS = 255


def write_predictions(
    folder: Path,
    ensemble: Ensemble,
    dataset: Dataset,
    pieces: Mapping[tuple[str, int], str],
    follows_from: Mapping[str, Any],
) -> None:
    """Predict the test split, into a folder that is there whole or not at all.

    Args:
        folder: to be made, in place of an earlier one.
        ensemble: what predicts.
        dataset: whose test split.
        pieces: by scene and number of a slice, the piece of ground that the bootstrap draws.
        follows_from: what `made.json` is to say of where this comes from.
    """
    shapes, conditions = footprints_of(dataset), Conditions(dataset)
    slices = []
    with whole_folder(folder) as beside:
        for sample, truth, probability in tqdm(
            predict_split(ensemble, dataset, "test"),
            total=len(dataset.splits["test"]), desc="predict", disable=None, leave=False,
        ):  # fmt: skip
            key = sample.scene, sample.k
            entry = {
                "file": f"slice_{sample.scene}_{sample.k}.npz", "scene": sample.scene,
                "k": sample.k, "row": sample.row, "col": sample.col,
                "height": sample.height, "width": sample.width,
                "piece": pieces[key], "pixel_m": pixel_m(sample, shapes[key]),
            }  # fmt: skip
            groups = conditions.groups(sample, entry["pixel_m"])
            save_prediction(beside / entry["file"], truth, probability, groups)
            slices.append(entry)
        write_json(beside / MADE, {
            **follows_from,
            "classes": dataset.class_names,
            "leaky": dataset.leaky,
            "ground": {split: _ground(dataset, split) for split in SPLITS},
            "slices": slices,
        })  # fmt: skip


def save_prediction(
    path: Path,
    truth: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.float32],
    groups: Groups,
) -> None:
    """Write what a model says of a slice beside its labels, compressed.

    The `.npz` holds uint8 arrays: `classes` (height, width), the most likely class of each pixel;
    `probabilities` (classes, height, width), v / 255; `truth` (height, width), 255 ignored. And of
    each group of pixels `group_names` (groups, 2), its condition and its name, and `groups`
    (groups, height, width), whether a pixel belongs to it.
    """
    np.savez_compressed(
        path,
        classes=probability.argmax(axis=0).astype(np.uint8),
        probabilities=np.rint(probability * _STEPS).astype(np.uint8),
        truth=truth,
        group_names=np.array(list(groups), dtype=np.str_),
        groups=np.array(list(groups.values())),
    )


def load_prediction(path: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """True class numbers (height, width), 255 ignored, and probabilities (classes, height, width),
    0 where nothing was seen."""
    with np.load(path) as file:
        truth, classes, stored = file["truth"], file["classes"], file["probabilities"]
    probability = stored.astype(np.float32) / _STEPS
    # Two classes may be stored as equally likely: the one that was more so stays first.
    chosen = classes[None] == np.arange(len(stored))[:, None, None]
    tied = stored.any(axis=0) & ((stored == stored.max(axis=0)).sum(axis=0) > 1)
    probability[chosen & tied] += 0.5 / _STEPS
    return truth, probability


def load_groups(path: Path) -> Groups:
    """The groups of a slice's pixels, as they were saved with it."""
    with np.load(path) as file:
        names, where = file["group_names"], file["groups"]
    return {(str(condition), str(group)): held for (condition, group), held in zip(names, where, strict=True)}  # fmt: skip


def _ground(dataset: Dataset, split: str) -> dict[str, Any]:
    samples = dataset.splits[split]
    return {
        "slices": len(samples),
        "scenes": sorted({sample.scene for sample in samples}),
        "blocks": sorted({sample.block for sample in samples}),
    }
