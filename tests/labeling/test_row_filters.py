"""Filters of single responses: the best k, a quantile, a threshold; equal targets stay or go together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail.core.route_settings import FilterSettings
from sail.labeling.rows import filtered

from .doubles import make_sample


def kept(values: list[float], **rule: float) -> list[int]:
    """The positions that stay."""
    samples = [make_sample(f"s-{i}", "good") for i in range(len(values))]
    known = {sample.response_id: value for sample, value in zip(samples, values, strict=True)}
    left = filtered(samples, known, FilterSettings(**rule) if rule else None)
    return [samples.index(sample) for sample in left]


@pytest.mark.parametrize(("rule", "values", "positions"), [
    ({}, [1.0, 2.0], [0, 1]),
    ({"top_k": 1}, [1.0, 3.0, 2.0], [1]),
    ({"top_k": 2}, [1.0, 3.0, 2.0], [1, 2]),
    ({"top_k": 9}, [1.0, 3.0], [0, 1]),
    ({"top_k": 1}, [3.0, 1.0, 3.0], [0, 2]),
    ({"top_k": 2}, [3.0, 1.0, 1.0, 0.0], [0, 1, 2]),
    ({"quantile": 0.5}, [4.0, 1.0, 3.0, 2.0], [0, 2]),
    ({"quantile": 0.5}, [1.0, 2.0, 3.0], [1, 2]),
    ({"quantile": 0.0}, [1.0, 2.0, 3.0], [0, 1, 2]),
    ({"quantile": 0.9}, [0.1, 0.1, 0.1], [0, 1, 2]),
    ({"quantile": 0.75}, [5.0], [0]),
    ({"threshold": 0.0}, [0.0, 0.5, -0.5], [1]),
    ({"threshold": -1.0}, [0.0, 0.5, -0.5], [0, 1, 2]),
    ({"threshold": 3.0}, [0.0, 0.5], []),
    ({"top_k": 1}, [], []),
])  # fmt: skip
def test_a_filter_by_hand(rule: dict[str, float], values: list[float], positions: list[int]) -> None:
    assert kept(values, **rule) == positions


RULES = st.one_of(
    st.integers(1, 5).map(lambda k: {"top_k": k}),
    st.floats(0.0, 0.99).map(lambda share: {"quantile": share}),
    st.floats(-2.0, 2.0).map(lambda limit: {"threshold": limit}),
)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.3, 2.0]), min_size=1, max_size=9), RULES)
def test_no_filter_keeps_a_response_and_drops_an_equal_or_better_one(
    values: list[float], rule: dict[str, float]
) -> None:
    left = kept(values, **rule)
    assert left == sorted(left)
    if left:
        worst = min(values[i] for i in left)
        assert left == [i for i, value in enumerate(values) if value >= worst]
    assert left or "threshold" in rule, "a prompt loses all its responses to a threshold alone"
    assert len(left) >= min(rule.get("top_k", 0), len(values))
