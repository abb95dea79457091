"""A reward model as a labeler: a sequence classifier with one output, its own tokenizer and its own template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from sail.core.errors import UserError
from sail.core.records import Example
from sail.core.run_settings import RewardModelLabeler, VllmSettings
from sail.core.store import Workspace
from sail.labeling.labeler_row import Labeler, Scorer
from sail.labeling.labelers.callable import checked_scores
from sail.labeling.reward_model import RewardModel, context_length, encode, load_reward_model, padding_id
from sail.policy.devices import free_memory
from sail.policy.loading import Checkpoint, model_folder, resolve_model
from sail.serving.errors import ServerError
from sail.serving.reward_server import RewardServer, ServedReward


@dataclass(frozen=True, slots=True)
class RewardOrigin:
    """What a run has for a reward model: its checkpoint, and where its server is had."""

    checkpoint: Checkpoint | None = None  # the fit stage's artifact, or the user's model as the run resolved it
    server: Callable[[], RewardServer] | None = None  # only called where there is something to score


def reward_model_labeler(name: str, settings: RewardModelLabeler, made_here: RewardOrigin | None = None) -> Labeler:
    """The labeler of a reward model: the checkpoint given, else the user's (settings.path).

    In process, weights are fp32 on CPU and as saved on GPU; batch_size moves scores in their last digits only
    (padding). Behind vLLM (settings.vllm) they are checked against the scores in process, so where they are computed
    changes no key; vllm.dtype and vllm.args do, where they are set.
    """
    origin, where = made_here or RewardOrigin(), f"labelers.{name}.path"
    checkpoint = origin.checkpoint or _users(name, settings)

    def open_model(workspace: Workspace) -> Scorer:
        if settings.vllm is None:
            score = _in_process(checkpoint, settings.batch_size, where)
        else:
            assert origin.server is not None, f"labeler {name!r} scores through a server, and none was given"
            score = _served(checkpoint, origin.server, name)
        return lambda examples: checked_scores(score(examples), len(examples), str(checkpoint.path), f"labelers.{name}")

    return Labeler(name, checkpoint, {"kind": "reward_model", **_recipe(settings.vllm)}, open_model)


def _recipe(vllm: VllmSettings | None) -> dict[str, Any]:
    """What of a server can move scores by more than the check lets through unseen."""
    if vllm is None:
        return {}
    default = VllmSettings()
    changed = {"dtype": vllm.dtype, "args": vllm.args}
    return {f"vllm.{name}": value for name, value in changed.items() if value != getattr(default, name)}


def _users(name: str, settings: RewardModelLabeler) -> Checkpoint:
    if settings.path is None:
        raise ValueError(f"labeler {name!r} is to be fitted here: pass the artifact of fit_reward_model")
    return resolve_model(settings.path, where=f"labelers.{name}.path")


def _in_process(checkpoint: Checkpoint, batch_size: int, where: str) -> Scorer:
    model = load_reward_model(model_folder(checkpoint), where)
    return lambda examples: score_examples(model, examples, batch_size, where)


def _served(checkpoint: Checkpoint, server: Callable[[], RewardServer], name: str) -> Scorer:
    folder, where = model_folder(checkpoint), f"labelers.{name}.path"
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)

    def in_process(rows: Sequence[Sequence[int]]) -> list[float]:
        scores = score_rows(load_reward_model(folder, where), rows, 1)
        free_memory()
        return scores

    served = ServedReward(folder, checkpoint.key, padding_id(config, tokenizer, where), in_process)

    def score(examples: Sequence[Example]) -> list[float]:
        rows = [encode(tokenizer, example) for example in examples]
        _refuse_too_long(rows, context_length(config), where)
        try:
            return server().score(served, rows)
        except ServerError as error:
            row = "" if error.position is None else f"{_told(examples[error.position])}: "
            raise ServerError(f"labelers.{name}: {row}{error}") from error

    return score


def _told(example: Example) -> str:
    """Enough of a response to find it again."""
    return f"the response {example.response[:60]!r} to {example.prompt[-1]['content'][:60]!r}"


def score_examples(model: RewardModel, examples: Sequence[Example], batch_size: int, where: str = "") -> list[float]:
    """r(x, y) of every example, in their order; batches are made of conversations of similar length."""
    rows = [model.encode(example) for example in examples]
    _refuse_too_long(rows, model.context_length, where)
    return score_rows(model, rows, batch_size)


def score_rows(model: RewardModel, rows: Sequence[Sequence[int]], batch_size: int) -> list[float]:
    """r of rows of token ids."""
    scores = torch.zeros(len(rows), dtype=torch.float64)
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        with torch.no_grad():
            scores[batch] = model.rewards([rows[index] for index in batch]).double().cpu()
    values: list[float] = scores.tolist()
    return values


def _refuse_too_long(rows: Sequence[Sequence[int]], limit: int, where: str) -> None:
    longest = max((len(row) for row in rows), default=0)
    if longest > limit:
        raise UserError(
            f"a conversation has {longest} tokens, the reward model's context is {limit}", where=where,
            cure="Lower max_completion_length or max_length, or take a reward model with a longer context",
        )  # fmt: skip
