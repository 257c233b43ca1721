"""Which slices train, which choose, which judge: splits that do not leak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Proj
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from glacier_core.dataset.blocks import Blocks, Place, extended, places
from glacier_core.errors import InputError
from glacier_core.settings import SPLITS

# Blocks lie on one fixed grid of the whole Earth, so that a new scene moves no block: the
# equal-area cylindrical EASE-Grid 2.0 (Brodzik et al. 2012).
_BLOCK_CRS = "EPSG:6933"

# Less of a slice is rounding of corners (1 cm). A row of pixels is more, up to 10,000 rows.
_TOUCHING = 1e-4

# Where two splits come too close, the earlier in this list keeps its slice.
_PRECEDENCE = ("test", "dev", "train")


@dataclass(frozen=True)
class Candidate:
    """A slice to be put into a split.

    Attributes:
        scene: its scene's id.
        year: its scene's year, None where unknown.
        weights: what a split should have its share of: valid pixels, and pixels of each class.
        predicted: whether a model labelled it. It can only train then.
    """

    scene: str
    year: int | None
    weights: Mapping[str, float]
    predicted: bool = False


@dataclass(frozen=True)
class Assignment:
    """Split of each candidate (None: dropped for lying too close to another split, or for having a
    model's labels on ground that judges).

    Attributes:
        splits: one entry a candidate.
        outside: of each candidate, whether it has no split for lying outside every region.
        blocks: block name of each candidate, as the report and the bootstrap group them.
        leaky: True where slices of two splits may show the same ground.
        overlapping_pairs: pairs of slices in different splits that overlap.
        settled: of each candidate, whether it lies wholly on ground whose split is recorded.
    """

    splits: list[str | None]
    outside: list[bool]
    blocks: list[str]
    leaky: bool
    overlapping_pairs: int
    settled: list[bool]


def balanced(
    groups: Sequence[str],
    candidates: Sequence[Candidate],
    shares: Mapping[str, float],
    seed: int,
    fixed: Mapping[str, str],
) -> dict[str, str]:
    """Assign whole groups so that each split in `shares`, or fold, gets its share of every weight.

    Groups in `fixed` have their split; of the others the heaviest first, each to the split that
    brings all shares nearest to their targets; the seed shuffles groups of similar weight.
    """
    splits = list(shares)
    names = sorted({name for c in candidates for name in c.weights})
    order = sorted(set(groups))
    content = np.zeros((len(order), len(names)))
    for group, candidate in zip(groups, candidates, strict=True):
        content[order.index(group)] += [candidate.weights.get(name, 0.0) for name in names]
    totals = content.sum(axis=0)
    content = content[:, totals > 0] / totals[totals > 0]
    target = np.array([shares[name] for name in splits])[:, None]
    filled = np.zeros((len(splits), content.shape[1]))
    jitter = np.random.default_rng(seed).uniform(0.7, 1.3, len(order))
    chosen = {name: fixed[name] for name in order if name in fixed}
    for name, split in chosen.items():
        filled[splits.index(split)] += content[order.index(name)]
    for i in np.argsort(-content.sum(axis=1) * jitter, kind="stable"):
        if order[i] in fixed:
            continue
        costs = []
        for s in range(len(splits)):
            trial = filled.copy()
            trial[s] += content[i]
            # A split that may not have anything must stay empty at any price.
            costs.append(np.inf if target[s] == 0 else float(((trial - target) ** 2).sum()))
        best = int(np.argmin(costs))
        filled[best] += content[i]
        chosen[order[i]] = splits[best]
    return chosen


def _blocks(
    footprints: gpd.GeoSeries,
    block_km: float,
    buffer_m: float,
    recorded: Blocks,
    held: Sequence[Place],
) -> list[str]:
    """Name of each slice's block: a recorded one, or a cell of the block grid.

    A patch of connected slices that fits into a block goes as a whole to the cell of its
    centre, or to the recorded block in it: cutting it would drop slices along the cut for
    nothing. Larger patches, and those with recorded blocks of several splits, are cut along the
    grid.
    """
    plane = footprints.to_crs(_BLOCK_CRS)
    edge = block_km * 1000
    centres = shapely.get_coordinates(plane.centroid.values)
    known = np.array([place.block for place in held], dtype=object)
    pairs = _close_pairs(footprints, buffer_m)
    count = len(footprints)
    links = coo_matrix((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(count, count))
    _, patch = connected_components(links, directed=False)
    bounds = plane.bounds.groupby(patch).agg(
        {"minx": "min", "miny": "min", "maxx": "max", "maxy": "max"}
    )
    whole: dict[int, str] = {}
    for number, (west, south, east, north) in zip(bounds.index, bounds.to_numpy(), strict=True):
        if max(east - west, north - south) > edge:
            continue
        inside = Counter(name for name in known[patch == number] if name is not None)
        if not inside:
            centres[patch == number] = (west + east) / 2, (south + north) / 2
        elif len({recorded[name].split for name in inside}) == 1:
            whole[number] = min(inside, key=lambda name: (-inside[name], name))
    cells = _cells(centres, block_km)
    return [
        str(name) if name is not None else whole.get(number, cell)
        for name, number, cell in zip(known, patch, cells, strict=True)
    ]


def _cells(centres: npt.NDArray[np.float64], block_km: float) -> list[str]:
    """Names of the cells of the block grid that hold these points (x, y) of its plane."""
    return [f"{row}_{col}" for col, row in np.floor(centres / (block_km * 1000)).astype(int)]


def _close_pairs(footprints: gpd.GeoSeries, distance_m: float) -> npt.NDArray[np.intp]:
    """Pairs (i, j) of footprints nearer than a distance on the ground; shape (2, pairs).

    Nearer than 0 m are those that show the same ground: neighbours may touch, as tiles do that were
    cut side by side.
    """
    lon, lat = footprints.union_all().centroid.coords[0]
    # Conformal: lengths are stretched alike in every direction, by a factor known at each place.
    plane = f"+proj=stere +lat_0={lat} +lon_0={lon} +datum=WGS84"
    shapes = np.asarray(footprints.to_crs(plane).values, dtype=object)
    places = shapely.get_coordinates(shapely.centroid(np.asarray(footprints.values, dtype=object)))
    stretched = Proj(plane).get_factors(*places.T).meridional_scale
    pairs: npt.NDArray[np.intp] = shapely.STRtree(shapes).query(
        shapes, predicate="dwithin", distance=distance_m * np.asarray(stretched)
    )
    pairs = pairs[:, pairs[0] < pairs[1]]
    if distance_m > 0:
        return pairs
    one, other = shapes[pairs[0]], shapes[pairs[1]]
    shared = shapely.area(shapely.intersection(one, other))
    return pairs[:, shared > _TOUCHING * np.minimum(shapely.area(one), shapely.area(other))]


def _overlaps(footprints: gpd.GeoSeries, splits: Sequence[str | None]) -> int:
    pairs = ((splits[i], splits[j]) for i, j in _close_pairs(footprints, 0.0).T)
    return sum(bool(one and other and one != other) for one, other in pairs)


def assign(
    footprints: gpd.GeoSeries,
    candidates: Sequence[Candidate],
    *,
    method: str,
    shares: Mapping[str, float],
    block_km: float,
    buffer_m: float,
    named: Mapping[str, str],
    regions: gpd.GeoDataFrame | None,
    seed: int,
    recorded: Blocks | None = None,
) -> Assignment:
    """Put slices into train, dev and test.

    Slices with a model's labels come last: they change nothing of where the others go, and train
    where no dev or test slice, recorded or not, is nearer than the buffer, whatever the method.

    Args:
        footprints: polygon of each slice, EPSG:4326.
        candidates: one a footprint.
        method: `blocks` (whole blocks of ground, each split its share of every class),
            `regions` (polygons with a column `split`), `scenes` or `years` (by `named`), or
            `random`, which leaks and says so.
        shares: target share of each split (blocks, random).
        block_km: edge of a block.
        buffer_m: no two slices of different splits lie nearer than this on the ground; the
            slice of the less protected split is dropped (train before dev before test).
            Applied by every method but `random`, as a scene's neighbour in space or time
            shows the same ground.
        named: scene id or year to split.
        regions: for `regions`, any CRS.
        seed: shuffles ties.
        recorded: for `blocks`, those whose split is fixed. A slice on their ground goes where
            they are; one that comes too near to recorded ground of another split is dropped
            before any on recorded ground is.

    Raises:
        InputError: a scene, year or region has no split, or a wanted split ends up empty.
    """
    recorded = recorded if recorded is not None and method == "blocks" else {}
    people = [i for i, candidate in enumerate(candidates) if not candidate.predicted]
    if not people:
        raise InputError(
            "no slice has labels of people: a model's labels alone leave nothing to choose and judge by"
        )
    if len(people) < len(candidates):
        own = assign(
            footprints.iloc[people], [candidates[i] for i in people], method=method, shares=shares,
            block_km=block_km, buffer_m=buffer_m, named=named, regions=regions, seed=seed,
            recorded=recorded,
        )  # fmt: skip
        return _with_predicted(
            own, people, footprints, candidates, method=method, block_km=block_km,
            buffer_m=buffer_m, named=named, regions=regions, recorded=recorded,
        )  # fmt: skip
    held = places(list(footprints.values), recorded)
    settled = [place.settled for place in held]
    blocks = _blocks(footprints, block_km, buffer_m, recorded, held)
    if method == "blocks":
        fixed = {name: block.split for name, block in recorded.items()}
        chosen = balanced(blocks, candidates, shares, seed, fixed)
        splits: list[str | None] = [chosen[block] for block in blocks]
        wanted = [name for name in SPLITS if shares[name] > 0]
    elif method == "random":
        order = np.random.default_rng(seed).permutation(len(candidates))
        edges = np.cumsum([shares[name] for name in SPLITS]) * len(candidates)
        splits = [None] * len(candidates)
        for rank, i in enumerate(order):
            splits[i] = SPLITS[min(int(np.searchsorted(edges, rank + 0.5)), len(SPLITS) - 1)]
        wanted = [name for name in SPLITS if shares[name] > 0]
    elif method == "regions":
        assert regions is not None
        splits = _by_region(footprints, regions)
        wanted = sorted(set(regions["split"]))
    else:
        keys = [c.scene if method == "scenes" else str(c.year) for c in candidates]
        unassigned = sorted(set(keys) - set(named))
        if unassigned:
            raise InputError(
                f"conf/postprocess.yaml: assign: no split for {method[:-1]} {', '.join(unassigned)}"
            )
        splits = [named[key] for key in keys]
        wanted = sorted(set(named.values()))

    outside = [split is None for split in splits]
    leaky = method == "random"
    if not leaky:
        _drop_near_record(footprints, splits, buffer_m, recorded, settled)
        _drop_close(footprints, splits, buffer_m, settled)
    for name in wanted:
        if name not in splits:
            raise InputError(
                f"the {name} split is empty: {len(candidates)} slices in {len(set(blocks))} blocks "
                f"of {block_km:g} km, split by {method}, "
                f"{splits.count(None) - sum(outside)} dropped for lying "
                f"within {buffer_m:g} m of another split. Use smaller slices or another postprocess."
                "block_km, or assign scenes yourself (split: scenes), all dates of a place to one."
            )
    overlaps = _overlaps(footprints, splits)
    return Assignment(splits, outside, blocks, leaky, overlaps, settled)


def _with_predicted(
    own: Assignment,
    people: Sequence[int],
    footprints: gpd.GeoSeries,
    candidates: Sequence[Candidate],
    *,
    method: str,
    block_km: float,
    buffer_m: float,
    named: Mapping[str, str],
    regions: gpd.GeoDataFrame | None,
    recorded: Blocks,
) -> Assignment:
    """The assignment of people's slices with those that a model labelled.

    What would judge if people had labelled it is dropped: in a block, a region, a scene or a year
    of dev or test, or nearer to such ground than the buffer.
    """
    others = [i for i, candidate in enumerate(candidates) if candidate.predicted]
    theirs = footprints.iloc[others]
    shown = list(footprints.iloc[people].values)
    settled, outside = [False] * len(others), [False] * len(others)
    cells = _cells(shapely.get_coordinates(theirs.to_crs(_BLOCK_CRS).centroid.values), block_km)
    splits: list[str | None] = ["train"] * len(others)
    if method == "blocks":
        held = extended(recorded, shown, own.splits, own.blocks, own.settled)
        found = places(list(theirs.values), held)
        settled = [place.settled for place in found]
        cells = [place.block or cell for place, cell in zip(found, cells, strict=True)]
        splits = [held[name].split if name in held else "train" for name in cells]
    elif method == "regions":
        assert regions is not None
        splits = _by_region(theirs, regions)
        outside = [split is None for split in splits]
    elif method in ("scenes", "years"):
        keys = [c.scene if method == "scenes" else str(c.year) for c in candidates]
        splits = [named.get(keys[i], "train") for i in others]
    splits = [split if split == "train" else None for split in splits]

    judging = [shape for shape, split in zip(shown, own.splits, strict=True) if _judges(split)]
    judging += [block.ground for block in recorded.values() if _judges(block.split)]
    both = gpd.GeoSeries([*theirs.values, *judging], crs=footprints.crs)
    for i, j in _close_pairs(both, buffer_m).T:
        if i < len(others) <= j:
            splits[i] = None

    def merged(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
        by_place = dict(zip([*people, *others], [*one, *other], strict=True))
        return [by_place[i] for i in range(len(candidates))]

    return Assignment(
        splits=merged(own.splits, splits),
        outside=merged(own.outside, outside),
        blocks=merged(own.blocks, cells),
        leaky=own.leaky,
        overlapping_pairs=own.overlapping_pairs,
        settled=merged(own.settled, settled),
    )


def _judges(split: str | None) -> bool:
    return split in ("dev", "test")


def _drop_near_record(
    footprints: gpd.GeoSeries,
    splits: list[str | None],
    buffer_m: float,
    recorded: Blocks,
    settled: Sequence[bool],
) -> None:
    """Drop new slices near recorded ground of another split, also where its scenes are gone."""
    if not recorded:
        return
    count, held = len(footprints), list(recorded.values())
    grounds = gpd.GeoSeries([block.ground for block in held], crs=footprints.crs)
    both = gpd.GeoSeries([*footprints.values, *grounds.values], crs=footprints.crs)
    for i, j in _close_pairs(both, buffer_m).T:
        if i < count <= j and not settled[i] and splits[i] not in (None, held[j - count].split):
            splits[i] = None


def _drop_close(
    footprints: gpd.GeoSeries,
    splits: list[str | None],
    buffer_m: float,
    settled: Sequence[bool],
) -> None:
    for i, j in _close_pairs(footprints, buffer_m).T:
        first, second = splits[i], splits[j]
        if first is None or second is None or first == second:
            continue
        if settled[i] != settled[j]:
            loser = j if settled[i] else i
        else:
            loser = i if _PRECEDENCE.index(first) > _PRECEDENCE.index(second) else j
        splits[loser] = None


def _by_region(footprints: gpd.GeoSeries, regions: gpd.GeoDataFrame) -> list[str | None]:
    """Split of the region that holds a slice's centre; None outside every region."""
    if "split" not in regions.columns or not set(regions["split"]) <= set(SPLITS):
        raise InputError(
            "regions_path: each polygon needs a column 'split' with train, dev or test"
        )
    shapes = regions.to_crs("EPSG:4326")
    splits: list[str | None] = []
    for centre in shapely.centroid(np.asarray(footprints.values, dtype=object)):
        inside = shapes["split"][shapes.contains(centre)]
        splits.append(str(inside.iloc[0]) if len(inside) else None)
    return splits
