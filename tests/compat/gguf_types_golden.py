#!/usr/bin/env python3
"""Writes tests/golden/gguf/types.gguf and types.safetensors: ggml's types, by llama.cpp's own package.

Needs: gguf, numpy, safetensors. Run from the repository root.

types.gguf, written by gguf.GGUFWriter, holds a value of every metadata type and, for each tensor type
NAME, a tensor "NAME" of random blocks (random bytes, finite scales). types.safetensors holds
  NAME.values   float32: gguf.dequantize of that tensor
  weights       float32 [rows, 512]: awkward inputs (zeros, ties, constants, outliers, subnormals)
  NAME.encoded  uint8: gguf.quantize(weights), for the types that the package can quantize (no block is
                all -0.0: there the package gives Q4_0 and Q5_0 a scale of 0.0, llama.cpp one of -0.0)
"""

import os

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

FOLDER = "tests/golden/gguf"
TYPES = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K]
ENCODED = [T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1]
# Where a block of each type has its float16 scales.
SCALES = {T.Q8_0: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q4_K: [0, 2],
          T.Q5_K: [0, 2], T.Q6_K: [208]}  # fmt: skip


def random_blocks(rng: np.random.Generator, kind: T, rows: int, columns: int) -> np.ndarray:
    """[rows, bytes] of a tensor [rows, columns]: any bits in the codes, finite scales of all sizes."""
    if kind == T.F32:
        return rng.standard_normal((rows, columns)).astype(np.float32).view(np.uint8)
    size, width = gguf.GGML_QUANT_SIZES[kind]
    if size == 1:
        bits = rng.integers(0, 1 << 16, (rows, columns), dtype=np.uint16)
        exponent = 0x7C00 if kind == T.F16 else 0x7F80
        return np.where((bits & exponent) == exponent, bits & 0x83FF, bits).view(np.uint8)
    blocks = rng.integers(0, 256, (rows * columns // size, width), dtype=np.uint8)
    for offset in SCALES[kind]:
        # 2^-25 to 2^7, both signs: subnormal float16 too.
        scales = np.exp2(rng.uniform(-25, 7, len(blocks))) * rng.choice([-1, 1], len(blocks))
        blocks[:, offset : offset + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def awkward_weights(rng: np.random.Generator) -> np.ndarray:
    """[rows, 512]."""
    normal = rng.standard_normal((4, 512)).astype(np.float32) * 0.02
    outlier = normal[0].copy()
    outlier[::37] *= 1000
    grid = rng.integers(-8, 8, 512).astype(np.float32) / 8  # Ties in every 4-bit rounding.
    halves = (np.arange(512) % 31 - 15).astype(np.float32) / 2
    constant = np.repeat(np.float32([0.25, -0.25, 0.0, 1e-30]), 128)
    tiny = rng.standard_normal(512).astype(np.float32) * 1e-8  # The scale is a subnormal float16.
    ramp = np.linspace(-1, 1, 512, dtype=np.float32)
    positive = np.abs(normal[1]) + np.float32(0.5)
    sparse = np.where(np.arange(512) % 97 == 0, np.float32(-3.5), np.float32(0))
    return np.stack([*normal, outlier, grid, halves, constant, tiny, ramp, positive, sparse])


def main() -> None:
    os.makedirs(FOLDER, exist_ok=True)
    rng = np.random.default_rng(20260711)
    writer = gguf.GGUFWriter(f"{FOLDER}/types.gguf", "llama")
    for bits in (8, 16, 32, 64):
        getattr(writer, f"add_uint{bits}")(f"test.uint{bits}", (1 << bits) - 1)
        getattr(writer, f"add_int{bits}")(f"test.int{bits}", -(1 << (bits - 1)))
    writer.add_float32("test.float32", 1e-5)
    writer.add_float64("test.float64", 1e-5)
    writer.add_bool("test.bool", True)
    writer.add_string("test.string", "é ▁")
    writer.add_array("test.strings", ["a", "", "ü"])
    writer.add_array("test.integers", [3, -1, 2])
    writer.add_array("test.floats", [0.5, -2.0])
    tensors = {"weights": awkward_weights(rng)}
    for kind in TYPES:
        blocks = random_blocks(rng, kind, 2, 1024)
        if kind == T.F32:
            writer.add_tensor(kind.name, blocks.view(np.float32))
        elif kind == T.F16:
            writer.add_tensor(kind.name, blocks.view(np.float16))
        else:
            writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        tensors[f"{kind.name}.values"] = gguf.dequantize(blocks, kind)
    for kind in ENCODED:
        tensors[f"{kind.name}.encoded"] = np.ascontiguousarray(
            gguf.quantize(tensors["weights"], kind)
        ).view(np.uint8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(tensors, f"{FOLDER}/types.safetensors", {"script": "tests/compat/gguf_types_golden.py"})


if __name__ == "__main__":
    main()
