"""One training a folder, one decision about its models at a time: between real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from glacier_core.config import Project
from glacier_core.errors import ServiceError
from glacier_core.model.alone import alone, one_at_a_time

_HOLD = """
import sys, time
from pathlib import Path
from glacier_core.config import Project
from glacier_core.model import alone
with getattr(alone, sys.argv[2])(Project(Path(sys.argv[1])), "retraining", 0):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""
BOTH = pytest.mark.parametrize(
    ("hold", "file"), [(one_at_a_time, "data/training"), (alone, "data/promotion")]
)


def holder(root: Path, hold: str, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", _HOLD, str(root), hold, str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@BOTH
def test_a_second_process_waits_or_says_for_whom(tmp_path: Path, hold: object, file: str) -> None:
    assert callable(hold)
    project = Project(tmp_path)
    first = holder(tmp_path, hold.__name__, 3)
    told = json.loads((tmp_path / f"{file}.json").read_text())
    expected = rf"a retraining by .*\(process {told['pid']}, since .*\) holds .*{file}\.lock, also after 0\.1 s"
    with pytest.raises(ServiceError, match=expected), hold(project, "training", 0.1):
        pass
    began = time.monotonic()
    with hold(project, "training", 60):
        assert time.monotonic() - began < 30
        assert json.loads((tmp_path / f"{file}.json").read_text())["what"] == "training"
    assert first.wait(10) == 0
    assert not (tmp_path / f"{file}.json").exists()


@BOTH
def test_one_that_is_killed_holds_nothing_up(tmp_path: Path, hold: object, file: str) -> None:
    assert callable(hold)
    killed = holder(tmp_path, hold.__name__, 600)
    killed.kill()
    killed.wait(10)
    with hold(Project(tmp_path), "training", 0):
        assert (tmp_path / f"{file}.json").exists()


def test_who_holds_a_folder_may_ask_again_and_lets_go_of_it_once(tmp_path: Path) -> None:
    project = Project(tmp_path)
    with one_at_a_time(project, "retraining", 0):
        with one_at_a_time(Project(tmp_path), "training", 0):
            pass
        assert json.loads((tmp_path / "data/training.json").read_text())["what"] == "retraining"
        refused: list[str] = []

        def another_thread() -> None:
            with pytest.raises(ServiceError) as error, one_at_a_time(project, "training", 0):
                pass
            refused.append(str(error.value))

        thread = threading.Thread(target=another_thread)
        thread.start()
        thread.join()
        assert "a retraining by" in refused[0]
    holder(tmp_path, "one_at_a_time", 0).wait(10)
