"""What a simulation found: a table of numbers, and what in it is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Found:
    """Lines of one simulation.

    Attributes:
        lines: of the table, all with the same keys.
        notes: what follows from them, in words.
        wrong: results that are not what they must be; these fail the run, a time never does.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def table(self) -> str:
        head = list(self.lines[0]) if self.lines else []
        rows = [head, *[[_shown(line[name]) for name in head] for line in self.lines]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        shown = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join([*shown, *self.notes])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def reached(sizes: Sequence[float], seconds: Sequence[float], limit: float) -> float | None:
    """The size at which a time is reached: a straight line between logarithms of neighbours.

    Beyond the sizes, the line of the two at that end goes on, up to ten times as far.

    Returns:
        None where fewer than two sizes were measured, the time does not grow, or it is further off.
    """
    pairs = sorted(zip(map(math.log, sizes), map(math.log, seconds), strict=True))
    if len(pairs) < 2:
        return None
    after = next((k for k, (_, y) in enumerate(pairs) if y >= math.log(limit)), len(pairs) - 1)
    (x0, y0), (x1, y1) = pairs[max(after, 1) - 1], pairs[max(after, 1)]
    if y1 <= y0:
        return None
    x = x0 + (math.log(limit) - y0) * (x1 - x0) / (y1 - y0)
    near = pairs[0][0] - math.log(10) <= x <= pairs[-1][0] + math.log(10)
    return math.exp(x) if near else None
