"""Burning outlines into label masks, a strip of rows at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from tqdm import tqdm

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.files import array_by_rows, whole_folder
from glacier_core.labels.burning import Burner
from glacier_core.labels.inventory import Outlines, outlines_for
from glacier_core.labels.metadata import write_metadata
from glacier_core.labels.predicted import PredictedLabels, how_to_remove, predicted_for
from glacier_core.labels.review import Corrections, reviews_for
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.scene import Scene
from glacier_core.settings import SceneConf

logger = logging.getLogger(__name__)

_STRIP_ROWS = 512


def strips(grid: Grid) -> Iterator[Window]:
    """The grid from top to bottom in windows of full width."""
    for row in range(0, grid.height, _STRIP_ROWS):
        yield Window(row, 0, min(_STRIP_ROWS, grid.height - row), grid.width)


def mask_scene(project: Project, scene_id: str) -> dict[str, object]:
    """Write a scene's `mask_{id}.npy`, `border_{id}.npy` and one-row `mask_metadata.csv`.

    The mask is uint8 (height, width, classes), classes in the order of the configuration, 1
    inside an outline; the border is uint8 (height, width), 1 inside the study area. Where a
    review of `data/reviews` says something, both follow it. A scene with predicted labels
    (`data/predicted`) has these under its reviews instead of outlines, and `predicted_{id}.npy`,
    uint8 (height, width), 1 where the label is still a model's. Memory is one strip of rows,
    whatever the scene's size.

    Returns:
        The row of `mask_metadata.csv`.

    Raises:
        InputError: scene, outlines, reviews or predicted labels cannot be used, or an inventory has
            outlines where there are predicted labels; nothing is written.
    """
    conf, scene_conf = project.masking, project.scene(scene_id)
    with Scene(project.root / scene_conf.img_path, conf.bands) as scene:
        grid = scene.grid
    outlines = {
        name: _read(project, scene_conf, grid, scene_conf.mask_paths[name]) for name in conf.classes
    }
    burners = [Burner(outlines[name].polygons, grid) for name in conf.classes]
    border = None
    if scene_conf.border_path is not None:
        area = outlines_for(
            project.root / scene_conf.border_path,
            grid,
            year_field=None,
            scene_year=None,
            tolerance=0,
        )
        border = Burner(area.polygons, grid)
    reviews = reviews_for(project, scene_id, grid)
    corrections = Corrections(reviews, conf.classes, grid)

    predicted = predicted_for(project, scene_id, grid)
    if predicted is not None:
        _check_people_first(predicted, scene_conf, outlines, grid)

    pixels = np.zeros(len(burners), dtype=np.int64)
    km2, reviewed_km2, predicted_km2 = np.zeros(len(burners)), 0.0, 0.0
    size = (grid.height, grid.width)
    with whole_folder(project.mask_folder(scene_id)) as folder:
        with ExitStack() as stack:

            def rows(kind: str, shape: tuple[int, ...]) -> Callable[[npt.NDArray[Any]], None]:
                path = folder / f"{kind}_{scene_id}.npy"
                return stack.enter_context(array_by_rows(path, shape, np.uint8))

            add_mask, add_border = rows("mask", (*size, len(burners))), rows("border", size)
            add_predicted = rows("predicted", size) if predicted is not None else None
            for window in tqdm(list(strips(grid)), desc=f"mask {scene_id}", disable=None):
                burned = np.stack([burner.burn(window) for burner in burners], axis=-1)
                inside = np.ones_like(burned[..., 0]) if border is None else border.burn(window)
                laid = None if predicted is None else predicted.lay(window, burned, inside)
                reviewed = corrections.apply(window, burned, inside)
                areas = grid.pixel_areas_km2(window)
                for k, layer in enumerate(np.moveaxis(burned, -1, 0)):
                    pixels[k] += np.count_nonzero(layer)
                    km2[k] += np.vdot(areas, layer)
                reviewed_km2 += float(areas[reviewed].sum())
                add_mask(burned)
                add_border(inside)
                if laid is not None and add_predicted is not None:
                    laid &= ~reviewed
                    predicted_km2 += float(areas[laid].sum())
                    add_predicted(laid)
        # A scene that people have looked at as a whole since is theirs.
        by = predicted.by if predicted is not None and predicted_km2 > 0 else None
        row = _metadata(project, scene_id, grid, outlines, pixels, km2)
        row |= {"reviews": len(reviews), "reviewed_km2": round(reviewed_km2, 6)}
        row |= {"predicted": str(by or ""), "predicted_km2": round(predicted_km2, 6)}
        write_metadata(folder, row)
    for k, name in enumerate(conf.classes):
        chosen = outlines[name]
        logger.info(
            "%s %s: %d polygons read, %d left out by year, %d repaired, %d burned, "
            "%d pixels, %.2f km²",
            scene_id,
            name,
            chosen.read,
            chosen.left_out,
            chosen.repaired,
            chosen.burned,
            pixels[k],
            km2[k],
        )
    for review in reviews:
        logger.info("%s: corrected by %s (%s)", scene_id, review.path, review.author)
    if by is not None:
        logger.info("%s: %.2f km² labelled by the model alone, %s", scene_id, predicted_km2, by)
    return row


def _check_people_first(
    predicted: PredictedLabels, scene: SceneConf, outlines: dict[str, Outlines], grid: Grid
) -> None:
    """Refuse predicted labels where an inventory says what is ice."""
    footprint = grid.footprint(grid.window)
    for name, chosen in outlines.items():
        if shapely.intersects(chosen.polygons, footprint).any():
            raise InputError(
                f"{predicted.path}: a model's labels, but {scene.mask_paths[name]} has outlines of "
                "the scene's time on it, and what people say comes first: "
                f"{how_to_remove(predicted.path)}"
            )


def _read(project: Project, scene: SceneConf, grid: Grid, path: str) -> Outlines:
    year_field, day = scene.year_field, scene.day
    if year_field is None or day is None:
        missing = "no year field is set" if year_field is None else "the scene's date is not known"
        logger.warning("%s: polygons of every year are kept, as %s", path, missing)
    return outlines_for(
        project.root / path,
        grid,
        year_field=year_field,
        scene_year=day.year if day else None,
        tolerance=project.params.mask.year_tolerance,
    )


def _metadata(
    project: Project,
    scene_id: str,
    grid: Grid,
    outlines: dict[str, Outlines],
    pixels: npt.NDArray[np.int64],
    km2: npt.NDArray[np.float64],
) -> dict[str, object]:
    folder = project.mask_folder(scene_id).relative_to(project.root)
    scene = project.scene(scene_id)
    row: dict[str, object] = {
        "id": scene_id,
        "img": scene.img_path,
        "mask": Path(folder, f"mask_{scene_id}.npy").as_posix(),
        "border": Path(folder, f"border_{scene_id}.npy").as_posix(),
        "img_width": grid.width,
        "img_height": grid.height,
        "mask_width": grid.width,
        "mask_height": grid.height,
        "classes": " ".join(outlines),
        "date": scene.date or "",
        "crs": grid.crs.to_string(),
        "transform": " ".join(map(repr, grid.transform[:6])),
    }
    for k, name in enumerate(outlines):
        chosen = outlines[name]
        row |= {
            f"{name}_polygons": chosen.read,
            f"{name}_left_out": chosen.left_out,
            f"{name}_repaired": chosen.repaired,
            f"{name}_burned": chosen.burned,
            f"{name}_pixels": int(pixels[k]),
            f"{name}_km2": round(float(km2[k]), 6),
        }
    return row
