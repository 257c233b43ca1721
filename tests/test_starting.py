"""A training may begin with another model's weights, but not with what has seen the test ground."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import glacier
from safetensors.torch import load_file
from small_dataset import small_project, with_conf, with_params
from workspace import merge_yaml

from glacier_core.config import Project
from glacier_core.dataset.blocks import ground_by_block
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError
from glacier_core.files import write_json
from glacier_core.model.training import train

STILL = {"epochs": 1, "crops_per_slice": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
"""A training that moves no weight by more than rounding."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model that has learned a little."""
    project = small_project(tmp_path_factory, tmp_path_factory.mktemp("first"))
    project = with_params(project, epochs=2, crops_per_slice=2, learning_rate=0.01)
    train(project)
    return project.run_folder / "models"


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory, tmp_path)


def weights(folder: Path) -> dict[str, Any]:
    return {
        name: value
        for name, value in load_file(folder / "model.safetensors").items()
        if "running" not in name and "num_batches" not in name
    }


def test_the_first_step_is_made_from_the_other_models_weights(
    project: Project, learned: Path
) -> None:
    started = with_params(with_conf(project, start_from=str(learned)), **STILL)
    description = train(started)
    found, expected = weights(started.run_folder / "models"), weights(learned)
    assert found.keys() == expected.keys()
    assert all((found[name] - expected[name]).abs().max() < 1e-6 for name in expected)
    assert str(learned) in (description.started_from or "")
    alone = train(with_params(with_conf(started, start_from=None), **STILL))
    assert alone.training != description.training
    assert alone.started_from is None
    other = weights(started.run_folder / "models")
    assert any((other[name] - expected[name]).abs().max() > 0.01 for name in expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ["B2", "B5"]}, r"has the channels B2, B5; this dataset"),
        ({"classes": ["background", "debris", "clean_ice"]}, r"has the classes background, debris"),
    ],
)
def test_weights_that_mean_something_else_are_refused(
    project: Project, learned: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("model.safetensors", "model.json"):
        (folder / name).write_bytes((learned / name).read_bytes())
    content = json.loads((folder / "model.json").read_text())
    if "channels" in change:
        import torch
        from safetensors.torch import save_file

        content |= {key: content[key][:2] for key in ("means", "standard_deviations")}
        tensors = load_file(folder / "model.safetensors")
        first = "network.down.0.0.weight"
        tensors[first] = torch.clone(tensors[first][:, :2])
        save_file(tensors, folder / "model.safetensors")
    write_json(folder / "model.json", content | change)
    with pytest.raises(InputError, match=message):
        train(with_conf(project, start_from=str(folder)))


def test_weights_of_another_network_are_refused_with_its_numbers(
    project: Project, learned: Path
) -> None:
    wider = with_params(with_conf(project, start_from=str(learned)), base_channels=6)
    with pytest.raises(InputError, match=r"start_from: .*base_channels 4.*set the same"):
        train(wider)
    assert not (wider.run_folder / "models/model.json").exists()


@pytest.mark.parametrize(
    "other", [{"blocks": "residual"}, {"attention": True}, {"heads": "binary"}], ids=str
)
def test_weights_of_another_variant_are_refused_by_its_name(
    project: Project, learned: Path, other: dict[str, Any]
) -> None:
    started = with_conf(project, start_from=str(learned), model=other)
    said = r"blocks plain, attention false and heads classes; set the same"
    with pytest.raises(InputError, match=said):
        train(started)


def test_what_training_alone_learns_needs_no_start(project: Project, learned: Path) -> None:
    """A head for borders and factors begin anew beside weights that do not."""
    started = with_conf(project, start_from=str(learned), loss_weights="learned")
    train(with_params(started, **STILL, border_weight=1.0))
    found, expected = weights(started.run_folder / "models"), weights(learned)
    assert found.keys() == expected.keys()
    assert all((found[name] - expected[name]).abs().max() < 1e-6 for name in expected)


def test_a_model_that_has_seen_the_test_ground_is_refused(
    project: Project, learned: Path, tmp_path: Path
) -> None:
    dataset = Dataset.open(project.dataset_folder)
    content = json.loads((learned / "model.json").read_text())
    folder = tmp_path / "seen"
    for split, refused in (("train", False), ("test", True)):
        blocks = {name: shape.wkt for name, shape in ground_by_block(dataset, (split,)).items()}
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes((learned / "model.safetensors").read_bytes())
        write_json(folder / "model.json", content | {"blocks": blocks})
        started = with_params(with_conf(project, start_from=str(folder)), **STILL)
        if refused:
            with pytest.raises(InputError, match="was trained on ground of the test split"):
                train(started)
        else:
            known = train(started).blocks
            assert known is not None
            assert {f"{name} (before)" for name in blocks} < set(known)


def test_a_model_that_is_not_there_is_one_line(project: Project) -> None:
    merge_yaml(project.root / "conf/train.yaml", {"start_from": "data/runs/nothing/models"})
    done = glacier(project.root, "train")
    assert done.returncode == 2
    assert "data/runs/nothing/models: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
