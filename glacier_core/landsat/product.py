"""A Level-2 product on disk: which file is which band, on which grid, and what its pixels mean."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from glacier_core.errors import InputError
from glacier_core.landsat.archive import SUFFIXES, is_archive, unpack
from glacier_core.landsat.metadata import (
    Metadata,
    ProductId,
    parse_id,
    read_metadata,
    scaling_in_asset,
    sun_told,
)

log = logging.getLogger(__name__)

_CODE = re.compile(r"((?:SR|ST)_B\d+|QA_PIXEL|QA_RADSAT)(?:\.TIFF?)?$", re.IGNORECASE)
_MTL = re.compile(r"_MTL\.(txt|xml|json)$", re.IGNORECASE)

ITEM = "item.json"

# Without the thermal band ice can be mapped, and Level-2 products without it exist (L2SR).
OPTIONAL = ("lwir", "coastal")


@dataclass(frozen=True)
class Product:
    """A product's files.

    Attributes:
        path: as the user named it.
        metadata: what it says of itself.
        bands: raster by common name; those that it holds.
        qa_pixel: the quality raster.
        qa_radsat: the raster of saturation, None where there is none.
    """

    path: Path
    metadata: Metadata
    bands: Mapping[str, Path]
    qa_pixel: Path
    qa_radsat: Path | None

    @property
    def id(self) -> ProductId:
        return self.metadata.id

    def scaling(self, band: str) -> tuple[float, float]:
        """(factor, summand) from DN to reflectance, or to kelvin."""
        return self.metadata.scaling[self.id.codes[band]]


@contextmanager
def open_product(path: Path, work: Path) -> Iterator[Product]:
    """Find the files of a product.

    Args:
        path: a folder, an archive (`.tar`, `.tar.gz`), or a STAC item beside its assets.
        work: folder on a disk where an archive may be unpacked while the product is open.

    Raises:
        InputError: no product there, or not one that can be used.
        StorageError: no room to unpack it.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            product = _in_folder(path, path)
        elif is_archive(path):
            work.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(prefix=".unpacked-", dir=work)
            folder = Path(stack.enter_context(place))
            unpack(path, folder)
            product = _in_folder(folder, path)
        elif path.suffix.lower() == ".json" and not _MTL.search(path.name):
            product = _of_item(path, path)
        else:
            raise InputError(
                f"{path}: expected a folder, an archive ({', '.join(SUFFIXES)}) or a STAC item "
                "(.json)"
            )
        yield product


def _in_folder(folder: Path, path: Path) -> Product:
    if (folder / ITEM).is_file():
        return _of_item(folder / ITEM, path)
    found = sorted(file for file in folder.iterdir() if _MTL.search(file.name))
    products = {_MTL.sub("", file.name) for file in found}
    if not found:
        raise InputError(
            f"{path}: holds no MTL file (*_MTL.txt, .xml or .json) and no {ITEM}: without the "
            "product's own coefficients its bands cannot be scaled. Put the MTL file beside them."
        )
    if len(products) > 1:
        raise InputError(
            f"{path}: holds {len(products)} products ({', '.join(sorted(products))}); give each a "
            "folder of its own"
        )
    metadata = read_metadata(found[0])
    return _product(path, folder, metadata, dict(metadata.files))


def _inside(folder: Path, href: str) -> Path | None:
    """The file that an asset of an item means, beside the item or below; None if there is none."""
    name = unquote(urlsplit(href).path)
    # What an item says may come from anywhere: it opens nothing outside its folder.
    for place in (folder / name.lstrip("/"), folder / Path(name).name):
        normal = Path(os.path.normpath(place))
        if folder in normal.parents and normal.is_file():
            return normal
    return None


def _code(key: str, asset: Mapping[str, Any], codes: Mapping[str, str]) -> str | None:
    """Which band an asset is: by its file's name, by its key (SR_B1.TIF), by its common name."""
    for text in (urlsplit(str(asset.get("href", ""))).path, key):
        found = _CODE.search(text)
        if found:
            return found[1].upper()
    common = "lwir" if key == "lwir11" else key
    return codes.get(common) or {"qa_pixel": "QA_PIXEL", "qa_radsat": "QA_RADSAT"}.get(common)


def _of_item(item: Path, path: Path) -> Product:
    try:
        content = json.loads(item.read_text(encoding="utf-8"))
        assets: Mapping[str, Mapping[str, Any]] = content["assets"]
        if not content["stac_version"] or any(not isinstance(a, dict) for a in assets.values()):
            raise KeyError
    except OSError as error:
        raise InputError(f"{item}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{item}: is not a STAC item (JSON with stac_version and assets)"
        ) from None
    folder = Path(os.path.normpath(item.parent))
    files = {key: _inside(folder, str(asset.get("href", ""))) for key, asset in assets.items()}
    for key, file in files.items():
        if file is not None and (_MTL.search(file.name) or re.match(r"mtl\.", key, re.IGNORECASE)):
            metadata = read_metadata(file)
            break
    else:
        metadata = _without_mtl(item, content, assets)
    rasters = dict(metadata.files)
    for key, asset in assets.items():
        code, file = _code(key, asset, metadata.id.codes), files[key]
        if code and file is not None:
            rasters[code] = str(file.relative_to(folder))
    return _product(path, folder, metadata, rasters)


def _without_mtl(
    item: Path, content: Mapping[str, Any], assets: Mapping[str, Mapping[str, Any]]
) -> Metadata:
    """What an item says of its product where no MTL file lies beside it."""
    names = [Path(urlsplit(str(asset.get("href", ""))).path).name for asset in assets.values()]
    # stactools' ids lack the day of processing; the names of files have it.
    named = next(
        (name for name in names if re.match(r"L[A-Z]\d\d_L\w{3}_\d{6}_\d{8}_\d{8}_", name)), ""
    )
    product = parse_id(named or str(content.get("id", "")), item)
    scaling = {}
    for key, asset in assets.items():
        code, declared = _code(key, asset, product.codes), scaling_in_asset(asset)
        if code is not None and code in product.codes.values() and declared is not None:
            scaling[code] = declared
    needed = {code for name, code in product.codes.items() if name not in OPTIONAL}
    if needed - set(scaling):
        raise InputError(
            f"{item}: has no MTL file beside it, and declares no scale and offset for "
            f"{', '.join(sorted(needed - set(scaling)))}; download the asset mtl.json too"
        )
    said = content.get("properties")
    properties = said if isinstance(said, dict) else {}
    # Of the STAC extension `view`, in which USGS tells what the MTL file does.
    sun = sun_told(properties.get("view:sun_azimuth"), properties.get("view:sun_elevation"))
    return Metadata(product, item, "", "", scaling, {}, slc_off=False, sun=sun)


def _product(path: Path, folder: Path, metadata: Metadata, rasters: dict[str, str]) -> Product:
    folder = Path(os.path.normpath(folder))

    def file(code: str) -> Path | None:
        named = [rasters[code]] if code in rasters else []
        for name in [*named, f"{metadata.id.text}_{code}.TIF"]:
            place = Path(os.path.normpath(folder / name))
            if folder in place.parents and place.is_file():
                return place
        return None

    found = {band: file(code) for band, code in metadata.id.codes.items()}
    bands = {
        band: place
        for band, place in found.items()
        if place is not None and metadata.id.codes[band] in metadata.scaling
    }
    qa_pixel, qa_radsat = file("QA_PIXEL"), file("QA_RADSAT")
    absent = [
        f"{band} ({metadata.id.codes[band]})"
        for band in found
        if band not in bands and band not in OPTIONAL
    ]
    if qa_pixel is None:
        absent.append("QA_PIXEL")
    if absent or qa_pixel is None:
        raise InputError(
            f"{path}: {metadata.id.text} lacks {', '.join(absent)}: expected files such as "
            f"{metadata.id.text}_{metadata.id.codes['green']}.TIF"
        )
    if qa_radsat is None:
        log.warning("%s: has no QA_RADSAT: saturated pixels are not known", path)
    return Product(path, metadata, bands, qa_pixel, qa_radsat)
