"""Prompts and responses as chat messages, the form in which the testbed's files and examples carry them."""

from sail.core.records import Message


def asked(prompt: str) -> list[Message]:
    return [Message(role="user", content=prompt)]


def answered(response: str) -> list[Message]:
    return [Message(role="assistant", content=response)]
