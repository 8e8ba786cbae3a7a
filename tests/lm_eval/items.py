"""Items for lm-evaluation-harness: the folders that scripts/fetch_material.sh fills, of which TINYONN_MATERIAL names the one."""

import gzip
import itertools
import json
import os
from pathlib import Path

import datasets

# Items from here on are the package's own extras, as for exp_benchmark.
EXTRAS = 1_000_000


def load(folder: str, **_) -> dict[str, datasets.Dataset]:
    path = Path(os.environ["TINYONN_MATERIAL"]) / "benchmarks" / folder / "requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        read = [line for line in map(json.loads, lines) if line["doc_id"] < EXTRAS]
    items = []
    for doc_id, choices in itertools.groupby(read, key=lambda line: line["doc_id"]):
        choices = list(choices)
        contexts = {choice["request"]["context"] for choice in choices}
        if len(contexts) != 1:
            raise ValueError(f"{path}: the choices of item {doc_id} differ in their contexts")
        continuations = [choice["request"]["continuation"] for choice in choices]
        items.append({"id": doc_id, "context": contexts.pop(), "continuations": continuations, "gold": choices[0]["label"]})
    return {"test": datasets.Dataset.from_list(items)}
