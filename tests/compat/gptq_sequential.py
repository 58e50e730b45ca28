#!/usr/bin/env python3
"""What GPTQ loses by taking every layer's inputs from the unquantized model (docs/adr/0014).

  tests/compat/run gptq_sequential.py [MODEL_DIR TEXT]

Quantizes all linears of the shipped model (or of MODEL_DIR, on the documents of TEXT) to 2, 3 and 4 bits in groups of 32
with gptq_golden.py's transcription, once with the inputs of the unquantized model ("independent"), once block by block with
the inputs that the blocks quantized so far give ("sequential"), and prints the mean KL divergence to the unquantized
model on text that is not calibrated on, in nats a token, beside round-to-nearest.
"""

import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gptq_golden

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALIBRATION, TEST, LENGTH = 48, 64, 256


def linears(block):
    return {name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}


@torch.no_grad()
def hessians(model, block, documents):
    found = {}

    def record(name):
        def hook(module, inputs):
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            found[name] = found.get(name, 0) + x.T @ x

        return hook

    hooks = [module.register_forward_pre_hook(record(name)) for name, module in linears(block).items()]
    for ids in documents:
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def quantize(model, original, documents, bits, method):
    gptq_golden.rounder = lambda weight, kind: integer_rounder(weight, bits)
    for block, block_of_original in zip(model.model.layers, original.model.layers):
        if method != "rtn":
            source = (model, block) if method == "sequential" else (original, block_of_original)
            moments = hessians(*source, documents)
        for name, module in linears(block).items():
            weight = module.weight.data
            if method == "rtn":
                round_column = integer_rounder(weight, bits)
                new = torch.stack([round_column(weight[:, j], j) for j in range(weight.shape[1])], 1)
            else:
                new = gptq_golden.gptq(weight, moments[name], "", act_order=True)
            module.weight.data = new


def integer_rounder(weight, bits, group=32):
    rows, cols = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -cols % group))
    scale, zero = (t.repeat_interleave(group, 1)[:, :cols] for t in gptq_golden.integer_grid(padded, bits, group, False))
    smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return lambda w, j: ((w / scale[:, j] + zero[:, j]).clamp(smallest, largest).round() - zero[:, j]) * scale[:, j]


@torch.no_grad()
def divergence(model, original, documents):
    total, count = 0.0, 0
    for ids in documents:
        p, q = (m(ids).logits.float().log_softmax(-1) for m in (original, model))
        total += (p.exp() * (p - q)).sum().item()
        count += ids.shape[1]
    return total / count


def main() -> None:
    folder = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "data/models/stories260k")
    text = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "data/corpus/tinystories.txt").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = [d.strip() for d in text.split("<|endoftext|>") if d.strip()][: CALIBRATION + TEST]
    ids = [tokenizer(d, return_tensors="pt").input_ids[:, :LENGTH] for d in documents]
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for bits in (2, 3, 4):
        row = []
        for method in ("rtn", "independent", "sequential"):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            quantize(model, original, ids[:CALIBRATION], bits, method)
            row.append(f"{method} {divergence(model, original, ids[CALIBRATION:]):.5f}")
        print(f"{bits} bits: KL {', '.join(row)} nats a token", flush=True)


if __name__ == "__main__":
    main()
