"""Presets, files and overrides on top of one another: the later word counts, in whatever form it is written."""

from typing import Any

import pytest

from loops.documents import merge, override, read_preset


@pytest.mark.parametrize(
    ("assignment", "labels"),
    [
        ("routes.online.labels.mode=hard", {"by": "rm", "mode": "hard"}),
        ("routes.online.label_mode=hard", {"by": "rm", "mode": "hard"}),
        ("routes.online.labels.temperature=2", {"by": "rm", "mode": "soft", "temperature": 2}),
        ("routes.online.labels=gold", {"by": "gold", "mode": "soft"}),
        ("routes.online.labels={by: gold, mode: sampled}", {"by": "gold", "mode": "sampled"}),
    ],
)
def test_labels_of_a_preset_written_short_give_way_to_both_forms(assignment: str, labels: dict[str, Any]) -> None:
    assert read_preset("sail-pr")["routes"]["online"]["label_mode"] == "soft"
    assert override(read_preset("sail-pr"), [assignment])["routes"]["online"]["labels"] == labels


def test_labels_of_a_preset_written_long_give_way_to_the_short_form() -> None:
    changed = override(read_preset("sail-pp"), ["routes.online.label_mode=sampled"])
    assert changed["routes"]["online"]["labels"] == {"by": "policy", "mode": "sampled", "when": "fresh"}


def test_a_loss_parameter_that_starts_like_a_label_setting_stays_one() -> None:
    merged = merge({"loss": {"type": "dpo", "beta": 0.1}}, {"loss": {"label_smoothing": 0.1}})
    assert merged == {"loss": {"type": "dpo", "beta": 0.1, "label_smoothing": 0.1}}


def test_another_loss_drops_the_parameters_of_the_old_one() -> None:
    merged = merge({"loss": {"type": "slic", "delta": 2.0}}, {"loss": {"type": "dpo"}})
    assert merged == {"loss": {"type": "dpo"}}


def test_an_override_on_a_named_phase_changes_that_phase_alone() -> None:
    phases = {"phases": [{"name": "sft", "preset": "sft"}, {"name": "sail", "num_rounds": 3}]}
    changed = override(phases, ["phases.sail.num_rounds=5"])
    assert changed == {"phases": [{"name": "sft", "preset": "sft"}, {"name": "sail", "num_rounds": 5}]}
