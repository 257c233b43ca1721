"""Prefect's server and worker are killed in the middle of a training, and nobody looks on."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from prefect_server import Prefect, children_of, serving, wait_for
from safetensors import SafetensorError, safe_open
from workspace import merge_yaml, run

from flows.unattended import NAME
from glacier_core.config import Project
from glacier_core.model.tracking import connect

pytestmark = pytest.mark.slow

EPOCHS = 40
NOWHERE = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
LEASE = "prefect.server.concurrency.lease_storage.filesystem"


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    # As seldom as Prefect lets a run give a sign of life; prefect.toml has twice that.
    with serving(tmp_path_factory.mktemp("prefect"), PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30") as one:
        yield one


def kill(process: subprocess.Popen[bytes]) -> None:
    """What a power cut does: to a process, and to all that it started, at the same moment."""
    parent = psutil.Process(process.pid)
    family = [parent, *parent.children(recursive=True)]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=20)
    process.wait(20)


def epochs_done(folder: Path) -> int:
    try:
        last = folder / "data/runs/unet/models/checkpoints/last.safetensors"
        with safe_open(last, framework="pt") as file:
            return int(json.loads(file.metadata()["state"])["done"])
    except (OSError, SafetensorError):
        return 0


def places_taken(prefect: Prefect) -> int:
    limits = prefect.ask("/v2/concurrency_limits/filter")
    return sum(limit["active_slots"] for limit in limits)


def test_settings_of_the_folder_are_those_of_prefect(prefect: Prefect) -> None:
    # What the fixture sets is not asked for; everything else is the file's.
    said = run(prefect.folder, "prefect", "config", "view", "--show-sources")
    assert f"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE='{LEASE}'" in said
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY='60'" in said


def test_a_training_whose_worker_is_killed_makes_way_and_the_next_goes_on_with_it(
    prefect: Prefect,
) -> None:
    """The server is killed too, and comes back; the worker is killed while it runs one training,
    another one waits for its place, and of a retraining it has said that it is about to begin it."""
    folder = prefect.folder
    merge_yaml(folder / "params.yaml", {"train": {"epochs": EPOCHS, "patience": EPOCHS}})
    for _ in range(2):  # as set-up does, at each start
        prefect.run("python", "-m", "flows.unattended", "60")
    # Beside it is the trigger of glacier/retrain.
    [known] = [one for one in prefect.ask("/automations/filter") if one["name"] == NAME]
    assert known["trigger"]["within"] == 60
    server, worker = prefect.started[-1], prefect.work()
    first = prefect.begin("glacier/train")
    wait_for(lambda: epochs_done(folder) >= 3, "the third epoch", 180)
    for process in children_of(worker, "glacier train"):
        process.suspend()  # so that it is in the middle, however fast this machine is
    second = prefect.begin("glacier/train")
    wait_for(lambda: prefect.get(second)["state_name"] == "AwaitingConcurrencySlot", "a queue")

    kill(server)
    prefect.serve()
    now = prefect.get(first)
    assert now["state_name"] == "Running"
    lease = now["state"]["state_details"]["deployment_concurrency_lease_id"]
    renewal = urllib.request.Request(
        f"{prefect.url}/v2/concurrency_limits/leases/{lease}/renew",
        json.dumps({"lease_duration": 300}).encode(), {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(renewal, timeout=20) as answer:
        assert answer.status < 300

    tomorrow = datetime.now(UTC) + timedelta(days=1)  # so that no worker takes it
    taken = prefect.begin("glacier/retrain", due=tomorrow)
    said = {"type": "PENDING", "name": "Submitting"}
    assert prefect.ask(f"/flow_runs/{taken}/set_state", state=said)["status"] == "ACCEPT"
    assert places_taken(prefect) == 2
    kill(worker)
    done = epochs_done(folder)
    assert 3 <= done < EPOCHS
    prefect.work()
    ended = prefect.ended(first)
    assert ended["state_type"] == "CRASHED"
    assert "no sign of life for 60 s" in ended["state"]["message"]
    again = prefect.ended(second)
    assert again["state_type"] == "COMPLETED", again["state"]["message"]
    assert prefect.ended(taken)["state_type"] == "CRASHED"
    assert places_taken(prefect) == 0
    assert any(f"resuming after epoch {done}" in line for line in prefect.said(second))

    # Nothing twice: one run with each epoch once, one version, the bytes of an undisturbed training.
    client = connect(Project(folder))
    [version] = client.search_model_versions("name = 'glacier-unet'")
    [made] = client.search_runs([client.get_experiment_by_name("glacier").experiment_id])
    assert version.run_id == made.info.run_id
    assert made.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(made.info.run_id, "loss")]
    assert steps == list(range(1, EPOCHS + 1))
    apart = folder.parent / "undisturbed"
    shutil.copytree(folder, apart, symlinks=True)
    shutil.rmtree(apart / "data/runs")
    run(apart, "glacier", "train", **NOWHERE)
    weights = "data/runs/unet/models/model.safetensors"
    assert (apart / weights).read_bytes() == (folder / weights).read_bytes()
