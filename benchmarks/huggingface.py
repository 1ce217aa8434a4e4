"""Serve an encoder's bundle beside a pipeline of transformers that has the same network, on the same core, in turn.

The pipeline has no HTTP before it, and the weights that the encoder began with: weights do not change the time. Needs wrk and
`make pretrained`. `--bundle` is a bundle of a text model whose architecture is minilm-l6.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.serving import load, servers
from benchmarks.serving.asks import JSON, Ask, Outputs, Sample

from loopline import tasks
from loopline.lib import sessions
from loopline.lib.machine import cpu_features, cpu_name
from loopline.release import bundle
from loopline.tasks.text import encoder_sources

WORDS = "the film is a gentle story of two friends who meet again after many years , and it never tries to be more than that"
ROUNDS, SECONDS = 3, 5
CONNECTIONS = (1, 16)
PIPELINE = """
import json, resource, sys, time
began = time.perf_counter()
import torch, transformers
torch.set_num_threads(1)
folder, text, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]")
tokenizer.backend_tokenizer.no_padding()
pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
pipe(text)
row = {"start": time.perf_counter() - began}
for batch in (1, 16):
    pipe([text] * batch, batch_size=batch)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        pipe([text] * batch, batch_size=batch)
        count += batch
    row[f"rate {batch}"] = count / (time.perf_counter() - began)
row["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(row))
"""


def ask(sample: Sample, labels: tuple[str, ...]) -> Ask:
    """A text in JSON, as people send it. labels: in the order of the model's output."""

    def read(_: Any, body: bytes) -> Outputs:
        (prediction,) = json.loads(body)["predictions"]
        values = prediction["probabilities"]  # the likeliest first
        return {"probabilities": np.array([[values[label] for label in labels]])}

    return Ask(f"/predict/{sample.model}", JSON, json.dumps({"text": WORDS}).encode(), read)


def served(folder: Path, sample: Sample, labels: tuple[str, ...], scratch: Path) -> dict[str, float]:
    """One round of the server: seconds to the first right answer, MB, answers a second by connections."""
    kind = replace(servers.KINDS[0], ask=partial(ask, labels=labels))
    with servers.running(kind, [folder], [sample], scratch) as server:
        row = {"start": server.start_seconds}
        for connections in CONNECTIONS:
            figures = load.closed(
                server.port, kind.ask(sample), connections=connections, seconds=SECONDS, scratch=scratch
            )
            if figures["failed"]:
                sys.exit(f"{figures['failed']} answers failed")
            row[f"rate {connections}"] = figures["rate"]
        return row | {"memory": server.memory()}


def pipeline(folder: Path) -> dict[str, float]:
    """One round of the pipeline: seconds to its first answer, MB at most, answers a second by batch."""
    command = ["taskset", "--cpu-list", str(servers.cores()[0]), sys.executable, "-c", PIPELINE, str(folder), WORDS]
    out = subprocess.run([*command, str(SECONDS)], capture_output=True, text=True, check=False)
    if out.returncode:
        sys.exit(out.stderr[-2000:])
    row: dict[str, float] = json.loads(out.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle of the encoder")
    options = parser.parse_args()
    if missing := load.missing_wrk():
        sys.exit(missing)
    opened = bundle.read(options.bundle)
    spec = opened.manifest.spec
    if spec.text is None or opened.model.stat().st_size < 15e6:
        sys.exit(f"{options.bundle} is no bundle of MiniLM-L6: train one as docs/pretrained.md says")
    ids = tasks.find(spec.task).preprocessor(spec, opened.folder)([WORDS])
    expected = {"probabilities": sessions.run(opened.model, ids)["probabilities"]}
    sample = Sample(opened.manifest.name, spec.task, "ids", "INT64", ids["ids"], b"", expected)
    ours, peer = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(ROUNDS):
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
            ours.append(served(options.bundle, sample, spec.labels, Path(scratch)))
            peer.append(pipeline(encoder_sources.find("minilm-l6")))
    setting = f"{opened.manifest.quantization}; {len(WORDS.split())} words, {ids['ids'].size} tokens"
    print(f"{cpu_name()}: {', '.join(cpu_features())}; {setting}\n")
    print("| | server | pipeline | ratio |\n|---|---|---|---|")
    names = {
        "rate 1": "answers a second, one at a time",
        "rate 16": "answers a second, 16 connections or a batch of 16",
        "start": "seconds to the first right answer",
        "memory": "MB resident",
    }
    for key, name in names.items():
        a, b = (median(row[key] for row in rows) for rows in (ours, peer))
        print(f"| {name} | {a:.3g} | {b:.3g} | {a / b:.2f}x |")


if __name__ == "__main__":
    main()
