"""The two dates of a comparison, on one grid: maps, or an inventory in place of one."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio.warp
from rasterio.enums import Resampling

from glacier_core.errors import InputError
from glacier_core.labels.burning import Burner
from glacier_core.labels.inventory import outlines_for
from glacier_core.maps.scenemap import UNSEEN, SceneMap
from glacier_core.raster.grid import Grid

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Side:
    """One of the two dates.

    Attributes:
        name: scene, or the inventory's files.
        day: None where it is not known.
        classes: class numbers (height, width) on the common grid, `UNSEEN` where nothing is known.
    """

    name: str
    day: datetime.date | None
    classes: npt.NDArray[np.uint8]


def map_side(scene_map: SceneMap, reference: SceneMap) -> Side:
    """A map as one of the dates, on the grid of `reference`.

    Raises:
        InputError: it tells other classes apart, or lies nowhere.
    """
    about = scene_map.about
    if about.classes != reference.about.classes:
        raise InputError(
            f"{scene_map.folder}: tells {', '.join(about.classes)} apart, but {reference.folder} "
            f"{', '.join(reference.about.classes)}; maps of the same classes can be compared"
        )
    classes = scene_map.read("classes")
    grid = scene_map.grid
    if grid != reference.grid:
        grid.check_located(scene_map.raster("classes"))
        classes = _on_grid(classes, grid, reference.grid)
    return Side(about.scene, about.day, classes)


def _on_grid(classes: npt.NDArray[np.uint8], source: Grid, target: Grid) -> npt.NDArray[np.uint8]:
    """Class numbers on another grid, each pixel that of the nearest."""
    out = np.full((target.height, target.width), UNSEEN, dtype=np.uint8)
    rasterio.warp.reproject(
        classes,
        out,
        src_transform=source.transform,
        src_crs=source.crs.to_wkt(),
        src_nodata=UNSEEN,
        dst_transform=target.transform,
        dst_crs=target.crs.to_wkt(),
        dst_nodata=UNSEEN,
        resampling=Resampling.nearest,
    )
    return out


def with_inventory(
    scene_map: SceneMap, against: Mapping[str, Path], date: str | None
) -> tuple[Side, Side]:
    """A map and an inventory as the two dates, the earlier first; see `compare`."""
    grid, ice = scene_map.grid, scene_map.about.ice
    unknown = sorted(set(against) - set(ice))
    if unknown:
        raise InputError(
            f"--against: {', '.join(unknown)}: no class of the map, which has {', '.join(ice)}"
        )
    classes = np.zeros((grid.height, grid.width), dtype=np.uint8)
    for number, name in enumerate(ice, start=1):
        if name in against:
            found = outlines_for(against[name], grid, year_field=None, scene_year=None, tolerance=0)
            classes[Burner(found.polygons, grid).burn(grid.window) == 1] = number
    if not classes.any():
        raise InputError(
            f"{', '.join(map(str, against.values()))}: no outline lies on {scene_map.folder}; "
            "nothing can be compared"
        )
    if len(against) < len(ice):
        logger.warning(
            "the inventory tells of %s alone: change between classes means nothing",
            ", ".join(against),
        )
    day = datetime.date.fromisoformat(date) if date else None
    name = " + ".join(Path(path).name for path in against.values())
    own = map_side(scene_map, scene_map)
    earlier = day is None or own.day is None or day <= own.day
    theirs = Side(name, day, classes)
    return (theirs, own) if earlier else (own, theirs)


def in_order(first: Side, second: Side) -> tuple[Side, Side]:
    """Both, after a check that the first is not the later one."""
    if first.day and second.day and first.day > second.day:
        raise InputError(
            f"{first.name} is of {first.day}, {second.name} of {second.day}: give the earlier first"
        )
    return first, second
