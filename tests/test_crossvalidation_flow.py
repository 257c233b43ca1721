"""The deployment `crossvalidate/all`, on a real Prefect server and worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from prefect_server import Prefect, serving
from workspace import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    with serving(tmp_path_factory.mktemp("prefect")) as server:
        for step in (["simulate", "--out", "data/raw/demo"], ["mask"], ["slice"]):
            run(server.folder, "glacier", "-q", *step)
        server.work()
        yield server


@pytest.fixture(scope="module")
def measured(prefect: Prefect) -> dict[str, Any]:
    done = prefect.deployed("crossvalidate/all", by="scenes", seeds=[1, 2])
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    return done


def test_each_fold_and_seed_is_a_task_and_the_report_is_on_the_page(
    prefect: Prefect, measured: dict[str, Any]
) -> None:
    # Each of the three places tests at both its dates.
    scenes = [f"LE07_SIM{site:02d}_20001025" for site in (1, 2, 3)]
    expected = {f"{scene}, seed {seed}" for scene in scenes for seed in (1, 2)}
    states = {name: task["state_type"] for name, task in prefect.tasks(measured).items()}
    assert {states[name] for name in expected} == {"COMPLETED"}
    found = prefect.ask("/artifacts/filter", flow_runs={"id": {"any_": [measured["id"]]}})
    [report] = [one["data"] for one in found if one["key"] == "glacier-crossvalidation"]
    place = prefect.folder / "data/crossvalidation/scenes"
    assert report == (place / "report.md").read_text()


def test_the_command_line_finds_what_the_flow_made(
    prefect: Prefect, measured: dict[str, Any]
) -> None:
    assert measured["state_type"] == "COMPLETED"
    place = prefect.folder / "data/crossvalidation/scenes"
    expected = json.loads((place / "scores.json").read_text())
    (place / "scores.json").unlink()
    made = {path: path.stat().st_mtime_ns for path in place.rglob("model.safetensors")}
    assert len(made) == 6
    run(prefect.folder, "glacier", "-q", "crossvalidate", "--by", "scenes", "--seeds", "1,2")
    assert json.loads((place / "scores.json").read_text()) == expected
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_what_cannot_be_meant_fails_the_run_and_says_why(prefect: Prefect) -> None:
    done = prefect.deployed("crossvalidate/all", by="scenes", folds=9)
    assert done["state_type"] == "FAILED"
    assert "--folds 9: there are only 3 scenes" in done["state"]["message"]
