"""What many scenes cost: DVC with nothing to do, the flow around the stages, a second process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import (
    BIN,
    Failed,
    Measured,
    alternately,
    environment,
    in_turn,
    run,
    side,
)
from benchmarks.projects import Bench, changed
from benchmarks.results import Goal, Row
from benchmarks.servers import prefect_server
from benchmarks.sizes import SCENE

_REPRO_GOAL_S = 3.0
_AT_ONCE = 2  # as many stages as the flow runs at once
_TINY: dict[str, Any] = {
    "slice": {"size": 64},
    "postprocess": {"min_class_fraction": {"clean_ice": 0.0, "debris": 0.0}},
    "train": {
        "epochs": 1, "patience": 1, "crop_size": 64, "batch_size": 8, "depth": 1,
        "base_channels": 4, "loader_threads": 0,
    },
    "evaluate": {"examples": 0, "forest": {"trees": 2, "depth": 3, "sample_pixels": 1000}},
    "map": {"window": 128, "overlap": 32},
}  # fmt: skip


def _many(bench: Bench, name: str) -> Path:
    """A DVC project of many tiny scenes, of which it maps one."""
    folder = bench.folder / "tiny"
    if not folder.exists():
        bench.say(f"making {bench.size.scenes} tiny scenes")
        bench.work("scene:make_tiny_scenes", out=str(folder), count=bench.size.scenes)
    scenes = sorted((folder / "scenes").glob("*.tif"))
    root = bench.project(name, scenes, folder / "outlines")
    changed(root / "params.yaml", _TINY)
    splits = {scene.stem: ("train", "dev", "test")[k % 3] for k, scene in enumerate(scenes)}
    changed(root / "conf/postprocess.yaml", {"split": "scenes", "assign": splits})
    maps = yaml.safe_load((root / "conf/maps.yaml").read_text())
    maps["maps"] = dict(list(maps["maps"].items())[:1])
    (root / "conf/maps.yaml").write_text(yaml.safe_dump(maps, sort_keys=False))
    _committed(bench, root)
    return root


def _committed(bench: Bench, root: Path) -> None:
    """DVC wants a git repository."""
    for words in (
        ["git", "init", "-q", "-b", "main"],
        ["git", "add", "-A"],
        ["git", "-c", "user.name=Bench", "-c", "user.email=bench@example.org",
         "commit", "-q", "-m", "bench"],
    ):  # fmt: skip
        run(words, cwd=root, env=environment(bench.threads))


def repro(bench: Bench) -> Row:
    """`dvc repro` of many scenes when nothing changed."""
    root = _many(bench, "repro")
    env, words = environment(bench.threads), [str(BIN / "dvc"), "repro"]
    bench.say("running every stage once")
    first = run(words, cwd=root, env=env)
    found = alternately(
        {"idle": partial(run, words, cwd=root, env=env)}, bench.repeat, [], bench.say
    )
    status = subprocess.run(
        [str(BIN / "dvc"), "status"], cwd=root, env=env, capture_output=True, text=True, check=True
    ).stdout
    stages = len(yaml.safe_load((root / "dvc.lock").read_text())["stages"])
    shutil.rmtree(root)
    shown = {name: side(measured) for name, measured in found.items()}
    idle = shown["idle"]["median"]
    goal = Goal(
        f"`dvc repro` with nothing to do, {bench.size.scenes} scenes, {stages} stages",
        "≤ 3 s",
        f"{idle:.2f} s",
        idle <= _REPRO_GOAL_S,
    )
    row = Row([goal], shown, {"stages": stages, "first_s": first.wall_s})
    row.wrong = [] if "up to date" in status else [f"dvc status: {status.strip()}"]
    return row


def flow(bench: Bench) -> Row:
    """The flow `glacier` of many scenes, against its stages' commands without DVC and Prefect."""
    roots = {name: _many(bench, name) for name in ("plain", "flow")}
    with prefect_server(bench.folder / "prefect", bench.threads) as server:
        sides = {
            "plain": partial(_plain, bench, roots["plain"]),
            "flow": partial(_flow, bench, roots["flow"], server.url),
        }
        found = alternately(sides, bench.repeat, [], bench.say)
    made = [(root / "data/dataset/dataset.json").read_bytes() for root in roots.values()]
    for root in roots.values():
        shutil.rmtree(root)
    found |= _large_stages(bench)
    shown = {name: side(measured) for name, measured in found.items()}
    plain, whole, alone, by_dvc = (summary["median"] for summary in shown.values())
    stages = 2 * bench.size.scenes + 7
    a_stage = (whole - plain) / stages
    goals = [
        Goal(
            f"flow over the plain stages, {bench.size.scenes} tiny scenes, {stages} stages",
            "≤ 5 %",
            f"{whole:.1f} s / {plain:.1f} s = +{whole / plain - 1:.0%}; {a_stage:.2f} s a stage",
            whole <= 1.05 * plain,
        ),
        Goal(
            "DVC over mask and slice of the large scene, hashing included",
            "≤ 5 %",
            f"{by_dvc:.1f} s / {alone:.1f} s = +{by_dvc / alone - 1:.0%}",
            by_dvc <= 1.05 * alone,
        ),
    ]
    row = Row(goals, shown, {"stages": stages, "overhead_s_a_stage": a_stage})
    row.wrong = [] if made[0] == made[1] else ["the flow made another dataset than the commands"]
    return row


def _large_stages(bench: Bench) -> dict[str, list[Measured]]:
    """Mask and slice of the large scene as commands, and as the flow's tasks call them."""
    root = bench.project("stages", [bench.scene], bench.outlines(bench.size.outlines[0]))
    _committed(bench, root)
    env = environment(bench.threads)

    def commands() -> Measured:
        _cleared(root)
        return in_turn({verb: bench.glacier(root, verb) for verb in ("mask", "slice")})

    def stages() -> Measured:
        _cleared(root)
        repro = [str(BIN / "dvc"), "--wait-for-lock", "repro", "--single-item"]
        return in_turn(
            {
                verb: run([*repro, f"{verb}@{SCENE}"], cwd=root, env=env)
                for verb in ("mask", "slice")
            }
        )

    sides = {"large scene, plain": commands, "large scene, DVC": stages}
    found = alternately(sides, bench.repeat, [bench.scene], bench.say)
    shutil.rmtree(root)
    return found


def _cleared(root: Path) -> None:
    for name in ("data/masks", "data/slices", "data/dataset", "data/runs", "data/evaluation",
                 "data/maps", "data/outlines", "data/reports", ".dvc/cache", ".dvc/tmp", "mlruns",
                 "mlartifacts"):  # fmt: skip
        shutil.rmtree(root / name, ignore_errors=True)
    for name in ("dvc.lock", "mlflow.db", "data/registration.json"):
        (root / name).unlink(missing_ok=True)


def _plain(bench: Bench, root: Path) -> Measured:
    _cleared(root)
    return bench.work("rows.many:plain_stages", project=str(root))


def plain_stages(project: str) -> dict[str, Any]:
    """The commands of the flow's stages, as many at once as it runs, and nothing around them."""
    root = Path(project)
    scenes = list(yaml.safe_load((root / "conf/masking_paths.yaml").read_text())["scenes"])
    maps = list(yaml.safe_load((root / "conf/maps.yaml").read_text())["maps"])
    params = yaml.safe_load((root / "params.yaml").read_text())
    model = f"data/runs/{params['train']['run_name']}/models"
    groups = [[["mask", "--scene", name], ["slice", "--scene", name]] for name in scenes]
    joint = [["postprocess"], ["train"], ["evaluate"], ["register"]]
    drawn = [
        [
            ["map", name, "--model", model, "--out", "data/maps"],
            ["outlines", f"data/maps/{name}", "--out", "data/outlines"],
            ["report", f"data/maps/{name}", "--outlines", f"data/outlines/{name}",
             "--out", f"data/reports/{name}.html"],
        ]
        for name in maps
    ]  # fmt: skip
    for stages in (groups, [joint], drawn):
        _side_by_side(root, stages, _AT_ONCE)
    return {}


def _side_by_side(root: Path, groups: Sequence[Sequence[Sequence[str]]], at_once: int) -> None:
    """Groups of `glacier` commands, so many groups at once, each from its first to its last."""

    def one(group: Sequence[Sequence[str]]) -> None:
        for words in group:
            done = subprocess.run(
                [str(BIN / "glacier"), *words],
                cwd=root,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise Failed(f"glacier {' '.join(words)}: {done.stdout}{done.stderr}")

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, groups))


def _flow(bench: Bench, root: Path, url: str) -> Measured:
    _cleared(root)
    env = environment(
        bench.threads, PREFECT_API_URL=url, PREFECT_HOME=str(bench.folder / "prefect")
    )
    return run([sys.executable, "-m", "flows.glacier"], cwd=root, env=env)


def processes(bench: Bench) -> Row:
    """Masking and slicing four scenes by one process, and by two: as they come, and pinned."""
    scene = bench.large_scene(bench.size.height // 2, bench.size.width // 2)
    outlines = bench.outlines(bench.size.outlines[0] // 4, scene)
    folder = bench.folder / "four"
    if not folder.exists():
        folder.mkdir()
        for number in range(4):
            os.link(scene, folder / f"LE07_FOUR{number}_20101106.tif")
    scenes = sorted(folder.glob("*.tif"))
    root = bench.project("processes", scenes, outlines)
    names = [path.stem for path in scenes]
    shares = {1: [names], 2: [names[:2], names[2:]]}

    def measured(count: int, pinned: bool) -> Measured:
        _cleared(root)
        return bench.work(
            "rows.many:divided", project=str(root), shares=shares[count], pinned=pinned
        )

    sides = {
        f"{count}, {kind}": partial(measured, number, pinned)
        for kind, pinned in (("a core each", True), ("all cores", False))
        for number, count in ((1, "one"), (2, "two"))
    }
    found = alternately(sides, bench.repeat, [scene], bench.say)
    written = sum(1 for _ in (root / "data/slices").rglob("slices.geojson"))
    shutil.rmtree(root)
    shown = {name: side(measurements) for name, measurements in found.items()}
    one, two, free, free_two = (summary["median"] for summary in shown.values())
    cores = len(os.sched_getaffinity(0))
    goal = Goal(
        "two processes against one, by scene, a core each",
        "≥ 1.8 ×",
        f"{one:.1f} s / {two:.1f} s = {one / two:.2f} ×; unpinned {free:.1f} s / {free_two:.1f} s "
        f"= {free / free_two:.2f} ×",
        one >= 1.8 * two if cores > 1 else None,
    )
    return Row([goal], shown, {}, [] if written == 4 else [f"{written} of 4 scenes were sliced"])


def divided(project: str, shares: list[list[str]], pinned: bool) -> dict[str, Any]:
    """Mask and slice scenes, a process a share; pinned, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))

    def one(number: int) -> None:
        words = [option for name in shares[number] for option in ("--scene", name)]
        core = {cores[number % len(cores)]} if pinned else set(cores)
        for verb in ("mask", "slice"):
            done = subprocess.run(
                [str(BIN / "glacier"), verb, *words], cwd=project, capture_output=True, text=True,
                check=False, preexec_fn=partial(os.sched_setaffinity, 0, core),
            )  # fmt: skip
            if done.returncode != 0:
                raise Failed(f"glacier {verb}: {done.stdout}{done.stderr}")

    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(one, range(len(shares))))
    return {}
