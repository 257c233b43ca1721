"""Which scenes a model labelled, and how much of the training is its own labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from glacier_core.config import Project
from glacier_core.dataset.loading import Sample
from glacier_core.dataset.slicing import IGNORED
from glacier_core.labels.metadata import read_metadata
from glacier_core.raster.grid import first_cover


def predicted_scenes(project: Project) -> dict[str, str]:
    """Of each scene whose labels are a model's in any pixel: which, above which confidence.

    Raises:
        InputError: a scene is not masked yet.
    """
    found = {}
    for name in project.masking.scenes:
        # Masks that were burned before models could label do not have it.
        by = read_metadata(project.mask_folder(name)).get("predicted")
        if by:
            found[name] = by
    return found


def predicted_share(
    project: Project, samples: Sequence[Sample], predicted: Mapping[str, str]
) -> float:
    """Share of the training split's valid pixels, each counted once, whose label a model made.

    Args:
        project: whose masks say which pixels these are.
        samples: of the training split, whose labels lie in its folder.
        predicted: scenes that have such pixels.
    """
    if not any(sample.scene in predicted for sample in samples):
        return 0.0
    total, theirs = 0, 0
    for scene in sorted({sample.scene for sample in samples}):
        shown = [sample for sample in samples if sample.scene == scene]
        made = None
        if scene in predicted:
            path = project.mask_folder(scene) / f"predicted_{scene}.npy"
            made = np.load(path, mmap_mode="r")
        once = first_cover([sample.window for sample in shown])
        for sample, first in zip(shown, once, strict=True):
            label = np.load(project.dataset_folder / "train" / sample.label, mmap_mode="r")
            valid = (label[: sample.height, : sample.width, 0] != IGNORED) & first
            total += int(valid.sum())
            if made is not None:
                theirs += int((valid & (made[sample.window.slices] == 1)).sum())
    return theirs / total if total else 0.0
