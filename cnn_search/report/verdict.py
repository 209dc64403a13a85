"""Verdict: the sections of a scored sweep, about what the test part says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cnn_search.progress import capital, ratio_text
from cnn_search.report import charts, intervals
from cnn_search.report.formats import interval, percent, score_text
from cnn_search.report.parts import Figure, Image, Section, Table

Facts = Mapping[str, Any]


def certainty(answer: Facts) -> Section:
    """Return how sure the answer is: every seed, every interval, how often test was read."""
    rows, others = [], []
    for row in answer["rows"]:
        difference = answer["differences"].get(row["name"])
        gain = "" if difference is None else percent(difference, "+")
        verdict, needed = "the winner", ""
        if difference is not None:
            verdict = "decided" if difference["decided"] else "undecided"
            if not difference["decided"]:
                known = difference["low"] is not None  # of one seed nothing is
                needed = str(difference["seeds_needed"] or "no number") if known else ""
        elif row["name"] != answer["winner"]:
            verdict = "its other weights"
        rows.append(
            [
                row["name"],
                percent(row["accuracy"]),
                interval(row["accuracy"]),
                gain,
                "" if difference is None else interval(difference, form="+.2f"),
                verdict,
                needed,
            ]
        )
        others.append(
            [
                row["name"],
                score_text(row["validation"]["mean"]),
                interval(row["validation"], 1, ".4f"),
                score_text(row["loss"]["mean"]),
                interval(row["loss"], 1, ".4f"),
                str(len(row["failed"])),
            ]
        )
    columns = ["", "#test accuracy %", "#95 % interval", "#winner's gain, points"]
    columns += ["#95 % interval", "", "#seeds that would decide"]
    table = Table(columns, rows, "Every finalist on the test part")
    columns = ["", f"#validation ({answer['objective']})", "#95 % interval", "#test loss"]
    columns += ["#95 % interval", "#failed seeds"]
    second = Table(columns, others, "Their validation, and test loss")
    seeds = Table(
        ["", "#final", "#seed", "#test accuracy %", "#test loss", "#validation", "#epochs"]
        + ["#seconds"],
        [
            [
                row["name"],
                str(seed["final"]),
                str(seed["seed"]),
                f"{100 * seed['accuracy']:.2f}",
                score_text(seed["loss"]),
                score_text(seed["validation"]),
                str(seed["epochs"]),
                f"{seed['seconds']:.0f}",
            ]
            for row in answer["rows"]
            for seed in row["seeds"]
        ],
    )
    texts = [
        f"Each finalist was trained anew with {answer['seeds']} fresh seeds and {answer['epochs']} "
        f"epochs, and each model scored once on {answer['test_images']:,} test images; the winner "
        "is chosen by its mean validation (or, by [registry], as the cheapest near the best), "
        "never by a test score. The intervals "
        "of accuracies and gains allow for other seeds and other test images; those of validation "
        "and loss for other seeds alone.",
        f"The test part was read {answer['test_reads']} times in {answer['scorings']} "
        f"scoring{'s' if answer['scorings'] != 1 else ''}, once for each set of weights.",
    ]
    if answer["scorings"] > 1:
        texts[-1] += (
            " An interval that is looked at after each of several scorings leaves out zero by "
            "chance more often than once in twenty."
        )
    optimism = answer["optimism_points"]
    if optimism is not None:
        side = "above" if optimism >= 0 else "below"
        flattered = ": by so much the best of several flattered" if optimism > 0 else ""
        texts.append(
            f"The search's own score of the winner was {abs(optimism):.2f} points {side} the mean "
            f"validation of its fresh seeds{flattered}."
        )
    fewer = answer["fewer_flops"]
    if fewer:
        texts.append(
            f"By the mean curves, the winner reaches {answer['objective']} {fewer['target']:.4f}, "
            f"the best of the baseline (epoch {fewer['book_epochs']}), at epoch {fewer['epochs']}: "
            f"the baseline needs {ratio_text(fewer['ratio'])} times its training FLOPs."
        )
    return Section(
        "certainty", "How sure it is", texts, [table, second, intervals.seeds_chart(answer, seeds)]
    )


def ablation(answer: Facts) -> Section:
    """Return which change brought how much."""
    rows = []
    for row in answer["ablation"]:
        cells = [row["change"] or "the book's model"]
        for part in ("alone", "path"):
            found = row[part]
            told = ["failed", ""] if found is None else [score_text(found["mean"])]
            cells += told if found is None else [*told, interval(found, 1, ".4f")]
        rows.append(cells)
    table = Table(
        ["change", "#alone, mean", "#95 % interval", "#with those above, mean", "#95 % interval"],
        rows,
    )
    text = f"Validation ({answer['objective']}), the same seeds for each; intervals over seeds."
    return Section("ablation", "Which change brought how much", [text], [table])


def mistakes(test: Facts, grid: Image) -> Section:
    """Return what the winner gets wrong, and how far its probabilities can be trusted."""
    errors = test["calibration_errors"]
    n = f"{test['seeds']} seed{'s' if test['seeds'] > 1 else ''}"
    classes = Table(
        ["class", "#test images", "#accuracy %", "#95 % interval"],
        [
            [row["name"], str(row["images"]), f"{100 * row['accuracy']:.1f}"]
            + [f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"]
            if row["images"]
            else [row["name"], "0", "", ""]
            for row in test["classes"]
        ],
        "Each class",
        "Intervals are Wilson's, of the images alone: other seeds would widen them.",
        small=True,
    )
    pairs = Table(
        ["true", "predicted instead", "#images, mean of a seed", "#% of the class"],
        [
            [row["true"], row["predicted"], f"{row['count']:.1f}", f"{100 * row['share']:.1f}"]
            for row in test["pairs"]
        ],
        "Most confused",
        "" if test["pairs"] else "Nothing is confused.",
        small=True,
    )
    texts = [
        f"{capital(test['name'])} on {test['images']:,} test images, {n} together. Expected "
        f"calibration error, mean of {n}: {sum(errors) / len(errors):.4f} ({min(errors):.4f} to "
        f"{max(errors):.4f}): by so much the probability of an answer is off, on average over "
        f"{len(test['bins'])} bins. Few images inflate it."
    ]
    confusion = charts.confusion_chart(test)
    if confusion is None:
        texts.append(
            f"The confusion matrix of {len(test['class_names'])} classes is in the JSON twin."
        )
    parts: list[Figure | Table | Image] = [confusion] if confusion else []
    return Section(
        "mistakes",
        "What the winner gets wrong",
        texts,
        [*parts, classes, pairs, charts.reliability_chart(test), grid],
    )
