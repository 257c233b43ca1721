"""Files: making, listing, reading and removing many slices, in one folder or in one a scene."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import work
from benchmarks.scaling.found import Found

A_SCENE = 405
"""Slices of a scene of the published dataset: 14,190 of 35."""


def slices_in_folders(
    folder: Path, sizes: Sequence[int], size: int, say: Callable[[str], None]
) -> Found:
    """Measure so many files of so many bytes; the page cache is warm, as after writing them."""
    found = Found()
    for count in sizes:
        for layout, share in (("one folder", count), ("one a scene", A_SCENE)):
            place = folder / "slices"
            arguments = {"folder": str(place), "count": count, "share": share, "size": size}
            said = work("scaling.many_files:handled", arguments, threads=1).said
            line = {"slices": count, "layout": layout, **said["seconds"]}
            found.lines.append(line)
            say(f"{count} slices, {layout}: made in {line['make_s']:.1f} s")
            if said["read"] != {"files": count, "bytes": count * size}:
                found.wrong.append(f"{count} slices, {layout}: {said['read']}")
            if place.exists():
                found.wrong.append(f"{count} slices, {layout}: not removed")
    return found


def handled(folder: str, count: int, share: int, size: int) -> dict[str, Any]:
    """Do everything once; in a worker."""
    root, content = Path(folder), os.urandom(size)
    seconds: dict[str, float] = {}

    def timed(name: str, done: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = done()
        seconds[f"{name}_s"] = time.perf_counter() - started
        return result

    def make() -> None:
        for number in range(count):
            place = root / f"{number // share}"
            if number % share == 0:
                place.mkdir(parents=True)
            (place / f"slice_LE07_140041_20001025_img_{number}.npy").write_bytes(content)

    def read() -> dict[str, int]:
        total = 0
        for path in paths:
            total += len(path.read_bytes())
        return {"files": len(paths), "bytes": total}

    timed("make", make)
    timed("sync", os.sync)
    timed("list", lambda: [entry for place in os.scandir(root) for entry in os.scandir(place)])
    paths: list[Path] = timed("glob", lambda: sorted(root.glob("*/slice_*_img_*.npy")))
    # As DVC does, to see which have changed.
    timed("stat", lambda: [path.stat().st_mtime_ns for path in paths])
    found = timed("read", read)
    timed("remove", lambda: shutil.rmtree(root))
    return {"seconds": seconds, "read": found}
