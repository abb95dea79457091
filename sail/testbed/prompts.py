"""Which prompts go where. Pairs, held-out pairs and free prompts share none, whatever the sizes asked for."""

from dataclasses import dataclass
from random import Random

from sail.core.seeds import derive_seed
from sail.testbed.settings import BuildSettings
from sail.testbed.writers import all_prompts

_HELDOUT, _FREE = slice(0, 300), slice(300, 3300)  # the other 4,380 are for labels


@dataclass(frozen=True)
class PromptSplit:
    """Lists of distinct prompts. Heldout, free and labelled share none; demonstrated and trained share labelled's."""

    heldout: list[str]
    free: list[str]
    labelled: list[str]
    demonstrated: list[str]
    trained: list[str]  # for pre-training: every prompt that may be labelled, whatever num_labels is


def split_prompts(settings: BuildSettings) -> PromptSplit:
    """Cut one shuffle of all prompts, so that asking for more labels moves no prompt from one file to another."""
    prompts = all_prompts(Random(derive_seed(settings.seed, "testbed", "prompts")))
    trained = prompts[_FREE.stop :]
    return PromptSplit(
        heldout=prompts[_HELDOUT][: settings.num_heldout],
        free=prompts[_FREE][: settings.num_prompts],
        labelled=trained[: settings.num_labels],
        demonstrated=trained[: settings.num_demonstrations],
        trained=trained,
    )
