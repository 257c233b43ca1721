"""How many threads a process works with, and work handed to them a little ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from glacier_core.errors import InputError

THREADS = "GLACIER_THREADS"

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count() -> int:
    """Threads of this process: `GLACIER_THREADS`, or as many as there are cores for it.

    Who runs a process for each scene sets it, so that they do not take each other's cores.

    Raises:
        InputError: it is no positive whole number.
    """
    wanted = os.environ.get(THREADS, "")
    if not wanted:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if not wanted.isdigit() or int(wanted) < 1:
        raise InputError(f"{THREADS}={wanted}: expected a whole number of threads, 1 or more")
    return int(wanted)


def in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], count: int | None = None
) -> Iterator[Result]:
    """Results in the order of `items`, which are taken only a few ahead of what is done.

    For functions that leave Python's lock, as those of NumPy, GDAL and files do. If one fails, what
    is under way is ended before the error goes on.

    Args:
        function: of an item.
        items: to work on.
        count: threads, and one less than the items that are under way; None for `thread_count`.
    """
    count = count or thread_count()
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                if len(pending) > count:
                    yield pending.popleft().result()
                pending.append(pool.submit(function, item))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
