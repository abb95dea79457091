"""What is wrong with a run's settings before anything runs: names that point nowhere, combinations that cannot work."""

from collections.abc import Iterable

from loops.label_checks import (
    behind,
    check_labelers,
    check_route_labels,
    check_single_labels,
    gives_scores,
    may_lack_labels,
)
from loops.refresh_checks import check_refresh
from loops.stale_checks import check_staleness
from sail.core.errors import UserError
from sail.core.records import LabelMode
from sail.core.route_settings import GREEDY, SAMPLED, LossSettings, RouteSettings
from sail.core.run_settings import PhaseSettings, RunSettings
from sail.core.settings import nearest
from sail.labeling.ratings import Kind
from sail.labeling.regulation import drops_pairs
from sail.objectives import find_loss
from sail.objectives.route_facts import RouteFacts
from sail.objectives.rules import check_route
from sail.update.batches import exact_shares
from sail.update.eight_bit import check_optimizer

POLICY, REFERENCE, NOBODY, DATA_ORDER = "policy", "reference", "none", "order"


def check_run(settings: RunSettings, engines: Iterable[str]) -> list[str]:
    """Raise UserError for the first thing that cannot work; return what the user should know, a line each."""
    warnings = _other_meanings(settings)
    for index, phase in enumerate(settings.phases):
        earlier = [before.name for before in settings.phases[:index]]
        _one_of(phase.round.reference, ["base", "previous", *earlier], f"{phase.name}: round.reference")
        _one_of(phase.generation.engine, list(engines), f"{phase.name}: generation.engine")
        _check_sources(phase, settings)
        _check_schedule(phase)
        _check_linear_alignment(phase)
        check_refresh(phase, settings)
        warnings += check_staleness(phase, settings)
        check_optimizer(phase.update.optimizer)
        if phase.routes:
            exact_shares({name: route.share for name, route in phase.routes.items()})
        else:
            _check_only_evaluates(phase)
        for name, route in phase.routes.items():
            warnings += _check_route(phase, name, route, settings)
    check_labelers(settings)
    return warnings + _check_penalty(settings)


def _other_meanings(settings: RunSettings) -> list[str]:
    """What the losses of this run mean in other libraries, where that differs."""
    used = {route_loss(phase, route).type for phase in settings.phases for route in phase.routes.values()}
    meanings = {name: find_loss(name).elsewhere for name in sorted(used)}
    return [f"loss {name}: {meaning}" for name, meaning in meanings.items() if meaning]


def route_loss(phase: PhaseSettings, route: RouteSettings) -> LossSettings:
    return route.loss or phase.loss


def loss_params(loss: LossSettings) -> dict[str, float]:
    """The loss's parameters, defaults filled in."""
    return {**find_loss(loss.type).params, **loss.params}


def rating_kind(phase: PhaseSettings, route: RouteSettings) -> Kind | None:
    """What the labels of a route of single responses say, None where nobody labels them: as asked, else as needed."""
    if route.labels.by == NOBODY:
        return None
    wanted = route.labels.as_ or find_loss(route_loss(phase, route).type).target
    if wanted == "preference":
        return None
    scored = route.filter is not None or phase.components.prompt_tag is not None
    return wanted or ("score" if scored else None)


def samples_policy(phase: PhaseSettings) -> bool:
    """Some route of this phase trains on samples drawn in the run."""
    return any(route.samples and route.share != 0 for route in phase.routes.values())


def engine_of(phase: PhaseSettings) -> str:
    """The engine that samples in this phase; what is sampled only for evaluation needs no server."""
    return phase.generation.engine if phase.num_rounds > 0 else "transformers"


def sources_of(phase: PhaseSettings) -> list[str]:
    """The data sources that rows and prompts of this phase come from."""
    prompts = [phase.prompts.source] if phase.prompts and samples_policy(phase) else []
    used = [source for route in phase.routes.values() if route.share != 0 for source in route.sources]
    return prompts + [source for source in used if source not in SAMPLED]


def _check_schedule(phase: PhaseSettings) -> None:
    """Under carry one schedule runs over all rounds; a decay to 0 within the first would stop the others."""
    update = phase.update
    if phase.round.optimizer == "carry" and update.horizon is None and update.lr_scheduler_type != "constant":
        raise UserError(
            f"optimizer: carry and {update.lr_scheduler_type} without a horizon: the rate is 0 after the first round",
            where=f"{phase.name}: update.horizon", cure="Set it to the steps of all rounds, or take constant",
        )  # fmt: skip


def _check_only_evaluates(phase: PhaseSettings) -> None:
    if phase.num_rounds > 0:
        raise UserError(
            f"{phase.num_rounds} rounds without routes: nothing would be trained", where=f"{phase.name}: num_rounds",
            cure="Set num_rounds: 0 to evaluate only, or give the phase routes",
        )  # fmt: skip
    if phase.evaluation.num_prompts == 0:
        raise UserError(
            "neither routes nor evaluation: there is nothing to do", where=f"{phase.name}: routes",
            cure="Give the phase routes, or evaluation.num_prompts",
        )  # fmt: skip


def _check_linear_alignment(phase: PhaseSettings) -> None:
    if phase.generation.linear_alignment is None:
        return
    if phase.generation.engine == "vllm":
        raise UserError(
            "vLLM draws from one prompt at a time, Linear Alignment from two together",
            where=f"{phase.name}: generation.linear_alignment", cure="Set generation.engine: transformers",
        )  # fmt: skip
    if samples_policy(phase) and phase.importance_sampling.mode != "none":
        raise UserError(
            "importance weights cannot repair samples of Linear Alignment: they cover a part of the policy's support",
            where=f"{phase.name}: importance_sampling.mode", cure="Set it to none",
        )  # fmt: skip


def _check_penalty(settings: RunSettings) -> list[str]:
    """It lowers scores of samples; an arm of an ablation, or one of several phases, may have none."""
    phases = [phase for phase in settings.phases if phase.hygiene.missing_eos_penalty]
    for phase in phases:
        if phase.hygiene.truncated == "drop":
            raise UserError(
                "a penalty on samples that are dropped", where=f"{phase.name}: hygiene.missing_eos_penalty",
                cure="Set hygiene.truncated: keep",
            )  # fmt: skip
    routes = [(phase, route) for phase in phases for route in phase.routes.values() if route.share != 0]
    if phases and not any(route.samples and _reads_scores(phase, route, settings) for phase, route in routes):
        return [
            f"{phases[0].name}: hygiene.missing_eos_penalty does nothing: no route labels its samples by scores (of a "
            "reward model, a callable)"
        ]
    return []


def _reads_scores(phase: PhaseSettings, route: RouteSettings, settings: RunSettings) -> bool:
    pairs = find_loss(route_loss(phase, route).type).unit == "pair"
    return (pairs or rating_kind(phase, route) is not None) and gives_scores(route.labels.by, settings)


def _check_sources(phase: PhaseSettings, settings: RunSettings) -> None:
    needs_prompts = samples_policy(phase) or (phase.evaluation.num_prompts > 0 and phase.evaluation.prompts is None)
    if phase.prompts is None and needs_prompts:
        raise UserError(
            "no prompts to sample from", where=f"{phase.name}: prompts",
            cure="Set prompts: {from: <data source>}, or evaluation.num_prompts: 0 where only evaluation samples",
        )  # fmt: skip
    if samples_policy(phase) and phase.num_rounds == 0:
        raise UserError(
            "a route with responses: policy or reference needs rounds",
            where=f"{phase.name}: num_rounds",
            cure="Set num_rounds: 1 or more",
        )
    if phase.prompts is not None:
        _one_of(phase.prompts.source, list(settings.data), f"{phase.name}: prompts.from")
    for where, source in (
        ("evaluation.prompts", phase.evaluation.prompts),
        ("evaluation.pairs", phase.evaluation.pairs),
    ):
        if source is not None:
            _one_of(source, list(settings.data), f"{phase.name}: {where}")
    for scorer in phase.evaluation.scorers:
        _one_of(scorer, list(settings.labelers), f"{phase.name}: evaluation.scorers")


def _check_route(phase: PhaseSettings, name: str, route: RouteSettings, settings: RunSettings) -> list[str]:
    where = f"{phase.name}: routes.{name}"
    for source in route.sources:
        _one_of(source, [*SAMPLED, *settings.data], f"{where}.responses")
    _one_of(route.labels.by, [POLICY, NOBODY, DATA_ORDER, *settings.data, *settings.labelers], f"{where}.labels")
    by = behind(route.labels.by, settings)
    if by in settings.data and (by,) != route.sources:
        problem = f"data source {by!r} has verdicts on its own pairs only, not on {route.responses!r}"
        raise UserError(problem, where=f"{where}.labels", cure="Label by a labeler or by the policy")
    loss = route_loss(phase, route)
    _check_loss(loss, f"{where}.loss")
    if route.labels.by == POLICY and route.labels.temperature not in (None, 1.0):
        problem = "labels by the policy have no temperature: the loss's own beta sets it"
        raise UserError(problem, where=f"{where}.labels.temperature", cure="Leave it out")
    check_route_labels(phase, route, loss.type, label_mode(route), settings, where)
    if find_loss(loss.type).unit != "pair":
        check_single_labels(route, loss.type, rating_kind(phase, route), settings, where)
    findings = check_route(_facts(phase, route, loss, settings))
    for finding in findings:
        if finding.level == "refused":
            raise UserError(finding.problem, where=where, cure=finding.cure)
    return [f"{where}: {finding.problem}. {finding.cure}" for finding in findings]


def _check_loss(loss: LossSettings, where: str) -> None:
    row = find_loss(loss.type, where=f"{where}.type")
    for name in loss.params:
        if name not in row.params:
            known = list(row.params)
            cure = nearest(name, known) if known else "It takes none"
            raise UserError(f"loss {loss.type!r} has no parameter {name!r}", where=where, cure=cure)
    row.check(**loss_params(loss))  # refuses values out of range before anything is computed


def _facts(phase: PhaseSettings, route: RouteSettings, loss: LossSettings, settings: RunSettings) -> RouteFacts:
    by = route.labels.by
    mode = label_mode(route)
    generation = phase.generation
    before = settings.phases.index(phase) - 1
    same_as_start = ["base", "previous"] + ([settings.phases[before].name] if before >= 0 else [])
    return RouteFacts(
        loss=loss.type,
        responses_from_policy=POLICY in route.sources,
        responses_from_reference=REFERENCE in route.sources,
        greedy=GREEDY in route.sources,
        sources=len(route.sources),
        labels_by="none" if by == NOBODY else ("order" if by == DATA_ORDER else "policy" if by == POLICY else "others"),
        labels_as=rating_kind(phase, route) or (route.labels.as_ or ""),
        filtered=route.filter is not None,
        has_value=phase.components.value is not None,
        has_sae=phase.components.sae is not None,
        has_prompt_tag=phase.components.prompt_tag is not None,
        mode=mode,
        when=route.labels.when,
        sail_coef=route.sail_coef,
        loss_params=loss.params,
        num_tokens=float(generation.max_completion_length),
        num_generations=route.num_generations,
        keep=route.keep,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        min_p=generation.min_p,
        min_tokens=generation.min_tokens,
        linear_alignment=generation.linear_alignment is not None,
        stale=phase.steps_per_generation != 1,  # more than one optimizer step on the same samples
        own_samples=_own_samples(phase),
        importance_mode=phase.importance_sampling.mode,
        importance_apply_to=phase.importance_sampling.apply_to,
        policy_is_reference=phase.round.reference in same_as_start,
        filters=_filters(phase, route, find_loss(loss.type).unit == "pair"),
        labels_may_lack=POLICY in route.sources and may_lack_labels(route, settings),
    )


def _own_samples(phase: PhaseSettings) -> bool:
    turn = phase.round
    return phase.num_rounds < 2 or (turn.init_from, turn.data, turn.staleness) == ("previous", "new", 0)


def _filters(phase: PhaseSettings, route: RouteSettings, pairs: bool) -> bool:
    """Whether some of what is drawn is left out, of pairs for what they are together too."""
    hygiene = phase.hygiene
    dropped = "drop" in (hygiene.truncated, hygiene.empty)
    if pairs:
        dropped |= "drop" in (hygiene.identical, hygiene.ties) or hygiene.min_margin > 0
        dropped |= any(map(drops_pairs, route.labels.regulation))
    return not {POLICY, REFERENCE}.isdisjoint(route.sources) and dropped


def label_mode(route: RouteSettings) -> LabelMode:
    """The policy's own labels are soft by default, everybody else's hard."""
    return route.labels.mode or ("soft" if route.labels.by == POLICY else "hard")


def _one_of(name: str, known: list[str], where: str) -> None:
    if name not in known:
        raise UserError(f"unknown name {name!r}", where=where, cure=nearest(name, known))
