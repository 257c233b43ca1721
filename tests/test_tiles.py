"""Tiles of a scene are its windows, however the file is laid out, and each block is read once."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from glacier_core.errors import InputError
from glacier_core.raster import tiles
from glacier_core.raster.grid import Window, tile_windows
from glacier_core.raster.scene import Scene
from glacier_core.raster.tiles import pieces, read_tiles
from glacier_core.threads import in_threads, thread_count


def written(path: Path, values: np.ndarray, **layout: object) -> Path:
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype,
        crs="EPSG:32645", transform=from_origin(5e5, 3e6, 30, 30), **layout,
    ) as file:  # fmt: skip
        file.write(values)
        file.descriptions = [f"b{i}" for i in range(bands)]
    return path


LAYOUTS = [
    {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "pixel"},
    {"tiled": True, "blockxsize": 32, "blockysize": 48, "interleave": "band", "compress": "lzw"},
    {"tiled": False, "blockysize": 1, "compress": "deflate"},
    {"tiled": False, "blockysize": 200},
]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 150),
    size=st.integers(2, 60),
    shared=st.integers(0, 59),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
    room=st.sampled_from([1, 20_000, 10**9]),
)
def test_each_tile_is_read_once_and_is_its_window(
    tmp_path: Path, height: int, width: int, size: int, shared: int,
    layout: dict[str, object], dtype: str, room: int,
) -> None:  # fmt: skip
    values = np.random.default_rng(1).integers(0, 100, (3, height, width)).astype(dtype)
    path = written(tmp_path / "scene.tif", values, **layout)
    windows = tile_windows(height, width, size, min(shared, size - 1))
    with Scene(path, None) as scene, mock.patch.object(tiles, "_STRIP_BYTES", room):
        found = dict(read_tiles(scene, windows))
        assert sorted(found) == list(range(len(windows)))
        for k, window in enumerate(windows):
            expected = np.moveaxis(values[:, *window.slices], 0, -1)
            assert found[k].dtype == scene.dtype
            np.testing.assert_array_equal(found[k], expected)


def test_a_block_of_the_file_is_decoded_once_where_memory_allows(tmp_path: Path) -> None:
    values = np.zeros((2, 300, 400), dtype=np.uint8)
    path = written(tmp_path / "scene.tif", values, tiled=True, blockxsize=64, blockysize=64)
    read: list[Window] = []
    with Scene(path, None) as scene:
        into = scene.read_into

        def noting(pixels: np.ndarray, window: Window) -> None:
            read.append(window)
            into(pixels, window)

        with mock.patch.object(scene, "read_into", noting):
            assert len(list(read_tiles(scene, tile_windows(300, 400, 100, 10)))) == 20
    assert sum(window.height * window.width for window in read) == 300 * 400
    assert all(window.row % 64 == 0 and window.col % 64 == 0 for window in read)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 150),
    rows=st.tuples(st.integers(0, 119), st.integers(1, 120)),
    layout=st.sampled_from(LAYOUTS),
    room=st.sampled_from([1, 5_000, 20_000, 10**9]),
)
def test_pieces_are_whole_blocks_and_cover_rows_once(
    tmp_path: Path, height: int, width: int, rows: tuple[int, int], layout: dict[str, object],
    room: int,
) -> None:  # fmt: skip
    path = written(tmp_path / "scene.tif", np.zeros((2, height, width), dtype=np.uint8), **layout)
    first = min(rows[0], height - 1)
    last = min(first + rows[1], height)
    times = np.zeros((height, width), dtype=int)
    with Scene(path, None) as scene, mock.patch.object(tiles, "_PIECE_BYTES", room):
        block_height, block_width = scene.block
        whole = block_height >= height
        for piece in pieces(scene, first, last):
            times[piece.slices] += 1
            assert piece.col % block_width == 0
            assert whole or piece.row % block_height == 0 or piece.row == first
            assert piece.height * piece.width * 2 <= room or piece.height <= block_height
    expected = np.zeros_like(times)
    expected[first:last] = 1
    np.testing.assert_array_equal(times, expected)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 255, (2, 256, 256)).astype(np.uint8)
    path = written(
        tmp_path / "cut.tif", values, tiled=True, blockxsize=64, blockysize=64, compress="lzw"
    )
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 9000] = bytes(9000)
    path.write_bytes(content)
    with Scene(path, None) as scene, pytest.raises(InputError, match=r"cut\.tif: damaged"):
        list(read_tiles(scene, tile_windows(256, 256, 64, 0)))


def test_threads_keep_the_order_and_look_only_a_little_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLACIER_THREADS", "2")
    taken: list[int] = []

    def items() -> object:
        for i in range(50):
            taken.append(i)
            yield i

    results = in_threads(lambda i: i * i, items())  # type: ignore[arg-type]
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) <= 5 + 4
    assert list(results) == [i * i for i in range(5, 50)]


def test_the_first_error_of_a_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLACIER_THREADS", "2")
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda i: 1 // i, [3, 2, 1, 0, 1, 2]))


@pytest.mark.parametrize("wanted", ["0", "two", "-1", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("GLACIER_THREADS", wanted)
    with pytest.raises(InputError, match="GLACIER_THREADS"):
        thread_count()
