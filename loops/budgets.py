"""Equal budgets: the settings under which every arm of an ablation gets the same amount of something.

They act on the last phase, the one that arms differ in; what earlier phases use is theirs.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil

from loops.config import resolve
from loops.documents import Document, merge
from sail.core.errors import UserError
from sail.core.route_settings import SAMPLED, RouteSettings
from sail.core.run_settings import PhaseSettings, RewardModelLabeler, RunSettings
from sail.core.settings import Settings, meaning
from sail.update.batches import exact_shares


class EqualSettings(Settings):
    """Budgets that hold for every arm; one of optimizer_steps and offline_rows at most."""

    generated_tokens: int | None = meaning(None, "sets prompts.per_round: tokens sampled for training, at most", gt=0)
    labels: int | None = meaning(None, "sets the dataset's limit: its pairs and those labelled in rounds", gt=0)
    optimizer_steps: int | None = meaning(None, "sets update.steps: steps of all rounds together", gt=0)
    offline_rows: int | None = meaning(None, "sets update.steps: rows with dataset labels, of all rounds", gt=0)


Change = Callable[[RunSettings, int], Document]


def equalise(asked: Document, equal: EqualSettings, where: str) -> Document:
    """`asked` with the settings changed that its budgets decide. UserError where a budget cannot be met."""
    if equal.optimizer_steps is not None and equal.offline_rows is not None:
        raise UserError(
            "optimizer_steps and offline_rows both set update.steps", where=f"{where}: equal", cure="Keep one"
        )
    for name, change in _CHANGES.items():
        amount = getattr(equal, name)
        if amount is not None:
            settings = resolve(asked, where)
            try:
                asked = merge(asked, _placed(asked, settings, change(settings, amount)))
            except UserError as error:
                raise UserError(error.problem, where=f"{where}: equal.{name}", cure=error.cure) from None
    return asked


def _placed(asked: Document, settings: RunSettings, change: Document) -> Document:
    """The change where the run takes it from: data beside the phases, the rest in the last one."""
    if "phases" not in asked or "data" in change:
        return change
    return {"phases": {settings.phases[-1].name: change}}


def _generated_tokens(settings: RunSettings, amount: int) -> Document:
    phase = settings.phases[-1]
    each = sampled_per_prompt(phase) * phase.generation.max_completion_length * phase.num_rounds
    if each == 0:
        return {}  # an arm that samples nothing stays under any budget
    if amount < each:
        raise UserError(f"{amount} tokens are less than one prompt a round ({each})", cure="Raise it")
    return {"prompts": {"per_round": amount // each}}


def _labels(settings: RunSettings, amount: int) -> Document:
    bought = labels_bought(settings)
    if bought >= amount:
        raise UserError(f"the rounds alone take {bought} labels", cure="Raise it, or lower prompts.per_round")
    sources = _labelled_sources(settings)
    if len(sources) != 1:
        raise UserError(f"labels come from {sources or 'no data source'}, not from one", cure="Set data.<name>.limit")
    return {"data": {sources[0]: {"limit": amount - bought}}}


def _optimizer_steps(settings: RunSettings, amount: int) -> Document:
    rounds = max(1, settings.phases[-1].num_rounds)
    if amount % rounds:
        raise UserError(f"{amount} steps do not divide into {rounds} rounds", cure="Take a multiple")
    return {"update": {"steps": amount // rounds}}


def _offline_rows(settings: RunSettings, amount: int) -> Document:
    """steps = rows / (batch x offline share): an online share of m makes them 1/(1-m) as many (Ding et al. 2024)."""
    phase = settings.phases[-1]
    share = offline_share(phase, settings)
    if share == 0:
        raise UserError("no route has dataset labels", cure="Use optimizer_steps, or give the arm such a route")
    steps = Fraction(amount) / (phase.update.train_batch_size * share * max(1, phase.num_rounds))
    return {"update": {"steps": max(1, ceil(steps))}}


_CHANGES: dict[str, Change] = {  # in this order: labels bought depend on the prompts of a round
    "generated_tokens": _generated_tokens,
    "labels": _labels,
    "optimizer_steps": _optimizer_steps,
    "offline_rows": _offline_rows,
}


def sampled_per_prompt(phase: PhaseSettings) -> int:
    """Samples that a prompt of a round gets; routes that sample equally often share theirs."""
    drawn = {
        (source, route.generations(source))
        for route in _routes(phase).values()
        for source in route.sources
        if source in SAMPLED
    }
    return sum(count for _, count in drawn)


def labels_bought(settings: RunSettings) -> int:
    """Pairs of the last phase labelled by somebody else than data, policy or a reward model, at most."""
    phase = settings.phases[-1]
    per_round = phase.prompts.per_round if phase.prompts else None
    routes = [route for route in _routes(phase).values() if is_bought(route, settings)]
    if routes and per_round is None:
        raise UserError("prompts.per_round is open, so labels cannot be counted", cure="Set it")
    return phase.num_rounds * (per_round or 0) * sum(map(_pairs_per_prompt, routes))


def is_bought(route: RouteSettings, settings: RunSettings) -> bool:
    """Somebody else than data, the policy or a reward model labels this route."""
    labeler = settings.labelers.get(route.labels.by)
    return labeler is not None and not isinstance(labeler, RewardModelLabeler)


def _pairs_per_prompt(route: RouteSettings) -> int:
    return route.num_generations * (route.num_generations - 1) // 2 if route.keep == "all" else 1


def offline_share(phase: PhaseSettings, settings: RunSettings) -> Fraction:
    """Share of the batch with the dataset's own labels: 1 - m."""
    shares = exact_shares({name: route.share for name, route in phase.routes.items()})
    offline = [name for name, route in phase.routes.items() if route.labels.by in settings.data]
    return sum((shares[name] for name in offline), Fraction(0))


def _labelled_sources(settings: RunSettings) -> list[str]:
    """Data sources whose labels the run learns from, in any phase or through a fitted reward model."""
    routes = [route for phase in settings.phases for route in _routes(phase).values()]
    fits = [getattr(labeler, "fit", None) for labeler in settings.labelers.values()]
    names = [route.labels.by for route in routes] + [fit.data for fit in fits if fit is not None]
    return sorted({name for name in names if name in settings.data})


def _routes(phase: PhaseSettings) -> Mapping[str, RouteSettings]:
    return {name: route for name, route in phase.routes.items() if route.share != 0}
