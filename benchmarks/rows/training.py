"""Training: with our loader, fed from memory, and the reference's step."""

from __future__ import annotations

import shutil
from functools import partial

import yaml

from benchmarks.measure import Measured, alternately, side
from benchmarks.projects import Bench
from benchmarks.results import Goal, Row
from benchmarks.rows.dataset import reference_steps, split_of


def _rate(measured: Measured) -> float:
    return float(measured.said["images_per_second"])


def training(bench: Bench) -> Row:
    """Images a second, after warm-up."""
    root = bench.dataset()
    train = yaml.safe_load((root / "params.yaml").read_text())["train"]
    sides = {
        name: partial(bench.work, "training:train", project=str(root), from_memory=from_memory)
        for name, from_memory in (("ours", False), ("memory", True))
    }
    if bench.reference:
        copies = bench.folder / "reference/dataset"
        if not copies.exists():
            bench.say("making the reference's dataset")
            reference_steps(bench, split_of(bench, root))
        warm, steps = bench.size.steps
        sides["reference"] = partial(
            bench.work,
            "plain_network:train",
            dataset=str(copies),
            depth=train["depth"],
            base=train["base_channels"],
            batch=train["batch_size"],
            dropout=train["dropout"],
            warm=warm,
            steps=steps,
        )
    found = alternately(sides, bench.repeat, [], bench.say)
    shutil.rmtree(root / "data/runs", ignore_errors=True)
    shown = {name: side(measured, _rate) for name, measured in found.items()}
    ours, memory = shown["ours"]["median"], shown["memory"]["median"]
    row = Row(sides=shown)
    row.goals.append(
        Goal(
            "images a second, with loading against from memory",
            "≥ 95 %",
            f"{ours:.2f} / {memory:.2f} = {ours / memory:.0%}",
            ours >= 0.95 * memory,
        )
    )
    if bench.reference:
        theirs = shown["reference"]["median"]
        row.goals.append(
            Goal(
                "images a second against the reference's step",
                "≥ 3.5 ×",
                f"{ours:.2f} / {theirs:.2f} = {ours / theirs:.1f} ×",
                ours >= 3.5 * theirs,
            )
        )
    return row
