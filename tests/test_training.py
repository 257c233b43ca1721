"""Training does what its settings say, on the training split, and survives being stopped."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import glacier
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from sklearn.metrics import jaccard_score
from small_dataset import (
    LEARNING,
    pixels_once,
    rewrite_labels,
    said_once,
    small_project,
    with_conf,
    with_params,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from workspace import BIN, environment, merge_yaml, run

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.errors import InputError
from glacier_core.model.checkpoints import Row
from glacier_core.model.predictor import ModelDescription, Predictor
from glacier_core.model.schedule import learning_rate
from glacier_core.model.training import train

FILES = ("model.safetensors", "model.json", "history.csv")
NOWHERE = {
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",  # the discard port: nobody listens
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
}

Make = Callable[..., Project]


@pytest.fixture
def make(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a copy of the small dataset, with changed `train` parameters."""
    numbers = iter(range(1000))

    def make(**params: Any) -> Project:
        return small_project(tmp_path_factory, tmp_path / f"project{next(numbers)}", params)

    return make


class Watch:
    """An observer that calls a function after each epoch."""

    def __init__(self, after: Callable[[int], None]) -> None:
        self.after, self.errors = after, []  # type: ignore[var-annotated]
        self.past: list[Row] = []

    def begin(self, description: ModelDescription, past: list[Row]) -> None:  # noqa: ARG002
        self.past = list(past)

    def epoch(self, row: Row) -> None:
        self.after(int(row["epoch"]))

    def end(self, error: BaseException | None) -> None:
        self.errors.append(error)


def models(project: Project) -> Path:
    return project.root / "data/runs" / project.params.train.run_name / "models"


def weights(project: Project) -> bytes:
    return (models(project) / "model.safetensors").read_bytes()


def contents(project: Project) -> dict[str, bytes]:
    return {name: (models(project) / name).read_bytes() for name in FILES}


def history(project: Project) -> list[dict[str, str]]:
    with (models(project) / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def column(project: Project, name: str) -> list[float]:
    return [float(row[name]) for row in history(project)]


def trained(project: Project) -> Project:
    train(project)
    return project


def without_dev_ice(project: Project, after: int = 1) -> Watch:
    """After so many epochs dev shows no ice any more: no later one can score better."""

    def blank(epoch: int) -> None:
        if epoch == after:
            rewrite_labels(Dataset.open(project.dataset_folder), "dev", 0)

    return Watch(blank)


# --- what is written -------------------------------------------------------------------------


def test_a_run_has_a_folder_of_its_own_with_models_and_logs(make: Make) -> None:
    project = trained(make(run_name="first-try", epochs=2))
    run_folder = project.root / "data/runs/first-try"
    assert sorted(path.name for path in run_folder.iterdir()) == ["logs", "models"]
    assert sorted(path.name for path in (run_folder / "models").iterdir()) == sorted(FILES)
    assert [path.name[:6] for path in (run_folder / "logs").iterdir()] == ["events"]


def test_history_has_a_row_an_epoch_with_the_scores_of_each_class(make: Make) -> None:
    rows = history(trained(make(epochs=3)))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    wanted = {"loss", "learning_rate", "dev_mean_ice_iou", "dev_pixel_accuracy"}
    wanted |= {
        f"dev_{name}_{score}"
        for name in ("background", "clean_ice", "debris")
        for score in ("iou", "precision", "recall", "dice")
    }
    assert set(rows[0]) == wanted | {"epoch"}


def tensorboard(project: Project, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(models(project).with_name("logs")))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_what_the_history_holds(make: Make) -> None:
    project = trained(make(epochs=3))
    for name in ("loss", "learning_rate", "dev_clean_ice_iou"):
        steps, values = zip(*tensorboard(project, name), strict=True)
        assert steps == (1, 2, 3)
        assert values == pytest.approx(column(project, name), rel=1e-5)


def test_the_model_carries_statistics_channels_classes_and_where_it_is_from(make: Make) -> None:
    project = make()
    said = train(project)
    content = json.loads((models(project) / "model.json").read_text())
    statistics = json.loads((project.root / "data/dataset/statistics.json").read_text())
    assert content["channels"] == statistics["bands"] == ["B2", "B3", "B5", "elevation"]
    assert content["means"] == statistics["means"]
    assert content["standard_deviations"] == statistics["standard_deviations"]
    assert content["classes"] == ["background", "clean_ice", "debris"]
    assert content["sources"] == ["data/raw/scenes/LE07_P_20001025.tif"]  # of the training alone
    assert Predictor.load(models(project)).description == said


def test_training_learns(make: Make) -> None:
    """The task is easy: who cannot do it has a fault, such as targets not beside their pixels."""
    project = trained(make(**LEARNING))
    losses = column(project, "loss")
    assert losses[-1] < 0.75 * losses[0]
    assert max(column(project, "dev_clean_ice_iou")) > 0.8
    assert max(column(project, "dev_debris_iou")) > 0.5


# --- the same again --------------------------------------------------------------------------


def test_one_seed_gives_one_result_and_another_seed_another(make: Make) -> None:
    first, second, other = make(epochs=2), make(epochs=2), make(epochs=2)
    merge_yaml(other.root / "params.yaml", {"seed": 2})
    trained(first)
    torch.rand(17)  # what was drawn before does not matter
    trained(second)
    assert contents(first) == contents(second)
    assert weights(trained(Project(other.root))) != weights(first)


def test_the_number_of_loader_threads_does_not_matter(make: Make) -> None:
    """Several epochs, with dropout: reading ahead must not draw from what dropout draws from."""
    expected = contents(trained(make(epochs=4, dropout=0.4, loader_threads=0)))
    for workers in (1, 2):
        project = trained(make(epochs=4, dropout=0.4, loader_threads=workers))
        assert contents(project) == expected


def test_the_name_of_a_run_does_not_matter(make: Make) -> None:
    assert contents(trained(make(run_name="a"))) == contents(trained(make(run_name="b")))


# --- every setting does something ------------------------------------------------------------

CHANGES: list[dict[str, Any]] = [
    {"batch_size": 3},
    {"crops_per_slice": 2},
    {"crop_size": 16},
    {"crop_size": None},
    {"learning_rate": 0.02},
    {"weight_decay": 0.1},
    {"warmup_epochs": 1},
    {"depth": 1},
    {"base_channels": 6},
    {"dropout": 0.5},
    {"class_weights": {"background": 1.0, "clean_ice": 1.0, "debris": 4.0}},
    {"class_weights": "balanced"},
    {"label_smoothing": 0.1},
    {"l1": 0.001},
    {"l2": 0.01},
    {"border_weight": 0.5},
    {"gain": 0.0},
    {"offset": 0.0},
    {"haze": 0.5},
    {"channel_dropout": 0.3},
    {"gaps": 1.0},
    {"zoom": 0.25},
    {"focus": {"debris": 0.5}},
    {"clip_gradient": 0.01},
    {"clip": 0.5},
    {"ema_decay": 0.9},
]
CONF_CHANGES: list[dict[str, Any]] = [
    {"model": {"dropout_at": "all"}},
    {"model": {"spatial_dropout": True}},
    {"model": {"normalisation": "none"}},
    {"model": {"blocks": "residual"}},
    {"model": {"attention": True}},
    {"model": {"heads": "binary"}},
    {"loss": "dice"},
    {"loss_weights": "learned"},
    {"loss": "cross_entropy"},
    {"optimizer": "adam"},
    {"schedule": "none"},
    {"augment": {"flips": False}},
    {"augment": {"quarter_turns": False}},
    {"precision": "bfloat16"},
]


@pytest.fixture(scope="module")
def usual_weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    project = small_project(tmp_path_factory, tmp_path_factory.mktemp("usual"))
    return weights(trained(project))


def identity(change: dict[str, Any]) -> str:
    return json.dumps(change).translate(str.maketrans("", "", '{}" '))


@pytest.mark.parametrize("change", CHANGES, ids=identity)
def test_every_number_of_params_yaml_changes_the_result(
    make: Make, usual_weights: bytes, change: dict[str, Any]
) -> None:
    assert weights(trained(make(**change))) != usual_weights


@pytest.mark.parametrize("change", CONF_CHANGES, ids=identity)
def test_every_method_of_train_yaml_changes_the_result(
    make: Make, usual_weights: bytes, change: dict[str, Any]
) -> None:
    assert weights(trained(with_conf(make(), **change))) != usual_weights


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("border_weight", "conf"),
    [
        (0.0, {}),
        (0.5, {"model": {"blocks": "residual", "attention": True, "heads": "binary"},
               "loss_weights": "learned"}),
    ],
    ids=["plain", "all variants"],
)  # fmt: skip
def test_a_compiled_training_saves_the_weights_of_the_plain_network(
    make: Make, border_weight: float, conf: dict[str, Any]
) -> None:
    tiny = {"depth": 1, "base_channels": 2, "dropout": 0.0, "border_weight": border_weight}
    plain = trained(with_conf(make(**tiny), **conf))
    compiled = trained(with_conf(make(**tiny), **conf, compile=True))
    found, expected = (load_file(models(p) / "model.safetensors") for p in (compiled, plain))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0.01, atol=1e-3, msg=name)
    assert any(value.ne(expected[name]).any() for name, value in found.items())  # it was compiled
    assert column(compiled, "loss") == pytest.approx(column(plain, "loss"), rel=1e-3)


def test_compiling_without_a_compiler_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    project = with_conf(make(), compile=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"no g\+\+ and no clang\+\+; install one, or set compile"):
        train(project)
    assert not models(project).exists()


def test_balanced_weights_are_said_and_train_as_the_same_numbers_written_down(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        balanced = trained(make(class_weights="balanced"))
    content = json.loads((models(balanced) / "model.json").read_text())
    given = content["class_weights"]
    assert list(given) == ["background", "clean_ice", "debris"]
    assert f"debris {given['debris']:.3f}" in caplog.text
    assert weights(trained(make(class_weights=given))) == weights(balanced)


def norms(project: Project, power: int) -> float:
    """Sum over convolution weights of |w| to a power."""
    tensors = load_file(models(project) / "model.safetensors")
    return sum(float((w.abs() ** power).sum()) for w in tensors.values() if w.ndim == 4)


@pytest.mark.parametrize(("key", "value", "power"), [("l1", 0.1, 1), ("l2", 1.0, 2)])
def test_penalties_make_weights_smaller_and_are_part_of_the_loss(
    make: Make, key: str, value: float, power: int
) -> None:
    plain, penalised = trained(make()), trained(make(**{key: value}))
    assert norms(penalised, power) < norms(plain, power)
    extra = column(penalised, "loss")[0] - column(plain, "loss")[0]
    assert extra > 0.5 * value * norms(penalised, power)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_makes_weights_smaller_and_is_not_part_of_the_loss(
    make: Make, optimizer: str
) -> None:
    plain, decayed = (
        trained(with_conf(make(weight_decay=decay, epochs=1), optimizer=optimizer))
        for decay in (0.0, 10.0)
    )
    assert norms(decayed, 2) < norms(plain, 2)
    assert column(decayed, "loss")[0] == pytest.approx(column(plain, "loss")[0], abs=0.5)


def moved(project: Project) -> float:
    """How far training took the weights from where they began."""
    description = json.loads((models(project) / "model.json").read_text())
    torch.manual_seed(project.params.seed)
    start = ModelDescription.from_json(description).build().state_dict()
    end = load_file(models(project) / "model.safetensors")
    return max(float((end[n] - w).abs().max()) for n, w in start.items() if w.ndim == 4)


def test_gradients_are_clipped_to_the_norm_given(make: Make) -> None:
    # Adam takes steps of one size whatever the gradient's, until it is small beside its 1e-8.
    usual, clipped = (
        trained(make(weight_decay=0.0)),
        trained(make(weight_decay=0.0, clip_gradient=1e-12)),
    )
    assert moved(usual) > 0.005
    assert moved(clipped) < 1e-4


# --- learning rate ---------------------------------------------------------------------------

STEPS = 3  # six slices, two in a batch
LAST = (STEPS - 0.5) / STEPS  # of an epoch, the moment that history shows


def rates(project: Project) -> list[float]:
    return column(project, "learning_rate")


def test_no_schedule_keeps_the_rate_after_the_warm_up(make: Make) -> None:
    project = make(epochs=4, warmup_epochs=2, learning_rate=0.01)
    assert rates(trained(with_conf(project, schedule="none"))) == pytest.approx(
        [0.01 * LAST / 2, 0.01 * (1 + LAST) / 2, 0.01, 0.01]
    )


def test_cosine_falls_to_nothing_over_the_epochs(make: Make) -> None:
    project = make(epochs=5, warmup_epochs=1, learning_rate=0.01)
    found = rates(trained(with_conf(project, schedule="cosine")))
    expected = [0.01 * (1 + math.cos(math.pi * (e + LAST - 1) / 4)) / 2 for e in range(1, 5)]
    assert found == pytest.approx([0.01 * LAST, *expected])
    assert found[-1] < 0.0001


def test_step_multiplies_the_rate_after_so_many_epochs(make: Make) -> None:
    project = make(epochs=5, learning_rate=0.01, step_epochs=2, step_factor=0.1)
    expected = [0.01, 0.01, 0.001, 0.001, 0.0001]
    assert rates(trained(with_conf(project, schedule="step"))) == pytest.approx(expected)


def test_plateau_multiplies_the_rate_after_so_many_epochs_without_a_better_score(
    make: Make,
) -> None:
    project = make(epochs=7, learning_rate=0.01, step_epochs=2, step_factor=0.1)
    project = with_conf(project, schedule="plateau")
    train(project, [without_dev_ice(project)])
    expected = [0.01, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    assert rates(project) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dev", "drops"),
    [
        ([], 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0),
        ([0.3, 0.2, 0.1], 1),
        ([0.3, 0.3, 0.3], 1),
        ([0.3, 0.2, 0.4, 0.3], 0),
        ([0.3, 0.2, 0.1, 0.4, 0.3, 0.2, 0.1, 0.1], 3),
        ([-math.inf, -math.inf], 1),
    ],
)
def test_plateau_counts_epochs_in_a_row(make: Make, dev: Sequence[float], drops: int) -> None:
    params = make(step_epochs=2, step_factor=0.5, learning_rate=1.0).params.train
    assert learning_rate("plateau", params, len(dev), dev) == 0.5**drops


def test_the_optimizer_takes_the_rate_that_history_shows(make: Make) -> None:
    """With a rate of nearly nothing from epoch 2 on, weights stay where epoch 1 left them."""

    def steps(**params: Any) -> list[float]:
        project = with_conf(make(epochs=3, step_epochs=1, **params), schedule="step")
        seen: list[dict[str, torch.Tensor]] = []
        last = models(project) / "checkpoints/last.safetensors"
        train(project, [Watch(lambda _: seen.append(load_file(last)))])
        names = [n for n, w in seen[0].items() if n.startswith("model.") and w.ndim == 4]
        return [
            max(float((after[n] - before[n]).abs().max()) for n in names)
            for before, after in itertools.pairwise(seen)
        ]

    assert min(steps(step_factor=1.0)) > 1e-3
    assert max(steps(step_factor=1e-9)) < 1e-6


# --- which data teach, which choose ----------------------------------------------------------


def test_dev_and_test_teach_nothing(make: Make) -> None:
    """Other labels and other images there: the same losses, and the same weights after an epoch.

    One epoch, since of several the best on dev is kept.
    """
    usual, other = make(), make()
    dataset = Dataset.open(other.dataset_folder)
    for split in ("dev", "test"):
        rewrite_labels(dataset, split, 1)
        for sample in dataset.splits[split]:
            path = dataset.folder / split / sample.img
            values = np.load(path)
            path.unlink()
            np.save(path, values[::-1] * 3 + 7)
    assert weights(trained(usual)) == weights(trained(other))
    assert column(usual, "loss") == column(other, "loss")
    usual, other = with_params(usual, epochs=3), with_params(other, epochs=3)
    assert column(trained(usual), "loss") == column(trained(other), "loss")
    assert column(usual, "dev_pixel_accuracy") != column(other, "dev_pixel_accuracy")


def test_the_training_split_teaches(make: Make) -> None:
    usual, other = make(), make()
    rewrite_labels(Dataset.open(other.dataset_folder), "train", 1)
    assert weights(trained(usual)) != weights(trained(other))


def test_ignored_pixels_teach_nothing(make: Make) -> None:
    """Whatever the outlines say where nothing was seen."""
    usual, other = make(), make()
    dataset = Dataset.open(other.dataset_folder)
    changed = 0
    for sample in dataset.splits["train"]:
        path = dataset.folder / "train" / sample.label
        label = np.load(path)
        changed += int((label[..., 1] == 255).sum())
        label[..., 1][label[..., 1] == 255] = 1  # the first channel still says ignored
        path.unlink()
        np.save(path, label)
    assert changed > 50
    assert weights(trained(usual)) == weights(trained(other))


def test_the_best_epoch_on_dev_is_kept_not_the_last(make: Make) -> None:
    settings = LEARNING | {"patience": 9}
    first = trained(with_conf(make(**settings | {"epochs": 3}), schedule="none"))
    project = with_conf(make(**settings | {"epochs": 5}), schedule="none")
    train(project, [without_dev_ice(project, after=3)])
    scores = column(project, "dev_mean_ice_iou")
    assert max(scores[:3]) > 0
    assert scores[3:] == [0.0, 0.0]  # the network says ice, where there is none
    assert weights(project) == weights(first)


def test_the_model_kept_scores_what_history_says_was_best_every_pixel_once(make: Make) -> None:
    project = trained(make(**LEARNING))
    predictor = Predictor.load(models(project), "cpu", "float32")
    [(name, _, truth)] = pixels_once(project, "dev")
    valid = truth != 255
    said = said_once(project, predictor, "dev")[name]
    ious = jaccard_score(truth[valid], said[valid], labels=[1, 2], average=None, zero_division=0)
    best = max(history(project), key=lambda row: float(row["dev_mean_ice_iou"]))
    assert float(best["dev_clean_ice_iou"]) == pytest.approx(ious[0], abs=1e-9)
    assert float(best["dev_debris_iou"]) == pytest.approx(ious[1], abs=1e-9)
    assert float(best["dev_mean_ice_iou"]) == pytest.approx(ious.mean(), abs=1e-9)
    assert max(ious) > 0.2


@pytest.mark.parametrize("patience", [1, 3])
def test_training_stops_after_so_many_epochs_without_a_better_score(
    make: Make, patience: int
) -> None:
    project = make(epochs=9, patience=patience)
    train(project, [without_dev_ice(project)])
    assert len(history(project)) == 1 + patience


# --- stopped and started again ---------------------------------------------------------------


class Stopped(BaseException):
    """As abrupt as an exception can be."""


def stop_at(epoch: int) -> Watch:
    def after(done: int) -> None:
        if done == epoch:
            raise Stopped

    return Watch(after)


def test_a_stopped_training_goes_on_and_ends_as_if_it_had_not_been(make: Make) -> None:
    expected = contents(trained(make(epochs=5, dropout=0.3)))
    project = make(epochs=5, dropout=0.3)
    for epoch in (1, 3):
        watch = stop_at(epoch)
        with pytest.raises(Stopped):
            train(project, [watch])
        assert isinstance(watch.errors[0], Stopped)
        assert not (models(project) / "model.safetensors").exists()
    watch = Watch(lambda _: None)
    train(project, [watch])
    assert [row["epoch"] for row in watch.past] == [1, 2, 3]
    assert watch.errors == [None]
    assert contents(project) == expected


@pytest.mark.parametrize("schedule", ["step", "plateau"])
def test_schedules_go_on_where_they_stood(make: Make, schedule: str) -> None:
    def project() -> Project:
        return with_conf(make(epochs=4, step_epochs=1, warmup_epochs=1), schedule=schedule)

    expected = contents(trained(project()))
    stopped = project()
    with pytest.raises(Stopped):
        train(stopped, [stop_at(2)])
    assert contents(trained(stopped)) == expected


def test_whichever_file_was_being_put_in_place_the_next_run_ends_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before each file in turn, in a folder that holds an older model.

    At no time do the weights of one model lie beside the description of the other.
    """
    settings = {"epochs": 2}
    older = trained(make(learning_rate=0.001))
    old = contents(older)
    expected = contents(trained(make(**settings)))
    replace = os.replace
    for nth in itertools.count(1):
        project = make(**settings)
        shutil.copytree(models(older), models(project))
        count = 0

        def stopping(source: Any, target: Any, nth: int = nth) -> None:
            nonlocal count
            count += 1
            if count == nth:
                raise Stopped
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopping)
            try:
                train(project)
            except Stopped:
                left = models(project)
                if (left / "model.json").exists():
                    for name in ("model.json", "model.safetensors"):
                        assert (left / name).read_bytes() == old[name]
            else:
                break
        assert contents(trained(project)) == expected
        assert sorted(path.name for path in models(project).iterdir()) == sorted(FILES)
    # Two epochs with a checkpoint each, at least one of them the best; and the three results.
    assert nth > 2 + 2 + 3


def test_a_training_that_is_done_is_done_again_to_the_same_end(make: Make) -> None:
    project = trained(make(epochs=2))
    expected = contents(project)
    assert contents(trained(project)) == expected


def test_other_settings_start_afresh(make: Make) -> None:
    project = make(epochs=4)
    with pytest.raises(Stopped):
        train(project, [stop_at(2)])
    project = with_params(project, learning_rate=0.003)
    watch = Watch(lambda _: None)
    train(project, [watch])
    assert watch.past == []
    assert contents(project) == contents(trained(make(epochs=4, learning_rate=0.003)))
    steps = [step for step, _ in tensorboard(project, "loss")]
    assert steps == [1, 2, 3, 4]


def test_other_loader_threads_go_on_with_the_same_training(make: Make) -> None:
    expected = contents(trained(make(epochs=4)))
    project = make(epochs=4)
    with pytest.raises(Stopped):
        train(project, [stop_at(2)])
    watch = Watch(lambda _: None)
    project = with_params(project, loader_threads=1)
    train(project, [watch])
    assert len(watch.past) == 2
    assert contents(project) == expected


def epochs_done(project: Project) -> int:
    path = models(project) / "checkpoints/last.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["state"])["done"])
    except (OSError, SafetensorError):
        return 0


def test_a_killed_training_ends_with_the_bytes_of_one_that_was_not(make: Make) -> None:
    settings = {"epochs": 12, "dropout": 0.3, "loader_threads": 1}
    expected = trained(make(**settings))
    project = make(**settings)
    process = subprocess.Popen(
        [BIN / "glacier", "train"],
        cwd=project.root,
        env=environment(**NOWHERE),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while epochs_done(project) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = epochs_done(project)
    assert 2 <= done < 12
    assert not (models(project) / "model.safetensors").exists()

    said = run(project.root, "glacier", "train", **NOWHERE)
    assert f"resuming after epoch {done}" in said
    assert contents(project) == contents(expected)
    losses = [value for _, value in tensorboard(project, "loss")]
    assert losses == pytest.approx(column(project, "loss"), rel=1e-5)


def test_a_full_disk_ends_a_training_in_one_line_and_keeps_its_last_epoch(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    expected = trained(make(epochs=6))
    project = make(epochs=6)
    with pytest.raises(Stopped):
        train(project, [stop_at(3)])
    checkpoint = models(project) / "checkpoints/last.safetensors"
    before, room = checkpoint.read_bytes(), checkpoint.stat().st_size // 2

    def little_room() -> None:
        """What the system answers at this size is what a full disk gives."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    failed = glacier(project.root, "train", limit=little_room)
    assert failed.returncode == 1
    [line] = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert "no room left to write it" in line
    assert "Traceback" not in failed.stderr
    assert checkpoint.read_bytes() == before
    assert not list(project.run_folder.rglob(".*"))
    done = glacier(project.root, "train")
    assert done.returncode == 0, done.stderr
    assert "resuming after epoch 3" in done.stderr
    assert contents(project) == contents(expected)


# --- what is refused -------------------------------------------------------------------------


def test_a_rate_that_diverges_is_one_clear_error(make: Make) -> None:
    project = with_conf(make(epochs=6, learning_rate=1e30, clip_gradient=1e30), schedule="none")
    with pytest.raises(InputError, match=r"diverged.*train\.learning_rate") as caught:
        train(project)
    assert "\n" not in str(caught.value)
    assert not (models(project) / "model.safetensors").exists()


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_split_without_ice_is_refused(make: Make, split: str) -> None:
    project = make()
    rewrite_labels(Dataset.open(project.dataset_folder), split, 0)
    with pytest.raises(InputError, match=f"the {split} split shows no pixel of clean_ice, debris"):
        train(project)
    assert not models(project).exists()


@pytest.mark.parametrize("split", ["train", "dev"])
def test_an_empty_split_is_refused(make: Make, split: str) -> None:
    project = make()
    path = project.dataset_folder / "dataset.json"
    content = json.loads(path.read_text())
    content["splits"][split] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"the {split} split is empty"):
        train(project)


def test_statistics_of_another_dataset_are_refused(make: Make) -> None:
    project = make()
    path = project.root / "data/dataset/statistics.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"dataset": "another"}))
    with pytest.raises(InputError, match="belongs to another dataset"):
        train(project)


@pytest.mark.parametrize("name", ["statistics.json", "dataset.json"])
def test_a_missing_dataset_is_named_with_the_step_that_makes_it(make: Make, name: str) -> None:
    project = make()
    (project.dataset_folder / name).unlink()
    with pytest.raises(InputError, match="glacier postprocess") as caught:
        train(project)
    assert name in str(caught.value)


def test_the_command_line_says_what_is_wrong_in_one_line_and_exit_code_2(make: Make) -> None:
    project = make()
    shutil.rmtree(project.dataset_folder)
    said = run(project.root, "glacier", "train", code=2, **NOWHERE)
    assert said.startswith("error: data/dataset/dataset.json: no such file")
    assert said.count("\n") == 1


# --- MLflow away -----------------------------------------------------------------------------


def test_training_goes_on_without_mlflow_and_says_so(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from glacier_core.model.tracking import RunLogger

    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    expected = contents(trained(make(epochs=2)))
    project = make(epochs=2)
    with caplog.at_level(logging.WARNING):
        train(project, [RunLogger(project)])
    assert contents(project) == expected
    assert "MLflow cannot be reached" in caplog.text
    assert "glacier register" in caplog.text
