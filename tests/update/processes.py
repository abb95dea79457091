"""Several jobs in one group of processes, whose imports are then paid for once.

ACCELERATE_USE_CPU=true accelerate launch ... -m tests.update.processes JOB JOB ...
"""

import sys
from pathlib import Path

from sail.core.errors import UserError
from sail.update.launch import read_job
from sail.update.worker import run_job

if __name__ == "__main__":
    for path in sys.argv[1:]:
        try:
            run_job(read_job(Path(path)))
        except UserError as error:  # the job's answer says it; the others go on
            print(error)
