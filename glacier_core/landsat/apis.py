"""The keys `apis` and `areas` of conf/landsat.yaml: whom to ask for scenes, and where."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from glacier_core.settings import NAME, Checked, Count, Positive

SENSORS = ("tm", "etm", "oli")
Sensor = Literal["tm", "etm", "oli"]

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent there: TLS, or this machine itself."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in _LOOPBACK


def _http(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected an address that begins with https://, found {url!r}")
    if parts.username or parts.password or parts.query:
        raise ValueError(f"{parts.hostname}: write no password and no key into an address")
    return url.rstrip("/")


Address = Annotated[str, AfterValidator(_http)]
Hosts = Annotated[list[str], Field(min_length=1)]


class TokenConf(Checked):
    """A secret of the user's, by the name of the environment variable that holds it.

    Without the variable, requests go without it. It is sent to `hosts` alone.
    """

    env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
    header: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]
    hosts: Hosts


class SignConf(Checked):
    """Files that open only with a short-lived signature, which `url`/ACCOUNT/CONTAINER gives to
    anybody, for files on ACCOUNT.blob.core.windows.net/CONTAINER/.

    The signature is appended to the addresses of files on `hosts` alone.
    """

    by: Literal["planetary-computer"]
    url: Address
    hosts: Hosts

    @model_validator(mode="after")
    def _unread(self) -> SignConf:
        if not is_private(self.url):
            raise ValueError(f"{self.url}: signatures need https")
        return self


class ApiConf(Checked):
    """A STAC API. Of scenes that lie in several collections, the first collection leads."""

    url: Address
    collections: Annotated[list[str], Field(min_length=1)]
    sign: SignConf | None
    token: TokenConf | None


class PatienceConf(Checked):
    """How long to wait for services, and how often to ask again."""

    timeout_s: Positive
    tries: Count
    backoff_s: Positive
    longest_wait_s: Positive
    at_once: Annotated[int, Field(ge=1, le=16)]


class ApisConf(Checked):
    default: str
    patience: PatienceConf
    known: Annotated[dict[str, ApiConf], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> ApisConf:
        for name in self.known:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"API '{name}': use letters, digits, '_' and '-' alone")
        if self.default not in self.known:
            raise ValueError(f"default: '{self.default}' is not among {', '.join(self.known)}")
        return self


class AreaConf(Checked):
    """An area to look at again and again, with what is wanted there.

    Attributes:
        area: vector file, or `west,south,east,north` in degrees.
        season: `MM-DD..MM-DD`, both included; may pass the turn of the year.
        cloud: most cloud, per cent of the scene.
        path_rows: `PPP/RRR` of WRS-2; an empty list for all.
        sensors: an empty list for all.
        api: one of `apis.known`; null for the default.
    """

    area: str
    season: str | None
    cloud: Annotated[float, Field(ge=0, le=100)] | None
    path_rows: list[str]
    sensors: list[Sensor]
    api: str | None
