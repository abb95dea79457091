"""FPO in the update: one step against an afternoon's autograd, the reference as a start, kills."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sail.core.artifacts import leaf
from sail.core.route_settings import ComponentSettings, LossSettings, SaeSettings
from sail.core.store import Store
from sail.objectives.features import feature_distances
from sail.policy.autoencoder import SaeSource, load_sae
from sail.policy.features import score_features
from sail.policy.loading import Checkpoint, load_policy
from sail.policy.scoring import score_logps
from sail.update.items import Item, Side, load_items
from sail.update.stage import UpdateInputs, update
from tests.policy.oracle import gradient, relative_error
from tests.policy.tiny_sae import hidden_states, train_sae
from tests.update.stored import World, tiny_leaf

BETA, ALPHA = 2.0, 40.0  # large, so that the constraint pulls as hard as the log-probs


class FpoWorld(World):
    """Offline FPO against a reference that is not the starting policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.reference = tiny_leaf(self.root / "reference", seed=2)
        rows = [side.row for item in load_items(self.offline(LossSettings(type="dpo"))) for side in item.sides]
        path = train_sae(load_policy(self.policy), rows, 1, width=96, path=self.root / "sae.safetensors")
        self.sae = SaeSource(leaf(path), layer=1, k=5)

    def fpo_inputs(self, reference: Checkpoint, **changes: object) -> UpdateInputs:
        loss = LossSettings(type="fpo", params={"beta": BETA, "alpha": ALPHA})
        route = self.offline(loss)
        (source,) = route.sources
        source = replace(
            source,
            reference_logps=score_logps(self.store, self.data, reference),
            reference_features=score_features(self.store, self.data, reference, self.sae),
        )
        components = ComponentSettings(sae=SaeSettings(path=str(self.sae.file.path), layer=1, k=5))
        inputs = self.inputs(replace(route, sources=(source,)), **changes)
        return replace(inputs, components=components, sae=self.sae)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> FpoWorld:
    return FpoWorld(tmp_path_factory.mktemp("world"))


def hand_written_loss(
    world: FpoWorld, item: Item, model: torch.nn.Module, reference: torch.nn.Module, alpha: float
) -> torch.Tensor:
    """One pair, both networks in the loop, the graph whole."""
    sae = load_sae(world.sae)

    def ratio_and_distance(side: Side) -> tuple[torch.Tensor, torch.Tensor]:
        row = side.row
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])

        def logp(net: torch.nn.Module) -> torch.Tensor:
            logits = net(input_ids=ids).logits[0, len(row.prompt_ids) - 1 : -1]
            return torch.log_softmax(logits, -1).gather(1, torch.tensor(row.response_ids)[:, None]).mean()

        features = [sae.encode(hidden_states(net, row, 1)).mean(0, keepdim=True) for net in (model, reference)]
        return logp(model) - logp(reference).detach(), feature_distances(features[0], features[1].detach(), 5)[0]

    (ratio_a, moved_a), (ratio_b, moved_b) = map(ratio_and_distance, item.sides)
    assert item.p_a in (0.0, 1.0)
    if item.p_a == 0.0:
        (ratio_a, moved_a), (ratio_b, moved_b) = (ratio_b, moved_b), (ratio_a, moved_a)
    return -torch.nn.functional.logsigmoid(BETA * (ratio_a - ratio_b - alpha * (moved_b - moved_a.detach())))


def hand_written_gradient(world: FpoWorld, items: list[Item], alpha: float) -> dict[str, torch.Tensor]:
    model, reference = load_policy(world.policy).train(), load_policy(world.reference)
    for item in items:
        (hand_written_loss(world, item, model, reference, alpha) / len(items)).backward()
    return gradient(model)


def test_one_step_moves_the_weights_as_autograd_says(world: FpoWorld) -> None:
    """Plain gradient descent, so the weights tell the gradient."""
    rate = 1e-2
    inputs = world.fpo_inputs(
        world.reference, steps=1, train_batch_size=12, optimizer="sgd", learning_rate=rate, warmup_ratio=0.0,
        lr_scheduler_type="constant", max_grad_norm=0.0,
    )  # fmt: skip
    trained = load_file(update(world.store, inputs).path / "model" / "model.safetensors")
    before = load_file(world.policy.path / "model.safetensors")
    found = {name: (before[name] - trained[name]).double() / rate for name in before}
    expected = hand_written_gradient(world, load_items(inputs.routes[0]), ALPHA)
    assert relative_error(found, expected) < 1e-3
    without = hand_written_gradient(world, load_items(inputs.routes[0]), alpha=0.0)
    assert relative_error(without, expected) > 0.1, "the constraint pulls, so agreement says something"


def test_at_the_reference_no_feature_has_moved(world: FpoWorld) -> None:
    """The first loss is log 2 whatever alpha; later ones are not those of alpha 0."""
    made = update(world.store, world.fpo_inputs(world.policy, steps=3))
    losses = [json.loads(line)["loss"] for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    free = world.fpo_inputs(world.policy, steps=3)
    (route,) = free.routes
    free = replace(free, routes=(replace(route, loss=LossSettings(type="fpo", params={"beta": BETA, "alpha": 0.0})),))
    without = update(world.store, free)
    last = json.loads((without.path / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert abs(last - losses[-1]) > 1e-4


def test_an_update_killed_between_steps_ends_byte_identical_and_another_k_is_another_checkpoint(
    world: FpoWorld, tmp_path: Path
) -> None:
    inputs = world.fpo_inputs(world.reference)
    whole = update(world.store, inputs)
    told = 0

    def stop(event: object) -> None:
        nonlocal told
        told += "loss" in getattr(event, "text", "")
        if told > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(Store(tmp_path, stop), inputs)
    notes: list[str] = []
    resumed = update(Store(tmp_path, lambda event: notes.append(event.text)), inputs)
    assert "resuming at step 2" in notes and resumed.manifest() == whole.manifest()
    assert str(world.sae.file.path) not in json.dumps(whole.manifest()), "it enters by content"
    other = update(world.store, replace(inputs, sae=replace(world.sae, k=6)))
    assert other.key != whole.key
