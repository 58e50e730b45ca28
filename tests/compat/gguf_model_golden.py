#!/usr/bin/env python3
"""Writes tests/golden/gguf/tiny-*.gguf: the tiny models of tests/golden/logits as llama.cpp stores them.

Needs: gguf, torch, safetensors. Run from the repository root, after logits_golden.py.

Names come from the package's own map (gguf.get_tensor_name_map); rows of Q and K are reordered for
the llama architecture by the formula of llama.cpp's converter (conversion/llama.py, permute), and
rope_freqs.weight by that of its generate_extra_tensors. tiny-llama3 is stored in F32, the others in
BF16, so nothing is rounded.
"""

import json
import math
import os

import gguf
import torch
from safetensors.torch import load_file

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
KINDS = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}


def permute(weights: torch.Tensor, heads: int) -> torch.Tensor:
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def llama3_factors(rope: dict, size: int) -> torch.Tensor:
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context = rope["original_max_position_embeddings"]
    factors = []
    for wavelength in 2 * math.pi / frequencies:
        if wavelength < context / high:
            factors.append(1)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def convert(name: str) -> None:
    folder = f"tests/golden/logits/{name}"
    config = json.load(open(f"{folder}/config.json"))
    tensors = load_file(f"{folder}/model.safetensors")
    architecture = ARCHITECTURES[config["model_type"]]
    blocks, heads = config["num_hidden_layers"], config["num_attention_heads"]
    size = config["head_dim"] if "head_dim" in config else config["hidden_size"] // heads
    rope = config["rope_parameters"]
    writer = gguf.GGUFWriter(f"tests/golden/gguf/{name}.gguf", architecture)
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    if size * heads != config["hidden_size"]:
        writer.add_key_length(size)
        writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    single = rope["rope_type"] == "llama3"
    if single:
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, size).numpy())
    names = gguf.get_tensor_name_map(KINDS[architecture], blocks)
    for key, tensor in tensors.items():
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored is not None, key
        if architecture == "llama" and ".q_proj." in key:
            tensor = permute(tensor, heads)
        if architecture == "llama" and ".k_proj." in key:
            tensor = permute(tensor, config["num_key_value_heads"])
        if single or tensor.ndim == 1:
            writer.add_tensor(stored, tensor.float().numpy())
        else:
            raw = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(stored, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    os.makedirs("tests/golden/gguf", exist_ok=True)
    for name in sorted(os.listdir("tests/golden/logits")):
        if name.startswith("tiny-"):
            convert(name)


if __name__ == "__main__":
    main()
