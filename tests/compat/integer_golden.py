#!/usr/bin/env python3
"""Writes tests/golden/quantize_compressed_tensors.safetensors: what compressed-tensors makes of fixed weights.

For each case NAME, NAME.weight is the input; for B = 2..8 bits, S = sym or asym and groups of 32,
NAME.S.B.scale       calculate_qparams' scale, rounded to bfloat16
NAME.S.B.zero_point  (asym) codes 0..2^B-1: calculate_qparams' formula with the scale as rounded, so that it is the
                     nearest for what is stored
NAME.S.B.packed      pack_to_int32(quantize(weight, scale, zero_point)) as bytes of each row
NAME.S.B.float32     dequantize
"""

import pathlib

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
GROUP = 32


def cases() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)

    def normal(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, generator=generator) * 0.02

    one_sided = normal(3, 64)
    one_sided[0].abs_()
    one_sided[1].abs_().neg_()
    # Values on half steps of 4 bits: the scale is exactly 1/8 (asymmetric) or 1/4 (symmetric).
    halves = torch.arange(32).reshape(1, 32) / 16.0 - 0.9375
    return {
        "normal": normal(5, 160),
        "one_sided": one_sided,
        "halves": torch.cat([halves, halves * 2]),
        "bfloat16": normal(2, 64).bfloat16().float(),
    }


def main() -> None:
    torch.set_num_threads(1)
    tensors = {}
    for name, weight in cases().items():
        tensors[f"{name}.weight"] = weight
        groups = weight.reshape(weight.shape[0], -1, GROUP)
        low, high = groups.amin(-1), groups.amax(-1)
        for bits in range(2, 9):
            for symmetric in (True, False):
                args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=GROUP)
                scale, zero = calculate_qparams(low, high, args)
                scale = scale.bfloat16()
                wide = scale.float()
                if symmetric:
                    zero = torch.zeros_like(zero)
                else:
                    smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
                    zero = (smallest - low.clamp(max=0) / wide).clamp(smallest, largest).round().to(torch.int8)
                codes = quantize(weight, wide, zero, args, dtype=torch.int8)
                key = f"{name}.{'sym' if symmetric else 'asym'}.{bits}"
                tensors[f"{key}.scale"] = scale
                if not symmetric:
                    tensors[f"{key}.zero_point"] = (zero.int() + 2 ** (bits - 1)).to(torch.uint8)
                tensors[f"{key}.packed"] = pack_to_int32(codes, bits).view(torch.uint8)
                tensors[f"{key}.float32"] = dequantize(codes, wide, zero, args)
    out = ROOT / "tests/golden/quantize_compressed_tensors.safetensors"
    source = "tests/compat/integer_golden.py, compressed-tensors 0.20.0"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, metadata={"source": source})
    out.chmod(0o644)
    print(out.name, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
