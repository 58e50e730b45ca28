#!/usr/bin/env python3
"""Writes tests/golden/quantize_peft.safetensors: what PEFT's NFQuantizer makes of fixed weights with 2, 3 and 8 bits.

PEFT had NFQuantizer until 2026; the class is taken from peft 0.9.0's source, fetched with pip, and nothing else of it.

For each case NAME, NAME.weight is the input and, for K in 2, 3, 8, NAME.nfK.codes holds one code a weight (NFQuantizer
packs 3-bit codes wrongly, so they are taken before packing), NAME.nfK.absmax one scale for each 64 weights and
NAME.nfK.float32 the values again. codebook.nfK are the tables.
"""

import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]


def quantizer_class():
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "peft==0.9.0"]
        subprocess.run(command, check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        source = zipfile.ZipFile(wheel).read("peft/utils/loftq_utils.py").decode()
    start = source.index("class NFQuantizer")
    namespace = {"torch": torch}
    exec(source[start : source.index("\ndef ", start)], namespace)
    return namespace["NFQuantizer"]


def cases() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(20261125)

    def normal(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, generator=generator) * 0.02

    outliers = normal(4, 96)
    outliers[torch.rand(4, 96, generator=generator) < 0.02] *= 50
    # Quarters are halfway between values of NF2 and NF3, or nearly.
    return {
        "normal": normal(12, 64),
        "blocks_cross_rows": normal(10, 32),
        "outliers": outliers,
        "quarters": torch.arange(-64, 64).reshape(2, 64) / 64.0,
        "small": normal(1, 64) * 1e-30,
    }


def main() -> None:
    torch.set_num_threads(1)
    make = quantizer_class()
    tensors = {}
    for bits in (2, 3, 8):
        quantizer = make(num_bits=bits, device="cpu")
        table = quantizer.norm_lookup_table
        tensors[f"codebook.nf{bits}"] = table
        for name, weight in cases().items():
            tensors[f"{name}.weight"] = weight
            blocks = weight.reshape(-1, 64)
            codes = torch.stack([quantizer.quantize_tensor(block)[0] for block in blocks])
            absmax = torch.stack([quantizer.quantize_tensor(block)[1] for block in blocks])
            tensors[f"{name}.nf{bits}.codes"] = codes.to(torch.uint8)
            tensors[f"{name}.nf{bits}.absmax"] = absmax
            tensors[f"{name}.nf{bits}.float32"] = (table[codes] * absmax[:, None]).reshape(weight.shape)
            if bits != 3:
                packed, scale, shape = quantizer.quantize_block(weight)
                assert torch.equal(scale.flatten(), absmax)
                assert torch.equal(quantizer.dequantize_block(packed, scale, shape), tensors[f"{name}.nf{bits}.float32"])
    out = ROOT / "tests/golden/quantize_peft.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, metadata={"source": "tests/compat/normal_float_golden.py, peft 0.9.0"})
    out.chmod(0o644)
    print(out.name, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
