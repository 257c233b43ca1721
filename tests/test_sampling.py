"""The crops that a network is shown in training."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_dataset import pixels_once, small_project

from glacier_core.config import Project
from glacier_core.dataset.composition import balanced_weights, class_pixels
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.sampling import Crops
from glacier_core.errors import InputError
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


# --- crops placed upon a class ---------------------------------------------------------------


def with_labels(project: Project, numbers: dict[int, NDArray[np.uint8]]) -> Dataset:
    """The dataset with debris alone, in these pixels of these training slices."""
    dataset = Dataset.open(project.dataset_folder)
    for k, sample in enumerate(dataset.splits["train"]):
        path = dataset.folder / "train" / sample.label
        label = np.zeros_like(np.load(path))
        if k in numbers:
            label[..., 1] = numbers[k]
        path.unlink()  # it may share its content with the slice that it was linked from
        np.save(path, label)
    return dataset


def pixels(*places: tuple[int, int]) -> NDArray[np.uint8]:
    label = np.zeros((32, 32), dtype=np.uint8)
    for place in places:
        label[place] = 1
    return label


def focused(project: Project, dataset: Dataset, size: int = 8, **shares: float) -> Crops:
    params = project.params.train.model_copy(update={"focus": shares})
    return Crops(dataset, params, AugmentConf(flips=False, quarter_turns=False), size, seed=3)


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory, tmp_path)


def test_a_share_of_the_crops_holds_the_class_that_it_names(project: Project) -> None:
    dataset = with_labels(project, {2: pixels((16, 20))})
    crops = focused(project, dataset, debris=0.4)
    # Of slice 1, which has no debris: what else shows some was placed upon it.
    held = [bool((crops[epoch, 1][1] == 2).any()) for epoch in range(600)]
    assert np.mean(held) == pytest.approx(0.4, abs=0.06)
    assert all((focused(project, dataset, debris=1.0)[e, 1][1] == 2).any() for e in range(100))


def test_shares_of_several_classes_are_those_of_one_epoch(project: Project) -> None:
    dataset = Dataset.open(project.dataset_folder)
    crops = focused(project, dataset, size=1, debris=0.5, clean_ice=0.3, background=0.2)
    shown = np.array([int(crops[epoch, 0][1][0, 0]) for epoch in range(600)])
    for number, share in ((2, 0.5), (1, 0.3), (0, 0.2)):
        assert np.mean(shown == number) == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(("row", "col"), [(16, 20), (0, 31), (3, 28)])
def test_the_pixel_lies_at_any_place_in_the_crop_that_the_slice_allows(
    project: Project, row: int, col: int
) -> None:
    dataset = with_labels(project, {0: pixels((row, col))})
    crops = focused(project, dataset, debris=1.0)
    found = [
        tuple(map(int, np.argwhere(crops[epoch, 1][1].numpy() == 2)[0])) for epoch in range(1200)
    ]
    # Where it is row 3 of the slice, it cannot be a lower row of a crop within it.
    rows = {r for r in range(8) if 0 <= row - r <= 32 - 8}
    cols = {c for c in range(8) if 0 <= col - c <= 32 - 8}
    counts = Counter(found)
    assert set(counts) == {(r, c) for r in rows for c in cols}
    assert min(counts.values()) > 0.2 * 1200 / len(counts)


def test_slices_are_chosen_by_the_square_root_of_what_they_hold(project: Project) -> None:
    full = np.zeros((32, 32), dtype=np.uint8)
    full[8:16, 8:16] = 1
    dataset = with_labels(project, {3: pixels((16, 16), (16, 20), (20, 16), (20, 20)), 5: full})
    assert dataset.splits["train"][5].height >= 16
    crops = focused(project, dataset, size=32, debris=1.0)
    held = [int((crops[epoch, 1][1] == 2).sum()) for epoch in range(600)]
    assert set(held) == {4, 64}
    assert np.mean(np.array(held) == 4) == pytest.approx(2 / (2 + 8), abs=0.05)


def test_a_class_that_no_training_slice_shows_is_refused(project: Project) -> None:
    dataset = with_labels(project, {})
    with pytest.raises(InputError, match=r"train\.focus: no training slice shows a pixel of deb"):
        focused(project, dataset, background=0.1, debris=0.2)


# --- how much of each class there is ---------------------------------------------------------


def test_pixels_of_each_class_are_counted_once(project: Project) -> None:
    dataset = Dataset.open(project.dataset_folder)
    found = class_pixels(dataset)
    assert found.shape == (len(dataset.splits["train"]), 3)
    [(_, _, truth)] = pixels_once(project, "train")
    assert found.sum(axis=0).tolist() == [int((truth == number).sum()) for number in range(3)]
    assert found.sum(axis=0).min() > 0


def test_balanced_weights_are_inverse_square_roots_with_mean_one(project: Project) -> None:
    [(_, _, truth)] = pixels_once(project, "train")
    counts = np.array([(truth == number).sum() for number in range(3)])
    found = balanced_weights(Dataset.open(project.dataset_folder))
    assert list(found) == ["background", "clean_ice", "debris"]
    weights = np.array(list(found.values()))
    assert weights.mean() == pytest.approx(1)
    assert weights / weights[0] == pytest.approx(np.sqrt(counts[0] / counts))


def test_balanced_weights_of_a_class_that_does_not_occur_are_refused(project: Project) -> None:
    dataset = with_labels(project, {0: pixels((3, 3))})
    with pytest.raises(InputError, match=r"train\.class_weights: balanced .* none of clean_ice\."):
        balanced_weights(dataset)
