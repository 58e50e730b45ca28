#!/usr/bin/env python3
"""Loads GGUF exports with llama.cpp on CPU, and measures them there.

  tests/compat/run gguf_serving_check.py FOLDER

FOLDER holds folders with a model.gguf and a documents.json: {"documents": [[token ids], ...], "perplexity": what QPruner
measured}, which engine_export_test leaves (worker/engine/export/pruned_heads_test.cc). Needs llama-cpp-python: see
gguf_export_check.py. Ends with status 1 if llama.cpp does not load one, or its perplexity differs by more than 1 %.
"""
import pathlib
import sys

import llama_cpp
from export_check import read_documents
from gguf_export_check import TOLERANCE, load, perplexity


def main() -> None:
    failed = []
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*/model.gguf")):
        documents, reported = read_documents(path.parent / "documents.json")
        model = load(path)
        if not model:
            print(f"{path.parent.name:28} is not loaded")
            failed.append(path.parent.name)
            continue
        measured, count = perplexity(model, documents)
        difference = measured / reported - 1
        print(f"{path.parent.name:28} reported {reported:.4f}, llama.cpp {measured:.4f} over {count} tokens ({difference:+.3%})")
        if not abs(difference) <= TOLERANCE:
            failed.append(path.parent.name)
        llama_cpp.llama_model_free(model)
    if failed:
        sys.exit(f"not as reported: {', '.join(failed)}")


if __name__ == "__main__":
    main()
