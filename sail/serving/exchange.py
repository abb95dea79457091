"""HTTP with one server, and the one place that tries anything again."""

import asyncio
from typing import Any

import httpx

from sail.core.run_settings import VllmSettings
from sail.serving.errors import ServerError

_CONNECT_S = 5.0
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.25, 8.0
Json = dict[str, Any]


class Exchange:
    """Requests and JSON replies. Only seeded completions are repeated: a second try of those gives the same
    bits."""

    def __init__(self, base_url: str, settings: VllmSettings) -> None:
        self.base_url = base_url.rstrip("/")
        self._max_retries = settings.max_retries
        self._options: dict[str, Any] = {
            "timeout": httpx.Timeout(settings.request_timeout_s, connect=_CONNECT_S),
            "trust_env": False,  # no proxy between us and the server
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
        """The reply; disconnects, timeouts and 5xx are tried again vllm.max_retries times, then
        ServerError."""
        url, problem = f"{self.base_url}{path}", ""
        for attempt in range(self._max_retries + 1):
            if attempt:
                await asyncio.sleep(min(_FIRST_BACKOFF_S * 2 ** (attempt - 1), _LONGEST_BACKOFF_S))
            try:
                reply = await http.post(url, json=body)
            except httpx.TransportError as error:
                problem = _named(error)
                continue
            if not reply.is_server_error:
                return _content(reply)
            problem = _told(reply)
        raise ServerError(f"{url} failed {self._max_retries + 1} times, at last with {problem}")


def _content(reply: httpx.Response) -> Json:
    if not reply.is_success:
        raise ServerError(_told(reply))
    content: Json = reply.json()
    return content


def _told(reply: httpx.Response) -> str:
    return f"{reply.url}: HTTP {reply.status_code}: {reply.text[:500]}"


def _named(error: httpx.TransportError) -> str:
    return f"{type(error).__name__} {error}".strip()
