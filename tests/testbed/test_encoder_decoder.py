"""An untrained T5 that reads and writes the testbed's language."""

from pathlib import Path

import torch

from sail.core.artifacts import leaf
from sail.core.atomic import file_sha256, tree_files
from sail.core.records import Message
from sail.policy.chat import prompt_ids, response_ids
from sail.policy.loading import eos_ids, is_encoder_decoder, load_policy, load_tokenizer
from sail.policy.logprobs import sequence_logps
from sail.policy.rows import Row
from sail.testbed.encoder_decoder import write_t5
from sail.testbed.words import EOS, VOCABULARY


def test_equal_seeds_write_equal_files_and_another_seed_other_weights(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_t5(tmp_path / name, seed)
        digests.append({path.name: file_sha256(path) for path in tree_files(tmp_path / name)})
    assert digests[0] == digests[1]
    assert {name for name in digests[0] if digests[0][name] != digests[2][name]} == {"model.safetensors"}


def test_it_scores_the_testbed_s_reviews_with_the_testbed_s_tokens(tmp_path: Path) -> None:
    write_t5(tmp_path / "t5", 1)
    model = leaf(tmp_path / "t5")
    assert is_encoder_decoder(model)
    tokenizer = load_tokenizer(model)
    prompt = [Message(role="user", content="film in paris on monday")]
    asked = prompt_ids(tokenizer, prompt)
    answer = response_ids(tokenizer, prompt, "the film was good .", eos_ids(model, tokenizer))
    assert [VOCABULARY[token] for token in answer] == ["the", "film", "was", "good", ".", EOS]
    with torch.no_grad():
        (whole,) = sequence_logps(load_policy(model), [Row(asked, answer)])
        (shorter,) = sequence_logps(load_policy(model), [Row(asked, answer[:-1])])
    assert torch.isfinite(whole) and whole < shorter < 0
