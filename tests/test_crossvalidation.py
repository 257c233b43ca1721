"""`glacier crossvalidate`: every piece of ground tests once, and its test ground touches no model."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import geopandas as gpd
import mlflow
import numpy as np
import pytest
import rasterio
import yaml
from click.testing import CliRunner
from conftest import edit_yaml, glacier, ground, make_outlines, north_up
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import box
from small_dataset import HEIGHT, WIDTH, build, with_params
from workspace import merge_yaml

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.dataset.folds import Fold, plan_folds
from glacier_core.dataset.groups import read_groups
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.postprocessing import postprocess
from glacier_core.dataset.slicing import SlicedScene, slice_scene
from glacier_core.errors import InputError, ServiceError
from glacier_core.labels.masking import mask_scene
from glacier_core.labels.metadata import read_metadata, write_metadata
from glacier_core.model import crossvalidation
from glacier_core.model.alone import one_at_a_time
from glacier_core.model.crossvalidation import CrossValidation, crossvalidate
from glacier_core.model.evaluation import evaluate
from glacier_core.model.predictions import load_prediction
from glacier_core.model.predictor import WEIGHTS
from glacier_core.model.registry import register
from glacier_core.model.training import _Trainer, train

P, Q, R, S = SCENES = [f"LE07_{letter}_20001025" for letter in "PQRS"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes, sliced."""
    root = tmp_path_factory.mktemp("crossvalidation") / "built"
    build(root)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "project"))


@pytest.fixture(scope="module")
def measured(built: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every scene tested in turn with two seeds, by the command line; and what it said."""
    root = Path(shutil.copytree(built, tmp_path_factory.mktemp("measured") / "project"))
    with_params(Project(root), epochs=2, batch_size=4, crops_per_slice=3, learning_rate=0.03)
    done = glacier(root, "crossvalidate", "--by", "scenes", "--seeds", "1,2")
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def folder(root: Path, name: str = "scenes") -> Path:
    return root / "data/crossvalidation" / name


def scores(root: Path, name: str = "scenes") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder(root, name) / "scores.json").read_text())
    return content


def labels_once(root: Path, scene: str) -> NDArray[np.uint8]:
    """Class numbers of a scene (height, width), 255 where nothing is known, from its slices."""
    whole = np.full((HEIGHT, WIDTH), 255, np.uint8)
    place = root / "data/slices" / scene
    for record in SlicedScene.read(place / "slices.geojson").slices:
        label = np.load(place / str(record.label))[: record.height, : record.width]
        numbers = np.where(label[..., 1] == 1, 2, np.where(label[..., 0] == 1, 1, 0))
        whole[record.window.slices] = np.where(label[..., 0] == 255, 255, numbers)
    return whole


def said_once(root: Path, scene: str, seed: int, name: str = "scenes") -> NDArray[np.uint8]:
    """What the model of a scene's fold says of it (height, width), from the stored predictions."""
    whole = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for path in (folder(root, name) / "predictions").glob(f"*/seed_{seed}/made.json"):
        for entry in json.loads(path.read_text())["slices"]:
            if entry["scene"] != scene:
                continue
            at = np.s_[
                entry["row"] : entry["row"] + entry["height"],
                entry["col"] : entry["col"] + entry["width"],
            ]
            classes = np.load(path.parent / entry["file"])["classes"]
            part = whole[at]
            part[part == 255] = classes[part == 255]
    return whole


def beginning_with(measured: Path, tmp_path: Path, place: str) -> Path:
    """A copy of the project whose trainings begin with the model, in this folder, that P tested."""
    root = Path(shutil.copytree(measured, tmp_path / "project"))
    [models] = (folder(root) / P / "seed_1/data/runs").glob("*/models")
    shutil.copytree(models, root / place)
    edit_yaml(root / "conf/train.yaml", start_from=place)
    return root


def said(root: Path, patch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `glacier crossvalidate` in this process."""
    patch.chdir(root)
    done = CliRunner().invoke(main, ["-q", "crossvalidate", *words])
    return done.exit_code, done.stdout, done.stderr


def units(fold: Fold, split: str, turn: int = 0) -> list[str]:
    """The units of ground of a fold that are in a split where this part chooses."""
    return [unit for unit, chosen in fold.splits(turn).items() if chosen == split]


def never(*_: object, **__: object) -> None:
    raise AssertionError("was trained again")


# --- what is measured --------------------------------------------------------------------------


def test_each_valid_pixel_of_all_ground_counts_once(measured: tuple[Path, str]) -> None:
    root, _ = measured
    truth = {scene: labels_once(root, scene) for scene in SCENES}
    found = scores(root)
    for seed in ("1", "2"):
        for number, name in enumerate(["background", "clean_ice", "debris"]):
            expected = sum(int((label == number).sum()) for label in truth.values())
            assert found["by_seed"][seed][name]["pixels"] == expected > 0
    for scene in SCENES:
        pixels = found["by_fold"][scene]["mean"]["all"]["pixels"]
        assert pixels == (truth[scene] != 255).sum()


def test_all_seeds_together_are_their_mean_probabilities(measured: tuple[Path, str]) -> None:
    root, _ = measured
    hits = np.zeros(3)
    union = np.zeros(3)
    for scene in SCENES:
        truth, seen = labels_once(root, scene), np.zeros((HEIGHT, WIDTH), dtype=bool)
        # Where slices overlap, the last seed's order says which of them counts.
        [one] = (folder(root) / "predictions").glob(f"{scene}/seed_2/made.json")
        for entry in json.loads(one.read_text())["slices"]:
            at = np.s_[
                entry["row"] : entry["row"] + entry["height"],
                entry["col"] : entry["col"] + entry["width"],
            ]
            files = [one.parents[1] / f"seed_{seed}" / entry["file"] for seed in (1, 2)]
            mean = np.mean([load_prediction(file)[1] for file in files], axis=0)
            label = np.where(seen[at], 255, truth[at])
            seen[at] = True
            said = mean.argmax(axis=0)
            for number in range(3):
                both = (label == number) & (said == number)
                hits[number] += both.sum()
                union[number] += (((label == number) | (said == number)) & (label != 255)).sum()
    together = scores(root)["together"]
    for number, name in enumerate(["background", "clean_ice", "debris"]):
        assert together[name]["iou"]["value"] == pytest.approx(hits[number] / union[number])
    report = (folder(root) / "report.md").read_text()
    assert (
        f"{together['clean_ice']['iou']['value']:.3f}" in report.split("## All seeds together")[1]
    )


def test_the_scores_can_be_worked_out_from_the_predictions_alone(
    measured: tuple[Path, str],
) -> None:
    root, _ = measured
    found = scores(root)
    values = []
    for seed in (1, 2):
        hits = union = 0
        for scene in SCENES:
            truth, said = labels_once(root, scene), said_once(root, scene, seed)
            valid = truth != 255
            hits += int(((truth == 1) & (said == 1) & valid).sum())
            union += int((((truth == 1) | (said == 1)) & valid).sum())
        values.append(hits / union)
        iou = found["by_seed"][str(seed)]["clean_ice"]["iou"]["value"]
        assert iou == pytest.approx(values[-1])
    mean = found["mean"]["clean_ice"]["iou"]
    assert mean["value"] == pytest.approx(np.mean(values))
    assert mean["spread"] == pytest.approx(np.std(values, ddof=1))
    assert values[0] != values[1], "two seeds train two models"
    path = next((folder(root) / "predictions").rglob("*.npz"))
    with np.load(path) as file:
        kinds = {name: file[name].dtype.kind for name in file.files}
        assert kinds == {
            "classes": "u", "probabilities": "u", "truth": "u", "groups": "b", "group_names": "U",
        }  # fmt: skip
        most = file["probabilities"].max(axis=0)
        chosen = np.take_along_axis(file["probabilities"], file["classes"][None], axis=0)[0]
        assert (chosen == most).all()


def test_hard_ground_is_scored_over_all_folds(measured: tuple[Path, str]) -> None:
    root, _ = measured
    found = scores(root)
    conditions = found["conditions"]
    assert list(conditions) == ["steepness", "brightness", "snow", "edge of what was seen", "part size"]  # fmt: skip
    # Groups of one condition share out the ground: each valid pixel is in one of them, once.
    for condition in ("brightness", "edge of what was seen"):
        for name in ("background", "clean_ice", "debris"):
            held = sum(group[name]["pixels"] for group in conditions[condition].values())
            assert held == found["mean"][name]["pixels"]
    recalls = []
    for seed in (1, 2):
        hits = ice = 0
        for scene in SCENES:
            truth, said = labels_once(root, scene), said_once(root, scene, seed)
            near = ndimage.distance_transform_edt(truth != 255) <= 5
            hits += int((near & (truth == 1) & (said == 1)).sum())
            ice += int((near & (truth == 1)).sum())
        recalls.append(hits / ice)
    near_edge = conditions["edge of what was seen"]["within 5 pixels"]["clean_ice"]
    # A slice's border hides the gap of its neighbour, and the order of seeds what overlaps.
    assert near_edge["recall"] == pytest.approx(np.mean(recalls), abs=0.05)
    report = (folder(root) / "report.md").read_text()
    hard = report.split("## Hard ground")[1].split("##")[0]
    assert f"| snow | neither | {conditions['snow']['neither']['clean_ice']['iou']:.3f} (" in hard
    with (folder(root) / "by_condition.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["condition"] for row in rows} == set(conditions)


def test_what_was_measured_is_told_in_a_table_a_report_and_figures(
    measured: tuple[Path, str],
) -> None:
    root, said = measured
    iou = scores(root)["mean"]["debris"]["iou"]
    assert f"{iou['value']:.3f} ± {iou['spread']:.3f}" in said
    assert "data/crossvalidation/scenes/report.md" in said
    report = (folder(root) / "report.md").read_text()
    assert "4 folds, seeds 1, 2" in report
    assert "leaks" not in report
    assert f"| {P} | " in report
    pictures = sorted((folder(root) / "figures").glob("*.png"))
    assert len(pictures) == 2, "evaluate.examples"
    assert all(f"figures/{path.name}" in report for path in pictures)
    with (folder(root) / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    [row] = [row for row in rows if (row["fold"], row["seed"], row["class"], row["score"])
             == ("all", "mean", "debris", "iou")]  # fmt: skip
    assert float(row["value"]) == pytest.approx(iou["value"])
    assert {row["fold"] for row in rows} == {"all", *SCENES}


def test_mlflow_has_a_run_a_training_below_one_and_no_model(measured: tuple[Path, str]) -> None:
    root, _ = measured
    store = f"sqlite:///{root / 'mlflow.db'}"
    client = mlflow.MlflowClient(store, store)
    experiment = client.get_experiment_by_name("glacier")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in runs if run is not parent]
    assert parent.info.run_name == "scenes"
    assert {run.data.tags["mlflow.parentRunId"] for run in below} == {parent.info.run_id}
    told = {(run.data.tags["fold"], run.data.tags["seed"]) for run in below}
    assert told == {(scene, seed) for scene in SCENES for seed in ("1", "2")}
    assert len(below) == len(told)
    assert {(run.data.tags["protocol"], run.data.tags["leaky"]) for run in runs} == {
        ("scenes", "false")
    }
    found = scores(root)
    iou = found["mean"]["clean_ice"]["iou"]["value"]
    assert parent.data.metrics["test_clean_ice_iou"] == pytest.approx(iou)
    for run in below:
        own = found["by_fold"][run.data.tags["fold"]]["by_seed"][run.data.tags["seed"]]
        score = own["clean_ice"]["iou"]["value"]
        assert run.data.metrics["test_clean_ice_iou"] == pytest.approx(score)
        assert run.data.params["seed"] == run.data.tags["seed"]
        assert run.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"report.md"}
    assert client.search_registered_models() == []


def test_other_weights_to_begin_with_make_other_predictions(
    measured: tuple[Path, str], tmp_path: Path
) -> None:
    root = beginning_with(measured[0], tmp_path, "start")

    def fingerprint() -> str:
        made = crossvalidation.CrossValidation(Project(root), by="scenes", name="started")
        return made.fingerprint(made.plan.folds[0], 1)

    before = fingerprint()
    assert fingerprint() == before
    description = json.loads((root / "start/model.json").read_text())
    (root / "start/model.json").write_text(json.dumps(description | {"training": "another"}))
    assert fingerprint() != before
    shutil.rmtree(root / "start")
    with pytest.raises(InputError, match="start: no such folder"):
        fingerprint()


def test_a_report_says_whether_the_weights_to_begin_with_know_the_answers(
    measured: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = beginning_with(measured[0], tmp_path, "start")
    words = ["--by", "scenes", "--test", Q, "--seeds", "1", "--name", "known"]
    status, _, stderr = said(root, monkeypatch, *words)
    assert status == 2
    assert "was trained on ground of the test split" in stderr
    description = json.loads((root / "start/model.json").read_text())
    (root / "start/model.json").write_text(json.dumps(description | {"blocks": None}))
    crossvalidate(Project(root), by="scenes", testing=[Q], seeds=[1], name="unknown")
    report = (folder(root, "unknown") / "report.md").read_text()
    assert "do not say on which ground they learned" in report


@pytest.mark.slow
def test_folds_begin_with_a_registered_model_of_the_project(
    measured: tuple[Path, str], tmp_path: Path
) -> None:
    """Its store is that of the project around them."""
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    assigned = {P: "train", Q: "dev", S: "train", R: "test"}
    merge_yaml(root / "conf/postprocess.yaml", {"split": "scenes", "assign": assigned})
    project = Project(root)
    postprocess(project)
    train(project)
    evaluate(project)
    register(project)
    edit_yaml(root / "conf/train.yaml", start_from="models:/glacier-unet/1")
    made, pooled = crossvalidate(
        Project(root), by="scenes", testing=[R], seeds=[1], name="registered"
    )
    assert pooled is not None
    report = (made.folder / "report.md").read_text()
    assert "which know none of the ground that tests" in report


def test_weights_to_begin_with_are_found_from_within_the_project(
    measured: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = beginning_with(measured[0], tmp_path, "data/start")
    code, _, errors = said(root, monkeypatch, "--by", "scenes", "--test", P, "--seeds", "1",
                           "--name", "started")  # fmt: skip
    assert code == 0, errors
    [trained] = (folder(root, "started") / P / "seed_1/data/runs").glob("*/models/model.json")
    assert json.loads(trained.read_text())["started_from"] is not None


def test_a_fold_is_what_the_pipeline_makes_of_the_same_split(
    measured: tuple[Path, str], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    [fold] = [fold for fold in plan_folds(Project(root), "scenes").folds if fold.name == R]
    merge_yaml(root / "params.yaml", {"seed": 2})
    merge_yaml(root / "conf/postprocess.yaml", {"assign": fold.splits()})
    project = Project(root)
    postprocess(project)
    train(project)
    ours = folder(root) / R / "seed_2/data/runs" / project.params.train.run_name / "models"
    theirs = project.run_folder / "models"
    assert (ours / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()


# --- no leak -----------------------------------------------------------------------------------


def model_of(root: Path, scene: str, name: str = "scenes") -> tuple[bytes, dict[str, Any]]:
    """Weights and description of the model of a scene's fold."""
    [models] = (folder(root, name) / scene / "seed_1/data/runs").glob("*/models")
    return (models / WEIGHTS).read_bytes(), json.loads((models / "model.json").read_text())


def change(root: Path, scene: str) -> None:
    """Give a scene other pixels and other outlines, and slice it anew."""
    path = root / "data/raw/scenes" / f"{scene}.tif"
    with rasterio.open(path) as file:
        profile, names, values = file.profile, file.descriptions, file.read()
    random = np.random.default_rng(5)
    other = np.where(np.isfinite(values), random.uniform(1, 200, values.shape), np.nan)
    path.unlink()
    with rasterio.open(path, "w", **profile) as file:
        file.write(other.astype(values.dtype))
        file.descriptions = names
    transform = north_up(500_010.0 + 60_000 * SCENES.index(scene))
    for kind, suffix, where in (
        ("clean_ice", "shp", (50, 2, 74, 58)),
        ("debris", "gpkg", (2, 2, 30, 20)),
    ):
        place = root / f"data/raw/outlines/{kind}.{suffix}"
        own = gpd.GeoSeries([ground(transform, where)], crs="EPSG:32645").to_crs("EPSG:4326")
        frame = gpd.read_file(place).to_crs("EPSG:4326")
        kept = [shape for shape in frame.geometry if not shape.intersects(own[0].buffer(0.05))]
        assert len(kept) == len(frame) - 1
        make_outlines(place, [*kept, own[0]], crs="EPSG:4326", year=[2000] * (len(kept) + 1))
    for one in SCENES:
        mask_scene(Project(root), one)
        slice_scene(Project(root), one)


@pytest.mark.parametrize("changed", [R, P])
def test_other_pixels_and_labels_of_the_test_scene_change_no_byte_of_the_model(
    measured: tuple[Path, str], tmp_path: Path, changed: str
) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    before, told = model_of(root, R)
    truth = labels_once(root, changed)
    change(root, changed)
    assert (labels_once(root, changed) != truth).mean() > 0.3
    crossvalidate(Project(root), by="scenes", seeds=[1], only=R, name="anew")
    after, now = model_of(root, R, "anew")
    if changed != R:
        assert after != before, "ground that trains does change it"
        return
    assert after == before
    # The description names the data by their hash; all that acts on pixels is the same.
    hashes = ("dataset", "training")
    assert {k: v for k, v in now.items() if k not in hashes} == {
        k: v for k, v in told.items() if k not in hashes
    }
    assert all(now[key] != told[key] for key in hashes)
    assert (said_once(root, R, 1, "anew") != said_once(root, R, 1)).any(), "it was judged anew"


def test_what_chooses_is_a_part_of_the_training_ground_with_ice(
    measured: tuple[Path, str],
) -> None:
    root, _ = measured
    tested = []
    for scene in SCENES:
        dataset = Dataset.open(folder(root) / scene / "seed_1/data/dataset")
        shown = {split: {s.scene for s in held} for split, held in dataset.splits.items()}
        assert shown["test"] == {scene}
        assert len(shown["dev"]) == 1
        assert shown["train"] | shown["dev"] == set(SCENES) - {scene}
        assert not shown["train"] & shown["dev"]
        label = [dataset.label("dev", sample) for sample in dataset.splits["dev"]]
        assert any((one == 1).any() for one in label)
        tested += sorted(shown["test"])
    assert tested == SCENES


def test_parts_choose_in_turn_and_together_all_training_ground_trains(root: Path) -> None:
    for fold in plan_folds(Project(root), "scenes").folds:
        rest = set(SCENES) - {fold.name}
        chosen = [units(fold, "dev", turn) for turn in range(3)]
        assert sorted(chosen) == [[scene] for scene in sorted(rest)]
        assert fold.splits(3) == fold.splits(0)
        for turn in range(3):
            assert set(units(fold, "train", turn)) == rest - set(units(fold, "dev", turn))
    # A share of a half chooses: two parts, of one and two scenes.
    merge_yaml(root / "params.yaml", {
        "postprocess": {"split": {"train": 0.4, "dev": 0.4, "test": 0.2}}})  # fmt: skip
    for fold in plan_folds(Project(root), "scenes").folds:
        chosen = [units(fold, "dev", turn) for turn in range(2)]
        assert set(chosen[0]) | set(chosen[1]) == set(SCENES) - {fold.name}
        assert not set(chosen[0]) & set(chosen[1])


def test_the_part_with_its_share_of_each_class_chooses_first(
    tmp_path: Path,
) -> None:
    build(tmp_path, without_debris=[P])
    for fold in plan_folds(Project(tmp_path), "scenes").folds:
        order = [units(fold, "dev", turn) for turn in range(3)]
        if fold.name != P:
            assert order[-1] == [P], "it cannot judge debris"


def test_with_rotation_each_seed_chooses_by_another_part(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_params(Project(root), epochs=1)
    words = ["--by", "scenes", "--test", R, "--seeds", "1,2"]
    for name, more in (("still", []), ("turning", ["--rotate"])):
        code, _, errors = said(root, monkeypatch, *words, *more, "--name", name)
        assert code == 0, errors
    ground = {
        name: [
            scores(root, name)["protocol"]["ground"][R][seed]["dev"]["scenes"]
            for seed in ("1", "2")
        ]
        for name in ("still", "turning")
    }
    assert ground["still"][0] == ground["still"][1] == ground["turning"][0]
    assert ground["turning"][1] != ground["turning"][0]
    reports = [(folder(root, name) / "report.md").read_text() for name in ("still", "turning")]
    assert ["on its parts in turn" in report for report in reports] == [False, True]


def test_symmetries_make_other_predictions_of_the_same_models(
    measured: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    before = said_once(root, R, 1)
    assert scores(root)["protocol"]["symmetries"] is False
    monkeypatch.setattr(crossvalidation, "train", never)
    code, _, errors = said(root, monkeypatch, "--by", "scenes", "--seeds", "1,2", "--symmetries")
    assert code == 0, errors
    assert scores(root)["protocol"]["symmetries"] is True
    assert "symmetries" in (folder(root) / "report.md").read_text()
    assert (said_once(root, R, 1) != before).any()


def test_ground_without_ice_does_not_choose(tmp_path: Path) -> None:
    build(tmp_path, without_debris=[P])
    merge_yaml(tmp_path / "conf/postprocess.yaml", {"classes": ["debris"]})
    plan = plan_folds(Project(tmp_path), "scenes")
    for fold in plan.folds:
        for turn in range(3):
            assert units(fold, "dev", turn) not in ([], [P])
    with pytest.raises(InputError, match=r"^fold two: .* 1 of 2 units have ice"):
        plan_folds(Project(tmp_path), "groups", groups={"one": [P, Q], "two": [R, S]})


def test_scenes_that_a_model_labelled_take_no_part(root: Path) -> None:
    place = root / "data/masks" / S
    write_metadata(place, {**read_metadata(place), "predicted": "models:/glacier-unet/1 >= 0.95"})
    plan = plan_folds(Project(root), "scenes")
    assert [fold.name for fold in plan.folds] == plan.scenes == [P, Q, R]
    with pytest.raises(InputError, match=f"{S} was labelled by a model"):
        plan_folds(Project(root), "groups", groups={"one": [P, Q], "two": [R, S]})
    made = CrossValidation(Project(root), by="scenes")
    dataset = postprocess(made.set_up(made.plan.fold(P), 1))
    assert dataset.predicted_by() == {}
    assert list(dataset.scenes) == [P, Q, R]


def test_dates_of_one_place_stay_together(root: Path) -> None:
    later = P.replace("2000", "2001")
    shutil.copy(root / f"data/raw/scenes/{P}.tif", root / f"data/raw/scenes/{later}.tif")
    entry = yaml.safe_load((root / "conf/masking_paths.yaml").read_text())["scenes"][P]
    entry |= {"img_path": f"data/raw/scenes/{later}.tif", "date": "2001-10-25"}
    merge_yaml(root / "conf/masking_paths.yaml", {"scenes": {later: entry}})
    mask_scene(Project(root), later)
    slice_scene(Project(root), later)
    made = CrossValidation(Project(root), by="scenes")
    assert [fold.name for fold in made.plan.folds] == SCENES
    for turn in range(2):
        assert units(made.plan.fold(P), "test", turn) == [P, later]
        for fold in made.plan.folds:
            assert fold.splits(turn)[P] == fold.splits(turn)[later]
    assert {made.plan.pieces[later, 0], made.plan.pieces[P, 0]} == {P}
    dataset = postprocess(made.set_up(made.plan.fold(Q), 1))
    assert {s.scene for held in dataset.splits.values() for s in held} == {*SCENES, later}


def test_slices_with_little_ice_test_too_whatever_the_filter_says(root: Path) -> None:
    merge_yaml(root / "conf/postprocess.yaml", {"filter": {"splits": ["train", "test"]}})
    merge_yaml(root / "params.yaml", {
        "postprocess": {"min_class_fraction": {"clean_ice": 0.3, "debris": 0.3}}})  # fmt: skip
    made = CrossValidation(Project(root), by="scenes")
    dataset = postprocess(made.set_up(made.plan.fold(R), 1))
    slices = SlicedScene.read(root / "data/slices" / R / "slices.geojson").slices
    assert len(dataset.splits["test"]) == len(slices)
    assert len(dataset.splits["train"]) < 2 * len(slices)


# --- the other protocols -----------------------------------------------------------------------


def test_blocks_of_one_scene_test_once_with_a_gap_to_what_trains(root: Path) -> None:
    merge_yaml(root / "params.yaml", {"postprocess": {"block_km": 2.0, "buffer_m": 50}})
    made, pooled = crossvalidate(Project(root), by="blocks", folds=3, seeds=[1])
    assert pooled is not None
    assert made.name == "blocks_3"
    truth = [labels_once(root, scene) for scene in SCENES]
    counted = pooled.scores["mean"]["all"]["pixels"]
    assert counted == sum(int((label != 255).sum()) for label in truth), "though slices overlap"
    assert pooled.scores["protocol"]["untested_slices"] == 0
    shapes = gpd.read_file(root / "data/dataset/slices.geojson").set_index(["scene", "k"])
    plane = shapes.geometry.to_crs("EPSG:32645")
    scenes_cut = 0
    for fold in made.plan.folds:
        dataset = Dataset.open(made.folder / fold.name / "seed_1/data/dataset")
        test = plane.loc[[(s.scene, s.k) for s in dataset.splits["test"]]].union_all()
        for sample in [*dataset.splits["train"], *dataset.splits["dev"]]:
            assert plane.loc[sample.scene, sample.k].distance(test) >= 50
        blocks = {sample.block for sample in dataset.splits["test"]}
        assert blocks == set(units(fold, "test"))
        tested = {sample.scene for sample in dataset.splits["test"]}
        scenes_cut += sum(
            sum(s.scene == scene for s in dataset.splits["test"]) < 6 for scene in tested
        )
    assert scenes_cut > 0, "no scene was cut: nothing was shown"


def test_regions_test_in_turn_and_part_of_the_other_chooses(root: Path) -> None:
    shapes = gpd.read_file(root / "data/dataset/slices.geojson").dissolve("scene").geometry
    polygons = [box(*shapes[scene].bounds).buffer(0.001) for scene in (P, Q, R)]
    make_outlines(root / "data/raw/outlines/regions.gpkg", polygons, crs="EPSG:4326",
                  region=["west", "west", "east"])  # fmt: skip
    merge_yaml(root / "conf/postprocess.yaml", {"regions_path": "data/raw/outlines/regions.gpkg"})
    with pytest.raises(InputError, match=r"^fold west: .* 1 of 1 units have ice"):
        plan_folds(Project(root), "regions")  # east alone can train, and leaves nothing to choose
    polygons.append(box(*shapes[S].bounds).buffer(0.001))
    make_outlines(root / "data/raw/outlines/regions.gpkg", polygons, crs="EPSG:4326",
                  region=["west", "west", "east", "east"])  # fmt: skip
    made, pooled = crossvalidate(Project(root), by="regions", seeds=[1])
    assert pooled is not None
    assert set(pooled.scores["by_fold"]) == {"west", "east"}
    held = pooled.scores["protocol"]["ground"]["east"]["1"]
    assert held["test"]["scenes"] == [R, S]
    assert sorted(held["train"]["scenes"] + held["dev"]["scenes"]) == [P, Q]
    chosen = [units(made.plan.fold("east"), "dev", turn) for turn in range(2)]
    assert sorted(chosen) == [["west.1"], ["west.2"]]


def test_groups_come_from_the_command_line_or_a_file(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "groups.yaml"
    listed.write_text(f"west: [{P}, {Q}]\neast: [{R}, {S}]\n")
    expected = {"west": [P, Q], "east": [R, S]}
    assert read_groups([str(listed)]) == expected
    assert read_groups([f"west={P},{Q}", f"east={R},{S}"]) == expected
    plan = plan_folds(Project(root), "groups", groups={"west": [P, Q], "east": [R]} | {"x": [S]})
    assert [fold.name for fold in plan.folds] == ["east", "west", "x"]
    assert units(plan.fold("west"), "test") == [P, Q]


def test_where_one_group_tests_the_others_only_train(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = ["--by", "groups", "--groups", f"new={P}", "--groups", f"old={Q},{R},{S}"]
    code, _, errors = said(root, monkeypatch, *groups, "--test", "newer")
    assert code == 2
    assert "--test newer: there is no such fold; there are new, old" in errors
    with pytest.raises(InputError, match=r"^fold old: .* 1 of 1 units have ice"):
        plan_folds(Project(root), "groups", groups=read_groups(groups[3::2]))
    code, _, errors = said(root, monkeypatch, *groups, "--test", "new", "--seeds", "3",
                           "--name", "unseen")  # fmt: skip
    assert code == 0, errors
    found = scores(root, "unseen")
    assert list(found["by_fold"]) == ["new"]
    assert found["mean"]["all"]["pixels"] == (labels_once(root, P) != 255).sum()
    ground = found["protocol"]["ground"]["new"]["3"]
    assert ground["test"]["scenes"] == [P]
    assert sorted(ground["train"]["scenes"] + ground["dev"]["scenes"]) == [Q, R, S]


def test_scenes_of_no_group_take_no_part(root: Path) -> None:
    with pytest.raises(InputError, match=r"^fold west: .* 1 of 1 units have ice"):
        plan_folds(Project(root), "groups", groups={"west": [P, Q], "east": [R]})
    groups = {"one": [P], "two": [Q], "three": [S]}
    made = CrossValidation(Project(root), by="groups", groups=groups)
    dataset = postprocess(made.set_up(made.plan.fold("one"), 1))
    assert {s.scene for held in dataset.splits.values() for s in held} == {P, Q, S}


def test_a_group_in_which_nothing_can_test_is_named(root: Path) -> None:
    path = root / f"data/slices/{S}/slices.geojson"
    content = json.loads(path.read_text())
    for feature in content["features"]:
        feature["properties"]["valid_fraction"] = 0.01
    path.write_text(json.dumps(content))
    groups = {"clear": [P], "other": [Q], "third": [R], "cloudy": [S]}
    with pytest.raises(InputError, match=r"^--groups: cloudy: no slice has enough valid pixels"):
        plan_folds(Project(root), "groups", groups=groups)


def test_a_random_split_says_everywhere_that_it_leaks(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_yaml(root / "params.yaml", {
        "postprocess": {"split": {"train": 0.5, "dev": 0.25, "test": 0.25},
                        "min_class_fraction": {"clean_ice": 0.05, "debris": 0.9}}})  # fmt: skip
    code, told, _ = said(root, monkeypatch, "--by", "random", "--seeds", "1,2",
                         "--name", "published")  # fmt: skip
    assert code == 0
    assert "this leaks" in told
    assert "**Random slices: this leaks." in (folder(root, "published") / "report.md").read_text()
    assert scores(root, "published")["protocol"]["leaky"] is True
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("glacier")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.tags["leaky"] for run in runs} == {"true"}
    fractions = {
        (scene, record.k): record.class_fractions["clean_ice"]
        for scene in SCENES
        for record in SlicedScene.read(root / f"data/slices/{scene}/slices.geojson").slices
    }
    assert min(fractions.values()) < 0.05, "nothing to filter"
    tested = set()
    for seed in (1, 2):
        made = json.loads(
            (folder(root, "published") / f"predictions/random/seed_{seed}/made.json").read_text()
        )
        assert all(fractions[e["scene"], e["k"]] >= 0.05 for e in made["slices"])
        assert made["leaky"] is True
        tested |= {(e["scene"], e["k"]) for e in made["slices"]}
    assert len(tested) > len(made["slices"]), "each seed draws others"
    assert scores(root, "published")["protocol"]["test_slices"] == len(tested)


# --- again, and after a stop -------------------------------------------------------------------


def test_what_is_made_is_not_trained_again(
    measured: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    expected = scores(root)
    (folder(root) / "scores.json").unlink()
    monkeypatch.setattr(crossvalidation, "train", never)
    crossvalidate(Project(root), by="scenes", seeds=[1, 2])
    assert scores(root) == expected
    # Where only predictions were lost, the model is still there.
    shutil.rmtree(folder(root) / "predictions" / Q)
    crossvalidate(Project(root), by="scenes", seeds=[1, 2])
    assert scores(root) == expected
    with_params(Project(root), epochs=3)
    made = CrossValidation(Project(root), by="scenes")
    assert len(made.missing([1, 2])) == 8
    with pytest.raises(AssertionError, match="trained again"):
        made.run(made.plan.fold(P), 1)


def test_other_slices_are_trained_on_anew(measured: tuple[Path, str], tmp_path: Path) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    label = next((root / "data/slices" / S).glob("*_label_0.npy"))
    content = np.load(label)
    content[0, 0] = 1 - content[0, 0]
    np.save(label, content)
    made = CrossValidation(Project(root), by="scenes")
    assert len(made.missing([1])) == 4


def test_a_training_that_was_stopped_ends_as_one_that_was_not(
    measured: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    expected, _ = model_of(root, Q)
    shutil.rmtree(folder(root) / Q)
    shutil.rmtree(folder(root) / "predictions" / Q)
    epochs = []
    whole = _Trainer.run_epoch

    def stopped(self: _Trainer) -> Any:
        if self.state.done == 1:
            raise KeyboardInterrupt
        epochs.append(self.state.done)
        return whole(self)

    monkeypatch.setattr(_Trainer, "run_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        crossvalidate(Project(root), by="scenes", seeds=[1], only=Q)
    assert epochs == [0]

    def counted(self: _Trainer) -> Any:
        epochs.append(self.state.done)
        return whole(self)

    monkeypatch.setattr(_Trainer, "run_epoch", counted)
    made, pooled = crossvalidate(Project(root), by="scenes", seeds=[1], only=Q)
    assert epochs == [0, 1]
    assert model_of(root, Q)[0] == expected
    assert pooled is not None, "no other fold is missing"
    assert made.missing([1]) == []


def test_one_fold_alone_says_what_is_missing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, told, _ = said(root, monkeypatch, "--by", "scenes", "--folds", "2", "--seeds", "4",
                         "--only", "fold2")  # fmt: skip
    assert code == 0
    assert "fold2 is made; missing: fold1 with seed 4" in told
    assert not (folder(root, "scenes_2") / "scores.json").exists()
    made = CrossValidation(Project(root), by="scenes", folds=2)
    with pytest.raises(InputError, match="not made yet: fold1 with seed 4"):
        made.pool([4])


def test_two_processes_do_not_make_the_same_fold_at_once(root: Path) -> None:
    made = CrossValidation(Project(root), by="scenes")
    fold = made.plan.fold(P)
    child = made.set_up(fold, 1)
    with one_at_a_time(child, "training", 0), pytest.raises(ServiceError, match="a training by"):
        # In another thread, as the lock is shared within one.
        run_in_thread(lambda: made.run(fold, 1))


def run_in_thread(action: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(action).result()


# --- what cannot be measured -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--by", "scenes", "--folds", "5"], "--folds 5: there are only 4 scenes"),
        (["--by", "scenes", "--only", "X"], f"--only X: there is no such fold; there are {P}"),
        (["--by", "groups"], "--by groups needs --groups"),
        (["--by", "scenes", "--groups", f"a={P}"], "--by groups needs --groups"),
        (["--by", "groups", "--groups", f"a={P}"], "expected two groups or more"),
        (["--by", "groups", "--groups", f"a={P}", "--groups", f"b={P}"], "stands in two groups"),
        (["--by", "groups", "--groups", f"a={P}", "--groups", "b=X"], "no scene X"),
        (["--by", "groups", "--groups", f"a={P}", "--groups", f"a={Q}"], "a is given twice"),
        (["--by", "regions"], "--by regions needs regions_path"),
        (["--by", "random", "--folds", "3"], "--folds 3: give 2 or more, with --by blocks"),
        (["--by", "scenes", "--seeds", "1,1"], "--seeds: expected whole numbers"),
        (["--by", "scenes", "--seeds", "one"], "--seeds one: expected whole numbers"),
        (["--by", "scenes", "--name", "../x"], "--name: name '../x'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(
    built: Path, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = said(built, monkeypatch, *words)
    assert code == 2
    assert told in error
    assert error.count("\n") == 1


def test_without_slices_it_says_which_step_makes_them(root: Path) -> None:
    shutil.rmtree(root / "data/slices" / Q)
    with pytest.raises(InputError, match=r"slices\.geojson: no such file; run `glacier slice`"):
        plan_folds(Project(root), "scenes")


def test_a_name_stands_for_one_set_of_folds(root: Path) -> None:
    CrossValidation(Project(root), by="scenes", folds=2, name="mine")
    CrossValidation(Project(root), by="scenes", folds=2, name="mine")
    with pytest.raises(InputError, match=r"plan\.json: is of other folds .* another --name"):
        CrossValidation(Project(root), by="scenes", folds=3, name="mine")
