"""What is installed, reachable, locked and free."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import psutil

from glacier_core.config import Project
from glacier_core.errors import InputError, ServiceError

_PACKAGES = "prefect fastapi sqlalchemy mlflow dvc torch rasterio geopandas numpy pandas".split()
_LOW_DISK_GB = 10
_PATIENCE_S = 5  # with an API that is only asked whether it is there
_PORTS = {"https": 443, "postgresql": 5432, "mysql": 3306}


@dataclass(frozen=True)
class Finding:
    """One line of the report; `state` is ok, warn or fail."""

    state: str
    subject: str
    text: str


def examine(project: Project, *, online: bool = False) -> Iterator[Finding]:
    """Look at everything the pipeline needs; changes nothing.

    Args:
        project: whose.
        online: ask the STAC APIs of conf/landsat.yaml too.
    """
    yield Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")
    yield from _packages()
    yield from _hardware(project)
    yield from _settings(project)
    yield from _dvc(project)
    yield from _mlflow(project)
    yield from _prefect()
    if online:
        yield from _apis(project)


def _packages() -> Iterator[Finding]:
    missing = []
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", "installed", ", ".join(versions))
    if missing:
        yield Finding("fail", "installed", f"missing: {', '.join(missing)}; run `make setup`")


def _hardware(project: Project) -> Iterator[Finding]:
    import torch

    from glacier_core.model.predictor import choose_device, choose_precision

    device = choose_device("auto")
    precision = choose_precision("auto", device) or torch.float32
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    yield Finding("ok", "compute", f"{name}, trains in {str(precision).removeprefix('torch.')}")
    memory = psutil.virtual_memory().available / 1e9
    yield Finding("ok" if memory > 2 else "warn", "memory", f"{memory:.1f} GB free")
    disk = shutil.disk_usage(project.root).free / 1e9
    yield Finding("ok" if disk > _LOW_DISK_GB else "warn", "disk", f"{disk:.0f} GB free")


def _settings(project: Project) -> Iterator[Finding]:
    try:
        scenes = len(project.masking.scenes)
        _ = (project.params, project.postprocess, project.train)
        yield Finding("ok", "settings", f"conf/ and params.yaml are valid, {scenes} scenes")
        absent = [
            scene.img_path
            for scene in project.masking.scenes.values()
            if not (project.root / scene.img_path).exists()
        ]
        if absent and not project.masking.simulated:
            yield Finding("fail", "scenes", f"{len(absent)} missing, first {absent[0]}")
    except InputError as error:
        yield Finding("fail", "settings", str(error))


def _in_use(lock: Path) -> bool:
    """Whether DVC's lock file names a process that lives; DVC passes over one that was killed."""
    try:
        modes = json.loads(lock.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    entries = [entry for mode in modes.values() for entry in mode.values()]
    holders = [h for entry in entries for h in (entry if isinstance(entry, list) else [entry])]
    return any(psutil.pid_exists(int(holder["pid"])) for holder in holders)


def _dvc(project: Project) -> Iterator[Finding]:
    if not (project.root / ".dvc").is_dir():
        yield Finding("fail", "dvc", "not initialised here; run `dvc init`")
        return
    held = _in_use(project.root / ".dvc/tmp/rwlock")
    state = "in use by a running stage" if held else "free"
    yield Finding("warn" if held else "ok", "dvc", f"repository {state}")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "list"],
        cwd=project.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    remotes = done.stdout.split()
    yield Finding(
        "ok", "dvc", f"remote: {remotes[0]}" if remotes else "no remote: `dvc push` has no target"
    )


def _answers(url: str) -> bool:
    parts = urlparse(url)
    port = parts.port or _PORTS.get(parts.scheme.split("+")[0], 80)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def _mlflow(project: Project) -> Iterator[Finding]:
    from glacier_core.model.tracking import tracking_uri

    uri = tracking_uri(project.root)
    if urlparse(uri).hostname:
        up = _answers(uri)
        shown = re.sub(r"//.*@", "//", uri)  # a database's address may hold a password
        yield Finding("ok" if up else "fail", "mlflow", f"{shown} {'answers' if up else 'is down'}")
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        yield Finding("ok", "mlflow", f"{path.name} will be created by the first training")
        return
    try:
        with sqlite3.connect(path, timeout=2) as connection:
            connection.execute("begin immediate")
            connection.rollback()
            count = connection.execute("select count(*) from runs").fetchone()[0]
        yield Finding("ok", "mlflow", f"{path.name}: {count} runs, not locked")
    except sqlite3.Error as error:
        yield Finding("warn", "mlflow", f"{path.name}: {error}")


def _prefect() -> Iterator[Finding]:
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        yield Finding("ok", "prefect", "PREFECT_API_URL is not set: flows start their own server")
    else:
        up = _answers(url)
        yield Finding("ok" if up else "fail", "prefect", f"{url} {'answers' if up else 'is down'}")


def _apis(project: Project) -> Iterator[Finding]:
    """Whether each STAC API answers. One that nothing here asks may be away."""
    from glacier_core.landsat.conf import landsat_settings
    from glacier_core.landsat.requesting import LoginError, Service

    try:
        conf = landsat_settings(project)
    except InputError as error:
        yield Finding("fail", "stac", str(error))
        return
    used = {conf.apis.default, *(area.api for area in conf.areas.values())}
    used |= {conf.dem_collection.api} if conf.dem_collection else set()
    short = conf.apis.patience.model_copy(update={"timeout_s": _PATIENCE_S, "tries": 1})
    for name, api in conf.apis.known.items():
        bad = "fail" if name in used else "warn"
        try:
            answer = Service(name, short, sign=api.sign, token=api.token).json("GET", api.url)
        except LoginError as error:
            yield Finding(bad, "stac", f"needs a login: {error}")
        except ServiceError as error:
            yield Finding(bad, "stac", f"cannot be used: {error}")
        else:
            stac = isinstance(answer, dict) and "stac_version" in answer
            said = f"{name}: {api.url} {'answers' if stac else 'answers, but is no STAC API'}"
            yield Finding("ok" if stac else bad, "stac", said)
