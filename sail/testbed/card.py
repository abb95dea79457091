"""The README.md of a testbed folder."""

import statistics
from collections.abc import Sequence

from sail.testbed.gold import REWARDS
from sail.testbed.preferences import Preference, agreement
from sail.testbed.settings import MAX_RESPONSE_TOKENS, BuildSettings

_PAGE = """\
# A controlled testbed: tiny reviews with a known gold reward

Made by `python -m sail.testbed`; nothing here was downloaded, and nobody wrote it. `recipe.json` has the settings.

| file | what it is |
|---|---|
| `sft/` | the model to align: Llama, {num_parameters:,} parameters, fp32, word-level tokenizer, chat template |
| `prompts.jsonl` | {settings.num_prompts} prompts without responses: `prompt` |
| `prefs.jsonl` | {settings.num_labels} preference pairs: `prompt`, `chosen`, `rejected` |
| `prefs_heldout.jsonl` | {settings.num_heldout} more, on other prompts |
| `sft.jsonl` | {settings.num_demonstrations} demonstrations, what `sft/` was tuned on: `prompt`, `completion` |

The pairs are two samples of `sft/` at temperature 1, labelled by a simulated human,
P(y1 > y2) = sigmoid((r(y1) - r(y2)) / {settings.tau}) with the gold reward r = `sail.testbed.gold:{settings.reward}`.
A response has at most {max_tokens} tokens, EOS included; what ran on beyond that stands here as text without an end.

| over the responses of `prefs.jsonl` | |
|---|---|
| gold reward, mean and standard deviation | {mean:.2f}, {sd:.2f} |
| ended with EOS | {finished:.1%} |
| labels that agree with the gold reward | {agreement:.1%} |

Show the gold reward to the simulated human and to the evaluation, never to a learner.
"""


def model_card(settings: BuildSettings, labels: Sequence[Preference], num_parameters: int) -> str:
    """The page, with what was measured on the labelled responses."""
    reward = REWARDS[settings.reward]
    responses = [response for label in labels for response in (label.chosen, label.rejected)]
    rewards = reward(responses)
    return _PAGE.format(
        settings=settings,
        num_parameters=num_parameters,
        max_tokens=MAX_RESPONSE_TOKENS,
        mean=statistics.fmean(rewards),
        sd=statistics.pstdev(rewards),
        finished=statistics.fmean(response.finished for response in responses),
        agreement=agreement(labels, reward),
    )
