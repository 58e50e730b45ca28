#!/usr/bin/env python3
"""Importance scoring in one process beside a plain autograd pass with per-sample Fisher information.

    tests/compat/run ../../bench/scoring_peer.py MODEL_FOLDER [--samples 10] [--length 64] [--method mixed]

Both score the same random samples in float32 on the same threads, one after the other, each in a process of its own.
The peak is that of anonymous memory (RssAnon): mapped weights are left out on both sides. The plain pass is what
LLM-Pruner does (arXiv 2305.11627): a backward pass a sample into .grad of every weight, the squares added up, then one
backward pass over all samples. Prints both peaks, their ratio, and how far the scores are apart.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BENCH = ROOT / "build/release/bin/qpruner_scoring_bench"


def anonymous_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def plain(folder, samples_file, scores_file, method, threads):
    """The peer; runs in a process of its own."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    peak, done = 0, False

    def watch():
        nonlocal peak
        while not done:
            peak = max(peak, anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    samples = torch.tensor([[int(i) for i in line.split()] for line in open(samples_file)])
    begin = time.monotonic()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    fisher = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    if method in ("second", "mixed"):
        for sample in samples:
            model(sample[None], labels=sample[None]).loss.backward()
            for name, parameter in model.named_parameters():
                fisher[name] += parameter.grad**2 / len(samples)
            model.zero_grad()
    model(samples, labels=samples).loss.backward()
    scores = {}
    for name, module in linears.items():
        weight, within = module.weight.detach(), 0 if name.endswith(("o_proj", "down_proj")) else 1
        salience = {"first": lambda w, g, a: w * g, "vector": lambda w, g, a: w * g, "second": lambda w, g, a: w * a * w,
                    "mixed": lambda w, g, a: w * g - w * a * w / 2}[method](weight, module.weight.grad, fisher[name + ".weight"])
        scores[name] = (salience.sum(within).abs() if method == "vector" else salience.abs().sum(within)).double()
    seconds = time.monotonic() - begin
    done = True
    watcher.join()
    save_file(scores, scores_file)
    print(json.dumps({"peak": peak, "seconds": seconds}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--method", default="mixed", choices=["first", "second", "mixed", "vector"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-mib", type=int, default=300)
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        return plain(args.model, *args.plain, args.method, args.threads)

    from safetensors.torch import load_file

    vocabulary = json.load(open(pathlib.Path(args.model) / "config.json"))["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        samples, ours, theirs = (os.path.join(folder, n) for n in ("samples", "ours", "theirs"))
        generator = random.Random(1)
        with open(samples, "w") as file:
            for _ in range(args.samples):
                print(*(generator.randrange(vocabulary) for _ in range(args.length)), file=file)
        print(f"CPU, load {os.getloadavg()[0]:.1f}; {args.samples} samples of {args.length}, {args.method}", flush=True)
        out = subprocess.run([BENCH, "--model", args.model, "--samples", samples, "--scores", ours, "--method", args.method,
                              "--threads", str(args.threads), "--limit-mib", str(args.limit_mib)],
                             check=True, capture_output=True, text=True).stdout
        print("qpruner:        ", out.strip(), flush=True)
        out = subprocess.run([sys.executable, __file__, args.model, "--method", args.method, "--threads", str(args.threads),
                              "--plain", samples, theirs], check=True, capture_output=True, text=True).stdout
        peer = json.loads(out.splitlines()[-1])
        print(f"plain autograd:  peak anonymous {peak_mib(peer['peak']):.1f} MiB, {peer['seconds']:.1f} s")
        a, b = load_file(ours), load_file(theirs)
        assert a.keys() == b.keys()
        worst = max(((a[n] - b[n]).abs().max() / b[n].abs().max()).item() for n in a)
        print(f"largest difference of a score, relative to its linear's largest: {worst:.2e}")


def peak_mib(value):
    return value / 2**20


if __name__ == "__main__":
    main()
