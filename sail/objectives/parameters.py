"""What a loss's parameters may be: each check raises UserError, naming the parameter, and returns nothing."""

import math

from sail.core.errors import UserError


def positive(**parameters: float) -> None:
    """Finite and > 0, such as beta."""
    for name, value in parameters.items():
        if not 0.0 < value < math.inf:
            raise _refusal(name, value, "Use a finite number above 0")


def not_negative(**parameters: float) -> None:
    """Finite and >= 0, such as a margin."""
    for name, value in parameters.items():
        if not 0.0 <= value < math.inf:
            raise _refusal(name, value, "Use a finite number of at least 0")


def flip_rate(epsilon: float) -> None:
    """0 <= epsilon < 1/2: at 1/2 a label says nothing, above it it says the opposite."""
    if not 0.0 <= epsilon < 0.5:
        raise _refusal("epsilon", epsilon, "Use the share of wrong labels, at least 0 and below 0.5")


def smoothing(epsilon: float) -> None:
    """0 < epsilon < 1/2, where epsilon stands in a logarithm."""
    if not 0.0 < epsilon < 0.5:
        raise _refusal("epsilon", epsilon, "Use a number in (0, 0.5), such as 1e-3: at 0 the loss is infinite")


def at_most_one(**parameters: float) -> None:
    """0 < value <= 1."""
    for name, value in parameters.items():
        if not 0.0 < value <= 1.0:
            raise _refusal(name, value, "Use a number above 0 and at most 1")


def share(**parameters: float) -> None:
    """0 <= value <= 1."""
    for name, value in parameters.items():
        if not 0.0 <= value <= 1.0:
            raise _refusal(name, value, "Use a number from 0 to 1")


def one_of(name: str, value: float, allowed: tuple[float, ...]) -> None:
    """One of a few numbers, such as a sign."""
    if value not in allowed:
        raise _refusal(name, value, f"Use {' or '.join(f'{choice:g}' for choice in allowed)}")


def _refusal(name: str, value: float, cure: str) -> UserError:
    return UserError(f"{name} is {value}", where=f"loss.{name}", cure=cure)
