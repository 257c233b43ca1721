"""MLflow, on SQLite: a run holds all that made a model, and a model is one version that serves."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from conftest import glacier
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from small_dataset import small_project, with_params
from workspace import BIN, environment, merge_yaml, run

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.model.card import model_card
from glacier_core.model.checkpoints import Row
from glacier_core.model.evaluation import evaluate
from glacier_core.model.predictor import ModelDescription, Predictor
from glacier_core.model.registry import Registration, register
from glacier_core.model.tracking import RunLogger, connect
from glacier_core.model.training import train

NAME = "glacier-unet"
TRAIN = {"epochs": 3, "crops_per_slice": 2, "learning_rate": 0.02}


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each project's own SQLite file, whatever the machine is set to; no run left open."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    left = mlflow.active_run()
    mlflow.end_run()
    assert left is None


def committed(project: Project) -> str:
    """Make the project a git repository; its commit."""
    root = project.root
    run(root, "git", "init", "-q", "-b", "main")
    (root / ".gitignore").write_text("/data/\n/mlflow.db\n/mlartifacts/\n")
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=Test", "-c", "user.email=test@example.org",
        "commit", "-q", "-m", "settings")  # fmt: skip
    return run(root, "git", "rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A committed project, trained and evaluated without MLflow; not to be changed."""
    root = tmp_path_factory.mktemp("trained") / "project"
    project = small_project(tmp_path_factory, root, TRAIN)
    committed(project)
    train(project)
    evaluate(project)
    return project


@pytest.fixture
def project(trained: Project, tmp_path: Path) -> Project:
    """A copy of it."""
    shutil.copytree(trained.root, tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def registered(
    trained: Project, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, Registration]:
    """Trained with MLflow listening, evaluated, registered; not to be changed."""
    root = tmp_path_factory.mktemp("registered") / "project"
    shutil.copytree(trained.root, root)
    shutil.rmtree(root / "data/runs")
    shutil.rmtree(root / "data/evaluation")
    project = Project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        train(project, [RunLogger(project)])
        evaluate(project)
        return project, register(project)


def store(project: Project) -> str:
    return f"sqlite:///{project.root / 'mlflow.db'}"


def client_of(project: Project) -> MlflowClient:
    return MlflowClient(tracking_uri=store(project), registry_uri=store(project))


@contextmanager
def looking_at(project: Project) -> Iterator[None]:
    """MLflow's own functions see this project's store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store(project))
        mlflow.set_tracking_uri(store(project))
        mlflow.set_registry_uri(store(project))
        yield


def history(project: Project) -> list[dict[str, str]]:
    with (project.run_folder / "models/history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def artifacts(client: MlflowClient, run_id: str, path: str = "") -> set[str]:
    found: set[str] = set()
    for item in client.list_artifacts(run_id, path):
        found |= artifacts(client, run_id, item.path) if item.is_dir else {item.path}
    return found


def check_complete(project: Project, run_id: str, client: MlflowClient | None = None) -> None:
    """Assert that a run holds everything that made the model, and how it went."""
    client = client or client_of(project)
    kept = client.get_run(run_id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == project.params.train.run_name

    params = kept.data.params
    assert params["seed"] == "1"
    for key, value in project.params.train.model_dump().items():
        if key != "class_weights":
            assert params[f"train.{key}"] == str(value)
    assert params["train.focus"] == "{}"
    assert params["train.class_weights.debris"] == "1.5"
    assert params["train.loss"] == "dice+cross_entropy"
    assert params["train.model.dropout_at"] == "deep"
    assert params["postprocess.channels"] == "['B2', 'B3', 'B5', 'elevation']"
    assert params["slice.size"] == "32"

    dataset = json.loads((project.dataset_folder / "dataset.json").read_text())
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project.root, capture_output=True, text=True, check=True
    )
    assert kept.data.tags["git.commit"] == head.stdout.strip()
    assert kept.data.tags["git.dirty"] == "false"
    assert kept.data.tags["dataset"] == dataset["fingerprint"]
    assert kept.data.tags["split"] == "scenes"
    [used] = kept.inputs.dataset_inputs
    assert dataset["fingerprint"].startswith(used.dataset.digest)

    rows = history(project)
    for name in rows[0]:
        if name == "epoch":
            continue
        by_step = client.get_metric_history(run_id, name)
        expected = {int(r["epoch"]): float(r[name]) for r in rows if r[name] != "undefined"}
        assert [m.step for m in by_step] == sorted(expected), name
        assert {m.step: m.value for m in by_step} == pytest.approx(expected), name
    scores = json.loads((project.evaluation_folder / "metrics.json").read_text())
    logged = kept.data.metrics
    for name in ("clean_ice", "debris"):
        assert logged[f"test_{name}_iou"] == scores["unet"][name]["iou"]
        assert logged[f"test_{name}_average_precision"] == scores["unet"][name]["average_precision"]
        assert logged[f"test_forest_{name}_iou"] == scores["forest"][name]["iou"]
    assert logged["test_mean_ice_iou"] == scores["unet"]["all"]["mean_ice_iou"]
    for name in ("clean_ice", "debris"):
        for key in ("ece", "area_bias_percent"):
            assert logged[f"test_{name}_{key}"] == scores["unet"][name][key]
    borders = {
        f"test_{name}_{key}": scores["unet"][name][key]
        for name in ("background", "clean_ice", "debris")
        for key in ("boundary_median_m", "boundary_p95_m")
    }
    defined = {key: value for key, value in borders.items() if value != "undefined"}
    assert defined
    assert {key: value for key, value in logged.items() if key in borders} == defined
    assert logged["test_ece"] == scores["unet"]["all"]["ece"]
    model = json.loads((project.run_folder / "models/model.json").read_text())
    assert logged["temperature"] == model["temperature"] != 1
    described = json.loads(Path(client.download_artifacts(run_id, "model.json")).read_text())
    assert described["temperature"] == model["temperature"]

    found = artifacts(client, run_id)
    wanted = {"model.json", "data/statistics.json", "settings/params.yaml"}
    wanted |= {f"settings/{name}.yaml" for name in ("masking_paths", "postprocess", "train")}
    wanted |= {f"checkpoints/{n}" for n in ("model.safetensors", "model.json", "history.csv")}
    wanted |= {
        f"evaluation/{path.relative_to(project.evaluation_folder)}"
        for path in project.evaluation_folder.rglob("*.*")
    }
    assert wanted <= found
    assert "evaluation/figures/confusion.png" in found
    statistics = client.download_artifacts(run_id, "data/statistics.json")
    expected_bytes = (project.root / "data/dataset/statistics.json").read_bytes()
    assert Path(statistics).read_bytes() == expected_bytes


# --- runs ------------------------------------------------------------------------------------


def test_a_run_logged_while_training_is_complete(registered: tuple[Project, Registration]) -> None:
    project, registration = registered
    check_complete(project, registration.run_id)
    metrics = client_of(project).get_run(registration.run_id).data.metrics
    assert metrics["images_per_second"] > 0


def test_a_model_trained_without_mlflow_gets_a_complete_run_from_its_files(
    project: Project,
) -> None:
    check_complete(project, register(project).run_id)


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "from_files"])
def test_a_run_shows_the_weights_that_balanced_came_to(project: Project, logged: bool) -> None:
    project = with_params(untrained(project), class_weights="balanced")
    said = train(project, [RunLogger(project)] if logged else [])
    evaluate(project)
    params = client_of(project).get_run(register(project).run_id).data.params
    assert params["train.class_weights"] == "balanced"
    assert said.class_weights is not None
    for name, weight in said.class_weights.items():
        assert float(params[f"train.class_weights.{name}"]) == pytest.approx(weight)
    assert said.class_weights["debris"] != 1.5


def test_the_experiment_opens_as_model_training(registered: tuple[Project, Registration]) -> None:
    project, registration = registered
    experiment = client_of(project).get_experiment_by_name("glacier")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert Path(experiment.artifact_location.removeprefix("file://")).parent == project.root
    url = registration.run_url
    assert f"/experiments/{experiment.experiment_id}/runs/{registration.run_id}" in url
    assert url.endswith("?workflowType=machine_learning")


class StopAfter:
    """An observer that interrupts training after an epoch."""

    def __init__(self, epoch: int) -> None:
        self.last = epoch

    def begin(self, description: ModelDescription, past: list[Row]) -> None: ...

    def epoch(self, row: Row) -> None:
        if row["epoch"] == self.last:
            raise KeyboardInterrupt

    def end(self, error: BaseException | None) -> None: ...


def untrained(project: Project) -> Project:
    shutil.rmtree(project.run_folder)
    return project


@pytest.mark.parametrize("logger_first", [True, False], ids=["logged", "not_logged"])
def test_a_training_that_was_stopped_goes_on_in_its_run_each_epoch_once(
    project: Project, logger_first: bool
) -> None:
    """Whether the epoch at which it was stopped was logged or not."""
    untrained(project)
    observers = [RunLogger(project), StopAfter(2)]
    with pytest.raises(KeyboardInterrupt):
        train(project, observers if logger_first else observers[::-1])
    client = client_of(project)
    [stopped] = client.search_runs([client.get_experiment_by_name("glacier").experiment_id])
    assert stopped.info.status == "KILLED"
    train(project, [RunLogger(project)])
    registration = register(project)
    assert registration.run_id == stopped.info.run_id
    check_complete(project, registration.run_id)


def test_a_training_done_twice_is_one_run_each_epoch_once(project: Project) -> None:
    for _ in range(2):
        train(untrained(project), [RunLogger(project)])
    check_complete(project, register(project).run_id)


def test_what_mlflow_missed_while_it_was_away_is_logged_afterwards(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """Training is stopped after epoch 1 and goes on; then MLflow goes away after epoch 2."""
    patch = pytest.MonkeyPatch()

    def away(*_: Any, **__: Any) -> None:
        raise MlflowException("connection refused")

    class GoesAway(StopAfter):
        def epoch(self, row: Row) -> None:
            super().epoch(row)
            if row["epoch"] == 2:
                for name in ("log_metric", "log_batch"):
                    patch.setattr(MlflowClient, name, away)

    untrained(project)
    with pytest.raises(KeyboardInterrupt):
        train(project, [RunLogger(project), GoesAway(1)])
    with caplog.at_level(logging.WARNING):
        train(project, [RunLogger(project), GoesAway(99)])
    patch.undo()
    assert caplog.text.count("MLflow cannot be reached") == 1
    check_complete(project, register(project).run_id)


@pytest.fixture
def server(project: Project) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts an MLflow server on the project's store, at the same address each time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    words = [BIN / "mlflow", "server", "--backend-store-uri", store(project), "--workers", "1",
             "--artifacts-destination", f"{project.root}/mlartifacts", "--port", str(port)]  # fmt: skip
    begun: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with (project.root.parent / "server.log").open("ab") as log:
            begun.append(
                subprocess.Popen(words, cwd=project.root.parent, stdout=log, stderr=log,
                                 env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
                                 start_new_session=True)
            )  # fmt: skip
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                return begun[-1]
            except OSError:
                assert begun[-1].poll() is None
                time.sleep(0.5)
        raise AssertionError("MLflow does not answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        yield start
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


@pytest.mark.slow
def test_an_mlflow_server_that_is_killed_in_a_training_gets_all_of_it_afterwards(
    project: Project, server: Callable[[], subprocess.Popen[bytes]]
) -> None:
    untrained(with_params(project, epochs=40, patience=40))
    committed(project)
    running = server()
    with (project.root.parent / "train.log").open("wb") as log:
        training = subprocess.Popen([BIN / "glacier", "train"], cwd=project.root, stderr=log)
    address = os.environ["MLFLOW_TRACKING_URI"]
    client = MlflowClient(address, address)

    def epochs_logged() -> int:
        experiment = client.get_experiment_by_name("glacier")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return len(client.get_metric_history(runs[0].info.run_id, "loss")) if runs else 0

    for _ in range(300):
        if epochs_logged() >= 2:
            break
        time.sleep(0.1)
    logged = epochs_logged()
    os.killpg(running.pid, signal.SIGKILL)
    running.wait(20)
    assert training.wait(100) == 0
    said = (project.root.parent / "train.log").read_text()
    assert said.count("MLflow cannot be reached; `glacier register` will log") >= 1
    assert "Traceback" not in said
    assert 2 <= logged < 40
    assert len(history(project)) == 40
    evaluate(project)
    told = glacier(project.root, "register")
    assert (told.returncode, told.stderr.count("\nerror: ")) == (1, 1)
    assert "run `glacier register` again when MLflow is back" in told.stderr

    server()
    assert epochs_logged() < 40
    for _ in range(2):
        told = glacier(project.root, "register")
        assert told.returncode == 0, told.stderr
        assert "models:/glacier-unet/1 champion" in told.stdout
    [version] = client.search_model_versions(f"name = '{NAME}'")
    check_complete(project, version.run_id, client)
    assert len(client.search_runs([client.get_experiment_by_name("glacier").experiment_id])) == 1


@pytest.mark.slow
def test_a_full_disk_keeps_the_model_and_the_next_registration_is_complete(
    project: Project,
) -> None:
    room = (project.run_folder / "models/model.safetensors").stat().st_size // 2

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    connect(project)  # the store is there, and cannot grow
    failed = glacier(project.root, "register", limit=little_room)
    assert failed.returncode == 1
    [line] = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert "The model stays in" in line
    done = register(project)
    assert (done.version, done.alias, done.new) == ("1", "champion", True)
    check_complete(project, done.run_id)


def test_a_run_whose_beginning_could_not_be_written_does_not_stay_incomplete(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because there was no room for the artifacts."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    untrained(project)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "log_artifact", full)
        train(project, [RunLogger(project)])
    check_complete(project, register(project).run_id)


def test_two_projects_in_one_process_keep_their_stores_apart(
    project: Project, trained: Project, tmp_path: Path
) -> None:
    other = Project(tmp_path / "other")
    shutil.copytree(trained.root, other.root)
    first, second = register(project), register(other)
    assert client_of(project).get_run(first.run_id).info.status == "FINISHED"
    assert client_of(other).get_run(second.run_id).info.status == "FINISHED"
    assert (second.version, second.new) == ("1", True)


def test_uncommitted_changes_are_marked(project: Project) -> None:
    (project.root / "params.yaml").open("a").write("\n# tried something\n")
    registration = register(project)
    tags = client_of(project).get_run(registration.run_id).data.tags
    assert tags["git.dirty"] == "true"


# --- versions --------------------------------------------------------------------------------


def test_the_first_version_is_champion_and_a_repeat_is_the_same_version(project: Project) -> None:
    first = register(project)
    assert (first.version, first.alias, first.new) == ("1", "champion", True)
    written = (project.root / "data/registration.json").read_bytes()
    again = register(project)
    assert (again.version, again.alias, again.new) == ("1", "champion", False)
    assert again.run_id == first.run_id
    client = client_of(project)
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    check_complete(project, first.run_id)
    assert (project.root / "data/registration.json").read_bytes() == written
    assert first.run_id not in written.decode()


def test_another_training_is_a_challenger_and_the_first_stays_champion(project: Project) -> None:
    first = register(project)
    weights = (project.run_folder / "models/model.safetensors").read_bytes()
    project = with_params(project, learning_rate=0.005)
    train(project)
    evaluate(project)
    second = register(project)
    assert (second.version, second.alias, second.new) == ("2", "challenger", True)
    assert second.run_id != first.run_id
    client = client_of(project)
    aliases = {k: str(v) for k, v in client.get_registered_model(NAME).aliases.items()}
    assert aliases == {"champion": "1", "challenger": "2"}
    # Each version serves its own weights.
    with looking_at(project):
        served = {
            alias: next(
                Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@{alias}")).rglob(
                    "model.safetensors"
                )
            ).read_bytes()
            for alias in ("champion", "challenger")
        }
    assert served["champion"] == weights
    assert served["challenger"] == (project.run_folder / "models/model.safetensors").read_bytes()
    # The first training again, from a cache say: its version is there, nothing is added.
    project = with_params(project, learning_rate=TRAIN["learning_rate"])
    train(project)
    evaluate(project)
    back = register(project)
    assert (back.version, back.alias, back.new) == ("1", "champion", False)


def test_a_registration_stopped_before_its_alias_is_mended_by_the_next(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", stop)
        with pytest.raises(KeyboardInterrupt):
            register(project)
    registration = register(project)
    assert (registration.version, registration.alias) == ("1", "champion")


@pytest.mark.slow
def test_of_two_registrations_at_once_one_makes_the_version(project: Project) -> None:
    register(project)
    train(untrained(with_params(project, learning_rate=0.03)))
    evaluate(project)
    begun = [
        subprocess.Popen([BIN / "glacier", "register"], cwd=project.root, env=environment(),
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=100)[0] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], said
    assert all("models:/glacier-unet/2 challenger" in text for text in said)
    client = client_of(project)
    assert {str(found.version) for found in client.search_model_versions()} == {"1", "2"}
    experiment = client.get_experiment_by_name("glacier")
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_an_alias_taken_away_by_hand_is_not_given_back(project: Project) -> None:
    register(project)
    project = with_params(project, learning_rate=0.005)
    train(project)
    evaluate(project)
    assert register(project).alias == "challenger"
    client = client_of(project)
    client.delete_registered_model_alias(NAME, "challenger")
    assert register(project).alias == ""
    assert set(client.get_registered_model(NAME).aliases) == {"champion"}


def lock(project: Project, **params: Any) -> dict[str, Any]:
    """Write a dvc.lock whose stage `train` made the model on disk; that stage's entry."""
    weights = project.run_folder / "models/model.safetensors"
    entry = {
        "cmd": "glacier train",
        "params": {"params.yaml": params},
        "outs": [
            {
                "path": weights.relative_to(project.root).as_posix(),
                "md5": hashlib.md5(weights.read_bytes()).hexdigest(),
            }
        ],
    }
    (project.root / "dvc.lock").write_text(yaml.safe_dump({"stages": {"train": entry}}))
    return entry


def test_versions_are_keyed_on_the_entry_of_train_in_dvc_lock(project: Project) -> None:
    entry = lock(project, seed=1)
    first = register(project)
    text = json.dumps(entry, sort_keys=True).encode()
    assert first.key == hashlib.sha256(text).hexdigest()
    assert register(project).new is False
    lock(project, seed=2)
    second = register(project)
    assert (second.version, second.new) == ("2", True)
    assert "data/dvc.lock" in artifacts(client_of(project), second.run_id)


def test_a_model_that_dvc_does_not_know_is_keyed_on_its_training(project: Project) -> None:
    lock(project)
    project = with_params(project, learning_rate=0.005)
    train(project)
    evaluate(project)
    description = json.loads((project.run_folder / "models/model.json").read_text())
    assert register(project).key == description["training"]


# --- serving ---------------------------------------------------------------------------------

_SERVE = """
import json, os, sys
import numpy as np
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/glacier-unet@champion")
tiles = np.load(sys.argv[2])
results, refused = {}, {}
for name in tiles.files:
    try:
        results[name] = model.predict({"pixels": tiles[name]})["probabilities"]
    except mlflow.exceptions.MlflowException as error:
        refused[name] = str(error)
np.savez(sys.argv[3], **results)
import glacier_core
print(json.dumps({"refused": refused, "code": glacier_core.__file__}))
"""


@pytest.fixture(scope="module")
def tiles() -> dict[str, Any]:
    random = np.random.default_rng(0)

    def tile(batch: int, height: int, width: int, channels: int = 4) -> Any:
        spread = np.array([40, 40, 40, 500, 1][:channels])[:, None, None]
        middle = np.array([90, 90, 80, 4900, 0][:channels])[:, None, None]
        values = random.normal(size=(batch, channels, height, width)) * spread + middle
        return values.astype(np.float32)

    unseen = tile(1, 64, 64)
    unseen[0, 1, 10:20, :30] = np.nan
    return {
        "one": tile(1, 64, 64),
        "three": tile(3, 64, 64),
        "oblong": tile(1, 70, 50),
        "three_oblong": tile(3, 70, 50),
        "unseen": unseen,
        "double": tile(1, 64, 64).astype(np.float64),
        "integer": tile(1, 64, 64).astype(np.int16),
        "few_channels": tile(1, 64, 64, channels=3),
        "many_channels": tile(1, 64, 64, channels=5),
    }


WRONG = {"double", "integer", "few_channels", "many_channels"}


@pytest.fixture(scope="module")
def served(
    registered: tuple[Project, Registration],
    tiles: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a process that knows nothing but the store's address gets from the champion."""
    project, _ = registered
    folder = tmp_path_factory.mktemp("elsewhere")
    np.savez(folder / "tiles.npz", **tiles)
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, f"sqlite:///{project.root / 'mlflow.db'}", "tiles.npz",
         "results.npz"],
        cwd=folder, env=environment(OMP_WAIT_POLICY="PASSIVE"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(folder / "results.npz") as results:
        return dict(results), json.loads(done.stdout.strip().splitlines()[-1])


def test_the_champion_served_in_a_fresh_process_says_what_the_predictor_says(
    registered: tuple[Project, Registration], served: Any, tiles: dict[str, Any]
) -> None:
    predictor = Predictor.load(registered[0].run_folder / "models")
    results, _ = served
    assert set(results) == set(tiles) - WRONG
    for name, found in results.items():
        assert found.dtype == np.float32
        assert found.shape == (tiles[name].shape[0], 3, *tiles[name].shape[2:])
        np.testing.assert_allclose(found, predictor.probabilities(tiles[name]), atol=1e-6)
    assert np.isnan(results["unseen"][0, :, 10:20, :30]).all()
    assert np.isfinite(results["unseen"][0, :, 20:]).all()


def test_the_served_model_refuses_other_types_and_channel_counts(served: Any) -> None:
    _, said = served
    assert set(said["refused"]) == WRONG
    for reason in said["refused"].values():
        assert "float32" in reason or "shape" in reason.lower()


def test_the_served_model_brings_its_own_code(
    registered: tuple[Project, Registration], served: Any
) -> None:
    _, said = served
    assert Path(said["code"]).is_relative_to(registered[0].root)


def test_no_file_of_the_registered_model_is_a_pickle(
    registered: tuple[Project, Registration], tmp_path: Path
) -> None:
    project, _ = registered
    with looking_at(project):
        folder = mlflow.artifacts.download_artifacts(
            f"models:/{NAME}@champion", dst_path=str(tmp_path)
        )
    found = [path for path in Path(folder).rglob("*") if path.is_file()]
    names = {path.name for path in found}
    assert {"MLmodel", "model.safetensors", "model.json", "serving.py"} <= names
    for path in found:
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".bin"}
        assert path.read_bytes()[:1] != b"\x80"  # how a pickle begins
        assert path.read_bytes()[:2] != b"PK"  # and the archive round one that torch writes


def test_the_version_says_which_data_made_it(registered: tuple[Project, Registration]) -> None:
    project, registration = registered
    version = client_of(project).get_model_version_by_alias(NAME, "champion")
    dataset = json.loads((project.dataset_folder / "dataset.json").read_text())
    assert version.tags["dataset"] == dataset["fingerprint"]
    assert version.run_id == registration.run_id
    with looking_at(project):
        metadata = mlflow.models.get_model_info(f"models:/{NAME}@champion").metadata
    statistics = json.loads((project.dataset_folder / "statistics.json").read_text())
    assert metadata["channels"] == statistics["bands"]
    assert metadata["means"] == statistics["means"]


def test_the_version_has_a_card_with_the_scores_of_its_evaluation(
    registered: tuple[Project, Registration],
) -> None:
    project, first = registered
    client = client_of(project)
    metrics = json.loads((project.evaluation_folder / "metrics.json").read_text())
    text = client.get_model_version(NAME, first.version).description
    assert len(text) <= 5000  # what MLflow's own tables hold
    path = client.download_artifacts(first.run_id, "model_card.html")
    page = Path(path).read_text()
    for card in (text, page):
        for name in ("clean_ice", "debris"):
            assert f"{metrics['unet'][name]['iou']:.3f}" in card
        assert f"{metrics['protocol']['test_slices']} test slices" in card
        assert all(channel in card for channel in ("B2", "elevation"))
        assert "What it learned from" in card
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page.replace("http-equiv", "")  # nothing from elsewhere


def test_a_leaky_split_stands_in_the_card(
    registered: tuple[Project, Registration],
) -> None:
    project, _ = registered
    models = project.run_folder / "models"
    description = ModelDescription.from_json(json.loads((models / "model.json").read_text()))
    metrics = json.loads((project.evaluation_folder / "metrics.json").read_text())
    metrics["protocol"]["leaky"] = True
    text, page = model_card(project, description, metrics)
    assert "LEAKS" in text
    assert "LEAKS" in page


def test_the_card_says_which_network_it_is(registered: tuple[Project, Registration]) -> None:
    project, _ = registered
    models = project.run_folder / "models"
    description = ModelDescription.from_json(json.loads((models / "model.json").read_text()))
    metrics = json.loads((project.evaluation_folder / "metrics.json").read_text())
    plain, _ = model_card(project, description, metrics)
    variant = replace(description.architecture, blocks="residual", attention=True, heads="binary")
    text, _ = model_card(project, replace(description, architecture=variant), metrics)
    for words in ("residual blocks", "attention gates", "a yes or no for each class"):
        assert words in text
        assert words not in plain


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "step"), [("data/runs", "glacier train"), ("data/evaluation", "glacier evaluate")]
)
def test_what_is_missing_is_said_with_the_step_that_makes_it(
    project: Project, gone: str, step: str
) -> None:
    shutil.rmtree(project.root / gone)
    with pytest.raises(InputError, match=f"no such file; run `{step}` first"):
        register(project)
    assert not (project.root / "mlflow.db").exists()


def test_a_store_that_cannot_be_reached_is_one_clear_error(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match="run `glacier register` again when MLflow is back"):
        register(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert register(project).version == "1"


def test_the_scores_of_one_model_are_never_given_to_another(project: Project) -> None:
    path = project.evaluation_folder / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["protocol"]["training"] = "another training"
    path.write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"judges another model .* run `glacier evaluate`"):
        register(project)


@pytest.mark.parametrize("uri", ["sqlite:///damaged.db", "postgresql://127.0.0.1:9/none"])
def test_a_damaged_or_unreachable_database_is_one_clear_error(
    project: Project, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    damaged = project.root / "damaged.db"
    damaged.write_bytes(b"this is not a database" * 100)
    # MLflow's own patience with a database is 100 seconds.
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("damaged.db", str(damaged)))
    with pytest.raises(ServiceError, match="run `glacier register` again when MLflow is back"):
        register(project)


def test_a_database_that_a_newer_mlflow_made_is_one_clear_error_and_no_training_fails_of_it(
    project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(project.root / "mlflow.db") as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('ffffffffffff')")
    database.close()
    with pytest.raises(ServiceError, match="run `glacier register` again when MLflow is back"):
        register(project)
    untrained(project)
    with caplog.at_level(logging.WARNING):
        train(project, [RunLogger(project)])
    assert "MLflow cannot be reached; `glacier register` will log: Can't locate" in caplog.text


def test_the_command_line_names_the_version_and_where_to_see_its_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_yaml(project.root / "conf/train.yaml", {"tracking": {"model_name": "my-glaciers"}})
    monkeypatch.chdir(project.root)
    said = CliRunner().invoke(main, ["register"], catch_exceptions=False).output.splitlines()
    assert said[0] == "models:/my-glaciers/1 champion"
    assert said[1].startswith("http://127.0.0.1:5000/#/experiments/")
    assert len(said) == 2
