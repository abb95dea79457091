"""Everything a testbed folder holds, written out in the forms any Hugging Face model and dataset has."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch

from sail.core.seeds import derive_seed
from sail.policy.loading import quiet_loading
from sail.testbed.card import model_card
from sail.testbed.chat import answered, asked
from sail.testbed.gold import REWARDS
from sail.testbed.model import Row, train_policy
from sail.testbed.preferences import Preference, draw_pairs, prefer
from sail.testbed.prompts import split_prompts
from sail.testbed.settings import MAX_POSITIONS, BuildSettings
from sail.testbed.tokenizer import build_tokenizer
from sail.testbed.writers import CAREFUL, write_review


def write_contents(folder: Path, settings: BuildSettings, say: Callable[[str], None]) -> None:
    """Train the policy, have its samples labelled, and write the files into an existing folder."""
    prompts, tokenizer, reward = split_prompts(settings), build_tokenizer(MAX_POSITIONS), REWARDS[settings.reward]
    demonstrations = demonstrate(settings, prompts.demonstrated)
    tokenizer.save_pretrained(folder / "sft")  # before it is used: it would write down how it last padded
    with one_thread():
        say(f"training: {settings.pretrain_steps} + {settings.sft_steps} steps")
        model = train_policy(settings, tokenizer, prompts.trained, demonstrations)
        labels = []
        for name, asked_for in (("prefs", prompts.labelled), ("heldout", prompts.heldout)):
            say(f"labels: {len(asked_for)} pairs for {name}")
            pairs = draw_pairs(model, tokenizer, asked_for, settings.seed, "testbed", "samples", name)
            labels.append(prefer(pairs, reward, settings.tau, settings.seed, "testbed", "human", name))
    with quiet_loading():
        model.save_pretrained(folder / "sft")
    write_jsonl(folder / "prompts.jsonl", ({"prompt": asked(prompt)} for prompt in prompts.free))
    write_jsonl(folder / "prefs.jsonl", map(_preference_row, labels[0]))
    write_jsonl(folder / "prefs_heldout.jsonl", map(_preference_row, labels[1]))
    write_jsonl(folder / "sft.jsonl", ({"prompt": asked(p), "completion": answered(r)} for p, r in demonstrations))
    (folder / "README.md").write_text(model_card(settings, labels[0], model.num_parameters()), encoding="utf-8")


def demonstrate(settings: BuildSettings, prompts: Sequence[str]) -> list[Row]:
    """A careful review for each prompt."""
    random = Random(derive_seed(settings.seed, "testbed", "demonstrations"))
    return [(prompt, write_review(prompt, CAREFUL, random)) for prompt in prompts]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def one_thread() -> Iterator[None]:
    """The order of a sum depends on the number of threads, and with it the last bits of the weights."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _preference_row(preference: Preference) -> dict[str, Any]:
    """What the learner sees: no reward, no probability."""
    return {
        "prompt": list(preference.chosen.prompt),
        "chosen": answered(preference.chosen.response),
        "rejected": answered(preference.rejected.response),
    }
