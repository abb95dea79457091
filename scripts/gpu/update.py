"""The update benchmark (scripts/bench) in bfloat16 on this device, one way at a time: a GPU holds no nine of them.

A way is built, takes one small step, then the timed ones; time, peak memory and MFU are of those. Shapes of half a
billion and a billion weights; what the time or the memory does not allow is told as not measured.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from sail.policy.devices import free_memory
from scripts.bench.cases import DRY, Case, Pair, make_model, make_pairs
from scripts.bench.correctness import deviations
from scripts.bench.floors import least_flops, matmul_rate
from scripts.bench.memory import _peak_mb, _resident_mb
from scripts.bench.timing import rounds
from scripts.bench.trl_variants import HERE as TRL_HERE
from scripts.bench.trl_variants import TRL
from scripts.bench.variants import OURS, with_reference
from scripts.gpu.findings import Surroundings, at_most, figure, missing, surroundings

SHAPES = {"0.5B": (1280, 24), "1B": (1792, 24)}  # hidden, layers; 64 to a head, every head with keys of its own
REGIMES = ("ragged", "long-prompt", "long-response")
WAYS = ("trl", "naive", "ours", "trl, stored reference", "ours, stored reference", "ours, SAIL")
NUM_ROUNDS, SECONDS_A_CASE = 5, 45.0
SAIL_LIMIT = 1.02


def cases(here: Surroundings) -> list[Case]:
    """The most telling ones first."""
    if here.dry:
        return [replace(DRY, dtype="bf16")]
    made = [
        Case(f"{size}, V {vocab // 1024}k, {regime}", regime, vocab=vocab, hidden=hidden, layers=layers, pairs=16,
             tied=vocab > 65_536, device="cuda", dtype="bf16")
        for regime in REGIMES for vocab in (32_768, 131_072) for size, (hidden, layers) in SHAPES.items()
    ]  # fmt: skip
    return sorted(made, key=lambda case: (case.regime != "ragged", case.hidden))


def check_step(here: Surroundings) -> None:
    """Loss and gradient of one step in bfloat16 against float64: ours no worse than TRL's."""
    case = replace(DRY, dtype="bf16", device=here.device.type)
    case = case if here.dry else replace(case, hidden=512, layers=4, vocab=32_768, regime="ragged")
    names = ("trl", "naive", "ours") if TRL_HERE else ("naive", "ours")
    found = deviations(case, {name: (TRL | OURS)[name] for name in names}, num_pairs=4)
    for name, deviation in found.items():
        figure(f"step, {name}, loss", deviation.loss, note="difference from float64")
        figure(f"step, {name}, gradient", deviation.gradient, note="relative error")
    other = "trl" if TRL_HERE else "naive"
    ratio = found["ours"].gradient / found[other].gradient
    at_most(f"step, gradient error, ours / {other}", ratio, 1.1, "bfloat16 autocast")
    if not TRL_HERE:
        missing("step, TRL", "trl is not installed")


def measure(case: Case, name: str, batches: Sequence[list[Pair]]) -> tuple[list[float], float]:
    """Seconds of every step, and the peak above what is resident between steps, MB."""
    way: Any = (TRL | OURS)[name](case)
    way.step(batches[0][:1])
    resident = _resident_mb(case)
    seconds = [step.own for step in rounds({name: way}, batches, case.device, lambda told: None)[name]]
    return seconds, _peak_mb(case) - resident


def measure_case(here: Surroundings, case: Case, rate: float) -> None:
    reference = make_model(case, 1)
    with torch.autocast(here.device.type, torch.bfloat16):
        batches = [with_reference(reference, make_pairs(case, seed=1 + index)) for index in range(NUM_ROUNDS)]
    work = {stored: [least_flops(case, batch, reference=not stored) for batch in batches] for stored in (False, True)}
    del reference
    medians: dict[str, float] = {}
    for name in WAYS:
        label = f"{case.name}, {name}"
        if name in TRL and not TRL_HERE:
            missing(label, "trl is not installed")
            continue
        told = _without_running_out(lambda name=name: measure(case, name, batches))
        if told is None:
            missing(label, "out of memory")
            continue
        seconds, peak = told
        medians[name] = statistics.median(seconds)
        stored = "stored" in name or "SAIL" in name
        share = sum(work[stored]) / sum(seconds) / rate
        figure(f"{label}, time", 1e3 * medians[name], "ms a step", f"MFU {share:.1%}, from {min(seconds):.3g} s "
               f"to {max(seconds):.3g} s")  # fmt: skip
        figure(f"{label}, peak above resident", peak, "MB")
    _tell_ratios(case, medians, here)


def _tell_ratios(case: Case, medians: dict[str, float], here: Surroundings) -> None:
    pairs = (("trl", "ours"), ("naive", "ours"), ("trl, stored reference", "ours, stored reference"))
    for slow, fast in pairs:
        if slow in medians and fast in medians:
            figure(f"{case.name}, {slow} / {fast}", medians[slow] / medians[fast], "times the time")
    if {"ours, SAIL", "ours, stored reference"} <= medians.keys():
        ratio = medians["ours, SAIL"] / medians["ours, stored reference"]
        if here.on_gpu:
            at_most(f"{case.name}, SAIL / DPO", ratio, SAIL_LIMIT, "step time, both with a stored reference")
        else:
            figure(f"{case.name}, SAIL / DPO", ratio, "times the time")


def _without_running_out(work: Callable[[], tuple[list[float], float]]) -> tuple[list[float], float] | None:
    try:
        return work()
    except torch.OutOfMemoryError:
        return None
    finally:
        free_memory()


def main(here: Surroundings) -> None:
    check_step(here)
    rate = matmul_rate(here.device.type, "bf16")
    figure("bf16 matrix product", rate / 1e12, "TFLOP/s")
    for case in cases(here):
        if here.time_left() < SECONDS_A_CASE:
            missing(case.name, "no time left")
            continue
        figure(
            case.name, sum(weight.numel() for weight in make_model(case, 0).parameters()), "weights", str(asdict(case))
        )
        measure_case(here, case, rate)


if __name__ == "__main__":
    main(surroundings())
