"""`docker compose` without a container engine: the services of docker/compose.yaml as processes.

Commands, environments, secrets, health checks and the order of `depends_on` are read from that
file. What differs is what a container would bring: names of hosts become 127.0.0.1, ports free
ones, places inside containers folders of the test, and PostgreSQL that of Debian's packages.

Run as a program (`compose.py STATE compose VERB ...`), it stands in for `docker`, so that scripts
and documents that call `docker compose` can be run as they are written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

# Where Debian and Ubuntu put what only servers need.
POSTGRES_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
_PORTS = (5432, 5000, 4200, 8080)
_HOSTS = ("postgres", "mlflow", "prefect")


def interpolated(text: str, settings: dict[str, str]) -> str:
    """`${NAME:-default}` as compose replaces it.

    Raises:
        KeyError: a variable without default is not set.
    """

    def value(found: re.Match[str]) -> str:
        name, default = found["name"], found["default"]
        return settings.get(name) or (default if default is not None else settings[name])

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value, text)


class Stack:
    """The services as processes; what is known of them lies in a state file."""

    def __init__(self, state: Path) -> None:
        self.state = state
        known = json.loads(state.read_text())
        self.project, self.base = Path(known["project"]), Path(known["base"])
        self.ports = {int(inside): int(outside) for inside, outside in known["ports"].items()}
        self.bin = known["bin"]
        settings = dict(
            line.split("=", 1)
            for line in (self.project / "docker/.env").read_text().splitlines()
        )  # fmt: skip
        text = (self.project / "docker/compose.yaml").read_text()
        content = yaml.safe_load(interpolated(text, settings))
        self.services: dict[str, Any] = content["services"]
        self.secrets = {
            f"/run/secrets/{name}": str((self.project / "docker" / secret["file"]).resolve())
            for name, secret in content["secrets"].items()
        }

    @staticmethod
    def prepared(state: Path, project: Path, ports: list[int], bin_folder: Path) -> None:
        """Write the state of a stack of which nothing runs yet."""
        state.write_text(
            json.dumps(
                {
                    "project": str(project),
                    "base": str(state.parent),
                    "ports": dict(zip(_PORTS, ports, strict=True)),
                    "bin": str(bin_folder),
                }
            )
        )

    # --- What a container would see ----------------------------------------------------------

    def _places(self, service: str) -> dict[str, str]:
        """Places inside a service's container, and what stands for them here."""
        about = self.services[service]
        places = {"/opt/glacier/docker": str(self.project / "docker")}
        for secret in about.get("secrets", []):
            places[f"/run/secrets/{secret}"] = self.secrets[f"/run/secrets/{secret}"]
        for volume in about.get("volumes", []):
            source, target = volume.split(":")[:2]
            bound = source.startswith((".", "/"))
            path = self.project / "docker" / source if bound else self.base / "volumes" / source
            path.mkdir(parents=True, exist_ok=True)
            places[target] = str(path.resolve())
        return places

    def translated(self, service: str, text: str) -> str:
        """Hosts, ports and places of a container as those of this machine."""
        hosts = "|".join(_HOSTS)
        text = re.sub(rf"(?<![\w/@.-])({hosts})(?=:\d)", "127.0.0.1", text)
        text = re.sub(rf"(?<=://)({hosts})(?=[:/])", "127.0.0.1", text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        text = re.sub(
            rf"\b({'|'.join(map(str, _PORTS))})\b", lambda p: str(self.ports[int(p[1])]), text
        )
        for inside, here in sorted(self._places(service).items(), key=lambda p: -len(p[0])):
            text = re.sub(rf"(?<![\w/.]){re.escape(inside)}(?![\w-])", here, text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """What compose.yaml gives to a service, and nothing of the test's own but what finds code."""
        home = self.base / "home" / service
        home.mkdir(parents=True, exist_ok=True)
        given = {
            # Both images' own.
            "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "HOME": str(home), "PATH": f"{self.bin}:{POSTGRES_BIN}:/usr/bin:/bin",
            # So that a run is seen at once; and many share this machine.
            "PREFECT_WORKER_QUERY_SECONDS": "2", "OMP_NUM_THREADS": "2",
        }  # fmt: skip
        given |= {n: os.environ[n] for n in ("PYTHONPATH", "OMP_WAIT_POLICY") if n in os.environ}
        for name, value in self.services[service].get("environment", {}).items():
            here = self.translated(service, value)
            given[name] = "127.0.0.1" if name.endswith("HOST") and value in _HOSTS else here
        return given

    def _words(self, service: str, command: list[str]) -> list[str]:
        about = self.services[service]
        # As docker/Dockerfile says it for images of our own, unless compose.yaml takes it away.
        own = "build" in about and about.get("entrypoint") is None
        entry = ["/opt/glacier/docker/bin/with-secrets.sh"] if own else []
        return [self.translated(service, word) for word in [*entry, *command]]

    def call(self, service: str, command: list[str], *, entry: bool = True) -> int:
        """Run a command as `docker compose run` does, or `exec` (which knows no entry point)."""
        words = self._words(service, command) if entry else [
            self.translated(service, word) for word in command]  # fmt: skip
        given = self.environment(service)
        if service == "postgres":  # inside its container, clients find the server's socket
            given |= {"PGHOST": str(self.base / "postgres"), "PGPORT": str(self.ports[5432])}
        folder = self.project if service in ("setup", "worker", "trainer") else self.base
        return subprocess.run(words, env=given, cwd=folder, check=False).returncode

    # --- Starting and stopping ---------------------------------------------------------------

    def _pid(self, service: str) -> Path:
        return self.base / f"{service}.pid"

    def running(self, service: str) -> psutil.Process | None:
        """The process of a service, None where it does not run."""
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
            pid, born = json.loads(self._pid(service).read_text())
            process = psutil.Process(pid)
            if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def up(self, service: str) -> None:
        """Start a service after those it depends on, each in the state that it waits for."""
        about = self.services[service]
        if self.running(service):
            return
        for other, how in about.get("depends_on", {}).items():
            self.up(other)
            if how["condition"] == "service_completed_successfully":
                code = self.call(other, self.services[other]["command"])
                assert code == 0, f"{other} ended with {code}"
            else:
                self.wait(other)
        # A service that others wait to complete is run by them.
        if about["restart"] != "no":
            self._spawn(service)

    def _spawn(self, service: str) -> None:
        about = self.services[service]
        folder = self.project if "working_dir" in about else self.base
        words = self._words(service, about["command"])
        with (self.base / f"{service}.log").open("ab") as log:
            process = subprocess.Popen(
                self._postgres(words) if service == "postgres" else words,
                env=self.environment(service), cwd=folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        born = psutil.Process(process.pid).create_time()
        self._pid(service).write_text(json.dumps([process.pid, born]))

    def _postgres(self, words: list[str]) -> list[str]:
        """What the image's own entry point does: a cluster at the first start, not as root."""
        assert POSTGRES_BIN is not None
        folder = self.base / "postgres"
        # It refuses to run as root; Debian's package made the user.
        as_user = ["/usr/bin/setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        as_user = as_user if os.geteuid() == 0 else []
        if not folder.exists():
            folder.mkdir(mode=0o755)
            secret = folder / "password"
            secret.write_bytes(Path(self.secrets["/run/secrets/postgres_password"]).read_bytes())
            if as_user:
                for path in (folder, secret):
                    shutil.chown(path, "postgres")
            arguments = self.services["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].split()
            subprocess.run(
                [*as_user, str(POSTGRES_BIN / "initdb"), "--pgdata", str(folder / "data"),
                 "--username", "postgres", "--pwfile", str(secret), "--no-sync", *arguments],
                check=True, stdout=subprocess.DEVNULL, cwd="/",
            )  # fmt: skip
            secret.unlink()
        return [*as_user, str(POSTGRES_BIN / words[0]), *words[1:], "-D", str(folder / "data"),
                "-p", str(self.ports[5432]), "-k", str(folder), "-h", "127.0.0.1"]  # fmt: skip

    def healthy(self, service: str) -> bool:
        """What the health check of compose.yaml says."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            [self.translated(service, word) for word in words],
            env=self.environment(service), cwd="/", capture_output=True, check=False,
        )  # fmt: skip
        return done.returncode == 0

    def wait(self, service: str, seconds: float = 180) -> None:
        """Wait until a service is healthy.

        Raises:
            AssertionError: it ended, or the time is over; with the end of its log.
        """
        end = time.monotonic() + seconds
        while not self.healthy(service):
            alive = self.running(service) is not None
            log = (self.base / f"{service}.log").read_text()[-3000:]
            assert alive, f"{service} ended:\n{log}"
            assert time.monotonic() < end, f"{service} is not healthy:\n{log}"
            time.sleep(0.5)

    def revive(self) -> list[str]:
        """Start again what ended by itself, as `restart: unless-stopped` does; their names."""
        ended = [n for n in self.services if self._pid(n).exists() and not self.running(n)]
        for service in ended:
            assert self.services[service]["restart"] == "unless-stopped", service
            self._spawn(service)
        return ended

    def stop(self, service: str) -> None:
        """End a service and all that it started."""
        process = self.running(service)
        self._pid(service).unlink(missing_ok=True)
        if process is None:
            return
        family = [process, *process.children(recursive=True)]
        # PostgreSQL waits for its clients at SIGTERM; its image is stopped with SIGINT too.
        sign = signal.SIGINT if service == "postgres" else signal.SIGTERM
        process.send_signal(sign)
        _, left = psutil.wait_procs(family, timeout=15)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(left, timeout=5)


def docker(words: list[str], stack: Stack) -> int:
    """What `docker compose VERB` does, for the verbs that scripts and documents use."""
    assert words.pop(0) == "compose", words
    while words[0].startswith("-"):
        words = words[2:] if words[0] in ("--file", "-f", "--profile") else words[1:]
    verb, *rest = words
    while rest and rest[0].startswith("-"):
        rest.pop(0)
    if verb == "up":
        for service in rest or [n for n, s in stack.services.items() if "profiles" not in s]:
            stack.up(service)
        return 0
    if verb in ("stop", "restart"):
        for service in rest or list(stack.services):
            stack.stop(service)
        for service in rest if verb == "restart" else []:
            stack.up(service)
        return 0
    if verb == "down":
        return docker(["compose", "stop"], stack)
    service, *command = rest
    if verb == "run":
        for other, how in stack.services[service].get("depends_on", {}).items():
            if "--no-deps" not in words:
                stack.up(other)
                if how["condition"] == "service_healthy":
                    stack.wait(other)
        return stack.call(service, command or stack.services[service]["command"])
    assert verb == "exec", verb
    log = (stack.base / f"{service}.log").read_text()[-3000:]
    assert stack.running(service), f"{service} does not run:\n{log}"
    return stack.call(service, command, entry=False)


if __name__ == "__main__":
    sys.exit(docker(sys.argv[2:], Stack(Path(sys.argv[1]))))
