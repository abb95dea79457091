"""A conversation's score by a vLLM server in pooling mode: what is asked, what comes back, and the check between.

The head of a decoder is read at the last token that is not the padding id (transformers); vLLM reads it at the last
token. A causal model's state there does not see what follows, so what follows is left out of the request.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sail.serving.errors import ServerError

CLASSIFY = "/classify"


async def ask_score(
    post: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]], row: Sequence[int], *, model: str, pad_id: int
) -> float:
    """r of one conversation's token ids, asked once (sail.serving.dispatch.Ask)."""
    read = up_to_the_head(row, pad_id)
    body = {"model": model, "input": read, "use_activation": False}  # the raw output, no sigmoid of it
    return read_score(await post(CLASSIFY, body), len(read))


def up_to_the_head(row: Sequence[int], pad_id: int) -> list[int]:
    """The ids as far as the one the head is read at: the last that is no padding id, the first where all are."""
    last = max((place for place, token_id in enumerate(row) if token_id != pad_id), default=0)
    return list(row[: last + 1])


def read_score(reply: dict[str, Any], num_tokens: int) -> float:
    """The one output, or ServerError if the reply is not what was asked."""
    rows, read = reply["data"], reply["usage"]["prompt_tokens"]
    if len(rows) != 1 or read != num_tokens:
        raise ServerError(f"sent one row of {num_tokens} tokens, the server read {len(rows)} of {read}")
    outputs = rows[0]["probs"]
    if len(outputs) != 1 or not math.isfinite(outputs[0]):
        raise ServerError(f"a reward model has one finite output, the server answered {outputs[:4]}")
    return float(outputs[0])
