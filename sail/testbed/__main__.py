"""python -m sail.testbed OUT_DIR [--reward hump|linear] [--seed 0] [--num-labels 2000] [--tie]"""

import argparse
import os
import sys
import time
from pathlib import Path

from sail.core.errors import UserError
from sail.core.settings import parse_settings
from sail.testbed.build import build_testbed
from sail.testbed.settings import BuildSettings


def main() -> int:
    """0 when the testbed is there, 2 after a user's mistake."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # half a megabyte needs none
    arguments = vars(_parser().parse_args())
    out, started = Path(arguments.pop("out_dir")), time.perf_counter()
    try:
        built = build_testbed(out, parse_settings(BuildSettings, arguments, "testbed"))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    seconds = time.perf_counter() - started
    print(f"built {out} in {seconds:.0f} s" if built else f"{out} is all there, nothing to do")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sail.testbed", description="Build the controlled task with a known gold reward."
    )
    defaults = BuildSettings()
    parser.add_argument("out_dir", help="the folder to make")
    parser.add_argument("--reward", default=defaults.reward, choices=("hump", "linear"), help="the human's taste")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--num-labels", type=int, default=defaults.num_labels, help="preference pairs to draw")
    parser.add_argument("--tie", action="store_true", help="tie the output layer to the embeddings")
    return parser


if __name__ == "__main__":
    sys.exit(main())
