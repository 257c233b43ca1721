"""`glacier doctor` says what is wrong, in a real project, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY, edit_yaml
from small_catalog import server as server  # a fixture
from small_catalog import settings
from small_dataset import small_project
from stac_server import StacServer
from workspace import BIN, environment, merge_yaml, run

from glacier_core.config import Project
from glacier_core.doctor import Finding, examine

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def project(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A healthy project, with a DVC repository."""
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    project = small_project(tmp_path_factory, tmp_path / "project")
    run(project.root, "dvc", "init", "-q", "--no-scm")
    return project


def found(project: Project, subject: str) -> list[Finding]:
    findings = [f for f in examine(Project(project.root)) if f.subject == subject]
    assert findings
    return findings


def worst(project: Project, subject: str) -> Finding:
    order = ("fail", "warn", "ok")
    return min(found(project, subject), key=lambda finding: order.index(finding.state))


def listing(folder: Path) -> dict[str, bytes]:
    """All files but those that DVC keeps for itself whenever it is called."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".dvc/tmp" not in str(path)
    }


def test_a_healthy_project_is_ok_and_stays_as_it_is(project: Project) -> None:
    before = listing(project.root)
    lines = run(project.root, "glacier", "doctor").splitlines()
    assert listing(project.root) == before
    states = {line.split()[0] for line in lines}
    assert "fail" not in states
    said = "\n".join(lines)
    for wanted in ("mlflow 3", "torch 2", "trains in", "4 scenes", "repository free", "GB free"):
        assert wanted in said


def test_missing_scenes_are_counted_and_named_and_end_with_exit_code_1(project: Project) -> None:
    gone = sorted((project.root / "data/raw/scenes").iterdir())[:2]
    for path in gone:
        path.unlink()
    said = run(project.root, "glacier", "doctor", code=1)
    [line] = [line for line in said.splitlines() if line.startswith("fail")]
    assert "2 missing" in line
    assert f"data/raw/scenes/{gone[0].name}" in line


def test_missing_scenes_that_can_be_simulated_are_no_failure(project: Project) -> None:
    merge_yaml(project.masking_path, {"simulated": {"demo": "data/raw/scenes"}})
    for path in (project.root / "data/raw/scenes").iterdir():
        path.unlink()
    assert worst(project, "settings").state == "ok"
    assert all(f.subject != "scenes" for f in examine(Project(project.root)))


def test_a_folder_that_is_no_project_fails_with_a_line_for_each_reason(tmp_path: Path) -> None:
    first, second = (f.text for f in examine(Project(tmp_path)) if f.state == "fail")
    assert "masking_paths.yaml: no such file" in first
    assert "run `dvc init`" in second
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_named(project: Project) -> None:
    merge_yaml(project.root / "params.yaml", {"train": {"learning_rat": 0.1}})
    finding = worst(project, "settings")
    assert finding.state == "fail"
    assert "train.learning_rat: unknown key" in finding.text


def test_a_package_that_is_missing_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glacier_core.doctor._PACKAGES", ["numpy", "no-such-package-at-all"])
    finding = worst(project, "installed")
    assert finding.state == "fail"
    assert "missing: no-such-package-at-all" in finding.text


# --- DVC -------------------------------------------------------------------------------------


def test_dvc_is_in_use_while_a_stage_runs_and_free_when_it_is_done_or_killed(
    project: Project,
) -> None:
    root = project.root
    (root / "dvc.yaml").write_text("stages: {quick: {cmd: echo 1 > quick, outs: [quick]}}\n")
    run(root, "dvc", "repro", "-q")
    assert worst(project, "dvc") == Finding("ok", "dvc", "repository free")

    (root / "dvc.yaml").write_text(
        "stages: {slow: {cmd: 'touch started; exec sleep 60', outs: [slow]}}\n"
    )
    process = subprocess.Popen(
        [BIN / "dvc", "repro", "-q"], cwd=root, env=environment(), start_new_session=True
    )
    try:
        while not (root / "started").exists():
            assert process.poll() is None
        finding = worst(project, "dvc")
        assert finding.state == "warn"
        assert "in use" in finding.text
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert json.loads((root / ".dvc/tmp/rwlock").read_text())["write"]  # as the killed one left it
    assert worst(project, "dvc") == Finding("ok", "dvc", "repository free")


def test_the_remote_is_named(project: Project) -> None:
    assert any("no remote" in finding.text for finding in found(project, "dvc"))
    run(project.root, "dvc", "remote", "add", "-q", "-d", "backup", "../backup")
    assert any(finding.text == "remote: backup" for finding in found(project, "dvc"))


# --- MLflow and Prefect ----------------------------------------------------------------------


def runs_database(project: Project, rows: int = 3) -> sqlite3.Connection:
    connection = sqlite3.connect(project.root / "mlflow.db", isolation_level=None)
    connection.execute("create table runs (run_uuid text)")
    connection.executemany("insert into runs values (?)", [(str(i),) for i in range(rows)])
    return connection


def test_the_database_is_free_or_locked(project: Project) -> None:
    assert worst(project, "mlflow").text.endswith("will be created by the first training")
    connection = runs_database(project)
    assert worst(project, "mlflow") == Finding("ok", "mlflow", "mlflow.db: 3 runs, not locked")
    connection.execute("begin exclusive")
    finding = worst(project, "mlflow")
    connection.close()
    assert finding.state == "warn"
    assert "locked" in finding.text


def test_a_file_that_is_no_database_is_said(project: Project) -> None:
    (project.root / "mlflow.db").write_text("something else, long enough to be looked at " * 50)
    finding = worst(project, "mlflow")
    assert finding.state == "warn"
    assert "not a database" in finding.text


@pytest.fixture
def listening() -> Iterator[int]:
    """A port at which something answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_servers_that_answer_are_ok(
    project: Project, monkeypatch: pytest.MonkeyPatch, listening: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listening}")
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{listening}/api")
    assert worst(project, "mlflow").state == "ok"
    assert worst(project, "prefect").state == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://user:secret@127.0.0.1:{listening}/db")
    finding = worst(project, "mlflow")
    assert finding.state == "ok"
    assert "answers" in finding.text
    assert "secret" not in finding.text


@pytest.mark.parametrize("uri", [NOWHERE, "postgresql://user:secret@127.0.0.1:9/mlflow"])
def test_a_tracking_server_or_database_that_is_down_fails(
    project: Project, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    finding = worst(project, "mlflow")
    assert finding.state == "fail"
    assert "is down" in finding.text
    assert "secret" not in finding.text


def test_a_prefect_server_that_is_down_fails(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worst(project, "prefect").state == "ok"
    monkeypatch.setenv("PREFECT_API_URL", f"{NOWHERE}/api")
    assert worst(project, "prefect").state == "fail"


# --- STAC APIs -------------------------------------------------------------------------------


@pytest.fixture
def catalogued(project: Project, server: StacServer) -> Project:
    """The project, with a server of the tests as its only API, patient for longer than we are."""
    shutil.copyfile(REPOSITORY / "conf/landsat.yaml", project.root / "conf/landsat.yaml")
    apis = settings(server, tries=9, timeout_s=60, backoff_s=60)
    del apis["known"]["parts"]
    edit_yaml(project.root / "conf/landsat.yaml", apis=apis)
    return project


def asked(project: Project) -> list[Finding]:
    return [f for f in examine(Project(project.root), online=True) if f.subject == "stac"]


def test_apis_are_asked_only_when_that_is_wanted(catalogued: Project, server: StacServer) -> None:
    assert all(finding.subject != "stac" for finding in examine(catalogued))
    assert server.log() == []
    said = run(catalogued.root, "glacier", "doctor", "--online")
    assert f"ok    stac       tests: {server.base} answers" in said
    assert [request["path"] for request in server.log()] == ["/"]


def test_an_api_that_is_away_fails_at_once_if_it_is_used_and_warns_if_not(
    catalogued: Project, server: StacServer
) -> None:
    path = catalogued.root / "conf/landsat.yaml"
    edit_yaml(path, **{"apis.known.spare": settings(server)["known"]["tests"] | {"url": NOWHERE}})
    tests, spare = asked(catalogued)
    assert tests.state == "ok"
    assert spare.state == "warn"
    assert spare.text == (
        f"cannot be used: spare: {NOWHERE}: {NOWHERE}: no connection (1 tries). Check the network, or "
        "try again later"
    )
    used = {"api": "spare", "collection": "heights", "asset": "data"}
    edit_yaml(path, dem_collection=used)
    since = time.monotonic()
    said = run(catalogued.root, "glacier", "doctor", "--online", code=1)
    assert "fail  stac       cannot be used: spare" in said
    assert time.monotonic() - since < 30


def test_an_api_that_wants_a_login_or_is_another_thing_is_told_as_such(
    catalogued: Project, server: StacServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    server.fault("^/$", "status", times=1, status=401)
    (finding,) = asked(catalogued)
    assert finding.state == "fail"
    assert "needs a login: tests" in finding.text
    assert "TEST_KEY" in finding.text
    server.fault("^/$", "status", times=1, status=200, body="{}")
    (finding,) = asked(catalogued)
    assert finding.state == "fail"
    assert "answers, but is no STAC API" in finding.text
    server.fault("^/$", "status", times=1, status=200, body="<html>Welcome</html>")
    (finding,) = asked(catalogued)
    assert "cannot be used: tests" in finding.text
    assert "not JSON" in finding.text


def test_wrong_settings_of_apis_are_named(catalogued: Project) -> None:
    edit_yaml(catalogued.root / "conf/landsat.yaml", **{"apis.default": "nobody"})
    (finding,) = asked(catalogued)
    assert finding.state == "fail"
    assert "'nobody' is not among" in finding.text


def test_the_python_in_use_is_named(project: Project) -> None:
    assert sys.executable in found(project, "python")[0].text
