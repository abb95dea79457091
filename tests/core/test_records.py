"""Records validate themselves and survive the disk."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail.core.records import PreferencePair, Prompt, Sample, SampleGroup, index_responses
from sail.core.tables import SCHEMAS, read_table, write_table

PROMPT = Prompt("p-1", ({"role": "user", "content": "tea at noon"},), (1, 17, 2))
SAMPLE = Sample("p-1-r0-0", "policy", "good .", (5, 8, 3), (-0.1, -0.2, -0.3), "eos", "v1", 2**62 - 1)
PAIR = PreferencePair(
    "pair-1", "p-1", "p-1-r0-0", "p-1-r0-1", 0, "others", "soft", "rm", "digest", "A", 0.75, 1.5, None, 0.25, 3, 4,
    False, True, PROMPT.messages,
    ({"role": "assistant", "content": "good ."},), ({"role": "assistant", "content": ""},),
)  # fmt: skip


def test_records_survive_a_table(tmp_path: Path) -> None:
    group = SampleGroup(PROMPT, (SAMPLE, replace(SAMPLE, response_id="p-1-r0-1", logprobs=())))
    for rows, kind in (([group], SampleGroup), ([PAIR], PreferencePair), ([PROMPT], Prompt), ([], PreferencePair)):
        write_table(tmp_path / "t.parquet", rows, kind)
        assert read_table(tmp_path / "t.parquet", kind) == rows


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5), st.text(max_size=20))
def test_floats_and_text_survive_to_the_last_bit(logprobs: list[float], text: str) -> None:
    import tempfile

    ids = tuple(range(len(logprobs)))
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    group = SampleGroup(PROMPT, (replace(SAMPLE, text=text, token_ids=ids, logprobs=tuple(logprobs)),))
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "t.parquet", [group], SampleGroup)
        assert read_table(Path(folder) / "t.parquet", SampleGroup) == [group]


def test_every_schema_has_the_fields_of_its_record() -> None:
    from dataclasses import fields

    for kind, schema in SCHEMAS.items():
        assert schema.names == [field.name for field in fields(kind)]


def test_log_probs_without_their_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens, 1 log-probs"):
        replace(SAMPLE, logprobs=(-1.0,))


def test_a_response_with_two_owners_is_refused() -> None:
    other = Prompt("p-2", PROMPT.messages, (1, 2))
    with pytest.raises(ValueError, match="appears twice"):
        index_responses([SampleGroup(PROMPT, (SAMPLE,)), SampleGroup(other, (SAMPLE,))])


@pytest.mark.parametrize("change", [{"p_a": 1.5}, {"b_id": "p-1-r0-0"}])
def test_a_pair_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="pair-1"):
        replace(PAIR, **change)


def test_a_truncated_sample_is_not_finished() -> None:
    assert SAMPLE.finished
    assert not replace(SAMPLE, stop_kind="length").finished
