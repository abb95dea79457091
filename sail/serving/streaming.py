"""An asynchronous producer read from plain code, cancelled as soon as nobody reads on."""

import asyncio
import queue
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")
Emit = Callable[[_T], Awaitable[None]]
_END: Any = object()


def stream(produce: Callable[[Emit[_T]], Coroutine[Any, Any, None]], *, ahead: int) -> Iterator[_T]:
    """What `produce` emits, as it comes; then its exception, if it raised one.

    The producer has a thread and an event loop of its own, so it goes on while the reader writes a shard, and
    it may be read from inside another event loop. It waits when `ahead` values lie unread: a slow disk slows
    the requests. A reader that stops early (break, Ctrl-C) cancels it.
    """
    emitted: queue.SimpleQueue[_T] = queue.SimpleQueue()
    running: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = queue.SimpleQueue()
    room = asyncio.Semaphore(ahead)

    async def emit(value: _T) -> None:
        await room.acquire()
        emitted.put(value)

    async def run() -> None:
        task = asyncio.ensure_future(produce(emit))
        running.put((asyncio.get_running_loop(), task))
        await task

    with ThreadPoolExecutor(1, thread_name_prefix="sail-client") as executor:
        finished = executor.submit(lambda: asyncio.run(run()))
        loop, task = running.get()
        finished.add_done_callback(lambda _: emitted.put(_END))
        try:
            while (value := emitted.get()) is not _END:
                with suppress(RuntimeError):  # the loop is closed: the producer has ended by itself
                    loop.call_soon_threadsafe(room.release)
                yield value
        finally:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
        finished.result()
