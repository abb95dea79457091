"""What the starting policy's config says it cannot do: refused while a run is planned, before any weights are read."""

from loops.checks import engine_of, samples_policy
from sail.core.errors import UserError
from sail.core.run_settings import RunSettings
from sail.policy.loading import Checkpoint, is_adapter, is_encoder_decoder, model_config


def check_model(settings: RunSettings, model: Checkpoint) -> None:
    """Raise UserError where the starting policy cannot do what the settings ask for."""
    _check_quantised(settings, model)
    if not is_encoder_decoder(model):
        return
    for phase in settings.phases:
        if phase.steps_per_generation is not None:
            raise UserError(
                f"{settings.model_name_or_path!r} is an encoder-decoder, which is not refreshed within a round",
                where=f"{phase.name}: steps_per_generation", cure="Leave it out",
            )  # fmt: skip
        if engine_of(phase) == "vllm" and (samples_policy(phase) or phase.evaluation.num_prompts > 0):
            raise UserError(
                f"{settings.model_name_or_path!r} is an encoder-decoder, which vLLM does not serve",
                where=f"{phase.name}: generation.engine", cure="Set generation.engine: transformers",
            )  # fmt: skip


def _check_quantised(settings: RunSettings, model: Checkpoint) -> None:
    """Quantised weights take no gradient: without an adapter norms and embeddings alone would be trained."""
    if getattr(model_config(model), "quantization_config", None) is None:
        return
    adapted = settings.lora is not None or is_adapter(model)
    if not adapted and any(phase.routes for phase in settings.phases):
        raise UserError(
            f"{settings.model_name_or_path!r} is quantised: only what is left in floating point would be trained",
            where="lora", cure="Set lora: {r: 16}, or start from weights in floating point",
        )  # fmt: skip
    valued = next((phase.name for phase in settings.phases if phase.components.value is not None), None)
    if valued is not None:
        raise UserError(
            f"{settings.model_name_or_path!r} is quantised, and a value network trains all its weights",
            where=f"{valued}: components.value", cure="Start from weights in floating point",
        )  # fmt: skip
