"""One at a time in a project: training in its folder, decisions about its models; and who it is."""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glacier_core.config import Project
from glacier_core.errors import ServiceError
from glacier_core.files import write_json
from glacier_core.model.tracking import home

logger = logging.getLogger(__name__)
Log = logging.Logger | logging.LoggerAdapter[Any]


@contextmanager
def alone(project: Project, what: str, wait: float) -> Iterator[None]:
    """Hold what keeps others from deciding about this project's models at the same time.

    A second comparison would be with a champion that is going; a registration in the middle of a
    decision would lose its alias to it, and two at once would make two versions of one training.
    In the project's own folder, as MLflow's store has no locks.

    Args:
        project: whose models.
        what: is being done, for those who wait: `promotion`.
        wait: seconds to wait while another holds it.

    Raises:
        ServiceError: another holds it for longer than that.
    """
    place = home(project.root) / "data/promotion.lock"
    why = "Two at once would decide on a champion that is changing"
    with _held(FileLock(place), place, what, wait, why, logger):
        yield


@contextmanager
def one_at_a_time(project: Project, what: str, wait: float, log: Log = logger) -> Iterator[None]:
    """Hold what keeps a second training, with all that is done before and after it, out of a folder.

    Whoever holds it may ask again in the same thread: a retraining that calls the flow which
    trains.

    Args:
        project: whose folder; a copy of it, as of `dvc exp run --temp`, has its own.
        what: is being done, for those who wait: `training`.
        wait: seconds to wait while another holds it.
        log: where it is said for whom this one waits.

    Raises:
        ServiceError: another holds it for longer than that.
    """
    place = project.root.resolve() / "data/training.lock"
    place.parent.mkdir(parents=True, exist_ok=True)  # a lock that is shared is made in its place
    lock = FileLock(place, is_singleton=True)
    if lock.is_locked:
        yield
        return
    why = "Two at once would change the same files"
    with _held(lock, place, what, wait, why, log):
        yield


@contextmanager
def _held(
    lock: FileLock, place: Path, what: str, wait: float, why: str, log: Log
) -> Iterator[None]:
    """Hold a lock, and say who holds it; the system lets go of it when the process dies."""
    place.parent.mkdir(parents=True, exist_ok=True)
    holder = place.with_suffix(".json")  # the lock's own file is emptied by whoever tries it
    try:
        with suppress(Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            if wait > 0:
                log.info("waiting up to %g s for %s", wait, _told(holder))
            lock.acquire(timeout=max(wait, 0))
    except Timeout:
        raise ServiceError(
            f"{_told(holder)} holds {place}, also after {wait:g} s. {why}: run this again when it "
            "is done, or let it wait longer."
        ) from None
    try:
        write_json(holder, {"what": what, "pid": os.getpid(), "by": who(), "since": now()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _told(holder: Path) -> str:
    """Who holds a lock, as far as is known."""
    try:
        content = json.loads(holder.read_text())
        return (
            f"a {content['what']} by {content['by']} (process {content['pid']}, "
            f"since {content['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
