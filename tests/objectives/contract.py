"""The contract of an objective: what must hold of a row of LOSSES, whatever its formula.

Each function takes a row and raises AssertionError where the row breaks a rule; keeps_the_contract runs them all.
test_losses.py runs them over the registry, tests/docs/test_worked_example.py over the loss that CONTRIBUTING.md adds.
"""

import inspect
import math
from typing import NamedTuple

import torch
from torch import Tensor

from sail.objectives import LossRow, Responses
from sail.objectives.regression import rloo
from sail.objectives.responses import Rollout, Tokens
from sail.objectives.statistics import accepted
from sail.objectives.streams import kl_policy_ref

from .by_hand import CHOSEN, REJECTED, STATISTIC, TARGETS, VALUES, tensor

SURROGATES = (rloo, kl_policy_ref)
"""losses whose gradient is that of an expectation, not of their value: log-ratios in them are weights, detached"""


class Case(NamedTuple):
    """What a loss is called with."""

    sides: tuple[Responses, ...]  # chosen and rejected, or the responses
    given: tuple[Tensor, ...] = ()  # the statistic's value, the critic's values


def loss_of(row: LossRow, case: Case, **params: float) -> Tensor:
    return row.loss(*case.sides, *case.given, **params)


def case_by_hand(row: LossRow) -> Case:
    if row.unit == "pair":
        return Case((CHOSEN, REJECTED))
    given = ((STATISTIC,) if row.statistic else ()) + ((VALUES,) if row.critic else ())
    return Case((CHOSEN._replace(targets=TARGETS.get(row.target)),), given)


def random_responses(generator: torch.Generator, batch: int = 5, target: str = "") -> Responses:
    """Responses of 3, 4, ... tokens to prompts of two responses each, the last alone if the batch is odd."""

    def uniform(size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    totals, ref_logps = -10.0 * uniform(batch) - 1.0, -10.0 * uniform(batch) - 1.0
    lengths = torch.arange(3, 3 + batch)
    row = torch.repeat_interleave(torch.arange(batch), lengths)
    shares = torch.linspace(0.5, 1.5, len(row), dtype=torch.float64)
    shares = shares / torch.zeros(batch, dtype=torch.float64).index_add(0, row, shares)[row]
    targets = {"thumbs": (torch.arange(batch) % 2).double(), "score": tensor(*(0.4 * i - 1.0 for i in range(batch))),
               "win_rate": tensor(*(0.9 - 0.15 * i for i in range(batch)))}.get(target)  # fmt: skip
    empty = Responses(totals, ref_logps, lengths.double(), targets, torch.arange(batch) // 2, totals.abs())
    logps = totals[row] * shares
    moved = 0.1 * torch.linspace(-1.0, 1.0, len(row), dtype=torch.float64)  # within the clip range of ppo
    rollout = Rollout(logps - moved, *(torch.linspace(a, 1.0, len(row), dtype=torch.float64) for a in (0.1, -1.0, 0.5)))
    return with_tokens(empty, Tokens(logps, row, rollout))


def with_tokens(responses: Responses, tokens: Tokens) -> Responses:
    """The responses with these tokens and the sums over them."""
    sums = torch.zeros(len(responses.logps), dtype=torch.float64).index_add(0, tokens.row, tokens.logps)
    return responses._replace(logps=sums, tokens=tokens)


def random_case(row: LossRow, batch: int = 5) -> Case:
    generator = torch.Generator().manual_seed(3)
    sides = tuple(random_responses(generator, batch, row.target) for _ in range(2))
    if row.unit == "pair":
        return Case(sides)
    given = []
    if row.statistic is not None:
        about = sides[1] if row.statistic.of == "mismatched" else sides[0]
        given.append(row.statistic.function(about).value)
    if row.critic is not None:
        given.append(torch.rand(len(tokens_of(sides[0]).row), generator=generator, dtype=torch.float64))
    return Case(sides[:1], tuple(given))


def tokens_of(responses: Responses) -> Tokens:
    assert responses.tokens is not None
    return responses.tokens


# ---- the rules -----------------------------------------------------------------------------------------------------


def keeps_the_contract(row: LossRow, params: dict[str, float], values: list[float]) -> None:
    """params and values: what was worked out on paper for case_by_hand."""
    has_the_values_by_hand(row, params, values)
    has_one_value_per_row_and_rows_that_know_nothing_of_each_other(row)
    has_the_gradient_of_its_finite_differences(row)
    is_finite_at_gaps_of_ten_thousand_nats(row)
    declares_what_is_true(row)


def has_the_values_by_hand(row: LossRow, params: dict[str, float], values: list[float]) -> None:
    got = loss_of(row, case_by_hand(row), **params)
    torch.testing.assert_close(got, tensor(*values), rtol=1e-12, atol=1e-15)


def has_one_value_per_row_and_rows_that_know_nothing_of_each_other(row: LossRow) -> None:
    """For a group: its responses know of each other, and of no other group."""
    case = random_case(row)
    whole = loss_of(row, case)
    assert whole.shape == (5,) and whole.dtype == torch.float64
    group = case.sides[0].group if row.unit == "group" else torch.arange(5)
    assert group is not None
    for index in group.unique():
        keep = group == index
        assert torch.equal(loss_of(row, part(case, keep)), whole[keep])


def part(case: Case, keep: Tensor) -> Case:
    """The rows of a case where keep [B] is True; what it was given of the global batch stays."""
    sides = []
    for side in case.sides:
        tokens = tokens_of(side)
        here = keep[tokens.row]
        rollout = None if tokens.rollout is None else Rollout(*(column[here] for column in tokens.rollout))
        kept = Tokens(tokens.logps[here], (keep.cumsum(0) - 1)[tokens.row[here]], rollout)
        columns = [None if column is None else column[keep] for column in side[:-1]]
        sides.append(Responses(*columns, tokens=kept))  # type: ignore[arg-type]
    of_tokens = keep[tokens_of(case.sides[0]).row]
    return Case(tuple(sides), tuple(value[of_tokens] if value.ndim else value for value in case.given))


def has_the_gradient_of_its_finite_differences(row: LossRow) -> None:
    """Token by token: sixth-order central differences with step .01, away from the kinks by the fixed seed.

    In a surrogate the log-ratios are held fixed: the reference moves with the policy.
    """
    case = random_case(row)
    surrogate = row.function in SURROGATES
    assert row.samples == "policy" or not surrogate
    for k, side in enumerate(case.sides):
        leaf = tokens_of(side).logps.clone().requires_grad_()

        def total(logps: Tensor, k: int = k, side: Responses = side) -> Tensor:
            moved = with_tokens(side, tokens_of(side)._replace(logps=logps))
            if surrogate and not logps.requires_grad:
                moved = moved._replace(ref_logps=side.ref_logps + moved.logps - side.logps)
            return loss_of(row, Case((*case.sides[:k], moved, *case.sides[k + 1 :]), case.given)).sum()

        (gradient,) = torch.autograd.grad(total(leaf), leaf)
        numeric = torch.zeros_like(gradient)
        for index in range(len(numeric)):
            step = torch.zeros_like(gradient)
            step[index] = 0.01
            for weight, j in ((45, 1), (-9, 2), (1, 3)):
                ahead, behind = (total(tokens_of(side).logps + sign * j * step) for sign in (1.0, -1.0))
                numeric[index] += weight * (ahead - behind) / 0.6
        torch.testing.assert_close(gradient, numeric, rtol=1e-9, atol=1e-9)
        assert gradient.abs().max() > 1e-3


def is_finite_at_gaps_of_ten_thousand_nats(row: LossRow) -> None:
    """The loss, its link and their gradients; beta, where there is one, at its default and at 1."""
    for gap in (1e4, -1e4):
        for beta in {row.params["beta"], 1.0} if "beta" in row.params else {0.0}:
            params = {"beta": beta} if beta else {}
            leaf = tensor(-1.0 - max(-gap, 0.0), -2.0).requires_grad_()
            case = _at_a_gap(row, leaf, gap)
            values = [loss_of(row, case, **params)]
            if row.link is not None:
                values.append(row.link(*case.sides, **params))
            for value in values:
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
                assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


def _at_a_gap(row: LossRow, logps: Tensor, gap: float) -> Case:
    """Two rows of one group, the log-ratio of the first at the gap; in a pair both sides move, apart."""
    rows, ones = torch.tensor([0, 1]), tensor(1.0, 1.0)
    target = {"thumbs": tensor(1.0, 0.0)}.get(row.target, tensor(0.9, 0.1))
    far = tensor(-1.0 - max(gap, 0.0), -2.0)
    tokens = Tokens(logps, rows, Rollout(far, ones, tensor(1.0, -1.0), ones))
    first = Responses(logps, far, 7.0 * ones, target, 0 * rows, ones, tokens)
    second = Responses(far, tensor(-1.0, -2.0), 7.0 * ones, feature_distances=abs(gap) * ones)
    given = ((0.5 * ones[0],) if row.statistic else ()) + ((0.5 * ones,) if row.critic else ())
    return Case((first, second) if row.unit == "pair" else (first,), given)


def declares_what_is_true(row: LossRow) -> None:
    """What it reads, what it is given, its parameters, and that it says where it comes from."""
    case = random_case(row)
    reads = {
        "ref_logps": "reference" in row.needs, "num_tokens": "num_tokens" in row.needs,
        "targets": bool(row.target) and row.rollouts is None, "group": row.unit == "group",
        "feature_distances": "features" in row.needs, "tokens": row.critic is not None,
    }  # fmt: skip
    for field, declared in reads.items():
        other = Case(tuple(_changed(side, field) for side in case.sides), case.given)
        assert torch.equal(loss_of(row, other), loss_of(row, case)) == (not declared), field
    signature = inspect.signature(row.function).parameters.values()
    positional = [argument for argument in signature if argument.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert len(positional) == len(case.sides) + len(case.given)
    assert all(isinstance(default, float) for default in row.params.values())
    assert row.source and row.function.__doc__ and "shape [B]" in row.function.__doc__
    row.check(**row.params)
    if row.unit == "pair":
        assert math.isfinite(row.baseline_start())
    if row.critic is not None:
        own = {name: row.params[name] for name in accepted(row.critic, row.params)}
        assert torch.isfinite(row.critic(*case.sides, *case.given, **own)).all()


def _changed(side: Responses, field: str) -> Responses:
    """The side with other numbers in one field."""
    tokens = tokens_of(side)
    if field == "tokens":
        return side._replace(tokens=tokens._replace(logps=tokens.logps - 1.0))
    if field == "group":
        assert side.group is not None
        return side._replace(group=side.group.flip(0))
    value = getattr(side, field)
    if value is None:
        return side._replace(targets=torch.ones_like(side.logps))
    return side._replace(**{field: 1.0 - 0.5 * value})
