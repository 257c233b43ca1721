"""Prefect's task runner on Dask, so that a worker that dies takes its scene in flight along, no more.

Imported only where Dask is asked for: it is an extra.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import Any
from uuid import UUID, uuid4

import cloudpickle
from distributed.scheduler import KilledWorker
from prefect.client.schemas.objects import RunInput, State
from prefect.states import Crashed
from prefect.tasks import Task
from prefect.utilities.collections import visit_collection
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from flows.side_by_side import DASK, worker_environment
from glacier_core.errors import ServiceError

_LOOK_AGAIN = 2.0  # seconds: whether workers have joined


class KeptFuture(PrefectDaskFuture[Any]):
    """What becomes of a task, fetched as soon as it is there.

    Dask leaves results where they came about, and repeats, when that worker dies, every task whose
    result was on it and is still asked for: all the scenes that it had done. What is kept here,
    nobody asks for any more.

    Attributes:
        scene: what the task belongs to: the same for all tasks that need each other's results.
    """

    def __init__(self, future: Any, task_run_id: UUID, scene: UUID, places: Places):
        super().__init__(task_run_id=task_run_id, wrapped_future=future)
        self.scene = scene
        self._places = places
        self._done = threading.Event()
        future.add_done_callback(self._keep)

    def _keep(self, future: Any) -> None:
        try:
            state: State[Any] = future.result()
        except KilledWorker as error:
            state = Crashed(
                message=f"given up, as {error.allowed_failures + 1} workers died with it: perhaps "
                f"too little memory. The last was {error.last_worker.address}"
            )
        except (Exception, CancelledError) as error:
            state = Crashed(message=f"lost by Dask: {error!r}")
        with self._places.changing:
            self._final_state = state
            future.release()
            self._places.leave(self.scene)
        self._done.set()

    @property
    def now(self) -> Any:
        """What a task that needs the result is given: its state, or where Dask will have it."""
        return self._final_state or self.wrapped_future

    def wait(self, timeout: float | None = None) -> None:
        self._done.wait(timeout)

    def result(self, timeout: float | None = None, raise_on_failure: bool = True) -> Any:
        if not self._done.wait(timeout) or self._final_state is None:
            raise TimeoutError(f"Task run {self.task_run_id}: not done within {timeout} seconds")
        state: Any = self._final_state
        return state.result(raise_on_failure=raise_on_failure, _sync=True)

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        self.wrapped_future.add_done_callback(lambda _: fn(self))


class Places:
    """As many scenes under way as the workers have threads.

    Dask deals out at once all that it is given. A worker that dies would take along a queue, each of
    which counts as having killed it, and four scenes too large for the memory would end all others.
    """

    def __init__(self) -> None:
        # Held also from finding out where a result is until that is handed on: it must not go
        # elsewhere in between.
        self.changing = threading.Condition()
        self._under_way: Counter[UUID] = Counter()

    def enter(self, scene: UUID) -> None:
        self._under_way[scene] += 1

    def leave(self, scene: UUID) -> None:
        self._under_way[scene] -= 1
        if not self._under_way[scene]:
            del self._under_way[scene]
            self.changing.notify_all()

    def wait(self, client: PrefectDaskClient) -> None:
        """Wait until one more scene may begin; what holds `changing` lets go of it meanwhile."""
        while len(self._under_way) >= max(1, sum(client.nthreads().values())):
            self.changing.wait(_LOOK_AGAIN)


class ClusterRunner(DaskTaskRunner):
    """Runs tasks on a Dask cluster: one made for this run on this machine, or one that is there."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self._places = Places()

    @classmethod
    def of(cls, wanted: int | str) -> ClusterRunner:
        """As `dask_wanted` has it: so many workers here, or the address of a scheduler."""
        if isinstance(wanted, str):
            return cls(address=wanted)
        return cls(
            cluster_kwargs={
                "n_workers": wanted,
                "threads_per_worker": 1,  # a scene at a time: each uses the threads of its process
                "env": worker_environment(wanted),
                "host": "127.0.0.1",
                # Who reaches a scheduler makes its workers run anything: with certificates of this
                # run alone, other users of the machine do not.
                "security": True,
                "scheduler_kwargs": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                "worker_dashboard_address": None,
            }
        )

    @property
    def client(self) -> PrefectDaskClient:
        """Connected when the first task is submitted.

        Raises:
            ServiceError: no scheduler answers.
        """
        first = self._client is None
        try:
            client = super().client
        except OSError as error:
            raise ServiceError(
                f"{DASK}={self.address}: no Dask scheduler answers there ({error}). Start it (`dask "
                "scheduler`), or correct the address"
            ) from error
        if first and self.address and not client.nthreads():
            self.logger.warning("%s has no workers; tasks wait until there are some", self.address)
        return client

    def submit(  # type: ignore[override]
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> KeptFuture:
        """Hand a task to Dask; one that needs no other's result waits here for a place."""
        needed: list[KeptFuture] = []

        def handed_on(part: Any) -> Any:
            if not isinstance(part, KeptFuture):
                return part
            needed.append(part)
            return part.now

        client = self.client
        _carry_along(task)
        with self._places.changing:
            given = visit_collection([parameters, wait_for], visit_fn=handed_on, return_data=True)
            scene = needed[0].scene if needed else uuid4()
            if not needed:
                self._places.wait(client)
            future = super().submit(task, given[0], given[1], dependencies)
            self._places.enter(scene)
            return KeptFuture(future.wrapped_future, future.task_run_id, scene, self._places)


def _carry_along(task: Task[Any, Any]) -> None:
    """Send a task's module with it where others could not import it.

    Prefect runs a deployment from its file (`flows/maps.py`) as a module `maps`, which no scheduler
    or worker on its own has.
    """
    name = task.fn.__module__
    if not name.startswith("flows.") and name in sys.modules:
        cloudpickle.register_pickle_by_value(sys.modules[name])
