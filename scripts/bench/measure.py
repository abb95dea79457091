"""One case from gate to memory: figures as plain data, for JSON, bars and tables."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from scripts.bench.cases import Case, make_model, make_pairs
from scripts.bench.correctness import Deviation, deviations
from scripts.bench.floors import least_flops, matmul_rate
from scripts.bench.memory import peak_mb
from scripts.bench.timing import Seconds, rounds
from scripts.bench.trl_variants import HERE, TRL
from scripts.bench.variants import OURS, with_reference

ALL = (TRL if HERE else {}) | OURS
SAIL_ONLY = ("ours, SAIL",)
SLOW_FOR_MEMORY = ("ours, checkpointing",)  # measured for its memory alone
MEMORY = ("trl", "trl, checkpointing", "naive", "ours", "ours, microbatches of 2", "ours, checkpointing")


@dataclass
class Figures:
    """Of one case. A variant that was not measured is absent."""

    case: Case
    deviations: dict[str, Deviation] = field(default_factory=dict)
    seconds: dict[str, list[Seconds]] = field(default_factory=dict)
    sail: dict[str, list[Seconds]] = field(default_factory=dict)  # DPO and SAIL, in rounds of their own
    peak_mb: dict[str, float] = field(default_factory=dict)
    flops: dict[str, list[float]] = field(default_factory=dict)  # the fewest of every round's batch
    matmul_rate: float = 0.0  # FLOP/s

    def mfu(self, name: str) -> float:
        """Share of the machine's best matrix product that the fewest FLOPs of this variant's work make up."""
        work = self.flops["reference stored" if "stored" in name else "reference in the loop"]
        return sum(work) / sum(step.own for step in self.seconds[name]) / self.matmul_rate

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"mfu": {name: self.mfu(name) for name in self.seconds}}


@dataclass(frozen=True)
class Plan:
    num_rounds: int = 6
    num_sail_rounds: int = 12
    memory_of: tuple[str, ...] = MEMORY


def measure_case(case: Case, plan: Plan, say: Callable[[str], None]) -> Figures:
    """The gate first: figures of a wrong step are worth nothing, so a failure raises."""
    figures = Figures(case)
    say(f"{case.name}: loss and gradient against float64")
    figures.deviations = deviations(case, {name: ALL[name] for name in ALL if name not in SAIL_ONLY})
    wrong = [name for name, deviation in figures.deviations.items() if not deviation.right(case.dtype)]
    if wrong:
        raise SystemExit(f"{case.name}: wrong loss or gradient: {[(name, figures.deviations[name]) for name in wrong]}")
    figures.matmul_rate = matmul_rate(case.device, case.dtype)
    say(f"{case.name}: {plan.num_rounds} paired rounds")
    timed = [name for name in ALL if name not in SAIL_ONLY + SLOW_FOR_MEMORY]
    figures.seconds, figures.flops = _timed(case, timed, plan.num_rounds, say)
    say(f"{case.name}: {plan.num_sail_rounds} paired rounds of SAIL and DPO")
    small = _with_pairs(case, max(1, case.pairs // 2))
    names = ("ours, stored reference", "ours, SAIL")
    figures.sail = _timed(small, names, plan.num_sail_rounds, say)[0] if plan.num_sail_rounds else {}
    figures.matmul_rate = max(figures.matmul_rate, matmul_rate(case.device, case.dtype))
    for name in [name for name in plan.memory_of if name in ALL]:
        say(f"{case.name}: memory of {name}")
        figures.peak_mb[name] = peak_mb(case, name)
    return figures


def _timed(
    case: Case, names: Sequence[str], num_rounds: int, say: Callable[[str], None]
) -> tuple[dict[str, list[Seconds]], dict[str, list[float]]]:
    reference = make_model(case, 1)
    batches = [with_reference(reference, make_pairs(case, seed=1 + index)) for index in range(num_rounds)]
    del reference
    flops = {
        "reference in the loop": [least_flops(case, batch, reference=True) for batch in batches],
        "reference stored": [least_flops(case, batch, reference=False) for batch in batches],
    }
    return rounds({name: ALL[name](case) for name in names}, batches, case.device, say), flops


def _with_pairs(case: Case, pairs: int) -> Case:
    return Case(**(asdict(case) | {"pairs": pairs}))
