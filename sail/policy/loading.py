"""Models from folders and the Hub, and back: full weights or a LoRA adapter, with tokenizer and chat template."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.errors import UserError
from sail.core.run_settings import LoraSettings
from sail.policy.devices import compute_device
from sail.policy.encoder_decoder import PLAIN_TURNS
from sail.policy.host_memory import keep_freed_memory
from sail.policy.memory import room_for_a_model

if TYPE_CHECKING:
    from peft import PeftModel

PolicyModel: TypeAlias = "PreTrainedModel | PeftModel"


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is in memory, under a version: the policy while it trains, or one that is asked again and again."""

    key: str
    path: Path  # from_pretrained finds its configuration and tokenizer here
    load: Callable[[], Any] = field(compare=False, repr=False)  # gives the PolicyModel itself, never a copy


Checkpoint: TypeAlias = Artifact | Leaf | Resident
"""A policy, reward or reference model: a stage's artifact, the user's own folder, or a model in memory."""

_MODEL_FOLDER = "model"
_ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = (".safetensors", ".bin")


def model_folder(checkpoint: Checkpoint) -> Path:
    """Where from_pretrained finds the checkpoint."""
    return model_folder_in(checkpoint.path) if isinstance(checkpoint, Artifact) else checkpoint.path


def model_folder_in(artifact_folder: Path) -> Path:
    """Where an artifact keeps its model."""
    return artifact_folder / _MODEL_FOLDER


def resolve_model(
    name_or_path: str, revision: str | None = None, where: str = "model_name_or_path", *, download: bool = True
) -> Leaf:
    """A local folder by content, a Hub model by its commit, of which only the config is here without `download`."""
    path = Path(name_or_path).expanduser()
    if path.exists():
        if not (path / "config.json").exists():
            raise UserError(
                f"{name_or_path!r} holds no config.json", where=where, cure="Give a Hugging Face model folder"
            )
        return leaf(path.resolve(), where)
    return _from_hub(name_or_path, revision, where, download)


def _from_hub(name: str, revision: str | None, where: str, download: bool) -> Leaf:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"no such folder: {name!r}", where=where, cure="Check the path, or give a Hub id such as org/model"
        )
    try:
        if download:
            snapshot = Path(snapshot_download(name, revision=revision))
        else:
            snapshot = Path(hf_hub_download(name, "config.json", revision=revision)).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name!r} is no folder here and could not be had from the Hub ({type(error).__name__})",
            where=where, cure="Check the name, the network and your Hub token, or give a local folder",
        ) from error  # fmt: skip
    if download and not any(file.suffix in _WEIGHTS for file in snapshot.iterdir()):
        raise UserError(
            f"{name!r} is here without weights: no .safetensors or .bin file in {snapshot}", where=where,
            cure="If only a plan has fetched its config so far, run once with the network; or give a local folder",
        )  # fmt: skip
    return Leaf(snapshot, snapshot.name)  # the snapshot's folder is named by its commit


def load_tokenizer(checkpoint: Checkpoint, chat_template: Leaf | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy, with a chat template (its own, or the user's file) or a clear refusal.

    An encoder-decoder without a template gets the plain turns: few of them were trained on a chat format.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder(checkpoint))
    if chat_template is not None:
        tokenizer.chat_template = chat_template.path.read_text()
    if tokenizer.chat_template is None and is_encoder_decoder(checkpoint):
        tokenizer.chat_template = PLAIN_TURNS
    if tokenizer.chat_template is None:
        raise UserError(
            f"the tokenizer in {model_folder(checkpoint)} has no chat template", where="model_name_or_path",
            cure="Set chat_template: to a file with a Jinja template",
        )  # fmt: skip
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(checkpoint: Checkpoint, *, trainable: bool = False) -> PolicyModel:
    """The language model of a checkpoint, causal or encoder-decoder, fp32 (master) weights, in eval mode.

    An adapter checkpoint is its base model with the adapter on top, never a merge. A resident one is handed out as it
    is.
    """
    if isinstance(checkpoint, Resident):
        return checkpoint.load()  # type: ignore[no-any-return]
    if compute_device().type == "cpu":
        keep_freed_memory()
    folder = model_folder(checkpoint)
    if not (folder / _ADAPTER_CONFIG).exists():
        return _load_full(folder)
    from peft import PeftModel

    base = base_folder(checkpoint)
    model = PeftModel.from_pretrained(_load_full(base), str(folder), is_trainable=trainable).eval()
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base)  # what is saved from it names where the base is now
    return model


def base_folder(checkpoint: Checkpoint) -> Path:
    """The folder of the full weights: the checkpoint's own, or those its adapter stands on.

    A run's adapter is told where its base is: the path that peft wrote into it may be gone, or another model's by now.
    """
    if isinstance(checkpoint, Artifact) and checkpoint.base is not None:
        return checkpoint.base.path
    folder = model_folder(checkpoint)
    if not is_adapter(checkpoint):
        return folder
    from peft import PeftConfig

    return Path(str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path))


def base_below(start: Checkpoint) -> Leaf | None:
    """The full weights below an adapter that is trained from `start`: its own, or those its adapter stands on."""
    if isinstance(start, Artifact) and start.base is not None:
        return start.base
    return None if is_adapter(start) else Leaf(model_folder(start), start.key)


def _load_full(folder: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with quiet_loading(), room_for_a_model(torch.device("cpu")):
        model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation=own_attention(config))
        return without_dropout(model).eval()


def own_attention(config: PretrainedConfig) -> str | None:
    """The attention that computes what the model's own does; None: whatever transformers takes.

    It takes sdpa, which drops the soft cap of Gemma 2 (cap * tanh(scores / cap)) without a word.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if capped else None


def weights_by_config(folder: Path) -> int:
    """How many weights a language model has, from its config alone; nothing is allocated."""
    config = AutoConfig.from_pretrained(folder)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return int(auto.from_config(config).num_parameters())


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """No dropout of its own (T5's is 0.1) in training: log pi of a loss is then that of the sampled distribution.

    The saved configuration keeps what it said; the dropout of an adapter is a setting and comes later.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
            setattr(module, name, 0.0)
    return model


def add_adapter(model: PreTrainedModel, lora: LoraSettings, seed: int) -> PolicyModel:
    """Wrap a full model in a fresh LoRA adapter, which starts as the identity."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    targets: Any = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    task: Any = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type=task
    )
    return get_peft_model(model, config)


def is_adapter(checkpoint: Checkpoint) -> bool:
    return (model_folder(checkpoint) / _ADAPTER_CONFIG).exists()


def save_policy(
    model: PolicyModel,
    tokenizer: PreTrainedTokenizerBase,
    artifact_folder: Path,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the folder that from_pretrained, vLLM and the next round load; `state` replaces the model's own tensors."""
    for config in getattr(model, "peft_config", {}).values():
        if isinstance(config.target_modules, set):  # its order depends on the hash seed, and would reach the file
            config.target_modules = sorted(config.target_modules)
    folder = model_folder_in(artifact_folder)
    with quiet_loading():
        model.save_pretrained(str(folder), state_dict=state)
    tokenizer.save_pretrained(folder)


def export_merged(checkpoint: Checkpoint, folder: Path) -> Path:
    """A full-weight copy of an adapter checkpoint, for a sampler that takes no adapters."""
    model = load_policy(checkpoint)
    model.merge_and_unload().save_pretrained(folder)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(model_folder(checkpoint)).save_pretrained(folder)
    return folder


def context_length(checkpoint: Checkpoint) -> int:
    """Tokens of prompt and response together that the model can take; a T5's positions are relative: any number."""
    config = model_config(checkpoint)
    if hasattr(config, "relative_attention_num_buckets"):  # its n_positions says how it was trained
        return 1 << 20
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 1 << 20)


def is_encoder_decoder(checkpoint: Checkpoint) -> bool:
    """Whether the policy reads its prompt in an encoder, as T5 does."""
    return bool(model_config(checkpoint).is_encoder_decoder)


def model_config(checkpoint: Checkpoint) -> Any:
    """The model's configuration; of an adapter, its base model's."""
    return AutoConfig.from_pretrained(base_folder(checkpoint))


def eos_ids(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every id that ends a response: the tokenizer's EOS and those of the generation config, which an adapter has from
    its base model."""
    ids = {tokenizer.eos_token_id} - {None}
    for folder in {model_folder(checkpoint), base_folder(checkpoint)}:
        config_file = folder / "generation_config.json"
        if config_file.exists():
            listed = json.loads(config_file.read_text()).get("eos_token_id")
            ids |= set(listed) if isinstance(listed, list) else {listed} - {None}
    return tuple(sorted(ids))


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No weight-loading bars: a round loads several small models."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
            logging.enable_progress_bar()


@contextmanager
def another_head() -> Iterator[None]:
    """Without transformers' report of heads that are missing or left over: another one is meant to be trained."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
