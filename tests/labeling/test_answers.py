"""A judge's answers survive whatever ends a process: a line that was cut short goes, no other."""

import resource
from pathlib import Path

from sail.labeling.answers import ANSWERS_FILE, Answer, AnswerBook


def test_a_line_that_was_cut_short_goes_without_a_byte_written(tmp_path: Path) -> None:
    """Not one byte may be written meanwhile, as on a full disk: what is written anew is lost if that is cut short."""
    book = AnswerBook(tmp_path)
    book.put("q1", Answer("Ä\u2028", {"A": -0.1}))
    book.put("q2", Answer("B", {}))
    file = tmp_path / ANSWERS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"question": "q3", "te')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        again = AnswerBook(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == whole
    assert (len(again), again.get("q1"), again.get("q3")) == (2, Answer("Ä\u2028", {"A": -0.1}), None)
    again.put("q3", Answer("A", {}))
    assert len(AnswerBook(tmp_path)) == 3
