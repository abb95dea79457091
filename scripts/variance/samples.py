"""Pairs of fresh samples, and the policy that drew them: where the rounds of an ablation's arm begin."""

from dataclasses import dataclass
from pathlib import Path

from loops.checks import route_loss
from loops.context import Context
from loops.iterate import PhaseLoop
from sail.core.run_settings import RunSettings, UpdateSettings
from sail.core.store import Store
from sail.objectives import find_loss
from sail.policy.loading import Checkpoint
from sail.update.items import Item, load_items
from sail.update.objective import RouteObjective

ONLINE = "online"  # the route and the last phase that are looked at


@dataclass(frozen=True)
class FreshPairs:
    """Pairs of one round, with the policy that drew them and labels them."""

    policy: Checkpoint
    items: list[Item]
    objective: RouteObjective
    update: UpdateSettings


def fresh_pairs(settings: RunSettings, num_prompts: int, root: Path) -> FreshPairs:
    """The phases before the last one, then its first samples, made or found in the store of `root`."""
    context = Context(settings, Store(root / ".store"), root / "logs")
    policy: Checkpoint = context.model
    ends: dict[str, Checkpoint] = {}
    try:
        for phase in settings.phases[:-1]:
            loop = PhaseLoop(context, phase, policy, ends, first_round=len(ends))
            for _ in loop.rounds():
                pass
            policy = ends[phase.name] = loop.policies[-1]
        phase = settings.phases[-1]
        assert phase.prompts is not None, "samples of the policy have prompts"
        phase = phase.replace(prompts=phase.prompts.replace(per_round=num_prompts))
        routes = PhaseLoop(context, phase, policy, ends, first_round=len(ends)).routes.inputs(0, {})
    finally:
        context.close()
    (route,) = [route for route in routes if route.name == ONLINE]
    loss = route_loss(phase, route.settings)
    row = find_loss(loss.type)
    objective = RouteObjective(row, {**row.params, **loss.params}, route.settings, phase.importance_sampling)
    return FreshPairs(policy, load_items(route), objective, phase.update)
