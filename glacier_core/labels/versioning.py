"""Labels that come from outside the pipeline: DVC keeps the file, git what DVC says of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from glacier_core.config import Project
from glacier_core.errors import StorageError


def give_to_dvc(project: Project, path: Path) -> Path | None:
    """Have DVC keep a file.

    Returns:
        What git is to keep in its place, from the project's folder; None without DVC.

    Raises:
        StorageError: DVC does not take it. The file stays.
    """
    if not (project.root / ".dvc").is_dir():
        return None
    inside = path.relative_to(project.root)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "add", inside.as_posix()],
        cwd=project.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr]
        reason = said[0].strip()
        raise StorageError(
            f"{path}: is stored, but DVC does not take it ({reason}); "
            f"run `dvc add {inside.as_posix()}`"
        )
    return inside.with_name(f"{inside.name}.dvc")
