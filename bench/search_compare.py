#!/usr/bin/env python3
"""Compares search algorithms on a real problem: which bits for each part of stories260k?

    pip install torch==2.11.0 numpy optuna==5.0.0 botorch==0.18.1 safetensors tokenizers
    ninja -C build/release search_session
    python bench/search_compare.py --trials 50 --seeds 3

20 groups (q/k/v, o, gate/up, down of 5 blocks), 2/3/4/8 bits each, asymmetric round-to-nearest in blocks
of 64. Quality: mean KL(original || quantized) in nats a token on stories that the sensitivities were not measured
on. Score: hypervolume of log KL against bytes in the box between uniform-2 and uniform-8 (1 is the
whole box), after 10 trials and at the end. All algorithms are run in this one process on the same
qualities; the 80 scoring evaluations that "bayesian", "sensitivity-lp" and "mutual-information" (here a shuffled
control: its scores carry no information) build on are not counted as trials.
"""
import argparse
import json
import math
import pathlib
import subprocess
import time
import warnings

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = ROOT / "data/models/stories260k"
CORPUS = ROOT / "data/corpus/tinystories.txt"
BITS = (2, 3, 4, 8)
BLOCK = 64
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 5, 64, 8, 4, 8


def quantize(w, bits):
    flat = w.reshape(-1, BLOCK) if w.numel() % BLOCK == 0 else w.reshape(w.shape[0], -1)
    low = flat.amin(1, keepdim=True)
    step = (flat.amax(1, keepdim=True) - low).clamp_min(1e-12) / (2**bits - 1)
    return (((flat - low) / step).round() * step + low).reshape(w.shape)


def rms(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * w


class Model:
    """The decoder of transformers' Llama, for one batch of equally long texts."""

    def __init__(self):
        self.w = load_file(MODEL / "model.safetensors")
        self.groups = []
        for i in range(LAYERS):
            p = f"model.layers.{i}."
            self.groups += [
                (p + "qkv", [p + f"self_attn.{n}_proj.weight" for n in "qkv"]),
                (p + "o", [p + "self_attn.o_proj.weight"]),
                (p + "gate_up", [p + "mlp.gate_proj.weight", p + "mlp.up_proj.weight"]),
                (p + "down", [p + "mlp.down_proj.weight"]),
            ]
        self.quantized = {
            (name, bits): quantize(self.w[name], bits)
            for _, names in self.groups
            for name in names
            for bits in BITS
        }

    def parameters(self, g):
        return sum(self.w[n].numel() for n in self.groups[g][1])

    def bytes(self, g, bits):
        # Codes, and two 16-bit numbers a block.
        return self.parameters(g) * bits // 8 + self.parameters(g) // BLOCK * 4

    def logits(self, ids, bits_of_group):
        w = dict(self.w)
        for g, bits in enumerate(bits_of_group):
            if bits:
                for name in self.groups[g][1]:
                    w[name] = self.quantized[name, bits]
        n = ids.shape[1]
        angle = torch.outer(torch.arange(n), 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM))
        cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))

        def rope(x):
            a, b = x.chunk(2, -1)
            return x * cos + torch.cat([-b, a], -1) * sin

        def split(x, heads):
            return x.view(*ids.shape, heads, HEAD_DIM).transpose(1, 2)

        x = w["model.embed_tokens.weight"][ids]
        for i in range(LAYERS):
            p = f"model.layers.{i}."
            h = rms(x, w[p + "input_layernorm.weight"])
            q = rope(split(h @ w[p + "self_attn.q_proj.weight"].T, HEADS))
            k = rope(split(h @ w[p + "self_attn.k_proj.weight"].T, KV_HEADS))
            v = split(h @ w[p + "self_attn.v_proj.weight"].T, KV_HEADS)
            k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
            a = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + a.transpose(1, 2).reshape(*ids.shape, HIDDEN) @ w[p + "self_attn.o_proj.weight"].T
            h = rms(x, w[p + "post_attention_layernorm.weight"])
            h = torch.nn.functional.silu(h @ w[p + "mlp.gate_proj.weight"].T) * (
                h @ w[p + "mlp.up_proj.weight"].T
            )
            x = x + h @ w[p + "mlp.down_proj.weight"].T
        return rms(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T


class Problem:
    def __init__(self, batch=16, length=192):
        torch.manual_seed(0)
        self.model = Model()
        tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        stories = [s.strip() for s in CORPUS.read_text().split("<|endoftext|>")]
        rows = []
        for story in stories:
            ids = tokenizer.encode(story, add_special_tokens=False).ids
            if len(ids) >= length - 1:
                rows.append([1] + ids[: length - 1])
            if len(rows) == 2 * batch:
                break
        ids = torch.tensor(rows)
        self.calibration, self.selection = ids[:batch], ids[batch:]
        self.reference = {
            id(x): self.model.logits(x, [0] * self.size()).log_softmax(-1)
            for x in (self.calibration, self.selection)
        }
        self.sensitivity = [
            [
                self.kl([b if i == g else 0 for i in range(self.size())], self.calibration)
                for b in BITS
            ]
            for g in range(self.size())
        ]
        self.cache = {}
        full = lambda c: (self.bytes([c] * self.size()), math.log(self.quality([c] * self.size())))
        self.low, self.high = full(0), full(len(BITS) - 1)

    def size(self):
        return len(self.model.groups)

    def kl(self, bits, ids):
        with torch.no_grad():
            p = self.reference[id(ids)]
            q = self.model.logits(ids, bits).log_softmax(-1)
            return max((p.exp() * (p - q)).sum(-1).mean().item(), 1e-9)

    def quality(self, assignment):
        key = tuple(assignment)
        if key not in self.cache:
            self.cache[key] = self.kl([BITS[c] for c in key], self.selection)
        return self.cache[key]

    def bytes(self, assignment):
        return sum(self.model.bytes(g, BITS[c]) for g, c in enumerate(assignment))

    def objectives(self, assignment):
        """Bytes and log KL, scaled so that uniform-2 is (0, 1) and uniform-8 is (1, 0)."""
        return (
            (self.bytes(assignment) - self.low[0]) / (self.high[0] - self.low[0]),
            (math.log(self.quality(assignment)) - self.high[1]) / (self.low[1] - self.high[1]),
        )

    def hypervolume(self, assignments, budget=None):
        points = sorted(self.objectives(a) for a in assignments)
        area, ceiling = 0.0, 1.0
        for x, y in points:
            if x < 1 and y < ceiling:
                area += (1 - x) * (ceiling - y)
                ceiling = y
        return area

    def space(self, seed):
        rng = np.random.default_rng(seed)
        return {
            "fixed_bytes": 0,
            "base_quality": 0,
            "groups": [
                {
                    "name": self.model.groups[g][0],
                    "parameter_count": self.model.parameters(g),
                    "mutual_information": rng.uniform(),
                    "choices": [
                        {"bits": b, "bytes": self.model.bytes(g, b), "sensitivity": s}
                        for b, s in zip(BITS, self.sensitivity[g])
                    ],
                }
                for g in range(self.size())
            ],
        }


def ours(problem, algorithm, trials, seed, session, budget=None):
    process = subprocess.Popen([session], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    setup = {"algorithm": algorithm, "max_trials": trials, "seed": seed, "space": problem.space(seed)}
    if budget:
        setup["budget_bytes"] = budget
    process.stdin.write(json.dumps(setup) + "\n")
    process.stdin.flush()
    assignments = []
    for line in process.stdout:
        assignments.append(json.loads(line)["assignment"])
        process.stdin.write(f"{problem.quality(assignments[-1])!r}\n")
        process.stdin.flush()
    process.wait()
    return assignments


def optuna_search(problem, sampler, trials):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    assignments = []
    for c in range(len(BITS)):
        study.enqueue_trial({f"g{g}": c for g in range(problem.size())})

    def objective(trial):
        a = [trial.suggest_int(f"g{g}", 0, len(BITS) - 1) for g in range(problem.size())]
        assignments.append(a)
        return problem.objectives(a)

    study.optimize(objective, n_trials=trials)
    return assignments


def botorch_search(problem, trials, seed):
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf
    from botorch.sampling import SobolQMCNormalSampler
    from gpytorch.mlls import ExactMarginalLogLikelihood

    warnings.simplefilter("ignore")
    torch.manual_seed(seed)
    dims, top = problem.size(), len(BITS) - 1
    bounds = torch.stack([torch.zeros(dims), torch.ones(dims)]).double()
    assignments = [[c] * dims for c in range(len(BITS))]
    rng = np.random.default_rng(seed)
    while len(assignments) < 10:
        assignments.append(rng.integers(0, top + 1, dims).tolist())
    while len(assignments) < trials:
        x = torch.tensor(assignments).double() / top
        y = -torch.tensor([problem.objectives(a) for a in assignments]).double()
        model = SingleTaskGP(x, y)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model, ref_point=[-1.1, -1.1], X_baseline=x, prune_baseline=True,
            sampler=SobolQMCNormalSampler(torch.Size([64]), seed=seed),
        )
        candidate, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=4, raw_samples=128)
        a = (candidate[0] * top).round().int().tolist()
        while a in assignments:
            a[rng.integers(dims)] = int(rng.integers(top + 1))
        assignments.append(a)
    return assignments


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--session", default=str(ROOT / "build/release/bench/search_session"))
    parser.add_argument("--only", default="", help="comma-separated names")
    parser.add_argument("--budget", type=float, help="part of the byte range, for our algorithms")
    args = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem()
    budget = None
    if args.budget:
        budget = int(problem.low[0] + args.budget * (problem.high[0] - problem.low[0]))
    print(f"KL: uniform-2 {math.exp(problem.low[1]):.4f}, uniform-8 {math.exp(problem.high[1]):.6f}")

    def optuna_with(name):
        import optuna

        return lambda seed: optuna_search(
            problem, getattr(optuna.samplers, name)(seed=seed), args.trials
        )

    algorithms = {
        name: (lambda name: lambda seed: ours(problem, name, args.trials, seed, args.session, budget))(name)
        for name in ("bayesian", "sensitivity-lp", "mutual-information", "random", "uniform")
    }
    algorithms["optuna GPSampler"] = optuna_with("GPSampler")
    algorithms["optuna TPESampler"] = optuna_with("TPESampler")
    algorithms["optuna NSGAIISampler"] = optuna_with("NSGAIISampler")
    algorithms["botorch qLogNEHVI"] = lambda seed: botorch_search(problem, args.trials, seed)
    print(f"{'':22} {'10 trials':>10} {args.trials:>3} trials   (each seed)      seconds")
    for name, run in algorithms.items():
        if args.only and name not in args.only.split(","):
            continue
        start = time.time()
        runs = [run(seed) for seed in range(args.seeds)]
        early = [problem.hypervolume(r[:10]) for r in runs]
        late = [problem.hypervolume(r) for r in runs]
        line = f"{name:22} {np.mean(early):10.3f} {np.mean(late):10.3f}   "
        line += " ".join(f"{v:.3f}" for v in late) + f"   {time.time() - start:.1f}"
        if budget:
            best = [
                min(problem.quality(a) for a in r if problem.bytes(a) <= budget) for r in runs
            ]
            line += "   best KL " + " ".join(f"{b:.5f}" for b in best)
        print(line, flush=True)


if __name__ == "__main__":
    main()
