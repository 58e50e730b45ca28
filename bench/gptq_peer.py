#!/usr/bin/env python3
"""Times GPTQ and AWQ of llm-compressor and of QPruner on the same model and samples, and measures what each leaves.

  ninja -C build/release qpruner_gptq_bench
  PYTHON bench/gptq_peer.py --model HF_FOLDER --text CALIBRATION.txt --test TEST.txt [--threads 2] [--samples 32]

Both quantize all seven linears of every block to 4 bits in groups of 64, with zero points, act-order and damping 0.01.
llm-compressor calibrates each block on what the quantized blocks before it give ("sequential"), QPruner on the unquantized
model's (docs/adr/0014). Perplexity is transformers', in float32 on dequantized weights, over the first windows of TEST;
round-to-nearest and the original stand beside. AWQ is each one's own search of the scales (llm-compressor's takes the weights'
magnitudes into account, too: its duo_scaling), then round-to-nearest in the same format. QPruner's time has reading the blocks and writing the packed weights in it,
llm-compressor's has neither.

PYTHON: of the virtual environment of tests/compat/run, with llm-compressor beside:
pip install --no-deps llmcompressor==0.14.0.1 loguru
"""

import argparse
import json
import math
import pathlib
import subprocess
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[1]
GROUP, DAMPING = 64, 0.01


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def perplexity(model, windows):
    loss = sum(model(ids[None], labels=ids[None]).loss.item() for ids in windows)
    return math.exp(loss / len(windows))


def ours(args, samples, folder, *options):
    listing = pathlib.Path(folder) / "samples"
    listing.write_text("".join(" ".join(map(str, ids.tolist())) + "\n" for ids in samples))
    output = str(pathlib.Path(folder) / "model")
    command = [args.bench, "--model", args.model, "--samples", str(listing), "--output", output]
    command += ["--group-size", str(GROUP), "--threads", str(args.threads), *options]
    line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return line["seconds"], load(output)


def recipe_of(method):
    from compressed_tensors.quantization import ActivationOrdering, QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP,
                               actorder=ActivationOrdering.WEIGHT if method == "GPTQ" else None)
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    if method == "GPTQ":
        from llmcompressor.modifiers.gptq import GPTQModifier

        return GPTQModifier(config_groups=groups, ignore=["lm_head"], dampening_frac=DAMPING)
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])]


def theirs(args, samples, method):
    from datasets import Dataset
    from llmcompressor import oneshot

    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in samples]
    model = load(args.model)
    start = time.monotonic()
    oneshot(model=model, tokenizer=AutoTokenizer.from_pretrained(args.model), dataset=Dataset.from_list(rows), recipe=recipe_of(method),
            max_seq_length=len(samples[0]), num_calibration_samples=len(samples))
    return time.monotonic() - start, model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="to calibrate on")
    parser.add_argument("--test", required=True)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--methods", nargs="+", choices=["GPTQ", "AWQ"], default=["GPTQ", "AWQ"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bench", default=str(ROOT / "build/release/bin/qpruner_gptq_bench"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda tensor, *_: tensor  # llm-compressor's AWQ asks for it, whatever the device.
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = lambda path, rows, length: torch.tensor(
        tokenizer(pathlib.Path(path).read_text(), add_special_tokens=False).input_ids[: rows * length]).split(length)
    samples, windows = ids(args.text, args.samples, args.length), ids(args.test, args.windows, 512)
    print(f"original: perplexity {perplexity(load(args.model), windows):.4f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        _, model = ours(args, samples, folder)
        print(f"nearest: perplexity {perplexity(model, windows):.4f}", flush=True)
        options = {"GPTQ": ["--database", f"{folder}/database"], "AWQ": ["--activation-scaling"]}
        for method in args.methods:
            seconds, model = ours(args, samples, folder, *options[method])
            print(f"{method}, QPruner: {seconds:.1f} s, perplexity {perplexity(model, windows):.4f}", flush=True)
            peer_seconds, model = theirs(args, samples, method)
            print(f"{method}, llm-compressor: {peer_seconds:.1f} s, perplexity {perplexity(model, windows):.4f}; "
                  f"{peer_seconds / seconds:.2f} x the time of QPruner", flush=True)


if __name__ == "__main__":
    main()
