"""Refreshing the sampler within a round (steps_per_generation): the routes that sample from the policy, drawn in parts.

The round's prompts are divided over its segments, k optimizer steps each. At a segment's first step the same stages as
in any round (samples, scores, log-probs, pairs) run on its part of the prompts with the policy as it is, and commit
what they make inside the checkpoint that is being built. When it is there, loops/gathering.py makes of the parts what a
round leaves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from loops.context import Context
from loops.plan import PlanBuilder
from loops.refresh_checks import refreshed_routes
from loops.routes import Routes
from sail.core import atomic
from sail.core.artifacts import Artifact, Leaf
from sail.core.run_settings import PhaseSettings
from sail.core.store import Build, Builder, Recipe, Store
from sail.generation.prompts import Part
from sail.labeling.labeler_row import Labeler
from sail.policy.loading import Checkpoint, Resident, load_policy, model_folder
from sail.update.feed import CONTENTS, Segment
from sail.update.items import RouteInput


@dataclass
class Inside:
    """A builder that keeps what depends on one policy apart from everything else."""

    outside: Builder
    inside: Builder
    keys: set[str]  # of the policy, and of all that was made from it

    def build(self, recipe: Recipe, run: Build) -> Artifact:
        if not self.keys & {source.key for source in recipe.inputs.values()}:
            return self.outside.build(recipe, run)
        artifact = self.inside.build(recipe, run)
        self.keys.add(artifact.key)
        return artifact

    def of(self, made: Mapping[str, Artifact]) -> list[str]:
        """The names of those that depend on the policy."""
        return [name for name, artifact in made.items() if artifact.key in self.keys]


class RoundRefresh:
    """The refreshed routes of one round; sail.update.feed asks for their rows, a segment after the other."""

    def __init__(
        self,
        context: Context,
        phase: PhaseSettings,
        ordinary: Routes,
        turn: int,
        reference: Callable[[int], Checkpoint],
    ) -> None:
        self.context, self.phase, self.ordinary, self.turn = context, phase, ordinary, turn
        self.routes = refreshed_routes(phase)
        self.served = phase.generation.engine == "vllm"
        self._kept: dict[str, Labeler] = {}
        self._reference = cache(lambda turn: _resident(reference(turn)))

    def inputs(self, made: dict[str, Artifact], drawn: dict[str, Artifact]) -> list[RouteInput]:
        """All routes of the round in their order; what is drawn from the policy that trains goes into `drawn`."""
        training = Leaf(self.ordinary.policies[self.turn].path, "the policy that trains")
        inside = self._inside(PlanBuilder(Store(Path())), training)
        planned = self._routes(inside, training)
        inputs = [
            (planned if name in self.routes else self.ordinary).route(name, route, self.turn, made)
            for name, route in self.phase.routes.items()
            if route.share != 0
        ]
        drawn |= {name: made.pop(name) for name in inside.of(made)}
        return inputs

    def draw(self, folder: Path, policy: Resident, segment: Segment) -> Sequence[RouteInput]:
        """What the steps of a segment learn from: found in its folder, or drawn and labelled now."""
        part = Part(segment.first, segment.last, segment.steps)
        inside = self._inside(Store(folder, within=True), policy)
        routes = self._routes(inside, policy, part)
        made: dict[str, Artifact] = {}
        inputs = [routes.route(name, route, self.turn, made) for name, route in self.routes.items()]
        if not (folder / CONTENTS).exists():
            atomic.write_json(folder / CONTENTS, {name: made[name].id for name in inside.of(made)})
            atomic.sync_folder(folder.parent)
            atomic.sync_folder(folder.parent.parent)
        return inputs

    def close(self) -> None:
        """The update is over: an engine in this process lets go of the policy that trained."""
        if not self.served:
            self.context.engine(self.phase.generation.engine).close()

    def _inside(self, builder: Builder, policy: Checkpoint) -> Inside:
        return Inside(self.context.builder, builder, {policy.key})

    def _routes(self, builder: Inside, policy: Checkpoint, part: Part | None = None) -> Routes:
        context = self.context.building_with(builder, self._kept)
        policies = [policy] * (self.turn + 1)
        first_round, prompts = self.ordinary.first_round, self.ordinary.prompts
        return Routes(context, self.phase, first_round, policies, self._reference, prompts, part)


def _resident(reference: Checkpoint) -> Resident:
    """The reference, loaded when it is first asked and kept for all segments."""
    return Resident(reference.key, model_folder(reference), cache(partial(load_policy, reference)))
