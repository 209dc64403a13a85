"""The answer of a sweep: how much better than the book's model, at what cost, how sure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cnn_search import statistics
from cnn_search.ledger import OPEN_ENDS, Record, Trial, unpack_bits
from cnn_search.progress import capital, changes, duration, ratio_text


def answer(record: Record) -> dict[str, Any]:
    """Return what a sweep found, as plain data ready for JSON.

    Returns:
        `state`: "scored"; "scoring" (a scoring began and is not done); "searched"; "searching";
        `sentence`, the answer in words; `test_reads`; and where it is scored: `winner`, its name;
        `baseline`, the name of the data set's, None if all its seeds failed; `rows`, one for each
        finalist and for each weights of a baseline; `differences` to the winner by row name;
        `optimism_points`; `fewer_flops`; `ablation`, the steps of the path, None if there is none.
    """
    state = _state(record)
    found: dict[str, Any] = {
        "sweep": record.header["sweep"],
        "name": record.definition["name"],
        "objective": record.definition["objective"],
        "state": state,
        "test_reads": sum(len(trial.tests) for trial in record.finals.values()),
        "scorings": len(record.plans),
    }
    if state != "scored":
        return {**found, "sentence": _unscored(record, state)}
    plan = record.plans[-1]
    rows, correct = [], {}
    for finalist in plan["finalists"]:
        trials = [t for t in record.retrainings(finalist["name"]) if t.tests]
        weights = list(dict.fromkeys(w for trial in trials for w in trial.tests))
        for kind in weights:
            scored = [trial for trial in trials if kind in trial.tests]
            row = _row(record, finalist, scored, kind)
            correct[row["name"]] = np.stack(
                [unpack_bits(t.tests[kind]["correct"], plan["test_images"]) for t in scored]
            )
            row["accuracy"] = _plain(statistics.accuracy(correct[row["name"]]))
            rows.append(row)
    kept = record.definition["training"]["weights"]
    winner = next(r for r in rows if r["finalist"] == record.scored["winner"] and r["kept"])
    book = plan["finalists"][0]["name"]
    # of the book's last and best weights, the stronger: the harder claim
    against = max(
        (row for row in rows if row["finalist"] == book),
        key=lambda row: row["accuracy"]["mean"],
        default=None,
    )
    differences = {}
    for row in rows:
        if row["finalist"] != winner["finalist"]:
            pair = correct[winner["name"]], correct[row["name"]]
            difference = _plain(statistics.difference(*pair))
            difference["decided"] = _is_decided(difference)
            if not difference["decided"]:
                difference["seeds_needed"] = statistics.seeds_needed(*pair)
            differences[row["name"]] = difference
    found |= {
        "test_images": plan["test_images"],
        "seeds": plan["seeds"],
        "epochs": plan["epochs"],
        "weights": kept,
        "winner": winner["name"],
        "baseline": against["name"] if against else None,
        "rows": rows,
        "differences": differences,
        "optimism_points": _optimism(record, winner),
        "fewer_flops": _fewer_flops(record, winner, book) if against else None,
        "ablation": _ablation(record),
    }
    found["sentence"] = _sentence(record, found, winner, against)
    return found


def _state(record: Record) -> str:
    if record.plans:
        return "scored" if record.scored else "scoring"
    return "searched" if record.end not in OPEN_ENDS else "searching"


def _unscored(record: Record, state: str) -> str:
    ranking, name = record.ranking(), record.definition["name"]
    if not ranking:
        return "No trial finished, so there is nothing to compare."
    best, book = ranking[0], record.baseline
    objective = record.definition["objective"]
    text = f"Not an answer yet: trial {best.number} is best by {objective}, {_score(best)}"
    if book is not None and book is not best:
        text += f" against {_score(book)} of {book_of(book.baseline)}"
    text += ", the best of several and of one seed each."
    todo = {
        "searching": f" The search is not finished: {record.sweep_command()}",
        "scoring": f" The final scoring is not finished: python -m cnn_search.score {name}",
        "searched": f" To train it anew and score it on the test part: "
        f"python -m cnn_search.score {name}",
    }
    return text + todo[state]


def _score(trial: Trial) -> str:
    return f"{trial.result['score']:.4f}"


def _plain(estimate: statistics.Estimate) -> dict[str, Any]:
    return dataclasses.asdict(estimate)


def _is_decided(difference: Mapping[str, Any]) -> bool:
    """Return whether an interval leaves zero out; one that cannot be had decides nothing."""
    low, high = difference["low"], difference["high"]
    return low is not None and (low > 0 or high < 0)


def _over_seeds(objective: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and interval of an objective, which is a loss or lies between 0 and 1."""
    highest = math.inf if objective == "val_loss" else 1.0
    return _plain(statistics.seeds_interval(values, within=(0.0, highest)))


def _row(
    record: Record, finalist: Mapping[str, Any], trials: Sequence[Trial], weights: str
) -> dict[str, Any]:
    """Return what is known of one finalist's retrained seeds, with one kind of weights."""
    kept = weights == record.definition["training"]["weights"]
    tests = [trial.tests[weights] for trial in trials]
    results = [trial.result for trial in trials]
    images = record.header["data"]["train_images"]
    failed = [t for t in record.retrainings(finalist["name"]) if t.status == "failed"]
    searched = record.trials.get(finalist["trial"])
    return {
        "name": finalist["name"] if kept else f"{finalist['name']}, {weights} weights",
        "finalist": finalist["name"],
        "baseline": finalist["baseline"],
        "trial": finalist["trial"],
        "values": finalist["values"],
        "built": trials[0].built,
        "changed": changes(record, searched) if searched and 0 in record.trials else "",
        "weights": weights,
        "kept": kept,
        "loss": _over_seeds("val_loss", [test["loss"] for test in tests]),
        "validation": _over_seeds(record.definition["objective"], [r["score"] for r in results]),
        "seeds": [
            {
                "final": trial.number,
                "seed": trial.seed,
                "validation": trial.result["score"],
                "accuracy": trial.tests[weights]["accuracy"],
                "loss": trial.tests[weights]["loss"],
                "epochs": len(trial.curve),
                "seconds": round(sum(trial.seconds.values()), 1),
            }
            for trial in trials
        ],
        "failed": [trial.failure["reason"] for trial in failed],
        "searched_score": searched.result.get("score") if searched else None,
        "parameters": results[0]["parameters"],
        "flops": results[0]["flops"],
        "training_flops": trials[0].training_flops
        * images
        * float(np.mean([len(trial.curve) for trial in trials])),
        "training_seconds": float(np.mean([sum(t.seconds.values()) for t in trials])),
        "image_seconds": float(np.median([test["image_seconds"] for test in tests])),
        "batch_seconds": float(np.median([test["batch_seconds"] for test in tests])),
        "model_bytes": results[0]["model_bytes"],
    }


def _optimism(record: Record, winner: Mapping[str, Any]) -> float | None:
    """Return by how many points the search's score of the winner is above that of fresh seeds."""
    accuracy = record.definition["objective"] == "val_accuracy"
    if not accuracy or winner["baseline"] or winner["searched_score"] is None:
        return None
    return float(100 * (winner["searched_score"] - winner["validation"]["mean"]))


def _fewer_flops(record: Record, winner: Mapping[str, Any], book: str) -> dict[str, Any] | None:
    """Return by how much less training the winner reaches the validation that the book's ends at.

    By the mean curves of the retrained seeds: the book's model is counted up to its best epoch.

    Returns:
        `ratio` of the training FLOPs, `epochs` of the winner, `book_epochs`, `target`; None if
        the winner never reaches it, or is the book's.
    """
    if winner["finalist"] == book:
        return None
    sign = 1 if record.header["direction"] == "max" else -1
    curves = {
        name: sign * mean_curve(record.retrainings(name), record.definition["objective"])
        for name in (winner["finalist"], book)
    }
    best = int(np.argmax(curves[book]))
    reached = np.flatnonzero(curves[winner["finalist"]] >= curves[book][best])
    if not len(reached):
        return None
    flops = {
        name: next(t.training_flops for t in record.retrainings(name) if t.result)
        for name in curves
    }
    epochs = int(reached[0]) + 1
    ratio = flops[book] * (best + 1) / (flops[winner["finalist"]] * epochs)
    target = float(sign * curves[book][best])
    return {"ratio": ratio, "epochs": epochs, "book_epochs": best + 1, "target": target}


def mean_curve(trials: Sequence[Trial], metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a metric's mean over the finished trials, by epoch, as far as all of them went."""
    curves = [
        [trial.curve[epoch][metric] for epoch in sorted(trial.curve)]
        for trial in trials
        if trial.status == "finished"
    ]
    shortest = min(len(curve) for curve in curves)
    return np.mean([curve[:shortest] for curve in curves], axis=0)  # type: ignore[no-any-return]


def _ablation(record: Record) -> list[dict[str, Any]] | None:
    """Return the path from the book's model to the winner: scores are validation, by seeds.

    Returns:
        For the book's model (`change` is "") and for each change in the order of the path: `alone`,
        its scores on the book's model; `path`, those of all changes so far; None for a
        configuration that failed.
    """
    found = record.ablation
    if "path" not in found or found["winner"] != record.scored["winner"]:
        return None
    seeds = found["seeds"]

    def scores(values: Mapping[str, Any]) -> dict[str, Any] | None:
        trials = [t for t in record.retrained(values, seeds) if t.status == "finished"]
        values_of_seeds = [trial.result["score"] for trial in trials]
        return _over_seeds(record.definition["objective"], values_of_seeds) if trials else None

    finalists = {f["name"]: f["values"] for f in record.plans[-1]["finalists"]}
    if found["book"] not in finalists:
        return None
    book = finalists[found["book"]]
    rows = [{"change": "", "alone": scores(book), "path": scores(book)}]
    for change, path in zip(found["order"], found["path"], strict=True):
        alone = scores(found["alone"][change])
        rows.append({"change": change, "alone": alone, "path": scores(path)})
    return rows


def _sentence(
    record: Record,
    found: Mapping[str, Any],
    winner: Mapping[str, Any],
    against: Mapping[str, Any] | None,
) -> str:
    """Return gain, interval, n and cost in words."""
    counts = [len(row["seeds"]) for row in (winner, against or winner)]
    seeds = (
        f"{counts[0]} seeds each" if counts[0] == counts[1] else f"{counts[0]}, {counts[1]} seeds"
    )
    n = f"{seeds} of {found['epochs']} epochs, {found['test_images']:,} test images"
    spent = sum(len(trial.curve) for trial in record.trials.values())
    sweep = (
        f"The search took {len(record.trials)} trials, {spent:,} epochs and "
        f"{duration(record.seconds)}."
    )
    if against is None:
        return (
            f"All {found['seeds']} seeds of the book's model failed, so there is nothing to "
            f"compare {winner['name']} with: it classifies {_percent(winner)} of the test images "
            f"right ({counts[0]} seeds, {found['test_images']:,} test images). {sweep}"
        )
    name = against["finalist"] + ("" if against["kept"] else f" ({against['weights']} weights)")
    if winner["finalist"] == against["finalist"]:
        sign = 1 if record.header["direction"] == "max" else -1
        means = [sign * row["validation"]["mean"] for row in found["rows"] if row["kept"]]
        best = sign * winner["validation"]["mean"] >= max(means)
        which = "has the best validation" if best else "is the cheapest near the best validation"
        return (
            f"The search found nothing better than {book_of(against['finalist'])}: of the "
            f"configurations that were trained anew it {which}, and "
            f"{_percent(winner)} of test accuracy ({n}). {sweep}"
        )
    difference = found["differences"][against["name"]]
    gain = 100 * difference["mean"]
    interval = "no interval"
    if difference["low"] is not None:
        interval = (
            f"95 % interval {100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}"
        )
    searched = record.trials.get(winner["trial"])
    recipe = f", the space's recipe {searched.recipe}," if searched and searched.recipe else ""
    said = (
        f"{capital(winner['name'])}{recipe} classifies {_percent(winner)} of the test images "
        f"right, {book_of(name)} {_percent(against)}: {gain:+.2f} points ({interval}; {n})"
    )
    cost = (
        f"{ratio_text(winner['parameters'] / against['parameters'])} times its parameters and "
        f"{ratio_text(winner['training_flops'] / against['training_flops'])} times its training "
        "FLOPs"
    )
    if difference["decided"]:
        verdict = "better" if gain > 0 else "worse"
        return f"{said}, so it is {verdict}, at {cost}. {sweep}"
    needed = difference["seeds_needed"]
    if difference["low"] is None:
        unknown = "one seed does not tell how much seeds differ"
        return f"{said}: undecided, {unknown}; at {cost}. {sweep}"
    more = (
        f"about {needed} seeds each would decide it"
        if needed
        else "no number of seeds would decide it on so few test images"
    )
    return f"{said}: undecided, {more}; at {cost}. {sweep}"


def book_of(baseline: str) -> str:
    """Return what a baseline is called in a sentence; a hypermodel of somebody's has "defaults"."""
    return f"the {baseline}" if baseline.startswith("defaults") else f"the book's {baseline}"


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']['mean']:.2f} %"
