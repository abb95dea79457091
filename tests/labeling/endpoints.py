"""Real chat endpoints on this machine, and the stage that asks them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sail.core.artifacts import Artifact
from sail.core.labeler_settings import JudgeLabeler
from sail.core.records import PairVerdict
from sail.core.store import Store
from sail.labeling.labelers.judge import judge_comparer
from sail.labeling.verdicts import compare_responses
from sail.testbed.judge import MODEL, Json, JudgeServer, Reply


class Recorder:
    """A reply function that remembers what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.asked: list[Json] = []

    def __call__(self, body: Json) -> tuple[int, bytes]:
        self.asked.append(body)
        return self.reply(body)


@contextmanager
def serving(reply: Reply, api_key: str | None = None) -> Iterator[JudgeServer]:
    with JudgeServer(reply, api_key=api_key) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def judge_settings(server: JudgeServer, **changes: Any) -> JudgeLabeler:
    quick = {"url": server.url, "model": MODEL, "max_retries": 0, "timeout_s": 5.0, "max_error_share": 1.0}
    return JudgeLabeler(**(quick | changes))


def compared(store: Store, responses: Artifact, settings: JudgeLabeler, which: str = "all") -> Artifact:
    return compare_responses(store, responses, judge_comparer("judge", settings), which)  # type: ignore[arg-type]


def read_verdicts(artifact: Artifact) -> list[PairVerdict]:
    return artifact.read(PairVerdict, "pair_verdicts")
