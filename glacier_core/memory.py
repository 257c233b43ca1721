"""How the process treats memory that it has given free."""

from __future__ import annotations

import contextlib
import ctypes

# mallopt(3), malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Keep large arrays that were given free for the next ones, where the C library can.

    Otherwise it returns each to the system, and has every page of the next one cleared: in
    mapping, a sixth to a third of the time of a network whose layers come and go. To be called
    before there are threads: they share one heap then, as in those of their own no large array
    has room. Does nothing where there is no `mallopt`.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give back to the system at once what is free: before other processes need some."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
