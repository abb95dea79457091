"""The samples stage over the in-process engine: what is dropped, what is recorded, what is said on the way."""

import re

import pytest

from sail.core.artifacts import Artifact, leaf
from sail.core.errors import UserError
from sail.core.records import Prompt, SampleGroup
from sail.core.run_settings import GenerationSettings
from sail.core.store import Recipe, Store
from sail.generation.stage import generate
from sail.generation.transformers_engine import TransformersEngine
from tests.serving_fixtures import CONTEXT, make_tiny_policy

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
LENGTHS = (3, 5, 500, 4, 2, 6)  # one prompt has no room for an answer in the context


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "model"
    tiny = make_tiny_policy(folder, seed=0, tied=False)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return leaf(tiny.path)


def draw(store: Store, policy, **settings) -> Artifact:
    def write(workspace):
        prompts = [Prompt(f"p-{index}", (), (7 + index,) * length) for index, length in enumerate(LENGTHS)]
        workspace.write("train", prompts, Prompt)
        return {}

    return generate(
        store, TransformersEngine(), prompts=store.build(Recipe("prompts", 1, {}, {}), write), table="train",
        policy=policy, settings=GenerationSettings(max_completion_length=16, shard_size=2, **settings),
        engine_settings={}, num_samples=2, per_round=None, round_index=0, seed=3,
    )  # fmt: skip


def test_a_prompt_without_room_for_its_answer_is_dropped_and_counted(policy, tmp_path):
    artifact = draw(Store(tmp_path), policy)
    assert [group.prompt.prompt_id for group in artifact.read(SampleGroup, "groups")] == ["p-0", "p-1", "p-3", "p-4",
                                                                                        "p-5"]  # fmt: skip
    assert artifact.result()["dropped_overlong"] == 1


def test_or_it_is_an_error_before_anything_is_drawn(policy, tmp_path):
    with pytest.raises(UserError, match=f"prompt p-2 has 500 tokens, with 16 to sample it passes .* of {CONTEXT}"):
        draw(Store(tmp_path), policy, overlong="error")


def test_sampling_away_from_the_policy_is_recorded(policy, tmp_path):
    assert draw(Store(tmp_path), policy).result()["off_policy"] == {}
    tempered = draw(Store(tmp_path), policy, temperature=0.5, top_k=5)
    assert tempered.result()["off_policy"] == {"temperature": 0.5, "top_k": 5}


def test_every_stop_kind_is_counted(policy, tmp_path):
    result = draw(Store(tmp_path), policy).result()
    kinds = {name: count for name, count in result.items() if name.startswith("stop_")}
    assert kinds.keys() == {"stop_eos", "stop_stop_token", "stop_stop_string", "stop_length", "stop_abort"}
    assert sum(kinds.values()) == result["samples"] == 10


def test_progress_has_the_pace_and_the_time_left(policy, tmp_path):
    said = []
    draw(Store(tmp_path, lambda event: said.append(event.text)), policy)
    progress = [text for text in said if " of 5 prompts" in text]
    assert len(progress) == 5
    assert re.fullmatch(r"5 of 5 prompts, [\d,]+ tokens/s, about 0 s left", progress[-1])
