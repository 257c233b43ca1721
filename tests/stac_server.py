"""A STAC API with files, in a process of its own on 127.0.0.1, that misbehaves on demand.

`python stac_server.py FOLDER` serves the items in FOLDER/items.json and the files in
FOLDER/files; `StacServer` starts it for a test. `{base}` in items stands for its address.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

Item = dict[str, Any]

# --- the test's side -------------------------------------------------------------------------


class StacServer:
    """The server's process, and what a test tells and asks it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.set_items([])
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.base = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def __enter__(self) -> StacServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def set_items(self, items: list[Item]) -> None:
        (self.folder / "items.json").write_text(json.dumps(items))

    def fault(self, path: str, kind: str, *, times: int | None = None, **more: Any) -> None:
        """Misbehave at paths that match a regular expression, so many times (None: from now on).

        Kinds: status (status, headers, body), slow (seconds), trickle, cut (at), long, short,
        corrupt, unmarked, rangeless, redirect (to), conformless, get_paging, endless, forgetful
        (asks with If-Range get the whole file), other_part. With `unmarked`, a file comes without
        ETag and date.
        """
        self._tell("/_fault", {"path": path, "kind": kind, "times": times} | more)

    def mend(self) -> None:
        """Behave from now on."""
        self._tell("/_mend", {})

    def log(self, path: str = "") -> list[dict[str, Any]]:
        """Requests so far whose path matches: method, path, query, headers, body."""
        with urllib.request.urlopen(f"{self.base}/_log") as answer:
            seen = json.load(answer)
        return [request for request in seen if re.search(path, request["path"])]

    def forget(self) -> None:
        """Empty the log."""
        self._tell("/_forget", {})

    def _tell(self, path: str, value: Any) -> None:
        data = json.dumps(value).encode()
        with urllib.request.urlopen(self.base + path, data=data) as answer:
            answer.read()


# --- the server's side -----------------------------------------------------------------------

_CORE = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
_QUERY = "https://api.stacspec.org/v1.0.0/item-search#query"
_SIGNED = ("signed", "heights")
"""Containers whose files open only with their own signature."""


def _signature(container: str) -> str:
    return f"sig=short-lived-secret-of-{container}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.base = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        self.log: list[dict[str, Any]] = []
        self.faults: list[dict[str, Any]] = []

    def items(self) -> list[Item]:
        text = (self.folder / "items.json").read_text().replace("{base}", self.base)
        content: list[Item] = json.loads(text)
        return content

    def take_fault(self, path: str) -> dict[str, Any]:
        with self.lock:
            for fault in self.faults:
                if re.search(fault["path"], path) and fault["times"] != 0:
                    if fault["times"] is not None:
                        fault["times"] -= 1
                    return fault
        return {"kind": ""}

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the tests


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes) -> None:
        server, parts = self.server, urlsplit(self.path)
        if parts.path.startswith("/_"):
            self._control(parts.path, body)
            return
        seen = {"method": self.command, "path": parts.path, "query": parts.query}
        seen |= {"headers": {key.lower(): value for key, value in self.headers.items()}}
        with server.lock:
            server.log.append(seen | {"body": body.decode()})
        fault = server.take_fault(parts.path)
        if fault["kind"] == "slow":
            time.sleep(fault["seconds"])
        elif fault["kind"] == "status":
            headers = fault.get("headers", {})
            self._send(fault["status"], fault.get("body", "").encode(), headers)
            return
        elif fault["kind"] == "redirect":
            self._send(302, b"", {"Location": fault["to"].replace("{base}", server.base)})
            return
        if parts.path == "/":
            self._send_json(self._root(fault))
        elif parts.path == "/conformance":
            self._send_json({"conformsTo": [*_CORE, _QUERY]})
        elif parts.path == "/search":
            self._search(json.loads(body) if body else _from_query(parts.query), fault)
        elif parts.path.startswith("/collections/"):
            self._collection(parts.path.removeprefix("/collections/"))
        elif parts.path.startswith("/sas/"):
            until = datetime.now(UTC) + timedelta(seconds=fault.get("seconds", 3600))
            token = _signature(parts.path.rpartition("/")[2])
            self._send_json({"token": token, "msft:expiry": until.isoformat()})
        elif (place := parts.path.split("/")[1]) in _SIGNED and _signature(place) != parts.query:
            self._send(403, b"no signature for this container")
        elif place in ("files", *_SIGNED):
            self._file(parts.path.split("/", 2)[2], fault)
        else:
            self._send(404, b"nothing here")

    def _control(self, path: str, body: bytes) -> None:
        server = self.server
        with server.lock:
            if path == "/_fault":
                server.faults.append(json.loads(body))
            elif path == "/_mend":
                server.faults.clear()
            elif path == "/_forget":
                server.log.clear()
            log = list(server.log)
        self._send_json(log)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # --- the API -----------------------------------------------------------------------------

    def _root(self, fault: dict[str, Any]) -> dict[str, Any]:
        base = self.server.base
        root: dict[str, Any] = {"type": "Catalog", "id": "tests", "stac_version": "1.0.0"}
        root |= {"description": "items of the tests"}
        root["conformsTo"] = _CORE if fault["kind"] == "conformless" else [*_CORE, _QUERY]
        kinds = {"type": "application/geo+json", "rel": "search", "href": f"{base}/search"}
        links = [{"rel": rel, "href": f"{base}/", "type": "application/json"} for rel in _ROOTS]
        return root | {"links": [*links, kinds | {"method": "GET"}, kinds | {"method": "POST"}]}

    def _collection(self, name: str) -> None:
        if name in {item.get("collection") for item in self.server.items()}:
            self._send_json({"type": "Collection", "id": name})
        else:
            self._send(404, b"no such collection")

    def _search(self, asked: dict[str, Any], fault: dict[str, Any]) -> None:
        found = [item for item in self.server.items() if _matches(item, asked)]
        start = 0 if fault["kind"] == "endless" else int(asked.get("token", 0))
        limit = int(fault.get("limit", asked.get("limit", 10)))
        page: dict[str, Any] = {"type": "FeatureCollection", "links": []}
        page["features"] = found[start : start + limit]
        if start + limit < len(found) or fault["kind"] == "endless":
            href, token = f"{self.server.base}/search", start + limit
            link: dict[str, Any] = {"rel": "next", "type": "application/geo+json"}
            if fault["kind"] == "get_paging":
                plain = {key: asked[key] for key in ("datetime", "limit") if key in asked}
                pairs = {**plain, "limit": limit, "token": token}
                query = "&".join(f"{key}={value}" for key, value in pairs.items())
                link |= {"method": "GET", "href": f"{href}?{query}"}
            else:
                link |= {"method": "POST", "href": href, "merge": False}
                link["body"] = {**asked, "limit": limit, "token": str(token)}
            page["links"].append(link)
        self._send_json(page)

    # --- files -------------------------------------------------------------------------------

    def _file(self, name: str, fault: dict[str, Any]) -> None:
        path, kind = self.server.folder / "files" / name, fault["kind"]
        if not path.is_file():
            self._send(404, b"no such file")
            return
        data = path.read_bytes()
        mark = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if kind != "unmarked" and not fault.get("unmarked"):
            headers |= {"ETag": mark, "Last-Modified": formatdate(path.stat().st_mtime)}
        if kind == "corrupt":
            middle = len(data) // 2
            data = data[:middle] + b"\xff" * 50 + data[middle + 50 :]
        status, start = 200, self._range(mark, kind)
        if start is not None and start >= len(data):
            self._send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        if start is not None:
            start -= 7 if kind == "other_part" else 0
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        told = {"long": len(data) + 1000, "short": len(data) // 2}.get(kind, len(data))
        if kind == "short":
            data = data[:told]
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(told)}.items():
            self.send_header(key, value)
        self.end_headers()
        if kind == "trickle":
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                time.sleep(0.05)
        elif kind == "cut":
            self.wfile.write(data[: fault["at"]])
        else:
            self.wfile.write(data)
        if kind in ("cut", "long"):
            self.close_connection = True

    def _range(self, mark: str, kind: str) -> int | None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not found or kind == "rangeless":
            return None
        if self.headers.get("If-Range", mark) != mark or kind == "forgetful":
            return None
        return int(found[1])


_ROOTS = ("self", "root")


def _from_query(query: str) -> dict[str, Any]:
    asked: dict[str, Any] = {key: values[0] for key, values in parse_qs(query).items()}
    for key in ("collections", "bbox"):
        if key in asked:
            asked[key] = asked[key].split(",")
    return asked


def _matches(item: Item, asked: dict[str, Any]) -> bool:
    from shapely.geometry import box, shape

    properties = item.get("properties", {})
    if asked.get("collections") and item.get("collection") not in asked["collections"]:
        return False
    if asked.get("datetime"):
        first, last = asked["datetime"].split("/")
        if not first[:10] <= str(properties.get("datetime"))[:10] <= last[:10]:
            return False
    if item.get("geometry") and asked.get("bbox"):
        wanted = box(*(float(value) for value in asked["bbox"]))
        if not wanted.intersects(shape(item["geometry"])):
            return False
    if (
        item.get("geometry")
        and asked.get("intersects")
        and not shape(asked["intersects"]).intersects(shape(item["geometry"]))
    ):
        return False
    for key, tests in (asked.get("query") or {}).items():
        value = properties.get(key)
        if value is None or ("lte" in tests and value > tests["lte"]):
            return False
        if "in" in tests and value not in tests["in"]:
            return False
    return True


if __name__ == "__main__":
    served = _Server(Path(sys.argv[1]))
    print(served.server_port, flush=True)
    served.serve_forever()
