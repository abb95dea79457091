"""Which rows an optimizer step can learn from, where the sampler is refreshed within a round (steps_per_generation).

    segment 0    steps 0 .. k-1     rows drawn from the policy as it was at step 0
    segment 1    steps k .. 2k-1    rows drawn from the policy as it was at step k, and so on

What a refresh draws and labels is committed in segments/00000, segments/00001, ... of the checkpoint's own artifact
before the first step learns from it, and never written again. So a killed update restores its last step checkpoint,
finds the rows of the steps since in their segments, and draws nothing twice.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sail.core.errors import UserError
from sail.core.records import content_hash
from sail.core.store import Workspace
from sail.policy.live import LivePolicy
from sail.policy.loading import PolicyModel, Resident, load_tokenizer
from sail.update.distributed import without_autocast
from sail.update.inputs import UpdateInputs, update_recipe
from sail.update.items import Item, RouteInput, load_items

SEGMENTS, CONTENTS = "segments", "segment.json"  # the file is written when all of a segment is there


@dataclass(frozen=True, slots=True)
class Segment:
    """The optimizer steps first .. last - 1 of a round's `steps`, between two refreshes."""

    index: int
    first: int
    last: int
    steps: int


class Refresh(Protocol):
    """Who draws and labels: the loop, which knows engines and labelers."""

    @property
    def routes(self) -> Collection[str]:
        """The routes whose rows are drawn anew."""

    @property
    def served(self) -> bool:
        """A server samples, which has to load the weights."""

    def draw(self, folder: Path, policy: Resident, segment: Segment) -> Sequence[RouteInput]:
        """The rows of these routes for a segment: those committed in its folder, else drawn from `policy` now."""


@dataclass
class Feed:
    """The rows of every route at the step that was reached."""

    items: dict[str, list[Item]]
    steps_per_generation: int = 0
    draw: Callable[[Segment, int], Sequence[RouteInput]] | None = None
    since: dict[str, int] = field(default_factory=dict)  # refreshed route -> the step its rows were drawn at
    reached: int = -1  # index of the last segment

    def reach(self, step: int, steps: int) -> None:
        """Have the rows of the segment this step of `steps` lies in."""
        if self.draw is None or step // self.steps_per_generation == self.reached:
            return
        self.reached = step // self.steps_per_generation
        first = self.reached * self.steps_per_generation
        segment = Segment(self.reached, first, min(first + self.steps_per_generation, steps), steps)
        routes = self.draw(segment, step)
        self.items |= {route.name: _some_items(route) for route in routes}
        self.since |= {route.name: first for route in routes}

    def sizes(self) -> dict[str, int]:
        return {name: len(items) for name, items in self.items.items()}

    def counts(self) -> dict[str, int]:
        """For the manifest: rows of stored routes, and how often the others were drawn."""
        stored = {f"rows/{name}": size for name, size in self.sizes().items() if name not in self.since}
        return stored if self.draw is None else stored | {"refreshes": self.reached + 1}


@contextmanager
def feed(workspace: Workspace, inputs: UpdateInputs, model: PolicyModel, refresh: Refresh | None) -> Iterator[Feed]:
    """The update's rows: those of stored routes at once, those of refreshed ones when a step is reached."""
    refreshed = () if refresh is None else refresh.routes
    stored = [route for route in inputs.routes if route.settings.share != 0 and route.name not in refreshed]
    items = {route.name: _some_items(route) for route in stored}
    if refresh is None or inputs.steps_per_generation is None:
        yield Feed(items)
        return
    tokenizer = load_tokenizer(inputs.tokenizer or inputs.start, inputs.chat_template)
    with LivePolicy(model, tokenizer, workspace.scratch / "policy", served=refresh.served) as live:

        def draw(segment: Segment, step: int) -> Sequence[RouteInput]:
            folder = workspace.path / SEGMENTS / f"{segment.index:05d}"
            assert step == segment.first or (folder / CONTENTS).exists(), "no policy of another step may draw it"
            workspace.say(f"refresh {segment.index + 1}, at step {segment.first} of {segment.steps}")
            policy = live.at(version_at(inputs, segment.first))
            model.eval()
            with without_autocast(model):
                routes = refresh.draw(folder, policy, segment)
            model.train()
            return routes

        yield Feed(items, inputs.steps_per_generation, draw)


def _some_items(route: RouteInput) -> list[Item]:
    items = load_items(route)
    if not items:
        raise UserError("no rows to learn from", where=f"routes.{route.name}", cure="Look at the counts of its labels")
    return items


def version_at(inputs: UpdateInputs, step: int) -> str:
    """Names the policy of an update at a step, as a checkpoint's key names the one at its end."""
    return content_hash([update_recipe(inputs).key, step], 20)
