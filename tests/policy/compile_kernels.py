"""Compile the head's kernels for GPUs that need not be here; prints a line each. Run as a module, by its test."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sail.policy import triton_head

_POINTERS = {
    "hidden": "*bf16", "weight": "*bf16", "bias": "*bf16", "out": "*bf16", "targets": "*i64", "picked": "*fp32",
    "lse": "*fp32", "tops": "*fp32", "totals": "*fp32", "coefficient": "*fp32", "scale": "fp32", "softcap": "fp32",
}  # fmt: skip
_ALIGNED = {"size_h", "stride_n", "stride_v", "stride_out"}
_KERNELS = ("_scores_kernel", "_gradient_kernel", "_softmax_kernel")


def compiled(kernel: Any, capability: int, blocks: triton_head.Blocks) -> Any:
    constants = {
        "HAS_BIAS": True, "HAS_CAP": False, "BLOCK_N": blocks.n, "BLOCK_V": blocks.v, "BLOCK_H": blocks.h, "GROUP": 8
    }  # fmt: skip
    names = kernel.arg_names
    kinds = {name: "constexpr" if name in constants else _POINTERS.get(name, "i32") for name in names}
    aligned = [index for index, name in enumerate(names) if kinds[name].startswith("*") or name in _ALIGNED]
    source = ASTSource(
        fn=kernel, signature=kinds, constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )  # fmt: skip
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def stack_bytes(binary: bytes) -> int:
    """What a thread of the kernel keeps in memory for want of registers."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary)
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    (stack,) = re.findall(r"STACK:(\d+)", told.stdout)
    return int(stack)


if __name__ == "__main__":
    for capability, blocks in ((80, triton_head._OTHERS), (90, triton_head._HOPPER)):
        for name in _KERNELS:
            binary = compiled(getattr(triton_head, name), capability, blocks).asm["cubin"]
            print(f"sm_{capability} {name} stack bytes: {stack_bytes(binary)}", flush=True)
