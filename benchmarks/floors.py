"""What no implementation can beat: the work that must be done, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.features
import rasterio.windows

_READ_ROWS = 256


def decode(scene: str, threads: int) -> dict[str, Any]:
    """Decode every pixel of a file once: GDAL's own threads, and a reader a thread; seconds of each."""

    def rows_of(start: int, count: int, inner: int) -> None:
        with rasterio.Env(GDAL_NUM_THREADS=str(inner)), rasterio.open(scene) as dataset:
            for row in range(start, min(start + count, dataset.height), _READ_ROWS):
                height = min(_READ_ROWS, dataset.height - row)
                dataset.read(window=rasterio.windows.Window(0, row, dataset.width, height))

    with rasterio.open(scene) as dataset:
        height = dataset.height
    started = time.perf_counter()
    rows_of(0, height, threads)
    by_gdal = time.perf_counter() - started
    # Whole rows of the file's tiles, so that none is decoded twice; few at a time, so that one
    # reader does not end long after the others.
    share = 2 * _READ_ROWS
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda row: rows_of(row, share, 1), range(0, height, share)))
    by_readers = time.perf_counter() - started
    return {"seconds": min(by_gdal, by_readers), "by_gdal": by_gdal, "by_readers": by_readers}


def write(folder: str, sizes: list[int], threads: int) -> dict[str, Any]:
    """Write files of given sizes from memory once, and delete them; seconds of the writing."""
    Path(folder).mkdir(parents=True)
    content = memoryview(os.urandom(max(sizes)))

    def one(number: int) -> None:
        Path(folder, f"{number}.bin").write_bytes(content[: sizes[number]])

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(len(sizes))))
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return {"seconds": seconds, "bytes": sum(sizes)}


def rasterise(scene: str, outlines: dict[str, str], year: int, out: str) -> dict[str, Any]:
    """Burn every class onto the scene's grid with GDAL alone: its program, or one call a class."""
    program = shutil.which("gdal_rasterize")
    with rasterio.open(scene) as dataset:
        bounds, transform, crs = dataset.bounds, dataset.transform, dataset.crs
        shape = (dataset.height, dataset.width)
    Path(out).mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    for name, path in outlines.items():
        target = Path(out) / f"{name}.tif"
        target.unlink(missing_ok=True)
        if program is not None:
            extent = map(str, (bounds.left, bounds.bottom, bounds.right, bounds.top))
            subprocess.run(
                [program, "-q", "-burn", "1", "-ot", "Byte", "-l", name, "-where", f"year = {year}",
                 "-te", *extent, "-ts", str(shape[1]), str(shape[0]), path, str(target)],
                check=True,
            )  # fmt: skip
            continue
        import geopandas as gpd

        frame = gpd.read_file(path)
        burned = rasterio.features.rasterize(
            [(polygon, 1) for polygon in frame.geometry[frame["year"] == year]],
            out_shape=shape, transform=transform, dtype=np.uint8,
        )  # fmt: skip
        with rasterio.open(
            target, "w", driver="GTiff", height=shape[0], width=shape[1], count=1, dtype="uint8",
            transform=transform, crs=crs,
        ) as dataset:  # fmt: skip
            dataset.write(burned, 1)
    seconds = time.perf_counter() - started
    how = "gdal_rasterize" if program else "rasterio.features.rasterize, a call a class"
    return {"seconds": seconds, "how": how}


def forward(
    model: str, classes: str, window: int, overlap: int, warm: int, passes: int
) -> dict[str, Any]:
    """The network's passes over a scene, alone and in memory; overlap counted.

    Args:
        model: folder of the model.
        classes: our map of the scene: where it says unseen (255), no pass is needed.
        window, overlap: as `map` in params.yaml.
        warm, passes: passes before, and while, the time is taken; of windows of one size, one
            takes as long as the next.

    Returns:
        `seconds` for all windows that show something, `windows` (how many), `pass_seconds`.
    """
    import torch

    from glacier_core.maps.blending import Blend, across
    from glacier_core.memory import keep_freed_memory
    from glacier_core.model.predictor import Predictor

    keep_freed_memory()
    predictor = Predictor.load(Path(model))
    with rasterio.open(classes) as dataset:
        seen = dataset.read(1) != 255
    height, width = seen.shape
    rows = Blend(height, window, overlap, predictor.multiple)
    sizes: dict[tuple[int, int], int] = {}
    for row in rows.parts:
        strip = seen[slice(*row.inside(height))]
        cols = across(strip, window, overlap, predictor.multiple)
        for col in [] if cols is None else cols.parts:
            if strip[:, slice(*col.inside(width))].any():
                sizes[row.size, col.size] = sizes.get((row.size, col.size), 0) + 1
    taken = {size: _pass_seconds(predictor, size, warm, passes, torch) for size in sizes}
    seconds = sum(taken[size] * count for size, count in sizes.items())
    largest = max(taken)
    return {
        "seconds": seconds,
        "windows": sum(sizes.values()),
        "pass_seconds": taken[largest],
        "window": largest,
    }


def _pass_seconds(
    predictor: Any, size: tuple[int, int], warm: int, passes: int, torch: Any
) -> float:
    x = torch.randn(1, len(predictor.description.channels), *size)
    x = x.to(predictor.device, memory_format=torch.channels_last)
    kind = predictor.device.type
    with torch.inference_mode():
        for number in range(warm + passes):
            if number == warm:
                _wait(kind, torch)
                started = time.perf_counter()
            predictor.logits(x)
        _wait(kind, torch)
    return (time.perf_counter() - started) / passes


def _wait(kind: str, torch: Any) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()
