"""One DVC stage as one Prefect task."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from glacier_core.cli import BAD_INPUT

_EXITED = re.compile(r"exited with (-?\d+)")
# What DVC says when another process holds the repository or a neighbouring stage.
_BUSY = ("is busy", "Unable to acquire lock", "unable to acquire lock")


class BadInput(RuntimeError):
    """The stage refused what it was given; repeating it would change nothing."""


class StageBusy(RuntimeError):
    """Another process is running this stage or one that it needs."""


class StageFailed(RuntimeError):
    """The stage broke off for another reason: killed, out of memory, a full disk."""


def _worth_repeating(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    result = state.result(raise_on_failure=False)
    return not isinstance(result, BadInput)


def _streamed(command: list[str], root: Path) -> tuple[int, list[str]]:
    """Run a command, each line into the Prefect log as it comes."""
    logger = get_run_logger()
    # The stages call `glacier`, which lies beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            text = line.rstrip()
            lines.append(text)
            if text:
                logger.info("%s", text)
    except BaseException:
        # A cancelled flow must not leave its stage running.
        process.terminate()
        raise
    finally:
        code = process.wait()
    return code, lines


def _failure(stage: str, lines: Iterable[str]) -> RuntimeError:
    output = list(lines)
    reason = next((line for line in reversed(output) if line.startswith("error: ")), None)
    reason = reason or next((line for line in reversed(output) if line.strip()), "no output")
    for line in output:
        found = _EXITED.search(line)
        if found and int(found.group(1)) == BAD_INPUT:
            return BadInput(f"{stage}: {reason}")
        if any(word in line for word in _BUSY):
            return StageBusy(f"{stage}: {line}")
    return StageFailed(f"{stage}: {reason}")


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC decides what is up to date, by content
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=_worth_repeating,
)
def run_stage(stage: str, root: Path) -> str:
    """Bring one stage up to date with DVC; its output goes to the log.

    Args:
        stage: as `dvc stage list` names it, for example `mask@LE07_140041_20001025`.
        root: the project's folder.

    Returns:
        `skipped` where DVC found it up to date, else `ran`.

    Raises:
        BadInput: not retried.
        StageBusy, StageFailed: retried.
    """
    # --wait-for-lock lets stages of different scenes run at the same time in one workspace.
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    code, lines = _streamed(command, root)
    if code != 0:
        raise _failure(stage, lines)
    return "skipped" if any("didn't change, skipping" in line for line in lines) else "ran"
