"""An asynchronous producer behind a plain iterator: it runs ahead, not away, and ends with its reader."""

import asyncio
import threading
import time

import pytest

from sail.serving.streaming import stream


def test_it_runs_ahead_of_the_reader_but_only_so_far():
    emitted = []

    async def produce(emit):
        for number in range(100):
            await emit(number)
            emitted.append(number)

    values = stream(produce, ahead=5)
    assert next(values) == 0
    time.sleep(0.3)
    assert 5 <= len(emitted) <= 6
    assert list(values) == list(range(1, 100))


def test_a_reader_that_leaves_ends_it_at_any_moment():
    for moment in range(30):
        ended = threading.Event()

        async def produce(emit, ended=ended):
            try:
                for number in range(10_000):
                    await emit(number)
                    await asyncio.sleep(0)
            finally:
                ended.set()

        values = stream(produce, ahead=3)
        for _ in range(moment):
            next(values)
        values.close()
        assert moment == 0 or ended.wait(10.0), "a generator that was never started has no producer"


def test_its_exception_is_raised_after_what_it_emitted():
    async def produce(emit):
        await emit(1)
        raise RuntimeError("broken")

    values = stream(produce, ahead=3)
    assert next(values) == 1
    with pytest.raises(RuntimeError, match="broken"):
        next(values)
