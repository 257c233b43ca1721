"""A project with its services, set up as docs/operations.md says it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from compose import Stack
from workspace import BIN, environment, small_workspace


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def section(heading: str) -> str:
    """What stands under a heading of docs/operations.md."""
    text = (Path(__file__).parents[1] / "docs/operations.md").read_text()
    [found] = [s for s in re.split(r"^## ", text, flags=re.M) if s.startswith(f"{heading}\n")]
    return found


def blocks(heading: str) -> list[str]:
    """The shell blocks under a heading of docs/operations.md."""
    return re.findall(r"^```sh\n(.*?)^```", section(heading), flags=re.M | re.S)


@dataclass
class Service:
    """A project, its services, and a shell in which `docker` starts processes."""

    stack: Stack
    folder: Path
    env: dict[str, str]

    def shell(self, lines: str, code: int = 0, timeout: float = 900) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines],
            cwd=self.folder, env=self.env, timeout=timeout, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, f"{lines}\nexit {done.returncode}\n{done.stdout}"
        return done.stdout

    def secret(self, name: str) -> str:
        return (self.folder / "docker/secrets" / name).read_text()

    def ask(self, port: int, path: str, user: str = "", **body: Any) -> tuple[int, Any]:
        """Status and answer of a service, as seen from outside of it."""
        headers = {"Content-Type": "application/json"}
        headers |= body.pop("headers", {})
        if user:
            headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.stack.ports[port]}{path}",
            json.dumps(body).encode() if body else None,
            headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    @property
    def worker(self) -> str:
        return f"worker:{self.secret('mlflow_worker_password')}"

    def sql(self, database: str, query: str) -> str:
        return self.shell(
            f"docker compose exec -T postgres psql --username postgres --tuples-only --no-align "
            f'--dbname {database} --command "{query}"'
        ).strip()


@contextmanager
def services() -> Iterator[Service]:
    """The first block of the document, in a small project; all of it is ended afterwards."""
    setup = blocks("Set-up")[0]
    # Not pytest's own folder, which nobody but this user may enter: PostgreSQL runs as another.
    base = Path(tempfile.mkdtemp(prefix="glacier-services-"))
    base.chmod(0o755)
    folder = small_workspace(base / "project")
    state = base / "state.json"
    tools = base / "tools"
    tools.mkdir()
    Stack.prepared(state, folder, free_ports(4), BIN)
    shim = tools / "docker"
    shim.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("compose.py")}" '
        f'"{state}" "$@"\n'
    )
    shim.chmod(0o755)
    env = environment()
    env["PATH"] = f"{tools}:{env['PATH']}"
    env["COMPOSE_FILE"] = "docker/compose.yaml"
    lines = iter(setup.splitlines(keepends=True))
    service = None
    try:
        first = next(lines)
        subprocess.run(["bash", "-ec", first], cwd=folder, env=env, check=True)
        service = Service(Stack(state), folder, env)
        service.shell("".join(lines))
        service.stack.wait("worker")
        yield service
    finally:
        if service is not None:
            for name in reversed(service.stack.services):
                service.stack.stop(name)
            left = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(folder)]
        shutil.rmtree(base, ignore_errors=True)
        assert service is None or not left, f"still running: {left}"
