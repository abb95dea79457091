"""What round.staleness cannot be combined with, and where it gains nothing, said before anything runs."""

from collections.abc import Iterator

from sail.core.errors import UserError
from sail.core.run_settings import PhaseSettings, RunSettings
from sail.serving.flags import rests_by
from sail.serving.versions import nvidia_device_present


def check_staleness(phase: PhaseSettings, settings: RunSettings) -> list[str]:
    """Raise UserError where the samples of a round cannot be a round older; warn where nothing is drawn meanwhile.

    A warning and no refusal: what a run computes must not depend on the machine that resumes it.
    """
    if phase.round.staleness == 0:
        return []
    for problem, where, cure in _problems(phase):
        raise UserError(f"round.staleness 1: {problem}", where=f"{phase.name}: {where}", cure=cure)
    return [
        f"{phase.name}: round.staleness 1 makes samples older and saves no time: {reason}"
        for reason in _gains_nothing(phase, settings)
    ]


def _problems(phase: PhaseSettings) -> Iterator[tuple[str, str, str]]:
    """(what is wrong, where, the cure)."""
    routes = {name: route for name, route in phase.routes.items() if route.share != 0}
    if not any({"policy", "policy_greedy"} & set(route.sources) for route in routes.values()):
        yield "no route samples from the policy", "round.staleness", "Leave it out"
    if phase.steps_per_generation is not None:
        yield (
            f"steps_per_generation {phase.steps_per_generation} draws from the policy as it trains",
            "steps_per_generation", "Leave one of them out",
        )  # fmt: skip
    if phase.components.prompt_tag is not None:
        yield (
            "prompts bear the tags that their policy was trained with, and the one that draws has seen older ones",
            "components.prompt_tag", "Leave one of them out",
        )  # fmt: skip
    for name, route in routes.items():
        if "reference" in route.sources and phase.round.reference == "previous":
            yield (
                "a reference that moves with the rounds would draw from a newer policy than the policy itself",
                f"routes.{name}.responses", "Set round.reference: base, or round.staleness: 0",
            )  # fmt: skip


def _gains_nothing(phase: PhaseSettings, settings: RunSettings) -> Iterator[str]:
    """Why no sample is drawn while the policy trains."""
    if phase.generation.engine != "vllm":
        yield f"the {phase.generation.engine} engine draws in the process that trains. Use generation.engine: vllm"
    elif settings.vllm.mode != "external":
        rest = rests_by(settings.vllm, "gpu" if nvidia_device_present() else "cpu")
        if rest != "keep":
            yield (
                f"vllm.during_update is {rest}, so the server rests while the policy trains. Give it vllm.gpus of its "
                "own, or set during_update: keep where both fit"
            )
