#!/usr/bin/env python3
"""Quantize and write GGUF: QPruner's writer against llama.cpp's (llama_model_quantize, what llama-quantize calls).

    ninja -C build/release qpruner_gguf_write_bench
    tests/compat/run ../../bench/gguf_write_peer.py MODEL.gguf [--threads 2] [--repeats 3]

MODEL.gguf (or a folder) is first written in F32 by QPruner; both then read that file and write each type, in turns, with the
same threads and the same types for linears, embedding and head, down to the disk. Rows that are no whole number of 256 weights
take other types on either side instead of K-quants: those are left out then. Needs llama-cpp-python (see
tests/compat/gguf_export_check.py). Prints the best of each in GB of F32 a second, and their ratio.
"""

import argparse
import ctypes
import json
import os
import subprocess
import tempfile
import time

import llama_cpp

TOOL = "build/release/bin/qpruner_gguf_write_bench"
# llama.cpp's file types whose linears are all of one type ("pure"), and ggml's number of Q8_0.
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q4_K": 14, "Q6_K": 18}
Q8_0 = 8
METADATA = 1 << 20  # Bytes by which files of the same tensors may differ.


def ours(model: str, out: str, kind: str, threads: int) -> float:
    result = subprocess.run([TOOL, model, out, kind, str(threads)], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["seconds"]


def theirs(model: str, out: str, kind: str, threads: int) -> float:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.pure = threads, TYPES[kind], True
    params.output_tensor_type = params.token_embedding_type = Q8_0
    begin = time.monotonic()
    assert llama_cpp.llama_model_quantize(model.encode(), out.encode(), ctypes.byref(params)) == 0
    descriptor = os.open(out, os.O_RDONLY)
    os.fsync(descriptor)  # As ours does.
    os.close(descriptor)
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder:
        model, out = f"{folder}/f32.gguf", f"{folder}/out.gguf"
        ours(args.model, model, "F32", args.threads)
        size = os.path.getsize(model)
        print(f"CPU, load {os.getloadavg()[0]:.1f}, {args.threads} threads, {size / 1e6:.0f} MB in")
        for kind in TYPES:
            best = [float("inf"), float("inf")]
            for _ in range(args.repeats):
                best[0] = min(best[0], ours(model, out, kind, args.threads))
                written = os.path.getsize(out)
                best[1] = min(best[1], theirs(model, out, kind, args.threads))
            if abs(os.path.getsize(out) - written) > METADATA:
                print(f"{kind}: left out, its rows take other types in llama.cpp")
                continue
            speeds = [size / 1e9 / seconds for seconds in best]
            print(f"{kind}: QPruner {speeds[0]:.2f} GB/s, llama.cpp {speeds[1]:.2f} GB/s, ratio {speeds[0] / speeds[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
