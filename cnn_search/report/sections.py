"""Sections: the parts of the report in order, each with its texts, figures and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cnn_search.ledger import Record
from cnn_search.progress import duration, ratio_text
from cnn_search.report import charts, colophon, intervals, landscape, verdict
from cnn_search.report.formats import (
    amount,
    interval,
    percent,
    score_text,
    value_text,
)
from cnn_search.report.importance import full_trials
from cnn_search.report.parts import Figure, Image, Section, Table

Facts = Mapping[str, Any]


def build(record: Record, answer: Facts, facts: Facts, grid: Image) -> list[Section]:
    """Return the sections of a sweep's report; one about which nothing is known is left out.

    Args:
        record: Of the sweep.
        answer: See `answer.answer`.
        facts: See `analysis.analyse`.
        grid: The winner's predictions.
    """
    scored = answer["state"] == "scored"
    found = [
        verdict.certainty(answer) if scored else None,
        search(record, answer, facts),
        curves(facts),
        importance(record, facts),
        fronts(record, answer, facts),
        claims(record, facts),
        verdict.ablation(answer) if scored and answer.get("ablation") else None,
        verdict.mistakes(facts["test"], grid) if scored else None,
        colophon.failures(facts),
        colophon.reproduction(facts),
    ]
    return [section for section in found if section is not None]


def first_tables(record: Record, answer: Facts, facts: Facts) -> list[Table]:
    """Return the tables of the first screen: baseline against best, costs and changes."""
    found = facts["comparison"]
    names = [
        f"baseline: {found['baseline']}" if found["baseline"] else "no baseline finished",
        f"{'best' if found['won'] else 'best of the others'}: {found['best']}"
        if found["best"]
        else "no other finished",
    ]
    rows = []
    if found["evidence"] == "test":
        about = {row["name"]: row for row in answer["rows"]}
        sides = [about.get(found["baseline"]), about.get(found["best"])]
        measures: dict[str, Callable[[Facts], str]] = {
            "test accuracy, %": lambda row: percent(row["accuracy"]),
            "its 95 % interval": lambda row: interval(row["accuracy"]),
            "validation, mean": lambda row: score_text(row["validation"]["mean"]),
            "seeds": lambda row: str(len(row["seeds"])),
        }
        for title, tell in measures.items():
            rows.append([title, *("" if row is None else tell(row) for row in sides), ""])
    else:
        scores = [score_text(found["scores"].get(found[side])) for side in ("baseline", "best")]
        rows.append([f"{answer['objective']}, one seed", *scores, ""])
    for cost in found["costs"]:
        both = cost["baseline"] and cost["best"]
        rows.append(
            [
                cost["unit"],
                amount(cost["name"], cost["baseline"]) if found["baseline"] else "",
                amount(cost["name"], cost["best"]) if found["best"] else "",
                f"{ratio_text(cost['best'] / cost['baseline'])}\N{NO-BREAK SPACE}×" if both else "",
            ]
        )
    means = "Means over the seeds, of latencies medians. " if found["evidence"] == "test" else ""
    costs = Table(
        ["", f"#{names[0]}", f"#{names[1]}", "#ratio"],
        rows,
        "What it cost",
        f"{means}FLOPs count multiplications and additions; training counts backward twice. "
        "Seconds are those of the machine, and of what else ran on it.",
    )
    changed = Table(
        ["", names[0], names[1]],
        [
            [row["name"], *(_values(row[side]) for side in ("baseline", "best"))]
            for row in found["changed"]
        ],
        "What was changed",
        f"{found['unchanged']} other hyperparameters are equal. Several values are those of the "
        "blocks, in order; – is one that the network has not, as of a block that did not fit.",
    )
    if not (found["baseline"] or found["best"]):
        return []
    return [costs, changed] if found["changed"] else [costs]


def _values(values: Sequence[Any]) -> str:
    return ", ".join(value_text(value) for value in values) or "–"


def search(record: Record, answer: Facts, facts: Facts) -> Section | None:
    """Return the search: its history."""
    rows = facts["history"]
    if not rows:
        return None
    counts = {status: 0 for status in ("finished", "pruned", "refused", "failed", "stopped")}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    epochs = sum(row["epochs"] for row in rows)
    kind = record.definition["oracle"]["kind"]
    texts = [
        f"{len(rows):,} trial{'s' if len(rows) != 1 else ''} ({told}) by the oracle {kind!r}: "
        f"{epochs:,} epochs in {duration(record.seconds)}. {len(full_trials(record)):,} finished "
        f"with all {record.definition['training']['epochs']} epochs; only these are ranked."
    ]
    scored = any(row["score"] is not None for row in rows)
    parts = [charts.history_chart(rows, answer["objective"])] if scored else []
    return Section("search", "The search", texts, [*parts])


def curves(facts: Facts) -> Section | None:
    """Return the curves of the best against the baseline."""
    found = charts.curve_charts(facts["curves"])
    if not found:
        return None
    text = (
        "Thin lines are single seeds."
        if facts["curves"]["evidence"] == "test"
        else ("One seed each, from the search: other seeds would give other curves.")
    )
    return Section("curves", "Best against baseline, epoch by epoch", [text], [*found])


def importance(record: Record, facts: Facts) -> Section | None:
    """Return which hyperparameters mattered, parallel coordinates and slices."""
    found = facts["importance"]
    names = landscape.chosen_names(record, found, 8)
    parts: list[Figure | Table | Image] = []
    texts = [found["note"]] if found["note"] else []
    if found["rows"]:
        above = [row["name"] for row in found["rows"] if row["above"]]
        texts = [
            f"PED-ANOVA compares the {found['top']} best of {found['trials']:,} trials with all. "
            f"The intervals are of {found['resamples']} samples drawn from these trials with "
            "replacement. An upright stroke is what chance reaches: in 95 % of as many shuffles of "
            f"the scores, none of the {len(found['rows'])} hyperparameters is above its own.",
            f"Above chance: {', '.join(above)}. Of the others this sweep cannot tell whether they "
            "matter."
            if above
            else f"With {found['trials']:,} trials, none of the {len(found['rows'])} can be told "
            "from chance: which of them matter, this sweep cannot say.",
        ]
        parts.append(intervals.importance_chart(found))
    parallel = landscape.parallel_chart(record, names)
    parts += [parallel] if parallel else []
    slices = landscape.slice_charts(record, names[:6])
    parts += slices
    if slices:
        texts.append("In the figures of single hyperparameters, the darker a dot, the earlier.")
    if not parts and not full_trials(record):
        return None
    return Section("importance", "Which hyperparameters mattered", texts, parts)


def fronts(record: Record, answer: Facts, facts: Facts) -> Section | None:
    """Return score against cost."""
    trials = full_trials(record)
    if not trials:
        return None
    maximise = record.header["direction"] == "max"
    named = {row["trial"]: row["name"] for row in facts["history"]}
    titles = {"parameters": "parameters", "flops": "FLOPs of one image"}
    parts: list[Figure | Table | Image] = []
    for cost, title in titles.items():
        points = [
            {"name": named[t.number], "cost": t.result[cost], "score": t.result["score"]}
            | {"baseline": bool(t.baseline)}
            for t in trials
        ]
        parts.append(
            landscape.front_chart(
                points,
                facts["fronts"][cost],
                name=cost,
                cost=title,
                amounts=partial(amount, cost),
                score=answer["objective"],
                maximise=maximise,
            )
        )
    texts = ["Validation scores of one seed each."]
    if "image_seconds" in facts["fronts"]:
        rows = [row for row in answer["rows"] if row["kept"]]
        points = [
            {"name": row["name"], "cost": row["image_seconds"]}
            | {"score": row["accuracy"]["mean"], "baseline": bool(row["baseline"])}
            for row in rows
        ]
        parts.append(
            landscape.front_chart(
                points,
                facts["fronts"]["image_seconds"],
                name="latency",
                cost="seconds for one image",
                amounts=partial(amount, "image_seconds"),
                score="test accuracy",
                maximise=True,
            )
        )
        texts = ["Validation scores of one seed each; in the figure of latency, test accuracies."]
    else:
        texts.append("Latency is measured at the final scoring, which this sweep has not.")
    return Section("fronts", "What accuracy costs", texts, parts)


def claims(record: Record, facts: Facts) -> Section | None:
    """Return what the sweep says about the tutorials' claims."""
    found = facts["claims"]
    if not found["trials"]:
        return None
    points = record.definition["objective"] != "val_loss"
    scale, unit, form = (100.0, "points", "+.2f") if points else (1.0, "of val_loss", "+.4f")
    rows = []
    for row in found["rows"]:
        told = ["", ""]
        if row["difference"] is not None:
            told = [f"{scale * row['difference']:{form}}", interval(row, scale, form)]
        groups = [
            f"{row[side]['label']}: "
            + (f"{row[side]['mean']:.4f}, " if row[side]["n"] else "")
            + f"n = {row[side]['n']}"
            for side in ("first", "second")
        ]
        rows.append([f"{row['topic']}: {row['said']}", *groups, *told, row["verdict"]])
    table = Table(
        ["claim", "first group, mean", "second group, mean", f"#first better by, {unit}"]
        + ["#95 % interval", "this sweep says"],
        rows,
    )
    weighed = [row for row in found["rows"] if row["difference"] is not None]
    texts = [
        f"Mean {record.definition['objective']} of two groups of the {found['trials']:,} trials "
        "that the oracle chose and that ran to the end, with a bootstrap interval over trials. "
        + found["caution"],
        "It is a difference on average over everything else in this space at this many epochs, "
        "and no statement about the best network of either kind."
        + (
            " Of intervals at 95 %, one in twenty leaves zero out by chance; here are "
            f"{len(weighed)}."
            if weighed
            else ""
        ),
    ]
    chart = intervals.claims_chart(found, unit, scale, table)
    return Section("claims", "What the tutorials say, and this sweep", texts, [chart or table])
