"""Mistakes: what the winner of a scored sweep gets wrong on the test part, and how surely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn_search.ledger import Record


def tested(record: Record, answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the winner gets right and wrong on the test part, over all of its seeds.

    Returns:
        None where it is not scored; else `name`; `seeds`; `images`; `confusion`, counts by true
        class, then predicted, summed over the seeds; `classes`: `name`, `images`, `accuracy`,
        `low`, `high` (95 %, Wilson's, of the images alone); `pairs`, the most confused: `true`,
        `predicted`, `share` of the true class's images, `count` a seed; `bins` of confidence:
        `low`, `high`, `images` (of all seeds), `confidence`, `accuracy`; `calibration_errors`, one
        a seed.
    """
    if answer["state"] != "scored":
        return None
    winner = next(row for row in answer["rows"] if row["name"] == answer["winner"])
    retrained = record.retrainings(winner["finalist"])
    tests = [t.tests[winner["weights"]] for t in retrained if winner["weights"] in t.tests]
    names = record.header["data"]["class_names"]
    confusion = np.sum([test["confusion"] for test in tests], axis=0)
    bins = np.array([test["calibration"] for test in tests])  # (seeds, bins, [n, sum, right])
    return {
        "name": winner["name"],
        "seeds": len(tests),
        "images": answer["test_images"],
        "class_names": names,
        "confusion": confusion.tolist(),
        "classes": _classes(confusion, names, len(tests)),
        "pairs": _pairs(confusion, names, len(tests)),
        "bins": _bins(bins.sum(axis=0)),
        "calibration_errors": [
            float(np.abs(seed[:, 1] - seed[:, 2]).sum() / seed[:, 0].sum()) for seed in bins
        ],
    }


def _classes(confusion: Any, names: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    from scipy.stats import binomtest

    rows = []
    for place, name in enumerate(names):
        images = int(confusion[place].sum()) // seeds
        row: dict[str, Any] = {"name": name, "images": images}
        row |= {"accuracy": None, "low": None, "high": None}
        if images:
            right = confusion[place][place] / seeds
            wilson = binomtest(round(right), images).proportion_ci(method="wilson")
            row |= {"accuracy": float(right / images)}
            row |= {"low": float(wilson.low), "high": float(wilson.high)}
        rows.append(row)
    return rows


def _pairs(confusion: Any, names: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    places = [divmod(int(place), len(names)) for place in order]
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "count": float(wrong[true][predicted] / seeds),
            "share": float(wrong[true][predicted] / confusion[true].sum()),
        }
        for true, predicted in places
        if wrong[true][predicted]
    ]


def _bins(bins: Any) -> list[dict[str, Any]]:
    return [
        {
            "low": place / len(bins),
            "high": (place + 1) / len(bins),
            "images": int(n),
            "confidence": float(confidence / n) if n else None,
            "accuracy": float(right / n) if n else None,
        }
        for place, (n, confidence, right) in enumerate(bins)
    ]
