"""Which ground tests in which turn, and which chooses: the folds of a cross-validation.

Every piece of ground tests once. What trains, chooses and tests within a fold is then said in the
words that `glacier postprocess` knows: scenes by name, recorded blocks, or regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry

from glacier_core.config import Project
from glacier_core.dataset.blocks import joined
from glacier_core.dataset.groups import check_groups
from glacier_core.dataset.postprocessing import candidate_of, usable_slice
from glacier_core.dataset.predicted import predicted_scenes
from glacier_core.dataset.slicing import SlicedScene
from glacier_core.dataset.splitting import Candidate, assign, balanced
from glacier_core.errors import InputError
from glacier_core.labels.inventory import read_vector
from glacier_core.settings import PROTOCOLS, check_names

BLOCK_FOLDS = 5
"""Of blocks, where nobody says how many: as studies that leave ground out mostly do."""

# Scenes that show so much of each other's ground are dates of one place.
_SAME_GROUND = 0.5


@dataclass(frozen=True)
class Fold:
    """One turn.

    Attributes:
        name: of the ground that tests, or `fold1` and so on where several are taken together.
        parts: of each unit of ground, the part of the training ground that it belongs to, from 0,
            which has most nearly its share of each class; None of what tests. Empty for a random
            split, which knows none.
    """

    name: str
    parts: dict[str, int | None] = field(default_factory=dict)

    def splits(self, turn: int = 0) -> dict[str, str]:
        """Split of each unit where the part of this number chooses; past the last, from the first."""
        count = max((part for part in self.parts.values() if part is not None), default=0) + 1
        chooses = turn % count
        return {
            unit: "test" if part is None else "dev" if part == chooses else "train"
            for unit, part in self.parts.items()
        }


@dataclass(frozen=True)
class Plan:
    """All turns.

    Attributes:
        by: one of `PROTOCOLS`.
        folds: the turns.
        ground: of each unit that is no scene, its polygon in EPSG:4326.
        pieces: by scene and number of each slice that can test, the piece of ground that the
            bootstrap draws it with. A block; or a place within one, as a tile is, at all its dates.
        scenes: that take part. None that a model labelled: it may have learned from what tests.
    """

    by: str
    folds: list[Fold]
    ground: dict[str, BaseGeometry]
    pieces: dict[tuple[str, int], str]
    scenes: list[str]

    @property
    def leaky(self) -> bool:
        return self.by == "random"

    def fold(self, name: str) -> Fold:
        for one in self.folds:
            if one.name == name:
                return one
        names = ", ".join(one.name for one in self.folds)
        raise InputError(f"--only {name}: there is no such fold; there are {names}")


def plan_folds(
    project: Project,
    by: str,
    folds: int | None = None,
    groups: Mapping[str, list[str]] | None = None,
    testing: Sequence[str] = (),
) -> Plan:
    """Make the folds of the slices that lie in `data/slices`.

    In each fold, the units that do not test are dealt into parts of like content, of which one
    chooses (dev): as many as the share of dev against train goes into the whole
    (`postprocess.split` in params.yaml), two at least, each with ice.

    Args:
        project: whose slices.
        by: `scenes` (each tests once, or dealt into `folds`; dates of one place together), `blocks` (of `postprocess.block_km`,
            dealt into `folds`), `regions` (of `regions_path`, by their column `region`), `groups`
            of scenes, or `random`: slices drawn as `split: random` does, which leaks.
        folds: number of folds.
        groups: scenes by name of the group.
        testing: names of the folds that are made, such as groups; the others only train. All if
            empty.

    Raises:
        InputError: nothing is sliced, too little ground for so many folds, none of it with ice to
            choose by, or groups and regions that do not fit the project.
    """
    if by not in PROTOCOLS:
        raise InputError(f"--by {by}: expected one of {', '.join(PROTOCOLS)}")
    if (by == "groups") != bool(groups):
        raise InputError("--by groups needs --groups NAME=SCENE,SCENE or a file, and only it does")
    if folds is not None and (by in ("groups", "random") or folds < 2):
        raise InputError(f"--folds {folds}: give 2 or more, with --by blocks, regions or scenes")
    conf, params = project.postprocess, project.params.postprocess
    predicted = predicted_scenes(project)
    names = [name for name in project.masking.scenes if name not in predicted]
    if groups:
        check_groups(groups, project.masking.scenes, names)
        names = [name for name in names if any(name in held for held in groups.values())]
    sliced = [SlicedScene.read(project.slice_folder(name) / "slices.geojson") for name in names]
    pairs = [
        (record, shape)
        for scene in sliced
        for record, shape in zip(scene.slices, scene.footprints, strict=True)
        if usable_slice(record, params)
    ]
    if not pairs:
        raise InputError(
            "no slice has enough valid pixels to train and test with (postprocess.min_valid_fraction)"
        )
    shown = {record.scene for record, _ in pairs}
    if empty := [name for name, held in (groups or {}).items() if shown.isdisjoint(held)]:
        raise InputError(f"--groups: {', '.join(empty)}: no slice has enough valid pixels to test")
    candidates = [candidate_of(record, None, conf.classes, {}) for record, _ in pairs]
    shapes = gpd.GeoSeries([shape for _, shape in pairs], crs="EPSG:4326")
    blocks = assign(
        shapes, candidates, method="blocks", shares={"train": 1, "dev": 0, "test": 0},
        block_km=params.block_km, buffer_m=params.buffer_m, named={}, regions=None,
        seed=project.params.seed,
    ).blocks  # fmt: skip
    scenes, outlines = [record.scene for record, _ in pairs], list(shapes.values)
    places = _places(scenes, outlines)
    pieces = blocks if by == "blocks" else _pieces(scenes, blocks, places)
    ground: dict[str, BaseGeometry] = {}
    fold_of: dict[str, str] | None = None
    units: list[str | None] = [places[scene] for scene in scenes]
    if by == "blocks":
        units, folds = list(blocks), folds or BLOCK_FOLDS
        ground = _joined(blocks, outlines)
    elif by == "regions":
        ground, fold_of = _regions(project)
        units = _inside(outlines, ground)
    elif groups:
        group_of = {scene: name for name, held in groups.items() for scene in held}
        units = [f"{group_of[scene]} {places[scene]}" for scene in scenes]
        fold_of = {str(unit): group_of[scene] for unit, scene in zip(units, scenes, strict=True)}
    if by == "random":
        if testing:
            raise InputError("--test goes with folds that have names, not with --by random")
        turns = [Fold("random")]
    else:
        inside = [i for i, unit in enumerate(units) if unit is not None]
        known = [str(units[i]) for i in inside]
        turns = _turns(project, known, [candidates[i] for i in inside], fold_of, folds, by, testing)
    if by in ("scenes", "groups"):
        unit_of = dict(zip(scenes, map(str, units), strict=True))
        turns = [
            Fold(turn.name, {scene: turn.parts[unit] for scene, unit in unit_of.items()})
            for turn in turns
        ]
    keys = [(record.scene, record.k) for record, _ in pairs]
    return Plan(by, turns, ground, dict(zip(keys, pieces, strict=True)), names)


def _regions(project: Project) -> tuple[dict[str, BaseGeometry], dict[str, str]]:
    """Polygons of `regions_path` in EPSG:4326 by unit, and the region of each.

    Regions are named by the column `region`; without it each polygon is one.
    """
    place = project.postprocess.regions_path
    if place is None:
        raise InputError(
            "conf/postprocess.yaml: --by regions needs regions_path, a vector file of polygons with "
            "a column region"
        )
    frame = read_vector(project.root / place).to_crs("EPSG:4326")
    if "region" in frame:
        names = [str(name) for name in frame["region"]]
    else:
        names = [f"region{i + 1}" for i in range(len(frame))]
    units = [f"{name}.{i + 1}" for i, name in enumerate(names)]
    shapes = dict(zip(units, frame.geometry, strict=True))
    return shapes, dict(zip(units, names, strict=True))


def as_regions(ground: Mapping[str, BaseGeometry], splits: Mapping[str, str]) -> dict[str, Any]:
    """Ground with its splits, as GeoJSON that `split: regions` reads."""
    features = [
        {
            "type": "Feature",
            "properties": {"region": name, "split": splits[name]},
            "geometry": mapping(shape),
        }
        for name, shape in ground.items()
        if name in splits  # of others, no slice is there
    ]
    return {"type": "FeatureCollection", "name": "regions", "features": features}


def _inside(shapes: Sequence[BaseGeometry], ground: Mapping[str, BaseGeometry]) -> list[str | None]:
    """The first unit that holds a shape's centre, as `split: regions` has it; None outside all."""
    return [
        next((unit for unit, held in ground.items() if held.contains(shape.centroid)), None)
        for shape in shapes
    ]


def _turns(
    project: Project,
    units: Sequence[str],
    candidates: Sequence[Candidate],
    fold_of: Mapping[str, str] | None,
    folds: int | None,
    by: str,
    testing: Sequence[str],
) -> list[Fold]:
    """The folds of units of ground, one unit and candidate a slice."""
    there = list(dict.fromkeys(units))
    if not there:
        raise InputError("--by regions: no slice lies in any region of regions_path")
    fold_of = {unit: (fold_of or {}).get(unit, unit) for unit in there}
    if folds is not None:
        keys = [fold_of[unit] for unit in units]
        if folds > len(set(keys)):
            raise InputError(
                f"--folds {folds}: there are only {len(set(keys))} {by}. Give fewer folds"
                + (", or a smaller postprocess.block_km" if by == "blocks" else "")
            )
        shares = {f"fold{k + 1}": 1 / folds for k in range(folds)}
        dealt = balanced(keys, candidates, shares, project.params.seed, {})
        fold_of = {unit: dealt[key] for unit, key in fold_of.items()}
    names = sorted(set(fold_of.values()), key=_natural)
    if len(names) < 2:
        raise InputError(f"--by {by}: there is only {names[0]}, and nothing else to train on")
    try:
        check_names("fold", names)
    except ValueError as error:
        raise InputError(f"--by {by}: {error}") from None
    if unknown := set(testing) - set(names):
        raise InputError(
            f"--test {', '.join(sorted(unknown))}: there is no such fold; there are {', '.join(names)}"
        )
    turns = []
    for name in names:
        if testing and name not in testing:
            continue
        rest = [i for i, unit in enumerate(units) if fold_of[unit] != name]
        parts = _parts(project, [units[i] for i in rest], [candidates[i] for i in rest], name)
        turns.append(Fold(name, {unit: parts.get(unit) for unit in there}))
    return turns


def _natural(name: str) -> tuple[int, str]:
    return len(name) if name.startswith("fold") else 0, name


def _parts(
    project: Project, units: Sequence[str], candidates: Sequence[Candidate], fold: str
) -> dict[str, int]:
    """The parts of the training ground, of which one chooses, by unit.

    Each with its share of the valid pixels and of each class, as near as units go, so that what
    chooses knows all that is judged; and each with some ice.

    Args:
        project: its split, and the seed that shuffles units of like weight.
        units: that do not test, one a slice.
        candidates: one a slice.
        fold: for the error.
    """
    icy = {
        unit
        for unit, candidate in zip(units, candidates, strict=True)
        if any(weight > 0 for name, weight in candidate.weights.items() if name != "valid")
    }
    if len(icy) < 2:
        raise InputError(
            f"fold {fold}: of the ground that does not test, {len(icy)} of {len(set(units))} units "
            "have ice; one is needed to train and another to choose by. Take smaller units "
            "(--by blocks with a smaller postprocess.block_km, more scenes or regions), or other "
            "groups"
        )
    split, seed = project.params.postprocess.split, project.params.seed
    wanted = round((split.dev + split.train) / split.dev) if split.dev else len(icy)
    names = [str(part) for part in range(min(max(wanted, 2), len(icy)))]
    shares = dict.fromkeys(names, 1 / len(names))
    # What has ice first: an empty part takes the next unit before any other does.
    first = [i for i, unit in enumerate(units) if unit in icy]
    dealt = balanced([units[i] for i in first], [candidates[i] for i in first], shares, seed, {})
    return _by_likeness(units, candidates, balanced(units, candidates, shares, seed, dealt))


def _by_likeness(
    units: Sequence[str], candidates: Sequence[Candidate], part: Mapping[str, str]
) -> dict[str, int]:
    """Parts numbered from 0, the one with most nearly its share of every weight first."""
    names = sorted(set(part.values()))
    weights = sorted({name for candidate in candidates for name in candidate.weights})
    held = np.zeros((len(names), len(weights)))
    for unit, candidate in zip(units, candidates, strict=True):
        held[names.index(part[unit])] += [candidate.weights.get(name, 0.0) for name in weights]
    held = held[:, held.sum(axis=0) > 0]
    away = ((held / held.sum(axis=0) - 1 / len(names)) ** 2).sum(axis=1)
    rank = {names[k]: number for number, k in enumerate(np.argsort(away, kind="stable"))}
    return {unit: rank[name] for unit, name in part.items()}


def _joined(names: Sequence[str], shapes: Sequence[BaseGeometry]) -> dict[str, BaseGeometry]:
    """Ground of all shapes of each name."""
    held: dict[str, list[BaseGeometry]] = {}
    for name, shape in zip(names, shapes, strict=True):
        held.setdefault(name, []).append(shape)
    return {name: joined(held[name]) for name in sorted(held)}


def _places(scenes: Sequence[str], shapes: Sequence[BaseGeometry]) -> dict[str, str]:
    """Of each scene, the first of those that show its ground, at this date or another."""
    ground = _joined(scenes, shapes)
    names = list(ground)
    place = {name: name for name in names}
    tree = shapely.STRtree([ground[name] for name in names])
    for name, held in ground.items():
        for j in tree.query(held, predicate="intersects"):
            other = ground[names[j]]
            shared = held.intersection(other).area / min(held.area, other.area)
            if shared >= _SAME_GROUND:
                both = {place[name], place[names[j]]}
                place |= {one: min(both) for one, known in place.items() if known in both}
    return place


def _pieces(scenes: Sequence[str], blocks: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """What the bootstrap draws: a place that lies in one block, as a tile does; else the block."""
    inside: dict[str, set[str]] = {}
    for scene, block in zip(scenes, blocks, strict=True):
        inside.setdefault(places[scene], set()).add(block)
    return [
        places[scene] if len(inside[places[scene]]) == 1 else block
        for scene, block in zip(scenes, blocks, strict=True)
    ]
