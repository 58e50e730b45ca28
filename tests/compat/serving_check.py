#!/usr/bin/env python3
"""Loads the exports for serving engines with their own libraries, and measures them there.

  tests/compat/run serving_check.py FOLDER

FOLDER holds one folder an export (what engine_export_test leaves: see worker/engine/export/engine_exports_test.cc), each a
Hugging Face folder with a documents.json: {"documents": [[token ids], ...], "perplexity": what QPruner measured}.
transformers loads each with the library that its quantization_config names (compressed-tensors, bitsandbytes; or
none), on the CPU. Its perplexity is shown twice: as the engine computes (bfloat16; 8-bit bitsandbytes with LLM.int8's 8-bit
activations), and in float32 arithmetic on the weights as the library dequantizes them, which is what QPruner reports.
Ends with status 1 if the latter differs by more than 0.2 %.
"""

import copy
import json
import logging
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

import export_check

TOLERANCE = 2e-3


def dequantized(module: torch.nn.Module) -> torch.Tensor | None:
    """The float32 weight of a packed linear, by its own library; None for anything else."""
    import bitsandbytes as bnb

    if isinstance(module, bnb.nn.Linear4bit):
        state = module.weight.quant_state
        state.dtype = torch.float32
        return bnb.functional.dequantize_4bit(module.weight.data, state)
    if isinstance(module, bnb.nn.Linear8bitLt):
        return bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    return None


def plain_copy(model) -> torch.nn.Module:
    """The same model in float32 without the library."""
    state = {}
    for name, module in model.named_modules():
        weight = dequantized(module)
        if weight is not None:
            state[f"{name}.weight"] = weight
    for name, tensor in model.state_dict().items():
        if name not in state and name.rpartition(".")[2] in ("weight", "bias"):
            state[name] = tensor.float()
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    return plain.eval()


def main() -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    failed = []
    for folder in sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/documents.json")):
        documents, reported = export_check.read_documents(folder / "documents.json")
        if not (folder / "config.json").exists():
            continue  # A GGUF file.
        config = json.loads((folder / "config.json").read_text())
        method = config.get("quantization_config", {}).get("quant_method")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        if method == "bitsandbytes":
            plain = plain_copy(model)  # Before a forward pass, which lays the weights out anew for the CPU.
        else:
            # compressed-tensors dequantizes in the model's type by itself; others have nothing to.
            plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found, _ = export_check.perplexity(plain, documents)
        as_served, _ = export_check.perplexity(model, documents)
        difference = found / reported - 1
        print(
            f"{folder.name:28} reported {reported:.5f}, float32 {found:.5f} ({difference:+.4%}), "
            f"as served {as_served:.5f} ({as_served / reported - 1:+.3%})",
            flush=True,
        )
        if not abs(difference) <= TOLERANCE:
            failed.append(folder.name)
    if failed:
        sys.exit(f"differ by more than {TOLERANCE:.1%}: {', '.join(failed)}")


if __name__ == "__main__":
    main()
