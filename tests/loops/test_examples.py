"""The shipped configs load, and what the examples need runs here: HH files, a model from text, a tiny Qwen."""

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
from typer.testing import CliRunner

from loops.ablation import load_ablation
from loops.checks import check_run
from loops.cli import app
from loops.config import load_config
from loops.context import Context
from loops.iterate import run_phases
from loops.plan import PlanBuilder
from sail.core.artifacts import leaf
from sail.core.errors import UserError
from sail.core.records import Message, ResponseRow
from sail.core.run_settings import DataSettings
from sail.core.store import Store
from sail.generation import ENGINES
from sail.generation.source_rows import SourceRow
from sail.generation.sources import read_source
from sail.policy.chat import prompt_ids, response_ids, response_text

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
HH_FOLDER = ROOT.parent / "shared" / "data" / "hh-rlhf-test"
UF_FOLDER = ROOT.parent / "shared" / "data" / "ultrafeedback-subset"

THUMBS = ROOT.parent / "shared" / "data" / "llamafactory-demos" / "kto_en_demo.json"

needs_thumbs = pytest.mark.skipif(not (THUMBS.exists() and UF_FOLDER.exists()), reason=f"no thumbs in {THUMBS}")
needs_hh = pytest.mark.skipif(not HH_FOLDER.exists(), reason=f"no HH files in {HH_FOLDER}")
needs_uf = pytest.mark.skipif(not UF_FOLDER.exists(), reason=f"no UltraFeedback rows in {UF_FOLDER}")

PLACEHOLDERS = [
    "model_name_or_path=some/model", "data.prefs.path=prefs.jsonl", "data.demos.path=demos.jsonl",
    "labelers.rm={kind: reward_model, path: some/reward}",
    "labelers.judge={kind: judge, url: 'http://127.0.0.1:9', model: some-judge}", "prompts.from=prefs",
    "components.sae={path: sae.safetensors, layer: 1}",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml")))
def test_every_preset_loads_with_a_model_and_data(name: str) -> None:
    config = load_config(name, PLACEHOLDERS)
    check_run(config.settings, ENGINES)


PAPER = sorted((CONFIGS / "paper").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPER, ids=[path.stem for path in PAPER])
def test_the_papers_settings_are_planned_and_warned_of(path: Path, testbed: Path, tmp_path: Path) -> None:
    """With the testbed's model and pairs in place of the Hub's; everything else as the file says."""
    settings = load_config(
        str(path),
        [
            f"model_name_or_path={testbed / 'sft'}",
            f"data.prefs.path={testbed / 'prefs.jsonl'}",
            "data.prefs.split=train",
            *(["labelers.rm={kind: callable, path: 'sail.testbed.gold:hump'}"] if "sail-pr" in path.stem else []),
        ],
    ).settings
    warnings = " ".join(check_run(settings, ENGINES))
    published = settings.phases[1].routes["online"].sail_coef
    assert f"sail_coef {published:g} is" in warnings
    assert "WARNING: the published coefficients" in path.read_text()
    plan = PlanBuilder(Store(tmp_path / "store"))
    rounds = list(run_phases(Context(settings, plan, tmp_path)))
    assert len(rounds) >= 2 and plan.new
    update, share = settings.phases[1].update, settings.phases[1].routes["online"].share
    assert update.horizon and share != "rest"
    offline_passes = update.horizon * update.train_batch_size * (1 - share) / 10_000
    assert offline_passes == pytest.approx(5, abs=0.02)


COMPLETE = sorted([CONFIGS / "quickstart.yaml", *(CONFIGS / "examples").glob("*.yaml")])


@pytest.mark.parametrize("path", COMPLETE, ids=[path.stem for path in COMPLETE])
def test_every_complete_config_loads_as_it_is(path: Path) -> None:
    warnings = check_run(load_config(str(path)).settings, ENGINES)
    assert [line for line in warnings if not line.startswith("loss ")] == []  # names that mean something else elsewhere
    assert path.read_text().startswith("# "), "the first comment says what the run is for"


ABLATIONS = sorted((CONFIGS / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", ABLATIONS, ids=[path.stem for path in ABLATIONS])
def test_every_shipped_ablation_loads_and_passes_the_checks(path: Path) -> None:
    ablation = load_ablation(str(path))
    for run in ablation.runs:
        check_run(run.settings, ENGINES)
    assert len(ablation.runs) >= 4
    assert path.read_text().startswith("# "), "the first comment says what it is for"


# --- Anthropic HH transcripts -----------------------------------------------------------------------------------------


def parse_hh(tmp_path: Path, chosen: Any, rejected: Any) -> SourceRow:
    file = tmp_path / "hh.jsonl"
    file.write_text(json.dumps({"chosen": chosen, "rejected": rejected}, ensure_ascii=False))
    return read_source(DataSettings(path=str(file), format="hh"), leaf(file), "data.hh")[0]


def test_the_last_assistant_turns_are_the_responses(tmp_path: Path) -> None:
    start = "\n\nHuman: Tea?\n\nAssistant: Which one?\n\nHuman: Green, please.\n\nAssistant:"
    row = parse_hh(tmp_path, f"{start} Here you are.", f"{start} No.")
    assert [(turn["role"], turn["content"]) for turn in row.prompt] == [
        ("user", "Tea?"), ("assistant", "Which one?"), ("user", "Green, please."),
    ]  # fmt: skip
    assert (row.responses, row.is_pair) == (("Here you are.", "No."), True)


@pytest.mark.parametrize(
    "runaway",
    ["One.\n\nHuman: And then?\n\nAssistant: Two.", "One.\n\nAssistant: Two.", "One.\n\nHuman: And then?", ""],
)
def test_marks_inside_a_response_are_its_text(tmp_path: Path, runaway: str) -> None:
    """As in 19 rows of the public test files, two of which end in the human's voice."""
    start = "\n\nHuman: Count!\n\nAssistant:"
    row = parse_hh(tmp_path, f"{start} No.", f"{start} {runaway}")
    assert row == SourceRow((Message(role="user", content="Count!"),), ("No.", runaway), (None, None), is_pair=True)


def test_responses_that_begin_alike_are_kept_whole(tmp_path: Path) -> None:
    start = "\n\nHuman: Colour?\n\nAssistant:"
    assert parse_hh(tmp_path, f"{start} Blue, I say", f"{start} Blue").responses == ("Blue, I say", "Blue")
    assert parse_hh(tmp_path, f"{start} Blue", f"{start} Blue").responses == ("Blue", "Blue")


def test_one_who_speaks_twice_in_a_row_has_one_turn(tmp_path: Path) -> None:
    start = "\n\nHuman: Hello\n\nHuman: Anyone?\n\nAssistant: Yes.\n\nHuman: Ah\n\nAssistant:"
    row = parse_hh(tmp_path, f"{start} a", f"{start} b")
    assert [turn["content"] for turn in row.prompt] == ["Hello\n\nAnyone?", "Yes.", "Ah"]


def test_separators_that_only_unicode_knows_do_not_end_a_row(tmp_path: Path) -> None:
    start = "\n\nHuman: Verse?\n\nAssistant:"
    assert parse_hh(tmp_path, f"{start} one\u2028two\x85three", f"{start} x").responses[0] == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ("\n\nHuman: Hello", "\n\nHuman: Hello", "data.hh, row 0.*must end with an Assistant turn"),
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y", "must begin with the same Human turn"),
        ([{"role": "user", "content": "Hello"}], "text", "needs text in chosen and rejected"),
    ],
)
def test_what_is_no_transcript_is_refused_with_its_row(
    tmp_path: Path, chosen: Any, rejected: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse_hh(tmp_path, chosen, rejected)


@needs_hh
@pytest.mark.parametrize(
    ("name", "rows", "longer_chosen"),
    [("helpful-base", 2354, 0.60), ("helpful-online", 1137, 0.43), ("helpful-rejection-sampled", 2749, 0.56),
     ("harmless-base", 2312, 0.44)],
)  # fmt: skip
def test_every_row_of_the_real_files_is_a_pair_that_ends_in_a_question(
    name: str, rows: int, longer_chosen: float
) -> None:
    file = HH_FOLDER / f"{name}.test.jsonl.gz"
    parsed = read_source(DataSettings(path=str(file), format="hh"), leaf(file), "data.hh")
    assert len(parsed) == rows
    for row in parsed:
        roles = [turn["role"] for turn in row.prompt]
        assert row.is_pair and roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    lengths = [tuple(map(len, row.responses)) for row in parsed]
    longer = sum(chosen > rejected for chosen, rejected in lengths) / sum(a != b for a, b in lengths)
    assert longer == pytest.approx(longer_chosen, abs=0.02)


# --- a model from text ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hh_model() -> ModuleType:
    """scripts/hh_model as a module."""
    loader = importlib.machinery.SourceFileLoader("hh_model", str(ROOT / "scripts" / "hh_model"))
    spec = importlib.util.spec_from_loader("hh_model", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def write_hh_files(folder: Path) -> Path:
    import gzip

    folder.mkdir()
    for name in ("helpful-base", "harmless-base"):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            for number in range(40):
                start = f"\n\nHuman: What is {name} number {number}?\n\nAssistant:"
                file.write(json.dumps({"chosen": f"{start} It is {number}.", "rejected": f"{start} No idea."}) + "\n")
    return folder


SMALL = {
    "steps": 2, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "train_length": 16, "batch_size": 2,
}  # fmt: skip


def test_the_hh_model_is_built_once_and_its_chat_template_cuts_clean(
    tmp_path: Path, hh_model: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    files, out = write_hh_files(tmp_path / "hh"), tmp_path / "runs" / "model"
    assert hh_model.build(files, out, "helpful-base", SMALL)
    assert "helpful-base.jsonl.gz: 40 transcripts, held out" in capsys.readouterr().out
    weights = (out / "model.safetensors").read_bytes()
    assert not hh_model.build(files, out, "helpful-base", SMALL), "the second call finds it"
    assert hh_model.build(files, out, "helpful-base", SMALL | {"seed": 1}), "other settings, another model"
    assert hh_model.build(files, out, "helpful-base", SMALL) and (out / "model.safetensors").read_bytes() == weights

    tokenizer = AutoTokenizer.from_pretrained(out)
    turns = [Message(role="user", content="Naïve, isn't it?\n"), Message(role="assistant", content=" Yes. "),
             Message(role="user", content="漢字")]  # fmt: skip
    chat = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    whole = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": "No !"}], tokenize=False)
    response = response_ids(tokenizer, turns, "No !", (tokenizer.eos_token_id,))
    assert [*prompt_ids(tokenizer, turns), *response] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert response_text(tokenizer, response) == "No !"


def test_the_hh_model_replaces_no_folder_of_the_users(tmp_path: Path, hh_model: ModuleType) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="was not made by hh_model"):
        hh_model.build(write_hh_files(tmp_path / "hh"), tmp_path / "mine", "helpful-base", SMALL)
    with pytest.raises(UserError, match="to train on"):
        hh_model.build(tmp_path / "nowhere", tmp_path / "new", "helpful-base", SMALL)


# --- the hub example, on a tiny Qwen2 ---------------------------------------------------------------------------------

QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a BOS; a turn ends with <|im_end|> and a newline that no sampler writes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=1000, special_tokens=marks, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    ))  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = QWEN_TEMPLATE
    return fast


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random policy and a random reward model, as the Hub ships them: two EOS ids, tied embeddings, bf16 files."""
    lines = (UF_FOLDER / "eval_clean.jsonl").read_text().split("\n")[:100]
    tokenizer = qwen_tokenizer([json.loads(line)["chosen"] for line in lines])
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 24, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config.num_labels = 1
    root = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    policy, reward = Qwen2ForCausalLM(config), Qwen2ForSequenceClassification(config)
    policy.generation_config.eos_token_id = [2, 0]
    for name, model in (("policy", policy), ("reward", reward)):
        model.bfloat16().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {"policy": root / "policy", "reward": root / "reward"}


@needs_uf
def test_the_hub_example_runs_to_its_end_on_a_tiny_qwen(
    tmp_path: Path, qwen: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    overrides = [
        f"model_name_or_path={qwen['policy']}", f"labelers.rm.path={qwen['reward']}",
        f"data.prefs.path={UF_FOLDER / 'train_clean.jsonl'}", f"data.heldout.path={UF_FOLDER / 'eval_clean.jsonl'}",
        "data.prefs.split=null", "data.heldout.split=null",
        "generation.engine=transformers",
    ]  # fmt: skip
    command = ["run", str(CONFIGS / "examples" / "ultrafeedback_qwen_gpu.yaml"), *overrides, "--smoke"]
    command += ["--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["finished"]
    assert (tmp_path / "run" / "report.html").exists()
    assert "nothing to do" in CliRunner().invoke(app, command, catch_exceptions=False).output


@needs_thumbs
def test_the_thumbs_example_runs_to_its_end_on_a_tiny_qwen(tmp_path: Path, qwen: dict[str, Path]) -> None:
    """KTO on real thumbs: 300 rows of messages and a label."""
    overrides = [
        f"model_name_or_path={qwen['policy']}", f"data.prefs.path={THUMBS}", "generation.engine=transformers",
        "phases.kto.update.steps=3", "phases.sft.update.steps=2", "evaluation.num_prompts=8",
    ]  # fmt: skip
    config = load_config(str(CONFIGS / "examples" / "kto_thumbs_cpu.yaml"), overrides)
    plan = Store(tmp_path / "store")
    rounds = list(run_phases(Context(config.settings, plan, tmp_path)))
    rows = rounds[-1].artifacts["pairs/offline"]
    labels = [row.target for row in rows.read(ResponseRow, "rows")]
    assert 0.3 < sum(label == 1.0 for label in labels) / len(labels) < 0.7 and set(labels) == {0.0, 1.0}
    steps = (rounds[-1].artifacts["checkpoint"].path / "metrics.jsonl").read_text().splitlines()
    assert all("objective/kto_z0" in json.loads(line) for line in steps)


def test_rows_as_the_hub_has_them_are_read(tmp_path: Path) -> None:
    """HuggingFaceH4/ultrafeedback_binarized: prompt is text, chosen and rejected are conversations that repeat it."""

    def turns(answer: str) -> list[dict[str, str]]:
        return [{"content": "Why?", "role": "user"}, {"content": answer, "role": "assistant"}]

    row = {"prompt": "Why?", "prompt_id": "0a", "chosen": turns("So."), "rejected": turns("No."),
           "messages": turns("So."), "score_chosen": 8.5, "score_rejected": 3.0}  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    expected = SourceRow((Message(role="user", content="Why?"),), ("So.", "No."), (8.5, 3.0), is_pair=True)
    assert read_source(DataSettings(path=str(file)), leaf(file), "data.prefs") == [expected]


def test_a_template_that_refuses_a_conversation_says_which_turns() -> None:
    tokenizer = qwen_tokenizer(["a b c"])
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="refuses a conversation of user, user: roles must alternate"):
        prompt_ids(tokenizer, [Message(role="user", content="a"), Message(role="user", content="b")])
