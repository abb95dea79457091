"""Prompts and responses as chat messages, the form in which the testbed's files and examples carry them."""

Chat = list[dict[str, str]]


def asked(prompt: str) -> Chat:
    return [{"role": "user", "content": prompt}]


def answered(response: str) -> Chat:
    return [{"role": "assistant", "content": response}]
