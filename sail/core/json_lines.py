"""The lines of a jsonl file."""

from collections.abc import Iterator


def json_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number from 1; they end in a line feed alone.

    str.splitlines also cuts at U+0085, U+2028 and U+2029, which stand unescaped in JSON's texts.
    """
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
