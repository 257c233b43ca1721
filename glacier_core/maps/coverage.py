"""Polygons of labelled pixels: borders smoothed, each drawn once for both its sides.

Pixel borders are cut into arcs at *nodes*, the corners where they branch. An arc becomes the line
from node to node through the midpoints of its pixel edges: other corners are cut off, staircases
are straight, and no line moves farther than √2/4 = 0.354 pixels (Hausdorff distance, both ways).
Polygons are put together from arcs, so neighbours share their border to the last bit.

Nothing needs repair: a line keeps to the squares |dx| + |dy| <= 1/2 around its own corners, which
touch those around others in midpoints only. And Douglas-Peucker would find nothing to simplify
within half a pixel: 0.146 pixels are left, and to leave out a bend takes at least 0.158.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from glacier_core.threads import in_threads

OUTSIDE_RASTER = int(np.iinfo(np.int32).min)
"""The label of what lies beyond the raster's edge: below all others."""

_STRIP_ROWS = 512
_Ints = NDArray[np.int64]


class Labels(Protocol):
    """An int32 raster (height, width), or what gives rows of one when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.int32]: ...


@dataclass(frozen=True)
class Coverage:
    """Faces as polygons, and the borders between them.

    Coordinates are pixels from the raster's upper left corner, x = column and y = row.

    Attributes:
        labels: (faces,) int32, the labels > 0 that occur, ascending.
        polygons: (faces,) Polygon or MultiPolygon of each label; shells counter-clockwise in
            (x, y), which is clockwise on a screen.
        borders: (borders,) LineStrings, every border of a label > 0 once, from node to node or
            closed. The larger of its labels lies to its left in (x, y).
        sides: (borders, 2) int32, the labels beside each border, the smaller first; where that is
            not above 0 there is no face.
    """

    labels: NDArray[np.int32]
    polygons: NDArray[np.object_]
    borders: NDArray[np.object_]
    sides: NDArray[np.int32]


@dataclass(frozen=True)
class _Edges:
    """Pixel edges along labels > 0, the larger label to the left in (x, y), sorted by tail.

    Attributes:
        tail, head: (edges,) the vertices where each begins and ends. Vertex v of a padded raster
            is the lower right corner of its pixel v, pixels counted row by row.
        heading: (edges,) quarter turns from +x towards +y.
        sides: (edges, 2) int32, the labels beside it, the smaller first.
        following: (edges,) the next edge of the same arc, -1 before a node.
    """

    tail: _Ints
    head: _Ints
    heading: _Ints
    sides: NDArray[np.int32]
    following: _Ints


def trace(faces: Labels) -> Coverage:
    """Draw the borders of all faces, within half a pixel of the pixels' own.

    A face is all pixels of one label > 0; those that touch only at a corner are not connected.
    Labels <= 0 are no faces, but borders tell them apart.

    Args:
        faces: (height, width) int32.

    Returns:
        The coverage, the same bytes each time. Every polygon is valid, has as many parts and holes
        as its pixels, and holds the centres of just these. Borders lie within √2/4 pixels
        (Hausdorff distance) of the pixel edges between the same two labels.
    """
    width = faces.shape[1] + 2
    edges = _pixel_edges(faces)
    if not len(edges.tail):
        none = np.empty(0, dtype=object)
        return Coverage(np.empty(0, np.int32), none, none, np.empty((0, 2), np.int32))
    order, bounds = _chains(edges.following)
    borders = _midlines(edges, order, bounds, width)
    labels, polygons = _polygons(edges, order, bounds, borders)
    return Coverage(labels, polygons, borders, edges.sides[order[bounds[:-1]]])


def _pixel_edges(faces: Labels) -> _Edges:
    """The edges of a raster, which is padded all around."""
    rows = faces.shape[0] + 1
    strips = (range(row, min(row + _STRIP_ROWS, rows)) for row in range(0, rows, _STRIP_ROWS))
    found = in_threads(lambda strip: _edges_of(faces, strip), strips)
    tail, head, heading, sides, from_node, to_node = (
        np.concatenate(one) for one in zip(*found, strict=True)
    )
    by_tail = np.argsort(tail, kind="stable")
    tail, head = tail[by_tail], head[by_tail]
    # At every vertex but nodes, one edge ends and one begins: sorted by vertex, they pair off.
    ends = np.flatnonzero(~to_node[by_tail])
    following = np.full(len(tail), -1)
    following[ends[np.argsort(head[ends])]] = np.flatnonzero(~from_node[by_tail])
    return _Edges(tail, head, heading[by_tail], sides[by_tail], following)


def _edges_of(faces: Labels, rows: range) -> tuple[NDArray[Any], ...]:
    """The edges right of and below the pixels of some rows of a padded raster.

    Returns:
        Tail, head, heading and sides as in `_Edges`, and whether the tail is a node, and the head.
    """
    width = faces.shape[1] + 2
    # A row more on either side: vertices lie between four pixels.
    top = max(rows.start - 1, 0)
    flat = _padded(faces, range(top, rows.stop + 1)).ravel()
    is_face = flat > 0
    first, stop = (rows.start - top) * width, (rows.stop - top) * width
    found = []
    # Below a pixel runs an edge along +x, with the lower pixel to its left; right of a pixel one
    # along +y, with that pixel itself to its left. Rows meet in padding, where nothing differs.
    for across, along, turns in ((width, 1, 0), (1, width, 1)):
        here, there = slice(first, stop), slice(first + across, stop + across)
        differ = flat[here] != flat[there]
        pixel = np.flatnonzero(differ & (is_face[here] | is_face[there])) + first
        beside = np.stack((flat[pixel], flat[pixel + across]), axis=1)
        ahead = (beside[:, 0] < beside[:, 1]) == (turns == 0)
        tail, head = pixel - along * ahead, pixel - along * ~ahead
        heading = np.where(ahead, np.int8(turns), np.int8(turns + 2))
        nodes = (_is_node(flat, width, vertex) for vertex in (tail, head))
        above = top * width
        found.append((tail + above, head + above, heading, np.sort(beside, axis=1), *nodes))
    return tuple(np.concatenate(both) for both in zip(*found, strict=True))


def _padded(faces: Labels, rows: range) -> NDArray[np.int32]:
    """Rows of a raster with a pixel of `OUTSIDE_RASTER` all around it."""
    padded = np.full((len(rows), faces.shape[1] + 2), OUTSIDE_RASTER, dtype=np.int32)
    first, stop = max(rows.start - 1, 0), min(rows.stop - 1, faces.shape[0])
    padded[first + 1 - rows.start : stop + 1 - rows.start, 1:-1] = faces[first:stop]
    return padded


def _is_node(flat: NDArray[np.int32], width: int, vertex: _Ints) -> NDArray[np.bool_]:
    """Whether three or more labels meet at a vertex, or two as on a chessboard."""
    around = [flat[vertex + step] for step in (0, 1, width + 1, width)]
    changes = np.zeros(len(vertex), np.int8)
    for i in range(4):
        changes += around[i] != around[i - 1]
    return changes > 2


def _chains(following: _Ints) -> tuple[_Ints, _Ints]:
    """Walk along linked elements.

    Args:
        following: (n,) the element after each, -1 for none; each is after one at most; n > 0.

    Returns:
        The elements (n,), chain after chain, and the bounds of the chains therein (chains + 1,). A
        closed chain begins with its smallest element.
    """
    elements = np.arange(len(following))
    is_first = np.ones(len(following), dtype=bool)
    is_first[following[following >= 0]] = False
    count, chain = connected_components(_graph(following), directed=False)
    first = np.full(count, len(following))
    np.minimum.at(first, chain, elements)
    first[chain[is_first]] = elements[is_first]
    is_last = (following < 0) | (following == first[chain])
    last = np.empty(count, dtype=np.int64)
    last[chain[is_last]] = elements[is_last]
    # Tied end to start, all chains are a single path, which SciPy walks in one go.
    path = following.copy()
    path[last] = np.append(first[1:], -1)
    order = depth_first_order(_graph(path), first[0], return_predecessors=False)
    return order.astype(np.int64), np.append(0, np.cumsum(np.bincount(chain)))


def _graph(following: _Ints) -> csr_array:
    linked = following >= 0
    starts = np.append(0, np.cumsum(linked))
    return csr_array((np.ones(starts[-1]), following[linked], starts), shape=2 * linked.shape)


def _midlines(edges: _Edges, order: _Ints, bounds: _Ints, width: int) -> NDArray[np.object_]:
    """The arcs as lines through the midpoints of their edges, vertices only where they bend.

    Arcs without nodes are closed lines that begin behind their smallest vertex.
    """

    def corners(vertex: _Ints) -> NDArray[np.float32]:
        return np.stack((vertex % width, vertex // width), axis=1).astype(np.float32)

    middles = (corners(edges.tail[order]) + corners(edges.head[order])) / 2
    starts, stops = bounds[:-1], bounds[1:]
    last = order[stops - 1]
    is_open = edges.following[last] < 0
    closing = np.where(is_open[:, None], corners(edges.head[last]), middles[starts])
    opening = corners(edges.tail[order[starts[is_open]]])
    # Where one arc stops and the next starts, insertion keeps this order.
    where = np.concatenate((stops, starts[is_open]))
    points = np.insert(middles, where, np.concatenate((closing, opening)), axis=0)
    arc = np.repeat(np.arange(len(starts)), stops - starts + 1 + is_open)
    (dx, dy), is_end = np.diff(points, axis=0).T, arc[:-1] != arc[1:]
    bends = dx[:-1] * dy[1:] != dy[:-1] * dx[1:]  # exact, as all are halves, also of 32 bits
    kept = np.concatenate(([True], bends | is_end[:-1] | is_end[1:], [True]))
    return np.asarray(shapely.linestrings(points[kept], indices=arc[kept]))


def _polygons(
    edges: _Edges, order: _Ints, bounds: _Ints, borders: NDArray[np.object_]
) -> tuple[NDArray[np.int32], NDArray[np.object_]]:
    """Labels and polygons of the faces.

    An arc i has two half-edges: 2 i is the arc itself, with the larger label to its left, and
    2 i + 1 the arc reversed. Those of labels > 0 make up the rings.
    """
    first, last = order[bounds[:-1]], order[bounds[1:] - 1]
    label = edges.sides[first, ::-1].ravel()
    half = np.flatnonzero(label > 0)
    label = label[half]
    vertex = np.stack((edges.tail[first], edges.head[last]), axis=1)
    begin, end = vertex.ravel()[half], vertex[:, ::-1].ravel()[half]
    # The quadrants to its left where a half-edge begins, and where it ends.
    heading = np.stack((edges.heading[first], edges.heading[last] + 2), axis=1)
    leaves, arrives = heading.ravel()[half] % 4, (heading[:, ::-1].ravel()[half] + 3) % 4

    # A half-edge goes on with the one that begins where it ends, along the same label. There are
    # two where pixels of the label touch in a corner: then the one along the same pixel.
    arriving = np.lexsort((arrives, label, end))
    following = np.empty(len(half), dtype=np.int64)
    following[arriving] = np.lexsort((leaves, label, begin))
    part = _parts(edges, order, bounds, half, following)
    # If pixels that touch in a corner are of one part, its ring touches itself there, as no
    # polygon's may: it is cut in two.
    a, b = arriving[:-1], arriving[1:]
    cut = (end[a] == end[b]) & (label[a] == label[b]) & (part[a] == part[b])
    a, b = a[cut], b[cut]
    following[a], following[b] = following[b], following[a]

    walk, ring_bounds = _chains(following)
    rings = _rings(borders, half[walk], ring_bounds)
    one = walk[ring_bounds[:-1]]  # a half-edge of each ring
    shells_first = np.lexsort((~shapely.is_ccw(rings), part[one], label[one]))
    rings, one = rings[shells_first], one[shells_first]
    is_shell = np.append(True, part[one][1:] != part[one][:-1])
    parts = np.asarray(shapely.polygons(rings, indices=np.cumsum(is_shell) - 1))
    labels, face, counts = np.unique(label[one][is_shell], return_inverse=True, return_counts=True)
    polygons = np.asarray(shapely.multipolygons(parts, indices=face))
    polygons[counts == 1] = parts[counts[face] == 1]
    return labels, polygons


def _parts(
    edges: _Edges, order: _Ints, bounds: _Ints, half: _Ints, following: _Ints
) -> NDArray[np.int32]:
    """For each half-edge the number of the connected part it bounds, counted over all faces.

    Rings bound the same part where pixels of a row run from one to the other: left of its leftmost
    edge, every hole sees another ring, and so on up to the outer one.
    """
    arc = np.empty(len(order), dtype=np.int64)
    arc[order] = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    number = np.full(2 * len(bounds) - 2, -1)
    number[half] = np.arange(len(half))
    upright = np.flatnonzero(edges.heading % 2)
    upright = upright[np.argsort(np.maximum(edges.tail[upright], edges.head[upright]))]
    is_down = edges.heading[upright] == 1  # the larger label in the pixel before it
    before, after = number[2 * arc[upright] + ~is_down], number[2 * arc[upright] + is_down]
    # From an upright edge to the next in its row, all pixels are of one face or all of none.
    run = np.flatnonzero(after[:-1] >= 0)
    tied = np.concatenate((np.arange(len(half)), after[run]))
    to = np.concatenate((following, before[run + 1]))
    graph = coo_array((np.ones(len(tied)), (tied, to)), shape=2 * half.shape)
    part: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return part


def _rings(borders: NDArray[np.object_], half: _Ints, bounds: _Ints) -> NDArray[np.object_]:
    """LinearRings, from the half-edges of each in order, ring after ring."""
    coordinates, sizes = shapely.get_coordinates(borders), shapely.get_num_coordinates(borders)
    stops = np.cumsum(sizes)
    arc, is_reversed = half // 2, half % 2 == 1
    lengths = sizes[arc] - 1  # the last point is the next one's first
    start = np.where(is_reversed, stops[arc] - 1, stops[arc] - sizes[arc])
    step = np.where(is_reversed, -1, 1)
    done = np.append(0, np.cumsum(lengths))
    within = np.arange(done[-1]) - np.repeat(done[:-1], lengths)
    points = coordinates[np.repeat(start, lengths) + np.repeat(step, lengths) * within]
    ring = np.repeat(np.arange(len(bounds) - 1), np.diff(done[bounds]))
    return np.asarray(shapely.linearrings(points, indices=ring))
