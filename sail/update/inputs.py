"""What a round's update is made from, and the key it gives the checkpoint."""

from dataclasses import dataclass, field
from typing import Any

from sail.core.artifacts import Artifact, Keyed, Leaf
from sail.core.route_settings import ComponentSettings
from sail.core.run_settings import ImportanceSettings, LoraSettings, UpdateSettings
from sail.core.store import Recipe
from sail.policy.autoencoder import SaeSource
from sail.policy.loading import Checkpoint
from sail.update.items import RouteInput

VERSION = 4


@dataclass(frozen=True)
class UpdateInputs:
    """Everything a round's update is made from."""

    start: Checkpoint
    routes: tuple[RouteInput, ...]
    settings: UpdateSettings
    importance: ImportanceSettings
    seed: int
    round_index: int
    steps_per_generation: int | None = None
    lora: LoraSettings | None = None
    carry_from: Artifact | None = None  # the checkpoint whose optimizer goes on
    keep_optimizer: bool = False  # a later round will carry it
    chat_template: Leaf | None = None
    components: ComponentSettings = field(default_factory=ComponentSettings)
    sae: SaeSource | None = None  # what components.sae names
    tokenizer: Checkpoint | None = None  # whose tokenizer is saved; default: start's


def update_recipe(inputs: UpdateInputs) -> Recipe:
    """Every input and every setting that can change the checkpoint.

    With steps_per_generation rows of refreshed routes are not there yet: their keys say what they will be made from.
    """
    sources: dict[str, Keyed] = {"start": inputs.start}
    routes: dict[str, Any] = {}
    for route in inputs.routes:
        routes[route.name] = {
            "settings": route.settings.recipe(), "loss": route.loss.recipe(),
            "temperature": route.sampling_temperature, "sources": len(route.sources),
        }  # fmt: skip
        for index, source in enumerate(route.sources):
            parts = {
                "responses": source.responses, "rows": source.rows, "reference": source.reference_logps,
                "behavior": source.behavior_logps, "mismatched": source.mismatched_logps,
                "features": source.reference_features, "rollouts": source.rollouts,
            }  # fmt: skip
            sources |= {f"{route.name}/{index}/{part}": art for part, art in parts.items() if art is not None}
    if inputs.carry_from is not None:
        sources["carry_from"] = inputs.carry_from
    if inputs.chat_template is not None:
        sources["chat_template"] = inputs.chat_template
    if inputs.tokenizer is not None:
        sources["tokenizer"] = inputs.tokenizer
    components = inputs.components.recipe()
    del components["sae"]  # enters by content
    if inputs.sae is not None:
        sources["sae"] = inputs.sae.file
        components["sae"] = {"layer": inputs.sae.layer, "k": inputs.sae.k}
    settings = {
        "update": inputs.settings.recipe(), "importance": inputs.importance.recipe(), "routes": routes,
        "seed": inputs.seed, "round": inputs.round_index, "keep_optimizer": inputs.keep_optimizer,
        "lora": None if inputs.lora is None else inputs.lora.recipe(), "components": components,
    }  # fmt: skip
    if inputs.steps_per_generation is not None:
        settings["steps_per_generation"] = inputs.steps_per_generation
    return Recipe("checkpoint", VERSION, settings, sources)
