"""Polygons keep close to their pixels, and exactly to their neighbours."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from shapely.geometry import MultiPolygon, Polygon

from glacier_core.maps import coverage
from glacier_core.maps.coverage import OUTSIDE_RASTER, Coverage, trace

Faces = NDArray[np.int32]

CUT_CORNER = np.sqrt(2) / 4 + 1e-9
"""From a pixel's corner to the line between the midpoints of its edges, less than half a pixel."""

noise = nps.arrays(
    np.int32,
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    elements=st.sampled_from([0, 1, 2, -1, 7]),
)
two_labels = nps.arrays(
    np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)
)


@st.composite
def blocks(draw: st.DrawFn) -> Faces:
    """Rectangles of several pixels, and single pixels in them."""
    coarse = draw(nps.arrays(np.int32, (4, 4), elements=st.sampled_from([0, 1, 2, -1])))
    faces = coarse.repeat(draw(st.integers(2, 4)), axis=0).repeat(draw(st.integers(2, 5)), axis=1)
    for _ in range(draw(st.integers(0, 6))):
        row, col = draw(st.integers(0, len(faces) - 1)), draw(st.integers(0, faces.shape[1] - 1))
        faces[row, col] = draw(st.integers(-1, 3))
    return faces


@st.composite
def hills(draw: st.DrawFn) -> Faces:
    """Natural borders: heights of a smooth random surface in classes."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    shape = draw(st.integers(1, 25)), draw(st.integers(1, 25))
    surface = gaussian_filter(random.standard_normal(shape), draw(st.floats(0.5, 3)))
    bounds = np.quantile(surface, sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=4))))
    return (np.digitize(surface, bounds) - draw(st.integers(0, 2))).astype(np.int32)


rasters = st.one_of(two_labels, noise, blocks(), hills())
many = settings(max_examples=200, deadline=None)


def faces_of(*rows: str) -> Faces:
    """A raster from its rows: `-` for -1, `.` for 0, and digits."""
    return np.array([["-.12345".index(pixel) - 1 for pixel in row] for row in rows], np.int32)


def united_pixels(faces: Faces, label: int) -> Polygon | MultiPolygon:
    rows, cols = np.nonzero(faces == label)
    return shapely.union_all(shapely.box(cols, rows, cols + 1, rows + 1))


def parts(polygon: Polygon | MultiPolygon) -> NDArray[np.object_]:
    return shapely.get_parts(polygon)


def rings(polygon: Polygon | MultiPolygon) -> NDArray[np.object_]:
    return shapely.get_rings(parts(polygon))


def are_close(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Whether no point of either is farther than a cut corner from the other.

    Points every twentieth of a pixel and all vertices are looked at.
    """
    shapely.prepare([a, b])
    ways = [(a, b), (b, a)]
    return all(
        shapely.dwithin(
            to, shapely.points(shapely.get_coordinates(shapely.segmentize(line, 0.05))), CUT_CORNER
        ).all()
        for line, to in ways
    )


def around(faces: Faces) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Each pixel corner (x, y) and the four labels there, in a circle."""
    padded = np.pad(faces, 1, constant_values=OUTSIDE_RASTER).tolist()
    for y in range(len(padded) - 1):
        for x in range(len(padded[0]) - 1):
            yield (x, y), [*padded[y][x : x + 2], *padded[y + 1][x : x + 2][::-1]]


def is_node(labels: list[int]) -> bool:
    a, b, c, d = labels
    return len(set(labels)) > 2 or (a == c and b == d and a != b)


def pixel_borders(faces: Faces) -> dict[tuple[int, int], shapely.Geometry]:
    """The pixel edges between each two labels of which one is a face."""
    padded = np.pad(faces, 1, constant_values=OUTSIDE_RASTER).tolist()
    edges = defaultdict(list)
    for y in range(len(padded) - 1):
        for x in range(len(padded[0]) - 1):
            here, right, below = padded[y][x], padded[y][x + 1], padded[y + 1][x]
            edges[min(here, right), max(here, right)].append([(x, y - 1), (x, y)])
            edges[min(here, below), max(here, below)].append([(x - 1, y), (x, y)])
    return {
        (a, b): shapely.multilinestrings(shapely.linestrings(lines))
        for (a, b), lines in edges.items()
        if a != b and b > 0
    }


def segments(lines: NDArray[np.object_]) -> Counter[tuple[tuple[float, ...], ...]]:
    """Each two successive vertices, whichever comes first, and how often they occur."""
    found: Counter[tuple[tuple[float, ...], ...]] = Counter()
    for line in lines:
        points = [tuple(point) for point in shapely.get_coordinates(line).tolist()]
        found.update(tuple(sorted(pair)) for pair in pairwise(points))
    return found


def the_only(coverage: Coverage) -> Polygon:
    [polygon] = coverage.polygons
    assert isinstance(polygon, Polygon)
    return polygon


@many
@given(rasters)
def test_polygons_are_valid_and_overlap_nowhere(faces: Faces) -> None:
    coverage = trace(faces)
    assert coverage.labels.tolist() == sorted({label for label in faces.flat if label > 0})
    assert shapely.is_valid(coverage.polygons).all()
    assert shapely.coverage_is_valid(coverage.polygons)
    for part in parts(coverage.polygons):
        assert part.exterior.is_ccw
        assert not any(hole.is_ccw for hole in part.interiors)


@many
@given(rasters)
def test_faces_keep_their_parts_and_holes(faces: Faces) -> None:
    coverage = trace(faces)
    for label, polygon in zip(coverage.labels, coverage.polygons, strict=True):
        pixels = united_pixels(faces, label)
        assert len(parts(polygon)) == len(parts(pixels))
        holes = [sorted(len(part.interiors) for part in parts(p)) for p in (polygon, pixels)]
        assert holes[0] == holes[1]
        assert isinstance(polygon, Polygon) == (len(parts(pixels)) == 1)


@many
@given(rasters)
def test_no_outline_moves_farther_than_a_cut_corner_which_is_less_than_half_a_pixel(
    faces: Faces,
) -> None:
    coverage = trace(faces)
    assert len(coverage.labels) == len(coverage.polygons)
    for label, polygon in zip(coverage.labels, coverage.polygons, strict=True):
        assert are_close(polygon.boundary, united_pixels(faces, label).boundary)


@many
@given(rasters)
def test_borders_run_where_pixels_of_their_two_sides_meet(faces: Faces) -> None:
    coverage = trace(faces)
    expected = pixel_borders(faces)
    assert {tuple(pair) for pair in coverage.sides.tolist()} == set(expected)
    for pair, edges in expected.items():
        lines = coverage.borders[(coverage.sides == pair).all(axis=1)]
        assert are_close(shapely.multilinestrings(lines), edges)


@many
@given(rasters)
def test_outlines_are_exactly_the_borders_of_a_label(faces: Faces) -> None:
    coverage = trace(faces)
    for label, polygon in zip(coverage.labels, coverage.polygons, strict=True):
        borders = coverage.borders[(coverage.sides == label).any(axis=1)]
        assert segments(rings(polygon)) == segments(borders)
    assert set(segments(coverage.borders).values()) <= {1}


@many
@given(rasters)
def test_borders_end_in_nodes_and_nodes_end_borders(faces: Faces) -> None:
    coverage = trace(faces)
    ends = [tuple(line.coords[i]) for line in coverage.borders for i in (0, -1)]
    nodes = {xy for xy, labels in around(faces) if is_node(labels) and max(labels) > 0}
    # Midpoints, where closed borders begin, lie between two corners.
    assert {end for end in ends if end[0] % 1 == end[1] % 1 == 0} == nodes
    for line in coverage.borders:
        assert line.is_closed or {line.coords[0], line.coords[-1]} <= nodes


@many
@given(rasters)
def test_a_polygon_holds_the_centres_of_its_own_pixels_and_no_others(faces: Faces) -> None:
    coverage = trace(faces)
    rows, cols = np.indices(faces.shape)
    inside = [shapely.contains_xy(p, cols + 0.5, rows + 0.5) for p in coverage.polygons]
    for label, held in zip(coverage.labels, inside, strict=True):
        np.testing.assert_array_equal(held, faces == label)
    assert len(inside) == len(set(faces[faces > 0].tolist()))


@many
@given(rasters)
def test_areas_change_by_an_eighth_of_a_pixel_for_each_corner_cut(faces: Faces) -> None:
    coverage = trace(faces)
    # Where three of four pixels are of the label, cutting the corner adds to it.
    cut = [labels for _, labels in around(faces) if not is_node(labels)]
    for label, polygon in zip(coverage.labels, coverage.polygons, strict=True):
        added = sum({1: -1, 3: 1}.get(labels.count(label), 0) for labels in cut)
        assert polygon.area == np.count_nonzero(faces == label) + added / 8


@many
@given(rasters)
def test_lines_have_vertices_only_where_they_bend(faces: Faces) -> None:
    for line in trace(faces).borders:
        steps = np.diff(shapely.get_coordinates(line), axis=0)
        turns = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
        assert turns.all()


@many
@given(hills())
def test_douglas_peucker_would_leave_out_nothing_more(faces: Faces) -> None:
    """Why there is no such step: with what midpoints leave of half a pixel, it has no effect."""
    borders = trace(faces).borders
    left = 0.5 - np.sqrt(2) / 4
    simplified = shapely.simplify(borders, left, preserve_topology=False)
    assert shapely.equals_identical(simplified, borders).all()


@many
@given(rasters)
def test_the_same_raster_gives_the_same_bytes(faces: Faces) -> None:
    first, second = trace(faces), trace(np.asfortranarray(faces))
    for name in ("labels", "sides"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    for name in ("polygons", "borders"):
        a, b = shapely.to_wkb(getattr(first, name)), shapely.to_wkb(getattr(second, name))
        assert a.tolist() == b.tolist()


@many
@given(rasters, st.integers(1, 4))
def test_strips_of_any_height_give_the_same_bytes(faces: Faces, rows: int) -> None:
    whole = trace(faces)
    with patch.object(coverage, "_STRIP_ROWS", rows):
        strips = trace(faces)
    np.testing.assert_array_equal(strips.labels, whole.labels)
    np.testing.assert_array_equal(strips.sides, whole.sides)
    for ours, theirs in ((strips.polygons, whole.polygons), (strips.borders, whole.borders)):
        assert shapely.to_wkb(ours).tolist() == shapely.to_wkb(theirs).tolist()


@many
@given(rasters)
@example(np.zeros((3, 4), np.int32))
def test_arrays_have_the_types_and_shapes_they_are_said_to_have(faces: Faces) -> None:
    coverage = trace(faces)
    assert coverage.labels.dtype == coverage.sides.dtype == np.int32
    assert coverage.polygons.dtype == coverage.borders.dtype == object
    assert coverage.polygons.shape == coverage.labels.shape
    assert coverage.sides.shape == (len(coverage.borders), 2)
    assert (coverage.sides[:, 0] < coverage.sides[:, 1]).all()
    assert (coverage.sides[:, 1] > 0).all()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (6, 4)])
@pytest.mark.parametrize("label", [0, -1])
def test_a_raster_without_faces_gives_nothing(shape: tuple[int, int], label: int) -> None:
    coverage = trace(np.full(shape, label, np.int32))
    assert [len(coverage.labels), len(coverage.polygons), len(coverage.borders)] == [0, 0, 0]
    assert coverage.sides.shape == (0, 2)


def test_a_nunatak_stays_a_hole() -> None:
    coverage = trace(
        faces_of(
            ".......",
            ".11111.",
            ".11111.",
            ".11.11.",
            ".11111.",
            ".......",
        )
    )
    [nunatak] = the_only(coverage).interiors
    assert Polygon(nunatak).equals(Polygon([(3.5, 3), (4, 3.5), (3.5, 4), (3, 3.5)]))
    assert coverage.sides.tolist() == [[0, 1], [0, 1]]


def test_two_glaciers_share_their_divide() -> None:
    coverage = trace(
        faces_of(
            "........",
            ".111122.",
            ".111222.",
            ".112222.",
            ".112222.",
            "........",
        )
    )
    [divide] = coverage.borders[(coverage.sides == [1, 2]).all(axis=1)]
    west, east = coverage.polygons
    assert divide.length > 4
    assert west.intersection(east).equals(divide)
    assert west.union(east).area == pytest.approx(west.area + east.area, abs=1e-12)


def test_pixels_that_touch_in_a_corner_are_two_parts() -> None:
    coverage = trace(faces_of("1.", ".1"))
    [face] = coverage.polygons
    a, b = parts(face)
    assert a.intersection(b).equals(shapely.Point(1, 1))


def test_a_chessboard_of_two_faces_meets_in_points() -> None:
    coverage = trace(faces_of("12", "21"))
    assert [len(parts(face)) for face in coverage.polygons] == [2, 2]
    ends = [line.coords[i] for line in coverage.borders for i in (0, -1)]
    assert ends.count((1.0, 1.0)) == 4


def test_a_hole_that_touches_the_outline_in_a_corner_is_a_hole() -> None:
    face = the_only(trace(faces_of("111", "1.1", "11.")))
    [hole] = face.interiors
    assert face.is_valid
    assert shapely.LinearRing(face.exterior).intersection(hole).equals(shapely.Point(2, 2))


def test_holes_that_touch_each_other_are_two() -> None:
    face = the_only(trace(faces_of("1111", "1.11", "11.1", "1111")))
    assert len(face.interiors) == 2
    assert face.is_valid


def test_an_island_in_a_lake_in_a_glacier_is_a_part_of_its_own() -> None:
    coverage = trace(faces_of("11111", "1...1", "1.1.1", "1...1", "11111"))
    [face] = coverage.polygons
    assert sorted(len(part.interiors) for part in parts(face)) == [0, 1]


def test_a_single_pixel_becomes_the_square_of_its_midpoints() -> None:
    pixel = the_only(trace(faces_of("...", ".5.", "...")))
    assert pixel.equals(Polygon([(1.5, 1), (2, 1.5), (1.5, 2), (1, 1.5)]))
    assert pixel.area == 0.5


def test_a_face_ends_at_the_edge_of_the_raster() -> None:
    coverage = trace(faces_of("11.", "11."))
    outside = (coverage.sides == [OUTSIDE_RASTER, 1]).all(axis=1)
    assert coverage.sides[~outside].tolist() == [[0, 1]]
    [edge] = coverage.borders[outside]
    assert {edge.coords[0], edge.coords[-1]} == {(2.0, 0.0), (2.0, 2.0)}
    assert the_only(coverage).bounds == (0, 0, 2, 2)


def test_what_was_not_seen_is_told_from_what_is_no_ice() -> None:
    coverage = trace(faces_of(".11-", ".11-", "----"))
    assert sorted(map(tuple, coverage.sides.tolist())) == [(OUTSIDE_RASTER, 1), (-1, 1), (0, 1)]
    [unseen] = coverage.borders[coverage.sides[:, 0] == -1]
    assert {unseen.coords[0], unseen.coords[-1]} == {(3.0, 0.0), (1.0, 2.0)}


def test_a_staircase_comes_out_straight() -> None:
    size = 60
    faces = (np.add.outer(np.arange(size), np.arange(size)) < size).astype(np.int32)
    coverage = trace(faces)
    [slope] = coverage.borders[coverage.sides[:, 0] == 0]
    assert len(slope.coords) <= 6
    assert slope.length == pytest.approx((size - 1) * np.sqrt(2), abs=1)


def test_straight_edges_need_no_vertices_between() -> None:
    faces = np.zeros((40, 60), np.int32)
    faces[5:30, 10:50] = 3
    assert len(the_only(trace(faces)).exterior.coords) == 9  # four corners cut, and closed
