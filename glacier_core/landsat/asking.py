"""Asking a STAC API: every item of some collections that touches an area, page after page."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import shapely
from pystac_client import Client
from pystac_client.conformance import ConformanceClasses
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry import box, mapping
from shapely.geometry.base import BaseGeometry

from glacier_core.errors import InputError, ServiceError
from glacier_core.landsat.answers import Stopped, plain
from glacier_core.landsat.items import Item, problem, product_id
from glacier_core.landsat.requesting import Service

_PAGE = 100
_MOST = 10_000
"""Items looked at in one search: some 30 years of ten neighbouring scenes."""

_VERTICES = 200  # of an area as it is sent; finer ones are tested here


class _Asking(StacApiIO):
    """Requests of pystac-client by our own rules: time limits, patience, no secrets."""

    def __init__(self, service: Service) -> None:
        super().__init__(max_retries=None)
        self._service = service

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        how = (method or "GET").upper()
        body = {"json": parameters} if how == "POST" else {"params": parameters or None}
        return self._service.text(how, href, headers=headers, **body)


def ask(
    service: Service,
    url: str,
    collections: Sequence[str],
    area: BaseGeometry | None,
    *,
    days: str | None = None,
    query: dict[str, Any] | None = None,
) -> Iterable[Item]:
    """The items of an API's collections.

    Args:
        service: whose.
        url: of the API.
        collections: by their ids.
        area: in degrees; None for anywhere. It is sent coarsely: what touches it has to be tested.
        days: interval of time (RFC 3339), both ends included; None for all.
        query: of STAC's extension `query`; left out where the API has not got it.

    Raises:
        InputError: far too many items, or nothing to choose them by.
        ServiceError: the API is away, refuses, or answers what is no STAC.
    """
    items: dict[tuple[str, ...], Item] = {}
    try:
        # pystac-client warns where a service does not say what it can; that is tested here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = Client.open(url, stac_io=_Asking(service))
            if not client.conforms_to(ConformanceClasses.QUERY):
                query = None
            if area is None and query is None:
                raise InputError(
                    f"{service.name}: cannot search by path and row alone; give an area too"
                )
            asked = client.search(
                collections=list(collections),
                datetime=days,
                limit=_PAGE,
                query=query,
                **_where(area),
            )
            for page in asked.pages_as_dicts():
                before = len(items)
                for item in page["features"]:
                    if wrong := problem(item):
                        raise ServiceError(f"{service.name}: {url}: its answer {wrong}")
                    names = str(item.get("collection")), item["id"], str(product_id(item))
                    items[names] = item
                if len(items) == before:
                    raise ServiceError(
                        f"{service.name}: {url}: gives the same page of results again and again"
                    )
                if len(items) > _MOST:
                    raise InputError(
                        f"{service.name}: more than {_MOST} items; search a smaller area or fewer "
                        "years"
                    )
    except (InputError, ServiceError, Stopped):
        raise
    # What pystac-client makes of rubbish: errors of many types.
    except Exception as error:
        raise ServiceError(
            f"{service.name}: {url}: its answer is not that of a STAC API "
            f"({type(error).__name__}); check the address in conf/landsat.yaml, or try later"
        ) from error
    return items.values()


def _where(area: BaseGeometry | None) -> dict[str, Any]:
    if area is None:
        return {}
    if area.equals(box(*area.bounds)):
        return {"bbox": list(area.bounds)}
    hull = area.convex_hull
    if shapely.get_num_coordinates(hull) > _VERTICES:
        hull = box(*area.bounds)
    return {"intersects": mapping(hull)}


def exists(service: Service, url: str) -> bool:
    """Whether a service has something at an address.

    Raises:
        ServiceError: it is away, or refuses.
    """

    def attempt() -> bool:
        with service.send("GET", url, accepted=frozenset({404})) as answer:
            return answer.status_code != 404

    return service.patiently(plain(url), attempt)
