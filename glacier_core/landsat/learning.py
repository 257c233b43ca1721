"""What there is to learn from: new scenes for which somebody has said what is ice."""

from __future__ import annotations

import csv
import json
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import yaml

from glacier_core.config import Project, check, read_yaml
from glacier_core.errors import InputError, ServiceError
from glacier_core.files import whole_file
from glacier_core.labels.inventory import read_vector, years_of
from glacier_core.landsat.quality import ACCEPTED, REJECTED, TABLE, place_in, read_table
from glacier_core.raster.grid import Grid
from glacier_core.raster.scene import Scene
from glacier_core.settings import MaskingConf, SceneConf

logger = logging.getLogger(__name__)

REVIEW_LIST = "data/landsat/review_list.csv"
_COLUMNS = ["scene", "date", "why", "map", "outlines", "report"]


def candidates(project: Project) -> list[dict[str, str]]:
    """Accepted scenes of `quality.csv` that no training has seen yet, by name."""
    return [
        row
        for name, row in sorted(read_table(project).items())
        if row["verdict"] == ACCEPTED and name not in project.masking.scenes
    ]


def labels_for(project: Project, path: Path, day: date | None) -> SceneConf | None:
    """Which of the configured inventories say something about a new scene.

    Among the sets of outlines that configured scenes have, the one with the most polygons that
    touch the scene and are within `mask.year_tolerance` of it. A set without years, or a polygon
    without one, says nothing about a scene of another time, and does not count.

    Args:
        project: its inventories.
        path: of the scene.
        day: of the scene.

    Returns:
        The scene as conf/masking_paths.yaml would have it; None where nothing is known.

    Raises:
        InputError: the scene cannot be opened.
    """
    if day is None:
        return None
    with Scene(path, project.masking.bands) as scene:
        grid = scene.grid
    best, most = None, 0
    for known in dated_sets(project):
        polygons = sum(_of_its_time(project, file, known, grid, day) for file in _files(known))
        if polygons > most:
            best, most = known, polygons
    return None if best is None else _as_configured(project, best, path, day)


def dated_sets(project: Project) -> list[SceneConf]:
    """The different sets of outlines that have years, each as the first scene with it has it."""
    sets: dict[str, SceneConf] = {}
    for scene in project.masking.scenes.values():
        if scene.year_field is not None:
            key = [scene.mask_paths, scene.border_path, scene.year_field]
            sets.setdefault(json.dumps(key, sort_keys=True), scene)
    return list(sets.values())


def _files(scene: SceneConf) -> list[str]:
    return sorted(set(scene.mask_paths.values()))


def _of_its_time(project: Project, file: str, known: SceneConf, grid: Grid, day: date) -> int:
    """Polygons of a file that touch a scene's ground and have a year near its own."""
    path = project.root / file
    try:
        frame = read_vector(path)
    except InputError as error:
        logger.warning("%s", error)
        return 0
    if known.year_field not in frame.columns:
        logger.warning("%s: has no column '%s' for the year", path, known.year_field)
        return 0
    off = np.abs(years_of(frame[known.year_field]) - day.year)  # NaN without a year
    near = frame[off <= project.params.mask.year_tolerance].to_crs(grid.crs.to_wkt())
    return int(shapely.intersects(near.geometry.values, grid.footprint(grid.window)).sum())


def _as_configured(project: Project, like: SceneConf, path: Path, day: date) -> SceneConf:
    place = {"img_path": place_in(project, path), "date": day.isoformat()}
    return like.model_copy(update=place)


def scene_under_review(project: Project, name: str, *, whole: bool) -> SceneConf | None:
    """A scene of `quality.csv` as conf/masking_paths.yaml would have it, for its first review.

    Where no inventory says anything of its time, its polygons are all left out, and what is ice is
    only what the review says: it must speak of the whole scene.

    Args:
        project: its table and its inventories.
        name: of the scene.
        whole: whether the review says that all it leaves out is background.

    Returns:
        None where the table does not have the scene.

    Raises:
        InputError: it was rejected or has no date; the review is not enough; no inventory has years.
    """
    row = read_table(project).get(name)
    if row is None:
        return None
    if row["verdict"] == REJECTED or not row["date"]:
        why = row["reasons"] or "it has no date"
        raise InputError(f"{TABLE}: scene {name} cannot be learned from: {why}")
    path, day = scene_path(project, row), date.fromisoformat(row["date"])
    labels = labels_for(project, path, day)
    if labels is not None:
        return labels
    if not whole:
        raise InputError(
            f"scene {name}: no inventory says what is ice on it, so that all which the file leaves "
            "out would be background; correct the outlines of the whole scene and give --whole, "
            "with `ignore` where nobody can tell"
        )
    sets = dated_sets(project)
    if not sets:
        raise InputError(
            f"{project.masking_path}: no scene has a year_field, so that outlines of any year would "
            f"be labels of {name}; set year_field, then import the review again"
        )
    return without_outlines(project, sets[0], path, day)


def without_outlines(project: Project, like: SceneConf, path: Path, day: date) -> SceneConf:
    """A scene as conf/masking_paths.yaml would have it, whose labels are not an inventory's.

    Args:
        project: the scene's.
        like: a set of outlines whose polygons are all of another time.
        path: of the scene.
        day: of the scene.
    """
    return _as_configured(project, like.model_copy(update={"border_path": None}), path, day)


def scene_path(project: Project, row: Mapping[str, str]) -> Path:
    """Path of a scene in `quality.csv`."""
    return project.root / row["path"]


def learn_from(project: Project, scenes: Mapping[str, SceneConf]) -> None:
    """Add scenes to conf/masking_paths.yaml; those that it has already stay as they are.

    The comment at its head stays; others, which would come to stand beside other lines, do not.

    Raises:
        InputError: the file cannot be read, or would not hold together.
    """
    path = project.masking_path
    content: dict[str, Any] = read_yaml(path)
    check(MaskingConf, content, path)
    new = {
        name: conf.model_dump() for name, conf in scenes.items() if name not in content["scenes"]
    }
    if not new:
        return
    content["scenes"] |= new
    check(MaskingConf, content, path)
    # The comment at its head is people's.
    head = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.startswith("#"):
            break
        head.append(line)
    with whole_file(path) as beside:
        beside.write_text(
            "".join(head) + yaml.safe_dump(content, sort_keys=False, width=100), encoding="utf-8"
        )


def is_up_to_date(project: Project) -> bool:
    """Whether DVC finds every stage up to registration unchanged, reviews and settings included.

    Files that DVC keeps as they are (`data/raw.dvc`) do not count: a scene that was only fetched
    changes them. What a stage reads of them counts with the stage.

    Raises:
        InputError: DVC cannot read the project.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "--wait-for-lock", "status", "--json", "register",
         "--with-deps"],
        cwd=project.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no output"]
        raise InputError(f"{project.root}: dvc status: {said[-1]}")
    return all(name.endswith(".dvc") for name in json.loads(done.stdout or "{}"))


def is_undecided(project: Project) -> bool:
    """Whether a challenger waits that nobody has compared with the champion.

    As when a retraining was stopped between training and comparing.

    Raises:
        ServiceError: MLflow cannot be reached.
    """
    from mlflow.exceptions import MlflowException

    from glacier_core.model.promotion import TAG
    from glacier_core.model.registry import CHALLENGER
    from glacier_core.model.tracking import STORE_ERRORS, connect

    name = project.train.tracking.model_name
    try:
        client = connect(project)
        version = client.get_registered_model(name).aliases.get(CHALLENGER)
        return version is not None and TAG not in client.get_model_version(name, version).tags
    except STORE_ERRORS as error:
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise ServiceError(f"MLflow cannot be asked for the challenger: {error}") from error


def write_review_list(project: Project, rows: Sequence[Mapping[str, str]]) -> Path:
    """Write the scenes that wait for somebody to say what is ice on them; none is a list too."""
    path = project.root / REVIEW_LIST
    with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
