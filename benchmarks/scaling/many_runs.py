"""MLflow: how many epochs a second its store takes on SQLite from runs at once, and what it refuses."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import REPOSITORY, environment, run
from benchmarks.scaling.found import Found

_METRICS = 20  # of an epoch: losses, rate, and scores of three classes
_START_S = 120.0


def runs_in_mlflow(
    folder: Path, sizes: Sequence[int], epochs: int, say: Callable[[str], None]
) -> Found:
    """Measure so many runs at once, each a process that logs epochs as fast as it can."""
    found = Found()
    for count in sizes:
        place = folder / f"runs_{count}"
        place.mkdir()
        _work(place, "open_store")
        with ThreadPoolExecutor(count) as pool:
            running = [
                pool.submit(_work, place, "one_run", number=number, epochs=epochs)
                for number in range(count)
            ]
            for _ in range(int(_START_S / 0.1)):
                if len(list(place.glob("ready_*"))) == count or any(one.done() for one in running):
                    break
                time.sleep(0.1)
            (place / "go").touch()
            said = [one.result() for one in running]
        seconds = max(one["ended"] for one in said) - min(one["began"] for one in said)
        logged = sum(one["logged"] for one in said)
        refused = [text for one in said for text in one["refused"]]
        line = {
            "runs": count,
            "epochs": count * epochs,
            "epochs_a_second": logged / seconds,
            "slowest_epoch_s": max(one["slowest_s"] for one in said),
            "refused": len(refused),
            "locked": sum("database is locked" in text for text in refused),
            "database_kb_an_epoch": (place / "mlflow.db").stat().st_size / logged / 1000,
        }
        found.lines.append(line)
        say(f"{count} runs: {line['epochs_a_second']:.1f} epochs a second, {len(refused)} refused")
        kept = _rows(place / "mlflow.db")
        if kept != logged * _METRICS:
            found.wrong.append(f"{count} runs: {kept} values kept, {logged * _METRICS} were logged")
    return found


def _work(place: Path, function: str, **arguments: Any) -> dict[str, Any]:
    result = place / f"said_{function}_{arguments.get('number', 0)}.json"
    words = [sys.executable, "-m", "benchmarks.worker", f"scaling.many_runs:{function}",
             json.dumps({"place": str(place), **arguments}), str(result)]  # fmt: skip
    run(words, cwd=REPOSITORY, env=environment(1))
    said: dict[str, Any] = json.loads(result.read_text())
    return said


def _rows(database: Path) -> int:
    connection = sqlite3.connect(database)
    try:
        return int(connection.execute("select count(*) from metrics").fetchone()[0])
    finally:
        connection.close()


# --- In workers ---


def _client(place: str) -> Any:
    from mlflow import MlflowClient

    import glacier_core.model.tracking  # noqa: F401  # sets MLflow up, before it is imported

    return MlflowClient(f"sqlite:///{place}/mlflow.db")


def open_store(place: str) -> dict[str, Any]:
    """Make the database: several processes at once could not."""
    artifacts = (Path(place) / "artifacts").as_uri()
    return {"experiment": _client(place).create_experiment("many", artifact_location=artifacts)}


def one_run(place: str, number: int, epochs: int) -> dict[str, Any]:
    """Log epochs as training does, one after another without learning in between."""
    from glacier_core.model.tracking import STORE_ERRORS, log_epochs

    client = _client(place)
    experiment = client.get_experiment_by_name("many").experiment_id
    (Path(place) / f"ready_{number}").touch()
    while not (Path(place) / "go").exists():
        time.sleep(0.02)
    began = time.time()
    run_id = client.create_run(experiment, run_name=f"run {number}").info.run_id
    logged, slowest, refused = 0, 0.0, []
    for epoch in range(1, epochs + 1):
        # `epoch` says which step it is, and is not itself a metric.
        row = {"epoch": epoch, "loss": 1 / epoch}
        row |= {f"score_{k}": k / epoch for k in range(_METRICS - 1)}
        started = time.perf_counter()
        try:
            log_epochs(client, run_id, [row])
            logged += 1
        except STORE_ERRORS as error:
            refused.append(str(error)[:300])
        slowest = max(slowest, time.perf_counter() - started)
    return {"logged": logged, "slowest_s": slowest, "refused": refused, "began": began,
            "ended": time.time()}  # fmt: skip
