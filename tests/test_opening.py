"""A model is opened by its name in the registry or its folder, and none of its code is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import copy_settings, edit_yaml, glacier, make_scene
from mlflow import MlflowClient
from test_predictor import CHANNELS, raw, save_fresh

from glacier_core.cli import main
from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError
from glacier_core.model import opening
from glacier_core.model.fetching import fetch
from glacier_core.model.opening import open_model
from glacier_core.model.predictor import Predictor
from glacier_core.model.registry import register

NAME = "glacier-unet"


def _register(project: Project, training: str, **changes: Any) -> None:
    """Register a model of random weights by the real step, after what comes before it by hand."""
    models, evaluation = project.run_folder / "models", project.evaluation_folder
    statistics = project.root / project.postprocess.statistics_path
    for folder in (models, evaluation, statistics.parent):
        folder.mkdir(parents=True, exist_ok=True)
    save_fresh(models, training=training, **changes)
    (models / "history.csv").write_text("epoch,loss\n1,0.5\n")
    statistics.write_text("{}")
    scores = {name: {"iou": 0.5} for name in project.postprocess.classes}
    protocol = {"training": training, "split": "scenes", "leaky": False}
    protocol |= {"test_slices": 1, "test_blocks": 1}
    (evaluation / "metrics.json").write_text(json.dumps({"protocol": protocol, "unet": scores}))
    register(project)


@pytest.fixture(scope="module", autouse=True)
def _own_store() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With a champion, version 1, and a challenger, version 2; tests leave them as they are."""
    root = tmp_path_factory.mktemp("opening") / "project"
    copy_settings(root)
    edit_yaml(root / "conf/train.yaml", device="cpu", precision="float32")
    project = Project(root)
    for version, training in enumerate(("t" * 64, "u" * 64), start=1):
        _register(project, training, means=[90.0 * version, 60.0, 5000.0])
        shutil.copytree(project.run_folder / "models", root / f"version_{version}")
    make_scene(root / "a.tif", shape=(30, 40))
    return project


def client_of(project: Project) -> MlflowClient:
    store = f"sqlite:///{project.root / 'mlflow.db'}"
    return MlflowClient(tracking_uri=store, registry_uri=store)


def place_of(project: Project, version: int) -> Path:
    """Where the store keeps the files of a version."""
    source = client_of(project).get_model_version(NAME, str(version)).source
    return project.root / "mlartifacts" / source.replace("models:/", "models/") / "artifacts"


@pytest.fixture
def kept(project: Project) -> Iterator[Path]:
    """The files of version 2, for a test to change; afterwards they are as before."""
    place = place_of(project, 2)
    before = place.with_name("before")
    shutil.copytree(place, before)
    yield place
    shutil.rmtree(place, ignore_errors=True)
    before.rename(place)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch in this process, which has loaded MLflow already, and not in one of its own."""
    monkeypatch.setattr(opening, "_fetched", fetch)


@pytest.fixture
def empty_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, empty at first."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


# --- found -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("uri", "version"),
    [
        (f"models:/{NAME}@champion", 1),
        (f"models:/{NAME}@challenger", 2),
        (f"models:/{NAME}/1", 1),
        (f"models:/{NAME}/2", 2),
    ],
)
def test_a_registered_model_is_opened_by_alias_or_version(
    project: Project, empty_temporary: Path, uri: str, version: int
) -> None:
    name, predictor = open_model(project, uri)
    assert name == f"models:/{NAME}/{version}"
    assert predictor.description.training == ("t" if version == 1 else "u") * 64
    expected = Predictor.load(project.root / f"version_{version}", "cpu", "float32")
    pixels = raw(1, 20, 24)
    np.testing.assert_array_equal(predictor.probabilities(pixels), expected.probabilities(pixels))
    assert list(empty_temporary.iterdir()) == []


@pytest.mark.usefixtures("quickly")
def test_a_moved_alias_opens_the_other_version(project: Project) -> None:
    client = client_of(project)
    client.set_registered_model_alias(NAME, "trusted", "1")
    assert open_model(project, f"models:/{NAME}@trusted")[0] == f"models:/{NAME}/1"
    client.set_registered_model_alias(NAME, "trusted", "2")
    assert open_model(project, f"models:/{NAME}@trusted")[0] == f"models:/{NAME}/2"


@pytest.mark.parametrize("absolute", [False, True])
def test_a_folder_is_opened_without_mlflow(
    project: Project, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    uri = str(project.root / "version_2") if absolute else "version_2"
    name, predictor = open_model(project, uri)
    assert name == f"{uri} (training uuuuuuuu)"
    assert predictor.description.channels == CHANNELS


def test_device_and_precision_are_those_of_the_settings(project: Project, tmp_path: Path) -> None:
    root = tmp_path / "project"
    copy_settings(root)
    shutil.copytree(project.root / "version_1", root / "model")
    edit_yaml(root / "conf/train.yaml", device="cpu", precision="bfloat16")
    _, predictor = open_model(Project(root), "model")
    assert predictor.device.type == "cpu"
    assert str(predictor.autocast) == "torch.bfloat16"


@pytest.mark.usefixtures("quickly")
def test_the_command_maps_with_the_champion_where_no_model_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    done = CliRunner().invoke(main, ["map", "a.tif", "--out", "maps"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = json.loads((project.root / "maps/a/map.json").read_text())
    assert said["models"] == [f"models:/{NAME}/1"]
    assert said["trainings"] == ["t" * 64]


# --- not found -------------------------------------------------------------------------------


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    "uri",
    [
        f"models:/{NAME}/7",
        f"models:/{NAME}@nobody",
        "models:/nobody@champion",
        "models:/nobody/1",
        f"models:/{NAME}",
        f"models:/{NAME}/latest",
        "models:/",
    ],
)
def test_a_name_version_or_alias_that_does_not_exist_is_one_clear_error(
    project: Project, uri: str
) -> None:
    with pytest.raises(InputError) as caught:
        open_model(project, uri)
    said = str(caught.value)
    assert said.startswith(f"{uri}: no such model at sqlite:///{project.root / 'mlflow.db'} (")
    assert "`dvc repro` trains and registers one" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "uri", ["nowhere", "params.yaml", "models:glacier-unet/1", "runs:/x/model"]
)
def test_a_folder_that_does_not_exist_is_one_clear_error(project: Project, uri: str) -> None:
    with pytest.raises(InputError, match="no such folder; a model is a folder with") as caught:
        open_model(project, uri)
    assert str(caught.value).startswith(uri)


def test_a_folder_without_a_model_is_one_clear_error(project: Project) -> None:
    with pytest.raises(InputError, match=r"conf.*no trained model"):
        open_model(project, "conf")


def test_the_command_ends_with_2_for_a_model_that_does_not_exist(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    words = ["map", "a.tif", "--model", f"models:/{NAME}@nobody", "--out", "m"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: models:/{NAME}@nobody: no such model")
    assert not (project.root / "m").exists()


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("what", ["nothing of ours", "gone"])
def test_a_registered_model_that_is_none_of_ours_is_named(
    project: Project, tmp_path: Path, what: str
) -> None:
    client = client_of(project)
    name = f"foreign-{what.replace(' ', '-')}"
    client.create_registered_model(name)
    (tmp_path / "foreign/artifacts").mkdir(parents=True)
    source = tmp_path / ("foreign" if what != "gone" else "nowhere")
    client.create_model_version(name, source=source.as_uri())
    with pytest.raises(InputError) as caught:
        open_model(project, f"models:/{name}/1")
    assert f"models:/{name}/1: " in str(caught.value)
    assert "\n" not in str(caught.value)


# --- MLflow away -----------------------------------------------------------------------------


def test_a_damaged_store_is_one_clear_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the three that SQLAlchemy says of it."""
    (tmp_path / "damaged.db").write_bytes(b"this is not a database" * 100)
    uri = f"sqlite:///{tmp_path / 'damaged.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ServiceError) as caught:
        open_model(project, f"models:/{NAME}@champion")
    said = str(caught.value)
    assert said.startswith(f"MLflow at {uri}: ")
    assert "file is not a database" in said
    assert "\n" not in said


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////proc/nowhere/mlflow.db"])
def test_a_store_that_is_away_is_no_missing_model(
    project: Project, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError) as caught:
        open_model(project, f"models:/{NAME}@champion")
    assert str(caught.value).startswith(f"MLflow at {uri}: ")
    assert "refused" in str(caught.value) or "No such file" in str(caught.value)


@pytest.mark.slow
def test_the_command_ends_with_1_where_mlflow_is_away_and_works_when_it_is_back(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 2: trying again later helps."""
    words = ("map", "a.tif", "--model", f"models:/{NAME}/2", "--out", "later")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        done = glacier(project.root, *words)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: MLflow at http://127.0.0.1:9: ")
    assert not (project.root / "later").exists()
    monkeypatch.setattr(opening, "_fetched", fetch)
    monkeypatch.chdir(project.root)
    assert CliRunner().invoke(main, words, catch_exceptions=False).exit_code == 0


# --- damaged ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("damage", ["half", "gone"])
def test_a_damaged_registered_model_is_named_as_it_was_asked_for(
    project: Project, kept: Path, empty_temporary: Path, name: str, damage: str
) -> None:
    """Not by the temporary folder into which it was fetched."""
    path = kept / "artifacts" / name
    if damage == "half":
        path.write_bytes(path.read_bytes()[:60])
    else:
        path.unlink()
    with pytest.raises(InputError) as caught:
        open_model(project, f"models:/{NAME}@challenger")
    assert str(caught.value).startswith(f"models:/{NAME}")
    assert "damaged" in str(caught.value) or "no " in str(caught.value)
    assert list(empty_temporary.iterdir()) == []


# --- no code ---------------------------------------------------------------------------------


class _Trap:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def test_code_that_the_registry_holds_is_not_run(
    project: Project, kept: Path, tmp_path: Path
) -> None:
    """Neither what MLflow would run on loading, nor modules of known names, nor pickles."""
    trace = tmp_path / "trace"
    evil = f"import pathlib\npathlib.Path({str(trace)!r}).mkdir(exist_ok=True)\n"
    for path in [kept / "serving.py", *kept.rglob("code/**/*.py")]:
        path.write_text(evil + path.read_text())
    for name in ("evil.py", "sitecustomize.py", "glacier_core.py", "torch.py"):
        for folder in (kept, kept / "code", kept / "artifacts"):
            (folder / name).write_text(evil)
    for name in ("python_model.pkl", "artifacts/model.pkl", "artifacts/model.pt"):
        (kept / name).write_bytes(pickle.dumps(_Trap(trace)))
    mlmodel = (kept / "MLmodel").read_text()
    assert "loader_module: mlflow.pyfunc.loaders.code_model" in mlmodel
    (kept / "MLmodel").write_text(mlmodel.replace("mlflow.pyfunc.loaders.code_model", "evil"))
    (project.root / "mlflow.py").write_text(evil)  # nor what lies about in the user's folder
    uri = f"models:/{NAME}@challenger"
    done = glacier(project.root, "map", "a.tif", "--model", uri, "--out", "evil")
    (project.root / "mlflow.py").unlink()
    assert done.returncode == 0, done.stderr
    said = json.loads((project.root / "evil/a/map.json").read_text())
    assert said["models"] == [f"models:/{NAME}/2"]
    assert not trace.exists()
    # The trap does work, for whoever loads the model as MLflow does.
    load = f"import mlflow; mlflow.pyfunc.load_model({str(kept)!r})"
    subprocess.run([sys.executable, "-c", load], cwd=tmp_path, capture_output=True, check=False)
    assert trace.exists()


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_pickle_in_place_of_a_registered_file_is_refused_and_not_run(
    project: Project, kept: Path, tmp_path: Path, name: str
) -> None:
    trace = tmp_path / "trace"
    (kept / "artifacts" / name).write_bytes(pickle.dumps(_Trap(trace)))
    with pytest.raises(InputError, match="damaged"):
        open_model(project, f"models:/{NAME}/2")
    assert not trace.exists()
