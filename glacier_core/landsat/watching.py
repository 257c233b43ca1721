"""Looking for new scenes in the configured areas, and taking them in."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from glacier_core.config import Project
from glacier_core.errors import InputError
from glacier_core.landsat.apis import AreaConf
from glacier_core.landsat.conf import landsat_settings
from glacier_core.landsat.download import fetch_item, service_for
from glacier_core.landsat.items import Item, age_key, day_of, product_id, scene_key
from glacier_core.landsat.quality import Quality, check_scene, read_table, unusable, write_table
from glacier_core.landsat.scene import ingest_product
from glacier_core.landsat.search import (
    Criteria,
    search,
)
from glacier_core.landsat.terrain import DemError, dem_files

logger = logging.getLogger(__name__)

PRODUCTS, SCENES = "data/raw/products", "data/raw/landsat"


@dataclass(frozen=True)
class NewItem:
    """A scene that was found and is not here yet.

    Attributes:
        area: name of the area in conf/landsat.yaml.
        item: as the STAC API gave it.
    """

    area: str
    item: dict[str, Any]

    @property
    def product(self) -> str:
        """Its product id, which changes when USGS processes it anew."""
        return product_id(self.item) or str(self.item["id"])

    @property
    def scene(self) -> str:
        """Name of the acquisition, whatever version: that which its file gets."""
        key = scene_key(_named(self.product))
        if len(key) == 1:  # an id of another kind
            return self.product
        sensor, path, row, day = key
        return f"{sensor}_{path:03}{row:03}_{day:%Y%m%d}"


def _named(product: str) -> Item:
    """An item that says nothing but the id of its product."""
    return {"id": product, "properties": {}, "assets": {}}


def _age(product: str) -> tuple[str, bool]:
    """Day of processing, and whether final: sorts the versions of a scene, the newest last."""
    return age_key(_named(product))[:2]


def once_each(found: Iterable[NewItem]) -> list[NewItem]:
    """Every scene once, in its newest version: areas overlap, and their APIs may differ."""
    newest: dict[str, NewItem] = {}
    for one in found:
        other = newest.setdefault(one.scene, one)
        if _age(one.product) > _age(other.product):
            newest[one.scene] = one
    return list(newest.values())


def area_criteria(project: Project, area: AreaConf, first: date, last: date) -> Criteria:
    """What is wanted in a configured area.

    Raises:
        InputError: area, season, paths or rows cannot be read.
    """
    place = area.area if "," in area.area else str(project.root / area.area)
    return Criteria.read(
        area=place,
        first=first,
        last=last,
        season=area.season,
        cloud=area.cloud,
        path_rows=area.path_rows,
        sensors=area.sensors,
    )


def find_new(project: Project, name: str, *, today: date, days: int) -> list[NewItem]:
    """Scenes of an area that were acquired lately and are not in `quality.csv` yet.

    A version newer than that in the table is new; an older one, which another API may still have,
    is not, or two APIs would replace each other's scenes for ever.

    The days that are looked back on should be many more than those between two looks: what a
    missed run, a late delivery or a wrong clock left out is found by the next one.

    Args:
        project: its conf/landsat.yaml names the area.
        name: of the area.
        today: the last day of interest.
        days: before it.

    Raises:
        InputError: there is no such area, or it cannot be read.
        ServiceError: the API does not answer.
    """
    conf = landsat_settings(project)
    if name not in conf.areas:
        raise InputError(
            f"conf/landsat.yaml: no area '{name}'; there are {', '.join(conf.areas) or 'none'}"
        )
    area = conf.areas[name]
    found = search(
        conf.apis, area_criteria(project, area, today - timedelta(days=days), today), area.api
    )
    rows = read_table(project)
    products = {row["product"] for row in rows.values()}

    def known(one: NewItem) -> bool:
        row = rows.get(one.scene)
        return one.product in products or (
            row is not None and _age(row["product"]) >= _age(one.product)
        )

    return [one for one in (NewItem(name, item) for item in found) if not known(one)]


def take_in(project: Project, new: NewItem) -> Quality:
    """Fetch a scene, make it ready, look at it, and enter it into `quality.csv`.

    A scene that can never be used (its item lacks bands, its files are damaged) is entered as
    rejected, so that nobody fetches it again until it is processed anew.

    Raises:
        InputError: a setting or the DEM cannot be used. That is not the scene's fault, and nothing
            is entered.
        ServiceError: it cannot be fetched now; nothing is entered, the next look finds it again.
        StorageError: no room.
    """
    conf = landsat_settings(project)
    _ = project.postprocess, project.params
    if conf.dem_path is not None:
        dem_files(project.root / conf.dem_path)
    area = conf.areas[new.area]
    service = service_for(conf.apis, new.item, area.api or conf.apis.default)
    try:
        folder = fetch_item(
            new.item, project.root / PRODUCTS, service, coastal="coastal" in conf.bands, quiet=True
        )
        path = ingest_product(project, folder, project.root / SCENES)
    except DemError:
        raise
    except InputError as error:
        day = day_of(new.item)
        quality = unusable(new.scene, new.product, day.isoformat() if day else None, error)
    else:
        quality = check_scene(project, path, product=new.product)
    write_table(project, [quality])
    logger.info("%s: %s %s", quality.scene, quality.verdict, "; ".join(quality.reasons))
    return quality
