"""Requests spread over servers, and the one place that tries anything again.

Every request goes to the server with the fewest in flight. What fails in a way that may pass (a disconnect, a
timeout, a 5xx, an aborted sample) goes back to the queue, for whichever server is free next: the seed makes a second
try give the same bits, and a score is no draw. A server that fails rests a little, is then tried with a single request,
and is left alone after vllm.max_retries further failures in a row. One that did not answer in time is sent half as many
at once, and slowly more again as it answers. When the queue is empty, requests that a slow server holds for far longer
than any other took are sent a second time, to an idle one; the first answer counts. A server that others can reach is
looked at after every answer: one that was given other weights meanwhile ends the call.
"""

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any, Generic, TypeVar

import httpx

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings
from sail.serving.errors import (
    AbandonedError,
    DisconnectedError,
    OtherModelError,
    ServerError,
    ServerLostError,
    SlowError,
    TransientError,
)
from sail.serving.exchange import Exchange, Json
from sail.serving.streaming import Emit

_RPC = "/collective_rpc"
_FIRST_REST_S, _LONGEST_REST_S = 0.25, 8.0
_LONGEST_WAIT_S = 60.0  # that a server may ask for
_CURE_OF_A_LIMIT = " (it limits its rate: lower concurrency or raise max_retries)"
_POLL_S = 0.05
_RECOVERY = 8  # answers, in units of vllm.concurrency, until a server that was sent next to nothing is sent all again
_OVERDUE = 3.0  # times the slowest answer so far
_OVERDUE_AT_LEAST_S = 1.0
_WINDOW = 8  # requests beyond the first unfinished one that may be under way, in units of what is in flight

_CURE_OF_SLOWNESS = ". If the server lives it is slow: raise vllm.request_timeout_s, or lower vllm.concurrency"
_LOOK_S = 0.1  # answers that come so close to each other share a look

Weights = tuple[str | None, int]  # their version, and how often the server has been given any
_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")
Post = Callable[[str, Json], Awaitable[Json]]
"""(path, body) -> reply, of one server"""
Ask = Callable[[Post, _Request], Awaitable[_Answer]]
"""One question to one server; TransientError where another try may be answered"""


def weights_of(states: Sequence[Json]) -> Weights:
    """What `sail_state` of the workers says of the whole model."""
    return states[0]["version"], states[0]["num_changes"]


def other_weights(base_url: str) -> UserError:
    """What a run is told whose server somebody else has given weights."""
    return UserError(
        f"{base_url} was given other weights while this run sampled from it", where="vllm.server_urls",
        cure="One run at a time may use a server: give each its own, and run the same command again",
    )  # fmt: skip


async def patiently(ask: Callable[[], Awaitable[Json]], max_retries: int) -> Json:
    """The answer to a question that may be asked again (a judge's changes nothing on the server), after as long as the
    server asks for, at most a minute.

    ServerError once it has failed 1 + max_retries times, ServerLostError where nobody was reached at last.
    """
    for attempt in range(max_retries + 1):
        try:
            return await ask()
        except TransientError as error:
            if attempt == max_retries:
                kind = ServerLostError if isinstance(error, DisconnectedError) else ServerError
                cure = _CURE_OF_A_LIMIT if error.status == httpx.codes.TOO_MANY_REQUESTS else ""
                raise kind(f"failed {attempt + 1} times{cure}, at last with {error}") from None
            asked_for_s = min(error.wait_s, _LONGEST_WAIT_S)
        await asyncio.sleep(max(asked_for_s, min(_FIRST_REST_S * 2**attempt, _LONGEST_REST_S)))
    raise AssertionError("the last attempt returns or raises")


@dataclass(eq=False)
class Lane(Generic[_Request, _Answer]):
    """One server: where it is, how it is asked, and how it has been doing."""

    exchange: Exchange
    question: Ask[_Request, _Answer]
    holds: Weights | None = None  # what every answer must come from; None: nobody else can change it
    http: httpx.AsyncClient | None = None
    in_flight: int = 0
    failures: int = 0  # in a row
    share: float = 1.0  # of vllm.concurrency that it is sent; halved when it was too slow, answers raise it again
    rests_until: float = 0.0
    problem: str = ""
    lost: bool = False
    waiting: int = 0  # of those in flight: answered, and waiting for a look
    _look: asyncio.Task[None] | None = None

    def room(self, concurrency: int, now: float) -> bool:
        """Whether it may be sent a request: one at a time while it is failing."""
        allowed = 1 if self.failures else max(1, int(self.share * concurrency)) + self.waiting
        return not self.lost and now >= self.rests_until and self.in_flight < allowed

    def answered(self, concurrency: int) -> None:
        self.failures = 0
        self.share = min(1.0, self.share + 1 / (_RECOVERY * concurrency))

    def failed(self, started: float, error: ServerError, max_retries: int) -> None:
        """Count a failure, unless the request was sent before the last one was known."""
        self.problem = str(error)
        if started < self.rests_until:
            return
        if isinstance(error, SlowError):
            self.share /= 2
        self.failures += 1
        self.lost = self.failures > max_retries
        rest_s = min(_FIRST_REST_S * 2 ** (self.failures - 1), _LONGEST_REST_S)
        self.rests_until = time.monotonic() + rest_s

    async def ask(self, request: _Request) -> _Answer:
        assert self.http is not None
        answer = await self.question(partial(self.exchange.post, self.http), request)
        if self.holds is not None:
            await self._looked_at()
        return answer

    async def _looked_at(self) -> None:
        """A look at the server's weights that began after now."""
        if self._look is None:
            self._look = asyncio.create_task(self._look_soon())
        self.waiting += 1
        try:
            await asyncio.shield(self._look)
        finally:
            self.waiting -= 1

    async def _look_soon(self) -> None:
        await asyncio.sleep(_LOOK_S)
        self._look = None  # whoever comes from here on needs another
        assert self.http is not None
        reply = await self.exchange.post(self.http, _RPC, {"method": "sail_state", "kwargs": {}})
        if weights_of(reply["results"]) != self.holds:
            raise other_weights(self.exchange.base_url)


@dataclass(eq=False)
class _Flight:
    """One request on its way to one server."""

    position: int
    lane: Lane[Any, Any]
    started: float


@dataclass
class Dispatcher(Generic[_Request, _Answer]):
    """The requests of one call, until every one is answered or no server is left."""

    lanes: Sequence[Lane[_Request, _Answer]]
    requests: Sequence[_Request]
    settings: VllmSettings
    emit: Emit[tuple[int, _Answer]]
    stop: Event | None = None  # set by another thread: nobody waits for the answers any more
    _todo: list[int] = field(default_factory=list)
    _flights: dict[asyncio.Task[_Answer], _Flight] = field(default_factory=dict)
    _attempts: Counter[int] = field(default_factory=Counter)
    _finished: set[int] = field(default_factory=set)
    _first: int = 0  # every request before it is answered
    _slowest_s: float = 0.0

    def __post_init__(self) -> None:
        self._todo = list(range(len(self.requests)))
        self._landed: asyncio.Queue[asyncio.Task[_Answer]] = asyncio.Queue()
        self._window = _WINDOW * self.settings.concurrency * len(self.lanes)

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            for lane in self.lanes:
                lane.http = await stack.enter_async_context(lane.exchange.open())
            try:
                while len(self._finished) < len(self.requests):
                    if self.stop is not None and self.stop.is_set():
                        raise AbandonedError(f"{len(self._finished)} of {len(self.requests)} requests were answered")
                    self._launch()
                    await self._settle_next()
            finally:
                for task in self._flights:
                    task.cancel()
                await asyncio.gather(*self._flights, return_exceptions=True)

    def _launch(self) -> None:
        while self._todo and self._todo[0] < self._first + self._window and (lane := self._free_lane()):
            self._send(heapq.heappop(self._todo), lane)
        if not self._todo:
            for flight in self._overdue():
                lane = self._free_lane(other_than=flight.lane)
                if lane is not None and not lane.failures:
                    self._send(flight.position, lane)

    def _free_lane(self, other_than: Lane[_Request, _Answer] | None = None) -> Lane[_Request, _Answer] | None:
        now = time.monotonic()
        free = [lane for lane in self.lanes if lane is not other_than and lane.room(self.settings.concurrency, now)]
        return min(free, key=lambda lane: lane.in_flight, default=None)

    def _overdue(self) -> list[_Flight]:
        """Flights that take far longer than the slowest answer so far, and are the only one of their request."""
        if len(self.lanes) == 1 or not self._slowest_s:
            return []
        latest = time.monotonic() - max(_OVERDUE_AT_LEAST_S, _OVERDUE * self._slowest_s)
        copies = Counter(flight.position for flight in self._flights.values())
        return [flight for flight in self._flights.values() if flight.started < latest and copies[flight.position] == 1]

    def _send(self, position: int, lane: Lane[_Request, _Answer]) -> None:
        lane.in_flight += 1
        task = asyncio.create_task(lane.ask(self.requests[position]))
        self._flights[task] = _Flight(position, lane, time.monotonic())
        task.add_done_callback(self._landed.put_nowait)

    async def _settle_next(self) -> None:
        try:
            async with asyncio.timeout(_POLL_S):  # wait_for may swallow the cancellation of a reader that left
                task = await self._landed.get()
        except TimeoutError:
            return  # a lane may have rested enough, a request be overdue
        flight = self._flights.pop(task)
        flight.lane.in_flight -= 1
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            await self._answered(flight, task.result())
        elif isinstance(error, (TransientError, OtherModelError)):
            self._failed(flight, error)
        else:
            raise _placed(error, flight.position)

    async def _answered(self, flight: _Flight, answer: _Answer) -> None:
        flight.lane.answered(self.settings.concurrency)
        self._slowest_s = max(self._slowest_s, time.monotonic() - flight.started)
        if flight.position in self._finished:
            return
        self._finished.add(flight.position)
        while self._first in self._finished:
            self._first += 1
        for task, other in self._flights.items():
            if other.position == flight.position:
                task.cancel()
        await self.emit((flight.position, answer))

    def _failed(self, flight: _Flight, error: TransientError | OtherModelError) -> None:
        lane, position = flight.lane, flight.position
        lane.failed(flight.started, error, self.settings.max_retries)
        lane.lost |= isinstance(error, OtherModelError)
        self._attempts[position] += 1
        given_up = self._attempts[position] > self.settings.max_retries * len(self.lanes)
        if given_up or all(lane.lost for lane in self.lanes):
            told = "; ".join(f"{lane.problem} ({lane.exchange.base_url})" for lane in self.lanes if lane.problem)
            problem = f"a request failed {self._attempts[position]} times, at last with {told}"
            raise _placed(ServerLostError(problem + _CURE_OF_SLOWNESS * isinstance(error, SlowError)), position)
        under_way = any(other.position == position for other in self._flights.values())
        if position not in self._finished and not under_way:
            heapq.heappush(self._todo, position)


def _placed(error: BaseException, position: int) -> BaseException:
    """The error, with the place of its request among those asked."""
    if isinstance(error, ServerError):
        error.position = position
    return error
