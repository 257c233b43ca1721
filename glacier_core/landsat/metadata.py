"""What a Landsat product says of itself: its MTL file, in any of its three spellings."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from glacier_core.errors import InputError
from glacier_core.raster.sun import Sun

# The bands of each sensor, by the common names of the STAC extension `eo`. Surface reflectance is
# SR_B*, surface temperature ST_B* (Landsat Collection 2 Level-2 Science Product Guides, LSDS-1618
# and LSDS-1619). STAC calls the thermal band lwir of TM and ETM+, lwir11 of TIRS: lwir here.
_TM = {
    "blue": "SR_B1",
    "green": "SR_B2",
    "red": "SR_B3",
    "nir08": "SR_B4",
    "swir16": "SR_B5",
    "swir22": "SR_B7",
    "lwir": "ST_B6",
}
_OLI = {
    "coastal": "SR_B1",
    "blue": "SR_B2",
    "green": "SR_B3",
    "red": "SR_B4",
    "nir08": "SR_B5",
    "swir16": "SR_B6",
    "swir22": "SR_B7",
    "lwir": "ST_B10",
}
SENSORS: dict[str, dict[str, str]] = {
    "LT04": _TM,
    "LT05": _TM,
    "LE07": _TM,
    "LC08": _OLI,
    "LO08": _OLI,
    "LC09": _OLI,
    "LO09": _OLI,
}
"""Code of each band by common name, by the first four letters of a product's id."""

_ID = re.compile(
    r"(L[A-Z]\d\d)_(L[0-9A-Z]{3})_(\d{3})(\d{3})_(\d{8})_(\d{8})_(\d\d)_(T1|T2|RT|A1|A2)"
)
_LEVEL_2 = ("L2SP", "L2SR")

# A real MTL has some 20 kB.
_MOST_BYTES = 4 * 2**20

_ASK = "`glacier ingest` needs Collection 2 Level-2 (L2SP or L2SR); order that from USGS instead"


@dataclass(frozen=True)
class ProductId:
    """What the id of a product says, for example LC08_L2SP_005009_20150710_20200908_02_T2.

    Attributes:
        text: the id.
        sensor: LT05, LE07, LC08...
        path, row: of WRS-2, three digits each.
        acquired: day of acquisition.
        processed: day of processing.
    """

    text: str
    sensor: str
    path: str
    row: str
    acquired: datetime.date
    processed: datetime.date

    @property
    def scene(self) -> str:
        """Name of the scene: an acquisition, in whatever version USGS processed it."""
        return f"{self.sensor}_{self.path}{self.row}_{self.acquired:%Y%m%d}"

    @property
    def codes(self) -> dict[str, str]:
        """Code of each band of the sensor (SR_B2) by common name."""
        return SENSORS[self.sensor]


def parse_id(text: str, where: Path) -> ProductId:
    """Take a product's id apart.

    Args:
        text: begins with the id; what follows it (a band's name) is left out.
        where: file that says so, for errors.

    Raises:
        InputError: not an id; Level-1, another collection, or a sensor that is not known.
    """
    found = _ID.match(text)
    if not found:
        raise InputError(
            f"{where}: {text!r} is not the id of a Landsat product, as in "
            f"LC08_L2SP_005009_20150710_20200908_02_T2"
        )
    sensor, level, path, row, acquired, processed, collection, _ = found.groups()
    if level not in _LEVEL_2:
        raise InputError(f"{where}: {found[0]} is of level {level}; {_ASK}")
    if collection != "02":
        raise InputError(f"{where}: {found[0]} is of Collection {int(collection)}; {_ASK}")
    if sensor not in SENSORS:
        raise InputError(
            f"{where}: {found[0]} is of sensor {sensor}, whose bands are not known here; known are "
            f"{', '.join(SENSORS)}"
        )
    try:
        days = [datetime.datetime.strptime(day, "%Y%m%d").date() for day in (acquired, processed)]
    except ValueError:
        raise InputError(f"{where}: {found[0]} holds no calendar date") from None
    return ProductId(found[0], sensor, path, row, *days)


@dataclass(frozen=True)
class Metadata:
    """What a product says of itself.

    Attributes:
        id: of the product.
        source: the file that said so.
        generated: when the product was made, ISO; empty where that is not told.
        software: version of the processing software; empty where that is not told.
        scaling: (factor, summand) by code of the band: reflectance, or kelvin, is
            DN x factor + summand.
        files: name of each raster by code: SR_B2, ST_B6, QA_PIXEL, QA_RADSAT.
        slc_off: whether the scan-line corrector was off.
        sun: where it stood in the middle of the scene; None where that is not told, or at night.
    """

    id: ProductId
    source: Path
    generated: str
    software: str
    scaling: Mapping[str, tuple[float, float]]
    files: Mapping[str, str]
    slc_off: bool
    sun: Sun | None

    @property
    def version(self) -> str:
        """Which processing of the acquisition this is."""
        return " ".join(part for part in (self.id.text, self.generated, self.software) if part)


Groups = Mapping[str, Mapping[str, str]]


def _text_groups(text: str) -> Groups:
    groups: dict[str, dict[str, str]] = {}
    inside: list[str] = []
    for line in text.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            continue
        if key == "GROUP":
            inside.append(value)
        elif key == "END_GROUP":
            if not inside or inside.pop() != value:
                raise ValueError(f"END_GROUP = {value} closes nothing")
        elif inside:
            groups.setdefault(inside[-1], {})[key] = value.strip('"')
    if inside:
        raise ValueError(f"GROUP = {inside[-1]} never ends: the file is cut off")
    return groups


def _xml_groups(text: str) -> Groups:
    # An MTL has none; entities that expand without end need one.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("an MTL file has no document type")
    root = ElementTree.fromstring(text)
    return {group.tag: {item.tag: item.text or "" for item in group} for group in root}


def _json_groups(text: str) -> Groups:
    (content,) = json.loads(text).values()
    return {
        group: {key: str(value) for key, value in items.items()}
        for group, items in content.items()
        if isinstance(items, dict)
    }


_SPELLINGS = {".txt": _text_groups, ".xml": _xml_groups, ".json": _json_groups}


def read_groups(path: Path) -> Groups:
    """The groups of an MTL file. A key may stand in several: they are kept apart.

    A Level-2 MTL holds REFLECTANCE_MULT_BAND_1 twice, for the product and for the Level-1 scene
    it was made from.

    Raises:
        InputError: missing, unreadable, or not an MTL file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"longer than {_MOST_BYTES} bytes")
        groups = _SPELLINGS[path.suffix.lower()](data.decode("utf-8"))
    except (ValueError, AttributeError, RecursionError, ElementTree.ParseError) as error:
        raise InputError(
            f"{path}: is not an MTL file of Landsat ({error}); download the product anew"
        ) from error
    if not groups:
        raise InputError(f"{path}: is not an MTL file of Landsat (no groups); download it anew")
    return groups


def _number(groups: Groups, group: str, key: str, path: Path) -> float:
    try:
        return float(groups[group][key])
    except (KeyError, ValueError):
        found = groups.get(group, {}).get(key)
        raise InputError(
            f"{path}: group {group} has {'no ' + key if found is None else f'{key} = {found!r}'}, "
            "so the band cannot be scaled; download the product anew"
        ) from None


def read_metadata(path: Path) -> Metadata:
    """Read an MTL file (`.txt`, `.xml` or `.json`).

    Raises:
        InputError: not an MTL file, not of a Collection 2 Level-2 product, of a sensor that is
            not known, or without the coefficients of a band that it names.
    """
    groups = read_groups(path)
    contents = groups.get("PRODUCT_CONTENTS")
    if contents is None:  # Collection 1 calls its groups otherwise
        old = groups.get("METADATA_FILE_INFO", {}).get("LANDSAT_PRODUCT_ID", "the product")
        raise InputError(f"{path}: {old} is not of Collection 2; {_ASK}")
    product = parse_id(contents.get("LANDSAT_PRODUCT_ID", ""), path)
    level = contents.get("PROCESSING_LEVEL", "")
    if level not in _LEVEL_2:
        raise InputError(f"{path}: {product.text} is of level {level or 'unknown'}; {_ASK}")
    files = {}
    for key, value in contents.items():
        found = re.search(r"_((?:SR|ST)_B\d+|QA_PIXEL|QA_RADSAT)\.TIF$", value, re.IGNORECASE)
        if key.startswith("FILE_NAME_") and found:
            files[found[1].upper()] = value
    scaling = {}
    for code in product.codes.values():
        if code not in files:
            continue
        # The right one of two sets: see `read_groups`.
        group, stem, name = (
            ("LEVEL2_SURFACE_REFLECTANCE_PARAMETERS", "REFLECTANCE", code.removeprefix("SR_B"))
            if code.startswith("SR_")
            else ("LEVEL2_SURFACE_TEMPERATURE_PARAMETERS", "TEMPERATURE", code)
        )
        scaling[code] = (
            _number(groups, group, f"{stem}_MULT_BAND_{name}", path),
            _number(groups, group, f"{stem}_ADD_BAND_{name}", path),
        )
    record = groups.get("LEVEL2_PROCESSING_RECORD", {})
    image = groups.get("IMAGE_ATTRIBUTES", {})
    return Metadata(
        product,
        path,
        record.get("DATE_PRODUCT_GENERATED", ""),
        record.get("PROCESSING_SOFTWARE_VERSION", ""),
        scaling,
        files,
        image.get("SENSOR_MODE_SLC") == "OFF",
        sun_told(image.get("SUN_AZIMUTH"), image.get("SUN_ELEVATION")),
    )


def sun_told(azimuth: Any, elevation: Any) -> Sun | None:
    """The sun at degrees that a product tells; None where it tells none, or none in the sky."""
    try:
        return Sun.of(azimuth, elevation)
    except (TypeError, ValueError):
        return None


def scaling_in_asset(asset: Mapping[str, Any]) -> tuple[float, float] | None:
    """(factor, summand) that a STAC asset declares (extension `raster`), or None."""
    bands = asset.get("raster:bands") or asset.get("bands") or [{}]
    first = bands[0] if isinstance(bands, list) and isinstance(bands[0], dict) else {}
    for holder, prefix in ((first, ""), (first, "raster:"), (asset, "raster:")):
        factor, summand = holder.get(f"{prefix}scale"), holder.get(f"{prefix}offset")
        if isinstance(factor, int | float) and isinstance(summand, int | float):
            return float(factor), float(summand)
    return None
