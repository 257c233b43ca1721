"""Items and files for the STAC server of the tests, and the settings to ask it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from small_landsat import make_item, make_product
from stac_server import Item, StacServer

from glacier_core.landsat.apis import ApisConf
from glacier_core.landsat.download import service_for
from glacier_core.landsat.requesting import Service

HERE = (86.5, 27.7, 87.1, 28.2)
"""The ground of a scene, west, south, east, north in degrees: Khumbu."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StacServer]:
    with StacServer(tmp_path / "server") as running:
        yield running


def ground_of(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def scene(
    product: str = "LC08_L2SP_140041_20201109_20210317_02_T1",
    *,
    cloud: float | None = 10.0,
    box: tuple[float, float, float, float] = HERE,
    part: str = "",
    **more: Any,
) -> Item:
    """An item without files, as APIs spell them: ids lack the day of processing.

    Args:
        product: Landsat's identifier.
        cloud: per cent; None leaves it out.
        box: west, south, east, north in degrees.
        part: `_SR` or `_ST` for the items of USGS, whose ids have the day of processing.
        more: properties.
    """
    words = product.split("_")
    day = words[3]
    properties = {
        "datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T04:41:00Z",
        "landsat:wrs_path": words[2][:3],
        "landsat:wrs_row": words[2][3:],
        "landsat:scene_id": f"{words[0][0::2]}XX{day}LGN00",
    } | more
    if cloud is not None:
        properties["eo:cloud_cover"] = cloud
    key, code = ("lwir11", "ST_B10") if part == "_ST" else ("red", "SR_B4")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": product + part if part else "_".join(words[:4] + words[5:]),
        "collection": {"_SR": "sr", "_ST": "st"}.get(part, "landsat"),
        "geometry": ground_of(*box),
        "bbox": list(box),
        "properties": properties,
        "links": [],
        "assets": {key: {"href": f"{{base}}/files/{product}_{code}.TIF"}},
    }


def offer(server: StacServer, *, keys: str = "common", checksums: bool = False, identity: str = "LC08_L2SP_140041_20150710_20200908_02_T1", place: str = "files", **more: Any) -> Item:  # fmt: skip
    """Put a small product with its files on the server, and its item into the catalogue.

    Args:
        server: whose.
        keys: spelling of the assets, as `make_item`.
        checksums: whether the item states them, as that of USGS does.
        identity: of the product.
        place: `files`, or `signed` for those that need a signature.
        more: for `make_product`.

    Returns:
        The item, its addresses complete.
    """
    folder = make_product(server.files / identity, identity=identity, spelling="json", **more)
    item = json.loads(make_item(folder, keys=keys).read_text())
    (folder / "item.json").unlink()
    for asset in item["assets"].values():
        name = asset["href"].removeprefix("./")
        if name.startswith("https"):
            continue
        if checksums:
            digest = hashlib.sha512((folder / name).read_bytes()).hexdigest()
            asset["file:checksum"] = "1340" + digest
        asset["href"] = f"{server.base}/{place}/{identity}/{name}"
    whole = scene(identity) | {"id": item["id"], "assets": item["assets"]}
    server.set_items([whole])
    return whole


def settings(server: StacServer, *, signs: bool = False, **patience: Any) -> dict[str, Any]:
    """The key `apis` of conf/landsat.yaml, for a server of the tests and little patience."""
    sign = {"by": "planetary-computer", "url": f"{server.base}/sas", "hosts": ["127.0.0.1"]}
    token = {"env": "TEST_KEY", "header": "X-Key", "hosts": ["127.0.0.1"]}
    patient = {"timeout_s": 5, "tries": 4, "backoff_s": 0.01, "longest_wait_s": 2, "at_once": 3}
    usual = {"url": server.base, "sign": sign if signs else None, "token": token}
    return {
        "default": "tests",
        "patience": patient | patience,
        "known": {
            "tests": usual | {"collections": ["landsat"]},
            "parts": usual | {"collections": ["sr", "st"]},
        },
    }


def conf(server: StacServer, **more: Any) -> ApisConf:
    return ApisConf.model_validate(settings(server, **more))


def service(server: StacServer, item: Item, **more: Any) -> Service:
    return service_for(conf(server, **more), item, "tests")


def catalog_project(root: Path, server: StacServer, **more: Any) -> Path:
    """A project's folder whose conf/landsat.yaml names the server."""
    (root / "conf").mkdir(parents=True)
    shutil.copyfile(REPOSITORY / "params.yaml", root / "params.yaml")
    content = yaml.safe_load((REPOSITORY / "conf/landsat.yaml").read_text())
    content["apis"] = settings(server, **more)
    (root / "conf/landsat.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return root
