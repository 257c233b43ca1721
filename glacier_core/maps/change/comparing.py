"""Change between two dates: what came, what went, and how sure that is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.files import whole_folder, write_json
from glacier_core.maps.attributes import METHODS, Faces, border_errors
from glacier_core.maps.change import figures
from glacier_core.maps.change.sides import Side, in_order, map_side, with_inventory
from glacier_core.maps.coverage import trace
from glacier_core.maps.glaciers import (
    Glaciers,
    as_frame,
    find_glaciers,
    pixel_areas_at,
)
from glacier_core.maps.heights import BIN_M
from glacier_core.maps.outlines import (
    centres,
    glims_ids,
    read_inventory,
)
from glacier_core.maps.scenemap import UNSEEN, SceneMap
from glacier_core.maps.specks import without_specks
from glacier_core.maps.styles import glacier_style, value_style
from glacier_core.maps.vectors import multipolygons, write_layers
from glacier_core.raster.grid import Grid

logger = logging.getLogger(__name__)

SUMMARY = "change.json"
# Days of a year, on average.
_YEAR = 365.2425

GAIN, LOSS = "gain", "loss"
COLOURS = {GAIN: "#1b7837", LOSS: "#c51b7d"}

_METHODS = {
    "seen": "Only pixels that were seen at both dates count; seen_share says how much of the "
    "glacier, or of the ground that either date shows, that is.",
    "glac_id": "A glacier here is what either date shows of it, so that its place, and with it its id, "
    "may be another than in the outlines of one date: join those by where they lie, or by inv_id.",
    "change": METHODS["area"],
    "err": "The errors of both dates, each by the buffer method, taken to be independent: "
    "the root of the sum of their squares. " + METHODS["err_buffer"] + " An error that both maps "
    "make in the same place falls out of the difference, but is counted here.",
}

Km2 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Counted:
    """Areas of one date, glacier by glacier.

    Attributes:
        km2: (glaciers, classes).
        error: (glaciers,), km².
        class_error: (glaciers, classes), km².
    """

    km2: Km2
    error: Km2
    class_error: Km2


def compare(
    project: Project,
    before: Path,
    after: Path | None,
    out: Path,
    *,
    against: Mapping[str, Path],
    date: str | None,
    inventory: Path | None,
    inventory_id: str | None,
) -> str:
    """Write the change between two maps, or a map and an inventory, into the folder `out`.

    `change.csv` (a row a glacier), `change.gpkg` (layers `glaciers`, and `moves`: where ice came
    and went), `change.json` (sums), `hypsometry.csv` where a map has terrain, and `figures/`.

    Args:
        project: for `outlines` in params.yaml, and the inventory in conf/maps.yaml.
        before: folder of a map; the earlier one.
        after: folder of the later one; None with `against`.
        out: folder to write, replaced if it is there.
        against: instead of a second map: vector file by class.
        date: ISO date of `against`.
        inventory: glaciers for ids and divides; None for that of conf/maps.yaml, if any.
        inventory_id: its column of ids.

    Returns:
        The total in a sentence.

    Raises:
        InputError: maps that cannot be compared: other classes, no common ground, no CRS, the
            wrong order in time.
    """
    reference = SceneMap(before if after is None else after)
    grid, ice = reference.grid, reference.about.ice
    grid.check_located(reference.raster("classes"))
    sides = (
        with_inventory(reference, against, date)
        if after is None
        else (map_side(SceneMap(before), reference), map_side(reference, reference))
    )
    first, second = in_order(*sides)
    params = project.params.outlines
    smoothed = [without_specks(side.classes, params.min_part_pixels) for side in (first, second)]
    both = (smoothed[0] != UNSEEN) & (smoothed[1] != UNSEEN)
    if not both.any():
        raise InputError(
            f"{first.name} and {second.name}: show no ground in common; nothing can be compared"
        )
    union = np.zeros(both.shape, dtype=bool)
    for classes in smoothed:
        union |= (classes > 0) & (classes != UNSEEN)
    known = read_inventory(project, inventory, inventory_id, grid)
    glaciers = find_glaciers(union, ~both & ~union, grid, params, known)
    counted = [_count(classes, both, glaciers, ice, grid) for classes in smoothed]
    years = _years(first, second)
    moves = _moves(smoothed, both, glaciers, ice)
    table = _table(glaciers, counted, moves, both, ice, years, grid)
    sums = _sums(first, second, counted, both, smoothed, ice, years, table)
    with whole_folder(out) as folder:
        write_layers(
            folder / "change.gpkg",
            {"glaciers": table, "moves": _move_table(moves, table, grid)},
            {"glaciers": glacier_style(), "moves": value_style("what", _move_colours(ice))},
            second.day.isoformat() if second.day else None,
        )
        table.drop(columns="geometry").to_csv(folder / "change.csv", index=False)
        write_json(folder / SUMMARY, sums)
        heights = _hypsometry(reference, smoothed, both, glaciers, ice)
        if heights is not None:
            heights.to_csv(folder / "hypsometry.csv", index=False, float_format="%.6f")
        (folder / "figures").mkdir()
        figures.draw(folder / "figures", sums, table, heights, moves.codes, both)
    total = sums["total"]
    rate = "" if years is None else f", {total['change'] / years:+.2f} km² a year"
    return (
        f"{out}: {first.name} to {second.name}: {total['before']:.2f} to {total['after']:.2f} km², "
        f"{total['change']:+.2f} ± {total['err']:.2f}{rate}; "
        f"{100 * sums['seen_share']:.0f} % of the ground seen at both dates"
    )


def _years(first: Side, second: Side) -> float | None:
    if first.day is None or second.day is None or first.day == second.day:
        unknown = first.name if first.day is None else second.name
        logger.warning("no rate a year: the date of %s is not known, or both are equal", unknown)
        return None
    return (second.day - first.day).days / _YEAR


def _count(
    classes: npt.NDArray[np.uint8],
    both: npt.NDArray[np.bool_],
    glaciers: Glaciers,
    ice: list[str],
    grid: Grid,
) -> _Counted:
    there = both & (classes > 0) & (glaciers.numbers > 0)
    numbers = np.where(there, glaciers.numbers, 0).astype(np.int32)
    faces = Faces(numbers, np.where(both, classes, np.uint8(UNSEEN)), ice)
    errors = border_errors(trace(faces), faces, glaciers.count, grid)
    cell = (numbers[there].astype(np.int64) - 1) * len(ice) + classes[there] - 1
    cells = glaciers.count * len(ice)
    areas = pixel_areas_at(grid, there)
    km2: Km2 = np.bincount(cell, weights=areas, minlength=cells).astype(np.float64)
    by_glacier = km2.reshape(glaciers.count, len(ice))
    errors = errors.within(by_glacier)
    return _Counted(by_glacier, errors.glacier, errors.by_class)


@dataclass(frozen=True)
class Moves:
    """Where the class of a glacier's pixel changed.

    Attributes:
        codes: uint8 (height, width): 0 for no change, else 1 + the position in `names`.
        names: `gain`, `loss`, and `a_to_b` for each pair of classes of ice.
        faces: int32 (height, width): codes by glacier, for polygons.

    """

    codes: npt.NDArray[np.uint8]
    names: list[str]
    faces: npt.NDArray[np.int32]


def _move_names(ice: list[str]) -> list[str]:
    return [GAIN, LOSS, *(f"{a}_to_{b}" for a in ice for b in ice if a != b)]


def _move_colours(ice: list[str]) -> dict[str, str]:
    others = ["#8c6d31", "#4a90c2", "#7b5aa6", "#3b8686", "#a6761d", "#666666"]
    names = _move_names(ice)
    return COLOURS | {name: others[i % len(others)] for i, name in enumerate(names[2:])}


def _moves(
    smoothed: list[npt.NDArray[np.uint8]],
    both: npt.NDArray[np.bool_],
    glaciers: Glaciers,
    ice: list[str],
) -> Moves:
    names = _move_names(ice)
    before, after = smoothed
    counted = both & (glaciers.numbers > 0)
    codes = np.zeros(both.shape, dtype=np.uint8)
    codes[counted & (before == 0) & (after > 0)] = 1
    codes[counted & (before > 0) & (after == 0)] = 2
    for i, a in enumerate(ice, start=1):
        for j, b in enumerate(ice, start=1):
            if i != j:
                number = 1 + names.index(f"{a}_to_{b}")
                codes[counted & (before == i) & (after == j)] = number
    faces = np.where(codes > 0, (glaciers.numbers - 1) * len(names) + codes, 0)
    faces[~both] = -1
    return Moves(codes, names, faces.astype(np.int32))


def _table(
    glaciers: Glaciers,
    counted: list[_Counted],
    moves: Moves,
    both: npt.NDArray[np.bool_],
    ice: list[str],
    years: float | None,
    grid: Grid,
) -> Any:
    count = glaciers.count
    shapes = as_frame({}, trace(glaciers.numbers).polygons, grid)
    lon, lat = centres(np.asarray(shapes.geometry.values, dtype=object), grid)
    inside = glaciers.numbers > 0
    of = glaciers.numbers[inside].astype(np.int64) - 1
    areas = pixel_areas_at(grid, inside)
    whole = np.bincount(of, weights=areas, minlength=count)
    seen = np.bincount(of, weights=areas * both[inside], minlength=count)
    before, after = counted
    was, now = before.km2.sum(axis=1), after.km2.sum(axis=1)
    records: dict[str, Any] = {
        "glac_id": np.array(glims_ids(lon, lat), dtype=object),
        "inv_id": np.array(glaciers.inventory_ids, dtype=object),
        "cenlon": lon.round(6),
        "cenlat": lat.round(6),
        "km2_before": was.round(6),
        "km2_after": now.round(6),
        "change_km2": (now - was).round(6),
        "err_km2": np.hypot(before.error, after.error).round(6),
        "change_share": np.divide(now - was, was, out=np.full(count, np.nan), where=was > 0).round(
            4
        ),
        "rate_km2_yr": ((now - was) / years if years else np.full(count, np.nan)).round(6),
    }
    code = moves.codes[inside]
    for number, name in enumerate(moves.names, start=1):
        km2 = np.bincount(of, weights=areas * (code == number), minlength=count)
        records[f"{name}_km2"] = km2.round(6)
    for i, name in enumerate(ice):
        records[f"{name}_before_km2"] = before.km2[:, i].round(6)
        records[f"{name}_after_km2"] = after.km2[:, i].round(6)
        error = np.hypot(before.class_error[:, i], after.class_error[:, i])
        records[f"{name}_err_km2"] = error.round(6)
    records["seen_share"] = (seen / whole).round(4)
    return multipolygons(gpd.GeoDataFrame(records, geometry=shapes.geometry.values, crs=shapes.crs))


def _move_table(moves: Moves, table: Any, grid: Grid) -> Any:
    coverage = trace(moves.faces)
    labels = coverage.labels.astype(np.int64) - 1
    of, kind = labels // len(moves.names), labels % len(moves.names)
    what = np.array(moves.names, dtype=object)[kind]
    km2 = table[[f"{name}_km2" for name in moves.names]].to_numpy()[of, kind]
    records = {"glac_id": table["glac_id"].to_numpy(object)[of], "what": what, "km2": km2}
    return multipolygons(as_frame(records, coverage.polygons, grid))


def _sums(
    first: Side,
    second: Side,
    counted: list[_Counted],
    both: npt.NDArray[np.bool_],
    smoothed: list[npt.NDArray[np.uint8]],
    ice: list[str],
    years: float | None,
    table: Any,
) -> dict[str, Any]:
    before, after = counted

    def entry(was: float, now: float, errors: tuple[float, float]) -> dict[str, float]:
        err = float(np.hypot(*errors))
        values = {"before": was, "after": now, "change": now - was, "err": err}
        return {key: round(float(value), 6) for key, value in values.items()}

    either = (smoothed[0] != UNSEEN) | (smoothed[1] != UNSEEN)
    return {
        "before": first.name,
        "after": second.name,
        "date_before": first.day.isoformat() if first.day else None,
        "date_after": second.day.isoformat() if second.day else None,
        "years": round(years, 4) if years else None,
        "glaciers": len(table),
        "seen_share": round(float(both.sum() / either.sum()), 6),
        "km2": {
            name: entry(
                before.km2[:, i].sum(),
                after.km2[:, i].sum(),
                (before.class_error[:, i].sum(), after.class_error[:, i].sum()),
            )
            for i, name in enumerate(ice)
        },
        "total": entry(before.km2.sum(), after.km2.sum(), (before.error.sum(), after.error.sum())),
        "moves_km2": {
            key.removesuffix("_km2"): round(float(table[key].sum()), 6)
            for key in (f"{name}_km2" for name in _move_names(ice))
        },
        "methods": _METHODS,
    }


def _hypsometry(
    reference: SceneMap,
    smoothed: list[npt.NDArray[np.uint8]],
    both: npt.NDArray[np.bool_],
    glaciers: Glaciers,
    ice: list[str],
) -> Any:
    """Areas by height, class and date; None where the map has no terrain."""
    inside = both & (glaciers.numbers > 0)
    height = reference.elevation(reference.grid.window)[inside]
    areas = pixel_areas_at(reference.grid, inside)
    known = np.isfinite(height)
    if not known.any():
        return None
    step = np.floor(height[known] / BIN_M).astype(np.int64)
    lowest, count = int(step.min()), int(step.max() - step.min()) + 1
    rows = []
    for number, name in enumerate(ice, start=1):
        km2 = [
            np.bincount(
                step - lowest,
                weights=areas[known] * (classes[inside][known] == number),
                minlength=count,
            )
            for classes in smoothed
        ]
        rows += [
            {
                "elevation_m": (lowest + k) * BIN_M,
                "class": name,
                "before_km2": km2[0][k],
                "after_km2": km2[1][k],
            }
            for k in range(count)
        ]
    return pd.DataFrame(rows)
