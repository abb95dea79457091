"""The scores stage and its labelers."""

import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sail.core.errors import UserError
from sail.core.records import Example, SampleGroup, ScoredGroup
from sail.core.run_settings import CallableLabeler, LabelerSettings
from sail.core.settings import Settings
from sail.core.store import Store
from sail.labeling import LABELERS
from sail.labeling.scores import make_labeler, score_responses
from sail.testbed.gold import linear

from .doubles import make_group
from .stored import write_groups

GROUPS = [make_group(f"{word} film", "good", "the film was bad .") for word in ("film", "book", "meal", "song", "the")]
COUNTING = """
calls = []
fail_after = None

def score(examples):
    if fail_after is not None and len(calls) + len(examples) > fail_after:
        raise RuntimeError("killed")
    calls.extend(example.response + " to " + example.prompt[0]["content"] for example in examples)
    return [float(len(example.response)) for example in examples]

def short(examples):
    return [1.0]

def infinite(examples):
    return [float("inf") for _ in examples]

def nothing(examples):
    return [None for _ in examples]

def number(examples):
    return 1.0

constant = 3
again = score
"""

WriteModule = Callable[[str, str], Path]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WriteModule]:
    """Writes a module that the working folder holds, and forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written = []

    def write(name: str, source: str) -> Path:
        sys.modules.pop(name, None)
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        written.append(name)
        return path

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_every_response_gets_its_score_in_the_order_of_the_groups(store: Store, write_module: WriteModule) -> None:
    write_module("toy_counting", COUNTING)
    labeler = make_labeler("rule", CallableLabeler(path="toy_counting:score"))
    artifact = score_responses(store, write_groups(store, GROUPS, shard_size=2), labeler, shard_size=2)
    assert artifact.read(ScoredGroup, "scores") == [
        ScoredGroup(group.prompt.prompt_id, tuple(s.response_id for s in group.samples), (4.0, 18.0))
        for group in GROUPS
    ]
    assert artifact.result() == {"prompts": 5, "responses": 10, "mean_score": 11.0}
    assert len(list(artifact.path.glob("scores-*.parquet"))) == 3


@pytest.mark.parametrize("shard_size_after", [2, 1])
def test_a_killed_stage_asks_nobody_twice(store: Store, write_module: WriteModule, shard_size_after: int) -> None:
    write_module("toy_killed", COUNTING)
    labeler = make_labeler("rule", CallableLabeler(path="toy_killed:score"))
    module, responses = sys.modules["toy_killed"], write_groups(store, GROUPS)
    module.fail_after = 9  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="killed"):
        score_responses(store, responses, labeler, shard_size=2)
    assert len(module.calls) == 8  # type: ignore[attr-defined]
    module.fail_after = None  # type: ignore[attr-defined]
    artifact = score_responses(store, responses, labeler, shard_size=shard_size_after)
    calls = module.calls  # type: ignore[attr-defined]
    assert len(calls) == len(set(calls)) == 10
    assert len(artifact.read(ScoredGroup, "scores")) == 5
    score_responses(store, responses, labeler)
    assert len(calls) == 10


def test_the_key_hangs_on_the_source_of_the_module(store: Store, write_module: WriteModule) -> None:
    responses = write_groups(store, GROUPS)
    path = CallableLabeler(path="toy_source:score")
    write_module("toy_source", COUNTING)
    before = make_labeler("rule", path)
    same = make_labeler("another_name", path)
    other_function = make_labeler("rule", CallableLabeler(path="toy_source:again"))
    write_module("toy_source", COUNTING + "\n# changed")
    after = make_labeler("rule", path)
    keys = [score_responses(store, responses, labeler).key for labeler in (before, same, other_function, after)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert before.digest == same.digest != after.digest


def test_scores_are_filed_under_the_source_that_gave_them_though_it_is_edited_meanwhile(
    store: Store, write_module: WriteModule
) -> None:
    source, path = write_module("toy_edited", COUNTING), CallableLabeler(path="toy_edited:score")
    before = make_labeler("rule", path)
    source.write_text(COUNTING.replace("float(len(example.response))", "0.0"))
    during = make_labeler("rule", path)
    assert during.digest == before.digest
    assert score_responses(store, write_groups(store, GROUPS), during).result()["mean_score"] == 11.0
    write_module("toy_edited", source.read_text())  # another process imports what is there now
    assert make_labeler("rule", path).digest != before.digest


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("toy_errors", r"labelers\.rule\.path: 'toy_errors' is not of the form module:function"),
        ("no_such_module:score", r"labelers\.rule\.path: no module 'no_such_module'.*Check the spelling"),
        ("no_such.module:score", r"no module 'no_such\.module'"),
        ("toy_errors:scoer", r"module 'toy_errors' has no function 'scoer'.*Define def scoer"),
        ("toy_errors:constant", r"has no function 'constant'"),
        ("math:sqrt", r"'math' has no source file"),
    ],
)
def test_an_unknown_function_is_the_users_mistake(write_module: WriteModule, path: str, message: str) -> None:
    write_module("toy_errors", COUNTING)
    with pytest.raises(UserError, match=message):
        make_labeler("rule", CallableLabeler(path=path))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", r"labelers\.rule\.path: 'toy_results:short' returned 1 scores for 10 examples"),
        ("infinite", "returned inf among its scores"),
        ("nothing", "returned None among its scores"),
        ("number", "returned float instead of a list"),
    ],
)
def test_wrong_results_are_refused(store: Store, write_module: WriteModule, function: str, message: str) -> None:
    write_module("toy_results", COUNTING)
    labeler = make_labeler("rule", CallableLabeler(path=f"toy_results:{function}"))
    with pytest.raises(UserError, match=message):
        score_responses(store, write_groups(store, GROUPS), labeler)


def test_the_testbeds_gold_reward_is_a_labeler(store: Store) -> None:
    labeler = make_labeler("gold", CallableLabeler(path="sail.testbed.gold:linear"))
    (scored, *_) = score_responses(store, write_groups(store, GROUPS), labeler).read(ScoredGroup, "scores")
    messages = GROUPS[0].prompt.messages
    examples = [Example(messages, sample.text, True) for sample in GROUPS[0].samples]
    assert list(scored.scores) == linear(examples)


def labeler_sections() -> tuple[type[Settings], ...]:
    return typing.get_args(typing.get_args(LabelerSettings)[0])


def test_every_labeler_declares_itself() -> None:
    own = {"dataset", "policy", "order"}  # those need no settings
    configured = {typing.get_args(section.model_fields["kind"].annotation)[0] for section in labeler_sections()}
    assert set(LABELERS) == own | configured
    for name, row in LABELERS.items():
        assert row.kind == name
        assert row.needs and row.source and row.status


def test_a_plan_reads_nothing(store: Store) -> None:
    """Scores of samples that do not exist yet get their key."""
    seen = []

    class Plan:
        def build(self, recipe, run, estimate=None):  # type: ignore[no-untyped-def]
            seen.append(recipe.key)
            return store.artifact(recipe.stage, recipe.key)

    labeler = make_labeler("gold", CallableLabeler(path="sail.testbed.gold:hump"))
    responses = write_groups(store, GROUPS)
    future = store.artifact(responses.stage, "0" * 20)
    planned = score_responses(Plan(), responses, labeler)
    assert score_responses(Plan(), future, labeler).key != planned.key
    assert score_responses(store, responses, labeler) == planned
    assert seen[0] == planned.key
    assert [group.prompt.prompt_id for group in responses.read(SampleGroup, "groups")] == [
        row.prompt_id for row in planned.read(ScoredGroup, "scores")
    ]
