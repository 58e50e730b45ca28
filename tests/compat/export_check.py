#!/usr/bin/env python3
"""Loads what QPruner exported with transformers and PEFT, and measures it there.

  tests/compat/run export_check.py MODEL_DIR IDS [--perplexity REPORTED] [--adapter DIR --quantized DIR] [--json]

MODEL_DIR   the exported model: loaded with AutoModelForCausalLM; every weight must be used and none be missing.
IDS         a job's prepared/reference.safetensors (its test share), or
            {"documents": [[token ids], ...], "perplexity": reported (optional)}, or the list of documents alone.
            Perplexity is exp of the mean over all predictions: a document of n tokens gives n - 1.
--quantized the folder of packed weights, decoded here from its documented layout alone; with --adapter, the adapter is
            put on it with PEFT and merged, which must give MODEL_DIR's perplexity.

The weights are read as they are stored. Perplexity is computed in float32 arithmetic, as QPruner reports it, and shown
in bfloat16 arithmetic as well. Ends with status 1 if one differs from the reported by more than 0.1 %.
"""

import argparse
import json
import math
import pathlib
import re
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-3

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


def tables() -> dict[str, torch.Tensor]:
    """The values of the codebook formats, as bitsandbytes and PEFT define them."""
    found = {}
    for name in ("quantize_bitsandbytes", "quantize_peft"):
        with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
            found |= {key[9:]: file.get_tensor(key) for key in file.keys() if key.startswith("codebook.")}
    return found


def unpack_bits(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """[..., n] bytes of a little-endian bit stream -> [..., n * 8 // bits] codes."""
    stream = (packed[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)
    stream = stream[..., : stream.shape[-1] // bits * bits].unflatten(-1, (-1, bits)).long()
    return (stream << torch.arange(bits)).sum(-1)


def decode_codebook(name: str, format: str, count: int, tensor) -> torch.Tensor:
    kind = format.removesuffix("-dq")
    bits = int(kind[-1])
    absmax = tensor(f"{name}.absmax")
    if format.endswith("-dq"):
        nested = tensor(f"{name}.nested_absmax").repeat_interleave(256)[: absmax.numel()]
        absmax = tables()["dynamic"][absmax.long()] * nested + tensor(f"{name}.offset")
    packed = tensor(f"{name}.codes")
    # bitsandbytes' two codes a byte have the even element in the high nibble.
    codes = torch.stack([packed >> 4, packed & 0xF], -1).flatten().long() if bits == 4 else unpack_bits(packed, bits)
    return tables()[kind][codes[:count]] * absmax.repeat_interleave(64)[:count]


def decode(name: str, format: str, shape: list[int], tensor) -> torch.Tensor:
    """One linear as float32; `tensor(name)` gives a tensor of the file."""
    rows, cols = shape
    if format.startswith(("nf", "fp")):
        return decode_codebook(name, format, rows * cols, tensor).reshape(rows, cols)
    if format == "int8-row":
        return tensor(f"{name}.codes").float() * tensor(f"{name}.SCB")[:, None] / 127
    if format == "bfloat16":
        return tensor(f"{name}.weight").float()
    bits, group = re.fullmatch(r"int(\d)(?:-sym)?-group(\d+)", format).groups()
    bits, group = int(bits), int(group)
    scale = tensor(f"{name}.scale").float()
    if "-sym" in format:
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        zero = unpack_bits(tensor(f"{name}.zero_point"), bits)[:, : scale.shape[1]]
    codes = unpack_bits(tensor(f"{name}.codes"), bits)[:, :cols]
    scale, zero = (t.repeat_interleave(group, dim=1)[:, :cols] for t in (scale, zero))
    return (codes - zero) * scale


def decode_packed(folder: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict]:
    """All weights of a packed folder in float32 by checkpoint name, and its quantization.json."""
    description = json.loads((folder / "quantization.json").read_text())
    state = {}
    packed = set()
    stored_bytes = 0
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name, linear in description["linears"].items():
            state[f"{name}.weight"] = decode(name, linear["format"], linear["shape"], file.get_tensor)
            parts = [key for key in file.keys() if key.rsplit(".", 1)[0] == name and not key.endswith(".bias")]
            size = sum(file.get_tensor(key).nbytes for key in parts)
            assert size == linear["bytes"], f"{name}: {size} bytes stored, {linear['bytes']} described"
            packed.update(parts)
        for key in file.keys():
            stored_bytes += file.get_tensor(key).nbytes
            if key not in packed:
                state[key] = file.get_tensor(key).float()
    assert stored_bytes == description["total_bytes"], f"{stored_bytes} bytes, not {description['total_bytes']}"
    return state, description


def load(folder: pathlib.Path, dtype: torch.dtype):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    assert not problems, f"transformers does not take {folder} whole: {problems}"
    return model.eval()


@torch.no_grad()
def perplexity(model, documents: list[list[int]]) -> tuple[float, int]:
    total, count = 0.0, 0
    for ids in documents:
        if len(ids) < 2:
            continue
        ids = torch.tensor([ids])
        log_p = model(ids).logits[0, :-1].float().log_softmax(-1)
        total -= log_p.gather(-1, ids[0, 1:, None]).double().sum().item()
        count += ids.shape[1] - 1
    return math.exp(total / count), count


def read_documents(path: pathlib.Path) -> tuple[list[list[int]], float | None]:
    """The documents' token ids, and the perplexity that the file reports, if it does."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            ids, lengths = file.get_tensor("test.ids"), file.get_tensor("test.lengths")
        return [part.tolist() for part in ids.split(lengths.tolist())], None
    content = json.loads(path.read_text())
    if isinstance(content, list):
        return content, None
    return content["documents"], content.get("perplexity")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("ids", type=pathlib.Path)
    parser.add_argument("--perplexity", type=float, help="as reported")
    parser.add_argument("--adapter", type=pathlib.Path)
    parser.add_argument("--quantized", type=pathlib.Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.adapter and not args.quantized:
        parser.error("--adapter needs --quantized: the adapter belongs on the dequantized base")
    documents, reported = read_documents(args.ids)
    reported = args.perplexity if args.perplexity is not None else reported

    model = load(args.model, torch.float32)
    result = {"reported": reported}
    result["float32"], result["token_count"] = perplexity(model, documents)
    result["bfloat16"], _ = perplexity(load(args.model, torch.bfloat16), documents)
    checked = ["float32"]
    if args.quantized:
        state, description = decode_packed(args.quantized)
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        result["quantized_bytes"] = description["total_bytes"]
        result["quantized"], _ = perplexity(model, documents)
        if args.adapter:
            from peft import PeftModel

            adapted = PeftModel.from_pretrained(model, args.adapter).eval()
            result["quantized_with_adapter"], _ = perplexity(adapted, documents)
            merged = adapted.merge_and_unload()
            # The export rounds the merged weights to its dtype; so must what it is compared with.
            stored = load(args.model, "auto").state_dict()
            rounded = {key: value.to(stored[key].dtype).float() for key, value in merged.state_dict().items()}
            merged.load_state_dict(rounded)
            result["merged_by_peft"], _ = perplexity(merged.eval(), documents)
            checked.append("merged_by_peft")

    target = reported if reported is not None else result["float32"]
    result["worst_difference"] = max(abs(result[key] / target - 1) for key in checked)
    if args.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:24} {value}")
    if not result["worst_difference"] <= TOLERANCE:
        sys.exit(f"{', '.join(checked)}: differ from {target} by up to {result['worst_difference']:.3%}, allowed 0.1 %")


if __name__ == "__main__":
    main()
