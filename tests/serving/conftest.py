"""The shared server of the serving tests."""

from collections.abc import Iterator

import pytest

from sail.serving.policy_server import PolicyServer
from tests.serving_fixtures import TinyPolicy, make_tiny_policies, running_policy_server


@pytest.fixture(scope="session")
def tiny_policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyPolicy]:
    return make_tiny_policies(tmp_path_factory.mktemp("policies"))


@pytest.fixture(scope="session")
def policy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyServer]:
    with running_policy_server(tmp_path_factory.mktemp("vllm-logs")) as server:
        yield server
