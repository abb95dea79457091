"""Presets, files and overrides on top of one another: the later word counts, in whatever form it is written."""

from pathlib import Path
from typing import Any

import pytest

from loops.config import load_config
from loops.documents import merge, override, read_document, read_preset
from sail.core.errors import UserError


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


def test_a_key_that_stands_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\nupdate:\n  steps: 3\n  epochs: 1\n  steps: 4\n")
    with pytest.raises(UserError, match=r"c\.yaml: no valid YAML: 'steps' stands twice, on lines 3 and 5\. Mend"):
        read_document(tmp_path / "c.yaml")


def test_a_merged_key_may_be_given_anew(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, x: 3}\n")
    assert read_document(tmp_path / "c.yaml")["c"] == {"x": 3, "y": 1}


@pytest.mark.parametrize(
    "assignment",
    ["labelers.r.regex=[0-9]+", "x=*foo", "x=@it's", "data.d.columns={a: b", "x={a: 1, a: 2}", "x=2026-13-01"],
)
def test_an_override_that_is_no_yaml_is_named_and_may_be_quoted(assignment: str) -> None:
    with pytest.raises(UserError, match="no valid YAML") as refused:
        override({}, [assignment])
    assert refused.value.where == assignment
    *path, last = assignment.partition("=")[0].split(".")
    quoted = refused.value.cure.partition('"')[2].removesuffix('"')
    changed = override({}, [quoted])
    for key in path:
        changed = changed[key]
    assert changed == {last: assignment.partition("=")[2]}


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("evaluation.scorers.0=b", r"scorers: its entries have no names .* Give the whole list"),
        ("phases.sft=3", r"phases\.sft: 3 is no mapping"),
        ("phases.dpo.seed=3", r"phases: no entry 'dpo'"),
    ],
)
def test_an_override_inside_a_list_goes_by_the_names_of_its_entries(assignment: str, told: str) -> None:
    document = {"evaluation": {"scorers": ["a"]}, "phases": [{"name": "sft"}]}
    with pytest.raises(UserError, match=told):
        override(document, [assignment])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, r"cannot be read \(Is a directory\)\. Give a YAML file"),
        ("# naïve\n".encode("latin-1"), r"no UTF-8 text .* Save it as UTF-8"),
        (
            b"update: {per_device_train_batch_size: two}",
            r"update\.per_device_train_batch_size: 'two' is no whole number",
        ),
        (
            b"{model_name_or_path: x, data: {p: {path: x}}, routes: {online: {label_mode: soft, labels: [a]}}}",
            r"routes\.online\.labels: .*\['a'\]",
        ),
    ],
)
def test_a_file_that_cannot_be_a_config_is_named(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=rf"c\.yaml.*{told}"):
        load_config(str(path))
