"""What runs in a fresh process: one function, its result as JSON.

`python -m benchmarks.worker MODULE:FUNCTION ARGUMENTS RESULT`, the arguments as JSON, the result
into a file. What is imported counts into the process's time, as it does for a command.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main() -> None:
    place, arguments, result = sys.argv[1:]
    module, _, name = place.partition(":")
    said = getattr(importlib.import_module(f"benchmarks.{module}"), name)(**json.loads(arguments))
    Path(result).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
