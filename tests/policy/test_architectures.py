"""Which architecture takes which shortcut, and that each one gives the plain forward's values and gradients."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sail.policy.architectures import fused_head_of, takes_trees
from sail.policy.logprobs import sequence_logps
from sail.policy.trees import TREE_ATTENTION, tree_rows
from tests.policy.oracle import assert_equals_oracle, tiny_model
from tests.policy.row_patterns import PATTERNS

TREES = ["cohere", "gemma", "glm4", "granite", "helium", "llama", "mistral", "mixtral", "olmo2", "phi", "phi3",
         "qwen2", "qwen3", "qwen3_moe"]  # fmt: skip
PADDED = ["cohere2", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "smollm3", "stablelm"]


@pytest.mark.parametrize("kind", TREES)
def test_an_architecture_with_plain_attention_takes_trees_exactly(kind: str) -> None:
    model = tiny_model(kind)
    assert_equals_oracle(model, PATTERNS["ragged groups"])
    assert model.config._attn_implementation == TREE_ATTENTION


@pytest.mark.parametrize("kind", PADDED)
def test_another_known_architecture_is_padded_with_a_fused_head(kind: str) -> None:
    model = tiny_model(kind)
    assert fused_head_of(model) is not None
    assert not takes_trees(model)
    assert_equals_oracle(model, PATTERNS["ragged groups"])


def test_an_unknown_architecture_gives_full_logits_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("opt", word_embed_proj_dim=32, ffn_dim=48, dropout=0.0)
    assert_equals_oracle(model, PATTERNS["ragged groups"])
    assert_equals_oracle(model, PATTERNS["a pair"])
    told = [record.message for record in caplog.records if record.message.startswith("opt")]
    assert sum("full logits" in message for message in told) == 1


class ExpertProducts(TorchDispatchMode):
    """The dtypes in which matrices of the experts' width, or twice that, are multiplied."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.dtypes = width, set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [each for each in args if isinstance(each, torch.Tensor) and each.ndim > 1]
        if "mm" in str(func) and any({self.width, 2 * self.width} & set(each.shape) for each in tensors):
            self.dtypes |= {each.dtype for each in tensors}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_experts_are_multiplied_in_bfloat16_under_autocast(kind: str) -> None:
    width = 36
    model = tiny_model(kind, intermediate_size=width, moe_intermediate_size=width)
    model.set_experts_implementation("grouped_mm")  # as it is loaded
    with torch.autocast("cpu", torch.bfloat16), ExpertProducts(width) as products:
        sequence_logps(model, PATTERNS["a pair"]).sum().backward()
    assert products.dtypes == {torch.bfloat16}


def test_a_model_that_drops_the_trees_on_the_way_is_stopped_not_wrong() -> None:
    model = tiny_model("stablelm")
    model.set_attn_implementation(TREE_ATTENTION)
    batch = tree_rows(PATTERNS["a pair"], torch.device("cpu"))
    with pytest.raises(RuntimeError, match="does not hand `trees` on"):
        model(**batch.inputs, use_cache=False)
