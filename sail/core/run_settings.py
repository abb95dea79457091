"""The settings of a run: one section per stage, defaults are vetted settings (their source beside them)."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sail.core.labeler_settings import (
    EnsembleLabeler,
    HumanLabeler,
    JudgeLabeler,
    NoiseLabeler,
    ReplayLabeler,
    RewardFitSettings,
    RuleLabeler,
)
from sail.core.route_settings import (
    ComponentSettings,
    HygieneSettings,
    LossSettings,
    PromptSettings,
    RouteSettings,
)
from sail.core.settings import Settings, execution, meaning

Stream = Literal["prompts", "reward", "samples", "labels", "update", "evaluation", "bootstrap"]


class DataSettings(Settings):
    """A named source of prompts, demonstrations or preference pairs."""

    path: str = meaning(doc="Hub id, file (jsonl, json, parquet, csv, .gz) or folder of such files")
    name: str | None = meaning(None, "configuration of a Hub dataset")
    split: str | None = meaning(None, "split, or split[:n]")
    limit: int | None = meaning(None, "use the first n rows", gt=0)
    offset: int = meaning(0, "skip the first n rows", ge=0)
    format: Literal["auto", "columns", "hh"] = meaning("auto", "hh: whole transcripts with Human: / Assistant: turns")
    columns: dict[str, str] = meaning({}, "rename: {prompt: question, chosen: response_a}")
    overlong: Literal["error", "drop"] = meaning("error", "what to do with a row longer than the context")


class LinearAlignmentSettings(Settings):
    """Sampling steered by a principle, without training (Gao et al. 2024, arXiv 2401.11458)."""

    principle: str = meaning(doc="text of a system turn, such as 'Answer kindly.'", min_length=1)
    rho: float = meaning(3.0, "logits (1 + rho) with the principle - rho without; 0: the principle alone", ge=0)
    top_p: float = meaning(0.8, "tokens that may be drawn: the principled policy's likeliest", gt=0, le=1)


class GenerationSettings(Settings):
    engine: str = meaning("vllm", "a row of `sail methods`")
    temperature: float = meaning(1.0, "1: the policy itself, which the score term needs", gt=0)
    top_p: float = meaning(1.0, "1: off", gt=0, le=1)
    top_k: int = meaning(0, "0: off", ge=0)
    min_p: float = meaning(0.0, "0: off", ge=0, lt=1)
    min_tokens: int = meaning(0, "tokens before which nothing ends a response; 0: off", ge=0)
    max_completion_length: int = meaning(256, "tokens", gt=0)
    overlong: Literal["drop", "error"] = meaning(
        "drop", "prompts whose longest response would pass the model's context; dropped ones are counted"
    )
    stop: tuple[str, ...] = meaning((), "stop strings")
    stop_token_ids: tuple[int, ...] = meaning((), "stop tokens beside the model's own EOS ids")
    linear_alignment: LinearAlignmentSettings | None = meaning(None, "transformers engine only; no training with c > 0")
    shard_size: int = execution(64, "prompts per committed shard", gt=0)
    batch_size: int = execution(128, "samples per forward pass of the transformers engine", gt=0)


class VllmSettings(Settings):
    """The server; every key of `args` is one of vLLM's own options."""

    mode: Literal["server", "colocate", "external"] = execution(
        "server", "processes of our own; one process with the engine in it, on the trainer's GPU; servers elsewhere"
    )
    server_urls: tuple[str, ...] = execution((), "mode external: where the servers listen, `sail serve` on each node")
    dtype: str = meaning("auto", "float32 on CPU, bfloat16 on GPU")
    host: str = execution("127.0.0.1", "where a server listens; it has no login, keep others than us out")
    port: int = execution(0, "0: a free one", ge=0, le=65535)
    kv_cache_gib: float = execution(1.0, "CPU only", gt=0)
    max_num_seqs: int = execution(256, "sequences the server runs together", gt=0)
    max_model_len: int | None = execution(None, "default: the model's context", gt=0)
    gpus: tuple[int, ...] = execution((), "CUDA devices of the server, counted among those visible; default: all")
    cores: str | None = execution(
        None, "CPU only: its cores, '0-7', or '0-3|4-7' for two ranks; default: all", pattern=r"^\d+([-,|]\d+)*$"
    )
    start_timeout_s: float = execution(600.0, "until the server has answered a first completion", gt=0)
    request_timeout_s: float = execution(300.0, "of one request with all its samples", gt=0)
    max_retries: int = execution(4, "of one seeded request", ge=0)
    max_restarts: int = execution(2, "of our own server when it is lost while it samples", ge=0)
    concurrency: int = execution(64, "requests in flight on each server", gt=0)
    during_update: Literal["keep", "sleep", "stop"] | None = execution(
        None, "our server while the policy trains; default: sleep where both share a GPU, else keep"
    )
    lora: Literal["load", "merge"] = meaning("load", "adapters: loaded into the server, or merged into a copy first")
    weight_transfer: Literal["ipc", "nccl"] | None = execution(
        None, "whole models from GPU to GPU: ipc on the trainer's, nccl to vllm.gpus; not run yet. Default: from disk"
    )
    verify_tolerance: float | None = execution(None, "nats; default 1e-3 in float32, 0.5 in bfloat16", gt=0)
    args: dict[str, Any] = meaning({}, "passed through: {tensor-parallel-size: 2}; they may change samples")

    @field_validator("cores", mode="before")
    @classmethod
    def _one_core_is_a_number(cls, given: Any) -> Any:
        return str(given) if type(given) is int else given

    @model_validator(mode="after")
    def _where_the_gpus_are(self) -> "VllmSettings":
        if self.mode == "colocate" and self.gpus:
            raise ValueError("mode colocate is on the trainer's GPU: leave out gpus, or use mode server")
        if self.mode == "colocate" and self.cores is not None:
            raise ValueError("vLLM binds no cores for an engine of mode colocate: leave out cores, or use mode server")
        if self.weight_transfer is not None and self.mode == "external":
            raise ValueError("weights are handed over to a server of our own alone: leave out weight_transfer")
        if self.weight_transfer is not None and (self.weight_transfer == "nccl") != bool(self.gpus):
            raise ValueError("weight_transfer: nccl needs gpus of the server's own, ipc none (the trainer's)")
        return self


class RewardModelLabeler(Settings):
    """A sequence classifier with one output, given or fitted here, in process or behind vLLM (docs/labeling.md)."""

    kind: Literal["reward_model"] = meaning("reward_model")
    path: str | None = meaning(None, "sequence-classification model, with its own tokenizer and template")
    fit: RewardFitSettings | None = meaning(None, "or fit one here")
    batch_size: int = execution(32, "conversations of one forward pass, in process", gt=0)
    vllm: VllmSettings | None = meaning(
        None, "score through a vLLM server of its own, with the settings of section vllm; default: in process"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "RewardModelLabeler":
        if (self.path is None) == (self.fit is None):
            raise ValueError("a reward_model needs exactly one of path (an existing model) and fit (train one)")
        if self.vllm is not None and self.vllm.lora != "load":
            raise ValueError("vllm.lora is for policies: a reward model has whole weights")
        if self.vllm is not None and self.vllm.mode == "external" and not self.vllm.server_urls:
            raise ValueError("vllm.mode external has no server: list its URL in vllm.server_urls")
        return self


class CallableLabeler(Settings):
    kind: Literal["callable"] = meaning("callable")
    path: str = meaning(doc="module:function, f(examples) -> list of floats")


LabelerSettings = Annotated[
    RewardModelLabeler | CallableLabeler | JudgeLabeler | EnsembleLabeler | RuleLabeler | HumanLabeler | ReplayLabeler
    | NoiseLabeler,
    Field(discriminator="kind"),
]  # fmt: skip


class LaunchSettings(Settings):
    """Several processes for updates and log-probs (docs/launch.md); default: the driver's own."""

    accelerate_config: str | None = execution(None, "ddp, fsdp2, zero2, zero3, or the path of a config; default: ddp")
    num_processes: int | None = execution(None, "default: as many as gpus, else as the file says, else all GPUs", gt=0)
    gpus: tuple[int, ...] = execution((), "CUDA devices of these, counted among those visible; default: all")
    command: str | None = execution(None, "instead: 'srun ... accelerate launch ...', which is given the worker to run")

    @model_validator(mode="after")
    def _one_way_to_launch(self) -> "LaunchSettings":
        if self.command is not None and (self.accelerate_config is not None or self.gpus):
            raise ValueError("a command says itself which accelerate config and which gpus: give it, or those")
        if self.gpus and (self.num_processes or len(self.gpus)) != len(self.gpus):
            raise ValueError("each process has a gpu of its own: give as many gpus as num_processes")
        return self


class RoundSettings(Settings):
    init_from: Literal["previous", "base"] = meaning("previous", "where a round's update starts")
    reference: str = meaning("base", "'base' (the phase's start), 'previous', or the name of an earlier phase")
    data: Literal["all", "new"] = meaning("new", "policy samples of all rounds so far, or this round's")
    optimizer: Literal["carry", "restart"] = meaning("restart", "state and schedule across rounds")
    staleness: Literal[0, 1] = meaning(
        0, "1: a round learns from samples of the policy one round before, drawn while that round trains"
    )


class LoraSettings(Settings):
    """Hu et al. 2106.09685, through peft."""

    r: int = meaning(16, "rank", gt=0)
    alpha: int = meaning(32, "the update is scaled by alpha / r", gt=0)
    dropout: float = meaning(0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | Literal["all-linear"] = meaning("all-linear", "names of layers")


class UpdateSettings(Settings):
    """One round's update. AdamW (.9, .95), cosine, warm-up .1, clip 1: the DPO family's common recipe."""

    steps: int | None = meaning(None, "optimizer steps a round; default: from epochs", gt=0)
    epochs: float = meaning(1.0, "passes over the slowest route; set steps where routes differ in size", gt=0)
    train_batch_size: int = meaning(128, "rows per optimizer step, over all processes", gt=0)
    learning_rate: float = meaning(5e-7, "at the end of the warm-up; with LoRA give about ten times as much", gt=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "rmsprop", "sgd"] = meaning(
        "adamw", "8 bits a moment through bitsandbytes; paged: moments move to the host where the GPU is full"
    )
    adam_beta1: float = meaning(0.9, ge=0, lt=1)
    adam_beta2: float = meaning(0.95, ge=0, lt=1)
    adam_epsilon: float = meaning(1e-8, gt=0)
    weight_decay: float = meaning(0.0, ge=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = meaning("cosine", "after the warm-up")
    warmup_ratio: float = meaning(0.1, "share of the schedule's horizon", ge=0, le=1)
    horizon: int | None = meaning(None, "steps of the schedule; default: the round's", gt=0)
    max_grad_norm: float = meaning(1.0, "0: no clipping", ge=0)
    baseline: Literal["running_mean", "none"] = meaning("running_mean", "b of the label table")
    bf16: bool = meaning(False, "autocast over fp32 master weights")
    max_tokens_per_microbatch: int = execution(
        16384, "tokens of one forward pass: a prompt once for all its responses, or padded rows", gt=0
    )
    gradient_checkpointing: bool = execution(False, "less activation memory, a third more time")
    compile: bool = execution(False, "torch.compile of the decoder blocks; the first step takes its time")
    save_steps: int = execution(100, "steps between step checkpoints", gt=0)
    entropy_every: int = execution(
        10, "steps between measurements of entropy and top-1 accuracy, a pass of the head more; 0: none", ge=0
    )


class ImportanceSettings(Settings):
    """Weights pi_theta / behaviour for samples that went stale within or across rounds."""

    mode: Literal["none", "truncate", "sequence_mask"] = meaning("none", "min(r, cap), or r where r <= cap else 0")
    cap: float = meaning(2.0, "of the ratio r; fresh samples have 1", ge=1)
    apply_to: Literal["all", "score"] = meaning("all", "'all' is exact, 'score' leaves an error")


class EvaluationSettings(Settings):
    prompts: str | None = meaning(None, "data source; default: held-out prompts of the training prompts")
    num_prompts: int = meaning(128, "0: no evaluation", ge=0)
    num_generations: int = meaning(2, "samples per prompt; 2 allow on-policy accuracy", ge=1)
    scorers: tuple[str, ...] = meaning((), "labelers that score the samples; the first is the headline")
    pairs: str | None = meaning(None, "data source of held-out pairs, for off-policy implicit accuracy")
    temperature: float = meaning(1.0, gt=0)
    every: int = meaning(1, "rounds between evaluations", gt=0)
    stop_on_alarm: bool = execution(False, "end the run where a proxy rises and what it stands for falls")


class PhaseSettings(Settings):
    """One loop: num_rounds of generation, labels, update; num_rounds 0 is a single offline update."""

    name: str = execution("main", "names the phase in reports and references")
    preset: str | None = execution(None, "the method this phase started from")
    num_rounds: int = execution(0, "0: offline", ge=0)
    seed: int | None = meaning(None, "of this phase alone; default: the run's", ge=0)
    prompts: PromptSettings | None = meaning(None)
    routes: dict[str, RouteSettings] = meaning(doc="named streams of rows; none: the phase only evaluates")
    loss: LossSettings = meaning(doc="the loss of every route that has none of its own")
    steps_per_generation: int | None = meaning(
        None, "optimizer steps between two refreshes of the sampler; default: the whole round", gt=0
    )
    round: RoundSettings = meaning(RoundSettings())
    update: UpdateSettings = meaning(UpdateSettings())
    generation: GenerationSettings = meaning(GenerationSettings())
    importance_sampling: ImportanceSettings = meaning(ImportanceSettings())
    hygiene: HygieneSettings = meaning(HygieneSettings())
    components: ComponentSettings = meaning(ComponentSettings())
    evaluation: EvaluationSettings = meaning(EvaluationSettings())


class RunSettings(Settings):
    """Everything a run is made of."""

    model_name_or_path: str = meaning(doc="the starting policy: a folder or a Hub id")
    revision: str | None = meaning(None, "branch, tag or commit of a Hub model")
    seed: int = meaning(0, "every random stream is a hash of it and of the stream's name", ge=0)
    seeds: dict[Stream, Annotated[int, Field(ge=0)]] = meaning({}, "streams with a seed of their own: {reward: 0}")
    max_length: int | None = meaning(None, "tokens of prompt and response; default: the model's context", gt=0)
    chat_template_kwargs: dict[str, Any] = meaning({}, "passed to the chat template: {enable_thinking: false}")
    chat_template: str | None = meaning(None, "file with a Jinja template, instead of the tokenizer's own")
    lora: LoraSettings | None = meaning(None)
    data: dict[str, DataSettings] = meaning(doc="named sources")
    labelers: dict[str, LabelerSettings] = meaning({}, "named labelers")
    vllm: VllmSettings = meaning(VllmSettings())
    launch: LaunchSettings = execution(LaunchSettings())
    phases: tuple[PhaseSettings, ...] = meaning(doc="each starts from the last checkpoint of the one before")
    cpu_threads: int | None = execution(None, "of the trainer; tiny models are fastest on one", gt=0)
    log_interval_s: float = execution(10.0, "a progress line every so often where there is no terminal", gt=0)

    @field_validator("phases")
    @classmethod
    def _some_phase(cls, phases: tuple[PhaseSettings, ...]) -> tuple[PhaseSettings, ...]:
        if not phases:
            raise ValueError("a run needs at least one phase")
        names = [phase.name for phase in phases]
        if len(set(names)) != len(names):
            raise ValueError(f"phase names must differ: {names}")
        return phases
