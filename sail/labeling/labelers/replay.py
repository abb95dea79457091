"""Recorded verdicts as a labeler: people's, or another judge's, found again by their texts."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.core.json_lines import json_lines
from sail.core.labeler_settings import ReplayLabeler
from sail.core.records import Comparison, content_hash
from sail.core.store import Workspace
from sail.labeling.labeler_row import Comparer, PairAnswer, PairLabeler
from sail.labeling.labels import winner_of

_VALUES: dict[str, float | None] = {"A": 1.0, "B": 0.0, "tie": 0.5, "abstain": None, "error": None}


class Recorded(NamedTuple):
    """One line of the file: P(a beats b), None for an abstention or an error, and which of the two it was."""

    value: float | None
    verdict: str


def replay_labeler(name: str, settings: ReplayLabeler, endpoint: None = None) -> PairLabeler:
    """Answers from a jsonl file; lines are {prompt, a, b} with verdict (A, B, tie, abstain, error) or p, P(a wins).

    prompt is a text or a list of messages, a and b are texts. Of several annotators p is the mean over those who
    decided. A pair that the file does not hold is an abstention. UserError for a line of another form.
    """
    where = f"labelers.{name}.path"
    source = leaf(Path(settings.path), where)

    def open_file(workspace: Workspace) -> Comparer:
        records = _read(Path(settings.path), settings.annotator, where)
        return lambda comparisons: [_answer(records, comparison) for comparison in comparisons]

    return PairLabeler(name, source, {"kind": "replay", "annotator": settings.annotator}, open_file)


def _read(path: Path, annotator: str | None, where: str) -> Mapping[str, list[Recorded]]:
    """Hash of (prompt, a, b) -> what was recorded, in both orders of a and b."""
    found: dict[str, list[Recorded]] = defaultdict(list)
    for number, line in json_lines(path.read_text(encoding="utf-8")):
        row, value, verdict = _line(line, f"{where}: line {number}")
        if annotator is None or row.get("annotator") == annotator:
            found[_key(row["prompt"], row["a"], row["b"])].append(Recorded(value, verdict))
            found[_key(row["prompt"], row["b"], row["a"])].append(
                Recorded(None if value is None else 1.0 - value, verdict)
            )
    if not found:
        whose = f" by {annotator!r}" if annotator else ""
        raise UserError(f"{str(path)!r} holds no verdicts{whose}", where=where, cure="Check the file and the annotator")
    return found


def _line(line: str, where: str) -> tuple[dict[str, Any], float | None, str]:
    try:
        row = json.loads(line)
    except ValueError:
        raise UserError("no JSON", where=where, cure="Write one object a line") from None
    if not isinstance(row, dict) or not {"prompt", "a", "b"} <= row.keys() or not {"p", "verdict"} & row.keys():
        raise UserError("expected prompt, a, b and verdict or p", where=where, cure="Name the columns so")
    p, verdict = row.get("p"), row.get("verdict")
    if p is not None:
        if not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise UserError(f"p is {p!r}", where=where, cure="Give a probability that a is better")
        return row, float(p), winner_of(float(p), 0.5)
    if verdict not in _VALUES:
        raise UserError(f"verdict is {verdict!r}", where=where, cure=f"Use one of {', '.join(_VALUES)}")
    return row, _VALUES[verdict], verdict


def _key(prompt: Any, a: str, b: str) -> str:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    turns = [[turn["role"], turn["content"]] for turn in messages]
    return content_hash([turns, a, b])


def _answer(records: Mapping[str, Sequence[Recorded]], comparison: Comparison) -> PairAnswer:
    found = records.get(_key(comparison.prompt, comparison.a, comparison.b), ())
    values = [record.value for record in found if record.value is not None]
    if values:
        p_a = sum(values) / len(values)
        return PairAnswer(winner_of(p_a, 0.5), p_a)
    if any(record.verdict == "error" for record in found):
        return PairAnswer("error", problem="recorded as an error")
    return PairAnswer("abstain")
