#!/usr/bin/env python3
"""Writes tests/golden/taylor_stories260k.json: channel importance of stories260k by transformers and autograd.

LLM-Pruner's definitions (arXiv 2305.11627 and its published code): g is the gradient of the mean cross
entropy over the whole batch, a the mean over samples of the squared gradient of each sample's own mean
cross entropy. The first CHANNELS channel scores of each linear are kept.
"""

import json
import pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLES, LENGTH, CHANNELS = 6, 64, 6


def main():
    torch.set_num_threads(1)
    folder = ROOT / "data/models/stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # Double, so that the values kept are the definition's and not one summation order's.
    model = model.double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (ROOT / "data/corpus/tinystories.txt").read_text()
    stories = [s.strip() for s in text.split("<|endoftext|>") if s.strip()]
    samples = []
    for story in stories:
        ids = tokenizer(story, add_special_tokens=False)["input_ids"]
        ids = ([tokenizer.bos_token_id] + ids)[:LENGTH]
        if len(ids) == LENGTH:
            samples.append(ids)
        if len(samples) == SAMPLES:
            break

    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}

    def gradients(batch):
        model.zero_grad()
        ids = torch.tensor(batch)
        model(ids, labels=ids).loss.backward()
        return {n: m.weight.grad.clone() for n, m in linears.items()}

    fisher = {n: torch.zeros_like(m.weight) for n, m in linears.items()}
    for sample in samples:
        for n, g in gradients([sample]).items():
            fisher[n] += g**2 / len(samples)
    g = gradients(samples)

    scores = {}
    for name, module in linears.items():
        w = module.weight.detach()
        within = 0 if name.endswith(("o_proj", "down_proj")) else 1
        first, second = w * g[name], w * fisher[name] * w
        for method, channel in {
            "l1": w.abs().sum(within),
            "l2": (w**2).sum(within).sqrt(),
            "taylor_first": first.abs().sum(within),
            "taylor_second": second.abs().sum(within),
            "taylor_mixed": (first - 0.5 * second).abs().sum(within),
            "taylor_vector": first.sum(within).abs(),
        }.items():
            scores.setdefault(method, {})[name] = [float(f"{v:.9g}") for v in channel[:CHANNELS].tolist()]

    golden = {"script": "tests/compat/taylor_golden.py", "samples": samples, "scores": scores}
    out = ROOT / "tests/golden/taylor_stories260k.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
