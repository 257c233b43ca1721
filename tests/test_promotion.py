"""Promotion: a challenger becomes champion only when it is surely better on the same test ground."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import shapely
import torch
from conftest import edit_yaml, glacier
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from numpy.typing import NDArray
from scipy.stats import norm, t
from small_dataset import CHANNELS, pixels_once, rewrite_labels, said_once, small_project

from glacier_core.config import Project
from glacier_core.dataset.blocks import ground_by_block
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError, ServiceError
from glacier_core.model import registry
from glacier_core.model.bootstrap import (
    class_ious,
    mean_ice_iou,
    paired_interval,
    tail,
    units_needed,
)
from glacier_core.model.comparison import hash_of_test, units_of
from glacier_core.model.evaluation import evaluate
from glacier_core.model.predictor import ModelDescription, Predictor, save_model
from glacier_core.model.promotion import promote, rollback
from glacier_core.model.training import train
from glacier_core.model.verdict import Decision, judge
from glacier_core.params import PromotionParams

NAME = "glacier-unet"
CLASSES = ["background", "clean_ice", "debris"]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each project's own SQLite file, whatever the machine is set to; no run left open."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    left = mlflow.active_run()
    mlflow.end_run()
    assert left is None


# --- the bootstrap, by itself ----------------------------------------------------------------

Matrices = NDArray[np.int64]


def simulated(units: int, gain: float, seed: int) -> tuple[Matrices, Matrices]:
    """Confusion matrices of two models over units of ground: the second finds `gain` more.

    Places differ in size, in what lies there, and in how hard they are, for both models alike.
    """
    random = np.random.default_rng(seed)
    both = np.zeros((2, units, 3, 3), dtype=np.int64)
    for i in range(units):
        true = random.multinomial(random.integers(2000, 20000), random.dirichlet([6, 2, 1]))
        hard = random.normal(0, 0.08)
        for model, skill in enumerate((0.75, 0.75 + gain)):
            right = np.clip(skill + hard + random.normal(0, 0.03), 0.05, 0.98)
            for k in range(3):
                shares = np.full(3, (1 - right) / 2)
                shares[k] = right
                both[model, i, k] = random.multinomial(true[k], shares)
    return both[0], both[1]


def naive_difference(champion: Matrices, challenger: Matrices, drawn: list[int]) -> float:
    """Mean ice IoU of the challenger less the champion's over drawn units, pixel set by pixel set."""
    means = []
    for matrices in (champion, challenger):
        ious = []
        for k in (1, 2):
            hit = sum(int(matrices[i][k][k]) for i in drawn)
            true = sum(int(matrices[i][k][j]) for i in drawn for j in range(3))
            said = sum(int(matrices[i][j][k]) for i in drawn for j in range(3))
            if true:
                ious.append(hit / (true + said - hit))
        means.append(sum(ious) / len(ious))
    return means[1] - means[0]


def test_the_interval_is_that_of_a_naive_bootstrap_that_draws_units_one_by_one() -> None:
    champion, challenger = simulated(9, 0.03, seed=4)
    random = np.random.default_rng(11)
    differences = [
        naive_difference(champion, challenger, list(random.integers(0, 9, 9))) for _ in range(20000)
    ]
    # Student's t for 8 degrees of freedom, and the variance of 9 units divided by 9, not 8.
    outside = norm.cdf(-t.ppf(0.975, 8) * np.sqrt(9 / 8))
    expected = np.quantile(differences, [outside, 1 - outside])
    found = paired_interval(champion, challenger, draws=20000, confidence=0.95, seed=1)
    assert found.difference == pytest.approx(
        naive_difference(champion, challenger, list(range(9))), abs=1e-12
    )
    spread = np.std(differences)
    assert [found.lower, found.upper] == pytest.approx(expected, abs=0.15 * spread)
    assert found.lower < found.difference < found.upper


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    pair = simulated(7, 0.02, seed=2)
    first, again, other = (
        paired_interval(*pair, draws=300, confidence=0.95, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first.difference == other.difference


def test_the_draw_is_the_same_for_both_models() -> None:
    # Places so different that unpaired draws would differ wildly; the models differ nowhere.
    champion, _ = simulated(6, 0.0, seed=3)
    found = paired_interval(champion, champion.copy(), draws=500, confidence=0.95, seed=1)
    assert (found.difference, found.lower, found.upper) == (0, 0, 0)


@pytest.mark.parametrize("units", [5, 12])
def test_intervals_hold_the_true_difference_about_as_often_as_they_say(units: int) -> None:
    champion, challenger = simulated(3000, 0.03, seed=0)
    true = float(mean_ice_iou(challenger.sum(axis=0)) - mean_ice_iou(champion.sum(axis=0)))
    random = np.random.default_rng(1)
    trials, held, wide = 300, 0, 0
    for trial in range(trials):
        some = random.integers(0, 3000, units)
        found = paired_interval(
            champion[some], challenger[some], draws=1500, confidence=0.95, seed=trial
        )
        held += found.lower <= true <= found.upper
        wide += found.upper > true + 0.5
    assert 0.87 <= held / trials <= 0.99
    assert wide == 0


def test_no_better_model_is_rarely_taken_for_a_better_one() -> None:
    champion, challenger = simulated(3000, 0.0, seed=5)
    random = np.random.default_rng(2)
    taken = 0
    for trial in range(300):
        some = random.integers(0, 3000, 6)
        found = paired_interval(
            champion[some], challenger[some], draws=1000, confidence=0.95, seed=trial
        )
        taken += found.lower > 0
    assert taken / 300 < 0.08


@pytest.mark.parametrize(("confidence", "needed"), [(0.8, 5), (0.95, 5), (0.99, 7)])
def test_as_many_units_are_needed_as_draws_can_reach_the_ends_of_the_interval(
    confidence: float, needed: int
) -> None:
    assert units_needed(confidence) == needed
    # The rarest draw is one unit as often as there are units.
    assert needed**-needed <= tail(needed, confidence)
    assert needed == 5 or (needed - 1) ** -(needed - 1) > tail(needed - 1, confidence)


def test_a_class_that_does_not_occur_is_judged_for_neither_model() -> None:
    matrices = np.array([[[50, 0, 5], [10, 40, 0], [0, 0, 0]]])
    ious = class_ious(matrices)[0]
    assert ious[:2] == pytest.approx([50 / 65, 40 / 50])
    assert np.isnan(ious[2])
    assert mean_ice_iou(matrices)[0] == pytest.approx(40 / 50)
    assert np.isnan(mean_ice_iou(np.array([[9, 1], [0, 0]])))


def test_matrices_of_other_pixels_are_not_compared() -> None:
    champion, challenger = simulated(6, 0.0, seed=1)
    challenger[2, 1, 1] += 1
    with pytest.raises(ValueError, match="not judged on the same pixels"):
        paired_interval(champion, challenger, draws=10, confidence=0.95, seed=1)


# --- the three conditions --------------------------------------------------------------------

USUAL = PromotionParams(margin=0.005, tolerance=0.02, draws=400, confidence=0.95)


def of_quality(*right: float, units: int = 6, wobble: float = 0.0) -> Matrices:
    """Matrices of a model that finds given shares of background, clean ice and debris.

    What it misses of the ice it calls background; what it misses of the background, clean ice.
    `wobble` is added in even units and taken off in odd ones.
    """
    matrices = []
    for i in range(units):
        shift = wobble if i % 2 == 0 else -wobble
        background, clean, debris = (round(1000 * (share + shift)) for share in right)
        matrices.append(
            [[background, 1000 - background, 0], [1000 - clean, clean, 0],
             [1000 - debris, 0, debris]]
        )  # fmt: skip
    return np.array(matrices, dtype=np.int64)


def test_a_better_model_is_promoted() -> None:
    verdict = judge(of_quality(0.9, 0.7, 0.7), of_quality(0.9, 0.8, 0.8), CLASSES, USUAL, 1)
    assert verdict.against == []
    assert verdict.interval is not None
    assert verdict.interval.lower > 0.05
    assert set(verdict.iou) == {*CLASSES, "mean_ice"}
    for values in verdict.iou.values():
        assert values["difference"] == pytest.approx(values["challenger"] - values["champion"])


def test_the_margin_alone_keeps_the_champion() -> None:
    # Surely better, in every unit, and no class worse: only not by enough.
    verdict = judge(of_quality(0.9, 0.7, 0.7), of_quality(0.9, 0.704, 0.704), CLASSES, USUAL, 1)
    assert verdict.interval is not None
    assert verdict.interval.lower > 0
    assert 0 < verdict.iou["mean_ice"]["difference"] < 0.005
    (reason,) = verdict.against
    assert "less than the margin 0.005" in reason
    lower = USUAL.model_copy(update={"margin": 0.002})
    assert judge(of_quality(0.9, 0.7, 0.7), of_quality(0.9, 0.704, 0.704),
                 CLASSES, lower, 1).against == []  # fmt: skip


def test_doubt_alone_keeps_the_champion() -> None:
    # Much better on half of the ground, worse on the other.
    challenger = of_quality(0.9, 0.72, 0.72, wobble=0.1)
    verdict = judge(of_quality(0.9, 0.7, 0.7), challenger, CLASSES, USUAL, 1)
    assert verdict.iou["mean_ice"]["difference"] > 0.005
    (reason,) = verdict.against
    assert "interval of the difference" in reason
    assert verdict.interval is not None
    assert verdict.interval.lower <= 0 < verdict.interval.upper


def test_one_class_that_gets_worse_alone_keeps_the_champion() -> None:
    verdict = judge(of_quality(0.9, 0.7, 0.7), of_quality(0.9, 0.9, 0.67), CLASSES, USUAL, 1)
    assert verdict.interval is not None
    assert verdict.interval.lower > 0
    assert verdict.iou["mean_ice"]["difference"] > 0.005
    (reason,) = verdict.against
    assert reason.startswith("debris is worse by 0.03")
    lenient = USUAL.model_copy(update={"tolerance": 0.05})
    assert judge(of_quality(0.9, 0.7, 0.7), of_quality(0.9, 0.9, 0.67),
                 CLASSES, lenient, 1).against == []  # fmt: skip


def test_the_background_is_a_class_too() -> None:
    champion, challenger = of_quality(0.99, 0.5, 0.5), of_quality(0.93, 0.62, 0.5)
    champion[:, 0], challenger[:, 0] = [9900, 0, 100], [9000, 0, 1000]
    challenger[:, 2] = [0, 0, 1000]
    verdict = judge(champion, challenger, CLASSES, USUAL, 1)
    assert verdict.iou["background"]["difference"] < -0.02
    assert any(reason.startswith("background is worse") for reason in verdict.against)


def test_too_few_units_alone_keep_the_champion() -> None:
    verdict = judge(
        of_quality(0.9, 0.7, 0.7, units=4), of_quality(0.9, 0.8, 0.8, units=4), CLASSES, USUAL, 1
    )
    assert verdict.interval is None
    (reason,) = verdict.against
    assert reason == (
        "the test split has 4 pieces of ground, too few for an honest interval of 95% (at least 5)"
    )


def test_a_test_split_without_ice_is_refused() -> None:
    rock = np.zeros((6, 3, 3), dtype=np.int64)
    rock[:, 0] = [90, 5, 5]
    with pytest.raises(InputError, match="the test split has no ice"):
        judge(rock, rock.copy(), CLASSES, USUAL, 1)


def test_a_class_that_the_test_split_lacks_is_said_and_not_judged() -> None:
    champion, challenger = of_quality(0.9, 0.7, 0.7), of_quality(0.9, 0.8, 0.7)
    for matrices in (champion, challenger):
        matrices[:, 2] = 0
    verdict = judge(champion, challenger, CLASSES, USUAL, 1)
    assert verdict.absent == ["debris"]
    assert "debris" not in verdict.iou
    assert verdict.against == []


# --- real models, a real test split, a real registry -----------------------------------------

LEARNING = {"epochs": 6, "batch_size": 4, "crops_per_slice": 4, "learning_rate": 0.02,
            "dropout": 0.0}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Trained to find most of the ice, and evaluated; not registered, not to be changed."""
    root = tmp_path_factory.mktemp("trained") / "project"
    project = small_project(tmp_path_factory, root, LEARNING)
    edit_yaml(root / "params.yaml", **{"promotion.draws": 500})
    project = Project(root)
    train(project)
    evaluate(project)
    return project


def _register(
    project: Project, bias: tuple[float, float, float], **changes: Any
) -> registry.Registration:
    """Register the trained network with `bias` added to its logits, as another training.

    Args:
        project: holds the trained model, which stays.
        bias: for background, clean ice, debris; less for a class makes it rarer.
        changes: of the description.
    """
    models, metrics = project.run_folder / "models", project.evaluation_folder / "metrics.json"
    kept = {path: path.read_bytes() for path in (*models.glob("model.*"), metrics)}
    predictor = Predictor.load(models, "cpu", "float32")
    with torch.no_grad():
        predictor.model.network.head.bias += torch.tensor(bias)
    identity = json.dumps([bias, changes], sort_keys=True)
    description = replace(predictor.description, training=identity, **changes)
    save_model(models, description, predictor.model)
    judged = json.loads(metrics.read_text())
    judged["protocol"]["training"] = identity
    metrics.write_text(json.dumps(judged))
    try:
        return registry.register(project)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def wkt_of(dataset: Dataset, split: str) -> dict[str, str]:
    return {f"{split}_{k}": g.wkt for k, g in enumerate(ground_by_block(dataset, [split]).values())}


# Models by hand, from the trained one: logits of background, clean ice and debris, shifted.
BIAS = {
    "weak": (3.0, 0.0, 0.0),
    "good": (0.0, 0.0, 0.0),
    "weaker": (6.0, 0.0, 0.0),
    "no clean ice": (0.0, -4.0, 0.0),
    "no debris": (0.0, 0.0, -4.0),
}
GOOD, WEAK = BIAS["good"], BIAS["weak"]


TAUGHT = {"LE07_T_20201025": "models:/glacier-unet/1 >= 0.95"}


@pytest.fixture(scope="module")
def registered(
    trained: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, dict[str, str]]:
    """A project with many versions, and their numbers by name; not to be changed."""
    root = tmp_path_factory.mktemp("registered") / "project"
    shutil.copytree(trained.root, root)
    project, versions = Project(root), {}
    dataset = Dataset.open(project.dataset_folder)
    clean = wkt_of(dataset, "train")
    leaking = clean | wkt_of(dataset, "test")
    made: dict[str, tuple[tuple[float, float, float], dict[str, Any]]] = {
        **{name: (bias, {}) for name, bias in BIAS.items()},
        "as good": (GOOD, {"sources": []}),
        "silent": (WEAK, {"blocks": None}),
        "leaking good": (GOOD, {"blocks": leaking}),
        "leaking weak": (WEAK, {"blocks": leaking}),
        "other classes": (GOOD, {"classes": ["background", "debris", "clean_ice"]}),
        "other channels": (GOOD, {"channels": ["B2", "B4", "B5", "elevation"]}),
        "lacking": (GOOD, {"channels": ["B2", "B3", "B5", "slope"]}),
        "self-taught": (GOOD, {"predicted": TAUGHT, "predicted_share": 0.25}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, (bias, changes) in made.items():
            versions[name] = _register(project, bias, **changes).version
    return project, versions


@pytest.fixture
def versions(registered: tuple[Project, dict[str, str]]) -> dict[str, str]:
    """Version number by name of model."""
    return registered[1]


@pytest.fixture
def project(registered: tuple[Project, dict[str, str]], tmp_path: Path) -> Project:
    """A copy of the project with its registry; without aliases."""
    before, root = registered[0].root, tmp_path / "project"
    shutil.copytree(before, root)
    # MLflow keeps absolute paths.
    with sqlite3.connect(root / "mlflow.db") as base:
        tables = base.execute("select name from sqlite_master where type = 'table'").fetchall()
        for (table,) in tables:
            for column in base.execute(f"pragma table_info({table})").fetchall():
                if column[2].upper().startswith(("VARCHAR", "TEXT")):
                    base.execute(
                        f'update {table} set "{column[1]}" = replace("{column[1]}", ?, ?)',
                        (str(before), str(root)),
                    )
    base.close()
    # It also remembers, by run, where this process wrote artifacts before.
    _artifact_repos_cache.clear()
    for path in root.glob("mlartifacts/**/MLmodel"):
        path.write_text(path.read_text().replace(str(before), str(root)))
    found = Project(root)
    for alias in aliases_of(found):
        client_of(found).delete_registered_model_alias(NAME, alias)
    return found


def stand(project: Project, champion: str, challenger: str) -> None:
    """Let two versions stand against each other."""
    for alias, version in (("champion", champion), ("challenger", challenger)):
        client_of(project).set_registered_model_alias(NAME, alias, version)


def client_of(project: Project) -> MlflowClient:
    store = f"sqlite:///{project.root / 'mlflow.db'}"
    return MlflowClient(tracking_uri=store, registry_uri=store)


def aliases_of(project: Project) -> dict[str, str]:
    aliases = client_of(project).get_registered_model(NAME).aliases
    return {alias: str(version) for alias, version in aliases.items()}


def tags_of(project: Project, version: str) -> dict[str, str]:
    tags: dict[str, str] = client_of(project).get_model_version(NAME, version).tags
    return {key: value for key, value in tags.items() if key.startswith("glacier.promotion")}


def decide(project: Project, **arguments: Any) -> Decision:
    return promote(project, **({"challenger": None, "wait": 0, "force": None} | arguments))


def expected_matrix(project: Project, bias: tuple[float, float, float]) -> Matrices:
    """Confusion matrix over the test split, each pixel once, put together from its files."""
    loaded = Predictor.load(project.run_folder / "models", "cpu", "float32")
    with torch.no_grad():
        loaded.model.network.head.bias += torch.tensor(bias)
    predictor = Predictor(loaded.description, loaded.model, "cpu", "float32")  # as it is trained
    # In the order of slices by scene and number, as the earlier of overlapping ones speaks.
    path = project.dataset_folder / "dataset.json"
    content = json.loads(path.read_text())
    content["splits"]["test"].sort(key=lambda sample: (sample["scene"], sample["k"]))
    path.write_text(json.dumps(content))
    said = said_once(project, predictor, "test")
    matrix = np.zeros((3, 3), dtype=np.int64)
    for scene, _, truth in pixels_once(project, "test"):
        for true, mapped in zip(truth[truth != 255], said[scene][truth != 255], strict=True):
            matrix[true, mapped] += 1
    return matrix


def test_a_challenger_that_is_better_on_the_same_ground_becomes_champion(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    assert aliases_of(project) == {"champion": "1", "challenger": "2"}
    decision = decide(project)
    assert decision.outcome == "promoted"
    assert (decision.version, decision.against, decision.champion) == ("2", "1", "2")
    assert aliases_of(project) == {"champion": "2", "previous": "1"}
    assert decision.reasons == decision.warnings == []

    verdict = decision.verdict
    assert verdict is not None
    assert verdict.interval is not None
    for role, bias in (("champion", WEAK), ("challenger", GOOD)):
        matrix = expected_matrix(project, bias)
        hits = np.diag(matrix)
        ious = hits / (matrix.sum(axis=0) + matrix.sum(axis=1) - hits)
        for name, iou in zip(CLASSES, ious, strict=True):
            assert verdict.iou[name][role] == pytest.approx(iou, abs=1e-12)
        assert verdict.iou["mean_ice"][role] == pytest.approx(ious[1:].mean(), abs=1e-12)
    # Two scenes; the second and third row of slices show half of the same ground.
    assert decision.units == 8

    tags = tags_of(project, "2")
    assert tags["glacier.promotion"] == "promoted"
    assert tags["glacier.promotion.against"] == "1"
    assert float(tags["glacier.promotion.difference"]) == pytest.approx(
        verdict.interval.difference, abs=1e-6
    )
    low, high = map(float, tags["glacier.promotion.interval"].split())
    assert 0 < low < verdict.interval.difference < high
    by_class = json.loads(tags["glacier.promotion.by_class"])
    assert by_class["debris"] == pytest.approx(verdict.iou["debris"]["difference"], abs=1e-6)
    assert set(by_class) == set(CLASSES)
    assert tags["glacier.promotion.test_hash"] == decision.test_hash
    assert tags["glacier.promotion.date"] == decision.date
    assert tags_of(project, "1") == {}

    client = client_of(project)
    run_id = client.get_model_version(NAME, "2").run_id
    names = {item.path for item in client.list_artifacts(run_id, "promotion")}
    assert names == {f"promotion/decision.{suffix}" for suffix in ("json", "md", "png")}
    kept = json.loads(
        Path(client.download_artifacts(run_id, "promotion/decision.json")).read_text()
    )
    assert kept["outcome"] == "promoted"
    assert kept["verdict"]["iou"] == verdict.iou
    assert kept["params"] == project.params.promotion.model_dump()
    page = Path(client.download_artifacts(run_id, "promotion/decision.md")).read_text()
    assert f"| mean_ice | {verdict.iou['mean_ice']['champion']:.4f} |" in page
    assert "version 2 is champion now, instead of 1" in page
    picture = Path(client.download_artifacts(run_id, "promotion/decision.png")).read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000

    # Again, nothing happens.
    again = decide(project)
    assert (again.outcome, again.champion) == ("champion", "2")
    assert "there is no challenger" in again.summary
    assert aliases_of(project) == {"champion": "2", "previous": "1"}
    assert tags_of(project, "2") == tags


def test_an_equal_challenger_does_not_become_champion_and_the_next_decision_is_the_same(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["good"], versions["as good"])
    first = decide(project)
    assert first.outcome == "kept"
    assert first.verdict is not None
    assert first.verdict.interval is not None
    assert (first.verdict.interval.lower, first.verdict.interval.upper) == (0, 0)
    assert aliases_of(project) == {"champion": "2", "challenger": versions["as good"]}
    assert tags_of(project, versions["as good"])["glacier.promotion"] == "kept"
    again = decide(project, challenger=versions["as good"])
    assert replace(again, date=first.date) == first


def test_a_worse_challenger_is_kept_from_it_and_every_reason_is_said(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["good"], versions["weaker"])
    decision = decide(project)
    assert (decision.outcome, decision.champion) == ("kept", "2")
    assert [reason.split()[0] for reason in decision.reasons] == [
        "mean",
        "the",
        "background",
        "clean_ice",
        "debris",
    ]
    assert tags_of(project, "3")["glacier.promotion.reasons"] == "; ".join(decision.reasons)
    assert aliases_of(project) == {"champion": "2", "challenger": "3"}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"promotion.margin": 0.99}, "less than the margin"),
        ({"promotion.confidence": 0.999}, "too few for an honest interval"),
        ({"promotion.tolerance": 0.0}, None),
    ],
)
def test_the_settings_of_the_project_decide(
    project: Project, setting: dict[str, float], expected: str | None, versions: dict[str, str]
) -> None:
    edit_yaml(project.root / "params.yaml", **setting)
    project = Project(project.root)
    stand(project, versions["weak"], versions["good"])
    decision = decide(project)
    if expected is None:
        assert decision.outcome == "promoted"
    else:
        (reason,) = decision.reasons
        assert expected in reason
        assert decision.outcome == "kept"
        assert aliases_of(project) == {"champion": "1", "challenger": "2"}


def test_a_challenger_that_loses_one_class_is_not_promoted_for_the_other(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["no clean ice"], versions["no debris"])
    decision = decide(project)
    assert decision.verdict is not None
    assert decision.verdict.interval is not None
    assert decision.verdict.interval.lower > 0
    # What was debris is background now, which suffers with it.
    assert [reason.split(" by ")[0] for reason in decision.reasons] == [
        "background is worse",
        "debris is worse",
    ]
    assert decision.outcome == "kept"


def test_a_challenger_that_learned_from_a_models_labels_is_told_of_in_its_report(
    project: Project, versions: dict[str, str]
) -> None:
    told = (
        f"version {versions['self-taught']} (challenger) learned from labels that a model made: "
        "25.0% of its training pixels, on LE07_T_20201025 (by models:/glacier-unet/1 >= 0.95)"
    )
    stand(project, versions["weak"], versions["self-taught"])
    decision = decide(project)
    assert decision.outcome == "promoted"
    assert told in decision.warnings
    assert f"- {told}" in decision.markdown()
    assert told in tags_of(project, versions["self-taught"])["glacier.promotion.warnings"]
    stand(project, versions["weak"], versions["good"])
    assert not any("labels that a model made" in text for text in decide(project).warnings)


def test_force_promotes_and_keeps_who_and_why_beside_the_numbers(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["good"], versions["weak"])
    decision = decide(project, force="the champion misses Zemu glacier")
    assert decision.outcome == "forced"
    assert aliases_of(project) == {"champion": "1", "previous": "2"}
    tags = tags_of(project, "1")
    assert tags["glacier.promotion"] == "forced"
    assert tags["glacier.promotion.forced"].endswith(": the champion misses Zemu glacier")
    assert "@" in tags["glacier.promotion.forced"]
    assert "less than the margin" in tags["glacier.promotion.reasons"]


def test_force_without_need_is_an_ordinary_promotion_and_without_a_reason_an_error(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    with pytest.raises(InputError, match="--force: expected a reason"):
        decide(project, force=" ")
    assert decide(project, force="in a hurry").outcome == "promoted"
    assert tags_of(project, "2")["glacier.promotion.forced"] == ""


# --- what cannot be compared -----------------------------------------------------------------


def test_versions_say_which_ground_they_were_trained_and_chosen_on(
    project: Project, versions: dict[str, str]
) -> None:
    place = project.root / "fetched"
    mlflow.artifacts.download_artifacts(f"models:/{NAME}/{versions['good']}", dst_path=str(place))
    (found,) = place.rglob("model.json")
    blocks = json.loads(found.read_text())["blocks"]
    dataset = Dataset.open(project.dataset_folder)
    used = {sample.block for name in ("train", "dev") for sample in dataset.splits[name]}
    assert set(blocks) == used
    slices = json.loads((project.dataset_folder / "slices.geojson").read_text())["features"]
    ground = shapely.union_all([shapely.from_wkt(text) for text in blocks.values()])
    shares = {"train": [], "dev": [], "test": []}  # type: dict[str, list[float]]
    for feature in slices:
        shape = shapely.geometry.shape(feature["geometry"])
        shares[feature["properties"]["split"]].append(shape.intersection(ground).area / shape.area)
    assert min(shares["train"] + shares["dev"]) > 0.999
    assert max(shares["test"]) == 0


@pytest.mark.parametrize("role", ["champion", "challenger"])
def test_a_model_that_was_trained_on_test_ground_is_refused_by_the_names_of_its_blocks(
    project: Project, role: str, versions: dict[str, str]
) -> None:
    names = {"champion": "weak", "challenger": "good"}
    names[role] = f"leaking {names[role]}"
    champion, challenger = (versions[name] for name in names.values())
    stand(project, champion, challenger)
    number = versions[names[role]]
    with pytest.raises(InputError) as caught:
        decide(project)
    assert f"version {number} ({role}) was trained on ground of the test split, in block " \
           "test_0, test_1. Train both" in str(caught.value)  # fmt: skip
    assert aliases_of(project) == {"champion": champion, "challenger": challenger}
    assert tags_of(project, challenger) == {}
    forced = decide(project, force="nothing else to compare with")
    assert forced.outcome == "forced"
    assert "test_0, test_1" in tags_of(project, challenger)["glacier.promotion.reasons"]


def test_a_model_of_before_is_compared_with_a_warning(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["silent"], versions["good"])
    decision = decide(project)
    assert decision.outcome == "promoted"
    (warning,) = decision.warnings
    assert warning.startswith(
        f"version {versions['silent']} (champion) does not say which blocks it was trained on"
    )
    assert tags_of(project, "2")["glacier.promotion.warnings"] == warning


def test_an_older_description_is_still_read(project: Project) -> None:
    path = project.run_folder / "models/model.json"
    content = json.loads(path.read_text())
    content.pop("blocks", None)
    assert ModelDescription.from_json(content).blocks is None
    path.write_text(json.dumps(content))
    assert Predictor.load(path.parent, "cpu", "float32").description.channels == CHANNELS


def test_a_random_split_is_no_ground_to_judge_on(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    path = project.dataset_folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "leaky": True}))
    with pytest.raises(InputError, match="the split is random, so that training ground is in"):
        decide(project)


def test_models_of_other_classes_are_refused_with_both_lists(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["other classes"])
    with pytest.raises(InputError, match="glacier-unet version 10: tells apart background, debris, "
                       "clean_ice, but the test split is labelled background, clean_ice, debris"):  # fmt: skip
        decide(project)


def test_a_model_reads_its_own_channels_from_the_slices(
    project: Project, versions: dict[str, str]
) -> None:
    # The same network fed with another band, which the slices hold though the dataset has no use
    # for it: other predictions, judged all the same.
    stand(project, versions["weak"], versions["other channels"])
    decision = decide(project)
    assert decision.verdict is not None
    matrix = expected_matrix(project, GOOD)
    hits = np.diag(matrix)
    ious = hits / (matrix.sum(axis=0) + matrix.sum(axis=1) - hits)
    assert abs(decision.verdict.iou["clean_ice"]["challenger"] - ious[1]) > 1e-4
    assert decision.verdict.iou["clean_ice"]["challenger"] > 0.3


def test_a_band_that_the_slices_lack_is_named(project: Project, versions: dict[str, str]) -> None:
    stand(project, versions["weak"], versions["lacking"])
    with pytest.raises(InputError, match="glacier-unet version 12: needs slope, which the slices of "
                       "scene LE07_R_20001025 lack; they have B2, B3, B4, B5, elevation"):  # fmt: skip
        decide(project)
    assert aliases_of(project) == {"champion": "1", "challenger": "12"}


def test_unknown_versions_and_empty_registries_are_said(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    with pytest.raises(InputError, match="glacier-unet has no version '77'"):
        decide(project, challenger="77")
    with pytest.raises(InputError, match="glacier-unet has no version 'newest'"):
        decide(project, challenger="newest")
    client_of(project).delete_registered_model_alias(NAME, "champion")
    with pytest.raises(InputError, match="has no champion to compare with"):
        decide(project)
    edit_yaml(project.root / "conf/train.yaml", **{"tracking.model_name": "another"})
    with pytest.raises(InputError, match=r"another: no such model .*; `glacier register` first"):
        decide(Project(project.root))


# --- the test set ----------------------------------------------------------------------------


def test_the_hash_is_that_of_slices_and_labels_and_of_nothing_else(project: Project) -> None:
    dataset = Dataset.open(project.dataset_folder)
    first = hash_of_test(dataset)
    turned = {**dataset.splits, "test": dataset.splits["test"][::-1], "train": []}
    assert hash_of_test(replace(dataset, splits=turned)) == first
    rewrite_labels(dataset, "train", 0)
    assert hash_of_test(dataset) == first
    rewrite_labels(dataset, "test", 0)
    assert hash_of_test(dataset) != first


def test_other_dates_and_overlaps_are_no_units_of_their_own(project: Project) -> None:
    dataset = Dataset.open(project.dataset_folder)
    tests = dataset.splits["test"]
    before = units_of(dataset, needed=5)
    # Another date of one scene, whose slices lie a quarter of a slice further east.
    path = project.dataset_folder / "slices.geojson"
    content = json.loads(path.read_text())
    for feature in list(content["features"]):
        if feature["properties"]["scene"] == "LE07_R_20001025":
            shape = shapely.geometry.shape(feature["geometry"])
            width = shape.bounds[2] - shape.bounds[0]
            moved = shapely.transform(shape, lambda xy, by=width / 4: xy + np.array([by, 0]))
            content["features"].append({
                "geometry": shapely.geometry.mapping(moved),
                "properties": {**feature["properties"], "scene": "LE07_R_20101025"},
            })  # fmt: skip
    path.write_text(json.dumps(content))
    again = [replace(s, scene="LE07_R_20101025") for s in tests if s.scene == "LE07_R_20001025"]
    assert len(again) == 6
    both = replace(dataset, splits={**dataset.splits, "test": [*tests, *again]})
    after = units_of(both, needed=5)
    assert (before.count, after.count) == (8, 8)
    assert len(after.names) == 18


def test_blocks_are_the_units_where_there_are_enough(project: Project) -> None:
    dataset = Dataset.open(project.dataset_folder)
    named = [replace(s, block=f"{k % 6}") for k, s in enumerate(dataset.splits["test"])]
    units = units_of(replace(dataset, splits={**dataset.splits, "test": named}), needed=5)
    assert (units.count, units.kind) == (6, "blocks")
    ordered = sorted(named, key=lambda s: (s.scene, s.k))
    assert units.names == [s.block for s in ordered]
    assert units_of(dataset, needed=2).kind == "blocks"
    assert units_of(dataset, needed=3).kind != "blocks"


# --- back again ------------------------------------------------------------------------------


def test_rollback_goes_back_one_version_and_no_further(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weaker"], versions["good"])
    assert decide(project, challenger="1", force="for the test").champion == "1"
    assert decide(project).outcome == "promoted"
    assert aliases_of(project) == {"champion": "2", "previous": "1"}
    done = rollback(project, wait=0)
    assert (done.champion, done.instead_of) == ("1", "2")
    assert aliases_of(project) == {"champion": "1"}
    assert "1 is champion again" in tags_of(project, "2")["glacier.promotion.rolled_back"]
    with pytest.raises(InputError, match="there is no version to go back to"):
        rollback(project, wait=0)
    assert aliases_of(project) == {"champion": "1"}
    # On the road again, the mark of the step back goes.
    assert decide(project, challenger="2").outcome == "promoted"
    assert "glacier.promotion.rolled_back" not in tags_of(project, "2")
    assert aliases_of(project) == {"champion": "2", "previous": "1"}


def test_the_first_champion_has_nothing_to_go_back_to(project: Project) -> None:
    client_of(project).set_registered_model_alias(NAME, "champion", "1")
    with pytest.raises(InputError, match="version 1 is champion"):
        rollback(project, wait=0)
    assert aliases_of(project) == {"champion": "1"}


def stopped_at(count: int) -> Callable[..., Any]:
    """`set_registered_model_alias` that dies instead of its call number `count`."""
    real, calls = MlflowClient.set_registered_model_alias, []

    def move(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == count:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    return move


@pytest.mark.parametrize("count", [1, 2])
def test_a_promotion_that_was_stopped_is_finished_by_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch, count: int, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", stopped_at(count))
        with pytest.raises(KeyboardInterrupt):
            decide(project)
    assert aliases_of(project)["champion"] == "1"
    assert decide(project).outcome == "promoted"
    assert aliases_of(project) == {"champion": "2", "previous": "1"}


def test_a_promotion_stopped_after_the_crown_only_tidies_up(
    project: Project, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_registered_model_alias", stop)
        with pytest.raises(KeyboardInterrupt):
            decide(project)
    assert aliases_of(project) == {"champion": "2", "previous": "1", "challenger": "2"}
    assert decide(project).outcome == "champion"
    assert aliases_of(project) == {"champion": "2", "previous": "1"}


# --- one at a time, and services away --------------------------------------------------------


@pytest.mark.slow
def test_a_second_promotion_says_who_is_at_work_and_that_it_waited(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    place = project.root / "data/promotion.lock"
    with FileLock(place):
        place.with_suffix(".json").write_text(
            json.dumps(
                {
                    "what": "promotion",
                    "pid": 4711,
                    "by": "tenzin@host",
                    "since": "2026-01-01T00:00:00+00:00",
                }
            )
        )
        begun = time.monotonic()
        with pytest.raises(ServiceError, match=r"a promotion by tenzin@host \(process 4711, since "
                           r"2026-01-01.*\) holds .*promotion\.lock, also after 0\.3 s"):  # fmt: skip
            decide(project, wait=0.3)
        assert 0.3 <= time.monotonic() - begun < 5
        with pytest.raises(ServiceError, match=r"promotion\.lock"):
            rollback(project, wait=0)
        told = glacier(project.root, "promote", "--wait", "0")
        assert told.returncode == 1
        assert "holds" in told.stderr
    assert aliases_of(project) == {"champion": "1", "challenger": "2"}
    assert decide(project).outcome == "promoted"
    assert not place.with_suffix(".json").exists()


@pytest.mark.slow
def test_of_two_at_once_the_second_waits_and_finds_the_new_champion(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    done: list[str] = []

    def one() -> None:
        told = glacier(project.root, "promote", "--challenger", "2", "--wait", "100")
        done.append(told.stdout.partition(":")[0] if told.returncode == 0 else told.stderr)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["champion", "promoted"]
    assert aliases_of(project) == {"champion": "2", "previous": "1"}


@pytest.mark.slow
def test_a_registration_waits_for_a_decision_and_keeps_its_alias(
    project: Project, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    """It begins between the decision's last look at the aliases and its last change to them."""
    stand(project, versions["weak"], versions["good"])
    begun: list[subprocess.Popen[str]] = []
    delete = MlflowClient.delete_registered_model_alias

    def meanwhile(client: MlflowClient, *arguments: Any) -> None:
        words = [Path(sys.executable).with_name("glacier"), "register"]
        begun.append(subprocess.Popen(words, cwd=project.root, stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True))  # fmt: skip
        for line in begun[0].stdout or []:
            if "waiting up to" in line or "models:/" in line:
                break
        delete(client, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_registered_model_alias", meanwhile)
        assert decide(project).outcome == "promoted"
    [process] = begun
    assert process.wait(100) == 0
    new = str(max(int(found.version) for found in client_of(project).search_model_versions()))
    assert new not in versions.values()
    assert aliases_of(project) == {"champion": "2", "previous": "1", "challenger": new}


def test_a_champion_that_changed_meanwhile_on_another_machine_stops_the_decision(
    project: Project, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    stand(project, versions["weaker"], versions["good"])
    from glacier_core.model import promotion

    real = promotion.judge

    def meanwhile(*arguments: Any) -> Any:
        client_of(project).set_registered_model_alias(NAME, "champion", "1")
        return real(*arguments)

    monkeypatch.setattr(promotion, "judge", meanwhile)
    with pytest.raises(
        ServiceError, match="version 1 became champion; run `glacier promote` again"
    ):
        decide(project, challenger="2")
    assert aliases_of(project)["champion"] == "1"
    assert tags_of(project, "2") == {}


def test_without_mlflow_nothing_changes(
    project: Project, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:9"):
            decide(project)
        with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:9"):
            rollback(project, wait=0)
    assert aliases_of(project) == {"champion": "1", "challenger": "2"}
    assert tags_of(project, "2") == {}


def test_mlflow_that_goes_away_after_the_comparison_is_a_service_that_is_away(
    project: Project, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", refuse)
        with pytest.raises(ServiceError, match="the disk is full"):
            decide(project)
    assert aliases_of(project) == {"champion": "1", "challenger": "2"}
    assert decide(project).outcome == "promoted"


# --- the command line ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_promotes_rolls_back_and_refuses(
    project: Project, versions: dict[str, str]
) -> None:
    stand(project, versions["weak"], versions["good"])
    done = glacier(project.root, "promote")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "promoted: glacier-unet version 2 is champion now, instead of 1\nhttp"
    )
    done = glacier(project.root, "promote", "--rollback", "--force", "x")
    assert done.returncode == 2
    assert "--rollback goes alone" in done.stderr
    done = glacier(project.root, "promote", "--rollback")
    assert done.stdout == "glacier-unet: 1 is champion again, instead of 2\n"
    done = glacier(project.root, "promote", "--rollback")
    assert done.returncode == 2
    assert "there is no version to go back to" in done.stderr
    assert aliases_of(project) == {"champion": "1"}
