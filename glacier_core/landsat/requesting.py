"""Asking a service over HTTP: never without a time limit, again where that may help, never for ever.

Addresses are told without their query, which may hold a signature.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from glacier_core.errors import ServiceError
from glacier_core.landsat.answers import (
    Passing,
    Stopped,
    length_of,
    plain,
    retry_after,
    told,
)
from glacier_core.landsat.apis import PatienceConf, SignConf, TokenConf, is_private

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be others a little later (RFC 9110, section 15; RFC 6585 for 429)."""

_CHUNK = 1 << 16  # bytes
_SLOWEST = 512  # bytes a second, over a whole timeout: less is a connection that hangs
_LARGEST_BODY = 1 << 26  # bytes; a page of 100 items has about 2 MB
_LONGEST_STEP = 60.0  # seconds between tries that nobody asked us to wait longer
_HOPS = 5
_TOKEN_MARGIN = 120.0  # seconds of life that a signature must still have


class LoginError(ServiceError):
    """A service answers, and wants a login or a token that it did not get."""


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    # Without an `auth` of ours, requests sends passwords of ~/.netrc.
    return request


@dataclass
class Service:
    """A service by its name, with what it needs to be asked, and our patience with it.

    Attributes:
        stop: set to give up all that is under way.
    """

    name: str
    patience: PatienceConf
    sign: SignConf | None = None
    token: TokenConf | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    _signatures: dict[str, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # --- again, where that may help ----------------------------------------------------------

    def patiently(self, what: str, attempt: Callable[[], _T]) -> _T:
        """Try until it works, waiting twice as long each time (give or take, so that many
        who failed together do not come back together), or as long as the service asks.

        Raises:
            ServiceError: `tries` in a row failed without getting further, or the service asks
                for a wait longer than `longest_wait_s`.
            Stopped: see `stop`.
        """
        failures = 0
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return attempt()
            except Passing as fault:
                failures = 1 if fault.advanced else failures + 1
                if failures >= self.patience.tries:
                    raise ServiceError(
                        f"{self.name}: {what}: {fault} ({failures} tries). Check the network, or "
                        "try again later"
                    ) from None
                self._pause(what, fault, failures)

    def _pause(self, what: str, fault: Passing, failures: int) -> None:
        step = min(self.patience.backoff_s * 2 ** (failures - 1), _LONGEST_STEP)
        wait = random.uniform(0.5, 1.0) * step
        if fault.wait_s is not None:
            if fault.wait_s > self.patience.longest_wait_s:
                raise ServiceError(
                    f"{self.name}: {what}: {fault}, and asks to wait {fault.wait_s:.0f} s; "
                    "try again after that time"
                ) from None
            wait = max(wait, fault.wait_s)
        _LOG.info("%s: %s: %s; again in %.1f s", self.name, what, fault, wait)
        if self.stop.wait(wait):
            raise Stopped

    # --- one request -------------------------------------------------------------------------

    @contextmanager
    def send(
        self, method: str, url: str, *, accepted: frozenset[int] = frozenset(), **more: Any
    ) -> Iterator[requests.Response]:
        """Send one request and yield the answer, its body not yet read.

        Args:
            method: of HTTP.
            url: where; signed and with a token, where it needs those.
            accepted: statuses beside 2xx that the caller wants to see.
            more: headers, json, params as of `requests`.

        Raises:
            Passing: no connection, no answer in time, or a status that may pass.
            ServiceError: any other refusal (LoginError: 401, 403), or a redirect that leaves https.
        """
        headers = {"Accept-Encoding": "identity"} | (more.pop("headers", None) or {})
        with requests.Session() as session:
            for _ in range(_HOPS):
                self._check_scheme(url)
                answer = self._once(session, method, url, headers, more)
                location = answer.headers.get("Location")
                if answer.status_code not in (301, 302, 303, 307, 308) or not location:
                    break
                target = urljoin(url, location)
                answer.close()
                self._check_redirect(url, target)
                url, more["params"] = target, None
                if answer.status_code == 303:
                    method, more["json"] = "GET", None
            else:
                raise ServiceError(f"{self.name}: {plain(url)} redirects without end")
            with answer:
                if not 200 <= answer.status_code < 300 and answer.status_code not in accepted:
                    self._refused(answer, url)
                yield answer

    def _once(
        self,
        session: requests.Session,
        method: str,
        url: str,
        headers: dict[str, str],
        more: dict[str, Any],
    ) -> requests.Response:
        address = self.signed(url)
        timeout = self.patience.timeout_s
        try:
            return session.request(
                method,
                address,
                headers=headers | self._secrets(url),
                timeout=(timeout, timeout),
                stream=True,
                allow_redirects=False,
                auth=_as_it_is,
                **more,
            )
        # The texts of these errors hold whole addresses, signatures included.
        except requests.exceptions.SSLError:
            raise ServiceError(
                f"{self.name}: {plain(url)}: its certificate is not trusted here. Is a proxy in "
                "between? REQUESTS_CA_BUNDLE names the certificates to trust"
            ) from None
        except requests.exceptions.Timeout:
            raise Passing(f"{plain(url)}: no answer within {timeout:g} s") from None
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError):
            raise Passing(f"{plain(url)}: no connection") from None
        except (requests.exceptions.RequestException, ValueError) as error:
            raise ServiceError(
                f"{self.name}: {plain(url)}: cannot be asked ({type(error).__name__}); is the "
                "address right?"
            ) from None

    def _check_scheme(self, url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ServiceError(f"{self.name}: {plain(url)}: not an address of http or https")

    def _check_redirect(self, url: str, target: str) -> None:
        old, new = urlsplit(url).scheme, urlsplit(target).scheme
        if new not in (old, "https"):
            raise ServiceError(
                f"{self.name}: {plain(url)} redirects from {old} to {new} ({plain(target)}), "
                "which is refused"
            )

    def _refused(self, answer: requests.Response, url: str) -> None:
        status, where = answer.status_code, plain(url)
        if status in _AGAIN:
            wait = retry_after(answer.headers.get("Retry-After"), datetime.now(UTC))
            raise Passing(f"{where}: answered {status} {answer.reason}", wait_s=wait)
        if status in (401, 403) and self._drop_signature(url):
            raise Passing(f"{where}: answered {status}, its signature had run out")
        if status in (401, 403):
            advice = (
                f"set the environment variable {self.token.env} to your token"
                if self.token and not os.environ.get(self.token.env)
                else "it wants a login that we do not have; ask another API (--api)"
            )
            raise LoginError(f"{self.name}: {where}: access refused ({status}); {advice}")
        if status in (404, 410):
            raise ServiceError(
                f"{self.name}: {where}: no longer there ({status}); search again, or check the "
                "address in conf/landsat.yaml"
            )
        raise ServiceError(f"{self.name}: {where}: refuses the request: {status} {told(answer)}")

    # --- secrets -----------------------------------------------------------------------------

    def _secrets(self, url: str) -> dict[str, str]:
        if self.token is None or urlsplit(url).hostname not in self.token.hosts:
            return {}
        secret = os.environ.get(self.token.env, "").strip()
        if not secret or not is_private(url):
            return {}
        bearer = self.token.header.lower() == "authorization" and " " not in secret
        return {self.token.header: f"Bearer {secret}" if bearer else secret}

    def _signer(self, url: str) -> str | None:
        """Who signs an address; None where it needs no signature.

        Signatures are asked for by storage account and container, the first word of a file's host
        and the first of its path, as the client of the Planetary Computer does (planetary-computer,
        `sas.get_token`). It gives them by collection too; those for `cop-dem-glo-30` were seen to
        be refused where its files lie.
        """
        parts = urlsplit(url)
        container, _, file = parts.path.lstrip("/").partition("/")
        if (
            self.sign is None
            or url.startswith(f"{self.sign.url}/")
            or parts.hostname not in self.sign.hosts
            or not is_private(url)
            or "sig=" in parts.query
            or not file
        ):
            return None
        return f"{self.sign.url}/{parts.hostname.partition('.')[0]}/{container}"

    def _drop_signature(self, url: str) -> bool:
        """Forget the signature if `url` was asked with one that had been used for a while."""
        with self._lock:
            return self._signatures.pop(self._signer(url) or "", None) is not None

    def signed(self, url: str) -> str:
        """The address with a signature, where it needs one."""
        signer = self._signer(url)
        if signer is None:
            return url
        with self._lock:
            signature, until = self._signatures.get(signer, ("", 0.0))
            if until - _TOKEN_MARGIN < time.time():
                answer = self.json("GET", signer)
                try:
                    end = datetime.fromisoformat(answer["msft:expiry"])
                    signature = str(answer["token"])
                except (KeyError, TypeError, ValueError):
                    raise ServiceError(
                        f"{self.name}: {signer}: expected a signature (token, msft:expiry) "
                        "and got something else; check apis in conf/landsat.yaml"
                    ) from None
                until = end.replace(tzinfo=end.tzinfo or UTC).timestamp()
                self._signatures[signer] = signature, until
            return f"{url}{'&' if urlsplit(url).query else '?'}{signature}"

    # --- bodies ------------------------------------------------------------------------------

    def chunks(self, answer: requests.Response) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            Passing: the connection broke or hangs.
            Stopped: see `stop`.
        """
        timeout = self.patience.timeout_s
        since, received = time.monotonic(), 0
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                chunk = answer.raw.read1(_CHUNK, decode_content=True)
            except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
                raise Passing(f"{plain(answer.url)}: the connection broke off") from None
            if not chunk:
                return
            yield chunk
            received += len(chunk)
            passed = time.monotonic() - since
            if passed > timeout:
                if received < _SLOWEST * passed:
                    raise Passing(f"{plain(answer.url)}: {received} bytes came in {passed:.0f} s")
                since, received = time.monotonic(), 0

    def text(self, method: str, url: str, **more: Any) -> str:
        """The body of an answer, asked for patiently.

        Raises:
            ServiceError: see `patiently` and `send`; or the body is no UTF-8, or endless.
        """

        def attempt() -> bytes:
            with self.send(method, url, **dict(more)) as answer:
                body = bytearray()
                for chunk in self.chunks(answer):
                    body += chunk
                    if len(body) > _LARGEST_BODY:
                        raise ServiceError(f"{self.name}: {plain(url)}: its answer has no end")
                if (length := length_of(answer)) is not None and length != len(body):
                    raise Passing(f"{plain(url)}: {len(body)} of {length} bytes came")
                return bytes(body)

        try:
            return self.patiently(plain(url), attempt).decode("utf-8")
        except UnicodeDecodeError:
            raise ServiceError(
                f"{self.name}: {plain(url)}: its answer is no text; check the address in "
                "conf/landsat.yaml"
            ) from None

    def json(self, method: str, url: str, **more: Any) -> Any:
        """As `text`, read as JSON."""
        try:
            return json.loads(self.text(method, url, **more))
        except ValueError:
            raise ServiceError(
                f"{self.name}: {plain(url)}: its answer is not JSON; check the address in "
                "conf/landsat.yaml"
            ) from None
