"""torch.compile of a model's decoder blocks: norms, projections and MLP; attention over trees stays outside."""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_blocks(model: torch.nn.Module, backend: str = "inductor") -> int:
    """Compile each block in place, for all lengths at once; weights keep their names. Returns how many there are.

    The first step of a run takes the time of the compilation; blocks of equal shape share it.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)
