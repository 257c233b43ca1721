"""Blocks whose split is written down: ground that stays in its split when scenes are added.

A block is recorded with its ground, not by its name alone. Names come from the centre of a patch
of slices, which a new scene beside it moves; ground stays where it is. One feature a line and in
the order of names, so that git shows and merges what changed; QGIS opens the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from pyproj import Geod
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from glacier_core.config import Project
from glacier_core.dataset.loading import Dataset, Sample
from glacier_core.errors import InputError
from glacier_core.files import whole_file
from glacier_core.settings import SPLITS

RECORD = "conf/blocks.geojson"
"""What the user commits: `glacier postprocess` keeps to it and never writes it."""

TABLE = "blocks.geojson"
"""In the dataset's folder: the record together with the blocks that are new."""

# 1 cm of ground. Footprints have a vertex at each sixteenth of an edge, which their union does
# not need: what departs less than 10 cm from a straight line goes.
_DEGREE_DIGITS, _STRAIGHT = 7, 1e-6
# Rounding and straightening take less than this of a slice of 32 x 32 pixels of 30 m.
_WHOLLY = 0.99
# A slice belongs to the ground that most of it shows: scenes of other dates never quite coincide.
_MOSTLY = 0.5

_ELLIPSOID = Geod(ellps="WGS84")


@dataclass(frozen=True)
class Block:
    """A block of ground and its split.

    Attributes:
        split: `train`, `dev` or `test`.
        ground: what its slices showed, polygons in EPSG:4326.
    """

    split: str
    ground: BaseGeometry


Blocks = Mapping[str, Block]
"""Blocks by name."""


@dataclass(frozen=True)
class Place:
    """Where a slice lies among recorded blocks.

    Attributes:
        block: the one whose split's ground it mostly shows; None for new ground.
        settled: whether it lies wholly on that ground, as every slice does that was there when
            the block was recorded.
    """

    block: str | None
    settled: bool


def read_blocks(path: Path) -> dict[str, Block]:
    """Read blocks; none where there is no such file.

    Raises:
        InputError: the file is not what `glacier blocks --record` writes.
    """
    if not path.exists():
        return {}
    blocks: dict[str, Block] = {}
    try:
        for feature in json.loads(path.read_text(encoding="utf-8"))["features"]:
            name, split = feature["properties"]["block"], feature["properties"]["split"]
            ground = shape(feature["geometry"])
            if name in blocks or split not in SPLITS or not ground.is_valid or ground.area == 0:
                raise ValueError(f"block {name!r}: twice, of split {split!r}, or a broken polygon")
            blocks[name] = Block(split, ground)
    except (ValueError, KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise InputError(
            f"{path}: expected polygons with `block` and `split` ({', '.join(SPLITS)}), as "
            f"`glacier blocks --record` writes them; found {error}. After a merge by git, look for "
            "its conflict marks."
        ) from error
    return blocks


def write_blocks(path: Path, blocks: Blocks) -> None:
    """Write blocks as GeoJSON. The same blocks give the same bytes."""
    lines = [
        json.dumps(
            {
                "type": "Feature",
                "properties": {"block": name, "split": block.split},
                "geometry": _rounded(mapping(block.ground)),
            }
        )
        for name, block in sorted(blocks.items())
    ]
    with whole_file(path) as beside:
        beside.write_text(
            '{"type": "FeatureCollection", "name": "blocks", "features": [\n'
            + ",\n".join(lines)
            + ("\n]}\n" if lines else "]}\n")
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return round(value, _DEGREE_DIGITS) if isinstance(value, float) else value


def joined(shapes: Sequence[BaseGeometry]) -> BaseGeometry:
    """Ground of several polygons in EPSG:4326, to the centimetre, with no vertex too many."""
    ground = shapely.simplify(shapely.union_all(np.asarray(shapes, dtype=object)), _STRAIGHT)
    result: BaseGeometry = shapely.set_precision(ground, 10**-_DEGREE_DIGITS)
    return result


def places(footprints: Sequence[BaseGeometry], blocks: Blocks) -> list[Place]:
    """Where each slice lies among recorded blocks.

    Depends on the slice and the record alone, so that no other slice can change it.

    Args:
        footprints: polygons in EPSG:4326.
        blocks: the recorded ones.
    """
    names = sorted(blocks)
    tree = shapely.STRtree([blocks[name].ground for name in names])
    found = []
    for footprint in footprints:
        parts: dict[str, list[tuple[float, str, BaseGeometry]]] = {}
        for j in sorted(tree.query(footprint, predicate="intersects")):
            name = names[j]
            part = footprint.intersection(blocks[name].ground)
            if part.area > 0:
                parts.setdefault(blocks[name].split, []).append((-part.area, name, part))
        shares = {
            split: shapely.union_all([part for *_, part in held]).area / footprint.area
            for split, held in parts.items()
        }
        most = max(shares, key=lambda split: shares[split], default=None)
        if most is None or shares[most] < _MOSTLY:
            found.append(Place(None, settled=False))
        else:
            _, name, _ = min(parts[most], key=lambda entry: entry[:2])
            found.append(Place(name, settled=shares[most] >= _WHOLLY))
    return found


def extended(
    recorded: Blocks,
    footprints: Sequence[BaseGeometry],
    splits: Sequence[str | None],
    names: Sequence[str],
    settled: Sequence[bool],
) -> dict[str, Block]:
    """The record with the ground of new slices that have a split.

    Slices that were dropped add nothing: ground of two splits stays apart. Nothing recorded is
    taken back, also where its scenes are gone.

    Args:
        recorded: what there is.
        footprints, splits, names, settled: of each slice, its polygon in EPSG:4326, its split
            (None: dropped), its block's name, and whether its ground is on record already.
    """
    fresh: dict[str, list[BaseGeometry]] = {}
    chosen = {name: block.split for name, block in recorded.items()}
    for footprint, split, name, known in zip(footprints, splits, names, settled, strict=True):
        if split is not None and not known:
            fresh.setdefault(name, []).append(footprint)
            chosen.setdefault(name, split)
    result = dict(recorded)
    for name, shapes in fresh.items():
        before = [recorded[name].ground] if name in recorded else []
        result[name] = Block(chosen[name], joined([*before, *shapes]))
    return result


def present_blocks(project: Project) -> tuple[dict[str, Block], dict[str, Block]]:
    """The blocks of the dataset as it is, with those on record, and the latter by themselves.

    Raises:
        InputError: the split is not by blocks, there is no dataset, or it does not keep to the record.
    """
    if project.postprocess.split != "blocks":
        raise InputError(
            f"conf/postprocess.yaml: split: {project.postprocess.split}: there are no blocks to "
            "record; with scenes, years and regions, conf/ says what judges already"
        )
    table = project.dataset_folder / TABLE
    if not table.exists():
        raise InputError(f"{table}: no such file; run `glacier postprocess` first")
    blocks, recorded = read_blocks(table), read_blocks(project.root / RECORD)
    for name, held in recorded.items():
        if name not in blocks or blocks[name].split != held.split:
            raise InputError(
                f"{table}: does not keep to {RECORD} (block {name}); run `glacier postprocess`"
            )
    return blocks, recorded


def footprints_of(dataset: Dataset) -> dict[tuple[str, int], BaseGeometry]:
    """Polygon in EPSG:4326 of each slice, by scene and number.

    Raises:
        InputError: the dataset's `slices.geojson` is missing, or is of other slices.
    """
    path = dataset.folder / "slices.geojson"
    try:
        features = json.loads(path.read_text())["features"]
        found = {
            (feature["properties"]["scene"], feature["properties"]["k"]): shape(feature["geometry"])
            for feature in features
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run `glacier postprocess`") from error
    for samples in dataset.splits.values():
        for sample in samples:
            if (sample.scene, sample.k) not in found:
                raise InputError(
                    f"{path}: has no slice {sample.k} of {sample.scene}, which dataset.json has; "
                    "run `glacier postprocess` again"
                )
    return found


def pixel_m(sample: Sample, footprint: BaseGeometry) -> float:
    """Edge of a square on the ground as large as a slice's pixel, metres.

    Args:
        sample: the slice.
        footprint: its polygon in EPSG:4326; see `footprints_of`.
    """
    area, _ = _ELLIPSOID.geometry_area_perimeter(footprint)
    return float(np.sqrt(abs(area) / (sample.height * sample.width)))


def ground_by_block(dataset: Dataset, splits: Sequence[str]) -> dict[str, BaseGeometry]:
    """Ground of the blocks whose slices lie in some splits, by block name; EPSG:4326."""
    shapes = footprints_of(dataset)
    by_block: dict[str, list[BaseGeometry]] = {}
    for split in splits:
        for sample in dataset.splits[split]:
            by_block.setdefault(sample.block, []).append(shapes[sample.scene, sample.k])
    return {name: joined(held) for name, held in sorted(by_block.items())}
