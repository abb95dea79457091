"""HTTP with one server, and the one place that tries anything again."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from sail.serving.errors import RequestRefusedError, ServerError

_CONNECT_S = 5.0
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.25, 8.0
_TOO_MANY_REQUESTS = 429
Json = dict[str, Any]


class Exchange:
    """Requests and JSON replies. Only what may be asked twice is repeated: a seeded completion, which gives the same
    bits again, and a judge's question, which changes nothing on the server.

    headers go with every request; through_proxy: whether the environment's proxies count.
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeout_s: float,
        max_retries: int,
        headers: Mapping[str, str] | None = None,
        through_proxy: bool = False,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._max_retries = max_retries
        self._options: dict[str, Any] = {
            "timeout": httpx.Timeout(timeout_s, connect=_CONNECT_S),
            "headers": dict(headers or {}),
            "trust_env": through_proxy,
            "verify": base_url.startswith("https:"),  # loading certificates costs more than a request
            # uvicorn drops idle connections, and the one it answered a 500 on: reusing those is a race
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=0),
        }
        self._http = httpx.Client(**self._options)

    def once(self, method: str, path: str, body: Json | None = None) -> Json:
        """The reply, or ServerError."""
        url = f"{self.base_url}{path}"
        try:
            reply = self._http.request(method, url, json=body)
        except httpx.TransportError as error:
            raise ServerError(f"{url}: {_named(error)}") from None
        return _content(reply)

    def answers(self, path: str) -> bool:
        """Whether a GET is answered with success, soon."""
        try:
            return self._http.get(f"{self.base_url}{path}", timeout=_CONNECT_S).is_success
        except httpx.TransportError:
            return False

    def open(self) -> httpx.AsyncClient:
        """What `post_seeded` sends with; a context manager of the event loop it is used in."""
        return httpx.AsyncClient(**self._options)

    async def post_seeded(self, http: httpx.AsyncClient, path: str, body: Json) -> Json:
        """The reply; disconnects, timeouts, HTTP 429 and 5xx are tried again max_retries times, then ServerError."""
        url, problem = f"{self.base_url}{path}", ""
        for attempt in range(self._max_retries + 1):
            if attempt:
                await asyncio.sleep(min(_FIRST_BACKOFF_S * 2 ** (attempt - 1), _LONGEST_BACKOFF_S))
            try:
                reply = await http.post(url, json=body)
            except httpx.TransportError as error:
                problem = _named(error)
                continue
            if not (reply.is_server_error or reply.status_code == _TOO_MANY_REQUESTS):
                return _content(reply)
            problem = _told(reply)
        raise ServerError(f"{url} failed {self._max_retries + 1} times, at last with {problem}")


def _content(reply: httpx.Response) -> Json:
    if not reply.is_success:
        raise RequestRefusedError(_told(reply), reply.status_code)
    try:
        content = reply.json()
    except ValueError:
        raise ServerError(f"{reply.url}: an answer that is no JSON: {reply.text[:200]!r}") from None
    if not isinstance(content, dict):
        raise ServerError(f"{reply.url}: an answer that is no JSON object: {reply.text[:200]!r}")
    return content


def _told(reply: httpx.Response) -> str:
    return f"{reply.url}: HTTP {reply.status_code}: {reply.text[:500]}"


def _named(error: httpx.TransportError) -> str:
    return f"{type(error).__name__} {error}".strip()
