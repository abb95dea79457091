"""Numbers as people read them."""

import math


def number(value: float) -> str:
    """About three significant digits: 0.0312, 0.123, 1.23, 12.3, 1,234; 0 and tiny ones as such."""
    size = abs(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if size < 1e-3:
        return f"{value:.0e}"
    places = 4 if size < 0.1 else 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{places}f}"


def with_error(value: float, error: float) -> str:
    """Both in the places of the error's two leading digits, at most three: -12.35 ±0.31, 0.930 ±0.050."""
    if not (math.isfinite(error) and error > 0):
        return f"{number(value)} ±{number(error)}"
    places = min(max(1 - math.floor(math.log10(error)), 0), 3)
    return f"{value:,.{places}f} ±{error:,.{places}f}"


def share(value: float) -> str:
    """A number in [0, 1] with two places: 0.78."""
    return f"{value:.2f}"
