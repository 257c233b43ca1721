"""What is compared with what: a function a row, by the names that `--only` takes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.projects import Bench
from benchmarks.results import Row
from benchmarks.rows.dataset import dataset, quadruple, slice_bytes
from benchmarks.rows.many import flow, processes, repro
from benchmarks.rows.mapping import mapping, outlines
from benchmarks.rows.masking import masking
from benchmarks.rows.training import training

ROWS: dict[str, Callable[[Bench], Row]] = {
    "dataset": dataset,
    "bytes": slice_bytes,
    "mask": masking,
    "train": training,
    "map": mapping,
    "outlines": outlines,
    "repro": repro,
    "flow": flow,
    "processes": processes,
    "quadruple": quadruple,
}
"""In the order in which they run."""

ON_REQUEST = {"quadruple"}
"""Only when they are named: they take long, and much disk."""
