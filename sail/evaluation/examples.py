"""A few samples for people to read, the same prompts in every round."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sail.core.artifacts import Artifact
from sail.core.records import Message, SampleGroup, ScoredGroup, StopKind
from sail.core.seeds import derive_seed

EXAMPLES_FILE = "examples.json"


@dataclasses.dataclass(frozen=True, slots=True)
class ShownResponse:
    """One response and what each scorer says of it."""

    text: str
    num_tokens: int
    stop_kind: StopKind
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt with its responses, of one evaluation."""

    prompt_id: str
    messages: tuple[Message, ...]
    responses: tuple[ShownResponse, ...]


def choose_examples(
    groups: Sequence[SampleGroup], scores: Mapping[str, Sequence[ScoredGroup]], seed: int, count: int = 8
) -> list[ShownPrompt]:
    """`count` prompts, chosen by seed and id alone, so that every round shows the same ones."""
    of_response = {
        name: {id_: score for row in scored for id_, score in zip(row.response_ids, row.scores, strict=True)}
        for name, scored in scores.items()
    }
    chosen = sorted(groups, key=lambda group: derive_seed(seed, "examples", group.prompt.prompt_id))[:count]
    return [_shown(group, of_response) for group in chosen]


def _shown(group: SampleGroup, of_response: Mapping[str, Mapping[str, float]]) -> ShownPrompt:
    responses = tuple(
        ShownResponse(
            text=sample.text,
            num_tokens=len(sample.token_ids),
            stop_kind=sample.stop_kind,
            scores={name: scores[sample.response_id] for name, scores in of_response.items()},
        )
        for sample in group.samples
    )
    return ShownPrompt(group.prompt.prompt_id, group.prompt.messages, responses)


def examples_json(examples: Sequence[ShownPrompt]) -> list[dict[str, Any]]:
    """Plain values for examples.json."""
    return [dataclasses.asdict(example) for example in examples]


def read_examples(evaluation: Artifact) -> list[ShownPrompt]:
    """The examples of a committed evaluation."""
    entries: list[dict[str, Any]] = json.loads((evaluation.path / EXAMPLES_FILE).read_text(encoding="utf-8"))
    return [
        ShownPrompt(
            entry["prompt_id"],
            tuple(entry["messages"]),
            tuple(ShownResponse(**response) for response in entry["responses"]),
        )
        for entry in entries
    ]
