"""Fetching a scene: the assets of its item into a folder, whole or to be gone on with."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from tqdm import tqdm

from glacier_core.errors import InputError, ServiceError
from glacier_core.files import link_or_copy, write_json
from glacier_core.landsat.answers import Stopped, plain
from glacier_core.landsat.apis import ApisConf
from glacier_core.landsat.items import NEEDED, Asset, Item, problem, product_id, wanted_assets
from glacier_core.landsat.requesting import Service
from glacier_core.landsat.search import service_of
from glacier_core.landsat.transfer import SUFFIXES, bring, writing

_LOG = logging.getLogger(__name__)

ITEM = "item.json"
_SOURCE = "source.json"
"""In the folder of a download under way: of which version its files are."""

# Buckets of S3 whose files anybody gets by https, without an account. Items of earth-search give
# their tiles of Copernicus DEM as s3:// (https://copernicus-dem-30m.s3.amazonaws.com/readme.html).
_OPEN_BUCKETS = {"copernicus-dem-30m", "copernicus-dem-90m"}

_LOOK_AGAIN = 0.2  # seconds

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")


def read_items(path: Path) -> list[Item]:
    """Read a STAC item, or a collection of them such as `glacier search --out` writes.

    Raises:
        InputError: unreadable, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON") from None
    collection = isinstance(content, dict) and content.get("type") == "FeatureCollection"
    items = content.get("features") if collection else [content]
    if not isinstance(items, list):
        raise InputError(f"{path}: is a FeatureCollection without features")
    for item in items:
        if wrong := problem(item):
            raise InputError(f"{path}: {wrong}")
    return items


def service_for(conf: ApisConf, item: Item, name: str | None = None) -> Service:
    """Who gives the files of an item: the API that is named, else the one it came from by its
    links, else one that signs the host its files lie on; else nobody's, without secrets.
    """
    if name is not None:
        return service_of(conf, name)
    links = [str(link.get("href")) for link in item.get("links", [])]
    for known, api in conf.known.items():
        if any(href == api.url or href.startswith(f"{api.url}/") for href in links):
            return service_of(conf, known)
    addresses = [asset.record["href"] for asset in wanted_assets(item).values()]
    hosts = [host for href in addresses if (host := urlsplit(href).hostname)]
    for known, api in conf.known.items():
        if api.sign and set(hosts) & set(api.sign.hosts):
            return service_of(conf, known)
    return Service(hosts[0] if hosts else "download", conf.patience)


def fetch_item(
    item: Item, folder: Path, service: Service, *, coastal: bool = False, quiet: bool = False
) -> Path:
    """Download what is needed of a scene.

    Written are `folder/ID/`: the files under their own names, and `item.json`, whose addresses
    are relative to it. What came before a failure is kept in `folder/.ID.download/`, and the
    next call goes on there. A scene that is there in the same version is left as it is, without
    a request; another version replaces it as a whole.

    Args:
        item: as `read_items` or `search.search` give it.
        folder: of all products.
        service: see `service_for`.
        coastal: also the band `coastal` of Landsat 8 and 9.
        quiet: without a progress bar.

    Returns:
        The scene's folder.

    Raises:
        InputError: the item lacks what is needed, or its addresses are not for us to open.
        ServiceError: see `transfer.bring`; or another process fetches the same scene.
        StorageError: no room.
    """
    return fetch_assets(item, _assets(item, coastal), folder, service, quiet=quiet)


def fetch_assets(
    item: Item,
    assets: list[Asset],
    folder: Path,
    service: Service,
    *,
    quiet: bool = False,
    wait_s: float = 0.0,
) -> Path:
    """Download some assets of an item, as `fetch_item` does.

    Args:
        item, folder, service, quiet: see `fetch_item`.
        assets: of the item.
        wait_s: how long to wait for another process that fetches the same item.

    Returns:
        The item's folder.

    Raises:
        InputError, ServiceError, StorageError: see `fetch_item`.
    """
    _check_names(item, assets)
    urls = {asset.name: address_of(item, asset) for asset in assets}
    target = folder / str(item["id"])
    version = _version(item, assets)
    if _is_there(target, version, assets):
        _LOG.info("%s: is there already", target)
        return target
    with _own(folder / f".{item['id']}.download", wait_s) as work:
        if _is_there(target, version, assets):  # another process was faster
            shutil.rmtree(work)
            return target
        _begin(work, version, target)
        _bring_all(service, assets, urls, work, quiet=quiet)
        write_json(work / ITEM, _relative(item, assets, work))
        with writing(target):
            (work / _SOURCE).unlink()
            if target.exists():
                shutil.rmtree(target)
            os.replace(work, target)
    return target


def _assets(item: Item, coastal: bool) -> list[Asset]:
    assets = wanted_assets(item, coastal=coastal)
    lacking = [role for role in NEEDED if role not in assets]
    if lacking:
        raise InputError(
            f"item {item['id']}: has no asset {', '.join(lacking)} (it has "
            f"{', '.join(item['assets']) or 'none'}); expected a Collection 2 Level-2 item with "
            "surface reflectance (landsat-c2-l2, landsat-c2l2-sr)"
        )
    return list(assets.values())


def _check_names(item: Item, assets: list[Asset]) -> None:
    if not _SAFE.fullmatch(item["id"]):
        raise InputError(
            f"item {item['id']!r}: its id becomes a folder's name; expected letters, digits, '_', "
            "'-' and '.' alone"
        )
    names: dict[str, str] = {}
    for asset in assets:
        # Nothing may get out of the folder, or over what we write there ourselves.
        if not _SAFE.fullmatch(asset.name) or asset.name in (ITEM, _SOURCE):
            raise InputError(
                f"item {item['id']}: asset {asset.key}: {asset.name!r} cannot be a file's name here"
            )
        if not asset.name.lower().endswith(SUFFIXES):
            raise InputError(
                f"item {item['id']}: asset {asset.key}: expected a file of {', '.join(SUFFIXES)}, "
                f"found {asset.name!r}"
            )
        if names.setdefault(asset.name.lower(), asset.key) != asset.key:
            raise InputError(
                f"item {item['id']}: assets {names[asset.name.lower()]} and {asset.key} are both "
                f"called {asset.name}"
            )


def address_of(item: Item, asset: Asset) -> str:
    """Where an asset is fetched: its address, or an alternate one of http.

    Raises:
        InputError: it has none that we may open.
    """
    own = next(
        (str(link.get("href")) for link in item.get("links", []) if link.get("rel") == "self"), ""
    )
    first, others = str(asset.record["href"]), asset.record.get("alternate")
    others = others.values() if isinstance(others, dict) else []
    for href in [
        first,
        *(str(other.get("href", "")) for other in others if isinstance(other, dict)),
    ]:
        url = urljoin(own, href) if own.startswith(("http://", "https://")) else href
        if urlsplit(url).scheme == "s3" and urlsplit(url).hostname in _OPEN_BUCKETS:
            url = f"https://{urlsplit(url).hostname}.s3.amazonaws.com{urlsplit(url).path}"
        if urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname:
            return url
    scheme = urlsplit(first).scheme
    reason = {
        "": "is relative to a place that the item does not name. Where the files lie here "
        "already, give their folder to `glacier ingest`",
        "file": "is a file here: give its folder to `glacier ingest`",
        "s3": "needs an AWS account that pays for it. Ask another API (--api planetary-computer), "
        "or download it with `aws s3 cp --request-payer` and give the folder to `glacier ingest`",
    }.get(scheme, "cannot be opened")
    raise InputError(
        f"item {item['id']}: asset {asset.key}: only addresses of http and https are fetched; "
        f"{plain(first)} {reason}"
    )


def _version(item: Item, assets: list[Asset]) -> dict[str, Any]:
    """What differs when USGS has processed a scene anew. The same for `item.json`, read again."""
    properties = item["properties"]
    product = product_id(item)
    said = {key: properties.get(key) for key in ("landsat:scene_id", "version")}
    if product is None:  # whose day of processing says it
        said |= {key: properties.get(key) for key in ("created", "updated")}
    checksums = {
        asset.name: asset.record["file:checksum"]
        for asset in assets
        if "file:checksum" in asset.record
    }
    return {"product": product, "said": said, "checksums": checksums}


def _is_there(target: Path, version: dict[str, Any], assets: list[Asset]) -> bool:
    kept = _kept(target, version)
    return kept is not None and {asset.name for asset in assets} <= set(kept)


def whole_files(target: Path) -> tuple[Item, Mapping[str, Path]] | None:
    """The item of a folder that `fetch_assets` wrote, and its files by name, those that are whole;
    None if there is none.
    """
    try:
        (item,) = read_items(target / ITEM)
    except (InputError, ValueError):
        return None
    files = {
        asset.name: (target / asset.name, asset.record.get("file:size")) for asset in _all(item)
    }
    whole = {
        name: path
        for name, (path, size) in files.items()
        if path.is_file() and path.stat().st_size == size
    }
    return item, whole


def _all(item: Item) -> list[Asset]:
    return [Asset("", key, record) for key, record in item["assets"].items()]


def _kept(target: Path, version: dict[str, Any]) -> Mapping[str, Path] | None:
    """The whole files of a folder by name, if they are of a version; None if there is none."""
    found = whole_files(target)
    if found is None:
        return None
    item, files = found
    there = _version(item, _all(item))
    ours = version["checksums"].keys() & there["checksums"].keys()
    if {**there, "checksums": None} != {**version, "checksums": None} or any(
        there["checksums"][name] != version["checksums"][name] for name in ours
    ):
        return None
    return files


@contextmanager
def _own(work: Path, wait_s: float) -> Iterator[Path]:
    """A download's folder, for one process at a time."""
    until = time.monotonic() + wait_s
    while True:
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            handle = os.open(work, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ServiceError(
                        f"{work}: another process is fetching this; wait for it"
                    ) from None
                time.sleep(_LOOK_AGAIN)
                continue
            # Its owner may have renamed it between our opening and locking it.
            if work.exists() and os.path.samestat(work.stat(), os.fstat(handle)):
                yield work
                return
        finally:
            os.close(handle)


def _begin(work: Path, version: dict[str, Any], target: Path) -> None:
    """Make a download's folder ready: what is of another version goes, what is there is taken."""
    source = work / _SOURCE
    try:
        same = json.loads(source.read_text()) == version
    except (OSError, ValueError):
        same = False
    with writing(work):
        if not same:
            for path in work.iterdir():
                path.unlink()
            write_json(source, version)
        for name, path in (_kept(target, version) or {}).items():
            if not (work / name).exists():
                link_or_copy(path, work / name)


def _bring_all(
    service: Service, assets: list[Asset], urls: Mapping[str, str], work: Path, *, quiet: bool
) -> None:
    """Bring several at once. When one cannot be had the others stop, and keep what they have."""
    lock = threading.Lock()
    bar = tqdm(
        desc=work.name.removeprefix(".").removesuffix(".download"),
        unit="B",
        unit_scale=True,
        total=0,
        disable=True if quiet else None,
    )
    counted: set[str] = set()

    def one(asset: Asset) -> None:
        def progress(came: int, total: int | None) -> None:
            with lock:
                if total is not None and asset.name not in counted:
                    counted.add(asset.name)
                    bar.total += total
                bar.update(came)

        bring(service, asset, urls[asset.name], work, progress)

    with bar, ThreadPoolExecutor(service.patience.at_once) as pool:
        jobs = [pool.submit(one, asset) for asset in assets]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:  # also when the user interrupts
            if not all(job.done() and not job.cancelled() for job in jobs) or any(
                job.exception() for job in jobs
            ):
                service.stop.set()
            pool.shutdown(cancel_futures=True)
            service.stop.clear()
    errors = [job.exception() for job in jobs if not job.cancelled()]
    for error in errors:
        if error is not None and not isinstance(error, Stopped):
            raise error


def _relative(item: Item, assets: list[Asset], folder: Path) -> Item:
    """The item as it stands beside its files: no address leads elsewhere, none holds a secret."""
    records = {}
    for asset in assets:
        record = {key: value for key, value in asset.record.items() if key != "alternate"}
        size = (folder / asset.name).stat().st_size
        records[asset.key] = record | {"href": f"./{asset.name}", "file:size": size}
    links = []
    for link in item.get("links", []):
        href = str(link.get("href", ""))
        if link.get("rel") in ("self", "canonical", "via", "cite-as", "license") and (
            href.startswith(("http://", "https://"))
        ):
            rel = "canonical" if link["rel"] == "self" else link["rel"]
            links.append({"rel": rel, "href": plain(href)})
    return {**item, "links": links, "assets": records}
