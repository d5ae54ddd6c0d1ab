"""The server of the Materials Project, with patience: attempts, pauses and limits."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from cgnn.errors import DataError, MissingPackageError

ENDPOINT = "https://api.materialsproject.org/"
ATTEMPTS = 6
LONGEST_WAIT = 120.0
"""Cap of a pause between attempts (s), also for the server's ``Retry-After``."""
PAGE_SECONDS = 300.0
"""Longest time one answer may take (s)."""
PAGE_BYTES = 512 * 2**20
_READ_TIMEOUT = 60.0
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 520, 522, 524}
_LOG = logging.getLogger(__name__)


@dataclass
class Server:
    """The endpoint, with patience.

    Args:
        session: Sends the requests.
        endpoint: Address, with a slash at the end.
        key: Kept out of every message.
        wait: Called with the seconds of a pause.
    """

    session: Any
    endpoint: str
    key: str
    wait: Callable[[float], None]

    def get(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object at a path; passing troubles are waited out.

        Raises:
            DataError: The key is refused, the query is refused, or the server fails for good.
        """
        trouble = ""
        for attempt in range(ATTEMPTS):
            pause = min(2.0**attempt, LONGEST_WAIT)
            try:
                status, retry_after, body = self._ask(path, params)
            except _passing_errors() as error:
                trouble = self._hidden(f"no answer ({type(error).__name__})")
            else:
                answer = json_object(body) if status == 200 else None
                if answer is not None:
                    return answer
                trouble = self._judge(status, body, path)
                pause = min(retry_after, LONGEST_WAIT) if retry_after is not None else pause
            if attempt < ATTEMPTS - 1:
                _LOG.info("%s%s: %s; trying again in %.0f s", self.endpoint, path, trouble, pause)
                self.wait(pause)
        raise DataError(f"{self.endpoint}{path}: {trouble}, {ATTEMPTS} times; run the same command later to go on")

    def _ask(self, path: str, params: Mapping[str, Any]) -> tuple[int, float | None, bytes]:
        # redirects are not followed: the key would go along
        with self.session.get(
            self.endpoint + path, params=params, timeout=_READ_TIMEOUT, stream=True, allow_redirects=False
        ) as response:
            retry_after = _retry_after(response.headers.get("Retry-After"))
            return response.status_code, retry_after, _body(response)

    def _judge(self, status: int, body: bytes, path: str) -> str:
        """Return a passing trouble in words; raise for a lasting one."""
        where = f"{self.endpoint}{path}"
        if status in (401, 403):
            raise DataError(
                f"{where}: the API key was refused (status {status}); copy yours from "
                "https://materialsproject.org/api into the environment variable MP_API_KEY"
            )
        if status == 200:
            what = "a web page" if body.lstrip()[:1] == b"<" else "something that is not JSON"
            return f"the server sent {what} (is there a proxy or a log-in page in between?)"
        if status in _AGAIN:
            return f"the server answered with status {status}"
        if status == 404:
            raise DataError(f"{where}: not found (status 404); is the endpoint right?")
        said = self._hidden(" ".join(body[:300].decode("utf-8", "replace").split()))
        raise DataError(f"{where}: the request was refused with status {status}; check query and fields ({said})")

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "***")


def connect(api_key: str | None, endpoint: str | None, wait: Callable[[float], None]) -> tuple[Server, str | None]:
    """Return the server behind mp-api's session, and the version of its database."""
    key = (api_key or os.environ.get("MP_API_KEY") or "").strip()
    if len(key) != 32 or not key.isalnum():
        got = "there is none" if not key else "what is there is not one: a key has 32 letters and digits"
        raise DataError(
            f"an API key of the Materials Project is needed, and {got}; copy yours from "
            "https://materialsproject.org/api into the environment variable MP_API_KEY"
        )
    endpoint = endpoint or os.environ.get("MP_API_ENDPOINT") or ENDPOINT
    if not endpoint.startswith(("https://", "http://")):
        raise DataError(f"{endpoint}: an endpoint starts with https://")
    endpoint = endpoint if endpoint.endswith("/") else endpoint + "/"
    rester, adapter, session = _packages()
    with session() as plain:  # mp-api would wait here without a limit
        heartbeat = Server(plain, endpoint, key, wait).get("heartbeat", {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = rester(api_key=key, endpoint=endpoint, mute_progress_bars=True, use_document_model=False)
    except Exception as error:  # mp-api raises whatever its own code meets
        raise DataError(f"{endpoint}: mp-api could not connect: {error}".replace(key, "***")) from None
    # mp-api's own retries know no cap and no damaged answers
    for scheme in ("http://", "https://"):
        found.session.mount(scheme, adapter(max_retries=0))
    return Server(found.session, endpoint, key, wait), heartbeat.get("db_version")


def _packages() -> tuple[Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mp_api.client import MPRester
            from requests import Session
            from requests.adapters import HTTPAdapter
    except ImportError:
        raise MissingPackageError('downloading needs mp-api: pip install "cgnn[mp]"') from None
    return MPRester, HTTPAdapter, Session


def _passing_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError

    return (OSError, HTTPError, ValueError)


def _body(response: Any) -> bytes:
    """Return an answer's content; one that drips or never ends is given up."""
    deadline = time.monotonic() + PAGE_SECONDS
    parts: list[bytes] = []
    size = 0
    while part := response.raw.read1(2**16, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > PAGE_BYTES or time.monotonic() > deadline:
            raise TimeoutError("the answer takes too long")
    return b"".join(parts)


def json_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a text holds; None where it holds none."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
