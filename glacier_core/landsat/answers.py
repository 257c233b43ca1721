"""What services answer over HTTP: how long, whether it may be told, when to come back."""

from __future__ import annotations

import email.utils
import http.client
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3


class Stopped(Exception):
    """The work was given up elsewhere."""


class Passing(Exception):
    """A fault that may be gone at the next try.

    Attributes:
        wait_s: how long the service asks us to wait.
        advanced: whether the try got further than all before it.
    """

    def __init__(self, text: str, *, wait_s: float | None = None, advanced: bool = False) -> None:
        super().__init__(text)
        self.wait_s = wait_s
        self.advanced = advanced


def plain(url: str) -> str:
    """An address without query, fragment and password, which may be told."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds that a header Retry-After asks for, given as a number or as a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    try:
        return max(0.0, float(int(text)))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())


def length_of(answer: requests.Response) -> int | None:
    """Bytes that a body should have; None where that is not told, or counts packed bytes."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        return None
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def told(answer: requests.Response) -> str:
    """What a service says about its refusal, at most a line."""
    try:
        text = answer.raw.read(2000, decode_content=True).decode("utf-8", "replace")
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
        return str(answer.reason)
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return words[:200] or str(answer.reason)
