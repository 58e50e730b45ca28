#!/usr/bin/env python3
"""Writes tests/golden/instructions.json: instruction data as LLM-Pruner's post_training.py shows it to a model, with
the tokenizer of stories260k by transformers.

The template is Stanford Alpaca's; prompts and outputs were written for this file. Rule (post_training.py, prompts not
learnt): ids = tokenizer(prompt + output) cut to the limit, eos appended where there is room, and the first
len(tokenizer(prompt)) labels are -100.
"""

import json
import pathlib

from transformers import AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
WITH_INPUT = ("Below is an instruction that describes a task, paired with an input that provides further context. Write "
              "a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n"
              "{input}\n\n### Response:\n")
WITHOUT = ("Below is an instruction that describes a task. Write a response that appropriately completes the request."
           "\n\n### Instruction:\n{instruction}\n\n### Response:\n")
CASES = [
    ({"instruction": "Name three colours.", "input": "", "output": "Red, green and blue."}, 256),
    ({"instruction": "Translate to French.", "input": "The cat sleeps.", "output": "Le chat dort."}, 256),
    ({"instruction": "Say nothing.", "input": "", "output": ""}, 256),
    ({"instruction": "Describe a day by the sea.", "input": "", "output": "The sun rose, and the waves came in. " * 8}, 160),
    ({"instruction": "Count.", "input": "1 2 3 \u00e9 \U0001f600", "output": "4 5 6"}, 20),
]


def main():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/models/stories260k")

    def ids_of(text, limit):
        return ([tokenizer.bos_token_id] + tokenizer(text, add_special_tokens=False)["input_ids"])[:limit]

    cases = []
    for entry, limit in CASES:
        prompt = (WITH_INPUT if entry["input"] else WITHOUT).format(**entry)
        ids = ids_of(prompt + entry["output"], limit)
        if ids[-1] != tokenizer.eos_token_id and len(ids) < limit:
            ids.append(tokenizer.eos_token_id)
        masked = len(ids_of(prompt, limit))
        cases.append(dict(entry, limit=limit, prompt=prompt, ids=ids, labels=[-100] * masked + ids[masked:]))
    golden = {"script": "tests/compat/instruction_golden.py", "eos": tokenizer.eos_token_id, "cases": cases}
    out = ROOT / "tests/golden/instructions.json"
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(out.name, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
