"""Whatever a preference file's columns are called, its rows become prompt, responses and verdict; or a clear error."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.core.run_settings import DataSettings
from sail.generation.source_rows import SourceRow
from sail.generation.sources import read_source, source_leaf
from tests.generation.hub import BEFORE, hub

USER = ({"role": "user", "content": "tea?"},)


def read(tmp_path: Path, rows: list[dict[str, Any]], **settings: Any) -> list[SourceRow]:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_source(DataSettings(path=str(path), **settings), leaf(path), "data.prefs")


def test_plain_text_pairs(tmp_path: Path) -> None:
    rows = read(tmp_path, [{"prompt": "tea?", "chosen": "yes", "rejected": "no"}])
    assert rows == [SourceRow(USER, ("yes", "no"), (None, None), is_pair=True)]


def test_conversational_pairs_with_scores_and_the_prompt_repeated(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "yes"}]
    other = [turns[0], {"role": "assistant", "content": "no"}]
    row = {"prompt": "tea?", "chosen": turns, "rejected": other, "score_chosen": 8, "score_rejected": 3.5}
    assert read(tmp_path, [row]) == [SourceRow(USER, ("yes", "no"), (8.0, 3.5), is_pair=True)]
    del row["prompt"]
    assert read(tmp_path, [row])[0].prompt == USER


def test_scores_inside_metadata(tmp_path: Path) -> None:
    metadata = {"score_chosen": 9, "score_rejected": 2}
    row = {"prompt": "tea?", "chosen": "yes", "rejected": "no", "metadata": metadata}
    assert read(tmp_path, [row])[0].scores == (9.0, 2.0)


def test_demonstrations_and_bare_prompts(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "yes"}]
    assert read(tmp_path, [{"messages": turns}]) == [SourceRow(USER, ("yes",), (None,))]
    assert read(tmp_path, [{"prompt": "tea?", "completion": "yes"}]) == [SourceRow(USER, ("yes",), (None,))]
    assert read(tmp_path, [{"prompt": "tea?"}]) == [SourceRow(USER)]


def test_sharegpt_turns(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "tea?"}], "chosen": {"from": "gpt", "value": "yes"},
           "rejected": {"from": "gpt", "value": "no"}}  # fmt: skip
    assert read(tmp_path, [row]) == [SourceRow(USER, ("yes", "no"), (None, None), is_pair=True)]


def test_transcripts_with_human_and_assistant_turns(tmp_path: Path) -> None:
    start = "\n\nHuman: tea?\n\nAssistant: which?\n\nHuman: green\n\nAssistant:"
    rows = read(tmp_path, [{"chosen": start + " here", "rejected": start + " no"}])
    assert [turn["content"] for turn in rows[0].prompt] == ["tea?", "which?", "green"]
    assert rows[0].responses == ("here", "no")
    assert rows[0].is_pair


def test_columns_can_be_renamed(tmp_path: Path) -> None:
    rows = read(tmp_path, [{"question": "tea?", "a": "yes", "b": "no"}],
                columns={"prompt": "question", "chosen": "a", "rejected": "b"})  # fmt: skip
    assert rows[0].responses == ("yes", "no")


def test_offset_and_limit_choose_rows(tmp_path: Path) -> None:
    rows = read(tmp_path, [{"prompt": str(index)} for index in range(9)], offset=2, limit=3)
    assert [row.prompt[0]["content"] for row in rows] == ["2", "3", "4"]


def test_zipped_lines_arrays_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.write('{"prompt": "one"}\n')
    (folder / "b.json").write_text('[{"prompt": "two"}]')
    rows = read_source(DataSettings(path=str(folder)), leaf(folder), "data.x")
    assert [row.prompt[0]["content"] for row in rows] == ["one", "two"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"data\.prefs, row 0: no column 'prompt', found \['text'\]"),
        ({"prompt": 3}, "expected text or a list of messages, got 3"),
        ({"prompt": [{"speaker": "x"}]}, "a message needs role and content"),
        ({"chosen": "\n\nHuman: hi", "rejected": "\n\nHuman: hi"}, "must end with an Assistant turn"),
    ],
)
def test_a_bad_row_is_named_with_what_it_holds(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, [row])


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows"):
        read(tmp_path, [])


def test_a_missing_file_is_an_error_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"data\.prefs\.path: no such file or folder"):
        source_leaf(DataSettings(path="nowhere/data.jsonl"), "data.prefs")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"prompt": "tea?"}\n\n{"prompt": \n',
            r"line 3 of '.*data\.jsonl' is no valid JSON: Expecting value at column",
        ),
        ('[\n{"prompt": "tea?"},\n{"prompt" "tea?"}\n]', r"line 3 of '.*data\.jsonl' is no valid JSON: Expecting ':'"),
        ('{"prompt": "tea?"}\n"tea?"\n', r"line 2 of '.*data\.jsonl' is no object: 'tea\?'"),
        ('[{"prompt": "tea?"}, 3]', r"entry 1 of '.*data\.jsonl' is no object: 3"),
    ],
)
def test_broken_json_names_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"data\.prefs: " + message):
        read_source(DataSettings(path="data.jsonl"), leaf(tmp_path / "data.jsonl"), "data.prefs")


def test_a_split_of_a_local_file_is_refused_rather_than_ignored(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "tea?"}')
    with pytest.raises(UserError, match=r"data\.prefs\.split: split 'test' of a local file"):
        source_leaf(DataSettings(path=str(tmp_path / "data.jsonl"), split="test"), "data.prefs")


def test_pairs_may_be_ties_soft_and_have_margins(tmp_path: Path) -> None:
    pair = {"prompt": "tea?", "chosen": "yes", "rejected": "no"}
    rows = read(tmp_path, [pair | more for more in ({"tie": True}, {"p_chosen": 0.8, "margin": 2}, {"tie": 0})])
    assert [(row.p_chosen, row.margin) for row in rows] == [(0.5, None), (0.8, 2.0), (1.0, None)]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"p_chosen": 0.3}, "p_chosen is 0.3.*call the likelier response chosen"),
        ({"p_chosen": 0.8, "tie": 1}, "p_chosen is 0.8 in a tie"),
        ({"tie": "model_a"}, "tie is 'model_a'"),
        ({"margin": -1}, "margin is -1"),
    ],
)
def test_ties_and_margins_that_mean_nothing_are_refused(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=f"data.prefs, row 0: {told}"):
        read(tmp_path, [{"prompt": "tea?", "chosen": "yes", "rejected": "no"} | more])


_KEY_THEN_READ = """
from sail.core.run_settings import DataSettings
from sail.generation.sources import read_source, source_leaf

source = DataSettings(path="org/prefs")
files = source_leaf(source, "data.prefs")
(row,) = read_source(source, files, "data.prefs")
print(files.key, row.prompt[0]["content"])
"""


def test_rows_of_a_hub_dataset_are_those_of_the_commit_in_the_key_whatever_was_pushed_since(tmp_path: Path) -> None:
    with hub() as url:
        done = subprocess.run(
            [sys.executable, "-c", _KEY_THEN_READ], capture_output=True, text=True, check=False,
            env=os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        )  # fmt: skip
    assert done.stdout == f"hub-org/prefs@{BEFORE} before\n", done.stderr
