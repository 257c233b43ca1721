"""Several processes train what one would, write once, and end together."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from small_dataset import LEARNING, small_project, with_conf
from workspace import BIN, environment, run

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset
from glacier_core.dataset.sampling import ShuffledBatches
from glacier_core.errors import InputError
from glacier_core.model import distributed
from glacier_core.model.checkpoints import Row
from glacier_core.model.distributed import Processes
from glacier_core.model.predictor import ModelDescription
from glacier_core.model.training import Observer, train

# Each process computes in one thread, one process too: with more, sums are rounded otherwise, and
# what Adam makes of a gradient near zero depends on its sign alone.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TOGETHER = ("torchrun", "--standalone", "--nproc-per-node", "2")
TRAININGS = """
import sys
from pathlib import Path
from glacier_core.config import Project
from glacier_core.model.training import train
for root in sys.argv[1:]:
    train(Project(Path(root)))
"""


def models(project: Project) -> Path:
    return project.root / "data/runs/unet/models"


def history(project: Project) -> list[dict[str, str]]:
    with (models(project) / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def epochs_done(project: Project) -> int:
    try:
        with safe_open(models(project) / "checkpoints/last.safetensors", framework="pt") as file:
            return int(json.loads(file.metadata()["state"])["done"])
    except (OSError, SafetensorError):
        return 0


class Stopped(Exception):
    """Raised in the middle of a training."""


class StopAfter:
    """An observer that ends the training after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def begin(self, description: ModelDescription, past: list[Row]) -> None: ...

    def epoch(self, row: Row) -> None:
        if row["epoch"] == self.epochs:
            raise Stopped

    def end(self, error: BaseException | None) -> None: ...


def alone(project: Project, observers: Sequence[Observer] = ()) -> Project:
    """The project after one process trained it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(project, observers)
    finally:
        torch.set_num_threads(threads)
    return project


def assert_same_training(found: Project, expected: Project) -> None:
    """History, the epoch that was best, and its weights, but for rounding."""
    rows, wanted = history(found), history(expected)
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in wanted]
    for row, other in zip(rows, wanted, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            undefined = "undefined" in (row[key], other[key])
            if undefined:
                assert row[key] == other[key], key
            else:
                assert float(row[key]) == pytest.approx(float(other[key]), abs=0.01), key
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-3)
    scores = [
        [0.0 if row["dev_mean_ice_iou"] == "undefined" else float(row["dev_mean_ice_iou"])
         for row in table]
        for table in (rows, wanted)
    ]  # fmt: skip
    assert np.argmax(scores[0]) == np.argmax(scores[1])
    weights, others = (load_file(models(p) / "model.safetensors") for p in (found, expected))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        distance = (value.double() - others[name].double()).norm()
        assert distance <= 0.01 * others[name].double().norm() + 1e-4, name


# --- parts of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 3, 4, 12, 13])
def test_parts_are_every_thing_once_in_order(length: int, count: int) -> None:
    things = list(range(length))
    parts = [things[Processes(rank, count).part(length)] for rank in range(count)]
    assert [thing for part in parts for thing in part] == things
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_batches_of_two_processes_put_together_are_those_of_one() -> None:
    def batches(processes: Processes) -> list[list[tuple[int, int]]]:
        sampler = ShuffledBatches(13, 4, processes.part, seed=5)
        sampler.epoch = 3
        assert len(list(sampler)) == len(sampler) == 4
        return list(sampler)

    whole = batches(Processes())
    assert [len(batch) for batch in whole] == [4, 4, 4, 1]
    assert sorted(number for batch in whole for _, number in batch) == list(range(13))
    halves = [batches(Processes(rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


# --- two processes against one ---------------------------------------------------------------


def unseen(project: Project, slices: Sequence[int]) -> None:
    """Make the labels of some training slices unknown throughout."""
    dataset = Dataset.open(project.dataset_folder)
    for number in slices:
        path = dataset.folder / "train" / dataset.splits["train"][number].label
        label = np.load(path)
        path.unlink()
        np.save(path, np.full_like(label, 255))


def as_it_is(_: Project) -> None:
    """All slices as they are."""


def five_slices_two_unseen(project: Project) -> None:
    """A last batch of one crop, so that a process has none; and parts without a valid pixel."""
    path = project.dataset_folder / "dataset.json"
    content = json.loads(path.read_text())
    content["splits"]["train"] = content["splits"]["train"][:5]
    path.write_text(json.dumps(content))
    unseen(project, [1, 2])


Variant = tuple[dict[str, Any], dict[str, Any], Callable[[Project], None]]
VARIANTS: dict[str, Variant] = {
    "without normalisation": ({}, {"model": {"normalisation": "none"}}, as_it_is),
    "batch normalisation": ({}, {}, as_it_is),
    "uneven, averaged, balanced, augmented": (
        {
            "crops_per_slice": 1,
            "epochs": 3,
            "ema_decay": 0.9,
            "class_weights": "balanced",
            "focus": {"debris": 0.3},
            "haze": 0.5,
            "channel_dropout": 0.2,
            "gaps": 0.3,
            "zoom": 0.25,
        },
        {},
        five_slices_two_unseen,
    ),
    "uneven, cross-entropy, plateau": (
        {"crops_per_slice": 1, "label_smoothing": 0.1, "epochs": 3},
        {"loss": "cross_entropy", "schedule": "plateau"},
        five_slices_two_unseen,
    ),
    "uneven, dice, penalised": (
        {"crops_per_slice": 1, "l2": 0.01, "clip_gradient": 0.1, "epochs": 3},
        {"loss": "dice", "model": {"normalisation": "none"}},
        five_slices_two_unseen,
    ),
    "uneven, all variants, borders, learned factors": (
        {"crops_per_slice": 1, "border_weight": 0.5, "epochs": 3},
        {
            "model": {"blocks": "residual", "attention": True, "heads": "binary"},
            "loss": "dice+0.5*cross_entropy",
            "loss_weights": "learned",
        },
        five_slices_two_unseen,
    ),
    "a part without a pixel in every batch": (
        {"batch_size": 2, "crops_per_slice": 1, "epochs": 3},
        {},
        lambda project: unseen(project, [0, 2, 4]),
    ),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Project, Project]]:
    """Of each variant, what one process trained and what two did."""
    folder = tmp_path_factory.mktemp("pairs")
    script = folder / "trainings.py"
    script.write_text(TRAININGS)
    found: dict[str, tuple[Project, Project]] = {}
    for number, (name, (params, conf, change)) in enumerate(VARIANTS.items()):
        both = []
        for kind in ("one", "two"):
            root = folder / f"{kind}{number}"
            project = small_project(tmp_path_factory, root, {**LEARNING, **params})
            both.append(with_conf(project, **conf))
            change(both[-1])
        found[name] = (alone(both[0]), both[1])
    run(folder, *TOGETHER, str(script), *(str(two.root) for _, two in found.values()))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_train_what_one_does(
    pairs: dict[str, tuple[Project, Project]], name: str
) -> None:
    one, two = pairs[name]
    assert_same_training(two, one)


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves(pairs: dict[str, tuple[Project, Project]]) -> None:
    def left(project: Project) -> list[str]:
        paths = (project.root / "data/runs").rglob("*")
        return sorted(path.name.partition(".tfevents")[0] for path in paths)

    for one, two in pairs.values():
        assert left(two) == left(one)
        assert left(two).count("events.out") == 1


# --- the command line ------------------------------------------------------------------------


def workers(process: psutil.Process) -> list[psutil.Process]:
    found = [child for child in process.children() if "glacier_core.cli" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def started(project: Project, *words: str) -> subprocess.Popen[str]:
    """`glacier train` by two processes, after its second epoch."""
    process = subprocess.Popen(
        [BIN / "glacier", *words], cwd=project.root, env=environment(**ONE_THREAD), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while epochs_done(project) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    return process


@pytest.mark.slow
def test_when_one_process_dies_all_end_and_one_process_can_go_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = {**LEARNING, "epochs": 15, "learning_rate": 0.003}
    project = small_project(tmp_path_factory, tmp_path / "killed", settings)
    process = started(project, "train", "--processes", "2")
    both = workers(psutil.Process(process.pid))
    assert len(both) == 2
    both[1].kill()
    said, _ = process.communicate(timeout=40)
    assert process.returncode == 1, said
    assert "error: process " in said
    assert "Run the same command again" in said
    assert not any(worker.is_running() for worker in both)
    done = epochs_done(project)
    assert 2 <= done < 15
    assert not (models(project) / "model.safetensors").exists()

    said = run(project.root, "glacier", "train", **ONE_THREAD)
    assert f"resuming after epoch {done}" in said
    expected = alone(small_project(tmp_path_factory, tmp_path / "alone", settings))
    assert_same_training(project, expected)

    mlflow.set_tracking_uri(f"sqlite:///{project.root / 'mlflow.db'}")
    try:
        runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
        assert len(runs) == 1
        assert runs[0].info.status == "FINISHED"
        points = mlflow.MlflowClient().get_metric_history(runs[0].info.run_id, "loss")
        assert [point.step for point in points] == list(range(1, 16))
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_processes_do_not_outlive_a_launcher_that_is_ended(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, ending: signal.Signals, code: int
) -> None:
    settings = {**LEARNING, "epochs": 2000}
    project = small_project(tmp_path_factory, tmp_path, settings)
    process = started(project, "train", "--processes", "2")
    both = workers(psutil.Process(process.pid))
    process.send_signal(ending)
    _, alive = psutil.wait_procs(both, timeout=10)
    assert len(both) == 2
    assert alive == []
    said, _ = process.communicate()
    assert process.returncode == code
    assert "SignalException" not in said


@pytest.mark.slow
def test_torchrun_goes_on_with_what_one_process_began(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A training that is stopped by its own patience is over after the same epoch."""
    settings = {**LEARNING, "epochs": 6, "patience": 2}
    expected = alone(small_project(tmp_path_factory, tmp_path / "alone", settings))
    project = small_project(tmp_path_factory, tmp_path / "joined", settings)
    with pytest.raises(Stopped):
        alone(project, [StopAfter(2)])
    assert epochs_done(project) == 2
    said = run(project.root, *TOGETHER, "--no-python", "glacier", "train")
    assert said.count("resuming after epoch 2") == 1
    assert said.count(", by 2 processes") == 1
    assert said.count("epoch 3/6") == 1
    assert_same_training(project, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"batch_size": 3}, "train.batch_size 3 is that of all processes together"),
        ({"learning_rate": 1e30, "clip_gradient": 1e30, "epochs": 6}, "the training diverged"),
    ],
    ids=["batch", "diverged"],
)
def test_what_all_processes_find_wrong_is_said_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, params: dict[str, Any], message: str
) -> None:
    project = small_project(tmp_path_factory, tmp_path, {**LEARNING, **params})
    with_conf(project, schedule="none")
    said = run(project.root, "glacier", "--quiet", "train", code=2, GLACIER_PROCESSES="2")
    assert said.count("error: ") == 1, said
    assert message in said
    assert said.count("\n") == 1, said
    assert not (models(project) / "model.safetensors").exists()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes on a machine with 2 GPUs"):
        distributed._take_gpu()
