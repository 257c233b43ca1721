"""Writing results whole or not at all: beside the target first, then renamed over it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glacier_core.errors import StorageError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
        yield beside
        os.replace(beside, path)
    except OSError as error:
        # Errors of reading an input carry that input's name; only ours are storage errors.
        if error.errno in _NO_ROOM or (error.filename and str(beside) in str(error.filename)):
            raise _explained(error, path) from error
        raise
    finally:
        if beside.exists():
            _discard(beside)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; swap it for `path` if the block succeeds.

    A folder of that name from an earlier run is replaced, never merged with.

    Raises:
        StorageError: as `whole_file`.
    """
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.partial-*"):
            _discard(stale)
        beside.mkdir()
        yield beside
        if path.exists():
            _discard(path)
        os.replace(beside, path)
    except OSError as error:
        if error.errno in _NO_ROOM or (error.filename and str(beside) in str(error.filename)):
            raise _explained(error, path) from error
        raise
    finally:
        if beside.exists():
            _discard(beside)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole. NaN is refused: it is not JSON."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name; copy only where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        shutil.copyfile(source, target)
