"""Models come from folders, go back to folders, and a wrong path is a clear error."""

from pathlib import Path

import pytest
import torch

from sail.core.artifacts import Artifact, leaf
from sail.core.errors import UserError
from sail.core.run_settings import LoraSettings
from sail.policy.loading import (
    add_adapter,
    context_length,
    export_merged,
    is_adapter,
    load_policy,
    load_tokenizer,
    resolve_model,
    save_policy,
)
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import Row
from tests.serving_fixtures import CONTEXT, make_tiny_policy

ROWS = [Row((5, 6, 7), (8, 9, 2)), Row((5,), (11, 2))]


def test_a_merged_copy_of_an_adapter_has_the_adapter_s_log_probs(tmp_path: Path) -> None:
    base = make_tiny_policy(tmp_path / "base", seed=1, tied=False)
    (base.path / "chat_template.jinja").write_text("{{ messages }}")
    adapted = add_adapter(load_policy(leaf(base.path)), LoraSettings(r=4), seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    save_policy(adapted, load_tokenizer(leaf(base.path)), tmp_path / "artifact")
    checkpoint = Artifact("checkpoint", "k", tmp_path / "artifact")
    assert is_adapter(checkpoint)
    assert context_length(checkpoint) == CONTEXT
    with torch.no_grad():
        expected = sequence_logps(adapted, ROWS)
        loaded = sequence_logps(load_policy(checkpoint), ROWS)
        merged = sequence_logps(load_policy(leaf(export_merged(checkpoint, tmp_path / "merged"))), ROWS)
        untouched = sequence_logps(base.model, ROWS)
    torch.testing.assert_close(loaded, expected)
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)
    assert float((expected - untouched).abs().max()) > 1e-2


def test_the_same_seed_starts_the_same_adapter(tmp_path: Path) -> None:
    base = make_tiny_policy(tmp_path / "base", seed=1, tied=False)
    one, two = (add_adapter(load_policy(leaf(base.path)), LoraSettings(r=4), seed=3) for _ in range(2))  # type: ignore[arg-type]
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/model", "a/b/c"])
def test_a_missing_model_folder_is_a_clear_error(path: str) -> None:
    with pytest.raises(UserError, match=r"model_name_or_path: no such folder"):
        resolve_model(path)


def test_a_folder_without_a_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path))


def test_a_tokenizer_without_a_template_needs_one(tmp_path: Path) -> None:
    base = make_tiny_policy(tmp_path / "base", seed=1, tied=True)
    (base.path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"has no chat template\. Set chat_template"):
        load_tokenizer(leaf(base.path))
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    assert load_tokenizer(leaf(base.path), leaf(template)).chat_template == "{{ messages }}"
