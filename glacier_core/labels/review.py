"""Reviews: what analysts corrected in maps, stored as labels and painted over the inventories'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import shapely
from pyproj import CRS
from rasterio.warp import transform_bounds

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.labels.burning import Canvas
from glacier_core.labels.inventory import repaired
from glacier_core.raster.grid import Grid, Window
from glacier_core.settings import BACKGROUND

IGNORE = "ignore"
"""Class of ground about which nobody can tell what it is."""

LAYER = "review"

# What a painter leaves on the canvas; class k of the configuration is _FIRST_CLASS + k.
_UNTOUCHED, _BACKGROUND, _IGNORED, _FIRST_CLASS = range(4)


@dataclass(frozen=True)
class Review:
    """A stored review as far as it touches a scene.

    Attributes:
        path: its file.
        author: who drew it.
        polygons: shapely Polygons in the scene's CRS, in the order of painting.
        classes: one of the classes, `background` or `ignore` for each.
    """

    path: Path
    author: str
    polygons: npt.NDArray[np.object_]
    classes: npt.NDArray[np.object_]


class Corrections:
    """Reviews of a scene, the later over the earlier, to be laid over its mask."""

    def __init__(self, reviews: Sequence[Review], classes: Sequence[str], grid: Grid) -> None:
        values = {name: _FIRST_CLASS + k for k, name in enumerate(classes)}
        values |= {BACKGROUND: _BACKGROUND, IGNORE: _IGNORED}
        polygons = [polygon for review in reviews for polygon in review.polygons]
        painted = [values[name] for review in reviews for name in review.classes]
        self._canvas = Canvas(
            np.asarray(polygons, dtype=object), np.asarray(painted, dtype=np.uint8), grid
        )

    def apply(
        self, window: Window, mask: npt.NDArray[np.uint8], border: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.bool_]:
        """Correct a window of mask and border in place.

        Args:
            window: its pixels.
            mask: uint8 (height, width, classes). Inside a review it becomes the review's class
                alone.
            border: uint8 (height, width). Inside a review it becomes 1, as what was reviewed is
                known, and 0 where the review says `ignore`.

        Returns:
            bool (height, width): where a review says something.
        """
        said = self._canvas.paint(window)
        reviewed: npt.NDArray[np.bool_] = said != _UNTOUCHED
        ours = said[reviewed]
        mask[reviewed] = ours[:, None] == _FIRST_CLASS + np.arange(mask.shape[-1])
        border[reviewed] = ours != _IGNORED
        return reviewed


def reviews_folder(project: Project) -> Path:
    return project.root / "data/reviews"


def reviews_for(project: Project, scene_id: str, grid: Grid) -> list[Review]:
    """The stored reviews that hold for a scene, the earliest first.

    Those are the reviews drawn on it, and those drawn on a scene of its time (years within
    `mask.year_tolerance`), as far as they touch its ground.

    Raises:
        InputError: a review is damaged, not there although DVC knows it, or names a class that is
            no longer configured.
    """
    folder = reviews_folder(project)
    for known in sorted(folder.glob("*/*.gpkg.dvc")):
        if not known.with_suffix("").exists():
            raise InputError(
                f"{known.with_suffix('')}: no such file, but {known.name} names it; run `dvc pull`"
            )
    day, tolerance = project.scene(scene_id).day, project.params.mask.year_tolerance
    reviews = []
    # A file's name begins with its date.
    for path in sorted(folder.glob("*/*.gpkg"), key=lambda path: (path.name, path.parent.name)):
        if path.name.startswith("."):
            continue  # being written
        review = _stored(path, scene_id, grid, day, tolerance)
        if review is None:
            continue
        unknown = set(review.classes) - {*project.masking.classes, BACKGROUND, IGNORE}
        if unknown:
            raise InputError(
                f"{path}: has the class {', '.join(sorted(unknown))}, which "
                f"{project.masking_path} does not have; name it there, or remove the review"
            )
        reviews.append(review)
    return reviews


def _stored(
    path: Path, scene_id: str, grid: Grid, day: date | None, tolerance: float
) -> Review | None:
    """A review's polygons on a scene's ground; None where it does not hold for the scene."""
    try:
        (head,) = pyogrio.read_dataframe(
            path, layer=LAYER, read_geometry=False, max_features=1
        ).itertuples()
        if head.scene != scene_id:
            if day is None or head.scene_date is None:
                return None
            if abs(day.year - date.fromisoformat(head.scene_date).year) > tolerance:
                return None
        source = CRS.from_user_input(pyogrio.read_info(path, layer=LAYER)["crs"])
        bounds = grid.footprint(grid.window).bounds
        near = transform_bounds(grid.crs.to_wkt(), source.to_wkt(), *bounds, densify_pts=21)
        frame = pyogrio.read_dataframe(path, layer=LAYER, bbox=near)
        frame = frame.sort_values("order", kind="stable")
        classes = frame["class"].to_numpy(dtype=object)
        geometry = np.asarray(frame.geometry.values, dtype=object)
    except Exception as error:  # a file of our own; GDAL's errors are many
        raise InputError(
            f"{path}: cannot be read as a review ({str(error).splitlines()[0]}); "
            "`dvc checkout` restores it"
        ) from error
    shapes, _ = laid_on(geometry, source, grid.crs)
    parts, owner = shapely.get_parts(shapes, return_index=True)
    touching = shapely.intersects(parts, grid.footprint(grid.window))
    if not touching.any():
        return None
    return Review(path, str(head.author), parts[touching], classes[owner[touching]])


def laid_on(
    geometry: npt.NDArray[np.object_], source: CRS, target: CRS
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.bool_]]:
    """Shapes made valid in another CRS, and which were not. Infinite where it does not reach."""
    shapes = np.asarray(shapely.force_2d(geometry), dtype=object)
    broken = np.asarray(~shapely.is_valid(shapes))
    shapes[broken] = repaired(shapes[broken])
    shapes = np.asarray(gpd.GeoSeries(shapes, crs=source).to_crs(target).values, dtype=object)
    folded = ~shapely.is_valid(shapes) & finite(shapes)
    shapes[folded] = repaired(shapes[folded])
    return shapes, broken


def finite(shapes: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    # An empty shape has NaN for bounds, and is nowhere.
    finite = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    return np.asarray(finite | shapely.is_empty(shapes))
