"""What a judge is asked and how its answer is read: templates out, strict readings in.

The endpoint is asked for structured output, and may ignore it; the parser here is what decides. An answer that is not
exactly what was asked for is an error, never a label.
"""

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from sail.core.errors import UserError
from sail.core.labeler_settings import JudgeLabeler
from sail.core.records import Verdict
from sail.labeling.answers import Answer
from sail.labeling.labels import winner_of

VALUES = {"A": 1.0, "tie": 0.5, "B": 0.0}
HIGHEST_SCORE = 5
LEAST_MASS = 0.1  # of A and B together; a judge that thinks first leaves them next to nothing, a weak one often half
_TOP_TOKENS = 20  # the most that OpenAI and vLLM return by default


class UnreadableReplyError(RuntimeError):
    """An endpoint answered with something that is no chat completion."""


class Reading(NamedTuple):
    """An answer, read: Reading("A", 1.0); for rubrics the verdict is "A" and the value the points."""

    verdict: Verdict
    value: float | None = None  # P(the response shown as A is better), or points
    problem: str = ""


def template_of(settings: JudgeLabeler, where: str) -> str:
    """The text of the user's template, or of the shipped one."""
    if settings.template is not None:
        path = Path(settings.template)
        if not path.is_file():
            raise UserError(f"no such file: {settings.template!r}", where=where, cure="Check the path")
        return path.read_text(encoding="utf-8")
    name = "letter" if settings.use_logprobs else settings.question
    return files("sail.labeling").joinpath("questions", f"{name}.j2").read_text(encoding="utf-8")


def render(template: str, where: str, **fields: Any) -> str:
    """The question; fields are `messages` and `a`, `b` or `response`."""
    environment = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(template).render(**fields)
    except TemplateError as error:
        raise UserError(f"the template does not render: {error}", where=where,
                        cure=f"It may use {', '.join(fields)}") from None  # fmt: skip


def request(settings: JudgeLabeler, question: str) -> dict[str, Any]:
    """The body of one request, without model and seed."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": question}]}
    if settings.use_logprobs:
        # At temperature 1 the log-probs are the judge's own; the token that is drawn is not looked at.
        return body | {"temperature": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": _TOP_TOKENS}
    body |= {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    if settings.response_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    elif settings.response_format == "json_schema":
        schema = {"name": settings.question, "strict": True, "schema": _schema(settings.question)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _schema(question: str) -> dict[str, Any]:
    asked: dict[str, Any] = (
        {"verdict": {"type": "string", "enum": ["A", "B", "tie", "abstain"]}}
        if question == "pairwise"
        else {"score": {"type": "integer", "minimum": 0, "maximum": HIGHEST_SCORE}}
    )
    properties = {"reason": {"type": "string"}, **asked}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def answer_of(reply: Mapping[str, Any]) -> Answer:
    """Text and first tokens of a chat completion; UnreadableReplyError if it is none."""
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"]
        entries = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs", [])
        first_tokens = {str(entry["token"]): float(entry["logprob"]) for entry in entries}
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UnreadableReplyError(f"a reply that is no chat completion: {str(reply)[:200]}") from None
    if not isinstance(text, str):
        raise UnreadableReplyError(f"a reply without text: {str(reply)[:200]}")
    return Answer(text, first_tokens)


def read(settings: JudgeLabeler, answer: Answer) -> Reading:
    """The answer as what was asked for, or an error."""
    if settings.use_logprobs:
        return _read_letters(answer)
    try:
        told = json.loads(answer.text)
    except ValueError:
        return _wrong("no JSON", answer)
    name = "verdict" if settings.question == "pairwise" else "score"
    if not isinstance(told, dict) or name not in told or set(told) - {name, "reason"}:
        return _wrong(f"no object of {name} and reason", answer)
    return _read_verdict(told[name], answer) if name == "verdict" else _read_score(told[name], answer)


def _read_verdict(verdict: object, answer: Answer) -> Reading:
    if verdict == "abstain":
        return Reading("abstain")
    if not isinstance(verdict, str) or verdict not in VALUES:
        return _wrong("the verdict is none of A, B, tie, abstain", answer)
    return Reading(winner_of(VALUES[verdict], 0.5), VALUES[verdict])


def _read_score(score: object, answer: Answer) -> Reading:
    if isinstance(score, bool) or not isinstance(score, int) or not 0 <= score <= HIGHEST_SCORE:
        return _wrong(f"the score is no whole number from 0 to {HIGHEST_SCORE}", answer)
    return Reading("A", float(score))


def _read_letters(answer: Answer) -> Reading:
    """P(A) / (P(A) + P(B)) of the first token (OSP, 2405.14103: soft strengths from the judge's own log-probs).

    What is left of them where the judge was about to say something else (to think, to begin with "A good ...") is no
    preference: an error below LEAST_MASS.
    """
    mass = dict.fromkeys("AB", 0.0)
    for token, logprob in answer.first_tokens.items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    total = mass["A"] + mass["B"]
    if not (math.isfinite(total) and total >= LEAST_MASS):
        return _wrong(f"A and B have {total:.2g} of the first token's probability, less than {LEAST_MASS:g}", answer)
    p_first = mass["A"] / total
    return Reading(winner_of(p_first, 0.5), p_first)


def _wrong(problem: str, answer: Answer) -> Reading:
    return Reading("error", None, f"{problem}: {answer.text[:120]!r}")


def combined(readings: Sequence[Reading]) -> Reading:
    """Their mean; one error makes an error, and without one, one abstention an abstention."""
    for verdict in ("error", "abstain"):
        for reading in readings:
            if reading.verdict == verdict:
                return reading
    values = [reading.value for reading in readings if reading.value is not None]
    mean = sum(values) / len(values)
    return Reading(winner_of(mean, 0.5), mean)


def turned(reading: Reading) -> Reading:
    """The same, the two responses having changed places."""
    if reading.value is None:
        return reading
    return Reading(winner_of(1.0 - reading.value, 0.5), 1.0 - reading.value)
