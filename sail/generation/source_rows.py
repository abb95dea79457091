"""One row of user data, whatever its columns are called: (prompt, responses, verdict)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from operator import itemgetter
from typing import Any

from sail.core.errors import UserError
from sail.core.records import Message
from sail.core.run_settings import DataSettings

_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_ASSISTANT = "\n\nAssistant:"
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row of user data: a prompt with no response, one (a demonstration), or a chosen and a rejected one."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()
    is_pair: bool = False
    thumb: bool | None = None  # of a single response
    p_chosen: float = 1.0  # of a pair: P(chosen beats rejected), 1/2 for a tie
    margin: float | None = None  # of a pair: how much better the chosen one is


def parse_row(raw: Mapping[str, Any], source: DataSettings, where: str) -> SourceRow:
    """The row by its columns, renamed as the source says; UserError at `where` for one that cannot be understood."""
    raw = dict(raw) | {ours: raw[theirs] for ours, theirs in source.columns.items() if theirs in raw}
    if source.format == "hh" or (source.format == "auto" and _looks_like_hh(raw)):
        return _parse_hh(raw, where)
    if "better_response_id" in raw:
        raw = _numbered_pair(raw, where)
    if "chosen" in raw and "rejected" in raw:
        return _parse_pair(raw, where)
    if "messages" in raw or "conversations" in raw:
        messages = _messages(raw.get("messages") or raw.get("conversations"), where)
        return _rated(_demonstration(messages), raw, where)
    if "prompt" not in raw:
        raise UserError(
            f"no column 'prompt', found {sorted(raw)}",
            where=where,
            cure="Name it with columns: {prompt: <your column>}",
        )
    prompt = _messages(raw["prompt"], where)
    answer = raw.get("completion", raw.get("response"))
    row = SourceRow(prompt) if answer is None else SourceRow(prompt, (_text(answer, where),), (None,))
    return _rated(row, raw, where)


def _rated(row: SourceRow, raw: Mapping[str, Any], where: str) -> SourceRow:
    """A single response with the score and the thumb (label: true or false, 1 or 0) that stand beside it."""
    score, label = raw.get("score"), raw.get("label")
    if not row.responses:
        return row
    if label not in (None, True, False, 0, 1):
        raise UserError(
            f"label is {label!r}", where=where, cure="A thumb is true or false (1 or 0); a number is a score"
        )
    if score is not None and not isinstance(score, (int, float)):
        raise UserError(f"score is {score!r}", where=where, cure="Give a number")
    return replace(row, scores=(None if score is None else float(score),), thumb=None if label is None else bool(label))


def _parse_pair(raw: Mapping[str, Any], where: str) -> SourceRow:
    chosen, rejected = raw["chosen"], raw["rejected"]
    if raw.get("prompt") is not None:
        prompt = _messages(raw["prompt"], where)
    elif raw.get("conversations") is not None:
        prompt = _messages(raw["conversations"], where)
    else:
        prompt = _messages(chosen, where)[:-1]
    if not prompt or prompt[-1]["role"] == "assistant":
        raise UserError("the prompt must end with a user's turn", where=where, cure="Check the columns of this source")
    scores = (_score(raw, "chosen"), _score(raw, "rejected"))
    texts = (_text(chosen, where), _text(rejected, where))
    return SourceRow(prompt, texts, scores, True, None, _p_chosen(raw, where), _margin(raw, where))


def _p_chosen(raw: Mapping[str, Any], where: str) -> float:
    """1 unless the row has a column p_chosen, or says with tie: true (or 1) that neither won."""
    value, tie = raw.get("p_chosen"), raw.get("tie")
    if tie not in (None, True, False, 0, 1):
        raise UserError(f"tie is {tie!r}", where=where, cure="It is true or false (1 or 0)")
    if value is None:
        return 0.5 if tie else 1.0
    if not isinstance(value, (int, float)) or not 0.5 <= value <= 1 or (tie and value != 0.5):
        raise UserError(
            f"p_chosen is {value!r}{' in a tie' if tie else ''}", where=where,
            cure="It is a probability from 1/2 (a tie) to 1: call the likelier response chosen",
        )  # fmt: skip
    return float(value)


def _margin(raw: Mapping[str, Any], where: str) -> float | None:
    value = raw.get("margin")
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"margin is {value!r}", where=where, cure="It is a finite number, 0 or above")
    return float(value)


def _numbered_pair(raw: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """PKU-SafeRLHF's columns: response_0, response_1 and the number of the better one."""
    better = raw["better_response_id"]
    if better not in (0, 1) or not {"response_0", "response_1"} <= raw.keys():
        raise UserError(
            f"better_response_id is {better!r}, beside {sorted(raw)}", where=where,
            cure="It is 0 or 1, and names response_0 or response_1",
        )  # fmt: skip
    return {**raw, "chosen": raw[f"response_{better}"], "rejected": raw[f"response_{1 - better}"]}


def _score(raw: Mapping[str, Any], side: str) -> float | None:
    metadata = raw.get("metadata") if isinstance(raw.get("metadata"), Mapping) else {}
    value = raw.get(f"score_{side}", (metadata or {}).get(f"score_{side}"))
    return None if value is None else float(value)


def _demonstration(messages: Sequence[Message]) -> SourceRow:
    if messages and messages[-1]["role"] == "assistant":
        return SourceRow(tuple(messages[:-1]), (messages[-1]["content"],), (None,))
    return SourceRow(tuple(messages))


def _looks_like_hh(raw: Mapping[str, Any]) -> bool:
    chosen = raw.get("chosen")
    return isinstance(chosen, str) and "prompt" not in raw and chosen.startswith("\n\nHuman:")


def _parse_hh(raw: Mapping[str, Any], where: str) -> SourceRow:
    """Two transcripts of one conversation, which part after an Assistant mark; what follows is the response.

    Marks after that point are text: some responses go on in the human's voice, or start a second turn of their own.
    """
    chosen, rejected = raw.get("chosen"), raw.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise UserError(
            f"format hh needs text in chosen and rejected, found {sorted(raw)}", where=where,
            cure="Take format: auto, or rename with columns: {chosen: <your column>}",
        )  # fmt: skip
    before, mark, _ = _shared_start(chosen, rejected).rpartition(_ASSISTANT)
    prompt = _turns(before)
    if not prompt:
        raise UserError(
            "both transcripts must begin with the same Human turn and must end with an Assistant turn", where=where,
            cure="Check format: hh",
        )  # fmt: skip
    start = len(before) + len(mark)
    return SourceRow(prompt, (chosen[start:].strip(), rejected[start:].strip()), (None, None), is_pair=True)


def _shared_start(a: str, b: str) -> str:
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return a[: sum(1 for _ in alike)]


def _turns(text: str) -> tuple[Message, ...]:
    """Turns of a transcript; one who speaks twice in a row has one turn, as most chat templates ask for."""
    parts = _TURN.split(text)[1:]
    marked = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        Message(role=_ROLES[speaker], content="\n\n".join(content.strip() for _, content in said))
        for speaker, said in groupby(marked, key=itemgetter(0))
    )


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    """A string is one user turn; a list holds turns as {role, content} or {from, value}."""
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    if not isinstance(value, (list, tuple)) or not value:
        raise UserError(
            f"expected text or a list of messages, got {value!r:.80}", where=where, cure="Check the columns"
        )
    return tuple(_message(turn, where) for turn in value)


def _message(turn: Any, where: str) -> Message:
    if isinstance(turn, Mapping) and "role" in turn and "content" in turn:
        return Message(role=str(turn["role"]), content=str(turn["content"]))
    if isinstance(turn, Mapping) and "from" in turn and "value" in turn:
        return Message(role=_SHAREGPT_ROLES.get(turn["from"], str(turn["from"])), content=str(turn["value"]))
    raise UserError(f"a message needs role and content, got {turn!r:.80}", where=where, cure="Check the columns")


def _text(value: Any, where: str) -> str:
    """A response: text, one message, or a conversation whose last turn is the response."""
    if isinstance(value, str):
        return value
    return (_message(value, where) if isinstance(value, Mapping) else _messages(value, where)[-1])["content"]
