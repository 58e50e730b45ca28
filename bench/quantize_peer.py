#!/usr/bin/env python3
"""Times bitsandbytes' CPU quantizers and QPruner's on the same 4096 x 4096 weight, and prints the ratios.

  ninja -C build/release qpruner_quantize_bench
  PYTHON bench/quantize_peer.py [--bench build/release/bin/qpruner_quantize_bench]

PYTHON: of the virtual environment of tests/compat/run (bitsandbytes and torch of tests/compat/requirements.txt). The
two take turns, several rounds; of each the median is shown. Both use torch's default number of threads.
"""

import argparse
import json
import statistics
import subprocess
import time

import bitsandbytes
import torch
from bitsandbytes import functional

ROUNDS = 5


def peers(weight: torch.Tensor):
    half = weight.half()
    nf4, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes, scales, _ = functional.int8_vectorwise_quant(half)
    return {
        "quantize/nf4": lambda: functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"),
        "dequantize/nf4": lambda: functional.dequantize_4bit(nf4, state),
        # The rounding to float16 is part of both.
        "quantize/int8-row": lambda: functional.int8_vectorwise_quant(weight.half()),
        "dequantize/int8-row": lambda: functional.int8_vectorwise_dequant(codes, scales),
    }


def milliseconds(call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def ours(bench: str) -> dict[str, float]:
    run = subprocess.run([bench, "--benchmark_format=json"], check=True, capture_output=True, text=True)
    return {b["name"].removesuffix("/real_time"): b["real_time"] for b in json.loads(run.stdout)["benchmarks"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="build/release/bin/qpruner_quantize_bench")
    args = parser.parse_args()
    calls = peers(torch.randn(4096, 4096, generator=torch.Generator().manual_seed(1)) * 0.02)
    for call in calls.values():
        call()  # Warm-up.
    theirs_times: dict[str, list[float]] = {name: [] for name in calls}
    ours_times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            theirs_times[name].append(milliseconds(call))
        for name, value in ours(args.bench).items():
            if name in ours_times:
                ours_times[name].append(value)
    print(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, CPU, {torch.get_num_threads()} threads")
    print(f"{'4096 x 4096, median ms':24} {'bitsandbytes':>12} {'QPruner':>10} {'ratio':>8}")
    for name in calls:
        theirs, mine = statistics.median(theirs_times[name]), statistics.median(ours_times[name])
        print(f"{name:24} {theirs:12.1f} {mine:10.2f} {theirs / mine:7.1f}x")


if __name__ == "__main__":
    main()
