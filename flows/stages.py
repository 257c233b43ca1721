"""One DVC stage as one Prefect task."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from glacier_core.cli import BAD_INPUT
from glacier_core.errors import InputError

_EXITED = re.compile(r"exited with (-?\d+)")
# What DVC says when another process holds the repository or a neighbouring stage...
_BUSY = ("is busy", "Unable to acquire lock", "unable to acquire lock")
# ... and before a stage starts, when what it needs is not there.
_ABSENT = ("does not exist", "are missing from", "failed to parse", "validation failed")

# Processes of the stages that run now; a cancelled flow ends them all.
_running: set[subprocess.Popen[str]] = set()


class BadInput(RuntimeError):
    """The stage refused what it was given; repeating it would change nothing."""


class StageBusy(RuntimeError):
    """Another process is running this stage or one that it needs."""


class StageFailed(RuntimeError):
    """The stage broke off for another reason: killed, out of memory, a full disk."""


def worth_repeating(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Whether a failed task may pass when repeated; bad input never does."""
    result = state.result(raise_on_failure=False)
    return not isinstance(result, (BadInput, InputError))


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
        # A group of its own: DVC passes no signal on to the stage that it runs.
        start_new_session=True,
    )
    _running.add(process)
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            text = line.rstrip()
            lines.append(text)
            if text:
                logger.info("%s", text)
        return process.wait(), lines
    finally:
        _end(process)
        _running.discard(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End a stage with all that it started, if it still runs."""
    for sign, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)


def end_running_stages() -> None:
    """End every stage that runs: those of other threads do not hear that the flow ended."""
    for process in list(_running):
        _end(process)


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
        if line.startswith("ERROR: ") and any(word in line for word in _ABSENT):
            return BadInput(f"{stage}: {line.removeprefix('ERROR: ')}")
    return StageFailed(f"{stage}: {reason}")


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,  # DVC decides what is up to date, by content
    retries=3,
    retry_delay_seconds=[2, 10, 30],
    retry_condition_fn=worth_repeating,
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
