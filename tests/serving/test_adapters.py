"""LoRA policies: the adapter is loaded beside the whole model, by version, and the server samples from it."""

import json
import shutil
from dataclasses import replace

import pytest

from sail.core.artifacts import Leaf, leaf
from sail.core.run_settings import LoraSettings
from sail.generation.vllm_engine import VllmEngine
from sail.serving.client import CompletionRequest
from sail.serving.errors import WeightSyncError
from sail.serving.model_files import ModelDirError
from sail.serving.probes import probes_for
from sail.serving.replica import SYNC_LOG
from sail.serving.verification import verify_weights
from tests.serving_fixtures import LORA_RANK, SETTINGS, make_tiny_adapter, serve

pytestmark = pytest.mark.vllm
PROMPT = (5, 17, 4, 201, 33)


@pytest.fixture(scope="module")
def adapters(tiny_policies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    return [make_tiny_adapter(folder / f"v{seed}", tiny_policies["tied-a"], seed=seed) for seed in range(5)]


@pytest.fixture
def base(policy_server, tiny_policies):
    """The whole model of the adapters, being served."""
    return serve(policy_server, tiny_policies["tied-a"])


def draw(client, version):
    return client.complete(CompletionRequest(PROMPT, 4, 7, 32, cache_salt=version))


def last_sync(log_dir):
    return json.loads((log_dir / SYNC_LOG).read_text().splitlines()[-1])


def test_a_lora_policy_served_by_hot_load_gives_the_trainers_log_probs_over_five_versions(
    policy_server, base, adapters
):
    starts, drawn = policy_server.num_starts, set()
    for adapter in adapters:
        policy_server.serve(adapter.served())
        [client] = policy_server.clients
        samples = draw(client, adapter.version)
        for sample in samples:
            assert sample.logprobs == pytest.approx(adapter.score(PROMPT, sample.token_ids), abs=1e-3)
        drawn.add(samples[0].token_ids)
        told = last_sync(policy_server.replicas[0].log_dir)
        assert (told["version"], told["way"]) == (adapter.version, "load adapter")
        assert told["max_abs_nats"] < 1e-3 and set(told["quantiles"]) == {"0.5", "0.9", "0.99"}
        assert client.adapters() == [adapter.version], "older versions are gone"
    assert policy_server.num_starts == starts and len(drawn) == len(adapters), "no restart, five policies"


def test_the_whole_model_is_served_again_after_an_adapter_without_a_reload(
    policy_server, base, adapters, tiny_policies
):
    before = draw(base, "v")
    policy_server.serve(adapters[0].served())
    client = serve(policy_server, tiny_policies["tied-a"])
    assert last_sync(policy_server.replicas[0].log_dir)["way"] == "load adapter"
    assert draw(client, "v") == before and client.adapters() == []


def test_an_adapter_of_another_model_reloads_that_model_first(policy_server, adapters, tiny_policies):
    serve(policy_server, tiny_policies["tied-b"])
    starts = policy_server.num_starts
    policy_server.serve(adapters[1].served())
    assert last_sync(policy_server.replicas[0].log_dir)["way"] == "reload from disk"
    assert policy_server.num_starts == starts


def test_changed_bytes_under_a_name_in_use_are_stale_and_a_version_of_its_own_is_not(
    policy_server, base, adapters, tmp_path
):
    def verify(name):
        client = base.asking_for(name, adapters[1].served().eos_ids)
        probes = probes_for(adapters[1].base.path, client.max_model_len)
        verify_weights(client, name, probes, adapters[1].score, tolerance_nats=1e-3)

    folder = shutil.copytree(adapters[0].path, tmp_path / "adapter")
    base.load_adapter("in-place", str(folder))
    with pytest.raises(WeightSyncError, match="differ by"):
        verify("in-place")  # and the prefix cache now holds the probes under this adapter
    shutil.copytree(adapters[1].path, folder, dirs_exist_ok=True)
    body = {"lora_name": "in-place", "lora_path": str(folder), "load_inplace": True}
    base._exchange.done("POST", "/v1/load_lora_adapter", body)
    with pytest.raises(WeightSyncError, match="differ by"):
        verify("in-place")
    policy_server.serve(adapters[1].served())
    assert draw(policy_server.clients[0], "v1")[0].logprobs == pytest.approx(
        adapters[1].score(PROMPT, draw(policy_server.clients[0], "v1")[0].token_ids), abs=1e-3
    )


def test_a_half_written_adapter_is_refused_and_the_server_goes_on(policy_server, base, adapters, tmp_path):
    policy_server.serve(adapters[0].served())
    folder = shutil.copytree(adapters[1].path, tmp_path / "half")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    broken = make_served(adapters[1], folder, "half")
    with pytest.raises(ModelDirError, match="its header promises"):
        policy_server.serve(broken)
    assert policy_server.version == adapters[0].version and draw(policy_server.clients[0], "v")


def test_wrong_weights_never_give_a_sample(policy_server, base, adapters):
    """A trainer that disagrees: every way fails, the restart too, and there is nobody left to ask."""
    wrong = make_served(adapters[0], adapters[1].path, "wrong")
    with pytest.raises(WeightSyncError, match="load adapter: version wrong: server and trainer differ by"):
        policy_server.serve(wrong)
    assert policy_server.policy is None
    with pytest.raises(AssertionError, match="serve"):
        next(policy_server.complete_many([CompletionRequest(PROMPT, 1, 7, 8)]))


def test_an_adapter_may_be_merged_into_a_copy_instead(policy_server, base, adapters, tiny_policies, tmp_path):
    """For models whose adapters vLLM cannot load. Verified against the adapter as the trainer has it."""
    settings = SETTINGS.replace(mode="external", server_urls=(base.base_url,), lora="merge")
    engine = VllmEngine(settings, tmp_path, LoraSettings(r=LORA_RANK))
    engine.use(leaf(adapters[2].path))
    told = last_sync(tmp_path)
    assert told["way"] == "reload from disk" and told["max_abs_nats"] < 1e-3
    assert list((tmp_path / "merged").glob("*/model.safetensors"))
    engine.use(leaf(tiny_policies["tied-a"].path))  # what the session's server is taken to hold
    engine.close()
    assert not (tmp_path / "merged").exists()


def test_a_resumed_run_calls_the_base_of_its_adapter_as_the_run_before_did(base, adapters, tiny_policies, tmp_path):
    """A Hub model is called by its commit, and its folder's content would be another name: all weights anew."""
    settings = SETTINGS.replace(mode="external", server_urls=(base.base_url,))
    start, adapter = Leaf(tiny_policies["tied-a"].path, "c0mm1t"), leaf(adapters[2].path)
    for attempt, policies in {"fresh": (start, adapter), "resumed": (adapter,)}.items():
        engine = VllmEngine(settings, tmp_path / attempt, LoraSettings(r=LORA_RANK))
        engine.remember(start)
        for policy in policies:
            engine.use(policy)
        engine.close()
        assert last_sync(tmp_path / attempt)["way"] == "load adapter", attempt


def make_served(adapter, folder, version):
    return replace(adapter.served(), adapter_dir=folder, version=version)
