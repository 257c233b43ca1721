"""A retraining with a new scene judges challenger and champion on the ground of before."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import edit_yaml
from small_dataset import build

from glacier_core.config import Project
from glacier_core.dataset.blocks import read_blocks
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.postprocessing import postprocess
from glacier_core.errors import InputError, ServiceError
from glacier_core.landsat.learning import learn_from
from glacier_core.model.evaluation import evaluate
from glacier_core.model.promotion import promote
from glacier_core.model.registry import Registration, register
from glacier_core.model.testground import keep_test_ground
from glacier_core.model.training import train
from glacier_core.settings import SPLITS

NAMES = [f"LE07_{letter}_20001025" for letter in "ABCDE"]
RECORD = "conf/blocks.geojson"
# With this seed, the fifth scene moves a block that chose the champion into the test split.
SEED = 2


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    mlflow.end_run()


def dataset_of(project: Project) -> Dataset:
    return postprocess(Project(project.root))


def judged(dataset: Dataset) -> dict[str, set[tuple[str, int]]]:
    return {name: {(s.scene, s.k) for s in dataset.splits[name]} for name in SPLITS}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    root = tmp_path_factory.mktemp("blocks") / "project"
    return build(root, scenes=dict.fromkeys(NAMES, "train"), split="blocks")


@pytest.fixture
def project(built: Project, tmp_path: Path) -> Project:
    """Four scenes, split by blocks; a fifth is there, masked and sliced, and not configured."""
    root = tmp_path / "project"
    shutil.copytree(built.root, root)
    scenes = {name: built.masking.scenes[name].model_dump() for name in NAMES[:4]}
    edit_yaml(root / "conf/masking_paths.yaml", scenes=scenes)
    third = {"train": 0.34, "dev": 0.33, "test": 0.33}
    edit_yaml(root / "params.yaml", seed=SEED, **{"postprocess.split": third})
    postprocess(Project(root))
    return Project(root)


def registered(project: Project) -> Registration:
    project = Project(project.root)
    train(project)
    evaluate(project)
    return register(project)


def add_fifth(project: Project, built: Project) -> Project:
    learn_from(project, {NAMES[4]: built.masking.scenes[NAMES[4]]})
    return Project(project.root)


def test_after_a_new_scene_the_test_blocks_are_the_same_and_the_comparison_is_a_proper_one(
    project: Project, built: Project
) -> None:
    assert registered(project).alias == "champion"
    before = judged(Dataset.open(project.dataset_folder))
    fresh = keep_test_ground(project)
    blocks = read_blocks(project.root / RECORD)
    assert fresh == sorted(blocks)
    assert len(fresh) == 4
    assert keep_test_ground(Project(project.root)) == []

    after = judged(dataset_of(add_fifth(project, built)))
    for name in SPLITS:
        assert {pair for pair in after[name] if pair[0] != NAMES[4]} == before[name]
    assert NAMES[4] in {scene for pairs in after.values() for scene, _ in pairs}
    assert registered(project).alias == "challenger"
    decision = promote(Project(project.root), challenger=None, wait=0, force=None)
    assert decision.outcome in ("kept", "promoted")
    assert (decision.version, decision.against) == ("2", "1")
    assert decision.verdict is not None
    assert set(decision.verdict.iou) >= {"clean_ice", "debris", "mean_ice"}
    assert not any("trained on" in sentence for sentence in decision.warnings)


def test_without_the_record_the_same_scene_makes_the_comparison_unfair_and_that_is_not_recorded(
    project: Project, built: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """What the test above would miss if the new scene moved no block by itself."""
    registered(project)
    before = judged(Dataset.open(project.dataset_folder))
    project = add_fifth(project, built)
    after = judged(dataset_of(project))
    assert before["test"] - after["test"]
    registered(project)
    with pytest.raises(InputError, match=r"would not be fair: version 1 \(champion\) was trained"):
        promote(Project(project.root), challenger=None, wait=0, force=None)
    with caplog.at_level(logging.WARNING):
        assert keep_test_ground(Project(project.root)) == []
    assert "not recorded: the champion (version 1) was trained on ground of its test" in caplog.text
    assert not (project.root / RECORD).exists()


def test_without_a_champion_or_blocks_nothing_is_recorded(project: Project) -> None:
    assert keep_test_ground(project) == []
    edit_yaml(project.root / "conf/postprocess.yaml", split="random")
    assert keep_test_ground(Project(project.root)) == []
    edit_yaml(project.root / "conf/postprocess.yaml", split="blocks")
    (project.dataset_folder / "blocks.geojson").unlink()
    assert keep_test_ground(Project(project.root)) == []
    assert not (project.root / RECORD).exists()


def test_a_record_that_the_dataset_does_not_keep_to_stays(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    path, table = project.root / RECORD, project.dataset_folder / "blocks.geojson"
    swapped = {"train": "dev", "dev": "test", "test": "train"}
    text = table.read_text()
    for old, new in swapped.items():
        text = text.replace(f'"split": "{old}"', f'"split": "-{new}"')
    path.write_text(text.replace('"-', '"'))
    before = path.read_bytes()
    assert keep_test_ground(project) == []
    assert path.read_bytes() == before
    assert "does not keep to conf/blocks.geojson" in caplog.text


def test_without_mlflow_nobody_can_tell_and_the_run_says_so(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match=r"MLflow at http://127\.0\.0\.1:9"):
        keep_test_ground(project)
    assert not (project.root / RECORD).exists()
