"""Held-out prompts stay out, near-copies included; rounds walk through all prompts before any returns."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import Message, Prompt, SampleGroup, content_key
from sail.core.store import Recipe, Store, Workspace
from sail.generation.prompts import Part, part_of, round_prompts, split_prompts


def prompt(text: str) -> Prompt:
    return Prompt(f"p-{text}", (Message(role="user", content=text),), (1, 2))


def stored(root: Path, texts: list[str]) -> Artifact:
    def run(workspace: Workspace) -> dict[str, int]:
        workspace.write("groups", [SampleGroup(prompt(text), ()) for text in texts], SampleGroup)
        return {}

    return Store(root).build(Recipe("data", 1, {"texts": texts}, {}), run)


def test_case_punctuation_and_word_order_make_no_new_prompt() -> None:
    assert content_key(prompt("Tea, at noon?")) == content_key(prompt("noon at tea"))
    assert content_key(prompt("tea at noon")) != content_key(prompt("tea at midnight"))


def test_no_near_copy_of_a_held_out_prompt_is_trained_on(tmp_path: Path) -> None:
    texts = [f"topic {index} in town {index % 7}" for index in range(60)]
    data = stored(tmp_path, [*texts, *[text.upper() + "!" for text in texts]])
    split = split_prompts(Store(tmp_path), data, data, num_held_out=20, seed=3)
    train, held_out = split.read(Prompt, "train"), split.read(Prompt, "held_out")
    assert len(held_out) == 20
    assert len(train) == 120 - 40
    assert not {content_key(p) for p in train} & {content_key(p) for p in held_out}


@given(st.integers(1, 30), st.integers(1, 40))
def test_no_prompt_returns_before_all_were_seen(count: int, per_round: int) -> None:
    prompts = [prompt(str(index)) for index in range(count)]
    seen: list[str] = []
    while len(seen) < count:
        seen += [p.prompt_id for p in round_prompts(prompts, per_round, round_index=len(seen) // per_round, seed=0)]
        if per_round > count:
            break
    assert len(set(seen[:count])) == min(count, len(seen))


def test_without_per_round_every_round_has_all_prompts() -> None:
    prompts = [prompt(str(index)) for index in range(5)]
    assert round_prompts(prompts, None, round_index=3, seed=0) == prompts


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_the_parts_of_a_round_are_its_prompts_once_each(count: int, steps: int, width: int) -> None:
    prompts = [prompt(str(index)) for index in range(count)]
    parts = [Part(first, min(first + width, steps), steps) for first in range(0, steps, width)]
    if count * width >= steps:
        assert [one for part in parts for one in part_of(prompts, part)] == prompts
    assert part_of(prompts, Part(0, steps, steps)) == prompts


def test_a_part_without_prompts_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="leave none for steps 0 to 0"):
        part_of([prompt("a")], Part(0, 1, 2))
