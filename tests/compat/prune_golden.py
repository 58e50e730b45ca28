#!/usr/bin/env python3
"""Writes tests/golden/prune_stories260k.json: what LLM-Pruner's rules keep of stories260k, by transformers and autograd.

A transcription of the rules (arXiv 2305.11627 and its published code), independent of the engine: channel scores from
whole-model gradients, group scores, local or global selection, and steps with a linear schedule between which weights
are really deleted and scores measured again. Widths are aligned after the last step, to the nearest multiple; LLM-Pruner
truncates (alignment 1). Doubles, so that no rounding decides.
"""

import copy
import json
import math
import pathlib

import torch
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADS, KV_HEADS, HEAD_DIM, WIDTH, BLOCKS = 8, 4, 8, 172, 5
CASES = [
    {"importance": "taylor_first", "ratio": 0.25},
    {"importance": "taylor_mixed", "ratio": 0.5, "steps": 3},
    {"importance": "taylor_second", "ratio": 0.5, "reduction": "max", "first": 1, "last": 4},
    {"importance": "taylor_vector", "ratio": 0.5, "reduction": "mean"},
    {"importance": "taylor_mixed", "ratio": 0.5, "reduction": "product", "alignment": 32, "steps": 2},
    {"importance": "taylor_first", "ratio": 0.5, "reduction": "first", "first": 0, "last": 5},
    {"importance": "l2", "ratio": 0.5},
    {"importance": "taylor_first", "ratio": 0.5, "fold": "llm_pruner"},
    {"importance": "taylor_mixed", "ratio": 0.4, "selection": "global", "first": 0, "last": 5},
    {"importance": "taylor_mixed", "ratio": 0.4, "selection": "global_per_kind", "first": 0, "last": 5, "steps": 2},
    {"importance": "l1", "ratio": 0.4, "selection": "global_per_kind", "first": 1, "last": 4, "alignment": 16},
]


def linears(model, block):
    layer = model.model.layers[block]
    attention, mlp = layer.self_attn, layer.mlp
    return {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj,
            "gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}


def channel_scores(model, samples, importance):
    """[block][linear] -> scores of the pruned channels: rows, of o and down columns."""
    all_linears = [linears(model, block) for block in range(BLOCKS)]

    def gradients(batch):
        model.zero_grad()
        ids = torch.tensor(batch)
        model(ids, labels=ids).loss.backward()
        return [{n: m.weight.grad.clone() for n, m in block.items()} for block in all_linears]

    fisher = None
    if importance in ("taylor_second", "taylor_mixed"):
        for sample in samples:
            squares = [{n: g**2 / len(samples) for n, g in block.items()} for block in gradients([sample])]
            fisher = squares if fisher is None else [{n: a[n] + b[n] for n in a} for a, b in zip(fisher, squares)]
    g = gradients(samples)
    result = []
    for block in range(BLOCKS):
        scores = {}
        for name, module in all_linears[block].items():
            w = module.weight.detach()
            within = 0 if name in ("o", "down") else 1
            if importance == "l1":
                scores[name] = w.abs().sum(within)
            elif importance == "l2":
                scores[name] = (w**2).sum(within).sqrt()
            elif importance == "taylor_vector":
                scores[name] = (w * g[block][name]).sum(within).abs()
            else:
                first = w * g[block][name]
                second = w * fisher[block][name] * w if fisher else None
                salience = {"taylor_first": lambda: first, "taylor_second": lambda: second,
                            "taylor_mixed": lambda: first - 0.5 * second}[importance]()
                scores[name] = salience.abs().sum(within)
        result.append(scores)
    return result


def group_scores(scores, kv_heads, reduction, fold):
    readers = HEADS // KV_HEADS

    def folded(x):
        if fold == "llm_pruner":
            return x.view(readers, kv_heads * HEAD_DIM).sum(0)
        return x.view(kv_heads, readers, HEAD_DIM).sum(1).flatten()

    def reduce(parts):
        stacked = torch.stack(parts)
        return {"sum": lambda: stacked.sum(0), "mean": lambda: stacked.mean(0), "max": lambda: stacked.max(0).values,
                "product": lambda: stacked.prod(0), "first": lambda: stacked[0]}[reduction]()

    attention = reduce([folded(scores["q"]), scores["k"], scores["v"], folded(scores["o"])])
    return attention.view(kv_heads, HEAD_DIM).sum(1), reduce([scores["gate"], scores["up"], scores["down"]])


def delete(model, block, heads, channels):
    """Keeps the given positions of what the block has now."""
    readers = HEADS // KV_HEADS
    kv = [h * HEAD_DIM + i for h in heads for i in range(HEAD_DIM)]
    q = [(h * readers + r) * HEAD_DIM + i for h in heads for r in range(readers) for i in range(HEAD_DIM)]
    for name, module in linears(model, block).items():
        keep = torch.tensor({"q": q, "o": q, "k": kv, "v": kv}.get(name, channels))
        module.weight = torch.nn.Parameter(module.weight.detach().index_select(1 if name in ("o", "down") else 0, keep).clone())


def aligned(kept, alignment):
    if kept >= WIDTH:
        return WIDTH
    return min(WIDTH, alignment * max(1, int(kept) if alignment == 1 else math.floor(kept / alignment + 0.5)))


def highest(scores, count):
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return sorted(order[:count])


def prune(original, samples, importance, ratio, reduction="sum", selection="local", alignment=1, steps=1, first=0, last=BLOCKS,
          fold="readers"):
    model = copy.deepcopy(original)
    kept = [{"heads": list(range(KV_HEADS)), "channels": list(range(WIDTH))} for _ in range(BLOCKS)]
    for step in range(1, steps + 1):
        share = ratio * step / steps
        scores = [group_scores(s, len(kept[b]["heads"]), reduction, fold)
                  for b, s in enumerate(channel_scores(model, samples, importance))]
        counts = {}
        if selection == "local":
            for b in range(first, last):
                heads = max(1, KV_HEADS - math.floor(share * KV_HEADS + 1e-9))
                channels = aligned((1 - share) * WIDTH, alignment if step == steps else 1)
                counts[b] = [heads, max(channels, aligned((1 - ratio) * WIDTH, alignment))]
        else:
            pools = [[(s, b, kind) for kind in (0, 1) for b in range(first, last) for s in scores[b][kind].tolist()]]
            if selection == "global_per_kind":
                pools = [[u for u in pools[0] if u[2] == kind] for kind in (0, 1)]
            counts = {b: [len(kept[b]["heads"]), len(kept[b]["channels"])] for b in range(first, last)}
            for pool in pools:
                kinds = {u[2] for u in pool}
                total = sum((KV_HEADS, WIDTH)[k] for k in kinds) * (last - first)
                removed = len(pool) - (total - math.floor(share * total + 1e-9))
                for score, b, kind in sorted(pool)[:max(0, removed)]:
                    counts[b][kind] = max(1, counts[b][kind] - 1)
            if step == steps:
                for b in counts:
                    counts[b][1] = aligned(counts[b][1], alignment)
                    # What is left after earlier steps may be less than the multiple above.
                    if counts[b][1] > len(kept[b]["channels"]):
                        left = len(kept[b]["channels"])
                        counts[b][1] = left // alignment * alignment or left
        for b, (heads, channels) in counts.items():
            keep_heads = highest(scores[b][0].tolist(), heads)
            keep_channels = highest(scores[b][1].tolist(), channels)
            delete(model, b, keep_heads, keep_channels)
            kept[b] = {"heads": [kept[b]["heads"][i] for i in keep_heads],
                       "channels": [kept[b]["channels"][i] for i in keep_channels]}
    return kept


def main():
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "data/models/stories260k", dtype=torch.float32).double().eval()
    samples = json.loads((ROOT / "tests/golden/taylor_stories260k.json").read_text())["samples"]
    cases = [{**case, "kept": prune(model, samples, **case)} for case in CASES]
    golden = {"script": "tests/compat/prune_golden.py", "samples": "those of taylor_stories260k.json", "cases": cases}
    out = ROOT / "tests/golden/prune_stories260k.json"
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
