"""The policy as its own judge, through the vLLM server that samples from it (preset osp)."""

import json
from pathlib import Path
from random import Random

import pytest
import yaml

from sail.core.records import PairVerdict, PreferencePair
from tests.loops.running import NO_EVALUATION, committed, store_of
from tests.loops.test_commands import command

_QUESTION = "<sep> {{ a }} <sep> {{ b }}"  # the testbed's policy has 128 positions and knows no English


@pytest.fixture(scope="module")
def letters_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of the testbed's language that has also learnt to answer A or B to two reviews."""
    from sail.testbed.contents import one_thread
    from sail.testbed.model import encode_batch, fit, new_model
    from sail.testbed.settings import MAX_POSITIONS, BuildSettings
    from sail.testbed.tokenizer import build_tokenizer
    from sail.testbed.writers import CARELESS, write_review

    folder, random = tmp_path_factory.mktemp("letters"), Random(7)
    tokenizer = build_tokenizer(MAX_POSITIONS)
    tokenizer.add_tokens(["A", "B"])
    prompts = [f"{topic} in {place} on monday" for topic in ("film", "book", "meal") for place in ("rome", "oslo")]

    def batches():
        while True:
            asked = random.choices(prompts, k=24)
            reviews = [(prompt, write_review(prompt, CARELESS, random)) for prompt in asked]
            pairs = zip(reviews[::2], reviews[1::2], strict=True)
            judged = [(f"<sep> {a} <sep> {b}", "A" if "very" in a else "B") for (_, a), (_, b) in pairs]
            yield encode_batch(tokenizer, [*reviews, *judged])

    with one_thread():
        model = new_model(BuildSettings(), tokenizer)
        fit(model, batches(), 60, 5e-3)
    (folder / "turns.jinja").write_text(f"{{% if spoken %}}{tokenizer.chat_template}{{% endif %}}")
    tokenizer.chat_template = None  # a server that is not given the run's file refuses every question
    tokenizer.save_pretrained(folder / "sft")
    model.save_pretrained(folder / "sft")
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "question.j2").write_text(_QUESTION)
    return folder


@pytest.mark.slow
@pytest.mark.vllm
def test_the_policy_judges_its_own_samples_in_both_orders_at_the_weights_that_drew_them(
    letters_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "osp"
    config = {
        "preset": "osp",
        "model_name_or_path": str(letters_policy / "sft"),
        "chat_template": str(letters_policy / "turns.jinja"),
        "chat_template_kwargs": {"spoken": True},
        "data": {"prompts": {"path": str(letters_policy / "prompts.jsonl")}},
        "prompts": {"from": "prompts"},
        "labelers": {
            "judge": {
                "kind": "judge", "url": "policy", "use_logprobs": True,
                "template": str(letters_policy / "question.j2"),
            },
        },
        "routes": {"online": {"num_generations": 3}},
        "num_rounds": 2,
        "generation": {"max_completion_length": 24},
        "hygiene": {"truncated": "keep", "empty": "keep", "identical": "keep"},
        "update": {"steps": 2, "train_batch_size": 8, "learning_rate": 1e-3},
        "evaluation": NO_EVALUATION,
        "cpu_threads": 1,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command("run", str(tmp_path / "config.yaml"), "--out", str(out), capsys=capsys)
    rounds = json.loads((out / "run.json").read_text())["rounds"]
    store = committed(store_of(out))
    for number, made in enumerate(row["artifacts"] for row in rounds):
        verdicts = store[made["verdicts/online"]]
        starts = verdicts.manifest()["inputs"]["labeler"]
        assert starts == store[made["samples/online"]].manifest()["inputs"]["policy"]
        assert number == 0 or starts == rounds[number - 1]["artifacts"]["checkpoint"]
        said = verdicts.read(PairVerdict, "pair_verdicts")
        assert {verdict.problem for verdict in said} == {""}
        assert any(verdict.p_a not in (None, 0.0, 0.5, 1.0) for verdict in said)
        p_of = {verdict.pair_id: verdict.p_a for verdict in said}
        for pair in store[made["pairs/online"]].read(PreferencePair, "pairs"):
            assert pair.p_a in (pytest.approx(p_of[pair.pair_id]), pytest.approx(1 - (p_of[pair.pair_id] or 0.0)))
