"""DVC: what it costs to find that nothing changed, and to run one stage, in a project of many scenes.

The project is a user's: this checkout's `dvc.yaml`, with N scenes in `conf/masking_paths.yaml`. What
the stages write is next to nothing, hashed, cached and entered in `dvc.lock` by DVC itself; only
the lock file is written once in the end, where DVC writes it once a stage.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from benchmarks.measure import BIN, REPOSITORY, Failed, environment, run, work
from benchmarks.projects import FILES, changed
from benchmarks.scaling.found import Found, reached

_OUTLINES = "data/raw/outlines"
_CALLS = "calls.txt"

# In the place of `glacier`: as many files as the step writes, with next to no bytes. What of them
# varies is their names, so that a repeated step gives the same.
_STANDS_IN = f"""#!/bin/sh
echo "$@" >> {_CALLS}
case "$1" in
mask) folder="data/masks/$3"; names="mask_$3.npy border_$3.npy mask_metadata.csv" ;;
slice) folder="data/slices/$3"; names="slices.geojson"
  k=0; while [ $k -lt "$SLICES" ]; do
    names="$names slice_$3_img_$k.npy slice_$3_label_$k.npy"; k=$((k + 1)); done ;;
*) exit 1 ;;
esac
mkdir -p "$folder"
for name in $names; do echo "$name" > "$folder/$name"; done
"""


def scenes_in_dvc(
    folder: Path, sizes: Sequence[int], slices: int, limit_s: float, say: Callable[[str], None]
) -> Found:
    """Measure projects of so many scenes, with so many slices each.

    Args:
        folder: emptied.
        sizes: numbers of scenes, from the smallest on.
        slices: of each scene; two files each.
        limit_s: seconds of the processor; a command that would take longer, going by the size before and a growth
            with the square, is left out.
        say: tells how it goes.
    """
    found = Found()
    for count in sizes:
        root = folder / f"scenes_{count}"
        say(f"{count} scenes: making the project")
        work("scaling.many_scenes:make", {"root": str(root), "count": count, "slices": slices}, threads=1)  # fmt: skip
        line, wrong = _measured(root, count, slices, _Patience(limit_s, found.lines, say))
        found.lines.append(line)
        found.wrong += [f"{count} scenes: {text}" for text in wrong]
        shutil.rmtree(root)
    for key in ("idle_cpu_s", "own_settings_cpu_s", "skipped_stage_cpu_s", "one_stage_cpu_s"):
        known = [line for line in found.lines if line[key] is not None]
        sides = [line["scenes"] for line in known], [line[key] for line in known]
        at = [f"{limit} s at {size:.0f} scenes" for limit in (10, 60)
              if (size := reached(*sides, limit))]  # fmt: skip
        found.notes += [f"{key}: {', '.join(at)}"] if at else []
    return found


@dataclass(frozen=True)
class _Patience:
    """How long a command may take; `lines` are those of smaller projects."""

    limit_s: float
    lines: Sequence[dict[str, Any]]
    say: Callable[[str], None]

    def allows(self, name: str, count: int) -> bool:
        """Whether a command, by its column, need not take longer than that for so many scenes."""
        if not self.lines:
            return True
        seconds, scenes = self.lines[-1][f"{name}_cpu_s"], self.lines[-1]["scenes"]
        return seconds is not None and seconds * (count / scenes) ** 2 <= self.limit_s


def _measured(
    root: Path, count: int, slices: int, patience: _Patience
) -> tuple[dict[str, Any], list[str]]:
    path = f"{root / 'bin'}{os.pathsep}{BIN}{os.pathsep}{os.environ['PATH']}"
    env = environment(1, SLICES=str(slices)) | {"PATH": path}
    lock, calls, one = root / "dvc.lock", root / _CALLS, _name(count // 2)
    before = lock.read_bytes()
    times: dict[str, float | None] = {}
    walls: dict[str, float | None] = {}
    peaks: dict[str, float | None] = {}

    def measured(name: str, words: Sequence[str]) -> None:
        times[f"{name}_cpu_s"] = walls[name] = peaks[name] = None
        if patience.allows(name, count):
            done = run(words, cwd=root, env=env)
            # Of the processor: DVC has one thread here, and the machine may have other work.
            times[f"{name}_cpu_s"] = done.cpu_s
            walls[name], peaks[name] = done.wall_s, done.peak_bytes / 1e6
            patience.say(f"  {name}: {done.cpu_s:.1f} s of {done.wall_s:.1f} s")

    dvc = [str(BIN / "dvc")]
    own = [sys.executable, "-m", "benchmarks.worker", "scaling.many_scenes:own_settings"]
    wrong = []
    # The first one fills DVC's own database of files.
    measured("own_settings", [*own, '{"words": ["status", "--quiet"]}', str(root / "said.json")])
    # `--quiet`: exit code 1 where anything changed.
    measured("status", [*dvc, "status", "--quiet"])
    measured("idle", [*dvc, "repro"])
    measured("own_settings", [*own, '{"words": ["repro"]}', str(root / "said.json")])
    measured("skipped_stage", [*dvc, "repro", "--single-item", f"slice@{one}"])
    if calls.exists() or lock.read_bytes() != before:
        wrong.append("a stage ran, or dvc.lock changed, although nothing had changed")
    measured("one_stage", [*dvc, "repro", "--force", "--single-item", f"slice@{one}"])
    said = calls.read_text().splitlines() if calls.exists() else []
    if said != [f"slice --scene {one}"]:
        wrong.append(f"one stage was to run, and these did: {said}")
    if yaml.load(lock.read_text(), yaml.CSafeLoader) != yaml.load(before, yaml.CSafeLoader):
        wrong.append("the stage was to come out as it was, and dvc.lock has another hash")
    line = {
        "scenes": count,
        "stages": len(yaml.load(before, yaml.CSafeLoader)["stages"]),
        "files": sum(len(names) for _, _, names in os.walk(root / "data")),
        "lock_kb": lock.stat().st_size / 1000,
        **times,
        "idle_s": walls["idle"],
        "idle_mb": peaks["idle"],
        "one_stage_mb": peaks["one_stage"],
    }
    return line, wrong


def own_settings(words: list[str]) -> dict[str, Any]:
    """A command of DVC, as if each scene had a file of settings of its own; in a worker."""
    from dvc.cli import main

    _short_settings()
    code = main(words)
    if code:
        raise Failed(f"dvc {' '.join(words)}: {code}")
    return {"code": code}


def _short_settings() -> None:
    """Have DVC read a file of settings once, and go straight to the key that it wants.

    As it is, it parses `conf/masking_paths.yaml`, with all scenes, anew for every stage that names it,
    and walks through all of its keys for each that it wants.
    """
    import dvc.dependency.param as parameters

    def found(config: Any, path: str, separator: str) -> Any:
        return reduce(getitem, path.split(separator), config)

    parameters.load_path = cache(parameters.load_path)
    parameters.dpath = SimpleNamespace(get=found)


# --- The project; in a worker ---


def _name(number: int) -> str:
    return f"LE07_{140 + number // 1000:03d}{number % 1000:03d}_20001025"


def make(root: str, count: int, slices: int) -> dict[str, Any]:
    """A committed project of so many scenes whose every stage is up to date."""
    place = Path(root)
    shutil.rmtree(place, ignore_errors=True)
    for file in FILES:
        source, target = REPOSITORY / file, place / file
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    _write(place / "bin/glacier", _STANDS_IN)
    (place / "bin/glacier").chmod(0o755)
    _settings(place, [_name(number) for number in range(count)])
    env = environment(1, SLICES=str(slices))
    for number in range(count):
        name = _name(number)
        _write(place / f"data/raw/scenes/{name}.tif", name)
        for verb in ("mask", "slice"):
            words = ["sh", "bin/glacier", verb, "--scene", name]
            subprocess.run(words, cwd=place, env=env, check=True)
    (place / _CALLS).unlink()
    for words in (
        ["git", "init", "-q", "-b", "main"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=Bench", "-c", "user.email=bench@example.org", "commit", "-qm", "."],
    ):  # fmt: skip
        subprocess.run(words, cwd=place, check=True)
    return {"stages": _entered(place)}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def _settings(root: Path, names: Sequence[str]) -> None:
    """As `glacier configure` writes them; nothing is mapped by stages of this project."""
    files = {name: f"{_OUTLINES}/{name}.gpkg" for name in ("clean_ice", "debris")}
    for file in files.values():
        _write(root / file, file)
    scenes = {
        name: {
            "img_path": f"data/raw/scenes/{name}.tif",
            "mask_paths": files,
            "border_path": f"{_OUTLINES}/clean_ice.gpkg",
            "year_field": "year",
            "date": "2000-10-25",
        }
        for name in names
    }
    conf = root / "conf/masking_paths.yaml"
    content = yaml.safe_load(conf.read_text())
    content |= {"simulated": {}, "outlines_dir": _OUTLINES, "scenes": scenes}
    # Without anchors, which a file written by hand has not.
    dumper = type("Plain", (yaml.CSafeDumper,), {"ignore_aliases": lambda *_: True})
    conf.write_text(yaml.dump(content, Dumper=dumper, sort_keys=False))
    changed(root / "conf/maps.yaml", {})
    maps = yaml.safe_load((root / "conf/maps.yaml").read_text()) | {"maps": {}, "changes": {}}
    (root / "conf/maps.yaml").write_text(yaml.safe_dump(maps, sort_keys=False))


def _entered(root: Path) -> int:
    """Save every stage's outputs with DVC, and enter all in `dvc.lock` at once; how many."""
    from dvc.repo import Repo
    from dvc.stage.serialize import to_lockfile

    os.chdir(root)
    # This has no time for how DVC reads settings; what is measured has.
    _short_settings()
    entries: dict[str, Any] = {}
    with Repo(str(root)) as repo, repo.lock:
        # Those of the whole project write nothing by themselves here.
        for stage in repo.index.stages:
            for out in stage.outs:
                path = Path(out.fs_path)
                if not path.exists():
                    folder = path.suffix == ""
                    _write(path / "content.txt" if folder else path, str(out.def_path))
        for stage in repo.index.stages:
            stage.save()
            stage.commit()
            entries |= to_lockfile(stage)
    lock = {"schema": "2.0", "stages": dict(sorted(json.loads(json.dumps(entries)).items()))}
    Path("dvc.lock").write_text(yaml.dump(lock, Dumper=yaml.CSafeDumper, sort_keys=False))
    return len(entries)
