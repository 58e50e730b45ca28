#!/usr/bin/env python3
"""Forward speed in bfloat16 side by side: the engine, transformers, and llama.cpp's perplexity tool.

  ninja -C build/release qpruner_forward_bench
  PYTHON bench/forward_compare.py --model HF_FOLDER --gguf MODEL.gguf --text FILE --llama-perplexity TOOL

All take the first windows of the text, with perplexity, on the same number of threads. They take turns, several
rounds; the best of each counts. Two figures each: tokens a second of wall time, which other work on the
machine lowers, and tokens a second of CPU time, which it hardly does (with --threads 1 nobody waits for
another thread either). llama.cpp applies the head to the second half of each window only, the others to all
positions: the ratio to it is that much too low. GGUF: the same weights in BF16.

PYTHON: of the virtual environment of tests/compat/run. llama-perplexity: built from the source distribution
of llama-cpp-python (cmake -DGGML_NATIVE=ON, target llama-perplexity).
"""

import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def children_cpu():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def engine(args, *options):
    command = [args.bench, "--model", args.model, "--text", args.text, "--context", str(args.context)]
    command += ["--windows", str(args.windows), "--threads", str(args.threads), *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def llama(args):
    def run(windows):
        command = [args.llama_perplexity, "-m", args.gguf, "-f", args.text, "-c", str(args.context), "-b", "2048", "-ub", "512"]
        command += ["-t", str(args.threads), "-tb", str(args.threads), "--chunks", str(windows), "--no-warmup"]
        before, start = children_cpu(), time.monotonic()
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        return time.monotonic() - start, children_cpu() - before, result.stdout + result.stderr

    # What loading and tokenizing take is the same with one batch of windows: the difference is the forward.
    few = max(1, 2048 // args.context)
    wall_few, cpu_few, _ = run(few)
    wall, cpu, output = run(few + args.windows)
    tokens = args.windows * args.context
    return {
        "tokens_per_second": tokens / (wall - wall_few),
        "tokens_per_cpu_second": tokens / (cpu - cpu_few),
        "perplexity": float(re.search(r"Final estimate: PPL = ([0-9.]+)", output)[1]),
    }


def transformers_once(args):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    ids = tokenizer(pathlib.Path(args.text).read_text(), return_tensors="pt", add_special_tokens=False).input_ids[0]
    windows = ids[: args.windows * args.context].view(args.windows, args.context)
    batch = max(1, 2048 // args.context)
    best = None
    for _ in range(2):  # The first warms up.
        wall, cpu, total = time.monotonic(), time.process_time(), 0.0
        with torch.inference_mode():
            for part in windows.split(batch):
                logits = model(part).logits[:, :-1]
                total += torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum").item()
        seconds, cpu_seconds = time.monotonic() - wall, time.process_time() - cpu
        tokens = windows.numel()
        best = {
            "tokens_per_second": tokens / seconds,
            "tokens_per_cpu_second": tokens / cpu_seconds,
            "perplexity": float(torch.tensor(total / (windows.numel() - len(windows))).exp()),
        }
    print(json.dumps(best))


def in_own_process(args):
    command = [os.sys.executable, __file__, "--transformers-only", "--model", args.model, "--text", args.text]
    command += ["--context", str(args.context), "--windows", str(args.windows), "--threads", str(args.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--gguf")
    parser.add_argument("--llama-perplexity")
    parser.add_argument("--bench", default=str(ROOT / "build/release/bin/qpruner_forward_bench"))
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transformers-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if args.transformers_only:
        return transformers_once(args)
    contestants = {
        "engine": lambda: engine(args),
        "engine, plain operators": lambda: engine(args, "--plain"),
        "transformers": lambda: in_own_process(args),
    }
    if args.llama_perplexity and args.gguf:
        contestants["llama.cpp"] = lambda: llama(args)
    results = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, run in contestants.items():
            results[name].append(run())
    print(f"{args.windows} windows of {args.context} tokens, bfloat16, CPU, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
    best = {name: {key: max(run[key] for run in runs) for key in ("tokens_per_second", "tokens_per_cpu_second")} for name, runs in results.items()}
    ours = best["engine"]
    for name, figures in best.items():
        print(f"{name:24} {figures['tokens_per_second']:8.0f} tokens/s   {figures['tokens_per_cpu_second']:8.0f} tokens/CPU s   "
              f"engine {ours['tokens_per_second'] / figures['tokens_per_second']:.2f} x, by CPU time "
              f"{ours['tokens_per_cpu_second'] / figures['tokens_per_cpu_second']:.2f} x   perplexity {results[name][0]['perplexity']:.4f}")


if __name__ == "__main__":
    main()
