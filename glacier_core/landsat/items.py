"""What a STAC item says about a Landsat scene, in whichever of its spellings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from shapely import make_valid
from shapely.geometry import box, shape
from shapely.geometry.base import BaseGeometry

from glacier_core.landsat.apis import Sensor
from glacier_core.landsat.metadata import SENSORS

Item = dict[str, Any]

BANDS = ("blue", "green", "red", "nir08", "swir16", "swir22")
"""Surface reflectance that TM, ETM+ and OLI share, by common name (STAC `eo` extension)."""

NEEDED = (*BANDS, "qa_pixel")
WANTED = (*NEEDED, "qa_radsat", "lwir", "coastal", "mtl.json", "mtl.xml", "mtl.txt")
"""What is fetched of an item, the latter where it has them (`coastal` only where it is asked for)."""

# Product identifier: sensor and satellite, processing level, path and row, days of acquisition
# and of processing, collection, tier (Landsat Collection 2 Data Dictionary, `Landsat Product ID`).
_PRODUCT = re.compile(
    r"(?P<sat>L[COTEM]\d\d)_(?P<level>L\d[A-Z]{2})_(?P<path>\d{3})(?P<row>\d{3})_"
    r"(?P<day>\d{8})_(?P<processed>\d{8})_(?P<collection>\d\d)_(?P<tier>T1|T2|RT|A1|A2)"
)
_SATELLITES: dict[str, Sensor] = {
    "LT04": "tm",
    "LT05": "tm",
    "LE07": "etm",
    **{f"L{letter}{number}": "oli" for letter in "CO" for number in ("08", "09")},
}


def problem(value: object) -> str | None:
    """What keeps a piece of JSON from being a STAC item; None where nothing does."""
    if not isinstance(value, dict) or value.get("type") != "Feature":
        return "is not a STAC item (type: Feature)"
    if not isinstance(value.get("id"), str) or not value["id"]:
        return "is a STAC item without an id"
    for key in ("properties", "assets"):
        if not isinstance(value.get(key), dict):
            return f"{value['id']}: is a STAC item without {key}"
    for key, asset in value["assets"].items():
        if not isinstance(asset, dict) or not isinstance(asset.get("href"), str):
            return f"{value['id']}: its asset {key} has no address (href)"
        try:
            urlsplit(asset["href"])
        except ValueError:
            return (
                f"{value['id']}: its asset {key} has the address {asset['href']!r}, which is none"
            )
    links = value.get("links", [])
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        return f"{value['id']}: its links are not those of STAC"
    return None


def file_name(href: str) -> str:
    """The last part of an address, without its query."""
    return PurePosixPath(unquote(urlsplit(href).path)).name


def _product(item: Item) -> re.Match[str] | None:
    names = [item["id"], *(file_name(asset["href"]) for asset in item["assets"].values())]
    return next((found for name in names if (found := _PRODUCT.match(name))), None)


def product_id(item: Item) -> str | None:
    """Landsat's own identifier, which names the day of processing. Ids of items often do not."""
    found = _product(item)
    return found.group() if found else None


def sensor_of(item: Item) -> Sensor | None:
    """Which sensor took it; None for what has no reflectance bands (MSS, TIRS alone)."""
    found = _product(item)
    return _SATELLITES.get(found["sat"] if found else item["id"][:4])


def day_of(item: Item) -> date | None:
    """Day of acquisition, UTC."""
    text = item["properties"].get("datetime") or item["properties"].get("start_datetime")
    found = _product(item)
    for day in (str(text)[:10], found["day"] if found else ""):
        try:
            return date.fromisoformat(day)
        except ValueError:
            continue
    return None


def path_row_of(item: Item) -> tuple[int, int] | None:
    """WRS-2 path and row."""
    properties = item["properties"]
    try:
        return int(properties["landsat:wrs_path"]), int(properties["landsat:wrs_row"])
    except (KeyError, TypeError, ValueError):
        found = _product(item)
        return (int(found["path"]), int(found["row"])) if found else None


def cloud_of(item: Item) -> float | None:
    """Cloud, per cent of the scene; None where it was not assessed (-1 in Landsat's metadata)."""
    value = item["properties"].get("eo:cloud_cover")
    return float(value) if isinstance(value, int | float) and value >= 0 else None


def footprint(item: Item) -> BaseGeometry | None:
    """The ground of the scene in degrees; None where the item does not say, or says nonsense."""
    try:
        if item.get("geometry"):
            return make_valid(shape(item["geometry"]))
        return box(*item["bbox"][:4]) if item.get("bbox") else None
    except Exception:  # shapely's errors about rubbish are many
        return None


def scene_key(item: Item) -> tuple[object, ...]:
    """The same for all processing versions, tiers and parts (SR, ST) of one acquisition."""
    found = _product(item)
    day, place = day_of(item), path_row_of(item)
    if day is None or place is None:
        return (item["id"],)
    return (found["sat"] if found else item["id"][:4], *place, day)


def age_key(item: Item) -> tuple[str, bool, str, str]:
    """Sorts processing versions of one scene, the newest last.

    By day of processing, then final over real-time, then the version in the scene identifier
    (LGN00, LGN01), then what the API says.
    """
    found, properties = _product(item), item["properties"]
    return (
        found["processed"] if found else "",
        found is not None and found["tier"] != "RT",
        str(properties.get("landsat:scene_id", ""))[-2:],
        str(properties.get("updated") or properties.get("created") or ""),
    )


@dataclass(frozen=True)
class Asset:
    """A file of an item.

    Attributes:
        role: one of `WANTED`.
        key: its name in the item.
        record: what the item says about it.
    """

    role: str
    key: str
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return file_name(self.record["href"])


def _role(key: str, href: str, codes: Mapping[str, str]) -> str | None:
    """What an asset is: by its common name (`red`), its code (`SR_B4.TIF`), or its file's name."""
    plain = key.lower()
    if plain in WANTED:
        return plain
    if plain == "lwir11":
        return "lwir"
    ending = file_name(href).upper()
    for label, role in codes.items():
        if key.upper().removesuffix(".TIF") == label or ending.endswith(f"_{label}.TIF"):
            return role
    return None


def wanted_assets(item: Item, *, coastal: bool = False) -> dict[str, Asset]:
    """The assets of an item that are fetched, by role. What is absent is left out."""
    found_id = _product(item)
    bands = SENSORS.get(found_id["sat"] if found_id else item["id"][:4], {})
    codes = {code: name for name, code in bands.items()}
    codes |= {"QA_PIXEL": "qa_pixel", "QA_RADSAT": "qa_radsat"}
    found: dict[str, Asset] = {}
    for key, record in item["assets"].items():
        role = _role(key, record["href"], codes)
        if role is not None and role not in found and (coastal or role != "coastal"):
            found[role] = Asset(role, key, record)
    return {role: found[role] for role in WANTED if role in found}
