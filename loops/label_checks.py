"""What is wrong with labelers and with the regulation of a route's labels, before anything runs."""

from sail.core.errors import UserError
from sail.core.labeler_settings import POLICY_URL, EnsembleLabeler, JudgeLabeler, NoiseLabeler
from sail.core.records import LabelMode
from sail.core.route_settings import RouteSettings
from sail.core.run_settings import LabelerSettings, PhaseSettings, RewardModelLabeler, RunSettings
from sail.core.settings import nearest
from sail.labeling.labeler_row import compares_pairs, may_answer_nothing
from sail.labeling.ratings import Kind
from sail.labeling.regulation import changes_labels
from sail.objectives import find_loss


def check_labelers(settings: RunSettings) -> None:
    """Names inside labelers lead somewhere, and to somebody who can do what is asked."""
    both = sorted(set(settings.data) & set(settings.labelers))
    if both:
        raise UserError(f"{both} name both a data source and a labeler", where="labelers", cure="Rename one")
    for name, labeler in settings.labelers.items():
        where = f"labelers.{name}.of"
        if isinstance(labeler, RewardModelLabeler) and labeler.fit is not None:
            _one_of(labeler.fit.data, list(settings.data), f"labelers.{name}.fit.data", "a data source")
        if isinstance(labeler, EnsembleLabeler):
            scorers = [one for one, row in settings.labelers.items() if _scores(row) and row.kind != "ensemble"]
            for one in labeler.of:
                _one_of(one, scorers, where, "a labeler that scores responses")
        if isinstance(labeler, NoiseLabeler):
            others = [one for one, row in settings.labelers.items() if row.kind != "noise"]
            _one_of(labeler.of, [*others, *settings.data], where, "a labeler, or a data source")
    for phase in settings.phases:
        scorers = [one for one, row in settings.labelers.items() if _scores(row) and row.kind != "judge"]
        for one in phase.evaluation.scorers:
            told = "a scorer that never fails (a reward model, a callable, a rule, an ensemble)"
            _one_of(one, scorers, f"{phase.name}: evaluation.scorers", told)


def _scores(labeler: object) -> bool:
    return not isinstance(labeler, NoiseLabeler) and not compares_pairs(labeler)  # type: ignore[arg-type]


def check_route_labels(
    phase: PhaseSettings, route: RouteSettings, loss: str, mode: LabelMode, settings: RunSettings, where: str
) -> None:
    """Labelers, regulation and audit of one route fit its loss, its mode and its responses."""
    labels, named = route.labels, f"{where}.labels"
    for other in [step.other for step in labels.regulation if step.step == "disagreement"] + list(labels.audit):
        _check_second(other, route, settings, named)
    for name in asked_labelers(route, settings):
        _check_policy_judge(name, phase, settings)
    if labels.temperature not in (None, 1.0) and _pairs(labels.by, settings):
        raise UserError(
            f"{labels.by!r} gives probabilities, no scores", where=f"{named}.temperature",
            cure="Use regulation: [{step: temper, temperature: ...}]",
        )  # fmt: skip
    if not labels.regulation and not labels.audit:
        return
    if find_loss(loss).unit != "pair":
        raise UserError(f"{loss} learns from single responses, there are no pairs to regulate or audit", where=named,
                        cure="Leave regulation and audit out")  # fmt: skip
    _check_steps(route, loss, mode, f"{named}.regulation")


def check_single_labels(route: RouteSettings, loss: str, kind: Kind | None, settings: RunSettings, where: str) -> None:
    """The labeler of a route of single responses can say of each what the loss reads: labels of this kind."""
    by, named = route.labels.by, f"{where}.labels"
    if kind in ("score", "win_rate") and behind(by, settings) != by:
        raise UserError(
            f"{by!r} turns labels round, and labels as {kind}, which {loss} reads, have no other side", where=named,
            cure="Use a loss of pairs or of thumbs (kto), or label by whom it turns round",
        )  # fmt: skip
    if kind is None or not _pairs(by, settings):
        return
    needs = f"{by!r} compares samples of a prompt, and {loss} needs labels as {kind} of"
    scorers = "Label by somebody who scores responses: a reward model, a callable, a judge with question: rubric"
    if not route.samples:
        raise UserError(f"{needs} the responses of {route.responses!r}", where=named, cure=scorers)
    if len(route.sources) == 1 and route.generations(route.sources[0]) == 1:
        raise UserError(
            f"{needs} one sample a prompt", where=named, cure=f"{scorers}; or draw two or more: num_generations: 2"
        )


def _check_steps(route: RouteSettings, loss: str, mode: LabelMode, where: str) -> None:
    changing = [step.step for step in route.labels.regulation if changes_labels(step)]
    if not changing:
        return
    if route.labels.by == "policy" and route.labels.when == "fresh":
        raise UserError(f"{changing[0]} changes labels that the update makes anew", where=where,
                        cure="Use steps that leave pairs out, or labels by others")  # fmt: skip
    row = find_loss(loss)
    if not row.soft_labels:
        raise UserError(f"{changing[0]} makes soft labels, and {loss} takes none: {row.hard_only}", where=where,
                        cure="Leave the step out, or take another loss")  # fmt: skip
    if "temper" in changing and mode != "soft":
        raise UserError(
            f"temper does nothing to {mode} labels: they are 0 or 1", where=where, cure="Use label_mode: soft"
        )


def _check_second(name: str, route: RouteSettings, settings: RunSettings, where: str) -> None:
    sources = [route.responses] if route.responses in settings.data else []
    _one_of(name, [*settings.labelers, *sources], where, "a labeler, or the route's own data source")


def asked_labelers(route: RouteSettings, settings: RunSettings) -> list[str]:
    """Every labeler a route asks, those behind others included."""
    others = [step.other for step in route.labels.regulation if step.step == "disagreement"]
    return _with_those_behind([route.labels.by, *others, *route.labels.audit], settings)


def may_lack_labels(route: RouteSettings, settings: RunSettings) -> bool:
    """Whether the route's labeler, or one that it rests on, may fail or abstain."""
    return any(may_answer_nothing(settings.labelers[name]) for name in _with_those_behind([route.labels.by], settings))


def _with_those_behind(names: list[str], settings: RunSettings) -> list[str]:
    """The labelers among the names and those that they ask, each once."""
    found: dict[str, LabelerSettings] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        labeler = settings.labelers.get(name)
        if labeler is None or name in found:
            continue
        found[name] = labeler
        waiting += [labeler.of] if isinstance(labeler, NoiseLabeler) else []
        waiting += labeler.of if isinstance(labeler, EnsembleLabeler) else []
    return list(found)


def _check_policy_judge(name: str, phase: PhaseSettings, settings: RunSettings) -> None:
    labeler = settings.labelers[name]
    is_policy = isinstance(labeler, JudgeLabeler) and labeler.url == POLICY_URL
    if is_policy and phase.generation.engine != "vllm":
        raise UserError(
            f"url: policy needs a server, and {phase.generation.engine} has none", where=f"labelers.{name}.url",
            cure="Set generation.engine: vllm, or give an address",
        )  # fmt: skip
    if is_policy and settings.vllm.mode == "colocate":
        raise UserError(
            "url: policy asks a server over HTTP, and mode colocate has none", where=f"labelers.{name}.url",
            cure="Set vllm.mode: server, or give an address",
        )  # fmt: skip


def behind(name: str, settings: RunSettings) -> str:
    """Whose labels a labeler of kind noise turns round; of any other name itself."""
    labeler = settings.labelers.get(name)
    return labeler.of if isinstance(labeler, NoiseLabeler) else name


def gives_scores(name: str, settings: RunSettings) -> bool:
    """Whether it is a labeler of single responses, or one whose labels are turned round."""
    return behind(name, settings) in settings.labelers and not _pairs(name, settings)


def _pairs(name: str, settings: RunSettings) -> bool:
    labeler = settings.labelers.get(behind(name, settings))
    return labeler is not None and compares_pairs(labeler)


def _one_of(name: str, known: list[str], where: str, what: str) -> None:
    if name not in known:
        raise UserError(f"{name!r} is not {what}", where=where, cure=nearest(name, known))
