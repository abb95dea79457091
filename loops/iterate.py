"""The loop.

    prompts --generate--> samples --score, pair--> pairs --update--> checkpoint --evaluate--> metrics
       ^                                                                |
       +------------------------- next round --------------------------+

A phase is num_rounds turns of it; num_rounds 0 is one turn over dataset rows alone. Every stage asks the builder for
an artifact by its recipe, so this file reads the same whether a run starts, resumes, is planned or is extended: what
exists is handed back, what is missing is made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from loops.checks import POLICY, label_mode, loss_params, route_loss, sources_of
from loops.context import Context
from sail.core.artifacts import Artifact
from sail.core.run_settings import LossSettings, PhaseSettings, RouteSettings
from sail.evaluation.inputs import EvaluationInputs, HeldOutPairs
from sail.evaluation.stage import evaluate
from sail.generation.stage import generate
from sail.labeling.evidence import Evidence, ScoreEvidence
from sail.labeling.labelers.dataset import DatasetEvidence
from sail.labeling.labelers.policy import PolicyEvidence
from sail.labeling.pairs import PairingOptions, pair_responses
from sail.labeling.rows import response_rows
from sail.labeling.scores import score_responses
from sail.objectives import find_loss
from sail.policy.loading import Checkpoint
from sail.policy.scoring import score_logps
from sail.update.items import RouteInput, RowSource
from sail.update.stage import UpdateInputs, update

START = -1  # the round of the starting policy's evaluation
NO_ROUND = -1  # of rows no policy drew


@dataclass(frozen=True)
class RoundRecord:
    """What a round left behind; round_index START is the evaluation of the starting policy."""

    round_index: int
    phase: str
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)


def run_phases(context: Context) -> Iterator[RoundRecord]:
    """All phases, each from the last checkpoint of the one before; yields as rounds end."""
    for name in [source for phase in context.settings.phases for source in sources_of(phase)]:
        context.data(name)  # a broken row shows before hours of other stages
    policy: Checkpoint = context.model
    ends: dict[str, Checkpoint] = {}
    first_round = 0
    for phase in context.settings.phases:
        loop = PhaseLoop(context, phase, policy, ends, first_round)
        yield from loop.rounds()
        policy = ends[phase.name] = loop.policies[-1]
        first_round += max(1, phase.num_rounds)


class PhaseLoop:
    """The rounds of one phase."""

    def __init__(
        self,
        context: Context,
        phase: PhaseSettings,
        start: Checkpoint,
        ends: Mapping[str, Checkpoint],
        first_round: int,
    ) -> None:
        self.context, self.phase, self.builder = context, phase, context.builder
        self.policies: list[Checkpoint] = [start]  # policies[t] starts round t of the phase
        self.ends = ends
        self.first_round = first_round  # rounds are counted over all phases
        self.start_scores: dict[str, Artifact] = {}

    def rounds(self) -> Iterator[RoundRecord]:
        start = self._evaluated(START)
        if start is not None and self.first_round == 0:
            yield RoundRecord(START, self.phase.name, start)
        for turn in range(max(1, self.phase.num_rounds)):
            made: dict[str, Artifact] = {}
            checkpoint = self._update(turn, made)
            self.policies.append(checkpoint)
            made["checkpoint"] = checkpoint
            if (turn + 1) % self.phase.evaluation.every == 0 or turn + 1 == max(1, self.phase.num_rounds):
                made |= self._evaluated(turn) or {}
            yield RoundRecord(self.first_round + turn, self.phase.name, made)

    def reference(self, turn: int) -> Checkpoint:
        """The reference of a round; it moves at round boundaries only."""
        name = self.phase.round.reference
        if name == "base":
            return self.policies[0]
        return self.policies[turn] if name == "previous" else self.ends[name]

    def _update(self, turn: int, made: dict[str, Artifact]) -> Artifact:
        context, phase = self.context, self.phase
        carry = phase.round.optimizer == "carry"
        routes = [self._route(name, route, turn, made) for name, route in phase.routes.items() if route.share != 0]
        before = self.policies[turn]
        return update(
            self.builder,
            UpdateInputs(
                start=before if phase.round.init_from == "previous" else self.policies[0],
                routes=tuple(routes),
                settings=phase.update,
                importance=phase.importance_sampling,
                seed=context.seed("update"),
                round_index=self.first_round + turn,
                lora=context.settings.lora,
                carry_from=before if carry and turn > 0 and isinstance(before, Artifact) else None,
                keep_optimizer=carry,
                chat_template=context.template,
            ),
        )

    def _route(self, name: str, route: RouteSettings, turn: int, made: dict[str, Artifact]) -> RouteInput:
        """The rows of one route: a data source, or this round's samples (and, with data: all, the earlier ones)."""
        if route.responses != POLICY:
            sources = [self._rows(name, route, self.context.data(route.responses), turn, turn, made)]
        else:
            drawn_in = range(0 if self.phase.round.data == "all" else turn, turn + 1)
            sources = [self._rows(name, route, self._samples(route, t), t, turn, made) for t in drawn_in]
            made[f"samples/{name}"] = sources[-1].responses
        made[f"pairs/{name}"] = sources[-1].rows
        temperature = self.phase.generation.temperature if route.responses == POLICY else 1.0
        return RouteInput(name, route, route_loss(self.phase, route), tuple(sources), temperature)

    def _samples(self, route: RouteSettings, turn: int) -> Artifact:
        context, phase = self.context, self.phase
        assert phase.prompts is not None, "checked before the run"
        return generate(
            self.builder, context.engine(phase.generation.engine),
            prompts=context.prompts(phase), table="train", policy=self.policies[turn], settings=phase.generation,
            engine_settings=context.engine_settings(phase.generation.engine), num_samples=route.num_generations,
            per_round=phase.prompts.per_round, round_index=self.first_round + turn, seed=context.seed("samples"),
            chat_template=context.template,
        )  # fmt: skip

    def _rows(
        self, name: str, route: RouteSettings, responses: Artifact, drawn_in: int, turn: int, made: dict[str, Artifact]
    ) -> RowSource:
        """Labelled rows of one set of responses, with the log-probs the loss and its weights need."""
        loss = route_loss(self.phase, route)
        seed = self.context.seed("labels", name)
        round_index = self.first_round + drawn_in if route.responses == POLICY else NO_ROUND
        held_out = self._held_out() if route.responses != POLICY else None
        if find_loss(loss.type).unit == "response":
            rows = response_rows(
                self.builder, responses, hygiene=self.phase.hygiene, round_index=round_index,
                where=f"routes.{name}", held_out=held_out,
            )  # fmt: skip
        else:
            evidence = self._evidence(name, route, responses, drawn_in, made)
            pairing = route.keep if route.responses == POLICY else "verdicts"
            options = PairingOptions(
                pairing, label_mode(route), seed, round_index, route.sail_coef, self.phase.hygiene, f"routes.{name}"
            )
            rows = pair_responses(self.builder, responses, evidence, options, held_out)
        needs_behavior = route.responses == POLICY and self.phase.importance_sampling.mode != "none"
        return RowSource(
            responses=responses,
            rows=rows,
            reference_logps=self._reference_logps(responses, loss, turn),
            behavior_logps=self._logps(responses, self.policies[drawn_in]) if needs_behavior else None,
        )

    def _evidence(
        self, name: str, route: RouteSettings, responses: Artifact, turn: int, made: dict[str, Artifact]
    ) -> Evidence:
        by, loss = route.labels.by, route_loss(self.phase, route)
        if by == POLICY:
            reference = self._reference_logps(responses, loss, turn)
            policy = self._logps(responses, self.policies[turn])
            return PolicyEvidence(policy, reference, loss.type, loss_params(loss), route.labels.when)
        if by in self.context.settings.data:
            return DatasetEvidence(responses, by, route.labels.temperature)
        labeler = self.context.labeler(by)
        scores = made[f"scores/{name}"] = score_responses(self.builder, responses, labeler)
        penalty = self.phase.hygiene.missing_eos_penalty
        return ScoreEvidence(scores, by, labeler.digest, route.labels.temperature, penalty)

    def _reference_logps(self, responses: Artifact, loss: LossSettings, turn: int) -> Artifact | None:
        needed = "reference" in find_loss(loss.type).needs
        return self._logps(responses, self.reference(turn)) if needed else None

    def _logps(self, responses: Artifact, checkpoint: Checkpoint) -> Artifact:
        update = self.phase.update
        return score_logps(
            self.builder, responses, checkpoint, bf16=update.bf16, max_tokens=update.max_tokens_per_microbatch
        )

    def _evaluated(self, turn: int) -> dict[str, Artifact] | None:
        """Held-out samples of the policy after round `turn`, their scores, and the metrics."""
        phase, context = self.phase, self.context
        if phase.evaluation.num_prompts == 0:
            return None
        policy, reference = self.policies[turn + 1], self.reference(max(turn, 0))
        engine = phase.generation.engine if phase.num_rounds > 0 else "transformers"
        settings = phase.generation.replace(temperature=phase.evaluation.temperature)
        samples = generate(
            self.builder, context.engine(engine),
            prompts=context.prompts(phase), table="held_out", policy=policy, settings=settings,
            engine_settings=context.engine_settings(engine), num_samples=phase.evaluation.num_generations,
            per_round=None, round_index=0, seed=context.seed("evaluation"), chat_template=context.template,
        )  # fmt: skip
        scorers = {name: context.labeler(name) for name in phase.evaluation.scorers}
        scores = {name: score_responses(self.builder, samples, scorer) for name, scorer in scorers.items()}
        if turn == START:
            self.start_scores = scores
        inputs = EvaluationInputs(
            policy=policy,
            reference=reference,
            samples=samples,
            policy_logps=self._logps(samples, policy),
            reference_logps=self._logps(samples, reference),
            scores=scores,
            start_scores={} if turn == START else self.start_scores,
            pairs=self._held_out_pairs(policy, reference),
        )
        beta = loss_params(phase.loss).get("beta", 1.0)
        evaluation = evaluate(self.builder, inputs, beta=beta, seed=context.seed("bootstrap"), bf16=phase.update.bf16)
        return {"evaluation": evaluation, "evaluation_samples": samples}

    def _held_out(self) -> Artifact | None:
        """The prompts that no row of a dataset may be trained on."""
        return self.context.prompts(self.phase) if self.phase.evaluation.num_prompts > 0 else None

    def _held_out_pairs(self, policy: Checkpoint, reference: Checkpoint) -> HeldOutPairs | None:
        name = self.phase.evaluation.pairs
        if name is None:
            return None
        data = self.context.data(name)
        return HeldOutPairs(data, self._logps(data, policy), self._logps(data, reference))
