"""Models named by a Hub id, without the network: a plan is content with their configs, a run is not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from loops.estimates import count_weights
from tests.loops.running import ENVIRONMENT, NO_EVALUATION, small_config, write_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_PLAN_THEN_RUN = """
import sys
from loops.cli import app
from sail.core.errors import UserError
app(["plan", sys.argv[1]], standalone_mode=False)
try:
    app(["run", sys.argv[1]], standalone_mode=False)
except UserError as error:
    print("refused:", error)
"""


def test_a_plan_needs_no_more_of_a_hub_model_than_its_config(testbed: Path, tmp_path: Path) -> None:
    for name in ("policy", "rm"):
        cached = tmp_path / "cache" / f"models--org--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(COMMIT)
        (cached / "snapshots" / COMMIT).mkdir(parents=True)
        shutil.copy(testbed / "sft" / "config.json", cached / "snapshots" / COMMIT)
    config = small_config(testbed, model_name_or_path="org/policy", evaluation=NO_EVALUATION)
    config["labelers"] = {"rm": {"kind": "reward_model", "path": "org/rm"}}
    done = subprocess.run(
        [sys.executable, "-c", _PLAN_THEN_RUN, str(write_config(tmp_path / "c.yaml", config))], cwd=tmp_path,
        env=os.environ | ENVIRONMENT | {"HF_HUB_CACHE": str(tmp_path / "cache")}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan, refusal = done.stdout.split("refused: ")
    assert f"{count_weights(testbed / 'sft'):,}" in plan and "checkpoint" in plan
    assert refusal.startswith("model_name_or_path: 'org/policy' is here without weights")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "c.yaml"}
