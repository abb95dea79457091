"""Prompts that ask for a score: conditional alignment's tag behind every prompt, as its training wrote it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sail.core.artifacts import Artifact, Keyed, Leaf
from sail.core.records import Prompt, ResponseRow
from sail.core.route_settings import PromptTagSettings
from sail.core.store import Builder, Recipe, Workspace
from sail.policy.chat import prompt_ids
from sail.policy.loading import Checkpoint, load_tokenizer
from sail.policy.tags import tag_for

VERSION = 1
_TABLES = ("train", "held_out")


def tag_prompts(
    builder: Builder,
    prompts: Artifact,
    rows: Sequence[Artifact],
    settings: PromptTagSettings,
    target: float | str,
    *,
    tokenizer: Checkpoint,
    chat_template: Leaf | None,
    template_kwargs: Mapping[str, Any],
) -> Artifact:
    """The prompts artifact again, every prompt tokenised with the tag that asks for `target`; messages stay bare.

    rows: the tagged rows the policy was trained on, whose targets give percentiles their meaning. tokenizer: the run's
    starting model, whose template carries no tag.
    """

    def run(workspace: Workspace) -> dict[str, str]:
        scores = [row.target for artifact in rows for row in artifact.read(ResponseRow, "rows")]
        tag = tag_for(settings, target, [score for score in scores if score is not None])
        template = load_tokenizer(tokenizer, chat_template)
        for table in _TABLES:
            tagged = [
                dataclasses.replace(prompt, token_ids=prompt_ids(template, prompt.messages, template_kwargs, tag))
                for prompt in prompts.read(Prompt, table)
            ]
            workspace.write(table, tagged, Prompt)
        return {"tag": tag}

    inputs: dict[str, Keyed] = {"prompts": prompts, "tokenizer": tokenizer}
    inputs |= {f"rows/{position}": artifact for position, artifact in enumerate(rows)}
    if chat_template is not None:
        inputs["chat_template"] = chat_template
    recipe = settings.replace(target=target, evaluate_at=()).recipe() | {"chat_template_kwargs": dict(template_kwargs)}
    return builder.build(Recipe("prompts", VERSION, recipe, inputs), run)
