"""What physics asks: the fewest FLOPs of an exact step, and the fastest matrix product of this machine."""

import time

import torch

from scripts.bench.cases import Case, Pair, make_model
from scripts.bench.timing import wait_for

_SHAPES = ((2048, 2048, 2048), (4096, 384, 1024), (2048, 256, 4096))


def matmul_rate(device: str, dtype: str, repeats: int = 5) -> float:
    """FLOP/s of the best of a few shapes, in CPU time on a CPU and in wall time on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    shapes = _SHAPES if device == "cpu" else ((8192, 8192, 8192),)
    best = 0.0
    for rows, inner, columns in shapes:
        a, b = (torch.randn(shape, device=device, dtype=kind) for shape in ((rows, inner), (inner, columns)))
        for _ in range(repeats):
            wait_for(device)
            start = clock()
            a @ b
            wait_for(device)
            best = max(best, 2 * rows * inner * columns / (clock() - start))
    return best


def least_flops(case: Case, pairs: list[Pair], *, reference: bool) -> float:
    """FLOPs of a step that runs a prompt once, scores response tokens alone and computes nothing twice.

    Forward: 2 per weight of the layers and token, 4 H per layer and attended position, 2 H V per scored token. In the
    last layer a token that predicts none of a response needs its keys and values alone. Three times that for the policy
    (forward and backward), once for the reference.
    """
    model = make_model(case, 0)
    body = sum(weight.numel() for weight in model.model.layers.parameters() if weight.ndim > 1)
    attention = model.model.layers[-1].self_attn
    last = body / case.layers - attention.k_proj.weight.numel() - attention.v_proj.weight.numel()
    forward = 0.0
    for pair in pairs:
        branches = [len(pair.chosen) - 1, len(pair.rejected) - 1]  # the last token predicts nothing
        prompt = len(pair.prompt)
        unasked = prompt - 1  # tokens that predict no response token
        attended = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in branches)
        scored = len(pair.chosen) + len(pair.rejected)
        forward += 2 * body * (prompt + sum(branches)) - 2 * last * unasked
        forward += 4 * case.hidden * (case.layers * attended - unasked * (unasked + 1) / 2)
        forward += 2 * case.hidden * case.vocab * scored
    return forward * (3 + reference)


def matmul_seconds(rows: int, inner: int, columns: int, repeats: int = 20) -> float:
    """CPU time of one product of this shape in float32 into memory that is there: the fastest of five tries."""
    a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    fastest = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        fastest = min(fastest, (time.process_time() - start) / repeats)
    return fastest
