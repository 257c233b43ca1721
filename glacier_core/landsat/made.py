"""What a scene that is there was made of, by its own tag: whether it has to be made again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from glacier_core.errors import InputError
from glacier_core.landsat.archive import SUFFIXES
from glacier_core.landsat.metadata import ProductId, parse_id

log = logging.getLogger(__name__)

TAG = "GLACIER_INGEST"
"""Holds, as JSON, `format`, `settings`, `dem`, `product`, `generated` and `filled_from`."""


def _read(target: Path) -> dict[str, Any] | None:
    with rasterio.open(target) as dataset:
        tag = dataset.tags().get(TAG)
    if tag is None:
        return None
    content: dict[str, Any] = json.loads(tag)
    return content


def stands(target: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether a scene need not be made; says what becomes of an older one."""
    if not target.exists():
        return False
    try:
        before = _read(target)
    except RasterioError:
        log.warning("%s: cannot be read and is made anew", target)
        return False
    if before is None:
        raise InputError(
            f"{target}: is in the way, and was not written by `glacier ingest`; move it, or give "
            "another --out"
        )
    if before == made_of:
        log.info("%s: made already", target)
        return True
    if before["product"] == made_of["product"]:
        log.info("%s: made anew, with other settings", target)
        return False
    if before["generated"] > made_of["generated"]:
        log.warning(
            "%s: comes from a later processing, %s, and is left as it is; --again replaces it by %s",
            target,
            before["product"],
            made_of["product"],
        )
        return True
    log.warning(
        "%s: replaced, USGS processed it anew: %s instead of %s",
        target,
        made_of["product"],
        before["product"],
    )
    return False


def made_of_archive(
    path: Path, fill_from: Sequence[Path], out: Path, method: Mapping[str, Any]
) -> Path | None:
    """The scene that was made of an archive before, by the archive's name: it is not read, which
    takes as long as unpacking it. None where that is not certain.

    Args:
        path: of the product.
        fill_from: products of other dates.
        out: folder of the scenes.
        method: what of the tag no product says: `format`, `settings`, `dem`.
    """
    found = [_named(one) for one in (path, *fill_from)]
    names = [one.text for one in found if one is not None]
    if found[0] is None or len(names) < len(found):
        return None
    target = out / f"{found[0].scene}.tif"
    try:
        before = _read(target)
    except RasterioError:
        return None
    if before is None or any(before[key] != value for key, value in method.items()):
        return None
    # A version begins with the product's id, which names the day of processing.
    if [one.partition(" ")[0] for one in (before["product"], *before["filled_from"])] != names:
        return None
    log.info("%s: made already", target)
    return target


def _named(path: Path) -> ProductId | None:
    """The product that an archive has in its name as USGS gives it; None for another."""
    stem = next((path.name[: -len(end)] for end in SUFFIXES if path.name.endswith(end)), "")
    try:
        product = parse_id(stem, path)
    except InputError:
        return None
    return product if product.text == stem and path.is_file() else None
