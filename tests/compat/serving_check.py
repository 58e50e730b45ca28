#!/usr/bin/env python3
"""Loads the exports for serving engines with their own libraries, and measures them there.

  tests/compat/run serving_check.py FOLDER

FOLDER holds one folder an export (what engine_export_test leaves: see worker/engine/export/engine_exports_test.cc), each a
Hugging Face folder with a documents.json: {"documents": [[token ids], ...], "perplexity": what QPruner measured}.
transformers loads each with the library that its quantization_config names (compressed-tensors, bitsandbytes), on the
CPU, in float32 arithmetic. Ends with status 1 if a perplexity differs by more than 0.2 %; 8-bit bitsandbytes models are
measured with LLM.int8's 8-bit activations, so theirs is shown beside that of the weights alone, which is held to it.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

import export_check

TOLERANCE = 2e-3


def weights_alone(model) -> None:
    """Replaces 8-bit bitsandbytes linears by plain ones of their dequantized weights."""
    from bitsandbytes.nn import Linear8bitLt

    for name, module in list(model.named_modules()):
        if not isinstance(module, Linear8bitLt):
            continue
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        state = module.weight
        linear.weight.data = state.data.float() * state.SCB[:, None] / 127
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear)


def main() -> None:
    failed = []
    for folder in sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/documents.json")):
        documents, reported = export_check.read_documents(folder / "documents.json")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found, _ = export_check.perplexity(model, documents)
        note = ""
        if json.loads((folder / "config.json").read_text())["quantization_config"].get("load_in_8bit"):
            note = f", with 8-bit activations {found:.5f}"
            weights_alone(model)
            found, _ = export_check.perplexity(model, documents)
        difference = found / reported - 1
        print(f"{folder.name:28} reported {reported:.5f}, here {found:.5f} ({difference:+.4%}){note}")
        if not abs(difference) <= TOLERANCE:
            failed.append(folder.name)
    if failed:
        sys.exit(f"differ by more than {TOLERANCE:.1%}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
