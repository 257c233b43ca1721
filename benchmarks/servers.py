"""Servers that a measurement starts for itself, and ends: Prefect's, and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import BIN, Failed, environment

# Where Debian and Ubuntu put what only servers need.
POSTGRES_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


@dataclass(frozen=True)
class Server:
    """A Prefect server that runs.

    Attributes:
        url: of its API.
        process: its first process.
        log: what it said.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def prefect_server(home: Path, threads: int, **settings: str) -> Iterator[Server]:
    """A server that runs already when a flow starts, as an operator's does.

    Args:
        home: its folder, emptied before, and removed afterwards.
        threads: of its environment.
        settings: of Prefect, as environment variables.

    Raises:
        Failed: it does not answer within a minute; with the end of its log.
    """
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    port, log = free_port(), home / "server.log"
    env = environment(threads, PREFECT_HOME=str(home), **settings)
    words = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]], cwd=home, env=env, stdout=output, stderr=output
        )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise Failed(f"Prefect's server does not answer:\n{log.read_text()[-2000:]}")
        yield Server(f"http://127.0.0.1:{port}/api", process, log)
    finally:
        _ended(process, signal.SIGTERM)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A new PostgreSQL cluster with a database `prefect`; its address as SQLAlchemy has it, no driver.

    Not as root, which it refuses: then as the user `postgres`, whom Debian's package makes.
    """
    assert POSTGRES_BIN is not None
    root = os.geteuid() == 0
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if root else []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if root:
        shutil.chown(folder, "postgres")
    words = [*as_user, str(POSTGRES_BIN / "initdb"), "--pgdata", str(folder / "data"),
             "--username=postgres", "--auth=trust", "--no-sync"]  # fmt: skip
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd="/")
    port = free_port()
    process = subprocess.Popen(
        [*as_user, str(POSTGRES_BIN / "postgres"), "-D", str(folder / "data"), "-p", str(port),
         "-k", str(folder), "-h", "127.0.0.1"],
        cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        create = [*as_user, str(POSTGRES_BIN / "createdb"), "-h", "127.0.0.1", "-p", str(port),
                  "-U", "postgres", "prefect"]  # fmt: skip
        for left in range(60, -1, -1):
            done = subprocess.run(create, cwd="/", capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
            if not left or process.poll() is not None:
                raise Failed(f"PostgreSQL does not answer: {done.stderr}")
            time.sleep(0.5)
        yield f"postgres@127.0.0.1:{port}/prefect"
    finally:
        # At SIGTERM it waits for its clients.
        _ended(process, signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


def _ended(process: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    process.send_signal(sign)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
