"""Conditional alignment: a row's own score, written at the end of its prompt (Hu et al. 2023, arXiv 2308.12050).

The tag lives in token ids alone: a prompt's messages, which reward models and judges read, never carry it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sail.core.artifacts import Keyed, Leaf
from sail.core.records import Prompt, ResponseRow, Sample, SampleGroup
from sail.core.route_settings import PromptTagSettings
from sail.core.seeds import uniform
from sail.policy.chat import prompt_ids
from sail.policy.loading import Checkpoint, load_tokenizer


@dataclass(frozen=True, slots=True)
class Tagging:
    """How tags are written, and with which tokenizer."""

    settings: PromptTagSettings
    tokenizer: Checkpoint  # the run's starting model, whose chat template carries no tag yet
    chat_template: Leaf | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self) -> dict[str, Any]:
        own = self.settings.replace(target=0.0, evaluate_at=()).recipe()  # what is asked for later changes no row
        return own | {"chat_template_kwargs": dict(self.template_kwargs)}

    def inputs(self) -> dict[str, Keyed]:
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {"tokenizer": self.tokenizer, **template}


def with_tags(rows: Sequence[ResponseRow], tagging: Tagging, seed: int) -> list[ResponseRow]:
    """The rows with their tag; a seeded share stays without, so that the policy also knows the bare prompt."""
    return [dataclasses.replace(row, tag=_tag(row, tagging.settings, seed)) for row in rows]


def _tag(row: ResponseRow, settings: PromptTagSettings, seed: int) -> str:
    assert row.target is not None, "tags need scores; refused before the run"
    dropped = uniform(seed, "tag_dropout", row.row_id) < settings.dropout
    return "" if dropped else settings.text(row.target)


def tagged_groups(
    rows: Sequence[ResponseRow], index: Mapping[str, tuple[Prompt, Sample]], tagging: Tagging
) -> list[SampleGroup]:
    """One group a row: its prompt, tokenised with its tag, and its response."""
    tokenizer = load_tokenizer(tagging.tokenizer, tagging.chat_template)
    groups = []
    for row in rows:
        prompt, sample = index[row.response_id]
        ids = prompt_ids(tokenizer, prompt.messages, tagging.template_kwargs, row.tag)
        groups.append(SampleGroup(dataclasses.replace(prompt, token_ids=ids), (sample,)))
    return groups
