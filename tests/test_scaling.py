"""The simulations behind docs/scaling.md find what is there, and say what is wrong; times mean nothing here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.measure import BIN, REPOSITORY, environment
from benchmarks.scaling.found import Found, reached
from benchmarks.scaling.many_scenes import make
from benchmarks.servers import POSTGRES_BIN


def scaling(cache: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """Run one simulation; its results."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *words, "--cache", str(cache)],
        cwd=REPOSITORY, env=environment(1), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert [path.name for path in cache.iterdir()] == [f"{words[0]}.json"]
    content: dict[str, Any] = json.loads((cache / f"{words[0]}.json").read_text())
    # The table shows what the results hold.
    assert str(next(iter(content["lines"][0]))) in done.stdout
    return content


@pytest.mark.slow
def test_a_simulated_project_is_ours_and_dvc_finds_it_up_to_date(tmp_path: Path) -> None:
    found = scaling(tmp_path, "dvc", "--sizes", "2,3", "--slices", "2")
    assert found["wrong"] == []
    # mask and slice of each scene; postprocess, train, evaluate, register.
    assert [line["stages"] for line in found["lines"]] == [2 * 2 + 4, 2 * 3 + 4]
    per_scene = [line["files"] for line in found["lines"]]
    assert per_scene[1] - per_scene[0] == 1 + 3 + (2 * 2 + 1)  # scene, mask's, slice's
    for line in found["lines"]:
        assert line["lock_kb"] > 1
        assert line["idle_mb"] > 10
        assert line["idle_cpu_s"] > 0
        assert line["skipped_stage_cpu_s"] > 0


def test_one_changed_file_of_a_simulated_project_is_noticed_by_dvc(tmp_path: Path) -> None:
    root = tmp_path / "project"
    assert make(str(root), count=2, slices=1) == {"stages": 8}

    def status() -> str:
        return subprocess.run(
            [str(BIN / "dvc"), "status"], cwd=root, env=environment(1), capture_output=True,
            text=True, check=True,
        ).stdout  # fmt: skip

    assert "up to date" in status()
    name = next(iter(yaml.safe_load((root / "conf/masking_paths.yaml").read_text())["scenes"]))
    (root / f"data/raw/scenes/{name}.tif").write_text("another")
    assert f"mask@{name}" in status()


def test_every_slice_is_read_back_in_both_layouts(tmp_path: Path) -> None:
    found = scaling(tmp_path, "files", "--sizes", "10,900", "--bytes", "100")
    assert found["wrong"] == []
    assert [(line["slices"], line["layout"]) for line in found["lines"]] == [
        (10, "one folder"), (10, "one a scene"), (900, "one folder"), (900, "one a scene"),
    ]  # fmt: skip


def test_one_more_scene_in_the_table_leaves_the_others_there(tmp_path: Path) -> None:
    found = scaling(tmp_path, "table", "--sizes", "3,30")
    assert found["wrong"] == []
    assert [line["rows"] for line in found["lines"]] == [3, 30]
    assert found["lines"][1]["table_mb"] > 5 * found["lines"][0]["table_mb"]


@pytest.mark.slow
def test_mlflow_keeps_every_value_of_runs_at_once(tmp_path: Path) -> None:
    found = scaling(tmp_path, "mlflow", "--sizes", "2", "--epochs", "3")
    assert found["wrong"] == []
    [line] = found["lines"]
    assert (line["runs"], line["epochs"], line["refused"], line["locked"]) == (2, 6, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_prefects_server_comes_to_know_of_every_task(tmp_path: Path, database: str) -> None:
    if database == "postgresql" and POSTGRES_BIN is None:
        pytest.skip("no PostgreSQL: apt-get install --no-install-recommends postgresql")
    words = ["prefect", "--sizes", "2", "--scenes", "2", "--database", database]
    found = scaling(tmp_path, *words)
    assert found["wrong"] == []
    [line] = found["lines"]
    assert (line["tasks"], line["known"]) == (2 * 2 * 3, 2 * 2 * 3)
    assert line["kb_a_task"] > 0
    assert line["database"] == database


@pytest.mark.parametrize("power", [1, 2])
def test_the_size_at_which_a_time_is_reached_follows_the_law_that_was_measured(power: int) -> None:
    sizes = [10, 100, 1000]
    seconds = [0.001 * size**power for size in sizes]
    for limit in (seconds[0] / 2, seconds[1], 5 * seconds[2]):
        expected = (limit / 0.001) ** (1 / power)
        found = reached(sizes, seconds, limit)
        assert found is not None
        assert math.isclose(found, expected, rel_tol=1e-9)
    assert reached(sizes, seconds, 1000 * seconds[2]) is None  # too far off to say
    assert reached([10], [1.0], 5.0) is None
    assert reached([10, 20], [1.0, 1.0], 5.0) is None


def test_a_wrong_result_fails_the_simulation_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from benchmarks.scaling import __main__ as command
    from benchmarks.scaling import many_files

    def wrong(*_: object) -> Found:
        return Found([{"slices": 1}], wrong=["a slice is missing"])

    monkeypatch.setattr(many_files, "slices_in_folders", wrong)
    done = CliRunner().invoke(command.main, ["files", "--cache", str(tmp_path)])
    assert done.exit_code == 1
    assert "WRONG files: a slice is missing" in done.output
    assert not (tmp_path / "files").exists()


def test_sizes_that_are_no_numbers_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "dvc", "--sizes", "many"],
        cwd=REPOSITORY, env=environment(1), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "expected whole numbers" in done.stderr
