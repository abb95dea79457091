"""Batches are a pure function of the step: exact shares, every row of a route once an epoch, routes independent."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail.core.errors import UserError
from sail.update.batches import batch_counts, batch_indices, exact_shares, steps_for_epochs

shares_strategy = st.lists(st.integers(0, 10), min_size=1, max_size=4).filter(lambda parts: sum(parts) > 0)


@given(shares_strategy, st.integers(1, 50), st.integers(1, 200))
def test_counts_fill_every_batch_and_shares_are_exact_over_the_run(parts: list[int], batch: int, steps: int) -> None:
    shares = {str(index): Fraction(part, sum(parts)) for index, part in enumerate(parts)}
    totals: Counter[str] = Counter()
    for step in range(steps):
        counts = batch_counts(step, shares, batch)
        assert sum(counts.values()) == batch
        assert all(count >= 0 for count in counts.values())
        totals.update(counts)
    for name, share in shares.items():
        assert abs(totals[name] - steps * batch * share) <= 1


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 10))
def test_a_route_sees_every_row_once_an_epoch(size: int, batch: int, share_tenths: int) -> None:
    shares = {"offline": Fraction(10 - share_tenths, 10), "online": Fraction(share_tenths, 10)}
    sizes = {"offline": size, "online": 7}
    seen: list[int] = []
    step = 0
    while len(seen) < size and shares["offline"] > 0:
        seen += batch_indices(step, shares, sizes, batch, seed=0, round_index=0)["offline"]
        step += 1
    assert len(set(seen[:size])) == min(size, len(seen))


def test_the_order_of_a_route_does_not_depend_on_the_other_routes() -> None:
    alone = [batch_indices(s, {"offline": Fraction(1)}, {"offline": 9}, 4, 0, 0)["offline"] for s in range(5)]
    shares = {"offline": Fraction(1), "online": Fraction(0)}
    beside = [batch_indices(s, shares, {"offline": 9, "online": 3}, 4, 0, 0)["offline"] for s in range(5)]
    assert alone == beside


def test_rest_takes_what_is_left() -> None:
    assert exact_shares({"a": 0.3, "b": "rest"}) == {"a": Fraction(3, 10), "b": Fraction(7, 10)}
    assert exact_shares({"a": "rest", "b": "rest"}) == {"a": Fraction(1, 2), "b": Fraction(1, 2)}


@pytest.mark.parametrize("shares", [{"a": 0.3}, {"a": 0.7, "b": 0.6}, {"a": 0.7, "b": 0.6, "c": "rest"}])
def test_shares_that_do_not_sum_to_one_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(UserError, match="shares sum to"):
        exact_shares(shares)


def test_an_epoch_passes_the_slowest_route_once() -> None:
    shares = exact_shares({"offline": "rest", "online": 0.25})
    assert steps_for_epochs(1.0, {"offline": 30, "online": 40}, shares, 16) == 10
    assert steps_for_epochs(2.0, {"offline": 30, "online": 1}, shares, 16) == 5


def test_rows_drawn_at_a_step_are_walked_through_from_their_first() -> None:
    """A segment of steps 3 and 4: the route with new rows begins anew, the other goes on."""
    shares = exact_shares({"offline": 0.5, "online": 0.5})
    whole = [batch_indices(step, shares, {"offline": 12, "online": 4}, 4, 7, 0) for step in range(5)]
    part = [batch_indices(step, shares, {"offline": 12, "online": 4}, 4, 7, 0, {"online": 3}) for step in (3, 4)]
    assert [step["offline"] for step in part] == [step["offline"] for step in whole[3:]]
    assert [step["online"] for step in part] == [step["online"] for step in whole[:2]]
