"""What tests of all packages share in a session: a tiny testbed, `sail` as processes, one vLLM server.

Nothing heavy is imported before a fixture is used, so that a single light test still starts at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from sail.serving.policy_server import PolicyServer
    from tests.loops.running import Zygote
    from tests.serving_fixtures import TinyPolicy

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes: one has all of the vLLM server, a file's others stay together."""
    for item in items:
        served = item.get_closest_marker("vllm")
        item.add_marker(pytest.mark.xdist_group("vllm" if served else str(item.path)))


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The controlled task (python -m sail.testbed), small: sft/, prefs.jsonl, prefs_heldout.jsonl, prompts.jsonl."""
    from sail.testbed.build import build_testbed
    from sail.testbed.settings import BuildSettings

    settings = BuildSettings(
        num_labels=96, num_heldout=24, num_prompts=96, num_demonstrations=64,
        pretrain_steps=80, sft_steps=30, batch_size=32,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("testbed") / "testbed"
    build_testbed(folder, settings, say=lambda text: None)
    return folder


@pytest.fixture(scope="session")
def sail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """`sail ARGS...` as real processes whose imports are paid for once: sail.run("run", config, cwd=tmp_path)."""
    from tests.loops.running import Zygote

    with Zygote(tmp_path_factory.mktemp("sail")) as zygote:
        yield zygote


@pytest.fixture(scope="session")
def tiny_policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyPolicy]:
    from tests.serving_fixtures import make_tiny_policies

    return make_tiny_policies(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="session")
def policy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyServer]:
    """The one vLLM server of the session; it starts at the first serve()."""
    from tests.serving_fixtures import running_policy_server

    with running_policy_server(tmp_path_factory.mktemp("vllm-logs")) as server:
        yield server
