"""The table of rounds: one row a round, its columns defined once for terminal, markdown and report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sail.evaluation.numerals import number, share, with_error

START_ROUND = -1
MISSING = "-"


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round of a phase; round_index START_ROUND is the evaluation of the policy the phase starts from."""

    round_index: int
    phase: str
    metrics: Mapping[str, float] = field(default_factory=dict)  # evaluation, label counts, mean of the steps
    artifacts: Mapping[str, str] = field(default_factory=dict)  # name -> artifact id
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # of prompt_tag, each with its metrics
    target: str = ""  # the one that `metrics` are of


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything the report shows."""

    title: str
    rounds: Sequence[RoundRow]
    steps: Sequence[Mapping[str, Any]] = ()  # the updates' metrics.jsonl, each line with "round" and "phase" added
    settings_yaml: str = ""
    examples: Sequence[Mapping[str, Any]] = ()  # entries of examples.json, each with an optional label "round"
    notes: Sequence[str] = ()  # what a reader must know, such as: the scorer also trained the policy
    audits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # route -> its last audit.json


class Column(NamedTuple):
    """A column: its name, the same on two short lines, its metric, and the text of a row's cell."""

    name: str
    heading: str
    metric: str
    cell: Callable[[RoundRow], str]


def round_labels(rows: Sequence[RoundRow]) -> list[str]:
    """'start', '0', '1', ...; with the phase's name in front where a run has several."""
    several = len({row.phase for row in rows}) > 1
    return [f"{row.phase} {_turn(row)}" if several else _turn(row) for row in rows]


def _turn(row: RoundRow) -> str:
    return "start" if row.round_index == START_ROUND else str(row.round_index)


def points(rows: Sequence[RoundRow], metric: str) -> tuple[list[int], list[float]]:
    """Positions of the rounds that have the metric, and its values."""
    found = [(index, row.metrics[metric]) for index, row in enumerate(rows) if metric in row.metrics]
    return [index for index, _ in found], [value for _, value in found]


def _plain(metric: str, form: Callable[[float], str]) -> Callable[[RoundRow], str]:
    return lambda row: form(row.metrics[metric]) if metric in row.metrics else MISSING


def _reward(row: RoundRow) -> str:
    value, error = row.metrics.get("eval/reward"), row.metrics.get("eval/reward_se")
    if value is None:
        return MISSING
    return number(value) if error is None else with_error(value, error)


def _win_rate(row: RoundRow) -> str:
    value = row.metrics.get("eval/win_rate")
    low, high = row.metrics.get("eval/win_rate_low"), row.metrics.get("eval/win_rate_high")
    if value is None:
        return MISSING
    return share(value) if low is None or high is None else f"{share(value)} [{share(low)}, {share(high)}]"


_length = "{:,.1f}".format

COLUMNS: tuple[Column, ...] = (
    Column("Reward ± s.e.", "Reward\n± s.e.", "eval/reward", _reward),
    Column("Win rate [95 %]", "Win rate\n[95 %]", "eval/win_rate", _win_rate),
    Column("KL, nats", "KL\nnats", "objective/kl", _plain("objective/kl", number)),
    Column("Accuracy offline", "Acc.\noff", "rewards/accuracies_offline", _plain("rewards/accuracies_offline", share)),
    Column("Accuracy online", "\non", "rewards/accuracies_online", _plain("rewards/accuracies_online", share)),
    Column("Length, tokens", "Length\ntokens", "completions/mean_length", _plain("completions/mean_length", _length)),
    Column("EOS", "\nEOS", "completions/eos_rate", _plain("completions/eos_rate", share)),
    Column("Distinct", "Dis-\ntinct", "completions/distinct_share", _plain("completions/distinct_share", share)),
    Column("Pairs", "\nPairs", "labels/pairs", _plain("labels/pairs", "{:,.0f}".format)),
    Column("Score / plain", "Score /\nplain", "sail/score_to_plain_ratio", _plain("sail/score_to_plain_ratio", number)),
)


def cells(row: RoundRow) -> list[str]:
    """The row's text, column by column; '-' where a metric is missing."""
    return [column.cell(row) for column in COLUMNS]
