"""Our own table of scenes, `data/landsat/quality.csv`: what it costs to enter one more."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import work
from benchmarks.scaling.found import Found, reached


def rows_in_table(folder: Path, sizes: Sequence[int], say: Callable[[str], None]) -> Found:
    """Measure tables that hold so many scenes already."""
    found = Found()
    for count in sizes:
        arguments = {"root": str(folder / f"rows_{count}"), "count": count}
        done = work("scaling.many_rows:entered", arguments, threads=1)
        line = {"rows": count, **done.said["line"], "peak_mb": done.peak_bytes / 1e6}
        found.lines.append(line)
        say(f"{count} rows: one more in {line['one_more_s']:.2f} s")
        if done.said["rows"] != count + 1:
            found.wrong.append(f"{count} rows and one more: the table holds {done.said['rows']}")
    sides = [line["rows"] for line in found.lines], [line["one_more_s"] for line in found.lines]
    if size := reached(*sides, 1.0):
        found.notes.append(f"one_more_s: 1 s at {size:,.0f} rows")
    return found


def entered(root: str, count: int) -> dict[str, Any]:
    """Enter scenes at once, then one more, as `landsat/watch` does after each; in a worker."""
    from glacier_core.config import Project
    from glacier_core.landsat.quality import ACCEPTED, Quality, read_table, write_table

    project = Project(Path(root))
    bands = ("blue", "green", "red", "nir08", "swir16", "swir22", "lwir", "NDSI", "NDVI", "NDWI")

    def quality(number: int) -> Quality:
        path, day = divmod(number, 10_000)
        name = f"LC08_{path:06d}_{20_000_000 + day}"
        return Quality(
            scene=name, product=f"{name}_L2SP_02_T1", path=f"data/raw/landsat/{name}.tif", date="2020-11-09", verdict=ACCEPTED,
            reasons=[], covered=0.1, no_value=0.1, snow=0.1, saturated=0.1,
            drift=dict.fromkeys(bands, 0.123),
        )  # fmt: skip

    path = write_table(project, [quality(number) for number in range(count)])
    started = time.perf_counter()
    write_table(project, [quality(count)])
    one_more = time.perf_counter() - started
    started = time.perf_counter()
    rows = len(read_table(project))
    line = {
        "table_mb": path.stat().st_size / 1e6,
        "one_more_s": one_more,
        "read_s": time.perf_counter() - started,
    }
    return {"rows": rows, "line": line}
