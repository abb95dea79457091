"""Tiny random policies on disk, their trainer-side log-probs, and one vLLM server for all tests of a session.

Plain functions: a conftest.py turns them into session fixtures. Which policy the server serves is up to each
test: `serve(policy_server, policy)` syncs it in, so tests share one server and depend on no order.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from sail.core.run_settings import VllmSettings
from sail.serving.client import ServerClient
from sail.serving.policy_server import PolicyServer
from sail.serving.served_policy import Score, ServedPolicy

VOCAB_SIZE, CONTEXT = 320, 512
EOS_ID = 2
LORA_RANK = 4
CORES = sorted(os.sched_getaffinity(0))  # a second server gets the last: two that share cores wait for each other
SETTINGS = VllmSettings(
    kv_cache_gib=0.25, max_num_seqs=64, concurrency=16, request_timeout_s=60.0, start_timeout_s=400.0, cores=CORES[0]
)


@dataclass(frozen=True)
class TinyPolicy:
    """A model directory and the same model in transformers."""

    path: Path
    model: torch.nn.Module

    @property
    def version(self) -> str:
        return self.path.name

    def logits(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> torch.Tensor:
        """[T, V] float32: what each response token was drawn from."""
        with torch.no_grad():
            logits_1SV = self.model(input_ids=torch.tensor([[*prompt_ids, *response_ids]])).logits
        return logits_1SV[0, len(prompt_ids) - 1 : -1].float()

    def score(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        """log pi of each response token, by a plain transformers forward."""
        logps_TV = torch.log_softmax(self.logits(prompt_ids, response_ids), dim=-1)
        return logps_TV.gather(1, torch.tensor(response_ids)[:, None])[:, 0].tolist()


@dataclass(frozen=True)
class TinyAdapter(TinyPolicy):
    """An adapter directory and the same model in peft."""

    base: TinyPolicy

    def served(self) -> ServedPolicy:
        ends = frozenset({EOS_ID})
        return ServedPolicy(self.base.path, self.base.version, self.version, ends, self.score, self.path)


def make_tiny_policy(path: Path, *, seed: int, tied: bool, spread: float = 0.3) -> TinyPolicy:
    """A seeded two-layer Qwen2 (head_dim 32, float32) with a word-level tokenizer, saved to `path`.

    spread: of its weights; at 0.3 logits spread by a few nats, as a trained model's do.
    """
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=tied,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=0,
        dtype=torch.float32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config).eval()
    model.save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return TinyPolicy(path, model)


def make_tiny_adapter(path: Path, base: TinyPolicy, *, seed: int) -> TinyAdapter:
    """A seeded LoRA adapter on every linear layer of `base`, far from the identity, saved to `path`."""
    config = LoraConfig(r=LORA_RANK, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.path), config).eval()
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0.0, 0.3, generator=draw)
    model.save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return TinyAdapter(path, model, base)


def make_tiny_policies(root: Path) -> dict[str, TinyPolicy]:
    """Two versions of an untied and of a tied policy: untied-a, untied-b, tied-a, tied-b."""
    return {
        f"{kind}-{name}": make_tiny_policy(root / f"{kind}-{name}", seed=seed, tied=kind == "tied")
        for kind in ("untied", "tied")
        for seed, name in enumerate("ab")
    }


@contextmanager
def running_policy_server(log_dir: Path) -> Iterator[PolicyServer]:
    """A PolicyServer that starts its server at the first serve() and is stopped at the end."""
    with PolicyServer(SETTINGS, log_dir, lora_rank=LORA_RANK) as policy_server:
        yield policy_server


def served(policy: TinyPolicy, score: Score | None = None, *, version: str = "") -> ServedPolicy:
    """What a server is asked to serve; `score` other than the policy's own is a trainer that disagrees."""
    version = version or policy.version
    return ServedPolicy(policy.path, version, version, frozenset({EOS_ID}), score or policy.score)


def serve(policy_server: PolicyServer, policy: TinyPolicy) -> ServerClient:
    """A client of the shared server, now serving `policy`."""
    policy_server.serve(served(policy))
    return policy_server.clients[0]


def finished_requests(client: ServerClient) -> float:
    """Samples the server says it has finished since it started."""
    lines = httpx.get(f"{client.base_url}/metrics", timeout=30.0, trust_env=False).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:request_success_total"))


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<unk>", "<eos>", *(f"w{index}" for index in range(3, VOCAB_SIZE))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
