"""Bringing one file here: resumed where it stopped, checked, and renamed when it is right."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

import requests

from glacier_core.errors import ServiceError, StorageError
from glacier_core.landsat.answers import Passing, length_of, plain
from glacier_core.landsat.items import Asset
from glacier_core.landsat.requesting import Service

Progress = Callable[[int, int | None], None]
"""Told of bytes that came, and once, before them, of how many will (None where nobody says)."""


class WrongFileError(ServiceError):
    """What a service gives is not what it should be, as it lies there: it came twice."""


_STEP = 1 << 20  # bytes that count as getting further

# Multihash (multiformats.io, table multicodec): code of the function and length of the digest,
# both as hex of a varint, then the digest. What `file:checksum` holds.
_MULTIHASH = {"1114": "sha1", "1220": "sha256", "1340": "sha512", "d50110": "md5"}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell a full disk as such.

    Raises:
        StorageError: no room, or no right to write.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{path}: no room left to write it ({error.strerror}). Free some space and run the "
                "same command again; what has come so far is kept, and the download goes on there."
            ) from error
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}). Check the folder's rights."
        ) from error


def _write(file: BinaryIO, path: Path, data: bytes) -> None:
    view = memoryview(data)
    with writing(path):
        while view:  # an unbuffered file may take a part
            view = view[file.write(view) :]


def bring(service: Service, asset: Asset, url: str, folder: Path, progress: Progress) -> None:
    """Download an asset to `folder / asset.name`.

    What has come is kept in `*.part`, with the server's mark of that version (ETag, or date) in
    `*.mark`, and is gone on from as long as the server has the same version.

    Raises:
        ServiceError: it cannot be had, or what comes is not what the item says (WrongFileError).
        StorageError: no room.
        Stopped: given up elsewhere; what came is kept.
    """
    target = folder / asset.name
    if target.exists():  # of an earlier call, and checked then
        return
    part, mark = folder / f"{asset.name}.part", folder / f"{asset.name}.mark"
    furthest, spoilt = _size(part), 0

    def attempt() -> None:
        nonlocal furthest, spoilt
        before = furthest
        try:
            _receive(service, url, part, mark, progress, certain="file:checksum" in asset.record)
        except Passing as fault:
            furthest = max(furthest, _size(part))
            fault.advanced = furthest >= before + _STEP
            raise
        wrong = fault_of(part, asset)
        if wrong:
            spoilt += 1
            _forget(part, mark)
            text = f"{plain(url)}: what came {wrong}"
            if spoilt > 1:  # whole files are not fetched over and over
                raise WrongFileError(
                    f"{service.name}: {text}, twice. Tell those who run {service.name}, or ask "
                    "another API (--api)"
                )
            raise Passing(text)
        with writing(target):
            os.replace(part, target)
            mark.unlink(missing_ok=True)

    service.patiently(asset.name, attempt)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _mark(answer: requests.Response) -> str:
    """What tells versions of a file apart, as If-Range takes it (RFC 9110, 13.1.5); else empty."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")


def _receive(
    service: Service, url: str, part: Path, mark: Path, progress: Progress, *, certain: bool
) -> None:
    """Bring `part` to its full length, from wherever it is.

    Args:
        service, url: whom to ask for what.
        part, mark: see `bring`.
        progress: is told of what comes.
        certain: a checksum will tell whether what comes belongs together.

    Raises:
        Passing: it is not there yet.
    """
    known = mark.read_text() if mark.exists() else ""
    # Without mark or checksum, what lies there may be the beginning of another file.
    have = _size(part) if known or certain else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and known:
        headers["If-Range"] = known
    with service.send("GET", url, headers=headers, accepted=frozenset({416})) as answer:
        span = answer.headers.get("Content-Range", "")
        if answer.status_code == 416 and have:
            if span.strip() == f"bytes */{have}" and _mark(answer) in ("", known):
                return  # it was complete, and not yet checked
            _forget(part, mark)
            raise Passing(f"{plain(url)}: cannot go on at byte {have}")
        if answer.status_code not in (200, 206):
            raise ServiceError(f"{service.name}: {plain(url)}: answered {answer.status_code}")
        if answer.status_code == 206:
            found = re.match(r"bytes (\d+)-(\d+)/(\d+|\*)", span)
            if not have or not found or int(found[1]) != have or _mark(answer) not in ("", known):
                _forget(part, mark)
                raise Passing(f"{plain(url)}: sent another part than was asked for")
        else:
            have = 0
            _refuse_page(service, url, answer)
        left = length_of(answer)
        progress(have, None if left is None else have + left)
        packed = answer.headers.get("Content-Encoding", "identity") != "identity"
        with writing(part):
            if not have:
                part.unlink(missing_ok=True)
                mark.write_text("" if packed else _mark(answer))
            file = part.open("ab", buffering=0)
        came = 0
        with file:
            for chunk in service.chunks(answer):
                _write(file, part, chunk)
                came += len(chunk)
                progress(len(chunk), None)
        if left is not None and came != left:
            raise Passing(f"{plain(url)}: {came} of {left} bytes came")


def _refuse_page(service: Service, url: str, answer: requests.Response) -> None:
    """A login page comes with status 200."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise ServiceError(
            f"{service.name}: {plain(url)}: sends a web page instead of the file, most likely a "
            "login. Ask another API (--api planetary-computer), or download the product by hand "
            "and give its folder to `glacier ingest`"
        )


# --- is it right? ----------------------------------------------------------------------------


def fault_of(path: Path, asset: Asset) -> str | None:
    """What is wrong with a file that came, None where nothing is.

    Compared are size and checksum that the item states (extension `file`). Without a checksum,
    every pixel of a raster is read, as a file that lacks its end opens all the same.
    """
    size = asset.record.get("file:size")
    if isinstance(size, int) and path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes, and the item says {size}"
    checksum = str(asset.record.get("file:checksum", "")).lower()
    for prefix, function in _MULTIHASH.items():
        if checksum.startswith(prefix):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, function).hexdigest()
            if prefix + digest == checksum:
                return None
            return f"has not the checksum that the item states ({function})"
    with contextlib.suppress(StopIteration):
        return next(fault for fault in _READERS[Path(asset.name).suffix.lower()](path))
    return None


def _raster_faults(path: Path) -> Iterator[str]:
    import rasterio
    from rasterio.errors import RasterioError

    try:
        # By the driver's name: `.part` says nothing about the format.
        with rasterio.open(path, driver="GTiff") as raster:
            for _, window in raster.block_windows(1):
                raster.read(window=window)
    except (RasterioError, OSError):
        yield "is no GeoTIFF that can be read to its end"


def _json_faults(path: Path) -> Iterator[str]:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        yield "is no JSON"


def _xml_faults(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
        if "<!ENTITY" in text:  # which may expand without end
            raise ValueError
        ElementTree.fromstring(text)
    except (ValueError, ElementTree.ParseError):
        yield "is no XML"


def _text_faults(path: Path) -> Iterator[str]:
    if path.stat().st_size == 0:
        yield "is empty"


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".tif": _raster_faults,
    ".tiff": _raster_faults,
    ".json": _json_faults,
    ".xml": _xml_faults,
    ".txt": _text_faults,
}
SUFFIXES = tuple(_READERS)
