"""Comparison: the baseline beside the best, what was changed between them and what it cost."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cnn_search.ledger import Record, Trial

COSTS = {  # of a trial: what the report compares, and its unit
    "parameters": "parameters",
    "flops": "FLOPs of one image, forward",
    "training_flops": "FLOPs of the training",
    "training_seconds": "seconds of the training",
    "image_seconds": "latency of one image",
    "batch_seconds": "latency of an image in a batch of 512",
    "model_bytes": "size of the model's file",
}


def named_trial(trial: Trial) -> str:
    """Return what a trial is called, as "trial 3" or "trial 0 (vgg_bn)"."""
    name = trial.baseline or trial.recipe
    return f"trial {trial.number}" + (f" ({name})" if name else "")


def compare(record: Record, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the baseline against the best, row by row: what was changed, and what it cost.

    Where it is scored, means over the retrained seeds; else the best trial of the search. Where the
    baseline is the best, the best of the others stands against it.

    Returns:
        `evidence`, "test" or "validation"; `baseline` and `best`, names, or None where there is no
        such thing; `won`, whether the best is the best of all; `changed`: `name`, `baseline`,
        `best`; `unchanged`, a number; `costs`: `name`, `unit`, `baseline`, `best` (None where it is
        not known); `scores` of the search by name, where it is not scored.
    """
    if answer["state"] == "scored":
        rows = {row["name"]: row for row in answer["rows"]}
        book = rows.get(answer["baseline"])
        best: Mapping[str, Any] | None = rows[answer["winner"]]
        won = book is None or best is None or best["finalist"] != book["finalist"]
        if book is not None and not won:
            others = [row for row in answer["rows"] if row["finalist"] != book["finalist"]]
            sign = 1 if record.header["direction"] == "max" else -1
            best = max(others, key=lambda r: sign * r["validation"]["mean"], default=None)
        sides: list[Mapping[str, Any] | None] = [book, best]
        evidence = "test"
    else:
        ranking, baseline = record.ranking(), record.baseline
        found = next((trial for trial in ranking if trial is not baseline), None)
        won = found is not None and found is ranking[0]
        sides = [_costs(record, baseline), _costs(record, found)]
        evidence = "validation"
    first, second = (side or {} for side in sides)
    before, after = by_root(first.get("built", {})), by_root(second.get("built", {}))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    both = bool(first and second)
    return {
        "evidence": evidence,
        "baseline": first.get("name"),
        "best": second.get("name"),
        "won": won,
        "changed": [
            {"name": n, "baseline": before.get(n, []), "best": after.get(n, [])} for n in names
        ]
        if both
        else [],
        "unchanged": len({**before, **after}) - len(names),
        "costs": [
            {"name": n, "unit": unit, "baseline": first.get(n), "best": second.get(n)}
            for n, unit in COSTS.items()
        ],
        "scores": {side["name"]: side.get("score") for side in sides if side},
    }


def _costs(record: Record, trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    result = trial.result
    images = record.header["data"]["train_images"]
    return {
        "name": named_trial(trial),
        "built": trial.built,
        "score": result["score"],
        "parameters": result["parameters"],
        "flops": result["flops"],
        "training_flops": trial.training_flops * images * result["epochs"],
        "training_seconds": sum(s for t in record.lineage(trial) for s in t.seconds.values()),
        "model_bytes": result["model_bytes"],
    }


def by_root(values: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return values by name, those of blocks together: {"filters": [32, 64], "depth": [2]}."""
    numbered = [(re.fullmatch(r"(.+)_(\d+)", name), name) for name in values]
    found: dict[str, list[tuple[int, Any]]] = {}
    for match, name in numbered:
        root, place = (match[1], int(match[2])) if match else (name, 0)
        found.setdefault(root, []).append((place, values[name]))
    return {r: [v for _, v in sorted(pairs, key=lambda p: p[0])] for r, pairs in found.items()}
