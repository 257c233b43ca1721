"""The README's Prefect sequence, against a real server, pool and worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from workspace import environment, merge_yaml, run, small_workspace

pytestmark = pytest.mark.slow


@dataclass
class Prefect:
    """A workspace with its own Prefect server and worker, both of this test alone."""

    folder: Path
    url: str
    settings: dict[str, str]
    worker_log: Path

    def ask(self, path: str, **body: Any) -> Any:
        """POST to the server's API."""
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def run(self, *words: str, code: int = 0) -> str:
        return run(self.folder, *words, code=code, **self.settings)

    def train(self, code: int = 0) -> str:
        """`prefect deployment run glacier/train --watch`, as the README says it."""
        return self.run("prefect", "deployment", "run", "glacier/train", "--watch",
                        "--watch-timeout", "300", code=code)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(process: subprocess.Popen[bytes]) -> None:
    for sent in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sent)
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                continue


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    base = tmp_path_factory.mktemp("prefect")
    folder = small_workspace(base / "work", change=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(base / "home"),
        "PREFECT_API_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    log = base / "worker.log"
    started = []

    def start(name: str, *words: str) -> None:
        with (base / f"{name}.log").open("wb") as output:
            started.append(
                subprocess.Popen(
                    words,
                    cwd=folder,
                    env=environment(**settings),
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )

    start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    try:
        for _ in range(90):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(1)
        server = Prefect(folder, url, settings, log)
        server.run("prefect", "work-pool", "create", "glacier", "--type", "process", "--overwrite")
        server.run("prefect", "deploy", "--all", "--no-prompt")
        start("worker", "prefect", "worker", "start", "--pool", "glacier")
        yield server
    finally:
        for process in reversed(started):
            stop(process)


@pytest.fixture(scope="module")
def trained(prefect: Prefect) -> tuple[Prefect, str]:
    return prefect, prefect.train()


def test_the_readme_sequence_ends_completed(trained: tuple[Prefect, str]) -> None:
    assert "finished successfully in 'Completed'" in trained[1]


def test_every_scene_and_step_is_a_task_that_completed(trained: tuple[Prefect, str]) -> None:
    prefect, _ = trained
    states = {task["name"]: task["state_type"] for task in prefect.ask("/task_runs/filter")}
    scenes = yaml.safe_load((prefect.folder / "conf/masking_paths.yaml").read_text())["scenes"]
    expected = {f"{step}@{scene}" for step in ("mask", "slice") for scene in scenes}
    expected |= {"simulate@demo", "postprocess", "train", "evaluate", "register"}
    expected |= {f"{step}@LE07_SIM03_20101106" for step in ("map", "outlines", "report")}
    expected |= {"change@SIM03", "change-report@SIM03"}
    assert expected <= set(states)
    assert {states[name] for name in expected} == {"COMPLETED"}


def test_the_output_of_the_stages_is_in_the_log(trained: tuple[Prefect, str]) -> None:
    prefect, _ = trained
    lines = [entry["message"] for entry in prefect.ask("/logs/filter", limit=200)]
    assert any("polygons read" in line for line in lines)


def test_the_page_of_the_flow_shows_scores_and_a_link(trained: tuple[Prefect, str]) -> None:
    prefect, _ = trained
    artifacts = {a["key"]: a for a in prefect.ask("/artifacts/filter")}
    rows = json.loads(artifacts["glacier-metrics"]["data"])
    assert {row["class"] for row in rows} == {"clean_ice", "debris"}
    assert {row["method"] for row in rows} == {"unet", "forest", "threshold"}
    assert "models" not in artifacts["mlflow-run"]["data"]
    assert "workflowType=machine_learning" in artifacts["mlflow-run"]["data"]


def test_dvc_finds_everything_up_to_date_and_the_artefacts_are_its_own(
    trained: tuple[Prefect, str], tmp_path: Path
) -> None:
    prefect, _ = trained
    assert "up to date" in run(prefect.folder, "dvc", "status")
    alone = small_workspace(tmp_path / "alone", change=True)
    run(alone, "dvc", "repro")
    locks = [
        yaml.safe_load((f / "dvc.lock").read_text())["stages"] for f in (prefect.folder, alone)
    ]
    assert locks[0] == locks[1]


def map_scenes(prefect: Prefect, scenes: list[str], code: int = 0) -> str:
    """`prefect deployment run glacier-map/scene`, as the README says it."""
    return prefect.run("prefect", "deployment", "run", "glacier-map/scene", "--param",
                       f"scenes={json.dumps(scenes)}", "--watch", "--watch-timeout", "300",
                       code=code)  # fmt: skip


def test_scenes_are_mapped_outlined_and_reported_on(trained: tuple[Prefect, str]) -> None:
    prefect, _ = trained
    folder = "data/raw/demo/scenes"
    said = map_scenes(prefect, [f"{folder}/*SIM02*", f"{folder}/LE07_SIM01_20001025.tif"])
    assert "finished successfully in 'Completed'" in said
    names = {"LE07_SIM02_20001025", "LE07_SIM02_20101106", "LE07_SIM01_20001025"}
    for name in names:
        made = prefect.folder / "data/mapped"
        about = json.loads((made / "maps" / name / "map.json").read_text())
        assert about["models"] == ["models:/glacier-unet/1"]
        assert (made / "outlines" / name / f"{name}_glaciers.gpkg").is_file()
        assert (made / "reports" / f"{name}.html").is_file()
    artifacts = prefect.ask("/artifacts/filter", sort="UPDATED_DESC")
    rows = json.loads(next(a["data"] for a in artifacts if a["key"] == "glacier-maps"))
    assert {row["scene"] for row in rows} == names


def test_one_bad_scene_does_not_keep_the_others_from_their_maps(
    trained: tuple[Prefect, str],
) -> None:
    prefect, _ = trained
    scenes = prefect.folder / "data/raw/demo/scenes"
    whole = (scenes / "LE07_SIM01_20101106.tif").read_bytes()
    bad = prefect.folder / "data/raw/LE07_CUT_20101106.tif"
    bad.write_bytes(whole[: len(whole) // 2])
    said = map_scenes(prefect, [str(bad), str(scenes / "LE07_SIM01_20101106.tif")], code=1)
    assert "failed" in said.lower()
    maps = prefect.folder / "data/mapped/maps"
    assert (maps / "LE07_SIM01_20101106/map.json").is_file()
    assert not (maps / "LE07_CUT_20101106").exists()
    tasks = prefect.ask("/task_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=20)
    [failed] = [t for t in tasks if t["state_type"] == "FAILED" and t["name"].startswith("map ")]
    assert failed["run_count"] == 1
    assert "LE07_CUT" in failed["state"]["message"]


def test_the_schedule_produces_scheduled_runs(prefect: Prefect) -> None:
    for _ in range(40):
        runs = prefect.ask(
            "/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}}
        )
        automatic = [run for run in runs if run["auto_scheduled"]]
        if automatic:
            break
        time.sleep(1)
    assert automatic
    assert all(run["deployment_id"] for run in automatic)


def test_bad_input_fails_at_once_without_retries(trained: tuple[Prefect, str]) -> None:
    prefect, _ = trained
    conf = prefect.folder / "conf/postprocess.yaml"
    before = conf.read_text()
    merge_yaml(conf, {"channels": ["B1", "B99"]})
    try:
        prefect.train(code=1)
        tasks = prefect.ask("/task_runs/filter", sort="EXPECTED_START_TIME_DESC", limit=20)
        failed = [
            t for t in tasks if t["state_type"] == "FAILED" and t["name"].startswith("slice@")
        ]
        assert failed
        assert {task["run_count"] for task in failed} == {1}
        assert "B99" in failed[0]["state"]["message"]
        assert "slice@LE07_SIM" in failed[0]["state"]["message"]
    finally:
        conf.write_text(before)


def processes_in(folder: Path, words: str) -> list[psutil.Process]:
    """Processes working in a folder whose command line holds `words`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if words in " ".join(process.cmdline()) and process.cwd() == str(folder):
                found.append(process)
    return found


def test_a_cancelled_run_leaves_no_training_behind_and_the_next_goes_on(
    trained: tuple[Prefect, str],
) -> None:
    prefect, _ = trained
    merge_yaml(prefect.folder / "params.yaml", {"train": {"epochs": 4000, "patience": 4000}})
    last = prefect.folder / "data/runs/unet/models/checkpoints/last.safetensors"
    prefect.run("prefect", "deployment", "run", "glacier/train")
    for _ in range(90):
        if last.exists() and processes_in(prefect.folder, "glacier train"):
            break
        time.sleep(1)
    assert last.exists()
    [current] = prefect.ask(
        "/flow_runs/filter", flow_runs={"state": {"type": {"any_": ["RUNNING"]}}}
    )
    prefect.run("prefect", "flow-run", "cancel", current["id"])
    for _ in range(60):
        if not processes_in(prefect.folder, "glacier train"):
            break
        time.sleep(1)
    assert processes_in(prefect.folder, "glacier train") == []
    merge_yaml(prefect.folder / "params.yaml", {"train": {"epochs": 3, "patience": 3}})
    assert "finished successfully in 'Completed'" in prefect.train()
