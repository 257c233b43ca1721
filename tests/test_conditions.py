"""Scores by condition count the pixels that the condition holds for, found here another way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from small_dataset import CHANNELS, HEIGHT, SPLIT_OF, WIDTH, build
from workspace import merge_yaml

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.dataset.postprocessing import postprocess
from glacier_core.dataset.slicing import slice_scene
from glacier_core.model.conditions import (
    BRIGHTNESS,
    EDGE,
    SIZE,
    SNOW,
    STEEPNESS,
    ByCondition,
    Conditions,
    _part_areas,
    as_rows,
)
from glacier_core.model.metrics import confusion, scores

NAMES = ["background", "clean_ice", "debris"]
PIXEL = 30.0
SPECK = (slice(72, 75), slice(2, 5))
"""Ice of 3 x 3 pixels, 0.008 km², in the first test scene."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Scenes in one slice each, so that no ice is cut off; one has a speck of clean ice more."""
    root = tmp_path_factory.mktemp("conditions")
    build(root)
    merge_yaml(root / "params.yaml", {"slice": {"size": 96}})
    project = Project(root)
    for name in SPLIT_OF:
        slice_scene(project, name)
    postprocess(project)
    dataset = Dataset.open(project.dataset_folder)
    assert len(dataset.splits["test"]) == 2
    first = min(dataset.splits["test"], key=lambda sample: sample.scene)
    path = dataset.folder / "test" / first.label
    label = np.load(path)
    assert (label[*SPECK] == 0).all()
    label[*SPECK, 0] = 1
    path.unlink()  # it may share its content with the slice that it was linked from
    np.save(path, label)
    return project


def scenes_of(
    project: Project,
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.uint8]]]:
    """By test scene: its name, channels (channels, height, width) and class numbers."""
    dataset = Dataset.open(project.dataset_folder)
    for sample in dataset.splits["test"]:
        image = np.moveaxis(dataset.image("test", sample), -1, 0)
        yield sample.scene, image, dataset.label("test", sample)


def said_of(scene: str) -> NDArray[np.uint8]:
    """Any map of a scene."""
    return np.random.default_rng(len(scene) + ord(scene[5])).integers(
        0, 3, (HEIGHT, WIDTH), np.uint8
    )


def scored(dataset: Dataset, samples: list[Sample], pixel: float = PIXEL) -> dict[str, Any]:
    """Scores by condition of the map above, in some test slices."""
    conditions, counted = Conditions(dataset), ByCondition(NAMES)
    for sample in samples:
        truth = dataset.label("test", sample)
        counted.add(conditions.groups(sample, pixel), truth, said_of(sample.scene))
    return counted.scores()


@pytest.fixture(scope="module")
def found(project: Project) -> dict[str, Any]:
    dataset = Dataset.open(project.dataset_folder)
    return scored(dataset, dataset.splits["test"])


def scores_where(project: Project, where: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """Scores over the valid test pixels for which a condition holds, by scene."""
    matrix = np.zeros((3, 3), dtype=np.int64)
    for name, _, truth in scenes_of(project):
        kept = np.where(where[name], truth, 255).astype(np.uint8)
        matrix += confusion(kept, said_of(name), 3)
    result = scores(matrix, NAMES)
    del result["all"]
    return result


def test_steepness_comes_from_the_elevation(project: Project, found: dict[str, Any]) -> None:
    steep, gentle = {}, {}
    for name, image, _ in scenes_of(project):
        rise, fall = np.gradient(image[CHANNELS.index("elevation")] / PIXEL)
        tangent = np.sqrt(rise**2 + fall**2)
        steep[name], gentle[name] = tangent >= np.tan(np.pi / 6), tangent < np.tan(np.pi / 6)
    assert found[STEEPNESS] == {
        "30 degrees or more": scores_where(project, steep),
        "below 30 degrees": scores_where(project, gentle),
    }
    assert found[STEEPNESS]["below 30 degrees"]["background"]["pixels"] > 0


def test_snow_is_told_by_its_index(project: Project, found: dict[str, Any]) -> None:
    snow, other = {}, {}
    for name, image, _ in scenes_of(project):
        green, infrared = (image[CHANNELS.index(band)] for band in ("B2", "B5"))
        with np.errstate(invalid="ignore"):
            snow[name] = (green - infrared) / (green + infrared) > 0.4
        other[name] = ~snow[name]
    assert found[SNOW] == {
        "snow or clean ice": scores_where(project, snow),
        "neither": scores_where(project, other),
    }
    assert found[SNOW]["snow or clean ice"]["clean_ice"]["pixels"] > 0


def test_the_darkest_tenth_is_that_of_each_scene(project: Project, found: dict[str, Any]) -> None:
    pixels = {
        group: sum(found[BRIGHTNESS][group][name]["pixels"] for name in NAMES)
        for group in ("darkest tenth", "brighter")
    }
    assert pixels["darkest tenth"] / sum(pixels.values()) == pytest.approx(0.1, abs=0.02)
    # Clean ice is twice as bright in green as what lies about it.
    assert found[BRIGHTNESS]["darkest tenth"]["clean_ice"]["pixels"] <= 9  # the speck is painted
    valid = sum(int((truth != 255).sum()) for _, _, truth in scenes_of(project))
    assert sum(pixels.values()) == valid


def test_near_is_within_five_pixels_of_what_is_ignored(
    project: Project, found: dict[str, Any]
) -> None:
    rows, cols = np.mgrid[-5:6, -5:6]
    disc = rows**2 + cols**2 <= 25
    near = {
        name: binary_dilation(truth == 255, structure=disc) for name, _, truth in scenes_of(project)
    }
    far = {name: ~where for name, where in near.items()}
    assert found[EDGE] == {
        "within 5 pixels": scores_where(project, near),
        "further away": scores_where(project, far),
    }


def test_parts_of_ice_are_grouped_by_their_size(project: Project, found: dict[str, Any]) -> None:
    groups = found[SIZE]
    assert list(groups) == ["below 0.1 km2", "0.1 to 1 km2", "1 km2 or more"]
    assert groups["below 0.1 km2"]["clean_ice"]["pixels"] == 9
    hit = int((said_of("LE07_R_20001025")[SPECK] == 1).sum())
    assert groups["below 0.1 km2"]["clean_ice"]["recall"] == pytest.approx(hit / 9)
    assert groups["below 0.1 km2"]["debris"] == {"recall": "undefined", "pixels": 0}
    # Of the clean ice, the gap leaves 0.95 km² in the one scene and 1.01 in the other.
    truths = {name: truth for name, _, truth in scenes_of(project)}
    smaller = int((truths["LE07_R_20001025"] == 1).sum()) - 9
    larger = int((truths["LE07_S_20001025"] == 1).sum())
    assert smaller * 0.0009 < 1 < larger * 0.0009
    assert groups["1 km2 or more"]["clean_ice"]["pixels"] == larger
    # What goes on under the gap may be of any size, unless what is seen of it is large.
    assert {groups["0.1 to 1 km2"][name]["pixels"] for name in NAMES[1:]} == {0}


def test_ice_cut_off_by_the_slice_has_no_size_but_large_is_large(project: Project) -> None:
    dataset = Dataset.open(project.dataset_folder)
    [sample] = [s for s in dataset.splits["test"] if s.scene == "LE07_S_20001025"]
    path = dataset.folder / "test" / sample.label
    kept = path.read_bytes()
    label = np.load(path)
    try:
        label[50:68, :14, 1] = 1  # debris, from the middle to the edge: 0.8 km² are here
        np.save(path, label)
        for pixel, group in ((30.0, None), (40.0, "1 km2 or more")):
            truth = dataset.label("test", sample)
            sizes = scored(dataset, [sample], pixel)[SIZE]
            counted: dict[str, Any] = {n: of["debris"]["pixels"] for n, of in sizes.items()}
            debris = int((truth == 2).sum())
            assert {name for name, pixels in counted.items() if pixels} == ({group} - {None})
            assert sum(counted.values()) == (debris if group else 0)
    finally:
        path.write_bytes(kept)


def test_what_was_counted_before_is_not_counted_again(project: Project) -> None:
    dataset = Dataset.open(project.dataset_folder)
    [sample] = [s for s in dataset.splits["test"] if s.scene == "LE07_S_20001025"]
    counted, nothing = ByCondition(NAMES), np.full((HEIGHT, WIDTH), 255, np.uint8)
    counted.add(Conditions(dataset).groups(sample, PIXEL), nothing, said_of(sample.scene))
    for groups in counted.scores().values():
        for by_class in groups.values():
            assert [values["pixels"] for values in by_class.values()] == [0] * len(by_class)


def test_conditions_that_no_band_tells_are_left_out(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dataset, "common_bands", lambda _: ["B4"])
    dataset = Dataset.open(project.dataset_folder)
    assert list(scored(dataset, dataset.splits["test"][:1])) == [EDGE, SIZE]


def test_a_table_says_how_much_of_a_class_a_score_is_of(found: dict[str, Any]) -> None:
    head, *rows = as_rows(found, NAMES[1:])
    assert len(head) == 4
    pixels = {group: found[SNOW][group]["clean_ice"]["pixels"] for group in found[SNOW]}
    iou, share = found[SNOW]["neither"]["clean_ice"]["iou"], pixels["neither"]
    [row] = [row for row in rows if row[:2] == [SNOW, "neither"]]
    assert row[2] == f"{iou:.3f} ({share / sum(pixels.values()):.1%})"
    [row] = [row for row in rows if row[:2] == [SIZE, "below 0.1 km2"]]
    assert row[2].startswith("recall ")
    assert row[3] == "recall undefined (none)"


def test_bands_are_taken_in_their_unit(tmp_path: Path) -> None:
    """Reflectance of Collection 2 and heights in decimetres, as integers."""
    build(tmp_path)
    rise = np.tan(np.radians(15)) * PIXEL
    heights = np.broadcast_to(10 * (4000 + rise * np.arange(WIDTH)), (HEIGHT, WIDTH))
    random = np.random.default_rng(0)
    for path in (tmp_path / "data/raw/scenes").glob("*.tif"):
        with rasterio.open(path) as file:
            profile, names = file.profile, file.descriptions
        layers = [
            heights if name == "elevation" else np.full((HEIGHT, WIDTH), (value + 0.2) / 2.75e-5)
            for name, value in zip(names, (0.3, 0.3, 0.3, 0.05, 0.0), strict=True)
        ]
        content = np.round(np.stack(layers)).astype(np.uint16)
        content[0] += random.integers(0, 50, (HEIGHT, WIDTH), np.uint16)
        with rasterio.open(path, "w", **(profile | {"dtype": "uint16", "nodata": 0})) as file:
            file.write(content)
            file.descriptions = names
            file.scales, file.offsets = (2.75e-5,) * 4 + (0.1,), (-0.2,) * 4 + (0.0,)
    project = Project(tmp_path)
    for name in SPLIT_OF:
        slice_scene(project, name)
    postprocess(project)
    dataset = Dataset.open(project.dataset_folder)
    [sample, *_] = dataset.splits["test"]
    groups = Conditions(dataset).groups(sample, PIXEL)
    valid = dataset.label("test", sample) != 255
    assert groups[SNOW, "snow or clean ice"][valid].all()
    assert groups[STEEPNESS, "below 30 degrees"][valid].all()


def test_a_glacier_under_gaps_is_not_many_small_ones() -> None:
    ice = np.zeros((80, 80), bool)
    ice[15:65, 15:65] = True
    seen = np.ones_like(ice)
    assert np.unique(_part_areas(ice, seen, PIXEL)[ice]) == pytest.approx([2.25])
    seen[::8] = seen[1::8] = False
    held = ice & seen
    assert np.isnan(_part_areas(held, seen, PIXEL)[held]).all()
    small = np.zeros_like(ice)
    small[3:7, 2:70] = True  # between two gaps, away from both
    assert _part_areas(small, seen, PIXEL)[3, 3] == pytest.approx(4 * 68 * 0.0009)
