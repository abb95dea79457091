"""A regular expression as a verifier."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.errors import UserError
from sail.core.json_lines import json_lines
from sail.core.labeler_settings import RuleLabeler
from sail.core.records import Example, content_hash
from sail.core.store import Workspace
from sail.labeling.labeler_row import Labeler, Scorer


def rule_labeler(name: str, settings: RuleLabeler, fitted: Artifact | None = None) -> Labeler:
    """1.0 where the expression finds something in the response, else 0.0.

    With settings.answers, a jsonl file of {prompt, answer}, what the last match found (its first group, or all of it)
    must equal the answer to the last user message, spaces around both left out. UserError for a prompt without one.
    """
    where = f"labelers.{name}.answers"
    content = "" if settings.answers is None else leaf(Path(settings.answers), where).key
    source = Leaf(Path(settings.answers or ""), content_hash([settings.regex, content], 20))

    def open_rule(workspace: Workspace) -> Scorer:
        pattern = re.compile(settings.regex)
        answers = None if settings.answers is None else _read(Path(settings.answers), where)

        def score(examples: Sequence[Example]) -> list[float]:
            return [_score(pattern, answers, example, where) for example in examples]

        return score

    return Labeler(name, source, {"kind": "rule"}, open_rule)


def _score(pattern: re.Pattern[str], answers: Mapping[str, str] | None, example: Example, where: str) -> float:
    matches = list(pattern.finditer(example.response))
    if answers is None or not matches:
        return 1.0 if matches else 0.0
    asked = [turn["content"] for turn in example.prompt if turn["role"] == "user"][-1]
    if asked not in answers:
        raise UserError(f"no answer to {asked[:80]!r}", where=where, cure="Add a row {prompt, answer} for it")
    found = matches[-1].group(1 if pattern.groups else 0) or ""
    return 1.0 if found.strip() == answers[asked].strip() else 0.0


def _read(path: Path, where: str) -> dict[str, str]:
    answers = {}
    for number, line in json_lines(path.read_text(encoding="utf-8")):
        try:
            row = json.loads(line)
            answers[str(row["prompt"])] = str(row["answer"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"line {number} is no {{prompt, answer}}", where=where, cure="Write one a line") from None
    return answers
