"""Chat completions of any OpenAI-compatible endpoint, many at a time, a failure of one being no failure of the rest."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from sail.serving.dispatch import patiently
from sail.serving.errors import ServerError
from sail.serving.exchange import Exchange, Json
from sail.serving.streaming import Emit, stream

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_V1, _COMPLETIONS = "/v1", "/chat/completions"
_AHEAD = 256  # answers nobody has read yet
Outcome = Json | ServerError
_Numbered = tuple[int, Outcome]


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """Where to ask and how patiently. The key stays in memory: it is part of no recipe, record or message."""

    url: str  # with or without /v1
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    max_retries: int = 4
    concurrency: int = 16
    ours: bool = False  # a server of the run: the environment's proxies do not count

    def ask_many(self, bodies: Sequence[Mapping[str, Any]]) -> Iterator[_Numbered]:
        """(position, reply or what went wrong) of every request as it ends, `concurrency` of them in flight.

        A reply is the JSON of /v1/chat/completions, unread. A reader that stops early cancels the rest.
        """
        return stream(lambda emit: self._ask_all(bodies, emit), ahead=_AHEAD) if bodies else iter(())

    async def _ask_all(self, bodies: Sequence[Mapping[str, Any]], emit: Emit[_Numbered]) -> None:
        exchange, todo = self._exchange(), iter(enumerate(bodies))

        async with exchange.open() as http:

            async def work() -> None:
                for position, body in todo:
                    try:
                        ask = partial(exchange.post, http, _COMPLETIONS, dict(body))
                        outcome: Outcome = await patiently(ask, self.max_retries)
                    except ServerError as error:
                        outcome = error
                    await emit((position, outcome))

            workers = [asyncio.create_task(work()) for _ in range(min(self.concurrency, len(bodies)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def _exchange(self) -> Exchange:
        base = self.url.rstrip("/")
        return Exchange(
            base if base.endswith(_V1) else base + _V1,
            timeout_s=self.timeout_s,
            headers={"Authorization": f"Bearer {self.api_key}"} if self.api_key else {},
            through_proxy=not self.ours and urlsplit(self.url).hostname not in _LOOPBACK,
        )
