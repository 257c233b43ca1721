"""Scenes side by side: in threads of this process, or by the workers of a Dask cluster.

Which of them is a matter of the machine, not of the method: `GLACIER_DASK` says it, and the flows are
the same.
"""

from __future__ import annotations

import os
import re
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from glacier_core.errors import InputError
from glacier_core.threads import THREADS, thread_count

DASK = "GLACIER_DASK"

_LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
_ADDRESS = re.compile(r"(tcp|tls)://[^/\s]+:[0-9]{1,5}")


def dask_wanted() -> int | str | None:
    """What `GLACIER_DASK` asks for.

    Returns:
        A number of worker processes on this machine (`local:N`), the address of a scheduler that runs
        (`tcp://HOST:PORT`, `tls://HOST:PORT`), or None: no Dask.

    Raises:
        InputError: it is none of these, or Dask is not installed.
    """
    wanted = os.environ.get(DASK, "")
    if not wanted:
        return None
    local = _LOCAL.fullmatch(wanted)
    if not local and not _ADDRESS.fullmatch(wanted):
        raise InputError(
            f"{DASK}={wanted}: expected local:N (N worker processes on this machine), or "
            "tcp://HOST:PORT or tls://HOST:PORT (a Dask scheduler that runs); empty for no Dask"
        )
    try:
        import prefect_dask  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{DASK}={wanted}: Dask is not installed ({error}). In the project's clone: pip install "
            "--constraint constraints.txt '.[dask]', on every machine that works; or unset it"
        ) from error
    return int(local[1]) if local else wanted


def worker_environment(workers: int) -> dict[str, str]:
    """Environment of each of some worker processes that share this machine.

    `GLACIER_THREADS` threads each, or its share of the cores: all cores in each, and they would take
    each other's. Torch goes by `OMP_NUM_THREADS` and `MKL_NUM_THREADS`, which Dask sets to 1.

    Raises:
        InputError: GLACIER_THREADS is no number.
    """
    threads = thread_count() if os.environ.get(THREADS) else max(1, thread_count() // workers)
    names = (THREADS, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # A worker that maps a scene fans out no further.
    return dict.fromkeys(names, str(threads)) | {DASK: ""}


class SceneRunner(ThreadPoolTaskRunner[Any]):
    """Task runner of flows whose tasks are by scene: threads, or Dask where `GLACIER_DASK` says so."""

    def duplicate(self) -> TaskRunner[Any]:  # type: ignore[override]
        """The runner of one run: Prefect asks for it when the run starts.

        So the environment counts in which a flow runs, not that in which it was deployed.
        """
        try:
            wanted = dask_wanted()
        except InputError:
            wanted = None  # the flow asks again, and ends with what is wrong
        if wanted is None:
            return super().duplicate()
        from flows.cluster import ClusterRunner

        return ClusterRunner.of(wanted)
