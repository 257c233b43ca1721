"""What is written is there whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from glacier_core.errors import InputError, StorageError
from glacier_core.files import (
    array_by_rows,
    link_or_copy,
    save_array,
    whole_file,
    whole_folder,
    write_json,
)

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")


def test_a_failed_file_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(InputError), whole_file(path) as beside:  # noqa: PT012
        beside.write_text("half")
        raise InputError("bad scene")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "A"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_folder(folder) as beside:  # noqa: PT012
        (beside / "new").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_new_folder_replaces_the_old_one_and_is_never_merged_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "A"
    folder.mkdir()
    (folder / "old").write_text("old")
    with whole_folder(folder) as beside:
        (beside / "new").write_text("new")
        assert (folder / "old").exists()
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_a_killed_runs_folder_is_cleared_and_one_of_a_similar_name_is_not(tmp_path: Path) -> None:
    (tmp_path / ".A.partial-4194305").mkdir()
    (tmp_path / ".AB.partial-4194305").mkdir()
    with whole_folder(tmp_path / "A") as beside:
        (beside / "new").write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"A", ".AB.partial-4194305"}


def test_what_a_process_of_the_same_number_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / f".A.partial-{os.getpid()}").mkdir()
    (tmp_path / f".b.partial-{os.getpid()}.json").write_text("half")
    with whole_folder(tmp_path / "A") as folder:
        (folder / "x").write_text("whole")
        with whole_file(tmp_path / "b.json") as beside:
            assert not beside.exists()
            beside.write_text("{}")
    assert (tmp_path / "A/x").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A", "b.json"]


def test_no_room_is_told_as_such(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"A: no room left to write it.*Free some space"),
        whole_folder(tmp_path / "A"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_place_that_cannot_be_written_is_told_as_such(
    tmp_path: Path, whole: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(StorageError, match=r"A\.x: cannot be written"),
        whole(tmp_path / "file" / "A.x") as beside,
    ):
        beside.write_text("never")


def test_an_input_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.json"):
        (tmp_path / "input").read_text()
    assert list(tmp_path.iterdir()) == []


def test_nan_never_gets_into_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"iou": float("nan")})
    write_json(tmp_path / "b.json", {"iou": None})
    assert json.loads((tmp_path / "b.json").read_text()) == {"iou": None}
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_arrays_are_read_back_as_they_were_saved(tmp_path: Path, dtype: str) -> None:
    array = np.arange(7 * 5 * 2).reshape(7, 5, 2).astype(dtype)
    save_array(tmp_path / "whole.npy", array)
    save_array(tmp_path / "turned.npy", array.T)
    with array_by_rows(tmp_path / "rows.npy", array.shape, dtype) as append:
        append(array[:3])
        append(array[3:])
    np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), array)
    np.testing.assert_array_equal(np.load(tmp_path / "turned.npy"), array.T)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@needs_full
def test_arrays_say_so_where_there_is_no_room() -> None:
    array = np.zeros((300, 300))
    with pytest.raises(OSError, match="No space") as saved:
        save_array(FULL, array)
    with (
        pytest.raises(OSError, match="No space") as appended,
        array_by_rows(FULL, array.shape, float) as append,
    ):
        append(array)
    assert saved.value.errno == appended.value.errno == errno.ENOSPC


def test_links_hold_the_same_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("slice")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "slice"
