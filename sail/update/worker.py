"""`python -m sail.update.worker JOB`: one process of a stage, started by accelerate launch, torchrun or srun."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from sail.core.errors import UserError
from sail.core.store import Workspace
from sail.update.inputs import UpdateInputs
from sail.update.launch import SAYS, Job, read_job, recipe_of, write_answer
from sail.update.scoring import score
from sail.update.stage import train
from sail.update.zero import take_over, zero_stage

# NCCL would end the others after ten minutes while the first process writes a large checkpoint, or reads its optimizer.
# Nobody waits that long for a process that died: who started the group ends it.
PATIENCE = timedelta(hours=6)


def run_job(job: Job) -> None:
    """Train or score as one of the processes; the first of them answers the driver."""
    take_over()
    # left to guess, it sees one process on CPU
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    say = _say if state.is_main_process else lambda text: None
    try:
        _check(job, state)
        layout = f"ZeRO {zero_stage()}" if zero_stage() else state.distributed_type.value
        say(f"{state.num_processes} processes ({layout}, {state.device.type})")
        workspace = Workspace(job.workspace, say)
        result = train(workspace, job.inputs) if isinstance(job.inputs, UpdateInputs) else score(workspace, job.inputs)
    except UserError as error:
        mistake = {"problem": error.problem, "where": error.where, "cure": error.cure}
        own = job.answer.with_suffix(f".{os.getpid()}")  # all processes may say so, and at the same time
        write_answer(own, {"error": mistake})
        os.replace(own, job.answer)
        raise
    state.wait_for_everyone()
    if state.is_main_process:
        write_answer(job.answer, {"result": result})


def _check(job: Job, state: PartialState) -> None:
    if job.num_processes not in (None, state.num_processes):
        raise UserError(
            f"{job.num_processes} processes were asked for, {state.num_processes} started", where="launch",
            cure="Look at the first line of its log; on CPU set ACCELERATE_USE_CPU=true, not --cpu",
        )  # fmt: skip
    if recipe_of(job.inputs).key != job.key:
        raise UserError(
            "this process reads other inputs than the driver wrote", where="launch",
            cure="Let all machines run the same version of sail",
        )  # fmt: skip


def _say(text: str) -> None:
    print(f"{SAYS}{text}", flush=True)


if __name__ == "__main__":
    run_job(read_job(Path(sys.argv[1])))
    if PartialState().num_processes > 1:
        PartialState().destroy_process_group()
