#!/usr/bin/env python3
"""Writes tests/golden/gptq.safetensors: what GPTQ makes of fixed weights and inputs, by two independent codes.

  tests/compat/run gptq_golden.py                 by the transcription of the paper's algorithm below
  tests/compat/run gptq_golden.py --llmcompressor also by llm-compressor's quantize_weight, which must be installed beside
                                                  (pip install --no-deps llmcompressor==0.14.0.1 loguru); asserts that
                                                  at least 99.9 % of the codes are equal

NAME.weight [rows, cols], NAME.inputs [tokens, cols] float16; the Hessian is inputs^T inputs. NAME.KIND.values are the dequantized
weights for KIND in int3-group32, int4-sym-group64 and nf4, with act-order (columns by falling diagonal, scales of the
unpermuted groups, from the weights before any correction) and damping 0.01. NAME.plain.KIND.values: without act-order.
"""

import argparse
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
DAMPING = 0.01


def integer_grid(weight: torch.Tensor, bits: int, group: int, symmetric: bool):
    """Scale and signed zero point of every weight's group (see integer_golden.py)."""
    smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = weight.reshape(weight.shape[0], -1, group)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if symmetric:
        scale = (torch.maximum(-low, high) / ((largest - smallest) / 2)).bfloat16().float()
        zero = torch.zeros_like(scale)
    else:
        scale = ((high - low) / (largest - smallest)).bfloat16().float()
        zero = (smallest - low / scale).clamp(smallest, largest).round()
    return scale, zero


def rounder(weight: torch.Tensor, kind: str):
    """round(column values, column) -> dequantized values."""
    if kind == "nf4":
        with safe_open(ROOT / "tests/golden/quantize_bitsandbytes.safetensors", "pt") as file:
            table = file.get_tensor("codebook.nf4")
        absmax = weight.reshape(-1, 64).abs().amax(1).repeat_interleave(64).reshape(weight.shape)
        return lambda w, j: table[((w / absmax[:, j])[:, None] - table).abs().argmin(1)] * absmax[:, j]
    bits, group, symmetric = {"int3-group32": (3, 32, False), "int4-sym-group64": (4, 64, True)}[kind]
    scale, zero = (t.repeat_interleave(group, 1) for t in integer_grid(weight, bits, group, symmetric))
    smallest, largest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return lambda w, j: ((w / scale[:, j] + zero[:, j]).clamp(smallest, largest).round() - zero[:, j]) * scale[:, j]


def gptq(weight: torch.Tensor, hessian: torch.Tensor, kind: str, act_order: bool) -> torch.Tensor:
    """Algorithm 1 of arXiv 2210.17323, column by column in float64, without its lazy blocks."""
    hessian = hessian.double().clone()
    hessian.diagonal()[hessian.diagonal() == 0] = 1
    order = hessian.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(len(hessian))
    hessian = hessian[order][:, order]
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.linalg.inv(hessian)
    upper = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    round_column = rounder(weight, kind)
    work = weight.double()[:, order]
    result = torch.empty_like(weight)
    for i, column in enumerate(order.tolist()):
        w = work[:, i].clone()
        q = round_column(w.float(), column)
        result[:, column] = q
        work[:, i:] -= ((w - q.double()) / upper[i, i])[:, None] * upper[i, i:]
    return result


def check_llmcompressor(weight: torch.Tensor, hessian: torch.Tensor, kind: str, act_order: bool, ours: torch.Tensor):
    from compressed_tensors.quantization import ActivationOrdering, QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    bits, group, symmetric = {"int3-group32": (3, 32, False), "int4-sym-group64": (4, 64, True)}[kind]
    scale, zero = integer_grid(weight, bits, group, symmetric)
    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group,
        actorder=ActivationOrdering.WEIGHT if act_order else None,
    )  # fmt: skip
    theirs, _, fallback = quantize_weight(
        weight[None].clone(), hessian[None].clone(), scale[None], zero[None].to(torch.int8), None, args, percdamp=DAMPING
    )
    assert not fallback.any()
    # It sets weights of inputs that are always 0 to 0; here they round to nearest.
    live = hessian.diagonal() > 0
    same = ((theirs[0] - ours).abs() < 1e-6)[:, live].float().mean().item()
    print(f"  llm-compressor, {kind}, act-order {act_order}: {same:.5%} of the weights equal")
    assert same > 0.999


def cases():
    generator = torch.Generator().manual_seed(5)

    def inputs(tokens: int, cols: int) -> torch.Tensor:
        mix = torch.randn(cols, cols, generator=generator) / cols**0.5 + torch.eye(cols)
        scales = torch.exp(torch.randn(cols, generator=generator))
        return (torch.randn(tokens, cols, generator=generator) @ mix * scales).half()

    def weight(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, generator=generator) * 0.02

    dead = inputs(150, 64)
    dead[:, [3, 40]] = 0
    return {
        "wide": (weight(12, 192), inputs(250, 192)),  # More columns than a lazy block has.
        "few_samples": (weight(8, 64), inputs(30, 64)),  # A singular Hessian: damping makes it definite.
        "dead_inputs": (weight(8, 64), dead),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llmcompressor", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tensors = {}
    for name, (weight, inputs) in cases().items():
        tensors[f"{name}.weight"], tensors[f"{name}.inputs"] = weight, inputs
        hessian = inputs.double().T @ inputs.double()
        for kind in ("int3-group32", "int4-sym-group64", "nf4"):
            for act_order in (True, False):
                values = gptq(weight, hessian, kind, act_order)
                tensors[f"{name}.{'' if act_order else 'plain.'}{kind}.values"] = values
                if args.llmcompressor and kind != "nf4" and name != "few_samples":
                    check_llmcompressor(weight, hessian.float(), kind, act_order, values)
    out = ROOT / "tests/golden/gptq.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, metadata={"source": "tests/compat/gptq_golden.py"})
    out.chmod(0o644)
    print(out.name, out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
