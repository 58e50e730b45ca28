#!/usr/bin/env python3
"""Measures the models of SETTINGS in every combination of pruning, precision and recovery, and writes docs/results.md.

    ninja -C build/release qpruner_results_matrix
    bench/results.py --data DIR            # DIR has corpus/ and eval/ (see docs/results.md for the files)
    bench/results.py --only-draw           # from the measurements that docs/results/ holds

Cells that docs/results/NAME.jsonl holds already are not measured again: delete the file to start over, interrupt the
command at any time to go on later. Needs nothing but the Python of the system.
"""
import argparse
import bz2
import json
import math
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "docs", "results")
TASKS = ["arc_challenge", "arc_easy", "boolq", "hellaswag", "openbook_qa", "piqa", "winogrande"]
# Measured with answers' log-likelihoods divided by their lengths, as the papers report them.
BY_LENGTH = {"arc_challenge", "hellaswag", "openbook_qa"}
PRECISIONS = ["bf16", "8", "mixed", "4"]
RECOVERIES = ["none", "lora", "loftq", "distillation"]
RECOVERY_NAMES = {"none": "none", "lora": "LoRA", "loftq": "LoftQ", "distillation": "LoftQ + distillation"}
COLOURS = {"bf16": "#4c566a", "8": "#2f6f9f", "mixed": "#c2571a", "4": "#3f8f4f"}
SETTINGS = {
    "stories260k": {
        "title": "stories260k (Llama architecture, 260 thousand weights)",
        "model": lambda: os.path.join(ROOT, "data/models/stories260k"),
        "text": "tinystories-train-2MiB.txt", "other": "tinyshakespeare.txt",
        "tasks": [],  # Their words are not in a vocabulary of 512 pieces of children's stories.
        "options": ["--float32", "--steps", "60", "--tokens", "16384", "--samples", "32", "--sensitivity-samples", "32"],
    },
    "smollm2": {
        "title": "SmolLM2-135M-Instruct",
        "note": "The weights come from a Q4_1 GGUF file: they lie on a 4-bit asymmetric grid in groups of 32 already, "
                "which flatters every format of 4 bits or more beside what it would lose on the original weights.",
        "model": lambda: subprocess.run([os.path.join(ROOT, "scripts/fetch_smollm2")], check=True, text=True,
                                        stdout=subprocess.PIPE).stdout.strip(),
        "text": "wikitext-2-raw-test.txt", "other": "tinystories-train-2MiB.txt",
        "tasks": TASKS,
        "options": ["--steps", "20", "--batch", "4", "--learning-rate", "0.0005", "--tokens", "4088",
                    "--samples", "8", "--task-items", "25"],
    },
}


def measure(name, data, threads):
    settings = SETTINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        tasks = []
        for task in settings["tasks"]:
            path = os.path.join(data, "eval", task + ".jsonl")
            if task == "hellaswag":
                path = os.path.join(folder, task)
                with bz2.open(os.path.join(data, "eval", "hellaswag_val_full.txt.bz2")) as packed, open(path, "wb") as out:
                    out.write(packed.read())
            tasks += ["--task", f"{task}={path}"]
        subprocess.run([os.path.join(ROOT, "build/release/bin/qpruner_results_matrix"), settings["model"](),
                        "--text", os.path.join(data, "corpus", settings["text"]),
                        "--other-text", os.path.join(data, "corpus", settings["other"]),
                        "--output", os.path.join(RESULTS, name + ".jsonl"), "--threads", str(threads)]
                       + tasks + settings["options"], check=True)


def read(name):
    path = os.path.join(RESULTS, name + ".jsonl")
    if not os.path.exists(path):
        return {}
    with open(path) as lines:
        return {row["cell"]: row for row in map(json.loads, lines)}


def size(count):
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def metric(task):
    return "acc_norm" if task in BY_LENGTH else "acc"


def accuracy(row, task):
    """In per cent, and its standard error."""
    scores = row["tasks"][task]
    return 100 * scores[metric(task)], 100 * scores[metric(task) + "_stderr"]


def average(row):
    """Mean accuracy over the tasks and the standard error of that mean, in per cent."""
    accuracies = [accuracy(row, task) for task in row["tasks"]]
    if not accuracies:
        return None
    mean = sum(mean for mean, _ in accuracies) / len(accuracies)
    error = math.sqrt(sum(error ** 2 for _, error in accuracies)) / len(accuracies)
    return mean, error


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def scores(row):
    cells = [size(row["bytes"]), f"{row['average_bits']:.2f}", f"{row['perplexity']:.3f}", f"{row['kl']:.4f}",
             f"{row['other_perplexity']:.3f}", f"{row['other_kl']:.4f}"]
    mean = average(row)
    return cells + ([f"{mean[0]:.1f} ± {mean[1]:.1f}"] if mean else [])


def chart(cells, ratios, path):
    """KL against bytes, both logarithmic: a panel for each pruned share, a colour for each precision."""
    marks = {"none": "circle", "lora": "square", "loftq": "triangle", "distillation": "star"}
    points = [row for row in cells.values() if "recovery" in row and row["kl"] > 0]
    if not points:
        return
    x0, x1 = (math.log(f(row["bytes"] for row in points)) for f in (min, max))
    y0, y1 = (math.log(f(row["kl"] for row in points)) for f in (min, max))
    x0, x1, y0, y1 = x0 - 0.1, x1 + 0.1, y0 - 0.15, y1 + 0.15
    width, height, gap, left, top = 250, 240, 22, 84, 34
    total = left + len(ratios) * (width + gap)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height + 118}" font-family="sans-serif" '
           f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>']

    def mark(kind, x, y, colour):
        if kind == "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="#fff" stroke="{colour}" stroke-width="2"/>'
        if kind == "square":
            return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'
        corners = 3 if kind == "triangle" else 10
        reach = [5.8] if kind == "triangle" else [7, 2.8]
        dots = " ".join(f"{x + reach[i % len(reach)] * math.sin(2 * math.pi * i / corners):.1f},"
                        f"{y - reach[i % len(reach)] * math.cos(2 * math.pi * i / corners):.1f}" for i in range(corners))
        return f'<polygon points="{dots}" fill="{colour}"/>'

    def ticks(low, high, steps):
        found = []
        for exponent in range(math.floor(low / math.log(10)) - 1, math.ceil(high / math.log(10)) + 1):
            found += [m * 10.0 ** exponent for m in steps if low <= math.log(m * 10.0 ** exponent) <= high]
        return found

    y_of = lambda value: top + height - (math.log(value) - y0) / (y1 - y0) * height
    for panel, ratio in enumerate(ratios):
        x_at = left + panel * (width + gap)
        x_of = lambda value: x_at + (math.log(value) - x0) / (x1 - x0) * width
        out.append(f'<text x="{x_at + width / 2}" y="22" text-anchor="middle" font-weight="bold">'
                   f'{round(100 * ratio)} % pruned</text>')
        out.append(f'<rect x="{x_at}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>')
        for value in ticks(y0, y1, (1, 2, 5)):
            out.append(f'<line x1="{x_at}" x2="{x_at + width}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}" stroke="#eee"/>')
            if panel == 0:
                out.append(f'<text x="{x_at - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in [m * 2.0 ** e for e in range(8, 40) for m in (1, 1.5) if x0 <= math.log(m * 2.0 ** e) <= x1]:
            out.append(f'<line x1="{x_of(value):.1f}" x2="{x_of(value):.1f}" y1="{top}" y2="{top + height}" stroke="#eee"/>'
                       f'<text x="{x_of(value):.1f}" y="{top + height + 16}" text-anchor="middle">'
                       f'{size(value).replace(".0 ", " ")}</text>')
        for row in points:
            if abs(row["ratio"] - ratio) < 1e-9:
                out.append(mark(marks[row["recovery"]], x_of(row["bytes"]), y_of(row["kl"]), COLOURS[row["precision"]]))
    out.append(f'<text transform="translate(20,{top + height / 2}) rotate(-90)" text-anchor="middle">'
               f'KL to the original, nats a token</text>')
    x, y = left, top + height + 46
    for precision in PRECISIONS:
        label = precision if precision in ("bf16", "mixed") else precision + " bits"
        out.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{COLOURS[precision]}"/>'
                   f'<text x="{x + 15}" y="{y}">{label}</text>')
        x += 30 + 8 * len(label)
    x, y = left, y + 24
    for recovery in RECOVERIES:
        label = "no recovery" if recovery == "none" else RECOVERY_NAMES[recovery]
        out.append(mark(marks[recovery], x + 5, y - 4, "#333") + f'<text x="{x + 16}" y="{y}">{label}</text>')
        x += 32 + 7 * len(label)
    with open(path, "w") as svg:
        svg.write("\n".join(out + ["</svg>\n"]))


def section(name):
    settings, cells = SETTINGS[name], read(name)
    if "original" not in cells:
        return []
    original = cells["original"]
    ratios = sorted({row["ratio"] for row in cells.values() if "recovery" in row})
    chart(cells, ratios, os.path.join(RESULTS, name + ".svg"))
    lines = [f"## {settings['title']}", "", f"![KL against bytes](results/{name}.svg)", ""]
    if "note" in settings:
        lines += [settings["note"], ""]
    lines += [f"Calibrated, fine-tuned and measured on disjoint shares of `{settings['text']}`; the other domain is "
              f"`{settings['other']}`. Options: `{' '.join(settings['options'])}`.", ""]
    header = ["pruned", "precision", "recovery", "weights", "bits", "perplexity", "KL", "other domain's perplexity", "KL"]
    header += ["mean of the tasks, %"] if original["tasks"] else []
    header += ["CPU s to make", "wall s", "peak memory"]
    rows = [["–", "original", "–"] + scores(original) + ["–", f"{original['wall_seconds']:.0f}", "–"]]
    missing = []
    for ratio in ratios:
        for precision in PRECISIONS:
            for recovery in RECOVERIES:
                row = cells.get(f"{round(100 * ratio)}%/{precision}/{recovery}")
                if precision == "bf16" and recovery == "loftq":
                    continue  # The same as LoRA.
                if row is None:
                    missing.append(f"{round(100 * ratio)} %, {precision}, {RECOVERY_NAMES[recovery]}")
                    continue
                control = ratio == 0 and precision == "bf16" and recovery != "none"
                rows.append([f"{round(100 * ratio)} %", precision,
                             RECOVERY_NAMES[recovery] + (" (control)" if control else "")]
                            + scores(row) + [f"{row['make_cpu_seconds']:.0f}", f"{row['wall_seconds']:.0f}",
                                             size(row["peak_bytes"])])
    lines += table(header, rows)
    lines += ["", "Rows marked (control) fine-tune the unpruned, unquantized model alike: what they gain is adaptation to the "
              "text, not recovery. On bf16 LoftQ is LoRA.", ""]
    if missing:
        lines += [f"Not measured yet ({len(missing)} cells): " + "; ".join(missing) + ".", ""]
    if original["tasks"]:
        tasks = list(original["tasks"])
        lines += [f"Accuracy in per cent ± standard error on the first {original['tasks'][tasks[0]]['items']} items of each "
                  "task, scored as lm-eval scores them without examples.", ""]
        order = ["original"] + [cell for cell in cells if cell != "original" and not cell.startswith("importance")]
        lines += table(["", *(f"{task}, {metric(task)}" for task in tasks)], [[cell.replace("/", ", ")] + [
            "{:.0f} ± {:.0f}".format(*accuracy(cells[cell], task)) for task in tasks] for cell in order])
        lines.append("")
    importances = [row for cell, row in cells.items() if cell.startswith("importance")]
    if importances:
        lines += ["Importance measures, pruned alone, no recovery:", ""]
        lines += table(["pruned", "importance", "perplexity", "KL", "other domain's perplexity", "KL"],
                       [[f"{round(100 * row['ratio'])} %", row["importance"], f"{row['perplexity']:.3f}", f"{row['kl']:.4f}",
                         f"{row['other_perplexity']:.3f}", f"{row['other_kl']:.4f}"]
                        for row in sorted(importances, key=lambda row: (row["ratio"], row["kl"]))])
        lines.append("")
    return lines


def draw():
    lines = ["# Results", "", "Made by `bench/results.py`; the measurements are in [results/](results), a line a cell. One seed. KL and the "
             "other domain tell recovery from adaptation: fine-tuning on the same kind of text lowers its perplexity by both.",
             "`4` is NF4, `8` is int8 with a scale a row, `mixed` is 4 or 8 for each fused group by measured "
             "sensitivities within 6.5 stored bits, embeddings, norms and head are bfloat16 throughout. \"CPU s\" are of "
             "quantization and training, over all threads; \"wall s\" is the whole cell with its measurement, while the "
             "machine had other work too (compare CPU seconds); \"peak memory\" is the whole process's, with the "
             "original held beside.", "",
             "Machine: CPU only, 2 cores (AMD EPYC or Intel Xeon, AVX-512), 24 GiB; SmolLM2 on the AMD EPYC, one thread.", ""]
    for name in SETTINGS:
        lines += section(name)
    with open(os.path.join(ROOT, "docs", "results.md"), "w") as out:
        out.write("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with corpus/ and eval/")
    parser.add_argument("--model", action="append", choices=SETTINGS, help="default: all")
    parser.add_argument("--threads", type=int, default=2, help="1 if the machine has other work")
    parser.add_argument("--only-draw", action="store_true")
    arguments = parser.parse_args()
    if not arguments.only_draw:
        if not arguments.data:
            parser.error("--data is needed to measure")
        os.makedirs(RESULTS, exist_ok=True)
        for name in arguments.model or SETTINGS:
            measure(name, arguments.data, arguments.threads)
    draw()


if __name__ == "__main__":
    sys.exit(main())
