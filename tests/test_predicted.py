"""Labels that a model made: marked, under everything that people say, and never what judges."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import mlflow
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from conftest import (
    REPOSITORY,
    UTM,
    Box,
    edit_yaml,
    ground,
    make_outlines,
    make_scene,
    north_up,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from numpy.typing import NDArray
from shapely.geometry import Polygon, box
from small_dataset import BANDS, LEARNING, build, truth_of, with_params
from test_learning import UNLABELLED, enter
from test_splits import SHARES, apart_m, recorded, small_boxes
from workspace import merge_yaml

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.dataset.blocks import Blocks
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.postprocessing import postprocess
from glacier_core.dataset.slicing import slice_scene
from glacier_core.dataset.splitting import Assignment, Candidate, assign
from glacier_core.errors import InputError
from glacier_core.labels.masking import mask_scene
from glacier_core.labels.predicted import Labeller, write_predicted
from glacier_core.landsat.learning import learn_from
from glacier_core.landsat.quality import read_table
from glacier_core.landsat.selftraining import Outcome, label_by_model, labelled_by_model
from glacier_core.model.evaluation import evaluate
from glacier_core.model.registry import register
from glacier_core.model.tracking import RunLogger
from glacier_core.model.training import train
from glacier_core.raster.grid import Grid

MODEL = "models:/glacier-unet/3"
CLASSES = ["background", "clean_ice", "debris"]
BY = f"{MODEL} >= 0.95"


# --- a scene that nobody labelled, and what a model says of it --------------------------------


def in_boxes(shape: tuple[int, int], values: Mapping[Box, int], rest: int = 0) -> NDArray[np.uint8]:
    """An array with a value in each rectangle, and another elsewhere."""
    out = np.full(shape, rest, dtype=np.uint8)
    for (top, left, bottom, right), value in values.items():
        out[int(top) : int(bottom), int(left) : int(right)] = value
    return out


ICE: Box = (4, 4, 24, 24)
DEBRIS: Box = (30, 10, 40, 60)
UNSEEN: Box = (0, 50, 10, 64)
DOUBT: Box = (20, 0, 34, 30)
CLASS = in_boxes((64, 64), {ICE: 1, DEBRIS: 2, UNSEEN: 255})
SURE = in_boxes((64, 64), {DOUBT: 242, UNSEEN: 0}, rest=243)
"""Confidences as stored: 242 / 255 is less than 0.95, 243 / 255 more."""
EXPECTED = np.where((SURE >= 243) & (CLASS != 255), CLASS, 255)


def make_map(
    project: Project,
    name: str = UNLABELLED,
    *,
    classes: NDArray[np.uint8] = CLASS,
    sure: NDArray[np.uint8] = SURE,
    names: Sequence[str] = CLASSES,
    shift: float = 0,
) -> Path:
    """What `glacier map` writes of a scene, as far as labels need it."""
    folder = project.root / "data/mapped/maps" / name
    transform = north_up() @ rasterio.Affine.translation(shift, 0)
    for kind, values in (("classes", classes), ("confidence", sure)):
        make_scene(folder / f"{name}_{kind}.tif", bands=[None], values=values[None], dtype="uint8",
                   transform=transform)  # fmt: skip
    about: dict[str, Any] = {
        "scene": name, "source": "", "bands": None, "date": "2010-11-06", "classes": list(names),
        "models": [MODEL], "trainings": ["0"], "symmetries": False, "seen": 1.0, "no_value": 0.0,
        "covered": 0.0, "snow_outside": None, "channels": {}, "key": "",
    }  # fmt: skip
    (folder / "map.json").write_text(json.dumps(about))
    return folder


def label(project: Project, name: str = UNLABELLED, **of_map: Any) -> Outcome:
    return label_by_model(project, read_table(project)[name], make_map(project, name, **of_map))


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """With an accepted scene of 2010 on the ground of one of 2000, of which the inventory is."""
    shutil.copyfile(REPOSITORY / "conf/landsat.yaml", project.root / "conf/landsat.yaml")
    monkeypatch.chdir(project.root)
    enter(project, UNLABELLED)
    return project


@pytest.fixture
def labelled(here: Project) -> Project:
    """The same, learned from with the model's labels."""
    outcome = label(here)
    assert outcome.conf is not None
    learn_from(here, {UNLABELLED: outcome.conf})
    return Project(here.root)


def said(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["-q", *words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


def tif(project: Project, name: str = UNLABELLED) -> Path:
    return project.root / f"data/predicted/{name}.tif"


def masked(project: Project) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, str]]:
    """Mask, border and row of metadata after `glacier mask`."""
    said("mask", "--scene", UNLABELLED)
    folder = project.root / "data/masks" / UNLABELLED
    with (folder / "mask_metadata.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    kinds = (np.load(folder / f"{kind}_{UNLABELLED}.npy") for kind in ("mask", "border"))
    return *kinds, row


def review(project: Project, box: Box, *options: str, kind: str = "clean_ice") -> str:
    shape = ground(north_up(), box)
    make_outlines(project.root / "drawn.gpkg", [shape], **{"class": [kind]})
    words = ["review", "import", "drawn.gpkg", "--scene", UNLABELLED, "--author", "A"]
    return said(*words, *options)


# --- the file --------------------------------------------------------------------------------


def test_what_the_model_is_sure_of_is_stored_and_who_said_so_in_its_tags(here: Project) -> None:
    outcome = label(here)
    assert outcome.why == (
        "labelled by the model alone: glacier-unet version 3 at confidence >= 0.95"
    )
    assert outcome.conf is not None
    assert (outcome.conf.date, outcome.conf.border_path) == ("2010-11-06", None)
    with rasterio.open(tif(here)) as dataset:
        np.testing.assert_array_equal(dataset.read(1), EXPECTED)
        assert (dataset.count, dataset.dtypes, dataset.nodata) == (1, ("uint8",), 255)
        assert dataset.transform.almost_equals(north_up())
        assert dataset.crs.to_string() == UTM
        assert dataset.profile["tiled"]
        assert dataset.profile["compress"] == "deflate"
        tags = dataset.tags()
    assert tags["GLACIER_MODEL"] == MODEL
    assert tags["GLACIER_CONFIDENCE"] == "0.95"
    assert tags["GLACIER_CLASSES"] == "clean_ice debris"
    assert tags["GLACIER_DAY"] >= "2026-01-01"


def test_a_model_that_tells_fewer_classes_apart_labels_by_name(here: Project) -> None:
    edit_yaml(here.root / "conf/postprocess.yaml", classes=["debris"])
    edit_yaml(here.root / "params.yaml", **{"postprocess.min_class_fraction": {"debris": 0.0}})
    classes = in_boxes((64, 64), {DEBRIS: 1})
    sure = np.full((64, 64), 255, dtype=np.uint8)
    label(Project(here.root), names=["background", "debris"], classes=classes, sure=sure)
    with rasterio.open(tif(here)) as dataset:
        np.testing.assert_array_equal(dataset.read(1), 2 * classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ["background", "debris", "clean_ice"]}, "maps background, debris, clean_ice, but"),
        ({"names": ["background", "clean_ice"], "classes": 0 * CLASS}, "a model of other classes"),
        ({"shift": 1}, "another version of it; run `glacier map --again`"),
        ({"classes": CLASS[:60], "sure": SURE[:60]}, "60 x 64 pixels"),
    ],
)  # fmt: skip
def test_a_map_of_other_classes_or_another_grid_is_refused(
    here: Project, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        label(here, **changes)
    assert not tif(here).exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sure": np.full_like(SURE, 242)}, "the model is nowhere sure, at confidence >= 0.95"),
        ({"classes": np.full_like(CLASS, 255)}, "the model is nowhere sure"),
        ({"classes": 0 * CLASS}, "the model is sure of no ice, at confidence >= 0.95"),
    ],
)
def test_a_scene_without_ice_that_is_certain_is_not_learned_from(
    here: Project, changes: dict[str, Any], why: str
) -> None:
    outcome = label(here, **changes)
    assert outcome.conf is None
    assert why in outcome.why
    assert not tif(here).exists()


def test_the_confidence_of_the_settings_decides(here: Project) -> None:
    edit_yaml(here.root / "params.yaml", **{"landsat.self_training_confidence": 0.5})
    assert label(Project(here.root)).why.endswith("at confidence >= 0.5")
    with rasterio.open(tif(here)) as dataset:
        np.testing.assert_array_equal(dataset.read(1), CLASS)


def test_without_a_date_or_where_polygons_have_no_year_nothing_is_labelled(here: Project) -> None:
    for file in ("clean_ice.shp", "debris.gpkg"):
        make_outlines(here.root / "data/raw/outlines" / file, [ground(north_up(), ICE)], year=[0])
    assert "tells the years" in label(here).why
    enter(here, UNLABELLED, day=None)
    outcome = label(here)
    assert outcome.conf is None
    assert "it has no date" in outcome.why
    assert not tif(here).exists()


def test_labels_that_broke_off_leave_nothing_behind(here: Project) -> None:
    def breaks(window: object) -> NDArray[np.uint8]:
        raise KeyboardInterrupt(window)

    with rasterio.open(here.root / f"data/raw/landsat/{UNLABELLED}.tif") as dataset:
        grid = Grid.of(dataset)
    with pytest.raises(KeyboardInterrupt):
        write_predicted(tif(here), grid, CLASSES[1:], Labeller(MODEL, 0.9, "2026-01-01"), breaks)
    assert list(tif(here).parent.iterdir()) == []


# --- masks -----------------------------------------------------------------------------------


def test_masks_hold_what_the_model_is_sure_of_and_the_rest_is_unknown(labelled: Project) -> None:
    mask, border, row = masked(labelled)
    np.testing.assert_array_equal(mask[..., 0] == 1, EXPECTED == 1)
    np.testing.assert_array_equal(mask[..., 1] == 1, EXPECTED == 2)
    np.testing.assert_array_equal(border == 1, EXPECTED != 255)
    made = np.load(labelled.mask_folder(UNLABELLED) / f"predicted_{UNLABELLED}.npy")
    np.testing.assert_array_equal(made == 1, EXPECTED != 255)
    assert row["predicted"] == BY
    km2 = (EXPECTED != 255).sum() * 9e-4
    assert float(row["predicted_km2"]) == pytest.approx(km2, rel=2e-3)
    assert [(name, str(by)) for name, _, by in labelled_by_model(labelled)] == [(UNLABELLED, BY)]


def test_scenes_of_people_say_so(project: Project) -> None:
    name = next(iter(project.masking.scenes))
    row = mask_scene(project, name)
    assert (row["predicted"], row["predicted_km2"]) == ("", 0.0)
    assert not (project.mask_folder(name) / f"predicted_{name}.npy").exists()


def test_where_people_looked_their_labels_stand_and_count_as_theirs(labelled: Project) -> None:
    box: Box = (0, 0, 32, 40)
    review(labelled, box, kind="debris")
    looked = in_boxes((64, 64), {box: 1}) == 1
    mask, border, row = masked(labelled)
    np.testing.assert_array_equal(mask[..., 1] == 1, looked | (EXPECTED == 2))
    np.testing.assert_array_equal(mask[..., 0] == 1, ~looked & (EXPECTED == 1))
    np.testing.assert_array_equal(border == 1, looked | (EXPECTED != 255))
    assert row["predicted"] == BY
    left = ((EXPECTED != 255) & ~looked).sum() * 9e-4
    assert float(row["predicted_km2"]) == pytest.approx(left, rel=2e-3)
    assert float(row["reviewed_km2"]) == pytest.approx(looked.sum() * 9e-4, rel=2e-3)
    assert tif(labelled).exists(), "what nobody looked at stays the model's"


def test_a_review_of_the_whole_scene_takes_the_models_labels_away(labelled: Project) -> None:
    beside = tif(labelled).with_name(f"{UNLABELLED}.tif.dvc")
    beside.write_text("outs: []\n")
    kept = tif(labelled).read_bytes()
    told = review(labelled, (0, 0, 10, 10), "--whole")
    assert f"data/predicted/{UNLABELLED}.tif, what a model said of the scene, is gone" in told
    assert not tif(labelled).exists()
    assert not beside.exists()
    expected = in_boxes((64, 64), {(0, 0, 10, 10): 1})
    mask, border, row = masked(labelled)
    np.testing.assert_array_equal(mask[..., 0], expected)
    assert border.all()
    assert (row["predicted"], row["predicted_km2"]) == ("", "0.0")
    assert list(labelled_by_model(labelled)) == []
    # Where the file came back, as by a merge, the review is over all of it.
    tif(labelled).write_bytes(kept)
    mask, _, row = masked(labelled)
    np.testing.assert_array_equal(mask[..., 0], expected)
    assert row["predicted"] == ""


def test_an_inventory_of_the_scenes_time_comes_first(labelled: Project) -> None:
    path = labelled.root / "data/raw/outlines/clean_ice.shp"
    make_outlines(path, [ground(north_up(), ICE)], year=[2011])
    told = said("mask", "--scene", UNLABELLED, code=2)
    assert f"data/predicted/{UNLABELLED}.tif: a model's labels, but data/raw/outlines/" in told
    assert f"dvc remove --outs data/predicted/{UNLABELLED}.tif.dvc" in told
    assert not labelled.mask_folder(UNLABELLED).exists()


def _absent(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.dvc"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _of_other_classes(path: Path) -> None:
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(GLACIER_CLASSES="debris clean_ice")


def _silent(path: Path) -> None:
    make_scene(path, bands=[None], values=0.0, dtype="uint8")


def _beside(path: Path) -> None:
    with rasterio.open(path, "r+") as dataset:
        dataset.transform = north_up(500_040.0)


def _strange(path: Path) -> None:
    with rasterio.open(path, "r+") as dataset:
        dataset.write(np.full((64, 64), 3, dtype=np.uint8), 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_absent, "no such file, but .*run `dvc pull`"),
        (_cut, "cannot be read as predicted labels .*`dvc checkout`"),
        (_silent, "cannot be read as predicted labels .*GLACIER_MODEL"),
        (_of_other_classes, "labels of the classes debris, clean_ice, but"),
        (_beside, "but the scene has 64 x 64"),
        (_strange, "found 1 of uint8 up to 3"),
    ],
)
def test_labels_that_cannot_be_used_stop_masking(
    labelled: Project, spoil: Any, message: str
) -> None:
    spoil(tif(labelled))
    with pytest.raises(InputError, match=message):
        mask_scene(labelled, UNLABELLED)
    assert not labelled.mask_folder(UNLABELLED).exists()


# --- the split, by itself --------------------------------------------------------------------


def assigned(
    people: Sequence[Polygon], models: Sequence[Polygon], in_front: bool, **changes: Any
) -> Assignment:
    """`assign` with slices that a model labelled beside those of people."""
    arguments: dict[str, Any] = {
        "method": "blocks", "shares": SHARES, "block_km": 5, "buffer_m": 1000, "named": {},
        "regions": None, "seed": 1,
    }  # fmt: skip
    both = [
        (shape, Candidate(f"S{i}", 2000 + i % 3, {"valid": 1.0})) for i, shape in enumerate(people)
    ]
    taught = [
        (shape, Candidate(f"M{i}", (2020, 2002)[i % 2], {"valid": 9.0}, predicted=True))
        for i, shape in enumerate(models)
    ]
    both = [*taught, *both] if in_front else [*both, *taught]
    shapes = gpd.GeoSeries([shape for shape, _ in both], crs="EPSG:4326")
    return assign(shapes, [one for _, one in both], **arguments | changes)


REGIONS = gpd.GeoDataFrame(
    {"split": ["train", "dev", "test"]},
    geometry=[box(85, 28, 85.16, 28.4), box(85.16, 28, 85.25, 28.4), box(85.25, 28, 85.3, 28.4)],
    crs="EPSG:4326",
)


@settings(max_examples=80, deadline=None)
@given(
    people=st.lists(small_boxes, min_size=6, max_size=20),
    models=st.lists(small_boxes, min_size=1, max_size=12),
    repeated=st.integers(0, 6),
    gone=st.integers(0, 3),
    method=st.sampled_from(["blocks", "recorded", "regions", "scenes", "years", "random"]),
    block_km=st.floats(1, 20),
    buffer_m=st.sampled_from([0.0, 300.0, 1500.0]),
    in_front=st.booleans(),
    seed=st.integers(0, 5),
)
def test_a_models_labels_move_no_slice_of_people_and_never_judge_nor_train_near_what_does(
    people: list[Polygon],
    models: list[Polygon],
    repeated: int,
    gone: int,
    method: str,
    block_km: float,
    buffer_m: float,
    in_front: bool,
    seed: int,
) -> None:
    models = [*models, *people[:repeated]]  # the very same ground, too
    named = {f"S{i}": ("train", "dev", "test")[i % 3] for i in range(len(people))}
    if method == "years":
        named = {"2000": "train", "2001": "dev", "2002": "test"}
    changes: dict[str, Any] = {
        "method": "blocks" if method == "recorded" else method, "block_km": block_km,
        "buffer_m": buffer_m, "seed": seed, "named": named,
        "regions": REGIONS if method == "regions" else None,
    }  # fmt: skip
    held: Blocks = {}
    try:
        alone = assigned(people, [], in_front, **changes)
        if method == "recorded":
            held = recorded(people, alone)
            people = people[gone:]  # recorded ground whose scenes are gone judges all the same
            alone = assigned(people, [], in_front, recorded=held, **changes)
    except InputError:  # a split of people's slices alone ends up empty
        assume(False)
    found = assigned(people, models, in_front, recorded=held, **changes)
    count = len(models)
    ours, theirs = slice(None, len(people)), slice(len(people), None)
    if in_front:
        ours, theirs = slice(count, None), slice(None, count)
    assert found.splits[ours] == alone.splits
    assert found.blocks[ours] == alone.blocks
    assert (found.leaky, found.overlapping_pairs) == (alone.leaky, alone.overlapping_pairs)
    assert set(found.splits[theirs]) <= {"train", None}
    judging = [s for s, split in zip(people, alone.splits, strict=True) if split in ("dev", "test")]
    judging += [b.ground for b in held.values() if b.split != "train"]
    judged = {
        name for name, split in zip(alone.blocks, alone.splits, strict=True) if split in ("dev", "test")
    }  # fmt: skip
    for shape, split, block in zip(models, found.splits[theirs], found.blocks[theirs], strict=True):
        if split == "train":
            for other in judging:
                assert not shape.intersects(other)
                if other.geom_type == "Polygon" and other.equals(other.envelope):
                    assert apart_m(shape, other) > 0.998 * buffer_m
            if method in ("blocks", "recorded"):
                assert block not in judged
    if method == "years":
        assert not any(found.splits[theirs][1::2]), "2002 is held out"


def test_unassigned_scenes_of_a_model_train_and_assigned_ones_are_held_out_with_the_rest() -> None:
    people = [box(85 + 0.2 * i, 28, 85.02 + 0.2 * i, 28.02) for i in range(3)]
    models = [box(85 + 0.2 * i, 29, 85.02 + 0.2 * i, 29.02) for i in range(3)]
    named = {"S0": "train", "S1": "dev", "S2": "test", "M1": "test", "M2": "train"}
    found = assigned(people, models, False, method="scenes", named=named)
    assert found.splits == ["train", "dev", "test", "train", None, "train"]


def test_recorded_ground_keeps_its_distance_also_where_its_scenes_are_gone() -> None:
    people = [box(85 + 0.2 * i, 28, 85.02 + 0.2 * i, 28.02) for i in range(12)]
    first = assigned(people, [], False, block_km=2)
    held = recorded(people, first)
    west = people[gone := first.splits.index("test")].bounds[2]
    left = [shape for i, shape in enumerate(people) if i != gone]
    # 0.01 degrees of longitude are 983 m here, and the buffer is 1000 m.
    for east, expected in ((0.0, None), (0.009, None), (0.0105, "train")):
        near = box(west + east, 28, west + east + 0.02, 28.02)
        found = assigned(left, [near], False, block_km=2, recorded=held)
        assert found.splits[-1] == expected
        assert assigned(left, [near], False, block_km=2).splits[-1] == "train"


def test_without_slices_of_people_there_is_nothing_to_judge_by() -> None:
    with pytest.raises(InputError, match="no slice has labels of people"):
        assigned([], [box(85, 28, 85.1, 28.1)], False)


# --- the dataset, the run, the version -------------------------------------------------------

TAUGHT, NEAR = "LE07_T_20201025", "LE07_U_20201025"
"""Scenes of 2020 that a model labelled: apart from all others; on the ground of a test scene."""


def labelled_dataset(root: Path, *, on: bool) -> Project:
    """The tiny dataset with two more scenes, which a model labelled."""
    project = build(root)
    shutil.copyfile(REPOSITORY / "conf/landsat.yaml", root / "conf/landsat.yaml")
    edit_yaml(root / "conf/landsat.yaml", self_training=on)
    known = project.scene("LE07_P_20001025")
    for name, place, west in ((TAUGHT, 1, 300_000.0), (NEAR, 2, 120_000.0)):
        transform = north_up(500_010.0 + west)
        with rasterio.open(
            root / f"data/raw/scenes/{list(project.masking.scenes)[place]}.tif"
        ) as f:
            values = f.read()
        path = f"data/raw/scenes/{name}.tif"
        make_scene(
            root / path, bands=BANDS, values=values, transform=transform, nodata=float("nan")
        )
        with rasterio.open(root / path) as dataset:
            grid = Grid.of(dataset)
        labels = truth_of(place)
        labels[30:40] = 255
        write_predicted(
            tif(project, name), grid, CLASSES[1:], Labeller(MODEL, 0.95, "2026-01-01"),
            lambda window, labels=labels: labels[window.slices],  # type: ignore[misc]
        )  # fmt: skip
        new = known.model_copy(update={"img_path": path, "date": "2020-10-25"})
        learn_from(Project(root), {name: new})
    project = Project(root)
    drawn = ground(north_up(800_010.0), (0, 0, 20, 60))
    make_outlines(root / "drawn.gpkg", [drawn], **{"class": ["background"]})
    return project


def remake(project: Project) -> Dataset:
    for name in (TAUGHT, NEAR):
        mask_scene(project, name)
        slice_scene(project, name)
    return postprocess(project)


@pytest.fixture(scope="module")
def self_taught(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = labelled_dataset(tmp_path_factory.mktemp("taught") / "project", on=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        said("review", "import", "drawn.gpkg", "--scene", TAUGHT, "--author", "A")
    remake(project)
    return project


def fates(project: Project) -> dict[str, set[str]]:
    frame = gpd.read_file(project.dataset_folder / "slices.geojson")
    return {str(name): set(part["split"]) for name, part in frame.groupby("scene")}


def test_the_dataset_says_which_labels_are_a_models_and_how_much_of_training_they_are(
    self_taught: Project,
) -> None:
    content = json.loads((self_taught.dataset_folder / "dataset.json").read_text())
    assert {name: scene["predicted"] for name, scene in content["scenes"].items()} == {
        **dict.fromkeys(["LE07_P_20001025", "LE07_Q_20001025", "LE07_R_20001025", "LE07_S_20001025"]),
        TAUGHT: BY,
        NEAR: BY,
    }  # fmt: skip
    assert fates(self_taught)[TAUGHT] == {"train"}
    assert fates(self_taught)[NEAR] == {"labelled by a model, on ground that judges"}
    # Whole scenes, put together from the files: valid pixels, and those that no review covers.
    valid = {name: np.zeros((76, 60), dtype=bool) for name in ("LE07_P_20001025", TAUGHT)}
    for sample in content["splits"]["train"]:
        stored = np.load(self_taught.dataset_folder / "train" / sample["label"])[..., 0]
        rows, cols = (slice(sample[a], sample[a] + sample[b])
                      for a, b in (("row", "height"), ("col", "width")))  # fmt: skip
        valid[sample["scene"]][rows, cols] |= stored[: sample["height"], : sample["width"]] != 255
    total = sum(int(pixels.sum()) for pixels in valid.values())
    theirs = int(valid[TAUGHT][20:].sum())
    assert not valid[TAUGHT][30:40].any()
    assert 0.2 < theirs / total < 0.5
    assert content["predicted_share"] == theirs / total
    dataset = Dataset.open(self_taught.dataset_folder)
    assert (dataset.predicted_by(), dataset.predicted_share) == ({TAUGHT: BY}, theirs / total)


def test_switched_off_nothing_that_a_model_labelled_trains(tmp_path: Path) -> None:
    project = labelled_dataset(tmp_path / "project", on=False)
    before = Dataset.open(project.dataset_folder)
    after = remake(project)
    assert after.predicted_share == 0
    assert after.predicted_by() == {}
    for name, samples in before.splits.items():
        assert [(s.scene, s.k) for s in after.splits[name]] != []
        assert {(s.scene, s.k) for s in after.splits[name]} == {(s.scene, s.k) for s in samples}
    assert fates(project)[TAUGHT] == {"labelled by a model, and self_training is off"}
    merge_yaml(tmp_path / "project/conf/landsat.yaml", {"self_training": "on"})
    with pytest.raises(InputError, match="self_training: expected true or false, found 'on'"):
        postprocess(Project(project.root))


def test_ground_on_which_a_model_taught_itself_never_judges_later(
    self_taught: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that learned there would be refused as champion or challenger."""
    shutil.copytree(self_taught.root, tmp_path / "project")
    root = tmp_path / "project"
    monkeypatch.chdir(root)
    third = {"train": 0.34, "dev": 0.33, "test": 0.33}
    edit_yaml(root / "params.yaml", **{"postprocess.split": third})
    edit_yaml(root / "conf/postprocess.yaml", split="blocks")
    chosen = set()
    for seed in range(6):
        edit_yaml(root / "params.yaml", seed=seed)
        (root / "conf/blocks.geojson").unlink(missing_ok=True)
        taught = postprocess(Project(root))
        assert TAUGHT in {sample.scene for sample in taught.splits["train"]}
        assert "conf/blocks.geojson" in said("blocks", "--record")
        # Now people have labelled it.
        before = tif(self_taught, TAUGHT).read_bytes()
        tif(Project(root), TAUGHT).unlink()
        mask_scene(Project(root), TAUGHT)
        reviewed = postprocess(Project(root))
        assert TAUGHT not in reviewed.predicted_by()
        assert [k for k in ("train", "dev", "test") for s in reviewed.splits[k] if s.scene == TAUGHT] == (
            ["train"] * sum(s.scene == TAUGHT for s in taught.splits["train"])
        )  # fmt: skip
        (root / "conf/blocks.geojson").unlink()
        fresh = postprocess(Project(root))
        chosen |= {k for k in ("dev", "test") for s in fresh.splits[k] if s.scene == TAUGHT}
        tif(Project(root), TAUGHT).write_bytes(before)
        mask_scene(Project(root), TAUGHT)
    assert chosen, "without the record it may well judge"


def test_a_dataset_of_before_is_still_read(self_taught: Project, tmp_path: Path) -> None:
    content = json.loads((self_taught.dataset_folder / "dataset.json").read_text())
    del content["predicted_share"]
    for scene in content["scenes"].values():
        del scene["predicted"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = Dataset.open(tmp_path)
    assert (dataset.predicted_share, dataset.predicted_by()) == (0.0, {})
    assert len(dataset.splits["train"]) == len(content["splits"]["train"])


def test_run_and_version_say_how_much_was_learned_from_a_models_labels(
    self_taught: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(self_taught.root, tmp_path / "project")
    project = with_params(Project(tmp_path / "project"), **LEARNING | {"epochs": 1})
    share = Dataset.open(project.dataset_folder).predicted_share

    def trained(project: Project) -> tuple[dict[str, str], dict[str, str], str]:
        train(project, [RunLogger(project)])
        evaluate(project)
        done = register(project)
        mlflow.end_run()
        client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
        version = client.get_model_version(done.model, done.version)
        return client.get_run(done.run_id).data.tags, version.tags, version.description or ""

    of_run, of_version, text = trained(project)
    for tags in (of_run, of_version):
        assert tags["glacier.self_training"] == "true"
        assert tags["glacier.self_training.share"] == f"{share:.6f}"
        assert tags["glacier.self_training.scenes"] == TAUGHT
        assert tags["glacier.self_training.by"] == BY
    assert f"learned from labels that a model made: {share:.1%} of its training pixels" in text

    edit_yaml(project.root / "conf/landsat.yaml", self_training=False)
    postprocess(Project(project.root))
    for tags in trained(Project(project.root))[:2]:
        assert {k: v for k, v in tags.items() if k.startswith("glacier.self")} == {
            "glacier.self_training": "false"
        }
