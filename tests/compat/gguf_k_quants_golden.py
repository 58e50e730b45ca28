#!/usr/bin/env python3
"""Writes tests/golden/gguf/k_quants.safetensors: Q4_K and Q6_K by llama.cpp's reference encoders.

Needs: numpy, safetensors, a C compiler, and a llama.cpp source tree (the source package of
llama-cpp-python holds one in vendor/llama.cpp) in LLAMA_CPP_SOURCE; without it nothing is written. Run
from the repository root, after gguf_types_golden.py.

The reference is compiled with -ffp-contract=off: with fused multiply-adds, as a native build has them,
it decides a few near-ties otherwise; how many of these bytes is printed. The file holds
  weights       float32 [rows, 512]: those of types.safetensors and more
  NAME.encoded  uint8: quantize_row_NAME_ref(weights)
"""

import ctypes
import os
import subprocess
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = "tests/golden/gguf"
BLOCK_BYTES = {"q4_K": 144, "q6_K": 210}


def library(source: str, folder: str, name: str, *flags: str) -> ctypes.CDLL:
    path = f"{folder}/{name}.so"
    ggml = f"{source}/ggml"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", *flags, "-o", path, f"-I{ggml}/include", f"-I{ggml}/src",
         f"{ggml}/src/ggml-quants.c", "-Wl,--unresolved-symbols=ignore-all", "-lm"],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(path, mode=os.RTLD_LAZY)


def encode(reference: ctypes.CDLL, kind: str, weights: np.ndarray) -> np.ndarray:
    out = np.zeros(weights.size // 256 * BLOCK_BYTES[kind], np.uint8)
    function = getattr(reference, f"quantize_row_{kind}_ref")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(weights.ctypes.data, out.ctypes.data, weights.size)
    return out.reshape(weights.shape[0], -1)


def main() -> None:
    source = os.environ.get("LLAMA_CPP_SOURCE")
    if not source:
        print("k_quants.safetensors is left as it is: LLAMA_CPP_SOURCE is not set")
        return
    rng = np.random.default_rng(20260712)
    awkward = load_file(f"{GOLDEN}/types.safetensors")["weights"]
    more = rng.standard_normal((8, 512)) * np.exp2(rng.uniform(-12, 2, (8, 1)))
    shifted = rng.standard_normal((4, 512)) * 0.05 + rng.uniform(-1, 1, (4, 1))
    weights = np.concatenate([awkward, more, shifted]).astype(np.float32)
    tensors = {"weights": weights}
    with tempfile.TemporaryDirectory() as folder:
        plain = library(source, folder, "plain", "-ffp-contract=off")
        fused = library(source, folder, "fused", "-march=native", "-ffp-contract=fast")
        for kind in BLOCK_BYTES:
            name = kind.upper()
            tensors[f"{name}.encoded"] = encode(plain, kind, weights)
            other = encode(fused, kind, weights)
            print(f"{name}: {np.sum(tensors[f'{name}.encoded'] != other)} of {other.size} bytes differ "
                  "when multiply-adds are fused")  # fmt: skip
    save_file(tensors, f"{GOLDEN}/k_quants.safetensors", {"script": "tests/compat/gguf_k_quants_golden.py"})


if __name__ == "__main__":
    main()
