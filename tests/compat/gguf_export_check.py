#!/usr/bin/env python3
"""Loads a GGUF file that QPruner exported with llama.cpp on CPU, and measures it there.

  tests/compat/run gguf_export_check.py MODEL.gguf IDS --perplexity REPORTED [--folder MODEL_DIR]

MODEL.gguf    the exported file (OUT/gguf/model.gguf)
IDS           a job's prepared/reference.safetensors (its test share)
--perplexity  as the job's report has it for the row "gguf"
--folder      the prepared model, whose tokenizer.json the file's tokenizer must equal on random texts

Needs llama-cpp-python (built from its source package; not in requirements.txt, because that takes minutes):
`pip install --no-binary llama-cpp-python llama-cpp-python`. LLAMA_CPP_LIB_PATH names another folder of llama.cpp's
libraries. Ends with status 1 if perplexities differ by more than 1 % or a text gives other ids.
"""

import argparse
import ctypes
import math
import pathlib
import sys

import llama_cpp
import numpy as np
from export_check import read_documents
from gguf_tokenizer_check import random_texts

TOLERANCE = 1e-2


# llama.cpp calls it for as long as the process lives.
QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)


def load(path: pathlib.Path):
    """None: llama.cpp does not load it."""
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())


def perplexity(model, documents: list[list[int]]) -> tuple[float, int]:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(map(len, documents))
    params.n_threads = params.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(model, params)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    total, count = 0.0, 0
    for ids in documents:
        if len(ids) < 2:
            continue
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
            batch.seq_id[i][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), vocabulary))
        rows = logits[:-1].astype(np.float64)
        top = rows.max(1)
        normalizer = np.log(np.exp(rows - top[:, None]).sum(1)) + top
        total += (normalizer - rows[np.arange(len(ids) - 1), ids[1:]]).sum()
        count += len(ids) - 1
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    return math.exp(total / count), count


def tokenize(model, text: str) -> list[int]:
    data = text.encode()
    out = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(
        llama_cpp.llama_model_get_vocab(model), data, len(data), out, len(out), False, True
    )
    return list(out[:count])


def check_tokenizer(model, folder: pathlib.Path) -> bool:
    import tokenizers

    original = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    # llama.cpp reads no NUL; an empty text has no tokens on either side.
    texts = [text for text in random_texts(1000) if "\0" not in text]
    wrong = [t for t in texts if tokenize(model, t) != original.encode(t, add_special_tokens=False).ids]
    for text in wrong[:3]:
        print(f"  {text!r}\n    llama.cpp {tokenize(model, text)}\n    original  {original.encode(text).ids}")
    print(f"tokenizer: {len(texts) - len(wrong)} of {len(texts)} random texts equal")
    return not wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("ids", type=pathlib.Path)
    parser.add_argument("--perplexity", type=float, required=True)
    parser.add_argument("--folder", type=pathlib.Path)
    args = parser.parse_args()
    model = load(args.model)
    assert model, f"llama.cpp does not load {args.model}"
    measured, count = perplexity(model, read_documents(args.ids)[0])
    difference = measured / args.perplexity - 1
    print(f"llama.cpp: perplexity {measured:.4f} over {count} tokens; reported {args.perplexity}: {difference:+.3%}")
    fine = abs(difference) <= TOLERANCE
    if args.folder:
        fine = check_tokenizer(model, args.folder) and fine
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
