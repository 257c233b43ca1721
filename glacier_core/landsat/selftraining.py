"""Learning from what a model itself says of a new scene: only where switched on, and never silently."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.labels.inventory import outlines_for
from glacier_core.labels.masking import strips
from glacier_core.labels.predicted import (
    UNSURE,
    Labeller,
    check_same_grid,
    labeller_of,
    predicted_path,
    write_predicted,
)
from glacier_core.labels.versioning import give_to_dvc
from glacier_core.landsat.learning import dated_sets, scene_path, without_outlines
from glacier_core.maps.scenemap import UNSEEN, SceneMap
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.scene import Scene
from glacier_core.settings import BACKGROUND, SceneConf

logger = logging.getLogger(__name__)

# Confidences are stored as v / 255.
_CERTAIN = 255


@dataclass(frozen=True)
class Outcome:
    """What came of having a scene labelled by the model.

    Attributes:
        conf: the scene as conf/masking_paths.yaml would have it; None where it is not learned from.
        why: what the list of scenes that wait for a review says of it.
    """

    conf: SceneConf | None
    why: str


def label_by_model(project: Project, row: Mapping[str, str], map_folder: Path) -> Outcome:
    """Make labels of what the champion's map says of a scene with enough confidence.

    Writes `data/predicted/{scene}.tif` and gives it to DVC. A scene is not learned from where no
    ice is certain enough: it would teach that there is none.

    Args:
        project: its classes, and `landsat.self_training_confidence`.
        row: of the scene in `quality.csv`; no inventory says anything of its time.
        map_folder: of its map, by the model that is to label it.

    Raises:
        InputError: the map is of other classes or of another grid than project and scene.
        StorageError: the labels cannot be written.
    """
    name, path = row["scene"], scene_path(project, row)
    if not row["date"]:
        return Outcome(None, "it has no date, by which an inventory's outlines would be left out")
    day = date.fromisoformat(row["date"])
    with Scene(path, project.masking.bands) as scene:
        grid = scene.grid
    conf = _configured(project, path, day, grid)
    if conf is None:
        return Outcome(None, "no set of outlines tells the years of all that it has there")
    found = SceneMap(map_folder)
    expected = [BACKGROUND, *project.postprocess.classes]
    if found.about.classes != expected:
        raise InputError(
            f"{map_folder}: maps {', '.join(found.about.classes)}, but the project tells apart "
            f"{', '.join(expected)} (conf/postprocess.yaml); a model of other classes cannot label"
        )
    check_same_grid(found.raster("classes"), found.grid, grid, "run `glacier map --again`")
    confidence = project.params.landsat.self_training_confidence
    said = _Certain(project, found, confidence)
    counts = np.zeros(256, dtype=np.int64)
    for window in strips(grid):
        counts += np.bincount(said(window).ravel(), minlength=256)
    if not counts[:UNSURE].sum():
        return Outcome(None, f"the model is nowhere sure, at confidence >= {confidence:g}")
    if not counts[1:UNSURE].sum():
        return Outcome(None, f"the model is sure of no ice, at confidence >= {confidence:g}")
    by = Labeller(" ".join(found.about.models), confidence, datetime.now(UTC).date().isoformat())
    target = predicted_path(project, name)
    write_predicted(target, grid, project.masking.classes, by, said)
    give_to_dvc(project, target)
    logger.info(
        "%s: labels by %s on %.0f %% of its pixels",
        name,
        by,
        100 * counts[:UNSURE].sum() / counts.sum(),
    )
    return Outcome(conf, why_listed(by))


def why_listed(by: Labeller) -> str:
    return f"labelled by the model alone: {by.in_words}"


def labelled_by_model(project: Project) -> Iterator[tuple[str, SceneConf, Labeller]]:
    """The configured scenes that have predicted labels, until a review of the whole takes them away.

    Raises:
        InputError: a file is damaged, or not there although DVC knows it.
    """
    for name, conf in sorted(project.masking.scenes.items()):
        by = labeller_of(project, name)
        if by is not None:
            yield name, conf, by


def _configured(project: Project, path: Path, day: date, grid: Grid) -> SceneConf | None:
    """The scene with the first set of outlines that leaves all of its own out, as masking reads them."""
    ground = grid.footprint(grid.window)
    for known in dated_sets(project):
        kept = [
            outlines_for(
                project.root / file,
                grid,
                year_field=known.year_field,
                scene_year=day.year,
                tolerance=project.params.mask.year_tolerance,
            ).polygons
            for file in sorted(set(known.mask_paths.values()))
        ]
        if not any(shapely.intersects(polygons, ground).any() for polygons in kept):
            return without_outlines(project, known, path, day)
    return None


class _Certain:
    """What a map says with enough confidence, in the numbers of `masking.classes`."""

    def __init__(self, project: Project, found: SceneMap, confidence: float) -> None:
        self._map, self._confidence = found, confidence
        self._numbers = np.full(256, UNSURE, dtype=np.uint8)
        self._numbers[0] = 0
        for number, name in enumerate(project.postprocess.classes, start=1):
            self._numbers[number] = 1 + project.masking.classes.index(name)
        assert self._numbers[UNSEEN] == UNSURE

    def __call__(self, window: Window) -> npt.NDArray[np.uint8]:
        classes = self._map.read("classes", window)
        sure = self._map.read("confidence", window) / _CERTAIN >= self._confidence
        return np.where(sure, self._numbers[classes], np.uint8(UNSURE)).astype(np.uint8)
