"""What has to be equal: to the bit where the arithmetic is the same, to 1e-6 where a loop written here is the judge."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loops.config import load_config
from loops.context import Context
from sail.core.artifacts import Artifact
from sail.core.run_settings import RunSettings
from sail.core.store import Store
from sail.policy.loading import resolve_model
from sail.policy.rows import Row
from sail.update.batches import batch_indices, exact_shares
from sail.update.inputs import UpdateInputs
from sail.update.items import Item, RouteInput, RowSource, Side, load_items
from sail.update.stage import update
from tests.loops.running import (
    NO_EVALUATION,
    Zygote,
    committed,
    copied,
    linked,
    small_config,
    store_of,
    weights,
    write_config,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


Train = Callable[..., Path]


@pytest.fixture
def train(testbed: Path, sail: Zygote, tmp_path: Path) -> Train:
    """One round of the small config with overrides, in a store that the runs of a test share; returns the run."""
    settings = small_config(testbed, evaluation=NO_EVALUATION, num_rounds=1, hygiene={"identical": "keep"})
    config = write_config(tmp_path / "c.yaml", settings)

    def run(name: str, *overrides: str) -> Path:
        out = tmp_path / "runs" / name
        done = sail.run("run", config, *overrides, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.err
        return out

    return run


def test_online_share_0_is_offline_dpo_bit_for_bit(train: Train) -> None:
    online = train("share-0", "routes.online.share=0")
    offline = train("offline", "preset=dpo", "num_rounds=0", "routes={offline: {responses: prefs, labels: prefs}}",
                    "update.lr_scheduler_type=constant")  # fmt: skip
    assert weights(online) == weights(offline)
    assert _metrics(online) == _metrics(offline)
    assert not [name for name in linked(online) if "samples" in name], "share 0 samples nothing"
    assert weights(train("share-half")) != weights(offline)


_PLAIN = ("routes.online.sail_coef=0", "importance_sampling.mode=none", "routes.online.labels.mode=hard")


def test_sail_coef_0_is_the_run_without_the_extra_terms_bit_for_bit(train: Train) -> None:
    """The preset iterative-dpo knows no SAIL term; of two samples, best against worst is the pair itself."""
    sail_0 = train("sail-0", *_PLAIN, "routes.offline.share=0", "routes.online.share=1")
    iterative = train(
        "iterative", "preset=iterative-dpo", "routes={online: {num_generations: 2, share: 1}}", "num_rounds=1",
        "update.lr_scheduler_type=constant", "hygiene.ties=keep", "hygiene.truncated=keep", "hygiene.empty=keep",
    )  # fmt: skip
    no_baseline = train(
        "no-baseline", *_PLAIN, "routes.offline.share=0", "routes.online.share=1", "update.baseline=none"
    )
    assert weights(sail_0) == weights(iterative) == weights(no_baseline)
    assert linked(sail_0)["rounds/000/samples/online"] == linked(iterative)["rounds/000/samples/online"]
    with_terms = train("sail", "importance_sampling.mode=none", "routes.online.labels.mode=hard",
                       "routes.offline.share=0", "routes.online.share=1")  # fmt: skip
    assert weights(with_terms) != weights(sail_0)


_ADAM_EPSILON = 1e-4  # at 1e-8 AdamW blows the rounding of near-zero gradients up to 1e-6 of a weight


@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_sail_coef_0_is_online_dpo_as_written_here(train: Train, mode: str, testbed: Path) -> None:
    """Half offline, half online pairs: also the proof that every response is trained under its own prompt."""
    out = train(
        "run", "routes.online.sail_coef=0", "importance_sampling.mode=none", f"routes.online.labels.mode={mode}",
        f"update.adam_epsilon={_ADAM_EPSILON}",
    )  # fmt: skip
    expected = plain_dpo(testbed / "sft", out)
    trained = load_file(out / "rounds/000/checkpoint/model/model.safetensors")
    before = load_file(testbed / "sft/model.safetensors")
    moved = max(float((trained[name] - before[name]).abs().max()) for name in trained)
    worst = max(float((trained[name] - expected[name].detach()).abs().max()) for name in trained)
    assert moved > 1e-4, "the update moves weights, so agreement says something"
    assert worst < 1e-6

    crossed = plain_dpo(testbed / "sft", out, prompt_of=lambda index, prompts: prompts[index - 1])
    assert max(float((trained[name] - crossed[name].detach()).abs().max()) for name in trained) > 1e-5


def plain_dpo(
    model_folder: Path,
    out: Path,
    prompt_of: Callable[[int, list[list[int]]], list[int]] = lambda index, prompts: prompts[index],
) -> dict[str, torch.Tensor]:
    """Four AdamW steps of DPO on the run's stored pairs, from the raw tables, one response a forward pass."""
    settings = load_config(str(out.parent.parent / "c.yaml")).settings
    run = Context(settings, Store(out.parent / "unused"), out).seed("update")
    steps, size, peak, beta = 4, 8, 5e-4, 0.1
    policy = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=peak, betas=(0.9, 0.95), eps=_ADAM_EPSILON, weight_decay=0.0)
    routes = {"offline": _raw_pairs(out, "offline", prompt_of), "online": _raw_pairs(out, "online", prompt_of)}
    shares = exact_shares({"offline": "rest", "online": 0.5})
    for step in range(steps):
        sizes = {name: len(pairs) for name, pairs in routes.items()}
        chosen = batch_indices(step, shares, sizes, size, run, 0)
        optimizer.zero_grad()
        for name, indices in chosen.items():
            for index in indices:
                prompt, a, b, p_a = routes[name][index]
                with torch.no_grad():
                    constant = log_prob(reference, prompt, a) - log_prob(reference, prompt, b)
                margin = beta * (log_prob(policy, prompt, a) - log_prob(policy, prompt, b) - constant)
                loss = -p_a * torch.nn.functional.logsigmoid(margin)
                loss = loss - (1 - p_a) * torch.nn.functional.logsigmoid(-margin)
                (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        warmup = math.ceil(0.1 * steps)
        rate = peak * (step + 1) / (warmup + 1) if step < warmup else peak
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return dict(policy.named_parameters())


def log_prob(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[range(len(response)), response].double().sum()


def _raw_pairs(
    out: Path, route: str, prompt_of: Callable[[int, list[list[int]]], list[int]]
) -> list[tuple[list[int], list[int], list[int], float]]:
    """(prompt, A, B, p_a) of every pair, straight from the Parquet files."""
    folder = (out / "rounds" / "000" / "pairs" / route).resolve()
    responses = committed(store_of(out))[folder.name].manifest()["inputs"]["responses"]
    groups = [row for part in sorted((store_of(out) / responses).glob("groups*.parquet")) for row in _rows(part)]
    prompts = {group["prompt"]["prompt_id"]: group["prompt"]["token_ids"] for group in groups}
    tokens = {sample["response_id"]: sample["token_ids"] for group in groups for sample in group["samples"]}
    pairs = _rows(folder / "pairs.parquet")
    ordered = [prompts[pair["prompt_id"]] for pair in pairs]
    return [
        (prompt_of(index, ordered), tokens[pair["a_id"]], tokens[pair["b_id"]], pair["p_a"])
        for index, pair in enumerate(pairs)
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _metrics(out: Path) -> str:
    return (out / "rounds/000/checkpoint/metrics.jsonl").read_text()


def test_items_are_joined_by_id_whatever_the_order_of_the_tables(train: Train, tmp_path: Path) -> None:
    run = train("run")
    stored, shuffled = committed(store_of(run)), _shuffled_store(store_of(run), tmp_path / "shuffled")
    for route in ("offline", "online"):
        expected = _items(_route(run, route, stored))
        other = _route(run, route, shuffled)
        assert {item.item_id: item for item in _items(other)} == {item.item_id: item for item in expected}
        assert [item.item_id for item in _items(other)] != [item.item_id for item in expected], "pairs were shuffled"
    assert _zipped(_route(run, "online", stored)) == _items(_route(run, "online", stored))
    by_position = {item.item_id: item for item in _zipped(_route(run, "online", shuffled))}
    assert by_position != {item.item_id: item for item in _items(_route(run, "online", stored))}


def test_an_update_on_shuffled_responses_and_log_probs_has_the_same_weights(train: Train, tmp_path: Path) -> None:
    run = train("run")
    settings = load_config(str(tmp_path / "c.yaml")).settings
    stored = committed(store_of(run))
    shuffled = _shuffled_store(store_of(run), tmp_path / "shuffled", keep=("pairs",))
    for artifacts, name in ((stored, "as-stored"), (shuffled, "shuffled")):
        routes = tuple(_route(run, route, artifacts) for route in ("offline", "online"))
        made = update(Store(tmp_path / name), _update_inputs(settings, routes, run))
        assert (made.path / "model/model.safetensors").read_bytes() == weights(run), name


def _update_inputs(settings: RunSettings, routes: tuple[RouteInput, ...], run: Path) -> UpdateInputs:
    (phase,) = settings.phases
    return UpdateInputs(
        start=resolve_model(settings.model_name_or_path), routes=routes, settings=phase.update,
        importance=phase.importance_sampling, seed=Context(settings, Store(run), run).seed("update"), round_index=0,
        keep_optimizer=True,
    )  # fmt: skip


def _shuffled_store(store: Path, to: Path, keep: tuple[str, ...] = ()) -> dict[str, Artifact]:
    """A copy whose tables have their rows, and whose groups have their samples, in another order."""
    order = np.random.default_rng(0)
    for path in sorted(copied(store, to).rglob("*.parquet")):
        if not path.parent.name.startswith(keep or ("none",)):
            table = pq.read_table(path)
            rows = [table.slice(int(index), 1).to_pylist()[0] for index in order.permutation(len(table))]
            for row in rows:
                if "samples" in row:
                    row["samples"] = row["samples"][::-1]
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return committed(to)


def _route(run: Path, name: str, artifacts: Mapping[str, Artifact]) -> RouteInput:
    """A route as the run's update had it, from the manifest of its checkpoint."""
    settings = load_config(str(run.parent.parent / "c.yaml")).settings.phases[0]
    inputs = artifacts[linked(run)["rounds/000/checkpoint"]].manifest()["inputs"]
    parts = {part: artifacts[id] for part in ("responses", "rows", "reference", "behavior")
             if (id := inputs.get(f"{name}/0/{part}"))}  # fmt: skip
    source = RowSource(parts["responses"], parts["rows"], parts["reference"], parts.get("behavior"))
    return RouteInput(name, settings.routes[name], settings.loss, (source,))


def _items(route: RouteInput) -> list[Item]:
    """Items with nan, which equals nothing, replaced."""
    return [replace(item, sides=tuple(map(_comparable, item.sides))) for item in load_items(route)]


def _comparable(side: Side) -> Side:
    row = Row(tuple(side.row.prompt_ids), tuple(side.row.response_ids))
    return replace(side, row=row, behavior_logp=0.0 if math.isnan(side.behavior_logp) else side.behavior_logp)


def _zipped(route: RouteInput) -> list[Item]:
    """What an implementation that pairs tables by position would make: one pair a group, two log-probs a pair."""
    (source,) = route.sources
    assert source.reference_logps is not None and source.behavior_logps is not None
    groups = [row for part in sorted(source.responses.path.glob("groups*.parquet")) for row in _rows(part)]
    tables = [_rows(logps.path / "logps.parquet") for logps in (source.reference_logps, source.behavior_logps)]
    items = []
    for index, (group, pair) in enumerate(zip(groups, _rows(source.rows.path / "pairs.parquet"), strict=True)):
        sides = tuple(
            Side(
                Row(tuple(group["prompt"]["token_ids"]), tuple(sample["token_ids"])),
                *(table[2 * index + number]["logp"] for table in tables), from_policy=True,
            )
            for number, sample in enumerate(group["samples"])
        )  # fmt: skip
        items.append(Item(pair["pair_id"], sides, pair["p_a"], pair["draw"], pair["source"] == "fresh"))
    return items
