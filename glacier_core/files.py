"""Writing results whole or not at all: beside the target first, then renamed over it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from glacier_core.errors import StorageError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# What this process is writing now. A container that starts again may have the number of the process
# that was killed in it, and find what that one left under its own name.
_writing: set[Path] = set()


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _explained(error: OSError, path: Path) -> StorageError:
    if error.errno in _NO_ROOM:
        return StorageError(
            f"{path}: no room left to write it ({error.strerror}). Free some space and run the "
            "same command again; nothing half-written was kept."
        )
    return StorageError(f"{path}: cannot be written ({error.strerror}). Check the folder's rights.")


def _about(error: OSError, path: Path, beside: Path) -> bool:
    """Whether writing failed. Errors of reading an input carry that input's name."""
    if error.errno in _NO_ROOM:
        return True
    if error.filename is None:
        return False
    named = Path(os.fsdecode(error.filename))
    return named in path.parents or any(
        place in (named, *named.parents) for place in (path, beside)
    )


def _clear_stale(path: Path) -> None:
    """Remove what processes that were killed left beside `path`."""
    for stale in path.parent.glob(f".{path.stem}.partial-*{path.suffix}"):
        owner = stale.name.removesuffix(path.suffix).rpartition("-")[2]
        if not owner.isdigit() or stale in _writing:
            continue
        if int(owner) == os.getpid() or not _runs(int(owner)):
            _discard(stale)


def _runs(number: int) -> bool:
    import psutil  # not needed by who only loads a model

    try:
        # One that was killed exists until its parent asks for it, which may be never.
        return bool(psutil.Process(number).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # somebody else's
        return True


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` if the block succeeds.

    Raises:
        StorageError: the disk is full or the folder is not writable. The old file, if there
            was one, is untouched.
    """
    # The suffix stays last: drivers choose the format by it.
    beside = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        _writing.add(beside)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if _about(error, path, beside):
            raise _explained(error, path) from error
        raise
    finally:
        _writing.discard(beside)
        if beside.exists():
            _discard(beside)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; swap it for `path` if the block succeeds.

    A folder of that name from an earlier run is replaced, never merged with.

    Raises:
        StorageError: as `whole_file`.
    """
    beside = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(path)
        _writing.add(beside)
        beside.mkdir()
        yield beside
        if path.exists():
            _discard(path)
        os.replace(beside, path)
    except OSError as error:
        if _about(error, path, beside):
            raise _explained(error, path) from error
        raise
    finally:
        _writing.discard(beside)
        if beside.exists():
            _discard(beside)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole. NaN is refused: it is not JSON."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def save_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write a `.npy` file. Where there is no room, the error says so; that of `np.save` does not."""
    array = np.ascontiguousarray(array)
    with path.open("wb", buffering=0) as file:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(array)
        )
        _write_all(file, header.getbuffer())
        _write_all(file, array.data.cast("B") if array.size else b"")


def _write_all(file: io.FileIO, content: memoryview | bytes) -> None:
    """Write to the last byte: one call may take less, and at most 2 GiB."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def array_by_rows(
    path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> Iterator[Callable[[npt.NDArray[np.generic]], None]]:
    """Yield a function that appends rows to a `.npy` file of a given shape.

    Not a memory map: where there is no room, writing to one ends the process without a word.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)

        def append(rows: npt.NDArray[np.generic]) -> None:
            file.write(rows.astype(dtype, copy=False).tobytes())

        yield append


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name; copy only where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        shutil.copyfile(source, target)
