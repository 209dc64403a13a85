"""Analysis: what a sweep's ledger says beside the answer, as plain data ready for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_search.errors import LedgerError
from cnn_search.ledger import OPEN_ENDS, Event, Record, Trial, read_events
from cnn_search.progress import changes
from cnn_search.report.claims import weigh_claims
from cnn_search.report.comparison import compare, named_trial
from cnn_search.report.importance import full_trials, importance
from cnn_search.report.mistakes import tested


def read(ledger: Path) -> tuple[Record, list[Event]]:
    """Return a sweep's record and its sessions.

    Raises:
        LedgerError: the file cannot be read, is damaged, or holds no sweep.
    """
    record, sessions = Record(), []
    try:
        for event, _ in read_events(ledger):
            record.apply(event)
            if event["kind"] == "session":
                sessions.append(event)
    except (OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise LedgerError(
            f"{ledger}: expected the ledger of a sweep; received {reason}. Correct the path."
        ) from None
    if not record.header:
        raise LedgerError(
            f"{ledger}: expected the ledger of a sweep that began; it holds none. Run the sweep "
            "first, or correct the path."
        )
    return record, sessions


def analyse(record: Record, sessions: Sequence[Event], answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that the report shows beside the answer.

    Args:
        record: Of the sweep.
        sessions: Its events "session".
        answer: See `answer.answer`.
    """
    return {
        "unfinished": _unfinished(record, answer),
        "comparison": compare(record, answer),
        "history": history(record),
        "curves": curves(record, answer),
        "importance": importance(record),
        "claims": weigh_claims(record),
        "fronts": fronts(record, answer),
        "test": tested(record, answer),
        "failures": failures(record),
        "setting": setting(record, sessions),
    }


def _unfinished(record: Record, answer: Mapping[str, Any]) -> str:
    name = record.definition["name"]
    if answer["state"] == "scoring":
        return (
            f"The final scoring is not finished. It goes on with: python -m cnn_search.score {name}"
        )
    if record.end in OPEN_ENDS:
        return f"The search is not finished. It goes on with: {record.sweep_command()}"
    return ""


def history(record: Record) -> list[dict[str, Any]]:
    """Return every trial in order, with the best score of full fidelity up to it."""
    maximise = record.header["direction"] == "max"
    full = record.definition["training"]["epochs"]
    best: float | None = None
    rows = []
    for trial in sorted(record.trials.values(), key=lambda trial: trial.number):
        score = trial.result.get("score")
        if score is not None and record.is_ranked(trial):
            best = score if best is None else max(best, score) if maximise else min(best, score)
        rows.append(
            {
                "trial": trial.number,
                "name": named_trial(trial),
                "source": trial.source,
                "status": trial.status,
                "epochs": len(trial.curve),
                "full": trial.epochs == full,
                "score": score,
                "last": _last(trial, record.definition["objective"]),
                "best": best,
                "parameters": trial.result.get("parameters"),
                "flops": trial.result.get("flops"),
                "seconds": round(sum(trial.seconds.values()), 1),
                "changed": changes(record, trial, limit=6) if 0 in record.trials else "",
                "values": trial.values,
            }
        )
    return rows


def _last(trial: Trial, objective: str) -> float | None:
    """Return what a trial that was pruned had come to."""
    return trial.curve[max(trial.curve)][objective] if trial.status == "pruned" else None


def curves(record: Record, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the curves of the best against the baseline: of all their seeds where it is scored.

    Returns:
        `evidence`; `metrics`, names; `lines`: `name`, `seeds`, and of each metric the `values`,
        one list a seed, by epoch from 1.
    """
    groups: list[tuple[str, str, list[Trial]]] = []
    comparison = compare(record, answer)
    names = {role: comparison[role] for role in ("baseline", "best") if comparison[role]}
    if answer["state"] == "scored":
        finalists = {row["name"]: row["finalist"] for row in answer["rows"]}
        for role, name in names.items():
            seeds = record.retrainings(finalists[name])
            groups.append((role, finalists[name], [t for t in seeds if t.status == "finished"]))
    else:
        by_name = {named_trial(t): t for t in record.trials.values() if t.status == "finished"}
        groups = [(role, n, [by_name[n]]) for role, n in names.items() if n in by_name]
    objective = record.definition["objective"]
    metrics = list(dict.fromkeys([objective, "val_accuracy", "val_loss"]))
    return {
        "evidence": comparison["evidence"],
        "metrics": metrics,
        "lines": [
            {
                "name": name,
                "role": role,
                "seeds": len(trials),
                "values": {
                    metric: [[epoch.get(metric) for epoch in _curve(record, t)] for t in trials]
                    for metric in metrics
                },
            }
            for role, name, trials in groups
        ],
    }


def _curve(record: Record, trial: Trial) -> list[dict[str, float]]:
    """Return the metrics of each epoch, those before a promotion too."""
    known = record.lineage(trial) if trial.source != "final" else [trial]
    epochs = {number: epoch for one in known for number, epoch in one.curve.items()}
    return [epochs[number] for number in sorted(epochs)]


def fronts(record: Record, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trials that no other beats in score and cost at once, by the cost's name.

    Of latency, which only the final scoring measures, the finalists by their test accuracy.
    """
    sign = 1 if record.header["direction"] == "max" else -1
    trials = full_trials(record)
    found: dict[str, Any] = {}
    for cost in ("parameters", "flops"):
        points = [(float(t.result[cost]), sign * t.result["score"]) for t in trials]
        best = [trials[i] for i in pareto(points)]
        found[cost] = [
            {"trial": t.number, "name": named_trial(t), "cost": t.result[cost]}
            | {"score": t.result["score"]}
            for t in best
        ]
    if answer["state"] == "scored":
        rows = [row for row in answer["rows"] if row["kept"]]
        points = [(row["image_seconds"], row["accuracy"]["mean"]) for row in rows]
        found["image_seconds"] = [
            {"trial": rows[i]["trial"], "name": rows[i]["name"], "cost": points[i][0]}
            | {"score": points[i][1]}
            for i in pareto(points)
        ]
    return found


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points (cost, score) have no other with at most their cost and a better score.

    In the order of their cost; of equal points, the first.
    """
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


def failures(record: Record) -> list[dict[str, Any]]:
    """Return every trial and retraining that failed or was stopped, and why."""
    trials: Iterable[Trial] = [*record.trials.values(), *record.finals.values()]
    return [
        {
            "name": f"final {t.number} ({t.finalist})" if t.source == "final" else named_trial(t),
            "status": t.status,
            "reason": t.failure.get("reason", "it was told to stop, or killed; it can go on"),
            "message": t.failure.get("message", ""),
            "epochs": len(t.curve),
            "attempts": t.attempt,
        }
        for t in trials
        if t.status in ("failed", "stopped", "refused")
    ]


def setting(record: Record, sessions: Sequence[Event]) -> dict[str, Any]:
    """Return what the numbers were made with: data, definition, and each session."""
    data = record.header["data"]
    return {
        "sweep": record.header["sweep"],
        "data": {k: v for k, v in data.items() if k != "class_names"},
        "classes": len(data["class_names"]),
        "test_digest": record.plans[-1]["test_digest"] if record.plans else None,
        "definition": record.definition,
        "command": record.sweep_command("--new"),
        "definition_digest": record.header["digest"],
        "threads": record.threads,
        "seconds": round(record.seconds, 1),
        "ended": record.end,
        "last_time": record.last_time,
        "sessions": [
            {key: event.get(key) for key in ("time", "command", "versions", "machine", "git")}
            | {"job": event.get("job", "search")}
            for event in sessions
        ],
    }
