"""How crops are changed: labels go with their pixels, and what was not seen stays unseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_dataset import CHANNELS, small_project, with_params
from torch import Tensor

from glacier_core.config import Project
from glacier_core.dataset.augmentation import altered, with_gaps, zoomed
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.sampling import Crops
from glacier_core.params import TrainParams
from glacier_core.settings import AugmentConf

BOTH = AugmentConf(flips=True, quarter_turns=True)
VALUES = {0: 10.0, 1: 60.0, 2: 200.0}  # of every band, by class number, where the label is known


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small dataset, whose bands tell the class of each pixel; not to be changed."""
    project = small_project(tmp_path_factory, tmp_path_factory.mktemp("augmented"))
    dataset = Dataset.open(project.dataset_folder)
    for sample in dataset.splits["train"]:
        label = dataset.label("train", sample)
        path = dataset.folder / "train" / sample.img
        stored = np.load(path)
        stored[: sample.height, : sample.width] = np.nan
        for number, value in VALUES.items():
            stored[: sample.height, : sample.width][label == number] = value
        path.unlink()  # it may share its content with the slice that it was linked from
        np.save(path, stored)
    return project


def crops_of(project: Project, **train: Any) -> Crops:
    params = project.params.train.model_copy(update={"crop_size": 24} | train)
    dataset = Dataset.open(project.dataset_folder)
    return Crops(dataset, params, BOTH, params.crop_size or 32, seed=3)


def train_params(**changes: float) -> TrainParams:
    off = {"gain": 0.0, "offset": 0.0, "haze": 0.0, "channel_dropout": 0.0}
    root = Path(__file__).parents[1]
    return Project(root).params.train.model_copy(update=off | changes)


# --- larger and smaller ----------------------------------------------------------------------


def with_holes(random: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Channels that say row and column, and one with holes; and labels."""
    image = np.empty((n, n, 3), dtype=np.float32)
    image[..., 0], image[..., 1] = np.mgrid[:n, :n]
    image[..., 2] = random.uniform(-5, 5, (n, n))
    image[..., 2][random.random((n, n)) < random.random()] = np.nan
    return image, random.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (n, n))


@given(n=st.integers(1, 40), size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_zooming_takes_labels_from_the_nearest_pixel_and_makes_nothing_seen(
    n: int, size: int, seed: int
) -> None:
    image, label = with_holes(np.random.default_rng(seed), n)
    found, numbers = zoomed(image, label, size)
    assert found.shape == (size, size, 3)
    assert numbers.shape == (size, size)
    # Where between two pixels, each is as near.
    row, col = (np.rint(found[..., i]).astype(int) for i in (0, 1))
    clear = (np.abs(np.abs(found[..., :2] % 1 - 0.5)) > 1e-3).all(axis=-1)
    assert (numbers == label[row, col])[clear].all()
    unseen = np.isnan(found[..., 2])
    assert (unseen == np.isnan(image[..., 2])[row, col])[clear].all()
    assert unseen.sum() == 0 or np.isnan(image[..., 2]).any()
    if not unseen.all():
        seen = image[..., 2][np.isfinite(image[..., 2])]
        assert found[..., 2][~unseen].min() >= seen.min() - 1e-4
        assert found[..., 2][~unseen].max() <= seen.max() + 1e-4


@given(factor=st.floats(0.5, 2), row=st.integers(8, 24), col=st.integers(8, 24))
@settings(deadline=None)
def test_zooming_keeps_things_in_their_places(factor: float, row: int, col: int) -> None:
    """A square of ice is as much larger, and as far from the edges."""
    n, size = 40, round(40 * factor)
    label = np.zeros((n, n), dtype=np.uint8)
    label[row : row + 10, col : col + 10] = 1
    _, numbers = zoomed(np.zeros((n, n, 1), dtype=np.float32), label, size)
    rows, cols = np.nonzero(numbers)
    for found, start in ((rows, row), (cols, col)):
        assert found.min() == pytest.approx(start * size / n, abs=1)
        assert found.max() + 1 == pytest.approx((start + 10) * size / n, abs=1)


def test_crops_are_shown_at_all_scales_up_to_the_one_given_each_way(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every band says the column: from one pixel of a crop to the next it grows by the scale."""
    project = small_project(tmp_path_factory, tmp_path)
    dataset = Dataset.open(project.dataset_folder)
    for sample in dataset.splits["train"]:
        path = dataset.folder / "train" / sample.img
        stored = np.load(path)
        stored[...] = np.arange(stored.shape[1], dtype=np.float32)[None, :, None]
        path.unlink()
        np.save(path, stored)
    crops = crops_of(project, zoom=0.5, crop_size=12)
    shown = []
    for epoch in range(400):
        band = crops[epoch, 0][0][..., 0]
        steps = max(float(band.diff(dim=axis)[4:8, 4:8].abs().mean()) for axis in (0, 1))
        shown.append(round(12 * steps))
    assert set(shown) == set(range(8, 19))
    assert np.mean(np.array(shown) < 12) == pytest.approx(0.5, abs=0.1)


def test_a_crop_that_shows_more_than_there_is_ignores_what_lies_outside(project: Project) -> None:
    assert Dataset.open(project.dataset_folder).splits["train"][0].height == 32
    crops = crops_of(project, zoom=0.5, crop_size=32)
    edges = 0
    for epoch in range(60):
        image, label = crops[epoch, 0]
        unseen = torch.isnan(image).all(dim=-1)
        edges += bool(max(unseen[i].all() or unseen[:, i].all() for i in (0, -1)))
        assert (label[unseen] == 255).all()
    assert 15 < edges < 45


# --- scan-line gaps --------------------------------------------------------------------------


@given(height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_gaps_are_ignored_exactly_where_the_channels_become_unseen(
    height: int, width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    image = random.normal(size=(height, width, 4)).astype(np.float32)
    image[..., 0][random.random((height, width)) < 0.3] = np.nan
    label = random.choice(np.array([0, 1, 255], dtype=np.uint8), (height, width))
    before = image.copy(), label.copy()
    found, numbers = with_gaps(image, label, ["B2", "B3", "elevation", "B5"], random)
    gap = np.isnan(found[..., 1])
    assert (numbers == np.where(gap, 255, label)).all()
    for i in (0, 3):
        assert (np.isnan(found[..., i]) == (gap | np.isnan(image[..., i]))).all()
    # What is seen is as it was; the height of the ground is known in a gap too.
    assert np.array_equal(found[..., 2], image[..., 2])
    kept = np.where(gap[..., None], np.nan, image)
    assert np.array_equal(found[..., [0, 1, 3]], kept[..., [0, 1, 3]], equal_nan=True)
    assert np.array_equal(image, before[0], equal_nan=True)
    assert np.array_equal(label, before[1])


def gap_of(seed: int, size: int = 400) -> NDArray[np.bool_]:
    image, label = np.zeros((size, size, 1), np.float32), np.zeros((size, size), np.uint8)
    return np.asarray(with_gaps(image, label, ["B2"], np.random.default_rng(seed))[1] == 255)


def test_gaps_come_back_every_two_sweeps_and_sink_towards_the_east() -> None:
    shares = []
    for seed in range(30):
        gap = gap_of(seed)
        shares.append(gap.mean())
        starts = [np.flatnonzero(~gap[:-1, col] & gap[1:, col]) for col in (0, 1, 350)]
        for rows in starts:
            # 33 lines across the sweeps, which are 10 to 20 degrees off: 33.5 to 35.1 rows.
            assert np.diff(rows).mean() == pytest.approx(34.3, abs=1.2)
        # Following one gap over 350 columns, it is 62 to 127 rows lower; by then it is another's
        # row again, so that it is followed column by column.
        row = int(starts[0][4])
        for col in range(1, 150):
            rows = np.flatnonzero(~gap[:-1, col] & gap[1:, col])
            row = int(rows[np.abs(rows - row).argmin()])
        assert 0.17 * 149 - 2 <= row - starts[0][4] <= 0.37 * 149 + 2
    assert 0.03 < min(shares) < 0.12
    assert 0.33 < max(shares) < 0.45


def test_as_many_crops_get_gaps_as_params_say(project: Project) -> None:
    plain, gappy = crops_of(project), crops_of(project, gaps=0.3)
    changed = [not torch.equal(plain[epoch, 1][1], gappy[epoch, 1][1]) for epoch in range(400)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.08)


# --- all of it, from the files ---------------------------------------------------------------


@given(
    zoom=st.sampled_from([0.0, 0.25, 0.8]),
    gaps=st.sampled_from([0.0, 1.0]),
    focus=st.sampled_from([{}, {"debris": 1.0}, {"clean_ice": 0.5, "background": 0.2}]),
    size=st.integers(4, 40),
    key=st.tuples(st.integers(0, 10**6), st.integers(0, 5)),
)
@settings(deadline=None)
def test_whatever_is_done_to_a_crop_its_labels_stay_with_its_pixels(
    project: Project, zoom: float, gaps: float, focus: dict[str, float], size: int, key: Any
) -> None:
    crops = crops_of(project, zoom=zoom, gaps=gaps, focus=focus, crop_size=size)
    image, label = (part.numpy() for part in crops[key])
    assert image.shape == (size, size, len(CHANNELS))
    assert image.dtype == np.float32
    assert label.dtype == np.uint8
    band = image[..., CHANNELS.index("B2")]
    assert (np.isnan(band) == (label == 255)).all()
    # Between two classes, zooming mixes the bands of both.
    for number, value in VALUES.items():
        mean = band[label == number]
        others = min(abs(value - v) for v in VALUES.values() if v != value)
        if zoom == 0:
            assert (mean == value).all()
        elif size >= 8 and len(mean) > 0.9 * size**2:
            assert np.median(np.abs(mean - value)) < others / 2
    inside = surrounded(label)
    if zoom <= 0.25:
        expected = np.vectorize(lambda n: VALUES.get(n, np.nan))(label)
        assert band[inside] == pytest.approx(expected[inside], abs=1e-3)


def surrounded(label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Seen pixels all of whose neighbours, two rows and columns far, are of their class."""
    inside = np.zeros(label.shape, dtype=bool)
    size = len(label)
    for row in range(2, size - 2):
        for col in range(2, size - 2):
            around = label[row - 2 : row + 3, col - 2 : col + 3]
            inside[row, col] = label[row, col] != 255 and (around == label[row, col]).all()
    return inside


def test_a_crop_is_a_function_of_seed_epoch_and_number_alone(project: Project) -> None:
    everything = {"zoom": 0.25, "gaps": 0.5, "focus": {"debris": 0.5}}
    keys = [(epoch, number) for epoch in range(3) for number in range(6)]
    first, again = crops_of(project, **everything), crops_of(project, **everything)
    shown = {key: first[key] for key in keys}
    for key in reversed(keys):
        for one, other in zip(again[key], shown[key], strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()
    assert len({image.numpy().tobytes() for image, _ in shown.values()}) == len(keys)


# --- normalised values -----------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def over_zeros(length: int = 12, channels: int = 5, size: int = 64, **changes: float) -> Tensor:
    x = torch.zeros(length, channels, size, size)
    return altered(x, train_params(**changes), generator(), length, slice(None))


def test_haze_is_one_smooth_field_for_all_channels_within_its_bounds() -> None:
    field = over_zeros(length=200, haze=0.7)
    assert torch.equal(field, field[:, :1].expand_as(field))
    assert field.abs().max() <= 0.7
    assert field.max() > 0.4
    assert field.min() < -0.4
    steps = torch.cat([field.diff(dim=2).flatten(), field.diff(dim=3).flatten()])
    # From one knot to the next, a third of the crop further, it goes from one bound to the other.
    assert steps.abs().max() <= 2 * 0.7 / 21 + 1e-5
    spread = field[:, 0].flatten(1).std(dim=1)
    assert (spread > 0).all()  # not an offset
    assert spread.max() > 4 * spread.min()  # more of it in some crops than in others


@given(
    rate=st.floats(0.0, 0.99),
    channels=st.integers(1, 8),
    length=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
@settings(deadline=None)
def test_dropped_channels_are_at_their_mean_and_never_all(
    rate: float, channels: int, length: int, seed: int
) -> None:
    x = torch.randn(length, channels, 3, 3, generator=generator(seed)) + 10
    params = train_params(channel_dropout=rate)
    found = altered(x, params, generator(seed), length, slice(None))
    kept = (found == x).flatten(2).all(dim=2)
    dropped = (found == 0).flatten(2).all(dim=2)
    assert (kept ^ dropped).all()
    assert kept.any(dim=1).all()


def test_channels_are_dropped_as_often_as_params_say() -> None:
    x = torch.ones(2000, 10, 1, 1)
    found = altered(x, train_params(channel_dropout=0.3), generator(), 2000, slice(None))
    assert float((found == 0).float().mean()) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("part", [slice(0, 4), slice(4, 7), slice(3, 3)])
def test_processes_that_share_a_batch_alter_it_as_one_would(part: slice) -> None:
    x = torch.randn(7, 3, 16, 16, generator=generator(5))
    params = train_params(gain=0.2, offset=0.2, haze=0.5, channel_dropout=0.3)
    whole = altered(x, params, generator(), 7, slice(None))
    assert not torch.equal(whole, x)
    assert torch.equal(altered(x[part], params, generator(), 7, part), whole[part])


def test_what_is_zero_draws_nothing(project: Project) -> None:
    drawn = generator()
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(altered(x, train_params(), drawn, 4, slice(None)), x)
    assert torch.equal(drawn.get_state(), generator().get_state())
    plain = crops_of(project)
    params = with_params(project, focus={"debris": 0.0}).params.train
    other = Crops(Dataset.open(project.dataset_folder), params, BOTH, 24, seed=3)
    for epoch in range(20):
        assert torch.equal(plain[epoch, 2][1], other[epoch, 2][1])
