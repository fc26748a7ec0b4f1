# Copyright 2026 The glip_hf authors. MIT licence.
"""Kernels: each one's gain in the whole model, and the fusion and the deformable convolution alone.

    python benchmarks/kernels.py --model                  # 800 x 1066, 3 class names in 8 tokens
    python benchmarks/kernels.py --model --case coco80    # the 80 classes of COCO in 194 tokens
    python benchmarks/kernels.py --model --train          # a training step, 480 x 640, 2 images

    python benchmarks/kernels.py                          # all three below
    python benchmarks/kernels.py --kernel fusion-20       # one fusion, 20 tokens, 17,821 visual tokens (800 x 1066)
    python benchmarks/kernels.py --kernel fusion-256      # the same with 256 tokens
    python benchmarks/kernels.py --kernel deformable      # 100 x 167 feature-map cells, 256 channels
    python benchmarks/kernels.py --backward               # forward and backward

With `--model` the model runs with all kernels on (`glip_hf.kernels`), with each one off while the others stay on, and
with all off, in turn in one process. `gain` is the additional time without the kernel, as a fraction of the time with
it: 0.05 is 5 %. Kernels that do not serve the case on this machine are not listed. `--weights DIR` takes the weights of
a saved model.

Alone, a fusion runs against the textbook form *at the same number of tokens*, so that no padding is saved; the
deformable convolution against `grid_sample` and a matrix product, and against its matrix product alone (of PyTorch,
`ratio_over_gemm`, and of the faster library, `ratio_over_fastest_gemm`). Offsets are normal with a standard deviation
of `--offset-spread` cells, masks uniform; weights are random. Timing, memory and records as in `harness.py`; the floor
counts one kernel (`floor.py`).
"""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)  # see __init__.py
    from benchmarks.kernel_variants import main

    main(description=__doc__)
elif __name__ == "kernels":
    # Another script of this folder runs, and Transformers looks for the package `kernels`: step aside.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    hidden = sys.modules.pop("kernels")
    if importlib.util.find_spec("kernels") is None:
        sys.modules["kernels"] = hidden
    else:
        importlib.import_module("kernels")
