"""Several jobs in one group of processes, whose imports are then paid for once.

ACCELERATE_USE_CPU=true accelerate launch ... -m tests.update.processes JOB JOB ... NAME=VALUE JOB ...

NAME=VALUE changes the environment of the jobs behind it. Last, how long these processes wait for each other.
"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from sail.core.errors import UserError
from sail.update.launch import read_job
from sail.update.worker import run_job

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if "=" in argument:
            name, _, os.environ[name] = argument.partition("=")
            continue
        try:
            run_job(read_job(Path(argument)))
        except UserError as error:  # the job's answer says it; the others go on
            print(error)
    if distributed.group.WORLD is not None:
        print("waits for", distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout)
