"""Timing fresh processes: seconds, peak memory of all that they start, alternately, warm and quiet."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent

# Often enough for what lasts; a peak between two looks at a single process is caught by the
# kernel's own record.
_LOOK_S, _CHILDREN_S = 0.03, 0.3
# Kilobytes on Linux, bytes on macOS.
_RECORD_UNIT = 1 if sys.platform == "darwin" else 1024
_DISK_TEST_BYTES = 128 * 2**20


class Failed(RuntimeError):
    """A measured command ended with an error."""


@dataclass(frozen=True)
class Measured:
    """One fresh process, with all that it started.

    Attributes:
        wall_s: from before its start to after its end; interpreter and imports count.
        peak_bytes: the largest of the sums of resident memory of the processes, and no less than
            the largest that the kernel recorded of one. Pages that processes share, and those of
            files mapped into memory, count in each.
        said: what a worker's function returned.
        cpu_s: of the processor, by the process and all that it started and waited for; what else
            the machine does hardly changes it.
    """

    wall_s: float
    peak_bytes: int
    said: dict[str, Any] = field(default_factory=dict)
    cpu_s: float = 0.0

    @property
    def seconds(self) -> float:
        """What counts: of a floor, its own time; of all else, that of the process."""
        return float(self.said.get("seconds", self.wall_s))


def environment(threads: int, **extra: str) -> dict[str, str]:
    """In which `glacier`, `dvc` and the workers are this checkout's, quiet, with equal threads."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "PREFECT_", "DVC_", "GIT_", "GDAL_"))
    }
    return {
        **inherited,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # as the command line sets it, for every side alike
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **extra,
    }


def run(words: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Measured:
    """Run a command to its end, and watch its memory.

    Raises:
        Failed: with the end of its output.
    """
    own = _own_peak()
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(words, cwd=cwd, env=env, stdout=output, stderr=output)
        over = threading.Event()
        peaks: list[int] = []
        watcher = threading.Thread(target=_watch, args=(process.pid, over, peaks))
        watcher.start()
        # For the kernel's record; Popen's own wait would throw it away.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        watcher.join()
        if process.returncode != 0:
            output.seek(0)
            tail = "".join(output.readlines()[-30:])
            raise Failed(f"{' '.join(words)}: exit {process.returncode}\n{tail}")
    # A child's record begins with its parent's peak: below that, it says nothing of the child.
    recorded = usage.ru_maxrss * _RECORD_UNIT
    recorded = recorded if recorded > own else 0
    cpu = usage.ru_utime + usage.ru_stime
    return Measured(wall, max([recorded, *peaks]), cpu_s=cpu)


def _own_peak() -> int:
    """The largest that this process has been since its program was started, bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RECORD_UNIT
    [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def _watch(number: int, over: threading.Event, peaks: list[int]) -> None:
    """Sums of the resident memory of a process and its descendants, until it is over."""
    try:
        parent = psutil.Process(number)
    except psutil.NoSuchProcess:
        return
    family, looked = [parent], 0.0
    while not over.wait(_LOOK_S):
        now = time.monotonic()
        total = 0
        try:
            if now - looked > _CHILDREN_S:
                family, looked = [parent, *parent.children(recursive=True)], now
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peaks.append(total)


def work(place: str, arguments: Mapping[str, Any], *, threads: int) -> Measured:
    """Run `MODULE:FUNCTION` of this package in a fresh process; see `worker`."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [
            sys.executable, "-m", "benchmarks.worker", place, json.dumps(arguments), str(result),
        ]  # fmt: skip
        found = run(words, cwd=REPOSITORY, env=environment(threads))
        said = json.loads(result.read_text())
        return Measured(found.wall_s, found.peak_bytes, said, found.cpu_s)


def in_turn(parts: Mapping[str, Measured]) -> Measured:
    """Commands that ran one after the other, as one; what each took is in `said`."""
    return Measured(
        sum(part.wall_s for part in parts.values()),
        max(part.peak_bytes for part in parts.values()),
        {"parts": {name: part.wall_s for name, part in parts.items()}},
    )


def alternately(
    sides: Mapping[str, Callable[[], Measured]],
    repeat: int,
    inputs: Sequence[Path],
    say: Callable[[str], None],
) -> dict[str, list[Measured]]:
    """Measure every side, then every side again, so that what else the machine does hits all.

    Before each, what is still to be written is written, and the inputs are read once: all
    sides start with them in the page cache, and pay for nobody's output but their own.
    """
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    for number in range(repeat):
        # Forwards, then backwards: nobody always runs first.
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            settle(inputs)
            measured = sides[name]()
            say(
                f"  {name} {number + 1}/{repeat}: {measured.seconds:.2f} s, "
                f"{measured.peak_bytes / 1e9:.2f} GB"
            )
            found[name].append(measured)
    return found


def settle(inputs: Sequence[Path]) -> None:
    os.sync()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass


def side(
    found: Sequence[Measured], unit: Callable[[Measured], float] | None = None
) -> dict[str, Any]:
    """Of several measurements: median and all values of the time, or another unit; largest peak."""
    take = unit or (lambda one: one.seconds)
    values = [take(one) for one in found]
    summary: dict[str, Any] = {
        "median": statistics.median(values),
        "values": values,
        "peak_bytes": max(one.peak_bytes for one in found),
    }
    if found and "parts" in found[0].said:
        summary["parts"] = {
            name: statistics.median(one.said["parts"][name] for one in found)
            for name in found[0].said["parts"]
        }
    return summary


# --- The machine ---


def versions() -> dict[str, str]:
    """Of what does the work, asked in a process of its own: importing it takes memory."""
    import rasterio

    names = ("torch", "rasterio", "numpy", "dvc", "prefect")
    return {"gdal": rasterio.__gdal_version__, **{name: version(name) for name in names}}


def machine(cache: Path, threads: int) -> dict[str, Any]:
    """What all numbers depend on."""
    model, flags = platform.processor(), set()
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = (line.partition(":") for line in described.read_text().splitlines())
        pairs = {name.strip(): value.strip() for name, _, value in lines}
        model, flags = pairs.get("model name", model), set(pairs.get("flags", "").split())
    names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    return {
        "cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity")
        else psutil.cpu_count(),
        "threads": threads,
        "cpu": model,
        "flags": [name for name in names if name in flags],
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "disk_write_mb_s": round(_disk_speed(cache)),
        "python": platform.python_version(),
        **work("measure:versions", {}, threads=threads).said,
    }  # fmt: skip


def _disk_speed(folder: Path) -> float:
    """Megabytes a second that reach the disk itself."""
    path, content = folder / "disk_test.bin", os.urandom(2**24)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(_DISK_TEST_BYTES // len(content)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return _DISK_TEST_BYTES / 1e6 / seconds


def code() -> str:
    """The commit, and what has been changed since."""
    import hashlib

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit, changes = git("rev-parse", "--short=12", "HEAD"), git("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else commit
