"""Reward models behind servers: a small real HTTP server that misbehaves, and one real vLLM server in pooling mode."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from sail.core.errors import UserError
from sail.core.records import Example
from sail.core.run_settings import RewardModelLabeler
from sail.core.store import Workspace
from sail.labeling.labelers.reward_model import RewardOrigin, score_rows
from sail.labeling.reward_model import encode, load_reward_model
from sail.labeling.scores import make_labeler
from sail.serving.errors import ServerError, ServerLostError
from sail.serving.flags import LaunchPlan, server_command
from sail.serving.reward_server import RewardServer, ServedReward
from sail.serving.scoring import up_to_the_head
from tests.answering import Reply, answering
from tests.labeling.doubles import VOCABULARY, tiny_tokenizer
from tests.serving_fixtures import SETTINGS

QUICK = SETTINGS.replace(mode="external", max_retries=2, concurrency=4, request_timeout_s=2.0)
PAD = 0
_CHECKPOINTS = TemporaryDirectory()
ROWS = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [3, 3], [5, 1, 2]]


def toy(row: Sequence[int]) -> float:
    """The score of the toy servers."""
    return sum(row) / 8


@contextmanager
def misbehaving(**script: list[str | int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of a server that scores by `toy`, and what it is asked.

    script: {"t4": what it does first with rows that start with token 4: "drop", "cut", "two", or a status}
    """
    steps = {int(name[1:]): list(doings) for name, doings in script.items()}

    def score(asked: dict[str, Any]) -> Reply:
        row = asked["input"]
        step = steps[row[0]].pop(0) if steps.get(row[0]) else 200
        if step == "drop":
            return None
        outputs = [toy(row)] * (2 if step == "two" else 1)
        data = {"index": 0, "label": None, "probs": outputs, "num_classes": len(outputs)}
        usage = {"prompt_tokens": len(row) - (step == "cut")}
        return step if isinstance(step, int) else 200, {"data": [data], "usage": usage}

    with answering(score, max_model_len=4) as (url, asked):
        yield url, asked


def at(*urls: str) -> RewardServer:
    return RewardServer(QUICK.replace(server_urls=urls), Path(), "rm")


def model(version: str = "a", shift: float = 0.0, dtype: str = "float32") -> ServedReward:
    folder = Path(_CHECKPOINTS.name) / dtype
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"dtype": dtype}))
    return ServedReward(folder, version, PAD, lambda rows: [toy(row) + shift for row in rows])


def test_rows_are_scored_in_their_order_as_token_ids_and_raw(tmp_path: Path) -> None:
    with misbehaving() as (url, asked):
        assert at(url).score(model(), ROWS) == [toy(row) for row in ROWS]
        assert all(body["use_activation"] is False and body["model"] == "toy" for body in asked)
        assert sorted(body["input"] for body in asked[4:]) == sorted(ROWS)  # the first four were the check


def test_a_model_is_checked_once_and_another_one_anew() -> None:
    with misbehaving() as (url, asked):
        server = at(url)
        for version, questions in (("a", 4 + 5), ("a", 5), ("b", 4 + 5)):
            asked.clear()
            server.score(model(version), ROWS)
            assert len(asked) == questions


def test_several_servers_share_the_rows_and_one_that_is_away_is_left_out() -> None:
    with ExitStack() as stack:
        (one, asked_one), (two, asked_two) = (stack.enter_context(misbehaving()) for _ in range(2))
        rows = [[index % 7 + 1, index % 5 + 1] for index in range(60)]
        assert at(one, "http://127.0.0.1:9", two).score(model(), rows) == [toy(row) for row in rows]
        assert min(len(asked_one), len(asked_two)) > 10


@pytest.mark.parametrize("steps", [["drop"], [500, "drop"], [429]])
def test_what_may_pass_is_asked_again(steps: list[str | int]) -> None:
    with misbehaving(t5=[200, *steps]) as (url, asked):
        rows = [[1], [2], [3], [5], [4]]
        assert at(url).score(model(), rows) == [toy(row) for row in rows]
        assert len(asked) == 4 + 5 + len(steps)


def test_retries_are_bounded_and_the_error_knows_its_row() -> None:
    with misbehaving(t5=[500] * 50) as (url, asked), pytest.raises(ServerLostError, match="failed 3 times") as caught:
        at(url).score(model(), ROWS)
    assert caught.value.position == 4
    assert [body["input"] for body in asked].count([5, 1, 2]) == 3


@pytest.mark.parametrize(("step", "told"), [(400, "HTTP 400"), ("cut", "the server read"), ("two", "one finite")])
def test_what_will_not_pass_is_asked_once(step: str | int, told: str) -> None:
    with misbehaving(t5=[step]) as (url, asked), pytest.raises(ServerError, match=told) as caught:
        at(url).score(model(), ROWS)
    assert caught.value.position == 4
    assert [body["input"] for body in asked].count([5, 1, 2]) == 1


def test_a_server_with_other_scores_than_the_trainers_is_refused() -> None:
    with misbehaving() as (url, _), pytest.raises(UserError, match=r"labelers\.rm\.vllm: .*0\.01.* off the model"):
        at(url).score(model(shift=0.01), ROWS)
    with misbehaving() as (url, _), pytest.raises(UserError, match=r"labelers\.rm\.vllm"):
        at(url).score(model(shift=float("nan")), ROWS)


def test_a_server_elsewhere_is_checked_to_the_precision_of_its_number_format() -> None:
    """Where vllm.dtype does not say, that of the checkpoint."""
    with misbehaving() as (url, _):
        at(url).score(model(shift=0.01, dtype="bfloat16"), ROWS)
        RewardServer(QUICK.replace(server_urls=(url,), dtype="bfloat16"), Path(), "rm").score(model(shift=0.01), ROWS)
        with pytest.raises(UserError, match=r"as float32 allows.*vllm\.dtype, or set vllm\.verify_tolerance"):
            at(url).score(model(shift=0.01), ROWS)


def test_a_row_longer_than_the_server_takes_is_named() -> None:
    with (
        misbehaving() as (url, _),
        pytest.raises(UserError, match=r"vllm\.max_model_len: row 4 has 5 tokens.* takes 4"),
    ):
        at(url).score(model(), [*ROWS[:4], [1, 2, 3, 4, 5]])


def test_where_nobody_answers_the_setting_is_named() -> None:
    with pytest.raises(ServerError, match=r"labelers\.rm\.vllm\.server_urls: none answers"):
        at("http://127.0.0.1:9").score(model(), ROWS)


def test_the_padding_behind_the_head_is_left_out() -> None:
    assert up_to_the_head([1, PAD, 2, PAD, PAD], PAD) == [1, PAD, 2]
    assert up_to_the_head([PAD, PAD], PAD) == [PAD]


def test_a_scoring_server_pools_raw_outputs_and_has_no_flags_of_a_sampler() -> None:
    argv = server_command(
        LaunchPlan(Path("/m"), "sail-1", "a", "http://127.0.0.1:8123", "cpu", 64, None, 0, scores=True), SETTINGS
    )
    flags = dict(pairwise(argv))
    assert (flags["--runner"], flags["--convert"]) == ("pooling", "classify")
    assert json.loads(flags["--pooler-config"]) == {"use_activation": False}
    assert not {"--logprobs-mode", "--worker-extension-cls"} & set(argv)


# --- a real one


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier that vLLM takes on CPU; EOS is its padding, and its template ends with it."""
    folder = tmp_path_factory.mktemp("reward")
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=2, bos_token_id=1, eos_token_id=2, num_labels=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        classifier = LlamaForSequenceClassification(config)
    classifier.score.weight.data *= 50
    classifier.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.vllm
def test_a_vllm_server_gives_the_scores_of_the_model_in_process(reward_folder: Path, tmp_path: Path) -> None:
    prompt = ({"role": "user", "content": "the film"},)
    praise = ("good", "great .", "the film was awful .", "dull <eos> <eos>", "bad " * 59)  # the last fills the context
    examples = [Example(prompt, praise[index % 5], True) for index in range(30)]
    workspace = Workspace(tmp_path, print)
    in_process = make_labeler("rm", RewardModelLabeler(path=str(reward_folder)))
    expected = in_process.open(workspace)(examples)
    server = RewardServer(SETTINGS, tmp_path, "rm")
    settings = RewardModelLabeler(path=str(reward_folder), vllm=SETTINGS)
    labeler = make_labeler("rm", settings, RewardOrigin(server=lambda: server))
    try:
        assert labeler.open(workspace)(examples) == pytest.approx(expected, abs=1e-3)
        assert max(expected) - min(expected) > 1
        elsewhere = RewardServer(SETTINGS.replace(mode="external", server_urls=server.urls), tmp_path, "rm")
        rows = [encode(AutoTokenizer.from_pretrained(reward_folder), example) for example in examples]
        classifier = load_reward_model(reward_folder, "")
        held = ServedReward(reward_folder, "held", 2, lambda rows: score_rows(classifier, rows, 1))
        assert elsewhere.score(held, rows) == pytest.approx(expected, abs=1e-3)
        other = ServedReward(reward_folder, "other", 2, lambda rows: [0.5 for _ in rows])
        with pytest.raises(UserError, match="off the model in process"):
            elsewhere.score(other, rows)
    finally:
        server.stop()
    assert server.num_starts == 1 and server.largest_gap < 1e-3


def test_where_scores_are_computed_is_in_no_key_and_how_is(reward_folder: Path) -> None:
    def recipe(**vllm: object) -> dict[str, Any]:
        settings = RewardModelLabeler(path=str(reward_folder), vllm=vllm or None)
        return dict(make_labeler("rm", settings).recipe)

    elsewhere = recipe(mode="external", server_urls=["http://a:1"], concurrency=3, gpus=[1], verify_tolerance=0.1)
    assert recipe() == recipe(port=5555) == elsewhere == {"kind": "reward_model"}
    assert recipe(dtype="bfloat16") == {"kind": "reward_model", "vllm.dtype": "bfloat16"}
    assert recipe(args={"quantization": "fp8"})["vllm.args"] == {"quantization": "fp8"}


def test_the_labelers_error_names_the_response(reward_folder: Path) -> None:
    with misbehaving(t1=[200, 400]) as (url, _):
        server = RewardServer(QUICK.replace(server_urls=(url,), verify_tolerance=1e9), Path(), "rm")
        settings = RewardModelLabeler(path=str(reward_folder), vllm={"mode": "external", "server_urls": [url]})
        labeler = make_labeler("rm", settings, RewardOrigin(server=lambda: server))
        example = Example(({"role": "user", "content": "film"},), ".", True)
        with pytest.raises(ServerError, match=r"labelers\.rm: the response '\.' to 'film': .*HTTP 400"):
            labeler.open(Workspace(Path(), print))([example])
