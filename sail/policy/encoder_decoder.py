"""Encoder-decoder policies (T5): the prompt goes to the encoder, the response to the decoder.

log pi(y_t | x, y_<t) is read where the decoder has seen start, y_1, ..., y_(t-1). The encoder reads each distinct
prompt of a batch once, whatever the number of its responses; relative positions rule out the trees of causal models.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sail.core.errors import UserError
from sail.policy.rows import Row, ScoredBatch

PLAIN_TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}\n\n{% endif %}{{ message.content }}"
    "{% endfor %}{{ eos_token }}"
)
"""The chat template of an encoder-decoder that has none: the turns' text, and the EOS that ends an encoder's input.
A response follows in the decoder, so its ids are those of its text alone (chat.response_ids)."""


def start_id(config: Any) -> int:
    """The token every response starts after; it is no part of the response."""
    start = getattr(config, "decoder_start_token_id", None)
    if start is None:
        raise UserError(
            f"the {config.model_type} names no decoder_start_token_id", where="model_name_or_path",
            cure="Set it in the model's config.json (T5: 0, the padding id)",
        )  # fmt: skip
    return int(start)


def decoder_rows(rows: Sequence[Row], start: int, device: torch.device) -> ScoredBatch:
    """One row of the batch each; prompts and responses padded on the right, the latter shifted by the start token."""
    prompts = [row.prompt_ids for row in rows]
    shifted = [(start, *row.response_ids[:-1]) for row in rows]
    prompt_ids, mask = right_padded(prompts)
    decoder_ids, _ = right_padded(shifted)  # causal: what stands behind a response changes nothing before
    width = decoder_ids.shape[1]
    scored = [range(index * width, index * width + len(row.response_ids)) for index, row in enumerate(rows)]
    inputs = {"input_ids": prompt_ids, "attention_mask": mask, "decoder_input_ids": decoder_ids}
    first: dict[tuple[int, ...], int] = {}
    alike = [first.setdefault(tuple(prompt), index) for index, prompt in enumerate(prompts)]
    batch = ScoredBatch.of({name: ids.to(device) for name, ids in inputs.items()}, scored, rows, device)
    return batch._replace(first_alike=torch.tensor(alike, device=device))


def right_padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T]."""
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask


@contextmanager
def each_prompt_once(model: Any, first_alike: Tensor | None) -> Iterator[None]:
    """Within it, the encoder of a model's own forward skips prompts it has read and repeats what it made of them.

    Hooks, because wrappers (DDP, FSDP) gather weights round the model's forward. None: no encoder, nothing happens.
    """
    if first_alike is None:
        yield
        return
    distinct, which = first_alike.unique(return_inverse=True)

    def read_distinct(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        assert not args, f"{type(module).__name__} is called with keywords"
        inputs = {name: kwargs[name].index_select(0, distinct) for name in ("input_ids", "attention_mask")}
        return args, kwargs | inputs

    def repeat(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.index_select(0, which)
        return output

    encoder = model.get_encoder()
    hooks = encoder.register_forward_pre_hook(read_distinct, with_kwargs=True), encoder.register_forward_hook(repeat)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
