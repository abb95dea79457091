"""Whole models on this device: log-probs and gradients against float64, row by row; losses against the CPU."""

import copy
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sail.objectives import LOSSES, Responses
from sail.policy.compiling import compile_blocks
from sail.policy.loading import own_attention
from sail.policy.logprobs import full_logits_logps, sequence_logps
from sail.policy.rows import Row
from scripts.gpu.findings import Surroundings, at_most, figure, missing, relative_error, surroundings

FP32_LIMIT, LOSS_LIMIT = 1e-5, 1e-12
WORSE = 1.1  # times the error of padded rows with full logits under the same autocast
KINDS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {"tie_word_embeddings": True}, "granite": {"logits_scaling": 3.0},
    "gemma2": {"final_logit_softcapping": 10.0, "sliding_window": 64},
}  # fmt: skip


def make_model(here: Surroundings, kind: str) -> Any:
    torch.manual_seed(3)
    heads, dim = (8, 64) if here.on_gpu else (4, 8)
    sizes = {
        "vocab_size": 32_003 if here.on_gpu else 2500, "hidden_size": heads * dim, "num_hidden_layers": 3,
        "intermediate_size": 2 * heads * dim, "num_attention_heads": heads, "num_key_value_heads": 2, "head_dim": dim,
        "max_position_embeddings": 2048, "initializer_range": 0.05, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=own_attention(config))
    return model.to(here.device).train()


def make_rows(here: Surroundings, vocab: int) -> list[Row]:
    """Prompts with one to four responses, ragged."""
    draw, longest = random.Random(0), 150 if here.on_gpu else 12

    def tokens() -> tuple[int, ...]:
        return tuple(draw.randrange(3, vocab) for _ in range(draw.randint(1, longest)))

    prompts = [(tokens(), count) for count in (1, 2, 2, 4)]
    return [Row(prompt, tokens()) for prompt, count in prompts for _ in range(count)]


def one_by_one(model: Any, rows: Sequence[Row]) -> Tensor:
    """[R]: a plain forward of every row alone."""
    sums = []
    for prompt, response in rows:
        ids = torch.tensor([[*prompt, *response]], device=model.device)
        logps = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1], -1)
        sums.append(logps.gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(sums)


def padded(model: Any, rows: Sequence[Row]) -> Tensor:
    tokens = full_logits_logps(model, rows)
    return torch.zeros(len(rows), dtype=torch.float64, device=model.device).index_add(
        0, tokens.row_index, tokens.logps.double()
    )


def results(model: Any, rows: Sequence[Row], how: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Sequence log-probs, and the whole gradient of a weighted sum of them as one vector."""
    model.zero_grad()
    logps = how(model, rows)
    signs = torch.tensor([(-1) ** index * (0.5 + 0.1 * index) for index in range(len(rows))], device=logps.device)
    (signs.double() @ logps.double()).backward()
    grads = [weight.grad.double().flatten() for weight in model.parameters() if weight.grad is not None]
    return logps.detach().double(), torch.cat(grads)


def exact_results(model: Any, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    return results(copy.deepcopy(model).double(), rows, one_by_one)


def check_half(here: Surroundings, label: str, model: Any) -> None:
    """bfloat16 autocast is no worse than padded full logits."""
    rows = make_rows(here, model.config.vocab_size)
    exact = exact_results(model, rows)
    with torch.autocast(here.device.type, torch.bfloat16):
        own, plain = (results(model, rows, how) for how in (sequence_logps, padded))
    for name, found, other, true in zip(("log-probs", "gradient"), own, plain, exact, strict=True):
        error, base = relative_error(found, true), relative_error(other, true)
        limit = 2.0 if name == "log-probs" else WORSE  # a handful of sums, whose roundings may cancel by luck
        note = f"error over that of padded full logits ({error:.1e})"
        at_most(f"{label}, bfloat16, {name}", error / base, limit, note)


def check_single(here: Surroundings, label: str, model: Any) -> None:
    """float32 within a limit."""
    rows = make_rows(here, model.config.vocab_size)
    own = results(model, rows, sequence_logps)
    for name, found, true in zip(("log-probs", "gradient"), own, exact_results(model, rows), strict=True):
        at_most(f"{label}, float32, {name}", relative_error(found, true), FP32_LIMIT, "relative error")


def check_losses(here: Surroundings) -> None:
    """Every pair loss and its gradient on this device against the CPU, float64."""
    generator = torch.Generator().manual_seed(0)
    drawn = -20 * torch.rand(4, 64, generator=generator, dtype=torch.float64) - 0.5
    lengths = torch.randint(1, 40, (2, 64), generator=generator).double()
    worst = 0.0
    rows = {name: row for name, row in LOSSES.items() if row.unit == "pair" and "features" not in row.needs}
    for row in rows.values():
        found = []
        for device in (torch.device("cpu"), here.device):
            logps = drawn[:2].to(device).requires_grad_()
            refs, counts = drawn[2:].to(device), lengths.to(device)
            losses = row.function(*(Responses(logps[i], refs[i], counts[i]) for i in range(2)), **row.params)
            found.append(torch.cat([losses.detach(), torch.autograd.grad(losses.sum(), logps)[0].flatten()]).cpu())
        worst = max(worst, relative_error(found[1], found[0]))
    at_most(f"{len(rows)} pair losses and gradients, this device against the CPU", worst, LOSS_LIMIT, "relative error")


def models(here: Surroundings) -> dict[str, Callable[[], Any]]:
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)

    def checkpointed() -> Any:
        model = make_model(here, "llama")
        model.gradient_checkpointing_enable()
        return model

    return {kind: partial(make_model, here, kind) for kind in KINDS} | {
        "llama with LoRA, head frozen": lambda: get_peft_model(make_model(here, "llama"), lora),
        "llama, gradient checkpointing": checkpointed,
    }


def main(here: Surroundings) -> None:
    """What needs no compilation first."""
    check_losses(here)
    for label, build in models(here).items():
        check_half(here, label, build())
    for label, build in models(here).items():
        check_single(here, label, build())
    if here.on_gpu:
        compiled = make_model(here, "llama")
        figure("compiled blocks", compile_blocks(compiled))
        check_half(here, "llama, compiled blocks", compiled)
    else:
        missing("llama, compiled blocks", "the compilation takes longer than a dry run")


if __name__ == "__main__":
    main(surroundings())
