"""A reward model as a labeler: a sequence classifier with one output, its own tokenizer and its own template."""

from collections.abc import Sequence

import torch

from sail.core.errors import UserError
from sail.core.records import Example
from sail.core.run_settings import RewardModelLabeler
from sail.core.store import Workspace
from sail.labeling.labeler_row import Labeler, Scorer
from sail.labeling.labelers.callable import checked_scores
from sail.labeling.reward_model import RewardModel, load_reward_model
from sail.policy.loading import Checkpoint, model_folder, resolve_model


def reward_model_labeler(name: str, settings: RewardModelLabeler, checkpoint: Checkpoint | None = None) -> Labeler:
    """The labeler of a reward model: the checkpoint given (the fit stage's artifact), else the user's (settings.path).

    Weights are fp32 on CPU and as saved on GPU. batch_size moves scores in their last digits only (padding).
    """
    checkpoint = checkpoint or _users(name, settings)

    def open_model(workspace: Workspace) -> Scorer:
        model = load_reward_model(model_folder(checkpoint), where=f"labelers.{name}.path")

        def score(examples: Sequence[Example]) -> list[float]:
            scores = score_examples(model, examples, settings.batch_size, where=f"labelers.{name}.path")
            return checked_scores(scores, len(examples), str(checkpoint.path), f"labelers.{name}")

        return score

    return Labeler(name, checkpoint, {"kind": "reward_model"}, open_model)


def _users(name: str, settings: RewardModelLabeler) -> Checkpoint:
    if settings.path is None:
        raise ValueError(f"labeler {name!r} is to be fitted here: pass the artifact of fit_reward_model")
    return resolve_model(settings.path, where=f"labelers.{name}.path")


def score_examples(model: RewardModel, examples: Sequence[Example], batch_size: int, where: str = "") -> list[float]:
    """r(x, y) of every example, in their order; batches are made of conversations of similar length."""
    rows = [model.encode(example) for example in examples]
    longest = max((len(row) for row in rows), default=0)
    if longest > model.context_length:
        raise UserError(
            f"a conversation has {longest} tokens, the reward model's context is {model.context_length}", where=where,
            cure="Lower max_completion_length or max_length, or take a reward model with a longer context",
        )  # fmt: skip
    scores = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        with torch.no_grad():
            scores[batch] = model.rewards([rows[index] for index in batch]).double().cpu()
    values: list[float] = scores.tolist()
    return values
