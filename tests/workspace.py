"""A copy of this repository made small: the real pipeline on simulated scenes, in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

# Small enough for seconds, large enough that every split gets both kinds of ice.
SMALL: dict[str, Any] = {
    "simulate": {"sites": 3, "size": 192},
    "slice": {"size": 96, "overlap": 6},
    "postprocess": {
        "min_class_fraction": {"clean_ice": 0.0, "debris": 0.0},
        "block_km": 20,
        "buffer_m": 100,
        "split": {"train": 0.34, "dev": 0.33, "test": 0.33},
    },
    "train": {
        "epochs": 2,
        "patience": 2,
        "crop_size": 64,
        "crops_per_slice": 1,
        "base_channels": 4,
        "depth": 2,
        "loader_threads": 0,
    },
    "evaluate": {"examples": 1, "forest": {"trees": 5, "depth": 6, "sample_pixels": 3000}},
}


def environment(**extra: str) -> dict[str, str]:
    """Environment in which `glacier` and `dvc` are those of this Python, quiet and offline."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "PREFECT_", "DVC_", "GIT_"))
    }
    return {
        **inherited,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **extra,
    }


def run(folder: Path, *words: str, code: int = 0, timeout: float = 580, **extra: str) -> str:
    """Run a command in a folder; its output, after checking its exit code."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == code, f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}"
    return done.stdout


def merge_yaml(path: Path, changes: dict[str, Any]) -> None:
    """Change values of a YAML file; mappings are merged, anything else replaced."""

    def merge(old: Any, new: Any) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
        return new

    content = merge(yaml.safe_load(path.read_text()), changes)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def small_workspace(folder: Path, *, change: bool = False) -> Path:
    """A git and DVC repository of the files of this one, with small numbers, committed.

    It maps one scene; with `change`, two, and compares them.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in listed:
        source, target = REPOSITORY / name, folder / name
        # The code is installed; what is copied is what a user's project consists of.
        if source.is_file() and not name.startswith(("tests/", "glacier_core/", "dvc.lock")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    merge_yaml(folder / "params.yaml", SMALL)
    conf = yaml.safe_load((folder / "conf/masking_paths.yaml").read_text())
    first = [name for name in conf["scenes"] if "SIM01" in name]
    conf["scenes"] = {
        name.replace("SIM01", f"SIM{site:02d}"): {
            **conf["scenes"][name],
            "img_path": conf["scenes"][name]["img_path"].replace("SIM01", f"SIM{site:02d}"),
        }
        for site in range(1, SMALL["simulate"]["sites"] + 1)
        for name in first
    }
    (folder / "conf/masking_paths.yaml").write_text(yaml.safe_dump(conf, sort_keys=False))
    if not change:
        maps = yaml.safe_load((folder / "conf/maps.yaml").read_text())
        maps["maps"].pop("LE07_SIM03_20001025")
        maps["changes"] = {}
        (folder / "conf/maps.yaml").write_text(yaml.safe_dump(maps, sort_keys=False))
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=Test", "-c", "user.email=test@example.org",
        "commit", "-q", "-m", "small workspace")  # fmt: skip
    return folder
