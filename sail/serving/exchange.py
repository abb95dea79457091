"""HTTP with one server: requests, JSON replies, and which failures may pass. Nothing is repeated here."""

import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any

import httpx

from sail.serving.errors import (
    DisconnectedError,
    OtherModelError,
    RequestRefusedError,
    ServerError,
    SlowError,
    TransientError,
)

_CONNECT_S = 5.0
UNIX = "unix:"
# uvicorn drops idle connections, and the one it answered a 500 on: reusing those is a race
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=0)
Json = dict[str, Any]


class Exchange:
    """One server's address (http://HOST:PORT or unix:PATH), and how it is talked to.

    timeout_setting: the setting that timeout_s comes from, named where it runs out. headers go with every request;
    through_proxy: whether the environment's proxies count.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        timeout_setting: str = "timeout_s",
        headers: Mapping[str, str] | None = None,
        through_proxy: bool = False,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._too_slow = f"no answer within {timeout_s:g} s ({timeout_setting})"
        self._options: dict[str, Any] = {
            "timeout": httpx.Timeout(timeout_s, connect=_CONNECT_S),
            "headers": dict(headers or {}),
            "trust_env": through_proxy,
            "verify": base_url.startswith("https:"),  # loading certificates costs more than a request
            "limits": _LIMITS,
        }
        self._socket = base_url.removeprefix(UNIX) if base_url.startswith(UNIX) else None
        self._root = "http://colocated" if self._socket else self.base_url
        transport = httpx.HTTPTransport(uds=self._socket, limits=_LIMITS) if self._socket else None
        self._http = httpx.Client(**self._options, transport=transport)

    def once(self, method: str, path: str, body: Json | None = None) -> Json:
        """The reply, or ServerError."""
        return _content(self._send(method, path, body))

    def done(self, method: str, path: str, body: Json | None = None) -> None:
        """A request whose reply says nothing but that it worked, or ServerError."""
        _refuse_failure(self._send(method, path, body))

    def answers(self, path: str) -> bool:
        """Whether a GET is answered with success, soon."""
        try:
            return self._http.get(f"{self._root}{path}", timeout=_CONNECT_S).is_success
        except httpx.TransportError:
            return False

    def open(self) -> httpx.AsyncClient:
        """What `post` sends with; a context manager of the event loop it is used in."""
        transport = httpx.AsyncHTTPTransport(uds=self._socket, limits=_LIMITS) if self._socket else None
        return httpx.AsyncClient(**self._options, transport=transport)

    async def post(self, http: httpx.AsyncClient, path: str, body: Json) -> Json:
        """The reply; TransientError for what may pass, ServerError for what will not."""
        try:
            reply = await http.post(f"{self._root}{path}", json=body)
        except httpx.ReadTimeout:
            raise SlowError(self._too_slow) from None
        except httpx.TransportError as error:
            raise DisconnectedError(_named(error)) from None
        return _content(reply)

    def _send(self, method: str, path: str, body: Json | None) -> httpx.Response:
        try:
            return self._http.request(method, f"{self._root}{path}", json=body)
        except httpx.TransportError as error:
            told = self._too_slow if isinstance(error, httpx.ReadTimeout) else _named(error)
            raise ServerError(f"{self.base_url}{path}: {told}") from None


def _content(reply: httpx.Response) -> Json:
    _refuse_failure(reply)
    try:
        content = reply.json()
    except ValueError:
        raise ServerError(f"{reply.url}: an answer that is no JSON: {reply.text[:200]!r}") from None
    if not isinstance(content, dict):
        raise ServerError(f"{reply.url}: an answer that is no JSON object: {reply.text[:200]!r}")
    return content


def _refuse_failure(reply: httpx.Response) -> None:
    if reply.is_success:
        return
    told = f"{reply.url}: HTTP {reply.status_code}: {reply.text[:500]}"
    if reply.is_server_error or reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise TransientError(told, reply.status_code, _wait_s(reply.headers.get("Retry-After", "")))
    if reply.status_code == httpx.codes.NOT_FOUND:
        raise OtherModelError(told, reply.status_code)
    raise RequestRefusedError(told, reply.status_code)


def _wait_s(told: str) -> float:
    """Retry-After (RFC 9110, 10.2.3): seconds, or a date; 0 where it says nothing."""
    if told.strip().isdecimal():
        return float(told)
    date = parsedate_tz(told)
    return 0.0 if date is None else max(0.0, mktime_tz(date) - time.time())


def _named(error: httpx.TransportError) -> str:
    return f"{type(error).__name__} {error}".strip()
