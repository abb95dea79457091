"""Models come from folders, go back to folders, and a wrong path is a clear error."""

from pathlib import Path

import pytest
import torch

from sail.core.artifacts import Artifact, Leaf, leaf
from sail.core.errors import UserError
from sail.core.records import Message
from sail.core.run_settings import LoraSettings
from sail.policy.chat import prompt_ids, response_ids
from sail.policy.loading import (
    add_adapter,
    base_folder,
    context_length,
    export_merged,
    is_adapter,
    is_encoder_decoder,
    load_policy,
    load_tokenizer,
    resolve_model,
    save_policy,
)
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import Row
from sail.policy.value import new_value_model
from tests.encoder_decoder_fixtures import EOS_ID, make_tiny_t5
from tests.serving_fixtures import CONTEXT, make_tiny_policy
from tests.update.stored import tiny_leaf

ROWS = [Row((5, 6, 7), (8, 9, 2)), Row((5,), (10, 2))]


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


def test_an_adapter_stands_on_the_base_it_is_given_wherever_that_has_moved(tmp_path: Path) -> None:
    """Another model lies at the path that peft wrote down."""
    base = tiny_leaf(tmp_path / "here", seed=1)
    adapted = add_adapter(load_policy(base), LoraSettings(r=4), seed=0)  # type: ignore[arg-type]
    save_policy(adapted, load_tokenizer(base), tmp_path / "artifact")
    (tmp_path / "here").rename(tmp_path / "there")
    tiny_leaf(tmp_path / "here", seed=2)
    checkpoint = Artifact("checkpoint", "k", tmp_path / "artifact", Leaf(tmp_path / "there", base.key))

    loaded = load_policy(checkpoint)

    with torch.no_grad():
        torch.testing.assert_close(sequence_logps(loaded, ROWS), sequence_logps(adapted, ROWS))
    value, expected = (new_value_model(model, "token").state_dict() for model in (checkpoint, checkpoint.base))
    assert all(torch.equal(weight, expected[name]) for name, weight in value.items())
    save_policy(loaded, load_tokenizer(checkpoint), tmp_path / "next")
    assert base_folder(Artifact("checkpoint", "l", tmp_path / "next")) == tmp_path / "there"


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


WORDS = ["tea", "at", "noon", "good", "."]


def _written(tokenizer: object, ids: tuple[int, ...]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(list(ids)))  # type: ignore[attr-defined]


def test_a_t5_without_a_template_reads_the_plain_turns_and_one_eos(tmp_path: Path) -> None:
    make_tiny_t5(tmp_path, WORDS)
    tokenizer = load_tokenizer(leaf(tmp_path))
    turns = [Message(role="system", content="good"), Message(role="user", content="tea at noon")]
    assert prompt_ids(tokenizer, turns[1:]) == tuple(tokenizer("tea at noon")["input_ids"]), "as T5 does it itself"
    assert _written(tokenizer, prompt_ids(tokenizer, turns)) == "▁good ▁tea ▁at ▁noon </s>"
    assert _written(tokenizer, response_ids(tokenizer, turns, "good .", (EOS_ID,))) == "▁good ▁. </s>"


def test_a_t5_has_no_context_of_its_own(tmp_path: Path) -> None:
    """Its positions are relative; n_positions (16 here) says how it was trained."""
    make_tiny_t5(tmp_path, WORDS)
    assert is_encoder_decoder(leaf(tmp_path))
    assert context_length(leaf(tmp_path)) == 1 << 20


@pytest.mark.parametrize("tied", [True, False], ids=["T5", "T5 v1.1"])
def test_a_t5_and_its_adapter_come_back_as_they_were_saved(tied: bool, tmp_path: Path) -> None:
    make_tiny_t5(tmp_path / "base", WORDS, tied=tied)
    base = leaf(tmp_path / "base")
    adapted = add_adapter(load_policy(base), LoraSettings(r=4), seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    for model, name in ((load_policy(base), "full"), (adapted, "adapter")):
        save_policy(model, load_tokenizer(base), tmp_path / name)
        checkpoint = Artifact("checkpoint", "k", tmp_path / name)
        assert is_encoder_decoder(checkpoint)
        with torch.no_grad():
            torch.testing.assert_close(sequence_logps(load_policy(checkpoint), ROWS), sequence_logps(model, ROWS))
    with torch.no_grad():
        moved = sequence_logps(adapted, ROWS) - sequence_logps(load_policy(base), ROWS)
        assert float(moved.abs().max()) > 1e-2


def test_training_has_no_dropout_but_the_adapter_s_and_the_saved_configuration_keeps_its_own(tmp_path: Path) -> None:
    made = make_tiny_t5(tmp_path / "base", WORDS)
    base = leaf(tmp_path / "base")
    assert made.config.dropout_rate == 0.1
    model = load_policy(base, trainable=True)
    with torch.no_grad():
        assert torch.equal(sequence_logps(model.train(), ROWS), sequence_logps(load_policy(base), ROWS))
        assert not torch.equal(sequence_logps(made.train(), ROWS), sequence_logps(model, ROWS))
    save_policy(model, load_tokenizer(base), tmp_path / "saved")
    assert '"dropout_rate": 0.1' in (tmp_path / "saved" / "model" / "config.json").read_text()
    adapted = add_adapter(model, LoraSettings(r=4, dropout=0.5), seed=0).train()  # type: ignore[arg-type]
    rates = {module.p for name, module in adapted.named_modules() if "lora_dropout.default" in name}
    assert rates == {0.5}
