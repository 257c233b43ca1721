"""What came out: rows with goals, kept as JSON from the first on, and shown as a table."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        what: is compared.
        goal: as the issue sets it.
        measured: in words.
        met: None where it could not be told. Information: nothing fails on it.
    """

    what: str
    goal: str
    measured: str
    met: bool | None


@dataclass
class Row:
    """What one benchmark found.

    Attributes:
        goals: lines of the table.
        sides: by name, medians, all values, and peak memory, see `measure.side`.
        numbers: whatever else was measured.
        wrong: results that are not what they must be; these fail the run.
    """

    goals: list[Goal] = field(default_factory=list)
    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"rows": {}}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(beside, path)


def stored(row: Row, **about: Any) -> dict[str, Any]:
    return {**about, **asdict(row)}


def table(content: dict[str, Any]) -> str:
    """The rows as text, a line a goal, in columns as wide as they need."""
    head = ("what", "goal", "measured", "met")
    lines = [head]
    for name, row in content["rows"].items():
        for goal in row["goals"]:
            met = {True: "yes", False: "no", None: "-"}[goal["met"]]
            lines.append((f"{name}: {goal['what']}", goal["goal"], goal["measured"], met))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    shown = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    shown.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(shown)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
