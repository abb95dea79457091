"""What a judge was asked and said, by content: a file that grows by a line an answer and survives a kill."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from sail.core.atomic import write_bytes

ANSWERS_FILE = "answers.jsonl"


class Answer(NamedTuple):
    """A judge's reply, unread: its text, and for token log-probs the likeliest first tokens, nats."""

    text: str
    first_tokens: dict[str, float]


def sort_answers(folder: Path) -> None:
    """The lines in an order of their own: answers come as they come, an artifact's bytes should not tell."""
    path = folder / ANSWERS_FILE
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        write_bytes(path, b"".join(sorted(lines)))


class AnswerBook:
    """Answers of one artifact, found by the hash of their question. A line that a kill cut short is not there."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ANSWERS_FILE
        self._answers: dict[str, Answer] = {}
        whole = self._path.read_bytes() if self._path.exists() else b""
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(self._path, end)  # in place: answers are paid for, no kill and no full disk may lose one
        for line in whole[:end].splitlines():
            entry = json.loads(line)
            self._answers[entry["question"]] = Answer(entry["text"], entry["first_tokens"])

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, question: str) -> Answer | None:
        return self._answers.get(question)

    def put(self, question: str, answer: Answer) -> None:
        self._answers[question] = answer
        entry = {"question": question, **answer._asdict()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
