"""New weights in a running server: they arrive, and where they would not, the check says so."""

import shutil
from dataclasses import replace

import pytest

from sail.serving.client import CompletionRequest
from sail.serving.errors import ServerError, WeightSyncError
from sail.serving.model_files import ModelDirError
from sail.serving.probes import probes_for
from sail.serving.verification import verify_weights
from sail.serving.weight_sync import WAYS
from sail.serving.weight_transfer import ControlPlane
from tests.serving_fixtures import CONTEXT, serve, served

pytestmark = pytest.mark.vllm
PROMPT = (5, 17, 4, 201, 33)


def verify(client, policy, score=None):
    probes = probes_for(policy.path, client.max_model_len)
    return verify_weights(client, policy.version, probes, score or policy.score, tolerance_nats=1e-3)


def reload(policy_server, client, policy):
    WAYS["reload from disk"].apply(served(policy), policy_server.replicas[0].held, client)


def check_that_new_weights_arrive(policy_server, old, new):
    serve(policy_server, old)
    starts = policy_server.num_starts
    client = serve(policy_server, new)
    assert policy_server.num_starts == starts, "this was to be a reload, not a restart"
    [sample] = client.complete(CompletionRequest(PROMPT, 1, 0, 32, temperature=0.0, cache_salt=new.version))
    assert list(sample.token_ids) == new.logits(PROMPT, sample.token_ids).argmax(-1).tolist()
    assert sample.logprobs == pytest.approx(new.score(PROMPT, sample.token_ids), abs=1e-3)
    report = policy_server.replicas[0].report
    assert report.max_abs_nats < 1e-3 and report.greedy_equal and report.num_tokens >= 8
    [state] = client.collective_rpc("sail_state")
    assert state.pop("num_changes") > 0
    assert state == {"version": new.version, "dtype": "float32", "takes_adapters": True, "transfer": None}


def test_an_untied_model_samples_as_the_trainer_does(policy_server, tiny_policies):
    check_that_new_weights_arrive(policy_server, tiny_policies["untied-a"], tiny_policies["untied-b"])


def test_the_check_fails_against_another_trainer(policy_server, tiny_policies):
    client = serve(policy_server, tiny_policies["untied-a"])
    with pytest.raises(WeightSyncError, match="differ by"):
        verify(client, tiny_policies["untied-a"], score=tiny_policies["untied-b"].score)


def test_a_reload_that_fails_in_the_worker_is_mended_by_a_restart(policy_server, tiny_policies, tmp_path):
    client = serve(policy_server, tiny_policies["untied-a"])
    starts = policy_server.num_starts
    with pytest.raises(ServerError, match="HTTP 500"):
        client.collective_rpc("sail_reload", weights_path=str(tmp_path / "nowhere"), version="x")
    assert client.health(), "the trap: it calls itself healthy"
    other = tiny_policies["tied-a"]
    with pytest.raises(WeightSyncError, match="other tensors"):
        WAYS["reload from disk"].prepare(served(other), policy_server.replicas[0].held)
    mended = serve(policy_server, other)
    assert policy_server.num_starts == starts + 1 and policy_server.replicas[0].report.max_abs_nats < 1e-3
    assert mended.max_model_len == CONTEXT


def test_a_tied_model_samples_as_the_trainer_does(policy_server, tiny_policies):
    check_that_new_weights_arrive(policy_server, tiny_policies["tied-a"], tiny_policies["tied-b"])


def test_the_check_finds_a_tied_model_reloaded_without_the_repack(policy_server, tiny_policies):
    old, new = tiny_policies["tied-a"], tiny_policies["tied-b"]
    client = serve(policy_server, old)
    client.collective_rpc("reload_weights", weights_path=str(new.path))  # vLLM's own, without sail_reload's repack
    client.reset_prefix_cache()
    with pytest.raises(WeightSyncError, match="differ by"):
        verify(client, new)
    reload(policy_server, client, old)
    verify(client, old)


def test_the_check_finds_a_stale_prefix_cache(policy_server, tiny_policies):
    old, new = tiny_policies["tied-a"], tiny_policies["tied-b"]
    client = serve(policy_server, old)
    client.collective_rpc("sail_reload", weights_path=str(new.path), version=new.version)  # and no reset
    with pytest.raises(WeightSyncError, match="differ by"):
        verify(client, new)
    client.reset_prefix_cache()
    verify(client, new)
    reload(policy_server, client, old)


def test_a_broken_directory_is_refused_and_the_server_goes_on(policy_server, tiny_policies, tmp_path):
    old, new = tiny_policies["tied-a"], tiny_policies["tied-b"]
    client = serve(policy_server, old)
    broken = tmp_path / "half-written"
    shutil.copytree(new.path, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    starts = policy_server.num_starts
    with pytest.raises(ModelDirError, match="its header promises"):
        policy_server.serve(replace(served(new, version="broken"), model_dir=broken))
    assert (policy_server.num_starts, policy_server.version) == (starts, old.version)
    verify(client, old)


def test_sleep_and_wake_are_answered_and_change_no_sample(policy_server, tiny_policies):
    """On CPU vLLM answers and does nothing; on a GPU the weights move."""
    client = serve(policy_server, tiny_policies["untied-a"])
    request = CompletionRequest(PROMPT, 2, 11, 32, cache_salt="untied-a")
    before = client.complete(request)
    client.sleep()
    client.wake_up()
    client.reset_prefix_cache()
    assert client.complete(request) == before


def test_a_server_started_without_weight_transfer_says_so_and_goes_on(policy_server, tiny_policies):
    client = serve(policy_server, tiny_policies["untied-a"])
    before = verify(client, tiny_policies["untied-a"])
    with pytest.raises(ServerError, match="HTTP 500"):
        ControlPlane(client).init_weight_transfer_engine({"packed": True})
    assert verify(client, tiny_policies["untied-a"]) == before
