# Copyright 2026 The glip_hf authors. MIT licence.
"""Triton's kernels compiled for GPUs that need not be there: registers, spilled bytes and shared memory of each.

    python benchmarks/triton_resources.py                                  # every configuration, all capabilities
    python benchmarks/triton_resources.py --capability 90 --element bf16 --first 2

A multiprocessor has 65,536 registers and, by compute capability, up to 163 (8.0), 99 (8.9) or 227 KiB (9.0, 10.0) of
shared memory for one block (CUDA C++ programming guide, technical specifications). Autotuning passes over a
configuration that does not fit; one of registers spilled to memory it may still choose. Strides, channels and filters
are those of the released models, the stride of the convolution is 1.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # the parent folder in place of this one: see __init__.py
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from glip_hf.kernels import triton_deform_conv

KERNELS = ("_forward_kernel", "_backward_input_kernel", "_backward_weight_kernel")
SHARED_KIB = {80: 163, 89: 99, 90: 227, 100: 227}
"""Shared memory that one block may have, by compute capability."""

SUMS = {"grad_features_ptr", "grad_weight_ptr"}  # float32 whatever the rest is
ALIGNED = {"features_stride", "channels", "filters"}  # multiples of 16 in the released models


class Resources(NamedTuple):
    """What a compiled kernel takes: registers of each thread, bytes of each thread that are spilled to memory, and
    bytes of shared memory of each block."""

    registers: int
    spilled: int
    shared: int


def compile_kernel(tuner: Any, config: Any, element: str, capability: int) -> Any:
    """A kernel as a GPU of this compute capability would run it; Triton brings the assembler.

    Args:
        tuner: an autotuned kernel of `triton_deform_conv`; config: one of its `configs`.
        element: "fp32", "fp16" or "bf16", of features, weights and offsets.
        capability: 80 for 8.0.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**config.kwargs, "STRIDE": 1, "PRECISION": "ieee"}
    signature, attributes = {}, {}
    for i, name in enumerate(tuner.fn.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = ("*fp32" if name in SUMS else f"*{element}") if name.endswith("_ptr") else "i32"
        if name.endswith("_ptr") or name in ALIGNED:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(tuner.fn, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(binary: Any) -> Resources:
    """Of a compiled kernel, by the `cuobjdump` that Triton brings.

    Raises:
        RuntimeError: if it prints no use of registers.
    """
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        printed = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+)", printed), re.search(r"STACK:(\d+)", printed)
    if registers is None or stack is None:
        raise RuntimeError(f"{tool} printed no use of registers: {printed!r}")
    return Resources(int(registers[1]), int(stack[1]), binary.metadata.shared)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, nargs="+", choices=list(SHARED_KIB), default=list(SHARED_KIB))
    parser.add_argument("--element", nargs="+", choices=["fp32", "fp16", "bf16"], default=["bf16", "fp32"])
    parser.add_argument("--first", type=int, help="only the first N configurations of each kernel")
    arguments = parser.parse_args(argv)
    print(f"{'kernel':26} {'configuration':44} {'element':7} {'capability':10} registers spilled shared")
    for name in KERNELS:
        tuner = getattr(triton_deform_conv, name)
        for config in tuner.configs[: arguments.first]:
            blocks = ", ".join(f"{key} {value}" for key, value in config.kwargs.items())
            for element in arguments.element:
                for capability in arguments.capability:
                    used = resources(compile_kernel(tuner, config, element, capability))
                    fits = "" if used.shared <= SHARED_KIB[capability] << 10 else "  does not fit"
                    where = f"{name:26} {blocks:36} {config.num_warps:2} warps {element:7} {capability / 10:10.1f}"
                    print(f"{where} {used.registers:9} {used.spilled:7} {used.shared:6}{fits}", flush=True)


if __name__ == "__main__":
    main()
