"""What is in the repository works on another machine: no links out of it, no environment."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY


def test_no_link_and_no_environment_is_tracked() -> None:
    done = subprocess.run(
        ["git", "ls-files", "--stage"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout: nothing says what is tracked")
    tracked = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(tracked) > 200
    assert [name for about, name in tracked if about.startswith("120000")] == []
    assert [name for _, name in tracked if name.split("/")[0].startswith(".venv")] == []


@pytest.mark.parametrize("as_link", [True, False])
def test_an_environment_is_ignored_as_a_folder_and_as_a_link(tmp_path: Path, as_link: bool) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text((REPOSITORY / ".gitignore").read_text())
    if as_link:
        (tmp_path / ".venv").symlink_to(tmp_path.parent)
    else:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv/python").touch()
    status = ["git", "status", "--short", "--untracked-files=all"]
    said = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert ".gitignore" in said
    assert ".venv" not in said
