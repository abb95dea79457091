"""A process that may allocate little: its update fails, then goes on in smaller microbatches, and a larger model does
not fit. Prints what it saw.

Run as a module, by its test, with a folder.
"""

import resource
import sys
from dataclasses import replace
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.core.records import Message, Prompt, Sample, SampleGroup
from sail.core.route_settings import LossSettings
from sail.core.store import Store
from sail.policy.loading import load_policy
from sail.update.stage import update
from tests.update.stored import World, stored_groups

ROOM = 128 * 2**20  # bytes: a microbatch of all rows takes more, of one pair far less


def long_groups(count: int, length: int) -> list[SampleGroup]:
    groups = []
    for index in range(count):
        prompt = Prompt(f"p-{index}", (Message(role="user", content="w"),), (3, 4, 5 + index))
        samples = tuple(
            Sample(f"p-{index}-{side}", "data:prefs", "r", tuple(range(3, 90)) * (length // 87) + (side + 5, 2), (),
                   "eos", "v", 0) for side in range(2)
        )  # fmt: skip
        groups.append(SampleGroup(prompt, samples))
    return groups


def _load_what_does_not_fit(folder: Path) -> str:
    try:
        load_policy(leaf(folder))
    except UserError as error:
        return str(error)
    return "it fits"


def main(root: Path) -> None:
    world = World(root)
    world.data = stored_groups(world.store, long_groups(12, 1000), "data")
    route = world.offline(LossSettings(type="dpo", params={"beta": 0.5}))
    inputs = world.inputs(route, steps=3, train_batch_size=12, max_tokens_per_microbatch=2500)
    whole = update(Store(root / "whole"), inputs)
    notes: list[str] = []

    def stop_after_a_step(event: object) -> None:
        if "loss" in getattr(event, "text", ""):
            notes.append("step")
            if len(notes) == 2:
                raise KeyboardInterrupt

    try:
        update(Store(root / "short", stop_after_a_step), inputs)
    except KeyboardInterrupt:
        print("stopped")
    greedy = replace(inputs, settings=inputs.settings.replace(max_tokens_per_microbatch=1_000_000))
    big = LlamaConfig(  # 160 MiB
        vocab_size=160_000, hidden_size=256, intermediate_size=8, num_hidden_layers=1, tie_word_embeddings=True
    )
    LlamaForCausalLM(big).save_pretrained(root / "big")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    try:
        update(Store(root / "short"), greedy)
    except UserError as error:
        print(error)
    print(_load_what_does_not_fit(root / "big"))
    resumed = update(Store(root / "short", lambda event: print(getattr(event, "text", ""))), inputs)
    print("same checkpoint:", resumed.manifest() == whole.manifest())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
