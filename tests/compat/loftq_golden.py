#!/usr/bin/env python3
"""Writes tests/golden/loftq_peft.safetensors: PEFT's loftq_init with bitsandbytes' NF4, on small matrices.

PEFT computes on "cuda" or "xpu"; here the same code runs with "cpu" in that place. Rows are 64 long:
bitsandbytes 0.50.2 dequantizes wrongly on the CPU where the row length is no multiple of the block
(a 64 x 48 normal matrix comes back with a relative error of 0.40 instead of 0.09).
"""

import inspect
import pathlib

import torch
from peft.utils import loftq_utils
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANK = 8


def loftq_init_on_cpu():
    source = inspect.getsource(loftq_utils.loftq_init)
    assert source.count('"cuda"') == 1
    namespace = dict(vars(loftq_utils))
    exec(source.replace('"cuda"', '"cpu"'), namespace)
    return namespace["loftq_init"]


def main():
    torch.set_num_threads(1)
    torch.manual_seed(7)
    loftq_init = loftq_init_on_cpu()
    tensors = {}
    for name, shape in {"wide": (40, 64), "tall": (96, 64)}.items():
        weight = torch.randn(shape) * 0.05
        weight[3] *= 6  # An outlier row.
        tensors[f"{name}.weight"] = weight
        for iterations in (1, 3):
            base, a, b = loftq_init(weight, num_bits=4, reduced_rank=RANK, num_iter=iterations)
            tensors[f"{name}.{iterations}.base"] = base.contiguous()
            tensors[f"{name}.{iterations}.a"] = a.contiguous()
            tensors[f"{name}.{iterations}.b"] = b.contiguous()
    out = ROOT / "tests/golden/loftq_peft.safetensors"
    out.parent.mkdir(exist_ok=True)
    save_file(tensors, out, metadata={"script": "tests/compat/loftq_golden.py"})
    print(out.name, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
