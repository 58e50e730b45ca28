#!/usr/bin/env python3
"""Compares tokenizers rebuilt from GGUF metadata with llama.cpp's cases and with the originals.

Needs: gguf, transformers, sentencepiece; build/release/bin/qpruner_tokenize
(ninja -C build/release qpruner_tokenize). Run from the repository root:

    tests/compat/run gguf_tokenizer_check.py [--vocabularies FOLDER] [--strings 10000]

Cases: the shared folder's data/tokenizers/cases (QPRUNER_SHARED_DIR, else ../shared), each with the
tokenizer that belongs to it: the gpt2 and llama2 ones of data/tokenizers, written as GGUF by this
script, and, with --vocabularies, the ggml-vocab-*.gguf files of a llama.cpp source tree's models/.

Strings: random Unicode of several kinds, from a fixed seed. The gpt2, minimind and mistral32k
tokenizers go to GGUF metadata as llama.cpp's converter writes it and are compared with their own
tokenizer.json in transformers; llama2 with the sentencepiece library. SmolLM2 (QPRUNER_SMOLLM2, or the
file that scripts/fetch_smollm2 keeps) is compared with transformers' GPT-2 tokenizer behind the digit
splitting that its tokenizer.json has.

Prints how many were compared, and ends with an error at the first that differs.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import gguf
import sentencepiece
import tokenizers
import transformers

SHARED = pathlib.Path(os.environ.get("QPRUNER_SHARED_DIR", "../shared")) / "data" / "tokenizers"
TOOL = pathlib.Path("build/release/bin/qpruner_tokenize")
TYPES = gguf.TokenType


def ours(model: pathlib.Path, texts: list[str]) -> list[list[int]]:
    lines = "\n".join(json.dumps(text) for text in texts) + "\n"
    result = subprocess.run([TOOL, model], input=lines, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{model}: {result.stderr}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def compare(name: str, what: str, texts: list[str], got: list[list[int]], expected: list[list[int]]):
    assert len(got) == len(expected) == len(texts), (name, len(got), len(expected), len(texts))
    wrong = [i for i in range(len(texts)) if list(got[i]) != list(expected[i])]
    for i in wrong[:3]:
        print(f"  {texts[i]!r}\n    ours     {got[i]}\n    expected {list(expected[i])}")
    print(f"{name}: {len(texts) - len(wrong)} of {len(texts)} {what} equal", flush=True)
    if wrong:
        sys.exit(1)


def write_bpe(path: pathlib.Path, source: pathlib.Path, pre: str) -> None:
    """A byte-level tokenizer.json as llama.cpp's converter stores it."""
    content = json.load(open(source))
    vocabulary = dict(content["model"]["vocab"])
    added = {token["content"]: token for token in content["added_tokens"]}
    for token in added.values():
        vocabulary.setdefault(token["content"], token["id"])
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    kinds = [
        TYPES.NORMAL if t not in added else TYPES.CONTROL if added[t]["special"] else TYPES.USER_DEFINED
        for t in tokens
    ]
    writer.add_token_types(kinds)
    merges = content["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    finish(writer)


def write_sentencepiece(path: pathlib.Path, source: pathlib.Path) -> None:
    """A tokenizer.model as llama.cpp's converter stores it."""
    model = sentencepiece.SentencePieceProcessor(str(source))
    kinds = []
    for i in range(model.vocab_size()):
        kinds.append(
            TYPES.UNKNOWN if model.IsUnknown(i)
            else TYPES.CONTROL if model.IsControl(i)
            else TYPES.UNUSED if model.IsUnused(i)
            else TYPES.BYTE if model.IsByte(i)
            else TYPES.NORMAL
        )  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([model.IdToPiece(i) for i in range(model.vocab_size())])
    writer.add_token_scores([model.GetScore(i) for i in range(model.vocab_size())])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_texts(count: int) -> list[str]:
    """Unicode of several kinds: all planes, letters of many scripts, white space, words, digits."""
    rng = random.Random(20260711)
    assigned = [
        chr(c) for c in range(0x110000)
        if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")
    ]  # fmt: skip
    spaces = [c for c in assigned if c.isspace()] + list("  \n\n\t\r")
    ascii_text = [chr(c) for c in range(1, 127)]
    words = "the of Hello world I'll don't WE'RE naïve Führer 你好 नमस्ते مرحبا Привет 3.14 1000000 ab12cd ½".split()
    kinds = [
        lambda: rng.choice(assigned),
        lambda: chr(rng.randrange(0x20, 0x3000)),
        lambda: rng.choice(spaces),
        lambda: rng.choice(ascii_text),
        lambda: rng.choice(words),
        lambda: " " + rng.choice(words),
        lambda: str(rng.randrange(100000)),
        lambda: rng.choice("'\"-_.,;:!?()[]{}<>|\\/@#$%^&*+=~`") * rng.randrange(1, 4),
        lambda: chr(rng.randrange(0x300, 0x370)),  # Combining marks.
        lambda: chr(rng.randrange(0x1F300, 0x1FAFF)),
    ]
    texts = []
    while len(texts) < count:
        chosen = rng.sample(kinds, rng.randrange(1, len(kinds) + 1))
        text = "".join(rng.choice(chosen)() for _ in range(rng.randrange(1, 40)))
        if not any(0xD800 <= ord(c) < 0xE000 for c in text):
            texts.append(text)
    return texts


def cases(name: str, model: pathlib.Path, folder: pathlib.Path) -> None:
    stem = folder / f"ggml-vocab-{name}.gguf"
    texts = (stem.parent / (stem.name + ".inp")).read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (stem.parent / (stem.name + ".out")).read_text().split("\n")
    expected = [[int(token) for token in line.split()] for line in lines[: len(texts)]]
    compare(f"{name} ({folder.name})", "cases of llama.cpp", texts, ours(model, texts), expected)


def smollm2_reference(path: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    backend.add_special_tokens([t for t, kind in zip(tokens, kinds) if kind == TYPES.CONTROL])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocabularies", type=pathlib.Path, help="models/ of a llama.cpp source tree")
    parser.add_argument("--strings", type=int, default=10000)
    arguments = parser.parse_args()
    texts = random_texts(arguments.strings)

    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for name in ("gpt2", "minimind"):
            models[name] = pathlib.Path(folder) / f"{name}.gguf"
            write_bpe(models[name], SHARED / name / "tokenizer.json", "gpt-2")
        for name in ("llama2", "mistral32k"):
            models[name] = pathlib.Path(folder) / f"{name}.gguf"
            write_sentencepiece(models[name], SHARED / name / "tokenizer.model")

        cases("gpt-2", models["gpt2"], SHARED / "cases")
        cases("llama-spm", models["llama2"], SHARED / "cases")
        if arguments.vocabularies:
            for name in ("gpt-2", "llama-spm", "llama-bpe", "qwen2", "starcoder", "refact"):
                vocabulary = arguments.vocabularies / f"ggml-vocab-{name}.gguf"
                for cases_folder in (SHARED / "cases", arguments.vocabularies):
                    if (cases_folder / (vocabulary.name + ".inp")).exists():
                        cases(name, vocabulary, cases_folder)

        for name in ("gpt2", "minimind"):
            original = transformers.PreTrainedTokenizerFast(
                tokenizer_file=str(SHARED / name / "tokenizer.json")
            )
            expected = original(texts, add_special_tokens=False)["input_ids"]
            compare(name, "random strings as transformers", texts, ours(models[name], texts), expected)
        original = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(SHARED / "mistral32k" / "tokenizer.json")
        )
        expected = original(texts, add_special_tokens=False)["input_ids"]
        compare("mistral32k", "random strings as transformers", texts, ours(models["mistral32k"], texts), expected)
        model = sentencepiece.SentencePieceProcessor(str(SHARED / "llama2" / "tokenizer.model"))
        expected = [model.encode(text) for text in texts]
        compare("llama2", "random strings as sentencepiece", texts, ours(models["llama2"], texts), expected)

    cache = os.environ.get("QPRUNER_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "qpruner"
    )
    smollm2 = os.environ.get("QPRUNER_SMOLLM2")
    found = [pathlib.Path(smollm2)] if smollm2 else sorted(pathlib.Path(cache).glob("smollm2-*/*.gguf"))
    if not found:
        print("smollm2: left out, there is no file; run scripts/fetch_smollm2")
        return
    expected = smollm2_reference(found[0])(texts, add_special_tokens=False)["input_ids"]
    compare("smollm2", "random strings as transformers", texts, ours(found[0], texts), expected)


if __name__ == "__main__":
    main()
