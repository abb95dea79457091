"""Faults on a live server: the round ends with exactly the samples of an undisturbed one, none lost, none twice."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sail.core.artifacts import Artifact, leaf
from sail.core.records import Prompt, SampleGroup
from sail.core.run_settings import GenerationSettings, VllmSettings
from sail.core.store import Recipe, StageEvent, Store
from sail.generation.stage import generate
from sail.generation.vllm_engine import VllmEngine
from sail.serving.completions import CompletionRequest
from sail.serving.processes import descendants
from tests.serving.test_server import still_alive_after
from tests.serving_fixtures import SETTINGS, finished_requests, serve

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

NUM_PROMPTS, SHARD = 24, 4
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
REQUESTS = [CompletionRequest((5, 6, 3 + index), 4, 1000 * index, 200, cache_salt="v") for index in range(24)]


@pytest.fixture
def policy(tiny_policies):
    return tiny_policies["untied-a"]


@pytest.fixture
def url(policy_server, policy) -> str:
    """The session's server, with the policy in it."""
    return serve(policy_server, policy).base_url


@pytest.fixture
def undisturbed(url, policy, tmp_path) -> Artifact:
    return draw_round(Store(tmp_path / "undisturbed"), policy, SETTINGS.replace(mode="external", server_urls=(url,)))


def draw_round(store: Store, policy, settings: VllmSettings) -> Artifact:
    """The generation stage through a server elsewhere."""

    def write_prompts(workspace):
        prompts = [Prompt(f"p-{index}", (), (5, 6, 3 + index)) for index in range(NUM_PROMPTS)]
        workspace.write("train", prompts, Prompt)
        return {}

    template = store.root.with_suffix(".jinja")
    template.write_text(TEMPLATE)
    engine = VllmEngine(settings, store.root.with_suffix(".logs"))
    try:
        return generate(
            store, engine, prompts=store.build(Recipe("prompts", 1, {}, {}), write_prompts), table="train",
            policy=leaf(policy.path), settings=GenerationSettings(max_completion_length=48, shard_size=SHARD),
            engine_settings={}, num_samples=2, per_round=None, round_index=0, seed=3, chat_template=leaf(template),
        )  # fmt: skip
    finally:
        engine.close()


def groups(artifact: Artifact) -> list[SampleGroup]:
    return artifact.read(SampleGroup, "groups")


def processes(policy_server, name: str) -> list[int]:
    """The guard's processes whose command line holds `name`."""
    below = descendants(policy_server.replicas[0].server.pid)
    return [pid for pid in below if name in Path(f"/proc/{pid}/cmdline").read_text()]


@contextmanager
def flaky_proxy(url: str) -> Iterator[str]:
    script = Path(__file__).parents[1] / "flaky_proxy.py"
    command = [sys.executable, str(script), url.rpartition(":")[2]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@pytest.mark.parametrize("victim", ["Worker", "api_server"])
def test_a_killed_process_of_our_server_costs_a_restart_and_no_sample(policy_server, policy, victim):
    serve(policy_server, policy)
    expected = dict(policy_server.complete_many(REQUESTS))
    family = [policy_server.replicas[0].server.pid, *descendants(policy_server.replicas[0].server.pid)]
    starts = policy_server.num_starts
    answers = policy_server.complete_many(REQUESTS)
    drawn = [next(answers)]
    os.kill(processes(policy_server, victim)[0], signal.SIGKILL)
    drawn += answers
    assert policy_server.num_starts == starts + 1, "it was to be lost before the end"
    assert len(drawn) == len(REQUESTS) and dict(drawn) == expected
    assert still_alive_after(family, 30.0) == []
    assert policy_server.version == policy.version and policy_server.replicas[0].report.max_abs_nats < 1e-3


def test_a_server_stopped_for_longer_than_the_timeout_loses_nothing(policy_server, policy, url, undisturbed, tmp_path):
    family = descendants(policy_server.replicas[0].server.pid)

    def stop_a_while(event: StageEvent) -> None:
        if event.kind == "note" and event.text.startswith(f"{SHARD + 1} of"):
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            threading.Timer(7.0, lambda: [os.kill(pid, signal.SIGCONT) for pid in family]).start()

    settings = SETTINGS.replace(
        mode="external", server_urls=(url,), request_timeout_s=3.0, max_retries=10, concurrency=4
    )
    store = Store(tmp_path / "stopped", stop_a_while)
    assert groups(draw_round(store, policy, settings)) == groups(undisturbed)


def test_a_shard_is_committed_while_later_ones_are_still_to_be_drawn(policy_server, url, policy, tmp_path):
    client, seen = policy_server.clients[0], []
    before = finished_requests(client)

    def look(event: StageEvent) -> None:
        if event.text.startswith(f"{SHARD + 1} of"):
            shards = [path.name for path in store.root.glob("samples-*.partial/groups-*.parquet")]
            seen.append((shards, finished_requests(client) - before))

    store = Store(tmp_path / "committed", look)
    draw_round(store, policy, SETTINGS.replace(mode="external", server_urls=(url,), concurrency=2))
    [(shards, finished)] = seen
    assert shards == ["groups-00000.parquet"] and finished < 2 * NUM_PROMPTS


def test_bursts_of_5xx_and_cut_replies_change_nothing(url, policy, undisturbed, tmp_path):
    with flaky_proxy(url) as through:
        settings = SETTINGS.replace(mode="external", server_urls=(through,), max_retries=8)
        artifact = draw_round(Store(tmp_path / "flaky"), policy, settings)
    assert groups(artifact) == groups(undisturbed)


def test_a_full_disk_ends_the_stage_and_its_committed_shards_are_kept(url, policy, undisturbed, tmp_path):
    """RLIMIT_FSIZE is the kernel's own refusal in the middle of a write, as ENOSPC is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    notes = []

    def fill_up(event: StageEvent) -> None:
        notes.append(event.text)
        if event.text.startswith(f"{2 * SHARD + 1} of {NUM_PROMPTS}"):  # not when what is left is drawn
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    store = Store(tmp_path / "full", fill_up)
    settings = SETTINGS.replace(mode="external", server_urls=(url,))
    try:
        with pytest.raises(OSError, match="too large"):
            draw_round(store, policy, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    [partial] = store.root.glob("samples-*.partial")
    shards = sorted(path.name for path in partial.glob("groups-*.parquet"))
    assert shards == ["groups-00000.parquet", "groups-00001.parquet"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sail-client")], "still asking"
    artifact = draw_round(store, policy, settings)
    assert f"reusing {4 * SHARD} samples of {2 * SHARD} prompts" in notes
    assert groups(artifact) == groups(undisturbed)
    assert not list(artifact.path.glob(".*"))
