#!/usr/bin/env python3
"""Writes tests/golden/gguf/tokenizer-*.gguf and tokenizers.json: small tokenizers and what they give.

Needs: gguf, tokenizers. Run from the repository root.

A byte-level BPE of 400 tokens, trained on the shipped stories, is stored once for each pre-tokenizer
family; the shipped stories260k tokenizer as SentencePiece. tokenizers.json holds for each file a list
of [text, ids], by Hugging Face's library from the definitions that the models' own files have.
"""

import json
import random

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

GOLDEN = "tests/golden/gguf"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT = lambda expression: pre_tokenizers.Split(Regex(expression), "isolated")  # noqa: E731
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
FAMILIES = {
    "default": [
        SPLIT(r"[\p{P}\$\+<=>\^~\|]+"), SPLIT(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        SPLIT(r"\p{N}+"), SPLIT(r"[0-9][0-9][0-9]"), BYTES,
    ],
    "gpt-2": [GPT2],
    "llama-bpe": [SPLIT(LLAMA3), BYTES],
    "qwen2": [SPLIT(LLAMA3.replace("{1,3}", "")), BYTES],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), GPT2],
}  # fmt: skip
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
USER = ["<code>"]
TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", " \t \n", "Once upon a time", " Once", "once\n\n there  was a girl.",
    "I'll, I'LL; don't! We've 'd", "3", "33", "333 4444 55555", "1,000.50 $12+7=19", "ab12cd 7up",
    "<|endoftext|>Hello<|im_start|> you", "a<code>b <code> c", "(<=>)^~|[]{}_-'\"", "Führer ½ naïve",
    "e\u0301 \u00e9 A\u030a \u212b", "你好，世界！", "مرحبا नमस्ते Привет", "🚀 🌵👨‍👩‍👧 ✅", "\u00a0\u2003x\u3000y",
    "The little dog wagged its tail and they were happy.", "▁under▁score_", "<0x41> <s> </s> <unk>", "\r\nx\r\n",
]  # fmt: skip


def texts() -> list[str]:
    rng = random.Random(7)
    random_ones = [
        "".join(chr(rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0xA0, 0x2FFF), rng.randrange(0x1F300, 0x1F600)]))
                for _ in range(rng.randrange(1, 24)))
        for _ in range(40)
    ]  # fmt: skip
    return TEXTS + random_ones


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level(expected: dict) -> None:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = GPT2
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train(["data/corpus/tinystories.txt"], trainer)
    model = json.loads(trained.to_str())["model"]
    # A whole word without a merge that leads to it: only "ignore_merges" finds it.
    vocabulary = {**model["vocab"], "Führer".replace("ü", "Ã¼"): 400, USER[0]: 401}
    tokens = sorted(vocabulary, key=vocabulary.get)
    for pre, steps in FAMILIES.items():
        merges = [tuple(merge) for merge in model["merges"]]
        backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
        if pre == "qwen2":
            backend.normalizer = normalizers.NFC()
        backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
        backend.add_tokens([AddedToken(t, normalized=False) for t in USER])
        writer = gguf.GGUFWriter(f"{GOLDEN}/tokenizer-{pre}.gguf", "llama")
        writer.add_tokenizer_model("gpt2")
        if pre != "default":
            writer.add_tokenizer_pre(pre)
        # Fillers, as converters append them.
        writer.add_token_list([*tokens, "[PAD402]", "[PAD403]"])
        kinds = [gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.USER_DEFINED if t in USER
                 else gguf.TokenType.NORMAL for t in tokens]  # fmt: skip
        writer.add_token_types([*kinds, gguf.TokenType.UNUSED, gguf.TokenType.UNUSED])
        writer.add_token_merges([" ".join(merge) for merge in merges])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)
        finish(writer)
        expected[pre] = [[text, backend.encode(text, add_special_tokens=False).ids] for text in texts()]


def sentencepiece(expected: dict) -> None:
    path = "data/models/stories260k/tokenizer.json"
    model = json.load(open(path))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer = gguf.GGUFWriter(f"{GOLDEN}/tokenizer-sentencepiece.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    # Training numbers the merged pieces by rank, and so scores them.
    writer.add_token_scores([float(-max(i - 259, 0)) for i in range(len(tokens))])
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer)
    original = Tokenizer.from_file(path)
    expected["sentencepiece"] = [
        [text, original.encode(text, add_special_tokens=False).ids] for text in texts()
    ]


def main() -> None:
    expected: dict = {}
    byte_level(expected)
    sentencepiece(expected)
    with open(f"{GOLDEN}/tokenizers.json", "w") as file:
        json.dump(
            {"script": "tests/compat/gguf_tokenizer_golden.py", "expected": expected}, file, separators=(",", ":")
        )
        file.write("\n")


if __name__ == "__main__":
    main()
