#!/usr/bin/env python3
"""Times LoRA training steps of PEFT and of QPruner on the same model, batch and threads, and prints the ratio.

  ninja -C build/release qpruner_finetune_bench
  PYTHON bench/finetune_peer.py --model data/models/stories260k [--threads 2] [--batch 8] [--length 256] [--bfloat16]

PYTHON: of the virtual environment of tests/compat/run. A step is forward, backward, clipping and AdamW on rank 8
adapters of all seven linears. The two take turns, several rounds, so that other load on the machine hits both; of all
steps of a round but the first the smallest time counts (the other programs' share is noise that only adds), of the
rounds the median.
"""

import argparse
import statistics
import subprocess
import time

import peft
import torch
import transformers


def peer(args):
    torch.set_num_threads(args.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.bfloat16 if args.bfloat16 else torch.float32, attn_implementation="sdpa")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=args.dropout, target_modules=targets)
    model = peft.get_peft_model(model, config)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0)
    ids = torch.randint(0, model.config.vocab_size, (args.batch, args.length),
                        generator=torch.Generator().manual_seed(1))

    def step() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1)
        optimizer.step()

    return step


def milliseconds(call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def ours(args) -> list[float]:
    command = [args.bench, args.model, "--threads", str(args.threads), "--steps", str(args.steps + 1),
               "--batch", str(args.batch), "--length", str(args.length), "--dropout", str(args.dropout)]
    run = subprocess.run(command + (["--bfloat16"] if args.bfloat16 else []), check=True, capture_output=True, text=True)
    return [float(line) for line in run.stdout.split()][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bench", default="build/release/bin/qpruner_finetune_bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0)
    parser.add_argument("--bfloat16", action="store_true")
    args = parser.parse_args()
    step = peer(args)
    step()
    theirs_times, ours_times = [], []
    for _ in range(args.rounds):
        theirs_times.append(min(milliseconds(step) for _ in range(args.steps)))
        ours_times.append(min(ours(args)))
    theirs, mine = statistics.median(theirs_times), statistics.median(ours_times)
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}, "
          f"{args.threads} threads, {'bfloat16' if args.bfloat16 else 'float32'}, {args.batch} x {args.length} tokens")
    print(f"ms a step: PEFT {theirs:.1f}, QPruner {mine:.1f}: {theirs / mine:.2f}x")


if __name__ == "__main__":
    main()
