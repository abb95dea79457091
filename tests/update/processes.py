"""Several jobs in one group of processes, whose imports are then paid for once.

ACCELERATE_USE_CPU=true accelerate launch ... -m tests.update.processes JOB JOB ... NAME=VALUE JOB ...

NAME=VALUE changes the environment of the jobs behind it.
"""

import os
import sys
from pathlib import Path

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
