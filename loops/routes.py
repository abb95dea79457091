"""From a route's settings to its rows: responses, labels and the log-probs its loss needs, artifact by artifact."""

from collections.abc import Callable, Sequence
from functools import partial

from loops.checks import DATA_ORDER, POLICY, label_mode, loss_params, rating_kind, route_loss
from loops.context import Context
from loops.labelling import Responses, auditors, compared_by, evidence_by, ratings_by, second_opinions
from sail.core.artifacts import Artifact
from sail.core.route_settings import GREEDY, SAMPLED, LossSettings, RouteSettings
from sail.core.run_settings import PhaseSettings
from sail.core.store import Builder
from sail.generation.engine import Engine
from sail.generation.meet import meet_responses
from sail.generation.prompts import Part
from sail.generation.stage import generate, greedy
from sail.labeling.audit import audit_labels
from sail.labeling.evidence import Evidence
from sail.labeling.labelers.order import OrderEvidence
from sail.labeling.labelers.policy import PolicyEvidence
from sail.labeling.pairs import PairingOptions, pair_responses
from sail.labeling.ratings import RatingOptions
from sail.labeling.rows import RowOptions, response_rows
from sail.labeling.tagging import Tagging
from sail.objectives import find_loss
from sail.policy.features import score_features
from sail.policy.loading import Checkpoint
from sail.policy.scoring import score_here, score_logps
from sail.update.items import RouteInput, RowSource
from sail.update.launch import run_in_processes
from sail.update.rollouts import RolloutInputs, estimate_rollouts

NO_ROUND = -1  # of rows no policy drew
Draw = Callable[[Builder, Engine], Artifact]


class Routes:
    """The routes of one phase; policies and prompts are asked for by the turn of the phase.

    With round.staleness an earlier policy draws the samples of a turn (`drawn_by`), so the behaviour log-probs are that
    policy's. All else is the turn's own: whoever labels as the policy (frozen labels, a judge at url: policy) is the
    one the turn starts from, and `reference` means the turn's reference, of samples and log-probs alike.
    """

    def __init__(
        self,
        context: Context,
        phase: PhaseSettings,
        first_round: int,
        policies: Sequence[Checkpoint],
        reference: Callable[[int], Checkpoint],
        prompts: Callable[[int], Artifact],
        part: Part | None = None,
    ) -> None:
        self.context, self.phase, self.builder = context, phase, context.builder
        self.first_round = first_round  # rounds are counted over all phases
        self.policies, self.reference, self.prompts = policies, reference, prompts
        self.part = part  # of a round's prompts; default: all of them

    def inputs(self, turn: int, made: dict[str, Artifact]) -> list[RouteInput]:
        """What the update of a turn learns from; `made` takes down what was made on the way."""
        return [self.route(name, route, turn, made) for name, route in self.phase.routes.items() if route.share != 0]

    def drawn_by(self, turn: int) -> Checkpoint:
        """The policy whose samples a turn learns from."""
        return self.policies[max(0, turn - self.phase.round.staleness)]

    def draws(self, turn: int) -> list[Draw]:
        """What a turn learns from that `drawn_by` draws, hence before the turn begins."""
        routes = [route for route in self.phase.routes.values() if route.share != 0]
        sources = [(route, source) for route in routes for source in route.sources if source in (POLICY, GREEDY)]
        return [self._draw(source, route, turn) for route, source in sources]

    def logps(self, responses: Artifact, checkpoint: Checkpoint, table: str = "groups") -> Artifact:
        update, launch = self.phase.update, self.context.launch
        return score_logps(
            self.builder, responses, checkpoint,
            bf16=update.bf16, max_tokens=update.max_tokens_per_microbatch, table=table,
            score=score_here if launch is None else partial(run_in_processes, launch=launch),
        )  # fmt: skip

    def held_out(self) -> Artifact | None:
        """The prompts that no row of a dataset may be trained on."""
        return self.context.prompts(self.phase) if self.phase.evaluation.num_prompts > 0 else None

    def route(self, name: str, route: RouteSettings, turn: int, made: dict[str, Artifact]) -> RouteInput:
        """The rows of one route: a data source, or this round's samples (and, with data: all, the earlier ones)."""
        turns = range(0 if self.phase.round.data == "all" else turn, turn + 1) if route.samples else [turn]
        sources = [self._rows(name, route, self._responses(name, route, t), t, turn, made) for t in turns]
        if route.samples:
            made[f"samples/{name}"] = sources[-1].responses
        made[f"pairs/{name}"] = sources[-1].rows
        temperature = self.phase.generation.temperature if route.samples else 1.0
        return RouteInput(name, route, route_loss(self.phase, route), tuple(sources), temperature)

    def _responses(self, name: str, route: RouteSettings, turn: int) -> Artifact:
        origins = [self._origin(source, route, turn) for source in route.sources]
        if len(origins) == 1:
            return origins[0]
        ranked = self._pairing(route) == "best_worst"
        return meet_responses(self.builder, origins, f"routes.{name}.responses", rejected=ranked)

    def _origin(self, source: str, route: RouteSettings, turn: int) -> Artifact:
        if source not in SAMPLED:
            return self.context.data(source)
        return self._draw(source, route, turn)(self.builder, self.context.engine(self.phase.generation.engine))

    def _draw(self, source: str, route: RouteSettings, turn: int) -> Draw:
        context, phase = self.context, self.phase
        assert phase.prompts is not None, "checked before the run"
        return partial(
            generate,
            prompts=self.prompts(turn), table="train",
            settings=greedy(phase.generation) if source == GREEDY else phase.generation,
            policy=self.reference(turn) if source == "reference" else self.drawn_by(turn), origin=source,
            engine_settings=context.engine_settings(phase.generation.engine), num_samples=route.generations(source),
            per_round=phase.prompts.per_round, round_index=self.first_round + turn,
            seed=context.seed("samples", phase=phase), chat_template=context.template, part=self.part,
        )  # fmt: skip

    def _rows(
        self, name: str, route: RouteSettings, responses: Artifact, drawn_in: int, turn: int, made: dict[str, Artifact]
    ) -> RowSource:
        """Labelled rows of one set of responses, with the log-probs the loss and its weights need."""
        loss = find_loss(route_loss(self.phase, route).type)
        if loss.unit == "pair":
            rows = self._pairs(name, route, responses, drawn_in, made)
        else:
            rows = self._single_rows(name, route, responses, drawn_in, made)
        if self.phase.components.prompt_tag is not None and loss.unit != "pair":
            responses = rows  # whose groups carry the tags
        reference = self.reference(turn) if "reference" in loss.needs else None
        mismatch = loss.statistic is not None and loss.statistic.of == "mismatched"
        needs_behavior = POLICY in route.sources and self.phase.importance_sampling.mode != "none"
        return RowSource(
            responses=responses,
            rows=rows,
            reference_logps=None if reference is None else self.logps(responses, reference),
            reference_features=self._features(responses, turn) if "features" in loss.needs else None,
            behavior_logps=self.logps(responses, self.drawn_by(drawn_in)) if needs_behavior else None,
            rollouts=self._rollouts(route, responses, rows, drawn_in, turn) if loss.rollouts else None,
            mismatched_logps=self.logps(rows, self.reference(turn), "mismatched") if mismatch else None,
        )

    def _features(self, responses: Artifact, turn: int) -> Artifact:
        sae, update = self.context.sae(self.phase), self.phase.update
        assert sae is not None, "checked before the run"
        return score_features(
            self.builder, responses, self.reference(turn), sae,
            bf16=update.bf16, max_tokens=update.max_tokens_per_microbatch,
        )  # fmt: skip

    def _rollouts(
        self, route: RouteSettings, responses: Artifact, rows: Artifact, drawn_in: int, turn: int
    ) -> Artifact:
        """What PPO estimates before its update, at the policy that drew the samples."""
        value, update = self.phase.components.value, self.phase.update
        assert value is not None, "checked before the run"
        inputs = RolloutInputs(
            responses, rows, self.policies[drawn_in], self.reference(turn), route_loss(self.phase, route),
            per=value.per, bf16=update.bf16, max_tokens=update.max_tokens_per_microbatch,
        )  # fmt: skip
        return estimate_rollouts(self.builder, inputs)

    def _pairs(
        self, name: str, route: RouteSettings, responses: Artifact, drawn_in: int, made: dict[str, Artifact]
    ) -> Artifact:
        asked = self._asked(name, route, responses, drawn_in)
        options = PairingOptions(
            self._pairing(route), label_mode(route), asked.seed, self._round_index(route, drawn_in), route.sail_coef,
            self.phase.hygiene, f"routes.{name}", route.labels.regulation,
        )  # fmt: skip
        evidence = self._evidence(route, asked, drawn_in, made)
        others = second_opinions(self.context, route, asked, made)
        pairs = pair_responses(self.builder, responses, evidence, options, self._held_out_of(route), others)
        if route.labels.audit:
            seen = auditors(self.context, route, asked, made)
            made[f"audit/{name}"] = audit_labels(self.builder, responses, pairs, seen)
        return pairs

    def _asked(self, name: str, route: RouteSettings, responses: Artifact, drawn_in: int) -> Responses:
        """What a labeler has to know of responses."""
        first = partial(self._responses, name, route, 0) if route.samples else lambda: responses
        seed = self.context.seed("labels", name, phase=self.phase)
        return Responses(
            name, responses, first, self.policies[drawn_in], compared_by(route, route.samples), seed,
            self.phase.hygiene.missing_eos_penalty,
        )  # fmt: skip

    def _single_rows(
        self, name: str, route: RouteSettings, responses: Artifact, drawn_in: int, made: dict[str, Artifact]
    ) -> Artifact:
        labels, loss, tag = (
            route.labels,
            find_loss(route_loss(self.phase, route).type),
            self.phase.components.prompt_tag,
        )
        kind, asked = rating_kind(self.phase, route), self._asked(name, route, responses, drawn_in)
        options = RowOptions(
            rating=kind and RatingOptions(kind, labels.normalize, labels.threshold, labels.temperature),
            filter=route.filter,
            mismatch=loss.statistic is not None and loss.statistic.of == "mismatched",
            tagging=None
            if tag is None
            else Tagging(tag, self.context.model, self.context.template, self.context.settings.chat_template_kwargs),
            seed=asked.seed,
            round_index=self._round_index(route, drawn_in),
            hygiene=self.phase.hygiene,
            where=f"routes.{name}",
        )
        labeler = None if kind is None else ratings_by(self.context, labels.by, asked, labels.temperature, made)
        return response_rows(self.builder, responses, labeler, options, self._held_out_of(route))

    def _evidence(self, route: RouteSettings, asked: Responses, turn: int, made: dict[str, Artifact]) -> Evidence:
        by, loss = route.labels.by, route_loss(self.phase, route)
        if by == POLICY:
            reference = self._reference_logps(asked.artifact, loss, turn)
            policy = self.logps(asked.artifact, self.policies[turn])
            return PolicyEvidence(policy, reference, loss.type, loss_params(loss), route.labels.when)
        if by == DATA_ORDER:
            return OrderEvidence(route.sources)
        return evidence_by(self.context, by, asked, route.labels.temperature, made)

    def _reference_logps(self, responses: Artifact, loss: LossSettings, turn: int) -> Artifact | None:
        needed = "reference" in find_loss(loss.type).needs
        return self.logps(responses, self.reference(turn)) if needed else None

    def _pairing(self, route: RouteSettings) -> str:
        if not route.samples:
            return "verdicts"
        return "across" if len(route.sources) > 1 and route.keep != "best_worst" else route.keep

    def _round_index(self, route: RouteSettings, drawn_in: int) -> int:
        return self.first_round + drawn_in if route.samples else NO_ROUND

    def _held_out_of(self, route: RouteSettings) -> Artifact | None:
        return None if route.samples else self.held_out()
