#!/usr/bin/env python3
"""Writes tests/golden/logits: logits of transformers in float32, for worker/engine/model/decoder_test.cc.

Models: data/models/stories260k; tinystories-656k, if it is in the folder of shared data
(QPRUNER_SHARED_DIR, else ../shared); and tiny random ones of each other family, with biased and
normed projections and scaled RoPE, which are stored beside their logits.
"""
import os
import pathlib

import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "logits"
SHARED = pathlib.Path(os.environ.get("QPRUNER_SHARED_DIR", ROOT / ".." / "shared"))

# A head_dim that is not hidden_size / heads, grouped heads and few positions, so that the scaled
# wavelengths of RoPE fall on both sides of the original context.
TINY = dict(vocab_size=61, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DEFAULT = {"rope_type": "default", "rope_theta": 5000.0}
MODELS = {
    "tiny-llama3": transformers.LlamaConfig(**TINY, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True,
                                            tie_word_embeddings=False),
    "tiny-mistral": transformers.MistralConfig(**TINY, rope_parameters=DEFAULT, head_dim=16, sliding_window=None,
                                               tie_word_embeddings=False),
    "tiny-qwen2": transformers.Qwen2Config(**TINY, rope_parameters=LINEAR, tie_word_embeddings=True),
    "tiny-qwen3": transformers.Qwen3Config(**TINY, rope_parameters=DEFAULT, head_dim=24, attention_bias=True,
                                           tie_word_embeddings=True),
}


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().contiguous()


def write(path, ids, logits):
    save_file({"ids": torch.tensor(ids), "logits": logits}, path,
              metadata={"script": "tests/compat/logits_golden.py", "transformers": transformers.__version__})


def golden_of_folder(folder, path, count):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(11)
    ids = [1] + torch.randint(3, model.config.vocab_size, (count - 1,), generator=generator).tolist()
    write(path, ids, logits_of(model, ids))


def tiny(name, config):
    folder = GOLDEN / name
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        # The usual start (0.02, zero biases, unit norms) would hide mistakes.
        for key, value in model.named_parameters():
            value.copy_(1 + 0.3 * torch.randn_like(value) if "norm" in key else 0.25 * torch.randn_like(value))
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # Through the stored weights, widened to float32.
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, config.vocab_size, (96,), generator=torch.Generator().manual_seed(12)).tolist()
    write(folder / "logits.safetensors", ids, logits_of(model, ids))


def main():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    golden_of_folder(ROOT / "data" / "models" / "stories260k", GOLDEN / "stories260k.safetensors", 40)
    shared = SHARED / "data" / "models" / "tinystories-656k"
    if shared.exists():
        golden_of_folder(shared, GOLDEN / "tinystories-656k.safetensors", 16)
    else:
        print("tinystories-656k.safetensors is left as it is: no", shared)
    for name, config in MODELS.items():
        tiny(name, config)


if __name__ == "__main__":
    main()
