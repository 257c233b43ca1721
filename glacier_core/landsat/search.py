"""Finding scenes: what a STAC API holds of an area, in the newest processing of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from glacier_core.errors import InputError
from glacier_core.landsat.apis import SENSORS, ApiConf, ApisConf
from glacier_core.landsat.asking import ask
from glacier_core.landsat.items import (
    Item,
    age_key,
    cloud_of,
    day_of,
    footprint,
    path_row_of,
    product_id,
    scene_key,
    sensor_of,
)
from glacier_core.landsat.requesting import Service


@dataclass(frozen=True)
class Season:
    """Days of the year, both ends included. Where the first comes after the last, it passes the
    turn of the year.
    """

    first: tuple[int, int]
    last: tuple[int, int]

    def __contains__(self, day: date) -> bool:
        at = (day.month, day.day)
        if self.first <= self.last:
            return self.first <= at <= self.last
        return at >= self.first or at <= self.last


def read_season(text: str) -> Season:
    """Read `MM-DD..MM-DD`."""
    found = re.fullmatch(r"(\d\d)-(\d\d)\.\.(\d\d)-(\d\d)", text)
    try:
        if not found:
            raise ValueError
        first, last = (date(2000, int(found[i]), int(found[i + 1])) for i in (1, 3))
    except ValueError:
        raise InputError(
            f"season: expected MM-DD..MM-DD, such as 09-01..11-30, found {text!r}"
        ) from None
    return Season((first.month, first.day), (last.month, last.day))


def read_path_row(text: str) -> tuple[int, int]:
    """Read a WRS-2 path and row, `140/041`. There are 233 paths and 248 rows."""
    found = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text)
    if not found or not (1 <= int(found[1]) <= 233 and 1 <= int(found[2]) <= 248):
        raise InputError(f"path/row: expected one of WRS-2, such as 140/041, found {text!r}")
    return int(found[1]), int(found[2])


def read_area(text: str) -> BaseGeometry:
    """Read an area: `west,south,east,north` in degrees, or a vector file in any CRS.

    Returns:
        Its geometry in degrees of longitude and latitude (EPSG:4326).

    Raises:
        InputError: neither, or an area that is none.
    """
    if re.fullmatch(r"\s*-?[\d.]+\s*(,\s*-?[\d.]+\s*){3}", text):
        return _read_box(text)
    path = Path(text)
    if not path.exists():
        raise InputError(
            f"area: {text!r} is neither a file nor west,south,east,north in degrees, such as "
            "86.5,27.7,87.2,28.2"
        )
    try:
        frame = gpd.read_file(path)
    except Exception as error:  # GDAL's errors are many
        raise InputError(
            f"{path}: cannot be read as a vector file ({str(error).splitlines()[0]})"
        ) from error
    if frame.crs is None:
        raise InputError(f"{path}: says no CRS; set one in QGIS, then search again")
    shapes = frame.geometry.dropna()
    area = shapely.union_all(shapely.make_valid(shapes.to_crs(4326).values))
    if area.is_empty or not all(abs(v) <= 360 for v in area.bounds):
        raise InputError(f"{path}: holds no shape on the ground (is its CRS {frame.crs} right?)")
    return area


def _read_box(text: str) -> BaseGeometry:
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"area: expected four numbers, found {text!r}") from None
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise InputError(
            f"area: expected west,south,east,north in degrees with west < east and south < north, "
            f"found {text!r}; split an area that crosses 180°"
        )
    return box(west, south, east, north)


@dataclass(frozen=True)
class Criteria:
    """Which scenes are wanted.

    Attributes:
        area: in degrees; None for anywhere.
        first, last: days of acquisition (UTC), both included.
        season: days of the year; None for all.
        cloud: most cloud, per cent of the scene; None for any. A scene that was not assessed
            does not pass.
        path_rows: of WRS-2; empty for all.
        sensors: of `SENSORS`; empty for all.
    """

    area: BaseGeometry | None
    first: date
    last: date
    season: Season | None = None
    cloud: float | None = None
    path_rows: frozenset[tuple[int, int]] = frozenset()
    sensors: frozenset[str] = frozenset(SENSORS)

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise InputError(f"dates: {self.last} comes before {self.first}")
        if self.area is None and not self.path_rows:
            raise InputError("say where: an area, or paths and rows")

    @classmethod
    def read(
        cls,
        *,
        area: str | None,
        first: date,
        last: date,
        season: str | None,
        cloud: float | None,
        path_rows: Iterable[str],
        sensors: Iterable[str],
    ) -> Criteria:
        """From what people write, see `read_area`, `read_season` and `read_path_row`.

        Raises:
            InputError: one of them cannot be read.
        """
        return cls(
            area=None if area is None else read_area(area),
            first=first,
            last=last,
            season=None if season is None else read_season(season),
            cloud=cloud,
            path_rows=frozenset(read_path_row(text) for text in path_rows),
            sensors=frozenset(sensors),
        )

    def admits(self, item: Item) -> bool:
        day, cloud, ground = day_of(item), cloud_of(item), footprint(item)
        return (
            day is not None
            and self.first <= day <= self.last
            and (self.season is None or day in self.season)
            and (self.cloud is None or (cloud is not None and cloud <= self.cloud))
            and (not self.path_rows or path_row_of(item) in self.path_rows)
            and sensor_of(item) in (self.sensors or SENSORS)
            # A server that does not tell the ground has compared it itself.
            and (self.area is None or ground is None or self.area.intersects(ground))
        )


def api_named(conf: ApisConf, name: str | None) -> tuple[str, ApiConf]:
    """An API by its name in conf/landsat.yaml; the default where None."""
    name = name or conf.default
    if name not in conf.known:
        raise InputError(
            f"conf/landsat.yaml: apis.known has no '{name}'; there are {', '.join(conf.known)}"
        )
    return name, conf.known[name]


def service_of(conf: ApisConf, name: str | None) -> Service:
    name, api = api_named(conf, name)
    return Service(name, conf.patience, sign=api.sign, token=api.token)


def search(conf: ApisConf, criteria: Criteria, api: str | None = None) -> list[Item]:
    """Find scenes at a STAC API.

    What the API can filter by, it filters; all is tested here again. Of several processings of
    an acquisition the newest stays; its parts in several collections (reflectance and
    temperature at USGS) become one item, under the id of the first collection's.

    Returns:
        STAC items as the API gave them, ordered by day, path and row.

    Raises:
        InputError: no such API, or far too many scenes.
        ServiceError: the API is away, refuses, or answers what is no STAC.
    """
    name, known = api_named(conf, api)
    service = service_of(conf, name)
    days = f"{criteria.first}T00:00:00Z/{criteria.last}T23:59:59Z"
    asked = ask(
        service, known.url, known.collections, criteria.area, days=days, query=_query(criteria)
    )
    found = [item for item in asked if criteria.admits(item)]
    return sorted(
        newest(found, known.collections),
        key=lambda item: (day_of(item) or date.min, path_row_of(item) or (0, 0), item["id"]),
    )


def _query(criteria: Criteria) -> dict[str, Any] | None:
    query: dict[str, Any] = {}
    if criteria.cloud is not None:
        query["eo:cloud_cover"] = {"lte": criteria.cloud}
    if criteria.path_rows:
        for key, numbers in zip(
            ("path", "row"), zip(*criteria.path_rows, strict=True), strict=True
        ):
            query[f"landsat:wrs_{key}"] = {"in": sorted({f"{number:03}" for number in numbers})}
    return query or None


def newest(items: Sequence[Item], collections: Sequence[str]) -> list[Item]:
    """One item an acquisition: its newest processing, its parts put together."""
    scenes: dict[tuple[object, ...], list[Item]] = {}
    for item in items:
        scenes.setdefault(scene_key(item), []).append(item)
    rank = {name: place for place, name in enumerate(collections)}
    chosen = []
    for versions in scenes.values():
        last = max(versions, key=age_key)
        parts = [
            item
            for item in versions
            if item is last or (product_id(item) and product_id(item) == product_id(last))
        ]
        parts.sort(key=lambda item: rank.get(str(item.get("collection")), len(rank)))
        whole = dict(parts[0])
        for part in parts[1:]:
            whole["assets"] = part["assets"] | whole["assets"]
        chosen.append(whole)
    return chosen
