"""The graph: what `dvc repro` runs, skips, restores and repeats, in a real repository."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import rasterio
import yaml
from workspace import REPOSITORY, environment, merge_yaml, run, small_workspace

MAPPING = {f"{stage}@LE07_SIM03_20101106" for stage in ("map", "outlines", "report")}
"""Stages after the model, as conf/maps.yaml asks for them."""

RAN = re.compile(r"Running stage '([^']+)'")


def stages(output: str) -> list[str]:
    """Stages that a `dvc repro` really ran."""
    return RAN.findall(output)


def outputs(folder: Path) -> dict[str, dict[str, str]]:
    """Hash of every output of every stage, as dvc.lock records them."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    return {
        stage: {out["path"]: out["md5"] for out in entry["outs"]}
        for stage, entry in lock["stages"].items()
    }


def scenes(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((folder / "conf/masking_paths.yaml").read_text())
    return loaded["scenes"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace after one `dvc repro`, and what that printed. Tests leave it as it is."""
    folder = small_workspace(tmp_path_factory.mktemp("pipeline") / "work")
    return folder, run(folder, "dvc", "repro")


@pytest.fixture
def again(done: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished workspace to change."""
    folder = tmp_path / "work"
    shutil.copytree(done[0], folder, symlinks=True)
    return folder


def test_one_command_runs_every_stage(done: tuple[Path, str]) -> None:
    folder, printed = done
    names = list(scenes(folder))
    expected = ["simulate@demo", *[f"mask@{n}" for n in names], *[f"slice@{n}" for n in names]]
    assert sorted(stages(printed)) == sorted(
        [*expected, "postprocess", "train", "evaluate", "register", *MAPPING]
    )
    for name in names:
        assert (folder / f"data/masks/{name}/mask_{name}.npy").is_file()
        assert (folder / f"data/masks/{name}/border_{name}.npy").is_file()
        assert (folder / f"data/slices/{name}/slice_{name}_img_0.npy").is_file()
        assert (folder / f"data/slices/{name}/slice_{name}_label_0.npy").is_file()
    for file in ("dataset/mask_metadata.csv", "dataset/slices.geojson", "dataset/statistics.json",
                 "runs/unet/models/model.safetensors", "evaluation/metrics.json"):  # fmt: skip
        assert (folder / "data" / file).is_file()
    assert list((folder / "data/runs/unet/logs").glob("events.out.tfevents.*"))


def test_a_second_run_does_nothing(done: tuple[Path, str]) -> None:
    printed = run(done[0], "dvc", "repro")
    assert stages(printed) == []
    assert "up to date" in run(done[0], "dvc", "status")


def test_nothing_but_the_lock_is_new_to_git(done: tuple[Path, str]) -> None:
    assert run(done[0], "git", "status", "--porcelain").split() == ["??", "dvc.lock"]


@pytest.mark.slow
def test_the_same_inputs_give_the_same_outputs(again: Path) -> None:
    before = outputs(again)
    run(again, "dvc", "repro", "--force")
    assert outputs(again) == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            {"train": {"learning_rate": 0.001}},
            {"train", "evaluate", "register", *MAPPING},
            marks=pytest.mark.slow,
        ),
        # After two epochs, the network finds no glacier: an outline drawn anew is the same.
        ({"outlines": {"correlation_m": 200}}, {"outlines@LE07_SIM03_20101106"}),
        # The threshold drops no slice here: what was made from equal slices stays as it is.
        ({"postprocess": {"min_valid_fraction": 0.101}}, {"postprocess"}),
        ({"evaluate": {"examples": 2}}, {"evaluate"}),
    ],
)
def test_a_changed_number_reruns_only_what_depends_on_it(
    again: Path, change: dict[str, Any], expected: set[str]
) -> None:
    merge_yaml(again / "params.yaml", change)
    assert set(stages(run(again, "dvc", "repro"))) == expected


@pytest.mark.slow
def test_a_new_scene_runs_its_own_stages_and_the_joint_ones(again: Path) -> None:
    first, entry = next(iter(scenes(again).items()))
    (again / "data/raw/more").mkdir()
    shutil.copy(again / entry["img_path"], again / "data/raw/more/LE07_NEW_20001025.tif")
    new = {**entry, "img_path": "data/raw/more/LE07_NEW_20001025.tif"}
    merge_yaml(again / "conf/masking_paths.yaml", {"scenes": {"LE07_NEW_20001025": new}})
    expected = {"mask@LE07_NEW_20001025", "slice@LE07_NEW_20001025", "postprocess", "train",
                "evaluate", "register", *MAPPING}  # fmt: skip
    assert set(stages(run(again, "dvc", "repro"))) == expected
    assert first in scenes(again)


@pytest.mark.slow
def test_an_experiment_with_another_number_is_seen_in_mlflow(again: Path) -> None:
    run(again, "git", "add", "-A")
    run(
        again, "git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "lock"
    )
    identity = {"GIT_AUTHOR_NAME": "T", "GIT_COMMITTER_NAME": "T",
                "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_EMAIL": "t@example.org"}  # fmt: skip
    run(again, "dvc", "exp", "run", "-S", "train.learning_rate=0.0007", **identity)
    # In a copy of the project that DVC throws away afterwards.
    run(again, "dvc", "exp", "run", "--temp", "-S", "train.learning_rate=0.0009", **identity)
    store = f"sqlite:///{again / 'mlflow.db'}"
    client = mlflow.MlflowClient(store, registry_uri=store)
    experiment = client.get_experiment_by_name("glacier")
    runs = client.search_runs([experiment.experiment_id])
    rates = {run.data.params["train.learning_rate"] for run in runs}
    assert rates == {"0.002", "0.0007", "0.0009"}
    assert all("test_mean_ice_iou" in run.data.metrics for run in runs)
    versions = client.search_model_versions("name = 'glacier-unet'")
    assert sorted(version.version for version in versions) in (["1", "2", "3"], [1, 2, 3])


def test_metrics_and_plots_are_shown_without_a_network(done: tuple[Path, str]) -> None:
    folder = done[0]
    shown = json.loads(run(folder, "dvc", "metrics", "show", "--json"))
    scores = shown[""]["data"]["data/evaluation/metrics.json"]["data"]
    assert {"unet", "forest", "threshold", "protocol"} <= set(scores)
    run(folder, "dvc", "plots", "show")
    page = (folder / "dvc_plots/index.html").read_text()
    assert "confusion.png" in page
    # What a browser would load: scripts and styles from elsewhere.
    assert not re.search(r"<(script|link)[^>]+(src|href)=[\"']?https?:", page)


@pytest.mark.slow
def test_a_fresh_clone_gets_raw_data_masks_and_slices_from_the_remote(
    again: Path, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    run(again, "dvc", "remote", "add", "--default", "storage", str(remote))
    run(again, "dvc", "push")
    run(again, "git", "add", "-A")
    run(
        again, "git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "lock"
    )
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(again), str(clone))
    run(clone, "dvc", "pull")
    assert "up to date" in run(clone, "dvc", "status")
    for kind in ("raw", "masks", "slices"):
        theirs = {p.relative_to(again): p.read_bytes() for p in (again / "data" / kind).rglob("*.*")
                  if p.is_file()}  # fmt: skip
        assert theirs
        assert all((clone / name).read_bytes() == content for name, content in theirs.items())
    assert stages(run(clone, "dvc", "repro")) == []
    # The model came from the cache, without a run: registering gives it one, from its files.
    assert "models:/glacier-unet/1 champion" in run(clone, "glacier", "register")


def works(repro: psutil.Popen) -> bool:
    """Whether a stage's own process runs under this `dvc repro`."""
    with contextlib.suppress(psutil.Error):
        return any("glacier" in " ".join(p.cmdline()) for p in repro.children(recursive=True))
    return False


def kill_in(folder: Path, stage: str, moment: float) -> None:
    """Start `dvc repro` and kill it, with all it started, in the midst of a stage."""
    repro = psutil.Popen(
        ["dvc", "repro"],
        cwd=folder,
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed = []
    for line in repro.stdout:
        printed.append(line)
        if f"Running stage '{stage}'" in line:
            break
    else:
        pytest.fail(f"{stage} did not run:\n{''.join(printed)}")
    while not works(repro):
        time.sleep(0.02)
    time.sleep(moment)
    assert works(repro), f"{stage} was over before it could be killed"
    os.killpg(repro.pid, signal.SIGKILL)
    repro.wait()


@pytest.mark.slow
def test_a_run_killed_in_each_step_ends_as_an_uninterrupted_one(
    done: tuple[Path, str], tmp_path: Path
) -> None:
    folder = small_workspace(tmp_path / "work")
    names = list(scenes(folder))
    # Seconds after its start: past the imports where it has work of seconds, never at its end.
    moments = {"simulate@demo": 0.8, f"mask@{names[1]}": 0.3, f"slice@{names[2]}": 0.3,
               "postprocess": 0.5, "train": 3.0, "evaluate": 2.5, "register": 2.0}  # fmt: skip
    for stage, moment in moments.items():
        kill_in(folder, stage, moment)
    run(folder, "dvc", "repro")
    assert outputs(folder) == outputs(done[0])
    assert list((folder / "data").rglob(".*partial*")) == []


# --- the real thing --------------------------------------------------------------------------


def full_workspace(folder: Path) -> Path:
    """The repository's files as they are, numbers included."""
    small_workspace(folder, change=True)
    shutil.copy(REPOSITORY / "params.yaml", folder)
    shutil.copy(REPOSITORY / "conf/masking_paths.yaml", folder / "conf")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_beats_both_baselines_on_ground_it_never_saw(tmp_path: Path) -> None:
    folder = full_workspace(tmp_path / "work")
    run(folder, "dvc", "repro", timeout=1400)
    metrics = json.loads((folder / "data/evaluation/metrics.json").read_text())
    mean = {name: metrics[name]["all"]["mean_ice_iou"] for name in ("unet", "forest", "threshold")}
    assert mean["unet"] > mean["forest"] > mean["threshold"]
    said = run(folder, "glacier", "-q", "summary")
    assert "glacier-unet version 1 (champion)" in said
    assert "evaluation/figures" in said
    check_true_change(folder)


def check_true_change(folder: Path) -> None:
    """The change that was simulated lies within what the maps say, on the ground they compare."""
    change = json.loads((folder / "data/change/SIM03/change.json").read_text())
    mapped, truth = [], []
    for scene in (change["before"], change["after"]):
        with rasterio.open(folder / f"data/maps/{scene}/{scene}_classes.tif") as file:
            mapped.append(file.read(1))
        with rasterio.open(folder / f"data/raw/demo/truth/{scene}_truth.tif") as file:
            truth.append(file.read(1))
            pixel_km2 = abs(file.transform.determinant) / 1e6
    both = (mapped[0] != 255) & (mapped[1] != 255)
    for number, name in ((1, "clean_ice"), (2, "debris")):
        was, now = (((one == number) & both).sum() * pixel_km2 for one in truth)
        said = change["km2"][name]
        assert abs((now - was) - said["change"]) <= said["err"], (name, now - was, said)
    was, now = (((one > 0) & both).sum() * pixel_km2 for one in truth)
    total = change["total"]
    assert abs((now - was) - total["change"]) <= total["err"], (now - was, total)
    # Ice went, and the maps saw that it did.
    assert total["change"] < 0


@pytest.mark.slow
def test_real_tiles_become_a_model_with_a_geographic_split(tmp_path: Path, real_data: Path) -> None:
    folder = full_workspace(tmp_path / "work")
    tiles = real_data / "himalaya_debris"
    run(folder, "glacier", "configure", str(tiles / "images"),
        "--outlines", f"clean_ice={tiles / 'outlines/clean_ice_silver.gpkg'}",
        "--outlines", f"debris={tiles / 'outlines/debris.gpkg'}",
        "--like", "conf/examples/himalaya_debris")  # fmt: skip
    # Enough steps for a network that has learned something, not for a good one.
    merge_yaml(folder / "params.yaml", {"train": {"epochs": 10, "crops_per_slice": 4}})
    run(folder, "dvc", "repro")
    metrics = json.loads((folder / "data/evaluation/metrics.json").read_text())
    assert metrics["protocol"]["split"] == "scenes"
    assert not metrics["protocol"]["leaky"]
    dataset = json.loads((folder / "data/dataset/dataset.json").read_text())
    assert {s["scene"] for s in dataset["splits"]["test"]} == {
        "tile003", "tile125", "tile126", "tile170",
    }  # fmt: skip
    assert 0.1 < metrics["unet"]["clean_ice"]["iou"] < 1
