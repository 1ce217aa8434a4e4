"""The data cards say what the pipeline counted."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_data_cards_count_what_the_pipeline_counted():
    page = (ROOT / "docs/data-cards.md").read_text(encoding="utf-8")
    samples = re.search(r"^\| samples \|(.*)\|$", page, re.MULTILINE)[1].split("|")
    splits = re.search(r"^\| train, val, test \|(.*)\|$", page, re.MULTILINE)[1].split("|")
    for model, said, shares in zip(("classifier", "detector", "text"), samples, splits, strict=True):
        account = json.loads((ROOT / f"data/{model}/ingest.json").read_text(encoding="utf-8"))
        assert said.strip() == f"{account['samples']:,}"
        assert shares.strip() == ", ".join(f"{account['splits'][split]:,}" for split in ("train", "val", "test"))
