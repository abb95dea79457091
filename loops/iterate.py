"""The loop.

    prompts --generate--> samples --score, pair--> pairs --update--> checkpoint --evaluate--> metrics
       ^                                                                |
       +------------------------- next round --------------------------+

A phase is num_rounds turns of it; num_rounds 0 is one turn over dataset rows alone, and without routes only the last
arrow. Every stage asks the builder for
an artifact by its recipe, so this file reads the same whether a run starts, resumes, is planned or is extended: what
exists is handed back, what is missing is made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from loops.ahead import drawing_ahead
from loops.checks import engine_of, loss_params, sources_of
from loops.context import Context
from loops.gathering import gather
from loops.labelling import Responses, scores_by
from loops.refresh import RoundRefresh
from loops.routes import Routes
from sail.core.artifacts import Artifact
from sail.core.run_settings import PhaseSettings
from sail.evaluation.inputs import EvaluationInputs, HeldOutPairs
from sail.evaluation.stage import evaluate
from sail.generation.stage import generate
from sail.generation.tagging import tag_prompts
from sail.policy.loading import Checkpoint
from sail.update.inputs import UpdateInputs
from sail.update.stage import update

START = -1  # the round of the starting policy's evaluation


@dataclass(frozen=True)
class RoundRecord:
    """What a round left behind; round_index START is the evaluation of the starting policy."""

    round_index: int
    phase: str
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return "start" if self.round_index == START else f"round {self.round_index}"


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
        self.start_samples: Artifact | None = None
        self.trained_on: list[Artifact] = []  # the rows of the last update
        self.routes = Routes(context, phase, first_round, self.policies, self.reference, self._prompts)

    def rounds(self) -> Iterator[RoundRecord]:
        start = self._evaluated(START)
        if start is not None and self.first_round == 0:
            yield RoundRecord(START, self.phase.name, start)
        for turn in range(max(1, self.phase.num_rounds)):
            made: dict[str, Artifact] = {}
            if self.phase.routes:
                made["checkpoint"] = self._update(turn, made)
            self.policies.append(made.get("checkpoint", self.policies[-1]))
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
        drawn: dict[str, Artifact] = {}  # in parts, while the update trains
        refresh = None
        if phase.steps_per_generation is None:
            routes = self.routes.inputs(turn, made)
        else:
            refresh = RoundRefresh(context, phase, self.routes, turn, self.reference)
            routes = refresh.inputs(made, drawn)
        self.trained_on = [source.rows for route in routes for source in route.sources]
        before = self.policies[turn]
        checkpoint = update(
            drawing_ahead(self.routes, turn),
            UpdateInputs(
                start=before if phase.round.init_from == "previous" else self.policies[0],
                routes=tuple(routes),
                settings=phase.update,
                importance=phase.importance_sampling,
                seed=context.seed("update", phase=phase),
                round_index=self.first_round + turn,
                steps_per_generation=phase.steps_per_generation,
                lora=context.settings.lora,
                carry_from=before if carry and turn > 0 and isinstance(before, Artifact) else None,
                keep_optimizer=carry,
                chat_template=context.template,
                components=phase.components,
                sae=context.sae(phase),
                tokenizer=context.model if phase.components.prompt_tag is not None else None,
            ),
            context.launch,
            refresh,
        )
        if refresh is not None:
            refresh.close()
            made |= gather(self.builder, checkpoint, drawn, self._label_seeds())
        return checkpoint

    def _label_seeds(self) -> dict[str, int]:
        return {name: self.context.seed("labels", name, phase=self.phase) for name in self.phase.routes}

    def _prompts(self, turn: int, target: float | str | None = None) -> Artifact:
        """The phase's prompts as policies[turn] is to see them: tagged, once it was trained with tags."""
        prompts, tag = self.context.prompts(self.phase), self.phase.components.prompt_tag
        if tag is None or turn == 0:
            return prompts
        return tag_prompts(
            self.builder, prompts, self.trained_on, tag, tag.target if target is None else target,
            tokenizer=self.context.model, chat_template=self.context.template,
            template_kwargs=self.context.settings.chat_template_kwargs,
        )  # fmt: skip

    def _evaluated(self, turn: int) -> dict[str, Artifact] | None:
        """Held-out samples of the policy after round `turn`, their scores, and the metrics.

        Linear Alignment, like the sampling temperature, is how a phase draws what it trains on: the policy itself is
        evaluated. A phase that only evaluates compares it with the start.
        """
        if self.phase.evaluation.num_prompts == 0:
            return None
        made = self._evaluation(turn)
        tag = self.phase.components.prompt_tag
        if tag is not None and tag.evaluate_at and turn != START:
            made[f"evaluation@{tag.target}"] = made["evaluation"]
            for target in tag.evaluate_at:
                made[f"evaluation@{target}"] = self._evaluation(turn, target)["evaluation"]
        return made

    def _evaluation(self, turn: int, target: float | str | None = None) -> dict[str, Artifact]:
        phase, context, logps = self.phase, self.context, self.routes.logps
        policy, reference = self.policies[turn + 1], self.reference(max(turn, 0))
        engine = engine_of(phase)
        steered = phase.generation.linear_alignment if turn != START and not phase.routes else None
        settings = phase.generation.replace(temperature=phase.evaluation.temperature, linear_alignment=steered)
        samples = generate(
            self.builder, context.engine(engine),
            prompts=self._prompts(turn + 1, target), table="held_out", policy=policy, settings=settings,
            engine_settings=context.engine_settings(engine), num_samples=phase.evaluation.num_generations,
            per_round=None, round_index=0, seed=context.seed("evaluation", phase=phase), chat_template=context.template,
        )  # fmt: skip
        start_samples = self.start_samples = self.start_samples or samples
        asked = Responses(
            "evaluation", samples, lambda: start_samples, policy, "all", context.seed("labels", "evaluation")
        )
        scores = {name: scores_by(context, name, asked) for name in phase.evaluation.scorers}
        if turn == START:
            self.start_scores = scores
        inputs = EvaluationInputs(
            policy=policy,
            reference=reference,
            samples=samples,
            policy_logps=logps(samples, policy),
            reference_logps=logps(samples, reference),
            scores=scores,
            start_scores={} if turn == START else self.start_scores,
            pairs=self._held_out_pairs(policy, reference),
        )
        beta = loss_params(phase.loss).get("beta", 1.0)
        seed = context.seed("bootstrap", phase=phase)
        evaluation = evaluate(self.builder, inputs, beta=beta, seed=seed, bf16=phase.update.bf16)
        return {"evaluation": evaluation, "evaluation_samples": samples}

    def _held_out_pairs(self, policy: Checkpoint, reference: Checkpoint) -> HeldOutPairs | None:
        name = self.phase.evaluation.pairs
        if name is None:
            return None
        data = self.context.data(name)
        return HeldOutPairs(data, self.routes.logps(data, policy), self.routes.logps(data, reference))
