"""The generation stage: a round's prompts in, groups of samples out, committed shard by shard."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from sail.core.artifacts import Artifact, Leaf
from sail.core.errors import UserError
from sail.core.records import Prompt, Sample, SampleGroup
from sail.core.run_settings import GenerationSettings
from sail.core.seeds import derive_seed
from sail.core.store import Builder, Recipe, Workspace
from sail.generation.engine import Drawn, Engine, SampleRequest, ServerEngine
from sail.generation.linear_alignment import principled_ids
from sail.generation.prompts import Part, part_of, round_prompts
from sail.policy.chat import response_text
from sail.policy.loading import Checkpoint, context_length, load_tokenizer

VERSION = 4


def generate(
    builder: Builder,
    engine: Engine,
    *,
    prompts: Artifact,
    table: str,
    policy: Checkpoint,
    settings: GenerationSettings,
    engine_settings: Mapping[str, Any],
    num_samples: int,
    per_round: int | None,
    round_index: int,
    seed: int,
    chat_template: Leaf | None = None,
    origin: str = "policy",
    part: Part | None = None,
) -> Artifact:
    """Draw num_samples responses to each prompt of the round from `policy`; samples bear their origin's name.

    `table` of the prompts artifact is 'train' or 'held_out'. The seed of a prompt is the hash of (seed, table, origin,
    round, prompt id); sample i has seed + i. part: of the round's prompts, where they are not drawn at once.
    """

    def run(workspace: Workspace) -> dict[str, Any]:
        drawn_from = round_prompts(prompts.read(Prompt, table), per_round, round_index=round_index, seed=seed)
        if part is not None:
            drawn_from = part_of(drawn_from, part)
        tokenizer = load_tokenizer(policy, chat_template)
        stream = (table,) if origin == "policy" else (table, origin)  # else equal policies would draw the same
        requests = [
            SampleRequest(
                prompt, num_samples, derive_seed(seed, *stream, round_index, prompt.prompt_id),
                _principled(tokenizer, prompt, settings),
            )
            for prompt in drawn_from
        ]  # fmt: skip
        chosen = _fitting(requests, settings, context_length(policy))
        done = _finished(workspace)
        if done:
            workspace.say(f"reusing {sum(len(group.samples) for group in done)} samples of {len(done)} prompts")
        finished = {group.prompt.prompt_id for group in done}
        todo = [request for request in chosen if request.prompt.prompt_id not in finished]
        if todo:
            workspace.say(f"starting on {len(todo)} prompts")
            engine.use(policy)
            writer = _Writer(workspace, policy.key, origin, round_index, tokenizer)
            _draw(engine, todo, settings, writer)
        return _counts(_finished(workspace)) | {
            "dropped_overlong": len(drawn_from) - len(chosen), "off_policy": off_policy(settings)
        }  # fmt: skip

    recipe = {
        **settings.recipe(), **engine_settings, "table": table, "num_samples": num_samples, "per_round": per_round,
        "round": round_index, "seed": seed, "origin": origin,
    }  # fmt: skip
    if part is not None:
        recipe["part"] = list(part)
    inputs = {"prompts": prompts, "policy": policy}
    return builder.build(Recipe("samples", VERSION, recipe, inputs), run)


def greedy(settings: GenerationSettings) -> GenerationSettings:
    """The same with the likeliest token everywhere; among equal ones (bfloat16 has some) the seed still draws."""
    return settings.replace(temperature=1.0, top_p=1.0, top_k=1, min_p=0.0)


def off_policy(settings: GenerationSettings) -> dict[str, float]:
    """What makes the sampling distribution another than the policy's; the samples' log-probs are of the former."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "min_tokens": 0}
    return {name: getattr(settings, name) for name, off in neutral.items() if getattr(settings, name) != off}


def _draw(engine: Engine, requests: Sequence[SampleRequest], settings: GenerationSettings, writer: "_Writer") -> None:
    """Commit shard after shard, in the order of the requests, while later ones are still being drawn."""
    progress = _Progress(writer.workspace, len(requests))
    first_shard = len(list(writer.workspace.path.glob("groups-*.parquet")))
    with closing(_in_order(engine, requests, settings)) as drawn:  # a full disk ends the requests too
        for shard, start in enumerate(range(0, len(requests), settings.shard_size), first_shard):
            part = requests[start : start + settings.shard_size]
            writer.write(shard, part, [progress.count(draws) for draws in islice(drawn, len(part))])


def _in_order(
    engine: Engine, requests: Sequence[SampleRequest], settings: GenerationSettings
) -> Generator[Sequence[Drawn], None, None]:
    if isinstance(engine, ServerEngine):
        yield from engine.stream(requests, settings)
        return
    for start in range(0, len(requests), settings.shard_size):
        yield from engine.sample(requests[start : start + settings.shard_size], settings)


class _Progress:
    """How far the round is, how fast, and how long it will take at this pace."""

    def __init__(self, workspace: Workspace, num_prompts: int) -> None:
        self.workspace, self.num_prompts = workspace, num_prompts
        self.prompts = self.tokens = 0
        self.started = time.monotonic()

    def count(self, draws: Sequence[Drawn]) -> Sequence[Drawn]:
        self.prompts += 1
        self.tokens += sum(len(one.token_ids) for one in draws)
        passed_s = max(time.monotonic() - self.started, 1e-3)
        left_s = passed_s * (self.num_prompts - self.prompts) / self.prompts
        self.workspace.say(
            f"{self.prompts} of {self.num_prompts} prompts, {self.tokens / passed_s:,.0f} tokens/s, "
            f"about {_duration(left_s)} left"
        )
        return draws


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"


class _Writer:
    def __init__(
        self, workspace: Workspace, policy_version: str, origin: str, round_index: int, tokenizer: Any
    ) -> None:
        self.workspace, self.policy_version, self.origin = workspace, policy_version, origin
        self.round_index, self.tokenizer = round_index, tokenizer

    @property
    def _mark(self) -> str:
        return "r" if self.origin == "policy" else f"{self.origin}-r"

    def write(self, shard: int, requests: Sequence[SampleRequest], drawn: Sequence[Sequence[Drawn]]) -> None:
        groups = [
            SampleGroup(request.prompt, tuple(self._sample(request, i, one) for i, one in enumerate(draws)))
            for request, draws in zip(requests, drawn, strict=True)
        ]
        self.workspace.write(f"groups-{shard:05d}", groups, SampleGroup)

    def _sample(self, request: SampleRequest, index: int, drawn: Drawn) -> Sample:
        return Sample(
            response_id=f"{request.prompt.prompt_id}-{self._mark}{self.round_index}-{index}",
            origin=self.origin,
            text=response_text(self.tokenizer, drawn.token_ids),
            token_ids=drawn.token_ids,
            logprobs=drawn.logprobs,
            stop_kind=drawn.stop_kind,
            policy_version=self.policy_version,
            seed=request.seed + index,
        )


def _finished(workspace: Workspace) -> list[SampleGroup]:
    shards = sorted(workspace.path.glob("groups-*.parquet"))
    return [group for shard in shards for group in workspace.read(shard.stem, SampleGroup)]


def _principled(tokenizer: Any, prompt: Prompt, settings: GenerationSettings) -> tuple[int, ...]:
    aligned = settings.linear_alignment
    return () if aligned is None else principled_ids(tokenizer, prompt, aligned.principle)


def _longest(request: SampleRequest) -> int:
    return max(len(request.prompt.token_ids), len(request.principled_ids))


def _fitting(requests: Sequence[SampleRequest], settings: GenerationSettings, context: int) -> list[SampleRequest]:
    """The requests whose longest response fits into the model's context."""
    room = context - settings.max_completion_length
    fitting = [request for request in requests if _longest(request) <= room]
    if len(fitting) == len(requests) or (fitting and settings.overlong == "drop"):
        return fitting
    longest = max(requests, key=_longest)
    raise UserError(
        f"prompt {longest.prompt.prompt_id} has {_longest(longest)} tokens, with "
        f"{settings.max_completion_length} to sample it passes the model's context of {context}",
        where="generation.max_completion_length",
        cure="Lower it, or drop long prompts with data.<source>.overlong: drop and max_length",
    )


def _counts(groups: Sequence[SampleGroup]) -> dict[str, int]:
    samples = [sample for group in groups for sample in group.samples]
    kinds = {f"stop_{kind}": 0 for kind in ("eos", "stop_token", "stop_string", "length", "abort")}
    for sample in samples:
        kinds[f"stop_{sample.stop_kind}"] += 1
    tokens = sum(len(sample.token_ids) for sample in samples)
    return {"prompts": len(groups), "samples": len(samples), "tokens": tokens, **kinds}
