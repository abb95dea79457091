"""A user's mistake: one line that says where, what and the cure, exit code 2, and nothing half-written."""

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loops.documents import merge
from tests.loops.running import (
    NO_EVALUATION,
    Done,
    Zygote,
    committed,
    copied,
    digests,
    linked,
    run_afresh,
    small_config,
    store_of,
    write_config,
)


class Mistake(NamedTuple):
    """A change to a good config, and what the error has to name."""

    change: Mapping[str, Any]
    where: str
    what: str
    cure: str


_ONLINE = "routes.online"
REFUSED: dict[str, Mistake] = {
    "unknown key": Mistake({"update": {"learnin_rate": 1e-4}}, "update", "unknown key 'learnin_rate'", "learning_rate"),
    "unknown key at the top": Mistake({"num_round": 2}, ".yaml", "unknown key 'num_round'", "num_rounds"),
    "wrong type": Mistake({"update": {"steps": "many"}}, "update.steps", "'many'", "integer"),
    "out of range": Mistake({"generation": {"temperature": 0}}, "generation.temperature", "0", "greater than 0"),
    "missing data file": Mistake(
        {"data": {"prefs": {"path": "nowhere/prefs.jsonl"}}}, "data.prefs.path", "nowhere/prefs.jsonl", "Check the path"
    ),
    "missing model": Mistake(
        {"model_name_or_path": "./nowhere/model"}, "model_name_or_path", "'./nowhere/model'", "Check the path"
    ),
    "unknown data source": Mistake(
        {"prompts": {"from": "promts"}}, "prompts.from", "unknown name 'promts'", "Did you mean 'prompts'"
    ),
    "unknown labeler": Mistake(
        {"routes": {"online": {"labels": "rn"}}}, f"{_ONLINE}.labels", "unknown name 'rn'",
        "Known: gold, heldout, none, order, policy, prefs, prompts, rm",
    ),
    "labeler that does not exist": Mistake(
        {"labelers": {"gold": {"path": "sail.testbed.gold:humpp"}}}, "labelers.gold.path", "'humpp'", "correct the name"
    ),
    "two origins of a reward model": Mistake(
        {"labelers": {"rm": {"path": "x"}}}, "labelers.rm", "exactly one of path", "fit"
    ),
    "wrong type of a loss parameter": Mistake({"loss": {"beta": "much"}}, ".yaml: loss.beta: ", "'much'", "number"),
    "wrong key in a route": Mistake(
        {"routes": {"online": {"num_generations": 0}}}, ".yaml: routes.online.num_generations: ", "0", "greater than"
    ),
    "unknown preset": Mistake({"preset": "sail-rp"}, "preset", "no preset 'sail-rp'", "Did you mean 'sail-pr'"),
    "unknown engine": Mistake(
        {"generation": {"engine": "transformer"}}, "generation.engine", "'transformer'", "Did you mean 'transformers'"
    ),
    "unknown loss": Mistake({"loss": {"type": "dpoo"}}, "loss.type", "'dpoo'", "Use one of dpo"),
    "loss parameter that does not exist": Mistake(
        {"loss": {"betta": 0.1}}, "loss", "loss 'dpo' has no parameter 'betta'", "Did you mean 'beta'"
    ),
    "shares above 1": Mistake(
        {"routes": {"offline": {"share": 0.7}, "online": {"share": 0.5}}}, "routes", "shares sum to 1.2", "sum to 1"
    ),
    "shares below 1": Mistake(
        {"routes": {"offline": {"share": 0.2}, "online": {"share": 0.5}}}, "routes", "shares sum to 0.7", "share: rest"
    ),
    "best_worst with sail_coef": Mistake(
        {"routes": {"online": {"keep": "best_worst", "num_generations": 4}}}, _ONLINE, "no draw from the policy",
        "Set sail_coef: 0",
    ),
    "top_p with sail_coef": Mistake(
        {"generation": {"top_p": 0.9}}, _ONLINE, "truncated support", "top_p: 1"
    ),
    "own soft labels without sail_coef": Mistake(
        {"routes": {"online": {"labels": {"by": "policy", "mode": "soft"}, "sail_coef": 0}}}, _ONLINE,
        "gradient is exactly zero", "Set sail_coef > 0",
    ),
    "frozen labels of the reference": Mistake(
        {"routes": {"online": {"labels": {"by": "policy", "mode": "hard", "when": "frozen"}}}}, _ONLINE,
        "every pair is a tie", "when: fresh",
    ),
    "policy labels by a loss without a link": Mistake(
        {"loss": {"type": "slic"}, "routes": {"online": {"labels": {"by": "policy"}}}}, _ONLINE, "slic has none", "dpo"
    ),
    "dataset labels on samples": Mistake(
        {"routes": {"online": {"labels": "prefs"}}}, f"{_ONLINE}.labels", "verdicts on its own pairs only",
        "Label by a labeler",
    ),
    "no rounds for samples": Mistake({"num_rounds": 0}, "num_rounds", "needs rounds", "num_rounds: 1"),
    "[brackets] in a name": Mistake(
        {"preset": "[bold]sail-pr[/]"}, "preset", "no preset '[bold]sail-pr[/]'", "sail-pr"
    ),
}  # fmt: skip


def assert_one_clear_line(done: Done, where: str, what: str, cure: str) -> None:
    assert done.returncode == 2, done.err
    assert "Traceback" not in done.err and "Traceback" not in done.out
    for part in (where, what, cure):
        assert part in done.error


def assert_nothing_written(folder: Path, known: set[str]) -> None:
    assert {path.name for path in folder.iterdir()} == known


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_refused_before_anything_is_written(
    name: str, testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    mistake = REFUSED[name]
    config = write_config(tmp_path / "c.yaml", merge(small_config(testbed), mistake.change))
    for command in ("run", "plan"):
        done = sail.run(command, config, "--out", tmp_path / "runs" / "r", cwd=tmp_path)
        assert_one_clear_line(done, mistake.where, mistake.what, mistake.cure)
        assert len(done.err.splitlines()) == 1
        assert_nothing_written(tmp_path, {"c.yaml"})


def test_the_config_all_mistakes_start_from_is_a_good_one(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", small_config(testbed))
    assert sail.run("plan", config, cwd=tmp_path).returncode == 0


def test_a_missing_config_is_named(sail: Zygote, tmp_path: Path) -> None:
    done = sail.run("run", "nowhere.yaml", cwd=tmp_path)
    assert_one_clear_line(done, "", "no such config: 'nowhere.yaml'", "sail-pr")
    assert_nothing_written(tmp_path, set())


def test_broken_yaml_is_named_with_its_line(sail: Zygote, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("preset: [sail-pr\n")
    done = sail.run("run", "c.yaml", cwd=tmp_path)
    assert_one_clear_line(done, "c.yaml", "no valid YAML", "Mend the file")
    assert "line" in done.error and len(done.err.splitlines()) == 1
    assert_nothing_written(tmp_path, {"c.yaml"})


def test_an_override_without_a_value_is_named(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", small_config(testbed))
    done = sail.run("run", config, "seed", cwd=tmp_path)
    assert_one_clear_line(done, "overrides", "'seed'", "routes.online.share=0.5")


@pytest.mark.parametrize("place", ["taken", "taken/below", "/proc/run"])
def test_a_place_that_takes_no_run_is_named(place: str, testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", small_config(testbed))
    (tmp_path / "taken").touch()
    done = sail.run("run", config, "--out", place, cwd=tmp_path)
    assert_one_clear_line(done, "--out", f"{place}' is no folder to write into", "Give another one")
    assert_nothing_written(tmp_path, {"c.yaml", "taken"})


def test_a_place_that_takes_no_config_is_named(sail: Zygote, tmp_path: Path) -> None:
    done = sail.run("init", "sail-pr", "--out", "missing/x.yaml", cwd=tmp_path)
    assert_one_clear_line(done, "--out", "'missing/x.yaml' cannot be written", "Check the folder")


def test_a_fresh_process_says_the_same(testbed: Path, tmp_path: Path) -> None:
    mistake = REFUSED["unknown labeler"]
    config = write_config(tmp_path / "c.yaml", merge(small_config(testbed), mistake.change))
    done = run_afresh("run", config, cwd=tmp_path)
    assert_one_clear_line(done, mistake.where, mistake.what, mistake.cure)
    assert len(done.err.splitlines()) == 1


_WITHOUT_VLLM = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "vllm" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


def test_a_machine_without_vllm_is_told_what_to_install(testbed: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_WITHOUT_VLLM)
    config = write_config(tmp_path / "c.yaml", merge(small_config(testbed), {"generation": {"engine": "vllm"}}))
    done = run_afresh("run", config, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")})
    assert_one_clear_line(done, "generation.engine", "vllm is not installed", "pip install 'sail-align[vllm]'")
    assert "generation.engine: transformers" in done.error and len(done.err.splitlines()) == 1
    assert_nothing_written(tmp_path, {"c.yaml", "site"})


def test_a_taken_port_is_named_before_hours_of_work(testbed: Path, sail: Zygote, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        change = {"generation": {"engine": "vllm"}, "vllm": {"port": port}}
        config = write_config(tmp_path / "c.yaml", merge(small_config(testbed), change))
        done = sail.run("run", config, cwd=tmp_path)
    assert_one_clear_line(done, "vllm.port", f"port {port} cannot be used", "vllm.port=0")
    assert len(done.err.splitlines()) == 1
    assert_nothing_written(tmp_path, {"c.yaml"})


def _no_rows(testbed: Path, folder: Path) -> Mapping[str, Any]:
    (folder / "empty.jsonl").write_text("")
    return {"data": {"prompts": {"path": "empty.jsonl"}}}


def _long_prompt(testbed: Path, folder: Path) -> Mapping[str, Any]:
    rows = [{"prompt": "film in paris on monday"}, {"prompt": " ".join(["film"] * 300)}]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data": {"prompts": {"path": "long.jsonl"}}}


def _no_room_to_answer(testbed: Path, folder: Path) -> Mapping[str, Any]:
    return {"generation": {"max_completion_length": 125}}


def _no_prompt_column(testbed: Path, folder: Path) -> Mapping[str, Any]:
    (folder / "odd.jsonl").write_text(json.dumps({"question": "film in paris on monday"}) + "\n")
    return {"data": {"prompts": {"path": "odd.jsonl"}}}


def _no_json(testbed: Path, folder: Path) -> Mapping[str, Any]:
    (folder / "broken.jsonl").write_text('{"prompt": "film in paris on monday"}\n{"prompt": \n')
    return {"data": {"prompts": {"path": "broken.jsonl"}}}


def _no_template(testbed: Path, folder: Path) -> Mapping[str, Any]:
    model = copied(testbed / "sft", folder / "model")
    (model / "chat_template.jinja").unlink()
    return {"model_name_or_path": "model"}


# name -> what makes it, where, what, cure, and the stages that may have been committed before it shows
FOUND_IN_A_STAGE: dict[str, tuple[Callable[[Path, Path], Mapping[str, Any]], Mistake, set[str]]] = {
    "empty dataset": (_no_rows, Mistake({}, "data.prompts", "holds no rows", "Check path"), {"data"}),
    "prompt longer than the context": (
        _long_prompt, Mistake({}, "data.prompts, row 1", "the context is 128", "overlong: drop"), {"data"}
    ),
    "no room for a response": (
        _no_room_to_answer,
        Mistake({}, "generation.max_completion_length", "passes the model's context of 128", "Lower it"),
        {"data", "prompts", "pairs", "logps"},
    ),
    "no prompt column": (
        _no_prompt_column, Mistake({}, "data.prompts, row 0", "no column 'prompt'", "columns: {prompt:"), {"data"}
    ),
    "no JSON": (
        _no_json, Mistake({}, "data.prompts", "broken.jsonl' is no valid JSON: Expecting", "Mend or remove"), {"data"}
    ),
    "tokenizer without a chat template": (
        _no_template, Mistake({}, "model_name_or_path", "no chat template", "Set chat_template"), set()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND_IN_A_STAGE)
def test_a_mistake_in_the_data_commits_nothing_of_its_stage(
    name: str, testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    make, mistake, stages_before = FOUND_IN_A_STAGE[name]
    settings = small_config(testbed, evaluation=NO_EVALUATION)
    config = write_config(tmp_path / "c.yaml", merge(settings, make(testbed, tmp_path)))
    out = tmp_path / "runs" / "r"
    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert_one_clear_line(done, mistake.where, mistake.what, mistake.cure)
    assert {artifact.stage for artifact in committed(store_of(out)).values()} <= stages_before
    assert not list(store_of(out).glob("*.partial"))
    assert not linked(out)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_step_checkpoints(
    testbed: Path, sail: Zygote, tmp_path: Path
) -> None:
    settings = small_config(testbed, evaluation=NO_EVALUATION)
    settings["update"] |= {"learning_rate": 1e25, "steps": 8}
    config, out = write_config(tmp_path / "c.yaml", settings), tmp_path / "runs" / "r"
    done = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert_one_clear_line(done, "update", "not finite", "Lower update.learning_rate")
    assert "checkpoint" not in {artifact.stage for artifact in committed(store_of(out)).values()}
    (step,) = store_of(out).glob("checkpoint-*.partial/scratch/step-*")
    assert {path.name for path in step.iterdir()} == {"policy", "position.json"}
    assert {path.name for path in (step / "policy").iterdir()} == {"weights.safetensors", "optimizer.pt"}

    kept = digests(store_of(out))
    again = sail.run("run", config, "--out", out, cwd=tmp_path)
    assert again.returncode == 2 and f"resuming at step {int(step.name.removeprefix('step-'))}" in again.out
    assert digests(store_of(out)) == kept
