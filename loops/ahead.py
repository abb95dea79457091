"""One round ahead (round.staleness: 1): while a round trains, a server draws the samples of the next.

    this thread     samples t, labels t | update t ------------> (waits) | evaluation t, labels t + 1 | update t + 1
    sail-ahead                          | samples t + 1, by policy t --> |

They are those of the policy that the update starts from, so nothing they are made from is missing, and the next round
asks for the same artifacts as if nobody had: it finds them, goes on from their last shard after a kill, or draws them
itself where the engine cannot work meanwhile. What a run computes is in round.staleness, never in this file.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

from loops.plan import PlanBuilder
from loops.routes import Draw, Routes
from sail.core.artifacts import Artifact
from sail.core.store import Build, Builder, Recipe, Store, Workspace
from sail.generation.engine import Engine, ServerEngine
from sail.serving.errors import AbandonedError

_logger = logging.getLogger(__name__)


def drawing_ahead(routes: Routes, turn: int) -> Builder:
    """The builder of a turn's update; with round.staleness it has the next turn's samples drawn meanwhile."""
    ahead = routes.phase.round.staleness > 0 and turn + 1 < routes.phase.num_rounds
    return DrawingAhead(routes, turn + 1) if ahead else routes.builder


@dataclass(frozen=True)
class DrawingAhead:
    """A builder that has samples drawn in a thread of its own while it builds; when it returns, both are done."""

    routes: Routes
    turn: int  # whose samples

    def build(self, recipe: Recipe, run: Build) -> Artifact:
        """What `run` makes. A failure of the thread is raised when that is committed, a failure of `run` ends it."""
        stop = Event()
        drawing: list[Future[None]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="sail-ahead") as executor:

            def meanwhile(workspace: Workspace) -> dict[str, Any]:
                draws = self.routes.draws(self.turn)
                engine = self._ready(draws, Store(workspace.path.parent))
                if engine is not None:
                    drawing.append(executor.submit(self._draw, draws, engine.until(stop)))
                    drawing[0].add_done_callback(_tell)
                return run(workspace)

            try:
                artifact = self.routes.builder.build(recipe, meanwhile)
                for drawn in drawing:
                    drawn.result()
                return artifact
            finally:
                stop.set()  # after Ctrl-C, too: no thread goes on without us

    def _ready(self, draws: Sequence[Draw], store: Store) -> ServerEngine | None:
        """The engine, with the policy in it, where it can draw meanwhile and something is left to draw.

        Weights are loaded and compared here, in the training thread and before it trains: the other needs no torch.
        """
        engine = self.routes.context.engine(self.routes.phase.generation.engine)
        if not isinstance(engine, ServerEngine) or not engine.awake:
            return None
        plan = PlanBuilder(store)
        for draw in draws:
            draw(plan, engine)
        if not plan.new:
            return None
        engine.use(self.routes.drawn_by(self.turn))
        return engine

    def _draw(self, draws: Sequence[Draw], engine: Engine) -> None:
        for draw in draws:
            draw(self.routes.builder, engine)


def _tell(drawn: Future[None]) -> None:
    error = drawn.exception()
    if error is not None and not isinstance(error, AbandonedError):
        _logger.warning("the next round's samples failed; the run ends when this one is trained: %s", error)
