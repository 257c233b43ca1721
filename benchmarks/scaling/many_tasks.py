"""Prefect: how many tasks a second its server takes, from flows like ours.

A task's states go to the server as events, which it enters into its database behind the flow's back:
a flow that has ended says nothing. What counts is when the server knows of every task.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import REPOSITORY, Measured, environment, run
from benchmarks.scaling.found import Found
from benchmarks.servers import POSTGRES_BIN, Server, postgres, prefect_server

_STEPS = 3  # tasks of a scene, as `glacier-map` has: map, outline, report
# Without one more task entered, what is missing does not come.
_PATIENCE_S = 60.0


def tasks_in_prefect(
    folder: Path,
    sizes: Sequence[int],
    scenes: int,
    databases: Sequence[str],
    say: Callable[[str], None],
) -> Found:
    """Measure servers with so many flows at once, each of so many scenes."""
    found = Found()
    for database in databases:
        if database == "postgresql" and POSTGRES_BIN is None:
            found.notes.append("postgresql: left out, it is not installed")
            continue
        for flows in sizes:
            line = _measured(folder, database, flows, scenes)
            say(f"{database}, {flows} flows: {line['tasks_a_second']:.1f} tasks a second")
            found.lines.append(line)
            if line["known"] != line["tasks"]:
                found.wrong.append(
                    f"{database}, {flows} flows: of {line['tasks']} tasks, the server knows "
                    f"{line['known']} as completed"
                )
    return found


def _measured(folder: Path, database: str, flows: int, scenes: int) -> dict[str, Any]:
    with ExitStack() as stack:
        settings, cluster = {}, None
        if database == "postgresql":
            # Not below `folder`: whoever PostgreSQL runs as may be allowed nowhere near it.
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-postgres-")))
            place.chmod(0o755)
            cluster = place / "cluster"
            address = stack.enter_context(postgres(cluster))
            settings["PREFECT_API_DATABASE_CONNECTION_URL"] = f"postgresql+asyncpg://{address}"
        home = folder / "server"
        server = stack.enter_context(prefect_server(home, 1, **settings))
        stored = cluster or home
        _flow(folder, server, 1, 0)  # what only the first flow pays for
        _known(server, _STEPS)
        size, busy, errors = _size(stored), _cpu(server), _errors(server)
        started = time.perf_counter()
        with ThreadPoolExecutor(flows) as pool:
            running = [
                pool.submit(_flow, folder, server, scenes, number) for number in range(flows)
            ]
            tasks = flows * scenes * _STEPS
            # Counting is a query a second; the flows' own are hundreds.
            known, entered = _known(server, _STEPS + tasks, running)
            walls = [one.result().wall_s for one in running]
        seconds = entered - started
        return {
            "database": database,
            "flows": flows,
            "tasks": tasks,
            "known": known - _STEPS,
            "flow_s": max(walls),
            "entered_s": seconds,
            "tasks_a_second": (known - _STEPS) / seconds,
            "server_cpu_ms_a_task": 1000 * (_cpu(server) - busy) / tasks,
            "kb_a_task": (_size(stored) - size) / tasks / 1000,
            "server_mb": _memory(server) / 1e6,
            "errors_logged": _errors(server) - errors,
        }


def _flow(folder: Path, server: Server, scenes: int, number: int) -> Measured:
    """A flow as a process of its own, as a worker starts it."""
    env = environment(
        1, PREFECT_API_URL=server.url, PREFECT_HOME=str(folder / f"home_{number}"),
        PREFECT_LOGGING_LEVEL="INFO",
    )  # fmt: skip
    words = [sys.executable, "-m", "benchmarks.worker", "scaling.many_tasks:one_flow",
             json.dumps({"scenes": scenes}), str(folder / f"said_{number}.json")]  # fmt: skip
    return run(words, cwd=REPOSITORY, env=env)


def _known(server: Server, wanted: int, running: Sequence[Any] = ()) -> tuple[int, float]:
    """Wait until the server has so many completed tasks; how many, and when the last one came."""
    known, when = 0, time.perf_counter()
    while known < wanted:
        if any(one.done() and one.exception() for one in running):
            break
        now = _count(server)
        if now > known:
            known, when = now, time.perf_counter()
        elif time.perf_counter() - when > _PATIENCE_S:
            break
        time.sleep(0.5 if wanted > _STEPS else 0.1)
    return known, when


def _count(server: Server) -> int:
    body = {"task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    request = urllib.request.Request(
        f"{server.url}/task_runs/count",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.read())
    except OSError:  # 503: its SQLite is locked for a moment
        return 0


def _family(server: Server) -> list[psutil.Process]:
    parent = psutil.Process(server.process.pid)
    return [parent, *parent.children(recursive=True)]


def _cpu(server: Server) -> float:
    """Seconds that the server's processes have used; PostgreSQL's are not among them."""
    return float(sum(sum(process.cpu_times()[:2]) for process in _family(server)))


def _memory(server: Server) -> int:
    return int(sum(process.memory_info().rss for process in _family(server)))


def _size(folder: Path) -> int:
    """Bytes of what grows: SQLite's files, or PostgreSQL's tables; not its write-ahead log."""
    tables = folder / "data/base"
    if tables.exists():
        return sum(path.stat().st_size for path in tables.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in folder.glob("prefect.db*"))


def _errors(server: Server) -> int:
    lines = server.log.read_text(errors="replace").splitlines()
    return sum("database is locked" in line or "| ERROR" in line for line in lines)


def one_flow(scenes: int) -> dict[str, Any]:
    """Scenes of three tasks each that need each other, declared as ours are, with nothing to do."""
    from prefect import flow, get_run_logger, task
    from prefect.cache_policies import NO_CACHE
    from prefect.futures import wait
    from prefect.task_runners import ThreadPoolTaskRunner

    declared = task(
        task_run_name="{step} {scene}", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=10
    )

    @declared
    def a_step(step: str, scene: str, before: str) -> str:
        get_run_logger().info("%s of %s after %s", step, scene, before or "nothing")
        return f"{step} of {scene}"

    @flow(name="glacier-many", task_runner=ThreadPoolTaskRunner(max_workers=2))  # type: ignore[arg-type]
    def many() -> int:
        futures: list[Any] = []
        for number in range(scenes):
            before: Any = ""
            for step in ("map", "outline", "report"):
                before = a_step.submit(step, f"scene {number}", before)
                futures.append(before)
        wait(futures)
        return len([future.result() for future in futures])

    return {"tasks": many()}
