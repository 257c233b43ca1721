"""Channel statistics are exact, however the observations come in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from glacier_core.dataset.statistics import ChannelStatistics, require_observed
from glacier_core.errors import InputError

values = st.one_of(st.floats(-1e4, 1e4), st.just(float("nan")))
batches = st.lists(
    st.integers(0, 12).flatmap(lambda rows: arrays(np.float64, (rows, 2), elements=values)),
    min_size=1,
    max_size=6,
)


def expected(pixels: NDArray[np.float64]) -> tuple[list[int], list[float], list[float]]:
    """Count, mean and deviation by channel, by numpy over everything at once."""
    columns = [column[np.isfinite(column)] for column in pixels.T]
    return (
        [column.size for column in columns],
        [float(column.mean()) if column.size else 0.0 for column in columns],
        [float(column.std()) if column.size else 0.0 for column in columns],
    )


def check(found: ChannelStatistics, pixels: NDArray[np.float64]) -> None:
    counts, means, deviations = expected(pixels)
    assert found.counts.tolist() == counts
    np.testing.assert_allclose(found.means, means, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(found.standard_deviations, deviations, rtol=1e-9, atol=1e-7)


@given(batches)
def test_batch_by_batch_is_the_same_as_all_at_once(some: list[NDArray[np.float64]]) -> None:
    found = ChannelStatistics(["a", "b"])
    for batch in some:
        found.partial_fit(batch)
    check(found, np.concatenate(some))


@given(batches, batches)
def test_merged_statistics_are_those_of_both_together(
    one: list[NDArray[np.float64]], other: list[NDArray[np.float64]]
) -> None:
    first, second = ChannelStatistics(["a", "b"]), ChannelStatistics(["a", "b"])
    for batch in one:
        first.partial_fit(batch)
    for batch in other:
        second.partial_fit(batch)
    check(first.merge(second), np.concatenate([*one, *other]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_a_large_offset_costs_no_precision(dtype: type) -> None:
    random = np.random.default_rng(2)
    pixels = (1e6 + random.integers(-3, 4, (200_000, 1))).astype(dtype)
    found = ChannelStatistics(["thermal"])
    for batch in np.array_split(pixels, 17):
        found.partial_fit(batch)
    assert found.means[0] == pytest.approx(pixels.astype(np.float64).mean(), abs=1e-8)
    assert found.standard_deviations[0] == pytest.approx(pixels.astype(np.float64).std(), rel=1e-10)


def test_many_float32_pixels_are_not_summed_in_float32() -> None:
    pixels = np.full((3_000_000, 1), 0.1, dtype=np.float32)
    pixels[::2] = 255.7
    found = ChannelStatistics(["a"]).partial_fit(pixels)
    assert found.means[0] == pytest.approx(
        (np.float64(np.float32(0.1)) + np.float64(np.float32(255.7))) / 2, rel=1e-12
    )


@given(
    value=st.floats(-1e6, 1e6, width=32),
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=5),
)
def test_a_constant_channel_has_no_deviation_at_all(value: float, sizes: list[int]) -> None:
    found = ChannelStatistics(["flat", "other"])
    for size in sizes:
        found.partial_fit(np.column_stack([np.full(size, value), np.arange(size)]))
    assert found.standard_deviations[0] == 0
    assert "flat" in found.constant()
    assert ("other" in found.constant()) == (max(sizes) == 1)


def test_a_channel_counts_where_it_was_seen_though_another_was_not() -> None:
    nan = np.nan
    found = ChannelStatistics(["a", "b"]).partial_fit(
        np.array([[1, nan], [3, 10], [nan, 30], [np.inf, nan]])
    )
    assert found.counts.tolist() == [2, 2]
    assert found.means.tolist() == [2, 20]
    assert found.standard_deviations.tolist() == [1, 10]


def test_a_channel_that_was_never_seen_is_refused_by_name() -> None:
    found = ChannelStatistics(["B1", "B8"]).partial_fit(np.array([[1.0, np.nan], [2.0, np.nan]]))
    assert found.constant() == []
    with pytest.raises(InputError, match="channels B8 have no valid pixel in the training split"):
        require_observed(found)


def test_the_file_says_what_was_counted_and_where_it_is_from(tmp_path: Path) -> None:
    found = ChannelStatistics(["B1", "B2"]).partial_fit(np.array([[1, 5], [3, 5]]))
    found.write(tmp_path / "statistics.json", source={"split": "train"})
    assert json.loads((tmp_path / "statistics.json").read_text()) == {
        "bands": ["B1", "B2"],
        "means": [2.0, 5.0],
        "standard_deviations": [1.0, 0.0],
        "counts": [2, 2],
        "split": "train",
    }
