"""One promotion at a time in a project, and who it is."""

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

from filelock import FileLock, Timeout

from glacier_core.config import Project
from glacier_core.errors import ServiceError
from glacier_core.files import write_json
from glacier_core.model.tracking import home

logger = logging.getLogger(__name__)


@contextmanager
def alone(project: Project, wait: float) -> Iterator[None]:
    """Hold the project's lock: a second comparison would be with a champion that is going.

    In the project's own folder, as MLflow's store has no locks; released by the system when a
    process dies.

    Raises:
        ServiceError: another holds it for longer than `wait` seconds.
    """
    place = home(project.root) / "data" / "promotion.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    holder = place.with_suffix(".json")  # the lock's own file is emptied by whoever tries it
    lock = FileLock(place)
    try:
        with suppress(Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            if wait > 0:
                logger.info("waiting up to %g s for %s", wait, _told(holder))
            lock.acquire(timeout=max(wait, 0))
    except Timeout:
        raise ServiceError(
            f"{_told(holder)} holds {place}, also after {wait:g} s. Two at once would decide on a "
            "champion that is changing: run this again when it is done, or with a longer --wait."
        ) from None
    try:
        write_json(holder, {"pid": os.getpid(), "by": who(), "since": now()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _told(holder: Path) -> str:
    """Who holds the lock, as far as is known."""
    try:
        content = json.loads(holder.read_text())
        return (
            f"a promotion by {content['by']} (process {content['pid']}, since {content['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another promotion"


def who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in containers
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
