"""The average of weights: what it is of, that it judges and is kept, that it survives a stop."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from small_dataset import (
    LEARNING,
    After,
    Stopped,
    models,
    pixels_once,
    said_once,
    small_project,
    with_conf,
)
from torch import Tensor

from glacier_core.config import Project
from glacier_core.model.predictor import ModelDescription, Predictor
from glacier_core.model.training import train


def checkpoints(project: Project) -> list[dict[str, Tensor]]:
    """Train; the tensors of the last checkpoint after each epoch."""
    found: list[dict[str, Tensor]] = []
    last = models(project) / "checkpoints/last.safetensors"
    train(project, [After(lambda _: found.append(load_file(last)))])
    return found


def part(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {n.removeprefix(kind): t for n, t in tensors.items() if n.startswith(kind)}


def best_row(project: Project) -> dict[str, str]:
    with (models(project) / "history.csv").open(newline="") as file:
        return max(csv.DictReader(file), key=lambda row: float(row["dev_mean_ice_iou"]))


def test_the_average_is_that_of_all_steps_with_few_of_the_first_kept(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One step an epoch, so that the checkpoints hold the weights after each of them."""
    settings = {"epochs": 5, "batch_size": 6, "ema_decay": 0.2, "patience": 9}
    project = small_project(tmp_path_factory, tmp_path, settings)
    found = checkpoints(project)
    content = json.loads((models(project) / "model.json").read_text())
    torch.manual_seed(project.params.seed)
    start = ModelDescription.from_json(content).build().state_dict()
    expected = {name: value.double() for name, value in start.items()}
    for kept, tensors in zip([1 / 10, 2 / 11, 0.2, 0.2, 0.2], found, strict=True):
        now = part(tensors, "model.")
        for name, value in now.items():
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
        average = part(tensors, "average.")
        assert average.keys() == now.keys()
        for name, value in average.items():
            if name.endswith("num_batches_tracked"):
                assert value == now[name]
            else:
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    moving = [name for name in average if name.endswith("running_mean")]
    assert moving
    assert any(not torch.equal(average[name], now[name]) for name in moving)


def test_the_average_is_what_dev_scores_judge_and_what_is_kept(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {**LEARNING, "ema_decay": 0.9}
    project = small_project(tmp_path_factory, tmp_path, settings)
    found = checkpoints(project)
    best = best_row(project)
    kept = load_file(models(project) / "model.safetensors")
    average = part(found[int(best["epoch"]) - 1], "average.")
    assert kept.keys() == average.keys()
    assert all(torch.equal(value, average[name]) for name, value in kept.items())
    assert any(
        not torch.equal(value, kept[name])
        for name, value in part(found[int(best["epoch"]) - 1], "model.").items()
    )
    predictor = Predictor.load(models(project), "cpu", "float32")
    [(name, _, truth)] = pixels_once(project, "dev")
    valid = truth != 255
    said = said_once(project, predictor, "dev")[name]
    ious = jaccard_score(truth[valid], said[valid], labels=[1, 2], average=None, zero_division=0)
    assert float(best["dev_mean_ice_iou"]) == pytest.approx(ious.mean(), abs=1e-9)
    assert ious.mean() > 0.2


@pytest.mark.parametrize("normalisation", ["batch", "none"])
def test_a_stopped_training_goes_on_with_its_average(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, normalisation: str
) -> None:
    def project(name: str) -> Project:
        settings = {"epochs": 5, "dropout": 0.3, "ema_decay": 0.95}
        made = small_project(tmp_path_factory, tmp_path / name, settings)
        return with_conf(made, model={"normalisation": normalisation})

    def stop(epoch: int) -> None:
        if epoch in (1, 3):
            raise Stopped

    whole, stopped = project("whole"), project("stopped")
    train(whole)
    for _ in range(2):
        with pytest.raises(Stopped):
            train(stopped, [After(stop)])
    train(stopped)
    for name in ("model.safetensors", "model.json", "history.csv"):
        assert (models(stopped) / name).read_bytes() == (models(whole) / name).read_bytes()


def test_without_an_average_none_is_stored_and_the_steps_are_the_same(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is averaged does not change what is trained."""
    plain, averaged = (
        checkpoints(small_project(tmp_path_factory, tmp_path / str(decay), {
            "epochs": 3, "dropout": 0.3, "ema_decay": decay}))
        for decay in (0.0, 0.9)
    )  # fmt: skip
    for one, other in zip(plain, averaged, strict=True):
        assert not part(one, "average.")
        assert part(other, "average.")
        assert all(torch.equal(value, other[name]) for name, value in one.items())
