"""One full testbed a session (about 25 s on one core), and settings for builds of a second."""

from pathlib import Path

import pytest

from sail.testbed.build import build_testbed
from sail.testbed.settings import BuildSettings

TINY = BuildSettings(
    pretrain_steps=2, sft_steps=1, batch_size=4, num_labels=5, num_heldout=3, num_prompts=7, num_demonstrations=6
)


@pytest.fixture
def tiny() -> BuildSettings:
    return TINY


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default testbed, built once."""
    out = tmp_path_factory.mktemp("testbed") / "hump"
    build_testbed(out, BuildSettings())
    return out
