"""Small real things the labeling tests run on: a tokenizer, a two-layer Llama, groups and verdicts in a store."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sail.core.artifacts import Artifact
from sail.core.records import (
    DatasetVerdict,
    Message,
    Prompt,
    ResponseLogps,
    Sample,
    SampleGroup,
    ScoredGroup,
    StopKind,
    content_hash,
)
from sail.core.store import Recipe, Store, Workspace

MARKS = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")
WORDS = tuple("film book meal song the was and good great lovely bad dull awful . user: assistant:".split())
VOCABULARY = (*MARKS, *WORDS)
CONTEXT = 64
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' <sep> ' + m['content'] + ' <eos>' }}"
    "{% else %}{{ ' ' + m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' <sep>' }}{% endif %}"
)


def tiny_tokenizer(*, template: bool = True) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )
    if template:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_policy(folder: Path, seed: int = 0) -> Path:
    """A random causal language model on disk."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.index(word) if word in VOCABULARY else 4 for word in text.split())


def make_prompt(text: str) -> Prompt:
    messages = (Message(role="user", content=text),)
    return Prompt(f"p-{content_hash(messages)}", messages, (1, *ids_of(text), 3))


def make_sample(response_id: str, text: str, stop_kind: StopKind = "eos") -> Sample:
    origin = "data:prefs" if stop_kind == "dataset" else "policy"
    end = (2,) if stop_kind in ("eos", "dataset") else ()
    return Sample(response_id, origin, text, (*ids_of(text), *end), (), stop_kind, "v0", 0)


def make_group(prompt_text: str, *texts: str, stop_kind: StopKind = "eos") -> SampleGroup:
    """Sample i has the id <prompt id>-<i>."""
    prompt = make_prompt(prompt_text)
    samples = [make_sample(f"{prompt.prompt_id}-{index}", text, stop_kind) for index, text in enumerate(texts)]
    return SampleGroup(prompt, tuple(samples))


def write_groups(
    store: Store,
    groups: Sequence[SampleGroup],
    verdicts: Sequence[DatasetVerdict] | None = None,
    shard_size: int | None = None,
) -> Artifact:
    """A data artifact (with verdicts) or a samples artifact (without), its groups in one table or in shards."""

    def run(workspace: Workspace) -> dict[str, int]:
        if shard_size is None:
            workspace.write("groups", groups, SampleGroup)
        else:
            for start in range(0, len(groups), shard_size):
                workspace.write(f"groups-{start:05d}", groups[start : start + shard_size], SampleGroup)
        if verdicts is not None:
            workspace.write("verdicts", verdicts, DatasetVerdict)
        return {}

    settings = {"content": content_hash([repr(groups), repr(verdicts), shard_size])}
    return store.build(Recipe("samples" if verdicts is None else "data", 1, settings, {}), run)


def write_data(store: Store, rows: Sequence[tuple[str, str, str]]) -> Artifact:
    """A preference dataset of (prompt, chosen, rejected), each prompt once; the response ids end in -0 and -1."""
    groups = [make_group(prompt, chosen, rejected, stop_kind="dataset") for prompt, chosen, rejected in rows]
    return write_groups(store, groups, [verdict_of(group) for group in groups])


def verdict_of(group: SampleGroup, scores: tuple[float, float] | None = None) -> DatasetVerdict:
    """The first response of the group beats the second."""
    chosen, rejected = group.samples[:2]
    score_chosen, score_rejected = scores or (None, None)
    return DatasetVerdict(
        group.prompt.prompt_id, chosen.response_id, rejected.response_id, score_chosen, score_rejected
    )


def write_scores(
    store: Store, groups: Sequence[SampleGroup], scores: Mapping[str, float], shard_size: int = 2
) -> Artifact:
    scored = []
    for group in groups:
        ids = tuple(sample.response_id for sample in group.samples)
        scored.append(ScoredGroup(group.prompt.prompt_id, ids, tuple(scores[id_] for id_ in ids)))

    def run(workspace: Workspace) -> dict[str, int]:
        for start in range(0, len(scored), shard_size):
            workspace.write(f"scores-{start:05d}", scored[start : start + shard_size], ScoredGroup)
        return {}

    return store.build(Recipe("scores", 1, {"content": content_hash([repr(scored), shard_size])}, {}), run)


def write_logps(store: Store, logps: Mapping[str, float]) -> Artifact:
    def run(workspace: Workspace) -> dict[str, int]:
        workspace.write("logps", [ResponseLogps(name, logp, 3) for name, logp in logps.items()], ResponseLogps)
        return {}

    return store.build(Recipe("logps", 1, dict(logps), {}), run)
