"""The crops that a network is shown in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_dataset import small_project

from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.sampling import Crops
from glacier_core.settings import AugmentConf


@pytest.mark.parametrize(
    ("flips", "turns", "symmetries"),
    [(False, False, 1), (True, False, 4), (False, True, 4), (True, True, 8)],
)
def test_flips_and_turns_reach_every_symmetry_that_they_name_and_no_other(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    flips: bool,
    turns: bool,
    symmetries: int,
) -> None:
    project = small_project(tmp_path_factory, tmp_path)
    dataset = Dataset.open(project.dataset_folder)
    # Whole slices, so that only the symmetry differs; the same one in each epoch.
    sample = dataset.splits["train"][0]
    assert sample.height == sample.width
    augment = AugmentConf(flips=flips, quarter_turns=turns)
    crops = Crops(dataset, project.params.train, augment, sample.height, seed=3)
    shown = {crops[epoch, 0][0].numpy().tobytes() for epoch in range(100)}
    assert len(shown) == symmetries
    assert np.isfinite(dataset.image("train", sample)).any()
