"""mask, slice and postprocess of one large scene; their memory, and the bytes that they write."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from benchmarks.measure import Measured, alternately, in_turn, side
from benchmarks.projects import Bench
from benchmarks.results import Goal, Row, gigabytes
from benchmarks.sizes import CLASSES, YEAR

_VERBS = ("mask", "slice", "postprocess")
_MEMORY_GOAL = 1.0e9


def _ours(bench: Bench, root: Path) -> Measured:
    for name in ("masks", "slices", "dataset"):
        shutil.rmtree(root / "data" / name, ignore_errors=True)
    return in_turn({verb: bench.glacier(root, verb) for verb in _VERBS})


def split_of(bench: Bench, root: Path) -> Path:
    """Which slice our dataset has in which split, for the reference to follow."""
    split = bench.folder / "split.json"
    bench.work("checks:split_of", project=str(root), out=str(split))
    return split


def reference_steps(bench: Bench, split: Path) -> Measured:
    """The reference procedure on the same scene and outlines."""
    folder = bench.folder / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    outlines, size = bench.outlines(bench.size.outlines[0]), bench.size
    parts = {
        "mask": bench.work(
            "reference:mask",
            scene=str(bench.scene),
            outlines={name: str(outlines / f"{name}.gpkg") for name in CLASSES},
            border=str(outlines / "border.gpkg"),
            year=YEAR,
            tolerance=2,
            out=str(folder / "masks"),
        ),
        "slice": bench.work(
            "reference:slice_scene",
            scene=str(bench.scene), masks=str(folder / "masks"),
            size=size.slice, overlap=6, out=str(folder / "slices"),
        ),
        "postprocess": bench.work(
            "reference:postprocess",
            slices=str(folder / "slices"), split=str(split), minimum=[0.02, 0.005],
            min_valid=0.1, out=str(folder / "dataset"),
        ),
    }  # fmt: skip
    done = in_turn(parts)
    done.said.update(splits=parts["postprocess"].said)
    return done


def dataset(bench: Bench) -> Row:
    """Time and memory of the three steps, against the reference and the floor."""
    root = bench.dataset()  # not timed; it says how much there is to write
    sizes = _written(root)
    sides = {
        "ours": partial(_ours, bench, root),
        "decode": partial(
            bench.work, "floors:decode", scene=str(bench.scene), threads=bench.threads
        ),
        "write": partial(
            bench.work, "floors:write",
            folder=str(bench.folder / "written"), sizes=sizes, threads=bench.threads,
        ),
    }  # fmt: skip
    if bench.reference:
        sides["reference"] = partial(reference_steps, bench, split_of(bench, root))
    found = alternately(sides, bench.repeat, [bench.scene], bench.say)
    shown = {name: side(measured) for name, measured in found.items()}
    ours, floor = shown["ours"]["median"], shown["decode"]["median"] + shown["write"]["median"]
    peak = shown["ours"]["peak_bytes"]
    goals = [
        Goal(
            "mask + slice + postprocess against the floor",
            "≤ 1.5 ×",
            f"{ours:.1f} s / {floor:.1f} s = {ours / floor:.2f} ×",
            ours <= 1.5 * floor,
        ),
        Goal("its peak memory", "≤ 1.0 GB", gigabytes(peak), peak <= _MEMORY_GOAL),
    ]
    row = Row(goals, shown, {"bytes_written": sum(sizes), "files_written": len(sizes)})
    if bench.reference:
        theirs = shown["reference"]["median"]
        goals.insert(
            1,
            Goal(
                "mask + slice + postprocess against the reference",
                "≥ 6 × faster",
                f"{theirs:.1f} s / {ours:.1f} s = {theirs / ours:.1f} ×, "
                f"{gigabytes(shown['reference']['peak_bytes'])} there",
                theirs >= 6 * ours,
            ),
        )
        row.numbers["reference_bytes_written"] = sum(_written(bench.folder / "reference", ""))
        _compare(bench, root, found["reference"][-1], row)
    return row


def _compare(bench: Bench, root: Path, reference: Measured, row: Row) -> None:
    folder = bench.folder / "reference"
    calls = {
        "masks": {"reference": str(folder / "masks")},
        "slices": {"reference": str(folder / "slices")},
        "dataset_splits": {"reference": reference.said["splits"]},
        "statistics": {"scene": str(bench.scene), "reference": str(folder / "dataset")},
    }
    for name, arguments in calls.items():
        said = bench.work(f"checks:{name}", project=str(root), **arguments).said
        row.wrong += said.pop("wrong")
        row.numbers[name] = said
        bench.say(f"  {name}: {said}")


def _written(root: Path, below: str = "data") -> list[int]:
    """Bytes of the files that the steps write, a file with several names once."""
    files = [path.stat() for path in (root / below).rglob("*") if path.is_file()]
    return list({file.st_ino: file.st_size for file in files}.values())


def slice_bytes(bench: Bench) -> Row:
    """What a slice takes on the disk, and whether it lies there twice."""
    root = bench.dataset()
    said = bench.work("checks:slice_bytes", project=str(root), scene=str(bench.scene)).said
    edge = bench.size.slice
    reference = edge**2 * 4 * (len(said["types"]) + len(CLASSES))
    return Row(
        [
            Goal(
                "bytes of a slice's image",
                "the narrowest dtype without loss",
                f"{said['image'] / 1e6:.2f} MB; in one dtype {said['uniform'] / 1e6:.2f}, by band "
                f"{said['by_band'] / 1e6:.2f}; the reference twice {reference / 1e6:.2f} with mask",
                # A file's header is not what this is about.
                said["image"] <= said["uniform"] + 4096,
            ),
            Goal(
                "second copies",
                "none where a link serves",
                f"{said['copied'] / 1e6:.1f} MB copied",
                said["copied"] == 0,
            ),
        ],
        numbers=said,
    )


def quadruple(bench: Bench) -> Row:
    """Peak memory of the same steps for a scene of four times the area."""
    height, width = 2 * bench.size.height, 2 * bench.size.width
    scene = bench.large_scene(height, width)
    outlines = bench.outlines(4 * bench.size.outlines[0], scene)
    root = bench.project("quadruple", [scene], outlines)
    found = alternately({"ours": partial(_ours, bench, root)}, 1, [], bench.say)
    shown = {name: side(measured) for name, measured in found.items()}
    shutil.rmtree(root)
    peak = shown["ours"]["peak_bytes"]
    goal = Goal(
        f"peak memory for {height:,} x {width:,} pixels", "≤ 1.0 GB", gigabytes(peak),
        peak <= _MEMORY_GOAL,
    )  # fmt: skip
    return Row([goal], shown)
