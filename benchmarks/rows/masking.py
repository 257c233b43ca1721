"""Masking alone, beside GDAL's own rasteriser, for few outlines and for ten times as many."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.measure import Measured, alternately, side
from benchmarks.projects import Bench
from benchmarks.results import Goal, Row
from benchmarks.sizes import CLASSES, SCENE, YEAR


def _ours(bench: Bench, root: Path) -> Measured:
    shutil.rmtree(root / "data/masks", ignore_errors=True)
    return bench.glacier(root, "mask")


def masking(bench: Bench) -> Row:
    """Time against `gdal_rasterize`, and how it grows with the outlines."""
    row = Row()
    medians = []
    for count in bench.size.outlines:
        outlines, out = bench.outlines(count), bench.folder / "rasterised"
        root = bench.project(f"masks_{count}", [bench.scene], outlines)
        files = {name: str(outlines / f"{name}.gpkg") for name in CLASSES}
        sides = {
            "ours": partial(_ours, bench, root),
            "GDAL": partial(
                bench.work,
                "floors:rasterise",
                scene=str(bench.scene),
                outlines=files,
                year=YEAR,
                out=str(out),
            ),
            # What a command costs that does nothing: the start of Python.
            "start": partial(bench.glacier, root, "--version"),
        }
        found = alternately(sides, bench.repeat, [bench.scene], bench.say)
        shown = {f"{name} {count}": side(measured) for name, measured in found.items()}
        row.sides |= shown
        ours, gdal = shown[f"ours {count}"]["median"], shown[f"GDAL {count}"]["median"]
        how = found["GDAL"][0].said["how"]
        row.goals.append(
            Goal(
                f"masking {count:,} outlines",
                "≤ 1.3 × gdal_rasterize",
                f"{ours:.2f} s / {gdal:.2f} s = {ours / gdal:.2f} × ({how})",
                ours <= 1.3 * gdal,
            )
        )
        medians.append(ours)
        said = bench.work(
            "checks:burned",
            masks=str(root / f"data/masks/{SCENE}/mask_{SCENE}.npy"),
            rasterised=str(out),
            classes=list(CLASSES),
        ).said
        row.wrong += said["wrong"]
        shutil.rmtree(root)
        shutil.rmtree(out)
    few, many = bench.size.outlines
    row.goals.append(
        Goal(
            f"{many // few} times as many outlines",
            "linear",
            f"{medians[1] / medians[0]:.1f} × the time",
            medians[1] <= many / few * medians[0],
        )
    )
    return row
