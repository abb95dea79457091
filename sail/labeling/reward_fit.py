"""The fit stage: a Bradley-Terry reward model from the pairs of a dataset."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sail.core.artifacts import Artifact
from sail.core.errors import UserError
from sail.core.labeler_settings import RewardFitSettings
from sail.core.seeds import derive_seed
from sail.core.store import Builder, Recipe, Workspace
from sail.labeling.calibration import (
    accuracy,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from sail.labeling.reward_loss import pair_loss
from sail.labeling.reward_model import RewardModel, freeze_body, new_reward_model
from sail.labeling.reward_pairs import RewardPair, batches, read_pairs, split_holdout
from sail.labeling.reward_training import held_out_margins, train
from sail.policy.loading import Checkpoint, is_adapter, model_folder, quiet_loading

VERSION = 3
METRICS_FILE = "metrics.jsonl"
_WHERE = "labelers.fit"


def fit_reward_model(
    builder: Builder, pairs_data: Artifact, init: Checkpoint, settings: RewardFitSettings, seed: int
) -> Artifact:
    """A sequence-classification model in <artifact>/model, fitted on the verdicts of `pairs_data`, in fp32.

    Minimises the mean of sail.labeling.reward_loss from `init`: a causal language model, whose head is new and drawn
    from `seed`, or a classifier with one output, which keeps its own. AdamW (.9, .95), warm-up .1, cosine to a tenth,
    clip 1. metrics.jsonl holds a line per step. The manifest's result: steps, pairs, pairs_holdout, and where pairs
    are held out reward/accuracy_holdout, reward/temperature, reward/nll_holdout, reward/ece_holdout.
    UserError if there are no pairs to fit on, a column that the settings ask for is missing, or `init` is an adapter.
    """

    def run(workspace: Workspace) -> dict[str, Any]:
        if is_adapter(init):
            raise UserError("a reward model cannot start from an adapter", where=f"{_WHERE}.init_from",
                            cure="Name a model with full weights")  # fmt: skip
        model = new_reward_model(model_folder(init), derive_seed(seed, "reward_head"), f"{_WHERE}.init_from")
        if settings.train == "head":
            freeze_body(model, f"{_WHERE}.train")
        pairs, held_out = split_holdout(read_pairs(pairs_data, model, settings.margin, _WHERE), settings.holdout)
        _check(pairs, held_out, model)
        _check_ties(pairs, settings)
        steps = settings.steps or math.ceil(settings.epochs * len(pairs) / settings.train_batch_size)
        _train(workspace, model, list(batches(pairs, steps, settings.train_batch_size, seed)), settings, seed)
        with quiet_loading():
            model.model.save_pretrained(workspace.path / "model")
        model.tokenizer.save_pretrained(workspace.path / "model")
        margins = held_out_margins(model, held_out, settings.max_tokens_per_microbatch)
        figures = _holdout_figures(margins, [pair.p for pair in held_out])
        return {"steps": steps, "pairs": len(pairs), "pairs_holdout": len(held_out), **figures}

    recipe = _recipe(settings) | {"seed": seed}
    return builder.build(Recipe("reward", VERSION, recipe, {"pairs": pairs_data, "init": init}), run)


def _recipe(settings: RewardFitSettings) -> dict[str, Any]:
    """The data and the starting model count by content, as inputs; epochs only where they set the steps."""
    recipe = settings.recipe()
    for name in ("data", "init_from", "epochs" if settings.steps is not None else "steps"):
        del recipe[name]
    return recipe


def _check(pairs: Sequence[RewardPair], held_out: Sequence[RewardPair], model: RewardModel) -> None:
    if not pairs:
        raise UserError(
            f"no pairs to fit a reward model on ({len(held_out)} are held out)", where=f"{_WHERE}.data",
            cure="Give a data source with chosen and rejected responses, or lower fit.holdout",
        )  # fmt: skip
    longest = max(pair.width for pair in [*pairs, *held_out])
    if longest > model.context_length:
        raise UserError(
            f"a conversation has {longest} tokens, the model's context is {model.context_length}",
            where=f"{_WHERE}.data", cure="Set overlong: drop on that data source",
        )  # fmt: skip


def _check_ties(pairs: Sequence[RewardPair], settings: RewardFitSettings) -> None:
    """Without ties in the data nothing tells a threshold from a margin."""
    if settings.ties != "none" and all(pair.p != 0.5 for pair in pairs):
        raise UserError(
            f"{settings.ties} models ties, and no pair of {settings.data!r} is one", where=f"{_WHERE}.ties",
            cure="Give the data a column 'tie' (true or false) or 'p_chosen' (1/2 for a tie), or leave ties out",
        )  # fmt: skip


def _train(
    workspace: Workspace, model: RewardModel, work: list[list[RewardPair]], settings: RewardFitSettings, seed: int
) -> None:
    with Path(workspace.path / METRICS_FILE).open("w") as log, torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "reward_dropout"))
        for metrics in train(
            model, work, loss=pair_loss(settings.ties, settings.tie_threshold, settings.label_noise),
            learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
            max_tokens=settings.max_tokens_per_microbatch,
        ):  # fmt: skip
            log.write(json.dumps(metrics) + "\n")
            if metrics["step"] % 10 == 0 or metrics["step"] == len(work):
                workspace.say(f"step {metrics['step']} of {len(work)}: loss {metrics['loss']:.4f}")


def _holdout_figures(margins: Sequence[float], p: Sequence[float]) -> dict[str, float]:
    if not margins:
        return {}
    temperature = fit_temperature(margins, p)
    figures = {
        "reward/accuracy_holdout": accuracy(margins, p),
        "reward/temperature": temperature,
        "reward/nll_holdout": negative_log_likelihood(margins, temperature, p),
        "reward/ece_holdout": expected_calibration_error(margins, temperature, p),
    }
    return {name: value for name, value in figures.items() if value is not None}
