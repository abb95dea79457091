"""What steps_per_generation cannot be combined with, said before anything runs."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from loops.label_checks import asked_labelers
from sail.core.errors import UserError
from sail.core.route_settings import GREEDY, LossSettings, RouteSettings
from sail.core.run_settings import LaunchSettings, PhaseSettings, RunSettings
from sail.objectives import find_loss

_KEPT_OPEN = ("reward_model", "callable", "rule")  # labelers that answer in this process, one response at a time
_HERE = ("localhost", "127.0.0.1", "::1")


def check_refresh(phase: PhaseSettings, settings: RunSettings) -> None:
    """Raise UserError where a phase cannot refresh its sampler within a round."""
    if phase.steps_per_generation is None:
        return
    for problem, where, cure in _problems(phase, settings):
        raise UserError(f"steps_per_generation: {problem}", where=f"{phase.name}: {where}", cure=cure)


def refreshed_routes(phase: PhaseSettings) -> dict[str, RouteSettings]:
    """The routes whose samples are drawn from the policy that trains."""
    drawn = {"policy", GREEDY}
    return {name: route for name, route in phase.routes.items() if drawn & set(route.sources) and route.share != 0}


def _problems(phase: PhaseSettings, settings: RunSettings) -> Iterator[tuple[str, str, str]]:
    """(what is wrong, where, the cure), the most basic first."""
    refreshed = refreshed_routes(phase)
    if not refreshed:
        yield "no route samples from the policy", "steps_per_generation", "Leave it out"
    yield from _round_problems(phase)
    yield from _process_problems(phase, settings)
    for name, route in refreshed.items():
        for problem, where, cure in _route_problems(route, route.loss or phase.loss, settings):
            yield problem, f"routes.{name}.{where}", cure


def _round_problems(phase: PhaseSettings) -> Iterator[tuple[str, str, str]]:
    steps, per_round = phase.update.steps, None if phase.prompts is None else phase.prompts.per_round
    if steps is None:
        yield "epochs are counted over rows, and these are not drawn yet", "update.steps", "Set update.steps"
    elif per_round is not None and per_round * (phase.steps_per_generation or 1) < steps:
        yield (
            f"{per_round} prompts a round leave some of its refreshes without any", "prompts.per_round",
            f"Give it {-(-steps // (phase.steps_per_generation or 1))} or more, or raise steps_per_generation",
        )  # fmt: skip
    if phase.round.data == "all":
        yield "rows of earlier rounds are not mixed into a refreshed route", "round.data", "Set it to new"
    for name in ("value", "prompt_tag", "sae"):
        if getattr(phase.components, name) is not None:
            yield "it is estimated once a round, over all its samples", f"components.{name}", "Leave one of them out"


def _process_problems(phase: PhaseSettings, settings: RunSettings) -> Iterator[tuple[str, str, str]]:
    if settings.launch != LaunchSettings():
        yield "the update samples itself, in one process", "launch", "Leave launch out"
    if phase.generation.engine != "vllm":
        return
    if settings.lora is not None and settings.vllm.lora == "merge":
        yield "merging writes a whole model at every refresh", "vllm.lora", "Set it to load"
    hosts = {urlsplit(url).hostname for url in settings.vllm.server_urls}
    if settings.lora is None and settings.vllm.mode == "external" and hosts - set(_HERE):
        yield (
            "whole weights go to the server through this machine's memory", "vllm.server_urls",
            "Train a LoRA adapter, or use servers of this machine",
        )  # fmt: skip


def _route_problems(route: RouteSettings, loss: LossSettings, settings: RunSettings) -> Iterator[tuple[str, str, str]]:
    if len(route.sources) > 1:
        yield "its responses must all be samples of the policy", "responses", "Set responses: policy"
    if find_loss(loss.type).unit != "pair" and route.labels.by != "none":
        yield (
            f"{loss.type} reads labels of single responses, which are normalised over all rows of a round", "loss",
            "Use a loss of pairs, such as dpo",
        )  # fmt: skip
    if route.filter is not None:
        yield "a filter looks at all rows of a round", "filter", "Leave it out"
    if route.labels.audit:
        yield "an audit looks at all pairs of a round", "labels.audit", "Leave it out"
    for name in asked_labelers(route, settings):
        kind = settings.labelers[name].kind
        if kind not in _KEPT_OPEN:
            yield (
                f"labeler {name!r} is a {kind}; a refresh asks {', '.join(_KEPT_OPEN)} or the policy", "labels",
                "Use one of those, or leave steps_per_generation out",
            )  # fmt: skip
