#!/usr/bin/env python3
"""Writes tests/golden/lora_peft.json: LoRA training steps on stories260k by PEFT, transformers and torch.optim.AdamW.

The adapter starts from a formula (see start()), so that the file need not hold it; B is not zero, so
that A has gradients from the first step. In double: the values are the definition's.
"""

import json
import math
import pathlib

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
RANK, ALPHA, BLOCKS = 4, 8, 5
STEPS, WARMUP, TOTAL = 4, 2, 10
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 0.01, 0.01, 0.25
LENGTHS = [48, 40, 48]
KEPT = 4


def start(shape, block, kind, is_b):
    """0.05 sin(0.37 n + 1.3 kind + 2.1 block + 0.5 is_b) over the elements n in row-major order."""
    n = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.05 * torch.sin(0.37 * n + 1.3 * kind + 2.1 * block + 0.5 * is_b)).view(shape)


def main():
    torch.set_num_threads(1)
    folder = ROOT / "data/models/stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (ROOT / "data/corpus/tinystories.txt").read_text()
    stories = [s.strip() for s in text.split("<|endoftext|>") if s.strip()]
    sequences = [([tokenizer.bos_token_id] + tokenizer(s, add_special_tokens=False)["input_ids"])[:n]
                 for s, n in zip(stories, LENGTHS)]
    ids = torch.zeros(len(sequences), max(LENGTHS), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = labels[row, : len(sequence)] = torch.tensor(sequence)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double()
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=[k.split(".")[1] for k in KINDS])
    model = get_peft_model(model, config).double()
    parameters = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                assert not parameter.requires_grad
                continue
            block = int(name.split("layers.")[1].split(".")[0])
            kind = next(i for i, k in enumerate(KINDS) if k in name)
            is_b = int("lora_B" in name)
            parameter.copy_(start(parameter.shape, block, kind, is_b))
            parameters[(block, kind, is_b)] = parameter
    ordered = [parameters[key] for key in sorted(parameters)]
    assert len(ordered) == BLOCKS * len(KINDS) * 2

    def kept(tensors):
        return [[float(f"{v:.9g}") for v in t.flatten()[:KEPT].tolist()] for t in tensors]

    optimizer = torch.optim.AdamW(ordered, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, TOTAL)
    golden = {
        "script": "tests/compat/lora_golden.py", "rank": RANK, "alpha": ALPHA, "steps": TOTAL, "warmup_steps": WARMUP,
        "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "max_gradient_norm": MAX_NORM,
        "sequences": sequences, "losses": [], "gradient_norms": [], "learning_rates": [],
    }
    for step in range(STEPS):
        golden["learning_rates"].append(schedule.get_last_lr()[0])
        optimizer.zero_grad()
        loss = model(ids, labels=labels).loss
        loss.backward()
        if step == 0:
            golden["first_gradients"] = kept([p.grad for p in ordered])
        golden["losses"].append(loss.item())
        golden["gradient_norms"].append(torch.nn.utils.clip_grad_norm_(ordered, MAX_NORM).item())
        optimizer.step()
        schedule.step()
    golden["parameters"] = kept(ordered)
    out = ROOT / "tests/golden/lora_peft.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, "bytes", golden["losses"], golden["gradient_norms"], golden["learning_rates"])


if __name__ == "__main__":
    main()
