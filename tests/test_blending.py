"""Windows cover a scene, and their weights blend them without a seam."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from glacier_core.maps.blending import Blend, Part, across

LARGEST_DEPTH = 8
"""Of the network, by `TrainParams`: windows are multiples of 2 ** depth."""


@st.composite
def blends(draw: st.DrawFn) -> Blend:
    """What params.yaml allows, on scenes of a pixel to several windows."""
    multiple = 2 ** draw(st.integers(1, LARGEST_DEPTH))
    window = draw(st.integers(1, 800))
    overlap = draw(st.integers(0, window // 2))
    length = draw(st.one_of(st.integers(1, 40), st.integers(1, 8 * max(window, multiple))))
    return Blend(length, window, overlap, multiple)


def on_scene(blend: Blend, part: Part) -> tuple[slice, NDArray[np.float32]]:
    """The pixels of a scene that a window sees, and their weights."""
    first, last = part.inside(blend.length)
    return slice(first, last), blend.weights(part)[first - part.start : last - part.start]


def total(blend: Blend) -> NDArray[np.float64]:
    sums = np.zeros(blend.length)
    for part in blend.parts:
        at, weights = on_scene(blend, part)
        sums[at] += weights
    return sums


many = settings(max_examples=150, deadline=None)
shipped = example(Blend(7000, 576, 160, 16))


@many
@given(blends())
@shipped
@example(Blend(1, 576, 160, 16))
@example(Blend(5000, 16, 8, 16))
@example(Blend(5000, 256, 64, 256))
@example(Blend(100, 1, 0, 2))
def test_the_weights_of_all_windows_sum_to_one_at_every_pixel(blend: Blend) -> None:
    np.testing.assert_allclose(total(blend), 1, atol=1e-6)


@many
@given(blends())
@shipped
def test_windows_lie_at_multiples_counted_from_the_first_pixel(blend: Blend) -> None:
    for part in blend.parts:
        assert part.start % blend.multiple == 0
        assert part.stop % blend.multiple == 0
        assert part.size > 0


@many
@given(blends())
@shipped
def test_windows_follow_each_other_and_each_sees_some_of_the_scene(blend: Blend) -> None:
    parts = blend.parts
    assert parts[0].start <= 0
    assert parts[-1].stop >= blend.length
    for part in parts:
        first, last = part.inside(blend.length)
        assert first < last
    for part, following in pairwise(parts):
        assert following.start - part.start == blend.step
        assert following.stop > part.stop
        assert part.stop - following.start == blend.shared


@many
@given(blends())
@example(Blend(1000, 16, 8, 16))
@example(Blend(1000, 200, 90, 256))
def test_neighbours_share_no_fewer_pixels_than_the_overlap_says(blend: Blend) -> None:
    """Also where the network's multiple is as large as the window."""
    assert blend.shared >= blend.overlap
    for part, following in pairwise(blend.parts):
        assert part.stop - following.start >= blend.overlap


@many
@given(blends())
@shipped
def test_a_window_is_as_large_as_told_but_for_the_multiple(blend: Blend) -> None:
    most = max(blend.window, blend.overlap + blend.multiple)
    for part in blend.parts:
        assert part.size < most + blend.multiple
    for part in blend.parts[:-1]:
        assert part.size >= blend.window


@many
@given(blends())
@shipped
def test_no_pixel_counts_that_lies_near_the_end_of_what_its_window_saw(blend: Blend) -> None:
    """At the scene's own edge, the reflected pixels are what lies beyond it."""
    for part in blend.parts:
        at, weights = on_scene(blend, part)
        counting = np.arange(at.start, at.stop)[weights > 0]
        if counting.size:
            assert counting[0] - part.start >= blend.margin
            assert part.stop - 1 - counting[-1] >= blend.margin


@many
@given(blends())
@shipped
def test_weights_are_a_smooth_ramp_between_nothing_and_everything(blend: Blend) -> None:
    ramp = blend.shared - 2 * blend.margin
    for part in blend.parts:
        weights = blend.weights(part)
        assert weights.shape == (part.size,)
        assert weights.dtype == np.float32
        assert weights.min() >= 0
        assert weights.max() <= 1
        # A raised cosine over `ramp` pixels is nowhere steeper than this.
        within = weights[blend.margin : part.size - blend.margin]
        if ramp > 1 and within.size > 1:
            assert np.abs(np.diff(within)).max() <= np.pi / 2 / ramp + 1e-6


@many
@given(blends())
@shipped
def test_rows_handed_over_before_the_next_window_are_complete(blend: Blend) -> None:
    """The map writes the rows above a window's first weight as soon as it comes to it."""
    for k, part in enumerate(blend.parts[1:], start=1):
        done = min(max(part.start + blend.margin, 0), blend.length)
        for later in blend.parts[k:]:
            at, weights = on_scene(blend, later)
            assert not weights[: max(done - at.start, 0)].any()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 240, 256])
def test_a_scene_that_fits_into_a_window_with_its_padding_is_one_window(length: int) -> None:
    blend = Blend(length, 576, 160, 16)
    [part] = blend.parts
    assert part.size <= 576
    np.testing.assert_array_equal(total(blend), 1)


def test_without_overlap_windows_stand_side_by_side() -> None:
    blend = Blend(100, 32, 0, 16)
    spans = [(part.start, part.stop) for part in blend.parts]
    assert spans == [(0, 32), (32, 64), (64, 96), (96, 112)]
    np.testing.assert_array_equal(total(blend), 1)


def test_of_the_shared_pixels_each_window_gives_its_outer_two_fifths_to_the_other() -> None:
    blend = Blend(2000, 576, 160, 16)
    first, second = blend.parts[1:3]
    assert first.stop - second.start == 160
    left, right = blend.weights(first)[-160:], blend.weights(second)[:160]
    assert (left[:64] == 1).all()
    assert (left[-64:] == 0).all()
    assert (right[:64] == 0).all()
    assert (right[-64:] == 1).all()
    assert (np.diff(right[63:97]) > 0).all()
    np.testing.assert_allclose(left + right, 1, atol=1e-6)


@many
@given(blends(), st.integers(0, 4000), st.integers(0, 4000))
def test_what_was_seen_of_a_strip_has_full_weight_wherever_it_begins(
    blend: Blend, before: int, after: int
) -> None:
    width = before + blend.length + after
    seen = np.zeros((2, width), dtype=bool)
    seen[0, before], seen[1, before + blend.length - 1] = True, True
    found = across(seen, blend.window, blend.overlap, blend.multiple)
    assert found is not None
    sums = np.zeros(width)
    for part in found.parts:
        assert part.start % blend.multiple == 0
        first, last = part.inside(width)
        sums[first:last] += found.weights(part)[first - part.start : last - part.start]
    np.testing.assert_allclose(sums[before : before + blend.length], 1, atol=1e-6)
    assert found.length < blend.length + blend.multiple


def test_a_strip_in_which_nothing_was_seen_needs_no_window() -> None:
    assert across(np.zeros((5, 900), dtype=bool), 576, 160, 16) is None
