"""Taking over what analysts corrected: checked, stored as a review, given to DVC."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import rasterio.features
import shapely
from pyproj import CRS
from rasterio.warp import transform_bounds
from shapely.geometry import shape

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.files import whole_file
from glacier_core.labels.burning import Burner
from glacier_core.labels.inventory import extent_text, is_parquet, read_features
from glacier_core.labels.review import IGNORE, LAYER, finite, laid_on, reviews_folder
from glacier_core.labels.versioning import give_to_dvc
from glacier_core.raster.grid import Grid, Window
from glacier_core.raster.scene import Scene
from glacier_core.settings import BACKGROUND, SceneConf

# Layers that are looked for in what an analyst hands in, in this order.
_LAYERS = (LAYER, "classes")
_SLUG_LENGTH = 60
_SEEN_PIXELS = 1024
_LISTED = 10
# A hair under half, so that an overlap of exactly one pixel is found.
_HALF_PIXEL = 0.49
# Cylindrical equal-area: areas of the ellipsoid anywhere.
_EQUAL_AREA = "EPSG:6933"


def import_review(
    project: Project,
    file: Path,
    *,
    scene: str,
    conf: SceneConf,
    author: str,
    day: str,
    layer: str | None,
    whole: bool,
    within: Path | None,
    note: str,
) -> str:
    """Check an analyst's polygons and store them in `data/reviews/{scene}/`, for DVC to keep.

    Args:
        project: whose labels they correct.
        file: polygons with a column `class`: a class, `background` or `ignore`.
        scene: id of the scene that they were drawn on.
        conf: that scene, which conf/masking_paths.yaml may not have yet.
        author: who drew them.
        day: ISO date of the review.
        layer: of the file; None for `review`, else `classes`, else its only one.
        whole: what the file leaves out is background, wherever the scene was seen. Where it was
            not, the map that was corrected says nothing, and another scene may have seen ice.
        within: the same inside the polygons of this file.
        note: kept with them.

    Returns:
        Where they lie, what they hold, and what to do next.

    Raises:
        InputError: the file cannot be used, or contradicts itself, the scene or a stored review;
            nothing is stored.
        StorageError: it cannot be written, or DVC does not take it.
    """
    if whole and within is not None:
        raise InputError(
            f"--whole and --within {within}: give one of them; --within says of a part what --whole "
            "says of the scene"
        )
    author, slug = author.strip(), _slug(author)
    day = _review_day(day, scene, conf)
    frame = read_features(file, _chosen_layer(file, layer))
    _check_columns(project, file, frame, scene, conf)
    used = project.postprocess.channels
    with Scene(project.root / conf.img_path, project.masking.bands, used) as image:
        grid = image.grid
        shapes, broken = _on_the_scene(file, frame, scene, grid)
        _check_overlaps(file, frame, shapes, grid)
        area = None
        if within is not None:
            ground = read_features(within, _only_layer(within))
            parts = shapely.get_parts(_on_the_scene(within, ground, scene, grid)[0])
            area = Burner(parts, grid)
        rest = _seen(project, image, area) if whole or area is not None else []
    content = gpd.GeoDataFrame(
        {
            "order": [0] * len(rest) + list(range(1, len(shapes) + 1)),
            "class": [BACKGROUND] * len(rest) + frame["class"].tolist(),
        },
        geometry=[*rest, *shapes],
        crs=grid.crs,
    )
    about = {
        "author": author, "reviewed_on": day, "scene": scene, "scene_date": conf.date,
        "note": note.strip(),
    }  # fmt: skip
    content = content.assign(**about)
    path = reviews_folder(project) / scene / f"{day}_{slug}.gpkg"
    there = _store(path, _as_bytes(content, day), f"{scene} by {author} on {day}")
    place = None
    if whole or within is not None:
        place = "" if within is None else f" inside {within}"
    said = _in_words(content, int(broken.sum()), place)
    kept = give_to_dvc(project, path)
    if kept is None:
        after = "no DVC repository, so the file is not versioned; next: `glacier mask`"
    else:
        after = f"next: `git add {kept.as_posix()}` and commit, then `dvc repro`"
    return f"{path}: {'is there already, ' if there else ''}{said}; {after}"


def _slug(author: str) -> str:
    """The name as part of a file name: lower-case letters, digits and `-`."""
    plain = unicodedata.normalize("NFKD", author).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain)[:_SLUG_LENGTH].strip("-")
    if not slug:
        raise InputError(
            f"--author: {author!r} has no Latin letter or digit to name a file by; "
            "write the name in Latin letters"
        )
    return slug


def _review_day(text: str, scene: str, conf: SceneConf) -> str:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise InputError(f"--date: expected YYYY-MM-DD, found {text!r}") from None
    if day > date.today():
        raise InputError(f"--date: {day} lies in the future; give the day of the review")
    if conf.day is not None and day < conf.day:
        raise InputError(
            f"--date: {day} is before the scene {scene} was taken, {conf.day}; "
            "give the day of the review, not of the scene"
        )
    return day.isoformat()


def _layers(file: Path) -> list[str]:
    """Layers with geometry: tables without, as QGIS keeps its styles in, are not meant."""
    if is_parquet(file):
        return []
    try:
        return [name for name, kind in pyogrio.list_layers(file) if kind is not None]
    except (pyogrio.errors.DataSourceError, OSError):
        return []  # reading the file says why


def _chosen_layer(file: Path, layer: str | None) -> str | None:
    names = _layers(file)
    if layer is not None and layer not in names and file.exists():
        raise InputError(f"{file}: has no layer {layer!r}; it has {', '.join(names) or 'none'}")
    for name in [layer] if layer else _LAYERS:
        if name in names:
            return name
    if len(names) > 1:
        raise InputError(
            f"{file}: has the layers {', '.join(names)}, and none is called "
            f"{' or '.join(_LAYERS)}; choose one with --layer"
        )
    return names[0] if names else None


def _only_layer(file: Path) -> str | None:
    names = _layers(file)
    if len(names) > 1:
        raise InputError(f"{file}: has the layers {', '.join(names)}; give --within a file of one")
    return names[0] if names else None


def _ids(labels: Iterable[Any]) -> str:
    """Feature ids to name, the first of them where they are many."""
    listed = list(labels)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(map(str, listed[:_LISTED])) + more


def _check_columns(
    project: Project, file: Path, frame: gpd.GeoDataFrame, scene: str, conf: SceneConf
) -> None:
    known = [*project.masking.classes, BACKGROUND, IGNORE]
    if "class" not in frame.columns:
        columns = [str(name) for name in frame.columns if name != frame.geometry.name]
        raise InputError(
            f"{file}: has no column 'class' (it has {', '.join(columns) or 'none'}); "
            f"expected one that holds {', '.join(known)}"
        )
    empty = frame["class"].isna() | (frame["class"] == "")
    if empty.any():
        raise InputError(
            f"{file}: features {_ids(frame.index[empty])} have no class; "
            f"give each one of {', '.join(known)}, or delete it"
        )
    strange = ~frame["class"].isin(known)
    if strange.any():
        found = ", ".join(sorted({repr(value) for value in frame["class"][strange]}))
        raise InputError(
            f"{file}: features {_ids(frame.index[strange])} have the class {found}; "
            f"the classes are {', '.join(known)}"
        )
    expected = {"scene": scene, "date": conf.day}
    for column, ours in expected.items():
        if column not in frame.columns or ours is None:
            continue
        values = frame[column]
        for label, theirs in values[values.notna() & (values != "")].items():
            if (_day(theirs) if column == "date" else theirs) != ours:
                raise InputError(
                    f"{file}: feature {label} was drawn on the {column} {str(theirs)!r}, by its "
                    f"column '{column}', but scene {scene} has {ours}. Name the scene it was "
                    "drawn on with --scene, or take the column out."
                )


def _day(value: Any) -> date | None:
    """The day in a column's value, None where there is none to be read."""
    try:
        return date.fromisoformat(str(value)[:10].replace("/", "-"))
    except ValueError:
        return None


def _on_the_scene(
    file: Path, frame: gpd.GeoDataFrame, scene: str, grid: Grid
) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.bool_]]:
    """The file's shapes made valid in the scene's CRS, and which were not.

    Raises:
        InputError: none of them touches the scene, or its CRS does not reach there.
    """
    geometry = np.asarray(frame.geometry.values, dtype=object)
    source, wgs84 = CRS.from_user_input(frame.crs), CRS.from_epsg(4326)
    try:
        shapes, broken = laid_on(geometry, source, grid.crs)
    except Exception as error:  # pyproj and GEOS raise many kinds
        raise InputError(f"{file}: its CRS cannot be reached from the scene's ({error})") from error
    lost = ~finite(shapes)
    footprint = grid.footprint(grid.window)
    if not shapely.intersects(shapes[~lost], footprint).any():
        ours = transform_bounds(grid.crs.to_wkt(), wgs84.to_wkt(), *footprint.bounds)
        theirs = frame.to_crs(wgs84).total_bounds
        raise InputError(
            f"{file}: no polygon touches scene {scene}. Polygons: {extent_text(theirs)}, scene: "
            f"{extent_text(ours)} (west south to east north, degrees); is it the scene they were "
            "drawn on, and is their CRS the right one?"
        )
    if lost.any():
        raise InputError(
            f"{file}: features {_ids(frame.index[lost])} lie where the CRS of scene {scene} does "
            "not reach; delete them"
        )
    return shapes, broken


def _check_overlaps(
    file: Path, frame: gpd.GeoDataFrame, shapes: npt.NDArray[np.object_], grid: Grid
) -> None:
    """Refuse two classes on one ground.

    Neighbours that were drawn without snapping overlap by slivers, which may be long: what
    counts is whether an overlap is as wide as a pixel.
    """
    classes = frame["class"].to_numpy(dtype=object)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = (one < other) & (classes[one] != classes[other])
    one, other = one[pairs], other[pairs]
    pixel = float(np.sqrt(abs(grid.transform.determinant)))
    shared = shapely.intersection(shapes[one], shapes[other])
    wide = np.flatnonzero(~shapely.is_empty(shapely.buffer(shared, -_HALF_PIXEL * pixel)))
    if wide.size:
        told = ", ".join(
            f"{frame.index[one[i]]} ({classes[one[i]]}) and "
            f"{frame.index[other[i]]} ({classes[other[i]]})"
            for i in wide[:_LISTED]
        )
        raise InputError(
            f"{file}: features of different classes lie on one ground: {told}"
            + (f" and {wide.size - _LISTED} more pairs" if wide.size > _LISTED else "")
            + ". Cut one out of the other."
        )


def _seen(project: Project, image: Scene, area: Burner | None) -> list[Any]:
    """Polygons of the pixels that the scene saw, as its labels count them; inside an area."""
    grid, size, polygons = image.grid, _SEEN_PIXELS, []
    for row, col in product(range(0, grid.height, size), range(0, grid.width, size)):
        window = Window(row, col, min(size, grid.height - row), min(size, grid.width - col))
        seen = image.view(window, project.postprocess.channels)[1] == 0
        if area is not None:
            seen &= area.burn(window) == 1
        found = rasterio.features.shapes(
            seen.astype(np.uint8), mask=seen, transform=grid.window_transform(window)
        )
        polygons += [shape(polygon) for polygon, _ in found]
    return polygons


def _as_bytes(content: gpd.GeoDataFrame, day: str) -> bytes:
    """A GeoPackage, the same for the same content: DVC compares bytes."""
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    # It would keep the time of its writing.
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": f"{day}T00:00:00.000Z"})
    try:
        buffer = io.BytesIO()
        pyogrio.write_dataframe(content, buffer, layer=LAYER, driver="GPKG", promote_to_multi=True)
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})
    return buffer.getvalue()


def _store(path: Path, content: bytes, about: str) -> bool:
    """Write a review whole; True where the very same is there already.

    Raises:
        InputError: another is there.
    """
    known = path.with_name(f"{path.name}.dvc")
    if not path.exists():
        if known.exists():
            raise InputError(f"{path}: no such file, but {known.name} names it; run `dvc pull`")
        with whole_file(path) as beside:
            beside.write_bytes(content)
        return False
    if path.read_bytes() != content:
        raise InputError(
            f"{path}: is there already, another review of {about}. Remove it and {known.name}, "
            "or give this one another --date."
        )
    return True


def _in_words(content: gpd.GeoDataFrame, mended: int, place: str | None) -> str:
    km2 = content.to_crs(_EQUAL_AREA).area / 1e6
    drawn = content["order"] > 0
    by_class = km2[drawn].groupby(content["class"][drawn], sort=False).sum()
    text = f"{drawn.sum()} polygons" + (f" ({mended} repaired)" if mended else "") + ", "
    text += ", ".join(f"{name} {area:.3f} km²" for name, area in by_class.items())
    if place is not None:
        text += f"; all else is background on the {km2[~drawn].sum():.3f} km² seen{place}"
    return text
