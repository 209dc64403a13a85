"""Claims: what a sweep says about what the tutorials say, as differences between its trials.

Two groups of trials are compared by their mean score. Everything else varies in both groups too, so
what is compared is a choice averaged over all others; nothing here trains a network anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnn_search.ledger import Record, Trial
from cnn_search.report.importance import full_trials

FEWEST_IN_GROUP = 8  # of fewer trials, the interval covers too seldom
RESAMPLES = 4000
CHOSEN = (
    "the groups are chosen by earlier scores, and a difference between them is smaller than "
    "between all configurations."
)

Groups = tuple[str, list[Trial], str, list[Trial]]


@dataclass(frozen=True)
class Claim:
    """What a tutorial says, and how to divide trials by it.

    Attributes:
        topic: What it is about.
        said: What stands in the tutorial, or what its code implies.
        divide: Gives the group that should be better with its name, then the other one.
    """

    topic: str
    said: str
    divide: Callable[[Sequence[Trial]], Groups]


def blocks(trial: Trial, name: str) -> list[Any]:
    """Return a hyperparameter's value in each block that the network has."""
    found = []
    for number in range(1, int(depth(trial) or 0) + 1):
        if f"{name}_{number}" in trial.values:
            found.append(trial.values[f"{name}_{number}"])
    return found


def depth(trial: Trial) -> float | None:
    """Return how many blocks a network has: those that fitted the images."""
    found = trial.built.get("depth")
    return found if isinstance(found, int) else None


def _majority(name: str, first: str, second: str, noun: str) -> Callable[[Sequence[Trial]], Groups]:
    """Return what divides trials by which of two values more of their blocks have."""

    def divide(trials: Sequence[Trial]) -> Groups:
        surplus = [
            (t, blocks(t, name).count(first) - blocks(t, name).count(second)) for t in trials
        ]
        return (
            f"more blocks with {first} {noun} than with {second}",
            [trial for trial, more in surplus if more > 0],
            f"more with {second}",
            [trial for trial, more in surplus if more < 0],
        )

    return divide


def _halves(
    amount: Callable[[Trial], float | None], say: Callable[[float], str]
) -> Callable[[Sequence[Trial]], Groups]:
    """Return what divides trials where an amount leaves the most even halves."""

    def divide(trials: Sequence[Trial]) -> Groups:
        known = [(trial, found) for trial in trials if (found := amount(trial)) is not None]
        values = np.array([found for _, found in known])
        levels = np.unique(values)[1:]
        if not len(levels):
            return "more", [], "less", []
        cut = min(levels, key=lambda level: abs(np.sum(values >= level) - len(values) / 2))
        return (
            f"at least {say(float(cut))}",
            [trial for trial, found in known if found >= cut],
            "less",
            [trial for trial, found in known if found < cut],
        )

    return divide


def _number(name: str) -> Callable[[Trial], float | None]:
    def amount(trial: Trial) -> float | None:
        found = trial.values.get(name)
        return float(found) if isinstance(found, (int, float)) else None

    return amount


def _filters(trial: Trial) -> float | None:
    found = [count for count in blocks(trial, "filters") if isinstance(count, (int, float))]
    return float(np.mean(found)) if found else None


def _dropout(trial: Trial) -> float | None:
    found = [*blocks(trial, "dropout"), trial.values.get("head_dropout")]
    numbers = [share for share in found if isinstance(share, (int, float))]
    return float(np.mean(numbers)) if len(found) > 1 and numbers == found else None


def _augmentation(trial: Trial) -> float | None:
    kinds = ("shift", "zoom", "flip", "rotation", "crop", "cutout")
    found = [trial.values[kind] for kind in kinds if kind in trial.values]
    return float(sum(bool(value) for value in found)) if found else None


CLAIMS = (
    Claim(
        "Max or average pooling",
        "“Max Pooling performs a lot better than Average Pooling.” (the tutorial of one_conv)",
        _majority("pooling", "max", "average", "pooling"),
    ),
    Claim(
        "Depth",
        "“The deeper the network the better?” (the tutorial of one_conv)",
        _halves(depth, lambda cut: f"{cut:.0f} blocks"),
    ),
    Claim(
        "Size",
        "“The model can be more accurate if you increase the size of it.” (the tutorial of "
        "wide_conv)",
        _halves(
            lambda trial: float(trial.result["parameters"]), lambda cut: f"{cut:,.0f} parameters"
        ),
    ),
    Claim(
        "More filters",
        "wide_conv follows one_conv with 8, 512 and 256 filters instead of 10",
        _halves(_filters, lambda cut: f"{cut:.3g} filters, mean of the blocks"),
    ),
    Claim(
        "Larger filters",
        "most tutorials take 3x3, lenet5 5x5, conv7 7x7",
        _halves(_number("kernel"), lambda cut: f"{cut:.0f}x{cut:.0f}"),
    ),
    Claim(
        "Dropout",
        "“Dropout helps to avoid Overfitting.” (the tutorial of lenet5)",
        _halves(_dropout, lambda cut: f"{cut:.2g}, mean of blocks and head"),
    ),
    Claim(
        "Padding",
        "padding keeps the edges' information, says the tutorial of one_conv, which uses none",
        _majority("padding", "same", "valid", "padding"),
    ),
    Claim(
        "Augmentation",
        "vgg_bn shifts, zooms and flips its images; the other tutorials train without",
        _halves(
            _augmentation, lambda cut: f"{cut:.0f} of shift, zoom, flip, rotation, crop, cutout"
        ),
    ),
    Claim(
        "Batch normalisation",
        "vgg_bn and conv7 normalise each block; one_conv, two_conv and wide_conv none",
        _majority("normalisation", "batch", "none", "normalisation"),
    ),
)


def weigh_claims(record: Record) -> dict[str, Any]:
    """Return what the trials that the oracle chose say about each claim.

    Returns:
        `trials`, how many there are; `caution`, what the comparison cannot rule out; `rows`:
        `topic`, `said`, `first` and `second` (each `label`, `n`, `mean`), `difference` of the means
        with `low` and `high` (95 %), None where there are too few; `verdict` in words. Of an
        objective that is minimised, a positive difference is better too.
    """
    trials = [trial for trial in full_trials(record) if trial.source == "oracle"]
    sign = 1 if record.header["direction"] == "max" else -1
    rows = []
    for claim in CLAIMS:
        first, one, second, two = claim.divide(trials)
        scores = [np.array([trial.result["score"] for trial in group]) for group in (one, two)]
        row: dict[str, Any] = {
            "topic": claim.topic,
            "said": claim.said,
            "first": _group(first, scores[0]),
            "second": _group(second, scores[1]),
            "difference": None,
            "low": None,
            "high": None,
        }
        if min(len(group) for group in scores) >= FEWEST_IN_GROUP:
            low, high = bootstrap_difference(sign * scores[0], sign * scores[1])
            difference = float(sign * (scores[0].mean() - scores[1].mean()))
            row |= {"difference": difference, "low": low, "high": high}
        rows.append({**row, "verdict": _verdict(row)})
    return {"trials": len(trials), "caution": _caution(record), "rows": rows}


def _group(label: str, scores: npt.NDArray[np.float64]) -> dict[str, Any]:
    mean = float(scores.mean()) if len(scores) else None
    return {"label": label, "n": len(scores), "mean": mean}


def _verdict(row: Mapping[str, Any]) -> str:
    counts = row["first"]["n"], row["second"]["n"]
    if not any(counts):
        return "it did not vary in this sweep"
    if row["difference"] is None:
        return f"too few trials to compare (at least {FEWEST_IN_GROUP} in each group)"
    if row["low"] > 0:
        return "the first group is better"
    return "the second group is better" if row["high"] < 0 else "cannot tell"


def _caution(record: Record) -> str:
    kind = record.definition["oracle"]["kind"]
    pruner = record.definition.get("pruner", {}).get("kind", "none")
    survivors = f"The pruner ({pruner}) let only survivors come to their end: {CHOSEN}"
    said = _caution_of(record, kind)
    if pruner == "none":
        return said
    return survivors if kind == "random" else f"{said} {survivors}"


def _caution_of(record: Record, kind: str) -> str:
    if kind == "random":
        return (
            "The oracle drew all values at random, so what else differs between two groups differs "
            "by chance, except what follows from the division itself (a deeper network has more "
            "parameters, and more of everything that each block has)."
        )
    if kind == "hyperband":
        return f"Hyperband trained only survivors to full length: {CHOSEN}"
    if kind == "grid":
        names = ", ".join(record.definition["oracle"]["over"])
        return f"The grid varied only: {names}. All else had the baseline's value."
    return (
        f"The oracle ({kind}) chose values that had done well: what goes with one choice goes with "
        "others too, so a difference may belong to another hyperparameter."
    )


def bootstrap_difference(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Return a 95 % interval of the difference of two means, by the studentised bootstrap.

    The percentile and BCa intervals of scipy cover 90 to 92 % at 8 to 15 scores a group, a few of
    them failures near chance; this one 94 to 95 % (Efron and Tibshirani 1993, chapter 12).
    """
    rng = np.random.default_rng(0)
    means, errors = [], []
    for scores in (first, second):
        n = len(scores)
        drawn = scores[rng.integers(0, n, (RESAMPLES, n))]
        means.append(drawn.mean(axis=1) - scores.mean())
        errors.append(drawn.var(axis=1, ddof=1) / n)
    error = np.sqrt(errors[0] + errors[1])
    apart = np.divide(means[0] - means[1], error, where=error > 0, out=np.zeros(RESAMPLES))
    high, low = np.quantile(apart, [0.025, 0.975])
    difference = first.mean() - second.mean()
    width = np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return float(difference - low * width), float(difference - high * width)
