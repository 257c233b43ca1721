"""A Prefect server with a worker, as processes of a test alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from workspace import environment, run, small_workspace


@dataclass
class Prefect:
    """A Prefect server with a worker, of this test alone, and the folder it deploys."""

    folder: Path
    url: str
    settings: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder.parent / f"{name}.log").open("ab") as output:
            self.started.append(
                subprocess.Popen(words, cwd=self.folder, env=environment(**self.settings),
                                 stdout=output, stderr=output, start_new_session=True)
            )  # fmt: skip
        return self.started[-1]

    def serve(self) -> subprocess.Popen[bytes]:
        """Start the server, and wait until it answers."""
        port = self.url.split(":")[2].partition("/")[0]
        words = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
        process = self.start("server", *words)
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(1)
        return process

    def work(self) -> subprocess.Popen[bytes]:
        """Start a worker."""
        return self.start("worker", "prefect", "worker", "start", "--pool", "glacier",
                          "--type", "process")  # fmt: skip

    def ask(self, path: str, **body: Any) -> Any:
        """POST to the server's API."""
        return self._asked(
            urllib.request.Request(
                f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
        )

    def get(self, flow_run: str) -> dict[str, Any]:
        content = self._asked(urllib.request.Request(f"{self.url}/flow_runs/{flow_run}"))
        assert isinstance(content, dict)
        return content

    def states(self, task_run: str) -> list[dict[str, Any]]:
        """All states that a task has gone through."""
        address = f"{self.url}/task_run_states/?task_run_id={task_run}"
        content = self._asked(urllib.request.Request(address))
        assert isinstance(content, list)
        return content

    def _asked(self, request: urllib.request.Request) -> Any:
        for left in range(9, -1, -1):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                # Its SQLite is locked for a moment.
                if error.code != 503 or not left:
                    raise
                time.sleep(1)
        raise AssertionError

    def run(self, *words: str) -> str:
        return run(self.folder, *words, **self.settings)

    def begin(self, deployment: str, *, due: datetime | None = None, **parameters: Any) -> str:
        """Have a deployment run, now or as if it had been due at another time; the id of the run."""
        flow, name = deployment.split("/")
        found = self.ask(
            "/deployments/filter",
            deployments={"name": {"any_": [name]}},
            flows={"name": {"any_": [flow]}},
        )
        body: dict[str, Any] = {"parameters": parameters}
        if due is not None:
            when = {"scheduled_time": due.isoformat()}
            body["state"] = {"type": "SCHEDULED", "state_details": when}
        made = self.ask(f"/deployments/{found[0]['id']}/create_flow_run", **body)
        return str(made["id"])

    def ended(self, flow_run: str) -> dict[str, Any]:
        """A run that has ended, as the server has it."""
        for _ in range(500):
            time.sleep(1)
            now = self.get(flow_run)
            if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return now
        raise AssertionError(f"{now['name']}: still {now['state_name']}")

    def deployed(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Run a deployment to its end."""
        return self.ended(self.begin(deployment, **parameters))

    def heed_events(self, heeds: bool) -> None:
        """Whether events start runs."""
        for automation in self.ask("/automations/filter"):
            self._asked(
                urllib.request.Request(
                    f"{self.url}/automations/{automation['id']}",
                    json.dumps({"enabled": heeds}).encode(),
                    {"Content-Type": "application/json"},
                    method="PATCH",
                )
            )

    def runs(self, deployment: str) -> dict[str, dict[str, Any]]:
        """All runs of a deployment that were due until now, by id."""
        found = self.ask(
            "/flow_runs/filter",
            deployments={"name": {"any_": [deployment.split("/")[1]]}},
            flow_runs={"expected_start_time": {"before_": datetime.now(UTC).isoformat()}},
        )
        return {one["id"]: one for one in found}

    def said(self, flow_run: str) -> list[str]:
        """The log of a run."""
        lines: list[str] = []
        while True:
            page = self.ask("/logs/filter", logs={"flow_run_id": {"any_": [flow_run]}},
                            limit=200, offset=len(lines))  # fmt: skip
            lines += [entry["message"] for entry in page]
            if len(page) < 200:
                return lines

    def tasks(self, flow_run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found = self.ask("/task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
        return {task["name"]: task for task in found}

    def table(self, key: str, flow_run: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.ask("/artifacts/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
        rows = [json.loads(artifact["data"]) for artifact in found if artifact["key"] == key]
        return rows[0] if rows else []

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        for sent in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, sent)
                try:
                    process.wait(timeout=8)
                except subprocess.TimeoutExpired:
                    continue


def wait_for(happened: Callable[[], object], what: str, seconds: int = 60) -> None:
    for _ in range(2 * seconds):
        if happened():
            return
        time.sleep(0.5)
    raise AssertionError(f"did not come: {what}")


def children_of(process: subprocess.Popen[bytes], words: str) -> list[psutil.Process]:
    """Processes that another started, whose command line holds `words`."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if words in " ".join(child.cmdline())]


@contextmanager
def serving(base: Path, **settings: str) -> Iterator[Prefect]:
    """A server with the deployments of a small workspace; no worker yet. All is ended afterwards.

    Args:
        base: a folder for it.
        settings: of Prefect, as environment variables.
    """
    folder = small_workspace(base / "work")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    chosen = {
        "PREFECT_HOME": str(base / "home"),
        "PREFECT_API_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        **settings,
    }
    server = Prefect(folder, url, chosen)
    try:
        server.serve()
        run(folder, "prefect", "work-pool", "create", "glacier", "--type", "process", "--overwrite",
            **chosen)  # fmt: skip
        run(folder, "prefect", "deploy", "--all", "--no-prompt", **chosen)
        yield server
    finally:
        for process in reversed(server.started):
            server.stop(process)
