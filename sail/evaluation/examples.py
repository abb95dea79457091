"""A few samples for people to read, the same prompts in every round."""

from collections.abc import Mapping, Sequence
from typing import Any

from sail.core.records import Sample, SampleGroup, ScoredGroup
from sail.core.seeds import derive_seed


def choose_examples(
    groups: Sequence[SampleGroup], scores: Mapping[str, Sequence[ScoredGroup]], seed: int, count: int = 8
) -> list[dict[str, Any]]:
    """The content of examples.json: `count` prompts with all their responses and what each scorer says of them.

    Chosen by seed and prompt id alone, so that every round shows the same prompts. An entry, as the report reads it:

        {"prompt_id": "p-3fa9", "messages": [{"role": "user", "content": "film in paris on monday"}],
         "responses": [{"text": "the film was good .", "num_tokens": 6, "stop_kind": "eos", "scores": {"rm": 1.25}}]}
    """
    of_response = {
        name: {id_: score for row in scored for id_, score in zip(row.response_ids, row.scores, strict=True)}
        for name, scored in scores.items()
    }
    chosen = sorted(groups, key=lambda group: derive_seed(seed, "examples", group.prompt.prompt_id))[:count]
    return [
        {
            "prompt_id": group.prompt.prompt_id,
            "messages": list(group.prompt.messages),
            "responses": [_response(sample, of_response) for sample in group.samples],
        }
        for group in chosen
    ]


def _response(sample: Sample, of_response: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {
        "text": sample.text,
        "num_tokens": len(sample.token_ids),
        "stop_kind": sample.stop_kind,
        "scores": {name: scores[sample.response_id] for name, scores in of_response.items()},
    }
