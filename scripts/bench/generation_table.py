"""Generation figures as Markdown, and the bars they have to reach."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sail.serving.versions import installed_vllm
from scripts.bench.generation import Load, Took
from scripts.bench.table import written
from scripts.bench.timing import Interval, median_interval

STAGE_BAR = 0.95  # of the raw client's throughput
SYNC_BARS_S = {"load adapter": 0.5, "reload from disk": 1.0}


class Bar(NamedTuple):
    about: str
    required: str
    measured: Interval
    verdict: str  # yes or no where the whole interval says so


def load_table(load: Load, took: Mapping[str, Sequence[Took]]) -> str:
    """A row a way: medians over rounds, and throughput beside the raw client's, round by round."""
    build = installed_vllm()
    lines = [
        f"**Prompts of {load.prompt_tokens} tokens**: {load.num_prompts} a round, {load.num_samples} samples of at "
        f"most {load.new_tokens} tokens each, {len(took['raw'])} rounds; {build.distribution} {build.version}.\n\n"
        "| Way | Wall s | Tokens/s | Of raw (wall) | CPU s, client | CPU s, server | Of raw (CPU) |\n"
        "| --- |" + " ---: |" * 6 + "\n"
    ]
    for name, rounds in took.items():
        middle = Took(*(statistics.median(values) for values in zip(*rounds, strict=True)))
        relative = [written(pace(took)), written(cpu(took))] if name == "stage" else ["-", "-"]
        cells = [
            name, f"{middle.wall:.2f}", f"{statistics.median(one.pace for one in rounds):,.0f}", relative[0],
            f"{middle.client_cpu:.2f}", f"{middle.server_cpu:.2f}", relative[1],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def pace(took: Mapping[str, Sequence[Took]]) -> Interval:
    """The stage's tokens a second beside the raw client's in the same round."""
    return median_interval([one.pace / raw.pace for one, raw in zip(took["stage"], took["raw"], strict=True)])


def cpu(took: Mapping[str, Sequence[Took]]) -> Interval:
    """CPU seconds of both sides a token, beside the raw client's: what other work on the machine disturbs least."""
    pairs = zip(took["stage"], took["raw"], strict=True)
    return median_interval([_cpu_a_token(stage) / _cpu_a_token(raw) for stage, raw in pairs])


def sync_table(syncs: Mapping[str, Sequence[Took]]) -> str:
    """A row a way of new weights: medians. Wall time on a busy machine is waiting, CPU time is what has to be done."""
    lines = [
        "**New weights**, from a checkpoint on disk to a verified server, "
        f"{len(next(iter(syncs.values())))} times each.\n\n"
        "| Way | Wall s | CPU s, trainer's side | CPU s, server |\n| --- | ---: | ---: | ---: |\n"
    ]
    for name, times in syncs.items():
        middle = Took(*(statistics.median(values) for values in zip(*times, strict=True)))
        lines.append(f"| {name} | {middle.wall:.2f} | {middle.client_cpu:.2f} | {middle.server_cpu:.2f} |\n")
    return "".join(lines)


def bars(measured: Mapping[Load, Mapping[str, Sequence[Took]]], syncs: Mapping[str, Sequence[Took]]) -> list[Bar]:
    """What docs/serving.md promises, against what was measured."""
    found = []
    for load, took in measured.items():
        share = pace(took)
        about = f"throughput of the stage beside raw requests, prompts of {load.prompt_tokens}"
        found.append(Bar(about, f">= {STAGE_BAR:g}", share, _verdict(share.low >= STAGE_BAR, share.high < STAGE_BAR)))
    for way, times in syncs.items():
        middle, most = median_interval([each.wall for each in times]), SYNC_BARS_S[way]
        verdict = _verdict(middle.high < most, middle.low >= most)
        found.append(Bar(f"{way}, verified, wall s", f"< {most:g}", middle, verdict))
    return found


def bars_table(found: Sequence[Bar]) -> str:
    """A row a bar; brackets are 95 % bootstrap intervals of the median."""
    rows = [f"| {b.about} | {b.required} | {written(b.measured)} | {b.verdict} |\n" for b in found]
    return "".join(["| Bar | Required | Measured | Reached |\n| --- | ---: | ---: | --- |\n", *rows])


def _verdict(reached: bool, missed: bool) -> str:
    return "yes" if reached else "no" if missed else "inconclusive"


def _cpu_a_token(took: Took) -> float:
    return (took.client_cpu + took.server_cpu) / took.tokens
