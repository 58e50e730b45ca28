#!/usr/bin/env python3
"""Writes tests/golden/quantize_bitsandbytes.safetensors: what bitsandbytes stores for fixed weights.

Needs: torch==2.11.0 bitsandbytes==0.50.2 safetensors. Run from the repository root; CPU only.

For each case NAME of the list below, the file holds
  NAME.weight                         the input, float32, float16 or bfloat16
  NAME.nf4.codes, NAME.nf4.absmax     functional.quantize_4bit(weight, nf4, blocksize 64)
  NAME.nf4.float32, NAME.nf4.bfloat16 dequantized again (see dequantize)
  NAME.fp4.codes, NAME.fp4.absmax, NAME.fp4.float32 the same for fp4
  NAME.int8.codes, NAME.int8.SCB      nn.Int8Params of the weight (float16, then one scale a row)
  NAME.int8.float32                   dequantized again
int8 is left out where float16 cannot hold the weights.

For double quantization, nested.absmax holds 1100 absmax values, nested.offset what is subtracted from them, nested.codes
and nested.nested_absmax their codes by the dynamic map, nested.float32 what comes back (see nest). codebook.nf4, .fp4
and .dynamic are the tables.
"""

import os

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # The plain operations, whatever compiler is installed.

import bitsandbytes as bnb
import torch
from bitsandbytes import functional
from safetensors.torch import save_file

TABLES = {kind: functional.get_4bit_type(kind, device="cpu") for kind in ("nf4", "fp4")}
NF4 = TABLES["nf4"]


def on_the_bounds() -> torch.Tensor:
    """Values on, just below and just above each midpoint of NF4, in a block whose absmax is 1."""
    bounds = (NF4[:-1] + NF4[1:]) / 2
    values = torch.cat(
        [
            bounds,
            torch.nextafter(bounds, torch.tensor(-2.0)),
            torch.nextafter(bounds, torch.tensor(2.0)),
            NF4,
            torch.tensor([-1.0, 1.0, -0.0]),
        ]
    )
    assert values.numel() == 64
    # The second row has another absmax, so that scaling rounds.
    return torch.stack([values, values * 0.0371])


def halves() -> torch.Tensor:
    """Values that fall exactly between two int8 codes: absmax 127, so the scale is nearly 1."""
    steps = torch.arange(-20, 20, dtype=torch.float32) + 0.5
    return torch.stack([torch.cat([steps, torch.tensor([127.0])]), torch.cat([steps, torch.tensor([-63.5])])])


def dequantize(codes: torch.Tensor, state: functional.QuantState, dtype: torch.dtype) -> torch.Tensor:
    """What bitsandbytes' portable and CUDA kernels compute: code * absmax in float32, rounded once.

    functional.dequantize_4bit takes an AVX-512 kernel where the machine has it. In bitsandbytes 0.50.2 that kernel
    multiplies by the wrong block's absmax if a row's length is a multiple of 32 but not of 64 (try 8 x 96: the error is
    larger than the weights), and flushes subnormal numbers. So its result is only asserted to be the same elsewhere.
    """
    n = state.shape.numel()
    packed = codes.reshape(-1).int()
    index = torch.stack([packed >> 4, packed & 0xF], dim=1).reshape(-1)[:n]
    values = (TABLES[state.quant_type][index] * state.absmax.repeat_interleave(64)[:n]).reshape(state.shape).to(dtype)
    if state.shape[-1] % 64 == 0 and not (state.absmax < 1e-30).any():
        state.dtype = dtype
        assert torch.equal(functional.dequantize_4bit(codes, state), values)
    return values


def nest(absmax: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Double quantization's codes and scales, by bitsandbytes' portable code (backends/default/ops.py).

    On the CPU, functional.quantize_blockwise takes a compiled kernel that looks codes up in a table of rounded values:
    near the midpoint of two codes it may take the farther one. Asserted: never by more than 1.6e-5 of the block's absmax.
    """
    code = functional.create_dynamic_map()
    bounds = (code[:-1] + code[1:]) / 2
    codes, scales = [], []
    for block in (absmax - offset).split(256):
        scale = block.abs().max()
        if block.numel() == 256:
            scaled = block * (1.0 / scale.clamp(min=1e-38))
        else:
            scale = scale.clamp(min=1e-38)
            scaled = block / scale
        codes.append(torch.bucketize(scaled, bounds).to(torch.uint8))
        scales.append(scale)
    codes, scales = torch.cat(codes), torch.stack(scales)
    theirs, state = functional.quantize_blockwise(absmax - offset, blocksize=256)
    assert torch.equal(state.absmax, scales) and torch.equal(state.code, code)
    differ = codes != theirs
    scaled = ((absmax - offset) / scales.repeat_interleave(256)[: absmax.numel()])[differ]
    low = torch.minimum(codes, theirs)[differ].long()
    assert differ.sum() <= 4 and ((scaled - bounds[low]).abs() < 1.6e-5).all(), differ.sum()
    return codes, scales


def cases() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(20261124)

    def normal(rows: int, cols: int) -> torch.Tensor:
        return torch.randn(rows, cols, generator=generator) * 0.02

    zeros = normal(3, 75)  # 225 = 3 * 64 + 33: a zero block, a zero row, a zero tail.
    zeros[0, :] = 0
    zeros.view(-1)[192:] = 0
    outliers = normal(8, 96)
    outliers[torch.rand(8, 96, generator=generator) < 0.01] *= 50
    tiny = normal(4, 64)
    tiny[0] *= 1e-38  # Subnormal, below the smallest divisor.
    tiny[1] *= 1e-36
    tiny[2] *= 1e-5  # Subnormal in float16.
    tiny[3] *= 1e36
    return {
        "rows_of_64": normal(8, 64),
        "odd": normal(37, 53),  # Blocks cross rows; odd count; short last block.
        "one": torch.tensor([[-0.3]]),
        "three": torch.tensor([[0.25, -0.5, 0.125]]),
        "zeros": zeros,
        "all_zero_tail": torch.zeros(1, 5),
        "constant": torch.full((2, 40), -0.7),
        "outliers": outliers,
        "bounds": on_the_bounds(),
        "halves": halves(),
        "tiny": tiny,
        "float16": normal(6, 100).half(),
        "bfloat16": normal(6, 100).bfloat16(),
        "bfloat16_odd": normal(5, 33).bfloat16(),
    }


def main() -> None:
    tensors = {}
    for name, weight in cases().items():
        tensors[f"{name}.weight"] = weight
        for kind, dtypes in (("nf4", (torch.float32, torch.bfloat16)), ("fp4", (torch.float32,))):
            codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind)
            tensors[f"{name}.{kind}.codes"] = codes.reshape(-1)
            tensors[f"{name}.{kind}.absmax"] = state.absmax
            for dtype in dtypes:
                tensors[f"{name}.{kind}.{str(dtype)[6:]}"] = dequantize(codes, state, dtype)
        if not weight.half().isfinite().all():
            continue
        int8 = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)._quantize("cpu")
        tensors[f"{name}.int8.codes"] = int8.CB
        tensors[f"{name}.int8.SCB"] = int8.SCB
        tensors[f"{name}.int8.float32"] = functional.int8_vectorwise_dequant(int8.CB, int8.SCB)
    absmax = (torch.randn(1100, 64, generator=torch.Generator().manual_seed(3)) * 0.02).abs().amax(1)
    absmax[300:310] *= 7
    offset = absmax.double().mean().float()
    codes, scales = nest(absmax, offset)
    values = functional.create_dynamic_map()[codes.long()] * scales.repeat_interleave(256)[:1100] + offset
    for part, tensor in {"absmax": absmax, "offset": offset.reshape(1), "codes": codes, "nested_absmax": scales, "float32": values}.items():
        tensors[f"nested.{part}"] = tensor
    tensors |= {f"codebook.{kind}": table for kind, table in TABLES.items()}
    tensors["codebook.dynamic"] = functional.create_dynamic_map()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path = "tests/golden/quantize_bitsandbytes.safetensors"
    # One entry: safetensors writes several in a random order.
    source = f"tests/compat/quantize_golden.py, bitsandbytes {bnb.__version__}, torch {torch.__version__}"
    save_file(tensors, path, metadata={"source": source})
    os.chmod(path, 0o644)


if __name__ == "__main__":
    main()
