"""A preference dataset as tokenised pairs for a reward model, split by prompt."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.records import DatasetVerdict, Example, Prompt, Sample, SampleGroup, index_responses
from sail.core.seeds import permutation, uniform
from sail.labeling.reward_model import RewardModel


class RewardPair(NamedTuple):
    """Token ids of two whole conversations, by the reward model's template, and what the data says of them."""

    prompt_id: str
    chosen: list[int]
    rejected: list[int]
    p: float = 1.0  # P(chosen beats rejected), in [1/2, 1]; 1/2: a tie
    margin: float = 0.0  # in units of the reward

    @property
    def width(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def read_pairs(data: Artifact, model: RewardModel, margin: float | Literal["column"], where: str) -> list[RewardPair]:
    """Every verdict of a data artifact, in its order.

    margin: one for all pairs, or 'column', the data's own; UserError where a pair that is no tie has none.
    """
    index = index_responses(data.read(SampleGroup, "groups"))
    return [
        RewardPair(
            verdict.prompt_id,
            model.encode(_example(*index[verdict.chosen_id])),
            model.encode(_example(*index[verdict.rejected_id])),
            verdict.p_chosen,
            _margin(verdict, where) if margin == "column" else margin,
        )
        for verdict in data.read(DatasetVerdict, "verdicts")
    ]


def _margin(verdict: DatasetVerdict, where: str) -> float:
    if verdict.margin is None and not verdict.is_tie:
        raise UserError(
            f"a pair of prompt {verdict.prompt_id} has no column 'margin'", where=f"{where}.margin",
            cure="Name it with columns: {margin: <your column>} of that data source, or give a number",
        )  # fmt: skip
    return verdict.margin or 0.0


def _example(prompt: Prompt, sample: Sample) -> Example:
    return Example(prompt.messages, sample.text, sample.finished)


def split_holdout(pairs: Sequence[RewardPair], share: float) -> tuple[list[RewardPair], list[RewardPair]]:
    """(training pairs, held-out pairs): a prompt's pairs stay together, its id alone decides where.

    share: expected share of prompts held out; the same prompts under every seed, and whatever else the data holds.
    """
    held_out = {pair.prompt_id for pair in pairs if uniform("reward_holdout", pair.prompt_id) < share}
    train = [pair for pair in pairs if pair.prompt_id not in held_out]
    return train, [pair for pair in pairs if pair.prompt_id in held_out]


def batches(pairs: Sequence[RewardPair], steps: int, size: int, seed: int) -> Iterator[list[RewardPair]]:
    """`steps` batches of `size` pairs: one seeded permutation after the other, a batch may reach into the next."""
    orders: dict[int, Sequence[int]] = {}
    for step in range(steps):
        batch = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(pairs))
            if epoch not in orders:
                orders[epoch] = permutation(len(pairs), seed, "reward_order", epoch).tolist()
            batch.append(pairs[orders[epoch][place]])
        yield batch
