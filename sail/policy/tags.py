"""Prompt tags of conditional alignment: one text in training, sampling, evaluation and the saved template."""

import json
from collections.abc import Sequence

import numpy as np

from sail.core.route_settings import PromptTagSettings


def tag_for(settings: PromptTagSettings, target: float | str, scores: Sequence[float]) -> str:
    """The tag that asks for `target`: a normalised score, or a percentile (p90) or 'max' of the training scores."""
    if target == "max":
        value = max(scores)
    elif isinstance(target, str):
        value = float(np.percentile(scores, float(target.removeprefix("p"))))
    else:
        value = target
    return settings.text(value)


def tagged_template(template: str, tag: str) -> str:
    """A chat template whose generation prompt ends with the tag: what sail.policy.chat.prompt_ids encodes with it."""
    return template + "{% if add_generation_prompt %}{{ " + json.dumps(tag) + " }}{% endif %}"
