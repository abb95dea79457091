"""The prompts stage: which prompts are trained on, which are held out, and which a round samples."""

from collections.abc import Sequence
from typing import NamedTuple

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import Prompt, SampleGroup, content_key
from sail.core.seeds import derive_seed, permutation
from sail.core.store import Builder, Recipe, Workspace

VERSION = 1


def split_prompts(
    builder: Builder, training: Artifact, evaluation: Artifact, *, num_held_out: int, seed: int
) -> Artifact:
    """Tables train and held_out (Prompt). Held out by content: no training prompt equals a held-out one up to case,
    punctuation and word order.

    With `evaluation` another source than `training`, the held-out prompts come from it.
    """

    def run(workspace: Workspace) -> dict[str, int]:
        candidates = _prompts(evaluation)
        order = sorted(candidates, key=lambda prompt: derive_seed(seed, "held out", content_key(prompt)))
        held_out = _distinct(order)[:num_held_out]
        taken = {content_key(prompt) for prompt in held_out}
        train = [prompt for prompt in _prompts(training) if content_key(prompt) not in taken]
        if not train:
            raise UserError(
                f"holding out {len(held_out)} prompts leaves none to train on", where="evaluation.num_prompts",
                cure="Hold out fewer, or give evaluation.prompts a source of its own",
            )  # fmt: skip
        workspace.write("train", train, Prompt)
        workspace.write("held_out", held_out, Prompt)
        return {"train": len(train), "held_out": len(held_out)}

    inputs = {"training": training, "evaluation": evaluation}
    return builder.build(Recipe("prompts", VERSION, {"num_held_out": num_held_out, "seed": seed}, inputs), run)


class Part(NamedTuple):
    """Steps first .. last - 1 of a round of `steps`, as a part of its prompts."""

    first: int
    last: int
    steps: int


def part_of(prompts: Sequence[Prompt], part: Part) -> list[Prompt]:
    """As many of a round's prompts as the part has of its steps; all parts together are the round's prompts."""
    chosen = prompts[len(prompts) * part.first // part.steps : len(prompts) * part.last // part.steps]
    if not chosen:
        raise UserError(
            f"{len(prompts)} prompts for {part.steps} steps leave none for steps {part.first} to {part.last - 1}",
            where="prompts.per_round", cure="Raise it, or steps_per_generation",
        )  # fmt: skip
    return list(chosen)


def round_prompts(prompts: Sequence[Prompt], per_round: int | None, *, round_index: int, seed: int) -> list[Prompt]:
    """The prompts of one round: a slice of seeded permutations, so that no prompt returns before all were seen."""
    if per_round is None:
        return list(prompts)
    first, last = round_index * per_round, (round_index + 1) * per_round
    epochs = range(first // len(prompts), (last - 1) // len(prompts) + 1)
    order = [index for epoch in epochs for index in permutation(len(prompts), seed, "prompts", epoch)]
    skipped = first - epochs[0] * len(prompts)
    chosen = [prompts[index] for index in order[skipped : skipped + per_round]]
    return list({prompt.prompt_id: prompt for prompt in chosen}.values())


def _prompts(data: Artifact) -> list[Prompt]:
    return [group.prompt for group in data.read(SampleGroup, "groups")]


def _distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({content_key(prompt): prompt for prompt in prompts}.values())
