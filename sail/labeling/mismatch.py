"""KTO's mismatched responses: every prompt meets the response of another prompt, fixed when the rows are made.

Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1: the mean log-ratio of such responses estimates the KL from
policy to reference. A shift within a microbatch, as often done, depends on how the batch is cut; this does not.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from sail.core.errors import UserError
from sail.core.records import Prompt, ResponseRow, Sample, SampleGroup
from sail.core.seeds import derive_seed


def mismatched(rows: Sequence[ResponseRow], seed: int, where: str) -> list[ResponseRow]:
    """The rows with mismatched_id filled in, in their order: a bijection that leaves no response with its prompt.

    Rows are laid out prompt by prompt in a seeded order and shifted by the most rows any prompt has. UserError where
    one prompt has more than half of all rows: then there is no such bijection.
    """
    largest = max(Counter(row.prompt_id for row in rows).values())
    if 2 * largest > len(rows):
        raise UserError(
            f"one prompt has {largest} of {len(rows)} responses: no response of another prompt is left for each",
            where=where, cure="KTO estimates the KL from mismatched responses: give it more prompts",
        )  # fmt: skip
    order = sorted(rows, key=lambda row: (derive_seed(seed, "mismatch", row.prompt_id), row.row_id))
    partner = {row.row_id: order[(k + largest) % len(order)].response_id for k, row in enumerate(order)}
    return [dataclasses.replace(row, mismatched_id=partner[row.row_id]) for row in rows]


def mismatched_groups(rows: Sequence[ResponseRow], index: Mapping[str, tuple[Prompt, Sample]]) -> list[SampleGroup]:
    """Every prompt with its mismatched responses, as groups that log-probs can be computed on."""
    samples: dict[str, list[Sample]] = {}
    for row in rows:
        stranger = index[row.mismatched_id][1]
        samples.setdefault(row.prompt_id, []).append(
            dataclasses.replace(stranger, response_id=row.mismatched_response_id)
        )
    prompts = {row.prompt_id: index[row.response_id][0] for row in rows}
    return [SampleGroup(prompts[prompt_id], tuple(strangers)) for prompt_id, strangers in samples.items()]
