"""The score of a model is that of its map: each pixel of the test scenes once, nothing hidden."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)
from small_dataset import (
    CHANNELS,
    LEARNING,
    SPLIT_OF,
    build,
    pixels_once,
    rewrite_labels,
    said_once,
    small_project,
    with_params,
)
from workspace import merge_yaml, run

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError
from glacier_core.model import figures
from glacier_core.model.evaluation import evaluate, table
from glacier_core.model.judging import Judged
from glacier_core.model.predictor import Predictor
from glacier_core.model.scoring import predict_split
from glacier_core.model.training import train
from glacier_core.summary import summarise

NAMES = ["background", "clean_ice", "debris"]
TABLES = ["by_condition.csv", "by_scene.csv", "confusion.csv", "precision_recall.csv"]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A trained and evaluated project, not to be changed."""
    project = small_project(tmp_path_factory, tmp_path_factory.mktemp("judged"), LEARNING)
    train(project)
    evaluate(project)
    return project


@pytest.fixture
def project(judged: Project, tmp_path: Path) -> Project:
    """A copy of it, to be changed."""
    shutil.copytree(judged.root, tmp_path / "project")
    return Project(tmp_path / "project")


def metrics(project: Project) -> Any:
    return json.loads((project.root / "data/evaluation/metrics.json").read_text())


def rows(project: Project, name: str) -> list[dict[str, str]]:
    with (project.root / "data/evaluation" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def predictor_of(project: Project) -> Predictor:
    return Predictor.load(project.run_folder / "models", "cpu", "float32")


def truth_and_map(project: Project) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """By test scene: true and predicted class numbers of its valid pixels, each once."""
    said = said_once(project, predictor_of(project), "test")
    return {
        name: (truth[truth != 255], said[name][truth != 255])
        for name, _, truth in pixels_once(project, "test")
    }


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- the score is right ----------------------------------------------------------------------


def test_scores_are_those_of_the_whole_map_every_pixel_once(judged: Project) -> None:
    scenes = truth_and_map(judged)
    assert set(scenes) == {name for name, split in SPLIT_OF.items() if split == "test"}
    truth = np.concatenate([t for t, _ in scenes.values()])
    said = np.concatenate([s for _, s in scenes.values()])
    found = metrics(judged)["unet"]
    every = {"labels": [0, 1, 2], "average": None, "zero_division": 0}
    for number, name in enumerate(NAMES):
        assert found[name]["iou"] == pytest.approx(jaccard_score(truth, said, **every)[number])
        assert found[name]["dice"] == pytest.approx(f1_score(truth, said, **every)[number])
        expected = precision_score(truth, said, **every)[number]
        assert found[name]["precision"] == pytest.approx(expected)
        assert found[name]["recall"] == pytest.approx(recall_score(truth, said, **every)[number])
        assert found[name]["pixels"] == (truth == number).sum()
    assert found["all"]["pixels"] == truth.size
    assert found["all"]["pixel_accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert found["all"]["mean_ice_iou"] == pytest.approx(
        jaccard_score(truth, said, **every)[1:].mean()
    )
    assert found["all"]["mean_ice_iou"] > 0.5


def test_overlapping_slices_do_show_pixels_more_than_once(judged: Project) -> None:
    """Or else the test above would prove nothing."""
    dataset = Dataset.open(judged.dataset_folder)
    shown = sum(int((dataset.label("test", s) != 255).sum()) for s in dataset.splits["test"])
    assert shown > 1.3 * metrics(judged)["unet"]["all"]["pixels"]


def test_all_methods_are_scored_on_the_same_pixels(judged: Project) -> None:
    found = metrics(judged)
    for method in ("forest", "threshold"):
        for name in [*NAMES, "all"]:
            assert found[method][name]["pixels"] == found["unet"][name]["pixels"]


def test_confusion_csv_counts_the_map_beside_the_outlines(judged: Project) -> None:
    scenes = truth_and_map(judged)
    expected = sum(confusion_matrix(t, s, labels=[0, 1, 2]) for t, s in scenes.values())
    found = np.zeros((3, 3), dtype=int)
    for row in rows(judged, "confusion.csv"):
        if row["method"] == "unet":
            found[NAMES.index(row["actual"]), NAMES.index(row["predicted"])] = int(row["pixels"])
    np.testing.assert_array_equal(found, expected)


def test_by_scene_csv_scores_each_scene_by_itself(judged: Project) -> None:
    scenes = truth_and_map(judged)
    found = rows(judged, "by_scene.csv")
    keys = [(row["method"], row["scene"], row["class"]) for row in found]
    assert len(keys) == len(set(keys)) == 3 * len(scenes) * len(NAMES)
    for row in found:
        if row["method"] == "unet":
            truth, said = scenes[row["scene"]]
            number = NAMES.index(row["class"])
            iou = jaccard_score(truth == number, said == number)
            assert float(row["iou"]) == pytest.approx(iou)
            assert int(row["pixels"]) == (truth == number).sum()


def test_by_condition_csv_holds_what_metrics_json_does_and_counts_each_pixel_once(
    judged: Project,
) -> None:
    conditions, total = metrics(judged)["conditions"], metrics(judged)["unet"]["all"]["pixels"]
    found = rows(judged, "by_condition.csv")
    for row in found:
        expected = conditions[row["condition"]][row["group"]][row["class"]]
        for key in ("iou", "precision", "recall", "dice", "pixels"):
            assert row[key] == str(expected.get(key, ""))
    assert {row["condition"] for row in found} == set(conditions)
    for name in ("brightness", "edge of what was seen"):
        assert sum(int(row["pixels"]) for row in found if row["condition"] == name) == total
    # The truth beside a slice that overlaps another is not "ignored" for that.
    within = conditions["edge of what was seen"]["within 5 pixels"]
    assert 0 < sum(values["pixels"] for values in within.values()) < total / 2


def test_average_precision_and_curve_are_those_of_the_probabilities(judged: Project) -> None:
    """With each pixel taken from the first slice that shows it."""
    dataset, predictor = Dataset.open(judged.dataset_folder), predictor_of(judged)
    truth, probability = [], []
    for sample, once in zip(dataset.splits["test"], dataset.counted_once("test"), strict=True):
        pixels = dataset.image("test", sample).transpose(2, 0, 1)[None]
        label = dataset.label("test", sample)
        valid = once & (label != 255)
        truth.append(label[valid])
        probability.append(predictor.probabilities(pixels)[0][:, valid])
    actual, said = np.concatenate(truth), np.concatenate(probability, axis=1)
    for number, name in enumerate(NAMES[1:], start=1):
        expected = average_precision_score(actual == number, said[number])
        found = metrics(judged)["unet"][name]["average_precision"]
        assert found == pytest.approx(expected, abs=0.01)
        curve = [row for row in rows(judged, "precision_recall.csv") if row["class"] == name]
        assert float(curve[-1]["recall"]) == 1.0
        for row in curve[:: len(curve) // 5]:
            chosen = np.rint(said[number] * 255) >= round(float(row["threshold"]) * 255)
            assert float(row["recall"]) == pytest.approx(
                recall_score(actual == number, chosen), abs=1e-5
            )
            assert float(row["precision"]) == pytest.approx(
                precision_score(actual == number, chosen), abs=1e-5
            )


def judged_apart(project: Project) -> Judged:
    """The U-Net's answers on the test split, each slice a unit, pixels of 30 m."""
    dataset, apart = Dataset.open(project.dataset_folder), Judged(NAMES)
    for sample, truth, probability in predict_split(predictor_of(project), dataset, "test"):
        apart.add(f"{sample.scene}/{sample.k}", truth, probability, 30.0)
    return apart


def test_confidence_borders_and_areas_are_scored_on_the_same_pixels(judged: Project) -> None:
    found = metrics(judged)["unet"]
    expected = judged_apart(judged).summary(draws=1, confidence=0.9, seed=1)
    for name in NAMES:
        for key in ("area_bias_percent", "mcc", "ece", "boundary_alone_percent"):
            assert found[name][key] == pytest.approx(expected[name][key]["value"]), key
        # The scenes' pixels of 30 m are 30 m of the map plane, 0.1 % off those on the ground.
        for key in ("boundary_median_m", "boundary_p95_m"):
            assert found[name][key] == pytest.approx(expected[name][key]["value"], rel=0.005), key
    assert found["all"]["ece"] == pytest.approx(expected["all"]["ece"]["value"])
    assert found["all"]["nll"] == pytest.approx(expected["all"]["nll"]["value"])
    assert found["clean_ice"]["boundary_p95_m"] > 0


def test_intervals_are_those_of_pieces_of_ground_and_hold_their_values(judged: Project) -> None:
    found, intervals = metrics(judged)["unet"], metrics(judged)["intervals"]
    # Two scenes far apart are two blocks, too few to draw from: the slices' ground stands in.
    assert intervals["units"] == "pieces of ground as large as a slice"
    assert intervals["confidence"] == judged.params.promotion.confidence
    assert 5 <= intervals["number_of_units"] <= 12
    assert intervals["units_by_class"]["debris"] <= intervals["units_by_class"]["background"]
    for name, key in (("clean_ice", "iou"), ("all", "pixel_accuracy")):
        lower, upper = intervals["unet"][name][key]
        assert lower < found[name][key] < upper
    # Debris is on too few pieces, so that nobody knows how sure the mean is.
    assert intervals["units_by_class"]["debris"] < 5
    assert intervals["unet"]["all"]["mean_ice_iou"] == ["undefined", "undefined"]


def test_whole_blocks_are_drawn_where_there_are_enough(project: Project) -> None:
    path = project.dataset_folder / "dataset.json"
    content = json.loads(path.read_text())
    for k, sample in enumerate(content["splits"]["test"]):
        sample["block"] = f"block {k % 6}"
    path.write_text(json.dumps(content))
    found = evaluate(project)["intervals"]
    assert (found["units"], found["number_of_units"]) == ("blocks", 6)


def test_the_table_shows_each_iou_with_its_interval(judged: Project) -> None:
    found = metrics(judged)
    lines = table(found).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("unet"))
    assert lines[at + 1].startswith("  95% interval")
    lower, upper = found["intervals"]["unet"]["clean_ice"]["iou"]
    assert lines[at + 1].split()[2] == f"{lower:.2f}-{upper:.2f}"
    assert len(set(map(len, lines))) == 1
    # Of an evaluation of before there were any.
    del found["intervals"]
    assert table(found).splitlines() == lines[: at + 1] + lines[at + 2 :]


def test_the_threshold_baseline_is_the_rule_that_it_says(judged: Project) -> None:
    rule = metrics(judged)["protocol"]["threshold_rule"]
    threshold = float(re.search(r"NDSI of B2 and B5 > (0\.\d\d)", rule)[1])  # type: ignore[index]
    hits = union = 0
    for _, image, truth in pixels_once(judged, "test"):
        green, swir = image[CHANNELS.index("B2")], image[CHANNELS.index("B5")]
        valid = truth != 255
        with np.errstate(invalid="ignore"):
            said = (green - swir) / (green + swir) > threshold + 1e-9
        hits += int((said & (truth == 1))[valid].sum())
        union += int((said | (truth == 1))[valid].sum())
    found = metrics(judged)["threshold"]
    assert found["clean_ice"]["iou"] == pytest.approx(hits / union)
    assert found["debris"]["recall"] == 0.0
    assert found["debris"]["precision"] == "undefined"


def test_the_labels_of_the_test_change_scores_and_no_method(project: Project) -> None:
    before = metrics(project)
    rewrite_labels(Dataset.open(project.dataset_folder), "test", 0)
    after = evaluate(project)
    assert after["protocol"]["threshold_rule"] == before["protocol"]["threshold_rule"]
    for method in ("unet", "forest", "threshold"):
        said = {
            name: sum(
                int(row["pixels"])
                for row in rows(project, "confusion.csv")
                if (row["method"], row["predicted"]) == (method, name)
            )
            for name in NAMES
        }
        assert said["clean_ice"] > 0
        assert after[method]["background"]["recall"] == said["background"] / sum(said.values())
        assert after[method]["clean_ice"]["iou"] == 0.0


# --- classes that are not there --------------------------------------------------------------


def test_a_class_that_never_occurs_in_the_test_is_undefined(tmp_path: Path) -> None:
    test = [name for name, split in SPLIT_OF.items() if split == "test"]
    project = with_params(build(tmp_path / "project", without_debris=test), **LEARNING)
    train(project)
    found = evaluate(project)
    assert found == metrics(project)
    for method in ("unet", "forest", "threshold"):
        assert found[method]["debris"]["recall"] == "undefined"
        assert found[method]["debris"]["pixels"] == 0
    assert found["threshold"]["debris"]["iou"] == "undefined"  # which never says debris either
    assert found["unet"]["debris"]["average_precision"] == "undefined"
    assert found["threshold"]["all"]["mean_ice_iou"] == found["threshold"]["clean_ice"]["iou"]
    assert {row["class"] for row in rows(project, "precision_recall.csv")} == {"clean_ice"}
    assert "undefined" in table(found)
    assert (project.evaluation_folder / "figures/precision_recall.png").exists()


def test_a_class_missing_from_one_scene_is_undefined_there_alone(tmp_path: Path) -> None:
    project = build(tmp_path / "project", without_debris=["LE07_S_20001025"])
    train(project)
    found = evaluate(project)
    assert found["threshold"]["debris"]["iou"] == 0.0
    scene = {
        row["scene"]: row["iou"]
        for row in rows(project, "by_scene.csv")
        if (row["method"], row["class"]) == ("threshold", "debris")
    }
    assert scene == {"LE07_R_20001025": "0.0", "LE07_S_20001025": "undefined"}


# --- what is written -------------------------------------------------------------------------


def test_tables_and_figures_are_there_and_no_figure_is_blank(judged: Project) -> None:
    folder = judged.root / "data/evaluation"
    assert sorted(p.name for p in folder.iterdir()) == sorted(["figures", "metrics.json", *TABLES])
    drawn = sorted(path.name for path in (folder / "figures").iterdir())
    examples = [name for name in drawn if name.startswith("example_")]
    assert len(examples) == 2
    assert sorted(set(drawn) - set(examples)) == [
        "baselines.png",
        "confusion.png",
        "history.png",
        "precision_recall.png",
        "reliability.png",
    ]
    for name in drawn:
        with Image.open(folder / "figures" / name) as picture:
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("RGB")).std() > 10


def test_the_protocol_says_what_was_tested(judged: Project) -> None:
    model = json.loads((judged.run_folder / "models/model.json").read_text())
    assert metrics(judged)["protocol"] == {
        "training": model["training"],
        "split": "scenes",
        "leaky": False,
        "test_slices": 12,
        "test_scenes": ["LE07_R_20001025", "LE07_S_20001025"],
        "test_blocks": 2,
        "threshold_rule": metrics(judged)["protocol"]["threshold_rule"],
    }


def test_evaluating_again_gives_the_same_bytes(judged: Project, project: Project) -> None:
    """In a process of its own, figures included."""
    shutil.rmtree(project.evaluation_folder)
    run(project.root, "glacier", "evaluate")
    again, before = files(project.evaluation_folder), files(judged.evaluation_folder)
    assert set(again) == set(before)
    assert [name for name in again if again[name] != before[name]] == []


def test_the_number_of_examples_is_as_told(project: Project) -> None:
    merge_yaml(project.root / "params.yaml", {"evaluate": {"examples": 0}})
    evaluate(Project(project.root))
    assert list((project.evaluation_folder / "figures").glob("example_*")) == []


def test_an_evaluation_that_fails_leaves_the_earlier_one(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(project.root / "data/evaluation")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "comparison_plot", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate(project)
    assert files(project.root / "data/evaluation") == before
    assert [p.name for p in (project.root / "data").iterdir() if "partial" in p.name] == []


# --- what is refused or warned of ------------------------------------------------------------


def test_a_model_of_another_dataset_is_refused(project: Project) -> None:
    path = project.run_folder / "models/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "another"}))
    with pytest.raises(InputError, match="was trained on another dataset"):
        evaluate(project)


def test_an_untrained_project_is_told_to_train(project: Project) -> None:
    shutil.rmtree(project.run_folder)
    with pytest.raises(InputError, match="run `glacier train` first"):
        evaluate(project)


def test_an_empty_test_split_is_refused(project: Project) -> None:
    path = project.dataset_folder / "dataset.json"
    content = json.loads(path.read_text())
    content["splits"]["test"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="test split is empty"):
        evaluate(project)


def test_a_split_that_leaks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    project = build(tmp_path / "project", split="random")
    train(project)
    found = evaluate(project)
    assert found["protocol"]["leaky"] is True
    assert found["protocol"]["split"] == "random"
    assert "it LEAKS" in summarise(project)


def test_a_summary_without_an_evaluation_says_what_to_do(project: Project) -> None:
    shutil.rmtree(project.evaluation_folder)
    with pytest.raises(InputError, match=r"metrics\.json: no such file; run"):
        summarise(project)
