"""Memory that was given free is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

LARGE_ARRAYS = """
import resource, sys
import numpy as np
from glacier_core.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system had to hand out for ten large arrays, one after the other."""
    said = subprocess.run(
        [sys.executable, "-c", LARGE_ARRAYS, how], capture_output=True, text=True, check=True
    )
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library has mallopt")
def test_large_arrays_that_follow_each_other_are_given_the_same_memory() -> None:
    assert faults("kept") < faults("returned") / 5
