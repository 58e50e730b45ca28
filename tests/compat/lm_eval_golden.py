#!/usr/bin/env python3
"""Writes tests/golden/lm_eval_stories260k.json: multiple-choice scores by EleutherAI's lm-eval.

Rows of every kind that the engine reads, written for this purpose, through lm-eval's own task definitions
(for rows of published data sets; only where the rows come from is replaced) or a plain one (for
{query, choices, gold} and {context_options, continuation, gold}). Kept of each item: the requests as lm-eval
makes them, their log-likelihoods, and the metrics; of each task the means and their standard errors. And a text
of its own in rolling windows: the windows, and the log-likelihood of the whole (loglikelihood_rolling).

    lm_eval_golden.py                       writes the golden file
    lm_eval_golden.py MODEL ITEMS SCORES.jsonl
        compares the engine's scores (a job's artifact report/tasks.*.jsonl) item by item with what lm-eval says
        of MODEL, a Hugging Face folder, on the same items: ITEMS is the job's folder prepared/tasks
"""

import json
import pathlib
import sys
import tempfile

import lm_eval
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "data/models/stories260k"
TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"
METRICS = ["acc", "acc_norm", "acc_bytes"]

LONG = "Once upon a time there was a little girl named Lily. She liked to play in the park with her friends. " * 24
ROWS = {
    "plain": [
        {"query": "Once upon a time, there was a little", "choices": ["girl named Lily.", "the of the", "rocket"], "gold": 0},
        {"query": "The boy was sad. He ", "choices": ["started to cry", "cried", "laughed and laughed and laughed"], "gold": 1},
        {"query": "Mum said:\t \n", "choices": ["“Don’t be afraid, naïve café!”", "no"], "gold": 0},
        {"query": "Tom had a dog. The dog's name was", "choices": ["Spot", "Sp", "Spot.", "Max and he ran"], "gold": 2},
        {"query": LONG + "She was very", "choices": ["happy", "sad", "big and red"], "gold": 0},
        {"query": "One day a big bear came to the", "choices": ["forest", "park", "moon ☾ and 夢"], "gold": 2},
    ],
    "partial": [
        {"context_options": ["The cat chased the mouse because the cat", "The cat chased the mouse because the mouse"],
         "continuation": "was hungry.", "gold": 0},
        {"context_options": ["Lily gave Tom her ball because Lily", "Lily gave Tom her ball because Tom"],
         "continuation": "wanted to play.", "gold": 1},
        {"context_options": ["Ben ", "The sun", "A tree"], "continuation": "was very happy and he smiled.", "gold": 0},
    ],
    "boolq": [
        {"passage": "Cats are small animals. They like milk.", "question": "do cats like milk", "label": 1, "idx": 0},
        {"passage": "The sun is hot. The moon is cold.", "question": "is the moon hot", "label": 0, "idx": 1},
        {"passage": "Tom has a red ball.", "question": "is the ball of tom red", "label": 1, "idx": 2},
    ],
    "piqa": [
        {"goal": "How do you wash a dog?", "sol1": "Put it in a bath with water and soap.", "sol2": "Put it in the oven.", "label": 0},
        {"goal": "To eat an apple,", "sol1": "throw it away.", "sol2": "bite it.", "label": 1},
        {"goal": "play with a friend", "sol1": "ask the friend nicely", "sol2": "run away and hide", "label": 0},
    ],
    "hellaswag": [
        {"ind": 1, "activity_label": "Playing ball", "ctx_a": "A boy holds a ball.", "ctx_b": "he", "ctx": "",
         "endings": ["throws it to his friend.", "eats the tree.", "is a ball.", "sings [loud] to the moon."],
         "source_id": "a", "split": "val", "split_type": "indomain", "label": "0"},
        {"ind": 2, "activity_label": "Family Life", "ctx_a": "How to make a cake [header] Mix [title] Take eggs.  [step] Then stir.",
         "ctx_b": "", "ctx": "", "endings": ["[substeps] Bake it for  an hour.", "Run to the park.", "Give it a hug.", "[title] Sleep."],
         "source_id": "b", "split": "val", "split_type": "indomain", "label": "3"},
        {"ind": 3, "activity_label": "Climbing", "ctx_a": "The girl sees a tall tree.", "ctx_b": "éMILE and SHE",
         "ctx": "", "endings": ["climbs up and up", "wants to go home", "is very small [", "jumps ] down"],
         "source_id": "c", "split": "val", "split_type": "zeroshot", "label": "1"},
    ],
    "arc_easy": [
        {"id": "x1", "question": "What do plants need to grow?",
         "choices": {"text": ["water and sun", "a hat", "a car", "milk"], "label": ["A", "B", "C", "D"]}, "answerKey": "A"},
        {"id": "x2", "question": "Which one can fly?",
         "choices": {"text": ["a stone", "a bird", "a fish"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    ],
    "openbookqa": [
        {"id": "y1", "question_stem": "When it rains, the ground gets",
         "choices": {"text": ["dry", "wet", "hot", "loud"], "label": ["A", "B", "C", "D"]}, "answerKey": " B"},
        {"id": "y2", "question_stem": "A bird lives in a",
         "choices": {"text": ["nest", "shoe", "cup of tea", "fish"], "label": ["A", "B", "C", "D"]}, "answerKey": "A"},
    ],
    "winogrande": [
        {"sentence": "Sam gave Ben the toy because _ was kind.", "option1": "Sam", "option2": "Ben", "answer": "1"},
        {"sentence": "The ball did not fit in the box, so _ had to be bigger .", "option1": "the ball", "option2": "the box", "answer": "2"},
    ],
}
FILES = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "winogrande": "winogrande/default.yaml",
}


def published_task(kind):
    """lm-eval's task definition, with functions of its folder resolved by lm-eval's own loader."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(TASKS / FILES[kind])


def plain_task(kind):
    if kind == "partial":
        # As WinoGrande's definition does it: the "text" is the answer, the "target" the continuation.
        return {
            "doc_to_text": lambda doc: doc["gold"],
            "doc_to_target": lambda doc: doc["continuation"],
            "doc_to_choice": lambda doc: doc["context_options"],
        }
    return {"doc_to_text": lambda doc: doc["query"], "doc_to_target": lambda doc: doc["gold"], "doc_to_choice": lambda doc: doc["choices"]}


def evaluate(model, kind, rows, folder):
    path = pathlib.Path(folder) / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = published_task(kind) if kind in FILES else plain_task(kind)
    for key in ["dataset_name", "tag", "training_split", "validation_split", "test_split", "metadata"]:
        config.pop(key, None)
    config.update(
        task=kind,
        output_type="multiple_choice",
        dataset_path="json",
        dataset_kwargs={"data_files": {"test": str(path)}},
        test_split="test",
        metric_list=[{"metric": metric} for metric in METRICS],
    )
    result = lm_eval.simple_evaluate(model, tasks=[config], log_samples=True, bootstrap_iters=1)
    samples = sorted(result["samples"][kind], key=lambda sample: sample["doc_id"])
    summary = result["results"][kind]
    return {
        "rows": rows,
        "items": [
            {
                "requests": [[argument[0], argument[1]] for argument in sample["arguments"]],
                "log_likelihoods": [float(response[0][0]) for response in sample["resps"]],
                "greedy": [response[0][1] in (True, "True") for response in sample["resps"]],
                **{metric: sample[metric] for metric in METRICS},
            }
            for sample in samples
        ],
        "summary": {metric: [summary[f"{metric},none"], summary[f"{metric}_stderr,none"]] for metric in METRICS},
    }


def load(folder, **options):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, **options)


def rolling():
    """Windows for several sizes, and log-likelihoods by lm-eval's own loglikelihood_rolling (one token of context)."""
    # Without the tokenizer's own bos: lm-eval puts its prefix token, the same one, in front.
    model = load(MODEL, max_length=64, add_bos_token=False)
    ids = [model.prefix_token_id] + model.tok_encode(LONG)
    sizes = []
    for max_seq_len, context_len in [(64, 1), (64, 33), (100, 99), (2048, 1)]:
        # First token, first predicted one, one past the last.
        bounds, predicted = [], 1
        for window in get_rolling_token_windows(ids[1:], ids[0], max_seq_len, context_len):
            context, continuation = make_disjoint_window(window)
            begin, end = predicted - len(context), predicted + len(continuation)
            assert context + continuation == ids[begin:end]
            bounds += [begin, predicted, end]
            predicted = end
        assert predicted == len(ids)
        sizes.append({"max_seq_len": max_seq_len, "context_len": context_len, "bounds": str(bounds)})
    request = Instance("loglikelihood_rolling", {}, (LONG,), 0)
    return {"text": LONG, "ids": str(ids), "sizes": sizes, "max_length": 64,
            "log_likelihood": model.loglikelihood_rolling([request])[0]}


def write_golden():
    model = load(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        golden = {"made_by": "tests/compat/lm_eval_golden.py", "lm_eval": lm_eval.__version__}
        golden["rolling"] = rolling()
        golden["tasks"] = {kind: evaluate(model, kind, rows, folder) for kind, rows in ROWS.items()}
    (ROOT / "tests/golden/lm_eval_stories260k.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


def compare_task(model, name, rows, ours, folder):
    """Prints how far the two are apart; whether they agree."""
    assert len(rows) == len(ours), f"{name}: {len(rows)} items, but {len(ours)} scores"
    kind = "partial" if "context_options" in rows[0] else "plain"
    theirs = evaluate(model, kind, rows, folder)
    worst, flips = 0.0, 0
    for mine, item in zip(ours, theirs["items"], strict=True):
        for a, b in zip(mine["log_likelihoods"], item["log_likelihoods"], strict=True):
            worst = max(worst, abs(a - b) / max(1.0, abs(b)))
        flips += mine["acc"] != bool(item["acc"])
        if kind == "plain":
            flips += mine["acc_norm"] != bool(item["acc_norm"])
    mean = sum(mine["acc"] for mine in ours) / len(ours)
    print(f"{name}: {len(ours)} items, {sum(len(m['log_likelihoods']) for m in ours)} log-likelihoods: largest difference {worst:.2e} "
          f"(relative, or nats below 1); {flips} judged otherwise; acc {mean:.4f} here, {theirs['summary']['acc'][0]:.4f} lm-eval",
          flush=True)
    return worst <= 1e-4 and flips == 0


def compare(folder, items, scores):
    read = lambda path: [json.loads(line) for line in pathlib.Path(path).read_text().splitlines() if line]
    ours, model = read(scores), load(folder)
    with tempfile.TemporaryDirectory() as work:
        agree = [compare_task(model, path.stem, read(path), [line for line in ours if line["task"] == path.stem], work)
                 for path in sorted(pathlib.Path(items).glob("*.jsonl"))]
    assert agree, f"no items in {items}"
    sys.exit(0 if all(agree) else 1)


if __name__ == "__main__":
    torch.set_num_threads(2)
    if len(sys.argv) == 4:
        compare(*sys.argv[1:])
    else:
        write_golden()
