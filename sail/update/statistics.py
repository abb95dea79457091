"""Statistics of the global batch, before its losses: from labels alone, or from mismatched responses."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from sail.core.run_settings import UpdateSettings
from sail.objectives import Responses
from sail.objectives.statistics import BatchStatistic, accepted
from sail.policy.logprobs import microbatches, sequence_logps
from sail.update.distributed import dealt, summed
from sail.update.items import Item, Side
from sail.update.objective import RouteObjective


def batch_statistics(
    accelerator: Accelerator,
    model: torch.nn.Module,
    items: Mapping[str, Sequence[Item]],
    objectives: Mapping[str, RouteObjective],
    settings: UpdateSettings,
) -> dict[str, BatchStatistic]:
    """The statistic of every route whose loss asks for one."""
    found = {}
    for name, route_items in items.items():
        row = objectives[name].loss.statistic
        if row is None or not route_items:
            continue
        if row.of == "rows":
            responses = _labels(route_items)
        else:
            strangers = [item.mismatched for item in route_items if item.mismatched is not None]
            responses = _scored(accelerator, model, strangers, settings.max_tokens_per_microbatch)
        found[name] = row.function(responses, **accepted(row.function, objectives[name].params))
    return found


def _labels(items: Sequence[Item]) -> Responses:
    """The batch's labels; no log-prob is computed, and none may be read."""
    sides = [side for item in items for side in item.sides]
    nothing = torch.full((len(sides),), float("nan"), dtype=torch.float64)
    targets = torch.tensor([side.target for side in sides], dtype=torch.float64)
    return Responses(nothing, nothing, nothing, targets)


def _scored(accelerator: Accelerator, model: torch.nn.Module, sides: Sequence[Side], budget: int) -> Responses:
    """The sides under the policy as it is now, without a gradient; every process scores its share of them."""
    logps = torch.zeros(len(sides), dtype=torch.float64)
    rows = [[side.row] for side in sides]

    def cut(hand: list[int]) -> list[list[int]]:
        return microbatches(model, [rows[index] for index in hand], budget)

    for part, scale in dealt(accelerator, [side.row.num_tokens for side in sides], cut):
        with torch.no_grad(), accelerator.autocast():
            scored = sequence_logps(model, [sides[index].row for index in part]).cpu()
        if scale > 0:
            logps[part] = scored
    logps = summed(accelerator, logps)
    ref_logps = torch.tensor([side.ref_logp for side in sides], dtype=torch.float64)
    return Responses(logps, ref_logps, torch.ones_like(logps))
